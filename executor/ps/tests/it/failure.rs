//! Deaths at bad moments: a worker in mid-push, a fenced worker, a shard, one that comes back.

use std::net::TcpStream;
use std::thread;

use tfos_ps::reference::Regression;
use tfos_ps::transport::{Acceptor, Tcp, TcpAcceptor, Transport};
use tfos_ps::wire::{self, Header, Hello, HelloRole, Kind};
use tfos_ps::{DropReason, FullState, Mode, ServerEvent, Snapshot, shard_range};

use crate::cluster::{Cluster, DEADLINE, TOKEN, Worker, sgd};

const FEATURES: usize = 100;

fn hello(shard: usize, session: Option<u32>) -> Vec<u8> {
    let role = HelloRole::Worker { worker: 1, is_chief: false, session };
    let hello = Hello { version: wire::VERSION, token: TOKEN.to_owned(), generation: 3, shard, num_shards: 2, role };
    wire::to_json("hello", &hello).unwrap()
}

/// Worker 1 by hand: its whole slice goes to ps:0, half of it to ps:1, then both connections break.
fn die_in_mid_push(cluster: &Cluster) {
    let mut connections: Vec<_> = cluster.addresses.iter().map(|a| Tcp.connect(a, DEADLINE).unwrap()).collect();
    wire::send(&mut *connections[0], Header::new(Kind::Hello), &hello(0, None), []).unwrap();
    let session = wire::expect(&mut *connections[0], Kind::Welcome, "Welcome").unwrap().seq;
    wire::send(&mut *connections[1], Header::new(Kind::Hello), &hello(1, Some(session as u32)), []).unwrap();
    wire::expect(&mut *connections[1], Kind::Welcome, "Welcome").unwrap();
    let gradient = vec![1.0f32; FEATURES + 1];
    for (shard, connection) in connections.iter_mut().enumerate() {
        let range = shard_range(FEATURES + 1, 2, shard);
        let mut header = Header::new(Kind::PushPull);
        (header.worker, header.seq, header.rows, header.body) = (1, (session << 32) + 1, 5, range.len() as u64);
        let sent = if shard == 0 { range.clone() } else { range.start..range.start + range.len() / 2 };
        wire::send(&mut **connection, header, if shard == 0 { b"lease" } else { b"" }, [&gradient[sent]]).unwrap();
    }
}

#[test] // PS-1, PS-5
fn a_worker_that_dies_in_mid_push_is_applied_nowhere_and_stops_nobody() {
    for mode in [Mode::Async, Mode::Sync { replicas_to_aggregate: 2 }] {
        let problem = Regression::new(FEATURES, 1);
        let cluster = Cluster::start(2, 2);
        let mut chief = Worker::join(&cluster, 0, &problem, Some((sgd(1.0), mode)));
        die_in_mid_push(&cluster);
        // In sync mode this waits for worker 1, until its death is noticed.
        let outcome = chief.push(&[1.0; FEATURES + 1], 1, 0.0).unwrap();
        assert_eq!((outcome.step, outcome.dropped), (1, false));
        cluster.await_event(0, |event| match event {
            // The fault fired.
            ServerEvent::WorkerLost { worker: 1, .. } => Some(()),
            // Only if ps:0 had read its slice before ps:1 reported the death.
            ServerEvent::Dropped { worker, leases, reason, .. } => {
                assert_eq!((worker, &leases[..], reason), (1, &b"lease"[..], DropReason::WorkerGone));
                None
            }
            _ => None,
        });
        cluster.servers[0].request_snapshot(1).unwrap();
        let parts: Vec<Snapshot> = (0..2)
            .map(|shard| cluster.await_event(shard, |e| if let ServerEvent::Snapshot(s) = e { Some(s) } else { None }))
            .collect();
        let state = FullState::assemble(parts).unwrap();
        assert_eq!(state.step, 1);
        assert!(state.params.iter().all(|&p| p == -1.0), "only the chief's gradient: {:?}", state.params);
    }
}

#[test] // PS-5
fn a_worker_declared_lost_is_fenced_and_may_come_back() {
    let problem = Regression::new(FEATURES, 2);
    let cluster = Cluster::start(2, 2);
    let mode = Mode::Sync { replicas_to_aggregate: 2 };
    let mut chief = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), mode)));
    let mut second = Worker::join(&cluster, 1, &problem, None);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| chief.train(0..8).unwrap());
        cluster.servers[0].worker_lost(1).unwrap();
        assert_eq!(waiting.join().unwrap().step, 1);
    });
    assert!(second.train(8..16).unwrap_err().is_secondary(), "its connection is closed");
    drop(second);

    let mut back = Worker::join(&cluster, 1, &problem, None);
    assert_eq!(back.step, 1);
    assert_eq!(back.params, chief.params);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            // The first pushes may be stale; from the first one on the chief waits for this worker, until it is idle.
            while back.train(8..16).unwrap().dropped {}
            back.client.idle().unwrap();
        });
        while !other.is_finished() {
            chief.train(0..8).unwrap();
        }
        other.join().unwrap();
    });
    chief.client.finish().unwrap();
    while back.train(16..24).unwrap().dropped {}
    assert_eq!(back.step, chief.step + 1, "alone, and nobody is waited for");
}

#[test]
fn the_death_of_a_shard_ends_ps0_with_the_cause() {
    let problem = Regression::new(FEATURES, 3);
    let cluster = Cluster::start_first(1, 2, 1);
    let mut link = Tcp.connect(&cluster.addresses[0], DEADLINE).unwrap();
    let role = HelloRole::Shard { shard: 1 };
    let (version, token) = (wire::VERSION, TOKEN.to_owned());
    let hello = Hello { version, token, generation: 3, shard: 0, num_shards: 2, role };
    wire::send(&mut *link, Header::new(Kind::Hello), &wire::to_json("hello", &hello).unwrap(), []).unwrap();
    wire::expect(&mut *link, Kind::Welcome, "Welcome").unwrap();
    let mut waiting = Tcp.connect(&cluster.addresses[0], DEADLINE).unwrap();
    wire::send(&mut *waiting, Header::new(Kind::Hello), &self::hello(0, None), []).unwrap();
    wire::expect(&mut *waiting, Kind::Welcome, "Welcome").unwrap();
    let fingerprint = wire::to_json("fingerprint", &problem.layout().unwrap().fingerprint()).unwrap();
    wire::send(&mut *waiting, Header::new(Kind::WaitInit), &fingerprint, []).unwrap();
    // A process that dies says no goodbye.
    link.closer().unwrap().close();
    let error = cluster.await_event(0, |event| if let ServerEvent::Failed(error) = event { Some(error) } else { None });
    assert!(matches!(error, tfos_ps::Error::PeerLost { .. }), "{error:?}");
    assert!(wire::expect(&mut *waiting, Kind::State, "State").is_err(), "who waited is let go");
}

#[test]
fn a_second_connection_of_a_worker_ends_the_first() {
    let problem = Regression::new(FEATURES, 4);
    let cluster = Cluster::start(2, 1);
    let mut first = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), Mode::Async)));
    let mut second = Worker::join(&cluster, 0, &problem, None);
    cluster.await_event(0, |event| matches!(event, ServerEvent::WorkerLost { worker: 0, .. }).then_some(()));
    assert!(first.train(0..8).unwrap_err().is_secondary());
    assert_eq!(second.train(0..8).unwrap().step, 1);
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    use std::io::Write;
    let problem = Regression::new(FEATURES, 5);
    let cluster = Cluster::start(1, 1);
    let mut garbage = TcpStream::connect(&cluster.addresses[0]).unwrap();
    garbage.write_all(&[0x47; 4096]).unwrap();
    drop(TcpStream::connect(&cluster.addresses[0]).unwrap());
    let mut chief = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), Mode::Async)));
    assert_eq!(chief.train(0..8).unwrap().step, 1);
}

#[test] // PS-5
fn a_death_that_a_shard_sees_before_it_has_reached_ps0_is_still_reported() {
    let ps0 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ps1 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [&ps0, &ps1].map(|listener| listener.local_addr().unwrap().to_string());
    let options = tfos_ps::ServerOptions {
        shard: 1,
        num_shards: 2,
        peers: addresses.to_vec(),
        token: TOKEN.to_owned(),
        generation: 3,
        num_workers: 2,
        loader: None,
    };
    let server = tfos_ps::PsServer::start(ps1, options, std::sync::Arc::new(drop)).unwrap();
    let mut worker = Tcp.connect(&addresses[1], DEADLINE).unwrap();
    wire::send(&mut *worker, Header::new(Kind::Hello), &hello(1, Some(7)), []).unwrap();
    wire::expect(&mut *worker, Kind::Welcome, "Welcome").unwrap();
    drop(worker);
    // Only now the link comes up.
    let acceptor = TcpAcceptor::new(ps0).unwrap();
    let mut link = acceptor.accept().unwrap();
    let header = wire::expect(&mut *link, Kind::Hello, "Hello").unwrap();
    wire::recv_meta(&mut *link, &header, wire::MAX_HELLO).unwrap();
    wire::send(&mut *link, Header::new(Kind::Welcome), &[], []).unwrap();
    let gone = wire::expect(&mut *link, Kind::WorkerGone, "WorkerGone").unwrap();
    assert_eq!((gone.worker, gone.seq), (1, 7 << 32));
    server.stop();
}

#[test] // PS-1, PS-5
fn a_worker_that_dies_while_its_gradient_is_measured_is_applied_and_stops_nobody() {
    let problem = Regression::new(FEATURES, 6);
    let cluster = Cluster::start_first(1, 2, 1);
    // ps:1, by hand.
    let mut link = Tcp.connect(&cluster.addresses[0], DEADLINE).unwrap();
    link.set_timeout(Some(DEADLINE)).unwrap();
    let role = HelloRole::Shard { shard: 1 };
    let (version, token) = (wire::VERSION, TOKEN.to_owned());
    let as_shard = Hello { version, token: token.clone(), generation: 3, shard: 0, num_shards: 2, role };
    wire::send(&mut *link, Header::new(Kind::Hello), &wire::to_json("hello", &as_shard).unwrap(), []).unwrap();
    wire::expect(&mut *link, Kind::Welcome, "Welcome").unwrap();
    // And the chief, of which only the half for ps:0 is real.
    let mut chief = Tcp.connect(&cluster.addresses[0], DEADLINE).unwrap();
    chief.set_timeout(Some(DEADLINE)).unwrap();
    let role = HelloRole::Worker { worker: 0, is_chief: true, session: None };
    let as_chief = Hello { role, ..as_shard };
    wire::send(&mut *chief, Header::new(Kind::Hello), &wire::to_json("hello", &as_chief).unwrap(), []).unwrap();
    let session = wire::expect(&mut *chief, Kind::Welcome, "Welcome").unwrap().seq;
    let layout = problem.layout().unwrap();
    let range = shard_range(layout.total, 2, 0);
    let optimizer = sgd(1.0).with_clip_norm(5.0);
    let init = wire::Init { layout, optimizer, mode: Mode::Async, optimizer_step: 0, slots: vec![], load: None };
    let mut header = Header::new(Kind::Init);
    (header.body, header.aux) = (range.len() as u64, 1);
    let zeros = vec![0.0f32; range.len() + 1];
    wire::send(&mut *chief, header, &wire::to_json("init", &init).unwrap(), [&zeros[..]]).unwrap();
    wire::expect(&mut *chief, Kind::Ok, "Ok").unwrap();
    wire::send(&mut *chief, Header::new(Kind::Begin), &[], []).unwrap();
    wire::expect(&mut *chief, Kind::Ok, "Ok").unwrap();
    let mut header = Header::new(Kind::PushPull);
    (header.seq, header.rows, header.body) = ((session << 32) + 1, 5, range.len() as u64);
    wire::send(&mut *chief, header, b"lease", [&vec![1.0f32; range.len()][..]]).unwrap();
    let mut staged = Header::new(Kind::Staged);
    staged.seq = header.seq;
    wire::send(&mut *link, staged, &[], []).unwrap();
    let decision = |link: &mut dyn tfos_ps::transport::Connection| {
        let header = wire::expect(link, Kind::Decision, "Decision").unwrap();
        (header.flags, header.step, wire::recv_meta(link, &header, wire::MAX_META).unwrap())
    };
    let (measure, step, parts) = decision(&mut *link);
    assert_eq!((measure, step, parts.len()), (4, 1, 16));

    drop(chief);
    let mut gone = Header::new(Kind::WorkerGone);
    gone.seq = session << 32;
    wire::send(&mut *link, gone, &[], []).unwrap();
    let mut committed = 0;
    cluster.await_event(0, |event| match event {
        ServerEvent::Committed { step: 1, .. } => {
            committed += 1;
            None
        }
        // The fault fired; everything of its pushes was told before.
        ServerEvent::WorkerLost { worker: 0, .. } => Some(()),
        _ => None,
    });
    assert_eq!(committed, 1);
    cluster.servers[0].request_snapshot(9).unwrap();
    let mut measured = Header::new(Kind::Measured);
    measured.step = 1;
    let sums = (100.0 - range.len() as f64).to_le_bytes();
    wire::send(&mut *link, measured, &sums, []).unwrap();
    let (apply, step, meta) = decision(&mut *link);
    assert_eq!((apply, step, &meta[16..]), (1, 1, &100.0f64.to_le_bytes()[..]));
    let cut = cluster.await_event(0, |event| if let ServerEvent::Snapshot(cut) = event { Some(cut) } else { None });
    assert_eq!((cut.id, cut.step), (9, 1));
    let wanted = -(5.0 / (10.0 + 1e-6)) as f32;
    let params = cut.params.to_vec().unwrap();
    assert!(params.iter().all(|&p| p == wanted), "{} and not {wanted}", params[0]);
}
