//! What goes into a step of training, and what comes out of it.

use tfos_core::rows::MicroBatch;
use tfos_ps::{Commit, Push};

/// What became of a step.
#[derive(Debug, Clone)]
pub(super) struct Stepped {
    pub(super) step: u64,
    /// Rows that are part of it; none of a stale gradient, whose rows go back.
    pub(super) rows: u64,
    /// No further step will be applied.
    pub(super) stop: bool,
    /// Deterministic training without ps: the parts of the step that was made.
    pub(super) parts: Vec<Commit>,
}

impl Stepped {
    pub(super) fn to(step: u64, rows: u64) -> Self {
        Self { step, rows, stop: false, parts: vec![] }
    }
}

/// What a step was computed from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Computed<'a> {
    pub(super) loss: f64,
    pub(super) rows: u64,
    pub(super) leases: &'a [u8],
    pub(super) micro_batch: Option<MicroBatch>,
}

impl Computed<'_> {
    /// What is pushed of it, with buffers if there are any.
    pub(super) fn push<'a>(&'a self, gradients: &'a [&'a [f32]], buffers: &'a [&'a [f32]]) -> Push<'a> {
        let Self { loss, rows, leases, .. } = *self;
        Push { rows: rows.max(1), loss, leases, buffers: (!buffers.is_empty()).then_some(buffers), gradients }
    }
}
