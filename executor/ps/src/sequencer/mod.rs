//! Which push becomes which global step: a pure state machine that lives on ps:0, without I/O, clock or randomness.
//!
//! ```text
//!   push:    unseen --first Staged or PushMeta--> pending --all shards + meta--> complete --> decided
//!   worker:  Expected --Joined--> Active <--Active, PushMeta / Idle--> Idle        (counted: Expected, Active)
//!            any --Left--> Left,  any --Lost--> Lost,  Left and Lost --Joined--> Joined --> Active or Idle
//!   update:  --Measure--> all shards --Measured--> ... --Apply-->     (one at a time; at once where nothing is measured)
//! ```
//!
//! Invariants, each named by a test:
//!
//! - **PS-1** an update is applied on every shard or on none: a push is decided `Apply` only when every shard has
//!   staged all of it.
//! - **PS-2** all shards apply the same decisions in the same order: one list, numbered without gaps.
//! - **PS-3** in sync mode each applied gradient was computed at the step before the one it becomes.
//! - **PS-4** each push is decided exactly once.
//! - **PS-5** nobody waits for an idle, finished or dead worker.
//! - **DET-2** in deterministic mode an update has every part of its step once, in the order of their places.
//! - **PS-6** with bounded staleness no worker begins a step more than `max_staleness` of its own steps ahead of the
//!   slowest one that counts.
//!
//! A worker that has not joined yet counts as active: otherwise the first to arrive would train alone, and sync with
//! R = N would depend on who starts faster. A worker that joins again counts only from its first push (which may be
//! stale) or its `WorkerActive`, so nobody waits while it loads.

#[cfg(test)]
mod deterministic_tests;
mod event;
mod measuring;
#[cfg(test)]
mod property;
mod spare;
mod staleness;
#[cfg(test)]
mod tests;
mod turning;
#[cfg(test)]
mod turning_tests;
mod worker;

use std::collections::BTreeMap;

pub use self::event::{Action, Event, Mode, Notice, Place, PushMeta};
use self::measuring::Measuring;
use self::spare::Spare;
use self::worker::{Pending, Presence, Worker};
use crate::decision::{Commit, Decision, DecisionKind, DropReason, Part};
use crate::dial::{Dial, Group};

/// See the module: feed it events, perform its actions.
#[derive(Debug)]
pub struct Sequencer {
    shards: usize,
    mode: Option<Mode>,
    step: u64,
    max_steps: Option<u64>,
    stopped: bool,
    next_index: u64,
    workers: BTreeMap<u32, Worker>,
    /// Pushes that are complete (worker and seq), in order of completion.
    complete: Vec<(u32, u64)>,
    /// Rounds of measuring before each update.
    rounds: u32,
    measuring: Option<Measuring>,
    /// Groups: what is accepted for the next step.
    accepted: Vec<Commit>,
    groups: Vec<Group>,
    /// Snapshots that were asked for while an update was half applied: they come right after it.
    waiting_snapshots: Vec<u64>,
    waiting_turns: Vec<(Option<u64>, Dial)>,
    /// The highest clock that the slowest worker has had.
    floor: u64,
    /// The pushes of the update that is being decided.
    chosen: Vec<(u32, u64)>,
    spare: Spare,
}

impl Sequencer {
    /// For `shards` shards and the workers 0..`workers`; others may join later. Nothing is applied before
    /// [`Event::Initialised`].
    pub fn new(shards: usize, workers: u32) -> Sequencer {
        Sequencer {
            shards: shards.max(1),
            mode: None,
            step: 0,
            max_steps: None,
            stopped: false,
            next_index: 0,
            workers: (0..workers).map(|worker| (worker, Worker::new(Presence::Expected))).collect(),
            complete: Vec::new(),
            rounds: 0,
            measuring: None,
            accepted: Vec::new(),
            groups: Vec::new(),
            waiting_snapshots: Vec::new(),
            waiting_turns: Vec::new(),
            floor: 0,
            chosen: Vec::new(),
            spare: Spare::default(),
        }
    }

    /// The global step: number of updates decided, counted from the one initialised.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// How pushes become steps, once it is initialised.
    pub fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Whether no push will be applied any more, and the last update is decided to its end.
    pub fn is_finished(&self) -> bool {
        !self.is_half_applied() && self.is_over()
    }

    fn is_over(&self) -> bool {
        self.stopped || self.max_steps.is_some_and(|max| self.step >= max)
    }

    /// Pure: the same events give the same actions.
    pub fn on_event(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.handle(event, &mut actions);
        actions
    }

    /// A list of parts that has been used, and is empty, for the next update.
    pub(crate) fn reuse_parts(&mut self, parts: Vec<Part>) {
        self.spare.put_parts(parts);
    }

    /// A list of commits that has been told, for the next step.
    pub(crate) fn reuse_commits(&mut self, commits: Vec<Commit>) {
        self.spare.put_commits(commits);
    }

    /// A copy of the leases of a push, for its [`PushMeta`].
    pub(crate) fn keep_leases(&mut self, leases: &[u8]) -> Vec<u8> {
        self.spare.leases(leases)
    }

    /// As [`Sequencer::on_event`], with the actions put behind those that are there.
    pub fn handle(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Initialised { mode, step, rounds } => {
                if self.mode.is_none() {
                    self.mode = Some(mode);
                    (self.step, self.rounds) = (step, rounds);
                    self.catch_up(actions);
                }
            }
            Event::WorkerJoined(worker) => self.handle_joined(worker),
            Event::WorkerActive(worker) => self.set_presence(worker, Presence::Active),
            Event::WorkerIdle(worker) => self.set_presence(worker, Presence::Idle),
            Event::WorkerLeft(worker) => self.handle_gone(worker, Presence::Left, actions),
            Event::WorkerLost(worker) => self.handle_gone(worker, Presence::Lost, actions),
            Event::Staged { shard, worker, seq, base_step } => {
                if let Some(pending) = self.pending(worker, seq, base_step, actions)
                    && let Some(staged) = pending.staged.get_mut(shard)
                {
                    *staged = true;
                }
                self.note_complete(worker, seq);
            }
            Event::PushMeta(meta) => {
                let (worker, seq) = (meta.worker, meta.seq);
                // Who pushes has rows; this also ends the wait-free phase of a worker that joined again.
                self.set_presence(worker, Presence::Active);
                let is_refused = |state: &Worker| state.presence.is_gone() && meta.seq > state.decided;
                let refused = self.workers.get(&worker).is_none_or(is_refused);
                if let Some(pending) = self.pending(worker, meta.seq, meta.base_step, actions) {
                    pending.meta.get_or_insert(meta);
                } else if refused {
                    let PushMeta { seq, leases, .. } = meta;
                    let reason = DropReason::WorkerGone;
                    actions.push(Action::Emit(Notice::Dropped { worker, seq, leases, reason }));
                }
                self.note_complete(worker, seq);
            }
            Event::Measured { shard, step, round, sums } => {
                if self.measuring.as_mut().is_some_and(|measuring| measuring.hear(shard, step, round, sums))
                    && let Some(measuring) = self.measuring.take()
                {
                    self.advance(measuring, actions);
                    self.catch_up(actions);
                }
            }
            Event::SnapshotRequested { id } if self.is_half_applied() => self.waiting_snapshots.push(id),
            Event::SnapshotRequested { id } => self.cut(id, actions),
            Event::Turn { id, dial } => self.handle_turn(id, dial, actions),
            Event::MaxSteps(max) => self.max_steps = max,
            Event::Stop => self.stopped = true,
        }
        self.settle(actions);
        self.release_those_who_may(actions);
    }

    fn handle_joined(&mut self, worker: u32) {
        let worker = self.workers.entry(worker).or_insert_with(|| Worker::new(Presence::Left));
        worker.presence = match worker.presence {
            Presence::Expected => Presence::Active,
            Presence::Left | Presence::Lost => Presence::Joined,
            Presence::Joined | Presence::Active | Presence::Idle => worker.presence,
        };
    }

    /// Late words of a worker that is gone change nothing.
    fn set_presence(&mut self, worker: u32, presence: Presence) {
        let Some(state) = self.workers.get_mut(&worker).filter(|state| !state.presence.is_gone()) else { return };
        let enters = !state.presence.is_counted() && presence.is_counted();
        state.presence = presence;
        if enters {
            self.enter(worker);
        }
    }

    fn handle_gone(&mut self, worker: u32, presence: Presence, actions: &mut Vec<Action>) {
        self.drop_all(worker, DropReason::WorkerGone, actions);
        if let Some(worker) = self.workers.get_mut(&worker)
            && !worker.presence.is_gone()
        {
            worker.presence = presence;
            worker.clock = 0;
        }
        self.release(worker, actions);
    }

    /// The undecided push `seq` of `worker`, created at first sight; `None` if it is decided already (PS-4).
    fn pending(&mut self, worker: u32, seq: u64, base_step: u64, actions: &mut Vec<Action>) -> Option<&mut Pending> {
        // Who pushes several parts of one step does not wait for the first to be decided.
        let one_at_a_time = self.mode != Some(Mode::Deterministic);
        let state = self.workers.entry(worker).or_insert_with(|| Worker::new(Presence::Lost));
        if state.pending.get(seq).is_none() {
            let newest = state.pending.ends().map_or(0, |(_, newest)| newest);
            if seq <= state.decided || (one_at_a_time && seq < newest) {
                return None;
            }
            if one_at_a_time && newest > 0 {
                self.drop_all(worker, DropReason::Superseded, actions);
            }
        }
        if let Some(state) = self.workers.get_mut(&worker)
            && state.presence.is_gone()
        {
            // Decided at first sight, so that the shards that hold a slice of it can let it go.
            state.decided = state.decided.max(seq);
            self.decide(DecisionKind::Drop { worker, seq }, actions);
            return None;
        }
        let state = self.workers.get_mut(&worker)?;
        if state.pending.get(seq).is_none() {
            state.pending.insert(seq, self.spare.pending(base_step, self.shards));
        }
        let pending = state.pending.get_mut(seq)?;
        pending.base_step = pending.base_step.min(base_step);
        Some(pending)
    }

    fn note_complete(&mut self, worker: u32, seq: u64) {
        let pending = self.workers.get(&worker).and_then(|state| state.pending.get(seq));
        if pending.is_some_and(Pending::is_complete) && !self.complete.contains(&(worker, seq)) {
            self.complete.push((worker, seq));
        }
    }

    /// Decides all that can be decided now; called after every event, so a departure releases those who waited.
    fn settle(&mut self, actions: &mut Vec<Action>) {
        // Again each time: an update may be what a turn of the dial has waited for.
        while let Some(mode) = self.mode {
            if self.measuring.is_some() {
                return;
            }
            if self.is_over() {
                if !self.accepted.is_empty() {
                    self.make_step_of_accepted(actions);
                }
                for (worker, seq) in std::mem::take(&mut self.complete) {
                    self.drop_pending(worker, seq, DropReason::Finished, actions);
                }
                return;
            }
            match mode {
                Mode::Async | Mode::Bounded { .. } => {
                    let Some(&push) = self.complete.first() else {
                        return;
                    };
                    self.chosen.push(push);
                    self.apply_chosen(actions);
                }
                Mode::Sync { .. } | Mode::LocalSgd { .. } => {
                    self.drop_stale(actions);
                    let wanted = mode.wanted();
                    if self.complete.is_empty() || self.complete.len() < wanted.min(self.counted()) {
                        return;
                    }
                    self.chosen.extend(self.complete.iter().take(wanted));
                    // Sums of f32 depend on the order: by index, the result does not depend on who was faster.
                    self.chosen.sort_unstable();
                    self.apply_chosen(actions);
                }
                Mode::Grouped { .. } => {
                    if !self.settle_groups(mode, actions) {
                        return;
                    }
                }
                Mode::Deterministic => {
                    self.drop_stale(actions);
                    let Some(chosen) = self.whole_step() else { return };
                    self.chosen.extend(chosen);
                    self.apply_chosen(actions);
                }
            }
        }
    }

    /// Workers that are waited for.
    fn counted(&self) -> usize {
        self.workers.values().filter(|worker| worker.presence.is_counted()).count()
    }

    fn pending_of(&self, (worker, seq): (u32, u64)) -> Option<&Pending> {
        self.workers.get(&worker)?.pending.get(seq)
    }

    fn drop_stale(&mut self, actions: &mut Vec<Action>) {
        let step = self.step;
        let is_fresh = |sequencer: &Sequencer, push| sequencer.pending_of(push).is_none_or(|p| p.base_step == step);
        // What is dropped is complete no more.
        while let Some(&(worker, seq)) = self.complete.iter().find(|push| !is_fresh(self, **push)) {
            let base_step = self.pending_of((worker, seq)).map_or(step, |pending| pending.base_step);
            self.drop_pending(worker, seq, DropReason::Stale { base_step, step }, actions);
        }
    }

    /// The parts of the next step in the order of their places, if all are complete. Of two with one place the first
    /// counts; the other is stale when the step is made.
    fn whole_step(&self) -> Option<Vec<(u32, u64)>> {
        let mut parts = BTreeMap::new();
        let mut of = 0;
        for push in &self.complete {
            let place = self.pending_of(*push)?.meta.as_ref()?.place?;
            of = of.max(place.of);
            parts.entry(place.index).or_insert(*push);
        }
        (of > 0 && parts.len() == of as usize).then(|| parts.into_values().collect())
    }

    /// What was chosen becomes the next step.
    fn apply_chosen(&mut self, actions: &mut Vec<Action>) {
        let mut commits = self.spare.commits();
        let chosen = std::mem::take(&mut self.chosen);
        commits.extend(chosen.iter().filter_map(|&push| self.take(push)));
        self.complete.retain(|push| !chosen.contains(push));
        self.chosen = chosen;
        self.chosen.clear();
        self.update(commits, actions);
    }

    /// This push is decided: from here on it is applied, whatever comes.
    fn take(&mut self, (worker, seq): (u32, u64)) -> Option<Commit> {
        let state = self.workers.get_mut(&worker)?;
        let PushMeta { rows, loss, leases, .. } = self.spare.put_pending(state.pending.remove(seq)?)?;
        state.decided = state.decided.max(seq);
        state.clock += 1;
        Some(Commit { worker, seq, rows, loss, leases, staleness: state.staleness })
    }

    /// The weighted sum of these becomes the next step.
    fn update(&mut self, commits: Vec<Commit>, actions: &mut Vec<Action>) {
        let rows: u64 = commits.iter().map(|commit| commit.rows).sum();
        // Pushes without rows (a last, empty batch) weigh the same, as there is nothing to weigh by.
        let weight = |commit: &Commit| match rows {
            0 => 1.0 / commits.len() as f64,
            rows => commit.rows as f64 / rows as f64,
        };
        let part = |commit: &Commit| Part { worker: commit.worker, seq: commit.seq, weight: weight(commit) as f32 };
        let mut parts = self.spare.parts();
        parts.extend(commits.iter().map(part));
        self.step += 1;
        let step = self.step;
        let exact = self.mode == Some(Mode::Deterministic);
        self.advance(Measuring::new(self.shards, self.rounds, step, parts, exact), actions);
        actions.push(Action::Emit(Notice::Committed { step, commits }));
        self.catch_up(actions);
    }

    /// Decides the next round of an update, or that it is applied.
    fn advance(&mut self, update: Measuring, actions: &mut Vec<Action>) {
        let (mut kind, measuring) = update.next();
        if let DecisionKind::Apply { parts, held, .. } = &mut kind {
            for part in parts {
                // Only if it did not wait for its answer, which a worker does.
                self.release(part.worker, actions);
                *held |= self.hold(part.worker, part.seq);
            }
        }
        self.decide(kind, actions);
        self.measuring = measuring;
    }

    fn cut(&mut self, id: u64, actions: &mut Vec<Action>) {
        let step = self.step;
        self.decide(DecisionKind::Snapshot { id, step }, actions);
        actions.push(Action::Emit(Notice::SnapshotMarker { id, step }));
    }

    fn drop_all(&mut self, worker: u32, reason: DropReason, actions: &mut Vec<Action>) {
        while let Some((seq, _)) = self.workers.get(&worker).and_then(|state| state.pending.ends()) {
            self.drop_pending(worker, seq, reason, actions);
        }
    }

    fn drop_pending(&mut self, worker: u32, seq: u64, reason: DropReason, actions: &mut Vec<Action>) {
        self.complete.retain(|&other| other != (worker, seq));
        let Some(state) = self.workers.get_mut(&worker) else {
            return;
        };
        let Some(pending) = state.pending.remove(seq) else {
            return;
        };
        let meta = self.spare.put_pending(pending);
        state.decided = state.decided.max(seq);
        self.decide(DecisionKind::Drop { worker, seq }, actions);
        if let Some(PushMeta { leases, .. }) = meta {
            actions.push(Action::Emit(Notice::Dropped { worker, seq, leases, reason }));
        }
    }

    fn decide(&mut self, kind: DecisionKind, actions: &mut Vec<Action>) {
        actions.push(Action::Decide(Decision { index: self.next_index, kind }));
        self.next_index += 1;
    }
}
