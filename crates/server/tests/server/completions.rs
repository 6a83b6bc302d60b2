//! Texts continued.

use serde_json::{Value, json};

use crate::client::Client;

const PROMPT: &str = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

fn ask(more: &Value) -> Value {
    let mut body = json!({ "model": "etude", "prompt": PROMPT, "temperature": 0, "max_tokens": 20 });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

async fn complete(client: &Client, more: Value) -> Value {
    client.post("/v1/completions", ask(&more)).await.good()
}

fn texts(answer: &Value) -> Vec<&str> {
    answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn texts_and_tokens_are_continued() {
    let client = Client::new().await;
    let chat = client.chat("Hello!", json!({ "max_tokens": 20 })).await.good();
    let words = chat["choices"][0]["message"]["content"].as_str().unwrap();
    let answer = complete(&client, json!({})).await;
    assert_eq!((answer["object"].as_str(), texts(&answer)[0]), (Some("text_completion"), words));
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["usage"]["prompt_tokens"], chat["usage"]["prompt_tokens"]);
    let ids = client.post("/tokenize", json!({ "prompt": PROMPT })).await.good()["tokens"].clone();
    assert_eq!(texts(&complete(&client, json!({ "prompt": ids })).await), [words]);
    let both = complete(&client, json!({ "prompt": [PROMPT, "Good"] })).await;
    let alone = complete(&client, json!({ "prompt": "Good" })).await;
    assert_eq!(texts(&both), [words, texts(&alone)[0]]);
    let lists = complete(&client, json!({ "prompt": [ids, ids] })).await;
    assert_eq!(texts(&lists), [words, words]);
    // Two prompts, twice each, in their order.
    let four = complete(&client, json!({ "prompt": [PROMPT, "Good"], "n": 2, "best_of": 2 })).await;
    assert_eq!(texts(&four), [words, words, texts(&alone)[0], texts(&alone)[0]]);
    let number = |answer: &Value, key: &str| answer["usage"][key].as_u64().unwrap();
    assert_eq!(number(&four, "prompt_tokens"), number(&both, "prompt_tokens"));
    assert_eq!(number(&four, "completion_tokens"), 2 * number(&both, "completion_tokens"));
    // Sixteen tokens when nothing is said.
    let mut body = ask(&json!({ "ignore_eos": true }));
    body.as_object_mut().unwrap().remove("max_tokens");
    let answer = client.post("/v1/completions", body).await.good();
    assert_eq!(
        (number(&answer, "completion_tokens"), answer["choices"][0]["finish_reason"].as_str()),
        (16, Some("length"))
    );
}

#[tokio::test]
async fn an_echo_stands_before_with_its_probabilities() {
    let client = Client::new().await;
    let plain = complete(&client, json!({ "prompt": "Good day" })).await;
    let answer = complete(&client, json!({ "prompt": "Good day", "echo": true, "logprobs": 2 })).await;
    let text = texts(&answer)[0];
    assert_eq!(text, format!("Good day{}", texts(&plain)[0]));
    let table = &answer["choices"][0]["logprobs"];
    let list = |key: &str| table[key].as_array().unwrap().clone();
    let tokens: Vec<String> = list("tokens").iter().map(|token| token.as_str().unwrap().to_owned()).collect();
    assert_eq!(tokens.concat(), text);
    let lengths = [tokens.len(), list("token_logprobs").len(), list("top_logprobs").len(), list("text_offset").len()];
    assert!(lengths.iter().all(|length| *length == tokens.len()), "{table}");
    assert!(list("token_logprobs")[0].is_null() && list("top_logprobs")[0].is_null(), "nothing precedes the first");
    let mut offset = 0;
    for (place, token) in tokens.iter().enumerate() {
        assert_eq!(list("text_offset")[place], offset);
        offset += token.chars().count();
        if place > 0 {
            assert!(list("token_logprobs")[place].as_f64().unwrap() <= 0.0);
            assert!((1..=2).contains(&list("top_logprobs")[place].as_object().unwrap().len()), "{table}");
        }
    }
    // Only to score a text.
    let scored = complete(&client, json!({ "prompt": "Good day", "echo": true, "logprobs": 0, "max_tokens": 0 })).await;
    assert_eq!((texts(&scored)[0], scored["usage"]["completion_tokens"].as_u64()), ("Good day", Some(0)));
    let prompt = scored["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().len(), prompt);
    let whole: Vec<Value> = list("token_logprobs")[..prompt].to_vec();
    assert_eq!(scored["choices"][0]["logprobs"]["token_logprobs"], Value::from(whole));
}

#[tokio::test]
async fn a_stream_is_the_same_in_pieces() {
    let client = Client::new().await;
    let more =
        json!({ "prompt": ["Good day", PROMPT], "echo": true, "logprobs": 1, "n": 2, "temperature": 1.0, "seed": 2 });
    let whole = complete(&client, more.clone()).await;
    let mut more = more;
    more["stream"] = json!(true);
    more["stream_options"] = json!({ "include_usage": true });
    let events = client.post("/v1/completions", ask(&more)).await.events();
    for index in 0..4 {
        let own = || {
            events
                .iter()
                .filter_map(move |event| event["choices"].get(0))
                .filter(move |choice| choice["index"] == index)
        };
        let text: String = own().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(text, texts(&whole)[index]);
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let joined: Vec<Value> =
                own().filter_map(|choice| choice["logprobs"][key].as_array()).flatten().cloned().collect();
            assert_eq!(Value::from(joined), whole["choices"][index]["logprobs"][key], "{key}");
        }
        assert_eq!(own().filter(|choice| choice["finish_reason"].is_string()).count(), 1);
    }
    let last = events.last().unwrap();
    assert_eq!(
        (last["choices"].as_array().unwrap().len(), &last["usage"]["total_tokens"]),
        (0, &whole["usage"]["total_tokens"])
    );
}
