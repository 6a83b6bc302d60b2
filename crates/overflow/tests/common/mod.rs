//! Backends that do what a test tells them, with real queues and real deadlines.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use consort_core::{
    AdapterFiles, AdapterInfo, AdapterKey, AdapterMode, AdapterStatus, BoxFuture, Capability, Device, DeviceEvidence,
    EmbedRequest, Error, ErrorKind, Event, EventStream, FinishReason, GenerateRequest, MemoryReport, Metrics,
    ModelBackend, ModelInfo, Prompt, PromptPart, Proof, Residency, Result, SpecialTokens, TokenId, Usage,
};
use futures_core::Stream;

/// A door that a test opens.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Mutex<(bool, Vec<Waker>)>>);

impl Gate {
    pub fn open(&self) {
        let mut state = self.0.lock().unwrap();
        state.0 = true;
        let wakers = std::mem::take(&mut state.1);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn is_open(&self, context: &Context<'_>) -> bool {
        let mut state = self.0.lock().unwrap();
        if !state.0 {
            state.1.push(context.waker().clone());
        }
        state.0
    }

    pub fn passed(&self) -> impl Future<Output = ()> + Send + use<> {
        let gate = self.clone();
        std::future::poll_fn(move |context| if gate.is_open(context) { Poll::Ready(()) } else { Poll::Pending })
    }
}

/// One thing that a stream does.
#[derive(Debug, Clone)]
pub enum Act {
    Start,
    Say(TokenId),
    Finish,
    Fail(ErrorKind),
    /// Nothing, until the gate is open.
    Wait(Gate),
    /// The stream ends as no stream may.
    Vanish,
}

/// How a backend answers one request.
#[derive(Debug, Clone)]
pub enum Play {
    Refuse(ErrorKind),
    Acts(Vec<Act>),
}

impl Play {
    /// Says these tokens.
    pub fn say(tokens: &[TokenId]) -> Self {
        let said = tokens.iter().map(|token| Act::Say(*token));
        Self::Acts([Act::Start].into_iter().chain(said).chain([Act::Finish]).collect())
    }

    pub fn fail(kind: ErrorKind) -> Self {
        Self::Acts(vec![Act::Fail(kind)])
    }
}

#[derive(Debug, Default)]
pub struct State {
    plays: VecDeque<Play>,
    /// What came, and with which weights.
    seen: Vec<(GenerateRequest, Vec<u64>)>,
    /// Streams that are alive, oldest first.
    live: Vec<(u64, Option<Waker>)>,
    next: u64,
    refused: u64,
    adapters: BTreeMap<String, (u64, Residency)>,
    /// How loads of adapters go, one after the other; those after the last go well.
    loads: VecDeque<Load>,
    /// The same of unloading.
    unloads_fail: u64,
    generation: u64,
    memory: Option<(Gate, MemoryReport)>,
    memory_asked: Arc<()>,
    metrics: Metrics,
    embeds: VecDeque<Result<Vec<f32>, ErrorKind>>,
}

#[derive(Debug, Clone)]
pub enum Load {
    Fail(ErrorKind),
    /// Done, and the answer comes when the gate is open.
    Slow(Gate),
    /// It is read as activated by these tokens.
    Activated(Vec<TokenId>),
}

/// A backend that does what it is told, with so many slots and places in its queue.
pub struct Scripted {
    pub name: &'static str,
    pub info: ModelInfo,
    pub capability: Capability,
    pub slots: usize,
    pub queue: usize,
    pub tokenizer: Option<fn(&str) -> Vec<TokenId>>,
    pub state: Arc<Mutex<State>>,
}

impl Scripted {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            info: ModelInfo { name: "scripted".into(), vocab_size: 100, context_length: 64, ..ModelInfo::default() },
            capability: Capability {
                max_sequences: 4,
                max_sequence_tokens: 64,
                max_batch_tokens: 16,
                adapter_mode: AdapterMode::MixedBatch,
                adapter_hot_swap: true,
                logprobs: true,
                embeddings: true,
                ..Capability::default()
            },
            slots: 4,
            queue: 100,
            tokenizer: None,
            state: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn plays(&self, plays: impl IntoIterator<Item = Play>) {
        self.lock().plays.extend(plays);
    }

    pub fn loads(&self, loads: impl IntoIterator<Item = Load>) {
        self.lock().loads.extend(loads);
    }

    pub fn embeds(&self, embeds: impl IntoIterator<Item = Result<Vec<f32>, ErrorKind>>) {
        self.lock().embeds.extend(embeds);
    }

    pub fn unloads_fail(&self, times: u64) {
        self.lock().unloads_fail = times;
    }

    pub fn load(&self, load: impl FnOnce(&mut Metrics)) {
        load(&mut self.lock().metrics);
    }

    /// How memory is told: when the gate is open.
    pub fn memory_is(&self, gate: Gate, report: MemoryReport) {
        self.lock().memory = Some((gate, report));
    }

    /// How many futures of `memory` are alive.
    pub fn memory_waiters(&self) -> usize {
        Arc::strong_count(&self.lock().memory_asked) - 1
    }

    pub fn seen(&self) -> Vec<GenerateRequest> {
        self.lock().seen.iter().map(|(request, _)| request.clone()).collect()
    }

    /// The weights with which the last request was bound.
    pub fn last_weights(&self) -> Vec<u64> {
        self.lock().seen.last().unwrap().1.clone()
    }

    pub fn asked(&self) -> usize {
        self.lock().seen.len()
    }

    pub fn alive(&self) -> usize {
        self.lock().live.len()
    }

    /// The weights under each name.
    pub fn held(&self) -> BTreeMap<String, u64> {
        self.lock().adapters.iter().map(|(name, (weights, _))| (name.clone(), *weights)).collect()
    }

    pub fn residency(&self, name: &str) -> Residency {
        self.lock().adapters[name].1
    }
}

/// A stream of a [`Scripted`].
struct Scene {
    state: Arc<Mutex<State>>,
    number: u64,
    slots: usize,
    acts: VecDeque<Act>,
    arrived: Instant,
    first_token: Option<Instant>,
    total: Option<Instant>,
    timer: bool,
    said: usize,
    ended: bool,
}

impl Scene {
    fn late(&mut self, context: &Context<'_>) -> bool {
        let first = self.first_token.filter(|_| self.said == 0);
        let Some(deadline) = first.into_iter().chain(self.total).min() else { return false };
        let left = deadline.saturating_duration_since(Instant::now());
        if !left.is_zero() && !self.timer {
            self.timer = true;
            let waker = context.waker().clone();
            std::thread::spawn(move || {
                std::thread::sleep(left);
                waker.wake();
            });
        }
        left.is_zero()
    }

    fn usage(&self) -> Usage {
        Usage { completion_tokens: self.said, time_to_first_token: Some(self.arrived.elapsed()), ..Usage::default() }
    }
}

impl Stream for Scene {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if this.late(context) {
            this.ended = true;
            return Poll::Ready(Some(Err(Error::new(ErrorKind::DeadlineExceeded, "too late"))));
        }
        {
            let mut state = this.state.lock().unwrap();
            let place = state.live.iter().position(|(number, _)| *number == this.number).unwrap();
            if place >= this.slots {
                state.live[place].1 = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        let event = match this.acts.front() {
            Some(Act::Wait(gate)) if !gate.is_open(context) => return Poll::Pending,
            Some(Act::Wait(_)) => {
                this.acts.pop_front();
                return Pin::new(this).poll_next(context);
            }
            None | Some(Act::Vanish) => {
                this.ended = true;
                return Poll::Ready(None);
            }
            Some(Act::Start) => Ok(Event::Started(this.usage())),
            Some(Act::Say(token)) => {
                this.said += 1;
                Ok(Event::Tokens { ids: vec![*token], text: String::new(), logprobs: Vec::new() })
            }
            Some(Act::Finish) => {
                this.ended = true;
                Ok(Event::Finished { reason: FinishReason::Length, usage: this.usage() })
            }
            Some(Act::Fail(kind)) => {
                this.ended = true;
                Err(Error::new(*kind, "as the script has it"))
            }
        };
        this.acts.pop_front();
        Poll::Ready(Some(event))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap();
        state.live.retain(|(number, _)| *number != self.number);
        let wakers: Vec<_> = state.live.iter_mut().filter_map(|(_, waker)| waker.take()).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl ModelBackend for Scripted {
    fn name(&self) -> &'static str {
        self.name
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn evidence(&self) -> DeviceEvidence {
        DeviceEvidence {
            backend: self.name.into(),
            device: Device::Cpu,
            device_name: self.name.into(),
            placements: Vec::new(),
            established_by: Proof::SingleDeviceKernels,
        }
    }

    fn memory(&self) -> BoxFuture<'_, Result<MemoryReport>> {
        let state = self.lock();
        let waits = Arc::clone(&state.memory_asked);
        let (gate, report) = state.memory.clone().unwrap();
        Box::pin(async move {
            gate.passed().await;
            drop(waits);
            Ok(report)
        })
    }

    fn metrics(&self) -> Metrics {
        let state = self.lock();
        let live = state.live.len();
        let running = live.min(self.slots) as u64;
        Metrics {
            running: state.metrics.running + running,
            queued: state.metrics.queued + live as u64 - running,
            requests: state.seen.len() as u64,
            refused: state.refused,
            ..state.metrics
        }
    }

    fn generate(&self, request: GenerateRequest) -> Result<EventStream> {
        let mut state = self.lock();
        if state.live.len() >= self.slots + self.queue {
            state.refused += 1;
            return Err(Error::new(ErrorKind::Overloaded, format!("the queue of {} is full", self.name)));
        }
        let mut weights = Vec::new();
        for wanted in &request.adapters {
            let unknown = || Error::new(ErrorKind::NotFound, "no adapter").with_context("adapter", wanted.id.clone());
            weights.push(state.adapters.get(&wanted.id).ok_or_else(unknown)?.0);
        }
        let length: usize = match &request.prompt {
            Prompt::Parts(parts) => {
                parts.iter().map(|part| if let PromptPart::Tokens(t) = part { t.len() } else { 1 }).sum()
            }
            // A toy's tokenizer: a byte a token.
            Prompt::Chat(chat) => chat.messages.iter().map(|message| format!("{:?}", message.content).len()).sum(),
        };
        if length >= self.capability.max_sequence_tokens {
            return Err(Error::new(ErrorKind::InvalidRequest, "the prompt is too long"));
        }
        let deadlines = request.deadlines;
        state.seen.push((request, weights));
        let acts = match state.plays.pop_front() {
            Some(Play::Refuse(kind)) => {
                state.seen.pop();
                return Err(Error::new(kind, format!("{} refuses, as the script has it", self.name)));
            }
            Some(Play::Acts(acts)) => acts,
            None => return Err(Error::new(ErrorKind::Unexpected, format!("{} has no script", self.name))),
        };
        state.next += 1;
        let number = state.next;
        state.live.push((number, None));
        let now = Instant::now();
        let at = |deadline: Option<Duration>| deadline.and_then(|time| now.checked_add(time));
        Ok(EventStream::new(Scene {
            state: Arc::clone(&self.state),
            number,
            slots: self.slots,
            acts: acts.into(),
            arrived: now,
            first_token: at(deadlines.first_token),
            total: at(deadlines.total),
            timer: false,
            said: 0,
            ended: false,
        }))
    }

    fn embed(&self, _: EmbedRequest) -> BoxFuture<'_, Result<Vec<f32>>> {
        let answer = self.lock().embeds.pop_front().unwrap_or(Err(ErrorKind::Unexpected));
        Box::pin(async move { answer.map_err(|kind| Error::new(kind, "as the script has it")) })
    }

    fn load_adapter(&self, id: &str, files: AdapterFiles) -> BoxFuture<'_, Result<AdapterInfo>> {
        let id = id.to_owned();
        Box::pin(async move {
            let AdapterFiles::Gguf(bytes) = files else { panic!("these tests have weights in memory") };
            let weights = u64::from_le_bytes(bytes[..].try_into().unwrap());
            let (gate, invocation_tokens) = match self.lock().loads.pop_front() {
                None => (None, None),
                Some(Load::Fail(kind)) => return Err(Error::new(kind, format!("{} does not load it", self.name))),
                Some(Load::Slow(gate)) => (Some(gate), None),
                Some(Load::Activated(tokens)) => (None, Some(tokens)),
            };
            let generation = {
                let mut state = self.lock();
                state.generation += 1;
                state.adapters.insert(id.clone(), (weights, Residency::default()));
                state.generation
            };
            if let Some(gate) = gate {
                gate.passed().await;
            }
            let key = AdapterKey { id: id.into(), generation };
            Ok(AdapterInfo { key, rank: 4, layers: 1, bytes: 8, invocation_tokens })
        })
    }

    fn unload_adapter(&self, id: &str) -> BoxFuture<'_, Result<()>> {
        let id = id.to_owned();
        Box::pin(async move {
            let mut state = self.lock();
            if state.unloads_fail > 0 {
                state.unloads_fail -= 1;
                return Err(Error::new(ErrorKind::Remote, "the script has it that it stays"));
            }
            state.adapters.remove(&id).map(|_| ()).ok_or_else(|| Error::new(ErrorKind::NotFound, "no adapter"))
        })
    }

    fn set_adapter_residency(&self, id: &str, residency: Residency) -> BoxFuture<'_, Result<()>> {
        let id = id.to_owned();
        Box::pin(async move {
            let mut state = self.lock();
            let entry = state.adapters.get_mut(&id).ok_or_else(|| Error::new(ErrorKind::NotFound, "no adapter"))?;
            entry.1 = residency;
            Ok(())
        })
    }

    fn adapters(&self) -> Vec<AdapterStatus> {
        let state = self.lock();
        let status = |(id, (weights, residency)): (&String, &(u64, Residency))| AdapterStatus {
            info: AdapterInfo {
                key: AdapterKey { id: id.as_str().into(), generation: *weights },
                rank: 4,
                layers: 1,
                bytes: 8,
                invocation_tokens: None,
            },
            residency: *residency,
            resident: true,
            digest: Some([*weights as u8; 32]),
        };
        state.adapters.iter().map(status).collect()
    }

    fn tokenize(&self, text: &str, _: SpecialTokens) -> Result<Vec<TokenId>> {
        self.tokenizer.map(|of| of(text)).ok_or_else(|| Error::unsupported(self.name, "tokenize"))
    }
}

pub fn weights(number: u64) -> AdapterFiles {
    AdapterFiles::Gguf(number.to_le_bytes().as_slice().into())
}

/// A request of a few tokens.
pub fn request() -> GenerateRequest {
    of_length(3)
}

pub fn of_length(tokens: usize) -> GenerateRequest {
    GenerateRequest::new(Prompt::Parts(vec![PromptPart::Tokens(vec![7; tokens])]))
}

/// All tokens of a stream, or its error.
pub fn tokens(stream: EventStream) -> Result<Vec<TokenId>> {
    let (mut tokens, mut ended) = (Vec::new(), false);
    let mut starts = 0;
    for event in stream.blocking() {
        assert!(!ended, "something follows the end");
        match event? {
            Event::Started(_) => starts += 1,
            Event::Tokens { ids, .. } => tokens.extend(ids),
            Event::Finished { .. } => ended = true,
            _ => {}
        }
    }
    assert!(ended, "the stream ends without an end");
    assert_eq!(starts, 1, "a reply starts once");
    Ok(tokens)
}

/// Polls a stream once.
pub fn poll_once(stream: &mut EventStream) -> Poll<Option<Result<Event>>> {
    Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop()))
}

/// Waits until something holds.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "after a minute still not: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
