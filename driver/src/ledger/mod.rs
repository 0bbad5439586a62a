//! The commit log: which rows became which global step, as Parquet segments that any tool can read.

mod audit;
mod tables;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use object_store::{ObjectStoreExt, PutPayload};
use tfos_core::checkpoint::Paths;
use tfos_core::ids::{Generation, GlobalStep};
use tfos_core::rows::RowRange;
use tfos_data::arrow::array::{ArrayRef, Float64Array, RecordBatch, UInt32Array, UInt64Array};
use tfos_data::arrow::datatypes::{DataType, Field, Schema};
use tfos_data::parquet::arrow::ArrowWriter;

use crate::error::Error;
use crate::event::CommitRecord;
use crate::model_dir::ModelDir;

pub use audit::{Applied, Audit, EpochAudit, Twice, audit};
pub use tables::open;

/// Columns of a segment: one line per applied row range. An update without rows has one line, of an empty range.
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
pub(crate) fn wall_clock_ms(at: Instant) -> u64 {
    let then = SystemTime::now().checked_sub(at.elapsed()).and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    then.map_or(0, |d| d.as_millis() as u64)
}

fn broken(dir: &ModelDir, path: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let what = format!("the ledger segment `{path}` cannot be read or written");
    Error::ModelDir { url: dir.url().to_string(), what, source: source.into() }
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
    let none = [RowRange { epoch: 0, partition: 0, start: 0, end: 0 }];
    let ranges = |c: &'_ CommitRecord| if c.ranges.is_empty() { none.to_vec() } else { c.ranges.clone() };
    let lines: Vec<(&CommitRecord, RowRange)> =
        commits.iter().flat_map(|c| ranges(c).into_iter().map(move |r| (c, r))).collect();
    let u64s = |f: &dyn Fn(&CommitRecord, &RowRange) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(lines.iter().map(|(c, r)| f(c, r))))
    };
    let u32s = |f: &dyn Fn(&CommitRecord, &RowRange) -> u32| -> ArrayRef {
        Arc::new(UInt32Array::from_iter_values(lines.iter().map(|(c, r)| f(c, r))))
    };
    let columns: Vec<ArrayRef> = vec![
        u64s(&|c, _| c.global_step),
        u64s(&|_, _| generation.0),
        u32s(&|_, r| r.epoch),
        u32s(&|_, r| r.partition),
        u64s(&|_, r| r.start),
        u64s(&|_, r| r.end),
        u32s(&|c, _| c.worker),
        Arc::new(Float64Array::from_iter_values(lines.iter().map(|(c, _)| c.loss))),
        u64s(&|c, _| wall_clock_ms(c.at)),
    ];
    let batch = RecordBatch::try_new(Arc::new(schema()), columns).map_err(|e| broken(dir, &path, e))?;
    let bytes = parquet(&batch).map_err(|e| broken(dir, &path, e))?;
    dir.store().put(&dir.path(&path), PutPayload::from(bytes)).await.map_err(|e| broken(dir, &path, e))?;
    dir.settle(&path).await?;
    Ok(path)
}

/// Rows as one Parquet file.
pub(crate) fn parquet(batch: &RecordBatch) -> Result<Vec<u8>, tfos_data::parquet::errors::ParquetError> {
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None)?;
    writer.write(batch)?;
    writer.into_inner()
}
