//! What is to be served: the file, the flags before it, and whether what they name is there.

use std::fmt::Write as _;
use std::path::PathBuf;

use consort::server::{
    AdapterLibrary, Config, Fresh, Keys, Listen, OverflowSettings, SchedulerSettings, Sides, Source,
};
use consort::{LoadConfig, ModelFiles, bundled};
use consort_core::{DevicePolicy, Error, ErrorKind, Result};
use consort_scheduler::SchedulerConfig;

use super::args::ServeArgs;
use crate::model_args::ModelArgs;
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
        let mut plan = Self::of_model(config, &args.adapters, args.name.as_ref(), &args.model)?;
        // A door that was named on the command line is a door; those of the file are for when none was.
        plan.listen = match (&args.listen, &args.socket) {
            (None, None) => plan.listen,
            (listen, socket) => Listen { tcp: *listen, socket: socket.clone() },
        };
        Ok(plan)
    }

    /// Of a configuration and the flags before it that are about the model.
    ///
    /// # Errors
    /// As [`of_args`](Self::of_args).
    pub fn of_model(
        mut config: Config,
        adapters: &[PathBuf],
        name: Option<&String>,
        model: &ModelArgs,
    ) -> Result<Self> {
        config.adapters.folders.extend(adapters.iter().cloned());
        if name.is_some() {
            config.model.name = name.cloned();
        }
        #[cfg(feature = "vllm")]
        super::remote::apply(&model.remote, &mut config.remote);
        if let Some(backend) = model.engine.backend {
            config.model.backend = Some(backend.name().to_owned());
        }
        if model.model.is_some() {
            config.model.path.clone_from(&model.model);
            config.model.mmproj.clone_from(&model.mmproj);
        }
        let mut plan = Self::of_config(config)?;
        let engine = &model.engine;
        plan.load.backend = engine.backend.or(plan.load.backend);
        plan.load.threads = engine.on.threads.or(plan.load.threads);
        if engine.on.device.is_some() {
            plan.load.policy = engine.on.policy();
        }
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
            #[cfg(feature = "vllm")]
            overflow: super::overflow::settings(&config.overflow),
            ..LoadConfig::new(model)
        };
        let sides = sides(&load);
        if sides != Sides::Both && config.overflow != OverflowSettings::default() {
            let message =
                "nothing overflows: name servers (`urls` under `[remote]`) and an engine here (`model.backend`)";
            return Err(Error::new(ErrorKind::InvalidConfig, message).with_context("key", "overflow"));
        }
        let own = bundled::ADAPTERS.map(|adapter| (adapter.name.to_owned(), adapter.files()));
        // The bundled adapters fit the bundled model alone.
        let own = if load.model == ModelFiles::Bundled && !load.is_remote() { own.to_vec() } else { Vec::new() };
        let adapters = AdapterLibrary::new(own, &config.adapters.folders).map_err(at("adapters.folders"))?;
        for (index, persona) in config.personas.iter().enumerate() {
            sides.admit(persona.placement).map_err(|message| {
                Error::new(ErrorKind::InvalidConfig, message)
                    .with_context("key", format!("persona[{index}].placement"))
                    .with_context("persona", persona.name.clone())
            })?;
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

    /// Where the model is computed.
    pub fn sides(&self) -> Sides {
        sides(&self.load)
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
        #[cfg(feature = "vllm")]
        if self.sides() == Sides::Both {
            let _ = writeln!(text, "  with {} beside it", self.config.remote.urls.join(", "));
            for line in super::overflow::describe(&self.load.overflow) {
                let _ = writeln!(text, "    {line}");
            }
        }
        let mut table = Table::new(["persona", "adapters", "priority", "placement"]);
        for persona in &self.config.personas {
            let adapters: Vec<_> = persona.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
            let adapters = if adapters.is_empty() { "-".into() } else { adapters.join(", ") };
            // As it is written in the file.
            let placement = serde_json::to_value(persona.placement).unwrap_or_default();
            let placement = placement.as_str().unwrap_or_default().to_owned();
            table.row([persona.name.clone(), adapters, format!("{:?}", persona.priority).to_lowercase(), placement]);
        }
        if !self.config.personas.is_empty() {
            text.push_str(&table.render());
        }
        text
    }
}

/// Where a model is computed that is loaded so.
fn sides(load: &LoadConfig) -> Sides {
    match (load.is_remote(), load.remote.is_some()) {
        (true, _) => Sides::Remote,
        (false, true) => Sides::Both,
        (false, false) => Sides::Local,
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
