//! Whether two backends serve one model, as far as can be told.

use std::fmt::Debug;
use std::sync::Arc;

use consort_core::{Error, ErrorKind, ModelBackend, ModelInfo, Result, SpecialTokens, TokenId};

/// Letters, digits, spaces, marks, scripts and what looks like a special token: where tokenizers differ, they differ here.
const PROBE: &str =
    "The cello answers;\n\n\tl'été 1789, naïve 音楽 Приве́т 🎻🏽 … <|im_start|>user don't  x_1 == 0x7F\r\n";

fn refuse(field: &'static str, local: &impl Debug, remote: &impl Debug) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!("the local and the remote backend serve different models: {field} differs"),
    )
    .with_operation("overflow::new")
    .with_context("field", field)
    .with_context("local", format!("{local:?}"))
    .with_context("remote", format!("{remote:?}"))
}

/// Refuses two numbers that are both known and differ.
fn number(field: &'static str, local: usize, remote: usize) -> Result<()> {
    if local == 0 || remote == 0 || local == remote { Ok(()) } else { Err(refuse(field, &local, &remote)) }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Refuses two backends that are told apart by anything they say of their model. What one of them does not know (0, nothing,
/// a digest of zeros) is not held against it.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] that names the field and both values.
pub(crate) fn same_model(local: &Arc<dyn ModelBackend>, remote: &Arc<dyn ModelBackend>) -> Result<()> {
    if Arc::ptr_eq(local, remote) {
        return Err(Error::new(ErrorKind::InvalidConfig, "the local and the remote backend must be two")
            .with_operation("overflow::new")
            .with_context("backend", local.name()));
    }
    same_info(local.info(), remote.info())?;
    for (special, words) in [(SpecialTokens::Plain, "tokenizer"), (SpecialTokens::Parse, "tokenizer (special tokens)")]
    {
        // Who has no tokenizer at hand cannot be compared.
        let (Ok(here), Ok(there)) = (local.tokenize(PROBE, special), remote.tokenize(PROBE, special)) else { continue };
        if here != there {
            return Err(refuse(words, &here, &there));
        }
    }
    Ok(())
}

fn same_info(local: &ModelInfo, remote: &ModelInfo) -> Result<()> {
    number("vocab_size", local.vocab_size, remote.vocab_size)?;
    number("hidden_size", local.hidden_size, remote.hidden_size)?;
    number("layers", local.layers, remote.layers)?;
    let sorted = |info: &ModelInfo| -> Vec<TokenId> {
        let mut tokens = info.stop_tokens.clone();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    let (here, there) = (sorted(local), sorted(remote));
    if !here.is_empty() && !there.is_empty() && here != there {
        return Err(refuse("stop_tokens", &here, &there));
    }
    if let (Some(here), Some(there)) = (local.image_token, remote.image_token)
        && here != there
    {
        return Err(refuse("image_token", &here, &there));
    }
    if local.digest != [0; 32] && remote.digest != [0; 32] && local.digest != remote.digest {
        return Err(refuse("digest", &hex(&local.digest), &hex(&remote.digest)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_differs_is_named_and_what_is_unknown_is_not_held_against_anybody() {
        let local = ModelInfo {
            vocab_size: 320,
            hidden_size: 64,
            layers: 4,
            digest: [7; 32],
            stop_tokens: vec![308, 309],
            image_token: Some(312),
            ..ModelInfo::default()
        };
        same_info(&local, &local).unwrap();
        same_info(&local, &ModelInfo::default()).unwrap();
        same_info(&local, &ModelInfo { stop_tokens: vec![309, 308, 309], ..local.clone() }).unwrap();
        let differ = [
            ("vocab_size", ModelInfo { vocab_size: 321, ..local.clone() }),
            ("hidden_size", ModelInfo { hidden_size: 65, ..local.clone() }),
            ("layers", ModelInfo { layers: 5, ..local.clone() }),
            ("stop_tokens", ModelInfo { stop_tokens: vec![308], ..local.clone() }),
            ("image_token", ModelInfo { image_token: Some(311), ..local.clone() }),
            ("digest", ModelInfo { digest: [8; 32], ..local.clone() }),
        ];
        for (field, remote) in differ {
            let error = same_info(&local, &remote).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            let named: Vec<_> = error.context().collect();
            assert_eq!(named[0], ("field", field), "{error}");
        }
    }
}
