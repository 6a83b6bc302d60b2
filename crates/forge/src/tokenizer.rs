//! The tokenizer's metadata, from `tokenizer.json`, `tokenizer_config.json` and the chat template.

use std::collections::HashMap;
use std::path::Path;

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::Value;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::checkpoint::{read_bounded, read_json, read_json_if_there};

/// How the family cuts text before merging, which GGUF files call `qwen35`.
const FAMILY_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Token types as the format numbers them.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Special tokens in the order in which the reference converter writes them, with their keys in the format (whose
/// spelling they keep).
const SPECIAL: [(&str, &str); 7] = [
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    ("sep", "seperator_token_id"),
    ("pad", "padding_token_id"),
    ("cls", "cls_token_id"),
    ("mask", "mask_token_id"),
];

#[derive(Deserialize)]
struct Tokenizer {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    pre_tokenizer: Json,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u64>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
    #[serde(default)]
    special: bool,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidTokenizer, message).with_operation("forge::convert")
}

/// The tokenizer's keys, in order. `vocabulary` is the number of rows of the embedding, which the caller has found in the
/// checkpoint; ids that no token has become unused placeholders.
pub(crate) fn metadata(directory: &Path, root: &Map<String, Json>, vocabulary: u64) -> Result<Vec<(String, Value)>> {
    let path = directory.join("tokenizer.json");
    let tokenizer: Tokenizer = read_json(&path)?;
    if tokenizer.model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        return Err(invalid("the tokenizer is not byte-level BPE").with_context("path", path.display().to_string()));
    }
    check_pattern(&tokenizer.pre_tokenizer)?;

    let rows = usize::try_from(vocabulary).map_err(|_| invalid("the vocabulary is too large"))?;
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
    let mut place = |id: u64, text: String, kind: i32| match usize::try_from(id).ok().and_then(|id| tokens.get_mut(id))
    {
        Some(slot) if slot.as_ref().is_none_or(|(there, _)| *there == text) => {
            *slot = Some((text, kind));
            Ok(())
        }
        Some(_) => Err(invalid(format!("two tokens have the id {id}")).with_context("token", text)),
        None => Err(invalid(format!("a token's id {id} is beyond the {vocabulary} rows of the embedding"))
            .with_context("token", text)),
    };
    for (text, id) in tokenizer.model.vocab {
        place(id, text, NORMAL)?;
    }
    let ids: HashMap<&str, u64> =
        tokenizer.added_tokens.iter().map(|added| (added.content.as_str(), added.id)).collect();
    for added in &tokenizer.added_tokens {
        let kind = if added.special || looks_special(&added.content) { CONTROL } else { USER_DEFINED };
        place(added.id, added.content.clone(), kind)?;
    }
    let (tokens, types): (Vec<String>, Vec<i32>) = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)))
        .unzip();
    let merges: Vec<String> = tokenizer
        .model
        .merges
        .into_iter()
        .map(|merge| match merge {
            Merge::Text(text) => text,
            // A space separates the halves, so one within a half is written as byte-level BPE writes it.
            Merge::Pair(left, right) => format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ")),
        })
        .collect();

    let settings: Map<String, Json> = read_json_if_there(&directory.join("tokenizer_config.json"))?.unwrap_or_default();
    let mut keys: Vec<(String, Value)> = vec![
        ("tokenizer.ggml.model".to_owned(), "gpt2".into()),
        ("tokenizer.ggml.pre".to_owned(), "qwen35".into()),
        ("tokenizer.ggml.tokens".to_owned(), tokens.into()),
        ("tokenizer.ggml.token_type".to_owned(), types.into()),
        ("tokenizer.ggml.merges".to_owned(), merges.into()),
    ];
    keys.extend(special_ids(&settings, root, &ids, vocabulary));
    for (name, _) in SPECIAL {
        // The format knows the flag for these three.
        if matches!(name, "bos" | "eos" | "sep")
            && let Some(flag) = settings.get(&format!("add_{name}_token")).and_then(Json::as_bool)
        {
            keys.push((format!("tokenizer.ggml.add_{name}_token"), flag.into()));
        }
    }
    if let Some(template) = chat_template(directory, &settings)? {
        keys.push(("tokenizer.chat_template".to_owned(), template.into()));
    }
    Ok(keys)
}

/// Ids of special tokens: first those that the tokenizer's settings name, then those that the model's config numbers.
fn special_ids(
    settings: &Map<String, Json>,
    root: &Map<String, Json>,
    ids: &HashMap<&str, u64>,
    vocabulary: u64,
) -> Vec<(String, Value)> {
    let named = |name: &str| {
        let entry = settings.get(&format!("{name}_token"))?;
        let text = entry.as_str().or_else(|| entry.get("content").and_then(Json::as_str))?;
        ids.get(text).copied()
    };
    let numbered = |name: &str| {
        let key = format!("{name}_token_id");
        let own = root.get(&key).filter(|value| !value.is_null());
        own.or_else(|| root.get("text_config").and_then(|text| text.get(&key)))?.as_u64()
    };
    let first = SPECIAL.iter().filter_map(|(name, key)| Some((*key, named(name)?)));
    let second = SPECIAL
        .iter()
        .filter(|(name, _)| named(name).is_none())
        .filter_map(|(name, key)| Some((*key, numbered(name)?)));
    first
        .chain(second)
        .filter(|&(_, id)| id < vocabulary)
        .filter_map(|(key, id)| Some((format!("tokenizer.ggml.{key}"), Value::U32(u32::try_from(id).ok()?))))
        .collect()
}

/// The template of the settings, else the file beside them.
fn chat_template(directory: &Path, settings: &Map<String, Json>) -> Result<Option<String>> {
    match settings.get("chat_template") {
        Some(Json::String(template)) => return Ok(Some(template.clone())),
        Some(Json::Array(list)) => {
            let default = list.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"));
            let default = default.and_then(|entry| entry.get("template")).and_then(Json::as_str);
            return Ok(default.map(str::to_owned));
        }
        _ => {}
    }
    let path = directory.join("chat_template.jinja");
    if path.is_file() {
        let text = String::from_utf8(read_bounded(&path)?).map_err(|source| {
            Error::new(ErrorKind::InvalidTemplate, "the chat template is not UTF-8 text")
                .with_operation("forge::convert")
                .with_context("path", path.display().to_string())
                .with_source(source)
        })?;
        return Ok(Some(text));
    }
    let json: Option<Map<String, Json>> = read_json_if_there(&directory.join("chat_template.json"))?;
    Ok(json.and_then(|json| json.get("chat_template").and_then(Json::as_str).map(str::to_owned)))
}

/// Refuses a tokenizer that cuts text otherwise than `qwen35` says, because every reader would tokenize wrongly in silence.
fn check_pattern(pre_tokenizer: &Json) -> Result<()> {
    let steps = pre_tokenizer.get("pretokenizers").and_then(Json::as_array);
    let steps = steps.map_or(std::slice::from_ref(pre_tokenizer), Vec::as_slice);
    let mut patterns = steps.iter().filter_map(|step| step.get("pattern")?.get("Regex")?.as_str());
    match (patterns.next(), patterns.next()) {
        (Some(FAMILY_PATTERN), None) => Ok(()),
        (Some(other), _) => {
            Err(invalid(format!("the tokenizer cuts text by another pattern than the family's: {other}"))
                .with_context("key", "pre_tokenizer"))
        }
        (None, _) => {
            Err(invalid("the tokenizer has no pattern by which to cut text").with_context("key", "pre_tokenizer"))
        }
    }
}

/// Some published tokenizers forget to mark control tokens as special; the reference converter knows them by their looks.
fn looks_special(text: &str) -> bool {
    (text.starts_with("<|") && text.ends_with("|>"))
        || (text.starts_with("<｜") && text.ends_with("｜>"))
        || (text.starts_with("<unused") && text.ends_with('>'))
        || matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
}
