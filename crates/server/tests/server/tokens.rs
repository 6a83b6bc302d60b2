//! Models, and text to tokens and back.

use serde_json::json;

use crate::client::Client;

#[tokio::test]
async fn everybody_is_listed_with_the_model_first() {
    let client = Client::with("[[persona]]\nname = \"ada\"\n[[persona]]\nname = \"pirate\"\n").await;
    let list = client.get("/v1/models").await.good();
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!((list["object"].as_str(), names), (Some("list"), vec!["etude", "ada", "pirate", "butler"]));
    let first = &list["data"][0];
    assert_eq!((first["object"].as_str(), first["owned_by"].as_str()), (Some("model"), Some("consort")));
    assert!(first["created"].as_u64().unwrap() > 1_700_000_000 && first["parent"].is_null());
    let ada = client.get("/v1/models/ada").await.good();
    assert_eq!((ada["id"].as_str(), ada["parent"].as_str()), (Some("ada"), Some("etude")));
    assert_eq!(client.get("/v1/models/nobody").await.error().1, "model_not_found");
    assert_eq!(client.get("/v1/models/%ff").await.error().0, 400);
    let named = Client::with("[model]\nname = \"Qwen 3.5\"\n").await;
    assert_eq!(named.get("/v1/models/Qwen%203.5").await.good()["id"], "Qwen 3.5");
}

#[tokio::test]
async fn text_becomes_tokens_and_text_again() {
    let client = Client::new().await;
    let text = "<|im_start|>user\nWhat colour is the circle?<|im_end|>\n";
    let answer =
        client.post("/tokenize", json!({ "model": "etude", "prompt": text, "return_token_strs": true })).await.good();
    let count = answer["count"].as_u64().unwrap() as usize;
    assert_eq!(
        (answer["tokens"].as_array().unwrap().len(), answer["token_strs"].as_array().unwrap().len()),
        (count, count)
    );
    assert_eq!(answer["token_strs"][0], "<|im_start|>");
    assert!(answer["max_model_len"].as_u64().unwrap() > 100);
    let back = client.post("/detokenize", json!({ "tokens": answer["tokens"] })).await.good();
    assert_eq!(back, json!({ "prompt": text }));
    let plain = client.post("/tokenize", json!({ "prompt": text, "parse_special": false })).await.good();
    assert!(plain["count"].as_u64().unwrap() as usize > count);
}

#[tokio::test]
async fn a_conversation_has_the_tokens_that_its_reply_counts() {
    let client = Client::with("[[persona]]\nname = \"ada\"\nsystem = \"You are Ada.\"\nthinking = false\n").await;
    let messages = json!([{ "role": "user", "content": "Hello!" }]);
    for model in ["etude", "ada"] {
        let counted = client.post("/tokenize", json!({ "model": model, "messages": messages })).await.good();
        let ask = json!({ "model": model, "messages": messages, "max_tokens": 1 });
        let reply = client.post("/v1/chat/completions", ask).await.good();
        assert_eq!(counted["count"], reply["usage"]["prompt_tokens"], "{model}");
    }
    let without = json!({ "messages": messages, "add_generation_prompt": false });
    let without = client.post("/tokenize", without).await.good();
    let with = client.post("/tokenize", json!({ "messages": messages })).await.good();
    assert!(without["count"].as_u64() < with["count"].as_u64());
    let image = json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "data:image/png;base64,AAEC" } }] }] });
    assert_eq!(client.post("/tokenize", image).await.error().1, "unsupported_parameter");
}
