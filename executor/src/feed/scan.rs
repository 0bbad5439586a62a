//! Where leased rows come from: a partition of a DataFusion plan, or a file read directly. Cursors stay open
//! between leases, so that consecutive leases of a partition are one scan.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use tfos_core::proto::Input;
use tfos_core::rows::{RowRange, Shuffle};
use tfos_data::SessionContext;
use tfos_data::arrow::array::RecordBatch;
use tfos_data::plan::Prepared;
use tfos_data::tfrecord::{BatchSize, TfRecordReader};

use super::blocks::{Block, Blocks};
use super::part::Part;
use crate::Error;

/// Rows of one record batch of a direct read.
const DIRECT_BATCH_ROWS: usize = 4096;

/// Open cursors per node; the one longest unused is closed first.
const MAX_CURSORS: usize = 4;

/// Read ahead in a TFRecord file: two chunks.
const DIRECT_AHEAD: usize = 2 << 20;

pub(super) type Rows = futures::stream::BoxStream<'static, Result<RecordBatch, tfos_data::Error>>;

/// What a partition number means.
#[derive(Clone)]
pub(crate) enum Source {
    /// Partition i of a plan.
    Plan(Arc<Prepared>),
    /// File i.
    Files { files: Arc<Vec<String>>, schema: Option<tfos_data::arrow::datatypes::SchemaRef>, batch_bytes: usize },
}

/// The plan of an input, in a session that knows the application's functions; `batch_bytes` is what a batch should
/// have at most.
pub(crate) fn feed_source(input: &Input, context: SessionContext, batch_bytes: usize) -> Result<Source, Error> {
    Ok(Source::Plan(Arc::new(Prepared::new(input.plan.to_vec(), context, batch_bytes)?)))
}

pub(crate) fn direct_source(input: &Input, batch_bytes: usize) -> Result<Source, Error> {
    if input.format != "tfrecord" {
        return Err(Error::Usage {
            what: format!("nodes cannot read `{}` files directly", input.format),
            try_this: "use tfrecord files, or feed mode".into(),
        });
    }
    let schema = (!input.schema.is_empty()).then(|| tfos_data::tfrecord::parse_schema(&input.schema)).transpose()?;
    Ok(Source::Files { files: Arc::new(input.files.clone()), schema, batch_bytes })
}

impl Source {
    pub(crate) fn partitions(&self) -> usize {
        match self {
            Self::Plan(plan) => tfos_data::plan::partitions(plan.plan()),
            Self::Files { files, .. } => files.len(),
        }
    }

    pub(crate) async fn open(&self, partition: u32) -> Result<Rows, Error> {
        match self {
            Self::Plan(plan) => {
                let stream = plan.execute(partition as usize)?;
                Ok(stream.map(|b| b.map_err(tfos_data::Error::from_datafusion)).boxed())
            }
            Self::Files { files, schema, batch_bytes } => {
                let Some(file) = files.get(partition as usize) else {
                    return Ok(futures::stream::empty().boxed());
                };
                let size = BatchSize { rows: DIRECT_BATCH_ROWS, bytes: *batch_bytes };
                Ok(TfRecordReader::open(file, schema.clone(), size).await?.boxed())
            }
        }
    }

    /// How many rows a partition has, if its files say so.
    fn rows(&self, partition: u32) -> Option<u64> {
        match self {
            Self::Plan(plan) => tfos_data::plan::partition_rows(plan.plan(), partition as usize),
            Self::Files { .. } => None,
        }
    }

    /// What reading a partition keeps in memory beside the rows that it gives.
    fn ahead(&self, partition: u32) -> usize {
        match self {
            Self::Plan(plan) => tfos_data::plan::read_ahead(plan.plan(), partition as usize),
            Self::Files { .. } => DIRECT_AHEAD,
        }
    }
}

/// Rows of a partition in the order of their addresses.
enum Ordered {
    Plan(Rows),
    Shuffled(Blocks),
}

/// Consecutive rows of a cursor.
enum Chunk {
    Rows(Part),
    Block(Block),
}

impl Ordered {
    async fn next(&mut self) -> Result<Option<Chunk>, Error> {
        Ok(match self {
            Self::Plan(rows) => rows.next().await.transpose()?.map(|rows| Chunk::Rows(rows.into())),
            Self::Shuffled(blocks) => blocks.next().await?.map(Chunk::Block),
        })
    }
}

impl Chunk {
    fn rows(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.num_rows(),
            Self::Block(block) => block.rows(),
        }
    }

    fn read(self) -> Part {
        match self {
            Self::Rows(rows) => rows,
            Self::Block(block) => block.permuted(),
        }
    }
}

struct Cursor {
    rows: Ordered,
    /// Next row that `left` or `rows` will give.
    at: u64,
    /// Where the partition ends, if that is known.
    end: Option<u64>,
    left: Option<Part>,
    /// Bytes of the batch that `left` is of: all of it stays while a part does.
    left_bytes: usize,
    /// Bytes that the reader keeps.
    ahead: usize,
    used: u64,
}

impl Cursor {
    fn bytes(&self) -> usize {
        let blocks = match &self.rows {
            Ordered::Plan(_) => 0,
            Ordered::Shuffled(blocks) => blocks.bytes(),
        };
        self.ahead + blocks + if self.left.is_some() { self.left_bytes } else { 0 }
    }
}

/// The open cursors of a node.
pub(crate) struct Scan {
    source: Source,
    shuffle: Option<Shuffle>,
    cursors: BTreeMap<(u32, u32), Cursor>,
    clock: u64,
}

/// One step of a scan.
pub(crate) enum Step {
    /// Rows from `start` on.
    Rows { start: u64, rows: Part },
    /// The partition has that many rows and no more.
    End { rows: u64 },
}

impl Scan {
    pub(crate) fn new(source: Source, shuffle: Option<Shuffle>) -> Self {
        Self { source, shuffle, cursors: BTreeMap::new(), clock: 0 }
    }

    /// Bytes that the open cursors hold.
    pub(crate) fn bytes(&self) -> usize {
        self.cursors.values().map(Cursor::bytes).sum()
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
            let rows = match self.shuffle {
                Some(shuffle) => Ordered::Shuffled(Blocks::new(rows, shuffle, range.epoch, range.partition)),
                None => Ordered::Plan(rows),
            };
            let (end, ahead) = (self.source.rows(range.partition), self.source.ahead(range.partition));
            self.cursors.insert(key, Cursor { rows, at: 0, end, left: None, left_bytes: 0, ahead, used: 0 });
        }
        let Some(cursor) = self.cursors.get_mut(&key) else { return Ok(Step::End { rows: range.start }) };
        cursor.used = self.clock;
        loop {
            let chunk = match cursor.left.take() {
                Some(rows) => Chunk::Rows(rows),
                None => match cursor.rows.next().await? {
                    Some(chunk) => chunk,
                    None => {
                        let rows = cursor.at;
                        self.cursors.remove(&key);
                        return Ok(Step::End { rows });
                    }
                },
            };
            let count = chunk.rows() as u64;
            // Rows of others: decoded and passed over.
            let skip = (range.start - cursor.at).min(count);
            let take = (range.end - cursor.at).min(count) - skip;
            let start = cursor.at + skip;
            cursor.at = start + take;
            if take == 0 {
                continue;
            }
            let rows = chunk.read();
            if skip + take < count {
                cursor.left_bytes = cursor.left_bytes.max(rows.bytes());
                cursor.left = Some(rows.slice((skip + take) as usize, usize::MAX));
            }
            if cursor.left.is_none() {
                cursor.left_bytes = 0;
            }
            let rows = if take == count { rows } else { rows.slice(skip as usize, take as usize) };
            // A row group stays in memory as long as its reader, which has nothing more to give.
            if cursor.end.is_some_and(|end| cursor.at >= end) {
                self.cursors.remove(&key);
            }
            return Ok(Step::Rows { start, rows });
        }
    }
}
