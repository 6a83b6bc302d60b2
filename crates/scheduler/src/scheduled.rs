//! The handle that applications hold.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use consort_core::{
    AdapterBinding, AdapterFiles, AdapterInfo, AdapterMode, AdapterSet, AdapterStatus, AdapterUse, BoxFuture,
    Capability, DeviceEvidence, EmbedRequest, Engine, Error, ErrorKind, EventStream, GenerateRequest, MemoryReport,
    Metrics, ModelBackend, ModelInfo, PrefixReuse, Priority, Prompt, Residency, Result, SpecialTokens, TokenId, Usage,
};
use consort_prompt::FrontEnd;
use consort_text::StopMatcher;

use crate::chooser::Choosing;
use crate::clock::Clock;
use crate::config::SchedulerConfig;
use crate::events::{self, Answerer};
use crate::front_end::{Border, BorderKind, Preparer};
use crate::keeper::Keeper;
use crate::library::{Delivery, Errand, Library};
use crate::metrics::{Board, Ended};
use crate::past::Past;
use crate::prompt_logprobs::PromptLogprobs;
use crate::sequence::{Embed, Reply, Request, Work};
use crate::worker::Worker;

/// The most log probabilities that one position can report.
const MAX_LOGPROBS: u32 = 1024;

/// What the handle asks of the engine's thread.
pub(crate) enum Command {
    /// A request of somebody.
    Accept(Box<Request>),
    /// A finished turn to be kept.
    Keep(Box<Request>),
    /// A reader has caught up or gone away.
    Wake,
    Memory(Answerer<MemoryReport>),
    ClearCache(Answerer<()>),
    /// What the library sends.
    Adapter(Box<Delivery>),
    Shutdown,
}

/// What all threads of a backend share.
pub(crate) struct Shared {
    pub(crate) name: &'static str,
    pub(crate) info: ModelInfo,
    pub(crate) capability: Capability,
    pub(crate) evidence: DeviceEvidence,
    pub(crate) config: SchedulerConfig,
    pub(crate) preparer: Preparer,
    pub(crate) board: Board,
    pub(crate) clock: Clock,
    /// What requests can name. A request is bound *and sent* under the read lock, so that whoever changed the registry
    /// knows that all requests bound before are in the channel.
    pub(crate) adapters: RwLock<BTreeMap<String, AdapterStatus>>,
    pub(crate) choosing: Choosing,
    next_id: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        engine: &impl Engine,
        front_end: FrontEnd,
        config: SchedulerConfig,
        clock: Clock,
    ) -> Result<Self> {
        let (name, info, capability) = (engine.name(), engine.info().clone(), engine.capability());
        let most = match info.context_length {
            0 => capability.max_sequence_tokens,
            context => capability.max_sequence_tokens.min(context),
        };
        let preparer = Preparer::new(front_end, name, &info, most);
        let choosing = Choosing::new(name, &info, preparer.tokenizer().cloned())?;
        let capability = Capability { structured_output: capability.logprobs && choosing.structures(), ..capability };
        Ok(Self {
            name,
            preparer,
            config: config.within(&capability)?,
            choosing,
            evidence: engine.evidence(),
            info,
            capability,
            board: Board::default(),
            clock,
            adapters: RwLock::default(),
            next_id: AtomicU64::new(0),
        })
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Computes the keys of a past that takes part in the prefix cache.
    pub(crate) fn seal(&self, past: &mut Past, adapters: &AdapterSet, reuse: PrefixReuse) {
        if self.config.cache_bytes > 0 && reuse == PrefixReuse::Shared {
            past.seal(&self.info.digest, adapters);
        }
    }
}

/// Any [`Engine`] as a [`ModelBackend`]: see the [crate's front page](crate).
///
/// One thread builds the engine and owns it. Rendering, tokenization and image processing happen on the caller's thread,
/// inside [`generate`](ModelBackend::generate). Dropping the value ends every stream with `Cancelled` and joins the thread.
pub struct Scheduled<E> {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    /// `None` in a simulation, where the caller's thread does the work.
    thread: Option<JoinHandle<()>>,
    /// Present until the drop.
    library: Option<Library>,
    librarian: Option<JoinHandle<()>>,
    engine: PhantomData<fn() -> E>,
}

impl<E> std::fmt::Debug for Scheduled<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduled").field("engine", &self.shared.name).field("model", &self.shared.info.name).finish()
    }
}

impl<E: Engine + 'static> Scheduled<E> {
    /// Starts a thread that builds an engine and serves it; returns when the engine is ready.
    ///
    /// # Errors
    /// What `factory` returns, [`ErrorKind::InvalidConfig`] for a setting without meaning, [`ErrorKind::Unexpected`] when
    /// the thread cannot be started or `factory` panics.
    pub fn spawn(
        factory: impl FnOnce() -> Result<E> + Send + 'static,
        front_end: FrontEnd,
        config: SchedulerConfig,
    ) -> Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let (ready, boot) = mpsc::sync_channel(1);
        let to_self = commands.clone();
        let (library, librarian) = Library::new(commands.clone());
        let to_library = library.clone();
        let thread = std::thread::Builder::new()
            .name("consort-engine".into())
            .spawn(move || serve(factory, front_end, config, inbox, (to_self, to_library), &ready))
            .map_err(|error| {
                Error::new(ErrorKind::Unexpected, "the engine's thread cannot be started").with_source(error)
            })?;
        let Ok(booted) = boot.recv() else {
            return Err(Error::new(ErrorKind::Unexpected, "the engine's thread ended while it built the engine"));
        };
        match booted {
            Ok(shared) => Ok(Self {
                shared,
                commands,
                thread: Some(thread),
                library: Some(library),
                librarian,
                engine: PhantomData,
            }),
            Err(error) => {
                // It has nothing more to do; its result is known.
                let _ = thread.join();
                Err(error)
            }
        }
    }
}

fn serve<E: Engine>(
    factory: impl FnOnce() -> Result<E>,
    front_end: FrontEnd,
    config: SchedulerConfig,
    inbox: Receiver<Command>,
    (to_self, library): (Sender<Command>, Library),
    ready: &mpsc::SyncSender<Result<Arc<Shared>>>,
) {
    let booted = factory().and_then(|engine| {
        let shared = Arc::new(Shared::new(&engine, front_end, config, Clock::System)?);
        let keeper = (shared.config.cache_bytes > 0).then(|| Keeper::threaded(Arc::clone(&shared), to_self));
        Ok((Worker::new(engine, Arc::clone(&shared), inbox, keeper, library), shared))
    });
    // Nobody listens only if the caller's thread is gone; then the inbox ends at once.
    match booted {
        Ok((worker, shared)) => {
            let _ = ready.send(Ok(shared));
            worker.run();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

/// A place in the bounded queue, given back unless the request was sent.
struct Place<'a> {
    board: &'a Board,
    kept: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.board.update(|books| books.placing = books.placing.saturating_sub(1));
        }
    }
}

/// What distinguishes requests on their way to the engine's thread.
struct Submission<'a> {
    arrived: Instant,
    prompt: Prompt,
    adapters: &'a [AdapterUse],
    priority: Priority,
    reuse: PrefixReuse,
}

impl<E> Scheduled<E> {
    /// The handle of a worker that somebody else drives.
    pub(crate) fn driven(shared: Arc<Shared>, commands: Sender<Command>, library: Library) -> Self {
        Self { shared, commands, thread: None, library: Some(library), librarian: None, engine: PhantomData }
    }

    /// Waits until nothing is queued or running and every finished turn was kept. For tests, benches and demonstrations.
    ///
    /// # Errors
    /// [`ErrorKind::DeadlineExceeded`] with what is left; [`ErrorKind::Cancelled`] when the engine's thread has ended.
    pub fn wait_idle(&self, timeout: Duration) -> Result<()> {
        self.shared.board.wait_idle(timeout)
    }

    /// Gives up every kept past and every kept picture, and forgets the prompts of late; what runs goes on. For tests and
    /// measurements, and for applications that want the memory back.
    ///
    /// # Errors
    /// When the engine's thread has ended.
    pub fn clear_cache(&self) -> BoxFuture<'_, Result<()>> {
        self.ask(Command::ClearCache)
    }

    fn gone(&self) -> Error {
        let ended = self.shared.board.update(|books| books.ended);
        ended.unwrap_or(Ended::ShutDown).error().with_backend(self.shared.name)
    }

    fn place(&self) -> Result<Place<'_>> {
        let (board, most) = (&self.shared.board, self.shared.config.max_queued as u64);
        board.update(|books| {
            if let Some(ended) = books.ended {
                return Err(ended.error().with_backend(self.shared.name));
            }
            if books.metrics.queued + books.placing >= most {
                books.metrics.refused += 1;
                return Err(Error::new(ErrorKind::Overloaded, "the queue is full; try again when a reply has ended")
                    .with_backend(self.shared.name)
                    .with_operation("scheduler::generate")
                    .with_context("max_queued", most.to_string()));
            }
            books.placing += 1;
            Ok(())
        })?;
        Ok(Place { board, kept: false })
    }

    fn registry(&self) -> RwLockReadGuard<'_, BTreeMap<String, AdapterStatus>> {
        self.shared.adapters.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds what a request names to the current generations, activated adapters to where the prompt invokes them.
    fn bind(&self, registry: &BTreeMap<String, AdapterStatus>, uses: &[AdapterUse], past: &Past) -> Result<AdapterSet> {
        if !uses.is_empty() && self.shared.capability.adapter_mode == AdapterMode::None {
            return Err(Error::unsupported(self.shared.name, "adapters"));
        }
        let mut bindings = Vec::with_capacity(uses.len());
        let mut idle = Vec::new();
        for wanted in uses {
            let AdapterStatus { info, .. } = registry.get(&wanted.id).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, "no adapter is loaded under this name")
                    .with_context("adapter", wanted.id.clone())
            })?;
            let mut binding = AdapterBinding::new(info.key.clone(), wanted.scale);
            if info.invocation_tokens.is_some() {
                match past.invoked_at(info) {
                    Some(at) => binding.active_from = at,
                    None => {
                        tracing::debug!(adapter = %wanted.id, "the prompt does not invoke the adapter");
                        idle.push(info.key.clone());
                    }
                }
            }
            bindings.push(binding);
        }
        // Checked with all of them, so that a request is not right or wrong by what its prompt says.
        let set = AdapterSet::new(bindings)?;
        match idle.is_empty() {
            true => Ok(set),
            false => AdapterSet::new(set.bindings().iter().filter(|binding| !idle.contains(&binding.key)).cloned()),
        }
    }

    /// Prepares a prompt and sends the request that `work` makes of its length and conversation.
    fn submit(
        &self,
        submission: Submission<'_>,
        work: impl FnOnce(&Past, Option<Arc<crate::front_end::Conversation>>) -> Result<Work>,
    ) -> Result<()> {
        let shared = &self.shared;
        let mut place = self.place()?;
        let prepared = shared.preparer.prepare(submission.prompt)?;
        let mut past = Past::new(prepared.parts)?;
        past.check_tokens(shared.info.vocab_size, shared.info.image_token)?;
        shared.preparer.check_length(past.len())?;
        if past.images(0).next().is_some() {
            Capability::require(shared.capability.image_input, shared.name, "image input")?;
        }
        let prompt_tokens = past.len();
        let work = work(&past, prepared.conversation)?;
        let registry = self.registry();
        let adapters = self.bind(&registry, submission.adapters, &past)?;
        let mut borders = prepared.borders;
        let activations = adapters.bindings().iter().map(|binding| binding.active_from);
        borders.extend(activations.map(|at| Border { at, kind: BorderKind::Activation }));
        shared.seal(&mut past, &adapters, submission.reuse);
        let request = Request {
            id: shared.next_id(),
            priority: submission.priority,
            reuse: submission.reuse,
            adapters,
            past,
            borders,
            work,
            arrived: submission.arrived,
        };
        // In the books before it is sent: the worker may close it before this thread goes on.
        place.kept = true;
        shared.board.update(|books| {
            books.placing = books.placing.saturating_sub(1);
            match books.ended {
                Some(ended) => Err(ended.error().with_backend(shared.name)),
                None => {
                    books.accept(submission.priority, prompt_tokens);
                    Ok(())
                }
            }
        })?;
        self.commands.send(Command::Accept(Box::new(request))).map_err(|_| self.gone())?;
        drop(registry);
        Ok(())
    }

    fn ask<T: Send + 'static>(&self, command: impl FnOnce(Answerer<T>) -> Command) -> BoxFuture<'_, Result<T>> {
        if let Some(ended) = self.shared.board.update(|books| books.ended) {
            return Self::refuse(ended.error().with_backend(self.shared.name));
        }
        let (answerer, answer) = events::question();
        // When the thread is gone by now the answerer is dropped with the command, which answers.
        let _ = self.commands.send(command(answerer));
        Box::pin(answer)
    }

    fn errand<T: Send + 'static>(&self, errand: impl FnOnce(Answerer<T>) -> Errand) -> BoxFuture<'_, Result<T>> {
        let (answerer, answer) = events::question();
        if let Some(library) = &self.library {
            library.send(errand(answerer));
        }
        Box::pin(answer)
    }

    fn refuse<T: Send + 'static>(error: Error) -> BoxFuture<'static, Result<T>> {
        Box::pin(async { Err(error) })
    }
}

impl<E> Drop for Scheduled<E> {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Shutdown);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(engine = self.shared.name, "the engine's thread panicked");
        }
        self.library = None;
        if let Some(librarian) = self.librarian.take() {
            // Its panic, should there be one, was reported on its own thread.
            let _ = librarian.join();
        }
    }
}

impl<E> ModelBackend for Scheduled<E> {
    fn name(&self) -> &'static str {
        self.shared.name
    }

    fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    fn capability(&self) -> Capability {
        self.shared.capability
    }

    fn evidence(&self) -> DeviceEvidence {
        self.shared.evidence.clone()
    }

    fn memory(&self) -> BoxFuture<'_, Result<MemoryReport>> {
        self.ask(Command::Memory)
    }

    fn metrics(&self) -> Metrics {
        self.shared.board.snapshot(self.shared.clock.now())
    }

    fn generate(&self, request: GenerateRequest) -> Result<EventStream> {
        let shared = &self.shared;
        let arrived = shared.clock.now();
        request.sampling.validate()?;
        Capability::require(shared.capability.logprobs, shared.name, "generate")?;
        Capability::require(
            request.prompt_logprobs.is_none() || shared.capability.prompt_logprobs,
            shared.name,
            "prompt_logprobs",
        )?;
        let structure = request.structure.as_ref().map(|structure| shared.choosing.structure(structure)).transpose()?;
        let most = request.logprobs.max(request.prompt_logprobs);
        if let Some(count) = most.filter(|&count| count > MAX_LOGPROBS) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "at most 1024 log probabilities a position are reported",
            )
            .with_context("field", "logprobs")
            .with_context("logprobs", count.to_string()));
        }
        let stopper = StopMatcher::new(&request.stop.strings)?;
        let commands = self.commands.clone();
        // A worker that is gone needs no waking.
        let wake: events::Wake = Arc::new(move || drop(commands.send(Command::Wake)));
        let (sender, receiver) = events::channel(shared.config.event_buffer, wake);
        let submission = Submission {
            arrived,
            prompt: request.prompt,
            adapters: &request.adapters,
            priority: request.priority,
            // What the cache gives has no logits.
            reuse: if request.prompt_logprobs.is_some() { PrefixReuse::Bypass } else { request.prefix_reuse },
        };
        self.submit(submission, |past, conversation| {
            let prompt_tokens = past.len();
            let room = shared.preparer.room(prompt_tokens);
            let structure = structure.map(|ready| (ready, request.structure_scope));
            let prompt_logprobs = request
                .prompt_logprobs
                .map(|count| PromptLogprobs::new(count, prompt_tokens, shared.choosing.workspace()))
                .transpose()?;
            Ok(Work::Reply(Box::new(Reply {
                chooser: shared.choosing.chooser(request.sampling, &request.stop, structure, past)?,
                prompt_logprobs,
                stopper,
                detokenizer: shared.preparer.detokenizer(),
                events: sender,
                max_tokens: request.max_tokens.map_or(room, |most| room.min(most as usize)),
                logprobs: request.logprobs.map(|count| count as usize),
                conversation: conversation.filter(|_| request.prefix_reuse == PrefixReuse::Shared),
                arrived,
                deadlines: request.deadlines,
                started: false,
                usage: Usage { prompt_tokens, ..Usage::default() },
                first_token: None,
                last_token: None,
                text: String::new(),
            })))
        })?;
        Ok(EventStream::new(receiver))
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<Vec<f32>>> {
        if !self.shared.capability.embeddings {
            return Self::refuse(Error::unsupported(self.shared.name, "embed"));
        }
        let (answerer, answer) = events::question();
        let submission = Submission {
            arrived: self.shared.clock.now(),
            prompt: request.prompt,
            adapters: &request.adapters,
            priority: Priority::Interactive,
            // A mean needs every position anew.
            reuse: PrefixReuse::Bypass,
        };
        let work = |_: &Past, _| Ok(Work::Embed(Embed { pooling: request.pooling, answer: answerer, sum: Vec::new() }));
        match self.submit(submission, work) {
            Ok(()) => Box::pin(answer),
            Err(error) => Self::refuse(error),
        }
    }

    fn load_adapter(&self, id: &str, files: AdapterFiles) -> BoxFuture<'_, Result<AdapterInfo>> {
        if self.shared.capability.adapter_mode == AdapterMode::None {
            return Self::refuse(Error::unsupported(self.shared.name, "load_adapter"));
        }
        let id = id.to_owned();
        self.errand(move |answer| Errand::Load(id, files, answer))
    }

    fn unload_adapter(&self, id: &str) -> BoxFuture<'_, Result<()>> {
        if self.shared.capability.adapter_mode == AdapterMode::None {
            return Self::refuse(Error::unsupported(self.shared.name, "unload_adapter"));
        }
        let id = id.to_owned();
        self.errand(move |answer| Errand::Unload(id, answer))
    }

    fn set_adapter_residency(&self, id: &str, residency: Residency) -> BoxFuture<'_, Result<()>> {
        if self.shared.capability.adapter_mode == AdapterMode::None {
            return Self::refuse(Error::unsupported(self.shared.name, "set_adapter_residency"));
        }
        let id = id.to_owned();
        self.errand(move |answer| Errand::Reside(id, residency, answer))
    }

    fn adapters(&self) -> Vec<AdapterStatus> {
        self.registry().values().cloned().collect()
    }

    fn tokenize(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        self.shared.preparer.tokenize(text, special)
    }

    fn detokenize(&self, tokens: &[TokenId]) -> Result<String> {
        let vocab_size = self.shared.info.vocab_size;
        if let Some(stranger) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(Error::new(ErrorKind::InvalidRequest, "a token is beyond the vocabulary")
                .with_context("token", stranger.to_string()));
        }
        self.shared.preparer.detokenize(tokens)
    }
}
