//! What a phase is asked to do, and how it ended.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use tfos_core::checkpoint::Column;
use tfos_core::ids::GlobalStep;
use tfos_core::proto;
use tfos_core::rows::{CommittedRows, Shuffle};

/// What a phase is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseKind {
    /// Compute updates; the only kind that uses ps and takes checkpoints.
    Train,
    /// One result per row.
    Inference,
    /// Means of metrics over all rows.
    Evaluate,
    /// Write the rows of a query into files; over when every partition of it is written.
    Stage,
}

impl fmt::Display for PhaseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Inference => "inference",
            Self::Evaluate => "evaluate",
            Self::Stage => "stage",
        })
    }
}

/// A phase to run.
#[derive(Debug, Clone)]
pub struct PhaseSpec {
    /// What for.
    pub kind: PhaseKind,
    /// Passes over the data.
    pub epochs: u32,
    /// Rows of each partition of the fed input, where known.
    pub partition_rows: Vec<Option<u64>>,
    /// In which order its rows come.
    pub shuffle: Option<Shuffle>,
    /// Deterministic training: micro-batches of a step.
    pub micro_batches: Option<NonZeroU32>,
    /// Identity of the fed input.
    pub input_fingerprint: String,
    /// Its columns, where known.
    pub columns: Vec<Column>,
    /// Rows committed before, from the checkpoint.
    pub committed: CommittedRows,
    /// Their number.
    pub rows_before: u64,
    /// Step of the checkpoint that the phase starts from.
    pub restored_step: GlobalStep,
    /// Stop at this step.
    pub max_steps: Option<u64>,
    /// Of a query that is staged: into how many partitions.
    pub staged_partitions: Option<u32>,
    /// Sent to every node of the phase, with its id filled in.
    pub start: proto::StartPhase,
}

/// Why the feed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseEnd {
    /// Every row of every epoch is applied.
    Complete,
    /// The global step asked for is reached.
    MaxSteps,
    /// The training function said so.
    Terminated,
    /// The user said so.
    Drained,
    /// Every training function returned before the rows were used up.
    Returned,
}

impl fmt::Display for PhaseEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "every row of every epoch was applied",
            Self::MaxSteps => "the global step asked for was reached",
            Self::Terminated => "the training function ended the feed",
            Self::Drained => "the user stopped it",
            Self::Returned => "the training functions returned",
        })
    }
}

/// Mean of a metric over rows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MetricMean {
    pub(super) sum: f64,
    pub(super) rows: u64,
}

impl MetricMean {
    /// The mean over all rows.
    pub fn mean(&self) -> f64 {
        if self.rows == 0 { f64::NAN } else { self.sum / self.rows as f64 }
    }
}

/// What the feed of a node held in memory at most, bytes; each number is that of the node with most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct FeedMemory {
    /// `--feed-memory`.
    pub bound: u64,
    /// Rows that were scanned and not yet asked for.
    pub queue: u64,
    /// Open partitions: what is left of a batch, blocks to mix, the row group that is being decoded.
    pub scan: u64,
    /// The batch in the trainer's hands.
    pub batch: u64,
    /// Queue, scan and batch at one time.
    pub together: u64,
    /// The whole process, with libtorch.
    pub resident: u64,
}

impl FeedMemory {
    pub(super) fn note(&mut self, other: &proto::FeedMemory) {
        *self = Self {
            bound: self.bound.max(other.bound),
            queue: self.queue.max(other.queue),
            scan: self.scan.max(other.scan),
            batch: self.batch.max(other.batch),
            together: self.together.max(other.together),
            resident: self.resident.max(other.resident),
        };
    }
}

/// How a phase ended.
#[derive(Debug, Clone)]
pub struct PhaseOutcome {
    /// Why the feed ended.
    pub end: PhaseEnd,
    /// Updates applied to the model.
    pub global_step: GlobalStep,
    /// Rows applied in this phase.
    pub rows: u64,
    /// Rows applied over all generations.
    pub rows_total: u64,
    /// Complete epochs.
    pub epochs: u32,
    /// Mean loss of late.
    pub loss: Option<f64>,
    /// Files of a staged query.
    pub staged: Vec<proto::StagedFile>,
    /// Means by name, of the newest step that they were reported for.
    pub metrics: BTreeMap<String, MetricMean>,
    /// Outputs of inference.
    pub results: Vec<proto::Result>,
    /// Gradients dropped as stale.
    pub dropped: u64,
    /// Rows that no update was computed from.
    pub passed_over: u64,
    /// What the feeds held.
    pub memory: FeedMemory,
    /// The most own steps that a trainer began a step ahead of the slowest; 0 in synchronous training.
    pub largest_staleness: u64,
}
