//! One TFRecord file as a stream of record batches, with memory bounded by a chunk and a batch.
//!
//! One request fetches the file; chunks are decoded as they come, so a slow consumer holds the transfer back instead
//! of filling memory. Local files are read in chunks far larger than a store's stream would use.

use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt};

use super::frame::RecordStream;
use super::schema::{Inference, SAMPLE};
use super::to_arrow::{BatchDecoder, BatchSize};
use crate::error::{Error, Result};
use crate::store;

const CHUNK: u64 = 1 << 20;
/// Handed to the decompressor at once, which may make a thousand times as much of it.
const PIECE: usize = 256 << 10;

/// The rows of one TFRecord file, for a node that reads its files itself.
pub struct TfRecordReader {
    schema: SchemaRef,
    batches: BoxStream<'static, Result<RecordBatch>>,
}

impl TfRecordReader {
    /// Opens the file at `url`; without a `schema` it is inferred from the first records.
    pub async fn open(url: &str, schema: Option<SchemaRef>, size: impl Into<BatchSize>) -> Result<Self> {
        let (store, path, url) = store::resolve(url)?;
        Self::open_in(store, path, &store::display(url.as_str(), None), schema, size).await
    }

    /// As [`Self::open`], in a store at hand; `name` appears in errors.
    pub async fn open_in(
        store: Arc<dyn ObjectStore>,
        path: Path,
        name: &str,
        schema: Option<SchemaRef>,
        size: impl Into<BatchSize>,
    ) -> Result<Self> {
        let schema = match schema {
            Some(schema) => schema,
            None => {
                let mut inference = Inference::default();
                sample(&store, &path, name, &mut inference, SAMPLE).await?;
                inference.schema()
            }
        };
        let batches = batches(store, path, name.into(), Arc::clone(&schema), size.into()).await?;
        Ok(Self { schema, batches: batches.boxed() })
    }

    /// The schema of every batch.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

impl std::fmt::Debug for TfRecordReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TfRecordReader").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Stream for TfRecordReader {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(cx)
    }
}

/// Looks at records from the beginning of a file until `limit` have been seen in all.
pub(crate) async fn sample(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    name: &str,
    inference: &mut Inference,
    limit: usize,
) -> Result<()> {
    let mut scan = Scan::open(store, path, name.into()).await?;
    while inference.records() < limit {
        match scan.records.next_record()? {
            Some(record) => inference.add(record.data).map_err(|reason| Error::BadExample {
                path: name.into(),
                offset: record.offset,
                reason: *reason,
            })?,
            None if scan.ended => return scan.records.finish(),
            None => scan.fill().await?,
        }
    }
    Ok(())
}

/// The file's rows as batches of `schema`; the stream ends after the first error.
pub(crate) async fn batches(
    store: Arc<dyn ObjectStore>,
    path: Path,
    name: Arc<str>,
    schema: SchemaRef,
    size: BatchSize,
) -> Result<impl Stream<Item = Result<RecordBatch>> + Send + 'static> {
    let decoder = BatchDecoder::new(schema, size, Arc::clone(&name))?;
    let scan = Scan::open(&store, &path, name).await?;
    Ok(stream::try_unfold((scan, decoder), |(mut scan, mut decoder)| async move {
        Ok(scan.next_batch(&mut decoder).await?.map(|batch| (batch, (scan, decoder))))
    }))
}

struct Scan {
    bytes: BoxStream<'static, Result<Bytes>>,
    pending: Bytes,
    records: RecordStream,
    ended: bool,
}

impl Scan {
    async fn open(store: &Arc<dyn ObjectStore>, path: &Path, name: Arc<str>) -> Result<Self> {
        let bytes = chunks(store, path, &name).await?;
        Ok(Self { bytes, pending: Bytes::new(), records: RecordStream::new(name), ended: false })
    }

    async fn next_batch(&mut self, decoder: &mut BatchDecoder) -> Result<Option<RecordBatch>> {
        loop {
            while let Some(record) = self.records.next_record()? {
                decoder.push(record)?;
                if decoder.is_full() {
                    return decoder.finish();
                }
            }
            if self.ended {
                self.records.finish()?;
                return decoder.finish();
            }
            self.fill().await?;
        }
    }

    /// Gets more bytes, or notes that there are none.
    async fn fill(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            match self.bytes.try_next().await? {
                Some(bytes) => self.pending = bytes,
                None => {
                    self.ended = true;
                    return self.records.end();
                }
            }
        }
        let piece = self.pending.split_to(self.pending.len().min(PIECE));
        self.records.push(&piece)
    }
}

/// The raw bytes of a file from its beginning.
async fn chunks(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    name: &Arc<str>,
) -> Result<BoxStream<'static, Result<Bytes>>> {
    let got = store.get(path).await.map_err(|e| Error::from_store(e, name))?;
    let name = Arc::clone(name);
    Ok(match got.payload {
        GetResultPayload::File(file, _) => stream::try_unfold(file, move |file| read(file, Arc::clone(&name))).boxed(),
        GetResultPayload::Stream(bytes) => bytes.map_err(move |e| Error::from_store(e, &name)).boxed(),
    })
}

async fn read(mut file: std::fs::File, name: Arc<str>) -> Result<Option<(Bytes, std::fs::File)>> {
    let work = tokio::task::spawn_blocking(move || {
        let mut buf = Vec::with_capacity(CHUNK as usize);
        (&mut file).take(CHUNK).read_to_end(&mut buf).map(|_| (Bytes::from(buf), file))
    });
    match work.await.map_err(std::io::Error::other).and_then(|read| read) {
        Ok((bytes, _)) if bytes.is_empty() => Ok(None),
        Ok(next) => Ok(Some(next)),
        Err(source) => Err(Error::Io { action: "read", path: name.to_string(), source }),
    }
}
