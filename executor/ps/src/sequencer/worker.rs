//! What the sequencer remembers of one worker.

use std::collections::BTreeMap;

use super::PushMeta;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Expected,
    Joined,
    Active,
    Idle,
    Left,
    Lost,
}

impl Presence {
    pub(super) fn is_counted(self) -> bool {
        matches!(self, Presence::Expected | Presence::Active)
    }

    pub(super) fn is_gone(self) -> bool {
        matches!(self, Presence::Left | Presence::Lost)
    }
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) presence: Presence,
    /// All pushes up to this one are decided; `seq` begins at 1.
    pub(super) decided: u64,
    /// By `seq`; more than one in deterministic mode only.
    pub(super) pending: BTreeMap<u64, Pending>,
    /// Its own steps that were applied; put forward when it comes back, see `staleness`.
    pub(super) clock: u64,
    /// By how many of them it was ahead of the slowest when it began the step that it is at.
    pub(super) staleness: u64,
    /// Push that is applied but not answered yet.
    pub(super) held: Option<u64>,
}

impl Worker {
    pub(super) fn new(presence: Presence) -> Worker {
        Worker { presence, decided: 0, pending: BTreeMap::new(), clock: 0, staleness: 0, held: None }
    }
}

#[derive(Debug)]
pub(super) struct Pending {
    /// The oldest parameters that any slice of the gradient was computed from.
    pub(super) base_step: u64,
    pub(super) staged: Vec<bool>,
    pub(super) meta: Option<PushMeta>,
}

impl Pending {
    /// It is on every shard, and what came with it is known.
    pub(super) fn is_complete(&self) -> bool {
        self.meta.is_some() && self.staged.iter().all(|&staged| staged)
    }
}
