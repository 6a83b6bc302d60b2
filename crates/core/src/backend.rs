//! The outer seam: what everyone above holds.

use std::pin::Pin;

use crate::{
    AdapterFiles, AdapterInfo, AdapterStatus, AdapterUse, Capability, DeviceEvidence, Error, EventStream,
    GenerateRequest, MemoryReport, Metrics, ModelInfo, PlacementRule, Pooling, Prompt, Residency, Result, SidesReport,
    TokenId,
};

/// A boxed future, so that [`ModelBackend`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How text that looks like a special token is tokenized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SpecialTokens {
    /// As text. What people wrote should be tokenized so.
    #[default]
    Plain,
    /// As the special token: for rendered templates.
    Parse,
}

/// What is to be embedded.
#[derive(Debug, Clone)]
pub struct EmbedRequest {
    /// The text, or rendered parts.
    pub prompt: Prompt,
    /// With which adapters.
    pub adapters: Vec<AdapterUse>,
    /// How the hidden states are pooled.
    pub pooling: Pooling,
    /// Where it may be answered.
    pub placement: PlacementRule,
}

/// One model behind one engine, as applications, servers, benches and forges hold it: `Arc<dyn ModelBackend>`.
///
/// All methods can be called from any thread. What the [`Capability`] does not declare is refused with
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
pub trait ModelBackend: Send + Sync {
    /// The engine's short, stable name (`native`, `llamacpp`, `vllm`).
    fn name(&self) -> &'static str;

    /// What the model is.
    fn info(&self) -> &ModelInfo;

    /// What the backend can do.
    fn capability(&self) -> Capability;

    /// What was seen of the device.
    fn evidence(&self) -> DeviceEvidence;

    /// What is held in memory, by kind.
    fn memory(&self) -> BoxFuture<'_, Result<MemoryReport>>;

    /// Counters, gauges and histograms, all taken at one moment.
    fn metrics(&self) -> Metrics;

    /// What a backend that composes a local one and a remote one tells of them. `None`: it is one by itself, and answers where
    /// its [`evidence`](Self::evidence) says, whatever a request's [`PlacementRule`] is.
    fn sides(&self) -> Option<SidesReport> {
        None
    }

    /// Accepts a request and returns its events. The work has begun, or waits in a bounded queue, when this returns.
    /// Dropping the stream cancels; the slot is free within one step.
    ///
    /// # Errors
    /// What can be told at once: [`Overloaded`](crate::ErrorKind::Overloaded),
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest), an adapter that is
    /// [`NotFound`](crate::ErrorKind::NotFound). Later errors are the stream's last item, a deadline that passed
    /// ([`DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded)) among them.
    fn generate(&self, request: GenerateRequest) -> Result<EventStream>;

    /// Pooled hidden states, `[hidden]`.
    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<Vec<f32>>> {
        let _ = request;
        let error = Error::unsupported(self.name(), "embed");
        Box::pin(async { Err(error) })
    }

    /// Loads an adapter under `id`, or replaces it: requests that run keep the old weights, later ones get the new.
    ///
    /// What is known under an id need not be in the engine all the time ([`Residency`]). A directory is then read again
    /// and must be as it was; bytes stay in the caller's memory.
    fn load_adapter(&self, id: &str, files: AdapterFiles) -> BoxFuture<'_, Result<AdapterInfo>> {
        let _ = (id, files);
        let error = Error::unsupported(self.name(), "load_adapter");
        Box::pin(async { Err(error) })
    }

    /// Forgets the adapter of this id; requests that run keep it.
    fn unload_adapter(&self, id: &str) -> BoxFuture<'_, Result<()>> {
        let _ = id;
        let error = Error::unsupported(self.name(), "unload_adapter");
        Box::pin(async { Err(error) })
    }

    /// Says whether the adapter of this id may be paged out. A new adapter may, with priority 0; a replaced one keeps
    /// what was said of its id. One that is pinned is loaded before this ends.
    fn set_adapter_residency(&self, id: &str, residency: Residency) -> BoxFuture<'_, Result<()>> {
        let _ = (id, residency);
        let error = Error::unsupported(self.name(), "set_adapter_residency");
        Box::pin(async { Err(error) })
    }

    /// The adapters that requests can name.
    fn adapters(&self) -> Vec<AdapterStatus> {
        Vec::new()
    }

    /// Text to tokens, as prompts of this backend are tokenized.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the tokenizer is out of reach.
    fn tokenize(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        let _ = (text, special);
        Err(Error::unsupported(self.name(), "tokenize"))
    }

    /// Tokens to text, special tokens included.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported), or [`InvalidRequest`](crate::ErrorKind::InvalidRequest) for an id
    /// beyond the vocabulary.
    fn detokenize(&self, tokens: &[TokenId]) -> Result<String> {
        let _ = tokens;
        Err(Error::unsupported(self.name(), "detokenize"))
    }
}
