//! The engine suite on a Vulkan driver in software, as `scripts/vulkan.sh` runs it: llama.cpp with exact weights.

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
/// The engine computes nothing on the processor here, whose emulation of a GPU is slow: the models that differ in kind.
const MODELS: [&str; 4] = ["plain", "grouped2", "deep", "moe"];

fn configuration(model: &str) -> Result<Registered> {
    let files = native::converted(model, OutputType::F32)?;
    let fixture = llamacpp::on(ENGINE, model, model, &files, 1)?;
    let cases = engine_cases(&fixture);
    Ok(Registered { subject: fixture.engine, model: fixture.model, capability: fixture.capability, cases })
}

fn main() -> ExitCode {
    let profile = Profile::read(&folder("profiles/vulkan.toml"));
    let engines = MODELS.map(|model| configuration(model).map_err(|error| format!("{model}: {error}")));
    run(SuiteKind::Engines, profile, engines.into())
}
