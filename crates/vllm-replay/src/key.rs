//! By what a request is known again: its method, its path, and its body in canonical form.

use serde_json::{Map, Value, json};

use crate::answer::{Asked, Protocol};
use crate::proto;
use crate::rules::Rules;

/// A request's key.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// `POST /path?query`, or `grpc /vllm.Inference/GenerateStream`.
    pub ask: String,
    /// The body: JSON with what the [`Rules`] leave of it; a message of gRPC as JSON; other text as a string; bytes by their
    /// digest. `null` if there is none.
    pub body: Value,
}

impl Key {
    /// A request's key by these rules.
    #[must_use]
    pub fn of(asked: &Asked, rules: &Rules) -> Self {
        let mut body = match asked.protocol {
            Protocol::Grpc => proto::request_to_json(&asked.path, &asked.body).unwrap_or_else(|| digest(&asked.body)),
            Protocol::Http if asked.body.is_empty() => Value::Null,
            Protocol::Http => serde_json::from_slice(&asked.body).unwrap_or_else(|_| {
                let text = std::str::from_utf8(&asked.body).ok();
                text.filter(|text| text.len() <= 4096).map_or_else(|| digest(&asked.body), Value::from)
            }),
        };
        if asked.protocol == Protocol::Grpc {
            shorten(&mut body);
        }
        rules.request(&mut body);
        let ask = match asked.protocol {
            Protocol::Grpc => format!("grpc {}", asked.path),
            Protocol::Http => format!("{} {}", asked.method, asked.path),
        };
        Self { ask, body: sorted(body) }
    }

    /// The key as one line: what a request is looked up by.
    #[must_use]
    pub fn text(&self) -> String {
        if self.body.is_null() { self.ask.clone() } else { format!("{} {}", self.ask, self.body) }
    }

    /// In how many values two keys differ. Another route is further away than any body.
    pub(crate) fn distance(&self, other: &Self) -> usize {
        let route = if self.ask == other.ask { 0 } else { 1 << 40 };
        route + differences(&self.body, &other.body)
    }

    /// Where two keys differ first, and how: `body.sampling_params.temperature: asked 0.7, recorded 0`.
    pub(crate) fn first_difference(&self, recorded: &Self) -> String {
        if self.ask != recorded.ask {
            return format!("asked `{}`, recorded `{}`", self.ask, recorded.ask);
        }
        let mut path = String::from("body");
        first_difference(&self.body, &recorded.body, &mut path).unwrap_or_else(|| "no difference".into())
    }
}

fn digest(bytes: &[u8]) -> Value {
    json!({"blake3": &blake3::hash(bytes).to_hex()[..32], "bytes": bytes.len()})
}

/// Long bytes of a message (pictures), which stand as hexadecimal, by their digest.
fn shorten(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if matches!(name.as_str(), "raw_bytes" | "kwargs")
                    && let Some(bytes) = value.as_str().and_then(proto::unhex)
                {
                    *value = digest(&bytes);
                } else {
                    shorten(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        _ => {}
    }
}

/// JSON with its keys sorted, whatever order the map of this build keeps.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(String, Value)> =
                fields.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().collect::<Map<_, _>>())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// How many values stand in one.
fn weight(value: &Value) -> usize {
    match value {
        Value::Object(fields) => 1 + fields.values().map(weight).sum::<usize>(),
        Value::Array(values) => 1 + values.iter().map(weight).sum::<usize>(),
        _ => 1,
    }
}

fn differences(a: &Value, b: &Value) -> usize {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let own = a
                .iter()
                .map(|(name, value)| b.get(name).map_or_else(|| weight(value), |other| differences(value, other)));
            let others = b.iter().filter(|(name, _)| !a.contains_key(*name)).map(|(_, value)| weight(value));
            own.sum::<usize>() + others.sum::<usize>()
        }
        (Value::Array(a), Value::Array(b)) => {
            let same = a.iter().zip(b).map(|(a, b)| differences(a, b)).sum::<usize>();
            let longer = if a.len() > b.len() { &a[b.len()..] } else { &b[a.len()..] };
            same + longer.iter().map(weight).sum::<usize>()
        }
        _ if a == b => 0,
        _ => weight(a).max(weight(b)),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 120 { text.chars().take(117).chain("…".chars()).collect() } else { text }
}

fn first_difference(asked: &Value, recorded: &Value, path: &mut String) -> Option<String> {
    let told = |path: &str, asked: Option<&Value>, recorded: Option<&Value>| {
        let word = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), short);
        Some(format!("{path}: asked {}, recorded {}", word(asked), word(recorded)))
    };
    let length = path.len();
    match (asked, recorded) {
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                path.push('.');
                path.push_str(name);
                let found = match (a.get(name), b.get(name)) {
                    (Some(a), Some(b)) => first_difference(a, b, path),
                    (a, b) => told(path, a, b),
                };
                if found.is_some() {
                    return found;
                }
                path.truncate(length);
            }
            None
        }
        (Value::Array(a), Value::Array(b)) => {
            for place in 0..a.len().max(b.len()) {
                path.push_str(&format!("[{place}]"));
                let found = match (a.get(place), b.get(place)) {
                    (Some(a), Some(b)) => first_difference(a, b, path),
                    (a, b) => told(path, a, b),
                };
                if found.is_some() {
                    return found;
                }
                path.truncate(length);
            }
            None
        }
        (a, b) if a == b => None,
        (a, b) => told(path, Some(a), Some(b)),
    }
}
