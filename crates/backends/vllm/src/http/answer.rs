//! What comes back, as chunks of a reply.

use consort_core::{Error, ErrorKind, PositionLogprobs, Result, TokenId, TokenLogprob};
use serde_json::{Map, Value};

use super::wire::{Answer, Choice, Content, Logprobs, token_id};
use crate::call::{Call, CallPrompt, Chunk, Finish};

/// An event, or a whole answer, as a chunk. `None`: it says nothing new.
///
/// # Errors
/// [`ErrorKind::Remote`] for what the protocol does not have.
pub(super) fn chunk(answer: Answer, call: &Call) -> Result<Chunk> {
    let mut chunk = Chunk::default();
    if let Some(usage) = &answer.usage {
        chunk.prompt_tokens = usage.prompt_tokens;
        chunk.cached_tokens = usage.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens);
    }
    let Some(choice) = answer.choices.into_iter().next() else { return Ok(chunk) };
    let Choice {
        token_ids,
        prompt_token_ids,
        prompt_logprobs,
        text,
        delta,
        message,
        logprobs,
        finish_reason,
        stop_reason,
    } = choice;
    let prompt_ids = answer.prompt_token_ids.or(prompt_token_ids);
    if chunk.prompt_tokens.is_none() {
        chunk.prompt_tokens = prompt_ids.as_ref().map(Vec::len);
    }
    if call.prompt_logprobs.is_some() {
        let entries = answer.prompt_logprobs.or(prompt_logprobs);
        let entries = entries.ok_or_else(|| strange("it left out the prompt's log probabilities"))?;
        let pictures = answer.mm_placeholders.unwrap_or_default();
        let covered = |at: usize| pictures.values().flatten().any(|p| (p.offset..p.offset + p.length).contains(&at));
        chunk.prompt_logprobs = Some(of_prompt(&entries, prompt_ids.as_deref(), call, covered)?);
    }
    if let Some(said) = delta.or(message) {
        // Where the server takes reasoning apart, it is put back: here replies are taken apart by one parser for all.
        if let Some(reasoning) = said.reasoning {
            chunk.text.push_str(&reasoning);
        }
        chunk.text.push_str(said.content.as_deref().unwrap_or_default());
    }
    chunk.text.push_str(text.as_deref().unwrap_or_default());
    chunk.ids = token_ids.unwrap_or_default();
    if let Some(count) = call.logprobs {
        chunk.logprobs = of_reply(&chunk.ids, logprobs.unwrap_or_default(), count)?;
    }
    chunk.finish = finish_reason.map(|reason| finish(&reason, stop_reason.as_ref())).transpose()?;
    Ok(chunk)
}

fn finish(reason: &str, stop: Option<&Value>) -> Result<Finish> {
    match (reason, stop) {
        ("stop" | "tool_calls", None | Some(Value::Null)) => Ok(Finish::End),
        ("stop" | "tool_calls", Some(Value::String(string))) => Ok(Finish::String(string.clone())),
        ("stop" | "tool_calls", Some(Value::Number(token))) => {
            let token = token.as_u64().and_then(|token| TokenId::try_from(token).ok());
            token.map(Finish::Token).ok_or_else(|| strange("it stopped at what is no token"))
        }
        ("length", _) => Ok(Finish::Length),
        ("abort", _) => Err(Error::new(ErrorKind::Remote, "the server aborted the request").with_backend(crate::NAME)),
        ("error", _) => {
            Err(Error::new(ErrorKind::Remote, "the server failed while it answered").with_backend(crate::NAME))
        }
        _ => Err(strange("it ended for a reason that is not known here").with_context("finish_reason", shown(reason))),
    }
}

/// Log probabilities of new tokens, whatever the route's form.
fn of_reply(ids: &[TokenId], logprobs: Logprobs, count: u32) -> Result<Vec<PositionLogprobs>> {
    let Logprobs { content, token_logprobs, tokens, top_logprobs } = logprobs;
    let rows: Vec<(Option<TokenId>, Option<f32>, Vec<TokenLogprob>)> = match (content, token_logprobs) {
        (Some(content), _) => {
            content.iter().map(|row| (row.id(), row.logprob, candidates(&row.top_logprobs))).collect()
        }
        (None, Some(values)) => {
            let ids = tokens.unwrap_or_default();
            let top = top_logprobs.unwrap_or_default();
            let row = |(at, value): (usize, Option<f32>)| {
                let id = ids.get(at).and_then(|text| token_id(text));
                let top = top.get(at).and_then(Option::as_ref).map(keyed).unwrap_or_default();
                (id, value, top)
            };
            values.into_iter().enumerate().map(row).collect()
        }
        (None, None) => Vec::new(),
    };
    if rows.len() != ids.len() {
        return Err(strange("it has not one log probability for each token"));
    }
    let entry = |(&token, (id, logprob, top)): (&TokenId, (Option<TokenId>, Option<f32>, Vec<TokenLogprob>))| {
        let logprob = logprob.filter(|_| id.is_none_or(|id| id == token));
        let logprob = logprob.ok_or_else(|| strange("a log probability is of another token"))?;
        Ok(PositionLogprobs { chosen: TokenLogprob { token, logprob }, top: best(top, count) })
    };
    ids.iter().zip(rows).map(entry).collect()
}

fn candidates(contents: &[Content]) -> Vec<TokenLogprob> {
    contents.iter().filter_map(|c| Some(TokenLogprob { token: c.id()?, logprob: c.logprob? })).collect()
}

/// Candidates as an object of `token_id:N` or `N`, with a number or an object that has `logprob`.
fn keyed(map: &Map<String, Value>) -> Vec<TokenLogprob> {
    let entry = |(key, value): (&String, &Value)| {
        let token = token_id(key).or_else(|| key.parse().ok())?;
        let logprob = value.as_f64().or_else(|| value.get("logprob").and_then(Value::as_f64))?;
        Some(TokenLogprob { token, logprob: logprob as f32 })
    };
    map.iter().filter_map(entry).collect()
}

/// The best ones, best first, each token once. Servers add the chosen one to them.
fn best(mut top: Vec<TokenLogprob>, count: u32) -> Vec<TokenLogprob> {
    top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then(a.token.cmp(&b.token)));
    top.dedup_by_key(|candidate| candidate.token);
    top.truncate(count as usize);
    top
}

/// One entry for each position of the prompt.
fn of_prompt(
    entries: &[Option<Map<String, Value>>],
    ids: Option<&[TokenId]>,
    call: &Call,
    covered: impl Fn(usize) -> bool,
) -> Result<Vec<Option<PositionLogprobs>>> {
    let ids = match (&call.prompt, ids) {
        (_, Some(ids)) => ids,
        (CallPrompt::Tokens { ids, pictures }, None) if pictures.is_empty() => ids,
        _ => return Err(strange("it does not say which tokens the prompt has")),
    };
    if ids.len() != entries.len() {
        return Err(strange("it has not one log probability for each token of the prompt"));
    }
    let count = call.prompt_logprobs.unwrap_or_default();
    let entry = |(at, (entry, &token)): (usize, (&Option<Map<String, Value>>, &TokenId))| {
        let Some(map) = entry.as_ref().filter(|_| at > 0 && !covered(at)) else { return Ok(None) };
        let all = keyed(map);
        let chosen = all.iter().find(|candidate| candidate.token == token).copied();
        let chosen = chosen.ok_or_else(|| strange("a log probability of the prompt is of another token"))?;
        Ok(Some(PositionLogprobs { chosen, top: best(all, count) }))
    };
    entries.iter().zip(ids).enumerate().map(entry).collect()
}

/// The server answers what its protocol does not have: `it …`.
pub(super) fn strange(what: &str) -> Error {
    Error::new(ErrorKind::Remote, format!("the server's answer is not what its protocol has: {what}"))
        .with_status(consort_core::ErrorStatus::Permanent)
        .with_backend(crate::NAME)
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
