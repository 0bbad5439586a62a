//! Tests of the queue.

use std::sync::Arc;

use tfos_data::arrow::array::{Int64Array, RecordBatch};
use tfos_data::arrow::datatypes::{DataType, Field, Schema};

use super::*;

const NOW: Duration = Duration::ZERO;

fn piece(epoch: u32, start: u64, rows: u64) -> Piece {
    let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, false)]));
    let column = Int64Array::from_iter_values(start as i64..(start + rows) as i64);
    let rows = RecordBatch::try_new(schema, vec![Arc::new(column)]).unwrap();
    Piece { rows: rows.into(), epoch, partition: 0, start, of: None }
}

fn batch(queue: &Queue, n: usize) -> Batch {
    match queue.pop(n, NOW).unwrap() {
        Pop::Batch(batch) => batch,
        other => panic!("expected a batch, got {other:?}"),
    }
}

#[test] // the port of test_datafeed: 10 rows, batches of 2, 4 and then what is left
fn test_datafeed() {
    let queue = Queue::new(1 << 20);
    queue.push(piece(0, 0, 10));
    queue.set_starved();
    assert_eq!(batch(&queue, 2).rows(), 2);
    assert_eq!(batch(&queue, 4).rows(), 4);
    assert!(!queue.is_closed());
    let last = batch(&queue, 10);
    assert_eq!((last.rows(), last.ranges()[0].start, last.ranges()[0].end), (4, 6, 10));
    queue.close();
    assert!(matches!(queue.pop(10, NOW).unwrap(), Pop::End));
    assert!(queue.is_closed());
}

#[test] // FED-6
fn a_batch_spans_pieces_but_not_epochs() {
    let queue = Queue::new(1 << 20);
    for p in [piece(0, 0, 3), piece(0, 3, 3), piece(1, 0, 3)] {
        queue.push(p);
    }
    assert_eq!(batch(&queue, 4).pieces().len(), 2);
    let tail = batch(&queue, 4);
    assert_eq!((tail.rows(), tail.epoch()), (2, 0));
    assert!(matches!(queue.pop(4, NOW).unwrap(), Pop::Pending { starved: false }), "more rows may come");
    queue.set_starved();
    assert_eq!(batch(&queue, 4).epoch(), 1);
}

#[test] // FED-5
fn the_queue_is_bounded_by_bytes_and_slices_count_their_own_part() {
    let queue = Queue::new(440);
    assert_eq!(queue.appetite(), None, "nothing is leased before the trainer asks");
    assert!(matches!(queue.pop(4, NOW).unwrap(), Pop::Pending { .. }));
    assert!(queue.appetite().is_some());
    queue.push(piece(0, 0, 20));
    assert!(queue.has_room(), "160 bytes are there and as many fit");
    queue.push(piece(0, 20, 20));
    assert!(!queue.has_room() && queue.appetite().is_none());
    assert_eq!(batch(&queue, 10).rows(), 10);
    assert!(!queue.has_room(), "the trainer holds what the queue no longer does");
    assert_eq!(batch(&queue, 10).rows(), 10);
    assert!(queue.has_room(), "the batch before that one is gone");
    queue.set_scan_bytes(300);
    assert!(!queue.has_room(), "an open partition counts");
    assert_eq!(batch(&queue, 20).rows(), 20);
    assert!(queue.has_room(), "a batch has to fit, however small the bound is");
    let (bound, peak) = queue.peak();
    assert_eq!((bound, peak.of_each.queue, peak.of_each.scan, peak.of_each.batch), (440, 320, 300, 160));
}

#[test]
fn what_was_leased_and_not_handed_out_can_be_returned() {
    let queue = Queue::new(1 << 20);
    assert!(queue.set_scanning(Some((RowRange { epoch: 0, partition: 0, start: 0, end: 100 }, None))));
    queue.push(piece(0, 0, 10));
    assert_eq!(batch(&queue, 4).rows(), 4);
    let ranges = queue.abandon();
    let bounds: Vec<_> = ranges.iter().map(|r| (r.start, r.end)).collect();
    assert_eq!(bounds, [(4, 10), (10, 100)]);
}

#[test]
fn an_error_of_the_scan_reaches_the_trainer_once() {
    let queue = Queue::new(1 << 20);
    queue.fail(Error::application("broken file"));
    assert!(queue.pop(1, NOW).unwrap_err().to_string().contains("broken file"));
    assert!(matches!(queue.pop(1, NOW).unwrap(), Pop::End));
}

#[test]
fn the_queue_is_short_until_the_trainer_has_waited() {
    let queue = Queue::new(1 << 30);
    // Pieces of 800,000 bytes, until there is no room for another.
    let mut start = 0;
    let mut fill = || {
        let first = start;
        while queue.has_room() {
            queue.push(piece(0, start, 100_000));
            start += 100_000;
        }
        (start - first) / 100_000
    };
    assert_eq!(fill(), 6, "4 MiB");
    for _ in 0..6 {
        assert_eq!(batch(&queue, 100_000).rows(), 100_000);
    }
    assert_eq!(fill(), 6, "every batch was there when it was asked for");
    for _ in 0..6 {
        batch(&queue, 100_000);
    }
    assert!(matches!(queue.pop(100_000, NOW).unwrap(), Pop::Pending { .. }));
    assert_eq!(fill(), 11, "8 MiB");
}

#[test]
fn leases_grow_with_what_is_consumed_before_a_rate_is_known() {
    let queue = Queue::new(1 << 20);
    assert!(matches!(queue.pop(64, NOW).unwrap(), Pop::Pending { .. }));
    assert_eq!(queue.appetite(), Some(128), "two batches");
    queue.push(piece(0, 0, 640));
    for _ in 0..10 {
        batch(&queue, 64);
    }
    let rate_known = queue.lock().rate != 0.0;
    assert!(rate_known || queue.appetite() == Some(1280), "{:?}", queue.appetite());
}
