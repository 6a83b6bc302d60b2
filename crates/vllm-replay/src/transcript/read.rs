//! Reading. A transcript is not trusted: what it may say is bounded, and what it says wrongly is told with its line.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use consort_core::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::write::kinds;
use crate::answer::Ending;
use crate::key::{Key, sorted};
use crate::proto;
use crate::rules::Rules;
use crate::transcript::{Conversation, Reply, Transcript};

/// What all conversations may say together, in bytes.
const MOST_BYTES: usize = 256 << 20;
/// The longest pause, in milliseconds.
const LONGEST_PAUSE: u32 = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    transcript: u32,
    source: String,
    rules: Rules,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Let<'a> {
    #[serde(rename = "let")]
    name: String,
    #[serde(borrow)]
    is: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Talk<'a> {
    #[serde(default)]
    scene: String,
    ask: String,
    #[serde(default)]
    body: Value,
    #[serde(default = "ok")]
    status: u16,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    sized: bool,
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
    #[serde(default)]
    ms: Vec<(u32, u32)>,
    #[serde(default)]
    trailers: BTreeMap<String, String>,
    #[serde(default)]
    end: Option<String>,
}

fn ok() -> u16 {
    200
}

fn malformed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("vllm_replay::transcript")
}

fn json<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T> {
    serde_json::from_str(line).map_err(|error| malformed(format!("the line cannot be read: {error}")))
}

pub(super) fn parse(text: &str) -> Result<Transcript> {
    let mut lines = text.lines().enumerate();
    let (_, first) = lines.next().ok_or_else(|| malformed("the transcript is empty"))?;
    let header: Header = json(first).map_err(|error| error.with_context("line", "1"))?;
    if header.transcript != 1 {
        return Err(malformed(format!(
            "this is version {} of the format, and 1 is read: record it again",
            header.transcript
        )));
    }
    let mut reader = Reader { lets: HashMap::new(), left: MOST_BYTES };
    let mut conversations = Vec::new();
    for (number, line) in lines {
        let mut read = || -> Result<()> {
            if line.starts_with("{\"let\":") {
                let Let { name, is } = json(line)?;
                reader.lets.insert(name, is.get());
            } else {
                conversations.push(reader.conversation(json(line)?)?);
            }
            Ok(())
        };
        read().map_err(|error| error.with_context("line", (number + 1).to_string()))?;
    }
    let mut transcript = Transcript { source: header.source, rules: header.rules, conversations };
    transcript.sort();
    Ok(transcript)
}

struct Reader<'a> {
    lets: HashMap<String, &'a str>,
    /// How many bytes may still be told.
    left: usize,
}

impl<'a> Reader<'a> {
    fn spend(&mut self, bytes: usize) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| malformed("the conversations say more than 256 MiB"))?;
        Ok(())
    }

    fn conversation(&mut self, talk: Talk<'a>) -> Result<Conversation> {
        if !(100..=999).contains(&talk.status) {
            return Err(malformed(format!("{} is no HTTP status", talk.status)));
        }
        let ending = match talk.end.as_deref() {
            None => Ending::Complete,
            Some("cut") => Ending::Cut,
            Some("left") => Ending::Silence,
            Some("unanswered") => Ending::Unanswered,
            Some(other) => {
                return Err(malformed(format!("`end` is \"cut\", \"left\" or \"unanswered\", not {other:?}")));
            }
        };
        let body = self.body(talk.body)?;
        let key = Key { ask: talk.ask, body: sorted(body) };
        let headers: Vec<(String, String)> = talk.headers.into_iter().collect();
        let (method, sse) = kinds(&key.ask, &headers);
        let mut events: Vec<Bytes> = Vec::with_capacity(talk.events.len());
        for event in &talk.events {
            let event = self.event(event.get(), method, sse, events.last())?;
            self.spend(event.len() + 1)?;
            events.push(event.into());
        }
        let mut pauses = Vec::new();
        for (pause, times) in talk.ms {
            if pause > LONGEST_PAUSE || times as usize > events.len() - pauses.len() {
                return Err(malformed("`ms` has a pause beyond 10000, or more pauses than there are events"));
            }
            pauses.extend(std::iter::repeat_n(pause, times as usize));
        }
        if !pauses.is_empty() && pauses.len() != events.len() {
            return Err(malformed("`ms` has fewer pauses than there are events"));
        }
        let reply = Reply {
            status: talk.status,
            headers,
            sized: talk.sized,
            events,
            pauses,
            trailers: talk.trailers.into_iter().collect(),
            ending,
        };
        Ok(Conversation { scene: talk.scene, key, reply })
    }

    fn value_of(&mut self, name: &str) -> Result<&'a str> {
        let value = *self.lets.get(name).ok_or_else(|| malformed(format!("no line before says what \"{name}\" is")))?;
        self.spend(value.len())?;
        Ok(value)
    }

    /// A key's body with the named values in it.
    fn body(&mut self, value: Value) -> Result<Value> {
        Ok(match value {
            Value::Object(fields) => {
                if fields.len() == 1
                    && let Some(name) = fields.get("let").and_then(Value::as_str)
                {
                    return json(self.value_of(name)?).and_then(|value| self.body(value));
                }
                let fields = fields.into_iter().map(|(name, value)| Ok((name, self.body(value)?)));
                Value::Object(fields.collect::<Result<_>>()?)
            }
            Value::Array(values) => {
                Value::Array(values.into_iter().map(|value| self.body(value)).collect::<Result<_>>()?)
            }
            other => other,
        })
    }

    fn event(&mut self, form: &'a str, method: Option<&str>, sse: bool, previous: Option<&Bytes>) -> Result<Vec<u8>> {
        match form.as_bytes().first() {
            Some(b'{') => match method {
                Some(method) => proto::answer_from_json(method, &json(form)?)
                    .ok_or_else(|| malformed(format!("an event is no answer of {method}: {form}"))),
                None if sse => Ok(format!("data: {form}\n\n").into_bytes()),
                None => Ok(form.as_bytes().to_vec()),
            },
            Some(b'"') => json::<String>(form).map(String::into_bytes),
            _ => self.special(form, method, sse, previous),
        }
    }

    fn special(&mut self, form: &'a str, method: Option<&str>, sse: bool, previous: Option<&Bytes>) -> Result<Vec<u8>> {
        let unknown = || malformed(format!("this is no event: {}", form.chars().take(80).collect::<String>()));
        if let Ok((start, end, between)) = serde_json::from_str::<(usize, usize, String)>(form) {
            let previous = previous.ok_or_else(|| malformed("the first event cannot differ from the one before"))?;
            let begin = previous.get(..start).ok_or_else(unknown)?;
            let rest = previous.len().checked_sub(end).and_then(|at| previous.get(at..)).ok_or_else(unknown)?;
            return Ok([begin, between.as_bytes(), rest].concat());
        }
        match serde_json::from_str::<(String, String)>(form) {
            Ok((kind, bytes)) if kind == "hex" => proto::unhex(&bytes).ok_or_else(unknown),
            Ok((kind, name)) if kind == "let" => {
                let form = self.value_of(&name)?;
                // A name for a name would be a way to go round in circles.
                if form.starts_with("[\"let\"") { Err(unknown()) } else { self.event(form, method, sse, previous) }
            }
            _ => Err(unknown()),
        }
    }
}
