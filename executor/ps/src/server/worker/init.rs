//! A shard's first state, in two steps: its values come, from the chief or from where its host reads them, on all
//! shards at once; and when all shards have theirs, it is used.

use std::sync::Arc;

use super::Served;
use crate::error::{Error, Refusal, Violation};
use crate::loader::{Loading, within};
use crate::memory::Slots;
use crate::sequencer::{Event, Mode};
use crate::server::ServerEvent;
use crate::server::state::lock;
use crate::shard::{Begin, Shard};
use crate::wire::{self, Header, Init, Kind};

impl Served<'_> {
    pub(super) fn init(&mut self, header: Header) -> Result<(), Error> {
        let options = &self.inner.options;
        let meta = wire::recv_meta(&mut *self.connection, &header, wire::MAX_META)?;
        let init: Init = wire::from_json(&*self.connection, "init", &meta)?;
        if let Err(detail) = init.layout.check_cuts(options.num_shards) {
            return Err(wire::violated(&*self.connection, Violation::Malformed { what: "layout", detail }));
        }
        let range = init.layout.range(options.num_shards, options.shard);
        let len = range.len();
        let has_buffers = options.shard == 0;
        let buffers_len = if has_buffers { init.layout.buffers_total } else { 0 };
        let arena = Arc::clone(&self.inner.arena);
        let mut params = arena.floats(len)?;
        // As many as are sent; none are where they begin fresh, or are loaded.
        let initial = init.optimizer.initial_values();
        let sent = vec![0.0; init.slots.len()];
        let mut slots = Slots::new(&arena, len, if sent.is_empty() { &initial } else { &sent })?;
        let mut buffers = vec![0.0; buffers_len];
        match &init.load {
            None => {
                self.length("init", len * (1 + init.slots.len()), header.body)?;
                self.length("buffers", buffers_len, header.aux)?;
                let mut values = if sent.is_empty() { vec![] } else { slots.all_mut()? };
                let slots = values.iter_mut().flatten().map(|chunk| &mut **chunk);
                let parts = std::iter::once(&mut params[..]).chain(slots).chain([&mut buffers[..]]);
                wire::recv_floats(&mut *self.connection, parts)?;
            }
            Some(load) => {
                let fresh = within(&load.fresh, &range).map(|r| r.start - range.start..r.end - range.start);
                let fresh: Vec<_> = fresh.collect();
                let fresh_buffers: Vec<_> = within(&load.fresh_buffers, &(0..buffers_len)).collect();
                self.length("init", fresh.iter().map(ExactSizeIterator::len).sum(), header.body)?;
                self.length("buffers", fresh_buffers.iter().map(ExactSizeIterator::len).sum(), header.aux)?;
                for piece in fresh {
                    wire::recv_floats(&mut *self.connection, params.get_mut(piece))?;
                }
                for piece in fresh_buffers {
                    wire::recv_floats(&mut *self.connection, buffers.get_mut(piece))?;
                }
            }
        }
        if !self.is_chief {
            return self.refuse(Refusal::NotChief);
        }
        if let Some(refusal) = self.is_begun() {
            return self.refuse(refusal);
        }
        if !init.slots.is_empty() && init.slots != init.optimizer.slots() {
            let reason = format!("the optimizer has slots {:?}, given are {:?}", init.optimizer.slots(), init.slots);
            return self.refuse(Refusal::BadInit { reason });
        }
        if let Some(load) = &init.load {
            let Some(loader) = &options.loader else {
                let reason = "its host cannot read any".to_owned();
                return self.refuse(Refusal::Load { reason });
            };
            let (layout, optimizer, range) = (&init.layout, &init.optimizer, range.clone());
            let buffers = has_buffers.then_some(buffers.as_mut_slice());
            let into = Loading { layout, optimizer, range, params: &mut params, slots: slots.all_mut()?, buffers };
            if let Err(reason) = loader.load(&load.what, into) {
                return self.refuse(Refusal::Load { reason });
            }
        }
        let (step, optimizer_step) = (header.step, init.optimizer_step);
        let buffers = has_buffers.then_some(buffers);
        let shard = options.shard;
        let (alone, optimizer) = (options.num_shards == 1, init.optimizer);
        let variables = init.layout.parts_in(range.clone());
        let exact = init.mode == Mode::Deterministic;
        let local_steps = init.mode.local_steps();
        let begin = Begin {
            shard,
            alone,
            exact,
            range,
            variables,
            optimizer,
            local_steps,
            step,
            optimizer_step,
            arena,
            params,
            slots,
            buffers,
        };
        self.prepared = Some(Box::new((begin, init)));
        wire::send(&mut *self.connection, Header::new(Kind::Ok), &[], [])
    }

    /// ps:0 is initialised last. A chief that died before that may have left others initialised; its successor
    /// overwrites them, as nobody has seen them (workers ask ps:0 first).
    fn is_begun(&self) -> Option<Refusal> {
        let shard = lock(&self.inner.shard);
        let begun = shard.as_ref().filter(|shard| self.inner.options.shard == 0 || !shard.is_untouched());
        begun.map(|shard| Refusal::AlreadyInitialised { step: shard.current().step })
    }

    /// The order: the sequencer knows the mode and the host the step before any worker can see parameters.
    pub(super) fn install(&mut self) -> Result<(), Error> {
        let Some((begin, init)) = self.prepared.take().map(|prepared| *prepared) else {
            let violation = Violation::UnexpectedKind { expected: "Init", found: "Begin".to_owned() };
            return Err(wire::violated(&*self.connection, violation));
        };
        let inner = self.inner;
        let step = begin.step;
        let mut fingerprint = lock(&inner.fingerprint);
        // Again, as another chief may have been faster.
        if let Some(refusal) = self.is_begun() {
            drop(fingerprint);
            return self.refuse(refusal);
        }
        let shard = Shard::new(begin)?;
        if inner.order.is_some() {
            // A single shard measures as it applies, there is nobody to ask; and a mean of states needs no measure.
            let measured = inner.options.num_shards > 1 && init.mode.local_steps().is_none();
            let rounds = if measured { init.optimizer.rounds().len() as u32 } else { 0 };
            inner.sequence(Event::Initialised { mode: init.mode, step, rounds })?;
        }
        inner.emit(ServerEvent::Initialised { step, layout: init.layout.clone() });
        *fingerprint = Some(init.layout.fingerprint());
        *lock(&inner.shard) = Some(shard);
        drop(fingerprint);
        inner.wake();
        inner.perform();
        wire::send(&mut *self.connection, Header::new(Kind::Ok), &[], [])
    }
}
