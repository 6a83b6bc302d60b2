//! `consort chat`: a conversation in a terminal, with one persona or several.
//!
//! What was said and how each persona sees it is in [`state`], what a line means in [`command`], when one is whole in
//! [`input`]: these know no terminal and no model. [`editor`] and [`interrupt`] are the terminal, [`reply`] follows the
//! model, [`transcript`] is the file, [`session`] holds all of it together.

mod args;
mod command;
mod editor;
mod input;
mod interrupt;
mod reply;
mod session;
mod settings;
mod state;
mod transcript;

use std::io::IsTerminal as _;

use consort_core::Result;

pub use args::ChatArgs;
use command::Command;
use editor::Editor;
use input::{Input, Source, Typed};
use interrupt::{Interrupt, WhenIdle};
use session::{Manner, Next, Session};

use crate::output;

/// Runs the command.
pub fn run(args: &ChatArgs) -> Result<()> {
    let config = args.model.load_config()?;
    let template = consort::open_template(&config.model)?;
    let backend = consort::load(config)?;
    let manner = match (std::io::stdin().is_terminal(), std::io::stdout().is_terminal()) {
        (true, true) => Manner::Terminal,
        _ => Manner::Pipe,
    };
    let (mut source, when_idle) = match manner {
        Manner::Terminal => (Source::Terminal(Box::new(Editor::new(args.history.as_deref())?)), WhenIdle::Stay),
        Manner::Pipe => (Source::Pipe(Box::new(std::io::BufReader::new(std::io::stdin()))), WhenIdle::Leave),
    };
    let interrupt = Interrupt::install(when_idle)?;
    let mut session = Session::new(backend, template, interrupt, manner, args)?;
    session.greet();
    let mut interrupts = 0;
    loop {
        let typed = match source.next(&session.prompt())? {
            Input::End => break,
            Input::Interrupted => {
                interrupts = 0;
                continue;
            }
            Input::InterruptedEmpty => {
                interrupts += 1;
                if interrupts == 2 {
                    break;
                }
                session.note("Ctrl-C again leaves");
                continue;
            }
            Input::Typed(typed) => typed,
        };
        interrupts = 0;
        let command = match typed {
            Typed::Line(text) => Command::parse(&text),
            Typed::Block(text) if text.trim().is_empty() => Ok(Command::Nothing),
            Typed::Block(text) => Ok(Command::Say(text)),
        };
        match command.and_then(|command| session.obey(command)) {
            Ok(Next::Listen) => {}
            Ok(Next::Leave) => break,
            // A person sees what went wrong and goes on. A script must not go on as if nothing had happened.
            Err(error) if manner == Manner::Terminal => output::show_error(&error),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
