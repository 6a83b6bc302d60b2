//! `consort convert`: a Hugging Face directory becomes GGUF and mmproj.

use consort_core::Result;

use crate::args::ConvertArgs;

/// Runs the command.
pub fn run(_args: &ConvertArgs) -> Result<()> { Ok(()) }
