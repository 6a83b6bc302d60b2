//! Calls of tools.

use serde_json::{Value, json};

use crate::client::Client;

fn tools() -> Value {
    json!([
        { "type": "function", "function": {
            "name": "move",
            "description": "Moves a shape.",
            "parameters": {
                "type": "object",
                "properties": {
                    "shape": { "enum": ["circle", "square"] },
                    "steps": { "type": "integer", "minimum": 1, "maximum": 99 },
                    "to": { "type": "object", "properties": { "x": { "$ref": "#/$defs/place" } }, "required": ["x"], "additionalProperties": false },
                    "why": { "type": "string", "maxLength": 5 },
                },
                "required": ["shape", "steps", "to"],
                "$defs": { "place": { "type": "integer", "minimum": 0, "maximum": 9 } },
            },
        } },
        { "type": "function", "function": { "name": "stop" } },
    ])
}

/// A call's name and arguments, which must be valid under the schema above.
fn checked(call: &Value) -> (String, Value) {
    assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
    assert_eq!(call["type"], "function");
    let name = call["function"]["name"].as_str().unwrap().to_owned();
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap())
        .unwrap_or_else(|error| panic!("{error}: {call}"));
    let given = arguments.as_object().unwrap();
    if name == "move" {
        assert!(["circle", "square"].contains(&given["shape"].as_str().unwrap()), "{call}");
        assert!((1..=99).contains(&given["steps"].as_i64().unwrap()), "{call}");
        assert!((0..=9).contains(&given["to"]["x"].as_i64().unwrap()), "{call}");
        assert!(given.keys().all(|key| ["shape", "steps", "to", "why"].contains(&key.as_str())), "{call}");
    } else {
        assert_eq!((name.as_str(), given.len()), ("stop", 0));
    }
    (name, arguments)
}

#[tokio::test]
async fn a_call_that_must_be_is_and_is_valid() {
    let client = Client::new().await;
    for seed in 0..6 {
        let named = json!({ "type": "function", "function": { "name": "move" } });
        let more = json!({ "tools": tools(), "tool_choice": named, "parallel_tool_calls": false, "temperature": 1.0,
            "seed": seed, "max_tokens": 300, "logit_bias": {} });
        let answer = client.chat("Move the circle.", more).await.good();
        let choice = &answer["choices"][0];
        if choice["finish_reason"] == "length" {
            // A text without bounds (`why`) may go on for ever.
            continue;
        }
        let calls = choice["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("{answer}"));
        assert_eq!((calls.len(), choice["finish_reason"].as_str()), (1, Some("tool_calls")));
        assert!(choice["message"]["content"].is_null(), "{answer}");
        assert_eq!(checked(&calls[0]).0, "move");
    }
}

#[tokio::test]
async fn calls_stream_as_they_are_put_together() {
    let client = Client::new().await;
    let only = json!([tools()[1].clone()]);
    let more = json!({ "tools": only, "tool_choice": "required", "parallel_tool_calls": false, "stream": true });
    let events = client.chat("Stop!", more).await.events();
    let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0], &json!({ "role": "assistant", "content": "" }));
    let call = &deltas[1]["tool_calls"][0];
    assert_eq!(
        (call["index"].as_u64(), call["type"].as_str(), call["function"]["name"].as_str()),
        (Some(0), Some("function"), Some("stop"))
    );
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    let arguments: String =
        deltas[2..].iter().filter_map(|delta| delta["tool_calls"][0]["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{}");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn several_calls_have_their_places() {
    let client = Client::new().await;
    let only = json!([tools()[1].clone()]);
    // Up to the most tokens: the model need not end of itself.
    let mut seen = 0;
    for seed in 0..12 {
        let more =
            json!({ "tools": only, "tool_choice": "required", "temperature": 1.5, "seed": seed, "max_tokens": 120 });
        let answer = client.chat("Stop!", more).await.good();
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        calls.iter().for_each(|call| assert_eq!(checked(call).0, "stop"));
        seen = seen.max(calls.len());
    }
    assert!(seen >= 1);
}

#[tokio::test]
async fn who_must_not_call_does_not() {
    let client = Client::new().await;
    let without = client.chat("Hello!", json!({})).await.good();
    let none = client.chat("Hello!", json!({ "tools": tools(), "tool_choice": "none" })).await.good();
    assert_eq!(none["choices"][0]["message"], without["choices"][0]["message"]);
    assert_eq!(none["usage"]["prompt_tokens"], without["usage"]["prompt_tokens"], "it is shown no tools");
    let auto = client.chat("Hello!", json!({ "tools": tools() })).await.good();
    assert!(auto["usage"]["prompt_tokens"].as_u64() > without["usage"]["prompt_tokens"].as_u64(), "it is shown tools");
}

#[tokio::test]
async fn strict_tools_leave_the_choice_and_bind_the_call() {
    let client = Client::new().await;
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    let answer = client.chat("Hello!", json!({ "tools": strict, "max_tokens": 60 })).await.good();
    let message = &answer["choices"][0]["message"];
    match message["tool_calls"].as_array() {
        Some(calls) => calls.iter().for_each(|call| drop(checked(call))),
        None => assert!(!message["content"].as_str().unwrap().is_empty(), "{answer}"),
    }
}

#[tokio::test]
async fn an_answer_in_json_or_a_call() {
    let client = Client::new().await;
    let schema = json!({ "type": "object", "properties": { "n": { "enum": [1, 2] } }, "required": ["n"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema } });
    for seed in 0..6 {
        let more = json!({ "tools": [tools()[1].clone()], "response_format": format, "temperature": 1.0, "seed": seed, "max_tokens": 100 });
        let answer = client.chat("Hello!", more).await.good();
        let message = &answer["choices"][0]["message"];
        match message["tool_calls"].as_array() {
            Some(calls) => calls.iter().for_each(|call| drop(checked(call))),
            None => {
                let value: Value = serde_json::from_str(message["content"].as_str().unwrap())
                    .unwrap_or_else(|error| panic!("{error}: {answer}"));
                assert!([json!({ "n": 1 }), json!({ "n": 2 })].contains(&value), "{answer}");
            }
        }
    }
}
