//! The command line of `consort chat`.

use std::path::PathBuf;

use clap::Args;
use consort_core::{Error, ErrorKind, Result};

use super::command::ThinkMode;
use super::settings::MAX_TOKENS;
use super::state::Persona;
use crate::model_args::ModelArgs;
use crate::sampling::SamplingArgs;

/// Arguments of `consort chat`.
#[derive(Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A persona; the first answers first. Repeat for several. Default: one with the model's name.
    #[arg(long, value_name = "NAME[@ADAPTER[@SCALE]][=SYSTEM PROMPT]")]
    pub persona: Vec<String>,
    /// The system prompt of personas that bring none.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// An adapter of personas that bring none: a PEFT folder, a GGUF file, or the name of a bundled one; `@0.5` sets its
    /// scale. Repeat to add several.
    #[arg(long, value_name = "NAME|PATH[@SCALE]")]
    pub adapter: Vec<String>,
    /// A picture to show with the first message. Repeat for several.
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// Whether the model thinks before it answers.
    #[arg(long, value_enum, default_value = "off")]
    pub think: ThinkMode,
    /// The most tokens of a reply.
    #[arg(long, value_name = "N", default_value_t = MAX_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Go on with a conversation that /save kept.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["persona", "system", "adapter"])]
    pub load: Option<PathBuf>,
    /// Remember typed lines in this file. Without it they are forgotten with the chat.
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// A persona of the command line, and the adapters that it brings as `NAME|PATH[@SCALE]`.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenPersona {
    /// It, still without adapters.
    pub persona: Persona,
    /// What its adapters are to be.
    pub adapters: Vec<String>,
}

impl ChatArgs {
    /// Who takes part.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a persona that is not written as `--help` says.
    pub fn cast(&self, model_name: &str) -> Result<Vec<GivenPersona>> {
        let mut cast = Vec::new();
        for spec in &self.persona {
            cast.push(given(spec)?);
        }
        if cast.is_empty() {
            // A model's name may be anything.
            let persona = Persona::new(model_name).or_else(|_| Persona::new("Assistant"))?;
            cast.push(GivenPersona { persona, adapters: Vec::new() });
        }
        for given in &mut cast {
            given.persona.system = given.persona.system.take().or_else(|| self.system.clone());
            given.persona.sampling = self.sampling.clone();
            if given.adapters.is_empty() {
                given.adapters.clone_from(&self.adapter);
            }
        }
        Ok(cast)
    }
}

fn given(spec: &str) -> Result<GivenPersona> {
    let (who, system) = match spec.split_once('=') {
        Some((who, system)) => (who, Some(system.trim().to_owned())),
        None => (spec, None),
    };
    let (name, adapter) = match who.split_once('@') {
        Some((name, adapter)) => (name, Some(adapter.to_owned())),
        None => (who, None),
    };
    if adapter.as_deref() == Some("") || system.as_deref() == Some("") {
        let message =
            "a persona is given as NAME[@ADAPTER[@SCALE]][=SYSTEM PROMPT], such as Ben@pirate or \"Ada=Be kind.\"";
        return Err(Error::new(ErrorKind::InvalidRequest, message).with_context("persona", spec));
    }
    Ok(GivenPersona { persona: Persona { system, ..Persona::new(name)? }, adapters: adapter.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        chat: ChatArgs,
    }

    fn cast(line: &[&str]) -> Result<Vec<GivenPersona>> {
        Line::try_parse_from(std::iter::once(&"x").chain(line)).unwrap().chat.cast("Etude")
    }

    #[test]
    fn personas_bring_what_they_bring() {
        let found = cast(&[
            "--persona=Ada",
            "--persona=Ben@pirate@0.5",
            "--persona=Clara@butler=You are Clara. 1 = 1.",
            "--system=Be kind.",
            "--adapter=calm",
            "--temperature=0.5",
        ])
        .unwrap();
        let of = |index: usize| {
            let given: &GivenPersona = &found[index];
            (given.persona.name.as_str(), given.persona.system.as_deref().unwrap(), given.adapters.join(" "))
        };
        assert_eq!(of(0), ("Ada", "Be kind.", "calm".into()));
        assert_eq!(of(1), ("Ben", "Be kind.", "pirate@0.5".into()));
        assert_eq!(of(2), ("Clara", "You are Clara. 1 = 1.", "butler".into()));
        assert!(found.iter().all(|given| given.persona.sampling.sampling().temperature == 0.5));
        let alone = cast(&[]).unwrap();
        assert_eq!((alone.len(), alone[0].persona.name.as_str()), (1, "Etude"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for spec in ["=x", "Ada@", "Ada=", "two words", ""] {
            let error = cast(&[&format!("--persona={spec}")]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{spec}: {error}");
        }
    }
}
