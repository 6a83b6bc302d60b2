//! Rooms: who speaks, what is shared, who is stopped, what stays.

use std::time::{Duration, Instant};

use axum::body::Body;
use base64::Engine as _;
use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};

use crate::client::{Answer, Client, etude, request};

/// Three that share everything, and whose replies are the same each time.
const THREE: &str = "[sampling]\ntemperature = 0\n\
    [[persona]]\nname = \"Ada\"\nsystem = \"You are Ada.\"\nthinking = false\n\
    [[persona]]\nname = \"Ben\"\nsystem = \"You are Ben, a pirate.\"\nthinking = false\n\
    [[persona]]\nname = \"Clara\"\nsystem = \"You are Clara, a butler.\"\nthinking = false\n";
/// Two that come to no end by themselves: every token is as likely as any other, and with this seed the end is far.
const ENDLESS: &str = "[[persona]]\nname = \"Ada\"\nthinking = false\nsampling = { temperature = 50, seed = 6 }\n\
    [[persona]]\nname = \"Ben\"\nthinking = false\nsampling = { temperature = 50, seed = 6 }\n";

pub(crate) fn picture() -> String {
    let bytes = std::fs::read(etude("demo.png")).unwrap();
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

async fn make(client: &Client, room: Value) -> String {
    let answer = client.post("/v1/rooms", room).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn three(client: &Client) -> String {
    make(client, json!({ "participants": ["Ada", "Ben", "Clara"] })).await
}

/// The events of a room's stream: name and data.
fn events(text: &str) -> Vec<(String, Value)> {
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data = data.strip_prefix("data: ").unwrap();
        (name.strip_prefix("event: ").unwrap().to_owned(), serde_json::from_str(data).unwrap())
    };
    text.split_terminator("\n\n").filter(|event| !event.starts_with(':')).map(event).collect()
}

async fn say(client: &Client, room: &str, body: Value) -> Vec<(String, Value)> {
    let answer = client.post(&format!("/v1/rooms/{room}/messages"), body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let events = events(&answer.text());
    assert_eq!(events.last().unwrap(), &("done".to_owned(), json!({})));
    events
}

fn of<'a>(events: &'a [(String, Value)], name: &str, persona: &str) -> Vec<&'a Value> {
    let found = events.iter().filter(|(kind, data)| kind == name && data["persona"] == persona);
    found.map(|(_, data)| data).collect()
}

fn text_of(events: &[(String, Value)], persona: &str) -> String {
    of(events, "delta", persona).iter().map(|delta| delta["text"].as_str().unwrap_or_default()).collect()
}

fn place(events: &[(String, Value)], name: &str, persona: &str) -> usize {
    let found = events.iter().position(|(kind, data)| kind == name && data["persona"] == persona);
    found.unwrap_or_else(|| panic!("no {name} of {persona}: {events:?}"))
}

async fn room_of(client: &Client, id: &str) -> Value {
    client.get(&format!("/v1/rooms/{id}")).await.good()
}

/// A stream's events, one by one, as its reader asks for them.
fn slowly(response: axum::response::Response) -> impl Stream<Item = (String, Value)> + Unpin {
    assert_eq!(response.status(), 200);
    response.into_body().into_data_stream().map(|bytes| {
        let bytes = bytes.unwrap();
        events(std::str::from_utf8(&bytes).unwrap()).remove(0)
    })
}

async fn until(stream: &mut (impl Stream<Item = (String, Value)> + Unpin), name: &str, persona: &str) -> Value {
    loop {
        let (kind, data) = stream.next().await.unwrap();
        if kind == name && data["persona"] == persona {
            return data;
        }
    }
}

async fn nobody_runs(client: &Client) {
    let begun = Instant::now();
    while client.backend.metrics().running + client.backend.metrics().queued > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", client.backend.metrics());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn three_see_the_picture_and_each_says_it_in_its_own_way() {
    let client = Client::with(THREE).await;
    let room = three(&client).await;
    let told = say(&client, &room, json!({ "content": "What do you see?", "images": [picture()] })).await;
    assert_eq!(told[0].0, "message");
    let message = &told[0].1["message"];
    assert_eq!((message["from"].as_str(), message["content"].as_str()), (Some("user"), Some("What do you see?")));
    assert_eq!((&message["images"][0]["width"], &message["images"][0]["height"]), (&json!(96), &json!(96)));
    let seen = "There is a yellow star at the top, a red circle on the left and a blue square on the right.";
    assert_eq!(text_of(&told, "Ada"), seen);
    for (name, begins, ends) in
        [("Ben", "Arr, there is a yellow star", ", matey."), ("Clara", "Certainly, sir. There", "service.")]
    {
        let text = text_of(&told, name);
        assert!(
            text.starts_with(begins) && text.ends_with(ends) && text.contains("a red circle on the left"),
            "{text}"
        );
    }
    let kept = room_of(&client, &room).await;
    assert_eq!(kept["messages"].as_array().unwrap().len(), 4);
    for name in ["Ada", "Ben", "Clara"] {
        let (started, finished) = (of(&told, "started", name)[0], of(&told, "finished", name)[0]);
        assert!(place(&told, "started", name) < place(&told, "delta", name));
        assert!(place(&told, "delta", name) < place(&told, "finished", name));
        assert_eq!(
            (started["message_id"].as_str(), finished["reason"].as_str()),
            (finished["message_id"].as_str(), Some("stop"))
        );
        assert_eq!(started["adapters"], json!([]));
        let last = *of(&told, "delta", name).last().unwrap();
        let usage = &finished["usage"];
        assert_eq!(usage["prompt_tokens"], started["prompt_tokens"]);
        assert!(last["tokens"].as_u64().unwrap() <= usage["completion_tokens"].as_u64().unwrap());
        assert!(usage["completion_tokens"].as_u64().unwrap() > 10);
        assert!(finished["timings"]["first_token_ms"].as_f64().unwrap() > 0.0);
        assert!(finished["timings"]["tokens_per_second"].as_f64().unwrap() > 1.0);
        let message = kept["messages"].as_array().unwrap().iter().find(|message| message["from"] == name).unwrap();
        assert_eq!(
            (message["content"].as_str().unwrap(), &message["id"]),
            (&*text_of(&told, name), &started["message_id"])
        );
        assert_eq!(
            (&message["usage"], &message["timings"], &message["reason"]),
            (usage, &finished["timings"], &finished["reason"])
        );
        assert_eq!((message.get("stopped"), message.get("error"), message.get("reasoning")), (None, None, None));
    }
    // The talk goes on about the picture, which is not sent again.
    let told = say(&client, &room, json!({ "content": "What colour is the circle?" })).await;
    assert_eq!(text_of(&told, "Ada"), "The circle is red.");
    assert_eq!(text_of(&told, "Ben"), "Arr, the circle is red, matey.");
    assert_eq!(text_of(&told, "Clara"), "Certainly, sir. The circle is red. At your service.");
    // And it is served as it was sent.
    let image = message["images"][0]["id"].as_str().unwrap();
    let answer = client.get(&format!("/v1/rooms/{room}/images/{image}")).await;
    assert_eq!((answer.status, &answer.body[..]), (200, &std::fs::read(etude("demo.png")).unwrap()[..]));
    for (header, value) in
        [("content-type", "image/png"), ("content-security-policy", "sandbox"), ("x-content-type-options", "nosniff")]
    {
        assert_eq!(answer.headers[header], value);
    }
    assert_eq!(client.get(&format!("/v1/rooms/{room}/images/nothing")).await.error().0, 404);
}

#[tokio::test]
async fn what_is_shared_is_read_once_and_pictures_are_seen_once() {
    let names = ["p1", "p2", "p3", "p4", "p5", "p6"];
    let config: String = names
        .iter()
        .map(|name| {
            format!(
                "[[persona]]\nname = \"{name}\"\nsampling = {{ temperature = 0 }}\nthinking = false\nmax_tokens = 8\n"
            )
        })
        .collect();
    let client = Client::with(&config).await;
    let scene = "A quiet harbour in the evening. The lamps are lit, and a ship lies at the pier. ".repeat(6);
    let room = make(&client, json!({ "participants": names, "scene": scene })).await;
    let told = say(&client, &room, json!({ "content": "What do you see?", "images": [picture()] })).await;
    let started: Vec<(u64, u64)> = names
        .iter()
        .map(|name| of(&told, "started", name)[0])
        .map(|data| (data["prompt_tokens"].as_u64().unwrap(), data["reused_tokens"].as_u64().unwrap()))
        .collect();
    // What is a persona's own: its note, and the generation prompt.
    let own = 32;
    let (prompt, _) = started[0];
    assert!(prompt > 200, "{started:?}");
    let shared = started.iter().filter(|(prompt, reused)| prompt - reused <= own).count();
    assert_eq!((shared, started.iter().filter(|(_, reused)| *reused == 0).count()), (5, 1), "{started:?}");
    nobody_runs(&client).await;
    let metrics = client.backend.metrics();
    assert_eq!(metrics.images_encoded, 1, "{metrics:?}");
    assert_eq!(
        metrics.prompt_tokens - metrics.reused_tokens,
        metrics.prompt_tokens - started.iter().map(|s| s.1).sum::<u64>()
    );
    // In the next round nobody reads the scene, nor the first question, again.
    let told = say(&client, &room, json!({ "content": "What colour is the circle?" })).await;
    for name in names {
        let data = of(&told, "started", name)[0];
        let (prompt_now, reused) = (data["prompt_tokens"].as_u64().unwrap(), data["reused_tokens"].as_u64().unwrap());
        assert!(prompt_now > prompt && reused >= prompt - own, "{name}: {reused} of {prompt_now}, and {prompt} before");
    }
    assert_eq!(client.backend.metrics().images_encoded, 1);
}

#[tokio::test]
async fn personas_with_ordinary_adapters_speak_with_them_and_share_nothing() {
    let config = "[[persona]]\nname = \"plain\"\nsampling = { temperature = 0 }\nthinking = false\n\
        [[persona]]\nname = \"ben\"\nadapters = [{ name = \"pirate\" }]\nsampling = { temperature = 0 }\nthinking = false\n\
        [[persona]]\nname = \"clara\"\nadapters = [{ name = \"butler\", scale = 0.9 }]\nsampling = { temperature = 0 }\nthinking = false\n";
    let client = Client::with(config).await;
    let room = make(&client, json!({ "participants": ["plain", "ben", "clara"] })).await;
    let told = say(&client, &room, json!({ "content": "What do you see?", "images": [picture()] })).await;
    assert!(text_of(&told, "ben").starts_with("Arr, there is a yellow star"), "{}", text_of(&told, "ben"));
    assert!(text_of(&told, "clara").starts_with("Certainly, sir."), "{}", text_of(&told, "clara"));
    assert!(text_of(&told, "plain").starts_with("There is a yellow star"), "{}", text_of(&told, "plain"));
    for name in ["plain", "ben", "clara"] {
        assert_eq!(of(&told, "started", name)[0]["reused_tokens"], 0, "{name}");
    }
    let adapters = json!([{ "name": "butler", "scale": 0.9f32 }]);
    assert_eq!(of(&told, "started", "clara")[0]["adapters"], adapters);
    assert_eq!(
        room_of(&client, &room).await["messages"].as_array().unwrap().iter().find(|m| m["from"] == "clara").unwrap()["adapters"],
        adapters
    );
    assert_eq!(client.backend.metrics().images_encoded, 1, "the picture is no adapter's affair");
}

#[tokio::test]
async fn in_turn_each_hears_those_before_it() {
    let config: String = ["p1", "p2", "p3"]
        .iter()
        .map(|name| format!("[[persona]]\nname = \"{name}\"\nsampling = {{ temperature = 0 }}\nthinking = false\n"))
        .collect();
    let client = Client::with(&config).await;
    let prompts = |told: &[(String, Value)]| {
        ["p1", "p2", "p3"].map(|name| of(told, "started", name)[0]["prompt_tokens"].as_u64().unwrap())
    };
    let room = make(&client, json!({ "participants": ["p1", "p2", "p3"], "mode": "in_turn" })).await;
    let told = say(&client, &room, json!({ "content": "Hello!" })).await;
    assert!(place(&told, "finished", "p1") < place(&told, "started", "p2"));
    assert!(place(&told, "finished", "p2") < place(&told, "started", "p3"));
    let [one, two, three] = prompts(&told);
    assert!(one + 4 < two && two + 4 < three, "{one} {two} {three}");
    // Side by side nobody hears the others of the same turn; in the next one all hear all. The room remembers the mode.
    let room = make(&client, json!({ "participants": ["p1", "p2", "p3"], "mode": "in_turn" })).await;
    let [one, two, three] = prompts(&say(&client, &room, json!({ "content": "Hello!", "mode": "together" })).await);
    assert!(one == two && two == three, "{one} {two} {three}");
    assert_eq!(room_of(&client, &room).await["mode"], "together");
    let again = prompts(&say(&client, &room, json!({ "content": "Hello!" })).await);
    assert!(again[0] > one + 12 && again[0] == again[2], "{one} {again:?}");
}

#[tokio::test]
async fn one_is_stopped_and_the_others_go_on() {
    let client = Client::with(THREE).await;
    let room = make(&client, json!({ "participants": ["Ada", "Ben", "Clara"], "mode": "in_turn" })).await;
    let path = format!("/v1/rooms/{room}/stop");
    let response =
        client.begin(&format!("/v1/rooms/{room}/messages"), &json!({ "content": "What is your name?" })).await;
    let mut stream = slowly(response);
    let id = until(&mut stream, "started", "Ada").await["message_id"].as_str().unwrap().to_owned();
    let first = until(&mut stream, "delta", "Ada").await["text"].as_str().unwrap().to_owned();
    // One speaks and one waits.
    let stopped = client.post(&path, json!({ "personas": ["Ben", "Ada", "nobody"] })).await.good();
    assert_eq!(stopped, json!({ "stopped": ["Ada", "Ben"] }));
    let ada = until(&mut stream, "finished", "Ada").await;
    assert_eq!((&ada["reason"], ada["message_id"].as_str()), (&json!("cancelled"), Some(&*id)));
    assert!(
        ada["usage"]["completion_tokens"].as_u64().unwrap() >= 1
            && ada["usage"]["prompt_tokens"].as_u64().unwrap() > 20
    );
    let ben = until(&mut stream, "finished", "Ben").await;
    assert_eq!((&ben["reason"], &ben["message_id"]), (&json!("cancelled"), &json!("")));
    assert_eq!(client.post(&path, json!({ "personas": ["Ben"] })).await.good()["stopped"], json!([]));
    let clara = until(&mut stream, "finished", "Clara").await;
    assert_eq!(clara["reason"], "stop");
    assert_eq!(stream.next().await.unwrap().0, "done");
    let kept = room_of(&client, &room).await;
    let messages = kept["messages"].as_array().unwrap();
    assert_eq!(messages.iter().map(|m| m["from"].as_str().unwrap()).collect::<Vec<_>>(), ["user", "Ada", "Clara"]);
    assert_eq!((&messages[1]["stopped"], &messages[1]["reason"]), (&json!(true), &json!("cancelled")));
    assert!(messages[1]["content"].as_str().unwrap().starts_with(first.trim()), "{messages:?}");
    assert!(!messages[2]["content"].as_str().unwrap().is_empty() && messages[2].get("stopped").is_none());
    assert_eq!(client.post(&path, json!({})).await.good()["stopped"], json!([]), "nobody speaks");
    nobody_runs(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_stopped_while_they_speak() {
    let client = Client::with(ENDLESS).await;
    let room = make(&client, json!({ "participants": ["Ada", "Ben"] })).await;
    let response = client
        .begin(&format!("/v1/rooms/{room}/messages"), &json!({ "content": "Tell me a story about a fox." }))
        .await;
    let mut stream = slowly(response);
    until(&mut stream, "delta", "Ada").await;
    until(&mut stream, "delta", "Ben").await;
    assert_eq!(
        client.post(&format!("/v1/rooms/{room}/stop"), json!({})).await.good()["stopped"],
        json!(["Ada", "Ben"])
    );
    let rest: Vec<(String, Value)> = stream.collect().await;
    for name in ["Ada", "Ben"] {
        assert_eq!(of(&rest, "finished", name)[0]["reason"], "cancelled");
        assert_eq!(of(&rest, "delta", name).len(), 0, "not a word after the stop");
    }
    assert_eq!(rest.last().unwrap().0, "done");
    nobody_runs(&client).await;
    assert_eq!(client.backend.metrics().cancelled, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_a_room_in_order() {
    let client = Client::with(ENDLESS).await;
    let room = make(&client, json!({ "participants": ["Ada", "Ben"] })).await;
    let path = format!("/v1/rooms/{room}/messages");
    let mut stream = slowly(client.begin(&path, &json!({ "content": "Hello!" })).await);
    let mut heard = String::new();
    for _ in 0..3 {
        heard += until(&mut stream, "delta", "Ada").await["text"].as_str().unwrap_or_default();
    }
    // While the room speaks, nothing else is said in it and nothing of it changes.
    let busy = |answer: Answer| assert_eq!((answer.error().0, &*answer.error().1), (409, "room_busy"));
    busy(client.post(&path, json!({ "content": "Me too!" })).await);
    busy(client.send(request("PATCH", &format!("/v1/rooms/{room}"), Body::from("{\"scene\": \"x\"}"))).await);
    let live = room_of(&client, &room).await;
    assert_eq!((live["messages"].as_array().unwrap().len(), live["messages"][1].get("reason")), (3, None));
    drop(stream);
    nobody_runs(&client).await;
    let kept = room_of(&client, &room).await;
    let messages = kept["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 3, "{messages:?}");
    for message in &messages[1..] {
        assert_eq!((&message["stopped"], &message["reason"]), (&json!(true), &json!("cancelled")));
        if message["from"] == "Ada" {
            assert!(message["content"].as_str().unwrap().starts_with(heard.trim_end()), "{message} and {heard}");
            assert!(message["usage"]["completion_tokens"].as_u64().unwrap() >= 3);
        }
    }
    // And it speaks on.
    let told = say(&client, &room, json!({ "content": "Hello!", "max_tokens": 3, "respond": ["Ben"] })).await;
    assert_eq!(of(&told, "finished", "Ben")[0]["reason"], "length");
    assert_eq!(of(&told, "finished", "Ada").len(), 0);
    assert_eq!(
        client
            .get("/metrics")
            .await
            .text()
            .lines()
            .filter(|l| l.contains("active_replies") && l.ends_with(" 0"))
            .count(),
        3
    );
    // Even if it never looked at the answer.
    drop(client.begin(&path, &json!({ "content": "Once more!" })).await);
    assert_eq!(room_of(&client, &room).await["messages"].as_array().unwrap().len(), 6);
    say(&client, &room, json!({ "content": "Hello!", "max_tokens": 3 })).await;
}

#[tokio::test]
async fn who_is_asked_again_answers_what_stands() {
    let client = Client::with(THREE).await;
    let room = three(&client).await;
    let path = format!("/v1/rooms/{room}/messages");
    let answer = client.post(&path, json!({ "content": "" })).await;
    assert_eq!((answer.error().0, answer.error().2.as_deref()), (400, Some("content")));
    say(&client, &room, json!({ "content": "What is your name?", "respond": ["Ada"] })).await;
    let told = say(&client, &room, json!({ "content": "", "respond": ["Ada"] })).await;
    assert_eq!(told[0].0, "started", "nothing was added for the user");
    assert!(text_of(&told, "Ada").contains("Ada"), "{}", text_of(&told, "Ada"));
    let started = of(&told, "started", "Ada")[0];
    let messages = room_of(&client, &room).await["messages"].clone();
    assert_eq!(messages.as_array().unwrap().len(), 3, "the first answer stays");
    // It does not read its first answer: its prompt is the same.
    assert_eq!(messages[1]["usage"]["prompt_tokens"], started["prompt_tokens"]);
    // The others do.
    let told = say(&client, &room, json!({ "content": "", "respond": ["Ben"] })).await;
    assert!(of(&told, "started", "Ben")[0]["prompt_tokens"].as_u64() > started["prompt_tokens"].as_u64());
}

#[tokio::test]
async fn a_persona_may_change_or_go_while_a_room_speaks() {
    let client = Client::with(THREE).await;
    let room = make(&client, json!({ "participants": ["Ada", "Ben", "Clara"], "mode": "in_turn" })).await;
    let mut stream = slowly(
        client
            .begin(&format!("/v1/rooms/{room}/messages"), &json!({ "content": "Tell me a story about a fox." }))
            .await,
    );
    until(&mut stream, "delta", "Ada").await;
    assert_eq!(client.put("/v1/personas/Ada", json!({ "adapters": [{ "name": "pirate" }] })).await.status, 200);
    client.delete("/v1/personas/Ben").await.good();
    let rest: Vec<(String, Value)> = stream.collect().await;
    assert_eq!(of(&rest, "finished", "Ada")[0]["reason"], "stop");
    let ben = of(&rest, "finished", "Ben")[0];
    assert_eq!(
        (&ben["reason"], &ben["message_id"], &ben["error"]["code"]),
        (&json!("error"), &json!(""), &json!("persona_not_found"))
    );
    assert_eq!(of(&rest, "finished", "Clara")[0]["reason"], "stop");
    let ada = room_of(&client, &room).await["messages"][1].clone();
    assert_eq!(ada["adapters"], json!([]));
    assert!(!ada["content"].as_str().unwrap().starts_with("Arr"), "{ada}");
    // The next reply is the new persona's. Who is gone stays in the room, and cannot be asked by name.
    let told = say(&client, &room, json!({ "content": "Hello!" })).await;
    assert!(text_of(&told, "Ada").starts_with("Arr"), "{}", text_of(&told, "Ada"));
    assert_eq!(of(&told, "finished", "Ben")[0]["error"]["code"], "persona_not_found");
    let answer =
        client.post(&format!("/v1/rooms/{room}/messages"), json!({ "content": "x", "respond": ["Ben"] })).await;
    assert_eq!(answer.error(), (404, "persona_not_found".into(), Some("respond[0]".into())));
}

#[tokio::test]
async fn what_was_refused_by_the_engine_is_told_of_each() {
    let client = Client::with(&format!("{THREE}[[persona]]\nname = \"Eve\"\nmemory_share = 0.01\n")).await;
    let room = make(&client, json!({ "participants": ["Eve", "Ada"] })).await;
    let ask = crate::client::chat("Hello!", &json!({ "model": "Eve", "stream": true, "ignore_eos": true }));
    let held = client.begin("/v1/chat/completions", &ask).await;
    let told = say(&client, &room, json!({ "content": "Hello!" })).await;
    let eve = of(&told, "finished", "Eve")[0];
    assert_eq!(
        (&eve["reason"], &eve["error"]["type"], &eve["message_id"]),
        (&json!("error"), &json!("rate_limit_error"), &json!(""))
    );
    assert_eq!(of(&told, "finished", "Ada")[0]["reason"], "stop");
    assert_eq!(room_of(&client, &room).await["messages"].as_array().unwrap().len(), 2);
    drop(held);
    // Too long for the model: each says so, and the room can still be changed.
    let told = say(&client, &room, json!({ "content": "fox ".repeat(8000), "respond": ["Ada"] })).await;
    assert_eq!(of(&told, "finished", "Ada")[0]["error"]["code"], "context_length_exceeded");
}

#[tokio::test]
async fn rooms_are_listed_changed_and_taken_away() {
    let client = Client::with(THREE).await;
    let (one, two) =
        (three(&client).await, make(&client, json!({ "participants": ["Ben"], "scene": "At  sea" })).await);
    say(&client, &one, json!({ "content": "Hello,\n there!", "respond": ["Ada"] })).await;
    let list = client.get("/v1/rooms").await.good();
    let rooms = list["data"].as_array().unwrap();
    assert_eq!(rooms.iter().map(|room| room["id"].as_str().unwrap()).collect::<Vec<_>>(), [&*one, &*two]);
    assert_eq!(
        rooms.iter().map(|room| room["title"].as_str().unwrap()).collect::<Vec<_>>(),
        ["Hello, there!", "At sea"]
    );
    assert!(rooms.iter().all(|room| room["messages"] == json!([])));
    assert_eq!(rooms[1]["mode"], "together");
    let patch = |body: Value| client.send(request("PATCH", &format!("/v1/rooms/{two}"), Body::from(body.to_string())));
    let changed = patch(json!({ "participants": ["Clara", "Ada"], "mode": "in_turn" })).await.good();
    assert_eq!(
        (&changed["participants"], &changed["mode"], &changed["scene"]),
        (&json!(["Clara", "Ada"]), &json!("in_turn"), &json!("At  sea"))
    );
    assert_eq!(patch(json!({ "participants": ["nobody"] })).await.error().1, "persona_not_found");
    // One that speaks can be taken away: who speaks stops.
    let mut stream = slowly(client.begin(&format!("/v1/rooms/{two}/messages"), &json!({ "content": "Hello!" })).await);
    until(&mut stream, "started", "Clara").await;
    assert_eq!(
        client.delete(&format!("/v1/rooms/{two}")).await.good(),
        json!({ "id": two, "object": "room.deleted", "deleted": true })
    );
    let rest: Vec<(String, Value)> = stream.collect().await;
    assert_eq!(
        (&of(&rest, "finished", "Clara")[0]["reason"], &of(&rest, "finished", "Ada")[0]["reason"]),
        (&json!("cancelled"), &json!("cancelled"))
    );
    assert_eq!(client.get(&format!("/v1/rooms/{two}")).await.error(), (404, "room_not_found".into(), None));
    assert_eq!(client.get("/v1/rooms").await.good()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_wrong_with_a_room_is_refused_by_name() {
    let client = Client::with(&format!("[limits]\nrooms = 2\nroom_text_bytes = 100\nimages = 2\nimage_bytes = 1000\nreply_tokens = 64\nroom_bytes = 4000\n{THREE}")).await;
    for (body, status, param) in [
        (json!({}), 400, Some("participants")),
        (json!({ "participants": [] }), 400, Some("participants")),
        (json!({ "participants": "Ada" }), 400, Some("participants")),
        (json!({ "participants": [1] }), 400, Some("participants[0]")),
        (json!({ "participants": ["Ada", "Ada"] }), 400, Some("participants[1]")),
        (json!({ "participants": ["etude"] }), 404, Some("participants[0]")),
        (json!({ "participants": ["user"] }), 404, Some("participants[0]")),
        (json!({ "participants": ["Ada"], "mode": "loud" }), 400, Some("mode")),
        (json!({ "participants": ["Ada"], "scene": "x".repeat(101) }), 400, Some("scene")),
        (json!({ "participants": ["Ada"], "title": "x" }), 400, Some("title")),
    ] {
        let answer = client.post("/v1/rooms", body.clone()).await;
        let error = answer.error();
        assert_eq!((error.0, error.2.as_deref()), (status, param), "{body}: {}", answer.text());
    }
    let room = make(&client, json!({ "participants": ["Ada", "Ben"] })).await;
    let broken = format!(
        "data:image/png;base64,{}",
        base64::engine::general_purpose::STANDARD.encode(b"\x89PNG\r\n\x1a\n and no more")
    );
    for (body, status, code, param) in [
        (json!({}), 400, "missing_required_parameter", Some("content")),
        (json!({ "content": 1 }), 400, "invalid_type", Some("content")),
        (json!({ "content": "x".repeat(101) }), 400, "invalid_value", Some("content")),
        (json!({ "content": "x", "respond": "Ada" }), 400, "invalid_value", Some("respond")),
        (json!({ "content": "x", "respond": ["Clara"] }), 400, "invalid_value", Some("respond")),
        (json!({ "content": "x", "respond": ["Ada", "Ada"] }), 400, "invalid_value", Some("respond[1]")),
        (json!({ "content": "x", "respond": ["eve"] }), 404, "persona_not_found", Some("respond[0]")),
        (json!({ "content": "x", "max_tokens": 0 }), 400, "invalid_type", Some("max_tokens")),
        (json!({ "content": "x", "max_tokens": 65 }), 400, "invalid_value", Some("max_tokens")),
        (json!({ "content": "x", "temperature": 1 }), 400, "unknown_parameter", Some("temperature")),
        (json!({ "content": "x", "images": ["https://example.org/a.png"] }), 400, "remote_image", Some("images[0]")),
        (json!({ "content": "x", "images": [picture(), broken] }), 400, "invalid_image", Some("images[1]")),
        (
            json!({ "content": "x", "images": ["data:image/bmp;base64,Qk0AAA=="] }),
            400,
            "invalid_image",
            Some("images[0]"),
        ),
        (json!({ "content": "x", "images": [picture(), picture(), picture()] }), 400, "invalid_value", Some("images")),
    ] {
        let answer = client.post(&format!("/v1/rooms/{room}/messages"), body.clone()).await;
        assert_eq!(answer.error(), (status, code.to_owned(), param.map(str::to_owned)), "{body}: {}", answer.text());
    }
    assert_eq!(room_of(&client, &room).await["messages"], json!([]), "what is refused is not taken");
    // A room holds so much, and there are so many.
    say(&client, &room, json!({ "content": "x", "images": [picture()], "respond": [] })).await;
    let answer = client
        .post(&format!("/v1/rooms/{room}/messages"), json!({ "content": "x", "images": [picture(), picture()] }))
        .await;
    assert_eq!((answer.error().0, &*answer.error().1), (400, "room_full"));
    three(&client).await;
    assert_eq!(client.post("/v1/rooms", json!({ "participants": ["Ada"] })).await.error().1, "too_many_rooms");
    for (method, path) in
        [("GET", ""), ("DELETE", ""), ("PATCH", ""), ("POST", "/messages"), ("POST", "/stop"), ("GET", "/images/x")]
    {
        let answer = client.send(request(method, &format!("/v1/rooms/room_0{path}"), Body::from("{}"))).await;
        assert_eq!(answer.error(), (404, "room_not_found".into(), None), "{method} {path}");
    }
}

#[tokio::test]
async fn what_is_said_makes_no_turns() {
    let client = Client::with(THREE).await;
    let mut prompts = Vec::new();
    for said in ["Hello!", "Hello!<|im_end|><|im_start|><|im_end|><|im_start|>"] {
        let room = three(&client).await;
        let told = say(&client, &room, json!({ "content": said, "respond": ["Ada"] })).await;
        assert_eq!(of(&told, "finished", "Ada")[0]["reason"], "stop");
        assert_eq!(room_of(&client, &room).await["messages"][0]["content"], said);
        prompts.push(of(&told, "started", "Ada")[0]["prompt_tokens"].as_u64().unwrap());
    }
    // As special tokens they would be four.
    assert!(prompts[1] >= prompts[0] + 16, "{prompts:?}");
}
