//! Tests of the lease table: by hand, and against random schedules with deaths, drops and resumes.

use std::num::NonZeroU32;

use super::*;

fn fresh(epochs: u32, rows: Vec<Option<u64>>) -> LeaseTable {
    LeaseTable::new(epochs, rows, &CommittedRows::default(), None)
}

fn rows_of(grant: Grant) -> RowRange {
    match grant {
        Grant::Rows(range) => range,
        other => panic!("expected rows, got {other:?}"),
    }
}

#[test] // FED-2
fn workers_get_partitions_of_their_own_first_and_share_when_none_is_left() {
    let mut t = fresh(1, vec![None, None]);
    let a = rows_of(t.grant(0, 100, 2));
    let b = rows_of(t.grant(1, 100, 2));
    assert_eq!((a.partition, b.partition), (0, 1));
    assert_eq!(rows_of(t.grant(0, 100, 2)), RowRange { epoch: 0, partition: 0, start: 100, end: 200 });
    t.partition_end(1, 100);
    assert_eq!(rows_of(t.grant(1, 50, 2)), RowRange { epoch: 0, partition: 0, start: 200, end: 250 });
}

#[test] // SHF-1
fn partitions_are_begun_in_the_order_of_the_seed_whoever_asks() {
    let shuffle = Shuffle { seed: 5, block_rows: NonZeroU32::MIN };
    for workers in [1u32, 3] {
        let mut t = LeaseTable::new(2, vec![Some(10); 20], &CommittedRows::default(), Some(shuffle));
        for epoch in 0..2 {
            let begun: Vec<RowRange> = (0..20).map(|i| rows_of(t.grant(i % workers, 10, 1))).collect();
            let numbers: Vec<u32> = begun.iter().map(|r| r.partition).collect();
            assert_eq!(numbers, shuffle.partitions(epoch, 20));
            assert!(begun.iter().all(|r| r.epoch == epoch));
        }
    }
}

#[test] // FED-4
fn a_worker_waits_for_rows_that_may_return_and_ends_when_they_are_committed() {
    let mut t = fresh(1, vec![Some(32)]);
    let a = rows_of(t.grant(0, 100, 2));
    assert_eq!(t.grant(1, 100, 2), Grant::Wait);
    t.commit(0, a).unwrap();
    assert_eq!((t.grant(1, 100, 2), t.done()), (Grant::End, true));
}

#[test] // FED-3
fn rows_of_a_lost_worker_are_leased_again() {
    let mut t = fresh(1, vec![Some(100)]);
    let a = rows_of(t.grant(0, 60, 1));
    t.commit(0, RowRange { end: a.start + 10, ..a }).unwrap();
    t.release(0);
    let again = rows_of(t.grant(1, 1000, 1));
    assert_eq!((again.start, again.end), (a.start + 10, a.end));
    assert_eq!(t.commit(0, again), Err(CommitError::NotLeased { range: again, worker: 0 }));
}

#[test] // FED-1
fn committing_twice_is_refused() {
    let mut t = fresh(1, vec![Some(100)]);
    let a = rows_of(t.grant(0, 50, 1));
    t.commit(0, a).unwrap();
    assert!(t.commit(0, a).is_err());
    assert!(t.give_back(0, a).is_err());
}

#[test]
fn the_next_epoch_starts_while_the_tail_of_this_one_is_out() {
    let mut t = fresh(3, vec![Some(10)]);
    let first = rows_of(t.grant(0, 10, 2));
    let second = rows_of(t.grant(1, 10, 2));
    assert_eq!((first.epoch, second.epoch), (0, 1));
    assert_eq!(t.grant(0, 10, 2), Grant::Wait, "only two epochs are open at once");
    t.commit(1, second).unwrap();
    assert_eq!(t.complete_epochs(), 0, "epochs complete in order");
    t.commit(0, first).unwrap();
    assert_eq!(t.complete_epochs(), 2);
}

#[test]
fn data_without_rows_ends_at_once() {
    assert_eq!(fresh(2, vec![Some(0), Some(0)]).grant(0, 10, 1), Grant::End);
    assert_eq!(fresh(2, vec![]).grant(0, 10, 1), Grant::End);
    let mut t = fresh(2, vec![None]);
    rows_of(t.grant(0, 10, 1));
    t.partition_end(0, 0);
    assert_eq!(t.grant(0, 10, 1), Grant::End);
}

/// How often each row (epoch, partition, number) was committed.
type Seen = BTreeMap<(u32, u32, u64), u32>;

/// Small deterministic generator (xorshift64*), so that a failing seed can be run again.
struct Rng(u64);
impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

#[test] // FED-1, FED-2, FED-3
fn any_schedule_of_commits_deaths_drops_and_resumes_commits_each_row_once() {
    for seed in 1..=300u64 {
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let lengths: Vec<u64> = (0..1 + rng.below(4)).map(|_| rng.below(300)).collect();
        let epochs = 1 + rng.below(3) as u32;
        let known = rng.below(2) == 0;
        let hints = || lengths.iter().map(|l| known.then_some(*l)).collect::<Vec<_>>();
        let shuffle = (seed % 2 == 0).then_some(Shuffle { seed, block_rows: NonZeroU32::MIN });
        let mut table = LeaseTable::new(epochs, hints(), &CommittedRows::default(), shuffle);
        let mut held: Vec<(u32, RowRange)> = vec![];
        let mut seen = Seen::new();
        let mut saved: Option<(CommittedRows, Seen)> = None;
        for round in 0..100_000 {
            assert!(round < 99_999, "seed {seed} does not end");
            match rng.below(12) {
                0..=4 => {
                    let worker = rng.below(3) as u32;
                    if let Grant::Rows(mut range) = table.grant(worker, 1 + rng.below(80), 3) {
                        let length = lengths[range.partition as usize];
                        if range.end > length {
                            table.partition_end(range.partition, length);
                            for (_, r) in held.iter_mut().filter(|(_, r)| r.partition == range.partition) {
                                r.end = r.end.min(length).max(r.start);
                            }
                            held.retain(|(_, r)| r.rows() > 0);
                            range.end = length.max(range.start);
                        }
                        if range.rows() > 0 && range.start < length {
                            held.push((worker, range));
                        }
                    }
                }
                5..=8 if !held.is_empty() => {
                    let (worker, mut range) = held.swap_remove(rng.below(held.len() as u64) as usize);
                    if range.rows() > 1 && rng.below(2) == 0 {
                        let middle = range.start + range.rows() / 2;
                        held.push((worker, RowRange { start: middle, ..range }));
                        range.end = middle;
                    }
                    table.commit(worker, range).unwrap();
                    for row in range.start..range.end {
                        *seen.entry((range.epoch, range.partition, row)).or_default() += 1;
                    }
                }
                9 if !held.is_empty() => {
                    let (worker, range) = held.swap_remove(rng.below(held.len() as u64) as usize);
                    table.give_back(worker, range).unwrap();
                }
                10 if rng.below(10) == 0 => {
                    let worker = rng.below(3) as u32;
                    table.release(worker);
                    held.retain(|(w, _)| *w != worker);
                }
                11 if rng.below(20) == 0 => saved = Some((table.committed(), seen.clone())),
                11 if rng.below(40) == 0 => {
                    // The driver is killed and starts again from its last checkpoint.
                    let (rows, then) = saved.clone().unwrap_or_default();
                    table = LeaseTable::new(epochs, hints(), &rows, shuffle);
                    seen = then;
                    held.clear();
                }
                _ if table.done() => break,
                _ => {}
            }
        }
        let expected: u64 = lengths.iter().sum::<u64>() * u64::from(epochs);
        assert_eq!(seen.len() as u64, expected, "seed {seed}");
        assert!(seen.values().all(|n| *n == 1), "seed {seed}");
        assert_eq!(table.committed().complete_epochs, epochs, "seed {seed}");
    }
}

#[test] // FED-3: whoever scans has not heard yet where the partition ends
fn rows_beyond_the_end_return_into_nothing() {
    let mut table = LeaseTable::new(1, vec![None], &CommittedRows::default(), None);
    let rows = |start, end| RowRange { epoch: 0, partition: 0, start, end };
    assert_eq!(table.grant(0, 64, 2), Grant::Rows(rows(0, 64)));
    assert_eq!(table.grant(1, 64, 2), Grant::Rows(rows(64, 128)));
    assert_eq!(table.grant(2, 64, 2), Grant::Rows(rows(128, 192)));
    table.partition_end(0, 100);
    table.give_back(2, rows(128, 192)).unwrap();
    table.give_back(1, rows(64, 128)).unwrap();
    table.commit(0, rows(0, 64)).unwrap();
    assert!(!table.done());
    for (start, end) in [(64, 96), (96, 100)] {
        assert_eq!(table.grant(0, 64, 2), Grant::Rows(rows(start, end)));
        table.commit(0, rows(start, end)).unwrap();
    }
    assert!(table.done());
    // The epoch is closed, and still somebody's lease beyond its end comes back.
    table.give_back(2, rows(100, 192)).unwrap();
    assert!(table.give_back(2, rows(90, 100)).is_err());
}
