//! Checkpoints that fail, and checkpoints whose writer dies.

use super::tests::{Job, SHAPE, finished, part};
use super::*;
use crate::event::CheckpointCut;
use tfos_core::ids::GlobalStep;
use tfos_core::proto::from_executor::Message;

fn snapshot_at(id: u64, step: u64) -> Message {
    Message::SnapshotAt(proto::SnapshotAt { phase: 1, id, global_step: step })
}

fn failed_part(id: u64) -> Message {
    Message::PartWritten(proto::PartWritten { phase: 1, id, error: "disk full".into(), ..Default::default() })
}

fn asked(job: &mut Job) -> Option<u64> {
    job.sent(0).into_iter().find_map(|m| match m {
        from_driver::Message::TakeCheckpoint(t) => Some(t.id),
        _ => None,
    })
}

/// A job whose trainers are done and whose last checkpoint is asked for; two commits wait for it.
fn at_the_end() -> Job {
    let mut job = Job::formed();
    job.start(64);
    job.lease(1).unwrap();
    job.lease(2).unwrap();
    job.commit(1, 0, 0, 32).commit(2, 1, 32, 64);
    job.says(1, finished()).says(2, finished());
    assert_eq!(asked(&mut job), Some(1));
    job
}

fn rows(cut: &CheckpointCut) -> Vec<(u64, u64, u64)> {
    cut.commits.iter().flat_map(|c| c.ranges.iter().map(|r| (c.global_step, r.start, r.end))).collect()
}

#[test] // CKP-6
fn a_checkpoint_that_fails_is_tried_again_later_with_all_its_rows() {
    let mut job = at_the_end();
    job.says(0, snapshot_at(1, 2)).says(0, failed_part(1));
    assert!(job.take().iter().any(|a| matches!(a, Action::Warn(w) if w.contains("disk full") && w.contains("1 s"))));
    job.after(Duration::from_millis(900));
    assert_eq!(asked(&mut job), None, "not before the pause is over");
    job.after(Duration::from_millis(200));
    assert_eq!(asked(&mut job), Some(2));
    // The parts are written this time, the manifest is not.
    job.says(0, snapshot_at(2, 2)).says(0, part(2, 2));
    let cut = job.cut().unwrap();
    assert_eq!(rows(&cut), [(1, 0, 32), (2, 32, 64)]);
    job.event(Event::CheckpointFailed { reason: "503".into(), is_final: false, cut: Box::new(cut) });
    job.after(Duration::from_millis(1900));
    assert_eq!(asked(&mut job), None, "the pause doubles");
    job.after(Duration::from_millis(200));
    assert_eq!(asked(&mut job), Some(3));
    // A late report of a snapshot that was given up counts for nothing.
    job.says(0, part(2, 2)).says(0, snapshot_at(3, 2)).says(0, part(3, 2));
    let cut = job.cut().unwrap();
    assert_eq!((rows(&cut), cut.rows_total), (vec![(1, 0, 32), (2, 32, 64)], 64));
    job.event(Event::CheckpointStored { step: GlobalStep(2), manifest: "m".into() });
    assert!(job.sent(1).iter().any(|m| matches!(m, from_driver::Message::EndPhase(_))));
}

#[test]
fn the_job_stops_at_the_limit_of_failures_in_a_row() {
    let mut job = at_the_end();
    for id in 1..=3 {
        assert!(!job.take().iter().any(|a| matches!(a, Action::CheckpointsFail { .. })));
        job.says(0, snapshot_at(id, 2)).says(0, failed_part(id));
        if id < 3 {
            job.after(Duration::from_secs(10));
        }
    }
    let actions = job.take();
    let said = |a: &Action| matches!(a, Action::CheckpointsFail { failures: 3, reason } if reason == "disk full");
    assert!(actions.iter().any(said) && actions.iter().any(|a| matches!(a, Action::StopAll)), "{actions:?}");
}

#[test]
fn another_driver_that_has_taken_over_ends_the_job_at_once() {
    let mut job = at_the_end();
    job.says(0, snapshot_at(1, 2)).says(0, part(1, 2));
    let cut = Box::new(job.cut().unwrap());
    job.event(Event::CheckpointFailed { reason: "superseded".into(), is_final: true, cut });
    assert!(job.take().iter().any(|a| matches!(a, Action::StopAll)));
}

fn rescue(job: &mut Job, ticket: u64, id: u64, part: Option<proto::PartWritten>) -> bool {
    let report = proto::RescueReport { executor_id: 0, generation: 1, phase: 1, id, part };
    job.event(Event::Rescue { ticket, report });
    let answer = job.actions.iter().find_map(|a| match a {
        Action::AnswerRescue { ticket: t, wanted } if *t == ticket => Some(*wanted),
        _ => None,
    });
    answer.unwrap()
}

fn killed(job: &mut Job, id: u32) {
    let executor = ExecutorId(id);
    job.event(Event::ProcessExited { executor, cause: Cause::Signal { signal: 9 }, said: None });
}

fn named(job: &mut Job) -> Option<String> {
    job.take().into_iter().find_map(|a| match a {
        Action::Fail(failure) => Some(failure.to_string()),
        _ => None,
    })
}

#[test] // CKP-7
fn the_snapshot_of_a_dead_ps_becomes_a_checkpoint() {
    let mut job = at_the_end();
    job.says(0, snapshot_at(1, 2));
    killed(&mut job, 0);
    assert!(rescue(&mut job, 1, 1, None), "it is still wanted");
    assert!(!rescue(&mut job, 2, 7, None), "of another snapshot nobody wants anything");
    for ticket in 3..6 {
        job.after(Duration::from_secs(2));
        assert!(rescue(&mut job, ticket, 1, None));
        assert_eq!(named(&mut job), None, "while it is being written, the job waits");
    }
    let Message::PartWritten(written) = part(1, 2) else { unreachable!() };
    rescue(&mut job, 6, 1, Some(written));
    let cut = job.cut().unwrap();
    assert_eq!((cut.step, cut.rows_total, cut.parts.len()), (GlobalStep(2), 64, 1));
    job.event(Event::CheckpointStored { step: GlobalStep(2), manifest: "m".into() });
    job.after(SETTLE);
    let cause = named(&mut job).unwrap();
    assert!(cause.contains("ps:0") && cause.contains("SIGKILL"), "{cause}");
}

#[test] // CKP-7
fn nobody_is_waited_for_who_cannot_write() {
    // Nobody calls.
    let mut job = at_the_end();
    job.says(0, snapshot_at(1, 2));
    killed(&mut job, 0);
    job.after(Duration::from_secs(1));
    assert_eq!(named(&mut job), None);
    job.after(RESCUE);
    assert!(named(&mut job).is_some());
    // Where the snapshot lies in the order of updates is not known.
    let mut job = at_the_end();
    killed(&mut job, 0);
    job.after(SETTLE);
    assert!(named(&mut job).is_some());
    assert!(!rescue(&mut job, 1, 1, None));
}

#[test] // CKP-7
fn a_snapshot_that_a_living_ps_writes_is_waited_for_when_a_worker_dies() {
    let mut job = Job::new(Shape { cluster_size: 4, ..SHAPE });
    (0..4).for_each(|id| job.register(id));
    job.start(96);
    for id in 1..4 {
        job.lease(id).unwrap();
    }
    job.commit(1, 0, 0, 32);
    job.says(1, finished()).says(2, finished()).says(3, finished());
    assert_eq!(asked(&mut job), Some(1));
    job.says(0, snapshot_at(1, 1));
    killed(&mut job, 2);
    job.after(Duration::from_secs(60));
    assert_eq!(named(&mut job), None);
    job.says(0, part(1, 1));
    assert_eq!(job.cut().unwrap().rows_total, 32);
    job.event(Event::CheckpointStored { step: GlobalStep(1), manifest: "m".into() });
    job.after(SETTLE);
    assert!(named(&mut job).unwrap().contains("worker:0"));
}
