//! Consecutive rows of a scan, which stay where they are until somebody asks for a column of them.
//!
//! A table may have dozens of columns, and a scan gives many batches of a training step at a time: to slice or to gather
//! all of them for each would cost more than the rows. Rows of a shuffled block are gathered when a column of a training
//! step's batch is asked for, and so straight into that batch.

use std::sync::{Arc, OnceLock};

use tfos_data::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use tfos_data::arrow::buffer::ScalarBuffer;
#[cfg(feature = "torch")]
use tfos_data::arrow::buffer::{Buffer, MutableBuffer};
#[cfg(feature = "torch")]
use tfos_data::arrow::compute::{interleave, take};
use tfos_data::arrow::compute::{interleave_record_batch, take_record_batch};
#[cfg(feature = "torch")]
use tfos_data::arrow::datatypes::SchemaRef;
use tfos_data::arrow::error::ArrowError;

#[cfg(feature = "torch")]
use super::laid::{Laid, lay_batch};

/// Bytes that the rows occupy; slices of one record batch share memory, and each counts its own part.
pub(super) fn batch_size(rows: &RecordBatch) -> usize {
    rows.columns().iter().map(|column| column_size(column.as_ref(), 0, rows.num_rows())).sum()
}

/// Bytes of `rows` rows from `from` on. It is asked several times for each batch, so what can be is said without a slice.
fn column_size(column: &dyn Array, from: usize, rows: usize) -> usize {
    let nulls = column.nulls().map_or(0, |_| rows.div_ceil(8));
    if let Some(width) = column.data_type().primitive_width() {
        return rows * width + nulls;
    }
    if let Some(lists) = column.as_list_opt::<i32>()
        && let Some(width) = lists.value_type().primitive_width()
        && let Some(offsets) = lists.value_offsets().get(from..=from + rows)
        && let [first, .., last] = offsets
    {
        let values = (last - first) as usize;
        let null_values = lists.values().nulls().map_or(0, |_| values.div_ceil(8));
        return values * width + null_values + size_of_val(offsets) + nulls;
    }
    column.slice(from, rows).to_data().get_slice_memory_size().unwrap_or(0)
}

/// Bytes of columns that may be asked for side by side, which a block keeps once more then.
fn laid_size(rows: &RecordBatch) -> usize {
    let widths = rows.columns().iter().filter_map(|column| column.data_type().primitive_width());
    let (columns, width) = widths.fold((0, 0), |(columns, all), width| (columns + 1, all + width));
    if columns > 1 { width * rows.num_rows() } else { 0 }
}

/// Consecutive rows of a scan's output.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    of: Rows,
    from: usize,
    rows: usize,
    /// Bytes of a row, where all have the same or are taken for it.
    row_bytes: Option<usize>,
}

#[derive(Debug, Clone)]
enum Rows {
    Batch(Arc<RecordBatch>),
    Block(Arc<Mixed>),
}

/// Rows of a block in their shuffled order.
#[derive(Debug)]
struct Mixed {
    pieces: Vec<RecordBatch>,
    /// Counted over all pieces.
    order: ScalarBuffer<u32>,
    /// The same, each as a piece and a row of it; made when there are several and somebody asks.
    places: OnceLock<Vec<(usize, usize)>>,
    #[cfg(feature = "torch")]
    laid: Laid,
}

impl Mixed {
    fn places(&self) -> &[(usize, usize)] {
        self.places.get_or_init(|| {
            let rows_of = |(number, piece): (usize, &RecordBatch)| (0..piece.num_rows()).map(move |row| (number, row));
            let places: Vec<_> = self.pieces.iter().enumerate().flat_map(rows_of).collect();
            self.order.iter().filter_map(|row| places.get(*row as usize).copied()).collect()
        })
    }
}

impl From<RecordBatch> for Part {
    fn from(rows: RecordBatch) -> Self {
        let width = |column: &ArrayRef| column.data_type().primitive_width().filter(|_| column.nulls().is_none());
        let row_bytes = rows.columns().iter().map(width).sum();
        Self { from: 0, rows: rows.num_rows(), row_bytes, of: Rows::Batch(Arc::new(rows)) }
    }
}

impl Part {
    /// The rows of `pieces`, counted over all of them, in this order.
    pub(crate) fn mixed(pieces: Vec<RecordBatch>, order: &[u32]) -> Self {
        let all: usize = pieces.iter().map(RecordBatch::num_rows).sum();
        let order: ScalarBuffer<u32> = order.iter().copied().filter(|row| (*row as usize) < all).collect();
        let bytes: usize = pieces.iter().map(|piece| batch_size(piece) + laid_size(piece)).sum();
        let row_bytes = Some(bytes.div_ceil(order.len().max(1)));
        let rows = order.len();
        let mixed = Mixed {
            pieces,
            order,
            places: OnceLock::new(),
            #[cfg(feature = "torch")]
            laid: Laid::default(),
        };
        Self { from: 0, rows, row_bytes, of: Rows::Block(Arc::new(mixed)) }
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.rows
    }

    pub(super) fn bytes(&self) -> usize {
        match (&self.of, self.row_bytes) {
            (Rows::Batch(batch), None) => {
                batch.columns().iter().map(|column| column_size(column.as_ref(), self.from, self.rows)).sum()
            }
            (_, bytes) => bytes.unwrap_or(0) * self.rows,
        }
    }

    /// `rows` rows from `from` on, as far as they are there.
    pub(crate) fn slice(&self, from: usize, rows: usize) -> Self {
        let from = from.min(self.rows);
        Self { from: self.from + from, rows: rows.min(self.rows - from), ..self.clone() }
    }

    #[cfg(feature = "torch")]
    pub(crate) fn schema(&self) -> Option<&SchemaRef> {
        match &self.of {
            Rows::Batch(batch) => Some(batch.schema_ref()),
            Rows::Block(block) => block.pieces.first().map(RecordBatch::schema_ref),
        }
    }

    /// A column's rows.
    #[cfg(feature = "torch")]
    pub(crate) fn column(&self, index: usize) -> Result<ArrayRef, ArrowError> {
        match &self.of {
            Rows::Batch(batch) if self.rows == batch.num_rows() => Ok(Arc::clone(batch.column(index))),
            Rows::Batch(batch) => Ok(batch.column(index).slice(self.from, self.rows)),
            Rows::Block(block) => match block.pieces.as_slice() {
                [piece] => take(piece.column(index), &self.order(block), None),
                pieces => {
                    let pieces: Vec<&dyn Array> = pieces.iter().map(|piece| piece.column(index).as_ref()).collect();
                    interleave(&pieces, self.places(block))
                }
            },
        }
    }

    /// Appends the rows of these columns, row after row; `false` where they are not all of numbers of one width without
    /// nulls.
    #[cfg(feature = "torch")]
    pub(crate) fn lay(&self, columns: &[usize], out: &mut MutableBuffer) -> bool {
        match &self.of {
            Rows::Batch(batch) => lay_batch(batch, columns, self.from, self.rows, out),
            Rows::Block(_) => {
                let laid = self.laid(columns);
                laid.is_some_and(|rows| {
                    out.extend_from_slice(rows.as_slice());
                    true
                })
            }
        }
    }

    /// The same without a copy, of rows of a block.
    #[cfg(feature = "torch")]
    pub(crate) fn laid(&self, columns: &[usize]) -> Option<Buffer> {
        let Rows::Block(block) = &self.of else { return None };
        let rows = block.laid.rows(&block.pieces, columns, &block.order)?;
        let width = rows.len() / block.order.len().max(1);
        Some(rows.slice_with_length(self.from * width, self.rows * width))
    }

    /// The rows as one record batch.
    pub(super) fn batch(&self) -> Result<RecordBatch, ArrowError> {
        match &self.of {
            Rows::Batch(batch) if self.rows == batch.num_rows() => Ok(RecordBatch::clone(batch)),
            Rows::Batch(batch) => Ok(batch.slice(self.from, self.rows)),
            Rows::Block(block) => match block.pieces.as_slice() {
                [piece] => take_record_batch(piece, &self.order(block)),
                pieces => interleave_record_batch(&pieces.iter().collect::<Vec<_>>(), self.places(block)),
            },
        }
    }

    /// The rows as record batches. Texts of more bytes than one array can have are the only ones that do not fit into one.
    pub(super) fn batches(&self) -> Vec<RecordBatch> {
        match (self.batch(), &self.of) {
            (Ok(rows), _) => vec![rows],
            (Err(_), Rows::Batch(_)) => vec![],
            (Err(_), Rows::Block(block)) => {
                let row = |(piece, row): &(usize, usize)| block.pieces.get(*piece).map(|piece| piece.slice(*row, 1));
                self.places(block).iter().filter_map(row).collect()
            }
        }
    }

    fn order(&self, block: &Mixed) -> UInt32Array {
        UInt32Array::new(block.order.slice(self.from, self.rows), None)
    }

    fn places<'a>(&self, block: &'a Mixed) -> &'a [(usize, usize)] {
        block.places().get(self.from..self.from + self.rows).unwrap_or_default()
    }
}
