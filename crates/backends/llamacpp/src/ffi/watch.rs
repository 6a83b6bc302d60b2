//! Which operation runs on which device: the scheduler of the library's graph is asked, node by node.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;

use llama_cpp_sys_2 as sys;

/// Nodes beyond this are not recorded.
const MOST_NODES: usize = 1 << 16;

/// One node of a graph that was computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The operation (`MUL_MAT`).
    pub(crate) op: String,
    /// The node's own name, which ends with `-N` for layer N.
    pub(crate) node: String,
    /// The first operand's name: the weights, for a matrix product or a look-up.
    pub(crate) operand: String,
    /// Whether the result lies in the host's memory: it was computed by the processor.
    pub(crate) on_host: bool,
    /// The memory in which the result lies (`CPU`, `Vulkan0`).
    pub(crate) memory: String,
}

/// Watches graphs while it is on.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    on: Cell<bool>,
    seen: RefCell<Vec<Seen>>,
}

impl Watch {
    pub(crate) fn start(&self) {
        self.on.set(true);
    }

    /// What was seen since [`start`](Self::start).
    pub(crate) fn stop(&self) -> Vec<Seen> {
        self.on.set(false);
        self.seen.take()
    }

    /// What the library is to call, with a pointer to a watch that outlives the graphs.
    pub(super) fn callback() -> sys::ggml_backend_sched_eval_callback {
        Some(look)
    }

    /// # Safety
    /// `node` is a node of a graph that is allocated, and lives through this call.
    unsafe fn record(&self, node: *const sys::ggml_tensor) {
        // SAFETY: the caller's promise; operands of a node live as long as it does.
        unsafe {
            let op = (*node).op;
            let moves_nothing = [
                sys::GGML_OP_NONE,
                sys::GGML_OP_VIEW,
                sys::GGML_OP_RESHAPE,
                sys::GGML_OP_PERMUTE,
                sys::GGML_OP_TRANSPOSE,
            ];
            let owner = if (*node).view_src.is_null() { node } else { (*node).view_src.cast_const() };
            if moves_nothing.contains(&op) || (*owner).buffer.is_null() {
                return;
            }
            let memory = sys::ggml_backend_buffer_get_type((*owner).buffer);
            let operand = (*node).src[0];
            let Ok(mut seen) = self.seen.try_borrow_mut() else { return };
            if seen.len() < MOST_NODES {
                seen.push(Seen {
                    op: super::text(sys::ggml_op_desc(node)),
                    node: super::text((*node).name.as_ptr()),
                    operand: if operand.is_null() { String::new() } else { super::text((*operand).name.as_ptr()) },
                    on_host: sys::ggml_backend_buft_is_host(memory),
                    memory: super::text(sys::ggml_backend_buft_name(memory)),
                });
            }
        }
    }
}

/// Asked before a node is computed, when its memory is known. The answer "no" lets a whole part of a graph run at once.
unsafe extern "C" fn look(node: *mut sys::ggml_tensor, ask: bool, watch: *mut c_void) -> bool {
    if !ask {
        return true;
    }
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: the pointer was made from a watch that outlives the context that calls this, on this thread.
        let watch = unsafe { &*watch.cast::<Watch>() };
        if watch.on.get() {
            // SAFETY: the library asks about nodes of a graph that it has allocated.
            unsafe { watch.record(node) };
        }
    }));
    false
}
