//! The mark that some models write before their own words, as they read it before everybody's.

/// Takes a persona's own mark off the beginning of what it says, as it comes.
#[derive(Debug)]
pub(crate) struct Opening {
    mark: String,
    /// What may yet become the mark. `None`: the beginning is over.
    held: Option<String>,
}

impl Opening {
    pub(crate) fn new(mark: String) -> Self {
        Self { mark, held: Some(String::new()) }
    }

    /// What is to be shown of a further piece.
    pub(crate) fn push(&mut self, text: &str) -> String {
        let Some(mut held) = self.held.take() else { return text.to_owned() };
        held.push_str(text);
        let begun = held.trim_start();
        if begun.is_empty() {
            // Blanks before the first word are nobody's words.
            self.held = Some(String::new());
            return String::new();
        }
        if let Some(rest) = begun.strip_prefix(&self.mark) {
            return rest.to_owned();
        }
        if self.mark.starts_with(begun) {
            self.held = Some(held);
            return String::new();
        }
        begun.to_owned()
    }

    /// What was held back, at the end.
    pub(crate) fn finish(&mut self) -> String {
        self.held.take().map(|held| held.trim_start().to_owned()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&str]) -> (String, String) {
        let mut opening = Opening::new("ada said: ".into());
        let begun: String = pieces.iter().map(|piece| opening.push(piece)).collect();
        (begun, opening.finish())
    }

    #[test]
    fn its_own_mark_is_taken_off_once_and_nothing_else() {
        assert_eq!(shown(&["\n", "ad", "a said", ": Hi", " you"]), ("Hi you".into(), String::new()));
        assert_eq!(shown(&["ada said: ada said: x"]), ("ada said: x".into(), String::new()));
        assert_eq!(shown(&["ada", " saw it"]), ("ada saw it".into(), String::new()));
        assert_eq!(shown(&["ben said: x"]), ("ben said: x".into(), String::new()));
        assert_eq!(shown(&["a", "da"]), (String::new(), "ada".into()));
        assert_eq!(shown(&["Hi", "\nada said: x"]), ("Hi\nada said: x".into(), String::new()));
    }
}
