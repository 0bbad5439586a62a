//! Windows: gradients and parameters that need no stream, between processes of one host.

use std::thread;

use tfos_ps::reference::Regression;
use tfos_ps::transport::{SameHost, Tcp, Transport};
use tfos_ps::wire::{self, Header, Kind};
use tfos_ps::{Block, InitState, Layout, LentPart, Mode, Optimizer, PsClient, Push, ServerEvent};

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

/// Adam on one ps and one variable that is worth a block, by two workers in step. With `in_place` nothing is copied: the gradient
/// is computed where the ps reads it, from parameters where the ps has them.
fn trained_by(transport: &(dyn Transport + Sync), in_place: bool) -> Vec<f32> {
    const LEN: usize = 50_000;
    let cluster = Cluster::start(1, 2);
    let layout = Layout::new([("a".to_owned(), vec![3]), ("w".to_owned(), vec![LEN as i64])], []).unwrap();
    thread::scope(|scope| {
        let worker = |index: u32| {
            let (cluster, layout) = (&cluster, &layout);
            scope.spawn(move || {
                let options = Cluster::options(index);
                let mut client = PsClient::connect_over(transport, &cluster.addresses, &options).unwrap();
                let (mut small, mut large) = (vec![0.5f32; 3], vec![0.25f32; LEN]);
                if index == 0 {
                    let params: &[&[f32]] = &[&small, &large];
                    let (optimizer, mode, slots, buffers) = (adam(), SYNC2, &[], &[] as &[&[f32]]);
                    let state = InitState { optimizer, mode, step: 0, optimizer_step: 0, params, slots, buffers };
                    client.init(layout, state).unwrap();
                }
                client.wait_init(layout, &mut [&mut small, &mut large], &mut []).unwrap();
                let (mut own, mut block, mut lent) = (vec![0.0f32; LEN], None::<Block>, None::<LentPart>);
                for step in 0..20 {
                    if block.is_none() && in_place {
                        block = client.block(LEN);
                        assert_eq!(block.is_some(), step > 0);
                    }
                    let params: &[f32] = lent.as_deref().unwrap_or(&large);
                    let gradient: &mut [f32] = block.as_deref_mut().unwrap_or(&mut own);
                    for (i, (gradient, param)) in gradient.iter_mut().zip(params).enumerate() {
                        *gradient = param * (i % 7) as f32 + (index as f32 - 0.3) * step as f32;
                    }
                    let gradients: &[&[f32]] = &[&[1.0, 2.0, step as f32], gradient];
                    let push = Push { rows: 1, loss: 0.0, leases: &[], buffers: None, gradients };
                    if step % 3 == 1 {
                        client.stream([(3, gradients[1])]).unwrap();
                    }
                    if in_place && client.lends() {
                        lent = client.push_pull_lent(push, &mut [(0, &mut small)]).unwrap().1.part(3..3 + LEN);
                        assert!(lent.is_some());
                    } else {
                        client.push_pull(push, &mut [&mut small, &mut large]).unwrap();
                    }
                }
                let result = [&small[..], lent.as_deref().unwrap_or(&large)].concat();
                client.finish().unwrap();
                result
            })
        };
        let [a, b] = [worker(0), worker(1)].map(|thread| thread.join().unwrap());
        assert!(a == b);
        a
    })
}

#[test]
fn what_is_not_copied_gives_the_same_bits() {
    let copied = trained_by(&Tcp, false);
    assert!(copied == trained_by(&SameHost, false));
    assert!(copied == trained_by(&SameHost, true));
    assert!(copied.iter().all(|value| value.is_finite() && *value != 0.25));
}

/// A worker in asynchronous training, of which a gradient of ones takes 1 from everything.
fn counting(cluster: &Cluster, index: u32, layout: &Layout) -> (PsClient, Vec<f32>) {
    let (mut client, mut params) = (cluster.connect(index), vec![0.0f32; layout.total]);
    if index == 0 {
        let (optimizer, params) = (Optimizer::sgd(1.0).into(), &[&params[..]]);
        let (mode, slots, buffers) = (Mode::Async, &[], &[] as &[&[f32]]);
        let state = InitState { optimizer, mode, step: 0, optimizer_step: 0, params, slots, buffers };
        client.init(layout, state).unwrap();
    }
    client.wait_init(layout, &mut [&mut params], &mut []).unwrap();
    (client, params)
}

#[test] // PS-8
fn what_is_lent_is_one_version_until_the_next_push() {
    const LEN: usize = 300_000;
    let cluster = Cluster::start(1, 3);
    let layout = Layout::new([("w".to_owned(), vec![LEN as i64])], []).unwrap();
    let pushes = 60;
    thread::scope(|scope| {
        for index in 0..3u32 {
            let (cluster, layout) = (&cluster, &layout);
            scope.spawn(move || {
                let (mut client, mut params) = counting(cluster, index, layout);
                let gradient = vec![1.0f32; LEN];
                let gradients: &[&[f32]] = &[&gradient];
                let push = || Push { rows: 1, loss: 0.0, leases: &[], buffers: None, gradients };
                assert!(client.push_pull_lent(push(), &mut []).is_err(), "before there is a window");
                client.push_pull(push(), &mut [&mut params]).unwrap();
                for _ in 1..pushes {
                    let (outcome, lent) = client.push_pull_lent(push(), &mut []).unwrap();
                    let part = lent.part(0..LEN).unwrap();
                    // Whatever else is said meanwhile, and whoever else pushes.
                    let mut seen = client.idle().unwrap().step;
                    for _ in 0..3 {
                        let odd = part.iter().position(|&value| value != -(outcome.step as f32));
                        assert_eq!(odd.map(|at| (at, part[at])), None, "step {}, others at {seen}", outcome.step);
                        seen = client.active().unwrap().step;
                    }
                }
                client.finish().unwrap();
            });
        }
    });
    assert_eq!(cluster.servers[0].step(), Some(3 * pushes));
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
                    let (mut client, mut params) = counting(cluster, index, layout);
                    let gradient = vec![1.0f32; len];
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
    // Over TCP there is none to push into or to have blocks in, and of another length there is none either.
    for (len, then) in [(31, Some(Kind::PushPull)), (31, Some(Kind::Blocks)), (30, None)] {
        let (mut stranger, seq) = cluster.stranger();
        let mut open = Header::new(Kind::Window);
        open.body = len;
        wire::send(&mut *stranger, open, &[], []).unwrap();
        if let Some(kind) = then {
            assert_eq!(wire::expect(&mut *stranger, Kind::Ok, "Ok").unwrap().flags, 0);
            let mut next = Header::new(kind);
            (next.worker, next.seq, next.flags) = (1, seq, wire::WINDOW);
            let table = [0u64, 1, 0].map(u64::to_le_bytes).concat();
            wire::send(&mut *stranger, next, if kind == Kind::Blocks { &table } else { &[] }, []).unwrap();
        }
        assert!(wire::expect(&mut *stranger, Kind::Result, "Result").is_err());
        cluster.await_event(0, |event| matches!(event, ServerEvent::WorkerLost { worker: 1, .. }).then_some(()));
    }
    assert_eq!(chief.train(0..8).unwrap().step, 1);
}
