// The screenshots of the documentation: `npm run screenshots` takes them from the mock, and
// `npm run screenshots -- http://127.0.0.1:8080/` from a server that runs a model.

import { stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { argv } from "node:process";
import { pathToFileURL } from "node:url";
import { composer, give, launch, PHONE, shapes } from "./harness.mjs";
import { Mock } from "./mock/server.mjs";

const SHOTS = [
    { name: "page-dark.png", colorScheme: "dark", viewport: { width: 1440, height: 940 }, scale: 1.5 },
    { name: "page-light.png", colorScheme: "light", viewport: { width: 1440, height: 940 }, scale: 1.5, inTurn: true },
    { name: "page-phone.png", colorScheme: "dark", viewport: PHONE, scale: 2, phone: true },
];

export async function takeScreenshots(browser, folder, url) {
    const sizes = {};
    for (const shot of SHOTS) {
        const mock = url === undefined ? new Mock({ pace: 0.7 }) : undefined;
        const address = url ?? (await mock.listen(0));
        const context = await browser.newContext({
            viewport: shot.viewport,
            colorScheme: shot.colorScheme,
            deviceScaleFactor: shot.scale,
            ...(shot.phone ? { isMobile: true, hasTouch: true } : {}),
        });
        const page = await context.newPage();
        await page.goto(address);
        await page.locator(".cast").waitFor();
        // The charts have something to show.
        await say(page, "Good evening, all of you.");
        // Slow enough to be caught while they speak.
        if (mock !== undefined) mock.pace = 2;
        if (shot.inTurn) await page.getByRole("button", { name: "In turn" }).click();
        await give(page, "drop", [{ name: "evening.png", type: "image/png", bytes: await shapes(page, 720, 400) }]);
        await page.getByText("evening.png").waitFor();
        await composer(page).fill("What do you see?");
        await composer(page).press("Enter");
        await page.waitForFunction(
            () => document.querySelectorAll('.is-newest article[aria-busy="true"] .prose').length > 0,
        );
        await page.waitForTimeout(shot.inTurn ? 6500 : 2600);
        const path = join(folder, shot.name);
        await writeFile(path, await page.screenshot());
        sizes[shot.name] = (await stat(path)).size;
        await context.close();
        await mock?.down();
    }
    return sizes;
}

async function say(page, words) {
    await composer(page).fill(words);
    await composer(page).press("Enter");
    await page.locator(".is-newest article").first().waitFor();
    await page.waitForFunction(() => document.querySelectorAll('article[aria-busy="true"]').length === 0, null, {
        timeout: 60_000,
    });
    await page.waitForTimeout(2500);
}

if (import.meta.url === pathToFileURL(argv[1]).href) {
    const browser = await launch();
    const folder = new URL("../../../../docs/screenshots/", import.meta.url).pathname;
    console.log(await takeScreenshots(browser, folder, argv[2]));
    await browser.close();
}
