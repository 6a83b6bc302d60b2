//! A backend that forgets a part of what it was asked: the new cases must notice.

use std::sync::Arc;

use consort_behavior::backend::{BackendFixture, Made};
use consort_core::{
    AdapterFiles, AdapterInfo, AdapterStatus, BoxFuture, Capability, DeviceEvidence, Dry, EndTokens, EventStream,
    GenerateRequest, MemoryReport, Metrics, ModelBackend, ModelInfo, Penalties, Result, SpecialTokens, TokenId,
};

/// What is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgets {
    Structure,
    Seed,
    Bias,
    Penalties,
    MinTokens,
    EndTokens,
}

struct Forgetful {
    inner: Arc<dyn ModelBackend>,
    forgets: Forgets,
}

/// The fixture with backends that forget.
pub fn forgetful(fixture: &BackendFixture, forgets: Forgets) -> BackendFixture {
    let make = Arc::clone(&fixture.make);
    BackendFixture {
        make: Arc::new(move |setup| {
            let Made { backend: inner, settle } = make(setup)?;
            Ok(Made { backend: Arc::new(Forgetful { inner, forgets }), settle })
        }),
        ..fixture.clone()
    }
}

impl ModelBackend for Forgetful {
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

    fn generate(&self, mut request: GenerateRequest) -> Result<EventStream> {
        match self.forgets {
            Forgets::Structure => request.structure = None,
            // Another one each time.
            Forgets::Seed => request.sampling.seed ^= self.inner.metrics().requests.wrapping_mul(0x9e37_79b9) << 7,
            Forgets::Bias => request.sampling.logit_bias = Vec::new(),
            Forgets::Penalties => {
                request.sampling.penalties = Penalties::default();
                request.sampling.dry = None::<Dry>;
            }
            Forgets::MinTokens => request.stop.min_tokens = 0,
            Forgets::EndTokens => request.stop.end_tokens = EndTokens::Stop,
        }
        self.inner.generate(request)
    }

    fn load_adapter(&self, id: &str, files: AdapterFiles) -> BoxFuture<'_, Result<AdapterInfo>> {
        self.inner.load_adapter(id, files)
    }

    fn unload_adapter(&self, id: &str) -> BoxFuture<'_, Result<()>> {
        self.inner.unload_adapter(id)
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
