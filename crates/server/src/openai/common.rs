//! What `/v1/chat/completions` and `/v1/completions` have in common.

use consort_core::{EndTokens, PositionLogprobs, PrefixReuse, Priority, StopRules, Thinking, TokenId, Usage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::app::Shared;
use crate::error::Failure;
use crate::fields::Fields;
use crate::sampling::SamplingSettings;
use crate::speak::Wish;

/// Fields that change nothing here: who asks, and what the client keeps for itself or asks of a cache.
pub(crate) const HARMLESS: [&str; 5] =
    ["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"];

/// How a reply is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// At once, when it is whole.
    Whole,
    /// As it comes.
    Streamed {
        /// Whether the last event tells what it took.
        usage: bool,
    },
}

/// Takes the fields of sampling, stopping and order out of a request.
///
/// # Errors
/// A wrong one, by name.
pub(crate) fn wish(fields: &mut Fields) -> Result<Wish, Failure> {
    let ignore_eos: bool = fields.get("ignore_eos")?.unwrap_or(false);
    let reuse: Option<bool> = fields.get("cache_prompt")?;
    Ok(Wish {
        sampling: SamplingSettings::take(fields)?,
        logit_bias: logit_bias(fields)?,
        stop: StopRules {
            strings: stop(fields)?,
            tokens: fields.get("stop_token_ids")?.unwrap_or_default(),
            min_tokens: fields.get("min_tokens")?.unwrap_or(0),
            end_tokens: if ignore_eos { EndTokens::Ignore } else { EndTokens::Stop },
        },
        priority: fields.get::<Priority>("priority")?,
        prefix_reuse: if reuse == Some(false) { PrefixReuse::Bypass } else { PrefixReuse::Shared },
        ..Wish::default()
    })
}

/// Whether the model thinks, by the effort that it is to make.
///
/// # Errors
/// There is no such effort.
pub(crate) fn thinking_of_effort(effort: &str, param: &str) -> Result<Thinking, Failure> {
    match effort {
        "none" => Ok(Thinking::Off),
        "minimal" | "low" | "medium" | "high" | "xhigh" | "max" => Ok(Thinking::On),
        _ => {
            let message = format!(
                "`{param}` is none, or one of minimal, low, medium, high, xhigh and max, which mean the same here"
            );
            Err(Failure::value(param, message))
        }
    }
}

/// Takes the number of choices.
pub(crate) fn choices(fields: &mut Fields, most: usize) -> Result<usize, Failure> {
    let choices = fields.get::<usize>("n")?.unwrap_or(1);
    if choices == 0 || choices > most {
        return Err(Failure::value("n", format!("`n` is from 1 to {most}")));
    }
    Ok(choices)
}

/// Takes `stream` and what belongs to it.
pub(crate) fn delivery(fields: &mut Fields) -> Result<Delivery, Failure> {
    let streamed = fields.get::<bool>("stream")?.unwrap_or(false);
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(if streamed { Delivery::Streamed { usage: false } } else { Delivery::Whole });
    };
    let usage = options.get::<bool>("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", &[json!(false)])?;
    options.finish()?;
    if streamed {
        Ok(Delivery::Streamed { usage })
    } else {
        Err(Failure::value("stream_options", "`stream_options` belongs to requests with `stream: true`"))
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, Failure> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stop {
        One(String),
        Several(Vec<String>),
    }
    Ok(match fields.get("stop")? {
        None => Vec::new(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Several(texts)) => texts,
    })
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(TokenId, f32)>, Failure> {
    let Some(entries) = fields.get::<Map<String, Value>>("logit_bias")? else { return Ok(Vec::new()) };
    let entry = |(token, bias): (String, Value)| {
        let parsed = token.parse().ok().zip(bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)));
        parsed
            .map(|(token, bias)| (token, bias as f32))
            .ok_or_else(|| Failure::value("logit_bias", "`logit_bias` maps ids of tokens to numbers from -100 to 100"))
    };
    entries.into_iter().map(entry).collect()
}

/// What replies took, in the API's shape. The prompt counts once, however often it was answered.
pub(crate) fn usage(replies: &[(Usage, usize)], prompts: &[Usage]) -> Value {
    let prompt: usize = prompts.iter().map(|usage| usage.prompt_tokens).sum();
    let cached: usize = prompts.iter().map(|usage| usage.reused_tokens).sum();
    let completion: usize = replies.iter().map(|(usage, _)| usage.completion_tokens).sum();
    let reasoning: usize = replies.iter().map(|(_, reasoning)| reasoning).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": { "cached_tokens": cached },
        "completion_tokens_details": { "reasoning_tokens": reasoning },
    })
}

/// Log probabilities of tokens, as chats show them.
pub(crate) fn chat_logprobs(app: &Shared, positions: &[PositionLogprobs]) -> Vec<Value> {
    let token = |token: TokenId, logprob: f32| {
        let bytes = app.text.token_bytes(token);
        (String::from_utf8_lossy(&bytes).into_owned(), finite(logprob), bytes)
    };
    let entry = |position: &PositionLogprobs| {
        let top: Vec<Value> = position
            .top
            .iter()
            .map(|candidate| {
                let (text, logprob, bytes) = token(candidate.token, candidate.logprob);
                json!({ "token": text, "logprob": logprob, "bytes": bytes })
            })
            .collect();
        let (text, logprob, bytes) = token(position.chosen.token, position.chosen.logprob);
        json!({ "token": text, "logprob": logprob, "bytes": bytes, "top_logprobs": top })
    };
    positions.iter().map(entry).collect()
}

/// JSON has no infinity. The API writes -9999 for what cannot be.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
