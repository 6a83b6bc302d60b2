//! Which of the library's devices a policy means.

use consort_core::{Device, DevicePolicy, Error, ErrorKind, Result};

use crate::ffi::{DeviceKind, GgmlDevice};

/// Where the model is to compute, and how this is called.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// The GPU; `None`: the processor alone.
    pub(crate) gpu: Option<GgmlDevice>,
    pub(crate) device: Device,
}

/// Chooses among what the build and the machine have.
pub(crate) fn choose(policy: DevicePolicy, devices: &[GgmlDevice]) -> Result<Chosen> {
    let gpus: Vec<(Device, &GgmlDevice)> = gpus(devices);
    let found = match policy {
        DevicePolicy::Named(Device::Cpu) => return Ok(Chosen { gpu: None, device: Device::Cpu }),
        DevicePolicy::Named(wanted) => gpus.iter().find(|(device, _)| *device == wanted),
        DevicePolicy::AcceleratedOnly => gpus.iter().find(|(device, _)| device.is_accelerator()),
    };
    if let Some((device, gpu)) = found {
        return Ok(Chosen { gpu: Some((*gpu).clone()), device: *device });
    }
    let drivers = compiled();
    let there: Vec<String> = gpus.iter().map(|(device, gpu)| format!("{device} ({})", gpu.description)).collect();
    let wanted = match policy {
        DevicePolicy::Named(wanted) => wanted.to_string(),
        DevicePolicy::AcceleratedOnly => "an accelerator".to_owned(),
    };
    let message = match (drivers.is_empty(), there.is_empty()) {
        (true, _) => format!(
            "this build of llama.cpp computes on the processor alone, and {wanted} was asked for: build with the feature \
             metal, cuda or vulkan, or name the processor (`--device cpu`)"
        ),
        (false, true) => format!(
            "llama.cpp sees no device through {}, and {wanted} was asked for: check the driver, or name the processor \
             (`--device cpu`)",
            drivers.join(" and ")
        ),
        (false, false) => format!(
            "llama.cpp sees {}, and {wanted} was asked for: name one of these, or the processor (`--device cpu`)",
            there.join(", ")
        ),
    };
    Err(Error::new(ErrorKind::DevicePolicy, message).with_operation("llamacpp::load"))
}

/// The interfaces to GPUs that this build has.
fn compiled() -> Vec<&'static str> {
    let all =
        [("Metal", cfg!(feature = "metal")), ("CUDA", cfg!(feature = "cuda")), ("Vulkan", cfg!(feature = "vulkan"))];
    all.into_iter().filter(|(_, compiled)| *compiled).map(|(name, _)| name).collect()
}

/// GPUs and what passes for one, each counted within its kind.
fn gpus(devices: &[GgmlDevice]) -> Vec<(Device, &GgmlDevice)> {
    let (mut cuda, mut vulkan, mut software) = (0, 0, 0);
    let next = |count: &mut u32| {
        *count += 1;
        *count - 1
    };
    devices
        .iter()
        .filter(|device| device.kind == DeviceKind::Gpu)
        .filter_map(|device| {
            let name = match device.driver.as_str() {
                "CUDA" => Device::Cuda(next(&mut cuda)),
                "Vulkan" if Device::is_software_vulkan(&device.description) => {
                    Device::SoftwareVulkan(next(&mut software))
                }
                "Vulkan" => Device::Vulkan(next(&mut vulkan)),
                "Metal" | "MTL" => Device::Metal,
                _ => return None,
            };
            Some((name, device))
        })
        .collect()
}
