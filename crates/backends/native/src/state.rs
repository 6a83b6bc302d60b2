//! Recurrent and convolution states of one sequence. Sequences share one until one of them writes.

use std::sync::Arc;

use crate::memory::{Counted, Kind, Ledger};
use crate::model::shape::{LayerKind, TextShape};

/// How a model's states are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateShape {
    /// Delta net layers.
    layers: usize,
    /// Numbers of a layer's recurrent state, `[value_heads, value_dim, key_dim]`.
    recurrent: usize,
    /// Numbers of a layer's convolution window, `[taps - 1, channels]`.
    window: usize,
}

impl StateShape {
    pub(crate) fn new(shape: &TextShape) -> Self {
        let delta = &shape.delta;
        Self {
            layers: shape.count(LayerKind::Delta),
            recurrent: delta.values() * delta.key_dim,
            window: (delta.conv - 1) * delta.channels(),
        }
    }

    /// Bytes of a state.
    pub(crate) fn bytes(self) -> u64 {
        4 * (self.layers * (self.recurrent + self.window)) as u64
    }
}

/// The states of all delta net layers, f32.
#[derive(Debug, Clone)]
pub(crate) struct State {
    layers: Vec<LayerState>,
    _counted: Counted,
}

#[derive(Debug, Clone)]
struct LayerState {
    recurrent: Vec<f32>,
    window: Vec<f32>,
}

impl State {
    /// The state of an empty past: zeros.
    pub(crate) fn new(shape: StateShape, ledger: &Arc<Ledger>) -> Self {
        let layer = || LayerState { recurrent: vec![0.0; shape.recurrent], window: vec![0.0; shape.window] };
        Self {
            layers: (0..shape.layers).map(|_| layer()).collect(),
            _counted: Counted::new(ledger, Kind::State, shape.bytes()),
        }
    }

    /// The recurrent state of a layer.
    pub(crate) fn recurrent(&mut self, slot: usize) -> &mut [f32] {
        &mut self.layers[slot].recurrent
    }

    /// The last inputs of a layer's convolution, oldest first.
    pub(crate) fn window(&self, slot: usize) -> &[f32] {
        &self.layers[slot].window
    }

    /// Lets the window move over `new` rows.
    pub(crate) fn slide(&mut self, slot: usize, new: &[f32]) {
        let window = &mut self.layers[slot].window;
        match new.len().checked_sub(window.len()) {
            Some(skip) => window.copy_from_slice(&new[skip..]),
            None => {
                window.copy_within(new.len().., 0);
                let keep = window.len() - new.len();
                window[keep..].copy_from_slice(new);
            }
        }
    }
}
