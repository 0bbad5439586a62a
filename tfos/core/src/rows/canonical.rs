//! Deterministic training: which rows are micro-batch i of global step s, as a pure function.
//!
//! - `DET-1` the rows of a micro-batch depend on its step and index, the input, its shuffle and the cut alone: not on who
//!   asks, nor on how many do, nor on what was lost or resumed.
//!
//! An epoch's partitions come in their (shuffled) order, each is cut into micro-batches of equal size, the last of which is
//! shorter, and each `micro_batches` of them are one step. Steps do not cross epochs, so the last one of an epoch has fewer.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

use super::{RowRange, Shuffle};
use crate::ids::GlobalStep;

/// How the rows of a job are cut into steps; part of its checkpoints, because another cut gives other parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Micro-batches of a step.
    pub micro_batches: NonZeroU32,
    /// Rows of a micro-batch.
    pub rows: NonZeroU64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} micro-batches of {} rows per step", self.micro_batches, self.rows)
    }
}

/// Place of a micro-batch in the order of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroBatch {
    /// The step that it becomes a part of; its gradient is computed from the parameters of the step before.
    pub step: GlobalStep,
    /// Its number within the step, from 0.
    pub index: u32,
    /// How many the step has.
    pub of: u32,
}

impl MicroBatch {
    /// Its gradient is the last one of the step.
    pub fn is_last(&self) -> bool {
        self.index + 1 == self.of
    }

    /// Seed of everything random in its computation. Fixed here (SplitMix64's mixing): a resumed job has to draw what it
    /// would have drawn.
    pub fn seed(&self, job: u64) -> u64 {
        let mix = |x: u64| {
            let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        let add = |seed: u64, part: u64| mix(seed.wrapping_add(part).wrapping_add(0x9e37_79b9_7f4a_7c15));
        add(add(add(0, job), self.step.0), u64::from(self.index))
    }
}

/// The steps of a job.
#[derive(Debug, Clone)]
pub struct Steps {
    cut: Cut,
    epochs: u32,
    /// Of each partition.
    rows: Vec<u64>,
    shuffle: Option<Shuffle>,
    /// Micro-batches of an epoch.
    per_epoch: u64,
    /// Of the epoch asked for last: its number, and each partition with the number of its first micro-batch, in order.
    order: Option<(u32, Vec<(u64, u32)>)>,
}

impl Steps {
    /// `epochs` passes over partitions of so many `rows`.
    pub fn new(cut: Cut, epochs: u32, rows: Vec<u64>, shuffle: Option<Shuffle>) -> Self {
        let per_epoch = rows.iter().map(|rows| rows.div_ceil(cut.rows.get())).sum();
        Self { cut, epochs, rows, shuffle, per_epoch, order: None }
    }

    /// The cut.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// Steps of each epoch.
    pub fn per_epoch(&self) -> u64 {
        self.per_epoch.div_ceil(u64::from(self.cut.micro_batches.get()))
    }

    /// The rows of each micro-batch of a step, in their order; the first step is 1. Beyond the last step there are none.
    pub fn of(&mut self, step: GlobalStep) -> Vec<RowRange> {
        let per_epoch = self.per_epoch();
        let Some(number) = step.0.checked_sub(1).filter(|_| per_epoch > 0) else { return vec![] };
        if number / per_epoch >= u64::from(self.epochs) {
            return vec![];
        }
        let epoch = (number / per_epoch) as u32;
        let first = number % per_epoch * u64::from(self.cut.micro_batches.get());
        let end = self.per_epoch.min(first + u64::from(self.cut.micro_batches.get()));
        self.begin(epoch);
        (first..end).filter_map(|number| self.micro_batch(epoch, number)).collect()
    }

    /// Micro-batch `number` of the epoch that [`Self::begin`] was called for.
    fn micro_batch(&self, epoch: u32, number: u64) -> Option<RowRange> {
        let (_, order) = self.order.as_ref()?;
        let place = order.partition_point(|(first, _)| *first <= number);
        let (first, partition) = *order.get(place.checked_sub(1)?)?;
        let start = (number - first) * self.cut.rows.get();
        let end = self.rows.get(partition as usize)?.to_owned().min(start + self.cut.rows.get());
        Some(RowRange { epoch, partition, start, end })
    }

    fn begin(&mut self, epoch: u32) {
        if self.order.as_ref().is_some_and(|(known, _)| *known == epoch) {
            return;
        }
        let count = self.rows.len() as u32;
        let partitions = match self.shuffle {
            Some(shuffle) => shuffle.partitions(epoch, count),
            None => (0..count).collect(),
        };
        let mut next = 0;
        let mut order = vec![];
        for partition in partitions {
            let parts = self.rows.get(partition as usize).map_or(0, |rows| rows.div_ceil(self.cut.rows.get()));
            // One without rows is left out: the search finds the last that begins at or before a number.
            if parts > 0 {
                order.push((next, partition));
            }
            next += parts;
        }
        self.order = Some((epoch, order));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(micro_batches: u32, rows: u64) -> Cut {
        Cut { micro_batches: NonZeroU32::new(micro_batches).unwrap(), rows: NonZeroU64::new(rows).unwrap() }
    }

    fn range(epoch: u32, partition: u32, start: u64, end: u64) -> RowRange {
        RowRange { epoch, partition, start, end }
    }

    #[test] // DET-1
    fn partitions_are_cut_one_after_the_other_and_steps_end_with_the_epoch() {
        let mut steps = Steps::new(cut(3, 10), 2, vec![25, 0, 10], None);
        assert_eq!(steps.per_epoch(), 2);
        for epoch in 0..2 {
            let first = u64::from(epoch) * 2 + 1;
            let whole = [range(epoch, 0, 0, 10), range(epoch, 0, 10, 20), range(epoch, 0, 20, 25)];
            assert_eq!(steps.of(GlobalStep(first)), whole);
            assert_eq!(steps.of(GlobalStep(first + 1)), [range(epoch, 2, 0, 10)]);
        }
        assert!(steps.of(GlobalStep(0)).is_empty() && steps.of(GlobalStep(5)).is_empty());
        assert!(Steps::new(cut(3, 10), 2, vec![0, 0], None).of(GlobalStep(1)).is_empty());
    }

    #[test] // DET-1
    fn each_row_of_an_epoch_is_in_one_micro_batch_and_the_seed_orders_the_partitions() {
        let shuffle = Shuffle { seed: 11, block_rows: NonZeroU32::MIN };
        let rows = vec![7u64, 0, 64, 1, 33];
        let mut steps = Steps::new(cut(4, 8), 3, rows.clone(), Some(shuffle));
        for epoch in 0..3u32 {
            let first = u64::from(epoch) * steps.per_epoch() + 1;
            let all: Vec<RowRange> =
                (first..first + steps.per_epoch()).flat_map(|step| steps.of(GlobalStep(step))).collect();
            assert!(all.iter().all(|r| r.epoch == epoch && r.rows() > 0 && r.rows() <= 8));
            let mut order: Vec<u32> = all.iter().map(|r| r.partition).collect();
            order.dedup();
            let begun = shuffle.partitions(epoch, 5).into_iter().filter(|p| *p != 1);
            assert!(order.iter().copied().eq(begun), "{order:?}");
            for (partition, rows) in rows.iter().enumerate() {
                let mut at = 0;
                for r in all.iter().filter(|r| r.partition as usize == partition) {
                    assert_eq!(r.start, at);
                    at = r.end;
                }
                assert_eq!(at, *rows);
            }
        }
    }

    #[test] // what a resumed job draws may not change from version to version
    fn seeds_are_those_that_they_always_were_and_differ() {
        let seed = |job, step, index| MicroBatch { step: GlobalStep(step), index, of: 9 }.seed(job);
        let mut all: Vec<u64> = (0..3u64)
            .flat_map(|job| (1..20u64).flat_map(move |step| (0..8u32).map(move |index| (job, step, index))))
            .map(|(job, step, index)| seed(job, step, index))
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(seed(7, 1, 0), 18_143_426_351_604_549_229);
    }
}
