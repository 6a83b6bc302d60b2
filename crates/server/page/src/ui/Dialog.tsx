import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { Icon } from "./icons";

interface Props {
    title: string;
    /** Asked by Escape, the cross and a click beside; may say no by doing nothing. */
    onClose: () => void;
    kind?: "box" | "left" | "right";
    /** A dialog that wants an answer has no cross. */
    closable?: boolean;
    children: ComponentChildren;
}

/** The browser's own modal dialog: it traps focus and hides the rest from screen readers by itself. */
export function Dialog({ title, onClose, kind = "box", closable = true, children }: Props) {
    const ref = useRef<HTMLDialogElement>(null);
    const id = useId();
    useEffect(() => {
        const opener = document.activeElement;
        const dialog = ref.current;
        dialog?.showModal();
        return () => {
            dialog?.close();
            // What opened it may have gone with a drawer; the talk is always there.
            const back =
                opener instanceof HTMLElement && opener.isConnected && opener !== document.body ? opener : undefined;
            (back ?? document.querySelector<HTMLElement>(".scroller"))?.focus();
        };
    }, []);
    return (
        <dialog
            ref={ref}
            class={`dialog dialog-${kind}`}
            aria-labelledby={id}
            onCancel={(event) => {
                event.preventDefault();
                onClose();
            }}
            onKeyDown={(event) => {
                // A second Escape would close the dialog unasked in some browsers.
                if (event.key === "Escape") {
                    event.preventDefault();
                    event.stopPropagation();
                    onClose();
                }
            }}
            onClick={(event) => {
                if (event.target === ref.current && closable) onClose();
            }}
        >
            <div class="dialog-inner">
                <header class="dialog-head">
                    <h2 id={id}>{title}</h2>
                    {closable && (
                        <button type="button" class="bare" aria-label="Close" onClick={onClose}>
                            <Icon name="close" />
                        </button>
                    )}
                </header>
                {children}
            </div>
        </dialog>
    );
}
