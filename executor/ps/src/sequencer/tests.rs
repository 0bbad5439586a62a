//! The invariants, one situation each.

use super::*;

/// A sequencer that is initialised at step 0, with all workers joined.
pub(super) struct Fixture {
    pub(super) sequencer: Sequencer,
    shards: usize,
}

impl Fixture {
    pub(super) fn new(mode: Mode, shards: usize, workers: u32) -> Fixture {
        let mut fixture = Fixture { sequencer: Sequencer::new(shards, workers), shards };
        fixture.event(Event::Initialised { mode, step: 0, rounds: 0 });
        for worker in 0..workers {
            fixture.event(Event::WorkerJoined(worker));
        }
        fixture
    }

    pub(super) fn sync(replicas_to_aggregate: u32, workers: u32) -> Fixture {
        Fixture::new(Mode::Sync { replicas_to_aggregate }, 2, workers)
    }

    /// What was decided, without the indices.
    pub(super) fn event(&mut self, event: Event) -> Vec<DecisionKind> {
        self.all(event).0
    }

    pub(super) fn all(&mut self, event: Event) -> (Vec<DecisionKind>, Vec<Notice>) {
        let (mut kinds, mut notices) = (Vec::new(), Vec::new());
        for action in self.sequencer.on_event(event) {
            match action {
                Action::Decide(decision) => kinds.push(decision.kind),
                Action::Emit(notice) => notices.push(notice),
            }
        }
        (kinds, notices)
    }

    pub(super) fn meta(&mut self, worker: u32, seq: u64, base_step: u64, rows: u64) -> Vec<DecisionKind> {
        let leases = vec![worker as u8, seq as u8];
        self.event(Event::PushMeta(PushMeta {
            worker,
            seq,
            base_step,
            rows,
            loss: 0.5,
            leases,
            buffers: false,
            place: None,
        }))
    }

    pub(super) fn staged(&mut self, shard: usize, worker: u32, seq: u64, base_step: u64) -> Vec<DecisionKind> {
        self.event(Event::Staged { shard, worker, seq, base_step })
    }

    /// Everything of a push; gives what the last event decided.
    pub(super) fn push(&mut self, worker: u32, seq: u64, base_step: u64) -> Vec<DecisionKind> {
        assert_eq!(self.meta(worker, seq, base_step, 10), []);
        (0..self.shards).fold(Vec::new(), |earlier, shard| {
            assert_eq!(earlier, []);
            self.staged(shard, worker, seq, base_step)
        })
    }
}

fn apply(step: u64, parts: &[(u32, u64, f32)]) -> DecisionKind {
    let parts = parts.iter().map(|&(worker, seq, weight)| Part { worker, seq, weight }).collect();
    DecisionKind::Apply { step, parts, totals: vec![], held: false }
}

fn dropped(worker: u32, seq: u64) -> DecisionKind {
    DecisionKind::Drop { worker, seq }
}

#[test] // PS-1
fn nothing_is_applied_before_every_shard_has_all_of_it() {
    let mut f = Fixture::new(Mode::Async, 3, 1);
    assert_eq!(f.staged(2, 0, 1, 0), []);
    assert_eq!(f.meta(0, 1, 0, 10), []);
    assert_eq!(f.staged(0, 0, 1, 0), []);
    assert_eq!(f.staged(1, 0, 1, 0), [apply(1, &[(0, 1, 1.0)])]);
}

#[test] // PS-1, PS-4
fn a_worker_lost_in_mid_push_is_dropped_once_and_its_leases_go_back() {
    let mut f = Fixture::new(Mode::Async, 2, 2);
    f.meta(0, 1, 0, 10);
    f.staged(0, 0, 1, 0);
    let (kinds, notices) = f.all(Event::WorkerLost(0));
    assert_eq!(kinds, [dropped(0, 1)]);
    let reason = DropReason::WorkerGone;
    assert_eq!(notices, [Notice::Dropped { worker: 0, seq: 1, leases: vec![0, 1], reason }]);
    assert_eq!(f.staged(1, 0, 1, 0), [], "its last slice came too late");
    assert_eq!(f.staged(1, 0, 2, 0), [dropped(0, 2)], "a later push is dropped at first sight");
    assert_eq!(f.staged(0, 0, 2, 0), []);
}

#[test] // PS-2
fn decisions_are_numbered_without_gaps() {
    let mut f = Fixture::new(Mode::Async, 1, 2);
    let events = [
        Event::SnapshotRequested { id: 7 },
        Event::Staged { shard: 0, worker: 0, seq: 1, base_step: 0 },
        Event::WorkerLost(0),
        Event::SnapshotRequested { id: 8 },
    ];
    let actions = events.into_iter().flat_map(|event| f.sequencer.on_event(event));
    let indices = actions.filter_map(|action| if let Action::Decide(d) = action { Some(d.index) } else { None });
    assert_eq!(indices.collect::<Vec<_>>(), [0, 1, 2]);
}

#[test] // PS-3
fn sync_averages_by_rows_and_drops_what_is_stale() {
    let mut f = Fixture::sync(2, 3);
    f.meta(2, 1, 0, 30);
    f.staged(0, 2, 1, 0);
    assert_eq!(f.staged(1, 2, 1, 0), []);
    assert_eq!(f.push(0, 1, 0), [apply(1, &[(0, 1, 0.25), (2, 1, 0.75)])], "in order of the workers, not of arrival");
    assert_eq!(f.push(1, 1, 0), [dropped(1, 1)], "the backup worker was too slow");
    assert_eq!(f.push(1, 2, 1), []);
    assert_eq!(f.push(2, 2, 1), [apply(2, &[(1, 2, 0.5), (2, 2, 0.5)])]);
}

#[test] // PS-3
fn the_oldest_base_of_any_slice_counts() {
    let mut f = Fixture::sync(1, 1);
    f.push(0, 1, 0);
    f.meta(0, 2, 1, 10);
    f.staged(0, 0, 2, 1);
    assert_eq!(f.staged(1, 0, 2, 0), [dropped(0, 2)]);
}

#[test] // PS-4
fn repeated_reports_change_nothing() {
    let mut f = Fixture::new(Mode::Async, 2, 1);
    f.meta(0, 1, 0, 10);
    f.staged(0, 0, 1, 0);
    assert_eq!(f.staged(0, 0, 1, 0), []);
    assert_eq!(f.staged(1, 0, 1, 0), [apply(1, &[(0, 1, 1.0)])]);
    assert_eq!(f.staged(1, 0, 1, 0), []);
    assert_eq!(f.meta(0, 1, 0, 10), []);
}

#[test] // PS-4
fn a_newer_push_gives_up_the_older_one() {
    let mut f = Fixture::new(Mode::Async, 2, 1);
    f.staged(1, 0, 1, 0);
    assert_eq!(f.meta(0, 2, 0, 10), [dropped(0, 1)]);
    assert_eq!(f.staged(0, 0, 1, 0), []);
    f.staged(0, 0, 2, 0);
    assert_eq!(f.staged(1, 0, 2, 0), [apply(1, &[(0, 2, 1.0)])]);
}

#[test] // PS-5
fn nobody_waits_for_an_idle_finished_or_dead_worker() {
    for departure in [Event::WorkerIdle(1), Event::WorkerLeft(1), Event::WorkerLost(1)] {
        let mut f = Fixture::sync(2, 2);
        assert_eq!(f.push(0, 1, 0), []);
        assert_eq!(f.event(departure), [apply(1, &[(0, 1, 1.0)])]);
        assert_eq!(f.push(0, 2, 1), [apply(2, &[(0, 2, 1.0)])]);
    }
}

#[test] // PS-5
fn a_worker_with_rows_again_counts_again() {
    let mut f = Fixture::sync(2, 2);
    f.event(Event::WorkerIdle(1));
    f.event(Event::WorkerActive(1));
    assert_eq!(f.push(0, 1, 0), []);
    assert_eq!(f.push(1, 1, 0), [apply(1, &[(0, 1, 0.5), (1, 1, 0.5)])]);
    f.event(Event::WorkerIdle(1));
    f.meta(1, 2, 1, 10);
    assert_eq!(f.push(0, 2, 1), [], "a push says by itself that there are rows");
}

#[test] // PS-5
fn a_worker_that_never_came_is_waited_for_until_it_is_declared_lost() {
    let mut f = Fixture { sequencer: Sequencer::new(1, 2), shards: 1 };
    f.event(Event::Initialised { mode: Mode::Sync { replicas_to_aggregate: 2 }, step: 0, rounds: 0 });
    f.event(Event::WorkerJoined(0));
    assert_eq!(f.push(0, 1, 0), []);
    assert_eq!(f.event(Event::WorkerLost(1)), [apply(1, &[(0, 1, 1.0)])]);
}

#[test] // PS-5
fn a_worker_that_joins_again_is_waited_for_from_its_first_push() {
    let mut f = Fixture::sync(2, 2);
    f.event(Event::WorkerLost(1));
    f.event(Event::WorkerJoined(1));
    assert_eq!(f.push(0, 1, 0), [apply(1, &[(0, 1, 1.0)])]);
    assert_eq!(f.push(1, 1 << 32, 0), [dropped(1, 1 << 32)]);
    assert_eq!(f.push(0, 2, 1), []);
    assert_eq!(f.push(1, (1 << 32) + 1, 1), [apply(2, &[(0, 2, 0.5), (1, (1 << 32) + 1, 0.5)])]);
}

#[test]
fn after_the_last_step_everything_is_dropped() {
    let mut f = Fixture::new(Mode::Async, 1, 2);
    f.event(Event::MaxSteps(Some(1)));
    assert_eq!(f.push(0, 1, 0), [apply(1, &[(0, 1, 1.0)])]);
    assert!(f.sequencer.is_finished());
    assert_eq!(f.push(1, 1, 0), [dropped(1, 1)]);
    assert_eq!(f.event(Event::SnapshotRequested { id: 3 }), [DecisionKind::Snapshot { id: 3, step: 1 }]);
    f.event(Event::MaxSteps(None));
    assert_eq!(f.push(1, 2, 1), [apply(2, &[(1, 2, 1.0)])]);
    f.event(Event::Stop);
    assert_eq!(f.push(1, 3, 2), [dropped(1, 3)]);
}

#[test]
fn stopping_releases_those_who_wait() {
    let mut f = Fixture::sync(2, 2);
    f.push(0, 1, 0);
    assert_eq!(f.event(Event::Stop), [dropped(0, 1)]);
}

#[test]
fn pushes_without_rows_weigh_the_same() {
    let mut f = Fixture::sync(2, 2);
    for worker in 0..2 {
        f.meta(worker, 1, 0, 0);
        f.staged(0, worker, 1, 0);
    }
    f.staged(1, 0, 1, 0);
    assert_eq!(f.staged(1, 1, 1, 0), [apply(1, &[(0, 1, 0.5), (1, 1, 0.5)])]);
}

/// Two workers, three shards, two rounds of measuring before each update.
fn measured(mode: Mode) -> Fixture {
    let mut fixture = Fixture { sequencer: Sequencer::new(3, 2), shards: 3 };
    fixture.event(Event::Initialised { mode, step: 0, rounds: 2 });
    fixture.event(Event::WorkerJoined(0));
    fixture.event(Event::WorkerJoined(1));
    fixture
}

impl Fixture {
    fn sums(&mut self, shard: usize, step: u64, round: u32, sums: &[f64]) -> Vec<DecisionKind> {
        self.event(Event::Measured { shard, step, round, sums: sums.to_vec() })
    }
}

fn measure(step: u64, round: u32, parts: &[(u32, u64, f32)], totals: &[f64]) -> DecisionKind {
    let DecisionKind::Apply { parts, .. } = apply(step, parts) else { unreachable!() };
    DecisionKind::Measure { step, round, parts, totals: totals.to_vec() }
}

#[test] // PS-1, PS-2
fn an_update_is_applied_when_every_shard_has_measured_every_round() {
    let mut f = measured(Mode::Async);
    assert_eq!(f.push(0, 1, 0), [measure(1, 0, &[(0, 1, 1.0)], &[])]);
    assert_eq!(f.push(1, 1, 0), [], "one at a time");
    assert_eq!(f.sums(2, 1, 0, &[0.25]), []);
    assert_eq!(f.sums(2, 1, 0, &[0.25]), [], "said twice");
    assert_eq!(f.sums(0, 1, 0, &[4.0]), []);
    assert_eq!(f.sums(1, 1, 0, &[2.0]), [measure(1, 1, &[(0, 1, 1.0)], &[6.25])]);
    assert_eq!(f.sums(1, 1, 0, &[2.0]), [], "of the round before");
    f.sums(0, 1, 1, &[1.0, 10.0]);
    f.sums(1, 1, 1, &[2.0, 20.0]);
    let parts = vec![Part { worker: 0, seq: 1, weight: 1.0 }];
    let applied = DecisionKind::Apply { step: 1, parts, totals: vec![6.25, 6.0, 60.0], held: false };
    assert_eq!(f.sums(2, 1, 1, &[3.0, 30.0]), [applied, measure(2, 0, &[(1, 1, 1.0)], &[])]);
}

#[test] // PS-1, PS-4
fn a_death_while_measuring_neither_stops_nor_changes_the_update() {
    let mut f = measured(Mode::Sync { replicas_to_aggregate: 2 });
    assert_eq!(f.push(0, 1, 0), []);
    f.meta(1, 1, 0, 10);
    f.staged(0, 1, 1, 0);
    f.staged(1, 1, 1, 0);
    let (kinds, notices) = f.all(Event::Staged { shard: 2, worker: 1, seq: 1, base_step: 0 });
    let both = [(0, 1, 0.5), (1, 1, 0.5)];
    assert_eq!(kinds, [measure(1, 0, &both, &[])]);
    // Told with the first decision, so that a fence after it has nothing left to tell.
    assert!(matches!(&notices[..], [Notice::Committed { step: 1, commits }] if commits.len() == 2));
    assert_eq!(f.all(Event::WorkerLost(1)), (vec![], vec![]));
    for shard in 0..2 {
        assert_eq!(f.sums(shard, 1, 0, &[1.0]), []);
    }
    assert_eq!(f.sums(2, 1, 0, &[1.0]), [measure(1, 1, &both, &[3.0])]);
    assert_eq!(f.all(Event::WorkerLost(0)), (vec![], vec![]));
    f.sums(0, 1, 1, &[0.0]);
    f.sums(1, 1, 1, &[0.0]);
    assert!(matches!(f.sums(2, 1, 1, &[0.0])[..], [DecisionKind::Apply { step: 1, .. }]));
}

#[test] // PS-2
fn a_snapshot_waits_for_the_update_that_is_being_measured_and_so_does_the_end() {
    let mut f = measured(Mode::Async);
    f.event(Event::MaxSteps(Some(1)));
    f.push(0, 1, 0);
    assert_eq!(f.all(Event::SnapshotRequested { id: 4 }), (vec![], vec![]));
    assert!(!f.sequencer.is_finished(), "its last update is not applied yet");
    assert_eq!(f.push(1, 1, 0), []);
    for shard in 0..3 {
        f.sums(shard, 1, 0, &[1.0]);
    }
    f.sums(0, 1, 1, &[1.0]);
    f.sums(1, 1, 1, &[1.0]);
    let (kinds, notices) = f.all(Event::Measured { shard: 2, step: 1, round: 1, sums: vec![1.0] });
    let [DecisionKind::Apply { step: 1, .. }, DecisionKind::Snapshot { id: 4, step: 1 }, last] = &kinds[..] else {
        panic!("{kinds:?}")
    };
    assert_eq!(*last, dropped(1, 1));
    assert!(matches!(notices[..], [Notice::SnapshotMarker { id: 4, step: 1 }, Notice::Dropped { worker: 1, .. }]));
    assert!(f.sequencer.is_finished());
}

fn bounded(max_staleness: u32, workers: u32) -> Fixture {
    Fixture::new(Mode::Bounded { max_staleness }, 1, workers)
}

fn held(step: u64, worker: u32, seq: u64) -> DecisionKind {
    let DecisionKind::Apply { parts, totals, .. } = apply(step, &[(worker, seq, 1.0)]) else { unreachable!() };
    DecisionKind::Apply { step, parts, totals, held: true }
}

fn release(worker: u32, seq: u64) -> DecisionKind {
    DecisionKind::Release { worker, seq }
}

#[test] // PS-6
fn who_is_too_far_ahead_is_applied_at_once_and_answered_later() {
    let mut f = bounded(1, 2);
    assert_eq!(f.push(0, 1, 0), [apply(1, &[(0, 1, 1.0)])]);
    assert_eq!(f.push(0, 2, 1), [held(2, 0, 2)]);
    assert_eq!(f.push(1, 1, 0), [apply(3, &[(1, 1, 1.0)]), release(0, 2)]);
    // Its third step was begun one ahead.
    f.meta(0, 3, 3, 10);
    let (_, notices) = f.all(Event::Staged { shard: 0, worker: 0, seq: 3, base_step: 3 });
    assert!(matches!(&notices[..], [Notice::Committed { commits, .. }] if commits[0].staleness == 1));
}

#[test] // PS-6
fn with_a_bound_of_0_they_go_in_step() {
    let mut f = bounded(0, 3);
    for round in 1..4 {
        let step = 3 * (round - 1);
        assert_eq!(f.push(2, round, step), [held(step + 1, 2, round)]);
        assert_eq!(f.push(0, round, step), [held(step + 2, 0, round)]);
        let last = [apply(step + 3, &[(1, round, 1.0)]), release(0, round), release(2, round)];
        assert_eq!(f.push(1, round, step), last);
    }
}

#[test] // PS-5, PS-6
fn the_bound_does_not_make_anybody_wait_for_an_idle_finished_or_dead_worker() {
    for departure in [Event::WorkerIdle(1), Event::WorkerLeft(1), Event::WorkerLost(1)] {
        let mut f = bounded(0, 2);
        assert_eq!(f.push(0, 1, 0), [held(1, 0, 1)]);
        assert_eq!(f.event(departure), [release(0, 1)]);
        assert_eq!(f.push(0, 2, 1), [apply(2, &[(0, 2, 1.0)])]);
    }
    let mut f = bounded(0, 2);
    f.push(0, 1, 0);
    assert_eq!(f.event(Event::WorkerLost(0)), [release(0, 1)], "so that whoever serves it can end");
    assert_eq!(f.event(Event::WorkerLost(0)), []);
}

#[test] // PS-6
fn who_comes_back_is_put_where_the_slowest_has_been() {
    let mut f = bounded(1, 2);
    f.event(Event::WorkerIdle(1));
    for seq in 1..6 {
        assert_eq!(f.push(0, seq, seq - 1), [apply(seq, &[(0, seq, 1.0)])]);
    }
    f.event(Event::WorkerActive(1));
    assert_eq!(f.push(0, 6, 5), [apply(6, &[(0, 6, 1.0)])], "one ahead of it, as it begins at 5");
    assert_eq!(f.push(0, 7, 6), [held(7, 0, 7)]);
    assert_eq!(f.event(Event::WorkerLost(1)), [release(0, 7)]);
    f.event(Event::WorkerJoined(1));
    assert_eq!(f.push(0, 8, 7), [apply(8, &[(0, 8, 1.0)])], "not waited for before its first push");
    assert_eq!(f.push(1, 1 << 32, 7), [apply(9, &[(1, 1 << 32, 1.0)])]);
    assert_eq!(f.push(0, 9, 8), [apply(10, &[(0, 9, 1.0)])], "which counts from there");
    assert_eq!(f.push(0, 10, 8), [apply(11, &[(0, 10, 1.0)])]);
    assert_eq!(f.push(0, 11, 8), [held(12, 0, 11)]);
}

#[test] // PS-5, PS-6
fn the_end_of_training_releases_those_who_wait() {
    let mut f = bounded(0, 2);
    f.push(0, 1, 0);
    assert_eq!(f.event(Event::Stop), [release(0, 1)]);
    let mut f = bounded(0, 3);
    f.event(Event::MaxSteps(Some(2)));
    assert_eq!(f.push(0, 1, 0), [held(1, 0, 1)]);
    assert_eq!(f.push(1, 1, 0), [apply(2, &[(1, 1, 1.0)]), release(0, 1)]);
}
