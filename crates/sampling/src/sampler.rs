//! The chain, for one reply.

use std::collections::HashMap;

use consort_core::{Error, ErrorKind, Result, Sampling, TokenId};

use crate::dry::Repetitions;
use crate::history::{History, Said};
use crate::mask::TokenMask;
use crate::pool::{Buffers, Pool};
use crate::random::{Purpose, uniform};
use crate::row::{self, Candidate};

/// What may be chosen at one place, besides what the request's own settings say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed<'a> {
    /// What a grammar allows. `None`: everything.
    pub mask: Option<&'a TokenMask>,
    /// What is forbidden all the same.
    pub forbidden: &'a [TokenId],
}

/// Buffers that steps share. One serves any number of samplers, one after the other.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The row with bias, mask and penalties.
    adjusted: Vec<f32>,
    repetitions: HashMap<TokenId, u32>,
    buffers: Buffers,
    pub(crate) best: Vec<Candidate>,
}

/// Chooses the tokens of one reply: see the [crate's front page](crate).
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    history: Option<History>,
    repetitions: Option<Repetitions>,
    /// How many tokens the reply has.
    index: u64,
}

impl Sampler {
    /// For a reply to a prompt of these tokens and their texts, which only DRY's breakers look at.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] that names the field, as [`Sampling::validate`] has it.
    pub fn new<'t>(sampling: Sampling, prompt: impl IntoIterator<Item = (TokenId, &'t [u8])>) -> Result<Self> {
        sampling.validate()?;
        let mut history = sampling.penalties.is_active().then(|| History::new(sampling.penalties));
        let dry = sampling.dry.clone().filter(|dry| dry.multiplier > 0.0 && dry.window != Some(0));
        let mut prompt = prompt.into_iter().inspect(|&(token, _)| {
            if let Some(history) = &mut history {
                history.push(token, Said::InPrompt);
            }
        });
        let repetitions = match dry {
            Some(dry) => Some(Repetitions::new(dry, prompt)),
            None => {
                if sampling.penalties.is_active() {
                    prompt.by_ref().for_each(drop);
                }
                None
            }
        };
        Ok(Self { sampling, history, repetitions, index: 0 })
    }

    /// Whether the texts of tokens matter to it.
    #[must_use]
    pub fn reads_text(&self) -> bool {
        self.repetitions.is_some() && self.sampling.dry.as_ref().is_some_and(|dry| !dry.breakers.is_empty())
    }

    /// Hears that `token` was appended to the reply, with its text.
    pub fn accept(&mut self, token: TokenId, text: &[u8]) {
        self.index += 1;
        if let Some(history) = &mut self.history {
            history.push(token, Said::InReply);
        }
        if let Some(repetitions) = &mut self.repetitions {
            repetitions.push(token, text);
        }
    }

    /// Chooses the next token from `row`, `[vocab_size]` raw logits.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] when the logits are not numbers. [`ErrorKind::InvalidRequest`] when a token of the logit bias
    /// is beyond the vocabulary, or bias, mask and forbidden tokens leave nothing to choose.
    pub fn sample(&self, row: &[f32], allowed: Allowed<'_>, workspace: &mut Workspace) -> Result<TokenId> {
        let Workspace { adjusted, repetitions, buffers, .. } = workspace;
        let top = row::checked_top(row)?;
        let (row, top) = if self.adjusts(allowed) {
            self.adjust(row, allowed, adjusted, repetitions)?;
            let top = row::checked_top(adjusted)?;
            if top == f32::NEG_INFINITY {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "no token can be chosen: logit bias, structure and min_tokens together forbid all of them",
                )
                .with_operation("sampling::sample")
                .with_context("index", self.index.to_string()));
            }
            (adjusted.as_slice(), top)
        } else {
            (row, top)
        };
        if top == f32::NEG_INFINITY {
            return Err(Error::new(ErrorKind::Unexpected, "the engine gave a row of −∞")
                .with_operation("sampling::sample")
                .with_context("vocab_size", row.len().to_string()));
        }
        Ok(self.choose(row, top, buffers))
    }

    fn adjusts(&self, allowed: Allowed<'_>) -> bool {
        allowed.mask.is_some()
            || !allowed.forbidden.is_empty()
            || !self.sampling.logit_bias.is_empty()
            || self.history.is_some()
            || self.repetitions.is_some()
    }

    fn adjust(
        &self,
        row: &[f32],
        allowed: Allowed<'_>,
        adjusted: &mut Vec<f32>,
        repetitions: &mut HashMap<TokenId, u32>,
    ) -> Result<()> {
        match allowed.mask {
            Some(mask) => mask.apply(row, adjusted),
            None => {
                adjusted.clear();
                adjusted.extend_from_slice(row);
            }
        }
        for &(token, bias) in &self.sampling.logit_bias {
            let vocab_size = adjusted.len();
            let Some(logit) = adjusted.get_mut(token as usize) else {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "a token of the logit bias is beyond the vocabulary",
                )
                .with_operation("sampling::sample")
                .with_context("field", "logit_bias")
                .with_context("token", token.to_string())
                .with_context("vocab_size", vocab_size.to_string()));
            };
            *logit = (*logit + bias).min(f32::MAX);
        }
        for &token in allowed.forbidden {
            if let Some(logit) = adjusted.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if let Some(history) = &self.history {
            history.penalise(adjusted);
        }
        if let Some(state) = &self.repetitions {
            state.penalise(adjusted, repetitions);
        }
        Ok(())
    }

    fn choose(&self, row: &[f32], top: f32, buffers: &mut Buffers) -> TokenId {
        let sampling = &self.sampling;
        let temperatures = match sampling.dynamic_temperature {
            Some(dynamic) if dynamic.range > 0.0 => {
                let low = (sampling.temperature - dynamic.range).max(0.0);
                Some((low, sampling.temperature + dynamic.range, dynamic.exponent))
            }
            _ => None,
        };
        // Of the filters only these two can take the best one away.
        let keeps_best = sampling.typical_p >= 1.0 && sampling.xtc.is_none();
        if sampling.temperature == 0.0 && temperatures.is_none() && keeps_best {
            return row::place_of(row, top);
        }
        let mut pool = Pool::new(row, top, buffers);
        if let Some(sigmas) = sampling.top_n_sigma {
            pool.top_n_sigma(sigmas);
        }
        pool.top_k(sampling.top_k as usize);
        pool.typical(sampling.typical_p);
        pool.top_p(sampling.top_p);
        pool.min_p(sampling.min_p);
        if let Some(xtc) = sampling.xtc {
            pool.xtc(xtc, sampling.seed, self.index);
        }
        let temperature = match temperatures {
            Some((low, high, exponent)) => pool.dynamic_temperature(low, high, exponent),
            None => sampling.temperature,
        };
        // So cold that only the best one has any weight in single precision.
        if temperature < 1e-6 {
            return pool.best();
        }
        pool.draw(temperature, uniform(sampling.seed, self.index, Purpose::Draw))
    }
}
