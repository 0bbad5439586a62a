//! Canonical addresses of rows: (epoch, partition, row range), independent of who trains on them.

mod canonical;
mod coverage;
mod lease;
mod ranges;
mod shuffle;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use canonical::{Cut, MicroBatch, Steps};
pub use coverage::{Coverage, EpochFindings, coalesce};
pub use lease::{CommitError, Grant, LeaseTable, Misfit};
pub use ranges::RangeSet;
pub use shuffle::Shuffle;

/// Rows `start..end` of one partition in one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowRange {
    /// Pass over the data, from 0.
    pub epoch: u32,
    /// Partition of the plan, from 0.
    pub partition: u32,
    /// First row, counted over the partition's output in plan order, or in its [`Shuffle`]d order.
    pub start: u64,
    /// One past the last row.
    pub end: u64,
}

impl RowRange {
    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.end - self.start
    }
}

impl fmt::Display for RowRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} partition {} rows {}..{}", self.epoch, self.partition, self.start, self.end)
    }
}

/// Appends the wire form of `ranges`: 24 bytes each, little-endian `u32 epoch, u32 partition, u64 start,
/// u64 end`.
pub fn encode_ranges(ranges: &[RowRange], out: &mut Vec<u8>) {
    for r in ranges {
        out.extend_from_slice(&r.epoch.to_le_bytes());
        out.extend_from_slice(&r.partition.to_le_bytes());
        out.extend_from_slice(&r.start.to_le_bytes());
        out.extend_from_slice(&r.end.to_le_bytes());
    }
}

/// Reads what [`encode_ranges`] wrote; `None` when the length or an order of bounds is wrong.
pub fn decode_ranges(bytes: &[u8]) -> Option<Vec<RowRange>> {
    let chunks = bytes.chunks_exact(24);
    if !chunks.remainder().is_empty() {
        return None;
    }
    let u32_at = |c: &[u8], i: usize| c.get(i..i + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let u64_at = |c: &[u8], i: usize| c.get(i..i + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    chunks
        .map(|c| {
            let range =
                RowRange { epoch: u32_at(c, 0)?, partition: u32_at(c, 4)?, start: u64_at(c, 8)?, end: u64_at(c, 16)? };
            (range.start <= range.end).then_some(range)
        })
        .collect()
}

/// Which rows the parameters have seen: the data half of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommittedRows {
    /// Every epoch below this one is committed whole.
    pub complete_epochs: u32,
    /// Rows per partition, where known; a plan has the same rows in every epoch.
    pub partition_rows: Vec<Option<u64>>,
    /// Committed ranges of the epochs begun and not complete: epoch, then partition.
    pub partial: BTreeMap<u32, BTreeMap<u32, RangeSet>>,
    /// Of deterministic training: how they were cut into steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_survive_the_wire_and_bad_bytes_do_not() {
        let ranges = [
            RowRange { epoch: 1, partition: 2, start: 3, end: u64::MAX },
            RowRange { epoch: 0, partition: 0, start: 0, end: 0 },
        ];
        let mut bytes = vec![];
        encode_ranges(&ranges, &mut bytes);
        assert_eq!(decode_ranges(&bytes).unwrap(), ranges);
        assert_eq!(decode_ranges(&bytes[1..]), None);
        bytes[8..16].copy_from_slice(&9u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&8u64.to_le_bytes());
        assert_eq!(decode_ranges(&bytes), None);
    }
}
