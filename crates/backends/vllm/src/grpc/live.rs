//! Against a real vLLM.
//!
//! `CONSORT_VLLM_GRPC` names its gRPC endpoint (`grpc://127.0.0.1:9000`), `CONSORT_VLLM_HTTP` the HTTP endpoint of the same
//! server, `CONSORT_VLLM_IMAGE_TOKEN` the id of its image token, `CONSORT_VLLM_CA` a file with its authority,
//! `CONSORT_VLLM_KEY` its key, `CONSORT_VLLM_ADAPTERS` a folder that it sees. What is not named is not tried.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::{Sampling, Structure};
use futures_util::StreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::GrpcTransport;
use crate::call::{Call, CallPrompt, Chunk, ChunkStream, Finish};
use crate::config::{AdapterShare, ApiKey, Endpoint, VllmConfig};
use crate::facts::Verdict;
use crate::http::HttpTransport;
use crate::transport::Transport;

/// One at a time: with adapters on, vLLM 0.32 on a processor dies of a prompt's numbers in a batch with others.
static ALONE: Mutex<()> = Mutex::const_new(());

struct Live {
    grpc: GrpcTransport,
    http: Option<(HttpTransport, String)>,
    image_token: Option<u32>,
}

fn live() -> Option<Live> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let image_token = variable("CONSORT_VLLM_IMAGE_TOKEN").map(|id| id.parse().unwrap());
    let endpoint: Endpoint = variable("CONSORT_VLLM_GRPC")?.parse().unwrap();
    let config = VllmConfig {
        authorities: variable("CONSORT_VLLM_CA").map(|path| std::fs::read(path).unwrap().into()),
        api_key: variable("CONSORT_VLLM_KEY").map(|key| ApiKey::new(&key).unwrap()),
        adapters: variable("CONSORT_VLLM_ADAPTERS")
            .map(|folder| AdapterShare { local: folder.clone().into(), remote: folder.into() }),
        prompt_logprobs_with_adapters: true,
        ..VllmConfig::new(vec![endpoint.clone()])
    };
    let http = variable("CONSORT_VLLM_HTTP").map(|url| {
        let endpoint: Endpoint = url.parse().unwrap();
        (HttpTransport::new(&endpoint, &config, image_token).unwrap(), endpoint.url())
    });
    let grpc = GrpcTransport::new(&endpoint, &config, image_token, &Handle::current()).unwrap();
    Some(Live { grpc, http, image_token })
}

#[allow(clippy::print_stdout)] // Says what was not run.
fn not_run(cases: usize, variable: &str) {
    println!("{variable} is not set: {cases} cases not run");
}

fn call(model: &str, id: &str) -> Call {
    Call {
        id: format!("consort-live-{}-{id}", std::process::id()),
        model: model.into(),
        adapter: None,
        prompt: CallPrompt::Tokens { ids: vec![1, 2, 3], pictures: Vec::new() },
        sampling: Sampling::default(),
        stop_strings: Vec::new(),
        stop_tokens: Vec::new(),
        min_tokens: 0,
        ignore_end: true,
        max_tokens: 8,
        logprobs: None,
        prompt_logprobs: None,
        structure: None,
        priority: None,
        salt: "consort-live".into(),
        bypass: false,
    }
}

async fn model(grpc: &GrpcTransport) -> String {
    grpc.ask(grpc.control().get_model_info(vllm_proto::GetModelInfoRequest {})).await.unwrap().served_model_name
}

async fn whole(mut stream: ChunkStream) -> Chunk {
    let mut all = Chunk::default();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        all.prompt_tokens = chunk.prompt_tokens.or(all.prompt_tokens);
        all.cached_tokens = chunk.cached_tokens.or(all.cached_tokens);
        all.prompt_logprobs = chunk.prompt_logprobs.or(all.prompt_logprobs);
        all.ids.extend(chunk.ids);
        all.logprobs.extend(chunk.logprobs);
        all.text.push_str(&chunk.text);
        all.finish = chunk.finish.or(all.finish);
    }
    all
}

async fn running(url: &str) -> f64 {
    let metrics = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
    let line = metrics.lines().find(|line| line.starts_with("vllm:num_requests_running")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
#[allow(clippy::print_stdout)] // The findings are what one runs it for.
async fn probing_a_real_server() {
    let _alone = ALONE.lock().await;
    let Some(Live { grpc, image_token, .. }) = live() else { return not_run(1, "CONSORT_VLLM_GRPC") };
    grpc.health().await.unwrap();
    let facts = grpc.probe().await.unwrap();
    println!("{facts:#?}");
    let does = facts.abilities;
    assert!(does.tokens_in_and_out && does.logprobs && does.prompt_logprobs && does.structured_output);
    assert!(does.logit_bias && does.seed && does.priority && does.tells_cached_tokens);
    assert_eq!(does.pictures_with_tokens, image_token.is_some());
    let verdict = |name| facts.findings.iter().find(|finding| finding.name == name).unwrap().verdict;
    assert_eq!((verdict("stop_tokens"), verdict("forbidden_tokens")), (Verdict::Works, Verdict::Works));
}

#[tokio::test]
async fn both_protocols_of_a_real_server_say_the_same() {
    let _alone = ALONE.lock().await;
    let Some(Live { grpc, http, .. }) = live() else { return not_run(1, "CONSORT_VLLM_GRPC") };
    let Some((http, _)) = http else { return not_run(1, "CONSORT_VLLM_HTTP") };
    let model = http.probe().await.unwrap().model;
    let drawn = Sampling { temperature: 1.2, top_p: 0.9, seed: u64::MAX - 5, ..Sampling::default() };
    let calls = [
        Call { logprobs: Some(3), ..call(&model, "greedy") },
        Call { sampling: drawn, max_tokens: 16, ..call(&model, "drawn") },
        Call { structure: Some(Structure::Regex("[0-9]{4}".into())), ignore_end: false, ..call(&model, "form") },
        Call { ignore_end: false, max_tokens: 64, ..call(&model, "end") },
    ];
    for asked in calls.map(Arc::new) {
        let by_grpc = whole(grpc.generate(&asked).await.unwrap()).await;
        let by_http = whole(http.generate(&asked).await.unwrap()).await;
        assert_eq!(by_grpc.ids, by_http.ids, "{}", asked.id);
        assert_eq!(by_grpc.finish, by_http.finish, "{}", asked.id);
        assert_eq!(by_grpc.logprobs.len(), by_http.logprobs.len());
        for (a, b) in by_grpc.logprobs.iter().zip(&by_http.logprobs) {
            let ids = |entry: &consort_core::PositionLogprobs| entry.top.iter().map(|c| c.token).collect::<Vec<_>>();
            assert_eq!(ids(a), ids(b));
            assert!((a.chosen.logprob - b.chosen.logprob).abs() < 1e-4, "{a:?} {b:?}");
        }
    }
}

#[tokio::test]
#[allow(clippy::print_stdout)] // How long it took is what one runs it for.
async fn a_reply_of_a_real_server_that_is_dropped_stops() {
    let _alone = ALONE.lock().await;
    let Some(Live { grpc, http, .. }) = live() else { return not_run(1, "CONSORT_VLLM_GRPC") };
    let Some((_, url)) = http else { return not_run(1, "CONSORT_VLLM_HTTP") };
    let model = model(&grpc).await;
    let before = running(&url).await;
    let mut stream = grpc.generate(&Arc::new(Call { max_tokens: 3000, ..call(&model, "long") })).await.unwrap();
    while stream.next().await.unwrap().unwrap().ids.is_empty() {}
    assert!(running(&url).await > before, "it runs");
    drop(stream);
    let since = Instant::now();
    while running(&url).await > before {
        assert!(since.elapsed() < Duration::from_secs(10), "it goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("it stopped within {} ms", since.elapsed().as_millis());
}

#[tokio::test]
async fn the_numbers_of_a_real_servers_prompt_come_with_the_stream() {
    let _alone = ALONE.lock().await;
    let Some(Live { grpc, image_token, .. }) = live() else { return not_run(1, "CONSORT_VLLM_GRPC") };
    let model = model(&grpc).await;
    let plain = Call { prompt_logprobs: Some(2), logprobs: Some(1), ..call(&model, "prompt") };
    let reply = whole(grpc.generate(&Arc::new(plain.clone())).await.unwrap()).await;
    let entries = reply.prompt_logprobs.unwrap();
    assert_eq!((entries.len(), entries[0].is_none(), reply.prompt_tokens), (3, true, Some(3)));
    assert_eq!(entries[2].as_ref().unwrap().chosen.token, 3);
    assert_eq!((reply.ids.len(), reply.logprobs.len(), reply.finish), (8, 8, Some(Finish::Length)));
    let Some(image) = image_token else { return not_run(1, "CONSORT_VLLM_IMAGE_TOKEN") };
    let pictures = vec![crate::trials::plain([10, 200, 10]).unwrap()];
    let prompt = CallPrompt::Tokens { ids: vec![1, 2, image, 3], pictures };
    let reply = whole(grpc.generate(&Arc::new(Call { prompt, ..plain })).await.unwrap()).await;
    let entries = reply.prompt_logprobs.unwrap();
    assert_eq!(Some(entries.len()), reply.prompt_tokens);
    assert!(entries.len() > 4 && entries.last().unwrap().is_some());
    assert!(entries[2..entries.len() - 1].iter().all(Option::is_none), "{entries:?}");
    let broken = crate::call::Picture { bytes: (&b"no picture"[..]).into(), mime: "image/png" };
    let prompt = CallPrompt::Tokens { ids: vec![1, 2, image, 3], pictures: vec![broken] };
    let error = grpc.generate(&Arc::new(Call { prompt, ..call(&model, "broken") })).await.err().unwrap();
    assert_eq!(error.kind(), consort_core::ErrorKind::InvalidImage);
}
