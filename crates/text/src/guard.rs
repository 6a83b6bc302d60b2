//! Keeps special tokens that somebody wrote as text from becoming tokens.
//!
//! A template concatenates what messages say with special tokens of its own, and afterwards nobody can tell them apart. So
//! what is spelled like a special token is marked *before* rendering: its first character becomes a character of a
//! private-use plane that occurs nowhere else. It is no blank and no letter, so templates trim, search and compare around it
//! as before; and being one character, it is never cut in two. Afterwards the text is tokenized as it is, and each mark
//! becomes the character that it stands for only once no special token can be found any more.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write as _;

use aho_corasick::AhoCorasick;
use serde_json::Value;

use crate::ChatTemplateInput;

/// The private-use planes 15 and 16.
const MARKS: std::ops::RangeInclusive<u32> = 0xF_0000..=0x10_FFFD;

/// How deep messages are looked into. Deeper ones are refused when they are rendered.
const MAX_DEPTH: usize = 256;

/// The spellings of a tokenizer's special tokens.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    spellings: Vec<String>,
    matcher: AhoCorasick,
}

/// The marks of one rendering: each with the character for which it stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks(Vec<(char, char)>);

impl Guard {
    /// `None` when there is nothing to guard against.
    pub(crate) fn new(spellings: Vec<String>) -> Option<Self> {
        if spellings.is_empty() {
            return None;
        }
        let matcher = AhoCorasick::new(&spellings).ok()?;
        Some(Self { spellings, matcher })
    }

    /// Marks what is spelled like a special token in messages and tools.
    ///
    /// The parts of one message are put together without anything between, so the end of a text is marked too where a
    /// special token could begin there.
    pub(crate) fn mark(&self, input: &mut ChatTemplateInput) -> Marks {
        let mut wanted = HashSet::new();
        let mut used = HashSet::new();
        let mut escapes = String::new();
        for value in input.messages.iter().chain(&input.tools) {
            visit(value, 0, &mut |text| {
                wanted.extend(self.places(text).filter_map(|at| text.get(at..)?.chars().next()));
                used.extend(text.chars().filter(|symbol| MARKS.contains(&u32::from(*symbol))));
                if text.contains("\\ud") {
                    escapes.push_str(text);
                }
            });
        }
        if wanted.is_empty() {
            return Marks::default();
        }
        let mut wanted: Vec<char> = wanted.into_iter().collect();
        wanted.sort_unstable();
        let free = MARKS
            .filter_map(char::from_u32)
            .filter(|symbol| !used.contains(symbol) && !escapes.contains(&escaped(*symbol)));
        let marks = Marks(free.zip(wanted).collect());
        for value in input.messages.iter_mut().chain(&mut input.tools) {
            change(value, 0, &|text| self.marked(text, &marks));
        }
        marks
    }

    /// Where special tokens begin in a text, or could begin at its end.
    fn places<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        let longest = self.spellings.iter().map(String::len).max().unwrap_or(0);
        let tail = text.len().saturating_sub(longest);
        let at_end = text.char_indices().skip_while(move |(at, _)| *at < tail).filter_map(|(at, _)| {
            let rest = text.get(at..)?;
            self.spellings.iter().any(|spelling| spelling.starts_with(rest)).then_some(at)
        });
        // Where one is marked, another may begin inside it, so all of them count, however they overlap.
        self.matcher.find_overlapping_iter(text).map(|found| found.start()).chain(at_end)
    }

    fn marked(&self, text: &str, marks: &Marks) -> Option<String> {
        let mut places: Vec<usize> = self.places(text).collect();
        if places.is_empty() {
            return None;
        }
        places.sort_unstable();
        places.dedup();
        let mut places = places.into_iter().peekable();
        let marked = text.char_indices().map(|(at, symbol)| {
            if places.next_if_eq(&at).is_none() {
                return symbol;
            }
            marks.0.iter().find(|(_, stands_for)| *stands_for == symbol).map_or(symbol, |(mark, _)| *mark)
        });
        Some(marked.collect())
    }
}

impl Marks {
    /// The text with what the marks stand for.
    pub(crate) fn restore<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for (mark, original) in &self.0 {
            for spelling in [mark.to_string(), escaped(*mark)] {
                if text.contains(&spelling) {
                    text = Cow::Owned(text.replace(&spelling, &original.to_string()));
                }
            }
        }
        text
    }
}

/// A character as JSON that keeps to ASCII spells it.
fn escaped(symbol: char) -> String {
    let mut text = String::new();
    for unit in symbol.encode_utf16(&mut [0; 2]) {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\u{unit:04x}");
    }
    text
}

/// Every text in a value, keys too.
fn visit(value: &Value, depth: usize, look: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) if depth < MAX_DEPTH => items.iter().for_each(|item| visit(item, depth + 1, look)),
        Value::Object(items) if depth < MAX_DEPTH => {
            for (key, item) in items {
                look(key);
                visit(item, depth + 1, look);
            }
        }
        _ => {}
    }
}

fn change(value: &mut Value, depth: usize, changed: &impl Fn(&str) -> Option<String>) {
    match value {
        Value::String(text) => {
            if let Some(new) = changed(text) {
                *text = new;
            }
        }
        Value::Array(items) if depth < MAX_DEPTH => {
            items.iter_mut().for_each(|item| change(item, depth + 1, changed));
        }
        Value::Object(items) if depth < MAX_DEPTH => {
            items.values_mut().for_each(|item| change(item, depth + 1, changed));
            if items.keys().any(|key| changed(key).is_some()) {
                let old = std::mem::take(items);
                items.extend(old.into_iter().map(|(key, item)| (changed(&key).unwrap_or(key), item)));
            }
        }
        _ => {}
    }
}
