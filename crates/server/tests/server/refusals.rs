//! What is refused, by the name of the field.

use serde_json::{Value, json};

use crate::client::{Client, chat};

const CHAT: &str = "/v1/chat/completions";

/// Sends a body and expects `(status, code, param)`.
async fn refused(client: &Client, path: &str, body: &Value, code: &str, param: &str) {
    let answer = client.post(path, body.clone()).await;
    let wanted = (400, code.to_owned(), (!param.is_empty()).then(|| param.to_owned()));
    assert_eq!(answer.error(), wanted, "{body}: {}", answer.text());
}

#[tokio::test]
async fn every_field_of_a_chat_that_cannot_be_obeyed_is_named() {
    let client = Client::with("[limits]\nchoices = 4\nimages = 1\nmessages = 3\ntools = 2\nreply_tokens = 100\n").await;
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    let schema = |schema: Value| json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    for (more, code, param) in [
        (json!({ "temprature": 1 }), "unknown_parameter", "temprature"),
        (json!({ "model": null }), "missing_required_parameter", "model"),
        (json!({ "model": 5 }), "invalid_type", "model"),
        (json!({ "messages": null }), "missing_required_parameter", "messages"),
        (json!({ "messages": [] }), "invalid_value", "messages"),
        (json!({ "messages": "Hello" }), "invalid_type", "messages"),
        (json!({ "messages": [1] }), "invalid_type", "messages[0]"),
        (json!({ "messages": [{}, {}, {}, {}] }), "invalid_value", "messages"),
        (json!({ "temperature": "hot" }), "invalid_type", "temperature"),
        (json!({ "temperature": -1 }), "invalid_value", "temperature"),
        (json!({ "top_p": 0 }), "invalid_value", "top_p"),
        (json!({ "top_p": 1.5 }), "invalid_value", "top_p"),
        (json!({ "min_p": 2 }), "invalid_value", "min_p"),
        (json!({ "repetition_penalty": 0 }), "invalid_value", "repetition_penalty"),
        (json!({ "n": 0 }), "invalid_value", "n"),
        (json!({ "n": 5 }), "invalid_value", "n"),
        (json!({ "n": -1 }), "invalid_type", "n"),
        (json!({ "seed": 1.5 }), "invalid_type", "seed"),
        (json!({ "max_tokens": 0 }), "invalid_value", "max_completion_tokens"),
        (json!({ "max_tokens": 3, "max_completion_tokens": 4 }), "invalid_value", "max_tokens"),
        (json!({ "max_tokens": 101 }), "invalid_value", "max_tokens"),
        (json!({ "stop": 7 }), "invalid_type", "stop"),
        (json!({ "stop": [""] }), "invalid_value", "stop"),
        (json!({ "stop": vec!["x"; 65] }), "invalid_value", "stop"),
        (json!({ "logit_bias": { "x": 1 } }), "invalid_value", "logit_bias"),
        (json!({ "logit_bias": { "1": 101 } }), "invalid_value", "logit_bias"),
        (json!({ "logit_bias": { "99999999": 1 } }), "invalid_value", "logit_bias"),
        (json!({ "top_logprobs": 3 }), "invalid_value", "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "invalid_value", "top_logprobs"),
        (json!({ "logprobs": 3 }), "invalid_type", "logprobs"),
        (json!({ "stream": "yes" }), "invalid_type", "stream"),
        (json!({ "stream_options": { "include_usage": true } }), "invalid_value", "stream_options"),
        (json!({ "stream": true, "stream_options": { "x": 1 } }), "unknown_parameter", "stream_options.x"),
        (
            json!({ "stream": true, "stream_options": { "include_obfuscation": true } }),
            "unsupported_parameter",
            "stream_options.include_obfuscation",
        ),
        (json!({ "functions": [] }), "unsupported_parameter", "functions"),
        (json!({ "function_call": "auto" }), "unsupported_parameter", "function_call"),
        (json!({ "audio": {} }), "unsupported_parameter", "audio"),
        (json!({ "modalities": ["text", "audio"] }), "unsupported_parameter", "modalities"),
        (json!({ "prediction": {} }), "unsupported_parameter", "prediction"),
        (json!({ "web_search_options": {} }), "unsupported_parameter", "web_search_options"),
        (json!({ "store": true }), "unsupported_parameter", "store"),
        (json!({ "service_tier": "flex" }), "unsupported_parameter", "service_tier"),
        (json!({ "verbosity": "low" }), "unsupported_parameter", "verbosity"),
        (json!({ "reasoning_effort": "enormous" }), "invalid_value", "reasoning_effort"),
        (
            json!({ "chat_template_kwargs": { "enable_thinking": false, "x": 1 } }),
            "unknown_parameter",
            "chat_template_kwargs.x",
        ),
        (json!({ "priority": 3 }), "invalid_type", "priority"),
        (json!({ "tools": {} }), "invalid_type", "tools"),
        (json!({ "tools": [tool, tool, tool] }), "invalid_value", "tools"),
        (json!({ "tools": [tool, tool] }), "invalid_value", "tools[1].function.name"),
        (json!({ "tools": [{ "type": "custom" }] }), "unsupported_parameter", "tools[0].type"),
        (json!({ "tools": [{ "type": "function" }] }), "missing_required_parameter", "tools[0].function"),
        (
            json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }),
            "invalid_value",
            "tools[0].function.name",
        ),
        (
            json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": 1 } }] }),
            "invalid_type",
            "tools[0].function.parameters",
        ),
        (
            json!({ "tools": [{ "type": "function", "function": { "name": "f", "x": 1 } }] }),
            "unknown_parameter",
            "tools[0].function.x",
        ),
        (json!({ "tool_choice": "required" }), "invalid_value", "tool_choice"),
        (json!({ "tools": [tool], "tool_choice": "maybe" }), "invalid_value", "tool_choice"),
        (
            json!({ "tools": [tool], "tool_choice": { "type": "allowed_tools" } }),
            "unsupported_parameter",
            "tool_choice.type",
        ),
        (
            json!({ "tools": [tool], "tool_choice": { "type": "function", "function": { "name": "g" } } }),
            "invalid_value",
            "tool_choice.function.name",
        ),
        (json!({ "response_format": "json" }), "invalid_type", "response_format"),
        (json!({ "response_format": { "type": "grammar" } }), "invalid_value", "response_format.type"),
        (
            json!({ "response_format": { "type": "json_schema" } }),
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": {} } } }),
            "missing_required_parameter",
            "response_format.json_schema.name",
        ),
        (json!({ "response_format": schema(json!({ "type": "nonsense" })) }), "invalid_grammar", ""),
        (json!({ "response_format": schema(json!(5)) }), "invalid_grammar", ""),
    ] {
        refused(&client, CHAT, &chat("Hello!", &more), code, param).await;
    }
}

#[tokio::test]
async fn every_part_of_a_message_that_cannot_be_read_is_named() {
    let client = Client::with("[limits]\nimages = 1\nimage_bytes = 1000\n").await;
    let part = |part: Value| json!({ "role": "user", "content": [part] });
    let image = |url: &str| json!({ "type": "image_url", "image_url": { "url": url } });
    let picture = image("data:image/png;base64,AAEC");
    for (message, code, param) in [
        (json!({ "content": "x" }), "missing_required_parameter", "messages[0].role"),
        (json!({ "role": "robot", "content": "x" }), "invalid_value", "messages[0].role"),
        (json!({ "role": "function", "content": "x" }), "unsupported_parameter", "messages[0].role"),
        (json!({ "role": "user" }), "missing_required_parameter", "messages[0].content"),
        (json!({ "role": "user", "content": 5 }), "invalid_type", "messages[0].content"),
        (json!({ "role": "user", "content": [] }), "invalid_value", "messages[0].content"),
        (json!({ "role": "user", "content": "x", "name": "eve" }), "unsupported_parameter", "messages[0].name"),
        (json!({ "role": "user", "content": "x", "tool_calls": [] }), "unknown_parameter", "messages[0].tool_calls"),
        (json!({ "role": "assistant" }), "missing_required_parameter", "messages[0].content"),
        (
            json!({ "role": "assistant", "content": "x", "audio": { "id": "a" } }),
            "unsupported_parameter",
            "messages[0].audio",
        ),
        (
            json!({ "role": "assistant", "tool_calls": [{ "id": "a" }] }),
            "missing_required_parameter",
            "messages[0].tool_calls[0].function",
        ),
        (
            json!({ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": "[1]" } }] }),
            "invalid_value",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (json!({ "role": "tool", "content": "x" }), "missing_required_parameter", "messages[0].tool_call_id"),
        (part(json!("x")), "invalid_type", "messages[0].content[0]"),
        (part(json!({ "type": "text" })), "missing_required_parameter", "messages[0].content[0].text"),
        (
            part(json!({ "type": "input_audio", "input_audio": {} })),
            "unsupported_parameter",
            "messages[0].content[0].type",
        ),
        (part(json!({ "type": "image_url" })), "missing_required_parameter", "messages[0].content[0].image_url"),
        (
            part(json!({ "type": "image_url", "image_url": { "url": "data:image/png;base64,AAEC", "detail": "low" } })),
            "unsupported_parameter",
            "messages[0].content[0].image_url.detail",
        ),
        (part(image("https://example.org/cat.png")), "remote_image", "messages[0].content[0].image_url.url"),
        (part(image("data:image/png;base64,!")), "invalid_image", "messages[0].content[0].image_url.url"),
        (
            part(image(&format!("data:image/png;base64,{}", "A".repeat(4000)))),
            "invalid_image",
            "messages[0].content[0].image_url.url",
        ),
        (part(picture.clone()), "invalid_image", ""),
        (json!({ "role": "user", "content": [picture, picture] }), "invalid_value", "messages[0].content[1].type"),
        (json!({ "role": "system", "content": [picture] }), "unsupported_parameter", "messages[0].content[0].type"),
        (json!({ "role": "assistant", "content": "x" }), "invalid_conversation", ""),
    ] {
        refused(&client, CHAT, &chat("", &json!({ "messages": [message] })), code, param).await;
    }
    let late = json!([{ "role": "user", "content": "x" }, { "role": "system", "content": "late" }]);
    let answer = client.post(CHAT, chat("", &json!({ "messages": late }))).await;
    assert_eq!(answer.error().1, "invalid_conversation", "{}", answer.text());
    // The remote picture's refusal says how.
    let answer = client.post(CHAT, chat("", &json!({ "messages": [part(image("http://10.0.0.1/x"))] }))).await;
    assert!(answer.text().contains("data:image/png;base64,"), "{}", answer.text());
}

#[tokio::test]
async fn what_is_too_long_and_who_is_not_there() {
    let client = Client::new().await;
    let answer = client.chat(&"Hello! ".repeat(9000), json!({})).await;
    let (status, code, _) = answer.error();
    assert_eq!((status, code.as_str()), (400, "context_length_exceeded"), "{}", answer.text());
    let answer = client.chat("Hello!", json!({ "model": "nobody" })).await;
    assert_eq!(answer.error(), (404, "model_not_found".into(), Some("model".into())));
}

#[tokio::test]
async fn every_field_of_a_completion_that_cannot_be_obeyed_is_named() {
    let client = Client::with("[limits]\nchoices = 4\n").await;
    for (more, code, param) in [
        (json!({ "prompt": null }), "missing_required_parameter", "prompt"),
        (json!({ "prompt": "" }), "invalid_value", "prompt"),
        (json!({ "prompt": [] }), "invalid_value", "prompt"),
        (json!({ "prompt": [[]] }), "invalid_value", "prompt"),
        (json!({ "prompt": [1, "x"] }), "invalid_value", "prompt"),
        (json!({ "prompt": [-1] }), "invalid_value", "prompt"),
        (json!({ "prompt": 5 }), "invalid_value", "prompt"),
        (json!({ "prompt": [99999999] }), "invalid_value", "prompt"),
        (json!({ "prompt": ["a", "b", "c"], "n": 2 }), "invalid_value", "prompt"),
        (json!({ "suffix": "x" }), "unsupported_parameter", "suffix"),
        (json!({ "best_of": 2 }), "unsupported_parameter", "best_of"),
        (json!({ "max_tokens": 0 }), "invalid_value", "max_tokens"),
        (json!({ "logprobs": 21 }), "invalid_value", "logprobs"),
        (json!({ "echo": 1 }), "invalid_type", "echo"),
        (json!({ "messages": [] }), "unknown_parameter", "messages"),
    ] {
        let mut body = json!({ "model": "etude", "prompt": "Hello" });
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        refused(&client, "/v1/completions", &body, code, param).await;
    }
}

#[tokio::test]
async fn the_other_addresses_name_their_fields_too() {
    let client = Client::with("[limits]\ninputs = 2\n").await;
    for (path, body, code, param) in [
        ("/v1/embeddings", json!({ "model": "etude" }), "missing_required_parameter", "input"),
        ("/v1/embeddings", json!({ "model": "etude", "input": ["a", "b", "c"] }), "invalid_value", "input"),
        (
            "/v1/embeddings",
            json!({ "model": "etude", "input": "a", "dimensions": 3 }),
            "unsupported_parameter",
            "dimensions",
        ),
        (
            "/v1/embeddings",
            json!({ "model": "etude", "input": "a", "encoding_format": "hex" }),
            "invalid_value",
            "encoding_format",
        ),
        ("/v1/embeddings", json!({ "model": "etude", "input": "a", "x": 1 }), "unknown_parameter", "x"),
        ("/tokenize", json!({}), "missing_required_parameter", "messages"),
        ("/tokenize", json!({ "prompt": "a", "x": 1 }), "unknown_parameter", "x"),
        ("/detokenize", json!({}), "missing_required_parameter", "tokens"),
        ("/detokenize", json!({ "tokens": "a" }), "invalid_type", "tokens"),
        ("/detokenize", json!({ "tokens": [99999999] }), "invalid_value", "tokens"),
        ("/v1/load_lora_adapter", json!({ "lora_name": "x" }), "missing_required_parameter", "lora_path"),
        ("/v1/load_lora_adapter", json!({ "lora_name": "../x", "lora_path": "y" }), "invalid_value", "lora_name"),
        ("/v1/load_lora_adapter", json!({ "lora_name": "etude", "lora_path": "y" }), "invalid_value", "lora_name"),
        (
            "/v1/unload_lora_adapter",
            json!({ "lora_name": "x", "lora_int_id": 1 }),
            "unsupported_parameter",
            "lora_int_id",
        ),
    ] {
        refused(&client, path, &body, code, param).await;
    }
    let nowhere = client.get("/v1/nothing").await;
    assert_eq!(nowhere.error(), (404, "unknown_url".into(), None));
    let wrong = client.get("/v1/chat/completions").await;
    assert_eq!(wrong.error(), (405, "method_not_allowed".into(), None));
}
