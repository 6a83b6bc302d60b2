import { announced } from "../state/announce";
import { engineShown, roomsShown, wideForEngine, wideForRooms } from "../state/prefs";
import { keyWanted } from "../state/server";
import { close, open } from "../state/view";
import { Banner } from "./Banner";
import { Composer, DropZone } from "./Composer";
import { Conversation } from "./Conversation";
import { Dialog } from "./Dialog";
import { EnginePanel } from "./EnginePanel";
import { Header } from "./Header";
import { Help } from "./Help";
import { KeyDialog } from "./KeyDialog";
import { PersonaEditor } from "./PersonaEditor";
import { RoomEditor } from "./RoomEditor";
import { RoomsPanel } from "./RoomsPanel";

export function App() {
    return (
        <>
            <a class="skip" href="#compose">
                Skip to the message
            </a>
            <Header />
            <Banner />
            <div class="body">
                {wideForRooms.value && roomsShown.value === "yes" && (
                    <nav class="side side-left" aria-label="Rooms and personas">
                        <RoomsPanel />
                    </nav>
                )}
                <main>
                    <Conversation />
                    <Composer />
                </main>
                {wideForEngine.value && engineShown.value === "yes" && (
                    <aside class="side side-right" aria-label="Engine">
                        <EnginePanel />
                    </aside>
                )}
            </div>
            <DropZone />
            <Dialogs />
            <Announcer />
        </>
    );
}

function Dialogs() {
    if (keyWanted.value !== "no") return <KeyDialog key={keyWanted.value} />;
    const now = open.value;
    switch (now?.kind) {
        case "persona":
            return <PersonaEditor key={now.name ?? ""} name={now.name} />;
        case "room":
            return <RoomEditor />;
        case "help":
            return <Help />;
        case "rooms":
            return (
                <Dialog title="Rooms and personas" kind="left" onClose={close}>
                    <RoomsPanel />
                </Dialog>
            );
        case "engine":
            return (
                <Dialog title="Engine" kind="right" onClose={close}>
                    <EnginePanel />
                </Dialog>
            );
        default:
            return null;
    }
}

function Announcer() {
    const { text, slot } = announced.value;
    return (
        <div class="hidden">
            <p role="status">{slot === 0 ? text : ""}</p>
            <p role="status">{slot === 1 ? text : ""}</p>
        </div>
    );
}
