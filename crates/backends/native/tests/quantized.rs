//! Models of every quantized type: what is batched, chunked or spread over threads is bit for bit what is not, and exact
//! activations give what the dequantized weights give.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::num::NonZeroUsize;

use common::*;
use consort_core::*;
use consort_gguf::{Gguf, GgufWriter, TensorType, dequantize, quantize};
use consort_native::synthetic::SyntheticConfig;
use consort_native::{Activations, NativeConfig, NativeEngine};

fn engine_of(file: &'static [u8], activations: Activations, threads: usize) -> NativeEngine {
    NativeEngine::load(NativeConfig {
        vision: None,
        activations,
        threads: NonZeroUsize::new(threads),
        text: file.into(),
        ..config()
    })
    .unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn batches_chunks_and_threads_do_not_change_a_bit() {
    for weight_type in QUANTIZED {
        let file: &'static [u8] = SyntheticConfig { weight_type, ..wide() }.text().unwrap().leak();
        for activations in [Activations::Int8, Activations::F32] {
            let prompts: Vec<_> = [70, 3, 9].iter().zip(0..).map(|(&count, seed)| tokens(seed, count)).collect();
            let mut alone = engine_of(file, activations, 1);
            let expected: Vec<_> = prompts
                .iter()
                .map(|prompt| {
                    let seq = open(&mut alone);
                    feed(&mut alone, seq, 0, prompt)
                })
                .collect();
            assert!(expected.iter().flatten().all(|logit| logit.is_finite()), "{weight_type}");
            // Token by token, and in chunks that cross every way of computing.
            for chunk in [1, 2, 5, 8, 33] {
                let seq = open(&mut alone);
                let mut at = 0;
                for part in prompts[0].chunks(chunk) {
                    let logits = feed(&mut alone, seq, at, part);
                    let vocab = logits.len() / part.len();
                    let whole = &expected[0][at * vocab..][..logits.len()];
                    assert_eq!(bits(&logits), bits(whole), "{weight_type} {activations:?} in chunks of {chunk}");
                    at += part.len();
                }
                alone.release(seq);
            }
            let mut together = engine_of(file, activations, 3);
            let seqs: Vec<_> = prompts.iter().map(|_| open(&mut together)).collect();
            let positions: Vec<_> = prompts.iter().map(|prompt| at(0, prompt.len())).collect();
            let steps: Vec<_> = seqs
                .iter()
                .zip(&prompts)
                .zip(&positions)
                .map(|((&seq, prompt), positions)| Step {
                    seq,
                    input: StepInput::Tokens(prompt),
                    positions,
                    want: Want::All,
                })
                .collect();
            for (outcome, expected) in submit(&mut together, &steps).into_iter().zip(&expected) {
                assert_eq!(bits(&logits(outcome)), bits(expected), "{weight_type} {activations:?} in a batch");
            }
        }
    }
}

#[test]
fn exact_activations_give_what_the_dequantized_weights_give() {
    for weight_type in QUANTIZED {
        let file: &'static [u8] = SyntheticConfig { weight_type, ..wide() }.text().unwrap().leak();
        let gguf = Gguf::from_static(file).unwrap();
        let mut writer = GgufWriter::with_metadata(gguf.metadata().clone());
        for info in gguf.tensors() {
            let mut values = vec![0.0; info.elements() as usize];
            dequantize(info.kind, gguf.tensor_data(info), &mut values).unwrap();
            let bytes = quantize(TensorType::F32, &values, None).unwrap();
            writer.add_tensor_bytes(info.name.clone(), &info.dims, TensorType::F32, bytes).unwrap();
        }
        let mut wide = Vec::new();
        writer.write(&mut wide).unwrap();
        let run = |file, activations| {
            let mut engine = engine_of(file, activations, 1);
            let seq = open(&mut engine);
            feed(&mut engine, seq, 0, &tokens(1, 20))
        };
        let expected = run(wide.leak(), Activations::Int8);
        assert_eq!(bits(&run(file, Activations::F32)), bits(&expected), "{weight_type}");
        let rounded = run(file, Activations::Int8);
        let error: f32 = rounded.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum();
        let size: f32 = expected.iter().map(|x| x.powi(2)).sum();
        assert!(error > 0.0 && error < 0.01 * size, "{weight_type}: {error} of {size}");
    }
}
