//! The ordered metadata map and its typed getters.

use std::collections::HashMap;

use consort_core::{Error, ErrorKind, Result};

use crate::{Array, Value};

/// Metadata in the file's order, with typed getters whose errors name the key.
///
/// The getters for whole numbers take any integer type whose value fits, because converters do not agree on widths.
/// Every error is [`ErrorKind::InvalidModel`].
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Sets `key`. A key that is there already keeps its place, and its old value is returned.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(entry) = self.index.get(&key).and_then(|&at| self.entries.get_mut(at)) {
            return Some(std::mem::replace(&mut entry.1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Those whose key `keep` likes.
    pub(crate) fn filtered(self, keep: impl Fn(&str) -> bool) -> Self {
        let mut kept = Self::new();
        for (key, value) in self.entries {
            if keep(&key) {
                kept.insert(key, value);
            }
        }
        kept
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).and_then(|&at| self.entries.get(at)).map(|entry| &entry.1)
    }

    /// Whether `key` is there.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    fn require(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| {
            Error::new(ErrorKind::InvalidModel, "the file lacks a metadata key that this model needs")
                .with_operation("gguf::metadata")
                .with_context("key", key)
        })
    }

    /// `key` as u32, or `None` when it is not there.
    ///
    /// # Errors
    /// The value is not a whole number of 32 bits.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.get(key).map(|value| to_u32(key, value)).transpose()
    }

    /// `key` as u32.
    ///
    /// # Errors
    /// The key is missing, or its value is not a whole number of 32 bits.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        to_u32(key, self.require(key)?)
    }

    /// `key` as u32, or `default` when it is not there.
    ///
    /// # Errors
    /// The value is not a whole number of 32 bits.
    pub fn u32_or(&self, key: &str, default: u32) -> Result<u32> {
        Ok(self.get_u32(key)?.unwrap_or(default))
    }

    /// `key` as u64.
    ///
    /// # Errors
    /// The key is missing, or its value is not a whole number of 64 bits.
    pub fn require_u64(&self, key: &str) -> Result<u64> {
        let value = self.require(key)?;
        value.as_integer().and_then(|v| u64::try_from(v).ok()).ok_or_else(|| wrong_type(key, value, "u64"))
    }

    /// `key` as f32, or `None` when it is not there. An f64 is rounded.
    ///
    /// # Errors
    /// The value is not floating point.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.get(key).map(|value| value.as_f32().ok_or_else(|| wrong_type(key, value, "f32"))).transpose()
    }

    /// `key` as f32. An f64 is rounded.
    ///
    /// # Errors
    /// The key is missing, or its value is not floating point.
    pub fn require_f32(&self, key: &str) -> Result<f32> {
        let value = self.require(key)?;
        value.as_f32().ok_or_else(|| wrong_type(key, value, "f32"))
    }

    /// `key` as f32, or `default` when it is not there.
    ///
    /// # Errors
    /// The value is not floating point.
    pub fn f32_or(&self, key: &str, default: f32) -> Result<f32> {
        Ok(self.get_f32(key)?.unwrap_or(default))
    }

    /// `key` as text, or `None` when it is not there.
    ///
    /// # Errors
    /// The value is not a string.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(wrong_type(key, value, "string")),
        }
    }

    /// `key` as text.
    ///
    /// # Errors
    /// The key is missing, or its value is not a string.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        match self.require(key)? {
            Value::String(text) => Ok(text),
            value => Err(wrong_type(key, value, "string")),
        }
    }

    /// `key` as bool, or `None` when it is not there.
    ///
    /// # Errors
    /// The value is not a bool.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(value)) => Ok(Some(value)),
            Some(value) => Err(wrong_type(key, value, "bool")),
        }
    }

    /// `key` as bool.
    ///
    /// # Errors
    /// The key is missing, or its value is not a bool.
    pub fn require_bool(&self, key: &str) -> Result<bool> {
        match self.require(key)? {
            &Value::Bool(value) => Ok(value),
            value => Err(wrong_type(key, value, "bool")),
        }
    }

    /// `key` as bool, or `default` when it is not there.
    ///
    /// # Errors
    /// The value is not a bool.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.get_bool(key)?.unwrap_or(default))
    }

    /// `key` as an array of whole numbers, each in 32 bits.
    ///
    /// # Errors
    /// The key is missing, its value is not an array of integers, or an element does not fit.
    pub fn array_of_u32(&self, key: &str) -> Result<Vec<u32>> {
        let value = self.require(key)?;
        let wrong = || wrong_type(key, value, "array of u32");
        let Value::Array(array) = value else { return Err(wrong()) };
        fn all<T: Copy + TryInto<u32>>(values: &[T]) -> Option<Vec<u32>> {
            values.iter().map(|&v| v.try_into().ok()).collect()
        }
        match array {
            Array::U8(v) => all(v),
            Array::I8(v) => all(v),
            Array::U16(v) => all(v),
            Array::I16(v) => all(v),
            Array::U32(v) => Some(v.clone()),
            Array::I32(v) => all(v),
            Array::U64(v) => all(v),
            Array::I64(v) => all(v),
            _ => None,
        }
        .ok_or_else(wrong)
    }

    /// `key` as an array of f32. An f64 is rounded.
    ///
    /// # Errors
    /// The key is missing, or its value is not an array of floating point numbers.
    pub fn array_of_f32(&self, key: &str) -> Result<Vec<f32>> {
        match self.require(key)? {
            Value::Array(Array::F32(values)) => Ok(values.clone()),
            #[allow(clippy::cast_possible_truncation)] // Rounding is what the doc comment promises.
            Value::Array(Array::F64(values)) => Ok(values.iter().map(|&v| v as f32).collect()),
            value => Err(wrong_type(key, value, "array of f32")),
        }
    }

    /// `key` as an array of strings.
    ///
    /// # Errors
    /// The key is missing, or its value is not an array of strings.
    pub fn array_of_strings(&self, key: &str) -> Result<&[String]> {
        match self.require(key)? {
            Value::Array(Array::String(values)) => Ok(values),
            value => Err(wrong_type(key, value, "array of string")),
        }
    }

    /// `key` as an array of bools.
    ///
    /// # Errors
    /// The key is missing, or its value is not an array of bools.
    pub fn array_of_bools(&self, key: &str) -> Result<&[bool]> {
        match self.require(key)? {
            Value::Array(Array::Bool(values)) => Ok(values),
            value => Err(wrong_type(key, value, "array of bool")),
        }
    }
}

fn to_u32(key: &str, value: &Value) -> Result<u32> {
    value.as_integer().and_then(|v| u32::try_from(v).ok()).ok_or_else(|| wrong_type(key, value, "u32"))
}

fn wrong_type(key: &str, value: &Value, wanted: &'static str) -> Error {
    let message = match value.as_integer() {
        Some(number) => format!("the metadata value {number} is not a {wanted}"),
        None => format!("the metadata value is of type {}, wanted {wanted}", value.type_name()),
    };
    Error::new(ErrorKind::InvalidModel, message).with_operation("gguf::metadata").with_context("key", key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn getters_convert_widths_and_name_the_key() {
        let mut metadata = Metadata::new();
        metadata.insert("a", 7_u64);
        metadata.insert("b", -1_i32);
        metadata.insert("c", vec![1_i32, 2]);
        metadata.insert("d", 0.5_f64);
        assert_eq!(metadata.require_u32("a").unwrap(), 7);
        assert_eq!(metadata.u32_or("z", 9).unwrap(), 9);
        assert_eq!(metadata.array_of_u32("c").unwrap(), [1, 2]);
        assert_eq!(metadata.require_f32("d").unwrap(), 0.5);
        let error = metadata.require_u32("b").unwrap_err();
        assert_eq!(error.context().next(), Some(("key", "b")));
        assert_eq!(metadata.require_str("z").unwrap_err().kind(), ErrorKind::InvalidModel);
        assert_eq!(metadata.insert("a", "x"), Some(Value::U64(7)));
        assert_eq!(metadata.iter().next().unwrap(), ("a", &Value::String("x".into())));
    }
}
