// What the page remembers on this device: how it looks, never what was said.

import { effect, type Signal, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";

function remembered<T extends string>(name: string, fallback: T, allowed?: readonly T[]): Signal<T> {
    const key = `consort.${name}`;
    let start: T = fallback;
    try {
        const stored = localStorage.getItem(key) as T | null;
        if (stored !== null && (allowed === undefined || allowed.includes(stored))) start = stored;
    } catch {
        // Storage may be forbidden; the default serves.
    }
    const value = signal<T>(start);
    let first = true;
    effect(() => {
        const now = value.value;
        if (first) {
            first = false;
            return;
        }
        try {
            localStorage.setItem(key, now);
        } catch {
            // As above.
        }
    });
    return value;
}

export const theme = remembered<Theme>("theme", "auto", ["auto", "light", "dark"]);
export const roomsShown = remembered<"yes" | "no">("rooms", "yes", ["yes", "no"]);
export const engineShown = remembered<"yes" | "no">("engine", "yes", ["yes", "no"]);
export const shortcuts = remembered<"on" | "off">("shortcuts", "on", ["on", "off"]);
export const lastRoom = remembered<string>("room", "");

/** The theme is an attribute of the root; without one the style sheet asks the system. */
export function applyTheme(): void {
    effect(() => {
        if (theme.value === "auto") delete document.documentElement.dataset.theme;
        else document.documentElement.dataset.theme = theme.value;
    });
}

const matches = (query: string) => {
    const list = matchMedia(query);
    const value = signal(list.matches);
    list.addEventListener("change", () => {
        value.value = list.matches;
    });
    return value;
};

/** There is room for the list of rooms beside the talk. */
export const wideForRooms = matches("(min-width: 52rem)");
/** There is room for the engine's panel, too. */
export const wideForEngine = matches("(min-width: 78rem)");
