//! Rows on their way into a training step, with their addresses.

use tfos_core::rows::{MicroBatch, RowRange};
use tfos_data::arrow::array::{Array, AsArray, RecordBatch};

/// Bytes that the rows occupy; slices of one record batch share memory, and each counts its own part.
pub(super) fn batch_size(rows: &RecordBatch) -> usize {
    rows.columns().iter().map(|column| column_size(column.as_ref())).sum()
}

fn column_size(column: &dyn Array) -> usize {
    let nulls = column.nulls().map_or(0, |_| column.len().div_ceil(8));
    // This is asked several times for each batch, and a general answer costs an allocation for each column.
    if let Some(width) = column.data_type().primitive_width() {
        return column.len() * width + nulls;
    }
    if let Some(lists) = column.as_list_opt::<i32>()
        && let Some(width) = lists.value_type().primitive_width()
        && let [first, .., last] = lists.value_offsets()
    {
        let values = (last - first) as usize;
        let null_values = lists.values().nulls().map_or(0, |_| values.div_ceil(8));
        return values * width + null_values + size_of_val(lists.value_offsets()) + nulls;
    }
    column.to_data().get_slice_memory_size().unwrap_or(0)
}

/// A piece of a scan's output: consecutive rows of one partition in one epoch.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) rows: RecordBatch,
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
        batch_size(&self.rows)
    }

    /// The first `n` rows and the rest.
    pub(crate) fn split(self, n: usize) -> (Self, Self) {
        let rest = Self { rows: self.rows.slice(n, self.rows.num_rows() - n), start: self.start + n as u64, ..self };
        (Self { rows: self.rows.slice(0, n), ..self }, rest)
    }
}

/// Rows of one epoch, from [`DataFeed::next_batch`](crate::DataFeed::next_batch). Columns are Arrow arrays in
/// one or more pieces; [`Batch::tensor`] makes a tensor of one.
#[derive(Debug, Clone)]
pub struct Batch {
    pieces: Vec<RecordBatch>,
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
        Self { pieces: pieces.into_iter().map(|p| p.rows).collect(), ranges, epoch, micro_batch }
    }

    /// A batch of rows that nobody leased, for tests and for scoring by hand.
    pub fn from_record_batch(rows: RecordBatch) -> Self {
        Self { pieces: vec![rows], ranges: vec![], epoch: 0, micro_batch: None }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.pieces.iter().map(RecordBatch::num_rows).sum()
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
        &self.pieces
    }

    /// One column as a CPU tensor; first dimension is the rows. Without a copy when the batch is one piece
    /// and the column's layout allows it, with one copy otherwise; see
    /// [`column`](crate::torch::tensor::column) for shapes and dtypes.
    #[cfg(feature = "torch")]
    pub fn tensor(&self, column: &str) -> Result<crate::torch::Tensor, crate::Error> {
        let tensor = crate::torch::tensor::column(&self.pieces, column)?;
        // Sums over misaligned memory may be grouped in another way.
        if self.micro_batch.is_some() { crate::torch::deterministic::aligned(tensor) } else { Ok(tensor) }
    }

    /// Several columns side by side as one CPU tensor `[rows, columns]`, with one copy: what `Tensor::stack` of
    /// [`Self::tensor`] of each would be, for tables of many columns many times faster. See
    /// [`stacked`](crate::torch::tensor::stacked).
    #[cfg(feature = "torch")]
    pub fn stacked(&self, columns: &[&str]) -> Result<crate::torch::Tensor, crate::Error> {
        Ok(crate::torch::tensor::stacked(&self.pieces, columns)?)
    }
}
