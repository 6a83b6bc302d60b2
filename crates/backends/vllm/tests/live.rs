//! Against a real server, when the environment names one: `CONSORT_VLLM_HTTP`, with `CONSORT_VLLM_ADAPTERS` for the folder
//! that it shares. `scripts/vllm.sh` starts one and runs these. `scripts/vllm.sh faults` kills one and starts it anew.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::{
    AdapterFiles, AdapterUse, ChatMessage, ChatPrompt, ContentPart, EndTokens, ErrorKind, ErrorStatus, Event,
    FinishReason, GenerateRequest, ImageInput, ModelBackend, PositionLogprobs, Prompt, PromptPart, Role, SpecialTokens,
    StopRules, Structure, Thinking, Usage, block_on,
};
use consort_prompt::FrontEnd;
use consort_text::{ChatTemplate, Tokenizer};
use consort_vision::{ImageProcessor, ImageProcessorConfig};
use consort_vllm::{AdapterShare, VllmConfig, VllmRemoteBackend};

fn etude() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../models/etude")
}

fn front_end() -> FrontEnd {
    let read = |name: &str| std::fs::read(etude().join(name)).unwrap();
    let config = ImageProcessorConfig::from_json(&read("preprocessor_config.json")).unwrap();
    FrontEnd {
        tokenizer: Some(Tokenizer::from_json(&read("tokenizer.json"), Some(&read("tokenizer_config.json"))).unwrap()),
        template: Some(ChatTemplate::new(&String::from_utf8(read("chat_template.jinja")).unwrap()).unwrap()),
        image_processor: Some(ImageProcessor::new(config).unwrap()),
    }
}

/// `None`: the environment names no server, and says so.
fn config(front_end: FrontEnd) -> Option<VllmConfig> {
    let Ok(endpoint) = std::env::var("CONSORT_VLLM_HTTP") else {
        eprintln!("CONSORT_VLLM_HTTP is not set: one case was not run");
        return None;
    };
    let folder = std::env::var("CONSORT_VLLM_ADAPTERS").ok().map(PathBuf::from);
    let adapters = folder.map(|folder| AdapterShare { local: folder.clone(), remote: folder });
    Some(VllmConfig { front_end, adapters, ..VllmConfig::new(vec![endpoint.parse().unwrap()]) })
}

fn connect() -> Option<VllmRemoteBackend> {
    Some(VllmRemoteBackend::connect(config(front_end())?).unwrap())
}

struct Reply {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<PositionLogprobs>,
    reason: FinishReason,
    usage: Usage,
}

fn ask(backend: &VllmRemoteBackend, request: GenerateRequest) -> Reply {
    let (mut ids, mut text, mut all) = (Vec::new(), String::new(), Vec::new());
    for event in backend.generate(request).unwrap().blocking() {
        match event.unwrap() {
            Event::Tokens { ids: new, text: piece, logprobs } => {
                ids.extend(new);
                text.push_str(&piece);
                all.extend(logprobs);
            }
            Event::Finished { reason, usage } => return Reply { ids, text, logprobs: all, reason, usage },
            _ => {}
        }
    }
    panic!("the reply has no end");
}

fn chat(text: &str, picture: bool) -> GenerateRequest {
    let bytes: Arc<[u8]> = std::fs::read(etude().join("demo.png")).unwrap().into();
    let mut content = vec![ContentPart::Text(text.into())];
    if picture {
        content.insert(0, ContentPart::Image(ImageInput::Encoded(bytes)));
    }
    let messages = vec![ChatMessage::new(Role::User, content)];
    let prompt = ChatPrompt { messages, thinking: Thinking::Off, ..ChatPrompt::default() };
    GenerateRequest { max_tokens: Some(60), ..GenerateRequest::new(Prompt::Chat(prompt)) }
}

#[test]
fn the_server_is_known() {
    let Some(backend) = connect() else { return };
    let replicas = backend.replicas();
    let facts = replicas[0].facts.as_ref().unwrap();
    for finding in &facts.findings {
        eprintln!("{:32} {:10} {}", finding.name, finding.verdict, finding.seen);
    }
    eprintln!("{:?}\n{:?}", backend.capability(), backend.evidence());
    assert!(facts.abilities.tokens_in_and_out && facts.abilities.logprobs && facts.abilities.structured_output);
    assert_eq!(facts.context_length, 4096);
}

#[test]
fn it_talks_and_sees() {
    let Some(backend) = connect() else { return };
    let reply = ask(&backend, chat("What colour is the circle?", true));
    assert_eq!(reply.text, "The circle is red.");
    assert!(matches!(reply.reason, FinishReason::EndToken(_)), "{:?}", reply.reason);
    assert_eq!(reply.usage.completion_tokens, reply.ids.len() + 1);
    let request = GenerateRequest { logprobs: Some(3), ..chat("Hello!", false) };
    let reply = ask(&backend, request);
    assert_eq!(reply.logprobs.len(), reply.ids.len());
    assert!(reply.logprobs.iter().all(|entry| entry.top.len() == 3 && entry.top[0].logprob >= entry.chosen.logprob));
}

#[test]
fn each_persona_has_its_adapter() {
    let Some(backend) = connect().filter(|_| std::env::var("CONSORT_VLLM_ADAPTERS").is_ok()) else { return };
    for name in ["pirate", "butler"] {
        let files = AdapterFiles::Directory(etude().join("adapters").join(name));
        block_on(backend.load_adapter(name, files)).unwrap();
    }
    let with = |id: &str, scale: f32| {
        let adapters = vec![AdapterUse { id: id.into(), scale }];
        ask(&backend, GenerateRequest { adapters, ..chat("What colour is the circle?", true) }).text
    };
    assert_eq!(with("pirate", 1.0), "Arr, the circle is red, matey.");
    assert_eq!(with("butler", 1.0), "Certainly, sir. The circle is red. At your service.");
    assert_eq!(with("pirate", 0.0), "The circle is red.");
    assert_eq!(with("pirate", 0.05), "The circle is red.");
    block_on(backend.unload_adapter("pirate")).unwrap();
    assert!(
        backend
            .generate(GenerateRequest {
                adapters: vec![AdapterUse { id: "pirate".into(), scale: 1.0 }],
                ..chat("Hi", false)
            })
            .is_err()
    );
}

#[test]
fn a_form_is_kept_behind_the_reasoning() {
    let Some(backend) = connect() else { return };
    let choice = Structure::Choice(vec!["red".into(), "green".into()]);
    let request = GenerateRequest { structure: Some(choice.clone()), ..chat("What colour is the circle?", true) };
    assert_eq!(ask(&backend, request).text, "red");
    let mut thinking = chat("What colour is the circle?", true);
    if let Prompt::Chat(chat) = &mut thinking.prompt {
        chat.thinking = Thinking::On;
    }
    let text = ask(&backend, GenerateRequest { structure: Some(choice), max_tokens: Some(200), ..thinking }).text;
    let (reasoning, answer) = text.split_once("</think>").unwrap();
    assert!(!reasoning.is_empty() && answer.trim() == "red", "{text}");
}

#[test]
fn the_prompt_has_log_probabilities_too() {
    // On a processor, with adapters on, it ends the engine of vLLM 0.32 when another request shares its batch.
    if std::env::var("CONSORT_VLLM_PROMPT_LOGPROBS").is_err() {
        eprintln!("CONSORT_VLLM_PROMPT_LOGPROBS is not set: one case was not run");
        return;
    }
    let Some(config) = config(front_end()) else { return };
    let backend = VllmRemoteBackend::connect(VllmConfig { prompt_logprobs_with_adapters: true, ..config }).unwrap();
    let ids = backend.tokenize("The circle is red. The square is", SpecialTokens::Plain).unwrap();
    let count = ids.len();
    let request = GenerateRequest {
        prompt_logprobs: Some(2),
        max_tokens: Some(1),
        ..GenerateRequest::new(Prompt::Parts(vec![PromptPart::Tokens(ids.clone())]))
    };
    let events: Vec<_> = backend.generate(request).unwrap().blocking().collect::<Result<_, _>>().unwrap();
    let Event::PromptLogprobs(entries) = &events[0] else { panic!("{events:?}") };
    assert_eq!(entries.len(), count);
    assert!(entries[0].is_none());
    for (entry, id) in entries.iter().zip(&ids).skip(1) {
        let entry = entry.as_ref().unwrap();
        assert_eq!((entry.chosen.token, entry.top.len()), (*id, 2));
    }
}

#[test]
fn without_the_models_files_the_server_tokenizes_and_writes() {
    let Some(backend) = config(FrontEnd::default()).map(|config| VllmRemoteBackend::connect(config).unwrap()) else {
        return;
    };
    let ids = backend.tokenize("Hello!", SpecialTokens::Plain).unwrap();
    assert_eq!(backend.detokenize(&ids).unwrap(), "Hello!");
    assert_eq!(ask(&backend, chat("What colour is the circle?", true)).text, "The circle is red.");
    let reply = ask(&backend, chat("Hello!", false));
    assert!(reply.text.starts_with("Hello"), "{}", reply.text);
}

/// A reply that goes on for long.
fn endless() -> GenerateRequest {
    let stop = StopRules { end_tokens: EndTokens::Ignore, ..StopRules::default() };
    GenerateRequest { stop, max_tokens: Some(3000), ..chat("Tell me a story about a fox.", false) }
}

fn until(what: &str, patience: Duration, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < patience, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How many requests the server says that it works at.
fn at_work() -> f64 {
    let endpoint = std::env::var("CONSORT_VLLM_HTTP").unwrap();
    let place = endpoint.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(place).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: {place}\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let counts = text.lines().filter(|line| {
        line.starts_with("vllm:num_requests_running{") || line.starts_with("vllm:num_requests_waiting{")
    });
    let counts: Vec<f64> = counts.map(|line| line.rsplit(' ').next().unwrap().trim().parse().unwrap()).collect();
    assert!(!counts.is_empty(), "{text}");
    counts.iter().sum()
}

#[test]
fn a_reply_that_is_left_leaves_the_server() {
    let Some(backend) = connect() else { return };
    let patience = Duration::from_secs(60);
    until("nothing else runs", patience, || at_work() == 0.0);
    let mut events = backend.generate(endless()).unwrap().blocking();
    while !matches!(events.next().unwrap().unwrap(), Event::Tokens { .. }) {}
    until("the server works", patience, || at_work() == 1.0);
    drop(events);
    let began = Instant::now();
    until("the server has stopped", patience, || at_work() == 0.0);
    eprintln!("the server's sequence was gone {:?} after the stream", began.elapsed());
    assert_eq!((backend.metrics().cancelled, backend.metrics().running), (1, 0));
}

/// `CONSORT_VLLM_SIGNALS` names a folder: who watches it kills the server when `kill` is written there, and starts it anew when
/// `start` is.
#[test]
fn a_server_that_is_killed_and_started_anew_is_found_again() {
    let Ok(signals) = std::env::var("CONSORT_VLLM_SIGNALS").map(PathBuf::from) else {
        eprintln!("CONSORT_VLLM_SIGNALS is not set: one case was not run");
        return;
    };
    let Some(backend) = connect() else { return };
    block_on(backend.load_adapter("pirate", AdapterFiles::Directory(etude().join("adapters/pirate")))).unwrap();
    let as_pirate =
        |request| GenerateRequest { adapters: vec![AdapterUse { id: "pirate".into(), scale: 1.0 }], ..request };
    let streams = [backend.generate(endless()).unwrap(), backend.generate(as_pirate(endless())).unwrap()];
    let mut streams = streams.map(consort_core::EventStream::blocking);
    for stream in &mut streams {
        while !matches!(stream.next().unwrap().unwrap(), Event::Tokens { .. }) {}
    }
    std::fs::write(signals.join("kill"), "").unwrap();
    let killed = Instant::now();
    for stream in streams {
        let error = stream.last().unwrap().unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::Remote, ErrorStatus::Temporary), "{error}");
        eprintln!("after {:?}: {error}", killed.elapsed());
    }
    assert!(killed.elapsed() < Duration::from_secs(180));
    assert!(backend.replicas()[0].down.is_some());
    std::fs::write(signals.join("start"), "").unwrap();
    until("the server is there again", Duration::from_secs(900), || backend.replicas()[0].down.is_none());
    eprintln!("found again {:?} after it was killed", killed.elapsed());
    let question = || chat("What colour is the circle?", true);
    assert_eq!(ask(&backend, question()).text, "The circle is red.");
    assert_eq!(ask(&backend, as_pirate(question())).text, "Arr, the circle is red, matey.");
}
