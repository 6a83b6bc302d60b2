//! Image decoding under limits, the family's image processor and M-RoPE positions.
