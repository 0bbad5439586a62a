//! What a commit log covers, beside what a checkpoint says it has seen.
//!
//! - `LED-1` what is reported is what counting every row by itself would find: each row that was applied more than once,
//!   each that the checkpoint has and the log has not, and each that the log has and the checkpoint has not.

use std::collections::BTreeMap;

use super::{CommittedRows, RangeSet, RowRange};

/// Joins the ranges that follow one another without a gap. Those that overlap stay apart.
pub fn coalesce(mut ranges: Vec<RowRange>) -> Vec<RowRange> {
    ranges.retain(|r| r.start < r.end);
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let follows = (next.epoch, next.partition, next.start) == (last.epoch, last.partition, last.end);
        if follows {
            last.end = next.end;
        }
        follows
    });
    ranges
}

/// One partition of one epoch.
#[derive(Debug, Default)]
struct Marks {
    once: BTreeMap<u64, u64>,
    twice: BTreeMap<u64, u64>,
}

/// Adds rows to disjoint, merged ranges; gives those that were in them already.
fn add(set: &mut BTreeMap<u64, u64>, start: u64, end: u64) -> Vec<(u64, u64)> {
    let (mut from, mut to) = (start, end);
    let mut already = vec![];
    // The one before may reach into the new range, or up to it.
    if let Some((s, e)) = set.range(..start).next_back().map(|(s, e)| (*s, *e))
        && e >= start
    {
        if e > start {
            already.push((start, e.min(end)));
        }
        (from, to) = (s, to.max(e));
    }
    let inside: Vec<(u64, u64)> = set.range(start..=end).map(|(s, e)| (*s, *e)).collect();
    for (s, e) in inside {
        if s < end {
            already.push((s, e.min(end)));
        }
        to = to.max(e);
        set.remove(&s);
    }
    set.insert(from, to);
    already
}

/// What an epoch should have and has not, or has and should not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpochFindings {
    /// Which one.
    pub epoch: u32,
    /// Rows applied, each as often as it was.
    pub rows: u64,
    /// Every row of it should be there.
    pub complete: bool,
    /// Applied more than once.
    pub twice: Vec<RowRange>,
    /// Seen by the checkpoint, and not in the log.
    pub missing: Vec<RowRange>,
    /// In the log, and not seen by the checkpoint, or beyond the end of the partition.
    pub unexpected: Vec<RowRange>,
}

/// Rows of a log, added in any order. Its size follows the number of gaps between them, not their number.
#[derive(Debug, Default)]
pub struct Coverage {
    marks: BTreeMap<(u32, u32), Marks>,
    rows: BTreeMap<u32, u64>,
}

impl Coverage {
    /// Adds applied rows; cheapest when they are [`coalesce`]d.
    pub fn add(&mut self, ranges: &[RowRange]) {
        for range in ranges.iter().filter(|r| r.start < r.end) {
            *self.rows.entry(range.epoch).or_default() += range.rows();
            let Marks { once, twice } = self.marks.entry((range.epoch, range.partition)).or_default();
            for (start, end) in add(once, range.start, range.end) {
                add(twice, start, end);
            }
        }
    }

    /// Rows applied, each as often as it was.
    pub fn rows(&self) -> u64 {
        self.rows.values().sum()
    }

    /// Compares with what a checkpoint has seen, epoch by epoch.
    pub fn compare(&self, committed: &CommittedRows) -> Vec<EpochFindings> {
        let mut epochs: BTreeMap<u32, EpochFindings> = BTreeMap::new();
        let known = (0..committed.complete_epochs).chain(committed.partial.keys().copied());
        for epoch in known.chain(self.rows.keys().copied()) {
            epochs.entry(epoch).or_insert_with(|| EpochFindings {
                epoch,
                rows: self.rows.get(&epoch).copied().unwrap_or_default(),
                complete: epoch < committed.complete_epochs,
                ..EpochFindings::default()
            });
        }
        let nothing = Marks::default();
        for found in epochs.values_mut() {
            for partition in self.partitions(found.epoch, committed) {
                let marks = self.marks.get(&(found.epoch, partition)).unwrap_or(&nothing);
                let range = |(start, end)| RowRange { epoch: found.epoch, partition, start, end };
                found.twice.extend(marks.twice.iter().map(|(s, e)| range((*s, *e))));
                let expected = expected(committed, found.epoch, partition, &marks.once);
                found.missing.extend(without(&expected, &marks.once).into_iter().map(range));
                found.unexpected.extend(without(&marks.once, &expected).into_iter().map(range));
            }
        }
        epochs.into_values().collect()
    }

    /// Partitions of an epoch that either side knows.
    fn partitions(&self, epoch: u32, committed: &CommittedRows) -> Vec<u32> {
        let logged = self.marks.range((epoch, 0)..=(epoch, u32::MAX)).map(|((_, partition), _)| *partition);
        let partial = committed.partial.get(&epoch).into_iter().flat_map(|p| p.keys().copied());
        let all = if epoch < committed.complete_epochs { committed.partition_rows.len() as u32 } else { 0 };
        let mut partitions: Vec<u32> = logged.chain(partial).chain(0..all).collect();
        partitions.sort_unstable();
        partitions.dedup();
        partitions
    }
}

/// The rows of a partition that a checkpoint has seen.
fn expected(committed: &CommittedRows, epoch: u32, partition: u32, logged: &BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
    if epoch < committed.complete_epochs {
        let rows = committed.partition_rows.get(partition as usize).copied().unwrap_or(Some(0));
        // Of a partition whose size nobody wrote down the log's own end has to do.
        let rows = rows.unwrap_or_else(|| logged.last_key_value().map_or(0, |(_, end)| *end));
        return (rows > 0).then_some((0, rows)).into_iter().collect();
    }
    let seen = committed.partial.get(&epoch).and_then(|partitions| partitions.get(&partition));
    seen.into_iter().flat_map(RangeSet::iter).collect()
}

/// The rows of `these` that are not in `those`; both disjoint and merged.
fn without(these: &BTreeMap<u64, u64>, those: &BTreeMap<u64, u64>) -> Vec<(u64, u64)> {
    let mut left = vec![];
    let mut others = those.iter().peekable();
    for (start, end) in these {
        let mut at = *start;
        while at < *end {
            match others.peek() {
                // Behind us for good: later ranges of `these` begin later still.
                Some((_, other_end)) if **other_end <= at => drop(others.next()),
                Some((other, other_end)) if **other <= at => at = **other_end,
                Some((other, _)) => {
                    let stop = (**other).min(*end);
                    left.push((at, stop));
                    at = stop;
                }
                None => {
                    left.push((at, *end));
                    at = *end;
                }
            }
        }
    }
    left
}

#[cfg(test)]
#[path = "coverage_tests.rs"]
mod tests;
