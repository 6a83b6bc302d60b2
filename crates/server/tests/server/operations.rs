//! Health, readiness, numbers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Client, chat};

/// An exposition's samples, whose form is checked.
pub(crate) fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(rest.len() > family.len() + 1, "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&family), "{line} stands in {family}");
            assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
        }
    }
    samples
}

#[tokio::test]
async fn the_numbers_are_those_that_clients_saw() {
    let client = Client::with("[[persona]]\nname = \"ben\"\nadapters = [{ name = \"pirate\" }]\n").await;
    let mut tokens = (0, 0);
    for _ in 0..3 {
        let answer = client.chat("Hello!", json!({ "model": "ben" })).await.good();
        tokens.0 += answer["usage"]["prompt_tokens"].as_u64().unwrap();
        tokens.1 += answer["usage"]["completion_tokens"].as_u64().unwrap();
    }
    let streamed = client.chat("Hello!", json!({ "model": "ben", "stream": true })).await;
    assert!(!streamed.events().is_empty());
    assert_eq!(client.chat("Hello!", json!({ "model": "nobody" })).await.status, 404);
    let page = client.get("/metrics").await;
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let samples = samples(&page.text());
    let ben = |name: &str| samples[&format!("consort_persona_{name}{{persona=\"ben\"}}")];
    assert_eq!(samples["consort_persona_replies_total{persona=\"ben\",outcome=\"finished\"}"], 4.0);
    assert_eq!(ben("prompt_tokens_total"), tokens.0 as f64 / 3.0 * 4.0);
    assert_eq!(ben("completion_tokens_total"), tokens.1 as f64 / 3.0 * 4.0);
    assert!(ben("reused_tokens_total") > 0.0);
    assert_eq!((ben("time_to_first_token_seconds_count"), ben("active_replies")), (4.0, 0.0));
    assert!(ben("inter_token_seconds_count") > 4.0);
    assert_eq!(samples["consort_persona_replies_total{persona=\"etude\",outcome=\"finished\"}"], 0.0);
    assert_eq!(samples["consort_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"}"], 4.0);
    assert_eq!(samples["consort_http_requests_total{route=\"/v1/chat/completions\",status=\"404\"}"], 1.0);
    assert_eq!(samples["consort_engine_requests_total"], 4.0);
    assert_eq!(samples["consort_adapter_resident{adapter=\"pirate\"}"], 1.0);
    assert!(samples["consort_memory_bytes{kind=\"weights\"}"] > 1e6);
    assert_eq!(samples["consort_build_info{version=\"0.1.0\",model=\"etude\",backend=\"native\",device=\"cpu\"}"], 1.0);
    // Routes are patterns: no address of a client becomes a label.
    client.get("/some/where").await;
    client.get("/v1/models/some-one").await;
    let text = client.get("/metrics").await.text();
    assert!(text.contains("route=\"unmatched\"") && text.contains("route=\"/v1/models/{name}\""), "{text}");
    assert!(!text.contains("some"), "{text}");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_sequence() {
    let client = Client::new().await;
    let long = chat("Tell me a story about a fox.", &json!({ "stream": true, "ignore_eos": true, "n": 3 }));
    let response = client.begin("/v1/chat/completions", &long).await;
    assert_eq!(response.status(), 200);
    drop(response);
    let begun = Instant::now();
    while client.backend.metrics().running + client.backend.metrics().queued > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", client.backend.metrics());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(client.backend.metrics().cancelled, 3);
    let samples = samples(&client.get("/metrics").await.text());
    assert_eq!(samples["consort_persona_replies_total{persona=\"etude\",outcome=\"cancelled\"}"], 3.0);
    assert_eq!(samples["consort_persona_active_replies{persona=\"etude\"}"], 0.0);
}
