import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

interface Props {
    label: string;
    /** The control; it takes the id, so that the label names it and nothing else. */
    control: (id: string) => ComponentChildren;
    children?: ComponentChildren;
}

/** A control below its name, and whatever is to be said about it below that. */
export function Field({ label, control, children }: Props) {
    const id = useId();
    return (
        <div class="part">
            <label class="label" for={id}>
                {label}
            </label>
            {control(id)}
            {children}
        </div>
    );
}
