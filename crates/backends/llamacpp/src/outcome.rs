//! How a batch that was not done ends for each of its steps.

use consort_core::{Error, ErrorKind, StepOutcome};

use crate::ffi::{Verdict, complaint};

/// What had happened to a sequence when its part of a batch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Nothing: it is as it was before the step.
    Not,
    /// Some of the step, or all of it: the library does not tell.
    Perhaps,
}

/// The outcome of a step whose batch was not done.
pub(crate) fn failed(verdict: Verdict, touched: Touched) -> StepOutcome {
    let complaint = complaint();
    let error = match verdict {
        Verdict::Done => Error::new(ErrorKind::Unexpected, "llama.cpp gives no output for a batch that it has done"),
        Verdict::NoRoom => Error::new(
            ErrorKind::OutOfMemory,
            format!("llama.cpp finds no room for this batch: release or unpark other sequences ({complaint})"),
        ),
        Verdict::Invalid => {
            Error::new(ErrorKind::InvalidRequest, format!("llama.cpp does not take this batch: {complaint}"))
        }
        Verdict::Failed(code) => {
            let kind = match touched {
                Touched::Not => ErrorKind::Unexpected,
                Touched::Perhaps => ErrorKind::Poisoned,
            };
            Error::new(kind, format!("llama.cpp gave up on this batch (code {code}): {complaint}"))
        }
    };
    match touched {
        Touched::Not => StepOutcome::Refused(error),
        Touched::Perhaps => StepOutcome::Poisoned(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_touched_is_refused() {
        let StepOutcome::Refused(error) = failed(Verdict::NoRoom, Touched::Not) else { panic!("must be refused") };
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        let StepOutcome::Refused(error) = failed(Verdict::Invalid, Touched::Not) else { panic!("must be refused") };
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let StepOutcome::Poisoned(error) = failed(Verdict::Failed(2), Touched::Perhaps) else { panic!("poisoned") };
        assert_eq!(error.kind(), ErrorKind::Poisoned);
    }
}
