//! A column chunk of lists of numbers: its pages one after the other, as arrays of as many lists as are asked for.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use datafusion::arrow::array::builder::NullBufferBuilder;
use datafusion::arrow::array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::array::{ArrayRef, FixedSizeListArray, GenericListArray, OffsetSizeTrait, PrimitiveArray};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::arrow::error::ArrowError;
use datafusion::parquet::basic::{Encoding, Type};
use datafusion::parquet::column::page::{Page as StoredPage, PageReader};
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::metadata::ColumnChunkMetaData;
use datafusion::parquet::file::reader::SerializedPageReader;

use super::Undecodable;
use super::chunks::Chunks;
use super::hybrid::Hybrid;
use super::levels::{Levels, Lists, MOST_PLACES, Meaning};
use super::values::{Dictionary, Number, Values};

macro_rules! each_number {
    ($with:ident) => {
        $with! {
            UInt8 => UInt8Type,
            Int8 => Int8Type,
            UInt16 => UInt16Type,
            Int16 => Int16Type,
            UInt32 => UInt32Type,
            Int32 => Int32Type,
            UInt64 => UInt64Type,
            Int64 => Int64Type,
            Float32 => Float32Type,
            Float64 => Float64Type,
        }
    };
}

/// How the lists are laid out in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    List,
    LargeList,
    Fixed(i32),
}

/// A column of lists of numbers, as the table has it.
#[derive(Debug, Clone)]
pub(super) struct ListColumn {
    pub item: FieldRef,
    pub layout: Layout,
    pub meaning: Meaning,
}

/// Reads a column chunk.
pub(super) trait ReadLists: Send {
    /// The next `rows` lists, which there must be.
    fn read(&mut self, rows: usize) -> Result<ArrayRef, Undecodable>;
}

/// How numbers of this type are stored, where they can be read here.
pub(super) fn stored(item: &DataType) -> Option<Type> {
    macro_rules! stored {
        ($($kind:ident => $number:ty,)*) => {
            match item {
                $(DataType::$kind => Some(<$number>::STORED),)*
                _ => None,
            }
        };
    }
    each_number!(stored)
}

/// A reader of the chunk's lists.
pub(super) fn open(
    column: &ListColumn,
    chunk: &ColumnChunkMetaData,
    chunks: &Chunks,
    rows: usize,
) -> Result<Box<dyn ReadLists>, Undecodable> {
    let pages = SerializedPageReader::new(Arc::new(chunks.clone()), chunk, rows, None)?;
    macro_rules! open {
        ($($kind:ident => $number:ty,)*) => {
            match column.item.data_type() {
                $(DataType::$kind => Ok(Box::new(Column::<$number>::new(column.clone(), pages))),)*
                _ => Err(Undecodable("another type")),
            }
        };
    }
    each_number!(open)
}

struct Column<N: Number> {
    column: ListColumn,
    pages: SerializedPageReader<Chunks>,
    dictionary: Option<Arc<Dictionary<N>>>,
    page: Option<Page<N>>,
}

struct Page<N: Number> {
    levels: Levels,
    values: Values<N>,
}

impl<N: Number> ReadLists for Column<N> {
    fn read(&mut self, rows: usize) -> Result<ArrayRef, Undecodable> {
        let mut lists = Lists::with_capacity(rows);
        let mut values = Vec::new();
        loop {
            let page = match &mut self.page {
                Some(page) if page.levels.left > 0 => page,
                _ => {
                    self.page = None;
                    self.page = self.next_page()?;
                    match &mut self.page {
                        Some(page) => page,
                        None => break,
                    }
                }
            };
            let there = page.levels.read(self.column.meaning, rows, &mut lists)?;
            if lists.places > MOST_PLACES {
                return Err(Undecodable("more elements than an array can have"));
            }
            let begin = values.len();
            page.values.read(there, &mut values)?;
            spread(&mut values, begin, lists.places, &lists.items);
            // What is left belongs to the next rows. Where nothing is, the last list may go on in the next page.
            if page.levels.left > 0 {
                break;
            }
        }
        if lists.starts.len() != rows {
            return Err(Undecodable("fewer rows than the file says"));
        }
        // Doubled for more pages than one, and kept for as long as the batch is.
        if values.capacity() > values.len() + values.len() / 8 {
            values.shrink_to_fit();
        }
        self.array(lists, values)
    }
}

impl<N: Number> Column<N> {
    fn new(column: ListColumn, pages: SerializedPageReader<Chunks>) -> Self {
        Self { column, pages, dictionary: None, page: None }
    }

    fn next_page(&mut self) -> Result<Option<Page<N>>, Undecodable> {
        while let Some(page) = self.pages.get_next_page()? {
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
                    if (rep_level_encoding, def_level_encoding) != (Encoding::RLE, Encoding::RLE) {
                        return Err(Undecodable("levels of another encoding"));
                    }
                    (with_length(&mut buf)?, with_length(&mut buf)?, buf)
                }
                StoredPage::DataPageV2 { mut buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                    (first(&mut buf, rep_levels_byte_len)?, first(&mut buf, def_levels_byte_len)?, buf)
                }
            };
            if count == 0 {
                continue;
            }
            let levels = Levels {
                repetition: Hybrid::new(repetition, 1)?,
                definition: Hybrid::new(definition, self.column.meaning.def_width())?,
                left: count,
            };
            let values = match (encoding, &self.dictionary) {
                (Encoding::PLAIN, _) => Values::Plain(values),
                (Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY, Some(entries)) => {
                    Values::indices(values, entries)?
                }
                _ => return Err(Undecodable("values of another encoding")),
            };
            return Ok(Some(Page { levels, values }));
        }
        Ok(None)
    }

    fn array(&self, mut lists: Lists, values: Vec<N::Native>) -> Result<ArrayRef, Undecodable> {
        let valid = lists.valid.finish();
        let values = PrimitiveArray::<N>::try_new(ScalarBuffer::from(values), lists.items.finish())?;
        lists.starts.push(lists.places);
        let (item, values): (_, ArrayRef) = (Arc::clone(&self.column.item), Arc::new(values));
        Ok(match self.column.layout {
            Layout::List => list::<i32>(item, &lists.starts, values, valid)?,
            Layout::LargeList => list::<i64>(item, &lists.starts, values, valid)?,
            Layout::Fixed(size) => {
                if lists.starts.array_windows().any(|[a, b]| usize::try_from(size) != Ok(b - a)) {
                    return Err(Undecodable("lists of different lengths"));
                }
                Arc::new(FixedSizeListArray::try_new(item, size, values, valid)?)
            }
        })
    }
}

fn list<O: OffsetSizeTrait>(
    item: FieldRef,
    starts: &[usize],
    values: ArrayRef,
    valid: Option<NullBuffer>,
) -> Result<ArrayRef, Undecodable> {
    let offset = |start: &usize| O::from_usize(*start).ok_or(Undecodable("more elements than an array can have"));
    let offsets = starts.iter().map(offset).collect::<Result<Vec<O>, _>>()?;
    Ok(Arc::new(GenericListArray::<O>::try_new(item, OffsetBuffer::new(offsets.into()), values, valid)?))
}

/// Moves the values from `begin` on to the places that have one.
fn spread<T: Copy + Default>(values: &mut Vec<T>, begin: usize, places: usize, items: &NullBufferBuilder) {
    let mut from = values.len();
    let (true, Some(valid)) = (from < places, items.as_slice()) else { return };
    values.resize(places, T::default());
    for to in (begin..places).rev() {
        if from == to + 1 {
            break;
        }
        values[to] = if valid[to / 8] >> (to % 8) & 1 == 1 {
            from -= 1;
            values[from]
        } else {
            T::default()
        };
    }
}

/// The first `n` bytes, which are taken off.
fn first(bytes: &mut Bytes, n: u32) -> Result<Bytes, Undecodable> {
    let n = n as usize;
    if n > bytes.len() { Err(Undecodable("levels that go beyond the page")) } else { Ok(bytes.split_to(n)) }
}

/// Bytes that are preceded by their number.
fn with_length(bytes: &mut Bytes) -> Result<Bytes, Undecodable> {
    let n = bytes.try_get_u32_le().map_err(|_| Undecodable("levels without a length"))?;
    first(bytes, n)
}

impl From<ParquetError> for Undecodable {
    fn from(_: ParquetError) -> Self {
        Self("a page that cannot be read")
    }
}

impl From<ArrowError> for Undecodable {
    fn from(_: ArrowError) -> Self {
        Self("not an array")
    }
}
