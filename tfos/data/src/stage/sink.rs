//! The last operator of a query that is run by several processes: a partition of it writes its rows into files and says so.
//!
//! Its own output is one row for each partition, with the number of rows written, so that an engine has something to
//! gather. What counts is what the [`Writer`] of the process is told, once a partition is whole.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::Result as DfResult;
use datafusion::common::internal_err;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};

use super::{Files, Written, file_bytes, write};
use crate::error::{Error, Result};
use crate::store;

/// What a process that runs partitions of a [`Sink`] does with them.
#[derive(Clone)]
pub struct Writer {
    name: String,
    attempts: Arc<AtomicU64>,
    /// Partitions that are written at the same time.
    at_once: usize,
    done: Arc<dyn Fn(Written) + Send + Sync>,
}

impl Writer {
    /// `name` tells this process from the others in the names of files; `at_once` partitions are written at a time.
    pub fn new(name: String, at_once: usize, done: impl Fn(Written) + Send + Sync + 'static) -> Self {
        Self { name, attempts: Arc::default(), at_once, done: Arc::new(done) }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("name", &self.name).finish_non_exhaustive()
    }
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Sink {
    input: Arc<dyn ExecutionPlan>,
    folder: String,
    /// Which partitions of the query those of this plan are; `None`: the same.
    partitions: Option<Vec<usize>>,
    writer: Option<Writer>,
    properties: Arc<PlanProperties>,
}

impl Sink {
    /// Rows of `input` are written into files in `folder`, an address. It can be run where there is a `writer`.
    pub fn new(input: Arc<dyn ExecutionPlan>, folder: String, writer: Option<Writer>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(summary()),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { input, folder, partitions: None, writer, properties: Arc::new(properties) }
    }

    /// The same where partition i of the input is partition `partitions[i]` of the query.
    pub fn of_partitions(mut self, partitions: Vec<usize>) -> Self {
        self.partitions = Some(partitions);
        self
    }

    /// Address of the files.
    pub fn folder(&self) -> &str {
        &self.folder
    }
}

fn summary() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("rows", DataType::UInt64, false)]))
}

impl DisplayAs for Sink {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StageSink")
    }
}

impl ExecutionPlan for Sink {
    fn name(&self) -> &str {
        "StageSink"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let [input] = children.as_slice() else { return internal_err!("a StageSink has one input") };
        let sink = Self::new(Arc::clone(input), self.folder.clone(), self.writer.clone());
        Ok(Arc::new(Self { partitions: self.partitions.clone(), ..sink }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let Some(writer) = self.writer.clone() else {
            return internal_err!("a StageSink is not run where it is planned");
        };
        let whole = match &self.partitions {
            None => Some(partition),
            Some(partitions) => partitions.get(partition).copied(),
        };
        let Some(whole) = whole else { return internal_err!("a StageSink has no partition {partition}") };
        let rows = self.input.execute(partition, context)?;
        let attempt = writer.attempts.fetch_add(1, Ordering::Relaxed);
        let attempt = format!(".{}-{attempt}", writer.name);
        let folder = self.folder.clone();
        let written = async move {
            let written = run(rows, whole, attempt, &folder, &writer).await.map_err(Error::into_datafusion)?;
            let rows: ArrayRef = Arc::new(UInt64Array::from(vec![written]));
            Ok(RecordBatch::try_new(summary(), vec![rows])?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(summary(), futures::stream::once(written))))
    }
}

async fn run(
    rows: SendableRecordBatchStream,
    whole: usize,
    attempt: String,
    folder: &str,
    writer: &Writer,
) -> Result<u64> {
    let (store, folder, _) = store::resolve(folder)?;
    let files = Files::new((store, folder), whole, attempt, file_bytes(writer.at_once), &rows.schema());
    let mut written = vec![];
    write(rows, files, |file| written.push(file)).await?;
    let rows = written.iter().map(|f| f.rows).sum();
    (writer.done)(Written { files: written, whole: Some(whole) });
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use datafusion::physical_plan::collect;

    use super::*;
    use crate::session;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)] // STG-2
    async fn every_partition_is_told_once_with_the_files_of_one_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let ctx = session::session();
        let numbers: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..10_000));
        ctx.register_batch("t", RecordBatch::try_from_iter([("x", numbers)]).unwrap()).unwrap();
        let query = ctx.sql("SELECT x % 1000 AS x, count(*) AS n FROM t GROUP BY 1").await.unwrap();
        let query = query.create_physical_plan().await.unwrap();
        let all = crate::plan::partitions(&query);
        let told = Arc::new(Mutex::new(vec![]));
        let telling = Arc::clone(&told);
        let writer = Writer::new("w0".into(), all, move |written| telling.lock().unwrap().push(written));
        let address = dir.path().display().to_string();
        let bytes = crate::plan::encode(&query).unwrap();
        for _ in 0..2 {
            let attempt = crate::plan::decode(&bytes, &ctx).unwrap();
            let sink = Sink::new(attempt, address.clone(), Some(writer.clone()));
            let summary = collect(Arc::new(sink), ctx.task_ctx()).await.unwrap();
            assert_eq!(summary.iter().map(RecordBatch::num_rows).sum::<usize>(), all);
        }
        let told = told.lock().unwrap();
        let mut whole: Vec<_> = told.iter().filter_map(|w| w.whole).collect();
        whole.sort_unstable();
        assert_eq!(whole, (0..all).flat_map(|p| [p, p]).collect::<Vec<_>>(), "each was run twice");
        assert_eq!(told.iter().flat_map(|w| &w.files).map(|f| f.rows).sum::<u64>(), 2000);
        let mut names: Vec<_> = told.iter().flat_map(|w| &w.files).map(|f| f.name.clone()).collect();
        let files = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), files, "two attempts have the same file");
        for w in told.iter() {
            let own = format!("part-{:05}-", w.whole.unwrap());
            assert!(w.files.iter().all(|f| f.name.starts_with(&own) && f.name.contains(".w0-")), "{w:?}");
        }
    }
}
