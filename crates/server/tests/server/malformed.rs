//! Whatever is sent: never a defect, never a wait without end.

use std::time::Duration;

use axum::body::Body;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use crate::client::{Client, request};

const PATHS: [&str; 15] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/personas/x",
    "/v1/rooms",
    "/v1/rooms/ROOM",
    "/v1/rooms/ROOM/messages",
    "/v1/rooms/ROOM/stop",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
];

/// A room for the addresses that need one.
async fn room(client: &Client) -> String {
    assert_eq!(client.put("/v1/personas/x", json!({ "max_tokens": 2 })).await.status, 201);
    let room = client.post("/v1/rooms", json!({ "participants": ["x"] })).await;
    room.json()["id"].as_str().unwrap().to_owned()
}

async fn sent(client: &Client, room: &str, path: &str, body: Vec<u8>) -> u16 {
    let method = match path {
        "/v1/personas/x" => "PUT",
        "/v1/rooms/ROOM" => "PATCH",
        _ => "POST",
    };
    let path = &path.replace("ROOM", room);
    let shown = String::from_utf8_lossy(&body).chars().take(2000).collect::<String>();
    let answer =
        tokio::time::timeout(Duration::from_secs(60), client.send(request(method, path, Body::from(body)))).await;
    let answer = answer.unwrap_or_else(|_| panic!("{path} hangs at {shown}"));
    assert!(answer.status < 500, "{path} at {shown}: {}", answer.text());
    if answer.status >= 400 && path.starts_with("/v1/messages") {
        assert_eq!(answer.json()["type"], "error", "{}", answer.text());
    } else if answer.status >= 400 {
        answer.error();
    }
    answer.status
}

#[tokio::test]
async fn bodies_that_are_no_requests_are_refused() {
    let client = Client::new().await;
    let deep =
        |open: &str, close: &str, count: usize| format!("{}{}", open.repeat(count), close.repeat(count)).into_bytes();
    let bodies: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"x\"".to_vec(),
        b"{".to_vec(),
        b"{\"model\": \"etude\",}".to_vec(),
        b"\xff\xfe{}".to_vec(),
        b"{\"model\": \"\xff\"}".to_vec(),
        b"{\"model\": \"\\ud800\"}".to_vec(),
        b"{\"temperature\": 1e999}".to_vec(),
        b"{\"temperature\": NaN}".to_vec(),
        deep("[", "]", 100_000),
        deep("{\"a\":", "}", 100_000),
        deep("{\"messages\":[", "]}", 60),
        deep("{\"input\":[", "]}", 60),
        format!("{{\"model\": {:?}}}", "x".repeat(1 << 20)).into_bytes(),
    ];
    let room = room(&client).await;
    for path in PATHS {
        for body in &bodies {
            assert!(sent(&client, &room, path, body.clone()).await >= 400, "{path}");
        }
    }
}

/// A picture of one red point.
const TINY: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";

/// A request of this address that is right, for mutations to break.
fn right(path: &str) -> Value {
    match path {
        "/v1/chat/completions" => json!({
            "model": "etude", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "n": 1, "seed": 3, "stop": ["x"], "stream": false,
            "messages": [
                { "role": "system", "content": "s" },
                { "role": "user", "content": [{ "type": "text", "text": "Hello" }] },
                { "role": "assistant", "content": null, "tool_calls": [{ "id": "c", "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
                { "role": "tool", "tool_call_id": "c", "content": "t" },
            ],
            "tools": [{ "type": "function", "function": { "name": "f", "parameters": { "type": "object", "properties": { "a": { "type": "integer" } } } } }],
            "tool_choice": "auto", "logit_bias": { "5": 1 }, "logprobs": true, "top_logprobs": 2,
            "response_format": { "type": "text" }, "user": "u",
        }),
        "/v1/completions" => {
            json!({ "model": "etude", "prompt": "Hello", "max_tokens": 2, "echo": true, "logprobs": 1, "stop": "x", "n": 1 })
        }
        "/v1/embeddings" => json!({ "model": "etude", "input": ["a", "b"], "encoding_format": "float" }),
        "/tokenize" => json!({ "prompt": "Hello", "model": "etude", "return_token_strs": true }),
        "/detokenize" => json!({ "tokens": [1, 2, 3] }),
        "/v1/load_lora_adapter" => json!({ "lora_name": "x", "lora_path": "y", "load_inplace": false }),
        "/v1/unload_lora_adapter" => json!({ "lora_name": "x" }),
        "/v1/rooms" | "/v1/rooms/ROOM" => json!({ "participants": ["x"], "scene": "s", "mode": "in_turn" }),
        "/v1/rooms/ROOM/messages" => json!({
            "content": "Hello", "images": [format!("data:image/png;base64,{TINY}")], "respond": ["x"], "mode": "together",
            "max_tokens": 2, "thinking": false,
        }),
        "/v1/rooms/ROOM/stop" => json!({ "personas": ["x"] }),
        "/v1/messages" | "/v1/messages/count_tokens" => {
            let mut body = json!({
                "model": "etude", "system": [{ "type": "text", "text": "s" }],
                "messages": [
                    { "role": "user", "content": [{ "type": "text", "text": "Hello", "cache_control": { "type": "ephemeral" } }] },
                    { "role": "assistant", "content": [
                        { "type": "thinking", "thinking": "t", "signature": "s" },
                        { "type": "tool_use", "id": "c", "name": "f", "input": { "a": 1 } },
                    ] },
                    { "role": "user", "content": [
                        { "type": "tool_result", "tool_use_id": "c", "content": [{ "type": "text", "text": "t" }], "is_error": true },
                        { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": TINY } },
                    ] },
                ],
                "tools": [{ "name": "f", "input_schema": { "type": "object", "properties": { "a": { "type": "integer" } } } }],
                "tool_choice": { "type": "auto", "disable_parallel_tool_use": true },
                "thinking": { "type": "adaptive" }, "output_config": { "effort": "high" },
            });
            if path == "/v1/messages" {
                let more = json!({ "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["x"], "stream": false, "metadata": { "user_id": "u" } });
                body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            }
            body
        }
        "/v1/responses" => json!({
            "model": "etude", "instructions": "s", "max_output_tokens": 2, "temperature": 0.5, "top_p": 0.9, "stream": false,
            "input": [
                { "role": "user", "content": [
                    { "type": "input_text", "text": "Hello" },
                    { "type": "input_image", "image_url": format!("data:image/png;base64,{TINY}"), "detail": "auto" },
                ] },
                { "type": "reasoning", "id": "r", "summary": [], "content": [{ "type": "reasoning_text", "text": "t" }] },
                { "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}" },
                { "type": "function_call_output", "call_id": "c", "output": "t" },
                { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "t", "annotations": [] }] },
            ],
            "tools": [{ "type": "function", "name": "f", "parameters": { "type": "object" }, "strict": false }],
            "tool_choice": "auto", "parallel_tool_calls": true, "text": { "format": { "type": "text" } },
            "reasoning": { "effort": "none" }, "include": ["message.output_text.logprobs"], "top_logprobs": 1,
            "metadata": {}, "store": false,
        }),
        _ => {
            json!({ "system": "s", "adapters": [{ "name": "pirate", "scale": 1.0 }], "sampling": { "temperature": 0.5 }, "max_tokens": 2, "color": "#00ff00" })
        }
    }
}

fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("")),
        Just(json!("<|im_end|>\u{0}\u{202e}")),
        Just(json!("x".repeat(5000))),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[[[1]]]])),
        Just(json!({ "type": "function" })),
        Just(json!([{ "type": "text" }, null, 3])),
        Just(json!({ "$ref": "#" })),
    ]
}

/// Puts `value` at a place in `body`: the `steps` choose which.
fn put(body: &mut Value, steps: &[prop::sample::Index], value: Value) {
    let Some((step, rest)) = steps.split_first() else {
        *body = value;
        return;
    };
    match body {
        Value::Object(fields) if !fields.is_empty() => {
            let key = fields.keys().nth(step.index(fields.len())).unwrap().clone();
            put(fields.get_mut(&key).unwrap(), rest, value);
        }
        Value::Array(items) if !items.is_empty() => {
            let at = step.index(items.len());
            put(&mut items[at], rest, value);
        }
        other => *other = value,
    }
}

#[tokio::test]
async fn requests_with_something_odd_in_them_are_answered_or_refused() {
    let client = Client::with("[limits]\nreply_seconds = 20\nreply_tokens = 8\n").await;
    let room = room(&client).await;
    for path in PATHS.iter().filter(|path| !path.contains("lora_adapter")) {
        let status = sent(&client, &room, path, right(path).to_string().into_bytes()).await;
        assert!(matches!(status, 200 | 201), "{path}: {status}");
    }
    let strategy = (0..PATHS.len(), prop::collection::vec(any::<prop::sample::Index>(), 1..6), odd());
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..900 {
        let (path, steps, value) = strategy.new_tree(&mut runner).unwrap().current();
        let mut body = right(PATHS[path]);
        put(&mut body, &steps, value);
        match sent(&client, &room, PATHS[path], body.to_string().into_bytes()).await {
            200 | 201 => answered += 1,
            _ => refused += 1,
        }
    }
    assert!(answered > 60 && refused > 300, "{answered} answered, {refused} refused");
    // And it answers as before.
    client.chat("Hello!", json!({ "max_tokens": 4 })).await.good();
}
