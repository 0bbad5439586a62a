//! Groups of variables: an update of some, while the others stay as they are.
//!
//! The optimizer's own count of the eager groups goes on with each accepted gradient, R times as fast as that of the rest:
//! it is computed from the latter, so that it is the same after a resume.

use std::ops::Range;
use std::sync::Arc;

use super::measure::aggregated;
use super::{BLOCK, Shard};
use crate::decision::Part;
use crate::dial::{Group, pieces};
use crate::error::Error;
use crate::memory::Floats;

/// How the variables of a shard are divided.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// All elements, in order, and whether they are updated eagerly; empty without groups.
    pieces: Vec<(Range<usize>, bool)>,
    /// Gradients that make a step.
    replicas: u64,
    /// Of the step at hand.
    accepted: u64,
}

impl Groups {
    /// Whether all is updated together; so it is in a shard without elements.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

impl Shard {
    pub(super) fn regroup(&mut self, groups: &[Group], replicas: u32) {
        let pieces = if groups.is_empty() { Vec::new() } else { pieces(groups, &self.named) };
        self.groups = Groups { pieces, replicas: u64::from(replicas), accepted: 0 };
    }

    /// The part of one gradient that the eager groups have; the global step stays.
    pub(super) fn update_eagerly(&mut self, parts: &[Part]) -> Result<(), Error> {
        if self.groups.is_empty() {
            return Ok(());
        }
        self.groups.accepted += 1;
        let count = self.optimizer_step * self.groups.replicas + self.groups.accepted;
        let (step, next) = (self.current.step, self.updated(parts, true, count)?);
        self.replace(step, next);
        Ok(())
    }

    /// The rest, with which the step is complete.
    pub(super) fn update_the_rest(&mut self, step: u64, parts: &[Part]) -> Result<(), Error> {
        let next = self.updated(parts, false, self.optimizer_step + 1)?;
        self.optimizer_step += 1;
        self.groups.accepted = 0;
        self.conclude(step, parts, next);
        Ok(())
    }

    /// The next version: the groups that are `eager` or not are updated, the others are copied.
    fn updated(&mut self, parts: &[Part], eager: bool, count: u64) -> Result<Arc<Floats>, Error> {
        let plan = self.optimizer.plan(self.current.step, count, &[], 1)?;
        let mut next = self.pool.take()?;
        let Some(out) = Arc::get_mut(&mut next) else { return Err(Error::Stopped) };
        let mut slots = self.slots.update();
        for (piece, is_eager) in &self.groups.pieces {
            for block in slots.blocks(piece.clone(), BLOCK) {
                let params = &mut out[block.clone()];
                params.copy_from_slice(&self.current.params[block.clone()]);
                let is_updated = *is_eager == eager;
                let (scale, grad) = if is_updated {
                    aggregated(&self.staged, parts, block.clone(), &mut self.scratch)
                } else {
                    (0.0, &[][..])
                };
                // Asked for in any case: a frozen chunk is replaced whole.
                slots.update(block, |part, slots| {
                    if !is_updated {
                        return Ok(());
                    }
                    plan.of(0).apply(scale, &mut params[part.clone()], &grad[part], slots)
                })?;
            }
        }
        drop(slots);
        Ok(next)
    }
}
