//! How far one engine's distributions are from another's.

use consort_core::{Engine, Error, ErrorKind, Result, TokenId};
use consort_text::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::rows::{Chunking, read_window};
use crate::softmax::{LogSoftmax, kl_divergence};
use crate::statistics::{Running, Spread};
use crate::{Perplexity, Progress, QualityConfig, same_vocabulary};

/// An engine to be compared, with the tokenizer of its model.
pub struct Subject<'s> {
    /// The engine.
    pub engine: &'s mut dyn Engine,
    /// Its model's tokenizer, when there is one: two models are compared only where each id means the same token.
    pub tokenizer: Option<&'s Tokenizer>,
}

impl<'s> Subject<'s> {
    /// An engine and its model's tokenizer.
    pub fn new(engine: &'s mut dyn Engine, tokenizer: &'s Tokenizer) -> Self {
        Self { engine, tokenizer: Some(tokenizer) }
    }
}

impl std::fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("engine", &self.engine.name()).finish_non_exhaustive()
    }
}

/// How far an engine's distributions are from a reference's, over the scored tokens of a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// `KL(reference ‖ other)` of the next token's distribution, in nats.
    pub kl: Spread,
    /// The share of positions at which both have the same most probable token (the first of several).
    pub top1_agreement: f64,
    /// The standard error of that share. `None` for one token.
    pub top1_agreement_error: Option<f64>,
    /// Mean of `|p_other(t) − p_reference(t)|`, `t` being the reference's most probable token. A probability, not per cent.
    pub top_probability_change: f64,
    /// The standard error of that mean. `None` for one token.
    pub top_probability_change_error: Option<f64>,
    /// The reference's perplexity.
    pub reference: Perplexity,
    /// The other's perplexity.
    pub other: Perplexity,
    /// `other.perplexity / reference.perplexity`.
    pub perplexity_ratio: f64,
    /// The standard error of that ratio (first order), from the differences token by token: both saw the same text, so it is
    /// far smaller than the errors of the two perplexities. `None` for one token.
    pub perplexity_ratio_error: Option<f64>,
}

/// Compares `other` with `reference` on the same tokens, in the same windows. `progress` is called after each chunk.
///
/// # Errors
/// Those of [`perplexity`](crate::perplexity) for each of them, and [`ErrorKind::InvalidRequest`] when the two have different
/// vocabularies.
pub fn divergence(
    reference: Subject<'_>,
    other: Subject<'_>,
    tokens: &[TokenId],
    config: &QualityConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Divergence> {
    check_vocabularies(&reference, &other)?;
    let (one, two) = (reference.engine, other.engine);
    let windows = config.plan(tokens.len())?;
    let chunking = Chunking::of(&[&*one, &*two], tokens, config)?;
    let total = windows.iter().map(|window| window.scored.len()).sum();
    let mut kl = Vec::with_capacity(total);
    let [mut nll_one, mut nll_two, mut log_ratio, mut agreement, mut change] = [Running::default(); 5];
    for window in &windows {
        read_window([&mut *one, &mut *two], tokens, window, &chunking, &config.adapters, |rows, next| {
            for (index, &token) in next.iter().enumerate() {
                let softmax = |side: usize, name: &'static str| {
                    LogSoftmax::new(rows[side].row(index).unwrap_or_default())
                        .map_err(|error| error.with_context("engine", name))
                };
                let (p, q) = (softmax(0, "reference")?, softmax(1, "other")?);
                kl.push(kl_divergence(&p, &q));
                let (log_p, log_q) = (p.log_probability(token)?, q.log_probability(token)?);
                nll_one.push(-log_p);
                nll_two.push(-log_q);
                log_ratio.push(log_p - log_q);
                agreement.push(if p.top() == q.top() { 1.0 } else { 0.0 });
                let top = TokenId::try_from(p.top()).unwrap_or(TokenId::MAX);
                change.push((q.log_probability(top)?.exp() - p.log_probability(top)?.exp()).abs());
            }
            progress(Progress { scored: kl.len(), total });
            Ok(())
        })
        .map_err(|error| error.with_operation("bench::divergence"))?;
    }
    let perplexity_ratio = log_ratio.mean().exp();
    Ok(Divergence {
        kl: Spread::of(kl),
        top1_agreement: agreement.mean(),
        top1_agreement_error: agreement.standard_error(),
        top_probability_change: change.mean(),
        top_probability_change_error: change.standard_error(),
        reference: Perplexity::of(&nll_one, windows.len()),
        other: Perplexity::of(&nll_two, windows.len()),
        perplexity_ratio,
        perplexity_ratio_error: log_ratio.standard_error().map(|error| perplexity_ratio * error),
    })
}

fn check_vocabularies(reference: &Subject<'_>, other: &Subject<'_>) -> Result<()> {
    let (one, two) = (reference.engine.info().vocab_size, other.engine.info().vocab_size);
    if one != two {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "the two models have vocabularies of different sizes, so their distributions cannot be compared",
        )
        .with_operation("bench::divergence")
        .with_context("reference", one.to_string())
        .with_context("other", two.to_string()));
    }
    match (reference.tokenizer, other.tokenizer) {
        (Some(one), Some(two)) => same_vocabulary(one, two).map_err(|error| error.with_operation("bench::divergence")),
        _ => Ok(()),
    }
}
