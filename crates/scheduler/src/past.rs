//! What a sequence has read or is to read, token by token, with the key of every prefix.

use std::ops::Range;
use std::sync::Arc;

use consort_core::{
    AdapterBinding, AdapterInfo, AdapterSet, ContentHash, Error, ErrorKind, ImageHandle, ImageSource, Position,
    PromptPart, Result, StepInput, TokenId,
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

    fn text(&self) -> &[TokenId] {
        match self {
            Self::Text { tokens, .. } => tokens,
            Self::Image { .. } => &[],
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
    /// The root holds the model's digest. Each link holds the token, or the image's content hash and the index within it,
    /// the position, and the adapters that are active there, with generation and the scale's bits. So ordinary adapters
    /// share nothing, and activated ones all that comes before they act.
    pub(crate) fn seal(&mut self, model: &[u8; 32], adapters: &AdapterSet) {
        let mut root = blake3::Hasher::new();
        root.update(b"consort past 2\0").update(model);
        let mut key: ChainKey = root.finalize().into();
        let mut keys = Vec::with_capacity(self.len());
        let positions = self.positions.positions();
        // Where the voice changes, and what it is from there on.
        let mut changes: Vec<usize> = adapters.bindings().iter().map(|binding| binding.active_from).collect();
        changes.sort_unstable();
        changes.dedup();
        let mut changes = changes.into_iter().peekable();
        let mut voice: Option<ChainKey> = None;
        // previous key, kind, content, position, voice: text and images, with adapters and without, differ in kind, so
        // lengths cannot be confused.
        let mut link = [0; 32 + 1 + 36 + 12 + 32];
        for stretch in &self.stretches {
            for index in stretch.range() {
                if changes.next_if_eq(&index).is_some() {
                    voice = Some(digest_of(adapters.active_at(index)));
                }
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
                let mut end = 33 + content + 12;
                if let Some(voice) = &voice {
                    link[32] |= 2;
                    link[end..end + 32].copy_from_slice(voice);
                    end += 32;
                }
                link[..32].copy_from_slice(&key);
                key = blake3::hash(&link[..end]).into();
                keys.push(key);
            }
        }
        self.keys = keys;
    }

    /// Where an activated adapter becomes active: within text, the last place where its invocation tokens stand.
    pub(crate) fn invoked_at(&self, adapter: &AdapterInfo) -> Option<usize> {
        self.stretches.iter().rev().find_map(|stretch| match stretch {
            Stretch::Text { start, tokens } => Some(start + adapter.invoked_at(tokens)?),
            Stretch::Image { .. } => None,
        })
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

    /// The text's token at this place. `None` within an image and beyond the end.
    pub(crate) fn token_at(&self, at: usize) -> Option<TokenId> {
        match self.stretch(at)? {
            Stretch::Text { start, tokens } => tokens.get(at - start).copied(),
            Stretch::Image { .. } => None,
        }
    }

    /// The tokens of its text, in order.
    pub(crate) fn text_tokens(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.stretches.iter().flat_map(Stretch::text).copied()
    }

    /// The same from the end.
    pub(crate) fn text_tokens_reversed(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.stretches.iter().rev().flat_map(|stretch| stretch.text().iter().rev()).copied()
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

/// Bindings as one number.
fn digest_of<'a>(bindings: impl Iterator<Item = &'a AdapterBinding>) -> ChainKey {
    let mut hasher = blake3::Hasher::new();
    for binding in bindings {
        hasher.update(&(binding.key.id.len() as u64).to_le_bytes()).update(binding.key.id.as_bytes());
        hasher.update(&binding.key.generation.to_le_bytes()).update(&binding.scale.to_bits().to_le_bytes());
    }
    hasher.finalize().into()
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
    use consort_core::AdapterKey;

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
    fn activated_adapters_part_where_they_act() {
        let set = |bindings: &[(&str, f32, usize)]| {
            let binding = |&(id, scale, active_from): &(&str, _, _)| AdapterBinding {
                key: AdapterKey { id: id.into(), generation: 1 },
                scale,
                active_from,
            };
            AdapterSet::new(bindings.iter().map(binding)).unwrap()
        };
        let prompt = [5, 6, 7, 8, 9];
        let sealed = |bindings: &[(&str, f32, usize)]| keys(text(&prompt), 0, &set(bindings));
        let base = sealed(&[]);
        let persona = sealed(&[("a", 1.0, 2)]);
        for (other, shared) in [
            (sealed(&[("a", 1.0, 2)]), 5),
            (base, 2),
            (sealed(&[("b", 1.0, 2)]), 2),
            (sealed(&[("b", 1.0, 4)]), 2),
            (sealed(&[("a", 0.5, 3)]), 2),
            (sealed(&[("a", 1.0, 3)]), 2),
            (sealed(&[("a", 1.0, 2), ("b", 1.0, 4)]), 4),
            (sealed(&[("a", 1.0, 2), ("b", 1.0, 5)]), 5),
            (sealed(&[("a", 1.0, 0)]), 0),
        ] {
            assert_eq!(common_prefix(&persona, &other), shared);
        }
        // From where both are active on, it does not matter which came first; what was read before it does.
        let (early, late) = (sealed(&[("a", 1.0, 1)]), sealed(&[("a", 1.0, 3)]));
        assert!(early.iter().zip(&late).skip(1).all(|(one, other)| one != other));
    }

    #[test]
    fn an_invocation_is_found_in_text_alone() {
        let info = AdapterInfo {
            key: AdapterKey { id: "a".into(), generation: 1 },
            rank: 1,
            layers: 1,
            bytes: 1,
            invocation_tokens: Some(vec![2, 3]),
        };
        assert_eq!(text(&[2, 3, 1, 2, 3]).invoked_at(&info), Some(3));
        assert_eq!(text(&[2, 1, 3]).invoked_at(&info), None);
        let split = Past::new(vec![PromptPart::Tokens(vec![1, 2]), PromptPart::Tokens(vec![3])]).unwrap();
        assert_eq!(split.invoked_at(&info), Some(1));
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
