//! The commit log: which rows became which global step, as Parquet segments that any tool can read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use object_store::{ObjectStoreExt, PutPayload};
use tfos_core::checkpoint::Paths;
use tfos_core::ids::{Generation, GlobalStep};
use tfos_core::rows::{RangeSet, RowRange};
use tfos_data::arrow::array::{Array, ArrayRef, Float64Array, RecordBatch, UInt32Array, UInt64Array};
use tfos_data::arrow::datatypes::{DataType, Field, Schema};
use tfos_data::parquet::arrow::ArrowWriter;
use tfos_data::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::Error;
use crate::event::CommitRecord;
use crate::model_dir::ModelDir;

/// Columns of a segment: one line per applied row range.
fn schema() -> Schema {
    let field = |name: &str, ty: DataType| Field::new(name, ty, false);
    Schema::new(vec![
        field("global_step", DataType::UInt64),
        field("generation", DataType::UInt64),
        field("epoch", DataType::UInt32),
        field("partition", DataType::UInt32),
        field("row_start", DataType::UInt64),
        field("row_end", DataType::UInt64),
        field("worker", DataType::UInt32),
        field("loss", DataType::Float64),
        field("time_ms", DataType::UInt64),
    ])
}

/// Milliseconds since 1970 of a moment of this process.
fn wall_clock_ms(at: Instant) -> u64 {
    let then = SystemTime::now().checked_sub(at.elapsed()).and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    then.map_or(0, |d| d.as_millis() as u64)
}

fn broken(dir: &ModelDir, path: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    let what = format!("the ledger segment `{path}` cannot be read or written");
    Error::ModelDir { url: dir.url().to_string(), what, source: Box::new(source) }
}

/// Writes the commits after `after` up to `upto`; returns the segment's path.
pub async fn write_segment(
    dir: &ModelDir,
    generation: Generation,
    after: GlobalStep,
    upto: GlobalStep,
    commits: &[CommitRecord],
) -> Result<String, Error> {
    let path = Paths::ledger_segment(generation, after, upto);
    let lines = || commits.iter().flat_map(|c| c.ranges.iter().map(move |r| (c, r)));
    let u64s = |f: &dyn Fn(&CommitRecord, &RowRange) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(lines().map(|(c, r)| f(c, r))))
    };
    let u32s = |f: &dyn Fn(&CommitRecord, &RowRange) -> u32| -> ArrayRef {
        Arc::new(UInt32Array::from_iter_values(lines().map(|(c, r)| f(c, r))))
    };
    let columns: Vec<ArrayRef> = vec![
        u64s(&|c, _| c.global_step),
        u64s(&|_, _| generation.0),
        u32s(&|_, r| r.epoch),
        u32s(&|_, r| r.partition),
        u64s(&|_, r| r.start),
        u64s(&|_, r| r.end),
        u32s(&|c, _| c.worker),
        Arc::new(Float64Array::from_iter_values(lines().map(|(c, _)| c.loss))),
        u64s(&|c, _| wall_clock_ms(c.at)),
    ];
    let batch = RecordBatch::try_new(Arc::new(schema()), columns).map_err(|e| broken(dir, &path, e))?;
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).map_err(|e| broken(dir, &path, e))?;
    writer.write(&batch).map_err(|e| broken(dir, &path, e))?;
    let bytes = writer.into_inner().map_err(|e| broken(dir, &path, e))?;
    dir.store().put(&dir.path(&path), PutPayload::from(bytes)).await.map_err(|e| broken(dir, &path, e))?;
    Ok(path)
}

/// What a ledger says about the epochs of a job.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Audit {
    /// Applied rows in all.
    pub rows: u64,
    /// Highest step.
    pub global_step: u64,
    /// Per epoch: rows applied, ranges applied twice, and holes below the partition's end.
    pub epochs: Vec<EpochAudit>,
}

/// One epoch of an [`Audit`].
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct EpochAudit {
    /// Which one.
    pub epoch: u32,
    /// Rows applied.
    pub rows: u64,
    /// Row ranges applied more than once.
    pub twice: Vec<RowRange>,
    /// Row ranges of a finished epoch never applied.
    pub missing: Vec<RowRange>,
    /// True when the manifest says that the epoch is complete.
    pub complete: bool,
}

/// Reads the segments of a lineage and checks every row.
pub async fn audit(
    dir: &ModelDir,
    segments: &[String],
    complete_epochs: u32,
    partition_rows: &[Option<u64>],
) -> Result<Audit, Error> {
    let mut audit = Audit { rows: 0, global_step: 0, epochs: vec![] };
    let mut sets: BTreeMap<u32, BTreeMap<u32, RangeSet>> = BTreeMap::new();
    let mut epochs: BTreeMap<u32, EpochAudit> = BTreeMap::new();
    for path in segments {
        let got = dir.store().get(&dir.path(path)).await.map_err(|e| broken(dir, path, e))?;
        let bytes: Bytes = got.bytes().await.map_err(|e| broken(dir, path, e))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|b| b.build());
        for batch in reader.map_err(|e| broken(dir, path, e))? {
            let batch = batch.map_err(|e| broken(dir, path, e))?;
            for range in ranges(&batch).ok_or_else(|| broken(dir, path, std::fmt::Error))? {
                let (step, range) = range;
                audit.rows += range.rows();
                audit.global_step = audit.global_step.max(step);
                let epoch = epochs
                    .entry(range.epoch)
                    .or_insert_with(|| EpochAudit { epoch: range.epoch, ..Default::default() });
                epoch.rows += range.rows();
                let set = sets.entry(range.epoch).or_default().entry(range.partition).or_default();
                if !set.insert(range.start, range.end) {
                    epoch.twice.push(range);
                }
            }
        }
    }
    for number in 0..complete_epochs {
        let epoch = epochs.entry(number).or_insert_with(|| EpochAudit { epoch: number, ..Default::default() });
        epoch.complete = true;
        for (partition, rows) in partition_rows.iter().enumerate() {
            let partition = partition as u32;
            let empty = RangeSet::default();
            let set = sets.get(&number).and_then(|p| p.get(&partition)).unwrap_or(&empty);
            for (start, end) in set.gaps(rows.unwrap_or(0)).iter() {
                epoch.missing.push(RowRange { epoch: number, partition, start, end });
            }
        }
    }
    audit.epochs = epochs.into_values().collect();
    Ok(audit)
}

fn ranges(batch: &RecordBatch) -> Option<Vec<(u64, RowRange)>> {
    let u64s = |name: &str| batch.column_by_name(name)?.as_any().downcast_ref::<UInt64Array>().cloned();
    let u32s = |name: &str| batch.column_by_name(name)?.as_any().downcast_ref::<UInt32Array>().cloned();
    let (steps, starts, ends) = (u64s("global_step")?, u64s("row_start")?, u64s("row_end")?);
    let (epochs, partitions) = (u32s("epoch")?, u32s("partition")?);
    let line = |i: usize| {
        let range = RowRange {
            epoch: epochs.value(i),
            partition: partitions.value(i),
            start: starts.value(i),
            end: ends.value(i),
        };
        (steps.value(i), range)
    };
    Some((0..steps.len()).map(line).collect())
}
