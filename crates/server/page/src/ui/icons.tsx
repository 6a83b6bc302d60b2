// The few icons, drawn by hand on a grid of 20. They are decoration: whatever they stand on has its name in words.

const PATHS = {
    menu: "M3 5.5h14M3 10h14M3 14.5h14",
    close: "M5 5l10 10M15 5L5 15",
    plus: "M10 4v12M4 10h12",
    edit: "M12.5 4.5l3 3L7 16H4v-3zM11 6l3 3",
    send: "M10 16V4.5M5 9l5-5 5 5",
    picture: "M3 4.5h14v11H3zM3 13l4-4 4 4 2.5-2.5L17 14M13.2 7.8h.01",
    options: "M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4",
    columns: "M3 4h5.5v12H3zM11.5 4H17v12h-5.5z",
    thread: "M3 4.5h14v4H3zM3 11.5h14v4H3z",
    gauge: "M3.5 14.5a7 7 0 1113 0M10 12.5l3-4.5",
    help: "M7.5 7.5a2.5 2.5 0 113.6 2.2c-.8.4-1.1.9-1.1 1.8M10 14.5h.01M10 18a8 8 0 100-16 8 8 0 000 16z",
    sun: "M10 13.2a3.2 3.2 0 100-6.4 3.2 3.2 0 000 6.4zM10 2v1.8M10 16.2V18M2 10h1.8M16.2 10H18M4.3 4.3l1.3 1.3M14.4 14.4l1.3 1.3M4.3 15.7l1.3-1.3M14.4 5.6l1.3-1.3",
    moon: "M16.5 12A7 7 0 018 3.5a6.8 6.8 0 108.5 8.5z",
    auto: "M10 2.5a7.5 7.5 0 100 15 7.5 7.5 0 000-15zM10 2.5v15M10 6h5.5M10 10h7.4M10 14h5.8",
    chevron: "M7 5l5 5-5 5",
    down: "M10 4v11M5 10.5l5 5 5-5",
    again: "M15.5 8A6 6 0 105 13.5M15.8 3.8V8h-4.2",
    copy: "M7 7h9v9H7zM4 13V4h9",
    check: "M4 10.5l4 4 8-9",
    trash: "M4 6h12M8 6V4h4v2M5.5 6l.8 10.5h7.4L14.5 6M8.5 9v5M11.5 9v5",
    alert: "M10 3l7.5 13.5h-15zM10 8v4M10 14.3h.01",
    thought:
        "M10 3.5c4 0 6.8 2.3 6.8 5.4s-2.8 5.4-6.8 5.4c-.8 0-1.6-.1-2.3-.3L4.5 16l.7-3.1C4 12 3.2 10.5 3.2 8.9c0-3.1 2.8-5.4 6.8-5.4z",
    people: "M7.5 9.5a2.7 2.7 0 100-5.4 2.7 2.7 0 000 5.4zM2.5 16c.3-2.9 2.3-4.5 5-4.5s4.7 1.6 5 4.5M13 4.5a2.5 2.5 0 010 4.8M14.5 11.8c1.7.6 2.8 2 3 4.2",
} as const;

export type IconName = keyof typeof PATHS | "stop";

export function Icon({ name }: { name: IconName }) {
    return (
        <svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
            {name === "stop" ? (
                <rect x="5" y="5" width="10" height="10" rx="1.5" class="filled" />
            ) : (
                <path d={PATHS[name]} />
            )}
        </svg>
    );
}

/** Three voices, one score. */
export function Mark() {
    return (
        <svg class="mark" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
            <path class="mark-a" d="M3 12c3-8 6-8 9 0s6 8 9 0" />
            <path class="mark-b" d="M3 12c3-4 6-4 9 0s6 4 9 0" />
            <path class="mark-c" d="M3 12h18" />
        </svg>
    );
}
