//! One stored format into another, and what is in a data set.
//!
//! Rows keep their order: partition by partition, as the plan lists the files. Files get their final name only when
//! every one of them is complete, so a failure leaves nothing that could be taken for a data set.
//!
//! How images travel: idx gives `image: FixedSizeList<UInt8>`. TFRecord stores it as a BytesList of one value, the raw
//! bytes (read it back as `image:binary` or `image:uint8[784]`); CSV as columns `label,p0,p1,...`; Avro and NDJSON as
//! lists of numbers.

mod output;
mod remote;
mod write;

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{DataFrame, SessionContext};
use futures::TryStreamExt;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::session::{self, BATCH_ROWS, Format};
use crate::tfrecord::{Compression, schema_text};
use crate::{idx, plan, store};
use remote::Staged;
use write::Writer;

/// How to write.
#[derive(Debug, Clone, Default)]
pub struct ConvertOptions {
    /// Begin a new file after so many rows.
    pub rows_per_file: Option<usize>,
    /// Divide the rows evenly into so many files; not together with `rows_per_file`.
    pub num_files: Option<usize>,
    /// Gzip for CSV, NDJSON, Parquet (page by page), idx and TFRecord; zlib for TFRecord.
    pub compression: Compression,
    /// The input's schema as a text, see [`crate::tfrecord::parse_schema`].
    pub schema: Option<String>,
}

/// A file and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileInfo {
    pub path: String,
    pub bytes: u64,
}

/// What [`convert`] wrote.
#[derive(Debug, Clone, Serialize)]
pub struct Converted {
    pub rows: u64,
    pub files: Vec<FileInfo>,
    /// What the format could not hold as it was.
    pub warnings: Vec<String>,
}

/// A column as people name it.
#[derive(Debug, Clone, Serialize)]
pub struct ColumnInfo {
    pub name: String,
    #[serde(rename = "type")]
    pub data_type: String,
    pub nullable: bool,
}

/// What is in a data set.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    pub format: Format,
    pub columns: Vec<ColumnInfo>,
    /// The schema as a text that can be given back, where its types have one.
    pub schema: Option<String>,
    pub files: Vec<FileInfo>,
    pub rows: u64,
}

/// Reads `from` (as [`session::read`] does, or an idx prefix) and writes `to`: one file, or with a number of rows or
/// files, or a `to` that ends with `/`, a directory of `part-00000.EXT` files that has no data files yet. Both may be addresses of object stores.
pub async fn convert(
    from: &str,
    from_format: Format,
    to: &str,
    to_format: Format,
    options: &ConvertOptions,
) -> Result<Converted> {
    let input = Input::open(from, from_format, options.schema.as_deref()).await?;
    let rows_per_file = match (options.rows_per_file, options.num_files) {
        (Some(_), Some(_)) => {
            return Err(Error::Unsupported {
                what: "rows per file together with a number of files".into(),
                instead: "give one of them".into(),
            });
        }
        (Some(0), _) | (_, Some(0)) => {
            return Err(Error::Unsupported {
                what: "zero rows or files".into(),
                instead: "give a positive number".into(),
            });
        }
        (rows, None) => rows,
        (None, Some(files)) => Some(usize::try_from(input.rows().await?).unwrap_or(usize::MAX).div_ceil(files).max(1)),
    };
    let staged = Staged::for_address(to, rows_per_file.is_some()).await?;
    let local = staged.as_ref().map(Staged::local);
    let to = local.as_deref().unwrap_or(to);
    let mut writer = Writer::new(to, to_format, options.compression, rows_per_file, input.schema())?;
    match &input {
        Input::Batch(batch) => {
            for start in (0..batch.num_rows()).step_by(BATCH_ROWS) {
                writer.write(&batch.slice(start, BATCH_ROWS.min(batch.num_rows() - start)))?;
            }
        }
        Input::Plan(physical, ctx) => {
            for partition in 0..plan::partitions(physical) {
                let mut batches = plan::execute(physical, partition, ctx)?;
                while let Some(batch) = batches.try_next().await? {
                    writer.write(&batch)?;
                }
            }
        }
    }
    let mut converted = writer.finish()?;
    if let Some(staged) = staged {
        converted.files = staged.upload(converted.files).await?;
    }
    Ok(converted)
}

/// Writes the rows of a query to one file or, with a number of rows per file or a `to` that ends with `/`, to a directory
/// of them, as [`convert`] does. Rows come in the order of the query's partitions.
pub async fn write(rows: DataFrame, to: &str, format: Format, options: &ConvertOptions) -> Result<Converted> {
    if options.num_files.is_some() {
        return Err(Error::Unsupported {
            what: "a number of files for the rows of a query".into(),
            instead: "give a number of rows per file".into(),
        });
    }
    let plan = rows.clone().create_physical_plan().await?;
    let ctx = Arc::new(rows.task_ctx());
    let staged = Staged::for_address(to, options.rows_per_file.is_some()).await?;
    let local = staged.as_ref().map(Staged::local);
    let to = local.as_deref().unwrap_or(to);
    let mut writer = Writer::new(to, format, options.compression, options.rows_per_file, plan.schema())?;
    for partition in 0..plan::partitions(&plan) {
        let mut batches = plan.execute(partition, Arc::clone(&ctx))?;
        while let Some(batch) = batches.try_next().await? {
            writer.write(&batch)?;
        }
    }
    let mut converted = writer.finish()?;
    if let Some(staged) = staged {
        converted.files = staged.upload(converted.files).await?;
    }
    Ok(converted)
}

/// Lists the files, their schema and the number of rows; reads everything where no statistics tell the number.
pub async fn describe(url: &str, format: Format) -> Result<Description> {
    let input = Input::open(url, format, None).await?;
    let schema = input.schema();
    let column = |f: &Arc<datafusion::arrow::datatypes::Field>| ColumnInfo {
        name: f.name().clone(),
        data_type: f.data_type().to_string(),
        nullable: f.is_nullable(),
    };
    let files = if format == Format::Idx {
        let (images, labels) = idx::files(url)?;
        [images, labels].map(|p| output::info(&p)).into_iter().collect::<Result<_>>()?
    } else {
        let listing = store::list(url).await?;
        let info = |f: &object_store::ObjectMeta| FileInfo {
            path: store::display(listing.root.as_str(), Some(&f.location)),
            bytes: f.size,
        };
        listing.files.iter().map(info).collect()
    };
    Ok(Description {
        format,
        columns: schema.fields().iter().map(column).collect(),
        schema: schema_text(&schema).ok(),
        files,
        rows: input.rows().await?,
    })
}

enum Input {
    Batch(RecordBatch),
    Plan(Arc<dyn ExecutionPlan>, SessionContext),
}

impl Input {
    async fn open(url: &str, format: Format, schema: Option<&str>) -> Result<Self> {
        if format == Format::Idx {
            return Ok(Self::Batch(idx::read(url)?));
        }
        let ctx = session::session();
        let rows = session::read(&ctx, url, format, schema).await?;
        let plan = rows.create_physical_plan().await?;
        Ok(Self::Plan(plan, ctx))
    }

    fn schema(&self) -> SchemaRef {
        match self {
            Self::Batch(batch) => batch.schema(),
            Self::Plan(plan, _) => plan.schema(),
        }
    }

    async fn rows(&self) -> Result<u64> {
        let (physical, ctx) = match self {
            Self::Batch(batch) => return Ok(batch.num_rows() as u64),
            Self::Plan(plan, ctx) => (plan, ctx),
        };
        let mut total = 0;
        for partition in 0..plan::partitions(physical) {
            total += match plan::partition_rows(physical, partition) {
                Some(rows) => rows,
                None => {
                    let batches = plan::execute(physical, partition, ctx)?;
                    batches.try_fold(0, |n, b| std::future::ready(Ok(n + b.num_rows() as u64))).await?
                }
            };
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests;
