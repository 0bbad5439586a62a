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
    pub(super) pending: Pushes,
    /// Its own steps that were applied; put forward when it comes back, see `staleness`.
    pub(super) clock: u64,
    /// By how many of them it was ahead of the slowest when it began the step that it is at.
    pub(super) staleness: u64,
    /// Push that is applied but not answered yet.
    pub(super) held: Option<u64>,
}

impl Worker {
    pub(super) fn new(presence: Presence) -> Worker {
        Worker { presence, decided: 0, pending: Pushes::default(), clock: 0, staleness: 0, held: None }
    }
}

/// Undecided pushes by `seq`, in order; more than one in deterministic mode only. A list, as it keeps its memory while it is
/// empty.
#[derive(Debug, Default)]
pub(super) struct Pushes(Vec<(u64, Pending)>);

impl Pushes {
    fn find(&self, seq: u64) -> Result<usize, usize> {
        self.0.binary_search_by_key(&seq, |(seq, _)| *seq)
    }

    pub(super) fn get(&self, seq: u64) -> Option<&Pending> {
        self.0.get(self.find(seq).ok()?).map(|(_, pending)| pending)
    }

    pub(super) fn get_mut(&mut self, seq: u64) -> Option<&mut Pending> {
        let at = self.find(seq).ok()?;
        self.0.get_mut(at).map(|(_, pending)| pending)
    }

    /// `seq` of the first and of the last.
    pub(super) fn ends(&self) -> Option<(u64, u64)> {
        Some((self.0.first()?.0, self.0.last()?.0))
    }

    /// Puts one in where there is none of its `seq`.
    pub(super) fn insert(&mut self, seq: u64, pending: Pending) {
        if let Err(at) = self.find(seq) {
            self.0.insert(at, (seq, pending));
        }
    }

    pub(super) fn remove(&mut self, seq: u64) -> Option<Pending> {
        self.find(seq).ok().map(|at| self.0.remove(at).1)
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
