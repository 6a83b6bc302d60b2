//! The tags of the form, matched at the beginning of a text that may go on.

pub(super) const THINK: &str = "<think>";
pub(super) const END_THINK: &str = "</think>";
pub(super) const CALL: &str = "<tool_call>";
pub(super) const END_CALL: &str = "</tool_call>";
pub(super) const FUNCTION: &str = "<function=";
pub(super) const END_FUNCTION: &str = "</function>";
pub(super) const PARAMETER: &str = "<parameter=";
pub(super) const END_PARAMETER: &str = "</parameter>";

/// The most blanks between two tags.
const MAX_BLANKS: usize = 64;

/// The longest name of a function or a parameter, in bytes.
pub(super) const MAX_NAME: usize = 256;

/// Why something was not matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// It does not stand here.
    No,
    /// The text ends too early to tell.
    More,
}

type Match<T> = Result<T, Miss>;

/// A place in a text.
struct Cursor<'a> {
    rest: &'a str,
    length: usize,
}

impl<'a> Cursor<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text, length: text.len() }
    }

    fn taken(&self) -> usize {
        self.length - self.rest.len()
    }

    fn literal(&mut self, literal: &str) -> Match<()> {
        match self.rest.strip_prefix(literal) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None if literal.starts_with(self.rest) => Err(Miss::More),
            None => Err(Miss::No),
        }
    }

    fn blanks(&mut self) {
        let count = self.rest.bytes().take(MAX_BLANKS).take_while(u8::is_ascii_whitespace).count();
        self.rest = self.rest.get(count..).unwrap_or_default();
    }

    /// A name and the `>` behind it.
    fn name(&mut self) -> Match<&'a str> {
        let stop = self.rest.bytes().take(MAX_NAME + 1).position(|byte| matches!(byte, b'>' | b'<' | b'\n'));
        match stop {
            None if self.rest.len() <= MAX_NAME => Err(Miss::More),
            None | Some(0) => Err(Miss::No),
            Some(end) => {
                let (name, rest) = self.rest.split_at(end);
                self.rest = rest.strip_prefix('>').ok_or(Miss::No)?;
                Ok(name)
            }
        }
    }
}

/// `<tool_call>`, `<function=NAME>`: the length and the name.
pub(super) fn call_begin(text: &str) -> Match<(usize, &str)> {
    let mut cursor = Cursor::new(text);
    cursor.literal(CALL)?;
    cursor.blanks();
    cursor.literal(FUNCTION)?;
    let name = cursor.name()?;
    Ok((cursor.taken(), name))
}

/// Blanks, `<parameter=KEY>`: the length and the key.
pub(super) fn parameter(text: &str) -> Match<(usize, &str)> {
    let mut cursor = Cursor::new(text);
    cursor.blanks();
    cursor.literal(PARAMETER)?;
    let key = cursor.name()?;
    Ok((cursor.taken(), key))
}

/// Blanks, `</function>`, `</tool_call>`: the length.
pub(super) fn call_end(text: &str) -> Match<usize> {
    let mut cursor = Cursor::new(text);
    cursor.blanks();
    cursor.literal(END_FUNCTION)?;
    cursor.blanks();
    cursor.literal(END_CALL)?;
    Ok(cursor.taken())
}

/// What ends a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueEnd {
    /// `</parameter>`, and the call goes on or ends.
    Closed,
    /// The call ends and another begins, without `</parameter>`.
    Cut,
}

/// Whether a value ends here.
pub(super) fn value_end(text: &str) -> Match<ValueEnd> {
    let mut cursor = Cursor::new(text);
    match cursor.literal(END_PARAMETER) {
        Ok(()) => match parameter(cursor.rest) {
            Ok(_) => Ok(ValueEnd::Closed),
            Err(Miss::More) => Err(Miss::More),
            Err(Miss::No) => call_end(cursor.rest).map(|_| ValueEnd::Closed),
        },
        Err(Miss::More) => Err(Miss::More),
        Err(Miss::No) => {
            cursor.literal(END_FUNCTION)?;
            cursor.blanks();
            cursor.literal(END_CALL)?;
            cursor.blanks();
            cursor.literal(CALL)?;
            cursor.blanks();
            cursor.literal(FUNCTION)?;
            Ok(ValueEnd::Cut)
        }
    }
}

/// Finds the first of `tags`: where it begins and which it is, or where the beginning of one stands at the end of the
/// text, or the text's end.
pub(super) fn find(text: &str, tags: &[&str]) -> (usize, Option<usize>) {
    let mut from = 0;
    while let Some(offset) = text.get(from..).and_then(|rest| rest.find('<')) {
        let at = from + offset;
        let rest = text.get(at..).unwrap_or_default();
        if let Some(found) = tags.iter().position(|tag| rest.starts_with(tag)) {
            return (at, Some(found));
        }
        if tags.iter().any(|tag| tag.starts_with(rest)) {
            return (at, None);
        }
        from = at + 1;
    }
    (text.len(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_may_go_on_is_not_judged() {
        let header = "<tool_call>\n<function=move>";
        for length in 0..header.len() {
            assert_eq!(call_begin(&header[..length]), Err(Miss::More), "{length}");
        }
        assert_eq!(call_begin(header), Ok((header.len(), "move")));
        for wrong in
            ["<tool_call>x", "<tool_call>\n<function=>", "<tool_call><function=a\n>", "<tool_call><function=a<"]
        {
            assert_eq!(call_begin(wrong), Err(Miss::No), "{wrong}");
        }
        assert_eq!(call_begin(&format!("<tool_call>{}<function=a>", " ".repeat(65))), Err(Miss::No));
        assert_eq!(call_begin(&format!("<tool_call><function={}", "é".repeat(129))), Err(Miss::No));
        assert_eq!(call_begin(&format!("<tool_call><function={}", "é".repeat(128))), Err(Miss::More));
    }

    #[test]
    fn a_value_ends_only_where_the_call_goes_on() {
        for (text, wanted) in [
            ("</parameter>\n</function>\n</tool_call>", Ok(ValueEnd::Closed)),
            ("</parameter><parameter=b>", Ok(ValueEnd::Closed)),
            ("</parameter>\n<parameter=b", Err(Miss::More)),
            ("</parameter>\n</function>\n", Err(Miss::More)),
            ("</parameter>\n</function>\nx", Err(Miss::No)),
            ("</parameter>\n</parameter>", Err(Miss::No)),
            ("</parameter>\n<parameter=\n", Err(Miss::No)),
            ("</function>\n</tool_call>", Err(Miss::More)),
            ("</function>\n</tool_call>\nx", Err(Miss::No)),
            ("</function>\n</tool_call>\n<tool_call>\n<function=", Ok(ValueEnd::Cut)),
        ] {
            assert_eq!(value_end(text), wanted, "{text:?}");
        }
    }
}
