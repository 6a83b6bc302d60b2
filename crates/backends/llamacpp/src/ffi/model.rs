//! A model that the library has loaded.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use consort_core::{Error, ErrorKind, Result};
use llama_cpp_sys_2 as sys;

use super::GgmlDevice;

/// How a model is loaded.
#[derive(Debug)]
pub(crate) struct ModelParams<'a> {
    /// The file, or the first of several shards.
    pub(crate) file: &'a Path,
    /// Where its layers go; `None`: the processor.
    pub(crate) device: Option<&'a GgmlDevice>,
    /// Whether weights are mapped, and not read.
    pub(crate) mapped: bool,
}

/// A loaded model. Contexts, adapters and vision towers hold it, so that it outlives them.
#[derive(Debug)]
pub(crate) struct Model {
    raw: NonNull<sys::llama_model>,
}

impl Model {
    /// Loads a file that was checked.
    pub(crate) fn load(params: &ModelParams<'_>) -> Result<Rc<Self>> {
        super::init();
        let file = super::c_path(params.file)?;
        // Our own tokenizer speaks, so the library's is the one of its tests, which reads the tokens and no merges: nothing
        // that a tokenizer's data say can make it fail.
        let overrides = [override_text("tokenizer.ggml.model", "test"), end_of_overrides()];
        let mut devices = [params.device.map_or(ptr::null_mut(), |device| device.raw), ptr::null_mut()];
        super::complaint();
        // SAFETY: the defaults are a plain struct. The list of devices ends with null, the overrides end with an empty key,
        // and both live through the call, as does the path.
        let raw = unsafe {
            let mut raw = sys::llama_model_default_params();
            raw.devices = devices.as_mut_ptr();
            raw.n_gpu_layers = if params.device.is_some() { i32::MAX } else { 0 };
            raw.split_mode = sys::LLAMA_SPLIT_MODE_LAYER;
            raw.load_mode = if params.mapped { sys::LLAMA_LOAD_MODE_MMAP } else { sys::LLAMA_LOAD_MODE_NONE };
            raw.kv_overrides = overrides.as_ptr();
            raw.load_mtp = false;
            sys::llama_model_load_from_file(file.as_ptr(), raw)
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            Error::new(ErrorKind::InvalidModel, format!("llama.cpp does not load this model: {}", super::complaint()))
        })?;
        Ok(Rc::new(Self { raw }))
    }

    pub(super) fn raw(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }

    /// Rows of the embedding table, as the library counts them.
    pub(crate) fn vocabulary(&self) -> usize {
        // SAFETY: the model is alive, and its vocabulary lives as long.
        let count = unsafe { sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(self.raw())) };
        usize::try_from(count).unwrap_or(0)
    }

    /// Width of the hidden state, as the library counts it.
    pub(crate) fn hidden(&self) -> usize {
        // SAFETY: the model is alive.
        usize::try_from(unsafe { sys::llama_model_n_embd(self.raw()) }).unwrap_or(0)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: nobody else frees it, and whatever belongs to it holds it.
        unsafe { sys::llama_model_free(self.raw()) };
    }
}

fn override_text(key: &str, value: &str) -> sys::llama_model_kv_override {
    sys::llama_model_kv_override {
        tag: sys::LLAMA_KV_OVERRIDE_TYPE_STR,
        key: fixed(key),
        __bindgen_anon_1: sys::llama_model_kv_override__bindgen_ty_1 { val_str: fixed(value) },
    }
}

fn end_of_overrides() -> sys::llama_model_kv_override {
    override_text("", "")
}

/// A text in a field of 128 bytes, of which the last stays zero.
fn fixed(text: &str) -> [c_char; 128] {
    let mut field = [0; 128];
    let text = CString::new(text).unwrap_or_default();
    for (to, from) in field.iter_mut().zip(text.as_bytes()).take(127) {
        *to = c_char::from_ne_bytes([*from]);
    }
    field
}
