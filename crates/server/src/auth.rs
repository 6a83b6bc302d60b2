//! Who may ask: API keys, compared in constant time.

use std::path::Path;
use std::sync::{PoisonError, RwLock};

use axum::http::{HeaderMap, header};
use consort_core::{Error, ErrorKind, Result};

use crate::config::ServerConfig;
use crate::error::Failure;

/// The shortest key that is taken, in bytes.
const SHORTEST: usize = 8;

/// The API keys. Only their hashes are kept; comparing two BLAKE3 hashes takes the same time whatever they are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys(Vec<blake3::Hash>);

/// The keys that hold at this time.
#[derive(Debug)]
pub(crate) struct KeyRing(RwLock<Keys>);

impl KeyRing {
    pub(crate) fn new(keys: Keys) -> Self {
        Self(RwLock::new(keys))
    }

    /// Puts others in their place: whether any have changed. A server that demands keys always does, and one that demands
    /// none never begins to, as its clients and its listeners count on it.
    pub(crate) fn replace(&self, keys: Keys) -> bool {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changes = held.are_demanded() && keys.are_demanded() && *held != keys;
        if changes {
            *held = keys;
        }
        changes
    }

    /// Whether a key is demanded at all.
    pub(crate) fn are_demanded(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).are_demanded()
    }

    /// As [`Keys::check`].
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Failure> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).check(headers)
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

impl Keys {
    /// Nobody is asked for a key.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// These keys.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`]: there is none, or one is shorter than 8 bytes or has blanks in it.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let refuse = |message: &str| Error::new(ErrorKind::InvalidConfig, message).with_operation("server::keys");
        let hash = |key: &str| {
            let plain = key.len() >= SHORTEST && key.bytes().all(|byte| byte.is_ascii_graphic());
            plain.then(|| blake3::hash(key.as_bytes()))
        };
        let keys: Vec<_> =
            keys.into_iter().map(hash).collect::<Option<_>>().ok_or_else(|| {
                refuse("an API key has at least 8 characters, and no blanks or characters beyond ASCII")
            })?;
        if keys.is_empty() { Err(refuse("there is no API key in it")) } else { Ok(Self(keys)) }
    }

    /// The keys that a configuration names: of a file, or of the environment.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] where the variable is not set, or the keys are none; those of reading a file.
    pub fn load(config: &ServerConfig) -> Result<Self> {
        if let Some(variable) = &config.api_key_env {
            let key = std::env::var(variable).map_err(|_| {
                Error::new(ErrorKind::InvalidConfig, "the environment has no such variable, or it is no text")
                    .with_operation("server::keys")
                    .with_context("api_key_env", variable.clone())
            })?;
            return Self::new([key.trim()]).map_err(|error| error.with_context("api_key_env", variable.clone()));
        }
        match &config.api_key_file {
            Some(path) => Self::of_file(path),
            None => Ok(Self::none()),
        }
    }

    fn of_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self::new(lines).map_err(|error| error.with_context("api_key_file", path.display().to_string()))
    }

    /// Whether a key is demanded at all.
    #[must_use]
    pub fn are_demanded(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether a request has one of the keys, as `Authorization: Bearer KEY` or `x-api-key: KEY`.
    ///
    /// # Errors
    /// It has none, or another one.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Failure> {
        if !self.are_demanded() {
            return Ok(());
        }
        let Some(given) = key_of(headers) else {
            return Err(Failure::authentication("this server demands an API key: send `Authorization: Bearer KEY`"));
        };
        let given = blake3::hash(given);
        // All of them are looked at: how long it takes does not tell which one it was.
        let known = self.0.iter().fold(false, |known, key| known | (*key == given));
        if known { Ok(()) } else { Err(Failure::authentication("this API key is not known here")) }
    }
}

fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(axum::http::HeaderValue::as_bytes).and_then(|value| {
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes().trim_ascii()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(axum::http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn one_of_the_keys_opens() {
        let keys = Keys::new(["first-key-1", "second-key"]).unwrap();
        keys.check(&headers("authorization", "Bearer second-key")).unwrap();
        keys.check(&headers("authorization", "bearer  first-key-1 ")).unwrap();
        keys.check(&headers("x-api-key", "first-key-1")).unwrap();
        for (name, value) in [
            ("authorization", "Bearer first-key-"),
            ("authorization", "Bearer first-key-11"),
            ("authorization", "Basic first-key-1"),
            ("authorization", "Bearer"),
            ("x-api-key", ""),
        ] {
            assert_eq!(keys.check(&headers(name, value)).unwrap_err().status().as_u16(), 401, "{value}");
        }
        assert_eq!(keys.check(&HeaderMap::new()).unwrap_err().status().as_u16(), 401);
        Keys::none().check(&HeaderMap::new()).unwrap();
    }

    #[test]
    fn keys_change_and_never_vanish() {
        let ring = KeyRing::new(Keys::new(["first-key-1"]).unwrap());
        let opens = |key: &str| ring.check(&headers("x-api-key", key)).is_ok();
        assert!(!ring.replace(Keys::new(["first-key-1"]).unwrap()) && opens("first-key-1"));
        assert!(ring.replace(Keys::new(["second-key"]).unwrap()) && opens("second-key") && !opens("first-key-1"));
        assert!(!ring.replace(Keys::none()) && ring.are_demanded() && opens("second-key"));
        let open = KeyRing::new(Keys::none());
        assert!(!open.replace(Keys::new(["first-key-1"]).unwrap()) && !open.are_demanded());
    }

    #[test]
    fn a_file_has_one_key_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# ours\nfirst-key-1\n\n  second-key \n").unwrap();
        let config = ServerConfig { api_key_file: Some(path.clone()), ..ServerConfig::default() };
        let keys = Keys::load(&config).unwrap();
        keys.check(&headers("x-api-key", "second-key")).unwrap();
        assert_eq!(format!("{keys:?}"), "Keys(2)");
        for text in ["", "# none\n", "short\n", "has a blank in it\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Keys::load(&config).unwrap_err().kind(), ErrorKind::InvalidConfig, "{text:?}");
        }
        let config = ServerConfig { api_key_env: Some("CONSORT_NO_SUCH_KEY".into()), ..ServerConfig::default() };
        assert_eq!(Keys::load(&config).unwrap_err().kind(), ErrorKind::InvalidConfig);
    }
}
