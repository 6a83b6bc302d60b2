//! Reading the configuration again while the server runs: at SIGHUP, when a client asks (`POST /v1/reload`), or when a file
//! changes (`server.watch_seconds`).
//!
//! Personas, adapters and API keys are taken up. Everything is read and tried first: what is wrong changes nothing. No reply
//! that runs notices: it keeps its persona and its adapters' weights. Other keys are for the next start, and are named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use consort_core::{Error, ErrorKind, Result};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::adapters::{AdapterChanges, AdapterLibrary};
use crate::app::{App, Shared};
use crate::auth::Keys;
use crate::body;
use crate::config::Config;
use crate::error::Failure;
use crate::openai::json_response;
use crate::persona::Persona;
use crate::registry::PersonaChanges;
use crate::shutdown::Phase;
use crate::stamp::Stamp;

/// What was read again.
#[derive(Debug)]
pub struct Fresh {
    /// What the operator wants now.
    pub config: Config,
    /// Who may ask now.
    pub keys: Keys,
    /// Where adapters come from now.
    pub adapters: AdapterLibrary,
}

/// Where a configuration is read again.
pub struct Source {
    /// Reads it, on a thread of its own.
    pub read: Box<dyn Fn() -> Result<Fresh> + Send + Sync>,
    /// The files that it reads.
    pub files: Vec<PathBuf>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What a reload has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// Personas, by name.
    pub personas: PersonaChanges,
    /// Adapters, by name.
    pub adapters: AdapterChanges,
    /// Whether other API keys open now.
    pub keys_changed: bool,
    /// Keys of the file that have changed and hold from the next start on.
    pub needs_restart: Vec<String>,
}

/// The state of reloading.
#[derive(Debug)]
pub(crate) struct Reload {
    source: OnceLock<Arc<Source>>,
    /// The personas that the file named last. One reload at a time.
    named: Mutex<BTreeMap<String, Persona>>,
}

impl Reload {
    pub(crate) fn new(config: &Config) -> Self {
        Self { source: OnceLock::new(), named: Mutex::new(by_name(config)) }
    }
}

fn by_name(config: &Config) -> BTreeMap<String, Persona> {
    config.personas.iter().map(|persona| (persona.name.clone(), persona.clone())).collect()
}

impl App {
    /// Says where the configuration can be read again. Without it nothing is ever reloaded.
    #[must_use]
    pub fn with_source(self, source: Source) -> Self {
        if self.shared.reload.source.set(Arc::new(source)).is_err() {
            tracing::error!("the server has a source already; the first one stays");
        }
        self
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    /// What is wrong with it, by key and line. Nothing has changed then.
    pub async fn reload(&self) -> Result<Reloaded> {
        self.shared.reload().await
    }
}

impl Shared {
    pub(crate) async fn reload(&self) -> Result<Reloaded> {
        let source = self.reload.source.get().cloned().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "this server was started without a configuration that can be read again")
        })?;
        let mut named = self.reload.named.lock().await;
        let read = tokio::task::spawn_blocking(move || (source.read)()).await;
        let Fresh { config, keys, adapters } =
            read.map_err(|_| Error::new(ErrorKind::Unexpected, "reading the configuration failed"))??;
        let needs_restart = fixed_keys_that_differ(&self.config, &config);
        self.admit(&config, &adapters)?;
        let wanted = config.personas.iter().filter(|persona| persona.pinned);
        let pinned: BTreeSet<String> = wanted.flat_map(adapter_names).collect();
        let staged = self.adapters.stage(adapters, &pinned).await;
        let fresh = by_name(&config);
        let gone: Vec<Persona> = named.values().filter(|old| !fresh.contains_key(&old.name)).cloned().collect();
        let concerned: BTreeSet<String> =
            named.values().chain(&config.personas).flat_map(adapter_names).chain(pinned).collect();
        let outcome = match staged {
            Ok(staged) => match self.registry.apply(config.personas, &gone) {
                Ok(personas) => Ok((personas, staged)),
                Err(failure) => {
                    Err(refused(failure.message()).with_context("key", failure.param().unwrap_or("persona").to_owned()))
                }
            },
            Err(error) => Err(error),
        };
        let (personas, staged) = match outcome {
            Ok(good) => good,
            Err(error) => {
                // What was pinned to see whether it can be is as it was.
                self.settle(concerned).await;
                return Err(error);
            }
        };
        // From here on nothing is refused.
        *named = fresh;
        let adapters = self.adapters.take_up(staged, |name| self.registry.user_of(name).is_some()).await;
        for name in &adapters.removed {
            self.registry.forget_adapter(name);
        }
        self.settle(concerned).await;
        // Other keys from another place are for the next start.
        let same_place = !needs_restart.iter().any(|key| key.starts_with("server.api_key"));
        let keys_changed = same_place && self.keys.replace(keys);
        let reloaded = Reloaded { personas, adapters, keys_changed, needs_restart };
        tracing::info!(
            added = ?reloaded.personas.added,
            replaced = ?reloaded.personas.replaced,
            removed = ?reloaded.personas.removed,
            adapters = ?reloaded.adapters,
            keys_changed = reloaded.keys_changed,
            "the configuration was read again"
        );
        if !reloaded.needs_restart.is_empty() {
            tracing::warn!(keys = ?reloaded.needs_restart, "these keys have changed and need a restart");
        }
        Ok(reloaded)
    }

    /// Whether the personas of a file can be, with the adapters that there are.
    fn admit(&self, config: &Config, library: &AdapterLibrary) -> Result<()> {
        for (index, persona) in config.personas.iter().enumerate() {
            let key = |field: &str| format!("persona[{index}].{field}");
            if persona.name == self.registry.model().persona.name {
                return Err(refused("the model itself has this name").with_context("key", key("name")));
            }
            if let Err(message) = self.sides.admit(persona.placement) {
                let error = refused(message).with_context("key", key("placement"));
                return Err(error.with_context("persona", persona.name.clone()));
            }
            for adapter in &persona.adapters {
                let loaded = self.adapters.loaded().iter().any(|status| *status.info.key.id == *adapter.name);
                if !loaded && library.find(&adapter.name).is_err() {
                    return Err(
                        refused(format!("there is no adapter `{}`", adapter.name)).with_context("key", key("adapters"))
                    );
                }
            }
        }
        Ok(())
    }

    /// Tells the backend what may be paged out, as well as it can.
    async fn settle(&self, adapters: BTreeSet<String>) {
        for name in adapters {
            if let Err(error) = self.adapters.reside(&name, self.registry.residency(&name)).await {
                tracing::error!(%error, adapter = %name, "an adapter cannot stay in the engine as its personas want it");
            }
        }
    }
}

fn adapter_names(persona: &Persona) -> impl Iterator<Item = String> + '_ {
    persona.adapters.iter().map(|adapter| adapter.name.clone())
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("server::reload")
}

/// The keys that differ and hold from the next start on.
fn fixed_keys_that_differ(one: &Config, other: &Config) -> Vec<String> {
    let flat = |config: &Config| {
        let mut keys = BTreeMap::new();
        if let Ok(table) = toml::Value::try_from(config) {
            flatten("", &table, &mut keys);
        }
        keys.retain(|key: &String, _| key != "persona" && key != "adapters.folders");
        keys
    };
    let (one, other) = (flat(one), flat(other));
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    keys.into_iter().filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
}

fn flatten(prefix: &str, value: &toml::Value, keys: &mut BTreeMap<String, toml::Value>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&path, value, keys);
            }
        }
        other => drop(keys.insert(prefix.to_owned(), other.clone())),
    }
}

/// `POST /v1/reload`.
pub(crate) async fn handle(State(app): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    body::nothing(&app, request).await?;
    // It goes on when its client goes away: half of a reload would be worse than either.
    let other = Arc::clone(&app);
    let reloaded = tokio::spawn(async move { other.reload().await }).await.map_err(|_| Failure::internal())?;
    let reloaded = reloaded.map_err(|error| {
        tracing::error!(%error, "nothing was reloaded");
        told(&error)
    })?;
    Ok(json_response(&serde_json::to_value(&reloaded).map_err(|_| Failure::internal())?))
}

/// What a client is told: what is wrong and at which key and line, and no path.
fn told(error: &Error) -> Failure {
    if error.kind() == ErrorKind::Unsupported {
        return Failure::refused(StatusCode::CONFLICT, "not_reloadable", error.message());
    }
    // What the system says of a file has its path in it.
    let message = if error.kind() == ErrorKind::Io {
        "a file cannot be read; the server's log says which"
    } else {
        error.message()
    };
    let known = error.context().filter(|(key, _)| matches!(*key, "key" | "line" | "column" | "adapter"));
    let place: Vec<String> = known.map(|(key, value)| format!("{key} {value}")).collect();
    let place = if place.is_empty() { String::new() } else { format!(" ({})", place.join(", ")) };
    let message = format!("nothing was changed: {message}{place}");
    Failure::refused(StatusCode::UNPROCESSABLE_ENTITY, "invalid_configuration", message)
}

/// Reloads whenever there is reason to.
#[derive(Debug)]
pub(crate) struct Attendant {
    /// From the moment on in which the doors are open, so that no signal ends the process in between.
    #[cfg(unix)]
    hangups: Option<tokio::signal::unix::Signal>,
}

impl Attendant {
    /// # Errors
    /// The system gives no signals.
    pub(crate) fn new(app: &App) -> Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let hangups = app.shared.reload.source.get().map(|_| signal(SignalKind::hangup())).transpose();
            let hangups = hangups.map_err(|source| crate::serve::failed("SIGHUP cannot be heard", source))?;
            Ok(Self { hangups })
        }
        #[cfg(not(unix))]
        {
            let _ = app;
            Ok(Self {})
        }
    }

    /// Until the server ends.
    pub(crate) async fn attend(self, app: App) {
        if app.shared.reload.source.get().is_some() {
            tokio::select! {
                () = app.shared.shutdown.reached(Phase::Draining) => {}
                () = self.hangups(&app) => {}
                () = changes(&app) => {}
            }
        }
    }

    /// At each SIGHUP.
    async fn hangups(self, app: &App) {
        #[cfg(unix)]
        if let Some(mut hangups) = self.hangups {
            while hangups.recv().await.is_some() {
                again(app, "SIGHUP").await;
            }
        }
        #[cfg(not(unix))]
        let _ = app;
        std::future::pending::<()>().await;
    }
}

async fn again(app: &App, why: &str) {
    tracing::info!(why, "reading the configuration again");
    if let Err(error) = app.reload().await {
        tracing::error!(%error, "nothing was reloaded");
    }
}

/// When files have changed, and then not for one more look: nothing is read while it is being written.
async fn changes(app: &App) {
    let Some(seconds) = app.shared.config.server.watch_seconds else { return std::future::pending().await };
    let mut taken_up = look(app).await;
    let mut before = taken_up.clone();
    loop {
        tokio::time::sleep(Duration::from_secs(seconds.get())).await;
        let now = look(app).await;
        if now == before && now != taken_up {
            again(app, "a file has changed").await;
            // A new file may name other folders.
            taken_up = look(app).await;
            before = taken_up.clone();
        } else {
            before = now;
        }
    }
}

async fn look(app: &App) -> Stamp {
    let shared = Arc::clone(&app.shared);
    let look = move || {
        let files = shared.reload.source.get().map(|source| source.files.clone()).unwrap_or_default();
        let mut stamp = Stamp::of(files);
        stamp.and(shared.adapters.library().stamp());
        stamp
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_that_hold_from_the_next_start_are_named() {
        let one = Config::parse("[server]\nlisten = \"127.0.0.1:1\"\n[limits]\nimages = 3\n").unwrap();
        let other = Config::parse(
            "[server]\nlisten = \"127.0.0.1:2\"\nallowed_hosts = [\"a\"]\n[limits]\nimages = 3\n[model]\nname = \"m\"\n\
             [[persona]]\nname = \"ada\"\n[adapters]\nfolders = [\"x\"]\n",
        )
        .unwrap();
        assert_eq!(fixed_keys_that_differ(&one, &other), ["model.name", "server.allowed_hosts", "server.listen"]);
        assert!(fixed_keys_that_differ(&one, &one).is_empty());
    }

    #[test]
    fn clients_are_told_the_key_and_no_path() {
        let error = refused("no").with_context("file", "/etc/consort.toml").with_context("key", "server.port");
        let failure = told(&error.with_context("line", "2"));
        assert_eq!(failure.message(), "nothing was changed: no (key server.port, line 2)");
        assert_eq!(failure.status().as_u16(), 422);
        let error = Error::io(std::path::Path::new("/etc/secret"), std::io::Error::other("/etc/secret is gone"));
        assert!(!told(&error).message().contains("/etc"), "{}", told(&error).message());
    }
}
