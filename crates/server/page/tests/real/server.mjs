// The real server, as a process: `consort serve` with the bundled model. CONSORT names the command.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { env } from "node:process";
import { fileURLToPath } from "node:url";

const CONFIG = fileURLToPath(new URL("consort.toml", import.meta.url));

export class Consort {
    /** Its address, once it listens. */
    async listen() {
        assert.ok(env.CONSORT, "CONSORT must name the command: cargo build --bin consort");
        const server = spawn(env.CONSORT, ["serve", "--config", CONFIG, "--device", "cpu"]);
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
        if (this.server === undefined || this.server.exitCode !== null) return;
        const gone = new Promise((resolve) => this.server.once("exit", resolve));
        this.server.kill("SIGTERM");
        await gone;
    }
}
