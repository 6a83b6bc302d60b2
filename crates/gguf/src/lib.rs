//! Reads and writes GGUF files: bounded, memory-mapped, safe with hostile input.
