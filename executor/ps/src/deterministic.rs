//! Deterministic training with one worker and no ps: the sequencer and the one shard of a ps, without the sockets.
//!
//! - `DET-3` the parameters after a step have the same bits without ps as with any number of them, as it is the same code
//!   that adds the same gradients in the same order.

use crate::client::Push;
use crate::decision::{Commit, Decision};
use crate::error::Error;
use crate::flat;
use crate::layout::Layout;
use crate::memory::{Arena, Slots};
use crate::optimizer::Scheduled;
use crate::sequencer::{Action, Event, Mode, Notice, Place, PushMeta, Sequencer};
use crate::shard::{Begin, Performed, Shard};
use crate::snapshot::{FullState, Snapshot};

/// The only worker, as the sequencer knows it.
const WORKER: u32 = 0;

/// A model that is trained here, in steps of several parts.
#[derive(Debug)]
pub struct DeterministicTrainer {
    shard: Shard,
    sequencer: Sequencer,
    seq: u64,
    total: usize,
    buffers_total: usize,
}

impl DeterministicTrainer {
    /// From these parameters and buffers, with fresh slots at step 0, or with slots and step of `state`.
    pub fn new(
        layout: &Layout,
        optimizer: impl Into<Scheduled>,
        params: &[&[f32]],
        buffers: &[&[f32]],
        state: Option<&FullState>,
    ) -> Result<DeterministicTrainer, Error> {
        let optimizer = optimizer.into();
        flat::check("parameters", params, layout.total)?;
        flat::check("buffers", buffers, layout.buffers_total)?;
        let saved = state.filter(|state| !state.slots.is_empty());
        let names: Option<Vec<&str>> = saved.map(|s| s.slots.iter().map(|(name, _)| name.as_str()).collect());
        if let Some(names) = names.filter(|names| names != optimizer.slots()) {
            let (expected, found) = (format!("{:?}", optimizer.slots()), format!("{names:?}"));
            return Err(Error::State { what: "slots", expected, found });
        }
        let arena = Arena::new()?;
        let slots = match saved {
            Some(state) => {
                let values: Vec<&[f32]> = state.slots.iter().map(|(_, values)| values.as_slice()).collect();
                Slots::with_values(&arena, layout.total, &values)?
            }
            None => Slots::new(&arena, layout.total, &optimizer.initial_values())?,
        };
        let mut first = arena.floats(layout.total)?;
        fill(&mut first, params);
        let step = state.map_or(0, |state| state.step);
        let range = 0..layout.total;
        let shard = Shard::new(Begin {
            shard: 0,
            alone: true,
            exact: true,
            variables: layout.parts_in(range.clone()),
            range,
            optimizer,
            local_steps: None,
            step,
            optimizer_step: saved.map_or(0, |state| state.optimizer_step),
            arena,
            params: first,
            slots,
            buffers: Some(buffers.concat()),
        })?;
        let mut sequencer = Sequencer::new(1, 1);
        sequencer.on_event(Event::Initialised { mode: Mode::Deterministic, step, rounds: 0 });
        sequencer.on_event(Event::WorkerJoined(WORKER));
        let (total, buffers_total) = (layout.total, layout.buffers_total);
        Ok(DeterministicTrainer { shard, sequencer, seq: 0, total, buffers_total })
    }

    /// The global step: number of updates applied.
    pub fn step(&self) -> u64 {
        self.shard.current().step
    }

    /// Takes a part of the next step. With its last part the step is made: then its parts, in the order of their places.
    pub fn push(&mut self, push: Push<'_>, place: Place) -> Result<Vec<Commit>, Error> {
        flat::check("gradients", push.gradients, self.total)?;
        if let Some(buffers) = push.buffers {
            flat::check("buffers", buffers, self.buffers_total)?;
        }
        self.seq += 1;
        let (seq, base_step) = (self.seq, self.step());
        let mut staged = self.shard.take_free().unwrap_or_default();
        (staged.worker, staged.seq, staged.answered) = (WORKER, seq, true);
        fill(staged.gradient.own(self.total), push.gradients);
        match push.buffers {
            Some(buffers) => {
                let place = staged.buffers.get_or_insert_default();
                place.resize(self.buffers_total, 0.0);
                fill(place, buffers);
            }
            None => staged.buffers = None,
        }
        self.shard.stage(staged);
        let leases = push.leases.to_vec();
        let (rows, loss, buffers) = (push.rows, push.loss, push.buffers.is_some());
        let meta = PushMeta { worker: WORKER, seq, base_step, rows, loss, leases, buffers, place: Some(place) };
        let (commits, _) =
            self.sequence([Event::PushMeta(meta), Event::Staged { shard: 0, worker: WORKER, seq, base_step }])?;
        Ok(commits)
    }

    /// Copies the parameters and buffers as they are after the last step.
    pub fn read(&self, params: &mut [&mut [f32]], buffers: &mut [&mut [f32]]) -> Result<(), Error> {
        flat::check("parameters", params, self.total)?;
        flat::check("buffers", buffers, self.buffers_total)?;
        spread(&self.shard.current().params, params);
        spread(self.shard.buffers().unwrap_or_default(), buffers);
        Ok(())
    }

    /// The whole state after the last step; parts of the next one are not in it.
    pub fn snapshot(&mut self, id: u64) -> Result<Snapshot, Error> {
        let (_, snapshot) = self.sequence([Event::SnapshotRequested { id }])?;
        let missing = || Error::State { what: "snapshot", expected: id.to_string(), found: "none".into() };
        snapshot.ok_or_else(missing)
    }

    fn sequence<const N: usize>(&mut self, events: [Event; N]) -> Result<(Vec<Commit>, Option<Snapshot>), Error> {
        let (mut made, mut taken) = (Vec::new(), None);
        let actions: Vec<Action> = events.into_iter().flat_map(|event| self.sequencer.on_event(event)).collect();
        for action in actions {
            match action {
                Action::Decide(mut decision) => taken = self.perform(&mut decision)?.or(taken),
                Action::Emit(Notice::Committed { commits, .. }) => made = commits,
                Action::Emit(Notice::Dropped { .. } | Notice::SnapshotMarker { .. } | Notice::Turned { .. }) => {}
            }
        }
        Ok((made, taken))
    }

    fn perform(&mut self, decision: &mut Decision) -> Result<Option<Snapshot>, Error> {
        match self.shard.apply(decision)? {
            Performed::Snapshot(snapshot) => Ok(Some(snapshot)),
            // A shard that is alone measures as it applies.
            Performed::Nothing | Performed::Measured(_) => Ok(None),
        }
    }
}

fn fill(mut flat: &mut [f32], parts: &[&[f32]]) {
    for part in parts {
        let (head, tail) = flat.split_at_mut(part.len().min(flat.len()));
        head.copy_from_slice(&part[..head.len()]);
        flat = tail;
    }
}

fn spread(mut flat: &[f32], parts: &mut [&mut [f32]]) {
    for part in parts {
        let (head, tail) = flat.split_at(part.len().min(flat.len()));
        part[..head.len()].copy_from_slice(head);
        flat = tail;
    }
}
