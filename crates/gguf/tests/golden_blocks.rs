//! Every supported layout against the `gguf` package's own readers; `tools/golden_blocks.py` writes the file.
#![allow(clippy::unwrap_used)]

use consort_core::ErrorKind;
use consort_gguf::{TensorType, dequantize, f32_to_bf16, f32_to_f16, quantize, quantize_q8_0};

struct Record<'a> {
    id: u32,
    blocks: &'a [u8],
    numbers: Vec<f32>,
}

fn records() -> Vec<Record<'static>> {
    let mut rest: &[u8] = include_bytes!("data/blocks.bin");
    let mut records = Vec::new();
    while let Some((head, body)) = rest.split_first_chunk::<12>() {
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let (blocks, body) = body.split_at(word(4) as usize);
        let (numbers, body) = body.split_at(word(8) as usize * 4);
        let numbers = numbers.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        records.push(Record { id: word(0), blocks, numbers });
        rest = body;
    }
    records
}

#[test]
fn every_layout_equals_the_reference() {
    let mut seen = 0;
    for record in records().iter().filter(|record| record.id < 1000) {
        let kind = TensorType::from_id(record.id).unwrap();
        let mut out = vec![f32::NAN; record.numbers.len()];
        dequantize(kind, record.blocks, &mut out).unwrap();
        for (at, (ours, theirs)) in out.iter().zip(&record.numbers).enumerate() {
            assert!(ours == theirs, "{kind}: number {at} is {ours}, the reference says {theirs}");
        }
        seen += 1;
    }
    assert_eq!(seen, 16);
}

#[test]
fn q8_0_is_written_as_the_reference_writes_it() {
    let records = records();
    let record = records.iter().find(|record| record.id == 1000).unwrap();
    let mut out = vec![0xAA; record.blocks.len()];
    quantize_q8_0(&record.numbers, &mut out).unwrap();
    assert_eq!(out, record.blocks);
    assert!(quantize_q8_0(&record.numbers[1..], &mut out).is_err());
    assert!(quantize_q8_0(&record.numbers, &mut out[1..]).is_err());
}

#[test]
fn the_other_types_of_32_are_written_as_the_reference_writes_them() {
    let mut seen = 0;
    for record in records().iter().filter(|record| record.id > 1000) {
        let kind = TensorType::from_id(record.id - 1000).unwrap();
        assert_eq!(quantize(kind, &record.numbers, None).unwrap(), record.blocks, "{kind}");
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn half_precision_rounds_to_nearest_even() {
    // Between 1 and its f16 neighbour 1 + 2^-10, and between that and the next.
    assert_eq!(f32_to_f16(1.0 + 2.0_f32.powi(-11)), 0x3C00);
    assert_eq!(f32_to_f16(1.0 + 3.0 * 2.0_f32.powi(-11)), 0x3C02);
    assert_eq!(f32_to_f16(1e6), 0x7C00);
    assert_eq!(f32_to_bf16(1.0 + 2.0_f32.powi(-8)), 0x3F80);
    assert_eq!(f32_to_bf16(1.0 + 3.0 * 2.0_f32.powi(-8)), 0x3F82);
    assert_eq!(f32_to_bf16(f32::NAN) & 0x7FC0, 0x7FC0);
}

#[test]
fn wrong_sizes_and_types_without_a_reader_are_refused() {
    let mut out = [0.0; 256];
    let kind = |result: consort_core::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(dequantize(TensorType::Q8_0, &[0; 33], &mut out[..32])), ErrorKind::InvalidRequest);
    assert_eq!(kind(dequantize(TensorType::Q8_0, &[0; 34], &mut out[..31])), ErrorKind::InvalidRequest);
    assert_eq!(kind(dequantize(TensorType::IQ1S, &[0; 50], &mut out)), ErrorKind::Unsupported);
}
