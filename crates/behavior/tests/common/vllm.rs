//! A real vLLM that serves the study model, spoken to through each of its front ends (`scripts/vllm.sh` starts it).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use consort_behavior::backend::{BackendFixture, BackendNature, BackendSetup, Bounds, Kept, Made, MakeBackend};
use consort_core::{Engine, Error, ErrorKind, ModelBackend, ModelInfo, Result};
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

/// How far vLLM is from itself: of 288 log probabilities that were computed once alone and once with eleven other requests, the largest
/// difference was 0.034. A log probability may be off by twice this.
const LOGIT_TOLERANCE: f32 = 0.05;

/// How far vLLM, which computes in bfloat16, is from single precision with the same weights: over 36 greedy replies each to texts and around
/// pictures, as the model and with each adapter, 1728 log probabilities of the chosen tokens differed by 0.108 at most, 2880 of the
/// five best by 0.447; twelve choices were turned, over leads of 0.147 at most.
const ORACLE_TOLERANCE: f32 = 0.5;

/// One way to vLLM.
#[derive(Debug, Clone, Copy)]
pub struct FrontDoor {
    /// What counts are kept by.
    pub subject: &'static str,
    /// The environment variable that names the endpoint.
    pub variable: &'static str,
    /// Whether the server tells how many tokens of a prompt it had.
    tells_reuse: bool,
}

/// Every way to it.
pub const FRONT_DOORS: [FrontDoor; 3] = [
    FrontDoor { subject: "vllm-http", variable: "CONSORT_VLLM_HTTP", tells_reuse: true },
    FrontDoor { subject: "vllm-rust", variable: "CONSORT_VLLM_RUST_HTTP", tells_reuse: false },
    FrontDoor { subject: "vllm-grpc", variable: "CONSORT_VLLM_GRPC", tells_reuse: true },
];

fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| {
        Error::new(ErrorKind::InvalidConfig, "no vLLM is named: run scripts/vllm.sh, which starts one and this suite")
            .with_context("variable", name)
    })
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

/// Connects anew for every case, each with prefixes of its own on the servers.
fn make(endpoint: Endpoint, front_end: FrontEnd, info: ModelInfo) -> Result<MakeBackend> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let folder = std::path::PathBuf::from(variable(ADAPTERS)?);
    Ok(Arc::new(move |setup: &BackendSetup| {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut config = VllmConfig {
            front_end: front_end.clone(),
            model_info: Some(info.clone()),
            adapters: Some(AdapterShare { local: folder.clone(), remote: folder.clone() }),
            namespace: format!("suite-{}-{count}", std::process::id()),
            logit_tolerance: LOGIT_TOLERANCE,
            ..VllmConfig::new(vec![endpoint.clone()])
        };
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
    }))
}

/// The study model behind one of vLLM's front ends; this workspace's own engine with the same weights says what is right.
pub fn study(door: FrontDoor) -> Result<BackendFixture> {
    let endpoint: Endpoint = variable(door.variable)?.parse()?;
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
    let fixture = BackendFixture::new(make(endpoint, front_end, info)?, nature, engine)?;
    Ok(BackendFixture { oracle_tolerance: ORACLE_TOLERANCE, user_turn, ..fixture })
}
