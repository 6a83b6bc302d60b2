//! Texts as vectors.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::client::Client;

async fn embed(client: &Client, more: Value) -> Value {
    let mut body = json!({ "model": "etude" });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    client.post("/v1/embeddings", body).await.good()
}

fn vector(answer: &Value, index: usize) -> Vec<f64> {
    answer["data"][index]["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

#[tokio::test]
async fn a_text_has_one_direction() {
    let client = Client::new().await;
    let one = embed(&client, json!({ "input": "a red circle" })).await;
    assert_eq!((one["object"].as_str(), one["data"][0]["object"].as_str()), (Some("list"), Some("embedding")));
    let direction = vector(&one, 0);
    assert_eq!(direction.len(), 256);
    let length: f64 = direction.iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    let tokens = client.post("/tokenize", json!({ "prompt": "a red circle" })).await.good();
    assert_eq!(one["usage"], json!({ "prompt_tokens": tokens["count"], "total_tokens": tokens["count"] }));
    // In every form, and beside others.
    let several = embed(&client, json!({ "input": ["a fox", "a red circle"], "dimensions": 256, "user": "u" })).await;
    assert_eq!(vector(&several, 1), direction);
    assert_ne!(vector(&several, 0), direction);
    let by_ids = embed(&client, json!({ "input": [tokens["tokens"]] })).await;
    assert_eq!(vector(&by_ids, 0), direction);
    let base64 = embed(&client, json!({ "input": "a red circle", "encoding_format": "base64" })).await;
    let bytes =
        base64::engine::general_purpose::STANDARD.decode(base64["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> = bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect();
    let as_floats: Vec<f32> = direction.iter().map(|value| *value as f32).collect();
    assert_eq!(decoded, as_floats);
    let last = embed(&client, json!({ "input": "a red circle", "pooling": "last" })).await;
    assert_ne!(vector(&last, 0), direction);
    // A persona's adapter acts on it.
    let pirate = embed(&client, json!({ "input": "a red circle", "model": "pirate" })).await;
    assert_ne!(vector(&pirate, 0), direction);
}
