//! One update of a shard: a pass over all its memory, by as many threads as are worth it.
//!
//! The elements are cut in halves, and those in halves, where chunks of the slots begin; each thread takes what nobody has
//! begun. What an element becomes depends on its own values alone, so it has the same bits for any number of threads.

use std::ops::Range;

use super::measure::aggregated;
use super::{BLOCK, Staged};
use crate::decision::Part;
use crate::error::Error;
use crate::memory::{SlotsMut, fence, stream};
use crate::optimizer::Plan;
use crate::team::Team;

/// Elements from which several threads take an update: below, waking them costs as much as they gain.
const PARALLEL: usize = 1 << 19;
/// Elements, a quarter of a MiB of each vector, that one thread takes at a time: so few that all threads end together.
const GRAIN: usize = 1 << 16;

/// Elements of an update of `len` that one thread takes at a time.
pub(crate) fn grain(len: usize) -> usize {
    if len < PARALLEL { len.max(1) } else { GRAIN }
}

/// What an update is made from.
pub(super) struct Pass<'a> {
    pub(super) plan: Plan<'a>,
    /// What is updated alike.
    pub(super) variables: &'a [Range<usize>],
    pub(super) current: &'a [f32],
    /// The first of these are the parts, in their order.
    pub(super) staged: &'a [Staged],
    pub(super) parts: &'a [Part],
    /// The next version is larger than what caches keep until it is read.
    pub(super) past_caches: bool,
}

impl Pass<'_> {
    /// Writes elements `range` of the next version to `out`, and updates their slots.
    pub(super) fn run(&self, range: Range<usize>, out: &mut [f32], slots: SlotsMut<'_>) -> Result<(), Error> {
        match slots.middle(&range, grain(self.current.len())) {
            Some(at) => {
                let (left, right) = out.split_at_mut(at - range.start);
                let (first, second) = slots.split(at);
                let begin = || self.run(range.start..at, left, first);
                Team::for_updates().join(begin, || self.run(at..range.end, right, second))
            }
            None => self.run_here(range, out, slots),
        }
    }

    fn run_here(&self, range: Range<usize>, out: &mut [f32], mut slots: SlotsMut<'_>) -> Result<(), Error> {
        let (mut sum, mut next) = ([0.0; BLOCK], [0.0; BLOCK]);
        for (variable, part) in self.variables.iter().enumerate() {
            let part = part.start.max(range.start)..part.end.min(range.end);
            let update = self.plan.of(variable);
            for block in slots.blocks(part, BLOCK) {
                let place = &mut out[block.start - range.start..block.end - range.start];
                let params = if self.past_caches { &mut next[..block.len()] } else { &mut *place };
                params.copy_from_slice(&self.current[block.clone()]);
                let (scale, grad) = aggregated(self.staged, self.parts, block.clone(), &mut sum);
                slots
                    .update(block, |part, slots| update.apply(scale, &mut params[part.clone()], &grad[part], slots))?;
                if self.past_caches {
                    stream(&next[..place.len()], place);
                }
            }
        }
        // Of this thread's own stores.
        fence();
        Ok(())
    }
}
