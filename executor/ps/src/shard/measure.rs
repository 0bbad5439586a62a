//! A shard's part of what is measured before an update, and how its gradients are read, block by block.

use std::ops::Range;

use super::{BLOCK, Shard, Staged};
use crate::decision::Part;
use crate::error::Error;
use crate::optimizer::{ExactSum, Round, accumulate, accumulate_two, square_sum};

impl Shard {
    /// The sums of a round over this shard, from the first `parts.len()` staged gradients; nothing changes.
    pub(super) fn measure(&mut self, round: u32, parts: &[Part], totals: &[f64]) -> Result<Vec<f64>, Error> {
        if self.exact {
            let sums = self.measure_exactly(round, parts, totals)?;
            // A shard that is alone needs the totals; ps:0 makes them of what all shards have told.
            return Ok(match self.alone {
                true => sums.iter().map(ExactSum::value).collect(),
                false => sums.iter().flat_map(ExactSum::parts).collect(),
            });
        }
        let (staged, scratch) = (&self.staged, &mut self.scratch);
        match self.optimizer.round(round, totals, self.variables.len())? {
            Round::GradientNorm => {
                let mut sum = 0.0;
                for block in blocks(0..self.range.len()) {
                    let (scale, grad) = aggregated(staged, parts, block, scratch);
                    sum += f64::from(scale).powi(2) * square_sum(grad);
                }
                Ok(vec![sum])
            }
            Round::TrustRatios => {
                let update = self.optimizer.clipped_update(self.current.step, self.optimizer_step + 1, totals);
                let mut sums = Vec::with_capacity(2 * self.variables.len());
                for variable in &self.variables {
                    let mut norms = [0.0; 2];
                    for block in self.slots.blocks(variable.clone(), BLOCK) {
                        let (scale, grad) = aggregated(staged, parts, block.clone(), scratch);
                        let slots = &self.slots.views(block.clone())[..self.slots.count()];
                        let found = update.norms(scale, &self.current.params[block], grad, slots)?;
                        norms.iter_mut().zip(found).for_each(|(norm, found)| *norm += found);
                    }
                    sums.extend(norms);
                }
                Ok(sums)
            }
        }
    }

    /// The same without rounding, so that the totals do not depend on how the parameters are divided (`DET-3`).
    fn measure_exactly(&mut self, round: u32, parts: &[Part], totals: &[f64]) -> Result<Vec<ExactSum>, Error> {
        let (staged, scratch) = (&self.staged, &mut self.scratch);
        match self.optimizer.round(round, totals, self.variables.len())? {
            Round::GradientNorm => {
                let mut sum = ExactSum::new();
                for block in blocks(0..self.range.len()) {
                    let (scale, grad) = aggregated(staged, parts, block, scratch);
                    sum.add(grad.iter().map(|g| scale * g));
                }
                Ok(vec![sum])
            }
            Round::TrustRatios => {
                let update = self.optimizer.clipped_update(self.current.step, self.optimizer_step + 1, totals);
                let mut sums = Vec::with_capacity(2 * self.variables.len());
                for variable in &self.variables {
                    let mut norms = [ExactSum::new(), ExactSum::new()];
                    for block in self.slots.blocks(variable.clone(), BLOCK) {
                        let (scale, grad) = aggregated(staged, parts, block.clone(), scratch);
                        let slots = &self.slots.views(block.clone())[..self.slots.count()];
                        update.add_norms(&mut norms, scale, &self.current.params[block], grad, slots)?;
                    }
                    sums.extend(norms);
                }
                Ok(sums)
            }
        }
    }
}

pub(super) fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(BLOCK).map(move |start| start..(start + BLOCK).min(end))
}

/// What is applied to a block: a factor and the gradient. That of one part is used as it lies, if it lies in one piece; several
/// are summed in `scratch`.
pub(super) fn aggregated<'a>(
    staged: &'a [Staged],
    parts: &[Part],
    block: Range<usize>,
    scratch: &'a mut [f32],
) -> (f32, &'a [f32]) {
    let sum = &mut scratch[..block.len()];
    if let ([part], [staged, ..]) = (parts, staged) {
        let mut at = 0;
        for piece in staged.gradient.pieces(block) {
            if piece.len() == sum.len() {
                return (part.weight, piece);
            }
            sum[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        return (part.weight, sum);
    }
    let mut added = 0;
    if let ([one, two, ..], [first, second, ..]) = (parts, staged) {
        let whole = [first, second].map(|staged| staged.gradient.pieces(block.clone()).next());
        if let [Some(a), Some(b)] = whole.map(|piece| piece.filter(|piece| piece.len() == sum.len())) {
            accumulate_two(sum, [a, b], [one.weight, two.weight]);
            added = 2;
        }
    }
    for (i, (part, staged)) in parts.iter().zip(staged).enumerate().skip(added) {
        let mut at = 0;
        for piece in staged.gradient.pieces(block.clone()) {
            accumulate(&mut sum[at..at + piece.len()], piece, part.weight, i == 0);
            at += piece.len();
        }
    }
    (1.0, sum)
}
