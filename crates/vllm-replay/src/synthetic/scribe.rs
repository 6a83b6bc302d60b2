//! Replies by HTTP, in the forms of both front ends. They are written by hand, so that fields stand where vLLM has them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::Imitation;
use super::speech::{Finish, Spoken, Wish, alternative, speak};
use crate::answer::{Answer, Piece};
use crate::fault::FrontEnd;

/// Which route generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Generate,
    Completions,
    Chat,
}

/// Writes one reply.
pub(super) struct Scribe {
    pub(super) imitation: Arc<Imitation>,
    pub(super) route: Route,
    pub(super) id: String,
    /// As JSON.
    pub(super) model: String,
    pub(super) with_tokens: bool,
    pub(super) tell_prompt: bool,
    pub(super) usage: bool,
    /// On the route of tokens, where only the Python front end does.
    pub(super) shows_text: bool,
    pub(super) wish: Wish,
}

/// Text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn list(tokens: impl IntoIterator<Item = u32>) -> String {
    let numbers: Vec<String> = tokens.into_iter().map(|token| token.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

/// `finish_reason` and `stop_reason` as JSON.
fn why(finish: Option<Finish>) -> (String, String) {
    match finish {
        Some(finish) => (quoted(finish.reason()), finish.stop_reason()),
        None => ("null".into(), "null".into()),
    }
}

impl Scribe {
    fn rust(&self) -> bool {
        self.imitation.config.front_end == FrontEnd::Rust
    }

    /// What the Python front end calls the form of its replies on the route of tokens.
    fn mode(&self) -> &'static str {
        if self.shows_text { "text" } else { "tokens" }
    }

    /// The field that has the text there.
    fn shown(&self, text: &str) -> String {
        if self.shows_text { format!("\"text\":{},", quoted(text)) } else { String::new() }
    }

    fn text(&self, spoken: &Spoken) -> String {
        // The end token has no text; a stop token neither.
        match spoken.finish {
            Some(finish) if finish.reason() == "stop" => String::new(),
            _ => self.imitation.config.words.text(spoken.token),
        }
    }

    fn logprobs(&self, spoken: &[Spoken]) -> String {
        let Some(count) = self.wish.logprobs else { return "null".into() };
        let config = &self.imitation.config;
        let entries = spoken.iter().map(|spoken| {
            let entry = |nth: u32| {
                let (token, logprob) = alternative(spoken.token, nth, config.ordinary);
                let text = config.words.text(token);
                match self.route {
                    Route::Generate => format!("\"token_id\":{token},\"logprob\":{logprob:?},\"rank\":{}", nth + 1),
                    Route::Chat => {
                        format!("\"token\":{},\"logprob\":{logprob:?},\"bytes\":{:?}", quoted(&text), text.as_bytes())
                            .replace(", ", ",")
                    }
                    Route::Completions => format!("{}:{logprob:?}", quoted(&text)),
                }
            };
            let most: Vec<String> = (0..count).map(entry).collect();
            (entry(0), most, quoted(&config.words.text(spoken.token)))
        });
        match self.route {
            Route::Generate | Route::Chat => {
                let entries: Vec<String> = entries
                    .map(|(own, most, _)| {
                        let most: Vec<String> = most.into_iter().map(|entry| format!("{{{entry}}}")).collect();
                        format!("{{{own},\"top_logprobs\":[{}]}}", most.join(","))
                    })
                    .collect();
                format!("{{\"content\":[{}]}}", entries.join(","))
            }
            Route::Completions => {
                let (mut offsets, mut values, mut texts, mut tops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
                for ((_, most, text), spoken) in entries.zip(spoken) {
                    offsets.push(spoken.place.to_string());
                    values.push("-0.5");
                    texts.push(text);
                    tops.push(format!("{{{}}}", most.join(",")));
                }
                format!(
                    "{{\"text_offset\":[{}],\"token_logprobs\":[{}],\"tokens\":[{}],\"top_logprobs\":[{}]}}",
                    offsets.join(","),
                    values.join(","),
                    texts.join(","),
                    tops.join(",")
                )
            }
        }
    }

    /// One event of a stream.
    fn event(&self, spoken: &Spoken, text: &str) -> String {
        let first = spoken.place == 0;
        let logprobs = self.logprobs(std::slice::from_ref(spoken));
        let prompt = if self.tell_prompt && first { list(self.wish.prompt.iter().copied()) } else { "null".into() };
        let (finish, stop) = why(spoken.finish);
        let (id, model, token) = (&self.id, &self.model, spoken.token);
        let versions = if spoken.finish.is_some() {
            format!("[{{\"version\":\"default\",\"start\":0,\"end\":{}}}]", spoken.place + 1)
        } else {
            "null".into()
        };
        let body = match (self.route, self.rust()) {
            (Route::Generate, false) => {
                let prompt =
                    if self.tell_prompt && first { format!("\"prompt_token_ids\":{prompt},") } else { String::new() };
                let (mode, shown) = (self.mode(), self.shown(text));
                format!(
                    "{{\"request_id\":\"{id}\",\"usage\":null,{prompt}\"output_mode\":\"{mode}\",\"choices\":[{{\"index\":0,\"finish_reason\":{finish},\"stop_reason\":{stop},\"token_ids\":[{token}],\"routed_experts\":null,\"sampling_mask\":null,\"weight_versions\":{versions},{shown}\"logprobs\":{logprobs}}}]}}"
                )
            }
            (Route::Generate, true) => {
                let mut choice = String::from("\"index\":0,");
                if self.wish.logprobs.is_some() {
                    choice += &format!("\"logprobs\":{logprobs},");
                }
                if spoken.finish.is_some() {
                    choice += &format!("\"finish_reason\":{finish},");
                    if stop != "null" {
                        choice += &format!("\"stop_reason\":{stop},");
                    }
                }
                choice += &format!("\"token_ids\":[{token}]");
                if spoken.finish.is_some() {
                    choice += &format!(",\"weight_versions\":{versions}");
                }
                let prompt =
                    if self.tell_prompt && first { format!(",\"prompt_token_ids\":{prompt}") } else { String::new() };
                format!("{{\"request_id\":\"{id}\",\"choices\":[{{{choice}}}]{prompt}}}")
            }
            (Route::Completions, _) => {
                let text = quoted(text);
                let tokens = if self.with_tokens { format!("[{token}]") } else { "null".into() };
                format!(
                    "{{\"id\":\"{id}\",\"object\":\"text_completion\",\"created\":0,\"model\":{model},\"choices\":[{{\"index\":0,\"text\":{text},\"logprobs\":{logprobs},\"finish_reason\":{finish},\"stop_reason\":{stop},\"prompt_token_ids\":{prompt},\"token_ids\":{tokens}}}]}}"
                )
            }
            (Route::Chat, _) => {
                let text = quoted(text);
                let stop = if spoken.finish.is_some() { format!(",\"stop_reason\":{stop}") } else { String::new() };
                let tokens = if self.with_tokens { format!(",\"token_ids\":[{token}]") } else { String::new() };
                format!(
                    "{{\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":{model},\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{text}}},\"logprobs\":{logprobs},\"finish_reason\":{finish}{stop}{tokens}}}]}}"
                )
            }
        };
        format!("data: {body}\n\n")
    }

    /// Whether why a reply ended comes after the token that ended it, in an event of its own.
    fn tells_ends_apart(&self) -> bool {
        self.rust() && self.route != Route::Generate
    }

    /// That event.
    fn ending(&self, spoken: &Spoken) -> String {
        let (id, model) = (&self.id, &self.model);
        let (finish, stop) = why(spoken.finish);
        let stop = if stop == "null" { String::new() } else { format!(",\"stop_reason\":{stop}") };
        let tokens = if self.with_tokens { ",\"token_ids\":[]" } else { "" };
        let (object, said) = match self.route {
            Route::Chat => ("chat.completion.chunk", "\"delta\":{}"),
            Route::Completions | Route::Generate => ("text_completion", "\"text\":\"\""),
        };
        format!(
            "data: {{\"id\":\"{id}\",\"object\":\"{object}\",\"created\":0,\"model\":{model},\"choices\":[{{\"index\":0,{said},\"finish_reason\":{finish}{stop}{tokens}}}]}}\n\n"
        )
    }

    /// What a stream of chat begins with.
    fn opening(&self) -> Option<String> {
        let (id, model) = (&self.id, &self.model);
        let prompt = if self.tell_prompt { list(self.wish.prompt.iter().copied()) } else { "null".into() };
        (self.route == Route::Chat).then(|| {
            format!(
                "data: {{\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":{model},\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}],\"prompt_token_ids\":{prompt},\"prompt_text\":null}}\n\n"
            )
        })
    }

    fn usage(&self, replied: u32) -> String {
        let prompt = self.wish.prompt.len();
        let total = prompt + replied as usize;
        format!("{{\"prompt_tokens\":{prompt},\"total_tokens\":{total},\"completion_tokens\":{replied}}}")
    }

    /// A stream of events.
    pub(super) fn events(self) -> Answer {
        let pace = self.imitation.config.pace;
        let mut speech = speak(&self.imitation, &self.wish);
        let mut opening = self.opening();
        let mut ending = None;
        let mut replied = 0;
        let rust = self.rust();
        // The usage, then `[DONE]`.
        let mut closing = if self.usage { 0 } else { 1 };
        let pieces = std::iter::from_fn(move || {
            if let Some(opening) = opening.take() {
                return Some(Piece::now(opening));
            }
            if let Some(spoken) = speech.next() {
                replied += 1;
                self.imitation.generated_tokens.fetch_add(1, Ordering::Relaxed);
                if spoken.finish.is_some() {
                    self.imitation.replies.fetch_add(1, Ordering::Relaxed);
                }
                let event = match spoken.finish {
                    Some(_) if self.tells_ends_apart() => {
                        ending = Some(self.ending(&spoken));
                        self.event(&Spoken { finish: None, ..spoken }, &self.text(&spoken))
                    }
                    _ => self.event(&spoken, &self.text(&spoken)),
                };
                return Some(Piece { pause: pace, bytes: event.into() });
            }
            if let Some(ending) = ending.take() {
                return Some(Piece::now(ending));
            }
            closing += 1;
            match closing {
                1 => {
                    let (usage, id, model) = (self.usage(replied), &self.id, &self.model);
                    let head = match self.route {
                        Route::Generate if rust => {
                            return Some(Piece::now(format!(
                                "data: {{\"request_id\":\"{id}\",\"choices\":[],\"usage\":{usage}}}\n\n"
                            )));
                        }
                        Route::Generate => {
                            let mode = self.mode();
                            return Some(Piece::now(format!(
                                "data: {{\"request_id\":\"{id}\",\"usage\":{usage},\"output_mode\":\"{mode}\",\"choices\":[]}}\n\n"
                            )));
                        }
                        Route::Completions => "text_completion",
                        Route::Chat => "chat.completion.chunk",
                    };
                    Some(Piece::now(format!(
                        "data: {{\"id\":\"{id}\",\"object\":\"{head}\",\"created\":0,\"model\":{model},\"choices\":[],\"usage\":{usage}}}\n\n"
                    )))
                }
                2 => Some(Piece::now("data: [DONE]\n\n")),
                _ => None,
            }
        });
        let mut answer = Answer::events(pieces);
        if rust {
            answer.headers =
                vec![("content-type".into(), "text/event-stream".into()), ("cache-control".into(), "no-cache".into())];
        }
        answer
    }

    /// The reply in one piece.
    pub(super) fn whole(self) -> Answer {
        let spoken: Vec<Spoken> = speak(&self.imitation, &self.wish).collect();
        let replied = u32::try_from(spoken.len()).unwrap_or(u32::MAX);
        self.imitation.generated_tokens.fetch_add(spoken.len() as u64, Ordering::Relaxed);
        self.imitation.replies.fetch_add(1, Ordering::Relaxed);
        let (reason, stop) = why(spoken.last().and_then(|spoken| spoken.finish));
        let tokens = list(spoken.iter().map(|spoken| spoken.token));
        let text: String = spoken.iter().map(|spoken| self.text(spoken)).collect();
        let (mode, shown) = (self.mode(), self.shown(&text));
        let text = quoted(&text);
        let logprobs = self.logprobs(&spoken);
        let prompt = if self.tell_prompt { list(self.wish.prompt.iter().copied()) } else { "null".into() };
        let told = if self.with_tokens { tokens.clone() } else { "null".into() };
        let (usage, id, model) = (self.usage(replied), &self.id, &self.model);
        let versions = format!("[{{\"version\":\"default\",\"start\":0,\"end\":{replied}}}]");
        let body = match (self.route, self.rust()) {
            (Route::Generate, false) => format!(
                "{{\"request_id\":\"{id}\",\"model\":{model},\"created\":0,\"usage\":{usage},\"prompt_logprobs\":null,\"prompt_token_id_logprobs\":null,\"prompt_token_ids\":{prompt},\"mm_placeholders\":null,\"metrics\":null,\"kv_transfer_params\":null,\"ec_transfer_params\":null,\"output_mode\":\"{mode}\",\"choices\":[{{\"index\":0,\"finish_reason\":{reason},\"stop_reason\":{stop},\"token_ids\":{tokens},\"routed_experts\":null,\"sampling_mask\":null,\"weight_versions\":{versions},{shown}\"logprobs\":{logprobs}}}]}}"
            ),
            (Route::Generate, true) => format!(
                "{{\"request_id\":\"{id}\",\"choices\":[{{\"index\":0,\"logprobs\":{logprobs},\"finish_reason\":{reason},\"stop_reason\":{stop},\"token_ids\":{tokens},\"sampling_mask\":null,\"weight_versions\":{versions}}}],\"prompt_logprobs\":null,\"prompt_token_id_logprobs\":null,\"prompt_token_ids\":{prompt},\"mm_placeholders\":null,\"kv_transfer_params\":null,\"ec_transfer_params\":null,\"metrics\":null}}"
            ),
            (Route::Completions, _) => format!(
                "{{\"id\":\"{id}\",\"object\":\"text_completion\",\"created\":0,\"model\":{model},\"choices\":[{{\"index\":0,\"text\":{text},\"logprobs\":{logprobs},\"finish_reason\":{reason},\"stop_reason\":{stop},\"token_ids\":{told},\"prompt_logprobs\":null,\"prompt_token_ids\":{prompt}}}],\"usage\":{usage}}}"
            ),
            (Route::Chat, _) => format!(
                "{{\"id\":\"{id}\",\"object\":\"chat.completion\",\"created\":0,\"model\":{model},\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":{text}}},\"logprobs\":{logprobs},\"finish_reason\":{reason},\"stop_reason\":{stop},\"token_ids\":{told}}}],\"usage\":{usage},\"prompt_token_ids\":{prompt}}}"
            ),
        };
        let pause = self.imitation.config.pace * replied;
        let mut answer = Answer::whole(200, "application/json", "");
        answer.length = Some(body.len() as u64);
        answer.pieces = Box::new(std::iter::once(Piece { pause, bytes: body.into() }));
        answer
    }
}
