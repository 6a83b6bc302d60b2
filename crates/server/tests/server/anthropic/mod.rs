//! Anthropic's API.

mod messages;
mod models;
mod refusals;

use serde_json::{Value, json};

use crate::client::{Answer, Client};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// A greedy request of one question, without thinking; `more` goes before it.
fn body(question: &str, more: &Value) -> Value {
    let mut body = json!({
        "model": "etude",
        "max_tokens": 400,
        "messages": [{ "role": "user", "content": question }],
        "temperature": 0,
        "thinking": { "type": "disabled" },
    });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

async fn message(client: &Client, question: &str, more: Value) -> Value {
    client.post(MESSAGES, body(question, &more)).await.good()
}

fn text(message: &Value) -> &str {
    let [block] = message["content"].as_array().unwrap().as_slice() else { panic!("{message}") };
    assert_eq!(block["type"], "text");
    block["text"].as_str().unwrap()
}

/// `(status, type, code, message)` of an error, whose shape is checked.
fn failure(answer: &Answer) -> (u16, String, String, String) {
    let body = answer.json();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&body), ["type", "error", "request_id"], "{body}");
    assert_eq!(keys(&body["error"]), ["type", "message", "details"], "{body}");
    assert_eq!(body["type"], "error");
    assert_eq!(body["request_id"].as_str(), Some(answer.headers["request-id"].to_str().unwrap()));
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let error = &body["error"];
    (answer.status, word(&error["type"]), word(&error["details"]["error_code"]), word(&error["message"]))
}

/// The events of a stream, each with the name that its data has.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let text = answer.text();
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        data
    };
    text.split_terminator("\n\n").map(event).collect()
}

/// A message put together from its events, as clients do it.
fn together(events: &[Value]) -> Value {
    let mut message = events[0]["message"].clone();
    let mut arguments = String::new();
    for event in &events[1..] {
        let at = event["index"].as_u64().unwrap_or_default() as usize;
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(content.len(), at);
                content.push(event["content_block"].clone());
                arguments.clear();
            }
            "content_block_delta" => {
                let (block, delta) = (&mut message["content"][at], &event["delta"]);
                let kind = delta["type"].as_str().unwrap();
                if kind == "input_json_delta" {
                    arguments += delta["partial_json"].as_str().unwrap();
                } else {
                    let key = kind.strip_suffix("_delta").unwrap();
                    block[key] = (block[key].as_str().unwrap().to_owned() + delta[key].as_str().unwrap()).into();
                }
            }
            "content_block_stop" if !arguments.is_empty() => {
                message["content"][at]["input"] = serde_json::from_str(&arguments).unwrap();
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
                message["usage"] = event["usage"].clone();
            }
            _ => {}
        }
    }
    message
}

/// What of two messages must be the same: no ids, and not what the cache gave.
fn essence(message: &Value) -> Value {
    let mut message = message.clone();
    message["id"] = Value::Null;
    let usage = &message["usage"];
    let prompt = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    message["usage"] = json!([prompt, usage["output_tokens"], usage["output_tokens_details"]]);
    for block in message["content"].as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            assert!(block["id"].as_str().unwrap().starts_with("toolu_"), "{block}");
            block["id"] = Value::Null;
        }
    }
    message
}

fn tools() -> Value {
    json!([
        { "name": "move", "description": "Moves a shape.", "cache_control": { "type": "ephemeral" }, "input_schema": {
            "type": "object",
            "properties": { "shape": { "enum": ["circle", "square"] }, "steps": { "type": "integer", "minimum": 1, "maximum": 9 } },
            "required": ["shape", "steps"],
            "additionalProperties": false,
        } },
        { "type": "custom", "name": "stop", "input_schema": { "type": "object" }, "strict": false },
    ])
}
