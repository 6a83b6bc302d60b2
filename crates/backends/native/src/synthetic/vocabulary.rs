//! A byte-level BPE vocabulary of a given size, for models whose weights are random.
//!
//! Choosing a token costs a pass over all logits, and a reply has to become text: both depend on how many tokens there are,
//! and neither on what they mean. So the tokens are made up, in the family's order: bytes, then what merges give, then the
//! family's special tokens, then unused ones. A text of the given words has about one token a word, as with a real
//! vocabulary; other text is cut into bytes, pairs and fours.

use std::collections::HashSet;

use consort_core::{Error, ErrorKind, Result};
use consort_gguf::GgufWriter;

/// What `tokenizer.ggml.token_type` says of a token.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// Places at the end of a vocabulary for special tokens and unused ones: 248,320 − 248,044, as in the family's.
const RESERVED: u32 = 276;
/// The family's special tokens, by their place after the ordinary tokens.
const SPECIAL: [(u32, &str); 8] = [
    (0, "<|endoftext|>"),
    (1, "<|im_start|>"),
    (2, "<|im_end|>"),
    (9, "<|vision_start|>"),
    (10, "<|vision_end|>"),
    (12, "<|image_pad|>"),
    (24, "<think>"),
    (25, "</think>"),
];

/// A made-up tokenizer for a random model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticTokenizer {
    /// Words, of the letters a to z, that are one token each after a blank.
    pub words: Vec<String>,
    /// The chat template (`tokenizer.chat_template`).
    pub chat_template: String,
}

impl SyntheticTokenizer {
    /// Adds a tokenizer of `vocab` tokens to the file's metadata.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] when the vocabulary is too small for the bytes, the words and the special tokens, or
    /// too large to be made of four letters.
    pub(super) fn write(&self, vocab: u32, writer: &mut GgufWriter<'_>) -> Result<()> {
        let (mut tokens, merges) = self.tokens(vocab)?;
        let ordinary = vocab - RESERVED;
        let mut types = vec![NORMAL; tokens.len()];
        for place in 0..RESERVED {
            match SPECIAL.iter().find(|(at, _)| *at == place) {
                Some((_, text)) => {
                    tokens.push((*text).to_owned());
                    types.push(CONTROL);
                }
                None => {
                    tokens.push(format!("[PAD{}]", ordinary + place));
                    types.push(UNUSED);
                }
            }
        }
        writer.set("tokenizer.ggml.model", "gpt2");
        writer.set("tokenizer.ggml.pre", "qwen35");
        writer.set("tokenizer.ggml.tokens", tokens);
        writer.set("tokenizer.ggml.token_type", types);
        writer.set("tokenizer.ggml.merges", merges);
        writer.set("tokenizer.ggml.eos_token_id", ordinary + 2);
        writer.set("tokenizer.ggml.padding_token_id", ordinary);
        writer.set("tokenizer.ggml.add_bos_token", false);
        writer.set("tokenizer.chat_template", self.chat_template.as_str());
        Ok(())
    }

    /// The ordinary tokens and the merges that make them, in the order of their rank.
    fn tokens(&self, vocab: u32) -> Result<(Vec<String>, Vec<String>)> {
        let refuse = |message: &str| {
            Err(Error::new(ErrorKind::InvalidConfig, message)
                .with_operation("native::synthetic")
                .with_context("vocab", vocab.to_string()))
        };
        let wanted = vocab.saturating_sub(RESERVED) as usize;
        let mut made = Vocabulary::default();
        for byte in 0..=255_u8 {
            made.add(spelling(byte).to_string());
        }
        // Each word grows letter by letter behind its blank. Nothing else merges with a blank, and these merges come first,
        // so a word of the list always becomes one token.
        for word in &self.words {
            if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_lowercase()) {
                return refuse("a word of a synthetic vocabulary has letters from a to z and no others");
            }
            let mut before = BLANK.to_string();
            for letter in word.chars() {
                before = made.merge(&before, &letter.to_string());
            }
        }
        if made.tokens.len() > wanted {
            return refuse("the vocabulary is too small for the bytes, the words and the special tokens");
        }
        let letters = || ('a'..='z').map(String::from);
        let pairs: Vec<String> = letters().flat_map(|one| letters().map(move |two| format!("{one}{two}"))).collect();
        for pair in &pairs {
            if made.tokens.len() < wanted {
                made.merge(&pair[..1], &pair[1..]);
            }
        }
        'fours: for one in &pairs {
            for two in &pairs {
                if made.tokens.len() >= wanted {
                    break 'fours;
                }
                made.merge(one, two);
            }
        }
        if made.tokens.len() < wanted {
            return refuse("the vocabulary is too large to be made of bytes, words and four letters");
        }
        Ok((made.tokens, made.merges))
    }
}

/// How byte-level BPE spells a blank.
const BLANK: char = '\u{120}';

/// The character that byte-level BPE writes for a byte (Radford et al. 2019, `bytes_to_unicode` of GPT-2's encoder):
/// printable bytes stand for themselves, the others are counted up from 256.
fn spelling(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count();
    u32::try_from(before).ok().and_then(|before| char::from_u32(256 + before)).unwrap_or(BLANK)
}

#[derive(Default)]
struct Vocabulary {
    tokens: Vec<String>,
    known: HashSet<String>,
    merges: Vec<String>,
}

impl Vocabulary {
    fn add(&mut self, token: String) -> bool {
        let new = self.known.insert(token.clone());
        if new {
            self.tokens.push(token);
        }
        new
    }

    /// What two tokens make together, whether it was there before or not.
    fn merge(&mut self, left: &str, right: &str) -> String {
        let whole = format!("{left}{right}");
        if self.add(whole.clone()) {
            self.merges.push(format!("{left} {right}"));
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tokenizer(words: &[&str]) -> SyntheticTokenizer {
        SyntheticTokenizer { words: words.iter().map(ToString::to_string).collect(), chat_template: String::new() }
    }

    #[test]
    fn there_are_as_many_tokens_as_asked_for() {
        for vocab in [276 + 256 + 7, 2048, 248_320] {
            let mut writer = GgufWriter::new("qwen35");
            tokenizer(&["house", "home"]).write(vocab, &mut writer).unwrap();
            let tokens = writer.metadata().array_of_strings("tokenizer.ggml.tokens").unwrap();
            assert_eq!(tokens.len(), vocab as usize);
            assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), tokens.len());
            assert_eq!(tokens[vocab as usize - 274], "<|im_end|>");
        }
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let kind =
            |words: &[&str], vocab| tokenizer(words).write(vocab, &mut GgufWriter::new("qwen35")).unwrap_err().kind();
        assert_eq!(kind(&[], 300), ErrorKind::InvalidConfig);
        assert_eq!(kind(&[], 1_000_000), ErrorKind::InvalidConfig);
        assert_eq!(kind(&["No"], 2048), ErrorKind::InvalidConfig);
    }

    #[test]
    fn bytes_are_spelled_as_gpt_2_spells_them() {
        assert_eq!(
            (spelling(b' '), spelling(b'\n'), spelling(b'a'), spelling(0xad)),
            (BLANK, '\u{10a}', 'a', '\u{143}')
        );
        assert_eq!((0..=255).map(spelling).collect::<HashSet<_>>().len(), 256);
    }
}
