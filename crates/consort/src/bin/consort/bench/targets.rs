//! What is measured, as the command line names it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use consort::{Backend, LoadConfig, ModelFiles, SyntheticModel, backends};
use consort_bench::live::{
    AdapterStyle, HttpConfig, HttpTarget, InProcess, Peer, PeerConfig, Process, SearchReport, SearchSpace, Target,
    search,
};
use consort_core::{Error, ErrorKind, Result};

use crate::model_args::{DeviceArgs, parse_backend};

/// How long a peer may take until it answers, in seconds, unless somebody says otherwise.
const PATIENCE: u64 = 300;

/// How requests to servers name adapters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum AdapterStyleChoice {
    /// As the model's name (vLLM).
    #[default]
    Model,
    /// In llama-server's `lora` list.
    Lora,
}

/// Which targets.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Targets")]
pub struct TargetArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// A GGUF file, a folder that holds one, or synthetic:SIZE:MIX, random weights of the family's real dimensions (0.8b, 2b,
    /// 4b, 9b). Default: the bundled etude. It fills {model} in the commands of peers.
    #[arg(long, value_name = "PATH|NAME")]
    pub model: Option<String>,
    /// A backend in this process. `threads` and `model` may differ: `--backend one=native,threads=1`. Repeat for several.
    /// Default, without any target: the first that was compiled in.
    #[arg(long = "backend", value_name = "[NAME=]BACKEND[,KEY=VALUE…]")]
    pub backends: Vec<String>,
    /// A server that runs already. Repeat for several.
    #[arg(long = "url", value_name = "NAME=http://…")]
    pub urls: Vec<String>,
    /// A server to start and to end: {port}, {model}, {mmproj}, {threads} and the variables of --search are filled in.
    /// Repeat for several.
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    pub peers: Vec<String>,
    /// Try settings for a target with a short run first, and take the best: `--search 'llama:threads=1,2;batch=256,512'`. For
    /// backends in this process only `threads` can be searched. Repeat for several targets.
    #[arg(long = "search", value_name = "NAME:KEY=VALUE,…;…")]
    pub searches: Vec<String>,
    /// An adapter for backends in this process: a PEFT folder, a GGUF file, or the name of a bundled one. Repeat for
    /// several.
    #[arg(long, value_name = "NAME|PATH")]
    pub adapter: Vec<String>,
    /// The same adapters' names as servers know them, in the same order.
    #[arg(long, value_name = "NAME")]
    pub server_adapter: Vec<String>,
    /// How requests to servers name adapters.
    #[arg(long, value_enum, default_value = "model")]
    pub adapter_style: AdapterStyleChoice,
    /// Fields added to each request to servers, as a JSON object.
    #[arg(long, value_name = "JSON")]
    pub extra: Option<String>,
    /// How long a peer may take until it answers, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE)]
    pub patience: u64,
    /// Where peers' logs are kept. Default: the temporary folder.
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
    /// Where synthetic models are kept. Default: the user's cache folder.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

impl Default for TargetArgs {
    /// As the command line has it where nothing is said.
    fn default() -> Self {
        Self {
            device: DeviceArgs::default(),
            model: None,
            backends: Vec::new(),
            urls: Vec::new(),
            peers: Vec::new(),
            searches: Vec::new(),
            adapter: Vec::new(),
            server_adapter: Vec::new(),
            adapter_style: AdapterStyleChoice::default(),
            extra: None,
            patience: PATIENCE,
            logs: None,
            cache: None,
        }
    }
}

/// What was opened, and what the report says of it.
pub struct Opened {
    pub targets: Vec<Box<dyn Target>>,
    pub searches: Vec<SearchReport>,
    pub notes: Vec<String>,
}

/// One backend in this process, as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSpec {
    pub name: String,
    pub backend: Backend,
    pub threads: Option<NonZeroUsize>,
    pub model: Option<String>,
}

impl BackendSpec {
    fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (name, backend) = first.split_once('=').unwrap_or((first, first));
        let found = parse_backend(backend).map_err(|message| wrong(message, text))?;
        let mut spec = Self { name: name.to_owned(), backend: found, threads: None, model: None };
        for part in parts {
            match part.split_once('=') {
                Some(("threads", value)) => {
                    spec.threads = Some(value.parse().map_err(|_| wrong("threads is a number above 0", text))?);
                }
                Some(("model", value)) => spec.model = Some(value.to_owned()),
                _ => return Err(wrong("a backend has the settings threads=N and model=PATH", text)),
            }
        }
        Ok(spec)
    }
}

fn wrong(message: impl Into<String>, what: &str) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("bench").with_context("argument", what)
}

/// `NAME=REST`.
fn named<'t>(text: &'t str, what: &str) -> Result<(&'t str, &'t str)> {
    text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| wrong(format!("give {what}"), text))
}

impl TargetArgs {
    /// How many adapters are named.
    pub fn adapters(&self) -> usize {
        self.adapter.len().max(self.server_adapter.len())
    }

    /// The backends in this process: those that were named, or the first there is where nothing was.
    pub fn backend_specs(&self) -> Result<Vec<BackendSpec>> {
        if self.backends.is_empty() && self.urls.is_empty() && self.peers.is_empty() {
            return backends().first().map(|first| BackendSpec::parse(first.name())).into_iter().collect();
        }
        self.backends.iter().map(|text| BackendSpec::parse(text)).collect()
    }

    /// A model's files: of `own`, else of `--model`, else the bundled one.
    pub fn files(&self, own: Option<&str>) -> Result<ModelFiles> {
        match own.or(self.model.as_deref()) {
            None => Ok(ModelFiles::Bundled),
            Some(name) if SyntheticModel::is_named(name) => {
                let folder = self.cache.clone().unwrap_or_else(SyntheticModel::default_folder);
                name.parse::<SyntheticModel>()?.files(&folder)
            }
            Some(path) => ModelFiles::find(Path::new(path), None),
        }
    }

    /// The model's name in reports: no folder of this machine.
    pub fn source(&self, own: Option<&str>) -> String {
        match own.or(self.model.as_deref()) {
            None => "etude (bundled)".into(),
            Some(name) if SyntheticModel::is_named(name) => name.to_owned(),
            Some(path) => Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// What opens the engine or the backend of a specification.
    pub fn load_config(&self, spec: &BackendSpec, threads: Option<NonZeroUsize>) -> Result<LoadConfig> {
        Ok(LoadConfig {
            backend: Some(spec.backend),
            policy: self.device.policy(),
            threads: threads.or(spec.threads).or(self.device.threads),
            ..LoadConfig::new(self.files(spec.model.as_deref())?)
        })
    }

    /// Opens all targets, searching settings first where that was asked for. `say` tells what is going on.
    pub fn open(&self, adapters: usize, seed: u64, say: &dyn Fn(&str)) -> Result<Opened> {
        let mut opened = Opened { targets: Vec::new(), searches: Vec::new(), notes: Vec::new() };
        let mut spaces = self.spaces()?;
        let specs = self.backend_specs()?;
        let peers: Vec<PeerConfig> = self.peers.iter().map(|text| text.parse()).collect::<Result<_>>()?;
        let mut names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        names.extend(peers.iter().map(|peer| peer.name.as_str()));
        for url in &self.urls {
            names.push(named(url, "a server as NAME=http://…")?.0);
        }
        if let Some((at, name)) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return Err(wrong(format!("two targets have the same name; name them apart (the {}.)", at + 1), name));
        }
        if let Some(stranger) = spaces.keys().find(|name| !names.contains(&name.as_str())) {
            return Err(wrong("--search names no target that is opened here", stranger));
        }
        for spec in &specs {
            let best = match spaces.remove(&spec.name) {
                None => BTreeMap::new(),
                Some(space) => {
                    say(&format!("{}: trying settings", spec.name));
                    let found = search(&spec.name, &space, seed, &mut |variables| {
                        Ok(Box::new(self.in_process(spec, variables, 0)?))
                    })?;
                    chosen(&mut opened.searches, found)
                }
            };
            say(&format!("{}: loading", spec.name));
            opened.targets.push(Box::new(self.in_process(spec, &best, adapters)?));
        }
        for peer in &peers {
            let best = match spaces.remove(&peer.name) {
                None => BTreeMap::new(),
                Some(space) => {
                    say(&format!("{}: trying settings", peer.name));
                    let found = search(&peer.name, &space, seed, &mut |variables| {
                        Ok(Box::new(self.start(peer, variables, 0)?))
                    })?;
                    chosen(&mut opened.searches, found)
                }
            };
            say(&format!("{}: starting", peer.name));
            let running = self.start(peer, &best, adapters)?;
            opened.notes.extend(instruction_note(&peer.name, &running.instruction_sets()));
            opened.targets.push(Box::new(running));
        }
        for url in &self.urls {
            let (name, url) = named(url, "a server as NAME=http://…")?;
            let config = HttpConfig { url: url.to_owned(), ..self.http(name, adapters)? };
            opened.targets.push(Box::new(HttpTarget::connect(config, Process::Elsewhere)?));
            opened.notes.push(format!("{name} runs elsewhere: its settings, memory and processor time are not known."));
        }
        if opened.targets.iter().filter(|target| target.process() == Process::Own).count() > 1 {
            let note = "In-process targets share this process: resident memory is of all of them together.";
            opened.notes.push(note.into());
        }
        Ok(opened)
    }

    fn spaces(&self) -> Result<BTreeMap<String, SearchSpace>> {
        let parse = |text: &String| {
            let (name, space) = text
                .split_once(':')
                .ok_or_else(|| wrong("a search is given as NAME:KEY=VALUE,VALUE;KEY=VALUE,VALUE", text))?;
            Ok((name.to_owned(), space.parse()?))
        };
        self.searches.iter().map(parse).collect()
    }

    fn in_process(
        &self,
        spec: &BackendSpec,
        variables: &BTreeMap<String, String>,
        adapters: usize,
    ) -> Result<InProcess> {
        let mut threads = None;
        for (key, value) in variables {
            match key.as_str() {
                "threads" => {
                    threads = Some(value.parse().map_err(|_| wrong("threads is a number above 0", value))?);
                }
                _ => return Err(wrong("of backends in this process only `threads` can be searched", key)),
            }
        }
        let config = self.load_config(spec, threads)?;
        let count = config.threads.map_or_else(|| "all".to_owned(), |count| count.to_string());
        let settings = BTreeMap::from([("threads".to_owned(), count)]);
        let source = self.source(spec.model.as_deref());
        let mut target = InProcess::new(&spec.name, source, settings, consort::load(config)?);
        let files: Vec<_> =
            self.adapter.iter().take(adapters).map(|name| (name.clone(), consort::adapter_files(name))).collect();
        if files.len() < adapters {
            return Err(wrong("the workload uses more adapters than were named with --adapter", &adapters.to_string()));
        }
        target.load_adapters(&files)?;
        Ok(target)
    }

    fn http(&self, name: &str, adapters: usize) -> Result<HttpConfig> {
        if self.server_adapter.len() < adapters {
            return Err(wrong("name the adapters as the servers know them, with --server-adapter", name));
        }
        let extra = match &self.extra {
            None => serde_json::Map::new(),
            Some(text) => serde_json::from_str(text).map_err(|_| wrong("--extra is a JSON object", text))?,
        };
        Ok(HttpConfig {
            adapters: self.server_adapter.clone(),
            adapter_style: match self.adapter_style {
                AdapterStyleChoice::Model => AdapterStyle::Model,
                AdapterStyleChoice::Lora => AdapterStyle::Lora,
            },
            extra,
            ..HttpConfig::new(name, "")
        })
    }

    fn start(&self, peer: &PeerConfig, variables: &BTreeMap<String, String>, adapters: usize) -> Result<Peer> {
        let mut all = BTreeMap::new();
        if let ModelFiles::Files { text, vision } = self.files(None)? {
            all.insert("model".into(), text.display().to_string());
            all.extend(vision.map(|path| ("mmproj".into(), path.display().to_string())));
        }
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        all.insert("threads".into(), self.device.threads.unwrap_or(cores).to_string());
        all.extend(variables.clone());
        let folder = self.logs.clone().unwrap_or_else(std::env::temp_dir);
        std::fs::create_dir_all(&folder).map_err(|source| Error::io(&folder, source))?;
        let log = folder.join(format!("consort-bench-{}-{}.log", std::process::id(), peer.name));
        Peer::start(peer, &all, self.http(&peer.name, adapters)?, &log, Duration::from_secs(self.patience))
    }
}

fn chosen(searches: &mut Vec<SearchReport>, found: SearchReport) -> BTreeMap<String, String> {
    let best = found.candidates.get(found.chosen).map(|best| best.variables.clone()).unwrap_or_default();
    searches.push(found);
    best
}

/// A peer that was built for less than this processor is beaten by its build, and the report says so.
fn instruction_note(name: &str, theirs: &[String]) -> Option<String> {
    use consort_hardware::InstructionSet;

    if theirs.is_empty() {
        return Some(format!("{name} does not say which instruction sets it was built for."));
    }
    let cpu = consort_hardware::probe().cpu;
    let known = [
        (InstructionSet::Avx2, "AVX2"),
        (InstructionSet::Avx512f, "AVX512"),
        (InstructionSet::Avx512vnni, "AVX512_VNNI"),
        (InstructionSet::Neon, "NEON"),
    ];
    let lacks: Vec<_> = known
        .into_iter()
        .filter(|(set, word)| cpu.has(*set) && !theirs.iter().any(|known| known == word))
        .map(|(_, word)| word)
        .collect();
    Some(if lacks.is_empty() {
        format!("{name} was built for this processor: {}.", theirs.join(", "))
    } else {
        format!("UNFAIR: {name} was built without {}, which this processor has.", lacks.join(", "))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn backends_are_named_with_their_settings() {
        let spec = BackendSpec::parse("one=native,threads=1,model=synthetic:0.8b:Q8_0").unwrap();
        assert_eq!((spec.name.as_str(), spec.backend), ("one", Backend::Native));
        assert_eq!((spec.threads, spec.model.as_deref()), (NonZeroUsize::new(1), Some("synthetic:0.8b:Q8_0")));
        assert_eq!(BackendSpec::parse("native").unwrap().name, "native");
        for text in ["nobody", "native,threads=0", "native,speed=9"] {
            assert_eq!(BackendSpec::parse(text).unwrap_err().kind(), ErrorKind::InvalidConfig, "{text}");
        }
    }

    #[test]
    fn a_peer_built_for_less_is_called_unfair() {
        let all = ["AVX2", "AVX512", "AVX512_VNNI", "NEON", "SSE3"].map(String::from);
        assert!(instruction_note("x", &all).unwrap().contains("built for this processor"));
        assert!(instruction_note("x", &[]).unwrap().contains("does not say"));
        let cpu = consort_hardware::probe().cpu;
        if cpu.has(consort_hardware::InstructionSet::Avx2) {
            assert!(instruction_note("x", &["SSE3".into()]).unwrap().starts_with("UNFAIR"));
        }
    }
}
