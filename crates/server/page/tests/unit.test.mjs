// The parts that run without a page: the Markdown reader, the event parser, the reading of failures.

import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { performance } from "node:perf_hooks";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import esbuild from "esbuild";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

async function load(path) {
    const { outputFiles } = await esbuild.build({
        entryPoints: [join(root, path)],
        bundle: true,
        format: "esm",
        write: false,
    });
    return import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`);
}

const { parse, inline, safeAddress, whileGrowing } = await load("src/markdown.ts");
const { SseParser, readEvents } = await load("src/api/sse.ts");
const { Failure, seconds, advice } = await load("src/api/failure.ts");

/** The tree as a line, to compare by eye. */
function line(nodes) {
    return nodes
        .map((node) => {
            if (node.kind === "text") return node.text;
            if (node.kind === "code") return `\`${node.text}\``;
            if (node.kind === "break") return "|";
            if (node.kind === "link") return `<${node.href} ${line(node.inner)}>`;
            return `${node.kind}(${line(node.inner)})`;
        })
        .join("");
}

const kinds = (text) => parse(text).map(({ block }) => block.kind);

test("emphasis, code and breaks", () => {
    const cases = {
        "a **b** c": "a strong(b) c",
        "*a* _b_ ~~c~~": "em(a) em(b) del(c)",
        "***both***": "strong(em(both))",
        "**a *b* c**": "strong(a em(b) c)",
        snake_case_name: "snake_case_name",
        "2 * 3 * 4": "2 * 3 * 4",
        "**open": "**open",
        "`a*b*`": "`a*b*`",
        "`` a`b ``": "`a`b`",
        "`open": "`open",
        "\\*not\\*": "*not*",
        "a\nb": "a|b",
        "~one~": "~one~",
        "*a **b*": "em(a **b)",
    };
    for (const [text, wanted] of Object.entries(cases)) assert.equal(line(inline(text)), wanted, text);
});

test("links lead out only by http, https and mailto", () => {
    assert.equal(line(inline("[a](https://example.org/x)")), "<https://example.org/x a>");
    assert.equal(
        line(inline("see https://example.org/a_b_c.")),
        "see <https://example.org/a_b_c https://example.org/a_b_c>.",
    );
    assert.equal(line(inline("(https://example.org/a)")), "(<https://example.org/a https://example.org/a>)");
    assert.equal(line(inline("![p](https://example.org/p.png)")), "<https://example.org/p.png p>");
    for (const bad of [
        "javascript:alert(1)",
        "JaVaScRiPt:x",
        "data:text/html,x",
        "vbscript:x",
        "/v1/rooms",
        "//host/x",
        "file:///etc",
        "java\nscript:x",
        " javascript:x",
    ]) {
        assert.equal(safeAddress(bad), undefined, bad);
        assert.ok(!line(inline(`[a](${bad})`)).includes("<"), bad);
    }
});

test("blocks", () => {
    assert.deepEqual(kinds("# a\n\ntext\nmore\n\n---\n\n> q\n\n- a\n- b\n\n1. x\n\n```js\ncode"), [
        "heading",
        "paragraph",
        "rule",
        "quote",
        "list",
        "list",
        "code",
    ]);
    const [{ block }] = parse("3. a\n4. b\n   - c\n\n   d");
    assert.equal(block.start, 3);
    assert.equal(block.items.length, 2);
    assert.deepEqual(
        block.items[1].map(({ kind }) => kind),
        ["paragraph", "list", "paragraph"],
    );
    const [table] = parse("|a|b|\n|:-:|--:|\n|1|2|\n|3|");
    assert.deepEqual(table.block.align, ["center", "end"]);
    assert.equal(table.block.rows.length, 2);
    assert.deepEqual(kinds("a | b\nnot a table"), ["paragraph"]);
    assert.deepEqual(kinds("text\n1986. was a year"), ["paragraph"]);
});

test("a growing text keeps the blocks that it had", () => {
    const text = "First *paragraph*.\n\n```js\nlet a = 1;\n```\n\n- one\n- two\n\nThe end.";
    let kept = 0;
    for (let end = 1; end < text.length; end++) {
        const before = parse(text.slice(0, end));
        const after = parse(text.slice(0, end + 1));
        before.slice(0, -1).forEach((top, at) => {
            assert.equal(after[at].source, top.source, `block ${at} at ${end}`);
            kept++;
        });
    }
    assert.ok(kept > 50);
});

test("while a text grows, no mark flashes up that will be gone", () => {
    const text =
        "Three:\n\n1. a **yellow star**, above,\n2. a `code` and **two words** here.\n\n```py\na ** b\n```\n\nEnd **bold**.";
    const words = (node) => {
        if (Array.isArray(node)) return node.map(words).join("");
        if (typeof node !== "object" || node === null || (node.kind === "code" && "language" in node)) return "";
        return (node.text ?? "") + ["inner", "blocks", "items"].map((name) => words(node[name])).join("");
    };
    let bold = 0;
    for (let end = 1; end <= text.length; end++) {
        const grown = whileGrowing(text.slice(0, end));
        const seen = words(parse(grown).map(({ block }) => block));
        assert.ok(!seen.includes("**"), `${JSON.stringify(text.slice(0, end))} shows ${JSON.stringify(seen)}`);
        bold += JSON.stringify(parse(grown)).includes('"strong"') ? 1 : 0;
    }
    assert.ok(bold > 60);
    assert.equal(whileGrowing("a ** b"), "a ** b");
    assert.equal(whileGrowing("done **b**"), "done **b**");
});

test("hostile text takes linear time and no depth", () => {
    const hostile = [
        "*a ",
        "**a ",
        "_a _",
        "[a](",
        "[",
        "`a``b",
        "> ",
        "- ",
        "|a",
        "~~",
        "***a",
        "\\",
        "https://a",
        "![",
        "* a\n  ",
        "a\n\n",
    ];
    for (const piece of hostile) {
        const time = (count) => {
            const text = piece.repeat(count);
            const start = performance.now();
            parse(text);
            return performance.now() - start;
        };
        time(200);
        const long = time(20_000);
        assert.ok(long < 2000, `${JSON.stringify(piece)} takes ${long} ms`);
    }
    assert.doesNotThrow(() => parse(`${"> ".repeat(5000)}deep`));
    assert.doesNotThrow(() => parse("\n".repeat(10_000)));
});

test("nothing is lost: every visible word of the text stands in the tree", () => {
    let seed = 7;
    const random = (below) => {
        seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648;
        return seed % below;
    };
    const alphabet = [
        "w1",
        "*",
        "**",
        "_",
        "`",
        "[",
        "](",
        ")",
        "\n",
        "\n\n",
        "- ",
        "> ",
        "# ",
        "|",
        "```",
        " ",
        "\\",
        "~~",
        "1. ",
        "<b>",
        "&amp;",
    ];
    const texts = (node) => {
        if (Array.isArray(node)) return node.map(texts).join("");
        if (typeof node !== "object" || node === null) return "";
        const own = typeof node.text === "string" ? node.text : "";
        const language = typeof node.language === "string" ? node.language : "";
        return own + language + ["inner", "blocks", "items", "head", "rows"].map((name) => texts(node[name])).join("");
    };
    for (let round = 0; round < 3000; round++) {
        let number = 0;
        const text = Array.from({ length: 2 + random(30) }, () => {
            const piece = alphabet[random(alphabet.length)];
            return piece === "w1" ? `w${++number}w` : piece;
        }).join("");
        const found = texts(parse(text).map(({ block }) => block));
        // A table has as many columns as its head, and drops what is beyond.
        if (parse(text).some(({ block }) => block.kind === "table")) continue;
        for (let at = 1; at <= number; at++)
            assert.ok(found.includes(`w${at}w`), `${JSON.stringify(text)} lost w${at}w`);
    }
});

test("events come whole, however the bytes are cut", () => {
    const text =
        'event: delta\r\ndata: {"a":1}\r\n\r\n: keep\n\ndata: x\ndata: y\n\nevent: done\rdata:{}\r\rdata: unfinished';
    const wanted = [
        { event: "delta", data: '{"a":1}' },
        { event: "message", data: "x\ny" },
        { event: "done", data: "{}" },
    ];
    for (let size = 1; size <= text.length; size++) {
        const parser = new SseParser();
        const events = [];
        for (let at = 0; at < text.length; at += size) events.push(...parser.push(text.slice(at, at + size)));
        assert.deepEqual(events, wanted, `pieces of ${size}`);
    }
});

test("an endless line is refused, and silence is noticed", async () => {
    const parser = new SseParser();
    assert.throws(() => {
        for (let at = 0; at < 40; at++) parser.push("x".repeat(1024 * 1024));
    });
    let cancelled = false;
    const quiet = new ReadableStream({
        start: (controller) => controller.enqueue(new TextEncoder().encode("data: a\n\n")),
        cancel: () => {
            cancelled = true;
        },
    });
    const events = readEvents(quiet, 30);
    assert.equal((await events.next()).value.data, "a");
    await assert.rejects(events.next(), /silent/);
    assert.ok(cancelled);
});

test("a character that is cut in two comes whole", async () => {
    const bytes = new TextEncoder().encode("data: €\n\n");
    const stream = new ReadableStream({
        start: (controller) => {
            for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
            controller.close();
        },
    });
    const events = [];
    for await (const event of readEvents(stream, 1000)) events.push(event.data);
    assert.deepEqual(events, ["€"]);
});

test("failures are read from whatever the server sends", async () => {
    const full = await Failure.ofResponse(
        new Response(
            JSON.stringify({ error: { message: "full", type: "overloaded_error", code: "queue_full", param: null } }),
            {
                status: 429,
                headers: { "retry-after": "7" },
            },
        ),
    );
    assert.deepEqual(
        [full.message, full.code, full.param, full.retryAfter, full.busy],
        ["full", "queue_full", "", 7, true],
    );
    const page = await Failure.ofResponse(
        new Response("<html>Bad gateway</html>", { status: 502, statusText: "Bad Gateway" }),
    );
    assert.deepEqual(
        [page.message, page.retryAfter, page.busy],
        ["the server answered 502 Bad Gateway", undefined, false],
    );
    const odd = await Failure.ofResponse(
        new Response(JSON.stringify({ error: { message: 5, code: {} } }), { status: 500 }),
    );
    assert.deepEqual([odd.message, odd.code], ["the server answered 500", ""]);
    assert.equal(seconds("Wed, 01 Jan 2025 00:00:10 GMT", Date.parse("Wed, 01 Jan 2025 00:00:00 GMT")), 10);
    assert.equal(seconds("soon"), undefined);
    assert.equal(seconds(null), undefined);
    assert.notEqual(advice({ code: "queue_full" }), "");
    assert.notEqual(advice({ status: 413 }), "");
    assert.equal(advice({ code: "never heard of" }), "");
});
