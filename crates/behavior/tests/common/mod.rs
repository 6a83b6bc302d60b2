//! Fixtures of the engines that this workspace builds.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use consort_behavior::fixture::{EngineFixture, MakeEngine, NamedAdapter, Nature, RefusedAdapter};
use consort_behavior::profile::Profile;
use consort_behavior::toy::HashEngine;
use consort_behavior::{Picture, fixture::Random};
use consort_core::{AdapterFiles, Device, Engine};

// The parrot is an example of the core crate, which a contributor reads before any other engine.
#[path = "../../../core/examples/parrot.rs"]
#[allow(unreachable_pub)]
pub mod parrot;

pub mod forgetful;
pub mod hostile;
#[cfg(feature = "llamacpp")]
pub mod llamacpp;
pub mod lora;
pub mod native;
pub mod overflow;
#[cfg(feature = "vllm")]
pub mod recorded;
pub mod scheduled;
#[cfg(feature = "vllm")]
pub mod vllm;

/// What this build must show.
pub fn profile() -> Result<Profile, String> {
    let profile = Profile::read(&folder("profiles/default.toml"))?;
    #[cfg(feature = "llamacpp")]
    let profile = profile.with(Profile::read(&folder("profiles/llamacpp.toml"))?)?;
    Ok(profile)
}

/// A folder of this crate.
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// What the parrot learns: it visits all of its words.
pub fn lesson() -> Vec<u32> {
    let mut random = Random::new(1);
    (0..400).map(|_| 1 + random.below(63) as u32).collect()
}

/// The parrot with its lesson.
pub fn parrot() -> consort_core::Result<EngineFixture> {
    let lesson = lesson();
    let make: MakeEngine =
        Arc::new(move |setup| Ok(Box::new(parrot::Parrot::new(64, &lesson, setup.policy)?) as Box<dyn Engine>));
    EngineFixture::new("parrot", "", Device::Cpu, 1..64, make)
}

fn adapter(config: &str, seed: u64) -> AdapterFiles {
    AdapterFiles::Bytes { config: config.as_bytes().into(), weights: format!("weights {seed}").into_bytes().into() }
}

/// The toy that notices everything.
pub fn hash() -> consort_core::Result<EngineFixture> {
    let make: MakeEngine = Arc::new(|setup| Ok(Box::new(HashEngine::new(97, setup)?) as Box<dyn Engine>));
    let mut fixture = EngineFixture::new("hash", "", Device::Cpu, 1..90, make)?;
    fixture.nature = Nature { remembers: true, has_positions: true, keeps_budget: true };
    fixture.images =
        vec![Picture::seeded(4, 4, 1), Picture::seeded(4, 4, 2), Picture::seeded(4, 6, 3), Picture::seeded(2, 8, 4)];
    fixture.adapters = (1..4)
        .map(|seed| NamedAdapter { name: format!("persona-{seed}"), files: adapter(r#"{"r": 4}"#, seed) })
        .collect();
    let refused = |why, names, config| RefusedAdapter { why, names, files: adapter(config, 9) };
    fixture.refused_adapters = vec![
        refused("use_dora", "use_dora", r#"{"r": 4, "use_dora": true}"#),
        refused("modules_to_save", "modules_to_save", r#"{"r": 4, "modules_to_save": ["lm_head"]}"#),
    ];
    Ok(fixture)
}
