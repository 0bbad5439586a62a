//! Checkpoints within a phase: asked of the node that orders the updates, complete when the cut and every part
//! are known, durable when the manifest is.

use std::time::Instant;

use tfos_core::checkpoint::Part;
use tfos_core::cluster::Role;
use tfos_core::failure::Cause;
use tfos_core::ids::{ExecutorId, GlobalStep};
use tfos_core::proto::{self, from_driver::Message as Order};
use tfos_core::rows::CommittedRows;

use super::phase::Phase;
use crate::event::{Action, CheckpointCut, CommitRecord};

#[derive(Debug)]
pub(super) struct Snapshot {
    id: u64,
    /// Facts of the cut, once the node that orders updates has named its step.
    cut: Option<(GlobalStep, CommittedRows, u64, Vec<CommitRecord>)>,
    parts: Vec<proto::PartWritten>,
    /// All parts are in; the manifest is being written.
    committing: bool,
}

impl Phase {
    /// The executor whose node orders the updates: ps 0, or the only trainer.
    fn sequencer(&self) -> Option<ExecutorId> {
        if self.shape.num_ps > 0 { Some(ExecutorId(0)) } else { self.trainers.first().copied() }
    }

    pub(super) fn request_snapshot(&mut self, out: &mut Vec<Action>) {
        let Some(executor) = self.sequencer() else { return };
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        self.snapshot = Some(Snapshot { id, cut: None, parts: vec![], committing: false });
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

    pub(super) fn part_written(&mut self, _from: ExecutorId, part: proto::PartWritten) -> Result<(), Cause> {
        if !part.error.is_empty() {
            return Err(Cause::Error { chain: vec![part.error], user: false });
        }
        if let Some(snapshot) = self.snapshot.as_mut().filter(|s| s.id == part.id) {
            snapshot.parts.push(part);
        }
        Ok(())
    }

    pub(super) fn checkpoint_stored(
        &mut self,
        now: Instant,
        step: GlobalStep,
        manifest: String,
        out: &mut Vec<Action>,
    ) {
        self.snapshot = None;
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
                self.last_checkpoint = (step, now);
                return;
            }
            snapshot.committing = true;
            let optimizer_step = snapshot.parts.iter().map(|p| p.optimizer_step).max().unwrap_or_default();
            let parts = snapshot.parts.drain(..);
            let parts = parts
                .map(|p| Part { path: p.path, bytes: p.bytes, crc32c: p.crc32c, start: p.start, end: p.end })
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
            })));
        }
    }
}
