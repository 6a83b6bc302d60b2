//! Probabilities of one row of logits, in f64.

use consort_core::{Error, ErrorKind, Result, TokenId};

/// A row of logits as log probabilities: `ln p(i) = logit(i) - ln Σ exp(logit)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSoftmax<'r> {
    row: &'r [f32],
    log_sum: f64,
    top: usize,
}

impl<'r> LogSoftmax<'r> {
    /// # Errors
    /// [`ErrorKind::Unexpected`] when a logit is no finite number or there is none.
    pub(crate) fn new(row: &'r [f32]) -> Result<Self> {
        if let Some((token, value)) = row.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::new(ErrorKind::Unexpected, "the engine gave a logit that is no finite number")
                .with_context("token", token.to_string())
                .with_context("logit", value.to_string()));
        }
        let mut best = None;
        for (index, &value) in row.iter().enumerate() {
            // The first maximum, as greedy sampling chooses.
            if best.is_none_or(|(_, largest)| value > largest) {
                best = Some((index, value));
            }
        }
        let Some((top, largest)) = best else {
            return Err(Error::new(ErrorKind::Unexpected, "the engine gave an empty row of logits"));
        };
        let largest = f64::from(largest);
        let sum: f64 = row.iter().map(|&value| (f64::from(value) - largest).exp()).sum();
        Ok(Self { row, log_sum: largest + sum.ln(), top })
    }

    /// The natural logarithm of a token's probability.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a token beyond the vocabulary.
    pub(crate) fn log_probability(&self, token: TokenId) -> Result<f64> {
        let logit = self.row.get(token as usize).ok_or_else(|| {
            Error::new(ErrorKind::InvalidRequest, "the text has a token beyond the model's vocabulary")
                .with_context("token", token.to_string())
                .with_context("vocabulary", self.row.len().to_string())
        })?;
        Ok(f64::from(*logit) - self.log_sum)
    }

    /// The index of the most probable token, the first of several.
    pub(crate) fn top(&self) -> usize {
        self.top
    }

    /// Log probabilities in the order of the vocabulary.
    pub(crate) fn log_probabilities(&self) -> impl Iterator<Item = f64> + use<'r> {
        let log_sum = self.log_sum;
        self.row.iter().map(move |&value| f64::from(value) - log_sum)
    }
}

/// `KL(p ‖ q) = Σ p (ln p − ln q)`, never below zero (rounding could bring it there).
pub(crate) fn kl_divergence(p: &LogSoftmax<'_>, q: &LogSoftmax<'_>) -> f64 {
    let sum: f64 = p.log_probabilities().zip(q.log_probabilities()).map(|(p, q)| p.exp() * (p - q)).sum();
    sum.max(0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn naive(row: &[f32]) -> Vec<f64> {
        let sum: f64 = row.iter().map(|&value| f64::from(value).exp()).sum();
        row.iter().map(|&value| f64::from(value).exp() / sum).collect()
    }

    fn rows() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
        (1..40_usize)
            .prop_flat_map(|n| (prop::collection::vec(-30.0..30.0_f32, n), prop::collection::vec(-30.0..30.0_f32, n)))
    }

    proptest! {
        #[test]
        fn as_the_formulas_say((one, other) in rows()) {
            let (p, q) = (LogSoftmax::new(&one).unwrap(), LogSoftmax::new(&other).unwrap());
            let (np, nq) = (naive(&one), naive(&other));
            for (token, expected) in np.iter().enumerate() {
                let found = p.log_probability(u32::try_from(token).unwrap()).unwrap();
                prop_assert!((found - expected.ln()).abs() < 1e-9);
            }
            let kl: f64 = np.iter().zip(&nq).map(|(p, q)| p * (p / q).ln()).sum();
            prop_assert!((kl_divergence(&p, &q) - kl).abs() < 1e-9);
            prop_assert!(kl_divergence(&p, &p) == 0.0);
            prop_assert!(np.iter().all(|&value| value <= np[p.top()]));
        }

        #[test]
        fn a_shift_of_all_logits_changes_nothing(row in prop::collection::vec(-10.0..10.0_f32, 1..20), shift in -8..8_i16) {
            // Powers of two below the precision keep the shifted numbers exact enough to compare.
            let moved: Vec<f32> = row.iter().map(|&value| value + f32::from(shift)).collect();
            let (p, q) = (LogSoftmax::new(&row).unwrap(), LogSoftmax::new(&moved).unwrap());
            prop_assert!(kl_divergence(&p, &q) < 1e-9);
        }
    }

    #[test]
    fn extremes_stay_finite() {
        let (one, other) = ([3e38_f32, -3e38], [-3e38_f32, 3e38]);
        let (p, q) = (LogSoftmax::new(&one).unwrap(), LogSoftmax::new(&other).unwrap());
        assert_eq!(p.log_probability(0).unwrap(), 0.0);
        let kl = kl_divergence(&p, &q);
        assert!(kl.is_finite() && kl > 1e38, "{kl}");
    }

    #[test]
    fn what_is_no_number_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = LogSoftmax::new(&[0.0, bad]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unexpected);
            assert!(error.to_string().contains("token: 1"), "{error}");
        }
        assert_eq!(LogSoftmax::new(&[]).unwrap_err().kind(), ErrorKind::Unexpected);
        let row = [0.0_f32];
        let softmax = LogSoftmax::new(&row).unwrap();
        assert_eq!(softmax.log_probability(1).unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
}
