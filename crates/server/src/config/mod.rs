//! What an operator sets: one TOML file.
//!
//! [`Config::parse`] reads it and refuses what it does not know, by key and line. What names files, engines and devices is
//! kept as it was written: the command opens them, this crate never does.

mod locate;
mod overflow;
mod remote;

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use consort_core::{Error, ErrorKind, Priority, Result};
use serde::{Deserialize, Serialize};

use self::locate::Places;
pub use self::overflow::{OverflowSettings, PriorityPlacements, RemoteFailureRule};
pub use self::remote::RemoteSettings;
use crate::persona::Persona;
use crate::sampling::SamplingSettings;
use crate::telemetry::TelemetryConfig;

/// An annotated file with every key and its default, for `consort config init`.
pub const TEMPLATE: &str = include_str!("consort.toml");

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the server listens, and to whom.
    pub server: ServerConfig,
    /// What one client, and all of them, may take.
    pub limits: Limits,
    /// Which model, on which engine.
    pub model: ModelConfig,
    /// Which servers compute it, when it is not computed here.
    pub remote: RemoteSettings,
    /// When requests leave the engine here for those servers.
    pub overflow: OverflowSettings,
    /// How requests share the engine.
    pub scheduler: SchedulerSettings,
    /// How tokens are chosen when neither the persona nor the request says it. Nothing said: temperature 1.
    pub sampling: SamplingSettings,
    /// Where adapters are.
    pub adapters: AdaptersConfig,
    /// Where traces go.
    pub telemetry: TelemetryConfig,
    /// Who can be asked.
    #[serde(rename = "persona")]
    pub personas: Vec<Persona>,
}

/// Where the server listens, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// The address of the TCP listener. Port 0: any free one.
    pub listen: SocketAddr,
    /// A Unix domain socket, in place of TCP: only this user can open it. (The command's flags can ask for both.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The environment variable that holds the API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// A file of API keys, one a line. Blank lines and lines that begin with `#` do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Listen beyond this machine without an API key.
    pub allow_anyone: bool,
    /// Names by which clients reach the server, besides `localhost` and addresses in digits.
    pub allowed_hosts: Vec<String>,
    /// Web origins whose pages may ask, besides the server's own (`https://chat.example.org`).
    pub allowed_origins: Vec<String>,
    /// Beginnings of addresses from which pictures are fetched (`https://pictures.example.org/public/`). None: none are.
    pub image_prefixes: Vec<String>,
    /// How long running replies may take to end after SIGTERM, in seconds. What is not done then is cut off.
    pub drain_seconds: u64,
    /// Look every so many seconds whether this file, the keys' file or an adapter has changed, and read them again. None:
    /// only when somebody asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch_seconds: Option<NonZeroU64>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            socket: None,
            api_key_env: None,
            api_key_file: None,
            allow_anyone: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            image_prefixes: Vec::new(),
            drain_seconds: 30,
            watch_seconds: None,
        }
    }
}

/// What one client, and all of them, may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The largest body of a request, in bytes, pictures included.
    pub body_bytes: NonZeroUsize,
    /// The largest picture, in bytes of its file.
    pub image_bytes: NonZeroUsize,
    /// Pictures in one request.
    pub images: usize,
    /// Messages in one conversation.
    pub messages: NonZeroUsize,
    /// Tools in one request.
    pub tools: NonZeroUsize,
    /// Replies to one request (`n`, times the prompts of `/v1/completions`).
    pub choices: NonZeroUsize,
    /// Texts in one request for embeddings.
    pub inputs: NonZeroUsize,
    /// The most tokens of a reply. What asks for more is refused; what says nothing gets this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_tokens: Option<std::num::NonZeroU32>,
    /// The highest priority that a reply can have, whatever its request or its persona says.
    pub priority: Priority,
    /// Requests that are read, waiting or answered at once.
    pub requests: NonZeroUsize,
    /// Connections at once. Further ones wait in the system's queue.
    pub connections: NonZeroUsize,
    /// Personas, those of the file included.
    pub personas: NonZeroUsize,
    /// Rooms at once.
    pub rooms: NonZeroUsize,
    /// Messages in one room, replies included.
    pub room_messages: NonZeroUsize,
    /// The longest text of a message to a room, and of a room's scene, in bytes.
    pub room_text_bytes: NonZeroUsize,
    /// What one room holds, pictures included, in bytes.
    pub room_bytes: NonZeroUsize,
    /// What all rooms hold together, in bytes.
    pub rooms_bytes: NonZeroUsize,
    /// How long a request's head may take to arrive, in seconds. An idle connection is closed after this time, too.
    pub head_seconds: NonZeroU64,
    /// How long its body may take, in seconds.
    pub body_seconds: NonZeroU64,
    /// How long all pictures of one request may take to be fetched (`server.image_prefixes`), in seconds.
    pub image_seconds: NonZeroU64,
    /// How long a reply may wait for its first token, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_seconds: Option<NonZeroU64>,
    /// How long a reply may take in all, in seconds.
    pub reply_seconds: NonZeroU64,
}

impl Default for Limits {
    fn default() -> Self {
        let some = |value: usize| NonZeroUsize::new(value).unwrap_or(NonZeroUsize::MIN);
        let seconds = |value: u64| NonZeroU64::new(value).unwrap_or(NonZeroU64::MIN);
        Self {
            body_bytes: some(32 << 20),
            image_bytes: some(16 << 20),
            images: 16,
            messages: some(4096),
            tools: some(128),
            choices: some(16),
            inputs: some(2048),
            reply_tokens: None,
            priority: Priority::Realtime,
            requests: some(256),
            connections: some(1024),
            personas: some(1024),
            rooms: some(256),
            room_messages: some(2000),
            room_text_bytes: some(64 << 10),
            room_bytes: some(64 << 20),
            rooms_bytes: some(512 << 20),
            head_seconds: seconds(30),
            body_seconds: seconds(60),
            image_seconds: seconds(10),
            first_token_seconds: None,
            reply_seconds: seconds(600),
        }
    }
}

impl Limits {
    /// How long a request's head may take to arrive.
    #[must_use]
    pub fn head_time(&self) -> Duration {
        Duration::from_secs(self.head_seconds.get())
    }

    /// How long its body may take.
    #[must_use]
    pub fn body_time(&self) -> Duration {
        Duration::from_secs(self.body_seconds.get())
    }
}

/// Which model, on which engine. The command's flags go before it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A GGUF file, or a folder with one and its mmproj. None: the bundled etude.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The vision projector, where it does not lie beside the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmproj: Option<PathBuf>,
    /// The name by which clients ask for the model as it is. None: the file's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The engine. None: the first that was compiled in and fits the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The device, and no other. None: an accelerator, or a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceName>,
    /// Threads that compute. None: one for each core that the process may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroUsize>,
}

/// A device, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// Apple's GPU.
    Metal,
    /// The first NVIDIA GPU.
    Cuda,
    /// The first GPU through Vulkan.
    Vulkan,
    /// The first Vulkan driver that computes on the processor.
    VulkanSoftware,
}

impl From<DeviceName> for consort_core::Device {
    fn from(name: DeviceName) -> Self {
        match name {
            DeviceName::Cpu => Self::Cpu,
            DeviceName::Metal => Self::Metal,
            DeviceName::Cuda => Self::Cuda(0),
            DeviceName::Vulkan => Self::Vulkan(0),
            DeviceName::VulkanSoftware => Self::SoftwareVulkan(0),
        }
    }
}

/// How requests share the engine. What is not said stays as the scheduler has it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerSettings {
    /// Requests that may wait for a slot. One more is refused with 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queued: Option<NonZeroUsize>,
    /// Replies that are written at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<NonZeroUsize>,
    /// The share of the device's time that the engine takes, above 0 and at most 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_time_share: Option<f32>,
    /// Memory for kept pasts, in bytes. 0: none are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
    /// Memory for encoded pictures, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_cache_bytes: Option<u64>,
    /// Memory for adapters in the engine, in bytes; beyond it the least valuable one leaves until it is needed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_bytes: Option<u64>,
}

/// Where adapters are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptersConfig {
    /// Folders of PEFT folders and GGUF files; each is an adapter under its name. No adapter outside of them is ever read.
    pub folders: Vec<PathBuf>,
}

impl Config {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] that names the key, the line and the column.
    pub fn parse(text: &str) -> Result<Self> {
        let places = Places::of(text);
        let config: Self = toml::from_str(text).map_err(|error| {
            let span = error.span();
            // What toml says of a whole array or table names no line that helps; the key does.
            places.located(refuse(error.message()), span.as_ref(), text)
        })?;
        config.check().map_err(|wrong| places.at_key(&wrong.key, refuse(wrong.message), text))?;
        Ok(config)
    }

    /// Reads a file. Paths in it are meant from the file's folder.
    ///
    /// # Errors
    /// Those of reading it, and as [`parse`](Self::parse), with the file's name.
    pub fn load(path: &Path) -> Result<Self> {
        let named = |error: Error| error.with_context("file", path.display().to_string());
        let length = std::fs::metadata(path).map_err(|source| Error::io(path, source))?.len();
        if length > MAX_FILE {
            return Err(named(refuse(format!("the file has {length} bytes; at most {MAX_FILE} are read"))));
        }
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let mut config = Self::parse(&text).map_err(named)?;
        config.paths_from(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Paths in a file are meant from the file's folder.
    fn paths_from(&mut self, folder: &Path) {
        let remote = &mut self.remote;
        let paths = [
            &mut self.server.socket,
            &mut self.server.api_key_file,
            &mut self.model.path,
            &mut self.model.mmproj,
            &mut remote.key_file,
            &mut remote.ca_file,
            &mut remote.adapter_folder,
        ];
        for path in paths.into_iter().flatten().chain(&mut self.adapters.folders) {
            *path = folder.join(&*path);
        }
    }

    /// What types alone do not say.
    fn check(&self) -> Result<(), Wrong> {
        let share = |key: &str, value: Option<f32>| match value {
            Some(value) if !(value > 0.0 && value <= 1.0) => wrong(key, "must be above 0 and at most 1"),
            _ => Ok(()),
        };
        if self.server.api_key_env.is_some() && self.server.api_key_file.is_some() {
            return wrong("server.api_key_file", "keys come from a file or from the environment, not from both");
        }
        for (index, origin) in self.server.allowed_origins.iter().enumerate() {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if host.is_none_or(|host| host.is_empty() || host.contains('/')) {
                let key = format!("server.allowed_origins[{index}]");
                return wrong(&key, "an origin is a scheme and a host, such as https://chat.example.org");
            }
        }
        for (index, prefix) in self.server.image_prefixes.iter().enumerate() {
            if let Err(message) = crate::remote::Prefix::parse(prefix) {
                return wrong(&format!("server.image_prefixes[{index}]"), message);
            }
        }
        for (index, host) in self.server.allowed_hosts.iter().enumerate() {
            if host.is_empty() || host.contains(['/', ':', '@', ' ']) {
                let key = format!("server.allowed_hosts[{index}]");
                return wrong(&key, "a host is a name alone, such as chat.example.org");
            }
        }
        if self.model.mmproj.is_some() && self.model.path.is_none() {
            return wrong("model.mmproj", "a projector belongs to a model: name `path` as well");
        }
        if let Some(name) = &self.model.name
            && let Err(message) = crate::persona::check_name(name)
        {
            return wrong("model.name", &message);
        }
        if let Err((field, message)) = self.remote.check() {
            return wrong(&format!("remote.{field}"), message);
        }
        if let Err((field, message)) = self.overflow.check() {
            return wrong(&format!("overflow.{field}"), message);
        }
        share("scheduler.gpu_time_share", self.scheduler.gpu_time_share)?;
        if let Err(message) = self.telemetry.check() {
            return wrong("telemetry.otlp_endpoint", message);
        }
        if let Err((field, message)) = self.sampling.check() {
            return wrong(&format!("sampling.{field}"), &message);
        }
        if self.personas.len() > self.limits.personas.get() {
            return wrong("limits.personas", "the file has more personas than this");
        }
        for (index, persona) in self.personas.iter().enumerate() {
            if let Err((field, message)) = persona.check() {
                return wrong(&format!("persona[{index}].{field}"), &message);
            }
            let name = &persona.name;
            if self.personas.iter().take(index).any(|other| other.name == *name) {
                return wrong(&format!("persona[{index}].name"), "another persona has this name");
            }
            if self.model.name.as_ref() == Some(name) {
                return wrong(&format!("persona[{index}].name"), "the model itself has this name (model.name)");
            }
        }
        Ok(())
    }
}

/// What is wrong, and at which key.
struct Wrong {
    key: String,
    message: String,
}

fn wrong(key: &str, message: &str) -> Result<(), Wrong> {
    Err(Wrong { key: key.to_owned(), message: message.to_owned() })
}

fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("server::config")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn context(error: &Error, key: &str) -> String {
        error.context().find(|pair| pair.0 == key).map(|pair| pair.1.to_owned()).unwrap_or_default()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn the_template_is_the_default_and_each_of_its_keys_is_known() {
        assert_eq!(Config::parse(TEMPLATE).unwrap(), Config::default());
        // With every line that is commented out switched on.
        let setting =
            |line: &str| line.starts_with("[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let on: String = TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix("# ").filter(|line| setting(line)) {
                // Keys may come from one place only.
                Some(line) if line.starts_with("api_key_file") || line.starts_with("key_file") => String::new(),
                Some(line) => format!("{line}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        let config = Config::parse(&on).unwrap();
        assert_eq!(config.personas.len(), 1);
        assert!(config.server.socket.is_some() && config.scheduler.adapter_bytes.is_some(), "{config:?}");
        assert_eq!(
            config.limits,
            Limits {
                reply_tokens: config.limits.reply_tokens,
                first_token_seconds: config.limits.first_token_seconds,
                ..Limits::default()
            }
        );
        // And what was read can be written and read again.
        for config in [config, Config::default()] {
            assert_eq!(Config::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_key_and_line() {
        let persona = "[[persona]]\nname = \"ada\"\n";
        for (text, key, line) in [
            ("[server]\nlisten = \"everywhere\"\n", "server.listen", "2"),
            ("[server]\nport = 80\n", "server.port", "2"),
            ("[limits]\n\nchoices = 0\n", "limits.choices", "3"),
            ("[limits]\nbody_bytes = -1\n", "limits.body_bytes", "2"),
            ("[model]\ndevice = \"tpu\"\n", "model.device", "2"),
            ("[model]\nmmproj = \"x.gguf\"\n", "model.mmproj", "2"),
            ("[remote]\nkey_env = \"A\"\nkey_file = \"b\"\n", "remote.key_file", "3"),
            ("[remote]\nadapter_folder_there = \"/x\"\n", "remote.adapter_folder_there", "2"),
            ("[remote]\nattempts = 0\n", "remote.attempts", "2"),
            ("[overflow]\nlocal_wait_seconds = 0.0\n", "overflow.local_wait_seconds", "2"),
            ("[overflow]\n\nlocal_memory = 1.5\n", "overflow.local_memory", "3"),
            ("[overflow]\npriorities = { batch = \"there\" }\n", "overflow.priorities.batch", "2"),
            ("[scheduler]\ngpu_time_share = 1.5\n", "scheduler.gpu_time_share", "2"),
            ("[sampling]\ntop_p = 2.0\n", "sampling.top_p", "2"),
            ("[server]\nallowed_origins = [\"https://a\", \"ftp://b\"]\n", "server.allowed_origins[1]", "2"),
            ("[server]\nimage_prefixes = [\"https://a/b\"]\n", "server.image_prefixes[0]", "2"),
            (
                &format!("{persona}adapters = [{{ name = \"x\", scale = \"big\" }}]\n"),
                "persona[0].adapters[0].scale",
                "3",
            ),
            (&format!("{persona}\n{persona}"), "persona[1].name", "5"),
            (&format!("{persona}placement = \"there\"\n"), "persona[0].placement", "3"),
            (&format!("{persona}memory_share = 0.0\n"), "persona[0].memory_share", "3"),
            (&format!("{persona}[persona.sampling]\ntemperature = -1.0\n"), "persona[0].sampling.temperature", "4"),
            ("[[persona]]\nsystem = \"x\"\n", "persona[0]", "1"),
            ("what", "", "1"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert_eq!(
                (context(&error, "key").as_str(), context(&error, "line").as_str()),
                (key, line),
                "{text}: {error}"
            );
        }
    }
}
