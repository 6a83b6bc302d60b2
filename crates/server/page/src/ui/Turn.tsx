// One turn: what the user said, and the answers to it, side by side or one after another.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import * as api from "../api/client";
import type { Picture } from "../api/types";
import type { Reply, Turn, Words } from "../state/reply";
import { type OpenRoom, reopenLike } from "../state/rooms";
import { focusComposer, keepFocus } from "../state/view";
import { Countdown } from "./Countdown";
import { Icon } from "./icons";
import { ReplyCard } from "./Reply";

export function TurnView({ turn, room, newest }: { turn: Turn; room: OpenRoom; newest: boolean }) {
    const replies = turn.replies.value;
    const together = room.mode.value === "together";
    const label = turn.words === undefined ? "Opening" : `You: ${turn.words.content.slice(0, 80) || "a picture"}`;
    return (
        <section class={newest ? "turn is-newest" : "turn"} aria-label={label}>
            {turn.words !== undefined && <Said words={turn.words} room={room} />}
            {replies.length > 0 && (
                <div class={together ? "replies side-by-side" : "replies in-turn"}>
                    {together
                        ? stacks(replies).map((stack) => (
                              <div class="stack" key={stack[0]?.key}>
                                  <Stack stack={stack} room={room} newest={newest} />
                              </div>
                          ))
                        : begun(replies).map((reply) => (
                              <ReplyCard
                                  key={reply.key}
                                  reply={reply}
                                  room={room}
                                  newest={newest && lastOf(replies, reply.persona) === reply}
                              />
                          ))}
                </div>
            )}
        </section>
    );
}

/** Answers by persona, in the order in which the personas first spoke. */
function stacks(replies: readonly Reply[]): Reply[][] {
    const by = new Map<string, Reply[]>();
    for (const reply of replies) {
        const stack = by.get(reply.persona);
        if (stack === undefined) by.set(reply.persona, [reply]);
        else stack.push(reply);
    }
    return [...by.values()];
}

/** In turn, who waits has no place in the thread yet: it would be pushed down by whoever speaks. */
function begun(replies: readonly Reply[]): Reply[] {
    const next = replies.find((reply) => reply.live.value);
    return replies.filter((reply) => reply === next || reply.phase.value !== "waiting");
}

function lastOf(replies: readonly Reply[], persona: string): Reply | undefined {
    return replies.findLast((reply) => reply.persona === persona);
}

/** Who was asked again shows the newest answer; the earlier ones are folded away. */
function Stack({ stack, room, newest }: { stack: Reply[]; room: OpenRoom; newest: boolean }) {
    const last = stack.at(-1);
    const earlier = stack.slice(0, -1);
    const unfolded = useSignal(false);
    if (last === undefined) return null;
    return (
        <>
            <ReplyCard key={last.key} reply={last} room={room} newest={newest} />
            {earlier.length > 0 && (
                <details
                    class="earlier"
                    open={unfolded.value}
                    onToggle={(event) => {
                        unfolded.value = event.currentTarget.open;
                    }}
                >
                    <summary>
                        <Icon name="chevron" />
                        {earlier.length === 1 ? "An earlier answer" : `${earlier.length} earlier answers`}
                    </summary>
                    {unfolded.value &&
                        earlier.map((reply) => <ReplyCard key={reply.key} reply={reply} room={room} newest={false} />)}
                </details>
            )}
        </>
    );
}

function Said({ words, room }: { words: Words; room: OpenRoom }) {
    const unsent = words.unsent.value;
    return (
        <div class={unsent === undefined ? "said" : "said is-unsent"}>
            <span class="hidden">You said: </span>
            {words.pictures.value.length > 0 && (
                <ul class="said-pictures">
                    {words.pictures.value.map((picture) => (
                        <li key={picture.id}>
                            <RoomPicture picture={picture} room={room} />
                        </li>
                    ))}
                </ul>
            )}
            {words.content !== "" && <p class="said-words">{words.content}</p>}
            {unsent !== undefined && (
                <div class="trouble">
                    <Icon name="alert" />
                    <div>
                        <p>
                            <strong>Not sent.</strong> {unsent.message}
                        </p>
                        {unsent.advice !== "" && <p class="what">{unsent.advice}</p>}
                        {unsent.retryAt !== undefined && (
                            <p class="what">
                                Sending again in <Countdown until={unsent.retryAt} />
                            </p>
                        )}
                        <div class="row">
                            {room.gone.value ? (
                                <button type="button" class="plain small" onClick={() => reopenLike(room)}>
                                    New room like this one
                                </button>
                            ) : (
                                <button
                                    type="button"
                                    class="plain small"
                                    onClick={(event) => {
                                        keepFocus(event);
                                        unsent.again();
                                    }}
                                >
                                    <Icon name="again" /> Send now
                                </button>
                            )}
                            <button
                                type="button"
                                class="plain small"
                                onClick={() => {
                                    unsent.takeBack();
                                    focusComposer();
                                }}
                            >
                                Take back
                            </button>
                        </div>
                    </div>
                </div>
            )}
        </div>
    );
}

/** Fetched with the key, then shown as a `blob:`. Its place is kept from the start by its size. */
function RoomPicture({ picture, room }: { picture: Picture & { local?: string }; room: OpenRoom }) {
    const address = useSignal(picture.local ?? "");
    const failed = useSignal(false);
    const roomId = room.id.value;
    useEffect(() => {
        if (picture.local !== undefined) {
            address.value = picture.local;
            return;
        }
        let url = "";
        let over = false;
        api.picture(roomId, picture.id)
            .then((blob) => {
                if (over) return;
                url = URL.createObjectURL(blob);
                address.value = url;
            })
            .catch(() => {
                failed.value = true;
            });
        return () => {
            over = true;
            if (url !== "") URL.revokeObjectURL(url);
        };
    }, [picture.id, picture.local, roomId, address, failed]);
    const words = `Picture, ${picture.width} × ${picture.height}`;
    if (failed.value) return <span class="no-picture">{words}: it could not be fetched</span>;
    return (
        <img
            class="said-picture"
            src={address.value === "" ? undefined : address.value}
            width={picture.width}
            height={picture.height}
            alt={words}
            style={{
                width: `min(20rem, ${((13 * picture.width) / picture.height).toFixed(2)}rem, calc(100cqi - 2rem))`,
            }}
        />
    );
}
