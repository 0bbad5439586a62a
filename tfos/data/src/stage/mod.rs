//! Runs a query whole, once, and writes its rows into Arrow IPC files: in this process, or ([`Sink`]) as the last operator
//! of a query that an engine runs in several.
//!
//! STG-1: a query with an exchange (join, aggregate, sort) may give its rows in another order each time it runs, so its
//! rows have no addresses; those of the files have. A file is put under its name only when it is whole.

mod sink;

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::writer::FileWriter;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

pub use self::sink::{Sink, Writer};
use crate::error::{Error, Result};
use crate::store;

/// Memory for files that are being written, over all partitions of the query.
const WRITE_BYTES: usize = 512 << 20;

/// A file that is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagedFile {
    /// Name in the folder; in order of their names, the files have the rows in the order of the query.
    pub name: String,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
}

/// Files that are durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// In the order of their rows.
    pub files: Vec<StagedFile>,
    /// The partition of the query that has all its files now.
    pub whole: Option<usize>,
}

/// Writes all rows of `plan` into files in `folder`, an address, and calls `done` for what is durable. Files of one
/// partition of the plan hold its rows in order. There is at least one file, so that the schema is known of no rows too.
///
/// Dropping the future stops the query.
pub async fn stage(
    plan: &Arc<dyn ExecutionPlan>,
    ctx: &SessionContext,
    folder: &str,
    done: impl Fn(Written) + Clone + Send + Sync + 'static,
) -> Result<()> {
    let (store, folder, _) = store::resolve(folder)?;
    // All at once: a repartitioning fills the queues of every output, and stands still when one is not read.
    let partitions = execute_stream_partitioned(Arc::clone(plan), ctx.task_ctx())?;
    let file_bytes = file_bytes(partitions.len());
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for (partition, rows) in partitions.into_iter().enumerate() {
        let place = (Arc::clone(&store), folder.clone());
        let files = Files::new(place, partition, String::new(), file_bytes, &rows.schema());
        let done = done.clone();
        tasks.spawn(async move {
            write(rows, files, |file| done(Written { files: vec![file], whole: None })).await?;
            done(Written { files: vec![], whole: Some(partition) });
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(result) => result?,
            // The panic goes on in the caller, who reports it as one of the query.
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => return Err(Error::Plan { reason: "the query was stopped".into() }),
        }
    }
    Ok(())
}

/// Bytes at which a file is closed, where so many are written at the same time.
fn file_bytes(writers: usize) -> usize {
    (WRITE_BYTES / writers.max(1)).clamp(4 << 20, 64 << 20)
}

async fn write(
    mut rows: SendableRecordBatchStream,
    mut files: Files,
    mut done: impl FnMut(StagedFile) + Send,
) -> Result<()> {
    while let Some(batch) = rows.try_next().await.map_err(Error::from_datafusion)? {
        files.add(&batch)?;
        if files.is_full() {
            files.close().await?.into_iter().for_each(&mut done);
        }
    }
    if files.partition == 0 && files.number == 0 && files.open.is_none() {
        files.add(&RecordBatch::new_empty(rows.schema()))?;
    }
    files.close().await?.into_iter().for_each(&mut done);
    Ok(())
}

/// The files of one partition, one after the other; in memory until it is whole.
struct Files {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    partition: usize,
    number: usize,
    /// Part of the names, where more than one attempt at a partition can be.
    attempt: String,
    file_bytes: usize,
    schema: SchemaRef,
    open: Option<(FileWriter<Vec<u8>>, u64)>,
}

impl Files {
    fn new(
        (store, folder): (Arc<dyn ObjectStore>, Path),
        partition: usize,
        attempt: String,
        file_bytes: usize,
        schema: &Schema,
    ) -> Self {
        let schema = plain_schema(schema);
        Self { store, folder, partition, number: 0, attempt, file_bytes, schema, open: None }
    }

    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let (mut writer, rows) = match self.open.take() {
            Some(open) => open,
            None => (FileWriter::try_new(Vec::new(), &self.schema)?, 0),
        };
        writer.write(&plain_rows(batch, &self.schema)?)?;
        self.open = Some((writer, rows + batch.num_rows() as u64));
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|(writer, _)| writer.get_ref().len() >= self.file_bytes)
    }

    async fn close(&mut self) -> Result<Option<StagedFile>> {
        let Some((writer, rows)) = self.open.take() else { return Ok(None) };
        let bytes = Bytes::from(writer.into_inner()?);
        let name = format!("part-{:05}-{:05}{}.arrow", self.partition, self.number, self.attempt);
        self.number += 1;
        let file = StagedFile { rows, bytes: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes), name: name.clone() };
        let path = self.folder.clone().join(name);
        let put = self.store.put(&path, PutPayload::from(bytes)).await;
        put.map_err(|source| Error::Store { url: path.to_string(), source })?;
        Ok(Some(file))
    }
}

/// The schema with values for dictionaries and plain strings for views, at the top level: batches differ in their
/// dictionaries, of which a file has room for one, and views would drag along all that they were cut from.
pub fn plain_schema(schema: &Schema) -> SchemaRef {
    let field = |field: &Arc<Field>| match plain_type(field.data_type()) {
        None => Arc::clone(field),
        Some(plain) => Arc::new(field.as_ref().clone().with_data_type(plain)),
    };
    let fields: Vec<_> = schema.fields().iter().map(field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn plain_type(of: &DataType) -> Option<DataType> {
    match of {
        DataType::Dictionary(_, values) => Some(plain_type(values).unwrap_or_else(|| values.as_ref().clone())),
        DataType::Utf8View => Some(DataType::Utf8),
        DataType::BinaryView => Some(DataType::Binary),
        _ => None,
    }
}

/// The rows as [`plain_schema`] has them.
pub fn plain_rows(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let column = |(array, field): (&ArrayRef, &Arc<Field>)| match array.data_type() == field.data_type() {
        true => Ok(Arc::clone(array)),
        false => cast(array, field.data_type()),
    };
    let columns = batch.columns().iter().zip(schema.fields()).map(column).collect::<Result<Vec<_>, _>>()?;
    let options = datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use datafusion::arrow::array::{AsArray, Int64Array};
    use datafusion::arrow::datatypes::Int64Type;
    use datafusion::functions_aggregate::expr_fn::sum;
    use datafusion::prelude::col;

    use super::*;
    use crate::session::{self, Format};

    async fn staged(query: &str) -> (tempfile::TempDir, Vec<StagedFile>, Vec<RecordBatch>) {
        let dir = tempfile::tempdir().unwrap();
        let ctx = session::session();
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10_000));
        ctx.register_batch("t", RecordBatch::try_from_iter([("x", numbers)]).unwrap()).unwrap();
        let plan = ctx.sql(query).await.unwrap().create_physical_plan().await.unwrap();
        // As it comes to an executor.
        let plan = crate::plan::decode(&crate::plan::encode(&plan).unwrap(), &ctx).unwrap();
        let files = Arc::new(Mutex::new(vec![]));
        let seen = Arc::clone(&files);
        let address = dir.path().display().to_string();
        let partitions = crate::plan::partitions(&plan);
        let whole = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&whole);
        let done = move |written: Written| {
            *counted.lock().unwrap() += usize::from(written.whole.is_some());
            seen.lock().unwrap().extend(written.files);
        };
        stage(&plan, &ctx, &address, done).await.unwrap();
        assert_eq!(*whole.lock().unwrap(), partitions);
        let mut files = files.lock().unwrap().clone();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        for file in &files {
            let bytes = std::fs::read(dir.path().join(&file.name)).unwrap();
            assert_eq!((bytes.len() as u64, crc32c::crc32c(&bytes)), (file.bytes, file.crc32c));
        }
        let back = session::read(&ctx, &address, Format::Arrow, None).await.unwrap();
        (dir, files, back.collect().await.unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)] // STG-1
    async fn rows_of_joins_and_aggregates_are_written_once() {
        let query = "SELECT a.x % 100 AS k, arrow_cast(CAST(max(b.x) AS VARCHAR), 'Utf8View') AS s, sum(b.x) AS total \
                     FROM t a JOIN t b ON a.x = b.x GROUP BY a.x % 100";
        let (_dir, files, rows) = staged(query).await;
        assert_eq!(files.iter().map(|f| f.rows).sum::<u64>(), 100);
        let ctx = session::session();
        ctx.register_batch("r", datafusion::arrow::compute::concat_batches(&rows[0].schema(), &rows).unwrap()).unwrap();
        let total = ctx.table("r").await.unwrap().aggregate(vec![], vec![sum(col("total"))]).unwrap();
        let total = total.collect().await.unwrap();
        assert_eq!(total[0].column(0).as_primitive::<Int64Type>().value(0), 9999 * 10_000 / 2);
        assert_eq!(rows[0].schema().field(1).data_type(), &DataType::Utf8);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_sorted_query_keeps_its_order_and_one_without_rows_its_schema() {
        let (_dir, files, rows) = staged("SELECT x, -x AS y FROM t ORDER BY x DESC LIMIT 5000").await;
        assert_eq!(files.len(), 1);
        let all: Vec<i64> =
            rows.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
        assert!(all.iter().copied().eq((5000..10_000).rev()));
        let (_dir, files, rows) = staged("SELECT x FROM t WHERE x < 0 ORDER BY x").await;
        assert_eq!((files.len(), files[0].rows), (1, 0));
        assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    }
}
