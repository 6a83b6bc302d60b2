//! How the next token is chosen, and what ends a reply.

use serde::Serialize;

use crate::{Error, ErrorKind, Result, TokenId};

/// A temperature that follows the distribution's entropy: nearly certain tokens are drawn colder, open questions hotter.
///
/// With the entropy H of the candidates, in units of the largest it could have, the temperature is
/// `low + (high − low)·Hᵉ`, where `low` and `high` are [`Sampling::temperature`] less and plus `range` and `e` is the
/// exponent (Kalomaze 2023, as llama.cpp's `temp_ext` has it).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DynamicTemperature {
    /// How far the temperature goes to either side. Below 0 it ends at 0.
    pub range: f32,
    /// Above 1: the temperature stays low until the entropy is high.
    pub exponent: f32,
}

/// Exclude top choices: now and then, all likely tokens but the least likely of them are dropped (text-generation-webui,
/// pull request 6335). An answer of one likely token is never touched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Xtc {
    /// How often it happens, 0 to 1. The coin depends on the seed and the token's index alone.
    pub probability: f32,
    /// How probable a token must be to count as likely, 0 to 1. Above 0.5 there are never two of them.
    pub threshold: f32,
}

/// What makes tokens that were said less likely to be said again.
///
/// They count different things, as their inventors define them. *Repetition* (Keskar et al. 2019) counts the prompt and the
/// reply: a logit above 0 is divided by it, one below is multiplied. *Presence* and *frequency* count **the reply only**, as
/// OpenAI and vLLM have it: the first is subtracted once from the logit of a token that was said, the second once for each
/// time that it was said.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Penalties {
    /// Above 1 discourages, below 1 encourages. 1: off.
    pub repetition: f32,
    /// In units of a logit. 0: off.
    pub presence: f32,
    /// In units of a logit per occurrence. 0: off.
    pub frequency: f32,
    /// Only the last so many tokens of prompt and reply are looked at. `None`: all.
    pub window: Option<u32>,
}

impl Default for Penalties {
    fn default() -> Self {
        Self { repetition: 1.0, presence: 0.0, frequency: 0.0, window: None }
    }
}

impl Penalties {
    /// Whether any of them changes a logit.
    #[must_use]
    pub fn is_active(&self) -> bool {
        (self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0) && self.window != Some(0)
    }
}

/// Don't repeat yourself: a token that would continue a repetition of what was said before is penalised, the more the
/// longer the repetition is (text-generation-webui, pull request 5677).
///
/// When the last `n ≥ allowed_length` tokens of prompt and reply stand somewhere before, the logit of the token that
/// followed there is lowered by `multiplier · base^(n − allowed_length)`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dry {
    /// The penalty of a repetition of `allowed_length`, in units of a logit. 0: off.
    pub multiplier: f32,
    /// By how much each further token multiplies the penalty, at least 1.
    pub base: f32,
    /// Repetitions shorter than this cost nothing, at least 1.
    pub allowed_length: u32,
    /// Only the last so many tokens are looked at. `None`: all.
    pub window: Option<u32>,
    /// Texts over which no repetition reaches: they keep the names of a dialogue's speakers from being penalised.
    pub breakers: Vec<String>,
}

impl Default for Dry {
    /// What the method's author recommends.
    fn default() -> Self {
        Self {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            window: None,
            breakers: ["\n", ":", "\"", "*"].map(String::from).into(),
        }
    }
}

/// How the next token is chosen. The default is greedy: the first maximum of the model's own logits.
///
/// The steps apply in this order, which is llama.cpp's default: logit bias and structure, penalties, DRY, top-n-sigma, top k,
/// typical, top p, min p, XTC, temperature, draw. Each filter sees the distribution, at temperature 1, of what the ones
/// before it left. Every default leaves its step out.
///
/// ```
/// use consort_core::{Penalties, Sampling};
///
/// let chat = Sampling {
///     temperature: 0.7,
///     top_k: 20,
///     top_p: 0.8,
///     penalties: Penalties { presence: 1.5, ..Penalties::default() },
///     ..Sampling::default()
/// };
/// assert!(chat.validate().is_ok());
/// let error = Sampling { top_p: 2.0, ..chat }.validate().unwrap_err();
/// assert!(error.context().any(|pair| pair == ("field", "top_p")));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sampling {
    /// 0 is greedy; 1 is the model's own distribution.
    pub temperature: f32,
    /// Lets the temperature follow the entropy. `None`: it stays.
    pub dynamic_temperature: Option<DynamicTemperature>,
    /// Keep the k most probable tokens. 0: all.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probability reaches this. 1: all. (Nucleus sampling, Holtzman et al. 2019.)
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable one. 0: all.
    pub min_p: f32,
    /// Keep the smallest set of tokens whose probability reaches this, beginning with those whose information is nearest
    /// to the expected one. 1: all. (Locally typical sampling, Meister et al. 2022.)
    pub typical_p: f32,
    /// Keep tokens whose logit is at most so many standard deviations of all logits below the highest one. `None`: all.
    /// (Tang et al. 2024.)
    pub top_n_sigma: Option<f32>,
    /// Exclude top choices.
    pub xtc: Option<Xtc>,
    /// Penalties on what was said.
    pub penalties: Penalties,
    /// A penalty on repetitions of sequences.
    pub dry: Option<Dry>,
    /// Is added to the logits of these tokens before anything else; −∞ forbids one. A token that is named twice gets both.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Randomness is a function of the seed and the token's index in the reply, and of nothing else.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            dynamic_temperature: None,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            top_n_sigma: None,
            xtc: None,
            penalties: Penalties::default(),
            dry: None,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// The most entries of a logit bias.
const MOST_BIASES: usize = 65_536;
/// The most sequence breakers of DRY.
const MOST_BREAKERS: usize = 64;
/// The longest of them, in bytes.
const LONGEST_BREAKER: usize = 128;

impl Sampling {
    /// Refuses values without meaning.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] that names the field.
    pub fn validate(&self) -> Result<()> {
        let temperature = |value: f32| value >= 0.0 && value.is_finite();
        let share = |value: f32| (0.0..=1.0).contains(&value);
        let positive_share = |value: f32| value > 0.0 && value <= 1.0;
        let positive = |value: f32| value > 0.0 && value.is_finite();
        check("temperature", self.temperature, temperature, "0 (greedy) or a positive number")?;
        if let Some(dynamic) = &self.dynamic_temperature {
            check("dynamic_temperature.range", dynamic.range, temperature, "0 or a positive number")?;
            check("dynamic_temperature.exponent", dynamic.exponent, positive, "a positive number")?;
        }
        check("top_p", self.top_p, positive_share, "above 0 and at most 1")?;
        check("min_p", self.min_p, share, "from 0 to 1")?;
        check("typical_p", self.typical_p, positive_share, "above 0 and at most 1")?;
        if let Some(sigmas) = self.top_n_sigma {
            check("top_n_sigma", sigmas, positive, "a positive number")?;
        }
        if let Some(xtc) = &self.xtc {
            check("xtc.probability", xtc.probability, share, "from 0 to 1")?;
            check("xtc.threshold", xtc.threshold, share, "from 0 to 1")?;
        }
        check("penalties.repetition", self.penalties.repetition, positive, "a positive number")?;
        check("penalties.presence", self.penalties.presence, f32::is_finite, "a number")?;
        check("penalties.frequency", self.penalties.frequency, f32::is_finite, "a number")?;
        if let Some(dry) = &self.dry {
            dry.validate()?;
        }
        check_count("logit_bias", self.logit_bias.len(), MOST_BIASES)?;
        for &(token, bias) in &self.logit_bias {
            check("logit_bias", bias, |bias| bias < f32::INFINITY, "a number, or −∞ to forbid the token")
                .map_err(|error| error.with_context("token", token.to_string()))?;
        }
        Ok(())
    }
}

impl Dry {
    fn validate(&self) -> Result<()> {
        check("dry.multiplier", self.multiplier, |value| value >= 0.0 && value.is_finite(), "0 or a positive number")?;
        check("dry.base", self.base, |value| value >= 1.0 && value.is_finite(), "at least 1")?;
        if self.allowed_length == 0 {
            return Err(refusal("dry.allowed_length", "must be at least 1, and is 0"));
        }
        check_count("dry.breakers", self.breakers.len(), MOST_BREAKERS)?;
        match self.breakers.iter().find(|breaker| breaker.is_empty() || breaker.len() > LONGEST_BREAKER) {
            None => Ok(()),
            Some(breaker) => Err(refusal("dry.breakers", format!("a breaker must have 1 to {LONGEST_BREAKER} bytes"))
                .with_context("bytes", breaker.len().to_string())),
        }
    }
}

fn refusal(field: &'static str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidRequest, message).with_context("field", field)
}

fn check(field: &'static str, value: f32, holds: impl Fn(f32) -> bool, range: &str) -> Result<()> {
    // What compares with nothing is no number, so every condition fails for it.
    if holds(value) { Ok(()) } else { Err(refusal(field, format!("must be {range}, and is {value}"))) }
}

fn check_count(field: &'static str, count: usize, most: usize) -> Result<()> {
    if count <= most { Ok(()) } else { Err(refusal(field, format!("has {count} entries; at most {most} are taken"))) }
}

/// What the model's own end tokens do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndTokens {
    /// They end the reply.
    #[default]
    Stop,
    /// They are tokens like others, and the reply goes on to `max_tokens` or another stop rule: for measurements
    /// (`ignore_eos`). At the end of a [`Structure`](crate::Structure) they end the reply all the same.
    Ignore,
}

/// What ends a reply, besides the model's own end tokens and `max_tokens`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct StopRules {
    /// Texts; the reply ends before the first of them that appears, also across token borders.
    pub strings: Vec<String>,
    /// Tokens; the reply ends before them.
    pub tokens: Vec<TokenId>,
    /// Before the reply has so many tokens, end tokens and stop tokens cannot be chosen. A
    /// [`Structure`](crate::Structure) that is complete ends it all the same. Stop strings are not held back.
    pub min_tokens: u32,
    /// What the model's own end tokens do.
    pub end_tokens: EndTokens,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_change_nothing() {
        let sampling = Sampling { dry: Some(Dry::default()), ..Sampling::default() };
        assert!(sampling.validate().is_ok());
        assert!(!sampling.penalties.is_active());
    }

    #[test]
    fn every_value_without_meaning_is_refused_by_its_name() {
        type Change = fn(&mut Sampling);
        let cases: [(&str, Change); 22] = [
            ("temperature", |s| s.temperature = -1.0),
            ("temperature", |s| s.temperature = f32::NAN),
            ("dynamic_temperature.range", |s| {
                s.dynamic_temperature = Some(DynamicTemperature { range: -0.1, exponent: 1.0 });
            }),
            ("dynamic_temperature.exponent", |s| {
                s.dynamic_temperature = Some(DynamicTemperature { range: 0.1, exponent: 0.0 });
            }),
            ("top_p", |s| s.top_p = 0.0),
            ("top_p", |s| s.top_p = 1.1),
            ("min_p", |s| s.min_p = 1.1),
            ("typical_p", |s| s.typical_p = f32::NAN),
            ("top_n_sigma", |s| s.top_n_sigma = Some(0.0)),
            ("xtc.probability", |s| s.xtc = Some(Xtc { probability: 2.0, threshold: 0.1 })),
            ("xtc.threshold", |s| s.xtc = Some(Xtc { probability: 0.5, threshold: -0.1 })),
            ("penalties.repetition", |s| s.penalties.repetition = 0.0),
            ("penalties.presence", |s| s.penalties.presence = f32::INFINITY),
            ("penalties.frequency", |s| s.penalties.frequency = f32::NAN),
            ("dry.multiplier", |s| s.dry = Some(Dry { multiplier: -1.0, ..Dry::default() })),
            ("dry.base", |s| s.dry = Some(Dry { base: 0.5, ..Dry::default() })),
            ("dry.allowed_length", |s| s.dry = Some(Dry { allowed_length: 0, ..Dry::default() })),
            ("dry.breakers", |s| s.dry = Some(Dry { breakers: vec![String::new()], ..Dry::default() })),
            ("dry.breakers", |s| s.dry = Some(Dry { breakers: vec!["a".into(); 65], ..Dry::default() })),
            ("logit_bias", |s| s.logit_bias = vec![(1, f32::NEG_INFINITY), (2, f32::NAN)]),
            ("logit_bias", |s| s.logit_bias = vec![(1, f32::INFINITY)]),
            ("logit_bias", |s| s.logit_bias = vec![(1, 0.0); 65_537]),
        ];
        for (field, change) in cases {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            let error = sampling.validate().expect_err(field);
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
            assert!(error.context().any(|pair| pair == ("field", field)), "{field}: {error}");
        }
    }
}
