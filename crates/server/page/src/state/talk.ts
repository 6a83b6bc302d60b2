// Saying something: the message goes out, the replies come in, and whatever breaks on the way is mended or told.

import * as api from "../api/client";
import { advice, Failure } from "../api/failure";
import type { RoomEvent, Say } from "../api/types";
import { announce } from "./announce";
import { type Attached, asDataUrl } from "./pictures";
import { Reply, Turn, Words } from "./reply";
import { create, type OpenRoom, refreshRooms, reread, retitle, type Talk } from "./rooms";
import { doubt } from "./server";

export interface Wishes {
    maxTokens?: number;
    thinking?: boolean;
}

const MOST_TRIES = 3;
/** The longest wait, in seconds, that the page sits out by itself. */
const PATIENCE = 30;

/** What a message is made of, kept until the server has taken it. */
interface Letter {
    room: OpenRoom;
    content: string;
    pictures: readonly Attached[];
    respond: readonly string[];
    wishes: Wishes;
}

/** Sends what is in the room's draft to those who answer. */
export function send(room: OpenRoom, wishes: Wishes): void {
    const { draft } = room;
    const content = draft.text.peek().trim();
    const pictures = draft.pictures.peek();
    const respond = room.answering.peek();
    if (room.talk.peek() !== undefined || draft.reading.peek() > 0 || respond.length === 0) return;
    if (content === "" && pictures.length === 0) return;
    draft.text.value = "";
    draft.pictures.value = [];
    draft.problem.value = "";
    const words = new Words(content);
    words.pictures.value = pictures.map(({ key, width, height, local }) => ({ id: key, width, height, local }));
    const turn = new Turn(words);
    room.turns.value = [...room.turns.peek(), turn];
    void deliver({ room, content, pictures, respond, wishes }, turn, 1);
}

/** Lets one persona answer the last message anew. */
export function askAgain(room: OpenRoom, persona: string): void {
    const turn = room.turns.peek().at(-1);
    if (room.talk.peek() !== undefined || turn === undefined) return;
    void deliver({ room, content: "", pictures: [], respond: [persona], wishes: {} }, turn, 1);
}

async function deliver(letter: Letter, turn: Turn, tries: number): Promise<void> {
    const { room, respond, wishes } = letter;
    if (room.talk.peek() !== undefined) return;
    const replies = respond.map((name) => new Reply(name));
    const before = turn.replies.peek();
    turn.replies.value = [...before, ...replies];
    if (turn.words !== undefined) turn.words.unsent.value = undefined;
    const talk: Talk = { turn, replies, abort: new AbortController(), stopping: false };
    room.talk.value = talk;
    const inTurn = room.mode.peek() === "in_turn";
    let taken = false;
    try {
        if (room.id.peek() === "") await create(room);
        const body: Say = { content: letter.content, respond: [...respond], mode: room.mode.peek() };
        if (letter.pictures.length > 0) {
            body.images = await Promise.all(letter.pictures.map((picture) => asDataUrl(picture.blob)));
        }
        if (wishes.maxTokens !== undefined) body.max_tokens = wishes.maxTokens;
        if (wishes.thinking !== undefined) body.thinking = wishes.thinking;
        for (const reply of replies) reply.begin();
        for await (const event of api.say(room.id.peek(), body, talk.abort.signal)) {
            taken = true;
            hear(event, talk, letter, inTurn);
        }
        settle(talk);
        room.talk.value = undefined;
    } catch (error) {
        if (!taken && error instanceof Failure && error.kind === "refused") {
            turn.replies.value = before;
            room.talk.value = undefined;
            refusedAtTheDoor(error, letter, turn, tries);
        } else {
            doubt(error);
            await mend(letter, talk, before, taken);
        }
    }
    // The first message gives the room its title; the server may have cleaned it.
    if (taken) refreshRooms().catch(doubt);
}

function hear(event: RoomEvent, talk: Talk, letter: Letter, inTurn: boolean): void {
    switch (event.kind) {
        case "message": {
            const { words } = talk.turn;
            if (words === undefined) return;
            words.id.value = event.message.id;
            const local = words.pictures.peek();
            words.pictures.value = (event.message.images ?? []).map((picture, index) => {
                const address = local[index]?.local;
                return address === undefined ? picture : { ...picture, local: address };
            });
            retitle(letter.room, letter.content);
            return;
        }
        case "started":
            replyOf(talk, event.persona).started(
                event.message_id,
                { tokens: event.prompt_tokens, reused: event.reused_tokens },
                event.adapters,
            );
            return;
        case "delta":
            replyOf(talk, event.persona).delta(event.text ?? "", event.reasoning ?? "", event.tokens);
            return;
        case "finished": {
            const reply = replyOf(talk, event.persona);
            reply.finished(event.reason, event.usage, event.timings, event.error);
            if (inTurn) talk.replies.find((other) => other.phase.peek() === "waiting")?.begin();
            announce(spoken(reply));
            return;
        }
    }
}

/** A server may let somebody speak whom the page did not expect; that one gets a place, too. */
function replyOf(talk: Talk, persona: string): Reply {
    const known = talk.replies.find((reply) => reply.persona === persona);
    if (known !== undefined) return known;
    const reply = new Reply(persona);
    talk.replies = [...talk.replies, reply];
    talk.turn.replies.value = [...talk.turn.replies.peek(), reply];
    return reply;
}

function spoken(reply: Reply): string {
    const { persona } = reply;
    switch (reply.phase.peek()) {
        case "failed":
            return `${persona} could not answer: ${reply.error.peek()?.message ?? ""}`;
        case "stopped":
            return `${persona} was stopped.`;
        default:
            return `${persona}: ${reply.text.peek()}`;
    }
}

/** After `done` nobody may be left in the air. */
function settle(talk: Talk): void {
    for (const reply of talk.replies) {
        if (reply.live.peek()) reply.fail("The server ended the stream without an end of this reply.");
    }
}

/** The message was not taken: it stands in the talk with the reason, and can go again or come back. */
function refusedAtTheDoor(failure: Failure, letter: Letter, turn: Turn, tries: number): void {
    const { room } = letter;
    if (failure.code === "room_not_found" || (failure.status === 404 && failure.code === "")) room.gone.value = true;
    const { words } = turn;
    if (words === undefined || (letter.content === "" && letter.pictures.length === 0)) {
        // "Ask again" has no words of its own; the reason stands where the reply would.
        const reply = new Reply(letter.respond[0] ?? "");
        reply.finished("error", undefined, undefined, {
            message: failure.message,
            type: failure.type,
            code: failure.code,
            param: failure.param,
        });
        turn.replies.value = [...turn.replies.peek(), reply];
        announce(spoken(reply));
        return;
    }
    let timer: ReturnType<typeof setTimeout> | undefined;
    const again = () => {
        clearTimeout(timer);
        if (room.talk.peek() !== undefined) {
            const still = words.unsent.peek();
            if (still !== undefined) words.unsent.value = { ...still, retryAt: undefined };
            return;
        }
        // A message below the newest would come back in another place.
        room.turns.value = [...room.turns.peek().filter((other) => other !== turn), turn];
        void deliver(letter, turn, timer === undefined ? 1 : tries + 1);
    };
    const takeBack = () => {
        clearTimeout(timer);
        room.turns.value = room.turns.peek().filter((other) => other !== turn);
        restoreDraft(letter);
    };
    const wait = failure.retryAfter;
    const alone = failure.busy && wait !== undefined && wait <= PATIENCE && tries <= MOST_TRIES;
    if (alone) timer = setTimeout(again, wait * 1000);
    const what = advice(failure);
    words.unsent.value = {
        message: failure.message,
        advice: what,
        retryAt: alone ? performance.now() + wait * 1000 : undefined,
        again,
        takeBack,
    };
    announce(`Not sent: ${failure.message} ${what}${alone ? ` Sending again in ${wait} seconds.` : ""}`);
}

function restoreDraft({ room, content, pictures }: Letter): void {
    const { draft } = room;
    const written = draft.text.peek();
    draft.text.value = written === "" ? content : `${content}\n${written}`;
    draft.pictures.value = [...pictures, ...draft.pictures.peek()];
}

const pause = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** The stream broke, or never came: what the server has is the truth, so the room is read until it answers. */
async function mend(letter: Letter, talk: Talk, before: readonly Reply[], taken: boolean): Promise<void> {
    const { room } = letter;
    const wasStopped = talk.stopping;
    for (const reply of talk.replies) {
        if (reply.live.peek()) reply.phase.value = "lost";
    }
    if (!wasStopped) announce("The connection broke. Reading the room again.");
    const seen = new Set(room.turns.peek().map((turn) => turn.words?.id.peek()));
    const turns = room.turns.peek();
    for (let attempt = 0; !(await reread(room)); attempt++) {
        await pause(Math.min(8000, 500 * 2 ** attempt));
    }
    room.talk.value = undefined;
    if (room.gone.peek()) {
        for (const reply of talk.replies) {
            if (reply.live.peek()) reply.fail("The connection broke, and the server no longer has this room.");
        }
        if (!taken) unsentAgain(letter, talk.turn, before, "The server does not have this room any more.");
        return;
    }
    if (room.id.peek() === "" || (!taken && !wasTaken(room, letter, seen))) {
        // The server never had it.
        room.turns.value = turns;
        unsentAgain(letter, talk.turn, before, "The server did not answer.");
        return;
    }
    // The server may take a moment to notice that nobody listens.
    for (let attempt = 0; attempt < 4 && unfinished(room); attempt++) {
        await pause(700);
        if (room.talk.peek() !== undefined) return;
        await reread(room);
    }
    const last = room.turns.peek().at(-1);
    if (last === undefined || wasStopped) return;
    // Who never began has left no trace there.
    const there = new Set(last.replies.peek().map((reply) => reply.persona));
    const missing = letter.respond.filter((name) => !there.has(name)).map((name) => new Reply(name));
    for (const reply of missing) reply.fail("The connection broke before this reply began.");
    last.replies.value = [...last.replies.peek(), ...missing];
    for (const reply of last.replies.peek()) {
        if (reply.phase.peek() === "stopped" && letter.respond.includes(reply.persona)) {
            reply.error.value = { message: "Cut off: the connection broke.", type: "connection" };
        }
    }
}

function wasTaken(room: OpenRoom, letter: Letter, seen: ReadonlySet<string | undefined>): boolean {
    const words = room.turns.peek().at(-1)?.words;
    return words !== undefined && !seen.has(words.id.peek()) && words.content === letter.content;
}

function unfinished(room: OpenRoom): boolean {
    const replies = room.turns.peek().at(-1)?.replies.peek() ?? [];
    return replies.some((reply) => reply.usage.peek() === undefined && reply.phase.peek() === "done");
}

function unsentAgain(letter: Letter, turn: Turn, before: readonly Reply[], message: string): void {
    turn.replies.value = before;
    refusedAtTheDoor(new Failure("offline", message), letter, turn, 1);
}

/** How long a polite stop may take before the stream is closed, in milliseconds. */
const GRACE = 3000;

/** Stops all that speak in this room. */
export function stopAll(room: OpenRoom): void {
    const talk = room.talk.peek();
    if (talk === undefined || talk.stopping) return;
    talk.stopping = true;
    for (const reply of talk.replies) {
        if (reply.live.peek()) reply.phase.value = "stopping";
    }
    api.stop(room.id.peek()).catch(() => talk.abort.abort());
    // Closing the stream stops everybody, too, but tells no figures.
    setTimeout(() => {
        if (room.talk.peek() === talk) talk.abort.abort();
    }, GRACE);
}

export function stopOne(room: OpenRoom, reply: Reply): void {
    const talk = room.talk.peek();
    if (talk === undefined || !reply.live.peek() || reply.phase.peek() === "stopping") return;
    const { persona } = reply;
    reply.phase.value = "stopping";
    const others = talk.replies.some((other) => other !== reply && other.live.peek());
    api.stop(room.id.peek(), [persona]).catch((error: unknown) => {
        doubt(error);
        if (!others) talk.abort.abort();
        else if (reply.live.peek()) reply.phase.value = reply.text.peek() === "" ? "reading" : "speaking";
    });
}
