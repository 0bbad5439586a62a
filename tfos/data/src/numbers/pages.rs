//! The pages of a column chunk, one after the other: levels as they are stored, values ready to be read.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use datafusion::parquet::basic::Encoding;
use datafusion::parquet::column::page::{Page as StoredPage, PageReader};
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::metadata::ColumnChunkMetaData;
use datafusion::parquet::file::reader::SerializedPageReader;

use super::Undecodable;
use super::chunks::Chunks;
use super::values::{Dictionary, Number, Values};

/// Which levels the pages of a column have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kinds {
    pub repetition: bool,
    pub definition: bool,
}

/// A page with values; without levels of a kind its bytes are empty.
pub(super) struct Page<N: Number> {
    /// Positions, as the page says.
    pub count: usize,
    pub repetition: Bytes,
    pub definition: Bytes,
    pub values: Values<N>,
}

pub(super) struct Pages<N: Number> {
    stored: SerializedPageReader<Chunks>,
    kinds: Kinds,
    dictionary: Option<Arc<Dictionary<N>>>,
}

impl<N: Number> Pages<N> {
    pub(super) fn new(
        chunk: &ColumnChunkMetaData,
        chunks: &Chunks,
        rows: usize,
        kinds: Kinds,
    ) -> Result<Self, Undecodable> {
        let stored = SerializedPageReader::new(Arc::new(chunks.clone()), chunk, rows, None)?;
        Ok(Self { stored, kinds, dictionary: None })
    }

    pub(super) fn next(&mut self) -> Result<Option<Page<N>>, Undecodable> {
        while let Some(page) = self.stored.get_next_page()? {
            let (count, encoding) = (page.num_values() as usize, page.encoding());
            let (repetition, definition, values) = match page {
                StoredPage::DictionaryPage { buf, num_values, encoding, .. } => {
                    if !matches!(encoding, Encoding::PLAIN | Encoding::PLAIN_DICTIONARY) || self.dictionary.is_some() {
                        return Err(Undecodable("another dictionary"));
                    }
                    self.dictionary = Some(Arc::new(Dictionary::new(&buf, num_values as usize)?));
                    continue;
                }
                StoredPage::DataPage { mut buf, def_level_encoding, rep_level_encoding, .. } => {
                    let repetition = with_length(&mut buf, self.kinds.repetition, rep_level_encoding)?;
                    (repetition, with_length(&mut buf, self.kinds.definition, def_level_encoding)?, buf)
                }
                StoredPage::DataPageV2 { mut buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                    (first(&mut buf, rep_levels_byte_len)?, first(&mut buf, def_levels_byte_len)?, buf)
                }
            };
            if count == 0 {
                continue;
            }
            let values = match (encoding, &self.dictionary) {
                (Encoding::PLAIN, _) => Values::Plain(values),
                (Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY, Some(entries)) => {
                    Values::indices(values, entries)?
                }
                _ => return Err(Undecodable("values of another encoding")),
            };
            return Ok(Some(Page { count, repetition, definition, values }));
        }
        Ok(None)
    }
}

/// The first `n` bytes, which are taken off.
fn first(bytes: &mut Bytes, n: u32) -> Result<Bytes, Undecodable> {
    let n = n as usize;
    if n > bytes.len() { Err(Undecodable("levels that go beyond the page")) } else { Ok(bytes.split_to(n)) }
}

/// Levels that are preceded by the number of their bytes. Where a column has none of a kind, what the page says of their
/// encoding means nothing: some writers name another one there.
fn with_length(bytes: &mut Bytes, there: bool, encoding: Encoding) -> Result<Bytes, Undecodable> {
    if !there {
        return Ok(Bytes::new());
    }
    if encoding != Encoding::RLE {
        return Err(Undecodable("levels of another encoding"));
    }
    let n = bytes.try_get_u32_le().map_err(|_| Undecodable("levels without a length"))?;
    first(bytes, n)
}

impl From<ParquetError> for Undecodable {
    fn from(_: ParquetError) -> Self {
        Self("a page that cannot be read")
    }
}
