//! Training gives what it must: sync equals one process, async converges, the end of the data stops nobody.

use std::thread;

use tfos_ps::reference::Regression;
use tfos_ps::{LocalTrainer, Mode, Optimizer, Schedule, Scheduled, ServerEvent};

use crate::cluster::{Cluster, DEADLINE, Worker, adam, distance, sgd};

const SYNC2: Mode = Mode::Sync { replicas_to_aggregate: 2 };

/// One process, whole batches of 24 rows.
fn alone(problem: &Regression, optimizer: Scheduled, steps: u64) -> Vec<f32> {
    let layout = problem.layout().unwrap();
    let mut params = vec![0.0; layout.total];
    let mut trainer = LocalTrainer::new(layout, optimizer, 0).unwrap();
    for step in 0..steps {
        let (_, gradient) = problem.gradient(&params, step * 24..step * 24 + 24);
        let (bias, weight) = params.split_at_mut(1);
        trainer.apply(&mut [bias, weight], &[&gradient[..1], &gradient[1..]]).unwrap();
    }
    params
}

#[test]
fn sync_with_all_workers_equals_one_process() {
    let rules = [
        Optimizer::adagrad(0.1),
        Optimizer::adamw(0.02),
        Optimizer::lamb(0.02),
        Optimizer::rmsprop(0.01),
        Optimizer::adadelta(1.0),
        Optimizer::ftrl(0.1),
    ];
    let scheduled = rules.map(|rule| rule.with_schedule(Schedule::polynomial(60, 1.0)));
    // Small enough to clip most gradients, large enough to leave some alone.
    let clipped = [sgd(0.1).with_clip_norm(1.0), adam().with_clip_norm(0.5), Optimizer::lamb(0.02).with_clip_norm(0.5)];
    for optimizer in [sgd(0.1), adam()].into_iter().chain(scheduled).chain(clipped) {
        let problem = Regression::new(60, 1);
        let cluster = Cluster::start(2, 2);
        let results: Vec<Vec<f32>> = thread::scope(|scope| {
            let worker = |index: u32| {
                let (cluster, problem) = (&cluster, &problem);
                scope.spawn(move || {
                    let how = (index == 0).then_some((optimizer, SYNC2));
                    let mut worker = Worker::join(cluster, index, problem, how);
                    for step in 0..50u64 {
                        // Uneven parts of the batch: the mean must be weighted by rows.
                        let begin = step * 24;
                        let rows = if index == 0 { begin..begin + 7 } else { begin + 7..begin + 24 };
                        let outcome = worker.train(rows).unwrap();
                        assert_eq!((outcome.step, outcome.dropped, outcome.stop), (step + 1, false, false));
                    }
                    worker.client.finish().unwrap();
                    worker.params
                })
            };
            [worker(0), worker(1)].map(|thread| thread.join().unwrap()).into()
        });
        assert_eq!(results[0], results[1]);
        let error = distance(&results[0], &alone(&problem, optimizer, 50));
        assert!(error < 1e-6, "{optimizer:?}: off by {error:e}");
        let rows: u64 = (0..50)
            .map(|step| {
                cluster.await_event(0, |event| match event {
                    ServerEvent::Committed { step: found, commits } => {
                        assert_eq!(found, step + 1);
                        assert_eq!(commits.iter().map(|commit| commit.worker).collect::<Vec<_>>(), [0, 1]);
                        assert!(commits.iter().all(|commit| commit.leases == commit.rows.to_le_bytes()));
                        Some(commits.iter().map(|commit| commit.rows).sum::<u64>())
                    }
                    _ => None,
                })
            })
            .sum();
        assert_eq!(rows, 50 * 24);
    }
}

#[test]
fn async_converges_and_every_push_is_a_step() {
    let problem = Regression::new(40, 2);
    let cluster = Cluster::start(3, 3);
    let last = thread::scope(|scope| {
        let worker = |index: u32| {
            let (cluster, problem) = (&cluster, &problem);
            scope.spawn(move || {
                let how = (index == 0).then_some((sgd(0.05), Mode::Async));
                let mut worker = Worker::join(cluster, index, problem, how);
                for batch in 0..400u64 {
                    let begin = (u64::from(index) * 400 + batch) * 16;
                    assert!(!worker.train(begin..begin + 16).unwrap().dropped);
                }
                worker.client.finish().unwrap();
                worker.params
            })
        };
        let params = [worker(0), worker(1), worker(2)].map(|thread| thread.join().unwrap());
        params.into_iter().map(|params| problem.distance(&params)).fold(f32::MAX, f32::min)
    });
    assert!(last < 0.05, "still {last} from the truth");
    for server in &cluster.servers {
        assert_eq!(server.step(), Some(1200));
    }
    assert!(cluster.drain(0).iter().all(|event| !matches!(event, ServerEvent::WorkerLost { .. })));
}

#[test] // PS-5
fn uneven_data_and_idle_workers_stop_nobody() {
    let problem = Regression::new(20, 3);
    let cluster = Cluster::start(2, 3);
    let mode = Mode::Sync { replicas_to_aggregate: 3 };
    thread::scope(|scope| {
        for index in 0..3u32 {
            let (cluster, problem) = (&cluster, &problem);
            scope.spawn(move || {
                let mut worker = Worker::join(cluster, index, problem, (index == 0).then_some((sgd(0.1), mode)));
                for batch in 0..10 * (u64::from(index) + 1) {
                    worker.train(batch * 8..batch * 8 + 8).unwrap();
                }
                match index {
                    0 => assert!(!worker.client.idle().unwrap().stop),
                    _ => worker.client.finish().unwrap(),
                }
            });
        }
    });
    assert_eq!(cluster.servers[0].step(), Some(30));
}

#[test] // PS-3
fn a_backup_worker_that_is_late_is_told_and_goes_on() {
    let problem = Regression::new(20, 4);
    let cluster = Cluster::start(2, 2);
    let mode = Mode::Sync { replicas_to_aggregate: 1 };
    let mut fast = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), mode)));
    let mut slow = Worker::join(&cluster, 1, &problem, None);
    fast.train(0..8).unwrap();
    fast.train(8..16).unwrap();
    let late = slow.train(16..24).unwrap();
    assert_eq!((late.step, late.dropped), (2, true));
    assert_eq!(slow.params, fast.params, "it got the newest parameters with the answer");
    let leases = cluster.await_event(0, |event| match event {
        ServerEvent::Dropped { worker: 1, leases, .. } => Some(leases),
        _ => None,
    });
    assert_eq!(leases, 8u64.to_le_bytes());
    assert_eq!(slow.train(16..24).unwrap(), tfos_ps::Outcome { step: 3, dropped: false, stop: false });
}

#[test]
fn max_steps_stops_all_workers() {
    let problem = Regression::new(20, 5);
    let cluster = Cluster::start(2, 2);
    cluster.servers[0].set_max_steps(Some(7)).unwrap();
    assert!(cluster.servers[1].set_max_steps(Some(7)).is_err());
    thread::scope(|scope| {
        for index in 0..2u32 {
            let (cluster, problem) = (&cluster, &problem);
            scope.spawn(move || {
                let mut worker = Worker::join(cluster, index, problem, (index == 0).then_some((sgd(0.1), Mode::Async)));
                while !worker.train(0..8).unwrap().stop {}
                let (bias, weight) = worker.params.split_at_mut(1);
                let deadline = std::time::Instant::now() + DEADLINE;
                // The other shard may not have heard yet of what ps:0 decided last.
                while worker.client.pull(&mut [&mut *bias, &mut *weight], &mut [&mut [0.0]]).unwrap().step != 7 {
                    assert!(std::time::Instant::now() < deadline, "the last step never came");
                }
            });
        }
    });
    assert_eq!(cluster.servers[0].step(), Some(7));
}

#[test]
fn buffers_are_assigned_and_reach_those_who_join() {
    let problem = Regression::new(20, 6);
    let cluster = Cluster::start(2, 2);
    let mut chief = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), Mode::Async)));
    chief.train(0..13).unwrap();
    let mut client = cluster.connect(1);
    let (mut params, mut seen) = (vec![0.0; 21], [0.0]);
    let step = client.wait_init(&problem.layout().unwrap(), &mut [&mut params], &mut [&mut seen]).unwrap();
    assert_eq!((step, seen, &params), (1, [13.0], &chief.params));
}

#[test]
fn stopping_ends_everybody_who_waits() {
    let problem = Regression::new(20, 7);
    let cluster = Cluster::start(2, 2);
    let mut chief = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), SYNC2)));
    let second = cluster.connect(1);
    let started = std::time::Instant::now();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || chief.train(0..8).map(drop));
        cluster.servers.iter().for_each(tfos_ps::PsServer::stop);
        assert!(waiting.join().unwrap().unwrap_err().is_secondary());
    });
    assert!(started.elapsed() < DEADLINE);
    drop(second);
    for shard in 0..2 {
        let failures: Vec<_> =
            cluster.drain(shard).into_iter().filter(|event| matches!(event, ServerEvent::Failed(_))).collect();
        assert!(failures.is_empty(), "an orderly stop is no failure: {failures:?}");
    }
}

#[test]
fn norms_are_those_of_the_whole_model_on_any_number_of_shards() {
    // `weight` lies on all shards, `bias` on one.
    for optimizer in [adam(), Optimizer::lamb(0.01).into()].map(|optimizer| optimizer.with_clip_norm(0.7)) {
        same_on_any_number_of_shards(optimizer);
    }
}

fn same_on_any_number_of_shards(optimizer: Scheduled) {
    let problem = Regression::new(90, 8);
    let layout = problem.layout().unwrap();
    let mut local = vec![0.0; layout.total];
    let mut trainer = LocalTrainer::new(layout, optimizer, 0).unwrap();
    let clusters = [1, 3].map(|shards| Cluster::start(shards, 1));
    let mut workers =
        clusters.each_ref().map(|cluster| Worker::join(cluster, 0, &problem, Some((optimizer, Mode::Async))));
    let (mut clipped, mut whole) = (0, 0);
    for step in 0..60 {
        let (_, mut gradient) = problem.gradient(&local, step * 8..step * 8 + 8);
        let size = if step % 2 == 0 { 1.0 } else { 0.01 };
        gradient.iter_mut().for_each(|g| *g *= size);
        let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        *if norm > 0.7 { &mut clipped } else { &mut whole } += 1;
        let (bias, weight) = local.split_at_mut(1);
        trainer.apply(&mut [bias, weight], &[&gradient[..1], &gradient[1..]]).unwrap();
        for worker in &mut workers {
            assert!(!worker.push(&gradient, 8, 0.0).unwrap().dropped);
            assert_eq!(worker.params, local, "step {step}");
        }
    }
    assert!(clipped > 10 && whole > 10, "{clipped} were clipped, {whole} were not");
}
