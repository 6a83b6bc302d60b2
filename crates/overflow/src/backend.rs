//! The handle.

use std::sync::Arc;
use std::time::Instant;

use consort_core::{
    AdapterFiles, AdapterInfo, AdapterStatus, BoxFuture, Capability, DeviceEvidence, EmbedRequest, ErrorKind,
    EventStream, GenerateRequest, MemoryReport, Metrics, ModelBackend, ModelInfo, Priority, Residency, Result,
    SideRoute, SidesReport, SpecialTokens, TokenId,
};

use crate::adapters::{Library, inner_uses};
use crate::config::OverflowConfig;
use crate::metrics::{Books, OverflowMetrics};
use crate::reply::Reply;
use crate::route::{Needs, Side};
use crate::sending::{Ask, Shared, both_reasons};
use crate::sides::Sides;
use crate::{NAME, combine, compare};

/// Two backends as one, local first: see the [crate's front page](crate).
///
/// Dropping it ends no reply; it lets go of its backends, and a backend that nobody else holds ends its own.
pub struct Overflow {
    shared: Arc<Shared>,
    info: ModelInfo,
    capability: Capability,
}

impl std::fmt::Debug for Overflow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overflow")
            .field("local", &self.shared.sides.local.name())
            .field("remote", &self.shared.sides.remote.name())
            .field("model", &self.info.name)
            .finish()
    }
}

impl Overflow {
    /// Composes two backends. Adapters that they have loaded already can be named; from then on, load and unload them
    /// through the `Overflow` alone.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a setting without meaning; when the two are seen to serve different models, naming
    /// what differs and both values; and when both have other weights under one adapter's name.
    pub fn new(local: Arc<dyn ModelBackend>, remote: Arc<dyn ModelBackend>, config: OverflowConfig) -> Result<Self> {
        config.check()?;
        compare::same_model(&local, &remote)?;
        let info = combine::info(local.info(), remote.info());
        let capability = combine::capability(&*local, &*remote);
        let sides = Sides { local, remote };
        let library = Library::adopt(&sides)?;
        let books = Arc::new(Books::default());
        Ok(Self { shared: Arc::new(Shared { sides, config, library, books }), info, capability })
    }

    /// How many requests went where, and why.
    #[must_use]
    pub fn overflow_metrics(&self) -> OverflowMetrics {
        self.shared.books.snapshot()
    }

    /// One of the two backends.
    #[must_use]
    pub fn side(&self, side: Side) -> &dyn ModelBackend {
        self.shared.sides.get(side)
    }

    fn accept(&self, request: GenerateRequest) -> Result<EventStream> {
        let shared = &self.shared;
        let arrived = Instant::now();
        let bound = shared.bind(&request.adapters)?;
        let mut ask = Ask::new(request, bound, arrived);
        let plan = shared.plan(&ask);
        if plan.by_memory {
            return Ok(EventStream::new(Reply::deciding(shared, ask)));
        }
        match shared.send(&mut ask, plan.route, plan.both) {
            Ok(attempt) => Ok(EventStream::new(Reply::waiting(shared, attempt, ask))),
            // As every deadline, it is told in the stream.
            Err(error) if error.kind() == ErrorKind::DeadlineExceeded => {
                Ok(EventStream::new(Reply::late(shared, error)))
            }
            Err(error) => Err(error),
        }
    }
}

impl ModelBackend for Overflow {
    fn name(&self) -> &'static str {
        NAME
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn evidence(&self) -> DeviceEvidence {
        let sides = &self.shared.sides;
        combine::evidence(sides.local.evidence(), sides.remote.evidence())
    }

    fn memory(&self) -> BoxFuture<'_, Result<MemoryReport>> {
        self.shared.sides.local.memory()
    }

    fn metrics(&self) -> Metrics {
        let sides = &self.shared.sides;
        let refused = self.shared.books.snapshot().refused;
        let (local, remote) = (sides.local.metrics(), sides.remote.metrics());
        let local_adapters = sides.local.capability().adapter_mode != consort_core::AdapterMode::None;
        combine::metrics(&local, &remote, refused, if local_adapters { &local } else { &remote })
    }

    fn sides(&self) -> Option<SidesReport> {
        let OverflowMetrics { answered_local, answered_remote, failed, cancelled, refused, pending, routes, .. } =
            self.overflow_metrics();
        let routes = routes.iter().map(|count| SideRoute {
            side: count.route.side.as_str(),
            reason: count.route.reason.as_str(),
            requests: count.requests,
        });
        Some(SidesReport {
            local: self.side(Side::Local).name(),
            remote: self.side(Side::Remote).name(),
            answered_local,
            answered_remote,
            failed,
            cancelled,
            refused,
            pending,
            routes: routes.collect(),
        })
    }

    fn generate(&self, request: GenerateRequest) -> Result<EventStream> {
        self.accept(request).inspect_err(|error| {
            if error.kind() == ErrorKind::Overloaded {
                self.shared.books.refused();
            }
        })
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<Vec<f32>>> {
        Box::pin(embed(&self.shared, request))
    }

    fn load_adapter(&self, id: &str, files: AdapterFiles) -> BoxFuture<'_, Result<AdapterInfo>> {
        let id = id.to_owned();
        Box::pin(async move { self.shared.library.load(&self.shared.sides, &id, files).await })
    }

    fn unload_adapter(&self, id: &str) -> BoxFuture<'_, Result<()>> {
        let id = id.to_owned();
        Box::pin(async move { self.shared.library.unload(&self.shared.sides, &id).await })
    }

    fn set_adapter_residency(&self, id: &str, residency: Residency) -> BoxFuture<'_, Result<()>> {
        let id = id.to_owned();
        Box::pin(async move { self.shared.library.set_residency(&self.shared.sides, &id, residency).await })
    }

    fn adapters(&self) -> Vec<AdapterStatus> {
        self.shared.library.status(&self.shared.sides)
    }

    fn tokenize(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        self.by_either(|side| side.tokenize(text, special))
    }

    fn detokenize(&self, tokens: &[TokenId]) -> Result<String> {
        self.by_either(|side| side.detokenize(tokens))
    }
}

impl Overflow {
    /// What the local side says, or the remote one where the local one cannot.
    fn by_either<T>(&self, ask: impl Fn(&dyn ModelBackend) -> Result<T>) -> Result<T> {
        match ask(self.side(Side::Local)) {
            Err(error) if error.kind() == ErrorKind::Unsupported => ask(self.side(Side::Remote)),
            answer => answer,
        }
    }
}

/// Embeds on one side, and on the other if that gives up.
async fn embed(shared: &Shared, request: EmbedRequest) -> Result<Vec<f32>> {
    let needs = Needs { embeddings: true, ..Needs::of_prompt(&request.prompt) };
    let bound = shared.bind(&request.adapters)?;
    let plan = shared.plan_of(&needs, &bound, request.placement, Priority::Interactive);
    let adapters = inner_uses(&request.adapters, &bound);
    let request = EmbedRequest { adapters, ..request };
    let side = plan.route.side;
    shared.books.embeds(side);
    let error = match shared.sides.get(side).embed(request.clone()).await {
        Ok(embedding) => return Ok(embedding),
        Err(error) => error,
    };
    if !plan.both || shared.why(side, &error, false).is_none() {
        return Err(error);
    }
    let other = side.other();
    shared.books.embeds(other);
    let answer = shared.sides.get(other).embed(request).await;
    answer.map_err(|last| both_reasons(Some((side, error)), other, last))
}
