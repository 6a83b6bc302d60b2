//! A backend, asked.

use std::sync::Arc;

use consort_core::{
    AdapterFiles, AdapterInfo, AdapterUse, Error, ErrorKind, Event, EventStream, FinishReason, GenerateRequest,
    ImageSource, Metrics, ModelBackend, PositionLogprobs, PrefixReuse, Prompt, PromptPart, TokenId, Usage, block_on,
};

use super::{BackendFixture, BackendSetup, Made};
use crate::case::{Failure, Outcome, ensure};
use crate::rig::{Rig, set};
use crate::script::Script;

/// A reply that came to its end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reply {
    pub(super) ids: Vec<TokenId>,
    pub(super) text: String,
    pub(super) logprobs: Vec<PositionLogprobs>,
    /// Of the prompt's positions, where they were asked for.
    pub(super) prompt: Option<Vec<Option<PositionLogprobs>>>,
    pub(super) reason: FinishReason,
    pub(super) usage: Usage,
}

impl Reply {
    /// The tokens of the reply, the one that ended it included.
    pub(super) fn all(&self) -> Vec<TokenId> {
        let mut ids = self.ids.clone();
        if let FinishReason::EndToken(token) | FinishReason::StopToken(token) = self.reason {
            ids.push(token);
        }
        ids
    }
}

pub(super) struct Client<'f> {
    pub(super) fixture: &'f BackendFixture,
    pub(super) backend: Arc<dyn ModelBackend>,
    made: Made,
}

impl<'f> Client<'f> {
    pub(super) fn new(fixture: &'f BackendFixture) -> Outcome<Self> {
        Self::with(fixture, BackendSetup::default())
    }

    pub(super) fn with(fixture: &'f BackendFixture, setup: BackendSetup) -> Outcome<Self> {
        let made = (fixture.make)(&setup)?;
        Ok(Self { fixture, backend: Arc::clone(&made.backend), made })
    }

    /// Waits until everything that was begun is done.
    pub(super) fn settle(&self) -> Outcome<Metrics> {
        (self.made.settle)()?;
        Ok(self.backend.metrics())
    }

    pub(super) fn start(&self, request: GenerateRequest) -> Outcome<EventStream> {
        Ok(self.backend.generate(request)?)
    }

    pub(super) fn ask(&self, request: GenerateRequest) -> Outcome<Reply> {
        collect(self.start(request)?)
    }

    /// The same request, computed anew.
    pub(super) fn anew(&self, request: &GenerateRequest) -> Outcome<Reply> {
        let reply = self.ask(GenerateRequest { prefix_reuse: PrefixReuse::Bypass, ..request.clone() })?;
        ensure!(
            reply.usage.reused_tokens == 0,
            "a request that bypasses the cache reused {} tokens",
            reply.usage.reused_tokens
        );
        Ok(reply)
    }

    /// Loads the fixture's adapter of this index as `id`.
    pub(super) fn load(&self, id: &str, index: usize) -> Outcome<AdapterInfo> {
        self.load_files(id, &self.fixture.engine.adapters[index].files)
    }

    pub(super) fn load_files(&self, id: &str, files: &AdapterFiles) -> Outcome<AdapterInfo> {
        Ok(block_on(self.backend.load_adapter(id, files.clone()))?)
    }

    /// Compares a reply with another way of computing it.
    pub(super) fn same(&self, one: &Reply, other: &Reply, what: &str) -> Outcome {
        ensure!(one.all() == other.all(), "{what}: the tokens are {:?} and {:?}", one.all(), other.all());
        ensure!(one.reason == other.reason, "{what}: ended by {:?} and {:?}", one.reason, other.reason);
        ensure!(one.text == other.text, "{what}: the text is {:?} and {:?}", one.text, other.text);
        ensure!(one.logprobs.len() == other.logprobs.len(), "{what}: other numbers of log probabilities");
        // A log probability is a difference of logits, so it can be off by twice their tolerance.
        let tolerance = 2.0 * self.fixture.engine.capability.logit_tolerance + 1e-6;
        for (index, (one, other)) in one.logprobs.iter().zip(&other.logprobs).enumerate() {
            let distance = (one.chosen.logprob - other.chosen.logprob).abs();
            ensure!(distance <= tolerance, "{what}: the log probability of token {index} differs by {distance}");
        }
        Ok(())
    }
}

/// A greedy request for some tokens, with log probabilities.
pub(super) fn request(parts: Vec<PromptPart>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest { max_tokens: Some(max_tokens), logprobs: Some(1), ..GenerateRequest::new(Prompt::Parts(parts)) }
}

pub(super) fn text(tokens: &[TokenId]) -> Vec<PromptPart> {
    vec![PromptPart::Tokens(tokens.to_vec())]
}

/// A prompt of an image between two texts.
pub(super) fn around(before: &[TokenId], image: &Arc<dyn ImageSource>, after: &[TokenId]) -> Vec<PromptPart> {
    vec![PromptPart::Tokens(before.to_vec()), PromptPart::Image(Arc::clone(image)), PromptPart::Tokens(after.to_vec())]
}

pub(super) fn adapter(id: &str, scale: f32) -> Vec<AdapterUse> {
    vec![AdapterUse { id: id.into(), scale }]
}

/// Reads a stream to its end and checks its order.
pub(super) fn collect(stream: EventStream) -> Outcome<Reply> {
    let mut reply = Reply {
        ids: Vec::new(),
        text: String::new(),
        logprobs: Vec::new(),
        prompt: None,
        reason: FinishReason::Length,
        usage: Usage::default(),
    };
    let mut started = false;
    let mut finished = false;
    for event in stream.blocking() {
        ensure!(!finished, "something follows the end");
        match event? {
            Event::PromptLogprobs(entries) => {
                ensure!(!started && reply.prompt.is_none(), "log probabilities of the prompt come late or twice");
                reply.prompt = Some(entries);
            }
            Event::Started(usage) => {
                ensure!(!started, "a reply starts twice");
                ensure!(usage.completion_tokens == 0, "tokens were generated before the start");
                started = true;
            }
            Event::Tokens { ids, text, logprobs } => {
                ensure!(started, "tokens come before the start");
                ensure!(
                    logprobs.is_empty() || logprobs.len() == ids.len(),
                    "{} log probabilities for {} tokens",
                    logprobs.len(),
                    ids.len()
                );
                for (id, logprob) in ids.iter().zip(&logprobs) {
                    ensure!(logprob.chosen.token == *id, "the log probability of another token");
                }
                reply.ids.extend(ids);
                reply.text.push_str(&text);
                reply.logprobs.extend(logprobs);
            }
            Event::Finished { reason, usage } => {
                ensure!(started, "a reply ends before it starts");
                finished = true;
                reply.reason = reason;
                reply.usage = usage;
            }
            other => return Err(Failure::new(format!("an unknown event: {other:?}"))),
        }
    }
    ensure!(finished, "the stream ends without an end");
    Ok(reply)
}

/// The error with which a request is refused, at once or as its stream's last item.
pub(super) fn refusal(client: &Client<'_>, request: GenerateRequest, kind: ErrorKind, what: &str) -> Outcome<Error> {
    let error = match client.backend.generate(request) {
        Err(error) => error,
        Ok(stream) => {
            let mut last = None;
            for event in stream.blocking() {
                ensure!(last.is_none(), "{what}: something follows the error");
                match event {
                    Err(error) => last = Some(error),
                    Ok(Event::Finished { .. }) => {
                        return Err(format!("{what} must be refused, and was answered").into());
                    }
                    Ok(_) => {}
                }
            }
            last.ok_or_else(|| Failure::new(format!("{what}: the stream ended without an error")))?
        }
    };
    ensure!(error.kind() == kind, "{what} must be refused as {}: {error:?}", kind.as_str());
    Ok(error)
}

/// What the engine itself says greedily, with the log probability of each token under its own logits.
pub(super) fn engines_greedy(
    fixture: &BackendFixture,
    tokens: &[TokenId],
    adapter: Option<(usize, f32)>,
    count: usize,
) -> Outcome<(Vec<TokenId>, Vec<f32>)> {
    let mut rig = Rig::new(&fixture.engine)?;
    let adapters = match adapter {
        None => consort_core::AdapterSet::none(),
        Some((index, scale)) => {
            let key = rig.adapter(index)?;
            set(&[(&key, scale)])?
        }
    };
    let stops = rig.engine.info().stop_tokens.clone();
    let seq = rig.engine.open(&adapters)?;
    let script = Script::text(tokens);
    let mut row = rig.read(seq, &script)?;
    let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
    while ids.len() < count {
        let token = crate::rig::first_maximum(&row);
        ids.push(token);
        logprobs.push(log_softmax(&row)[token as usize]);
        if stops.contains(&token) {
            break;
        }
        let next = script.next() + ids.len() as u32 - 1;
        row = rig.read(seq, &Script::at(next).then_text(&[token]))?;
    }
    Ok((ids, logprobs))
}

/// Natural logarithms of the probabilities.
pub(super) fn log_softmax(row: &[f32]) -> Vec<f32> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|logit| f64::from(logit - most).exp()).sum();
    row.iter().map(|logit| (f64::from(logit - most) - sum.ln()) as f32).collect()
}
