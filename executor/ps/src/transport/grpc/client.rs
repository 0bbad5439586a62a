//! Connects: one HTTP/2 connection with one call on it.

use std::io;
use std::time::{Duration, Instant};

use tonic::client::Grpc as Call;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use super::codec::Raw;
use super::connection::Parts;
use super::{PATH, WINDOW, runtime};
use crate::transport::{Connection, Transport};

/// gRPC, for connections to a ps that serves it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grpc;

impl Transport for Grpc {
    fn connect(&self, address: &str, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_millis(10);
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let attempt = runtime()?.block_on(async { tokio::time::timeout(left, call(address, left)).await });
            match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(connection) => return Ok(connection),
                Err(error) if Instant::now() + pause >= deadline => return Err(error),
                Err(_) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }
}

async fn call(address: &str, timeout: Duration) -> io::Result<Box<dyn Connection>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(io::Error::other)?;
    let endpoint = endpoint.connect_timeout(timeout).tcp_nodelay(true);
    let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let channel = endpoint.connect().await.map_err(io::Error::other)?;
    let mut call = Call::new(channel);
    call.ready().await.map_err(io::Error::other)?;
    let mut parts = Parts::new(runtime()?, address.to_owned());
    let request = Request::new(parts.outgoing()?);
    let answer = call.streaming(request, PathAndQuery::from_static(PATH), Raw).await.map_err(refused)?;
    Ok(Box::new(parts.called(answer.into_inner())?))
}

fn refused(status: Status) -> io::Error {
    io::Error::other(status)
}
