//! What ps:0 decided, in the one order that all shards follow, and how it travels.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use crate::dial::Group;
use crate::error::Violation;

/// One entry of the order; `index` counts from 0 without gaps since the ps started.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub index: u64,
    pub kind: DecisionKind,
}

/// What every shard does at this point of the order.
#[derive(Debug, Clone, PartialEq)]
pub enum DecisionKind {
    /// Nothing changes yet: each shard tells ps:0 its sums of this round over the gradient that becomes `step`.
    Measure { step: u64, round: u32, parts: Vec<Part>, totals: Vec<f64> },
    /// The weighted sum of these staged gradients becomes global step `step`.
    Apply {
        step: u64,
        parts: Vec<Part>,
        /// What was measured for it over all shards, round after round; empty where nothing is.
        totals: Vec<f64>,
        /// The answer to its worker waits for a `Release`; then there is one part.
        held: bool,
    },
    /// This staged gradient is accepted for global step `step`, and the variables of eager groups are updated with it.
    Eager { step: u64, worker: u32, seq: u64 },
    /// From here on the variables are in these groups; of each step `replicas` gradients are accepted at most.
    Groups { groups: Vec<Group>, replicas: u32 },
    /// The push was applied before; it is answered with the parameters of this point.
    Release { worker: u32, seq: u64 },
    /// This push is discarded.
    Drop { worker: u32, seq: u64 },
    /// The state as it is now, after global step `step`, is handed to the host.
    Snapshot { id: u64, step: u64 },
}

/// One gradient in an update; the weights of an update sum to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    pub worker: u32,
    pub seq: u64,
    pub weight: f32,
}

/// The pushes that became one global step. Whoever drops them gives the list back to the ps, which uses it again.
pub struct Commits {
    list: Vec<Commit>,
    home: Arc<Mutex<Vec<Vec<Commit>>>>,
}

impl Commits {
    pub(crate) fn new(list: Vec<Commit>, home: &Arc<Mutex<Vec<Vec<Commit>>>>) -> Commits {
        Commits { list, home: Arc::clone(home) }
    }
}

impl Deref for Commits {
    type Target = [Commit];

    fn deref(&self) -> &[Commit] {
        &self.list
    }
}

impl fmt::Debug for Commits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.list.fmt(f)
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.list));
    }
}

/// One push that became part of a global step.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    pub worker: u32,
    pub seq: u64,
    /// Rows that the gradient is the mean over.
    pub rows: u64,
    /// Mean loss over those rows.
    pub loss: f64,
    /// The leases of those rows, opaque here.
    pub leases: Vec<u8>,
    /// By how many of its own steps the worker was ahead of the slowest one that counts when it began this one; 0 in
    /// sync mode.
    pub staleness: u64,
}

/// Why a push was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Sync: computed at `base_step` when the model was already at `step`.
    Stale { base_step: u64, step: u64 },
    /// The worker died or left before the push was decided.
    WorkerGone,
    /// The worker began another push before this one was complete.
    Superseded,
    /// The last step was reached, or training was stopped.
    Finished,
}

const PART: usize = 16;
const TOTAL: usize = 8;

impl DecisionKind {
    pub(crate) const APPLY: u8 = 1;
    pub(crate) const DROP: u8 = 2;
    pub(crate) const SNAPSHOT: u8 = 3;
    pub(crate) const MEASURE: u8 = 4;
    pub(crate) const RELEASE: u8 = 5;
    pub(crate) const EAGER: u8 = 6;
    pub(crate) const GROUPS: u8 = 7;

    /// (tag, worker, number, step) of the frame header. Of an update `worker` is the number of parts, and `meta` has the
    /// parts, 16 bytes each, then the totals, 8 bytes each, little-endian.
    pub(crate) fn encode(&self, meta: &mut Vec<u8>) -> (u8, u32, u64, u64) {
        meta.clear();
        match self {
            DecisionKind::Measure { step, round, parts, totals } => {
                (Self::MEASURE, encode_update(parts, totals, meta), u64::from(*round), *step)
            }
            DecisionKind::Apply { step, parts, totals, held } => {
                (Self::APPLY, encode_update(parts, totals, meta), u64::from(*held), *step)
            }
            DecisionKind::Eager { step, worker, seq } => (Self::EAGER, *worker, *seq, *step),
            DecisionKind::Groups { groups, replicas } => {
                for group in groups {
                    meta.push(u8::from(group.eager));
                    meta.extend_from_slice(&(group.pattern.len() as u32).to_le_bytes());
                    meta.extend_from_slice(group.pattern.as_bytes());
                }
                (Self::GROUPS, *replicas, 0, 0)
            }
            DecisionKind::Release { worker, seq } => (Self::RELEASE, *worker, *seq, 0),
            DecisionKind::Drop { worker, seq } => (Self::DROP, *worker, *seq, 0),
            DecisionKind::Snapshot { id, step } => (Self::SNAPSHOT, 0, *id, *step),
        }
    }

    /// The reverse of [`DecisionKind::encode`]; `parts` is an empty list to be used, whatever it is.
    pub(crate) fn decode(
        tag: u8,
        worker: u32,
        number: u64,
        step: u64,
        meta: &[u8],
        parts: Vec<Part>,
    ) -> Result<Self, Violation> {
        match tag {
            Self::APPLY => {
                let (parts, totals) = decode_update(worker, meta, parts)?;
                Ok(DecisionKind::Apply { step, parts, totals, held: number != 0 })
            }
            Self::MEASURE => {
                let (parts, totals) = decode_update(worker, meta, parts)?;
                Ok(DecisionKind::Measure { step, round: number as u32, parts, totals })
            }
            Self::EAGER => Ok(DecisionKind::Eager { step, worker, seq: number }),
            Self::GROUPS => Ok(DecisionKind::Groups { groups: decode_groups(meta)?, replicas: worker }),
            Self::RELEASE => Ok(DecisionKind::Release { worker, seq: number }),
            Self::DROP => Ok(DecisionKind::Drop { worker, seq: number }),
            Self::SNAPSHOT => Ok(DecisionKind::Snapshot { id: number, step }),
            other => Err(Violation::Malformed { what: "decision", detail: format!("tag {other} is unknown") }),
        }
    }

    /// The list of an update, to be used again.
    pub(crate) fn into_parts(self) -> Option<Vec<Part>> {
        match self {
            DecisionKind::Measure { mut parts, .. } | DecisionKind::Apply { mut parts, .. } => {
                parts.clear();
                Some(parts)
            }
            _ => None,
        }
    }
}

fn encode_update(parts: &[Part], totals: &[f64], meta: &mut Vec<u8>) -> u32 {
    for part in parts {
        meta.extend_from_slice(&part.worker.to_le_bytes());
        meta.extend_from_slice(&part.seq.to_le_bytes());
        meta.extend_from_slice(&part.weight.to_le_bytes());
    }
    encode_sums(totals, meta);
    parts.len() as u32
}

fn decode_update(count: u32, meta: &[u8], mut list: Vec<Part>) -> Result<(Vec<Part>, Vec<f64>), Violation> {
    let length = (count as usize).checked_mul(PART).filter(|&length| length > 0);
    let Some((parts, totals)) = length.and_then(|length| meta.split_at_checked(length)) else {
        let detail = format!("{} bytes are not a list of {count} parts", meta.len());
        return Err(Violation::Malformed { what: "decision", detail });
    };
    let part = |&[a, b, c, d, s0, s1, s2, s3, s4, s5, s6, s7, w, x, y, z]: &[u8; PART]| Part {
        worker: u32::from_le_bytes([a, b, c, d]),
        seq: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        weight: f32::from_le_bytes([w, x, y, z]),
    };
    list.extend(parts.as_chunks::<PART>().0.iter().map(part));
    Ok((list, decode_sums(totals)?))
}

/// Whether it is eager, the length of its pattern (4 bytes, little-endian), and the pattern; group after group.
fn decode_groups(mut meta: &[u8]) -> Result<Vec<Group>, Violation> {
    let malformed = || Violation::Malformed { what: "groups", detail: "they end too early, or are no text".to_owned() };
    let mut groups = Vec::new();
    while let Some((&eager, rest)) = meta.split_first() {
        let (&length, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
        let found = rest.split_at_checked(u32::from_le_bytes(length) as usize);
        let (pattern, rest) = found.ok_or_else(malformed)?;
        let pattern = str::from_utf8(pattern).map_err(|_| malformed())?.to_owned();
        groups.push(Group { pattern, eager: eager != 0 });
        meta = rest;
    }
    Ok(groups)
}

/// Sums as they travel: `f64`, little-endian.
pub(crate) fn encode_sums(sums: &[f64], meta: &mut Vec<u8>) {
    sums.iter().for_each(|sum| meta.extend_from_slice(&sum.to_le_bytes()));
}

/// The reverse of [`encode_sums`].
pub(crate) fn decode_sums(meta: &[u8]) -> Result<Vec<f64>, Violation> {
    let (sums, rest) = meta.as_chunks::<TOTAL>();
    if !rest.is_empty() {
        let detail = format!("{} bytes are not a list of sums", meta.len());
        return Err(Violation::Malformed { what: "sums", detail });
    }
    Ok(sums.iter().map(|&sum| f64::from_le_bytes(sum)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_survive_the_wire() {
        let part = |worker, weight| Part { worker, seq: 1 << 33, weight };
        for kind in [
            DecisionKind::Apply { step: 7, parts: vec![part(0, 0.25), part(3, 0.75)], totals: vec![], held: false },
            DecisionKind::Apply {
                step: 7,
                parts: vec![part(0, 1.0)],
                totals: vec![1e-300, 2.0, f64::INFINITY],
                held: true,
            },
            DecisionKind::Eager { step: 7, worker: 3, seq: 1 << 33 },
            DecisionKind::Groups { groups: vec![], replicas: 3 },
            DecisionKind::Groups {
                groups: [("embed.*", true), ("*", false)]
                    .map(|(pattern, eager)| Group { pattern: pattern.to_owned(), eager })
                    .to_vec(),
                replicas: 1,
            },
            DecisionKind::Release { worker: 2, seq: 9 },
            DecisionKind::Measure { step: 7, round: 1, parts: vec![part(0, 1.0)], totals: vec![0.1] },
            DecisionKind::Drop { worker: 2, seq: 9 },
            DecisionKind::Snapshot { id: 5, step: 7 },
        ] {
            let mut meta = Vec::new();
            let (tag, worker, number, step) = kind.encode(&mut meta);
            assert_eq!(DecisionKind::decode(tag, worker, number, step, &meta, vec![]), Ok(kind));
        }
        for (parts, bytes) in [(0, 16), (1, 15), (1, 17), (2, 16), (u32::MAX, 16)] {
            assert!(DecisionKind::decode(DecisionKind::APPLY, parts, 0, 1, &vec![0; bytes], vec![]).is_err());
        }
        assert!(DecisionKind::decode(9, 0, 0, 1, &[], vec![]).is_err());
        for meta in [&[1, 0][..], &[1, 2, 0, 0, 0, b'a'], &[1, 1, 0, 0, 0, 255]] {
            assert!(DecisionKind::decode(DecisionKind::GROUPS, 1, 0, 0, meta, vec![]).is_err());
        }
    }
}
