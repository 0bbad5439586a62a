//! Rows on their way into a training step, with their addresses.

use std::sync::{Arc, OnceLock};

use tfos_core::rows::{MicroBatch, RowRange};
use tfos_data::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};

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

/// Consecutive rows of a record batch. Nothing is sliced until a column is asked for: a table may have dozens of them,
/// and a scan gives many batches of a training step at a time.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    of: Arc<RecordBatch>,
    from: usize,
    rows: usize,
    /// Bytes of a row, where all rows have the same.
    row_bytes: Option<usize>,
}

impl From<RecordBatch> for Part {
    fn from(rows: RecordBatch) -> Self {
        let width = |column: &ArrayRef| column.data_type().primitive_width().filter(|_| column.nulls().is_none());
        let row_bytes = rows.columns().iter().map(width).sum();
        Self { from: 0, rows: rows.num_rows(), row_bytes, of: Arc::new(rows) }
    }
}

impl Part {
    pub(crate) fn num_rows(&self) -> usize {
        self.rows
    }

    fn bytes(&self) -> usize {
        let column = |column: &ArrayRef| column_size(column.as_ref(), self.from, self.rows);
        self.row_bytes.map_or_else(|| self.of.columns().iter().map(column).sum(), |bytes| bytes * self.rows)
    }

    pub(crate) fn split(self, n: usize) -> (Self, Self) {
        let n = n.min(self.rows);
        let rest = Self { of: Arc::clone(&self.of), from: self.from + n, rows: self.rows - n, ..self };
        (Self { rows: n, ..self }, rest)
    }

    /// The record batch that has the rows, and the place of the first one there.
    #[cfg(feature = "torch")]
    pub(crate) fn place(&self) -> (&RecordBatch, usize) {
        (&self.of, self.from)
    }

    fn sliced(&self) -> RecordBatch {
        match self.rows == self.of.num_rows() {
            true => RecordBatch::clone(&self.of),
            false => self.of.slice(self.from, self.rows),
        }
    }
}

/// A piece of a scan's output: consecutive rows of one partition in one epoch.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) rows: Part,
    pub(crate) epoch: u32,
    pub(crate) partition: u32,
    pub(crate) start: u64,
    /// Deterministic training: the micro-batch that it belongs to, and the rows of that one.
    pub(crate) of: Option<(MicroBatch, u64)>,
}

impl Piece {
    pub(crate) fn range(&self) -> RowRange {
        let Self { epoch, partition, start, .. } = *self;
        RowRange { epoch, partition, start, end: start + self.rows.num_rows() as u64 }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// The first `n` rows and the rest.
    pub(crate) fn split(self, n: usize) -> (Self, Self) {
        let (rows, rest) = self.rows.split(n);
        (Self { rows, ..self }, Self { rows: rest, start: self.start + n as u64, ..self })
    }
}

/// Rows of one epoch, from [`DataFeed::next_batch`](crate::DataFeed::next_batch). Columns are Arrow arrays in
/// one or more pieces; [`Batch::tensor`] makes a tensor of one.
#[derive(Debug, Clone)]
pub struct Batch {
    parts: Vec<Part>,
    /// The parts as record batches, once somebody has asked for them.
    pieces: OnceLock<Vec<RecordBatch>>,
    ranges: Vec<RowRange>,
    epoch: u32,
    /// Its place in deterministic training.
    micro_batch: Option<MicroBatch>,
}

impl Batch {
    pub(crate) fn new(pieces: Vec<Piece>) -> Self {
        let first = pieces.first();
        let (epoch, micro_batch) = (first.map_or(0, |p| p.epoch), first.and_then(|p| p.of).map(|of| of.0));
        let ranges = pieces.iter().map(Piece::range).collect();
        let parts = pieces.into_iter().map(|p| p.rows).collect();
        Self { parts, pieces: OnceLock::new(), ranges, epoch, micro_batch }
    }

    /// A batch of rows that nobody leased, for tests and for scoring by hand.
    pub fn from_record_batch(rows: RecordBatch) -> Self {
        Self { parts: vec![rows.into()], pieces: OnceLock::new(), ranges: vec![], epoch: 0, micro_batch: None }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(Part::num_rows).sum()
    }

    /// Pass over the data that the rows belong to, from 0. A batch never spans two.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Which part of which step it is, in deterministic training.
    pub fn micro_batch(&self) -> Option<MicroBatch> {
        self.micro_batch
    }

    /// Addresses of the rows, in their order.
    pub fn ranges(&self) -> &[RowRange] {
        &self.ranges
    }

    /// The rows as Arrow record batches, in their order.
    pub fn pieces(&self) -> &[RecordBatch] {
        self.pieces.get_or_init(|| self.parts.iter().map(Part::sliced).collect())
    }

    /// One column as a CPU tensor; first dimension is the rows. Without a copy when the batch is one piece
    /// and the column's layout allows it, with one copy otherwise; see
    /// [`tensor`](crate::torch::tensor) for shapes and dtypes.
    #[cfg(feature = "torch")]
    pub fn tensor(&self, column: &str) -> Result<crate::torch::Tensor, crate::Error> {
        let tensor = crate::torch::tensor::column(&self.parts, column)?;
        // Sums over misaligned memory may be grouped in another way.
        if self.micro_batch.is_some() { crate::torch::deterministic::aligned(tensor) } else { Ok(tensor) }
    }

    /// Several columns side by side as one CPU tensor `[rows, columns]`, with one copy: what `Tensor::stack` of
    /// [`Self::tensor`] of each would be, for tables of many columns many times faster. They are of one
    /// element type and shape.
    #[cfg(feature = "torch")]
    pub fn stacked(&self, columns: &[&str]) -> Result<crate::torch::Tensor, crate::Error> {
        Ok(crate::torch::tensor::stacked(&self.parts, columns)?)
    }
}
