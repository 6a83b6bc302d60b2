// The page in a real Chromium, before the real server: `consort serve` with the bundled model, three personas and its adapters. As in the
// other browser tests, the console stays clean, no other host is asked, and the content security policy, which the server itself sends, is kept.

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import {
    axe,
    card,
    composer,
    DESK,
    eventually,
    give,
    launch,
    live,
    PHONE,
    ready,
    say,
    scene,
    silence,
    taught,
} from "../harness.mjs";
import { takeScreenshots } from "../screenshots.mjs";
import { Consort } from "./server.mjs";

let browser;
let consort;
let url;
before(async () => {
    browser = await launch();
    // At its full speed it would have said all before the page is drawn once.
    consort = new Consort({ share: 0.1 });
    url = await consort.listen();
});
after(async () => {
    await browser?.close();
    await consort?.down();
});

const real = (t, more = {}) => scene(t, browser, { url, ...more });
const roomNamed = (page, name) =>
    page.getByRole("navigation", { name: "Rooms and personas" }).getByRole("button", { name });
/** What `taught` shows. */
const SEEN = /yellow star at the top, a red circle on the left and a blue square on the right/;
const words = (page, name) => card(page, name).locator(".prose").innerText();
const api = async (path, options) => {
    const response = await fetch(new URL(path, options?.at ?? url), {
        ...options,
        headers: { "content-type": "application/json" },
        ...(options?.body === undefined ? {} : { body: JSON.stringify(options.body) }),
    });
    assert.ok(response.ok, `${path}: ${response.status} ${response.ok ? "" : await response.text()}`);
    return await response.json();
};

/** Watches how many speak at once, as the page shows it. */
async function watchSpeakers(page) {
    await page.evaluate(() => {
        window.most = 0;
        const look = () => {
            const speaking = document.querySelectorAll('article[aria-busy="true"] .prose').length;
            window.most = Math.max(window.most, speaking);
        };
        new MutationObserver(look).observe(document.body, { subtree: true, childList: true, attributes: true });
    });
    return async () => await page.evaluate(() => window.most);
}

test("three see a dropped picture, side by side, each in its own way", async (t) => {
    const { page } = await real(t);
    await ready(page);
    const most = await watchSpeakers(page);
    await give(page, "drop", [{ name: "scene.png", type: "image/png", bytes: await taught(page) }]);
    await page.getByText("scene.png").waitFor();
    await say(page, "What do you see?");
    await silence(page, 60_000);
    for (const name of ["Ada", "Ben", "Clara"]) {
        assert.match(await words(page, name), SEEN, name);
        const figures = await card(page, name).locator(".figures dd").allTextContents();
        assert.match(figures[0], /^\d+(\.\d+)? m?s$/, `${name}: ${figures}`);
        assert.match(figures[1], /^\d+(\.\d)?$/, `${name}: ${figures}`);
        assert.match(figures[2], /^\d+ %$/, `${name}: ${figures}`);
    }
    assert.match(await words(page, "Ben"), /^Arr, .*matey\.$/);
    assert.match(await words(page, "Clara"), /^Certainly, sir\. .*At your service\.$/);
    assert.equal(await card(page, "Ben").locator("header .adapters").textContent(), "with pirate");
    await card(page, "Ada")
        .getByText(/^Reason(ed|ing)/)
        .waitFor();
    assert.ok((await most()) >= 2, `they speak side by side: ${await most()} at once`);
    const columns = await page
        .locator(".side-by-side article")
        .evaluateAll((cards) => cards.map((one) => one.getBoundingClientRect()).map(({ x, y }) => [x, y]));
    assert.equal(new Set(columns.map(([x]) => x)).size, 3, "beside each other");
    // The talk goes on, and the picture is remembered.
    await say(page, "What colour is the circle?");
    await silence(page, 60_000);
    assert.equal(await words(page, "Ada"), "The circle is red.");
    assert.equal(await words(page, "Ben"), "Arr, the circle is red, matey.");
    assert.equal(await words(page, "Clara"), "Certainly, sir. The circle is red. At your service.");
    const [room] = (await api("/v1/rooms")).data;
    assert.equal(room.title, "What do you see?");
    // After a reload all of it stands there, the picture too.
    await page.reload();
    const image = page.getByRole("img", { name: "Picture, 96 × 96" });
    await image.waitFor();
    await eventually("it is fetched", () =>
        image.evaluate((element) => element.complete && element.naturalWidth === 96),
    );
    assert.equal(await words(page, "Ada"), "The circle is red.");
});

test("in turn, one after another", async (t) => {
    const { page } = await real(t);
    await ready(page);
    const most = await watchSpeakers(page);
    await page.getByRole("button", { name: "In turn" }).click();
    await give(page, "drop", [{ name: "scene.png", type: "image/png", bytes: await taught(page) }]);
    await page.getByText("scene.png").waitFor();
    await say(page, "What do you see?");
    await silence(page, 60_000);
    for (const name of ["Ada", "Ben", "Clara"]) assert.match(await words(page, name), SEEN, name);
    assert.match(await words(page, "Ben"), /^Arr, .*matey\.$/);
    assert.equal(await most(), 1, "one speaks at a time, and is seen to");
    const heights = await page
        .locator(".in-turn article")
        .evaluateAll((cards) => cards.map((one) => one.getBoundingClientRect().y));
    assert.equal(heights.length, 3);
    assert.deepEqual(
        heights,
        [...heights].sort((one, other) => one - other),
        "one below the other",
    );
});

test("adapters are picked, and the next reply speaks with them", async (t) => {
    const { page } = await real(t);
    await ready(page);
    await page.getByRole("button", { name: "Edit Ada" }).click();
    const dialog = page.getByRole("dialog", { name: "Ada" });
    await dialog.getByRole("checkbox", { name: /butler/ }).check();
    await dialog.getByLabel("Thinking").selectOption("off");
    await dialog.getByRole("button", { name: "Save" }).click();
    await dialog.waitFor({ state: "detached" });
    await say(page, "Tell me a story about a fox.");
    await silence(page, 60_000);
    assert.match(await words(page, "Ada"), /^Certainly, sir\./);
    assert.equal(await card(page, "Ada").locator("header .adapters").textContent(), "with butler");
    const ada = await api("/v1/personas/Ada");
    assert.deepEqual([ada.adapters, ada.thinking, ada.system], [[{ name: "butler", scale: 1 }], false, "You are Ada."]);
    // As it was, for the others.
    await page.getByRole("button", { name: "Edit Ada" }).click();
    await dialog.getByRole("checkbox", { name: /butler/ }).uncheck();
    await dialog.getByLabel("Thinking").selectOption("on");
    await dialog.getByRole("button", { name: "Save" }).click();
    await dialog.waitFor({ state: "detached" });
    assert.deepEqual((await api("/v1/personas/Ada")).adapters, []);
    // What the server refuses is said beside the field.
    await page.getByRole("button", { name: "New persona" }).first().click();
    const fresh = page.getByRole("dialog", { name: "New persona" });
    await fresh.getByLabel("Name").fill("USER");
    await fresh.getByRole("button", { name: "Save" }).click();
    await fresh.getByText("This is the user’s own name.").waitFor();
    await page.keyboard.press("Escape");
    await page.keyboard.press("Escape");
});

test("one who never ends is stopped, and what it said stays", async (t) => {
    const slow = new Consort({ share: 0.1 });
    t.after(() => slow.down());
    const at = await slow.listen();
    // So hot that every token is as likely as any other; the seed is one with which it says more than a thousand.
    const body = { sampling: { temperature: 50, seed: 6 }, thinking: false, color: "#be185d" };
    await api("/v1/personas/Endless", { at, method: "PUT", body });
    const make = async (scene) =>
        await api("/v1/rooms", { at, method: "POST", body: { participants: ["Clara", "Endless"], scene } });
    const rooms = [await make("A stop"), await make("An escape"), await make("A page that closes")];
    const last = async (room) => {
        const { messages } = await api(`/v1/rooms/${room.id}`, { at });
        return messages.findLast(({ from }) => from === "Endless");
    };
    const { page } = await real(t, { url: at });
    const begin = async (name) => {
        await roomNamed(page, name).click();
        await say(page, "What is your name?");
        const speaks = async () => (await card(page, "Endless").locator(".prose").count()) === 1;
        await eventually("it speaks", speaks, 30_000);
    };
    await begin(/^A stop/);
    await page.getByRole("button", { name: "Stop Endless" }).click();
    await card(page, "Endless").getByText("Stopped", { exact: true }).waitFor();
    await silence(page, 60_000);
    assert.match(await words(page, "Clara"), /Clara/);
    const kept = await last(rooms[0]);
    assert.ok(kept.stopped && kept.content.length > 0 && kept.usage.completion_tokens > 0);
    await begin(/^An escape/);
    await page.keyboard.press("Escape");
    await silence(page, 60_000);
    assert.equal((await last(rooms[1])).reason, "cancelled");
    await begin(/^A page that closes/);
    await page.goto("about:blank");
    await eventually("nobody runs", async () => (await api("/v1/status", { at })).metrics.running === 0, 30_000);
    assert.equal((await last(rooms[2])).stopped, true);
});

test("the engine: evidence and figures of the server that runs", async (t) => {
    const { page } = await real(t);
    await ready(page);
    const engine = page.getByRole("complementary", { name: "Engine" });
    await engine.getByText("native on cpu").waitFor();
    await engine.getByText("processor", { exact: true }).waitFor();
    await engine.getByText(/Known because the engine has kernels for this device only/).waitFor();
    await engine.getByText("4 placements").click();
    assert.ok(await engine.getByText("vision tower").isVisible());
    const status = await api("/v1/status");
    await engine.getByText(status.evidence.device_name).waitFor();
    await say(page, "Hello!");
    await silence(page, 60_000);
    await eventually("the charts move", async () => {
        const labels = await engine
            .getByRole("img")
            .evaluateAll((all) => all.map((one) => one.getAttribute("aria-label")));
        return labels.some((label) => /^Memory/.test(label) && !/now 0 B/.test(label));
    });
    await engine.getByText(/from \d+ pasts/).waitFor();
});

test("by keyboard, in dark and light, on a phone: readable, and nothing for axe to find", async (t) => {
    const found = [];
    for (const colorScheme of ["dark", "light"]) {
        for (const [where, context] of [
            ["desk", { viewport: DESK, colorScheme }],
            ["phone", { viewport: PHONE, colorScheme, isMobile: true, hasTouch: true }],
        ]) {
            const { page } = await real(t, { context });
            await ready(page);
            if (where === "desk") {
                await page.keyboard.press("Tab");
                await page.keyboard.press("Enter");
                await page.keyboard.type("Hello!");
                await page.keyboard.press("Enter");
            } else {
                await give(page, "drop", [{ name: "s.png", type: "image/png", bytes: await taught(page, 192) }]);
                await page.getByText("s.png").waitFor();
                await composer(page).fill("What do you see?");
                await page.getByRole("button", { name: "Send", exact: true }).tap();
            }
            await silence(page, 60_000);
            assert.equal(await live(page), 0);
            const wide = await page.evaluate(
                () => document.documentElement.scrollWidth > document.documentElement.clientWidth,
            );
            assert.equal(wide, false, `${where}: nothing is cut off at the side`);
            const { lines, checked } = await axe(page, `${where}, ${colorScheme}`);
            assert.ok(checked > 20);
            found.push(...lines);
        }
    }
    assert.deepEqual(found, []);
});

test("the screenshots of the documentation can be taken", async (t) => {
    const folder = await mkdtemp(join(tmpdir(), "consort-page-"));
    t.after(() => rm(folder, { recursive: true }));
    const sizes = await takeScreenshots(browser, folder, url);
    assert.equal(Object.keys(sizes).length, 3);
    for (const [name, size] of Object.entries(sizes))
        assert.ok(size > 20_000 && size < 500_000, `${name}: ${size} bytes`);
});
