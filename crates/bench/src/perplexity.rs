//! How well a model foresees a text.

use consort_core::{Engine, Result, TokenId};
use serde::{Deserialize, Serialize};

use crate::rows::{Chunking, read_window};
use crate::softmax::LogSoftmax;
use crate::statistics::Running;
use crate::{Progress, QualityConfig};

/// How well a model foresees a text: `exp` of the mean negative log probability of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Its standard error, `perplexity · nll_error` (first order, as llama.cpp prints it). `None` for one token.
    pub perplexity_error: Option<f64>,
    /// Mean negative log probability of a scored token, in nats.
    pub nll: f64,
    /// The standard error of that mean, as if tokens were independent. `None` for one token.
    pub nll_error: Option<f64>,
    /// How many tokens were scored.
    pub scored: usize,
    /// In how many windows.
    pub windows: usize,
}

impl Perplexity {
    pub(crate) fn of(nll: &Running, windows: usize) -> Self {
        let perplexity = nll.mean().exp();
        Self {
            perplexity,
            perplexity_error: nll.standard_error().map(|error| perplexity * error),
            nll: nll.mean(),
            nll_error: nll.standard_error(),
            scored: nll.count(),
            windows,
        }
    }
}

/// The perplexity of `tokens` under the model. `progress` is called after each chunk.
///
/// # Errors
/// What [`QualityConfig::plan`] refuses; [`Unsupported`](consort_core::ErrorKind::Unsupported) when the engine cannot give
/// the logits of every position; [`InvalidRequest`](consort_core::ErrorKind::InvalidRequest) for a token beyond its
/// vocabulary; [`Unexpected`](consort_core::ErrorKind::Unexpected) for a logit that is no finite number.
pub fn perplexity(
    engine: &mut dyn Engine,
    tokens: &[TokenId],
    config: &QualityConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Perplexity> {
    let windows = config.plan(tokens.len())?;
    let chunking = Chunking::of(&[&*engine], tokens, config)?;
    let total = windows.iter().map(|window| window.scored.len()).sum();
    let mut nll = Running::default();
    for window in &windows {
        read_window([&mut *engine], tokens, window, &chunking, &config.adapters, |[rows], next| {
            for (index, &token) in next.iter().enumerate() {
                nll.push(-LogSoftmax::new(rows.row(index).unwrap_or_default())?.log_probability(token)?);
            }
            progress(Progress { scored: nll.count(), total });
            Ok(())
        })
        .map_err(|error| error.with_operation("bench::perplexity"))?;
    }
    Ok(Perplexity::of(&nll, windows.len()))
}
