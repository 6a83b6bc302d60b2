//! Reading a request for a completion.

use consort_core::{SpecialTokens, TokenId};
use serde_json::Value;

use crate::app::Shared;
use crate::config::Limits;
use crate::error::Failure;
use crate::fields::{Fields, missing};
use crate::openai::common::{self, Delivery, HARMLESS};
use crate::speak::Wish;

/// A request, understood.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) model: String,
    pub(crate) prompts: Vec<Given>,
    /// Whether the prompt stands before its continuation.
    pub(crate) echo: bool,
    pub(crate) wish: Wish,
    pub(crate) choices: usize,
    pub(crate) delivery: Delivery,
}

/// A text, as clients give it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Given {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// A prompt as text and as tokens.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenId>,
}

impl CompletionRequest {
    /// Reads a body, of which every field is understood or refused.
    ///
    /// # Errors
    /// The first field that is wrong, by name.
    pub(crate) fn read(mut fields: Fields, limits: &Limits) -> Result<Self, Failure> {
        fields.unsupported(&["suffix"], "the model continues texts, and does not fill gaps")?;
        fields.harmless(&HARMLESS);
        let mut wish = common::wish(&mut fields)?;
        let echo = fields.get::<bool>("echo")?.unwrap_or(false);
        wish.max_tokens = Some(fields.get::<u32>("max_tokens")?.unwrap_or(16));
        if wish.max_tokens == Some(0) && !echo {
            return Err(Failure::value(
                "max_tokens",
                "a completion has at least one token, unless its prompt is echoed",
            ));
        }
        wish.logprobs = fields.get::<u32>("logprobs")?;
        if wish.logprobs.is_some_and(|top| top > 20) {
            return Err(Failure::value("logprobs", "`logprobs` is from 0 to 20"));
        }
        if echo {
            wish.prompt_logprobs = wish.logprobs;
        }
        let choices = common::choices(&mut fields, limits.choices.get())?;
        if fields.get::<usize>("best_of")?.is_some_and(|best| best != choices) {
            return Err(Failure::unsupported("best_of", "`best_of` can be `n` only: all replies are sent"));
        }
        let prompts = several(&mut fields, "prompt", limits.choices.get() / choices.max(1))?;
        let request = Self {
            model: fields.require("model")?,
            prompts,
            echo,
            wish,
            choices,
            delivery: common::delivery(&mut fields)?,
        };
        fields.finish()?;
        Ok(request)
    }
}

/// A field of one text or several: strings, token ids, or lists of either.
pub(crate) fn several(fields: &mut Fields, name: &str, most: usize) -> Result<Vec<Given>, Failure> {
    let param = fields.param(name);
    let wrong = || Failure::value(param.clone(), format!("`{param}` is a string, token ids, or a list of either"));
    let given = match fields.take(name).ok_or_else(|| missing(&param))? {
        Value::String(text) => vec![Given::Text(text)],
        Value::Array(items) if items.iter().all(Value::is_number) && !items.is_empty() => {
            vec![Given::Tokens(ids(&items).ok_or_else(wrong)?)]
        }
        Value::Array(items) => {
            if items.len() > most {
                return Err(Failure::value(
                    param.clone(),
                    format!("`{param}` has {} texts; at most {most} are taken", items.len()),
                ));
            }
            let item = |item: Value| match item {
                Value::String(text) => Ok(Given::Text(text)),
                Value::Array(inner) => ids(&inner).map(Given::Tokens).ok_or_else(wrong),
                _ => Err(wrong()),
            };
            items.into_iter().map(item).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong()),
    };
    let empty = |given: &Given| match given {
        Given::Text(text) => text.is_empty(),
        Given::Tokens(tokens) => tokens.is_empty(),
    };
    if given.is_empty() || given.iter().any(empty) {
        return Err(Failure::value(param.clone(), format!("`{param}` must not be empty")));
    }
    Ok(given)
}

fn ids(items: &[Value]) -> Option<Vec<TokenId>> {
    items.iter().map(|item| item.as_u64().and_then(|id| TokenId::try_from(id).ok())).collect()
}

/// Texts with their tokens, and tokens with their texts. Takes its time: not for a thread of connections.
pub(crate) fn prepare(app: &Shared, given: Vec<Given>, special: SpecialTokens) -> Result<Vec<Prepared>, Failure> {
    let one = |given: Given| match given {
        Given::Text(text) => {
            let tokens = app.backend.tokenize(&text, special)?;
            Ok(Prepared { text, tokens })
        }
        Given::Tokens(tokens) => {
            let text = app.backend.detokenize(&tokens)?;
            Ok(Prepared { text, tokens })
        }
    };
    given.into_iter().map(one).collect()
}
