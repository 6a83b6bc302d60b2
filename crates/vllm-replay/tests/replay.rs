//! What is recorded is what is played, to the byte; strangers are named; transcripts are read with suspicion.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use common::{End, ask, connect, generate, read, send};
use consort_core::ErrorKind;
use consort_vllm_replay::{
    Ending, FrontEnd, Player, PlayerConfig, Recorder, RecorderConfig, Rules, Synthetic, SyntheticConfig, Transcript,
};
use proptest::prelude::*;
use vllm_proto::control_client::ControlClient;
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::{GenerateRequest, GenerateResponse, ListLorasRequest, StoppingCriteria, TokenIds, generate_request};

const GENERATE: &str = "/inference/v1/generate";

fn recorder(synthetic: &Synthetic, rules: Rules) -> Recorder {
    Recorder::start(RecorderConfig {
        http_from: Some(synthetic.server().http().to_string()),
        grpc_from: Some(synthetic.server().grpc().to_string()),
        source: "synthetic".into(),
        scene: "a test".into(),
        rules,
        ..RecorderConfig::default()
    })
    .unwrap()
}

fn player(transcript: Transcript) -> Player {
    Player::start(transcript, &PlayerConfig::default()).unwrap()
}

/// A conversation over gRPC: the messages of a stream, the refusal of another, and a unary call.
fn converse(url: String) -> (Vec<GenerateResponse>, tonic::Status, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = InferenceClient::connect(url.clone()).await.unwrap();
        let request = |model: &str| GenerateRequest {
            request_id: "mine".into(),
            model: model.into(),
            prompt: Some(generate_request::Prompt::TokenIds(TokenIds { ids: vec![1, 2, 3] })),
            stopping: Some(StoppingCriteria { max_new_tokens: 6, ..StoppingCriteria::default() }),
            ..GenerateRequest::default()
        };
        let mut stream = client.generate_stream(request("synthetic")).await.unwrap().into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            messages.push(message);
        }
        let refused = client.generate_stream(request("nobody")).await.unwrap_err();
        let loras = ControlClient::connect(url).await.unwrap().list_loras(ListLorasRequest {}).await.unwrap();
        (messages, refused, loras.into_inner().adapters.len())
    })
}

#[test]
fn what_was_recorded_is_played_to_the_byte() {
    for front_end in [FrontEnd::Python, FrontEnd::Rust] {
        let synthetic = Synthetic::start(SyntheticConfig { front_end, ..SyntheticConfig::default() }).unwrap();
        let recorder = recorder(&synthetic, Rules::none());
        let requests = [
            ("GET", "/v1/models", String::new()),
            ("GET", "/metrics", String::new()),
            ("GET", "/nowhere", String::new()),
            ("POST", GENERATE, generate(5)),
            ("POST", GENERATE, generate(5).replace("true", "false")),
            ("POST", "/v1/completions", r#"{"prompt":"Grüße","stream":true,"logprobs":2}"#.to_owned()),
            (
                "POST",
                "/v1/chat/completions",
                r#"{"messages":[{"content":"Hi"}],"stream":true,"max_tokens":3}"#.to_owned(),
            ),
            ("POST", GENERATE, "{bad".to_owned()),
        ];
        let all = |to| requests.clone().map(|(method, path, body)| ask(to, method, path, &body));
        let told = all(recorder.http());
        let by_grpc = converse(recorder.grpc_url());
        assert_eq!(by_grpc.0.len(), 7, "the prompt, then a message for each token");
        assert_eq!(by_grpc.1.code(), tonic::Code::NotFound);
        let transcript = recorder.finish().unwrap();
        let text = transcript.to_text();
        let again = Transcript::parse(&text).unwrap();
        assert_eq!(again, transcript);
        assert_eq!(again.to_text(), text);
        let player = player(again);
        for ((told, played), request) in told.iter().zip(all(player.server().http())).zip(&requests) {
            assert_eq!(
                (told.status, told.end, &told.chunks),
                (played.status, played.end, &played.chunks),
                "{request:?}"
            );
        }
        let played = converse(player.server().grpc_url());
        assert_eq!(
            (played.0, played.1.code(), played.1.message(), played.2),
            (by_grpc.0, by_grpc.1.code(), by_grpc.1.message(), 0)
        );
        assert_eq!(player.strangers(), []);
        assert_eq!(player.unused(), Vec::<String>::new());
    }
}

#[test]
fn volatile_things_do_not_make_a_stranger() {
    let synthetic = Synthetic::start(SyntheticConfig::default()).unwrap();
    let rules = Rules { replaced: vec![("/here".into(), "/models".into())], ..Rules::default() };
    let recorder = recorder(&synthetic, rules);
    ask(recorder.http(), "POST", GENERATE, r#"{"token_ids":[1,2],"request_id":"a","x":{"b":1,"a":2}}"#);
    ask(recorder.http(), "POST", "/v1/load_lora_adapter", r#"{"lora_name":"p","lora_path":"/here/pirate"}"#);
    ask(recorder.http(), "POST", "/tokenize", r#"{"prompt":"","u":"data:image/png;base64,QUJD"}"#);
    let transcript = recorder.finish().unwrap();
    assert!(!transcript.to_text().contains("QUJD") && !transcript.to_text().contains("/here"));
    let player = player(Transcript::parse(&transcript.to_text()).unwrap());
    let to = player.server().http();
    let generated = ask(to, "POST", GENERATE, r#"{"x":{"a":2,"b":1},"request_id":"b","token_ids":[1,2]}"#);
    assert!(generated.status == 200 && generated.text().contains("\"generate-tokens-0000000000000000\""));
    let load = ask(to, "POST", "/v1/load_lora_adapter", r#"{"lora_name":"p","lora_path":"C:\\there\\pirate"}"#);
    assert_eq!(load.status, 404);
    assert_eq!(ask(to, "POST", "/tokenize", r#"{"prompt":"","u":"data:image/png;base64,QUJD"}"#).status, 200);
    assert_eq!(player.strangers(), []);
    // Another picture is another request.
    assert_eq!(ask(to, "POST", "/tokenize", r#"{"prompt":"","u":"data:image/png;base64,QUJE"}"#).status, 599);
}

#[test]
fn a_stranger_is_told_what_is_strange() {
    let synthetic = Synthetic::start(SyntheticConfig::default()).unwrap();
    let recorder = recorder(&synthetic, Rules::default());
    for tokens in [5, 6, 900] {
        ask(recorder.http(), "POST", GENERATE, &generate(tokens));
    }
    ask(recorder.http(), "GET", "/health", "");
    let player = player(recorder.finish().unwrap());
    let to = player.server().http();
    assert_eq!(ask(to, "POST", GENERATE, &generate(5)).status, 200);
    let seen = ask(to, "POST", GENERATE, &generate(7));
    assert_eq!(seen.status, 599);
    assert!(seen.text().contains("body.sampling_params.max_tokens: asked 7, recorded "), "{}", seen.text());
    let strangers = player.strangers();
    assert_eq!(strangers.len(), 1);
    assert!(
        strangers[0].key.contains("\"max_tokens\":7")
            && strangers[0].nearest.starts_with("POST /inference/v1/generate")
    );
    let mut unused = player.unused();
    assert_eq!(unused.len(), 3);
    assert_eq!(unused.remove(0), "GET /health");
    let status = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = ControlClient::connect(player.server().grpc_url()).await.unwrap();
            client.list_loras(ListLorasRequest {}).await.unwrap_err()
        })
    };
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("asked `grpc /vllm.Control/ListLoras`"), "{status}");
}

#[test]
fn one_key_is_answered_in_order_and_then_with_the_last_again() {
    let synthetic = Synthetic::start(SyntheticConfig::default()).unwrap();
    let recorder = recorder(&synthetic, Rules::default());
    let to = recorder.http();
    ask(to, "GET", "/is_paused", "");
    ask(to, "POST", "/pause", "{}");
    ask(to, "GET", "/is_paused", "");
    let player = player(recorder.finish().unwrap());
    let asked = || ask(player.server().http(), "GET", "/is_paused", "").text().contains("true");
    assert_eq!([asked(), asked(), asked()], [false, true, true]);
}

#[test]
fn a_client_that_left_leaves_a_silence() {
    let config = SyntheticConfig { pace: Duration::from_millis(10), ..SyntheticConfig::default() };
    let synthetic = Synthetic::start(config).unwrap();
    let recorder = recorder(&synthetic, Rules::default());
    let mut stream = connect(recorder.http());
    send(&mut stream, "POST", GENERATE, &generate(3000));
    assert!(synthetic.server().wait_until(Duration::from_secs(20), |counts| counts.in_flight == 1));
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(std::io::Read::read(&mut stream, &mut [0; 1]).unwrap(), 1);
    drop(stream);
    assert!(
        synthetic.server().wait_until(Duration::from_secs(20), |counts| counts.cancelled == 1),
        "the recorder left too"
    );
    let transcript = recorder.finish().unwrap();
    assert!(matches!(transcript.conversations[0].reply.ending, Ending::Silence | Ending::Unanswered));
    let player = player(Transcript::parse(&transcript.to_text()).unwrap());
    let mut stream = connect(player.server().http());
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    send(&mut stream, "POST", GENERATE, &generate(3000));
    assert_eq!(read(&mut stream).end, End::Silent);
    drop(stream);
    assert!(player.server().wait_until(Duration::from_secs(20), |counts| counts.cancelled == 1));
}

/// Recorded from vLLM 0.32.0 itself.
fn recorded(name: &str) -> (String, Transcript) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded").join(name);
    (std::fs::read_to_string(&path).unwrap(), Transcript::load(&path).unwrap())
}

#[test]
fn what_vllm_itself_said_is_kept_and_played() {
    for name in ["python.jsonl", "rust.jsonl"] {
        let (text, transcript) = recorded(name);
        assert_eq!(transcript.to_text(), text, "{name}: reading and writing gives the same file");
        assert!(!transcript.conversations.is_empty());
        assert_eq!(transcript.scene("survey").conversations.len(), transcript.conversations.len());
        let player = player(transcript);
        let seen = ask(
            player.server().http(),
            "POST",
            GENERATE,
            r#"{"model":"etude","token_ids":[1,2,3],"stream":true,"return_token_ids":true,"sampling_params":{"max_tokens":4,"temperature":0}}"#,
        );
        assert_eq!((seen.status, seen.end, seen.chunks.len()), (200, End::Complete, 5), "{name}: {}", seen.text());
        assert!(seen.text().contains("\"token_ids\":[382]") && seen.text().contains("\"finish_reason\":\"stop\""));
        assert_eq!(player.strangers(), []);
    }
}

#[test]
fn scenes_are_replaced_by_newer_ones() {
    let (_, mut transcript) = recorded("rust.jsonl");
    let all = transcript.conversations.len();
    let mut newer = transcript.clone();
    newer.conversations.truncate(3);
    transcript.merge(newer.clone()).unwrap();
    assert_eq!(transcript.conversations.len(), 3);
    newer.conversations[0].scene = "another".into();
    newer.conversations.truncate(1);
    transcript.merge(newer.clone()).unwrap();
    assert_eq!(transcript.conversations.len(), 4);
    assert!(all > 4);
    newer.rules = Rules::none();
    assert!(transcript.merge(newer).is_err());
}

#[test]
fn a_malformed_transcript_is_refused_with_its_line() {
    let header = recorded("rust.jsonl").0.lines().next().unwrap().to_owned();
    for (line, says) in [
        ("{", "the line cannot be read"),
        (r#"{"ask":"GET /","events":[],"more":1}"#, "unknown field"),
        (r#"{"ask":"GET /","events":[[0,0,"x"]]}"#, "the first event cannot differ"),
        (r#"{"ask":"GET /","events":["a",[2,0,"x"]]}"#, "this is no event"),
        (r#"{"ask":"GET /","events":["a",[0,2,"x"]]}"#, "this is no event"),
        (r#"{"ask":"GET /","events":[["hex","0"]]}"#, "this is no event"),
        (r#"{"ask":"GET /","events":[["let","0000000000000000"]]}"#, "no line before says"),
        (r#"{"ask":"GET /","events":[7]}"#, "this is no event"),
        (r#"{"ask":"GET /","events":["a"],"ms":[[1,4000000000]]}"#, "more pauses than"),
        (r#"{"ask":"GET /","events":["a","b"],"ms":[[1,1]]}"#, "fewer pauses than"),
        (r#"{"ask":"GET /","events":[],"status":7}"#, "no HTTP status"),
        (r#"{"ask":"GET /","events":[],"end":"soon"}"#, "`end` is"),
        (r#"{"ask":"grpc /vllm.Control/IsPaused","events":[{"paused":7}]}"#, "no answer of"),
    ] {
        let error = Transcript::parse(&format!("{header}\n{line}\n")).unwrap_err();
        assert!(error.to_string().contains(says) && error.to_string().contains("line: 2"), "{line}: {error}");
    }
    assert!(Transcript::parse("").unwrap_err().to_string().contains("empty"));
    let newer = header.replace("\"transcript\":1", "\"transcript\":2");
    assert!(Transcript::parse(&newer).unwrap_err().to_string().contains("version 2"));
    // An event that doubles with each line would be a bomb.
    let long = "a".repeat(1 << 20);
    let events: Vec<String> = (0..300).map(|_| format!("[{},0,\"\"]", 1 << 20)).collect();
    let bomb = format!("{header}\n{{\"ask\":\"GET /\",\"events\":[\"{long}\",{}]}}\n", events.join(","));
    assert!(Transcript::parse(&bomb).unwrap_err().to_string().contains("256 MiB"));
}

#[test]
fn packed_transcripts_are_the_same() {
    let (_, transcript) = recorded("python.jsonl");
    let folder = tempfile::tempdir().unwrap();
    let (packed, again) = (folder.path().join("one.jsonl.gz"), folder.path().join("two.jsonl.gz"));
    transcript.save(&packed).unwrap();
    transcript.save(&again).unwrap();
    let bytes = std::fs::read(&packed).unwrap();
    assert_eq!(bytes, std::fs::read(&again).unwrap());
    assert!(bytes.len() < transcript.to_text().len() / 2);
    assert_eq!(Transcript::load(&packed).unwrap(), transcript);
    // Not whole, no such file, nothing that was packed, and more than anybody should unpack.
    std::fs::write(&packed, &bytes[..bytes.len() / 2]).unwrap();
    let kind = |path: &Path| Transcript::load(path).unwrap_err().kind();
    assert_eq!(kind(&packed), ErrorKind::Io);
    assert_eq!(kind(&folder.path().join("none.jsonl.gz")), ErrorKind::NotFound);
    std::fs::write(&packed, b"{}").unwrap();
    assert_eq!(kind(&packed), ErrorKind::Io);
    let mut bomb = flate2::write::GzEncoder::new(std::fs::File::create(&packed).unwrap(), flate2::Compression::fast());
    std::io::copy(&mut std::io::repeat(b' ').take((64 << 20) + 1), &mut bomb).unwrap();
    bomb.finish().unwrap();
    assert_eq!(kind(&packed), ErrorKind::InvalidConfig);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn damaged_transcripts_never_panic(at in 0_usize..20_000, byte in any::<u8>(), cut in 0_usize..20_000) {
        let (text, _) = recorded("rust.jsonl");
        let mut bytes = text.into_bytes();
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(length - cut % 200);
        if let Ok(text) = String::from_utf8(bytes)
            && let Ok(transcript) = Transcript::parse(&text)
        {
            let written = transcript.to_text();
            prop_assert_eq!(Transcript::parse(&written).unwrap().to_text(), written);
        }
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "\\PC{0,200}") {
        drop(Transcript::parse(&text));
    }

    #[test]
    fn events_of_any_bytes_come_back(events in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6), texts in prop::collection::vec("[a-cä\n\"{}0-2]{0,12}", 0..6)) {
        let (_, mut transcript) = recorded("python.jsonl");
        transcript.conversations.truncate(1);
        let reply = &mut transcript.conversations[0].reply;
        reply.events = events.into_iter().map(Into::into).chain(texts.into_iter().map(Into::into)).collect();
        reply.pauses = Vec::new();
        prop_assert_eq!(Transcript::parse(&transcript.to_text()).unwrap(), transcript);
    }
}
