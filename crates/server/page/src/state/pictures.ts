// Pictures that wait to be sent: taken from a drop, the clipboard or a file dialog, measured, and made to fit.

import { signal } from "@preact/signals";
import type { Limits } from "../api/types";

export interface Attached {
    key: string;
    name: string;
    /** `blob:` address for the thumbnail. */
    local: string;
    blob: Blob;
    width: number;
    height: number;
    /** What was done to it, or empty. */
    note: string;
}

export const NAMES: Record<string, string> = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WebP",
    "image/gif": "GIF",
};

/** "PNG, JPEG or WebP", for people. */
export function typeNames(types: readonly string[]): string {
    const names = types.map((type) => NAMES[type] ?? type);
    return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;
}

export function bytes(count: number): string {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    let value = count;
    while (value >= 1000 && unit < units.length - 1) {
        value /= 1024;
        unit++;
    }
    return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(value >= 10 ? 1 : 2)} ${units[unit]}`;
}

let count = 0;

/**
 * Reads and measures a picture, and scales it down when it is larger than the server takes.
 * Throws an `Error` whose message names the picture and says what to do.
 */
export async function attach(file: File, limits: Limits): Promise<Attached> {
    const name = file.name === "" ? "The pasted picture" : file.name;
    if (!limits.image_types.includes(file.type)) {
        throw new Error(`${name} is not a picture that the server reads: send ${typeNames(limits.image_types)}.`);
    }
    let bitmap: ImageBitmap;
    try {
        bitmap = await createImageBitmap(file);
    } catch {
        throw new Error(
            `${name} cannot be read as a picture: it may be damaged. Open and save it again, then send that.`,
        );
    }
    try {
        const { width, height } = bitmap;
        if (file.size <= limits.image_bytes && width * height <= limits.image_pixels) {
            return attached(name, file, width, height, "");
        }
        const smaller = await fit(bitmap, limits);
        if (smaller === undefined) {
            throw new Error(
                `${name} is larger than ${bytes(limits.image_bytes)} and could not be scaled: send a smaller one.`,
            );
        }
        return attached(name, smaller.blob, smaller.width, smaller.height, `scaled down from ${width} × ${height}`);
    } finally {
        bitmap.close();
    }
}

function attached(name: string, blob: Blob, width: number, height: number, note: string): Attached {
    return { key: `picture-${++count}`, name, local: URL.createObjectURL(blob), blob, width, height, note };
}

async function fit(
    bitmap: ImageBitmap,
    limits: Limits,
): Promise<{ blob: Blob; width: number; height: number } | undefined> {
    let scale = Math.min(
        1,
        Math.sqrt(limits.image_pixels / (bitmap.width * bitmap.height)),
        2048 / Math.max(bitmap.width, bitmap.height),
    );
    for (let attempt = 0; attempt < 6; attempt++, scale *= 0.7) {
        const canvas = document.createElement("canvas");
        canvas.width = Math.max(1, Math.round(bitmap.width * scale));
        canvas.height = Math.max(1, Math.round(bitmap.height * scale));
        const context = canvas.getContext("2d");
        if (context === null) return undefined;
        // JPEG knows no transparency, and black would be a surprise.
        context.fillStyle = "#fff";
        context.fillRect(0, 0, canvas.width, canvas.height);
        context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
        const type = limits.image_types.includes("image/jpeg") ? "image/jpeg" : "image/png";
        const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, type, 0.9));
        if (blob !== null && blob.type === type && blob.size <= limits.image_bytes) {
            return { blob, width: canvas.width, height: canvas.height };
        }
    }
    return undefined;
}

/** As a `data:` address, which is how the contract carries it. */
export function asDataUrl(blob: Blob): Promise<string> {
    return new Promise((resolve, reject) => {
        const reader = new FileReader();
        reader.onload = () => resolve(String(reader.result));
        reader.onerror = () => reject(new Error("the picture could not be read"));
        reader.readAsDataURL(blob);
    });
}

/** What is being written in one room. */
export class Draft {
    readonly text = signal("");
    readonly pictures = signal<readonly Attached[]>([]);
    /** Pictures that are being read now. */
    readonly reading = signal(0);
    readonly problem = signal("");

    async add(files: readonly File[], limits: Limits): Promise<void> {
        this.problem.value = "";
        for (const file of files) {
            if (this.pictures.peek().length + this.reading.peek() >= limits.images_per_message) {
                const most = limits.images_per_message;
                this.problem.value = `One message holds ${most === 1 ? "one picture" : `${most} pictures`} at most.`;
                return;
            }
            this.reading.value++;
            try {
                const picture = await attach(file, limits);
                this.pictures.value = [...this.pictures.peek(), picture];
            } catch (error) {
                this.problem.value = error instanceof Error ? error.message : String(error);
            } finally {
                this.reading.value--;
            }
        }
    }

    remove(key: string): void {
        const gone = this.pictures.peek().find((picture) => picture.key === key);
        if (gone === undefined) return;
        URL.revokeObjectURL(gone.local);
        this.pictures.value = this.pictures.peek().filter((picture) => picture !== gone);
        this.problem.value = "";
    }
}
