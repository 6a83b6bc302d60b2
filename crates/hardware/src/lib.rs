//! What this device has: processor features, memory and accelerators.
