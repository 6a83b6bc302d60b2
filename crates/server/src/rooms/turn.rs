//! A turn: the personas that are asked answer, and a stream tells it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::response::Response;
use consort_core::{ChatPrompt, FinishReason, Prompt, Thinking};
use consort_text::{ReplyEvent, ReplyPiece};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::message::{Ended, Figures, Reason};
use super::opening::Opening;
use super::{Asked, Begun, Mode, Room, Said, TurnHold, layout};
use crate::app::Shared;
use crate::error::Failure;
use crate::registry::Member;
use crate::reply::{Calls, Ending, Heard, Reading, Reply};
use crate::shutdown::Phase;
use crate::speak::{Ask, Wish};
use crate::sse;

/// What is wished of all replies of a turn.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    pub(crate) max_tokens: Option<u32>,
    /// `None`: as the persona has it.
    pub(crate) thinking: Option<Thinking>,
}

/// Takes what the user says and lets the personas answer.
///
/// # Errors
/// Those of beginning a turn. What happens to a persona later is told in the stream.
pub(crate) fn response(app: &Arc<Shared>, room: &Arc<Room>, said: Said, wishes: &Wishes) -> Result<Response, Failure> {
    let Begun { message, speakers, mode, standing, hold } = app.rooms.begin(room, said)?;
    let hold = Arc::new(hold);
    let standing = (mode == Mode::Together).then_some(standing);
    let arrived = Instant::now();
    let lane = |(name, asked)| Lane {
        app: Arc::clone(app),
        room: Arc::clone(room),
        _hold: Arc::clone(&hold),
        name,
        asked,
        standing,
        wishes: wishes.clone(),
        arrived: (mode == Mode::Together).then_some(arrived),
        stage: Stage::Waiting,
        ready: VecDeque::new(),
    };
    let lanes = speakers.into_iter().map(lane).map(Lane::events).collect::<Vec<_>>();
    let lanes: BoxStream<'static, Bytes> = match mode {
        Mode::Together => stream::select_all(lanes).boxed(),
        Mode::InTurn => stream::iter(lanes).flatten().boxed(),
    };
    let taken = message.map(|message| event("message", &json!({ "message": message })));
    let done = stream::once(async move {
        // Who reads this may speak again at once.
        drop(hold);
        event("done", &json!({}))
    });
    Ok(sse::response(stream::iter(taken).chain(lanes).chain(done)))
}

/// An event with a name.
fn event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// One persona in a turn.
struct Lane {
    app: Arc<Shared>,
    room: Arc<Room>,
    /// The room is busy while one of its lanes lives.
    _hold: Arc<TurnHold>,
    name: String,
    asked: watch::Receiver<Asked>,
    /// How many messages it hears. `None`: all that stand when it begins.
    standing: Option<usize>,
    wishes: Wishes,
    /// When it was asked. `None`: when its turn comes.
    arrived: Option<Instant>,
    stage: Stage,
    /// Events that wait to be sent.
    ready: VecDeque<Bytes>,
}

enum Stage {
    Waiting,
    Speaking(Box<Speech>),
    Over,
}

/// What a persona says.
struct Speech {
    reply: Reply,
    member: Arc<Member>,
    opening: Opening,
    arrived: Instant,
    /// The room's message, once the prompt is in.
    message: Option<String>,
    figures: Figures,
    first: Option<Instant>,
}

impl Lane {
    fn events(self) -> BoxStream<'static, Bytes> {
        let next = |mut lane: Self| async move {
            let event = lane.next().await?;
            Some((event, lane))
        };
        stream::unfold(self, next).boxed()
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let mut asked = self.asked.clone();
            let stopped = async move {
                if asked.wait_for(|asked| *asked != Asked::Speak).await.is_err() {
                    // The room has forgotten the turn; the stream goes with it.
                    std::future::pending::<()>().await;
                }
            };
            match &mut self.stage {
                Stage::Over => return None,
                Stage::Waiting if self.app.shutdown.phase() == Phase::Cut => self.end(Reason::Cancelled, None),
                Stage::Waiting => {
                    let begun = tokio::select! {
                        biased;
                        () = stopped => None,
                        begun = self.begin() => Some(begun),
                    };
                    match begun {
                        None => self.end(Reason::Cancelled, None),
                        Some(Ok(speech)) => self.stage = Stage::Speaking(Box::new(speech)),
                        Some(Err(failure)) => self.end(Reason::Error, Some(&failure)),
                    }
                }
                Stage::Speaking(speech) => {
                    let heard = tokio::select! {
                        biased;
                        () = stopped => None,
                        heard = speech.reply.next() => Some(heard),
                    };
                    match heard {
                        None => self.end(Reason::Cancelled, None),
                        Some(Some(Ok(heard))) => self.hear(heard),
                        Some(Some(Err(failure))) => self.end(Reason::Error, Some(&failure)),
                        Some(None) => self.end(Reason::Error, Some(&Failure::internal())),
                    }
                }
            }
        }
    }

    async fn begin(&mut self) -> Result<Speech, Failure> {
        let app = &self.app;
        let member = app.registry.persona(&self.name).ok_or_else(|| no_persona(&self.name))?;
        let thinking = self.wishes.thinking.unwrap_or_else(|| member.persona.thinking());
        let messages = self.room.conversation(&member.persona, self.standing);
        let prompt = Prompt::Chat(ChatPrompt { messages, tools: Vec::new(), thinking });
        let reading = Reading::Turn { start: app.text.start(thinking), tools: Vec::new(), calls: Calls::Text };
        let wish = Wish { max_tokens: self.wishes.max_tokens, ..Wish::default() };
        let arrived = self.arrived.unwrap_or_else(Instant::now);
        let replies = app.speak(&member, vec![Ask { prompt, choices: 1 }], &wish, &reading, arrived).await?;
        let reply = replies.into_iter().next().ok_or_else(Failure::internal)?;
        let opening = Opening::new(layout::mark(&self.name));
        Ok(Speech { reply, member, opening, arrived, message: None, figures: Figures::default(), first: None })
    }

    fn hear(&mut self, heard: Heard) {
        let Stage::Speaking(speech) = &mut self.stage else { return };
        match heard {
            Heard::Prompt(_) => {}
            Heard::Started(usage) => {
                speech.figures = usage.into();
                self.started();
            }
            Heard::Said { ids, pieces, .. } => {
                if !ids.is_empty() {
                    let first = *speech.first.get_or_insert_with(Instant::now);
                    let figures = &mut speech.figures;
                    figures.completion_tokens += ids.len();
                    figures.first_token.get_or_insert_with(|| first.saturating_duration_since(speech.arrived));
                    figures.decode = first.elapsed();
                }
                self.say(pieces);
            }
            Heard::Ended { ending, usage, pieces, .. } => {
                self.say(pieces);
                let cut = ending == Ending::ShutDown;
                if let (Stage::Speaking(speech), false) = (&mut self.stage, cut) {
                    speech.figures = usage.into();
                }
                self.end(
                    match ending {
                        Ending::ShutDown => Reason::Cancelled,
                        Ending::Backend(FinishReason::Length) => Reason::Length,
                        Ending::Backend(_) | Ending::FirstCall => Reason::Stop,
                    },
                    None,
                );
            }
        }
    }

    /// The prompt is in.
    fn started(&mut self) {
        let Stage::Speaking(speech) = &mut self.stage else { return };
        let adapters = &speech.member.persona.adapters;
        let message = self.room.speaks(&self.name, adapters);
        let figures = &speech.figures;
        self.ready.push_back(event(
            "started",
            &json!({
                "persona": self.name,
                "message_id": message,
                "prompt_tokens": figures.prompt_tokens,
                "reused_tokens": figures.reused_tokens,
                "adapters": adapters,
            }),
        ));
        speech.message = Some(message);
    }

    fn say(&mut self, pieces: Vec<ReplyPiece>) {
        let Stage::Speaking(speech) = &mut self.stage else { return };
        let (mut content, mut reasoning) = (String::new(), String::new());
        for ReplyPiece { raw, event } in pieces {
            match event {
                ReplyEvent::Content => content.push_str(&speech.opening.push(&raw)),
                ReplyEvent::Malformed { text, .. } => content.push_str(&speech.opening.push(&text)),
                ReplyEvent::Reasoning => reasoning.push_str(&raw),
                // No tools were offered.
                _ => {}
            }
        }
        self.tell(&content, &reasoning);
    }

    fn tell(&mut self, content: &str, reasoning: &str) {
        let Stage::Speaking(speech) = &mut self.stage else { return };
        let Some(message) = speech.message.clone() else { return };
        if content.is_empty() && reasoning.is_empty() {
            return;
        }
        self.room.says(&message, content, reasoning);
        let mut delta =
            json!({ "persona": self.name, "message_id": message, "tokens": speech.figures.completion_tokens });
        for (key, text) in [("text", content), ("reasoning", reasoning)] {
            if let (false, Some(fields)) = (text.is_empty(), delta.as_object_mut()) {
                fields.insert(key.into(), text.into());
            }
        }
        self.ready.push_back(event("delta", &delta));
    }

    /// It is over, and says so.
    fn end(&mut self, reason: Reason, failure: Option<&Failure>) {
        if let Stage::Speaking(speech) = &mut self.stage {
            let rest = speech.opening.finish();
            // A reply may end without a word of its prompt; the order of the events stays.
            if speech.message.is_none() && matches!(reason, Reason::Stop | Reason::Length) {
                self.started();
            }
            self.tell(&rest, "");
        }
        let (message, ended) = self.close(reason, failure);
        let mut finished = json!({
            "persona": self.name,
            "message_id": message.unwrap_or_default(),
            "reason": ended.reason.as_str(),
            "usage": ended.figures.usage(),
        });
        if let Some(fields) = finished.as_object_mut() {
            if let Some(timings) = ended.figures.timings() {
                fields.insert("timings".into(), timings);
            }
            if let Some(error) = ended.error {
                fields.insert("error".into(), error);
            }
        }
        self.ready.push_back(event("finished", &finished));
    }

    /// It is over: the request is cancelled where it still runs, and the room knows.
    fn close(&mut self, reason: Reason, failure: Option<&Failure>) -> (Option<String>, Ended) {
        let (message, figures) = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Speaking(speech) => (speech.message, speech.figures),
            Stage::Waiting | Stage::Over => (None, Figures::default()),
        };
        let error = failure.map(|failure| failure.openai()["error"].take());
        let ended = Ended { reason, figures, error };
        self.room.ends(&self.name, message.as_deref(), ended.clone());
        (message, ended)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The client has gone: what was said stays.
        if !matches!(self.stage, Stage::Over) {
            self.close(Reason::Cancelled, None);
        }
    }
}

/// There is no persona of this name.
pub(crate) fn no_persona(name: &str) -> Failure {
    let shown: String = name.chars().take(128).collect();
    Failure::not_found("persona_not_found", format!("there is no persona `{shown}`; /v1/personas lists them"))
}
