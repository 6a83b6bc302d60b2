// What the browser tests share: Debian's Chromium, a page that must stay clean, and a few words for what a person does.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import process, { env } from "node:process";
import { chromium } from "playwright-core";
import { Mock } from "./mock/server.mjs";

const require = createRequire(import.meta.url);
const AXE = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");

export const DESK = { width: 1440, height: 900 };
export const PHONE = { width: 360, height: 740 };

export function launch() {
    return chromium.launch({
        executablePath: env.CHROMIUM ?? "/usr/bin/chromium",
        // Chromium's sandbox refuses to run as root, which is what a container usually is.
        args: process.getuid?.() === 0 ? ["--no-sandbox"] : [],
    });
}

/**
 * Opens the page against a mock of its own, or against the server at `url`. When the test ends, nothing may stand in the console, no other host may have
 * been asked, and no promise of the content security policy may have been broken. `expected` are patterns of what the
 * browser itself writes about failures that the test makes.
 */
export async function scene(t, browser, wanted = {}) {
    const { mock: wishes = {}, context: more = {}, expected = [], before } = wanted;
    const mock = wanted.url === undefined ? new Mock({ pace: 0.15, ...wishes }) : undefined;
    before?.(mock);
    const url = wanted.url ?? (await mock.listen(0));
    const context = await browser.newContext({ viewport: DESK, ...more });
    context.setDefaultTimeout(8000);
    const page = await context.newPage();
    const noise = [];
    const foreign = [];
    watch(page, url, noise, foreign);
    await page.addInitScript(() => {
        window.shifts = [];
        new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) {
                if (!entry.hadRecentInput) {
                    const who = entry.sources.map(({ node }) => node?.className ?? node?.nodeName ?? "?").join(" ");
                    window.shifts.push({ value: entry.value, who });
                }
            }
        }).observe({ type: "layout-shift", buffered: true });
        document.addEventListener("securitypolicyviolation", (event) => {
            console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
        });
    });
    t.after(async () => {
        await context.close();
        await mock?.down().catch(() => {});
        const unexpected = noise.filter((line) => !expected.some((pattern) => pattern.test(line)));
        assert.deepEqual(unexpected, [], "the console is clean");
        assert.deepEqual(foreign, [], "no other host is asked");
    });
    await page.goto(url);
    return { page, mock, url, context, noise };
}

function watch(page, url, noise, foreign) {
    page.on("console", (message) => {
        if (["error", "warning"].includes(message.type())) noise.push(message.text());
    });
    page.on("pageerror", (error) => noise.push(String(error)));
    page.on("request", (request) => {
        const address = request.url();
        if (!address.startsWith(url) && !/^(?:data|blob):/.test(address)) foreign.push(address);
    });
}

export const composer = (page) => page.getByRole("textbox", { name: "Message" });
export const card = (page, name) =>
    page.locator(".turn.is-newest article", { has: page.getByRole("heading", { name, exact: true }) }).first();

/** The page has its lists and its composer. */
export async function ready(page) {
    await page.getByText("A room with Ada, Ben and Clara").waitFor();
}

export async function say(page, words) {
    await composer(page).fill(words);
    await composer(page).press("Enter");
}

/** Until nobody speaks. */
export async function silence(page, timeout = 15_000) {
    await page.locator(".turn.is-newest article").first().waitFor();
    await page.waitForFunction(() => document.querySelectorAll('article[aria-busy="true"]').length === 0, null, {
        timeout,
    });
    await page.getByRole("button", { name: "Send", exact: true }).waitFor();
}

export async function eventually(what, check, timeout = 6000) {
    const end = Date.now() + timeout;
    for (;;) {
        if (await check()) return;
        assert.ok(Date.now() < end, `in time: ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 30));
    }
}

/** What Chromium writes by itself about an answer that is no success, or none at all. */
export const FAILED = [/Failed to load resource/, /net::ERR_/];
export const live = (page) => page.locator('article[aria-busy="true"]').count();
export const png = async (page, name = "shapes.png", ...size) => ({
    name,
    type: "image/png",
    bytes: await shapes(page, ...size),
});

/** A picture of three shapes, drawn by the browser. */
export async function shapes(page, width = 480, height = 320, type = "image/png") {
    const address = await page.evaluate(
        ([w, h, kind]) => {
            const canvas = document.createElement("canvas");
            canvas.width = w;
            canvas.height = h;
            const pen = canvas.getContext("2d");
            const sky = pen.createLinearGradient(0, 0, 0, h);
            sky.addColorStop(0, "#1d2340");
            sky.addColorStop(1, "#3a2d4d");
            pen.fillStyle = sky;
            pen.fillRect(0, 0, w, h);
            pen.fillStyle = "#d64545";
            pen.beginPath();
            pen.arc(w * 0.27, h * 0.68, h * 0.17, 0, 7);
            pen.fill();
            pen.fillStyle = "#3d7dd8";
            pen.fillRect(w * 0.63, h * 0.52, h * 0.32, h * 0.32);
            pen.fillStyle = "#f2c744";
            pen.beginPath();
            for (let at = 0; at < 10; at++) {
                const radius = h * (at % 2 === 0 ? 0.19 : 0.08);
                const angle = (at * Math.PI) / 5 - Math.PI / 2;
                pen.lineTo(w / 2 + radius * Math.cos(angle), h * 0.28 + radius * Math.sin(angle));
            }
            pen.fill();
            return canvas.toDataURL(kind);
        },
        [width, height, type],
    );
    return Buffer.from(address.slice(address.indexOf(",") + 1), "base64");
}

/** A picture of the kind that the bundled model was taught: a yellow star, a red circle and a blue square on a light ground. */
export async function taught(page, side = 96) {
    const address = await page.evaluate((size) => {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = size;
        const pen = canvas.getContext("2d");
        pen.scale(size / 96, size / 96);
        pen.fillStyle = "#ffffff";
        pen.fillRect(0, 0, 96, 96);
        pen.fillStyle = "#d62828";
        pen.beginPath();
        pen.arc(18, 48, 12, 0, 7);
        pen.fill();
        pen.fillStyle = "#2850d2";
        pen.fillRect(67, 37, 22, 22);
        pen.fillStyle = "#f0d628";
        pen.beginPath();
        for (let at = 0; at < 10; at++) {
            const radius = at % 2 === 0 ? 13 : 5;
            const angle = (at * Math.PI) / 5 - Math.PI / 2;
            pen.lineTo(48 + radius * Math.cos(angle), 18 + radius * Math.sin(angle));
        }
        pen.fill();
        return canvas.toDataURL("image/png");
    }, side);
    return Buffer.from(address.slice(address.indexOf(",") + 1), "base64");
}

/** Drops or pastes files as a person would: through the browser's own events. */
export async function give(page, how, files) {
    await page.evaluate(
        ([kind, list]) => {
            const transfer = new DataTransfer();
            for (const { name, type, data } of list) {
                const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type }));
            }
            const target = document.querySelector("main");
            if (kind === "paste") {
                target.dispatchEvent(
                    new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }),
                );
                return;
            }
            for (const name of kind === "drop" ? ["dragenter", "dragover", "drop"] : [kind]) {
                target.dispatchEvent(new DragEvent(name, { dataTransfer: transfer, bubbles: true, cancelable: true }));
            }
        },
        [how, files.map(({ name, type, bytes }) => ({ name, type, data: bytes.toString("base64") }))],
    );
}

/** Serious and critical findings of axe-core, as lines. */
export async function axe(page, where) {
    // Colours on their way from one to another would be measured in between.
    await page.waitForTimeout(200);
    await page.evaluate(AXE);
    const { violations, passes } = await page.evaluate(() =>
        window.axe.run(document, {
            runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
        }),
    );
    const lines = violations
        .filter(({ impact }) => impact === "serious" || impact === "critical")
        .flatMap(({ id, nodes }) =>
            nodes.map(({ target, failureSummary }) => `${where}: ${id} at ${target}: ${failureSummary}`),
        );
    const minor = violations.filter(({ impact }) => impact !== "serious" && impact !== "critical").map(({ id }) => id);
    return { lines, minor, checked: passes.length };
}

export const shifted = (page) => page.evaluate(() => window.shifts);
