//! Which manifests count, when more than one generation has written some.
//!
//! Claiming a generation cannot stop a driver of an older one between its look at the claims and its write. So each
//! generation, before it writes anything, says once what it starts from: a [`Start`]. From then on manifests of older
//! generations count up to there, and what they still write beyond it is void.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, GlobalStep};

/// A checkpoint, and who wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Base {
    /// Its step.
    pub step: GlobalStep,
    /// Its writer.
    pub generation: Generation,
}

/// What a generation starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Start {
    /// The checkpoint that it restored; `None`: it starts from nothing.
    pub restored: Option<Base>,
}

/// The starts of a model directory, by generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Starts(pub BTreeMap<Generation, Start>);

impl Starts {
    /// The newest generation that has said what it starts from. No older one can commit any more.
    pub fn newest(&self) -> Option<Generation> {
        self.0.keys().next_back().copied()
    }

    /// Whether the manifest of `step` by `generation` is beyond what a newer generation started from.
    pub fn is_void(&self, step: GlobalStep, generation: Generation) -> bool {
        let Some(mut at) = self.newest() else { return false };
        let mut upto = None;
        // Back along the newest lineage: each turn goes to an older generation.
        while generation < at {
            match self.0.get(&at) {
                // Of a program that did not write starts, or of a copied checkpoint.
                None => break,
                Some(Start { restored: None }) => return true,
                Some(Start { restored: Some(base) }) if generation > base.generation => return true,
                Some(Start { restored: Some(base) }) => {
                    upto = Some(upto.map_or(base.step, |u: GlobalStep| u.min(base.step)));
                    if base.generation >= at {
                        break;
                    }
                    at = base.generation;
                }
            }
        }
        upto.is_some_and(|upto| step > upto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(list: &[(u64, Option<(u64, u64)>)]) -> Starts {
        let base = |(step, generation)| Base { step: GlobalStep(step), generation: Generation(generation) };
        Starts(list.iter().map(|(g, b)| (Generation(*g), Start { restored: b.map(base) })).collect())
    }

    #[test] // CKP-3
    fn what_an_older_generation_writes_beyond_the_start_of_a_newer_one_is_void() {
        let void = |s: &Starts, step, generation| s.is_void(GlobalStep(step), Generation(generation));
        let s = starts(&[(1, None), (2, Some((20, 1)))]);
        assert!(!void(&s, 10, 1) && !void(&s, 20, 1) && void(&s, 30, 1));
        assert!(!void(&s, 30, 2) && !void(&s, 30, 3), "the newest, and one that has only claimed");
        // Generation 3 could not read that of 2 and went back to 1's.
        let s = starts(&[(1, None), (2, Some((20, 1))), (3, Some((10, 1)))]);
        assert!(!void(&s, 10, 1) && void(&s, 20, 1) && void(&s, 15, 2) && void(&s, 30, 2));
        let s = starts(&[(2, None)]);
        assert!(void(&s, 1, 1) && !void(&s, 1, 2));
        // The bound of a generation in the middle holds for those before it.
        let s = starts(&[(2, Some((20, 1))), (3, Some((40, 2)))]);
        assert!(void(&s, 30, 1) && !void(&s, 30, 2) && void(&s, 50, 2));
        assert!(!void(&starts(&[]), 99, 1), "a directory of an older program has no starts");
        assert!(!void(&starts(&[(6, Some((40, 5)))]), 40, 5), "a copied one has no start of its own");
    }
}
