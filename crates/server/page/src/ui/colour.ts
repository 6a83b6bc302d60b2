// A colour for each persona: its own, or one of eight that white letters can stand on.

import { computed } from "@preact/signals";
import { personas } from "../state/rooms";

export const PALETTE = [
    { name: "blue", value: "#1d4ed8" },
    { name: "rust", value: "#b93c0b" },
    { name: "teal", value: "#0f766e" },
    { name: "violet", value: "#7c3aed" },
    { name: "rose", value: "#be185d" },
    { name: "olive", value: "#4d7c0f" },
    { name: "ochre", value: "#a16207" },
    { name: "slate", value: "#475569" },
] as const;

/** The last is for who wants it: nobody gets grey by chance. */
const VIVID = PALETTE.length - 1;

const HEX = /^#[0-9a-f]{6}$/i;

const chosen = computed(() => {
    const byName = new Map<string, string>();
    const taken = new Set<string>();
    for (const persona of personas.value) {
        if (persona.color !== undefined && HEX.test(persona.color)) {
            byName.set(persona.name, persona.color);
            taken.add(persona.color.toLowerCase());
        }
    }
    for (const { name } of personas.value) {
        if (byName.has(name)) continue;
        const colour = pick(name, taken);
        byName.set(name, colour);
        taken.add(colour);
    }
    return byName;
});

/** The name chooses, so that a persona keeps its colour; the next free one when that is taken. */
function pick(name: string, taken: ReadonlySet<string>): string {
    let hash = 0;
    for (const character of name) hash = (hash * 31 + (character.codePointAt(0) ?? 0)) >>> 0;
    for (let step = 0; step < VIVID; step++) {
        const colour = PALETTE[(hash + step) % VIVID];
        if (colour !== undefined && !taken.has(colour.value)) return colour.value;
    }
    return PALETTE[hash % VIVID]?.value ?? PALETTE[0].value;
}

export function colourOf(name: string): string {
    return chosen.value.get(name) ?? pick(name, new Set());
}

/** Letters that can be read on a colour (WCAG's relative luminance). */
export function inkOn(colour: string): string {
    const channel = (at: number) => {
        const value = Number.parseInt(colour.slice(at, at + 2), 16) / 255;
        return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    };
    const luminance = 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
    return luminance > 0.18 ? "#111" : "#fff";
}

/** For a `style` property: goes through the style object, which a strict content security policy allows. */
export function paint(name: string): Record<string, string> {
    return paintAs(colourOf(name));
}

export function paintAs(colour: string): Record<string, string> {
    return { "--persona": colour, "--on-persona": inkOn(colour) };
}
