//! What an update must know of the whole gradient before any part of it is applied: sums over all parameters, and so
//! over all shards, in rounds of one pass each.

use super::{Optimizer, Scheduled, Update};
use crate::error::Error;

/// One pass over all parameters. Its sums, added up over all shards, are its totals; those of a later round follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// Σ g²: one sum.
    GradientNorm,
    /// Σ p² and Σ u² of each variable, one after the other; u is the direction that LAMB gives it.
    TrustRatios,
}

/// One update, with what was measured for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    update: Update,
    /// Pairs, by variable; empty where variables are not told apart.
    norms: &'a [f64],
}

impl Plan<'_> {
    /// The update of this variable.
    pub(crate) fn of(&self, variable: usize) -> Update {
        match self.norms.as_chunks().0.get(variable) {
            Some(&norms) => self.update.trusted(norms),
            None => self.update,
        }
    }
}

impl Scheduled {
    /// What is measured before each update, in this order.
    pub(crate) fn rounds(&self) -> &'static [Round] {
        match (self.clip_norm, self.has_trust_ratios()) {
            (None, false) => &[],
            (Some(_), false) => &[Round::GradientNorm],
            (None, true) => &[Round::TrustRatios],
            // In this order: the direction is that of the clipped gradient.
            (Some(_), true) => &[Round::GradientNorm, Round::TrustRatios],
        }
    }

    /// Whether updates differ from variable to variable.
    pub(crate) fn has_trust_ratios(&self) -> bool {
        matches!(self.rule, Optimizer::Lamb { .. })
    }

    /// What round `round` is about; `totals` are those of the rounds before it.
    pub(crate) fn round(&self, round: u32, totals: &[f64], variables: usize) -> Result<Round, Error> {
        match self.rounds().get(round as usize) {
            Some(found) if totals.len() == self.totals_before(round as usize, variables) => Ok(*found),
            _ => Err(self.unmeasured(totals)),
        }
    }

    /// The update from global step `step` to the next, with the totals of the rounds so far.
    pub(crate) fn clipped_update(&self, step: u64, optimizer_step: u64, totals: &[f64]) -> Update {
        let update = self.update(step, optimizer_step);
        match (self.clip_norm, totals) {
            (Some(max_norm), [square_sum, ..]) => update.clipped(coefficient(max_norm, *square_sum)),
            _ => update,
        }
    }

    /// The same with the totals of all rounds.
    pub(crate) fn plan<'a>(
        &self,
        step: u64,
        optimizer_step: u64,
        totals: &'a [f64],
        variables: usize,
    ) -> Result<Plan<'a>, Error> {
        if totals.len() != self.totals_before(self.rounds().len(), variables) {
            return Err(self.unmeasured(totals));
        }
        let update = self.clipped_update(step, optimizer_step, totals);
        let norms = if self.has_trust_ratios() { &totals[usize::from(self.clip_norm.is_some())..] } else { &[] };
        Ok(Plan { update, norms })
    }

    fn totals_before(&self, round: usize, variables: usize) -> usize {
        let count = |round: &Round| match round {
            Round::GradientNorm => 1,
            Round::TrustRatios => 2 * variables,
        };
        self.rounds().iter().take(round).map(count).sum()
    }

    fn unmeasured(&self, totals: &[f64]) -> Error {
        let expected = format!("those of {:?}", self.rounds());
        Error::State { what: "measured totals", expected, found: totals.len().to_string() }
    }
}

/// PyTorch's `clip_grad_norm_`: max_norm / (norm + 1e-6), at most 1. NaN stays NaN, as there.
fn coefficient(max_norm: f64, square_sum: f64) -> f32 {
    let coefficient = max_norm / (square_sum.sqrt() + 1e-6);
    // Not `min`, which gives 1 for NaN.
    if coefficient > 1.0 { 1.0 } else { coefficient as f32 }
}

/// Σ x² in `f64`, in as many sums as a vector register holds, so that none waits for the one before.
pub(crate) fn square_sum(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coefficient_is_pytorchs() {
        assert_eq!(coefficient(1.0, 4.0), (1.0 / 2.000001) as f32);
        assert_eq!(coefficient(5.0, 4.0), 1.0);
        // The 1e-6 shows where the norm is exactly the bound.
        assert!(coefficient(2.0, 4.0) < 1.0);
        assert_eq!(coefficient(1.0, f64::INFINITY), 0.0);
        assert!(coefficient(1.0, f64::NAN).is_nan());
    }

    #[test]
    fn squares_are_summed_in_f64_whatever_the_length() {
        for n in [0usize, 1, 7, 8, 9, 1000] {
            let values: Vec<f32> = (0..n).map(|i| i as f32 * 0.1).collect();
            let exact: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((square_sum(&values) - exact).abs() <= 1e-12 * exact);
        }
        assert_eq!(square_sum(&[1e30]), f64::from(1e30f32).powi(2), "an f32 would be infinite");
    }

    #[test]
    fn totals_that_do_not_belong_to_the_optimizer_are_refused() {
        let plain: Scheduled = Optimizer::sgd(0.1).into();
        assert!(plain.plan(0, 1, &[], 2).is_ok() && plain.plan(0, 1, &[1.0], 2).is_err());
        let clipped = plain.with_clip_norm(1.0);
        assert!(clipped.plan(0, 1, &[1.0], 2).is_ok() && clipped.plan(0, 1, &[], 2).is_err());
        assert_eq!(clipped.round(0, &[], 2).unwrap(), Round::GradientNorm);
        assert!(clipped.round(1, &[1.0], 2).is_err() && clipped.round(0, &[1.0], 2).is_err());
        let both = Optimizer::lamb(0.1).with_clip_norm(1.0);
        assert_eq!(both.round(1, &[1.0], 2).unwrap(), Round::TrustRatios);
        assert!(both.plan(0, 1, &[1.0; 5], 2).is_ok() && both.plan(0, 1, &[1.0; 4], 2).is_err());
    }
}
