//! Deterministic training over real sockets: the same bits for any number of workers and shards, and without ps.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

use tfos_ps::reference::{Random, Regression};
use tfos_ps::{Awaited, DeterministicTrainer, Mode, Optimizer, Place, PsClient, Push, Scheduled, ServerEvent};

use crate::cluster::{Cluster, Worker, adam, sgd};

const STEPS: u64 = 30;
const PARTS: u32 = 4;

/// Parts of a step: at the end of an epoch there are fewer.
fn parts_of(step: u64) -> u32 {
    if step.is_multiple_of(10) { 3 } else { PARTS }
}

/// The rows of a part; the last one of an epoch is shorter.
fn rows(step: u64, index: u32) -> std::ops::Range<u64> {
    let begin = (step * u64::from(PARTS) + u64::from(index)) * 8;
    begin..begin + if step.is_multiple_of(10) && index == 2 { 5 } else { 8 }
}

/// What a part leaves in the buffer: it depends on what was there at the beginning of the step, as running means do.
fn seen(before: f32, step: u64, index: u32) -> f32 {
    0.9 * before + (step * 10 + u64::from(index)) as f32
}

/// Parameters and the buffer after the last step.
type Bits = Vec<u32>;

fn bits(params: &[f32], buffer: f32) -> Bits {
    params.iter().chain([&buffer]).map(|x| x.to_bits()).collect()
}

/// Without ps, in the order of the places.
fn alone(problem: &Regression, optimizer: Scheduled) -> Bits {
    let layout = problem.layout().unwrap();
    let mut params = vec![0.0; layout.total];
    let mut buffer = [0.0];
    let mut trainer = DeterministicTrainer::new(&layout, optimizer, &[&params], &[&buffer], None).unwrap();
    for step in 1..=STEPS {
        let parts = parts_of(step);
        for index in 0..parts {
            let (loss, gradient) = problem.gradient(&params, rows(step, index));
            let left = [seen(buffer[0], step, index)];
            let buffers: [&[f32]; 1] = [&left];
            let gradients: [&[f32]; 2] = [&gradient[..1], &gradient[1..]];
            let leases = index.to_le_bytes();
            let rows = rows(step, index).count() as u64;
            let buffers = (index + 1 == parts).then_some(&buffers[..]);
            let push = Push { rows, loss, leases: &leases, buffers, gradients: &gradients };
            let commits = trainer.push(push, Place { index, of: parts }).unwrap();
            let whole: Vec<Vec<u8>> = (0..parts).map(|index| index.to_le_bytes().to_vec()).collect();
            let expected = if index + 1 == parts { whole } else { vec![] };
            assert_eq!(commits.into_iter().map(|c| c.leases).collect::<Vec<_>>(), expected);
        }
        assert_eq!(trainer.step(), step);
        let (bias, weight) = params.split_at_mut(1);
        trainer.read(&mut [bias, weight], &mut [&mut buffer]).unwrap();
    }
    let state = tfos_ps::FullState::assemble(vec![trainer.snapshot(1).unwrap()]).unwrap();
    assert_eq!((state.step, &state.params, &state.buffers[..]), (STEPS, &params, &buffer[..]));
    bits(&params, buffer[0])
}

/// Who gives out parts of the step at hand, and takes back those of the dead.
#[derive(Default)]
struct Places {
    state: Mutex<State>,
    changed: Condvar,
    /// From which step on a worker dies as soon as it has a part: until then each step keeps one for it.
    dies_at: Option<u64>,
    died: AtomicBool,
}

#[derive(Default)]
struct State {
    step: u64,
    free: BTreeSet<u32>,
    /// Parts that were pushed.
    pushed: u32,
}

impl Places {
    /// Any part that nobody has; waits while all are being computed.
    fn take(&self, random: &mut Random, dies: bool) -> Option<(u64, u32)> {
        let mut state = self.state.lock().unwrap();
        loop {
            if state.pushed == parts_of(state.step) || state.step == 0 {
                if state.step == STEPS {
                    return None;
                }
                *state = State { step: state.step + 1, free: (0..parts_of(state.step + 1)).collect(), pushed: 0 };
                self.changed.notify_all();
            }
            let is_due = self.dies_at.is_some_and(|at| state.step >= at) && !self.died.load(Ordering::Relaxed);
            if is_due && !dies && state.free.len() == 1 {
                state = self.changed.wait(state).unwrap();
                continue;
            }
            let place = random.below(state.free.len() as u64) as usize;
            if let Some(index) = state.free.iter().copied().nth(place) {
                state.free.remove(&index);
                return Some((state.step, index));
            }
            state = self.changed.wait(state).unwrap();
        }
    }

    fn pushed(&self) {
        self.state.lock().unwrap().pushed += 1;
        self.changed.notify_all();
    }

    fn give_back(&self, step: u64, index: u32) {
        let mut state = self.state.lock().unwrap();
        assert_eq!(state.step, step, "the step was made without it");
        self.died.store(true, Ordering::Relaxed);
        state.free.insert(index);
        self.changed.notify_all();
    }
}

/// Takes parts until there are none; dies with the part `dies_at` in hand.
fn work(cluster: &Cluster, mut worker: Worker, places: &Places, seed: u64, dies_at: Option<u64>) -> bool {
    let mut random = Random::new(seed);
    let mut buffer = [0.0];
    let problem = worker.problem.clone();
    let mut client: PsClient = worker.client;
    while let Some((step, index)) = places.take(&mut random, dies_at.is_some()) {
        // Who joined later has parameters, but `join` forgets the buffers.
        if client.step() + 1 != step || (buffer == [0.0] && step > 1) {
            let (bias, weight) = worker.params.split_at_mut(1);
            while client.await_step(step - 1, &mut [&mut *bias, &mut *weight], &mut [&mut buffer]).unwrap()
                != Awaited::Ready
            {}
        }
        if dies_at.is_some_and(|at| step >= at) {
            drop(client);
            cluster.await_event(0, |event| matches!(event, ServerEvent::WorkerLost { .. }).then_some(()));
            // The part is computed again, by somebody who is there.
            places.give_back(step, index);
            return true;
        }
        let (loss, gradient) = problem.gradient(&worker.params, rows(step, index));
        let left = [seen(buffer[0], step, index)];
        let buffers: [&[f32]; 1] = [&left];
        let push = Push {
            rows: rows(step, index).count() as u64,
            loss,
            leases: &index.to_le_bytes(),
            buffers: (index + 1 == parts_of(step)).then_some(&buffers[..]),
            gradients: &[&gradient[..1], &gradient[1..]],
        };
        assert!(!client.push(push, Place { index, of: parts_of(step) }).unwrap());
        places.pushed();
    }
    // Whoever leaves with its parts undecided takes them along.
    let (bias, weight) = worker.params.split_at_mut(1);
    while client.await_step(STEPS, &mut [&mut *bias, &mut *weight], &mut [&mut buffer]).unwrap() != Awaited::Ready {}
    client.finish().unwrap();
    false
}

fn together(problem: &Regression, optimizer: Scheduled, shards: usize, workers: u32, dies_at: Option<u64>) -> Bits {
    let cluster = Cluster::start(shards, workers);
    let places = Places { dies_at, ..Places::default() };
    let died = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|index| {
                let (cluster, places) = (&cluster, &places);
                scope.spawn(move || {
                    let how = (index == 0).then_some((optimizer, Mode::Deterministic));
                    let worker = Worker::join(cluster, index, problem, how);
                    work(cluster, worker, places, u64::from(index), dies_at.filter(|_| index == 1))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|died| *died).count()
    });
    assert_eq!(died, usize::from(dies_at.is_some()), "a worker was to die in the middle");
    let mut client = cluster.connect(workers);
    let layout = problem.layout().unwrap();
    let (mut params, mut buffer) = (vec![0.0; layout.total], [0.0]);
    let step = client.wait_init(&layout, &mut [&mut params], &mut [&mut buffer]).unwrap();
    assert_eq!(step, STEPS);
    bits(&params, buffer[0])
}

#[test] // DET-2, DET-3
fn the_bits_are_the_same_for_any_number_of_workers_and_shards_and_without_ps() {
    let rules = [
        sgd(0.1),
        adam(),
        Optimizer::adagrad(0.1).into(),
        Optimizer::rmsprop(0.01).into(),
        Optimizer::adadelta(1.0).into(),
        Optimizer::ftrl(0.1).into(),
        // These need sums over all shards.
        sgd(0.1).with_clip_norm(1.0),
        Optimizer::lamb(0.02).into(),
        Optimizer::lamb(0.02).with_clip_norm(0.5),
    ];
    for optimizer in rules {
        let problem = Regression::new(60, 1);
        let expected = alone(&problem, optimizer);
        for (shards, workers) in [(1, 1), (1, 2), (2, 5), (3, 2)] {
            let found = together(&problem, optimizer, shards, workers, None);
            assert!(found == expected, "{optimizer:?}: {workers} workers, {shards} ps");
        }
    }
}

#[test] // DET-2
fn a_worker_that_dies_changes_no_bit() {
    let problem = Regression::new(60, 2);
    let expected = alone(&problem, adam());
    for seed in [3, 17] {
        assert!(together(&problem, adam(), 2, 3, Some(seed)) == expected);
    }
}
