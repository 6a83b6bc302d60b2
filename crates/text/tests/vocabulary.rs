//! The family's real vocabulary: every case of the file that comes with it, and what one can say about any text.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Instant;

use consort_core::{SpecialTokens, TokenId};
use consort_gguf::Gguf;
use consort_text::{Detokenizer, PreTokenizer, SpecialText, Tokenizer};
use proptest::prelude::*;

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

fn folder() -> Option<PathBuf> {
    std::env::var_os("CONSORT_FAMILY_DATA").map(PathBuf::from)
}

/// The real tokenizer, loaded once, when its file is there.
fn tokenizer() -> Option<&'static Tokenizer> {
    static TOKENIZER: OnceLock<Option<Tokenizer>> = OnceLock::new();
    TOKENIZER
        .get_or_init(|| {
            let gguf = Gguf::open(&folder()?.join("ggml-vocab-qwen35.gguf")).unwrap();
            let begin = Instant::now();
            let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
            eprintln!("{} tokens were loaded in {:?}", tokenizer.vocab_size(), begin.elapsed());
            Some(tokenizer)
        })
        .as_ref()
}

#[test]
fn every_case_of_the_vocabulary_file() {
    let Some(tokenizer) = tokenizer() else {
        eprintln!("CONSORT_FAMILY_DATA is not set: 51 cases of the family's vocabulary were not run");
        return;
    };
    let texts = std::fs::read_to_string(folder().unwrap().join("ggml-vocab-qwen35.gguf.inp")).unwrap();
    let ids = std::fs::read_to_string(folder().unwrap().join("ggml-vocab-qwen35.gguf.out")).unwrap();
    let texts: Vec<&str> = texts.split(SEPARATOR).collect();
    // Each line of ids ends with a line break; the texts are separated, and a last, empty one may be missing.
    let ids: Vec<&str> = ids.strip_suffix('\n').unwrap_or(&ids).split('\n').collect();
    let mut wrong = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let wanted: Vec<TokenId> =
            ids.get(index).unwrap_or(&"").split_whitespace().map(|id| id.parse().unwrap()).collect();
        let got = tokenizer.encode(text, SpecialTokens::Plain).unwrap();
        if got != wanted {
            wrong.push(format!("{text:?}\n got {got:?}\nwant {wanted:?}"));
        }
        assert_eq!(tokenizer.encode(text, SpecialTokens::Parse).unwrap(), got, "{text:?}");
        assert_eq!(tokenizer.decode(&got, SpecialText::Show), *text);
    }
    assert!(wrong.is_empty(), "{} of {} cases differ\n{}", wrong.len(), texts.len(), wrong.join("\n"));
    assert!(texts.len() >= ids.len() && texts.len() >= 50, "{} texts, {} lines of ids", texts.len(), ids.len());
    eprintln!("{} cases of the family's vocabulary were run", texts.len());
}

#[test]
fn special_tokens_of_the_family() {
    let Some(tokenizer) = tokenizer() else { return };
    assert_eq!(tokenizer.pre_tokenizer(), PreTokenizer::Qwen35);
    let end = tokenizer.token_to_id("<|im_end|>").unwrap();
    assert!(tokenizer.is_special(end) && tokenizer.end_tokens().contains(&end));
    assert_eq!(tokenizer.id_to_token(end), Some("<|im_end|>"));
    let text = "<|im_start|>user\nHi<|im_end|>";
    let parsed = tokenizer.encode(text, SpecialTokens::Parse).unwrap();
    assert_eq!((parsed.len(), parsed.last()), (5, Some(&end)));
    let plain = tokenizer.encode(text, SpecialTokens::Plain).unwrap();
    assert!(plain.iter().all(|&id| !tokenizer.is_special(id)));
    for ids in [&parsed, &plain] {
        assert_eq!(tokenizer.decode(ids, SpecialText::Show), text);
    }
    assert_eq!(tokenizer.decode(&parsed, SpecialText::Hide), "user\nHi");
}

#[test]
fn encoding_is_quick() {
    let Some(tokenizer) = tokenizer() else { return };
    let line =
        "<|im_start|>user\nWhere does the river end, and who lives there? 12 boats; ça va? 世界 🚀 don't!<|im_end|>\n";
    let prompt = line.repeat(4096 / line.chars().count() + 1);
    // Another thread has none of the words in its cache.
    let cold = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let begin = Instant::now();
                tokenizer.encode(&prompt, SpecialTokens::Parse).unwrap();
                begin.elapsed()
            })
            .join()
            .unwrap()
    });
    let begin = Instant::now();
    let ids = tokenizer.encode(&prompt, SpecialTokens::Parse).unwrap();
    eprintln!(
        "{} characters, {} tokens: {cold:?} at first, then {:?}",
        prompt.chars().count(),
        ids.len(),
        begin.elapsed()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn decoding_is_the_inverse_of_encoding(text in "\\PC{0,40}|[ \\n\\r\\t'a-z0-9<|>_]{0,60}|(<\\|im_end\\|>|a|é|\\n){0,9}") {
        let Some(tokenizer) = tokenizer() else { return Ok(()) };
        for special in [SpecialTokens::Plain, SpecialTokens::Parse] {
            let ids = tokenizer.encode(&text, special).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, SpecialText::Show), &text);
        }
    }

    #[test]
    fn pushes_together_are_the_whole(ids in prop::collection::vec(0..152_100_u32, 0..40), hide in any::<bool>()) {
        let Some(tokenizer) = tokenizer() else { return Ok(()) };
        let special = if hide { SpecialText::Hide } else { SpecialText::Show };
        let mut detokenizer = Detokenizer::new(tokenizer, special);
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text += &detokenizer.finish();
        prop_assert_eq!(text, tokenizer.decode(&ids, special));
    }
}
