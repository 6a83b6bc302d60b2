//! Reads adapters' files off the engine's thread: a slow disk must not stall a voice.

use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use consort_core::{AdapterFiles, AdapterInfo, AdapterKey, Residency, Result};
use consort_peft::AdapterBytes;

use crate::events::Answerer;
use crate::scheduled::Command;

/// What is asked of the adapters, in the order in which it was asked.
pub(crate) enum Errand {
    /// Load, or replace, under this name.
    Load(String, AdapterFiles, Answerer<AdapterInfo>),
    Unload(String, Answerer<()>),
    Reside(String, Residency, Answerer<()>),
    /// Read again what is to come back into the engine.
    Page(AdapterKey, AdapterFiles),
}

/// What came of it, for the engine's thread.
pub(crate) enum Delivery {
    Load(String, AdapterFiles, Result<Contents>, Answerer<AdapterInfo>),
    Unload(String, Answerer<()>),
    Reside(String, Residency, Answerer<()>),
    Page(AdapterKey, Result<Contents>),
}

/// The contents of an adapter's files.
pub(crate) struct Contents {
    pub(crate) bytes: AdapterBytes,
    pub(crate) digest: [u8; 32],
}

/// Takes errands and delivers to the engine's thread.
#[derive(Clone)]
pub(crate) struct Library {
    /// `None`: errands are run at once, on the caller's thread.
    errands: Option<Sender<Errand>>,
    commands: Sender<Command>,
}

impl Library {
    /// With a thread of its own, which ends with the last clone. Without one (the system refused it) whoever has an errand
    /// runs it.
    pub(crate) fn new(commands: Sender<Command>) -> (Self, Option<JoinHandle<()>>) {
        let (errands, inbox) = mpsc::channel();
        let to_engine = commands.clone();
        let run = move || {
            for errand in inbox {
                // When the engine's thread is gone, the answerers are dropped, which answers.
                let _ = to_engine.send(Command::Adapter(Box::new(deliver(errand))));
            }
        };
        let thread = std::thread::Builder::new().name("consort-adapters".into()).spawn(run).ok();
        (Self { errands: thread.is_some().then_some(errands), commands }, thread)
    }

    /// Without a thread: for a simulation.
    pub(crate) fn here(commands: Sender<Command>) -> Self {
        Self { errands: None, commands }
    }

    pub(crate) fn send(&self, errand: Errand) {
        let left = match &self.errands {
            Some(errands) => errands.send(errand).err().map(|mpsc::SendError(errand)| errand),
            None => Some(errand),
        };
        if let Some(errand) = left {
            let _ = self.commands.send(Command::Adapter(Box::new(deliver(errand))));
        }
    }
}

fn deliver(errand: Errand) -> Delivery {
    match errand {
        Errand::Load(id, files, answer) => {
            let read = read(&files);
            Delivery::Load(id, files, read, answer)
        }
        Errand::Unload(id, answer) => Delivery::Unload(id, answer),
        Errand::Reside(id, residency, answer) => Delivery::Reside(id, residency, answer),
        Errand::Page(key, files) => {
            let read = read(&files);
            Delivery::Page(key, read)
        }
    }
}

fn read(files: &AdapterFiles) -> Result<Contents> {
    let bytes = AdapterBytes::read(files)?;
    Ok(Contents { digest: bytes.digest(), bytes })
}
