//! PEFT adapters.

use consort_core::ErrorKind;
use consort_peft::PeftAdapter;

/// Two parts: `adapter_config.json` and `adapter_model.safetensors`.
///
/// # Panics
/// When a delta has not the shape it claims.
pub fn adapter(data: &[u8]) {
    let [config, weights] = crate::parts(data);
    match PeftAdapter::from_parts(config, weights) {
        Ok(adapter) => {
            assert!(adapter.deltas().len() > 0);
            for delta in adapter.deltas() {
                assert!(delta.rank > 0 && delta.rank <= adapter.max_rank());
                assert_eq!(delta.a.len(), delta.rank * delta.in_features);
                assert_eq!(delta.b.len(), delta.out_features * delta.rank);
                assert!(!delta.path().is_empty());
            }
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::InvalidAdapter | ErrorKind::Unsupported), "{error}");
        }
    }
}
