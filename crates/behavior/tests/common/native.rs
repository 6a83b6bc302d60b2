//! The native engine, on the goldens' models in the form that our own converter gives them.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use consort_behavior::fixture::{
    EngineFixture, MakeEngine, NamedAdapter, Nature, ReadEmbedding, RefusedAdapter, Setup,
};
use consort_behavior::golden::{Golden, GoldenPicture};
use consort_core::{AdapterFiles, Device, Engine, Error, ErrorKind, ImageProgress, ImageSource, Result};
use consort_forge::{ConvertConfig, OutputType, Overwrite, convert};
use consort_gguf::{Gguf, GgufWriter, TensorInfo, TensorType, dequantize, quantize};
use consort_native::{Activations, NativeConfig, NativeEngine};
use serde_json::Value;

use super::{folder, lora};

/// The configurations in `golden/`.
pub const MODELS: [&str; 7] = ["plain", "untied", "grouped2", "grouped3", "heads", "deep", "moe"];

/// Token ids of the goldens' tokenizer below this are ordinary text.
const ORDINARY: u32 = 256;

/// A model's files.
#[derive(Debug, Clone)]
pub struct Files {
    pub text: PathBuf,
    pub vision: Option<PathBuf>,
    /// What quantized weights are multiplied with.
    pub activations: Activations,
}

fn io<T>(path: &Path, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| Error::io(path, error))
}

/// Where this test binary keeps what it converts.
fn scratch(name: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME")).join(name);
    io(&path, fs::create_dir_all(&path))?;
    Ok(path)
}

/// A configuration's files with matrices of one type.
pub fn converted(model: &str, kind: OutputType) -> Result<Files> {
    let source = scratch(&format!("{model}/hf"))?;
    let golden = folder("golden");
    let mut parts = vec![golden.join(model).join("config.json"), golden.join(model).join("model.safetensors")];
    for shared in ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer/chat_template.jinja"] {
        parts.push(golden.join(shared));
    }
    parts.push(golden.join("images/preprocessor_config.json"));
    for part in parts {
        let name = part.file_name().ok_or_else(|| Error::new(ErrorKind::Unexpected, "a file without a name"))?;
        io(&part, fs::copy(&part, source.join(name)))?;
    }
    let report = convert(&ConvertConfig {
        name: Some(model.to_owned()),
        text_type: kind,
        mmproj_type: kind,
        overwrite: Overwrite::Replace,
        ..ConvertConfig::new(source, scratch(&format!("{model}/gguf"))?)
    })?;
    Ok(Files { text: report.text.path, vision: report.mmproj.map(|file| file.path), activations: Activations::F32 })
}

/// The same files with every matrix in F32.
pub fn dequantized(files: &Files) -> Result<Files> {
    let one = |path: &PathBuf| {
        rewritten(path, "dequantized", |_, values| Ok((TensorType::F32, quantize(TensorType::F32, values, None)?)))
    };
    Ok(Files { text: one(&files.text)?, vision: files.vision.as_ref().map(one).transpose()?, ..*files })
}

/// The same files with every matrix in `kind`, where its rows are whole blocks of it. `files` hold F32.
pub fn quantized(files: &Files, kind: TensorType) -> Result<Files> {
    let one = |path: &PathBuf| {
        rewritten(path, kind.name(), |info, values| {
            // What is no matrix of a linear layer or of embeddings stays as it is.
            let is_table = ["v.patch_embd", "v.position_embd", "conv1d"].iter().any(|part| info.name.contains(part));
            let is_matrix = info.dims.len() == 2 && info.name.ends_with(".weight") && !is_table;
            let kind = if is_matrix && info.dims[0].is_multiple_of(kind.block_len()) { kind } else { TensorType::F32 };
            Ok((kind, quantize(kind, values, None).map_err(|error| error.with_context("tensor", &*info.name))?))
        })
    };
    Ok(Files { text: one(&files.text)?, vision: files.vision.as_ref().map(one).transpose()?, ..*files })
}

/// A copy of a file with each tensor as `change` writes its numbers.
fn rewritten(
    path: &Path,
    suffix: &str,
    change: impl Fn(&TensorInfo, &[f32]) -> Result<(TensorType, Vec<u8>)>,
) -> Result<PathBuf> {
    let gguf = Gguf::open(path)?;
    let mut writer = GgufWriter::with_metadata(gguf.metadata().clone());
    for info in gguf.tensors() {
        let mut values = vec![0.0; info.elements() as usize];
        dequantize(info.kind, gguf.tensor_data(info), &mut values)?;
        let (kind, bytes) = change(info, &values)?;
        writer.add_tensor_bytes(info.name.clone(), &info.dims, kind, bytes)?;
    }
    let to = path.with_extension(format!("{suffix}.gguf"));
    writer.write_to(&to)?;
    Ok(to)
}

/// A native engine of these files.
pub fn load(files: &Files, threads: usize, setup: &Setup) -> Result<NativeEngine> {
    NativeEngine::load(NativeConfig {
        vision: files.vision.clone().map(Into::into),
        policy: setup.policy,
        activations: files.activations,
        threads: NonZeroUsize::new(threads),
        sequence_memory_budget: setup.sequence_budget,
        ..NativeConfig::new(files.text.clone())
    })
}

/// The native engine's name and device.
const NATIVE: (&str, Device) = ("native", Device::Cpu);

/// Makes native engines of these files.
pub fn make(files: &Files, threads: usize) -> MakeEngine {
    let files = files.clone();
    Arc::new(move |setup| Ok(Box::new(load(&files, threads, setup)?) as Box<dyn Engine>))
}

/// Reads embeddings out of the engine.
fn embedding(files: &Files, setup: Setup) -> ReadEmbedding {
    let files = files.clone();
    Arc::new(move |image| {
        let mut engine = load(&files, 1, &setup)?;
        let mut job = engine.begin_image(image)?;
        loop {
            match engine.advance_image(job)? {
                ImageProgress::Pending(again) => job = again,
                ImageProgress::Ready(handle) => return Ok(engine.image_embeddings(&handle)?.to_vec()),
            }
        }
    })
}

/// The engine with a configuration of the goldens.
pub fn fixture(model: &str, name: &str, files: &Files, threads: usize) -> Result<EngineFixture> {
    fixture_of(NATIVE, model, name, make(files, threads), |setup| embedding(files, setup))
}

/// Any engine, on a device, with a configuration of the goldens.
pub fn fixture_of(
    (engine, device): (&str, Device),
    model: &str,
    name: &str,
    make: MakeEngine,
    embedding: impl Fn(Setup) -> ReadEmbedding,
) -> Result<EngineFixture> {
    let golden = folder("golden");
    let mut fixture = EngineFixture::new(engine, name, device, 0..ORDINARY, make)?;
    fixture.nature = Nature { remembers: true, has_positions: true, keeps_budget: true };
    fixture.golden = Some(Arc::new(Golden::read(&golden.join(model))?));
    if fixture.capability.image_input {
        fixture.embedding = Some(embedding(fixture.setup()));
        let pictures = GoldenPicture::read_all(&golden.join("images"))?;
        // The first two of one grid, the third no square.
        for name in ["square", "other", "wide", "strip", "noise"] {
            let picture = pictures.iter().find(|picture| picture.name() == name);
            let missing = || Error::new(ErrorKind::NotFound, "a picture of the goldens is missing");
            fixture.images.push(Arc::clone(picture.ok_or_else(missing)?) as Arc<dyn ImageSource>);
            fixture.image_names.push(name.into());
        }
    }
    fixture.adapters = adapters(&golden.join(model).join("adapters"))?;
    let activated = golden.join("activated").join(model);
    if activated.exists() {
        let both = Golden::read(&golden.join(model))?.with(Golden::read(&activated)?);
        fixture.golden = Some(Arc::new(both));
        fixture.activated_adapters = named(&activated.join("adapters"))?;
    }
    fixture.adapter_twins = lora::all_twins(model)?;
    fixture.refused_adapters = refused(&golden.join(model).join("adapters/all"))?;
    fixture.refused_adapters.extend(lora::refused(model)?);
    Ok(fixture)
}

/// Every adapter of a folder, by name.
fn named(folder: &Path) -> Result<Vec<NamedAdapter>> {
    let mut names: Vec<String> =
        io(folder, fs::read_dir(folder))?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let adapter = |name: String| NamedAdapter { files: AdapterFiles::Directory(folder.join(&name)), name };
    Ok(names.into_iter().map(adapter).collect())
}

/// `all` first, then the same turned about, so that there are two at least; then the others.
fn adapters(folder: &Path) -> Result<Vec<NamedAdapter>> {
    let mut names: Vec<String> = io(folder, fs::read_dir(folder))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "all")
        .collect();
    names.sort();
    let (config, weights) = parts(&folder.join("all"))?;
    let turned = edited(&config, "lora_alpha", Value::from(-0.75 * config["lora_alpha"].as_f64().unwrap_or(1.0)));
    let mut adapters = vec![
        NamedAdapter { name: "all".into(), files: AdapterFiles::Directory(folder.join("all")) },
        NamedAdapter { name: "turned".into(), files: bytes(&turned, &weights) },
    ];
    adapters.extend(names.into_iter().map(|name| {
        let files = AdapterFiles::Directory(folder.join(&name));
        NamedAdapter { name, files }
    }));
    Ok(adapters)
}

/// Where the study model lies.
pub fn etude_folder() -> PathBuf {
    folder("../../models/etude")
}

/// The study model's files with matrices of one type, converted from its checkpoint.
pub fn etude_files(kind: OutputType) -> Result<Files> {
    let report = convert(&ConvertConfig {
        name: Some("etude".into()),
        text_type: kind,
        mmproj_type: kind,
        overwrite: Overwrite::Replace,
        ..ConvertConfig::new(etude_folder(), scratch("etude")?)
    })?;
    Ok(Files { text: report.text.path, vision: report.mmproj.map(|file| file.path), activations: Activations::F32 })
}

/// The engine with the study model. `None` before it has goldens.
pub fn etude() -> Option<Result<EngineFixture>> {
    folder("golden/etude/golden.json").exists().then(|| etude_of("etude", &etude_files(OutputType::F32)?))
}

/// The engine with the study model in other files.
pub fn etude_of(name: &str, files: &Files) -> Result<EngineFixture> {
    study_of(NATIVE, name, make(files, 1), |setup| embedding(files, setup))
}

/// Any engine, on a device, with the study model.
pub fn study_of(
    (engine, device): (&str, Device),
    name: &str,
    make: MakeEngine,
    embedding: impl Fn(Setup) -> ReadEmbedding,
) -> Result<EngineFixture> {
    let golden = folder("golden/etude");
    let mut fixture = EngineFixture::new(engine, name, device, 0..ORDINARY, make)?;
    fixture.nature = Nature { remembers: true, has_positions: true, keeps_budget: true };
    fixture.golden = Some(Arc::new(Golden::read(&golden)?));
    fixture.embedding = Some(embedding(fixture.setup()));
    for picture in GoldenPicture::read_own(&golden)? {
        fixture.image_names.push(picture.name().into());
        fixture.images.push(picture);
    }
    let adapters = etude_folder().join("adapters");
    let mut names: Vec<_> = io(&adapters, fs::read_dir(&adapters))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    fixture.adapters = names
        .into_iter()
        .map(|name| NamedAdapter { files: AdapterFiles::Directory(adapters.join(&name)), name })
        .collect();
    Ok(fixture)
}

fn parts(folder: &Path) -> Result<(Value, Vec<u8>)> {
    let path = folder.join("adapter_config.json");
    let config = serde_json::from_slice(&io(&path, fs::read(&path))?)
        .map_err(|error| Error::new(ErrorKind::InvalidAdapter, error.to_string()))?;
    let path = folder.join("adapter_model.safetensors");
    Ok((config, io(&path, fs::read(&path))?))
}

fn edited(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[key] = value;
    config
}

fn bytes(config: &Value, weights: &[u8]) -> AdapterFiles {
    AdapterFiles::Bytes { config: config.to_string().into_bytes().into(), weights: weights.into() }
}

/// A safetensors file with its header changed as text. Lengths stay, so data stays where it was.
fn renamed(weights: &[u8], change: impl Fn(BTreeMap<String, Value>) -> BTreeMap<String, Value>) -> Vec<u8> {
    let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&weights[8..8 + length]).unwrap();
    let header = serde_json::to_vec(&change(header)).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &weights[8 + length..]].concat()
}

/// Adapters that must be refused, made of one that is good.
pub fn refused(folder: &Path) -> Result<Vec<RefusedAdapter>> {
    let (config, weights) = parts(folder)?;
    let with = |key: &str, value: Value| bytes(&edited(&config, key, value), &weights);
    let named = |from: &str, to: &str| {
        let change = |header: BTreeMap<String, Value>| {
            header.into_iter().map(|(name, value)| (name.replace(from, to), value)).collect()
        };
        bytes(&config, &renamed(&weights, change))
    };
    // In a mixture of experts, the network that an adapter can change is the shared one.
    let experts = weights.windows(21).any(|window| window == b".mlp.shared_expert.up");
    let (mlp, other) = if experts { ("mlp.shared_expert", "mlp") } else { ("mlp", "mlp.shared_expert") };
    // Checkpoints of text models have no `language_model` in their names.
    let vision = renamed(&weights, |header| {
        let rename = |name: String| {
            name.replace(&format!("language_model.layers.0.{mlp}.up_proj"), "visual.blocks.0.mlp.linear_fc1")
                .replace(&format!("model.layers.0.{mlp}.up_proj"), "model.visual.blocks.0.mlp.linear_fc1")
        };
        header.into_iter().map(|(name, value)| (rename(name), value)).collect()
    });
    let up_b = format!("layers.0.{mlp}.up_proj.lora_B");
    let without_b = renamed(&weights, |header| {
        // Data must stay whole, so the factor is renamed to another layer's and not removed.
        header.into_iter().map(|(name, value)| (name.replace(&up_b, "layers.1.mlp.no_proj.lora_B"), value)).collect()
    });
    let flat = renamed(&weights, |header| {
        let flatten = |(name, mut value): (String, Value)| {
            if name.contains(&format!("layers.0.{mlp}.up_proj.lora_A"))
                && let Some([rows, columns]) = value["shape"].as_array().map(Vec::as_slice)
            {
                value["shape"] = serde_json::json!([1, rows.as_u64().unwrap() * columns.as_u64().unwrap()]);
            }
            (name, value)
        };
        header.into_iter().map(flatten).collect()
    });
    let refused = |why, names, files| RefusedAdapter { why, names, files };
    let up = format!("{mlp}.up_proj");
    Ok(vec![
        refused("use_dora", "use_dora", with("use_dora", Value::Bool(true))),
        refused("modules_to_save", "modules_to_save", with("modules_to_save", serde_json::json!(["lm_head"]))),
        refused("trained biases", "bias", with("bias", Value::from("all"))),
        refused("another peft_type", "peft_type", with("peft_type", Value::from("IA3"))),
        refused("a rank beyond bounds", "r", with("r", Value::from(1_u64 << 40))),
        refused("another rank than its tensors", "rank", with("r", Value::from(5))),
        refused("vision layers", "visual", bytes(&config, &vision)),
        refused("an unknown layer", "nonsense_proj", named(&up, "mlp.nonsense_proj")),
        refused("a layer too many", "layers.77", named(&format!("layers.0.{up}"), &format!("layers.77.{up}"))),
        refused("one factor without the other", "lora_", bytes(&config, &without_b)),
        refused("a wrong shape", "up_proj", bytes(&config, &flat)),
        refused("factors of another layer", "_proj", named(&format!("{mlp}.down_proj"), &format!("{mlp}.gate_proj2"))),
        refused("the network of another kind of model", "up_proj", named(&up, &format!("{other}.up_proj"))),
        refused("a routed expert", "mlp.experts", named(&up, "mlp.experts.3.up_proj")),
        refused("bare parameters", "target_parameters", with("target_parameters", serde_json::json!(["mlp.experts"]))),
        refused("truncated weights", "safetensors", bytes(&config, &weights[..weights.len() / 2])),
        refused("no weights", "safetensors", bytes(&config, &[])),
        refused(
            "a config that does not parse",
            "config",
            AdapterFiles::Bytes { config: b"{".as_slice().into(), weights: weights.as_slice().into() },
        ),
    ])
}
