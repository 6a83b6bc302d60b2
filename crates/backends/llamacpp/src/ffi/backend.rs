//! The library as a whole: its devices, and what it was compiled for.

use std::sync::{Mutex, Once, PoisonError};

use llama_cpp_sys_2 as sys;

/// What kind of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Processor,
    Gpu,
    /// What helps the processor (BLAS, AMX): not chosen, and not expected in evidence.
    Helper,
}

/// A device that the library knows.
#[derive(Debug, Clone)]
pub(crate) struct GgmlDevice {
    pub(super) raw: sys::ggml_backend_dev_t,
    /// The library's name (`CPU`, `Vulkan0`).
    pub(crate) name: String,
    /// The device's own name.
    pub(crate) description: String,
    /// Who drives it (`CPU`, `CUDA`, `Vulkan`, `Metal`).
    pub(crate) driver: String,
    pub(crate) kind: DeviceKind,
    /// All of its memory, in bytes; 0 where it does not tell.
    pub(crate) memory: u64,
}

/// Starts the library, once for the process.
pub(crate) fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        super::log::install();
        // SAFETY: called once, before any other function of the library but for the log's.
        unsafe { sys::llama_backend_init() };
    });
}

/// The library's version, as it tells it.
pub(crate) fn version() -> String {
    // SAFETY: a static string.
    unsafe { super::text(sys::llama_version()) }
}

/// Every device of this build and this machine. [`init`] has been called.
pub(crate) fn devices() -> Vec<GgmlDevice> {
    // Devices are listed when they are first asked for, which is not said to be safe from several threads.
    static LOCK: Mutex<()> = Mutex::new(());
    let _lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: indices below the count give devices, which live as long as the process.
    unsafe {
        (0..sys::ggml_backend_dev_count())
            .map(|index| {
                let raw = sys::ggml_backend_dev_get(index);
                let (mut free, mut total) = (0_usize, 0_usize);
                sys::ggml_backend_dev_memory(raw, &raw mut free, &raw mut total);
                let kind = match sys::ggml_backend_dev_type(raw) {
                    sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Processor,
                    sys::GGML_BACKEND_DEVICE_TYPE_GPU | sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::Gpu,
                    _ => DeviceKind::Helper,
                };
                GgmlDevice {
                    raw,
                    name: super::text(sys::ggml_backend_dev_name(raw)),
                    description: super::text(sys::ggml_backend_dev_description(raw)).trim().to_owned(),
                    driver: super::text(sys::ggml_backend_reg_name(sys::ggml_backend_dev_backend_reg(raw))),
                    kind,
                    memory: total as u64,
                }
            })
            .collect()
    }
}

/// Instructions that this processor has, that make the library several times faster, and that it was not compiled for.
pub(crate) fn missing_instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: these functions tell constants of the compilation.
        let compiled = unsafe {
            [
                ("AVX", sys::ggml_cpu_has_avx(), std::arch::is_x86_feature_detected!("avx")),
                ("AVX2", sys::ggml_cpu_has_avx2(), std::arch::is_x86_feature_detected!("avx2")),
                ("FMA", sys::ggml_cpu_has_fma(), std::arch::is_x86_feature_detected!("fma")),
                ("F16C", sys::ggml_cpu_has_f16c(), std::arch::is_x86_feature_detected!("f16c")),
            ]
        };
        compiled.into_iter().filter(|(_, compiled, there)| *compiled == 0 && *there).map(|(name, _, _)| name).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: these functions tell constants of the compilation.
        let compiled = unsafe {
            [
                ("NEON", sys::ggml_cpu_has_neon(), true),
                ("DOTPROD", sys::ggml_cpu_has_dotprod(), std::arch::is_aarch64_feature_detected!("dotprod")),
            ]
        };
        compiled.into_iter().filter(|(_, compiled, there)| *compiled == 0 && *there).map(|(name, _, _)| name).collect()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}
