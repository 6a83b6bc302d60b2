//! Adapters: each sequence of a batch has its own, and keeps the generation that it opened with.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fmt::Write as _;
use std::sync::Arc;

use common::*;
use consort_core::*;

/// The linear layers of the tiny model: name, inputs, outputs.
const LAYERS: [(&str, usize, usize); 12] = [
    ("layers.0.linear_attn.in_proj_qkv", 32, 256),
    ("layers.0.linear_attn.in_proj_z", 32, 128),
    ("layers.1.linear_attn.in_proj_a", 32, 4),
    ("layers.1.linear_attn.in_proj_b", 32, 4),
    ("layers.2.linear_attn.out_proj", 128, 32),
    ("layers.3.self_attn.q_proj", 32, 256),
    ("layers.3.self_attn.k_proj", 32, 64),
    ("layers.3.self_attn.v_proj", 32, 64),
    ("layers.3.self_attn.o_proj", 128, 32),
    ("layers.0.mlp.gate_proj", 32, 64),
    ("layers.1.mlp.up_proj", 32, 64),
    ("layers.3.mlp.down_proj", 64, 32),
];

/// An adapter of rank 2 on these layers, as PEFT would write it.
fn adapter(id: &str, generation: u64, seed: usize, layers: &[(&str, usize, usize)]) -> AdapterSource {
    let (mut header, mut data) = (String::from("{"), Vec::<u8>::new());
    for (layer, inputs, outputs) in layers {
        for (factor, shape) in [("A", [2, *inputs]), ("B", [*outputs, 2])] {
            let start = data.len();
            for index in 0..shape[0] * shape[1] {
                let value = ((index * 29 + seed * 13 + shape[0]) % 17) as f32 / 17.0 - 0.5;
                data.extend(value.to_le_bytes());
            }
            let comma = if header.len() > 1 { "," } else { "" };
            let [rows, columns] = shape;
            let end = data.len();
            write!(
                header,
                r#"{comma}"base_model.model.model.language_model.{layer}.lora_{factor}.weight":{{"dtype":"F32","shape":[{rows},{columns}],"data_offsets":[{start},{end}]}}"#
            )
            .unwrap();
        }
    }
    header.push('}');
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header.as_bytes());
    weights.extend(data);
    let config = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": "all-linear"}"#;
    AdapterSource {
        key: AdapterKey { id: id.into(), generation },
        files: AdapterFiles::Bytes { config: Arc::from(config.as_slice()), weights: weights.into() },
    }
}

fn set(uses: &[(&AdapterSource, f32)]) -> AdapterSet {
    AdapterSet::new(uses.iter().map(|(source, scale)| AdapterBinding::new(source.key.clone(), *scale))).unwrap()
}

#[test]
fn every_linear_layer_can_be_changed() {
    let mut engine = engine();
    let seq = open(&mut engine);
    let base = feed(&mut engine, seq, 0, &[1, 2, 3]);
    let head = ("lm_head", 32, 96);
    for (generation, layer) in LAYERS.iter().chain([&head]).enumerate() {
        let source = adapter(layer.0, generation as u64, generation, &[*layer]);
        let info = engine.load_adapter(&source).unwrap();
        assert_eq!((info.rank, info.layers, info.bytes), (2, 1, 8 * (layer.1 + layer.2) as u64));
        let seq = engine.open(&set(&[(&source, 1.0)])).unwrap();
        let changed = feed(&mut engine, seq, 0, &[1, 2, 3]);
        let most = base.iter().zip(&changed).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most > 1e-3, "{}: {most}", layer.0);
        engine.release(seq);
        engine.unload_adapter(&source.key).unwrap();
    }
    assert_eq!(engine.memory().adapters, 0);
}

#[test]
fn sequences_of_a_batch_have_their_own() {
    let mut engine = engine();
    let (one, two) = (adapter("one", 1, 1, &LAYERS), adapter("two", 2, 2, &LAYERS[..6]));
    engine.load_adapter(&one).unwrap();
    engine.load_adapter(&two).unwrap();
    let sets = [
        AdapterSet::none(),
        set(&[(&one, 1.0)]),
        set(&[(&two, 1.0)]),
        set(&[(&one, 0.5)]),
        set(&[(&one, 1.0), (&two, -1.0)]),
        AdapterSet::none(),
    ];
    let prompt = tokens(5, 12);
    let alone: Vec<_> = sets
        .iter()
        .map(|set| {
            let seq = engine.open(set).unwrap();
            let logits = feed(&mut engine, seq, 0, &prompt);
            engine.release(seq);
            logits
        })
        .collect();
    for i in 0..5 {
        for j in 0..i {
            assert_ne!(alone[i], alone[j]);
        }
    }
    let seqs: Vec<_> = sets.iter().map(|set| engine.open(set).unwrap()).collect();
    let positions = at(0, 12);
    let steps: Vec<_> = seqs
        .iter()
        .map(|&seq| Step { seq, input: StepInput::Tokens(&prompt), positions: &positions, want: Want::All })
        .collect();
    for (outcome, alone) in submit(&mut engine, &steps).into_iter().zip(alone) {
        assert_eq!(logits(outcome), alone);
    }
}

#[test]
fn a_sequence_keeps_the_generation_that_it_opened_with() {
    let mut engine = engine();
    let (old, new) = (adapter("persona", 1, 1, &LAYERS), adapter("persona", 2, 2, &LAYERS));
    engine.load_adapter(&old).unwrap();
    let seq = engine.open(&set(&[(&old, 1.0)])).unwrap();
    feed(&mut engine, seq, 0, &[1, 2]);
    let (parked, twin) = (engine.park(seq).unwrap(), engine.fork(seq).unwrap());
    let expected = feed(&mut engine, twin, 2, &[3]);

    engine.load_adapter(&new).unwrap();
    engine.unload_adapter(&old.key).unwrap();
    assert!(engine.memory().adapters > engine.load_adapter(&adapter("x", 3, 1, &LAYERS[..1])).unwrap().bytes);
    assert_eq!(feed(&mut engine, seq, 2, &[3]), expected);
    // A parked past holds no weights: it goes on when they are back, under the same key.
    assert_eq!(engine.resume(&parked).unwrap_err().kind(), ErrorKind::NotFound);
    engine.load_adapter(&old).unwrap();
    let resumed = engine.resume(&parked).unwrap();
    engine.unload_adapter(&old.key).unwrap();
    assert_eq!(feed(&mut engine, resumed, 2, &[3]), expected);
    assert_eq!(engine.open(&set(&[(&old, 1.0)])).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(engine.unload_adapter(&old.key).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(engine.load_adapter(&new).unwrap_err().kind(), ErrorKind::InvalidRequest);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let mut engine = engine();
    for (layer, inputs, outputs) in [
        ("layers.0.mlp.gate_proj", 16, 64),
        ("layers.0.mlp.gate_proj", 32, 63),
        ("layers.4.mlp.gate_proj", 32, 64),
        ("layers.0.self_attn.q_proj", 32, 256),
        ("layers.3.linear_attn.in_proj_z", 32, 128),
        ("layers.0.mlp.experts", 32, 64),
        ("lm_head", 32, 97),
    ] {
        let error = engine.load_adapter(&adapter("bad", 1, 1, &[(layer, inputs, outputs)])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidAdapter);
        assert!(error.to_string().contains(layer), "{error}");
    }
    assert_eq!(engine.memory().adapters, 0);
}
