//! The backend suite against a real vLLM, through each of its front ends: `scripts/vllm.sh` starts it and runs this.
//! Without one, this fails and says so.
//!
//! With `measure` as its argument it runs no case, and tells how far vLLM is from this workspace's own engine and from itself: the
//! tolerances in `common/vllm.rs` are made of that. With the environment variable `CONSORT_VLLM_RECORD` it writes down what the cases
//! say and hear, for the suite against recordings.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::process::ExitCode;

use common::folder;
use common::recorded::Tape;
use common::vllm::{self, FrontDoor};
use consort_behavior::backend::distances;
use consort_behavior::backend_cases;
use consort_behavior::harness::{Registered, SuiteKind, run};
use consort_behavior::profile::Profile;

fn register(door: FrontDoor, tape: Option<&Tape>) -> Result<Registered, String> {
    let fixture = tape.map_or_else(|| vllm::study(door), Tape::fixture);
    let fixture = fixture.map_err(|error| format!("{}: {error}", door.subject))?;
    let cases = backend_cases(&fixture).into_iter();
    Ok(Registered {
        subject: fixture.engine.engine.clone(),
        model: fixture.engine.model.clone(),
        capability: fixture.capability,
        cases: match tape {
            Some(tape) => cases.map(|case| tape.recorded(case)).collect(),
            None => cases.collect(),
        },
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

/// Runs the suite and writes down what is said.
fn recorded(profile: Result<Profile, String>) -> Result<ExitCode, String> {
    let mut tapes = Vec::new();
    let mut registered = Vec::new();
    for door in vllm::FRONT_DOORS {
        let tape = Tape::begin(door).map_err(|error| format!("{}: {error}", door.subject))?;
        let one = register(door, Some(&tape))?;
        let applies = one.cases.iter().filter(|case| case.missing().is_none());
        tapes.push((applies.map(|case| case.name().to_owned()).collect(), tape));
        registered.push(Ok(one));
    }
    let code = run(SuiteKind::Backends, profile, registered);
    for (cases, tape) in tapes {
        println!("{}", tape.end(&cases).map_err(|error| error.to_string())?);
    }
    Ok(code)
}

fn told<T>(result: Result<T, String>, code: impl FnOnce(T) -> ExitCode) -> ExitCode {
    match result {
        Ok(done) => code(done),
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == "measure") {
        return told(measured(), |()| ExitCode::SUCCESS);
    }
    let profile = Profile::read(&folder("profiles/vllm.toml"));
    if std::env::var_os("CONSORT_VLLM_RECORD").is_some() {
        return told(recorded(profile), |code| code);
    }
    run(SuiteKind::Backends, profile, vllm::FRONT_DOORS.map(|door| register(door, None)).into())
}
