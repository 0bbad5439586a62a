//! Leases of deterministic training: whole micro-batches in their one order, of the step at hand and of the next.
//!
//! A step is complete when all of its micro-batches are committed, which happens at once. Of the next step each worker may
//! hold one, so that it has rows when the step at hand is done. Not more: who asks faster would take them all, and a
//! worker that holds only rows of the next step could not take over one that comes back (`FED-4`).

use std::num::{NonZeroU32, NonZeroU64};

use super::{Grant, LeaseTable};
use crate::ids::GlobalStep;
use crate::rows::{Cut, MicroBatch, RowRange, Steps};

/// Steps of which micro-batches are leased at once.
const OPEN_STEPS: u64 = 2;

/// Why rows cannot be cut into the steps that were promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Micro-batches of one job have one size.
    #[error(
        "a batch of {asked} rows was asked for, and {fixed} before; with --deterministic all batches of a job have one \
         size, also after a resume"
    )]
    Size {
        /// Rows of this request.
        asked: u64,
        /// Rows of those before, by any worker or before the resume.
        fixed: u64,
    },
    /// The number of rows decides where steps end.
    #[error("the number of rows of partition {partition} is not known before it is read, and --deterministic needs it")]
    Unknown {
        /// The first such partition.
        partition: usize,
    },
    /// What was trained on before is no whole number of these steps.
    #[error("the checkpoint at step {step} does not hold the rows of {step} steps of {cut}: it was not trained so")]
    Foreign {
        /// Its step.
        step: GlobalStep,
        /// The cut asked for.
        cut: Cut,
    },
}

/// What deterministic training adds to a lease table.
#[derive(Debug, Clone)]
pub(super) struct InOrder {
    micro_batches: NonZeroU32,
    /// As restored; otherwise the first request fixes it.
    rows: Option<NonZeroU64>,
    steps: Option<Steps>,
    /// Steps that are complete.
    done: GlobalStep,
}

impl LeaseTable {
    /// Leases micro-batches, so many to a step, after the steps that are done.
    pub fn in_steps_of(mut self, micro_batches: NonZeroU32, rows: Option<NonZeroU64>, done: GlobalStep) -> Self {
        self.in_order = Some(InOrder { micro_batches, rows, steps: None, done });
        self
    }

    /// The cut, once it is known.
    pub(super) fn cut(&self) -> Option<Cut> {
        let InOrder { micro_batches, rows, .. } = self.in_order.as_ref()?;
        rows.map(|rows| Cut { micro_batches: *micro_batches, rows })
    }

    /// The next micro-batch for `worker`; `None` where there are no rows at all.
    pub(super) fn grant_micro_batch(&mut self, worker: u32, want: u64) -> Result<Option<Grant>, Misfit> {
        self.fix(want)?;
        let Some(mut in_order) = self.in_order.take() else { return Ok(None) };
        let steps = in_order.steps.as_mut().filter(|steps| steps.per_epoch() > 0);
        let grant = steps.map(|steps| self.grant_of(steps, in_order.done, worker));
        self.in_order = Some(in_order);
        Ok(grant)
    }

    fn grant_of(&mut self, steps: &mut Steps, GlobalStep(done): GlobalStep, worker: u32) -> Grant {
        for step in (done + 1..=done + OPEN_STEPS).map(GlobalStep) {
            let ranges = steps.of(step);
            let Some(last) = ranges.last() else { break };
            while self.next_epoch <= last.epoch {
                self.open_epoch();
            }
            if step.0 > done + 1 && ranges.iter().any(|r| self.overlapping_lease(r) == Some(worker)) {
                break;
            }
            let is_free = |r: &RowRange| !self.is_committed(r) && self.overlapping_lease(r).is_none();
            if let Some((index, range)) = ranges.iter().enumerate().find(|(_, r)| is_free(r)) {
                if let Some(part) = self.partition_mut(*range) {
                    part.leased.insert(range.start, (range.end, worker));
                }
                let place = MicroBatch { step, index: index as u32, of: ranges.len() as u32 };
                return Grant::MicroBatch(*range, place);
            }
        }
        if self.done() { Grant::End } else { Grant::Wait }
    }

    /// The first request says how many rows a micro-batch has; from then on all steps are known.
    fn fix(&mut self, want: u64) -> Result<(), Misfit> {
        let Some(InOrder { micro_batches, rows, steps, done }) = &self.in_order else { return Ok(()) };
        let asked = NonZeroU64::new(want).unwrap_or(NonZeroU64::MIN);
        let fixed = rows.unwrap_or(asked);
        if asked != fixed {
            return Err(Misfit::Size { asked: asked.get(), fixed: fixed.get() });
        }
        if steps.is_some() {
            return Ok(());
        }
        let known: Option<Vec<u64>> = self.rows.iter().copied().collect();
        let Some(known) = known else {
            let partition = self.rows.iter().position(Option::is_none).unwrap_or_default();
            return Err(Misfit::Unknown { partition });
        };
        let cut = Cut { micro_batches: *micro_batches, rows: fixed };
        let mut steps = Steps::new(cut, self.epochs, known, self.shuffle);
        let done = *done;
        if !self.is_after(&mut steps, done) {
            return Err(Misfit::Foreign { step: done, cut });
        }
        self.in_order = Some(InOrder { micro_batches: cut.micro_batches, rows: Some(fixed), steps: Some(steps), done });
        Ok(())
    }

    /// Whether exactly the rows of the first `done` steps are committed.
    fn is_after(&self, steps: &mut Steps, done: GlobalStep) -> bool {
        let whole = u64::from(self.complete_epochs()) * steps.per_epoch();
        if done.0 < whole || done.0 - whole > steps.per_epoch() * self.open.len() as u64 {
            return false;
        }
        let partial: Vec<RowRange> = (whole + 1..=done.0).flat_map(|step| steps.of(GlobalStep(step))).collect();
        let committed: u64 = self.open.iter().flat_map(|e| &e.partitions).map(|p| p.committed.rows()).sum();
        partial.iter().all(|r| self.is_committed(r)) && partial.iter().map(RowRange::rows).sum::<u64>() == committed
    }

    /// Goes on to the next step when the one at hand is committed.
    pub(super) fn end_step(&mut self) {
        let Some(mut in_order) = self.in_order.take() else { return };
        if let Some(steps) = &mut in_order.steps {
            loop {
                let next = steps.of(GlobalStep(in_order.done.0 + 1));
                if next.is_empty() || !next.iter().all(|r| self.is_committed(r)) {
                    break;
                }
                in_order.done.0 += 1;
            }
        }
        self.in_order = Some(in_order);
    }

    fn is_committed(&self, range: &RowRange) -> bool {
        let open = self.open.iter().find(|e| e.number == range.epoch);
        let part = open.and_then(|e| e.partitions.get(range.partition as usize));
        range.epoch < self.complete_epochs() || part.is_some_and(|p| p.committed.contains(range.start, range.end))
    }

    /// Who holds rows of it.
    fn overlapping_lease(&self, range: &RowRange) -> Option<u32> {
        let open = self.open.iter().find(|e| e.number == range.epoch)?;
        let leased = &open.partitions.get(range.partition as usize)?.leased;
        leased.range(..range.end).next_back().filter(|(_, (end, _))| *end > range.start).map(|(_, (_, worker))| *worker)
    }
}

#[cfg(test)]
#[path = "micro_batch_tests.rs"]
mod tests;
