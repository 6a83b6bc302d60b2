//! `/v1/responses`.

use base64::Engine as _;
use consort::bundled;
use serde_json::{Value, json};

use crate::client::{Answer, Client};

const RESPONSES: &str = "/v1/responses";

/// A greedy request of one question, without reasoning; `more` goes before it.
fn body(question: &str, more: &Value) -> Value {
    let mut body = json!({ "model": "etude", "input": question, "temperature": 0, "reasoning": { "effort": "none" } });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

async fn response(client: &Client, question: &str, more: Value) -> Value {
    client.post(RESPONSES, body(question, &more)).await.good()
}

/// The text of a response that is one message.
fn text(response: &Value) -> &str {
    let [message] = response["output"].as_array().unwrap().as_slice() else { panic!("{response}") };
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    message["content"][0]["text"].as_str().unwrap()
}

/// The events of a stream, whose names and numbers are checked.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let text = answer.text();
    let event = |(number, event): (usize, &str)| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(number)));
        data
    };
    text.split_terminator("\n\n").enumerate().map(event).collect()
}

/// What of two items must be the same: no ids.
fn essence(items: &Value) -> Value {
    let mut items = items.clone();
    for item in items.as_array_mut().unwrap() {
        item["id"] = Value::Null;
        if item["type"] == "function_call" {
            item["call_id"] = Value::Null;
        }
    }
    items
}

fn tool() -> Value {
    json!({ "type": "function", "name": "move", "description": "Moves a shape.", "strict": true, "parameters": {
        "type": "object",
        "properties": { "shape": { "enum": ["circle", "square"] }, "steps": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["shape", "steps"],
        "additionalProperties": false,
    } })
}

#[tokio::test]
async fn a_response_has_the_shape_of_the_api() {
    let client = Client::new().await;
    let answer = response(
        &client,
        "Hello!",
        json!({ "metadata": { "a": "b" }, "user": "u", "store": false, "instructions": "Be brief." }),
    )
    .await;
    for (key, expected) in [
        ("object", json!("response")),
        ("status", json!("completed")),
        ("background", json!(false)),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
        ("instructions", json!("Be brief.")),
        ("max_output_tokens", Value::Null),
        ("model", json!("etude")),
        ("parallel_tool_calls", json!(true)),
        ("previous_response_id", Value::Null),
        ("reasoning", json!({ "effort": "none", "summary": null })),
        ("store", json!(false)),
        ("temperature", json!(0.0)),
        ("text", json!({ "format": { "type": "text" }, "verbosity": "medium" })),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_p", json!(1.0)),
        ("truncation", json!("disabled")),
        ("metadata", json!({ "a": "b" })),
        ("user", json!("u")),
    ] {
        assert_eq!(answer[key], expected, "{key}");
    }
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
    assert!(answer["completed_at"].as_u64().unwrap() >= answer["created_at"].as_u64().unwrap());
    // The same as by the other address, word for word and token for token.
    let plain = response(&client, "Tell me a story about a fox.", json!({})).await;
    let chat = client.chat("Tell me a story about a fox.", json!({})).await.good();
    assert_eq!(text(&plain), chat["choices"][0]["message"]["content"].as_str().unwrap());
    assert_eq!(plain["output"][0]["content"][0]["annotations"], json!([]));
    let usage = &plain["usage"];
    assert_eq!(
        (&usage["input_tokens"], &usage["output_tokens"]),
        (&chat["usage"]["prompt_tokens"], &chat["usage"]["completion_tokens"])
    );
    let cached = response(&client, "Tell me a story about a fox.", json!({})).await["usage"].clone();
    assert!(cached["input_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0, "{cached}");
    let persona =
        Client::with("[[persona]]\nname = \"ada\"\n[persona.sampling]\ntemperature = 0.5\ntop_p = 0.25\n").await;
    let echo =
        persona.post(RESPONSES, json!({ "model": "ada", "input": "Hello!", "max_output_tokens": 3 })).await.good();
    assert_eq!((&echo["temperature"], &echo["top_p"]), (&json!(0.5), &json!(0.25)), "what was used is told");
}

#[tokio::test]
async fn a_stream_is_the_api_s_and_comes_to_the_whole_response() {
    let client = Client::new().await;
    for (question, more, kinds) in [
        ("Hello!", json!({}), vec!["message"]),
        ("Tell me a story about a fox.", json!({ "max_output_tokens": 5 }), vec!["message"]),
        ("What colour is the sky?", json!({ "reasoning": { "effort": "low" } }), vec!["reasoning", "message"]),
        (
            "Move the circle.",
            json!({ "tools": [tool()], "tool_choice": { "type": "function", "name": "move" }, "parallel_tool_calls": false }),
            vec!["function_call"],
        ),
        ("Hello!", json!({ "include": ["message.output_text.logprobs"], "top_logprobs": 2 }), vec!["message"]),
    ] {
        let whole = response(&client, question, more.clone()).await;
        let found: Vec<&str> =
            whole["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
        assert_eq!(found, kinds, "{whole}");
        let mut more = more;
        more["stream"] = json!(true);
        let events = events(&client.post(RESPONSES, body(question, &more)).await);
        assert_eq!(
            (&events[0]["type"], &events[1]["type"]),
            (&json!("response.created"), &json!("response.in_progress"))
        );
        assert_eq!(
            (&events[0]["response"]["status"], &events[0]["response"]["output"]),
            (&json!("in_progress"), &json!([]))
        );
        let last = events.last().unwrap();
        assert_eq!(last["type"], format!("response.{}", whole["status"].as_str().unwrap()));
        let end = &last["response"];
        assert_eq!(essence(&end["output"]), essence(&whole["output"]));
        assert_eq!(
            (&end["incomplete_details"], &end["usage"]["output_tokens"]),
            (&whole["incomplete_details"], &whole["usage"]["output_tokens"])
        );
        // Each item that is done stands in the response, and was put together from its deltas.
        let mut done = Vec::new();
        let (mut deltas, mut logprobs) = (String::new(), Vec::new());
        for event in &events[2..events.len() - 1] {
            assert_eq!(event["output_index"].as_u64().unwrap() as usize, done.len(), "{event}");
            match event["type"].as_str().unwrap() {
                "response.output_item.added" => assert_eq!(event["item"]["status"], "in_progress"),
                "response.output_text.delta"
                | "response.reasoning_text.delta"
                | "response.function_call_arguments.delta" => {
                    deltas += event["delta"].as_str().unwrap();
                    logprobs.extend(event["logprobs"].as_array().cloned().unwrap_or_default());
                }
                "response.output_text.done" => {
                    assert_eq!(
                        (event["text"].as_str().unwrap(), &event["logprobs"]),
                        (deltas.as_str(), &json!(logprobs))
                    );
                }
                "response.reasoning_text.done" => assert_eq!(event["text"].as_str().unwrap(), deltas),
                "response.function_call_arguments.done" => assert_eq!(event["arguments"].as_str().unwrap(), deltas),
                "response.content_part.done" => assert_eq!(event["part"]["text"].as_str().unwrap(), deltas),
                "response.output_item.done" => {
                    done.push(event["item"].clone());
                    deltas.clear();
                }
                "response.content_part.added" => assert_eq!(event["part"]["text"], ""),
                other => panic!("{other}"),
            }
        }
        assert_eq!(json!(done), end["output"]);
    }
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_text() {
    let client = Client::new().await;
    let more =
        json!({ "include": ["message.output_text.logprobs"], "top_logprobs": 2, "reasoning": { "effort": "high" } });
    let thinking = response(&client, "What colour is the sky?", more).await;
    let part = &thinking["output"][1]["content"][0];
    let tokens: String =
        part["logprobs"].as_array().unwrap().iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, part["text"].as_str().unwrap(), "{part}");
    assert!(
        part["logprobs"].as_array().unwrap().iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2)
    );
}

#[tokio::test]
async fn a_conversation_goes_on_with_the_items_that_came() {
    let client = Client::new().await;
    // Reasoning and a call, what came of it, and a message: as clients send it back.
    let more = json!({ "tools": [tool()], "tool_choice": "required", "parallel_tool_calls": false, "reasoning": { "effort": "high" }, "max_output_tokens": 300 });
    let first = response(&client, "Move the circle.", more).await;
    let mut items = vec![json!({ "role": "user", "content": "Move the circle." })];
    items.extend(first["output"].as_array().unwrap().iter().cloned());
    let call = items.last().unwrap().clone();
    assert_eq!(call["type"], "function_call", "{first}");
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(["circle", "square"].contains(&arguments["shape"].as_str().unwrap()), "{call}");
    items.push(json!({ "type": "function_call_output", "call_id": call["call_id"], "output": [{ "type": "input_text", "text": "done" }] }));
    let second = response(
        &client,
        "",
        json!({ "input": items, "tools": [tool()], "max_output_tokens": 8, "tool_choice": "none" }),
    )
    .await;
    items.extend(second["output"].as_array().unwrap().iter().cloned());
    items.push(json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "Hello!" }] }));
    let third = response(&client, "", json!({ "input": items, "max_output_tokens": 8 })).await;
    assert!(third["usage"]["input_tokens"].as_u64() > second["usage"]["input_tokens"].as_u64(), "{third}");
    // The model is told the same as by the other address.
    let chat = json!({ "max_tokens": 1, "messages": [
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "Move the circle." },
        { "role": "assistant", "reasoning_content": "I move it.", "tool_calls": [{ "id": "c", "type": "function", "function": { "name": "move", "arguments": "{\"shape\": \"circle\"}" } }] },
        { "role": "tool", "tool_call_id": "c", "content": "done" },
    ] });
    let input = json!([
        { "role": "developer", "content": "Be brief." },
        { "role": "user", "content": "Move the circle." },
        { "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text", "text": "I move it." }], "encrypted_content": null },
        { "type": "function_call", "call_id": "c", "name": "move", "arguments": "{\"shape\": \"circle\"}", "status": "completed" },
        { "type": "function_call_output", "call_id": "c", "output": "done" },
    ]);
    let told = response(&client, "", json!({ "input": input, "max_output_tokens": 1 })).await;
    let chat = client.chat("", chat).await.good();
    assert_eq!(told["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn a_picture_is_seen() {
    let client = Client::new().await;
    let picture = base64::engine::general_purpose::STANDARD.encode(bundled::DEMO_PICTURE);
    let input = json!([{ "role": "user", "content": [
        { "type": "input_image", "detail": "auto", "image_url": format!("data:image/png;base64,{picture}") },
        { "type": "input_text", "text": "What do you see?" },
    ] }]);
    let answer = response(&client, "", json!({ "input": input })).await;
    assert!(text(&answer).contains("a red circle on the left"), "{answer}");
}

#[tokio::test]
async fn an_answer_has_the_form_that_was_asked_for() {
    let client = Client::new().await;
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer", "minimum": 3, "maximum": 5 } }, "required": ["n"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "name": "n", "schema": schema, "strict": true });
    for seed in 0..6 {
        let more = json!({ "text": { "format": format }, "temperature": 1, "seed": seed });
        let answer = response(&client, "How many shapes are there?", more).await;
        let value: Value = serde_json::from_str(text(&answer)).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert!((3..=5).contains(&value["n"].as_i64().unwrap()) && value.as_object().unwrap().len() == 1, "{value}");
        assert_eq!(answer["text"]["format"], format);
    }
    let object = json!({ "text": { "format": { "type": "json_object" } }, "max_output_tokens": 100, "temperature": 1, "seed": 1 });
    assert!(text(&response(&client, "Hello!", object).await).trim_start().starts_with('{'));
}

#[tokio::test]
async fn every_field_that_cannot_be_obeyed_is_named() {
    let client = Client::with("[limits]\nimages = 1\nmessages = 3\ntools = 1\nreply_tokens = 100\n").await;
    let item = |item: Value| json!({ "input": [item] });
    let part = |part: Value| json!({ "input": [{ "role": "user", "content": [part] }] });
    let function = |more: Value| {
        let mut function = tool();
        for (key, value) in more.as_object().unwrap() {
            function[key] = value.clone();
        }
        json!({ "tools": [function] })
    };
    let picture = json!({ "type": "input_image", "image_url": "data:image/png;base64,AAEC" });
    for (more, code, param) in [
        (json!({ "temprature": 1 }), "unknown_parameter", "temprature"),
        (json!({ "model": null }), "missing_required_parameter", "model"),
        (json!({ "input": null }), "missing_required_parameter", "input"),
        (json!({ "input": [] }), "invalid_value", "input"),
        (json!({ "input": 5 }), "invalid_type", "input"),
        (json!({ "input": [1] }), "invalid_type", "input[0]"),
        (json!({ "input": [{}, {}, {}, {}] }), "invalid_value", "input"),
        (json!({ "store": true }), "unsupported_parameter", "store"),
        (json!({ "background": true }), "unsupported_parameter", "background"),
        (json!({ "truncation": "auto" }), "unsupported_parameter", "truncation"),
        (json!({ "service_tier": "flex" }), "unsupported_parameter", "service_tier"),
        (json!({ "previous_response_id": "resp_1" }), "unsupported_parameter", "previous_response_id"),
        (json!({ "conversation": "conv_1" }), "unsupported_parameter", "conversation"),
        (json!({ "prompt": { "id": "x" } }), "unsupported_parameter", "prompt"),
        (json!({ "context_management": [] }), "unsupported_parameter", "context_management"),
        (json!({ "moderation": {} }), "unsupported_parameter", "moderation"),
        (json!({ "prompt_cache_options": {} }), "unsupported_parameter", "prompt_cache_options"),
        (json!({ "instructions": 5 }), "invalid_type", "instructions"),
        (json!({ "max_output_tokens": 0 }), "invalid_value", "max_output_tokens"),
        (json!({ "max_output_tokens": 101 }), "invalid_value", "max_output_tokens"),
        (json!({ "max_tokens": 5 }), "unknown_parameter", "max_tokens"),
        (json!({ "stop": "x" }), "unknown_parameter", "stop"),
        (json!({ "n": 2 }), "unknown_parameter", "n"),
        (json!({ "temperature": -1 }), "invalid_value", "temperature"),
        (json!({ "top_logprobs": 2 }), "invalid_value", "top_logprobs"),
        (json!({ "include": ["message.output_text.logprobs"], "top_logprobs": 21 }), "invalid_value", "top_logprobs"),
        (json!({ "include": ["file_search_call.results"] }), "unsupported_parameter", "include[0]"),
        (json!({ "text": { "verbosity": "low" } }), "unsupported_parameter", "text.verbosity"),
        (json!({ "text": { "format": { "type": "grammar" } } }), "invalid_value", "text.format.type"),
        (
            json!({ "text": { "format": { "type": "json_schema", "name": "x" } } }),
            "missing_required_parameter",
            "text.format.schema",
        ),
        (
            json!({ "text": { "format": { "type": "json_schema", "schema": {} } } }),
            "missing_required_parameter",
            "text.format.name",
        ),
        (json!({ "response_format": {} }), "unknown_parameter", "response_format"),
        (json!({ "reasoning": { "effort": "enormous" } }), "invalid_value", "reasoning.effort"),
        (json!({ "reasoning": { "summary": "detailed" } }), "unsupported_parameter", "reasoning.summary"),
        (json!({ "reasoning": { "x": 1 } }), "unknown_parameter", "reasoning.x"),
        (json!({ "stream_options": { "include_obfuscation": false } }), "invalid_value", "stream_options"),
        (
            json!({ "stream": true, "stream_options": { "include_obfuscation": true } }),
            "unsupported_parameter",
            "stream_options.include_obfuscation",
        ),
        (json!({ "tools": [{ "type": "web_search" }] }), "unsupported_parameter", "tools[0].type"),
        (json!({ "tools": [{ "type": "function" }] }), "missing_required_parameter", "tools[0].name"),
        (json!({ "tools": [tool(), tool()] }), "invalid_value", "tools"),
        (function(json!({ "defer_loading": true })), "unsupported_parameter", "tools[0].defer_loading"),
        (function(json!({ "output_schema": {} })), "unsupported_parameter", "tools[0].output_schema"),
        (function(json!({ "parameters": "x" })), "invalid_type", "tools[0].parameters"),
        (json!({ "tool_choice": "required" }), "invalid_value", "tool_choice"),
        (json!({ "tool_choice": "maybe" }), "invalid_value", "tool_choice"),
        (json!({ "tool_choice": { "type": "allowed_tools" } }), "unsupported_parameter", "tool_choice.type"),
        (json!({ "tool_choice": { "type": "function", "name": "g" } }), "invalid_value", "tool_choice.name"),
        (item(json!({ "content": "x" })), "missing_required_parameter", "input[0].role"),
        (item(json!({ "role": "tool", "content": "x" })), "invalid_value", "input[0].role"),
        (item(json!({ "role": "user" })), "missing_required_parameter", "input[0].content"),
        (item(json!({ "role": "user", "content": [] })), "invalid_value", "input[0].content"),
        (item(json!({ "role": "user", "content": "x", "name": "eve" })), "unknown_parameter", "input[0].name"),
        (item(json!({ "type": "item_reference", "id": "x" })), "unsupported_parameter", "input[0].type"),
        (
            item(json!({ "type": "function_call", "name": "f", "arguments": "{}" })),
            "missing_required_parameter",
            "input[0].call_id",
        ),
        (
            item(json!({ "type": "function_call", "call_id": "c", "name": "f", "arguments": "[" })),
            "invalid_value",
            "input[0].arguments",
        ),
        (
            item(json!({ "type": "function_call_output", "call_id": "c", "output": "x" })),
            "invalid_value",
            "input[0].call_id",
        ),
        (
            item(json!({ "type": "reasoning", "summary": [], "encrypted_content": "gAAA" })),
            "unsupported_parameter",
            "input[0].encrypted_content",
        ),
        (part(json!({ "type": "text", "text": "x" })), "unsupported_parameter", "input[0].content[0].type"),
        (part(json!({ "type": "output_text", "text": "x" })), "invalid_value", "input[0].content[0].type"),
        (part(json!({ "type": "input_file", "file_id": "x" })), "unsupported_parameter", "input[0].content[0].type"),
        (
            part(json!({ "type": "input_image", "file_id": "x" })),
            "unsupported_parameter",
            "input[0].content[0].file_id",
        ),
        (part(json!({ "type": "input_image" })), "missing_required_parameter", "input[0].content[0].image_url"),
        (
            part(json!({ "type": "input_image", "image_url": "https://example.org/x.png" })),
            "remote_image",
            "input[0].content[0].image_url",
        ),
        (
            part(json!({ "type": "input_image", "image_url": "data:,", "detail": "low" })),
            "unsupported_parameter",
            "input[0].content[0].detail",
        ),
        (
            json!({ "input": [{ "role": "user", "content": [picture, picture] }] }),
            "invalid_value",
            "input[0].content[1].image_url",
        ),
    ] {
        let asked = body("Hello!", &more);
        let answer = client.post(RESPONSES, asked.clone()).await;
        assert_eq!(answer.error(), (400, code.into(), Some(param.into())), "{asked}: {}", answer.text());
    }
    assert_eq!(client.get("/v1/responses/resp_1").await.error().1, "unknown_url");
    assert_eq!(client.get(RESPONSES).await.error().1, "method_not_allowed");
    let nobody = client.post(RESPONSES, body("x", &json!({ "model": "nobody" }))).await;
    assert_eq!(nobody.error(), (404, "model_not_found".into(), Some("model".into())));
}

#[tokio::test]
async fn what_fails_in_the_middle_has_failed() {
    let client = Client::with("[limits]\nreply_seconds = 1\n").await;
    // Longer than a second, whatever the machine.
    let schema = json!({ "type": "string", "minLength": 100_000 });
    let more = json!({ "stream": true, "temperature": 1, "text": { "format": { "type": "json_schema", "name": "x", "schema": schema } } });
    let asks = (0..8).map(|_| client.post(RESPONSES, body("Tell me a story about a fox.", &more)));
    let mut failed = 0;
    for answer in futures_util::future::join_all(asks).await {
        let events = events(&answer);
        let last = events.last().unwrap();
        if last["type"] == "response.incomplete" {
            // The context was full before the time was.
            continue;
        }
        assert_eq!(
            (&last["type"], &last["response"]["status"]),
            (&json!("response.failed"), &json!("failed")),
            "{last}"
        );
        assert_eq!(last["response"]["error"]["code"], "server_error");
        failed += 1;
    }
    assert!(failed > 0, "all of them had time enough");
}
