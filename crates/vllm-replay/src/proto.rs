//! Messages of gRPC as JSON, and back, by the table in [`schema`](crate::schema).
//!
//! JSON keeps what the wire has: a field that stands there with its default value stands in JSON too, one that does not is left
//! out. Whoever needs the very bytes back checks that they come back ([`faithful`]).

use serde_json::{Map, Number, Value};

use crate::schema::{Field, Kind, Label, method};

/// Messages in messages, at most.
const DEEPEST: usize = 32;

/// A request of this method as JSON. `None` if the method is not known, or the bytes are no such message.
pub(crate) fn request_to_json(path: &str, bytes: &[u8]) -> Option<Value> {
    read(method(path)?.0, bytes, DEEPEST).map(Value::Object)
}

/// An answer of this method as JSON. `None` if the method is not known, or the bytes are no such message.
pub(crate) fn answer_to_json(path: &str, bytes: &[u8]) -> Option<Value> {
    read(method(path)?.1, bytes, DEEPEST).map(Value::Object)
}

/// An answer of this method from JSON. `None` if a field is not known, or its value is of another kind.
pub(crate) fn answer_from_json(path: &str, json: &Value) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    write(method(path)?.1, json.as_object()?, &mut bytes, DEEPEST)?;
    Some(bytes)
}

/// An answer as JSON, if the same bytes come back from it.
pub(crate) fn faithful(path: &str, bytes: &[u8]) -> Option<Value> {
    let json = answer_to_json(path, bytes)?;
    (answer_from_json(path, &json)? == bytes).then_some(json)
}

/// A reader of the wire's parts.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.take(1)?.first()?;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn delimited(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        self.take(length)
    }

    /// One value of this kind, as it stands alone in its field.
    fn value(&mut self, kind: Kind, depth: usize) -> Option<Value> {
        Some(match kind {
            Kind::Text => Value::String(std::str::from_utf8(self.delimited()?).ok()?.to_owned()),
            Kind::Bytes => Value::String(hex(self.delimited()?)),
            Kind::Unsigned => self.varint()?.into(),
            Kind::Signed => self.varint()?.cast_signed().into(),
            Kind::Bool => match self.varint()? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return None,
            },
            Kind::Float => float(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            Kind::Double => double(f64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            Kind::Message(fields) => Value::Object(read(fields, self.delimited()?, depth.checked_sub(1)?)?),
        })
    }
}

/// Which of the wire's forms a kind has.
fn wire_type(kind: Kind) -> u64 {
    match kind {
        Kind::Unsigned | Kind::Signed | Kind::Bool => 0,
        Kind::Double => 1,
        Kind::Text | Kind::Bytes | Kind::Message(_) => 2,
        Kind::Float => 5,
    }
}

/// The shortest number that is this float, as text would have it; JSON has no number for those that are none.
fn float(value: f32) -> Value {
    value.to_string().parse().ok().and_then(Number::from_f64).map_or_else(|| value.to_string().into(), Value::Number)
}

fn double(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number)
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn read(fields: &[Field], bytes: &[u8], depth: usize) -> Option<Map<String, Value>> {
    let mut message = Map::new();
    let mut reader = Reader { bytes };
    while !reader.bytes.is_empty() {
        let tag = reader.varint()?;
        let field = fields.iter().find(|field| u64::from(field.number) == tag >> 3)?;
        let (name, wire) = (field.name, tag & 7);
        match field.label {
            Label::One => {
                if wire != wire_type(field.kind) {
                    return None;
                }
                message.insert(name.to_owned(), reader.value(field.kind, depth)?);
            }
            Label::Many => {
                let list = message.entry(name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?;
                if wire == wire_type(field.kind) {
                    list.push(reader.value(field.kind, depth)?);
                } else if wire == 2 {
                    let mut packed = Reader { bytes: reader.delimited()? };
                    while !packed.bytes.is_empty() {
                        list.push(packed.value(field.kind, depth)?);
                    }
                } else {
                    return None;
                }
            }
            Label::Map(value) => {
                if wire != 2 {
                    return None;
                }
                let entry = [
                    Field { number: 1, name: "key", kind: field.kind, label: Label::One },
                    Field { number: 2, name: "value", kind: *value, label: Label::One },
                ];
                let mut entry = read(&entry, reader.delimited()?, depth.checked_sub(1)?)?;
                let key = entry.remove("key").unwrap_or_else(|| default(field.kind));
                let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                let value = entry.remove("value").unwrap_or_else(|| default(*value));
                message.entry(name).or_insert_with(|| Value::Object(Map::new())).as_object_mut()?.insert(key, value);
            }
        }
    }
    Some(message)
}

/// What a value is that does not stand in a map's entry.
fn default(kind: Kind) -> Value {
    match kind {
        Kind::Text | Kind::Bytes => "".into(),
        Kind::Unsigned | Kind::Signed => 0.into(),
        Kind::Bool => false.into(),
        Kind::Float | Kind::Double => 0.0.into(),
        Kind::Message(_) => Value::Object(Map::new()),
    }
}

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn delimited(part: &[u8], bytes: &mut Vec<u8>) {
    varint(part.len() as u64, bytes);
    bytes.extend_from_slice(part);
}

fn write_value(kind: Kind, value: &Value, bytes: &mut Vec<u8>, depth: usize) -> Option<()> {
    match kind {
        Kind::Text => delimited(value.as_str()?.as_bytes(), bytes),
        Kind::Bytes => delimited(&unhex(value.as_str()?)?, bytes),
        Kind::Unsigned => varint(value.as_u64()?, bytes),
        Kind::Signed => varint(value.as_i64()?.cast_unsigned(), bytes),
        Kind::Bool => varint(u64::from(value.as_bool()?), bytes),
        #[allow(clippy::cast_possible_truncation)]
        Kind::Float => bytes.extend_from_slice(&(number(value)? as f32).to_le_bytes()),
        Kind::Double => bytes.extend_from_slice(&number(value)?.to_le_bytes()),
        Kind::Message(fields) => {
            let mut part = Vec::new();
            write(fields, value.as_object()?, &mut part, depth.checked_sub(1)?)?;
            delimited(&part, bytes);
        }
    }
    Some(())
}

fn write(fields: &[Field], message: &Map<String, Value>, bytes: &mut Vec<u8>, depth: usize) -> Option<()> {
    if message.keys().any(|name| !fields.iter().any(|field| field.name == name)) {
        return None;
    }
    for field in fields {
        let Some(value) = message.get(field.name) else { continue };
        let tag = |wire| u64::from(field.number) << 3 | wire;
        match field.label {
            Label::One => {
                varint(tag(wire_type(field.kind)), bytes);
                write_value(field.kind, value, bytes, depth)?;
            }
            Label::Many if wire_type(field.kind) == 2 => {
                for value in value.as_array()? {
                    varint(tag(2), bytes);
                    write_value(field.kind, value, bytes, depth)?;
                }
            }
            Label::Many => {
                let mut packed = Vec::new();
                for value in value.as_array()? {
                    write_value(field.kind, value, &mut packed, depth)?;
                }
                varint(tag(2), bytes);
                delimited(&packed, bytes);
            }
            Label::Map(kind) => {
                for (key, value) in value.as_object()? {
                    let key = if field.kind == Kind::Text {
                        Value::from(key.as_str())
                    } else {
                        key.parse().map(Number::into).ok()?
                    };
                    let mut entry = Vec::new();
                    varint(1 << 3 | wire_type(field.kind), &mut entry);
                    write_value(field.kind, &key, &mut entry, depth)?;
                    varint(2 << 3 | wire_type(*kind), &mut entry);
                    write_value(*kind, value, &mut entry, depth)?;
                    varint(tag(2), bytes);
                    delimited(&entry, bytes);
                }
            }
        }
    }
    Some(())
}

/// Bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// Bytes from hexadecimal.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    if text.len() % 2 == 1 {
        return None;
    }
    text.as_bytes().chunks(2).map(|pair| u8::try_from(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?).ok()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use prost::Message;
    use serde_json::json;
    use vllm_proto as published;

    use super::*;

    const STREAM: &str = "/vllm.Inference/GenerateStream";

    #[test]
    fn a_request_reads_as_it_was_published() {
        let tokens = |ids: &[u32]| published::TokenIds { ids: ids.to_vec() };
        let request = published::GenerateRequest {
            request_id: "r".into(),
            model: "m".into(),
            prompt: Some(published::generate_request::Prompt::TokenIds(tokens(&[1, 300, 70_000]))),
            temperature: Some(0.7),
            sampling: Some(published::RandomSampling {
                num_sequences: 2,
                top_k: Some(0),
                top_p: Some(0.9),
                min_p: Some(0.1),
                seed: Some(-5),
            }),
            decoding: Some(published::DecodingParameters {
                presence_penalty: 0.5,
                frequency_penalty: -0.5,
                repetition_penalty: 1.1,
                logit_bias: [(7, -100.0)].into(),
                allowed_token_ids: vec![4, 5],
                bad_words_token_ids: vec![tokens(&[6])],
                structured_output: Some(published::decoding_parameters::StructuredOutput::Regex("a+".into())),
            }),
            stopping: Some(published::StoppingCriteria {
                max_new_tokens: 9,
                min_new_tokens: 1,
                stop_token_ids: vec![3],
                stop_strings: vec!["x".into(), "y".into()],
                include_stop_strings: true,
                ignore_eos: true,
                thinking_token_budget: Some(-1),
            }),
            kv: Some(published::KvCacheParameters {
                bypass_prefix_cache: true,
                cache_salt: "s".into(),
                ..Default::default()
            }),
            priority: -3,
            media: vec![published::MediaItem {
                modality: 1,
                mime_type: "image/png".into(),
                source: Some(published::media_item::Source::RawBytes(vec![1, 255])),
                ..Default::default()
            }],
            lora_name: "l".into(),
            watermarking: Some(false),
            ..Default::default()
        };
        assert_eq!(
            request_to_json(STREAM, &request.encode_to_vec()).unwrap(),
            json!({
                "request_id": "r", "model": "m", "token_ids": {"ids": [1, 300, 70_000]}, "temperature": 0.7,
                "sampling": {"num_sequences": 2, "top_k": 0, "top_p": 0.9, "min_p": 0.1, "seed": -5},
                "decoding": {
                    "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1, "logit_bias": {"7": -100.0},
                    "allowed_token_ids": [4, 5], "bad_words_token_ids": [{"ids": [6]}], "regex": "a+",
                },
                "stopping": {
                    "max_new_tokens": 9, "min_new_tokens": 1, "stop_token_ids": [3], "stop_strings": ["x", "y"],
                    "include_stop_strings": true, "ignore_eos": true, "thinking_token_budget": -1,
                },
                "kv": {"bypass_prefix_cache": true, "cache_salt": "s"}, "priority": -3,
                "media": [{"modality": 1, "mime_type": "image/png", "raw_bytes": "01ff"}],
                "lora_name": "l", "watermarking": false,
            })
        );
    }

    #[test]
    fn answers_go_to_json_and_back_to_the_same_bytes() {
        let info = |id, logprob| published::candidate_token_info::TokenInfo { id, logprob, rank: 1 };
        let answer = published::GenerateResponse {
            prompt_info: Some(published::PromptInfo {
                num_prompt_tokens: 3,
                token_ids: vec![1, 2, 3],
                logprobs: vec![f32::NEG_INFINITY, -0.1],
                ranks: vec![5],
                candidate_tokens: vec![published::CandidateTokenInfo {
                    tokens: vec![info(1, -1.041_244_9), info(2, f32::MIN_POSITIVE)],
                }],
            }),
            outputs: Some(published::SequenceOutput {
                index: 1,
                text: "ä".into(),
                num_tokens: 1,
                token_ids: vec![1268],
                logprobs: vec![-0.1],
                finish_info: Some(published::FinishInfo {
                    num_output_tokens: 4,
                    finish_reason: 2,
                    stop_reason: Some(published::finish_info::StopReason::EosTokenId(1268)),
                    num_cached_tokens: Some(0),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        };
        let bytes = answer.encode_to_vec();
        let json = faithful(STREAM, &bytes).unwrap();
        assert_eq!(
            json["outputs"]["finish_info"],
            json!({"num_output_tokens": 4, "finish_reason": 2, "eos_token_id": 1268, "num_cached_tokens": 0})
        );
        assert_eq!(json["prompt_info"]["logprobs"], json!(["-inf", -0.1]));
        let info = published::ServerInfo {
            engine_version: "0.32.0".into(),
            max_model_len: 4096,
            parallelism: Some(published::ParallelismInfo { world_size: 1, ..Default::default() }),
            effective_attention_block_size: Some(384),
            proto_version: published::VERSION.into(),
            ..Default::default()
        };
        let json = faithful("/vllm.Control/GetServerInfo", &info.encode_to_vec()).unwrap();
        assert_eq!(json["effective_attention_block_size"], 384);
        assert_eq!(json["proto_version"], "0.6.0");
        let model = published::ModelInfo {
            model_id: "m".into(),
            supports_lora: true,
            tool_call_parser: "t".into(),
            ..Default::default()
        };
        let json = faithful("/vllm.Control/GetModelInfo", &model.encode_to_vec()).unwrap();
        assert_eq!(json, json!({"model_id": "m", "supports_lora": true, "tool_call_parser": "t"}));
        let loras = published::ListLorasResponse {
            adapters: vec![published::LoraAdapter { lora_id: -1, lora_name: "a".into(), source_path: "p".into() }],
        };
        let json = faithful("/vllm.Control/ListLoras", &loras.encode_to_vec()).unwrap();
        assert_eq!(json, json!({"adapters": [{"lora_id": -1, "lora_name": "a", "source_path": "p"}]}));
    }

    #[test]
    fn what_is_no_message_is_none() {
        assert_eq!(answer_to_json(STREAM, &[0x0a, 100, 1]), None);
        assert_eq!(answer_to_json(STREAM, &[0xff; 12]), None);
        assert_eq!(answer_to_json("/vllm.Control/StartWeightUpdate", &[]), None);
        assert_eq!(answer_from_json(STREAM, &json!({"outputs": {"nobody": 1}})), None);
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
    }
}
