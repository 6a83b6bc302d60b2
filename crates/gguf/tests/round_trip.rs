//! What the writer writes, the reader reads.
#![allow(clippy::unwrap_used)]

use consort_core::{Error, ErrorKind};
use consort_gguf::{Aligned, Array, Gguf, GgufWriter, TensorType, Value};
use proptest::prelude::*;

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e30_f32..1e30).prop_map(Value::from),
        (-1e300_f64..1e300).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ]
}

fn flat_array() -> impl Strategy<Value = Array> {
    use proptest::collection::vec;
    prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
        vec(-1e30_f32..1e30, 0..9).prop_map(Array::F32),
        vec(-1e300_f64..1e300, 0..9).prop_map(Array::F64),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(any::<String>(), 0..9).prop_map(Array::String),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let array =
        flat_array().prop_recursive(3, 24, 4, |inner| proptest::collection::vec(inner, 0..4).prop_map(Array::Array));
    prop_oneof![scalar(), array.prop_map(Value::from)]
}

fn tensor() -> impl Strategy<Value = (Vec<u64>, TensorType)> {
    let kinds = [TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::I8, TensorType::Q8_0, TensorType::Q6K];
    (proptest::sample::select(kinds.to_vec()), 1_u64..5, proptest::collection::vec(1_u64..5, 0..4)).prop_map(
        |(kind, blocks, rest)| {
            let mut dims = vec![blocks * kind.block_len()];
            dims.extend(rest);
            (dims, kind)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_file_comes_back(
        metadata in proptest::collection::vec(("[a-z.]{1,12}", value()), 0..8),
        tensors in proptest::collection::vec(tensor(), 0..6),
        alignment in proptest::sample::select(&[None, Some(8_u32), Some(64), Some(4096)]),
    ) {
        let mut writer = GgufWriter::new("test");
        for (key, value) in &metadata {
            writer.set(&format!("k.{key}"), value.clone());
        }
        if let Some(alignment) = alignment {
            writer.set("general.alignment", alignment);
        }
        let expected: Vec<(String, Value)> =
            writer.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        let mut data = Vec::new();
        for (at, (dims, kind)) in tensors.iter().enumerate() {
            let bytes = kind.bytes_for(dims.iter().product()).unwrap();
            let bytes: Vec<u8> = (0..bytes).map(|byte| (byte as usize * 7 + at) as u8).collect();
            data.push(bytes.clone());
            writer.add_tensor_bytes(format!("t{at}"), dims, *kind, bytes).unwrap();
        }
        let mut file = Vec::new();
        writer.write(&mut file).unwrap();

        let gguf = Gguf::from_bytes(file).unwrap();
        let found: Vec<(String, Value)> =
            gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(gguf.tensors().len(), tensors.len());
        for (at, (info, (dims, kind))) in gguf.tensors().zip(&tensors).enumerate() {
            prop_assert_eq!(&info.name, &format!("t{at}"));
            prop_assert_eq!(&info.dims, dims);
            prop_assert_eq!(info.kind, *kind);
            let found = gguf.tensor_data(info);
            prop_assert_eq!(found, &data[at][..]);
            prop_assert_eq!(found.as_ptr() as usize % 8, 0);
            prop_assert_eq!(info.rows() * info.row_len(), info.elements());
        }
    }
}

fn small() -> Vec<u8> {
    let mut writer = GgufWriter::new("test");
    writer.add_tensor_bytes("a", &[4], TensorType::F32, vec![1; 16]).unwrap();
    writer.add_tensor_bytes("b", &[32, 2], TensorType::Q8_0, vec![2; 68]).unwrap();
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    file
}

#[test]
fn a_path_is_replaced_only_by_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, small()).unwrap();
    let mapped = Gguf::open(&path).unwrap();

    let mut failing = GgufWriter::new("test");
    failing.add_tensor("a", &[4], TensorType::F32, |sink| sink.write(&[0; 8])).unwrap();
    let error = failing.write_to(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unexpected);
    let mut failing = GgufWriter::new("test");
    failing.add_tensor("a", &[4], TensorType::F32, |sink| sink.write(&[0; 20])).unwrap();
    assert_eq!(failing.write_to(&path).unwrap_err().kind(), ErrorKind::Unexpected);
    let mut failing = GgufWriter::new("test");
    failing.add_tensor("a", &[4], TensorType::F32, |_| Err(Error::new(ErrorKind::Cancelled, "enough"))).unwrap();
    let error = failing.write_to(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.context().any(|pair| pair == ("tensor", "a")));
    assert_eq!(std::fs::read(&path).unwrap(), small());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");

    let mut other = GgufWriter::new("other");
    other.set("x", 1_u8);
    other.write_to(&path).unwrap();
    assert_eq!(Gguf::open(&path).unwrap().metadata().require_str("general.architecture").unwrap(), "other");
    let a = mapped.require_tensor("a").unwrap();
    assert_eq!(mapped.tensor_data(a), [1; 16], "an open mapping survives the replacement");
}

#[test]
fn missing_and_empty_files_are_typed_errors() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Gguf::open(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(Gguf::open(folder.path()).is_err());
    let empty = folder.path().join("empty");
    std::fs::write(&empty, []).unwrap();
    let error = Gguf::open(&empty).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidModel);
    assert!(error.context().any(|(key, value)| key == "path" && value.ends_with("empty")));
}

#[test]
fn version_2_reads_as_version_3_does() {
    let mut file = small();
    file[4] = 2;
    let gguf = Gguf::from_bytes(file).unwrap();
    assert_eq!((gguf.version(), gguf.tensors().len()), (2, 2));
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = GgufWriter::new("test");
    writer.add_tensor_bytes("a", &[4], TensorType::F32, vec![0; 16]).unwrap();
    assert!(writer.add_tensor_bytes("a", &[4], TensorType::F32, vec![0; 16]).is_err());
    assert!(writer.add_tensor_bytes("b", &[33], TensorType::Q8_0, vec![0; 34]).is_err());
    assert!(writer.add_tensor_bytes("c", &[], TensorType::F32, vec![0; 4]).is_err());
    assert!(writer.add_tensor_bytes("d", &[0], TensorType::F32, vec![]).is_err());
    assert!(writer.add_tensor_bytes("e", &[1, 1, 1, 1, 1], TensorType::F32, vec![0; 4]).is_err());
    assert!(writer.add_tensor_bytes("f", &[2], TensorType::F32, vec![0; 4]).is_err());
    assert!(writer.add_tensor("g", &[u64::MAX, 2], TensorType::I8, |_| Ok(())).is_err());
    writer.set("general.alignment", 24_u32);
    assert!(writer.write(&mut Vec::new()).is_err());
}

#[test]
fn the_digest_tells_header_length_and_weights_apart() {
    let digest = |bytes: Vec<u8>| Gguf::from_bytes(bytes).unwrap().digest();
    let file = small();
    let mut reference = vec![digest(file.clone())];
    let mut weights = file.clone();
    *weights.iter_mut().rev().find(|byte| **byte == 2).unwrap() = 3;
    reference.push(digest(weights));
    let mut longer = file.clone();
    longer.push(0);
    reference.push(digest(longer));
    let mut renamed = file.clone();
    let at = renamed.windows(4).position(|window| window == b"test").unwrap();
    renamed[at] = b'b';
    reference.push(digest(renamed));
    assert_eq!(digest(file), reference[0]);
    for (at, one) in reference.iter().enumerate() {
        assert!(!reference[at + 1..].contains(one), "digest {at} repeats");
    }
}

#[test]
fn bytes_of_the_program_are_used_in_place() {
    let file: &'static [u8] = Box::leak(small().into_boxed_slice());
    let gguf = Gguf::from_static(file).unwrap();
    let data = gguf.tensor_data(gguf.require_tensor("a").unwrap());
    if (file.as_ptr() as usize).is_multiple_of(8) {
        assert!(file.as_ptr_range().contains(&data.as_ptr()));
    }
    assert_eq!(std::mem::align_of::<Aligned<[u8; 3]>>(), 64);
}

/// Reads the family's published vocabulary file where it is at hand.
#[test]
#[allow(clippy::print_stdout)] // Says what was not run.
fn a_published_vocabulary_reads() {
    let Some(folder) = std::env::var_os("CONSORT_FAMILY_DATA") else {
        println!("CONSORT_FAMILY_DATA is not set: 1 case not run");
        return;
    };
    let gguf = Gguf::open(&std::path::Path::new(&folder).join("ggml-vocab-qwen35.gguf")).unwrap();
    assert_eq!(gguf.metadata().require_str("tokenizer.ggml.pre").unwrap(), "qwen35");
    assert_eq!(gguf.metadata().array_of_strings("tokenizer.ggml.tokens").unwrap().len(), 151_936);
}
