//! The routes of HTTP, in the forms of both front ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::Imitation;
use super::scribe::{Route, Scribe, quoted};
use super::speech::Wish;
use crate::answer::{Answer, Asked};
use crate::fault::{ErrorShape, FrontEnd};
use crate::perform::{bad_request, no_model};

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
        shows_text: body["output_mode"] == "text",
        usage: body["stream_options"]["include_usage"].as_bool().unwrap_or(false),
        wish,
    };
    let mut answer = if body["stream"].as_bool().unwrap_or(false) { scribe.events() } else { scribe.whole() };
    answer.pausable = true;
    answer
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
