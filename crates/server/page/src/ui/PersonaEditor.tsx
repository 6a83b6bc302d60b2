// A persona: its name, who it is, its adapters and how strong they are, whether it thinks first, how urgent it is.

import { useSignal } from "@preact/signals";
import { useId } from "preact/hooks";
import * as api from "../api/client";
import { Failure } from "../api/failure";
import type { Adapter, AdapterUse, Persona, Priority } from "../api/types";
import { announce } from "../state/announce";
import { bytes } from "../state/pictures";
import { adapters, current, personas, refreshPeople } from "../state/rooms";
import { doubt } from "../state/server";
import { close } from "../state/view";
import { colourOf, PALETTE, paintAs } from "./colour";
import { Dialog } from "./Dialog";
import { Field } from "./Field";
import { scale } from "./format";
import { Icon } from "./icons";
import { Avatar } from "./Reply";

const PRIORITIES: readonly { value: Priority; name: string; what: string }[] = [
    { value: "realtime", name: "Realtime", what: "somebody listens: its voice must not falter" },
    { value: "interactive", name: "Interactive", what: "somebody reads along" },
    { value: "background", name: "Background", what: "when nobody waits for the others" },
    { value: "batch", name: "Batch", what: "whenever there is room" },
];

/** The server's rule: a name stands in addresses, logs and file names. */
function isName(name: string): boolean {
    const bytes = new TextEncoder().encode(name).length;
    return bytes >= 1 && bytes <= 128 && name.trim() === name && !name.startsWith(".") && !/[\p{Cc}/\\"]/u.test(name);
}

const THINKING = [
    { value: "", name: "As the model has it" },
    { value: "on", name: "Reasons before it answers" },
    { value: "off", name: "Answers at once" },
] as const;

const HIGHEST_SCALE = 2;

export function PersonaEditor({ name }: { name: string | undefined }) {
    const known = personas.peek().find((persona) => persona.name === name);
    const start: Persona = known ?? {
        name: name ?? "",
        system: "",
        adapters: [],
        thinking: null,
        priority: "interactive",
    };
    const draft = useSignal<Persona>(start);
    const problem = useSignal<{ param: string; message: string } | undefined>(undefined);
    const saving = useSignal(false);
    const asked = useSignal<"" | "delete" | "discard">("");
    const now = draft.value;
    const dirty = JSON.stringify(now) !== JSON.stringify(start);
    const set = (change: Partial<Persona>) => {
        draft.value = { ...draft.peek(), ...change };
        asked.value = "";
        problem.value = undefined;
    };

    const leave = () => {
        if (dirty && asked.peek() !== "discard") asked.value = "discard";
        else close();
    };
    const save = async () => {
        const wanted = draft.peek();
        if (!isName(wanted.name)) {
            problem.value = {
                param: "name",
                message:
                    "A name has 1 to 128 bytes, no slash, quotation mark or control character, no blank at its ends, and no dot before it.",
            };
            return;
        }
        if (wanted.name.toLowerCase() === "user") {
            problem.value = { param: "name", message: "This is the user’s own name." };
            return;
        }
        if (known === undefined && personas.peek().some((persona) => persona.name === wanted.name)) {
            problem.value = { param: "name", message: `There is a persona ${wanted.name} already.` };
            return;
        }
        saving.value = true;
        try {
            await api.putPersona(wanted);
            await refreshPeople();
            // A new persona comes into a room that is not begun yet.
            const room = current.peek();
            if (known === undefined && room.id.peek() === "" && !room.participants.peek().includes(wanted.name)) {
                room.participants.value = [...room.participants.peek(), wanted.name];
            }
            announce(`${wanted.name} is saved.`);
            close();
        } catch (error) {
            doubt(error);
            const param = error instanceof Failure ? (error.param.split(/[.[]/)[0] ?? "") : "";
            problem.value = { param, message: error instanceof Error ? error.message : String(error) };
        } finally {
            saving.value = false;
        }
    };
    const remove = async () => {
        if (asked.peek() !== "delete") {
            asked.value = "delete";
            return;
        }
        saving.value = true;
        try {
            await api.deletePersona(start.name);
            await refreshPeople();
            const room = current.peek();
            if (room.id.peek() === "")
                room.participants.value = room.participants.peek().filter((other) => other !== start.name);
            announce(`${start.name} is deleted.`);
            close();
        } catch (error) {
            doubt(error);
            problem.value = { param: "", message: error instanceof Error ? error.message : String(error) };
        } finally {
            saving.value = false;
        }
    };

    const colour = now.color ?? colourOf(now.name);
    const described = (param: string) => (problem.value?.param === param ? `wrong-${param}` : undefined);
    const wrong = (param: string) =>
        problem.value?.param === param ? (
            <p class="problem" role="alert" id={`wrong-${param}`}>
                <Icon name="alert" />
                {problem.value.message}
            </p>
        ) : null;
    const fields = ["name", "system", "adapters", "priority", "color", "thinking"];
    const elsewhere = problem.value !== undefined && !fields.includes(problem.value.param);
    return (
        <Dialog title={known === undefined ? "New persona" : start.name} onClose={leave}>
            <form
                class="form"
                style={paintAs(colour)}
                noValidate
                onSubmit={(event) => {
                    event.preventDefault();
                    void save();
                }}
            >
                {known === undefined && (
                    <Field
                        label="Name"
                        control={(id) => (
                            <input
                                id={id}
                                type="text"
                                autofocus
                                value={now.name}
                                autocomplete="off"
                                spellcheck={false}
                                maxLength={128}
                                aria-invalid={problem.value?.param === "name"}
                                aria-describedby={described("name")}
                                onInput={(event) => set({ name: event.currentTarget.value })}
                            />
                        )}
                    >
                        {wrong("name")}
                    </Field>
                )}
                <Field
                    label="System prompt"
                    control={(id) => (
                        <textarea
                            id={id}
                            rows={6}
                            value={now.system}
                            placeholder="Who this is, and how it speaks."
                            aria-invalid={problem.value?.param === "system"}
                            aria-describedby={described("system")}
                            onInput={(event) => set({ system: event.currentTarget.value })}
                        />
                    )}
                >
                    {wrong("system")}
                </Field>
                <fieldset class="part">
                    <legend>Adapters</legend>
                    <AdapterList used={now.adapters} onChange={(used) => set({ adapters: used })} />
                    {wrong("adapters")}
                </fieldset>
                <div class="pair">
                    <Field
                        label="Priority"
                        control={(id) => (
                            <select
                                id={id}
                                value={now.priority}
                                onChange={(event) => set({ priority: event.currentTarget.value as Priority })}
                            >
                                {PRIORITIES.map(({ value, name: words }) => (
                                    <option key={value} value={value}>
                                        {words}
                                    </option>
                                ))}
                            </select>
                        )}
                    >
                        <span class="quiet">{PRIORITIES.find(({ value }) => value === now.priority)?.what}</span>
                        {wrong("priority")}
                    </Field>
                    <Field
                        label="Thinking"
                        control={(id) => (
                            <select
                                id={id}
                                value={now.thinking === null ? "" : now.thinking ? "on" : "off"}
                                onChange={({ currentTarget: { value } }) =>
                                    set({ thinking: value === "" ? null : value === "on" })
                                }
                            >
                                {THINKING.map(({ value, name: words }) => (
                                    <option key={value} value={value}>
                                        {words}
                                    </option>
                                ))}
                            </select>
                        )}
                    >
                        {wrong("thinking")}
                    </Field>
                </div>
                <fieldset class="part">
                    <legend>Colour</legend>
                    <div class="swatches">
                        <Avatar name={now.name || "?"} />
                        {PALETTE.map(({ name: words, value }) => (
                            <label key={value} class="swatch" style={paintAs(value)} title={words}>
                                <input
                                    type="radio"
                                    name="colour"
                                    checked={colour.toLowerCase() === value}
                                    aria-label={words}
                                    onChange={() => set({ color: value })}
                                />
                            </label>
                        ))}
                    </div>
                    {wrong("color")}
                </fieldset>
                {elsewhere && (
                    <p class="problem" role="alert">
                        <Icon name="alert" />
                        {problem.value?.message}
                    </p>
                )}
                {asked.value === "discard" && (
                    <p class="problem" role="alert">
                        <Icon name="alert" />
                        What you changed is not saved. Close again to throw it away.
                    </p>
                )}
                <div class="form-foot">
                    {known !== undefined && (
                        <button type="button" class="plain bad" disabled={saving.value} onClick={() => void remove()}>
                            <Icon name="trash" /> {asked.value === "delete" ? `Really delete ${start.name}` : "Delete"}
                        </button>
                    )}
                    <span class="spread" />
                    <button type="button" class="plain" onClick={leave}>
                        {asked.value === "discard" ? "Throw away" : "Cancel"}
                    </button>
                    <button type="submit" class="strong" disabled={saving.value || (known !== undefined && !dirty)}>
                        {saving.value ? "Saving" : "Save"}
                    </button>
                </div>
            </form>
        </Dialog>
    );
}

function AdapterList({ used, onChange }: { used: AdapterUse[]; onChange: (used: AdapterUse[]) => void }) {
    const known = adapters.value;
    const missing = used.filter(({ name }) => !known.some((adapter) => adapter.name === name));
    if (known.length === 0 && missing.length === 0) return <p class="quiet">The server has no adapters.</p>;
    const toggle = (name: string) => {
        const others = used.filter((use) => use.name !== name);
        onChange(others.length < used.length ? others : [...used, { name, scale: 1 }]);
    };
    const move = (name: string, by: number) =>
        onChange(used.map((use) => (use.name === name ? { name, scale: by } : use)));
    const ordinary = used.some(({ name }) => known.some((adapter) => adapter.name === name && !adapter.activated));
    return (
        <>
            <ul class="adapter-list">
                {known.map((adapter) => (
                    <AdapterRow
                        key={adapter.name}
                        adapter={adapter}
                        use={used.find(({ name }) => name === adapter.name)}
                        onToggle={() => toggle(adapter.name)}
                        onScale={(by) => move(adapter.name, by)}
                    />
                ))}
                {missing.map(({ name }) => (
                    <li key={name} class="adapter">
                        <label class="pick">
                            <input type="checkbox" checked onChange={() => toggle(name)} />
                            <span class="pick-words">
                                <span class="name">{name}</span>
                                <span class="quiet">the server has no such adapter</span>
                            </span>
                        </label>
                    </li>
                ))}
            </ul>
            {ordinary && (
                <p class="hint">
                    An ordinary adapter touches everything that is read: this persona shares no past with others.
                </p>
            )}
        </>
    );
}

interface RowProps {
    adapter: Adapter;
    use: AdapterUse | undefined;
    onToggle: () => void;
    onScale: (by: number) => void;
}

function AdapterRow({ adapter, use, onToggle, onScale }: RowProps) {
    const id = useId();
    const facts: string[] = [];
    if (adapter.rank !== undefined) facts.push(`rank ${adapter.rank}`);
    if (adapter.bytes !== undefined) facts.push(bytes(adapter.bytes));
    if (adapter.activated) facts.push("activated: shares what comes before it");
    facts.push(adapter.pinned ? "pinned" : adapter.resident ? "in memory" : "loaded on use");
    return (
        <li class={use === undefined ? "adapter" : "adapter is-used"}>
            <label class="pick">
                <input type="checkbox" checked={use !== undefined} onChange={onToggle} />
                <span class="pick-words">
                    <span class="name">{adapter.name}</span>
                    <span class="quiet">{facts.join(", ")}</span>
                </span>
            </label>
            {use !== undefined && (
                <div class="scale">
                    <label for={id} class="hidden">
                        Scale of {adapter.name}
                    </label>
                    <input
                        id={id}
                        type="range"
                        min={0}
                        max={HIGHEST_SCALE}
                        step={0.05}
                        value={use.scale}
                        aria-valuetext={scale(use.scale)}
                        onInput={(event) => onScale(Number(event.currentTarget.value))}
                    />
                    <output for={id}>{scale(use.scale)}</output>
                </div>
            )}
        </li>
    );
}
