//! `consort bench`: what is measured, one file each.

mod decode;
mod questions;

use consort_core::Result;

use crate::args::{BenchArgs, BenchCommand};

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        BenchCommand::Decode(args) => decode::run(args),
        BenchCommand::Questions(args) => questions::run(args),
    }
}
