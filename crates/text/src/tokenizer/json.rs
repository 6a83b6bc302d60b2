//! The definition in a `tokenizer.json` and its `tokenizer_config.json`.
//!
//! The files can describe far more than this family uses. What changes token ids and is not supported is refused by
//! name; what cannot change them (post-processors, truncation, padding) is not read.

use std::collections::HashMap;

use consort_core::{Result, TokenId};
use serde::Deserialize;
use serde_json::Value;

use super::build::{Added, Definition, bad};
use super::{PreTokenizer, shorten};

/// The largest file that is parsed. The family's own has 20 MB.
const MAX_FILE_BYTES: usize = 128 << 20;

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedFile>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    model: ModelFile,
}

#[derive(Deserialize)]
struct AddedFile {
    id: TokenId,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct ModelFile {
    // Files from before the field existed are told by their other fields.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, TokenId>,
    merges: Vec<MergeFile>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MergeFile {
    Pair(String, String),
    Joined(String),
}

#[derive(Deserialize, Default)]
struct ConfigFile {
    #[serde(default)]
    bos_token: Option<NamedToken>,
    #[serde(default)]
    eos_token: Option<NamedToken>,
    #[serde(default)]
    pad_token: Option<NamedToken>,
    #[serde(default)]
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NamedToken {
    Text(String),
    Token { content: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

pub(super) fn definition(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Definition> {
    let file: TokenizerFile = parse("tokenizer.json", tokenizer)?;
    let config: ConfigFile = config.map(|bytes| parse("tokenizer_config.json", bytes)).transpose()?.unwrap_or_default();
    let model = file.model;
    check_model(&model)?;
    check_decoder(&file.decoder)?;

    let mut added = Vec::with_capacity(file.added_tokens.len());
    let mut by_text: HashMap<String, TokenId> = HashMap::new();
    for token in file.added_tokens {
        for (flag, set) in [("single_word", token.single_word), ("lstrip", token.lstrip), ("rstrip", token.rstrip)] {
            if set {
                return Err(bad("an added token has a flag that is not supported")
                    .with_context("token", shorten(&token.content))
                    .with_context("flag", flag));
            }
        }
        by_text.insert(token.content.clone(), token.id);
        added.push(Added { text: token.content, id: token.id, special: token.special });
    }

    let named = |key: &'static str, token: Option<NamedToken>| -> Result<Option<TokenId>> {
        let Some(token) = token else { return Ok(None) };
        let (NamedToken::Text(text) | NamedToken::Token { content: text }) = token;
        let id = by_text.get(&text).or_else(|| model.vocab.get(&text)).copied();
        id.map(Some).ok_or_else(|| {
            bad("tokenizer_config.json names a token that is not in the vocabulary").with_context(key, shorten(&text))
        })
    };
    let bos = named("bos_token", config.bos_token)?;
    let eos = named("eos_token", config.eos_token)?;
    let pad = named("pad_token", config.pad_token)?;

    let merges = model
        .merges
        .into_iter()
        .map(|merge| match merge {
            MergeFile::Pair(left, right) => Ok((left, right)),
            MergeFile::Joined(text) => match text.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => {
                    Err(bad("a merge is not two tokens with a space between").with_context("merge", shorten(&text)))
                }
            },
        })
        .collect::<Result<_>>()?;

    Ok(Definition {
        pre: pre_tokenizer(&file.pre_tokenizer)?,
        normalize: normalizes(&file.normalizer)?,
        ignore_merges: model.ignore_merges,
        vocab: model.vocab.into_iter().collect(),
        merges,
        added,
        unused: Vec::new(),
        bos,
        eos,
        pad,
        end_of_turn: None,
        chat_template: config.chat_template.and_then(|templates| match templates {
            Templates::One(template) => Some(template),
            Templates::Several(list) => list.into_iter().find(|t| t.name == "default").map(|t| t.template),
        }),
    })
}

fn parse<'a, T: Deserialize<'a>>(file: &'static str, bytes: &'a [u8]) -> Result<T> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(bad("the file is too large")
            .with_context("file", file)
            .with_context("bytes", bytes.len().to_string()));
    }
    serde_json::from_slice(bytes).map_err(|source| {
        bad("the file is not what the tokenizers library writes")
            .with_context("file", file)
            .with_context("detail", shorten(&source.to_string()))
    })
}

fn check_model(model: &ModelFile) -> Result<()> {
    let refused = if model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        Some(format!("type {}", shorten(model.kind.as_deref().unwrap_or_default())))
    } else if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        Some("dropout".to_owned())
    } else if model.continuing_subword_prefix.as_deref().is_some_and(|prefix| !prefix.is_empty()) {
        Some("continuing_subword_prefix".to_owned())
    } else if model.end_of_word_suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
        Some("end_of_word_suffix".to_owned())
    } else if model.byte_fallback {
        Some("byte_fallback".to_owned())
    } else {
        None
    };
    match refused {
        Some(what) => Err(unsupported("model", &what)),
        None => Ok(()),
    }
}

/// The steps of a component that may be a `Sequence`.
fn steps<'a>(component: &'a Value, list: &str) -> Vec<&'a Value> {
    match component {
        Value::Null => Vec::new(),
        _ if kind(component) == "Sequence" => {
            component.get(list).and_then(Value::as_array).map(|steps| steps.iter().collect()).unwrap_or_default()
        }
        one => vec![one],
    }
}

fn kind(component: &Value) -> &str {
    component.get("type").and_then(Value::as_str).unwrap_or("(none)")
}

fn flag(component: &Value, key: &str, default: bool) -> bool {
    component.get(key).and_then(Value::as_bool).unwrap_or(default)
}

fn normalizes(normalizer: &Value) -> Result<bool> {
    let steps = steps(normalizer, "normalizers");
    match steps.iter().find(|step| kind(step) != "NFC") {
        Some(step) => Err(unsupported("normalizer", kind(step))),
        None => Ok(!steps.is_empty()),
    }
}

fn pre_tokenizer(component: &Value) -> Result<PreTokenizer> {
    let steps = steps(component, "pretokenizers");
    let (split, bytes) = match steps.as_slice() {
        [bytes] => (None, *bytes),
        [split, bytes] => (Some(*split), *bytes),
        _ => return Err(unsupported("pre_tokenizer", "other than [Split,] ByteLevel")),
    };
    if kind(bytes) != "ByteLevel" || flag(bytes, "add_prefix_space", true) {
        return Err(unsupported("pre_tokenizer", kind(bytes)));
    }
    // Without a split of its own, the byte-level step cuts words as GPT-2 does.
    match (split, flag(bytes, "use_regex", true)) {
        (None, true) => Ok(PreTokenizer::Gpt2),
        (Some(split), false) if kind(split) == "Split" => {
            let pattern = split.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str).unwrap_or_default();
            if flag(split, "invert", false) || split.get("behavior").and_then(Value::as_str) != Some("Isolated") {
                return Err(unsupported("pre_tokenizer", "a Split that is not Isolated"));
            }
            PreTokenizer::from_pattern(pattern).ok_or_else(|| unsupported("pre_tokenizer pattern", pattern))
        }
        _ => Err(unsupported("pre_tokenizer", "other than [Split,] ByteLevel")),
    }
}

fn check_decoder(decoder: &Value) -> Result<()> {
    match steps(decoder, "decoders").iter().find(|step| kind(step) != "ByteLevel") {
        Some(step) => Err(unsupported("decoder", kind(step))),
        None => Ok(()),
    }
}

fn unsupported(component: &'static str, what: &str) -> consort_core::Error {
    bad("the tokenizer uses something that is not supported").with_context(component, shorten(what))
}
