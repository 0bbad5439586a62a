//! Deterministic mode in random interleavings: whoever pushes which part when, whoever dies or leaves, and whatever is
//! said twice, the updates are the same.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::reference::Random;

/// Rows of a part: known from its place, as they are of real ones.
fn rows_of(step: u64, index: u32) -> u64 {
    1 + (step * 7 + u64::from(index) * 3) % 5
}

fn parts_of(step: u64, parts: u32) -> u32 {
    // The last step of an epoch has fewer.
    if step.is_multiple_of(4) { parts.div_ceil(2) } else { parts }
}

#[derive(Default)]
struct Client {
    alive: bool,
    session: u64,
    seq: u64,
    /// One queue per shard; the first one also carries the meta.
    coming: Vec<VecDeque<Event>>,
}

struct Model {
    sequencer: Sequencer,
    shards: usize,
    parts: u32,
    step: u64,
    /// Parts of the next step that nobody has.
    free: Vec<u32>,
    /// Place (step, index) of each push; how often it was decided and told.
    pushes: BTreeMap<(u32, u64), (u64, u32, u32, u32)>,
    /// Steps as decided: index and weight of each part.
    steps: Vec<Vec<(u32, f32)>>,
    died: u32,
}

impl Model {
    fn event(&mut self, event: Event) {
        for action in self.sequencer.on_event(event) {
            match action {
                Action::Decide(Decision { kind: DecisionKind::Apply { step, parts, .. }, .. }) => {
                    self.step += 1;
                    assert_eq!(step, self.step, "PS-2");
                    let place = |part: &Part| {
                        let push = self.pushes.get_mut(&(part.worker, part.seq)).expect("never pushed");
                        assert_eq!(push.0, step, "PS-3");
                        push.2 += 1;
                        (push.1, part.weight)
                    };
                    self.steps.push(parts.iter().map(place).collect());
                    self.free = (0..parts_of(self.step + 1, self.parts)).collect();
                }
                Action::Decide(Decision { kind: DecisionKind::Drop { worker, seq }, .. }) => {
                    self.pushes.get_mut(&(worker, seq)).expect("never pushed").2 += 1;
                }
                Action::Decide(Decision { kind, .. }) => panic!("{kind:?}"),
                Action::Emit(Notice::Committed { commits, .. }) => {
                    for commit in commits {
                        self.pushes.get_mut(&(commit.worker, commit.seq)).expect("never pushed").3 += 1;
                    }
                }
                Action::Emit(Notice::Dropped { worker, seq, .. }) => {
                    let push = self.pushes.get_mut(&(worker, seq)).expect("never pushed");
                    push.3 += 1;
                    if push.0 == self.step + 1 {
                        self.free.push(push.1);
                    }
                }
                Action::Emit(Notice::SnapshotMarker { .. } | Notice::Turned { .. }) => {}
            }
        }
    }

    fn begin_push(&mut self, random: &mut Random, client: &mut Client, worker: u32) {
        if self.free.is_empty() {
            return;
        }
        let index = self.free.swap_remove(random.below(self.free.len() as u64) as usize);
        client.seq += 1;
        let (seq, base_step) = (client.seq, self.step);
        self.pushes.insert((worker, seq), (base_step + 1, index, 0, 0));
        for (shard, coming) in client.coming.iter_mut().enumerate() {
            if shard == 0 {
                let place = Some(Place { index, of: parts_of(base_step + 1, self.parts) });
                let rows = rows_of(base_step + 1, index);
                let (leases, buffers) = (vec![], false);
                let meta = PushMeta { worker, seq, base_step, rows, loss: 0.0, leases, buffers, place };
                coming.push_back(Event::PushMeta(meta));
            }
            coming.push_back(Event::Staged { shard, worker, seq, base_step });
        }
    }

    /// The worker is gone; what never reached ps:0 is free again, as its lease is.
    fn lose(&mut self, client: &mut Client, worker: u32, event: Event) {
        client.alive = false;
        self.died += 1;
        client.coming[0].clear();
        self.event(event);
        let step = self.step + 1;
        for (_, (of, index, _, told)) in self.pushes.iter_mut().filter(|((w, _), _)| *w == worker) {
            if *told == 0 {
                *told = 1;
                if *of == step {
                    self.free.push(*index);
                }
            }
        }
    }
}

/// The steps that were made, and how many workers were lost meanwhile.
fn run(seed: u64, workers: u32, parts: u32, steps: usize) -> (Vec<Vec<(u32, f32)>>, u32) {
    let mut random = Random::new(seed);
    let shards = 1 + random.below(3) as usize;
    let mut model = Model {
        sequencer: Sequencer::new(shards, workers),
        shards,
        parts,
        step: 0,
        free: (0..parts_of(1, parts)).collect(),
        pushes: BTreeMap::new(),
        steps: vec![],
        died: 0,
    };
    model.event(Event::Initialised { mode: Mode::Deterministic, step: 0, rounds: 0 });
    let mut clients: Vec<Client> = (0..workers).map(|_| Client::default()).collect();
    for round in 0.. {
        assert!(round < 100_000, "seed {seed}: the steps do not end");
        if model.steps.len() >= steps {
            break;
        }
        let worker = random.below(u64::from(workers)) as u32;
        let mut client = std::mem::take(&mut clients[worker as usize]);
        match random.below(60) {
            0 if client.alive => model.lose(&mut client, worker, Event::WorkerLost(worker)),
            1 if client.alive => model.lose(&mut client, worker, Event::WorkerLeft(worker)),
            2 if client.alive => model.event(Event::WorkerIdle(worker)),
            _ if !client.alive && client.coming.iter().all(VecDeque::is_empty) => {
                client.alive = true;
                client.session += 1;
                client.seq = client.session << 32;
                client.coming.resize_with(model.shards, VecDeque::new);
                model.event(Event::WorkerJoined(worker));
            }
            3..20 if client.alive => model.begin_push(&mut random, &mut client, worker),
            _ => {
                let shard = random.below(model.shards as u64) as usize;
                if let Some(event) = client.coming.get_mut(shard).and_then(VecDeque::pop_front) {
                    if random.below(10) == 0 {
                        model.event(event.clone());
                    }
                    model.event(event);
                }
            }
        }
        clients[worker as usize] = client;
    }
    for (push, (step, index, decided, told)) in &model.pushes {
        assert!(*decided <= 1 && *told <= 1, "PS-4: {push:?} of step {step}, {index}: {decided} {told}");
    }
    (model.steps, model.died)
}

#[test] // DET-2, PS-4, PS-5
fn any_interleaving_makes_the_same_updates() {
    let mut died = 0;
    for parts in 1..=6 {
        let expected: Vec<Vec<(u32, f32)>> = (1..=12u64)
            .map(|step| {
                let indices = 0..parts_of(step, parts);
                let rows: u64 = indices.clone().map(|index| rows_of(step, index)).sum();
                let weight = |index| (rows_of(step, index) as f64 / rows as f64) as f32;
                indices.map(|index| (index, weight(index))).collect()
            })
            .collect();
        for seed in 0..100 {
            for workers in [1, 2, 5] {
                let (steps, lost) = run(seed, workers, parts, 12);
                assert_eq!(steps, expected, "seed {seed}, {workers} workers");
                died += lost;
            }
        }
    }
    assert!(died > 1000, "only {died} were lost");
}
