// Small live charts, drawn as SVG by hand: two minutes, newest at the right.

import { useSignal } from "@preact/signals";
import { type Sample, WINDOW } from "../state/server";

const WIDTH = 300;
const HEIGHT = 56;
/** A young chart shows its first half minute; it grows from there to the whole window. */
const SHORTEST = 30_000;

export interface Series {
    name: string;
    /** Ends of class names: `chart-area-1`, `chart-line-1`. */
    tone: number;
    value: (sample: Sample) => number;
}

interface Props {
    title: string;
    samples: readonly Sample[];
    series: readonly Series[];
    format: (value: number) => string;
    /** What stands large beside the title; the newest sum when absent. */
    now?: string;
    /** Highest value of the scale; the data's when absent. */
    top?: number;
    /** Values hold until the next sample, as counts do. */
    steps?: boolean;
    /** Names, values and colours below the chart. */
    legend?: boolean;
    /** The scale ends at a power of two, as bytes do. */
    binary?: boolean;
}

/** The next of 1, 2, 5, 10, 20, ... so that the scale does not jump with every sample. */
function niceTop(value: number, binary: boolean): number {
    if (!(value > 0)) return 1;
    if (binary) return 2 ** Math.ceil(Math.log2(value));
    const power = 10 ** Math.floor(Math.log10(value));
    const step = [1, 2, 5, 10].find((factor) => value <= factor * power * 1.0001) ?? 10;
    return step * power;
}

export function Chart({
    title,
    samples,
    series,
    format,
    now,
    top,
    steps = false,
    legend = false,
    binary = false,
}: Props) {
    const pointed = useSignal<number | undefined>(undefined);
    const newest = samples.at(-1);
    const sum = (sample: Sample) => series.reduce((total, one) => total + one.value(sample), 0);
    const most = samples.reduce((highest, sample) => Math.max(highest, sum(sample)), 0);
    const highest = top ?? niceTop(most, binary);
    const end = newest?.at ?? 0;
    const span = Math.min(WINDOW, Math.max(SHORTEST, end - (samples[0]?.at ?? end)));
    const x = (sample: Sample) => WIDTH - ((end - sample.at) / span) * WIDTH;
    const y = (value: number) => HEIGHT - 1 - (Math.min(value, highest) / highest) * (HEIGHT - 3);
    const at = pointed.value === undefined ? undefined : samples[Math.min(pointed.value, samples.length - 1)];
    const shown = at ?? newest;
    const words =
        newest === undefined ? "no figures yet" : `now ${format(sum(newest))}, at most ${format(most)} in ${age(span)}`;
    const ago = at === undefined ? "" : `${Math.round((end - at.at) / 1000)} s ago`;

    const base = samples.map(() => 0);
    const shapes = series.map((one) => {
        const low = [...base];
        const high = samples.map((sample, index) => (low[index] ?? 0) + one.value(sample));
        high.forEach((value, index) => {
            base[index] = value;
        });
        return { one, ...outline(samples, low, high, x, y, steps) };
    });

    return (
        <figure class="chart">
            <figcaption>
                <span class="chart-title">{title}</span>
                <span class="chart-now">
                    {ago !== "" && <span class="chart-ago">{ago}</span>}
                    {at === undefined && now !== undefined ? now : shown === undefined ? "–" : format(sum(shown))}
                </span>
            </figcaption>
            <svg
                viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
                preserveAspectRatio="none"
                role="img"
                aria-label={`${title}: ${words}`}
                onPointerMove={(event) => {
                    const box = event.currentTarget.getBoundingClientRect();
                    const wanted = end - (1 - (event.clientX - box.left) / box.width) * span;
                    const nearest = samples.reduce(
                        (best, sample, index) =>
                            Math.abs(sample.at - wanted) < Math.abs((samples[best]?.at ?? 0) - wanted) ? index : best,
                        0,
                    );
                    pointed.value = samples.length === 0 ? undefined : nearest;
                }}
                onPointerLeave={() => {
                    pointed.value = undefined;
                }}
            >
                <line class="chart-grid" x1="0" x2={WIDTH} y1={HEIGHT - 0.5} y2={HEIGHT - 0.5} />
                <line class="chart-grid" x1="0" x2={WIDTH} y1={y(highest / 2)} y2={y(highest / 2)} />
                {shapes.map(({ one, area }) => (
                    <path key={one.name} class={`chart-area chart-area-${one.tone}`} d={area} />
                ))}
                {/* The lowest last: where nothing lies on it, its own colour is seen. */}
                {shapes.toReversed().map(({ one, line }) => (
                    <path key={one.name} class={`chart-line chart-line-${one.tone}`} d={line} />
                ))}
                {at !== undefined && <line class="chart-at" x1={x(at)} x2={x(at)} y1="0" y2={HEIGHT} />}
            </svg>
            <div class="chart-scale" aria-hidden="true">
                <span>{age(span)} ago</span>
                <span>up to {format(highest)}</span>
                <span>now</span>
            </div>
            {legend && shown !== undefined && (
                <dl class="legend">
                    {series.map((one) => (
                        <div key={one.name}>
                            <dt>
                                <span class={`key key-${one.tone}`} aria-hidden="true" />
                                {one.name}
                            </dt>
                            <dd>{format(one.value(shown))}</dd>
                        </div>
                    ))}
                </dl>
            )}
        </figure>
    );
}

function age(milliseconds: number): string {
    return milliseconds < WINDOW ? `${Math.round(milliseconds / 1000)} s` : "2 min";
}

function outline(
    samples: readonly Sample[],
    low: readonly number[],
    high: readonly number[],
    x: (sample: Sample) => number,
    y: (value: number) => number,
    steps: boolean,
): { area: string; line: string } {
    if (samples.length === 0) return { area: "", line: "" };
    const edge = (values: readonly number[]) => {
        const points: [number, number][] = [];
        samples.forEach((sample, index) => {
            const before = values[index - 1];
            if (steps && before !== undefined) points.push([x(sample), y(before)]);
            points.push([x(sample), y(values[index] ?? 0)]);
        });
        return points.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`);
    };
    const above = edge(high);
    const below = edge(low).reverse();
    return { line: `M${above.join("L")}`, area: `M${above.join("L")}L${below.join("L")}Z` };
}
