//! Where Jinja2 on Python differs from minijinja: the texts of values, JSON, blanks, and methods of strings.

use std::fmt::Write as _;
use std::time::SystemTime;

use minijinja::value::{Kwargs, StringInput, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State};

use super::guarded;

/// How deep values may be nested where we walk them.
pub(super) const MAX_DEPTH: usize = 128;

/// The most fields or padding that Python's `str.format` may be asked for.
const MAX_FORMAT_WIDTH: usize = 4096;

fn failed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Pays for looking at or copying `bytes` of text: one unit of fuel is 64 bytes.
pub(super) fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64 + 1)
}

/// Pays for turning a value into `bytes` of text, which is slower than copying.
fn charge_written(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 16 + 1)
}

/// Python's `str.isspace`: Unicode white space and four separators of ASCII.
fn is_space(symbol: char) -> bool {
    symbol.is_whitespace() || matches!(symbol, '\u{1c}'..='\u{1f}')
}

/// `{{ value }}`.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        return Ok(());
    }
    if let Some(text) = value.as_str() {
        return out.write_str(text).map_err(Error::from);
    }
    out.write_str(&to_str(state, value)?).map_err(Error::from)
}

/// Python's `str(value)`.
pub(super) fn to_str(state: &State, value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => {
            let mut out = String::new();
            repr(state, value, 0, &mut out)?;
            Ok(out)
        }
    }
}

/// Python's `repr(value)`, and for what JSON has no word for, what minijinja prints.
///
/// A value that is shared may appear any number of times in what it is printed as, so each piece is paid for at once.
fn repr(state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(failed("a value is nested too deeply"));
    }
    let before = out.len();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => repr_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.push_str(&float(number, ["nan", "inf", "-inf"])),
            Err(_) => write!(out, "{value}")?,
        },
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()?.checked() {
                if count > 0 {
                    out.push_str(", ");
                }
                repr(state, &item?, depth + 1, out)?;
                count += 1;
            }
            if tuple && count == 1 {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.checked().enumerate() {
                let key = key?;
                if index > 0 {
                    out.push_str(", ");
                }
                repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        ValueKind::Invalid => return Err(failed("a value could not be computed")),
        _ => write!(out, "{value}")?,
    }
    charge_written(state, out.len() - before)
}

fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for symbol in text.chars() {
        match symbol {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            symbol if symbol == quote => out.extend(['\\', symbol]),
            symbol if u32::from(symbol) < 0x20 || (0x7f..0xa1).contains(&u32::from(symbol)) || symbol == '\u{ad}' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\x{:02x}", u32::from(symbol));
            }
            symbol => out.push(symbol),
        }
    }
    out.push(quote);
}

/// Python's `repr(float)`: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16 on.
fn float(number: f64, [nan, inf, minus_inf]: [&str; 3]) -> String {
    if number.is_nan() {
        return nan.to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { inf } else { minus_inf }.to_owned();
    }
    let scientific = format!("{number:e}");
    let exponent: i32 = scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let digits = scientific.split_once('e').map_or("", |(digits, _)| digits);
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = number.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// The `string` filter.
pub(super) fn string_filter(state: &State, value: &Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String {
        return Ok(value.clone());
    }
    to_str(state, value).map(Value::from)
}

/// The `trim` filter: Python's `str.strip`.
#[allow(clippy::needless_pass_by_value)] // What the engine calls takes its arguments so.
pub(super) fn trim_filter(value: StringInput<'_>, chars: Option<String>) -> Value {
    let text = value.as_str();
    let trimmed = match &chars {
        Some(chars) => text.trim_matches(|symbol| chars.contains(symbol)),
        None => text.trim_matches(is_space),
    };
    let trimmed = trimmed.to_owned();
    value.preserve_safety(trimmed)
}

/// Jinja2's `sequence` test asks for a length and items by key, which texts and mappings have too.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String) || value.is_undefined()
}

/// `json.dumps` with the arguments that transformers passes through.
struct Json<'a> {
    ensure_ascii: bool,
    indent: Option<usize>,
    item_separator: &'a str,
    key_separator: &'a str,
    sort_keys: bool,
}

/// The `tojson` filter of transformers.
#[allow(clippy::needless_pass_by_value)] // What the engine calls takes its arguments so.
pub(super) fn to_json_filter(state: &State, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        Some(indent) if !indent.is_none() => Some(usize::try_from(indent)?),
        _ => None,
    };
    if indent.is_some_and(|indent| indent > 64) {
        return Err(failed("tojson: the indent is too large"));
    }
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    // With an indent, a line ends after each item, and Python leaves out the blank.
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(failed("tojson: separators are two texts")),
        None => (if indent.is_some() { "," } else { ", " }, ": "),
    };
    let json = Json {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        item_separator: item,
        key_separator: key,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    json.write(state, value, 0, &mut out)?;
    Ok(Value::from(out))
}

/// The items of a sequence or the keys of a mapping. The sum of two lists is lazy in minijinja, so a small value may have
/// any number of them.
fn items(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        state.consume_fuel(1)?;
        items.push(item?);
    }
    Ok(items)
}

impl Json<'_> {
    fn write(&self, state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(failed("tojson: the value is nested too deeply"));
        }
        let before = out.len();
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if !value.is_integer() => {
                out.push_str(&float(f64::try_from(value.clone())?, ["NaN", "Infinity", "-Infinity"]));
            }
            ValueKind::Number => write!(out, "{value}")?,
            ValueKind::String => self.write_str(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq => {
                let items = items(state, value)?;
                self.write_items('[', ']', items, depth, out, |json, item, out| {
                    json.write(state, &item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys = items(state, value)?;
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items('{', '}', keys, depth, out, |json, key, out| {
                    match key.kind() {
                        ValueKind::String => json.write_str(key.as_str().unwrap_or_default(), out),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                            out.push('"');
                            json.write(state, &key, depth + 1, out)?;
                            out.push('"');
                        }
                        kind => return Err(failed(format!("tojson: a key is a {kind}"))),
                    }
                    out.push_str(json.key_separator);
                    json.write(state, &value.get_item(&key)?, depth + 1, out)
                })?;
            }
            kind => return Err(failed(format!("tojson: a value is {kind}"))),
        }
        // Nested values are paid for at once, and again as part of what contains them.
        charge_written(state, out.len() - before)
    }

    fn write_items(
        &self,
        open: char,
        close: char,
        items: Vec<Value>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Self, Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        let empty = items.is_empty();
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                out.push_str(self.item_separator);
            }
            line(out, depth + 1);
            write(self, item, out)?;
        }
        if !empty {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn write_str(&self, text: &str, out: &mut String) {
        out.push('"');
        for symbol in text.chars() {
            match symbol {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                symbol if symbol < ' ' || (self.ensure_ascii && !(' '..='~').contains(&symbol)) => {
                    for unit in symbol.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                symbol => out.push(symbol),
            }
        }
        out.push('"');
    }
}

/// Methods that values have in Python.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        // What the library's own version does in one go is paid for before.
        charge(state, text.len())?;
        match name {
            "strip" | "lstrip" | "rstrip" => {
                let (chars,): (Option<Value>,) = from_args(args)?;
                let chars = chars.filter(|chars| !chars.is_none());
                if chars.as_ref().is_some_and(|chars| chars.as_str().is_none()) {
                    return Err(failed(format!("{name}: the argument must be a string")));
                }
                let chars = chars.as_ref().and_then(Value::as_str);
                let strips = |symbol: char| chars.map_or_else(|| is_space(symbol), |chars| chars.contains(symbol));
                return Ok(Value::from(match name {
                    "strip" => text.trim_matches(strips),
                    "lstrip" => text.trim_start_matches(strips),
                    _ => text.trim_end_matches(strips),
                }));
            }
            "split" if args.is_empty() => {
                return Ok(Value::from(
                    text.split(is_space).filter(|word| !word.is_empty()).map(Value::from).collect::<Vec<_>>(),
                ));
            }
            "split" if args.first().and_then(Value::as_str) == Some("") => {
                return Err(failed("split: empty separator"));
            }
            "replace" => {
                let (old, new) = (args.first().and_then(Value::as_str), args.get(1).and_then(Value::as_str));
                if let (Some(old), Some(new)) = (old, new) {
                    let matches = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
                    charge(state, matches.saturating_mul(new.len()))?;
                }
            }
            "join" => {
                if let Some(list) = args.first() {
                    let mut size = 0_usize;
                    for item in list.try_iter()?.checked() {
                        let item = item?;
                        state.consume_fuel(1)?;
                        // As in Python. (Printing other values could take any time.)
                        let item = item.as_str().ok_or_else(|| failed("join: an item is not a string"))?;
                        size = size.saturating_add(text.len()).saturating_add(item.len());
                    }
                    charge(state, size)?;
                }
            }
            "format" => check_format(text)?,
            _ => {}
        }
    }
    std::iter::once(value).chain(args).try_for_each(|value| guarded::measure(state, value))?;
    let result = minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)?;
    guarded::measure(state, &result)?;
    Ok(result)
}

/// Widths and precisions in a format string make text out of nothing, before anybody can pay for it.
fn check_format(text: &str) -> Result<(), Error> {
    let mut number = 0_usize;
    for symbol in text.chars() {
        number = symbol.to_digit(10).map_or(0, |digit| number.saturating_mul(10).saturating_add(digit as usize));
        if number > MAX_FORMAT_WIDTH {
            return Err(failed("format: a number in the format string is too large"));
        }
    }
    Ok(())
}

/// `strftime_now(format)`: the local time.
pub(super) fn strftime(now: SystemTime, format: &str) -> Result<String, Error> {
    if format.len() > 256 {
        return Err(failed("strftime_now: the format is too long"));
    }
    check_format(format)?;
    let time = jiff::Zoned::try_from(now).map_err(|error| failed(format!("strftime_now: {error}")))?;
    jiff::fmt::strtime::format(format, &time).map_err(|error| failed(format!("strftime_now: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let text = |number| float(number, ["nan", "inf", "-inf"]);
        for (number, wanted) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (9_007_199_254_740_993.0, "9007199254740992.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (-1.25e-7, "-1.25e-07"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(text(number), wanted);
        }
    }

    #[test]
    fn texts_are_quoted_as_python_quotes_them() {
        let environment = minijinja::Environment::new();
        let state = environment.empty_state();
        let text = |value: &str| to_str(&state, &Value::from(vec![Value::from(value)])).unwrap();
        assert_eq!(text("it's"), r#"["it's"]"#);
        assert_eq!(text("it's \"so\""), r#"['it\'s "so"']"#);
        assert_eq!(text("a\n\u{1}\u{a0}é"), r"['a\n\x01\xa0é']");
    }

    #[test]
    fn python_strips_ascii_separators() {
        assert!(is_space('\u{1f}') && is_space('\u{85}') && is_space('\u{3000}') && !is_space('\u{200b}'));
    }
}
