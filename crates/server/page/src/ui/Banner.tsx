import { askNow, connection } from "../state/server";
import { Countdown } from "./Countdown";
import { Icon } from "./icons";

/** Tells that the server is away, and when the page looks again. Announced once, where the state is kept. */
export function Banner() {
    const now = connection.value;
    if (now.kind !== "down") return null;
    return (
        <section class="banner" aria-label="Connection">
            <Icon name="alert" />
            <p>
                {now.message} Looking again in <Countdown until={now.retryAt} />
            </p>
            <button type="button" class="plain small" onClick={askNow}>
                Look now
            </button>
        </section>
    );
}
