//! The model: it remembers what was said to whom, and checks that every word of the sequencer fits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::*;
use crate::reference::Random;

/// What is known of one push from outside.
#[derive(Default)]
pub(super) struct Told {
    pub(super) staged: BTreeSet<usize>,
    pub(super) base: u64,
    pub(super) meta: bool,
    pub(super) decided: u32,
    pub(super) noticed: u32,
    pub(super) applied: bool,
    pub(super) fenced: bool,
}

pub(super) struct Model {
    pub(super) sequencer: Sequencer,
    pub(super) mode: Mode,
    pub(super) shards: usize,
    pub(super) step: u64,
    pub(super) next_index: u64,
    pub(super) max_steps: u64,
    pub(super) rounds: u32,
    /// The update that is being measured: its step, round, parts and totals.
    pub(super) measuring: Option<(u64, u32, Vec<Part>, Vec<f64>)>,
    /// Shards that have performed the measuring decision but whose report has not come yet.
    pub(super) to_report: VecDeque<Event>,
    pub(super) asked: u32,
    pub(super) cut: u32,
    pub(super) told: BTreeMap<(u32, u64), Told>,
    pub(super) counted: BTreeSet<u32>,
    pub(super) gone: BTreeSet<u32>,
    /// Groups: pushes whose first part is applied.
    pub(super) accepted: BTreeSet<(u32, u64)>,
    /// Turns that are not answered yet, and how many took effect.
    pub(super) turns: VecDeque<(u64, Mode)>,
    pub(super) turned: u32,
    /// Own steps of each worker, the highest that the slowest has had, and who is not answered.
    pub(super) clocks: BTreeMap<u32, u64>,
    pub(super) floor: u64,
    pub(super) held: BTreeMap<u32, u64>,
    pub(super) largest: u64,
    pub(super) holds: u32,
}

impl Model {
    pub(super) fn event(&mut self, event: Event) {
        match &event {
            Event::Staged { shard, worker, seq, base_step } => {
                let told = self.told.entry((*worker, *seq)).or_default();
                told.base = *base_step;
                told.staged.insert(*shard);
            }
            Event::PushMeta(meta) => {
                let told = self.told.entry((meta.worker, meta.seq)).or_default();
                told.base = meta.base_step;
                told.meta = true;
                self.enter(meta.worker);
            }
            Event::WorkerIdle(worker) => {
                self.counted.remove(worker);
            }
            Event::WorkerActive(worker) => {
                self.enter(*worker);
            }
            Event::WorkerLost(worker) | Event::WorkerLeft(worker) => {
                self.counted.remove(worker);
                self.gone.insert(*worker);
                self.clocks.insert(*worker, 0);
            }
            Event::WorkerJoined(worker) => {
                self.gone.remove(worker);
            }
            Event::Turn { id, dial } => self.turns.push_back((id.unwrap(), dial.mode)),
            _ => {}
        }
        let gone = match event {
            Event::WorkerLost(worker) | Event::WorkerLeft(worker) => Some(worker),
            _ => None,
        };
        for action in self.sequencer.on_event(event) {
            self.check(action);
        }
        if let Some(gone) = gone {
            // PS-1: nothing of it is applied from here on.
            self.told.iter_mut().filter(|((worker, _), _)| *worker == gone).for_each(|(_, told)| told.fenced = true);
        }
        self.check_nobody_waits();
        self.check_staleness();
        if self.measuring.is_none() && self.accepted.is_empty() {
            assert!(self.turns.is_empty() && self.cut == self.asked, "nothing is half applied: who waits for what?");
        }
    }

    pub(super) fn enter(&mut self, worker: u32) {
        if self.counted.insert(worker) {
            let clock = self.clocks.entry(worker).or_default();
            *clock = self.floor.max(*clock);
        }
    }

    /// Whether its push is decided but not answered: until then it says nothing.
    pub(super) fn is_applying(&self, worker: u32) -> bool {
        let measured = self.measuring.iter().flat_map(|(_, _, parts, _)| parts);
        self.held.contains_key(&worker)
            || self.accepted.iter().any(|push| push.0 == worker)
            || measured.into_iter().any(|part| part.worker == worker)
    }

    /// Whether the worker waits for its answer, and so cannot say that it is idle. A job that is synchronous from its first
    /// step to its last does not mind if it does.
    pub(super) fn is_silent(&self, worker: u32, seq: u64, turns: bool) -> bool {
        let is_undecided = self.told.get(&(worker, seq)).is_some_and(|told| told.decided == 0);
        self.is_applying(worker) || (is_undecided && (turns || matches!(self.mode, Mode::Bounded { .. })))
    }

    pub(super) fn staleness(&self, worker: u32) -> u64 {
        let slowest = self.counted.iter().map(|other| self.clocks[other]).min();
        slowest.map_or(0, |slowest| self.clocks[&worker].saturating_sub(slowest))
    }

    /// PS-6, and that nobody is held without need.
    pub(super) fn check_staleness(&mut self) {
        let slowest = self.counted.iter().map(|worker| self.clocks[worker]).min();
        self.floor = self.floor.max(slowest.unwrap_or_default());
        let Mode::Bounded { max_staleness } = self.mode else {
            assert!(self.held.is_empty());
            return;
        };
        for &worker in self.counted.iter().filter(|worker| !self.held.contains_key(worker)) {
            let staleness = self.staleness(worker);
            if !self.is_applying(worker) && self.step < self.max_steps {
                assert!(staleness <= u64::from(max_staleness), "PS-6: {worker} is {staleness} ahead");
                self.largest = self.largest.max(staleness);
            }
        }
        for &worker in self.held.keys() {
            assert!(self.staleness(worker) > u64::from(max_staleness), "PS-5: {worker} waits for nobody");
            assert!(self.step < self.max_steps, "PS-5: {worker} waits at the end");
        }
    }

    pub(super) fn check(&mut self, action: Action) {
        match action {
            Action::Decide(Decision { index, kind }) => {
                assert_eq!(index, self.next_index, "PS-2");
                self.next_index += 1;
                match kind {
                    DecisionKind::Measure { step, round, parts, totals } => {
                        match self.measuring.take() {
                            None => {
                                assert_eq!((step, round, totals.len()), (self.step + 1, 0, 0), "PS-2");
                                self.check_parts(step, &parts);
                            }
                            Some((old_step, old_round, old_parts, _)) => {
                                assert_eq!((step, round, &parts), (old_step, old_round + 1, &old_parts), "PS-1");
                            }
                        }
                        self.check_totals(round, &totals);
                        assert!(self.to_report.is_empty(), "not all shards were heard");
                        let report = |shard| Event::Measured { shard, step, round, sums: sums(shard, round) };
                        self.to_report.extend((0..self.shards).map(report));
                        self.measuring = Some((step, round, parts, totals));
                    }
                    DecisionKind::Apply { step, parts, totals, held } => {
                        match self.measuring.take() {
                            None => {
                                assert_eq!((step, self.rounds), (self.step + 1, 0), "PS-2");
                                self.check_parts(step, &parts);
                            }
                            Some((old_step, round, old_parts, _)) => {
                                assert_eq!((step, &parts, round + 1), (old_step, &old_parts, self.rounds), "PS-1");
                                assert!(self.to_report.is_empty(), "not all shards were heard");
                            }
                        }
                        self.check_totals(self.rounds, &totals);
                        self.step = step;
                        if held {
                            let [part] = &parts[..] else { panic!("{parts:?} are held") };
                            assert_eq!(self.held.insert(part.worker, part.seq), None);
                            self.holds += 1;
                        }
                    }
                    DecisionKind::Eager { step, worker, seq } => {
                        assert!(matches!(self.mode, Mode::Grouped { .. }) && step == self.step + 1, "PS-7");
                        assert!(self.accepted.len() < self.mode.wanted(), "PS-7: too many for one step");
                        self.check_parts(step, &[Part { worker, seq, weight: 1.0 }]);
                        assert!(self.accepted.insert((worker, seq)));
                    }
                    DecisionKind::Groups { .. } => assert!(self.accepted.is_empty(), "PS-7"),
                    DecisionKind::Release { worker, seq } => {
                        assert_eq!(self.held.remove(&worker), Some(seq), "released without having been held");
                    }
                    DecisionKind::Drop { worker, seq } => {
                        let told = self.told.get_mut(&(worker, seq)).expect("never pushed");
                        told.decided += 1;
                        assert_eq!(told.decided, 1, "PS-4");
                    }
                    DecisionKind::Snapshot { step, .. } => {
                        assert_eq!(step, self.step);
                        assert!(self.measuring.is_none(), "a snapshot of a step that is told but not applied");
                        assert!(self.accepted.is_empty(), "PS-7: a snapshot of half a step");
                    }
                }
            }
            Action::Emit(Notice::Committed { step, commits }) => {
                assert_eq!(step, self.step + u64::from(self.measuring.is_some()));
                for commit in commits {
                    let told = self.told.get_mut(&(commit.worker, commit.seq)).expect("never pushed");
                    assert!(told.applied && commit.leases == commit.seq.to_le_bytes());
                    told.noticed += 1;
                }
            }
            Action::Emit(Notice::Dropped { worker, seq, leases, .. }) => {
                let told = self.told.get_mut(&(worker, seq)).expect("never pushed");
                assert!(!told.applied && told.meta && leases == seq.to_le_bytes());
                told.noticed += 1;
            }
            Action::Emit(Notice::Turned { id, step, refused }) => {
                let (asked, mode) = self.turns.pop_front().expect("nobody asked for a turn");
                assert_eq!((id, step), (asked, self.step));
                assert!(self.measuring.is_none() && self.accepted.is_empty(), "PS-7: turned in half a step");
                let stays = |mode| matches!(mode, Mode::LocalSgd { .. });
                assert_eq!(refused.is_some(), stays(mode) || stays(self.mode));
                if refused.is_none() {
                    self.mode = mode;
                    self.turned += 1;
                    self.floor = self.clocks.values().copied().max().unwrap();
                    let here = self.clocks.iter_mut().filter(|(worker, _)| !self.gone.contains(worker));
                    here.for_each(|(_, clock)| *clock = self.floor);
                }
            }
            Action::Emit(Notice::SnapshotMarker { step, .. }) => {
                assert_eq!(step, self.step);
                self.cut += 1;
            }
        }
    }

    /// The first decision about an update binds: from here on it is as good as applied.
    pub(super) fn check_parts(&mut self, step: u64, parts: &[Part]) {
        assert!(step <= self.max_steps, "an update after the last step");
        assert!((parts.iter().map(|part| f64::from(part.weight)).sum::<f64>() - 1.0).abs() < 1e-6);
        if !self.accepted.is_empty() && parts.len() == self.accepted.len() && parts.iter().all(|p| self.is_accepted(p))
        {
            return self.accepted.clear();
        }
        assert!(
            self.accepted.is_empty() || (parts.len() == 1 && self.accepted.len() < self.mode.wanted()),
            "PS-7: {parts:?} instead of {:?}",
            self.accepted
        );
        for part in parts {
            let told = self.told.get_mut(&(part.worker, part.seq)).expect("never pushed");
            assert!(told.meta && told.staged.len() == self.shards, "PS-1: {part:?} is incomplete");
            assert!(!told.fenced, "PS-1: {part:?} of a worker that was gone");
            if self.mode.is_fresh() {
                assert_eq!(told.base, self.step, "PS-3");
            }
            told.decided += 1;
            told.applied = true;
            assert_eq!(told.decided, 1, "PS-4");
            *self.clocks.entry(part.worker).or_default() += 1;
        }
    }

    pub(super) fn is_accepted(&self, part: &Part) -> bool {
        self.accepted.contains(&(part.worker, part.seq))
    }

    pub(super) fn check_totals(&self, rounds: u32, totals: &[f64]) {
        let total = |round| (0..self.shards).map(|shard| sums(shard, round)[0]).sum::<f64>();
        assert_eq!(totals, (0..rounds).map(total).collect::<Vec<_>>());
    }

    /// Any shard may be heard next, and some are heard twice.
    pub(super) fn hear_a_shard(&mut self, random: &mut Random) {
        let place = random.below(self.to_report.len() as u64) as usize;
        if let Some(event) = self.to_report.swap_remove_back(place) {
            if random.below(4) == 0 && !self.to_report.is_empty() {
                self.event(event.clone());
            }
            self.event(event);
        }
    }

    pub(super) fn check_nobody_waits(&self) {
        if self.measuring.is_some() {
            assert!(!self.to_report.is_empty(), "all shards were heard, and nothing followed");
            return;
        }
        let is_waiting = |told: &&Told| told.decided == 0 && told.meta && told.staged.len() == self.shards;
        let waiting = self.told.values().filter(is_waiting).count();
        let allowed = match self.mode {
            Mode::Async | Mode::Bounded { .. } => 0,
            _ if self.step >= self.max_steps => {
                assert!(self.accepted.is_empty(), "PS-7: half a step at the end");
                0
            }
            // Has a test of its own.
            Mode::Deterministic => waiting,
            // What is complete is accepted, unless it is one too many.
            mode @ Mode::Grouped { .. } => {
                let fewer = mode.wanted().min(self.counted.len()).max(1);
                assert!(self.accepted.len() < fewer, "PS-5: {:?} wait", self.accepted);
                0
            }
            mode @ (Mode::Sync { .. } | Mode::LocalSgd { .. }) => mode.wanted().min(self.counted.len()).max(1) - 1,
        };
        assert!(waiting <= allowed, "PS-5: {waiting} pushes wait, {} workers count", self.counted.len());
    }
}

fn sums(shard: usize, round: u32) -> Vec<f64> {
    vec![(10 * (round + 1)) as f64 + shard as f64]
}
