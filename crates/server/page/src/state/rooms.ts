// The rooms that the server knows, and those that were opened here.

import { computed, effect, signal } from "@preact/signals";
import * as api from "../api/client";
import { Failure } from "../api/failure";
import type { Adapter, Mode, NewRoom, Persona, Room } from "../api/types";
import { announce } from "./announce";
import { Draft } from "./pictures";
import { lastRoom } from "./prefs";
import { type Reply, type Turn, turnsOf } from "./reply";
import { doubt } from "./server";

/** What the list shows of a room. */
export interface RoomEntry {
    id: string;
    title: string;
    participants: string[];
    created: number;
}

export const personas = signal<readonly Persona[]>([]);
export const adapters = signal<readonly Adapter[]>([]);
export const entries = signal<readonly RoomEntry[]>([]);
/** Whether the first lists have come. */
export const loaded = signal(false);

/** A talk that is going on. */
export interface Talk {
    turn: Turn;
    /** The replies that this talk waits for: all of a new turn, or the one that was asked again. */
    replies: readonly Reply[];
    abort: AbortController;
    /** Told to stop as a whole. */
    stopping: boolean;
}

let count = 0;

export class OpenRoom {
    readonly key = `room-${++count}`;
    /** Empty until the server has made it: the first message does. */
    readonly id = signal("");
    readonly participants = signal<readonly string[]>([]);
    /** Those of the participants who do not answer the next message. */
    readonly silent = signal<ReadonlySet<string>>(new Set());
    readonly scene = signal("");
    readonly mode = signal<Mode>("together");
    readonly turns = signal<readonly Turn[]>([]);
    readonly talk = signal<Talk | undefined>(undefined);
    /** The server knows it no more; what was said stands on this page only. */
    readonly gone = signal(false);
    readonly draft = new Draft();
    readonly answering = computed(() => this.participants.value.filter((name) => !this.silent.value.has(name)));

    static of(room: Room): OpenRoom {
        const open = new OpenRoom();
        open.take(room);
        return open;
    }

    take(room: Room): void {
        this.id.value = room.id;
        this.participants.value = room.participants;
        this.scene.value = room.scene ?? "";
        this.mode.value = room.mode ?? "together";
        this.turns.value = turnsOf(room.messages ?? []);
        this.gone.value = false;
    }
}

const opened = new Map<string, OpenRoom>();
export const current = signal<OpenRoom>(new OpenRoom());
/** The room that is being fetched, or why it could not be. */
export const opening = signal<{ id: string; problem: string } | undefined>(undefined);

export const anybodySpeaks = () =>
    current.peek().talk.peek() !== undefined || [...opened.values()].some((room) => room.talk.peek());

/** More than this many side by side is more than one can follow; the others are invited by hand. */
const FIRST_COMPANY = 3;

const firstCompany = () =>
    personas
        .peek()
        .slice(0, FIRST_COMPANY)
        .map((persona) => persona.name);

/** A room that the server hears of with the first message. */
export function freshRoom(): OpenRoom {
    const room = new OpenRoom();
    room.participants.value = firstCompany();
    room.mode.value = current.peek().mode.peek();
    return room;
}

export function titleOf(room: Room): string {
    const first = room.messages?.find((message) => message.from === "user" && message.content.trim() !== "");
    const text = (room.title ?? first?.content ?? room.scene ?? "").trim().replace(/\s+/g, " ");
    return text === "" ? `With ${room.participants.join(", ") || "nobody"}` : text.slice(0, 80);
}

export async function refreshPeople(): Promise<void> {
    const [people, weights] = await Promise.all([api.personas(), api.adapters()]);
    personas.value = people;
    adapters.value = weights;
    const room = current.peek();
    // The same room stays, and with it what may be written already.
    if (room.id.peek() === "" && room.participants.peek().length === 0) room.participants.value = firstCompany();
}

export async function refreshRooms(): Promise<void> {
    const rooms = await api.rooms();
    entries.value = rooms
        .map((room) => ({
            id: room.id,
            title: titleOf(room),
            participants: room.participants,
            created: room.created,
        }))
        .sort((a, b) => b.created - a.created);
}

/** Everything, when the server has come up or come back. */
export async function refreshAll(): Promise<void> {
    try {
        await Promise.all([refreshPeople(), refreshRooms()]);
        if (!loaded.peek()) {
            const known = entries.peek().some((entry) => entry.id === lastRoom.peek());
            if (known) await openRoom(lastRoom.peek());
            loaded.value = true;
        }
    } catch (error) {
        doubt(error);
    }
}

/** The server is another process: rooms may be gone, and replies that it was giving certainly are. */
export async function afterRestart(): Promise<void> {
    for (const room of opened.values()) {
        if (room.talk.peek() === undefined) await reread(room);
    }
    await refreshAll();
}

/** Reads a room again. True when the server answered, also when the answer was that it knows no such room. */
export async function reread(room: OpenRoom): Promise<boolean> {
    const id = room.id.peek();
    if (id === "") return true;
    try {
        room.take(await api.room(id));
        return true;
    } catch (error) {
        if (!(error instanceof Failure) || error.status !== 404) return false;
        room.gone.value = true;
        opened.delete(id);
        entries.value = entries.peek().filter((entry) => entry.id !== id);
        return true;
    }
}

export async function openRoom(id: string): Promise<void> {
    const already = opened.get(id);
    if (already !== undefined) {
        opening.value = undefined;
        current.value = already;
        return;
    }
    opening.value = { id, problem: "" };
    try {
        const room = OpenRoom.of(await api.room(id));
        if (opening.peek()?.id !== id) return;
        opened.set(id, room);
        opening.value = undefined;
        current.value = room;
        announce(`Room: ${entries.peek().find((entry) => entry.id === id)?.title ?? id}`);
    } catch (error) {
        doubt(error);
        if (error instanceof Failure && error.status === 404) {
            entries.value = entries.peek().filter((entry) => entry.id !== id);
        }
        opening.value = { id, problem: error instanceof Error ? error.message : String(error) };
    }
}

export function leaveForFresh(): OpenRoom {
    const room = freshRoom();
    opening.value = undefined;
    current.value = room;
    return room;
}

/** Makes the server know this room. */
export async function create(room: OpenRoom): Promise<void> {
    const body: NewRoom = { participants: [...room.participants.peek()], mode: room.mode.peek() };
    if (room.scene.peek() !== "") body.scene = room.scene.peek();
    const made = await api.newRoom(body);
    room.id.value = made.id;
    room.participants.value = made.participants;
    room.gone.value = false;
    opened.set(made.id, room);
    entries.value = [
        { id: made.id, title: titleOf(made), participants: made.participants, created: made.created },
        ...entries.peek(),
    ];
}

/** Changes people or scene. A room that the server does not know yet is changed here alone. */
export async function change(room: OpenRoom, what: { participants: readonly string[]; scene: string }): Promise<void> {
    const id = room.id.peek();
    if (id !== "" && !room.gone.peek()) {
        const taken = await api.changeRoom(id, { participants: [...what.participants], scene: what.scene });
        room.participants.value = taken.participants;
        room.scene.value = taken.scene;
        entries.value = entries
            .peek()
            .map((entry) => (entry.id === id ? { ...entry, participants: taken.participants } : entry));
        return;
    }
    room.participants.value = what.participants;
    room.scene.value = what.scene;
}

/** The next message carries the mode anyway; this makes a reload remember it. */
export function setMode(room: OpenRoom, mode: Mode): void {
    room.mode.value = mode;
    const id = room.id.peek();
    if (id !== "" && room.talk.peek() === undefined && !room.gone.peek()) {
        api.changeRoom(id, { mode }).catch(doubt);
    }
}

export async function forget(id: string): Promise<void> {
    await api.deleteRoom(id).catch((error: unknown) => {
        if (!(error instanceof Failure) || error.status !== 404) throw error;
    });
    const room = opened.get(id);
    room?.talk.peek()?.abort.abort();
    opened.delete(id);
    entries.value = entries.peek().filter((entry) => entry.id !== id);
    if (current.peek().id.peek() === id) leaveForFresh();
}

/** The same people and scene in a room that the server has yet to make; what was written is taken along. */
export function reopenLike(room: OpenRoom): void {
    for (const turn of room.turns.peek()) turn.words?.unsent.peek()?.takeBack();
    const next = new OpenRoom();
    const known = new Set(personas.peek().map((persona) => persona.name));
    next.participants.value = room.participants.peek().filter((name) => known.has(name));
    next.scene.value = room.scene.peek();
    next.mode.value = room.mode.peek();
    next.draft.text.value = room.draft.text.peek();
    next.draft.pictures.value = room.draft.pictures.peek();
    current.value = next;
}

/** The page comes back to the room where it was. */
export function rememberRoom(): void {
    effect(() => {
        const id = current.value.id.value;
        if (loaded.value) lastRoom.value = id;
    });
}

export function retitle(room: OpenRoom, words: string): void {
    const id = room.id.peek();
    const title = words.trim().replace(/\s+/g, " ").slice(0, 80);
    if (title === "" || room.turns.peek().filter((turn) => turn.words !== undefined).length > 1) return;
    entries.value = entries.peek().map((entry) => (entry.id === id ? { ...entry, title } : entry));
}
