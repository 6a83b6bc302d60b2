//! Rotary position embeddings: interleaved M-RoPE of the text model, and the two-dimensional one of the vision tower.

use consort_core::Position;

use super::shape::AttentionShape;

/// Which component of a position turns each rotated pair, and how fast.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    /// `(axis, frequency)` per pair; the axes are 0: t, 1: h, 2: w.
    pairs: Vec<(usize, f32)>,
}

/// Cosines and sines of one token, one per pair.
#[derive(Debug, Clone)]
pub(crate) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Of the text model. Pairs take turns t, h, w, t, h, w, ... until a component has used up its section (of h and w; t
    /// has the rest), as transformers' interleaved M-RoPE orders them.
    pub(crate) fn text(shape: &AttentionShape) -> Self {
        let [_, h, w] = shape.sections;
        let axis = |pair: usize| match pair % 3 {
            1 if pair / 3 < h => 1,
            2 if pair / 3 < w => 2,
            _ => 0,
        };
        let frequency = |pair: usize| 1.0 / shape.theta.powf((2 * pair) as f32 / shape.rotary as f32);
        Self { pairs: (0..shape.rotary / 2).map(|pair| (axis(pair), frequency(pair))).collect() }
    }

    /// Of the vision tower: the first half of the pairs turns with the row, the second with the column, base 10,000.
    pub(crate) fn vision(head_dim: usize) -> Self {
        let half = head_dim / 4;
        let frequency = |pair: usize| 1.0 / 10_000_f32.powf((2 * pair) as f32 / (head_dim / 2) as f32);
        let side = |axis: usize| (0..half).map(move |pair| (axis, frequency(pair)));
        Self { pairs: side(1).chain(side(2)).collect() }
    }

    /// What turns a token at `position`.
    pub(crate) fn angles(&self, position: Position) -> Angles {
        let components = [position.t, position.h, position.w].map(|component| component as f32);
        let (sin, cos) = self.pairs.iter().map(|&(axis, frequency)| (components[axis] * frequency).sin_cos()).unzip();
        Angles { cos, sin }
    }
}

impl Angles {
    /// Rotates the first numbers of a head: number `i` together with the one half of the rotated width further on.
    pub(crate) fn rotate(&self, head: &mut [f32]) {
        let pairs = self.cos.len();
        let (first, rest) = head.split_at_mut(pairs);
        for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(&self.cos).zip(&self.sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
