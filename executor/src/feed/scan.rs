//! Where leased rows come from: a partition of a DataFusion plan, or a file read directly. Cursors stay open
//! between leases, so that consecutive leases of a partition are one scan.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use tfos_core::proto::Input;
use tfos_core::rows::RowRange;
use tfos_data::SessionContext;
use tfos_data::arrow::array::RecordBatch;
use tfos_data::datafusion::physical_plan::ExecutionPlan;
use tfos_data::tfrecord::TfRecordReader;

use crate::Error;

/// Rows of one record batch of a direct read.
const DIRECT_BATCH_ROWS: usize = 4096;

/// Open cursors per node; the one longest unused is closed first.
const MAX_CURSORS: usize = 4;

type Rows = futures::stream::BoxStream<'static, Result<RecordBatch, tfos_data::Error>>;

/// What a partition number means.
#[derive(Clone)]
pub(crate) enum Source {
    /// Partition i of a plan.
    Plan { plan: Arc<dyn ExecutionPlan>, context: SessionContext },
    /// File i.
    Files { files: Arc<Vec<String>>, schema: Option<tfos_data::arrow::datatypes::SchemaRef> },
}

/// The plan of an input, in a session that knows the application's functions.
pub(crate) fn feed_source(input: &Input, context: SessionContext) -> Result<Source, Error> {
    let plan = tfos_data::plan::decode(&input.plan, &context)?;
    Ok(Source::Plan { plan, context })
}

pub(crate) fn direct_source(input: &Input) -> Result<Source, Error> {
    if input.format != "tfrecord" {
        return Err(Error::Usage {
            what: format!("nodes cannot read `{}` files directly", input.format),
            try_this: "use tfrecord files, or feed mode".into(),
        });
    }
    let schema = (!input.schema.is_empty()).then(|| tfos_data::tfrecord::parse_schema(&input.schema)).transpose()?;
    Ok(Source::Files { files: Arc::new(input.files.clone()), schema })
}

impl Source {
    pub(crate) fn partitions(&self) -> usize {
        match self {
            Self::Plan { plan, .. } => tfos_data::plan::partitions(plan),
            Self::Files { files, .. } => files.len(),
        }
    }

    pub(crate) async fn open(&self, partition: u32) -> Result<Rows, Error> {
        match self {
            Self::Plan { plan, context } => {
                let stream = tfos_data::plan::execute(plan, partition as usize, context)?;
                Ok(stream.map(|b| b.map_err(tfos_data::Error::from_datafusion)).boxed())
            }
            Self::Files { files, schema } => {
                let Some(file) = files.get(partition as usize) else {
                    return Ok(futures::stream::empty().boxed());
                };
                Ok(TfRecordReader::open(file, schema.clone(), DIRECT_BATCH_ROWS).await?.boxed())
            }
        }
    }
}

struct Cursor {
    rows: Rows,
    /// Next row that `left` or `rows` will give.
    at: u64,
    left: Option<RecordBatch>,
    used: u64,
}

/// The open cursors of a node.
pub(crate) struct Scan {
    source: Source,
    cursors: BTreeMap<(u32, u32), Cursor>,
    clock: u64,
}

/// One step of a scan.
pub(crate) enum Step {
    /// Rows from `start` on.
    Rows { start: u64, rows: RecordBatch },
    /// The partition has that many rows and no more.
    End { rows: u64 },
}

impl Scan {
    pub(crate) fn new(source: Source) -> Self {
        Self { source, cursors: BTreeMap::new(), clock: 0 }
    }

    /// The next rows of `range`, which the caller shortens by what it got.
    pub(crate) async fn next(&mut self, range: &RowRange) -> Result<Step, Error> {
        self.clock += 1;
        let key = (range.epoch, range.partition);
        if self.cursors.get(&key).is_some_and(|c| c.at > range.start) {
            self.cursors.remove(&key);
        }
        if !self.cursors.contains_key(&key) {
            if self.cursors.len() >= MAX_CURSORS
                && let Some(oldest) = self.cursors.iter().min_by_key(|(_, c)| c.used).map(|(k, _)| *k)
            {
                self.cursors.remove(&oldest);
            }
            let rows = self.source.open(range.partition).await?;
            self.cursors.insert(key, Cursor { rows, at: 0, left: None, used: 0 });
        }
        let Some(cursor) = self.cursors.get_mut(&key) else { return Ok(Step::End { rows: range.start }) };
        cursor.used = self.clock;
        loop {
            let batch = match cursor.left.take() {
                Some(batch) => batch,
                None => match cursor.rows.next().await {
                    Some(batch) => batch?,
                    None => {
                        let rows = cursor.at;
                        self.cursors.remove(&key);
                        return Ok(Step::End { rows });
                    }
                },
            };
            let count = batch.num_rows() as u64;
            // Rows of others: decoded and passed over.
            let skip = (range.start - cursor.at).min(count);
            let take = (range.end - cursor.at).min(count) - skip;
            let start = cursor.at + skip;
            cursor.at = start + take;
            if skip + take < count {
                cursor.left = Some(batch.slice((skip + take) as usize, (count - skip - take) as usize));
            }
            if take > 0 {
                let rows = if take == count { batch } else { batch.slice(skip as usize, take as usize) };
                return Ok(Step::Rows { start, rows });
            }
        }
    }
}
