import { render } from "preact";
import { applyTheme } from "./state/prefs";
import { afterRestart, anybodySpeaks, refreshAll, rememberRoom } from "./state/rooms";
import { watchServer } from "./state/server";
import { listenForKeys } from "./state/view";
import { App } from "./ui/App";

applyTheme();
rememberRoom();
listenForKeys();
watchServer({
    busy: anybodySpeaks,
    cameUp: () => void refreshAll(),
    restarted: () => void afterRestart(),
});

const root = document.getElementById("app");
if (root !== null) render(<App />, root);
