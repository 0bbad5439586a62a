//! What a shard makes of decisions, in order and out of it.

use super::*;
use crate::optimizer::Optimizer;

fn shard(len: usize) -> Shard {
    let optimizer = Optimizer::Sgd { learning_rate: 1.0, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let arena = Arena::new().unwrap();
    let (params, slots) = (arena.floats(len).unwrap(), Slots::new(&arena, len, &[]).unwrap());
    let begin = Begin {
        shard: 1,
        alone: false,
        exact: false,
        range: 16..16 + len,
        variables: vec![("a".to_owned(), 0..len / 2), ("b".to_owned(), len / 2..len)],
        optimizer: optimizer.into(),
        local_steps: None,
        step: 5,
        optimizer_step: 0,
        arena,
        params,
        slots,
        buffers: None,
    };
    Shard::new(begin).unwrap()
}

fn stage(shard: &mut Shard, worker: u32, seq: u64, value: f32) {
    let gradient = Gradient::Own(vec![value; shard.len()]);
    shard.stage(Staged { worker, seq, gradient, ..Staged::default() });
}

fn apply(index: u64, step: u64, parts: &[(u32, u64, f32)]) -> Decision {
    let parts = parts.iter().map(|&(worker, seq, weight)| Part { worker, seq, weight }).collect();
    Decision { index, kind: DecisionKind::Apply { step, parts, totals: vec![], held: false } }
}

#[test]
fn an_update_is_the_weighted_sum_of_its_parts_in_every_block() {
    let mut shard = shard(2 * BLOCK + 3);
    stage(&mut shard, 2, 1, 100.0);
    stage(&mut shard, 1, 1, 4.0);
    stage(&mut shard, 0, 1, 8.0);
    shard.apply(&mut apply(0, 6, &[(0, 1, 0.75), (1, 1, 0.25)])).unwrap();
    assert!(shard.current().params.iter().all(|&p| p == -7.0));
    assert_eq!(shard.staged.len(), 1);
    let outcome = shard.take_outcome(1, 1).unwrap();
    assert!(!outcome.dropped && outcome.version.step == 6 && outcome.staged.is_some());
    assert!(shard.take_outcome(2, 1).is_none());
}

#[test]
fn a_version_in_a_readers_hand_never_changes_and_is_used_again_afterwards() {
    let mut shard = shard(100);
    let mut held = Vec::new();
    for i in 0..4 {
        stage(&mut shard, 0, i + 1, 1.0);
        shard.apply(&mut apply(i, 6 + i, &[(0, i + 1, 1.0)])).unwrap();
        held.push(shard.take_outcome(0, i + 1).unwrap().version);
    }
    assert_eq!(held.iter().map(|v| v.params[99]).collect::<Vec<_>>(), [-1.0, -2.0, -3.0, -4.0]);
    drop(held);
    let before = shard.pool.len();
    for i in 4..20 {
        stage(&mut shard, 0, i + 1, 1.0);
        shard.apply(&mut apply(i, 6 + i, &[(0, i + 1, 1.0)])).unwrap();
        shard.forget(0, i + 1);
    }
    assert_eq!(shard.pool.len(), before);
}

#[test] // PS-2
fn a_gap_or_an_unknown_push_stops_the_shard() {
    let mut shard = shard(10);
    assert!(matches!(shard.apply(&mut apply(1, 6, &[(0, 1, 1.0)])), Err(Error::Diverged { .. })));
    assert!(matches!(shard.apply(&mut apply(0, 7, &[(0, 1, 1.0)])), Err(Error::Diverged { .. })));
    assert!(matches!(shard.apply(&mut apply(1, 6, &[(0, 1, 1.0)])), Err(Error::Diverged { .. })));
    assert!(shard.current().params.iter().all(|&p| p == 0.0));
}

#[test] // PS-4
fn a_push_that_was_dropped_before_it_was_complete_is_not_kept() {
    let mut shard = shard(10);
    shard.apply(&mut Decision { index: 0, kind: DecisionKind::Drop { worker: 3, seq: 7 } }).unwrap();
    stage(&mut shard, 3, 7, 1.0);
    assert!(shard.staged.is_empty());
    let outcome = shard.take_outcome(3, 7).unwrap();
    assert!(outcome.dropped && outcome.staged.is_some());
}

#[test]
fn a_shard_measures_the_sum_of_its_parts_and_clips_by_the_total_of_all() {
    for alone in [false, true] {
        let len = 2 * BLOCK + 3;
        let mut shard = shard(len);
        shard.optimizer = shard.optimizer.with_clip_norm(1.0);
        shard.alone = alone;
        stage(&mut shard, 0, 1, 8.0);
        stage(&mut shard, 1, 1, 4.0);
        let parts = [(0, 1, 0.75), (1, 1, 0.25)];
        let DecisionKind::Apply { step, parts, .. } = apply(0, 6, &parts).kind else { unreachable!() };
        // 7 everywhere.
        let sum = 49.0 * len as f64;
        let mut totals = Vec::new();
        if !alone {
            let kind = DecisionKind::Measure { step, round: 0, parts: parts.clone(), totals: vec![] };
            let measured = shard.apply(&mut Decision { index: 0, kind }).unwrap();
            let Performed::Measured(Measured { step: 6, round: 0, sums }) = measured else { panic!("{measured:?}") };
            assert_eq!(sums, [sum]);
            assert!(shard.current().step == 5 && shard.staged.len() == 2, "nothing changed");
            totals = vec![4.0 * sum];
        }
        let kind = DecisionKind::Apply { step, parts, totals, held: false };
        shard.apply(&mut Decision { index: u64::from(!alone), kind }).unwrap();
        let norm = if alone { sum.sqrt() } else { (4.0 * sum).sqrt() };
        let wanted = -7.0 * (1.0 / (norm + 1e-6)) as f32;
        assert!(shard.current().params.iter().all(|&p| (p - wanted).abs() < 1e-7), "{}", shard.current().params[0]);
    }
}

#[test] // PS-2
fn totals_of_another_optimizer_stop_the_shard() {
    let mut shard = shard(10);
    stage(&mut shard, 0, 1, 1.0);
    let DecisionKind::Apply { step, parts, .. } = apply(0, 6, &[(0, 1, 1.0)]).kind else { unreachable!() };
    let kind = DecisionKind::Apply { step, parts, totals: vec![1.0], held: false };
    assert!(matches!(shard.apply(&mut Decision { index: 0, kind }), Err(Error::State { .. })));
}

#[test] // PS-4
fn an_older_push_that_is_applied_late_does_not_take_the_answer_of_a_newer_one() {
    let mut shard = shard(10);
    stage(&mut shard, 0, 1, 1.0);
    shard.apply(&mut Decision { index: 0, kind: DecisionKind::Drop { worker: 0, seq: 1 << 32 } }).unwrap();
    shard.apply(&mut apply(1, 6, &[(0, 1, 1.0)])).unwrap();
    assert!(shard.take_outcome(0, 1 << 32).unwrap().dropped);
    assert!(shard.is_superseded(0, 1) && shard.current().step == 6);
}

#[test] // PS-6
fn a_push_that_is_held_is_answered_with_the_parameters_of_its_release() {
    let mut shard = shard(10);
    stage(&mut shard, 0, 1, 1.0);
    stage(&mut shard, 1, 1, 2.0);
    let DecisionKind::Apply { step, parts, totals, .. } = apply(0, 6, &[(0, 1, 1.0)]).kind else { unreachable!() };
    let kind = DecisionKind::Apply { step, parts, totals, held: true };
    shard.apply(&mut Decision { index: 0, kind }).unwrap();
    assert!(shard.take_outcome(0, 1).is_none() && !shard.is_superseded(0, 1));
    shard.apply(&mut apply(1, 7, &[(1, 1, 1.0)])).unwrap();
    let release = |index| Decision { index, kind: DecisionKind::Release { worker: 0, seq: 1 } };
    shard.apply(&mut release(2)).unwrap();
    let outcome = shard.take_outcome(0, 1).unwrap();
    assert_eq!((outcome.dropped, outcome.version.step, outcome.version.params[0]), (false, 7, -3.0));
    assert!(outcome.staged.is_some(), "its buffer is used again");
    assert!(matches!(shard.apply(&mut release(3)), Err(Error::Diverged { .. })), "nothing is held any more");
}
