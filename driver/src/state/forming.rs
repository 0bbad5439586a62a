//! Reservation: who has come, who is missing, and when the cluster is complete.

use std::time::Instant;

use tfos_core::cluster::{Refusal, Reservation, Role};
use tfos_core::failure::Cause;
use tfos_core::ids::ExecutorId;

use super::{Member, Stage, State};
use crate::event::{Action, Connection};

impl State {
    pub(super) fn handle_register(
        &mut self,
        now: Instant,
        connection: Connection,
        mut claim: Reservation,
        wants_id: bool,
        log: String,
        out: &mut Vec<Action>,
    ) {
        if !wants_id {
            // Any free place; when there is none, an id beyond the last is refused as not needed.
            claim.executor_id = self.reservations.free_id().unwrap_or(ExecutorId(self.options.shape.cluster_size));
        }
        let executor = claim.executor_id;
        let added = if matches!(self.stage, Stage::Forming { .. }) {
            self.reservations.add(claim.clone())
        } else {
            Err(Refusal::NotNeeded { id: executor, cluster_size: self.options.shape.cluster_size })
        };
        if let Err(refusal) = added {
            out.push(Action::Note(format!("refused {} at {}: {refusal}", claim.host, claim.address)));
            out.push(Action::Refuse { connection, refusal });
            return;
        }
        let node = self.options.shape.node_of(executor);
        let role = node.map_or_else(|| "?".into(), |n| n.to_string());
        out.push(Action::Note(format!(
            "executor {executor} registered: {role} on {} at {}, process {}",
            claim.host, claim.address, claim.pid
        )));
        self.members.insert(
            executor,
            Member { connection, host: claim.host.clone(), log, last_seen: now, wait_data_ms: 0, wait_ps_ms: 0 },
        );
        out.push(Action::Accept { connection, executor });
        if node.is_some_and(|n| n.role != Role::Ps) && claim.devices.len() < self.options.num_gpus as usize {
            let has = claim.devices.len();
            let wants = self.options.num_gpus;
            let message =
                format!("{role} needs {wants} GPU(s) and its executor holds {has}; start it with --num-gpus {wants}");
            self.handle_death(now, executor, Cause::Error { chain: vec![message], user: true }, out);
            return;
        }
        if let Some(spec) = self.reservations.spec() {
            self.stage = Stage::Idle;
            self.status.stage = "idle".into();
            self.status.waiting_for = None;
            out.push(Action::Formed(spec));
        } else {
            self.status.waiting_for = Some(self.missing_reason());
        }
    }

    /// Who is missing, and what was last known of them.
    pub(super) fn missing_reason(&self) -> String {
        let all = self.options.shape.cluster_size as usize;
        let missing: Vec<String> = self
            .reservations
            .missing()
            .iter()
            .map(|id| {
                let role = self.options.shape.node_of(*id).map_or_else(|| "?".into(), |n| n.to_string());
                match self.launched.get(id) {
                    Some((state, log)) => format!("executor {id} ({role}): {state}; log: {log}"),
                    None => format!("executor {id} ({role}): never seen"),
                }
            })
            .collect();
        let rejected = self.rejected.as_ref().map_or_else(String::new, |text| format!("; {text}"));
        format!("{} of {all} executors registered, missing {}{rejected}", all - missing.len(), missing.join(", "))
    }
}
