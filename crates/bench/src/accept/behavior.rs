//! What the behaviour suite printed.

use std::path::Path;

use consort_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a suite showed of one engine or backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuiteResult {
    /// `engines` or `backends`.
    pub suite: String,
    /// Whose cases.
    pub subject: String,
    /// Cases that ran.
    pub executed: usize,
    /// Cases that there are.
    pub registered: usize,
    /// Whether the profile's requirements were met.
    pub complete: bool,
    /// Names of cases that failed.
    pub failed: Vec<String>,
}

/// The output of `cargo test -p consort-behavior`, read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BehaviorResults {
    /// One for each suite and subject.
    pub suites: Vec<SuiteResult>,
}

impl BehaviorResults {
    /// Reads the suites' saved output.
    ///
    /// # Errors
    /// Those of reading. A file that says nothing gives no results, and so shows nothing.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Reads lines as libtest prints them: `Running tests/backends.rs (...)` before a suite, `test NAME ... ok` for a case,
    /// and `test profile::NAME (E of R cases executed, at least M; I do not apply) ... ok` for what was required.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut suites: Vec<SuiteResult> = Vec::new();
        let mut suite = String::from("unknown");
        let mut failed: Vec<String> = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("Running ") {
                let name = rest.split_ascii_whitespace().next().unwrap_or_default();
                suite = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
                failed.clear();
            }
            let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once("... ")) else {
                continue;
            };
            let (name, ok) = (name.trim(), outcome.trim() == "ok");
            match name.strip_prefix("profile::").and_then(profile) {
                Some((subject, executed, registered)) => {
                    let own = format!("{subject}::");
                    let failed = failed.iter().filter(|case| case.starts_with(&own)).cloned().collect();
                    suites.push(SuiteResult {
                        suite: suite.clone(),
                        subject,
                        executed,
                        registered,
                        complete: ok,
                        failed,
                    });
                }
                None if !ok && outcome.trim() != "ignored" => failed.push(name.to_owned()),
                None => {}
            }
        }
        Self { suites }
    }

    /// The result of one suite for one backend: the worst, where it ran more than once.
    #[must_use]
    pub fn of(&self, suite: &str, subject: &str) -> Option<&SuiteResult> {
        let found = self.suites.iter().filter(|found| found.suite == suite && found.subject == subject);
        found.min_by_key(|found| (found.complete && found.failed.is_empty(), found.executed))
    }
}

/// `native (475 of 475 cases executed, at least 475; 12 do not apply)`.
fn profile(text: &str) -> Option<(String, usize, usize)> {
    let (subject, rest) = text.split_once(" (")?;
    let (executed, rest) = rest.split_once(" of ")?;
    let (registered, _) = rest.split_once(" cases executed")?;
    Some((subject.to_owned(), executed.parse().ok()?, registered.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const OUTPUT: &str = "
     Running tests/backends.rs (target/debug/deps/backends-1)

running 3 tests
test native::plain::cancel ... ok
test native::plain::overload ... FAILED
test other::x ... ok

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s

running 2 tests
test profile::native (475 of 480 cases executed, at least 475; 12 do not apply)    ... ok
test profile::other (3 of 3 cases executed, at least 5; 0 do not apply) ... FAILED
";

    #[test]
    fn the_suites_output_is_read() {
        let found = BehaviorResults::parse(OUTPUT);
        let native = found.of("backends", "native").unwrap();
        assert_eq!((native.executed, native.registered, native.complete), (475, 480, true));
        assert_eq!(native.failed, ["native::plain::overload"]);
        let other = found.of("backends", "other").unwrap();
        assert!(!other.complete && other.failed.is_empty());
        assert!(found.of("engines", "native").is_none() && found.of("backends", "nobody").is_none());
        assert!(BehaviorResults::parse("nothing here\ntest x ... ok").suites.is_empty());
    }

    #[test]
    fn the_worst_of_two_runs_counts() {
        let good = OUTPUT.replace("overload ... FAILED", "overload ... ok");
        for both in [format!("{good}{OUTPUT}"), format!("{OUTPUT}{good}")] {
            assert!(!BehaviorResults::parse(&both).of("backends", "native").unwrap().failed.is_empty());
        }
        assert!(BehaviorResults::parse(&good).of("backends", "native").unwrap().failed.is_empty());
    }
}
