//! `consort doctor`: what this machine has, what each compiled backend would do here, and why not.

use std::fmt::Write as _;

use consort::{Backend, LoadConfig, ModelFiles, backends, matrix};
use consort_core::{Device, DeviceEvidence, DevicePolicy, Result};
use consort_hardware::{DriverKind, HardwareReport, Readiness, probe};
use serde_json::json;

use crate::args::DoctorArgs;
use crate::output::{self, BAD, FAINT, GOOD, HEADING, styled};

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Result<()> {
    if args.matrix {
        let rows = backends().into_iter().map(matrix::row).collect::<Result<String>>()?;
        anstream::print!("{}{rows}", matrix::HEAD);
        return Ok(());
    }
    #[cfg(feature = "vllm")]
    if let Some(remote) = args.remote.model(args.model.as_deref())? {
        return servers::show(&remote, args.json);
    }
    #[cfg(all(feature = "server", feature = "vllm"))]
    if let Some(path) = &args.config {
        return configured::show(path, args.json);
    }
    let hardware = probe();
    let trials: Vec<_> = backends().into_iter().map(Trial::run).collect();
    if args.json {
        let object = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "hardware": hardware,
            "backends": trials.iter().map(Trial::json).collect::<Vec<_>>(),
        });
        anstream::println!("{object:#}");
        return Ok(());
    }
    anstream::print!("{}", machine(&hardware));
    anstream::println!("\n{}", styled(HEADING, "backends (each tried with the bundled model)"));
    for trial in &trials {
        anstream::print!("{}", trial.show());
    }
    if hardware.ready_accelerators().next().is_none() {
        anstream::println!(
            "\nNo accelerator is ready here. Consort computes on the processor only when it is named: add {}.",
            styled(HEADING, "--device cpu")
        );
    } else if trials.iter().all(|trial| trial.by_default.is_err()) {
        anstream::println!(
            "\nThere is an accelerator, but no backend that was compiled in can use it. Add {} to use the processor.",
            styled(HEADING, "--device cpu")
        );
    }
    Ok(())
}

/// What servers are found to be, and to do.
#[cfg(feature = "vllm")]
mod servers {
    use consort::RemoteModel;
    use consort::vllm::{ReplicaStatus, VllmRemoteBackend};
    use consort_core::{ModelBackend as _, Result};
    use serde_json::{Value, json};

    use crate::output::{BAD, HEADING, Table, styled};

    pub(super) fn show(remote: &RemoteModel, as_json: bool) -> Result<()> {
        let backend = remote.connect()?;
        if as_json {
            anstream::println!("{:#}", json(&backend));
        } else {
            print(&backend);
        }
        Ok(())
    }

    pub(super) fn json(backend: &VllmRemoteBackend) -> Value {
        let server = |replica: &ReplicaStatus| json!({ "endpoint": replica.endpoint, "down": replica.down, "facts": replica.facts });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "evidence": backend.evidence(),
            "capability": backend.capability(),
            "servers": backend.replicas().iter().map(server).collect::<Vec<_>>(),
        })
    }

    pub(super) fn print(backend: &VllmRemoteBackend) {
        for replica in &backend.replicas() {
            anstream::println!("{}", styled(HEADING, &replica.endpoint));
            let Some(facts) = &replica.facts else {
                let why = replica.down.as_deref().unwrap_or("it did not answer");
                anstream::println!("  {}: {why}", styled(BAD, "not reached"));
                continue;
            };
            anstream::println!("  vLLM {}, {} front end", facts.version, facts.front_end);
            anstream::println!("  model {}, {} tokens", facts.model, facts.context_length);
            let mut table = Table::new(["tried", "found", "seen"]);
            for finding in &facts.findings {
                let seen: String = finding.seen.chars().take(100).collect();
                table.row([finding.name.to_owned(), finding.verdict.to_string(), seen]);
            }
            anstream::print!("{}", table.render());
        }
        anstream::println!(
            "What is written here is what the servers did when they were tried; on what they compute, they do not say."
        );
    }
}

/// The servers of a configuration, and the engine beside them.
#[cfg(all(feature = "server", feature = "vllm"))]
mod configured {
    use std::path::Path;

    use consort::server::{Config, Sides};
    use consort_core::{Error, ErrorKind, Result};
    use serde_json::json;

    use super::servers;
    use crate::output::{BAD, GOOD, HEADING, styled};
    use crate::serve::{Plan, rule};

    /// # Errors
    /// What is wrong with the file; it names no servers; they are not reached.
    pub(super) fn show(path: &Path, as_json: bool) -> Result<()> {
        let plan = Plan::of_config(Config::load(path)?)?;
        let Some(remote) = plan.load.remote.as_ref() else {
            let message = "the configuration names no servers (`urls` under `[remote]`); `consort doctor` alone shows this machine";
            return Err(Error::new(ErrorKind::InvalidConfig, message).with_context("key", "remote.urls"));
        };
        if plan.sides() != Sides::Both {
            return servers::show(remote, as_json);
        }
        let far = remote.connect()?;
        // As `serve` opens them: whether the two have one model is seen only then.
        let both = consort::load(plan.load.clone());
        let engine = plan.load.backend.map_or("none", consort::Backend::name);
        let urls = &plan.config.remote.urls;
        if as_json {
            let outcome = match &both {
                Ok(both) => json!({ "loads": true, "evidence": both.evidence() }),
                Err(error) => json!({ "loads": false, "kind": error.kind().as_str(), "why": error.message() }),
            };
            let mut object = servers::json(&far);
            object["overflow"] =
                json!({ "local": engine, "remote": urls, "rule": plan.load.overflow, "together": outcome });
            anstream::println!("{object:#}");
            return Ok(());
        }
        servers::print(&far);
        anstream::println!("\n{}", styled(HEADING, "an engine here, and the servers beside it"));
        match both {
            Ok(both) => {
                let evidence = both.evidence();
                let (device, name) = (evidence.device, evidence.device_name);
                anstream::println!("  here: {engine}, {} on {device} ({name})", styled(GOOD, "computes"));
            }
            Err(error) => anstream::println!("  here: {engine}, {}: {error}", styled(BAD, "refuses")),
        }
        anstream::println!("  beside it: {}", urls.join(", "));
        for line in rule(&plan.load.overflow) {
            anstream::println!("  {line}");
        }
        for persona in plan.config.personas.iter().filter(|persona| persona.placement != Default::default()) {
            let placement = serde_json::to_value(persona.placement).unwrap_or_default();
            anstream::println!("  persona {}: {}", persona.name, placement.as_str().unwrap_or_default());
        }
        Ok(())
    }
}

/// What happened when a backend loaded the bundled model.
struct Trial {
    backend: Backend,
    by_default: Result<DeviceEvidence>,
    on_cpu: Result<DeviceEvidence>,
}

impl Trial {
    fn run(backend: Backend) -> Self {
        let load = |policy| {
            let config = LoadConfig { backend: Some(backend), policy, ..LoadConfig::new(ModelFiles::Bundled) };
            consort::load(config).map(|loaded| loaded.evidence())
        };
        Self { backend, by_default: load(DevicePolicy::default()), on_cpu: load(DevicePolicy::Named(Device::Cpu)) }
    }

    fn json(&self) -> serde_json::Value {
        let outcome = |outcome: &Result<DeviceEvidence>| match outcome {
            Ok(evidence) => json!({ "loads": true, "evidence": evidence }),
            Err(error) => json!({ "loads": false, "kind": error.kind().as_str(), "why": error.message() }),
        };
        json!({
            "name": self.backend.name(),
            "by_default": outcome(&self.by_default),
            "with_device_cpu": outcome(&self.on_cpu),
        })
    }

    fn show(&self) -> String {
        let line = |how: &str, outcome: &Result<DeviceEvidence>| match outcome {
            Ok(evidence) => {
                format!("    {how}: {} on {} ({})\n", styled(GOOD, "computes"), evidence.device, evidence.device_name)
            }
            Err(error) => format!("    {how}: {}: {}\n", styled(BAD, "refuses"), error.message()),
        };
        format!(
            "  {}\n{}{}",
            styled(HEADING, self.backend.name()),
            line("by default", &self.by_default),
            line("with --device cpu", &self.on_cpu)
        )
    }
}

fn machine(hardware: &HardwareReport) -> String {
    let mut text = String::new();
    let os = &hardware.os.value;
    let unknown = || "unknown".to_owned();
    let name = os.name.clone().unwrap_or_else(|| os.family.clone());
    let _ = writeln!(text, "{} {name}, {}", styled(HEADING, "system:   "), os.architecture);
    let cpu = &hardware.cpu;
    let model = cpu.model.as_ref().map_or_else(unknown, |found| found.value.clone());
    let sets: Vec<_> =
        cpu.instruction_sets.iter().map(|found| json!(found.value).as_str().unwrap_or_default().to_owned()).collect();
    let _ = writeln!(
        text,
        "{} {model}; {} of {} threads usable; {}",
        styled(HEADING, "processor:"),
        cpu.usable_threads.value,
        cpu.logical_cores.value,
        sets.join(" ")
    );
    let memory = &hardware.memory;
    let bytes = |found: &Option<consort_hardware::Finding<u64>>| {
        found.as_ref().map_or_else(unknown, |found| output::bytes(found.value))
    };
    let _ = writeln!(
        text,
        "{} {} available of {}",
        styled(HEADING, "memory:   "),
        bytes(&memory.available),
        bytes(&memory.total)
    );
    if hardware.accelerators.is_empty() {
        let _ = writeln!(text, "{} none seen", styled(HEADING, "accelerators:"));
    } else {
        let _ = writeln!(text, "{}", styled(HEADING, "accelerators:"));
        for found in &hardware.accelerators {
            let state = match &found.readiness {
                Readiness::Ready => styled(GOOD, "ready"),
                Readiness::NotReady(why) => format!("{}: {why}", styled(BAD, "not ready")),
            };
            let _ =
                writeln!(text, "  {} {state} {}", found.name, styled(FAINT, &format!("({})", found.established_by)));
        }
    }
    for finding in &hardware.not_accelerators {
        let _ = writeln!(text, "  {}", styled(FAINT, &format!("{} ({})", finding.value, finding.established_by)));
    }
    let software = hardware.vulkan.drivers.iter().filter(|driver| driver.kind == DriverKind::Software).count();
    let loader = if hardware.vulkan.loader.is_some() { "loader present" } else { "no loader" };
    let _ = writeln!(
        text,
        "{} {loader}, {} drivers, {software} of them software, which is no accelerator",
        styled(HEADING, "vulkan:   "),
        hardware.vulkan.drivers.len()
    );
    text
}
