//! Local SGD: what workers made of the parameters and slots, each by itself, becomes one state, their weighted mean.
//!
//! The slots are averaged like the parameters, so that after an update all nodes have one and the same state, which is also
//! that of a checkpoint: whoever resumes goes on as if nothing had been. The optimizer's own count goes on by as many
//! updates as a worker takes at a time, although one that runs out of rows takes fewer.

use std::sync::Arc;

use super::measure::aggregated;
use super::{BLOCK, Shard};
use crate::decision::Part;
use crate::error::Error;
use crate::memory::Cut;

/// The slots after an update, which do not change any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct SlotState {
    pub(crate) optimizer_step: u64,
    pub(crate) slots: Vec<Cut>,
}

impl Shard {
    /// Writes the next version and the slots from the first `parts.len()` staged states: the parameters, then each slot.
    pub(super) fn average(&mut self, step: u64, parts: &[Part], steps: u32) -> Result<(), Error> {
        let len = self.len();
        let mut next = self.pool.take()?;
        let Some(out) = Arc::get_mut(&mut next) else { return Err(Error::Stopped) };
        let mut slots = self.slots.update();
        for block in slots.blocks(0..len, BLOCK) {
            let (params, staged, scratch) = (&mut out[block.clone()], &self.staged, &mut self.scratch);
            slots.update(block.clone(), |part, views| {
                let params = std::iter::once(&mut params[part.clone()]);
                for (vector, into) in params.chain(views.iter_mut().map(|view| &mut **view)).enumerate() {
                    let start = vector * len + block.start;
                    let place = start + part.start..start + part.end;
                    let (scale, mean) = aggregated(staged, parts, place, scratch);
                    into.iter_mut().zip(mean).for_each(|(into, mean)| *into = scale * mean);
                }
                Ok(())
            })?;
        }
        drop(slots);
        self.optimizer_step += u64::from(steps);
        self.conclude(step, parts, next);
        Ok(())
    }

    /// What workers get with the parameters; nothing where they push gradients.
    pub(crate) fn slot_state(&self) -> SlotState {
        match self.local_steps {
            Some(_) => SlotState { optimizer_step: self.optimizer_step, slots: self.slots.freeze().collect() },
            None => SlotState::default(),
        }
    }
}
