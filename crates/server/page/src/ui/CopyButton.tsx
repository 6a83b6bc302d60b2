import { useSignal } from "@preact/signals";
import { announce } from "../state/announce";
import { Icon } from "./icons";

/** The clipboard exists in secure contexts only; where it does not, neither does the button. */
export function CopyButton({ text, what }: { text: string; what: string }) {
    const done = useSignal(false);
    if (navigator.clipboard === undefined) return null;
    const copy = async () => {
        try {
            await navigator.clipboard.writeText(text);
        } catch {
            announce("The browser does not let the page copy.");
            return;
        }
        done.value = true;
        announce("Copied.");
        setTimeout(() => {
            done.value = false;
        }, 1500);
    };
    return (
        <button type="button" class="bare small" aria-label={`Copy ${what}`} title={`Copy ${what}`} onClick={copy}>
            <Icon name={done.value ? "check" : "copy"} />
        </button>
    );
}
