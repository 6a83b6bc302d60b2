//! The backend that applications hold.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use consort_core::{
    AdapterFiles, AdapterInfo, AdapterStatus, BoxFuture, Capability, DeviceEvidence, EndTokens, Error, ErrorKind,
    Event, EventStream, GenerateRequest, MemoryReport, Metrics, ModelBackend, ModelInfo, PrefixReuse, Priority,
    Residency, Result, Sampling, SpecialTokens, StructureScope, TokenId,
};
use consort_grammar::Compiler;
use consort_prompt::Prompter;
use futures_core::Stream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::adapters::Adapters;
use crate::books::Books;
use crate::call::CallPrompt;
use crate::config::VllmConfig;
use crate::outgoing::Outgoing;
use crate::replica::{Replica, ReplicaStatus};
use crate::reply::Reply;
use crate::session::{AHEAD, Crossing, GRACE, Reasoning, Session, Wish};
use crate::{evidence, http};

/// A vLLM server, or several with the same model, as a backend.
pub struct VllmRemoteBackend {
    pub(crate) config: VllmConfig,
    pub(crate) info: ModelInfo,
    pub(crate) capability: Capability,
    pub(crate) prompter: Prompter,
    pub(crate) crossing: Arc<Crossing>,
    pub(crate) adapters: Arc<Adapters>,
    pub(crate) books: Arc<Books>,
    pub(crate) requests: AtomicU64,
    /// Requests of several processes have different ids.
    pub(crate) prefix: String,
    /// The token that opens the model's reasoning, and how it ends.
    pub(crate) reasoning: Option<(TokenId, Reasoning)>,
    pub(crate) takes_priority: bool,
    /// Says of a form whether it is one, where the model's tokenizer is at hand.
    pub(crate) structures: Option<Compiler>,
    /// `None` only while it is dropped.
    pub(crate) runtime: Option<Runtime>,
}

impl std::fmt::Debug for VllmRemoteBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VllmRemoteBackend").field("endpoints", &self.config.endpoints).finish_non_exhaustive()
    }
}

impl Drop for VllmRemoteBackend {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It may be dropped on a thread of another runtime, which must not wait.
            runtime.shutdown_background();
        }
    }
}

impl VllmRemoteBackend {
    /// How each server is.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        self.crossing.replicas.status()
    }

    fn handle(&self) -> Result<&tokio::runtime::Handle> {
        let gone = || Error::new(ErrorKind::Cancelled, "the backend is shutting down").with_backend(crate::NAME);
        self.runtime.as_ref().map(Runtime::handle).ok_or_else(gone)
    }

    /// Asks whichever server answers, on this thread's time.
    pub(crate) fn ask<T: Send + 'static>(&self, patience: Duration, question: impl Question<T>) -> Result<T> {
        let (index, visit) = self.crossing.replicas.choose(&[0; 32], &[], Instant::now())?;
        let _ = index;
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let asked = question.ask(Arc::clone(&visit.replica));
        self.handle()?.spawn(async move {
            // Nobody waits any more when this fails.
            let _ = answer.send(asked.await);
        });
        answered
            .recv_timeout(patience + GRACE)
            .map_err(|_| Error::new(ErrorKind::Remote, "the server did not answer in time").with_backend(crate::NAME))?
    }

    /// How the reasoning ends which the prompt has opened, if it has.
    fn open_reasoning(&self, prompt: &CallPrompt) -> Option<&Reasoning> {
        let (begin, reasoning) = self.reasoning.as_ref()?;
        let CallPrompt::Tokens { ids, .. } = prompt else { return None };
        let last = ids.iter().rev().find(|&id| id == begin || *id == reasoning.end);
        (last == Some(begin)).then_some(reasoning)
    }

    /// Which of several servers has a request's prefix: those of one persona begin alike.
    fn affinity(&self, prompt: &CallPrompt, adapter: Option<&str>) -> [u8; 32] {
        const BEGINNING: usize = 64;
        let mut hasher = blake3::Hasher::new();
        hasher.update(adapter.unwrap_or_default().as_bytes());
        match prompt {
            CallPrompt::Tokens { ids, .. } => {
                for id in ids.iter().take(BEGINNING) {
                    hasher.update(&id.to_le_bytes());
                }
            }
            CallPrompt::Chat { messages, .. } => {
                hasher.update(messages[0].to_string().as_bytes());
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// What is computed for this application with these adapters is reused under this salt alone. A request that bypasses the cache has
    /// one to itself: vLLM then reads nothing of it, and leaves there what it computed.
    fn salt(&self, adapter: Option<&str>, alone: Option<u64>) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.config.namespace.as_bytes());
        hasher.update(&[0]);
        hasher.update(&self.info.digest);
        hasher.update(adapter.unwrap_or_default().as_bytes());
        if let Some(number) = alone {
            hasher.update(&[0]);
            hasher.update(self.prefix.as_bytes());
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn begin(&self, request: &GenerateRequest) -> Result<EventStream> {
        let arrived = Instant::now();
        request.sampling.validate()?;
        check_sampling(&request.sampling, self.info.vocab_size)?;
        let most = request.logprobs.max(request.prompt_logprobs);
        if let Some(count) = most.filter(|&count| count > self.config.max_logprobs) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "the server reports fewer log probabilities a position (`--max-logprobs`)",
            )
            .with_context("field", "logprobs")
            .with_context("logprobs", count.to_string())
            .with_context("most", self.config.max_logprobs.to_string()));
        }
        let capability = &self.capability;
        Capability::require(request.logprobs.is_none() || capability.logprobs, crate::NAME, "logprobs")?;
        Capability::require(
            request.prompt_logprobs.is_none() || capability.prompt_logprobs,
            crate::NAME,
            "prompt_logprobs",
        )?;
        Capability::require(request.structure.is_none() || capability.structured_output, crate::NAME, "structure")?;
        Capability::require(
            request.adapters.is_empty() || capability.adapter_mode != consort_core::AdapterMode::None,
            crate::NAME,
            "adapters",
        )?;
        let adapter = self.adapters.bind(&request.adapters)?;
        let overloaded = || {
            Error::new(ErrorKind::Overloaded, "too many requests are on their way; try again when a reply has ended")
                .with_backend(crate::NAME)
                .with_context("max_requests", self.config.max_requests.to_string())
        };
        // A place first: what is turned away should cost nothing.
        let place = self.books.place(self.config.max_requests).ok_or_else(overloaded)?;
        let (wish, reply) = self.prepare(request, adapter, arrived)?;
        let entry = place.take();
        let (events, receiver) = mpsc::channel(AHEAD);
        let session =
            Session { crossing: Arc::clone(&self.crossing), wish, reply, entry: Some(entry), arrived, events };
        let task = self.handle()?.spawn(session.run());
        Ok(EventStream::new(Events { receiver, task, ended: false }))
    }

    fn prepare(
        &self,
        request: &GenerateRequest,
        adapter: Option<crate::adapters::Bound>,
        arrived: Instant,
    ) -> Result<(Wish, Reply)> {
        // vLLM's front end in Rust answers a malformed form with an end token and nothing else.
        if let (Some(structures), Some(structure)) = (&self.structures, &request.structure) {
            structures.compile(structure).map_err(|error| error.with_backend(crate::NAME))?;
        }
        let Outgoing { prompt, tokens } = self.out(request.prompt.clone())?;
        let room = tokens.map(|tokens| self.capability.max_sequence_tokens.saturating_sub(tokens));
        let room = room.map_or(u32::MAX, |room| u32::try_from(room).unwrap_or(u32::MAX));
        // Where the prompt's length is not known, the server knows it.
        let max_tokens = match (request.max_tokens, tokens) {
            (Some(most), _) => most.min(room),
            (None, Some(_)) => room,
            (None, None) => u32::try_from(self.capability.max_sequence_tokens / 2).unwrap_or(u32::MAX),
        };
        let detokenizer = self.prompter.detokenizer();
        let by_server = detokenizer.is_none() || request.stop.min_tokens == 0;
        let mut reply = Reply::new(request, detokenizer, max_tokens, arrived)?;
        reply.expect_prompt(tokens.unwrap_or_default());
        let structured_answer = request.structure.is_some() && request.structure_scope == StructureScope::Answer;
        let name = adapter.as_ref().map(|bound| bound.name.as_str());
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        // What a cache gives has no logits.
        let bypass = request.prefix_reuse == PrefixReuse::Bypass || request.prompt_logprobs.is_some();
        let wish = Wish {
            id: format!("{}-{number}", self.prefix),
            affinity: self.affinity(&prompt, name),
            salt: self.salt(name, bypass.then_some(number)),
            reasoning: self.open_reasoning(&prompt).filter(|_| structured_answer).cloned(),
            prompt,
            adapter,
            sampling: request.sampling.clone(),
            stop_strings: if by_server { request.stop.strings.clone() } else { Vec::new() },
            stop_tokens: request.stop.tokens.clone(),
            min_tokens: request.stop.min_tokens.min(max_tokens),
            // A form is over with its end token, and vLLM would go on behind it.
            ignore_end: request.stop.end_tokens == EndTokens::Ignore && request.structure.is_none(),
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            structure: request.structure.clone(),
            priority: self.takes_priority.then(|| rank(request.priority)),
            bypass,
            deadlines: request.deadlines,
        };
        Ok((wish, reply))
    }
}

/// vLLM's priorities: lower is earlier, 0 is what everybody has who says nothing.
fn rank(priority: Priority) -> i32 {
    match priority {
        Priority::Realtime => -10,
        Priority::Interactive => 0,
        Priority::Background => 10,
        Priority::Batch => 20,
    }
}

/// Refuses what vLLM has not, where it would say nothing and do nothing, and what no vocabulary of this size has; 0 is one that is not
/// known.
fn check_sampling(sampling: &Sampling, vocab_size: usize) -> Result<()> {
    let mut tokens = sampling.logit_bias.iter().map(|(token, _)| token);
    if let Some(token) = tokens.find(|&&token| vocab_size > 0 && token as usize >= vocab_size) {
        return Err(Error::new(ErrorKind::InvalidRequest, "a token of the logit bias is beyond the vocabulary")
            .with_backend(crate::NAME)
            .with_context("field", "logit_bias")
            .with_context("token", token.to_string()));
    }
    let strangers = [
        ("dynamic_temperature", sampling.dynamic_temperature.is_some()),
        ("typical_p", sampling.typical_p != 1.0),
        ("top_n_sigma", sampling.top_n_sigma.is_some()),
        ("xtc", sampling.xtc.is_some_and(|xtc| xtc.probability > 0.0)),
        ("dry", sampling.dry.as_ref().is_some_and(|dry| dry.multiplier > 0.0)),
        ("penalties.window", sampling.penalties.window.is_some() && sampling.penalties.is_active()),
    ];
    if let Some((field, _)) = strangers.iter().find(|(_, used)| *used) {
        return Err(Error::new(ErrorKind::Unsupported, "vLLM has no such way of choosing tokens")
            .with_backend(crate::NAME)
            .with_operation("generate")
            .with_context("field", *field));
    }
    // It would cut them in silence.
    let cut = |bias: f32| bias.is_finite() && !(http::FORBIDS..=-http::FORBIDS).contains(&bias);
    if let Some((token, bias)) = sampling.logit_bias.iter().find(|(_, bias)| cut(*bias)) {
        return Err(Error::new(ErrorKind::Unsupported, "vLLM takes a bias from -100 to 100, or −∞")
            .with_backend(crate::NAME)
            .with_context("field", "logit_bias")
            .with_context("token", token.to_string())
            .with_context("bias", bias.to_string()));
    }
    Ok(())
}

/// The events of a request. Dropping it ends the task, the connection and with it the server's work.
struct Events {
    receiver: mpsc::Receiver<Result<Event>>,
    task: tokio::task::JoinHandle<()>,
    ended: bool,
}

impl Stream for Events {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = std::task::ready!(self.receiver.poll_recv(context));
        let next = next.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Cancelled, "the backend is shutting down").with_backend(crate::NAME))
        });
        self.ended = !matches!(&next, Ok(event) if !matches!(event, Event::Finished { .. }));
        Poll::Ready(Some(next))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // A task that has sent its last event has its books to close yet.
        if !self.ended {
            self.task.abort();
        }
    }
}

impl ModelBackend for VllmRemoteBackend {
    fn name(&self) -> &'static str {
        crate::NAME
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn evidence(&self) -> DeviceEvidence {
        evidence::reported(&self.crossing.replicas.status())
    }

    fn memory(&self) -> BoxFuture<'_, Result<MemoryReport>> {
        // What a server holds is not this process's to tell.
        let error = Error::unsupported(crate::NAME, "memory");
        Box::pin(async { Err(error) })
    }

    fn metrics(&self) -> Metrics {
        let mut metrics = self.books.snapshot();
        let adapters = self.adapters.status();
        metrics.adapters = adapters.len() as u64;
        metrics.adapter_bytes = adapters.iter().map(|adapter| adapter.info.bytes).sum();
        metrics
    }

    fn generate(&self, request: GenerateRequest) -> Result<EventStream> {
        self.begin(&request)
    }

    fn load_adapter(&self, id: &str, files: AdapterFiles) -> BoxFuture<'_, Result<AdapterInfo>> {
        if self.capability.adapter_mode == consort_core::AdapterMode::None {
            let error = Error::unsupported(crate::NAME, "load_adapter");
            return Box::pin(async { Err(error) });
        }
        let (id, adapters) = (id.to_owned(), Arc::clone(&self.adapters));
        let replicas = Arc::clone(&self.crossing.replicas);
        let (answer, answered) = tokio::sync::oneshot::channel();
        let load = async move {
            let (adapter, bound) = adapters.read(&id, &files)?;
            let mut failure = None;
            let mut loaded = 0;
            for replica in &replicas.all {
                match replica.need(&bound.name, &bound.path).await {
                    Ok(()) => loaded += 1,
                    // A server that is not there loads it when it is asked with it.
                    Err(error) if error.kind() == ErrorKind::Remote => failure = Some(error),
                    Err(error) => return Err(error),
                }
            }
            match failure {
                Some(error) if loaded == 0 => return Err(error),
                _ => {}
            }
            let info = adapter.info.clone();
            adapters.put(adapter);
            Ok(info)
        };
        match self.handle() {
            Ok(handle) => drop(handle.spawn(async move {
                // Whoever asked may have gone.
                let _ = answer.send(load.await);
            })),
            Err(error) => return Box::pin(async { Err(error) }),
        }
        Box::pin(async {
            let gone = || Error::new(ErrorKind::Cancelled, "the backend is shutting down").with_backend(crate::NAME);
            answered.await.unwrap_or_else(|_| Err(gone()))
        })
    }

    fn unload_adapter(&self, id: &str) -> BoxFuture<'_, Result<()>> {
        let removed = self.adapters.remove(id);
        Box::pin(async { removed })
    }

    fn set_adapter_residency(&self, id: &str, residency: Residency) -> BoxFuture<'_, Result<()>> {
        let set = self.adapters.reside(id, residency);
        Box::pin(async { set })
    }

    fn adapters(&self) -> Vec<AdapterStatus> {
        self.adapters.status()
    }

    fn tokenize(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        match self.prompter.tokenizer() {
            Some(_) => self.prompter.tokenize(text, special),
            None => self.ask(self.config.timeouts.control, Tokenize(text.to_owned(), special)),
        }
    }

    fn detokenize(&self, tokens: &[TokenId]) -> Result<String> {
        if let Some(stranger) =
            tokens.iter().find(|&&token| self.info.vocab_size > 0 && token as usize >= self.info.vocab_size)
        {
            return Err(Error::new(ErrorKind::InvalidRequest, "a token is beyond the vocabulary")
                .with_context("token", stranger.to_string()));
        }
        match self.prompter.tokenizer() {
            Some(_) => self.prompter.detokenize(tokens),
            None => self.ask(self.config.timeouts.control, Detokenize(tokens.to_vec())),
        }
    }
}

/// A question that one server answers.
pub(crate) trait Question<T> {
    fn ask(self, replica: Arc<Replica>) -> Pin<Box<dyn Future<Output = Result<T>> + Send>>;
}

pub(crate) struct Write(pub(crate) CallPrompt);
struct Tokenize(String, SpecialTokens);
struct Detokenize(Vec<TokenId>);

impl Question<Vec<TokenId>> for Write {
    fn ask(self, replica: Arc<Replica>) -> Pin<Box<dyn Future<Output = Result<Vec<TokenId>>> + Send>> {
        Box::pin(async move { replica.transport.write(&self.0).await })
    }
}

impl Question<Vec<TokenId>> for Tokenize {
    fn ask(self, replica: Arc<Replica>) -> Pin<Box<dyn Future<Output = Result<Vec<TokenId>>> + Send>> {
        Box::pin(async move { replica.transport.tokenize(&self.0, self.1).await })
    }
}

impl Question<String> for Detokenize {
    fn ask(self, replica: Arc<Replica>) -> Pin<Box<dyn Future<Output = Result<String>> + Send>> {
        Box::pin(async move { replica.transport.detokenize(&self.0).await })
    }
}
