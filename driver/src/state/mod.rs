//! The job as a pure state machine: `on_event(now, event) -> actions`. No I/O, no clock, no randomness.
//!
//! ```text
//!  Forming --all registered--> Idle --StartPhase--> Running --last ack--> Idle --Shutdown--> Stopped
//!     |                          |                     |
//!     +--timeout, death----------+------death----------+--> Failing --settled--> Stopped
//! ```
//!
//! - `MEM-1` only the driver's clock declares an executor lost.
//! - `MEM-2` every way of learning of a death leads to `State::handle_death`.
//! - `CKP-7` a checkpoint whose snapshot was taken before a death is still completed, by what the dead executor left behind.
//! - `SHD-1` nothing is sent to a phase that has ended, and nothing of an ended phase is believed.

mod forming;
mod messages;
mod phase;
mod settings;
mod snapshot;
mod spec;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tfos_core::cluster::{NodeId, Reservations, Shape};
use tfos_core::failure::{Cause, Failure, root_cause};
use tfos_core::ids::ExecutorId;
use tfos_core::proto::{self, Stop, from_driver};

use crate::event::{Action, Connection, Event};
use crate::status::Status;

use phase::Phase;
pub use spec::{FeedMemory, MetricMean, PhaseEnd, PhaseKind, PhaseOutcome, PhaseSpec};

/// After the first death, how long to listen for others before naming the cause: the report of a process
/// exit and those of its peers arrive over different ways.
const SETTLE: Duration = Duration::from_millis(300);

/// How long a part of a snapshot is waited for whose writer is dead, after the last sign of somebody who writes it.
const RESCUE: Duration = Duration::from_secs(3);

/// What the state needs to know of the settings.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes by role.
    pub shape: Shape,
    /// GPUs for each node that is not a ps.
    pub num_gpus: u32,
    /// Time to register in.
    pub reservation_timeout: Duration,
    /// Silence after which an executor is lost.
    pub heartbeat_timeout: Duration,
    /// Steps between checkpoints.
    pub save_steps: Option<u64>,
    /// Time between checkpoints.
    pub save_every: Option<Duration>,
    /// Checkpoints that fail in a row before the job stops.
    pub checkpoint_failure_limit: u32,
    /// This incarnation of the job.
    pub generation: u64,
    /// The program's version.
    pub version: String,
}

/// What is known of one executor.
#[derive(Debug, Clone)]
struct Member {
    connection: Connection,
    host: String,
    log: String,
    last_seen: Instant,
    wait_data_ms: u64,
    wait_ps_ms: u64,
}

#[derive(Debug)]
enum Stage {
    Forming {
        deadline: Instant,
    },
    Idle,
    Running(Box<Phase>),
    Failing {
        since: Instant,
        forming: bool,
        /// The phase, while a checkpoint of it can still be completed.
        saving: Option<Box<Phase>>,
        /// When somebody last said that he is writing the part of a dead executor.
        rescued: Instant,
    },
    Stopped,
}

/// The only mutable state of a job.
#[derive(Debug)]
pub struct State {
    options: Options,
    stage: Stage,
    reservations: Reservations,
    members: BTreeMap<ExecutorId, Member>,
    /// Last known state of executors that are not registered.
    launched: BTreeMap<ExecutorId, (String, String)>,
    failures: Vec<Failure>,
    /// The last one that was turned away while the cluster formed, and why.
    rejected: Option<String>,
    draining: bool,
    next_phase: u32,
    status: Status,
}

impl State {
    /// A job whose executors are about to come.
    pub fn new(now: Instant, options: Options) -> Self {
        let executors = (0, options.shape.cluster_size as usize);
        Self {
            stage: Stage::Forming { deadline: now + options.reservation_timeout },
            reservations: Reservations::new(options.shape),
            members: BTreeMap::new(),
            launched: BTreeMap::new(),
            failures: vec![],
            rejected: None,
            draining: false,
            next_phase: 1,
            status: Status { stage: "forming".into(), executors, ..Status::default() },
            options,
        }
    }

    /// A snapshot for people.
    pub fn status(&self) -> Status {
        let mut status = self.status.clone();
        status.executors.0 = self.members.len();
        status.wait_data_ms = self.members.values().map(|m| m.wait_data_ms).sum();
        status.wait_ps_ms = self.members.values().map(|m| m.wait_ps_ms).sum();
        status
    }

    /// Takes one event and says what to do.
    pub fn on_event(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut out = vec![];
        match event {
            Event::Launched { executor, pid, log } => {
                self.launched.insert(executor, (format!("started as process {pid}, not registered yet"), log));
            }
            Event::Register { connection, claim, wants_id, log } => {
                self.handle_register(now, connection, claim, wants_id, log, &mut out);
            }
            Event::Message { connection, message } => {
                if let Some(executor) = self.executor_of(connection) {
                    if let Some(member) = self.members.get_mut(&executor) {
                        member.last_seen = now;
                    }
                    self.handle_message(now, executor, message, &mut out);
                }
            }
            Event::StreamClosed { connection, reason } => {
                if let Some(executor) = self.executor_of(connection) {
                    self.handle_death(now, executor, Cause::Lost { reason }, &mut out);
                }
            }
            Event::ProcessExited { executor, cause, said } => {
                self.handle_death(now, executor, cause, &mut out);
                if let Some(failure) = self.failures.last_mut().filter(|f| f.executor_id == executor) {
                    failure.first_error = said;
                }
            }
            Event::Tick => self.handle_tick(now, &mut out),
            Event::StartPhase(spec) => self.handle_start_phase(now, *spec, &mut out),
            Event::CheckpointStored { step, manifest } => {
                self.status.checkpoint = Some(step.0);
                match &mut self.stage {
                    Stage::Running(phase) => phase.checkpoint_stored(now, step, manifest, &mut out),
                    Stage::Failing { saving: saving @ Some(_), .. } => {
                        *saving = None;
                        out.push(Action::Warn(format!("the checkpoint of step {step} was completed all the same")));
                    }
                    _ => {}
                }
            }
            Event::CheckpointFailed { reason, is_final, cut } => match &mut self.stage {
                Stage::Running(_) if is_final => out.push(Action::CheckpointsFail { failures: 1, reason }),
                Stage::Running(phase) => phase.checkpoint_failed(now, reason, cut.commits, &mut out),
                Stage::Failing { saving, .. } => *saving = None,
                _ => {}
            },
            Event::Rescue { ticket, report } => self.handle_rescue(now, ticket, report, &mut out),
            Event::SetAsked { number, consistency } => self.handle_set(number, consistency, &mut out),
            Event::Rejected { peer, reason } => {
                out.push(Action::Note(format!("turned away {peer}: {reason}")));
                if matches!(self.stage, Stage::Forming { .. }) {
                    self.rejected = Some(format!("{peer} was turned away: {reason}"));
                    self.status.waiting_for = Some(self.missing_reason());
                }
            }
            Event::QueryFailed { reason } => self.handle_query_failed(now, reason, &mut out),
            Event::Drain => self.handle_drain(&mut out),
            Event::Shutdown { reason } => self.handle_shutdown(reason, &mut out),
        }
        self.after(now, &mut out);
        out
    }

    /// What a dead executor left behind asks whether its part is still wanted, or brings it.
    fn handle_rescue(&mut self, now: Instant, ticket: u64, report: proto::RescueReport, out: &mut Vec<Action>) {
        let executor = ExecutorId(report.executor_id);
        let mut wanted = false;
        // It may call before the death of its executor is known.
        let phase = match &mut self.stage {
            Stage::Running(phase) => Some(phase),
            Stage::Failing { saving, rescued, .. } => {
                *rescued = now;
                saving.as_mut()
            }
            _ => None,
        };
        if let Some(phase) = phase.filter(|p| p.id() == report.phase && report.generation == self.options.generation) {
            wanted = phase.is_saving() && phase.waits_for(executor, report.id);
            if let Some(part) = report.part.filter(|_| wanted) {
                // Its errors are told by the event that follows them; there is no cause to look for.
                let _ = phase.part_written(now, executor, part, out);
                wanted = false;
            }
        }
        out.push(Action::AnswerRescue { ticket, wanted });
    }

    /// What may follow from any event: a phase that is complete ends.
    fn after(&mut self, now: Instant, out: &mut Vec<Action>) {
        // The limit of failed checkpoints is reached: the error says why, no node is to blame.
        if let Some(Action::CheckpointsFail { reason, .. }) =
            out.iter().find(|a| matches!(a, Action::CheckpointsFail { .. }))
        {
            let reason = reason.clone();
            self.handle_shutdown(reason, out);
        }
        if let Stage::Failing { saving: Some(phase), .. } = &mut self.stage {
            phase.commit_snapshot(now, out);
        }
        if let Stage::Running(phase) = &mut self.stage {
            phase.advance(now, &self.options, out);
            phase.fill(&mut self.status);
            if let Some(outcome) = phase.outcome() {
                phase.give_up_sets(out);
                out.push(Action::PhaseDone(Box::new(outcome)));
                self.stage = Stage::Idle;
                self.status.stage = "idle".into();
            }
        }
    }

    fn handle_start_phase(&mut self, now: Instant, spec: PhaseSpec, out: &mut Vec<Action>) {
        if !matches!(self.stage, Stage::Idle) {
            return;
        }
        let id = self.next_phase;
        self.next_phase += 1;
        self.status.stage = spec.kind.to_string();
        let mut phase = Phase::new(now, id, spec, &self.options);
        phase.start(out);
        if self.draining {
            phase.drain(out);
        }
        self.stage = Stage::Running(Box::new(phase));
    }

    /// Whatever a node says of it, or that a node died, tells more (`ERR-1`).
    fn handle_query_failed(&mut self, now: Instant, reason: String, out: &mut Vec<Action>) {
        let Stage::Running(phase) = &self.stage else { return };
        if let Some(chief) = phase.trainers.first().copied().filter(|_| phase.spec.kind == PhaseKind::Stage) {
            let chain = vec!["the query engine gave up".into(), reason];
            self.handle_death(now, chief, Cause::PeerLost { chain }, out);
        }
    }

    fn handle_drain(&mut self, out: &mut Vec<Action>) {
        self.draining = true;
        if let Stage::Running(phase) = &mut self.stage {
            phase.drain(out);
        }
    }

    fn handle_shutdown(&mut self, reason: String, out: &mut Vec<Action>) {
        if matches!(self.stage, Stage::Stopped) {
            return;
        }
        self.send_stop(&reason, out);
        out.push(Action::StopAll);
        self.stage = Stage::Stopped;
        self.status.stage = "stopped".into();
    }

    fn send_stop(&self, reason: &str, out: &mut Vec<Action>) {
        for executor in self.members.keys() {
            let stop = Stop { drain: false, reason: reason.to_owned() };
            out.push(Action::Send { executor: *executor, message: from_driver::Message::Stop(stop) });
        }
    }

    fn handle_tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        match &self.stage {
            Stage::Forming { deadline } if now >= *deadline => {
                let reason = self.missing_reason();
                self.send_stop("the cluster did not form in time", out);
                out.push(Action::FormFailed { reason });
                out.push(Action::StopAll);
                self.stage = Stage::Stopped;
            }
            Stage::Failing { since, .. } if now >= *since + SETTLE && !self.is_saving(now) => self.conclude(out),
            Stage::Idle | Stage::Running(_) => {
                let timeout = self.options.heartbeat_timeout;
                let silent = self.members.iter().find(|(_, m)| now.duration_since(m.last_seen) > timeout);
                if let Some((executor, member)) = silent {
                    let executor = *executor;
                    let reason = format!("no sign of life for {:.1?}", now.duration_since(member.last_seen));
                    self.handle_death(now, executor, Cause::Lost { reason }, out);
                }
            }
            Stage::Forming { .. } | Stage::Failing { .. } | Stage::Stopped => {}
        }
    }

    /// The one place where a death is taken in, however it was learned (`MEM-2`).
    fn handle_death(&mut self, now: Instant, executor: ExecutorId, cause: Cause, out: &mut Vec<Action>) {
        let (forming, settled) = match &self.stage {
            Stage::Stopped => return,
            Stage::Forming { .. } => (true, now),
            Stage::Failing { since, forming, .. } => (*forming, *since),
            Stage::Idle | Stage::Running(_) => (false, now),
        };
        let member = self.members.get(&executor);
        // A standalone executor that goes away before the cluster is complete may come again.
        if forming && self.launched.is_empty() && matches!(cause, Cause::Lost { .. }) {
            let host = member.map_or("?", |m| m.host.as_str());
            out.push(Action::Note(format!("executor {executor} on {host} left before the cluster was complete")));
            self.members.remove(&executor);
            self.reservations.remove(executor);
            return;
        }
        let node: Option<NodeId> = self.options.shape.node_of(executor);
        let launched = self.launched.get(&executor);
        let failure = Failure {
            node,
            executor_id: executor,
            host: member.map_or_else(|| "this host".into(), |m| m.host.clone()),
            cause,
            first_error: None,
            log: member.map(|m| m.log.clone()).or_else(|| launched.map(|l| l.1.clone())).filter(|l| !l.is_empty()),
        };
        out.push(Action::Lost(Box::new(failure.clone())));
        self.failures.push(failure);
        if !matches!(self.stage, Stage::Failing { .. }) {
            self.status.stage = "failing".into();
            let saving = match std::mem::replace(&mut self.stage, Stage::Idle) {
                Stage::Running(phase) if phase.is_saving() => Some(phase),
                _ => None,
            };
            if saving.is_some() {
                self.status.waiting_for = Some("a checkpoint that was under way when a node died".into());
            }
            self.stage = Stage::Failing { since: settled, forming, saving, rescued: settled };
        }
    }

    /// Whether a checkpoint may still become complete: of those whose parts are missing everybody lives, or somebody says
    /// that he writes them.
    fn is_saving(&self, now: Instant) -> bool {
        let Stage::Failing { saving: Some(phase), rescued, .. } = &self.stage else { return false };
        let dead = |executor: ExecutorId| self.failures.iter().any(|f| f.executor_id == executor);
        phase.is_saving() && (!phase.unwritten().into_iter().any(dead) || now < *rescued + RESCUE)
    }

    fn conclude(&mut self, out: &mut Vec<Action>) {
        let forming = matches!(self.stage, Stage::Failing { forming: true, .. });
        self.send_stop("the job failed", out);
        if let Some(cause) = root_cause(&self.failures).cloned() {
            out.push(if forming {
                Action::FormFailed { reason: cause.to_string() }
            } else {
                Action::Fail(Box::new(cause))
            });
        }
        out.push(Action::StopAll);
        self.stage = Stage::Stopped;
        self.status.stage = "failed".into();
    }

    fn executor_of(&self, connection: Connection) -> Option<ExecutorId> {
        self.members.iter().find(|(_, m)| m.connection == connection).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod checkpoint_tests;
#[cfg(test)]
mod staging_tests;
#[cfg(test)]
mod tests;
