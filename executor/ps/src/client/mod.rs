//! A worker's end: cuts its tensors to the shards, talks to all of them at once, copies nothing.

mod average;
mod exchange;
mod front;
mod lent;
mod push;
mod steps;
mod stream;
mod types;
mod window;

use std::ops::Range;
use std::sync::{Arc, Mutex};

pub use self::average::Vector;
use self::exchange::{Exchange, expect_length, recv_params};
pub use self::front::{FrontFirst, Piece};
pub use self::lent::{Lent, LentPart};
pub use self::types::{Awaited, ClientOptions, InitState, Outcome, Push, Status};
use self::window::Windows;
use crate::compress::{Compress, Feedback};
use crate::error::{Error, Refusal};
use crate::flat;
use crate::layout::{Layout, Variable};
use crate::loader::{Load, within};
use crate::optimizer::Scheduled;
use crate::sequencer::Mode;
use crate::snapshot::FullState;
use crate::transport::{Closer, Connection, Nearest, Transport};
use crate::wire::{self, Header, Hello, HelloRole, Init, Kind};

/// A worker's connections to all parameter servers.
///
/// After an error of `push_pull` other than [`Error::Length`] the connections are closed, as some shards may have
/// heard what others have not.
#[derive(Debug)]
pub struct PsClient {
    shards: Vec<Box<dyn Connection>>,
    closers: Arc<Vec<Box<dyn Closer>>>,
    worker: u32,
    seq: u64,
    /// Global step of the parameters that the worker has.
    step: u64,
    initialised_at: Option<u64>,
    total: usize,
    /// Of the shards, in order.
    ranges: Vec<Range<usize>>,
    /// Of the variables, in order.
    variables: Vec<Range<usize>>,
    buffers_total: usize,
    compress: Compress,
    /// Ranges of the next push that were sent before it.
    streamed: Vec<Range<usize>>,
    /// Of each shard, where gradients are compressed: each is used by the thread that sends to it.
    feedback: Vec<Mutex<Feedback>>,
    /// Empty before the first push.
    windows: Windows,
    exchange: Exchange,
    /// What was lent last: its list is used again where nobody has it any more.
    lent: Lent,
    /// Scratch space for frames.
    meta: Vec<u8>,
}

/// Makes all waiting of a client end with an error, from another thread.
#[derive(Debug, Clone)]
pub struct Canceller(Arc<Vec<Box<dyn Closer>>>);

impl Canceller {
    /// Closes the connections; the servers see a lost worker.
    pub fn cancel(&self) {
        self.0.iter().for_each(|closer| closer.close());
    }
}

impl PsClient {
    /// Connects to all ps, in order, over shared memory where one is on this host, else TCP.
    pub fn connect(addresses: &[String], options: &ClientOptions) -> Result<PsClient, Error> {
        PsClient::connect_over(&Nearest, addresses, options)
    }

    /// Connects over any transport.
    pub fn connect_over(
        transport: &dyn Transport,
        addresses: &[String],
        options: &ClientOptions,
    ) -> Result<PsClient, Error> {
        if addresses.is_empty() {
            let (expected, found) = ("at least 1".to_owned(), "0".to_owned());
            return Err(Error::Options { what: "number of ps addresses", expected, found });
        }
        let mut shards = Vec::with_capacity(addresses.len());
        let mut closers = Vec::with_capacity(addresses.len());
        let mut session = None;
        let mut initialised_at = None;
        // ps:0 first: it gives out the session that the others ask for.
        for (shard, address) in addresses.iter().enumerate() {
            let connected = transport.connect(address, options.connect_timeout);
            let mut connection = connected.map_err(|source| Error::PeerLost { address: address.clone(), source })?;
            let lost = |source| Error::PeerLost { address: address.clone(), source };
            connection.set_timeout(Some(options.connect_timeout)).map_err(lost)?;
            let hello = Hello {
                version: wire::VERSION,
                token: options.token.clone(),
                generation: options.generation,
                shard,
                num_shards: addresses.len(),
                role: HelloRole::Worker { worker: options.worker, is_chief: options.is_chief, session },
            };
            let meta = wire::to_json("hello", &hello)?;
            wire::send(&mut *connection, Header::new(Kind::Hello), &meta, [])?;
            let welcome = wire::expect(&mut *connection, Kind::Welcome, "Welcome")?;
            connection.set_timeout(None).map_err(lost)?;
            tracing::info!("ps:{shard} at {address} is reached over {}", connection.transport());
            if shard == 0 {
                session = u32::try_from(welcome.seq).ok();
                initialised_at = (welcome.flags & wire::INITIALISED != 0).then_some(welcome.step);
            }
            closers.push(connection.closer().map_err(lost)?);
            shards.push(connection);
        }
        Ok(PsClient {
            shards,
            closers: Arc::new(closers),
            worker: options.worker,
            seq: u64::from(session.unwrap_or(0)) << 32,
            step: 0,
            initialised_at,
            total: 0,
            ranges: Vec::new(),
            variables: Vec::new(),
            buffers_total: 0,
            compress: Compress::None,
            streamed: Vec::new(),
            feedback: Vec::new(),
            windows: Vec::new(),
            exchange: Exchange::default(),
            lent: Lent::default(),
            meta: Vec::new(),
        })
    }

    /// Sends gradients compressed; to be said before the model is known. What a push leaves out stays here and is added to
    /// the next gradient, so it is lost with this client.
    pub fn with_compression(mut self, compress: Compress) -> PsClient {
        self.compress = compress;
        self
    }

    /// A handle that ends waiting calls from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller(Arc::clone(&self.closers))
    }

    /// Whether ps:0 had been initialised when this worker connected, and at which global step: a chief that comes
    /// back then joins with `wait_init` instead of `init`.
    pub fn initialised_at(&self) -> Option<u64> {
        self.initialised_at
    }

    /// Chief only: gives every ps its part of the state. Workers that wait in `wait_init` go on.
    pub fn init(&mut self, layout: &Layout, state: InitState<'_>) -> Result<(), Error> {
        self.begin(layout, state, None)
    }

    /// As [`PsClient::init`], but every ps has its host read its part, all at the same time. Of `state` only the fresh
    /// ranges of parameters and buffers are sent; its slots have to be empty. `pull` then gives what was read.
    pub fn init_loaded(&mut self, layout: &Layout, state: InitState<'_>, load: Load) -> Result<(), Error> {
        self.begin(layout, state, Some(load))
    }

    fn begin(&mut self, layout: &Layout, state: InitState<'_>, load: Option<Load>) -> Result<(), Error> {
        flat::check("parameters", state.params, layout.total)?;
        flat::check("buffers", state.buffers, layout.buffers_total)?;
        for (_, slot) in state.slots {
            flat::check("slot", &[slot], layout.total)?;
        }
        if let Some(step) = self.initialised_at {
            let address = self.address(0);
            return Err(Error::Refused { address, refusal: Refusal::AlreadyInitialised { step } });
        }
        let meta = wire::to_json(
            "init",
            &Init {
                layout: layout.clone(),
                optimizer: state.optimizer,
                mode: state.mode,
                optimizer_step: state.optimizer_step,
                slots: state.slots.iter().map(|(name, _)| name.clone()).collect(),
                load: load.clone(),
            },
        )?;
        let count = self.shards.len();
        if let Err(reason) = layout.check_cuts(count) {
            let expected = format!("one for {count} ps");
            return Err(Error::Options { what: "the layout", expected, found: reason });
        }
        let (everything, every_buffer) = (0..layout.total, 0..layout.buffers_total);
        let all = (vec![everything], vec![every_buffer.clone()]);
        let (fresh, fresh_buffers) = load.map_or(all, |load| (load.fresh, load.fresh_buffers));
        for (shard, connection) in self.shards.iter_mut().enumerate() {
            let range = layout.range(count, shard);
            let params = || within(&fresh, &range);
            let buffers = || within(if shard == 0 { &fresh_buffers } else { &[] }, &every_buffer);
            let slots = state.slots.iter().map(|(_, slot)| &slot[range.clone()]);
            let mut header = Header::new(Kind::Init);
            header.worker = self.worker;
            header.step = state.step;
            header.body = (params().map(|r| r.len()).sum::<usize>() + range.len() * state.slots.len()) as u64;
            header.aux = buffers().map(|r| r.len() as u64).sum();
            let parts = params().flat_map(|r| flat::cut(state.params, r)).chain(slots);
            let parts = parts.chain(buffers().flat_map(|r| flat::cut(state.buffers, r)));
            wire::send(&mut **connection, header, &meta, parts)?;
        }
        // Every answer is awaited, so that the connections stay usable after a refusal.
        let answers = self.shards.iter_mut().map(|c| wire::expect(&mut **c, Kind::Ok, "Ok"));
        let errors: Vec<Error> = answers.filter_map(Result::err).collect();
        // A typed refusal says more than the lost connections that follow from it.
        if let Some(error) = errors.into_iter().min_by_key(Error::is_secondary) {
            return Err(error);
        }
        // ps:0 last: once it is initialised, all are, so a worker that asks it first never waits for half a state.
        for connection in self.shards.iter_mut().rev() {
            wire::send(&mut **connection, Header::new(Kind::Begin), &[], [])?;
            wire::expect(&mut **connection, Kind::Ok, "Ok")?;
        }
        self.adopt(layout)?;
        self.step = state.step;
        self.initialised_at = Some(state.step);
        Ok(())
    }

    /// As [`PsClient::init`], from a checkpoint that was cut over any number of shards.
    pub fn init_from(
        &mut self,
        layout: &Layout,
        optimizer: impl Into<Scheduled>,
        mode: Mode,
        state: &FullState,
    ) -> Result<(), Error> {
        self.init(
            layout,
            InitState {
                optimizer: optimizer.into(),
                mode,
                step: state.step,
                optimizer_step: state.optimizer_step,
                params: &[&state.params],
                slots: &state.slots,
                buffers: &[&state.buffers],
            },
        )
    }

    /// Waits until the chief has initialised, then fills the parameters and buffers; returns their global step.
    ///
    /// While others train, the shards may be some updates apart; the step is that of the oldest, so a gradient
    /// computed from such a mixture is stale in sync mode, and dropped.
    pub fn wait_init(
        &mut self,
        layout: &Layout,
        params: &mut [&mut [f32]],
        buffers: &mut [&mut [f32]],
    ) -> Result<u64, Error> {
        let meta = wire::to_json("fingerprint", &layout.fingerprint())?;
        self.adopt(layout)?;
        Ok(self.fetch(Kind::WaitInit, &meta, params, buffers)?.step)
    }

    /// Fills the newest parameters and buffers, without a push; see [`PsClient::wait_init`] on consistency.
    pub fn pull(&mut self, params: &mut [&mut [f32]], buffers: &mut [&mut [f32]]) -> Result<Status, Error> {
        self.fetch(Kind::Pull, &[], params, buffers)
    }

    /// A frame of the next push.
    fn frame(&self, kind: Kind) -> Header {
        let mut header = Header::new(kind);
        (header.worker, header.seq, header.step) = (self.worker, self.seq, self.step);
        header
    }

    /// Tells ps:0 that this worker has no rows at the moment: sync mode does not wait for it until it pushes again
    /// or calls [`PsClient::active`].
    pub fn idle(&mut self) -> Result<Status, Error> {
        self.tell(0, Kind::Idle)
    }

    /// Tells ps:0 that this worker has rows again.
    pub fn active(&mut self) -> Result<Status, Error> {
        self.tell(0, Kind::Active)
    }

    /// Leaves in good order: nobody waits for this worker any more, and it does not count as lost.
    pub fn finish(mut self) -> Result<(), Error> {
        // ps:0 first, so that it does not take the end of another connection for a death.
        (0..self.shards.len()).try_for_each(|shard| self.tell(shard, Kind::Finish).map(drop))
    }

    fn tell(&mut self, shard: usize, kind: Kind) -> Result<Status, Error> {
        let Some(connection) = self.shards.get_mut(shard) else {
            return Err(Error::Stopped);
        };
        let mut header = Header::new(kind);
        header.worker = self.worker;
        wire::send(&mut **connection, header, &[], [])?;
        let header = wire::expect(&mut **connection, Kind::Ok, "Ok")?;
        Ok(Status { step: header.step, stop: header.flags & wire::STOP != 0 })
    }

    fn adopt(&mut self, layout: &Layout) -> Result<(), Error> {
        self.total = layout.total;
        self.ranges = layout.ranges(self.shards.len()).collect();
        let place = |variable: &Variable| variable.offset..variable.offset + variable.len();
        self.variables = layout.variables.iter().map(place).collect();
        let longest = self.ranges.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        if matches!(self.compress, Compress::TopK { .. }) && u32::try_from(longest).is_err() {
            let expected = format!("none or bf16 for a ps of {longest} elements: an index has 32 bits");
            return Err(Error::Options { what: "compression", expected, found: self.compress.to_string() });
        }
        self.buffers_total = layout.buffers_total;
        let lengths = self.ranges.iter().map(ExactSizeIterator::len).filter(|_| self.compress != Compress::None);
        self.feedback = lengths.map(|len| Mutex::new(Feedback::new(self.compress, len))).collect();
        Ok(())
    }

    fn address(&self, shard: usize) -> String {
        self.shards.get(shard).map_or_else(String::new, |connection| connection.peer().to_owned())
    }

    fn fetch(
        &mut self,
        kind: Kind,
        meta: &[u8],
        params: &mut [&mut [f32]],
        buffers: &mut [&mut [f32]],
    ) -> Result<Status, Error> {
        flat::check("parameters", params, self.total)?;
        flat::check("buffers", buffers, self.buffers_total)?;
        let worker = self.worker;
        let mut cuts = flat::cut_mut(flat::placed(params), self.ranges.iter().cloned()).into_iter();
        let mut status = Status { step: u64::MAX, stop: false };
        // One after the other: ps:0 answers first when all are initialised, and a start is rare.
        for (shard, (connection, range)) in self.shards.iter_mut().zip(&self.ranges).enumerate() {
            let connection = &mut **connection;
            let mut header = Header::new(kind);
            header.worker = worker;
            wire::send(connection, header, meta, [])?;
            let header = wire::expect(connection, Kind::State, "State")?;
            recv_params(connection, &header, range.clone(), &mut cuts.next().unwrap_or_default())?;
            if shard == 0 {
                expect_length(connection, "buffers", self.buffers_total, header.aux)?;
                wire::recv_floats(connection, buffers.iter_mut().map(|buffer| &mut **buffer))?;
                status.stop = header.flags & wire::STOP != 0;
            }
            status.step = status.step.min(header.step);
        }
        self.step = status.step;
        Ok(status)
    }
}

impl Drop for PsClient {
    fn drop(&mut self) {
        // Cancellers may outlive the client; the servers shall see the end now.
        self.canceller().cancel();
    }
}
