//! A query that several executors write: when it is over, what counts of it, and what its failure is called.

use super::tests::Job;
use super::*;
use tfos_core::proto::from_executor::Message;

/// Chief (executor 1) and worker (executor 2) stage a query of so many partitions.
fn staging(partitions: u32) -> Job {
    let mut job = Job::formed();
    let spec = PhaseSpec {
        kind: PhaseKind::Stage,
        partition_rows: vec![None],
        staged_partitions: Some(partitions),
        ..Job::spec(0)
    };
    job.event(Event::StartPhase(Box::new(spec)));
    job.take();
    job
}

fn whole(partition: u32, name: &str) -> Message {
    let file = proto::StagedFile { name: name.into(), rows: 10, bytes: 100, crc32c: 1 };
    Message::Staged(proto::Staged { phase: 1, files: vec![file], whole: Some(partition) })
}

fn finished() -> Message {
    Message::NodeFinished(proto::NodeFinished { phase: 1 })
}

#[test] // STG-2
fn a_query_is_over_when_every_partition_is_whole() {
    let mut job = staging(2);
    job.says(2, whole(1, "b"));
    assert!(job.sent(1).is_empty(), "half a query is not over");
    job.says(1, whole(0, "a"));
    let actions = job.take();
    let told = |executor: u32| {
        actions.iter().any(|a| {
            matches!(a, Action::Send { executor: to, message: from_driver::Message::EndOfFeed(_) } if *to == ExecutorId(executor))
        })
    };
    assert!(told(1) && told(2) && !told(0), "those that train are told, and no ps");
    job.says(1, finished()).says(2, finished()).says(1, finished()).says(2, finished());
    let outcome = job.take().into_iter().find_map(|a| if let Action::PhaseDone(o) = a { Some(o) } else { None });
    let outcome = outcome.unwrap();
    assert_eq!((outcome.end, outcome.rows, outcome.staged.len()), (PhaseEnd::Complete, 20, 2));
}

#[test] // STG-2
fn a_partition_that_is_written_twice_ends_the_attempt() {
    let mut job = staging(3);
    job.says(1, whole(0, "a")).says(2, whole(0, "b"));
    let actions = job.after(SETTLE).take();
    assert!(actions.iter().any(|a| matches!(a, Action::Fail(f) if f.to_string().contains("written twice"))));
}

#[test] // ERR-1
fn what_the_engine_says_is_the_cause_only_where_nobody_knows_better() {
    let failed = |reason: &str| Event::QueryFailed { reason: reason.into() };
    let cause =
        |actions: Vec<Action>| actions.into_iter().find_map(|a| if let Action::Fail(f) = a { Some(f) } else { None });
    let mut job = staging(3);
    job.event(failed("no such operator"));
    let alone = cause(job.after(SETTLE).take()).unwrap().to_string();
    assert!(alone.contains("the query engine gave up: no such operator"), "{alone}");

    let mut job = staging(3);
    job.event(failed("cannot fetch from worker:0"));
    job.event(Event::StreamClosed { connection: 3, reason: "the control stream ended".into() });
    assert_eq!(cause(job.after(SETTLE).take()).unwrap().executor_id, ExecutorId(2));

    let mut job = staging(3);
    job.says(1, whole(0, "a")).says(2, whole(1, "b")).says(2, whole(2, "c")).take();
    for from in [1, 2, 1, 2] {
        job.says(from, finished());
    }
    job.event(failed("too late"));
    assert!(cause(job.after(SETTLE).take()).is_none(), "the phase was over");
}
