//! The reading end of a feed, as a training function sees it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tfos_core::proto::{Terminate, from_executor::Message};
use tfos_core::rows::{MicroBatch, RowRange};

use super::batch::Batch;
use super::passed::Passed;
use super::queue::{Front, Pop, Queue};
use crate::Error;
use crate::control::{Counters, Outgoing};

/// How long the trainer waits for rows before it looks whether it is wanted for something else.
const PATIENCE: Duration = Duration::from_millis(20);

/// What the machinery around a feed does while the trainer waits in it.
pub(crate) trait Hooks: Send + Sync {
    /// The trainer stands still: a checkpoint may be taken.
    fn waiting(&self) -> Result<(), Error>;
    /// There are no rows for this node now; others must not wait for its gradient.
    fn idle(&self) -> Result<(), Error>;
    /// There are rows again.
    fn active(&self) -> Result<(), Error>;
    /// The cut of checkpoint `id` is here.
    fn snapshot(&self, id: u64) -> Result<(), Error>;
    /// Deterministic training: brings the trainer to the beginning of this micro-batch. May return early, for the caller
    /// to look whether there is an earlier one.
    fn begin(&self, micro_batch: MicroBatch) -> Result<Begun, Error>;
}

/// Whether a micro-batch can be computed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "torch"), expect(dead_code, reason = "only a model computes steps"))]
pub(crate) enum Begun {
    Yes,
    /// The step before it is not complete.
    NotYet,
    /// No step will be made any more.
    Over,
}

/// Rows that were handed out and neither applied nor passed over yet.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    pub(crate) ranges: Vec<RowRange>,
    pub(crate) rows: u64,
    /// Deterministic training: their place.
    pub(crate) micro_batch: Option<MicroBatch>,
    /// Inference: results for them are in.
    pub(crate) answered: bool,
    /// Schema of the input, for messages and results.
    pub(crate) batch: Option<Batch>,
}

/// The stream of leased rows into a node. Clones read the same stream.
#[derive(Clone)]
pub struct DataFeed {
    pub(crate) phase: u32,
    pub(crate) trainer: u32,
    pub(crate) inference: bool,
    pub(crate) drop_last: bool,
    pub(crate) queue: Arc<Queue>,
    pub(crate) outstanding: Arc<Mutex<Outstanding>>,
    pub(crate) outgoing: Outgoing,
    pub(crate) hooks: Arc<dyn Hooks>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) passed: Passed,
}

impl fmt::Debug for DataFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataFeed").field("phase", &self.phase).field("trainer", &self.trainer).finish_non_exhaustive()
    }
}

impl DataFeed {
    /// With `true`, every batch has exactly as many rows as were asked for. Rows that are left over where an epoch ends,
    /// or where this node gets no more for now, fewer than a batch, count as passed over: once, so that the epoch
    /// completes, and in the summary's `rows_passed_over`.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// Up to `n` rows of one epoch; fewer only at the end of an epoch or of the data, and never with
    /// [`Self::drop_last`]. `None` when the feed has ended: every row of every epoch is applied, or the job stops.
    ///
    /// The rows of the batch count as seen when [`step`](crate::NodeContext::step) applies the gradient that
    /// was computed from them, or, if that never happens, when the next batch is asked for.
    ///
    /// In deterministic training `n` is the same each time, and each batch takes a step: the batches are then the same
    /// whoever asks. A batch is short at the end of each partition.
    pub fn next_batch(&mut self, n: usize) -> Result<Option<Batch>, Error> {
        if n == 0 {
            return Err(Error::Usage {
                what: "a batch of 0 rows was asked for".into(),
                try_this: "ask for 1 or more".into(),
            });
        }
        if self.drop_last && self.inference {
            return Err(Error::Usage {
                what: "inference has a result for each row, and drop_last leaves rows out".into(),
                try_this: "leave drop_last out in inference".into(),
            });
        }
        if self.drop_last && self.queue.is_in_order() {
            return Err(Error::Usage {
                what: "drop_last leaves rows out, and --deterministic makes a part of an update of each row".into(),
                try_this: "leave one of them out".into(),
            });
        }
        self.settle()?;
        let begin = Instant::now();
        if self.queue.is_in_order() {
            let batch = self.next_micro_batch(n)?;
            self.counters.wait_data(begin.elapsed());
            return Ok(batch.inspect(|batch| self.hand_out(batch)));
        }
        let mut idle = false;
        let batch = loop {
            match self.queue.pop(n, PATIENCE)? {
                Pop::Batch(batch) if self.drop_last && batch.rows() < n => {
                    self.pass_over(batch.ranges(), batch.rows() as u64);
                }
                Pop::Batch(batch) => break Some(batch),
                Pop::End => break None,
                Pop::Pending { starved } => {
                    self.passed.tell();
                    self.hooks.waiting()?;
                    if starved && !idle {
                        self.hooks.idle()?;
                        idle = true;
                    }
                }
            }
        };
        if idle && batch.is_some() {
            self.hooks.active()?;
        }
        self.counters.wait_data(begin.elapsed());
        Ok(batch.inspect(|batch| self.hand_out(batch)))
    }

    /// What ends the wait: a micro-batch is here and so are the parameters for it, or the feed ends.
    fn next_micro_batch(&self, n: usize) -> Result<Option<Batch>, Error> {
        loop {
            match self.queue.front(n, PATIENCE)? {
                Front::MicroBatch(first) => match self.hooks.begin(first)? {
                    Begun::Yes => {
                        if let Some(batch) = self.queue.take_front(first) {
                            return Ok(Some(batch));
                        }
                    }
                    Begun::NotYet => {}
                    Begun::Over => self.queue.close(),
                },
                Front::Pending => self.hooks.waiting()?,
                Front::End => return Ok(None),
            }
        }
    }

    fn hand_out(&self, batch: &Batch) {
        let mut out = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        out.ranges.extend_from_slice(batch.ranges());
        out.rows += batch.rows() as u64;
        out.micro_batch = batch.micro_batch();
        out.answered = false;
        out.batch = self.inference.then(|| batch.clone());
    }

    /// True when [`Self::next_batch`] would give nothing any more.
    pub fn should_stop(&self) -> bool {
        self.queue.is_closed()
    }

    /// Ends the feed for every node of the job: scans are cancelled and nothing more is read.
    pub fn terminate(&mut self) {
        self.queue.close();
        self.passed.tell();
        self.outgoing.send(Message::Terminate(Terminate { phase: self.phase }));
    }

    /// Rows of the batch before this one that no step has taken: the function has passed them over.
    fn settle(&self) -> Result<(), Error> {
        let mut out = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        if out.ranges.is_empty() {
            return Ok(());
        }
        if self.inference && !out.answered {
            return Err(Error::ResultCount { column: "every column".into(), results: 0, rows: out.rows as usize });
        }
        if let Some(MicroBatch { step, .. }) = out.micro_batch {
            return Err(Error::Usage {
                what: format!("a batch of step {step} was passed over"),
                try_this: "with --deterministic take a step for each batch: its gradient is part of the update".into(),
            });
        }
        let taken = std::mem::take(&mut *out);
        drop(out);
        self.pass_over(&taken.ranges, taken.rows);
        Ok(())
    }

    /// No update is computed from these rows, and their epoch is complete without one.
    fn pass_over(&self, rows: &[RowRange], count: u64) {
        self.counters.add_rows(count);
        self.passed.add(rows, count, self.counters.step());
    }
}
