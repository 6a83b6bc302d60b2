//! `/v1/completions`.

mod choice;
mod request;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use consort_core::{Prompt, PromptPart, SpecialTokens, Usage};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use self::choice::{Added, Choice, Logprobs};
use self::request::CompletionRequest;
use crate::app::Shared;
use crate::body;
use crate::error::Failure;
use crate::openai::chat::Envelope;
use crate::openai::common::{self, Delivery};
use crate::reply::{Reading, Reply};
use crate::speak::Ask;

pub(crate) use self::request::{prepare, several};

/// Continues texts.
pub(crate) async fn handle(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let arrived = Instant::now();
    let asked = CompletionRequest::read(body::json(&app, request).await?, &app.config.limits)?;
    let member = app.member(&asked.model)?;
    // Whoever writes a whole prompt writes its special tokens too.
    let (other, given) = (app.clone(), asked.prompts);
    let prompts = tokio::task::spawn_blocking(move || prepare(&other, given, SpecialTokens::Parse))
        .await
        .map_err(|_| Failure::internal())?
        .map_err(|failure| failure.or_param("prompt"))?;
    let asks = prompts.iter().map(|prompt| Ask {
        prompt: Prompt::Parts(vec![PromptPart::Tokens(prompt.tokens.clone())]),
        choices: asked.choices,
    });
    let replies = app.speak(&member, asks.collect(), &asked.wish, &Reading::Raw, arrived).await?;
    let envelope = Envelope::new(&app, "cmpl-", &asked.model);
    let logprobs = asked.wish.logprobs.is_some();
    let each = prompts.into_iter().flat_map(|prompt| std::iter::repeat_n(prompt, asked.choices));
    let choices: Vec<Choice> = each.map(|prompt| Choice::new(asked.echo.then_some(prompt), logprobs)).collect();
    match asked.delivery {
        Delivery::Streamed { usage } => Ok(stream::response(app, envelope, replies, choices, asked.choices, usage)),
        Delivery::Whole => whole(&app, &envelope, replies, choices, asked.choices).await,
    }
}

async fn whole(
    app: &Shared,
    envelope: &Envelope,
    replies: Vec<Reply>,
    choices: Vec<Choice>,
    each: usize,
) -> Result<Response, Failure> {
    let read = replies.into_iter().zip(choices).map(|(reply, choice)| read_whole(app, reply, choice));
    let read: Vec<_> = futures_util::future::try_join_all(read).await?;
    let took: Vec<Usage> = read.iter().map(|(_, _, usage)| *usage).collect();
    let choices = read.into_iter().enumerate().map(|(index, (added, reason, _))| {
        json!({
            "text": added.text,
            "index": index,
            "logprobs": added.logprobs.map(|table| table.json()),
            "finish_reason": reason,
        })
    });
    let mut answer = envelope.object("text_completion", &choices.collect());
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("usage".into(), usage(&took, each));
    }
    Ok(super::json_response(&answer))
}

async fn read_whole(
    app: &Shared,
    mut reply: Reply,
    mut choice: Choice,
) -> Result<(Added, &'static str, Usage), Failure> {
    let mut all = Added::default();
    while let Some(heard) = reply.next().await {
        let added = choice.hear(app, heard?);
        all.text.push_str(&added.text);
        if let Some(table) = added.logprobs {
            all.logprobs.get_or_insert_with(Logprobs::default).extend(table);
        }
    }
    let (reason, usage) = choice.ended.ok_or_else(Failure::internal)?;
    Ok((all, reason, usage))
}

/// What continuations took: each prompt counts once, however often it was continued.
fn usage(took: &[Usage], each: usize) -> Value {
    let prompts: Vec<Usage> = took.iter().step_by(each.max(1)).copied().collect();
    let replies: Vec<(Usage, usize)> = took.iter().map(|usage| (*usage, 0)).collect();
    common::usage(&replies, &prompts)
}
