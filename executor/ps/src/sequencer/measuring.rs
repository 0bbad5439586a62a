//! An update that waits for the sums of all shards, round by round, before it is applied.
//!
//! It is decided as firmly as one that is applied at once: its gradients are on every shard and its commits are told. So a
//! worker that dies meanwhile changes nothing, and only the death of a shard, which ends the job, keeps it from being
//! applied.

use crate::decision::{DecisionKind, Part};
use crate::optimizer::{ExactSum, PARTS};

/// An update between its first decision and its last.
#[derive(Debug)]
pub(super) struct Measuring {
    step: u64,
    parts: Vec<Part>,
    totals: Vec<f64>,
    round: u32,
    rounds: u32,
    /// Of this round, by shard; empty where nothing is measured.
    sums: Vec<Option<Vec<f64>>>,
    /// The sums are told without rounding, in several numbers each.
    exact: bool,
}

impl Measuring {
    pub(super) fn new(shards: usize, rounds: u32, step: u64, parts: Vec<Part>, exact: bool) -> Measuring {
        let sums = if rounds > 0 { vec![None; shards] } else { Vec::new() };
        Measuring { step, parts, totals: Vec::new(), round: 0, rounds, sums, exact }
    }

    /// What is decided next; after `Apply`, nothing.
    pub(super) fn next(self) -> (DecisionKind, Option<Measuring>) {
        let (step, round) = (self.step, self.round);
        if round == self.rounds {
            return (DecisionKind::Apply { step, parts: self.parts, totals: self.totals, held: false }, None);
        }
        let (parts, totals) = (self.parts.clone(), self.totals.clone());
        (DecisionKind::Measure { step, round, parts, totals }, Some(self))
    }

    /// Whether the round is over with this; a report of another one, or a repeated one, changes nothing.
    pub(super) fn hear(&mut self, shard: usize, step: u64, round: u32, sums: Vec<f64>) -> bool {
        if (step, round) != (self.step, self.round) {
            return false;
        }
        if let Some(place) = self.sums.get_mut(shard) {
            place.get_or_insert(sums);
        }
        if self.sums.iter().any(Option::is_none) {
            return false;
        }
        // Added in the order of the shards, so that the total does not depend on who was faster.
        let heard = self.sums.iter_mut().filter_map(Option::take).reduce(add);
        let heard = heard.unwrap_or_default();
        match self.exact {
            true => self.totals.extend(heard.chunks(PARTS).map(ExactSum::value_of)),
            false => self.totals.extend(heard),
        }
        self.round += 1;
        true
    }
}

/// Element by element. All shards report as many; if one did not, the shards would refuse the totals.
fn add(mut totals: Vec<f64>, sums: Vec<f64>) -> Vec<f64> {
    totals.resize(totals.len().max(sums.len()), 0.0);
    totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    totals
}
