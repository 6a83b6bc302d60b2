//! Exit codes that mean something, and how an error is shown.

use std::process::ExitCode;

use consort_core::{Error, ErrorKind, ErrorStatus, Result};

use crate::output;

/// The table that `--help` shows.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  something failed that is none of the below
  2  the command line is wrong
  3  the device policy refused: no accelerator, and the processor was not named
  4  the input is wrong: a model, image, adapter, template or request
  5  something that was named does not exist
  6  temporary: try again later (overloaded, out of memory, deadline)
  7  a batch ran, and some of its requests failed
130  interrupted";

/// A batch ran, and some of its requests failed.
#[cfg(feature = "server")]
pub const SOME_FAILED: u8 = 7;
/// Somebody ended the program, as shells have it.
#[cfg(feature = "server")]
pub const INTERRUPTED: u8 = 130;

/// Shows an error on stderr and turns the outcome into an exit code.
pub fn code(outcome: Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    output::show_error(&error);
    ExitCode::from(number(&error))
}

fn number(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::DevicePolicy => 3,
        ErrorKind::InvalidModel
        | ErrorKind::InvalidTokenizer
        | ErrorKind::InvalidTemplate
        | ErrorKind::InvalidImage
        | ErrorKind::InvalidAdapter
        | ErrorKind::InvalidGrammar
        | ErrorKind::InvalidRequest
        | ErrorKind::InvalidConfig
        | ErrorKind::Unsupported => 4,
        ErrorKind::NotFound => 5,
        _ if error.status() == ErrorStatus::Temporary => 6,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_map_to_the_documented_codes() {
        for (kind, expected) in [
            (ErrorKind::DevicePolicy, 3),
            (ErrorKind::InvalidImage, 4),
            (ErrorKind::NotFound, 5),
            (ErrorKind::Overloaded, 6),
            (ErrorKind::Unexpected, 1),
        ] {
            assert_eq!(number(&Error::new(kind, "")), expected);
            assert!(expected == 1 || HELP.contains(&format!("  {expected}  ")));
        }
    }
}
