//! What must be there, and how much of it must have run: the suite fails closed.

use std::collections::BTreeMap;
use std::path::Path;

use consort_core::{AdapterMode, Capability};
use serde::Deserialize;

/// What one engine or backend must show in a build profile.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Required {
    /// Fields of [`Capability`] that must be declared: flags that must be true.
    pub declares: Vec<String>,
    /// How adapters must apply.
    #[serde(default)]
    pub adapter_mode: Option<String>,
    /// The least of each numeric limit.
    #[serde(default)]
    pub at_least: BTreeMap<String, u64>,
    /// The largest tolerance that may be declared.
    pub logit_tolerance: f32,
    /// The models with which it must run, for engines that take several.
    #[serde(default)]
    pub models: Vec<String>,
    /// The fewest cases that must run.
    pub cases: usize,
}

/// A case that is known to fail, and must.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// `engines` or `backends`.
    pub suite: String,
    /// The case's full name.
    pub case: String,
    /// Why it fails, and where that is followed.
    pub reason: String,
}

/// A build profile.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Engines that must be there, by name.
    #[serde(default)]
    pub engines: BTreeMap<String, Required>,
    /// Backends that must be there, by name.
    #[serde(default)]
    pub backends: BTreeMap<String, Required>,
    /// Known failures.
    #[serde(default)]
    pub expectations: Vec<Expectation>,
}

impl Profile {
    /// Parses a profile.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Profile {
    /// What this profile and another one require together: an optional engine has a profile of its own, which counts when
    /// the engine is compiled in.
    ///
    /// # Errors
    /// When both speak of one engine or backend.
    pub fn with(mut self, other: Self) -> Result<Self, String> {
        for (mine, others) in [(&mut self.engines, other.engines), (&mut self.backends, other.backends)] {
            for (name, required) in others {
                if mine.insert(name.clone(), required).is_some() {
                    return Err(format!("two profiles speak of {name}"));
                }
            }
        }
        self.expectations.extend(other.expectations);
        Ok(self)
    }
}

impl Required {
    /// Whether a capability is at least what is required.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn admits(&self, capability: &Capability) -> Result<(), String> {
        // The field's names are those of the struct itself, so that a new capability needs no change here.
        let fields = serde_json::to_value(capability).map_err(|error| error.to_string())?;
        for name in &self.declares {
            match fields.get(name) {
                Some(serde_json::Value::Bool(true)) => {}
                Some(serde_json::Value::Bool(false)) => return Err(format!("{name} is not declared")),
                _ => return Err(format!("the profile names {name}, which is no flag of a capability")),
            }
        }
        for (name, least) in &self.at_least {
            match fields.get(name).and_then(serde_json::Value::as_u64) {
                Some(value) if value >= *least => {}
                Some(value) => return Err(format!("{name} is {value}, and at least {least} is required")),
                None => return Err(format!("the profile names {name}, which is no limit of a capability")),
            }
        }
        if let Some(mode) = &self.adapter_mode {
            let declared = serde_json::to_value(capability.adapter_mode).map_err(|error| error.to_string())?;
            if declared.as_str() != Some(mode) {
                return Err(format!("adapter_mode is {declared}, and {mode} is required"));
            }
        } else if capability.adapter_mode != AdapterMode::None {
            return Err("adapters are declared, and the profile does not require them: say so there".into());
        }
        if capability.logit_tolerance.is_nan() || capability.logit_tolerance > self.logit_tolerance {
            return Err(format!(
                "a tolerance of {} is declared, and {} is the most",
                capability.logit_tolerance, self.logit_tolerance
            ));
        }
        Ok(())
    }
}
