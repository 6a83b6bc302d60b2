//! Goldens of the engine suite on a Vulkan driver in software, as `scripts/vulkan.sh` runs it: llama.cpp with exact weights.

mod common;

use std::process::ExitCode;

use common::{folder, llamacpp, native};
use consort_behavior::engine_cases;
use consort_behavior::harness::{Registered, SuiteKind, run};
use consort_behavior::profile::Profile;
use consort_core::{Device, Result};
use consort_forge::OutputType;

/// As evidence names it where the library was told to see it.
const ENGINE: (&str, Device) = ("llamacpp-vulkan", Device::SoftwareVulkan(0));
/// A processor that plays a GPU takes ten seconds and more for a case.
const MODEL: &str = "plain";
/// What is held against transformers: logits and greedy tokens after short texts.
const CASES: [&str; 3] = ["golden::text-1::", "golden::text-2::", "golden::text-3::"];

fn configuration(model: &str) -> Result<Registered> {
    let files = native::converted(model, OutputType::F32)?;
    let fixture = llamacpp::on(ENGINE, model, model, &files, 1)?;
    let wanted = |name: &str| CASES.iter().any(|case| name.starts_with(case));
    let cases = engine_cases(&fixture).into_iter().filter(|case| wanted(case.name())).collect();
    Ok(Registered { subject: fixture.engine, model: fixture.model, capability: fixture.capability, cases })
}

fn main() -> ExitCode {
    let profile = Profile::read(&folder("profiles/vulkan.toml"));
    let engines = vec![configuration(MODEL).map_err(|error| format!("{MODEL}: {error}"))];
    run(SuiteKind::Engines, profile, engines)
}
