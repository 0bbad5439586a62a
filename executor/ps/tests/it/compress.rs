//! Compressed gradients over real sockets: training still converges, fewer bytes are sent, and strangers are refused.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tfos_ps::reference::Regression;
use tfos_ps::transport::{Closer, Connection, Tcp, Transport};
use tfos_ps::wire::{self, Header, Kind};
use tfos_ps::{Compress, Error, InitState, Layout, Mode, Place, PsClient, Push};

use crate::cluster::{Cluster, Worker, distance, sgd};

/// TCP, with the bytes that its connections have sent.
#[derive(Debug, Default)]
struct Counting(Arc<AtomicU64>);

#[derive(Debug)]
struct Counted(Box<dyn Connection>, Arc<AtomicU64>);

impl Transport for Counting {
    fn connect(&self, address: &str, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(Counted(Tcp.connect(address, timeout)?, Arc::clone(&self.0))))
    }
}

impl Connection for Counted {
    fn send(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.1.fetch_add(slices.iter().map(|slice| slice.len() as u64).sum(), Ordering::Relaxed);
        self.0.send(slices)
    }

    fn recv(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.0.recv(slices)
    }

    fn split(&self) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(Counted(self.0.split()?, Arc::clone(&self.1))))
    }

    fn closer(&self) -> io::Result<Box<dyn Closer>> {
        self.0.closer()
    }

    fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_timeout(timeout)
    }

    fn peer(&self) -> &str {
        self.0.peer()
    }

    fn transport(&self) -> &'static str {
        self.0.transport()
    }
}

/// Both workers' parameters after `steps` synchronous steps over two ps.
fn trained(problem: &Regression, compress: Compress, steps: u64) -> Vec<f32> {
    let cluster = Cluster::start(2, 2);
    let mode = Mode::Sync { replicas_to_aggregate: 2 };
    let results: Vec<Vec<f32>> = thread::scope(|scope| {
        let worker = |index: u32| {
            let cluster = &cluster;
            scope.spawn(move || {
                let client = cluster.connect(index).with_compression(compress);
                let mut worker = Worker::join_by(client, problem, (index == 0).then_some((sgd(0.05), mode)));
                for step in 0..steps {
                    let begin = step * 24 + u64::from(index) * 12;
                    assert!(!worker.train(begin..begin + 12).unwrap().dropped);
                }
                worker.client.finish().unwrap();
                worker.params
            })
        };
        [worker(0), worker(1)].map(|thread| thread.join().unwrap()).into()
    });
    assert_eq!(results[0], results[1]);
    results.into_iter().next().unwrap()
}

#[test]
fn a_linear_model_learns_with_compressed_gradients_what_it_learns_without() {
    let problem = Regression::new(60, 1);
    let plain = trained(&problem, Compress::None, 400);
    let truth = problem.distance(&plain);
    assert!(truth < 0.01, "without compression {truth} from the truth");
    let bf16 = trained(&problem, Compress::Bf16, 400);
    assert!(distance(&bf16, &plain) < 1e-4, "bf16: {}", distance(&bf16, &plain));
    // A tenth of the elements per step: later, but there.
    let sparse = trained(&problem, Compress::TopK { fraction: 0.1 }, 1200);
    assert!(problem.distance(&sparse) < 0.01, "topk: {} from the truth", problem.distance(&sparse));
}

#[test]
fn fewer_bytes_are_sent() {
    const ELEMENTS: usize = 100_000;
    let layout = Layout::new([("w".to_owned(), vec![ELEMENTS as i64])], []).unwrap();
    let gradient: Vec<f32> = (0..ELEMENTS).map(|i| i as f32 * 1e-6).collect();
    let sent = |compress: Compress| {
        let cluster = Cluster::start(2, 1);
        let counting = Counting::default();
        let client = PsClient::connect_over(&counting, &cluster.addresses, &Cluster::options(0)).unwrap();
        let mut client = client.with_compression(compress);
        let mut params = vec![0.0; ELEMENTS];
        let (optimizer, mode) = (sgd(0.1), Mode::Async);
        let state =
            InitState { optimizer, mode, step: 0, optimizer_step: 0, params: &[&params], slots: &[], buffers: &[] };
        client.init(&layout, state).unwrap();
        let before = counting.0.load(Ordering::Relaxed);
        for _ in 0..3 {
            let push = Push { rows: 1, loss: 0.0, leases: b"leases", buffers: None, gradients: &[&gradient] };
            client.push_pull(push, &mut [&mut params]).unwrap();
        }
        // By then a step, or what was sent of it, is in the parameters.
        assert!(params[ELEMENTS - 1] < -0.009, "{compress}: {}", params[ELEMENTS - 1]);
        (counting.0.load(Ordering::Relaxed) - before) / 3
    };
    // Two headers and the leases.
    let overhead = 2 * 64 + 6;
    assert_eq!(sent(Compress::None), 400_000 + overhead);
    assert_eq!(sent(Compress::Bf16), 200_000 + overhead);
    assert_eq!(sent(Compress::TopK { fraction: 0.01 }), 8_000 + overhead);
}

#[test]
fn a_dropped_gradient_is_owed_no_more() {
    let problem = Regression::new(20, 1);
    let cluster = Cluster::start(1, 2);
    let mode = Mode::Sync { replicas_to_aggregate: 1 };
    let connect = |index| cluster.connect(index).with_compression(Compress::TopK { fraction: 0.05 });
    let mut first = Worker::join_by(connect(0), &problem, Some((sgd(1.0), mode)));
    let mut late = Worker::join_by(connect(1), &problem, None);
    first.client.idle().unwrap();
    // Stale: the step is made of the other's gradient, which is 0 but for one element.
    let mut one = vec![0.0; 21];
    one[3] = 1.0;
    first.client.active().unwrap();
    first.push(&one, 8, 0.0).unwrap();
    assert!(late.push(&[7.0; 21], 8, 0.0).unwrap().dropped);
    // Were the sevens still owed, they would be sent before these.
    for element in 0..21 {
        let mut gradient = vec![0.0; 21];
        gradient[element] = 0.5;
        assert!(!late.push(&gradient, 8, 0.0).unwrap().dropped);
    }
    let expected: Vec<f32> = (0..21).map(|i| if i == 3 { -1.5 } else { -0.5 }).collect();
    assert_eq!(late.params, expected);
}

#[test]
fn deterministic_training_and_compression_exclude_each_other() {
    let problem = Regression::new(20, 1);
    let cluster = Cluster::start(1, 1);
    let client = cluster.connect(0).with_compression(Compress::Bf16);
    let mut worker = Worker::join_by(client, &problem, Some((sgd(0.1), Mode::Deterministic)));
    let push = Push { rows: 1, loss: 0.0, leases: &[], buffers: None, gradients: &[&[0.0; 21]] };
    let refused = worker.client.push(push, Place { index: 0, of: 1 }).unwrap_err();
    assert!(matches!(refused, Error::Options { .. }), "{refused}");
    assert!(refused.to_string().contains("bf16"), "{refused}");
}

#[test]
fn hostile_gradients_end_their_connection_and_nothing_else() {
    let problem = Regression::new(20, 1);
    let cluster = Cluster::start(1, 2);
    let mut chief = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), Mode::Async)));
    let indices = |index: u32| f32::from_bits(index);
    let cases: [(u8, u64, Vec<f32>); 6] = [
        // Lengths that fit no coding, among them one that nobody could allocate.
        (wire::BF16, 21, vec![0.0; 21]),
        (wire::SPARSE, 3, vec![0.0; 3]),
        (wire::SPARSE, u64::MAX, vec![]),
        (wire::SPARSE | wire::BF16, 11, vec![0.0; 11]),
        // Indices out of range, and twice the same.
        (wire::SPARSE, 2, vec![indices(21), 1.0]),
        (wire::SPARSE, 4, vec![indices(5), indices(5), 1.0, 1.0]),
    ];
    for (flags, body, words) in cases {
        let (mut worker, seq) = cluster.stranger();
        let header = Header { flags, body, worker: 1, seq, rows: 1, ..Header::new(Kind::PushPull) };
        wire::send(&mut *worker, header, &[], [&words[..]]).unwrap();
        let ended = wire::recv_header(&mut *worker).unwrap_err();
        assert!(matches!(ended, Error::PeerLost { .. }), "{flags} {body}: {ended}");
    }
    assert_eq!(chief.train(0..8).unwrap().step, 1, "none of them was applied");
}
