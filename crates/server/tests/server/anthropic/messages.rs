//! Messages, whole and as they come, and counting.

use base64::Engine as _;
use consort::bundled;
use serde_json::{Value, json};

use super::{COUNT, MESSAGES, body, essence, events, message, text, together, tools};
use crate::client::Client;

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
