//! Snapshots are consistent under load, and training continues from them on any number of shards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tfos_ps::reference::Regression;
use tfos_ps::{FullState, Mode, ServerEvent, Snapshot};

use crate::cluster::{Cluster, Worker, adam, distance, sgd};

fn await_state(cluster: &Cluster, wanted: u64) -> FullState {
    let part = |shard| {
        cluster.await_event(shard, |event| match event {
            ServerEvent::Snapshot(snapshot) if snapshot.id == wanted => Some(snapshot),
            _ => None,
        })
    };
    let parts: Vec<Snapshot> = (0..cluster.servers.len()).map(part).collect();
    FullState::assemble(parts).unwrap()
}

#[test] // PS-2
fn a_snapshot_under_load_is_of_one_step_on_all_shards() {
    const SIZE: usize = 40_000;
    let problem = Regression::new(SIZE - 1, 1);
    let cluster = Cluster::start(3, 2);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let chief = Worker::join(&cluster, 0, &problem, Some((sgd(1.0), Mode::Async)));
        let second = Worker::join(&cluster, 1, &problem, None);
        for mut worker in [chief, second] {
            let stop = &stop;
            // Each update subtracts exactly 1: the parameters count the steps.
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let outcome = worker.push(&[1.0; SIZE], 1, 0.0).unwrap();
                    assert!(worker.params.iter().all(|&p| p == -(outcome.step as f32)), "an answer is one step too");
                }
            });
        }
        let mut last = 0;
        for id in 1..=20 {
            cluster.servers[0].request_snapshot(id).unwrap();
            let (mut committed, mut marker) = (last, None);
            cluster.await_event(0, |event| match event {
                ServerEvent::Committed { step, .. } => {
                    assert_eq!(step, committed + 1);
                    committed = step;
                    None
                }
                ServerEvent::SnapshotMarker { id: found, step } if found == id => {
                    marker = Some(step);
                    Some(())
                }
                _ => None,
            });
            assert_eq!(marker, Some(committed), "the marker stands between the commits");
            last = committed;
            // Other events of ps:0 come meanwhile and are counted: its snapshot is among them.
            let part0 = cluster.await_event(0, |event| match event {
                ServerEvent::Committed { step, .. } => {
                    last = step;
                    None
                }
                ServerEvent::Snapshot(snapshot) if snapshot.id == id => Some(snapshot),
                _ => None,
            });
            let mut parts = vec![part0];
            for shard in 1..3 {
                parts.push(cluster.await_event(shard, |event| match event {
                    ServerEvent::Snapshot(snapshot) if snapshot.id == id => Some(snapshot),
                    _ => None,
                }));
            }
            let state = FullState::assemble(parts).unwrap();
            assert_eq!(Some(state.step), marker);
            assert_eq!(state.params.len(), SIZE);
            assert!(state.params.iter().all(|&p| p == -(state.step as f32)), "snapshot {id} mixes steps");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test] // OPT-1
fn training_continues_identically_on_another_number_of_shards() {
    let problem = Regression::new(70, 2);
    let layout = problem.layout().unwrap();
    let cluster = Cluster::start(3, 1);
    let mut worker = Worker::join(&cluster, 0, &problem, Some((adam(), Mode::Async)));
    for batch in 0..10 {
        worker.train(batch * 8..batch * 8 + 8).unwrap();
    }
    cluster.servers[0].request_snapshot(1).unwrap();
    let state = await_state(&cluster, 1);
    assert_eq!((state.step, state.optimizer_step, &state.buffers[..]), (10, 10, &[8.0][..]));
    assert_eq!(state.params, worker.params);
    for shards in [1, 2, 4] {
        let again = Cluster::start(shards, 2);
        let mut chief = again.connect(0);
        chief.init_from(&layout, adam(), Mode::Async, &state).unwrap();
        let mut other = Worker::join(&again, 1, &problem, None);
        assert_eq!(other.step, 10);
        for batch in 10..20 {
            other.train(batch * 8..batch * 8 + 8).unwrap();
        }
        assert_eq!(other.step, 20);
        if shards == 1 {
            for batch in 10..20 {
                worker.train(batch * 8..batch * 8 + 8).unwrap();
            }
        }
        assert_eq!(distance(&other.params, &worker.params), 0.0, "{shards} shards");
    }
}
