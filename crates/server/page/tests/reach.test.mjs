// Who reaches the page, and with what: keyboard, screen readers, phones, dark and light.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import {
    axe,
    card,
    composer,
    DESK,
    eventually,
    FAILED,
    give,
    launch,
    PHONE,
    png,
    ready,
    say,
    scene,
    shifted,
    silence,
} from "./harness.mjs";
import { pieces, reply } from "./mock/script.mjs";

let browser;
before(async () => {
    browser = await launch();
});
after(() => browser?.close());

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
    const within = await card(page, "Ben").evaluate((one) => one === document.activeElement);
    assert.ok(within, "the button has gone, the focus has not");
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
    await say(page, "What do you see?");
    await silence(page);
    await page.waitForTimeout(400);
    const told = (await page.evaluate(() => window.told)).join(" ");
    for (const words of ["Ada: Three shapes", "Ben: Arr, a fine sight!", "Clara: Certainly, sir."])
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
