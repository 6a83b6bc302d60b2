//! Where keys stand in a TOML file, so that an error can say it.

use std::ops::Range;

use consort_core::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Every key of a file with the bytes of its name and its value.
pub(super) struct Places(Vec<Place>);

struct Place {
    /// As `persona[1].adapters[0].name`.
    path: String,
    name: Range<usize>,
    value: Range<usize>,
}

impl Places {
    /// Finds them. A text that is no TOML has none.
    pub(super) fn of(text: &str) -> Self {
        let mut places = Vec::new();
        if let Ok(table) = DeTable::parse(text) {
            walk("", table.get_ref(), &mut places);
        }
        Self(places)
    }

    /// An error with the place of some bytes of the file, and the key that stands there.
    pub(super) fn located(&self, error: Error, span: Option<&Range<usize>>, text: &str) -> Error {
        let Some(span) = span else { return error };
        // The innermost key whose name or value has these bytes.
        let has = |range: &Range<usize>| range.start <= span.start && span.end <= range.end;
        let found = self.0.iter().filter(|place| has(&place.name) || has(&place.value));
        let innermost = found.min_by_key(|place| if has(&place.name) { place.name.len() } else { place.value.len() });
        // A table's value begins where its head does, before what is said of it.
        let error = match innermost {
            Some(place) => error.with_context("key", place.path.clone()),
            None => error,
        };
        with_line(error, span.start, text)
    }

    /// An error with the place of a key, or of the nearest key above it that is there.
    pub(super) fn at_key(&self, key: &str, error: Error, text: &str) -> Error {
        let error = error.with_context("key", key);
        let mut wanted = key;
        loop {
            if let Some(place) = self.0.iter().find(|place| place.path == wanted) {
                return with_line(error, place.name.start, text);
            }
            match wanted.rfind(['.', '[']) {
                Some(end) => wanted = &wanted[..end],
                None => return error,
            }
        }
    }
}

fn walk(prefix: &str, table: &DeTable<'_>, places: &mut Vec<Place>) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        value_at(path, name.span(), value, places);
    }
}

fn value_at(path: String, name: Range<usize>, value: &Spanned<DeValue<'_>>, places: &mut Vec<Place>) {
    match value.get_ref() {
        DeValue::Table(inner) => walk(&path, inner, places),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                value_at(format!("{path}[{index}]"), item.span(), item, places);
            }
        }
        _ => {}
    }
    places.push(Place { path, name, value: value.span() });
}

fn with_line(error: Error, at: usize, text: &str) -> Error {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    error.with_context("line", line.to_string()).with_context("column", column.to_string())
}
