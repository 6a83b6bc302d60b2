//! The backend suite, for every engine of this workspace behind the scheduler.

mod common;

use std::process::ExitCode;

use common::overflow::{Answers, overflow};
use common::scheduled;
use consort_behavior::backend::BackendFixture;
use consort_behavior::backend_cases;
use consort_behavior::harness::{Registered, SuiteKind, run};
use consort_core::Result;

fn register(fixture: Result<BackendFixture>) -> Result<Registered, String> {
    let fixture = fixture.map_err(|error| error.to_string())?;
    Ok(Registered {
        subject: fixture.engine.engine.clone(),
        model: fixture.engine.model.clone(),
        capability: fixture.engine.capability,
        cases: backend_cases(&fixture),
    })
}

/// The study model: its conversations and its goldens.
fn etude() -> Option<Result<Registered, String>> {
    let registered = register(scheduled::etude()?).map(|mut registered| {
        let of_interest = ["the_second_turn", "a_conversation", "greedy_of_the_goldens", "a_room_of_eight_reads"];
        registered.cases.retain(|case| of_interest.iter().any(|name| case.name().starts_with(name)));
        registered
    });
    Some(registered)
}

fn main() -> ExitCode {
    let profile = common::profile();
    let mut backends = vec![register(scheduled::parrot()), register(scheduled::hash(None))];
    backends.extend(["plain", "grouped2", "deep", "moe"].map(|model| register(scheduled::native(model))));
    backends.extend(etude());
    for answers in [Answers::Local, Answers::Remote, Answers::InTurns] {
        backends.push(register(overflow(scheduled::hash(None), answers)));
    }
    #[cfg(feature = "llamacpp")]
    backends.extend(["plain", "grouped2", "deep", "moe"].map(|model| register(scheduled::llamacpp(model))));
    run(SuiteKind::Backends, profile, backends)
}
