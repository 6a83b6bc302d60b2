//! What goes wrong with servers, and what becomes of replies: each fault ends in a clear error or a correct retry, within its
//! time limit, and other streams go on.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::{
    AdapterFiles, AdapterUse, Deadlines, Error, ErrorKind, ErrorStatus, Event, FinishReason, GenerateRequest,
    ModelBackend, Prompt, PromptPart, Sampling, StopRules, TokenId, block_on,
};
use consort_prompt::FrontEnd;
use consort_text::Tokenizer;
use consort_vllm::{AdapterShare, ApiKey, Resume, Retries, Timeouts, VllmConfig, VllmRemoteBackend};
use consort_vllm_replay::{
    After, Certificate, Cut, ErrorShape, Fault, FrontEnd as Form, Script, ServerConfig, ServerTls, Synthetic,
    SyntheticConfig, SyntheticReply, When,
};

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Http,
    #[cfg(feature = "grpc")]
    Grpc,
}

impl Way {
    fn url(self, server: &Synthetic) -> String {
        match self {
            Self::Http => server.server().http_url(),
            #[cfg(feature = "grpc")]
            Self::Grpc => server.server().grpc_url().replacen("http", "grpc", 1),
        }
    }

    /// What requests for replies have in their keys, and no others.
    fn generation(self) -> &'static str {
        match self {
            Self::Http => "/inference/v1/generate",
            #[cfg(feature = "grpc")]
            Self::Grpc => "/vllm.Inference/GenerateStream",
        }
    }

    /// What asking after a server's health has in its key.
    fn health(self) -> &'static str {
        match self {
            Self::Http => "/health",
            #[cfg(feature = "grpc")]
            Self::Grpc => "/vllm.Control/GetServerInfo",
        }
    }

    /// How a reply can be broken off.
    fn cuts(self) -> &'static [Cut] {
        match self {
            Self::Http => &[Cut::Close, Cut::Reset],
            // One stream of a connection that others use can end by itself.
            #[cfg(feature = "grpc")]
            Self::Grpc => &[Cut::Close, Cut::Reset, Cut::Stream],
        }
    }
}

/// Each of these, by every way that this build has.
macro_rules! by_every_way {
    ($($name:ident),* $(,)?) => {
        mod http {
            $(#[test] fn $name() { super::$name(super::Way::Http); })*
        }
        #[cfg(feature = "grpc")]
        mod grpc {
            $(#[test] fn $name() { super::$name(super::Way::Grpc); })*
        }
    };
}

by_every_way! {
    a_reply_is_what_the_model_says,
    an_end_token_is_no_part_of_the_reply,
    forms_of_the_stream_change_nothing,
    a_reply_that_is_cut_goes_on_from_its_own_tokens,
    a_reply_that_cannot_go_on_ends_with_the_error,
    resuming_can_be_switched_off,
    refusals_for_now_are_asked_again,
    what_is_wrong_is_told_once,
    another_model_is_not_taken_for_it,
    silence_ends_with_its_time_limit_and_others_go_on,
    a_paused_server_is_noticed_and_deadlines_hold,
    a_server_whose_health_hangs_hides_no_other,
    a_slow_reply_meets_the_deadline_of_the_whole,
    what_is_dropped_ends_on_the_server,
    a_server_that_goes_leaves_its_requests_to_another,
    a_server_that_was_started_anew_is_given_its_adapters_again,
    nobody_there_is_an_error_in_time,
    an_event_that_never_ends_is_not_kept,
    certificates_are_checked,
    more_than_may_be_on_their_way_are_refused_at_once,
}

/// The last token of every prompt here.
const LAST: TokenId = 3;

fn server() -> Synthetic {
    Synthetic::start(SyntheticConfig::default()).unwrap()
}

fn slow_server(pace: Duration) -> Synthetic {
    Synthetic::start(SyntheticConfig { pace, ..SyntheticConfig::default() }).unwrap()
}

fn tokenizer() -> Tokenizer {
    let json = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../models/etude/tokenizer.json");
    Tokenizer::from_json(&std::fs::read(json).unwrap(), None).unwrap()
}

/// Short patience, quick retries.
fn config(urls: &[String]) -> VllmConfig {
    VllmConfig {
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            head: Duration::from_millis(1500),
            first_token: Duration::from_millis(1500),
            token: Duration::from_millis(1500),
            control: Duration::from_millis(1500),
            load: Duration::from_secs(20),
        },
        retries: Retries { pause: Duration::from_millis(5), ..Retries::default() },
        health_interval: Duration::from_millis(50),
        // Whoever has a tokenizer shows text itself, and can go on with a reply that was cut.
        front_end: FrontEnd { tokenizer: Some(tokenizer()), ..FrontEnd::default() },
        ..VllmConfig::new(urls.iter().map(|url| url.parse().unwrap()).collect())
    }
}

fn connect(way: Way, server: &Synthetic) -> VllmRemoteBackend {
    VllmRemoteBackend::connect(config(&[way.url(server)])).unwrap()
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

fn on_generate(way: Way, fault: Fault) -> Script {
    Script::new().on(When::containing(way.generation()).nth(1), fault)
}

/// Every generation meets it.
fn always(way: Way, fault: Fault) -> Script {
    Script::new().on(When::containing(way.generation()), fault)
}

fn assert_whole(server: &Synthetic, backend: &VllmRemoteBackend, what: &str) {
    let (ids, end) = read(backend, greedy(12));
    assert_eq!((ids, end.unwrap()), (server.continuation(LAST, "", 12), FinishReason::Length), "{what}");
}

fn a_reply_is_what_the_model_says(way: Way) {
    let server = server();
    let backend = connect(way, &server);
    assert_whole(&server, &backend, "alone");
    let metrics = backend.metrics();
    assert_eq!((metrics.requests, metrics.finished, metrics.running, metrics.generated_tokens), (1, 1, 0, 12));
}

fn an_end_token_is_no_part_of_the_reply(way: Way) {
    let reply = SyntheticReply::Tokens(vec![7, 8, 9]);
    let server = Synthetic::start(SyntheticConfig { reply, ..SyntheticConfig::default() }).unwrap();
    let backend = connect(way, &server);
    let (ids, end) = read(&backend, greedy(50));
    assert_eq!((ids, end.unwrap()), (vec![7, 8, 9], FinishReason::EndToken(1268)));
}

/// The front end in Rust says on `/v1/completions` in an event of its own why a reply ended.
#[test]
fn an_end_that_is_told_apart_belongs_to_its_token() {
    let reply = SyntheticReply::Tokens(vec![7, 8, 9]);
    let server =
        Synthetic::start(SyntheticConfig { front_end: Form::Rust, reply, ..SyntheticConfig::default() }).unwrap();
    let backend = connect(Way::Http, &server);
    let before = server.server().asked().len();
    // That front end takes a bias on that way alone.
    let biased = |tokens, stop| GenerateRequest {
        sampling: Sampling { logit_bias: vec![(3, 1.0)], ..Sampling::default() },
        stop: StopRules { tokens: stop, ..StopRules::default() },
        logprobs: Some(1),
        ..greedy(tokens)
    };
    for (tokens, stop, ids, reason) in [
        (50, vec![], vec![7, 8, 9], FinishReason::EndToken(1268)),
        (50, vec![8], vec![7], FinishReason::StopToken(8)),
        (2, vec![], vec![7, 8], FinishReason::Length),
    ] {
        let (said, end) = read(&backend, biased(tokens, stop));
        assert_eq!((said, end.unwrap()), (ids, reason));
    }
    assert_eq!(backend.metrics().generated_tokens, 4 + 2 + 2);
    let asked = server.server().asked();
    assert_eq!(asked[before..].iter().filter(|asked| asked.path == "/v1/completions").count(), 3);
    assert!(asked[before..].iter().all(|asked| asked.path != "/inference/v1/generate"));
}

/// Without the model's files text is the server's, and the front end in Rust shows none where it takes tokens.
#[test]
fn a_server_shows_text_where_there_is_no_tokenizer() {
    let shown = [Form::Python, Form::Rust].map(|front_end| {
        let server = Synthetic::start(SyntheticConfig { front_end, ..SyntheticConfig::default() }).unwrap();
        let own = VllmConfig { front_end: FrontEnd::default(), ..config(&[Way::Http.url(&server)]) };
        let backend = VllmRemoteBackend::connect(own).unwrap();
        let mut shown = String::new();
        for event in backend.generate(greedy(12)).unwrap().blocking() {
            if let Event::Tokens { text, .. } = event.unwrap() {
                shown.push_str(&text);
            }
        }
        assert!(!shown.is_empty(), "{front_end:?}");
        shown
    });
    assert_eq!(shown[0], shown[1]);
}

fn forms_of_the_stream_change_nothing(way: Way) {
    let server = server();
    let backend = connect(way, &server);
    for fault in [
        Fault::Comments,
        Fault::CarriageReturns,
        Fault::Glue,
        Fault::NoDone,
        Fault::Split { bytes: 1 },
        Fault::Split { bytes: 7 },
        Fault::SplitAt { at: 11 },
    ] {
        let what = format!("{fault:?}");
        server.server().set_script(on_generate(way, fault));
        assert_whole(&server, &backend, &what);
    }
}

fn a_reply_that_is_cut_goes_on_from_its_own_tokens(way: Way) {
    let server = server();
    let backend = connect(way, &server);
    for &how in way.cuts() {
        for pieces in [0, 1, 3, 11] {
            server.server().set_script(on_generate(way, Fault::Cut { after: After::Pieces(pieces), how }));
            assert_whole(&server, &backend, &format!("{how:?} after {pieces}"));
        }
    }
    let event = Fault::ErrorEvent { after: 4, front_end: Form::Python, message: "the engine died".into() };
    server.server().set_script(on_generate(way, event));
    assert_whole(&server, &backend, "an error in the middle");
}

fn a_reply_that_cannot_go_on_ends_with_the_error(way: Way) {
    let server = server();
    let backend = connect(way, &server);
    let faults = [
        Fault::Cut { after: After::Pieces(3), how: Cut::Close },
        Fault::Cut { after: After::Pieces(3), how: Cut::Reset },
        Fault::ErrorEvent { after: 3, front_end: Form::Python, message: "the engine died".into() },
        Fault::NoFinish,
    ];
    for fault in faults {
        let what = format!("{fault:?}");
        server.server().set_script(always(way, fault));
        let before = server.server().counts().requests;
        let (ids, end) = read(&backend, drawn(12));
        let error = end.unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary), "{what}: {error}");
        assert!(ids.len() >= 2, "{what}: what came is delivered");
        assert!(error.context().any(|pair| pair.0 == "endpoint"), "{error}");
        let health = 40;
        assert!(server.server().counts().requests - before <= 1 + health, "{what}: it is not asked again");
        server.server().set_script(Script::new());
        while backend.replicas()[0].down.is_some() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_whole(&server, &backend, "afterwards");
}

fn resuming_can_be_switched_off(way: Way) {
    let server = server();
    let retries = Retries { resume: Resume::Never, ..Retries::default() };
    let backend = VllmRemoteBackend::connect(VllmConfig { retries, ..config(&[way.url(&server)]) }).unwrap();
    server.server().set_script(on_generate(way, Fault::Cut { after: After::Pieces(3), how: Cut::Close }));
    let (ids, end) = read(&backend, greedy(12));
    // HTTP/2 may take back what had come last.
    let came = server.continuation(LAST, "", 3);
    assert!(ids.len() >= 2 && came.starts_with(&ids), "{ids:?}");
    assert_eq!(end.unwrap_err().kind(), ErrorKind::Remote);
}

fn refusals_for_now_are_asked_again(way: Way) {
    let server = server();
    let backend = connect(way, &server);
    let busy = [
        Fault::Unavailable { retry_after: None },
        Fault::TooMany { retry_after: Some(1) },
        Fault::ServerError { message: "EngineCore encountered an issue".into() },
        Fault::Cut { after: After::Nothing, how: Cut::Reset },
        Fault::Instead { status: 502, content_type: "text/html".into(), body: "<h1>Bad Gateway</h1>".into() },
    ];
    for fault in busy {
        let what = format!("{fault:?}");
        server.server().set_script(on_generate(way, fault));
        assert_whole(&server, &backend, &what);
    }
    server.server().set_script(always(way, Fault::Unavailable { retry_after: None }));
    let (ids, end) = read(&backend, greedy(4));
    let error = end.unwrap_err();
    // By gRPC the same code says that a server is down.
    let kind = if way == Way::Http { ErrorKind::Overloaded } else { ErrorKind::Remote };
    assert_eq!((error.kind(), error.status(), ids.len()), (kind, ErrorStatus::Temporary, 0));
    assert!(error.context().any(|pair| pair == ("attempts", "4")), "{error}");
}

fn what_is_wrong_is_told_once(way: Way) {
    let server = server();
    let backend = connect(way, &server);
    for shape in ErrorShape::ALL {
        let message = "max_tokens must be at least 1".to_owned();
        server.server().set_script(always(way, Fault::BadRequest { shape, message }));
        let (_, end) = read(&backend, greedy(4));
        let error = end.unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::InvalidRequest, ErrorStatus::Permanent), "{shape:?}");
        assert_eq!(server.server().fired(), [1], "{shape:?}: it is asked once");
        if !matches!(shape, ErrorShape::Empty | ErrorShape::BrokenJson) {
            assert!(error.message().contains("at least 1"), "{shape:?}: {error}");
        }
    }
    server.server().set_script(always(way, Fault::Unauthorized));
    let error = read(&backend, greedy(4)).1.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    server.server().set_script(always(way, Fault::NoModel { front_end: Form::Rust, model: "gone".into() }));
    assert_eq!(read(&backend, greedy(4)).1.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn keys_are_demanded_and_never_repeated() {
    let api_key = Some("a-secret-of-the-server".to_owned());
    let server = Synthetic::start(SyntheticConfig { api_key, ..SyntheticConfig::default() }).unwrap();
    let url = [server.server().http_url()];
    let with = |key: &str| VllmConfig { api_key: Some(ApiKey::new(key).unwrap()), ..config(&url) };
    let backend = VllmRemoteBackend::connect(with("a-secret-of-the-server")).unwrap();
    assert_whole(&server, &backend, "with the key");
    assert!(!format!("{:?} {backend:?}", with("a-secret-of-the-server")).contains("a-secret"));
    for wrong in [config(&url), with("another-secret-of-mine")] {
        let error = VllmRemoteBackend::connect(wrong).unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::InvalidConfig, ErrorStatus::Permanent), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

/// vLLM's gRPC demands no key, but a proxy before it may.
#[cfg(feature = "grpc")]
#[test]
fn a_key_that_is_refused_by_grpc_is_told_and_never_repeated() {
    let server = server();
    let keyed =
        || VllmConfig { api_key: Some(ApiKey::new("a-secret-of-mine").unwrap()), ..config(&[Way::Grpc.url(&server)]) };
    let backend = VllmRemoteBackend::connect(keyed()).unwrap();
    assert_whole(&server, &backend, "with a key that nobody demands");
    server.server().set_script(Script::new().on(When::always(), Fault::Unauthorized));
    let error = VllmRemoteBackend::connect(keyed()).unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::InvalidConfig, ErrorStatus::Permanent), "{error}");
    assert!(!format!("{error:?} {backend:?}").contains("secret"), "{error:?}");
}

fn another_model_is_not_taken_for_it(way: Way) {
    let server = server();
    let url = [way.url(&server)];
    let error = VllmRemoteBackend::connect(VllmConfig { model: Some("qwen".into()), ..config(&url) }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.context().any(|pair| pair == ("it has", "synthetic")), "{error}");
}

fn silence_ends_with_its_time_limit_and_others_go_on(way: Way) {
    let server = server();
    let backend = Arc::new(connect(way, &server));
    for after in [After::Nothing, After::Pieces(0), After::Pieces(2)] {
        server.server().set_script(on_generate(way, Fault::Silence { after }));
        let began = Instant::now();
        let silent = {
            let backend = Arc::clone(&backend);
            std::thread::spawn(move || read(&backend, drawn(12)))
        };
        assert!(server.server().wait_until(Duration::from_secs(5), |counts| counts.in_flight > 0));
        for _ in 0..3 {
            assert_whole(&server, &backend, "beside the silent one");
        }
        let (_, end) = silent.join().unwrap();
        // What had said nothing is asked again, and then answered.
        if let Err(error) = end {
            assert_eq!((error.kind(), after), (ErrorKind::Remote, After::Pieces(2)), "{error}");
        }
        assert!(began.elapsed() < Duration::from_secs(40), "{after:?} took {:?}", began.elapsed());
    }
}

fn a_paused_server_is_noticed_and_deadlines_hold(way: Way) {
    let server = server();
    let backend = connect(way, &server);
    server.server().pause();
    let deadlines = Deadlines { first_token: Some(Duration::from_millis(200)), total: None };
    let began = Instant::now();
    let (_, end) = read(&backend, GenerateRequest { deadlines, ..greedy(4) });
    assert_eq!(end.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(backend.metrics().missed_first_token, 1);
    // Its health says so, although `/health` does not.
    let noticed = Instant::now();
    while backend.replicas()[0].down.as_deref().is_none_or(|why| !why.contains("paused")) {
        assert!(noticed.elapsed() < Duration::from_secs(10), "{:?}", backend.replicas());
        std::thread::sleep(Duration::from_millis(10));
    }
    server.server().resume();
    while backend.replicas()[0].down.is_some() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_whole(&server, &backend, "resumed");
}

fn a_server_whose_health_hangs_hides_no_other(way: Way) {
    let servers = [server(), server()];
    let urls: Vec<String> = servers.iter().map(|server| way.url(server)).collect();
    let patient = Timeouts { control: Duration::from_secs(60), ..config(&urls).timeouts };
    let backend = VllmRemoteBackend::connect(VllmConfig { timeouts: patient, ..config(&urls) }).unwrap();
    servers[0]
        .server()
        .set_script(Script::new().on(When::containing(way.health()), Fault::Silence { after: After::Nothing }));
    let began = Instant::now();
    while servers[0].server().counts().in_flight == 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "its health was not asked");
        std::thread::sleep(Duration::from_millis(5));
    }
    servers[1].server().pause();
    while backend.replicas()[1].down.is_none() {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", backend.replicas());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(backend.replicas()[0].down.is_none(), "its health is not known yet: {:?}", backend.replicas());
}

fn a_slow_reply_meets_the_deadline_of_the_whole(way: Way) {
    let server = slow_server(Duration::from_millis(50));
    let backend = connect(way, &server);
    let deadlines = Deadlines { first_token: None, total: Some(Duration::from_millis(400)) };
    let (ids, end) = read(&backend, GenerateRequest { deadlines, ..greedy(1000) });
    assert_eq!(end.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(!ids.is_empty() && ids.len() < 12, "{}", ids.len());
    assert!(server.server().wait_until(Duration::from_secs(5), |counts| counts.in_flight == 0), "the server goes on");
}

fn what_is_dropped_ends_on_the_server(way: Way) {
    let server = slow_server(Duration::from_millis(10));
    let backend = connect(way, &server);
    let before = server.server().cancelled();
    let mut events = backend.generate(greedy(4000)).unwrap().blocking();
    while !matches!(events.next(), Some(Ok(Event::Tokens { .. }))) {}
    drop(events);
    assert!(server.server().wait_until(Duration::from_secs(5), |counts| counts.in_flight == 0));
    assert_eq!(server.server().cancelled(), before + 1);
    let metrics = backend.metrics();
    assert_eq!((metrics.cancelled, metrics.running), (1, 0));
    // By gRPC it is aborted by name besides.
    let began = Instant::now();
    while way != Way::Http && !server.server().asked().iter().any(|asked| asked.path.ends_with("/Abort")) {
        assert!(began.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn a_server_that_goes_leaves_its_requests_to_another(way: Way) {
    let (one, other) = (slow_server(Duration::from_millis(5)), slow_server(Duration::from_millis(5)));
    let urls = [way.url(&one), way.url(&other)];
    let backend = Arc::new(VllmRemoteBackend::connect(config(&urls)).unwrap());
    // The same beginning always asks the same server.
    for _ in 0..6 {
        assert_whole(&one, &backend, "two servers");
    }
    let generations = |server: &Synthetic| {
        server.server().asked().iter().filter(|asked| asked.path.contains(way.generation())).count()
    };
    let home = if generations(&one) > generations(&other) { &one } else { &other };
    let running: Vec<_> = (0..4)
        .map(|_| {
            let backend = Arc::clone(&backend);
            std::thread::spawn(move || read(&backend, greedy(60)))
        })
        .collect();
    assert!(home.server().wait_until(Duration::from_secs(5), |counts| counts.in_flight >= 2));
    home.server().stop_listening().unwrap();
    home.server().cut_connections(Cut::Reset);
    for reply in running {
        let (ids, end) = reply.join().unwrap();
        assert_eq!((ids, end.unwrap()), (one.continuation(LAST, "", 60), FinishReason::Length));
    }
    assert_whole(&one, &backend, "with one server");
    home.server().listen_again().unwrap();
    let began = Instant::now();
    while backend.replicas().iter().any(|replica| replica.down.is_some()) {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", backend.replicas());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn a_server_that_was_started_anew_is_given_its_adapters_again(way: Way) {
    let server = server();
    let folder = tempfile::tempdir().unwrap();
    let share = AdapterShare { local: folder.path().to_owned(), remote: folder.path().to_owned() };
    let settings = VllmConfig { adapters: Some(share), ..config(&[way.url(&server)]) };
    let backend = VllmRemoteBackend::connect(settings).unwrap();
    let pirate = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../models/etude/adapters/pirate");
    block_on(backend.load_adapter("pirate", AdapterFiles::Directory(pirate))).unwrap();
    let adapters = vec![AdapterUse { id: "pirate".into(), scale: 1.0 }];
    let with = || read(&backend, GenerateRequest { adapters: adapters.clone(), ..greedy(12) });
    let (first, end) = with();
    assert_eq!(end.unwrap(), FinishReason::Length);
    let name = server.adapters().pop().unwrap().0;
    assert_eq!(first, server.continuation(LAST, &name, 12));
    for _ in 0..2 {
        server.forget_adapters();
        let (ids, end) = with();
        assert_eq!((ids, end.unwrap()), (first.clone(), FinishReason::Length));
        assert_eq!(server.adapters().len(), 1);
    }
    // Where the files are gone too, they are written again.
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    server.forget_adapters();
    assert_eq!(with().0, first);
    assert_whole(&server, &backend, "without the adapter");
}

fn nobody_there_is_an_error_in_time(way: Way) {
    let server = server();
    let backend = connect(way, &server);
    server.server().stop_listening().unwrap();
    server.server().cut_connections(Cut::Close);
    let began = Instant::now();
    let error = read(&backend, greedy(4)).1.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
    let error = VllmRemoteBackend::connect(config(&[way.url(&server)])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
}

fn an_event_that_never_ends_is_not_kept(way: Way) {
    let server = server();
    // It is ended for its length, also where that takes a while to come.
    let mut patient = config(&[way.url(&server)]);
    patient.timeouts.token = Duration::from_secs(60);
    let backend = VllmRemoteBackend::connect(patient).unwrap();
    server.server().set_script(always(way, Fault::Gigantic { after: 2, bytes: 1 << 40 }));
    let (_, end) = read(&backend, drawn(12));
    let error = end.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Permanent), "{error}");
    server.server().set_script(always(way, Fault::Garbage { after: 2 }));
    let error = read(&backend, drawn(12)).1.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
}

fn certificates_are_checked(way: Way) {
    let start = |certificate| {
        let tls = ServerTls::make(certificate).unwrap();
        let authority = tls.authority_pem().to_owned();
        let server = ServerConfig { tls: Some(tls), ..ServerConfig::default() };
        (Synthetic::start(SyntheticConfig { server, ..SyntheticConfig::default() }).unwrap(), authority)
    };
    let trusting = |server: &Synthetic, authority: String| VllmConfig {
        authorities: Some(authority.into_bytes().into()),
        ..config(&[way.url(server)])
    };
    let (server, authority) = start(Certificate::Right);
    let backend = VllmRemoteBackend::connect(trusting(&server, authority)).unwrap();
    assert_whole(&server, &backend, "by TLS");
    for wrong in [Certificate::WrongName, Certificate::SelfSigned, Certificate::UnknownAuthority, Certificate::Expired]
    {
        let (server, authority) = start(wrong);
        let error = VllmRemoteBackend::connect(trusting(&server, authority)).unwrap_err();
        assert_eq!(
            (error.kind(), error.status()),
            (ErrorKind::InvalidConfig, ErrorStatus::Permanent),
            "{wrong:?}: {error}"
        );
        assert!(error.message().contains("certificate"), "{error}");
    }
}

fn more_than_may_be_on_their_way_are_refused_at_once(way: Way) {
    let server = slow_server(Duration::from_millis(5));
    let backend = VllmRemoteBackend::connect(VllmConfig { max_requests: 2, ..config(&[way.url(&server)]) });
    let backend = backend.unwrap();
    let running = [backend.generate(greedy(400)).unwrap(), backend.generate(greedy(400)).unwrap()];
    let error = backend.generate(greedy(4)).unwrap_err();
    assert_eq!((error.kind(), backend.metrics().refused), (ErrorKind::Overloaded, 1));
    drop(running);
    let began = Instant::now();
    while backend.metrics().running > 0 {
        assert!(began.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_whole(&server, &backend, "when they are gone");
}
