//! The two seams of Consort, `ModelBackend` and `Engine`, and the types that cross them.
#![forbid(unsafe_code)]

mod error;

pub use error::{Error, ErrorKind, ErrorStatus, Result};
