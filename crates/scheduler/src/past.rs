//! What a sequence has read or is to read, token by token, with the key of every prefix.

use std::ops::Range;
use std::sync::Arc;

use consort_core::{
    AdapterSet, ContentHash, Error, ErrorKind, ImageHandle, ImageSource, Position, PromptPart, Result, StepInput,
    TokenId,
};
use consort_vision::{MropeBuilder, Segment};

/// The identity of a prefix: two equal keys mean the same model, adapters, tokens, images and positions up to there.
pub(crate) type ChainKey = [u8; 32];

/// A stretch of a past.
#[derive(Debug)]
enum Stretch {
    Text { start: usize, tokens: Vec<TokenId> },
    Image { start: usize, source: Arc<dyn ImageSource>, hash: ContentHash, tokens: usize },
}

impl Stretch {
    fn range(&self) -> Range<usize> {
        match self {
            Self::Text { start, tokens } => *start..start + tokens.len(),
            Self::Image { start, tokens, .. } => *start..start + tokens,
        }
    }
}

/// An image of a past.
#[derive(Debug, Clone)]
pub(crate) struct ImageAt {
    pub(crate) source: Arc<dyn ImageSource>,
    pub(crate) hash: ContentHash,
}

/// A prompt and, behind it, what was generated.
#[derive(Debug)]
pub(crate) struct Past {
    stretches: Vec<Stretch>,
    positions: MropeBuilder,
    keys: Vec<ChainKey>,
}

impl Past {
    /// Lays parts out at their positions.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for an empty prompt or a part without tokens, what the position builder refuses.
    pub(crate) fn new(parts: Vec<PromptPart>) -> Result<Self> {
        let mut past = Self { stretches: Vec::new(), positions: MropeBuilder::new(), keys: Vec::new() };
        for part in parts {
            match part {
                PromptPart::Tokens(tokens) => past.text(tokens)?,
                PromptPart::Image(source) => {
                    let (grid, start) = (source.grid(), past.len());
                    past.positions.push(Segment::Image(grid))?;
                    let hash = source.content_hash();
                    past.stretches.push(Stretch::Image { start, source, hash, tokens: grid.tokens() });
                }
            }
        }
        if past.len() == 0 {
            return Err(Error::new(ErrorKind::InvalidRequest, "the prompt is empty").with_context("field", "prompt"));
        }
        Ok(past)
    }

    fn text(&mut self, tokens: Vec<TokenId>) -> Result<()> {
        let start = self.len();
        self.positions.push(Segment::Text(tokens.len()))?;
        match self.stretches.last_mut() {
            _ if tokens.is_empty() => {}
            Some(Stretch::Text { tokens: before, .. }) => before.extend(tokens),
            _ => self.stretches.push(Stretch::Text { start, tokens }),
        }
        Ok(())
    }

    /// Appends a generated token. It has no key: what is generated is kept only once it is rendered anew.
    ///
    /// # Errors
    /// As the position builder, at absurd lengths.
    pub(crate) fn push(&mut self, token: TokenId) -> Result<()> {
        self.text(vec![token])
    }

    /// Computes the key of every prefix, chained token by token.
    ///
    /// The root holds the model's digest and the effective adapters, with generation and the scale's bits: ordinary
    /// adapters touch every position. Each link holds the token, or the image's content hash and the index within it,
    /// and the position. (An activated adapter in the root shares less than it could, and never too much.)
    pub(crate) fn seal(&mut self, model: &[u8; 32], adapters: &AdapterSet) {
        let mut root = blake3::Hasher::new();
        root.update(b"consort past 1\0").update(model);
        for binding in adapters.bindings() {
            root.update(&(binding.key.id.len() as u64).to_le_bytes()).update(binding.key.id.as_bytes());
            root.update(&binding.key.generation.to_le_bytes()).update(&binding.scale.to_bits().to_le_bytes());
        }
        let mut key: ChainKey = root.finalize().into();
        let mut keys = Vec::with_capacity(self.len());
        let positions = self.positions.positions();
        // previous key, kind, content, position: text and images differ in kind, so lengths cannot be confused.
        let mut link = [0; 32 + 1 + 36 + 12];
        for stretch in &self.stretches {
            for index in stretch.range() {
                let content = match stretch {
                    Stretch::Text { start, tokens } => {
                        link[32] = 0;
                        link[33..37].copy_from_slice(&tokens[index - start].to_le_bytes());
                        4
                    }
                    Stretch::Image { start, hash, .. } => {
                        link[32] = 1;
                        link[33..65].copy_from_slice(&hash.0);
                        link[65..69].copy_from_slice(&((index - start) as u32).to_le_bytes());
                        36
                    }
                };
                let Position { t, h, w } = positions[index];
                for (slot, component) in [t, h, w].into_iter().enumerate() {
                    let at = 33 + content + 4 * slot;
                    link[at..at + 4].copy_from_slice(&component.to_le_bytes());
                }
                link[..32].copy_from_slice(&key);
                key = blake3::hash(&link[..33 + content + 12]).into();
                keys.push(key);
            }
        }
        self.keys = keys;
    }

    /// Length in tokens.
    pub(crate) fn len(&self) -> usize {
        self.positions.positions().len()
    }

    /// `keys()[n - 1]` is the key of the first `n` tokens of the prompt.
    pub(crate) fn keys(&self) -> &[ChainKey] {
        &self.keys
    }

    /// The key of the first `length` tokens, if they belong to the prompt.
    pub(crate) fn key(&self, length: usize) -> Option<&ChainKey> {
        self.keys.get(length.checked_sub(1)?)
    }

    /// Positions of a range, which must lie within.
    pub(crate) fn positions(&self, range: Range<usize>) -> &[Position] {
        self.positions.positions().get(range).unwrap_or_default()
    }

    /// Images that are not wholly among the first `from` tokens.
    pub(crate) fn images(&self, from: usize) -> impl Iterator<Item = ImageAt> + '_ {
        self.stretches.iter().filter_map(move |stretch| match stretch {
            Stretch::Image { source, hash, .. } if stretch.range().end > from => {
                Some(ImageAt { source: Arc::clone(source), hash: *hash })
            }
            _ => None,
        })
    }

    /// How many tokens from `from` on one step can take: up to `limit`, and never beyond the stretch.
    pub(crate) fn chunk(&self, from: usize, limit: usize) -> usize {
        self.stretch(from).map_or(0, |stretch| stretch.range().end - from).min(limit)
    }

    /// The image in which token `at` lies.
    pub(crate) fn image_at(&self, at: usize) -> Option<ContentHash> {
        match self.stretch(at)? {
            Stretch::Image { hash, .. } => Some(*hash),
            Stretch::Text { .. } => None,
        }
    }

    /// A step's input for a range that [`chunk`](Self::chunk) admits. `handle` finds an encoded image.
    pub(crate) fn input<'a>(
        &'a self,
        range: Range<usize>,
        handle: impl FnOnce(ContentHash) -> Option<&'a ImageHandle>,
    ) -> Option<StepInput<'a>> {
        match self.stretch(range.start)? {
            Stretch::Text { start, tokens } => {
                tokens.get(range.start - start..range.end - start).map(StepInput::Tokens)
            }
            Stretch::Image { start, hash, .. } => {
                handle(*hash).map(|image| StepInput::Image { image, tokens: range.start - start..range.end - start })
            }
        }
    }

    /// Whether each of the prompt's text tokens is one that engines can take.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] that names the token.
    pub(crate) fn check_tokens(&self, vocab_size: usize, image_token: Option<TokenId>) -> Result<()> {
        for stretch in &self.stretches {
            let Stretch::Text { tokens, .. } = stretch else { continue };
            if let Some(bad) = tokens.iter().find(|&&t| t as usize >= vocab_size || Some(t) == image_token) {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "a token of the prompt is beyond the vocabulary, or an image token without its image",
                )
                .with_context("token", bad.to_string()));
            }
        }
        Ok(())
    }

    fn stretch(&self, at: usize) -> Option<&Stretch> {
        let index = self.stretches.partition_point(|stretch| stretch.range().end <= at);
        self.stretches.get(index)
    }
}

/// How many leading keys two chains share. Chained keys that are equal at one place are equal at all before it.
pub(crate) fn common_prefix<K: PartialEq>(one: &[K], other: &[K]) -> usize {
    let (mut low, mut high) = (0, one.len().min(other.len()));
    while low < high {
        let middle = low + (high - low) / 2;
        if one[middle] == other[middle] { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use consort_core::{AdapterBinding, AdapterKey};

    use super::*;

    fn text(tokens: &[TokenId]) -> Past {
        Past::new(vec![PromptPart::Tokens(tokens.to_vec())]).unwrap()
    }

    fn keys(mut past: Past, model: u8, adapters: &AdapterSet) -> Vec<ChainKey> {
        past.seal(&[model; 32], adapters);
        past.keys().to_vec()
    }

    #[test]
    fn every_part_of_the_promise_is_in_the_key() {
        let set = |id: &str, generation, scale| {
            AdapterSet::new([AdapterBinding::new(AdapterKey { id: id.into(), generation }, scale)]).unwrap()
        };
        let base = keys(text(&[1, 2, 3]), 0, &set("a", 1, 1.0));
        assert_eq!(base, keys(text(&[1, 2, 3]), 0, &set("a", 1, 1.0)));
        for other in [
            keys(text(&[1, 2, 3]), 9, &set("a", 1, 1.0)),
            keys(text(&[1, 2, 3]), 0, &set("b", 1, 1.0)),
            keys(text(&[1, 2, 3]), 0, &set("a", 2, 1.0)),
            keys(text(&[1, 2, 3]), 0, &set("a", 1, 0.5)),
            keys(text(&[1, 2, 3]), 0, &AdapterSet::none()),
            keys(text(&[7, 2, 3]), 0, &set("a", 1, 1.0)),
        ] {
            assert_eq!(common_prefix(&base, &other), 0);
        }
        assert_eq!(common_prefix(&base, &keys(text(&[1, 2, 4, 3]), 0, &set("a", 1, 1.0))), 2);
    }

    #[test]
    fn text_that_is_pushed_joins_the_last_stretch() {
        let mut past = text(&[1, 2]);
        past.push(3).unwrap();
        assert_eq!((past.len(), past.chunk(0, 99), past.chunk(1, 1)), (3, 3, 1));
        assert_eq!(past.positions(2..3), [Position::text(2)]);
        assert!(past.key(3).is_none());
        assert!(Past::new(vec![]).is_err());
        assert!(Past::new(vec![PromptPart::Tokens(vec![])]).is_err());
        past.check_tokens(4, None).unwrap();
        assert!(past.check_tokens(3, None).is_err() && past.check_tokens(4, Some(2)).is_err());
    }
}
