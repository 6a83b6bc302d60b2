//! Mixtures of experts and draft blocks as files: what is missing, misshapen or contradictory is named, and what stands in
//! several tensors or files computes as one.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::num::NonZeroUsize;

use common::*;
use consort_core::*;
use consort_gguf::{Gguf, GgufWriter, Metadata, ShardLimit, TensorType, Value};
use consort_native::{ModelSource, NativeConfig, NativeEngine};

const HIDDEN: u64 = 32;
const EXPERTS: u64 = 4;
const WIDTH: u64 = 32;
const SHARED: u64 = 64;

/// A tensor in the making.
#[derive(Clone)]
struct Made {
    name: String,
    dims: Vec<u64>,
    kind: TensorType,
    data: Vec<u8>,
}

/// A file in the making: metadata and tensors that a test may change.
#[derive(Clone)]
struct Model {
    metadata: Metadata,
    tensors: Vec<Made>,
}

/// Numbers around 0 of about the size that keeps a unit vector's scale, different for each name.
fn drawn(name: &str, dims: &[u64], mean: f32) -> Made {
    let mut state =
        name.bytes().fold(0x9e37_79b9_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let scale = if mean == 0.0 { 1.7 / (dims[0] as f32).sqrt() } else { 0.2 };
    let count: u64 = dims.iter().product();
    let data = (0..count).flat_map(|_| (mean + scale * next()).to_le_bytes()).collect();
    Made { name: name.to_owned(), dims: dims.to_vec(), kind: TensorType::F32, data }
}

/// The experts of a block.
fn experts(block: usize) -> Vec<Made> {
    let tensor = |name: &str, dims: &[u64]| drawn(&format!("blk.{block}.{name}.weight"), dims, 0.0);
    vec![
        tensor("ffn_gate_inp", &[HIDDEN, EXPERTS]),
        tensor("ffn_gate_exps", &[HIDDEN, WIDTH, EXPERTS]),
        tensor("ffn_up_exps", &[HIDDEN, WIDTH, EXPERTS]),
        tensor("ffn_down_exps", &[WIDTH, HIDDEN, EXPERTS]),
        tensor("ffn_gate_inp_shexp", &[HIDDEN, 1]),
        tensor("ffn_gate_shexp", &[HIDDEN, SHARED]),
        tensor("ffn_up_shexp", &[HIDDEN, SHARED]),
        tensor("ffn_down_shexp", &[SHARED, HIDDEN]),
    ]
}

/// The tiny model as it is.
fn tiny() -> Model {
    let gguf = Gguf::from_bytes(files().0.to_vec()).unwrap();
    let tensors = gguf
        .tensors()
        .map(|info| Made {
            name: info.name.clone(),
            dims: info.dims.clone(),
            kind: info.kind,
            data: gguf.tensor_data(info).to_vec(),
        })
        .collect();
    Model { metadata: gguf.metadata().clone(), tensors }
}

/// The tiny model with four experts, two of them a token, in place of each network.
fn mixture() -> Model {
    let dense = tiny();
    let mut metadata = Metadata::new();
    for (key, value) in dense.metadata.iter().filter(|(key, _)| *key != "qwen35.feed_forward_length") {
        metadata.insert(key.replace("qwen35.", "qwen35moe."), value.clone());
    }
    metadata.insert("general.architecture", "qwen35moe");
    metadata.insert("qwen35moe.expert_count", EXPERTS as u32);
    metadata.insert("qwen35moe.expert_used_count", 2_u32);
    metadata.insert("qwen35moe.expert_feed_forward_length", WIDTH as u32);
    metadata.insert("qwen35moe.expert_shared_feed_forward_length", SHARED as u32);
    let mut tensors: Vec<Made> = dense.tensors.into_iter().filter(|tensor| !tensor.name.contains(".ffn_")).collect();
    tensors.extend((0..4).flat_map(experts));
    Model { metadata, tensors }
}

impl Model {
    /// Adds a block that drafts.
    fn drafting(mut self) -> Self {
        let architecture = self.metadata.require_str("general.architecture").unwrap().to_owned();
        self.metadata.insert(format!("{architecture}.block_count"), 5_u32);
        self.metadata.insert(format!("{architecture}.nextn_predict_layers"), 1_u32);
        // The layer is as the attention layer is.
        let twin: Vec<Made> = self
            .tensors
            .iter()
            .filter_map(|tensor| {
                let rest = tensor.name.strip_prefix("blk.3.")?;
                Some(Made { name: format!("blk.4.{rest}"), ..tensor.clone() })
            })
            .collect();
        self.tensors.extend(twin);
        self.tensors.push(drawn("blk.4.nextn.eh_proj.weight", &[2 * HIDDEN, HIDDEN], 0.0));
        for norm in ["enorm", "hnorm", "shared_head_norm"] {
            self.tensors.push(drawn(&format!("blk.4.nextn.{norm}.weight"), &[HIDDEN], 1.0));
        }
        self
    }

    fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.metadata.insert(key, value);
        self
    }

    fn without(mut self, name: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| tensor.name != name);
        assert_eq!(self.tensors.len() + 1, before, "{name}");
        self
    }

    fn with(mut self, tensor: Made) -> Self {
        self.tensors.retain(|other| other.name != tensor.name);
        self.tensors.push(tensor);
        self
    }

    fn writer(&self) -> GgufWriter<'_> {
        let mut writer = GgufWriter::with_metadata(self.metadata.clone());
        for tensor in &self.tensors {
            writer.add_tensor_bytes(&tensor.name, &tensor.dims, tensor.kind, &tensor.data[..]).unwrap();
        }
        writer
    }

    fn load(&self) -> Result<NativeEngine> {
        let mut file = Vec::new();
        self.writer().write(&mut file).unwrap();
        load(ModelSource::Static(file.leak()), 1)
    }

    fn refusal(&self) -> Error {
        self.load().err().unwrap()
    }
}

fn load(text: ModelSource, threads: usize) -> Result<NativeEngine> {
    NativeEngine::load(NativeConfig { text, vision: None, threads: NonZeroUsize::new(threads), ..config() })
}

fn run(engine: &mut NativeEngine, tokens: &[TokenId]) -> Vec<f32> {
    let seq = common::open(engine);
    let logits = feed(engine, seq, 0, tokens);
    engine.release(seq);
    logits
}

#[test]
fn batches_chunks_and_threads_do_not_change_a_bit() {
    let mut one = mixture().load().unwrap();
    let text = tokens(1, 90);
    let whole = run(&mut one, &text);
    assert!(whole.iter().all(|logit| logit.is_finite()));
    for cut in [1, 2, 31, 32, 64, 89] {
        let seq = common::open(&mut one);
        let mut parts = feed(&mut one, seq, 0, &text[..cut]);
        parts.extend(feed(&mut one, seq, cut, &text[cut..]));
        assert!(parts == whole, "cut after {cut}");
    }
    let mut file = Vec::new();
    mixture().writer().write(&mut file).unwrap();
    let file: &'static [u8] = file.leak();
    for threads in [2, 3, 8] {
        let mut several = load(ModelSource::Static(file), threads).unwrap();
        assert!(run(&mut several, &text) == whole, "{threads} threads");
    }
    // Sequences that share experts in one batch.
    let texts: Vec<Vec<TokenId>> = (0..5).map(|seed| tokens(seed + 2, 20 + seed as usize)).collect();
    let alone: Vec<Vec<f32>> = texts.iter().map(|text| run(&mut one, text)).collect();
    let positions: Vec<Vec<Position>> = texts.iter().map(|text| at(0, text.len())).collect();
    let sequences: Vec<SeqId> = texts.iter().map(|_| common::open(&mut one)).collect();
    let steps: Vec<Step<'_>> = (0..5)
        .map(|index| Step {
            seq: sequences[index],
            input: StepInput::Tokens(&texts[index]),
            positions: &positions[index],
            want: Want::All,
        })
        .collect();
    for (index, outcome) in submit(&mut one, &steps).into_iter().enumerate() {
        assert!(logits(outcome) == alone[index], "sequence {index}");
    }
}

#[test]
fn gate_and_up_may_stand_in_one_tensor() {
    let apart = mixture();
    let mut together = apart.clone();
    for block in 0..4 {
        let take = |model: &Model, part: &str| {
            let name = format!("blk.{block}.ffn_{part}_exps.weight");
            model.tensors.iter().find(|tensor| tensor.name == name).unwrap().clone()
        };
        let (gate, up) = (take(&together, "gate"), take(&together, "up"));
        let each = gate.data.len() / EXPERTS as usize;
        let data =
            gate.data.chunks(each).zip(up.data.chunks(each)).flat_map(|(gate, up)| [gate, up].concat()).collect();
        let both = Made {
            name: format!("blk.{block}.ffn_gate_up_exps.weight"),
            dims: vec![HIDDEN, 2 * WIDTH, EXPERTS],
            data,
            ..gate.clone()
        };
        together = together.without(&gate.name).without(&up.name).with(both);
    }
    let text = tokens(4, 40);
    assert!(run(&mut apart.load().unwrap(), &text) == run(&mut together.load().unwrap(), &text));
    // Both forms at once contradict each other.
    let error = together.with(experts(2).remove(1)).refusal();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("blk.2.ffn_gate_exps.weight"), "{error}");
}

#[test]
fn every_expert_can_be_chosen_and_only_the_chosen_ones_matter() {
    let text = tokens(6, 60);
    let before = run(&mut mixture().load().unwrap(), &text);
    let mut changed_by = Vec::new();
    for expert in 0..EXPERTS as usize {
        let mut model = mixture();
        let down = model.tensors.iter_mut().find(|tensor| tensor.name == "blk.3.ffn_down_exps.weight").unwrap();
        let each = down.data.len() / EXPERTS as usize;
        down.data[expert * each..][..each].fill(0);
        let after = run(&mut model.load().unwrap(), &text);
        let rows = before.chunks(96).zip(after.chunks(96)).filter(|(before, after)| before != after).count();
        assert!(rows > 0 && rows < text.len(), "expert {expert} matters to {rows} of {} tokens", text.len());
        changed_by.push(rows);
    }
    assert_eq!(changed_by.iter().sum::<usize>(), 2 * text.len(), "two experts a token: {changed_by:?}");
}

#[test]
fn shards_and_several_files_compute_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = mixture().drafting();
    let (text, whole) = (tokens(3, 30), folder.path().join("whole.gguf"));
    model.writer().write_to(&whole).unwrap();
    let mut one = load(whole.into(), 1).unwrap();
    let expected = run(&mut one, &text);
    let limit = ShardLimit::Tensors(NonZeroUsize::new(20).unwrap());
    let shards = model.writer().write_shards(&folder.path().join("m.gguf"), limit).unwrap();
    assert!(shards.len() > 3);
    let mut sharded = load(ModelSource::Path(shards[1].clone()), 1).unwrap();
    assert!(run(&mut sharded, &text) == expected);
    assert_eq!(sharded.memory().weights, one.memory().weights);
    assert_eq!(sharded.info().parameters, one.info().parameters);
    assert_ne!(sharded.info().digest, one.info().digest, "the digest covers the files");
    // A weight of the last shard is part of what the model is.
    let last = shards.last().unwrap();
    let mut bytes = std::fs::read(last).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    std::fs::remove_file(last).unwrap();
    std::fs::write(last, bytes).unwrap();
    let other = load(ModelSource::Path(shards[0].clone()), 1).unwrap();
    assert_ne!(sharded.info().digest, other.info().digest);

    // The draft block in a file of its own.
    let (trunk, drafts) = (folder.path().join("trunk.gguf"), folder.path().join("drafts.gguf"));
    let part = |block: bool| {
        let is_of = |tensor: &&Made| tensor.name.starts_with("blk.4.") == block;
        Model { metadata: model.metadata.clone(), tensors: model.tensors.iter().filter(is_of).cloned().collect() }
    };
    part(false).writer().write_to(&trunk).unwrap();
    part(true).writer().write_to(&drafts).unwrap();
    let mut both = load(ModelSource::Paths(vec![trunk.clone(), drafts]), 1).unwrap();
    assert!(run(&mut both, &text) == expected);
    assert_eq!(both.drafts(&text).unwrap(), one.drafts(&text).unwrap());
    let error = load(ModelSource::Path(trunk), 1).err().unwrap();
    assert!(error.to_string().contains("blk.4."), "{error}");
}

#[test]
fn bad_mixtures_are_refused_by_name() {
    let set = |key: &str, value: u32| mixture().set(&format!("qwen35moe.{key}"), value).refusal();
    let reshaped = |name: &str, dims: &[u64]| mixture().with(drawn(name, dims, 0.0)).refusal();
    let mut cases = vec![
        (set("expert_count", 0), "expert_count"),
        (set("expert_used_count", 0), "expert_used_count"),
        (set("expert_used_count", 5), "5 of 4 experts"),
        (set("expert_used_count", u32::MAX), "expert_used_count"),
        (set("expert_count", 1 << 20), "expert_count"),
        (set("expert_count", u32::MAX), "expert_count"),
        (set("expert_count", 3), "blk.0.ffn_"),
        (set("expert_feed_forward_length", 16), "_exps.weight"),
        (set("expert_feed_forward_length", 0), "expert_feed_forward_length"),
        (set("expert_shared_feed_forward_length", 32), "_shexp.weight"),
        (reshaped("blk.1.ffn_gate_inp.weight", &[HIDDEN, EXPERTS + 1]), "blk.1.ffn_gate_inp.weight"),
        (reshaped("blk.2.ffn_up_exps.weight", &[HIDDEN, WIDTH * EXPERTS]), "blk.2.ffn_up_exps.weight"),
        (reshaped("blk.2.ffn_down_exps.weight", &[HIDDEN, WIDTH / 2, EXPERTS]), "blk.2.ffn_down_exps.weight"),
        (reshaped("blk.0.ffn_gate_inp_shexp.weight", &[HIDDEN, 2]), "blk.0.ffn_gate_inp_shexp.weight"),
    ];
    for tensor in experts(3) {
        let error = mixture().without(&tensor.name).refusal();
        assert!(error.to_string().contains(&tensor.name), "{error}");
        cases.push((error, "blk.3.ffn_"));
    }
    for (error, because) in cases {
        assert_eq!(error.kind(), ErrorKind::InvalidModel, "{error}");
        assert!(error.to_string().contains(because), "{error} does not say {because:?}");
    }
    let key = |key: &str, value: Value| (mixture().set(&format!("qwen35moe.{key}"), value).refusal(), key.to_owned());
    for (error, because) in [
        key("expert_gating_func", Value::U32(2)),
        key("expert_weights_norm", Value::Bool(false)),
        key("expert_weights_scale", Value::F32(2.5)),
        key("expert_group_count", Value::U32(8)),
        key("expert_shared_count", Value::U32(2)),
        key("leading_dense_block_count", Value::U32(1)),
        key("router_logit_softcapping", Value::F32(30.0)),
        key("swiglu_clamp_exp", vec![1.0_f32].into()),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(&because), "{error}");
    }
    let error = mixture().with(drawn("blk.1.exp_probs_b.bias", &[EXPERTS], 0.0)).refusal();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("blk.1.exp_probs_b.bias"), "{error}");
    // What the format says of a softmax router changes nothing.
    let said = mixture().set("qwen35moe.expert_gating_func", 1_u32).set("qwen35moe.expert_weights_norm", true);
    said.set("qwen35moe.expert_shared_count", 1_u32).load().unwrap();
}

#[test]
fn a_router_of_no_numbers_does_no_harm() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let mut model = mixture();
        for name in ["blk.0.ffn_gate_inp.weight", "blk.2.ffn_gate_inp_shexp.weight"] {
            let tensor = model.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
            tensor.data[..4].copy_from_slice(&bad.to_le_bytes());
        }
        let mut engine = model.load().unwrap();
        assert_eq!(run(&mut engine, &tokens(1, 9)).len(), 9 * 96);
    }
}

#[test]
fn bad_draft_blocks_are_refused_by_name() {
    for model in [tiny().drafting(), mixture().drafting()] {
        let engine = model.load().unwrap();
        assert!(engine.drafts_tokens());
        assert_eq!(engine.info().layers, 4);
        let bytes: usize = model.tensors.iter().map(|tensor| tensor.data.len()).sum();
        assert_eq!(engine.memory().weights, bytes as u64, "the block is counted");
        let block: Vec<Made> =
            model.tensors.iter().filter(|tensor| tensor.name.starts_with("blk.4.")).cloned().collect();
        assert!(block.len() >= 15);
        for tensor in block {
            let missing = model.clone().without(&tensor.name);
            if tensor.name.ends_with("shared_head_norm.weight") {
                // Then the model's last norm is the block's too.
                missing.load().unwrap().drafts(&[1, 2, 3]).unwrap();
            } else {
                let error = missing.refusal();
                assert_eq!(error.kind(), ErrorKind::InvalidModel, "{error}");
                assert!(error.to_string().contains(&tensor.name), "{error}");
            }
            let mut dims = tensor.dims.clone();
            dims[0] /= 2;
            let error = model.clone().with(drawn(&tensor.name, &dims, 0.0)).refusal();
            assert!(error.to_string().contains(&tensor.name) && error.kind() == ErrorKind::InvalidModel, "{error}");
        }
        // Tables of its own are read in place of the model's.
        let shared = engine.drafts(&[5, 6, 7]).unwrap();
        for table in ["embed_tokens", "shared_head_head"] {
            let own = model.clone().with(drawn(&format!("blk.4.nextn.{table}.weight"), &[HIDDEN, 96], 0.0));
            let own = own.load().unwrap().drafts(&[5, 6, 7]).unwrap();
            assert!(own.model == shared.model && own.drafts != shared.drafts, "{table}");
        }
    }
    // Without the key that announces it, the block is no part of the model.
    let hidden = tiny().drafting().set("qwen35.block_count", 4_u32).set("qwen35.nextn_predict_layers", 0_u32).refusal();
    assert!(hidden.kind() == ErrorKind::Unsupported && hidden.to_string().contains("blk.4."), "{hidden}");
}

#[test]
fn a_draft_block_changes_nothing_else() {
    let (mut with, mut without) = (tiny().drafting().load().unwrap(), tiny().load().unwrap());
    let text = tokens(8, 50);
    let logits = run(&mut with, &text);
    assert!(logits == run(&mut without, &text));
    let drafts = with.drafts(&text).unwrap();
    assert!(drafts.model.into_values() == logits);
    assert_eq!((drafts.drafts.rows(), drafts.drafts.into_values().len()), (49, 49 * 96));
}
