//! What a server really does: small requests whose replies tell it.
//!
//! What a server says of itself is no evidence: front ends take fields that they do not know, and drop them. So each thing
//! that requests will rely on is asked for in such a way that a server that ignores it gives another reply than one that
//! heeds it. Both protocols are tried by the same requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consort_core::{
    Error, ErrorKind, ErrorStatus, PositionLogprobs, Result, Sampling, Structure, TokenId, TokenLogprob,
};
use futures_util::StreamExt as _;

use crate::call::{Call, CallPrompt, Chunk, Finish, Picture};
use crate::facts::{Abilities, Finding, Verdict};
use crate::transport::Transport;

/// The prompt. Never one token: vLLM 0.32 dies of that with models of this family. Low ids are single characters in every
/// vocabulary of bytes.
const PROMPT: [TokenId; 3] = [1, 2, 3];
/// The side of the pictures, in pixels.
const SIDE: u32 = 64;

/// What vLLM 0.32 says of any adapter where its Rust front end names it to its engine: they do not agree on how.
pub(crate) const ADAPTERS_BROKEN: &str = "add_lora method failed: Expected";

/// Who is tried.
pub(crate) struct Subject<'a> {
    pub(crate) transport: &'a dyn Transport,
    /// The base model's name there.
    pub(crate) model: &'a str,
    /// The token that stands for a picture. `None`: pictures are not tried.
    pub(crate) image_token: Option<TokenId>,
    /// The folder of adapters as the server sees it. `None`: adapters are not tried.
    pub(crate) adapters: Option<&'a str>,
    /// Whether log probabilities of prompts may be asked for: on some servers that ends the engine.
    pub(crate) prompts: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Tried {
    /// Of these the trials know nothing: `completions`, `chat`, `pictures_in_chat` and `tokenize`.
    pub(crate) abilities: Abilities,
    pub(crate) findings: Vec<Finding>,
}

impl Tried {
    /// Whether it works, as it is now among the findings.
    fn note(&mut self, name: &'static str, (verdict, seen): (Verdict, String)) -> bool {
        self.findings.push(Finding { name, verdict, seen });
        verdict == Verdict::Works
    }
}

/// Tries everything.
///
/// # Errors
/// Those of the first request, where they do not say that the server takes no tokens: it is not reached, refuses the key,
/// or does not have the model. What later ones give becomes a finding.
pub(crate) async fn run(subject: &Subject<'_>) -> Result<Tried> {
    let mut tried = Tried::default();
    let base = match subject.ask(&subject.call()).await {
        Ok(reply) => reply,
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidRequest) => {
            tried.note("tokens_in_and_out", of_error(&error));
            return Ok(tried);
        }
        Err(error) => return Err(error),
    };
    let (Some(&first), true) = (base.ids.first(), base.finish == Finish::Length && base.ids.len() == 4) else {
        let seen = format!("four tokens were asked for, and there came {:?} with {:?}", base.ids, base.finish);
        tried.note("tokens_in_and_out", (Verdict::Ignored, seen));
        return Ok(tried);
    };
    let seen = format!("{PROMPT:?} is continued by {:?}", base.ids);
    let mut abilities =
        Abilities { tokens_in_and_out: tried.note("tokens_in_and_out", (Verdict::Works, seen)), ..tried.abilities };
    tried.note("stop_tokens", outcome(subject.stop_tokens(&base).await));
    abilities.logprobs = tried.note("logprobs", outcome(subject.logprobs().await));
    abilities.prompt_logprobs = tried.note("prompt_logprobs", outcome(subject.of_prompt().await));
    abilities.structured_output = tried.note("structured_output", outcome(subject.structure().await));
    tried.note("malformed_structure_is_refused", subject.malformed_structure().await);
    abilities.logit_bias = tried.note("logit_bias", outcome(subject.bias(first, -100.0).await));
    tried.note("forbidden_tokens", outcome(subject.bias(first, f32::NEG_INFINITY).await));
    abilities.seed = tried.note("seed", outcome(subject.seed().await));
    abilities.priority = tried.note("priority", outcome(subject.priority().await));
    abilities.tells_cached_tokens = tried.note("tells_cached_tokens", told(base.cached_tokens));
    abilities.pictures_with_tokens = tried.note("pictures_with_tokens", outcome(subject.pictures().await));
    abilities.adapters = tried.note("adapters", subject.adapters().await);
    tried.abilities = abilities;
    Ok(tried)
}

/// A verdict and what was seen.
type Outcome = (Verdict, String);

fn outcome(result: Result<Outcome>) -> Outcome {
    result.unwrap_or_else(|error| of_error(&error))
}

/// What an error says about the thing that was tried: a refusal is an answer, a failure is none.
fn of_error(error: &Error) -> Outcome {
    let verdict = if error.status() == ErrorStatus::Permanent { Verdict::Refused } else { Verdict::Untried };
    (verdict, error.to_string())
}

fn told(cached: Option<usize>) -> Outcome {
    match cached {
        Some(count) => (Verdict::Works, format!("it had {count} tokens of the prompt")),
        None => (Verdict::Ignored, "it does not say how many tokens of a prompt it had".into()),
    }
}

/// A whole reply.
#[derive(Debug)]
struct Reply {
    ids: Vec<TokenId>,
    logprobs: Vec<PositionLogprobs>,
    prompt_logprobs: Option<Vec<Option<PositionLogprobs>>>,
    prompt_tokens: Option<usize>,
    cached_tokens: Option<usize>,
    finish: Finish,
}

impl Subject<'_> {
    /// Four tokens, greedily.
    fn call(&self) -> Call {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Call {
            id: format!("consort-probe-{}-{count}", std::process::id()),
            model: self.model.to_owned(),
            adapter: None,
            prompt: CallPrompt::Tokens { ids: PROMPT.to_vec(), pictures: Vec::new() },
            sampling: Sampling::default(),
            stop_strings: Vec::new(),
            stop_tokens: Vec::new(),
            min_tokens: 0,
            ignore_end: true,
            max_tokens: 4,
            logprobs: None,
            prompt_logprobs: None,
            structure: None,
            priority: None,
            // Python front ends refuse an empty one.
            salt: "consort-probe".into(),
            bypass: false,
        }
    }

    async fn ask(&self, call: &Call) -> Result<Reply> {
        let mut stream = self.transport.generate(&Arc::new(call.clone())).await?;
        let mut all = Chunk::default();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            all.prompt_tokens = chunk.prompt_tokens.or(all.prompt_tokens);
            all.cached_tokens = chunk.cached_tokens.or(all.cached_tokens);
            all.prompt_logprobs = chunk.prompt_logprobs.or(all.prompt_logprobs);
            all.ids.extend(chunk.ids);
            all.logprobs.extend(chunk.logprobs);
            if let Some(finish) = chunk.finish {
                return Ok(Reply {
                    ids: all.ids,
                    logprobs: all.logprobs,
                    prompt_logprobs: all.prompt_logprobs,
                    prompt_tokens: all.prompt_tokens,
                    cached_tokens: all.cached_tokens,
                    finish,
                });
            }
        }
        Err(Error::new(ErrorKind::Remote, "the reply was not finished").with_backend(crate::NAME))
    }

    /// The second token of the first reply ends a reply, where it is asked to.
    async fn stop_tokens(&self, base: &Reply) -> Result<Outcome> {
        let Some(&stop) = base.ids.get(1) else { return Ok((Verdict::Untried, "there was no second token".into())) };
        let reply = self.ask(&Call { stop_tokens: vec![stop], ..self.call() }).await?;
        let stopped = reply.finish == Finish::Token(stop) && reply.ids.last() == Some(&stop);
        let seen = format!("stopping at {stop} ended {:?} with {:?}", reply.ids, reply.finish);
        Ok((if stopped { Verdict::Works } else { Verdict::Ignored }, seen))
    }

    async fn logprobs(&self) -> Result<Outcome> {
        let reply = self.ask(&Call { logprobs: Some(2), ..self.call() }).await?;
        let fits = |(id, entry): (&TokenId, &PositionLogprobs)| entry.chosen.token == *id && in_order(&entry.top, 2);
        let works = reply.logprobs.len() == reply.ids.len() && reply.ids.iter().zip(&reply.logprobs).all(fits);
        let seen = match reply.logprobs.first() {
            Some(entry) => format!("token {} has {:.3}", entry.chosen.token, entry.chosen.logprob),
            None => "none came".into(),
        };
        Ok((if works { Verdict::Works } else { Verdict::Ignored }, seen))
    }

    async fn of_prompt(&self) -> Result<Outcome> {
        if !self.prompts {
            let why = "with adapters this ends the engine of vLLM 0.32 on the processor; `prompt_logprobs_with_adapters` tries it";
            return Ok((Verdict::Untried, why.into()));
        }
        let reply = self.ask(&Call { prompt_logprobs: Some(1), ..self.call() }).await?;
        let entries = reply.prompt_logprobs.unwrap_or_default();
        let chosen: Vec<_> = entries.iter().map(|entry| entry.as_ref().map(|entry| entry.chosen.token)).collect();
        let works = chosen == [None, Some(PROMPT[1]), Some(PROMPT[2])];
        Ok((if works { Verdict::Works } else { Verdict::Ignored }, format!("the prompt's positions tell {chosen:?}")))
    }

    /// Two forms that have no first character in common.
    async fn structure(&self) -> Result<Outcome> {
        let mut replies = Vec::new();
        for regex in ["[0-9]{3}", "[a-z]{3}"] {
            let structure = Some(Structure::Regex(regex.into()));
            replies.push(self.ask(&Call { structure, ignore_end: false, max_tokens: 12, ..self.call() }).await?);
        }
        let ended = replies.iter().all(|reply| reply.finish != Finish::Length && (2..=4).contains(&reply.ids.len()));
        let differ = replies.windows(2).all(|pair| pair[0].ids.first() != pair[1].ids.first());
        let seen = replies.iter().map(|reply| format!("{:?}", reply.ids)).collect::<Vec<_>>().join(" for letters ");
        let seen = format!("three digits are {seen}");
        Ok((if ended && differ { Verdict::Works } else { Verdict::Ignored }, seen))
    }

    /// A server that takes a form that is none gives some reply instead of an error.
    async fn malformed_structure(&self) -> Outcome {
        let structure = Some(Structure::Regex("[0-9".into()));
        match self.ask(&Call { structure, ignore_end: false, ..self.call() }).await {
            Ok(reply) => (Verdict::Ignored, format!("an unclosed bracket gave the reply {:?}", reply.ids)),
            Err(error) if error.status() == ErrorStatus::Permanent => (Verdict::Works, error.to_string()),
            Err(error) => of_error(&error),
        }
    }

    /// What is biased down is not what would be said without it.
    async fn bias(&self, first: TokenId, bias: f32) -> Result<Outcome> {
        let sampling = Sampling { logit_bias: vec![(first, bias)], ..Sampling::default() };
        let reply = self.ask(&Call { sampling, ..self.call() }).await?;
        let works = !reply.ids.contains(&first);
        let seen = format!("with {bias} on {first} came {:?}", reply.ids);
        Ok((if works { Verdict::Works } else { Verdict::Ignored }, seen))
    }

    /// The same seed twice, and two others: if all give the same, nothing was drawn.
    async fn seed(&self) -> Result<Outcome> {
        let mut replies = Vec::new();
        for seed in [7, 7, 8, 9] {
            let sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
            replies.push(self.ask(&Call { sampling, max_tokens: 6, ..self.call() }).await?.ids);
        }
        let same = replies[0] == replies[1];
        let drawn = replies[2..].iter().any(|other| *other != replies[0]);
        let seen = match (same, drawn) {
            (true, true) => format!("seed 7 gave {:?} twice", replies[0]),
            (true, false) => "every seed gave the same".into(),
            (false, _) => format!("seed 7 gave {:?} and then {:?}", replies[0], replies[1]),
        };
        Ok((if same && drawn { Verdict::Works } else { Verdict::Ignored }, seen))
    }

    async fn priority(&self) -> Result<Outcome> {
        self.ask(&Call { priority: Some(1), ..self.call() }).await?;
        Ok((Verdict::Works, "accepted; whether it changes the order depends on `--scheduling-policy`".into()))
    }

    /// A red and a blue picture are not followed by the same probabilities.
    async fn pictures(&self) -> Result<Outcome> {
        let Some(image) = self.image_token else {
            return Ok((
                Verdict::Untried,
                "the model's files are not at hand, which name the token of pictures".into(),
            ));
        };
        let mut replies = Vec::new();
        for colour in [[220, 30, 30], [30, 30, 220]] {
            let [a, b, c] = PROMPT;
            let prompt = CallPrompt::Tokens { ids: vec![a, b, image, c], pictures: vec![plain(colour)?] };
            replies.push(self.ask(&Call { prompt, logprobs: Some(4), ..self.call() }).await?);
        }
        let (red, blue) = (&replies[0], &replies[1]);
        let seen =
            format!("the prompt has {:?} tokens; red gives {:?}, blue {:?}", red.prompt_tokens, red.ids, blue.ids);
        let differ = red.ids != blue.ids || red.logprobs != blue.logprobs;
        Ok((if differ { Verdict::Works } else { Verdict::Ignored }, seen))
    }

    /// The folder of adapters itself is none. A server that sees the folder and would load adapters says that.
    async fn adapters(&self) -> Outcome {
        const NAME: &str = "consort-probe-of-nothing";
        let Some(folder) = self.adapters else {
            return (Verdict::Untried, "no folder of adapters is shared with the server".into());
        };
        let error = match self.transport.load_adapter(NAME, folder).await {
            Ok(()) => {
                // It cannot be: nothing is there.
                let _ = self.transport.unload_adapter(NAME).await;
                return (Verdict::Ignored, "it says that it loaded an adapter that is not there".into());
            }
            Err(error) => error,
        };
        let says = |words: &str| error.message().to_lowercase().contains(words);
        if says("no adapter found") || says("adapter_config") {
            (Verdict::Works, format!("it looked into the folder: {error}"))
        } else if error.message().contains(ADAPTERS_BROKEN) {
            (Verdict::Refused, error.to_string())
        } else {
            of_error(&error)
        }
    }
}

/// Whether there are so many candidates, best first and each once.
fn in_order(top: &[TokenLogprob], count: usize) -> bool {
    let falling = top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob && pair[0].token != pair[1].token);
    top.len() == count && falling
}

/// A picture of one colour.
///
/// # Errors
/// None that is known: it is written into memory.
pub(crate) fn plain(colour: [u8; 3]) -> Result<Picture> {
    let failed = |source: png::EncodingError| {
        Error::new(ErrorKind::Unexpected, "a picture for trying cannot be made").with_source(source)
    };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE, SIDE);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&colour.repeat((SIDE * SIDE) as usize)).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(Picture { bytes: bytes.into(), mime: "image/png" })
}

#[cfg(test)]
mod tests;
