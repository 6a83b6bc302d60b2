//! A context: the memory of all sequences, and the batches that run over it.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use consort_core::{Error, ErrorKind, Result};
use llama_cpp_sys_2 as sys;

use super::{Lora, Model, Watch};
use crate::config::CacheType;

/// How a context is made.
#[derive(Debug)]
pub(crate) struct ContextParams {
    /// Tokens whose keys and values it holds, over all sequences.
    pub(crate) cells: u32,
    /// The most tokens of one batch.
    pub(crate) batch: u32,
    /// Sequences that it holds, each with a recurrent state of its own.
    pub(crate) sequences: u32,
    pub(crate) threads: i32,
    pub(crate) cache: CacheType,
    /// Whether layers and caches are on a GPU.
    pub(crate) offload: bool,
    /// Who watches its graphs.
    pub(crate) watch: Option<Rc<Watch>>,
}

/// What stands in one row of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Input<'a> {
    /// A token, at a position whose components are equal.
    Token(u32),
    /// An embedding, `[hidden]`.
    Embedding(&'a [f32]),
}

/// One row of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) slot: u32,
    pub(crate) input: Input<'a>,
    /// Time, height, width.
    pub(crate) position: [i32; 3],
    /// Whether logits (and embeddings, when they are on) are wanted here.
    pub(crate) output: bool,
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// There is no room for it; nothing was done.
    NoRoom,
    /// The library does not take it; nothing was done.
    Invalid,
    /// It failed on the way, with this code: parts of it may be done.
    Failed(i32),
}

/// The memory of many sequences of one model.
#[derive(Debug)]
pub(crate) struct Context {
    raw: NonNull<sys::llama_context>,
    batch: NonNull<sys::llama_batch_ext>,
    memory: sys::llama_memory_t,
    hidden: usize,
    vocabulary: usize,
    sequences: u32,
    rows: usize,
    outputs: Vec<bool>,
    /// The adapters that now apply: they must live as long as they do.
    adapters: Vec<(Rc<Lora>, f32)>,
    embeddings: bool,
    _watch: Option<Rc<Watch>>,
    _model: Rc<Model>,
}

impl Context {
    pub(crate) fn new(model: &Rc<Model>, params: &ContextParams) -> Result<Self> {
        super::complaint();
        let cache = match params.cache {
            CacheType::F32 => sys::GGML_TYPE_F32,
            CacheType::F16 => sys::GGML_TYPE_F16,
        };
        // SAFETY: the defaults are a plain struct, the model is alive, and the watch is kept beside the context.
        let raw = unsafe {
            let mut raw = sys::llama_context_default_params();
            raw.n_ctx = params.cells;
            raw.n_batch = params.batch;
            raw.n_ubatch = params.batch;
            raw.n_seq_max = params.sequences;
            raw.n_threads = params.threads;
            raw.n_threads_batch = params.threads;
            raw.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
            raw.flash_attn_type = super::flash_attention(params.cache);
            raw.type_k = cache;
            raw.type_v = cache;
            raw.offload_kqv = params.offload;
            raw.op_offload = params.offload;
            raw.no_perf = true;
            // One buffer for all sequences, so that a copy of a past shares its cells.
            raw.kv_unified = true;
            if let Some(watch) = &params.watch {
                raw.cb_eval = Watch::callback();
                raw.cb_eval_user_data = Rc::as_ptr(watch).cast_mut().cast::<c_void>();
            }
            sys::llama_init_from_model(model.raw(), raw)
        };
        let failed = || {
            Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "llama.cpp makes no context of {} tokens and {} sequences (fewer may fit): {}",
                    params.cells,
                    params.sequences,
                    super::complaint()
                ),
            )
        };
        let raw = NonNull::new(raw).ok_or_else(failed)?;
        // SAFETY: the context is alive.
        let (batch, memory) = unsafe { (sys::llama_batch_ext_init(raw.as_ptr()), sys::llama_get_memory(raw.as_ptr())) };
        let Some(batch) = NonNull::new(batch).filter(|_| !memory.is_null()) else {
            // SAFETY: it was just made, and nobody else knows it.
            unsafe { sys::llama_free(raw.as_ptr()) };
            return Err(Error::new(ErrorKind::InvalidModel, "llama.cpp keeps no memory for this model"));
        };
        // SAFETY: the context is alive.
        let (sequences, rows) =
            unsafe { (sys::llama_n_seq_max(raw.as_ptr()), sys::llama_n_batch(raw.as_ptr()) as usize) };
        Ok(Self {
            raw,
            batch,
            memory,
            hidden: model.hidden(),
            vocabulary: model.vocabulary(),
            sequences,
            rows,
            outputs: Vec::new(),
            adapters: Vec::new(),
            embeddings: false,
            _watch: params.watch.clone(),
            _model: Rc::clone(model),
        })
    }

    /// How many tokens' keys and values it holds.
    pub(crate) fn cells(&self) -> usize {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_ctx(self.raw.as_ptr()) as usize }
    }

    /// The most rows of one batch.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// How many sequences it holds.
    pub(crate) fn sequences(&self) -> u32 {
        self.sequences
    }

    /// Applies these adapters, and no others, to the batches that follow.
    pub(crate) fn set_adapters(&mut self, adapters: Vec<(Rc<Lora>, f32)>) -> bool {
        let same = self.adapters.len() == adapters.len()
            && self.adapters.iter().zip(&adapters).all(|(one, two)| Rc::ptr_eq(&one.0, &two.0) && one.1 == two.1);
        if same {
            return true;
        }
        let mut raws: Vec<_> = adapters.iter().map(|(lora, _)| lora.raw()).collect();
        let mut scales: Vec<f32> = adapters.iter().map(|(_, scale)| *scale).collect();
        // SAFETY: the context and the adapters are alive; both arrays have as many entries as are told, and are read only
        // during the call. The adapters are held below as long as they apply.
        let set = unsafe {
            sys::llama_set_adapters_lora(self.raw.as_ptr(), raws.as_mut_ptr(), raws.len(), scales.as_mut_ptr())
        };
        if set == 0 {
            self.adapters = adapters;
        }
        set == 0
    }

    /// Applies none, where nobody but this context holds one of those that apply.
    pub(crate) fn forget_unused_adapters(&mut self) {
        if self.adapters.iter().any(|(lora, _)| Rc::strong_count(lora) == 1) {
            self.set_adapters(Vec::new());
        }
    }

    /// Whether the outputs that follow have hidden states after the final norm beside logits. Then every row is an output.
    pub(crate) fn set_embeddings(&mut self, on: bool) {
        if self.embeddings != on {
            // SAFETY: the context is alive.
            unsafe { sys::llama_set_embeddings(self.raw.as_ptr(), on) };
            self.embeddings = on;
        }
    }

    /// Runs one batch. Rows of a sequence stand in the order of their positions.
    pub(crate) fn decode(&mut self, rows: &[Row<'_>]) -> Verdict {
        self.outputs.clear();
        super::complaint();
        if rows.is_empty() || rows.len() > self.rows || !self.fill(rows) {
            return Verdict::Invalid;
        }
        // SAFETY: the batch was filled for this context, and both are alive.
        let code =
            unsafe { sys::llama_process(self.raw.as_ptr(), sys::LLAMA_PROCESS_TYPE_DECODE, self.batch.as_ptr()) };
        match code {
            0 => {
                self.outputs.extend(rows.iter().map(|row| row.output || self.embeddings));
                Verdict::Done
            }
            1 => Verdict::NoRoom,
            -1 => Verdict::Invalid,
            code => Verdict::Failed(code),
        }
    }

    fn fill(&mut self, rows: &[Row<'_>]) -> bool {
        let batch = self.batch.as_ptr();
        // SAFETY: the batch is alive. Tokens and sequences are checked here against the vocabulary and the context;
        // embeddings have the width that is told, and are copied during the call, as is the position, of which the library
        // reads one number for a token and four for an embedding.
        unsafe {
            sys::llama_batch_ext_clear(batch);
            rows.iter().all(|row| {
                if row.slot >= self.sequences {
                    return false;
                }
                let slot = row.slot as i32;
                let index = match row.input {
                    Input::Token(token) if (token as usize) < self.vocabulary => {
                        sys::llama_batch_ext_add_token(batch, slot, token as i32)
                    }
                    Input::Embedding(values) if values.len() == self.hidden => {
                        let embedding = sys::llama_embd { data: values.as_ptr(), n_rows: 1, n_embd: values.len() };
                        sys::llama_batch_ext_add_embd(batch, slot, embedding)
                    }
                    _ => return false,
                };
                let [t, h, w] = row.position;
                index >= 0
                    && sys::llama_batch_ext_set_pos(batch, index, [t, h, w, 0].as_ptr())
                    && sys::llama_batch_ext_set_output_logits(batch, index, row.output || self.embeddings)
            })
        }
    }

    /// Makes every batch that follows fail on the way, or no longer.
    #[cfg(test)]
    pub(crate) fn abort(&mut self, on: bool) {
        unsafe extern "C" fn always(_: *mut c_void) -> bool {
            true
        }
        let callback: sys::ggml_abort_callback = if on { Some(always) } else { None };
        // SAFETY: the context is alive, and the callback needs no data.
        unsafe { sys::llama_set_abort_callback(self.raw.as_ptr(), callback, ptr::null_mut()) };
    }

    /// The logits `[vocabulary]` at a row of the last batch, if that was done and they were wanted there.
    pub(crate) fn logits(&self, row: usize) -> Option<&[f32]> {
        self.outputs.get(row).copied().filter(|output| *output)?;
        // SAFETY: the row is an output of the last batch, so the library has `vocabulary` numbers for it, which stay until
        // the next batch; that needs `&mut self`.
        unsafe {
            let values = sys::llama_get_logits_ith(self.raw.as_ptr(), i32::try_from(row).ok()?);
            (!values.is_null()).then(|| std::slice::from_raw_parts(values, self.vocabulary))
        }
    }

    /// The hidden state `[hidden]` at a row of the last batch, if that was done with embeddings on.
    pub(crate) fn embedding(&self, row: usize) -> Option<&[f32]> {
        self.outputs.get(row).copied().filter(|output| *output && self.embeddings)?;
        // SAFETY: as for the logits; without pooling there is a state of the model's width for each output.
        unsafe {
            let values = sys::llama_get_embeddings_ith(self.raw.as_ptr(), i32::try_from(row).ok()?);
            (!values.is_null()).then(|| std::slice::from_raw_parts(values, self.hidden))
        }
    }

    /// Gives `to`, which is empty, the past of `from`: cells are shared, the recurrent state until one of them writes.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        if from < self.sequences && to < self.sequences {
            // SAFETY: the context is alive, and both sequences are among its own.
            unsafe { sys::llama_memory_seq_cp(self.memory, from as i32, to as i32, -1, -1) };
        }
    }

    /// Forgets a sequence's past.
    pub(crate) fn clear(&mut self, slot: u32) -> bool {
        // SAFETY: the context is alive, and the sequence is among its own.
        slot < self.sequences && unsafe { sys::llama_memory_seq_rm(self.memory, slot as i32, -1, -1) }
    }

    /// Forgets every sequence's past.
    pub(crate) fn clear_all(&mut self) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_clear(self.memory, true) };
    }

    /// The largest position of a sequence, or −1.
    #[cfg(test)]
    pub(crate) fn end(&self, slot: u32) -> i32 {
        if slot >= self.sequences {
            return -1;
        }
        // SAFETY: the context is alive, and the sequence is among its own.
        unsafe { sys::llama_memory_seq_pos_max(self.memory, slot as i32) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nobody else frees them, the batch goes before its context, and the adapters, the watch and the model are
        // dropped after this.
        unsafe {
            sys::llama_batch_ext_free(self.batch.as_ptr());
            sys::llama_set_adapters_lora(self.raw.as_ptr(), ptr::null_mut(), 0, ptr::null_mut());
            sys::llama_free(self.raw.as_ptr());
        }
    }
}
