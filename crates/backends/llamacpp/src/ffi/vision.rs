//! The vision tower: pixels to embeddings.

use std::ffi::c_void;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use consort_core::{Error, ErrorKind, Result};
use llama_cpp_sys_2 as sys;

use super::{GgmlDevice, Model, Watch};
use crate::config::CacheType;

/// How a vision tower is loaded.
#[derive(Debug)]
pub(crate) struct VisionParams<'a> {
    pub(crate) file: &'a Path,
    /// Where it computes; `None`: on the processor.
    pub(crate) device: Option<&'a GgmlDevice>,
    pub(crate) threads: i32,
    pub(crate) cache: CacheType,
    /// The most tokens that an image may take.
    pub(crate) max_tokens: i32,
    pub(crate) watch: Rc<Watch>,
}

/// One frame: eight bits a channel, `[height, width, 3]`.
pub(crate) type Frame = Vec<u8>;

/// A loaded vision tower.
#[derive(Debug)]
pub(crate) struct Vision {
    raw: NonNull<sys::mtmd_context>,
    hidden: usize,
    _watch: Rc<Watch>,
    _model: Rc<Model>,
}

/// Frees what it holds.
struct Owned<T> {
    raw: NonNull<T>,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    fn new(raw: *mut T, free: unsafe extern "C" fn(*mut T)) -> Result<Self> {
        let none = || Error::new(ErrorKind::OutOfMemory, "llama.cpp cannot hold this image");
        Ok(Self { raw: NonNull::new(raw).ok_or_else(none)?, free })
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the value was made by the library, is ours alone, and this is its own function.
        unsafe { (self.free)(self.raw.as_ptr()) };
    }
}

impl Vision {
    /// Loads a file that was checked.
    pub(crate) fn load(model: &Rc<Model>, params: &VisionParams<'_>) -> Result<Self> {
        let file = super::c_path(params.file)?;
        super::complaint();
        // SAFETY: the defaults are a plain struct, the model is alive, the path lives through the call, and the watch is kept
        // beside the tower.
        let raw = unsafe {
            let mut raw = sys::mtmd_context_params_default();
            raw.use_gpu = params.device.is_some();
            raw.device = params.device.map_or(ptr::null_mut(), |device| device.raw);
            raw.print_timings = false;
            raw.n_threads = params.threads;
            raw.flash_attn_type = super::flash_attention(params.cache);
            // A warm-up would encode an image of two thousand tokens.
            raw.warmup = false;
            raw.image_min_tokens = 1;
            raw.image_max_tokens = params.max_tokens;
            raw.cb_eval = Watch::callback();
            raw.cb_eval_user_data = Rc::as_ptr(&params.watch).cast_mut().cast::<c_void>();
            sys::mtmd_init_from_file(file.as_ptr(), model.raw(), raw)
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidModel,
                format!("llama.cpp does not load this vision tower: {}", super::complaint()),
            )
        })?;
        let vision = Self { raw, hidden: model.hidden(), _watch: Rc::clone(&params.watch), _model: Rc::clone(model) };
        // SAFETY: the tower is alive.
        if !unsafe { sys::mtmd_support_vision(vision.raw.as_ptr()) } {
            return Err(Error::new(ErrorKind::InvalidModel, "this file has no vision tower"));
        }
        Ok(vision)
    }

    /// Encodes one image of one frame, or of the two that a patch spans. Gives `[tokens, hidden]`, and how many columns and
    /// rows of tokens the library made of it.
    pub(crate) fn encode(&mut self, frames: &[Frame], (width, height): (u32, u32)) -> Result<(Vec<f32>, [u32; 2])> {
        let invalid =
            |what: &str| Error::new(ErrorKind::InvalidImage, format!("llama.cpp {what}: {}", super::complaint()));
        super::complaint();
        let bytes = 3 * u64::from(width) * u64::from(height);
        if frames.iter().any(|frame| frame.len() as u64 != bytes) {
            return Err(Error::new(ErrorKind::InvalidImage, "a frame does not have the pixels that its size says"));
        }
        let bitmaps = frames
            .iter()
            .map(|frame| {
                // SAFETY: the frame has as many bytes as its size says, and is copied.
                let raw = unsafe { sys::mtmd_bitmap_init(width, height, frame.as_ptr()) };
                let bitmap = Owned::new(raw, sys::mtmd_bitmap_free)?;
                // SAFETY: the bitmap is alive. Two frames of one image become one.
                unsafe { sys::mtmd_bitmap_set_mergeable(bitmap.raw.as_ptr(), frames.len() > 1) };
                Ok(bitmap)
            })
            .collect::<Result<Vec<_>>>()?;
        let parts: Vec<_> = bitmaps
            .iter()
            .map(|bitmap| sys::mtmd_input_part { text: ptr::null(), bitmap: bitmap.raw.as_ptr() })
            .collect();
        let pointers: Vec<*const sys::mtmd_input_part> = parts.iter().map(ptr::from_ref).collect();
        // SAFETY: no arguments.
        let chunks = Owned::new(unsafe { sys::mtmd_input_chunks_init() }, sys::mtmd_input_chunks_free)?;
        // SAFETY: the tower, the list of chunks, the parts and their bitmaps are alive, and there are as many as is told.
        let code = unsafe {
            sys::mtmd_tokenize_from_parts(
                self.raw.as_ptr(),
                chunks.raw.as_ptr(),
                pointers.as_ptr(),
                pointers.len(),
                false,
            )
        };
        if code != 0 {
            return Err(invalid("does not take this image"));
        }
        // SAFETY: indices below the count give chunks, which live as long as their list.
        let mut images = unsafe {
            (0..sys::mtmd_input_chunks_size(chunks.raw.as_ptr()))
                .map(|index| sys::mtmd_input_chunks_get(chunks.raw.as_ptr(), index))
                .filter(|chunk| sys::mtmd_input_chunk_get_type(*chunk) == sys::MTMD_INPUT_CHUNK_TYPE_IMAGE)
                .collect::<Vec<_>>()
        };
        let (Some(image), true) = (images.pop(), images.is_empty()) else {
            return Err(invalid("makes several images of this one"));
        };
        // SAFETY: the chunk is alive and an image's. The last token's position tells the grid.
        let (tokens, last) = unsafe {
            let tokens = sys::mtmd_input_chunk_get_n_tokens(image);
            let inner = sys::mtmd_input_chunk_get_tokens_image(image);
            if tokens == 0 || inner.is_null() {
                return Err(invalid("makes no tokens of this image"));
            }
            (tokens, sys::mtmd_image_tokens_get_decoder_pos(inner, 0, tokens - 1))
        };
        // SAFETY: the tower and the chunk are alive.
        if unsafe { sys::mtmd_encode_chunk(self.raw.as_ptr(), image) } != 0 {
            return Err(Error::new(
                ErrorKind::Unexpected,
                format!("llama.cpp does not encode this image: {}", super::complaint()),
            ));
        }
        // SAFETY: after a chunk was encoded there are `tokens` rows of the text model's width, until the next is.
        let values = unsafe {
            let values = sys::mtmd_get_output_embd(self.raw.as_ptr());
            if values.is_null() {
                return Err(invalid("gives no embedding"));
            }
            std::slice::from_raw_parts(values, tokens * self.hidden).to_vec()
        };
        Ok((values, [last.x.saturating_add(1), last.y.saturating_add(1)]))
    }
}

impl Drop for Vision {
    fn drop(&mut self) {
        // SAFETY: nobody else frees it; the watch and the model are dropped after this.
        unsafe { sys::mtmd_free(self.raw.as_ptr()) };
    }
}
