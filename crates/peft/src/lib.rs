//! Reads PEFT LoRA adapters: adapter_config.json and safetensors, bounded.
