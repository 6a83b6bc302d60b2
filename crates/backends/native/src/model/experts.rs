//! A mixture of experts: each token goes through the few networks that a router chooses for it, and through a shared one.
//!
//! The rule is transformers' `Qwen3_5MoeSparseMoeBlock`: the router's softmax over all experts, its largest `used` values,
//! divided by their sum, weigh the chosen experts' outputs; the shared expert's is weighed by a sigmoid of its own.

use std::sync::Arc;

use consort_core::Result;
use consort_gguf::Gguf;
use consort_peft::Linear;
use rayon::prelude::*;

use super::batch::{Batch, each_row};
use super::mlp::Mlp;
use super::shape::{ExpertShape, TextShape};
use crate::kernels::KernelSet;
use crate::weights::{Compute, Matrix};

/// The weights of a layer's experts.
pub(crate) struct Experts {
    /// `[experts, hidden]`.
    router: Matrix,
    gate: Stack,
    up: Stack,
    down: Stack,
    shared: Mlp,
    /// `[1, hidden]`.
    shared_gate: Matrix,
    shape: ExpertShape,
}

/// One matrix of each expert, in one tensor.
struct Stack {
    all: Matrix,
    /// How many rows each expert has in the tensor, where the wanted ones begin among them, and how many they are.
    every: usize,
    first: usize,
    rows: usize,
}

impl Stack {
    /// The tensor `name` of `[experts, every, cols]`, of which each expert's `rows` from `first` on are wanted.
    fn open(
        file: &Arc<Gguf>,
        name: &str,
        (experts, every, cols): (usize, usize, usize),
        (first, rows): (usize, usize),
    ) -> Result<Self> {
        let all = Matrix::open_as(file, name, &[cols, every, experts], experts * every, cols)?;
        Ok(Self { all, every, first, rows })
    }

    fn expert(&self, index: usize) -> Matrix {
        self.all.part(index * self.every + self.first, self.rows)
    }
}

/// Which experts a token goes through.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Choice {
    expert: usize,
    weight: f32,
}

impl Experts {
    pub(crate) fn open(file: &Arc<Gguf>, text: &TextShape, shape: &ExpertShape, block: usize) -> Result<Self> {
        let name = |name: &str| format!("blk.{block}.{name}.weight");
        let ExpertShape { count, width, .. } = *shape;
        let stack = |tensor: &str| Stack::open(file, &name(tensor), (count, width, text.hidden), (0, width));
        // Some converters leave gate and up in one tensor, as transformers has them: each expert's gate, then its up.
        let both = name("ffn_gate_up_exps");
        let half = |first| Stack::open(file, &both, (count, 2 * width, text.hidden), (first, width));
        let (gate, up) = match file.tensor(&both) {
            Some(_) => (half(0)?, half(width)?),
            None => (stack("ffn_gate_exps")?, stack("ffn_up_exps")?),
        };
        Ok(Self {
            router: Matrix::open(file, &name("ffn_gate_inp"), count, text.hidden)?,
            gate,
            up,
            down: Stack::open(file, &name("ffn_down_exps"), (count, text.hidden, width), (0, text.hidden))?,
            shared: Mlp::open(file, text, block, "_shexp")?,
            shared_gate: Matrix::open(file, &name("ffn_gate_inp_shexp"), 1, text.hidden)?,
            shape: shape.clone(),
        })
    }

    /// The output for normalised rows `x` of `[rows, hidden]`. `layer` counts all layers.
    ///
    /// A row's result depends on that row alone: its experts' outputs are added in the router's order, whoever else goes
    /// through the same experts.
    pub(crate) fn forward(&self, compute: Compute, batch: &Batch, layer: usize, x: &[f32]) -> Vec<f32> {
        let rows = batch.rows();
        let hidden = x.len() / rows.max(1);
        let mut routes = self.router.times(compute, x);
        let choices: Vec<Vec<Choice>> = routes
            .chunks_exact_mut(self.shape.count)
            .map(|scores| choose(compute.kernels, scores, self.shape.used))
            .collect();

        // Grouped by expert, so that each one's weights are read once.
        let mut visits: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.shape.count];
        for (row, choices) in choices.iter().enumerate() {
            for (rank, choice) in choices.iter().enumerate() {
                visits[choice.expert].push((row, rank));
            }
        }
        let busy: Vec<(usize, &[(usize, usize)])> = visits
            .iter()
            .enumerate()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(e, rows)| (e, rows.as_slice()))
            .collect();
        let run = |compute: Compute, &(expert, visits): &(usize, &[(usize, usize)])| {
            let mut input = Vec::with_capacity(visits.len() * hidden);
            for &(row, _) in visits {
                input.extend_from_slice(&x[row * hidden..][..hidden]);
            }
            self.run(compute, expert, &input)
        };
        let work = rows * self.shape.used * 3 * self.shape.width * hidden;
        let outputs: Vec<Vec<f32>> = if busy.len() >= 2 * compute.threads && compute.is_parallel(work) {
            let alone = Compute { threads: 1, ..compute };
            busy.par_iter().map(|one| run(alone, one)).collect()
        } else {
            busy.iter().map(|one| run(compute, one)).collect()
        };

        // Where each row's outputs are, by rank.
        let used = self.shape.used;
        let mut places: Vec<&[f32]> = vec![&[]; rows * used];
        for ((_, visits), outputs) in busy.iter().zip(&outputs) {
            for (&(row, rank), output) in visits.iter().zip(outputs.chunks_exact(hidden)) {
                places[row * used + rank] = output;
            }
        }
        let shared = self.shared.forward(compute, batch, layer, x);
        let gates = batch.linear(compute, &self.shared_gate, (layer, Linear::SharedGate), x);
        let mut out = vec![0.0; rows * hidden];
        each_row(compute, out.len() * (used + 1), &mut out, hidden, |row, out| {
            for (choice, output) in choices[row].iter().zip(&places[row * used..]) {
                compute.kernels.add_scaled(out, choice.weight, output);
            }
            let gate = 1.0 / (1.0 + (-gates[row]).exp());
            compute.kernels.add_scaled(out, gate, &shared[row * hidden..][..hidden]);
        });
        out
    }

    /// One expert's output for rows of `[rows, hidden]`.
    fn run(&self, compute: Compute, expert: usize, x: &[f32]) -> Vec<f32> {
        let mut gated = self.gate.expert(expert).times(compute, x);
        let up = self.up.expert(expert).times(compute, x);
        for (gate, up) in gated.chunks_exact_mut(self.shape.width).zip(up.chunks_exact(self.shape.width)) {
            compute.kernels.silu_times(gate, up);
        }
        self.down.expert(expert).times(compute, &gated)
    }
}

/// The `used` experts with the largest softmax of `scores`, the best first, of equal ones the first; their weights sum to 1.
/// `scores` is used up.
fn choose(kernels: KernelSet, scores: &mut [f32], used: usize) -> Vec<Choice> {
    kernels.softmax(scores);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // A total order, also where a damaged file makes numbers that are none.
    let better = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if used < order.len() {
        order.select_nth_unstable_by(used, better);
        order.truncate(used);
    }
    order.sort_unstable_by(better);
    let sum: f32 = order.iter().map(|&expert| scores[expert]).sum();
    order.into_iter().map(|expert| Choice { expert, weight: scores[expert] / sum }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_best_experts_are_chosen_and_weighed() {
        let kernels = KernelSet::detect().unwrap();
        let mut scores = [0.0, 1.0, -2.0, 1.0, 3.0];
        let chosen = choose(kernels, &mut scores, 3);
        let experts: Vec<usize> = chosen.iter().map(|choice| choice.expert).collect();
        assert_eq!(experts, [4, 1, 3], "of equal ones the first");
        let sum = 3_f32.exp() + 2.0 * 1_f32.exp();
        assert!((chosen[0].weight - 3_f32.exp() / sum).abs() < 1e-6);
        assert!((chosen[2].weight - 1_f32.exp() / sum).abs() < 1e-6);
        assert!((chosen.iter().map(|choice| choice.weight).sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(choose(kernels, &mut [2.0, 1.0], 2).len(), 2);
    }

    #[test]
    fn numbers_that_are_none_choose_all_the_same() {
        let kernels = KernelSet::detect().unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..4 {
                let mut scores = [0.5, -0.5, 1.5, 0.0];
                scores[at] = bad;
                let mut chosen: Vec<usize> = choose(kernels, &mut scores, 2).iter().map(|c| c.expert).collect();
                chosen.dedup();
                assert!(chosen.len() == 2 && chosen.iter().all(|expert| *expert < 4), "{bad} at {at}: {chosen:?}");
            }
        }
        assert_eq!(choose(kernels, &mut [f32::NEG_INFINITY; 3], 2).len(), 2);
    }
}
