//! Stop strings, found across token borders.

use consort_core::{Error, ErrorKind, Result};

/// Bounds on what a request may ask for, so that a hostile one cannot make each token expensive.
const MAX_STRINGS: usize = 64;
const MAX_BYTES: usize = 4096;

/// One stop string with the failure function of Knuth, Morris and Pratt.
#[derive(Debug)]
struct Needle {
    text: String,
    /// `fail[i]`: length of the longest proper border of the first `i + 1` bytes.
    fail: Vec<usize>,
    /// How many bytes of the string end the text so far.
    matched: usize,
}

impl Needle {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut fail = vec![0; bytes.len()];
        let mut length = 0;
        for index in 1..bytes.len() {
            while length > 0 && bytes[index] != bytes[length] {
                length = fail[length - 1];
            }
            if bytes[index] == bytes[length] {
                length += 1;
            }
            fail[index] = length;
        }
        Self { text, fail, matched: 0 }
    }

    fn advance(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.fail[self.matched - 1];
        }
        if bytes[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == bytes.len()
    }
}

/// What feeding text gave.
#[derive(Debug, PartialEq, Eq)]
pub struct Fed {
    /// Text that can be shown now.
    pub text: String,
    /// The stop string that has appeared; nothing is delivered after it.
    pub stopped_by: Option<String>,
}

/// Finds the stop string that is *complete first* (of several that end at the same place, the longest), whatever the pieces
/// in which the text comes. Text that may be the beginning of one is held back.
#[derive(Debug)]
pub struct StopMatcher {
    needles: Vec<Needle>,
    held: String,
}

impl StopMatcher {
    /// A matcher for one reply.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for an empty string, too many or too long ones.
    pub fn new(strings: &[String]) -> Result<Self> {
        let refuse =
            |message: &str| Err(Error::new(ErrorKind::InvalidRequest, message).with_context("field", "stop.strings"));
        if strings.len() > MAX_STRINGS {
            return refuse("at most 64 stop strings are admitted");
        }
        if strings.iter().any(String::is_empty) {
            return refuse("a stop string must not be empty");
        }
        if strings.iter().map(String::len).sum::<usize>() > MAX_BYTES {
            return refuse("stop strings may have 4096 bytes in all");
        }
        Ok(Self { needles: strings.iter().cloned().map(Needle::new).collect(), held: String::new() })
    }

    /// Takes the next piece of text. Must not be called again once a string stopped it.
    pub fn feed(&mut self, text: &str) -> Fed {
        if self.needles.is_empty() {
            return Fed { text: text.to_owned(), stopped_by: None };
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (index, byte) in text.bytes().enumerate() {
            let mut longest: Option<(usize, usize)> = None;
            for (number, needle) in self.needles.iter_mut().enumerate() {
                if needle.advance(byte) {
                    let better = longest.is_none_or(|(best, _)| best < needle.text.len());
                    if better {
                        longest = Some((needle.text.len(), number));
                    }
                    needle.matched = needle.fail[needle.matched - 1];
                }
            }
            if let Some((length, number)) = longest {
                // A needle begins with a leading byte and the text is whole characters: this cuts at a character.
                self.held.truncate(before + index + 1 - length);
                return Fed {
                    text: std::mem::take(&mut self.held),
                    stopped_by: Some(self.needles[number].text.clone()),
                };
            }
        }
        let hold = self.needles.iter().map(|needle| needle.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        Fed { text: std::mem::replace(&mut self.held, rest), stopped_by: None }
    }

    /// What is held back, when the reply has ended otherwise.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn run(strings: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let strings: Vec<String> = strings.iter().map(ToString::to_string).collect();
        let mut matcher = StopMatcher::new(&strings).unwrap();
        let mut text = String::new();
        for piece in pieces {
            let fed = matcher.feed(piece);
            text.push_str(&fed.text);
            if fed.stopped_by.is_some() {
                return (text, fed.stopped_by);
            }
        }
        text.push_str(&matcher.flush());
        (text, None)
    }

    /// The definition, on the whole text: the match with the earliest end, the longest of these.
    fn reference(strings: &[String], text: &str) -> (String, Option<String>) {
        for end in 1..=text.len() {
            let found =
                strings.iter().filter(|s| text.as_bytes()[..end].ends_with(s.as_bytes())).max_by_key(|s| s.len());
            if let Some(found) = found {
                return (text[..end - found.len()].to_owned(), Some(found.clone()));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn a_string_is_found_across_pieces_and_false_starts_are_given_back() {
        assert_eq!(run(&["\n\nUser:"], &["Hi", "\n", "\nUs", "er", ": x"]), ("Hi".into(), Some("\n\nUser:".into())));
        assert_eq!(run(&["abab!"], &["ab", "ab", "ab", "!", "z"]), ("ab".into(), Some("abab!".into())));
        assert_eq!(run(&["END"], &["the EN", "d"]), ("the ENd".into(), None));
        assert_eq!(run(&["END"], &["the EN"]), ("the EN".into(), None));
        assert_eq!(run(&["abcdef", "cd"], &["xab", "cd", "ef"]), ("xab".into(), Some("cd".into())));
        assert_eq!(run(&["b", "ab"], &["a", "b"]), (String::new(), Some("ab".into())));
        assert_eq!(run(&["é"], &["caf", "é"]), ("caf".into(), Some("é".into())));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(StopMatcher::new(&[String::new()]).is_err());
        assert!(StopMatcher::new(&vec!["a".into(); 65]).is_err());
        assert!(StopMatcher::new(&["a".repeat(5000)]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_pieces_give_what_the_whole_text_gives(
            strings in proptest::collection::vec("[abé]{1,4}", 0..4),
            pieces in proptest::collection::vec("[abcé]{0,5}", 0..8),
        ) {
            let (text, reason) = reference(&strings, &pieces.concat());
            let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&strings, &pieces), (text, reason));
        }
    }
}
