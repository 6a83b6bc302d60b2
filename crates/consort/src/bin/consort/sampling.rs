//! The sampling options, once for every command that generates.

use clap::Args;
use consort_core::{Dry, DynamicTemperature, EndTokens, Penalties, Sampling, StopRules, TokenId, Xtc};
use serde::{Deserialize, Serialize};

/// How tokens are chosen and what holds an end back. What is not given stays as [`Sampling::default`] has it: greedy.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 is greedy; 1 is the model's own distribution. [default: 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    /// Let the temperature move by so much to either side, colder where the model is certain (0: it stays). [default: 0]
    #[arg(long, value_name = "RANGE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dynamic_temperature: Option<f32>,
    /// How late the temperature rises with uncertainty; counts with --dynamic-temperature. [default: 1]
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dynamic_temperature_exponent: Option<f32>,
    /// Keep the N most probable tokens (0: all). [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    /// Keep the smallest set of tokens that is this probable (1: all). [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    /// Keep tokens at least this fraction as probable as the best (0: all). [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f32>,
    /// Keep the smallest set of tokens that is this probable, the most typical first (1: all). [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    typical_p: Option<f32>,
    /// Keep tokens at most so many standard deviations of all logits below the best. [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_n_sigma: Option<f32>,
    /// How often the most likely tokens are dropped in favour of the least likely of them (0: never). [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    xtc_probability: Option<f32>,
    /// How probable a token is that counts as likely; counts with --xtc-probability. [default: 0.1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    xtc_threshold: Option<f32>,
    /// Above 1, what stands in the prompt or the reply is less likely to be said again. [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f32>,
    /// Taken from the logit of each token that the reply has said. [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    /// The same, once for each time that it was said. [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    /// The three penalties look at the last N tokens only. [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    penalty_window: Option<u32>,
    /// The penalty of continuing a repetition (DRY); 0 is off. [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_multiplier: Option<f32>,
    /// By how much each further token of a repetition multiplies the penalty. [default: 1.75]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_base: Option<f32>,
    /// Repetitions shorter than N tokens cost nothing. [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_allowed_length: Option<u32>,
    /// DRY looks at the last N tokens only. [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_window: Option<u32>,
    /// A text over which no repetition of DRY reaches. Repeat for several. [default: line break, colon, quote, asterisk]
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dry_breaker: Vec<String>,
    /// Added to a token's logit before anything else; `-inf` forbids it. Repeat for several.
    #[arg(long, value_name = "ID=X", value_parser = logit_bias)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logit_bias: Vec<LogitBias>,
    /// The reply has at least N tokens. [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    min_tokens: Option<u32>,
    /// The model's own end tokens are tokens like others; the reply goes on to --max-tokens.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ignore_eos: Option<bool>,
    /// The seed of the sampler: what is random depends on it and on a token's place in the reply alone. [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
}

/// What is added to one token's logit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct LogitBias {
    token: TokenId,
    bias: f32,
}

impl From<LogitBias> for String {
    fn from(bias: LogitBias) -> Self {
        format!("{}={}", bias.token, bias.bias)
    }
}

impl TryFrom<String> for LogitBias {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        logit_bias(&text)
    }
}

fn logit_bias(text: &str) -> Result<LogitBias, String> {
    let parsed = text.split_once('=').and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
    match parsed {
        Some((token, bias)) => Ok(LogitBias { token, bias }),
        None => Err("it is given as a token's id, `=` and a number, such as 40=-1.5".into()),
    }
}

impl SamplingArgs {
    /// What a request carries. Its values are checked where the request is accepted.
    pub fn sampling(&self) -> Sampling {
        let default = Sampling::default();
        let penalties = Penalties::default();
        let dry = Dry::default();
        Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            dynamic_temperature: self
                .dynamic_temperature
                .filter(|range| *range != 0.0)
                .map(|range| DynamicTemperature { range, exponent: self.dynamic_temperature_exponent.unwrap_or(1.0) }),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            typical_p: self.typical_p.unwrap_or(default.typical_p),
            top_n_sigma: self.top_n_sigma,
            xtc: self
                .xtc_probability
                .filter(|probability| *probability != 0.0)
                .map(|probability| Xtc { probability, threshold: self.xtc_threshold.unwrap_or(0.1) }),
            penalties: Penalties {
                repetition: self.repetition_penalty.unwrap_or(penalties.repetition),
                presence: self.presence_penalty.unwrap_or(penalties.presence),
                frequency: self.frequency_penalty.unwrap_or(penalties.frequency),
                window: self.penalty_window,
            },
            dry: self.dry_multiplier.filter(|multiplier| *multiplier != 0.0).map(|multiplier| Dry {
                multiplier,
                base: self.dry_base.unwrap_or(dry.base),
                allowed_length: self.dry_allowed_length.unwrap_or(dry.allowed_length),
                window: self.dry_window,
                breakers: if self.dry_breaker.is_empty() { dry.breakers } else { self.dry_breaker.clone() },
            }),
            logit_bias: self.logit_bias.iter().map(|entry| (entry.token, entry.bias)).collect(),
            seed: self.seed.unwrap_or(default.seed),
        }
    }

    /// What ends the reply, `strings` among it.
    pub fn stop_rules(&self, strings: Vec<String>) -> StopRules {
        StopRules {
            strings,
            min_tokens: self.min_tokens.unwrap_or(0),
            end_tokens: if self.ignore_eos == Some(true) { EndTokens::Ignore } else { EndTokens::Stop },
            ..StopRules::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn parse(line: &str) -> SamplingArgs {
        Line::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).unwrap().sampling
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(parse("").sampling(), Sampling::default());
        assert_eq!(parse("").stop_rules(Vec::new()), StopRules::default());
        assert_eq!(serde_json::to_string(&parse("")).unwrap(), "{}");
    }

    #[test]
    fn every_option_arrives() {
        let line = "--temperature 0.7 --dynamic-temperature 0.5 --dynamic-temperature-exponent 2 --top-k 20 --top-p 0.9 \
                    --min-p 0.05 --typical-p 0.95 --top-n-sigma 1.5 --xtc-probability 0.5 --xtc-threshold 0.2 \
                    --repetition-penalty 1.1 --presence-penalty -1.5 --frequency-penalty 0.3 --penalty-window 64 \
                    --dry-multiplier 0.8 --dry-base 2 --dry-allowed-length 3 --dry-window 128 --dry-breaker ; \
                    --logit-bias 40=-inf --logit-bias 41=2.5 --min-tokens 4 --ignore-eos --seed 7";
        let args = parse(line);
        let expected = Sampling {
            temperature: 0.7,
            dynamic_temperature: Some(DynamicTemperature { range: 0.5, exponent: 2.0 }),
            top_k: 20,
            top_p: 0.9,
            min_p: 0.05,
            typical_p: 0.95,
            top_n_sigma: Some(1.5),
            xtc: Some(Xtc { probability: 0.5, threshold: 0.2 }),
            penalties: Penalties { repetition: 1.1, presence: -1.5, frequency: 0.3, window: Some(64) },
            dry: Some(Dry {
                multiplier: 0.8,
                base: 2.0,
                allowed_length: 3,
                window: Some(128),
                breakers: vec![";".into()],
            }),
            logit_bias: vec![(40, f32::NEG_INFINITY), (41, 2.5)],
            seed: 7,
        };
        assert_eq!(args.sampling(), expected);
        let rules = args.stop_rules(vec!["x".into()]);
        assert_eq!((rules.min_tokens, rules.end_tokens), (4, EndTokens::Ignore));
        assert_eq!(rules.strings, ["x"]);
        // Transcripts keep them.
        let kept: SamplingArgs = serde_json::from_str(&serde_json::to_string(&args).unwrap()).unwrap();
        assert_eq!(kept, args);
        assert!(serde_json::from_str::<SamplingArgs>(r#"{"logit-bias": ["forty"]}"#).is_err());
    }
}
