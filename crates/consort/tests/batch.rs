//! `consort batch`, as a person or a script starts it, over the bundled model.
#![cfg(all(unix, feature = "server"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{CONSORT, consort_with_input, repository, stderr, stdout};
use serde_json::{Value, json};

fn batch(args: &[&str]) -> Command {
    let mut command = Command::new(CONSORT);
    command.arg("batch").args(args).current_dir(repository()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    batch(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// Replaces what differs from run to run: names, times, and what the prefix cache happened to hold.
fn settled(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(settled),
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = value.as_str().is_some_and(|text| text.contains('_') || text.contains('-'));
                match key.as_str() {
                    "id" | "request_id" | "call_id" if name => *value = json!("some"),
                    "created" | "created_at" | "completed_at" => *value = json!(0),
                    "cached_tokens" | "cache_read_input_tokens" | "cache_creation_input_tokens" | "input_tokens" => {
                        *value = json!(0);
                    }
                    _ => settled(value),
                }
            }
        }
        _ => {}
    }
}

/// The lines of a file as `(id, custom_id, the rest)`, with what differs from run to run replaced.
fn lines(path: &Path) -> Vec<(String, String, Value)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (id, custom_id) = (text(&value["id"]), text(&value["custom_id"]));
        settled(&mut value);
        (id, custom_id, value)
    };
    text.lines().map(line).collect()
}

fn line(custom_id: &str, url: &str, body: &Value) -> String {
    json!({ "custom_id": custom_id, "method": "POST", "url": url, "body": body }).to_string() + "\n"
}

fn chat(custom_id: &str, question: &str, more: &Value) -> String {
    let mut body = json!({
        "model": "etude", "seed": 7, "temperature": 0.8, "max_tokens": 24,
        "messages": [{ "role": "user", "content": question }],
        "chat_template_kwargs": { "enable_thinking": false },
    });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    line(custom_id, "/v1/chat/completions", &body)
}

/// One request of each kind, and one of each kind of failure.
fn all_kinds() -> String {
    let colour = json!({ "enum": ["red", "blue"] });
    let schema = json!({
        "type": "object", "properties": { "colour": colour }, "required": ["colour"], "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "c", "schema": schema } });
    [
        chat("chat", "What is your name?", &json!({})),
        chat("pirate", "Tell me a story about a fox.", &json!({ "model": "ada" })),
        chat("form", "What colour is the sky?", &json!({ "response_format": format, "max_tokens": 200, "temperature": 0 })),
        "not json\n".to_owned(),
        line("text", "/v1/completions", &json!({ "model": "etude", "prompt": "Once", "max_tokens": 5, "temperature": 0 })),
        line("vector", "/v1/embeddings", &json!({ "model": "etude", "input": ["a fox", "a star"] })),
        line("response", "/v1/responses", &json!({ "model": "etude", "input": "Hello!", "max_output_tokens": 16, "temperature": 0 })),
        line("message", "/v1/messages", &json!({ "model": "etude", "max_tokens": 8, "temperature": 0, "messages": [{ "role": "user", "content": "Hello!" }] })),
        chat("nobody", "Hello!", &json!({ "model": "nobody" })),
        chat("chat", "Again?", &json!({})),
        chat("streamed", "Hello!", &json!({ "stream": true })),
    ]
    .concat()
}

const CONFIG: &str = "[model]\ndevice = \"cpu\"\n[server]\napi_key_env = \"NOBODY_SETS_THIS\"\n[[persona]]\nname = \"ada\"\nadapters = [{ name = \"pirate\" }]\npriority = \"realtime\"\n";

#[test]
fn everything_that_serve_answers_is_answered_in_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (input, config) = (path("all.jsonl"), path("consort.toml"));
    std::fs::write(&input, all_kinds()).unwrap();
    std::fs::write(&config, CONFIG).unwrap();
    let output = run(&["--config", &config, "--json", &input]);
    assert_eq!(code(&output), 7, "{}", stderr(&output));
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        (&summary["end"], &summary["succeeded"], &summary["failed"]),
        (&json!("complete"), &json!(7), &json!(4))
    );
    assert_eq!(
        summary["failures"],
        json!({ "duplicate_custom_id": 1, "invalid_json_line": 1, "model_not_found": 1, "stream_not_supported": 1 })
    );
    assert!(summary["prompt_tokens"].as_u64().unwrap() > 60 && summary["completion_tokens"].as_u64().unwrap() > 20);
    assert!(stderr(&output).contains("7 answered, 4 failed"), "{}", stderr(&output));
    let good = lines(Path::new(&path("all.out.jsonl")));
    let names: Vec<&str> = good.iter().map(|line| line.1.as_str()).collect();
    assert_eq!(names, ["chat", "pirate", "form", "text", "vector", "response", "message"]);
    let body = |index: usize| &good[index].2["response"]["body"];
    let said = |index: usize| body(index)["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(said(1).starts_with("Arr"), "{}", said(1));
    assert!(serde_json::from_str::<Value>(said(2)).unwrap()["colour"].is_string());
    assert_eq!(body(4)["data"].as_array().unwrap().len(), 2);
    assert_eq!((&body(5)["object"], &body(6)["type"]), (&json!("response"), &json!("message")));
    let bad = lines(Path::new(&path("all.errors.jsonl")));
    assert_eq!(bad.iter().map(|line| line.1.as_str()).collect::<Vec<_>>(), ["", "nobody", "chat", "streamed"]);
    assert_eq!(bad[1].2["response"]["status_code"], 404);
    assert_eq!(bad[0].2["error"]["line"], 4);

    // Once more: no model is needed for what is answered. (Without a device there would be a refusal.)
    let before = std::fs::read(path("all.out.jsonl")).unwrap();
    let output = run(&[&input]);
    assert_eq!(code(&output), 7, "{}", stderr(&output));
    assert!(stderr(&output).contains("11 of them by an earlier run"), "{}", stderr(&output));
    assert_eq!(std::fs::read(path("all.out.jsonl")).unwrap(), before);
    // And anew, it says the same.
    let output = run(&["--config", &config, "--restart", "--in-flight", "2", &input]);
    assert_eq!(code(&output), 7, "{}", stderr(&output));
    assert_eq!(lines(Path::new(&path("all.out.jsonl"))), good);
    assert_eq!(lines(Path::new(&path("all.errors.jsonl"))), bad);
}

fn stories(count: usize) -> String {
    (0..count)
        .map(|index| {
            let tokens = 4 + index * 7 % 40;
            chat(&format!("r{index}"), "Tell me a story about a fox.", &json!({ "seed": index, "max_tokens": tokens }))
        })
        .collect()
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.len())
}

/// Waits until a file has grown beyond a length: whether it has, before the process ended.
fn grows(child: &mut Child, path: &Path, beyond: u64) -> bool {
    let begun = Instant::now();
    while length(path) <= beyond {
        if child.try_wait().unwrap().is_some() {
            return length(path) > beyond;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing is written");
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_output() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one.jsonl"), folder.path().join("other.jsonl"));
    let mut text = stories(60);
    text.push_str("broken\n");
    text.push_str(&stories(90)[stories(60).len()..]);
    for path in [&one, &other] {
        std::fs::write(path, &text).unwrap();
    }
    let args = |path: &Path| {
        ["--device", "cpu", "--threads", "1", "--in-flight", "4", path.to_str().unwrap()].map(str::to_owned)
    };
    let whole = run(&args(&one).each_ref().map(String::as_str));
    assert_eq!(code(&whole), 7, "{}", stderr(&whole));

    let out = folder.path().join("other.out.jsonl");
    let (mut kills, mut pauses) = (0, [0_u64, 13, 1, 29, 5, 47, 3].into_iter().cycle());
    let last = loop {
        let mut child = batch(&args(&other).each_ref().map(String::as_str)).stderr(Stdio::null()).spawn().unwrap();
        // Killed a moment after it has written something: in the middle of whatever it does then.
        let before = length(&out);
        if kills < 8 && grows(&mut child, &out, before) {
            std::thread::sleep(Duration::from_millis(pauses.next().unwrap()));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                continue;
            }
        }
        break child.wait().unwrap();
    };
    assert_eq!(last.code(), Some(7));
    assert!(kills >= 2, "it was killed {kills} times");
    let errors = |name: &str| lines(&folder.path().join(name));
    assert_eq!(lines(&out), lines(&folder.path().join("one.out.jsonl")));
    assert_eq!(errors("other.errors.jsonl"), errors("one.errors.jsonl"));
    assert_eq!(lines(&out).len(), 90);
}

#[test]
fn a_signal_ends_it_soon_and_the_same_command_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (folder.path().join("a.jsonl"), folder.path().join("a.out.jsonl"));
    // The first is short, and the second longer than anybody waits.
    let long = json!({ "ignore_eos": true, "max_tokens": 100_000, "n": 8 });
    let mut text = stories(3);
    text.push_str(&chat("long", "Tell me a story about a fox.", &long));
    std::fs::write(&input, &text).unwrap();
    for signal in ["INT", "TERM"] {
        // Anew each time: that something is answered shows that signals are heard.
        let _ = std::fs::remove_file(&out);
        let mut child = batch(&["--device", "cpu", input.to_str().unwrap()]).spawn().unwrap();
        let begun = Instant::now();
        while std::fs::read(&out).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count()) < 3 {
            assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(300));
        assert!(
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success()
        );
        let begun = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(code(&output), 130, "{}", stderr(&output));
        assert!(stderr(&output).contains("the same command goes on from there"), "{}", stderr(&output));
        assert_eq!(lines(&out).len(), 3);
    }
    // Another question in place of the one that was under way would not change what is answered; in the first it does.
    std::fs::write(&input, text.replacen("fox", "owl", 1)).unwrap();
    let output = run(&["--device", "cpu", input.to_str().unwrap()]);
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("the output answers another input"), "{}", stderr(&output));
    std::fs::write(&input, stories(5)).unwrap();
    let output = run(&["--device", "cpu", input.to_str().unwrap()]);
    assert_eq!((code(&output), lines(&out).len()), (0, 5), "{}", stderr(&output));
    assert!(stderr(&output).contains("3 of them by an earlier run"), "{}", stderr(&output));
}

#[test]
fn a_server_that_never_answers_does_not_keep_an_interrupted_run() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("a.jsonl");
    std::fs::write(&input, stories(3)).unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut child = batch(&["--url", &url, input.to_str().unwrap()]).spawn().unwrap();
    let (stream, _) = silent.accept().unwrap();
    assert!(child.try_wait().unwrap().is_none());
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let begun = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(code(&output), 130, "{}", stderr(&output));
    drop(stream);
}

#[test]
fn validation_names_each_line_and_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("all.jsonl");
    std::fs::write(&input, all_kinds()).unwrap();
    let output = run(&["--validate", input.to_str().unwrap()]);
    assert_eq!(code(&output), 7);
    let said = stderr(&output);
    for part in [
        "line 4: invalid_json_line",
        "line 10: duplicate_custom_id",
        "line 11: stream_not_supported",
        "8 requests, 3 lines",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is written");
    std::fs::write(&input, stories(3)).unwrap();
    let output = run(&["--validate", "--json", input.to_str().unwrap()]);
    assert_eq!((code(&output), stdout(&output).trim()), (0, "{\"requests\":3,\"wrong\":0,\"errors\":[]}"));
    assert_eq!(code(&run(&["--validate", "no such file"])), 5);
}

#[test]
fn the_standard_input_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.jsonl");
    let args = ["batch", "--device", "cpu", "--output", out.to_str().unwrap(), "-"];
    let output = consort_with_input(&args, &stories(3));
    assert_eq!((code(&output), lines(&out).len()), (0, 3), "{}", stderr(&output));
    let output = consort_with_input(&args, &stories(3));
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).contains("cannot be read again"), "{}", stderr(&output));
    assert_eq!(code(&consort_with_input(&["batch", "--device", "cpu", "-"], "")), 4);
}

/// `consort serve` at a free port.
struct Served(Child, String);

impl Served {
    fn start() -> Self {
        let mut command = Command::new(CONSORT);
        command.args(["serve", "--device", "cpu", "--listen", "127.0.0.1:0", "--api-key-env", "CONSORT_TEST_KEY"]);
        let mut child = command
            .env("CONSORT_TEST_KEY", "open-sesame")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        Self(child, address)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_answers_as_the_model_in_this_process_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("a.jsonl"), all_kinds()).unwrap();
    let served = Served::start();
    let remote = |key: &str| {
        batch(&["--url", &served.1, "--api-key-env", "KEY", "--output", &path("there.jsonl"), &path("a.jsonl")])
            .env("KEY", key)
            .output()
            .unwrap()
    };
    // A wrong key costs no request.
    let output = remote("wrong-wrong");
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("refuses the API key") && !stderr(&output).contains("wrong-wrong"));
    assert_eq!(lines(Path::new(&path("there.jsonl"))).len(), 0);
    let output = remote("open-sesame");
    assert_eq!(code(&output), 7, "{}", stderr(&output));
    let output = run(&["--device", "cpu", "--output", &path("here.jsonl"), &path("a.jsonl")]);
    assert_eq!(code(&output), 7, "{}", stderr(&output));
    let here = lines(Path::new(&path("here.jsonl")));
    assert_eq!(here.len(), 6, "the persona is the other configuration's");
    assert_eq!(here, lines(Path::new(&path("there.jsonl"))));
    let errors = |name: &str| lines(Path::new(&path(name)));
    assert_eq!(errors("here.errors.jsonl"), errors("there.errors.jsonl"));
}
