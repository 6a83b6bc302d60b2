import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";

/** Whole seconds until a moment on the clock of `performance.now()`. Not read out: the region around says it once. */
export function Countdown({ until }: { until: number }) {
    const left = useSignal(Math.max(0, Math.ceil((until - performance.now()) / 1000)));
    useEffect(() => {
        const tick = () => {
            left.value = Math.max(0, Math.ceil((until - performance.now()) / 1000));
        };
        tick();
        const timer = setInterval(tick, 250);
        return () => clearInterval(timer);
    }, [until, left]);
    return <span class="countdown">{left.value} s</span>;
}
