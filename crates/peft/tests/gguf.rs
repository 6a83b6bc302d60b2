//! GGUF adapters as llama.cpp's converter writes them, and as nobody should; and both forms held against a model.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use consort_core::{AdapterFiles, ErrorKind};
use consort_gguf::{GgufWriter, ShardLimit, TensorType, Value, quantize};
use consort_peft::{
    AdapterBytes, GgufAdapter, LayerKind, Linear, ModelAdapter, Network, PeftAdapter, Place, TextDimensions,
};
use consort_test_support::{Random, peak};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Keys and tensors (name, dimensions, type, bytes) of a file.
#[derive(Clone)]
struct File {
    architecture: &'static str,
    keys: Vec<(&'static str, Value)>,
    tensors: Vec<(String, Vec<u64>, TensorType, Vec<u8>)>,
}

fn values(count: u64) -> Vec<f32> {
    (0..count).map(|at| (at % 13) as f32 / 8.0 - 0.5).collect()
}

impl File {
    /// An adapter without tensors.
    fn new() -> Self {
        let keys = vec![("general.type", "adapter".into()), ("adapter.type", "lora".into())];
        Self { architecture: "qwen35", keys, tensors: Vec::new() }
    }

    /// Attention's values of layer 0, in rank 2.
    fn good() -> Self {
        Self::new().set("adapter.lora.alpha", 4.0_f32).pair("blk.0.attn_v.weight", [4, 2, 2])
    }

    fn set(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.keys.retain(|(name, _)| *name != key);
        self.keys.push((key, value.into()));
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(name, _)| *name != key);
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: TensorType) -> Self {
        let bytes = quantize(kind, &values(dims.iter().product()), None).unwrap();
        self.tensors.push((name.to_owned(), dims.to_vec(), kind, bytes));
        self
    }

    /// Both factors of a tensor: inputs, rank, outputs.
    fn pair(self, name: &str, [inputs, rank, outputs]: [u64; 3]) -> Self {
        self.tensor(&format!("{name}.lora_a"), &[inputs, rank], TensorType::F32).tensor(
            &format!("{name}.lora_b"),
            &[rank, outputs],
            TensorType::F32,
        )
    }

    fn writer(&self) -> GgufWriter<'_> {
        let mut writer = GgufWriter::new(self.architecture);
        for (key, value) in &self.keys {
            writer.set(key, value.clone());
        }
        for (name, dims, kind, bytes) in &self.tensors {
            writer.add_tensor_bytes(&**name, dims, *kind, &bytes[..]).unwrap();
        }
        writer
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.writer().write(&mut bytes).unwrap();
        bytes
    }

    fn read(&self) -> consort_core::Result<GgufAdapter> {
        GgufAdapter::from_bytes(self.bytes().into())
    }
}

/// An attention layer and a delta net's with three value heads to each of two key heads.
fn model(network: Network) -> TextDimensions {
    TextDimensions {
        hidden: 4,
        mlp: 6,
        vocab: 8,
        heads: 2,
        kv_heads: 1,
        head_dim: 2,
        key_heads: 2,
        value_heads: 6,
        key_dim: 1,
        value_dim: 2,
        layers: vec![LayerKind::Attention, LayerKind::Delta],
        network,
    }
}

fn fitted(file: &File) -> consort_core::Result<ModelAdapter> {
    ModelAdapter::load(&AdapterFiles::Gguf(file.bytes().into()), &model(Network::Dense))
}

#[test]
fn pairs_come_in_order_with_shapes_and_scale() {
    let file = File::good().pair("output.weight", [4, 1, 8]).pair("blk.0.attn_q.weight", [4, 4, 8]);
    let adapter = file.read().unwrap();
    assert_eq!((adapter.architecture(), adapter.invocation_tokens()), ("qwen35", None));
    let deltas: Vec<_> = adapter.deltas().collect();
    let names: Vec<_> = deltas.iter().map(|delta| (delta.module.as_str(), delta.path(), delta.layer)).collect();
    assert_eq!(
        names,
        [
            ("blk.0.attn_q.weight", "attn_q.weight", Some(0)),
            ("blk.0.attn_v.weight", "attn_v.weight", Some(0)),
            ("output.weight", "output.weight", None)
        ]
    );
    // Alpha is the adapter's, the rank each pair's own.
    assert_eq!(deltas.iter().map(|delta| delta.scale).collect::<Vec<_>>(), [1.0, 2.0, 4.0]);
    let delta = deltas[1];
    assert_eq!((delta.rank, delta.in_features, delta.out_features), (2, 4, 2));
    assert_eq!((&delta.a[..], &delta.b[..]), (&values(8)[..], &values(4)[..]));
    for none in [File::good().without("adapter.lora.alpha"), File::good().set("adapter.lora.alpha", 0.0_f32)] {
        assert_eq!(none.read().unwrap().deltas().next().unwrap().scale, 1.0, "without an alpha the product counts");
    }
}

#[test]
fn every_type_that_the_converter_writes_is_read() {
    for kind in [TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::Q8_0] {
        let file = File::new().tensor("blk.0.ffn_up.weight.lora_a", &[64, 32], kind).tensor(
            "blk.0.ffn_up.weight.lora_b",
            &[32, 3],
            kind,
        );
        let delta = file.read().unwrap().into_deltas().remove(0);
        let worst = delta.a.iter().zip(values(64 * 32)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 0.005, "{kind}: {worst}");
        assert_eq!((delta.a.len(), delta.b.len()), (64 * 32, 96));
    }
}

#[test]
fn an_activated_adapter_tells_its_tokens() {
    let file = File::good().set("adapter.alora.invocation_tokens", vec![5_u32, 6]);
    assert_eq!(file.read().unwrap().invocation_tokens(), Some(&[5, 6][..]));
    let key = consort_core::AdapterKey { id: "a".into(), generation: 1 };
    let info = fitted(&file).unwrap().info(key);
    assert_eq!((info.invocation_tokens.as_deref(), info.rank, info.layers, info.bytes), (Some(&[5, 6][..]), 2, 1, 48));
}

fn refused(error: &consort_core::Error, because: &str) {
    assert_eq!(error.kind(), ErrorKind::InvalidAdapter, "{error}");
    assert!(error.to_string().contains(because), "{error} does not say {because:?}");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let nan = || {
        let mut file = File::good();
        file.tensors[0].3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        file
    };
    for (file, because) in [
        (File::good().set("general.type", "model"), "general.type"),
        (File::good().without("general.type"), "general.type"),
        (File::good().set("general.type", 7_u32), "general.type"),
        (File::good().set("adapter.type", "dora"), "adapter.type"),
        (File::good().without("adapter.type"), "adapter.type"),
        (File::good().set("general.architecture", 7_u32), "general.architecture"),
        (File::good().set("adapter.dora.scale", 1.0_f32), "adapter.dora.scale"),
        (File::good().set("adapter.lora.alpha", f32::NAN), "adapter.lora.alpha"),
        (File::good().set("adapter.lora.alpha", f32::INFINITY), "adapter.lora.alpha"),
        (File::good().set("adapter.lora.alpha", 1e30_f32), "out of bounds"),
        (File::good().set("adapter.lora.alpha", "four"), "adapter.lora.alpha"),
        (File::good().set("adapter.alora.invocation_tokens", Vec::<u32>::new()), "needs 1 to 256"),
        (File::good().set("adapter.alora.invocation_tokens", vec![7_u32; 257]), "this one has 257"),
        (File::good().set("adapter.alora.invocation_tokens", vec![-1_i32]), "adapter.alora.invocation_tokens"),
        (File::good().set("adapter.alora.invocation_tokens", "5, 6"), "adapter.alora.invocation_tokens"),
        (File::new(), "changes no layer"),
        (File::good().tensor("blk.0.attn_norm.weight", &[4], TensorType::F32), "blk.0.attn_norm.weight"),
        (File::good().tensor("blk.0.attn_q.weight", &[4, 2], TensorType::F32), "neither lora_a nor lora_b"),
        (File::good().tensor("blk.0.attn_q.weight.lora_a", &[4, 2], TensorType::F32), "this lora_a has no lora_b"),
        (File::good().tensor("blk.0.attn_q.weight.lora_b", &[2, 4], TensorType::F32), "this lora_b has no lora_a"),
        (File::new().pair("blk.0.attn_q.weight", [4, 513, 8]), "between 1 and 512"),
        (
            File::new().tensor("x.lora_a", &[4, 2], TensorType::F32).tensor("x.lora_b", &[3, 4], TensorType::F32),
            "lora_a has rank 2, lora_b has 3",
        ),
        (
            File::new().tensor("x.lora_a", &[4, 2, 2], TensorType::F32).tensor("x.lora_b", &[2, 4, 2], TensorType::F32),
            "not that of a linear layer",
        ),
        (
            File::new().tensor("x.lora_a", &[32, 2], TensorType::Q4_0).tensor("x.lora_b", &[2, 4], TensorType::F32),
            "type Q4_0",
        ),
        (nan(), "not finite"),
    ] {
        refused(&file.read().unwrap_err(), because);
    }
    refused(&GgufAdapter::from_bytes(b"{}".as_slice().into()).unwrap_err(), "named by its folder");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.gguf");
    let file = File::good();
    let shards = file.writer().write_shards(&path, ShardLimit::Tensors(std::num::NonZeroUsize::MIN)).unwrap();
    refused(&GgufAdapter::from_bytes(std::fs::read(&shards[0]).unwrap().into()).unwrap_err(), "split.count");
}

#[test]
fn what_does_not_fit_the_model_is_refused_by_name() {
    assert_eq!(fitted(&File::good()).unwrap().deltas().next().unwrap().tensor, "blk.0.attn_v.weight");
    for (file, because) in [
        (File { architecture: "llama", ..File::good() }, "general.architecture"),
        (File { architecture: "qwen35moe", ..File::good() }, "general.architecture"),
        (File::good().set("adapter.alora.invocation_tokens", vec![8_u32]), "adapter.alora.invocation_tokens"),
        (File::new().pair("blk.0.attn_v.weight", [4, 2, 3]), "blk.0.attn_v.weight"),
        (File::new().pair("blk.0.attn_v.weight", [5, 2, 2]), "5 inputs and 2 outputs"),
        (File::new().pair("blk.1.attn_v.weight", [4, 2, 2]), "of the other kind"),
        (File::new().pair("blk.0.ssm_out.weight", [12, 2, 4]), "of the other kind"),
        (File::new().pair("blk.2.attn_v.weight", [4, 2, 2]), "the model has 2 layers"),
        (File::new().pair("blk.00.attn_v.weight", [4, 2, 2]), "no linear layer"),
        (File::new().pair("blk.0.attn_v", [4, 2, 2]), "no linear layer"),
        (File::new().pair("blk.0.ffn_up_shexp.weight", [4, 2, 6]), "no linear layer"),
        (File::new().pair("blk.0.ffn_gate_inp.weight", [4, 2, 6]), "routed experts"),
        (File::new().pair("blk.0.ffn_up_exps.weight", [4, 2, 6]), "routed experts"),
        (File::new().pair("token_embd.weight", [8, 2, 4]), "embedding"),
        (File::new().pair("v.blk.0.attn_q.weight", [4, 2, 8]), "v.blk.0.attn_q.weight"),
        (File::new().pair("output.weight", [4, 2, 9]), "output.weight"),
    ] {
        refused(&fitted(&file).unwrap_err(), because);
    }
}

/// The linear layers of [`model`]: in PEFT's format, in GGUF, inputs, outputs.
const LAYERS: [(&str, &str, usize, usize); 13] = [
    ("layers.0.self_attn.q_proj", "blk.0.attn_q.weight", 4, 8),
    ("layers.0.self_attn.k_proj", "blk.0.attn_k.weight", 4, 2),
    ("layers.0.self_attn.v_proj", "blk.0.attn_v.weight", 4, 2),
    ("layers.0.self_attn.o_proj", "blk.0.attn_output.weight", 4, 4),
    ("layers.0.mlp.gate_proj", "blk.0.ffn_gate.weight", 4, 6),
    ("layers.0.mlp.up_proj", "blk.0.ffn_up.weight", 4, 6),
    ("layers.1.mlp.down_proj", "blk.1.ffn_down.weight", 6, 4),
    ("layers.1.linear_attn.in_proj_qkv", "blk.1.attn_qkv.weight", 4, 16),
    ("layers.1.linear_attn.in_proj_z", "blk.1.attn_gate.weight", 4, 12),
    ("layers.1.linear_attn.in_proj_a", "blk.1.ssm_alpha.weight", 4, 6),
    ("layers.1.linear_attn.in_proj_b", "blk.1.ssm_beta.weight", 4, 6),
    ("layers.1.linear_attn.out_proj", "blk.1.ssm_out.weight", 12, 4),
    ("lm_head", "output.weight", 4, 8),
];

fn peft(layers: &[(&str, &str, usize, usize)]) -> AdapterFiles {
    let mut parts = BTreeMap::new();
    for (name, _, inputs, outputs) in layers {
        for (factor, shape) in [("A", vec![2, *inputs]), ("B", vec![*outputs, 2])] {
            let count = shape.iter().product::<usize>() as u64;
            let bytes: Vec<u8> = (0..count).flat_map(|at| (at as f32).to_le_bytes()).collect();
            parts.insert(format!("base_model.model.model.{name}.lora_{factor}.weight"), (shape, bytes));
        }
    }
    let views: BTreeMap<&str, TensorView<'_>> = parts
        .iter()
        .map(|(name, (shape, bytes))| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()))
        .collect();
    let config = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 3}"#.as_slice();
    AdapterFiles::Bytes { config: config.into(), weights: safetensors::serialize(views, None).unwrap().into() }
}

#[test]
fn each_layer_finds_its_tensor() {
    for layer in LAYERS {
        let adapter = ModelAdapter::load(&peft(&[layer]), &model(Network::Dense)).unwrap();
        let delta = &adapter.into_deltas()[0];
        assert_eq!((delta.tensor.as_str(), delta.origin.as_str()), (layer.1, layer.0));
        assert_eq!((delta.inputs(), delta.outputs(), delta.rank, delta.scale), (layer.2, layer.3, 2, 1.5));
        match delta.place {
            Place::Head => assert_eq!(layer.0, "lm_head"),
            Place::Layer { index, linear } => {
                assert!(layer.0.starts_with(&format!("layers.{index}.")), "{delta:?}");
                assert_eq!(linear.features(&model(Network::Dense)), (layer.2, layer.3));
            }
        }
        let file = File::new().pair(layer.1, [layer.2 as u64, 2, layer.3 as u64]);
        let same = &fitted(&file).unwrap().into_deltas()[0];
        assert_eq!((&same.tensor, same.place, &same.origin), (&delta.tensor, delta.place, &delta.tensor));
    }
    // In a mixture of experts it is the shared one.
    let shared = ("layers.0.mlp.shared_expert_gate", "", 4, 1);
    let adapter = ModelAdapter::load(&peft(&[shared]), &model(Network::Experts)).unwrap();
    let delta = &adapter.into_deltas()[0];
    assert_eq!(delta.tensor, "blk.0.ffn_gate_inp_shexp.weight");
    assert_eq!(delta.place, Place::Layer { index: 0, linear: Linear::SharedGate });
    let error = ModelAdapter::load(&peft(&LAYERS[4..5]), &model(Network::Experts)).unwrap_err();
    refused(&error, "layers.0.mlp.gate_proj");
    let error = ModelAdapter::load(&peft(&[("layers.0.mlp.gate", "", 4, 6)]), &model(Network::Experts)).unwrap_err();
    refused(&error, "routed experts");
}

/// Grouped, heads 0, 1, 2 read key head 0 and 3, 4, 5 read key head 1; dealt out they alternate: 0, 3, 1, 4, 2, 5.
#[test]
fn value_heads_are_dealt_out_once() {
    let delta = |name: &str| {
        let layer = LAYERS.iter().find(|layer| layer.1 == name).unwrap();
        ModelAdapter::load(&peft(&[*layer]), &model(Network::Dense)).unwrap().into_deltas().remove(0)
    };
    // B holds its own indices: row r is [2r, 2r + 1].
    let rows = |b: &[f32]| b.chunks_exact(2).map(|row| row[0] as usize / 2).collect::<Vec<_>>();
    assert_eq!(rows(&delta("blk.1.ssm_alpha.weight").b), [0, 3, 1, 4, 2, 5]);
    assert_eq!(rows(&delta("blk.1.attn_gate.weight").b), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    assert_eq!(rows(&delta("blk.1.attn_qkv.weight").b), [0, 1, 2, 3, 4, 5, 10, 11, 6, 7, 12, 13, 8, 9, 14, 15]);
    let out = delta("blk.1.ssm_out.weight");
    let inputs = |row: &[f32]| row.iter().map(|&value| value as usize % 12).collect::<Vec<_>>();
    assert_eq!(inputs(&out.a[..12]), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    assert_eq!((rows(&out.b), inputs(&out.a[12..])), (vec![0, 1, 2, 3], inputs(&out.a[..12])));
    // A GGUF adapter has that order already.
    let file = File::new().pair("blk.1.ssm_alpha.weight", [4, 2, 6]);
    assert_eq!(fitted(&file).unwrap().into_deltas()[0].b, values(12));
}

#[test]
fn files_are_read_within_bounds_and_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.gguf");
    let files = AdapterFiles::File(path.clone());
    assert_eq!(AdapterBytes::read(&files).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(AdapterBytes::read(&AdapterFiles::File(folder.path().into())).unwrap_err().kind(), ErrorKind::Io);
    let bytes = File::good().bytes();
    std::fs::write(&path, &bytes).unwrap();
    let read = AdapterBytes::read(&files).unwrap();
    assert_eq!(read.digest(), *blake3::hash(&bytes).as_bytes());
    assert_eq!(read.digest(), AdapterBytes::read(&AdapterFiles::Gguf(bytes.clone().into())).unwrap().digest());
    assert!(matches!(read.into_files(), AdapterFiles::Gguf(same) if *same == bytes[..]));
    std::fs::write(&path, b"x").unwrap();
    let error = ModelAdapter::load(&files, &model(Network::Dense)).unwrap_err();
    refused(&error, path.to_str().unwrap());
    let in_peft = AdapterBytes::read(&peft(&LAYERS)).unwrap();
    assert!(matches!(in_peft.into_files(), AdapterFiles::Bytes { .. }));
}

fn check(bytes: &[u8], what: &str) {
    let shared: Arc<[u8]> = bytes.into();
    let (outcome, peak) = peak(|| {
        GgufAdapter::from_bytes(shared).and_then(|adapter| ModelAdapter::from_gguf(adapter, &model(Network::Dense)))
    });
    if let Err(error) = outcome {
        assert_eq!(error.kind(), ErrorKind::InvalidAdapter, "{what}: {error}");
    }
    assert!(peak <= 64 * bytes.len() + (1 << 20), "{what}: {peak} bytes for a file of {}", bytes.len());
}

#[test]
fn damaged_files_end_in_a_typed_error() {
    let bytes = File::good()
        .set("adapter.alora.invocation_tokens", vec![5_u32, 6])
        .tensor("blk.1.ffn_down.weight.lora_a", &[6, 2], TensorType::F16)
        .tensor("blk.1.ffn_down.weight.lora_b", &[2, 4], TensorType::BF16)
        .bytes();
    check(&bytes, "the whole file");
    assert!(GgufAdapter::from_bytes(bytes.clone().into()).is_ok());
    for length in 0..bytes.len() {
        check(&bytes[..length], &format!("the first {length} bytes"));
    }
    let mut random = Random::default();
    for case in 0..6000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(damaged.len());
            damaged[at] ^= 1 << random.below(8);
        }
        check(&damaged, &format!("seeded case {case}"));
    }
}

/// In PEFT's format and as GGUF, what is refused for the model says the same.
#[test]
fn both_forms_are_held_against_the_model_by_one_rule() {
    for (in_peft, in_gguf, inputs, outputs) in [
        ("layers.1.self_attn.q_proj", "blk.1.attn_q.weight", 4, 8),
        ("layers.5.self_attn.q_proj", "blk.5.attn_q.weight", 4, 8),
        ("layers.0.self_attn.q_proj", "blk.0.attn_q.weight", 4, 9),
        ("layers.0.self_attn.x_proj", "blk.0.attn_x.weight", 4, 8),
    ] {
        let one = ModelAdapter::load(&peft(&[(in_peft, "", inputs, outputs)]), &model(Network::Dense)).unwrap_err();
        let other = fitted(&File::new().pair(in_gguf, [inputs as u64, 2, outputs as u64])).unwrap_err();
        assert_eq!(one.message(), other.message());
        assert!(one.context().any(|pair| pair == ("layer", in_peft)), "{one}");
        assert!(other.context().any(|pair| pair == ("tensor", in_gguf)), "{other}");
    }
    let AdapterFiles::Bytes { weights, .. } = peft(&LAYERS) else { panic!("bytes") };
    let config = br#"{"peft_type": "LORA", "r": 2, "alora_invocation_tokens": [1, 8]}"#;
    let adapter = PeftAdapter::from_parts(config, &weights).unwrap();
    refused(&ModelAdapter::from_peft(adapter, &model(Network::Dense)).unwrap_err(), "alora_invocation_tokens");
}
