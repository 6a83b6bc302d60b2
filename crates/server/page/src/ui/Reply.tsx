// One persona's answer as a card: who, with what, how fast; the words; and what to do when it went wrong.

import { useSignal } from "@preact/signals";
import { advice } from "../api/failure";
import type { Reply } from "../state/reply";
import { type OpenRoom, personas } from "../state/rooms";
import { askAgain, stopOne } from "../state/talk";
import { keepFocus } from "../state/view";
import { CopyButton } from "./CopyButton";
import { paint } from "./colour";
import { milliseconds, percent, rate, scale, tokens } from "./format";
import { Icon } from "./icons";
import { Markdown } from "./Markdown";

export function Avatar({ name }: { name: string }) {
    return (
        <span class="avatar" aria-hidden="true">
            {[...name][0]?.toUpperCase() ?? "?"}
        </span>
    );
}

export function ReplyCard({ reply, room, newest }: { reply: Reply; room: OpenRoom; newest: boolean }) {
    const { persona } = reply;
    const phase = reply.phase.value;
    const live = reply.live.value;
    const headId = `${reply.key}-name`;
    return (
        <article
            class={`reply is-${phase}`}
            style={paint(persona)}
            aria-labelledby={headId}
            aria-busy={live}
            tabIndex={-1}
        >
            <header class="reply-head">
                <Avatar name={persona} />
                <h3 id={headId} class="name">
                    {persona}
                </h3>
                <Adapters reply={reply} />
                <span class="reply-state">
                    {live ? (
                        <button
                            type="button"
                            class="stop"
                            disabled={phase === "stopping" || phase === "lost"}
                            aria-label={phase === "stopping" ? `Stopping ${persona}` : `Stop ${persona}`}
                            onClick={(event) => {
                                // The button goes when the reply has ended; the focus must not go with it.
                                event.currentTarget.closest("article")?.focus();
                                stopOne(room, reply);
                            }}
                        >
                            <Icon name="stop" />
                            <span>Stop</span>
                        </button>
                    ) : (
                        <>
                            <Ended reply={reply} />
                            <Actions reply={reply} room={room} newest={newest} />
                        </>
                    )}
                </span>
            </header>
            <Figures reply={reply} />
            <div class="reply-body">
                <Reasoning reply={reply} />
                <Said reply={reply} />
                <Trouble reply={reply} room={room} newest={newest} />
            </div>
        </article>
    );
}

function Adapters({ reply }: { reply: Reply }) {
    // What the reply began with, if the server told; else what the persona has now.
    const used = reply.adapters.value ?? personas.value.find(({ name }) => name === reply.persona)?.adapters ?? [];
    if (used.length === 0) return null;
    const words = used.map(({ name, scale: by }) => (by === 1 ? name : `${name} ${scale(by)}`));
    return (
        <span class="adapters" title={`Adapters: ${words.join(", ")}`}>
            <span class="hidden">with </span>
            {words.join(" + ")}
        </span>
    );
}

function Ended({ reply }: { reply: Reply }) {
    switch (reply.reason.value) {
        case "cancelled":
            return <span class="tag">Stopped</span>;
        case "length":
            return (
                <span class="tag" title="It reached the most tokens that were asked for, or that the model can hold.">
                    At its limit
                </span>
            );
        case "error":
            return <span class="tag tag-bad">Failed</span>;
        default:
            return null;
    }
}

function Actions({ reply, room, newest }: { reply: Reply; room: OpenRoom; newest: boolean }) {
    const text = reply.text.value;
    return (
        <>
            {text !== "" && <CopyButton text={text} what={`what ${reply.persona} said`} />}
            {newest && reply.error.value === undefined && !room.gone.value && (
                <button
                    type="button"
                    class="bare small"
                    aria-label={`Ask ${reply.persona} again`}
                    title="Ask again"
                    disabled={room.talk.value !== undefined}
                    onClick={(event) => {
                        keepFocus(event);
                        askAgain(room, reply.persona);
                    }}
                >
                    <Icon name="again" />
                </button>
            )}
        </>
    );
}

/** Milliseconds. */
const SHORTEST_THOUGHT = 100;

function Reasoning({ reply }: { reply: Reply }) {
    const text = reply.reasoning.value;
    const unfolded = useSignal(false);
    if (text === "") return null;
    const thinking = reply.live.value && reply.text.value === "";
    const took = reply.reasonedFor.value;
    // The page's own clock: of what came at once it would tell the network's time, not the model's.
    const timed = took !== undefined && took >= SHORTEST_THOUGHT;
    return (
        <details
            class={thinking ? "reasoning is-thinking" : "reasoning"}
            open={unfolded.value}
            onToggle={(event) => {
                unfolded.value = event.currentTarget.open;
            }}
        >
            <summary>
                <Icon name="chevron" />
                {thinking ? "Thinking…" : timed ? `Reasoned for ${milliseconds(took)}` : "Reasoning"}
            </summary>
            {unfolded.value && <div class="reasoning-text">{text}</div>}
        </details>
    );
}

function Said({ reply }: { reply: Reply }) {
    const text = reply.text.value;
    if (text !== "") return <Markdown text={text} growing={reply.live.value} />;
    const phase = reply.phase.value;
    if (!reply.live.value) {
        if (phase === "failed" || reply.error.value !== undefined) return null;
        return <p class="nothing">{phase === "stopped" ? "Stopped before the first word." : "Said nothing."}</p>;
    }
    if (reply.reasoning.value !== "") return null;
    return (
        <p class="wait">
            <span class="dots" aria-hidden="true">
                <i />
                <i />
                <i />
            </span>
            {waiting(reply)}
        </p>
    );
}

function waiting(reply: Reply): string {
    switch (reply.phase.value) {
        case "stopping":
            return "Stopping";
        case "lost":
            return "The connection broke: reading the room again";
        case "reading": {
            const prompt = reply.prompt.value;
            return prompt === undefined ? "Reading" : `Reading ${tokens(Math.max(0, prompt.tokens - prompt.reused))}`;
        }
        default:
            return "Waiting for a place";
    }
}

function Trouble({ reply, room, newest }: { reply: Reply; room: OpenRoom; newest: boolean }) {
    const error = reply.error.value;
    if (error === undefined) return null;
    const what = advice(error);
    return (
        <div class="trouble">
            <Icon name="alert" />
            <div>
                <p>{error.message}</p>
                {what !== "" && <p class="what">{what}</p>}
                {newest && !room.gone.value && (
                    <button
                        type="button"
                        class="plain small"
                        disabled={room.talk.value !== undefined}
                        onClick={(event) => {
                            keepFocus(event);
                            askAgain(room, reply.persona);
                        }}
                    >
                        <Icon name="again" /> Ask {reply.persona} again
                    </button>
                )}
            </div>
        </div>
    );
}

/** Above the words, with its height and its places from the start: nothing moves when figures or words come. */
function Figures({ reply }: { reply: Reply }) {
    const timings = reply.timings.value;
    const usage = reply.usage.value;
    const first = timings?.first_token_ms ?? reply.seenFirst.value;
    const speed = timings?.tokens_per_second ?? reply.seenRate.value;
    const prompt = usage ? { tokens: usage.prompt_tokens, reused: usage.reused_tokens } : reply.prompt.value;
    const measured = timings ? "measured by the server" : "as seen from this page, network included, while it speaks";
    return (
        <div class="figures">
            <dl>
                <div title={`Time to the first token, ${measured}`}>
                    <dt>first token</dt>
                    <dd>{first === undefined ? "–" : milliseconds(first)}</dd>
                </div>
                <div title={`Tokens per second, ${measured}`}>
                    <dt>tokens/s</dt>
                    <dd>{speed === undefined || speed <= 0 ? "–" : rate(speed)}</dd>
                </div>
                <div
                    title={
                        prompt
                            ? `${tokens(prompt.tokens)} of prompt, ${prompt.reused} of them kept from before` +
                              (usage ? `; ${tokens(usage.completion_tokens)} said` : "")
                            : "Share of the prompt that was kept from before"
                    }
                >
                    <dt>reused</dt>
                    <dd>
                        {prompt === undefined || prompt.tokens === 0 ? "–" : percent(prompt.reused / prompt.tokens)}
                    </dd>
                </div>
            </dl>
        </div>
    );
}
