//! What a line asks, or what is wrong with it.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::line::{Line, LineId};

/// What may stand around a body in a line, in bytes.
const AROUND: usize = 64 << 10;
/// The longest `custom_id`, in bytes.
const LONGEST_ID: usize = 1024;

/// The addresses that a model in this process answers.
const HERE: [&str; 5] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"];
/// Those that servers may answer besides.
const THERE: [&str; 7] = ["/v1/moderations", "/v1/rerank", "/v1/score", "/rerank", "/score", "/pooling", "/classify"];

/// What lines are held to.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The addresses that can be asked.
    pub urls: &'static [&'static [&'static str]],
    /// The largest body, in bytes.
    pub body_bytes: usize,
}

impl Rules {
    /// For a model in this process, whose bodies have at most so many bytes.
    #[must_use]
    pub fn model(body_bytes: usize) -> Self {
        Self { urls: &[&HERE], body_bytes }
    }

    /// For a server: its addresses are more, and bodies have at most 32 MiB.
    #[must_use]
    pub fn server() -> Self {
        Self { urls: &[&HERE, &THERE], body_bytes: 32 << 20 }
    }

    /// The longest line that can hold such a body.
    pub(crate) fn line_bytes(&self) -> usize {
        self.body_bytes.saturating_add(AROUND)
    }

    fn url(&self, wanted: &str) -> Option<&'static str> {
        self.urls.iter().flat_map(|urls| urls.iter()).find(|url| **url == wanted).copied()
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its line.
    pub number: u64,
    /// The line's name.
    pub id: LineId,
    /// The name that its author gave it.
    pub custom_id: String,
    /// The address.
    pub url: &'static str,
    /// The body: a JSON object.
    pub body: Vec<u8>,
}

/// A line that is no request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub id: LineId,
    /// The name that its author gave it, where that can be read.
    pub custom_id: Option<String>,
    /// A stable word for what is wrong.
    pub code: &'static str,
    /// The key that is concerned.
    pub param: Option<&'static str>,
    /// What is wrong and what to do.
    pub message: String,
}

/// A line that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// It can be asked.
    Request(Request),
    /// It cannot.
    Refused(Refused),
}

/// Checks lines. It knows every `custom_id` that it has seen, as 96 bits of its hash: among ten million, two that differ are
/// taken for the same with a probability of 10⁻¹⁵.
#[derive(Debug)]
pub struct Checker {
    rules: Rules,
    seen: HashSet<[u8; 12]>,
}

/// A line as it is written. Other keys are passed over, as by the servers whose form this is.
#[derive(Deserialize)]
struct Written {
    custom_id: Option<Value>,
    method: Option<Value>,
    url: Option<Value>,
    body: Option<Value>,
}

/// What is wrong.
struct Wrong(&'static str, Option<&'static str>, String);

impl Checker {
    /// Has seen nothing yet.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules, seen: HashSet::new() }
    }

    /// Checks the next line.
    pub fn check(&mut self, line: Line) -> Checked {
        let Line { number, id, text, .. } = line;
        let mut custom_id = None;
        match self.read(text.as_deref(), &mut custom_id) {
            Ok((custom_id, url, body)) => Checked::Request(Request { number, id, custom_id, url, body }),
            Err(Wrong(code, param, message)) => {
                Checked::Refused(Refused { number, id, custom_id, code, param, message })
            }
        }
    }

    fn read(
        &mut self,
        text: Option<&[u8]>,
        found: &mut Option<String>,
    ) -> Result<(String, &'static str, Vec<u8>), Wrong> {
        let most = self.rules.body_bytes;
        let too_large = || Wrong("body_too_large", Some("body"), format!("a body has at most {most} bytes"));
        let text = text.ok_or_else(too_large)?;
        if text.trim_ascii_start().first() != Some(&b'{') {
            let message = "the line is no JSON object of a request";
            return Err(Wrong("invalid_json_line", None, message.into()));
        }
        let written: Written = serde_json::from_slice(text).map_err(|error| {
            let said = error.to_string();
            let what = said.split(" at line ").next().unwrap_or_default();
            let message = format!("the line is no JSON object of a request: {what} (column {})", error.column());
            Wrong("invalid_json_line", None, message)
        })?;
        let custom_id = match written.custom_id {
            None | Some(Value::Null) => {
                return Err(Wrong("missing_custom_id", Some("custom_id"), "the line has no `custom_id`".into()));
            }
            Some(Value::String(name)) if (1..=LONGEST_ID).contains(&name.len()) => name,
            Some(_) => {
                let message = format!("`custom_id` is a string of 1 to {LONGEST_ID} bytes");
                return Err(Wrong("invalid_custom_id", Some("custom_id"), message));
            }
        };
        *found = Some(custom_id.clone());
        let mut hash = [0; 12];
        for (kept, byte) in hash.iter_mut().zip(blake3::hash(custom_id.as_bytes()).as_bytes()) {
            *kept = *byte;
        }
        if !self.seen.insert(hash) {
            let message = "an earlier line has this `custom_id`, so that answers could not be told apart";
            return Err(Wrong("duplicate_custom_id", Some("custom_id"), message.into()));
        }
        if written.method.as_ref().and_then(Value::as_str) != Some("POST") {
            return Err(Wrong("invalid_method", Some("method"), "`method` is \"POST\", and nothing else".into()));
        }
        let url = written.url.as_ref().and_then(Value::as_str).unwrap_or_default();
        let url = self.rules.url(url).ok_or_else(|| {
            let known: Vec<&str> = self.rules.urls.iter().flat_map(|urls| urls.iter()).copied().collect();
            Wrong("invalid_url", Some("url"), format!("`url` is one of {}", known.join(", ")))
        })?;
        let Some(Value::Object(body)) = written.body else {
            return Err(Wrong("invalid_body", Some("body"), "`body` is a JSON object".into()));
        };
        let body = unstreamed(body)?;
        if body.len() > most { Err(too_large()) } else { Ok((custom_id, url, body)) }
    }
}

fn unstreamed(body: Map<String, Value>) -> Result<Vec<u8>, Wrong> {
    match body.get("stream") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(Value::Object(body).to_string().into_bytes()),
        Some(_) => {
            let message = "`stream` cannot be asked for in a batch: leave it out";
            Err(Wrong("stream_not_supported", Some("body.stream"), message.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::line::Lines;

    fn check(text: &str) -> Vec<Checked> {
        let rules = Rules::model(100);
        let (mut lines, mut checker) = (Lines::new(text.as_bytes(), rules.line_bytes()), Checker::new(rules));
        std::iter::from_fn(|| Some(checker.check(lines.next_line().unwrap()?))).collect()
    }

    const GOOD: &str =
        r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"z":0.1,"a":12345678901234567890}}"#;

    #[test]
    fn a_request_keeps_its_body() {
        let Checked::Request(request) = check(GOOD).remove(0) else { panic!() };
        assert_eq!((request.number, request.custom_id.as_str(), request.url), (1, "a", "/v1/chat/completions"));
        assert_eq!(request.body, br#"{"z":0.1,"a":12345678901234567890}"#);
        let more = GOOD.replacen('{', r#"{"note":1,"#, 1).replace("\"z\"", "\"stream\":false,\"z\"");
        assert!(matches!(&check(&more)[0], Checked::Request(_)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("\"{}\"", "x".repeat(101));
        for (text, code, id) in [
            ("{", "invalid_json_line", None),
            ("[1]", "invalid_json_line", None),
            ("null", "invalid_json_line", None),
            (r#"["a","POST","/v1/completions",{}]"#, "invalid_json_line", None),
            (&format!("{GOOD} x"), "invalid_json_line", None),
            (&GOOD.replace("\"custom_id\":\"a\",", ""), "missing_custom_id", None),
            (&GOOD.replace("\"a\",\"method\"", "7,\"method\""), "invalid_custom_id", None),
            (&GOOD.replace("\"a\",\"method\"", "\"\",\"method\""), "invalid_custom_id", None),
            (&GOOD.replace("POST", "GET"), "invalid_method", Some("a")),
            (&GOOD.replace("\"method\":\"POST\",", ""), "invalid_method", Some("a")),
            (&GOOD.replace("chat/completions", "audio"), "invalid_url", Some("a")),
            (&GOOD.replace("chat/completions", "rerank"), "invalid_url", Some("a")),
            (&GOOD.replace("\"z\":0.1", "\"stream\":true"), "stream_not_supported", Some("a")),
            (&GOOD.replace("\"z\":0.1", "\"stream\":1"), "stream_not_supported", Some("a")),
            (&GOOD.replace("0.1", &long), "body_too_large", Some("a")),
            (&GOOD.replace("0.1", &format!("\"{}\"", "x".repeat(70_000))), "body_too_large", None),
            (&GOOD.replace("{\"z\":0.1,\"a\":12345678901234567890}", "[]"), "invalid_body", Some("a")),
        ] {
            let Checked::Refused(refused) = check(&format!("\n{text}")).remove(0) else { panic!("{text}") };
            assert_eq!((refused.number, refused.code, refused.custom_id.as_deref()), (2, code, id), "{text}");
            assert!(!refused.message.is_empty());
        }
    }

    #[test]
    fn the_second_of_two_with_one_name_is_refused() {
        let all = check(&format!("{GOOD}\n{GOOD}\n{}\n", GOOD.replace("\"a\",\"m", "\"b\",\"m")));
        assert!(matches!((&all[0], &all[2]), (Checked::Request(_), Checked::Request(_))));
        assert!(
            matches!(&all[1], Checked::Refused(refused) if refused.code == "duplicate_custom_id" && refused.number == 2)
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_request_or_refused(text in "([ -~]|\\{|\\}|\"|custom_id|:|\\[){0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            check(&text);
            let (mut lines, mut checker) = (Lines::new(bytes.as_slice(), 60), Checker::new(Rules::server()));
            while let Some(line) = lines.next_line().unwrap() {
                checker.check(line);
            }
        }
    }
}
