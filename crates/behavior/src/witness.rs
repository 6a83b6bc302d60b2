//! What this process is seen to use, asked of the operating system and not of an engine.

use consort_core::Device;

/// Whether anything in this process bears out that it computes on `device`.
///
/// A driver that computes on an accelerator is loaded into the process and holds its device file open; a process without
/// either computes on the host whatever it says. This can only refute: a loaded driver is no proof of use.
///
/// # Errors
/// Why it cannot be true.
pub fn sees(device: Device) -> Result<(), String> {
    let needs: &[&str] = match device {
        Device::Cpu | Device::Remote => return Ok(()),
        Device::Metal => {
            return if cfg!(target_os = "macos") || cfg!(target_os = "ios") {
                Ok(())
            } else {
                Err("this system has no Metal".into())
            };
        }
        Device::Cuda(_) => &["libcuda.so", "nvcuda.dll"],
        Device::Vulkan(_) => &["libvulkan", "vulkan-1.dll", "libvulkan_", "libMoltenVK"],
        Device::SoftwareVulkan(_) => &["libvulkan_lvp", "libvk_swiftshader"],
        _ => return Err("this suite does not know the device".into()),
    };
    let Some(mapped) = mapped() else {
        // Systems without /proc are not asked; the suite's other cases remain.
        return Ok(());
    };
    if needs.iter().any(|library| mapped.contains(library)) {
        Ok(())
    } else {
        Err(format!("none of {needs:?} is loaded into this process"))
    }
}

/// The files that are mapped into this process, one a line, where the system tells.
fn mapped() -> Option<String> {
    std::fs::read_to_string("/proc/self/maps").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_its_driver_is_refuted() {
        assert_eq!(sees(Device::Cpu), Ok(()));
        // This test binary links no driver.
        if mapped().is_some() {
            assert!(sees(Device::Cuda(0)).is_err());
            assert!(sees(Device::Vulkan(0)).is_err());
        }
    }
}
