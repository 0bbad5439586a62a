//! Tests of leases of micro-batches: by hand, and against random schedules with deaths, returns and resumes.

use std::collections::BTreeMap;

use super::*;
use crate::rows::{CommittedRows, Shuffle};

const THREE: NonZeroU32 = NonZeroU32::new(3).unwrap();

fn table(epochs: u32, rows: &[u64], committed: &CommittedRows, done: u64) -> LeaseTable {
    let rows = rows.iter().copied().map(Some).collect();
    LeaseTable::new(epochs, rows, committed, None).in_steps_of(THREE, committed.cut.map(|c| c.rows), GlobalStep(done))
}

fn got(grant: Grant) -> (RowRange, MicroBatch) {
    match grant {
        Grant::MicroBatch(range, place) => (range, place),
        other => panic!("expected a micro-batch, got {other:?}"),
    }
}

fn place(step: u64, index: u32, of: u32) -> MicroBatch {
    MicroBatch { step: GlobalStep(step), index, of }
}

#[test] // DET-1
fn micro_batches_come_in_order_and_one_of_the_next_step_to_each() {
    let mut t = table(1, &[100], &CommittedRows::default(), 0);
    let places: Vec<MicroBatch> = (0..4).map(|i| got(t.grant(i % 2, 10, 2)).1).collect();
    assert_eq!(places, [place(1, 0, 3), place(1, 1, 3), place(1, 2, 3), place(2, 0, 3)]);
    assert_eq!(t.grant(1, 10, 2), Grant::Wait, "it has one of the next step");
    let (range, ahead) = got(t.grant(0, 10, 2));
    assert_eq!((range.start, range.end, ahead), (40, 50, place(2, 1, 3)));
}

#[test] // FED-3, FED-4
fn a_micro_batch_that_comes_back_is_leased_before_those_of_the_next_step() {
    let mut t = table(1, &[60], &CommittedRows::default(), 0);
    let first: Vec<RowRange> = (0..3).map(|worker| got(t.grant(worker, 10, 3)).0).collect();
    assert_eq!(got(t.grant(0, 10, 3)).1, place(2, 0, 3));
    assert_eq!(t.grant(0, 10, 3), Grant::Wait);
    // In two pieces, as a scan had cut them.
    t.give_back(1, RowRange { end: 14, ..first[1] }).unwrap();
    assert_eq!(t.grant(0, 10, 3), Grant::Wait, "half of it is still out");
    t.give_back(1, RowRange { start: 14, ..first[1] }).unwrap();
    assert_eq!(got(t.grant(0, 10, 3)), (first[1], place(1, 1, 3)));
    t.release(2);
    assert_eq!(got(t.grant(1, 10, 3)), (first[2], place(1, 2, 3)));
}

#[test]
fn a_batch_of_another_size_is_refused() {
    let mut t = table(1, &[100], &CommittedRows::default(), 0);
    let (range, _) = got(t.grant(0, 10, 1));
    let misfit = Misfit::Size { asked: 11, fixed: 10 };
    assert_eq!(t.grant(1, 11, 1), Grant::Misfit(misfit.clone()));
    t.commit(0, range).unwrap();
    let saved = t.committed();
    assert_eq!(saved.cut, Some(Cut { micro_batches: THREE, rows: NonZeroU64::new(10).unwrap() }));
    assert_eq!(table(1, &[100], &saved, 0).grant(0, 11, 1), Grant::Misfit(misfit));
}

#[test]
fn rows_that_are_no_whole_steps_are_refused() {
    let mut t = LeaseTable::new(2, vec![Some(100)], &CommittedRows::default(), None);
    let Grant::Rows(range) = t.grant(0, 40, 1) else { panic!("rows were to be there") };
    t.commit(0, range).unwrap();
    let foreign = |step: u64| {
        Grant::Misfit(Misfit::Foreign {
            step: GlobalStep(step),
            cut: Cut { micro_batches: THREE, rows: NonZeroU64::new(10).unwrap() },
        })
    };
    for step in [0, 1, 2, 5] {
        assert_eq!(table(2, &[100], &t.committed(), step).grant(0, 10, 1), foreign(step));
    }
    let unknown = LeaseTable::new(1, vec![Some(3), None], &CommittedRows::default(), None);
    let mut unknown = unknown.in_steps_of(THREE, None, GlobalStep(0));
    assert_eq!(unknown.grant(0, 10, 1), Grant::Misfit(Misfit::Unknown { partition: 1 }));
}

#[test]
fn data_without_rows_ends_at_once() {
    assert_eq!(table(2, &[0, 0], &CommittedRows::default(), 0).grant(0, 10, 1), Grant::End);
    assert_eq!(table(2, &[], &CommittedRows::default(), 0).grant(0, 10, 1), Grant::End);
}

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

#[test] // DET-1, FED-1, FED-3, FED-4
fn any_schedule_gives_the_same_steps() {
    for seed in 1..=300u64 {
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let rows: Vec<u64> = (0..1 + rng.below(5)).map(|_| rng.below(60)).collect();
        let epochs = 1 + rng.below(3) as u32;
        let size = 1 + rng.below(12);
        let micro_batches = NonZeroU32::new(1 + rng.below(5) as u32).unwrap();
        let shuffle = (seed % 2 == 0).then_some(Shuffle { seed, block_rows: NonZeroU32::MIN });
        let cut = Cut { micro_batches, rows: NonZeroU64::new(size).unwrap() };
        let mut expected = Steps::new(cut, epochs, rows.clone(), shuffle);
        let total = expected.per_epoch() * u64::from(epochs);
        let new = |committed: &CommittedRows, done: u64| {
            let known = rows.iter().copied().map(Some).collect();
            let table = LeaseTable::new(epochs, known, committed, shuffle);
            table.in_steps_of(micro_batches, committed.cut.map(|c| c.rows), GlobalStep(done))
        };
        let mut table = new(&CommittedRows::default(), 0);
        // What each micro-batch of the step at hand and of the next is held by, and whether it has been computed.
        let mut held: BTreeMap<MicroBatch, (u32, RowRange, bool)> = BTreeMap::new();
        let (mut step, mut saved) = (0, (CommittedRows::default(), 0));
        for round in 0..200_000 {
            assert!(round < 199_999, "seed {seed} does not end");
            let worker = rng.below(4) as u32;
            match rng.below(20) {
                0..=8 => match table.grant(worker, size, 4) {
                    Grant::MicroBatch(range, place) => {
                        let ranges = expected.of(place.step);
                        assert_eq!((ranges[place.index as usize], ranges.len()), (range, place.of as usize));
                        assert!(place.step.0 == step + 1 || place.step.0 == step + 2, "{place:?} after {step}");
                        assert!(held.insert(place, (worker, range, false)).is_none(), "seed {seed}: FED-2");
                    }
                    Grant::End => break,
                    Grant::Wait => assert!(held.keys().any(|p| p.step.0 == step + 1), "seed {seed}: FED-4"),
                    other => panic!("{other:?}"),
                },
                9..=16 => {
                    // A worker computes in order, and only what the parameters are there for.
                    let next = held.iter_mut().find(|(_, (w, _, computed))| *w == worker && !computed);
                    if let Some((place, entry)) = next
                        && place.step.0 == step + 1
                    {
                        entry.2 = true;
                    }
                    let whole: Vec<MicroBatch> = held
                        .iter()
                        .filter(|(p, (_, _, computed))| p.step.0 == step + 1 && *computed)
                        .map(|(p, _)| *p)
                        .collect();
                    if whole.first().is_some_and(|p| p.of as usize == whole.len()) {
                        for place in whole {
                            let (worker, range, _) = held.remove(&place).unwrap();
                            table.commit(worker, range).unwrap();
                        }
                        step += 1;
                    }
                }
                17 if !held.is_empty() => {
                    let place = *held.keys().nth(rng.below(held.len() as u64) as usize).unwrap();
                    let (worker, range, _) = held.remove(&place).unwrap();
                    table.give_back(worker, range).unwrap();
                }
                18 if rng.below(5) == 0 => {
                    table.release(worker);
                    held.retain(|_, (w, _, _)| *w != worker);
                }
                19 if rng.below(5) == 0 => saved = (table.committed(), step),
                19 if rng.below(20) == 0 => {
                    // The driver is killed and starts again from its last checkpoint.
                    table = new(&saved.0, saved.1);
                    step = saved.1;
                    held.clear();
                }
                _ => {}
            }
        }
        assert_eq!((step, table.done()), (total, true), "seed {seed}");
        assert_eq!(table.committed().complete_epochs, epochs, "seed {seed}");
    }
}
