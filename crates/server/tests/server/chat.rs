//! Whole replies.

use base64::Engine as _;
use consort::bundled;
use serde_json::{Value, json};

use crate::client::{Client, chat};

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn an_answer_has_the_shape_of_the_api() {
    let client = Client::new().await;
    let answer = client.chat("Hello!", json!({})).await;
    assert!(answer.headers["x-request-id"].to_str().unwrap().starts_with("req_"));
    assert_eq!(answer.headers["content-type"], "application/json");
    let answer = answer.good();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&answer), ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((answer["object"].as_str(), answer["model"].as_str()), (Some("chat.completion"), Some("etude")));
    let choice = &answer["choices"][0];
    assert_eq!(keys(choice), ["index", "message", "logprobs", "finish_reason"]);
    assert_eq!(keys(&choice["message"]), ["role", "content", "refusal"]);
    assert_eq!((choice["finish_reason"].as_str(), choice["logprobs"].is_null()), (Some("stop"), true));
    assert!(content(&answer).starts_with("Hello"), "{answer}");
    let usage = &answer["usage"];
    let number = |key: &str| usage[key].as_u64().unwrap();
    assert!(number("prompt_tokens") > 3 && number("completion_tokens") > 3);
    assert_eq!(number("total_tokens"), number("prompt_tokens") + number("completion_tokens"));
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 0);
    // The same once more comes from the prefix cache, and says so.
    let again = client.chat("Hello!", json!({})).await.good();
    assert_eq!(content(&again), content(&answer));
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0, "{again}");
}

#[tokio::test]
async fn a_picture_is_seen() {
    let client = Client::new().await;
    let picture = base64::engine::general_purpose::STANDARD.encode(bundled::DEMO_PICTURE);
    let messages = json!([{ "role": "user", "content": [
        { "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{picture}"), "detail": "auto" } },
        { "type": "text", "text": "What do you see?" },
    ] }]);
    let answer = client.chat("", json!({ "messages": messages })).await.good();
    assert_eq!(
        content(&answer),
        "There is a yellow star at the top, a red circle on the left and a blue square on the right."
    );
}

#[tokio::test]
async fn reasoning_is_told_apart_and_counted() {
    let client = Client::new().await;
    let thinking = json!({ "chat_template_kwargs": { "enable_thinking": true } });
    let answer = client.chat("What colour is the sky?", thinking).await.good();
    let reasoning = answer["choices"][0]["message"]["reasoning_content"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert!(!reasoning.contains("think>") && !content(&answer).contains("think>"), "{answer}");
    let tokens = answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert!(tokens > 0 && tokens < answer["usage"]["completion_tokens"].as_u64().unwrap(), "{answer}");
    // The other way of saying it.
    let mut body = chat("What colour is the sky?", &json!({ "reasoning_effort": "high" }));
    body.as_object_mut().unwrap().remove("chat_template_kwargs");
    let same = client.post("/v1/chat/completions", body.clone()).await.good();
    assert_eq!(same["choices"][0]["message"], answer["choices"][0]["message"]);
    body["reasoning_effort"] = json!("none");
    let none = client.post("/v1/chat/completions", body).await.good();
    assert!(none["choices"][0]["message"].get("reasoning_content").is_none(), "{none}");
}

#[tokio::test]
async fn what_ends_a_reply_is_obeyed() {
    let client = Client::new().await;
    let whole = client.chat("Tell me a story about a fox.", json!({})).await.good();
    let words = content(&whole).to_owned();
    let cut = client.chat("Tell me a story about a fox.", json!({ "max_tokens": 3 })).await.good();
    assert_eq!(
        (cut["choices"][0]["finish_reason"].as_str(), cut["usage"]["completion_tokens"].as_u64()),
        (Some("length"), Some(3))
    );
    assert!(words.starts_with(content(&cut)) && content(&cut).len() < words.len(), "{cut}");
    let same = client.chat("Tell me a story about a fox.", json!({ "max_completion_tokens": 3 })).await.good();
    assert_eq!(content(&same), content(&cut));
    let stopped = client.chat("Tell me a story about a fox.", json!({ "stop": "fox" })).await.good();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(content(&stopped), words.split("fox").next().unwrap());
    let several =
        client.chat("Tell me a story about a fox.", json!({ "stop": ["nothing like this", "fox"] })).await.good();
    assert_eq!(content(&several), content(&stopped));
    let long = client.chat("Hello!", json!({ "max_tokens": 40, "ignore_eos": true })).await.good();
    assert_eq!(long["usage"]["completion_tokens"], 40);
}

#[tokio::test]
async fn sampling_is_obeyed() {
    let client = Client::new().await;
    let hot = |seed: u64| json!({ "temperature": 2.0, "seed": seed, "max_tokens": 12 });
    let one = client.chat("Hello!", hot(7)).await.good();
    assert_eq!(content(&client.chat("Hello!", hot(7)).await.good()), content(&one));
    let others: Vec<_> = futures_util::future::join_all((8..16).map(|seed| client.chat("Hello!", hot(seed)))).await;
    assert!(others.iter().any(|other| content(&other.good()) != content(&one)), "no seed makes a difference");
    // What is banned is not said, and what is wanted is.
    let greedy = client.chat("Hello!", json!({ "logprobs": true, "top_logprobs": 2 })).await.good();
    let first = &greedy["choices"][0]["logprobs"]["content"][0];
    let spelled = first["token"].as_str().unwrap();
    let ids = client.post("/tokenize", json!({ "prompt": spelled })).await.good();
    let [id] = ids["tokens"].as_array().unwrap().as_slice() else { panic!("{ids}") };
    let banned = client.chat("Hello!", json!({ "logit_bias": { id.to_string(): -100 }, "max_tokens": 1 })).await.good();
    assert_eq!(content(&banned), first["top_logprobs"][1]["token"].as_str().unwrap());
    // A penalty so large forbids what was said before.
    let wanted =
        client.chat("Hello!", json!({ "frequency_penalty": 2.0, "presence_penalty": -2.0, "top_p": 0.5 })).await;
    assert_eq!(wanted.status, 200, "{}", wanted.text());
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_tokens() {
    let client = Client::new().await;
    let answer = client.chat("Hello!", json!({ "logprobs": true, "top_logprobs": 3 })).await.good();
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    // The token that ends the reply is none of its text.
    assert_eq!(tokens.len() as u64 + 1, answer["usage"]["completion_tokens"].as_u64().unwrap());
    let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text, content(&answer));
    for token in tokens {
        let bytes: Vec<u8> =
            token["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8).collect();
        assert_eq!(bytes, token["token"].as_str().unwrap().as_bytes());
        let top: Vec<f64> =
            token["top_logprobs"].as_array().unwrap().iter().map(|top| top["logprob"].as_f64().unwrap()).collect();
        assert_eq!(top.len(), 3);
        assert!(top.windows(2).all(|pair| pair[0] >= pair[1]) && top[0] <= 0.0, "{token}");
        assert_eq!(token["logprob"], token["top_logprobs"][0]["logprob"], "greedy takes the most probable");
    }
    let none = client.chat("Hello!", json!({ "logprobs": true })).await.good();
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn several_choices_differ_by_their_seeds() {
    let client = Client::new().await;
    let many = json!({ "n": 4, "temperature": 1.5, "seed": 3, "max_tokens": 8, "logprobs": true });
    let answer = client.chat("Tell me a story about a fox.", many).await.good();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for (index, choice) in choices.iter().enumerate() {
        let alone = json!({ "temperature": 1.5, "seed": 3 + index, "max_tokens": 8 });
        let alone = client.chat("Tell me a story about a fox.", alone).await.good();
        assert_eq!(choice["message"], alone["choices"][0]["message"]);
    }
    // The prompt counts once.
    let one = client.chat("Tell me a story about a fox.", json!({ "max_tokens": 1 })).await.good();
    assert_eq!(answer["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn json_is_written_where_it_is_asked_for() {
    let client = Client::new().await;
    let schema = json!({
        "type": "object",
        "properties": { "colour": { "enum": ["red", "green"] }, "count": { "type": "integer", "minimum": 0, "maximum": 9 } },
        "required": ["colour", "count"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "shape", "strict": true, "schema": schema } });
    for seed in 0..10 {
        let ask = json!({ "response_format": format, "temperature": 1.0, "seed": seed });
        let answer = client.chat("What colour is the circle?", ask).await.good();
        let value: Value = serde_json::from_str(content(&answer)).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert!(["red", "green"].contains(&value["colour"].as_str().unwrap()), "{value}");
        assert!(value["count"].as_u64().unwrap() <= 9 && value.as_object().unwrap().len() == 2, "{value}");
    }
    // With reasoning before it, the form begins after that.
    let thinking =
        json!({ "response_format": format, "chat_template_kwargs": { "enable_thinking": true }, "max_tokens": 400 });
    let answer = client.chat("What colour is the sky?", thinking).await.good();
    if answer["choices"][0]["finish_reason"] == "stop" {
        serde_json::from_str::<Value>(content(&answer)).unwrap();
    }
    let object =
        json!({ "response_format": { "type": "json_object" }, "max_tokens": 200, "temperature": 1.0, "seed": 1 });
    let answer = client.chat("Hello!", object).await.good();
    assert!(content(&answer).trim_start().starts_with('{'), "{answer}");
    let text = client.chat("Hello!", json!({ "response_format": { "type": "text" } })).await.good();
    assert!(content(&text).starts_with("Hello"));
}

#[tokio::test]
async fn a_conversation_with_everything_in_it_is_understood() {
    let client = Client::new().await;
    let messages = json!([
        { "role": "developer", "content": "Be brief." },
        { "role": "system", "content": [{ "type": "text", "text": "You are Ada." }] },
        { "role": "user", "content": [{ "type": "text", "text": "What is " }, { "type": "text", "text": "the time?" }] },
        { "role": "assistant", "content": null, "reasoning_content": "I look.", "tool_calls": [
            { "id": "call_1", "type": "function", "function": { "name": "clock", "arguments": "{\"zone\": \"utc\"}" } },
            { "id": "call_2", "type": "function", "function": { "name": "clock", "arguments": "" } },
        ] },
        { "role": "tool", "tool_call_id": "call_1", "content": "noon", "name": "clock" },
        { "role": "tool", "tool_call_id": "call_2", "content": [{ "type": "text", "text": "noon" }] },
        { "role": "assistant", "content": "It is noon.", "refusal": null },
        { "role": "user", "content": "Hello!" },
    ]);
    let harmless =
        json!({ "messages": messages, "user": "u", "metadata": { "a": "b" }, "store": false, "top_p": null });
    let answer = client.chat("", harmless).await.good();
    assert!(!content(&answer).is_empty());
}
