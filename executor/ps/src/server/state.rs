//! What the threads of one ps share, and the only places that lock it.
//!
//! Locks are taken in this order: `fingerprint`, `order`, `shard`, `decided`; the others are leaves. Decisions are put into
//! `decided` while `order` is locked, and taken out while `shard` is locked, so every thread may perform them and
//! they still happen in their order (PS-2), while a long update does not keep ps:0 from deciding.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::decision::{Commit, Commits, Decision, Part, encode_sums};
use crate::error::{Error, Refusal};
use crate::layout::Fingerprint;
use crate::memory::Arena;
use crate::sequencer::{Action, Event, Notice, PushMeta, Sequencer};
use crate::server::peer::Link;
use crate::server::{ServerEvent, ServerOptions};
use crate::shard::{Measured, Performed, Shard};
use crate::transport::{Closer, Connection};
use crate::wire::{self, Header, Kind};

/// A poisoned lock is entered: the thread that panicked has a guard that closes the server.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lock that is taken for longer belongs to a thread that is stuck on a dead peer: then there is no goodbye.
const BYE_TIMEOUT: Duration = Duration::from_secs(1);

/// std's locks have no timeout, and this is needed once in the life of a server.
fn lock_for<T>(mutex: &Mutex<T>, timeout: Duration) -> Option<MutexGuard<'_, T>> {
    let deadline = Instant::now() + timeout;
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

pub(super) struct Inner {
    pub(super) options: ServerOptions,
    /// Where the shard's state lies.
    pub(super) arena: Arc<Arena>,
    events: Arc<dyn Fn(ServerEvent) + Send + Sync>,
    /// Only on ps:0.
    pub(super) order: Option<Mutex<Order>>,
    /// To ps:0; only on the others.
    pub(super) uplink: Mutex<Option<Box<dyn Connection>>>,
    pub(super) shard: Mutex<Option<Shard>>,
    /// With `shard`: it was initialised, a decision was performed, or the server closed.
    pub(super) changed: Condvar,
    pub(super) decided: Mutex<Decided>,
    /// Lists of commits that the host has let go.
    told: Arc<Mutex<Vec<Vec<Commit>>>>,
    /// Of the chief's layout; locked through the whole of an initialisation, so there is one at a time.
    pub(super) fingerprint: Mutex<Option<Fingerprint>>,
    /// Newest session of each worker, and what ends its connection; on shards k > 0.
    pub(super) sessions: Mutex<HashMap<u32, Entered>>,
    connections: Mutex<HashMap<u64, Box<dyn Closer>>>,
    next_connection: AtomicU64,
    /// Shards k > 0: `uplink` is there. Changes are told through `changed`.
    linked: AtomicBool,
    finished: AtomicBool,
    closed: AtomicBool,
    failed: AtomicBool,
}

/// Number of a session, and what ends its connection.
pub(super) type Entered = (u32, Box<dyn Closer>);

/// The part of ps:0 that decides.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) sequencer: Sequencer,
    /// To ps 1.. in order.
    pub(super) links: Vec<Link>,
    pub(super) sessions: BTreeMap<u32, Session>,
    /// Scratch space for frames.
    pub(super) meta: Vec<u8>,
    /// And for what the sequencer answers.
    actions: Vec<Action>,
}

/// What is to be performed, in its order.
#[derive(Debug, Default)]
pub(super) struct Decided {
    pub(super) decisions: VecDeque<Decision>,
    /// Lists of parts that have been used.
    spare: Vec<Vec<Part>>,
}

impl Decided {
    /// A list for the parts of the next decision.
    pub(super) fn spare(&mut self) -> Vec<Part> {
        self.spare.pop().unwrap_or_default()
    }
}

/// One life of a worker, as ps:0 sees it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) number: u32,
    pub(super) is_live: bool,
    closer: Box<dyn Closer>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("shard", &self.options.shard).finish_non_exhaustive()
    }
}

impl Inner {
    pub(super) fn new(
        options: ServerOptions,
        arena: Arc<Arena>,
        events: Arc<dyn Fn(ServerEvent) + Send + Sync>,
    ) -> Inner {
        let order = (options.shard == 0).then(|| {
            let sequencer = Sequencer::new(options.num_shards, options.num_workers);
            let links = (1..options.num_shards).map(|_| Link::default()).collect();
            Mutex::new(Order { sequencer, links, sessions: BTreeMap::new(), meta: Vec::new(), actions: Vec::new() })
        });
        Inner {
            options,
            arena,
            events,
            order,
            uplink: Mutex::default(),
            shard: Mutex::default(),
            changed: Condvar::new(),
            decided: Mutex::default(),
            told: Arc::default(),
            fingerprint: Mutex::default(),
            sessions: Mutex::default(),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(0),
            linked: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    pub(super) fn emit(&self, event: ServerEvent) {
        (self.events)(event);
    }

    pub(super) fn is_initialised(&self) -> bool {
        lock(&self.shard).is_some()
    }

    /// Whether no push will be applied any more; known on ps:0 only.
    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// Feeds the sequencer, tells the shards and the host, and performs the decisions here.
    pub(super) fn sequence(&self, event: Event) -> Result<(), Error> {
        let mut order = self.order()?;
        self.sequence_locked(&mut order, event);
        drop(order);
        self.perform();
        Ok(())
    }

    pub(super) fn order(&self) -> Result<MutexGuard<'_, Order>, Error> {
        let order = self.order.as_ref().ok_or(Error::NotSequencer { shard: self.options.shard })?;
        Ok(lock(order))
    }

    pub(super) fn sequence_locked(&self, order: &mut Order, event: Event) {
        let mut actions = std::mem::take(&mut order.actions);
        lock(&self.told).drain(..).for_each(|commits| order.sequencer.reuse_commits(commits));
        lock(&self.decided).spare.drain(..).for_each(|parts| order.sequencer.reuse_parts(parts));
        order.sequencer.handle(event, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Decide(decision) => {
                    for link in &mut order.links {
                        if let Err(error) = link.send(&decision, &mut order.meta) {
                            self.fail(error);
                        }
                    }
                    lock(&self.decided).decisions.push_back(decision);
                }
                Action::Emit(notice) => self.emit(self.event_of(notice)),
            }
        }
        order.actions = actions;
        self.finished.store(order.sequencer.is_finished(), Ordering::Release);
    }

    fn event_of(&self, notice: Notice) -> ServerEvent {
        match notice {
            Notice::Committed { step, commits } => {
                ServerEvent::Committed { step, commits: Commits::new(commits, &self.told) }
            }
            Notice::Dropped { worker, seq, leases, reason } => ServerEvent::Dropped { worker, seq, leases, reason },
            Notice::Turned { id, step, refused } => ServerEvent::Turned { id, step, refused },
            Notice::SnapshotMarker { id, step } => ServerEvent::SnapshotMarker { id, step },
        }
    }

    /// Performs all decisions that are due on this shard; none before it is initialised.
    pub(super) fn perform(&self) {
        loop {
            let mut guard = lock(&self.shard);
            let Some(shard) = guard.as_mut() else { return };
            let mut result = Performed::Nothing;
            let mut performed = false;
            while matches!(result, Performed::Nothing) {
                let Some(mut decision) = lock(&self.decided).decisions.pop_front() else {
                    break;
                };
                performed = true;
                match shard.apply(&mut decision) {
                    Ok(given) => result = given,
                    Err(error) => {
                        drop(guard);
                        return self.fail(error);
                    }
                }
                if let Some(parts) = decision.kind.into_parts() {
                    lock(&self.decided).spare.push(parts);
                }
            }
            drop(guard);
            if performed {
                self.changed.notify_all();
            }
            // Outside of the lock: the host may take its time, and the order is locked before the shard.
            match result {
                Performed::Snapshot(snapshot) => self.emit(ServerEvent::Snapshot(snapshot)),
                Performed::Measured(measured) => self.report_measured(measured),
                Performed::Nothing => return,
            }
        }
    }

    fn report_measured(&self, Measured { step, round, sums }: Measured) {
        if let Ok(mut order) = self.order() {
            return self.sequence_locked(&mut order, Event::Measured { shard: 0, step, round, sums });
        }
        let mut header = Header::new(Kind::Measured);
        (header.step, header.seq) = (step, u64::from(round));
        let mut meta = Vec::new();
        encode_sums(&sums, &mut meta);
        self.report(header, &meta);
    }

    /// ps:0: begins a session of `worker`. One that still seems to live is lost by that.
    pub(super) fn join(&self, worker: u32, connection: &dyn Connection) -> Result<u32, Error> {
        let closer = connection.closer().map_err(|source| wire::lost(connection, source))?;
        let mut order = self.order()?;
        let number = order.sessions.get(&worker).map_or(1, |session| session.number + 1);
        if let Some(old) = order.sessions.get(&worker).filter(|session| session.is_live) {
            let error = Error::Refused {
                address: connection.peer().to_owned(),
                refusal: Refusal::Session { worker, current: number, found: old.number },
            };
            self.lose_locked(&mut order, worker, Some(error));
        }
        order.sessions.insert(worker, Session { number, is_live: true, closer });
        self.sequence_locked(&mut order, Event::WorkerJoined(worker));
        drop(order);
        self.perform();
        Ok(number)
    }

    /// ps:0: feeds an event of a worker's session, unless it is over: then nothing of it counts any more.
    pub(super) fn sequence_for(&self, worker: u32, session: u32, event: Event) -> Result<(), Error> {
        let mut order = self.live_order(worker, session)?;
        if matches!(event, Event::WorkerLeft(_))
            && let Some(live) = order.sessions.get_mut(&worker)
        {
            live.is_live = false;
        }
        self.sequence_locked(&mut order, event);
        drop(order);
        self.perform();
        Ok(())
    }

    /// ps:0: a push is on this shard, as [`Inner::sequence_for`]; `meta` is without its leases.
    pub(super) fn sequence_push(&self, session: u32, mut meta: PushMeta, leases: &[u8]) -> Result<(), Error> {
        let PushMeta { worker, seq, base_step, .. } = meta;
        let mut order = self.live_order(worker, session)?;
        meta.leases = order.sequencer.keep_leases(leases);
        self.sequence_locked(&mut order, Event::PushMeta(meta));
        self.sequence_locked(&mut order, Event::Staged { shard: 0, worker, seq, base_step });
        drop(order);
        self.perform();
        Ok(())
    }

    fn live_order(&self, worker: u32, session: u32) -> Result<MutexGuard<'_, Order>, Error> {
        let order = self.order()?;
        if !order.sessions.get(&worker).is_some_and(|live| live.number == session && live.is_live) {
            let address = format!("ps:{}", self.options.shard);
            return Err(Error::Refused { address, refusal: Refusal::Lost { worker } });
        }
        Ok(order)
    }

    /// ps:0: a connection of this session broke. Whoever notices first reports it; the rest is ignored.
    pub(super) fn lose(&self, worker: u32, session: u32, error: Error) {
        let Ok(mut order) = self.order() else { return };
        if order.sessions.get(&worker).is_some_and(|live| live.number == session && live.is_live) {
            self.lose_locked(&mut order, worker, Some(error));
        }
        drop(order);
        self.perform();
    }

    /// ps:0: the host says so; also for a worker that never came.
    pub(super) fn declare_lost(&self, worker: u32) -> Result<(), Error> {
        let mut order = self.order()?;
        self.lose_locked(&mut order, worker, None);
        drop(order);
        self.perform();
        Ok(())
    }

    fn lose_locked(&self, order: &mut Order, worker: u32, error: Option<Error>) {
        if let Some(session) = order.sessions.get_mut(&worker) {
            session.is_live = false;
            // The worker then closes its connections to the other shards; they hear of it as it happens.
            session.closer.close();
        }
        self.sequence_locked(order, Event::WorkerLost(worker));
        if let Some(error) = error.filter(|_| !self.is_closed()) {
            self.emit(ServerEvent::WorkerLost { worker, error });
        }
    }

    /// ps:k: from here on `report` works.
    pub(super) fn set_linked(&self) {
        self.linked.store(true, Ordering::Release);
        self.wake();
    }

    /// Waits until `report` works; a report before that would be lost.
    pub(super) fn wait_linked(&self) -> Result<(), Error> {
        self.wait_for(|_| self.linked.load(Ordering::Acquire).then_some(()))
    }

    /// Waits until `ready` gives something; what ends it otherwise is that the server closes. `ready` sees the shard
    /// under its lock, and everything else that changes is told through `wake`.
    pub(super) fn wait_for<T>(&self, mut ready: impl FnMut(&mut Option<Shard>) -> Option<T>) -> Result<T, Error> {
        loop {
            if let Some(found) = self.wait_at_most(Duration::MAX, &mut ready)? {
                return Ok(found);
            }
        }
    }

    /// The same, for about this long.
    pub(super) fn wait_at_most<T>(
        &self,
        patience: Duration,
        mut ready: impl FnMut(&mut Option<Shard>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let begun = Instant::now();
        let mut shard = lock(&self.shard);
        loop {
            if let Some(found) = ready(&mut shard) {
                return Ok(Some(found));
            }
            if self.is_closed() {
                return Err(Error::Stopped);
            }
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            shard = match patience {
                Duration::MAX => self.changed.wait(shard).unwrap_or_else(PoisonError::into_inner),
                _ => self.changed.wait_timeout(shard, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// The lock is taken so that nobody is between looking and waiting.
    pub(super) fn wake(&self) {
        drop(lock(&self.shard));
        self.changed.notify_all();
    }

    /// ps:k: tells ps:0. A frame that cannot be sent is noticed by the thread that reads the link.
    pub(super) fn report(&self, header: Header, meta: &[u8]) {
        if let Some(uplink) = lock(&self.uplink).as_mut()
            && let Err(error) = wire::send(&mut **uplink, header, meta, [])
        {
            tracing::debug!(%error, "cannot report to ps:0");
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Makes `close` end this connection too; an error if that has already happened.
    pub(super) fn register(&self, connection: &dyn Connection) -> Result<u64, Error> {
        let closer = connection.closer().map_err(|source| wire::lost(connection, source))?;
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let mut connections = lock(&self.connections);
        if self.is_closed() {
            closer.close();
            return Err(Error::Stopped);
        }
        connections.insert(id, closer);
        Ok(id)
    }

    pub(super) fn unregister(&self, id: u64) {
        // Closed, not only forgotten: handles for `lose` may keep the socket open for long.
        if let Some(closer) = lock(&self.connections).remove(&id) {
            closer.close();
        }
    }

    /// Ends all waiting. `orderly` tells the other ps that it is no failure.
    pub(super) fn close(&self, orderly: bool) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        if orderly {
            let bye = Header::new(Kind::Bye);
            if let Some(mut uplink) = lock_for(&self.uplink, BYE_TIMEOUT)
                && let Some(uplink) = uplink.as_mut()
            {
                drop(wire::send(&mut **uplink, bye, &[], []));
            }
            let order = self.order.as_ref();
            if let Some(mut order) = order.and_then(|order| lock_for(order, BYE_TIMEOUT)) {
                order.links.iter_mut().for_each(Link::bye);
            }
        }
        for closer in lock(&self.connections).values() {
            closer.close();
        }
        self.wake();
    }

    /// Closes everything and tells the host why, once; after an orderly close, nothing.
    pub(super) fn fail(&self, error: Error) {
        if !self.is_closed() && !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(shard = self.options.shard, %error, "the ps failed");
            self.emit(ServerEvent::Failed(error));
        }
        self.close(false);
    }

    /// Closes the server if the thread that holds it panics: its shard may be half updated.
    pub(super) fn panic_guard(&self) -> PanicGuard<'_> {
        PanicGuard(self)
    }
}

pub(super) struct PanicGuard<'a>(&'a Inner);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::Panicked { shard: self.0.options.shard });
        }
    }
}
