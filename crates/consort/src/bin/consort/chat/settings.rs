//! `/set`: the sampling flags of the command line by their names, and the most tokens of a reply.

use std::fmt::Write as _;

use clap::{CommandFactory as _, Parser};
use consort_core::{Error, ErrorKind, Result};

use crate::sampling::SamplingArgs;

/// The most tokens of a reply when nothing is said.
pub const MAX_TOKENS: u32 = 512;

/// What `/set` can change.
#[derive(Parser, Clone, Debug)]
#[command(no_binary_name = true)]
pub struct Settings {
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// The most tokens of a reply. [default: 512]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
}

impl Settings {
    /// Changes one setting; without a value it gets its default back.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a name that is none, or a value without meaning. Nothing changed then.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<()> {
        let name = name.replace('_', "-");
        let refuse =
            |message: String| Error::new(ErrorKind::InvalidRequest, message).with_context("setting", name.clone());
        let known: Vec<_> =
            Self::command().get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect();
        if !known.contains(&name) {
            return Err(refuse(format!("there is no such setting; there are {}", known.join(", "))));
        }
        let mut changed = self.clone();
        match value {
            None if name == "max-tokens" => changed.max_tokens = None,
            None => {
                let unset = |sampling: &SamplingArgs| {
                    let mut fields = fields_of(sampling)?;
                    fields.remove(&name);
                    serde_json::from_value(fields.into())
                };
                changed.sampling = unset(&self.sampling).map_err(|source: serde_json::Error| {
                    Error::new(ErrorKind::Unexpected, "the settings could not be rewritten").with_source(source)
                })?;
            }
            Some(value) => changed.try_update_from([format!("--{name}={value}")]).map_err(|error| {
                // The first line says what is wrong; the others are about a command line that nobody typed.
                let text = error.to_string();
                let line = text.lines().next().unwrap_or_default();
                refuse(line.strip_prefix("error: ").unwrap_or(line).to_owned())
            })?,
        }
        changed.sampling.sampling().validate()?;
        if changed.max_tokens == Some(0) {
            return Err(refuse("a reply has at least one token".into()));
        }
        *self = changed;
        Ok(())
    }

    /// Every setting with what it is about; those that were changed with their values.
    pub fn describe(&self) -> String {
        let mut fields = fields_of(&self.sampling).unwrap_or_default();
        if let Some(most) = self.max_tokens {
            fields.insert("max-tokens".into(), most.into());
        }
        let mut text = String::new();
        for arg in Self::command().get_arguments() {
            let (Some(name), Some(help)) = (arg.get_long().filter(|name| *name != "help"), arg.get_help()) else {
                continue;
            };
            let value = fields.get(name).map_or_else(String::new, |value| format!(" = {value}"));
            let _ = writeln!(text, "  {:<32} {help}", format!("{name}{value}"));
        }
        text
    }
}

/// What was set, by name. Through text, so that 0.7 stays 0.7 and shows no more digits than it was given.
fn fields_of(sampling: &SamplingArgs) -> serde_json::Result<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(&serde_json::to_string(sampling)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings() -> Settings {
        Settings { sampling: SamplingArgs::default(), max_tokens: None }
    }

    #[test]
    fn one_setting_changes_and_the_others_stay() {
        let mut settings = settings();
        settings.set("temperature", Some("0.7")).unwrap();
        settings.set("top_p", Some("0.9")).unwrap();
        settings.set("max-tokens", Some("64")).unwrap();
        settings.set("presence-penalty", Some("-1")).unwrap();
        settings.set("ignore-eos", Some("true")).unwrap();
        let sampling = settings.sampling.sampling();
        assert_eq!((sampling.temperature, sampling.top_p, settings.max_tokens), (0.7, 0.9, Some(64)));
        assert_eq!(sampling.penalties.presence, -1.0);
        let shown = settings.describe();
        assert!(shown.contains("top-p = 0.9") && shown.contains("max-tokens = 64"), "{shown}");
        for name in ["temperature", "top-p", "presence-penalty", "ignore-eos", "max-tokens"] {
            settings.set(name, None).unwrap();
        }
        assert_eq!((settings.sampling, settings.max_tokens), (SamplingArgs::default(), None));
    }

    #[test]
    fn what_is_wrong_changes_nothing() {
        let mut settings = settings();
        for (name, value, expected) in [
            ("heat", "1", "temperature"),
            ("help", "1", "temperature"),
            ("temperature", "hot", "hot"),
            ("temperature", "-1", "temperature"),
            ("top-p", "2", "top_p"),
            ("max-tokens", "0", "one token"),
            ("logit-bias", "forty", "40=-1.5"),
        ] {
            let error = settings.set(name, Some(value)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
            assert!(error.to_string().contains(expected), "{name} {value}: {error}");
        }
        assert_eq!((settings.sampling, settings.max_tokens), (SamplingArgs::default(), None));
    }
}
