// Server-sent events out of a response's body. EventSource cannot POST and cannot send a key, so this reads the stream.

export interface SseEvent {
    event: string;
    data: string;
}

/** One line or one event longer than this is no event of ours. */
const MOST_CHARACTERS = 16 * 1024 * 1024;

/** Text in pieces of any size goes in, whole events come out. Follows the WHATWG rules for `event` and `data`. */
export class SseParser {
    #rest = "";
    #event = "";
    #data: string[] = [];
    #held = 0;
    #skipNewline = false;

    push(text: string): SseEvent[] {
        const out: SseEvent[] = [];
        let from = 0;
        if (this.#skipNewline && text.length > 0) {
            // The piece before ended with the first half of "\r\n".
            if (text[0] === "\n") from = 1;
            this.#skipNewline = false;
        }
        for (let at = from; at < text.length; at++) {
            const character = text[at];
            if (character !== "\n" && character !== "\r") continue;
            this.#line(this.#rest + text.slice(from, at), out);
            this.#rest = "";
            if (character === "\r") {
                if (at + 1 === text.length) this.#skipNewline = true;
                else if (text[at + 1] === "\n") at++;
            }
            from = at + 1;
        }
        this.#rest += text.slice(from);
        if (this.#rest.length + this.#held > MOST_CHARACTERS) throw new Error("an event of the stream is too long");
        return out;
    }

    #line(line: string, out: SseEvent[]): void {
        if (line === "") {
            if (this.#data.length > 0) out.push({ event: this.#event || "message", data: this.#data.join("\n") });
            this.#event = "";
            this.#data = [];
            this.#held = 0;
            return;
        }
        const colon = line.indexOf(":");
        if (colon === 0) return;
        const field = colon < 0 ? line : line.slice(0, colon);
        let value = colon < 0 ? "" : line.slice(colon + 1);
        if (value.startsWith(" ")) value = value.slice(1);
        if (field === "event") this.#event = value;
        else if (field === "data") {
            this.#data.push(value);
            this.#held += value.length;
        }
    }
}

/**
 * Reads events until the stream ends. `silence` is how long nothing at all may come, in milliseconds: a network that
 * went away without a word looks like a server that thinks, and the server sends a comment every 15 seconds.
 */
export async function* readEvents(body: ReadableStream<Uint8Array>, silence: number): AsyncGenerator<SseEvent> {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    const parser = new SseParser();
    try {
        for (;;) {
            let timer: ReturnType<typeof setTimeout> | undefined;
            const quiet = new Promise<never>((_, reject) => {
                timer = setTimeout(() => reject(new Error("the stream went silent")), silence);
            });
            const { done, value } = await Promise.race([reader.read(), quiet]).finally(() => clearTimeout(timer));
            if (done) return;
            yield* parser.push(decoder.decode(value, { stream: true }));
        }
    } finally {
        // Closes the connection when the caller stops early, which is how the server learns of it.
        reader.cancel().catch(() => {});
    }
}
