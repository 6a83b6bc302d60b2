// The page in a real Chromium, against a server that can be made to fail. Every test also holds that the console stays
// clean, that no other host is asked, and that the content security policy is kept (see `scene`).

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { after, before, test } from "node:test";
import {
    axe,
    card,
    composer,
    DESK,
    eventually,
    give,
    launch,
    PHONE,
    ready,
    say,
    scene,
    shapes,
    shifted,
    silence,
} from "./harness.mjs";
import { HOSTILE, pieces, reply } from "./mock/script.mjs";
import { takeScreenshots } from "./screenshots.mjs";

let browser;
before(async () => {
    browser = await launch();
});
after(() => browser?.close());

const png = async (page, name = "shapes.png", ...size) => ({
    name,
    type: "image/png",
    bytes: await shapes(page, ...size),
});
/** What Chromium writes by itself about an answer that is no success, or none at all. */
const FAILED = [/Failed to load resource/, /net::ERR_/];
const live = (page) => page.locator('article[aria-busy="true"]').count();

test("opens under the strict policy and tells who is there", async (t) => {
    // What the probe below makes the browser say.
    const { page, mock } = await scene(t, browser, { expected: [/policy/i, /TrustedScript/i] });
    await ready(page);
    assert.equal(await page.title(), "Consort");
    const policy = (await page.request.get(page.url())).headers()["content-security-policy"];
    assert.match(policy, /default-src 'self'.*trusted-types 'none'/);
    // The policy bites: an inline script does not run.
    const ran = await page.evaluate(() => {
        try {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.head.append(script);
        } catch {
            // Trusted types refuse it before the policy has to.
        }
        return window.ran === true;
    });
    assert.equal(ran, false);
    await page.getByRole("heading", { name: "Device, as seen" }).waitFor();
    await page.getByText("mock on cpu").waitFor();
    assert.deepEqual([...new Set(mock.requests.filter((line) => !line.includes("/v1/")))].sort(), [
        "GET /",
        "GET /app.css",
        "GET /app.js",
    ]);
});

test("streams side by side, with figures, and nothing moves", async (t) => {
    const { page, mock } = await scene(t, browser, { mock: { pace: 0.4 } });
    await ready(page);
    await page.waitForTimeout(600);
    await page.evaluate(() => {
        window.shifts.length = 0;
    });
    await say(page, "What do you see?");
    await eventually("three speak at once", async () => {
        const texts = await page.locator('article[aria-busy="true"] .prose').allTextContents();
        return texts.filter((text) => text.length > 10).length === 3;
    });
    const columns = await page
        .locator(".side-by-side article")
        .evaluateAll((cards) => cards.map((one) => one.getBoundingClientRect()).map(({ x, y }) => [x, y]));
    assert.equal(columns.length, 3);
    assert.ok(columns[0][0] < columns[1][0] && columns[1][0] < columns[2][0], "beside each other");
    assert.equal(new Set(columns.map(([, y]) => y)).size, 1, "at one height");
    assert.equal(await card(page, "Ben").locator("header .adapters").textContent(), "with pirate");
    await silence(page);
    for (const name of ["Ada", "Ben", "Clara"]) {
        const figures = await card(page, name).locator(".figures dd").allTextContents();
        assert.match(figures[0], /^\d+(\.\d+)? m?s$/, `${name}: ${figures}`);
        assert.match(figures[1], /^\d+(\.\d)?$/, `${name}: ${figures}`);
        assert.match(figures[2], /^\d+ %$/, `${name}: ${figures}`);
    }
    const server = [...mock.rooms.values()][0].messages;
    const clara = server.find(({ from }) => from === "Clara");
    assert.equal(
        await card(page, "Clara").locator(".figures dd").nth(1).innerText(),
        String(
            clara.timings.tokens_per_second < 100
                ? clara.timings.tokens_per_second.toFixed(1)
                : Math.round(clara.timings.tokens_per_second),
        ),
    );
    assert.equal(await card(page, "Ben").locator(".prose strong").first().innerText(), "yellow star");
    assert.equal(await card(page, "Ada").locator(".prose ol li").count(), 3);
    assert.equal(await card(page, "Ben").locator(".prose blockquote").count(), 1);
    const moved = await shifted(page);
    const sum = moved.reduce((total, { value }) => total + value, 0);
    assert.ok(sum < 0.01, `the layout moved by ${sum}: ${JSON.stringify(moved)}`);
    // The first message names the room.
    await page.getByRole("button", { name: "What do you see?", exact: false }).first().waitFor();
});

test("in turn: one after another, in one thread", async (t) => {
    const { page } = await scene(t, browser, { mock: { pace: 0.25 } });
    await ready(page);
    await page.waitForTimeout(600);
    await page.evaluate(() => {
        window.shifts.length = 0;
    });
    await page.getByRole("button", { name: "In turn" }).click();
    await say(page, "What do you see?");
    const next = page.locator(".next");
    await next.getByText("Then").waitFor();
    assert.deepEqual(await next.getByRole("button").allTextContents(), ["Ben", "Clara"]);
    assert.equal(await live(page), 1, "one speaks at a time");
    await eventually("Ben speaks", async () => (await card(page, "Ben").locator(".prose").count()) === 1);
    assert.equal(await card(page, "Ada").getAttribute("aria-busy"), "false", "Ada has finished before");
    await silence(page);
    const places = await page
        .locator(".in-turn article")
        .evaluateAll((cards) => cards.map((one) => one.getBoundingClientRect()).map(({ x, y }) => [x, y]));
    assert.equal(new Set(places.map(([x]) => x)).size, 1, "in one column");
    const sum = (await shifted(page)).reduce((total, { value }) => total + value, 0);
    assert.ok(sum < 0.01, `the layout moved by ${sum}: ${JSON.stringify(await shifted(page))}`);
    assert.ok(places[0][1] < places[1][1] && places[1][1] < places[2][1]);
    await page.reload();
    await page.locator(".in-turn article").first().waitFor();
    assert.equal(
        await page.getByRole("button", { name: "In turn" }).getAttribute("aria-pressed"),
        "true",
        "the room remembers",
    );
});

test("stops one, and the others go on", async (t) => {
    const { page, mock } = await scene(t, browser, { mock: { pace: 0.5 } });
    await ready(page);
    await say(page, "What do you see?");
    await eventually("Ben speaks", async () => (await card(page, "Ben").locator(".prose").count()) === 1);
    await page.getByRole("button", { name: "Stop Ben" }).click();
    await card(page, "Ben").getByText("Stopped", { exact: true }).waitFor();
    assert.equal(await live(page), 2, "the others speak on");
    await silence(page);
    const [, ben] = [...mock.rooms.values()][0].messages
        .filter(({ from }) => from !== "user")
        .sort((a, b) => a.from.localeCompare(b.from));
    assert.equal(ben.stopped, true);
    assert.ok(ben.content.length > 0 && ben.content.length < reply("Ben", "see", false).text.length);
    assert.equal(await card(page, "Clara").getByText("Stopped", { exact: true }).count(), 0);
    assert.match(await card(page, "Clara").locator(".prose").innerText(), /Shall I have it framed\?$/);
});

test("stops all: by the button, by Escape, and one who still waits", async (t) => {
    const { page, mock } = await scene(t, browser, { mock: { pace: 0.5, places: 2 } });
    await ready(page);
    await say(page, "Tell me something long");
    await eventually(
        "somebody speaks",
        async () => (await page.locator('article[aria-busy="true"] .prose').count()) > 0,
    );
    await card(page, "Clara").getByText("Waiting for a place").waitFor();
    await page.getByRole("button", { name: "Stop all" }).click();
    await silence(page);
    assert.equal(await page.getByText("Stopped", { exact: true }).count(), 3);
    await card(page, "Clara").getByText("Stopped before the first word.").waitFor();
    await say(page, "And something long again");
    await eventually(
        "somebody speaks",
        async () => (await page.locator('.is-newest article[aria-busy="true"] .prose').count()) > 0,
    );
    await page.keyboard.press("Escape");
    await silence(page);
    assert.equal(await page.locator(".is-newest").getByText("Stopped", { exact: true }).count(), 3);
    assert.equal(mock.running, 0);
});

test("reasoning is folded, and stays as it was put", async (t) => {
    const { page } = await scene(t, browser, { mock: { pace: 0.4 } });
    await ready(page);
    await say(page, "What do you see?");
    const ada = card(page, "Ada");
    await ada.getByText("Thinking…").waitFor();
    assert.equal(await ada.locator(".reasoning-text").count(), 0);
    await ada.getByText("Thinking…").click();
    await ada.locator(".reasoning-text").waitFor();
    await silence(page);
    await ada.getByText(/^Reasoned for/).waitFor();
    assert.match(await ada.locator(".reasoning-text").innerText(), /There are three shapes/);
    assert.ok(
        !(await ada.locator(".prose").innerText()).includes("There are three shapes"),
        "what is thought is not said",
    );
    assert.equal(await card(page, "Ben").locator(".reasoning").count(), 0);
});

test("options: nobody thinks, and a limit that is told", async (t) => {
    const { page } = await scene(t, browser);
    await ready(page);
    await page.getByLabel("Options").click();
    await page.getByLabel("Thinking", { exact: true }).selectOption("off");
    await page.getByLabel("Most tokens").fill("5");
    await page.keyboard.press("Escape");
    await say(page, "What do you see?");
    await silence(page);
    assert.equal(await page.locator(".reasoning").count(), 0);
    assert.equal(await page.getByText("At its limit").count(), 3);
});

test("Enter sends, Shift+Enter does not, and an empty message goes nowhere", async (t) => {
    const { page, mock } = await scene(t, browser);
    await ready(page);
    await composer(page).press("Enter");
    await composer(page).fill("   ");
    await composer(page).press("Enter");
    assert.equal(mock.rooms.size, 0);
    await composer(page).fill("");
    await composer(page).pressSequentially("one");
    await composer(page).press("Shift+Enter");
    await composer(page).pressSequentially("two");
    await composer(page).press("Enter");
    await silence(page);
    assert.equal([...mock.rooms.values()][0].messages[0].content, "one\ntwo");
    assert.equal(await composer(page).inputValue(), "");
});

test("who answers, and who is in the room, and where it is", async (t) => {
    const { page, mock } = await scene(t, browser);
    await ready(page);
    await page.getByRole("button", { name: "Ben", exact: true }).click();
    await say(page, "Only the two of you");
    await silence(page);
    const room = [...mock.rooms.values()][0];
    assert.deepEqual(room.messages.map(({ from }) => from).sort(), ["Ada", "Clara", "user"]);
    await page.getByRole("button", { name: "People and scene of this room" }).click();
    const dialog = page.getByRole("dialog", { name: "This room" });
    await dialog.getByRole("checkbox", { name: /Clara/ }).uncheck();
    await dialog.getByLabel("Scene").fill("An observatory at night.");
    await dialog.getByRole("button", { name: "Save" }).click();
    await dialog.waitFor({ state: "detached" });
    assert.deepEqual([room.participants, room.scene], [["Ada", "Ben"], "An observatory at night."]);
    assert.equal(
        await page.getByRole("group", { name: "Who answers" }).getByRole("button", { name: "Clara" }).count(),
        0,
    );
});

test("pictures: dropped, pasted, picked, shown, removed, sent, and there after a reload", async (t) => {
    const { page, mock } = await scene(t, browser);
    await ready(page);
    await give(page, "dragenter", [await png(page)]);
    await page.getByText("Drop the picture").waitFor();
    await give(page, "drop", [await png(page, "dropped.png")]);
    await page.getByText("dropped.png").waitFor();
    assert.equal(await page.getByText("Drop the picture").count(), 0);
    await page.getByText("480 × 320").first().waitFor();
    await give(page, "paste", [await png(page, "pasted.png", 100, 60)]);
    await page.getByText("pasted.png").waitFor();
    await page
        .locator('input[type="file"]')
        .setInputFiles({ name: "picked.png", mimeType: "image/png", buffer: await shapes(page, 64, 64) });
    await page.getByText("picked.png").waitFor();
    await page.getByRole("button", { name: "Remove pasted.png" }).click();
    assert.equal(await page.getByText("pasted.png").count(), 0);
    await page.getByRole("button", { name: "Send", exact: true }).click();
    await silence(page);
    const room = [...mock.rooms.values()][0];
    assert.deepEqual(
        room.messages[0].images.map(({ width, height }) => [width, height]),
        [
            [480, 320],
            [64, 64],
        ],
    );
    assert.equal(room.images.size, 2);
    assert.match(await card(page, "Ada").innerText(), /yellow star/, "a picture needs no words");
    await page.reload();
    const image = page.getByRole("img", { name: "Picture, 480 × 320" });
    await image.waitFor();
    await eventually("it is fetched", () =>
        image.evaluate((element) => element.complete && element.naturalWidth === 480),
    );
    assert.ok(mock.requests.some((line) => /^GET \/v1\/rooms\/.*\/images\//.test(line)));
});

test("pictures that cannot be sent are refused where they are, and large ones are made to fit", async (t) => {
    const limits = {
        image_bytes: 30_000,
        image_pixels: 50_000_000,
        images_per_message: 2,
        content_bytes: 40,
        image_types: ["image/png", "image/jpeg"],
    };
    const { page, mock } = await scene(t, browser, {
        before: (server) => {
            server.limits = limits;
        },
    });
    await ready(page);
    const alert = page.locator(".composer [role=alert]");
    await give(page, "drop", [{ name: "notes.txt", type: "text/plain", bytes: Buffer.from("hello") }]);
    await eventually("the type is refused", async () => /notes\.txt.*PNG or JPEG/.test(await alert.innerText()));
    await give(page, "drop", [{ name: "broken.png", type: "image/png", bytes: Buffer.from("not a picture") }]);
    await eventually("the damage is told", async () => /broken\.png.*damaged/.test(await alert.innerText()));
    const noise = await page.evaluate(() => {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 600;
        const pen = canvas.getContext("2d");
        const data = pen.createImageData(600, 600);
        for (let at = 0; at < data.data.length; at++) data.data[at] = at % 4 === 3 ? 255 : (at * 2_654_435_761) >>> 24;
        pen.putImageData(data, 0, 0);
        return canvas.toDataURL("image/png").split(",")[1];
    });
    const large = { name: "large.png", type: "image/png", bytes: Buffer.from(noise, "base64") };
    assert.ok(large.bytes.length > limits.image_bytes);
    await give(page, "drop", [large]);
    await page.getByText("scaled down from 600 × 600").waitFor();
    await give(page, "drop", [await png(page, "b.png", 32, 32), await png(page, "c.png", 32, 32)]);
    await eventually("there are two at most", async () => /2 pictures at most/.test(await alert.innerText()));
    await say(page, "Fits");
    await silence(page);
    const [image] = [...[...mock.rooms.values()][0].images.values()];
    assert.equal(image.type, "image/jpeg");
    assert.ok(image.bytes.length <= limits.image_bytes);
    await composer(page).fill("This message is longer than forty bytes, by a little.");
    await eventually("the length is told", async () => /longer than 40 B/.test(await alert.innerText()));
    assert.ok(await page.getByRole("button", { name: "Send", exact: true }).isDisabled());
});

test("a persona is edited, made and deleted", async (t) => {
    const { page, mock } = await scene(t, browser, { expected: FAILED });
    await ready(page);
    await page.getByRole("button", { name: "Edit Clara" }).click();
    const dialog = page.getByRole("dialog", { name: "Clara" });
    await dialog.getByLabel("System prompt").fill("Braces {{ are refused.");
    await dialog.getByRole("button", { name: "Save" }).click();
    await dialog.getByText("may not hold template braces").waitFor();
    assert.equal(await dialog.getByLabel("System prompt").getAttribute("aria-invalid"), "true");
    await dialog.getByLabel("System prompt").fill("You are Clara, and you rhyme.");
    await dialog.getByLabel("Scale of butler").focus();
    for (let step = 0; step < 4; step++) await page.keyboard.press("ArrowRight");
    await dialog.getByRole("checkbox", { name: /cartographer/ }).check();
    await dialog.getByLabel("Priority").selectOption("background");
    await dialog.getByRole("switch", { name: "Reasons before it answers" }).check();
    await dialog.getByRole("radio", { name: "violet" }).check();
    await dialog.getByRole("button", { name: "Save" }).click();
    await dialog.waitFor({ state: "detached" });
    assert.deepEqual(mock.personas.get("Clara"), {
        name: "Clara",
        system: "You are Clara, and you rhyme.",
        adapters: [
            { id: "butler", scale: 1 },
            { id: "cartographer", scale: 1 },
        ],
        thinking: true,
        priority: "background",
        color: "#7c3aed",
    });
    await page.getByRole("button", { name: "New persona" }).first().click();
    const fresh = page.getByRole("dialog", { name: "New persona" });
    await fresh.getByLabel("Name").fill("two words");
    await fresh.getByRole("button", { name: "Save" }).click();
    await fresh.getByText("A name is 1 to 64 letters").waitFor();
    await fresh.getByLabel("Name").fill("Dora");
    await fresh.getByRole("button", { name: "Save" }).click();
    await fresh.waitFor({ state: "detached" });
    assert.ok(mock.personas.has("Dora"));
    await page.getByRole("group", { name: "Who answers" }).getByRole("button", { name: "Dora" }).waitFor();
    await page.getByRole("button", { name: "Edit Dora" }).click();
    await page.getByRole("button", { name: "Delete", exact: true }).click();
    await page.getByRole("button", { name: "Really delete Dora" }).click();
    await page.getByRole("dialog").waitFor({ state: "detached" });
    assert.ok(!mock.personas.has("Dora"));
    await page.getByRole("button", { name: "Edit Ada" }).click();
    await page.getByLabel("System prompt").fill("changed");
    await page.keyboard.press("Escape");
    await page.getByText("What you changed is not saved").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    assert.notEqual(mock.personas.get("Ada").system, "changed");
});

test("a reply that fails says so in its place, and can be asked for again", async (t) => {
    const { page, mock } = await scene(t, browser);
    await ready(page);
    mock.fail.set("Ada", {
        early: true,
        body: { message: "The queue is full.", type: "overloaded_error", code: "queue_full" },
    });
    mock.fail.set("Ben", {
        after: 6,
        body: { message: "The adapter pirate was unloaded.", type: "server_error", code: "adapter_not_found" },
    });
    await say(page, "What do you see?");
    await silence(page);
    await card(page, "Ada").getByText("The queue is full.").waitFor();
    await card(page, "Ada").getByText("Too much is going on at once").waitFor();
    await card(page, "Ben").getByText("Edit the persona and pick an adapter").waitFor();
    assert.match(await card(page, "Ben").locator(".prose").innerText(), /^Arr/, "what was said stays");
    assert.equal(await card(page, "Clara").locator(".trouble").count(), 0);
    await page.getByRole("button", { name: "Ask Ben again" }).click();
    await eventually("Ben answers whole", async () => /home by Thursday/.test(await card(page, "Ben").innerText()));
    await silence(page);
    assert.equal(await card(page, "Ben").locator(".trouble").count(), 0);
    await page.getByText("An earlier answer").click();
    await page.getByText("The adapter pirate was unloaded.").waitFor();
    assert.equal(
        [...mock.rooms.values()][0].messages.filter(({ from }) => from === "user").length,
        1,
        "asking again says nothing new",
    );
});

test("429 with Retry-After: it waits, and sends again by itself", async (t) => {
    const { page, mock } = await scene(t, browser, { expected: FAILED });
    await ready(page);
    mock.refuse.push({
        status: 429,
        message: "The queue is full.",
        type: "overloaded_error",
        code: "queue_full",
        retryAfter: 1,
    });
    await say(page, "Hello there");
    await page.getByText("Not sent.").waitFor();
    await page.getByText(/Sending again in/).waitFor();
    assert.equal(await page.locator("article").count(), 0, "nobody seems to answer");
    await page.locator("article").first().waitFor();
    await silence(page);
    assert.equal(await page.getByText("Not sent.").count(), 0);
    assert.deepEqual(
        [...mock.rooms.values()][0].messages.filter(({ from }) => from === "user").map(({ content }) => content),
        ["Hello there"],
    );
});

test("503 without a time: it can be sent by hand, or taken back", async (t) => {
    const { page, mock } = await scene(t, browser, { expected: FAILED });
    await ready(page);
    const refusal = { status: 503, message: "The server is shutting down.", type: "server_error" };
    mock.refuse.push(refusal, refusal);
    await say(page, "Hello there");
    await page.getByText("The server is shutting down.").waitFor();
    await page.getByRole("button", { name: "Take back" }).click();
    assert.equal(await composer(page).inputValue(), "Hello there");
    assert.equal(await page.getByText("Not sent.").count(), 0);
    await composer(page).press("Enter");
    await page.getByRole("button", { name: "Send now" }).click();
    await silence(page);
    assert.equal(await page.locator("article").count(), 3);
});

test("a stream that is cut is mended from what the server kept", async (t) => {
    const { page, mock } = await scene(t, browser, { mock: { pace: 0.3 }, expected: FAILED });
    await ready(page);
    mock.cutAfter = 40;
    await say(page, "What do you see?");
    await page.getByText("Cut off: the connection broke.").first().waitFor();
    await eventually(
        "it is read again",
        async () => (await page.getByText("Cut off: the connection broke.").count()) === 3,
    );
    const kept = [...mock.rooms.values()][0].messages.find(({ from }) => from === "Clara").content;
    assert.ok(kept.length > 5);
    assert.equal(
        (await card(page, "Clara").locator(".prose").innerText()).replace(/\s+/g, " "),
        kept.trim().replace(/\s+/g, " "),
    );
    await page.getByRole("button", { name: "Ask Clara again" }).click();
    await silence(page);
    assert.match(await card(page, "Clara").innerText(), /framed/);
});

test("the server goes away in the middle and comes back with its rooms", async (t) => {
    const { page, mock } = await scene(t, browser, { mock: { pace: 0.6 }, expected: FAILED });
    await ready(page);
    await say(page, "What do you see?");
    await eventually(
        "somebody speaks",
        async () => (await page.locator('article[aria-busy="true"] .prose').count()) > 0,
    );
    await mock.down();
    await page.getByText(/The server does not answer\. Looking again in/).waitFor();
    await page
        .getByText("The connection broke: reading the room again")
        .first()
        .waitFor({ timeout: 2000 })
        .catch(() => {});
    await mock.up();
    await page.getByText("Looking again in").waitFor({ state: "detached", timeout: 15_000 });
    await silence(page);
    await say(page, "And now?");
    await silence(page);
    assert.match(await card(page, "Clara").innerText(), /Quite so, sir/);
});

test("the server comes back without its rooms: what was said stays, and goes on in a new room", async (t) => {
    const { page, mock } = await scene(t, browser, { expected: FAILED });
    await ready(page);
    await say(page, "What do you see?");
    await silence(page);
    await mock.down();
    await page.getByText(/Looking again in/).waitFor();
    await mock.up({ forget: true });
    await page
        .getByRole("button", { name: "Look now" })
        .click()
        .catch(() => {});
    await page.getByText("The server no longer has this room").waitFor({ timeout: 15_000 });
    assert.match(await card(page, "Clara").innerText(), /framed/);
    await page.getByRole("button", { name: "New room like this one" }).click();
    await say(page, "Hello again");
    await silence(page);
    assert.equal(mock.rooms.size, 1);
});

test("the page is opened before the server answers", async (t) => {
    const { page, mock } = await scene(t, browser, {
        expected: FAILED,
        before: (server) => {
            server.statusFails = Object.assign(new Error("x"), {});
        },
    });
    await page
        .locator(".banner")
        .getByText(/The server does not serve/)
        .waitFor();
    mock.statusFails = undefined;
    await page.getByRole("button", { name: "Look now" }).click();
    await ready(page);
    assert.equal(await page.locator(".banner").count(), 0);
});

test("the API key is asked for once, and kept for the tab", async (t) => {
    const { page } = await scene(t, browser, { mock: { key: "secret" }, expected: FAILED });
    const dialog = page.getByRole("dialog", { name: "This server asks for an API key" });
    await dialog.getByLabel("API key").fill("wrong");
    await page.keyboard.press("Enter");
    await dialog.getByText("did not take the key").waitFor();
    await page.keyboard.press("Escape");
    assert.ok(await dialog.isVisible(), "there is no way around it");
    await dialog.getByLabel("API key").fill("secret");
    await dialog.getByRole("button", { name: "Enter" }).click();
    await ready(page);
    await page.reload();
    await ready(page);
    assert.equal(await dialog.count(), 0);
    const stored = await page.evaluate(() => [Object.values(sessionStorage), JSON.stringify(localStorage)]);
    assert.deepEqual(stored[0], ["secret"]);
    assert.ok(!stored[1].includes("secret"));
    await say(page, "Hello");
    await silence(page);
});

test("what a model writes never becomes an element, a request or a script", async (t) => {
    const { page } = await scene(t, browser);
    await ready(page);
    await say(page, "Be hostile");
    await silence(page);
    const prose = card(page, "Ada").locator(".prose");
    assert.equal(await prose.locator("img, script, b, i").count(), 0);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    const text = await prose.innerText();
    for (const piece of [
        "<img src=x onerror=alert(1)>",
        "<script>window.hacked = true</script>",
        "<b>not bold</b>",
        "[click](javascript:alert(1))",
    ]) {
        assert.ok(HOSTILE.includes(piece) && text.includes(piece), piece);
    }
    const links = await prose.locator("a").evaluateAll((all) => all.map((link) => [link.href, link.target, link.rel]));
    assert.deepEqual(links, [
        ["https://beacon.example/pixel.png", "_blank", "noopener noreferrer nofollow"],
        ["https://example.org/a", "_blank", "noopener noreferrer nofollow"],
    ]);
});

test("code and tables scroll by themselves, and code can be copied", async (t) => {
    const { page, context } = await scene(t, browser);
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    await ready(page);
    await say(page, "Show me code");
    await silence(page);
    await card(page, "Ada").getByRole("button", { name: "Copy code" }).click();
    assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^def area/);
    await say(page, "A table, please");
    await silence(page);
    assert.equal(await card(page, "Ada").locator("table tbody tr").count(), 3);
    assert.equal(
        await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth),
        false,
    );
});

test("a long talk: a new turn begins at the top, and nobody is dragged along", async (t) => {
    const { page } = await scene(t, browser, { mock: { pace: 0.02 } });
    await ready(page);
    await say(page, "Something long");
    await silence(page);
    await say(page, "Something long again");
    const top = () =>
        page
            .locator(".is-newest")
            .evaluate((turn) =>
                Math.round(turn.getBoundingClientRect().top - turn.closest(".scroller").getBoundingClientRect().top),
            );
    await eventually("the new turn comes to the top", async () => Math.abs(await top()) <= 2);
    await silence(page);
    assert.ok(Math.abs(await top()) <= 2, `and stays there: ${await top()}`);
    await page.getByRole("button", { name: "To the end" }).click();
    const rest = () => page.locator(".scroller").evaluate((box) => box.scrollHeight - box.clientHeight - box.scrollTop);
    await eventually("it is at the end", async () => (await rest()) < 2);
    await page.getByRole("button", { name: "To the end" }).waitFor({ state: "detached" });
});

test("rooms: another one while the first speaks on, and deleting", async (t) => {
    const { page, mock } = await scene(t, browser, { mock: { pace: 0.5 } });
    await ready(page);
    await say(page, "What do you see?");
    await eventually(
        "somebody speaks",
        async () => (await page.locator('article[aria-busy="true"] .prose').count()) > 0,
    );
    await page.getByRole("button", { name: "New room" }).click();
    await ready(page);
    await say(page, "Hello from the second room");
    await silence(page);
    const rooms = page.getByRole("navigation", { name: "Rooms and personas" });
    await rooms.getByRole("button", { name: /^What do you see\?/ }).click();
    await silence(page);
    assert.match(await card(page, "Clara").innerText(), /framed/, "leaving a room stops nobody");
    await rooms.getByRole("button", { name: "Delete room: Hello from the second room" }).click();
    await rooms.getByRole("button", { name: "Delete", exact: true }).click();
    await eventually("it is gone", () => mock.rooms.size === 1);
    await rooms.getByText("Hello from the second room").waitFor({ state: "detached" });
});

test("the engine: evidence, placements, live charts", async (t) => {
    const { page } = await scene(t, browser, { mock: { pace: 0.5 } });
    await ready(page);
    const engine = page.getByRole("complementary", { name: "Engine" });
    await engine.getByText("scripted replies: no model runs").waitFor();
    await engine.getByText(/Known because the engine has kernels for this device only/).waitFor();
    assert.equal(await engine.getByText("vision tower").count(), 1);
    assert.ok(!(await engine.getByText("vision tower").isVisible()));
    await engine.getByText("4 placements").click();
    assert.ok(await engine.getByText("vision tower").isVisible());
    await say(page, "What do you see?");
    const chart = engine.getByRole("img", { name: /^Tokens per second/ });
    await eventually("the chart moves", async () => {
        const label = await chart.getAttribute("aria-label");
        return (
            Number(/at most ([\d.]+)/.exec(label)?.[1]) > 5 &&
            (await chart.locator("path").first().getAttribute("d")).split("L").length > 4
        );
    });
    await engine.getByRole("img", { name: /^Replies running and waiting/ }).waitFor();
    await engine.getByRole("img", { name: /^Memory: now [\d.]+ MiB/ }).waitFor();
    await engine.getByRole("img", { name: /^Prompt reused: now \d+ %/ }).waitFor();
    await silence(page);
});

test("by keyboard alone", async (t) => {
    const { page, mock } = await scene(t, browser, { mock: { pace: 0.4 } });
    await ready(page);
    const focused = () =>
        page.evaluate(
            () => document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.textContent ?? "",
        );
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "Skip to the message");
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.equal(outline, "solid", "focus is seen");
    await page.keyboard.press("Enter");
    assert.equal(await focused(), "Message");
    await page.keyboard.press("Shift+Tab");
    assert.equal(await focused(), "People and scene of this room");
    await page.keyboard.press("Shift+Tab");
    assert.equal(await focused(), "Clara");
    await page.keyboard.press("Space");
    await page.keyboard.press("/");
    assert.equal(await focused(), "Message");
    await page.keyboard.type("What do you see? m / ?");
    assert.equal(await composer(page).inputValue(), "What do you see? m / ?", "letters are letters in a text field");
    await page.keyboard.press("Enter");
    await eventually(
        "somebody speaks",
        async () => (await page.locator('article[aria-busy="true"] .prose').count()) > 0,
    );
    assert.equal(await focused(), "Message", "the focus stays");
    await page.locator(".scroller").focus();
    for (let step = 0; step < 12 && (await focused()) !== "Stop Ben"; step++) await page.keyboard.press("Tab");
    assert.equal(await focused(), "Stop Ben");
    await page.keyboard.press("Enter");
    await card(page, "Ben").getByText("Stopped", { exact: true }).waitFor();
    await page.locator(".scroller").focus();
    await page.keyboard.press("s");
    await silence(page);
    assert.equal(
        [...mock.rooms.values()][0].messages.some(({ from }) => from === "Clara"),
        false,
    );
    await page.locator(".scroller").focus();
    await page.keyboard.press("m");
    assert.equal(await page.getByRole("button", { name: "In turn" }).getAttribute("aria-pressed"), "true");
    await page.keyboard.press("?");
    const help = page.getByRole("dialog", { name: "Keyboard and help" });
    await help.waitFor();
    for (let step = 0; step < 8; step++) {
        await page.keyboard.press("Tab");
        assert.ok(
            await page.evaluate(
                () => document.activeElement === document.body || document.activeElement.closest("dialog") !== null,
            ),
            "the focus stays within",
        );
    }
    await help.getByRole("switch").focus();
    await page.keyboard.press("Space");
    await page.keyboard.press("Escape");
    await help.waitFor({ state: "detached" });
    assert.equal(await focused(), "Conversation", "the focus comes back");
    await page.keyboard.press("m");
    assert.equal(
        await page.getByRole("button", { name: "In turn" }).getAttribute("aria-pressed"),
        "true",
        "single keys are off",
    );
});

test("replies are announced when they are whole, not word by word", async (t) => {
    const { page } = await scene(t, browser, { mock: { pace: 0.3 } });
    await ready(page);
    await page.evaluate(() => {
        window.told = [];
        for (const region of document.querySelectorAll("[role=status]")) {
            new MutationObserver(() => {
                if (region.textContent) window.told.push(region.textContent);
            }).observe(region, { childList: true, characterData: true, subtree: true });
        }
    });
    await say(page, "Hello");
    await silence(page);
    await page.waitForTimeout(400);
    const told = (await page.evaluate(() => window.told)).join(" ");
    for (const words of ["Ada: That depends", "Ben: Arr, so it be, matey.", "Clara: Quite so, sir."])
        assert.ok(told.includes(words), `${words} in ${told}`);
    assert.ok((await page.evaluate(() => window.told.length)) <= 4);
});

test("on a phone: nothing sticks out, everything is reached", async (t) => {
    const { page, mock } = await scene(t, browser, {
        context: { viewport: PHONE, hasTouch: true, isMobile: true, deviceScaleFactor: 2 },
        mock: { pace: 0.3 },
    });
    await ready(page);
    const fits = async (where) =>
        assert.ok(
            await page.evaluate(() => document.documentElement.scrollWidth <= 360),
            `${where} is not wider than the phone`,
        );
    await fits("the empty room");
    await page.evaluate(() => {
        window.shifts.length = 0;
    });
    await say(page, "What do you see?");
    await silence(page);
    await fits("the talk");
    const sum = (await shifted(page)).reduce((total, { value }) => total + value, 0);
    assert.ok(sum < 0.01, `the layout moved by ${sum}: ${JSON.stringify(await shifted(page))}`);
    const widths = await page
        .locator(".side-by-side article")
        .evaluateAll((cards) => cards.map((one) => one.getBoundingClientRect().width));
    assert.ok(
        widths.every((width) => width > 260 && width < 360),
        `cards are as wide as the phone lets them: ${widths}`,
    );
    await page.locator(".side-by-side").evaluate((row) => row.scrollTo({ left: 9999 }));
    await eventually("Clara is swiped to", () =>
        card(page, "Clara").evaluate((one) => one.getBoundingClientRect().right <= 361),
    );
    await page.getByRole("button", { name: "Rooms and personas" }).tap();
    const rooms = page.getByRole("dialog", { name: "Rooms and personas" });
    await rooms.getByRole("button", { name: "Edit Ada" }).tap();
    await page.getByRole("dialog", { name: "Ada" }).getByRole("button", { name: "Save" }).waitFor();
    await fits("the editor");
    await page.getByRole("button", { name: "Close" }).tap();
    await page.getByRole("button", { name: /^Engine/ }).tap();
    await page.getByRole("dialog", { name: "Engine" }).getByText("mock on cpu").waitFor();
    await fits("the engine");
    await page.getByRole("button", { name: "Close" }).tap();
    await page.getByRole("button", { name: "In turn" }).tap();
    await fits("in turn");
    const small = await page
        .locator("button:visible, summary:visible, a:visible")
        .evaluateAll((all) =>
            all
                .filter((one) => one.getBoundingClientRect().height < 24 || one.getBoundingClientRect().width < 24)
                .map((one) => one.outerHTML.slice(0, 90)),
        );
    assert.deepEqual(
        small.filter((html) => !html.includes("skip")),
        [],
        "everything is large enough for a finger",
    );
    assert.equal(mock.rooms.size, 1);
});

test("dark and light: as the system is, or as chosen, and remembered", async (t) => {
    const { page } = await scene(t, browser, { context: { colorScheme: "dark" } });
    await ready(page);
    const light = () =>
        page.evaluate(() => {
            const [red = 0, green = 0, blue = 0] = getComputedStyle(document.body)
                .backgroundColor.match(/[\d.]+/g)
                .map(Number);
            return red + green + blue > 380;
        });
    assert.equal(await light(), false);
    await page.emulateMedia({ colorScheme: "light" });
    assert.equal(await light(), true);
    await page.getByRole("button", { name: "Colours: as the system is" }).first().click();
    await page.getByRole("button", { name: "Colours: light" }).first().click();
    await page.getByRole("button", { name: "Colours: dark" }).first().waitFor();
    assert.equal(await light(), false);
    await page.reload();
    await ready(page);
    assert.equal(await light(), false);
});

for (const colorScheme of ["light", "dark"]) {
    test(`axe finds nothing serious, ${colorScheme}`, async (t) => {
        const { page, mock } = await scene(t, browser, {
            context: { colorScheme, reducedMotion: "reduce" },
            expected: FAILED,
        });
        await ready(page);
        const found = [];
        const minor = new Set();
        let checked = 0;
        const look = async (where) => {
            const result = await axe(page, where);
            found.push(...result.lines);
            for (const id of result.minor) minor.add(id);
            checked += result.checked;
        };
        await look("the empty room");
        mock.pace = 0.5;
        await give(page, "drop", [await png(page)]);
        await page.getByText("shapes.png").waitFor();
        await look("a picture to send");
        await say(page, "What do you see?");
        await eventually(
            "somebody speaks",
            async () => (await page.locator('article[aria-busy="true"] .prose').count()) > 1,
        );
        await look("speaking");
        mock.pace = 0.1;
        await silence(page);
        mock.fail.set("Ben", {
            after: 3,
            body: { message: "The adapter pirate was unloaded.", type: "server_error", code: "adapter_not_found" },
        });
        await say(page, "Show me code");
        await silence(page);
        await look("code and an error");
        mock.refuse.push({ status: 503, message: "Not now.", type: "server_error" });
        await say(page, "A table");
        await page.getByText("Not now.").waitFor();
        await look("not sent");
        await page.getByRole("button", { name: "Send now" }).click();
        await silence(page);
        await page.getByRole("button", { name: "In turn" }).click();
        await look("in turn");
        await page.getByRole("button", { name: "Edit Ben" }).click();
        await look("the persona's editor");
        await page.getByRole("button", { name: "Close" }).click();
        await page.getByRole("button", { name: "People and scene of this room" }).click();
        await look("the room's editor");
        await page.getByRole("button", { name: "Close" }).click();
        await page.getByRole("button", { name: "Keyboard and help" }).first().click();
        await look("help");
        await page.getByRole("button", { name: "Close" }).click();
        await page.getByLabel("Options").click();
        await look("options");
        await page.setViewportSize(PHONE);
        await page.getByRole("button", { name: "Rooms and personas" }).click();
        await look("the phone's rooms");
        await page.getByRole("button", { name: "Close" }).click();
        await page.getByRole("button", { name: /^Engine/ }).click();
        await look("the phone's engine");
        await page.getByRole("button", { name: "Close" }).click();
        await mock.down();
        await page.setViewportSize(DESK);
        await page.getByText(/Looking again in/).waitFor({ timeout: 15_000 });
        await look("the server is away");
        t.diagnostic(
            `axe: ${checked} rules passed in 13 states; minor or moderate: ${[...minor].join(", ") || "none"}`,
        );
        assert.deepEqual(found, []);
    });
}

test("the pace of the mock is believable, and long replies stay quick to draw", async (t) => {
    const { page } = await scene(t, browser, { mock: { pace: 0.01 } });
    await ready(page);
    const words = pieces(reply("Ada", "long", false).text).length;
    assert.ok(words > 500);
    await page.evaluate(() => {
        window.longest = 0;
        let last = performance.now();
        const tick = () => {
            const now = performance.now();
            window.longest = Math.max(window.longest, now - last);
            last = now;
            requestAnimationFrame(tick);
        };
        requestAnimationFrame(tick);
    });
    await say(page, "Something long");
    await silence(page, 30_000);
    const longest = await page.evaluate(() => window.longest);
    t.diagnostic(`longest frame while three replies of ${words} pieces stream: ${Math.round(longest)} ms`);
    assert.ok(longest < 1000, `a frame took ${longest} ms`);
});

test("the screenshots of the documentation", async (t) => {
    const folder = new URL("../../../../docs/screenshots/", import.meta.url).pathname;
    await mkdir(folder, { recursive: true });
    const sizes = await takeScreenshots(browser, folder);
    for (const [name, size] of Object.entries(sizes)) {
        t.diagnostic(`${name}: ${size} bytes`);
        assert.ok(size < 500_000, `${name} is ${size} bytes`);
    }
});
