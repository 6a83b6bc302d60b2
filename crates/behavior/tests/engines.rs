//! The engine suite, for every engine that this workspace builds.

mod common;

use std::process::ExitCode;

use consort_behavior::engine_cases;
use consort_behavior::fixture::EngineFixture;
use consort_behavior::harness::{Registered, SuiteKind, run};
use consort_behavior::profile::Profile;

fn register(fixture: consort_core::Result<EngineFixture>) -> Result<Registered, String> {
    let fixture = fixture.map_err(|error| error.to_string())?;
    Ok(Registered {
        subject: fixture.engine.clone(),
        model: fixture.model.clone(),
        capability: fixture.capability,
        cases: engine_cases(&fixture),
    })
}

fn main() -> ExitCode {
    let profile = Profile::read(&common::folder("profiles/default.toml"));
    let registered = vec![register(common::parrot()), register(common::hash())];
    run(SuiteKind::Engines, profile, registered)
}
