//! Norms.

use crate::kernels::KernelSet;

/// `row · w / √(mean(row²) + ε)`, in place. GGUF stores what transformers applies as 1 + w, so w is all.
pub(crate) fn rms(kernels: KernelSet, row: &mut [f32], weight: &[f32], epsilon: f32) {
    let scale = 1.0 / (kernels.dot(row, row) / row.len() as f32 + epsilon).sqrt();
    for (x, w) in row.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

/// The same for each row of `x`, into a new buffer.
pub(crate) fn rms_rows(kernels: KernelSet, x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = x.to_vec();
    for row in out.chunks_exact_mut(weight.len()) {
        rms(kernels, row, weight, epsilon);
    }
    out
}

/// `row · scale / √(Σ row² + 10⁻⁶)`, in place: how the delta net normalises queries and keys.
pub(crate) fn l2(kernels: KernelSet, row: &mut [f32], scale: f32) {
    let scale = scale / (kernels.dot(row, row) + 1e-6).sqrt();
    for x in row {
        *x *= scale;
    }
}

/// Layer norm with bias of each row of `x`, into a new buffer.
pub(crate) fn layer_rows(kernels: KernelSet, x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = x.to_vec();
    for row in out.chunks_exact_mut(weight.len()) {
        let mean = row.iter().sum::<f32>() / row.len() as f32;
        for x in row.iter_mut() {
            *x -= mean;
        }
        let scale = 1.0 / (kernels.dot(row, row) / row.len() as f32 + epsilon).sqrt();
        for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
            *x = *x * scale * w + b;
        }
    }
    out
}
