import { engineShown, roomsShown, theme, wideForEngine, wideForRooms } from "../state/prefs";
import { current, entries, setMode } from "../state/rooms";
import { connection, status } from "../state/server";
import { nextTheme, open, toggleEngine, toggleRooms } from "../state/view";
import { rate } from "./format";
import { Icon, Mark } from "./icons";

export function Header() {
    const room = current.value;
    const id = room.id.value;
    // A room that the server has lost is still called by what was said in it.
    const words = room.turns.value.find((turn) => turn.words !== undefined)?.words?.content.slice(0, 80) ?? "";
    const title = entries.value.find((entry) => entry.id === id)?.title ?? (words || (id === "" ? "New room" : "Room"));
    const roomsOpen = wideForRooms.value ? roomsShown.value === "yes" : open.value?.kind === "rooms";
    return (
        <header class="top">
            <button
                type="button"
                class="bare"
                aria-label="Rooms and personas"
                aria-expanded={roomsOpen}
                title="Rooms and personas (R)"
                onClick={toggleRooms}
            >
                <Icon name="menu" />
            </button>
            <span class="brand">
                <Mark />
                <span>Consort</span>
            </span>
            <h1 class="room-title">
                <button
                    type="button"
                    class="bare room-name"
                    title="People and scene (I)"
                    onClick={() => {
                        open.value = { kind: "room" };
                    }}
                >
                    <span>{title}</span>
                    <Icon name="edit" />
                </button>
            </h1>
            <fieldset class="segmented" aria-label="How they answer">
                <button
                    type="button"
                    aria-pressed={room.mode.value === "together"}
                    title="Side by side: all at once (M)"
                    onClick={() => setMode(room, "together")}
                >
                    <Icon name="columns" />
                    <span>Side by side</span>
                </button>
                <button
                    type="button"
                    aria-pressed={room.mode.value === "in_turn"}
                    title="In turn: one after another, each hears those before (M)"
                    onClick={() => setMode(room, "in_turn")}
                >
                    <Icon name="thread" />
                    <span>In turn</span>
                </button>
            </fieldset>
            <EngineButton />
            <span class="top-more">
                <ThemeButton />
                <HelpButton />
            </span>
        </header>
    );
}

function EngineButton() {
    const shown = wideForEngine.value ? engineShown.value === "yes" : open.value?.kind === "engine";
    const now = status.value;
    const state = connection.value.kind;
    const speed = now?.metrics.tokens_per_second ?? 0;
    return (
        <button
            type="button"
            class="bare engine-button"
            aria-expanded={shown}
            title="Device, queue and memory (E)"
            onClick={toggleEngine}
        >
            <span class={`lamp lamp-${state}`} aria-hidden="true" />
            <span class="hidden">Engine: </span>
            <span class="engine-words">
                {state === "down" ? "no answer" : (now?.evidence.device ?? "connecting")}
                {state === "up" && speed > 0 ? <span class="engine-speed">{rate(speed)} tokens/s</span> : null}
            </span>
            <Icon name="gauge" />
        </button>
    );
}

export function ThemeButton() {
    const now = theme.value;
    const words = now === "auto" ? "as the system is" : now;
    return (
        <button
            type="button"
            class="bare"
            aria-label={`Colours: ${words}`}
            title={`Colours: ${words} (T)`}
            onClick={nextTheme}
        >
            <Icon name={now === "auto" ? "auto" : now === "light" ? "sun" : "moon"} />
        </button>
    );
}

export function HelpButton() {
    return (
        <button
            type="button"
            class="bare"
            aria-label="Keyboard and help"
            title="Keyboard and help (?)"
            onClick={() => {
                open.value = { kind: "help" };
            }}
        >
            <Icon name="help" />
        </button>
    );
}
