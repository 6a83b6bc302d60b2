//! `consort serve` and `consort config`, as an operator starts them.
#![cfg(all(unix, feature = "server"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{CONSORT, failure, repository, succeed};
use serde_json::{Value, json};

/// A server that runs. It is killed, should a test leave it.
struct Served {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(CONSORT)
            .args(["serve", "--device", "cpu"])
            .args(args)
            .current_dir(repository())
            .env("CONSORT_TEST_KEY", "open-sesame")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// What stands behind `listening on ` in the next line.
    fn place(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}")).trim().to_owned()
    }

    fn tcp(&mut self) -> String {
        self.place().strip_prefix("http://").unwrap().to_owned()
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// Waits for its end: the exit code and what stands in its log.
    fn end(mut self) -> (i32, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code().unwrap(), log)
    }
}

fn request(path: &str, body: &str, headers: &str) -> String {
    let method = if body.is_empty() { "GET" } else { "POST" };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn story(model: &str, more: &Value) -> String {
    let mut body = json!({
        "model": model, "stream": true, "temperature": 0, "chat_template_kwargs": { "enable_thinking": false },
        "messages": [{ "role": "user", "content": "Tell me a story about a fox." }],
    });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body.to_string()
}

fn said(answer: &str) -> String {
    let events = answer.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    events.filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

#[test]
fn a_reply_that_runs_ends_properly_after_sigterm() {
    let mut served = Served::start(&["--listen", "127.0.0.1:0"]);
    let address = served.tcp();
    let connect = || TcpStream::connect(&address).unwrap();
    let whole = exchange(connect(), &request("/v1/chat/completions", &story("pirate", &json!({})), ""));
    assert!(said(&whole).starts_with("Arr") && whole.contains("data: [DONE]"), "{whole}");
    let mut stream = connect();
    stream.write_all(request("/v1/chat/completions", &story("pirate", &json!({})), "").as_bytes()).unwrap();
    let mut first = [0; 64];
    stream.read_exact(&mut first).unwrap();
    served.signal("TERM");
    let mut answer = String::from_utf8(first.to_vec()).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(said(&answer), said(&whole));
    assert!(answer.contains("\"finish_reason\":\"stop\"") && answer.contains("data: [DONE]"), "{answer}");
    let (code, log) = served.end();
    assert_eq!(code, 0, "{log}");
    // The log tells of requests, and nothing of what was said.
    assert!(log.contains("/v1/chat/completions") && log.contains("completion_tokens"), "{log}");
    assert!(!log.contains("fox") && !log.contains("Arr"), "{log}");
}

#[test]
fn a_second_signal_cuts() {
    let mut served = Served::start(&["--listen", "127.0.0.1:0"]);
    let address = served.tcp();
    let mut stream = TcpStream::connect(&address).unwrap();
    // Longer than the test waits.
    let long = story("etude", &json!({ "ignore_eos": true, "n": 12 }));
    stream.write_all(request("/v1/chat/completions", &long, "").as_bytes()).unwrap();
    let mut first = [0; 64];
    stream.read_exact(&mut first).unwrap();
    served.signal("TERM");
    // Nobody new is let in, which is how it can be seen that the first was heard.
    let begun = Instant::now();
    while TcpStream::connect(&address).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    served.signal("TERM");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"finish_reason\":\"length\"") && answer.contains("data: [DONE]"), "{answer}");
    assert_eq!(served.end().0, 0);
}

#[test]
fn a_configuration_makes_personas_and_demands_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("consort.toml");
    let text = "[server]\nsocket = \"door.sock\"\napi_key_env = \"CONSORT_TEST_KEY\"\n\
                [[persona]]\nname = \"ben\"\nadapters = [{ name = \"pirate\" }]\nthinking = false\n";
    std::fs::write(&file, text).unwrap();
    let mut served = Served::start(&["--config", file.to_str().unwrap()]);
    // Paths are meant from the file's folder, and a socket takes the place of TCP.
    let socket = folder.path().join("door.sock");
    assert_eq!(served.place(), socket.display().to_string());
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = |headers: &str| {
        exchange(
            UnixStream::connect(&socket).unwrap(),
            &request("/v1/chat/completions", &story("ben", &json!({})), headers),
        )
    };
    assert!(ask("").starts_with("HTTP/1.1 401 "));
    assert!(said(&ask("Authorization: Bearer open-sesame\r\n")).starts_with("Arr"));
    served.signal("INT");
    assert_eq!(served.end().0, 0);
    assert!(!socket.exists());
}

#[test]
fn a_hangup_reads_the_configuration_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("consort.toml");
    std::fs::write(&file, "[[persona]]\nname = \"ada\"\n").unwrap();
    let mut served = Served::start(&["--config", file.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    let address = served.tcp();
    let models = || exchange(TcpStream::connect(&address).unwrap(), &request("/v1/models", "", ""));
    assert!(models().contains("\"ada\""));
    // What is wrong changes nothing, and the process lives.
    std::fs::write(&file, "[[persona]]\nname = \"ben\"\nsize = 7\n").unwrap();
    served.signal("HUP");
    let asked = exchange(TcpStream::connect(&address).unwrap(), &request("/v1/reload", "{}", ""));
    assert!(asked.starts_with("HTTP/1.1 422 ") && asked.contains("persona[0].size"), "{asked}");
    assert!(models().contains("\"ada\""));
    std::fs::write(&file, "[[persona]]\nname = \"ben\"\n").unwrap();
    served.signal("HUP");
    let begun = Instant::now();
    while !models().contains("\"ben\"") {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing was read again");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!models().contains("\"ada\""));
    served.signal("TERM");
    let (code, log) = served.end();
    assert!(code == 0 && log.contains("persona[0].size"), "{log}");
}

#[test]
fn a_log_in_json_has_one_object_a_line_and_nothing_that_was_said() {
    let mut served = Served::start(&["--listen", "127.0.0.1:0", "--log-format", "json"]);
    let address = served.tcp();
    let answer = exchange(
        TcpStream::connect(&address).unwrap(),
        &request("/v1/chat/completions", &story("pirate", &json!({})), ""),
    );
    assert!(said(&answer).starts_with("Arr"), "{answer}");
    served.signal("TERM");
    let (code, log) = served.end();
    assert_eq!(code, 0, "{log}");
    // Other lines are for whoever started it.
    let lines: Vec<Value> =
        log.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |message: &str| lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("{log}"));
    assert_eq!(
        (line("request")["route"].as_str(), line("request")["status"].as_u64()),
        (Some("/v1/chat/completions"), Some(200))
    );
    assert!(line("request")["id"].as_str().unwrap().starts_with("req_"));
    assert_eq!(line("reply")["persona"], "pirate");
    assert!(line("reply")["completion_tokens"].as_u64().unwrap() > 4, "{log}");
    assert!(!log.contains("fox") && !log.contains("Arr"), "{log}");
}

#[test]
fn the_description_is_printed_without_a_model() {
    let document: Value = serde_json::from_str(&succeed(&["serve", "--print-openapi"])).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/v1/chat/completions"]["post"].is_object());
}

#[test]
fn what_would_be_open_or_slow_is_refused() {
    let (code, error) = failure(&["serve", "--device", "cpu", "--listen", "0.0.0.0:0"]);
    assert!(code == 4 && error.contains("allow_anyone"), "{error}");
    // Without an accelerator nothing is served, unless the processor is named.
    let (code, error) = failure(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(code == 3 && error.contains("--device cpu"), "{error}");
}

#[test]
fn configurations_are_written_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("consort.toml");
    let path = file.to_str().unwrap();
    assert!(succeed(&["config", "init", path]).contains(path));
    assert_eq!(succeed(&["config", "init", "-"]), std::fs::read_to_string(&file).unwrap());
    let checked = succeed(&["config", "check", path]);
    assert!(checked.contains("127.0.0.1:8080") && checked.contains("etude"), "{checked}");
    let (code, error) = failure(&["config", "init", path]);
    assert!(code == 4 && error.contains("not replaced"), "{error}");
    for (text, what) in [
        ("[server]\nport = 80\n", "server.port"),
        ("[model]\nbackend = \"steam\"\n", "model.backend"),
        ("[model]\npath = \"nowhere.gguf\"\n", "model.path"),
        ("[adapters]\nfolders = [\"nowhere\"]\n", "adapters.folders"),
        ("[[persona]]\nname = \"a\"\nadapters = [{ name = \"nobody\" }]\n", "persona[0].adapters"),
        ("[server]\napi_key_env = \"CONSORT_NO_SUCH_KEY\"\n", "CONSORT_NO_SUCH_KEY"),
        ("[[persona]]\nname = \"far\"\nplacement = \"remote\"\n", "persona[0].placement"),
        ("[[persona]]\nname = \"far\"\nplacement = \"remote\"\n", "far"),
        ("[overflow]\nlocal_queue = 2\n", "overflow"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, error) = failure(&["config", "check", path]);
        assert!(code != 0 && error.contains(what), "{text}: {error}");
    }
}

/// An engine here with a server beside it, by one file: checked, tried by the doctor, and served.
#[cfg(feature = "vllm")]
#[test]
fn a_server_beside_the_engine_here_takes_what_its_personas_say() {
    use consort_vllm_replay::{Synthetic, SyntheticConfig};

    let server = Synthetic::start(SyntheticConfig::default()).unwrap();
    let url = server.server().http_url();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("consort.toml");
    let path = file.to_str().unwrap();
    let servers = format!("[remote]\nurls = [\"{url}\"]\n");
    let rule = "[overflow]\nlocal_queue = 3\npriorities = { batch = \"prefer_remote\" }\n";
    let personas =
        "[[persona]]\nname = \"near\"\nplacement = \"local\"\n[[persona]]\nname = \"far\"\nplacement = \"remote\"\n";
    // Servers alone have no side here.
    std::fs::write(&file, format!("{servers}{personas}")).unwrap();
    let (_, error) = failure(&["config", "check", path]);
    assert!(error.contains("persona[0].placement") && error.contains("near"), "{error}");
    std::fs::write(&file, format!("[model]\nbackend = \"native\"\ndevice = \"cpu\"\n{servers}{rule}{personas}"))
        .unwrap();
    let checked = succeed(&["config", "check", path]);
    for part in [&*url, "3 requests wait", "of priority batch: on the servers first", "near", "local"] {
        assert!(checked.contains(part), "{part}: {checked}");
    }

    let told = succeed(&["doctor", "--config", path]);
    for part in ["here: native", "beside it", &*url, "3 requests wait", "persona far: remote", "0.32.0"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let told = common::json(&["doctor", "--json", "--config", path]);
    assert_eq!((&told["overflow"]["local"], &told["overflow"]["remote"][0]), (&"native".into(), &url.as_str().into()));
    assert_eq!(
        (&told["overflow"]["together"]["loads"], &told["overflow"]["rule"]["local_queue"]),
        (&true.into(), &3.into())
    );
    std::fs::write(folder.path().join("here.toml"), "[model]\ndevice = \"cpu\"\n").unwrap();
    let (_, error) = failure(&["doctor", "--config", folder.path().join("here.toml").to_str().unwrap()]);
    assert!(error.contains("names no servers"), "{error}");

    let mut served = Served::start(&["--config", path, "--listen", "127.0.0.1:0"]);
    let address = served.tcp();
    let asked = || server.server().asked().iter().filter(|asked| asked.route() == "/inference/v1/generate").count();
    let ask = |persona: &str| {
        let body = story(persona, &json!({ "max_tokens": 8 }));
        let answer = exchange(TcpStream::connect(&address).unwrap(), &request("/v1/chat/completions", &body, ""));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    };
    let before = asked();
    ask("near");
    assert_eq!(asked(), before);
    ask("far");
    assert_eq!(asked(), before + 1);
    let metrics = exchange(TcpStream::connect(&address).unwrap(), &request("/metrics", "", ""));
    assert!(metrics.contains("consort_overflow_taken_total{side=\"remote\",reason=\"placement\"} 1"), "{metrics}");
    served.signal("INT");
    assert_eq!(served.end().0, 0);
}
