//! Accelerators that can be seen, from the files that the operating system and the drivers show.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::files::{Root, field};
use crate::report::Finding;

/// Who made an accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Vendor {
    /// Nvidia, PCI vendor 10de.
    Nvidia,
    /// AMD, PCI vendor 1002.
    Amd,
    /// Intel, PCI vendor 8086.
    Intel,
    /// Apple: a part of the chip.
    Apple,
    /// Another one, or one that is hidden behind a host.
    Other,
}

/// Whether an engine could try a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// Every file that its driver needs is there. Whether it works, only running on it shows.
    Ready,
    /// Something is missing: what, and what to do.
    NotReady(String),
}

/// An accelerator that can be seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Accelerator {
    /// Who made it.
    pub vendor: Vendor,
    /// Its name, or its PCI ids when nothing names it.
    pub name: String,
    /// Where it sits, e.g. `0000:01:00.0`.
    pub address: Option<String>,
    /// The kernel driver and, where it says so, its version.
    pub driver: Option<String>,
    /// The files through which programs reach it.
    pub device_files: Vec<String>,
    /// Its own memory in bytes, where a file says so.
    pub memory: Option<u64>,
    /// Whether an engine could try it.
    pub readiness: Readiness,
    /// How it was seen.
    pub established_by: String,
}

/// A graphics device as the kernel lists it.
#[derive(Debug, Default)]
struct Seen {
    vendor: Option<u32>,
    device: Option<u32>,
    driver: Option<String>,
    memory: Option<u64>,
    render_nodes: Vec<String>,
    seen_in: Vec<String>,
}

/// Drivers of devices that draw but do not compute: displays of virtual machines and servers.
const DISPLAY_ONLY: [&str; 14] = [
    "ast",
    "bochs",
    "bochs-drm",
    "cirrus",
    "gm12u320",
    "hyperv_drm",
    "mgag200",
    "ofdrm",
    "qxl",
    "simpledrm",
    "simple-framebuffer",
    "udl",
    "vgem",
    "vkms",
];
/// Drivers of a virtual machine's window onto its host's graphics: what is behind it cannot be seen from here.
const HOST_WINDOW: [&str; 4] = ["virtio-pci", "virtio_gpu", "virtio-gpu", "vmwgfx"];

/// Through this the driver is spoken to, whichever device is meant.
const NVIDIA_CONTROL: &str = "/dev/nvidiactl";

pub(crate) fn probe(root: &Root) -> (Vec<Accelerator>, Vec<Finding<String>>) {
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    pci_devices(root, &mut seen);
    drm_devices(root, &mut seen);
    let mut accelerators = nvidia(root, &mut seen);
    let mut others = Vec::new();
    for (address, seen) in seen {
        match judge(root, address, seen) {
            Ok(accelerator) => accelerators.push(accelerator),
            Err(other) => others.push(other),
        }
    }
    if root.exists("dev/dxg") {
        accelerators.push(Accelerator {
            vendor: Vendor::Other,
            name: "the graphics device of the Windows host".to_owned(),
            address: None,
            driver: Some("dxgkrnl".to_owned()),
            device_files: vec!["/dev/dxg".to_owned()],
            memory: None,
            readiness: if root.exists("usr/lib/wsl/lib") {
                Readiness::Ready
            } else {
                Readiness::NotReady("/usr/lib/wsl/lib is missing: update the graphics driver on Windows".to_owned())
            },
            established_by: "/dev/dxg".to_owned(),
        });
    }
    if root.live && cfg!(all(target_os = "macos", target_arch = "aarch64")) {
        accelerators.push(Accelerator {
            vendor: Vendor::Apple,
            name: "Apple GPU (Metal)".to_owned(),
            address: None,
            driver: None,
            device_files: Vec::new(),
            memory: None,
            readiness: Readiness::Ready,
            established_by: "the compilation target: macOS on aarch64 runs on Apple Silicon only".to_owned(),
        });
    }
    (accelerators, others)
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// Display controllers (class 03) and processing accelerators (class 12) on the PCI bus.
fn pci_devices(root: &Root, seen: &mut BTreeMap<String, Seen>) {
    let bus = "sys/bus/pci/devices";
    for address in root.names(bus) {
        let folder = format!("{bus}/{address}");
        let class = root.line(&format!("{folder}/class")).and_then(|text| hex(&text)).unwrap_or(0);
        if !matches!(class >> 16, 0x03 | 0x12) {
            continue;
        }
        let entry = seen.entry(address).or_default();
        entry.seen_in.push(format!("/{folder}/class"));
        describe(root, &folder, entry);
    }
}

/// Devices that the kernel's graphics subsystem has; those of a phone or a board are on no PCI bus.
fn drm_devices(root: &Root, seen: &mut BTreeMap<String, Seen>) {
    let class = "sys/class/drm";
    for node in root.names(class) {
        let is_card = node.strip_prefix("card").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
        let is_render = node.starts_with("renderD");
        if !is_card && !is_render {
            continue;
        }
        let folder = format!("{class}/{node}/device");
        let event = root.read(&format!("{folder}/uevent")).unwrap_or_default();
        let value = |key: &str| event.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let address = value("PCI_SLOT_NAME").or(value("OF_FULLNAME")).unwrap_or(&node).to_owned();
        let entry = seen.entry(address).or_default();
        entry.seen_in.push(format!("/{class}/{node}"));
        describe(root, &folder, entry);
        if is_render {
            entry.render_nodes.push(format!("/dev/dri/{node}"));
        }
    }
}

fn describe(root: &Root, folder: &str, entry: &mut Seen) {
    let id = |name: &str| root.line(&format!("{folder}/{name}")).and_then(|text| hex(&text));
    entry.vendor = entry.vendor.or_else(|| id("vendor"));
    entry.device = entry.device.or_else(|| id("device"));
    entry.memory = entry.memory.or_else(|| root.number(&format!("{folder}/mem_info_vram_total")));
    if entry.driver.is_none() {
        let event = root.read(&format!("{folder}/uevent")).unwrap_or_default();
        entry.driver = event.lines().find_map(|line| line.strip_prefix("DRIVER=")).map(str::to_owned);
    }
}

/// What Nvidia's own driver shows, and Nvidia's devices without it. Takes them out of `seen`.
fn nvidia(root: &Root, seen: &mut BTreeMap<String, Seen>) -> Vec<Accelerator> {
    let version = root.read("proc/driver/nvidia/version").and_then(|text| {
        // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue ..."
        let line = field(&text, "NVRM version")?;
        line.split_whitespace()
            .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
            .map(|version| format!("nvidia {version}"))
    });
    let driver = version.or_else(|| root.exists("proc/driver/nvidia").then(|| "nvidia".to_owned()));
    let mut found = Vec::new();
    let folder = "proc/driver/nvidia/gpus";
    for address in root.names(folder) {
        let path = format!("{folder}/{address}/information");
        let information = root.read(&path).unwrap_or_default();
        let name = field(&information, "Model").filter(|name| !name.is_empty()).unwrap_or("NVIDIA device").to_owned();
        let listed = seen.remove(&address).unwrap_or_default();
        let file = field(&information, "Device Minor").map(|minor| format!("/dev/nvidia{minor}"));
        let wanted: Vec<_> = [NVIDIA_CONTROL.to_owned()].into_iter().chain(file).collect();
        found.push(nvidia_device(root, name, Some(address), driver.clone(), &wanted, format!("/{path}"), listed));
    }
    if found.is_empty() {
        // Some containers show the device files and nothing of /proc/driver.
        let is_gpu = |name: &String| {
            name.strip_prefix("nvidia").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        for name in root.names("dev").into_iter().filter(is_gpu) {
            let path = format!("/dev/{name}");
            let wanted = [NVIDIA_CONTROL.to_owned(), path.clone()];
            let listed = seen.iter().find(|(_, seen)| seen.vendor == Some(0x10de)).map(|(address, _)| address.clone());
            let entry = listed.as_ref().and_then(|address| seen.remove(address)).unwrap_or_default();
            found.push(nvidia_device(root, "NVIDIA device".to_owned(), listed, driver.clone(), &wanted, path, entry));
        }
    }
    found
}

fn nvidia_device(
    root: &Root,
    name: String,
    address: Option<String>,
    driver: Option<String>,
    wanted: &[String],
    established_by: String,
    listed: Seen,
) -> Accelerator {
    let (mut device_files, missing): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|file| root.exists(file));
    // The driver makes this one when a program first computes.
    device_files.extend(["/dev/nvidia-uvm".to_owned()].into_iter().filter(|file| root.exists(file)));
    device_files.extend(listed.render_nodes.into_iter().filter(|file| root.exists(file)));
    let readiness = if missing.is_empty() {
        Readiness::Ready
    } else {
        let missing = missing.join(", ");
        Readiness::NotReady(format!(
            "{missing} missing: load the driver's modules, or pass the device into the container"
        ))
    };
    Accelerator {
        vendor: Vendor::Nvidia,
        name,
        address,
        driver: driver.or(listed.driver),
        device_files,
        memory: listed.memory,
        readiness,
        established_by,
    }
}

/// An accelerator, or why it is none.
fn judge(root: &Root, address: String, seen: Seen) -> Result<Accelerator, Finding<String>> {
    let vendor = match seen.vendor {
        Some(0x10de) => Vendor::Nvidia,
        Some(0x1002) => Vendor::Amd,
        Some(0x8086) => Vendor::Intel,
        _ => Vendor::Other,
    };
    let name = match (seen.vendor, seen.device) {
        (Some(maker), Some(device)) => format!("{vendor:?} {maker:04x}:{device:04x}"),
        _ => seen.driver.clone().unwrap_or_else(|| "unnamed graphics device".to_owned()),
    };
    let established_by = seen.seen_in.join(", ");
    let driver = seen.driver.as_deref().unwrap_or("");
    let is_virtio = seen.vendor == Some(0x1af4);
    if DISPLAY_ONLY.contains(&driver) {
        return Err(Finding::new(format!("{name} ({driver}): a display without compute"), established_by));
    }
    if HOST_WINDOW.contains(&driver) || is_virtio {
        let reason =
            format!("{name} ({driver}): a virtual display; what draws it on the host cannot be seen from here");
        return Err(Finding::new(reason, established_by));
    }
    if vendor == Vendor::Other && seen.render_nodes.is_empty() {
        return Err(Finding::new(
            format!("{name}: a display of an unknown maker without a render node"),
            established_by,
        ));
    }
    let device_files: Vec<_> = seen.render_nodes.iter().filter(|file| root.exists(file)).cloned().collect();
    let readiness = if !device_files.is_empty() {
        Readiness::Ready
    } else if let Some(node) = seen.render_nodes.first() {
        Readiness::NotReady(format!("{node} missing: pass the device into the container"))
    } else if driver.is_empty() {
        Readiness::NotReady("no kernel driver is bound to it: install and load its driver".to_owned())
    } else {
        Readiness::NotReady(format!("the driver {driver} made no render node: install a driver that computes"))
    };
    Ok(Accelerator {
        vendor,
        name,
        address: Some(address),
        driver: seen.driver,
        device_files,
        memory: seen.memory,
        readiness,
        established_by,
    })
}
