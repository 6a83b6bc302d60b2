//! Tokenizers from files, and text through them.

use consort_core::{ErrorKind, SpecialTokens};
use consort_gguf::Gguf;
use consort_text::{Detokenizer, SpecialText, Tokenizer};

/// Three parts: a text, a `tokenizer_config.json` (empty: none), and a GGUF file or a `tokenizer.json`.
///
/// # Panics
/// When decoding is not the inverse of encoding, or pushes are not the whole.
pub fn tokenizer(data: &[u8]) {
    let [text, config, file] = crate::parts(data);
    let loaded = if file.starts_with(b"GGUF") {
        Gguf::from_bytes(file.to_vec()).and_then(|gguf| Tokenizer::from_gguf(&gguf))
    } else {
        Tokenizer::from_json(file, (!config.is_empty()).then_some(config))
    };
    let tokenizer = match loaded {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            return assert!(matches!(error.kind(), ErrorKind::InvalidTokenizer | ErrorKind::InvalidModel), "{error}");
        }
    };
    let text = String::from_utf8_lossy(text);
    for special in [SpecialTokens::Plain, SpecialTokens::Parse] {
        let ids = match tokenizer.encode(&text, special) {
            Ok(ids) => ids,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::InvalidTokenizer | ErrorKind::InvalidRequest), "{error}");
                continue;
            }
        };
        assert!(ids.iter().all(|&id| tokenizer.token_bytes(id).is_some()));
        // Files may ask for normal form C, which only text beyond ASCII is not in already.
        if text.is_ascii() {
            assert_eq!(tokenizer.decode(&ids, SpecialText::Show), text);
        }
    }
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    for special in [SpecialText::Hide, SpecialText::Show] {
        let mut detokenizer = Detokenizer::new(&tokenizer, special);
        let mut pushed: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        pushed += &detokenizer.finish();
        assert_eq!(pushed, tokenizer.decode(&ids, special));
    }
}
