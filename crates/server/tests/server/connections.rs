//! Real connections: listening, and the end of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use consort_core::ErrorKind;
use consort_server::{Keys, Listen, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::client::{Client, chat};

struct Running {
    client: Client,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
}

async fn running(config: &str) -> Running {
    let client = Client::with(config).await;
    let listen = Listen { tcp: Some(SocketAddr::from(([127, 0, 0, 1], 0))), socket: None };
    let server = Server::bind(client.app.clone(), &listen).await.unwrap();
    let address = server.address().unwrap();
    let (stop, stopped) = oneshot::channel();
    let done = tokio::spawn(server.run_until(async move { drop(stopped.await) }));
    Running { client, address, stop, done }
}

fn head(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// Reads until some text has come.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut answer = String::new();
    let mut buffer = [0; 4096];
    while !answer.contains(text) {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the stream ended: {answer}");
        answer.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    answer
}

/// What the events of a raw answer say, and the last finish reason.
fn said(answer: &str) -> (String, Option<String>) {
    let events = answer.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let (mut text, mut reason) = (String::new(), None);
    for event in events {
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        reason = event["choices"][0]["finish_reason"].as_str().map(str::to_owned).or(reason);
    }
    (text, reason)
}

fn story(more: &Value) -> String {
    head("POST", "/v1/chat/completions", &chat("Tell me a story about a fox.", more).to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_over_tcp() {
    let server = running("").await;
    let answer = exchange(TcpStream::connect(server.address).await.unwrap(), &head("GET", "/health", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("{\"status\":\"ok\"}"), "{answer}");
    assert!(answer.contains("content-length: 15\r\n"), "{answer}");
    let foreign = head("GET", "/v1/models", "").replace("localhost", "evil.example");
    let answer = exchange(TcpStream::connect(server.address).await.unwrap(), &foreign).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let answer = exchange(TcpStream::connect(server.address).await.unwrap(), "what is this\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    server.stop.send(()).unwrap();
    server.done.await.unwrap();
    TcpStream::connect(server.address).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_run_end_before_the_server_does() {
    let server = running("").await;
    let whole = server.client.chat("Tell me a story about a fox.", json!({})).await.good();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(story(&json!({ "stream": true })).as_bytes()).await.unwrap();
    let mut answer = read_until(&mut stream, "data: ").await;
    server.stop.send(()).unwrap();
    stream.read_to_string(&mut answer).await.unwrap();
    let (text, reason) = said(&answer);
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert_eq!(reason.as_deref(), Some("stop"));
    assert!(answer.contains("data: [DONE]\n\n"), "{answer}");
    server.done.await.unwrap();
    let ready = server.client.get("/ready").await;
    assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("draining")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_ends_with_what_it_has() {
    let server = running("[server]\ndrain_seconds = 0\n").await;
    let long = json!({ "stream": true, "ignore_eos": true, "stream_options": { "include_usage": true } });
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(story(&long).as_bytes()).await.unwrap();
    let mut answer = read_until(&mut stream, "\"content\":\"").await;
    // One that is sent whole waits as well.
    let plain = tokio::spawn(exchange(
        TcpStream::connect(server.address).await.unwrap(),
        Box::leak(story(&json!({ "ignore_eos": true })).into_boxed_str()),
    ));
    while server.client.backend.metrics().running < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    server.stop.send(()).unwrap();
    stream.read_to_string(&mut answer).await.unwrap();
    let (text, reason) = said(&answer);
    assert_eq!(reason.as_deref(), Some("length"));
    assert!(!text.is_empty() && answer.contains("data: [DONE]\n\n"), "{answer}");
    // No token that was generated is lost: the usage counts those that were sent.
    let usage = answer.rsplit("\"usage\":").next().unwrap();
    assert!(usage.contains("\"completion_tokens\":"), "{answer}");
    let plain = plain.await.unwrap();
    assert!(plain.starts_with("HTTP/1.1 200 ") && plain.contains("\"finish_reason\":\"length\""), "{plain}");
    server.done.await.unwrap();
    let begun = Instant::now();
    while server.client.backend.metrics().running > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_is_cut_ends_with_what_it_has() {
    let persona = |name: &str| {
        format!("[[persona]]\nname = \"{name}\"\nthinking = false\nsampling = {{ temperature = 50, seed = 6 }}\n")
    };
    let server = running(&format!("[server]\ndrain_seconds = 0\n{}{}", persona("ada"), persona("ben"))).await;
    let room = json!({ "participants": ["ada", "ben"], "mode": "in_turn" });
    let room = server.client.post("/v1/rooms", room).await.json()["id"].as_str().unwrap().to_owned();
    let say = head("POST", &format!("/v1/rooms/{room}/messages"), "{\"content\":\"Tell me a story.\"}");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(say.as_bytes()).await.unwrap();
    let mut answer = read_until(&mut stream, "event: delta").await;
    server.stop.send(()).unwrap();
    stream.read_to_string(&mut answer).await.unwrap();
    let ended: Vec<Value> = answer
        .split("event: finished\ndata: ")
        .skip(1)
        .map(|rest| serde_json::from_str(rest.split('\n').next().unwrap()).unwrap())
        .collect();
    let of = |ended: &Value| (ended["persona"].clone(), ended["reason"].clone());
    assert_eq!(of(&ended[0]), (json!("ada"), json!("cancelled")));
    assert_eq!((of(&ended[1]), &ended[1]["message_id"]), ((json!("ben"), json!("cancelled")), &json!("")));
    assert!(answer.contains("event: done\ndata: {}\n\n"), "{answer}");
    server.done.await.unwrap();
    let kept = server.client.get(&format!("/v1/rooms/{room}")).await.good();
    assert_eq!((&kept["messages"][1]["stopped"], kept["messages"].as_array().unwrap().len()), (&json!(true), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_frees_its_sequence_whether_it_streams_or_waits() {
    let server = running("").await;
    for streamed in [true, false] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let ask = story(&json!({ "stream": streamed, "ignore_eos": true })).replace("Connection: close\r\n", "");
        stream.write_all(ask.as_bytes()).await.unwrap();
        while server.client.backend.metrics().running == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(stream);
        let begun = Instant::now();
        while server.client.backend.metrics().running > 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "streamed: {streamed}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let metrics = server.client.backend.metrics();
    assert_eq!((metrics.cancelled, metrics.finished), (2, 0), "the replies were not read to their ends");
    server.stop.send(()).unwrap();
    server.done.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_not_waited_for() {
    let server = running("[limits]\nhead_seconds = 1\n").await;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: ").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    server.stop.send(()).unwrap();
    server.done.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait() {
    let server = running("[limits]\nconnections = 1\n").await;
    let held = TcpStream::connect(server.address).await.unwrap();
    let second = TcpStream::connect(server.address).await.unwrap();
    let waiting = tokio::spawn(async move { exchange(second, &head("GET", "/health", "")).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    drop(held);
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200 "));
    server.stop.send(()).unwrap();
    server.done.await.unwrap();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn the_same_is_answered_over_a_socket() {
    use tokio::net::UnixStream;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("consort.sock");
    let client = Client::new().await;
    let listen = Listen { tcp: None, socket: Some(path.clone()) };
    let server = Server::bind(client.app.clone(), &listen).await.unwrap();
    assert_eq!(server.address(), None);
    let (stop, stopped) = oneshot::channel::<()>();
    let done = tokio::spawn(server.run_until(async move { drop(stopped.await) }));
    let answer = exchange(UnixStream::connect(&path).await.unwrap(), &story(&json!({ "stream": true }))).await;
    let whole = client.chat("Tell me a story about a fox.", json!({})).await.good();
    assert_eq!(said(&answer).0, whole["choices"][0]["message"]["content"].as_str().unwrap());
    let page = exchange(UnixStream::connect(&path).await.unwrap(), &head("GET", "/", "")).await;
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("<title>Consort</title>"), "{page}");
    stop.send(()).unwrap();
    done.await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn beyond_this_machine_a_key_is_demanded() {
    let everywhere = Listen { tcp: Some(SocketAddr::from(([0, 0, 0, 0], 0))), socket: None };
    let client = Client::new().await;
    let error = Server::bind(client.app.clone(), &everywhere).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("api_key_env"), "{error}");
    assert_eq!(Server::bind(client.app, &Listen::default()).await.unwrap_err().kind(), ErrorKind::InvalidConfig);
    let anyone = Client::with("[server]\nallow_anyone = true\n").await;
    Server::bind(anyone.app, &everywhere).await.unwrap();
    let keyed = Client::with_keys("", Keys::new(["open-sesame"]).unwrap()).await;
    Server::bind(keyed.app, &everywhere).await.unwrap();
}
