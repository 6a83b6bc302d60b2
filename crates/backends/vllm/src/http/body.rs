//! A call as the body of each route.
//!
//! Every field that has a default on the server is said, so that no server's default decides.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use consort_core::{Structure, TokenId};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value, json};

use crate::call::{Call, CallPrompt, Picture};

/// A bias that forbids: the lowest that vLLM takes (it cuts biases at ±100).
pub(crate) const FORBIDS: f32 = -100.0;

/// A body: an object.
#[derive(Debug)]
pub(super) struct Body<'a> {
    /// The prompt, where it is token ids, and the field that has it. They are thousands: as values of JSON each would be one of its own.
    ids: Option<(&'static str, &'a [TokenId])>,
    fields: Map<String, Value>,
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len() + usize::from(self.ids.is_some())))?;
        if let Some((name, ids)) = self.ids {
            map.serialize_entry(name, ids)?;
        }
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// `/inference/v1/generate`: token ids in, token ids out. `text`: the server shows text too.
pub(super) fn generate<'a>(call: &Call, ids: &'a [TokenId], pictures: &[Picture], text: Text) -> Body<'a> {
    let mut sampling = sampling(call);
    sampling.insert("detokenize".into(), (text == Text::Wanted || !call.stop_strings.is_empty()).into());
    if call.bypass {
        sampling.insert("skip_reading_prefix_cache".into(), true.into());
    }
    if let Some(count) = call.logprobs {
        sampling.insert("logprobs".into(), count.into());
    }
    let mut body = Map::new();
    body.insert("request_id".into(), call.id.as_str().into());
    if !pictures.is_empty() {
        let parts = pictures.iter().map(|picture| json!({ "type": "image_url", "url": address(picture) }));
        body.insert("content_parts".into(), parts.collect());
    }
    if text == Text::Wanted {
        body.insert("output_mode".into(), "text".into());
    }
    if call.prompt_logprobs.is_some() && !pictures.is_empty() {
        body.insert("return_token_ids".into(), true.into());
    }
    body.insert("sampling_params".into(), Value::Object(sampling));
    Body { ids: Some(("token_ids", ids)), fields: common(call, body) }
}

/// `/v1/completions`: token ids in, and out beside the text.
pub(super) fn completions<'a>(call: &Call, ids: &'a [TokenId]) -> Body<'a> {
    let mut body = sampling(call);
    body.insert("add_special_tokens".into(), false.into());
    if let Some(count) = call.logprobs {
        body.insert("logprobs".into(), count.into());
    }
    ids_wanted(&mut body);
    Body { ids: Some(("prompt", ids)), fields: common(call, body) }
}

/// `/v1/chat/completions`: a conversation in, text and token ids out.
pub(super) fn chat(call: &Call, messages: &Value, tools: &[Value], thinking: Option<bool>) -> Body<'static> {
    let mut body = sampling(call);
    body.insert("messages".into(), messages.clone());
    if !tools.is_empty() {
        body.insert("tools".into(), tools.into());
        // The reply comes as it is; calls are found in it here.
        body.insert("tool_choice".into(), "none".into());
    }
    if let Some(thinking) = thinking {
        body.insert("chat_template_kwargs".into(), json!({ "enable_thinking": thinking }));
    }
    if let Some(count) = call.logprobs {
        body.insert("logprobs".into(), true.into());
        body.insert("top_logprobs".into(), count.into());
    }
    ids_wanted(&mut body);
    Body { ids: None, fields: common(call, body) }
}

/// Whether the server is to show text beside the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
    Wanted,
    NotWanted,
}

fn ids_wanted(body: &mut Map<String, Value>) {
    body.insert("return_token_ids".into(), true.into());
    body.insert("return_tokens_as_token_ids".into(), true.into());
    body.insert("skip_special_tokens".into(), true.into());
}

fn common(call: &Call, mut body: Map<String, Value>) -> Map<String, Value> {
    body.insert("model".into(), call.model.as_str().into());
    body.insert("cache_salt".into(), call.salt.as_str().into());
    if let Some(priority) = call.priority {
        body.insert("priority".into(), priority.into());
    }
    // Front ends drop the prompt's log probabilities from streams, or refuse them there.
    let stream = call.prompt_logprobs.is_none();
    body.insert("stream".into(), stream.into());
    if stream {
        body.insert("stream_options".into(), json!({ "include_usage": true }));
    }
    body
}

fn sampling(call: &Call) -> Map<String, Value> {
    let sampling = &call.sampling;
    let mut map = Map::new();
    let mut set = |key: &str, value: Value| drop(map.insert(key.into(), value));
    set("max_tokens", call.max_tokens.into());
    set("min_tokens", call.min_tokens.into());
    set("temperature", number(sampling.temperature));
    set("top_p", number(sampling.top_p));
    set("top_k", sampling.top_k.into());
    set("min_p", number(sampling.min_p));
    set("repetition_penalty", number(sampling.penalties.repetition));
    set("presence_penalty", number(sampling.penalties.presence));
    set("frequency_penalty", number(sampling.penalties.frequency));
    set("ignore_eos", call.ignore_end.into());
    if sampling.temperature > 0.0 {
        // Seeds are signed there.
        set("seed", (sampling.seed & i64::MAX as u64).into());
    }
    if !call.stop_strings.is_empty() {
        set("stop", call.stop_strings.clone().into());
    }
    if !call.stop_tokens.is_empty() {
        set("stop_token_ids", call.stop_tokens.clone().into());
    }
    if !sampling.logit_bias.is_empty() {
        let mut biases: std::collections::BTreeMap<TokenId, f32> = std::collections::BTreeMap::new();
        for &(token, bias) in &sampling.logit_bias {
            // A token that is named twice gets both.
            *biases.entry(token).or_default() += bias;
        }
        let biases = biases.into_iter().map(|(token, bias)| (token.to_string(), number(bias.max(FORBIDS))));
        set("logit_bias", Value::Object(biases.collect()));
    }
    if let Some(count) = call.prompt_logprobs {
        set("prompt_logprobs", count.into());
    }
    if let Some(structure) = &call.structure {
        set("structured_outputs", structured(structure));
    }
    map
}

/// What holds a reply to a form, as vLLM has it.
fn structured(structure: &Structure) -> Value {
    match structure {
        Structure::JsonSchema(schema) => json!({ "json": **schema }),
        Structure::Regex(regex) => json!({ "regex": regex }),
        Structure::Lark(grammar) => json!({ "grammar": grammar }),
        Structure::Choice(choices) => json!({ "choice": choices }),
        // The only other form; one that is added is refused before it comes here.
        _ => json!({ "json_object": true }),
    }
}

/// The shortest decimal that is this number: `0.7`, and not `0.699999988079071`.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// A picture as an address that holds it.
pub(crate) fn address(picture: &Picture) -> String {
    format!("data:{};base64,{}", picture.mime, STANDARD.encode(&picture.bytes))
}

/// The body that a call has on its route.
pub(super) fn of_chat(prompt: &CallPrompt) -> Option<(&Value, &[Value], Option<bool>)> {
    match prompt {
        CallPrompt::Chat { messages, tools, thinking } => Some((messages, tools, *thinking)),
        CallPrompt::Tokens { .. } => None,
    }
}
