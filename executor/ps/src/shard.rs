//! One shard's parameters, slots and staged gradients: performs decisions in their order, knows no sockets.
//!
//! Parameters are kept in *versions*. An update reads the current version and writes the next one into a spare
//! buffer, block by block, which costs the memory traffic of an update in place. So whoever holds a version (an
//! answer on its way to a slow worker, a snapshot on its way to storage) reads it without a lock and without a copy,
//! and every worker gets the parameters exactly as its own decision left them, on all shards. The price is memory:
//! one spare version, plus one for each answer or snapshot under way.
//!
//! In the steady state nothing is allocated: versions go back to a pool when their last reader lets go, and a staged
//! gradient's buffer goes back to its connection with the outcome.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::decision::{Decision, DecisionKind, Part};
use crate::error::{Error, Violation};
use crate::optimizer::{MAX_SLOTS, Scheduled, accumulate};
use crate::snapshot::Snapshot;

/// Elements per block: the blocks of all slices of one update stay in the core's own cache (16 KiB each).
const BLOCK: usize = 4096;

/// The parameters of this shard after one global step; never changed once it is current.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) step: u64,
    pub(crate) params: Arc<Vec<f32>>,
}

/// A gradient that has fully arrived, not decided yet. Reused from push to push.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) worker: u32,
    pub(crate) seq: u64,
    pub(crate) gradient: Vec<f32>,
    /// Non-trainable state that came with it; shard 0 only.
    pub(crate) buffers: Option<Vec<f32>>,
}

/// What became of a push.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) seq: u64,
    pub(crate) dropped: bool,
    /// The parameters right after the decision.
    pub(crate) version: Version,
    /// The stage, to be used again.
    pub(crate) staged: Option<Staged>,
}

#[derive(Debug, Default)]
struct WorkerState {
    /// All pushes up to this one are decided.
    decided: u64,
    outcome: Option<Outcome>,
}

/// The state of a shard at its beginning; all vectors cover `range` only.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) shard: usize,
    pub(crate) range: Range<usize>,
    pub(crate) optimizer: Scheduled,
    pub(crate) step: u64,
    pub(crate) optimizer_step: u64,
    pub(crate) params: Vec<f32>,
    /// In the order of `Optimizer::slots`.
    pub(crate) slots: Vec<Vec<f32>>,
    /// Shard 0 only.
    pub(crate) buffers: Option<Vec<f32>>,
}

#[derive(Debug)]
pub(crate) struct Shard {
    shard: usize,
    range: Range<usize>,
    optimizer: Scheduled,
    optimizer_step: u64,
    current: Version,
    /// Older versions, some still being read.
    pool: Vec<Arc<Vec<f32>>>,
    slots: Vec<Vec<f32>>,
    buffers: Option<Vec<f32>>,
    staged: Vec<Staged>,
    workers: BTreeMap<u32, WorkerState>,
    scratch: Vec<f32>,
    next_index: u64,
}

impl Shard {
    /// Lengths of params and slots must be that of the range; the caller has checked what came over the wire.
    pub(crate) fn new(begin: Begin) -> Result<Shard, Error> {
        let expected = begin.range.len();
        for (what, found) in
            std::iter::once(("parameters", begin.params.len())).chain(begin.slots.iter().map(|s| ("slot", s.len())))
        {
            if found != expected {
                return Err(Error::Length { what, expected, found });
            }
        }
        if begin.slots.len() != begin.optimizer.slots().len() {
            let expected = begin.optimizer.slots().len().to_string();
            return Err(Error::State { what: "number of slots", expected, found: begin.slots.len().to_string() });
        }
        Ok(Shard {
            shard: begin.shard,
            range: begin.range,
            optimizer: begin.optimizer,
            optimizer_step: begin.optimizer_step,
            current: Version { step: begin.step, params: Arc::new(begin.params) },
            pool: Vec::new(),
            slots: begin.slots,
            buffers: begin.buffers,
            staged: Vec::new(),
            workers: BTreeMap::new(),
            scratch: vec![0.0; BLOCK.min(expected)],
            next_index: 0,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    pub(crate) fn current(&self) -> &Version {
        &self.current
    }

    pub(crate) fn buffers(&self) -> Option<&[f32]> {
        self.buffers.as_deref()
    }

    /// Whether a decision has been performed: from then on the shard cannot be initialised anew.
    pub(crate) fn is_untouched(&self) -> bool {
        self.next_index == 0
    }

    /// Keeps a complete gradient until it is decided. A push that was decided before it was complete (its worker was
    /// declared lost) is not kept; its outcome is there already.
    pub(crate) fn stage(&mut self, staged: Staged) {
        let state = self.workers.entry(staged.worker).or_default();
        if staged.seq > state.decided {
            self.staged.push(staged);
        } else if let Some(outcome) = state.outcome.as_mut().filter(|outcome| outcome.seq == staged.seq) {
            outcome.staged = Some(staged);
        }
    }

    /// The outcome of a push once it is decided; an older one that nobody asked for gives way to a newer.
    pub(crate) fn take_outcome(&mut self, worker: u32, seq: u64) -> Option<Outcome> {
        let state = self.workers.get_mut(&worker)?;
        if state.outcome.as_ref().is_some_and(|outcome| outcome.seq == seq) { state.outcome.take() } else { None }
    }

    /// Whether an outcome of `seq` can still come.
    pub(crate) fn is_superseded(&self, worker: u32, seq: u64) -> bool {
        self.workers.get(&worker).is_some_and(|state| state.decided > seq)
    }

    /// Performs one decision. An error means that this shard can no longer be equal to the others.
    pub(crate) fn apply(&mut self, decision: Decision) -> Result<Option<Snapshot>, Error> {
        let Decision { index, kind } = decision;
        let diverged = |shard, violation| Error::Diverged { shard, index, violation };
        if index != self.next_index {
            let violation = Violation::Mismatch { what: "index", expected: self.next_index, found: index };
            return Err(diverged(self.shard, violation));
        }
        self.next_index += 1;
        match kind {
            DecisionKind::Apply { step, parts } => {
                if step != self.current.step + 1 {
                    let violation = Violation::Mismatch { what: "step", expected: self.current.step + 1, found: step };
                    return Err(diverged(self.shard, violation));
                }
                for (place, part) in parts.iter().enumerate() {
                    // The staged gradients come to the front, in the order of the parts.
                    let is_part = |staged: &Staged| staged.worker == part.worker && staged.seq == part.seq;
                    match self.staged.iter().skip(place).position(is_part) {
                        Some(found) => self.staged.swap(place, place + found),
                        None => {
                            let violation = Violation::NotStaged { worker: part.worker, seq: part.seq };
                            return Err(diverged(self.shard, violation));
                        }
                    }
                }
                self.update(step, &parts)?;
                for part in parts.iter().rev() {
                    let staged = self.staged.iter().position(|s| s.worker == part.worker && s.seq == part.seq);
                    let staged = staged.map(|at| self.staged.swap_remove(at));
                    self.decided(part.worker, part.seq, false, staged);
                }
                Ok(None)
            }
            DecisionKind::Drop { worker, seq } => {
                let staged = self.staged.iter().position(|s| s.worker == worker && s.seq == seq);
                let staged = staged.map(|at| self.staged.swap_remove(at));
                self.decided(worker, seq, true, staged);
                Ok(None)
            }
            DecisionKind::Snapshot { id, step } => {
                if step != self.current.step {
                    let violation = Violation::Mismatch { what: "step", expected: self.current.step, found: step };
                    return Err(diverged(self.shard, violation));
                }
                Ok(Some(self.snapshot(id)))
            }
        }
    }

    /// Writes the next version from the first `parts.len()` staged gradients, in one pass over all memory.
    fn update(&mut self, step: u64, parts: &[Part]) -> Result<(), Error> {
        let len = self.len();
        let mut next = self.spare();
        let out = Arc::make_mut(&mut next);
        self.optimizer_step += 1;
        let update = self.optimizer.update(self.current.step, self.optimizer_step);
        let count = self.slots.len();
        let mut start = 0;
        while start < len {
            let block = start..(start + BLOCK).min(len);
            start = block.end;
            let params = &mut out[block.clone()];
            params.copy_from_slice(&self.current.params[block.clone()]);
            let mut slots: [&mut [f32]; MAX_SLOTS] = Default::default();
            for (view, slot) in slots.iter_mut().zip(&mut self.slots) {
                *view = &mut slot[block.clone()];
            }
            let slots = &mut slots[..count];
            if let [part] = parts {
                update.apply(part.weight, params, &self.staged[0].gradient[block], slots)?;
            } else {
                let sum = &mut self.scratch[..block.len()];
                for (i, (part, staged)) in parts.iter().zip(&self.staged).enumerate() {
                    accumulate(sum, &staged.gradient[block.clone()], part.weight, i == 0);
                }
                update.apply(1.0, params, sum, slots)?;
            }
        }
        for staged in &mut self.staged[..parts.len()] {
            if let (Some(buffers), Some(sent)) = (&mut self.buffers, &staged.buffers) {
                buffers.clone_from(sent);
            }
        }
        let last = std::mem::replace(&mut self.current, Version { step, params: next });
        self.pool.push(last.params);
        Ok(())
    }

    /// A version that nobody reads any more, or a new one.
    fn spare(&mut self) -> Arc<Vec<f32>> {
        let free = self.pool.iter_mut().position(|version| Arc::get_mut(version).is_some());
        match free {
            Some(at) => self.pool.swap_remove(at),
            None => Arc::new(vec![0.0; self.len()]),
        }
    }

    fn decided(&mut self, worker: u32, seq: u64, dropped: bool, staged: Option<Staged>) {
        let version = self.current.clone();
        let state = self.workers.entry(worker).or_default();
        state.decided = state.decided.max(seq);
        state.outcome = Some(Outcome { seq, dropped, version, staged });
    }

    fn snapshot(&self, id: u64) -> Snapshot {
        let names = self.optimizer.slots().iter().map(|&name| name.to_owned());
        Snapshot {
            id,
            step: self.current.step,
            optimizer_step: self.optimizer_step,
            range: self.range.clone(),
            params: Arc::clone(&self.current.params),
            slots: names.zip(self.slots.iter().cloned()).collect(),
            buffers: self.buffers.clone(),
        }
    }

    /// Lets go of an outcome that nobody will ask for, so that its version can be used again.
    pub(crate) fn forget(&mut self, worker: u32, seq: u64) {
        self.take_outcome(worker, seq);
    }

    /// Lets go of a stage that no decision will ever name, as the order refused to hear of it.
    pub(crate) fn unstage(&mut self, worker: u32, seq: u64) {
        self.staged.retain(|staged| (staged.worker, staged.seq) != (worker, seq));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Optimizer;

    fn shard(len: usize) -> Shard {
        let optimizer = Optimizer::Sgd { learning_rate: 1.0, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        let (params, slots) = (vec![0.0; len], Vec::new());
        let begin = Begin {
            shard: 1,
            range: 16..16 + len,
            optimizer: optimizer.into(),
            step: 5,
            optimizer_step: 0,
            params,
            slots,
            buffers: None,
        };
        Shard::new(begin).unwrap()
    }

    fn stage(shard: &mut Shard, worker: u32, seq: u64, value: f32) {
        let gradient = vec![value; shard.len()];
        shard.stage(Staged { worker, seq, gradient, buffers: None });
    }

    fn apply(index: u64, step: u64, parts: &[(u32, u64, f32)]) -> Decision {
        let parts = parts.iter().map(|&(worker, seq, weight)| Part { worker, seq, weight }).collect();
        Decision { index, kind: DecisionKind::Apply { step, parts } }
    }

    #[test]
    fn an_update_is_the_weighted_sum_of_its_parts_in_every_block() {
        let mut shard = shard(2 * BLOCK + 3);
        stage(&mut shard, 2, 1, 100.0);
        stage(&mut shard, 1, 1, 4.0);
        stage(&mut shard, 0, 1, 8.0);
        shard.apply(apply(0, 6, &[(0, 1, 0.75), (1, 1, 0.25)])).unwrap();
        assert!(shard.current().params.iter().all(|&p| p == -7.0));
        assert_eq!(shard.staged.len(), 1);
        let outcome = shard.take_outcome(1, 1).unwrap();
        assert!(!outcome.dropped && outcome.version.step == 6 && outcome.staged.is_some());
        assert!(shard.take_outcome(2, 1).is_none());
    }

    #[test]
    fn a_version_in_a_readers_hand_never_changes_and_is_used_again_afterwards() {
        let mut shard = shard(100);
        let mut held = Vec::new();
        for i in 0..4 {
            stage(&mut shard, 0, i + 1, 1.0);
            shard.apply(apply(i, 6 + i, &[(0, i + 1, 1.0)])).unwrap();
            held.push(shard.take_outcome(0, i + 1).unwrap().version);
        }
        assert_eq!(held.iter().map(|v| v.params[99]).collect::<Vec<_>>(), [-1.0, -2.0, -3.0, -4.0]);
        drop(held);
        let before = shard.pool.len();
        for i in 4..20 {
            stage(&mut shard, 0, i + 1, 1.0);
            shard.apply(apply(i, 6 + i, &[(0, i + 1, 1.0)])).unwrap();
            shard.forget(0, i + 1);
        }
        assert_eq!(shard.pool.len(), before);
    }

    #[test] // PS-2
    fn a_gap_or_an_unknown_push_stops_the_shard() {
        let mut shard = shard(10);
        assert!(matches!(shard.apply(apply(1, 6, &[(0, 1, 1.0)])), Err(Error::Diverged { .. })));
        assert!(matches!(shard.apply(apply(0, 7, &[(0, 1, 1.0)])), Err(Error::Diverged { .. })));
        assert!(matches!(shard.apply(apply(1, 6, &[(0, 1, 1.0)])), Err(Error::Diverged { .. })));
        assert!(shard.current().params.iter().all(|&p| p == 0.0));
    }

    #[test] // PS-4
    fn a_push_that_was_dropped_before_it_was_complete_is_not_kept() {
        let mut shard = shard(10);
        shard.apply(Decision { index: 0, kind: DecisionKind::Drop { worker: 3, seq: 7 } }).unwrap();
        stage(&mut shard, 3, 7, 1.0);
        assert!(shard.staged.is_empty());
        let outcome = shard.take_outcome(3, 7).unwrap();
        assert!(outcome.dropped && outcome.staged.is_some());
    }
}
