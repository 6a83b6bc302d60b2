//! The conversion itself.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{GgufWriter, Value};
use serde_json::{Map, Value as Json};

use crate::checkpoint::{Shards, Source, invalid, read_json, read_json_if_there};
use crate::config::{ConvertConfig, ConvertReport, OutputType, Overwrite, WrittenFile};
use crate::hf::{Head, ModelConfig};
use crate::plan::{Expected, Output};
use crate::sources::{Found, gathered};
use crate::{text, tokenizer, vision};

/// Converts a Hugging Face Qwen3.5 directory to GGUF: the text model and, where there is a vision tower, the projector.
///
/// Every tensor of the checkpoint must be one that the config implies, with its shape, and none may be missing; anything
/// else is refused by name. Each file appears under its name only when it is whole.
///
/// Differences from llama.cpp's converter, none of which its loader minds: `general.name` is the whole of what a model card
/// would add; sums and exponentials are computed in f32 also for F16 sources; the projector also says
/// `clip.vision.image_min_pixels` and `image_max_pixels` when the checkpoint's image processor has limits;
/// `attention.recurrent_layers` is written when no interval describes the layers; a config that announces multi-token
/// prediction layers whose tensors are missing is converted without them.
///
/// # Errors
/// [`ErrorKind::NotFound`] and [`ErrorKind::Io`]; [`ErrorKind::InvalidModel`], [`ErrorKind::InvalidTokenizer`] and
/// [`ErrorKind::InvalidTemplate`] for a malformed checkpoint; [`ErrorKind::Unsupported`] for what is not converted (other
/// families, quantized checkpoints); [`ErrorKind::InvalidConfig`] for a file that is there already and
/// must not be overwritten.
pub fn convert(config: &ConvertConfig) -> Result<ConvertReport> {
    let root: Map<String, Json> = read_json(&config.source.join("config.json"))?;
    let mut model = ModelConfig::parse(&root).map_err(|error| in_source(error, config))?;
    let shards = Shards::open(&config.source)?;
    let mut text_sources: Vec<(String, Source<'_>)> = Vec::new();
    let mut vision_sources = Vec::new();
    for source in shards.tensors()? {
        match part(&source.name) {
            Part::Ignored => {}
            Part::Text(name) => text_sources.push((name.to_owned(), source)),
            Part::Vision(name) => vision_sources.push((name.to_owned(), source)),
        }
    }
    // Bounds the tables below by what is really there.
    let deepest = model.text.layers.max(model.vision.as_ref().map_or(0, |vision| vision.depth));
    if deepest > (text_sources.len() + vision_sources.len()) as u64 {
        return Err(in_source(invalid("the config announces more layers than the checkpoint has tensors"), config));
    }
    let stored_head = text_sources.iter().any(|(name, _)| name == "lm_head.weight");
    model.text.settle_head(stored_head);
    if model.text.head == Head::Tied {
        // A tied head that is stored nevertheless is the embedding once more.
        text_sources.retain(|(name, _)| name != "lm_head.weight");
    }
    let text_sources = gathered(text_sources).map_err(|error| in_source(error, config))?;
    let vision_sources: Vec<Found<'_>> = vision_sources.into_iter().map(Found::one).collect();
    let has_mtp = text_sources.iter().any(|found| found.name.starts_with("mtp."));
    let mtp_layers = if has_mtp { model.text.mtp_layers } else { 0 };
    if mtp_layers < model.text.mtp_layers {
        tracing::warn!("the checkpoint lacks the multi-token prediction tensors that its config announces");
    }

    let name = name(config)?;
    let text_path = config.output.join(format!("{name}-{}.gguf", config.text_type));
    let mmproj_path = config.output.join(format!("mmproj-{name}-{}.gguf", config.mmproj_type));
    let paths = [Some(&text_path), model.vision.as_ref().map(|_| &mmproj_path)];
    for path in paths.into_iter().flatten() {
        if config.overwrite == Overwrite::Refuse && path.exists() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the file is there already; allow to overwrite it, or remove it",
            )
            .with_operation("forge::convert")
            .with_context("path", path.display().to_string()));
        }
    }
    fs::create_dir_all(&config.output).map_err(|source| Error::io(&config.output, source))?;

    let is_there = |name: &str| text_sources.iter().any(|found| found.name == name);
    let expected = text::tensors(&model.text, mtp_layers > 0, &is_there);
    let text_plan = matched(expected, &text_sources).map_err(|e| in_source(e, config))?;
    let sampling = sampling(&config.source);
    let mut head = head("model", &sampling, &name, &text_plan);
    head.extend(text::metadata(&model.text, config.text_type, mtp_layers));
    head.push(quantization_version());
    head.extend(tokenizer::metadata(&config.source, &root, model.text.vocabulary).map_err(|e| in_source(e, config))?);
    // Planned before anything is written, so that a bad projector leaves no text model behind.
    let projector = match &model.vision {
        None if vision_sources.is_empty() => None,
        None => {
            let error = invalid("the checkpoint has a vision tower, but its config lacks vision_config");
            return Err(in_source(error, config));
        }
        Some(vision) => {
            let plan = matched(vision::tensors(vision), &vision_sources).map_err(|e| in_source(e, config))?;
            let mut keys = self::head("mmproj", &sampling, &name, &plan);
            let processor = image_processor(&config.source)?;
            keys.extend(vision::metadata(&model, vision, &processor, config.mmproj_type)?);
            keys.push(quantization_version());
            Some((keys, plan))
        }
    };

    let text = write(model.text.architecture(), head, &text_plan, config.text_type, text_path)?;
    let mmproj = match projector {
        Some((keys, plan)) => Some(write("clip", keys, &plan, config.mmproj_type, mmproj_path)?),
        None => None,
    };
    #[allow(clippy::cast_possible_truncation)] // At most one.
    Ok(ConvertReport { text, mmproj, mtp_layers: mtp_layers as usize })
}

fn in_source(error: Error, config: &ConvertConfig) -> Error {
    error.with_context("path", config.source.display().to_string())
}

/// Which file a tensor of the checkpoint goes to, with its name less the prefix, which depends on the class that saved it.
enum Part<'a> {
    Text(&'a str),
    Vision(&'a str),
    /// A buffer that is computed anew.
    Ignored,
}

fn part(name: &str) -> Part<'_> {
    if name.ends_with(".rotary_emb.inv_freq") {
        return Part::Ignored;
    }
    let inner = name.strip_prefix("model.").unwrap_or(name);
    if let Some(rest) = inner.strip_prefix("visual.") {
        return Part::Vision(rest);
    }
    Part::Text(inner.strip_prefix("language_model.").unwrap_or(inner))
}

/// An output tensor with its source.
type Planned<'a> = (Output, &'a Found<'a>);

/// Brings what is expected and what is there together, in the order of the checkpoint.
fn matched<'a>(expected: Vec<Expected>, sources: &'a [Found<'a>]) -> Result<Vec<Planned<'a>>> {
    let mut expected: HashMap<String, Expected> =
        expected.into_iter().map(|tensor| (tensor.source.clone(), tensor)).collect();
    let mut plan = Vec::new();
    for source in sources {
        let Some(tensor) = expected.remove(&source.name) else {
            return Err(invalid("the config implies no such tensor").with_context("tensor", source.shown()));
        };
        if source.shape != tensor.shape {
            return Err(invalid(format!(
                "the tensor's shape is {:?}, the config implies {:?}",
                source.shape, tensor.shape
            ))
            .with_context("tensor", source.shown()));
        }
        plan.extend(tensor.outputs.into_iter().map(|output| (output, source)));
    }
    // The first in order of name, so that the message does not change from run to run.
    if let Some(missing) = expected.into_keys().min() {
        return Err(invalid("the checkpoint lacks a tensor that its config implies").with_context("tensor", missing));
    }
    Ok(plan)
}

fn write(
    architecture: &str,
    metadata: Vec<(String, Value)>,
    plan: &[Planned<'_>],
    asked: OutputType,
    path: PathBuf,
) -> Result<WrittenFile> {
    let mut writer = GgufWriter::new(architecture);
    for (key, value) in metadata {
        writer.set(&key, value);
    }
    let mut parameters = 0;
    for (output, source) in plan {
        let kind = output.kind(asked);
        parameters += output.elements();
        writer.add_tensor(&output.name, &output.dims, kind, move |sink| {
            source.parts.iter().try_for_each(|part| {
                let from = (&part.view, source.parts.len());
                output.write(from, kind, sink).map_err(|error| error.with_context("source", &part.name))
            })
        })?;
    }
    writer.write_to(&path)?;
    let bytes = fs::metadata(&path).map_err(|source| Error::io(&path, source))?.len();
    tracing::info!(path = %path.display(), tensors = plan.len(), parameters, bytes, "wrote a model file");
    Ok(WrittenFile { path, tensors: plan.len(), parameters, bytes })
}

/// The general keys that come first.
fn head(kind: &str, sampling: &[(String, Value)], name: &str, plan: &[Planned<'_>]) -> Vec<(String, Value)> {
    let mut keys = vec![("general.type".to_owned(), kind.into())];
    keys.extend(sampling.iter().cloned());
    keys.push(("general.name".to_owned(), title(name).into()));
    let parameters = plan.iter().map(|(output, _)| output.elements()).sum();
    keys.push(("general.size_label".to_owned(), size_label(parameters).into()));
    keys
}

fn quantization_version() -> (String, Value) {
    ("general.quantization_version".to_owned(), Value::U32(2))
}

/// The name of the files: no part of a path, and not empty.
fn name(config: &ConvertConfig) -> Result<String> {
    let given = config.name.clone();
    let name = given.or_else(|| {
        let source = config.source.canonicalize().ok()?;
        Some(source.file_name()?.to_str()?.to_owned())
    });
    let plain =
        |name: &String| !name.is_empty() && Path::new(name).file_name().is_some_and(|last| last == name.as_str());
    name.filter(plain).ok_or_else(|| {
        Error::new(ErrorKind::InvalidConfig, "the model needs a name that is a plain file name")
            .with_operation("forge::convert")
            .with_context("name", config.name.clone().unwrap_or_default())
    })
}

/// A name for people: hyphens become spaces, lower-case words are capitalised unless they are versions.
fn title(name: &str) -> String {
    let capitalised = |word: &str| {
        let version = word.starts_with(|c: char| c.is_ascii_digit())
            || word.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if version || word.chars().any(char::is_uppercase) {
            return word.to_owned();
        }
        let mut letters = word.chars();
        letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
    };
    name.replace('-', " ").split_whitespace().map(capitalised).collect::<Vec<_>>().join(" ")
}

/// The size class: two digits at least, such as `0.75B`, `27B`, `4.1M`.
#[allow(clippy::cast_precision_loss)] // Rounded to two digits anyway.
fn size_label(parameters: u64) -> String {
    let (unit, suffix) = match parameters {
        1_000_000_000_001.. => (1e12, "T"),
        1_000_000_001.. => (1e9, "B"),
        1_000_001.. => (1e6, "M"),
        _ => (1e3, "K"),
    };
    let scaled = parameters as f64 / unit;
    let digits = if scaled.round_ties_even() < 1.0 { 0 } else { format!("{}", scaled.round_ties_even()).len() };
    format!("{scaled:.*}{suffix}", 2_usize.saturating_sub(digits))
}

/// The recommended sampling of `generation_config.json`; a file that does not parse recommends nothing.
fn sampling(directory: &Path) -> Vec<(String, Value)> {
    let path = directory.join("generation_config.json");
    let settings: Map<String, Json> = match read_json_if_there(&path) {
        Ok(settings) => settings.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "the generation config is ignored");
            return Vec::new();
        }
    };
    #[allow(clippy::cast_possible_truncation)] // The format stores f32.
    let float = |key: &str| settings.get(key).and_then(Json::as_f64).map(|value| Value::F32(value as f32));
    let integer =
        |key: &str| settings.get(key).and_then(Json::as_i64).and_then(|v| i32::try_from(v).ok()).map(Value::I32);
    [("top_k", integer("top_k")), ("top_p", float("top_p")), ("min_p", float("min_p")), ("temp", float("temperature"))]
        .into_iter()
        .filter_map(|(key, value)| Some((format!("general.sampling.{key}"), value?)))
        .collect()
}

/// The image processor's config: `preprocessor_config.json`, over which goes that within `processor_config.json`.
fn image_processor(directory: &Path) -> Result<Map<String, Json>> {
    let mut merged: Map<String, Json> =
        read_json_if_there(&directory.join("preprocessor_config.json"))?.unwrap_or_default();
    let processor: Map<String, Json> =
        read_json_if_there(&directory.join("processor_config.json"))?.unwrap_or_default();
    if let Some(Json::Object(image)) = processor.get("image_processor") {
        merged.extend(image.clone());
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_labels_have_two_digits() {
        let cases =
            [(752_393_024, "752M"), (4_100_000, "4.1M"), (27_400_000_000, "27B"), (500, "0.50K"), (99_600, "100K")];
        for (parameters, label) in cases {
            assert_eq!(size_label(parameters), label);
        }
    }

    #[test]
    fn titles_keep_versions_and_acronyms() {
        assert_eq!(title("etude-preview-v2-0.8b"), "Etude Preview v2 0.8b");
        assert_eq!(title("Qwen3.5-4B"), "Qwen3.5 4B");
    }
}
