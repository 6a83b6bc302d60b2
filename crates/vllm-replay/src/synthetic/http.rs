//! The routes of HTTP, in the forms of both front ends. Bodies are written by hand, so that fields stand where vLLM has them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::Imitation;
use super::speech::{Spoken, Wish, alternative, speak};
use crate::answer::{Answer, Asked, Piece};
use crate::fault::{ErrorShape, FrontEnd};
use crate::perform::{bad_request, no_model};

/// Which route generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Generate,
    Completions,
    Chat,
}

/// Answers a request.
pub(super) fn answer(imitation: &Arc<Imitation>, asked: &Asked) -> Answer {
    let config = &imitation.config;
    let route = asked.route();
    if let Some(key) = &config.api_key
        && ["/v1", "/v2", "/inference", "/cohere"].iter().any(|guarded| route.starts_with(guarded))
        && asked.header("authorization") != Some(&format!("Bearer {key}"))
    {
        return Answer::json(401, &json!({"error": "Unauthorized"}));
    }
    match (asked.method.as_str(), route) {
        ("GET", "/health" | "/ping") => Answer::whole(200, "", ""),
        ("GET", "/version") => match config.front_end {
            FrontEnd::Python => Answer::whole(200, "application/json", r#"{"version":"0.32.0"}"#),
            FrontEnd::Rust => {
                Answer::whole(200, "application/json", r#"{"version":"0.32.0","rust_frontend_version":"0.32.0"}"#)
            }
        },
        ("GET", "/load") => Answer::json(200, &json!({"server_load": 0})),
        ("GET", "/metrics") => Answer::whole(200, "text/plain; version=0.0.4; charset=utf-8", metrics(imitation)),
        ("GET", "/v1/models") => Answer::whole(200, "application/json", models(imitation)),
        ("GET", "/is_paused") => Answer::json(200, &json!({"is_paused": imitation.is_paused()})),
        ("POST", "/pause") => {
            imitation.set_paused(true);
            Answer::json(200, &json!({"status": "paused"}))
        }
        ("POST", "/resume") => {
            imitation.set_paused(false);
            Answer::json(200, &json!({"status": "resumed"}))
        }
        ("POST", _) => match serde_json::from_slice(&asked.body) {
            Ok(body) => post(imitation, route, &body),
            Err(error) => refuse(config.front_end, &format!("the body is no JSON: {error}")),
        },
        _ => not_found(config.front_end),
    }
}

fn post(imitation: &Arc<Imitation>, route: &str, body: &Value) -> Answer {
    let words = &imitation.config.words;
    match route {
        "/inference/v1/generate" => generate(imitation, Route::Generate, body),
        "/v1/completions" => generate(imitation, Route::Completions, body),
        "/v1/chat/completions" => generate(imitation, Route::Chat, body),
        "/tokenize" => {
            let text = body["prompt"].as_str().map_or_else(|| conversation(body), str::to_owned);
            let tokens = words.tokens(&text);
            let most = imitation.config.max_model_len;
            Answer::json(
                200,
                &json!({"count": tokens.len(), "max_model_len": most, "tokens": tokens, "token_strs": null}),
            )
        }
        "/detokenize" => {
            let text: String =
                tokens(&body["tokens"]).unwrap_or_default().into_iter().map(|token| words.text(token)).collect();
            Answer::json(200, &json!({"prompt": text}))
        }
        "/v1/load_lora_adapter" => load(imitation, body),
        "/v1/unload_lora_adapter" => unload(imitation, body),
        _ => not_found(imitation.config.front_end),
    }
}

fn not_found(front_end: FrontEnd) -> Answer {
    match front_end {
        FrontEnd::Python => Answer::json(404, &json!({"detail": "Not Found"})),
        FrontEnd::Rust => Answer::whole(404, "", ""),
    }
}

fn refuse(front_end: FrontEnd, message: &str) -> Answer {
    let shape = match front_end {
        FrontEnd::Python => ErrorShape::NumberCode,
        FrontEnd::Rust => ErrorShape::TextCode,
    };
    bad_request(shape, message)
}

/// The text of a conversation, as far as a model needs it that looks at the last token.
fn conversation(body: &Value) -> String {
    let messages = body["messages"].as_array().map_or(&[][..], Vec::as_slice);
    messages.iter().filter_map(|message| message["content"].as_str()).collect()
}

fn tokens(list: &Value) -> Option<Vec<u32>> {
    list.as_array()?.iter().map(|token| u32::try_from(token.as_u64()?).ok()).collect()
}

fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// Reads what a request wants.
fn wish(imitation: &Imitation, route: Route, body: &Value) -> Result<Wish, Answer> {
    let config = &imitation.config;
    let refused = |message: &str| refuse(config.front_end, message);
    let model = body["model"].as_str().unwrap_or(&config.model);
    let adapter = if model == config.model {
        String::new()
    } else if imitation.adapters().contains_key(model) {
        model.to_owned()
    } else {
        return Err(no_model(config.front_end, model));
    };
    let parameters = if route == Route::Generate { &body["sampling_params"] } else { body };
    let prompt = match route {
        Route::Generate => {
            tokens(&body["token_ids"]).ok_or_else(|| refused("token_ids: a list of token ids is wanted"))?
        }
        Route::Completions => match &body["prompt"] {
            Value::String(text) => config.words.tokens(text),
            list => tokens(list).ok_or_else(|| refused("prompt: a text or a list of token ids is wanted"))?,
        },
        Route::Chat => config.words.tokens(&conversation(body)),
    };
    check(imitation, &prompt).map_err(|message| refused(&message))?;
    let max_tokens = number(&parameters["max_completion_tokens"]).or_else(|| number(&parameters["max_tokens"]));
    let logprobs = match (route, &parameters["logprobs"]) {
        (Route::Chat, Value::Bool(true)) => Some(number(&parameters["top_logprobs"]).unwrap_or(0)),
        (Route::Chat, _) => None,
        (_, count) => number(count),
    };
    if logprobs.is_some_and(|count| count > 20) {
        return Err(refused("Requested sample logprobs is greater than max allowed: 20"));
    }
    Ok(Wish {
        prompt,
        adapter,
        max_tokens: max_tokens.unwrap_or(if route == Route::Chat { u32::MAX } else { 16 }),
        ignore_end: parameters["ignore_eos"].as_bool().unwrap_or(false),
        stop_tokens: tokens(&parameters["stop_token_ids"]).unwrap_or_default(),
        logprobs,
    })
}

/// What vLLM refuses about a prompt.
pub(super) fn check(imitation: &Imitation, prompt: &[u32]) -> Result<(), String> {
    let config = &imitation.config;
    if prompt.is_empty() {
        return Err("The decoder prompt cannot be empty".into());
    }
    if let Some(token) = prompt.iter().find(|token| **token >= config.vocabulary) {
        return Err(format!("Token id {token} is out of vocabulary"));
    }
    if prompt.len() >= config.max_model_len as usize {
        return Err(format!(
            "The decoder prompt (length {}) is longer than the maximum model length of {}.",
            prompt.len(),
            config.max_model_len
        ));
    }
    Ok(())
}

fn generate(imitation: &Arc<Imitation>, route: Route, body: &Value) -> Answer {
    let wish = match wish(imitation, route, body) {
        Ok(wish) => wish,
        Err(answer) => return answer,
    };
    imitation.prompt_tokens.fetch_add(wish.prompt.len() as u64, Ordering::Relaxed);
    let serial = imitation.serial.fetch_add(1, Ordering::Relaxed);
    let model = body["model"].as_str().unwrap_or(&imitation.config.model).to_owned();
    let scribe = Scribe {
        imitation: Arc::clone(imitation),
        route,
        id: match (imitation.config.front_end, route) {
            (FrontEnd::Python, Route::Generate) => format!("generate-tokens-{serial:016x}"),
            (FrontEnd::Rust, Route::Generate) => format!("{serial:08x}"),
            (FrontEnd::Python, Route::Completions) => format!("cmpl-{serial:016x}"),
            (FrontEnd::Rust, Route::Completions) => format!("cmpl-{serial:08x}"),
            (FrontEnd::Python, Route::Chat) => format!("chatcmpl-{serial:016x}"),
            (FrontEnd::Rust, Route::Chat) => format!("chatcmpl-{serial:08x}"),
        },
        model: json!(model).to_string(),
        with_tokens: route == Route::Generate || body["return_token_ids"].as_bool().unwrap_or(false),
        tell_prompt: body["return_token_ids"].as_bool().unwrap_or(false),
        usage: body["stream_options"]["include_usage"].as_bool().unwrap_or(false),
        wish,
    };
    let mut answer = if body["stream"].as_bool().unwrap_or(false) { scribe.events() } else { scribe.whole() };
    answer.pausable = true;
    answer
}

/// Writes one reply.
struct Scribe {
    imitation: Arc<Imitation>,
    route: Route,
    id: String,
    /// As JSON.
    model: String,
    with_tokens: bool,
    tell_prompt: bool,
    usage: bool,
    wish: Wish,
}

/// Text as a JSON string.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn list(tokens: impl IntoIterator<Item = u32>) -> String {
    let numbers: Vec<String> = tokens.into_iter().map(|token| token.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

impl Scribe {
    fn rust(&self) -> bool {
        self.imitation.config.front_end == FrontEnd::Rust
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
        let finish = spoken.finish.map_or_else(|| "null".into(), |finish| quoted(finish.reason()));
        let stop = spoken.finish.map_or_else(|| "null".into(), super::speech::Finish::stop_reason);
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
                format!(
                    "{{\"request_id\":\"{id}\",\"usage\":null,{prompt}\"output_mode\":\"tokens\",\"choices\":[{{\"index\":0,\"finish_reason\":{finish},\"stop_reason\":{stop},\"token_ids\":[{token}],\"routed_experts\":null,\"sampling_mask\":null,\"weight_versions\":{versions},\"logprobs\":{logprobs}}}]}}"
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
        let finish = spoken.finish.map_or_else(|| "null".into(), |finish| quoted(finish.reason()));
        let stop = match spoken.finish.map(super::speech::Finish::stop_reason) {
            Some(stop) if stop != "null" => format!(",\"stop_reason\":{stop}"),
            _ => String::new(),
        };
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

    fn events(self) -> Answer {
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
                            return Some(Piece::now(format!(
                                "data: {{\"request_id\":\"{id}\",\"usage\":{usage},\"output_mode\":\"tokens\",\"choices\":[]}}\n\n"
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

    fn whole(self) -> Answer {
        let spoken: Vec<Spoken> = speak(&self.imitation, &self.wish).collect();
        let replied = u32::try_from(spoken.len()).unwrap_or(u32::MAX);
        self.imitation.generated_tokens.fetch_add(spoken.len() as u64, Ordering::Relaxed);
        self.imitation.replies.fetch_add(1, Ordering::Relaxed);
        let finish = spoken.last().and_then(|spoken| spoken.finish);
        let reason = finish.map_or_else(|| "null".into(), |finish| quoted(finish.reason()));
        let stop = finish.map_or_else(|| "null".into(), super::speech::Finish::stop_reason);
        let tokens = list(spoken.iter().map(|spoken| spoken.token));
        let text: String = spoken.iter().map(|spoken| self.text(spoken)).collect();
        let text = quoted(&text);
        let logprobs = self.logprobs(&spoken);
        let prompt = if self.tell_prompt { list(self.wish.prompt.iter().copied()) } else { "null".into() };
        let told = if self.with_tokens { tokens.clone() } else { "null".into() };
        let (usage, id, model) = (self.usage(replied), &self.id, &self.model);
        let versions = format!("[{{\"version\":\"default\",\"start\":0,\"end\":{replied}}}]");
        let body = match (self.route, self.rust()) {
            (Route::Generate, false) => format!(
                "{{\"request_id\":\"{id}\",\"model\":{model},\"created\":0,\"usage\":{usage},\"prompt_logprobs\":null,\"prompt_token_id_logprobs\":null,\"prompt_token_ids\":{prompt},\"mm_placeholders\":null,\"metrics\":null,\"kv_transfer_params\":null,\"ec_transfer_params\":null,\"output_mode\":\"tokens\",\"choices\":[{{\"index\":0,\"finish_reason\":{reason},\"stop_reason\":{stop},\"token_ids\":{tokens},\"routed_experts\":null,\"sampling_mask\":null,\"weight_versions\":{versions},\"logprobs\":{logprobs}}}]}}"
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

fn models(imitation: &Imitation) -> String {
    let config = &imitation.config;
    let entry = |id: &str, root: &str, parent: Value, most: Value| {
        let owner = if config.front_end == FrontEnd::Rust { "vllm-frontend-rs" } else { "vllm" };
        format!(
            "{{\"id\":{},\"object\":\"model\",\"created\":0,\"owned_by\":\"{owner}\",\"root\":{},\"parent\":{parent},\"max_model_len\":{most}}}",
            quoted(id),
            quoted(root)
        )
    };
    let mut entries = vec![entry(&config.model, &config.root, Value::Null, config.max_model_len.into())];
    for (name, path) in imitation.adapters().iter() {
        entries.push(entry(name, path, config.model.as_str().into(), Value::Null));
    }
    format!("{{\"object\":\"list\",\"data\":[{}]}}", entries.join(","))
}

fn metrics(imitation: &Imitation) -> String {
    let labels = format!("{{engine=\"0\",model_name={}}}", quoted(&imitation.config.model));
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let mut text = String::new();
    for (name, kind, value) in [
        ("num_requests_running", "gauge", 0),
        ("num_requests_waiting", "gauge", 0),
        ("kv_cache_usage_perc", "gauge", 0),
        ("prefix_cache_queries_total", "counter", load(&imitation.prompt_tokens)),
        ("prefix_cache_hits_total", "counter", 0),
        ("num_preemptions_total", "counter", 0),
        ("prompt_tokens_total", "counter", load(&imitation.prompt_tokens)),
        ("generation_tokens_total", "counter", load(&imitation.generated_tokens)),
        ("request_success_total", "counter", load(&imitation.replies)),
    ] {
        text += &format!("# TYPE vllm:{name} {kind}\nvllm:{name}{labels} {value}.0\n");
    }
    text
}

fn load(imitation: &Imitation, body: &Value) -> Answer {
    let front_end = imitation.config.front_end;
    let (Some(name), Some(path)) = (body["lora_name"].as_str(), body["lora_path"].as_str()) else {
        return refuse(front_end, "Both 'lora_name' and 'lora_path' must be provided.");
    };
    match imitation.load(name, path) {
        Ok(()) => Answer::whole(200, "", format!("Success: LoRA adapter '{name}' added successfully.")),
        Err(Loading::There) if front_end == FrontEnd::Python => Answer::json(
            400,
            &json!({"error": {
                "message": format!("The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."),
                "type": "InvalidUserInput", "param": null, "code": 400,
            }}),
        ),
        Err(Loading::There) => refuse(front_end, &format!("The lora adapter '{name}' has already been loaded.")),
        Err(Loading::NoFile) => Answer::json(
            404,
            &json!({"error": {
                "message": format!("Loading lora {name} failed: No adapter found for {path}"),
                "type": "NotFoundError", "param": null, "code": 404,
            }}),
        ),
    }
}

fn unload(imitation: &Imitation, body: &Value) -> Answer {
    let front_end = imitation.config.front_end;
    let Some(name) = body["lora_name"].as_str() else { return refuse(front_end, "'lora_name' needs to be provided.") };
    if imitation.adapters().remove(name).is_some() {
        return Answer::whole(200, "", format!("Success: LoRA adapter '{name}' removed successfully."));
    }
    match front_end {
        FrontEnd::Python => Answer::json(
            404,
            &json!({"error": {
                "message": format!("The lora adapter '{name}' cannot be found."), "type": "NotFoundError", "param": null, "code": 404,
            }}),
        ),
        FrontEnd::Rust => no_model(front_end, name),
    }
}

/// Why an adapter is not loaded.
pub(super) enum Loading {
    There,
    NoFile,
}

impl Imitation {
    /// Loads an adapter from a folder that has its `adapter_config.json`.
    pub(super) fn load(&self, name: &str, path: &str) -> Result<(), Loading> {
        let mut adapters = self.adapters();
        if adapters.contains_key(name) {
            return Err(Loading::There);
        }
        if !std::path::Path::new(path).join("adapter_config.json").is_file() {
            return Err(Loading::NoFile);
        }
        adapters.insert(name.to_owned(), path.to_owned());
        Ok(())
    }
}
