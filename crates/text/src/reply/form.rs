//! The form of replies that call tools, for who holds replies to it.

use std::fmt::Write as _;

use consort_core::{Error, ErrorKind, Result, Structure};
use serde_json::{Map, Value};

use super::arguments::parameter_types;
use super::tags::{CALL, END_CALL, END_FUNCTION, END_PARAMETER, FUNCTION, MAX_NAME, PARAMETER};

/// How many calls a reply may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallCount {
    /// One.
    One,
    /// One after the other, until the model ends its turn.
    Several,
}

/// What a reply may be that does not call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Otherwise<'a> {
    /// It must call.
    Call,
    /// Any text. Calls may follow it.
    Text,
    /// A JSON value that is valid under this schema, and then no calls.
    Json(&'a Value),
}

/// A form in which every call is whole, names a tool that was offered, and has arguments that are valid under the tool's
/// schema. [`ReplyParser`](super::ReplyParser) reads such a call as the same arguments.
///
/// Parameters come in the order of the schema, the required ones in any case; only those under `properties` can be given.
/// A text argument is any text, as the form has no escapes, or one of the schema's `enum`; every other one is JSON.
///
/// ```
/// use consort_core::Structure;
/// use consort_text::{CallCount, CallForm, Otherwise};
/// use serde_json::json;
///
/// let tools = [json!({ "type": "function", "function": { "name": "look", "parameters": {
///     "type": "object", "properties": { "at": { "enum": ["sky", "sea"] } }, "required": ["at"] } } })];
/// let form = CallForm { tools: &tools, count: CallCount::One, otherwise: Otherwise::Call }.structure()?;
/// assert!(matches!(form, Structure::Lark(_)));
/// # Ok::<(), consort_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct CallForm<'a> {
    /// The tools that may be called, in the OpenAI form, or only what is under their `function`.
    pub tools: &'a [Value],
    /// How many calls a reply may have.
    pub count: CallCount,
    /// What else a reply may be.
    pub otherwise: Otherwise<'a>,
}

impl CallForm<'_> {
    /// The form as a grammar.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidGrammar`]: there is no tool, or the name of a tool or of a parameter cannot stand in the form.
    pub fn structure(&self) -> Result<Structure> {
        if self.tools.is_empty() {
            return Err(invalid("a reply that must call needs a tool to call"));
        }
        let mut rules = String::new();
        let open = quoted(&format!("{CALL}\n"));
        // Writing to a string cannot fail, here and below.
        let _ = match self.otherwise {
            Otherwise::Call => writeln!(rules, "start: {open} calls"),
            Otherwise::Json(schema) => writeln!(rules, "start: {open} calls | %json {}", compact(schema.clone())),
            Otherwise::Text => {
                let tag = regex_of(CALL);
                writeln!(
                    rules,
                    "start: TEXT | before \"\\n\" calls\n\
                     before[lazy]: /(?s:.*){tag}/\n\
                     TEXT: /(?s:.*)/ & ~/(?s:.*){tag}(?s:.*)/"
                )
            }
        };
        let _ = match self.count {
            CallCount::One => writeln!(rules, "calls: call"),
            CallCount::Several => writeln!(rules, "calls: call (\"\\n\" {open} call)*"),
        };
        let names: Vec<String> = (0..self.tools.len()).map(|index| format!("call_{index}")).collect();
        let _ = writeln!(rules, "call: {}", names.join(" | "));
        for (index, tool) in self.tools.iter().enumerate() {
            tool_rules(&mut rules, index, tool)?;
        }
        Ok(Structure::Lark(rules))
    }
}

/// The rules of one tool's call, from behind `<tool_call>` on.
fn tool_rules(rules: &mut String, index: usize, tool: &Value) -> Result<()> {
    let function = tool.get("function").unwrap_or(tool);
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    check_name("tool", name)?;
    let schema = function.get("parameters").unwrap_or(&Value::Null);
    let properties = schema.get("properties").and_then(Value::as_object);
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let mut parts = vec![quoted(&format!("{FUNCTION}{name}>\n"))];
    for (place, (key, part)) in properties.into_iter().flatten().enumerate() {
        check_name("parameter", key).map_err(|error| error.with_context("tool", name))?;
        let optional = if required.contains(&key.as_str()) { "" } else { "?" };
        parts.push(format!("p_{index}_{place}{optional}"));
        let open = quoted(&format!("{PARAMETER}{key}>\n"));
        let close = quoted(&format!("\n{END_PARAMETER}\n"));
        let types = parameter_types(schema, part);
        let _ = if let Some(texts) = texts_of(part) {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            writeln!(rules, "p_{index}_{place}: {open} ({}) {close}", texts.join(" | "))
        } else if types.admit_text() {
            let end = regex_of(&format!("\n{END_PARAMETER}\n"));
            writeln!(rules, "p_{index}_{place}: {open} v_{index}_{place}")
                .and_then(|()| writeln!(rules, "v_{index}_{place}[lazy]: /(?s:.*){end}/"))
        } else {
            writeln!(rules, "p_{index}_{place}: {open} %json {} {close}", compact(with_definitions(schema, part)))
        };
    }
    parts.push(quoted(&format!("{END_FUNCTION}\n{END_CALL}")));
    let _ = writeln!(rules, "call_{index}: {}", parts.join(" "));
    Ok(())
}

/// The texts of an `enum` that has nothing else, each of which can stand in the form.
fn texts_of(part: &Value) -> Option<Vec<&str>> {
    let texts: Vec<&str> = part.get("enum")?.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
    let plain = |text: &&str| !text.is_empty() && !text.contains(END_PARAMETER) && !text.starts_with('\n');
    (!texts.is_empty() && texts.iter().all(plain)).then_some(texts)
}

/// A part of a schema by itself, with what it may refer to.
fn with_definitions(schema: &Value, part: &Value) -> Value {
    let Value::Object(part) = part else { return part.clone() };
    let mut part = part.clone();
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = schema.get(key) {
            part.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    Value::Object(part)
}

/// A schema whose values are written without blanks: in the form, a line's end is one of the form's.
fn compact(schema: Value) -> Value {
    let mut members = match schema {
        Value::Object(members) => members,
        Value::Bool(true) => Map::new(),
        other => return other,
    };
    members.insert("x-guidance".into(), serde_json::json!({ "whitespace_flexible": false }));
    Value::Object(members)
}

fn check_name(what: &'static str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains(['<', '>', '\n']) {
        let shown: String = name.chars().take(80).collect();
        return Err(invalid(format!("a {what}'s name must have 1 to {MAX_NAME} bytes, and no <, > or line break"))
            .with_context(what, format!("{shown:?}")));
    }
    Ok(())
}

/// A text as Lark writes it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A text as a regular expression between slashes.
fn regex_of(text: &str) -> String {
    let mut regex = String::new();
    for symbol in text.chars() {
        match symbol {
            '\n' => regex.push_str("\\n"),
            symbol if symbol.is_ascii_alphanumeric() => regex.push(symbol),
            symbol => {
                let _ = write!(regex, "\\x{{{:x}}}", u32::from(symbol));
            }
        }
    }
    regex
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidGrammar, message).with_operation("text::call_form")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn names_that_cannot_stand_in_the_form_are_refused() {
        let form = |tool: Value| {
            CallForm { tools: &[tool], count: CallCount::One, otherwise: Otherwise::Call }.structure().unwrap_err()
        };
        for tool in [json!({}), json!({ "name": "a>b" }), json!({ "name": "x".repeat(257) })] {
            assert_eq!(form(tool).kind(), ErrorKind::InvalidGrammar);
        }
        let error = form(json!({ "name": "f", "parameters": { "properties": { "a\nb": {} } } }));
        assert!(error.context().any(|pair| pair == ("tool", "f")), "{error}");
        let none = CallForm { tools: &[], count: CallCount::One, otherwise: Otherwise::Call };
        assert_eq!(none.structure().unwrap_err().kind(), ErrorKind::InvalidGrammar);
    }
}
