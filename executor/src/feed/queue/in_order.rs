//! The queue in deterministic training: it gives out whole micro-batches, the earliest first.
//!
//! One that comes late, because another worker gave it back, is queued before those of the step after it. So the trainer
//! looks at what is first before it takes it: the parameters for that may not be there yet, and something earlier may come
//! while it waits for them.

use std::sync::PoisonError;
use std::time::Duration;

use tfos_core::rows::MicroBatch;

use super::{Queue, State};
use crate::Error;
use crate::feed::batch::{Batch, Piece};

/// Micro-batches in the queue; one more is in the trainer's hands. Rows that lie here cannot be given to a worker that has
/// nothing to do, so they are few.
const QUEUED: usize = 2;

/// What a look at the head of the queue gave.
#[derive(Debug)]
pub(crate) enum Front {
    /// The earliest, all of it.
    MicroBatch(MicroBatch),
    /// Nothing whole yet.
    Pending,
    End,
}

impl Queue {
    /// A queue of micro-batches.
    pub(crate) fn in_order(bound: usize) -> Self {
        let queue = Self::new(bound);
        queue.lock().in_order = true;
        queue
    }

    pub(crate) fn is_in_order(&self) -> bool {
        self.lock().in_order
    }

    /// The earliest micro-batch, of `n` rows as all are; waits for one at most `patience`.
    pub(crate) fn front(&self, n: usize, patience: Duration) -> Result<Front, Error> {
        let mut state = self.lock();
        let n = n as u64;
        if state.batch != 0 && state.batch != n {
            return Err(Error::Usage {
                what: format!("a batch of {n} rows was asked for, and {} before", state.batch),
                try_this: "with --deterministic ask for the same number of rows each time: they decide where steps end"
                    .into(),
            });
        }
        state.batch = n;
        self.wanted.notify_one();
        let mut waited = false;
        loop {
            if let Some(error) = state.error.take() {
                state.closed = true;
                return Err(error);
            }
            if state.closed {
                return Ok(Front::End);
            }
            match state.first_whole() {
                Some(micro_batch) => return Ok(Front::MicroBatch(micro_batch)),
                None if waited => return Ok(Front::Pending),
                None => {}
            }
            let (next, result) = self.readable.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
            (state, waited) = (next, result.timed_out());
        }
    }

    /// Takes this micro-batch if it is still the earliest.
    pub(crate) fn take_front(&self, wanted: MicroBatch) -> Option<Batch> {
        let mut state = self.lock();
        if state.closed || state.first_whole() != Some(wanted) {
            return None;
        }
        let mut taken = vec![];
        while state.pieces.front().and_then(|p| p.of).is_some_and(|(micro_batch, _)| micro_batch == wanted) {
            let piece = state.pieces.pop_front()?;
            state.usage.queue = state.usage.queue.saturating_sub(piece.bytes());
            state.rows = state.rows.saturating_sub(piece.rows.num_rows() as u64);
            taken.push(piece);
        }
        state.usage.batch = taken.iter().map(Piece::bytes).sum();
        state.note();
        self.wanted.notify_one();
        Some(Batch::new(taken))
    }
}

impl State {
    /// Rows of the next lease, if there is to be one.
    pub(super) fn micro_batch_wanted(&self) -> Option<u64> {
        let mut queued: Vec<MicroBatch> = self.pieces.iter().filter_map(|p| p.of).map(|(m, _)| m).collect();
        queued.dedup();
        (!self.closed && self.batch > 0 && queued.len() < QUEUED).then_some(self.batch)
    }

    /// What is being scanned comes before everything that is queued: nothing goes on without it, so it has room.
    pub(super) fn is_scanning_first(&self) -> bool {
        let Some((_, Some(scanning))) = self.scanning else { return false };
        self.pieces.iter().filter_map(|p| p.of).all(|(queued, _)| queued >= scanning)
    }

    /// Behind all that do not come after it.
    pub(super) fn insert(&mut self, piece: Piece) {
        let place = self.pieces.iter().rposition(|p| p.of.map(|of| of.0) <= piece.of.map(|of| of.0));
        self.pieces.insert(place.map_or(0, |place| place + 1), piece);
    }

    fn first_whole(&self) -> Option<MicroBatch> {
        let (first, rows) = self.pieces.front()?.of?;
        let parts = self.pieces.iter().take_while(|p| p.of.is_some_and(|(m, _)| m == first));
        (parts.map(|p| p.rows.num_rows() as u64).sum::<u64>() == rows).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tfos_core::ids::GlobalStep;
    use tfos_core::rows::RowRange;
    use tfos_data::arrow::array::{Int64Array, RecordBatch};
    use tfos_data::arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn place(step: u64, index: u32) -> MicroBatch {
        MicroBatch { step: GlobalStep(step), index, of: 4 }
    }

    fn piece(of: MicroBatch, rows: u64, start: u64, count: usize) -> Piece {
        let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, false)]));
        let column = Int64Array::from_iter_values((0..count as i64).map(|i| start as i64 + i));
        let batch = RecordBatch::try_new(schema, vec![Arc::new(column)]).unwrap();
        Piece { rows: batch.into(), epoch: 0, partition: 0, start, of: Some((of, rows)) }
    }

    fn front(queue: &Queue) -> Option<MicroBatch> {
        match queue.front(10, NOW).unwrap() {
            Front::MicroBatch(found) => Some(found),
            Front::Pending => None,
            Front::End => panic!("the queue was to be open"),
        }
    }

    #[test] // DET-1
    fn whole_micro_batches_come_the_earliest_first() {
        let queue = Queue::in_order(1 << 20);
        assert_eq!(front(&queue), None);
        queue.push(piece(place(2, 1), 10, 40, 6));
        assert_eq!(front(&queue), None, "a part of it is missing");
        queue.push(piece(place(2, 1), 10, 46, 4));
        assert_eq!(front(&queue), Some(place(2, 1)));
        // Somebody else has given it back.
        queue.push(piece(place(1, 3), 7, 20, 3));
        assert_eq!(front(&queue), None, "the one before it is on its way");
        assert!(queue.take_front(place(2, 1)).is_none());
        queue.push(piece(place(1, 3), 7, 23, 4));
        let batch = queue.take_front(place(1, 3)).unwrap();
        assert_eq!((batch.rows(), batch.micro_batch()), (7, Some(place(1, 3))));
        let batch = queue.take_front(place(2, 1)).unwrap();
        assert_eq!(batch.ranges()[0], RowRange { epoch: 0, partition: 0, start: 40, end: 46 });
        assert_eq!(front(&queue), None);
        queue.close();
        assert!(matches!(queue.front(10, NOW).unwrap(), Front::End));
    }

    #[test] // FED-5
    fn few_are_queued_and_the_earliest_always_has_room() {
        let queue = Queue::in_order(1);
        assert_eq!(queue.appetite(), None, "nobody has asked for rows");
        front(&queue);
        assert_eq!(queue.appetite(), Some(10));
        queue.set_scanning(Some((RowRange { epoch: 0, partition: 0, start: 40, end: 50 }, Some(place(2, 0)))));
        queue.push(piece(place(2, 0), 10, 40, 10));
        queue.set_scanning(Some((RowRange { epoch: 0, partition: 0, start: 50, end: 60 }, Some(place(2, 1)))));
        assert!(!queue.has_room(), "above its bound");
        queue.set_scanning(Some((RowRange { epoch: 0, partition: 0, start: 10, end: 20 }, Some(place(1, 1)))));
        assert!(queue.has_room(), "nothing goes on without it");
        queue.push(piece(place(1, 1), 10, 10, 10));
        assert_eq!(queue.appetite(), None);
        queue.take_front(place(1, 1)).unwrap();
        assert_eq!(queue.appetite(), Some(10));
    }

    #[test]
    fn a_batch_of_another_size_is_refused() {
        let queue = Queue::in_order(1 << 20);
        front(&queue);
        let refused = queue.front(11, NOW).unwrap_err();
        assert!(refused.to_string().contains("11 rows"), "{refused}");
    }
}
