//! A server by gRPC: vLLM's own services `vllm.Inference` and `vllm.Control`, which its Rust front end has
//! (`--grpc-port`).
//!
//! Against HTTP, numbers stay numbers (no logarithm goes through a decimal), a prohibition is one (HTTP's lowest bias is
//! −100), the prompt's log probabilities come with a stream, and requests can be aborted by name. Conversations, text and
//! the tokenizer are not there: prompts are tokens, so the model's files are needed here.

mod error;
mod probe;
mod request;
mod stream;

#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use consort_core::{BoxFuture, Error, ErrorKind, ErrorStatus, Result, SpecialTokens, TokenId};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::runtime::Handle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as Address};
use tonic::{Code, Request, Response, Status};
use vllm_proto::control_client::ControlClient;
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::{GetServerInfoRequest, IsPausedRequest, IsSleepingRequest, LoadLoraRequest, UnloadLoraRequest};

use crate::call::{Call, CallPrompt, ChunkStream};
use crate::config::{Endpoint, Timeouts, VllmConfig};
use crate::facts::ServerFacts;
use crate::transport::Transport;
use error::About;
use request::Text;
use stream::{Abort, Decoder};

/// The longest message of a reply. A token with a thousand candidates takes a hundredth of it.
const LONGEST_MESSAGE: usize = 4 << 20;
/// The longest that tells a prompt's log probabilities: a quarter of a million positions with twenty candidates.
const LONGEST_OF_PROMPT: usize = 128 << 20;
/// How often a connection that has requests on their way is asked whether it lives.
const PING: Duration = Duration::from_secs(10);

type Service = InterceptedService<Channel, Key>;

/// Adds the key to every request.
#[derive(Clone)]
struct Key(Option<MetadataValue<Ascii>>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

/// A server by gRPC.
pub(crate) struct GrpcTransport {
    channel: Channel,
    key: Key,
    endpoint: Arc<str>,
    /// The key as it must not stand in messages.
    secret: Option<Arc<str>>,
    model: Option<String>,
    timeouts: Timeouts,
    text: Text,
    image_token: Option<TokenId>,
    /// The folder of adapters as the server sees it.
    share: Option<String>,
    may_ask_of_prompts: bool,
    /// Where what outlives a request runs: aborting it.
    runtime: Handle,
}

impl GrpcTransport {
    /// Connects when it is first used.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for certificates that are none.
    pub(crate) fn new(
        endpoint: &Endpoint,
        config: &VllmConfig,
        image_token: Option<TokenId>,
        runtime: &Handle,
    ) -> Result<Self> {
        crate::tls::install();
        let address = address(endpoint, config)?;
        let channel = {
            let _inside = runtime.enter();
            address.connect_lazy()
        };
        Self::over(channel, endpoint.to_string(), config, image_token, runtime)
    }

    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a key that cannot be sent; [`ApiKey`](crate::ApiKey) has none.
    fn over(
        channel: Channel,
        endpoint: String,
        config: &VllmConfig,
        image_token: Option<TokenId>,
        runtime: &Handle,
    ) -> Result<Self> {
        let header = config.api_key.as_ref().map(crate::config::ApiKey::header);
        let value = header.as_ref().map(|header| MetadataValue::try_from(header.as_str())).transpose();
        let mut value = value.map_err(|_| {
            Error::new(ErrorKind::InvalidConfig, "the API key cannot be sent").with_context("key", "api_key")
        })?;
        if let Some(value) = &mut value {
            value.set_sensitive(true);
        }
        Ok(Self {
            channel,
            key: Key(value),
            endpoint: endpoint.into(),
            secret: header.as_deref().and_then(|header| header.strip_prefix("Bearer ")).map(Arc::from),
            model: config.model.clone(),
            timeouts: config.timeouts,
            text: if config.front_end.tokenizer.is_some() { Text::NotWanted } else { Text::Wanted },
            image_token,
            share: config.adapters.as_ref().map(|share| share.remote.display().to_string()),
            may_ask_of_prompts: config.may_ask_of_prompts(),
            runtime: runtime.clone(),
        })
    }

    fn control(&self) -> ControlClient<Service> {
        ControlClient::with_interceptor(self.channel.clone(), self.key.clone())
    }

    fn inference(&self, call: &Call) -> InferenceClient<Service> {
        let longest = if call.prompt_logprobs.is_some() { LONGEST_OF_PROMPT } else { LONGEST_MESSAGE };
        InferenceClient::with_interceptor(self.channel.clone(), self.key.clone()).max_decoding_message_size(longest)
    }

    fn about(&self, call: Option<&Arc<Call>>) -> About {
        About { endpoint: Arc::clone(&self.endpoint), secret: self.secret.clone(), call: call.cloned() }
    }

    /// Waits so long for an answer.
    async fn answer<T>(
        &self,
        patience: Duration,
        about: &About,
        answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(about.of_status(status)),
            Err(_) => {
                let message =
                    format!("the server did not answer within {} s; it may be paused", patience.as_secs_f64());
                Err(about.remote(message))
            }
        }
    }

    async fn ask<T>(&self, answer: impl Future<Output = std::result::Result<Response<T>, Status>>) -> Result<T> {
        self.answer(self.timeouts.control, &self.about(None), answer).await
    }

    async fn live(&self) -> Result<()> {
        let (mut info, mut paused, mut sleeping) = (self.control(), self.control(), self.control());
        let (info, paused, sleeping) = tokio::join!(
            self.ask(info.get_server_info(GetServerInfoRequest {})),
            self.ask(paused.is_paused(IsPausedRequest {})),
            self.ask(sleeping.is_sleeping(IsSleepingRequest {})),
        );
        info?;
        // Such a server is in good health and answers nothing. One that does not say it is not asked for more.
        if let Some(paused) = told(paused)?
            && paused.paused
        {
            return Err(self.about(None).remote("the server is paused".into()));
        }
        if let Some(sleeping) = told(sleeping)?
            && sleeping.sleeping
        {
            return Err(self.about(None).remote("the server is asleep".into()));
        }
        Ok(())
    }

    async fn begin(&self, call: &Arc<Call>) -> Result<ChunkStream> {
        let request = request::of(call, self.model.as_deref(), self.text)?;
        let about = self.about(Some(call));
        // From here on the server may have the request: whatever becomes of this future, it is not left with it.
        let mut abort = Abort::new(self.control(), call.id.clone(), self.runtime.clone(), self.timeouts.control);
        let mut client = self.inference(call);
        let sent = client.generate_stream(request);
        match tokio::time::timeout(self.timeouts.head, sent).await {
            Ok(Ok(response)) => {
                let decoder = Decoder::new(call, self.image_token, self.text);
                Ok(stream::chunks(response.into_inner(), decoder, abort, about, self.timeouts))
            }
            Ok(Err(status)) => {
                abort.disarm();
                Err(about.of_status(status))
            }
            Err(_) => {
                let patience = self.timeouts.head.as_secs_f64();
                Err(about.remote(format!("the server did not answer within {patience} s; it may be paused")))
            }
        }
    }

    async fn load(&self, name: &str, path: &str) -> Result<()> {
        let request = LoadLoraRequest { lora_name: name.to_owned(), source_path: path.to_owned() };
        let mut control = self.control();
        let loaded = tokio::time::timeout(self.timeouts.load, control.load_lora(request)).await;
        let Ok(loaded) = loaded else {
            let patience = self.timeouts.load.as_secs_f64();
            return Err(self.about(None).remote(format!("the adapter was not loaded within {patience} s")));
        };
        match loaded {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists || status.message().contains("already loaded") => {
                Ok(())
            }
            Err(status) => Err(self.about(None).of_adapter(status).with_context("adapter", name)),
        }
    }

    fn missing<T>(&self, operation: &'static str) -> Result<T> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("vLLM's gRPC services have no {operation}; give the model's files, or an HTTP endpoint"),
        )
        .with_backend(crate::NAME)
        .with_operation(operation)
        .with_context("endpoint", &*self.endpoint))
    }
}

/// An answer that a server may refuse to give.
fn told<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.status() == ErrorStatus::Temporary => Err(error),
        Err(_) => Ok(None),
    }
}

/// # Errors
/// [`ErrorKind::InvalidConfig`].
fn address(endpoint: &Endpoint, config: &VllmConfig) -> Result<Address> {
    let refuse = |key: &'static str, message: &str| {
        Error::new(ErrorKind::InvalidConfig, message)
            .with_backend(crate::NAME)
            .with_context("key", key)
            .with_context("endpoint", endpoint.to_string())
    };
    let address = Address::from_shared(endpoint.url())
        .map_err(|source| refuse("url", "the endpoint is no address").with_source(source))?
        .connect_timeout(config.timeouts.connect)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(config.timeouts.control);
    if !endpoint.is_encrypted() {
        return Ok(address);
    }
    let mut tls = ClientTlsConfig::new();
    if let Some(pem) = &config.authorities {
        let certificates: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        if certificates.map_or(true, |certificates| certificates.is_empty()) {
            return Err(refuse("ca_file", "the file of authorities holds no certificates in PEM form"));
        }
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    match address.clone().tls_config(tls.clone().with_native_roots()) {
        Ok(address) => Ok(address),
        // A machine without authorities of its own, as small containers are.
        Err(_) if config.authorities.is_some() => address
            .tls_config(tls)
            .map_err(|source| refuse("ca_file", "the authorities cannot be used").with_source(source)),
        Err(source) => Err(refuse("ca_file", "this machine trusts no authorities; name one").with_source(source)),
    }
}

impl Transport for GrpcTransport {
    fn probe(&self) -> BoxFuture<'_, Result<ServerFacts>> {
        Box::pin(probe::probe(self))
    }

    fn health(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.live())
    }

    fn generate<'a>(&'a self, call: &'a Arc<Call>) -> BoxFuture<'a, Result<ChunkStream>> {
        Box::pin(self.begin(call))
    }

    fn load_adapter<'a>(&'a self, name: &'a str, path: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.load(name, path))
    }

    fn unload_adapter<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut control = self.control();
            let request = UnloadLoraRequest { lora_name: name.to_owned() };
            let gone = self.answer(self.timeouts.load, &self.about(None), control.unload_lora(request)).await;
            match gone {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                other => other.map(drop).map_err(|error| error.with_context("adapter", name)),
            }
        })
    }

    fn tokenize<'a>(&'a self, _: &'a str, _: SpecialTokens) -> BoxFuture<'a, Result<Vec<TokenId>>> {
        Box::pin(async { self.missing("tokenize") })
    }

    fn write<'a>(&'a self, _: &'a CallPrompt) -> BoxFuture<'a, Result<Vec<TokenId>>> {
        Box::pin(async { self.missing("write") })
    }

    fn detokenize<'a>(&'a self, _: &'a [TokenId]) -> BoxFuture<'a, Result<String>> {
        Box::pin(async { self.missing("detokenize") })
    }
}
