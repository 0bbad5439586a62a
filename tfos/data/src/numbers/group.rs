//! A row group: columns of numbers from this module's decoder, the others from arrow's reader, in step.
//!
//! What the decoder does not accept is no error. Arrow's reader takes the row group over at the next row, and what it
//! says of it is what users get, be it rows or what is wrong with the file.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::error::{DataFusionError, Result};
use datafusion::parquet::arrow::ProjectionMask;
use datafusion::parquet::arrow::arrow_reader::{
    ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use datafusion::physical_plan::metrics::Count;

use super::Undecodable;
use super::chunks::Chunks;
use super::column::{self, ReadColumn};
use super::fit::{Fit, Group};

/// Rows of a row group that was fetched.
pub(super) struct Rows {
    fit: Arc<Fit>,
    group: Group,
    chunks: Chunks,
    batch_rows: usize,
    given: usize,
    /// Empty where arrow's reader reads all.
    numbers: Readers,
    others: Option<Others>,
    given_back: Count,
}

/// Readers of columns of the projection.
type Readers = Vec<(usize, Box<dyn ReadColumn>)>;

/// Arrow's reader, and which column of the projection each of its columns is.
struct Others {
    reader: ParquetRecordBatchReader,
    columns: Vec<usize>,
}

impl Rows {
    pub(super) fn new(
        fit: Arc<Fit>,
        group: Group,
        chunks: Chunks,
        batch_rows: usize,
        given_back: Count,
    ) -> Result<Self> {
        let batch_rows = batch_rows.max(1);
        let mut rows = Self { fit, group, chunks, batch_rows, given: 0, numbers: vec![], others: None, given_back };
        match rows.open() {
            Ok(numbers) => rows.numbers = numbers,
            Err(why) => rows.give_back(&why),
        }
        rows.others = rows.open_others()?;
        Ok(rows)
    }

    /// The next rows, until there are none.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>> {
        let left = self.group.rows.saturating_sub(self.given);
        if left == 0 {
            return Ok(None);
        }
        let rows = left.min(self.batch_rows);
        let batch = match self.read(rows)? {
            Ok(batch) => batch,
            Err(why) => {
                self.give_back(&why);
                self.others = self.open_others()?;
                self.read(rows)?.unwrap_or_default()
            }
        };
        self.given = batch.as_ref().map_or(self.group.rows, |batch| self.given + batch.num_rows());
        Ok(batch)
    }

    /// `rows` rows; without columns of ours as many as arrow's reader gives.
    fn read(&mut self, rows: usize) -> Result<Result<Option<RecordBatch>, Undecodable>> {
        let mut columns: Vec<Option<ArrayRef>> = vec![None; self.fit.columns.len()];
        for (column, numbers) in &mut self.numbers {
            match numbers.read(rows) {
                Ok(array) => columns[*column] = Some(array),
                Err(why) => return Ok(Err(why)),
            }
        }
        let mut there = rows;
        if let Some(others) = &mut self.others {
            let batch = others.reader.next().transpose()?;
            there = batch.as_ref().map_or(0, RecordBatch::num_rows);
            if there != rows && !self.numbers.is_empty() {
                return Ok(Err(Undecodable("columns of different lengths")));
            }
            let Some(batch) = batch else { return Ok(Ok(None)) };
            for (column, array) in others.columns.iter().zip(batch.columns()) {
                columns[*column] = Some(Arc::clone(array));
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(there));
        let columns = columns.into_iter().flatten().collect();
        Ok(Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.fit.schema), columns, &options)?)))
    }

    fn open(&self) -> Result<Readers, Undecodable> {
        let chunks = self.fit.metadata.metadata().row_group(self.group.index).columns();
        let open = |column: &usize| {
            let of = &self.fit.columns[*column];
            let (Some(numbers), Some(chunk)) = (&of.numbers, chunks.get(of.leaf)) else {
                return Err(Undecodable("no column"));
            };
            Ok((*column, column::open(numbers, chunk, &self.chunks, self.group.rows)?))
        };
        self.group.numbers.iter().map(open).collect()
    }

    /// All columns to arrow's reader, from the next row on.
    fn give_back(&mut self, why: &Undecodable) {
        tracing::debug!(row_group = self.group.index, row = self.given, why = why.0, "left to arrow's reader");
        self.given_back.add(1);
        self.numbers.clear();
        self.others = None;
    }

    fn open_others(&self) -> Result<Option<Others>> {
        let is_read = |column: &usize| self.numbers.iter().any(|(of, _)| of == column);
        let mut columns: Vec<usize> = (0..self.fit.columns.len()).filter(|column| !is_read(column)).collect();
        if columns.is_empty() {
            return Ok(None);
        }
        // The reader gives them in the order of the file.
        columns.sort_by_key(|column| self.fit.columns[*column].root);
        let metadata = self.fit.metadata.clone();
        let roots = columns.iter().map(|column| self.fit.columns[*column].root);
        let mask = ProjectionMask::roots(metadata.parquet_schema(), roots);
        let mut reader = ParquetRecordBatchReaderBuilder::new_with_metadata(self.chunks.clone(), metadata)
            .with_projection(mask)
            .with_row_groups(vec![self.group.index])
            .with_batch_size(self.batch_rows);
        if self.given > 0 {
            let rows = [RowSelector::skip(self.given), RowSelector::select(self.group.rows - self.given)];
            reader = reader.with_row_selection(RowSelection::from(rows.to_vec()));
        }
        let reader = reader.build().map_err(DataFusionError::from)?;
        Ok(Some(Others { reader, columns }))
    }
}
