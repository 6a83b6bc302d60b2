//! Connecting.

use std::sync::Arc;
use std::time::Instant;

use consort_core::{AdapterMode, Capability, Error, ErrorKind, ModelInfo, Result};
use consort_grammar::{Compiler, GrammarLimits, Vocabulary};
use consort_prompt::Prompter;
use consort_text::Tokenizer;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::adapters::{self, Adapters};
use crate::backend::VllmRemoteBackend;
use crate::books::Books;
use crate::config::{Endpoint, Protocol, VllmConfig};
use crate::facts::ServerFacts;
use crate::http::HttpTransport;
use crate::replica::{Replica, Replicas};
use crate::retry::Budget;
use crate::session::{Crossing, Reasoning};
use crate::transport::Transport;

/// Threads that wait for servers.
const THREADS: usize = 2;

impl VllmRemoteBackend {
    /// Connects to the servers, and finds out what they do. One that answers is enough; the others are asked again while
    /// this one works.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a configuration that cannot be, a key that is not accepted, certificates that are
    /// not; [`ErrorKind::NotFound`] for a model that no server has; [`ErrorKind::Remote`] when no server is reached.
    pub fn connect(config: VllmConfig) -> Result<Self> {
        check(&config)?;
        let runtime =
            Builder::new_multi_thread().worker_threads(THREADS).thread_name("consort-vllm").enable_all().build();
        let runtime = runtime.map_err(|source| {
            Error::new(ErrorKind::Unexpected, "the threads that wait for servers cannot be started").with_source(source)
        })?;
        let tokenizer = config.front_end.tokenizer.as_ref();
        let image_token = match &config.model_info {
            Some(info) => info.image_token,
            None => tokenizer.and_then(|tokenizer| tokenizer.token_to_id("<|image_pad|>")),
        };
        let replicas = config.endpoints.iter().map(|endpoint| {
            let transport = transport(endpoint, &config, image_token, runtime.handle())?;
            Ok(Arc::new(Replica::new(endpoint.to_string(), transport)))
        });
        let replicas = Arc::new(Replicas { all: replicas.collect::<Result<Vec<_>>>()? });
        let facts = runtime_block_on(&runtime, meet(Arc::clone(&replicas), config.timeouts.load))?;
        let info = info(&config, &facts, image_token);
        let capability = capability(&config, &facts, &info);
        let reasoning = tokenizer.and_then(|tokenizer| {
            let (begin, end) = tokenizer.token_to_id("<think>").zip(tokenizer.token_to_id("</think>"))?;
            // As byte-level vocabularies spell them.
            let line_ends = [("Ċ", 1), ("ĊĊ", 2)];
            let line_ends =
                line_ends.into_iter().filter_map(|(text, count)| Some((tokenizer.token_to_id(text)?, count)));
            Some((begin, Reasoning { end, line_ends: line_ends.collect() }))
        });
        let structures = tokenizer.filter(|_| capability.structured_output);
        let structures = structures.map(|tokenizer| compiler(tokenizer, &info)).transpose()?;
        let prompter = Prompter::new(config.front_end.clone(), crate::NAME, info.image_token);
        let prefix = config.instance.clone().unwrap_or_else(prefix);
        let adapters = Adapters::new(config.adapters.clone(), &prefix, Arc::clone(&replicas), runtime.handle());
        // Each by itself: one that hangs holds up nobody else's.
        for replica in &replicas.all {
            runtime.spawn(watch(Arc::downgrade(replica), config.health_interval));
        }
        let crossing = Crossing {
            replicas,
            retries: config.retries,
            budget: Budget::new(config.retries),
            patience: config.timeouts.head,
        };
        Ok(Self {
            takes_priority: facts.iter().all(|facts| facts.abilities.priority),
            prefix,
            structures,
            reasoning,
            info,
            capability,
            prompter,
            crossing: Arc::new(crossing),
            adapters: Arc::new(adapters),
            books: Arc::new(Books::default()),
            requests: 0.into(),
            config,
            runtime: Some(runtime),
        })
    }
}

fn check(config: &VllmConfig) -> Result<()> {
    let refuse = |key: &'static str, message: &str| {
        Err(Error::new(ErrorKind::InvalidConfig, message).with_backend(crate::NAME).with_context("key", key))
    };
    if config.endpoints.is_empty() {
        return refuse("url", "name at least one server");
    }
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = config.endpoints.iter().find(|endpoint| !seen.insert(endpoint.to_string())) {
        return refuse("url", &format!("{twice} is named twice"));
    }
    if config.retries.attempts == 0 {
        return refuse("attempts", "a request takes at least one attempt");
    }
    config.adapters.as_ref().map_or(Ok(()), adapters::check)
}

fn transport(
    endpoint: &Endpoint,
    config: &VllmConfig,
    image_token: Option<u32>,
    runtime: &Handle,
) -> Result<Arc<dyn Transport>> {
    match endpoint.protocol() {
        Protocol::Http => Ok(Arc::new(HttpTransport::new(endpoint, config, image_token)?)),
        Protocol::Grpc => grpc(endpoint, config, image_token, runtime),
    }
}

#[cfg(feature = "grpc")]
fn grpc(
    endpoint: &Endpoint,
    config: &VllmConfig,
    image_token: Option<u32>,
    runtime: &Handle,
) -> Result<Arc<dyn Transport>> {
    Ok(Arc::new(crate::grpc::GrpcTransport::new(endpoint, config, image_token, runtime)?))
}

#[cfg(not(feature = "grpc"))]
fn grpc(endpoint: &Endpoint, _: &VllmConfig, _: Option<u32>, _: &Handle) -> Result<Arc<dyn Transport>> {
    Err(Error::new(ErrorKind::Unsupported, "gRPC was not compiled in: build with the feature `vllm-grpc`")
        .with_backend(crate::NAME)
        .with_context("endpoint", endpoint.to_string()))
}

/// Blocks on a thread of its own: the caller may be a thread of another runtime, on which blocking is not allowed.
fn runtime_block_on<T: Send>(runtime: &Runtime, future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(|| runtime.block_on(future)).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// What those servers are that answer.
async fn meet(replicas: Arc<Replicas>, patience: std::time::Duration) -> Result<Vec<ServerFacts>> {
    let probes = replicas.all.iter().map(|replica| async move {
        let timeout = || {
            Error::new(ErrorKind::Remote, format!("the server did not answer within {} s", patience.as_secs_f64()))
                .with_backend(crate::NAME)
                .with_context("endpoint", replica.name.clone())
        };
        tokio::time::timeout(patience, replica.transport.probe()).await.unwrap_or_else(|_| Err(timeout()))
    });
    let (mut all, mut failure) = (Vec::new(), None);
    for (replica, probed) in replicas.all.iter().zip(futures_util::future::join_all(probes).await) {
        match probed {
            Ok(facts) => {
                replica.learn(facts.clone());
                all.push(facts);
            }
            // It may come.
            Err(error) if error.kind() == ErrorKind::Remote || error.kind() == ErrorKind::Overloaded => {
                replica.fails(&error, Instant::now());
                failure = Some(error);
            }
            // This will not mend itself.
            Err(error) => return Err(error),
        }
    }
    match (all.is_empty(), failure) {
        (true, Some(error)) => Err(error),
        _ => Ok(all),
    }
}

/// Asks after a server's health for as long as the backend lives.
async fn watch(replica: std::sync::Weak<Replica>, interval: std::time::Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(replica) = replica.upgrade() else { return };
        match replica.transport.health().await {
            Ok(()) => {
                if replica.facts().is_none()
                    && let Ok(facts) = replica.transport.probe().await
                {
                    replica.learn(facts);
                }
                if replica.facts().is_some() {
                    replica.works();
                }
            }
            Err(error) => replica.fails(&error, Instant::now()),
        }
    }
}

fn info(config: &VllmConfig, facts: &[ServerFacts], image_token: Option<u32>) -> ModelInfo {
    let context = facts.iter().map(|facts| facts.context_length).filter(|&length| length > 0).min();
    let tokenizer = config.front_end.tokenizer.as_ref();
    let mut info = config.model_info.clone().unwrap_or_else(|| ModelInfo {
        vocab_size: tokenizer.map(consort_text::Tokenizer::vocab_size).unwrap_or_default(),
        stop_tokens: tokenizer.map(|tokenizer| tokenizer.end_tokens().to_vec()).unwrap_or_default(),
        image_token,
        ..ModelInfo::default()
    });
    if info.name.is_empty() {
        info.name = facts.first().map(|facts| facts.model.clone()).unwrap_or_default();
    }
    // What the servers serve, and not what the files were made for.
    info.context_length = context.unwrap_or(info.context_length);
    info
}

/// What all servers do: any of them may be asked.
fn capability(config: &VllmConfig, facts: &[ServerFacts], info: &ModelInfo) -> Capability {
    let all = |ability: fn(&ServerFacts) -> bool| !facts.is_empty() && facts.iter().all(ability);
    let adapters = config.adapters.is_some() && all(|facts| facts.abilities.adapters);
    // A prompt and one token of a reply fit into a context that is not known only by trying.
    let context = if info.context_length > 0 { info.context_length } else { usize::MAX };
    Capability {
        image_input: all(|facts| facts.abilities.pictures_with_tokens || facts.abilities.pictures_in_chat),
        max_sequences: config.max_requests,
        max_sequence_tokens: context,
        max_batch_tokens: context,
        adapter_mode: if adapters { AdapterMode::MixedBatch } else { AdapterMode::None },
        adapter_hot_swap: adapters,
        prompt_logprobs: all(|facts| facts.abilities.prompt_logprobs),
        logprobs: all(|facts| facts.abilities.logprobs),
        structured_output: all(|facts| facts.abilities.structured_output),
        logit_tolerance: config.logit_tolerance,
        ..Capability::default()
    }
}

/// What tells forms from what is none.
fn compiler(tokenizer: &Tokenizer, info: &ModelInfo) -> Result<Compiler> {
    let vocabulary = Vocabulary::new(tokenizer, info.vocab_size, &info.stop_tokens)?;
    Ok(Compiler::new(vocabulary, GrammarLimits::default()))
}

/// Begins the ids of this backend's requests, and its adapters' names on the servers.
fn prefix() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&now.as_nanos().to_le_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    let hash = hasher.finalize().to_hex();
    format!("consort-{}", &hash[..8])
}
