//! The form that a reply must have.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

/// The form that a reply must have. Whatever the model would say, only tokens that keep to it can be chosen.
///
/// What is given here is untrusted: what does not compile, or would take more than the backend's limits to match, is
/// refused with [`InvalidGrammar`](crate::ErrorKind::InvalidGrammar) that names what and where.
///
/// ```
/// use consort_core::Structure;
///
/// let colour = Structure::json_schema(serde_json::json!({
///     "type": "object",
///     "properties": { "colour": { "enum": ["red", "green"] } },
///     "required": ["colour"],
///     "additionalProperties": false,
/// }));
/// assert!(matches!(colour, Structure::JsonSchema(_)));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Structure {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that is valid under this JSON Schema.
    JsonSchema(Arc<Value>),
    /// A text that this regular expression matches as a whole, in the syntax of Rust's `regex` without its assertions.
    Regex(String),
    /// A text of this grammar, in the syntax of Lark as llguidance has it; its start is the rule `start`.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl Structure {
    /// A JSON value that is valid under `schema`.
    #[must_use]
    pub fn json_schema(schema: Value) -> Self {
        Self::JsonSchema(Arc::new(schema))
    }
}

/// To which part of a reply its [`Structure`] applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StructureScope {
    /// To the answer. When the prompt leaves the model's reasoning open (`<think>`), the model may reason freely first, and
    /// the structure begins after `</think>`. Else as [`Reply`](Self::Reply).
    #[default]
    Answer,
    /// To all of the reply, from its first token.
    Reply,
}
