//! Which tokens stand together, and which of them are scored.

use std::ops::Range;

use consort_core::{AdapterSet, Error, ErrorKind, Result};
use serde::Serialize;

/// How a text that is longer than the context is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Windows {
    /// Disjoint windows of `context` tokens; what is left at the end is not used. Of each, the tokens from
    /// `context / 2 + 1` on are scored, so that each has at least half a window before it. This is what llama.cpp's
    /// `llama-perplexity` does without `--ppl-stride` for a model without a beginning-of-text token, and figures can be
    /// compared with its. (Source: `perplexity()` in its `tools/perplexity/perplexity.cpp`.)
    SecondHalf,
    /// Overlapping windows: each begins `stride` tokens after the one before and scores what that one did not reach. Every
    /// token but the first is scored exactly once, with `context - stride` tokens before it or all that there are.
    /// (Source: "Perplexity of fixed-length models" in transformers' documentation.)
    Strided {
        /// From 1 to `context - 1`. Small is slow and gives each token more context.
        stride: usize,
    },
}

/// What is measured, and within which memory.
#[derive(Debug, Clone)]
pub struct QualityConfig {
    /// Tokens of a window.
    pub context: usize,
    /// How windows follow one another.
    pub windows: Windows,
    /// The most bytes of logits that are held of one engine at a time. One row, `4 · vocab_size` bytes, is always held.
    pub max_row_bytes: usize,
    /// With which adapters.
    pub adapters: AdapterSet,
}

impl QualityConfig {
    /// Windows of `context` tokens whose second half is scored, 64 MiB of logits at a time, no adapters.
    #[must_use]
    pub fn new(context: usize) -> Self {
        Self { context, windows: Windows::SecondHalf, max_row_bytes: 64 << 20, adapters: AdapterSet::none() }
    }

    /// The windows over a text of `tokens` tokens.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a context or a stride without meaning, [`ErrorKind::InvalidRequest`] when the text
    /// is too short for a token to be scored.
    pub fn plan(&self, tokens: usize) -> Result<Vec<Window>> {
        let refuse = |message: String| Err(Error::new(ErrorKind::InvalidConfig, message).with_operation("bench::plan"));
        let context = self.context;
        let windows: Vec<_> = match self.windows {
            Windows::SecondHalf if context < 3 => {
                return refuse(format!("a window of {context} tokens has no second half to score: use 3 or more"));
            }
            Windows::SecondHalf => (0..tokens / context)
                .map(|index| {
                    let start = index * context;
                    Window { tokens: start..start + context, scored: start + context / 2 + 1..start + context }
                })
                .collect(),
            Windows::Strided { stride } if stride == 0 || stride >= context => {
                return refuse(format!(
                    "the stride is {stride}; it must be from 1 to one less than the context, {context}"
                ));
            }
            Windows::Strided { stride } => {
                let mut windows = Vec::new();
                let (mut start, mut reached) = (0, 1);
                while reached < tokens {
                    let end = tokens.min(start + context);
                    windows.push(Window { tokens: start..end, scored: reached..end });
                    (start, reached) = (start + stride, end);
                }
                windows
            }
        };
        if windows.is_empty() {
            let needed = if matches!(self.windows, Windows::SecondHalf) { context } else { 2 };
            let message = format!(
                "the text has {tokens} tokens, and {needed} are needed: use a longer text or a smaller context"
            );
            return Err(Error::new(ErrorKind::InvalidRequest, message).with_operation("bench::plan"));
        }
        Ok(windows)
    }
}

/// A piece of the text that the model sees at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// What it sees, as indices of the text's tokens. The first of them stands at position 0.
    pub tokens: Range<usize>,
    /// Which of them are scored: how probable was each, after those before it?
    pub scored: Range<usize>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_are_cut_as_llama_cpp_cuts_them() {
        let plan = QualityConfig::new(8).plan(19).unwrap();
        assert_eq!(plan, [Window { tokens: 0..8, scored: 5..8 }, Window { tokens: 8..16, scored: 13..16 }]);
    }

    #[test]
    fn strides_are_those_of_the_documentation() {
        // transformers' loop for max_length 4, stride 2, a text of 7.
        let config = QualityConfig { windows: Windows::Strided { stride: 2 }, ..QualityConfig::new(4) };
        assert_eq!(
            config.plan(7).unwrap(),
            [
                Window { tokens: 0..4, scored: 1..4 },
                Window { tokens: 2..6, scored: 4..6 },
                Window { tokens: 4..7, scored: 6..7 },
            ]
        );
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let kind = |config: &QualityConfig, tokens| config.plan(tokens).unwrap_err().kind();
        assert_eq!(kind(&QualityConfig::new(2), 100), ErrorKind::InvalidConfig);
        assert_eq!(kind(&QualityConfig::new(64), 63), ErrorKind::InvalidRequest);
        for stride in [0, 16, 17] {
            let config = QualityConfig { windows: Windows::Strided { stride }, ..QualityConfig::new(16) };
            assert_eq!(kind(&config, 100), ErrorKind::InvalidConfig);
        }
        let config = QualityConfig { windows: Windows::Strided { stride: 1 }, ..QualityConfig::new(16) };
        assert_eq!(kind(&config, 1), ErrorKind::InvalidRequest);
    }

    proptest! {
        #[test]
        fn strided_windows_score_every_token_but_the_first_once(tokens in 2..300_usize, context in 2..40_usize, stride in 1..39_usize) {
            prop_assume!(stride < context);
            let config = QualityConfig { windows: Windows::Strided { stride }, ..QualityConfig::new(context) };
            let plan = config.plan(tokens).unwrap();
            let scored: Vec<_> = plan.iter().flat_map(|window| window.scored.clone()).collect();
            prop_assert_eq!(scored, (1..tokens).collect::<Vec<_>>());
            for window in plan {
                prop_assert!(window.tokens.len() <= context && window.scored.end == window.tokens.end);
                let before = window.scored.start - window.tokens.start;
                prop_assert!(before >= 1 && (window.tokens.start == 0 || before == context - stride));
            }
        }
    }
}
