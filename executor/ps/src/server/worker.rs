//! Serves one worker's connection: reads its gradients into place, reports them, answers with parameters.

mod init;
mod slices;
mod window;

use std::time::Duration;

use self::slices::Arriving;
use self::window::Window;
use crate::compress::Coding;
use crate::error::{Error, Refusal, Violation};
use crate::layout::Fingerprint;
use crate::memory::Cut;
use crate::sequencer::{Event, Mode, Place, PushMeta};
use crate::server::peer::first_seq;
use crate::server::state::{Inner, lock};
use crate::shard::{Begin, SlotState, Staged, Version};
use crate::transport::Connection;
use crate::wire::{self, Header, Init, Kind};

/// How long a worker that asks for the parameters of a step is kept waiting before it may look for other work.
const PATIENCE: Duration = Duration::from_millis(20);

/// Serves until the worker finishes, breaks, or is fenced off.
pub(super) fn serve(inner: &Inner, connection: Box<dyn Connection>, worker: u32, is_chief: bool, session: Option<u32>) {
    let mut served = Served {
        inner,
        connection,
        worker,
        is_chief,
        session: 0,
        last_seq: 0,
        spare: None,
        window: Window::default(),
        arriving: None,
        meta: Vec::new(),
        len: None,
        prepared: None,
    };
    let result = served.begin(session).and_then(|()| served.run());
    served.close_window();
    let Served { session, last_seq, .. } = served;
    if let Some(shard) = lock(&inner.shard).as_mut() {
        shard.forget(worker, last_seq);
    }
    let Err(error) = result else { return };
    tracing::debug!(worker, session, %error, "a worker's connection ended");
    if session == 0 || inner.is_closed() {
        return;
    }
    if inner.order.is_some() {
        inner.lose(worker, session, error);
    } else if inner.wait_linked().is_ok() {
        // Waited for, as ps:0 may know it from nobody else: its own thread for this worker can be waiting for the
        // push to be complete rather than reading.
        let mut header = Header::new(Kind::WorkerGone);
        (header.worker, header.seq) = (worker, first_seq(session));
        inner.report(header, &[]);
    }
}

struct Served<'a> {
    inner: &'a Inner,
    connection: Box<dyn Connection>,
    worker: u32,
    is_chief: bool,
    /// 0 before the worker was let in.
    session: u32,
    last_seq: u64,
    /// The staging buffer of the last push; the next one is read into it.
    spare: Option<Staged>,
    window: Window,
    /// What has come of the next push, where it comes in slices.
    arriving: Option<Arriving>,
    /// What came before the gradient of the last push.
    meta: Vec<u8>,
    /// Of a gradient, once it is known.
    len: Option<usize>,
    /// A state that is whole here, and waits for that of the other shards.
    prepared: Option<Box<(Begin, Init)>>,
}

impl Served<'_> {
    fn begin(&mut self, session: Option<u32>) -> Result<(), Error> {
        let mut header = Header::new(Kind::Welcome);
        if self.inner.order.is_some() {
            self.session = self.inner.join(self.worker, &*self.connection)?;
            if let Some(shard) = lock(&self.inner.shard).as_ref() {
                header.flags = wire::INITIALISED;
                header.step = shard.current().step;
            }
        } else {
            self.session = match self.enter(session.unwrap_or(0))? {
                Ok(session) => session,
                Err(refusal) => return self.refuse(refusal),
            };
        }
        self.last_seq = first_seq(self.session);
        header.seq = u64::from(self.session);
        wire::send(&mut *self.connection, header, &[], [])
    }

    /// Shards k > 0: the newest session of a worker is the one that counts.
    fn enter(&self, session: u32) -> Result<Result<u32, Refusal>, Error> {
        let closer = self.connection.closer().map_err(|source| wire::lost(&*self.connection, source))?;
        let mut sessions = lock(&self.inner.sessions);
        let current = sessions.get(&self.worker).map_or(0, |(number, _)| *number);
        if session <= current {
            return Ok(Err(Refusal::Session { worker: self.worker, current, found: session }));
        }
        if let Some((_, old)) = sessions.insert(self.worker, (session, closer)) {
            old.close();
        }
        Ok(Ok(session))
    }

    /// Sends the refusal; the connection stays usable, as the request has been read completely.
    fn refuse(&mut self, refusal: Refusal) -> Result<(), Error> {
        tracing::debug!(worker = self.worker, %refusal, "refused a request");
        wire::refuse(&mut *self.connection, &refusal)
    }

    fn run(&mut self) -> Result<(), Error> {
        if self.session == 0 {
            return Ok(());
        }
        let is_first = self.inner.order.is_some();
        loop {
            let header = wire::recv_header(&mut *self.connection)?;
            match header.kind {
                Kind::PushPull => self.push_pull(header)?,
                Kind::Push => self.push(header)?,
                Kind::Slice => self.slice(header)?,
                Kind::Window => self.open_window(header)?,
                Kind::Taken => self.window.take_back(),
                Kind::Blocks => self.hear_blocks(&header)?,
                Kind::Await => self.await_step(header)?,
                Kind::Init => self.init(header)?,
                Kind::Begin => self.install()?,
                Kind::WaitInit => self.wait_init(header)?,
                Kind::Pull if header.flags & wire::SLOTS != 0 => self.slots()?,
                Kind::Pull => self.pull()?,
                Kind::Idle if is_first => self.presence(Event::WorkerIdle(self.worker))?,
                Kind::Active if is_first => self.presence(Event::WorkerActive(self.worker))?,
                Kind::Finish => {
                    if is_first {
                        self.presence(Event::WorkerLeft(self.worker))?;
                    } else {
                        wire::send(&mut *self.connection, Header::new(Kind::Ok), &[], [])?;
                    }
                    return Ok(());
                }
                other => {
                    let violation = Violation::UnexpectedKind { expected: "a request", found: format!("{other:?}") };
                    return Err(wire::violated(&*self.connection, violation));
                }
            }
        }
    }

    fn presence(&mut self, event: Event) -> Result<(), Error> {
        self.inner.sequence_for(self.worker, self.session, event)?;
        let mut header = Header::new(Kind::Ok);
        header.flags = self.stop_flag();
        header.step = lock(&self.inner.shard).as_ref().map_or(0, |shard| shard.current().step);
        wire::send(&mut *self.connection, header, &[], [])
    }

    fn stop_flag(&self) -> u8 {
        if self.inner.is_finished() { wire::STOP } else { 0 }
    }

    fn length(&self, what: &'static str, allowed: usize, found: u64) -> Result<(), Error> {
        if found == allowed as u64 {
            return Ok(());
        }
        Err(wire::violated(&*self.connection, Violation::Length { what, allowed: allowed as u64, found }))
    }

    /// What ends the wait: the chief initialises, or the server closes (the driver sees a dead chief).
    fn wait_init(&mut self, header: Header) -> Result<(), Error> {
        let meta = wire::recv_meta(&mut *self.connection, &header, wire::MAX_META)?;
        let worker: Fingerprint = wire::from_json(&*self.connection, "fingerprint", &meta)?;
        self.inner.wait_for(|shard| shard.as_ref().map(drop))?;
        let chief = *lock(&self.inner.fingerprint);
        match chief.filter(|chief| *chief != worker) {
            Some(chief) => self.refuse(Refusal::Layout { chief, worker }),
            None => self.pull(),
        }
    }

    fn pull(&mut self) -> Result<(), Error> {
        let state = lock(&self.inner.shard).as_ref().map(|shard| {
            // Buffers are small and change in place: copied. The version is not.
            (shard.current().clone(), shard.buffers().map(<[f32]>::to_vec).unwrap_or_default())
        });
        let Some((version, buffers)) = state else {
            return self.refuse(Refusal::NotInitialised);
        };
        let mut header = Header::new(Kind::State);
        header.flags = self.stop_flag();
        self.answer(header, &version, &buffers)
    }

    /// The slots alone, for a worker that takes updates by itself.
    fn slots(&mut self) -> Result<(), Error> {
        let Some((step, state)) = lock(&self.inner.shard).as_ref().map(|s| (s.current().step, s.slot_state())) else {
            return self.refuse(Refusal::NotInitialised);
        };
        let slots = copies(&state)?;
        let mut header = Header::new(Kind::State);
        (header.step, header.rows) = (step, state.optimizer_step);
        header.body = slots.iter().map(|slot| slot.len() as u64).sum();
        wire::send(&mut *self.connection, header, &[], slots.iter().map(Vec::as_slice))
    }

    fn answer(&mut self, mut header: Header, version: &Version, buffers: &[f32]) -> Result<(), Error> {
        header.step = version.step;
        header.body = version.params.len() as u64;
        header.aux = buffers.len() as u64;
        wire::send(&mut *self.connection, header, &[], [&version.params[..], buffers])
    }

    fn push_pull(&mut self, header: Header) -> Result<(), Error> {
        if !self.receive(header)? {
            return Ok(());
        }
        self.report(header)?;
        self.conclude(header.seq, header.flags & wire::WINDOW != 0)
    }

    /// Answered at once: its worker goes on with the next part of the same step.
    fn push(&mut self, header: Header) -> Result<(), Error> {
        if !self.receive(header)? {
            return Ok(());
        }
        self.report(header)?;
        let mut answer = Header::new(Kind::Ok);
        answer.seq = header.seq;
        answer.flags = self.stop_flag();
        wire::send(&mut *self.connection, answer, &[], [])
    }

    /// Reads a gradient and stages it, and `meta`; whether it was not refused.
    fn receive(&mut self, header: Header) -> Result<bool, Error> {
        self.window.take_back();
        let (worker, seq) = (self.worker, header.seq);
        self.check_seq(&header)?;
        let answered = header.kind == Kind::Push;
        let (sliced, window) = (header.flags & wire::SLICED != 0, header.flags & wire::WINDOW != 0);
        let elsewhere = sliced || window;
        let (mut lengths, mut free) = (None, self.spare.take_if(|_| !elsewhere));
        if let Some(shard) = lock(&self.inner.shard).as_mut() {
            lengths = Some((shard.push_len(), shard.buffers().map_or(0, <[f32]>::len)));
            free = free.or_else(|| if elsewhere { None } else { shard.take_free() });
        }
        wire::recv_meta_into(&mut *self.connection, &header, wire::MAX_META, &mut self.meta)?;
        let Some((len, buffers_len)) = lengths else {
            wire::skip_floats(&mut *self.connection, header.body.saturating_add(header.aux))?;
            self.refuse(Refusal::NotInitialised)?;
            return Ok(false);
        };
        let has_buffers = header.flags & wire::BUFFERS != 0;
        self.length("buffers", if has_buffers { buffers_len } else { 0 }, header.aux)?;
        let mut staged = match (window, sliced) {
            (true, _) => self.written(&header, len)?,
            (false, true) => self.arrived(&header, len)?,
            (false, false) => free.unwrap_or_default(),
        };
        (staged.worker, staged.seq, staged.answered) = (worker, seq, answered);
        if !elsewhere {
            let coding = Coding::of(&header, len).map_err(|violation| wire::violated(&*self.connection, violation))?;
            coding.recv(&mut *self.connection, staged.gradient.own(len), &mut staged.codes)?;
        }
        if has_buffers {
            let buffers = staged.buffers.get_or_insert_default();
            buffers.resize(buffers_len, 0.0);
            wire::recv_floats(&mut *self.connection, [buffers.as_mut_slice()])?;
        } else {
            staged.buffers = None;
        }
        self.last_seq = seq;
        // Staged before it is reported: a decision never names what is not here.
        if let Some(shard) = lock(&self.inner.shard).as_mut() {
            shard.stage(staged);
        }
        Ok(true)
    }

    /// The place of a push, which it has in deterministic mode and in no other.
    fn place(&self, kind: Kind) -> Result<Option<Place>, Error> {
        let mode = self.inner.order()?.sequencer.mode();
        if (mode == Some(Mode::Deterministic)) != (kind == Kind::Push) {
            let expected = if kind == Kind::Push { "PushPull" } else { "Push" };
            let found = format!("{kind:?}");
            return Err(wire::violated(&*self.connection, Violation::UnexpectedKind { expected, found }));
        }
        if kind != Kind::Push {
            return Ok(None);
        }
        let place = wire::decode_place(&self.meta);
        place.map(Some).map_err(|violation| wire::violated(&*self.connection, violation))
    }

    /// What ends the wait: the step is reached here, training is over, or `PATIENCE`.
    fn await_step(&mut self, header: Header) -> Result<(), Error> {
        let wanted = header.step;
        let found = self.inner.wait_at_most(PATIENCE, |shard| {
            let shard = shard.as_ref().filter(|shard| shard.current().step >= wanted);
            let state = shard.map(|s| (s.current().clone(), s.buffers().map(<[f32]>::to_vec).unwrap_or_default()));
            state.map(Some).or_else(|| self.inner.is_finished().then_some(None))
        })?;
        let mut header = Header::new(if matches!(found, Some(Some(_))) { Kind::State } else { Kind::Ok });
        header.flags = self.stop_flag();
        match found.flatten() {
            Some((version, buffers)) => self.answer(header, &version, &buffers),
            None => wire::send(&mut *self.connection, header, &[], []),
        }
    }

    fn report(&mut self, header: Header) -> Result<(), Error> {
        let (inner, worker) = (self.inner, self.worker);
        let Header { seq, step: base_step, rows, loss, .. } = header;
        let buffers = header.flags & wire::BUFFERS != 0;
        if inner.order.is_none() {
            inner.wait_linked()?;
            let mut header = Header::new(Kind::Staged);
            (header.worker, header.seq, header.step) = (worker, seq, base_step);
            inner.report(header, &[]);
            return Ok(());
        }
        let place = self.place(header.kind)?;
        let leases = self.meta.get(if place.is_some() { wire::PLACE } else { 0 }..).unwrap_or_default();
        let meta = PushMeta { worker, seq, base_step, rows, loss, leases: Vec::new(), buffers, place };
        let heard = inner.sequence_push(self.session, meta, leases);
        if heard.is_err()
            && let Some(shard) = lock(&inner.shard).as_mut()
        {
            shard.unstage(worker, seq);
        }
        heard
    }

    /// What ends the wait: the push is decided and performed here; the worker is declared lost, which drops the push;
    /// or the server closes.
    fn conclude(&mut self, seq: u64, window: bool) -> Result<(), Error> {
        let worker = self.worker;
        let outcome = self.inner.wait_for(|shard| {
            let shard = shard.as_mut()?;
            shard.take_outcome(worker, seq).map(Some).or_else(|| shard.is_superseded(worker, seq).then_some(None))
        })?;
        let Some(outcome) = outcome else {
            return Err(Error::Stopped);
        };
        match outcome.staged {
            Some(stage) if window => self.window.put(stage),
            staged => self.spare = staged,
        }
        let mut header = Header::new(Kind::Result);
        (header.worker, header.seq) = (worker, seq);
        header.flags = self.stop_flag() | if outcome.dropped { wire::DROPPED } else { 0 };
        if window {
            return self.lend(header, outcome.version);
        }
        if outcome.slots.slots.is_empty() {
            header.rows = outcome.slots.optimizer_step;
            return self.answer(header, &outcome.version, &[]);
        }
        let slots = copies(&outcome.slots)?;
        let params = &outcome.version.params[..];
        (header.step, header.rows) = (outcome.version.step, outcome.slots.optimizer_step);
        header.body = (params.len() * (1 + slots.len())) as u64;
        let values = std::iter::once(params).chain(slots.iter().map(Vec::as_slice));
        wire::send(&mut *self.connection, header, &[], values)
    }
}

fn copies(state: &SlotState) -> Result<Vec<Vec<f32>>, Error> {
    state.slots.iter().map(Cut::to_vec).collect()
}
