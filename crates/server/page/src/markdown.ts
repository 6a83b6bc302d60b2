// Markdown into a tree of plain objects. The view makes elements of it one by one, so nothing that a model writes is ever
// read as HTML. The subset is what models write in a chat; whatever is not understood stays as it was written.
//
// The text is untrusted and comes in growing pieces: time is linear in its length, depth is bounded, and an unclosed
// fence is code already, so that the shape does not change under the reader when it closes.

export type Inline =
    | { kind: "text"; text: string }
    | { kind: "code"; text: string }
    | { kind: "strong" | "em" | "del"; inner: Inline[] }
    | { kind: "link"; href: string; inner: Inline[] }
    | { kind: "break" };

export type Align = "start" | "center" | "end";

export type Block =
    | { kind: "paragraph"; inner: Inline[] }
    | { kind: "heading"; level: number; inner: Inline[] }
    | { kind: "code"; language: string; text: string }
    | { kind: "quote"; blocks: Block[] }
    | { kind: "list"; ordered: boolean; start: number; items: Block[][] }
    | { kind: "table"; head: Inline[][]; align: Align[]; rows: Inline[][][] }
    | { kind: "rule" };

/** A block at the top, with the source that it was made of: the same source need not be drawn again. */
export interface TopBlock {
    source: string;
    block: Block;
}

const DEEPEST_BLOCK = 5;
const DEEPEST_INLINE = 4;
const LONGEST_LINK = 2000;
const MOST_COLUMNS = 24;

export function parse(text: string): TopBlock[] {
    const lines = text.replace(/\r\n?/g, "\n").split("\n");
    return blocks(lines, 0).map(({ block, from, to }) => ({ block, source: lines.slice(from, to).join("\n") }));
}

/**
 * The same text with what its last line has opened and not closed yet: `**red` is bold while it is being written already,
 * so that no marks flash up. For text that still grows; a finished text is shown as it was written.
 */
export function whileGrowing(text: string): string {
    const from = text.lastIndexOf("\n") + 1;
    const line = text.slice(from);
    let code = false;
    let strong = false;
    for (let at = 0; at < line.length; at++) {
        const character = line[at];
        if (character === "\\" && !code) at++;
        else if (character === "`") code = !code;
        else if (character === "*" && line[at + 1] === "*" && !code) {
            // With a space after it, it opens nothing.
            strong = !strong && !/\s/.test(line[at + 2] ?? "");
            at++;
        }
    }
    if (line.trim() === "" || /^\s*(?:`{3}|~{3})/.test(line) || parse(text).at(-1)?.block.kind === "code") return text;
    if (code) return line.endsWith("`") ? text.slice(0, -1) : `${text}\``;
    if (!strong) return text;
    const bare = text.replace(/[\s*]{1,8}$/, "");
    return line.trimEnd().endsWith("**") ? bare : `${bare}**`;
}

interface Placed {
    block: Block;
    from: number;
    to: number;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|[ \t]*)$/;
const TABLE_LINE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const blank = (line: string | undefined) => line === undefined || line.trim() === "";

function blocks(lines: readonly string[], depth: number): Placed[] {
    const out: Placed[] = [];
    let at = 0;
    while (at < lines.length) {
        const line = lines[at] ?? "";
        if (blank(line)) {
            at++;
            continue;
        }
        const [block, to] = blockAt(lines, at, line, depth);
        out.push({ block, from: at, to });
        at = to;
    }
    return out;
}

function blockAt(lines: readonly string[], at: number, line: string, depth: number): [Block, number] {
    const fence = FENCE.exec(line);
    if (fence !== null) return fenced(lines, at, fence[1] ?? "```", (fence[2] ?? "").trim());
    const heading = HEADING.exec(line);
    if (heading !== null) {
        const words = (heading[2] ?? "").replace(/[ \t]+#+[ \t]*$/, "");
        return [{ kind: "heading", level: heading[1]?.length ?? 1, inner: inline(words) }, at + 1];
    }
    if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
    if (depth < DEEPEST_BLOCK) {
        if (/^ {0,3}>/.test(line)) return quote(lines, at, depth);
        if (ITEM.test(line)) return list(lines, at, depth);
    }
    const table = tableAt(lines, at, line);
    return table ?? paragraph(lines, at, depth);
}

function fenced(lines: readonly string[], at: number, mark: string, language: string): [Block, number] {
    let end = at + 1;
    for (; end < lines.length; end++) {
        const trimmed = (lines[end] ?? "").trim();
        if (trimmed.length >= mark.length && trimmed === (mark[0] ?? "`").repeat(trimmed.length)) break;
    }
    const text = lines.slice(at + 1, end).join("\n");
    return [{ kind: "code", language, text }, Math.min(end + 1, lines.length)];
}

function quote(lines: readonly string[], at: number, depth: number): [Block, number] {
    const inner: string[] = [];
    let end = at;
    for (; end < lines.length; end++) {
        const match = /^ {0,3}> ?(.*)$/.exec(lines[end] ?? "");
        if (match === null) break;
        inner.push(match[1] ?? "");
    }
    return [{ kind: "quote", blocks: blocks(inner, depth + 1).map(({ block }) => block) }, end];
}

function list(lines: readonly string[], at: number, depth: number): [Block, number] {
    const first = ITEM.exec(lines[at] ?? "");
    const mark = first?.[2] ?? "-";
    const ordered = /\d/.test(mark);
    const same = (other: string) => (ordered ? /\d/.test(other) : other === mark);
    const items: string[][] = [];
    let end = at;
    let indent = 0;
    while (end < lines.length) {
        const line = lines[end] ?? "";
        const item = ITEM.exec(line);
        if (item !== null && same(item[2] ?? "") && !RULE.test(line)) {
            indent = (item[1] ?? "").length + (item[2] ?? "").length + 1;
            items.push([item[3] ?? ""]);
            end++;
            continue;
        }
        const current = items.at(-1);
        if (current === undefined) break;
        if (blank(line)) {
            // Only what is indented, or the next item, goes on after an empty line.
            const next = lines.slice(end + 1, end + 3).find((later) => !blank(later));
            const goesOn = next !== undefined && (leading(next) >= 2 || same(ITEM.exec(next)?.[2] ?? ""));
            if (!goesOn) break;
            current.push("");
            end++;
            continue;
        }
        const space = leading(line);
        if (space >= 2) current.push(line.slice(Math.min(space, indent)));
        else if (item === null && !blank(current.at(-1)) && !interrupts(line)) current.push(line);
        else break;
        end++;
    }
    const start = ordered ? Number.parseInt(mark, 10) : 1;
    const inner = items.map((item) => blocks(item, depth + 1).map(({ block }) => block));
    return [{ kind: "list", ordered, start, items: inner }, end];
}

function leading(line: string): number {
    return line.length - line.trimStart().length;
}

/** Whether a line ends a paragraph that it follows without an empty line between. */
function interrupts(line: string): boolean {
    return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || /^ {0,3}>/.test(line);
}

function paragraph(lines: readonly string[], at: number, depth: number): [Block, number] {
    let end = at + 1;
    for (; end < lines.length; end++) {
        const line = lines[end] ?? "";
        if (blank(line) || interrupts(line)) break;
        if (depth < DEEPEST_BLOCK && ITEM.test(line) && !/^\d+[.)]/.test(line.trim())) break;
        if (depth < DEEPEST_BLOCK && /^ {0,3}1[.)][ \t]/.test(line)) break;
    }
    const text = lines
        .slice(at, end)
        .map((line) => line.trim())
        .join("\n");
    return [{ kind: "paragraph", inner: inline(text) }, end];
}

function tableAt(lines: readonly string[], at: number, line: string): [Block, number] | undefined {
    const second = lines[at + 1];
    if (second === undefined || !line.includes("|") || !second.includes("-") || !TABLE_LINE.test(second))
        return undefined;
    const head = cells(line);
    const marks = cells(second);
    if (head.length !== marks.length || head.length > MOST_COLUMNS) return undefined;
    const align = marks.map((mark): Align => {
        if (mark.startsWith(":") && mark.endsWith(":") && mark.length > 1) return "center";
        return mark.endsWith(":") ? "end" : "start";
    });
    const rows: Inline[][][] = [];
    let end = at + 2;
    for (; end < lines.length; end++) {
        const row = lines[end] ?? "";
        if (blank(row) || !row.includes("|")) break;
        const found = cells(row);
        rows.push(head.map((_, column) => inline(found[column] ?? "")));
    }
    return [{ kind: "table", head: head.map((cell) => inline(cell)), align, rows }, end];
}

function cells(line: string): string[] {
    let text = line.trim();
    if (text.startsWith("|")) text = text.slice(1);
    if (text.endsWith("|") && !text.endsWith("\\|")) text = text.slice(0, -1);
    return text.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

/** The inside of a paragraph. */
export function inline(text: string, depth = 0): Inline[] {
    const out: Inline[] = [];
    // A delimiter that has found no end once finds none later on either: this keeps the time linear.
    const hopeless = new Set<string>();
    let plain = "";
    // Kept beside: to look into a string that is being put together would copy it each time.
    let before = "";
    const flush = () => {
        if (plain !== "") out.push({ kind: "text", text: plain });
        plain = "";
        before = "";
    };
    let at = 0;
    while (at < text.length) {
        const character = text[at] ?? "";
        if (character === "\n") {
            plain = plain.trimEnd();
            flush();
            out.push({ kind: "break" });
            at++;
            continue;
        }
        const found = special(text, at, character, depth, hopeless, before);
        if (found === undefined) {
            plain += character;
            before = character;
            at++;
            continue;
        }
        const [node, to] = found;
        if (node.kind === "text") {
            plain += node.text;
            before = node.text.at(-1) ?? "";
        } else {
            flush();
            out.push(node);
        }
        at = to;
    }
    flush();
    return out;
}

type Found = [Inline, number] | undefined;

function special(
    text: string,
    at: number,
    character: string,
    depth: number,
    hopeless: Set<string>,
    before: string,
): Found {
    switch (character) {
        case "\\":
            return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")
                ? [{ kind: "text", text: text[at + 1] ?? "" }, at + 2]
                : undefined;
        case "`":
            return codeSpan(text, at, hopeless);
        case "*":
        case "_":
        case "~":
            return emphasis(text, at, character, depth, hopeless, before);
        case "[":
            return link(text, at, depth);
        case "!":
            // A picture is never fetched for a model; its link is shown.
            return text[at + 1] === "[" ? link(text, at + 1, depth) : undefined;
        case "h":
            return /\w/.test(before) ? undefined : bareLink(text, at);
        default:
            return undefined;
    }
}

function run(text: string, at: number): number {
    const character = text[at];
    let length = 1;
    while (text[at + length] === character) length++;
    return length;
}

function codeSpan(text: string, at: number, hopeless: Set<string>): Found {
    const length = run(text, at);
    const mark = "`".repeat(length);
    const whole: Found = [{ kind: "text", text: mark }, at + length];
    if (hopeless.has(mark)) return whole;
    for (let from = at + length; ; ) {
        const close = text.indexOf(mark, from);
        if (close < 0) {
            hopeless.add(mark);
            return whole;
        }
        const closing = run(text, close);
        if (closing === length) {
            const inner = text.slice(at + length, close).replaceAll("\n", " ");
            const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim() !== "";
            return [{ kind: "code", text: padded ? inner.slice(1, -1) : inner }, close + length];
        }
        from = close + closing;
    }
}

function emphasis(
    text: string,
    at: number,
    character: string,
    depth: number,
    hopeless: Set<string>,
    before: string,
): Found {
    const length = run(text, at);
    const whole: Found = [{ kind: "text", text: character.repeat(length) }, at + length];
    const size = character === "~" ? 2 : Math.min(length, 2);
    if (depth >= DEEPEST_INLINE || length > 3 || (character === "~" && length !== 2)) return whole;
    const next = text[at + length];
    if (next === undefined || /\s/.test(next) || (character === "_" && /\w/.test(before))) return whole;
    const mark = character.repeat(size);
    if (hopeless.has(mark)) return whole;
    const from = at + size;
    for (let search = at + length; ; ) {
        const close = text.indexOf(mark, search);
        if (close < 0) {
            hopeless.add(mark);
            return whole;
        }
        const closing = run(text, close);
        // In `***both***` the outer mark closes last; a single mark does not close within a double one.
        const end = closing > size && size === 2 ? close + closing - size : close;
        const after = text[close + closing] ?? "";
        const fits = (size === 2 || closing !== 2) && !/\s/.test(text[close - 1] ?? " ");
        if (fits && !(character === "_" && /\w/.test(after)) && end > from) {
            const kind = character === "~" ? "del" : size === 2 ? "strong" : "em";
            return [{ kind, inner: inline(text.slice(from, end), depth + 1) }, end + size];
        }
        search = close + closing;
    }
}

function link(text: string, bracket: number, depth: number): Found {
    if (depth >= DEEPEST_INLINE) return undefined;
    const end = Math.min(text.length, bracket + LONGEST_LINK);
    let open = 0;
    let close = -1;
    for (let index = bracket; index < end; index++) {
        const character = text[index];
        if (character === "\\") index++;
        else if (character === "[") {
            if (++open > 8) return undefined;
        } else if (character === "]" && --open === 0) {
            close = index;
            break;
        }
    }
    if (close < 0 || text[close + 1] !== "(") return undefined;
    const length = text.slice(close + 2, end).indexOf(")");
    if (length < 0) return undefined;
    const paren = close + 2 + length;
    const target =
        text
            .slice(close + 2, paren)
            .trim()
            .split(/\s/)[0] ?? "";
    const href = safeAddress(target.replace(/^<|>$/g, ""));
    const label = text.slice(bracket + 1, close);
    if (href === undefined) return undefined;
    const inner: Inline[] = label === "" ? [{ kind: "text", text: href }] : inline(label, DEEPEST_INLINE);
    return [{ kind: "link", href, inner }, paren + 1];
}

function bareLink(text: string, at: number): Found {
    const match = /^https?:\/\/[^\s<>"'`]+/.exec(text.slice(at, at + LONGEST_LINK));
    if (match === null) return undefined;
    let address = match[0].replace(/[.,;:!?*_~]+$/, "");
    if (address.endsWith(")") && !address.includes("(")) address = address.slice(0, -1);
    const href = safeAddress(address);
    return href === undefined
        ? undefined
        : [{ kind: "link", href, inner: [{ kind: "text", text: address }] }, at + address.length];
}

/** Only addresses that a click may follow: never a script, never this server's own interface. */
export function safeAddress(address: string): string | undefined {
    if (!/^(?:https?:\/\/|mailto:)/i.test(address)) return undefined;
    try {
        const { href, protocol } = new URL(address);
        return protocol === "http:" || protocol === "https:" || protocol === "mailto:" ? href : undefined;
    } catch {
        return undefined;
    }
}
