//! Where the servers are, and how they are dealt with.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use consort_core::{Error, ErrorKind, ModelInfo, Result};
use consort_prompt::FrontEnd;

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 and server-sent events.
    Http,
    /// vLLM's own services `vllm.Inference` and `vllm.Control`.
    Grpc,
}

/// One server: `http://host:port`, `https://…`, `grpc://host:port` or `grpcs://…`.
///
/// ```
/// use consort_vllm::{Endpoint, Protocol};
///
/// let endpoint: Endpoint = "https://gpu-box.example:8000/".parse()?;
/// assert_eq!((endpoint.protocol(), endpoint.is_encrypted()), (Protocol::Http, true));
/// assert_eq!(endpoint.to_string(), "https://gpu-box.example:8000");
/// assert!("gpu-box:8000".parse::<Endpoint>().is_err());
/// # Ok::<(), consort_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    protocol: Protocol,
    encrypted: bool,
    /// Host, port and, for HTTP, the path under which the server's routes are; without a slash at its end.
    place: String,
}

impl Endpoint {
    /// How it is spoken to.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether by TLS.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// The address as an HTTP library wants it, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.encrypted { "https" } else { "http" }, self.place)
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for anything but an address in one of the four forms. The message does not repeat it:
    /// it may hold a password.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |message: &str| {
            Error::new(ErrorKind::InvalidConfig, message).with_operation("vllm::endpoint").with_context("key", "url")
        };
        let (scheme, place) = text
            .split_once("://")
            .ok_or_else(|| refuse("an endpoint is written http://HOST:PORT, https://…, grpc://… or grpcs://…"))?;
        let (protocol, encrypted) = match scheme {
            "http" => (Protocol::Http, false),
            "https" => (Protocol::Http, true),
            "grpc" => (Protocol::Grpc, false),
            "grpcs" => (Protocol::Grpc, true),
            _ => return Err(refuse("an endpoint begins with http://, https://, grpc:// or grpcs://")),
        };
        let place = place.trim_end_matches('/');
        let host = place.split('/').next().unwrap_or_default();
        if host.is_empty() {
            return Err(refuse("the endpoint names no host"));
        }
        if host.contains('@') {
            return Err(refuse("a name and a password do not belong into the address; give the API key by itself"));
        }
        if place.contains(['?', '#']) || place.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(refuse("the endpoint is an address without parameters and spaces"));
        }
        if protocol == Protocol::Grpc && place.contains('/') {
            return Err(refuse("a gRPC endpoint has no path"));
        }
        Ok(Self { protocol, encrypted, place: place.to_owned() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (self.protocol, self.encrypted) {
            (Protocol::Http, false) => "http",
            (Protocol::Http, true) => "https",
            (Protocol::Grpc, false) => "grpc",
            (Protocol::Grpc, true) => "grpcs",
        };
        write!(f, "{scheme}://{}", self.place)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The key that the servers demand. It never stands in a log, a message or a debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Arc<str>);

impl ApiKey {
    /// A key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for an empty one and for what cannot stand in a header.
    pub fn new(key: &str) -> Result<Self> {
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
            return Err(Error::new(ErrorKind::InvalidConfig, "an API key is one word of visible ASCII characters")
                .with_context("key", "api_key"));
        }
        Ok(Self(key.into()))
    }

    /// The key in an environment variable.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] where there is none.
    pub fn from_env(name: &str) -> Result<Self> {
        let key = std::env::var(name).map_err(|_| {
            Error::new(ErrorKind::InvalidConfig, "the environment variable of the API key is not set")
                .with_context("variable", name)
        })?;
        Self::new(&key).map_err(|error| error.with_context("variable", name))
    }

    /// The key in a file.
    ///
    /// # Errors
    /// What reading it gives, and [`ErrorKind::InvalidConfig`].
    pub fn from_file(path: &std::path::Path) -> Result<Self> {
        let key = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        Self::new(&key).map_err(|error| error.with_context("path", path.display().to_string()))
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// A folder that this process writes and the servers read: vLLM loads adapters by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterShare {
    /// As this process sees it.
    pub local: PathBuf,
    /// As the servers see it. On one machine, the same.
    pub remote: PathBuf,
}

/// How long each phase of a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect, TLS included.
    pub connect: Duration,
    /// From the request to the head of the answer, which vLLM sends when the request is queued.
    pub head: Duration,
    /// From the head to the first token: what the server's queue and the prompt take.
    pub first_token: Duration,
    /// From one token to the next.
    pub token: Duration,
    /// For questions that need no model: health, versions, tokenization.
    pub control: Duration,
    /// To load an adapter, and for the first answer when connecting: a server may compile its kernels then.
    pub load: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            head: Duration::from_secs(30),
            first_token: Duration::from_secs(120),
            token: Duration::from_secs(30),
            control: Duration::from_secs(10),
            load: Duration::from_secs(120),
        }
    }
}

/// What becomes of a reply whose server failed after it had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// Its stream ends with the error.
    Never,
    /// Where that changes nothing, another attempt continues from the tokens that came: the prompt with them, for the rest.
    /// Greedy replies without penalties on what was said, structure or stop strings' lower bound are continued; others
    /// end with the error.
    #[default]
    ByTokens,
}

/// When a request is tried again. Only what is safe is: nothing that has delivered a token, unless it is
/// [resumed](Resume).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retries {
    /// Attempts of one request, the first one included.
    pub attempts: u32,
    /// The pause before the second attempt on the same server; it doubles with each further one. The actual pause is drawn
    /// between half of it and all.
    pub pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How many retries there may be for one request that succeeds, over all requests: a server that fails is not helped by
    /// asking it ever more. (The retry budget of Finagle and Envoy.)
    pub budget: f64,
    /// Retries that the budget always allows, each ten seconds.
    pub reserve: u32,
    /// What becomes of replies that had begun.
    pub resume: Resume,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 4,
            pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
            budget: 0.2,
            reserve: 20,
            resume: Resume::default(),
        }
    }
}

/// How one or several vLLM servers with the same model are used.
#[derive(Debug, Clone)]
pub struct VllmConfig {
    /// The servers: replicas of one model. HTTP and gRPC may be mixed.
    pub endpoints: Vec<Endpoint>,
    /// The key for all of them.
    pub api_key: Option<ApiKey>,
    /// The name by which the servers know the model. `None`: the only one that they list.
    pub model: Option<String>,
    /// Tokenizer, template and image processor of the model's files, when they are at hand. Without them the servers
    /// tokenize and write conversations.
    pub front_end: FrontEnd,
    /// What the model's files say of it, when they are at hand.
    pub model_info: Option<ModelInfo>,
    /// Where adapters are handed over. `None`: none are loaded.
    pub adapters: Option<AdapterShare>,
    /// Certificates (PEM) of authorities that are trusted besides the system's.
    pub authorities: Option<Arc<[u8]>>,
    /// Patience.
    pub timeouts: Timeouts,
    /// Persistence.
    pub retries: Retries,
    /// Separates this application's prefixes from those of others on the same servers: part of every cache salt. Replicas of
    /// one application that should share prefixes have the same.
    pub namespace: String,
    /// Begins the ids of this backend's requests and its adapters' names on the servers, so no two backends of one server may
    /// have the same. `None`: one that no other has is made up. A name is for those who must know what is sent, as recorded
    /// conversations.
    pub instance: Option<String>,
    /// How often each server's health is asked for.
    pub health_interval: Duration,
    /// Connections that are not used for so long are closed. Below the servers' keep-alive, which is 5 s in vLLM's Python
    /// front end: a connection that the server closes while a request is on its way costs that request.
    pub idle_connection: Duration,
    /// The most log probabilities that a position reports (`--max-logprobs`).
    pub max_logprobs: u32,
    /// How far logits may differ between two ways of computing the same, as
    /// [`Capability::logit_tolerance`](consort_core::Capability::logit_tolerance) has it. It depends on the servers' types:
    /// bf16 is the usual one.
    pub logit_tolerance: f32,
    /// Requests that may be on their way at once; beyond it they are refused.
    pub max_requests: usize,
    /// Shorter prompts are refused here. A prompt of one token ends the engine of vLLM 0.32 on hybrid models, for everybody
    /// whom the server serves.
    pub min_prompt_tokens: usize,
    /// Whether log probabilities of prompts are asked for on servers with adapters. In vLLM 0.32 on the processor such a
    /// request ends the engine when it shares a batch, for everybody whom the server serves; so without being told that the
    /// servers bear it, none is sent.
    pub prompt_logprobs_with_adapters: bool,
}

impl VllmConfig {
    /// Whether log probabilities of prompts may be asked for.
    pub(crate) fn may_ask_of_prompts(&self) -> bool {
        self.adapters.is_none() || self.prompt_logprobs_with_adapters
    }

    /// The defaults for these servers.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            api_key: None,
            model: None,
            front_end: FrontEnd::default(),
            model_info: None,
            adapters: None,
            authorities: None,
            timeouts: Timeouts::default(),
            retries: Retries::default(),
            namespace: String::new(),
            instance: None,
            health_interval: Duration::from_secs(2),
            idle_connection: Duration::from_secs(4),
            max_logprobs: 20,
            logit_tolerance: 0.5,
            max_requests: 256,
            min_prompt_tokens: 2,
            prompt_logprobs_with_adapters: false,
        }
    }
}
