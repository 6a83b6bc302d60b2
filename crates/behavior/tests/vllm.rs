//! The backend suite against a real vLLM, through each of its front ends: `scripts/vllm.sh` starts it and runs this.
//! Without one, this fails and says so.
//!
//! With `measure` as its argument it runs no case, and tells how far vLLM is from this workspace's own engine and from itself: the
//! tolerances in `common/vllm.rs` are made of that.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::process::ExitCode;

use common::{folder, vllm};
use consort_behavior::backend::distances;
use consort_behavior::backend_cases;
use consort_behavior::harness::{Registered, SuiteKind, run};
use consort_behavior::profile::Profile;

fn register(door: vllm::FrontDoor) -> Result<Registered, String> {
    let fixture = vllm::study(door).map_err(|error| format!("{}: {error}", door.subject))?;
    Ok(Registered {
        subject: fixture.engine.engine.clone(),
        model: fixture.engine.model.clone(),
        capability: fixture.capability,
        cases: backend_cases(&fixture),
    })
}

fn measured() -> Result<(), String> {
    for door in vllm::FRONT_DOORS {
        let fixture = vllm::study(door).map_err(|error| format!("{}: {error}", door.subject))?;
        for distance in distances(&fixture).map_err(|failure| format!("{}: {failure}", door.subject))? {
            println!("{}: {distance}", door.subject);
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == "measure") {
        return match measured() {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => {
                eprintln!("{problem}");
                ExitCode::FAILURE
            }
        };
    }
    let profile = Profile::read(&folder("profiles/vllm.toml"));
    run(SuiteKind::Backends, profile, vllm::FRONT_DOORS.map(register).into())
}
