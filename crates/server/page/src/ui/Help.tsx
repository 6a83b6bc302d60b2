import { shortcuts } from "../state/prefs";
import { close, SHORTCUTS } from "../state/view";
import { Dialog } from "./Dialog";

export function Help() {
    return (
        <Dialog title="Keyboard and help" onClose={close}>
            <div class="form">
                <dl class="keys">
                    <div>
                        <dt>
                            <kbd>Enter</kbd>
                        </dt>
                        <dd>Send the message</dd>
                    </div>
                    <div>
                        <dt>
                            <kbd>Shift</kbd> <kbd>Enter</kbd>
                        </dt>
                        <dd>New line</dd>
                    </div>
                    <div>
                        <dt>
                            <kbd>Esc</kbd>
                        </dt>
                        <dd>Stop all who speak; close what is open</dd>
                    </div>
                    {SHORTCUTS.map(({ key, what }) => (
                        <div key={key} class={shortcuts.value === "off" ? "is-off" : undefined}>
                            <dt>
                                <kbd>{key}</kbd>
                            </dt>
                            <dd>{what}</dd>
                        </div>
                    ))}
                </dl>
                <label class="switch">
                    <input
                        type="checkbox"
                        role="switch"
                        checked={shortcuts.value === "on"}
                        aria-checked={shortcuts.value === "on"}
                        onChange={(event) => {
                            shortcuts.value = event.currentTarget.checked ? "on" : "off";
                        }}
                    />
                    <span>Single keys act when no text is being written</span>
                </label>
                <p class="hint">
                    Figures under a reply are the server’s own: time to the first token, tokens per second, and how much
                    of the prompt was kept from before. While a reply speaks they are as seen from this page.
                </p>
                <p class="hint">
                    The page asks this server only, and nobody else. It keeps how it looks on this device, and an API
                    key until the tab is closed; what is said stays with the server.
                </p>
            </div>
        </Dialog>
    );
}
