// What can go wrong between the page and the server, and what somebody who reads it can do.

import type { ErrorBody } from "./types";

/** `offline`: no answer at all. `refused`: the server answered, and said no. `cut`: an answer that ended too early. */
export type FailureKind = "offline" | "refused" | "cut";

export class Failure extends Error {
    readonly kind: FailureKind;
    readonly status: number;
    readonly code: string;
    readonly type: string;
    readonly param: string;
    /** Seconds, when the server named them. */
    readonly retryAfter: number | undefined;

    constructor(kind: FailureKind, message: string, more: Partial<Omit<Failure, "kind" | "message">> = {}) {
        super(message);
        this.kind = kind;
        this.status = more.status ?? 0;
        this.code = more.code ?? "";
        this.type = more.type ?? "";
        this.param = more.param ?? "";
        this.retryAfter = more.retryAfter;
    }

    /** Out of an answer that is not 2xx. The body may be anything: a proxy's page, or nothing. */
    static async ofResponse(response: Response): Promise<Failure> {
        const text = await response.text().catch(() => "");
        let body: Partial<ErrorBody> = {};
        try {
            const parsed: unknown = JSON.parse(text);
            const inner = (parsed as { error?: unknown } | null)?.error;
            if (typeof inner === "object" && inner !== null) body = inner as Partial<ErrorBody>;
        } catch {
            // Not JSON: the status alone has to do.
        }
        const said = typeof body.message === "string" && body.message !== "" ? body.message : undefined;
        return new Failure("refused", said ?? `the server answered ${response.status} ${response.statusText}`.trim(), {
            status: response.status,
            code: word(body.code),
            type: word(body.type),
            param: word(body.param),
            retryAfter: seconds(response.headers.get("retry-after")),
        });
    }

    /** Whether the same request may succeed a little later, and was not taken. */
    get busy(): boolean {
        return this.status === 429 || this.status === 503;
    }
}

function word(value: unknown): string {
    return typeof value === "string" ? value : "";
}

/** `Retry-After` is a number of seconds or a date. */
export function seconds(header: string | null, now = Date.now()): number | undefined {
    if (header === null || header.trim() === "") return undefined;
    const number = Number(header);
    if (Number.isFinite(number)) return Math.max(0, Math.ceil(number));
    const date = Date.parse(header);
    return Number.isNaN(date) ? undefined : Math.max(0, Math.ceil((date - now) / 1000));
}

/** What to do about it, in one sentence; empty when the message says all there is. */
export function advice(error: { code?: string | null; type?: string | null; status?: number }): string {
    switch (error.code ?? "") {
        case "context_length_exceeded":
            return "The talk has become longer than the model can hold: open a new room, or say it shorter.";
        case "overloaded":
        case "queue_full":
            return "Too much is going on at once: ask again in a moment, or let fewer personas answer.";
        case "out_of_memory":
            return "There is no room for another talk: stop a reply, or close a room, and ask again.";
        case "adapter_not_found":
        case "invalid_adapter":
            return "Edit the persona and pick an adapter that the server has.";
        case "persona_not_found":
            return "The persona is gone: pick others for this room.";
        case "room_busy":
            return "The room is still speaking, perhaps for another window: wait, or stop it.";
        case "deadline_exceeded":
            return "It took longer than the server allows: ask again, or ask for a shorter reply.";
        case "invalid_image":
            return "Send the picture as PNG, JPEG, WebP or GIF, and smaller.";
    }
    switch (error.status ?? 0) {
        case 413:
            return "It is larger than the server takes: shorten it, or send a smaller picture.";
        case 401:
        case 403:
            return "The server wants another API key.";
    }
    if (error.type === "overloaded_error" || error.type === "rate_limit_error") {
        return "Too much is going on at once: ask again in a moment.";
    }
    return "";
}
