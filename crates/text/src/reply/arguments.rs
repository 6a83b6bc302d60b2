//! The types of arguments, from the tools' JSON schemas, and values of these types from text.

use std::collections::HashMap;

use serde_json::Value;

use super::ToolMatch;

/// How many parts of a schema are looked at for one parameter. References make more of them than were written.
const MAX_SCHEMA_PARTS: usize = 256;

/// A set of JSON types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Types(u8);

impl Types {
    const NULL: Self = Self(1);
    const BOOLEAN: Self = Self(1 << 1);
    const INTEGER: Self = Self(1 << 2);
    const NUMBER: Self = Self(1 << 3);
    const ARRAY: Self = Self(1 << 4);
    const OBJECT: Self = Self(1 << 5);
    const STRING: Self = Self(1 << 6);

    fn named(name: &str) -> Self {
        match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOLEAN,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            "array" => Self::ARRAY,
            "object" => Self::OBJECT,
            "string" => Self::STRING,
            _ => Self::default(),
        }
    }

    fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(number) if number.is_f64() => Self::NUMBER,
            Value::Number(_) => Self::INTEGER,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
            Value::String(_) => Self::STRING,
        }
    }

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether every text is a value as it stands.
    pub(super) fn only_strings(self) -> bool {
        self == Self::default() || self == Self::STRING
    }

    /// Whether any text at all is a value, which is then a text unless it spells one of the other types.
    pub(super) fn admit_text(self) -> bool {
        self == Self::default() || self.has(Self::STRING)
    }

    /// The value that `text` spells: the most special of the types that it has, else the text itself.
    ///
    /// Texts are read as JSON; the template writes Python's `True`, `False` and `None` for what stands alone. A number
    /// that we could not hold exactly stays text.
    pub(super) fn value(self, text: String) -> Value {
        if self.only_strings() {
            return Value::String(text);
        }
        let bare = text.trim();
        let value = match bare {
            "null" | "None" if self.has(Self::NULL) => Some(Value::Null),
            "true" | "True" if self.has(Self::BOOLEAN) => Some(Value::Bool(true)),
            "false" | "False" if self.has(Self::BOOLEAN) => Some(Value::Bool(false)),
            _ => serde_json::from_str(bare).ok().filter(|value| self.admits(value) && !has_huge_integer(bare)),
        };
        value.unwrap_or(Value::String(text))
    }

    fn admits(self, value: &Value) -> bool {
        match value {
            Value::Number(number) => {
                // JSON Schema counts 3.0 among the integers.
                let whole = number.as_f64().is_some_and(|number| number.fract() == 0.0);
                self.has(Self::NUMBER) || (self.has(Self::INTEGER) && whole)
            }
            Value::Array(_) => self.has(Self::ARRAY),
            Value::Object(_) => self.has(Self::OBJECT),
            Value::Null | Value::Bool(_) | Value::String(_) => false,
        }
    }
}

impl std::ops::BitOrAssign for Types {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Whether valid JSON has an integer beyond 64 bits, which would be rounded.
fn has_huge_integer(json: &str) -> bool {
    let mut rest = json;
    while let Some(at) = rest.find(['"', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) {
        let from = rest.get(at..).unwrap_or_default();
        let length = if let Some(inside) = from.strip_prefix('"') {
            let mut escaped = false;
            let end = inside.bytes().position(|byte| {
                let ends = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            });
            end.map_or(from.len(), |end| end + 2)
        } else {
            let end = from.bytes().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
            let number = from.get(..end.unwrap_or(from.len())).unwrap_or_default();
            if !number.contains(['.', 'e', 'E']) && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                return true;
            }
            number.len()
        };
        rest = from.get(length.max(1)..).unwrap_or_default();
    }
    false
}

/// The tools that were offered, by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Tools {
    by_name: HashMap<String, Parameters>,
    offered: bool,
}

/// The types of a tool's parameters.
#[derive(Debug, Clone, Default)]
struct Parameters {
    by_key: HashMap<String, Types>,
    others: Types,
}

impl Tools {
    pub(super) fn new(tools: &[Value]) -> Self {
        let mut by_name = HashMap::new();
        for tool in tools {
            let function = tool.get("function").unwrap_or(tool);
            if let Some(name) = function.get("name").and_then(Value::as_str) {
                by_name.insert(name.to_owned(), Parameters::new(function.get("parameters").unwrap_or(&Value::Null)));
            }
        }
        Self { by_name, offered: !tools.is_empty() }
    }

    pub(super) fn find(&self, name: &str) -> ToolMatch {
        match (self.by_name.contains_key(name), self.offered) {
            (true, _) => ToolMatch::Offered,
            (false, true) => ToolMatch::Unknown,
            (false, false) => ToolMatch::Unchecked,
        }
    }

    pub(super) fn types(&self, name: &str, key: &str) -> Types {
        let Some(parameters) = self.by_name.get(name) else { return Types::default() };
        parameters.by_key.get(key).copied().unwrap_or(parameters.others)
    }
}

impl Parameters {
    fn new(schema: &Value) -> Self {
        let types = |part: &Value| types_of(schema, part);
        let properties = schema.get("properties").and_then(Value::as_object);
        Self {
            by_key: properties.into_iter().flatten().map(|(key, part)| (key.clone(), types(part))).collect(),
            others: schema.get("additionalProperties").map(types).unwrap_or_default(),
        }
    }
}

/// The types of one parameter: what `part` of a tool's `schema` names.
pub(super) fn parameter_types(schema: &Value, part: &Value) -> Types {
    types_of(schema, part)
}

/// The types that a part of a schema names, itself or in what it refers to.
fn types_of(schema: &Value, part: &Value) -> Types {
    let (mut types, mut parts) = (Types::default(), vec![part]);
    for _ in 0..MAX_SCHEMA_PARTS {
        let Some(part) = parts.pop() else { break };
        match part.get("type") {
            Some(Value::String(name)) => types |= Types::named(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).for_each(|name| types |= Types::named(name));
            }
            // Without a type, the values that are allowed tell it.
            _ => {
                let values = part.get("enum").and_then(Value::as_array);
                values.into_iter().flatten().chain(part.get("const")).for_each(|value| types |= Types::of(value));
            }
        }
        for word in ["anyOf", "oneOf", "allOf"] {
            let room = MAX_SCHEMA_PARTS.saturating_sub(parts.len());
            parts.extend(part.get(word).and_then(Value::as_array).into_iter().flatten().take(room));
        }
        if let Some(pointer) = part.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#')) {
            parts.extend(schema.pointer(pointer));
        }
    }
    types
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn types(schema: &Value) -> Types {
        let tool = json!({ "name": "f", "parameters": { "properties": { "x": schema }, "$defs": {
            "loop": { "$ref": "#/$defs/loop" }, "many": { "anyOf": [{ "$ref": "#/$defs/many" }, { "$ref": "#/$defs/many" }] },
            "count": { "type": "integer" } } } });
        Tools::new(&[tool]).types("f", "x")
    }

    #[test]
    fn values_have_the_types_of_the_schema() {
        let value = |schema: &Value, text: &str| types(schema).value(text.to_owned());
        for (schema, text, wanted) in [
            (json!({ "type": "string" }), "5", json!("5")),
            (json!({}), "5", json!("5")),
            (json!({ "type": "mystery" }), "5", json!("5")),
            (json!({ "type": "integer" }), "5", json!(5)),
            (json!({ "type": "integer" }), " -5 ", json!(-5)),
            (json!({ "type": "integer" }), "18446744073709551615", json!(u64::MAX)),
            (json!({ "type": "integer" }), "18446744073709551616", json!("18446744073709551616")),
            (json!({ "type": "integer" }), "5.5", json!("5.5")),
            (json!({ "type": "integer" }), "five", json!("five")),
            (json!({ "type": "number" }), "5", json!(5)),
            (json!({ "type": "number" }), "1e+16", json!(1e16)),
            (json!({ "type": "number" }), "nan", json!("nan")),
            (json!({ "type": "number" }), "1e999", json!("1e999")),
            (json!({ "type": "boolean" }), "True", json!(true)),
            (json!({ "type": "boolean" }), "false", json!(false)),
            (json!({ "type": "boolean" }), "yes", json!("yes")),
            (json!({ "type": "null" }), "None", Value::Null),
            (json!({ "type": ["string", "null"] }), "null", Value::Null),
            (json!({ "type": ["string", "null"] }), "true", json!("true")),
            (json!({ "type": "array" }), "[1, \"a\"]", json!([1, "a"])),
            (json!({ "type": "array" }), "{}", json!("{}")),
            (json!({ "type": "object" }), "{\"a\": [1.5]}", json!({ "a": [1.5] })),
            (json!({ "type": "object" }), "{\"a\": 99999999999999999999}", json!("{\"a\": 99999999999999999999}")),
            (
                json!({ "type": "object" }),
                "{\"9\\\"99999999999999999999\": 1}",
                json!({ "9\"99999999999999999999": 1 }),
            ),
            (json!({ "enum": [1, 2] }), "2", json!(2)),
            (json!({ "const": true }), "true", json!(true)),
            (json!({ "anyOf": [{ "type": "integer" }, { "type": "boolean" }] }), "true", json!(true)),
            (json!({ "$ref": "#/$defs/count" }), "7", json!(7)),
            (json!({ "$ref": "#/$defs/loop" }), "7", json!("7")),
            (json!({ "$ref": "#/$defs/many" }), "7", json!("7")),
        ] {
            assert_eq!(value(&schema, text), wanted, "{schema} {text}");
        }
    }

    #[test]
    fn parameters_that_are_not_listed_have_the_type_of_the_others() {
        let tool = json!({ "name": "f", "parameters": { "additionalProperties": { "type": "integer" } } });
        let tools = Tools::new(&[tool, json!(3), json!({ "name": 3 })]);
        assert_eq!(tools.types("f", "any").value("3".into()), json!(3));
        assert_eq!(tools.types("g", "any").value("3".into()), json!("3"));
        assert_eq!((tools.find("f"), tools.find("g")), (ToolMatch::Offered, ToolMatch::Unknown));
        assert_eq!(Tools::new(&[]).find("f"), ToolMatch::Unchecked);
    }
}
