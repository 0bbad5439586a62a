//! The parts of a file that were fetched, as a file for readers that want one.

use std::ops::Range;
use std::sync::Arc;

use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use datafusion::parquet::errors::{ParquetError, Result};
use datafusion::parquet::file::reader::{ChunkReader, Length};

/// Column chunks of a row group, still compressed. Cloned for next to nothing.
#[derive(Debug, Clone)]
pub(super) struct Chunks {
    /// Where each begins in the file.
    parts: Arc<Vec<(u64, Bytes)>>,
    file_size: u64,
}

impl Chunks {
    pub(super) fn new(ranges: &[Range<u64>], bytes: Vec<Bytes>, file_size: u64) -> Self {
        Self { parts: Arc::new(ranges.iter().map(|r| r.start).zip(bytes).collect()), file_size }
    }

    /// What is there of a part from this byte of the file on.
    fn from(&self, start: u64) -> Result<Bytes> {
        let rest = |(at, bytes): &(u64, Bytes)| {
            let skip = usize::try_from(start.checked_sub(*at)?).ok()?;
            (skip <= bytes.len()).then(|| bytes.slice(skip..))
        };
        // The end of one part may be the beginning of another.
        let rests = self.parts.iter().filter_map(rest);
        rests.max_by_key(Bytes::len).ok_or_else(|| ParquetError::EOF(format!("byte {start} is outside of the column")))
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.file_size
    }
}

impl ChunkReader for Chunks {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} go beyond the end of the column")));
        }
        Ok(bytes.slice(..length))
    }
}
