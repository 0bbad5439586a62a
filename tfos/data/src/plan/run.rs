//! Runs partitions of a plan, one at a time and often the same one again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;

use super::{blame, bounded, decode, file_scan, files, partitions};
use crate::error::{Error, Result};
use crate::numbers;
use crate::session::BATCH_ROWS;

/// Runs one partition. What it yields depends on the partition alone, however often and wherever it is run.
pub fn execute(
    plan: &Arc<dyn ExecutionPlan>,
    partition: usize,
    ctx: &SessionContext,
) -> Result<SendableRecordBatchStream> {
    checked(plan, partition)?;
    let task = task(ctx, rows_of_batch(plan, partition, usize::MAX));
    start(plan, &numbers::faster(plan)?, partition, task)
}

/// Every run leaves some kilobytes of measurements in the operators that it went through, for as long as these live.
const RUNS: usize = 256;

/// A plan for a reader that opens its partitions over and over: what runs have in common is made once.
pub struct Prepared {
    bytes: Vec<u8>,
    ctx: SessionContext,
    batch_bytes: usize,
    /// By the rows of a batch.
    tasks: Mutex<BTreeMap<usize, Arc<TaskContext>>>,
    ready: Mutex<Ready>,
    plan: Arc<dyn ExecutionPlan>,
}

/// The plan as it came, as it is run, and how often that was.
struct Ready {
    plan: Arc<dyn ExecutionPlan>,
    faster: Arc<dyn ExecutionPlan>,
    runs: usize,
}

impl Ready {
    fn new(bytes: &[u8], ctx: &SessionContext, batch_bytes: usize) -> Result<Self> {
        let plan = bounded(decode(bytes, ctx)?, batch_bytes)?;
        Ok(Self { faster: numbers::faster(&plan)?, plan, runs: 0 })
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("plan", &self.plan)
            .field("batch_bytes", &self.batch_bytes)
            .finish_non_exhaustive()
    }
}

impl Prepared {
    /// The plan of these bytes, as [`encode`](super::encode) made them, whose batches have at most about `batch_bytes`, as
    /// far as the files say how large their rows are.
    pub fn new(bytes: Vec<u8>, ctx: SessionContext, batch_bytes: usize) -> Result<Self> {
        let ready = Ready::new(&bytes, &ctx, batch_bytes)?;
        let plan = Arc::clone(&ready.plan);
        Ok(Self { bytes, ctx, batch_bytes, tasks: Mutex::default(), ready: Mutex::new(ready), plan })
    }

    /// The plan, to be asked about.
    pub fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// As [`execute`], with smaller batches where `batch_bytes` would be exceeded.
    pub fn execute(&self, partition: usize) -> Result<SendableRecordBatchStream> {
        checked(&self.plan, partition)?;
        let task = self.task(rows_of_batch(&self.plan, partition, self.batch_bytes));
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.runs == RUNS {
            *ready = Ready::new(&self.bytes, &self.ctx, self.batch_bytes)?;
        }
        ready.runs += 1;
        start(&ready.plan, &ready.faster, partition, task)
    }

    fn task(&self, rows: usize) -> Arc<TaskContext> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tasks.entry(rows).or_insert_with(|| task(&self.ctx, rows)))
    }
}

#[cfg(test)]
impl Prepared {
    /// How many measurements the operators hold.
    pub(super) fn measurements(&self) -> usize {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.faster.metrics().map_or(0, |metrics| metrics.iter().count())
    }
}

fn checked(plan: &Arc<dyn ExecutionPlan>, partition: usize) -> Result<()> {
    match partitions(plan) {
        count if partition < count => Ok(()),
        count => Err(Error::Plan { reason: format!("there is no partition {partition}; the plan has {count}") }),
    }
}

fn task(ctx: &SessionContext, rows: usize) -> Arc<TaskContext> {
    let mut config = ctx.copied_config().with_batch_size(rows);
    config.options_mut().execution.enable_file_stream_work_stealing = false;
    Arc::new(TaskContext::from(ctx).with_session_config(config))
}

fn start(
    plan: &Arc<dyn ExecutionPlan>,
    faster: &Arc<dyn ExecutionPlan>,
    partition: usize,
    task: Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let rows = faster.execute(partition, Arc::clone(&task))?;
    Ok(blame::named(rows, plan, partition, task))
}

pub(super) fn rows_of_batch(plan: &Arc<dyn ExecutionPlan>, partition: usize, batch_bytes: usize) -> usize {
    let rows = match batch_rows(&plan.schema()) {
        BATCH_ROWS if is_flat(plan) => FLAT_ROWS,
        rows => rows,
    };
    match row_bytes(plan, partition) {
        Some(bytes) if bytes.saturating_mul(rows) > batch_bytes => 1 << (batch_bytes / bytes).max(1).ilog2(),
        _ => rows,
    }
}

/// Rows of a batch of a Parquet file's numbers. Each column of a batch is decoded with its dictionary, often some hundred
/// kilobytes, which has to come into the cache again for each batch: a feed of such tables is a third faster than with a quarter
/// of the rows.
const FLAT_ROWS: usize = 4 * BATCH_ROWS;

fn is_flat(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let of_parquet = file_scan(plan).is_some_and(|scan| scan.file_source().file_type() == "parquet");
    of_parquet && plan.schema().fields().iter().all(|field| field.data_type().is_primitive())
}

/// Values of a list column that a decoder should have in hand at once: it makes several passes over about ten bytes for
/// each, which are twice as fast while they stay in the cache.
const BATCH_VALUES: usize = 1 << 18;

/// Rows of a batch for rows of this schema; the rows of a partition and their order do not depend on it.
pub(super) fn batch_rows(schema: &Schema) -> usize {
    let values = |field: &FieldRef| match field.data_type() {
        DataType::FixedSizeList(_, values) => usize::try_from(*values).unwrap_or(1),
        // Of unknown length; a few hundred are usual where speed matters.
        DataType::List(_) | DataType::LargeList(_) => 256,
        _ => 1,
    };
    let widest = schema.fields().iter().map(values).max().unwrap_or(1).max(1);
    // A power of two, as the batches of most training loops are, so that these need not be put together from pieces.
    (1 << (BATCH_VALUES / widest).max(1).ilog2()).clamp(64, BATCH_ROWS)
}

/// About how many bytes a row has: of the schema where all its columns are of a fixed width, else of the files. More
/// than that where the query leaves columns out, which the files' figures count.
fn row_bytes(plan: &Arc<dyn ExecutionPlan>, partition: usize) -> Option<usize> {
    fn width(of: &DataType) -> Option<usize> {
        match of {
            DataType::FixedSizeList(item, n) => Some(width(item.data_type())? * usize::try_from(*n).ok()?),
            DataType::FixedSizeBinary(n) => usize::try_from(*n).ok(),
            DataType::Boolean => Some(1),
            other => other.primitive_width(),
        }
    }
    if let Some(sum) = plan.schema().fields().iter().map(|f| width(f.data_type())).sum::<Option<usize>>() {
        return Some(sum.max(1));
    }
    let of_file = |file: &PartitionedFile| -> Option<usize> {
        let statistics = file.statistics.as_ref()?;
        let rows = *statistics.num_rows.get_value()?;
        let stored = usize::try_from(file.object_meta.size).ok()?;
        // Before compression where the format says it.
        let bytes = statistics.total_byte_size.get_value().copied().unwrap_or(0).max(stored);
        (rows > 0).then(|| bytes.div_ceil(rows))
    };
    files(plan, partition).iter().filter_map(|(_, file)| of_file(file)).max()
}
