//! Dates and times that exist, of bounded length.
//!
//! llguidance's expressions for these formats admit the 29th of February of every year, a 60th second of every minute and any
//! number of digits behind the second. A validator takes neither of the first two, and a model can go on with the third for
//! ever. So the formats become patterns before a schema is compiled: RFC 3339 without leap seconds, years 1000 to 9999, at most
//! nine digits of a second.

use serde_json::{Map, Value, json};

const DATE: &str = concat!(
    "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    // Leap years: of a century the fourths, and every fourth century.
    "|(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29)",
);
const TIME: &str = concat!(
    r"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?",
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9]))",
);

/// Keys whose value is a schema, a list of schemas, or schemas by name.
const SCHEMA: [&str; 10] = [
    "items",
    "additionalProperties",
    "additionalItems",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedProperties",
];
const LIST: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const BY_NAME: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];

/// Rewrites the formats of a schema and of all within it. Its depth is bounded.
pub(crate) fn bound_formats(schema: &mut Value) {
    let Value::Object(members) = schema else { return };
    let pattern = match members.get("format").and_then(Value::as_str) {
        Some("date") => Some(format!("^{DATE}$")),
        Some("time") => Some(format!("^{TIME}$")),
        Some("date-time") => Some(format!("^{DATE}T{TIME}$")),
        _ => None,
    };
    if let Some(pattern) = pattern {
        members.remove("format");
        add_pattern(members, pattern);
    }
    for key in SCHEMA {
        if let Some(inner) = members.get_mut(key) {
            bound_formats(inner);
        }
    }
    for key in LIST {
        if let Some(Value::Array(inner)) = members.get_mut(key) {
            inner.iter_mut().for_each(bound_formats);
        }
    }
    for key in BY_NAME {
        if let Some(Value::Object(inner)) = members.get_mut(key) {
            inner.values_mut().for_each(bound_formats);
        }
    }
}

/// Beside a pattern of its own, if it has one.
fn add_pattern(members: &mut Map<String, Value>, pattern: String) {
    if !members.contains_key("pattern") {
        members.insert("pattern".into(), pattern.into());
        return;
    }
    // What is no list is malformed, and the compiler says so.
    if let Value::Array(all) = members.entry("allOf").or_insert_with(|| json!([])) {
        all.push(json!({ "pattern": pattern }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_rewritten_where_they_are_formats() {
        let mut schema = json!({
            "properties": { "format": { "format": "date" }, "when": { "anyOf": [{ "format": "time", "pattern": "Z$" }] } },
            "items": { "format": "uuid" },
            "enum": [{ "format": "date" }],
        });
        bound_formats(&mut schema);
        assert!(schema["properties"]["format"]["pattern"].is_string());
        let time = &schema["properties"]["when"]["anyOf"][0];
        assert!(time["pattern"] == "Z$" && time["allOf"][0]["pattern"].is_string() && time.get("format").is_none());
        assert_eq!(schema["items"], json!({ "format": "uuid" }));
        assert_eq!(schema["enum"], json!([{ "format": "date" }]), "a value that looks like a schema is a value");
    }
}
