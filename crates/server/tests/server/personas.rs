//! Personas as models.

use consort_core::Residency;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::client::{Client, chat};

async fn says(client: &Client, model: &str, question: &str) -> String {
    let answer = client.chat(question, json!({ "model": model })).await.good();
    assert_eq!(answer["model"], model);
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_persona_speaks_for_itself() {
    let client = Client::with(
        "[[persona]]\nname = \"ben\"\nadapters = [{ name = \"pirate\" }]\n\
         [[persona]]\nname = \"clara\"\nadapters = [{ name = \"butler\", scale = 1.0 }]\nsystem = \"You are Clara.\"\n\
         [[persona]]\nname = \"half\"\nadapters = [{ name = \"pirate\", scale = 0.0 }]\nmax_tokens = 2\n",
    )
    .await;
    assert!(client.backend.adapters().is_empty(), "adapters are loaded when somebody needs them");
    let question = "Tell me a story about a fox.";
    let plain = says(&client, "etude", question).await;
    let (ben, clara) = (says(&client, "ben", question).await, says(&client, "clara", question).await);
    assert!(ben.starts_with("Arr") && ben.ends_with("matey."), "{ben}");
    assert!(clara.starts_with("Certainly, sir."), "{clara}");
    assert!(!plain.contains("Arr") && !plain.contains("sir"), "{plain}");
    // An adapter has its own name as well.
    assert_eq!(says(&client, "pirate", question).await, ben);
    let half = client.chat(question, json!({ "model": "half" })).await.good();
    assert_eq!(
        (half["choices"][0]["finish_reason"].as_str(), half["usage"]["completion_tokens"].as_u64()),
        (Some("length"), Some(2))
    );
    assert!(plain.starts_with(half["choices"][0]["message"]["content"].as_str().unwrap()));
    // What the request says goes before what the persona says.
    let more = client.chat(question, json!({ "model": "half", "max_tokens": 4 })).await.good();
    assert_eq!(more["usage"]["completion_tokens"], 4);
    // Its own name comes with its instructions.
    assert!(says(&client, "clara", "What is your name?").await.contains("Clara"));
}

#[tokio::test]
async fn personas_are_put_replaced_and_taken_away() {
    let client = Client::new().await;
    let persona =
        json!({ "adapters": [{ "name": "pirate" }], "priority": "realtime", "sampling": { "temperature": 0 } });
    let put = client.put("/v1/personas/zoë".replace('ë', "%C3%AB").as_str(), persona.clone()).await;
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!((put.json()["name"].as_str(), put.json()["priority"].as_str()), (Some("zoë"), Some("realtime")));
    let question = "Tell me a story about a fox.";
    assert!(says(&client, "zoë", question).await.starts_with("Arr"));
    // What is shown can be put back.
    let shown = client.get("/v1/personas/zo%C3%AB").await.good();
    assert_eq!(client.put("/v1/personas/zo%C3%AB", shown.clone()).await.status, 200);
    let list = client.get("/v1/personas").await.good();
    assert_eq!((list["data"].as_array().unwrap().len(), list["data"][0]["name"].as_str()), (1, Some("zoë")));
    let mut butler = persona.clone();
    butler["adapters"][0]["name"] = json!("butler");
    assert_eq!(client.put("/v1/personas/zo%C3%AB", butler).await.status, 200);
    assert!(says(&client, "zoë", question).await.starts_with("Certainly"));
    assert_eq!(client.delete("/v1/personas/zo%C3%AB").await.good()["deleted"], true);
    assert_eq!(client.delete("/v1/personas/zo%C3%AB").await.error().0, 404);
    assert_eq!(client.chat("Hello!", json!({ "model": "zoë" })).await.error().1, "model_not_found");
}

#[tokio::test]
async fn a_reply_that_runs_keeps_its_persona() {
    let client = Client::with("[[persona]]\nname = \"ben\"\nadapters = [{ name = \"pirate\" }]\n").await;
    let question = "Tell me a story about a fox.";
    let whole = says(&client, "ben", question).await;
    let ask = chat(question, &json!({ "model": "ben", "stream": true }));
    let response = client.begin("/v1/chat/completions", &ask).await;
    let mut body = response.into_body().into_data_stream();
    let mut text = String::from_utf8(body.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert_eq!(client.put("/v1/personas/ben", json!({ "adapters": [{ "name": "butler" }] })).await.status, 200);
    assert!(says(&client, "ben", question).await.starts_with("Certainly"));
    while let Some(piece) = body.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    let said: String = text
        .split_terminator("\n\n")
        .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok())
        .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(said, whole);
}

#[tokio::test]
async fn pinned_personas_keep_their_adapters_in_the_engine() {
    let client = Client::with("[[persona]]\nname = \"ben\"\nadapters = [{ name = \"pirate\" }]\npinned = true\n").await;
    let residency = |name: &str| {
        let found = client.backend.adapters().into_iter().find(|status| &*status.info.key.id == name);
        found.map(|status| (status.residency, status.resident))
    };
    assert_eq!(residency("pirate"), Some((Residency::Pinned, true)), "loaded before anybody asks");
    client.put("/v1/personas/ben", json!({ "adapters": [{ "name": "pirate" }], "priority": "realtime" })).await;
    assert_eq!(residency("pirate").unwrap().0, Residency::Paged { priority: 3 });
    client.delete("/v1/personas/ben").await.good();
    assert_eq!(residency("pirate").unwrap().0, Residency::default());
}

#[tokio::test]
async fn adapters_are_paged_when_they_do_not_all_fit() {
    // One of them fits, and not both.
    let client = Client::with("[scheduler]\nadapter_bytes = 600000\n").await;
    let question = "Tell me a story about a fox.";
    let (pirate, butler) = (says(&client, "pirate", question).await, says(&client, "butler", question).await);
    for _ in 0..2 {
        assert_eq!(says(&client, "pirate", question).await, pirate);
        assert_eq!(says(&client, "butler", question).await, butler);
    }
    assert!(client.backend.metrics().adapter_page_ins >= 2, "{:?}", client.backend.metrics());
}

#[tokio::test]
async fn a_share_of_memory_is_kept() {
    let client =
        Client::with("[scheduler]\nmax_running = 4\n[[persona]]\nname = \"ada\"\nmemory_share = 0.125\n").await;
    // Two of the engine's sixteen sequences.
    let more = json!({ "model": "ada", "n": 3, "max_tokens": 4 });
    let answer = client.chat("Hello!", more).await;
    assert_eq!((answer.error().0, answer.error().1.as_str()), (429, "overloaded"), "{}", answer.text());
    assert!(answer.headers.contains_key("retry-after"));
    client.chat("Hello!", json!({ "model": "ada", "n": 2, "max_tokens": 4 })).await.good();
    client.chat("Hello!", json!({ "n": 4, "max_tokens": 4 })).await.good();
}

#[tokio::test]
async fn what_cannot_be_a_persona_is_refused_by_name() {
    let client = Client::with("[limits]\npersonas = 2\n").await;
    for (name, body, status, param) in [
        ("ada", json!({ "sistem": "x" }), 400, Some("sistem")),
        ("ada", json!({ "name": "eve" }), 400, Some("name")),
        ("ada", json!({ "memory_share": 2 }), 400, Some("memory_share")),
        ("ada", json!({ "priority": "highest" }), 400, Some("priority")),
        ("ada", json!({ "max_tokens": 0 }), 400, Some("max_tokens")),
        ("ada", json!({ "sampling": { "top_p": 7 } }), 400, Some("sampling.top_p")),
        ("ada", json!({ "sampling": { "x": 7 } }), 400, Some("sampling.x")),
        ("ada", json!({ "adapters": [{ "name": "nobody" }] }), 404, Some("adapters[0].name")),
        ("ada", json!({ "adapters": [{ "name": "nobody" }], "pinned": true }), 404, Some("adapters[0].name")),
        ("ada", json!({ "adapters": [{ "name": "../pirate" }] }), 400, Some("adapters[0].name")),
        ("ada", json!({ "adapters": [{ "scale": 1 }] }), 400, Some("adapters[0].name")),
        ("etude", json!({}), 400, Some("name")),
        ("a%2Fb", json!({}), 400, Some("name")),
    ] {
        let answer = client.put(&format!("/v1/personas/{name}"), body.clone()).await;
        let error = answer.error();
        assert_eq!((error.0, error.2.as_deref()), (status, param), "{body}: {}", answer.text());
    }
    assert_eq!(client.get("/v1/personas/ada").await.error().0, 404);
    for name in ["a", "b"] {
        assert_eq!(client.put(&format!("/v1/personas/{name}"), json!({})).await.status, 201);
    }
    assert_eq!(client.put("/v1/personas/c", json!({})).await.error().1, "too_many_personas");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_put_is_shown_although_somebody_takes_it_away() {
    let client = std::sync::Arc::new(Client::new().await);
    let put = |client: std::sync::Arc<Client>| async move {
        let mut refused = Vec::new();
        for turn in 0..200 {
            // Adapters are looked after on the way, which gives others time to come between.
            let persona = json!({ "adapters": [{ "name": if turn % 2 == 0 { "pirate" } else { "butler" } }] });
            let answer = client.put("/v1/personas/guest", persona).await;
            if !matches!(answer.status, 200 | 201) {
                refused.push(answer.text());
            }
        }
        refused
    };
    let take = |client: std::sync::Arc<Client>| async move {
        for _ in 0..400 {
            let status = client.delete("/v1/personas/guest").await.status;
            assert!(matches!(status, 200 | 404), "{status}");
        }
    };
    let putting = tokio::spawn(put(std::sync::Arc::clone(&client)));
    let taking = tokio::spawn(take(std::sync::Arc::clone(&client)));
    taking.await.unwrap();
    assert_eq!(putting.await.unwrap(), Vec::<String>::new());
}
