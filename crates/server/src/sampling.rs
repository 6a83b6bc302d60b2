//! How tokens are chosen, as the file, a persona and a request may say it, each over the one before.

use consort_core::{Penalties, Sampling};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::fields::Fields;

/// What was said of the sampling. What is `None` stays as it was.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingSettings {
    /// 0 is greedy; 1 is the model's own distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keep the smallest set of tokens whose probability reaches this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep the k most probable tokens. 0: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Keep tokens at least this fraction as probable as the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Keep the smallest, most typical set of tokens whose probability reaches this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f32>,
    /// Keep tokens at most so many standard deviations of all logits below the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_n_sigma: Option<f32>,
    /// Above 1, what stands in the prompt or the reply is less likely to be said again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Taken from the logit of each token that the reply has said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// The same, once for each time that it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// The penalties look at the last so many tokens only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalty_window: Option<u32>,
    /// The seed. Without one, each reply has another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl SamplingSettings {
    /// Takes out of a request what belongs here.
    ///
    /// # Errors
    /// A field of another type, by name.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, Failure> {
        let seed: Option<i64> = fields.get("seed")?;
        Ok(Self {
            temperature: fields.get("temperature")?,
            top_p: fields.get("top_p")?,
            top_k: fields.get::<i64>("top_k")?.map(|most| {
                // vLLM's clients say -1 for all.
                u32::try_from(most.max(0)).unwrap_or(u32::MAX)
            }),
            min_p: fields.get("min_p")?,
            typical_p: fields.get("typical_p")?,
            top_n_sigma: fields.get("top_n_sigma")?,
            repetition_penalty: fields.get("repetition_penalty")?,
            presence_penalty: fields.get("presence_penalty")?,
            frequency_penalty: fields.get("frequency_penalty")?,
            penalty_window: fields.get("penalty_window")?,
            // Negative seeds are as good as others.
            seed: seed.map(i64::cast_unsigned),
        })
    }

    /// What this says, and what `other` says where this is silent.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            temperature: self.temperature.or(other.temperature),
            top_p: self.top_p.or(other.top_p),
            top_k: self.top_k.or(other.top_k),
            min_p: self.min_p.or(other.min_p),
            typical_p: self.typical_p.or(other.typical_p),
            top_n_sigma: self.top_n_sigma.or(other.top_n_sigma),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
            presence_penalty: self.presence_penalty.or(other.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(other.frequency_penalty),
            penalty_window: self.penalty_window.or(other.penalty_window),
            seed: self.seed.or(other.seed),
        }
    }

    /// What a backend is asked for. Where nothing is said of the temperature, it is 1, as OpenAI's API has it.
    pub(crate) fn sampling(&self) -> Sampling {
        let default = Sampling::default();
        let penalties = Penalties::default();
        Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(default.top_p),
            top_k: self.top_k.unwrap_or(default.top_k),
            min_p: self.min_p.unwrap_or(default.min_p),
            typical_p: self.typical_p.unwrap_or(default.typical_p),
            top_n_sigma: self.top_n_sigma,
            penalties: Penalties {
                repetition: self.repetition_penalty.unwrap_or(penalties.repetition),
                presence: self.presence_penalty.unwrap_or(penalties.presence),
                frequency: self.frequency_penalty.unwrap_or(penalties.frequency),
                window: self.penalty_window,
            },
            seed: self.seed.unwrap_or_else(crate::identity::random),
            ..default
        }
    }

    /// The field that has no meaning, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        self.sampling().validate().map_err(|error| {
            let field = error.context().find(|(key, _)| *key == "field").map_or("", |(_, field)| field);
            (request_name(field), error.message().to_owned())
        })
    }
}

/// The name that a request has for a field of [`Sampling`] and its kin.
pub(crate) fn request_name(field: &str) -> &'static str {
    match field {
        "temperature" => "temperature",
        "top_p" => "top_p",
        "top_k" => "top_k",
        "min_p" => "min_p",
        "typical_p" => "typical_p",
        "top_n_sigma" => "top_n_sigma",
        "penalties.repetition" => "repetition_penalty",
        "penalties.presence" => "presence_penalty",
        "penalties.frequency" => "frequency_penalty",
        "logit_bias" => "logit_bias",
        "stop.strings" => "stop",
        "logprobs" => "top_logprobs",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_nearest_word_counts() {
        let file = SamplingSettings { temperature: Some(0.5), top_k: Some(20), ..SamplingSettings::default() };
        let persona = SamplingSettings { temperature: Some(0.0), ..SamplingSettings::default() };
        let request = SamplingSettings { top_p: Some(0.9), seed: Some(7), ..SamplingSettings::default() };
        let sampling = request.or(persona).or(file).sampling();
        assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed), (0.0, 20, 0.9, 7));
        assert_eq!(SamplingSettings::default().sampling().temperature, 1.0);
        assert_ne!(SamplingSettings::default().sampling().seed, SamplingSettings::default().sampling().seed);
    }

    #[test]
    fn a_value_without_meaning_is_named_as_requests_name_it() {
        let settings = SamplingSettings { presence_penalty: Some(f32::INFINITY), ..SamplingSettings::default() };
        assert_eq!(settings.check().unwrap_err().0, "presence_penalty");
        assert!(SamplingSettings::default().check().is_ok());
    }
}
