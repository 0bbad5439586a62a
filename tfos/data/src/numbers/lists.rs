//! A column chunk of lists of numbers: its pages one after the other, as arrays of as many lists as are asked for.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, FixedSizeListArray, GenericListArray, OffsetSizeTrait, PrimitiveArray};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use datafusion::arrow::datatypes::FieldRef;
use datafusion::parquet::file::metadata::ColumnChunkMetaData;

use super::Undecodable;
use super::chunks::Chunks;
use super::column::{Layout, ListColumn, ReadColumn};
use super::hybrid::Hybrid;
use super::levels::{Levels, Lists, MOST_PLACES};
use super::pages::{Kinds, Pages};
use super::values::{Number, Values, spread};

pub(super) struct ListReader<N: Number> {
    column: ListColumn,
    pages: Pages<N>,
    page: Option<Page<N>>,
}

struct Page<N: Number> {
    levels: Levels,
    values: Values<N>,
}

impl<N: Number> ReadColumn for ListReader<N> {
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
            spread(&mut values, begin, lists.places, lists.items.as_slice().unwrap_or_default());
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

impl<N: Number> ListReader<N> {
    pub(super) fn open(
        column: ListColumn,
        chunk: &ColumnChunkMetaData,
        chunks: &Chunks,
        rows: usize,
    ) -> Result<Self, Undecodable> {
        let pages = Pages::new(chunk, chunks, rows, Kinds { repetition: true, definition: true })?;
        Ok(Self { column, pages, page: None })
    }

    fn next_page(&mut self) -> Result<Option<Page<N>>, Undecodable> {
        let Some(page) = self.pages.next()? else { return Ok(None) };
        let levels = Levels {
            repetition: Hybrid::new(page.repetition, 1)?,
            definition: Hybrid::new(page.definition, self.column.meaning.def_width())?,
            left: page.count,
        };
        Ok(Some(Page { levels, values: page.values }))
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
