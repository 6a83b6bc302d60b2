//! What goes wrong with servers that are spoken to by gRPC: each fault ends in a clear error or a correct retry, within its time limit,
//! and other streams go on.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::{
    Deadlines, Error, ErrorKind, ErrorStatus, Event, FinishReason, GenerateRequest, ModelBackend, Prompt, PromptPart,
    Sampling, TokenId,
};
use consort_prompt::FrontEnd;
use consort_text::Tokenizer;
use consort_vllm::{ApiKey, Retries, Timeouts, VllmConfig, VllmRemoteBackend};
use consort_vllm_replay::{After, Cut, Fault, FrontEnd as Form, GrpcCode, Script, Synthetic, SyntheticConfig, When};

/// The last token of every prompt here.
const LAST: TokenId = 3;
/// How long what must come is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

fn server() -> Synthetic {
    Synthetic::start(SyntheticConfig::default()).unwrap()
}

fn slow_server(pace: Duration) -> Synthetic {
    Synthetic::start(SyntheticConfig { pace, ..SyntheticConfig::default() }).unwrap()
}

/// Short patience, quick retries.
fn config(server: &Synthetic) -> VllmConfig {
    let json = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../models/etude/tokenizer.json");
    let tokenizer = Tokenizer::from_json(&std::fs::read(json).unwrap(), None).unwrap();
    VllmConfig {
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            head: Duration::from_millis(1500),
            first_token: Duration::from_millis(1500),
            token: Duration::from_millis(1500),
            control: Duration::from_millis(1500),
            load: PATIENCE,
        },
        retries: Retries { pause: Duration::from_millis(5), ..Retries::default() },
        health_interval: Duration::from_millis(50),
        // Whoever has a tokenizer shows text itself, and can go on with a reply that was cut.
        front_end: FrontEnd { tokenizer: Some(tokenizer), ..FrontEnd::default() },
        ..VllmConfig::new(vec![format!("grpc://{}", server.server().grpc()).parse().unwrap()])
    }
}

fn connect(server: &Synthetic) -> VllmRemoteBackend {
    VllmRemoteBackend::connect(config(server)).unwrap()
}

fn greedy(tokens: u32) -> GenerateRequest {
    GenerateRequest {
        max_tokens: Some(tokens),
        ..GenerateRequest::new(Prompt::Parts(vec![PromptPart::Tokens(vec![1, 2, LAST])]))
    }
}

/// What comes cannot be continued from its tokens: the seed's place is lost.
fn drawn(tokens: u32) -> GenerateRequest {
    GenerateRequest { sampling: Sampling { temperature: 1.0, seed: 5, ..Sampling::default() }, ..greedy(tokens) }
}

/// The tokens that came, and how it ended.
fn read(backend: &VllmRemoteBackend, request: GenerateRequest) -> (Vec<TokenId>, Result<FinishReason, Error>) {
    let mut ids = Vec::new();
    let stream = match backend.generate(request) {
        Ok(stream) => stream,
        Err(error) => return (ids, Err(error)),
    };
    for event in stream.blocking() {
        match event {
            Ok(Event::Tokens { ids: new, .. }) => ids.extend(new),
            Ok(Event::Finished { reason, .. }) => return (ids, Ok(reason)),
            Ok(_) => {}
            Err(error) => return (ids, Err(error)),
        }
    }
    panic!("the stream has no end");
}

/// The first generation from now on meets it.
fn once(fault: Fault) -> Script {
    Script::new().on(When::containing("GenerateStream").nth(1), fault)
}

/// Every generation meets it.
fn always(fault: Fault) -> Script {
    Script::new().on(When::containing("GenerateStream"), fault)
}

fn in_the_middle() -> Fault {
    Fault::Status { after: 3, code: GrpcCode::INTERNAL, message: "the engine died".into() }
}

fn assert_whole(server: &Synthetic, backend: &VllmRemoteBackend, what: &str) {
    let (ids, end) = read(backend, greedy(12));
    assert_eq!((ids, end.unwrap()), (server.continuation(LAST, "", 12), FinishReason::Length), "{what}");
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn until_up(backend: &VllmRemoteBackend) {
    until("the server is up again", || backend.replicas().iter().all(|replica| replica.down.is_none()));
}

#[test]
fn a_reply_that_is_cut_goes_on_from_its_own_tokens() {
    let server = server();
    let backend = connect(&server);
    for how in [Cut::Close, Cut::Reset, Cut::Stream] {
        for pieces in [0, 1, 4, 11] {
            server.server().set_script(once(Fault::Cut { after: After::Pieces(pieces), how }));
            assert_whole(&server, &backend, &format!("{how:?} after {pieces}"));
            assert_eq!(server.server().fired(), [1], "{how:?} after {pieces}: it was cut");
        }
    }
    server.server().set_script(once(in_the_middle()));
    assert_whole(&server, &backend, "a status in the middle");
    assert_eq!(server.server().fired(), [1]);
}

#[test]
fn a_reply_that_cannot_go_on_ends_with_the_error() {
    let server = server();
    let backend = connect(&server);
    for fault in [
        Fault::Cut { after: After::Pieces(4), how: Cut::Close },
        Fault::Cut { after: After::Pieces(4), how: Cut::Stream },
        Fault::NoFinish,
        in_the_middle(),
    ] {
        let what = format!("{fault:?}");
        server.server().set_script(always(fault));
        let (ids, end) = read(&backend, drawn(12));
        let error = end.unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary), "{what}: {error}");
        assert!(ids.len() >= 2, "{what}: what came is delivered");
        assert_eq!(server.server().fired(), [1], "{what}: it is not asked again");
        server.server().set_script(Script::new());
        until_up(&backend);
    }
    assert_whole(&server, &backend, "afterwards");
}

#[test]
fn refusals_for_now_are_asked_again_and_others_are_not() {
    let server = server();
    let backend = connect(&server);
    for fault in [
        Fault::Unavailable { retry_after: None },
        Fault::TooMany { retry_after: None },
        Fault::ServerError { message: "EngineCore encountered an issue".into() },
        Fault::Cut { after: After::Nothing, how: Cut::Reset },
    ] {
        let what = format!("{fault:?}");
        server.server().set_script(once(fault));
        assert_whole(&server, &backend, &what);
        assert_eq!(server.server().fired(), [1], "{what}");
    }
    server.server().set_script(always(Fault::Unauthorized));
    let error = read(&backend, greedy(4)).1.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::InvalidConfig, ErrorStatus::Permanent), "{error}");
    assert_eq!(server.server().fired(), [1], "it is asked once");
    server.server().set_script(always(Fault::NoModel { front_end: Form::Rust, model: "gone".into() }));
    assert_eq!(read(&backend, greedy(4)).1.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(server.server().fired(), [1], "it is asked once");
}

#[test]
fn a_key_that_is_not_accepted_is_told_and_never_repeated() {
    let server = server();
    let keyed = || VllmConfig { api_key: Some(ApiKey::new("a-secret-of-mine").unwrap()), ..config(&server) };
    let backend = VllmRemoteBackend::connect(keyed()).unwrap();
    assert_whole(&server, &backend, "with a key that nobody demands");
    let other = VllmConfig { model: Some("qwen".into()), ..keyed() };
    assert_eq!(VllmRemoteBackend::connect(other).unwrap_err().kind(), ErrorKind::NotFound);
    server.server().set_script(Script::new().on(When::always(), Fault::Unauthorized));
    let error = VllmRemoteBackend::connect(keyed()).unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::InvalidConfig, ErrorStatus::Permanent), "{error}");
    assert!(!format!("{error:?} {backend:?}").contains("secret"), "{error:?}");
}

#[test]
fn silence_ends_with_its_time_limit_and_others_go_on() {
    let server = server();
    let backend = Arc::new(connect(&server));
    for after in [After::Nothing, After::Pieces(0), After::Pieces(3)] {
        server.server().set_script(once(Fault::Silence { after }));
        let silent = {
            let backend = Arc::clone(&backend);
            std::thread::spawn(move || read(&backend, drawn(12)))
        };
        assert!(server.server().wait_until(PATIENCE, |counts| counts.in_flight > 0));
        for _ in 0..3 {
            assert_whole(&server, &backend, "beside the silent one");
        }
        // What had said nothing is asked again, and then answered.
        match silent.join().unwrap().1 {
            Ok(reason) => assert_eq!(reason, FinishReason::Length),
            Err(error) => assert_eq!((error.kind(), after), (ErrorKind::Remote, After::Pieces(3)), "{error}"),
        }
    }
}

#[test]
fn deadlines_hold_and_what_is_dropped_ends_on_the_server() {
    let server = slow_server(Duration::from_millis(50));
    let backend = connect(&server);
    let deadlines = Deadlines { first_token: None, total: Some(Duration::from_millis(400)) };
    let (ids, end) = read(&backend, GenerateRequest { deadlines, ..greedy(1000) });
    assert_eq!(end.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(ids.len() < 12, "{}", ids.len());
    assert!(server.server().wait_until(PATIENCE, |counts| counts.in_flight == 0), "the server goes on");
    let before = server.server().cancelled();
    let mut events = backend.generate(greedy(4000)).unwrap().blocking();
    while !matches!(events.next(), Some(Ok(Event::Tokens { .. }))) {}
    drop(events);
    assert!(server.server().wait_until(PATIENCE, |counts| counts.in_flight == 0));
    assert_eq!(server.server().cancelled(), before + 1);
    let aborted = || server.server().asked().iter().any(|asked| asked.path.ends_with("/Abort"));
    until("it is aborted by name", aborted);
}

#[test]
fn a_server_that_goes_is_told_in_time_and_found_when_it_is_back() {
    let server = slow_server(Duration::from_millis(10));
    let backend = Arc::new(connect(&server));
    let running = {
        let backend = Arc::clone(&backend);
        std::thread::spawn(move || read(&backend, drawn(400)))
    };
    assert!(server.server().wait_until(PATIENCE, |counts| counts.in_flight > 0));
    server.server().stop_listening().unwrap();
    server.server().cut_connections(Cut::Reset);
    let began = Instant::now();
    for error in [running.join().unwrap().1.unwrap_err(), read(&backend, greedy(4)).1.unwrap_err()] {
        assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary), "{error}");
    }
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(VllmRemoteBackend::connect(config(&server)).unwrap_err().kind(), ErrorKind::Remote);
    until("it is seen that nobody is there", || backend.replicas()[0].down.is_some());
    server.server().listen_again().unwrap();
    until_up(&backend);
    assert_whole(&server, &backend, "when it is back");
}

#[test]
fn what_is_no_message_is_an_error() {
    let server = server();
    let backend = connect(&server);
    for fault in [Fault::Garbage { after: 2 }, Fault::Gigantic { after: 2, bytes: 64 << 20 }] {
        let what = format!("{fault:?}");
        server.server().set_script(always(fault));
        assert_eq!(read(&backend, drawn(12)).1.unwrap_err().kind(), ErrorKind::Remote, "{what}");
        server.server().set_script(Script::new());
        until_up(&backend);
        assert_whole(&server, &backend, &what);
    }
}
