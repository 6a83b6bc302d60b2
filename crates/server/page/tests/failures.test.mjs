// Everything that breaks, and what the page makes of it.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { card, composer, eventually, FAILED, launch, ready, say, scene, silence } from "./harness.mjs";

let browser;
before(async () => {
    browser = await launch();
});
after(() => browser?.close());

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
