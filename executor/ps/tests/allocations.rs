//! In the steady state a push allocates nothing that grows with the model: no buffer of parameters or gradients.
//!
//! What is left is what a push hands on: its leases, the list of its parts in the decision, and the commit.

#![expect(clippy::unwrap_used, reason = "a helper of the test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tfos_ps::transport::{Nearest, Tcp, Transport};
use tfos_ps::{ClientOptions, InitState, Layout, Mode, Optimizer, PsClient, PsServer, Push, ServerOptions};

const ELEMENTS: usize = 1_000_000;
const PUSHES: usize = 50;

/// The system's allocator, counting the bytes of all threads.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    BYTES.fetch_add(bytes, Ordering::Relaxed);
    LARGEST.fetch_max(bytes, Ordering::Relaxed);
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

/// Bytes per push, and the largest allocation, of worker and ps together.
fn measure(transport: &dyn Transport, mode: Mode) -> (usize, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peers = vec![listener.local_addr().unwrap().to_string()];
    let token = "count".to_owned();
    let options = ServerOptions {
        shard: 0,
        num_shards: 1,
        peers: peers.clone(),
        token,
        generation: 1,
        num_workers: 1,
        loader: None,
    };
    let server = PsServer::start(listener, options, Arc::new(drop)).unwrap();
    let connect_timeout = Duration::from_secs(30);
    let options =
        ClientOptions { worker: 0, token: "count".to_owned(), generation: 1, is_chief: true, connect_timeout };
    let mut client = PsClient::connect_over(transport, &peers, &options).unwrap();
    let layout = Layout::new([("w".to_owned(), vec![ELEMENTS as i64])], []).unwrap();
    let mut params = vec![0.0; ELEMENTS];
    let gradient = vec![1.0; ELEMENTS];
    let optimizer = Optimizer::adam(0.001).into();
    let start = InitState { optimizer, mode, step: 0, optimizer_step: 0, params: &[&params], slots: &[], buffers: &[] };
    client.init(&layout, start).unwrap();
    let mut push = || {
        let push = Push { rows: 1, loss: 0.0, leases: b"lease", buffers: None, gradients: &[&gradient] };
        client.push_pull(push, &mut [&mut params]).unwrap()
    };
    // The first ones make the buffers.
    for _ in 0..3 {
        push();
    }
    BYTES.store(0, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    for _ in 0..PUSHES {
        push();
    }
    let counted = (BYTES.load(Ordering::Relaxed) / PUSHES, LARGEST.load(Ordering::Relaxed));
    client.finish().unwrap();
    server.stop();
    counted
}

#[test]
fn pushes_of_a_million_parameters_allocate_no_buffer() {
    for transport in [&Tcp as &dyn Transport, &Nearest] {
        for mode in [Mode::Async, Mode::Sync { replicas_to_aggregate: 1 }] {
            let (bytes, largest) = measure(transport, mode);
            println!("{transport:?} {mode:?}: {bytes} bytes per push, the largest piece {largest}");
            assert!(bytes < 2048, "{transport:?} {mode:?}: {bytes} bytes per push");
            assert!(largest < 4096, "{transport:?} {mode:?}: a piece of {largest} bytes");
        }
    }
    // The counter counts.
    let before = BYTES.load(Ordering::Relaxed);
    drop(std::hint::black_box(vec![0u8; 1 << 20]));
    assert!(BYTES.load(Ordering::Relaxed) - before >= 1 << 20);
}
