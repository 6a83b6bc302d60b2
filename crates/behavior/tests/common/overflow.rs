//! Two schedulers as one backend, local first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consort_behavior::backend::{BackendFixture, Made};
use consort_core::{
    AdapterFiles, AdapterInfo, AdapterStatus, BoxFuture, Capability, DeviceEvidence, EmbedRequest, Error, ErrorKind,
    EventStream, GenerateRequest, MemoryReport, Metrics, ModelBackend, ModelInfo, PlacementRule, Residency, Result,
    SpecialTokens, TokenId,
};
use consort_overflow::{Overflow, OverflowConfig, PriorityRules};

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The local side, which has room.
    Local,
    /// The remote side, because that is configured.
    Remote,
    /// Of three requests, the local side answers one, refuses one at once, and gives one up in its stream.
    InTurns,
}

/// Two backends of this fixture as one.
pub fn overflow(fixture: Result<BackendFixture>, answers: Answers) -> Result<BackendFixture> {
    let inner = fixture?;
    let make = Arc::clone(&inner.make);
    let make = Arc::new(move |setup: &_| {
        let (near, far) = (make(setup)?, make(setup)?);
        let local: Arc<dyn ModelBackend> = match answers {
            Answers::InTurns => Arc::new(Fickle { inner: near.backend, asked: AtomicU64::new(0) }),
            Answers::Local | Answers::Remote => near.backend,
        };
        let config = match answers {
            Answers::Remote => {
                OverflowConfig { priorities: PriorityRules::all(PlacementRule::Remote), ..OverflowConfig::default() }
            }
            Answers::Local | Answers::InTurns => OverflowConfig::default(),
        };
        let backend = Arc::new(Overflow::new(local, far.backend, config)?);
        let settle = Arc::new(move || (near.settle)().and_then(|()| (far.settle)()));
        Ok(Made { backend, settle })
    });
    let mut fixture = BackendFixture { make, ..inner };
    fixture.engine.engine = "overflow".into();
    fixture.engine.model = match answers {
        Answers::Local => "local",
        Answers::Remote => "remote",
        Answers::InTurns => "in_turns",
    }
    .into();
    fixture.engine.capability =
        (fixture.make)(&consort_behavior::backend::BackendSetup::default())?.backend.capability();
    Ok(fixture)
}

/// A backend that takes one request of three.
struct Fickle {
    inner: Arc<dyn ModelBackend>,
    asked: AtomicU64,
}

impl ModelBackend for Fickle {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn evidence(&self) -> DeviceEvidence {
        self.inner.evidence()
    }

    fn memory(&self) -> BoxFuture<'_, Result<MemoryReport>> {
        self.inner.memory()
    }

    fn metrics(&self) -> Metrics {
        self.inner.metrics()
    }

    fn generate(&self, request: GenerateRequest) -> Result<EventStream> {
        // What is wrong with a request is told first, as it is by any backend.
        let stream = self.inner.generate(request)?;
        let full = |kind| Error::new(kind, "one of three is taken");
        match self.asked.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => Ok(stream),
            1 => Err(full(ErrorKind::Overloaded)),
            _ => Ok(EventStream::new(Given(Some(full(ErrorKind::OutOfMemory))))),
        }
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<Vec<f32>>> {
        self.inner.embed(request)
    }

    fn load_adapter(&self, id: &str, files: AdapterFiles) -> BoxFuture<'_, Result<AdapterInfo>> {
        self.inner.load_adapter(id, files)
    }

    fn unload_adapter(&self, id: &str) -> BoxFuture<'_, Result<()>> {
        self.inner.unload_adapter(id)
    }

    fn set_adapter_residency(&self, id: &str, residency: Residency) -> BoxFuture<'_, Result<()>> {
        self.inner.set_adapter_residency(id, residency)
    }

    fn adapters(&self) -> Vec<AdapterStatus> {
        self.inner.adapters()
    }

    fn tokenize(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        self.inner.tokenize(text, special)
    }

    fn detokenize(&self, tokens: &[TokenId]) -> Result<String> {
        self.inner.detokenize(tokens)
    }
}

/// A stream of one error.
struct Given(Option<Error>);

impl futures_core::Stream for Given {
    type Item = Result<consort_core::Event>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.take().map(Err))
    }
}
