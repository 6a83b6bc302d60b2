//! What all requests share.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use consort_core::{Error, ErrorKind, ModelBackend, Residency, Result};
use tokio::sync::Semaphore;

use crate::adapters::{AdapterLibrary, Adapters, Replace};
use crate::auth::{KeyRing, Keys};
use crate::config::Config;
use crate::error::Failure;
use crate::identity::now;
use crate::metrics::{Snapshot, Traffic};
use crate::persona::Persona;
use crate::placement::Sides;
use crate::registry::{Member, Placed, Registry};
use crate::reload::Reload;
use crate::remote::Remote;
use crate::rooms::Rooms;
use crate::shutdown::Shutdown;
use crate::status::Pulse;
use crate::telemetry::Traces;
use crate::text::{Text, TextFloor};

/// What a server is made of.
pub struct Parts {
    /// The model.
    pub backend: Arc<dyn ModelBackend>,
    /// Its tokenizer and template.
    pub text: TextFloor,
    /// What the operator set.
    pub config: Config,
    /// Who may ask.
    pub keys: Keys,
    /// Where adapters come from.
    pub adapters: AdapterLibrary,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("backend", &self.backend.name())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A server that has opened its model and its personas. Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub(crate) shared: Arc<Shared>,
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn ModelBackend>,
    /// Where it computes.
    pub(crate) sides: Sides,
    pub(crate) text: Text,
    pub(crate) config: Config,
    pub(crate) keys: KeyRing,
    pub(crate) adapters: Adapters,
    pub(crate) registry: Registry,
    pub(crate) rooms: Rooms,
    pub(crate) pulse: Pulse,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) traces: Traces,
    pub(crate) shutdown: Shutdown,
    /// Places for requests.
    pub(crate) places: Arc<Semaphore>,
    /// Of the model's digest, for `system_fingerprint`.
    pub(crate) fingerprint: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) reload: Reload,
    /// `None`: no picture is fetched from anywhere.
    pub(crate) remote: Option<Arc<Remote>>,
    began: Instant,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("model", &self.shared.registry.model().persona.name).finish_non_exhaustive()
    }
}

impl App {
    /// Opens the personas of the configuration. Adapters of pinned ones are loaded; of the others it is made sure that they
    /// are there.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a persona that cannot be, and what loading an adapter gives.
    pub async fn open(parts: Parts) -> Result<Self> {
        let Parts { backend, text, config, keys, adapters } = parts;
        let name = config.model.name.clone().unwrap_or_else(|| served_name(&backend.info().name));
        crate::persona::check_name(&name).map_err(|message| {
            Error::new(ErrorKind::InvalidConfig, message)
                .with_operation("server::open")
                .with_context("key", "model.name")
        })?;
        let digest = backend.info().digest;
        let fingerprint = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect::<String>();
        let sequences = backend.capability().max_sequences;
        let shared = Arc::new(Shared {
            sides: Sides::of(&*backend),
            text: Text::new(Arc::clone(&backend), text),
            adapters: Adapters::new(Arc::clone(&backend), adapters),
            registry: Registry::new(&name, sequences, config.limits.personas.get()),
            rooms: Rooms::new(&config.limits),
            pulse: Pulse::default(),
            traffic: Arc::default(),
            traces: Traces::open(&config.telemetry)?,
            shutdown: Shutdown::default(),
            places: Arc::new(Semaphore::new(config.limits.requests.get().min(Semaphore::MAX_PERMITS))),
            fingerprint: format!("consort-{fingerprint}"),
            created: now(),
            began: Instant::now(),
            keys: KeyRing::new(keys),
            reload: Reload::new(&config),
            remote: Remote::new(&config)?.map(Arc::new),
            config,
            backend,
        });
        for (index, persona) in shared.config.personas.iter().enumerate() {
            let at = |failure: &Failure| {
                let key = format!("persona[{index}].{}", failure.param().unwrap_or("name"));
                Error::new(ErrorKind::InvalidConfig, failure.message())
                    .with_operation("server::open")
                    .with_context("key", key)
                    .with_context("persona", persona.name.clone())
            };
            shared.put_persona(persona.clone()).await.map_err(|failure| at(&failure))?;
        }
        Ok(Self { shared })
    }
}

impl Shared {
    /// Who a request asks.
    ///
    /// # Errors
    /// Nobody has that name.
    pub(crate) fn member(&self, name: &str) -> Result<Arc<Member>, Failure> {
        self.registry.find(name, || self.adapters.has(name)).ok_or_else(|| {
            let shown: String = name.chars().take(128).collect();
            Failure::not_found(
                "model_not_found",
                format!("there is no model or persona `{shown}`; /v1/models lists them"),
            )
            .with_param("model")
        })
    }

    /// Adds or replaces a persona. Its adapters are there before it is, so whoever asks finds either the old one or the new.
    pub(crate) async fn put_persona(&self, persona: Persona) -> Result<Placed, Failure> {
        persona.check().map_err(|(field, message)| Failure::value(field, message))?;
        self.sides.admit(persona.placement).map_err(|message| Failure::value("placement", message))?;
        for (index, adapter) in persona.adapters.iter().enumerate() {
            let at = |failure: Failure| failure.or_param(&format!("adapters[{index}].name"));
            if persona.pinned {
                self.adapters.need(&adapter.name, Residency::Pinned).await.map_err(|error| at(error.into()))?;
            } else if !self.adapters.has(&adapter.name) {
                let failure = Failure::not_found("not_found", format!("there is no adapter `{}`", adapter.name));
                return Err(at(failure));
            }
        }
        let mut concerned: BTreeSet<String> = persona.adapters.iter().map(|adapter| adapter.name.clone()).collect();
        let placed = self.registry.put(persona)?;
        if let Some(before) = &placed.before {
            concerned.extend(before.persona.adapters.iter().map(|adapter| adapter.name.clone()));
        }
        self.settle_residency(concerned).await?;
        Ok(placed)
    }

    /// Takes a persona away.
    pub(crate) async fn remove_persona(&self, name: &str) -> Result<(), Failure> {
        let Some(member) = self.registry.remove(name) else {
            return Err(Failure::not_found("not_found", "there is no persona of this name").with_param("name"));
        };
        let concerned = member.persona.adapters.iter().map(|adapter| adapter.name.clone()).collect();
        self.settle_residency(concerned).await
    }

    pub(crate) async fn settle_residency(&self, adapters: BTreeSet<String>) -> Result<(), Failure> {
        for name in adapters {
            self.adapters.reside(&name, self.registry.residency(&name)).await?;
        }
        Ok(())
    }

    /// Loads an adapter by hand.
    pub(crate) async fn load_adapter(&self, name: &str, path: &Path, replace: Replace) -> Result<(), Failure> {
        crate::persona::check_name(name).map_err(|message| Failure::value("lora_name", message))?;
        if name == self.registry.model().persona.name {
            return Err(Failure::value("lora_name", "the model itself has this name"));
        }
        self.adapters.load_by_hand(name, path, replace).await
    }

    /// Unloads an adapter that no persona uses.
    pub(crate) async fn unload_adapter(&self, name: &str) -> Result<(), Failure> {
        if let Some(user) = self.registry.user_of(name) {
            return Err(Failure::value("lora_name", format!("the persona `{user}` speaks with this adapter")));
        }
        self.adapters.unload(name).await?;
        self.registry.forget_adapter(name);
        Ok(())
    }

    /// How long the server has been there.
    pub(crate) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// All numbers.
    pub(crate) async fn snapshot(&self) -> Snapshot {
        let adapters = self.adapters.loaded().into_iter();
        Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            model: self.registry.model().persona.name.clone(),
            backend: self.backend.name(),
            device: self.backend.evidence().device.to_string(),
            uptime: self.uptime(),
            personas: self.registry.counts(),
            answers: self.traffic.answers(),
            requests: self.traffic.requests.load(Ordering::Relaxed),
            connections: self.traffic.connections.load(Ordering::Relaxed),
            engine: self.backend.metrics(),
            sides: self.backend.sides(),
            memory: self.backend.memory().await.ok(),
            adapters: adapters.map(|a| (a.info.key.id.to_string(), a.info.bytes, a.resident)).collect(),
        }
    }
}

/// A file's name for its model, as a name that can be asked for.
fn served_name(name: &str) -> String {
    let name: String =
        name.to_lowercase().chars().map(|c| if c.is_whitespace() || c == '/' { '-' } else { c }).collect();
    if crate::persona::check_name(&name).is_ok() { name } else { "model".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_always_has_a_name() {
        assert_eq!(served_name("Qwen3.5 4B/Instruct"), "qwen3.5-4b-instruct");
        assert_eq!(served_name(""), "model");
        assert_eq!(served_name("\u{1}"), "model");
    }
}
