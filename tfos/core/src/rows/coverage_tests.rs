//! A log against a model that counts each row by itself: random logs, with leases planted twice and dropped.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::*;

const EPOCHS: u32 = 3;

struct Random(ChaCha8Rng);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0.next_u64() % n.max(1)
    }
}

/// How often each row was applied, and whether a checkpoint has seen it.
#[derive(Default)]
struct Model(BTreeMap<(u32, u32, u64), (u32, bool)>);

impl Model {
    fn of(log: &[RowRange], committed: &CommittedRows) -> Self {
        let mut model = Self::default();
        for range in log {
            for row in range.start..range.end {
                model.0.entry((range.epoch, range.partition, row)).or_default().0 += 1;
            }
        }
        let all = |(partition, rows): (usize, &Option<u64>)| (partition as u32, 0, rows.unwrap_or(0));
        for epoch in 0..committed.complete_epochs {
            for (partition, start, end) in committed.partition_rows.iter().enumerate().map(all) {
                model.see(epoch, partition, start, end);
            }
        }
        for (epoch, partitions) in &committed.partial {
            for (partition, ranges) in partitions {
                ranges.iter().for_each(|(start, end)| model.see(*epoch, *partition, start, end));
            }
        }
        model
    }

    fn see(&mut self, epoch: u32, partition: u32, start: u64, end: u64) {
        (start..end).for_each(|row| self.0.entry((epoch, partition, row)).or_default().1 = true);
    }

    fn rows(&self, wanted: impl Fn(u32, bool) -> bool) -> Vec<(u32, u32, u64)> {
        self.0.iter().filter(|(_, (times, seen))| wanted(*times, *seen)).map(|(row, _)| *row).collect()
    }
}

fn each_row<'a>(ranges: impl Iterator<Item = &'a RowRange>) -> Vec<(u32, u32, u64)> {
    ranges.flat_map(|r| (r.start..r.end).map(|row| (r.epoch, r.partition, row))).collect()
}

/// The rows of a partition cut at random.
fn cut(random: &mut Random, epoch: u32, partition: u32, rows: u64) -> Vec<RowRange> {
    let (mut start, mut cut) = (0, vec![]);
    while start < rows {
        let end = (start + 1 + random.below(9)).min(rows);
        cut.push(RowRange { epoch, partition, start, end });
        start = end;
    }
    cut
}

/// A log without a fault, in random order, and the checkpoint that belongs to it: the last epoch is not complete.
fn whole(random: &mut Random) -> (Vec<RowRange>, CommittedRows) {
    let partition_rows: Vec<Option<u64>> = (0..1 + random.below(4)).map(|_| Some(random.below(60))).collect();
    let mut committed = CommittedRows { complete_epochs: EPOCHS - 1, partition_rows, ..CommittedRows::default() };
    let mut log = vec![];
    for epoch in 0..EPOCHS {
        for (partition, rows) in committed.partition_rows.clone().into_iter().enumerate() {
            let partition = partition as u32;
            let mut ranges = cut(random, epoch, partition, rows.unwrap_or(0));
            if epoch == EPOCHS - 1 {
                ranges.retain(|_| random.below(2) == 0);
                let seen = committed.partial.entry(epoch).or_default().entry(partition).or_default();
                ranges.iter().for_each(|r| assert!(seen.insert(r.start, r.end)));
            }
            log.extend(ranges);
        }
    }
    for i in (1..log.len()).rev() {
        log.swap(i, random.below(i as u64 + 1) as usize);
    }
    (log, committed)
}

fn checked(log: &[RowRange], committed: &CommittedRows, pieces: usize) -> Vec<EpochFindings> {
    let mut coverage = Coverage::default();
    for piece in log.chunks(log.len().div_ceil(pieces).max(1)) {
        coverage.add(&coalesce(piece.to_vec()));
    }
    let found = coverage.compare(committed);
    let model = Model::of(log, committed);
    let flat = |of: fn(&EpochFindings) -> &Vec<RowRange>| each_row(found.iter().flat_map(of));
    assert_eq!(flat(|e| &e.twice), model.rows(|times, _| times > 1));
    assert_eq!(flat(|e| &e.missing), model.rows(|times, seen| seen && times == 0));
    assert_eq!(flat(|e| &e.unexpected), model.rows(|times, seen| !seen && times > 0));
    assert_eq!(coverage.rows(), log.iter().map(RowRange::rows).sum::<u64>());
    found
}

fn is_clean(found: &[EpochFindings]) -> bool {
    found.iter().all(|e| e.twice.is_empty() && e.missing.is_empty() && e.unexpected.is_empty())
}

#[test] // LED-1
fn what_is_found_is_what_counting_rows_one_by_one_finds() {
    for seed in 0..300 {
        let mut random = Random(ChaCha8Rng::seed_from_u64(seed));
        let (log, committed) = whole(&mut random);
        let pieces = 1 + random.below(5) as usize;
        assert!(is_clean(&checked(&log, &committed, pieces)), "seed {seed}");
        if log.is_empty() {
            continue;
        }
        // A lease twice, one dropped, one shifted into its neighbour, and some of each.
        let at = |random: &mut Random, n: usize| random.below(n as u64) as usize;
        let mut twice = log.clone();
        twice.push(log[at(&mut random, log.len())]);
        assert!(!is_clean(&checked(&twice, &committed, pieces)), "seed {seed}");
        let mut dropped = log.clone();
        dropped.swap_remove(at(&mut random, log.len()));
        assert!(!is_clean(&checked(&dropped, &committed, pieces)), "seed {seed}");
        let mut shifted = log.clone();
        let one = at(&mut random, log.len());
        shifted[one].start += 1;
        shifted[one].end += 1;
        assert!(!is_clean(&checked(&shifted, &committed, pieces)), "seed {seed}");
        let mut any = log;
        for _ in 0..random.below(8) {
            let one = at(&mut random, any.len());
            match random.below(3) {
                0 => any.push(any[one]),
                1 if any.len() > 1 => drop(any.swap_remove(one)),
                _ => any[one].end += random.below(20),
            }
        }
        checked(&any, &committed, pieces);
    }
}

#[test]
fn an_epoch_that_the_log_does_not_know_is_missing_whole() {
    let committed = CommittedRows { complete_epochs: 2, partition_rows: vec![Some(5)], ..CommittedRows::default() };
    let mut coverage = Coverage::default();
    coverage.add(&[RowRange { epoch: 0, partition: 0, start: 0, end: 5 }]);
    let found = coverage.compare(&committed);
    assert_eq!(found.iter().map(|e| e.missing.len()).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(found[1].missing, [RowRange { epoch: 1, partition: 0, start: 0, end: 5 }]);
}

#[test]
fn ranges_that_follow_one_another_are_joined_and_those_that_overlap_are_not() {
    let range = |start, end| RowRange { epoch: 0, partition: 0, start, end };
    let joined = coalesce(vec![range(10, 20), range(0, 10), range(5, 15), range(20, 20), range(20, 30)]);
    assert_eq!(joined, [range(0, 10), range(5, 15), range(10, 30)]);
    assert_eq!(joined.iter().map(RowRange::rows).sum::<u64>(), 40, "a row that is there twice counts twice");
}
