//! `/v1/status`: what the page shows of the engine.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use consort_core::{DeviceEvidence, MemoryReport, Metrics};
use consort_vision::ImageLimits;
use serde_json::{Value, json};

use crate::app::Shared;
use crate::openai::json_response;

/// Over so long the speed is measured, where somebody asks often enough.
const SPAN: Duration = Duration::from_secs(3);
/// Two looks at the engine are so far apart at least.
const STEP: Duration = Duration::from_millis(250);
/// The memory is not waited for longer than this; an engine in the middle of a long step answers later.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many pictures the page sends in one message, so that the largest still fit into one request.
const PICTURES: usize = 4;

/// The engine's speed, from how many tokens it had generated when it was looked at.
#[derive(Debug, Default)]
pub(crate) struct Pulse(Mutex<VecDeque<(Instant, u64)>>);

impl Pulse {
    /// Tokens a second since the last look that is [`SPAN`] old, or since the oldest one. `None` at the first look.
    fn beat(&self, now: Instant, generated: u64) -> Option<f64> {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while looks.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= SPAN) {
            looks.pop_front();
        }
        let speed = looks.front().and_then(|(at, before)| {
            let seconds = now.saturating_duration_since(*at).as_secs_f64();
            (seconds > 0.0).then(|| generated.saturating_sub(*before) as f64 / seconds)
        });
        if looks.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= STEP) {
            looks.push_back((now, generated));
        }
        speed
    }
}

/// The model, the device as it was seen, the numbers of this moment, and what a message may have.
pub(crate) async fn status(State(app): State<Arc<Shared>>) -> Response {
    let info = app.backend.info();
    let memory = tokio::time::timeout(PATIENCE, app.backend.memory()).await.ok().and_then(Result::ok);
    let metrics = app.backend.metrics();
    let speed = app.pulse.beat(Instant::now(), metrics.generated_tokens);
    json_response(&json!({
        "object": "status",
        "model": {
            "name": app.registry.model().persona.name,
            "architecture": info.architecture,
            "parameters": info.parameters,
            "context_length": info.context_length,
            "vision": app.backend.capability().image_input,
        },
        "evidence": evidence(&app.backend.evidence()),
        "metrics": numbers(&metrics, speed, memory),
        "limits": limits(&app),
        "uptime_seconds": app.uptime().as_secs(),
    }))
}

fn evidence(seen: &DeviceEvidence) -> Value {
    let placement = |p: &consort_core::Placement| json!({ "component": p.component, "device": p.device.to_string(), "allowed": p.allowed });
    json!({
        "backend": seen.backend,
        "device": seen.device.to_string(),
        "device_name": seen.device_name,
        "established_by": seen.established_by,
        "placements": seen.placements.iter().map(placement).collect::<Vec<_>>(),
    })
}

/// What is not known is `null`.
fn numbers(metrics: &Metrics, speed: Option<f64>, memory: Option<MemoryReport>) -> Value {
    let share = (metrics.prompt_tokens > 0).then(|| metrics.reused_tokens as f64 / metrics.prompt_tokens as f64);
    json!({
        "running": metrics.running,
        "queued": metrics.queued,
        "tokens_per_second": speed,
        "reused_share": share,
        "cached_pasts": metrics.cached_pasts,
        "memory": memory.map(|memory| json!({
            "weights": memory.weights,
            "kv_cache": memory.kv_cache,
            "states": memory.recurrent_state,
            "adapters": memory.adapters,
            "images": memory.images,
            "scratch": memory.scratch,
        })),
    })
}

fn limits(app: &Shared) -> Value {
    let limits = &app.config.limits;
    let pictures = limits.images.min(PICTURES);
    // In base64, four characters are three bytes; the rest of the message has its place as well.
    let whole = limits.body_bytes.get().saturating_sub(limits.room_text_bytes.get().saturating_mul(2)) / 4 * 3;
    json!({
        "image_bytes": limits.image_bytes.get().min(whole / pictures.max(1)),
        "image_pixels": ImageLimits::default().max_pixels,
        "images_per_message": pictures,
        "content_bytes": limits.room_text_bytes,
        "image_types": ["image/png", "image/jpeg", "image/webp", "image/gif"],
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_speed_is_of_the_last_seconds() {
        let (pulse, began) = (Pulse::default(), Instant::now());
        let beat = |milliseconds, tokens| pulse.beat(began + Duration::from_millis(milliseconds), tokens);
        assert_eq!(beat(0, 100), None);
        assert_eq!(beat(0, 100), None);
        assert_eq!(beat(500, 150), Some(100.0));
        assert_eq!(beat(1000, 150), Some(50.0));
        // The look at 500 ms is old enough to count from.
        assert_eq!(beat(3500, 450), Some(100.0));
        for milliseconds in (4000..60_000).step_by(10) {
            beat(milliseconds, 450);
        }
        assert_eq!(beat(60_000, 450), Some(0.0));
        assert!(pulse.0.lock().unwrap().len() <= 14, "looks are not kept without end");
    }
}
