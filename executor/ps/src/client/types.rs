//! What a worker gives to its client, and what it gets back.

use std::time::Duration;

use crate::optimizer::Scheduled;
use crate::sequencer::Mode;

/// Who connects.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Index of the worker, 0..num_workers; the chief has one too.
    pub worker: u32,
    pub token: String,
    pub generation: u64,
    /// Whether it may initialise.
    pub is_chief: bool,
    /// How long to try to reach a ps, and to wait for its welcome.
    pub connect_timeout: Duration,
}

/// What the chief begins with. The lists are in flat order; how they are cut into slices does not matter.
#[derive(Debug, Clone, Copy)]
pub struct InitState<'a> {
    pub optimizer: Scheduled,
    pub mode: Mode,
    /// Global step.
    pub step: u64,
    /// Updates of the optimizer so far; goes with the slots.
    pub optimizer_step: u64,
    pub params: &'a [&'a [f32]],
    /// Name and flat value of each slot; empty for fresh ones.
    pub slots: &'a [(String, Vec<f32>)],
    pub buffers: &'a [&'a [f32]],
}

/// One worker step: a gradient and what it was computed from.
#[derive(Debug, Clone, Copy)]
pub struct Push<'a> {
    /// Rows that the gradient is the mean over.
    pub rows: u64,
    /// Mean loss over those rows.
    pub loss: f64,
    /// The leases of those rows, opaque here.
    pub leases: &'a [u8],
    /// New values of all buffers, in layout order; usually from the chief only, as the last assignment wins.
    pub buffers: Option<&'a [&'a [f32]]>,
    /// One slice per variable, in layout order.
    pub gradients: &'a [&'a [f32]],
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Global step of the parameters that are now in the destination, the same on all shards.
    pub step: u64,
    /// The push was not applied (see `DropReason`); the parameters are new all the same.
    pub dropped: bool,
    /// No push will be applied any more. The last update may be a later one than `step`: `pull` gives its result.
    pub stop: bool,
}

/// ps:0's answer to `idle` and `active`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub step: u64,
    pub stop: bool,
}

/// Whether the parameters that were waited for are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// They are in the destination.
    Ready,
    /// Not yet: part of the step before them is still being computed, perhaps by nobody.
    NotYet,
    /// They will never be: no push will be applied any more.
    Over,
}
