// What the server says and is told. One type for each object of the HTTP contract; nothing here runs.

export type Priority = "realtime" | "interactive" | "background" | "batch";
export type Mode = "together" | "in_turn";
export type Reason = "stop" | "length" | "cancelled" | "error";

export interface AdapterUse {
    name: string;
    scale: number;
}

export interface Persona {
    name: string;
    system: string;
    adapters: AdapterUse[];
    /** `null`: as the model's template has it. */
    thinking: boolean | null;
    priority: Priority;
    resident?: boolean;
    color?: string;
}

export interface Adapter {
    name: string;
    resident: boolean;
    pinned: boolean;
    /** The rest is known once it was loaded. */
    bytes?: number;
    rank?: number;
    activated?: boolean;
}

export interface ErrorBody {
    message: string;
    type: string;
    param?: string | null;
    code?: string | null;
}

export interface Usage {
    prompt_tokens: number;
    reused_tokens: number;
    completion_tokens: number;
}

export interface Timings {
    first_token_ms: number;
    tokens_per_second: number;
}

export interface Picture {
    id: string;
    width: number;
    height: number;
}

export interface Message {
    id: string;
    from: string;
    content: string;
    reasoning?: string;
    images?: Picture[];
    usage?: Usage;
    timings?: Timings;
    stopped?: boolean;
    reason?: Reason;
    error?: ErrorBody;
    adapters?: AdapterUse[];
}

export interface Room {
    id: string;
    /** What the list shows of it: its messages are left out there. */
    title?: string;
    participants: string[];
    scene: string;
    mode: Mode;
    messages: Message[];
    created: number;
}

export interface NewRoom {
    participants: string[];
    scene?: string;
    mode?: Mode;
}

export interface Say {
    content: string;
    images?: string[];
    respond?: "all" | string[];
    mode?: Mode;
    max_tokens?: number;
    thinking?: boolean;
}

/** What a room's stream carries, by the name of the event. */
export type RoomEvent =
    | { kind: "message"; message: Message }
    | {
          kind: "started";
          persona: string;
          message_id: string;
          prompt_tokens: number;
          reused_tokens: number;
          adapters?: AdapterUse[];
      }
    | { kind: "delta"; persona: string; message_id: string; text?: string; reasoning?: string; tokens?: number }
    | {
          kind: "finished";
          persona: string;
          message_id: string;
          reason: Reason;
          usage?: Usage;
          timings?: Timings;
          error?: ErrorBody;
      }
    | { kind: "done" };

export interface Placement {
    component: string;
    device: string;
    allowed: boolean;
}

export interface Evidence {
    backend: string;
    device: string;
    device_name: string;
    established_by: string;
    placements: Placement[];
}

export const MEMORY_KINDS = ["weights", "kv_cache", "states", "adapters", "images", "scratch"] as const;
export type MemoryKind = (typeof MEMORY_KINDS)[number];

export interface Limits {
    image_bytes: number;
    image_pixels: number;
    images_per_message: number;
    content_bytes: number;
    image_types: string[];
}

export interface Status {
    model: {
        name: string;
        architecture: string;
        parameters: number;
        context_length: number;
        vision: boolean;
    };
    evidence: Evidence;
    metrics: {
        running: number;
        queued: number;
        /** `null`, here and below: not measured yet, or not told by the backend. */
        tokens_per_second: number | null;
        reused_share: number | null;
        cached_pasts: number;
        memory: Record<MemoryKind, number> | null;
    };
    limits?: Partial<Limits>;
    uptime_seconds: number;
}
