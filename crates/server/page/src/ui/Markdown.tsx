// Draws what `markdown.ts` understood. Elements are made one by one; no text ever becomes HTML.

import { Component, type ComponentChildren } from "preact";
import { type Block, type Inline, parse, type TopBlock, whileGrowing } from "../markdown";
import { CopyButton } from "./CopyButton";

function Words({ inner }: { inner: readonly Inline[] }) {
    return <>{inner.map(word)}</>;
}

function word(node: Inline, key: number) {
    switch (node.kind) {
        case "text":
            return node.text;
        case "break":
            return <br key={key} />;
        case "code":
            return <code key={key}>{node.text}</code>;
        case "link":
            return (
                <a key={key} href={node.href} target="_blank" rel="noopener noreferrer nofollow" title={node.href}>
                    <Words inner={node.inner} />
                </a>
            );
        case "strong":
            return (
                <strong key={key}>
                    <Words inner={node.inner} />
                </strong>
            );
        case "em":
            return (
                <em key={key}>
                    <Words inner={node.inner} />
                </em>
            );
        case "del":
            return (
                <del key={key}>
                    <Words inner={node.inner} />
                </del>
            );
    }
}

function Heading({ level, children }: { level: number; children: ComponentChildren }) {
    const name = `heading heading-${level}`;
    if (level === 1) return <h4 class={name}>{children}</h4>;
    return level === 2 ? <h5 class={name}>{children}</h5> : <h6 class={name}>{children}</h6>;
}

function Shape({ block }: { block: Block }) {
    switch (block.kind) {
        case "paragraph":
            return (
                <p>
                    <Words inner={block.inner} />
                </p>
            );
        case "heading":
            // The page's own headings are of level 2 and 3; a reply's begin below them.
            return (
                <Heading level={block.level}>
                    <Words inner={block.inner} />
                </Heading>
            );
        case "code":
            return (
                <div class="code">
                    <div class="code-head">
                        <span>{block.language || "text"}</span>
                        <CopyButton text={block.text} what="code" />
                    </div>
                    {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by keyboard */}
                    <pre tabIndex={0}>
                        <code>{block.text}</code>
                    </pre>
                </div>
            );
        case "quote":
            return (
                <blockquote>
                    <Shapes blocks={block.blocks} />
                </blockquote>
            );
        case "list": {
            const items = block.items.map((item, key) => (
                <li key={key}>
                    <Shapes blocks={item} />
                </li>
            ));
            return block.ordered ? <ol start={block.start}>{items}</ol> : <ul>{items}</ul>;
        }
        case "table":
            return (
                // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by keyboard
                <div class="table" tabIndex={0}>
                    <table>
                        <thead>
                            <tr>
                                {block.head.map((cell, column) => (
                                    <th key={column} scope="col" class={`align-${block.align[column]}`}>
                                        <Words inner={cell} />
                                    </th>
                                ))}
                            </tr>
                        </thead>
                        <tbody>
                            {block.rows.map((row, at) => (
                                <tr key={at}>
                                    {row.map((cell, column) => (
                                        <td key={column} class={`align-${block.align[column]}`}>
                                            <Words inner={cell} />
                                        </td>
                                    ))}
                                </tr>
                            ))}
                        </tbody>
                    </table>
                </div>
            );
        case "rule":
            return <hr />;
    }
}

function Shapes({ blocks }: { blocks: readonly Block[] }) {
    // A list item of one line is not a paragraph of its own.
    const only = blocks.length === 1 ? blocks[0] : undefined;
    if (only?.kind === "paragraph") return <Words inner={only.inner} />;
    return (
        <>
            {blocks.map((block, key) => (
                <Shape key={key} block={block} />
            ))}
        </>
    );
}

/** While text streams, only its last block changes; the others are not even looked at. */
class Kept extends Component<{ top: TopBlock }> {
    override shouldComponentUpdate(next: { top: TopBlock }): boolean {
        return next.top.source !== this.props.top.source || next.top.block.kind !== this.props.top.block.kind;
    }

    override render() {
        return <Shape block={this.props.top.block} />;
    }
}

export function Markdown({ text, growing }: { text: string; growing: boolean }) {
    return (
        <div class="prose">
            {parse(growing ? whileGrowing(text) : text).map((top, key) => (
                <Kept key={key} top={top} />
            ))}
        </div>
    );
}
