//! A backend over the hash engine, and what its replies must be.

use std::sync::Arc;
use std::time::Duration;

use consort_core::*;
use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig};

use crate::engine::{Control, HashEngine, Setup, digest, mix};

pub struct Rig {
    pub backend: Scheduled<HashEngine>,
    pub control: Arc<Control>,
}

impl Rig {
    pub fn new(setup: Setup, config: SchedulerConfig) -> Self {
        Self::with(setup, config, FrontEnd::default())
    }

    #[allow(clippy::needless_pass_by_value)] // As `Scheduled::spawn` takes it.
    pub fn with(setup: Setup, config: SchedulerConfig, front_end: FrontEnd) -> Self {
        let control = Arc::new(Control::default());
        let inner = Arc::clone(&control);
        // These tests count steps, and hold the engine up in the middle of them: how long one takes means nothing.
        let config = SchedulerConfig { max_step_time: None, ..config };
        let backend = Scheduled::spawn(move || Ok(HashEngine::new(setup, inner)), front_end, config).unwrap();
        Self { backend, control }
    }

    pub fn idle(&self) {
        self.backend.wait_idle(Duration::from_secs(20)).unwrap();
    }

    pub fn load(&self, id: &str, weights: &[u8]) {
        let files = AdapterFiles::Bytes { config: Arc::from(&b"{}"[..]), weights: Arc::from(weights) };
        block_on(self.backend.load_adapter(id, files)).unwrap();
    }

    /// Old generations are unloaded in the turn of the loop after the answer.
    pub fn wait_adapters(&self, count: usize) {
        let begin = std::time::Instant::now();
        while self.control.adapters.load(std::sync::atomic::Ordering::SeqCst) != count {
            assert!(begin.elapsed() < Duration::from_secs(10), "old generations are not unloaded");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn say(&self, request: GenerateRequest) -> Reply {
        collect(self.backend.generate(request).unwrap()).unwrap()
    }

    /// After all is done, no sequence is open.
    pub fn no_leak(&self) {
        self.idle();
        assert_eq!(self.control.counts().0, 0, "sequences leak");
        assert_eq!(self.control.counts().1 as u64, self.backend.metrics().cached_pasts, "parked pasts leak");
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub ids: Vec<TokenId>,
    pub text: String,
    pub logprobs: Vec<PositionLogprobs>,
    pub reason: FinishReason,
    pub usage: Usage,
}

pub fn collect(stream: EventStream) -> Result<Reply> {
    let (mut ids, mut text, mut all) = (Vec::new(), String::new(), Vec::new());
    let mut events = stream.blocking();
    let mut started = false;
    while let Some(event) = events.next() {
        match event? {
            Event::Started(usage) => {
                assert!(!started && usage.completion_tokens == 0);
                started = true;
            }
            Event::Tokens { ids: new, text: more, logprobs } => {
                assert!(started);
                ids.extend(new);
                text.push_str(&more);
                all.extend(logprobs);
            }
            Event::Finished { reason, usage } => {
                assert!(events.next().is_none(), "something follows the end");
                return Ok(Reply { ids, text, logprobs: all, reason, usage });
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("the stream ended without an end")
}

pub fn parts(tokens: &[TokenId]) -> Prompt {
    Prompt::Parts(vec![PromptPart::Tokens(tokens.to_vec())])
}

pub fn request(prompt: Prompt, max_tokens: u32) -> GenerateRequest {
    GenerateRequest { max_tokens: Some(max_tokens), ..GenerateRequest::new(prompt) }
}

pub fn ask(tokens: &[TokenId], max_tokens: u32) -> GenerateRequest {
    request(parts(tokens), max_tokens)
}

pub fn with_adapter(mut request: GenerateRequest, id: &str, scale: f32) -> GenerateRequest {
    request.adapters.push(AdapterUse { id: id.into(), scale });
    request
}

pub fn tokens(seed: u64, count: usize) -> Vec<TokenId> {
    (0..count as u64).map(|index| (mix(seed, index) % 90 + 1) as TokenId).collect()
}

/// An image of one colour; the colour 255 is refused by the engine.
#[derive(Debug)]
pub struct Plain {
    pub pixels: Vec<u8>,
    pub grid: PatchGrid,
}

impl ImageSource for Plain {
    fn content_hash(&self) -> ContentHash {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&digest(&self.pixels).to_le_bytes());
        ContentHash(hash)
    }

    fn encoded(&self) -> Option<&[u8]> {
        None
    }

    fn rgb(&self) -> RgbView<'_> {
        RgbView { width: 1, height: 1, pixels: &self.pixels }
    }

    fn grid(&self) -> PatchGrid {
        self.grid
    }

    fn patches(&self) -> Result<Vec<f32>> {
        Ok(vec![])
    }
}

pub fn image(colour: u8) -> Arc<dyn ImageSource> {
    Arc::new(Plain { pixels: vec![colour; 3], grid: PatchGrid { t: 1, h: 8, w: 12, merge: 2 } })
}

pub fn seen(before: &[TokenId], colour: u8, after: &[TokenId]) -> Prompt {
    Prompt::Parts(vec![
        PromptPart::Tokens(before.to_vec()),
        PromptPart::Image(image(colour)),
        PromptPart::Tokens(after.to_vec()),
    ])
}

/// What the model says, worked out without a scheduler: the hash of the whole past, token by token.
pub fn expected(prompt: &Prompt, adapters: &[(&[u8], f32)], count: usize) -> Vec<TokenId> {
    let weights =
        adapters.iter().fold(1, |hash, (weights, scale)| mix(mix(hash, digest(weights)), u64::from(scale.to_bits())));
    let (mut hash, mut next) = (3, 0u64);
    let mut hear = |item: u64, [t, h, w]: [u64; 3]| {
        hash = mix(mix(mix(hash, item), (t << 40) ^ (h << 20) ^ w), weights);
        hash
    };
    let Prompt::Parts(parts) = prompt else { panic!("parts, please") };
    let mut last = 0;
    for part in parts {
        match part {
            PromptPart::Tokens(tokens) => {
                for &token in tokens {
                    last = hear(u64::from(token), [next; 3]);
                    next += 1;
                }
            }
            PromptPart::Image(image) => {
                let (rows, columns) = (u64::from(image.grid().h / 2), u64::from(image.grid().w / 2));
                for index in 0..rows * columns {
                    let item = mix(digest(image.rgb().pixels), index) | 1 << 63;
                    last = hear(item, [next, next + index / columns, next + index % columns]);
                }
                next += rows.max(columns);
            }
        }
    }
    let mut said = Vec::new();
    for _ in 0..count {
        let logit = |token: u64| (mix(last, token ^ 0x5555) >> 40) as f32 / (1 << 24) as f32 * 4.0;
        let best = (1..96).rev().max_by(|&a, &b| logit(a).total_cmp(&logit(b))).unwrap();
        said.push(best as TokenId);
        last = hear(best, [next; 3]);
        next += 1;
    }
    said
}
