//! Servers: what comes well, what breaks, and what is started and ended.
#![allow(clippy::unwrap_used)]

#[path = "common/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use consort_bench::live::*;
use consort_core::{ErrorKind, Result};
use server::{Manner, Server};

fn connect(server: &Server) -> HttpTarget {
    HttpTarget::connect(HttpConfig::new("peer", &server.url), Process::Elsewhere).unwrap()
}

fn ask(max_tokens: u32) -> Ask {
    let parts = vec![Part::Text("Hello".into())];
    Ask {
        group: "g".into(),
        messages: vec![Message { role: Speaker::User, parts }],
        max_tokens,
        cancel_after: None,
        adapter: None,
    }
}

fn beats(manner: Manner) -> Vec<Result<Beat>> {
    connect(&Server::start(manner)).ask(&ask(6), &[]).unwrap().collect()
}

fn counted(completion: Option<u64>) -> Counted {
    let known = completion.is_some();
    Counted { prompt: known.then_some(40), reused: known.then_some(30), completion }
}

#[test]
fn a_stream_is_read_to_its_end_with_its_usage() {
    for (manner, events, completion) in
        [(Manner::Well, 6, Some(6)), (Manner::TwoAtOnce, 3, Some(6)), (Manner::NoUsage, 6, None)]
    {
        let found: Vec<Beat> = beats(manner).into_iter().map(Result::unwrap).collect();
        assert_eq!(found.len(), events + 1, "{manner:?}");
        assert_eq!(found[events], Beat::End(counted(completion)), "{manner:?}");
    }
}

#[test]
fn what_breaks_is_an_error_at_the_end() {
    for (manner, words) in [
        (Manner::Cut, "cut off"),
        (Manner::CutChunk, "cut off"),
        (Manner::DoneWithoutFinish, "without a finish reason"),
        (Manner::ErrorEvent, "out of memory"),
        (Manner::Garbage, "no JSON"),
    ] {
        let found = beats(manner);
        let (last, before) = found.split_last().unwrap();
        assert!(before.len() == 6 && before.iter().all(Result::is_ok), "{manner:?}: {found:?}");
        let error = last.as_ref().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote);
        assert!(error.to_string().contains(words), "{manner:?}: {error}");
    }
    for (manner, kind, words) in [
        (Manner::Busy, ErrorKind::Overloaded, "loading"),
        (Manner::Refused, ErrorKind::InvalidRequest, "no such model"),
    ] {
        let error = connect(&Server::start(manner)).ask(&ask(6), &[]).err().unwrap();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn whoever_drops_a_reply_hangs_up() {
    let server = Server::start(Manner::Endless);
    let target = connect(&server);
    let mut reply = target.ask(&ask(2), &[]).unwrap();
    assert_eq!(reply.next().unwrap().unwrap(), Beat::Tokens(1));
    drop(reply);
    let start = Instant::now();
    while server.seen.lock().unwrap().abandoned == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "the server was not told");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn requests_carry_what_the_workload_says() {
    let server = Server::start(Manner::Well);
    let extra = serde_json::from_str(r#"{ "seed": 3, "cache_prompt": false }"#).unwrap();
    let config = |adapter_style| HttpConfig {
        adapters: vec!["pirate".into(), "butler".into()],
        adapter_style,
        extra: serde_json::Map::clone(&extra),
        ..HttpConfig::new("peer", format!("{}/v1/", server.url))
    };
    let picture: std::sync::Arc<[u8]> = vec![1, 2, 3].into();
    let mut ask = Ask { adapter: Some(1), ..ask(2) };
    ask.messages[0].parts.push(Part::Picture(0));
    for style in [AdapterStyle::Model, AdapterStyle::Lora] {
        let target = HttpTarget::connect(config(style), Process::Elsewhere).unwrap();
        assert_eq!((target.about().engine.as_str(), target.about().transport), ("replay b1", Transport::Http));
        assert_eq!(target.ask(&ask, std::slice::from_ref(&picture)).unwrap().count(), 3);
    }
    let missing = HttpTarget::connect(config(AdapterStyle::Lora), Process::Elsewhere).unwrap().ask(&ask, &[]);
    assert_eq!(missing.err().unwrap().kind(), ErrorKind::InvalidConfig);
    let seen = server.seen.lock().unwrap();
    let [by_model, by_lora] = seen.bodies.as_slice() else { panic!("{} requests", seen.bodies.len()) };
    assert_eq!(
        (by_model["model"].as_str(), by_lora["model"].as_str()),
        (Some("butler"), Some("/models/replayed.gguf"))
    );
    assert_eq!(by_lora["lora"].to_string(), r#"[{"id":0,"scale":0.0},{"id":1,"scale":1.0}]"#);
    assert_eq!((by_model["seed"].as_u64(), by_model["cache_prompt"].as_bool()), (Some(3), Some(false)));
    assert_eq!(by_model["stream_options"]["include_usage"], true);
    let content = &by_model["messages"][0]["content"];
    assert_eq!(
        (&content[0]["text"], &content[1]["image_url"]["url"]),
        (&"Hello".into(), &"data:image/png;base64,AQID".into())
    );
}

#[test]
fn only_plain_http_is_spoken() {
    let refused = |url: &str| HttpTarget::connect(HttpConfig::new("x", url), Process::Elsewhere).unwrap_err().kind();
    assert_eq!(refused("https://127.0.0.1:1"), ErrorKind::InvalidConfig);
    assert_eq!(refused("http://127.0.0.1:1"), ErrorKind::Remote);
}

fn short_solo() -> Workload {
    let config = SoloConfig { prompt_tokens: vec![8], decode_prompt: 4, decode_tokens: 8 };
    Workload::generate(Settings::Solo(config), 3, 2).unwrap()
}

fn quiet() -> RunConfig {
    RunConfig { stream_bytes: None, settle: Duration::ZERO }
}

#[test]
fn several_tokens_an_event_and_failures_are_in_the_figures() {
    let run_one = |manner| {
        let targets: Vec<Box<dyn Target>> = vec![Box::new(connect(&Server::start(manner)))];
        run(&short_solo(), &targets, &quiet(), &mut |_| {})
    };
    let records = run_one(Manner::TwoAtOnce).unwrap();
    assert_eq!(records.len(), 2);
    let decode = &records[0].groups["decode"];
    assert_eq!((decode.finished, decode.completion_tokens, decode.tokens_per_event), (1, 8, 2.0));
    assert_eq!((decode.prompt_tokens, decode.reused_tokens), (Some(40), Some(30)));
    // Nothing is known of a process that somebody else started.
    let whole = &records[0].groups[WHOLE_BLOCK];
    assert!(
        !whole.figures.contains_key(&Metric::PeakMemory) && !whole.figures.contains_key(&Metric::CpuSecondsPerToken)
    );
    // A target that fails in its warm-up is not measured.
    assert_eq!(run_one(Manner::Cut).unwrap_err().kind(), ErrorKind::Remote);
    assert_eq!(run(&short_solo(), &[], &quiet(), &mut |_| {}).unwrap_err().kind(), ErrorKind::InvalidConfig);
}

/// Not a test: this program as a server, for those that start one. Its port stands in the environment.
#[test]
#[ignore = "started by other tests as a server"]
fn serve() {
    let port: u16 = std::env::var("REPLAY_PORT").unwrap().parse().unwrap();
    let _server = Server::on(std::net::TcpListener::bind(("127.0.0.1", port)).unwrap(), Manner::Well);
    loop {
        std::thread::park();
    }
}

/// A peer that is this program. `exec`: the process that is started is the one that serves.
fn replay_server(port: &str) -> PeerConfig {
    let program = std::env::current_exe().unwrap();
    let command = format!(
        "replay=sh -c 'REPLAY_PORT={port} exec \"$0\" serve --exact --ignored {{model}}' {}",
        program.display()
    );
    command.parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_peer_is_started_measured_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let config = replay_server("{port}");
    let start = |variables: &BTreeMap<String, String>| {
        Peer::start(&config, variables, HttpConfig::new("", ""), &log, Duration::from_secs(20))
    };
    let variables = BTreeMap::from([("model".to_owned(), "--nocapture".to_owned())]);
    let peer = start(&variables).unwrap();
    let Process::Child(pid) = peer.process() else { panic!("a child") };
    assert!(peer.about().settings["command"].starts_with("sh -c "), "{:?}", peer.about().settings);
    let targets: Vec<Box<dyn Target>> = vec![Box::new(peer)];
    let records = run(&short_solo(), &targets, &quiet(), &mut |_| {}).unwrap();
    let whole = &records[1].groups[WHOLE_BLOCK];
    assert!(whole.figures[&Metric::PeakMemory] > 0.0 && records[1].machine.memory_before.is_some());
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(targets);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(start(&BTreeMap::new()).unwrap_err().kind(), ErrorKind::InvalidConfig);
}

#[cfg(target_os = "linux")]
#[test]
fn a_search_takes_what_is_best_and_shows_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // `wrong` is no port, so that server never answers.
    let config = replay_server("{prefix}{port}");
    let space: SearchSpace = "prefix=wrong,".parse().unwrap();
    let found = search("replay", &space, 1, &mut |variables| {
        let http = HttpConfig::new("", "");
        let mut variables = variables.clone();
        variables.insert("model".into(), "--nocapture".into());
        Ok(Box::new(Peer::start(&config, &variables, http, &log, Duration::from_secs(20))?))
    })
    .unwrap();
    assert_eq!((found.candidates.len(), found.chosen), (2, 1));
    assert!(found.candidates[0].failure.as_deref().unwrap().contains("ended before it answered"));
    assert!(found.candidates[1].decode.unwrap() > 0.0 && found.candidates[1].prefill.unwrap() > 0.0);
    let error = search("none", &"a=1,2".parse().unwrap(), 1, &mut |_| {
        Err(consort_core::Error::new(ErrorKind::NotFound, "no such program"))
    });
    assert!(error.unwrap_err().to_string().contains("no such program"));
}
