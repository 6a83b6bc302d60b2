// Which dialog is open, and what the keyboard does everywhere.

import { signal } from "@preact/signals";
import { engineShown, roomsShown, shortcuts, theme, wideForEngine, wideForRooms } from "./prefs";
import { current, leaveForFresh, setMode } from "./rooms";
import { stopAll } from "./talk";

export type Open =
    | { kind: "persona"; name: string | undefined }
    | { kind: "room" }
    | { kind: "help" }
    | { kind: "rooms" }
    | { kind: "engine" };

export const open = signal<Open | undefined>(undefined);

export const close = () => {
    open.value = undefined;
};

/** Beside the talk where there is room, over it where there is not. */
export function toggleRooms(): void {
    if (wideForRooms.peek()) roomsShown.value = roomsShown.peek() === "yes" ? "no" : "yes";
    else open.value = open.peek()?.kind === "rooms" ? undefined : { kind: "rooms" };
}

export function toggleEngine(): void {
    if (wideForEngine.peek()) engineShown.value = engineShown.peek() === "yes" ? "no" : "yes";
    else open.value = open.peek()?.kind === "engine" ? undefined : { kind: "engine" };
}

export function nextTheme(): void {
    theme.value = theme.peek() === "auto" ? "light" : theme.peek() === "light" ? "dark" : "auto";
}

export function newRoom(): void {
    leaveForFresh();
    if (open.peek()?.kind === "rooms") close();
    focusComposer();
}

export function focusComposer(): void {
    document.getElementById("compose")?.focus();
}

/** For a button that goes away by being pressed: by keyboard, one goes on from the message. A touch opens no keyboard. */
export function keepFocus(event: MouseEvent): void {
    if (event.detail === 0) focusComposer();
}

export interface Shortcut {
    key: string;
    what: string;
    act: () => void;
}

/** Single keys, which act outside of text fields only and can be turned off. */
export const SHORTCUTS: readonly Shortcut[] = [
    { key: "/", what: "Write a message", act: focusComposer },
    { key: "s", what: "Stop all who speak", act: () => stopAll(current.peek()) },
    { key: "p", what: "Choose who answers", act: () => document.querySelector<HTMLElement>(".who button")?.focus() },
    {
        key: "m",
        what: "Side by side, or in turn",
        act: () => setMode(current.peek(), current.peek().mode.peek() === "together" ? "in_turn" : "together"),
    },
    { key: "n", what: "New room", act: newRoom },
    {
        key: "i",
        what: "People and scene of this room",
        act: () => {
            open.value = { kind: "room" };
        },
    },
    { key: "r", what: "Rooms and personas", act: toggleRooms },
    { key: "e", what: "Engine: device, queue, memory", act: toggleEngine },
    { key: "t", what: "Dark, light, or as the system is", act: nextTheme },
    {
        key: "?",
        what: "This list",
        act: () => {
            open.value = { kind: "help" };
        },
    },
];

function inText(target: EventTarget | null): boolean {
    if (!(target instanceof HTMLElement)) return false;
    if (target.isContentEditable || target.matches("textarea, select")) return true;
    return target instanceof HTMLInputElement && !["checkbox", "radio", "range", "button"].includes(target.type);
}

export function listenForKeys(): void {
    addEventListener("keydown", (event) => {
        if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]") !== null) return;
        if (event.key === "Escape") {
            stopAll(current.peek());
            return;
        }
        if (shortcuts.peek() === "off" || event.ctrlKey || event.metaKey || event.altKey || inText(event.target))
            return;
        const shortcut = SHORTCUTS.find(({ key }) => key === event.key);
        if (shortcut === undefined) return;
        event.preventDefault();
        shortcut.act();
    });
}
