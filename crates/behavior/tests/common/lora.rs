//! The goldens' adapters as GGUF, written as llama.cpp's `convert_lora_to_gguf.py` writes them. Names and the order of value
//! heads are worked out here once more, so that what engines read with is not held against itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use consort_behavior::fixture::{AdapterTwins, RefusedAdapter};
use consort_core::{AdapterFiles, Error, ErrorKind, Result};
use consort_gguf::{GgufWriter, TensorType, Value, dequantize, quantize};
use consort_peft::{LoraDelta, PeftAdapter};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::folder;

/// Where the scale stands in a GGUF adapter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// In the numbers of B.
    InNumbers,
    /// In `adapter.lora.alpha`, as the converter writes it.
    InAlpha,
}

/// The value heads of a model.
struct Heads {
    keys: usize,
    /// Value heads of each key head.
    group: usize,
    /// Outputs of `in_proj_qkv` before the values.
    before: usize,
}

/// A GGUF adapter before it is written.
#[derive(Clone)]
struct Lora {
    architecture: String,
    keys: Vec<(&'static str, Value)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dims: [u64; 2],
    kind: TensorType,
    data: Vec<u8>,
}

impl Lora {
    fn file(&self) -> Result<Vec<u8>> {
        let mut writer = GgufWriter::new(&self.architecture);
        for (key, value) in &self.keys {
            writer.set(key, value.clone());
        }
        for tensor in &self.tensors {
            writer.add_tensor_bytes(&*tensor.name, &tensor.dims, tensor.kind, tensor.data.clone())?;
        }
        let mut file = Vec::new();
        writer.write(&mut file)?;
        Ok(file)
    }

    fn files(&self) -> Result<AdapterFiles> {
        Ok(AdapterFiles::Gguf(self.file()?.into()))
    }

    /// The same with a key set.
    fn with(&self, key: &'static str, value: impl Into<Value>) -> Self {
        let mut other = self.clone();
        other.keys.retain(|(name, _)| *name != key);
        other.keys.push((key, value.into()));
        other
    }

    /// The same with the tensors changed.
    fn changed(&self, change: impl FnMut(&mut Tensor)) -> Self {
        let mut other = self.clone();
        other.tensors.iter_mut().for_each(change);
        other
    }
}

fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::new(ErrorKind::Unexpected, error.to_string()))
}

fn text_config(model: &str) -> Result<serde_json::Value> {
    let config = read_json(&folder("golden").join(model).join("config.json"))?;
    Ok(config.get("text_config").cloned().unwrap_or(config))
}

fn heads(config: &serde_json::Value) -> Heads {
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let keys = number("linear_num_key_heads");
    Heads { keys, group: number("linear_num_value_heads") / keys, before: 2 * keys * number("linear_key_head_dim") }
}

fn architecture(config: &serde_json::Value) -> &'static str {
    if config["model_type"].as_str().unwrap().contains("moe") { "qwen35moe" } else { "qwen35" }
}

/// `[keys, group, width]` as `[group, keys, width]`.
fn tiled(values: &[f32], heads: &Heads) -> Vec<f32> {
    let width = values.len() / (heads.keys * heads.group);
    let order = (0..heads.group).flat_map(|member| (0..heads.keys).map(move |key| key * heads.group + member));
    order.flat_map(|head| values[head * width..][..width].to_vec()).collect()
}

/// A layer's tensor, and its factors in GGUF's order.
fn converted(delta: &LoraDelta, heads: &Heads) -> (String, Vec<f32>, Vec<f32>) {
    let Some(index) = delta.layer else { return ("output.weight".into(), delta.a.clone(), delta.b.clone()) };
    let (mut a, mut b) = (delta.a.clone(), delta.b.clone());
    let name = match delta.path() {
        "linear_attn.in_proj_qkv" => {
            let values = tiled(&b[heads.before * delta.rank..], heads);
            b.splice(heads.before * delta.rank.., values);
            "attn_qkv"
        }
        "linear_attn.in_proj_z" => {
            b = tiled(&b, heads);
            "attn_gate"
        }
        "linear_attn.in_proj_a" => {
            b = tiled(&b, heads);
            "ssm_alpha"
        }
        "linear_attn.in_proj_b" => {
            b = tiled(&b, heads);
            "ssm_beta"
        }
        "linear_attn.out_proj" => {
            a = a.chunks_exact(delta.in_features).flat_map(|row| tiled(row, heads)).collect();
            "ssm_out"
        }
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.shared_expert.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_expert.up_proj" => "ffn_up_shexp",
        "mlp.shared_expert.down_proj" => "ffn_down_shexp",
        "mlp.shared_expert_gate" => "ffn_gate_inp_shexp",
        other => panic!("the goldens adapt {other}"),
    };
    (format!("blk.{index}.{name}.weight"), a, b)
}

/// `kind` where rows of this length are whole blocks of it, as most are not of B.
fn fitting(kind: TensorType, row: usize) -> TensorType {
    if (row as u64).is_multiple_of(kind.block_len()) { kind } else { TensorType::F16 }
}

/// What is left of the numbers in `kind`.
fn rounded(values: &[f32], kind: TensorType) -> Result<Vec<f32>> {
    let mut left = vec![0.0; values.len()];
    dequantize(kind, &quantize(kind, values, None)?, &mut left)?;
    Ok(left)
}

/// Numbers that are rounded already, in the bytes of their type.
fn stored(values: &[f32], kind: TensorType) -> Result<Vec<u8>> {
    let bytes = quantize(kind, values, None)?;
    assert_eq!(rounded(values, kind)?, values, "rounding {kind} twice changes numbers");
    Ok(bytes)
}

fn lora(
    deltas: &[LoraDelta],
    invocation: Option<&[u32]>,
    config: &serde_json::Value,
    (kind, scale): (TensorType, Scale),
) -> Result<Lora> {
    let heads = heads(config);
    let mut keys = vec![
        ("general.type", Value::from("adapter")),
        ("general.name", Value::from("a golden adapter")),
        ("adapter.type", Value::from("lora")),
    ];
    if scale == Scale::InAlpha {
        let alpha = deltas[0].scale * deltas[0].rank as f32;
        assert!(deltas.iter().all(|delta| delta.scale == alpha / delta.rank as f32), "the layers' alphas differ");
        keys.push(("adapter.lora.alpha", Value::from(alpha)));
    }
    if let Some(tokens) = invocation {
        keys.push(("adapter.alora.invocation_tokens", Value::from(tokens.to_vec())));
    }
    let mut tensors = Vec::new();
    for delta in deltas {
        let (name, a, mut b) = converted(delta, &heads);
        if scale == Scale::InNumbers {
            b.iter_mut().for_each(|value| *value *= delta.scale);
        }
        let (rank, inputs, outputs) = (delta.rank as u64, delta.in_features as u64, delta.out_features as u64);
        for (factor, dims, values) in [("lora_a", [inputs, rank], a), ("lora_b", [rank, outputs], b)] {
            let kind = fitting(kind, dims[0] as usize);
            tensors.push(Tensor { name: format!("{name}.{factor}"), dims, kind, data: stored(&values, kind)? });
        }
    }
    Ok(Lora { architecture: architecture(config).into(), keys, tensors })
}

/// The same config with these factors.
fn as_peft(folder: &Path, deltas: &[LoraDelta]) -> Result<AdapterFiles> {
    let path = folder.join("adapter_config.json");
    let config = fs::read(&path).map_err(|error| Error::io(&path, error))?;
    let mut parts = BTreeMap::new();
    for delta in deltas {
        let wrapped = if delta.layer.is_some() { "model.language_model." } else { "" };
        let shapes = [
            ("lora_A", [delta.rank, delta.in_features], &delta.a),
            ("lora_B", [delta.out_features, delta.rank], &delta.b),
        ];
        for (factor, shape, values) in shapes {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            parts.insert(format!("base_model.model.{wrapped}{}.{factor}.weight", delta.module), (shape, bytes));
        }
    }
    let views: BTreeMap<&str, TensorView<'_>> = parts
        .iter()
        .map(|(name, (shape, bytes))| (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()))
        .collect();
    let weights = safetensors::serialize(views, None).unwrap();
    Ok(AdapterFiles::Bytes { config: config.into(), weights: weights.into() })
}

/// An adapter of the goldens, its numbers rounded to `kind`.
fn twins(name: &str, folder: &Path, config: &serde_json::Value, form: (TensorType, Scale)) -> Result<AdapterTwins> {
    let adapter = PeftAdapter::open(folder)?;
    let invocation = adapter.invocation_tokens().map(<[u32]>::to_vec);
    let mut deltas = adapter.into_deltas();
    let peft = if form.0 == TensorType::F32 {
        AdapterFiles::Directory(folder.to_owned())
    } else {
        for delta in &mut deltas {
            // Value heads are whole blocks, so it does not matter in which order they are rounded.
            delta.a = rounded(&delta.a, fitting(form.0, delta.in_features))?;
            delta.b = rounded(&delta.b, fitting(form.0, delta.rank))?;
        }
        as_peft(folder, &deltas)?
    };
    let gguf = lora(&deltas, invocation.as_deref(), config, form)?.files()?;
    Ok(AdapterTwins { name: name.to_owned(), peft, gguf, invocation })
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// A model's adapters in both forms: one in each type that is read, with its alpha; each with the scale in its numbers; and the
/// activated ones.
pub fn all_twins(model: &str) -> Result<Vec<AdapterTwins>> {
    let (golden, config) = (folder("golden"), text_config(model)?);
    let ordinary = golden.join(model).join("adapters");
    let mut all = Vec::new();
    for kind in [TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::Q8_0] {
        let name = format!("all-{kind}").to_lowercase();
        all.push(twins(&name, &ordinary.join("all"), &config, (kind, Scale::InAlpha))?);
    }
    for name in names(&ordinary)? {
        all.push(twins(&name, &ordinary.join(&name), &config, (TensorType::F32, Scale::InNumbers))?);
    }
    let activated = golden.join("activated").join(model).join("adapters");
    if activated.exists() {
        for name in names(&activated)? {
            all.push(twins(&name, &activated.join(&name), &config, (TensorType::F16, Scale::InAlpha))?);
        }
    }
    Ok(all)
}

/// GGUF adapters that must be refused, made of one that is good.
pub fn refused(model: &str) -> Result<Vec<RefusedAdapter>> {
    let config = text_config(model)?;
    let deltas = PeftAdapter::open(&folder("golden").join(model).join("adapters/all"))?.into_deltas();
    let good = lora(&deltas, None, &config, (TensorType::F32, Scale::InAlpha))?;
    let (mut first, mut last) = (good.clone(), good.clone());
    first.architecture = "llama".into();
    last.tensors.pop();
    let widest = config["vocab_size"].as_u64().unwrap() as u32;
    // The first layer of every configuration is a delta net's.
    let renamed = |from: &'static str, to: &'static str| {
        good.changed(move |tensor| tensor.name = tensor.name.replace(from, to)).files()
    };
    let narrow = good.changed(|tensor| {
        if tensor.name == "blk.0.attn_qkv.weight.lora_b" {
            tensor.dims[1] -= 1;
            tensor.data.truncate((4 * tensor.dims[0] * tensor.dims[1]) as usize);
        }
    });
    let whole = good.file()?;
    let refused = |why, names, files| RefusedAdapter { why, names, files };
    Ok(vec![
        refused("GGUF of another architecture", "general.architecture", first.files()?),
        refused("GGUF of a model", "general.type", good.with("general.type", "model").files()?),
        refused("GGUF with an unknown tensor", "blk.0.nonsense.weight", renamed("blk.0.attn_qkv", "blk.0.nonsense")?),
        refused("GGUF with a layer too many", "blk.77.attn_qkv", renamed("blk.0.attn_qkv", "blk.77.attn_qkv")?),
        refused("GGUF with a layer of the other kind", "blk.0.attn_q.", renamed("blk.0.attn_qkv", "blk.0.attn_q")?),
        refused("GGUF with a wrong shape", "blk.0.attn_qkv.weight", narrow.files()?),
        refused("GGUF with one factor alone", "lora_a has no lora_b", last.files()?),
        refused("GGUF with an embedding", "token_embd.weight", renamed("blk.0.attn_qkv", "token_embd")?),
        refused("GGUF with routed experts", "ffn_up_exps", renamed("blk.0.attn_qkv", "blk.0.ffn_up_exps")?),
        refused(
            "GGUF with a token beyond the vocabulary",
            "adapter.alora.invocation_tokens",
            good.with("adapter.alora.invocation_tokens", vec![1, widest]).files()?,
        ),
        refused("GGUF that is cut off", "truncated", AdapterFiles::Gguf(whole[..whole.len() / 2].into())),
        refused("GGUF that is none", "not a GGUF file", AdapterFiles::Gguf(b"\x10\0\0\0\0\0\0\0{}".as_slice().into())),
    ])
}
