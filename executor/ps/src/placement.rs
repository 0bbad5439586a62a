//! Who holds what, and how many bytes a step moves: for people, before a job starts and in its log.

use std::fmt;
use std::ops::Range;

use crate::compress::Compress;
use crate::layout::{Layout, Variable};

/// How variables are dealt to the ps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// All variables, in the order of their names, are one vector, cut evenly.
    #[default]
    Even,
    /// Whole variables, in the order of their creation, one to each ps in turn.
    RoundRobin,
}

/// What one ps holds.
#[derive(Debug, Clone)]
pub struct Held<'a> {
    /// Of the ps.
    pub shard: usize,
    /// Of the flat vector.
    pub range: Range<usize>,
    /// Variables that lie in it, and which elements of each.
    pub variables: Vec<(&'a Variable, Range<usize>)>,
}

/// Names of variables in a line, before the others are only counted.
const NAMED: usize = 6;

impl Layout {
    /// What each of `shards` ps holds, in order.
    pub fn held(&self, shards: usize) -> Vec<Held<'_>> {
        let held = |(shard, range): (usize, Range<usize>)| {
            let parts = self.parts_in(range.clone());
            let inside = |part: Range<usize>, variable: &Variable| {
                let start = range.start + part.start - variable.offset;
                start..start + part.len()
            };
            let found =
                self.variables.iter().zip(parts).map(|(v, (_, part))| (v, part)).filter(|(_, part)| !part.is_empty());
            Held { shard, variables: found.map(|(v, part)| (v, inside(part, v))).collect(), range: range.clone() }
        };
        self.ranges(shards).enumerate().map(held).collect()
    }

    /// Of the largest shard, times the mean: 1 where all are equal.
    pub fn imbalance(&self, shards: usize) -> f64 {
        let longest = self.ranges(shards).map(|range| range.len()).max().unwrap_or(0);
        if self.total == 0 { 1.0 } else { (longest * shards.max(1)) as f64 / self.total as f64 }
    }
}

impl Held<'_> {
    /// Bytes that each training node sends to this ps in a step, without headers and leases.
    pub fn sent(&self, compress: Compress) -> usize {
        4 * compress.words(self.range.len())
    }

    /// Bytes that each gets back from it.
    pub fn received(&self) -> usize {
        4 * self.range.len()
    }
}

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ps:{} holds {} f32", self.shard, self.range.len())?;
        for (number, (variable, part)) in self.variables.iter().take(NAMED).enumerate() {
            write!(f, "{} {}", if number == 0 { ":" } else { "," }, variable.name)?;
            if part.len() < variable.len() {
                write!(f, "[{}..{}]", part.start, part.end)?;
            }
        }
        match self.variables.len().checked_sub(NAMED) {
            Some(more @ 1..) => write!(f, " and {more} more"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Vec<(String, Vec<i64>)> {
        [("w", vec![10, 8]), ("b", vec![10]), ("a", vec![6])].map(|(n, s)| (n.to_owned(), s)).into()
    }

    #[test]
    fn each_ps_says_what_it_holds_and_what_a_step_costs() {
        let layout = Layout::new(variables(), []).unwrap();
        let lines: Vec<String> = layout.held(2).iter().map(Held::to_string).collect();
        assert_eq!(lines, ["ps:0 holds 48 f32: a, b, w[0..32]", "ps:1 holds 48 f32: w[32..80]"]);
        let held = &layout.held(2)[1];
        assert_eq!((held.sent(Compress::None), held.sent(Compress::Bf16), held.received()), (192, 96, 192));
        let layout = Layout::round_robin(variables(), [], 2).unwrap();
        let lines: Vec<String> = layout.held(2).iter().map(Held::to_string).collect();
        assert_eq!(lines, ["ps:0 holds 86 f32: w, a", "ps:1 holds 10 f32: b"]);
        assert!((layout.imbalance(2) - 86.0 / 48.0).abs() < 1e-12);
    }

    #[test]
    fn every_element_is_held_once() {
        for shards in 1..9 {
            for layout in [Layout::new(variables(), []).unwrap(), Layout::round_robin(variables(), [], shards).unwrap()]
            {
                let held = layout.held(shards);
                let parts = held.iter().flat_map(|h| &h.variables).map(|(_, part)| part.len());
                assert_eq!((held.len(), parts.sum::<usize>()), (shards, layout.total));
            }
        }
        assert_eq!(Layout::new([], []).unwrap().imbalance(3), 1.0);
    }
}
