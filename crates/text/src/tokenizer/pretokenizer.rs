//! How text is cut into words before BPE merges bytes within each.
//!
//! Patterns from model files are not run: each of them is one of a few known ones, or it is refused. A stranger's pattern
//! could take exponential time on a harmless text.

use std::sync::OnceLock;

use consort_core::{Error, ErrorKind, Result};
use fancy_regex::{Regex, RegexBuilder};

/// A known rule that cuts text into words, under the name by which GGUF files call it (`tokenizer.ggml.pre`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PreTokenizer {
    /// Qwen3.5: as Qwen2, with combining marks counted among the letters.
    Qwen35,
    /// Qwen2, Qwen2.5 and Qwen3.
    Qwen2,
    /// Llama 3: numbers in groups of up to three digits.
    Llama3,
    /// GPT-2.
    Gpt2,
}

impl PreTokenizer {
    const ALL: [Self; 4] = [Self::Qwen35, Self::Qwen2, Self::Llama3, Self::Gpt2];

    /// The rule that a GGUF file names.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTokenizer`] that names an unknown rule: guessing would give other token ids in silence.
    pub fn from_gguf_name(name: &str) -> Result<Self> {
        match name {
            "qwen35" => Ok(Self::Qwen35),
            "qwen2" | "deepseek-r1-qwen" => Ok(Self::Qwen2),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(Self::Llama3),
            "gpt-2" => Ok(Self::Gpt2),
            _ => Err(Error::new(
                ErrorKind::InvalidTokenizer,
                "the pre-tokenizer is unknown; known are qwen35, qwen2, llama-bpe and gpt-2",
            )
            .with_context("tokenizer.ggml.pre", super::shorten(name))),
        }
    }

    /// The name in GGUF files.
    #[must_use]
    pub fn gguf_name(self) -> &'static str {
        match self {
            Self::Qwen35 => "qwen35",
            Self::Qwen2 => "qwen2",
            Self::Llama3 => "llama-bpe",
            Self::Gpt2 => "gpt-2",
        }
    }

    /// The rule's regular expression, as `tokenizer.json` files of the family spell it.
    #[must_use]
    pub fn pattern(self) -> &'static str {
        match self {
            Self::Qwen35 => concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
                r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            Self::Qwen2 => concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            Self::Llama3 => concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            Self::Gpt2 => r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        }
    }

    pub(super) fn from_pattern(pattern: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.pattern() == pattern)
    }

    /// The compiled pattern, which all tokenizers share: compiling takes longer than a short text.
    pub(super) fn compile(self) -> Result<Regex> {
        static COMPILED: [OnceLock<Regex>; PreTokenizer::ALL.len()] =
            [const { OnceLock::new() }; PreTokenizer::ALL.len()];
        let slot = COMPILED.get(self as usize);
        if let Some(regex) = slot.and_then(OnceLock::get) {
            return Ok(regex.clone());
        }
        let regex = self.compile_anew()?;
        Ok(slot.map_or_else(|| regex.clone(), |slot| slot.get_or_init(|| regex.clone()).clone()))
    }

    fn compile_anew(self) -> Result<Regex> {
        // The known patterns backtrack at most once per character. What is left is the engine's limit for its own stack,
        // which a run of about a million blanks reaches.
        RegexBuilder::new(self.pattern()).backtrack_limit(usize::MAX).build().map_err(|source| {
            Error::new(ErrorKind::Unexpected, "the pre-tokenizer's pattern does not compile")
                .with_context("pre-tokenizer", self.gguf_name())
                .with_source(source)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The reference library's Python build runs the patterns with Oniguruma. Both engines must cut alike.
    #[test]
    fn words_are_cut_as_the_reference_cuts_them() {
        let cases: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../tests/golden/pretokenizer_cases.json")).unwrap();
        assert_eq!(cases.len(), 500);
        for pre in PreTokenizer::ALL {
            let pattern = pre.compile().unwrap();
            for case in &cases {
                let text = case["text"].as_str().unwrap();
                let words: Vec<u64> =
                    pattern.find_iter(text).map(|word| word.unwrap().as_str().chars().count() as u64).collect();
                let wanted: Vec<u64> =
                    case[pre.gguf_name()].as_array().unwrap().iter().map(|length| length.as_u64().unwrap()).collect();
                assert_eq!(words, wanted, "{} on {text:?}", pre.gguf_name());
            }
        }
    }

    #[test]
    fn a_long_run_of_blanks_is_cut() {
        for pre in PreTokenizer::ALL {
            let text = " ".repeat(300_000) + "x";
            let words = pre.compile().unwrap().find_iter(&text).filter(Result::is_ok).count();
            assert_eq!(words, 2, "{}", pre.gguf_name());
        }
    }

    #[test]
    fn an_unknown_rule_is_refused_by_name() {
        let error = PreTokenizer::from_gguf_name("mystery").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTokenizer);
        assert_eq!(error.context().next(), Some(("tokenizer.ggml.pre", "mystery")));
    }
}
