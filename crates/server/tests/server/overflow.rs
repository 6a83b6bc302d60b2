//! An engine here, and a server beside it: who answers whom.

use std::time::{Duration, Instant};

use consort::RemoteModel;
use consort_core::{ErrorKind, SpecialTokens};
use consort_server::Keys;
use consort_vllm_replay::{Synthetic, SyntheticConfig, SyntheticReply};
use serde_json::json;

use crate::client::{Client, chat};

/// What the server says, whatever it is asked. etude does not.
const FAR: &str = "Far away.";
const QUESTION: &str = "What is two plus three?";

fn server() -> Synthetic {
    let tokenizer = consort::open_tokenizer(None).unwrap();
    let tokens = tokenizer.encode(FAR, SpecialTokens::Plain).unwrap();
    let reply = SyntheticReply::Tokens(tokens);
    let config = SyntheticConfig { reply, ..SyntheticConfig::default() };
    // It starts a runtime of its own, which a thread of a test's may not.
    std::thread::spawn(|| Synthetic::start(config).unwrap()).join().unwrap()
}

fn beside(server: &Synthetic) -> Option<RemoteModel> {
    Some(RemoteModel::new(vec![server.server().http_url().parse().unwrap()]))
}

/// How many replies the server was asked for.
fn asked(server: &Synthetic) -> usize {
    server.server().asked().iter().filter(|asked| asked.route() == "/inference/v1/generate").count()
}

async fn says(client: &Client, persona: &str) -> String {
    let answer = client.chat(QUESTION, json!({ "model": persona, "max_tokens": 24 })).await.good();
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_persona_is_answered_where_it_says() {
    let server = server();
    let config = "[[persona]]\nname = \"near\"\nplacement = \"local\"\n\
                  [[persona]]\nname = \"far\"\nplacement = \"remote\"\n\
                  [[persona]]\nname = \"rather\"\nplacement = \"prefer_remote\"\n";
    let client = Client::open(config, Keys::none(), beside(&server)).await.unwrap();
    let connecting = asked(&server);
    let near = says(&client, "near").await;
    assert!(!near.is_empty() && near != FAR, "{near}");
    // Who says nothing is answered here first.
    assert_eq!(says(&client, "etude").await, near);
    assert_eq!(asked(&server), connecting, "nothing of it left");
    assert_eq!(says(&client, "far").await, FAR);
    assert_eq!(says(&client, "rather").await, FAR);
    assert_eq!(asked(&server), connecting + 2);

    // By the other ways to ask as well.
    let done =
        client.post("/v1/completions", json!({ "model": "far", "prompt": QUESTION, "max_tokens": 24 })).await.good();
    assert_eq!(done["choices"][0]["text"], FAR);

    // It is shown, put and replaced like all else of a persona.
    let shown = client.get("/v1/personas/far").await.good();
    assert_eq!(shown["placement"], "remote");
    assert_eq!(client.get("/v1/personas").await.good()["data"][1]["placement"], "local");
    let here = client.put("/v1/personas/far", json!({ "placement": "local" })).await;
    assert_eq!((here.status, &here.json()["placement"]), (200, &json!("local")));
    assert_eq!(says(&client, "far").await, near);
    assert_eq!(client.put("/v1/personas/far", shown).await.status, 200);
    assert_eq!(says(&client, "far").await, FAR);
    let wrong = client.put("/v1/personas/far", json!({ "placement": "elsewhere" })).await.error();
    assert_eq!((wrong.0, wrong.2.as_deref()), (400, Some("placement")));

    let metrics = client.get("/metrics").await.text();
    for line in [
        "consort_overflow_info{side=\"local\",backend=\"native\"} 1",
        "consort_overflow_info{side=\"remote\",backend=\"vllm\"} 1",
        "consort_overflow_answered_total{side=\"local\"} 3",
        "consort_overflow_answered_total{side=\"remote\"} 4",
        "consort_overflow_taken_total{side=\"local\",reason=\"placement\"} 2",
        "consort_overflow_taken_total{side=\"local\",reason=\"first\"} 1",
        "consort_overflow_taken_total{side=\"remote\",reason=\"placement\"} 4",
    ] {
        assert!(metrics.lines().any(|shown| shown == line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn what_the_full_engine_here_cannot_take_goes_to_the_server() {
    let server = server();
    let config = "[scheduler]\nmax_queued = 1\nmax_running = 1\n[[persona]]\nname = \"near\"\nplacement = \"local\"\n";
    let client = Client::open(config, Keys::none(), beside(&server)).await.unwrap();
    let connecting = asked(&server);
    let long = chat("Tell me a story about a fox.", &json!({ "model": "near", "stream": true, "ignore_eos": true }));
    let (mut held, began) = (Vec::new(), Instant::now());
    loop {
        // One runs, one waits, and the next is refused: what must stay here never leaves.
        loop {
            assert!(began.elapsed() < Duration::from_secs(120), "the queue is never full");
            let response = client.begin("/v1/chat/completions", &long).await;
            if response.status() == 429 {
                break;
            }
            assert_eq!(response.status(), 200);
            held.push(response);
        }
        assert_eq!(asked(&server), connecting);
        // A place may have become free meanwhile: then it is answered here, when its turn comes.
        match tokio::time::timeout(Duration::from_secs(5), says(&client, "etude")).await {
            Ok(said) if said == FAR => break,
            _ => held.clear(),
        }
        assert!(began.elapsed() < Duration::from_secs(120), "nothing overflows");
    }
    assert_eq!(asked(&server), connecting + 1);
    let metrics = client.get("/metrics").await.text();
    let line = "consort_overflow_taken_total{side=\"remote\",reason=\"overloaded\"} 1";
    assert!(metrics.lines().any(|shown| shown == line), "{metrics}");
}

#[tokio::test]
async fn a_side_that_is_not_there_is_refused_by_persona_and_key() {
    // Here alone.
    for rule in ["remote", "prefer_remote"] {
        let config = format!("[[persona]]\nname = \"a\"\n[[persona]]\nname = \"far\"\nplacement = \"{rule}\"\n");
        let error = Client::open(&config, Keys::none(), None).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        let context = |key: &str| error.context().find(|pair| pair.0 == key).map(|pair| pair.1.to_owned());
        assert_eq!(context("key").as_deref(), Some("persona[1].placement"));
        assert_eq!(context("persona").as_deref(), Some("far"));
    }
    let client = Client::with("[[persona]]\nname = \"near\"\nplacement = \"local\"\n").await;
    assert!(!says(&client, "near").await.is_empty());
    let refused = client.put("/v1/personas/far", json!({ "placement": "remote" })).await;
    assert_eq!((refused.error().0, refused.error().2.as_deref()), (400, Some("placement")));
    assert_eq!(client.get("/v1/personas/far").await.status, 404, "it was not put");
    assert!(!client.get("/metrics").await.text().contains("consort_overflow"), "there is but one side");

    // On servers alone: what must not leave is not sent.
    let server = server();
    let remote = RemoteModel { files: Some(crate::client::etude("gguf")), ..beside(&server).unwrap() };
    let error = Client::remote("[[persona]]\nname = \"near\"\nplacement = \"local\"\n", remote.clone()).await;
    assert!(error.err().unwrap().to_string().contains("persona[0].placement"));
    let client = Client::remote("[[persona]]\nname = \"far\"\nplacement = \"remote\"\n", remote).await.unwrap();
    assert_eq!(says(&client, "far").await, FAR);
}
