//! Whether two models mean the same by a token id.

use consort_core::{Error, ErrorKind, Result, TokenId};
use consort_text::Tokenizer;

/// Refuses two tokenizers whose ids do not all mean the same tokens.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] that names the first id which differs, and what it is in both.
pub fn same_vocabulary(one: &Tokenizer, other: &Tokenizer) -> Result<()> {
    let refuse = |key: &'static str, first: String, second: String| {
        Err(Error::new(
            ErrorKind::InvalidRequest,
            "the two models have different vocabularies, so their distributions cannot be compared",
        )
        .with_context(key, first)
        .with_context("other", second))
    };
    for id in 0..one.vocab_size().max(other.vocab_size()) {
        let Ok(id) = TokenId::try_from(id) else { break };
        let meaning = |tokenizer: &Tokenizer| (tokenizer.token_bytes(id).map(<[u8]>::to_vec), tokenizer.is_special(id));
        if meaning(one) != meaning(other) {
            let show = |tokenizer: &Tokenizer| {
                let token = tokenizer.id_to_token(id).map_or_else(|| "no token".into(), |token| format!("{token:?}"));
                format!("{id} is {token}{}", if tokenizer.is_special(id) { " (special)" } else { "" })
            };
            return refuse("reference", show(one), show(other));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let json = consort_text::doc_tokenizer_json();
        let one = Tokenizer::from_json(&json, None).unwrap();
        same_vocabulary(&one, &one.clone()).unwrap();
        let renamed = String::from_utf8(json).unwrap().replace("<|im_end|>", "<|the_end|>");
        let other = Tokenizer::from_json(renamed.as_bytes(), None).unwrap();
        let error = same_vocabulary(&one, &other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("257 is \"<|im_end|>\" (special)"), "{error}");
    }
}
