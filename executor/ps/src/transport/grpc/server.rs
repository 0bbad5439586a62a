//! Serves: each call is a connection that waits to be accepted.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Context, Poll, Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::codec::Raw;
use super::connection::{Answer, GrpcConnection, Parts};
use super::{CHUNK, PATH, SERVICE, WINDOW, runtime};
use crate::transport::{Acceptor, Closer, Connection};

/// An acceptor on a listener that the caller bound; its port stays reserved as long as the caller has a clone.
#[derive(Debug)]
pub struct GrpcAcceptor {
    /// `None` is the end.
    accepted: Mutex<Receiver<Option<GrpcConnection>>>,
    closer: AcceptorCloser,
}

impl GrpcAcceptor {
    /// Begins to serve on it.
    pub fn new(listener: TcpListener) -> io::Result<GrpcAcceptor> {
        listener.set_nonblocking(true)?;
        let runtime = runtime()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let (arrived, accepted) = channel();
        let (stop, mut stopped) = watch::channel(false);
        let server = Server::builder()
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(2 * CHUNK as u32)
            .add_service(Plane { arrived: arrived.clone() });
        runtime.spawn(async move {
            let stopped = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stopped).await {
                tracing::warn!(%error, "the gRPC server of the ps ended");
            }
        });
        Ok(GrpcAcceptor { accepted: Mutex::new(accepted), closer: AcceptorCloser { arrived, stop } })
    }
}

impl Drop for GrpcAcceptor {
    fn drop(&mut self) {
        self.closer.close();
    }
}

impl Acceptor for GrpcAcceptor {
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        match self.accepted.lock().unwrap_or_else(PoisonError::into_inner).recv() {
            Ok(Some(connection)) => Ok(Box::new(connection)),
            Ok(None) | Err(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    fn closer(&self) -> io::Result<Box<dyn Closer>> {
        Ok(Box::new(self.closer.clone()))
    }
}

#[derive(Debug, Clone)]
struct AcceptorCloser {
    arrived: Sender<Option<GrpcConnection>>,
    stop: watch::Sender<bool>,
}

impl Closer for AcceptorCloser {
    fn close(&self) {
        self.stop.send_replace(true);
        // Nobody listens any more only where there is nobody to end.
        drop(self.arrived.send(None));
    }
}

/// The service, and its one method.
#[derive(Debug, Clone)]
struct Plane {
    arrived: Sender<Option<GrpcConnection>>,
}

impl NamedService for Plane {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for Plane {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let plane = self.clone();
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("there is one call, Connect").into_http());
            }
            Ok(Grpc::new(Raw).streaming(plane, request).await)
        })
    }
}

impl StreamingService<Bytes> for Plane {
    type Response = Bytes;
    type ResponseStream = Answer;
    type Future = BoxFuture<Response<Answer>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let arrived = self.arrived.clone();
        Box::pin(async move {
            let internal = |error: io::Error| Status::internal(error.to_string());
            let runtime = runtime().map_err(internal)?;
            let peer = request.remote_addr().map_or_else(|| "a gRPC peer".to_owned(), |address| address.to_string());
            let mut parts = Parts::new(runtime, peer);
            let outgoing = parts.outgoing().map_err(internal)?;
            parts.answer(request.into_inner(), arrived);
            Ok(Response::new(Answer(outgoing)))
        })
    }
}
