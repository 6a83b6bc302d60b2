//! 500 sampled replies under bounded JSON schemas of rising difficulty: 500 valid. The study model at temperature 1 draws them;
//! a validator that knows nothing of our grammars reads them.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use consort_core::{
    ChatMessage, ChatPrompt, Device, DevicePolicy, Event, FinishReason, GenerateRequest, ModelBackend, Prompt, Role,
    Sampling, Structure, StructureScope, Thinking,
};
use consort_native::{NativeConfig, NativeEngine};
use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig};
use consort_text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};

const REPLIES: u64 = 500;
const LEVELS: u64 = 5;
/// At once, so that the engine has batches.
const STREAMS: usize = 16;
/// Far more than any of the schemas can take.
const MOST_TOKENS: u32 = 1500;

/// Choices that look random and are a function of the seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len() as u64) as usize]
    }
}

fn leaf(dice: &mut Dice, level: u64) -> Value {
    // What each level adds comes last.
    let kinds = [4, 5, 8, 11, 12][level as usize];
    match dice.below(kinds) {
        0 => json!({ "enum": ["red", "green", "a \"quoted\" blue", 7, null] }),
        1 => json!({ "type": "boolean" }),
        2 => {
            let low = dice.below(2000) as i64 - 1000;
            json!({ "type": "integer", "minimum": low, "maximum": low + dice.below(500) as i64 })
        }
        3 => json!({ "const": dice.pick(&["fixed", "ünïcode", "line\nend"]) }),
        4 => json!({ "type": "null" }),
        5 => {
            let low = dice.below(4);
            json!({ "type": "string", "minLength": low, "maxLength": low + 1 + dice.below(12) })
        }
        6 => {
            json!({ "type": "string", "pattern": dice.pick(&["^[A-Z]{2}-[0-9]{3,5}$", "^(ab|cd){1,4}$", "^[^\"]{2,6}$"]) })
        }
        7 => json!({ "type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10 + dice.below(90) }),
        8 => json!({ "type": "string", "format": dice.pick(&["date", "time", "date-time", "ipv4", "uuid"]) }),
        // The digits of a number are bounded by its values.
        9 => json!({ "enum": [0.5, 1.25, -3e2] }),
        10 => json!({ "type": ["boolean", "null"] }),
        _ => json!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "maxLength": 6 }, { "enum": [1, 2, 3] }] }),
    }
}

fn value(dice: &mut Dice, level: u64, depth: u64) -> Value {
    if level >= 1 && depth > 0 && dice.below(3) == 0 {
        return object(dice, level, depth - 1, false);
    }
    if level >= 1 && depth > 0 && dice.below(3) == 0 {
        let low = dice.below(2);
        return json!({
            "type": "array", "items": value(dice, level, depth - 1),
            "minItems": low, "maxItems": low + 1 + dice.below(3),
        });
    }
    if level >= 4 && dice.below(4) == 0 {
        return json!({ "$ref": dice.pick(&["#/$defs/point", "#/$defs/tag"]) });
    }
    if level >= 3 && dice.below(5) == 0 {
        return json!({ "anyOf": [leaf(dice, level), object(dice, level, 0, false)] });
    }
    leaf(dice, level)
}

fn object(dice: &mut Dice, level: u64, depth: u64, root: bool) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    let names = ["name", "mood", "hit points", "likes", "at", "größe"];
    for name in names.into_iter().take(1 + dice.below(2 + level) as usize) {
        properties.insert(name.into(), value(dice, level, depth));
        if level == 0 || dice.below(3) > 0 {
            required.push(json!(name));
        }
    }
    let mut schema = json!({
        "type": "object", "properties": properties, "required": required, "additionalProperties": false,
    });
    if root && level >= 4 {
        schema["$defs"] = json!({
            "point": {
                "type": "object", "properties": { "x": { "type": "integer", "minimum": -9, "maximum": 9 }, "y": { "$ref": "#/$defs/tag" } },
                "required": ["x"], "additionalProperties": false,
            },
            "tag": { "type": "string", "enum": ["old", "new", "bor<rowed>"] },
        });
    }
    schema
}

fn backend() -> Scheduled<NativeEngine> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/etude/gguf/etude-Q8_0.gguf");
    let tokenizer = Tokenizer::from_gguf(&consort_gguf::Gguf::open(&folder).unwrap()).unwrap();
    let template = ChatTemplate::new(tokenizer.chat_template().unwrap()).unwrap();
    let front_end = FrontEnd { tokenizer: Some(tokenizer), template: Some(template), image_processor: None };
    let load = move || {
        NativeEngine::load(NativeConfig { policy: DevicePolicy::Named(Device::Cpu), ..NativeConfig::new(folder) })
    };
    Scheduled::spawn(load, front_end, SchedulerConfig::default()).unwrap()
}

fn ask(backend: &dyn ModelBackend, schema: &Arc<Value>, seed: u64) -> consort_core::EventStream {
    let chat = ChatPrompt {
        messages: vec![ChatMessage::text(Role::User, "Describe something, as JSON.")],
        thinking: Thinking::default(),
        ..ChatPrompt::default()
    };
    let request = GenerateRequest {
        sampling: Sampling { temperature: 1.0, seed, ..Sampling::default() },
        structure: Some(Structure::JsonSchema(Arc::clone(schema))),
        structure_scope: StructureScope::Reply,
        max_tokens: Some(MOST_TOKENS),
        ..GenerateRequest::new(Prompt::Chat(chat))
    };
    backend.generate(request).unwrap_or_else(|error| panic!("{error}: {schema}"))
}

#[test]
fn five_hundred_sampled_replies_are_valid() {
    let begin = Instant::now();
    let backend = backend();
    let (mut open, mut valid, mut tokens) = (VecDeque::new(), [0u64; LEVELS as usize], 0);
    let mut check = |(seed, schema, stream): (u64, Arc<Value>, consort_core::EventStream)| {
        let (mut text, mut reason) = (String::new(), None);
        for event in stream.blocking() {
            match event.unwrap_or_else(|error| panic!("{error}: {schema}")) {
                Event::Tokens { ids, text: more, .. } => {
                    tokens += ids.len();
                    text.push_str(&more);
                }
                Event::Finished { reason: why, .. } => reason = Some(why),
                _ => {}
            }
        }
        let ended = matches!(reason, Some(FinishReason::EndToken(_) | FinishReason::StructureComplete));
        assert!(ended, "seed {seed} ended by {reason:?}: {text:?} of {schema}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?} of {schema}"));
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}: {text:?} of {schema}");
        valid[(seed * LEVELS / REPLIES) as usize] += 1;
    };
    for seed in 0..REPLIES {
        let level = seed * LEVELS / REPLIES;
        let schema = Arc::new(object(&mut Dice(seed * 77_777), level, level.min(2), true));
        open.push_back((seed, Arc::clone(&schema), ask(&backend, &schema, seed)));
        if open.len() >= STREAMS {
            check(open.pop_front().unwrap());
        }
    }
    open.into_iter().for_each(&mut check);
    println!("valid by level: {valid:?}, {tokens} tokens in {:?}", begin.elapsed());
    assert_eq!(valid.iter().sum::<u64>(), REPLIES);
}
