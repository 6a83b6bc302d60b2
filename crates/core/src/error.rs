//! The one error type of the workspace.
//!
//! The shape follows what callers need to decide: *what kind of thing went wrong* ([`ErrorKind`]), *whether trying again
//! can help* ([`ErrorStatus`]), *which operation of which backend* failed, and context pairs that name the offending
//! thing (a file, a tensor, a field of a request) and what to do about it.

use std::error::Error as StdError;
use std::fmt;

/// Result with the workspace's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong. Callers match on this; the message is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The backend does not declare this operation in its [`Capability`](crate::Capability).
    Unsupported,
    /// A model file (GGUF, safetensors, mmproj, config) is malformed, truncated or inconsistent.
    InvalidModel,
    /// A tokenizer definition is malformed, or text cannot be tokenized with it.
    InvalidTokenizer,
    /// A chat template does not parse, runs out of fuel, or raises an exception.
    InvalidTemplate,
    /// An image is malformed, of an unknown format or beyond the limits.
    InvalidImage,
    /// An adapter is malformed, does not fit the model, or uses something that is not supported.
    InvalidAdapter,
    /// A grammar or JSON schema does not compile.
    InvalidGrammar,
    /// A request is malformed, contradicts itself or exceeds a limit of the model.
    InvalidRequest,
    /// A configuration value is malformed or contradicts another.
    InvalidConfig,
    /// The named file, adapter, sequence or model does not exist.
    NotFound,
    /// The device policy does not admit the device that would be used.
    DevicePolicy,
    /// The operation does not fit into the memory that is left.
    OutOfMemory,
    /// The queue is full, or every sequence slot is taken: the work was not begun.
    Overloaded,
    /// The caller cancelled, or the backend is shutting down.
    Cancelled,
    /// A deadline passed.
    DeadlineExceeded,
    /// A sequence's state is unknown after a failure; it was dropped.
    Poisoned,
    /// Reading or writing a file failed.
    Io,
    /// A remote server failed or answered what its protocol does not allow.
    Remote,
    /// A defect of ours or of an engine. Please report it.
    Unexpected,
}

impl ErrorKind {
    /// The kind as a stable lower-case word, for logs, JSON and exit codes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::InvalidModel => "invalid_model",
            Self::InvalidTokenizer => "invalid_tokenizer",
            Self::InvalidTemplate => "invalid_template",
            Self::InvalidImage => "invalid_image",
            Self::InvalidAdapter => "invalid_adapter",
            Self::InvalidGrammar => "invalid_grammar",
            Self::InvalidRequest => "invalid_request",
            Self::InvalidConfig => "invalid_config",
            Self::NotFound => "not_found",
            Self::DevicePolicy => "device_policy",
            Self::OutOfMemory => "out_of_memory",
            Self::Overloaded => "overloaded",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Poisoned => "poisoned",
            Self::Io => "io",
            Self::Remote => "remote",
            Self::Unexpected => "unexpected",
        }
    }

    /// The status that an error of this kind has unless it says otherwise.
    fn default_status(self) -> ErrorStatus {
        match self {
            Self::Overloaded | Self::OutOfMemory | Self::Poisoned | Self::Remote | Self::DeadlineExceeded => {
                ErrorStatus::Temporary
            }
            _ => ErrorStatus::Permanent,
        }
    }
}

/// The caller's retry duty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorStatus {
    /// The same call will fail again: change it.
    Permanent,
    /// The same call may succeed later.
    Temporary,
}

/// The one error of the workspace: its kind, whether trying again can help, the operation, and what is concerned.
///
/// ```
/// use consort_core::{Error, ErrorKind, ErrorStatus};
///
/// let error = Error::new(ErrorKind::InvalidModel, "the tensor's offset lies beyond the end of the file")
///     .with_operation("gguf::open")
///     .with_context("tensor", "blk.3.attn_q.weight");
/// assert_eq!(error.kind(), ErrorKind::InvalidModel);
/// assert_eq!(error.status(), ErrorStatus::Permanent);
/// assert_eq!(
///     error.to_string(),
///     "invalid_model in gguf::open: the tensor's offset lies beyond the end of the file (tensor: blk.3.attn_q.weight)"
/// );
/// ```
pub struct Error {
    // One pointer wide, so that `Result<u32>` stays small on hot paths.
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    status: ErrorStatus,
    message: String,
    operation: &'static str,
    backend: &'static str,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error of `kind` with a message that says what is wrong and, where one can, what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                status: kind.default_status(),
                message: message.into(),
                operation: "",
                backend: "",
                context: Vec::new(),
                source: None,
            }),
        }
    }

    /// `operation` is not among what `backend` declares it can do.
    #[must_use]
    pub fn unsupported(backend: &'static str, operation: &'static str) -> Self {
        Self::new(ErrorKind::Unsupported, format!("the {backend} backend does not support {operation}"))
            .with_backend(backend)
            .with_operation(operation)
    }

    /// An input or output error on `path`. A missing file becomes [`ErrorKind::NotFound`].
    #[must_use]
    pub fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        let kind = if source.kind() == std::io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Io };
        Self::new(kind, source.to_string()).with_context("path", path.display().to_string()).with_source(source)
    }

    /// Names the operation that failed, as `room::function`.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.inner.operation = operation;
        self
    }

    /// Names the backend in which it failed.
    #[must_use]
    pub fn with_backend(mut self, backend: &'static str) -> Self {
        self.inner.backend = backend;
        self
    }

    /// Adds a context pair, which names the offending thing.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.inner.context.push((key, value.into()));
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Overrides the status that the kind implies.
    #[must_use]
    pub fn with_status(mut self, status: ErrorStatus) -> Self {
        self.inner.status = status;
        self
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether trying again can help.
    #[must_use]
    pub fn status(&self) -> ErrorStatus {
        self.inner.status
    }

    /// The message alone, without kind, operation and context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The operation that failed, or an empty string.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.inner.operation
    }

    /// The backend in which it failed, or an empty string.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.inner.backend
    }

    /// The context pairs, oldest first.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.inner.context.iter().map(|(key, value)| (*key, value.as_str()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.inner.kind.as_str())?;
        if !self.inner.operation.is_empty() {
            write!(f, " in {}", self.inner.operation)?;
        }
        if !self.inner.backend.is_empty() {
            write!(f, " ({})", self.inner.backend)?;
        }
        write!(f, ": {}", self.inner.message)?;
        for (index, (key, value)) in self.inner.context.iter().enumerate() {
            write!(f, "{}{key}: {value}", if index == 0 { " (" } else { ", " })?;
        }
        if !self.inner.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What `unwrap` in a test prints: the whole story on one line, then the cause.
        write!(f, "{self}")?;
        if let Some(source) = &self.inner.source {
            write!(f, ", caused by: {source}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}
