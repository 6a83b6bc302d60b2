// The talk of one room. Text never moves under the reader: a new turn starts at the top of the window and its answers grow
// downwards; the window follows only whom has gone to the end himself.

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { current, loaded, type OpenRoom, opening, openRoom, personas, reopenLike } from "../state/rooms";
import { status } from "../state/server";
import { stopOne } from "../state/talk";
import { open } from "../state/view";
import { paint } from "./colour";
import { names, scale } from "./format";
import { Icon } from "./icons";
import { Avatar } from "./Reply";
import { TurnView } from "./Turn";

/** Within this many pixels of the end counts as at the end. */
const NEAR = 32;

export function Conversation() {
    const room = current.value;
    const problem = opening.value;
    if (problem !== undefined && problem.problem !== "") {
        return (
            <div class="empty">
                <p class="empty-title">This room could not be opened</p>
                <p>{problem.problem}</p>
                <button type="button" class="plain" onClick={() => void openRoom(problem.id)}>
                    <Icon name="again" /> Try again
                </button>
            </div>
        );
    }
    return <Talk key={room.key} room={room} />;
}

function Talk({ room }: { room: OpenRoom }) {
    const scroller = useRef<HTMLElement>(null);
    const content = useRef<HTMLDivElement>(null);
    const follows = useRef(false);
    const below = useSignal(false);
    const turns = room.turns.value;
    const last = turns.at(-1);

    // A new turn comes to the top of the window; the last one is at least as high as the window, so that it can.
    const seen = useRef<string | undefined>(undefined);
    useLayoutEffect(() => {
        const box = scroller.current;
        if (box === null || last?.key === seen.current) return;
        const first = seen.current === undefined;
        seen.current = last?.key;
        follows.current = false;
        const turn = content.current?.lastElementChild;
        if (turn instanceof HTMLElement) {
            const calm = first || matchMedia("(prefers-reduced-motion: reduce)").matches;
            box.scrollTo({ top: turn.offsetTop - box.offsetTop, behavior: calm ? "instant" : "smooth" });
        }
    });

    useEffect(() => {
        const box = scroller.current;
        const inner = content.current;
        if (box === null || inner === null) return;
        const away = () => box.scrollHeight - box.clientHeight - box.scrollTop;
        let height = inner.offsetHeight;
        const look = () => {
            below.value = away() > NEAR && overflows(inner, box);
        };
        const grown = new ResizeObserver(() => {
            if (follows.current && inner.offsetHeight > height) box.scrollTop = box.scrollHeight;
            height = inner.offsetHeight;
            look();
        });
        const moved = () => {
            follows.current = away() <= NEAR && overflows(inner, box);
            look();
        };
        grown.observe(inner);
        box.addEventListener("scroll", moved, { passive: true });
        return () => {
            grown.disconnect();
            box.removeEventListener("scroll", moved);
        };
    }, [below]);

    const toEnd = () => {
        follows.current = true;
        const box = scroller.current;
        box?.scrollTo({ top: box.scrollHeight });
    };

    return (
        <div class="talk">
            <div class="window">
                {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by keyboard */}
                <section class="scroller" ref={scroller} tabIndex={0} aria-label="Conversation">
                    <div class="turns" ref={content}>
                        {turns.length === 0 ? (
                            <Welcome room={room} />
                        ) : (
                            turns.map((turn) => (
                                <TurnView key={turn.key} turn={turn} room={room} newest={turn === last} />
                            ))
                        )}
                    </div>
                </section>
                {below.value && (
                    <button type="button" class="to-end" aria-label="To the end" title="To the end" onClick={toEnd}>
                        <Icon name="down" />
                    </button>
                )}
                <Next room={room} />
            </div>
            {room.gone.value && <Gone room={room} />}
        </div>
    );
}

/** Whether the newest turn is longer than the window: its least height is the window's. */
function overflows(inner: HTMLElement, box: HTMLElement): boolean {
    const turn = inner.lastElementChild;
    return turn instanceof HTMLElement && turn.offsetHeight > box.clientHeight + 1;
}

/** In turn: who speaks after the one who speaks now. */
function Next({ room }: { room: OpenRoom }) {
    const replies = room.talk.value?.replies ?? [];
    if (room.mode.value !== "in_turn" || room.talk.value?.stopping) return null;
    const now = replies.find((reply) => reply.live.value);
    const waiting = replies.filter((reply) => reply !== now && reply.phase.value === "waiting");
    if (waiting.length === 0) return null;
    return (
        <div class="next">
            <span>Then</span>
            {waiting.map((reply) => (
                <button
                    key={reply.key}
                    type="button"
                    style={paint(reply.persona)}
                    aria-label={`Stop ${reply.persona}`}
                    title={`${reply.persona} shall not answer`}
                    onClick={() => stopOne(room, reply)}
                >
                    <span class="dot" aria-hidden="true" />
                    {reply.persona}
                    <Icon name="close" />
                </button>
            ))}
        </div>
    );
}

function Gone({ room }: { room: OpenRoom }) {
    return (
        <div class="gone" role="status">
            <p>
                The server no longer has this room: it was restarted, or the room was deleted. What was said stands on
                this page only.
            </p>
            <button type="button" class="plain small" onClick={() => reopenLike(room)}>
                New room like this one
            </button>
        </div>
    );
}

function Welcome({ room }: { room: OpenRoom }) {
    if (!loaded.value) return <p class="empty-quiet">{opening.value ? "Opening the room" : ""}</p>;
    const people = personas.value;
    if (people.length === 0) {
        return (
            <div class="empty">
                <p class="empty-title">Nobody is here yet</p>
                <p>A persona is a name, a system prompt and adapters. Make the first one, and it can answer.</p>
                <button
                    type="button"
                    class="strong"
                    onClick={() => (open.value = { kind: "persona", name: undefined })}
                >
                    <Icon name="plus" /> New persona
                </button>
            </div>
        );
    }
    const here = people.filter(({ name }) => room.participants.value.includes(name));
    const vision = status.value?.model.vision ?? false;
    return (
        <div class="empty">
            <p class="empty-title">
                {here.length === 0 ? "An empty room" : `A room with ${names(here.map(({ name }) => name))}`}
            </p>
            <p>
                {room.mode.value === "together"
                    ? "All answer at once, side by side."
                    : "They answer one after another, and each hears those before."}
                {vision ? " They can see: drop a picture anywhere, or paste one." : ""}
            </p>
            <ul class="cast">
                {here.map((persona) => (
                    <li key={persona.name} style={paint(persona.name)}>
                        <button
                            type="button"
                            class="cast-card"
                            onClick={() => (open.value = { kind: "persona", name: persona.name })}
                        >
                            <span class="cast-head">
                                <Avatar name={persona.name} />
                                <span class="name">{persona.name}</span>
                                <span class="adapters">
                                    {persona.adapters
                                        .map(({ name, scale: by }) => (by === 1 ? name : `${name} ${scale(by)}`))
                                        .join(" + ")}
                                </span>
                            </span>
                            <span class="cast-system">
                                {persona.system || "The model as it is, without a system prompt."}
                            </span>
                        </button>
                    </li>
                ))}
            </ul>
            <button type="button" class="plain" onClick={() => (open.value = { kind: "room" })}>
                <Icon name="people" /> People and scene
            </button>
        </div>
    );
}
