//! Checkpoints within a phase: asked of the node that orders the updates, complete when the cut and every part
//! are known, durable when the manifest is.
//!
//! One that fails costs nothing but itself: its rows are those of the next one, which is tried after a pause that doubles. The
//! job stops when the user's limit of failures in a row is reached.
//!
//! - `CKP-6` rows of a checkpoint that failed are in the ledger of the next one, each once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tfos_core::checkpoint::{Blocks, Part};
use tfos_core::cluster::Role;
use tfos_core::failure::Cause;
use tfos_core::ids::{ExecutorId, GlobalStep};
use tfos_core::proto::{self, from_driver::Message as Order};
use tfos_core::rows::CommittedRows;

use super::phase::Phase;
use crate::event::{Action, CheckpointCut, CommitRecord};

/// Pause after the first failure, and the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Failures in a row, and when the next try is due.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u32,
    retry_at: Option<Instant>,
    /// Why the last one failed.
    pub(super) reason: Option<String>,
}

impl Failures {
    /// Whether a checkpoint may be asked for.
    pub(super) fn may_try(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| now >= at)
    }
}

#[derive(Debug)]
pub(super) struct Snapshot {
    id: u64,
    /// Facts of the cut, once the node that orders updates has named its step.
    cut: Option<(GlobalStep, CommittedRows, u64, Vec<CommitRecord>)>,
    parts: Vec<proto::PartWritten>,
    /// Who wrote them.
    written: BTreeSet<ExecutorId>,
    /// All parts are in; the manifest is being written.
    committing: bool,
}

impl Phase {
    /// The executor whose node orders the updates: ps 0, or the only trainer.
    pub(super) fn sequencer(&self) -> Option<ExecutorId> {
        if self.shape.num_ps > 0 { Some(ExecutorId(0)) } else { self.trainers.first().copied() }
    }

    pub(super) fn request_snapshot(&mut self, out: &mut Vec<Action>) {
        let Some(executor) = self.sequencer() else { return };
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        self.snapshot = Some(Snapshot { id, cut: None, parts: vec![], written: BTreeSet::new(), committing: false });
        let order = Order::TakeCheckpoint(proto::TakeCheckpoint { phase: self.id, id });
        out.push(Action::Send { executor, message: order });
    }

    pub(super) fn snapshot_at(&mut self, id: u64, step: u64) -> Result<(), Cause> {
        let rows = self.table.committed();
        let total = self.spec.rows_before + self.rows;
        if let Some(snapshot) = self.snapshot.as_mut().filter(|s| s.id == id && s.cut.is_none()) {
            self.step = self.step.max(GlobalStep(step));
            snapshot.cut = Some((GlobalStep(step), rows, total, std::mem::take(&mut self.commits)));
        }
        Ok(())
    }

    pub(super) fn part_written(
        &mut self,
        now: Instant,
        from: ExecutorId,
        part: proto::PartWritten,
        out: &mut Vec<Action>,
    ) -> Result<(), Cause> {
        let Some(snapshot) = self.snapshot.as_mut().filter(|s| s.id == part.id && !s.committing) else {
            return Ok(());
        };
        if !part.error.is_empty() {
            let commits = snapshot.cut.take().map(|(.., commits)| commits).unwrap_or_default();
            self.checkpoint_failed(now, part.error, commits, out);
        } else if part.path.is_empty() || !snapshot.parts.iter().any(|p| p.path == part.path) {
            // Written a second time by what a dead executor left behind, it is the same part.
            snapshot.written.insert(from);
            snapshot.parts.push(part);
        }
        Ok(())
    }

    /// The snapshot is lost, its rows are not; `commits` are those that it had taken.
    pub(super) fn checkpoint_failed(
        &mut self,
        now: Instant,
        reason: String,
        commits: Vec<CommitRecord>,
        out: &mut Vec<Action>,
    ) {
        self.snapshot = None;
        let later = std::mem::replace(&mut self.commits, commits);
        self.commits.extend(later);
        self.failures.count += 1;
        let count = self.failures.count;
        if count >= self.failure_limit {
            out.push(Action::CheckpointsFail { failures: count, reason });
            return;
        }
        let pause = PAUSE.saturating_mul(1 << (count - 1).min(10)).min(LONGEST_PAUSE);
        self.failures.retry_at = Some(now + pause);
        out.push(Action::Warn(format!(
            "a checkpoint could not be written ({count} in a row, the job stops at {}): {reason}; training goes on, the next try \
             is in {} s",
            self.failure_limit,
            pause.as_secs()
        )));
        self.failures.reason = Some(reason);
    }

    /// Whether a snapshot lies at a known point of the order, so that it is a checkpoint once its parts are written, whatever
    /// becomes of the nodes.
    pub(super) fn is_saving(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|s| s.cut.is_some() || s.committing)
    }

    /// Whether snapshot `id` still waits for the part of `executor`.
    pub(super) fn waits_for(&self, executor: ExecutorId, id: u64) -> bool {
        self.snapshot.as_ref().is_some_and(|s| s.id == id && !s.committing && !s.written.contains(&executor))
    }

    /// Those whose parts are not there yet.
    pub(super) fn unwritten(&self) -> Vec<ExecutorId> {
        let Some(snapshot) = self.snapshot.as_ref().filter(|s| !s.committing) else { return vec![] };
        let writers: Vec<ExecutorId> = match self.shape.num_ps {
            0 => self.trainers.first().copied().into_iter().collect(),
            ps => (0..ps).map(ExecutorId).collect(),
        };
        writers.into_iter().filter(|w| !snapshot.written.contains(w)).collect()
    }

    pub(super) fn checkpoint_stored(
        &mut self,
        now: Instant,
        step: GlobalStep,
        manifest: String,
        out: &mut Vec<Action>,
    ) {
        self.snapshot = None;
        self.failures = Failures::default();
        self.saved = true;
        self.last_checkpoint = (step, now);
        for executor in
            self.participants.iter().filter(|e| self.shape.node_of(**e).is_some_and(|n| n.role == Role::Evaluator))
        {
            let committed = proto::CheckpointCommitted { global_step: step.0, manifest: manifest.clone() };
            out.push(Action::Send { executor: *executor, message: Order::CheckpointCommitted(committed) });
        }
    }

    /// Has the manifest written when everything for it is in.
    pub(super) fn commit_snapshot(&mut self, now: Instant, out: &mut Vec<Action>) {
        let shards = (self.shape.num_ps as usize).max(1);
        if let Some(snapshot) = &mut self.snapshot
            && !snapshot.committing
            && let no_model = snapshot.parts.iter().any(|p| p.path.is_empty())
            && (snapshot.parts.len() == shards || no_model)
            && let Some((step, rows, rows_total, commits)) = snapshot.cut.take()
        {
            if no_model {
                // Nothing to keep but the rows, which nothing depends on.
                self.snapshot = None;
                self.saved = true;
                self.last_checkpoint = (step, now);
                return;
            }
            snapshot.committing = true;
            let optimizer_step = snapshot.parts.iter().map(|p| p.optimizer_step).max().unwrap_or_default();
            let parts = snapshot.parts.drain(..);
            let parts = parts
                .map(|p| Part {
                    path: p.path,
                    bytes: p.bytes,
                    crc32c: p.crc32c,
                    start: p.start,
                    end: p.end,
                    blocks: Some(Blocks { bytes: p.block_bytes, crc32c: p.block_crc32c }),
                })
                .collect();
            out.push(Action::CommitCheckpoint(Box::new(CheckpointCut {
                step,
                optimizer_step,
                parts,
                layout: self.model.0.clone(),
                optimizer: self.model.1.clone(),
                rows,
                rows_total,
                commits,
                input_fingerprint: self.spec.input_fingerprint.clone(),
                arguments: self.spec.start.arguments.clone(),
                columns: self.spec.columns.clone(),
            })));
        }
    }
}
