// Numbers as people read them.

export function milliseconds(value: number): string {
    if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
    if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
    return `${value >= 100 ? Math.round(value) : value.toFixed(value >= 10 ? 0 : 1)} ms`;
}

export function rate(value: number): string {
    return value >= 100 ? String(Math.round(value)) : value.toFixed(1);
}

export function percent(share: number): string {
    return `${Math.round(100 * share)} %`;
}

export function count(value: number): string {
    if (value >= 1e9) return `${(value / 1e9).toFixed(value >= 1e10 ? 0 : 1)} billion`;
    if (value >= 1e6) return `${(value / 1e6).toFixed(value >= 1e7 ? 0 : 1)} million`;
    return value.toLocaleString("en");
}

export function tokens(value: number): string {
    return `${value.toLocaleString("en")} ${value === 1 ? "token" : "tokens"}`;
}

export function uptime(seconds: number): string {
    const minutes = Math.floor(seconds / 60);
    const hours = Math.floor(minutes / 60);
    if (hours >= 48) return `${Math.floor(hours / 24)} days`;
    if (hours > 0) return `${hours} h ${minutes % 60} min`;
    return minutes > 0 ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

export function scale(value: number): string {
    return `×${Number(value.toFixed(2))}`;
}

/** "Ada, Ben and Clara" */
export function names(list: readonly string[]): string {
    if (list.length < 2) return list.join("");
    return `${list.slice(0, -1).join(", ")} and ${list.at(-1)}`;
}
