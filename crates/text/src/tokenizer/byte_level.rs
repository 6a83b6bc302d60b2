//! The byte-level alphabet: 256 printable characters that stand for the 256 bytes.
//!
//! Source: GPT-2's `bytes_to_unicode`. The printable bytes of Latin-1 stand for themselves; the other 68 are numbered
//! from U+0100 in their order.

use std::sync::LazyLock;

/// One more than the last character of the alphabet (U+0143).
const LIMIT: usize = 0x144;

struct Tables {
    to_char: [char; 256],
    to_byte: [Option<u8>; LIMIT],
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut tables = Tables { to_char: ['\0'; 256], to_byte: [None; LIMIT] };
    let mut next = 0x100_u32;
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        let symbol = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        tables.to_char[usize::from(byte)] = symbol;
        if let Some(slot) = tables.to_byte.get_mut(symbol as usize) {
            *slot = Some(byte);
        }
    }
    tables
});

/// The character that stands for `byte`.
pub(super) fn char_of(byte: u8) -> char {
    TABLES.to_char[usize::from(byte)]
}

/// The byte for which `symbol` stands.
pub(super) fn byte_of(symbol: char) -> Option<u8> {
    TABLES.to_byte.get(symbol as usize).copied().flatten()
}

/// Appends the characters that stand for the bytes of `text`.
pub(super) fn spell(text: &str, out: &mut String) {
    out.extend(text.bytes().map(char_of));
}

/// The bytes for which a token of the vocabulary stands.
///
/// A token with a character outside the alphabet stands for its own UTF-8, as in the reference decoder.
pub(super) fn bytes_of(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        for byte in 0..=255_u8 {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
        }
        assert_eq!((char_of(b' '), char_of(b'\n'), char_of(0xAD)), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!(byte_of('ń'), None);
    }
}
