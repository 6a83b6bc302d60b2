//! llama.cpp's C interface behind safe types: the only place of this crate with `unsafe`.
//!
//! What is promised here: every pointer is owned by one value that frees it, nothing outlives the model that it belongs to,
//! and no index, token or sequence number reaches C unchecked. What cannot be promised is that the C++ code never calls
//! `abort`: files are therefore checked before they come here (`crate::check`).
#![allow(unsafe_code)]

mod backend;
mod context;
mod log;
mod lora;
mod model;
mod vision;
mod watch;

pub(crate) use backend::{DeviceKind, GgmlDevice, devices, init, missing_instructions, version};
pub(crate) use context::{Context, ContextParams, Input, Row, Verdict};
pub(crate) use log::complaint;
pub(crate) use lora::Lora;
pub(crate) use model::{Model, ModelParams};
pub(crate) use vision::{Frame, Vision, VisionParams};
pub(crate) use watch::{Seen, Watch};

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use consort_core::{Error, ErrorKind, Result};

use crate::config::CacheType;

/// The fused attention kernel computes in half precision.
fn flash_attention(cache: CacheType) -> llama_cpp_sys_2::llama_flash_attn_type {
    match cache {
        CacheType::F16 => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO,
        CacheType::F32 => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }
}

/// A C string as ours; empty for a null pointer.
///
/// # Safety
/// `text` is null, or points to bytes that end with a zero and live through this call.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the rest is the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A path as C wants it.
fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| {
        Error::new(ErrorKind::InvalidConfig, "a path must not contain a zero byte")
            .with_context("path", path.display().to_string())
    })
}
