//! Messages of gRPC as JSON, and back, by the table in [`schema`](crate::schema).
//!
//! JSON keeps what the wire has: a field that stands there with its default value stands in JSON too, one that does not is left
//! out. Whoever needs the very bytes back checks that they come back ([`faithful`]).

use serde_json::{Map, Number, Value};

use crate::schema::{Field, Kind, Label, method};

/// Messages in messages, at most.
const DEEPEST: usize = 32;

/// A request of this method as JSON. `None` if the method is not known, or the bytes are no such message.
pub(crate) fn request_to_json(path: &str, bytes: &[u8]) -> Option<Value> {
    read(method(path)?.0, bytes, DEEPEST).map(Value::Object)
}

/// An answer of this method as JSON. `None` if the method is not known, or the bytes are no such message.
pub(crate) fn answer_to_json(path: &str, bytes: &[u8]) -> Option<Value> {
    read(method(path)?.1, bytes, DEEPEST).map(Value::Object)
}

/// An answer of this method from JSON. `None` if a field is not known, or its value is of another kind.
pub(crate) fn answer_from_json(path: &str, json: &Value) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    write(method(path)?.1, json.as_object()?, &mut bytes, DEEPEST)?;
    Some(bytes)
}

/// An answer as JSON, if the same bytes come back from it.
pub(crate) fn faithful(path: &str, bytes: &[u8]) -> Option<Value> {
    let json = answer_to_json(path, bytes)?;
    (answer_from_json(path, &json)? == bytes).then_some(json)
}

/// A reader of the wire's parts.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.take(1)?.first()?;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn delimited(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        self.take(length)
    }

    /// One value of this kind, as it stands alone in its field.
    fn value(&mut self, kind: Kind, depth: usize) -> Option<Value> {
        Some(match kind {
            Kind::Text => Value::String(std::str::from_utf8(self.delimited()?).ok()?.to_owned()),
            Kind::Bytes => Value::String(hex(self.delimited()?)),
            Kind::Unsigned => self.varint()?.into(),
            Kind::Signed => self.varint()?.cast_signed().into(),
            Kind::Bool => match self.varint()? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return None,
            },
            Kind::Float => float(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            Kind::Double => double(f64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            Kind::Message(fields) => Value::Object(read(fields, self.delimited()?, depth.checked_sub(1)?)?),
        })
    }
}

/// Which of the wire's forms a kind has.
fn wire_type(kind: Kind) -> u64 {
    match kind {
        Kind::Unsigned | Kind::Signed | Kind::Bool => 0,
        Kind::Double => 1,
        Kind::Text | Kind::Bytes | Kind::Message(_) => 2,
        Kind::Float => 5,
    }
}

/// The shortest number that is this float, as text would have it; JSON has no number for those that are none.
fn float(value: f32) -> Value {
    value.to_string().parse().ok().and_then(Number::from_f64).map_or_else(|| value.to_string().into(), Value::Number)
}

fn double(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number)
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn read(fields: &[Field], bytes: &[u8], depth: usize) -> Option<Map<String, Value>> {
    let mut message = Map::new();
    let mut reader = Reader { bytes };
    while !reader.bytes.is_empty() {
        let tag = reader.varint()?;
        let field = fields.iter().find(|field| u64::from(field.number) == tag >> 3)?;
        let (name, wire) = (field.name, tag & 7);
        match field.label {
            Label::One => {
                if wire != wire_type(field.kind) {
                    return None;
                }
                message.insert(name.to_owned(), reader.value(field.kind, depth)?);
            }
            Label::Many => {
                let list = message.entry(name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?;
                if wire == wire_type(field.kind) {
                    list.push(reader.value(field.kind, depth)?);
                } else if wire == 2 {
                    let mut packed = Reader { bytes: reader.delimited()? };
                    while !packed.bytes.is_empty() {
                        list.push(packed.value(field.kind, depth)?);
                    }
                } else {
                    return None;
                }
            }
            Label::Map(value) => {
                if wire != 2 {
                    return None;
                }
                let entry = [
                    Field { number: 1, name: "key", kind: field.kind, label: Label::One },
                    Field { number: 2, name: "value", kind: *value, label: Label::One },
                ];
                let mut entry = read(&entry, reader.delimited()?, depth.checked_sub(1)?)?;
                let key = entry.remove("key").unwrap_or_else(|| default(field.kind));
                let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                let value = entry.remove("value").unwrap_or_else(|| default(*value));
                message.entry(name).or_insert_with(|| Value::Object(Map::new())).as_object_mut()?.insert(key, value);
            }
        }
    }
    Some(message)
}

/// What a value is that does not stand in a map's entry.
fn default(kind: Kind) -> Value {
    match kind {
        Kind::Text | Kind::Bytes => "".into(),
        Kind::Unsigned | Kind::Signed => 0.into(),
        Kind::Bool => false.into(),
        Kind::Float | Kind::Double => 0.0.into(),
        Kind::Message(_) => Value::Object(Map::new()),
    }
}

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn delimited(part: &[u8], bytes: &mut Vec<u8>) {
    varint(part.len() as u64, bytes);
    bytes.extend_from_slice(part);
}

fn write_value(kind: Kind, value: &Value, bytes: &mut Vec<u8>, depth: usize) -> Option<()> {
    match kind {
        Kind::Text => delimited(value.as_str()?.as_bytes(), bytes),
        Kind::Bytes => delimited(&unhex(value.as_str()?)?, bytes),
        Kind::Unsigned => varint(value.as_u64()?, bytes),
        Kind::Signed => varint(value.as_i64()?.cast_unsigned(), bytes),
        Kind::Bool => varint(u64::from(value.as_bool()?), bytes),
        #[allow(clippy::cast_possible_truncation)]
        Kind::Float => bytes.extend_from_slice(&(number(value)? as f32).to_le_bytes()),
        Kind::Double => bytes.extend_from_slice(&number(value)?.to_le_bytes()),
        Kind::Message(fields) => {
            let mut part = Vec::new();
            write(fields, value.as_object()?, &mut part, depth.checked_sub(1)?)?;
            delimited(&part, bytes);
        }
    }
    Some(())
}

fn write(fields: &[Field], message: &Map<String, Value>, bytes: &mut Vec<u8>, depth: usize) -> Option<()> {
    if message.keys().any(|name| !fields.iter().any(|field| field.name == name)) {
        return None;
    }
    for field in fields {
        let Some(value) = message.get(field.name) else { continue };
        let tag = |wire| u64::from(field.number) << 3 | wire;
        match field.label {
            Label::One => {
                varint(tag(wire_type(field.kind)), bytes);
                write_value(field.kind, value, bytes, depth)?;
            }
            Label::Many if wire_type(field.kind) == 2 => {
                for value in value.as_array()? {
                    varint(tag(2), bytes);
                    write_value(field.kind, value, bytes, depth)?;
                }
            }
            Label::Many => {
                let mut packed = Vec::new();
                for value in value.as_array()? {
                    write_value(field.kind, value, &mut packed, depth)?;
                }
                varint(tag(2), bytes);
                delimited(&packed, bytes);
            }
            Label::Map(kind) => {
                for (key, value) in value.as_object()? {
                    let key = if field.kind == Kind::Text {
                        Value::from(key.as_str())
                    } else {
                        key.parse().map(Number::into).ok()?
                    };
                    let mut entry = Vec::new();
                    varint(1 << 3 | wire_type(field.kind), &mut entry);
                    write_value(field.kind, &key, &mut entry, depth)?;
                    varint(2 << 3 | wire_type(*kind), &mut entry);
                    write_value(*kind, value, &mut entry, depth)?;
                    varint(tag(2), bytes);
                    delimited(&entry, bytes);
                }
            }
        }
    }
    Some(())
}

/// Bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// Bytes from hexadecimal.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    if text.len() % 2 == 1 {
        return None;
    }
    text.as_bytes().chunks(2).map(|pair| u8::try_from(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?).ok()).collect()
}
