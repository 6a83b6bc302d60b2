//! Log probabilities under the model's own distribution.

use consort_core::{PositionLogprobs, Result, TokenId, TokenLogprob};

use crate::Workspace;
use crate::row::{self, best_first};

/// The log softmax of raw logits, `[vocab_size]`: of `chosen`, and of the `count` best, best first.
///
/// # Errors
/// [`ErrorKind::Unexpected`](consort_core::ErrorKind::Unexpected) when the logits are not numbers.
pub fn logprobs(row: &[f32], chosen: TokenId, count: usize, workspace: &mut Workspace) -> Result<PositionLogprobs> {
    let top = row::checked_top(row)?;
    let log_total = row::mass(row, top, f32::MIN).ln();
    let of = |logit: f32| (f64::from(logit - top) - log_total) as f32;
    let logit = row.get(chosen as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let best = &mut workspace.best;
    row::best(row, count, best);
    best.sort_unstable_by(best_first);
    Ok(PositionLogprobs {
        chosen: TokenLogprob { token: chosen, logprob: of(logit) },
        top: best.iter().map(|&(token, logit)| TokenLogprob { token, logprob: of(logit) }).collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn logprobs_are_the_log_softmax() {
        let row: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln() + 3.0).collect();
        let mut workspace = Workspace::default();
        let got = logprobs(&row, 1, 3, &mut workspace).unwrap();
        assert!((got.chosen.logprob - 0.25f32.ln()).abs() < 1e-5);
        let top: Vec<_> = got.top.iter().map(|t| t.token).collect();
        assert_eq!(top, [0, 1, 2]);
        assert!(logprobs(&row, 0, 0, &mut workspace).unwrap().top.is_empty());
        assert_eq!(logprobs(&row, 0, 99, &mut workspace).unwrap().top.len(), 4);
        assert!(logprobs(&[0.0, f32::NAN], 0, 1, &mut workspace).is_err());
    }
}
