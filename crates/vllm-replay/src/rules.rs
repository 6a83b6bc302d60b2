//! What of a conversation is volatile, declared in a table: what a key leaves out, and what a recording writes otherwise.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The table. It stands in a transcript's first line, so that a player reads requests as the recorder did.
///
/// Every rule is by a field's name, at any depth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Fields of requests whose value does not count: it becomes `"*"`. A list becomes `["*"]`.
    pub ignored: Vec<String>,
    /// Fields that hold paths of a machine, in requests and answers: only the last part stays, as `…/name`.
    pub paths: Vec<String>,
    /// Fields of answers that hold times: they become 0.
    pub times: Vec<String>,
    /// Fields of answers that hold random identifiers: the hexadecimal digits after the last `-` become 0.
    pub identifiers: Vec<String>,
    /// Whether answers of `/metrics` keep only vLLM's own series, without histograms' buckets and the times at which series began.
    pub trim_metrics: bool,
    /// Texts in answers that name this machine, and what stands in their place. Only a recorder needs them: they are not written
    /// into the transcript.
    #[serde(skip)]
    pub replaced: Vec<(String, String)>,
}

impl Default for Rules {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            ignored: names(&["request_id", "request_ids"]),
            paths: names(&["lora_path", "root", "source_path"]),
            times: names(&["created"]),
            identifiers: names(&["id", "instance_id", "request_id"]),
            trim_metrics: true,
            replaced: Vec::new(),
        }
    }
}

impl Rules {
    /// No rule: a recording keeps every byte of the answers.
    #[must_use]
    pub fn none() -> Self {
        Self {
            ignored: Vec::new(),
            paths: Vec::new(),
            times: Vec::new(),
            identifiers: Vec::new(),
            trim_metrics: false,
            replaced: Vec::new(),
        }
    }

    /// A request's JSON without what does not count.
    pub(crate) fn request(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if self.ignored.contains(name) {
                        *value = if value.is_array() { Value::from(vec!["*"]) } else { "*".into() };
                    } else if self.paths.contains(name)
                        && let Some(path) = value.as_str()
                    {
                        *value = last_part(path).into();
                    } else {
                        self.request(value);
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.request(value)),
            Value::String(text) => {
                if let Some(short) = picture(text) {
                    *text = short;
                }
            }
            _ => {}
        }
    }

    /// An answer's text without what is volatile. Text between JSON's strings stays as it is, to the byte.
    pub(crate) fn answer(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (from, to) in &self.replaced {
            if !from.is_empty() {
                text = text.replace(from.as_str(), to);
            }
        }
        for name in &self.times {
            text = each_value(&text, name, |value| {
                if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
                    "0".into()
                } else {
                    value.into()
                }
            });
        }
        for name in &self.identifiers {
            text = each_value(&text, name, |value| zeroed(value).unwrap_or_else(|| value.into()));
        }
        for name in &self.paths {
            text = each_value(&text, name, |value| {
                match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
                    Some(path) => format!("\"{}\"", last_part(path)),
                    None => value.into(),
                }
            });
        }
        text
    }
}

/// Prometheus' text without other programs' series, help, histograms' buckets and the times at which series began.
pub(crate) fn trimmed_metrics(text: &str) -> String {
    let own = |line: &&str| {
        (line.starts_with("vllm:") || line.starts_with("# TYPE vllm:"))
            && !line.contains("_created")
            && !line.contains("_bucket{")
    };
    text.lines().filter(own).flat_map(|line| [line, "\n"]).collect()
}

/// `…/name`, for a path of several parts; the separators of either system.
fn last_part(path: &str) -> String {
    match path.trim_end_matches(['/', '\\']).rsplit_once(['/', '\\']) {
        Some((_, name)) => format!("…/{name}"),
        None => path.to_owned(),
    }
}

/// A string in JSON that is an identifier, with its random part made 0. A part shorter than eight digits is no identifier.
fn zeroed(value: &str) -> Option<String> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    let begin = inner.rfind('-').map_or(0, |at| at + 1);
    let (known, random) = inner.split_at(begin);
    // Any part of an UUID is one; its other parts are before the last `-`.
    let known: String =
        if uuid(inner) { known.chars().map(|c| if c == '-' { c } else { '0' }).collect() } else { known.to_owned() };
    (random.len() >= 8 && random.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| format!("\"{known}{}\"", "0".repeat(random.len())))
}

fn uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A picture's data as its digest: `data:image/png;blake3=…;bytes=…`.
fn picture(text: &str) -> Option<String> {
    let (kind, data) = text.strip_prefix("data:")?.split_once(";base64,")?;
    Some(format!("data:{kind};blake3={};bytes={}", &blake3::hash(data.as_bytes()).to_hex()[..32], data.len()))
}

/// Replaces the value after each `"name":` that is a number or a string without escapes.
fn each_value(text: &str, name: &str, replace: impl Fn(&str) -> String) -> String {
    let field = format!("\"{name}\":");
    let mut written = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(&field) {
        let (before, after) = rest.split_at(at + field.len());
        written.push_str(before);
        let length = match after.strip_prefix('"') {
            Some(string) => {
                string.find(['"', '\\']).filter(|end| string[*end..].starts_with('"')).map_or(0, |end| end + 2)
            }
            None => after.find([',', '}', ']', '\n']).unwrap_or(after.len()),
        };
        let (value, after) = after.split_at(length);
        written.push_str(&replace(value));
        rest = after;
    }
    written.push_str(rest);
    written
}
