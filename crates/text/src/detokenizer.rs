//! Token by token to text, without ever showing half a character.

use consort_core::TokenId;

use crate::Tokenizer;

/// Whether special tokens (`<|im_end|>`, ...) appear in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SpecialText {
    /// They do not.
    #[default]
    Hide,
    /// They appear as they are spelled in templates.
    Show,
}

/// Turns a stream of tokens into text.
///
/// A character of several bytes may be spread over tokens; it appears when its last byte is there. Bytes that can no
/// longer become a character appear as U+FFFD, exactly as many as the reference decoder writes. The pushes and
/// [`finish`](Self::finish) together are [`Tokenizer::decode`] of all tokens.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    special: SpecialText,
    decoder: Utf8Stream,
}

impl Detokenizer {
    /// For a new stream of tokens.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer, special: SpecialText) -> Self {
        Self { tokenizer: tokenizer.clone(), special, decoder: Utf8Stream::default() }
    }

    /// Appends a token; returns the text that became certain, which may be empty.
    ///
    /// Ids without a token (models pad their vocabularies) add nothing, as in the reference decoder.
    pub fn push(&mut self, id: TokenId) -> String {
        let mut text = String::new();
        if self.special == SpecialText::Show || !self.tokenizer.is_special(id) {
            self.decoder.push(self.tokenizer.token_bytes(id).unwrap_or_default(), &mut text);
        }
        text
    }

    /// Ends the stream: a character that was never completed becomes U+FFFD. The detokenizer is then as new.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.decoder.finish(&mut text);
        text
    }

    /// Whether bytes of an incomplete character are held back.
    #[must_use]
    pub fn is_mid_character(&self) -> bool {
        !self.decoder.pending.is_empty()
    }
}

/// Lossy UTF-8 in pieces: the same text as `String::from_utf8_lossy` of the whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct Utf8Stream {
    /// The beginning of a character: at most three bytes between pushes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    pub(crate) fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = after;
                    let Some(invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(invalid..).unwrap_or_default();
                }
            }
        }
        self.pending.drain(..self.pending.len() - rest.len());
    }

    pub(crate) fn finish(&mut self, text: &mut String) {
        text.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_decode_as_the_whole(pieces in prop::collection::vec(prop::collection::vec(piece_byte(), 0..5), 0..40)) {
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            for piece in &pieces {
                stream.push(piece, &mut text);
                prop_assert!(stream.pending.len() <= 3);
            }
            stream.finish(&mut text);
            prop_assert_eq!(text, String::from_utf8_lossy(&pieces.concat()).into_owned());
        }
    }

    /// Bytes that begin, continue and break characters, in equal parts.
    fn piece_byte() -> impl Strategy<Value = u8> {
        prop_oneof![0x20..0x7f_u8, 0x80..0xc0_u8, 0xc0..=0xff_u8, Just(0xf0), Just(0x9f), Just(0xe2), Just(0x80)]
    }
}
