//! Lists that were handed out and have come back: in the steady state a push allocates nothing.

use super::PushMeta;
use super::worker::Pending;
use crate::decision::{Commit, Part};

/// Lists that are used again; there are never more than were out at one time.
#[derive(Debug, Default)]
pub(super) struct Spare {
    parts: Vec<Vec<Part>>,
    commits: Vec<Vec<Commit>>,
    leases: Vec<Vec<u8>>,
    /// By shard, whether it has staged a push.
    staged: Vec<Vec<bool>>,
}

impl Spare {
    pub(super) fn parts(&mut self) -> Vec<Part> {
        self.parts.pop().unwrap_or_default()
    }

    pub(super) fn commits(&mut self) -> Vec<Commit> {
        self.commits.pop().unwrap_or_default()
    }

    /// A copy.
    pub(super) fn leases(&mut self, leases: &[u8]) -> Vec<u8> {
        let mut copy = self.leases.pop().unwrap_or_default();
        copy.extend_from_slice(leases);
        copy
    }

    pub(super) fn pending(&mut self, base_step: u64, shards: usize) -> Pending {
        let mut staged = self.staged.pop().unwrap_or_default();
        staged.resize(shards, false);
        Pending { base_step, staged, meta: None }
    }

    pub(super) fn put_parts(&mut self, parts: Vec<Part>) {
        self.parts.push(parts);
    }

    pub(super) fn put_commits(&mut self, mut commits: Vec<Commit>) {
        self.leases.extend(commits.drain(..).map(|Commit { mut leases, .. }| {
            leases.clear();
            leases
        }));
        self.commits.push(commits);
    }

    /// Gives what came with it.
    pub(super) fn put_pending(&mut self, Pending { mut staged, meta, .. }: Pending) -> Option<PushMeta> {
        staged.clear();
        self.staged.push(staged);
        meta
    }
}
