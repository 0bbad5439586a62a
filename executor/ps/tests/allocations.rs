//! In the steady state a push allocates nothing, in its worker and in the ps: not a byte.

#![expect(clippy::unwrap_used, reason = "a helper of the test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use tfos_ps::transport::{Nearest, Tcp, Transport};
use tfos_ps::{ClientOptions, InitState, Layout, Mode, Optimizer, PsClient, PsServer, Push, Scheduled, ServerOptions};

const ELEMENTS: usize = 1_000_000;
/// In a row; more than the entries for which a queue may allocate one block.
const PUSHES: usize = 100;
/// The buffers are made in the first ones, and more of them when two threads meet for the first time.
const ROUNDS: usize = 20;

/// The system's allocator, counting the bytes of all threads.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    BYTES.fetch_add(bytes, Ordering::Relaxed);
}

// SAFETY: all calls go to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Memory) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Memory) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Memory, size: usize) -> *mut u8 {
        count(size);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Memory) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Who pushes to whom.
struct Case<'a> {
    transport: &'a dyn Transport,
    mode: Mode,
    optimizer: Scheduled,
    shards: usize,
    workers: u32,
    /// Parameters stay where the ps have them, where that can be.
    lent: bool,
}

impl Case<'_> {
    /// Bytes in each round, up to the first one without any.
    fn measure(&self) -> Vec<usize> {
        let listeners: Vec<_> = (0..self.shards).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let peers: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        let start = |(shard, listener)| {
            let (token, num_shards, num_workers) = ("count".to_owned(), self.shards, self.workers);
            let peers = peers.clone();
            let options = ServerOptions { shard, num_shards, peers, token, generation: 1, num_workers, loader: None };
            PsServer::start(listener, options, Arc::new(drop)).unwrap()
        };
        let servers: Vec<PsServer> = listeners.into_iter().enumerate().map(start).collect();
        let (together, is_over) = (Barrier::new(self.workers as usize), AtomicBool::new(false));
        let found = std::thread::scope(|scope| {
            for worker in 1..self.workers {
                let (peers, together, is_over) = (&peers, &together, &is_over);
                scope.spawn(move || self.work(worker, peers, together, is_over));
            }
            self.work(0, &peers, &together, &is_over)
        });
        servers.iter().for_each(PsServer::stop);
        found
    }

    fn work(&self, worker: u32, peers: &[String], together: &Barrier, is_over: &AtomicBool) -> Vec<usize> {
        let (token, connect_timeout) = ("count".to_owned(), Duration::from_secs(30));
        let options = ClientOptions { worker, token, generation: 1, is_chief: worker == 0, connect_timeout };
        let mut client = PsClient::connect_over(self.transport, peers, &options).unwrap();
        let len = ELEMENTS as i64 / 2;
        let layout = Layout::new(["v", "w"].map(|name| (name.to_owned(), vec![len])), []).unwrap();
        let mut params = vec![0.0; ELEMENTS];
        let gradient = vec![1.0; ELEMENTS];
        if worker == 0 {
            let (optimizer, mode) = (self.optimizer, self.mode);
            let params: &[&[f32]] = &[&params];
            let start = InitState { optimizer, mode, step: 0, optimizer_step: 0, params, slots: &[], buffers: &[] };
            client.init(&layout, start).unwrap();
        }
        client.wait_init(&layout, &mut [&mut params], &mut []).unwrap();
        let mut push = || {
            let (gradients, leases) = (&[&gradient[..len as usize], &gradient[len as usize..]], b"lease");
            let push = Push { rows: 1, loss: 0.0, leases, buffers: None, gradients };
            if self.lent && client.lends() {
                let (_, parts) = client.push_pull_lent(push, &mut [(0, &mut params[..100])]).unwrap();
                assert!(parts.part(100..200).is_some());
            } else {
                client.push_pull(push, &mut [&mut params]).unwrap();
            }
        };
        let mut rounds = Vec::new();
        while !is_over.load(Ordering::Acquire) {
            together.wait();
            if worker == 0 {
                BYTES.store(0, Ordering::Release);
            }
            together.wait();
            (0..PUSHES).for_each(|_| push());
            together.wait();
            if worker == 0 {
                let bytes = BYTES.load(Ordering::Acquire);
                rounds.push(bytes);
                is_over.store(bytes == 0 || rounds.len() == ROUNDS, Ordering::Release);
            }
            together.wait();
        }
        client.finish().unwrap();
        rounds
    }
}

#[test]
fn pushes_of_a_million_parameters_allocate_nothing() {
    let adam = Scheduled::from(Optimizer::adam(0.001));
    for (transport, lends) in [(&Tcp as &dyn Transport, false), (&Nearest, true)] {
        for (shards, workers, lent) in [(1, 1, false), (1, 2, lends), (2, 2, lends)] {
            for mode in [Mode::Async, Mode::Sync { replicas_to_aggregate: workers }] {
                let case = Case { transport, mode, optimizer: adam, shards, workers, lent };
                let rounds = case.measure();
                println!("{transport:?} {mode:?}, {shards} ps, {workers} workers, lent {lent}: {rounds:?}");
                assert_eq!(rounds.last(), Some(&0), "{transport:?} {mode:?}, {shards} ps, {workers} workers: bytes");
            }
        }
    }
    // The counter counts.
    let before = BYTES.load(Ordering::Relaxed);
    drop(std::hint::black_box(vec![0u8; 1 << 20]));
    assert!(BYTES.load(Ordering::Relaxed) - before >= 1 << 20);
}
