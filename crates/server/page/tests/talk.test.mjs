// Talking in a real Chromium: sending, streaming, stopping, rooms, figures. Every browser test also holds that the console stays clean, that no
// other host is asked, and that the content security policy is kept (see `scene`).

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { card, composer, eventually, launch, live, ready, say, scene, shifted, silence } from "./harness.mjs";
import { HOSTILE, reply } from "./mock/script.mjs";

let browser;
before(async () => {
    browser = await launch();
});
after(() => browser?.close());

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
