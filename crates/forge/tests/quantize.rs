//! GGUF files to smaller ones: etude and the behaviour suite's golden models, in every mix.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind};
use consort_forge::{
    ConvertConfig, Importance, Mix, OutputType, Overwrite, QuantizeConfig, QuantizeReport, Reason, Requantize, Spread,
    convert, mix_types, quantize, quantize_plan,
};
use consort_gguf::{Gguf, GgufWriter, Metadata, TensorInfo, TensorType, dequantize};
use tempfile::TempDir;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn etude() -> PathBuf {
    repository().join("models/etude/gguf/etude-Q8_0.gguf")
}

/// A golden model as GGUF in F32: its text model and its projector.
fn golden(name: &str) -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let goldens = repository().join("crates/behavior/golden");
    let copy = |from: PathBuf| fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    for file in ["config.json", "model.safetensors"] {
        copy(goldens.join(name).join(file));
    }
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        copy(goldens.join("tokenizer").join(file));
    }
    copy(goldens.join("images/preprocessor_config.json"));
    let mut config = ConvertConfig::new(folder.path(), folder.path());
    config.name = Some(name.to_owned());
    (config.text_type, config.mmproj_type) = (OutputType::F32, OutputType::F32);
    let report = convert(&config).unwrap();
    let mut files = vec![report.text.path];
    files.extend(report.mmproj.map(|file| file.path));
    (folder, files)
}

fn run(config: &QuantizeConfig) -> Result<QuantizeReport, Error> {
    quantize(config, &mut |_| {})
}

fn numbers(gguf: &Gguf, info: &TensorInfo) -> Vec<f32> {
    let mut out = vec![0.0; info.elements() as usize];
    dequantize(info.kind, gguf.tensor_data(info), &mut out).unwrap();
    out
}

/// The error of `of` in `changed`, relative to what it was in `original`.
fn error(original: &Gguf, changed: &Gguf, of: &str) -> f64 {
    let before = numbers(original, original.require_tensor(of).unwrap());
    let after = numbers(changed, changed.require_tensor(of).unwrap());
    let squares = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let all = squares(&mut before.iter().copied());
    let lost = squares(&mut before.iter().zip(&after).map(|(x, y)| x - y));
    if all == 0.0 { lost } else { (lost / all).sqrt() }
}

/// What a type may lose of trained weights, relative: half as much again as it loses of normally distributed numbers.
fn allowed(kind: TensorType) -> f64 {
    1.5 * match kind {
        TensorType::F32 => 0.0,
        TensorType::F16 => 0.0003,
        TensorType::BF16 => 0.0017,
        TensorType::Q8_0 => 0.0054,
        TensorType::Q6K => 0.017,
        TensorType::Q5K => 0.034,
        TensorType::Q5_1 => 0.038,
        TensorType::Q5_0 => 0.043,
        TensorType::Q4K => 0.070,
        TensorType::Q4_1 => 0.078,
        TensorType::Q4_0 => 0.086,
        TensorType::IQ4NL => 0.073,
        TensorType::IQ4XS => 0.074,
        TensorType::Q3K => 0.143,
        TensorType::Q2K => 0.263,
        other => panic!("{other} is in no mix"),
    }
}

/// The type that a row of this length can have, written down once more.
fn fallback(wanted: TensorType, row: u64) -> TensorType {
    match wanted.block_len() {
        256 if !row.is_multiple_of(256) => {
            let small = match wanted {
                TensorType::Q6K => TensorType::Q8_0,
                TensorType::Q5K => TensorType::Q5_1,
                TensorType::Q4K => TensorType::Q5_0,
                _ => TensorType::IQ4NL,
            };
            if row.is_multiple_of(32) { small } else { TensorType::F16 }
        }
        32 if !row.is_multiple_of(32) => TensorType::F16,
        _ => wanted,
    }
}

#[test]
fn every_mix_of_every_golden_model_and_etude() {
    let mut fallbacks = 0;
    for name in ["plain", "untied", "grouped2", "grouped3", "heads", "deep", "etude"] {
        let (folder, files) = if name == "etude" {
            let folder = tempfile::tempdir().unwrap();
            (folder, vec![etude(), repository().join("models/etude/gguf/mmproj-etude-F16.gguf")])
        } else {
            golden(name)
        };
        for file in files {
            let original = Gguf::open(&file).unwrap();
            for mix in Mix::all() {
                let output = folder.path().join(format!("{mix}.gguf"));
                let mut config = QuantizeConfig::new(&file, &output, mix);
                config.overwrite = Overwrite::Replace;
                let (mut last, mut total) = (0, 0);
                let report = quantize(&config, &mut |progress| {
                    assert!(progress.done > last && original.tensor(progress.tensor).is_some());
                    (last, total) = (progress.done, progress.total);
                })
                .unwrap();
                assert_eq!((last, total), (total, report.plan.bytes_before()), "the progress ends at its end");
                assert_eq!(quantize_plan(&config).unwrap(), report.plan);
                let changed = Gguf::open(&output).unwrap();
                check(&format!("{name} {mix}"), mix, &original, &changed, &report);
                fallbacks +=
                    report.plan.tensors.iter().filter(|tensor| matches!(tensor.reason, Reason::Fallback(_))).count();
            }
        }
    }
    assert!(fallbacks > 100, "only {fallbacks} tensors fell back: the models no longer cover that");
}

fn check(name: &str, mix: Mix, original: &Gguf, changed: &Gguf, report: &QuantizeReport) {
    for (key, value) in changed.metadata().iter() {
        match key {
            "general.file_type" => assert_eq!(changed.metadata().require_u32(key).unwrap(), mix.file_type()),
            "general.quantization_version" => assert_eq!(changed.metadata().require_u32(key).unwrap(), 2),
            _ => assert_eq!(original.metadata().get(key), Some(value), "{name}: {key}"),
        }
    }
    assert!(original.metadata().iter().all(|(key, _)| changed.metadata().contains(key)), "{name}: a key is gone");
    assert_eq!(report.file.bytes, changed.file_len());
    assert_eq!(report.file.tensors, original.tensors().len());
    let tied = original.tensor("output.weight").is_none();
    for ((before, after), planned) in original.tensors().zip(changed.tensors()).zip(&report.plan.tensors) {
        let name = format!("{name}: {} {:?} {} to {}", before.name, before.dims, before.kind, after.kind);
        assert_eq!((&before.name, &before.dims), (&after.name, &after.dims), "{name}");
        assert_eq!((&planned.name, planned.from, planned.to), (&before.name, before.kind, after.kind));
        assert_eq!((planned.bytes_before, planned.bytes_after), (before.byte_len(), after.byte_len()), "{name}");
        let is_matrix = before.dims.iter().skip(1).any(|&dim| dim > 1) && before.name.ends_with(".weight");
        let delicate =
            ["ssm_conv1d", "patch_embd", "position_embd", "_norm"].into_iter().any(|part| before.name.contains(part));
        if !is_matrix || delicate {
            assert_eq!((after.kind, planned.reason), (before.kind, Reason::Kept), "{name}");
            assert_eq!(original.tensor_data(before), changed.tensor_data(after), "{name}");
            continue;
        }
        match planned.reason {
            Reason::Mix => assert!(after.kind.bytes_for(before.row_len()).is_some()),
            Reason::Fallback(wanted) => {
                assert_ne!(before.row_len() % wanted.block_len(), 0, "{name}");
                assert_eq!(after.kind, fallback(wanted, before.row_len()), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
        let is_output = before.name == "output.weight" || tied && before.name == "token_embd.weight";
        let wanted = if let Reason::Fallback(wanted) = planned.reason { wanted } else { after.kind };
        if is_output && mix.base().block_len() > 1 {
            assert_eq!(wanted, if mix == Mix::Q8_0 { TensorType::Q8_0 } else { TensorType::Q6K }, "{name}");
        }
        let uniform = matches!(mix, Mix::F32 | Mix::F16 | Mix::BF16 | Mix::Q8_0);
        if uniform || before.name.contains("ffn_up") || before.name.contains("attn_k.") {
            assert_eq!(wanted, mix.base(), "{name}");
        }
        // No tensor of a mix is coarser than the mix's name.
        let bits = |kind: TensorType| kind.block_bytes() as f64 / kind.block_len() as f64;
        assert!(bits(wanted) >= bits(mix.base()), "{name}");
        let error = error(original, changed, &before.name);
        assert!(error <= allowed(after.kind), "{name}: lost {error:.4}");
    }
}

/// Etude's layers, one by one, for the mixes that make the most of differences: as llama.cpp's rules have them.
#[test]
fn etude_gets_the_types_of_published_files() {
    let folder = tempfile::tempdir().unwrap();
    let types = |mix| {
        let config = QuantizeConfig::new(etude(), folder.path().join("new.gguf"), mix);
        let plan = quantize_plan(&config).unwrap();
        plan.tensors.into_iter().map(|tensor| (tensor.name, tensor.to)).collect::<HashMap<_, _>>()
    };
    let of = |mix, part: &str| {
        let types = types(mix);
        let mut layers: Vec<_> = types
            .iter()
            .filter(|(name, _)| name.ends_with(&format!("{part}.weight")))
            .map(|(name, kind)| (name.split('.').nth(1).unwrap().parse::<usize>().unwrap_or(0), kind.name()))
            .collect();
        layers.sort_unstable();
        layers.into_iter().map(|(_, kind)| kind).collect::<Vec<_>>().join(" ")
    };
    // Layers 2 and 4 of five: the last, and the third from where the first eighth (of none) ends.
    assert_eq!(of(Mix::Q4KM, "ffn_down"), "Q4_K Q4_K Q6_K Q4_K Q6_K");
    assert_eq!(of(Mix::Q5KM, "ffn_down"), "Q5_K Q5_K Q6_K Q5_K Q6_K");
    // Three layers have queries, keys and values in one matrix, two have them apart; they count as one row of five.
    assert_eq!(of(Mix::Q4KM, "attn_qkv"), "Q4_K Q4_K Q6_K");
    assert_eq!(of(Mix::Q4KM, "attn_v"), "Q4_K Q6_K");
    assert_eq!(of(Mix::Q4KS, "attn_qkv"), "Q5_K Q5_K Q5_K");
    assert_eq!(of(Mix::Q3KM, "attn_qkv"), "Q5_K Q5_K Q4_K");
    assert_eq!(of(Mix::Q3KM, "ffn_down"), "Q4_K Q4_K Q4_K Q4_K Q4_K");
    assert_eq!(of(Mix::Q3KL, "ffn_down"), "Q5_K Q5_K Q5_K Q5_K Q5_K");
    assert_eq!(of(Mix::Q3KS, "ffn_down"), "Q3_K Q3_K Q3_K Q3_K Q3_K");
    assert_eq!(of(Mix::Q2K, "attn_output"), "Q3_K Q3_K");
    assert_eq!(of(Mix::Q2K, "ffn_gate"), "Q2_K Q2_K Q2_K Q2_K Q2_K");
    assert_eq!(of(Mix::Q2K, "ssm_alpha"), "Q8_0 Q8_0 Q8_0");
    assert_eq!(types(Mix::Q4KM)["token_embd.weight"], TensorType::Q6K);
}

fn q4_0(folder: &TempDir) -> QuantizeConfig {
    QuantizeConfig::new(etude(), folder.path().join("new.gguf"), Mix::Q4_0)
}

#[test]
fn overrides_and_uniformity() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = q4_0(&folder);
    config.overrides =
        ["blk\\.1\\.ffn_down=f16", "ffn_down=q6_k", "norm|ffn_up=Q2_K"].map(|text| text.parse().unwrap()).into();
    let plan = quantize_plan(&config).unwrap();
    for tensor in &plan.tensors {
        let expected = match tensor.name.as_str() {
            "blk.1.ffn_down.weight" => TensorType::F16,
            name if name.contains("ffn_down") => TensorType::Q6K,
            name if name.contains("ffn_up") => TensorType::Q2K,
            name if name.contains("norm") => TensorType::F32,
            "token_embd.weight" => TensorType::Q6K,
            _ => continue,
        };
        assert_eq!(tensor.to, expected, "{}", tensor.name);
        assert_eq!(tensor.reason == Reason::Override, tensor.name.contains("ffn_"), "{}", tensor.name);
        assert!(!tensor.name.contains("ffn_gate"));
    }

    let mut config = q4_0(&folder);
    config.spread = Spread::Uniform;
    let plan = quantize_plan(&config).unwrap();
    assert!(
        plan.tensors
            .iter()
            .all(|tensor| tensor.to == if tensor.reason == Reason::Kept { tensor.from } else { TensorType::Q4_0 })
    );
    assert!(plan.tensors.iter().any(|tensor| tensor.name == "token_embd.weight" && tensor.reason == Reason::Mix));

    config.overrides = vec!["no_such_tensor=Q8_0".parse().unwrap()];
    let error = quantize_plan(&config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("no_such_tensor=Q8_0"), "{error}");
    for (text, kind) in [
        ("ffn_down", ErrorKind::InvalidConfig),
        ("=Q8_0", ErrorKind::InvalidConfig),
        ("ffn_down=Q9_0", ErrorKind::InvalidConfig),
        ("(=Q8_0", ErrorKind::InvalidConfig),
        ("ffn_down=IQ2_XS", ErrorKind::Unsupported),
    ] {
        assert_eq!(text.parse::<consort_forge::Override>().unwrap_err().kind(), kind, "{text}");
    }
}

#[test]
fn what_must_not_be_done_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = q4_0(&folder);
    run(&first).unwrap();
    let refused = |config: &QuantizeConfig, because: &str| {
        let error = run(config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains(because), "{error}");
    };
    refused(&first, "there already");
    let mut onto_itself = QuantizeConfig::new(&first.output, &first.output, Mix::Q8_0);
    onto_itself.overwrite = Overwrite::Replace;
    refused(&onto_itself, "output is the input");

    let mut twice = QuantizeConfig::new(&first.output, folder.path().join("twice.gguf"), Mix::Q3KS);
    refused(&twice, "quantized to Q4_0 already");
    assert!(!twice.output.exists());
    twice.requantize = Requantize::Allow;
    run(&twice).unwrap();
    // Back to plain numbers loses nothing, so nobody has to allow it.
    let plain = QuantizeConfig::new(&first.output, folder.path().join("plain.gguf"), Mix::F32);
    run(&plain).unwrap();
    let (quantized, plain) = (Gguf::open(&first.output).unwrap(), Gguf::open(&plain.output).unwrap());
    for info in plain.tensors() {
        assert_eq!(error(&quantized, &plain, &info.name), 0.0, "{}", info.name);
    }

    let missing = QuantizeConfig::new(folder.path().join("missing.gguf"), folder.path().join("x.gguf"), Mix::Q8_0);
    assert_eq!(run(&missing).unwrap_err().kind(), ErrorKind::NotFound);
}

/// A number that is not finite stops everything: the error names the tensor, and no file is left.
#[test]
fn damaged_weights_are_named_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = GgufWriter::new("toy");
    let mut values = vec![0.5_f32; 64 * 600];
    values[300 * 64] = f32::NAN;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    writer.add_tensor_bytes("blk.0.ffn_up.weight", &[64, 600], TensorType::F32, bytes).unwrap();
    let input = folder.path().join("bad.gguf");
    writer.write_to(&input).unwrap();
    let config = QuantizeConfig::new(&input, folder.path().join("out.gguf"), Mix::Q4_0);
    let error = run(&config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidModel);
    let text = error.to_string();
    assert!(text.contains("blk.0.ffn_up.weight") && text.contains("NaN"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");
}

/// The bits do not depend on how many threads there are, nor on how a model is cut into files.
#[test]
fn threads_and_shards_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = Gguf::open(&etude()).unwrap();
    let mut writer = GgufWriter::with_metadata(gguf.metadata().clone());
    for info in gguf.tensors() {
        writer.add_tensor_bytes(&info.name, &info.dims, info.kind, gguf.tensor_data(info)).unwrap();
    }
    let limit = consort_gguf::ShardLimit::Bytes(1_000_000.try_into().unwrap());
    let shards = writer.write_shards(&folder.path().join("etude.gguf"), limit).unwrap();
    assert!(shards.len() > 2);
    let made = |input: &Path, threads: usize| {
        let output = folder.path().join(format!("{threads}.gguf"));
        let config = QuantizeConfig::new(input, &output, Mix::Q4KM);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&config)).unwrap();
        fs::read(output).unwrap()
    };
    let one = made(&etude(), 1);
    assert!(one == made(&etude(), 5));
    assert!(one == made(&shards[1], 2));
}

/// Writes an importance matrix as llama-imatrix does: `(name, columns, sums, counts)`.
fn write_imatrix(path: &Path, kind: &str, entries: &[(&str, u64, Vec<f32>, Vec<f32>)]) {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let mut metadata = Metadata::new();
    metadata.insert("general.type", kind);
    metadata.insert("imatrix.datasets", vec!["calibration.txt".to_owned()]);
    metadata.insert("imatrix.chunk_count", 7_u32);
    metadata.insert("imatrix.chunk_size", 512_u32);
    let mut writer = GgufWriter::with_metadata(metadata);
    for (name, columns, sums, counts) in entries {
        let rows = sums.len() as u64 / columns;
        writer.add_tensor_bytes(format!("{name}.in_sum2"), &[*columns, rows], TensorType::F32, bytes(sums)).unwrap();
        writer
            .add_tensor_bytes(format!("{name}.counts"), &[1, counts.len() as u64], TensorType::F32, bytes(counts))
            .unwrap();
    }
    writer.write_to(path).unwrap();
}

/// Columns that matter more come back better, each expert's by its own importance.
#[test]
fn importance_is_read_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let (columns, rows, experts) = (256_usize, 16_usize, 3_usize);
    let mut state = 7_u32;
    let values: Vec<f32> = (0..columns * rows * experts)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut writer = GgufWriter::new("toy");
    let name = "blk.0.ffn_up_exps.weight";
    let dims = [columns as u64, rows as u64, experts as u64];
    writer.add_tensor_bytes(name, &dims, TensorType::F32, bytes.clone()).unwrap();
    writer.add_tensor_bytes("blk.0.attn_k.weight", &dims[..2], TensorType::F32, &bytes[..columns * rows * 4]).unwrap();
    let input = folder.path().join("toy.gguf");
    writer.write_to(&input).unwrap();

    // Expert 0 lives on every fourth column, expert 1 on those after them, expert 2 met no token.
    let loud = |expert: usize, column: usize| expert < 2 && column % 4 == expert;
    let sums: Vec<f32> = (0..experts * columns)
        .map(|at| match at / columns {
            2 => 0.0,
            expert if loud(expert, at % columns) => 50_000.0,
            _ => 500.0,
        })
        .collect();
    let imatrix = folder.path().join("imatrix.gguf");
    write_imatrix(&imatrix, "imatrix", &[(name, columns as u64, sums.clone(), vec![500.0, 500.0, 0.0])]);

    let made = |importance: Option<&Path>| {
        let output = folder.path().join(format!("{}.gguf", importance.is_some()));
        let mut config = QuantizeConfig::new(&input, &output, Mix::Q3KS);
        config.importance = importance.map(Path::to_owned);
        let report = run(&config).unwrap();
        let weighted: Vec<_> = report.plan.tensors.iter().map(|tensor| tensor.weighted).collect();
        assert_eq!(weighted, [importance.is_some(), false]);
        let gguf = Gguf::open(&output).unwrap();
        let info = gguf.require_tensor(name).unwrap();
        (numbers(&gguf, info), gguf)
    };
    let ((plain, without), (weighted, with)) = (made(None), made(Some(&imatrix)));
    let lost = |changed: &[f32], expert: usize| {
        let size = columns * rows;
        (expert * size..(expert + 1) * size)
            .filter(|at| loud(expert, at % columns))
            .map(|at| f64::from(values[at] - changed[at]).powi(2))
            .sum::<f64>()
    };
    for expert in [0, 1] {
        let (with, without) = (lost(&weighted, expert), lost(&plain, expert));
        assert!(with < 0.9 * without, "expert {expert}: {with} with importance, {without} without");
    }
    assert_eq!(weighted[2 * columns * rows..], plain[2 * columns * rows..], "an expert without tokens is not weighted");
    assert!(!without.metadata().contains("quantize.imatrix.file"));
    assert_eq!(with.metadata().require_str("quantize.imatrix.file").unwrap(), "imatrix.gguf");
    assert_eq!(with.metadata().require_str("quantize.imatrix.dataset").unwrap(), "calibration.txt");
    assert_eq!(with.metadata().require_u32("quantize.imatrix.entries_count").unwrap(), 1);
    assert_eq!(with.metadata().require_u32("quantize.imatrix.chunks_count").unwrap(), 7);

    // What does not fit this model, or is no importance matrix.
    let refused = |kind: &str, entries: &[(&str, u64, Vec<f32>, Vec<f32>)], because: &str| {
        let path = folder.path().join("bad.gguf");
        write_imatrix(&path, kind, entries);
        let mut config = QuantizeConfig::new(&input, folder.path().join("never.gguf"), Mix::Q3KS);
        config.importance = Some(path);
        let error = run(&config).unwrap_err();
        assert!(error.to_string().contains(because), "{error}");
        assert!(!config.output.exists());
    };
    refused("model", &[], "no importance matrix");
    refused("imatrix", &[], "knows none");
    refused("imatrix", &[("other.weight", 256, vec![1.0; 256], vec![1.0])], "knows none");
    refused("imatrix", &[(name, 256, vec![1.0; 256], vec![1.0])], "another model");
    refused("imatrix", &[(name, 128, vec![1.0; 384], vec![1.0; 3])], "another model");
    refused("imatrix", &[(name, 256, vec![1.0; 768], vec![1.0; 2])], "2 counts");
    refused("imatrix", &[(name, 256, vec![-1.0; 768], vec![1.0; 3])], "-1");
    refused("imatrix", &[(name, 256, vec![f32::NAN; 768], vec![1.0; 3])], "NaN");
    let legacy = folder.path().join("imatrix.dat");
    fs::write(&legacy, [1_u8; 64]).unwrap();
    let error = Importance::open(&legacy).unwrap_err();
    assert!(error.to_string().contains("--output-format gguf"), "{error}");
    let file = fs::read(&imatrix).unwrap();
    for end in (0..file.len()).step_by(61) {
        Gguf::from_bytes(file[..end].to_vec()).and_then(|gguf| Importance::read(&gguf)).unwrap_err();
    }
}

#[test]
fn a_mix_by_names_alone_is_the_plan_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = Gguf::open(&etude()).unwrap();
    let shapes: Vec<(String, Vec<u64>)> = gguf.tensors().map(|info| (info.name.clone(), info.dims.clone())).collect();
    for mix in Mix::all() {
        let plan = quantize_plan(&QuantizeConfig::new(etude(), folder.path().join("out.gguf"), mix)).unwrap();
        let types = mix_types(mix, &shapes, 2);
        assert_eq!(types.len(), plan.tensors.len());
        for (kind, planned) in types.into_iter().zip(plan.tensors) {
            let wanted = (planned.reason != Reason::Kept).then_some(planned.to);
            assert_eq!(kind, wanted, "{mix}: {}", planned.name);
        }
    }
}
