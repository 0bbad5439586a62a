//! The state of the parameter servers at one point of the order, and its reassembly for any number of shards.

use std::ops::Range;

use crate::error::Error;
use crate::memory::Cut;

/// What one shard holds after global step `step`. All shards cut snapshot `id` after the same decision, so that
/// together they are one consistent state, although nobody was paused.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// As given to `request_snapshot`.
    pub id: u64,
    /// Global step.
    pub step: u64,
    /// Number of updates of the optimizer so far (Adam's t).
    pub optimizer_step: u64,
    /// The range of the flat vector that `params` and each slot cover.
    pub range: Range<usize>,
    /// As they were then, whatever happens to them meanwhile.
    pub params: Cut,
    /// In the order of `Optimizer::slots`.
    pub slots: Vec<(String, Cut)>,
    /// All buffers, from shard 0 only.
    pub buffers: Option<Vec<f32>>,
}

/// The whole state, as flat vectors: what a checkpoint holds, and what `PsClient::init` distributes again.
#[derive(Debug, Clone, PartialEq)]
pub struct FullState {
    pub step: u64,
    pub optimizer_step: u64,
    pub params: Vec<f32>,
    pub slots: Vec<(String, Vec<f32>)>,
    pub buffers: Vec<f32>,
}

impl FullState {
    /// Joins the snapshots of all shards, given in any order. They must be of one step and cover the vector without
    /// gaps from 0.
    pub fn assemble(mut snapshots: Vec<Snapshot>) -> Result<FullState, Error> {
        // An empty shard begins where its neighbour does: by end, it still comes in its place.
        snapshots.sort_by_key(|snapshot| (snapshot.range.start, snapshot.range.end));
        let fail = |what, expected: u64, found: u64| {
            Err(Error::State { what, expected: expected.to_string(), found: found.to_string() })
        };
        let Some(first) = snapshots.first() else {
            return fail("number of snapshots", 1, 0);
        };
        let mut full = FullState {
            step: first.step,
            optimizer_step: first.optimizer_step,
            params: Vec::new(),
            slots: first.slots.iter().map(|(name, _)| (name.clone(), Vec::new())).collect(),
            buffers: Vec::new(),
        };
        for snapshot in snapshots {
            if snapshot.step != full.step {
                return fail("global step of a shard", full.step, snapshot.step);
            }
            if snapshot.range.start != full.params.len() {
                return fail("begin of a shard", full.params.len() as u64, snapshot.range.start as u64);
            }
            full.params.extend(snapshot.params.to_vec()?);
            if snapshot.slots.len() != full.slots.len() {
                return fail("number of slots", full.slots.len() as u64, snapshot.slots.len() as u64);
            }
            for ((name, joined), (other, slot)) in full.slots.iter_mut().zip(snapshot.slots) {
                if *name != other {
                    return Err(Error::State { what: "slot", expected: name.clone(), found: other });
                }
                joined.extend(slot.to_vec()?);
            }
            if let Some(buffers) = snapshot.buffers {
                full.buffers = buffers;
            }
        }
        Ok(full)
    }
}
