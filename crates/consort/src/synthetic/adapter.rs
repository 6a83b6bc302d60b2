//! Random-weight adapters for synthetic models, in both forms that engines take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::{GgufWriter, TensorType};
use consort_native::synthetic::{SyntheticConfig, random};
use consort_peft::{LayerKind, Linear, Naming, Network};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

/// The rank of every layer's change.
const RANK: usize = 8;
/// PEFT's `lora_alpha`: twice the rank, as is usual.
const ALPHA: usize = 16;

/// One adapter, twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticAdapter {
    /// A PEFT folder, which vLLM takes too.
    pub peft: PathBuf,
    /// A GGUF file, which llama-server's `--lora` takes too.
    pub gguf: PathBuf,
}

/// A layer's change: `A` `[RANK, inputs]` and `B` `[outputs, RANK]`, row by row.
struct Change {
    gguf: String,
    peft: String,
    inputs: usize,
    outputs: usize,
    a: Vec<u8>,
    b: Vec<u8>,
}

/// Writes the adapter of this number into `folder`, unless it is there.
pub(super) fn write(config: &SyntheticConfig, number: usize, folder: &Path) -> Result<SyntheticAdapter> {
    let peft = folder.join(format!("adapter-{number}"));
    let gguf = folder.join(format!("lora-adapter-{number}"));
    let found = SyntheticAdapter { gguf: gguf.join("adapter.gguf"), peft };
    if found.gguf.exists() && found.peft.join("adapter_model.safetensors").exists() {
        return Ok(found);
    }
    for path in [&found.peft, &gguf] {
        std::fs::create_dir_all(path).map_err(|source| Error::io(path, source))?;
    }
    let changes = changes(config, number)?;
    write_peft(&changes, &found.peft)?;
    write_gguf(&changes, &found.gguf)?;
    Ok(found)
}

/// Whether a linear layer is changed. Value heads stand in another order in each of the two forms where there are more of
/// them than key heads, and then the layers that have them are left alone.
fn is_changed(linear: Linear, config: &SyntheticConfig) -> bool {
    match linear {
        Linear::DeltaAlpha | Linear::DeltaBeta => false,
        _ => config.key_heads == config.value_heads || linear.kind() != Some(LayerKind::Delta),
    }
}

fn changes(config: &SyntheticConfig, number: usize) -> Result<Vec<Change>> {
    let mut seed = number as u64;
    let mut next = || {
        seed += 1;
        seed
    };
    let mut changes = Vec::new();
    for (name, dims) in config.shapes()? {
        let Some((block, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else { continue };
        let linear = Linear::parse(part, Naming::Gguf, Network::Dense).filter(|linear| is_changed(*linear, config));
        let Some(module) = linear.and_then(|linear| linear.name(Naming::Transformers, Network::Dense)) else {
            continue;
        };
        let &[inputs, outputs] = dims.as_slice() else { continue };
        let (inputs, outputs) = (to_usize(inputs)?, to_usize(outputs)?);
        changes.push(Change {
            peft: format!("base_model.model.model.language_model.layers.{block}.{module}"),
            gguf: name,
            inputs,
            outputs,
            // Small: the reply changes, the numbers stay tame.
            a: numbers(next(), RANK * inputs, 1.0 / (inputs as f32).sqrt()),
            b: numbers(next() << 32, outputs * RANK, 0.1 / (RANK as f32).sqrt()),
        });
    }
    Ok(changes)
}

fn to_usize(value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::new(ErrorKind::InvalidConfig, "the model is larger than can be counted"))
}

/// Evenly distributed numbers of this deviation, as bytes.
fn numbers(seed: u64, count: usize, deviation: f32) -> Vec<u8> {
    random(seed, count).iter().flat_map(|number| (number * deviation).to_le_bytes()).collect()
}

fn write_peft(changes: &[Change], folder: &Path) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for change in changes {
        let parts = [("lora_A", [RANK, change.inputs], &change.a), ("lora_B", [change.outputs, RANK], &change.b)];
        for (factor, shape, bytes) in parts {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(unexpected)?;
            tensors.insert(format!("{}.{factor}.weight", change.peft), view);
        }
    }
    let bytes = safetensors::serialize(&tensors, None).map_err(unexpected)?;
    let modules: std::collections::BTreeSet<_> =
        changes.iter().filter_map(|change| change.peft.rsplit('.').next()).collect();
    let config = json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "use_dora": false,
        "use_rslora": false, "fan_in_fan_out": false, "modules_to_save": null, "target_modules": modules,
    });
    for (name, bytes) in
        [("adapter_config.json", config.to_string().into_bytes()), ("adapter_model.safetensors", bytes)]
    {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| Error::io(&path, source))?;
    }
    Ok(())
}

/// As llama.cpp's `convert_lora_to_gguf.py` names things.
fn write_gguf(changes: &[Change], path: &Path) -> Result<()> {
    let mut writer = GgufWriter::new("qwen35");
    writer.set("general.type", "adapter");
    writer.set("general.name", "synthetic");
    writer.set("adapter.type", "lora");
    writer.set("adapter.lora.alpha", ALPHA as f32);
    for change in changes {
        let (inputs, outputs, rank) = (change.inputs as u64, change.outputs as u64, RANK as u64);
        writer.add_tensor_bytes(format!("{}.lora_a", change.gguf), &[inputs, rank], TensorType::F32, &change.a[..])?;
        writer.add_tensor_bytes(format!("{}.lora_b", change.gguf), &[rank, outputs], TensorType::F32, &change.b[..])?;
    }
    writer.write_to(path)
}

fn unexpected(source: safetensors::SafeTensorError) -> Error {
    Error::new(ErrorKind::Unexpected, "an adapter could not be written").with_source(source)
}
