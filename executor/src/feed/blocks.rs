//! A partition's rows in blocks, whose rows a seed permutes; see [`Shuffle`].

use futures::StreamExt;
use tfos_core::rows::Shuffle;
use tfos_data::arrow::array::RecordBatch;

use super::part::{Part, batch_size};
use super::scan::Rows;
use crate::Error;

/// Cuts the rows of one partition in one epoch into blocks.
pub(super) struct Blocks {
    rows: Rows,
    shuffle: Shuffle,
    epoch: u32,
    partition: u32,
    /// Number of the next block.
    next: u64,
    left: Option<RecordBatch>,
    /// Bytes of the block that was made last: the next one is about as large, while it is put together.
    block_bytes: usize,
}

/// Consecutive rows, not yet permuted: a scan that passes over them need not.
pub(super) struct Block {
    pieces: Vec<RecordBatch>,
    order: Vec<u32>,
}

impl Blocks {
    pub(super) fn new(rows: Rows, shuffle: Shuffle, epoch: u32, partition: u32) -> Self {
        Self { rows, shuffle, epoch, partition, next: 0, left: None, block_bytes: 0 }
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.block_bytes + self.left.as_ref().map_or(0, batch_size)
    }

    /// The next block, which is shorter than others only where the partition ends.
    pub(super) async fn next(&mut self) -> Result<Option<Block>, Error> {
        let wanted = self.shuffle.block_rows.get() as usize;
        let (mut pieces, mut rows) = (vec![], 0);
        while rows < wanted {
            let piece = match self.left.take() {
                Some(piece) => piece,
                None => match self.rows.next().await {
                    Some(piece) => piece?,
                    None => break,
                },
            };
            let take = piece.num_rows().min(wanted - rows);
            if take < piece.num_rows() {
                self.left = Some(piece.slice(take, piece.num_rows() - take));
            }
            rows += take;
            pieces.push(piece.slice(0, take));
        }
        if rows == 0 {
            return Ok(None);
        }
        let order = self.shuffle.block(self.epoch, self.partition, self.next, rows as u32);
        self.next += 1;
        self.block_bytes = pieces.iter().map(batch_size).sum();
        Ok(Some(Block { pieces, order }))
    }
}

impl Block {
    pub(super) fn rows(&self) -> usize {
        self.order.len()
    }

    /// Its rows in their shuffled order.
    pub(super) fn permuted(self) -> Part {
        Part::mixed(self.pieces, &self.order)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;

    use tfos_data::arrow::array::{ArrayRef, AsArray, Int64Array};
    use tfos_data::arrow::datatypes::Int64Type;

    use super::*;

    fn stream(sizes: &[usize]) -> Rows {
        let mut start = 0i64;
        let batches: Vec<_> = sizes
            .iter()
            .map(|size| {
                let column: ArrayRef = Arc::new(Int64Array::from_iter_values(start..start + *size as i64));
                start += *size as i64;
                Ok(RecordBatch::try_from_iter([("x", column)]).unwrap())
            })
            .collect();
        futures::stream::iter(batches).boxed()
    }

    async fn blocks(sizes: &[usize], block_rows: u32) -> Vec<Vec<i64>> {
        let shuffle = Shuffle { seed: 9, block_rows: NonZeroU32::new(block_rows).unwrap() };
        let mut blocks = Blocks::new(stream(sizes), shuffle, 1, 2);
        let mut all = vec![];
        while let Some(block) = blocks.next().await.unwrap() {
            let rows = block.rows();
            let part = block.permuted();
            assert_eq!((part.num_rows(), part.bytes()), (rows, 8 * rows));
            let batch = part.batch().unwrap();
            let (first, rest) = (part.slice(0, rows / 3), part.slice(rows / 3, usize::MAX));
            assert_eq!(
                [first.batches(), rest.batches()].concat(),
                [batch.slice(0, rows / 3), batch.slice(rows / 3, rows - rows / 3)]
            );
            all.push(batch.column(0).as_primitive::<Int64Type>().values().to_vec());
        }
        all
    }

    #[tokio::test] // SHF-1: how a scan cuts its record batches changes nothing
    async fn blocks_hold_consecutive_rows_in_an_order_that_the_batches_do_not_change() {
        let whole = blocks(&[100], 32).await;
        assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 32, 4]);
        for (number, block) in whole.iter().enumerate() {
            let mut sorted = block.clone();
            sorted.sort_unstable();
            let start = number as i64 * 32;
            assert!(sorted.iter().copied().eq(start..start + block.len() as i64));
            assert_ne!(&sorted, block);
        }
        assert_eq!(blocks(&[1, 31, 0, 33, 35], 32).await, whole);
        assert!(blocks(&[], 32).await.is_empty());
        assert!(blocks(&[0, 0], 32).await.is_empty());
    }
}
