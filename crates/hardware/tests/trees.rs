//! Machines that are not here, as trees of files.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use consort_hardware::{DriverKind, HardwareReport, InstructionSet, Readiness, Vendor, probe, probe_at};

struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hardware-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn files(self, files: &[(&str, &str)]) -> Self {
        files.iter().fold(self, |tree, (path, text)| tree.file(path, text))
    }

    fn probe(&self) -> HardwareReport {
        let report = probe_at(&self.0);
        // Whatever was found says how, and the report serializes.
        let json = serde_json::to_value(&report).unwrap();
        check_established(&json);
        report
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn check_established(json: &serde_json::Value) {
    if let Some(how) = json.get("established_by") {
        assert!(how.as_str().is_some_and(|how| !how.is_empty()), "{json}");
    }
    match json {
        serde_json::Value::Object(map) => map.values().for_each(check_established),
        serde_json::Value::Array(items) => items.iter().for_each(check_established),
        _ => {}
    }
}

/// Four threads on two cores.
fn four_threads(name: &str) -> Tree {
    let mut tree = Tree::new(name)
        .file(
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Example CPU @ 2.0GHz\nflags\t\t: fpu avx2 fma f16c avx512f avx512bw avx512_vnni amx_tile amx_int8\n\n",
        )
        .file("sys/devices/system/cpu/online", "0-3\n")
        .file("sys/devices/system/cpu/cpu0/cache/index0/size", "48K\n")
        .file("sys/devices/system/cpu/cpu0/cache/index3/size", "36608K\n")
        .file("proc/meminfo", "MemTotal:       16384000 kB\nMemFree: 1 kB\nMemAvailable:    8192000 kB\n")
        .file("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
    for cpu in 0..4 {
        let folder = format!("sys/devices/system/cpu/cpu{cpu}/topology");
        tree = tree
            .file(&format!("{folder}/physical_package_id"), "0\n")
            .file(&format!("{folder}/core_id"), &format!("{}\n", cpu / 2));
    }
    tree
}

#[test]
fn a_plain_machine() {
    let report = four_threads("plain").probe();
    assert_eq!(report.cpu.model.as_ref().unwrap().value, "Example CPU @ 2.0GHz");
    assert_eq!(report.cpu.logical_cores.value, 4);
    assert_eq!(report.cpu.physical_cores.as_ref().unwrap().value, 2);
    assert_eq!(report.cpu.usable_threads.value, 4);
    assert_eq!(report.cpu.last_level_cache.as_ref().unwrap().value, 36608 << 10);
    assert!(report.cpu.has(InstructionSet::Avx512vnni) && report.cpu.has(InstructionSet::AmxInt8));
    assert!(!report.cpu.has(InstructionSet::Avx512bf16) && !report.cpu.has(InstructionSet::Neon));
    assert_eq!(report.memory.total.as_ref().unwrap().value, 16_384_000 * 1024);
    assert_eq!(report.memory.available.as_ref().unwrap().value, 8_192_000 * 1024);
    assert_eq!(report.memory.limit, None);
    assert_eq!(report.os.value.name.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    assert!(report.accelerators.is_empty() && report.vulkan.loader.is_none());
}

#[test]
fn affinity_and_quota_of_version_2_at_any_group() {
    let tree = four_threads("v2")
        .file("proc/self/status", "Name:\tx\nCpus_allowed_list:\t1-3\n")
        .file("proc/self/cgroup", "0::/app.slice/app.service\n");
    let report = tree.probe();
    assert_eq!((report.cpu.usable_threads.value, report.cpu.usable_cores.unwrap().value), (3, 2));

    let tree = tree.file("sys/fs/cgroup/app.slice/app.service/cpu.max", "max 100000\n");
    assert_eq!(tree.probe().cpu.quota, None);
    let tree = tree
        .file("sys/fs/cgroup/app.slice/cpu.max", "150000 100000\n")
        .file("sys/fs/cgroup/app.slice/memory.max", "1073741824\n")
        .file("sys/fs/cgroup/app.slice/memory.current", "805306368\n")
        .file("sys/fs/cgroup/app.slice/memory.stat", "anon 5\ninactive_file 268435456\n")
        .file("sys/fs/cgroup/app.slice/app.service/memory.max", "max\n");
    let report = tree.probe();
    let quota = report.cpu.quota.unwrap();
    assert!((quota.value - 1.5).abs() < 1e-9 && quota.established_by == "/sys/fs/cgroup/app.slice/cpu.max");
    assert_eq!(report.cpu.usable_threads.value, 1);
    assert_eq!(report.memory.total.unwrap().value, 1 << 30);
    assert_eq!(report.memory.available.unwrap().value, 512 << 20);
    assert_eq!(report.memory.limit.unwrap().established_by, "/sys/fs/cgroup/app.slice/memory.max");
    assert_eq!(report.memory.machine_total.unwrap().value, 16_384_000 * 1024);
}

#[test]
fn limits_of_version_1_inside_a_container() {
    // The container's own group is mounted at the top; the path is the host's.
    let tree = four_threads("v1").files(&[
        ("proc/self/cgroup", "12:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n"),
    ]);
    let report = tree.probe();
    assert_eq!(report.cpu.usable_threads.value, 2);
    assert_eq!(report.memory.available.unwrap().value, 2_147_483_648 - 1_000_000);
    let tree = tree.files(&[
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
    ]);
    let report = tree.probe();
    assert_eq!((report.cpu.quota, report.memory.limit, report.cpu.usable_threads.value), (None, None, 4));
}

#[test]
fn an_arm_board() {
    let report = Tree::new("arm")
        .files(&[
            ("proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\nprocessor\t: 1\n"),
            ("sys/class/drm/renderD128/device/uevent", "DRIVER=panthor\nOF_FULLNAME=/gpu@fb000000\n"),
            ("dev/dri/renderD128", ""),
        ])
        .probe();
    assert_eq!(report.cpu.logical_cores.value, 2);
    for set in [InstructionSet::Neon, InstructionSet::Dotprod, InstructionSet::I8mm, InstructionSet::Bf16] {
        assert!(report.cpu.has(set));
    }
    assert!(report.cpu.model.unwrap().value.contains("0xd0c"));
    let gpu = &report.accelerators[0];
    assert_eq!(
        (gpu.vendor, gpu.driver.as_deref(), &gpu.readiness),
        (Vendor::Other, Some("panthor"), &Readiness::Ready)
    );
}

const NVIDIA: [(&str, &str); 5] = [
    (
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: 12.2\n",
    ),
    (
        "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ: 1\nDevice Minor: \t 0\n",
    ),
    ("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n"),
    ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n"),
    ("sys/bus/pci/devices/0000:01:00.0/device", "0x2684\n"),
];

#[test]
fn nvidia_with_and_without_its_driver() {
    let tree = Tree::new("nvidia").files(&NVIDIA);
    let report = tree.probe();
    assert_eq!(report.accelerators.len(), 1);
    let gpu = &report.accelerators[0];
    assert_eq!((gpu.vendor, gpu.name.as_str()), (Vendor::Nvidia, "NVIDIA GeForce RTX 4090"));
    assert_eq!(gpu.driver.as_deref(), Some("nvidia 550.54.15"));
    assert!(matches!(&gpu.readiness, Readiness::NotReady(why) if why.contains("/dev/nvidia0")));

    let tree = tree.files(&[("dev/nvidia0", ""), ("dev/nvidiactl", "")]);
    let report = tree.probe();
    assert_eq!(report.ready_accelerators().count(), 1);
    assert_eq!(report.accelerators[0].address.as_deref(), Some("0000:01:00.0"));

    let bare = Tree::new("nvidia-bare").files(&NVIDIA[2..]);
    let report = bare.probe();
    assert_eq!((report.accelerators.len(), report.ready_accelerators().count()), (1, 0));
    assert!(matches!(&report.accelerators[0].readiness, Readiness::NotReady(why) if why.contains("driver")));

    let container = Tree::new("nvidia-container").files(&[
        ("dev/nvidia3", ""),
        ("dev/nvidiactl", ""),
        ("dev/nvidia-uvm", ""),
        ("dev/nvidia-uvm-tools", ""),
    ]);
    let report = container.probe();
    assert_eq!((report.accelerators.len(), report.ready_accelerators().count()), (1, 1));
    assert_eq!(report.accelerators[0].device_files, ["/dev/nvidiactl", "/dev/nvidia3", "/dev/nvidia-uvm"]);
}

#[test]
fn amd_beside_intel_and_a_server_display() {
    let report = Tree::new("amd")
        .files(&[
            ("sys/bus/pci/devices/0000:03:00.0/class", "0x030000\n"),
            ("sys/bus/pci/devices/0000:03:00.0/vendor", "0x1002\n"),
            ("sys/bus/pci/devices/0000:03:00.0/device", "0x744c\n"),
            ("sys/bus/pci/devices/0000:04:00.0/class", "0x020000\n"),
            ("sys/class/drm/version", "drm 1.1.0\n"),
            ("sys/class/drm/card1-HDMI-A-1/status", "connected\n"),
            ("sys/class/drm/renderD128/device/vendor", "0x1002\n"),
            ("sys/class/drm/renderD128/device/device", "0x744c\n"),
            ("sys/class/drm/renderD128/device/mem_info_vram_total", "25753026560\n"),
            ("sys/class/drm/renderD128/device/uevent", "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n"),
            ("sys/class/drm/renderD129/device/vendor", "0x8086\n"),
            ("sys/class/drm/renderD129/device/device", "0x56a0\n"),
            ("sys/class/drm/renderD129/device/uevent", "DRIVER=i915\nPCI_SLOT_NAME=0000:00:02.0\n"),
            ("sys/class/drm/card2/device/vendor", "0x1a03\n"),
            ("sys/class/drm/card2/device/device", "0x2000\n"),
            ("sys/class/drm/card2/device/uevent", "DRIVER=ast\nPCI_SLOT_NAME=0000:05:00.0\n"),
            ("dev/dri/renderD128", ""),
        ])
        .probe();
    assert_eq!(report.accelerators.len(), 2);
    let amd = report.accelerators.iter().find(|gpu| gpu.vendor == Vendor::Amd).unwrap();
    assert_eq!((amd.memory, &amd.readiness), (Some(25_753_026_560), &Readiness::Ready));
    assert_eq!(amd.device_files, ["/dev/dri/renderD128"]);
    let intel = report.accelerators.iter().find(|gpu| gpu.vendor == Vendor::Intel).unwrap();
    assert!(matches!(&intel.readiness, Readiness::NotReady(why) if why.contains("renderD129")));
    assert_eq!(report.not_accelerators.len(), 1);
    assert!(report.not_accelerators[0].value.contains("ast"));
}

#[test]
fn software_is_no_accelerator() {
    let report = Tree::new("software")
        .files(&[
            ("usr/lib/x86_64-linux-gnu/libvulkan.so.1", ""),
            (
                "usr/share/vulkan/icd.d/lvp_icd.x86_64.json",
                r#"{"ICD": {"api_version": "1.3.255", "library_path": "/usr/lib/libvulkan_lvp.so"}}"#,
            ),
            (
                "usr/share/vulkan/icd.d/radeon_icd.x86_64.json",
                r#"{"ICD": {"library_path": "/usr/lib/libvulkan_radeon.so"}}"#,
            ),
            ("etc/vulkan/icd.d/vk_swiftshader_icd.json", r#"{"ICD": {"library_path": "./libvk_swiftshader.so"}}"#),
            ("etc/vulkan/icd.d/broken.json", "{"),
            ("etc/vulkan/icd.d/README", "x"),
            ("sys/class/drm/renderD128/device/vendor", "0x1af4\n"),
            ("sys/class/drm/renderD128/device/device", "0x1050\n"),
            ("sys/class/drm/renderD128/device/uevent", "DRIVER=virtio-pci\nPCI_SLOT_NAME=0000:00:01.0\n"),
            ("sys/class/drm/renderD129/device/uevent", "DRIVER=vgem\n"),
            ("dev/dri/renderD128", ""),
            ("dev/dri/renderD129", ""),
        ])
        .probe();
    assert!(report.accelerators.is_empty());
    assert_eq!(report.not_accelerators.len(), 2);
    assert_eq!(report.vulkan.loader.unwrap().value, "/usr/lib/x86_64-linux-gnu/libvulkan.so.1");
    let kinds: Vec<_> = report.vulkan.drivers.iter().map(|driver| driver.kind).collect();
    assert_eq!(kinds, [DriverKind::Software, DriverKind::Software, DriverKind::Hardware]);
}

#[test]
fn an_empty_tree_and_one_of_nonsense() {
    let report = Tree::new("empty").probe();
    assert_eq!((report.cpu.logical_cores.value, report.cpu.usable_threads.value), (1, 1));
    assert!(report.memory.total.is_none() && report.accelerators.is_empty());
    let report = Tree::new("nonsense")
        .files(&[
            ("proc/cpuinfo", "\0\u{fffd}:::\nflags\n"),
            ("sys/devices/system/cpu/online", "9-1,,-\n"),
            ("proc/meminfo", "MemTotal: 99999999999999999999 kB\nMemAvailable: 18446744073709551615 kB\n"),
            ("proc/self/cgroup", "0::/../../..\n:::\n"),
            ("sys/fs/cgroup/cpu.max", "100000 0\n"),
            ("sys/fs/cgroup/memory.max", "-5\n"),
            ("sys/bus/pci/devices/x/class", "0xzz\n"),
            ("sys/class/drm/renderD128/device/vendor", "\n"),
            ("proc/driver/nvidia/gpus/y/information", "Model:\n"),
        ])
        .probe();
    assert_eq!(report.cpu.usable_threads.value, 1);
    assert_eq!((report.memory.total, report.cpu.quota), (None, None));
}

#[test]
fn this_machine() {
    let report = probe();
    check_established(&serde_json::to_value(&report).unwrap());
    let cpu = &report.cpu;
    assert!(cpu.usable_threads.value >= 1 && cpu.usable_threads.value <= cpu.logical_cores.value);
    assert!(cpu.physical_cores.as_ref().is_none_or(|cores| cores.value <= cpu.logical_cores.value));
    if cfg!(target_os = "linux") {
        let (total, available) = (report.memory.total.unwrap().value, report.memory.available.unwrap().value);
        assert!(total > 1 << 26 && available <= total);
    }
    println!(
        "{} usable of {} threads, {} instruction sets, {} accelerators",
        cpu.usable_threads.value,
        cpu.logical_cores.value,
        cpu.instruction_sets.len(),
        report.accelerators.len()
    );
}
