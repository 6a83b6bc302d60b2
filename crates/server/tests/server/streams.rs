//! Replies as they come, to the byte.

use serde_json::{Value, json};

use crate::client::Client;

#[tokio::test]
async fn a_stream_is_the_api_s_to_the_byte() {
    let client = Client::new().await;
    let whole = client.chat("Hello!", json!({})).await.good();
    let answer = client.chat("Hello!", json!({ "stream": true, "stream_options": { "include_usage": true } })).await;
    assert_eq!(
        (answer.headers["cache-control"].as_bytes(), answer.headers.get("content-length")),
        (&b"no-cache"[..], None)
    );
    let events = answer.events();
    let first = &events[0];
    let head = format!(
        "\"id\":{},\"object\":\"chat.completion.chunk\",\"created\":{},\"model\":\"etude\",\"system_fingerprint\":{}",
        first["id"], first["created"], first["system_fingerprint"]
    );
    let chunk = |delta: &str, reason: &str| {
        format!(
            "data: {{{head},\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{reason}}}],\"usage\":null}}\n\n"
        )
    };
    let mut expected = chunk("{\"role\":\"assistant\",\"content\":\"\"}", "null");
    let mut text = String::new();
    for event in &events[1..events.len() - 2] {
        let piece = &event["choices"][0]["delta"]["content"];
        text.push_str(piece.as_str().unwrap());
        expected += &chunk(&format!("{{\"content\":{piece}}}"), "null");
    }
    expected += &chunk("{}", "\"stop\"");
    let usage = &events.last().unwrap()["usage"];
    expected += &format!("data: {{{head},\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n");
    assert_eq!(answer.text(), expected);
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert!(events.len() > 6, "it came in pieces");
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage[key], whole["usage"][key]);
    }
    // Without the option no event has a usage.
    let plain = client.chat("Hello!", json!({ "stream": true })).await;
    assert!(!plain.text().contains("usage"));
}

#[tokio::test]
async fn reasoning_and_log_probabilities_stream_too() {
    let client = Client::new().await;
    let more = json!({ "chat_template_kwargs": { "enable_thinking": true }, "logprobs": true, "top_logprobs": 1 });
    let whole = client.chat("What colour is the sky?", more.clone()).await.good();
    let mut more = more;
    more["stream"] = json!(true);
    let events = client.chat("What colour is the sky?", more).await.events();
    let joined = |key: &str| -> String {
        events.iter().filter_map(|event| event["choices"][0]["delta"][key].as_str()).collect()
    };
    let message = &whole["choices"][0]["message"];
    assert_eq!(joined("content"), message["content"].as_str().unwrap());
    assert_eq!(joined("reasoning_content"), message["reasoning_content"].as_str().unwrap());
    let logprobs: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(Value::from(logprobs), whole["choices"][0]["logprobs"]["content"]);
}

#[tokio::test]
async fn several_replies_stream_side_by_side() {
    let client = Client::new().await;
    let more = json!({ "n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 8 });
    let whole = client.chat("Tell me a story about a fox.", more.clone()).await.good();
    let mut more = more;
    more["stream"] = json!(true);
    let events = client.chat("Tell me a story about a fox.", more).await.events();
    for index in 0..3 {
        let own: Vec<&Value> =
            events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index).collect();
        assert_eq!(own[0]["delta"], json!({ "role": "assistant", "content": "" }));
        let text: String = own[1..].iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, whole["choices"][index]["message"]["content"].as_str().unwrap());
        assert_eq!(own.iter().filter(|choice| choice["finish_reason"].is_string()).count(), 1);
        assert_eq!(own.last().unwrap()["finish_reason"], whole["choices"][index]["finish_reason"]);
    }
}

#[tokio::test]
async fn an_error_in_the_middle_ends_the_stream_with_an_event() {
    let client = Client::with("[limits]\nreply_seconds = 1\n").await;
    // Longer than a second, whatever the machine.
    let more = json!({ "stream": true, "ignore_eos": true, "n": 8, "temperature": 1.0 });
    let answer = client.chat("Tell me a story about a fox.", more).await;
    let text = answer.text();
    let last = text.split_terminator("\n\n").last().unwrap();
    let last: Value =
        serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap_or_else(|error| panic!("{error}: {last}"));
    assert_eq!(last["error"]["type"], "timeout_error", "{last}");
    assert!(!text.contains("[DONE]"));
}
