//! One shard's parameters, slots and staged gradients: performs decisions in their order, knows no sockets.
//!
//! Parameters are kept in *versions*. An update reads the current version and writes the next one into a spare
//! buffer, block by block, which costs the memory traffic of an update in place. So whoever holds a version (an
//! answer on its way to a slow worker, a snapshot on its way to storage) reads it without a lock and without a copy,
//! and every worker gets the parameters exactly as its own decision left them, on all shards. The price is memory:
//! one spare version, plus one for each answer or snapshot under way, and for each worker that has a window
//! ([`crate::transport::Window`]): it reads its version there, until it pushes again, and keeps none of its own.
//!
//! Slots have no readers but snapshots; they are updated in place, but for what a snapshot holds ([`Slots`]).
//!
//! In the steady state nothing is allocated: versions go back to a pool when their last reader lets go, and a staged
//! gradient's buffer goes back to its connection with the outcome.

mod average;
mod gradient;
mod groups;
mod measure;
mod pass;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use self::average::SlotState;
pub(crate) use self::gradient::{Gradient, InBlock, InWindow};
use self::groups::Groups;
use self::pass::Pass;
pub(crate) use self::pass::grain;
use crate::decision::{Decision, DecisionKind, Part};
use crate::dial::Dial;
use crate::error::{Error, Violation};
use crate::memory::{Arena, Cut, Floats, Pool, Slots};
use crate::optimizer::Scheduled;
use crate::snapshot::Snapshot;

/// Elements per block: the blocks of all slices of one update stay in the core's own cache (8 KiB each).
const BLOCK: usize = 2048;

/// Elements from which a version is larger than what caches keep until it is sent.
const PAST_CACHES: usize = 16 << 20;

/// The parameters of this shard after one global step; never changed once it is current.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) step: u64,
    pub(crate) params: Arc<Floats>,
}

/// A gradient that has fully arrived, not decided yet. Reused from push to push.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) worker: u32,
    pub(crate) seq: u64,
    pub(crate) gradient: Gradient,
    /// What it came as, where that was compressed.
    pub(crate) codes: Vec<u32>,
    /// Non-trainable state that came with it; shard 0 only.
    pub(crate) buffers: Option<Vec<f32>>,
    /// Its worker has been answered already, and does not ask what became of it.
    pub(crate) answered: bool,
}

/// What became of a push.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) seq: u64,
    pub(crate) dropped: bool,
    /// The parameters right after the decision.
    pub(crate) version: Version,
    /// With them the slots, where workers keep them too.
    pub(crate) slots: SlotState,
    /// The stage, to be used again.
    pub(crate) staged: Option<Staged>,
}

/// What performing a decision gives, besides outcomes.
#[derive(Debug)]
pub(crate) enum Performed {
    Nothing,
    Snapshot(Snapshot),
    /// This shard's part of a round of measuring.
    Measured(Measured),
}

/// Sums over this shard, which ps:0 adds up over all shards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measured {
    pub(crate) step: u64,
    pub(crate) round: u32,
    pub(crate) sums: Vec<f64>,
}

#[derive(Debug, Default)]
struct WorkerState {
    /// All pushes up to this one are decided.
    decided: u64,
    outcome: Option<Outcome>,
    /// A push that is applied and whose outcome is withheld, with its stage.
    held: Option<(u64, Option<Staged>)>,
}

/// The state of a shard at its beginning; all vectors cover `range` only.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) shard: usize,
    /// Whether there is no other: then ps:0 does not have it measured apart, and it measures while it applies.
    pub(crate) alone: bool,
    /// Whether its sums are to have the same bits for any number of shards.
    pub(crate) exact: bool,
    pub(crate) range: Range<usize>,
    /// Name and part of each variable of the layout in it, counted from its start.
    pub(crate) variables: Vec<(String, Range<usize>)>,
    pub(crate) optimizer: Scheduled,
    /// Where pushes are states of workers rather than gradients: updates of its own that each of them took.
    pub(crate) local_steps: Option<u32>,
    pub(crate) step: u64,
    pub(crate) optimizer_step: u64,
    /// Where `params` and `slots` are.
    pub(crate) arena: Arc<Arena>,
    pub(crate) params: Floats,
    /// In the order of `Optimizer::slots`.
    pub(crate) slots: Slots,
    /// Shard 0 only.
    pub(crate) buffers: Option<Vec<f32>>,
}

#[derive(Debug)]
pub(crate) struct Shard {
    shard: usize,
    alone: bool,
    exact: bool,
    range: Range<usize>,
    /// What is updated alike: the parts of the variables, or everything where variables do not matter.
    variables: Vec<Range<usize>>,
    named: Vec<(String, Range<usize>)>,
    groups: Groups,
    optimizer: Scheduled,
    local_steps: Option<u32>,
    optimizer_step: u64,
    current: Version,
    /// Older versions, some still being read.
    pool: Arc<Pool>,
    slots: Slots,
    buffers: Option<Vec<f32>>,
    staged: Vec<Staged>,
    /// Stages that nobody waits for, to be used again.
    free: Vec<Staged>,
    workers: BTreeMap<u32, WorkerState>,
    scratch: Vec<f32>,
    next_index: u64,
    /// Whether what the first snapshot wants is being found already.
    prepared: bool,
}

impl Shard {
    /// Lengths of params and slots must be that of the range; the caller has checked what came over the wire.
    pub(crate) fn new(begin: Begin) -> Result<Shard, Error> {
        let expected = begin.range.len();
        for (what, found) in [("parameters", begin.params.len()), ("slot", begin.slots.len())] {
            if found != expected {
                return Err(Error::Length { what, expected, found });
            }
        }
        if begin.slots.count() != begin.optimizer.slots().len() {
            let expected = begin.optimizer.slots().len().to_string();
            return Err(Error::State { what: "number of slots", expected, found: begin.slots.count().to_string() });
        }
        let everything = std::iter::once(0..expected).collect();
        let named = begin.variables;
        let apart = begin.optimizer.has_trust_ratios();
        let variables = if apart { named.iter().map(|(_, part)| part.clone()).collect() } else { everything };
        let (pool, slots) = (Pool::new(&begin.arena, expected), begin.slots);
        Ok(Shard {
            shard: begin.shard,
            variables,
            named,
            groups: Groups::default(),
            alone: begin.alone,
            exact: begin.exact,
            range: begin.range,
            optimizer: begin.optimizer,
            local_steps: begin.local_steps,
            optimizer_step: begin.optimizer_step,
            current: Version { step: begin.step, params: Arc::new(begin.params) },
            pool,
            slots,
            buffers: begin.buffers,
            staged: Vec::new(),
            free: Vec::new(),
            workers: BTreeMap::new(),
            scratch: vec![0.0; BLOCK.min(expected)],
            next_index: 0,
            prepared: false,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether its model can be trained so; an error in words.
    pub(crate) fn check_dial(&self, dial: &Dial) -> Result<(), String> {
        dial.check_names(self.named.iter().map(|(name, _)| name.as_str()), &self.optimizer)
    }

    /// Elements of a push.
    pub(crate) fn push_len(&self) -> usize {
        self.len() * (1 + self.local_steps.map_or(0, |_| self.slots.count()))
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
        } else if staged.answered {
            self.free.push(staged);
        } else if let Some(outcome) = state.outcome.as_mut().filter(|outcome| outcome.seq == staged.seq) {
            outcome.staged = Some(staged);
        }
    }

    /// A stage to read a gradient into.
    pub(crate) fn take_free(&mut self) -> Option<Staged> {
        self.free.pop()
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
    pub(crate) fn apply(&mut self, decision: &mut Decision) -> Result<Performed, Error> {
        let Decision { index, kind } = decision;
        let index = *index;
        if index != self.next_index {
            let violation = Violation::Mismatch { what: "index", expected: self.next_index, found: index };
            return Err(self.diverged(index, violation));
        }
        self.next_index += 1;
        match kind {
            DecisionKind::Measure { step, round, parts, totals } => {
                let (step, round) = (*step, *round);
                self.gather(index, step, parts)?;
                let sums = self.measure(round, parts, totals)?;
                Ok(Performed::Measured(Measured { step, round, sums }))
            }
            DecisionKind::Apply { step, parts, totals, held } => {
                let (step, held) = (*step, *held);
                self.gather(index, step, parts)?;
                if let Some(steps) = self.local_steps {
                    self.average(step, parts, steps)?;
                } else if !self.groups.is_empty() {
                    self.update_the_rest(step, parts)?;
                } else {
                    for round in 0..if self.alone { self.optimizer.rounds().len() } else { 0 } {
                        totals.extend(self.measure(round as u32, parts, totals)?);
                    }
                    self.update(step, parts, totals)?;
                }
                for part in parts.iter().rev() {
                    let staged = self.staged.iter().position(|s| s.worker == part.worker && s.seq == part.seq);
                    let staged = staged.map(|at| self.staged.swap_remove(at));
                    if held {
                        let state = self.workers.entry(part.worker).or_default();
                        state.decided = state.decided.max(part.seq);
                        state.held = Some((part.seq, staged));
                    } else {
                        self.decided(part.worker, part.seq, false, staged);
                    }
                }
                Ok(Performed::Nothing)
            }
            &mut DecisionKind::Eager { step, worker, seq } => {
                let parts = [Part { worker, seq, weight: 1.0 }];
                self.gather(index, step, &parts)?;
                self.update_eagerly(&parts)?;
                Ok(Performed::Nothing)
            }
            DecisionKind::Groups { groups, replicas } => {
                self.regroup(groups, *replicas);
                Ok(Performed::Nothing)
            }
            &mut DecisionKind::Release { worker, seq } => {
                let held = self.workers.get_mut(&worker).and_then(|state| state.held.take_if(|held| held.0 == seq));
                let Some((_, staged)) = held else {
                    return Err(self.diverged(index, Violation::NotStaged { worker, seq }));
                };
                self.decided(worker, seq, false, staged);
                Ok(Performed::Nothing)
            }
            &mut DecisionKind::Drop { worker, seq } => {
                let staged = self.staged.iter().position(|s| s.worker == worker && s.seq == seq);
                let staged = staged.map(|at| self.staged.swap_remove(at));
                self.decided(worker, seq, true, staged);
                Ok(Performed::Nothing)
            }
            &mut DecisionKind::Snapshot { id, step } => {
                if step != self.current.step {
                    let violation = Violation::Mismatch { what: "step", expected: self.current.step, found: step };
                    return Err(self.diverged(index, violation));
                }
                Ok(Performed::Snapshot(self.snapshot(id)))
            }
        }
    }

    fn diverged(&self, index: u64, violation: Violation) -> Error {
        Error::Diverged { shard: self.shard, index, violation }
    }

    /// Checks that `step` is the next one, and brings its gradients to the front, in the order of the parts.
    fn gather(&mut self, index: u64, step: u64, parts: &[Part]) -> Result<(), Error> {
        if step != self.current.step + 1 {
            let violation = Violation::Mismatch { what: "step", expected: self.current.step + 1, found: step };
            return Err(self.diverged(index, violation));
        }
        for (place, part) in parts.iter().enumerate() {
            let is_part = |staged: &Staged| staged.worker == part.worker && staged.seq == part.seq;
            match self.staged.iter().skip(place).position(is_part) {
                Some(found) => self.staged.swap(place, place + found),
                None => {
                    let violation = Violation::NotStaged { worker: part.worker, seq: part.seq };
                    return Err(self.diverged(index, violation));
                }
            }
        }
        Ok(())
    }

    /// Writes the next version from the first `parts.len()` staged gradients, in one pass over all memory.
    fn update(&mut self, step: u64, parts: &[Part], totals: &[f64]) -> Result<(), Error> {
        let variables = self.variables.len();
        let plan = self.optimizer.plan(self.current.step, self.optimizer_step + 1, totals, variables)?;
        self.optimizer_step += 1;
        let mut next = self.pool.take()?;
        // Nobody else has it; if somebody had, nothing would be written.
        let Some(out) = Arc::get_mut(&mut next) else { return Err(Error::Stopped) };
        let pass = Pass {
            plan,
            variables: &self.variables,
            current: &self.current.params,
            staged: &self.staged,
            parts,
            past_caches: out.len() >= PAST_CACHES,
        };
        pass.run(0..out.len(), out, self.slots.update())?;
        self.conclude(step, parts, next);
        Ok(())
    }

    /// The update is written: its buffers count, and `next` is the current version.
    fn conclude(&mut self, step: u64, parts: &[Part], next: Arc<Floats>) {
        for staged in &mut self.staged[..parts.len()] {
            if let (Some(buffers), Some(sent)) = (&mut self.buffers, &staged.buffers) {
                buffers.clone_from(sent);
            }
        }
        self.replace(step, next);
    }

    fn replace(&mut self, step: u64, params: Arc<Floats>) {
        let last = std::mem::replace(&mut self.current, Version { step, params });
        self.pool.put(last.params);
        // The next version, and what the first snapshot wants beside the state, so that no step waits for it; and not while
        // workers wait for their first parameters.
        if !std::mem::replace(&mut self.prepared, true) {
            self.pool.prepare(2);
            self.slots.prepare();
        }
    }

    fn decided(&mut self, worker: u32, seq: u64, dropped: bool, mut staged: Option<Staged>) {
        let version = self.current.clone();
        let slots = self.slot_state();
        let state = self.workers.entry(worker).or_default();
        if let Some(staged) = staged.take_if(|staged| staged.answered) {
            state.decided = state.decided.max(seq);
            return self.free.push(staged);
        }
        // A later push of a worker that came back can be dropped while an earlier one is still being measured.
        if seq >= state.decided {
            state.decided = seq;
            state.outcome = Some(Outcome { seq, dropped, version, slots, staged });
        }
    }

    /// Nothing is copied; what the next update needs beside what is frozen is sought meanwhile.
    fn snapshot(&self, id: u64) -> Snapshot {
        self.pool.prepare(1);
        let names = self.optimizer.slots().iter().map(|&name| name.to_owned());
        Snapshot {
            id,
            step: self.current.step,
            optimizer_step: self.optimizer_step,
            range: self.range.clone(),
            params: Cut::whole(Arc::clone(&self.current.params)),
            slots: names.zip(self.slots.freeze()).collect(),
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
