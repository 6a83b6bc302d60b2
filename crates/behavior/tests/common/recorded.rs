//! The backend suite's conversations with a real vLLM: recording them, and playing them where there is none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use consort_behavior::backend::BackendFixture;
use consort_behavior::{Case, Failure, Outcome};
use consort_core::{Error, ErrorKind, Result};
use consort_vllm_replay::{Player, PlayerConfig, Recorder, RecorderConfig, Rules, Transcript};

use super::vllm::{self, FrontDoor, Stage, on_stage};
use super::{folder, native};

/// The scene in which the suite learns what a backend declares.
const MEETING: &str = "what_is_declared";

/// Cases that a recording cannot show, with why: neither recorded nor played.
pub const LEFT_OUT: [(&str, &str); 1] = [(
    "an_overload_is_refused_at_once",
    "its places are taken for as long as a reply takes, and a player says a reply at once",
)];

/// Cases that leave requests at once: whether such a one still arrives depends on the moment, when they are recorded and when they are
/// played. What is asked without having been recorded is answered by an error, so the case fails where anybody waits for that.
const LEAVING: [&str; 7] = [
    "a_deadline_that_passes_in_the_middle_of_a_reply",
    "a_deadline_that_passes_in_the_queue",
    "cancelling_frees_the_slot",
    "cancelling_in_the_queue",
    "cancelling_leaves_the_neighbour",
    "cancelling_while_an_image_is_encoded",
    "metrics_add_up_whatever_happens",
];

fn is_left_out(case: &Case) -> bool {
    LEFT_OUT.iter().any(|(name, _)| *name == case.name())
}

/// Where the conversations through one front end are kept.
fn file(door: FrontDoor) -> PathBuf {
    folder("recorded").join(format!("{}.jsonl.gz", door.subject))
}

/// The folder of adapters has the same name in every recording and wherever it is played.
fn share(of: &Path) -> Result<PathBuf> {
    let share = of.join("adapters");
    std::fs::create_dir_all(&share).map_err(|error| Error::io(&share, error))?;
    Ok(share)
}

/// Keeps what is said to the server that the environment names.
#[derive(Clone)]
pub struct Tape {
    door: FrontDoor,
    kept: Arc<Mutex<Transcript>>,
}

impl Tape {
    /// Begins with what was recorded before.
    pub fn begin(door: FrontDoor) -> Result<Self> {
        let path = file(door);
        let kept = if path.exists() { Transcript::load(&path)? } else { Transcript::default() };
        Ok(Self { door, kept: Arc::new(Mutex::new(kept)) })
    }

    /// Records one scene. What failed is not kept.
    fn scene<T, E: From<Error>>(&self, scene: &str, run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let server: consort_vllm::Endpoint = vllm::variable(self.door.variable)?.parse()?;
        let from = server.url().rsplit('/').next().map(str::to_owned);
        let share = share(&vllm::adapter_folder()?)?;
        // Nobody needs to know where it was recorded.
        let replaced = [(share.clone(), "…/adapters"), (native::etude_folder(), "…/etude")];
        let replaced = replaced.into_iter().map(|(path, name)| {
            let path = path.canonicalize().unwrap_or(path);
            (path.display().to_string(), name.to_owned())
        });
        let rules = Rules { replaced: replaced.collect(), ..Rules::default() };
        let (http_from, grpc_from) = if self.door.by_grpc { (None, from) } else { (from, None) };
        let recorder = Recorder::start(RecorderConfig {
            http_from,
            grpc_from,
            source: self.door.words.into(),
            scene: scene.into(),
            rules,
            without_pauses: true,
            ..RecorderConfig::default()
        })?;
        let endpoint = if self.door.by_grpc { format!("grpc://{}", recorder.grpc()) } else { recorder.http_url() };
        let stage = Stage { endpoint: endpoint.parse()?, share, scene: scene.into() };
        let done = on_stage(stage, run)?;
        let said = recorder.finish()?;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).merge(said)?;
        Ok(done)
    }

    /// The fixture, with what its first backend said.
    pub fn fixture(&self) -> Result<BackendFixture> {
        self.scene(MEETING, || vllm::study(self.door))
    }

    /// The case, with what its backends say.
    pub fn recorded(&self, case: Case) -> Case {
        let (tape, name, missing) = (self.clone(), case.name().to_owned(), case.missing());
        Case::new(name.clone(), missing, move || match is_left_out(&case) {
            true => case.run(),
            false => tape.scene(&name, || case.run()),
        })
    }

    /// Writes what was kept of these cases, and tells how much it is.
    pub fn end(&self, cases: &BTreeSet<String>) -> Result<String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.conversations.retain(|one| one.scene == MEETING || cases.contains(&one.scene));
        let scenes: BTreeSet<&str> = kept.conversations.iter().map(|one| one.scene.as_str()).collect();
        let path = file(self.door);
        let place = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(place).map_err(|error| Error::io(place, error))?;
        kept.save(&path)?;
        let size = std::fs::metadata(&path).map_err(|error| Error::io(&path, error))?.len();
        Ok(format!(
            "{}: {} conversations in {} scenes, {} KiB",
            self.door.subject,
            kept.conversations.len(),
            scenes.len(),
            size.div_ceil(1024)
        ))
    }
}

/// What was recorded, and is played.
#[derive(Clone)]
pub struct Play {
    door: FrontDoor,
    transcript: Arc<Transcript>,
}

impl Play {
    /// # Errors
    /// Nothing was recorded, or it cannot be read.
    pub fn open(door: FrontDoor) -> Result<Self> {
        let transcript = Arc::new(Transcript::load(&file(door))?);
        Ok(Self { door, transcript })
    }

    fn scene<T>(&self, scene: &str, run: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let transcript = self.transcript.scene(scene);
        if transcript.conversations.is_empty() {
            return Err("nothing of it was recorded: `scripts/vllm.sh record` does that".into());
        }
        let player = Player::start(transcript, &PlayerConfig::default())?;
        let place = tempfile::tempdir().map_err(|error| Failure::new(error.to_string()))?;
        let server = player.server();
        let endpoint = if self.door.by_grpc { format!("grpc://{}", server.grpc()) } else { server.http_url() };
        let stage = Stage { endpoint: endpoint.parse()?, share: share(place.path())?, scene: scene.into() };
        let done = on_stage(stage, run);
        let strangers = player.strangers();
        let leaves = LEAVING.contains(&scene);
        let asked = strangers.iter().filter(|stranger| !leaves && !is_farewell(&stranger.key)).map(|stranger| {
            let key: String = stranger.key.chars().take(300).collect();
            format!("it asked what was not recorded: {}; {key}", stranger.difference)
        });
        match (done, asked.collect::<Vec<_>>()) {
            (Ok(done), asked) if asked.is_empty() => Ok(done),
            (Err(failure), asked) if asked.is_empty() => Err(failure),
            (Ok(_), asked) => Err(Failure::new(asked.join("\n"))),
            (Err(failure), asked) => Err(Failure::new(format!("{failure}\n{}", asked.join("\n")))),
        }
    }

    /// The fixture, whose first backend hears what was said to it.
    pub fn fixture(&self) -> Result<BackendFixture> {
        let told = |failure: Failure| Error::new(ErrorKind::InvalidConfig, failure.to_string());
        self.scene(MEETING, || Ok(vllm::study(self.door)?)).map_err(told)
    }

    /// The case, whose backends hear what was said to them.
    pub fn played(&self, case: Case) -> Case {
        let (play, name, missing) = (self.clone(), case.name().to_owned(), case.missing());
        Case::new(name.clone(), missing, move || play.scene(&name, || case.run()))
    }
}

/// What is sent when a backend is dropped, or one of its streams: whether it still arrives depends on the moment.
fn is_farewell(key: &str) -> bool {
    ["POST /v1/unload_lora_adapter", "grpc /vllm.Control/Abort", "grpc /vllm.Control/UnloadLora"]
        .iter()
        .any(|farewell| key.starts_with(farewell))
}

/// The cases that are played, and those that are not, with why not.
pub fn parted(cases: Vec<Case>) -> (Vec<Case>, Vec<(Case, &'static str)>) {
    let (left, played) = cases.into_iter().partition::<Vec<_>, _>(is_left_out);
    let why = |case: &Case| LEFT_OUT.iter().find(|(name, _)| *name == case.name()).map_or("", |(_, why)| *why);
    (played, left.into_iter().map(|case| (case.clone(), why(&case))).collect())
}
