//! Random interleavings of pushes, deaths, returns, idling, turns of the dial and repeated messages, against a plain model
//! that only remembers what was said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::reference::Random;

/// What is known of one push from outside.
#[derive(Default)]
struct Told {
    staged: BTreeSet<usize>,
    base: u64,
    meta: bool,
    decided: u32,
    noticed: u32,
    applied: bool,
    fenced: bool,
}

struct Model {
    sequencer: Sequencer,
    mode: Mode,
    shards: usize,
    step: u64,
    next_index: u64,
    max_steps: u64,
    rounds: u32,
    /// The update that is being measured: its step, round, parts and totals.
    measuring: Option<(u64, u32, Vec<Part>, Vec<f64>)>,
    /// Shards that have performed the measuring decision but whose report has not come yet.
    to_report: VecDeque<Event>,
    asked: u32,
    cut: u32,
    told: BTreeMap<(u32, u64), Told>,
    counted: BTreeSet<u32>,
    gone: BTreeSet<u32>,
    /// Groups: pushes whose first part is applied.
    accepted: BTreeSet<(u32, u64)>,
    /// Turns that are not answered yet, and how many took effect.
    turns: VecDeque<(u64, Mode)>,
    turned: u32,
    /// Own steps of each worker, the highest that the slowest has had, and who is not answered.
    clocks: BTreeMap<u32, u64>,
    floor: u64,
    held: BTreeMap<u32, u64>,
    largest: u64,
    holds: u32,
}

impl Model {
    fn event(&mut self, event: Event) {
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

    fn enter(&mut self, worker: u32) {
        if self.counted.insert(worker) {
            let clock = self.clocks.entry(worker).or_default();
            *clock = self.floor.max(*clock);
        }
    }

    /// Whether its push is decided but not answered: until then it says nothing.
    fn is_applying(&self, worker: u32) -> bool {
        let measured = self.measuring.iter().flat_map(|(_, _, parts, _)| parts);
        self.held.contains_key(&worker)
            || self.accepted.iter().any(|push| push.0 == worker)
            || measured.into_iter().any(|part| part.worker == worker)
    }

    /// Whether the worker waits for its answer, and so cannot say that it is idle. A job that is synchronous from its first
    /// step to its last does not mind if it does.
    fn is_silent(&self, worker: u32, seq: u64, turns: bool) -> bool {
        let is_undecided = self.told.get(&(worker, seq)).is_some_and(|told| told.decided == 0);
        self.is_applying(worker) || (is_undecided && (turns || matches!(self.mode, Mode::Bounded { .. })))
    }

    fn staleness(&self, worker: u32) -> u64 {
        let slowest = self.counted.iter().map(|other| self.clocks[other]).min();
        slowest.map_or(0, |slowest| self.clocks[&worker].saturating_sub(slowest))
    }

    /// PS-6, and that nobody is held without need.
    fn check_staleness(&mut self) {
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

    fn check(&mut self, action: Action) {
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
    fn check_parts(&mut self, step: u64, parts: &[Part]) {
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

    fn is_accepted(&self, part: &Part) -> bool {
        self.accepted.contains(&(part.worker, part.seq))
    }

    fn check_totals(&self, rounds: u32, totals: &[f64]) {
        let total = |round| (0..self.shards).map(|shard| sums(shard, round)[0]).sum::<f64>();
        assert_eq!(totals, (0..rounds).map(total).collect::<Vec<_>>());
    }

    /// Any shard may be heard next, and some are heard twice.
    fn hear_a_shard(&mut self, random: &mut Random) {
        let place = random.below(self.to_report.len() as u64) as usize;
        if let Some(event) = self.to_report.swap_remove_back(place) {
            if random.below(4) == 0 && !self.to_report.is_empty() {
                self.event(event.clone());
            }
            self.event(event);
        }
    }

    fn check_nobody_waits(&self) {
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

/// A worker as the server's connections show it: messages to come from each shard, in order per shard.
#[derive(Default)]
struct Client {
    alive: bool,
    session: u64,
    seq: u64,
    base: u64,
    /// One queue per shard; the first one also carries the meta.
    coming: Vec<VecDeque<Event>>,
}

/// What the dial may be turned to.
fn any_mode(random: &mut Random, rounds: u32) -> Mode {
    let replicas_to_aggregate = 1 + random.below(4) as u32;
    match random.below(if rounds == 0 { 8 } else { 6 }) {
        0 => Mode::Async,
        1..3 => Mode::Bounded { max_staleness: random.below(4) as u32 },
        3..5 => Mode::Sync { replicas_to_aggregate },
        5 => Mode::LocalSgd { steps: 8 },
        _ => Mode::Grouped { replicas_to_aggregate },
    }
}

fn dial(mode: Mode) -> Dial {
    let group = |pattern: &str, eager| Group { pattern: pattern.to_owned(), eager };
    let groups = if matches!(mode, Mode::Grouped { .. }) { vec![group("e*", true), group("*", false)] } else { vec![] };
    Dial { mode, groups }
}

/// How many answers were withheld, how far ahead somebody was at most, and how often the dial was turned.
fn run(seed: u64) -> (u32, u64, u32) {
    let mut random = Random::new(seed);
    let shards = 1 + random.below(3) as usize;
    let workers = 1 + random.below(4) as u32;
    let rounds = random.below(3) as u32;
    let mode = any_mode(&mut random, rounds);
    let turns = random.below(2) == 0;
    let max_steps = if random.below(2) == 0 { u64::MAX } else { 20 };
    let mut model = Model {
        sequencer: Sequencer::new(shards, workers),
        mode,
        shards,
        step: 0,
        next_index: 0,
        max_steps,
        rounds,
        measuring: None,
        to_report: VecDeque::new(),
        asked: 0,
        cut: 0,
        told: BTreeMap::new(),
        counted: (0..workers).collect(),
        gone: BTreeSet::new(),
        accepted: BTreeSet::new(),
        turns: VecDeque::new(),
        turned: 0,
        clocks: (0..workers).map(|worker| (worker, 0)).collect(),
        floor: 0,
        held: BTreeMap::new(),
        largest: 0,
        holds: 0,
    };
    if matches!(mode, Mode::Grouped { .. }) {
        // As the host of ps:0 does; the chief names the synchronous part.
        assert_eq!(model.sequencer.on_event(Event::Turn { id: None, dial: dial(mode) }), []);
        let replicas_to_aggregate = mode.wanted() as u32;
        model.event(Event::Initialised { mode: Mode::Sync { replicas_to_aggregate }, step: 0, rounds });
    } else {
        model.event(Event::Initialised { mode, step: 0, rounds });
    }
    model.event(Event::MaxSteps(Some(max_steps)));
    let mut clients: Vec<Client> = (0..workers).map(|_| Client::default()).collect();
    for _ in 0..400 {
        let worker = random.below(u64::from(workers)) as u32;
        let client = &mut clients[worker as usize];
        match random.below(100) {
            0..2 if client.alive => {
                let event = if random.below(4) == 0 { Event::WorkerLeft } else { Event::WorkerLost };
                client.alive = false;
                // What ps:0 read itself ends with the connection; what other shards sent may still come.
                client.coming[0].clear();
                model.event(event(worker));
            }
            2..5 => {
                model.asked += 1;
                model.event(Event::SnapshotRequested { id: random.next_u64() });
            }
            12..14 if turns => {
                let dial = dial(any_mode(&mut random, rounds));
                model.event(Event::Turn { id: Some(random.next_u64()), dial });
            }
            50..70 if !model.to_report.is_empty() => model.hear_a_shard(&mut random),
            5..8 if client.alive && !model.is_silent(worker, client.seq, turns) => {
                model.event(Event::WorkerIdle(worker));
            }
            8..12 if client.alive && !model.is_silent(worker, client.seq, turns) => {
                model.event(Event::WorkerActive(worker));
            }
            _ if !client.alive => {
                if random.below(10) == 0 {
                    client.alive = true;
                    client.session += 1;
                    client.seq = client.session << 32;
                    client.coming.resize_with(shards, VecDeque::new);
                    model.event(Event::WorkerJoined(worker));
                }
            }
            _ => {
                let is_decided = model.told.get(&(worker, client.seq)).is_none_or(|told| told.decided > 0);
                // Who is not answered sends nothing.
                let is_answered =
                    is_decided && !model.held.contains_key(&worker) && !model.accepted.contains(&(worker, client.seq));
                if is_answered && client.coming.iter().all(VecDeque::is_empty) {
                    begin_push(&mut random, client, worker, model.step);
                }
                let shard = random.below(shards as u64) as usize;
                if let Some(event) = client.coming[shard].pop_front() {
                    if random.below(10) == 0 {
                        model.event(event.clone());
                    }
                    model.event(event);
                }
            }
        }
    }
    for worker in 0..workers {
        model.event(Event::WorkerLost(worker));
        for event in clients[worker as usize].coming.iter_mut().skip(1).flat_map(std::mem::take) {
            model.event(event);
        }
    }
    while !model.to_report.is_empty() {
        model.hear_a_shard(&mut random);
    }
    assert_eq!(model.cut, model.asked, "snapshots");
    assert!(model.turns.is_empty() && model.accepted.is_empty(), "PS-5: {:?} {:?}", model.turns, model.accepted);
    assert!(model.held.is_empty(), "PS-5: {:?} were never answered", model.held);
    for (push, told) in &model.told {
        assert_eq!(told.decided, 1, "PS-4: push {push:?}");
        assert_eq!(told.noticed, u32::from(told.meta), "push {push:?} with leases must be told exactly once");
    }
    (model.holds, model.largest, model.turned)
}

fn begin_push(random: &mut Random, client: &mut Client, worker: u32, step: u64) {
    client.seq += 1;
    // Mostly from the newest parameters, sometimes from what it had before.
    if random.below(4) > 0 {
        client.base = step;
    }
    let (seq, base_step) = (client.seq, client.base);
    let leases = seq.to_le_bytes().to_vec();
    let rows = random.below(50);
    for (shard, coming) in client.coming.iter_mut().enumerate() {
        let staged = Event::Staged { shard, worker, seq, base_step };
        coming.push_back(staged);
    }
    let meta = PushMeta { worker, seq, base_step, rows, loss: 0.0, leases, buffers: false, place: None };
    client.coming[0].push_front(Event::PushMeta(meta));
}

#[test] // PS-1, PS-2, PS-3, PS-4, PS-5, PS-6, PS-7
fn invariants_hold_in_random_interleavings() {
    let (mut holds, mut largest, mut turns) = (0, 0, 0);
    for seed in 0..3000 {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok((held, ahead, turned)) => (holds, largest, turns) = (holds + held, largest.max(ahead), turns + turned),
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(holds > 1000 && largest == 3, "the bound was reached: {holds} times, at most {largest} ahead");
    assert!(turns > 1000, "the dial was turned: {turns} times");
}
