//! Devices: what was asked for, what was seen, and what is admitted.

use std::fmt;

use serde::Serialize;

use crate::{Error, ErrorKind, Result};

/// A kind of device and, where there can be several, which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Device {
    /// The host's processor.
    Cpu,
    /// Apple's GPU through Metal.
    Metal,
    /// An NVIDIA GPU through CUDA, by index.
    Cuda(u32),
    /// A GPU through Vulkan, by index among the GPUs.
    Vulkan(u32),
    /// A Vulkan driver that computes on the host's processor (lavapipe, `SwiftShader`), by index among these. No accelerator,
    /// whatever it calls itself: it is used only when it is named, to try Vulkan where there is no GPU.
    SoftwareVulkan(u32),
    /// Whatever a remote server runs on.
    Remote,
}

impl Device {
    /// Whether computing there leaves the host's processor free.
    #[must_use]
    pub fn is_accelerator(self) -> bool {
        !matches!(self, Self::Cpu | Self::SoftwareVulkan(_))
    }

    /// Whether a Vulkan device or driver of this name computes on the host's processor.
    ///
    /// ```
    /// use consort_core::Device;
    ///
    /// assert!(Device::is_software_vulkan("llvmpipe (LLVM 15.0.6, 256 bits)"));
    /// assert!(!Device::is_software_vulkan("NVIDIA GeForce RTX 4090"));
    /// ```
    #[must_use]
    pub fn is_software_vulkan(name: &str) -> bool {
        const MARKS: [&str; 6] = ["llvmpipe", "lavapipe", "vulkan_lvp", "lvp_", "swiftshader", "swrast"];
        let name = name.to_lowercase();
        MARKS.iter().any(|mark| name.contains(mark))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Metal => f.write_str("metal"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Vulkan(index) => write!(f, "vulkan:{index}"),
            Self::SoftwareVulkan(index) => write!(f, "vulkan-software:{index}"),
            Self::Remote => f.write_str("remote"),
        }
    }
}

/// Which devices may compute. There is no silent fallback: what the policy does not admit fails to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DevicePolicy {
    /// Any accelerator, and no op on the processor. The default.
    #[default]
    AcceleratedOnly,
    /// Exactly this device, because the user named it. The only way to the processor.
    Named(Device),
}

impl DevicePolicy {
    /// Checks evidence against the policy. Every engine calls this at the end of loading.
    ///
    /// # Errors
    /// [`ErrorKind::DevicePolicy`] that names the component which was seen elsewhere, and what to do.
    pub fn admit(self, evidence: &DeviceEvidence) -> Result<()> {
        let refuse = |message: String| {
            Err(Error::new(ErrorKind::DevicePolicy, message)
                .with_operation("device_policy::admit")
                .with_context("backend", evidence.backend.clone())
                .with_context("device", format!("{} ({})", evidence.device, evidence.device_name)))
        };
        let stray = |admitted: fn(Device, Device) -> bool, wanted: Device| {
            evidence.placements.iter().find(|placement| !placement.allowed && !admitted(placement.device, wanted))
        };
        match self {
            Self::AcceleratedOnly => {
                if !evidence.device.is_accelerator() {
                    return refuse(
                        "this would compute on the processor, and only accelerators are admitted: name the processor \
                         (`--device cpu`) to use it, or use a backend that was built for an accelerator of this machine"
                            .into(),
                    );
                }
                match stray(|device, _| device.is_accelerator(), evidence.device) {
                    Some(op) => {
                        refuse(format!("{} was seen on the {}, not on the accelerator", op.component, op.device))
                    }
                    None => Ok(()),
                }
            }
            Self::Named(wanted) => {
                if evidence.device != wanted {
                    return refuse(format!("{wanted} was asked for, and {} would compute", evidence.device));
                }
                match stray(|device, wanted| device == wanted, wanted) {
                    Some(op) => refuse(format!("{} was seen on the {}, not on {wanted}", op.component, op.device)),
                    None => Ok(()),
                }
            }
        }
    }
}

/// How evidence was established.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Proof {
    /// The engine has kernels for this device only; there is nowhere else that an op could run.
    SingleDeviceKernels,
    /// The engine's graph was split by device, and the split was read back.
    GraphSplitAudit,
    /// The runtime told, node by node, which execution provider took it.
    ProviderAssignment,
    /// The runtime told its default device, and the arrays were read back as living there.
    DefaultDeviceQuery,
    /// A remote server says so.
    RemoteReport,
}

/// Where one part of the model was seen to run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Placement {
    /// A layer range or an op, such as `blk.0-23` or `SSM_CONV`.
    pub component: String,
    /// Where it ran.
    pub device: Device,
    /// Whether it is on the engine's short list of what may stay on the host (input embedding look-up).
    pub allowed: bool,
}

/// What was *seen* of the device, as opposed to what was asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceEvidence {
    /// The backend that tells.
    pub backend: String,
    /// Where the bulk of the model computes.
    pub device: Device,
    /// The device's own name, with the kernel set where that matters (`Intel(R) Xeon(R) ..., avx512`).
    pub device_name: String,
    /// Part by part.
    pub placements: Vec<Placement>,
    /// How this is known.
    pub established_by: Proof,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn evidence(device: Device, op: Device) -> DeviceEvidence {
        DeviceEvidence {
            backend: "test".into(),
            device,
            device_name: "a device".into(),
            placements: vec![Placement { component: "SSM_CONV".into(), device: op, allowed: false }],
            established_by: Proof::GraphSplitAudit,
        }
    }

    #[test]
    fn the_processor_is_used_only_when_named() {
        let cpu = evidence(Device::Cpu, Device::Cpu);
        let error = DevicePolicy::default().admit(&cpu).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DevicePolicy);
        assert!(error.to_string().contains("--device cpu"), "{error}");
        DevicePolicy::Named(Device::Cpu).admit(&cpu).unwrap();
        DevicePolicy::Named(Device::Metal).admit(&cpu).unwrap_err();
    }

    #[test]
    fn a_driver_in_software_is_no_accelerator() {
        let software = evidence(Device::SoftwareVulkan(0), Device::SoftwareVulkan(0));
        let error = DevicePolicy::AcceleratedOnly.admit(&software).unwrap_err();
        assert!(error.to_string().contains("vulkan-software:0"), "{error}");
        DevicePolicy::Named(Device::SoftwareVulkan(0)).admit(&software).unwrap();
        DevicePolicy::Named(Device::Vulkan(0)).admit(&software).unwrap_err();
    }

    #[test]
    fn a_stray_op_is_named() {
        let mut mixed = evidence(Device::Vulkan(0), Device::Cpu);
        let error = DevicePolicy::AcceleratedOnly.admit(&mixed).unwrap_err();
        assert!(error.to_string().contains("SSM_CONV"), "{error}");
        mixed.placements[0].allowed = true;
        DevicePolicy::AcceleratedOnly.admit(&mixed).unwrap();
    }
}
