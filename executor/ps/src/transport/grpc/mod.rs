//! gRPC: one call with a stream of bytes in each direction, for where only HTTP/2 passes between training nodes and ps.
//!
//! The trait's calls block, gRPC does not: a small runtime of this transport's own pumps chunks between the streams and
//! bounded channels, at which the calls wait. A chunk is copied into its frame and out of it again, which plain sockets
//! spare, so nobody gets this transport without having asked for it.
//!
//! Closing lets go of all who wait here at once. What was sent before is given to the peer first, as far as it takes it.

mod client;
mod codec;
mod connection;
mod server;

use std::io;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

pub use self::client::Grpc;
pub use self::server::GrpcAcceptor;

/// The call that carries a connection.
const PATH: &str = "/tfos.ps.Plane/Connect";
const SERVICE: &str = "tfos.ps.Plane";
/// Bytes of a message; one frame of HTTP/2 takes it whole.
const CHUNK: usize = 1 << 17;
/// Messages in each of the channels.
const CHUNKS: usize = 4;
/// Bytes that may be on their way in one direction before the reader takes some.
const WINDOW: u32 = 1 << 21;

/// Two threads that pump all connections of this process.
fn runtime() -> io::Result<&'static Handle> {
    static RUNTIME: OnceLock<Result<Runtime, io::ErrorKind>> = OnceLock::new();
    let started = RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("ps-grpc").enable_all().build().map_err(|e| e.kind())
    });
    started.as_ref().map(Runtime::handle).map_err(|kind| (*kind).into())
}
