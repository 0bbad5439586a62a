//! Bounded staleness: whose answer is withheld, and for how long.
//!
//! Each worker has a clock, the number of its own steps that were applied. After a step it may begin the next one, with
//! the newest parameters, as soon as it is at most `max_staleness` ahead of the slowest worker that counts: the
//! stale synchronous parallel of Ho et al. 2013 ("More Effective Distributed ML via a Stale Synchronous Parallel
//! Parameter Server", NIPS).
//! Its gradient is applied at once all the same, only the answer waits, until a decision of its own releases it.
//!
//! The slowest is never ahead of itself, so somebody can always go on. Who comes back from idling, or from the dead, is
//! put forward to where the slowest has been: nobody is suddenly too far ahead because of it, and it has nothing to
//! catch up with.

use super::{Action, DecisionKind, Mode, Sequencer};

impl Sequencer {
    /// Clock of the slowest worker that counts.
    fn slowest(&self) -> Option<u64> {
        self.workers.values().filter(|worker| worker.presence.is_counted()).map(|worker| worker.clock).min()
    }

    /// How many of its own steps a worker is ahead of the slowest.
    fn staleness(&self, worker: u32) -> u64 {
        let clock = self.workers.get(&worker).map_or(0, |worker| worker.clock);
        self.slowest().map_or(0, |slowest| clock.saturating_sub(slowest))
    }

    /// A worker counts from now on.
    pub(super) fn enter(&mut self, worker: u32) {
        let floor = self.floor;
        if let Some(state) = self.workers.get_mut(&worker) {
            state.clock = state.clock.max(floor);
        }
        self.begin_step(worker);
    }

    /// Notes how far ahead a worker is as it begins a step; in sync mode each applied gradient is fresh.
    fn begin_step(&mut self, worker: u32) {
        let staleness = if self.mode.is_some_and(Mode::is_fresh) { 0 } else { self.staleness(worker) };
        if let Some(state) = self.workers.get_mut(&worker) {
            state.staleness = staleness;
        }
    }

    fn is_too_far(&self, worker: u32) -> bool {
        let Some(Mode::Bounded { max_staleness }) = self.mode else { return false };
        !self.is_finished() && self.staleness(worker) > u64::from(max_staleness)
    }

    /// The push `seq` of `worker` is being applied: whether its answer has to wait.
    pub(super) fn hold(&mut self, worker: u32, seq: u64) -> bool {
        let is_gone = self.workers.get(&worker).is_none_or(|state| state.presence.is_gone());
        let held = !is_gone && self.is_too_far(worker);
        match self.workers.get_mut(&worker) {
            Some(state) if held => state.held = Some(seq),
            _ => self.begin_step(worker),
        }
        held
    }

    /// After every event: lets those go on who are no longer too far ahead.
    pub(super) fn release_those_who_may(&mut self, actions: &mut Vec<Action>) {
        self.floor = self.floor.max(self.slowest().unwrap_or_default());
        let may = |sequencer: &Sequencer| {
            let mut held = sequencer.workers.iter().filter(|(_, state)| state.held.is_some());
            held.find_map(|(&worker, _)| (!sequencer.is_too_far(worker)).then_some(worker))
        };
        while let Some(worker) = may(self) {
            self.release(worker, actions);
        }
    }

    /// Lets this worker go on, if it waits.
    pub(super) fn release(&mut self, worker: u32, actions: &mut Vec<Action>) {
        if let Some(seq) = self.workers.get_mut(&worker).and_then(|state| state.held.take()) {
            self.decide(DecisionKind::Release { worker, seq }, actions);
            self.begin_step(worker);
        }
    }
}
