//! Whether each row of each finished epoch was applied exactly once: the segments of a lineage beside its checkpoint.
//!
//! Segments are read several at a time, and of each only what its row ranges come to is kept. Who applied a row twice is
//! looked up in a second reading, which a ledger without a fault never needs.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use tfos_core::rows::{CommittedRows, Coverage, RowRange, coalesce};
use tfos_data::arrow::array::{Array, RecordBatch, UInt32Array, UInt64Array};
use tfos_data::parquet::arrow::ProjectionMask;
use tfos_data::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::broken;
use crate::error::Error;
use crate::model_dir::ModelDir;

/// Segments on their way at the same time: enough to hide a store's latency, few enough to bound the memory.
const AT_ONCE: usize = 16;

/// Rows of one decoded batch.
const BATCH_LINES: usize = 1 << 16;

/// Ranges of one kind that are named per epoch; beyond them only their number is told.
const NAMED: usize = 1000;

/// Updates that are named per range.
const UPDATES: usize = 20;

/// What a ledger says about the epochs of a job.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Audit {
    /// Applied rows in all, each as often as it was applied.
    pub rows: u64,
    /// Lines of the ledger: applied row ranges.
    pub leases: u64,
    /// Highest step.
    pub global_step: u64,
    /// What was found, per epoch.
    pub epochs: Vec<EpochAudit>,
}

impl Audit {
    /// Nothing is wrong with any row.
    pub fn is_clean(&self) -> bool {
        self.epochs.iter().all(|e| e.twice.is_empty() && e.missing.is_empty() && e.unexpected.is_empty())
    }
}

/// One epoch of an [`Audit`].
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct EpochAudit {
    /// Which one.
    pub epoch: u32,
    /// Rows applied.
    pub rows: u64,
    /// True when the manifest says that the epoch is complete.
    pub complete: bool,
    /// Row ranges applied more than once, and by which updates.
    pub twice: Vec<Twice>,
    /// Row ranges that the checkpoint has seen and no update applied.
    pub missing: Vec<RowRange>,
    /// Row ranges that an update applied and the checkpoint has not seen, or that the partition does not have.
    pub unexpected: Vec<RowRange>,
    /// Ranges that are wrong beyond those that are named here.
    pub more: usize,
}

/// Rows applied more than once.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Twice {
    /// The rows.
    #[serde(flatten)]
    pub range: RowRange,
    /// The updates that they were in.
    pub updates: Vec<Applied>,
}

/// One line of a segment.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Applied {
    /// Step that the update became.
    pub global_step: u64,
    /// Trainer that computed it: 0 is the chief.
    pub worker: u32,
    /// The segment that says so.
    pub segment: String,
    /// The rows of the line.
    #[serde(flatten)]
    pub range: RowRange,
}

/// What the ranges of a segment come to.
struct Summary {
    ranges: Vec<RowRange>,
    lines: u64,
    step: u64,
}

/// Reads the segments of a lineage and compares them with what its checkpoint has seen.
pub async fn audit(dir: &ModelDir, segments: &[String], committed: &CommittedRows) -> Result<Audit, Error> {
    let mut audit = Audit::default();
    let mut coverage = Coverage::default();
    let mut read = futures::stream::iter(segments.iter().map(|path| summary(dir, path))).buffer_unordered(AT_ONCE);
    while let Some(summary) = read.try_next().await? {
        coverage.add(&summary.ranges);
        audit.leases += summary.lines;
        audit.global_step = audit.global_step.max(summary.step);
    }
    audit.rows = coverage.rows();
    for found in coverage.compare(committed) {
        let mut more = 0;
        let mut named = |ranges: Vec<RowRange>| {
            more += ranges.len().saturating_sub(NAMED);
            ranges.into_iter().take(NAMED)
        };
        let twice = named(found.twice).map(|range| Twice { range, updates: vec![] }).collect();
        let (missing, unexpected) = (named(found.missing).collect(), named(found.unexpected).collect());
        let (epoch, rows, complete) = (found.epoch, found.rows, found.complete);
        audit.epochs.push(EpochAudit { epoch, rows, complete, twice, missing, unexpected, more });
    }
    if audit.epochs.iter().any(|e| !e.twice.is_empty()) {
        blame(dir, segments, &mut audit.epochs).await?;
    }
    Ok(audit)
}

async fn fetch(dir: &ModelDir, path: &str) -> Result<Bytes, Error> {
    let got = dir.store().get(&dir.path(path)).await.map_err(|e| broken(dir, path, e))?;
    got.bytes().await.map_err(|e| broken(dir, path, e))
}

/// One segment; decoded on a thread of its own, beside others.
async fn summary(dir: &ModelDir, path: &str) -> Result<Summary, Error> {
    let bytes = fetch(dir, path).await?;
    let decode = move || {
        let mut summary = Summary { ranges: vec![], lines: 0, step: 0 };
        each_batch(bytes, &["global_step", "epoch", "partition", "row_start", "row_end"], |lines| {
            summary.lines += lines.len() as u64;
            summary.step = lines.steps.values().iter().copied().fold(summary.step, u64::max);
            summary.ranges.extend(coalesce((0..lines.len()).map(|i| lines.range(i)).collect()));
        })?;
        summary.ranges = coalesce(std::mem::take(&mut summary.ranges));
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(summary)
    };
    match tokio::task::spawn_blocking(decode).await {
        Ok(decoded) => decoded.map_err(|e| broken(dir, path, e)),
        Err(panicked) => Err(broken(dir, path, panicked)),
    }
}

/// Names the updates of each range that was applied more than once.
async fn blame(dir: &ModelDir, segments: &[String], epochs: &mut [EpochAudit]) -> Result<(), Error> {
    // By their ends, so that those which a line may touch are found without looking at all of them.
    let mut wanted: BTreeMap<(u32, u32, u64), &mut Twice> = BTreeMap::new();
    for twice in epochs.iter_mut().flat_map(|e| &mut e.twice) {
        wanted.insert((twice.range.epoch, twice.range.partition, twice.range.end), twice);
    }
    for path in segments {
        let bytes = fetch(dir, path).await?;
        let columns = ["global_step", "epoch", "partition", "row_start", "row_end", "worker"];
        each_batch(bytes, &columns, |lines| {
            for (i, range) in (0..lines.len()).map(|i| (i, lines.range(i))) {
                let (epoch, partition) = (range.epoch, range.partition);
                let ends = (epoch, partition, range.start + 1)..=(epoch, partition, u64::MAX);
                for (_, twice) in wanted.range_mut(ends).take_while(|(_, t)| t.range.start < range.end) {
                    if twice.updates.len() < UPDATES {
                        let worker = lines.workers.as_ref().map_or(0, |w| w.value(i));
                        let (global_step, segment) = (lines.steps.value(i), path.clone());
                        twice.updates.push(Applied { global_step, worker, segment, range });
                    }
                }
            }
        })
        .map_err(|e| broken(dir, path, e))?;
    }
    Ok(())
}

/// Decoded lines of a segment.
struct Lines {
    steps: UInt64Array,
    epochs: UInt32Array,
    partitions: UInt32Array,
    starts: UInt64Array,
    ends: UInt64Array,
    workers: Option<UInt32Array>,
}

impl Lines {
    fn of(batch: &RecordBatch) -> Result<Self, String> {
        fn column<A: Array + Clone + 'static>(batch: &RecordBatch, name: &str) -> Result<A, String> {
            let column = batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<A>());
            let column = column.filter(|c| c.null_count() == 0);
            column.cloned().ok_or_else(|| format!("it has no column `{name}` of a ledger"))
        }
        let lines = Self {
            steps: column(batch, "global_step")?,
            epochs: column(batch, "epoch")?,
            partitions: column(batch, "partition")?,
            starts: column(batch, "row_start")?,
            ends: column(batch, "row_end")?,
            workers: column(batch, "worker").ok(),
        };
        let backwards = (0..lines.len()).find(|i| lines.starts.value(*i) > lines.ends.value(*i));
        backwards.map_or(Ok(()), |line| Err(format!("its line {line} has a range that ends before it starts")))?;
        Ok(lines)
    }

    fn len(&self) -> usize {
        self.steps.len()
    }

    fn range(&self, i: usize) -> RowRange {
        RowRange {
            epoch: self.epochs.value(i),
            partition: self.partitions.value(i),
            start: self.starts.value(i),
            end: self.ends.value(i),
        }
    }
}

/// Reads some columns of a segment, batch by batch.
fn each_batch(
    bytes: Bytes,
    columns: &[&str],
    mut each: impl FnMut(&Lines),
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    for batch in builder.with_projection(mask).with_batch_size(BATCH_LINES).build()? {
        each(&Lines::of(&batch?)?);
    }
    Ok(())
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
