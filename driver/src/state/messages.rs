//! What executors say, one short handler each.

use std::time::Instant;

use tfos_core::failure::Cause;
use tfos_core::ids::ExecutorId;
use tfos_core::proto::{HeartbeatAck, from_driver, from_executor::Message};

use super::{Stage, State};
use crate::event::Action;

impl State {
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        executor: ExecutorId,
        message: Message,
        out: &mut Vec<Action>,
    ) {
        match message {
            Message::Register(_) => {}
            Message::Heartbeat(beat) => {
                if let Some(member) = self.members.get_mut(&executor) {
                    member.wait_data_ms = beat.wait_data_ms;
                    member.wait_ps_ms = beat.wait_ps_ms;
                }
                out.push(Action::Send { executor, message: from_driver::Message::HeartbeatAck(HeartbeatAck {}) });
            }
            Message::Note(note) => {
                let node = self.options.shape.node_of(executor);
                let node = node.map_or_else(|| format!("executor {executor}"), |n| n.to_string());
                out.push(Action::Say(format!("{node}: {}", note.text)));
            }
            Message::NodeFailed(failed) => {
                let cause = serde_json::from_str(&failed.cause).unwrap_or(Cause::Error {
                    chain: vec![format!("unreadable failure report: {}", failed.cause)],
                    user: false,
                });
                self.handle_death(now, executor, cause, out);
            }
            other => self.handle_phase_message(now, executor, other, out),
        }
    }

    fn handle_phase_message(&mut self, now: Instant, executor: ExecutorId, message: Message, out: &mut Vec<Action>) {
        let phase = match (&mut self.stage, &message) {
            (Stage::Running(phase), _) => phase,
            // A snapshot from before the death is completed (CKP-7); nothing else of the phase counts.
            (Stage::Failing { saving: Some(phase), .. }, Message::PartWritten(_)) => phase,
            _ => return,
        };
        // A report of an ended phase changes nothing (SHD-1).
        let of = match &message {
            Message::NodeReady(m) => m.phase,
            Message::NodeFinished(m) => m.phase,
            Message::FeedMemory(m) => m.phase,
            Message::LeaseRequest(m) => m.phase,
            Message::PartitionEnd(m) => m.phase,
            Message::Commits(m) => m.phase,
            Message::Returned(m) => m.phase,
            Message::SnapshotAt(m) => m.phase,
            Message::PartWritten(m) => m.phase,
            Message::Terminate(m) => m.phase,
            Message::Metrics(m) => m.phase,
            Message::Results(m) => m.phase,
            Message::Staged(m) => m.phase,
            Message::ConsistencySet(m) => m.phase,
            Message::Register(_) | Message::Heartbeat(_) | Message::NodeFailed(_) | Message::Note(_) => return,
        };
        if of != phase.id() {
            return;
        }
        let problem = match message {
            Message::NodeReady(m) => phase.node_ready(executor, m.layout, m.optimizer),
            Message::NodeFinished(_) => phase.node_finished(executor, out),
            Message::FeedMemory(m) => phase.feed_memory(&m),
            Message::LeaseRequest(m) => phase.lease_request(executor, m.want_rows, out),
            Message::PartitionEnd(m) => phase.partition_end(m.partition, m.rows, out),
            Message::Commits(m) => phase.commits(now, m.commits, out),
            Message::Returned(m) => phase.returned(executor, m.worker, &m.ranges, out),
            Message::SnapshotAt(m) => phase.snapshot_at(m.id, m.global_step),
            Message::PartWritten(m) => phase.part_written(now, executor, m, out),
            Message::Terminate(_) => phase.terminate(out),
            Message::Metrics(m) => phase.metrics(executor, m, out),
            Message::Results(m) => phase.results(m.results),
            Message::Staged(m) => phase.staged(m.files, m.whole, out),
            Message::ConsistencySet(m) => phase.consistency_set(m.id, m.global_step, m.error, out),
            Message::Register(_) | Message::Heartbeat(_) | Message::NodeFailed(_) | Message::Note(_) => Ok(()),
        };
        if let Err(cause) = problem {
            self.handle_death(now, executor, cause, out);
        }
    }
}
