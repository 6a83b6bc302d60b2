//! Requests from within the program.

use consort_core::Priority;
use consort_server::{Keys, Transport};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::client::{Client, chat, request};

fn body(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[tokio::test]
async fn who_asks_from_within_needs_neither_key_nor_host_nor_place() {
    let keys = Keys::new(["open-sesame"]).unwrap();
    let client = Client::with_keys("[limits]\nrequests = 1\n", keys).await;
    let inside = client.app.inside();
    let question = chat("What is your name?", &json!({ "max_tokens": 4 })).to_string();
    let asked = (0..3).map(|_| inside.ask("/v1/chat/completions", question.clone()));
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        assert!(answer.request_id.unwrap().starts_with("req_"));
        assert_eq!(body(&answer.body)["choices"][0]["finish_reason"], "length");
    }
    // From outside a key is asked for as ever.
    let outside = client.app.router(Transport::Unix).oneshot(request("POST", "/v1/chat/completions", question.into()));
    assert_eq!(outside.await.unwrap().status(), 401);
}

#[tokio::test]
async fn failures_have_the_form_that_they_have_outside() {
    let client = Client::with("[limits]\nbody_bytes = 200\n").await;
    let inside = client.app.inside();
    let code = |bytes: &[u8]| body(bytes)["error"]["code"].as_str().unwrap_or_default().to_owned();
    let answer = inside.ask("/v1/completions", "{").await;
    assert_eq!(answer.status, 400);
    let answer = inside.ask("/v1/nothing", "{}").await;
    assert_eq!((answer.status, code(&answer.body).as_str()), (404, "unknown_url"));
    let answer = inside.ask("no path", "{}").await;
    assert_eq!(answer.status, 404);
    let answer = inside.ask("/v1/completions", " ".repeat(201)).await;
    assert_eq!((answer.status, code(&answer.body).as_str()), (413, "body_too_large"));
    let answer = inside.ask("/v1/messages", "{\"model\": \"nobody\"}").await;
    assert_eq!(body(&answer.body)["type"], "error", "as Anthropic has it");
}

#[tokio::test]
async fn no_reply_comes_before_the_highest_priority() {
    // One reply at a time, so that the next one is seen waiting.
    let config = "[limits]\npriority = \"batch\"\n[scheduler]\nmax_running = 1\n";
    let client = Client::with(config).await;
    let inside = client.app.inside();
    let long = json!({ "ignore_eos": true, "max_tokens": 400, "priority": "realtime" });
    let question = chat("Tell me a story about a fox.", &long).to_string();
    let running = [
        tokio::spawn({
            let (inside, question) = (inside.clone(), question.clone());
            async move { inside.ask("/v1/chat/completions", question).await }
        }),
        tokio::spawn(async move { inside.ask("/v1/chat/completions", question).await }),
    ];
    let waiting = || client.backend.metrics().queued_by;
    while waiting().get(Priority::Batch) == 0 {
        assert!(running.iter().any(|task| !task.is_finished()), "it never waited as a batch does");
        assert_eq!(waiting().get(Priority::Realtime), 0);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    for task in running {
        task.abort();
    }
}
