//! Random interleavings of pushes, deaths, returns, idling, turns of the dial and repeated messages, against a plain model
//! that only remembers what was said.

mod model;

use std::collections::{BTreeSet, VecDeque};

use self::model::Model;
use super::*;
use crate::reference::Random;

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
    if random.below(2) == 0 {
        // What is half applied is completed, and nothing after it.
        let half = model.measuring.is_some() || !model.accepted.is_empty();
        model.max_steps = model.max_steps.min(model.step + u64::from(half));
        model.event(Event::Stop);
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
