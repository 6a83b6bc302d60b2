// Where a message is written: who answers, pictures, words, and the button that sends or stops.

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { Draft } from "../state/pictures";
import { bytes, typeNames } from "../state/pictures";
import { current, type OpenRoom } from "../state/rooms";
import { connection, limits, status } from "../state/server";
import { send, stopAll, type Wishes } from "../state/talk";
import { keepFocus, open } from "../state/view";
import { paint } from "./colour";
import { Field } from "./Field";
import { Icon } from "./icons";

/** Highest that the text field grows by itself, in pixels. */
const HIGHEST = 220;

export function Composer() {
    const room = current.value;
    return <Form key={room.draft} room={room} />;
}

function Form({ room }: { room: OpenRoom }) {
    const { draft } = room;
    const field = useRef<HTMLTextAreaElement>(null);
    const wishes = useSignal<Wishes>({});
    const speaking = room.talk.value !== undefined;
    const stopping = speaking && room.talk.value?.stopping === true;
    const text = draft.text.value;
    const answering = room.answering.value;
    const tooLong = new TextEncoder().encode(text).length > limits.value.content_bytes;
    const something = text.trim() !== "" || draft.pictures.value.length > 0;
    const ready = something && !tooLong && answering.length > 0 && draft.reading.value === 0 && !room.gone.value;

    useLayoutEffect(() => {
        const area = field.current;
        if (area === null) return;
        area.style.height = "auto";
        area.style.height = `${Math.min(HIGHEST, area.scrollHeight)}px`;
    }, [text]);

    useEffect(() => {
        const paste = (event: ClipboardEvent) => {
            if (document.querySelector("dialog[open]") !== null) return;
            const files = [...(event.clipboardData?.files ?? [])];
            if (files.length === 0) return;
            event.preventDefault();
            take(draft, files);
        };
        addEventListener("paste", paste);
        return () => removeEventListener("paste", paste);
    }, [draft]);

    const go = () => {
        if (!ready || speaking) return;
        send(room, wishes.peek());
        field.current?.focus();
    };

    return (
        <form
            class="composer"
            aria-label="Message"
            onSubmit={(event) => {
                event.preventDefault();
                go();
            }}
        >
            <Who room={room} />
            <Pictures draft={draft} />
            {(draft.problem.value !== "" || tooLong) && (
                <p class="problem" role="alert">
                    <Icon name="alert" />
                    {tooLong
                        ? `The message is longer than ${bytes(limits.value.content_bytes)}: shorten it.`
                        : draft.problem.value}
                </p>
            )}
            <div class="field">
                <textarea
                    id="compose"
                    ref={field}
                    rows={1}
                    value={text}
                    placeholder={placeholder(room)}
                    aria-label="Message"
                    aria-describedby="compose-help"
                    enterkeyhint="send"
                    onInput={(event) => {
                        draft.text.value = event.currentTarget.value;
                    }}
                    onKeyDown={(event) => {
                        // While an input method composes a character, Enter belongs to it.
                        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
                        event.preventDefault();
                        go();
                    }}
                />
                <div class="tools">
                    <PicturePicker draft={draft} />
                    <Options wishes={wishes} />
                    <span id="compose-help" class="compose-help">
                        Enter sends, Shift+Enter is a new line
                    </span>
                    {speaking ? (
                        <button
                            type="button"
                            class="strong go"
                            disabled={stopping}
                            onClick={(event) => {
                                keepFocus(event);
                                stopAll(room);
                            }}
                        >
                            <Icon name="stop" />
                            <span>{stopping ? "Stopping" : "Stop all"}</span>
                        </button>
                    ) : (
                        <button type="submit" class="strong go" disabled={!ready} title={whyNot(room, something)}>
                            <Icon name="send" />
                            <span>Send</span>
                        </button>
                    )}
                </div>
            </div>
        </form>
    );
}

function placeholder(room: OpenRoom): string {
    if (room.gone.value) return "This room is gone";
    const answering = room.answering.value;
    if (answering.length === 0) return "Choose who answers";
    if (answering.length === room.participants.value.length && answering.length > 1) return "Say something to all";
    return answering.length < 3
        ? `Say something to ${answering.join(" and ")}`
        : `Say something to ${answering.length} of them`;
}

function whyNot(room: OpenRoom, something: boolean): string | undefined {
    if (room.gone.value) return "The server no longer has this room";
    if (room.answering.value.length === 0) return "Choose who answers first";
    return something ? undefined : "Write something first";
}

function take(draft: Draft, files: readonly File[]): void {
    if (status.peek()?.model.vision === false) {
        draft.problem.value = "This model does not see: it reads text only.";
        return;
    }
    void draft.add(files, limits.peek());
}

/** Files may be dropped anywhere on the page. */
export function DropZone() {
    const over = useSignal(false);
    useEffect(() => {
        let depth = 0;
        const files = (event: DragEvent) => event.dataTransfer?.types.includes("Files") === true;
        const enter = (event: DragEvent) => {
            if (!files(event)) return;
            event.preventDefault();
            depth++;
            over.value = true;
        };
        const leave = (event: DragEvent) => {
            if (files(event) && --depth <= 0) over.value = false;
        };
        const hover = (event: DragEvent) => {
            // Without this the browser would leave the page to show the file.
            if (files(event)) event.preventDefault();
        };
        const drop = (event: DragEvent) => {
            if (!files(event)) return;
            event.preventDefault();
            depth = 0;
            over.value = false;
            take(current.peek().draft, [...(event.dataTransfer?.files ?? [])]);
        };
        addEventListener("dragenter", enter);
        addEventListener("dragleave", leave);
        addEventListener("dragover", hover);
        addEventListener("drop", drop);
        return () => {
            removeEventListener("dragenter", enter);
            removeEventListener("dragleave", leave);
            removeEventListener("dragover", hover);
            removeEventListener("drop", drop);
        };
    }, [over]);
    if (!over.value) return null;
    return (
        <div class="drop" aria-hidden="true">
            <p>
                <Icon name="picture" /> Drop the picture
            </p>
        </div>
    );
}

function Who({ room }: { room: OpenRoom }) {
    const toggle = (name: string) => {
        const silent = new Set(room.silent.peek());
        if (!silent.delete(name)) silent.add(name);
        room.silent.value = silent;
    };
    return (
        <fieldset class="who" aria-label="Who answers">
            {room.participants.value.map((name) => (
                <button
                    key={name}
                    type="button"
                    class="chip"
                    style={paint(name)}
                    aria-pressed={!room.silent.value.has(name)}
                    title={room.silent.value.has(name) ? `${name} will not answer` : `${name} will answer`}
                    onClick={() => toggle(name)}
                >
                    <span class="dot" aria-hidden="true" />
                    {name}
                </button>
            ))}
            <button
                type="button"
                class="chip chip-quiet"
                aria-label="People and scene of this room"
                title="People and scene"
                onClick={() => (open.value = { kind: "room" })}
            >
                <Icon name="people" />
            </button>
        </fieldset>
    );
}

function Pictures({ draft }: { draft: Draft }) {
    const pictures = draft.pictures.value;
    if (pictures.length === 0 && draft.reading.value === 0) return null;
    return (
        <ul class="attached" aria-label="Pictures to send">
            {pictures.map((picture) => (
                <li key={picture.key}>
                    <img src={picture.local} alt="" width={picture.width} height={picture.height} />
                    <span class="attached-words">
                        <span class="attached-name">{picture.name}</span>
                        <span class="attached-size">
                            {picture.width} × {picture.height}, {bytes(picture.blob.size)}
                            {picture.note === "" ? "" : `, ${picture.note}`}
                        </span>
                    </span>
                    <button
                        type="button"
                        class="bare small"
                        aria-label={`Remove ${picture.name}`}
                        onClick={() => draft.remove(picture.key)}
                    >
                        <Icon name="close" />
                    </button>
                </li>
            ))}
            {draft.reading.value > 0 && <li class="attached-reading">Reading a picture</li>}
        </ul>
    );
}

function PicturePicker({ draft }: { draft: Draft }) {
    const input = useRef<HTMLInputElement>(null);
    const sees = status.value?.model.vision !== false;
    const { image_types, image_bytes, images_per_message } = limits.value;
    const rule = `${typeNames(image_types)}, up to ${bytes(image_bytes)} each and ${images_per_message} in one message`;
    return (
        <>
            <button
                type="button"
                class="bare"
                disabled={!sees}
                aria-label="Add a picture"
                title={sees ? `Add a picture: ${rule}` : "This model does not see"}
                onClick={() => input.current?.click()}
            >
                <Icon name="picture" />
            </button>
            <input
                ref={input}
                type="file"
                class="hidden"
                tabIndex={-1}
                aria-hidden="true"
                accept={image_types.join(",")}
                multiple
                onChange={(event) => {
                    const files = [...(event.currentTarget.files ?? [])];
                    event.currentTarget.value = "";
                    take(draft, files);
                }}
            />
        </>
    );
}

function Options({ wishes }: { wishes: { value: Wishes } }) {
    const root = useRef<HTMLDetailsElement>(null);
    const { maxTokens, thinking } = wishes.value;
    const changed = maxTokens !== undefined || thinking !== undefined;
    useEffect(() => {
        const away = (event: Event) => {
            const box = root.current;
            if (box?.open && event.target instanceof Node && !box.contains(event.target)) box.open = false;
        };
        addEventListener("pointerdown", away);
        return () => removeEventListener("pointerdown", away);
    }, []);
    const set = (change: Partial<Wishes>, without?: keyof Wishes) => {
        const next = { ...wishes.value, ...change };
        if (without !== undefined) delete next[without];
        wishes.value = next;
    };
    return (
        <details
            class="options"
            ref={root}
            onKeyDown={(event) => {
                if (event.key !== "Escape" || root.current?.open !== true) return;
                event.preventDefault();
                root.current.open = false;
                root.current.querySelector("summary")?.focus();
            }}
        >
            <summary
                class={changed ? "bare is-on" : "bare"}
                aria-label={changed ? "Options, some are set" : "Options"}
                title="Options"
            >
                <Icon name="options" />
            </summary>
            <div class="options-box">
                <Field
                    label="Thinking"
                    control={(id) => (
                        <select
                            id={id}
                            value={thinking === undefined ? "" : thinking ? "on" : "off"}
                            onChange={(event) => {
                                const { value } = event.currentTarget;
                                if (value === "") set({}, "thinking");
                                else set({ thinking: value === "on" });
                            }}
                        >
                            <option value="">as each persona does</option>
                            <option value="on">all think first</option>
                            <option value="off">nobody thinks</option>
                        </select>
                    )}
                />
                <Field
                    label="Most tokens"
                    control={(id) => (
                        <input
                            id={id}
                            type="number"
                            min={1}
                            max={1_000_000}
                            step={1}
                            inputMode="numeric"
                            placeholder="the server's limit"
                            value={maxTokens ?? ""}
                            onInput={(event) => {
                                const number = event.currentTarget.valueAsNumber;
                                if (Number.isInteger(number) && number > 0) set({ maxTokens: number });
                                else set({}, "maxTokens");
                            }}
                        />
                    )}
                />
                {connection.value.kind === "down" && <p class="what">The server does not answer just now.</p>}
            </div>
        </details>
    );
}
