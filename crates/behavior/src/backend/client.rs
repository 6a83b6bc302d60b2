//! A backend, asked.

use std::sync::Arc;

use consort_core::{
    AdapterFiles, AdapterInfo, AdapterSet, AdapterUse, Error, ErrorKind, Event, EventStream, FinishReason,
    GenerateRequest, ImageSource, Metrics, ModelBackend, PositionLogprobs, PrefixReuse, Prompt, PromptPart, TokenId,
    Usage, block_on,
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
    /// By how much the token at this place leads `token` in log probability, where both are told: infinite where `token` is
    /// not among the most probable ones that were asked for.
    fn leads(&self, at: usize, token: TokenId) -> Option<f32> {
        let entry = self.logprobs.get(at)?;
        let other = entry.top.iter().find(|top| top.token == token);
        Some(other.map_or(f32::INFINITY, |other| (entry.chosen.logprob - other.logprob).abs()))
    }

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
    ///
    /// Where the backend does not promise the same bits whatever shares a batch, two replies may part: where what each of
    /// them chose was as good as what the other one did, within its tolerance. What follows is then not compared.
    pub(super) fn same(&self, one: &Reply, other: &Reply, what: &str) -> Outcome {
        let (ids, others) = (one.all(), other.all());
        let tolerance = self.fixture.tolerance();
        let parted = (0..ids.len().max(others.len())).find(|&at| ids.get(at) != others.get(at));
        let compared = parted.unwrap_or(usize::MAX);
        for (index, (one, other)) in one.logprobs.iter().zip(&other.logprobs).enumerate().take(compared) {
            let distance = (one.chosen.logprob - other.chosen.logprob).abs();
            ensure!(distance <= tolerance, "{what}: the log probability of token {index} differs by {distance}");
        }
        if let Some(at) = parted {
            let told = format!("{what}: the tokens are {ids:?} and {others:?}");
            ensure!(!self.fixture.capability.batch_invariant, "{told}");
            let (Some(&token), Some(&others)) = (ids.get(at), others.get(at)) else { return Err(told.into()) };
            let close = [one.leads(at, others), other.leads(at, token)];
            // Of an end token there is no log probability.
            let known: Vec<f32> = close.into_iter().flatten().collect();
            ensure!(
                !known.is_empty() && known.iter().all(|lead| *lead <= tolerance),
                "{told}, with leads of {known:?}"
            );
            return Ok(());
        }
        ensure!(one.reason == other.reason, "{what}: ended by {:?} and {:?}", one.reason, other.reason);
        ensure!(one.text == other.text, "{what}: the text is {:?} and {:?}", one.text, other.text);
        ensure!(one.logprobs.len() == other.logprobs.len(), "{what}: other numbers of log probabilities");
        Ok(())
    }
}

/// A greedy request for some tokens, with log probabilities: the next best tell how close a choice was, and there may be several.
pub(super) fn request(parts: Vec<PromptPart>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest { max_tokens: Some(max_tokens), logprobs: Some(5), ..GenerateRequest::new(Prompt::Parts(parts)) }
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

/// Holds a greedy reply of at most `count` tokens against the fixture's engine, which reads the prompt and then, token by
/// token, the reply.
///
/// Each token must be what the engine would have chosen: where the backend computes the same bits, the very same one; else one that
/// the engine finds as good within the tolerance. Log probabilities must be the engine's own within the tolerance.
pub(super) fn engines_own(
    fixture: &BackendFixture,
    parts: &[PromptPart],
    adapters: &[(usize, f32)],
    (reply, count): (&Reply, usize),
    what: &str,
) -> Outcome {
    let mut rig = Rig::new(&fixture.engine)?;
    let mut bindings = Vec::new();
    for (index, scale) in adapters {
        bindings.push((rig.adapter(*index)?, *scale));
    }
    let adapters = set(&bindings.iter().map(|(key, scale)| (key, *scale)).collect::<Vec<_>>())?;
    follows(fixture, &mut rig, &adapters, parts, (reply, count), what)
}

/// The same with adapters that the engine holds already.
pub(super) fn follows(
    fixture: &BackendFixture,
    rig: &mut Rig<'_>,
    adapters: &AdapterSet,
    parts: &[PromptPart],
    (reply, count): (&Reply, usize),
    what: &str,
) -> Outcome {
    let tolerance = fixture.oracle_tolerance;
    let stops = rig.engine.info().stop_tokens.clone();
    let ids = reply.all();
    let is_ended = ids.last().is_some_and(|last| stops.contains(last));
    ensure!(ids.len() == count || (is_ended && ids.len() < count), "{what}: {} tokens of {count} came", ids.len());
    for (index, place) in along(rig, adapters, parts, reply)?.into_iter().enumerate() {
        let Place { token, own, lead, distances } = place;
        let is_own = token == own || (!fixture.is_exact() && lead <= tolerance);
        ensure!(is_own, "{what}: token {index} is {token}, and the engine itself says {own}, by {lead}: {ids:?}");
        for (of, distance) in distances {
            ensure!(distance <= tolerance, "{what}: the log probability of {of} at token {index} is off by {distance}");
        }
    }
    for entry in &reply.logprobs {
        let is_sorted = entry.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob);
        ensure!(is_sorted, "{what}: the most probable are not sorted");
    }
    Ok(())
}

/// A place of a reply beside what the fixture's engine says there.
pub(super) struct Place {
    pub(super) token: TokenId,
    /// What the engine would have chosen.
    pub(super) own: TokenId,
    /// By how much that leads, as a difference of logits.
    pub(super) lead: f32,
    /// How far each log probability is from the engine's own.
    pub(super) distances: Vec<(TokenId, f32)>,
}

/// The engine reads the prompt and then, token by token, the reply.
pub(super) fn along(
    rig: &mut Rig<'_>,
    adapters: &AdapterSet,
    parts: &[PromptPart],
    reply: &Reply,
) -> Outcome<Vec<Place>> {
    let mut script = Script::default();
    for part in parts {
        script = match part {
            PromptPart::Tokens(tokens) => script.then_text(tokens),
            PromptPart::Image(image) => script.then_image(&rig.encode(image)?),
        };
    }
    let ids = reply.all();
    let seq = rig.engine.open(adapters)?;
    let mut row = rig.read(seq, &script)?;
    let mut places = Vec::new();
    for (index, &token) in ids.iter().enumerate() {
        let own = crate::rig::first_maximum(&row);
        let lead = row[own as usize] - row[token as usize];
        let logprobs = log_softmax(&row);
        let told = reply.logprobs.get(index).into_iter().flat_map(|entry| entry.top.iter().chain([&entry.chosen]));
        let distances = told.map(|one| (one.token, (one.logprob - logprobs[one.token as usize]).abs())).collect();
        places.push(Place { token, own, lead, distances });
        if index + 1 < ids.len() {
            row = rig.read(seq, &Script::at(script.next() + index as u32).then_text(&[token]))?;
        }
    }
    rig.engine.release(seq);
    Ok(places)
}

/// Natural logarithms of the probabilities.
pub(super) fn log_softmax(row: &[f32]) -> Vec<f32> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|logit| f64::from(logit - most).exp()).sum();
    row.iter().map(|logit| (f64::from(logit - most) - sum.ln()) as f32).collect()
}
