//! Ledgers on a real file system with a lease planted twice, dropped, or where none belongs: each is named, with the
//! updates and the segments that say so.

use std::time::Instant;

use tfos_core::ids::{Generation, GlobalStep};
use tfos_core::rows::RangeSet;

use super::*;
use crate::event::CommitRecord;
use crate::ledger::write_segment;

fn range(epoch: u32, partition: u32, start: u64, end: u64) -> RowRange {
    RowRange { epoch, partition, start, end }
}

fn commit(global_step: u64, worker: u32, ranges: Vec<RowRange>) -> CommitRecord {
    CommitRecord { global_step, worker, loss: 0.5, ranges, at: Instant::now() }
}

/// Two segments of an epoch of two partitions with 100 and 50 rows, and of the beginning of the next epoch.
fn commits() -> [Vec<CommitRecord>; 2] {
    let first =
        vec![commit(1, 0, vec![range(0, 0, 0, 60)]), commit(2, 1, vec![range(0, 1, 0, 50)]), commit(3, 1, vec![])];
    let second =
        vec![commit(4, 0, vec![range(0, 0, 60, 100), range(1, 1, 0, 10)]), commit(5, 1, vec![range(1, 1, 20, 30)])];
    [first, second]
}

fn committed() -> CommittedRows {
    let seen = RangeSet::from(vec![(0, 10), (20, 30)]);
    CommittedRows {
        complete_epochs: 1,
        partition_rows: vec![Some(100), Some(50)],
        partial: [(1, [(1, seen)].into())].into(),
        cut: None,
    }
}

async fn audited(segments: [Vec<CommitRecord>; 2]) -> (Audit, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let dir = ModelDir::open(&folder.path().display().to_string()).unwrap();
    let mut paths = vec![];
    for (commits, (after, upto)) in segments.iter().zip([(0, 3), (3, 5)]) {
        let path = write_segment(&dir, Generation(1), GlobalStep(after), GlobalStep(upto), commits).await.unwrap();
        paths.push(path);
    }
    (audit(&dir, &paths, &committed()).await.unwrap(), paths)
}

#[tokio::test] // LED-1
async fn a_ledger_without_a_fault_is_clean() {
    let (audit, _) = audited(commits()).await;
    assert!(audit.is_clean(), "{audit:?}");
    assert_eq!((audit.rows, audit.leases, audit.global_step), (170, 6, 5));
    let epochs: Vec<_> = audit.epochs.iter().map(|e| (e.epoch, e.rows, e.complete)).collect();
    assert_eq!(epochs, [(0, 150, true), (1, 20, false)]);
}

#[tokio::test] // LED-1
async fn a_lease_committed_twice_is_named_with_both_updates_and_their_segments() {
    let mut planted = commits();
    planted[1].push(commit(5, 1, vec![range(0, 0, 50, 70)]));
    let (audit, paths) = audited(planted).await;
    let [first, _] = &audit.epochs[..] else { panic!("{audit:?}") };
    let [twice] = &first.twice[..] else { panic!("{audit:?}") };
    assert_eq!(twice.range, range(0, 0, 50, 70));
    let updates: Vec<_> =
        twice.updates.iter().map(|u| (u.global_step, u.worker, u.segment.as_str(), u.range)).collect();
    let wanted = [
        (1, 0, paths[0].as_str(), range(0, 0, 0, 60)),
        (4, 0, &paths[1], range(0, 0, 60, 100)),
        (5, 1, &paths[1], range(0, 0, 50, 70)),
    ];
    assert_eq!(updates, wanted);
    assert!(first.missing.is_empty() && first.unexpected.is_empty());
}

#[tokio::test] // LED-1
async fn a_dropped_lease_and_one_of_no_row_are_named() {
    let mut planted = commits();
    planted[0].remove(1);
    planted[1].push(commit(5, 1, vec![range(0, 0, 100, 101), range(1, 1, 40, 44)]));
    let (audit, _) = audited(planted).await;
    assert_eq!(audit.epochs[0].missing, [range(0, 1, 0, 50)]);
    assert_eq!(audit.epochs[0].unexpected, [range(0, 0, 100, 101)]);
    assert_eq!(audit.epochs[1].unexpected, [range(1, 1, 40, 44)]);
    assert!(audit.epochs.iter().all(|e| e.twice.is_empty() && e.more == 0));
}

#[tokio::test]
async fn a_segment_that_is_gone_or_broken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = ModelDir::open(&folder.path().display().to_string()).unwrap();
    let path = write_segment(&dir, Generation(1), GlobalStep(0), GlobalStep(3), &commits()[0]).await.unwrap();
    let file = folder.path().join(&path);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = audit(&dir, std::slice::from_ref(&path), &committed()).await.unwrap_err();
    assert!(error.to_string().contains(&path), "{error}");
    let error = audit(&dir, &["ledger/none.parquet".into()], &committed()).await.unwrap_err();
    assert!(error.to_string().contains("ledger/none.parquet"), "{error}");
}
