//! vLLM that serves the study model, spoken to through each of its front ends: a real one (`scripts/vllm.sh` starts it), or what was
//! recorded of one.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use consort_behavior::backend::{BackendFixture, BackendNature, BackendSetup, Bounds, Kept, Made, MakeBackend};
use consort_core::{Error, ErrorKind, ModelBackend, ModelInfo, Result};
use consort_scheduler::FrontEnd;
use consort_text::{ChatTemplate, Tokenizer};
use consort_vision::{ImageProcessor, ImageProcessorConfig};
use consort_vllm::{AdapterShare, Endpoint, VllmConfig, VllmRemoteBackend};

use super::{native, scheduled};

/// How long a case waits for what was begun.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where adapters are handed over.
const ADAPTERS: &str = "CONSORT_VLLM_ADAPTERS";

/// What of a prompt the servers reuse: blocks that attention and the recurrent layers' states of this model share.
const BLOCK: usize = 384;

/// How far vLLM is from itself: 315 log probabilities that were computed once alone and once with eleven other requests were the same in
/// four decimals, and over the whole suite none was off by more than twice this, which is what it may be.
const LOGIT_TOLERANCE: f32 = 0.05;

/// How far vLLM, which computes in bfloat16, is from single precision with the same weights: over greedy replies to texts and around
/// pictures, as the model and with each adapter, 2592 log probabilities differed by 0.506 at most (99 of 100 by 0.19); five choices were
/// turned, over leads of 0.369 at most.
const ORACLE_TOLERANCE: f32 = 0.5;

/// One way to vLLM.
#[derive(Debug, Clone, Copy)]
pub struct FrontDoor {
    /// What counts are kept by.
    pub subject: &'static str,
    /// The environment variable that names the endpoint.
    pub variable: &'static str,
    /// What it is, for people.
    pub words: &'static str,
    /// Whether by gRPC.
    pub by_grpc: bool,
    /// Whether the server tells how many tokens of a prompt it had.
    tells_reuse: bool,
}

/// Every way to it.
pub const FRONT_DOORS: [FrontDoor; 3] = [
    FrontDoor {
        subject: "vllm-http",
        variable: "CONSORT_VLLM_HTTP",
        words: "vLLM 0.32.0, front end in Python, HTTP",
        by_grpc: false,
        tells_reuse: true,
    },
    FrontDoor {
        subject: "vllm-rust",
        variable: "CONSORT_VLLM_RUST_HTTP",
        words: "vLLM 0.32.0, front end in Rust, HTTP",
        by_grpc: false,
        tells_reuse: false,
    },
    FrontDoor {
        subject: "vllm-grpc",
        variable: "CONSORT_VLLM_GRPC",
        words: "vLLM 0.32.0, front end in Rust, gRPC",
        by_grpc: true,
        tells_reuse: true,
    },
];

/// Where the backends of one case connect to, when that is no server that the environment names.
#[derive(Debug, Clone)]
pub struct Stage {
    /// A recorder or a player.
    pub endpoint: Endpoint,
    /// Where adapters are handed over.
    pub share: PathBuf,
    /// The case: what its backends call themselves is made of this, so that they say the same each time.
    pub scene: String,
}

thread_local! {
    /// The stage of the case that this thread runs, and how many backends were made there.
    static STAGE: RefCell<Option<(Stage, u32)>> = const { RefCell::new(None) };
}

/// Runs a case whose backends connect to this stage. It makes them on this thread.
pub fn on_stage<T>(stage: Stage, run: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            STAGE.with_borrow_mut(|stage| *stage = None);
        }
    }
    STAGE.with_borrow_mut(|place| *place = Some((stage, 0)));
    let _leave = Leave;
    run()
}

/// The next backend of this thread's stage: where it connects to, and what it is called.
fn next_on_stage() -> Option<(Stage, String)> {
    STAGE.with_borrow_mut(|place| {
        let (stage, made) = place.as_mut()?;
        *made += 1;
        Some((stage.clone(), format!("{}-{made}", stage.scene)))
    })
}

/// What an environment variable names.
pub fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| {
        Error::new(ErrorKind::InvalidConfig, "no vLLM is named: run scripts/vllm.sh, which starts one and this suite")
            .with_context("variable", name)
    })
}

/// The folder that the environment names for adapters.
pub fn adapter_folder() -> Result<PathBuf> {
    variable(ADAPTERS).map(PathBuf::from)
}

/// Tokenizer, template and image processor of the study model's own files.
fn front_end() -> Result<FrontEnd> {
    let read = |name: &str| {
        let path = native::etude_folder().join(name);
        fs::read(&path).map_err(|error| Error::io(&path, error))
    };
    let template = String::from_utf8_lossy(&read("chat_template.jinja")?).into_owned();
    let processor = ImageProcessorConfig::from_json(&read("preprocessor_config.json")?)?;
    Ok(FrontEnd {
        tokenizer: Some(Tokenizer::from_json(&read("tokenizer.json")?, Some(&read("tokenizer_config.json")?))?),
        template: Some(ChatTemplate::new(&template)?),
        image_processor: Some(ImageProcessor::new(processor)?),
    })
}

/// How a backend connects: to this thread's stage, or else to the server that the environment names. Each has prefixes of its own on
/// the servers.
fn config(door: FrontDoor) -> Result<VllmConfig> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (endpoint, folder, namespace, instance) = match next_on_stage() {
        Some((stage, name)) => {
            // Two of the ways lead to one server, which keeps what either said.
            let name = format!("{} {name}", door.subject);
            let digest = blake3::hash(name.as_bytes()).to_hex();
            (stage.endpoint, stage.share, name, Some(format!("consort-{}", &digest[..8])))
        }
        None => {
            let name = format!("suite-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            (variable(door.variable)?.parse()?, adapter_folder()?, name, None)
        }
    };
    let mut config = VllmConfig {
        adapters: Some(AdapterShare { local: folder.clone(), remote: folder }),
        namespace,
        logit_tolerance: LOGIT_TOLERANCE,
        ..VllmConfig::new(vec![endpoint])
    };
    if instance.is_some() {
        // How often it is asked for depends on the time that a case takes.
        config.health_interval = Duration::from_secs(24 * 60 * 60);
    }
    config.instance = instance;
    Ok(config)
}

/// Connects anew for every backend that a case makes.
fn make(door: FrontDoor, front_end: FrontEnd, info: ModelInfo) -> MakeBackend {
    Arc::new(move |setup: &BackendSetup| {
        let mut config = VllmConfig { front_end: front_end.clone(), model_info: Some(info.clone()), ..config(door)? };
        if let (Some(running), Some(queued)) = (setup.max_running, setup.max_queued) {
            config.max_requests = running + queued;
        }
        let backend = Arc::new(VllmRemoteBackend::connect(config)?);
        let waiting = Arc::clone(&backend);
        let settle = move || {
            let begun = Instant::now();
            loop {
                let metrics = waiting.metrics();
                if metrics.running + metrics.queued == 0 {
                    return Ok(());
                }
                if begun.elapsed() > PATIENCE {
                    return Err(Error::new(ErrorKind::DeadlineExceeded, "requests are still on their way"));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        Ok(Made { backend, settle: Arc::new(settle) })
    })
}

/// The study model behind one of vLLM's front ends; this workspace's own engine with the same weights says what is right.
pub fn study(door: FrontDoor) -> Result<BackendFixture> {
    let missing = || Error::new(ErrorKind::NotFound, "the study model has no goldens");
    let mut engine = native::etude().ok_or_else(missing)??;
    engine.engine = door.subject.into();
    engine.refused_adapters = native::refused(&native::etude_folder().join("adapters/pirate"))?;
    let info = engine.engine()?.info().clone();
    let nature = BackendNature {
        engine_within: false,
        bounds: Bounds::Together,
        counts_work: false,
        tells_memory: false,
        pasts: if door.tells_reuse { Kept::Elsewhere { block: BLOCK } } else { Kept::Untold },
        pages_adapters: false,
        scales_adapters: true,
        stacks_adapters: false,
        every_sampler: false,
        largest_bias: 100.0,
        hottest: 2.0,
        most_logprobs: 20,
        shortest_prompt: 2,
    };
    let front_end = front_end()?;
    let user_turn = front_end.template.clone().map(scheduled::turn_of);
    let fixture = BackendFixture::new(make(door, front_end, info), nature, engine)?;
    Ok(BackendFixture { oracle_tolerance: ORACLE_TOLERANCE, user_turn, ..fixture })
}
