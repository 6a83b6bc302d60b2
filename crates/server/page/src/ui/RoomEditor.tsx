// Who is in the room, and where it is.

import { useSignal } from "@preact/signals";
import { Failure } from "../api/failure";
import { announce } from "../state/announce";
import { adapters, change, current, personas } from "../state/rooms";
import { doubt } from "../state/server";
import { close, open } from "../state/view";
import { paint } from "./colour";
import { Dialog } from "./Dialog";
import { Field } from "./Field";
import { names } from "./format";
import { Icon } from "./icons";
import { Avatar } from "./Reply";

export function RoomEditor() {
    const room = current.value;
    const scene = useSignal(room.scene.peek());
    const chosen = useSignal<readonly string[]>(room.participants.peek());
    const problem = useSignal("");
    const saving = useSignal(false);
    const speaking = room.talk.value !== undefined;
    const fixed = speaking || room.gone.value;

    const toggle = (name: string) => {
        const now = chosen.peek();
        chosen.value = now.includes(name) ? now.filter((other) => other !== name) : [...now, name];
    };
    const save = async () => {
        saving.value = true;
        problem.value = "";
        try {
            await change(room, { participants: chosen.peek(), scene: scene.peek().trim() });
            announce("The room is changed.");
            close();
        } catch (error) {
            doubt(error);
            problem.value = error instanceof Failure ? error.message : String(error);
        } finally {
            saving.value = false;
        }
    };

    const gone = chosen.value.filter((name) => !personas.value.some((persona) => persona.name === name));
    const apart = personas.value.filter(
        (persona) =>
            chosen.value.includes(persona.name) &&
            persona.adapters.some(({ name }) =>
                adapters.value.some((adapter) => adapter.name === name && !adapter.activated),
            ),
    );
    return (
        <Dialog title={room.id.value === "" ? "New room" : "This room"} onClose={close}>
            <form
                class="form"
                onSubmit={(event) => {
                    event.preventDefault();
                    void save();
                }}
            >
                <fieldset class="part" disabled={fixed}>
                    <legend>People</legend>
                    <ul class="people">
                        {personas.value.map((persona) => (
                            <li key={persona.name} style={paint(persona.name)}>
                                <label class="pick">
                                    <input
                                        type="checkbox"
                                        checked={chosen.value.includes(persona.name)}
                                        onChange={() => toggle(persona.name)}
                                    />
                                    <Avatar name={persona.name} />
                                    <span class="pick-words">
                                        <span class="name">{persona.name}</span>
                                        <span class="quiet clip">{persona.system || "the model as it is"}</span>
                                    </span>
                                </label>
                                <button
                                    type="button"
                                    class="bare small"
                                    aria-label={`Edit ${persona.name}`}
                                    onClick={() => {
                                        open.value = { kind: "persona", name: persona.name };
                                    }}
                                >
                                    <Icon name="edit" />
                                </button>
                            </li>
                        ))}
                        {gone.map((name) => (
                            <li key={name}>
                                <label class="pick">
                                    <input type="checkbox" checked onChange={() => toggle(name)} />
                                    <span class="pick-words">
                                        <span class="name">{name}</span>
                                        <span class="quiet">the server has no such persona any more</span>
                                    </span>
                                </label>
                            </li>
                        ))}
                    </ul>
                    {apart.length > 0 && chosen.value.length > 1 && (
                        <p class="hint">
                            {names(apart.map(({ name }) => name))} {apart.length === 1 ? "speaks" : "speak"} with an
                            adapter that touches everything that is read, so the room's past is not shared with the
                            others.
                        </p>
                    )}
                </fieldset>
                <Field
                    label="Scene"
                    control={(id) => (
                        <textarea
                            id={id}
                            rows={4}
                            value={scene.value}
                            disabled={fixed}
                            placeholder="Where it is, what has happened, what all of them know. Read once, shared by all."
                            onInput={(event) => {
                                scene.value = event.currentTarget.value;
                            }}
                        />
                    )}
                ></Field>
                {speaking && <p class="hint">Somebody speaks: the room can be changed when they have finished.</p>}
                {room.gone.value && <p class="hint">The server no longer has this room.</p>}
                {chosen.value.length === 0 && <p class="hint">Nobody is chosen, so nobody can answer.</p>}
                {problem.value !== "" && (
                    <p class="problem" role="alert">
                        <Icon name="alert" />
                        {problem.value}
                    </p>
                )}
                <div class="form-foot">
                    <button type="button" class="plain" onClick={close}>
                        Cancel
                    </button>
                    <button type="submit" class="strong" disabled={fixed || saving.value || chosen.value.length === 0}>
                        {saving.value ? "Saving" : "Save"}
                    </button>
                </div>
            </form>
        </Dialog>
    );
}
