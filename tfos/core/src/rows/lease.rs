//! Who may train on which rows: ranges are leased on demand, committed with a global step, or returned.
//!
//! - `FED-1` each row of an epoch is committed exactly once.
//! - `FED-2` a row is leased to at most one worker at a time, and a committed row never again.
//! - `FED-3` rows of a lost worker, and rows whose gradient was dropped, return and are leased again.
//! - `FED-4` a worker is told to wait only while another one holds rows that may still return.

mod micro_batch;

use std::collections::{BTreeMap, VecDeque};

use self::micro_batch::InOrder;
pub use self::micro_batch::Misfit;
use super::{CommittedRows, MicroBatch, RangeSet, RowRange, Shuffle};

/// Epochs that may be in progress at once: the tail of one and the head of the next, so that no worker
/// stands still at the seam.
const OPEN_EPOCHS: usize = 2;

/// Smallest lease at the end of the data, where the rest is shared out evenly.
const SMALLEST_LEASE: u64 = 32;

/// Answer to a worker that asks for rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// Rows to train on.
    Rows(RowRange),
    /// The same in deterministic training: a whole micro-batch, and its place.
    MicroBatch(RowRange, MicroBatch),
    /// Nothing now; ends when another worker's rows are committed (then `End`) or return (then `Rows`).
    Wait,
    /// Every row of every epoch is committed.
    End,
    /// These rows cannot be leased as micro-batches.
    Misfit(Misfit),
}

/// A commit that contradicts the table: a defect of the program, never of the data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The rows are not leased to that worker (any more).
    #[error("{range} was committed by worker {worker}, which holds no lease on it")]
    NotLeased {
        /// Rows in question.
        range: RowRange,
        /// Trainer that sent them.
        worker: u32,
    },
}

#[derive(Debug, Clone, Default)]
struct Partition {
    next: u64,
    committed: RangeSet,
    returned: RangeSet,
    /// start -> (end, worker)
    leased: BTreeMap<u64, (u64, u32)>,
}

#[derive(Debug, Clone)]
struct Epoch {
    number: u32,
    partitions: Vec<Partition>,
    /// In which order they are begun.
    order: Vec<u32>,
}

/// The leases of one feed.
#[derive(Debug, Clone)]
pub struct LeaseTable {
    epochs: u32,
    rows: Vec<Option<u64>>,
    open: VecDeque<Epoch>,
    /// Epoch to open next.
    next_epoch: u32,
    /// Epoch and partition that each worker's scan stands in, so that it goes on where its cursor is.
    at: BTreeMap<u32, (u32, u32)>,
    shuffle: Option<Shuffle>,
    /// Deterministic training only.
    in_order: Option<InOrder>,
}

impl LeaseTable {
    /// A feed of `epochs` passes over a plan whose partitions have `rows` rows where known, from which
    /// `committed` was done before. Partitions are begun in their order, or in that of `shuffle`.
    pub fn new(epochs: u32, rows: Vec<Option<u64>>, committed: &CommittedRows, shuffle: Option<Shuffle>) -> Self {
        let next_epoch = committed.complete_epochs;
        let (open, at) = (VecDeque::new(), BTreeMap::new());
        let mut table = Self { epochs, rows, open, next_epoch, at, shuffle, in_order: None };
        for (known, restored) in table.rows.iter_mut().zip(&committed.partition_rows) {
            *known = known.or(*restored);
        }
        while committed.partial.contains_key(&table.next_epoch) {
            let Some(partial) = committed.partial.get(&table.next_epoch) else { break };
            table.open_epoch();
            let Some(epoch) = table.open.back_mut() else { break };
            for (number, done) in partial {
                if let Some(partition) = epoch.partitions.get_mut(*number as usize) {
                    partition.next = done.end();
                    partition.returned = done.gaps(done.end());
                    partition.committed = done.clone();
                }
            }
        }
        table.close_complete();
        table
    }

    fn open_epoch(&mut self) {
        let (number, count) = (self.next_epoch, self.rows.len());
        let order = match self.shuffle {
            Some(shuffle) => shuffle.partitions(number, count as u32),
            None => (0..count as u32).collect(),
        };
        self.open.push_back(Epoch { number, partitions: vec![Partition::default(); count], order });
        self.next_epoch += 1;
    }

    /// Rows for `worker`, about `want` of them; `workers` is how many share the data.
    pub fn grant(&mut self, worker: u32, want: u64, workers: u32) -> Grant {
        match self.grant_micro_batch(worker, want) {
            Ok(None) => {}
            Ok(Some(grant)) => return grant,
            Err(misfit) => return Grant::Misfit(misfit),
        }
        loop {
            for index in 0..self.open.len() {
                if let Some(range) = self.grant_in(index, worker, want, workers) {
                    return Grant::Rows(range);
                }
            }
            if self.open.len() < OPEN_EPOCHS && self.next_epoch < self.epochs && !self.rows.is_empty() {
                self.open_epoch();
                // An epoch whose partitions are all known to be empty is complete at once.
                self.close_complete();
                if self.open.is_empty() && self.next_epoch >= self.epochs {
                    return Grant::End;
                }
                continue;
            }
            return if self.done() { Grant::End } else { Grant::Wait };
        }
    }

    fn grant_in(&mut self, index: usize, worker: u32, want: u64, workers: u32) -> Option<RowRange> {
        let want = self.fair_share(index, want, workers);
        let epoch = self.open.get_mut(index)?;
        let rows = &self.rows;
        let open_end = |p: usize, part: &Partition| match rows.get(p).copied().flatten() {
            Some(end) => part.next < end,
            None => true,
        };
        // Returned rows first, so that no hole stays behind; then where this worker's cursor stands; then a
        // partition nobody has touched; then any.
        let candidates = || {
            let here = self.at.get(&worker).filter(|at| at.0 == epoch.number).map(|at| at.1 as usize);
            let with = |want: &dyn Fn(usize, &Partition) -> bool| {
                let mut all = epoch.order.iter().map(|p| *p as usize);
                all.find(|p| epoch.partitions.get(*p).is_some_and(|part| want(*p, part)))
            };
            with(&|_, part| !part.returned.is_empty())
                .or_else(|| here.filter(|p| epoch.partitions.get(*p).is_some_and(|part| open_end(*p, part))))
                .or_else(|| with(&|p, part| part.next == 0 && open_end(p, part)))
                .or_else(|| with(&open_end))
        };
        let number = candidates()?;
        let end = rows.get(number).copied().flatten().unwrap_or(u64::MAX);
        let part = epoch.partitions.get_mut(number)?;
        let (start, stop) = match part.returned.pop(want) {
            Some(range) => range,
            None => {
                let start = part.next;
                part.next = start.saturating_add(want).min(end);
                (start, part.next)
            }
        };
        part.leased.insert(start, (stop, worker));
        self.at.insert(worker, (epoch.number, number as u32));
        Some(RowRange { epoch: epoch.number, partition: number as u32, start, end: stop })
    }

    /// In the last epoch, half of an even share of what is left, so that all workers end together.
    fn fair_share(&self, index: usize, want: u64, workers: u32) -> u64 {
        let want = want.max(1);
        let Some(epoch) = self.open.get(index).filter(|e| e.number + 1 == self.epochs) else { return want };
        let mut left = 0u64;
        for (part, rows) in epoch.partitions.iter().zip(&self.rows) {
            let Some(rows) = rows else { return want };
            left += rows.saturating_sub(part.next) + part.returned.rows();
        }
        want.min((left / (2 * u64::from(workers.max(1)))).max(SMALLEST_LEASE))
    }

    /// A scan found that `partition` has `rows` rows; leases beyond its end are void.
    pub fn partition_end(&mut self, partition: u32, rows: u64) {
        let Some(known) = self.rows.get_mut(partition as usize) else { return };
        *known = Some(rows);
        for epoch in &mut self.open {
            let Some(part) = epoch.partitions.get_mut(partition as usize) else { continue };
            part.next = part.next.min(rows);
            part.returned.truncate(rows);
            part.leased.retain(|start, lease| {
                lease.0 = lease.0.min(rows);
                *start < rows
            });
        }
        self.close_complete();
    }

    /// The rows were applied to the parameters.
    pub fn commit(&mut self, worker: u32, range: RowRange) -> Result<(), CommitError> {
        self.take_lease(worker, range)?;
        if let Some(part) = self.partition_mut(range)
            && !part.committed.insert(range.start, range.end)
        {
            return Err(CommitError::NotLeased { range, worker });
        }
        self.close_complete();
        self.end_step();
        Ok(())
    }

    /// The rows were leased but not applied: they go to somebody else (`FED-3`).
    ///
    /// A worker may not have heard yet that its partition ends before them: what lies beyond the end is void.
    pub fn give_back(&mut self, worker: u32, mut range: RowRange) -> Result<(), CommitError> {
        if let Some(rows) = self.rows.get(range.partition as usize).copied().flatten() {
            range.end = range.end.min(rows);
        }
        if range.start >= range.end {
            return Ok(());
        }
        self.take_lease(worker, range)?;
        if let Some(part) = self.partition_mut(range) {
            part.returned.insert(range.start, range.end);
        }
        Ok(())
    }

    /// Every lease of `worker` returns (`FED-3`).
    pub fn release(&mut self, worker: u32) {
        for part in self.open.iter_mut().flat_map(|e| &mut e.partitions) {
            let returned: Vec<(u64, u64)> =
                part.leased.iter().filter(|(_, (_, w))| *w == worker).map(|(s, (e, _))| (*s, *e)).collect();
            for (start, end) in returned {
                part.leased.remove(&start);
                part.returned.insert(start, end);
            }
        }
        self.at.remove(&worker);
    }

    /// Cuts `range` out of the lease that holds it.
    fn take_lease(&mut self, worker: u32, range: RowRange) -> Result<(), CommitError> {
        let not_leased = CommitError::NotLeased { range, worker };
        let part = self.partition_mut(range).ok_or(not_leased.clone())?;
        let (start, (end, _)) = part
            .leased
            .range(..=range.start)
            .next_back()
            .map(|(s, l)| (*s, *l))
            .filter(|(_, (end, owner))| *end >= range.end && *owner == worker && range.start < range.end)
            .ok_or(not_leased)?;
        part.leased.remove(&start);
        if start < range.start {
            part.leased.insert(start, (range.start, worker));
        }
        if range.end < end {
            part.leased.insert(range.end, (end, worker));
        }
        Ok(())
    }

    fn partition_mut(&mut self, range: RowRange) -> Option<&mut Partition> {
        let epoch = self.open.iter_mut().find(|e| e.number == range.epoch)?;
        epoch.partitions.get_mut(range.partition as usize)
    }

    fn close_complete(&mut self) {
        let rows = &self.rows;
        let complete = |epoch: &Epoch| {
            epoch.partitions.iter().zip(rows).all(|(part, rows)| rows.is_some_and(|rows| part.committed.covers(rows)))
        };
        // In order: a later epoch is complete only after the earlier ones, so that "complete below" is one number.
        while self.open.front().is_some_and(complete) {
            self.open.pop_front();
        }
    }

    /// Epochs committed whole, from the first on.
    pub fn complete_epochs(&self) -> u32 {
        self.open.front().map_or(self.next_epoch, |e| e.number)
    }

    /// Every row of every epoch is committed.
    pub fn done(&self) -> bool {
        self.complete_epochs() >= self.epochs || self.rows.is_empty()
    }

    /// Rows of one epoch, when every partition's are known.
    pub fn rows_per_epoch(&self) -> Option<u64> {
        self.rows.iter().copied().sum()
    }

    /// Rows committed so far over all epochs, where the lengths are known.
    pub fn committed_rows(&self) -> u64 {
        let whole = self.rows_per_epoch().unwrap_or(0) * u64::from(self.complete_epochs());
        whole + self.open.iter().flat_map(|e| &e.partitions).map(|p| p.committed.rows()).sum::<u64>()
    }

    /// What a checkpoint at this moment has to remember.
    pub fn committed(&self) -> CommittedRows {
        let partial = self
            .open
            .iter()
            .map(|epoch| {
                let parts = epoch
                    .partitions
                    .iter()
                    .enumerate()
                    .filter(|(_, p)| !p.committed.is_empty())
                    .map(|(i, p)| (i as u32, p.committed.clone()))
                    .collect();
                (epoch.number, parts)
            })
            .collect();
        let (complete_epochs, partition_rows) = (self.complete_epochs(), self.rows.clone());
        CommittedRows { complete_epochs, partition_rows, partial, cut: self.cut() }
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
