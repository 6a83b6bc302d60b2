//! Damaged model files: typed errors or meaningless logits, never a panic, never much memory.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod common;

use std::path::Path;

use common::*;
use consort_core::*;
use consort_gguf::{Gguf, GgufWriter, TensorType, Value};
use consort_native::synthetic::SyntheticConfig;
use consort_native::{NativeConfig, NativeEngine};
use consort_test_support::Random;

/// Loads the two files and, if they load, runs some tokens and a picture. Whether they loaded.
fn survive(text: &Path, vision: Option<&Path>) -> bool {
    let config = NativeConfig { vision: vision.map(Into::into), max_image_patches: 64, ..config() };
    let mut engine = match NativeEngine::load(NativeConfig { text: text.into(), ..config }) {
        Ok(engine) => engine,
        Err(error) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::InvalidModel | ErrorKind::Unsupported), "{error}");
            return false;
        }
    };
    let Ok(seq) = engine.open(&AdapterSet::none()) else { return true };
    let positions = at(0, 3);
    let step = Step { seq, input: StepInput::Tokens(&[1, 2, 3]), positions: &positions, want: Want::All };
    submit(&mut engine, &[step]);
    if vision.is_some()
        && let Ok(mut job) = engine.begin_image(picture(2, 2, 1))
    {
        while let Ok(ImageProgress::Pending(next)) = engine.advance_image(job) {
            job = next;
        }
    }
    assert!(engine.memory().kv_cache + engine.memory().recurrent_state < 64 << 20);
    true
}

/// Where the metadata and the tensor table end, roughly: the first tensor's data is behind them.
fn header(file: &[u8]) -> usize {
    let gguf = Gguf::from_bytes(file.to_vec()).unwrap();
    let first = gguf.tensors().next().unwrap();
    let data = gguf.tensor_data(first).to_vec();
    file.windows(data.len()).position(|window| window == data).unwrap()
}

#[test]
fn flipped_bits_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let (text, vision) = files();
    let (text_path, vision_path) = (folder.path().join("text.gguf"), folder.path().join("vision.gguf"));
    let mut random = Random::default();
    let (mut loaded, mut refused) = (0, 0);
    for (file, path, other) in [(text, &text_path, vision), (vision, &vision_path, text)] {
        let (header, is_text) = (header(file), path == &text_path);
        let other_path = if is_text { &vision_path } else { &text_path };
        std::fs::write(other_path, other).unwrap();
        for case in 0..1200 {
            let mut bytes = file.to_vec();
            // Mostly the header, where structure is; sometimes the weights.
            let reach = if case % 8 == 0 { bytes.len() } else { header };
            for _ in 0..=random.below(3) {
                bytes[random.below(reach)] ^= 1 << random.below(8);
            }
            std::fs::write(path, &bytes).unwrap();
            let survived = if is_text { survive(path, None) } else { survive(&text_path, Some(&vision_path)) };
            *(if survived { &mut loaded } else { &mut refused }) += 1;
        }
    }
    println!("{loaded} damaged models ran, {refused} were refused");
    assert!(loaded > 100 && refused > 1000);
}

/// A model of every quantized type, and any bytes in the place of all its matrices: scales that are infinite or NaN, too.
#[test]
fn any_weights_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.gguf");
    let mut random = Random::seeded(0xb17e);
    for weight_type in QUANTIZED {
        let file = SyntheticConfig { weight_type, ..wide() }.text().unwrap();
        std::fs::write(&path, &file).unwrap();
        assert!(survive(&path, None), "{weight_type}");
        let gguf = Gguf::from_bytes(file).unwrap();
        assert!(gguf.tensors().any(|info| info.kind == weight_type));
        for _ in 0..4 {
            let mut writer = GgufWriter::with_metadata(gguf.metadata().clone());
            for info in gguf.tensors() {
                let mut bytes = gguf.tensor_data(info).to_vec();
                if info.kind != TensorType::F32 {
                    bytes.iter_mut().for_each(|byte| *byte = random.below(256) as u8);
                }
                writer.add_tensor_bytes(&info.name, &info.dims, info.kind, bytes).unwrap();
            }
            writer.write_to(&path).unwrap();
            assert!(survive(&path, None), "{weight_type}");
        }
    }
}

#[test]
fn truncated_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.gguf");
    let (text, _) = files();
    let mut random = Random::seeded(7);
    for _ in 0..300 {
        std::fs::write(&path, &text[..random.below(text.len())]).unwrap();
        assert!(!survive(&path, None));
    }
    std::fs::remove_file(&path).unwrap();
    let error = NativeEngine::load(NativeConfig { text: path.as_path().into(), ..config() }).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// The tiny text model with one thing changed.
fn altered(change: impl Fn(&mut GgufWriter<'_>, &str) -> bool) -> Vec<u8> {
    let (text, _) = files();
    let gguf = Gguf::from_bytes(text.to_vec()).unwrap();
    let mut writer = GgufWriter::with_metadata(gguf.metadata().clone());
    change(&mut writer, "");
    for info in gguf.tensors() {
        if !change(&mut writer, &info.name) {
            writer.add_tensor_bytes(&info.name, &info.dims, info.kind, gguf.tensor_data(info)).unwrap();
        }
    }
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    file
}

fn refusal(file: Vec<u8>) -> Error {
    NativeEngine::load(NativeConfig { vision: None, ..NativeConfig { text: (&*file.leak()).into(), ..config() } })
        .err()
        .unwrap()
}

#[test]
fn what_does_not_fit_is_named() {
    let with = |key: &'static str, value: u32| {
        refusal(altered(move |writer, name| {
            if name.is_empty() {
                writer.set(key, value);
            }
            false
        }))
    };
    for (key, value, names) in [
        ("qwen35.embedding_length", 64, "token_embd.weight"),
        ("qwen35.feed_forward_length", 63, "ffn_gate"),
        ("qwen35.attention.head_count", 3, "head_count_kv"),
        ("qwen35.attention.head_count", 2, "attn_q.weight"),
        ("qwen35.attention.value_length", 16, "value_length"),
        ("qwen35.rope.dimension_count", 33, "dimension_count"),
        ("qwen35.ssm.group_count", 3, "group_count"),
        ("qwen35.ssm.state_size", 16, "ssm_conv1d"),
        ("qwen35.ssm.inner_size", 3, "inner_size"),
        ("qwen35.ssm.conv_kernel", 5, "ssm_conv1d"),
        ("qwen35.block_count", 5, "blk.4"),
        ("qwen35.block_count", 0, "block_count"),
        ("qwen35.full_attention_interval", 0, "full_attention_interval"),
        ("qwen35.full_attention_interval", 2, "blk.1"),
        ("tokenizer.ggml.eos_token_id", 96, "eos_token_id"),
    ] {
        let error = with(key, value);
        assert_eq!(error.kind(), ErrorKind::InvalidModel, "{key} {value}");
        assert!(error.to_string().contains(names), "{key} {value}: {error}");
    }
    let missing = refusal(altered(|_, name| name == "blk.2.ssm_out.weight"));
    assert!(missing.to_string().contains("blk.2.ssm_out.weight"), "{missing}");
    for kind in [TensorType::MXFP4, TensorType::Q8_1] {
        let unknown = refusal(altered(move |writer, name| {
            let is_it = name == "blk.2.ssm_out.weight";
            if is_it {
                let bytes = vec![0; kind.bytes_for(128 * 32).unwrap() as usize];
                writer.add_tensor_bytes(name, &[128, 32], kind, bytes).unwrap();
            }
            is_it
        }));
        assert_eq!(unknown.kind(), ErrorKind::Unsupported);
        for part in [kind.name(), "blk.2.ssm_out.weight", "IQ4_XS"] {
            assert!(unknown.to_string().contains(part), "{unknown}");
        }
    }
}

#[test]
fn what_this_engine_does_not_compute_is_refused_by_name() {
    let with = |key: &'static str, value: Value| {
        let error = refusal(altered(move |writer, name| {
            if name.is_empty() {
                writer.set(key, value.clone());
            }
            false
        }));
        assert!(error.to_string().contains(key), "{key}: {error}");
        error
    };
    let cases: [(&str, Value, &str); 22] = [
        ("general.architecture", "qwen3next".into(), "qwen3next"),
        ("qwen35.rope.scaling.type", "yarn".into(), "rotary scaling"),
        ("qwen35.rope.scaling.factor", Value::F32(4.0), "rotary scaling"),
        ("qwen35.rope.scaling.factor", Value::F32(f32::NAN), "rotary scaling"),
        ("qwen35.rope.scale_linear", Value::F64(2.0), "rotary scaling"),
        ("qwen35.rope.dimension_sections", vec![3_i32, 3, 1, 1].into(), "fourth"),
        ("qwen35.attention.sliding_window", Value::U32(1024), "sliding"),
        ("qwen35.attention.sliding_window_pattern", vec![true].into(), "sliding"),
        ("qwen35.attention.scale", Value::F32(0.5), "scaled"),
        ("qwen35.attention.clamp_kqv", Value::F32(30.0), "clamped"),
        ("qwen35.attention.max_alibi_bias", Value::F32(8.0), "ALiBi"),
        ("qwen35.attention.kv_lora_rank", Value::U32(512), "latent"),
        ("qwen35.attention.causal", Value::Bool(false), "later tokens"),
        ("qwen35.attention.shared_kv_layers", Value::U32(2), "share"),
        ("qwen35.attn_logit_softcapping", Value::F32(50.0), "capped"),
        ("qwen35.final_logit_softcapping", Value::F32(30.0), "capped"),
        ("qwen35.logit_scale", Value::F32(0.0625), "scaled logits"),
        ("qwen35.embedding_scale", Value::F32(12.0), "scaled embeddings"),
        ("qwen35.residual_scale", Value::F32(1.4), "scaled residuals"),
        ("qwen35.use_parallel_residual", Value::Bool(true), "parallel"),
        ("qwen35.n_deepstack_layers", Value::U32(3), "deepstack"),
        ("qwen35.nextn_predict_layers", Value::U32(2), "2 multi-token"),
    ];
    for (key, value, because) in cases {
        let error = with(key, value);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{key}: {error}");
        assert!(error.to_string().contains(because), "{key}: {error}");
    }
    // What says that nothing is otherwise, loads.
    let file = altered(|writer, name| {
        if name.is_empty() {
            writer.set("qwen35.rope.scaling.type", "none").set("qwen35.rope.scaling.factor", 1.0_f32);
            writer.set("qwen35.attention.sliding_window", 0_u32).set("qwen35.attention.causal", true);
            writer.set("qwen35.attention.scale", 1.0 / 32_f32.sqrt()).set("qwen35.vocab_size", 96_u32);
        }
        false
    });
    NativeEngine::load(NativeConfig { text: (&*file.leak()).into(), ..config() }).unwrap();

    // A tensor that would be passed over.
    for stranger in ["blk.0.attn_qkv.bias", "blk.3.attn_gate.weight", "blk.4.attn_norm.weight", "rope_freqs.weight"] {
        let error = refusal(altered(|writer, name| {
            if name == "output_norm.weight" {
                writer.add_tensor_bytes(stranger, &[1], TensorType::F32, vec![0; 4]).unwrap();
            }
            false
        }));
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(stranger), "{error}");
    }
}

#[test]
fn the_layers_can_be_listed() {
    let listed = |flags: Vec<bool>| {
        altered(move |writer, name| {
            if name.is_empty() {
                writer.set("qwen35.attention.recurrent_layers", flags.clone());
            }
            false
        })
    };
    let file = listed(vec![true, true, true, false]);
    NativeEngine::load(NativeConfig { text: (&*file.leak()).into(), ..config() }).unwrap();
    assert!(refusal(listed(vec![true, true, true, true])).to_string().contains("blk.3"));
    assert!(refusal(listed(vec![true])).to_string().contains("recurrent_layers"));
}

#[test]
fn the_same_seed_makes_the_same_model() {
    let (text, _) = files();
    assert_eq!(SyntheticConfig::tiny().text().unwrap(), text);
    let other = SyntheticConfig { seed: 2, ..SyntheticConfig::tiny() }.text().unwrap();
    assert_ne!(other, text);
}
