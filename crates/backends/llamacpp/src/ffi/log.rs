//! llama.cpp's log lines, as events of `tracing` with the target `llama.cpp`. None reaches the standard error stream.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};

use llama_cpp_sys_2 as sys;
use tracing::Level;

const TARGET: &str = "llama.cpp";
/// Complaints are kept up to this length.
const MOST_COMPLAINTS: usize = 2048;

#[derive(Default)]
struct Lines {
    level: Option<Level>,
    text: String,
    complaints: String,
}

thread_local! {
    static LINES: RefCell<Lines> = RefCell::default();
}

/// Routes the log of the library and of its image part. Called once, before anything else.
pub(super) fn install() {
    // SAFETY: `write` has the signature that both expect, needs no data, and never unwinds.
    unsafe {
        sys::llama_log_set(Some(write), std::ptr::null_mut());
        sys::mtmd_log_set(Some(write), std::ptr::null_mut());
    }
}

/// What the library complained of on this thread since the last call: the reason that its functions do not return.
pub(crate) fn complaint() -> String {
    LINES.with(|lines| {
        let text = lines.try_borrow_mut().map(|mut lines| std::mem::take(&mut lines.complaints)).unwrap_or_default();
        text.trim().to_owned()
    })
}

unsafe extern "C" fn write(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    // A subscriber that panics must not unwind into C++.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: the library hands over a string that ends with a zero and lives through this call.
        let text = unsafe { super::text(text) };
        LINES.with(|lines| {
            if let Ok(mut lines) = lines.try_borrow_mut() {
                lines.take(level, &text);
            }
        });
    }));
}

impl Lines {
    /// Takes a piece of a line; a level that says "continued" belongs to the line before.
    fn take(&mut self, level: sys::ggml_log_level, text: &str) {
        let level = match level {
            sys::GGML_LOG_LEVEL_DEBUG => Level::DEBUG,
            sys::GGML_LOG_LEVEL_WARN => Level::WARN,
            sys::GGML_LOG_LEVEL_ERROR => Level::ERROR,
            sys::GGML_LOG_LEVEL_CONT => self.level.unwrap_or(Level::INFO),
            _ => Level::INFO,
        };
        self.level = Some(level);
        self.text.push_str(text);
        while let Some(end) = self.text.find('\n') {
            let line: String = self.text.drain(..=end).collect();
            self.emit(level, line.trim_end());
        }
    }

    fn emit(&mut self, level: Level, line: &str) {
        if line.is_empty() {
            return;
        }
        if level == Level::ERROR && self.complaints.len() + line.len() < MOST_COMPLAINTS {
            if !self.complaints.is_empty() {
                self.complaints.push_str("; ");
            }
            self.complaints.push_str(line.trim());
        }
        match level {
            Level::ERROR => tracing::error!(target: TARGET, "{line}"),
            Level::WARN => tracing::warn!(target: TARGET, "{line}"),
            Level::INFO => tracing::info!(target: TARGET, "{line}"),
            _ => tracing::debug!(target: TARGET, "{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_pieces() {
        let mut lines = Lines::default();
        lines.take(sys::GGML_LOG_LEVEL_ERROR, "one ");
        assert_eq!(lines.complaints, "");
        lines.take(sys::GGML_LOG_LEVEL_CONT, "line\ntwo");
        assert_eq!((lines.complaints.as_str(), lines.text.as_str()), ("one line", "two"));
        lines.take(sys::GGML_LOG_LEVEL_INFO, "\n");
        assert_eq!((lines.complaints.as_str(), lines.text.as_str()), ("one line", ""));
    }
}
