//! A server that imitates vLLM around a model whose answer everybody knows: for floods, faults and the cost of the wire itself.
//!
//! The model is [`next_token`]: a function of the last token and of the adapter's name. Sampling parameters do not change it.
//! What is imitated: `/inference/v1/generate`, `/v1/completions`, `/v1/chat/completions` (at once and as events, with log
//! probabilities, stop tokens, the end token, usage), `/tokenize`, `/detokenize`, `/v1/models`, `/health`, `/ping`, `/version`,
//! `/metrics`, `/load`, `/pause`, `/resume`, `/is_paused`, loading and unloading of adapters, the key, and vLLM's refusals of an
//! unknown model, a token beyond the vocabulary and a prompt beyond the context; by gRPC `Generate`, `GenerateStream`,
//! `GetServerInfo`, `GetModelInfo`, `Abort`, `LoadLora`, `UnloadLora`, `ListLoras`, `PauseGeneration`, `ResumeGeneration` and
//! `IsPaused`. Not imitated: stop strings, forms, log probabilities of the prompt, several replies at once.

mod grpc;
mod http;
mod scribe;
mod speech;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use consort_core::Result;
use tokio::sync::watch;

use crate::answer::{Answer, Asked, Protocol};
use crate::fault::FrontEnd;
use crate::key::Key;
use crate::server::{Answers, Server, ServerConfig};

pub use speech::next_token;

/// What the synthetic model says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// What [`next_token`] says; after so many tokens the end token. Without a number, until `max_tokens`.
    Model {
        /// How many tokens come before the end token.
        tokens: Option<u32>,
    },
    /// These tokens, then the end token.
    Tokens(Vec<u32>),
}

/// Text and tokens, for `/tokenize` and for the text of replies.
pub trait Words: Send + Sync + 'static {
    /// The tokens of a text.
    fn tokens(&self, text: &str) -> Vec<u32>;
    /// The text of one token.
    fn text(&self, token: u32) -> String;
}

/// The words of a synthetic server that was given none: a byte is a token, and a token beyond 255 reads ` t300`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bytes;

impl Words for Bytes {
    fn tokens(&self, text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    fn text(&self, token: u32) -> String {
        u8::try_from(token).map_or_else(|_| format!(" t{token}"), |byte| char::from(byte).to_string())
    }
}

/// What a synthetic server is.
#[derive(Clone)]
pub struct SyntheticConfig {
    /// Whose forms it writes. gRPC is there with both.
    pub front_end: FrontEnd,
    /// The served model's name.
    pub model: String,
    /// `root` in `/v1/models`: where the server has the model from.
    pub root: String,
    /// The longest context, prompt and reply together.
    pub max_model_len: u32,
    /// Ordinary tokens: 0 up to this number. The model says no other.
    pub ordinary: u32,
    /// All tokens: a prompt with one beyond is refused.
    pub vocabulary: u32,
    /// The token that ends a reply.
    pub end_token: u32,
    /// What the model says.
    pub reply: Reply,
    /// The pause before each token.
    pub pace: Duration,
    /// The key that the guarded routes want (`/v1…`, `/inference…`). gRPC has none.
    pub api_key: Option<String>,
    /// Adapters that are loaded from the start: name and path.
    pub adapters: Vec<(String, String)>,
    /// Text and tokens.
    pub words: Arc<dyn Words>,
    /// Ports, faults, certificate.
    pub server: ServerConfig,
}

impl Default for SyntheticConfig {
    /// A model named `synthetic` with etude's sizes, as the Python front end serves it, which speaks until `max_tokens` and as
    /// fast as it can.
    fn default() -> Self {
        Self {
            front_end: FrontEnd::Python,
            model: "synthetic".into(),
            root: "synthetic".into(),
            max_model_len: 4096,
            ordinary: 1266,
            vocabulary: 1280,
            end_token: 1268,
            reply: Reply::Model { tokens: None },
            pace: Duration::ZERO,
            api_key: None,
            adapters: Vec::new(),
            words: Arc::new(Bytes),
            server: ServerConfig::default(),
        }
    }
}

/// A running synthetic server.
///
/// ```
/// use consort_vllm_replay::{Synthetic, SyntheticConfig};
///
/// # fn main() -> consort_core::Result<()> {
/// let synthetic = Synthetic::start(SyntheticConfig::default())?;
/// assert!(synthetic.server().http_url().starts_with("http://127.0.0.1:"));
/// // After token 3 comes 31 × 3 + 7.
/// assert_eq!(synthetic.continuation(3, "", 2), [100, (31 * 100 + 7) % 1266]);
/// # Ok(())
/// # }
/// ```
pub struct Synthetic {
    server: Server,
    imitation: Arc<Imitation>,
}

impl Synthetic {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// [`Io`](consort_core::ErrorKind::Io) if its ports cannot be listened on.
    pub fn start(config: SyntheticConfig) -> Result<Self> {
        let imitation = Arc::new(Imitation {
            adapters: Mutex::new(config.adapters.iter().cloned().collect()),
            prompt_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            replies: AtomicU64::new(0),
            serial: AtomicU64::new(0),
            paused: OnceLock::new(),
            config,
        });
        let server = Server::start(Arc::new(Arc::clone(&imitation)), &imitation.config.server)?;
        drop(imitation.paused.set(server.paused_sender()));
        Ok(Self { server, imitation })
    }

    /// Its ports, counts and faults.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The adapters that are loaded: name and path.
    #[must_use]
    pub fn adapters(&self) -> Vec<(String, String)> {
        self.imitation.adapters().iter().map(|(name, path)| (name.clone(), path.clone())).collect()
    }

    /// Forgets every adapter, as a server does that was started anew.
    pub fn forget_adapters(&self) {
        self.imitation.adapters().clear();
    }

    /// What the model says after `last`, `tokens` tokens of it.
    #[must_use]
    pub fn continuation(&self, last: u32, adapter: &str, tokens: usize) -> Vec<u32> {
        let ordinary = self.imitation.config.ordinary;
        let next = |last: &u32| Some(next_token(*last, adapter, ordinary));
        std::iter::successors(Some(last), next).skip(1).take(tokens).collect()
    }
}

/// The state of an imitated vLLM.
struct Imitation {
    config: SyntheticConfig,
    adapters: Mutex<BTreeMap<String, String>>,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    replies: AtomicU64,
    serial: AtomicU64,
    paused: OnceLock<watch::Sender<bool>>,
}

impl Imitation {
    fn adapters(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_paused(&self, now: bool) {
        if let Some(paused) = self.paused.get() {
            paused.send_replace(now);
        }
    }

    fn is_paused(&self) -> bool {
        self.paused.get().is_some_and(|paused| *paused.borrow())
    }
}

impl Answers for Arc<Imitation> {
    fn key(&self, asked: &Asked) -> String {
        Key::of(asked, &crate::Rules::default()).text()
    }

    fn answer(&self, asked: &Asked) -> Answer {
        match asked.protocol {
            Protocol::Http => http::answer(self, asked),
            Protocol::Grpc => grpc::answer(self, asked),
        }
    }
}
