//! Gradients that come in slices give the same bits as whole ones, and half of one gives nothing.

use std::thread;

use tfos_ps::reference::{Random, Regression};
use tfos_ps::wire::{self, Header, Kind};
use tfos_ps::{Awaited, DropReason, Error, InitState, Layout, Mode, Place, PsClient, Push, ServerEvent};

use crate::cluster::{Cluster, Worker, adam, sgd};

const ELEMENTS: usize = 700_001;
const STEPS: u64 = 4;

fn layout() -> Layout {
    // Some large, most of them small: these are fused.
    let small = (0..200).map(|i| (format!("b{i:03}"), vec![1 + i % 7]));
    let used: i64 = small.clone().map(|(_, shape)| shape[0]).sum();
    let large = [("a".to_owned(), vec![300_000]), ("c".to_owned(), vec![ELEMENTS as i64 - 300_000 - used])];
    Layout::new(small.chain(large), []).unwrap()
}

fn gradient(worker: u32, step: u64) -> Vec<f32> {
    let mut random = Random::new(u64::from(worker) * 1000 + step);
    (0..ELEMENTS).map(|_| random.uniform()).collect()
}

/// The variables in an order in which a backward pass could give them: at random, some twice, some not at all.
fn slices<'a>(layout: &Layout, gradient: &'a [f32], seed: u64) -> Vec<(usize, &'a [f32])> {
    let mut random = Random::new(seed);
    let all = layout.variables.iter().map(|v| (v.offset, &gradient[v.offset..v.offset + v.len()]));
    let mut chosen: Vec<(u64, (usize, &[f32]))> = vec![];
    for slice in all {
        for _ in 0..random.below(3) {
            chosen.push((random.next_u64(), slice));
        }
    }
    chosen.sort_by_key(|(key, _)| *key);
    chosen.into_iter().map(|(_, slice)| slice).collect()
}

fn push<'a>(gradients: &'a [&'a [f32]]) -> Push<'a> {
    Push { rows: 3, loss: 0.5, leases: b"leases", buffers: None, gradients }
}

fn start(client: &mut PsClient, layout: &Layout, mode: Mode) {
    let params = vec![0.25; ELEMENTS];
    let optimizer = adam().with_clip_norm(100.0);
    let state = InitState { optimizer, mode, step: 0, optimizer_step: 0, params: &[&params], slots: &[], buffers: &[] };
    client.init(layout, state).unwrap();
}

/// The parameters after some synchronous steps of two workers over `shards`.
fn sync(shards: usize, sliced: bool) -> Vec<f32> {
    let (cluster, layout) = (Cluster::start(shards, 2), layout());
    let train = |index: u32| {
        let mut client = cluster.connect(index);
        if index == 0 {
            start(&mut client, &layout, Mode::Sync { replicas_to_aggregate: 2 });
        }
        let mut params = vec![0.0; ELEMENTS];
        client.wait_init(&layout, &mut [&mut params], &mut []).unwrap();
        for step in 0..STEPS {
            let gradient = gradient(index, step);
            // One worker changes from step to step.
            if sliced && (index == 0 || step % 2 == 0) {
                client.stream(slices(&layout, &gradient, step * 2 + u64::from(index))).unwrap();
            }
            let outcome = client.push_pull(push(&[&gradient]), &mut [&mut params]).unwrap();
            assert_eq!((outcome.step, outcome.dropped), (step + 1, false));
        }
        client.finish().unwrap();
        params
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| train(1));
        let first = train(0);
        assert!(first == other.join().unwrap());
        first
    })
}

#[test] // PS-1
fn slices_give_the_same_bits_as_whole_gradients_in_synchronous_training() {
    for shards in [1, 3] {
        assert!(sync(shards, true) == sync(shards, false), "over {shards}");
    }
}

#[test] // PS-1, DET-2
fn slices_give_the_same_bits_as_whole_gradients_in_deterministic_training() {
    let run = |sliced: bool| {
        let (cluster, layout) = (Cluster::start(2, 1), layout());
        let mut client = cluster.connect(0);
        start(&mut client, &layout, Mode::Deterministic);
        let mut params = vec![0.0; ELEMENTS];
        for step in 0..STEPS {
            for index in 0..2 {
                let gradient = gradient(index, step);
                if sliced {
                    client.stream(slices(&layout, &gradient, step)).unwrap();
                }
                client.push(push(&[&gradient]), Place { index, of: 2 }).unwrap();
            }
            while client.await_step(step + 1, &mut [&mut params], &mut []).unwrap() != Awaited::Ready {}
        }
        client.finish().unwrap();
        params
    };
    assert!(run(true) == run(false));
}

#[test] // PS-1
fn half_a_gradient_is_refused_and_so_is_what_lies_outside_of_it() {
    let problem = Regression::new(20, 1);
    let cluster = Cluster::start(1, 2);
    let mut chief = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), Mode::Async)));
    let slices: [&[(u64, u64)]; 6] =
        [&[(0, 20)], &[(0, 10), (11, 10)], &[(0, 10), (0, 10)], &[(0, 22)], &[(21, 1)], &[(u64::MAX, 2)]];
    for slices in slices {
        let (mut worker, seq) = cluster.stranger();
        for &(rows, body) in slices {
            let header = Header { worker: 1, seq, rows, body, ..Header::new(Kind::Slice) };
            wire::send(&mut *worker, header, &[], [&vec![1.0; body as usize][..]]).unwrap();
        }
        let flags = wire::SLICED;
        let header = Header { worker: 1, seq, rows: 1, flags, ..Header::new(Kind::PushPull) };
        // May find the connection closed already.
        drop(wire::send(&mut *worker, header, &[], []));
        let ended = wire::recv_header(&mut *worker).unwrap_err();
        assert!(matches!(ended, Error::PeerLost { .. }), "{slices:?}: {ended}");
    }
    assert_eq!(chief.train(0..8).unwrap().step, 1, "none of them was applied");
}

#[test] // PS-1
fn a_worker_that_dies_between_two_slices_is_applied_nowhere() {
    let problem = Regression::new(20, 1);
    let cluster = Cluster::start(2, 2);
    let mut chief = Worker::join(&cluster, 0, &problem, Some((sgd(1.0), Mode::Async)));
    let mut other = Worker::join(&cluster, 1, &problem, None);
    // All of it, and still no push.
    other.client.stream([(4, vec![9.0; 17]), (0, vec![9.0; 4])]).unwrap();
    drop(other);
    cluster.await_event(0, |event| matches!(event, ServerEvent::WorkerLost { worker: 1, .. }).then_some(()));
    assert_eq!(chief.push(&[1.0; 21], 8, 0.0).unwrap().step, 1);
    assert_eq!(chief.params, [-1.0; 21]);
    let dropped = |event: &ServerEvent| matches!(event, ServerEvent::Dropped { reason: DropReason::WorkerGone, .. });
    assert!(!cluster.drain(0).iter().any(dropped), "there was no push to drop");
}
