//! The backend suite against what was recorded of a real vLLM, through each of its front ends. `scripts/vllm.sh record` records it.
//!
//! A case passes when its backends ask what they asked then, and make of the answers what the suite demands. A case of which nothing
//! was recorded fails.

#![allow(clippy::print_stdout)]

mod common;

use std::process::ExitCode;

use common::folder;
use common::recorded::{LEFT_OUT, Play, parted};
use common::vllm::{FRONT_DOORS, FrontDoor};
use consort_behavior::backend_cases;
use consort_behavior::harness::{Registered, SuiteKind, run};
use consort_behavior::profile::Profile;

fn register(door: FrontDoor) -> Result<Registered, String> {
    let told = |error| format!("{}: {error}", door.subject);
    let play = Play::open(door).map_err(told)?;
    let fixture = play.fixture().map_err(told)?;
    let (cases, left) = parted(backend_cases(&fixture));
    if left.len() != LEFT_OUT.len() {
        return Err(format!("{}: a case that is left out is not there", door.subject));
    }
    for (case, why) in left.iter().filter(|(case, _)| case.missing().is_none()) {
        println!("{}-recorded: {} is left out: {why}", door.subject, case.name());
    }
    Ok(Registered {
        subject: format!("{}-recorded", door.subject),
        model: fixture.engine.model.clone(),
        capability: fixture.capability,
        cases: cases.into_iter().map(|case| play.played(case)).collect(),
    })
}

fn main() -> ExitCode {
    let profile = Profile::read(&folder("profiles/vllm-recorded.toml"));
    run(SuiteKind::Backends, profile, FRONT_DOORS.map(register).into())
}
