//! Either end of a call as a connection: chunks out of and into slices, with every wait ended by the closing.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::codegen::tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::{CHUNK, CHUNKS};
use crate::transport::{Closer, Connection};

/// How long the peer may leave lie what was sent before the closing.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What goes out: all that was sent, then the end.
pub(super) struct Outgoing {
    chunks: mpsc::Receiver<Bytes>,
    /// `None` once that has come.
    closed: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Dropped with this, which tells that everything is given to the peer.
    _given: oneshot::Sender<()>,
}

impl Stream for Outgoing {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.closed.as_mut().is_some_and(|closed| closed.as_mut().poll(cx).is_ready()) {
            self.closed = None;
            // Takes nothing more; what it has still goes.
            self.chunks.close();
        }
        self.chunks.poll_recv(cx)
    }
}

/// The same as the answer of a server.
pub(super) struct Answer(pub(super) Outgoing);

impl Stream for Answer {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(cx).map(|chunk| chunk.map(Ok))
    }
}

#[derive(Debug)]
struct Incoming {
    chunks: mpsc::Receiver<Bytes>,
    /// Of the last one.
    rest: Bytes,
}

/// What all handles of a connection share.
struct Shared {
    runtime: &'static Handle,
    incoming: Mutex<Incoming>,
    closed: watch::Sender<bool>,
    peer: String,
}

/// A connection whose streams are not running yet.
pub(super) struct Parts {
    connection: GrpcConnection,
    outgoing: Option<Outgoing>,
    pump: Pump,
}

/// Brings what comes in to those who read.
struct Pump {
    chunks: mpsc::Sender<Bytes>,
    closed: watch::Receiver<bool>,
    given: oneshot::Receiver<()>,
    /// Dropped when nothing more comes in, which ends what goes out.
    ending: oneshot::Sender<()>,
}

/// See the module's text.
pub(super) struct GrpcConnection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Bytes>,
    timeout: Option<Duration>,
}

impl fmt::Debug for GrpcConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcConnection").field("peer", &self.shared.peer).finish_non_exhaustive()
    }
}

impl Parts {
    pub(super) fn new(runtime: &'static Handle, peer: String) -> Parts {
        let (outgoing, to_peer) = mpsc::channel(CHUNKS);
        let (chunks, from_peer) = mpsc::channel(CHUNKS);
        let (closed, is_closed) = watch::channel(false);
        let (telling, given) = oneshot::channel();
        let (ending, ended) = oneshot::channel::<()>();
        let incoming = Mutex::new(Incoming { chunks: from_peer, rest: Bytes::new() });
        let mut closing = is_closed.clone();
        let closing = Box::pin(async move {
            tokio::select! {
                _ = closing.wait_for(|closed| *closed) => {}
                _ = ended => {}
            }
        });
        let shared = Arc::new(Shared { runtime, incoming, closed, peer });
        Parts {
            connection: GrpcConnection { shared, outgoing, timeout: None },
            outgoing: Some(Outgoing { chunks: to_peer, closed: Some(closing), _given: telling }),
            pump: Pump { chunks, closed: is_closed, given, ending },
        }
    }

    /// What is to be sent, which is there once.
    pub(super) fn outgoing(&mut self) -> io::Result<Outgoing> {
        self.outgoing.take().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// The end that called, once it is answered.
    pub(super) fn called(self, stream: Streaming<Bytes>) -> io::Result<GrpcConnection> {
        let Parts { connection, pump, .. } = self;
        connection.outgoing.try_send(Bytes::new()).map_err(|_| io::ErrorKind::NotConnected)?;
        connection.shared.runtime.spawn(pump.run(stream));
        Ok(connection)
    }

    /// The end that answers. It accepts the call when the caller says that the answer has come, by an empty chunk, and not
    /// before: who accepted may stop the server at once, and a caller that hears of the stop first takes its call for lost.
    pub(super) fn answer(self, mut stream: Streaming<Bytes>, accepted: Sender<Option<GrpcConnection>>) {
        let Parts { connection, pump, .. } = self;
        let runtime = connection.shared.runtime;
        runtime.spawn(async move {
            if matches!(stream.message().await, Ok(Some(chunk)) if chunk.is_empty()) {
                // With nobody there to take it, the connection drops here and the pump ends.
                drop(accepted.send(Some(connection)));
                pump.run(stream).await;
            }
        });
    }
}

impl Pump {
    async fn run(self, mut stream: Streaming<Bytes>) {
        let Pump { chunks, mut closed, given, ending } = self;
        let reading = async {
            while let Ok(Some(chunk)) = stream.message().await {
                if chunks.send(chunk).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = reading => {}
            _ = closed.wait_for(|closed| *closed) => {}
        }
        drop(chunks);
        // Either all that the peer sent is here, or nobody wants it; our own end says so.
        drop(ending);
        // Dropping the stream ends both directions, and with them what is still under way, also that which the connection has
        // already taken from us. So the peer says first that it has everything: by its end.
        let last_words = async {
            drop(given.await);
            while let Ok(Some(_)) = stream.message().await {}
        };
        drop(tokio::time::timeout(LAST_WORDS, last_words).await);
    }
}

/// With the last handle.
impl Drop for Shared {
    fn drop(&mut self) {
        self.closed.send_replace(true);
    }
}

#[derive(Debug)]
struct GrpcCloser(watch::Sender<bool>);

impl Closer for GrpcCloser {
    fn close(&self) {
        self.0.send_replace(true);
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Waits for one of the channels, and no longer than until the closing or the time limit.
    fn wait<T>(&self, limit: Option<Duration>, wait: impl Future<Output = Option<T>>) -> io::Result<Option<T>> {
        self.runtime.block_on(async {
            let mut closed = self.closed.subscribe();
            let limit = async {
                match limit {
                    Some(limit) => tokio::time::sleep(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => Ok(None),
                got = wait => Ok(got),
                () = limit => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }
}

impl GrpcConnection {
    fn give(&self, chunk: Bytes) -> io::Result<()> {
        if self.shared.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // Without a wait where there is room.
        let chunk = match self.outgoing.try_send(chunk) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(mpsc::error::TrySendError::Full(chunk)) => chunk,
        };
        let room = self.shared.wait(None, async { self.outgoing.reserve().await.ok() })?;
        room.map(|room| room.send(chunk)).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Connection for GrpcConnection {
    fn send(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut left: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut chunk = BytesMut::with_capacity(left.min(CHUNK));
        for slice in slices.iter() {
            let mut rest: &[u8] = slice;
            while !rest.is_empty() {
                let taken = rest.len().min(CHUNK - chunk.len());
                let (now, later) = rest.split_at(taken);
                chunk.extend_from_slice(now);
                (rest, left) = (later, left - taken);
                if chunk.len() == CHUNK {
                    self.give(std::mem::replace(&mut chunk, BytesMut::with_capacity(left.min(CHUNK))).freeze())?;
                }
            }
        }
        if chunk.is_empty() { Ok(()) } else { self.give(chunk.freeze()) }
    }

    fn recv(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let shared = &*self.shared;
        let mut incoming = shared.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let Incoming { chunks, rest } = &mut *incoming;
        for slice in slices {
            let mut at = 0;
            while at < slice.len() {
                if shared.is_closed() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if rest.is_empty() {
                    let next = match chunks.try_recv() {
                        Ok(chunk) => Some(chunk),
                        Err(_) => shared.wait(self.timeout, chunks.recv())?,
                    };
                    *rest = next.ok_or(io::ErrorKind::UnexpectedEof)?;
                    continue;
                }
                let taken = rest.len().min(slice.len() - at);
                rest.copy_to_slice(&mut slice[at..at + taken]);
                at += taken;
            }
        }
        Ok(())
    }

    fn split(&self) -> io::Result<Box<dyn Connection>> {
        let (shared, outgoing) = (Arc::clone(&self.shared), self.outgoing.clone());
        Ok(Box::new(GrpcConnection { shared, outgoing, timeout: self.timeout }))
    }

    fn closer(&self) -> io::Result<Box<dyn Closer>> {
        Ok(Box::new(GrpcCloser(self.shared.closed.clone())))
    }

    fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.timeout = timeout;
        Ok(())
    }

    fn peer(&self) -> &str {
        &self.shared.peer
    }

    fn transport(&self) -> &'static str {
        "gRPC"
    }
}
