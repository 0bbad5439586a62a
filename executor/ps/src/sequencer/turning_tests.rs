//! Groups and turns of the dial, one situation each.

use super::tests::Fixture;
use super::*;

fn grouped(replicas_to_aggregate: u32) -> Dial {
    let group = |pattern: &str, eager| Group { pattern: pattern.to_owned(), eager };
    Dial { mode: Mode::Grouped { replicas_to_aggregate }, groups: vec![group("e*", true), group("*", false)] }
}

/// Two shards and three workers, in groups; what was decided before is left out.
fn fixture() -> Fixture {
    let mut fixture = Fixture::sync(2, 3);
    let turned = fixture.event(Event::Turn { id: None, dial: grouped(2) });
    assert_eq!(turned, [DecisionKind::Groups { groups: grouped(2).groups, replicas: 2 }]);
    fixture
}

fn eager(step: u64, worker: u32, seq: u64) -> DecisionKind {
    DecisionKind::Eager { step, worker, seq }
}

#[test] // PS-7
fn what_is_accepted_is_applied_although_its_worker_dies() {
    let mut fixture = fixture();
    assert_eq!(fixture.push(0, 1, 0), [eager(1, 0, 1)]);
    assert_eq!(fixture.event(Event::WorkerLost(0)), []);
    let decided = fixture.push(2, 1, 0);
    assert_eq!(decided[0], eager(1, 2, 1));
    assert!(matches!(&decided[1], DecisionKind::Apply { step: 1, parts, .. } if parts.len() == 2), "{decided:?}");
    // One too many for that step: dropped in all groups.
    assert_eq!(fixture.push(1, 1, 0), [DecisionKind::Drop { worker: 1, seq: 1 }]);
}

#[test] // PS-5, PS-7
fn a_snapshot_and_a_turn_wait_for_the_rest_of_what_is_accepted() {
    let mut fixture = fixture();
    fixture.push(0, 1, 0);
    assert_eq!(fixture.event(Event::SnapshotRequested { id: 7 }), []);
    assert_eq!(fixture.all(Event::Turn { id: Some(8), dial: Mode::Async.into() }), (vec![], vec![]));
    // The others have no rows: nobody is waited for.
    assert_eq!(fixture.event(Event::WorkerIdle(1)), []);
    let (decided, notices) = fixture.all(Event::WorkerIdle(2));
    assert!(matches!(decided[0], DecisionKind::Apply { step: 1, .. }), "{decided:?}");
    assert_eq!(decided[1], DecisionKind::Snapshot { id: 7, step: 1 });
    assert_eq!(decided[2], DecisionKind::Groups { groups: vec![], replicas: 1 });
    assert_eq!(notices.last(), Some(&Notice::Turned { id: 8, step: 1, refused: None }));
}

#[test] // PS-7
fn the_end_of_training_completes_the_step_at_hand() {
    for end in [Event::Stop, Event::MaxSteps(Some(0))] {
        let mut fixture = fixture();
        fixture.push(0, 1, 0);
        let decided = fixture.event(end);
        assert!(matches!(decided[..], [DecisionKind::Apply { step: 1, .. }]), "{decided:?}");
        assert!(fixture.sequencer.is_finished());
    }
}

#[test] // PS-3
fn from_asynchronous_to_synchronous_old_gradients_return() {
    let mut fixture = Fixture::new(Mode::Async, 2, 2);
    fixture.meta(1, 1, 0, 10);
    fixture.staged(0, 1, 1, 0);
    fixture.push(0, 1, 0);
    let sync = Mode::Sync { replicas_to_aggregate: 2 };
    let (decided, notices) = fixture.all(Event::Turn { id: Some(1), dial: sync.into() });
    assert_eq!((decided, notices), (vec![], vec![Notice::Turned { id: 1, step: 1, refused: None }]));
    let (decided, notices) = fixture.all(Event::Staged { shard: 1, worker: 1, seq: 1, base_step: 0 });
    assert_eq!(decided, [DecisionKind::Drop { worker: 1, seq: 1 }]);
    assert!(matches!(notices[..], [Notice::Dropped { worker: 1, .. }]));
}
