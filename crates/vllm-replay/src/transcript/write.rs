//! Writing: the same conversations always give the same text.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::answer::Ending;
use crate::key::sorted;
use crate::proto;
use crate::transcript::{Conversation, Transcript};

/// Values shorter than this in JSON are not worth a line of their own.
const SHORTEST_LET: usize = 160;

#[derive(Serialize)]
struct Header<'a> {
    transcript: u32,
    source: &'a str,
    rules: &'a crate::Rules,
}

/// A conversation's line. The order of the fields is the order in which a person reads.
#[derive(Serialize)]
struct Talk<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    scene: &'a str,
    ask: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    body: Value,
    #[serde(skip_serializing_if = "is_ok")]
    status: u16,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    sized: bool,
    events: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ms: Vec<(u32, u32)>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    trailers: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'a str>,
}

// serde hands a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_ok(status: &u16) -> bool {
    *status == 200
}

/// Values that are told once.
#[derive(Default)]
struct Lets {
    /// How often each value stands in the transcript.
    seen: HashMap<String, u32>,
    told: HashSet<String>,
    lines: String,
}

fn name_of(json: &str) -> String {
    blake3::hash(json.as_bytes()).to_hex()[..16].to_owned()
}

impl Lets {
    fn see(&mut self, json: &str) {
        if json.len() >= SHORTEST_LET {
            *self.seen.entry(json.to_owned()).or_default() += 1;
        }
    }

    /// The value's name, if it stands in the transcript more than once. Tells it the first time.
    fn name(&mut self, json: &str) -> Option<String> {
        if self.seen.get(json).is_none_or(|times| *times < 2) {
            return None;
        }
        let name = name_of(json);
        if self.told.insert(name.clone()) {
            self.lines.push_str(&format!("{{\"let\":\"{name}\",\"is\":{json}}}\n"));
        }
        Some(name)
    }
}

pub(super) fn to_text(transcript: &Transcript) -> String {
    let mut transcript = transcript.clone();
    transcript.sort();
    let mut lets = Lets::default();
    let events: Vec<Vec<String>> = transcript.conversations.iter().map(event_forms).collect();
    for (conversation, events) in transcript.conversations.iter().zip(&events) {
        see_body(&conversation.key.body, &mut lets);
        events.iter().for_each(|event| lets.see(event));
    }
    let header = Header { transcript: 1, source: &transcript.source, rules: &transcript.rules };
    let mut text = line(&header);
    for (conversation, events) in transcript.conversations.iter().zip(&events) {
        let talk = talk(conversation, events, &mut lets);
        text.push_str(&std::mem::take(&mut lets.lines));
        text.push_str(&line(&talk));
    }
    text
}

fn line(value: &impl Serialize) -> String {
    // None of these types can fail to be written: their keys are strings.
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

fn talk<'a>(conversation: &'a Conversation, events: &[String], lets: &mut Lets) -> Talk<'a> {
    let reply = &conversation.reply;
    let pairs =
        |list: &'a [(String, String)]| list.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut ms: Vec<(u32, u32)> = Vec::new();
    for pause in &reply.pauses {
        match ms.last_mut() {
            Some((last, times)) if last == pause => *times += 1,
            _ => ms.push((*pause, 1)),
        }
    }
    let body = let_body(&conversation.key.body, lets);
    let events = events.iter().filter_map(|event| {
        let form = lets.name(event).map_or_else(|| event.clone(), |name| format!("[\"let\",\"{name}\"]"));
        RawValue::from_string(form).ok()
    });
    Talk {
        scene: &conversation.scene,
        ask: &conversation.key.ask,
        body,
        status: reply.status,
        headers: pairs(&reply.headers),
        sized: reply.sized,
        events: events.collect(),
        ms,
        trailers: pairs(&reply.trailers),
        end: match reply.ending {
            Ending::Complete => None,
            Ending::Cut => Some("cut"),
            Ending::Silence => Some("left"),
            Ending::Unanswered => Some("unanswered"),
        },
    }
}

/// Whether a value of a key may stand in a line of its own.
fn separable(value: &Value) -> bool {
    matches!(value, Value::Array(_) | Value::String(_) | Value::Object(_))
}

fn see_body(value: &Value, lets: &mut Lets) {
    let fields = match value {
        Value::Object(fields) => fields.values().collect::<Vec<_>>(),
        Value::Array(values) => values.iter().collect(),
        _ => return,
    };
    for value in fields {
        if separable(value) {
            lets.see(&value.to_string());
        }
        see_body(value, lets);
    }
}

fn let_body(value: &Value, lets: &mut Lets) -> Value {
    let mut part = |value: &Value| {
        if separable(value)
            && let Some(name) = lets.name(&value.to_string())
        {
            return serde_json::json!({"let": name});
        }
        let_body(value, lets)
    };
    match value {
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(name, value)| (name.clone(), part(value))).collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(part).collect()),
        other => other.clone(),
    }
}

/// The events as they stand in JSON.
fn event_forms(conversation: &Conversation) -> Vec<String> {
    let reply = &conversation.reply;
    let (grpc, sse) = kinds(&conversation.key.ask, &reply.headers);
    let mut previous: Option<&Bytes> = None;
    let mut forms = Vec::with_capacity(reply.events.len());
    for event in &reply.events {
        let form = match grpc {
            Some(method) => message_form(method, event),
            None => {
                let full = text_form(event, sse);
                match previous.and_then(|previous| delta_form(previous, event)) {
                    Some(delta) if delta.len() * 5 < full.len() * 3 => delta,
                    _ => full,
                }
            }
        };
        forms.push(form);
        previous = Some(event);
    }
    forms
}

/// The gRPC method, if it is one, and whether events are server-sent.
pub(super) fn kinds<'a>(ask: &'a str, headers: &[(String, String)]) -> (Option<&'a str>, bool) {
    let sse = headers.iter().any(|(name, value)| name == "content-type" && value.starts_with("text/event-stream"));
    (ask.strip_prefix("grpc "), sse)
}

fn hex_form(bytes: &[u8]) -> String {
    format!("[\"hex\",\"{}\"]", proto::hex(bytes))
}

fn message_form(method: &str, bytes: &[u8]) -> String {
    // By way of the text, as a reader will go.
    let form = proto::answer_to_json(method, bytes).map(|json| sorted(json).to_string()).filter(|text| {
        let again = serde_json::from_str(text).ok().and_then(|json| proto::answer_from_json(method, &json));
        again.as_deref() == Some(bytes)
    });
    form.unwrap_or_else(|| hex_form(bytes))
}

/// An object as it is, other text as a string, other bytes as hexadecimal.
fn text_form(bytes: &[u8], sse: bool) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else { return hex_form(bytes) };
    let object = if sse { text.strip_prefix("data: ").and_then(|text| text.strip_suffix("\n\n")) } else { Some(text) };
    match object {
        Some(object)
            if object.starts_with('{')
                && object.ends_with('}')
                && !object.contains(['\n', '\r'])
                && serde_json::from_str::<&RawValue>(object).is_ok() =>
        {
            object.to_owned()
        }
        _ => Value::from(text).to_string(),
    }
}

/// `[from the start, from the end, "between"]` of the event before.
fn delta_form(previous: &[u8], event: &[u8]) -> Option<String> {
    let (previous, event) = (std::str::from_utf8(previous).ok()?, std::str::from_utf8(event).ok()?);
    let most = previous.len().min(event.len());
    let same = |pairs: &mut dyn Iterator<Item = (u8, u8)>| pairs.take_while(|(a, b)| a == b).count();
    let mut start = same(&mut previous.bytes().zip(event.bytes()));
    let mut end = same(&mut previous.bytes().rev().zip(event.bytes().rev())).min(most - start);
    // Whole words and numbers differ, for a reader's sake.
    let inside = |at: usize| {
        let word = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || !byte.is_ascii());
        let bytes = event.as_bytes();
        at > 0 && word(bytes.get(at - 1)) && word(bytes.get(at))
    };
    while start > 0 && (inside(start) || !event.is_char_boundary(start) || !previous.is_char_boundary(start)) {
        start -= 1;
    }
    while end > 0 && (inside(event.len() - end) || !event.is_char_boundary(event.len() - end)) {
        end -= 1;
    }
    let between = event.get(start..event.len() - end)?;
    Some(format!("[{start},{end},{}]", Value::from(between)))
}
