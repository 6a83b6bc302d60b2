//! Model files: opened, every tensor looked at, every type dequantized; one file or two shards.

use consort_core::ErrorKind;
use consort_gguf::{Gguf, dequantize};

/// A GGUF file, or two shards (see [`parts`](crate::parts)) when the input does not begin as one.
///
/// # Panics
/// When the reader breaks a promise.
pub fn gguf(data: &[u8]) {
    if data.starts_with(b"GGUF") {
        return look(Gguf::from_bytes(data.to_vec()));
    }
    let [first, second] = crate::parts(data);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m-00001-of-00002.gguf");
    std::fs::write(&path, first).unwrap();
    std::fs::write(folder.path().join("m-00002-of-00002.gguf"), second).unwrap();
    look(Gguf::open(&path));
}

fn look(opened: consort_core::Result<Gguf>) {
    let gguf = match opened {
        Ok(gguf) => gguf,
        Err(error) => {
            return assert!(matches!(error.kind(), ErrorKind::InvalidModel | ErrorKind::Unsupported), "{error}");
        }
    };
    let _ = gguf.digest();
    let mut row = Vec::new();
    for info in gguf.tensors() {
        let data = gguf.tensor_data(info);
        assert_eq!(data.len() as u64, info.byte_len());
        assert!(info.byte_len() <= gguf.file_len());
        assert_eq!(info.row_len() * info.rows(), info.elements());
        assert!(gguf.tensor(&info.name).is_some_and(|found| found.name == info.name));
        // A row at a time, as an engine would.
        let bytes = usize::try_from(info.kind.bytes_for(info.row_len()).unwrap()).unwrap();
        row.resize(usize::try_from(info.row_len()).unwrap(), 0.0);
        for bytes in data.chunks_exact(bytes).take(4) {
            let _ = dequantize(info.kind, bytes, &mut row);
        }
    }
    for (key, _) in gguf.metadata().iter() {
        let metadata = gguf.metadata();
        let _ = (metadata.get_u32(key), metadata.get_f32(key), metadata.get_str(key), metadata.get_bool(key));
        let _ = (metadata.array_of_u32(key), metadata.array_of_f32(key));
        let _ = (metadata.array_of_strings(key), metadata.array_of_bools(key));
    }
}
