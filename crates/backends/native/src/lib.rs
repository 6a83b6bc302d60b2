//! The reference engine: Qwen3.5 text and vision on the CPU, from GGUF.
