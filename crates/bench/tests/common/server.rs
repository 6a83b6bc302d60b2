//! A small OpenAI-compatible server that replays streams, whole or broken.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// How the server answers a chat request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should: one token an event.
    Well,
    /// Two tokens an event.
    TwoAtOnce,
    /// Without a usage.
    NoUsage,
    /// The connection ends in the middle.
    Cut,
    /// The connection ends in the middle of a chunk.
    CutChunk,
    /// `[DONE]` comes without a finish reason.
    DoneWithoutFinish,
    /// An error stands in the stream.
    ErrorEvent,
    /// An event is no JSON.
    Garbage,
    /// 503.
    Busy,
    /// 400.
    Refused,
    /// It never ends: until the reader goes.
    Endless,
}

/// What was seen of the requests.
#[derive(Debug, Default)]
pub struct Seen {
    /// The bodies of chat requests.
    pub bodies: Vec<Value>,
    /// Streams whose reader went before their end.
    pub abandoned: usize,
}

pub struct Server {
    pub url: String,
    pub seen: Arc<Mutex<Seen>>,
}

impl Server {
    /// On a free port, until the process ends.
    pub fn start(manner: Manner) -> Self {
        Self::on(TcpListener::bind(("127.0.0.1", 0)).unwrap(), manner)
    }

    pub fn on(listener: TcpListener, manner: Manner) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&shared);
                std::thread::spawn(move || serve(&stream, manner, &seen));
            }
        });
        Self { url, seen }
    }
}

fn serve(stream: &TcpStream, manner: Manner, seen: &Mutex<Seen>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some((path, body)) = request(&mut reader) {
        let keep = answer(stream, manner, &path, &body, seen);
        if !keep {
            drop(stream.shutdown(std::net::Shutdown::Both));
            return;
        }
    }
}

fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut length, mut chunked) = (0, false);
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let header = line.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        chunked |= header == "transfer-encoding: chunked";
    }
    assert!(!chunked, "requests say how long they are");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}

fn plain(mut stream: &TcpStream, status: &str, body: &str) -> bool {
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).is_ok()
}

fn answer(mut stream: &TcpStream, manner: Manner, path: &str, body: &[u8], seen: &Mutex<Seen>) -> bool {
    match path {
        "/health" => plain(stream, "200 OK", r#"{"status":"ok"}"#),
        "/v1/models" => plain(stream, "200 OK", r#"{"data":[{"id":"/models/replayed.gguf","owned_by":"replay"}]}"#),
        "/props" => plain(stream, "200 OK", r#"{"build_info":"b1"}"#),
        "/v1/chat/completions" => {
            let body: Value = serde_json::from_slice(body).unwrap();
            let tokens = body["max_tokens"].as_u64().unwrap();
            seen.lock().unwrap().bodies.push(body);
            match manner {
                Manner::Busy => return plain(stream, "503 Service Unavailable", r#"{"error":{"message":"loading"}}"#),
                Manner::Refused => return plain(stream, "400 Bad Request", r#"{"error":{"message":"no such model"}}"#),
                _ => {}
            }
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".as_bytes();
            if stream.write_all(head).is_err() {
                return false;
            }
            let mut said = 0;
            let all = events(manner, tokens);
            for event in &all {
                std::thread::sleep(Duration::from_millis(2));
                if chunk(stream, event).is_err() {
                    seen.lock().unwrap().abandoned += 1;
                    return false;
                }
                said += 1;
            }
            if manner == Manner::Endless {
                while chunk(stream, &delta("x")).is_ok() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                seen.lock().unwrap().abandoned += 1;
                return false;
            }
            assert_eq!(said, all.len());
            match manner {
                Manner::Cut => stream.write_all(b"0\r\n\r\n").is_ok(),
                Manner::CutChunk => {
                    drop(stream.write_all(b"ff\r\ndata: {\"cho"));
                    false
                }
                _ => stream.write_all(b"0\r\n\r\n").is_ok(),
            }
        }
        _ => plain(stream, "404 Not Found", "{}"),
    }
}

fn chunk(mut stream: &TcpStream, data: &str) -> std::io::Result<()> {
    let event = format!("data: {data}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
}

fn delta(text: &str) -> String {
    json!({ "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": null }] }).to_string()
}

/// As llama-server sends them: a role first, then text, then a finish reason, then a usage.
fn events(manner: Manner, tokens: u64) -> Vec<String> {
    let mut events = vec![
        json!({ "choices": [{ "delta": { "role": "assistant", "content": null }, "finish_reason": null }] })
            .to_string(),
    ];
    let texts = if manner == Manner::TwoAtOnce { tokens / 2 } else { tokens };
    events.extend((0..texts).map(|index| delta(&format!(" {index}"))));
    let finish = json!({ "choices": [{ "delta": {}, "finish_reason": "length" }] }).to_string();
    let usage = json!({
        "choices": [],
        "usage": { "prompt_tokens": 40, "completion_tokens": tokens, "prompt_tokens_details": { "cached_tokens": 30 } },
    });
    match manner {
        Manner::Cut | Manner::CutChunk | Manner::Endless => {}
        Manner::DoneWithoutFinish => events.push("[DONE]".into()),
        Manner::ErrorEvent => events.push(json!({ "error": { "message": "out of memory" } }).to_string()),
        Manner::Garbage => events.push("{ no".into()),
        Manner::NoUsage => events.extend([finish, "[DONE]".into()]),
        _ => events.extend([finish, usage.to_string(), "[DONE]".into()]),
    }
    events
}
