// What runs where, how that is known, and how it is doing.

import { type Evidence, MEMORY_KINDS, type MemoryKind, type Status } from "../api/types";
import { bytes } from "../state/pictures";
import { adapters } from "../state/rooms";
import { history, status } from "../state/server";
import { Chart, type Series } from "./Chart";
import { count, percent, rate, tokens, uptime } from "./format";
import { Icon } from "./icons";

const PROOFS: Record<string, string> = {
    single_device_kernels: "the engine has kernels for this device only; there is nowhere else that an op could run",
    graph_split_audit: "the engine’s graph was split by device, and the split was read back",
    provider_assignment: "the runtime told, node by node, which execution provider took it",
    default_device_query: "the runtime told its default device, and the arrays were read back as living there",
    remote_report: "a remote server says so; nothing here could check it",
};

const KINDS: Record<MemoryKind, string> = {
    weights: "weights",
    kv_cache: "KV cache",
    states: "states",
    adapters: "adapters",
    images: "pictures",
    scratch: "scratch",
};

const MEMORY: readonly Series[] = MEMORY_KINDS.map((kind, tone) => ({
    name: KINDS[kind],
    tone: tone + 1,
    value: (sample) => sample.memory[kind],
}));

const SPEED: readonly Series[] = [{ name: "tokens/s", tone: 1, value: (sample) => sample.tokensPerSecond }];
const QUEUE: readonly Series[] = [
    { name: "running", tone: 2, value: (sample) => sample.running },
    { name: "waiting", tone: 4, value: (sample) => sample.queued },
];
const REUSE: readonly Series[] = [{ name: "reused", tone: 3, value: (sample) => sample.reusedShare }];

export function EnginePanel() {
    const now = status.value;
    if (now === undefined) return <p class="engine quiet">Nothing is known of the engine yet.</p>;
    return (
        <div class="engine">
            <Device evidence={now.evidence} />
            <Charts now={now} />
            <Model now={now} />
        </div>
    );
}

function Device({ evidence }: { evidence: Evidence }) {
    const { device } = evidence;
    const processor = device === "cpu" || device.startsWith("vulkan-software");
    const stray = evidence.placements.filter((placement) => placement.device !== device && !placement.allowed);
    return (
        <section class="engine-part" aria-labelledby="device-head">
            <h2 id="device-head">Device, as seen</h2>
            <p class="device">
                <span class="device-name">
                    {evidence.backend} on {device}
                </span>
                <span class={processor ? "tag" : "tag tag-good"}>
                    {processor ? "processor" : device === "remote" ? "remote" : "accelerated"}
                </span>
            </p>
            <p class="device-what">{evidence.device_name}</p>
            <p class="quiet">
                Known because {PROOFS[evidence.established_by] ?? evidence.established_by.replaceAll("_", " ")}.
            </p>
            {stray.length > 0 && (
                <p class="problem">
                    <Icon name="alert" />
                    {stray.map(({ component, device: where }) => `${component} ran on ${where}`).join(", ")}
                </p>
            )}
            {evidence.placements.length > 0 && (
                <details class="placements">
                    <summary>
                        <Icon name="chevron" />
                        {evidence.placements.length === 1
                            ? "One placement"
                            : `${evidence.placements.length} placements`}
                    </summary>
                    <table>
                        <thead>
                            <tr>
                                <th scope="col">Part</th>
                                <th scope="col">Seen on</th>
                            </tr>
                        </thead>
                        <tbody>
                            {evidence.placements.map(({ component, device: where, allowed }) => (
                                <tr key={`${component} ${where}`}>
                                    <td>{component}</td>
                                    <td>
                                        {where}
                                        {where !== device && (allowed ? ", as it may" : ", unexpected")}
                                    </td>
                                </tr>
                            ))}
                        </tbody>
                    </table>
                </details>
            )}
        </section>
    );
}

function Charts({ now }: { now: Status }) {
    const samples = history.value;
    const { metrics } = now;
    const { cached_pasts: pasts } = metrics;
    return (
        <section class="engine-part" aria-labelledby="now-head">
            <h2 id="now-head">Now</h2>
            <Chart title="Tokens per second, all" samples={samples} series={SPEED} format={rate} />
            <Chart
                title="Replies running and waiting"
                samples={samples}
                series={QUEUE}
                format={(value) => String(Math.round(value))}
                now={`${metrics.running} + ${metrics.queued}`}
                steps
                legend
            />
            <Chart
                title="Prompt reused"
                samples={samples}
                series={REUSE}
                format={percent}
                top={1}
                now={
                    metrics.reused_share === null
                        ? "nothing read yet"
                        : `${percent(metrics.reused_share)} from ${pasts === 1 ? "one past" : `${pasts} pasts`}`
                }
            />
            {metrics.memory === null ? (
                <p class="quiet">The engine does not tell its memory.</p>
            ) : (
                <Chart title="Memory" samples={samples} series={MEMORY} format={bytes} legend binary />
            )}
        </section>
    );
}

function Model({ now }: { now: Status }) {
    const { model } = now;
    const resident = adapters.value.filter((adapter) => adapter.resident).length;
    return (
        <section class="engine-part" aria-labelledby="model-head">
            <h2 id="model-head">Model</h2>
            <dl class="facts">
                <div>
                    <dt>Name</dt>
                    <dd>{model.name}</dd>
                </div>
                <div>
                    <dt>Architecture</dt>
                    <dd>{model.architecture}</dd>
                </div>
                <div>
                    <dt>Parameters</dt>
                    <dd>{count(model.parameters)}</dd>
                </div>
                <div>
                    <dt>Context</dt>
                    <dd>{tokens(model.context_length)}</dd>
                </div>
                <div>
                    <dt>Pictures</dt>
                    <dd>{model.vision ? "it sees" : "text only"}</dd>
                </div>
                <div>
                    <dt>Adapters</dt>
                    <dd>
                        {resident} of {adapters.value.length} in memory
                    </dd>
                </div>
                <div>
                    <dt>Up for</dt>
                    <dd>{uptime(now.uptime_seconds)}</dd>
                </div>
            </dl>
        </section>
    );
}
