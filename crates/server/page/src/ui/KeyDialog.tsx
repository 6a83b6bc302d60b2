import { useSignal } from "@preact/signals";
import { useId } from "preact/hooks";
import { giveKey, keyWanted } from "../state/server";
import { Dialog } from "./Dialog";
import { Icon } from "./icons";

/** Asked when the server says 401, and never before. */
export function KeyDialog() {
    const key = useSignal("");
    const id = useId();
    const wrong = keyWanted.value === "wrong";
    return (
        <Dialog title="This server asks for an API key" onClose={() => {}} closable={false}>
            <form
                class="form"
                onSubmit={(event) => {
                    event.preventDefault();
                    if (key.value.trim() !== "") giveKey(key.value.trim());
                }}
            >
                {wrong && (
                    <p class="problem" role="alert">
                        <Icon name="alert" />
                        The server did not take the key that was given.
                    </p>
                )}
                <div class="part">
                    <label class="label" for={id}>
                        API key
                    </label>
                    <input
                        id={id}
                        type="password"
                        autocomplete="off"
                        spellcheck={false}
                        value={key.value}
                        aria-invalid={wrong}
                        onInput={(event) => {
                            key.value = event.currentTarget.value;
                        }}
                    />
                    <span class="quiet">
                        It was set when the server was started. This tab keeps it until it is closed.
                    </span>
                </div>
                <div class="form-foot">
                    <span class="spread" />
                    <button type="submit" class="strong" disabled={key.value.trim() === ""}>
                        Enter
                    </button>
                </div>
            </form>
        </Dialog>
    );
}
