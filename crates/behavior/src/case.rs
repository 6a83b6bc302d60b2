//! What a case is, and how it says that something is wrong.

use std::fmt;
use std::sync::Arc;

use consort_core::Error;

/// Why a case failed, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(String);

/// How a case ended.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure that says what was wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// The same, with what was being done before it.
    #[must_use]
    pub fn during(self, what: &str) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(format!("{error:?}"))
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        Self(message.to_owned())
    }
}

/// Fails the case with the formatted message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        // A comparison with what is no number does not hold, as it should here.
        if !std::convert::identity::<bool>($condition) {
            return Err($crate::Failure::new(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

/// One case of a suite, bound to its fixture.
#[derive(Clone)]
pub struct Case {
    name: String,
    missing: Option<&'static str>,
    run: Arc<dyn Fn() -> Outcome + Send + Sync>,
}

impl Case {
    /// A case; `missing` names the capability for want of which it does not apply.
    pub fn new(
        name: impl Into<String>,
        missing: Option<&'static str>,
        run: impl Fn() -> Outcome + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), missing, run: Arc::new(run) }
    }

    /// The name, unique within its fixture.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the engine or backend would have to declare for this case to apply; `None` when it applies.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        self.missing
    }

    /// Runs it.
    ///
    /// # Errors
    /// What was wrong. A panic is the caller's to catch.
    pub fn run(&self) -> Outcome {
        (self.run)()
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).field("missing", &self.missing).finish_non_exhaustive()
    }
}
