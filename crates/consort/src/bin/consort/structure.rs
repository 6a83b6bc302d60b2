//! The form that a reply must have, as the command line names it.

use std::path::{Path, PathBuf};

use clap::Args;
use consort_core::{Error, ErrorKind, Result, Structure};

use crate::session;

/// Which form, at most one.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
#[command(next_help_heading = "Structure")]
pub struct StructureArgs {
    /// The reply is a JSON object.
    #[arg(long)]
    json_object: bool,
    /// The reply is JSON that is valid under this schema: a file, or the schema itself (it begins with `{`).
    #[arg(long, value_name = "FILE|JSON")]
    json_schema: Option<String>,
    /// The reply as a whole matches this regular expression.
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// The reply is a text of the Lark grammar in this file.
    #[arg(long, value_name = "FILE")]
    lark: Option<PathBuf>,
    /// The reply is one of these texts. Repeat for each.
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
}

impl StructureArgs {
    /// The form that was asked for.
    ///
    /// # Errors
    /// Those of reading a file, and [`ErrorKind::InvalidGrammar`] for a schema that is no JSON.
    pub fn structure(&self) -> Result<Option<Structure>> {
        Ok(if self.json_object {
            Some(Structure::JsonObject)
        } else if let Some(schema) = &self.json_schema {
            Some(Structure::json_schema(json_schema(schema)?))
        } else if let Some(regex) = &self.regex {
            Some(Structure::Regex(regex.clone()))
        } else if let Some(path) = &self.lark {
            Some(Structure::Lark(session::read_text(path)?))
        } else if self.choice.is_empty() {
            None
        } else {
            Some(Structure::Choice(self.choice.clone()))
        })
    }
}

fn json_schema(given: &str) -> Result<serde_json::Value> {
    let inline = given.trim_start().starts_with('{');
    let text = if inline { given.to_owned() } else { session::read_text(Path::new(given))? };
    serde_json::from_str(&text).map_err(|source| {
        let error = Error::new(ErrorKind::InvalidGrammar, format!("the schema is no JSON: {source}"));
        if inline { error } else { error.with_context("path", given) }
    })
}
