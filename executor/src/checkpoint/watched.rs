//! For tests: a store that remembers which bytes of which file were read, and can make readers wait for each other.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as Stored,
};

/// Ranges that were read, by file, in order.
pub(crate) type Reads = BTreeMap<String, Vec<Range<u64>>>;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) inner: Arc<InMemory>,
    pub(crate) reads: Mutex<Reads>,
    /// The first reads wait here until so many readers have come.
    pub(crate) meeting: Option<Arc<tokio::sync::Barrier>>,
}

impl Watched {
    /// What was read since the last question.
    pub(crate) fn take(&self) -> Reads {
        std::mem::take(&mut self.reads.lock().unwrap())
    }

    async fn note(&self, location: &Path, range: Range<u64>) {
        let first = {
            let mut reads = self.reads.lock().unwrap();
            reads.entry(location.to_string()).or_default().push(range);
            reads.len() == 1
        };
        if let Some(meeting) = self.meeting.as_ref().filter(|_| first) {
            meeting.wait().await;
        }
    }
}

/// Bytes of these ranges together.
pub(crate) fn bytes_of(reads: &Reads) -> u64 {
    reads.values().flatten().map(|r| r.end - r.start).sum()
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("watched")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Watched {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Stored<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Stored<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Stored<GetResult> {
        let range = match &options.range {
            _ if options.head => None,
            Some(GetRange::Bounded(range)) => Some(range.clone()),
            _ => Some(0..u64::MAX),
        };
        if let Some(range) = range {
            self.note(location, range).await;
        }
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Stored<Vec<bytes::Bytes>> {
        for range in ranges {
            self.note(location, range.clone()).await;
        }
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Stored<Path>>) -> BoxStream<'static, Stored<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Stored<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Stored<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Stored<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
