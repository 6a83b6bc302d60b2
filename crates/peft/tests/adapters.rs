//! Adapters as PEFT writes them, and adapters as nobody should.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use consort_core::ErrorKind;
use consort_peft::PeftAdapter;
use consort_test_support::{Random, peak};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

fn f32s(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let data = (0..count).flat_map(|at| (at as f32 / 8.0).to_le_bytes()).collect();
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), data }
}

fn file(tensors: &[(&str, Tensor)]) -> Vec<u8> {
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, tensor)| (*name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap()))
        .collect();
    safetensors::serialize(views, None).unwrap()
}

const UP: &str = "base_model.model.model.language_model.layers.2.mlp.up_proj";
const QKV: &str = "base_model.model.model.language_model.layers.10.linear_attn.in_proj_qkv";

fn pair(module: &str, rank: usize) -> [(String, Tensor); 2] {
    [(format!("{module}.lora_A.weight"), f32s(&[rank, 4])), (format!("{module}.lora_B.weight"), f32s(&[6, rank]))]
}

fn weights(modules: &[(&str, usize)]) -> Vec<u8> {
    let pairs: Vec<(String, Tensor)> = modules.iter().flat_map(|&(module, rank)| pair(module, rank)).collect();
    let named: Vec<(&str, Tensor)> = pairs
        .iter()
        .map(|(name, t)| (name.as_str(), Tensor { dtype: t.dtype, shape: t.shape.clone(), data: t.data.clone() }))
        .collect();
    file(&named)
}

/// What PEFT 0.21 writes for an ordinary adapter, but for keys that are null or false there.
fn config(extra: &str) -> Vec<u8> {
    format!(
        r#"{{"auto_mapping": null, "base_model_name_or_path": "etude", "bias": "none", "fan_in_fan_out": false,
            "inference_mode": true, "init_lora_weights": true, "loftq_config": {{}}, "lora_alpha": 16, "lora_dropout": 0.0,
            "lora_bias": false, "modules_to_save": null, "peft_type": "LORA", "r": 2, "use_dora": false,
            "target_modules": ["up_proj", "in_proj_qkv"], "task_type": "CAUSAL_LM", "use_qalora": false,
            "qalora_group_size": 16, "layer_replication": null {extra}}}"#
    )
    .into_bytes()
}

#[test]
fn pairs_come_in_order_with_shapes_and_scale() {
    let adapter = PeftAdapter::from_parts(&config(""), &weights(&[(QKV, 2), (UP, 2)])).unwrap();
    let deltas: Vec<_> = adapter.deltas().collect();
    assert_eq!(deltas.len(), 2);
    assert_eq!((deltas[0].module.as_str(), deltas[0].path()), ("layers.2.mlp.up_proj", "mlp.up_proj"));
    assert_eq!((deltas[1].layer, deltas[1].path()), (Some(10), "linear_attn.in_proj_qkv"));
    let delta = deltas[0];
    assert_eq!((delta.rank, delta.in_features, delta.out_features, delta.scale), (2, 4, 6, 8.0));
    assert_eq!((delta.a.len(), delta.b.len()), (8, 12));
    assert_eq!(delta.a[3], 0.375);
    assert_eq!(adapter.config().target_modules(), ["up_proj", "in_proj_qkv"]);
    assert_eq!((adapter.config().base_model(), adapter.max_rank()), (Some("etude"), 2));
    assert_eq!(adapter.invocation_tokens(), None);
}

#[test]
fn patterns_and_rank_stabilised_scale_follow_peft() {
    let extra = r#", "use_rslora": true, "rank_pattern": {"up_proj": 4}, "alpha_pattern": {"layers\\.10\\..*": 3, "layers.2.mlp.up_proj": 5.5, "up_proj": 7}"#;
    let adapter = PeftAdapter::from_parts(&config(extra), &weights(&[(UP, 4), (QKV, 2)])).unwrap();
    let scales: Vec<f32> = adapter.deltas().map(|delta| delta.scale).collect();
    // The first pattern that matches decides; a dot in a key is any character, as in PEFT.
    assert_eq!(scales, [(5.5 / 4.0_f64.sqrt()) as f32, (3.0 / 2.0_f64.sqrt()) as f32]);
    // A pattern matches whole name parts only.
    let adapter =
        PeftAdapter::from_parts(&config(r#", "alpha_pattern": {"p_proj": 1}"#), &weights(&[(UP, 2)])).unwrap();
    assert_eq!(adapter.deltas().next().unwrap().scale, 8.0);
}

#[test]
fn half_precision_is_read() {
    let a: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let b: Vec<u8> = [0.25_f32].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let file = file(&[
        ("lm_head.lora_A.weight", Tensor { dtype: Dtype::F16, shape: vec![1, 2], data: a }),
        ("lm_head.lora_B.weight", Tensor { dtype: Dtype::BF16, shape: vec![1, 1], data: b }),
    ]);
    let adapter = PeftAdapter::from_parts(br#"{"peft_type":"LORA","r":1}"#, &file).unwrap();
    let delta = adapter.into_deltas().remove(0);
    assert_eq!((delta.a, delta.b, delta.layer), (vec![1.5, -2.0], vec![0.25], None));
    assert_eq!(delta.scale, 8.0, "PEFT's default alpha is 8");
}

#[test]
fn an_activated_adapter_tells_its_tokens() {
    let adapter =
        PeftAdapter::from_parts(&config(r#", "alora_invocation_tokens": [5, 6]"#), &weights(&[(UP, 2)])).unwrap();
    assert_eq!(adapter.invocation_tokens(), Some(&[5, 6][..]));
    let most = vec!["4294967295"; 256].join(",");
    let config = config(&format!(r#", "alora_invocation_tokens": [{most}]"#));
    let adapter = PeftAdapter::from_parts(&config, &weights(&[(UP, 2)])).unwrap();
    assert_eq!(adapter.invocation_tokens(), Some(&[u32::MAX; 256][..]));
}

fn refused(config: &[u8], weights: &[u8], because: &str) {
    let error = PeftAdapter::from_parts(config, weights).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidAdapter, "{error}");
    assert!(error.to_string().contains(because), "{error} does not say {because:?}");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let good = weights(&[(UP, 2)]);
    for (extra, because) in [
        (r#""use_dora": true"#, "DoRA"),
        (r#""modules_to_save": ["lm_head"]"#, "modules_to_save"),
        (r#""fan_in_fan_out": true"#, "fan_in_fan_out"),
        (r#""bias": "all""#, "biases (all)"),
        (r#""lora_bias": true"#, "lora_bias"),
        (r#""use_qalora": true"#, "QALoRA"),
        (r#""use_bdlora": {"nblocks": 2}"#, "block-diagonal"),
        (r#""layer_replication": [[0, 4]]"#, "layer_replication"),
        (r#""trainable_token_indices": [1]"#, "trainable_token_indices"),
        (r#""target_parameters": ["x"]"#, "target_parameters"),
        (r#""peft_type": "IA3""#, "type IA3"),
        (r#""peft_type": null"#, "peft_type"),
        (r#""r": 0"#, "between 1 and 512"),
        (r#""r": 513"#, "between 1 and 512"),
        (r#""lora_alpha": 1e300"#, "out of bounds"),
        (r#""rank_pattern": {"up_proj": 100000}"#, "between 1 and 512"),
        (r#""alpha_pattern": {"(": 1}"#, "does not compile"),
        (r#""alpha_pattern": {"((a{1000}){1000}){1000}": 1}"#, "does not compile"),
        (r#""rank_pattern": {"up_proj": 4}"#, "the tensor's rank is 2, but the config says 4"),
        (r#""alora_invocation_tokens": []"#, "needs 1 to 256"),
        (r#""alora_invocation_tokens": "5, 6""#, "no list"),
        (r#""alora_invocation_tokens": [5, -6]"#, "no token id"),
        (r#""alora_invocation_tokens": [5, 6.5]"#, "no token id"),
        (r#""alora_invocation_tokens": [4294967296]"#, "no token id"),
        (r#""alora_invocation_tokens": [[5]]"#, "no token id"),
        (r#""alora_invocation_tokens": {"5": 6}"#, "no list"),
        (r#""target_modules": 7"#, "neither text nor a list"),
    ] {
        let base: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&config("")).unwrap();
        let mut merged = base;
        merged.extend(serde_json::from_str::<BTreeMap<String, serde_json::Value>>(&format!("{{{extra}}}")).unwrap());
        refused(&serde_json::to_vec(&merged).unwrap(), &good, because);
    }
    let many = vec!["7"; 257].join(",");
    refused(&config(&format!(r#", "alora_invocation_tokens": [{many}]"#)), &good, "this one has 257");
    refused(b"{", &good, "does not parse");
    refused(&vec![b' '; (1 << 20) + 1], &good, "bytes, more than");
    refused(&config(""), b"junk", "not safetensors");
    refused(&config(""), &file(&[]), "changes no layer");
}

#[test]
fn tensors_that_do_not_pair_up_are_refused() {
    let a = format!("{UP}.lora_A.weight");
    let b = format!("{UP}.lora_B.weight");
    let cases: Vec<(Vec<(&str, Tensor)>, &str)> = vec![
        (vec![(&a, f32s(&[2, 4]))], "has no lora_B"),
        (vec![(&b, f32s(&[4, 2]))], "has no lora_A"),
        (vec![(&a, f32s(&[2, 4])), (&b, f32s(&[4, 3]))], "lora_A has rank 2, lora_B has 3"),
        (vec![(&a, f32s(&[2, 4, 1])), (&b, f32s(&[4, 2]))], "not that of a linear layer"),
        (vec![(&a, f32s(&[2, 0])), (&b, f32s(&[4, 2]))], "out of bounds"),
        (vec![("model.layers.2.mlp.up_proj.lora_A.weight", f32s(&[2, 4])), (&a, f32s(&[2, 4]))], "same factor"),
        (vec![("model.norm.weight", f32s(&[4]))], "neither lora_A nor lora_B"),
        (vec![("base_model.model.model.visual.merger.linear_fc1.lora_A.weight", f32s(&[2, 4]))], "vision tower"),
        (vec![(&a, Tensor { dtype: Dtype::I32, ..f32s(&[2, 4]) }), (&b, f32s(&[4, 2]))], "type I32"),
        (
            vec![(&a, Tensor { data: f32::NAN.to_le_bytes().repeat(8), ..f32s(&[2, 4]) }), (&b, f32s(&[4, 2]))],
            "not finite",
        ),
    ];
    for (tensors, because) in cases {
        refused(&config(""), &file(&tensors), because);
    }
}

#[test]
fn directories() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(PeftAdapter::open(folder.path()).unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::write(folder.path().join("adapter_config.json"), config("")).unwrap();
    std::fs::write(folder.path().join("adapter_model.bin"), b"pickle").unwrap();
    assert!(PeftAdapter::open(folder.path()).unwrap_err().to_string().contains("pickle"));
    let good = weights(&[(UP, 2)]);
    std::fs::write(folder.path().join("adapter_model.safetensors"), &good).unwrap();
    let adapter = PeftAdapter::open(folder.path()).unwrap();
    assert_eq!(adapter.digest(), PeftAdapter::from_parts(&config(""), &good).unwrap().digest());
    let mut other = good;
    *other.last_mut().unwrap() ^= 1;
    assert_ne!(adapter.digest(), PeftAdapter::from_parts(&config(""), &other).unwrap().digest());
}

fn check(config: &[u8], weights: &[u8], what: &str) {
    let (outcome, peak) = peak(|| PeftAdapter::from_parts(config, weights).map(|adapter| adapter.max_rank()));
    if let Err(error) = outcome {
        assert_eq!(error.kind(), ErrorKind::InvalidAdapter, "{what}");
    }
    let size = config.len() + weights.len();
    assert!(peak <= 64 * size + (1 << 20), "{what}: {peak} bytes for files of {size}");
}

#[test]
fn damaged_files_end_in_a_typed_error() {
    let config = config(
        r#", "rank_pattern": {"up_proj": 2}, "alpha_pattern": {".*qkv": 4}, "alora_invocation_tokens": [5, 6, 70000]"#,
    );
    let weights = weights(&[(UP, 2), (QKV, 2)]);
    for length in 0..weights.len() {
        check(&config, &weights[..length], &format!("the first {length} bytes"));
        assert!(PeftAdapter::from_parts(&config, &weights[..length]).is_err());
    }
    for length in 0..config.len() {
        check(&config[..length], &weights, &format!("the first {length} bytes of the config"));
    }
    let mut random = Random::default();
    let mut below = |limit| random.below(limit);
    for case in 0..4000 {
        let (mut config, mut weights) = (config.clone(), weights.clone());
        for _ in 0..=below(4) {
            let target = if below(2) == 0 { &mut config } else { &mut weights };
            // Most of the weights are numbers; the header is where it hurts.
            let at = below(target.len().min(700));
            target[at] ^= 1 << below(8);
        }
        check(&config, &weights, &format!("seeded case {case}"));
    }
    let deep = format!(r#"{{"peft_type": "LORA", "x": {}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    check(deep.as_bytes(), &weights, "deep nesting");
}

/// Every adapter that PEFT itself saved for the behaviour suite.
#[test]
fn adapters_that_peft_saved_are_read() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../behavior/golden");
    let mut read = 0;
    let ordinary = ["plain", "untied", "grouped2", "grouped3", "heads", "deep"].map(|model| (model, false));
    let activated = ["activated/plain", "activated/grouped2", "activated/heads"].map(|model| (model, true));
    for (model, activated) in ordinary.into_iter().chain(activated) {
        for entry in std::fs::read_dir(golden.join(model).join("adapters")).unwrap() {
            let folder = entry.unwrap().path();
            let adapter = PeftAdapter::open(&folder).unwrap();
            assert_eq!(adapter.invocation_tokens().is_some(), activated, "{}", folder.display());
            assert!(adapter.deltas().len() > 0, "{}", folder.display());
            for delta in adapter.deltas() {
                let linear = delta.path().starts_with("linear_attn.");
                assert!(
                    linear || delta.path().starts_with("self_attn.") || delta.path().starts_with("mlp."),
                    "{delta:?}"
                );
                assert_eq!(delta.a.len(), delta.rank * delta.in_features);
                assert_eq!(delta.b.len(), delta.rank * delta.out_features);
            }
            read += 1;
        }
    }
    assert!(read >= 24, "{read}");
}
