//! Makes model files: converts a Hugging Face Qwen3.5 directory to GGUF.
