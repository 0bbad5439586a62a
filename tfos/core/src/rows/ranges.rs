//! A set of rows as disjoint, sorted, merged ranges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Disjoint `start..end` ranges of row numbers; neighbours are merged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// Adds rows; false (and nothing changed) when some of them are in the set already.
    pub fn insert(&mut self, start: u64, end: u64) -> bool {
        if start >= end {
            return start == end;
        }
        let before = self.0.range(..=start).next_back().map(|(s, e)| (*s, *e));
        let after = self.0.range(start..).next().map(|(s, e)| (*s, *e));
        if before.is_some_and(|(_, e)| e > start) || after.is_some_and(|(s, _)| s < end) {
            return false;
        }
        let (mut new_start, mut new_end) = (start, end);
        if let Some((s, e)) = before
            && e == start
        {
            new_start = s;
        }
        if let Some((s, e)) = after
            && s == end
        {
            self.0.remove(&s);
            new_end = e;
        }
        self.0.insert(new_start, new_end);
        true
    }

    /// Takes up to `want` rows from the front.
    pub fn pop(&mut self, want: u64) -> Option<(u64, u64)> {
        let (start, end) = self.0.pop_first()?;
        let cut = end.min(start.saturating_add(want.max(1)));
        if cut < end {
            self.0.insert(cut, end);
        }
        Some((start, cut))
    }

    /// Drops every row from `end` on.
    pub fn truncate(&mut self, end: u64) {
        self.0.retain(|start, _| *start < end);
        if let Some(last) = self.0.last_entry() {
            let bounded = (*last.get()).min(end);
            *last.into_mut() = bounded;
        }
    }

    /// The rows of `0..end` that are not in the set.
    pub fn gaps(&self, end: u64) -> Self {
        let mut gaps = Self::default();
        let mut at = 0;
        for (start, stop) in self.iter() {
            gaps.insert(at, start.min(end).max(at));
            at = stop;
        }
        gaps.insert(at, end.max(at));
        gaps
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.0.iter().map(|(s, e)| e - s).sum()
    }

    /// One past the largest row, 0 when empty.
    pub fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, e)| *e)
    }

    /// True when all of `start..end` is in it.
    pub fn contains(&self, start: u64, end: u64) -> bool {
        start >= end || self.0.range(..=start).next_back().is_some_and(|(_, e)| *e >= end)
    }

    /// True when exactly the rows `0..end` are in it.
    pub fn covers(&self, end: u64) -> bool {
        self.rows() == end && self.end() == end
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(s, e)| (*s, *e))
    }
}

impl From<Vec<(u64, u64)>> for RangeSet {
    fn from(ranges: Vec<(u64, u64)>) -> Self {
        let mut set = Self::default();
        for (start, end) in ranges {
            set.insert(start, end);
        }
        set
    }
}

impl From<RangeSet> for Vec<(u64, u64)> {
    fn from(set: RangeSet) -> Self {
        set.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_and_overlaps_are_refused() {
        let mut set = RangeSet::default();
        assert!(set.insert(10, 20) && set.insert(0, 5) && set.insert(5, 10));
        assert_eq!(set.iter().collect::<Vec<_>>(), [(0, 20)]);
        assert!(!set.insert(19, 21) && !set.insert(0, 1) && !set.insert(5, 6));
        assert!(set.insert(30, 40) && !set.insert(25, 31) && !set.insert(20, 31));
        assert_eq!((set.rows(), set.end()), (30, 40));
    }

    #[test]
    fn gaps_and_truncation() {
        let mut set = RangeSet::from(vec![(2, 4), (6, 8)]);
        assert_eq!(set.gaps(10).iter().collect::<Vec<_>>(), [(0, 2), (4, 6), (8, 10)]);
        assert_eq!(set.gaps(8).iter().collect::<Vec<_>>(), [(0, 2), (4, 6)]);
        set.truncate(7);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(2, 4), (6, 7)]);
        set.truncate(6);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(2, 4)]);
        assert!(!set.covers(4));
        assert!(set.insert(0, 2) && set.covers(4));
    }

    #[test]
    fn pop_takes_from_the_front() {
        let mut set = RangeSet::from(vec![(2, 4), (6, 8)]);
        assert_eq!(set.pop(1), Some((2, 3)));
        assert_eq!(set.pop(9), Some((3, 4)));
        assert_eq!(set.pop(9), Some((6, 8)));
        assert_eq!(set.pop(9), None);
    }
}
