//! Each fault does what it says, as a raw TCP client sees it.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{End, Seen, ask, ask_for, connect, generate, read, send};
use consort_vllm_replay::{
    After, Cut, ErrorShape, Fault, FrontEnd, Script, ServerConfig, Synthetic, SyntheticConfig, SyntheticReply, When,
    Words,
};

const GENERATE: &str = "/inference/v1/generate";

fn synthetic() -> Synthetic {
    Synthetic::start(SyntheticConfig::default()).unwrap()
}

/// What a client sees of a stream of four tokens with these faults.
fn with(faults: &[Fault]) -> Seen {
    let synthetic = synthetic();
    script(&synthetic, faults);
    ask_for(synthetic.server().http(), Duration::from_millis(700), GENERATE, &generate(4))
}

fn script(synthetic: &Synthetic, faults: &[Fault]) {
    let script = faults.iter().fold(Script::new(), |script, fault| script.on(When::always(), fault.clone()));
    synthetic.server().set_script(script);
}

/// The tokens of a stream's events.
fn tokens(text: &str) -> Vec<u32> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    lines
        .filter_map(|data| serde_json::from_str::<serde_json::Value>(data).ok())
        .filter_map(|event| event["choices"][0]["token_ids"][0].as_u64())
        .map(|token| u32::try_from(token).unwrap())
        .collect()
}

#[test]
fn nothing_goes_wrong() {
    let seen = with(&[]);
    assert_eq!((seen.status, seen.end), (200, End::Complete));
    assert_eq!(tokens(&seen.text()), synthetic().continuation(3, "", 4));
    assert_eq!(seen.chunks.len(), 5, "each event is its own chunk, and so is [DONE]");
    assert!(seen.text().ends_with("data: [DONE]\n\n"));
}

#[test]
fn cuts_come_where_and_how_they_should() {
    for (how, end) in [(Cut::Reset, End::Reset), (Cut::Close, End::Closed), (Cut::Stream, End::Closed)] {
        for pieces in [0, 1, 3] {
            let seen = with(&[Fault::Cut { after: After::Pieces(pieces), how }]);
            assert_eq!((seen.status, seen.chunks.len() as u64, seen.end), (200, pieces, end), "{how:?} after {pieces}");
        }
    }
    for (how, end) in [(Cut::Reset, End::Reset), (Cut::Close, End::Closed)] {
        let seen = with(&[Fault::Cut { after: After::Nothing, how }]);
        assert_eq!((seen.status, seen.end), (0, end), "{how:?}");
    }
}

#[test]
fn silence_is_silence_and_the_leaving_client_is_counted() {
    for (after, status, chunks) in [(After::Nothing, 0, 0), (After::Pieces(0), 200, 0), (After::Pieces(2), 200, 2)] {
        let synthetic = synthetic();
        script(&synthetic, &[Fault::Silence { after }]);
        let seen = ask_for(synthetic.server().http(), Duration::from_millis(300), GENERATE, &generate(4));
        assert_eq!((seen.status, seen.chunks.len(), seen.end), (status, chunks, End::Silent), "{after:?}");
        assert!(
            synthetic
                .server()
                .wait_until(Duration::from_secs(20), |counts| counts.cancelled == 1 && counts.in_flight == 0),
            "{after:?}: {:?}",
            synthetic.server().counts()
        );
    }
}

#[test]
fn a_client_that_leaves_is_noticed_in_the_middle() {
    let config = SyntheticConfig { pace: Duration::from_millis(20), ..SyntheticConfig::default() };
    let synthetic = Synthetic::start(config).unwrap();
    let mut stream = connect(synthetic.server().http());
    send(&mut stream, "POST", GENERATE, &generate(2000));
    assert!(synthetic.server().wait_until(Duration::from_secs(20), |counts| counts.in_flight == 1));
    drop(stream);
    assert!(
        synthetic.server().wait_until(Duration::from_secs(20), |counts| counts.cancelled == 1 && counts.in_flight == 0)
    );
}

#[test]
fn slowness_is_at_least_as_slow() {
    let begin = Instant::now();
    let seen = with(&[Fault::Slow { pause: Duration::from_millis(40) }]);
    assert_eq!(seen.end, End::Complete);
    assert!(begin.elapsed() >= Duration::from_millis(200), "five events, each after 40 ms");
}

#[test]
fn refusals_have_their_forms() {
    let one = |fault: Fault| with(&[fault]);
    let seen = one(Fault::Unavailable { retry_after: Some(7) });
    assert_eq!(seen.status, 503);
    assert!(seen.head.contains("retry-after: 7\r\n"));
    let seen = one(Fault::Unavailable { retry_after: None });
    assert!(seen.status == 503 && !seen.head.contains("retry-after"));
    let seen = one(Fault::TooMany { retry_after: Some(1) });
    assert!(seen.status == 429 && seen.head.contains("retry-after: 1\r\n"));
    let seen = one(Fault::Unauthorized);
    assert_eq!((seen.status, seen.text().as_str()), (401, r#"{"error":"Unauthorized"}"#));
    let code =
        |seen: &Seen| serde_json::from_slice::<serde_json::Value>(&seen.body()).unwrap()["error"]["code"].clone();
    let seen = one(Fault::NoModel { front_end: FrontEnd::Python, model: "x".into() });
    assert_eq!((seen.status, code(&seen)), (404, 404.into()));
    let seen = one(Fault::NoModel { front_end: FrontEnd::Rust, model: "x".into() });
    assert_eq!((seen.status, code(&seen)), (404, "model_not_found".into()));
    for shape in ErrorShape::ALL {
        let seen = one(Fault::BadRequest { shape, message: "no such thing".into() });
        assert_eq!((seen.status, seen.end), (400, End::Complete), "{shape:?}");
        let text = seen.text();
        match shape {
            ErrorShape::NumberCode => assert_eq!(code(&seen), 400),
            ErrorShape::TextCode => assert_eq!(code(&seen), "invalid_request_error"),
            ErrorShape::Detail => assert_eq!(text, r#"{"detail":"no such thing"}"#),
            ErrorShape::Text => assert_eq!(text, "no such thing"),
            ErrorShape::Html => assert!(text.starts_with("<html>") && seen.head.contains("text/html")),
            ErrorShape::Empty => assert_eq!(text, ""),
            ErrorShape::BrokenJson => assert!(serde_json::from_str::<serde_json::Value>(&text).is_err()),
        }
    }
    let seen = one(Fault::ServerError { message: "died".into() });
    assert_eq!((seen.status, code(&seen)), (500, 500.into()));
    let seen = one(Fault::Instead { status: 302, content_type: "text/plain".into(), body: "there".into() });
    assert_eq!((seen.status, seen.text().as_str()), (302, "there"));
}

#[test]
fn endings_go_missing() {
    let said = synthetic().continuation(3, "", 4);
    let seen = with(&[Fault::NoFinish]);
    assert_eq!((tokens(&seen.text()), seen.end), (said[..3].to_vec(), End::Complete));
    assert!(!seen.text().contains("\"finish_reason\":\"") && seen.text().ends_with("data: [DONE]\n\n"));
    let seen = with(&[Fault::NoDone]);
    assert_eq!((tokens(&seen.text()), seen.end), (said, End::Complete));
    assert!(!seen.text().contains("[DONE]") && seen.text().contains("\"finish_reason\":\"length\""));
    let seen = with(&[Fault::ErrorEvent { after: 2, front_end: FrontEnd::Python, message: "the engine died".into() }]);
    assert_eq!((seen.status, seen.chunks.len(), seen.end), (200, 4, End::Complete));
    assert!(seen.text().contains("data: {\"error\":{") && seen.text().ends_with("data: [DONE]\n\n"));
}

/// One token is four bytes of UTF-8.
struct Wide;

impl Words for Wide {
    fn tokens(&self, text: &str) -> Vec<u32> {
        text.chars().map(|_| 1).collect()
    }

    fn text(&self, _: u32) -> String {
        "🦀".into()
    }
}

#[test]
fn a_body_falls_apart_at_every_byte() {
    let config = || SyntheticConfig {
        words: std::sync::Arc::new(Wide),
        reply: SyntheticReply::Tokens(vec![9, 8]),
        ..SyntheticConfig::default()
    };
    let synthetic = Synthetic::start(config()).unwrap();
    let body = r#"{"model":"synthetic","prompt":[1,2],"stream":true,"max_tokens":9}"#;
    let asked = || ask(synthetic.server().http(), "POST", "/v1/completions", body);
    let mut whole = None;
    let mut check = |seen: &Seen| {
        // Identifiers count up; everything else is the same.
        let text = seen.text();
        let text: Vec<String> = text.split("cmpl-").map(|part| part.chars().skip(16).collect()).collect();
        assert!(text.len() > 3);
        assert_eq!(whole.get_or_insert_with(|| text.clone()), &text);
    };
    let plain = asked();
    check(&plain);
    assert!(plain.text().contains("🦀"));
    script(&synthetic, &[Fault::Split { bytes: 1 }]);
    let seen = asked();
    check(&seen);
    assert!(seen.chunks.iter().all(|chunk| chunk.len() == 1));
    script(&synthetic, &[Fault::Glue]);
    let seen = asked();
    check(&seen);
    assert_eq!(seen.chunks.len(), 1);
    for at in 1..plain.body().len() {
        script(&synthetic, &[Fault::Glue, Fault::SplitAt { at }]);
        let seen = asked();
        assert_eq!((seen.chunks.len(), seen.chunks[0].len()), (2, at));
        check(&seen);
    }
}

#[test]
fn events_carry_what_a_reader_must_skip() {
    let said = synthetic().continuation(3, "", 4);
    let seen = with(&[Fault::Comments]);
    assert_eq!(tokens(&seen.text()), said);
    assert_eq!(seen.text().matches(": keep-alive ").count(), 5);
    assert!(seen.text().contains("\nretry: 1000\ndata: "));
    let seen = with(&[Fault::CarriageReturns]);
    assert_eq!(tokens(&seen.text()), said);
    assert_eq!(seen.text().matches("\r\n\r\n").count(), 5);
    let seen = with(&[Fault::Garbage { after: 1 }]);
    let text = seen.text();
    let last = text.trim_end().rsplit("data: ").next().unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(last).is_err());
}

#[test]
fn a_gigantic_event_is_as_long_as_asked() {
    let seen = with(&[Fault::Gigantic { after: 1, bytes: 5_000_000 }]);
    assert_eq!(seen.end, End::Complete);
    let rest: usize = seen.chunks[1..].iter().map(Vec::len).sum();
    assert!((5_000_000..5_000_200).contains(&rest), "{rest}");
    assert_eq!(seen.body().iter().filter(|byte| **byte == b'\n').count(), 4, "two events, each with its blank line");
}

#[test]
fn faults_meet_the_requests_that_they_name() {
    let synthetic = synthetic();
    synthetic.server().set_script(
        Script::new()
            .on(When::containing("generate").nth(2), Fault::Unauthorized)
            .on(When::containing("\"max_tokens\":7").from(2), Fault::TooMany { retry_after: None })
            .on(When::containing("/health").first(1), Fault::Unavailable { retry_after: None }),
    );
    let to = synthetic.server().http();
    let asked = |tokens| ask(to, "POST", GENERATE, &generate(tokens)).status;
    assert_eq!([asked(7), asked(1), asked(7), asked(7), asked(1)], [200, 401, 429, 429, 200]);
    assert_eq!([1, 2].map(|_| ask(to, "GET", "/health", "").status), [503, 200]);
    assert_eq!(synthetic.server().fired(), [1, 2, 1]);
}

#[test]
fn connections_live_idle_and_end() {
    let config = SyntheticConfig {
        server: ServerConfig { idle_close: Some(Duration::from_millis(80)), ..ServerConfig::default() },
        ..SyntheticConfig::default()
    };
    let synthetic = Synthetic::start(config).unwrap();
    let mut stream = connect(synthetic.server().http());
    // Two requests on one connection; then it is closed from the other side.
    for _ in 0..2 {
        send(&mut stream, "GET", "/health", "");
        assert_eq!(read(&mut stream).status, 200);
    }
    assert_eq!(synthetic.server().connections_accepted(), 1);
    assert_eq!(read(&mut stream).end, End::Closed);
}

#[test]
fn listening_stops_and_begins_again_on_the_same_port() {
    let synthetic = synthetic();
    let to = synthetic.server().http();
    let mut old = connect(to);
    send(&mut old, "GET", "/health", "");
    assert_eq!(read(&mut old).status, 200);
    synthetic.server().stop_listening().unwrap();
    assert_eq!(std::net::TcpStream::connect(to).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    // Who was connected stays so.
    send(&mut old, "GET", "/health", "");
    assert_eq!(read(&mut old).status, 200);
    synthetic.server().listen_again().unwrap();
    assert_eq!(ask(to, "GET", "/health", "").status, 200);
    synthetic.server().cut_connections(Cut::Reset);
    assert_eq!(read(&mut old).end, End::Reset);
}

#[test]
fn a_paused_server_is_healthy_and_does_not_generate() {
    let synthetic = synthetic();
    let to = synthetic.server().http();
    assert_eq!(ask(to, "POST", "/pause", "{}").status, 200);
    assert_eq!(ask(to, "GET", "/health", "").status, 200);
    assert_eq!(ask(to, "GET", "/is_paused", "").text(), r#"{"is_paused":true}"#);
    let mut stream = connect(to);
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    send(&mut stream, "POST", GENERATE, &generate(2));
    let seen = read(&mut stream);
    assert_eq!((seen.status, seen.chunks.len(), seen.end), (200, 0, End::Silent));
    synthetic.server().resume();
    assert_eq!(ask(to, "POST", GENERATE, &generate(2)).end, End::Complete);
}

#[test]
fn many_streams_at_once_keep_apart() {
    let synthetic = synthetic();
    let to = synthetic.server().http();
    let streams: Vec<_> = (0..32_u32)
        .map(|last| {
            std::thread::spawn(move || {
                let body = format!(
                    r#"{{"model":"synthetic","token_ids":[1,{last}],"stream":true,"sampling_params":{{"max_tokens":50}}}}"#
                );
                (last, tokens(&ask(to, "POST", GENERATE, &body).text()))
            })
        })
        .collect();
    for stream in streams {
        let (last, said) = stream.join().unwrap();
        assert_eq!(said, synthetic.continuation(last, "", 50));
    }
    assert!(
        synthetic.server().wait_until(Duration::from_secs(20), |counts| counts.ended == 32 && counts.in_flight == 0)
    );
}
