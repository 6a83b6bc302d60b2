// The requests of the contract, each one function. Every failure is a `Failure`.

import { Failure } from "./failure";
import { readEvents } from "./sse";
import type { Adapter, NewRoom, Persona, Room, RoomEvent, Say, Status } from "./types";

const KEY = "consort.key";
/** Three of the server's comments missed. */
const SILENCE = 45_000;

let key = "";
try {
    key = sessionStorage.getItem(KEY) ?? "";
} catch {
    // A browser may forbid storage; the key then lives as long as the page.
}

export function setKey(value: string): void {
    key = value;
    try {
        if (value === "") sessionStorage.removeItem(KEY);
        else sessionStorage.setItem(KEY, value);
    } catch {
        // As above.
    }
}

export function hasKey(): boolean {
    return key !== "";
}

let keyWanted: () => void = () => {};

/** Called whenever the server answers 401. */
export function onKeyWanted(handler: () => void): void {
    keyWanted = handler;
}

interface Call {
    method?: string;
    body?: unknown;
    signal?: AbortSignal | undefined;
    accept?: string;
}

async function call(path: string, { method = "GET", body, signal, accept = "application/json" }: Call = {}) {
    const headers: Record<string, string> = { accept };
    if (key !== "") headers.authorization = `Bearer ${key}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    let response: Response;
    try {
        response = await fetch(path, {
            method,
            headers,
            cache: "no-store",
            redirect: "error",
            ...(body === undefined ? {} : { body: JSON.stringify(body) }),
            ...(signal === undefined ? {} : { signal }),
        });
    } catch (error) {
        if (signal?.aborted) throw error;
        throw new Failure("offline", "The server does not answer.");
    }
    if (response.ok) return response;
    const failure = await Failure.ofResponse(response);
    if (failure.status === 401) keyWanted();
    throw failure;
}

async function json<T>(path: string, options?: Call): Promise<T> {
    const response = await call(path, options);
    try {
        return (await response.json()) as T;
    } catch {
        throw new Failure("cut", "The server's answer ended too early, or is no JSON.");
    }
}

async function list<T>(path: string): Promise<T[]> {
    const { data } = await json<{ data?: T[] }>(path);
    return Array.isArray(data) ? data : [];
}

const at = (...parts: string[]) => `/v1/${parts.map(encodeURIComponent).join("/")}`;

export const status = (signal?: AbortSignal) => json<Status>("/v1/status", { signal });
export const personas = () => list<Persona>("/v1/personas");
export const adapters = () => list<Adapter>("/v1/adapters");
export const rooms = () => list<Room>("/v1/rooms");
export const room = (id: string) => json<Room>(at("rooms", id));
export const newRoom = (body: NewRoom) => json<Room>("/v1/rooms", { method: "POST", body });
export const changeRoom = (id: string, body: Partial<NewRoom>) =>
    json<Room>(at("rooms", id), { method: "PATCH", body });

export async function deleteRoom(id: string): Promise<void> {
    await call(at("rooms", id), { method: "DELETE" });
}

export async function putPersona({ name, resident: _, ...body }: Persona): Promise<void> {
    await call(at("personas", name), { method: "PUT", body });
}

export async function deletePersona(name: string): Promise<void> {
    await call(at("personas", name), { method: "DELETE" });
}

/** Stops these, or all that speak or wait. The stream tells when they have ended. */
export async function stop(roomId: string, personas?: string[]): Promise<void> {
    await call(`${at("rooms", roomId)}/stop`, { method: "POST", body: personas === undefined ? {} : { personas } });
}

/** A picture's bytes: an `<img>` could not send the key. */
export async function picture(roomId: string, id: string): Promise<Blob> {
    const response = await call(at("rooms", roomId, "images", id), { accept: "image/*" });
    return await response.blob();
}

const KINDS = new Set(["message", "started", "delta", "finished", "done"]);

/**
 * Says something in a room and yields what happens. Aborting `signal` closes the stream, which cancels all that speak.
 * Ends after `done`; a stream that ends without it is a `cut`.
 */
export async function* say(roomId: string, body: Say, signal: AbortSignal): AsyncGenerator<RoomEvent> {
    const response = await call(`${at("rooms", roomId)}/messages`, {
        method: "POST",
        body,
        signal,
        accept: "text/event-stream",
    });
    const cut = () => new Failure("cut", "The connection broke in the middle.");
    if (response.body === null) throw cut();
    try {
        for await (const { event, data } of readEvents(response.body, SILENCE)) {
            // A newer server may say more than this page knows.
            if (!KINDS.has(event)) continue;
            const parsed: unknown = JSON.parse(data);
            if (typeof parsed !== "object" || parsed === null) throw cut();
            yield { ...parsed, kind: event } as RoomEvent;
            if (event === "done") return;
        }
    } catch (error) {
        if (signal.aborted) throw error;
        throw cut();
    }
    throw cut();
}
