//! Anthropic's API.

use axum::body::Body;
use axum::http::HeaderName;
use base64::Engine as _;
use consort::bundled;
use consort_server::Keys;
use serde_json::{Value, json};

use crate::client::{Answer, Client, request};

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

#[tokio::test]
async fn a_message_has_the_shape_of_the_api() {
    let client = Client::new().await;
    let answer = client.post(MESSAGES, body("Hello!", &json!({}))).await;
    assert_eq!(answer.headers["request-id"], answer.headers["x-request-id"]);
    let message = answer.good();
    let keys = message.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(keys, ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"]);
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        (&message["type"], &message["role"], &message["model"]),
        (&json!("message"), &json!("assistant"), &json!("etude"))
    );
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    // The same as through the other API, word for word and token for token.
    let chat = client.chat("Hello!", json!({})).await.good();
    assert_eq!(text(&message), chat["choices"][0]["message"]["content"].as_str().unwrap());
    let usage = &message["usage"];
    assert_eq!(
        (&usage["input_tokens"], &usage["output_tokens"]),
        (&chat["usage"]["prompt_tokens"], &chat["usage"]["completion_tokens"])
    );
    assert_eq!(
        (&usage["cache_read_input_tokens"], &usage["output_tokens_details"]["thinking_tokens"]),
        (&json!(0), &json!(0))
    );
    // Once more it comes out of the cache, which is counted apart.
    let again = client.post(MESSAGES, body("Hello!", &json!({}))).await.good();
    assert!(again["usage"]["cache_read_input_tokens"].as_u64().unwrap() > 0, "{again}");
    assert_eq!(essence(&again), essence(&message));
}

#[tokio::test]
async fn a_stream_is_the_api_s_and_comes_to_the_whole_message() {
    let client = Client::new().await;
    for (question, more) in [
        ("Hello!", json!({})),
        ("Tell me a story about a fox.", json!({ "max_tokens": 5 })),
        ("Tell me a story about a fox.", json!({ "stop_sequences": ["fox"] })),
        ("What colour is the sky?", json!({ "thinking": { "type": "adaptive" } })),
        (
            "Move the circle.",
            json!({ "tools": tools(), "tool_choice": { "type": "tool", "name": "move", "disable_parallel_tool_use": true } }),
        ),
        ("Stop!", json!({ "tools": [tools()[1]], "tool_choice": { "type": "any" }, "max_tokens": 90 })),
    ] {
        let whole = message(&client, question, more.clone()).await;
        let mut more = more;
        more["stream"] = json!(true);
        let streamed = events(&client.post(MESSAGES, body(question, &more)).await);
        assert_eq!(essence(&together(&streamed)), essence(&whole), "{question}");
        let kinds: Vec<&str> = streamed.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!((kinds[0], kinds[1], *kinds.last().unwrap()), ("message_start", "ping", "message_stop"));
        assert_eq!(kinds.iter().filter(|kind| **kind == "message_delta").count(), 1);
        let count = |kind: &str| kinds.iter().filter(|other| **other == kind).count();
        assert_eq!(count("content_block_start"), count("content_block_stop"));
        assert_eq!(streamed[0]["message"]["usage"]["output_tokens"], 0);
    }
}

#[tokio::test]
async fn why_a_message_ended_is_told() {
    let client = Client::new().await;
    let fox = "Tell me a story about a fox.";
    let words = text(&message(&client, fox, json!({})).await).to_owned();
    let cut = message(&client, fox, json!({ "max_tokens": 3 })).await;
    assert_eq!((&cut["stop_reason"], &cut["usage"]["output_tokens"]), (&json!("max_tokens"), &json!(3)));
    let stopped = message(&client, fox, json!({ "stop_sequences": ["nothing like this", "fox"] })).await;
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!("fox")));
    assert_eq!(text(&stopped), words.split("fox").next().unwrap());
    // Nothing is said, and what was read is kept.
    let warmed = message(&client, "How many shapes are there?", json!({ "max_tokens": 0 })).await;
    assert_eq!((&warmed["content"], &warmed["stop_reason"]), (&json!([]), &json!("max_tokens")), "{warmed}");
    let later = message(&client, "How many shapes are there?", json!({})).await;
    assert!(later["usage"]["cache_read_input_tokens"].as_u64().unwrap() > 3, "{later}");
}

#[tokio::test]
async fn the_context_s_end_is_no_limit_of_the_client_s() {
    let client = Client::new().await;
    let list = client.get("/v1/models").await.good();
    let most = list["data"][0]["max_model_len"].as_u64().unwrap();
    let long = "x ".repeat(most as usize / 4);
    // A word that cannot end, in a context that does.
    let schema = json!({ "type": "string", "minLength": 100_000 });
    let more =
        json!({ "max_tokens": 1_000_000, "output_config": { "format": { "type": "json_schema", "schema": schema } } });
    let message = message(&client, &long, more).await;
    assert_eq!(message["stop_reason"], "model_context_window_exceeded", "{}", message["usage"]);
}

#[tokio::test]
async fn thinking_is_a_block_and_goes_back() {
    let client = Client::new().await;
    let sky = "What colour is the sky?";
    let thinking = message(&client, sky, json!({ "thinking": { "type": "adaptive", "display": "summarized" } })).await;
    let [thought, said] = thinking["content"].as_array().unwrap().as_slice() else { panic!("{thinking}") };
    assert_eq!((&thought["type"], &said["type"]), (&json!("thinking"), &json!("text")));
    assert!(!thought["thinking"].as_str().unwrap().is_empty() && !thought["signature"].as_str().unwrap().is_empty());
    let chat = client.chat(sky, json!({ "chat_template_kwargs": { "enable_thinking": true } })).await.good();
    assert_eq!(thought["thinking"], chat["choices"][0]["message"]["reasoning_content"]);
    assert_eq!(
        thinking["usage"]["output_tokens_details"]["thinking_tokens"],
        chat["usage"]["completion_tokens_details"]["reasoning_tokens"]
    );
    let messages = json!([
        { "role": "user", "content": sky },
        { "role": "assistant", "content": thinking["content"] },
        { "role": "user", "content": "Hello!" },
    ]);
    message(&client, "", json!({ "messages": messages })).await;
}

#[tokio::test]
async fn a_picture_is_seen_and_counted() {
    let client = Client::new().await;
    let picture = base64::engine::general_purpose::STANDARD.encode(bundled::DEMO_PICTURE);
    let content = json!([
        { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": picture }, "cache_control": { "type": "ephemeral" } },
        { "type": "text", "text": "What do you see?" },
    ]);
    let ask = json!({ "messages": [{ "role": "user", "content": content }] });
    // Before anything was read, and after.
    let count = json!({ "model": "etude", "thinking": { "type": "disabled" }, "messages": ask["messages"] });
    let before = client.post(COUNT, count.clone()).await.good();
    let seen = message(&client, "", ask).await;
    assert_eq!(
        text(&seen),
        "There is a yellow star at the top, a red circle on the left and a blue square on the right."
    );
    let usage = &seen["usage"];
    let prompt = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(before, json!({ "input_tokens": prompt }));
    assert!(usage["cache_read_input_tokens"].as_u64().unwrap() > 0, "counting has read it: {usage}");
    assert_eq!(client.post(COUNT, count).await.good(), before);
}

#[tokio::test]
async fn tokens_are_counted_as_the_persona_hears_them() {
    let client = Client::with("[[persona]]\nname = \"ada\"\nsystem = \"You are Ada.\"\nthinking = false\n").await;
    let mut counts = Vec::new();
    for (model, more) in [
        ("etude", json!({})),
        ("ada", json!({})),
        ("ada", json!({ "system": "Be brief." })),
        ("ada", json!({ "tools": tools() })),
        ("ada", json!({ "tools": tools(), "tool_choice": { "type": "none" } })),
    ] {
        let mut ask = json!({ "model": model, "messages": [{ "role": "user", "content": "Hello!" }] });
        for (key, value) in more.as_object().unwrap() {
            ask[key] = value.clone();
        }
        let counted = client.post(COUNT, ask.clone()).await.good()["input_tokens"].as_u64().unwrap();
        ask["max_tokens"] = json!(1);
        let usage = client.post(MESSAGES, ask).await.good()["usage"].clone();
        let prompt = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
        assert_eq!(counted, prompt, "{model} {more}");
        counts.push(counted);
    }
    let [etude, ada, brief, tools, none] = counts.as_slice() else { panic!("{counts:?}") };
    assert!(etude < ada && ada < brief && ada < tools && ada == none, "{counts:?}");
}

#[tokio::test]
async fn calls_go_back_and_forth() {
    let client = Client::new().await;
    for (choice, only) in [
        (json!({ "type": "any", "disable_parallel_tool_use": true }), None),
        (json!({ "type": "tool", "name": "move", "disable_parallel_tool_use": true }), Some("move")),
    ] {
        for seed in 0..4 {
            let more = json!({ "tools": tools(), "tool_choice": choice, "temperature": 1, "seed": seed });
            let reply = message(&client, "Move the circle.", more).await;
            let [call] = reply["content"].as_array().unwrap().as_slice() else { panic!("{reply}") };
            assert_eq!((&call["type"], &reply["stop_reason"]), (&json!("tool_use"), &json!("tool_use")));
            assert!(only.is_none_or(|name| call["name"] == name), "{call}");
            if call["name"] == "move" {
                assert!(["circle", "square"].contains(&call["input"]["shape"].as_str().unwrap()), "{call}");
                assert!((1..=9).contains(&call["input"]["steps"].as_i64().unwrap()), "{call}");
            }
            for result in [
                json!({ "type": "tool_result", "tool_use_id": call["id"] }),
                json!({ "type": "tool_result", "tool_use_id": call["id"], "content": "done", "is_error": false }),
                json!({ "type": "tool_result", "tool_use_id": call["id"], "is_error": true, "content": [{ "type": "text", "text": "stuck" }] }),
            ] {
                let messages = json!([
                    { "role": "user", "content": "Move the circle." },
                    { "role": "assistant", "content": reply["content"] },
                    { "role": "user", "content": [result, { "type": "text", "text": "What is there now?" }] },
                ]);
                let more = json!({ "messages": messages, "tools": tools(), "tool_choice": { "type": "none" }, "max_tokens": 8 });
                let answer = message(&client, "", more).await;
                assert!(answer["content"].as_array().unwrap().iter().all(|block| block["type"] == "text"), "{answer}");
            }
        }
    }
    // With several allowed each call is a block of its own, with an id of its own.
    let more = json!({ "tools": [tools()[1]], "tool_choice": { "type": "any" }, "temperature": 1.5, "seed": 3, "max_tokens": 120 });
    let reply = message(&client, "Stop!", more).await;
    let ids: std::collections::HashSet<&str> =
        reply["content"].as_array().unwrap().iter().filter_map(|block| block["id"].as_str()).collect();
    assert_eq!(ids.len(), reply["content"].as_array().unwrap().len(), "{reply}");
}

#[tokio::test]
async fn turns_of_the_same_speaker_are_one_turn() {
    let client = Client::new().await;
    let count = async |messages: Value| {
        client.post(COUNT, json!({ "model": "etude", "messages": messages })).await.good()["input_tokens"].clone()
    };
    let two = json!([{ "role": "user", "content": "Hello!" }, { "role": "user", "content": [{ "type": "text", "text": "Who are you?" }] }]);
    assert_eq!(count(two).await, count(json!([{ "role": "user", "content": "Hello!\n\nWho are you?" }])).await);
    let between = json!([
        { "role": "user", "content": "Hello!" },
        { "role": "assistant", "content": "Hello." },
        { "role": "assistant", "content": [{ "type": "text", "text": "I am Etude.", "citations": null }] },
        { "role": "user", "content": "Good." },
    ]);
    let joined = json!([
        { "role": "user", "content": "Hello!" },
        { "role": "assistant", "content": "Hello.\n\nI am Etude." },
        { "role": "user", "content": "Good." },
    ]);
    assert_eq!(count(between).await, count(joined).await);
    let system = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hello!" }]);
    let field =
        json!({ "model": "etude", "system": "Be brief.", "messages": [{ "role": "user", "content": "Hello!" }] });
    assert_eq!(count(system).await, client.post(COUNT, field).await.good()["input_tokens"]);
}

#[tokio::test]
async fn an_answer_has_the_form_that_was_asked_for() {
    let client = Client::new().await;
    let schema = json!({
        "type": "object",
        "properties": { "colour": { "enum": ["red", "green"] }, "count": { "type": "integer", "minimum": 0, "maximum": 9 } },
        "required": ["colour", "count"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "schema": schema });
    for seed in 0..6 {
        let newer = json!({ "output_config": { "effort": "high", "format": format }, "temperature": 1, "seed": seed });
        let older = json!({ "output_format": format, "temperature": 1, "seed": seed });
        let answer = message(&client, "What colour is it?", newer).await;
        let value: Value = serde_json::from_str(text(&answer)).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert!(["red", "green"].contains(&value["colour"].as_str().unwrap()), "{value}");
        assert!(value["count"].as_u64().unwrap() <= 9 && value.as_object().unwrap().len() == 2, "{value}");
        assert_eq!(text(&message(&client, "What colour is it?", older).await), text(&answer));
    }
}

#[tokio::test]
async fn every_field_that_cannot_be_obeyed_is_named() {
    let client =
        Client::with("[limits]\nimages = 1\nimage_bytes = 1000\nmessages = 4\ntools = 2\nreply_tokens = 5000\n").await;
    let tool = |more: Value| {
        let mut tool = json!({ "name": "f", "input_schema": { "type": "object" } });
        for (key, value) in more.as_object().unwrap() {
            tool[key] = value.clone();
        }
        json!({ "tools": [tool] })
    };
    let user = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    let source = |source: Value| user(json!([{ "type": "image", "source": source }]));
    let said = |block: Value| json!({ "messages": [{ "role": "user", "content": "x" }, { "role": "assistant", "content": [block] }, { "role": "user", "content": "x" }] });
    let call = json!({ "type": "tool_use", "id": "a", "name": "f", "input": {} });
    for (more, code, param) in [
        (json!({ "temprature": 1 }), "unknown_parameter", "temprature"),
        (json!({ "model": null }), "missing_required_parameter", "model"),
        (json!({ "max_tokens": null }), "missing_required_parameter", "max_tokens"),
        (json!({ "max_tokens": -1 }), "invalid_type", "max_tokens"),
        (json!({ "max_tokens": 5001 }), "invalid_value", "max_tokens"),
        (json!({ "messages": null }), "missing_required_parameter", "messages"),
        (json!({ "messages": [] }), "invalid_value", "messages"),
        (json!({ "messages": [{}, {}, {}, {}, {}] }), "invalid_value", "messages"),
        (json!({ "temperature": -1 }), "invalid_value", "temperature"),
        (json!({ "top_p": 1.5 }), "invalid_value", "top_p"),
        (json!({ "top_k": "x" }), "invalid_type", "top_k"),
        (json!({ "stop_sequences": "x" }), "invalid_type", "stop_sequences"),
        (json!({ "stop_sequences": [""] }), "invalid_value", "stop_sequences"),
        (json!({ "stop": ["x"] }), "unknown_parameter", "stop"),
        (json!({ "n": 2 }), "unknown_parameter", "n"),
        (json!({ "container": "c" }), "unsupported_parameter", "container"),
        (json!({ "mcp_servers": [] }), "unsupported_parameter", "mcp_servers"),
        (json!({ "context_management": {} }), "unsupported_parameter", "context_management"),
        (json!({ "diagnostics": {} }), "unsupported_parameter", "diagnostics"),
        (json!({ "inference_geo": "us" }), "unsupported_parameter", "inference_geo"),
        (json!({ "speed": "fast" }), "unsupported_parameter", "speed"),
        (json!({ "service_tier": "priority" }), "unsupported_parameter", "service_tier"),
        (json!({ "system": 5 }), "invalid_type", "system"),
        (json!({ "system": [{ "type": "image" }] }), "unsupported_parameter", "system[0].type"),
        (json!({ "thinking": {} }), "missing_required_parameter", "thinking.type"),
        (json!({ "thinking": { "type": "on" } }), "invalid_value", "thinking.type"),
        (json!({ "thinking": { "type": "between_tools" } }), "unsupported_parameter", "thinking.type"),
        (
            json!({ "thinking": { "type": "disabled", "budget_tokens": 1 } }),
            "unknown_parameter",
            "thinking.budget_tokens",
        ),
        (
            json!({ "thinking": { "type": "adaptive", "display": "omitted" } }),
            "unsupported_parameter",
            "thinking.display",
        ),
        (json!({ "thinking": { "type": "enabled" } }), "missing_required_parameter", "thinking.budget_tokens"),
        (json!({ "thinking": { "type": "enabled", "budget_tokens": 100 } }), "invalid_value", "thinking.budget_tokens"),
        (
            json!({ "thinking": { "type": "enabled", "budget_tokens": 2000 } }),
            "invalid_value",
            "thinking.budget_tokens",
        ),
        (
            json!({ "thinking": { "type": "enabled", "budget_tokens": 2000 }, "max_tokens": 4000 }),
            "unsupported_parameter",
            "thinking.budget_tokens",
        ),
        (json!({ "output_config": { "effort": "low" } }), "unsupported_parameter", "output_config.effort"),
        (json!({ "output_config": { "x": 1 } }), "unknown_parameter", "output_config.x"),
        (json!({ "output_config": { "format": { "type": "x" } } }), "invalid_value", "output_config.format.type"),
        (
            json!({ "output_config": { "format": { "type": "json_schema" } } }),
            "missing_required_parameter",
            "output_config.format.schema",
        ),
        (
            json!({ "output_format": { "type": "json_schema", "schema": {} }, "output_config": { "format": {} } }),
            "invalid_value",
            "output_format",
        ),
        (
            json!({ "output_format": { "type": "json_schema", "schema": { "type": "nonsense" } } }),
            "invalid_grammar",
            "",
        ),
        (tool(json!({ "type": "web_search_20250305" })), "unsupported_parameter", "tools[0].type"),
        (tool(json!({ "name": "a b" })), "invalid_value", "tools[0].name"),
        (tool(json!({ "input_schema": null })), "missing_required_parameter", "tools[0].input_schema"),
        (tool(json!({ "input_schema": 5 })), "invalid_type", "tools[0].input_schema"),
        (tool(json!({ "defer_loading": true })), "unsupported_parameter", "tools[0].defer_loading"),
        (tool(json!({ "allowed_callers": ["code"] })), "unsupported_parameter", "tools[0].allowed_callers"),
        (tool(json!({ "input_examples": [] })), "unsupported_parameter", "tools[0].input_examples"),
        (tool(json!({ "x": 1 })), "unknown_parameter", "tools[0].x"),
        (json!({ "tools": [1, 2, 3] }), "invalid_value", "tools"),
        (json!({ "tool_choice": { "type": "any" } }), "invalid_value", "tool_choice"),
        (json!({ "tool_choice": "any" }), "invalid_type", "tool_choice"),
        (json!({ "tool_choice": { "type": "required" } }), "invalid_value", "tool_choice.type"),
        (json!({ "tool_choice": { "type": "tool", "name": "g" } }), "invalid_value", "tool_choice.name"),
        (json!({ "messages": [{ "content": "x" }] }), "missing_required_parameter", "messages[0].role"),
        (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "invalid_value", "messages[0].role"),
        (json!({ "messages": [{ "role": "user" }] }), "missing_required_parameter", "messages[0].content"),
        (
            json!({ "messages": [{ "role": "user", "content": "x", "name": "e" }] }),
            "unknown_parameter",
            "messages[0].name",
        ),
        (user(json!([])), "invalid_value", "messages[0].content"),
        (user(json!(vec![json!({ "type": "text", "text": "x" }); 5])), "invalid_value", "messages[0].content"),
        (user(json!([{ "text": "x" }])), "missing_required_parameter", "messages[0].content[0].type"),
        (user(json!([{ "type": "text" }])), "missing_required_parameter", "messages[0].content[0].text"),
        (
            user(json!([{ "type": "text", "text": "x", "citations": [{}] }])),
            "unsupported_parameter",
            "messages[0].content[0].citations",
        ),
        (user(json!([{ "type": "document", "source": {} }])), "unsupported_parameter", "messages[0].content[0].type"),
        (user(json!([{ "type": "thinking", "thinking": "x" }])), "invalid_value", "messages[0].content[0].type"),
        (user(json!([call])), "invalid_value", "messages[0].content[0].type"),
        (
            user(json!([{ "type": "tool_result", "tool_use_id": "a", "content": "x" }])),
            "invalid_value",
            "messages[0].content[0].tool_use_id",
        ),
        (
            source(json!({ "type": "url", "url": "https://example.org/x.png" })),
            "remote_image",
            "messages[0].content[0].source.url",
        ),
        (
            source(json!({ "type": "file", "file_id": "x" })),
            "unsupported_parameter",
            "messages[0].content[0].source.type",
        ),
        (
            source(json!({ "type": "base64", "media_type": "text/html", "data": "AAEC" })),
            "invalid_value",
            "messages[0].content[0].source.media_type",
        ),
        (
            source(json!({ "type": "base64", "media_type": "image/png", "data": "*" })),
            "invalid_image",
            "messages[0].content[0].source.data",
        ),
        (
            source(json!({ "type": "base64", "media_type": "image/png", "data": "A".repeat(3000) })),
            "invalid_image",
            "messages[0].content[0].source.data",
        ),
        (source(json!({ "type": "base64", "media_type": "image/png", "data": "AAEC" })), "invalid_image", ""),
        (
            said(json!({ "type": "redacted_thinking", "data": "x" })),
            "unsupported_parameter",
            "messages[1].content[0].type",
        ),
        (said(json!({ "type": "image" })), "invalid_value", "messages[1].content[0].type"),
        (
            said(json!({ "type": "tool_use", "id": "a", "name": "f", "input": "x" })),
            "invalid_type",
            "messages[1].content[0].input",
        ),
        (
            said(json!({ "type": "tool_use", "id": "a", "name": "f" })),
            "missing_required_parameter",
            "messages[1].content[0].input",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": "x" }, { "role": "assistant", "content": "The" }] }),
            "unsupported_parameter",
            "messages[1].role",
        ),
    ] {
        let asked = body("Hello!", &more);
        let answer = client.post(MESSAGES, asked.clone()).await;
        let (status, kind, found, message) = failure(&answer);
        assert_eq!((status, kind.as_str(), found.as_str()), (400, "invalid_request_error", code), "{asked}: {message}");
        assert!(message.contains(param), "{asked}: {message} names {param}");
    }
    // Counting knows what shapes the prompt, and nothing of how it is answered.
    let count = |more: Value| {
        let mut body = json!({ "model": "etude", "messages": [{ "role": "user", "content": "x" }] });
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    for (more, code) in [
        (json!({ "max_tokens": 5 }), "unknown_parameter"),
        (json!({ "stream": true }), "unknown_parameter"),
        (json!({ "temperature": 1 }), "unknown_parameter"),
        (json!({ "model": "nobody" }), "model_not_found"),
    ] {
        assert_eq!(failure(&client.post(COUNT, count(more.clone())).await).2, code, "{more}");
    }
}

#[tokio::test]
async fn every_failure_has_the_api_s_shape() {
    let client =
        Client::with_keys("[limits]\nrequests = 1\nbody_bytes = 1000\n", Keys::new(["open-sesame"]).unwrap()).await;
    let send = async |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        let mut request = request(method, path, Body::from(body.to_owned()));
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        client.send(request).await
    };
    let key = ("x-api-key", "open-sesame");
    let told = |answer: Answer| {
        let (status, kind, code, _) = failure(&answer);
        (status, kind, code)
    };
    let expected = |status: u16, kind: &str, code: &str| (status, kind.to_owned(), code.to_owned());
    let good = body("Hello!", &json!({ "max_tokens": 2 })).to_string();
    for (method, path, headers, sent, wanted) in [
        ("POST", MESSAGES, vec![], good.as_str(), expected(401, "authentication_error", "invalid_api_key")),
        (
            "POST",
            MESSAGES,
            vec![("x-api-key", "open-sesamE")],
            &good,
            expected(401, "authentication_error", "invalid_api_key"),
        ),
        (
            "POST",
            MESSAGES,
            vec![key, ("host", "evil.example")],
            &good,
            expected(403, "permission_error", "host_not_allowed"),
        ),
        (
            "POST",
            MESSAGES,
            vec![key, ("origin", "https://evil.example")],
            &good,
            expected(403, "permission_error", "origin_not_allowed"),
        ),
        ("GET", MESSAGES, vec![key], "", expected(405, "invalid_request_error", "method_not_allowed")),
        ("POST", "/v1/messages/batches", vec![key], "{}", expected(404, "not_found_error", "unknown_url")),
        (
            "POST",
            "/v1/complete",
            vec![key, ("anthropic-version", "2023-06-01")],
            "{}",
            expected(404, "not_found_error", "unknown_url"),
        ),
        (
            "POST",
            MESSAGES,
            vec![key, ("content-type", "text/plain")],
            &good,
            expected(415, "invalid_request_error", "unsupported_media_type"),
        ),
        ("POST", MESSAGES, vec![key], &" ".repeat(1001), expected(413, "invalid_request_error", "body_too_large")),
        ("POST", MESSAGES, vec![key], "{", expected(400, "invalid_request_error", "invalid_json")),
        ("POST", COUNT, vec![key], "[]", expected(400, "invalid_request_error", "invalid_type")),
        (
            "POST",
            MESSAGES,
            vec![key],
            &good.replace("etude", "nobody"),
            expected(404, "not_found_error", "model_not_found"),
        ),
    ] {
        assert_eq!(told(send(method, path, &headers, sent).await), wanted, "{method} {path} {headers:?}");
    }
    // The other API's clients are told in the other form.
    assert_eq!(send("GET", "/v1/models", &[], "").await.error().0, 401);
    assert_eq!(send("POST", MESSAGES, &[("authorization", "Bearer open-sesame")], &good).await.status, 200);
    // One is answered, and there is no place for another.
    let long = body("Tell me a story about a fox.", &json!({ "stream": true }));
    let mut first = request("POST", MESSAGES, Body::from(long.to_string()));
    first.headers_mut().insert("x-api-key", "open-sesame".parse().unwrap());
    let running = tower::ServiceExt::oneshot(client.app.router(consort_server::Transport::Tcp), first).await.unwrap();
    assert_eq!(running.status(), 200);
    let refused = send("POST", MESSAGES, &[key], &good).await;
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(told(refused), expected(529, "overloaded_error", "overloaded"));
    drop(running);
    assert_eq!(send("POST", MESSAGES, &[key], &good).await.status, 200);
}

#[tokio::test]
async fn an_error_in_the_middle_is_the_last_event() {
    let client = Client::with("[limits]\nreply_seconds = 1\n").await;
    // Longer than a second, whatever the machine.
    let schema = json!({ "type": "string", "minLength": 100_000 });
    let more = json!({ "stream": true, "temperature": 1, "output_format": { "type": "json_schema", "schema": schema }, "max_tokens": 100_000 });
    let mut asks = Vec::new();
    for _ in 0..8 {
        asks.push(client.post(MESSAGES, body("Tell me a story about a fox.", &more)));
    }
    for answer in futures_util::future::join_all(asks).await {
        let events = events(&answer);
        let last = events.last().unwrap();
        if last["type"] == "message_stop" {
            // The context was full before the time was.
            continue;
        }
        assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("timeout_error")), "{last}");
    }
}

#[tokio::test]
async fn models_have_the_api_s_form_for_its_clients() {
    let client = Client::with("[[persona]]\nname = \"ada\"\n[limits]\nreply_tokens = 50\n").await;
    let get = async |path: &str| {
        let mut request = request("GET", path, Body::empty());
        request.headers_mut().insert("anthropic-version", "2023-06-01".parse().unwrap());
        client.send(request).await
    };
    let all = get("/v1/models").await.good();
    let names = |list: &Value| -> Vec<String> {
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&all), ["etude", "ada", "butler", "pirate"]);
    assert_eq!(
        (&all["has_more"], &all["first_id"], &all["last_id"]),
        (&json!(false), &json!("etude"), &json!("pirate"))
    );
    let first = &all["data"][0];
    assert_eq!(
        (&first["type"], &first["max_tokens"], &first["lifecycle"]),
        (&json!("model"), &json!(50), &json!("active"))
    );
    let date = first["created_at"].as_str().unwrap();
    assert!(date.len() == 20 && date.starts_with("20") && date.ends_with('Z'), "{date}");
    // Pages, forwards and backwards.
    let page = get("/v1/models?limit=2").await.good();
    assert_eq!((names(&page), &page["has_more"]), (vec!["etude".to_owned(), "ada".into()], &json!(true)));
    let page = get("/v1/models?limit=2&after_id=ada").await.good();
    assert_eq!((names(&page), &page["has_more"]), (vec!["butler".to_owned(), "pirate".into()], &json!(false)));
    let page = get("/v1/models?limit=2&before_id=pirate").await.good();
    assert_eq!((names(&page), &page["has_more"]), (vec!["ada".to_owned(), "butler".into()], &json!(true)));
    let none = get("/v1/models?after_id=pirate").await.good();
    assert_eq!((names(&none).len(), &none["first_id"]), (0, &Value::Null));
    assert_eq!(failure(&get("/v1/models?limit=0").await).0, 400);
    assert_eq!(failure(&get("/v1/models?after_id=eve").await).0, 400);
    assert_eq!(get("/v1/models/ada").await.good()["id"], "ada");
    assert_eq!(failure(&get("/v1/models/eve").await).2, "model_not_found");
    assert_eq!(client.get("/v1/models").await.good()["object"], "list", "without the header it is the other API's");
}
