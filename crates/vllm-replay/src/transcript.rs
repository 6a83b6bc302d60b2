//! Transcripts: conversations in a file of JSON lines. The crate's README describes the format.

mod read;
mod write;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use bytes::Bytes;
use consort_core::{Error, ErrorKind, Result};

use crate::answer::Ending;
use crate::key::Key;
use crate::rules::Rules;

/// A recorded answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers that matter: the content's type, `retry-after` and the like. Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Whether the body's length was announced. Otherwise it was chunked.
    pub sized: bool,
    /// The body: server-sent events with their blank lines, messages of gRPC, or chunks.
    pub events: Vec<Bytes>,
    /// The pause before each event in milliseconds, rounded to 0, 1, 2, 5, 10, … 1000. Empty if no pause was kept.
    pub pauses: Vec<u32>,
    /// gRPC's trailers.
    pub trailers: Vec<(String, String)>,
    /// What came after the last event.
    pub ending: Ending,
}

/// A request's key, and what was answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The scene it belongs to, usually a test's name. Empty for none.
    pub scene: String,
    /// By what the request is known again.
    pub key: Key,
    /// What was answered.
    pub reply: Reply,
}

/// Recorded conversations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    /// What was recorded: the server and its version, for people.
    pub source: String,
    /// The rules by which keys were made.
    pub rules: Rules,
    /// The conversations: sorted by scene and key, and with one key in the order in which they were held.
    pub conversations: Vec<Conversation>,
}

/// The longest file that is read: 64 MiB.
const LONGEST: u64 = 64 << 20;

fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}

impl Transcript {
    /// Reads a transcript. It is not trusted: every number in it is bounded.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig), with the line, if it is malformed or too long.
    pub fn parse(text: &str) -> Result<Self> {
        read::parse(text)
    }

    /// Writes it. The same conversations always give the same text.
    #[must_use]
    pub fn to_text(&self) -> String {
        write::to_text(self)
    }

    /// Reads a file; one whose name ends in `.gz` is unpacked.
    ///
    /// # Errors
    ///
    /// Those of [`Transcript::parse`], and the file system's.
    pub fn load(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        let mut text = String::new();
        // One byte beyond what is read tells that there is more.
        let read = if is_packed(path) {
            flate2::read::GzDecoder::new(file).take(LONGEST + 1).read_to_string(&mut text)
        } else {
            file.take(LONGEST + 1).read_to_string(&mut text)
        };
        read.map_err(|error| Error::io(path, error))?;
        if text.len() as u64 > LONGEST {
            return Err(Error::new(ErrorKind::InvalidConfig, "the transcript is longer than 64 MiB")
                .with_operation("vllm_replay::transcript")
                .with_context("path", path.display().to_string()));
        }
        Self::parse(&text).map_err(|error| error.with_context("path", path.display().to_string()))
    }

    /// Writes a file; one whose name ends in `.gz` is packed. The same conversations always give the same bytes.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = self.to_text();
        let written = if is_packed(path) {
            let best = flate2::Compression::best();
            File::create(path).map(|file| flate2::write::GzEncoder::new(file, best)).and_then(|mut packer| {
                packer.write_all(text.as_bytes())?;
                packer.finish().map(drop)
            })
        } else {
            std::fs::write(path, text)
        };
        written.map_err(|error| Error::io(path, error))
    }

    /// The conversations of one scene.
    #[must_use]
    pub fn scene(&self, name: &str) -> Self {
        let conversations =
            self.conversations.iter().filter(|conversation| conversation.scene == name).cloned().collect();
        Self { conversations, ..self.clone() }
    }

    /// Takes the conversations of another transcript in. A scene that both have is the other's afterwards, so that recording a
    /// test again replaces what it said.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if the two were recorded by other rules.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        if self.conversations.is_empty() && self.source.is_empty() {
            *self = other;
            return Ok(());
        }
        let (mut own, mut others) = (self.rules.clone(), other.rules.clone());
        own.replaced.clear();
        others.replaced.clear();
        if own != others {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the transcripts were recorded by different rules: record both again",
            )
            .with_operation("vllm_replay::merge"));
        }
        let scenes: std::collections::BTreeSet<&str> =
            other.conversations.iter().map(|conversation| conversation.scene.as_str()).collect();
        self.conversations.retain(|conversation| !scenes.contains(conversation.scene.as_str()));
        self.conversations.extend(other.conversations);
        self.sort();
        Ok(())
    }

    /// Sorts by scene and key; what one key was answered stays in its order.
    pub(crate) fn sort(&mut self) {
        self.conversations.sort_by_cached_key(|conversation| (conversation.scene.clone(), conversation.key.text()));
    }
}
