//! Activated adapters, made of a fixture's ordinary ones.

use std::sync::Arc;

use consort_core::{AdapterFiles, TokenId};
use serde_json::Value;

use crate::case::Outcome;
use crate::fixture::NamedAdapter;

/// The contents of an adapter's two files: the config and the weights.
pub(crate) fn contents(files: &AdapterFiles) -> consort_core::Result<(Vec<u8>, Vec<u8>)> {
    match files {
        AdapterFiles::Directory(folder) => Ok((
            crate::golden::read(&folder.join("adapter_config.json"))?,
            crate::golden::read(&folder.join("adapter_model.safetensors"))?,
        )),
        AdapterFiles::Bytes { config, weights } => Ok((config.to_vec(), weights.to_vec())),
        _ => {
            Err(consort_core::Error::new(consort_core::ErrorKind::InvalidAdapter, "adapters of this kind are unknown"))
        }
    }
}

/// The same weights with other entries in the config.
pub(crate) fn edited(files: &AdapterFiles, entries: &[(&str, Value)]) -> Outcome<AdapterFiles> {
    let (config, weights) = contents(files)?;
    let mut config: Value = serde_json::from_slice(&config).map_err(|error| error.to_string())?;
    for (key, value) in entries {
        config[*key] = value.clone();
    }
    Ok(AdapterFiles::Bytes { config: config.to_string().into_bytes().into(), weights: Arc::from(weights) })
}

/// The same weights, active from `invocation` on.
pub(crate) fn activated(files: &AdapterFiles, invocation: &[TokenId]) -> Outcome<AdapterFiles> {
    edited(files, &[("alora_invocation_tokens", Value::from(invocation))])
}

/// The persona of this number: one of the adapters, with a strength that is its own.
pub(crate) fn persona(adapters: &[NamedAdapter], number: usize, invocation: &[TokenId]) -> Outcome<AdapterFiles> {
    let adapter = adapters.get(number % adapters.len().max(1)).ok_or("the fixture has no adapters")?;
    let (config, _) = contents(&adapter.files)?;
    let config: Value = serde_json::from_slice(&config).map_err(|error| error.to_string())?;
    let alpha = config["lora_alpha"].as_f64().unwrap_or(1.0) * (1.0 + 0.17 * number as f64);
    edited(&adapter.files, &[("alora_invocation_tokens", Value::from(invocation)), ("lora_alpha", Value::from(alpha))])
}
