//! How many bytes of rows the queue keeps ready.
//!
//! Rows that are used soon after they were scanned are still in the processor's cache: from memory they come several times
//! slower, above all if a shuffle takes them in another order. So the queue is short while the trainer never waits. Where
//! it had to, as with a store that pauses between files, the queue becomes longer, up to all the feed's memory, and shorter
//! again after a while without a wait.

/// Bytes that a last cache keeps, with as many that are being scanned.
const SHORT: usize = 4 << 20;

/// Batches without a wait, after which an eighth of what is more than short goes.
const CALM: u32 = 64;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Depth {
    bytes: usize,
    calm: u32,
}

impl Default for Depth {
    fn default() -> Self {
        Self { bytes: SHORT, calm: 0 }
    }
}

impl Depth {
    /// Whether rows of so many bytes are as many as should be ready.
    pub(super) fn is_reached(&self, bytes: usize) -> bool {
        bytes >= self.bytes
    }

    /// The trainer found too few rows; `most` is what the feed may hold.
    pub(super) fn waited(&mut self, most: usize) {
        self.bytes = self.bytes.saturating_mul(2).min(most.max(SHORT));
        self.calm = 0;
    }

    /// A batch was there when it was asked for.
    pub(super) fn did_not_wait(&mut self) {
        self.calm += 1;
        if self.calm == CALM {
            self.bytes -= (self.bytes - SHORT) / 8;
            self.calm = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_long_after_waits_and_short_after_a_while_without() {
        let mut depth = Depth::default();
        assert!(depth.is_reached(SHORT) && !depth.is_reached(SHORT - 1));
        for _ in 0..3 {
            depth.waited(1 << 30);
        }
        assert!(!depth.is_reached(8 * SHORT - 1) && depth.is_reached(8 * SHORT));
        depth.waited(9 * SHORT);
        assert!(depth.is_reached(9 * SHORT), "never more than the feed may hold");
        for _ in 0..CALM {
            depth.did_not_wait();
        }
        assert!(!depth.is_reached(8 * SHORT - 1) && depth.is_reached(8 * SHORT));
        for _ in 0..200 * CALM {
            depth.did_not_wait();
        }
        assert!(depth.is_reached(SHORT + 8));
    }

    #[test]
    fn a_small_bound_is_not_exceeded_because_of_it() {
        let mut depth = Depth::default();
        depth.waited(100);
        assert!(depth.is_reached(SHORT), "the bound itself is the queue's to keep");
    }
}
