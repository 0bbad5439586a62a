//! Rows on their way into a training step, with their addresses.

use std::sync::OnceLock;

use tfos_core::rows::{MicroBatch, RowRange};
use tfos_data::arrow::array::RecordBatch;

use super::part::Part;

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
        let rest = Self { rows: self.rows.slice(n, usize::MAX), start: self.start + n as u64, ..self };
        (Self { rows: self.rows.slice(0, n), ..self }, rest)
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
        self.pieces.get_or_init(|| self.parts.iter().flat_map(Part::batches).collect())
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
    /// element type and shape. Of shuffled rows it may be a view of memory that a second call shares: clone what you
    /// change in place.
    #[cfg(feature = "torch")]
    pub fn stacked(&self, columns: &[&str]) -> Result<crate::torch::Tensor, crate::Error> {
        let tensor = crate::torch::tensor::stacked(&self.parts, columns)?;
        if self.micro_batch.is_some() { crate::torch::deterministic::aligned(tensor) } else { Ok(tensor) }
    }
}
