//! Models in several files: what the splitter writes is one model again, and shards that lie are refused.
#![allow(clippy::unwrap_used)]

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind};
use consort_gguf::{Gguf, GgufWriter, Metadata, ShardLimit, ShardName, TensorInfo, TensorType, Value};
use proptest::prelude::*;

/// Ten tensors of 32 to 320 bytes.
fn model() -> GgufWriter<'static> {
    let mut writer = GgufWriter::new("test");
    writer.set("general.name", "sharded").set("test.block_count", 3_u32);
    for at in 0..10_u8 {
        let rows = u64::from(at) + 1;
        writer.add_tensor_bytes(format!("t{at}"), &[8, rows], TensorType::F32, vec![at; 32 * rows as usize]).unwrap();
    }
    writer
}

fn shards(folder: &Path, limit: ShardLimit) -> Vec<PathBuf> {
    model().write_shards(&folder.join("m-F32.gguf"), limit).unwrap()
}

fn by_tensors(count: usize) -> ShardLimit {
    ShardLimit::Tensors(NonZeroUsize::new(count).unwrap())
}

fn tensors(gguf: &Gguf) -> Vec<(String, Vec<u64>, Vec<u8>)> {
    gguf.tensors().map(|info| (info.name.clone(), info.dims.clone(), gguf.tensor_data(info).to_vec())).collect()
}

#[test]
fn shards_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    model().write_to(&whole).unwrap();
    let whole = Gguf::open(&whole).unwrap();
    assert_eq!((whole.file_count(), whole.tensor("t7").unwrap().file()), (1, 0));
    for (limit, count) in
        [(by_tensors(4), 3), (by_tensors(1), 10), (ShardLimit::Bytes(NonZeroU64::new(500).unwrap()), 5)]
    {
        let folder = tempfile::tempdir().unwrap();
        let paths = shards(folder.path(), limit);
        assert_eq!(paths.len(), count);
        assert!(paths[1].ends_with(format!("m-F32-00002-of-{count:05}.gguf")));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), count, "nothing else is left there");
        let mut digests = Vec::new();
        for path in &paths {
            let gguf = Gguf::open(path).unwrap();
            assert_eq!(tensors(&gguf), tensors(&whole));
            assert_eq!(gguf.file_count(), count);
            assert_eq!(gguf.tensor("t9").unwrap().file(), count - 1);
            let listed = |gguf: &Gguf| -> Vec<(String, Value)> {
                gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect()
            };
            assert_eq!(listed(&gguf), listed(&whole), "without what numbers the shards");
            let bytes: u64 = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
            assert_eq!(gguf.file_len(), bytes);
            digests.push(gguf.digest());
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]), "whichever shard is named");
    }
    // Large enough for all: one file, under the plain name.
    let paths = shards(folder.path(), by_tensors(10));
    assert_eq!(paths, [folder.path().join("m-F32.gguf")]);
    assert!(!Gguf::open(&paths[0]).unwrap().metadata().contains("split.count"));
}

#[test]
fn the_digest_covers_every_shard() {
    let folder = tempfile::tempdir().unwrap();
    let paths = shards(folder.path(), by_tensors(4));
    let before = Gguf::open(&paths[0]).unwrap().digest();
    for path in &paths {
        let good = std::fs::read(path).unwrap();
        let mut changed = good.clone();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(path, changed).unwrap();
        assert_ne!(Gguf::open(&paths[0]).unwrap().digest(), before, "{}", path.display());
        std::fs::write(path, good).unwrap();
    }
    assert_eq!(Gguf::open(&paths[0]).unwrap().digest(), before);
}

/// A first shard with metadata alone, as some splitters write it.
#[test]
fn a_shard_may_have_no_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: u32| folder.path().join(format!("m-{number:05}-of-00002.gguf"));
    for number in 0..2_u16 {
        let mut metadata = Metadata::new();
        if number == 0 {
            metadata.insert("general.architecture", "test");
        }
        metadata.insert("split.no", number);
        metadata.insert("split.count", 2_u16);
        metadata.insert("split.tensors.count", 1_i32);
        let mut writer = GgufWriter::with_metadata(metadata);
        if number == 1 {
            writer.add_tensor_bytes("t", &[1], TensorType::F32, vec![0; 4]).unwrap();
        }
        writer.write_to(&path(u32::from(number) + 1)).unwrap();
    }
    let gguf = Gguf::open(&path(2)).unwrap();
    assert_eq!(gguf.metadata().require_str("general.architecture").unwrap(), "test");
    assert_eq!(gguf.require_tensor("t").unwrap().file(), 1);
}

#[test]
fn names_are_read_as_they_are_written() {
    let name = |path: &str| ShardName::parse(Path::new(path)).map(|name| (name.number, name.count));
    assert_eq!(name("a/b-00001-of-00001.gguf"), Some((1, 1)));
    assert_eq!(name("b-c-99999-of-99999.gguf"), Some((99_999, 99_999)));
    for wrong in [
        "b.gguf",
        "b-00001-of-00002.GGUF",
        "b-00001-of-00002",
        "b-00000-of-00002.gguf",
        "b-00003-of-00002.gguf",
        "b-1-of-2.gguf",
        "b-+0001-of-00002.gguf",
        "-00001-of-00002.gguf",
        "b-00001-00002.gguf",
        "00001-of-00002.gguf",
        "",
        "..",
    ] {
        assert_eq!(name(wrong), None, "{wrong}");
    }
}

/// Rewrites a shard with some of its metadata changed, and its tensors by `tensor`.
fn altered(path: &Path, change: impl Fn(&mut GgufWriter<'_>)) {
    // Read as one file: a copy under a name that says nothing, without the keys that number it.
    let bytes = std::fs::read(path).unwrap();
    let key = b"split.count";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    let mut plain = bytes;
    plain[at..at + key.len()].copy_from_slice(b"spliT.count");
    let gguf = Gguf::from_bytes(plain).unwrap();
    let mut metadata = Metadata::new();
    for (key, value) in gguf.metadata().iter() {
        metadata.insert(if key == "spliT.count" { "split.count" } else { key }, value.clone());
    }
    let mut writer = GgufWriter::with_metadata(metadata);
    change(&mut writer);
    for info in gguf.tensors() {
        writer.add_tensor_bytes(&info.name, &info.dims, info.kind, gguf.tensor_data(info).to_vec()).unwrap();
    }
    writer.write_to(path).unwrap();
}

/// What opening the first of three shards says after `change` was done to them.
fn refusal(change: impl Fn(&[PathBuf])) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let paths = shards(folder.path(), by_tensors(4));
    change(&paths);
    Gguf::open(&paths[0]).unwrap_err()
}

#[test]
fn shards_that_lie_are_refused_by_name() {
    let set = |shard: usize, key: &'static str, value: Value| {
        refusal(move |paths| {
            altered(&paths[shard], |writer| {
                writer.set(key, value.clone());
            });
        })
    };
    let cases = [
        (set(1, "split.no", Value::U16(2)), "shard 2 of 3 with 10 tensors in all, and says that it is shard 3"),
        (set(1, "split.no", Value::U16(3)), "cannot be one of 3"),
        (set(1, "split.no", Value::I32(-1)), "split.no"),
        (set(1, "split.count", Value::U16(4)), "says that it is shard 2 of 4"),
        (set(1, "split.count", Value::U16(0)), "nothing of shards"),
        (set(1, "split.count", Value::U64(u64::MAX)), "split.count"),
        (set(1, "split.tensors.count", Value::I32(11)), "of 3 with 11"),
        (set(1, "general.architecture", "other".into()), "different architectures"),
        (set(0, "split.no", Value::U16(1)), "by its name this is shard 1 of 3, and by its metadata 2 of 3"),
        (set(0, "split.count", Value::U32(u32::MAX)), "by its metadata 1 of 4294967295"),
        (set(0, "split.count", "three".into()), "split.count"),
        (set(0, "split.tensors.count", Value::I32(-10)), "split.tensors.count"),
        (
            refusal(|paths| {
                for path in paths {
                    altered(path, |writer| {
                        writer.set("split.tensors.count", 11_i32);
                    });
                }
            }),
            "hold 10 tensors together, and their metadata announce 11",
        ),
        (
            refusal(|paths| {
                altered(&paths[2], |writer| {
                    writer.add_tensor_bytes("t1", &[1], TensorType::F32, vec![0; 4]).unwrap();
                });
            }),
            "a tensor of this name too (tensor: t1",
        ),
        (refusal(|paths| _ = std::fs::copy(&paths[0], &paths[1]).unwrap()), "says that it is shard 1 of 3"),
        (refusal(|paths| std::fs::write(&paths[2], b"").unwrap()), "not a GGUF file"),
    ];
    for (error, because) in cases {
        assert_eq!(error.kind(), ErrorKind::InvalidModel, "{error}");
        assert!(error.to_string().contains(because), "{error} does not say {because:?}");
        assert!(error.to_string().contains("of-00003.gguf"), "{error} does not name the file");
    }
    let missing = refusal(|paths| std::fs::remove_file(&paths[1]).unwrap());
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("m-F32-00002-of-00003.gguf"), "{missing}");
    assert!(missing.to_string().contains("shard: 2 of 3"), "{missing}");

    let folder = tempfile::tempdir().unwrap();
    let paths = shards(folder.path(), by_tensors(4));
    let renamed = folder.path().join("renamed.gguf");
    std::fs::rename(&paths[0], &renamed).unwrap();
    let error = Gguf::open(&renamed).unwrap_err();
    assert!(error.to_string().contains("does not end in -00001-of-00003.gguf"), "{error}");
    for bytes in [std::fs::read(&renamed).unwrap(), std::fs::read(&paths[1]).unwrap()] {
        let error = Gguf::from_bytes(bytes).unwrap_err();
        assert!(error.to_string().contains("open it by its path"), "{error}");
    }
}

#[test]
fn damaged_shards_end_in_a_typed_error() {
    let folder = tempfile::tempdir().unwrap();
    let paths = shards(folder.path(), by_tensors(4));
    // A small generator (xorshift), so that the cases are the same on every machine.
    let mut state = 0x5EED_u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    };
    let mut refused = 0;
    for case in 0..900 {
        let path = &paths[case % 3];
        let good = std::fs::read(path).unwrap();
        let mut damaged = good.clone();
        for _ in 0..=below(3) {
            let at = below(damaged.len().min(600));
            damaged[at] ^= 1 << below(8);
        }
        if below(5) == 0 {
            damaged.truncate(below(damaged.len()));
        }
        std::fs::write(path, &damaged).unwrap();
        match Gguf::open(&paths[below(3)]) {
            Ok(gguf) => {
                let _ = gguf.digest();
                for info in gguf.tensors() {
                    assert_eq!(gguf.tensor_data(info).len() as u64, info.byte_len());
                }
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::InvalidModel | ErrorKind::NotFound), "case {case}: {error}");
                refused += 1;
            }
        }
        std::fs::write(path, &good).unwrap();
    }
    assert!(refused > 300, "only {refused} were refused: the damage does not reach what matters");
}

#[test]
fn files_complete_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let paths = shards(folder.path(), by_tensors(4));
    let extra = folder.path().join("extra.gguf");
    let mut writer = GgufWriter::new("test");
    writer.set("general.name", "another name");
    writer.add_tensor_bytes("extra", &[2], TensorType::F32, vec![9; 8]).unwrap();
    writer.write_to(&extra).unwrap();
    let gguf = Gguf::open_all(&[&paths[1], &extra]).unwrap();
    assert_eq!((gguf.file_count(), gguf.tensors().len()), (4, 11));
    assert_eq!(gguf.tensor_data(gguf.tensor("extra").unwrap()), [9; 8]);
    assert_eq!(gguf.metadata().require_str("general.name").unwrap(), "sharded");
    let twice = Gguf::open_all(&[&extra, &extra]).unwrap_err();
    assert!(twice.to_string().contains("extra.gguf") && twice.kind() == ErrorKind::InvalidModel, "{twice}");
    assert_eq!(Gguf::open_all::<PathBuf>(&[]).unwrap_err().kind(), ErrorKind::InvalidRequest);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_split_comes_back(limit in prop_oneof![
        (1_usize..12).prop_map(by_tensors),
        (1_u64..2000).prop_map(|bytes| ShardLimit::Bytes(NonZeroU64::new(bytes).unwrap())),
    ], alignment in proptest::sample::select(&[32_u32, 64, 4096])) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = model();
        writer.set("general.alignment", alignment);
        let paths = writer.write_shards(&folder.path().join("m"), limit).unwrap();
        let gguf = Gguf::open(paths.last().unwrap()).unwrap();
        for at in 0..10_u8 {
            let info = gguf.require_tensor(&format!("t{at}")).unwrap();
            prop_assert!(gguf.tensor_data(info).iter().all(|byte| *byte == at));
            prop_assert_eq!(info.byte_len(), 32 * (u64::from(at) + 1));
        }
        if let ShardLimit::Bytes(most) = limit {
            for file in 0..gguf.file_count() {
                let held: Vec<u64> = gguf.tensors().filter(|info| info.file() == file).map(TensorInfo::byte_len).collect();
                prop_assert!(held.len() == 1 || held.iter().sum::<u64>() <= most.get());
            }
        }
    }
}
