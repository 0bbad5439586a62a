//! A column chunk of numbers: its pages one after the other, as arrays of as many rows as are asked for.

use std::sync::Arc;

use datafusion::arrow::array::builder::BooleanBufferBuilder;
use datafusion::arrow::array::{ArrayRef, PrimitiveArray};
use datafusion::arrow::buffer::{NullBuffer, ScalarBuffer};
use datafusion::parquet::file::metadata::ColumnChunkMetaData;

use super::Undecodable;
use super::chunks::Chunks;
use super::column::ReadColumn;
use super::hybrid::{Hybrid, Run, word};
use super::pages::{Kinds, Pages};
use super::values::{Number, Values, spread};

/// Levels of one step where they are packed: a word has 57 of them at least.
const STEP: usize = 56;

pub(super) struct FlatReader<N: Number> {
    nullable: bool,
    pages: Pages<N>,
    page: Option<Page<N>>,
}

struct Page<N: Number> {
    /// What is null, where anything can be.
    levels: Option<Hybrid>,
    values: Values<N>,
    /// Rows that have not been read.
    left: usize,
}

impl<N: Number> FlatReader<N> {
    pub(super) fn open(
        nullable: bool,
        chunk: &ColumnChunkMetaData,
        chunks: &Chunks,
        rows: usize,
    ) -> Result<Self, Undecodable> {
        let pages = Pages::new(chunk, chunks, rows, Kinds { repetition: false, definition: nullable })?;
        Ok(Self { nullable, pages, page: None })
    }

    fn next_page(&mut self) -> Result<Page<N>, Undecodable> {
        let page = self.pages.next()?.ok_or(Undecodable("fewer rows than the file says"))?;
        let levels = self.nullable.then(|| Hybrid::new(page.definition, 1)).transpose()?;
        Ok(Page { levels, values: page.values, left: page.count })
    }
}

impl<N: Number> ReadColumn for FlatReader<N> {
    fn read(&mut self, rows: usize) -> Result<ArrayRef, Undecodable> {
        let (mut values, mut nulls) = (Vec::with_capacity(rows), 0);
        let mut valid = BooleanBufferBuilder::new(if self.nullable { rows } else { 0 });
        while values.len() < rows {
            let mut page = match self.page.take() {
                Some(page) => page,
                None => self.next_page()?,
            };
            let (begin, n) = (values.len(), page.left.min(rows - values.len()));
            match &mut page.levels {
                Some(levels) => {
                    let there = present(levels, n, &mut valid)?;
                    page.values.read(there, &mut values)?;
                    nulls += n.saturating_sub(there);
                    spread(&mut values, begin, begin + n, valid.as_slice());
                }
                None => page.values.read(n, &mut values)?,
            }
            page.left -= n;
            self.page = (page.left > 0).then_some(page);
        }
        let valid = (nulls > 0).then(|| NullBuffer::new(valid.finish()));
        Ok(Arc::new(PrimitiveArray::<N>::try_new(ScalarBuffer::from(values), valid)?))
    }
}

/// Notes which of the next `n` rows have a value; how many do.
pub(super) fn present(levels: &mut Hybrid, n: usize, valid: &mut BooleanBufferBuilder) -> Result<usize, Undecodable> {
    let (mut left, mut there) = (n, 0);
    while left > 0 {
        let run = levels.run()?;
        let mut n = run.left().min(left);
        there += match run {
            Run::Same { value, .. } => {
                valid.append_n(n, value != 0);
                value as usize * n
            }
            Run::Packed { bit, .. } => {
                n = n.min(STEP);
                let bits = word(levels.bytes(), bit) & ((1 << n) - 1);
                valid.append_word(bits, n);
                bits.count_ones() as usize
            }
        };
        levels.advance(n);
        left -= n;
    }
    Ok(there)
}
