// Rooms and personas: a column on a wide window, a drawer on a narrow one.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { announce } from "../state/announce";
import { current, entries, forget, openRoom, personas, type RoomEntry } from "../state/rooms";
import { doubt } from "../state/server";
import { close, newRoom, open } from "../state/view";
import { paint } from "./colour";
import { names } from "./format";
import { HelpButton, ThemeButton } from "./Header";
import { Icon } from "./icons";
import { Avatar } from "./Reply";

export function RoomsPanel() {
    return (
        <div class="rooms">
            <button type="button" class="plain wide" onClick={newRoom}>
                <Icon name="plus" /> New room
            </button>
            <section aria-labelledby="rooms-head" class="rooms-part">
                <h2 id="rooms-head">Rooms</h2>
                {entries.value.length === 0 ? (
                    <p class="quiet">The first message opens one.</p>
                ) : (
                    <ul class="list">
                        {entries.value.map((entry) => (
                            <RoomRow key={entry.id} entry={entry} />
                        ))}
                    </ul>
                )}
            </section>
            <section aria-labelledby="personas-head" class="rooms-part">
                <div class="part-head">
                    <h2 id="personas-head">Personas</h2>
                    <button
                        type="button"
                        class="bare small"
                        aria-label="New persona"
                        title="New persona"
                        onClick={() => {
                            open.value = { kind: "persona", name: undefined };
                        }}
                    >
                        <Icon name="plus" />
                    </button>
                </div>
                <ul class="list">
                    {personas.value.map((persona) => (
                        <li key={persona.name} style={paint(persona.name)}>
                            <button
                                type="button"
                                class="person"
                                onClick={() => {
                                    open.value = { kind: "persona", name: persona.name };
                                }}
                            >
                                <Avatar name={persona.name} />
                                <span class="hidden">Edit </span>
                                <span class="person-words">
                                    <span class="name">{persona.name}</span>
                                    <span class="quiet">
                                        {persona.adapters.length > 0
                                            ? persona.adapters.map(({ name }) => name).join(" + ")
                                            : "no adapter"}
                                        {persona.thinking ? ", thinks" : ""}
                                    </span>
                                </span>
                                <Icon name="edit" />
                            </button>
                        </li>
                    ))}
                </ul>
            </section>
            <footer class="rooms-foot">
                <ThemeButton />
                <HelpButton />
            </footer>
        </div>
    );
}

function RoomRow({ entry }: { entry: RoomEntry }) {
    const asked = useSignal(false);
    const here = current.value.id.value === entry.id;
    const go = () => {
        void openRoom(entry.id);
        if (open.peek()?.kind === "rooms") close();
    };
    const remove = async () => {
        try {
            await forget(entry.id);
            announce("The room is deleted.");
            focusFirst();
        } catch (error) {
            doubt(error);
            asked.value = false;
            announce(`The room could not be deleted: ${error instanceof Error ? error.message : String(error)}`);
        }
    };
    if (asked.value) {
        const keep = () => {
            asked.value = false;
            focusFirst();
        };
        return <AskedRow onDelete={() => void remove()} onKeep={keep} />;
    }
    return (
        <li class={here ? "room-row is-here" : "room-row"}>
            <button type="button" class="room-open" aria-current={here ? "true" : undefined} onClick={go}>
                <span class="room-row-title">{entry.title}</span>
                <span class="dots-row" aria-hidden="true">
                    {entry.participants.slice(0, 6).map((name) => (
                        <span key={name} class="dot" style={paint(name)} />
                    ))}
                </span>
                <span class="hidden">with {names(entry.participants)}</span>
            </button>
            <button
                type="button"
                class="bare small room-delete"
                aria-label={`Delete room: ${entry.title}`}
                title="Delete"
                onClick={() => {
                    asked.value = true;
                }}
            >
                <Icon name="trash" />
            </button>
        </li>
    );
}

/** The row, and the button in it that had the focus, are gone. */
function focusFirst(): void {
    document.querySelector<HTMLElement>(".rooms button")?.focus();
}

function AskedRow({ onDelete, onKeep }: { onDelete: () => void; onKeep: () => void }) {
    const first = useRef<HTMLButtonElement>(null);
    useEffect(() => first.current?.focus(), []);
    return (
        <li class="room-row is-asked">
            <span class="quiet">Delete this room?</span>
            <button type="button" class="plain small bad" ref={first} onClick={onDelete}>
                Delete
            </button>
            <button type="button" class="plain small" onClick={onKeep}>
                Keep
            </button>
        </li>
    );
}
