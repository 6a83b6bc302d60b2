//! Where this engine computes, and how that is known.

use consort_core::{Device, DeviceEvidence, Placement, Proof};

use crate::kernels::KernelSet;
use crate::model::shape::{LayerKind, TextShape};

/// There are kernels for the processor only, so everything is there.
pub(crate) fn evidence(kernels: KernelSet, threads: usize, shape: &TextShape, vision: bool) -> DeviceEvidence {
    let on_processor = |component: String| Placement { component, device: Device::Cpu, allowed: false };
    let last = shape.layers.len().saturating_sub(1);
    let mut placements = vec![
        on_processor("token_embd".into()),
        on_processor(format!(
            "blk.0-{last} ({} gated delta net, {} attention)",
            shape.count(LayerKind::Delta),
            shape.count(LayerKind::Attention)
        )),
        on_processor("output".into()),
    ];
    if vision {
        placements.push(on_processor("vision tower".into()));
    }
    DeviceEvidence {
        backend: "native".into(),
        device: Device::Cpu,
        device_name: format!("{}, {}, {threads} threads", processor(), kernels.name()),
        placements,
        established_by: Proof::SingleDeviceKernels,
    }
}

/// The processor's own name where the system tells it, else its architecture.
fn processor() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    told.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
