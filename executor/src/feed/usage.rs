//! What a feed holds in memory, stage by stage, now and at most.

/// Bytes of each stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Rows that are scanned and not yet asked for.
    pub(crate) queue: usize,
    /// Open partitions: what is left of a batch, blocks to mix, the row group that is being decoded.
    pub(crate) scan: usize,
    /// The batch in the trainer's hands.
    pub(crate) batch: usize,
}

/// The most that there was of each, and together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Peak {
    pub(crate) of_each: Usage,
    pub(crate) together: usize,
}

impl Usage {
    pub(crate) fn together(&self) -> usize {
        self.queue + self.scan + self.batch
    }
}

impl Peak {
    pub(crate) fn note(&mut self, now: &Usage) {
        let each = &mut self.of_each;
        *each =
            Usage { queue: each.queue.max(now.queue), scan: each.scan.max(now.scan), batch: each.batch.max(now.batch) };
        self.together = self.together.max(now.together());
    }
}

/// Below that the heap's own share would be more than the tenth that it may add.
const SMALL_BOUND: usize = 256 << 20;

/// Whether the process is to have exactly the memory of its buffers, at the cost of a quarter of a scan's speed: where
/// the bound is small, and where half of it is used, because then the trainer is slower than the scan anyway.
pub(super) fn is_tight(bound: usize, together: usize, was_tight: bool) -> bool {
    // Not back and forth: half of the bound makes it tight, and a quarter ends that.
    let much = if was_tight { bound / 4 } else { bound / 2 };
    bound < SMALL_BOUND || together > much
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_a_peak_of_its_own_and_together_they_have_one() {
        let mut peak = Peak::default();
        peak.note(&Usage { queue: 5, scan: 1, batch: 0 });
        peak.note(&Usage { queue: 2, scan: 3, batch: 2 });
        assert_eq!(peak, Peak { of_each: Usage { queue: 5, scan: 3, batch: 2 }, together: 7 });
    }

    #[test]
    fn a_small_bound_is_tight_and_a_large_one_while_it_is_used() {
        assert!(is_tight(SMALL_BOUND - 1, 0, false));
        assert!(!is_tight(SMALL_BOUND, SMALL_BOUND / 3, false) && is_tight(SMALL_BOUND, SMALL_BOUND / 3, true));
        assert!(is_tight(SMALL_BOUND, SMALL_BOUND * 2 / 3, false) && !is_tight(SMALL_BOUND, 0, true));
    }
}
