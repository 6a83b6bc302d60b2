//! From a server's answer to our error.
//!
//! vLLM's Python front end answers `{"error": {"message", "type", "param", "code": 400}}`, its Rust front end the same with
//! `code` a word, authentication `{"error": "Unauthorized"}`, an unknown route `{"detail": "Not Found"}` or nothing, a proxy
//! anything at all.

use consort_core::{Error, ErrorKind, ErrorStatus};
use serde_json::Value;

use crate::call::Call;

/// How much of what a server says is repeated.
const MOST_WORDS: usize = 500;

/// What a refused request was about, which tells what a bad one is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) call: Option<&'a Call>,
}

/// The error of an answer with this status and body.
pub(crate) fn of_answer(status: u16, body: &[u8], about: About<'_>) -> Error {
    let (message, param) = words(body);
    let error = of_status(status, &message, about.call);
    let error = match param {
        Some(param) => error.with_context("param", param),
        None => error,
    };
    error.with_context("endpoint", about.endpoint).with_context("status", status.to_string())
}

/// The error of an event `{"error": …}` in the middle of a stream.
pub(crate) fn of_event(error: &Value, about: About<'_>) -> Error {
    let (message, _) = of_value(error);
    let code = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
    of_status(code, &message, about.call).with_context("endpoint", about.endpoint)
}

fn of_status(status: u16, message: &str, call: Option<&Call>) -> Error {
    let said = |text: &str| if message.is_empty() { text.to_owned() } else { format!("{text}: {message}") };
    let error = match status {
        400 | 413 | 422 => Error::new(bad(message, call), said("the server refuses the request")),
        401 | 403 => Error::new(
            ErrorKind::InvalidConfig,
            said("the server does not accept the API key; set `api_key_env` or `api_key_file`"),
        ),
        404 => Error::new(ErrorKind::NotFound, said("the server does not know this")),
        405 | 501 => Error::new(ErrorKind::Unsupported, said("the server does not do this")),
        429 | 503 => Error::new(ErrorKind::Overloaded, said("the server takes no more requests now")),
        408 | 500 | 502 | 504 | 520..=599 => Error::new(ErrorKind::Remote, said("the server failed")),
        _ => Error::new(ErrorKind::Remote, said("the server answers what its protocol does not have"))
            .with_status(ErrorStatus::Permanent),
    };
    error.with_backend(crate::NAME)
}

/// What kind of request a refused one was.
fn bad(message: &str, call: Option<&Call>) -> ErrorKind {
    let says = |words: &[&str]| {
        let message = message.to_lowercase();
        words.iter().any(|word| message.contains(word))
    };
    match call {
        Some(call) if call.structure.is_some() && says(&["grammar", "schema", "regex", "structured", "choice"]) => {
            ErrorKind::InvalidGrammar
        }
        Some(call)
            if call.has_pictures() && says(&["image", "picture", "multimodal", "media"]) && !says(&["longer"]) =>
        {
            ErrorKind::InvalidImage
        }
        _ => ErrorKind::InvalidRequest,
    }
}

/// What a body says, and the parameter that it names.
fn words(body: &[u8]) -> (String, Option<String>) {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => match value.get("error") {
            Some(error) => of_value(error),
            None => of_value(&value),
        },
        Err(_) => (shortened(&String::from_utf8_lossy(body)), None),
    }
}

fn of_value(value: &Value) -> (String, Option<String>) {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let message = value.as_str().or_else(|| text("message")).or_else(|| text("detail"));
    let message = message.map_or_else(|| value.to_string(), str::to_owned);
    (shortened(&message), text("param").map(shortened))
}

fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST_WORDS) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, body: &str) -> Error {
        of_answer(status, body.as_bytes(), About { endpoint: "http://x", call: None })
    }

    #[test]
    fn every_form_of_an_error_is_read() {
        let python =
            of(400, r#"{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}"#);
        assert_eq!(python.kind(), ErrorKind::InvalidRequest);
        assert!(python.message().ends_with("too long"), "{python}");
        assert!(python.context().any(|pair| pair == ("param", "input_tokens")));
        let rust = of(404, r#"{"error":{"message":"no model","param":"model","code":"model_not_found"}}"#);
        assert_eq!((rust.kind(), rust.status()), (ErrorKind::NotFound, ErrorStatus::Permanent));
        let key = of(401, r#"{"error":"Unauthorized"}"#);
        assert_eq!(key.kind(), ErrorKind::InvalidConfig);
        assert!(key.message().contains("api_key_env") && key.message().contains("Unauthorized"), "{key}");
        assert_eq!(of(404, r#"{"detail":"Not Found"}"#).kind(), ErrorKind::NotFound);
        assert_eq!(of(404, "").kind(), ErrorKind::NotFound);
        let proxy = of(502, "<html>\n<h1>Bad Gateway</h1>");
        assert_eq!((proxy.kind(), proxy.status()), (ErrorKind::Remote, ErrorStatus::Temporary));
        assert!(proxy.message().contains("Bad Gateway"), "{proxy}");
        assert_eq!((of(503, "").kind(), of(429, "").kind()), (ErrorKind::Overloaded, ErrorKind::Overloaded));
        assert_eq!(of(302, "").status(), ErrorStatus::Permanent);
    }

    #[test]
    fn long_words_are_cut_at_a_character() {
        let error = of(400, &"é".repeat(2000));
        assert!(error.message().chars().count() < 560 && error.message().ends_with('…'), "{error}");
    }
}
