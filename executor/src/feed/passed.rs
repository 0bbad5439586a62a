//! Rows that a node function has passed over, on their way to the driver.
//!
//! Who only looks at rows may do so many thousand times a second, and a message for each batch would cost driver and
//! executor more than the rows. So what is passed over in a few milliseconds is told together. Neighbours stay ranges of their
//! own: each is of one lease, and the driver looks whose it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tfos_core::proto::{Commit, Commits, from_executor::Message};
use tfos_core::rows::{RowRange, encode_ranges};
use tokio::runtime::Handle;

use crate::control::Outgoing;

/// How long rows wait for others at most.
const TOGETHER: Duration = Duration::from_millis(10);

/// Of one feed; clones are of the same.
#[derive(Debug, Clone)]
pub(crate) struct Passed {
    phase: u32,
    trainer: u32,
    outgoing: Outgoing,
    runtime: Handle,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// In the order in which they were passed over.
    ranges: Vec<RowRange>,
    rows: u64,
    /// The global step at which they were.
    step: u64,
}

impl Passed {
    pub(crate) fn new(phase: u32, trainer: u32, outgoing: Outgoing, runtime: Handle) -> Self {
        Self { phase, trainer, outgoing, runtime, waiting: Arc::default() }
    }

    /// No update is computed from these rows, and their epoch is complete without one.
    pub(super) fn add(&self, ranges: &[RowRange], rows: u64, step: u64) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.ranges.is_empty() && waiting.step != step {
            self.send(&mut waiting);
        }
        let is_first = waiting.ranges.is_empty();
        waiting.step = step;
        waiting.rows += rows;
        waiting.ranges.extend_from_slice(ranges);
        drop(waiting);
        if is_first {
            let passed = self.clone();
            self.runtime.spawn(async move {
                tokio::time::sleep(TOGETHER).await;
                passed.tell();
            });
        }
    }

    /// Tells the driver what has not been told yet: before anything that it must not hear first, and before a wait.
    pub(crate) fn tell(&self) {
        self.send(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Under the lock, so that nothing that is passed over later is told earlier.
    fn send(&self, waiting: &mut Waiting) {
        if waiting.ranges.is_empty() {
            return;
        }
        let Waiting { ranges, rows, step } = std::mem::take(waiting);
        let mut bytes = vec![];
        encode_ranges(&ranges, &mut bytes);
        let commit = Commit {
            global_step: step,
            worker: self.trainer,
            rows,
            loss: f64::NAN,
            ranges: bytes.into(),
            staleness: 0,
        };
        self.outgoing.send(Message::Commits(Commits { phase: self.phase, commits: vec![commit] }));
    }
}
