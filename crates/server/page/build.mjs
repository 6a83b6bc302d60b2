// Builds dist/: three files, the same bytes from the same sources wherever it runs. `--watch` for work at the page.

import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { argv } from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";
import esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));

/** Who wrote what is bundled: the licence asks that it goes along. */
async function notice() {
    const version = async (name) =>
        JSON.parse(await readFile(join(here, "node_modules", name, "package.json"), "utf8")).version;
    const preact = await version("preact");
    const signals = await version("@preact/signals");
    const core = await version("@preact/signals-core");
    return `/*! Consort, MIT OR Apache-2.0. With preact ${preact} (MIT, (c) Jason Miller), @preact/signals ${signals} and @preact/signals-core ${core} (MIT, (c) Preact Team); their licences stand in THIRD-PARTY.md. */`;
}

export async function options(outdir) {
    return {
        absWorkingDir: here,
        entryPoints: [
            { in: "src/main.tsx", out: "app" },
            { in: "src/app.css", out: "app" },
        ],
        outdir,
        bundle: true,
        minify: true,
        format: "esm",
        // Browsers of 2024 and later: light-dark(), container units and <dialog> are used anyway.
        target: ["chrome123", "firefox120", "safari17.5"],
        jsx: "automatic",
        jsxImportSource: "preact",
        legalComments: "none",
        charset: "utf8",
        banner: { js: await notice() },
        logLevel: "warning",
    };
}

export async function build(outdir) {
    await mkdir(outdir, { recursive: true });
    await esbuild.build(await options(outdir));
    await cp(join(here, "src/index.html"), join(outdir, "index.html"));
    for (const file of ["app.js", "app.css"]) {
        const path = join(outdir, file);
        const text = await readFile(path, "utf8");
        if (!text.endsWith("\n")) await writeFile(path, `${text}\n`);
    }
}

if (import.meta.url === pathToFileURL(argv[1]).href) {
    const dist = join(here, "dist");
    await build(dist);
    if (argv.includes("--watch")) {
        const context = await esbuild.context(await options(dist));
        await context.watch();
    }
}
