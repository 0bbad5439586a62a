//! The links between ps:0 and the other shards: stages go up, decisions come down.

use std::time::{Duration, Instant};

use crate::decision::{Decision, DecisionKind, decode_sums};
use crate::error::{Error, Refusal, Violation};
use crate::sequencer::Event;
use crate::server::state::{Inner, Order, lock};
use crate::transport::{Connection, Transport};
use crate::wire::{self, Header, Hello, HelloRole, Kind};

/// All listeners are bound before anybody is told an address, so a ps that cannot be reached this long is dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// One attempt; between two of them it is seen that the server shall stop.
const CONNECT_ATTEMPT: Duration = Duration::from_millis(500);
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// ps:0's end of the link to one shard.
#[derive(Debug)]
pub(super) enum Link {
    /// What was decided before the shard connected.
    Waiting(Vec<Decision>),
    Up(Box<dyn Connection>),
}

impl Default for Link {
    fn default() -> Link {
        Link::Waiting(Vec::new())
    }
}

impl Link {
    /// `meta` is scratch space. The frames are tiny; a shard that does not read them blocks the order, and with it
    /// training, as it would anyway: no step is complete without it.
    pub(super) fn send(&mut self, decision: &Decision, meta: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Link::Waiting(backlog) => {
                backlog.push(decision.clone());
                Ok(())
            }
            Link::Up(connection) => {
                let mut header = Header::new(Kind::Decision);
                header.seq = decision.index;
                (header.flags, header.worker, header.rows, header.step) = decision.kind.encode(meta);
                wire::send(&mut **connection, header, meta, [])
            }
        }
    }

    pub(super) fn bye(&mut self) {
        if let Link::Up(connection) = self {
            drop(wire::send(&mut **connection, Header::new(Kind::Bye), &[], []));
        }
    }
}

/// ps:0: serves shard `shard` until its connection ends, which is the end of this ps too.
pub(super) fn lead(inner: &Inner, mut connection: Box<dyn Connection>, shard: usize) {
    match attach(inner, &mut *connection, shard) {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => return inner.fail(error),
    }
    if let Err(error) = hear(inner, &mut *connection, shard) {
        inner.fail(error);
    }
}

/// False if the shard is unknown or has a link already: then the one that is there is right.
fn attach(inner: &Inner, connection: &mut dyn Connection, shard: usize) -> Result<bool, Error> {
    let mut sender = connection.split().map_err(|source| wire::lost(connection, source))?;
    let mut order = inner.order()?;
    let Order { links, meta, .. } = &mut *order;
    let Some(link @ Link::Waiting(_)) = shard.checked_sub(1).and_then(|at| links.get_mut(at)) else {
        let expected = format!("a ps without ps:{shard} to come");
        wire::refuse(connection, &Refusal::Shard { expected, found: format!("one that waits for ps:{shard}") })?;
        return Ok(false);
    };
    wire::send(&mut *sender, Header::new(Kind::Welcome), &[], [])?;
    if let Link::Waiting(backlog) = std::mem::replace(link, Link::Up(sender)) {
        backlog.iter().try_for_each(|decision| link.send(decision, meta))?;
    }
    Ok(true)
}

fn hear(inner: &Inner, connection: &mut dyn Connection, shard: usize) -> Result<(), Error> {
    loop {
        let header = wire::recv_header(connection)?;
        let Header { worker, seq, step: base_step, .. } = header;
        match header.kind {
            Kind::Staged => inner.sequence(Event::Staged { shard, worker, seq, base_step })?,
            Kind::Measured => {
                let meta = wire::recv_meta(connection, &header, wire::MAX_META)?;
                let sums = decode_sums(&meta).map_err(|violation| wire::violated(connection, violation))?;
                let (step, round) = (base_step, u32::try_from(seq).unwrap_or(u32::MAX));
                inner.sequence(Event::Measured { shard, step, round, sums })?;
            }
            Kind::WorkerGone => {
                let address = format!("worker {worker}, as seen by ps:{shard}");
                let source = std::io::ErrorKind::ConnectionReset.into();
                inner.lose(worker, session_of(seq), Error::PeerLost { address, source });
            }
            Kind::Bye => {
                inner.close(true);
                return Ok(());
            }
            other => {
                let violation = Violation::UnexpectedKind { expected: "Staged", found: format!("{other:?}") };
                return Err(wire::violated(connection, violation));
            }
        }
    }
}

/// ps:k: connects to ps:0 and follows its decisions; the end of this connection is the end of this ps too.
pub(super) fn follow(inner: &Inner, transport: &dyn Transport) {
    let _guard = inner.panic_guard();
    if let Err(error) = follow_until_the_end(inner, transport) {
        inner.fail(error);
    }
}

fn follow_until_the_end(inner: &Inner, transport: &dyn Transport) -> Result<(), Error> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    // Until the welcome, ps:0 is not there yet rather than lost; a refusal is final.
    let (mut connection, registered) = loop {
        match reach(inner, transport) {
            Ok(reached) => break reached,
            Err(_) if inner.is_closed() => return Err(Error::Stopped),
            Err(Error::PeerLost { address, source }) if Instant::now() < deadline => {
                tracing::debug!(%source, address, "ps:0 cannot be reached yet");
                std::thread::sleep(CONNECT_PAUSE);
            }
            Err(error) => return Err(error),
        }
    };
    let connection = &mut *connection;
    let sender = connection.split().map_err(|source| wire::lost(connection, source))?;
    *lock(&inner.uplink) = Some(sender);
    inner.set_linked();
    let mut meta = Vec::new();
    loop {
        let header = wire::recv_header(connection)?;
        match header.kind {
            Kind::Decision => {
                wire::recv_meta_into(connection, &header, wire::MAX_META, &mut meta)?;
                let parts = lock(&inner.decided).spare();
                let Header { flags, worker, rows, step, .. } = header;
                let kind = DecisionKind::decode(flags, worker, rows, step, &meta, parts);
                let kind = kind.map_err(|violation| wire::violated(connection, violation))?;
                lock(&inner.decided).decisions.push_back(Decision { index: header.seq, kind });
                inner.perform();
            }
            Kind::Bye => {
                inner.close(false);
                inner.unregister(registered);
                return Ok(());
            }
            other => {
                let violation = Violation::UnexpectedKind { expected: "Decision", found: format!("{other:?}") };
                return Err(wire::violated(connection, violation));
            }
        }
    }
}

/// One attempt to be welcomed by ps:0.
fn reach(inner: &Inner, transport: &dyn Transport) -> Result<(Box<dyn Connection>, u64), Error> {
    let options = &inner.options;
    let shard = options.shard;
    let Some(address) = options.peers.first() else {
        return Err(Error::NotSequencer { shard });
    };
    let connected = transport.connect(address, CONNECT_ATTEMPT);
    let mut connection = connected.map_err(|source| {
        let address = address.clone();
        Error::PeerLost { address, source }
    })?;
    let registered = inner.register(&*connection)?;
    let hello = Hello {
        version: wire::VERSION,
        token: options.token.clone(),
        generation: options.generation,
        shard: 0,
        num_shards: options.num_shards,
        role: HelloRole::Shard { shard },
    };
    let meta = wire::to_json("hello", &hello)?;
    let sent = wire::send(&mut *connection, Header::new(Kind::Hello), &meta, []);
    let welcomed = sent.and_then(|()| wire::expect(&mut *connection, Kind::Welcome, "Welcome"));
    if let Err(error) = welcomed {
        inner.unregister(registered);
        return Err(error);
    }
    Ok((connection, registered))
}

/// `seq` is unique over all sessions of a worker: its upper half is the session, which ps:0 counts from 1.
pub(super) fn session_of(seq: u64) -> u32 {
    (seq >> 32) as u32
}

/// The seq that is below all pushes of a session.
pub(super) fn first_seq(session: u32) -> u64 {
    u64::from(session) << 32
}
