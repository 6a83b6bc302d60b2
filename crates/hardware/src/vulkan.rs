//! The Vulkan loader and the drivers that are installed, from the loader's own folders.

use consort_core::Device;
use serde::Serialize;
use serde_json::Value;

use crate::files::Root;
use crate::report::Finding;

/// What stands behind a Vulkan driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// A device, if there is one that it fits.
    Hardware,
    /// The processor: lavapipe, SwiftShader. No accelerator, whatever it calls itself.
    Software,
}

/// An installed driver: one manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VulkanDriver {
    /// The library it names.
    pub library: String,
    /// The version of Vulkan it declares.
    pub api_version: Option<String>,
    /// What stands behind it.
    pub kind: DriverKind,
    /// The manifest.
    pub established_by: String,
}

/// The loader and the drivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VulkanReport {
    /// The loader's library, if it is in one of the usual folders.
    pub loader: Option<Finding<String>>,
    /// The drivers whose manifests are in the loader's folders.
    pub drivers: Vec<VulkanDriver>,
}

const LIBRARY_FOLDERS: [&str; 8] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "lib64",
    "usr/local/lib",
];
const MANIFEST_FOLDERS: [&str; 4] =
    ["etc/vulkan/icd.d", "usr/local/etc/vulkan/icd.d", "usr/local/share/vulkan/icd.d", "usr/share/vulkan/icd.d"];

pub(crate) fn probe(root: &Root) -> VulkanReport {
    let loader = LIBRARY_FOLDERS.iter().map(|folder| format!("{folder}/libvulkan.so.1")).find(|path| root.exists(path));
    let loader = loader.map(|path| Finding::new(format!("/{path}"), "the file is there"));
    let mut drivers = Vec::new();
    for folder in MANIFEST_FOLDERS {
        for name in root.names(folder).into_iter().filter(|name| name.ends_with(".json")) {
            let path = format!("{folder}/{name}");
            let manifest: Option<Value> = root.read(&path).and_then(|text| serde_json::from_str(&text).ok());
            let Some(icd) = manifest.as_ref().and_then(|manifest| manifest.get("ICD")) else { continue };
            let Some(library) = icd.get("library_path").and_then(Value::as_str) else { continue };
            let software = Device::is_software_vulkan(library) || Device::is_software_vulkan(&name);
            drivers.push(VulkanDriver {
                library: library.to_owned(),
                api_version: icd.get("api_version").and_then(Value::as_str).map(str::to_owned),
                kind: if software { DriverKind::Software } else { DriverKind::Hardware },
                established_by: format!("/{path}"),
            });
        }
    }
    VulkanReport { loader, drivers }
}
