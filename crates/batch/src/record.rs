//! The lines of the output, in OpenAI's form.

use serde_json::{Value, json};

use crate::line::PREFIX;
use crate::meter::shortened;
use crate::request::{Refused, Request};
use crate::target::{Answer, Fault};

/// How every line of an output begins.
const HEAD: &str = "{\"id\":\"";
/// So much of an answer that is no JSON is kept, in characters.
const LONGEST_TEXT: usize = 4096;

/// A line that answers a request, with its line break.
pub(crate) fn answered(request: &Request, answer: &Answer) -> Vec<u8> {
    let request_id = json!(answer.request_id);
    let mut line = format!(
        "{HEAD}{}\",\"custom_id\":{},\"response\":{{\"status_code\":{},\"request_id\":{request_id},\"body\":",
        request.id.name(),
        json!(request.custom_id),
        answer.status
    )
    .into_bytes();
    if is_json(&answer.body) {
        // As it came, to the last digit. Line breaks in JSON stand between its parts alone.
        line.extend(
            answer.body.trim_ascii().iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }),
        );
    } else {
        let text: String = String::from_utf8_lossy(&answer.body).chars().take(LONGEST_TEXT).collect();
        line.extend(Value::from(text).to_string().into_bytes());
    }
    line.extend(b"},\"error\":null}\n");
    line
}

/// A line about a request that nobody answered.
pub(crate) fn unanswered(request: &Request, fault: &Fault) -> Vec<u8> {
    let error = json!({ "code": fault.code, "message": fault.message, "param": null, "line": request.number });
    failed(&request.id.name(), &json!(request.custom_id), &error)
}

/// A line about a line that is no request.
pub(crate) fn refused(refused: &Refused) -> Vec<u8> {
    let error = json!({
        "code": refused.code, "message": refused.message, "param": refused.param, "line": refused.number,
    });
    failed(&refused.id.name(), &json!(refused.custom_id), &error)
}

fn failed(id: &str, custom_id: &Value, error: &Value) -> Vec<u8> {
    format!("{HEAD}{id}\",\"custom_id\":{custom_id},\"response\":null,\"error\":{error}}}\n").into_bytes()
}

fn is_json(bytes: &[u8]) -> bool {
    // Passing over a string does not look at whether it is UTF-8.
    std::str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

/// What a line of an output tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The name of the line that it answers.
    pub(crate) id: String,
    /// What went wrong, in a word.
    pub(crate) code: String,
    /// By which the answering model can be known.
    pub(crate) fingerprint: Option<String>,
}

impl Kept {
    /// Reads one; `None`: it is no line of an output.
    pub(crate) fn read(line: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(line).ok()?;
        let id = value.get("id")?.as_str()?.to_owned();
        let response = value.get("response")?;
        let body = response.get("body");
        let status = response.get("status_code").and_then(Value::as_u64).unwrap_or_default();
        let code = match value.get("error").and_then(|error| error.get("code")).and_then(Value::as_str) {
            Some(code) => shortened(code),
            None => code_of(status, body),
        };
        let fingerprint = body.and_then(|body| body.get("system_fingerprint")).and_then(Value::as_str);
        let fingerprint = fingerprint.map(str::to_owned);
        id.starts_with(PREFIX).then_some(Self { id, code, fingerprint })
    }
}

/// A word for what went wrong, of an answer's status and body: the API's code, its type, or the status.
pub(crate) fn code_of(status: u64, body: Option<&Value>) -> String {
    let error = body.and_then(|body| body.get("error"));
    let word = |key: &str| error?.get(key)?.as_str().filter(|word| !word.is_empty());
    word("code").or_else(|| word("type")).map_or_else(|| format!("http_{status}"), shortened)
}

/// Whether bytes that break off can be the beginning of a line of an output.
pub(crate) fn may_begin(torn: &[u8]) -> bool {
    let head = format!("{HEAD}{PREFIX}").into_bytes();
    torn.iter().zip(&head).all(|(byte, expected)| byte == expected)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::line::LineId;

    fn request(custom_id: &str) -> Request {
        Request {
            number: 3,
            id: LineId::start(),
            custom_id: custom_id.into(),
            url: "/v1/completions",
            body: Vec::new(),
        }
    }

    #[test]
    fn a_line_is_one_line_and_in_the_form() {
        let body = b"{\n  \"text\": \"a\\nb\",\r\n  \"n\": 1.10\n}\n".to_vec();
        let answer = Answer { status: 200, request_id: Some("req_1".into()), body, ..Answer::default() };
        let line = answered(&request("q\"\n"), &answer);
        let text = std::str::from_utf8(&line).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.contains("\"n\": 1.10 "), "{text}");
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            value,
            json!({
                "id": LineId::start().name(), "custom_id": "q\"\n", "error": null,
                "response": { "status_code": 200, "request_id": "req_1", "body": { "text": "a\nb", "n": 1.1 } },
            })
        );
        assert!(may_begin(&line) && may_begin(&line[..5]) && may_begin(b"") && !may_begin(b"hello"));
    }

    #[test]
    fn what_is_no_json_becomes_a_text() {
        for body in [&b"<html>\n\"no\"</html>"[..], b"", b"{\"a\": \"\xff\"}", b"{} {}"] {
            let answer = Answer { status: 502, body: body.to_vec(), ..Answer::default() };
            let line = answered(&request("a"), &answer);
            let value: Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(value["response"]["body"], String::from_utf8_lossy(body).as_ref());
            assert_eq!(value["response"]["request_id"], Value::Null);
            assert_eq!(Kept::read(&line).unwrap().code, "http_502");
        }
    }

    #[test]
    fn failures_are_read_back() {
        let fault = Fault { kind: crate::FaultKind::Late, code: "timeout", message: "too late".into() };
        let line = unanswered(&request("a"), &fault);
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["error"], json!({ "code": "timeout", "message": "too late", "param": null, "line": 3 }));
        assert_eq!(value["response"], Value::Null);
        let kept = Kept::read(&line).unwrap();
        assert_eq!((kept.id, kept.code.as_str()), (LineId::start().name(), "timeout"));
        let body = json!({ "error": { "code": null, "type": "rate_limit_error" }, "system_fingerprint": "f" });
        let answer = Answer { status: 429, body: body.to_string().into(), ..Answer::default() };
        let kept = Kept::read(&answered(&request("a"), &answer)).unwrap();
        assert_eq!((kept.code.as_str(), kept.fingerprint.as_deref()), ("rate_limit_error", Some("f")));
        for other in ["", "{}", "{\"id\":\"x\",\"response\":null}", "hello"] {
            assert_eq!(Kept::read(other.as_bytes()), None);
        }
    }
}
