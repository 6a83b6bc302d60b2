// What a screen reader is told. Streaming text is not read out word by word: a reply is announced when it is whole.

import { signal } from "@preact/signals";

/** Two regions in turns, so that the same sentence twice is heard twice. */
export const announced = signal<{ text: string; slot: 0 | 1 }>({ text: "", slot: 0 });

const LONGEST = 600;
let waiting: string[] = [];
let timer: ReturnType<typeof setTimeout> | undefined;

/** Sentences that come together are told together, or the last would silence the others. */
export function announce(text: string): void {
    waiting.push(text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text);
    if (timer !== undefined) return;
    timer = setTimeout(() => {
        announced.value = { text: waiting.join(" "), slot: announced.peek().slot === 0 ? 1 : 0 };
        waiting = [];
        timer = undefined;
    }, 150);
}
