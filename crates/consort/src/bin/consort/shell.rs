//! `consort completions` and `consort man`: what a shell and a manual reader want of a command.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use consort_core::{Error, ErrorKind, Result};

use crate::args::Cli;

/// Arguments of `consort completions`.
#[derive(Args)]
pub struct CompletionsArgs {
    /// For which shell.
    shell: Shell,
}

/// Arguments of `consort man`.
#[derive(Args)]
pub struct ManArgs {
    /// Write a page for each command there: consort.1, consort-run.1, ... Without it, consort(1) goes to the standard output.
    directory: Option<PathBuf>,
}

/// Prints a shell's completion script.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "consort", &mut script);
    print(&script)
}

/// Writes the manual.
pub fn man(args: &ManArgs) -> Result<()> {
    let Some(directory) = &args.directory else {
        let mut page = Vec::new();
        // `help` is no page of its own; `generate_to` leaves it out as well.
        clap_mangen::Man::new(Cli::command().disable_help_subcommand(true)).render(&mut page).map_err(|source| {
            Error::new(ErrorKind::Unexpected, "the manual page could not be rendered").with_source(source)
        })?;
        return print(&page);
    };
    std::fs::create_dir_all(directory).map_err(|source| Error::io(directory, source))?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(|source| Error::io(directory, source))
}

fn print(bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    // Not through a stream that strips escape codes: a script is passed on byte by byte.
    match std::io::stdout().lock().write_all(bytes) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|source| {
            Error::new(ErrorKind::Io, "the standard output could not be written").with_source(source)
        }),
    }
}
