//! The methods of gRPC, in the Rust front end's manner.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::Imitation;
use super::http::{Loading, check};
use super::speech::{Finish, Spoken, Wish, alternative, speak};
use crate::answer::{Answer, Asked, GrpcCode, Piece};
use crate::proto;

/// Answers a call.
pub(super) fn answer(imitation: &Arc<Imitation>, asked: &Asked) -> Answer {
    let method = asked.path.as_str();
    let Some(request) = proto::request_to_json(method, &asked.body) else {
        return Answer::refusal(GrpcCode::UNIMPLEMENTED, "the method is not known here, or the message is none of it");
    };
    let config = &imitation.config;
    let say = |json: Value| {
        proto::answer_from_json(method, &json).map_or_else(
            || Answer::refusal(GrpcCode::INTERNAL, "the answer is no message of the method"),
            |bytes| Answer::messages(std::iter::once(Piece::now(bytes))),
        )
    };
    let text = |name: &str| request[name].as_str().unwrap_or_default();
    match method {
        "/vllm.Inference/Generate" | "/vllm.Inference/GenerateStream" => generate(imitation, method, &request),
        "/vllm.Control/GetServerInfo" => say(json!({
            "engine_version": "0.32.0", "api_version": "vllm", "instance_id": "synthetic",
            "parallelism": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1, "world_size": 1},
            "max_model_len": config.max_model_len, "max_running_requests": 16, "max_loras": 8, "proto_version": "0.6.0",
        })),
        "/vllm.Control/GetModelInfo" => say(json!({
            "model_id": config.root, "served_model_name": config.model, "supports_text_input": true,
            "supports_token_ids_input": true, "supports_lora": true, "supports_multimodal": true,
        })),
        "/vllm.Control/Abort" | "/vllm.Control/Shutdown" => say(json!({})),
        "/vllm.Control/LoadLora" => match imitation.load(text("lora_name"), text("source_path")) {
            Ok(()) => say(json!({"adapter": adapter(1, text("lora_name"), text("source_path"))})),
            Err(Loading::There) => Answer::refusal(
                GrpcCode::ALREADY_EXISTS,
                &format!("LoRA adapter `{}` is already loaded", text("lora_name")),
            ),
            Err(Loading::NoFile) => {
                Answer::refusal(GrpcCode::NOT_FOUND, &format!("No adapter found for {}", text("source_path")))
            }
        },
        "/vllm.Control/UnloadLora" => match imitation.adapters().remove(text("lora_name")) {
            Some(path) => say(json!({"adapter": adapter(1, text("lora_name"), &path)})),
            None => {
                Answer::refusal(GrpcCode::NOT_FOUND, &format!("LoRA adapter `{}` is not loaded", text("lora_name")))
            }
        },
        "/vllm.Control/ListLoras" => {
            let adapters: Vec<Value> =
                imitation.adapters().iter().zip(1..).map(|((name, path), id)| adapter(id, name, path)).collect();
            say(json!({"adapters": adapters}))
        }
        "/vllm.Control/PauseGeneration" | "/vllm.Control/ResumeGeneration" => {
            imitation.set_paused(method.ends_with("PauseGeneration"));
            say(json!({}))
        }
        "/vllm.Control/IsPaused" => say(if imitation.is_paused() { json!({"paused": true}) } else { json!({}) }),
        _ => Answer::refusal(GrpcCode::UNIMPLEMENTED, "a synthetic server does not do that"),
    }
}

fn adapter(id: i64, name: &str, path: &str) -> Value {
    json!({"lora_id": id, "lora_name": name, "source_path": path})
}

fn tokens(list: &Value) -> Vec<u32> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(|token| u32::try_from(token.as_u64()?).ok()).collect()
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

fn generate(imitation: &Arc<Imitation>, method: &str, request: &Value) -> Answer {
    let config = &imitation.config;
    let model = request["model"].as_str().unwrap_or_default();
    let adapter = request["lora_name"].as_str().unwrap_or_default().to_owned();
    let known = imitation.adapters().contains_key(&adapter);
    if !(model.is_empty() || model == config.model) || !(adapter.is_empty() || known) {
        let name = if adapter.is_empty() { model } else { &adapter };
        return Answer::refusal(GrpcCode::NOT_FOUND, &format!("model `{name}` not found"));
    }
    let prompt = match request["text"].as_str() {
        Some(text) => config.words.tokens(text),
        None => tokens(&request["token_ids"]["ids"]),
    };
    if let Err(message) = check(imitation, &prompt) {
        return Answer::refusal(GrpcCode::INVALID_ARGUMENT, &message);
    }
    let (stopping, response) = (&request["stopping"], &request["response"]);
    let max_tokens = number(&stopping["max_new_tokens"]);
    let wish = Wish {
        adapter,
        max_tokens: if max_tokens == 0 { 20 } else { max_tokens },
        ignore_end: stopping["ignore_eos"].as_bool().unwrap_or(false),
        stop_tokens: tokens(&stopping["stop_token_ids"]),
        logprobs: response["output_logprobs"]
            .as_bool()
            .unwrap_or(false)
            .then(|| number(&response["output_candidates"]["top_n"])),
        prompt,
    };
    imitation.prompt_tokens.fetch_add(wish.prompt.len() as u64, Ordering::Relaxed);
    let clerk = Clerk {
        with_text: response["output_text"].as_bool().unwrap_or(true),
        with_tokens: response["output_token_ids"].as_bool().unwrap_or(false),
        tell_prompt: response["prompt_token_ids"].as_bool().unwrap_or(false),
        imitation: Arc::clone(imitation),
        wish,
    };
    let speech = speak(imitation, &clerk.wish);
    let pace = config.pace;
    let method = method.to_owned();
    let mut answer = if method == "/vllm.Inference/Generate" {
        let spoken: Vec<Spoken> = speech.collect();
        let pause = pace * u32::try_from(spoken.len()).unwrap_or(u32::MAX);
        let bytes = clerk.message(&method, &spoken);
        Answer::messages(std::iter::once(Piece { pause, bytes: bytes.into() }))
    } else {
        // The prompt is told first, in a message of its own.
        let opening = Piece::now(
            proto::answer_from_json(&method, &json!({"prompt_info": clerk.prompt_info()})).unwrap_or_default(),
        );
        let tokens = speech.map(move |spoken| Piece { pause: pace, bytes: clerk.message(&method, &[spoken]).into() });
        Answer::messages(std::iter::once(opening).chain(tokens))
    };
    answer.pausable = true;
    answer
}

/// Writes one reply.
struct Clerk {
    imitation: Arc<Imitation>,
    wish: Wish,
    with_text: bool,
    with_tokens: bool,
    tell_prompt: bool,
}

impl Clerk {
    fn prompt_info(&self) -> Value {
        let mut info = json!({"num_prompt_tokens": self.wish.prompt.len()});
        if self.tell_prompt {
            info["token_ids"] = self.wish.prompt.iter().copied().collect();
        }
        info
    }

    /// A message that tells these tokens.
    fn message(&self, method: &str, spoken: &[Spoken]) -> Vec<u8> {
        let config = &self.imitation.config;
        self.imitation.generated_tokens.fetch_add(spoken.len() as u64, Ordering::Relaxed);
        let mut outputs = json!({"num_tokens": spoken.len()});
        if self.with_text {
            let words = spoken.iter().filter(|spoken| !matches!(spoken.finish, Some(Finish::End | Finish::Stop(_))));
            let text: String = words.map(|spoken| config.words.text(spoken.token)).collect();
            if !text.is_empty() {
                outputs["text"] = text.into();
            }
        }
        if self.with_tokens {
            outputs["token_ids"] = spoken.iter().map(|spoken| spoken.token).collect();
        }
        if let Some(count) = self.wish.logprobs {
            outputs["logprobs"] = spoken.iter().map(|_| -0.5).collect();
            outputs["ranks"] = spoken.iter().map(|_| 1).collect();
            if count > 0 {
                let candidates = |spoken: &Spoken| {
                    let entry = |nth| {
                        let (token, logprob) = alternative(spoken.token, nth, config.ordinary);
                        json!({"id": token, "logprob": logprob, "rank": nth + 1})
                    };
                    json!({"tokens": (0..count).map(entry).collect::<Vec<_>>()})
                };
                outputs["candidate_tokens"] = spoken.iter().map(candidates).collect();
            }
        }
        let mut message = json!({});
        if method == "/vllm.Inference/Generate" {
            message["prompt_info"] = self.prompt_info();
        }
        if let Some(Spoken { place, finish: Some(finish), .. }) = spoken.last() {
            self.imitation.replies.fetch_add(1, Ordering::Relaxed);
            let mut info = json!({"num_output_tokens": place + 1, "num_cached_tokens": 0});
            match finish {
                Finish::Length => info["finish_reason"] = 1.into(),
                Finish::End => {
                    info["finish_reason"] = 2.into();
                    info["eos_token_id"] = config.end_token.into();
                }
                Finish::Stop(token) => {
                    info["finish_reason"] = 2.into();
                    info["stop_token_id"] = (*token).into();
                }
            }
            outputs["finish_info"] = info;
        }
        message["outputs"] = outputs;
        proto::answer_from_json(method, &message).unwrap_or_default()
    }
}
