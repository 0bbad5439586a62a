//! One snapshot of the job for people and for the summary.

use serde::Serialize;

/// How far the job is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Status {
    /// In words: forming, train, inference, checkpoint, done.
    pub stage: String,
    /// Why nothing moves, when nothing does.
    pub waiting_for: Option<String>,
    /// Executors registered, and wanted.
    pub executors: (usize, usize),
    /// Updates applied.
    pub global_step: u64,
    /// Rows applied in this run.
    pub rows: u64,
    /// Rows that all epochs have, when known.
    pub rows_total: Option<u64>,
    /// Epochs whose rows are all applied.
    pub epochs_done: u32,
    /// Epochs asked for.
    pub epochs: u32,
    /// Exponential mean of the loss.
    pub loss: Option<f64>,
    /// Step of the newest checkpoint.
    pub checkpoint: Option<u64>,
    /// Of a query that is staged: partitions that are written, and all.
    pub staged_partitions: Option<(u32, u32)>,
    /// Gradients dropped as stale.
    pub dropped: u64,
    /// Milliseconds trainers stood still for lack of rows, summed.
    pub wait_data_ms: u64,
    /// Milliseconds trainers stood still for parameters, summed.
    pub wait_ps_ms: u64,
}
