//! Who answers in the tests, and what is asked.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use consort_batch::{
    Answer, Batch, End, Fault, Figures, Files, Input, Meter, Place, Request, RetryPolicy, Rules, RunSettings, Start,
    Target,
};
use consort_core::{BoxFuture, Result};
use serde_json::{Value, json};

/// Answers as a function says.
pub struct Fake<F> {
    pub place: Place,
    pub reply: F,
}

impl<F, R> Target for Fake<F>
where
    F: Fn(Request) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Answer, Fault>> + Send + 'static,
{
    fn place(&self) -> Place {
        self.place
    }

    fn ask<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Answer, Fault>> {
        Box::pin((self.reply)(request.clone()))
    }
}

/// A model in this process that answers as a function says.
pub fn here<F, R>(reply: F) -> Arc<Fake<F>>
where
    F: Fn(Request) -> R + Send + Sync + 'static,
{
    Arc::new(Fake { place: Place::Here, reply })
}

/// A good answer that repeats what was asked; a body with `fail` is answered with that status.
pub fn echo(request: &Request) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let status = body["fail"].as_u64().unwrap_or(200) as u16;
    let said = if status == 200 {
        json!({ "said": body, "usage": { "prompt_tokens": 2, "completion_tokens": 3 } })
    } else {
        json!({ "error": { "code": "invalid_value", "message": "no" } })
    };
    Answer { status, request_id: Some("req_x".into()), body: said.to_string().into_bytes(), ..Answer::default() }
}

pub fn line(custom_id: &str, body: &Value) -> String {
    json!({ "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body }).to_string() + "\n"
}

pub fn files(folder: &Path, input: &str) -> Files {
    let path = folder.join("in.jsonl");
    std::fs::write(&path, input).unwrap();
    Files { input: Input::File(path), output: folder.join("out.jsonl"), errors: folder.join("errors.jsonl") }
}

/// Retries without waiting.
pub fn settings(in_flight: usize) -> RunSettings {
    let retry = RetryPolicy {
        attempts: 4,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(4),
        budget: None,
    };
    RunSettings { retry, ..RunSettings::new(in_flight) }
}

pub async fn run(files: &Files, target: Arc<dyn Target>, settings: &RunSettings) -> Result<(End, Figures)> {
    run_until(files, target, settings, std::future::pending()).await
}

pub async fn run_until(
    files: &Files,
    target: Arc<dyn Target>,
    settings: &RunSettings,
    stop: impl Future<Output = ()>,
) -> Result<(End, Figures)> {
    let batch = Batch::open(files, Start::Resume, Rules::model(1 << 20))?;
    let meter = Arc::new(Meter::of(&batch));
    let end = consort_batch::run(batch, target, settings, &meter, stop).await?;
    Ok((end, meter.figures()))
}

/// The lines of a file. Nothing where there is none.
pub fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn ids(path: &Path) -> Vec<String> {
    read(path).iter().map(|line| line["custom_id"].as_str().unwrap_or("-").to_owned()).collect()
}

/// What a server is asked.
pub struct Asked {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

/// A server that says what a function says: a status, headers and a body; `None` closes the connection.
pub fn serve<F>(reply: F) -> SocketAddr
where
    F: Fn(&Asked) -> Option<(u16, &'static str, String)> + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let reply = Arc::new(reply);
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let reply = Arc::clone(&reply);
            std::thread::spawn(move || converse(&stream, &*reply));
        }
    });
    address
}

fn converse(stream: &TcpStream, reply: &impl Fn(&Asked) -> Option<(u16, &'static str, String)>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let path = line.split(' ').nth(1)?.to_owned();
        let (mut headers, mut length) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().ok()?;
            }
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let asked = Asked { path, headers, body: serde_json::from_slice(&body).ok()? };
        let (status, headers, body) = reply(&asked)?;
        let length = body.len();
        let mut stream = stream;
        stream
            .write_all(format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}").as_bytes())
            .ok()?;
    }
}
