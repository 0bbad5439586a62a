//! Bounded staleness over sockets: the bound holds, whatever the speeds, and a death sets those free who wait.

use std::collections::BTreeMap;
use std::thread;

use tfos_ps::reference::{Random, Regression};
use tfos_ps::{Mode, ServerEvent};

use crate::cluster::{Cluster, Worker, sgd};

fn await_step(cluster: &Cluster, wanted: u64) {
    cluster
        .await_event(0, |event| matches!(event, ServerEvent::Committed { step, .. } if step == wanted).then_some(()));
}

#[test] // PS-6
fn the_answer_that_waited_has_what_it_waited_for() {
    let problem = Regression::new(60, 1);
    let cluster = Cluster::start(2, 2);
    let mode = Mode::Bounded { max_staleness: 1 };
    let mut fast = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), mode)));
    let mut slow = Worker::join(&cluster, 1, &problem, None);
    assert_eq!(fast.train(0..8).unwrap().step, 1);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| fast.train(8..16).unwrap());
        // Applied at once, and not answered before the other one's step.
        await_step(&cluster, 2);
        assert_eq!(slow.train(16..24).unwrap().step, 3);
        let answer = waiting.join().unwrap();
        assert_eq!((answer.step, answer.dropped), (3, false));
    });
    assert_eq!(fast.params, slow.params);
}

#[test] // PS-5, PS-6
fn a_death_sets_those_free_who_wait_for_it() {
    for lost in [false, true] {
        let problem = Regression::new(60, 2);
        let cluster = Cluster::start(2, 2);
        let mode = Mode::Bounded { max_staleness: 0 };
        let optimizer = sgd(0.1).with_clip_norm(1.0);
        let mut fast = Worker::join(&cluster, 0, &problem, Some((optimizer, mode)));
        let slow = Worker::join(&cluster, 1, &problem, None);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| fast.train(0..8).unwrap());
            await_step(&cluster, 1);
            match lost {
                // Its connections end, as those of a process that is killed.
                true => drop(slow),
                false => slow.client.finish().unwrap(),
            }
            assert_eq!(waiting.join().unwrap().step, 1);
        });
        if lost {
            let seen = |event| matches!(event, ServerEvent::WorkerLost { worker: 1, .. }).then_some(());
            cluster.await_event(0, seen);
        }
        assert_eq!(fast.train(8..16).unwrap().step, 2, "alone, it waits for nobody");
        fast.client.finish().unwrap();
    }
}

#[test] // PS-6
fn nobody_is_ever_further_ahead_than_the_bound() {
    const STEPS: u64 = 150;
    for max_staleness in [0, 2] {
        let problem = Regression::new(60, 3);
        let cluster = Cluster::start(2, 3);
        let mode = Mode::Bounded { max_staleness };
        thread::scope(|scope| {
            for index in 0..3u32 {
                let (cluster, problem) = (&cluster, &problem);
                scope.spawn(move || {
                    let how = (index == 0).then_some((sgd(0.01), mode));
                    let mut worker = Worker::join(cluster, index, problem, how);
                    let mut random = Random::new(u64::from(index));
                    for _ in 0..STEPS {
                        // Some steps are much longer than others.
                        let rows = if random.below(8) == 0 { 2000 } else { 4 };
                        assert!(!worker.train(0..rows).unwrap().dropped);
                    }
                    worker.client.finish().unwrap();
                });
            }
        });
        let mut clocks: BTreeMap<u32, u64> = (0..3).map(|worker| (worker, 0)).collect();
        let mut reported = 0;
        for event in cluster.drain(0) {
            let ServerEvent::Committed { commits, .. } = event else { continue };
            for commit in commits.iter() {
                // When it began, the slowest had done no more than it has now.
                let slowest = clocks.values().min().unwrap();
                let ahead = clocks[&commit.worker].saturating_sub(*slowest);
                assert!(ahead <= u64::from(max_staleness), "{} is {ahead} ahead", commit.worker);
                assert!(commit.staleness <= u64::from(max_staleness));
                reported = reported.max(commit.staleness);
                *clocks.get_mut(&commit.worker).unwrap() += 1;
            }
        }
        assert!(clocks.values().all(|&steps| steps == STEPS));
        assert_eq!(reported, u64::from(max_staleness), "the bound was reached");
    }
}
