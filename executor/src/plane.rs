//! The job's word on how parameters travel, made the parameter plane's: what carries them, and who holds what.
//!
//! With `auto` each pair of a training node and a ps finds out by itself what is best, and both logs say what it is. What was
//! asked for by name is used, or the node fails and says why it cannot be.

use std::net::TcpListener;
use std::sync::Arc;

use tfos_core::config::{Carrier, Compression, Plane};
use tfos_ps::transport::{Acceptor, Grpc, GrpcAcceptor, Nearest, SameHost, Tcp, TcpAcceptor, Transport};
use tfos_ps::{ClientOptions, Compress, Layout, PsClient, PsServer, ServerEvent, ServerOptions};

use crate::Error;

/// The same for the parameter plane.
pub fn compress(compression: Compression) -> Compress {
    match compression {
        Compression::None => Compress::None,
        Compression::Bf16 => Compress::Bf16,
        Compression::TopK { fraction } => Compress::TopK { fraction },
    }
}

/// A training node's connections to all ps.
#[cfg_attr(not(feature = "torch"), expect(dead_code, reason = "only libtorch trains"))]
pub(crate) fn connect(plane: &Plane, addresses: &[String], options: &ClientOptions) -> Result<PsClient, Error> {
    let transport: &dyn Transport = match plane.transport {
        Carrier::Auto => &Nearest,
        Carrier::SharedMemory => &SameHost,
        Carrier::Tcp => &Tcp,
        Carrier::Grpc => &Grpc,
    };
    let client = PsClient::connect_over(transport, addresses, options)?;
    Ok(client.with_compression(compress(plane.compress)))
}

/// A ps on its listener. Between ps there are only decisions, which go over TCP, or over gRPC where it is asked for.
pub(crate) fn serve(
    plane: &Plane,
    listener: TcpListener,
    options: ServerOptions,
    events: Arc<dyn Fn(ServerEvent) + Send + Sync>,
) -> Result<PsServer, Error> {
    let failed = |source| Error::System { what: "listen for training nodes".into(), source };
    let (acceptor, transport): (Box<dyn Acceptor>, Arc<dyn Transport>) = match plane.transport {
        Carrier::Auto | Carrier::SharedMemory => return Ok(PsServer::start(listener, options, events)?),
        Carrier::Tcp => (Box::new(TcpAcceptor::new(listener).map_err(failed)?), Arc::new(Tcp)),
        Carrier::Grpc => (Box::new(GrpcAcceptor::new(listener).map_err(failed)?), Arc::new(Grpc)),
    };
    Ok(PsServer::start_on(acceptor, transport, options, events)?)
}

/// Who holds what, and what a step moves, a line for each ps.
pub fn describe(layout: &Layout, shards: usize, compress: Compress) -> Vec<String> {
    let line = |held: &tfos_ps::Held<'_>| {
        format!(
            "{held}; in a step each training node sends it {} bytes and gets {}",
            held.sent(compress),
            held.received()
        )
    };
    layout.held(shards).iter().map(line).collect()
}

/// The chief's log has it.
#[cfg_attr(not(feature = "torch"), expect(dead_code, reason = "only libtorch trains"))]
pub(crate) fn tell(layout: &Layout, shards: usize, plane: &Plane) {
    let Plane { placement, compress: compression, .. } = plane;
    let most = layout.imbalance(shards);
    tracing::info!("placement {placement}, compression {compression}: the fullest ps has {most:.3} times the mean");
    describe(layout, shards, compress(*compression)).iter().for_each(|line| tracing::info!("{line}"));
}
