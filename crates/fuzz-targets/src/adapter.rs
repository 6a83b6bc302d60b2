//! Adapters, in PEFT's format and as GGUF.

use consort_core::{ErrorKind, Result};
use consort_peft::{GgufAdapter, LayerKind, LoraDelta, MAX_RANK, ModelAdapter, Network, PeftAdapter, TextDimensions};

/// Two parts: `adapter_config.json` and `adapter_model.safetensors`. A second part that is GGUF is an adapter alone.
///
/// # Panics
/// When a delta has not the shape it claims, or not that of the model's tensor.
pub fn adapter(data: &[u8]) {
    match fitted(data) {
        Ok(adapter) => {
            for delta in adapter.deltas() {
                assert_eq!((delta.a.len(), delta.b.len()), (delta.rank * delta.inputs(), delta.outputs() * delta.rank));
                assert!(delta.tensor == "output.weight" || delta.tensor.starts_with("blk."));
            }
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::InvalidAdapter | ErrorKind::Unsupported), "{error}");
        }
    }
}

/// The adapter, held against a small model that the seeds fit.
///
/// # Errors
/// As the readers', and where it does not fit.
///
/// # Panics
/// When a delta has not the shape it claims.
pub fn fitted(data: &[u8]) -> Result<ModelAdapter> {
    // More value heads than key heads, so that they are reordered.
    let model = TextDimensions {
        hidden: 4,
        mlp: 6,
        vocab: 8,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        key_heads: 2,
        value_heads: 4,
        key_dim: 1,
        value_dim: 1,
        layers: vec![LayerKind::Attention, LayerKind::Delta],
        network: Network::Dense,
    };
    let [config, weights] = crate::parts(data);
    if weights.starts_with(b"GGUF") {
        let adapter = GgufAdapter::from_bytes(weights.into())?;
        assert!(adapter.deltas().len() > 0);
        adapter.deltas().for_each(check);
        ModelAdapter::from_gguf(adapter, &model)
    } else {
        let adapter = PeftAdapter::from_parts(config, weights)?;
        assert!(adapter.deltas().len() > 0);
        adapter.deltas().for_each(check);
        ModelAdapter::from_peft(adapter, &model)
    }
}

fn check(delta: &LoraDelta) {
    assert!((1..=MAX_RANK).contains(&delta.rank));
    assert_eq!(delta.a.len(), delta.rank * delta.in_features);
    assert_eq!(delta.b.len(), delta.out_features * delta.rank);
    assert!(!delta.path().is_empty());
}
