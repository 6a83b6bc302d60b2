//! Which tokens a grammar allows.

use consort_core::TokenId;

/// A set of tokens, one bit each: token `t` is bit `t % 32` of word `t / 32`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// The empty set, with room for `vocab_size` tokens.
    #[must_use]
    pub fn none(vocab_size: usize) -> Self {
        Self { words: vec![0; vocab_size.div_ceil(32)] }
    }

    /// From words in the same layout. What lies beyond their end is not in the set.
    #[must_use]
    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// Adds a token. One beyond the room of the set is left out.
    pub fn allow(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }

    /// Takes a token out.
    pub fn forbid(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token as usize / 32) {
            *word &= !(1 << (token % 32));
        }
    }

    /// Whether the token is in the set.
    #[must_use]
    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// How many tokens are in the set.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Copies `row` to `out`, with −∞ for what is not in the set.
    pub(crate) fn apply(&self, row: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.reserve(row.len());
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (chunk, word) in row.chunks(32).zip(words) {
            match word {
                0 => out.resize(out.len() + chunk.len(), f32::NEG_INFINITY),
                u32::MAX => out.extend_from_slice(chunk),
                word => out.extend(
                    chunk.iter().enumerate().map(
                        |(bit, &logit)| {
                            if word >> bit & 1 == 1 { logit } else { f32::NEG_INFINITY }
                        },
                    ),
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_a_set() {
        let mut mask = TokenMask::none(70);
        for token in [0, 31, 32, 69, 1000] {
            mask.allow(token);
        }
        mask.forbid(31);
        mask.forbid(2000);
        assert_eq!((0..1001).filter(|&token| mask.allows(token)).collect::<Vec<_>>(), [0, 32, 69]);
        assert_eq!(mask.count(), 3);
    }

    #[test]
    fn what_is_not_in_the_set_is_masked_also_beyond_its_end() {
        let row: Vec<f32> = (0..100u8).map(f32::from).collect();
        let mask = TokenMask::from_words(vec![u32::MAX, 0, 5]);
        let mut out = vec![9.0; 3];
        mask.apply(&row, &mut out);
        assert_eq!(out.len(), row.len());
        for (token, &logit) in out.iter().enumerate() {
            let expected = if token < 32 || token == 64 || token == 66 { row[token] } else { f32::NEG_INFINITY };
            assert_eq!(logit, expected);
        }
    }
}
