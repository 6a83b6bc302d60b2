// The screenshots of the documentation, of a server that runs a model: `npm run screenshots` starts one (CONSORT names the command),
// `npm run screenshots -- http://127.0.0.1:8080/` asks one that has the personas of tests/real/consort.toml.

import { mkdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { argv } from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";
import { composer, give, launch, PHONE, ready, silence, taught } from "./harness.mjs";
import { Consort } from "./real/server.mjs";

const SHOTS = [
    { name: "page-dark.png", colorScheme: "dark", viewport: { width: 1440, height: 940 }, scale: 1.5 },
    { name: "page-light.png", colorScheme: "light", viewport: { width: 1440, height: 940 }, scale: 1.5, inTurn: true },
    { name: "page-phone.png", colorScheme: "dark", viewport: PHONE, scale: 2, phone: true },
];

/** Takes them into a folder. What they are called, and their sizes in bytes. */
export async function takeScreenshots(browser, folder, url) {
    const sizes = {};
    await mkdir(folder, { recursive: true });
    for (const shot of SHOTS) {
        const context = await browser.newContext({
            viewport: shot.viewport,
            colorScheme: shot.colorScheme,
            deviceScaleFactor: shot.scale,
            ...(shot.phone ? { isMobile: true, hasTouch: true } : {}),
        });
        const page = await context.newPage();
        await page.goto(url);
        await ready(page);
        if (shot.inTurn) await page.getByRole("button", { name: "In turn" }).click();
        const picture = { name: "shapes.png", type: "image/png", bytes: await taught(page, 240) };
        await give(page, "drop", [picture]);
        await page.getByText(picture.name).waitFor();
        // What is asked after the picture comes at once, and shows what the personas share.
        await ask(page, "What do you see?");
        if (!shot.phone) await ask(page, "Where is the star?");
        // The status is asked every second or two; the charts have then seen what was said.
        await page.waitForTimeout(4500);
        if (!shot.phone) await ask(page, "How many objects are there?");
        await page.waitForTimeout(2500);
        if (!shot.phone)
            await page.locator(".scroller").evaluate((box) => box.scrollTo({ top: 0, behavior: "instant" }));
        await page.waitForTimeout(300);
        const path = join(folder, shot.name);
        await writeFile(path, await page.screenshot());
        sizes[shot.name] = (await stat(path)).size;
        await context.close();
    }
    return sizes;
}

async function ask(page, words) {
    await composer(page).fill(words);
    await page.getByRole("button", { name: "Send", exact: true }).click();
    await silence(page, 60_000);
}

if (import.meta.url === pathToFileURL(argv[1]).href) {
    const browser = await launch();
    const consort = argv[2] === undefined ? new Consort() : undefined;
    const folder = fileURLToPath(new URL("../../../../docs/screenshots/", import.meta.url));
    console.log(await takeScreenshots(browser, folder, argv[2] ?? (await consort.listen())));
    await browser.close();
    await consort?.down();
}
