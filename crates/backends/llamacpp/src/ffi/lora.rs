//! An adapter that the library has loaded.

use std::path::Path;
use std::ptr::NonNull;
use std::rc::Rc;

use consort_core::{Error, ErrorKind, Result};
use llama_cpp_sys_2 as sys;

use super::Model;

/// Adapter weights in the library's memory.
#[derive(Debug)]
pub(crate) struct Lora {
    raw: NonNull<sys::llama_adapter_lora>,
    /// An adapter is registered with its model, which must outlive it.
    _model: Rc<Model>,
}

impl Lora {
    /// Loads a GGUF file that we wrote.
    pub(crate) fn load(model: &Rc<Model>, file: &Path) -> Result<Self> {
        let file = super::c_path(file)?;
        super::complaint();
        // SAFETY: the model is alive, and the path lives through the call.
        let raw = unsafe { sys::llama_adapter_lora_init(model.raw(), file.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidAdapter,
                format!("llama.cpp does not load this adapter: {}", super::complaint()),
            )
        })?;
        Ok(Self { raw, _model: Rc::clone(model) })
    }

    pub(super) fn raw(&self) -> *mut sys::llama_adapter_lora {
        self.raw.as_ptr()
    }
}

impl Drop for Lora {
    fn drop(&mut self) {
        // SAFETY: nobody else frees it, its model is alive, and a context that applies it holds it.
        unsafe { sys::llama_adapter_lora_free(self.raw()) };
    }
}
