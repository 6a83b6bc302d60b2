//! Runs suites under libtest's protocol, and then checks that enough of them was there.
//!
//! A run has two parts, and each ends with the line that `cargo test` always prints. The first runs the cases that the
//! filter leaves. The second is not filtered: one check for each engine or backend of the profile, which fails when it
//! is missing, declares too little, has too few cases, or ran too few of them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use consort_core::Capability;
use libtest_mimic::{Arguments, Trial};

use crate::case::Case;
use crate::profile::{Profile, Required};

/// The cases of one engine or backend with one model.
#[derive(Debug)]
pub struct Registered {
    /// What counts are kept by.
    pub subject: String,
    /// The model, or an empty string.
    pub model: String,
    /// What it declares.
    pub capability: Capability,
    /// Its cases.
    pub cases: Vec<Case>,
}

impl Registered {
    fn prefix(&self) -> String {
        if self.model.is_empty() { self.subject.clone() } else { format!("{}::{}", self.subject, self.model) }
    }
}

/// Which of a profile's lists is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuiteKind {
    /// [`Profile::engines`].
    Engines,
    /// [`Profile::backends`].
    Backends,
}

impl SuiteKind {
    fn name(self) -> &'static str {
        match self {
            Self::Engines => "engines",
            Self::Backends => "backends",
        }
    }

    fn of(self, profile: &Profile) -> &BTreeMap<String, Required> {
        match self {
            Self::Engines => &profile.engines,
            Self::Backends => &profile.backends,
        }
    }
}

/// What there was of one subject.
#[derive(Debug, Clone, Default)]
struct Tally {
    capabilities: Vec<Capability>,
    models: Vec<String>,
    registered: usize,
    inapplicable: usize,
    executed: Arc<AtomicUsize>,
}

/// Runs everything; `registered` carries, for a subject that could not be made, why not.
pub fn run(kind: SuiteKind, profile: Result<Profile, String>, registered: Vec<Result<Registered, String>>) -> ExitCode {
    let arguments = Arguments::from_args();
    let filtered = arguments.filter.is_some() || !arguments.skip.is_empty() || arguments.ignored;
    let (profile, mut problems) = match profile {
        Ok(profile) => (Some(profile), Vec::new()),
        Err(problem) => (None, vec![("profile".to_owned(), problem)]),
    };
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut trials = Vec::new();
    let mut names = Vec::new();
    for subject in registered {
        let subject = match subject {
            Ok(subject) => subject,
            Err(problem) => {
                problems.push(("registration".to_owned(), problem));
                continue;
            }
        };
        let tally = tallies.entry(subject.subject.clone()).or_default();
        tally.capabilities.push(subject.capability);
        tally.models.push(subject.model.clone());
        let prefix = subject.prefix();
        for case in subject.cases {
            if case.missing().is_some() {
                tally.inapplicable += 1;
                continue;
            }
            tally.registered += 1;
            let name = format!("{prefix}::{}", case.name());
            let expectation = profile.as_ref().and_then(|profile| {
                let mut expectations = profile.expectations.iter();
                expectations.find(|known| known.suite == kind.name() && known.case == name)
            });
            trials.push(trial(name.clone(), case, expectation.map(|known| known.reason.clone()), &tally.executed));
            names.push(name);
        }
    }
    if let Some(profile) = &profile {
        let known = profile.expectations.iter().filter(|known| known.suite == kind.name());
        for stranger in known.filter(|known| !names.contains(&known.case)) {
            problems.push(("expectations".into(), format!("there is no case {}", stranger.case)));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if arguments.list {
        return conclusion.exit_code();
    }
    let checks = checks(kind, profile.as_ref(), &tallies, problems, filtered);
    let unfiltered = Arguments { color: arguments.color, test_threads: Some(1), ..Arguments::default() };
    let checked = libtest_mimic::run(&unfiltered, checks);
    if conclusion.has_failed() { conclusion.exit_code() } else { checked.exit_code() }
}

/// A trial that counts itself. A case that is expected to fail must.
fn trial(name: String, case: Case, reason: Option<String>, executed: &Arc<AtomicUsize>) -> Trial {
    let executed = Arc::clone(executed);
    Trial::test(name, move || {
        executed.fetch_add(1, Ordering::Relaxed);
        verdict(caught(&case), reason.as_deref()).map_err(Into::into)
    })
}

/// What counts: a case that is known to fail, for a reason, must.
fn verdict(outcome: Result<(), String>, known: Option<&str>) -> Result<(), String> {
    match (outcome, known) {
        (outcome, None) => outcome,
        (Err(_), Some(_)) => Ok(()),
        (Ok(()), Some(reason)) => {
            Err(format!("passes, and the profile expects it to fail ({reason}): strike it there"))
        }
    }
}

/// Runs a case; a panic is a failure.
///
/// # Errors
/// What was wrong.
pub fn caught(case: &Case) -> Result<(), String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.run())) {
        Ok(outcome) => outcome.map_err(|failure| failure.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(format!("panicked: {}", text.unwrap_or("without a message")))
        }
    }
}

fn checks(
    kind: SuiteKind,
    profile: Option<&Profile>,
    tallies: &BTreeMap<String, Tally>,
    problems: Vec<(String, String)>,
    filtered: bool,
) -> Vec<Trial> {
    let mut trials = Vec::new();
    let empty = BTreeMap::new();
    let required = profile.map_or(&empty, |profile| kind.of(profile));
    for (name, required) in required {
        let tally = tallies.get(name).cloned().unwrap_or_default();
        let executed = tally.executed.load(Ordering::Relaxed);
        let title = format!(
            "profile::{name} ({executed} of {} cases executed, at least {}; {} do not apply)",
            tally.registered, required.cases, tally.inapplicable
        );
        let required = required.clone();
        trials.push(Trial::test(title, move || check(&required, &tally, executed, filtered).map_err(Into::into)));
    }
    for name in tallies.keys().filter(|name| !required.contains_key(*name)) {
        trials.push(Trial::test(format!("profile::{name}"), || {
            Err("it is compiled, and the profile does not name it: say there what it must show".into())
        }));
    }
    for (place, problem) in problems {
        trials.push(Trial::test(format!("profile::{place}"), move || Err(problem.into())));
    }
    if required.is_empty() {
        trials.push(Trial::test("profile::nothing", || Err("the profile requires nothing at all".into())));
    }
    trials
}

fn check(required: &Required, tally: &Tally, executed: usize, filtered: bool) -> Result<(), String> {
    if tally.capabilities.is_empty() {
        return Err("it is missing from this build".into());
    }
    for (model, capability) in tally.models.iter().zip(&tally.capabilities) {
        required
            .admits(capability)
            .map_err(|problem| if model.is_empty() { problem } else { format!("with the model {model}: {problem}") })?;
    }
    if let Some(model) = required.models.iter().find(|model| !tally.models.contains(model)) {
        return Err(format!("the model {model} is missing"));
    }
    if tally.registered < required.cases {
        return Err(format!("only {} cases apply, and {} are required", tally.registered, required.cases));
    }
    if !filtered && executed < required.cases {
        return Err(format!("only {executed} cases ran, and {} are required", required.cases));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn required() -> Required {
        let profile = Profile::parse(
            "[engines.x]\ndeclares = [\"fork\"]\nat_least = { max_sequences = 4 }\nlogit_tolerance = 0.1\nmodels = [\"a\"]\ncases = 3",
        );
        profile.unwrap().engines.remove("x").unwrap()
    }

    fn tally() -> Tally {
        let capability = Capability { fork: true, max_sequences: 4, ..Capability::default() };
        Tally { capabilities: vec![capability], models: vec!["a".into()], registered: 3, ..Tally::default() }
    }

    #[test]
    fn what_is_missing_fails() {
        assert_eq!(check(&required(), &tally(), 3, false), Ok(()));
        let fails = |change: fn(&mut Tally), words: &str| {
            let mut tally = tally();
            change(&mut tally);
            // No filter helps.
            let problem = check(&required(), &tally, 3, true).unwrap_err();
            assert!(problem.contains(words), "{problem}");
        };
        fails(|tally| tally.capabilities.clear(), "missing from this build");
        fails(|tally| tally.capabilities[0].fork = false, "fork is not declared");
        fails(|tally| tally.capabilities[0].max_sequences = 3, "max_sequences is 3");
        fails(|tally| tally.capabilities[0].logit_tolerance = 1.0, "tolerance of 1");
        fails(|tally| tally.capabilities[0].logit_tolerance = f32::NAN, "tolerance of NaN");
        fails(
            |tally| tally.capabilities[0].adapter_mode = consort_core::AdapterMode::MixedBatch,
            "adapters are declared",
        );
        fails(|tally| tally.models[0] = "b".into(), "the model a is missing");
        fails(|tally| tally.registered = 2, "only 2 cases apply");
    }

    #[test]
    fn a_filter_excuses_only_what_did_not_run() {
        assert_eq!(check(&required(), &tally(), 1, true), Ok(()));
        assert!(check(&required(), &tally(), 1, false).unwrap_err().contains("only 1 cases ran"));
    }

    #[test]
    fn a_known_failure_must_fail() {
        assert_eq!(verdict(Ok(()), None), Ok(()));
        assert!(verdict(Err("wrong".into()), None).is_err());
        assert_eq!(verdict(Err("wrong".into()), Some("known")), Ok(()));
        assert!(verdict(Ok(()), Some("known")).unwrap_err().contains("strike it"));
    }

    #[test]
    fn a_panic_is_a_failure() {
        let case = Case::new("panics", None, || panic!("on purpose"));
        assert_eq!(caught(&case), Err("panicked: on purpose".into()));
    }

    #[test]
    fn two_profiles_speak_of_different_things() {
        let profile = |name: &str| {
            Profile::parse(&format!("[engines.{name}]\ndeclares = []\nlogit_tolerance = 0.0\ncases = 1")).unwrap()
        };
        let both = profile("x").with(profile("y")).unwrap();
        assert_eq!(both.engines.keys().collect::<Vec<_>>(), ["x", "y"]);
        assert!(profile("x").with(profile("x")).unwrap_err().contains('x'));
    }

    #[test]
    fn a_profile_with_unknown_keys_is_refused() {
        assert!(Profile::parse("[engine.x]\ncases = 1").is_err());
        let stranger = Profile::parse("[engines.x]\ndeclares = [\"flies\"]\nlogit_tolerance = 0.0\ncases = 0").unwrap();
        assert!(stranger.engines["x"].admits(&Capability::default()).unwrap_err().contains("flies"));
    }
}
