//! What is asked, word for word: data that is made once, saved, and replayed.

use std::path::Path;

use consort_core::{Error, ErrorKind, Result, Role};
use serde::{Deserialize, Serialize};

use super::{ChurnConfig, NeighbourConfig, RoomConfig, SoloConfig, picture};

/// The form of a workload's file. Another form has another number, and is refused.
pub const WORKLOAD_SCHEMA: u32 = 1;
/// The largest file that is read as a workload, in bytes.
const MAX_FILE: u64 = 256 << 20;
/// The most requests of a workload: each lane of a phase is a thread, and each request a line of a report's raw data.
const MAX_ASKS: usize = 1 << 20;
/// The most lanes of a phase, and the most threads of a neighbour.
const MAX_LANES: usize = 256;
/// The most pictures of a workload: all are held in memory.
const MAX_PICTURES: usize = 1024;

/// From what a workload was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settings {
    /// One stream at a time.
    Solo(SoloConfig),
    /// Personas in one conversation.
    Room(RoomConfig),
    /// Arrivals, cancels and long prompts beside live voices.
    Churn(ChurnConfig),
    /// A room while other work takes cores.
    Neighbour(NeighbourConfig),
}

impl Settings {
    /// The workload's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Solo(_) => "solo",
            Self::Room(_) => "room",
            Self::Churn(_) => "churn",
            Self::Neighbour(_) => "neighbour",
        }
    }
}

/// A workload: blocks that are alike in form and differ in every word, so that no block finds what another left in a cache.
///
/// ```
/// use consort_bench::live::{Settings, SoloConfig, Workload};
///
/// # fn main() -> consort_core::Result<()> {
/// let settings = Settings::Solo(SoloConfig { prompt_tokens: vec![64], ..SoloConfig::default() });
/// let workload = Workload::generate(settings, 7, 3)?;
/// assert_eq!(workload.blocks.len(), 3);
/// assert_eq!(workload, Workload::generate(workload.settings.clone(), 7, 3)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// [`WORKLOAD_SCHEMA`].
    pub schema: u32,
    /// From what it was made.
    pub settings: Settings,
    /// The seed of every word.
    pub seed: u64,
    /// How many adapters its requests name, by index.
    pub adapters: usize,
    /// Pictures that its requests show, by index.
    pub pictures: Vec<Picture>,
    /// A short block that is run once by each target, and does not count.
    pub warm_up: Block,
    /// The blocks that count: one for each repeat.
    pub blocks: Vec<Block>,
}

/// A picture that is made up: blocks of colour, a function of its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// What it shows.
    pub seed: u64,
    /// Its width and height in pixels.
    pub side: u32,
}

/// Phases that a target goes through one after another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// In this order.
    pub phases: Vec<Phase>,
}

/// Lanes that run at the same time. The phase ends when the last of them does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Other work beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Neighbour>,
    /// Who asks.
    pub lanes: Vec<Lane>,
}

/// Threads of ours that take processor time and need nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// How many.
    pub threads: usize,
    /// Whether each is held to a core of its own, counted from the last.
    pub pinned: bool,
}

/// One who asks: each request when the one before it has ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lane {
    /// When it begins, in milliseconds after the phase did.
    pub start_ms: u64,
    /// How long it waits between two requests, in milliseconds.
    pub pause_ms: u64,
    /// What it asks.
    pub asks: Vec<Ask>,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// With what it is counted together.
    pub group: String,
    /// The conversation.
    pub messages: Vec<Message>,
    /// How long the reply is, in tokens. End tokens do not end it.
    pub max_tokens: u32,
    /// The reply is cancelled after so many tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_after: Option<u32>,
    /// With which adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<usize>,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Speaker,
    /// What is said, in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A message of one text.
    pub(super) fn text(role: Speaker, text: impl Into<String>) -> Self {
        Self { role, parts: vec![Part::Text(text.into())] }
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// The scene.
    System,
    /// The people.
    User,
    /// The model, in earlier turns.
    Assistant,
}

impl From<Speaker> for Role {
    fn from(speaker: Speaker) -> Self {
        match speaker {
            Speaker::System => Self::System,
            Speaker::User => Self::User,
            Speaker::Assistant => Self::Assistant,
        }
    }
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Text.
    Text(String),
    /// A picture of the workload, by index.
    Picture(usize),
}

impl Workload {
    /// Makes a workload of `repeats` blocks: a function of its arguments alone.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for settings without meaning.
    pub fn generate(settings: Settings, seed: u64, repeats: usize) -> Result<Self> {
        if repeats == 0 {
            return Err(invalid("a workload has at least one repeat"));
        }
        let (adapters, pictures, side) = match &settings {
            Settings::Room(room) => (room.adapters, room.pictures, room.picture_side),
            Settings::Neighbour(config) if config.room.pictures > 0 => {
                return Err(invalid("`neighbour` shows no pictures: its second half would find them encoded"));
            }
            Settings::Neighbour(config) => (config.room.adapters, 0, 0),
            Settings::Solo(_) | Settings::Churn(_) => (0, 0, 0),
        };
        // Each block shows pictures of its own, as it has words of its own.
        let shown =
            (0..pictures * (repeats + 1)).map(|index| Picture { seed: seed ^ (index as u64 + 1), side }).collect();
        let block = |index: usize| match &settings {
            Settings::Solo(config) => config.block(seed, index),
            Settings::Room(config) => config.block(seed, index, "room", None),
            Settings::Churn(config) => config.block(seed, index),
            Settings::Neighbour(config) => config.block(seed, index),
        };
        let blocks = (1..=repeats).map(block).collect();
        let warm_up = super::solo::warm_up(seed, adapters, pictures);
        let workload = Self { schema: WORKLOAD_SCHEMA, settings, seed, adapters, pictures: shown, warm_up, blocks };
        workload.check()?;
        Ok(workload)
    }

    /// Reads a workload that was [saved](Self::save).
    ///
    /// # Errors
    /// Those of reading; [`ErrorKind::InvalidConfig`] for a file of another form, or one that names what it does not hold.
    pub fn open(path: &Path) -> Result<Self> {
        let named = |error: Error| error.with_context("path", path.display().to_string());
        let length = std::fs::metadata(path).map_err(|source| Error::io(path, source))?.len();
        if length > MAX_FILE {
            return Err(named(invalid(format!("the file has {length} bytes; a workload has at most {MAX_FILE}"))));
        }
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let workload: Self = serde_json::from_slice(&bytes)
            .map_err(|source| named(invalid(format!("this is no workload: {source}")).with_source(source)))?;
        workload.check().map_err(named)?;
        Ok(workload)
    }

    /// Writes the workload, so that it can be run again, elsewhere too.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|source| Error::new(ErrorKind::Unexpected, "a workload is no JSON").with_source(source))?;
        std::fs::write(path, text).map_err(|source| Error::io(path, source))
    }

    /// BLAKE3 of the whole workload, in hexadecimal: two reports with the same digest measured the same.
    #[must_use]
    pub fn digest(&self) -> String {
        blake3::hash(&serde_json::to_vec(self).unwrap_or_default()).to_hex().to_string()
    }

    /// The pictures as PNG files.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn render_pictures(&self) -> Result<Vec<Vec<u8>>> {
        self.pictures.iter().map(|picture| picture::render(*picture)).collect()
    }

    /// All requests of the blocks that count.
    pub fn asks(&self) -> impl Iterator<Item = &Ask> {
        self.blocks.iter().flat_map(Block::asks)
    }

    fn check(&self) -> Result<()> {
        if self.schema != WORKLOAD_SCHEMA {
            return Err(invalid(format!("the workload has the form {}, and {WORKLOAD_SCHEMA} is known", self.schema)));
        }
        if self.blocks.is_empty() || self.blocks.iter().any(|block| block.asks().next().is_none()) {
            return Err(invalid("a workload has at least one block, and each at least one request"));
        }
        let all = || self.asks().chain(self.warm_up.asks());
        if all().count() > MAX_ASKS {
            return Err(invalid(format!("a workload has at most {MAX_ASKS} requests")));
        }
        if let Some(phase) =
            self.blocks.iter().flat_map(|block| &block.phases).find(|phase| phase.lanes.len() > MAX_LANES)
        {
            return Err(invalid(format!("a phase has {} lanes; at most {MAX_LANES} run", phase.lanes.len())));
        }
        let beside = self.blocks.iter().flat_map(|block| &block.phases).filter_map(|phase| phase.beside);
        if let Some(neighbour) = beside.into_iter().find(|neighbour| !(1..=MAX_LANES).contains(&neighbour.threads)) {
            return Err(invalid(format!("a neighbour has 1 to {MAX_LANES} threads, not {}", neighbour.threads)));
        }
        if self.pictures.len() > MAX_PICTURES {
            return Err(invalid(format!(
                "the workload has {} pictures; at most {MAX_PICTURES} are held",
                self.pictures.len()
            )));
        }
        for ask in all() {
            let pictures = ask.messages.iter().flat_map(|message| &message.parts).filter_map(|part| match part {
                Part::Picture(index) => Some(*index),
                Part::Text(_) => None,
            });
            if pictures.max().is_some_and(|index| index >= self.pictures.len())
                || ask.adapter.is_some_and(|index| index >= self.adapters)
            {
                return Err(invalid("a request names a picture or an adapter that the workload does not have")
                    .with_context("group", ask.group.clone()));
            }
            if ask.max_tokens == 0 || ask.messages.is_empty() || ask.cancel_after == Some(0) {
                return Err(invalid("a request asks for at least one token, and says something")
                    .with_context("group", ask.group.clone()));
            }
        }
        if let Some(picture) = self.pictures.iter().find(|picture| !(16..=4096).contains(&picture.side)) {
            return Err(invalid(format!("a picture is 16 to 4096 pixels wide, not {}", picture.side)));
        }
        Ok(())
    }
}

impl Block {
    /// All requests, phase by phase and lane by lane.
    pub fn asks(&self) -> impl Iterator<Item = &Ask> {
        self.phases.iter().flat_map(|phase| &phase.lanes).flat_map(|lane| &lane.asks)
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("bench::workload")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all() -> [Settings; 4] {
        [
            Settings::Solo(SoloConfig::default()),
            Settings::Room(RoomConfig { adapters: 2, pictures: 1, ..RoomConfig::default() }),
            Settings::Churn(ChurnConfig::default()),
            Settings::Neighbour(NeighbourConfig::default()),
        ]
    }

    #[test]
    fn a_workload_is_a_function_of_its_seed_and_comes_back_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        for settings in all() {
            let one = Workload::generate(settings.clone(), 1, 2).unwrap();
            assert_eq!(one, Workload::generate(settings.clone(), 1, 2).unwrap());
            let other = Workload::generate(settings, 2, 2).unwrap();
            assert_ne!((one.blocks == other.blocks, one.digest() == other.digest()), (true, true));
            let path = folder.path().join("w.json");
            one.save(&path).unwrap();
            let back = Workload::open(&path).unwrap();
            assert_eq!((&back, back.digest()), (&one, one.digest()));
        }
    }

    #[test]
    fn no_block_repeats_the_beginning_of_another() {
        for settings in all() {
            let workload = Workload::generate(settings, 5, 3).unwrap();
            let first = |block: &Block| block.asks().next().unwrap().messages[0].clone();
            let beginnings: Vec<_> = workload.blocks.iter().map(first).collect();
            assert!(beginnings[0] != beginnings[1] && beginnings[1] != beginnings[2]);
        }
    }

    #[test]
    fn a_file_of_another_form_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.json");
        let good = Workload::generate(Settings::Solo(SoloConfig::default()), 1, 1).unwrap();
        let wrongs: [fn(&mut Workload); 7] = [
            |w| w.pictures = vec![Picture { seed: 1, side: 64 }; 1025],
            |w| w.pictures = vec![Picture { seed: 1, side: 1 << 30 }],
            |w| w.blocks[0].phases[0].beside = Some(Neighbour { threads: 1 << 40, pinned: false }),
            |w| w.schema = 2,
            |w| w.blocks.clear(),
            |w| w.blocks[0].phases[0].lanes[0].asks[0].adapter = Some(0),
            |w| w.blocks[0].phases[0].lanes[0].asks[0].messages[0].parts.push(Part::Picture(9)),
        ];
        for wrong in wrongs {
            let mut bad = good.clone();
            wrong(&mut bad);
            bad.save(&path).unwrap();
            assert_eq!(Workload::open(&path).unwrap_err().kind(), ErrorKind::InvalidConfig);
        }
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Workload::open(&path).unwrap_err().kind(), ErrorKind::InvalidConfig);
        assert_eq!(Workload::generate(good.settings, 1, 0).unwrap_err().kind(), ErrorKind::InvalidConfig);
    }
}
