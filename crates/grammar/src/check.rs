//! What can be told of a structure before it is compiled.

use consort_core::{Error, ErrorKind, Result, Structure};
use serde_json::Value;

use crate::GrammarLimits;

/// The name of a structure's kind, for errors.
pub(crate) fn kind(structure: &Structure) -> &'static str {
    match structure {
        Structure::JsonObject => "json_object",
        Structure::JsonSchema(_) => "json_schema",
        Structure::Regex(_) => "regex",
        Structure::Lark(_) => "lark",
        Structure::Choice(_) => "choice",
        _ => "unknown",
    }
}

pub(crate) fn invalid(structure: &'static str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidGrammar, message)
        .with_operation("grammar::compile")
        .with_context("structure", structure)
}

fn too_large(structure: &'static str, what: &'static str, has: usize, most: usize) -> Error {
    invalid(structure, format!("it has {has} {what}, of which at most {most} are taken")).with_context("limit", what)
}

/// # Errors
/// [`ErrorKind::InvalidGrammar`]: it is empty, larger or deeper than the limits.
pub(crate) fn check(structure: &Structure, limits: &GrammarLimits) -> Result<()> {
    let kind = kind(structure);
    match structure {
        Structure::JsonObject => Ok(()),
        Structure::JsonSchema(schema) => check_schema(kind, schema, limits),
        Structure::Regex(regex) => {
            bounded(kind, "bytes", regex.len(), limits.regex_bytes)?;
            check_brackets(kind, regex, limits.depth)
        }
        Structure::Lark(grammar) => {
            if grammar.trim().is_empty() {
                return Err(invalid(kind, "the grammar is empty; it needs a rule `start`"));
            }
            bounded(kind, "bytes", grammar.len(), limits.lark_bytes)?;
            check_brackets(kind, grammar, limits.depth)
        }
        Structure::Choice(choices) => {
            if choices.is_empty() {
                return Err(invalid(kind, "there is nothing to choose from"));
            }
            bounded(kind, "choices", choices.len(), limits.choices)?;
            let bytes = choices.iter().map(String::len).fold(0, usize::saturating_add);
            bounded(kind, "bytes", bytes, limits.choice_bytes)
        }
        _ => Err(invalid(kind, "this kind of structure is not known here")),
    }
}

fn bounded(kind: &'static str, what: &'static str, has: usize, most: usize) -> Result<()> {
    if has <= most { Ok(()) } else { Err(too_large(kind, what, has, most)) }
}

/// Brackets of every kind, escaped or in a class as well: it is the stack that is bounded, not the meaning.
fn check_brackets(kind: &'static str, text: &str, most: usize) -> Result<()> {
    let (mut depth, mut line) = (0usize, 1usize);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                depth += 1;
                if depth > most {
                    return Err(
                        too_large(kind, "levels of brackets", depth, most).with_context("line", line.to_string())
                    );
                }
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'\n' => line += 1,
            _ => {}
        }
    }
    Ok(())
}

/// Walks without recursion: a value that was built by hand can be as deep as memory is large.
fn check_schema(kind: &'static str, schema: &Value, limits: &GrammarLimits) -> Result<()> {
    let (mut bytes, mut values) = (0usize, vec![(schema, 1usize, None::<&str>)]);
    while let Some((value, depth, key)) = values.pop() {
        if depth > limits.depth {
            return Err(too_large(kind, "levels", depth, limits.depth).with_context("key", key.unwrap_or_default()));
        }
        bytes = bytes.saturating_add(8);
        match value {
            Value::String(text) => bytes = bytes.saturating_add(text.len()),
            Value::Array(items) => values.extend(items.iter().map(|item| (item, depth + 1, key))),
            Value::Object(members) => {
                for (name, member) in members {
                    bytes = bytes.saturating_add(name.len());
                    values.push((member, depth + 1, Some(name)));
                }
                // A regular expression in a schema is one.
                if let Some(Value::String(pattern)) = members.get("pattern") {
                    bounded(kind, "bytes of a pattern", pattern.len(), limits.regex_bytes)?;
                    check_brackets(kind, pattern, limits.depth)?;
                }
            }
            _ => {}
        }
        bounded(kind, "bytes", bytes, limits.schema_bytes)?;
    }
    Ok(())
}
