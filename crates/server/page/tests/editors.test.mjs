// What is put into a talk: pictures, personas, people and scene.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import {
    card,
    composer,
    eventually,
    FAILED,
    give,
    launch,
    png,
    ready,
    say,
    scene,
    shapes,
    silence,
} from "./harness.mjs";

let browser;
before(async () => {
    browser = await launch();
});
after(() => browser?.close());

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
    await dialog.getByLabel("Thinking").selectOption("on");
    await dialog.getByRole("radio", { name: "rose" }).check();
    await dialog.getByRole("button", { name: "Save" }).click();
    await dialog.waitFor({ state: "detached" });
    assert.deepEqual(mock.personas.get("Clara"), {
        name: "Clara",
        system: "You are Clara, and you rhyme.",
        adapters: [
            { name: "butler", scale: 1 },
            { name: "cartographer", scale: 1 },
        ],
        thinking: true,
        priority: "background",
        color: "#be185d",
    });
    await page.getByRole("button", { name: "New persona" }).first().click();
    const fresh = page.getByRole("dialog", { name: "New persona" });
    for (const name of ["a/b", ".hidden", " ", 'a "b"', "ö".repeat(65)]) {
        await fresh.getByLabel("Name").fill(name);
        await fresh.getByRole("button", { name: "Save" }).click();
        await fresh.getByText("A name has 1 to 128 bytes").waitFor();
    }
    await fresh.getByLabel("Name").fill("User");
    await fresh.getByRole("button", { name: "Save" }).click();
    await fresh.getByText("This is the user’s own name.").waitFor();
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
