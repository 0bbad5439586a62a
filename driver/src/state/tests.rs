//! Tests of the whole state: forming, phases, checkpoints, deaths; time moves by arithmetic.

use super::*;
use crate::event::CheckpointCut;
use tfos_core::cluster::Reservation;
use tfos_core::ids::{Attempt, GlobalStep};
use tfos_core::proto::{self, from_executor::Message};
use tfos_core::rows::{CommittedRows, RowRange, encode_ranges};

pub(super) struct Job {
    state: State,
    now: Instant,
    /// Everything that was done since the last look.
    pub(super) actions: Vec<Action>,
}

pub(super) const SHAPE: Shape = Shape { cluster_size: 3, num_ps: 1, evaluator: false };

impl Job {
    pub(super) fn new(shape: Shape) -> Self {
        let options = Options {
            shape,
            num_gpus: 0,
            reservation_timeout: Duration::from_secs(600),
            heartbeat_timeout: Duration::from_secs(30),
            save_steps: None,
            save_every: None,
            checkpoint_failure_limit: 3,
            generation: 1,
            version: "0".into(),
        };
        let now = Instant::now();
        Self { state: State::new(now, options), now, actions: vec![] }
    }

    pub(super) fn formed() -> Self {
        let mut job = Self::new(SHAPE);
        for id in 0..3 {
            job.register(id);
        }
        assert!(job.take().iter().any(|a| matches!(a, Action::Formed(_))));
        job
    }

    pub(super) fn event(&mut self, event: Event) -> &mut Self {
        let actions = self.state.on_event(self.now, event);
        self.actions.extend(actions);
        self
    }

    pub(super) fn after(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self.event(Event::Tick)
    }

    pub(super) fn register(&mut self, id: u32) {
        let claim = Reservation {
            executor_id: ExecutorId(id),
            attempt: Attempt(0),
            host: format!("host{id}"),
            address: format!("10.0.0.{id}:1"),
            devices: vec![],
            version: "0".into(),
            pid: 100 + id,
        };
        self.event(Event::Register { connection: u64::from(id) + 1, claim, wants_id: true, log: format!("log{id}") });
    }

    pub(super) fn says(&mut self, id: u32, message: Message) -> &mut Self {
        self.event(Event::Message { connection: u64::from(id) + 1, message })
    }

    pub(super) fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Messages sent to one executor since the last look.
    pub(super) fn sent(&mut self, id: u32) -> Vec<from_driver::Message> {
        let of = |a: Action| match a {
            Action::Send { executor, message } if executor == ExecutorId(id) => Some(message),
            _ => None,
        };
        self.take().into_iter().filter_map(of).collect()
    }

    pub(super) fn start(&mut self, rows: u64) -> &mut Self {
        let spec = Self::spec(rows);
        self.event(Event::StartPhase(Box::new(spec)))
    }

    pub(super) fn spec(rows: u64) -> PhaseSpec {
        PhaseSpec {
            kind: PhaseKind::Train,
            epochs: 1,
            partition_rows: vec![Some(rows)],
            shuffle: None,
            micro_batches: None,
            input_fingerprint: "f".into(),
            columns: vec![],
            committed: CommittedRows::default(),
            rows_before: 0,
            restored_step: GlobalStep(0),
            max_steps: None,
            staged_partitions: None,
            start: proto::StartPhase::default(),
        }
    }

    pub(super) fn commit(&mut self, step: u64, worker: u32, start: u64, end: u64) -> &mut Self {
        let mut ranges = vec![];
        encode_ranges(&[RowRange { epoch: 0, partition: 0, start, end }], &mut ranges);
        let commit = proto::Commit {
            global_step: step,
            worker,
            rows: end - start,
            loss: 1.0,
            ranges: ranges.into(),
            staleness: 0,
        };
        self.says(0, Message::Commits(proto::Commits { phase: 1, commits: vec![commit] }))
    }

    pub(super) fn lease(&mut self, id: u32) -> Option<(u64, u64)> {
        self.take();
        self.says(id, Message::LeaseRequest(proto::LeaseRequest { phase: 1, want_rows: 1000 }));
        self.sent(id).into_iter().find_map(|m| match m {
            from_driver::Message::Rows(r) => r.range.map(|r| (r.start, r.end)),
            _ => None,
        })
    }

    pub(super) fn cut(&mut self) -> Option<CheckpointCut> {
        self.take().into_iter().find_map(|a| match a {
            Action::CommitCheckpoint(cut) => Some(*cut),
            _ => None,
        })
    }
}

#[test] // whatever the stage, and with the node that says it
fn what_a_node_has_to_say_to_the_user_is_said() {
    let mut job = Job::formed();
    job.says(1, Message::Note(proto::Note { text: "half of it is new".into() }));
    let said = job.take().into_iter().find_map(|a| if let Action::Say(text) = a { Some(text) } else { None });
    assert_eq!(said.as_deref(), Some("chief:0: half of it is new"));
}

pub(super) fn finished() -> Message {
    Message::NodeFinished(proto::NodeFinished { phase: 1 })
}

pub(super) fn part(id: u64, step: u64) -> Message {
    let part = proto::PartWritten { phase: 1, id, global_step: step, path: "p".into(), end: 9, ..Default::default() };
    Message::PartWritten(part)
}

#[test] // test_reservation_server and ..._multi: any number of executors, in any order
fn test_reservation_server_multi() {
    let mut job = Job::new(Shape { cluster_size: 120, num_ps: 2, evaluator: true });
    for id in (0..120).rev() {
        assert!(!job.take().iter().any(|a| matches!(a, Action::Formed(_))));
        job.register(id);
    }
    assert!(job.take().iter().any(|a| matches!(a, Action::Formed(spec) if spec.roles.len() == 4)));
    job.register(7);
    assert!(job.take().iter().any(|a| matches!(a, Action::Refuse { .. })));
}

#[test]
fn a_cluster_that_does_not_form_in_time_names_who_is_missing_and_its_last_state() {
    let mut job = Job::new(SHAPE);
    job.event(Event::Launched { executor: ExecutorId(2), pid: 77, log: "log2".into() });
    job.register(0);
    assert!(job.after(Duration::from_secs(599)).take().iter().all(|a| !matches!(a, Action::FormFailed { .. })));
    let actions = job.after(Duration::from_secs(1)).take();
    let reason = actions.iter().find_map(|a| match a {
        Action::FormFailed { reason } => Some(reason.clone()),
        _ => None,
    });
    let reason = reason.unwrap();
    assert!(reason.contains("1 of 3") && reason.contains("executor 1 (chief:0): never seen"), "{reason}");
    assert!(reason.contains("executor 2 (worker:0): started as process 77") && reason.contains("log2"), "{reason}");
    assert!(matches!(actions.last(), Some(Action::StopAll)));
}

#[test] // MEM-2
fn a_process_that_dies_before_it_registers_fails_the_cluster_at_once() {
    let mut job = Job::new(SHAPE);
    for executor in (0..3).map(ExecutorId) {
        job.event(Event::Launched { executor, pid: 1, log: "the.log".into() });
    }
    job.event(Event::ProcessExited {
        executor: ExecutorId(1),
        cause: Cause::Exit { code: 7 },
        said: Some("no GPU".into()),
    });
    let actions = job.after(SETTLE).take();
    let failed = actions
        .iter()
        .any(|a| matches!(a, Action::FormFailed { reason } if reason.contains("code 7: no GPU") && reason.contains("the.log")));
    assert!(failed, "{actions:?}");
}

#[test] // MEM-1
fn only_silence_by_the_drivers_own_clock_makes_an_executor_lost() {
    let mut job = Job::formed();
    job.after(Duration::from_secs(29));
    for id in [0, 2] {
        job.says(id, Message::Heartbeat(proto::Heartbeat::default()));
    }
    job.after(Duration::from_secs(2));
    let actions = job.after(SETTLE).take();
    let failure = actions.iter().find_map(|a| match a {
        Action::Fail(failure) => Some(failure),
        _ => None,
    });
    let failure = failure.unwrap();
    assert_eq!(failure.executor_id, ExecutorId(1));
    assert!(failure.to_string().contains("chief:0") && failure.to_string().contains("no sign of life"), "{failure}");
}

#[test] // MEM-2, ERR-1
fn the_root_cause_is_the_killed_process_though_its_peer_reported_first() {
    let mut job = Job::formed();
    job.start(100);
    let cause = serde_json::to_string(&Cause::PeerLost { chain: vec!["connection to ps".into()] }).unwrap();
    job.says(1, Message::NodeFailed(proto::NodeFailed { phase: 1, cause }));
    job.event(Event::StreamClosed { connection: 1, reason: "broke".into() });
    job.event(Event::ProcessExited { executor: ExecutorId(0), cause: Cause::Signal { signal: 9 }, said: None });
    let actions = job.after(SETTLE).take();
    let root = actions.iter().find_map(|a| match a {
        Action::Fail(failure) => Some(failure.to_string()),
        _ => None,
    });
    let root = root.unwrap();
    assert!(root.contains("ps:0") && root.contains("SIGKILL") && root.contains("log0"), "{root}");
    assert_eq!(actions.iter().filter(|a| matches!(a, Action::Fail(_))).count(), 1);
}

#[test] // CKP-1: the manifest is asked for only when the cut is known and every part is written
fn the_end_of_training_is_rows_then_trainers_then_checkpoint_then_everybody() {
    let mut job = Job::formed();
    job.start(64);
    let (a, b) = (job.lease(1).unwrap(), job.lease(2).unwrap());
    assert_eq!((a, b), ((0, 32), (32, 64)));
    job.commit(1, 0, 0, 32).commit(2, 1, 32, 64);
    assert!(job.sent(1).iter().any(|m| matches!(m, from_driver::Message::EndOfFeed(_))));
    job.says(1, finished());
    assert!(job.sent(0).is_empty(), "the other trainer is still at work");
    job.says(2, finished());
    assert!(matches!(job.sent(0)[..], [from_driver::Message::TakeCheckpoint(proto::TakeCheckpoint { id: 1, .. })]));
    job.says(0, part(1, 2));
    assert!(job.cut().is_none(), "the cut is not known yet");
    job.says(0, Message::SnapshotAt(proto::SnapshotAt { phase: 1, id: 1, global_step: 2 }));
    let cut = job.cut().unwrap();
    assert_eq!((cut.step, cut.rows.complete_epochs, cut.rows_total, cut.commits.len()), (GlobalStep(2), 1, 64, 2));
    job.event(Event::CheckpointStored { step: GlobalStep(2), manifest: "m".into() });
    assert!(job.sent(2).iter().any(|m| matches!(m, from_driver::Message::EndPhase(_))));
    for id in 0..3 {
        assert!(!job.take().iter().any(|a| matches!(a, Action::PhaseDone(_))));
        job.says(id, finished());
    }
    assert!(job.take().iter().any(|a| matches!(a, Action::PhaseDone(o) if o.end == PhaseEnd::Complete)));
}

#[test]
fn only_what_the_evaluator_reports_in_training_scores_a_checkpoint() {
    let mut job = Job::new(Shape { cluster_size: 3, num_ps: 1, evaluator: true });
    (0..3).for_each(|id| job.register(id));
    job.start(64).take();
    let metric = proto::Metric { name: "loss".into(), value: 0.5, rows: 9 };
    let metrics = Message::Metrics(proto::Metrics { phase: 1, global_step: 7, metrics: vec![metric] });
    let actions = job.says(1, metrics.clone()).take();
    assert!(matches!(&actions[..], [Action::Reported { from: ExecutorId(1), .. }]), "the chief's: {actions:?}");
    let actions = job.says(2, metrics).take();
    let [Action::Score { step: GlobalStep(7), scores }, Action::Reported { from, .. }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(*from, ExecutorId(2));
    assert_eq!(scores.get("loss"), Some(&0.5));
}

#[test] // FED-3: rows of a dropped gradient go to whoever waits
fn returned_rows_wake_a_waiting_trainer() {
    let mut job = Job::formed();
    job.start(32);
    assert_eq!(job.lease(1), Some((0, 32)));
    assert_eq!(job.lease(2), None);
    let mut ranges = vec![];
    encode_ranges(&[RowRange { epoch: 0, partition: 0, start: 8, end: 16 }], &mut ranges);
    job.says(0, Message::Returned(proto::Returned { phase: 1, worker: 0, ranges: ranges.into() }));
    let rows = job.sent(2).into_iter().find_map(|m| match m {
        from_driver::Message::Rows(r) => r.range,
        _ => None,
    });
    assert_eq!(rows.map(|r| (r.start, r.end)), Some((8, 16)));
}

#[test] // SHD-1
fn messages_of_another_phase_change_nothing() {
    let mut job = Job::formed();
    job.start(32);
    job.take();
    job.says(1, Message::LeaseRequest(proto::LeaseRequest { phase: 9, want_rows: 10 }));
    job.says(0, Message::Terminate(proto::Terminate { phase: 9 }));
    assert!(job.take().is_empty());
    assert_eq!(job.lease(1), Some((0, 32)));
}

#[test]
fn a_commit_that_nobody_leased_is_a_defect_and_stops_the_job() {
    let mut job = Job::formed();
    job.start(100);
    job.commit(1, 0, 0, 10);
    let actions = job.after(SETTLE).take();
    assert!(actions.iter().any(|a| matches!(a, Action::Fail(f) if f.to_string().contains("holds no lease"))));
}

#[test]
fn drain_ends_the_feed_and_still_takes_the_last_checkpoint() {
    let mut job = Job::formed();
    job.start(1000);
    job.lease(1);
    job.event(Event::Drain);
    assert!(job.sent(1).iter().any(|m| matches!(m, from_driver::Message::EndOfFeed(_))));
    assert_eq!(job.lease(2), None);
    job.says(1, finished()).says(2, finished());
    assert!(job.sent(0).iter().any(|m| matches!(m, from_driver::Message::TakeCheckpoint(_))));
}
