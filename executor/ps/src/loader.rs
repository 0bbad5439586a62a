//! How a ps comes to its part of a saved state: its host reads it, as this crate knows no files.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::optimizer::Scheduled;

/// What the chief tells every ps instead of the values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// For the hosts; this crate does not look into it.
    pub what: String,
    /// Ranges of the flat vector, in order, that are not there: the chief sends them.
    pub fresh: Vec<Range<usize>>,
    /// The same of the buffers.
    pub fresh_buffers: Vec<Range<usize>>,
}

/// What a host fills with values. What is fresh has its value already, and so has each slot.
#[derive(Debug)]
pub struct Loading<'a> {
    pub layout: &'a Layout,
    pub optimizer: &'a Scheduled,
    /// Of the flat vector, which `params` and each slot cover.
    pub range: Range<usize>,
    pub params: &'a mut [f32],
    /// In the order of `Optimizer::slots`, each in adjoining pieces.
    pub slots: Vec<Vec<&'a mut [f32]>>,
    /// All of them, on shard 0.
    pub buffers: Option<&'a mut [f32]>,
}

/// The host of a ps, as far as it reads saved states. Called on a thread of the ps, which may be kept waiting.
pub trait Loader: fmt::Debug + Send + Sync {
    /// Fills `into` with what `what` means; an error in words, as it travels to the chief.
    fn load(&self, what: &str, into: Loading<'_>) -> Result<(), String>;
}

/// What lies in `range` of each of these.
pub(crate) fn within(ranges: &[Range<usize>], range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let cut = |r: &Range<usize>| r.start.max(range.start)..r.end.min(range.end);
    ranges.iter().map(cut).filter(|r| !r.is_empty())
}
