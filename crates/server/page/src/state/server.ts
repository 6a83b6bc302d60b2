// The server as it is now: its status, asked again and again, and whether it answers at all.

import { computed, signal } from "@preact/signals";
import * as api from "../api/client";
import { Failure } from "../api/failure";
import { type Limits, MEMORY_KINDS, type MemoryKind, type Status } from "../api/types";
import { announce } from "./announce";

export interface Sample {
    /** Milliseconds of the page's clock. */
    at: number;
    tokensPerSecond: number;
    running: number;
    queued: number;
    reusedShare: number;
    memory: Record<MemoryKind, number>;
}

export type Connection =
    | { kind: "connecting" }
    | { kind: "up" }
    /** `retryAt` is on the clock of `performance.now()`. */
    | { kind: "down"; message: string; retryAt: number };

/** How far back the charts go, in milliseconds. */
export const WINDOW = 120_000;
const BACKOFF = [1000, 2000, 4000, 8000, 15_000];

export const status = signal<Status | undefined>(undefined);
export const history = signal<readonly Sample[]>([]);
export const connection = signal<Connection>({ kind: "connecting" });
export const keyWanted = signal<"no" | "first" | "wrong">("no");

const FALLBACK: Limits = {
    image_bytes: 8 * 1024 * 1024,
    image_pixels: 50_000_000,
    images_per_message: 4,
    content_bytes: 64 * 1024,
    image_types: ["image/png", "image/jpeg", "image/webp", "image/gif"],
};

export const limits = computed<Limits>(() => ({ ...FALLBACK, ...status.value?.limits }));

let failures = 0;
let timer: ReturnType<typeof setTimeout> | undefined;
let asking: AbortController | undefined;
let busy = () => false;
let restarted: () => void = () => {};
let cameUp: () => void = () => {};

export interface Listeners {
    /** Whether somebody speaks, so that the charts should move. */
    busy: () => boolean;
    /** The server is another process than before. */
    restarted: () => void;
    /** The server answers, for the first time or again. */
    cameUp: () => void;
}

export function watchServer(listeners: Listeners): void {
    ({ busy, restarted, cameUp } = listeners);
    api.onKeyWanted(() => {
        if (keyWanted.peek() === "no") keyWanted.value = api.hasKey() ? "wrong" : "first";
    });
    document.addEventListener("visibilitychange", () => {
        if (!document.hidden) askNow();
    });
    addEventListener("online", askNow);
    askNow();
}

/** Asks at once, whatever the plan was. */
export function askNow(): void {
    clearTimeout(timer);
    asking?.abort();
    void ask();
}

/** Somebody else met a server that does not answer. */
export function doubt(failure: unknown): void {
    if (failure instanceof Failure && failure.kind !== "refused") askNow();
}

export function giveKey(key: string): void {
    api.setKey(key);
    keyWanted.value = "no";
    askNow();
}

async function ask(): Promise<void> {
    const mine = new AbortController();
    asking = mine;
    const patience = setTimeout(() => mine.abort(), 10_000);
    try {
        const now = await api.status(mine.signal);
        if (asking === mine) taken(now);
    } catch (error) {
        if (asking !== mine) return;
        failed(error);
    } finally {
        clearTimeout(patience);
    }
}

function taken(now: Status): void {
    const before = status.peek();
    const wasUp = connection.peek().kind === "up";
    failures = 0;
    status.value = now;
    if (!wasUp) {
        if (connection.peek().kind === "down") announce("The server answers again.");
        connection.value = { kind: "up" };
    }
    const { metrics } = now;
    const at = performance.now();
    const memory = Object.fromEntries(MEMORY_KINDS.map((kind) => [kind, Number(metrics.memory?.[kind]) || 0]));
    history.value = [
        // One sample from before the window stays, so that the line begins at the edge.
        ...history.peek().filter((_, index, all) => (all[index + 1]?.at ?? at) > at - WINDOW),
        {
            at,
            tokensPerSecond: metrics.tokens_per_second ?? 0,
            running: metrics.running,
            queued: metrics.queued,
            reusedShare: metrics.reused_share ?? 0,
            memory: memory as Record<MemoryKind, number>,
        },
    ];
    if (before !== undefined && now.uptime_seconds < before.uptime_seconds) {
        history.value = history.peek().slice(-1);
        restarted();
    }
    if (!wasUp) cameUp();
    timer = setTimeout(() => void ask(), document.hidden ? 10_000 : busy() ? 1000 : 2000);
}

function failed(error: unknown): void {
    if (error instanceof Failure && error.status === 401) {
        // The key's dialog asks again when it has an answer.
        return;
    }
    const wait = error instanceof Failure ? error.retryAfter : undefined;
    const delay = wait === undefined ? (BACKOFF[Math.min(failures, BACKOFF.length - 1)] ?? 1000) : wait * 1000;
    // Early guesses may be wrong (a reload of the server's proxy), so the first failure says nothing yet.
    if (failures > 0) {
        const message =
            error instanceof Failure && error.kind === "refused"
                ? `The server does not serve: ${error.message}`
                : "The server does not answer.";
        if (connection.peek().kind !== "down") announce(message);
        connection.value = { kind: "down", message, retryAt: performance.now() + delay };
    }
    failures++;
    timer = setTimeout(() => void ask(), delay);
}
