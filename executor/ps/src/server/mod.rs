//! One parameter server: accepts workers and, on ps:0, the other shards; one thread per connection.

mod peer;
mod state;
mod worker;

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::decision::{Commits, DropReason};
use crate::dial::Dial;
use crate::error::{Error, Refusal, Violation};
use crate::loader::Loader;
use crate::memory::Arena;
use crate::sequencer::Event;
use crate::snapshot::Snapshot;
use crate::transport::{Acceptor, Closer, Connection, SharedAcceptor, Tcp, TcpAcceptor, Transport};
use crate::wire::{self, Header, Hello, HelloRole, Kind};
use state::{Inner, lock};

/// Who has not said Hello within this time is no node of ours.
const HELLO_TIMEOUT: Duration = Duration::from_secs(20);

/// Where this ps stands in the cluster.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Index of this ps.
    pub shard: usize,
    pub num_shards: usize,
    /// Addresses (`host:port`) of all ps in order; only that of ps:0 is used, by the others.
    pub peers: Vec<String>,
    /// Shared secret of the job; a connection without it is refused.
    pub token: String,
    /// Incarnation of the cluster; a connection of another is refused.
    pub generation: u64,
    /// Workers 0..num_workers are expected, the chief among them.
    pub num_workers: u32,
    /// Reads saved states; without one a chief has to send all values.
    pub loader: Option<Arc<dyn Loader>>,
}

/// What a ps tells its host.
///
/// Called from the server's threads; those of ps:0 that belong to the order (`Committed`, `Dropped`,
/// `SnapshotMarker`, `WorkerLost`) while it is locked. So the callback returns soon (it sends into a channel) and
/// does not call the server.
#[derive(Debug)]
pub enum ServerEvent {
    /// The chief has initialised this shard. On ps:0: all shards.
    Initialised { step: u64, layout: crate::layout::Layout },
    /// ps:0: these pushes became global step `step`. In the order of the steps.
    Committed { step: u64, commits: Commits },
    /// ps:0: this push was not applied and never will be; its leases go back.
    Dropped { worker: u32, seq: u64, leases: Vec<u8>, reason: DropReason },
    /// ps:0: everything committed before this event is in snapshot `id`, nothing after.
    SnapshotMarker { id: u64, step: u64 },
    /// ps:0: from the step after `step` on pushes become updates as turn `id` says; or why they cannot.
    Turned { id: u64, step: u64, refused: Option<&'static str> },
    /// This shard's part of a snapshot.
    Snapshot(Snapshot),
    /// ps:0: the connection of a worker broke (to any shard) before it finished. All its pushes are decided, and the
    /// events about them came before this one.
    WorkerLost { worker: u32, error: Error },
    /// The server closed itself: its state can no longer be equal to that of the other shards. Once, and last.
    Failed(Error),
}

/// A running parameter server; dropping it stops it.
#[derive(Debug)]
pub struct PsServer {
    inner: Arc<Inner>,
    acceptors: Vec<Box<dyn Closer>>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl PsServer {
    /// Serves on a listener that the caller bound: over TCP, and over shared memory for who is on this host.
    pub fn start(
        listener: TcpListener,
        options: ServerOptions,
        events: Arc<dyn Fn(ServerEvent) + Send + Sync>,
    ) -> Result<PsServer, Error> {
        let acceptor = TcpAcceptor::new(listener).map_err(|source| Error::System { what: "listen", source })?;
        let mut acceptors: Vec<Box<dyn Acceptor>> = vec![Box::new(acceptor)];
        let (mut name, arena) = (String::new(), Arena::new()?);
        match SharedAcceptor::new(Arc::clone(&arena)) {
            Ok(shared) => {
                shared.name().clone_into(&mut name);
                acceptors.push(Box::new(shared));
            }
            Err(error) => tracing::warn!(%error, "no shared memory: all workers use TCP"),
        }
        PsServer::start_all(acceptors, name, arena, Arc::new(Tcp), options, events)
    }

    /// Serves on any transport.
    pub fn start_on(
        acceptor: Box<dyn Acceptor>,
        transport: Arc<dyn Transport>,
        options: ServerOptions,
        events: Arc<dyn Fn(ServerEvent) + Send + Sync>,
    ) -> Result<PsServer, Error> {
        PsServer::start_all(vec![acceptor], String::new(), Arena::new()?, transport, options, events)
    }

    /// `name` is what to tell who asks for shared memory.
    fn start_all(
        acceptors: Vec<Box<dyn Acceptor>>,
        name: String,
        arena: Arc<Arena>,
        transport: Arc<dyn Transport>,
        options: ServerOptions,
        events: Arc<dyn Fn(ServerEvent) + Send + Sync>,
    ) -> Result<PsServer, Error> {
        let wrong = |what, expected: String, found: String| Err(Error::Options { what, expected, found });
        if options.shard >= options.num_shards {
            return wrong("shard", format!("below num_shards, {}", options.num_shards), options.shard.to_string());
        }
        if options.shard > 0 && options.peers.is_empty() {
            return wrong("peers", "the addresses of all ps".to_owned(), "empty".to_owned());
        }
        let closers: Result<Vec<_>, _> = acceptors.iter().map(|acceptor| acceptor.closer()).collect();
        let closers = closers.map_err(|source| Error::System { what: "listen", source })?;
        let inner = Arc::new(Inner::new(options, arena, events));
        let threads = Arc::new(Mutex::new(Vec::new()));
        // Built before the threads are, so that an error below stops what is already running.
        let server = PsServer { inner: Arc::clone(&inner), acceptors: closers, threads: Arc::clone(&threads) };
        if inner.options.shard > 0 {
            let inner = Arc::clone(&inner);
            spawn(&threads, "ps-link", move || peer::follow(&inner, &*transport))?;
        }
        let name: Arc<str> = name.into();
        for acceptor in acceptors {
            let (inner, handles, name) = (Arc::clone(&inner), Arc::clone(&threads), Arc::clone(&name));
            spawn(&threads, "ps-accept", move || accept(&inner, &*acceptor, &handles, &name))?;
        }
        Ok(server)
    }

    /// ps:0: cuts snapshot `id` after all that is decided by now. Every shard hands its part to its host.
    pub fn request_snapshot(&self, id: u64) -> Result<(), Error> {
        if !self.inner.is_initialised() {
            return Err(Error::NotInitialised { shard: self.inner.options.shard });
        }
        self.inner.sequence(Event::SnapshotRequested { id })
    }

    /// ps:0: no update after this global step; `None` lifts the bound. The workers see `stop` in their answers.
    pub fn set_max_steps(&self, max_steps: Option<u64>) -> Result<(), Error> {
        self.inner.sequence(Event::MaxSteps(max_steps))
    }

    /// ps:0: pushes become updates in another way from some step on, which `ServerEvent::Turned` tells. An error in words if
    /// the model cannot be trained so.
    pub fn turn(&self, id: u64, dial: Dial) -> Result<Result<(), String>, Error> {
        let shard = self.inner.options.shard;
        let checked = lock(&self.inner.shard).as_ref().map(|shard| shard.check_dial(&dial));
        match checked.ok_or(Error::NotInitialised { shard })? {
            Ok(()) => self.inner.sequence(Event::Turn { id: Some(id), dial }).map(Ok),
            Err(why) => Ok(Err(why)),
        }
    }

    /// ps:0, before a chief comes: this takes the place of the mode that the chief names. The chief checks it.
    pub fn begin_with(&self, dial: Dial) -> Result<(), Error> {
        self.inner.sequence(Event::Turn { id: None, dial })
    }

    /// ps:0: applies nothing more; pushes are dropped and answered with `stop`. Snapshots still work.
    pub fn finish_training(&self) -> Result<(), Error> {
        self.inner.sequence(Event::Stop)
    }

    /// ps:0: a fence. When it returns, all of the worker's pushes are decided and told, and no later one of this
    /// connection will be applied. The worker may connect again, as a new session. No `WorkerLost` is sent, as the
    /// host knows.
    pub fn worker_lost(&self, worker: u32) -> Result<(), Error> {
        self.inner.declare_lost(worker)
    }

    /// The global step of this shard; `None` before it is initialised.
    pub fn step(&self) -> Option<u64> {
        lock(&self.inner.shard).as_ref().map(|shard| shard.current().step)
    }

    /// Closes all connections and waits for all threads. Bounded by the longest update or event callback under way,
    /// as all waiting is interrupted. Idempotent.
    pub fn stop(&self) {
        self.inner.close(true);
        self.acceptors.iter().for_each(|acceptor| acceptor.close());
        loop {
            // Not held while joining: the accepting thread may be adding a last one.
            let Some(thread) = lock(&self.threads).pop() else {
                return;
            };
            if thread.join().is_err() {
                tracing::error!(shard = self.inner.options.shard, "a thread of the ps panicked");
            }
        }
    }
}

impl Drop for PsServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(threads: &Mutex<Vec<JoinHandle<()>>>, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let handle = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    let handle = handle.map_err(|source| Error::System { what: "start a thread", source })?;
    let mut threads = lock(threads);
    // Connections come and go over weeks; their handles must not pile up.
    threads.retain(|thread| !thread.is_finished());
    threads.push(handle);
    Ok(())
}

fn accept(inner: &Arc<Inner>, acceptor: &dyn Acceptor, threads: &Arc<Mutex<Vec<JoinHandle<()>>>>, name: &Arc<str>) {
    let _guard = inner.panic_guard();
    let mut failures = 0;
    loop {
        let accepted = acceptor.accept();
        if inner.is_closed() {
            return;
        }
        let connection = match accepted {
            Ok(connection) => connection,
            Err(source) => {
                // A connection that broke in the queue, or too many open files: the next may do better.
                failures += 1;
                tracing::warn!(%source, failures, "cannot accept a connection");
                if failures > 100 {
                    return inner.fail(Error::System { what: "accept connections", source });
                }
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        failures = 0;
        let (serving, name) = (Arc::clone(inner), Arc::clone(name));
        if let Err(error) = spawn(threads, "ps-connection", move || serve(&serving, connection, &name)) {
            tracing::warn!(%error, "cannot serve a connection");
        }
    }
}

fn serve(inner: &Inner, mut connection: Box<dyn Connection>, name: &str) {
    let _guard = inner.panic_guard();
    let Ok(registered) = inner.register(&*connection) else {
        return;
    };
    match greet(inner, &mut *connection, name) {
        Ok(None) => {}
        Ok(Some(HelloRole::Worker { worker, is_chief, session })) => {
            tracing::info!("trainer {worker} is connected over {}", connection.transport());
            worker::serve(inner, connection, worker, is_chief, session)
        }
        Ok(Some(HelloRole::Shard { shard })) => peer::lead(inner, connection, shard),
        Err(error) => tracing::warn!(%error, "refused a connection"),
    }
    inner.unregister(registered);
}

/// Reads the Hello and checks it; a refusal has been sent when this returns an error. None when the peer asked for
/// shared memory and found it, so that it needs this connection no more.
fn greet(inner: &Inner, connection: &mut dyn Connection, name: &str) -> Result<Option<HelloRole>, Error> {
    connection.set_timeout(Some(HELLO_TIMEOUT)).map_err(|source| wire::lost(connection, source))?;
    let mut header = wire::recv_header(connection)?;
    if header.kind == Kind::Nearest {
        wire::send(connection, Header::new(Kind::Nearest), name.as_bytes(), [])?;
        header = match wire::recv_header(connection) {
            Err(Error::PeerLost { .. }) => return Ok(None),
            next => next?,
        };
    }
    if header.kind != Kind::Hello {
        let found = format!("{:?}", header.kind);
        return Err(wire::violated(connection, Violation::UnexpectedKind { expected: "Hello", found }));
    }
    let meta = wire::recv_meta(connection, &header, wire::MAX_HELLO)?;
    let hello: Hello = wire::from_json(connection, "hello", &meta)?;
    connection.set_timeout(None).map_err(|source| wire::lost(connection, source))?;
    if let Err(refusal) = check(&inner.options, &hello) {
        wire::refuse(connection, &refusal)?;
        return Err(Error::Refused { address: format!("ps:{}", inner.options.shard), refusal });
    }
    Ok(Some(hello.role))
}

fn check(options: &ServerOptions, hello: &Hello) -> Result<(), Refusal> {
    if hello.version != wire::VERSION {
        return Err(Refusal::Version { expected: wire::VERSION, found: hello.version });
    }
    if !is_same_secret(&options.token, &hello.token) {
        return Err(Refusal::Token);
    }
    if hello.generation != options.generation {
        return Err(Refusal::Generation { expected: options.generation, found: hello.generation });
    }
    let is_peer_of_follower = options.shard > 0 && matches!(hello.role, HelloRole::Shard { .. });
    if (hello.shard, hello.num_shards) != (options.shard, options.num_shards) || is_peer_of_follower {
        let name = |shard, of| format!("ps:{shard} of {of}");
        let (expected, found) = (name(options.shard, options.num_shards), name(hello.shard, hello.num_shards));
        return Err(Refusal::Shard { expected, found });
    }
    Ok(())
}

/// Looks at every byte, so that the time does not tell how many were right.
fn is_same_secret(ours: &str, theirs: &str) -> bool {
    let differing = ours.bytes().zip(theirs.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    ours.len() == theirs.len() && differing == 0
}
