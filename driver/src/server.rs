//! The control server: one bidirectional stream per executor, turned into events; messages go the other
//! way through one bounded-by-nothing-but-control queue per stream (no row or parameter passes here).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use tfos_core::cluster::{Refusal, Reservation};
use tfos_core::ids::{Attempt, ExecutorId};
use tfos_core::proto::control_server::{Control, ControlServer};
use tfos_core::proto::{
    FromDriver, FromExecutor, MAX_MESSAGE_BYTES, PROTOCOL_VERSION, Register, RescueAnswer, RescueReport, from_driver,
    from_executor,
};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::event::{Connection, Event};

type Outgoing = UnboundedSender<Result<FromDriver, Status>>;

/// The open streams, by number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams {
    open: Arc<Mutex<BTreeMap<Connection, Outgoing>>>,
    removed: Arc<Notify>,
    /// Rescues that wait to hear whether their part is wanted.
    answers: Arc<Mutex<BTreeMap<u64, oneshot::Sender<bool>>>>,
}

impl Streams {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Connection, Outgoing>) -> T) -> T {
        f(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets a stream, and gives back what sends to it.
    fn remove(&self, connection: Connection) -> Option<Outgoing> {
        let stream = self.with(|streams| streams.remove(&connection));
        self.removed.notify_waiters();
        stream
    }

    /// Sends; a stream that is gone reports itself by its own event.
    pub(crate) fn send(&self, connection: Connection, message: from_driver::Message) {
        let message = FromDriver { message: Some(message) };
        self.with(|streams| streams.get(&connection).map(|s| s.send(Ok(message)).is_ok()));
    }

    /// Ends a stream with the reason why its executor is not taken.
    pub(crate) fn refuse(&self, connection: Connection, refusal: &Refusal) {
        let status = Status::already_exists(refusal.to_string());
        self.remove(connection).map(|s| s.send(Err(status)).is_ok());
    }

    fn expect_answer(&self, ticket: u64, answer: oneshot::Sender<bool>) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, answer);
    }

    /// Answers a rescue; who asked and is gone needs no answer.
    pub(crate) fn answer(&self, ticket: u64, wanted: bool) {
        let waiting = self.answers.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket);
        waiting.map(|answer| answer.send(wanted).is_ok());
    }

    /// Returns when nobody is connected any more.
    pub(crate) async fn all_gone(&self) {
        loop {
            // Listens before it looks, so that no removal falls in between.
            let removed = self.removed.notified();
            if self.with(|streams| streams.is_empty()) {
                return;
            }
            removed.await;
        }
    }

    /// Ends every stream.
    pub(crate) fn close(&self) {
        self.with(BTreeMap::clear);
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.removed.notify_waiters();
    }
}

/// The service.
pub(crate) struct Server {
    token: String,
    version: String,
    events: UnboundedSender<Event>,
    streams: Streams,
    next: AtomicU64,
}

impl Server {
    pub(crate) fn new(token: String, version: String, events: UnboundedSender<Event>, streams: Streams) -> Self {
        Self { token, version, events, streams, next: AtomicU64::new(1) }
    }

    /// Serves until `quit` is dropped or fires.
    pub(crate) async fn serve(self, listener: TcpListener, quit: oneshot::Receiver<()>) {
        let service = ControlServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async {
                let _ = quit.await;
            })
            .await;
        if let Err(e) = served {
            tracing::error!("the control server failed: {e}");
        }
    }

    fn authorize<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let given = request.metadata().get("authorization").and_then(|v| v.to_str().ok()).unwrap_or("");
        if same(given.as_bytes(), format!("Bearer {}", self.token).as_bytes()) {
            Ok(())
        } else {
            Err(Status::unauthenticated("the token is not this job's; use the token file that the driver names"))
        }
    }

    /// Tells the job's owner too, who would else wait for an executor that has long gone home.
    fn reject(&self, peer: Option<SocketAddr>, status: Status) -> Status {
        let peer = peer.map_or_else(|| "somebody".into(), |p| p.to_string());
        let _ = self.events.send(Event::Rejected { peer, reason: status.message().to_owned() });
        status
    }

    fn claim(&self, register: &Register, peer: Option<SocketAddr>) -> Result<Reservation, Status> {
        if register.protocol_version != PROTOCOL_VERSION || register.version != self.version {
            return Err(Status::failed_precondition(format!(
                "the executor is tfos {} (protocol {}), the driver is tfos {} (protocol {PROTOCOL_VERSION}); use one version",
                register.version, register.protocol_version, self.version
            )));
        }
        // An executor that was not told its address is reachable where it called from.
        let address = match (register.address.strip_prefix(':'), peer) {
            (Some(port), Some(peer)) => match peer.ip() {
                std::net::IpAddr::V6(ip) => format!("[{ip}]:{port}"),
                std::net::IpAddr::V4(ip) => format!("{ip}:{port}"),
            },
            _ => register.address.clone(),
        };
        Ok(Reservation {
            executor_id: ExecutorId(register.executor_id.unwrap_or_default()),
            attempt: Attempt(register.attempt),
            host: register.host.clone(),
            address,
            devices: register.devices.clone(),
            version: register.version.clone(),
            pid: register.pid,
        })
    }
}

/// Compares in a time that does not tell how much was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// Ends with the client's interest in it, which drops the entry.
struct Outbound {
    receiver: UnboundedReceiver<Result<FromDriver, Status>>,
}

impl Stream for Outbound {
    type Item = Result<FromDriver, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx)
    }
}

#[tonic::async_trait]
impl Control for Server {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<FromDriver, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<FromExecutor>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request.remote_addr();
        self.authorize(&request).map_err(|status| self.reject(peer, status))?;
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|m| m.message);
        let Some(from_executor::Message::Register(register)) = first else {
            return Err(Status::invalid_argument("the first message has to be a registration"));
        };
        let claim = self.claim(&register, peer).map_err(|status| self.reject(peer, status))?;
        let connection = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = unbounded_channel();
        self.streams.with(|streams| streams.insert(connection, sender));
        let wants_id = register.executor_id.is_some();
        let log = register.log.clone();
        let stopped = |_| Status::unavailable("the driver is stopping");
        self.events.send(Event::Register { connection, claim, wants_id, log }).map_err(stopped)?;
        let (events, streams) = (self.events.clone(), self.streams.clone());
        tokio::spawn(async move {
            let reason = loop {
                match incoming.message().await {
                    Ok(Some(FromExecutor { message: Some(message) })) => {
                        if events.send(Event::Message { connection, message }).is_err() {
                            break "the driver is stopping".to_owned();
                        }
                    }
                    Ok(Some(FromExecutor { message: None })) => {}
                    Ok(None) => break "its control stream ended".to_owned(),
                    Err(status) => break format!("its control stream broke: {}", status.message()),
                }
            };
            streams.remove(connection);
            let _ = events.send(Event::StreamClosed { connection, reason });
        });
        Ok(Response::new(Box::pin(Outbound { receiver })))
    }

    async fn rescue(&self, request: Request<RescueReport>) -> Result<Response<RescueAnswer>, Status> {
        self.authorize(&request)?;
        let stopped = || Status::unavailable("the driver is stopping");
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.streams.expect_answer(ticket, sender);
        let report = request.into_inner();
        self.events.send(Event::Rescue { ticket, report }).map_err(|_| stopped())?;
        let wanted = answer.await.map_err(|_| stopped())?;
        Ok(Response::new(RescueAnswer { wanted }))
    }
}
