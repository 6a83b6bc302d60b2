//! A server by HTTP.

mod answer;
mod body;
mod error;
mod probe;
mod stream;
mod wire;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use consort_core::{BoxFuture, Error, ErrorKind, ErrorStatus, Result, SpecialTokens, TokenId};
use futures_util::stream as streams;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

#[cfg(feature = "grpc")]
pub(crate) use answer::{best, strange};
pub(crate) use body::{FORBIDS, address};
#[cfg(feature = "grpc")]
pub(crate) use error::{bad, shortened};

use crate::call::{Call, CallPrompt, Chunk, ChunkStream};
use crate::config::{Endpoint, Timeouts, VllmConfig};
use crate::facts::ServerFacts;
use crate::transport::Transport;
use body::Text;
use error::{About, of_answer};

/// The longest answer that is read whole.
const LONGEST_ANSWER: usize = 64 << 20;

/// Which way a call goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Generate,
    Completions,
    Chat,
}

impl Route {
    fn path(self) -> &'static str {
        match self {
            Self::Generate => "/inference/v1/generate",
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

/// What of the server decides about the way.
#[derive(Debug, Clone, Copy)]
struct Ways {
    generate: bool,
    completions: bool,
    /// The Rust front end of 0.32, which on the way of tokens reads no object with numbers as keys, as biases are, and shows no text,
    /// whatever it is asked for.
    is_rust: bool,
}

/// A server by HTTP.
pub(crate) struct HttpTransport {
    client: Client,
    endpoint: Arc<str>,
    base: String,
    key: Option<String>,
    model: Option<String>,
    timeouts: Timeouts,
    /// Whether text is made here of the ids.
    has_tokenizer: bool,
    image_token: Option<TokenId>,
    /// The folder of adapters, as the server sees it.
    share: Option<String>,
    may_ask_of_prompts: bool,
    /// Known when it was probed.
    ways: OnceLock<Ways>,
}

impl HttpTransport {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for certificates that are none.
    pub(crate) fn new(endpoint: &Endpoint, config: &VllmConfig, image_token: Option<TokenId>) -> Result<Self> {
        crate::tls::install();
        let mut builder = Client::builder()
            .connect_timeout(config.timeouts.connect)
            .pool_idle_timeout(config.idle_connection)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .http1_only();
        if let Some(pem) = &config.authorities {
            let bad = |source| {
                Error::new(ErrorKind::InvalidConfig, "the file of authorities holds no certificates in PEM form")
                    .with_context("key", "ca_file")
                    .with_source(source)
            };
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(bad)?;
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().map_err(|source| {
            Error::new(ErrorKind::Unexpected, "the HTTP client cannot be made").with_source(source)
        })?;
        Ok(Self {
            client,
            endpoint: endpoint.to_string().into(),
            base: endpoint.url(),
            key: config.api_key.as_ref().map(crate::config::ApiKey::header),
            model: config.model.clone(),
            timeouts: config.timeouts,
            has_tokenizer: config.front_end.tokenizer.is_some(),
            image_token,
            share: config.adapters.as_ref().map(|share| share.remote.display().to_string()),
            may_ask_of_prompts: config.may_ask_of_prompts(),
            ways: OnceLock::new(),
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.header(reqwest::header::AUTHORIZATION, key),
            None => request,
        }
    }

    fn about<'a>(&'a self, call: Option<&'a Call>) -> About<'a> {
        About { endpoint: &self.endpoint, call }
    }

    /// Sends, and waits so long for the head of the answer.
    async fn send(&self, request: RequestBuilder, patience: Duration, call: Option<&Call>) -> Result<Response> {
        let response = match tokio::time::timeout(patience, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(source)) => return Err(self.unreached(source)),
            Err(_) => {
                let message =
                    format!("the server did not answer within {} s; it may be paused", patience.as_secs_f64());
                return Err(self.remote(message));
            }
        };
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        let body = tokio::time::timeout(self.timeouts.control, whole(response, 1 << 20)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        Err(of_answer(status, &body, self.about(call)))
    }

    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder, patience: Duration) -> Result<T> {
        let response = self.send(request, patience, None).await?;
        self.read(response, patience).await
    }

    async fn read<T: DeserializeOwned>(&self, response: Response, patience: Duration) -> Result<T> {
        let body = match tokio::time::timeout(patience, whole(response, LONGEST_ANSWER)).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => return Err(error.with_context("endpoint", &*self.endpoint)),
            Err(_) => return Err(self.remote("the server's answer did not come to its end".into())),
        };
        serde_json::from_slice(&body).map_err(|source| {
            answer::strange("it is no JSON of it").with_source(source).with_context("endpoint", &*self.endpoint)
        })
    }

    fn remote(&self, message: String) -> Error {
        Error::new(ErrorKind::Remote, message).with_backend(crate::NAME).with_context("endpoint", &*self.endpoint)
    }

    /// Why a request did not reach the server.
    fn unreached(&self, source: reqwest::Error) -> Error {
        let error = match crate::tls::refusal(&source) {
            Some(why) => Error::new(
                ErrorKind::InvalidConfig,
                format!("the server's certificate is not accepted: {why}; check the address, or name its authority with `ca_file`"),
            )
            .with_backend(crate::NAME)
            .with_context("endpoint", &*self.endpoint),
            None if source.is_connect() || source.is_timeout() => {
                self.remote("the server cannot be reached".into()).with_operation(crate::transport::UNREACHED)
            }
            None if source.is_builder() => {
                self.remote("the request cannot be made".into()).with_status(ErrorStatus::Permanent)
            }
            None => self.remote("the connection was cut before the server answered".into()),
        };
        // Its own words would repeat the address.
        error.with_source(source.without_url())
    }

    /// # Errors
    /// [`ErrorKind::Unsupported`] where the server has no way for it.
    fn route(&self, call: &Call) -> Result<Route> {
        let ways = self.ways.get().copied().unwrap_or(Ways { generate: true, completions: true, is_rust: false });
        let CallPrompt::Tokens { pictures, .. } = &call.prompt else { return Ok(Route::Chat) };
        let is_plain = self.has_tokenizer && call.sampling.logit_bias.is_empty();
        if ways.generate && (is_plain || !ways.is_rust) {
            return Ok(Route::Generate);
        }
        if pictures.is_empty() && ways.completions {
            return Ok(Route::Completions);
        }
        let what = if pictures.is_empty() {
            "prompts of tokens"
        } else {
            "pictures in prompts of tokens, or a bias beside them"
        };
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("the server does not take {what}; start vLLM with `--enable-scale-out`, or send a conversation"),
        )
        .with_backend(crate::NAME)
        .with_context("endpoint", &*self.endpoint))
    }

    async fn begin(&self, call: &Arc<Call>) -> Result<ChunkStream> {
        let route = self.route(call)?;
        let text = if self.has_tokenizer { Text::NotWanted } else { Text::Wanted };
        let body = match &call.prompt {
            CallPrompt::Tokens { ids, pictures } if route == Route::Generate => {
                body::generate(call, ids, pictures, text)
            }
            CallPrompt::Tokens { ids, .. } => body::completions(call, ids),
            CallPrompt::Chat { messages, tools, thinking } => body::chat(call, messages, tools, *thinking),
        };
        let request = self.post(route.path(), &body)?.header("x-request-id", &call.id);
        if call.prompt_logprobs.is_some() {
            let tokens = self.timeouts.token.saturating_mul(call.max_tokens);
            let patience = self.timeouts.head.saturating_add(self.timeouts.first_token).saturating_add(tokens);
            let response = self.send(request, patience, Some(call)).await?;
            let answer: wire::Answer = self.read(response, patience).await?;
            if let Some(error) = &answer.error {
                return Err(error::of_event(error, self.about(Some(call))));
            }
            let chunk = answer::chunk(answer, call)?;
            if chunk.finish.is_none() {
                return Err(self.remote("the reply was not finished: it has no finish reason".into()));
            }
            return Ok(Box::pin(streams::once(async move { Ok::<Chunk, Error>(chunk) })));
        }
        let response = self.send(request, self.timeouts.head, Some(call)).await?;
        let answered = stream::Answered {
            call: Arc::clone(call),
            endpoint: Arc::clone(&self.endpoint),
            timeouts: self.timeouts,
            has_text: route != Route::Generate,
        };
        Ok(stream::chunks(response.bytes_stream(), answered))
    }

    /// # Errors
    /// [`ErrorKind::Unexpected`] for what cannot be written as JSON; nothing that is sent is such.
    fn post(&self, path: &str, body: &impl Serialize) -> Result<RequestBuilder> {
        let body = serde_json::to_vec(body).map_err(|source| {
            Error::new(ErrorKind::Unexpected, "a request cannot be written as JSON").with_source(source)
        })?;
        Ok(self.request(Method::POST, path).header(reqwest::header::CONTENT_TYPE, "application/json").body(body))
    }

    async fn lora(&self, path: &str, body: Value) -> Result<()> {
        let request = self.post(path, &body)?;
        self.send(request, self.timeouts.load, None).await.map(drop)
    }
}

/// A whole answer, if it is not too long.
async fn whole(mut response: Response, most: usize) -> Result<Vec<u8>> {
    let cut = |source: reqwest::Error| {
        Error::new(ErrorKind::Remote, "the connection was cut in the middle of the answer")
            .with_backend(crate::NAME)
            .with_source(source.without_url())
    };
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(cut)? {
        if body.len() + bytes.len() > most {
            return Err(answer::strange("it is too long").with_context("most_bytes", most.to_string()));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

impl Transport for HttpTransport {
    fn probe(&self) -> BoxFuture<'_, Result<ServerFacts>> {
        Box::pin(probe::probe(self))
    }

    fn health(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let patience = self.timeouts.control;
            self.send(self.request(Method::GET, "/health"), patience, None).await?;
            // A paused engine is in good health, and answers nothing. Servers of production have no such route.
            let paused = self.ask::<wire::Paused>(self.request(Method::GET, "/is_paused"), patience).await;
            match paused {
                Ok(wire::Paused { is_paused: true }) => Err(self.remote("the server is paused".into())),
                _ => Ok(()),
            }
        })
    }

    fn generate<'a>(&'a self, call: &'a Arc<Call>) -> BoxFuture<'a, Result<ChunkStream>> {
        Box::pin(self.begin(call))
    }

    fn load_adapter<'a>(&'a self, name: &'a str, path: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let loaded = self.lora("/v1/load_lora_adapter", json!({ "lora_name": name, "lora_path": path })).await;
            match loaded {
                Err(error) if error.message().contains("already been loaded") => Ok(()),
                Err(error) if error.message().ends_with("Not Found") || error.message().ends_with("know this") => {
                    Err(Error::new(
                        ErrorKind::Unsupported,
                        "the server loads no adapters while it runs; start vLLM with `--enable-lora` and \
                         VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
                    )
                    .with_backend(crate::NAME)
                    .with_operation("load_adapter")
                    .with_context("endpoint", &*self.endpoint))
                }
                Err(error) if error.message().contains(crate::trials::ADAPTERS_BROKEN) => {
                    Err(Error::new(
                        ErrorKind::Unsupported,
                        "this front end cannot load adapters while it runs (vLLM 0.32's in Rust); use its front end in Python",
                    )
                    .with_backend(crate::NAME)
                    .with_operation("load_adapter")
                    .with_context("endpoint", &*self.endpoint))
                }
                other => other.map_err(|error| error.with_context("adapter", name)),
            }
        })
    }

    fn unload_adapter<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match self.lora("/v1/unload_lora_adapter", json!({ "lora_name": name })).await {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                other => other.map_err(|error| error.with_context("adapter", name)),
            }
        })
    }

    fn tokenize<'a>(&'a self, text: &'a str, special: SpecialTokens) -> BoxFuture<'a, Result<Vec<TokenId>>> {
        Box::pin(async move {
            if special == SpecialTokens::Plain && text.contains("<|") {
                // The server's tokenizer always makes special tokens of such text.
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "text that may hold special tokens is tokenized as text only with the model's own tokenizer; give \
                     the model's files",
                )
                .with_backend(crate::NAME)
                .with_operation("tokenize"));
            }
            let body = json!({ "model": self.model, "prompt": text, "add_special_tokens": false });
            let request = self.post("/tokenize", &without_nulls(body))?;
            Ok(self.ask::<wire::Tokenized>(request, self.timeouts.control).await?.tokens)
        })
    }

    fn write<'a>(&'a self, chat: &'a CallPrompt) -> BoxFuture<'a, Result<Vec<TokenId>>> {
        Box::pin(async move {
            let Some((messages, tools, thinking)) = body::of_chat(chat) else { return Ok(Vec::new()) };
            let kwargs = thinking.map(|thinking| json!({ "enable_thinking": thinking }));
            let body = json!({
                "model": self.model, "messages": messages, "add_generation_prompt": true, "chat_template_kwargs": kwargs,
                "tools": (!tools.is_empty()).then_some(tools),
            });
            let request = self.post("/tokenize", &without_nulls(body))?;
            Ok(self.ask::<wire::Tokenized>(request, self.timeouts.control).await?.tokens)
        })
    }

    fn detokenize<'a>(&'a self, tokens: &'a [TokenId]) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let body = json!({ "model": self.model, "tokens": tokens });
            let request = self.post("/detokenize", &without_nulls(body))?;
            Ok(self.ask::<wire::Detokenized>(request, self.timeouts.control).await?.prompt)
        })
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => other,
    }
}
