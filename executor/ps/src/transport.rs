//! How bytes get from one process to another: a small trait, TCP, shared memory within one host, and gRPC (feature `grpc`).
//!
//! A connection is used by one thread per direction. `send` and `recv` take lists of slices, so that a frame goes
//! from and to where its parts lie without being gathered first.

#[cfg(feature = "grpc")]
mod grpc;
mod nearest;
mod ring;
mod shared;
mod window;

use std::fmt::Debug;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

#[cfg(feature = "grpc")]
pub use self::grpc::{Grpc, GrpcAcceptor};
pub use self::nearest::{Nearest, SameHost};
pub use self::shared::{SharedAcceptor, connect_shared};
pub use self::window::{Pages, Window};

/// Makes connections.
pub trait Transport: Send + Sync + Debug {
    /// Connects to `address`, trying until `timeout` has passed.
    fn connect(&self, address: &str, timeout: Duration) -> io::Result<Box<dyn Connection>>;
}

/// Accepts connections.
pub trait Acceptor: Send + Debug {
    /// Waits for the next connection; ends with an error when [`Closer::close`] was called.
    fn accept(&self) -> io::Result<Box<dyn Connection>>;
    /// A handle that ends the waiting from another thread.
    fn closer(&self) -> io::Result<Box<dyn Closer>>;
}

/// A reliable, ordered stream of bytes in both directions.
pub trait Connection: Send + Debug {
    /// Sends all slices, in order. They are empty afterwards.
    fn send(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Fills all slices, in order; an end of the stream before that is `UnexpectedEof`.
    fn recv(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<()>;
    /// A second handle to the same stream, for the other direction.
    fn split(&self) -> io::Result<Box<dyn Connection>>;
    /// A handle that makes all calls on this stream return at once, from any thread.
    fn closer(&self) -> io::Result<Box<dyn Closer>>;
    /// Longest time that a `recv` waits for the next bytes; `None` is for ever.
    fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()>;
    /// The other end, for messages.
    fn peer(&self) -> &str;
    /// What carries the bytes, for messages.
    fn transport(&self) -> &'static str;
    /// Memory that both ends see, where there is some.
    fn window(&self) -> Option<Window> {
        None
    }
}

/// Ends a connection or an acceptor from another thread.
pub trait Closer: Send + Sync + Debug {
    /// Idempotent; what was sent before still arrives.
    fn close(&self);
}

/// Plain TCP with `TCP_NODELAY`: a frame is one or a few large writes, waiting to gather more would only delay it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Transport for Tcp {
    fn connect(&self, address: &str, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_millis(10);
        loop {
            // Resolved each time: the name of a restarted node may point elsewhere.
            let attempt = address.to_socket_addrs().and_then(|addresses| connect_any(addresses, deadline));
            match attempt {
                Ok(stream) => return Ok(Box::new(TcpConnection::new(stream, address.to_owned())?)),
                Err(error) if Instant::now() + pause >= deadline => return Err(error),
                Err(_) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }
}

fn connect_any(addresses: impl Iterator<Item = SocketAddr>, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// An acceptor on a listener that the caller bound.
#[derive(Debug)]
pub struct TcpAcceptor {
    listener: TcpListener,
}

impl TcpAcceptor {
    /// Takes the listener over; its port stays reserved until the acceptor is dropped.
    pub fn new(listener: TcpListener) -> io::Result<TcpAcceptor> {
        listener.set_nonblocking(false)?;
        Ok(TcpAcceptor { listener })
    }
}

impl Acceptor for TcpAcceptor {
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        let (stream, peer) = self.listener.accept()?;
        Ok(Box::new(TcpConnection::new(stream, peer.to_string())?))
    }

    fn closer(&self) -> io::Result<Box<dyn Closer>> {
        let mut address = self.listener.local_addr()?;
        if address.ip().is_unspecified() {
            let local: std::net::IpAddr = match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            address.set_ip(local);
        }
        Ok(Box::new(TcpAcceptorCloser { address }))
    }
}

/// std cannot interrupt `accept`; a connection to ourselves does. The accepting loop then sees that it shall end.
#[derive(Debug)]
struct TcpAcceptorCloser {
    address: SocketAddr,
}

impl Closer for TcpAcceptorCloser {
    fn close(&self) {
        drop(TcpStream::connect_timeout(&self.address, Duration::from_secs(1)));
    }
}

#[derive(Debug)]
struct TcpConnection {
    stream: TcpStream,
    peer: String,
}

impl TcpConnection {
    fn new(stream: TcpStream, peer: String) -> io::Result<TcpConnection> {
        stream.set_nodelay(true)?;
        Ok(TcpConnection { stream, peer })
    }
}

impl Connection for TcpConnection {
    fn send(&mut self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.stream.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => IoSlice::advance_slices(&mut slices, sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn recv(&mut self, mut slices: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        IoSliceMut::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.stream.read_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => IoSliceMut::advance_slices(&mut slices, got),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn split(&self) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(TcpConnection { stream: self.stream.try_clone()?, peer: self.peer.clone() }))
    }

    fn closer(&self) -> io::Result<Box<dyn Closer>> {
        Ok(Box::new(TcpCloser { stream: self.stream.try_clone()? }))
    }

    fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn transport(&self) -> &'static str {
        "TCP"
    }
}

#[derive(Debug)]
struct TcpCloser {
    stream: TcpStream,
}

impl Closer for TcpCloser {
    fn close(&self) {
        // Fails only when the peer closed first, which is what is wanted.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}
