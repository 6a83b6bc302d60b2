//! Prometheus' text format, version 0.0.4.
//!
//! Written here: the numbers are snapshots that the backend and the meters keep already, histograms with their buckets
//! included. A library's registry would have to be fed with copies of them, and writing the lines is all that is left of it.

use std::fmt::Write as _;
use std::time::Duration;

use consort_core::{Histogram, Priority, SidesReport};

use super::{Counts, Snapshot};

/// The exposition of a snapshot.
pub(crate) fn render(snapshot: &Snapshot) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    about(&mut page, snapshot);
    personas(&mut page, &snapshot.personas);
    engine(&mut page, snapshot);
    if let Some(sides) = &snapshot.sides {
        both_sides(&mut page, sides);
    }
    page.0
}

fn about(page: &mut Page, snapshot: &Snapshot) {
    page.family("consort_build_info", "gauge", "What serves: always 1.");
    let labels = [
        ("version", snapshot.version),
        ("model", snapshot.model.as_str()),
        ("backend", snapshot.backend),
        ("device", snapshot.device.as_str()),
    ];
    page.sample("consort_build_info", &labels, 1.0);
    page.gauge("consort_uptime_seconds", "Since the server began.", snapshot.uptime.as_secs_f64());
    page.gauge(
        "consort_http_requests_in_flight",
        "Requests that are read, waiting or answered.",
        snapshot.requests as f64,
    );
    page.gauge("consort_http_connections", "Open connections.", snapshot.connections as f64);
    page.family("consort_http_requests_total", "counter", "Requests by route and status.");
    for ((route, status), count) in &snapshot.answers {
        let status = status.to_string();
        page.sample("consort_http_requests_total", &[("route", route), ("status", &status)], *count as f64);
    }
}

fn personas(page: &mut Page, personas: &[(String, Counts)]) {
    type Number = fn(&Counts) -> u64;
    let numbers: [(&str, &str, &str, Number); 6] = [
        ("consort_persona_active_replies", "gauge", "Replies that wait or are written.", |c| c.active),
        ("consort_persona_refused_total", "counter", "Requests refused: a share or the queue was full.", |c| c.refused),
        ("consort_persona_prompt_tokens_total", "counter", "Tokens of prompts.", |c| c.prompt_tokens),
        ("consort_persona_reused_tokens_total", "counter", "Of these, from the prefix cache.", |c| c.reused_tokens),
        ("consort_persona_completion_tokens_total", "counter", "Tokens of replies.", |c| c.completion_tokens),
        ("consort_persona_replies_started_total", "counter", "Replies that were begun.", |c| {
            c.active + c.finished + c.cancelled + c.failed
        }),
    ];
    for (name, kind, help, number) in numbers {
        page.family(name, kind, help);
        for (persona, counts) in personas {
            page.sample(name, &[("persona", persona)], number(counts) as f64);
        }
    }
    page.family("consort_persona_replies_total", "counter", "Replies by how they ended.");
    for (persona, counts) in personas {
        for (outcome, count) in
            [("finished", counts.finished), ("cancelled", counts.cancelled), ("failed", counts.failed)]
        {
            page.sample("consort_persona_replies_total", &[("persona", persona), ("outcome", outcome)], count as f64);
        }
    }
    type Times = fn(&Counts) -> &Histogram;
    let times: [(&str, &str, Times); 3] = [
        ("consort_persona_time_to_first_token_seconds", "From a request's arrival to its first token.", |c| {
            &c.first_token
        }),
        ("consort_persona_inter_token_seconds", "From one piece of a reply to the next.", |c| &c.inter_token),
        ("consort_persona_reply_seconds", "From a request's arrival to the end of its reply.", |c| &c.duration),
    ];
    for (name, help, histogram) in times {
        page.family(name, "histogram", help);
        for (persona, counts) in personas {
            page.histogram(name, &[("persona", persona)], histogram(counts));
        }
    }
}

fn engine(page: &mut Page, snapshot: &Snapshot) {
    let metrics = &snapshot.engine;
    page.family("consort_queue_waiting", "gauge", "Requests that wait for a slot, by priority.");
    for (name, priority) in [
        ("batch", Priority::Batch),
        ("background", Priority::Background),
        ("interactive", Priority::Interactive),
        ("realtime", Priority::Realtime),
    ] {
        page.sample("consort_queue_waiting", &[("priority", name)], metrics.queued_by.get(priority) as f64);
    }
    let seconds = |duration: Duration| duration.as_secs_f64();
    for (name, help, value) in [
        (
            "consort_queue_oldest_seconds",
            "How long the first in the queue has waited.",
            seconds(metrics.oldest_waiting),
        ),
        ("consort_engine_running", "Requests that are prefilled or decoded.", metrics.running as f64),
        ("consort_engine_background", "Finished turns that have yet to be kept.", metrics.background as f64),
        ("consort_prefix_cache_pasts", "Pasts in the prefix cache.", metrics.cached_pasts as f64),
        ("consort_prefix_cache_bytes", "What they cost.", metrics.cached_bytes as f64),
        ("consort_parked_bytes", "Parked pasts of waiting requests.", metrics.parked_bytes as f64),
        ("consort_image_cache_bytes", "Encoded pictures that are kept.", metrics.image_cache_bytes as f64),
        ("consort_adapters_resident", "Adapters that the engine holds.", metrics.adapters as f64),
        ("consort_adapters_resident_bytes", "What they cost there.", metrics.adapter_bytes as f64),
    ] {
        page.gauge(name, help, value);
    }
    for (name, help, value) in [
        ("consort_engine_requests_total", "Requests accepted.", metrics.requests as f64),
        ("consort_engine_finished_total", "Requests that ended by themselves.", metrics.finished as f64),
        ("consort_engine_cancelled_total", "Requests that were cancelled.", metrics.cancelled as f64),
        ("consort_engine_refused_total", "Requests refused because the queue was full.", metrics.refused as f64),
        ("consort_engine_prompt_tokens_total", "Tokens of prompts.", metrics.prompt_tokens as f64),
        ("consort_engine_reused_tokens_total", "Of these, from the prefix cache.", metrics.reused_tokens as f64),
        ("consort_engine_prefilled_tokens_total", "Tokens of prompts computed.", metrics.prefilled_tokens as f64),
        ("consort_engine_recomputed_tokens_total", "Tokens computed again.", metrics.recomputed_tokens as f64),
        ("consort_engine_generated_tokens_total", "Tokens generated.", metrics.generated_tokens as f64),
        ("consort_engine_steps_total", "Batches.", metrics.steps as f64),
        ("consort_engine_step_sequences_total", "Sequences over all batches.", metrics.step_sequences as f64),
        ("consort_engine_busy_seconds_total", "Time on batches and pictures.", seconds(metrics.busy)),
        ("consort_engine_paced_seconds_total", "Time rested although there was work.", seconds(metrics.paced)),
        ("consort_images_encoded_total", "Pictures encoded.", metrics.images_encoded as f64),
        ("consort_images_reused_total", "Pictures whose embedding was at hand.", metrics.images_reused as f64),
        ("consort_prefix_cache_hits_total", "Requests that began with a kept past.", metrics.cache_hits as f64),
        ("consort_prefix_cache_misses_total", "Requests that found none.", metrics.cache_misses as f64),
        ("consort_prefix_cache_evicted_total", "Kept pasts given up.", metrics.evicted_pasts as f64),
        ("consort_adapter_page_ins_total", "Adapters that came back into the engine.", metrics.adapter_page_ins as f64),
        ("consort_adapter_page_outs_total", "Adapters that left to make room.", metrics.adapter_page_outs as f64),
    ] {
        page.family(name, "counter", help);
        page.sample(name, &[], value);
    }
    page.family("consort_engine_preempted_total", "counter", "Replies that gave their slot up.");
    for (how, count) in [("parked", metrics.preempted_parked), ("recomputed", metrics.preempted_recomputed)] {
        page.sample("consort_engine_preempted_total", &[("past", how)], count as f64);
    }
    page.family("consort_engine_failed_total", "counter", "Requests that ended with an error.");
    let failures = &metrics.failures;
    for (why, count) in [
        ("memory", failures.memory),
        ("deadline", failures.deadline),
        ("poisoned", failures.poisoned),
        ("invalid", failures.invalid),
        ("engine", failures.engine),
    ] {
        page.sample("consort_engine_failed_total", &[("why", why)], count as f64);
    }
    for (name, help, histogram) in [
        (
            "consort_engine_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            &metrics.time_to_first_token,
        ),
        (
            "consort_engine_inter_token_seconds",
            "From one token to the next, where the reader kept up.",
            &metrics.inter_token,
        ),
        ("consort_queue_wait_seconds", "How long requests waited for a slot.", &metrics.queue_wait),
        ("consort_engine_step_seconds", "How long batches took.", &metrics.step_time),
    ] {
        page.family(name, "histogram", help);
        page.histogram(name, &[], histogram);
    }
    if let Some(memory) = &snapshot.memory {
        page.family("consort_memory_bytes", "gauge", "What the engine holds, by kind.");
        for (kind, bytes) in [
            ("weights", memory.weights),
            ("kv_cache", memory.kv_cache),
            ("recurrent_state", memory.recurrent_state),
            ("adapters", memory.adapters),
            ("images", memory.images),
            ("scratch", memory.scratch),
        ] {
            page.sample("consort_memory_bytes", &[("kind", kind)], bytes as f64);
        }
        page.gauge(
            "consort_memory_kept_pasts_bytes",
            "Of caches and states, in the prefix cache.",
            memory.kept_pasts as f64,
        );
        if let Some(budget) = memory.sequence_budget {
            page.gauge("consort_memory_sequence_budget_bytes", "The most for caches and states.", budget as f64);
        }
    }
    page.family("consort_adapter_bytes", "gauge", "Each adapter's size in the engine.");
    for (name, bytes, _) in &snapshot.adapters {
        page.sample("consort_adapter_bytes", &[("adapter", name)], *bytes as f64);
    }
    page.family("consort_adapter_resident", "gauge", "Whether the engine holds it now.");
    for (name, _, resident) in &snapshot.adapters {
        page.sample("consort_adapter_resident", &[("adapter", name)], f64::from(u8::from(*resident)));
    }
}

/// Of an engine here with servers beside it.
fn both_sides(page: &mut Page, sides: &SidesReport) {
    page.family("consort_overflow_info", "gauge", "The backend of each side: always 1.");
    for (side, backend) in [("local", sides.local), ("remote", sides.remote)] {
        page.sample("consort_overflow_info", &[("side", side), ("backend", backend)], 1.0);
    }
    page.gauge("consort_overflow_pending", "Requests of which nothing has come yet.", sides.pending as f64);
    page.family(
        "consort_overflow_answered_total",
        "counter",
        "Replies of which something came, by the side it came from.",
    );
    for (side, count) in [("local", sides.answered_local), ("remote", sides.answered_remote)] {
        page.sample("consort_overflow_answered_total", &[("side", side)], count as f64);
    }
    page.family("consort_overflow_unanswered_total", "counter", "Requests that ended before anything came.");
    for (how, count) in [("failed", sides.failed), ("cancelled", sides.cancelled), ("refused", sides.refused)] {
        page.sample("consort_overflow_unanswered_total", &[("how", how)], count as f64);
    }
    page.family(
        "consort_overflow_taken_total",
        "counter",
        "How often a side took a request, and why it was sent there.",
    );
    for route in &sides.routes {
        let labels = [("side", route.side), ("reason", route.reason)];
        page.sample("consort_overflow_taken_total", &labels, route.requests as f64);
    }
}

/// An exposition that is being written. Writing to a string cannot fail.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        if !labels.is_empty() {
            let pairs: Vec<String> =
                labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let _ = write!(self.0, "{{{}}}", pairs.join(","));
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut sum = 0;
        for (bound, count) in Histogram::BOUNDS.iter().zip(&histogram.buckets) {
            sum += count;
            let bound = bound.as_secs_f64().to_string();
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&bucket, &labels, sum as f64);
        }
        let labels_inf: Vec<_> = labels.iter().copied().chain([("le", "+Inf")]).collect();
        self.sample(&bucket, &labels_inf, histogram.count as f64);
        self.sample(&format!("{name}_sum"), labels, histogram.sum.as_secs_f64());
        self.sample(&format!("{name}_count"), labels, histogram.count as f64);
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_and_each_reason_has_a_line() {
        let route = |side, reason, requests| consort_core::SideRoute { side, reason, requests };
        let sides = SidesReport {
            local: "native",
            remote: "vllm",
            answered_local: 4,
            answered_remote: 2,
            refused: 1,
            pending: 3,
            routes: vec![route("local", "first", 7), route("remote", "queue", 2)],
            ..SidesReport::default()
        };
        let mut page = Page(String::new());
        both_sides(&mut page, &sides);
        for line in [
            r#"consort_overflow_info{side="remote",backend="vllm"} 1"#,
            "consort_overflow_pending 3",
            r#"consort_overflow_answered_total{side="local"} 4"#,
            r#"consort_overflow_unanswered_total{how="refused"} 1"#,
            r#"consort_overflow_taken_total{side="remote",reason="queue"} 2"#,
        ] {
            assert!(page.0.lines().any(|shown| shown == line), "{line}\n{}", page.0);
        }
    }

    #[test]
    fn histograms_are_cumulative_and_labels_escaped() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_micros(150));
        histogram.record(Duration::from_secs(200));
        let mut page = Page(String::new());
        page.histogram("x_seconds", &[("persona", "a\"b\\c\nd")], &histogram);
        let lines: Vec<_> = page.0.lines().collect();
        assert_eq!(lines[0], r#"x_seconds_bucket{persona="a\"b\\c\nd",le="0.0001"} 0"#);
        assert_eq!(lines[1], r#"x_seconds_bucket{persona="a\"b\\c\nd",le="0.0002"} 1"#);
        assert_eq!(lines[18], r#"x_seconds_bucket{persona="a\"b\\c\nd",le="100"} 1"#);
        assert_eq!(lines[19], r#"x_seconds_bucket{persona="a\"b\\c\nd",le="+Inf"} 2"#);
        assert_eq!(lines[20], r#"x_seconds_sum{persona="a\"b\\c\nd"} 200.00015"#);
        assert_eq!(lines[21], r#"x_seconds_count{persona="a\"b\\c\nd"} 2"#);
    }
}
