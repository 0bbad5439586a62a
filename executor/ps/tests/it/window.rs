//! Windows: gradients and parameters that need no stream, between processes of one host.

use std::thread;

use tfos_ps::reference::Regression;
use tfos_ps::transport::{SameHost, Tcp, Transport};
use tfos_ps::wire::{self, Header, Kind};
use tfos_ps::{InitState, Layout, Mode, Optimizer, PsClient, Push, ServerEvent};

use crate::cluster::{Cluster, Worker, adam};

const SYNC2: Mode = Mode::Sync { replicas_to_aggregate: 2 };

/// Two workers, two ps; what both have in the end.
fn trained(transport: &(dyn Transport + Sync), windows: usize) -> Vec<f32> {
    let (problem, cluster) = (Regression::new(5000, 7), Cluster::start(2, 2));
    thread::scope(|scope| {
        let worker = |index: u32| {
            let (cluster, problem) = (&cluster, &problem);
            scope.spawn(move || {
                let client = PsClient::connect_over(transport, &cluster.addresses, &Cluster::options(index)).unwrap();
                let mut worker = Worker::join_by(client, problem, (index == 0).then_some((adam(), SYNC2)));
                for step in 0..20u64 {
                    assert_eq!(worker.client.windows(), if step > 0 { windows } else { 0 });
                    worker.train(step * 16 + u64::from(index) * 8..step * 16 + u64::from(index) * 8 + 8).unwrap();
                }
                worker.client.finish().unwrap();
                worker.params
            })
        };
        let [a, b] = [worker(0), worker(1)].map(|thread| thread.join().unwrap());
        assert!(a == b);
        a
    })
}

#[test]
fn a_window_gives_the_same_bits_as_a_stream() {
    assert!(trained(&SameHost, 2) == trained(&Tcp, 0));
}

#[test] // PS-8
fn what_a_worker_reads_is_one_version_while_others_go_on() {
    // From the second length on a version is given back as soon as it is read.
    for (len, pushes) in [(300_000, 60), (4 << 20, 8)] {
        let cluster = Cluster::start(1, 3);
        let layout = Layout::new([("w".to_owned(), vec![len as i64])], []).unwrap();
        thread::scope(|scope| {
            for index in 0..3u32 {
                let (cluster, layout) = (&cluster, &layout);
                scope.spawn(move || {
                    let mut client = cluster.connect(index);
                    let (mut params, gradient) = (vec![0.0f32; len], vec![1.0f32; len]);
                    if index == 0 {
                        let (optimizer, params) = (Optimizer::sgd(1.0).into(), &[&params[..]]);
                        let (mode, slots, buffers) = (Mode::Async, &[], &[] as &[&[f32]]);
                        let state = InitState { optimizer, mode, step: 0, optimizer_step: 0, params, slots, buffers };
                        client.init(layout, state).unwrap();
                    }
                    client.wait_init(layout, &mut [&mut params], &mut []).unwrap();
                    for _ in 0..pushes {
                        let push = Push { rows: 1, loss: 0.0, leases: &[], buffers: None, gradients: &[&gradient] };
                        let step = client.push_pull(push, &mut [&mut params]).unwrap().step;
                        // Every update takes 1 from everything.
                        let odd = params.iter().position(|&value| value != -(step as f32));
                        assert_eq!(odd.map(|at| (at, params[at])), None, "step {step}");
                    }
                    assert_eq!(client.windows(), 1);
                    client.finish().unwrap();
                });
            }
        });
        assert_eq!(cluster.servers[0].step(), Some(3 * pushes));
    }
}

#[test] // PS-1
fn a_worker_that_dies_while_it_writes_leaves_nothing() {
    let (problem, cluster) = (Regression::new(3000, 5), Cluster::start(1, 2));
    let mut chief = Worker::join(&cluster, 0, &problem, Some((adam(), Mode::Async)));
    let mut worker = Worker::join(&cluster, 1, &problem, None);
    chief.train(0..8).unwrap();
    worker.train(8..16).unwrap();
    assert_eq!(worker.client.windows(), 1);
    worker.client.stream([(0, vec![f32::NAN; 2000])]).unwrap();
    drop(worker);
    let lost = |event| matches!(event, ServerEvent::WorkerLost { worker: 1, .. }).then_some(());
    cluster.await_event(0, lost);
    let mut again = Worker::join(&cluster, 1, &problem, None);
    assert_eq!(again.step, 2);
    for batch in 2..6 {
        again.train(batch * 8..batch * 8 + 8).unwrap();
    }
    assert!(again.client.windows() == 1 && again.params.iter().all(|value| value.is_finite()));
    assert_eq!(chief.train(48..56).unwrap().step, 7);
}

#[test]
fn a_push_into_a_window_that_is_not_there_ends_the_connection_and_no_other() {
    let (problem, cluster) = (Regression::new(30, 5), Cluster::start(1, 2));
    let mut chief = Worker::join(&cluster, 0, &problem, Some((adam(), Mode::Async)));
    for len in [31, 30] {
        let (mut stranger, seq) = cluster.stranger();
        // Over TCP there is none, and of another length there is none either.
        let mut open = Header::new(Kind::Window);
        open.body = len;
        wire::send(&mut *stranger, open, &[], []).unwrap();
        if len == 31 {
            assert_eq!(wire::expect(&mut *stranger, Kind::Ok, "Ok").unwrap().flags, 0);
            let mut push = Header::new(Kind::PushPull);
            (push.worker, push.seq, push.flags) = (1, seq, wire::WINDOW);
            wire::send(&mut *stranger, push, &[], []).unwrap();
        }
        assert!(wire::expect(&mut *stranger, Kind::Result, "Result").is_err());
        cluster.await_event(0, |event| matches!(event, ServerEvent::WorkerLost { worker: 1, .. }).then_some(()));
    }
    assert_eq!(chief.train(0..8).unwrap().step, 1);
}
