//! What is to be served: the file, the flags before it, and whether what they name is there.

use std::fmt::Write as _;

use consort::server::{AdapterLibrary, Config, Fresh, Keys, Listen, SchedulerSettings, Source};
use consort::{LoadConfig, ModelFiles, bundled};
use consort_core::{DevicePolicy, Error, Result};
use consort_scheduler::SchedulerConfig;

use super::args::ServeArgs;
use crate::output::Table;

/// What is to be served.
pub struct Plan {
    pub config: Config,
    pub load: LoadConfig,
    pub listen: Listen,
    pub keys: Keys,
    pub adapters: AdapterLibrary,
}

impl Plan {
    /// Of a file and the flags before it.
    ///
    /// # Errors
    /// What is wrong with either, and what they name and is not there.
    pub fn of_args(args: &ServeArgs) -> Result<Self> {
        let mut config = args.config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
        let server = &mut config.server;
        if args.api_key_env.is_some() || args.api_key_file.is_some() {
            (server.api_key_env, server.api_key_file) = (args.api_key_env.clone(), args.api_key_file.clone());
        }
        server.allow_anyone |= args.allow_anyone;
        config.adapters.folders.extend(args.adapters.iter().cloned());
        if args.name.is_some() {
            config.model.name.clone_from(&args.name);
        }
        #[cfg(feature = "vllm")]
        super::remote::apply(&args.model.remote, &mut config.remote);
        if let Some(backend) = args.model.engine.backend {
            config.model.backend = Some(backend.name().to_owned());
        }
        if args.model.model.is_some() {
            config.model.path.clone_from(&args.model.model);
            config.model.mmproj.clone_from(&args.model.mmproj);
        }
        let mut plan = Self::of_config(config)?;
        let engine = &args.model.engine;
        plan.load.backend = engine.backend.or(plan.load.backend);
        plan.load.threads = engine.on.threads.or(plan.load.threads);
        if engine.on.device.is_some() {
            plan.load.policy = engine.on.policy();
        }
        // A door that was named on the command line is a door; those of the file are for when none was.
        plan.listen = match (&args.listen, &args.socket) {
            (None, None) => plan.listen,
            (listen, socket) => Listen { tcp: *listen, socket: socket.clone() },
        };
        Ok(plan)
    }

    /// Where the same can be read again while the server runs.
    pub fn source(args: &ServeArgs, config: &Config) -> Source {
        let files = args.config.iter().chain(&config.server.api_key_file).cloned().collect();
        let args = args.clone();
        let read = move || {
            let Self { config, keys, adapters, .. } = Self::of_args(&args)?;
            Ok(Fresh { config, keys, adapters })
        };
        Source { read: Box::new(read), files }
    }

    /// Of a configuration alone.
    ///
    /// # Errors
    /// As [`of_args`](Self::of_args).
    pub fn of_config(config: Config) -> Result<Self> {
        let at = |key: &'static str| move |error: Error| error.with_context("key", key);
        let remote = super::remote::model(&config)?;
        let model = match &config.model.path {
            // A server has the model; its tokenizer is read from where it is, in whichever form.
            Some(_) if remote.is_some() && config.model.backend.as_deref().is_none_or(|name| name == "vllm") => {
                ModelFiles::Bundled
            }
            Some(path) => ModelFiles::find(path, config.model.mmproj.as_deref()).map_err(at("model.path"))?,
            None => ModelFiles::Bundled,
        };
        let backend = config.model.backend.as_deref().map(str::parse).transpose().map_err(at("model.backend"))?;
        let policy = config.model.device.map_or(DevicePolicy::AcceleratedOnly, |name| DevicePolicy::Named(name.into()));
        let load = LoadConfig {
            backend,
            policy,
            threads: config.model.threads,
            scheduler: scheduler(&config.scheduler),
            remote,
            ..LoadConfig::new(model)
        };
        let own = bundled::ADAPTERS.map(|adapter| (adapter.name.to_owned(), adapter.files()));
        // The bundled adapters fit the bundled model alone.
        let own = if load.model == ModelFiles::Bundled && !load.is_remote() { own.to_vec() } else { Vec::new() };
        let adapters = AdapterLibrary::new(own, &config.adapters.folders).map_err(at("adapters.folders"))?;
        for (index, persona) in config.personas.iter().enumerate() {
            for adapter in &persona.adapters {
                adapters
                    .find(&adapter.name)
                    .map_err(|error| error.with_context("key", format!("persona[{index}].adapters")))?;
            }
        }
        let keys = Keys::load(&config.server)?;
        let tcp = config.server.socket.is_none().then_some(config.server.listen);
        let listen = Listen { tcp, socket: config.server.socket.clone() };
        Ok(Self { config, load, listen, keys, adapters })
    }

    /// What it comes to, for people.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = match (&self.listen.tcp, &self.listen.socket) {
            (Some(address), _) => writeln!(text, "  listens on http://{address}"),
            (None, Some(socket)) => writeln!(text, "  listens on {}", socket.display()),
            (None, None) => Ok(()),
        };
        let keys = if self.keys.are_demanded() { "demands an API key" } else { "demands no API key" };
        let model = match &self.load.model {
            _ if self.load.is_remote() => self.config.remote.urls.join(", "),
            ModelFiles::Bundled => "the bundled etude".to_owned(),
            ModelFiles::Files { text, .. } => text.display().to_string(),
        };
        let _ = writeln!(text, "  {keys}\n  serves {model}");
        let mut table = Table::new(["persona", "adapters", "priority"]);
        for persona in &self.config.personas {
            let adapters: Vec<_> = persona.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
            let adapters = if adapters.is_empty() { "-".into() } else { adapters.join(", ") };
            table.row([persona.name.clone(), adapters, format!("{:?}", persona.priority).to_lowercase()]);
        }
        if !self.config.personas.is_empty() {
            text.push_str(&table.render());
        }
        text
    }
}

fn scheduler(settings: &SchedulerSettings) -> SchedulerConfig {
    let default = SchedulerConfig::default();
    SchedulerConfig {
        max_queued: settings.max_queued.map_or(default.max_queued, usize::from),
        max_running: settings.max_running.map_or(default.max_running, usize::from),
        gpu_time_share: settings.gpu_time_share.unwrap_or(default.gpu_time_share),
        cache_bytes: settings.cache_bytes.unwrap_or(default.cache_bytes),
        image_cache_bytes: settings.image_cache_bytes.unwrap_or(default.image_cache_bytes),
        adapter_bytes: settings.adapter_bytes.unwrap_or(default.adapter_bytes),
        ..default
    }
}
