//! What the sequencer remembers of one worker.

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
    pub(super) pending: Option<Pending>,
    /// Its own steps that were applied; put forward when it comes back, see `staleness`.
    pub(super) clock: u64,
    /// By how many of them it was ahead of the slowest when it began the step that it is at.
    pub(super) staleness: u64,
    /// Push that is applied but not answered yet.
    pub(super) held: Option<u64>,
}

impl Worker {
    pub(super) fn new(presence: Presence) -> Worker {
        Worker { presence, decided: 0, pending: None, clock: 0, staleness: 0, held: None }
    }
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) seq: u64,
    /// The oldest parameters that any slice of the gradient was computed from.
    pub(super) base_step: u64,
    pub(super) staged: Vec<bool>,
    pub(super) meta: Option<PushMeta>,
}
