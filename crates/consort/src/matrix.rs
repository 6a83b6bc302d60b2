//! The table of backends: what each declares and where it was verified, as Markdown for the README.
//!
//! A row is made of what its backend says when it runs the bundled model, so that no table says what the code does not.

use std::fmt::Write as _;

use consort_core::{AdapterMode, Capability, Device, DevicePolicy, Result};

use crate::{Backend, LoadConfig, ModelFiles};

/// How far a kind of device was tried with a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// The behaviour suites were run there.
    Suites,
    /// It answered on a driver that computes on the processor; nobody has run it on a device.
    Software,
    /// Nobody has run it.
    Nobody,
}

/// The table's head.
pub const HEAD: &str = "\
| backend | devices | images | sequences | fork | park | rollback | adapters | hot swap | activated adapters | log probabilities \
| embeddings | top k on the device | pasts to disk | batch invariant | tolerance |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// The row of one backend, which loads the bundled model on the processor.
///
/// # Errors
/// As [`load`](crate::load).
pub fn row(backend: Backend) -> Result<String> {
    let config = LoadConfig {
        backend: Some(backend),
        policy: DevicePolicy::Named(Device::Cpu),
        ..LoadConfig::new(ModelFiles::Bundled)
    };
    let capability = crate::engine::open_engine(&config)?.capability();
    let mut row = format!("| `{}` | {} |", backend.name(), devices(backend));
    for cell in cells(&capability) {
        let _ = write!(row, " {cell} |");
    }
    row.push('\n');
    Ok(row)
}

fn devices(backend: Backend) -> String {
    let devices = backend.devices().iter().map(|(device, verified)| match verified {
        Verified::Suites => format!("{device}: verified"),
        Verified::Software => format!("{device}: on a driver in software only"),
        Verified::Nobody => format!("{device}: run by nobody"),
    });
    devices.collect::<Vec<_>>().join("; ")
}

fn cells(capability: &Capability) -> [String; 14] {
    let mark = |declared: bool| if declared { "yes" } else { "no" }.to_owned();
    let fork = match (capability.fork, capability.fork_is_shallow) {
        (true, true) => "shares",
        (true, false) => "copies",
        (false, _) => "no",
    };
    let adapters = match capability.adapter_mode {
        AdapterMode::None => "no",
        AdapterMode::Exclusive => "one set",
        AdapterMode::Grouped => "one set a batch",
        AdapterMode::MixedBatch => "each sequence its own",
    };
    let logprobs = match (capability.logprobs, capability.prompt_logprobs) {
        (true, true) => "reply and prompt",
        (true, false) => "reply",
        (false, _) => "no",
    };
    [
        mark(capability.image_input),
        capability.max_sequences.to_string(),
        fork.to_owned(),
        mark(capability.park),
        if capability.max_rollback == 0 { "no".to_owned() } else { format!("{} tokens", capability.max_rollback) },
        adapters.to_owned(),
        mark(capability.adapter_hot_swap),
        mark(capability.activated_adapters),
        logprobs.to_owned(),
        mark(capability.embeddings),
        mark(capability.device_top_k),
        mark(capability.snapshot_to_disk),
        mark(capability.batch_invariant),
        if capability.logit_tolerance == 0.0 { "same bits".to_owned() } else { capability.logit_tolerance.to_string() },
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_readme_has_the_row_of_every_compiled_backend() {
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(HEAD), "the README's table has another head; it should be:\n{HEAD}");
        for backend in crate::backends() {
            let row = row(backend).unwrap();
            assert!(readme.contains(&row), "the README lacks this row (`consort doctor --matrix` prints all):\n{row}");
        }
    }
}
