//! A request's JSON object, of which every field is taken or refused.

use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::Failure;

/// The fields of an object that nobody has taken yet. `null` counts as not given, as in OpenAI's API.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Where the object stands, as `messages[0]`; empty for the body itself.
    path: String,
    values: Map<String, Value>,
}

impl Fields {
    /// The fields of a value that stands at `path`.
    ///
    /// # Errors
    /// It is no object.
    pub(crate) fn of(value: Value, path: impl Into<String>) -> Result<Self, Failure> {
        let path = path.into();
        match value {
            Value::Object(mut values) => {
                values.retain(|_, value| !value.is_null());
                Ok(Self { path, values })
            }
            other => Err(wrong_type(&path, "an object", &other)),
        }
    }

    /// The fields of a body.
    ///
    /// # Errors
    /// It is no JSON, or no object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Failure> {
        let value = serde_json::from_slice(body).map_err(|error| {
            // Its message shows at most a place and what was expected, nothing of the body.
            Failure::invalid("invalid_json", format!("the body is no JSON: {error}"))
        })?;
        Self::of(value, "")
    }

    /// How a field of this object is called in errors.
    #[must_use]
    pub(crate) fn param(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Whether there is such a field, not taken yet.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// A field that stays where it is.
    pub(crate) fn value_mut(&mut self, name: &str) -> Option<&mut Value> {
        self.values.get_mut(name)
    }

    /// Takes a field as it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        recording::note(&self.param(name));
        self.values.swap_remove(name)
    }

    /// Takes a field.
    ///
    /// # Errors
    /// It is of another type.
    pub(crate) fn get<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        let Some(value) = self.take(name) else { return Ok(None) };
        serde_json::from_value(value).map(Some).map_err(|error| {
            let param = self.param(name);
            // What serde says shows a short part of the value at most, and not if it is a text.
            let message = format!("`{param}` has a wrong type or value: {}", without_contents(&error.to_string()));
            Failure::invalid("invalid_type", message).with_param(param)
        })
    }

    /// Takes a field that must be there.
    ///
    /// # Errors
    /// It is not, or is of another type.
    pub(crate) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Failure> {
        self.get(name)?.ok_or_else(|| missing(&self.param(name)))
    }

    /// Takes an object.
    ///
    /// # Errors
    /// It is of another type.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>, Failure> {
        let param = self.param(name);
        self.take(name).map(|value| Self::of(value, param)).transpose()
    }

    /// Takes a list, each item with its place.
    ///
    /// # Errors
    /// It is of another type, or longer than `most`.
    pub(crate) fn list(&mut self, name: &str, most: usize) -> Result<Option<Vec<(String, Value)>>, Failure> {
        let param = self.param(name);
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) if items.len() > most => {
                let message = format!("`{param}` has {} items; at most {most} are taken", items.len());
                Err(Failure::value(param, message))
            }
            Some(Value::Array(items)) => {
                Ok(Some(items.into_iter().enumerate().map(|(at, item)| (format!("{param}[{at}]"), item)).collect()))
            }
            Some(other) => Err(wrong_type(&param, "an array", &other)),
        }
    }

    /// Takes fields that change nothing here: who asks, what the client keeps for itself.
    pub(crate) fn harmless(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Takes a field of which only some values are supported.
    ///
    /// # Errors
    /// It has another one.
    pub(crate) fn only(&mut self, name: &str, allowed: &[Value]) -> Result<(), Failure> {
        match self.take(name) {
            Some(value) if !allowed.contains(&value) => {
                let param = self.param(name);
                let values: Vec<String> = allowed.iter().map(Value::to_string).collect();
                let message = format!("`{param}` is supported as {} only", values.join(" or "));
                Err(Failure::unsupported(param, message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses fields that the API has and this server does not.
    ///
    /// # Errors
    /// One is there. `why` says what to do instead.
    pub(crate) fn unsupported(&mut self, names: &[&str], why: &str) -> Result<(), Failure> {
        match names.iter().find(|name| self.values.contains_key(**name)) {
            None => Ok(()),
            Some(name) => {
                let param = self.param(name);
                Err(Failure::unsupported(param.clone(), format!("`{param}` is not supported: {why}")))
            }
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// A field that nobody has taken: none is ignored.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(name) => {
                let shown: String = name.chars().take(80).collect();
                let param = self.param(&shown);
                Err(Failure::invalid("unknown_parameter", format!("unknown parameter: `{param}`")).with_param(param))
            }
        }
    }
}

#[cfg(test)]
pub(crate) use recording::{record, recorded};

/// Which fields readers ask for: the description is held to it.
#[cfg(test)]
mod recording {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static ASKED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    }

    /// Begins anew, on this thread.
    pub(crate) fn record() {
        ASKED.with_borrow_mut(BTreeSet::clear);
    }

    /// All that were asked for since, with `[]` for every place in a list.
    pub(crate) fn recorded() -> BTreeSet<String> {
        ASKED.with_borrow(Clone::clone)
    }

    pub(super) fn note(param: &str) {
        let mut pieces = param.split('[');
        let mut path = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            path.push_str("[]");
            path.push_str(piece.split_once(']').map_or("", |(_, rest)| rest));
        }
        ASKED.with_borrow_mut(|asked| asked.insert(path));
    }
}

/// A field that must be there and is not.
pub(crate) fn missing(param: &str) -> Failure {
    Failure::invalid("missing_required_parameter", format!("`{param}` is missing")).with_param(param)
}

/// A value of another type than it must be.
pub(crate) fn wrong_type(param: &str, expected: &str, found: &Value) -> Failure {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    if param.is_empty() {
        let message = format!("the body must be {expected}, and is {found}");
        return Failure::refused(StatusCode::BAD_REQUEST, "invalid_type", message);
    }
    Failure::invalid("invalid_type", format!("`{param}` must be {expected}, and is {found}")).with_param(param)
}

/// serde quotes a text that it did not expect; a client's log should not have to hold it.
fn without_contents(message: &str) -> String {
    match (message.find("string \""), message.rfind("\", expected")) {
        (Some(begin), Some(end)) => {
            format!("{}string{}", message.get(..begin).unwrap_or_default(), message.get(end + 1..).unwrap_or_default())
        }
        _ => message.chars().take(300).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn each_field_is_taken_or_refused_by_name() {
        let mut fields =
            Fields::of(json!({ "a": 1, "b": "secret", "c": null, "d": { "e": [1, 2] }, "f": true }), "x[0]").unwrap();
        assert_eq!(fields.get::<u32>("a").unwrap(), Some(1));
        assert_eq!(fields.get::<u32>("c").unwrap(), None);
        let error = fields.get::<u32>("b").unwrap_err();
        assert_eq!(error.param(), Some("x[0].b"));
        assert!(!error.message().contains("secret"), "{}", error.message());
        assert_eq!(fields.require::<u32>("c").unwrap_err().code(), "missing_required_parameter");
        let mut inner = fields.object("d").unwrap().unwrap();
        assert_eq!(inner.list("e", 1).unwrap_err().param(), Some("x[0].d.e"));
        inner.finish().unwrap();
        assert_eq!(fields.only("f", &[json!(false)]).unwrap_err().param(), Some("x[0].f"));
        let left = Fields::of(json!({ "g": 1 }), "").unwrap();
        assert_eq!(left.finish().unwrap_err().param(), Some("g"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for body in [&b""[..], b"{", b"[]", b"1", b"\xff", b"{\"a\":1e999}", "[".repeat(200).as_bytes()] {
            assert_eq!(Fields::parse(body).unwrap_err().status(), StatusCode::BAD_REQUEST);
        }
    }
}
