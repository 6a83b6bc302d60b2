//! What two backends are together.

use consort_core::{
    AdapterMode, Capability, DeviceEvidence, Histogram, Metrics, ModelBackend, ModelInfo, Placement, Proof,
};

use crate::NAME;

/// The most tokens that a sequence can hold in this backend.
pub(crate) fn room(backend: &dyn ModelBackend) -> usize {
    let most = backend.capability().max_sequence_tokens;
    match backend.info().context_length {
        0 => most,
        context => most.min(context),
    }
}

/// The local side's words, with the longer context of the two.
pub(crate) fn info(local: &ModelInfo, remote: &ModelInfo) -> ModelInfo {
    ModelInfo { context_length: local.context_length.max(remote.context_length), ..local.clone() }
}

fn strength(mode: AdapterMode) -> u8 {
    match mode {
        AdapterMode::None => 0,
        AdapterMode::Exclusive => 1,
        AdapterMode::Grouped => 2,
        AdapterMode::MixedBatch => 3,
    }
}

/// What a side can do that a request may need, either can: such a request goes to it. What is promised of every request,
/// both must promise.
pub(crate) fn capability(local: &dyn ModelBackend, remote: &dyn ModelBackend) -> Capability {
    let (here, there) = (local.capability(), remote.capability());
    let adapted: Vec<_> = [here, there].into_iter().filter(|one| one.adapter_mode != AdapterMode::None).collect();
    // Two engines that each compute the same bits in any batch still differ from each other, and load decides who answers.
    let known = local.info().digest != [0; 32];
    let (seen, reported) = (local.evidence(), remote.evidence());
    let alike = known
        && local.info().digest == remote.info().digest
        && local.name() == remote.name()
        && (seen.device, &seen.device_name) == (reported.device, &reported.device_name);
    Capability {
        image_input: here.image_input || there.image_input,
        max_sequences: here.max_sequences.saturating_add(there.max_sequences),
        max_sequence_tokens: here.max_sequence_tokens.max(there.max_sequence_tokens),
        max_batch_tokens: here.max_batch_tokens.max(there.max_batch_tokens),
        fork: here.fork && there.fork,
        fork_is_shallow: here.fork_is_shallow && there.fork_is_shallow,
        park: here.park && there.park,
        max_rollback: here.max_rollback.min(there.max_rollback),
        adapter_mode: adapted.iter().map(|one| one.adapter_mode).min_by_key(|mode| strength(*mode)).unwrap_or_default(),
        adapter_hot_swap: !adapted.is_empty() && adapted.iter().all(|one| one.adapter_hot_swap),
        activated_adapters: adapted.iter().any(|one| one.activated_adapters),
        prompt_logprobs: here.prompt_logprobs || there.prompt_logprobs,
        logprobs: here.logprobs || there.logprobs,
        structured_output: here.structured_output || there.structured_output,
        device_top_k: here.device_top_k && there.device_top_k,
        embeddings: here.embeddings || there.embeddings,
        snapshot_to_disk: here.snapshot_to_disk && there.snapshot_to_disk,
        batch_invariant: here.batch_invariant && there.batch_invariant && alike,
        logit_tolerance: here.logit_tolerance.max(there.logit_tolerance),
    }
}

/// Both placements, each under its side's name. The device is the local one's, where requests go first.
pub(crate) fn evidence(local: DeviceEvidence, remote: DeviceEvidence) -> DeviceEvidence {
    let named = |side: &'static str, evidence: DeviceEvidence| {
        let placements = match evidence.placements.is_empty() {
            false => evidence.placements,
            // Who names no parts is one part.
            true => vec![Placement { component: evidence.backend, device: evidence.device, allowed: false }],
        };
        placements.into_iter().map(move |part| Placement { component: format!("{side}: {}", part.component), ..part })
    };
    DeviceEvidence {
        backend: NAME.into(),
        device: local.device,
        device_name: format!(
            "local: {} ({}); remote: {} ({})",
            local.device_name, local.device, remote.device_name, remote.device
        ),
        // What one side merely says cannot be called seen.
        established_by: if remote.established_by == Proof::RemoteReport {
            Proof::RemoteReport
        } else {
            local.established_by
        },
        placements: named("local", local).chain(named("remote", remote)).collect(),
    }
}

fn histogram(one: &Histogram, other: &Histogram) -> Histogram {
    let mut sum = *one;
    for (bucket, more) in sum.buckets.iter_mut().zip(&other.buckets) {
        *bucket += more;
    }
    sum.count += other.count;
    sum.sum = sum.sum.saturating_add(other.sum);
    sum.max = sum.max.max(other.max);
    sum
}

/// The sums of both sides, `refused` aside, which whoever composes them counts himself. Adapters are the same on both and are
/// told once.
pub(crate) fn metrics(local: &Metrics, remote: &Metrics, refused: u64, adapters: &Metrics) -> Metrics {
    let mut sum = *local;
    // Named one by one: a field that comes later does not compile until somebody has decided what its sum is.
    let Metrics {
        queued,
        queued_by,
        oldest_waiting,
        running,
        background,
        requests,
        finished,
        cancelled,
        failed,
        failures,
        missed_first_token,
        missed_total,
        refused: _,
        steps,
        step_sequences,
        step_tokens,
        prompt_tokens,
        reused_tokens,
        prefilled_tokens,
        background_tokens,
        recomputed_tokens,
        decoded_tokens,
        generated_tokens,
        preempted_parked,
        preempted_recomputed,
        parked_given_up,
        replays,
        parked_pasts,
        parked_bytes,
        images_encoded,
        images_reused,
        image_cache_bytes,
        cached_pasts,
        cached_bytes,
        cache_hits,
        cache_misses,
        evicted_pasts,
        adapters: _,
        adapter_bytes: _,
        adapter_page_ins,
        adapter_page_outs,
        busy,
        paced,
        time_to_first_token,
        inter_token,
        queue_wait,
        step_time,
    } = remote;
    sum.queued += queued;
    sum.queued_by.batch += queued_by.batch;
    sum.queued_by.background += queued_by.background;
    sum.queued_by.interactive += queued_by.interactive;
    sum.queued_by.realtime += queued_by.realtime;
    sum.oldest_waiting = sum.oldest_waiting.max(*oldest_waiting);
    sum.running += running;
    sum.background += background;
    sum.requests += requests;
    sum.finished += finished;
    sum.cancelled += cancelled;
    sum.failed += failed;
    sum.failures.memory += failures.memory;
    sum.failures.deadline += failures.deadline;
    sum.failures.poisoned += failures.poisoned;
    sum.failures.invalid += failures.invalid;
    sum.failures.engine += failures.engine;
    sum.missed_first_token += missed_first_token;
    sum.missed_total += missed_total;
    sum.refused = refused;
    sum.steps += steps;
    sum.step_sequences += step_sequences;
    sum.step_tokens += step_tokens;
    sum.prompt_tokens += prompt_tokens;
    sum.reused_tokens += reused_tokens;
    sum.prefilled_tokens += prefilled_tokens;
    sum.background_tokens += background_tokens;
    sum.recomputed_tokens += recomputed_tokens;
    sum.decoded_tokens += decoded_tokens;
    sum.generated_tokens += generated_tokens;
    sum.preempted_parked += preempted_parked;
    sum.preempted_recomputed += preempted_recomputed;
    sum.parked_given_up += parked_given_up;
    sum.replays += replays;
    sum.parked_pasts += parked_pasts;
    sum.parked_bytes += parked_bytes;
    sum.images_encoded += images_encoded;
    sum.images_reused += images_reused;
    sum.image_cache_bytes += image_cache_bytes;
    sum.cached_pasts += cached_pasts;
    sum.cached_bytes += cached_bytes;
    sum.cache_hits += cache_hits;
    sum.cache_misses += cache_misses;
    sum.evicted_pasts += evicted_pasts;
    sum.adapters = adapters.adapters;
    sum.adapter_bytes = adapters.adapter_bytes;
    sum.adapter_page_ins += adapter_page_ins;
    sum.adapter_page_outs += adapter_page_outs;
    sum.busy += *busy;
    sum.paced += *paced;
    sum.time_to_first_token = histogram(&sum.time_to_first_token, time_to_first_token);
    sum.inter_token = histogram(&sum.inter_token, inter_token);
    sum.queue_wait = histogram(&sum.queue_wait, queue_wait);
    sum.step_time = histogram(&sum.step_time, step_time);
    sum
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use consort_core::{ByPriority, Device, Failures};

    use super::*;

    #[test]
    fn sums_keep_what_the_metrics_promise() {
        let one = |scale: u64| {
            let mut metrics = Metrics {
                queued: scale,
                queued_by: ByPriority { realtime: scale, ..ByPriority::default() },
                oldest_waiting: Duration::from_secs(scale),
                running: 2 * scale,
                requests: 13 * scale,
                finished: 3 * scale,
                cancelled: 3 * scale,
                failed: 4 * scale,
                failures: Failures { deadline: 3 * scale, engine: scale, ..Failures::default() },
                missed_first_token: scale,
                missed_total: 2 * scale,
                refused: 100 * scale,
                step_tokens: 6 * scale,
                prefilled_tokens: 3 * scale,
                recomputed_tokens: 2 * scale,
                decoded_tokens: scale,
                adapters: scale,
                adapter_bytes: 10 * scale,
                ..Metrics::default()
            };
            for step in 0..scale {
                metrics.step_time.record(Duration::from_millis(3 * (step + 1)));
            }
            metrics
        };
        let sum = metrics(&one(2), &one(5), 9, &one(2));
        assert_eq!(sum.requests, sum.finished + sum.cancelled + sum.failed + sum.queued + sum.running);
        assert_eq!((sum.queued, sum.failed), (sum.queued_by.total(), sum.failures.total()));
        assert_eq!(sum.failures.deadline, sum.missed_first_token + sum.missed_total);
        assert_eq!(sum.step_tokens, sum.prefilled_tokens + sum.recomputed_tokens + sum.decoded_tokens);
        assert_eq!((sum.requests, sum.refused, sum.adapters, sum.adapter_bytes), (91, 9, 2, 20));
        assert_eq!(sum.oldest_waiting, Duration::from_secs(5));
        assert_eq!((sum.step_time.count, sum.step_time.buckets.iter().sum::<u64>()), (7, 7));
        assert_eq!((sum.step_time.sum, sum.step_time.max), (Duration::from_millis(54), Duration::from_millis(15)));
    }

    #[test]
    fn both_sides_are_named_and_the_weaker_proof_counts() {
        let one = |backend: &str, device, established_by, placements| DeviceEvidence {
            backend: backend.into(),
            device,
            device_name: format!("{backend}'s"),
            placements,
            established_by,
        };
        let part = Placement { component: "blk.0".into(), device: Device::Cpu, allowed: false };
        let local = one("native", Device::Cpu, Proof::SingleDeviceKernels, vec![part]);
        let both = evidence(local, one("vllm", Device::Remote, Proof::RemoteReport, Vec::new()));
        assert_eq!((both.backend.as_str(), both.device), ("overflow", Device::Cpu));
        assert_eq!(both.device_name, "local: native's (cpu); remote: vllm's (remote)");
        let parts: Vec<_> = both.placements.iter().map(|part| (part.component.as_str(), part.device)).collect();
        assert_eq!(parts, [("local: blk.0", Device::Cpu), ("remote: vllm", Device::Remote)]);
        assert_eq!(both.established_by, Proof::RemoteReport);
    }
}
