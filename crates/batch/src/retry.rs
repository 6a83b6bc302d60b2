//! What is asked again, when, and how often.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::target::{Answer, Fault, FaultKind, Place};

/// No server is obeyed that wants to be left alone for longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How failures that are temporary are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a request is asked at most.
    pub attempts: u32,
    /// The pause before the second time. It doubles each time, and is jittered: from half of it to all.
    pub first_pause: Duration,
    /// The longest pause that we choose ourselves.
    pub longest_pause: Duration,
    /// Retries of the whole run. When they are spent, the run stops. `None`: as many as the requests have attempts.
    pub budget: Option<u64>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 6, first_pause: Duration::from_secs(1), longest_pause: Duration::from_secs(60), budget: None }
    }
}

impl RetryPolicy {
    /// The pause after so many failures, from 1.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
        let whole = self.first_pause.saturating_mul(doubled).min(self.longest_pause);
        whole.mul_f64(0.5 + 0.5 * chance())
    }
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Most likely all requests fare the same.
    Server,
    /// It may be this request alone.
    Request,
}

/// What is to be done about an outcome.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// It stands.
    Final,
    /// There is too much at once in this process: wait.
    Busy,
    /// Ask again.
    Again(Blame),
    /// No request will be answered before somebody has done something about it.
    Hopeless(&'static str),
}

/// Judges an outcome. `body` is the answer's, where it is JSON and no good one.
pub(crate) fn judge(place: Place, outcome: &Result<Answer, Fault>, body: Option<&Value>) -> Verdict {
    let code = |word: &str| body.and_then(|body| body.pointer("/error/code")).and_then(Value::as_str) == Some(word);
    match outcome {
        Err(Fault { kind: FaultKind::Unreachable, .. }) => Verdict::Again(Blame::Server),
        Err(Fault { kind: FaultKind::Late, .. }) => Verdict::Again(Blame::Request),
        Err(Fault { kind: FaultKind::Permanent, .. }) => Verdict::Final,
        Ok(answer) if answer.is_good() => Verdict::Final,
        Ok(answer) => match (place, answer.status) {
            (Place::Here, 429 | 529) => Verdict::Busy,
            // The engine is a server itself, and does not answer.
            (Place::Here, 503) if code("engine_unavailable") => Verdict::Again(Blame::Server),
            (Place::Here, 503) => Verdict::Again(Blame::Request),
            (Place::Here, _) => Verdict::Final,
            (Place::There, 401) => Verdict::Hopeless("the server refuses the API key"),
            (Place::There, 429) if code("insufficient_quota") => Verdict::Hopeless("the account has no quota left"),
            (Place::There, _) if answer.retry == Some(false) => Verdict::Final,
            (Place::There, 429 | 502 | 503 | 504 | 529) => Verdict::Again(Blame::Server),
            (Place::There, 408 | 425 | 500) => Verdict::Again(Blame::Request),
            (Place::There, _) if answer.retry == Some(true) => Verdict::Again(Blame::Request),
            (Place::There, _) => Verdict::Final,
        },
    }
}

/// After how long a server wants to be asked again, by its headers (RFC 9110, 10.2.3, and `retry-after-ms`).
pub(crate) fn retry_after(seconds: Option<&str>, milliseconds: Option<&str>) -> Option<Duration> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| *number >= 0.0 && number.is_finite());
    let pause = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
    if let Some(milliseconds) = milliseconds.and_then(number) {
        return Some(pause(milliseconds / 1000.0));
    }
    let text = seconds?;
    if let Some(seconds) = number(text) {
        return Some(pause(seconds));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    let left = date.duration_since(std::time::SystemTime::now()).unwrap_or_default();
    Some(left.min(LONGEST_PAUSE))
}

/// Keeps all requests back while a server wants to be left alone.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<Option<Instant>>);

impl Gate {
    /// Nobody passes for so long.
    pub(crate) fn close_for(&self, pause: Duration) {
        let until = Instant::now() + pause.min(LONGEST_PAUSE);
        let mut closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *closed = Some(closed.map_or(until, |before| before.max(until)));
    }

    fn until(&self) -> Option<Instant> {
        let closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        closed.filter(|until| *until > Instant::now())
    }

    /// Waits until it is open. Those who waited do not all go at once.
    pub(crate) async fn pass(&self) {
        while let Some(until) = self.until() {
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep_until(until + left.mul_f64(0.1 * chance())).await;
        }
    }
}

/// A number from 0 to 1 that nobody foresees: the standard library seeds its hash maps from the system.
fn chance() -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let part = (RandomState::new().hash_one(0) >> 11) as f64;
    part / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: u16) -> Result<Answer, Fault> {
        Ok(Answer { status, ..Answer::default() })
    }

    #[test]
    fn what_is_temporary_is_told_from_what_is_not() {
        use Blame::{Request, Server};
        for (status, here, there) in [
            (200, Verdict::Final, Verdict::Final),
            (400, Verdict::Final, Verdict::Final),
            (404, Verdict::Final, Verdict::Final),
            (408, Verdict::Final, Verdict::Again(Request)),
            (429, Verdict::Busy, Verdict::Again(Server)),
            (529, Verdict::Busy, Verdict::Again(Server)),
            (500, Verdict::Final, Verdict::Again(Request)),
            (501, Verdict::Final, Verdict::Final),
            (502, Verdict::Final, Verdict::Again(Server)),
            (503, Verdict::Again(Request), Verdict::Again(Server)),
            (504, Verdict::Final, Verdict::Again(Server)),
        ] {
            assert_eq!(judge(Place::Here, &answer(status), None), here, "{status}");
            assert_eq!(judge(Place::There, &answer(status), None), there, "{status}");
        }
        assert!(matches!(judge(Place::There, &answer(401), None), Verdict::Hopeless(_)));
        let body = json!({ "error": { "code": "insufficient_quota" } });
        assert!(matches!(judge(Place::There, &answer(429), Some(&body)), Verdict::Hopeless(_)));
        let body = json!({ "error": { "code": "engine_unavailable" } });
        assert_eq!(judge(Place::Here, &answer(503), Some(&body)), Verdict::Again(Server));
        let told = |status, retry| judge(Place::There, &Ok(Answer { status, retry, ..Answer::default() }), None);
        assert_eq!((told(500, Some(false)), told(409, Some(true))), (Verdict::Final, Verdict::Again(Request)));
        let fault = |kind| judge(Place::There, &Err(Fault { kind, code: "x", message: String::new() }), None);
        assert_eq!(fault(FaultKind::Unreachable), Verdict::Again(Server));
        assert_eq!((fault(FaultKind::Late), fault(FaultKind::Permanent)), (Verdict::Again(Request), Verdict::Final));
    }

    #[test]
    fn pauses_double_and_are_bounded() {
        let policy = RetryPolicy {
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(1),
            ..RetryPolicy::default()
        };
        for (failures, whole) in [(1, 100), (2, 200), (3, 400), (5, 1000), (u32::MAX, 1000)] {
            let pause = policy.pause(failures).as_millis();
            assert!((whole / 2..=whole).contains(&pause), "{failures}: {pause}");
        }
        let many: std::collections::HashSet<Duration> = (0..20).map(|_| policy.pause(1)).collect();
        assert!(many.len() > 10, "they are jittered");
    }

    #[test]
    fn a_server_says_when() {
        let seconds = |text: &str| retry_after(Some(text), None);
        assert_eq!(seconds("3"), Some(Duration::from_secs(3)));
        assert_eq!(seconds(" 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(seconds("99999999999999999999"), Some(LONGEST_PAUSE));
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let later = std::time::SystemTime::now() + Duration::from_secs(30);
        let wait = seconds(&httpdate::fmt_http_date(later)).unwrap_or_default();
        assert!((25..=30).contains(&wait.as_secs()), "{wait:?}");
        for none in ["", "soon", "-1", "inf", "NaN"] {
            assert_eq!(seconds(none), None, "{none}");
        }
        assert_eq!(retry_after(Some("9"), Some("250")), Some(Duration::from_millis(250)));
        assert_eq!(retry_after(None, None), None);
    }

    #[tokio::test]
    async fn the_gate_keeps_everybody_back_until_the_latest_moment() {
        let gate = Gate::default();
        gate.pass().await;
        let begun = Instant::now();
        gate.close_for(Duration::from_millis(60));
        gate.close_for(Duration::from_millis(10));
        tokio::join!(gate.pass(), gate.pass());
        assert!(begun.elapsed() >= Duration::from_millis(60));
    }
}
