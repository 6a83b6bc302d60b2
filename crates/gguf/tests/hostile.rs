//! Damaged and malicious files end in a value or a typed error, in bounded memory.
#![allow(clippy::unwrap_used)]

use consort_core::ErrorKind;
use consort_gguf::{Array, Gguf, GgufWriter, TensorType, dequantize};
use consort_test_support::{Random, peak};

/// Opens `file` and reads all of it; the outcome, and the most memory in use meanwhile.
fn open(file: &[u8]) -> (Result<(), ErrorKind>, usize) {
    let (outcome, most) = peak(|| Gguf::from_bytes(file.to_vec()).map(|gguf| read(&gguf)));
    (outcome.map_err(|error| error.kind()), most)
}

/// Reads all of it.
fn read(gguf: &Gguf) {
    let _ = gguf.digest();
    let mut row = Vec::new();
    for info in gguf.tensors() {
        assert_eq!(gguf.tensor_data(info).len() as u64, info.byte_len());
        assert!(info.byte_len() <= gguf.file_len());
        // A row at a time, as an engine would.
        let bytes = info.kind.bytes_for(info.row_len()).unwrap() as usize;
        row.resize(info.row_len() as usize, 0.0);
        let _ = dequantize(info.kind, &gguf.tensor_data(info)[..bytes], &mut row);
    }
}

fn check(file: &[u8], what: &str) {
    let (outcome, peak) = open(file);
    if let Err(kind) = outcome {
        assert_eq!(kind, ErrorKind::InvalidModel, "{what}");
    }
    assert!(peak <= 64 * file.len() + (1 << 20), "{what}: {peak} bytes for a file of {}", file.len());
}

fn valid() -> Vec<u8> {
    let mut writer = GgufWriter::new("test");
    writer.set("a.number", 7_u32).set("a.text", "some text").set("a.flag", true).set("a.float", 1.5_f64);
    writer.set("a.tokens", vec!["one".to_owned(), String::new(), "three".to_owned()]);
    writer.set("a.types", vec![1_i32, 2, 3]);
    writer.set("a.nested", vec![Array::Array(vec![Array::U8(vec![1, 2])]), Array::Bool(vec![true, false])]);
    writer.add_tensor_bytes("f32", &[8, 3], TensorType::F32, vec![1; 96]).unwrap();
    writer.add_tensor_bytes("q8", &[32, 2], TensorType::Q8_0, vec![2; 68]).unwrap();
    writer.add_tensor_bytes("q4k", &[256], TensorType::Q4K, vec![3; 144]).unwrap();
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    file
}

#[test]
fn every_truncation_is_refused() {
    let file = valid();
    let data_end = file.len() - (32 - 144 % 32);
    for length in 0..file.len() {
        check(&file[..length], &format!("the first {length} bytes"));
        if length < data_end {
            assert!(open(&file[..length]).0.is_err(), "the first {length} bytes");
        }
    }
    assert!(open(&file).0.is_ok());
}

#[test]
fn flipped_bits_are_harmless() {
    let file = valid();
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        check(&damaged, &format!("bit {bit}"));
    }
    let mut random = Random::default();
    for case in 0..4000 {
        let mut damaged = file.clone();
        for _ in 0..=random.below(8) {
            let at = random.below(damaged.len());
            damaged[at] ^= 1 << random.below(8);
        }
        if random.below(3) == 0 {
            damaged.truncate(random.below(damaged.len()));
        }
        check(&damaged, &format!("seeded case {case}"));
    }
}

#[test]
fn extreme_numbers_at_every_place_are_harmless() {
    let file = valid();
    for at in 0..file.len() - 8 {
        for number in [u64::MAX, i64::MAX as u64, 1 << 62, 1 << 32, u64::from(u32::MAX), 1 << 20, 0] {
            let mut damaged = file.clone();
            damaged[at..at + 8].copy_from_slice(&number.to_le_bytes());
            check(&damaged, &format!("{number:#x} at byte {at}"));
        }
    }
}

/// Builds headers by hand, to say what the writer refuses to.
#[derive(Default)]
struct Raw {
    metadata: Vec<u8>,
    keys: u64,
    table: Vec<u8>,
    tensors: u64,
}

impl Raw {
    fn string(out: &mut Vec<u8>, text: &[u8]) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text);
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        Self::string(&mut self.metadata, key.as_bytes());
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.keys += 1;
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        Self::string(&mut self.table, name.as_bytes());
        self.table.extend((dims.len() as u32).to_le_bytes());
        for dim in dims {
            self.table.extend(dim.to_le_bytes());
        }
        self.table.extend(kind.to_le_bytes());
        self.table.extend(offset.to_le_bytes());
        self.tensors += 1;
        self
    }

    fn refused(self, because: &str) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(self.metadata);
        file.extend(self.table);
        file.resize(file.len().next_multiple_of(32) + 128, 0);
        check(&file, because);
        let error = Gguf::from_bytes(file).unwrap_err();
        assert!(error.to_string().contains(because), "{error} does not say {because:?}");
    }
}

#[test]
fn each_rule_has_its_own_message() {
    let raw = Raw::default;
    raw().key("k", 0, &[1]).key("k", 0, &[1]).refused("stands twice in the file (key: k)");
    raw().tensor("t", &[4], 0, 0).tensor("t", &[4], 0, 32).refused("stands twice in the file (tensor: t)");
    raw().tensor("t", &[12], 0, 0).tensor("u", &[4], 0, 32).refused("overlaps that of t (tensor: u)");
    raw().tensor("t", &[4], 0, 0).tensor("u", &[4], 0, 0).refused("overlaps");
    raw().tensor("t", &[4], 0, 128).refused("runs past the end of the file");
    raw().tensor("t", &[4], 0, u64::MAX - 31).refused("runs past the end of the file");
    raw().tensor("t", &[4], 0, 4).refused("not a multiple of the alignment");
    raw().tensor("t", &[], 0, 0).refused("0 dimensions");
    raw().tensor("t", &[1, 1, 1, 1, 1], 0, 0).refused("5 dimensions");
    raw().tensor("t", &[4, 0], 0, 0).refused("not 1 to 4 numbers above zero");
    raw().tensor("t", &[1 << 32, 1 << 32], 0, 0).refused("beyond 64 bits");
    raw().tensor("t", &[1 << 31, 1 << 31], 0, 0).refused("beyond 64 bits");
    raw().tensor("t", &[33], 8, 0).refused("not whole blocks of 32");
    raw().tensor("t", &[4], 5, 0).refused("tensor type 5");
    raw().tensor("t", &[4], 4, 0).refused("withdrawn");
    raw().key("k", 13, &[]).refused("metadata type 13");
    raw().key("k", 7, &[2]).refused("stored as 2");
    raw().key("k", 8, &u64::MAX.to_le_bytes()).refused("announces 18446744073709551615 bytes of text");
    raw().key("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF]).refused("not UTF-8");
    raw().key("general.alignment", 4, &24_u32.to_le_bytes()).refused("power of two");
    raw().key("general.alignment", 4, &0_u32.to_le_bytes()).refused("power of two");
    raw().key("general.alignment", 4, &(1_u32 << 31).to_le_bytes()).refused("power of two");
    raw().key("general.alignment", 8, &[0; 8]).refused("wanted u32");
    raw().tensor(&"n".repeat(2000), &[4], 0, 0).refused("longer than the 1024");

    let mut array = Vec::new();
    for _ in 0..5000 {
        array.extend(9_u32.to_le_bytes());
        array.extend(1_u64.to_le_bytes());
    }
    raw().key("k", 9, &array).refused("nest deeper than 4");
    let mut array = 8_u32.to_le_bytes().to_vec();
    array.extend((1_u64 << 40).to_le_bytes());
    raw().key("k", 9, &array).refused("array elements");

    let error = |bytes: &[u8]| Gguf::from_bytes(bytes.to_vec()).unwrap_err().to_string();
    assert!(error(b"GGUX\x03\0\0\0").contains("not a GGUF file"));
    assert!(error(b"GGUF\x01\0\0\0").contains("version 1"));
    assert!(error(b"GGUF\0\0\0\x03").contains("big endian"));
    assert!(error(b"GGUF\x09\0\0\0").contains("version 9"));
}

/// Headers made of the smallest entries that the format allows, where the ratio of memory to file is worst.
#[test]
fn many_small_entries_stay_within_the_bound() {
    let mut empty_strings = 8_u32.to_le_bytes().to_vec();
    empty_strings.extend(50_000_u64.to_le_bytes());
    empty_strings.extend([0; 8 * 50_000]);
    let mut empty_arrays = 9_u32.to_le_bytes().to_vec();
    empty_arrays.extend(50_000_u64.to_le_bytes());
    for _ in 0..50_000 {
        empty_arrays.extend([0; 12]);
    }
    for (name, array) in [("strings", empty_strings), ("arrays", empty_arrays)] {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(0_u64.to_le_bytes());
        file.extend(1_u64.to_le_bytes());
        Raw::string(&mut file, b"k");
        file.extend(9_u32.to_le_bytes());
        file.extend(array);
        check(&file, name);
        assert!(open(&file).0.is_ok(), "{name}");
    }
    let mut keys = Raw::default();
    let mut tensors = Raw::default();
    for at in 0..20_000_u64 {
        keys = keys.key(&format!("{at:x}"), 0, &[1]);
        tensors = tensors.tensor(&format!("{at:x}"), &[1], 24, at * 32);
    }
    keys.tensor("", &[4], 0, 4).refused("not a multiple");
    tensors.refused("runs past the end");
}
