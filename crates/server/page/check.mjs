// What the compiler and the linter cannot see: that dist/ is what the sources make, that it is small, and that it keeps
// the promises of the content security policy.

import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { exit } from "node:process";
import { fileURLToPath } from "node:url";
import { build } from "./build.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const FILES = ["app.css", "app.js", "index.html"];
const MOST_BYTES = 150_000;

const problems = [];
const fresh = await mkdtemp(join(tmpdir(), "consort-page-"));
try {
    await build(fresh);
    const there = (await readdir(join(here, "dist"))).sort();
    if (there.join() !== FILES.join())
        problems.push(`dist/ holds ${there.join(", ")}, and should hold ${FILES.join(", ")}`);
    let total = 0;
    for (const file of FILES) {
        const [made, kept] = await Promise.all([
            readFile(join(fresh, file)),
            readFile(join(here, "dist", file)).catch(() => null),
        ]);
        total += made.length;
        if (kept === null || !made.equals(kept))
            problems.push(`dist/${file} is not what the sources make: run \`npm run build\``);
    }
    if (total > MOST_BYTES) problems.push(`dist/ is ${total} bytes, more than ${MOST_BYTES}`);

    const html = await readFile(join(fresh, "index.html"), "utf8");
    const markup = html.replace(/<!--[\s\S]*?-->/g, "");
    if (/<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)/i.test(markup))
        problems.push("index.html has an inline script, style or handler");
    const outside = /(?:src|href)=["'](?:https?:)?\/\//i;
    if (outside.test(markup)) problems.push("index.html asks another host");
    const css = await readFile(join(fresh, "app.css"), "utf8");
    if (/url\(|@import/i.test(css)) problems.push("app.css asks for another file");
    for (const file of await readdir(join(here, "src"), { recursive: true })) {
        if (!/\.tsx?$/.test(file)) continue;
        const source = await readFile(join(here, "src", file), "utf8");
        const bad =
            /\b(?:innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|eval|new Function)\b/.exec(
                source,
            );
        if (bad !== null) problems.push(`src/${file} uses ${bad[0]}`);
        const lines = source.split("\n").length;
        if (lines > 500) problems.push(`src/${file} has ${lines} lines: it has two subjects`);
    }
    if (problems.length === 0) console.log(`dist/ is as the sources make it: ${total} bytes in ${FILES.length} files`);
} finally {
    await rm(fresh, { recursive: true, force: true });
}
for (const problem of problems) console.error(problem);
exit(problems.length === 0 ? 0 : 1);
