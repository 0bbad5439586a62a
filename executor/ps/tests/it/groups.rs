//! Groups of variables on real sockets, and the dial turned while workers train.

use std::sync::Barrier;
use std::thread;

use tfos_ps::reference::Regression;
use tfos_ps::{Dial, Error, Group, Mode, ServerEvent};

use crate::cluster::{Cluster, Worker, adam, sgd};

fn dial(replicas_to_aggregate: u32) -> Dial {
    let group = |pattern: &str, eager| Group { pattern: pattern.to_owned(), eager };
    let groups = vec![group("weig*", true), group("*", false)];
    Dial { mode: Mode::Grouped { replicas_to_aggregate }, groups }
}

fn sync(replicas_to_aggregate: u32) -> Mode {
    Mode::Sync { replicas_to_aggregate }
}

#[test] // PS-7
fn each_gradient_updates_the_eager_group_and_their_mean_the_rest() {
    let problem = Regression::new(60, 11);
    for shards in [1, 3] {
        let cluster = Cluster::start(shards, 2);
        cluster.servers[0].begin_with(dial(2)).unwrap();
        // Who joins while a gradient is accepted gets parameters that have it in the eager group: of that group nobody said
        // that it is in step. Here both begin with the same ones.
        let joined = Barrier::new(2);
        let trained: Vec<Vec<f32>> = thread::scope(|scope| {
            let worker = |index: u32| {
                let (cluster, problem, joined) = (&cluster, &problem, &joined);
                scope.spawn(move || {
                    let how = (index == 0).then_some((sgd(0.005), sync(2)));
                    let mut worker = Worker::join(cluster, index, problem, how);
                    joined.wait();
                    for step in 0..30u64 {
                        let begin = step * 24 + u64::from(index) * 8;
                        let rows = if index == 0 { begin..begin + 8 } else { begin..begin + 16 };
                        let outcome = worker.train(rows).unwrap();
                        assert_eq!((outcome.step, outcome.dropped), (step + 1, false));
                    }
                    worker.client.finish().unwrap();
                    worker.params
                })
            };
            [worker(0), worker(1)].map(|thread| thread.join().unwrap()).into()
        });
        assert_eq!(trained[0], trained[1]);
        let mut params = vec![0.0f32; 61];
        for step in 0..30u64 {
            let (_, a) = problem.gradient(&params, step * 24..step * 24 + 8);
            let (_, b) = problem.gradient(&params, step * 24 + 8..step * 24 + 24);
            params[0] -= 0.005 * (a[0] / 3.0 + b[0] * 2.0 / 3.0);
            params[1..].iter_mut().zip(a[1..].iter().zip(&b[1..])).for_each(|(p, (a, b))| *p -= 0.005 * (a + b));
        }
        let off = crate::cluster::distance(&trained[0], &params);
        assert!(off < 1e-4, "{shards} shards: {off}");
    }
}

#[test] // OPT-1: with one gradient a step, rate and bias correction of both groups are those of a model without groups
fn one_worker_trains_in_groups_as_without() {
    let problem = Regression::new(60, 12);
    let train = |grouped: bool| {
        let cluster = Cluster::start(2, 1);
        if grouped {
            cluster.servers[0].begin_with(dial(1)).unwrap();
        }
        let mut worker = Worker::join(&cluster, 0, &problem, Some((adam(), sync(1))));
        for step in 0..40 {
            worker.train(step * 8..step * 8 + 8).unwrap();
        }
        worker.params
    };
    assert_eq!(train(true), train(false));
}

#[test] // PS-5, PS-7
fn a_turn_of_the_dial_lets_those_go_on_who_wait_and_is_told_with_its_step() {
    let problem = Regression::new(20, 13);
    let cluster = Cluster::start(2, 2);
    assert!(matches!(cluster.servers[0].turn(1, Mode::Async.into()), Err(Error::NotInitialised { .. })));
    let mut first = Worker::join(&cluster, 0, &problem, Some((sgd(0.005), sync(2))));
    let _second = Worker::join(&cluster, 1, &problem, None);
    let turned = |id: u64, dial: Dial| {
        cluster.servers[0].turn(id, dial).unwrap().unwrap();
        cluster.await_event(0, |event| match event {
            ServerEvent::Turned { id: found, step, refused } if found == id => Some((step, refused)),
            _ => None,
        })
    };
    // Waits for the second one, which never pushes.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| first.train(0..8).unwrap());
        cluster.servers[0].request_snapshot(1).unwrap();
        assert_eq!(turned(2, Mode::Async.into()).1, None);
        assert_eq!(waiting.join().unwrap().step, 1);
    });
    assert_eq!(first.train(8..16).unwrap().step, 2);
    assert_eq!(turned(3, dial(1)), (2, None));
    assert_eq!(first.train(16..24).unwrap().step, 3);
    assert_eq!(turned(4, sync(1).into()), (3, None));
    assert_eq!(first.train(24..32).unwrap().step, 4);
    assert!(turned(5, Mode::LocalSgd { steps: 2 }.into()).1.unwrap().contains("local-sgd"));
    let stray = Dial { groups: vec![Group { pattern: "b*".into(), eager: true }], ..dial(1) };
    assert!(cluster.servers[0].turn(6, stray).unwrap().unwrap_err().contains("`weight`"));
    assert_eq!(first.train(32..40).unwrap().step, 5);
}
