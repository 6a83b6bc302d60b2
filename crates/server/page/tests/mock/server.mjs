// A server that speaks the contract of the page and runs no model. It can be made to fail in every way that the page has to
// survive: refuse, break off, go away, come back as another process.

import { createHash, randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join } from "node:path";
import { performance } from "node:perf_hooks";
import { fileURLToPath } from "node:url";
import { ADAPTERS, PERSONAS, pieces, reply } from "./script.mjs";

const DIST = join(dirname(fileURLToPath(import.meta.url)), "../../dist");
export const POLICY =
    "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
    "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
const TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
};
const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const NAME = /^(?![. ])[^\p{Cc}/\\"]{1,128}(?<! )$/u;
const MOST_BODY = 64 * 1024 * 1024;

class Refusal extends Error {
    constructor(status, message, { code = null, type = "invalid_request_error", param = null, retryAfter } = {}) {
        super(message);
        Object.assign(this, { status, code, type, param, retryAfter });
    }
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
/** A little of an unevenness that is the same in every run. */
const wobble = (step) => 1 + 0.35 * Math.sin(step * 1.7) + 0.2 * Math.sin(step * 0.61);

/** Width and height out of a PNG's or JPEG's header; what else there is counts as square. */
function measure(bytes) {
    if (bytes.length > 24 && bytes.readUInt32BE(0) === 0x89504e47)
        return [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
    for (let at = 2; at + 9 < bytes.length && bytes[0] === 0xff; ) {
        const marker = bytes[at + 1];
        if (marker >= 0xc0 && marker <= 0xc3) return [bytes.readUInt16BE(at + 7), bytes.readUInt16BE(at + 5)];
        at += 2 + bytes.readUInt16BE(at + 2);
    }
    return [64, 64];
}

export class Mock {
    /** `pace` multiplies all waiting: 1 is what a person can follow, 0.1 is for tests. */
    constructor({ key = "", pace = 1, places = 3 } = {}) {
        this.key = key;
        this.pace = pace;
        this.places = places;
        this.sockets = new Set();
        this.requests = [];
        this.port = 0;
        this.begin({ forget: true });
    }

    begin({ forget }) {
        this.startedAt = performance.now();
        if (forget) {
            this.rooms = new Map();
            this.personas = new Map(PERSONAS.map((persona) => [persona.name, structuredClone(persona)]));
        }
        this.talks = new Map();
        this.running = 0;
        this.queued = 0;
        this.said = [];
        this.prompts = { all: 0, reused: 0 };
        /** Refusals for the next messages, first in, first out. */
        this.refuse = [];
        /** Break the next stream after so many deltas. */
        this.cutAfter = undefined;
        /** Errors by persona, for its next reply. */
        this.fail = new Map();
        this.limits = undefined;
        this.statusFails = undefined;
    }

    async listen(port = this.port) {
        this.server = createServer((request, response) => void this.answer(request, response));
        this.server.on("connection", (socket) => {
            this.sockets.add(socket);
            socket.on("close", () => this.sockets.delete(socket));
        });
        await new Promise((resolve, reject) => {
            this.server.once("error", reject);
            this.server.listen(port, "127.0.0.1", resolve);
        });
        this.port = this.server.address().port;
        return `http://127.0.0.1:${this.port}/`;
    }

    /** Goes away as a killed process does. */
    async down() {
        const closed = new Promise((resolve) => this.server.close(resolve));
        for (const talk of this.talks.values()) talk.over = true;
        for (const socket of this.sockets) socket.destroy();
        await closed;
    }

    /** Comes back, as another process: with the rooms that were kept, or without. */
    async up({ forget = false } = {}) {
        this.begin({ forget });
        await this.listen();
    }

    async answer(request, response) {
        const url = new URL(request.url, "http://mock");
        this.requests.push(`${request.method} ${url.pathname}`);
        try {
            if (!url.pathname.startsWith("/v1/")) return await this.file(url.pathname, response);
            if (this.key !== "" && request.headers.authorization !== `Bearer ${this.key}`) {
                throw new Refusal(401, "The API key is missing or wrong.", {
                    type: "authentication_error",
                    code: "invalid_api_key",
                });
            }
            const parts = url.pathname.slice(4).split("/").map(decodeURIComponent);
            const body = await readBody(request);
            const result = await this.route(request.method, parts, body, response);
            if (result !== undefined) send(response, 200, result);
        } catch (error) {
            const refusal =
                error instanceof Refusal ? error : new Refusal(500, String(error), { type: "server_error" });
            const { status, message, type, param, code, retryAfter } = refusal;
            if (response.headersSent) response.destroy();
            else
                send(
                    response,
                    status,
                    { error: { message, type, param, code } },
                    retryAfter === undefined ? {} : { "retry-after": retryAfter },
                );
        }
    }

    async file(path, response) {
        const name = path === "/" ? "index.html" : path.slice(1);
        if (!["index.html", "app.js", "app.css"].includes(name))
            throw new Refusal(404, "There is no such page.", { code: "not_found" });
        const bytes = await readFile(join(DIST, name));
        response.writeHead(200, {
            "content-type": TYPES[extname(name)],
            "content-security-policy": POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
            etag: `"${createHash("sha256").update(bytes).digest("hex").slice(0, 16)}"`,
        });
        response.end(bytes);
    }

    route(method, [what, id, part, third], body, response) {
        const key = `${method} ${what}${id === undefined ? "" : "/*"}${part === undefined ? "" : `/${part}`}`;
        switch (key) {
            case "GET status":
                return this.status();
            case "GET personas":
                return { data: [...this.personas.values()].map((persona) => ({ ...persona, resident: true })) };
            case "PUT personas/*":
                return this.putPersona(id, body);
            case "DELETE personas/*":
                if (!this.personas.delete(id))
                    throw new Refusal(404, `There is no persona ${id}.`, { code: "persona_not_found" });
                return {};
            case "GET adapters":
                return { data: ADAPTERS };
            case "GET rooms":
                return { data: [...this.rooms.values()].map(listed) };
            case "POST rooms":
                return this.newRoom(body);
            case "GET rooms/*":
                return shown(this.room(id));
            case "PATCH rooms/*":
                return this.changeRoom(this.room(id), body);
            case "DELETE rooms/*":
                this.room(id);
                this.rooms.delete(id);
                return {};
            case "POST rooms/*/messages":
                return this.say(this.room(id), body, response);
            case "POST rooms/*/stop":
                return this.stop(this.room(id), body);
            case "GET rooms/*/images":
                return this.image(this.room(id), third, response);
            default:
                throw new Refusal(404, "There is no such address.", { code: "not_found" });
        }
    }

    room(id) {
        const room = this.rooms.get(id);
        if (room === undefined) throw new Refusal(404, "There is no such room.", { code: "room_not_found" });
        return room;
    }

    status() {
        if (this.statusFails !== undefined) throw this.statusFails;
        const now = performance.now();
        this.said = this.said.filter(({ at }) => at > now - 2000);
        const messages = [...this.rooms.values()].reduce((sum, room) => sum + room.messages.length, 0);
        return {
            model: { name: "etude", architecture: "qwen35", parameters: 3_600_000, context_length: 4096, vision: true },
            evidence: {
                backend: "mock",
                device: "cpu",
                device_name: "scripted replies: no model runs",
                established_by: "single_device_kernels",
                placements: [
                    { component: "token_embd", device: "cpu", allowed: false },
                    { component: "blk.0-3 (3 gated delta net, 1 attention)", device: "cpu", allowed: false },
                    { component: "output", device: "cpu", allowed: false },
                    { component: "vision tower", device: "cpu", allowed: false },
                ],
            },
            metrics: {
                running: this.running,
                queued: this.queued,
                tokens_per_second: this.said.length / 2,
                reused_share: this.prompts.all === 0 ? 0 : this.prompts.reused / this.prompts.all,
                cached_pasts: 2 * messages,
                memory: {
                    weights: 4_718_592,
                    kv_cache: 262_144 + 98_304 * messages,
                    states: 524_288 * (this.running + 1) + 65_536 * messages,
                    adapters: 2_621_440,
                    images: 196_608 * [...this.rooms.values()].reduce((sum, room) => sum + room.images.size, 0),
                    scratch: 1_048_576,
                },
            },
            ...(this.limits === undefined ? {} : { limits: this.limits }),
            uptime_seconds: (now - this.startedAt) / 1000,
        };
    }

    putPersona(name, body) {
        if (!NAME.test(name) || name === "user")
            throw new Refusal(400, "That is no name for a persona.", { param: "name" });
        for (const { name: wanted } of body.adapters ?? []) {
            if (!ADAPTERS.some((adapter) => adapter.name === wanted))
                throw new Refusal(400, `There is no adapter ${wanted}.`, { param: "adapters" });
        }
        if ((body.system ?? "").includes("{{")) {
            throw new Refusal(400, "The system prompt may not hold template braces.", { param: "system" });
        }
        const { system = "", adapters = [], thinking = null, priority = "interactive", color } = body;
        const persona = { name, system, adapters, thinking, priority, ...(color === undefined ? {} : { color }) };
        this.personas.set(name, persona);
        return { ...persona, resident: true };
    }

    newRoom({ participants, scene = "", mode = "together" }) {
        if (!Array.isArray(participants) || participants.length === 0) {
            throw new Refusal(400, "A room needs participants.", { param: "participants" });
        }
        this.known(participants);
        const id = `room_${randomUUID().slice(0, 8)}`;
        const room = {
            id,
            participants,
            scene,
            mode,
            messages: [],
            created: Math.floor(Date.now() / 1000) + this.rooms.size,
            images: new Map(),
        };
        this.rooms.set(id, room);
        return shown(room);
    }

    changeRoom(room, body) {
        if (this.talks.has(room.id)) throw busy();
        if (body.participants !== undefined) this.known(body.participants);
        for (const field of ["participants", "scene", "mode"]) if (body[field] !== undefined) room[field] = body[field];
        return shown(room);
    }

    known(names) {
        const unknown = names.find((name) => !this.personas.has(name));
        if (unknown !== undefined)
            throw new Refusal(404, `There is no persona ${unknown}.`, {
                code: "persona_not_found",
                param: "participants",
            });
    }

    stop(room, { personas }) {
        const talk = this.talks.get(room.id);
        const stopped = (talk?.names ?? []).filter(
            (name) => !talk.ended.has(name) && (personas === undefined || personas.includes(name)),
        );
        for (const name of stopped) talk.stopped.add(name);
        return { stopped };
    }

    image(room, id, response) {
        const image = room.images.get(id);
        if (image === undefined) throw new Refusal(404, "There is no such picture.", { code: "not_found" });
        response.writeHead(200, {
            "content-type": image.type,
            "content-security-policy": "sandbox",
            "x-content-type-options": "nosniff",
        });
        response.end(image.bytes);
    }

    async say(room, body, response) {
        const refusal = this.refuse.shift();
        if (refusal !== undefined) throw new Refusal(refusal.status, refusal.message, refusal);
        if (this.talks.has(room.id)) throw busy();
        const names = body.respond === undefined || body.respond === "all" ? room.participants : body.respond;
        this.known(names);
        if (body.mode !== undefined) room.mode = body.mode;
        const own = this.takeMessage(room, body);
        const talk = { names, stopped: new Set(), ended: new Set(), over: false, deltas: 0, cutAfter: this.cutAfter };
        this.cutAfter = undefined;
        this.talks.set(room.id, talk);
        response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
        response.flushHeaders();
        response.on("close", () => {
            talk.over = true;
        });
        const emit = (event, data) => {
            if (!talk.over) response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
        };
        if (own !== undefined) emit("message", { message: own });
        const speak = (name, place) => this.speak({ room, talk, name, place, emit, body, response });
        if (room.mode === "in_turn") for (const [place, name] of names.entries()) await speak(name, place);
        else await Promise.all(names.map(speak));
        this.talks.delete(room.id);
        emit("done", {});
        response.end();
        return undefined;
    }

    takeMessage(room, { content, images = [] }) {
        if (typeof content !== "string") throw new Refusal(400, "A message needs its content.", { param: "content" });
        if (content === "" && images.length === 0) {
            if (!room.messages.some(({ from }) => from === "user")) {
                throw new Refusal(400, "Nothing was said in this room yet.", { param: "content" });
            }
            return undefined;
        }
        const stored = images.map((address) => {
            const match = /^data:([a-z/]+);base64,(.*)$/.exec(address);
            if (match === null || !IMAGE_TYPES.includes(match[1])) {
                throw new Refusal(400, "The picture is no PNG, JPEG, WebP or GIF.", {
                    param: "images",
                    code: "invalid_image",
                });
            }
            const bytes = Buffer.from(match[2], "base64");
            const [width, height] = measure(bytes);
            const id = `img_${randomUUID().slice(0, 8)}`;
            room.images.set(id, { type: match[1], bytes });
            return { id, width, height };
        });
        const message = {
            id: `msg_${randomUUID().slice(0, 8)}`,
            from: "user",
            content,
            ...(stored.length > 0 ? { images: stored } : {}),
        };
        room.messages.push(message);
        return message;
    }

    async speak({ room, talk, name, place, emit, body, response }) {
        const asked = performance.now();
        const end = (message, reason, more = {}) => {
            talk.ended.add(name);
            emit("finished", { persona: name, message_id: message?.id ?? "", reason, ...more });
        };
        const gone = () => talk.over || talk.stopped.has(name);
        this.queued++;
        while (this.running >= this.places && !gone()) await sleep(10);
        this.queued--;
        if (gone()) return end(undefined, "cancelled");
        this.running++;
        try {
            const persona = this.personas.get(name);
            const error = this.fail.get(name);
            this.fail.delete(name);
            if (error?.early) return end(undefined, "error", { error: error.body });
            const text = room.messages.map(({ content }) => content).join(" ");
            const prompt =
                24 + Math.round((persona.system.length + room.scene.length + text.length) / 4) + 64 * room.images.size;
            const last = room.messages.filter(({ from }) => from === "user").at(-1);
            const earlier = room.messages.length > 1 ? prompt - 18 - Math.round((last?.content.length ?? 0) / 4) : 0;
            const reused = Math.max(0, Math.min(prompt - 8, earlier));
            this.prompts.all += prompt;
            this.prompts.reused += reused;
            const message = {
                id: `msg_${randomUUID().slice(0, 8)}`,
                from: name,
                content: "",
                adapters: structuredClone(persona.adapters),
            };
            room.messages.push(message);
            emit("started", {
                persona: name,
                message_id: message.id,
                prompt_tokens: prompt,
                reused_tokens: reused,
                adapters: message.adapters,
            });
            await this.words({
                room,
                talk,
                name,
                place,
                emit,
                body,
                response,
                message,
                last,
                asked,
                prompt,
                reused,
                error,
                gone,
                end,
            });
        } finally {
            this.running--;
        }
    }

    async words({
        room,
        talk,
        name,
        place,
        emit,
        body,
        response,
        message,
        last,
        asked,
        prompt,
        reused,
        error,
        gone,
        end,
    }) {
        const script = reply(name, last?.content ?? "", (last?.images ?? []).length > 0);
        const thinks = body.thinking ?? this.personas.get(name).thinking;
        const stream = [
            ...(thinks && script.reasoning ? pieces(script.reasoning).map((reasoning) => ({ reasoning })) : []),
            ...pieces(script.text).map((text) => ({ text })),
        ].slice(0, body.max_tokens ?? Number.POSITIVE_INFINITY);
        const whole = pieces(script.text).length + (thinks && script.reasoning ? pieces(script.reasoning).length : 0);
        const each = (22 + 7 * place) * this.pace;
        await sleep((120 + 40 * place + (prompt - reused) / 2) * this.pace);
        let firstAt = 0;
        let tokens = 0;
        const figures = () => ({
            usage: { prompt_tokens: prompt, reused_tokens: reused, completion_tokens: tokens },
            timings: {
                first_token_ms: firstAt === 0 ? 0 : firstAt - asked,
                tokens_per_second: tokens < 2 ? 0 : ((tokens - 1) * 1000) / (performance.now() - firstAt),
            },
        });
        for (const piece of stream) {
            if (gone() || !this.rooms.has(room.id)) break;
            if (error !== undefined && tokens >= (error.after ?? 0)) {
                Object.assign(message, figures(), { error: error.body, reason: "error" });
                return end(message, "error", { ...figures(), error: error.body });
            }
            if (talk.cutAfter !== undefined && ++talk.deltas > talk.cutAfter) {
                talk.over = true;
                response.destroy();
                break;
            }
            if (firstAt === 0) firstAt = performance.now();
            tokens++;
            this.said.push({ at: performance.now() });
            if (piece.text !== undefined) message.content += piece.text;
            else message.reasoning = (message.reasoning ?? "") + piece.reasoning;
            emit("delta", { persona: name, message_id: message.id, ...piece, tokens });
            await sleep(each * wobble(tokens));
        }
        message.content = message.content.trimStart();
        Object.assign(message, figures());
        if (gone()) message.stopped = true;
        const reason = gone() ? "cancelled" : stream.length < whole ? "length" : "stop";
        message.reason = reason;
        return end(message, reason, figures());
    }
}

function busy() {
    return new Refusal(409, "The room is still speaking.", { code: "room_busy" });
}

function shown({ images: _, ...room }) {
    return room;
}

/** What the list holds of a room: no messages, and a title. */
function listed(room) {
    const first = room.messages.find(({ from, content }) => from === "user" && content !== "");
    const title = (first?.content ?? room.scene).trim().replace(/\s+/g, " ").slice(0, 80);
    return { ...shown(room), messages: [], ...(title === "" ? {} : { title }) };
}

function send(response, status, body, headers = {}) {
    response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store", ...headers });
    response.end(JSON.stringify(body));
}

async function readBody(request) {
    if (request.method === "GET" || request.method === "DELETE") return {};
    const chunks = [];
    let length = 0;
    for await (const chunk of request) {
        length += chunk.length;
        if (length > MOST_BODY) throw new Refusal(413, "The request is too large.");
        chunks.push(chunk);
    }
    try {
        return chunks.length === 0 ? {} : JSON.parse(Buffer.concat(chunks).toString("utf8"));
    } catch {
        throw new Refusal(400, "The body is no JSON.");
    }
}
