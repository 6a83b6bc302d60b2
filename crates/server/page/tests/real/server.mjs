// The real server, as a process: `consort serve` with the bundled model. CONSORT names the command.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { env } from "node:process";
import { fileURLToPath } from "node:url";

const CONFIG = fileURLToPath(new URL("consort.toml", import.meta.url));

export class Consort {
    /** `share`: of the device's time, so that there is time to see how words come. */
    constructor({ share = 1 } = {}) {
        this.share = share;
    }

    /** Its address, once it listens. */
    async listen() {
        assert.ok(env.CONSORT, "CONSORT must name the command: cargo build --bin consort");
        this.folder = await mkdtemp(join(tmpdir(), "consort-real-"));
        const config = join(this.folder, "consort.toml");
        const more = `\n[scheduler]\ngpu_time_share = ${this.share.toFixed(3)}\n`;
        await writeFile(config, (await readFile(CONFIG, "utf8")) + more);
        const server = spawn(env.CONSORT, ["serve", "--config", config, "--device", "cpu"]);
        this.server = server;
        this.log = "";
        server.stderr.on("data", (data) => {
            this.log += data;
        });
        return await new Promise((resolve, reject) => {
            let said = "";
            const patience = setTimeout(() => reject(new Error(`it does not listen: ${said} ${this.log}`)), 60_000);
            server.on("error", reject);
            server.on("exit", (code) => reject(new Error(`it ended with ${code}: ${said} ${this.log}`)));
            server.stdout.on("data", (data) => {
                said += data;
                const address = /listening on (http:\/\/127\.0\.0\.1:\d+)/.exec(said)?.[1];
                if (address === undefined) return;
                clearTimeout(patience);
                resolve(`${address}/`);
            });
        });
    }

    /** Ends it as an operator does, and waits until it is gone. */
    async down() {
        if (this.server?.exitCode === null) {
            const gone = new Promise((resolve) => this.server.once("exit", resolve));
            this.server.kill("SIGTERM");
            await gone;
        }
        if (this.folder !== undefined) await rm(this.folder, { recursive: true, force: true });
    }
}
