// One persona's answer, while it comes and afterwards.

import { computed, signal } from "@preact/signals";
import type { AdapterUse, ErrorBody, Message, Picture, Reason, Timings, Usage } from "../api/types";

/**
 * `waiting`: asked, not begun. `reading`: begun, no word yet. `speaking`: words come. `stopping`: told to stop.
 * `lost`: the connection broke, and the room is being read again.
 */
export type Phase = "waiting" | "reading" | "speaking" | "stopping" | "lost" | "done" | "stopped" | "failed";

const LIVE = new Set<Phase>(["waiting", "reading", "speaking", "stopping", "lost"]);
let count = 0;

export class Reply {
    readonly key = `reply-${++count}`;
    readonly persona: string;
    id = "";
    readonly phase = signal<Phase>("waiting");
    readonly text = signal("");
    readonly reasoning = signal("");
    readonly usage = signal<Usage | undefined>(undefined);
    readonly timings = signal<Timings | undefined>(undefined);
    /** What the prompt cost, as known when the reply began. */
    readonly prompt = signal<{ tokens: number; reused: number } | undefined>(undefined);
    readonly reason = signal<Reason | undefined>(undefined);
    readonly error = signal<ErrorBody | undefined>(undefined);
    readonly adapters = signal<AdapterUse[] | undefined>(undefined);
    /** As seen from this page: the way over the network is in it. `finished` brings the server's own. */
    readonly seenFirst = signal<number | undefined>(undefined);
    readonly seenRate = signal<number | undefined>(undefined);
    /** How long it reasoned, as seen from this page, in milliseconds. */
    readonly reasonedFor = signal<number | undefined>(undefined);
    readonly live = computed(() => LIVE.has(this.phase.value));

    #asked = performance.now();
    #firstAt = 0;
    #text = "";
    #reasoning = "";
    #tokens = 0;
    #flushing = false;

    constructor(persona: string) {
        this.persona = persona;
    }

    static of(message: Message): Reply {
        const reply = new Reply(message.from);
        reply.id = message.id;
        reply.text.value = message.content;
        reply.reasoning.value = message.reasoning ?? "";
        reply.usage.value = message.usage;
        reply.timings.value = message.timings;
        reply.error.value = message.error;
        reply.adapters.value = message.adapters;
        reply.reason.value = message.reason ?? (message.error ? "error" : message.stopped ? "cancelled" : "stop");
        reply.phase.value = message.error ? "failed" : message.stopped ? "stopped" : "done";
        return reply;
    }

    /** The clock of the first token starts when the message leaves; in turn, when this one's turn comes. */
    begin(): void {
        this.#asked = performance.now();
    }

    started(id: string, prompt: { tokens: number; reused: number }, adapters: AdapterUse[] | undefined): void {
        this.id = id;
        this.prompt.value = prompt;
        if (adapters !== undefined) this.adapters.value = adapters;
        if (this.phase.peek() === "waiting") this.phase.value = "reading";
    }

    /** Words are gathered and shown once a frame: ten personas at 100 tokens/s are more than a screen can show. */
    delta(text: string, reasoning: string, tokens: number | undefined): void {
        const now = performance.now();
        if (this.#firstAt === 0) {
            this.#firstAt = now;
            this.seenFirst.value = now - this.#asked;
            if (this.phase.peek() !== "stopping") this.phase.value = "speaking";
        }
        this.#reasoning += reasoning;
        if (text !== "" && this.#text === "" && this.#reasoning !== "") this.reasonedFor.value = now - this.#firstAt;
        this.#text += text;
        if (tokens !== undefined) this.#tokens = tokens;
        if (this.#flushing) return;
        this.#flushing = true;
        if (document.hidden) setTimeout(() => this.#flush(), 200);
        else requestAnimationFrame(() => this.#flush());
    }

    #flush(): void {
        this.#flushing = false;
        if (this.#reasoning !== this.reasoning.peek()) this.reasoning.value = this.#reasoning;
        if (this.#text !== this.text.peek()) this.text.value = this.#text;
        const seconds = (performance.now() - this.#firstAt) / 1000;
        if (this.#tokens > 4 && seconds > 0.25 && this.live.peek()) this.seenRate.value = (this.#tokens - 1) / seconds;
    }

    finished(
        reason: Reason,
        usage: Usage | undefined,
        timings: Timings | undefined,
        error: ErrorBody | undefined,
    ): void {
        if (this.#text !== "" || this.#reasoning !== "") this.#flush();
        this.usage.value = usage;
        this.timings.value = timings;
        this.reason.value = reason;
        this.error.value =
            error ??
            (reason === "error"
                ? { message: "The reply failed, and the server did not say why.", type: "" }
                : undefined);
        this.phase.value = reason === "error" ? "failed" : reason === "cancelled" ? "stopped" : "done";
    }

    fail(message: string): void {
        this.finished("error", undefined, undefined, { message, type: "connection" });
    }
}

/** What the user said. `unsent` holds why, until it is sent or taken back. */
export class Words {
    readonly id = signal("");
    readonly content: string;
    /** Pictures that the server holds, by id; shown through `local` while they are still here. */
    readonly pictures = signal<(Picture & { local?: string })[]>([]);
    readonly unsent = signal<Unsent | undefined>(undefined);

    constructor(content: string) {
        this.content = content;
    }

    static of(message: Message): Words {
        const words = new Words(message.content);
        words.id.value = message.id;
        words.pictures.value = message.images ?? [];
        return words;
    }
}

export interface Unsent {
    message: string;
    advice: string;
    /** On the clock of `performance.now()`, when the page will try again by itself. */
    retryAt: number | undefined;
    again: () => void;
    takeBack: () => void;
}

/** What the user said and who answered. The first turn of a room may be without words. */
export class Turn {
    readonly key = `turn-${++count}`;
    readonly words: Words | undefined;
    readonly replies = signal<readonly Reply[]>([]);

    constructor(words: Words | undefined, replies: readonly Reply[] = []) {
        this.words = words;
        this.replies.value = replies;
    }
}

export function turnsOf(messages: readonly Message[]): Turn[] {
    const turns: Turn[] = [];
    for (const message of messages) {
        if (message.from === "user") {
            turns.push(new Turn(Words.of(message)));
            continue;
        }
        let last = turns.at(-1);
        if (last === undefined) {
            last = new Turn(undefined);
            turns.push(last);
        }
        last.replies.value = [...last.replies.peek(), Reply.of(message)];
    }
    return turns;
}
