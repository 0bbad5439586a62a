//! Keeps the queue filled: leases rows, scans them, stops when the driver or the trainer says so.

use std::sync::Arc;

use tfos_core::proto::{LeaseRequest, PartitionEnd, Returned, from_executor::Message};
use tfos_core::rows::{MicroBatch, RowRange, encode_ranges};
use tokio::sync::mpsc::UnboundedReceiver;

use super::batch::Piece;
use super::queue::Queue;
use super::scan::{Scan, Step};
use super::usage::is_tight;
use crate::Error;
use crate::control::Outgoing;

/// What the driver says to a feed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    Rows(RowRange, Option<MicroBatch>),
    NoRowsNow,
}

/// The line to the driver on which leases are asked for and come.
pub(crate) struct Leases {
    pub(crate) phase: u32,
    pub(crate) worker: u32,
    pub(crate) outgoing: Outgoing,
    pub(crate) orders: UnboundedReceiver<Order>,
}

/// Runs until the queue is closed; the caller aborts it then.
pub(crate) async fn prefetch(leases: Leases, queue: Arc<Queue>, mut scan: Scan) {
    let Leases { phase, worker, outgoing, mut orders } = leases;
    let mut tight = false;
    while !queue.is_closed() {
        let Some(want_rows) = queue.appetite() else {
            queue.wanted.notified().await;
            continue;
        };
        outgoing.send(Message::LeaseRequest(LeaseRequest { phase, want_rows }));
        let (range, micro_batch) = loop {
            match orders.recv().await {
                // The next order comes by itself, when rows return or the feed ends.
                Some(Order::NoRowsNow) => queue.set_starved(),
                Some(Order::Rows(range, micro_batch)) => break (range, micro_batch),
                None => return,
            }
        };
        if !queue.set_scanning(Some((range, micro_batch))) {
            // Asked for before the node's function returned: somebody else is to have them.
            let mut ranges = vec![];
            encode_ranges(&[range], &mut ranges);
            outgoing.send(Message::Returned(Returned { phase, worker, ranges: ranges.into() }));
            return;
        }
        if let Err(error) = fill(phase, &queue, &mut scan, range, micro_batch, &outgoing, &mut tight).await {
            queue.fail(error);
            return;
        }
        queue.set_scanning(None);
    }
}

async fn fill(
    phase: u32,
    queue: &Queue,
    scan: &mut Scan,
    mut range: RowRange,
    micro_batch: Option<MicroBatch>,
    outgoing: &Outgoing,
    tight: &mut bool,
) -> Result<(), Error> {
    let of = micro_batch.map(|micro_batch| (micro_batch, range.rows()));
    while range.start < range.end && !queue.is_closed() {
        if !queue.has_room() {
            queue.wanted.notified().await;
            continue;
        }
        let (bound, held) = queue.held();
        *tight = is_tight(bound, held, *tight);
        crate::memory::map_buffers(*tight);
        let step = scan.next(&range).await?;
        queue.set_scan_bytes(scan.bytes());
        match step {
            Step::Rows { start, rows } => {
                range.start = start + rows.num_rows() as u64;
                queue.push(Piece { rows, epoch: range.epoch, partition: range.partition, start, of });
            }
            // Where steps end was decided by the rows that the plan had promised.
            Step::End { rows } if micro_batch.is_some() => {
                return Err(Error::Shorter { partition: range.partition, rows, promised: range.end });
            }
            Step::End { rows } => {
                let partition = range.partition;
                outgoing.send(Message::PartitionEnd(PartitionEnd { phase, partition, rows }));
                return Ok(());
            }
        }
    }
    Ok(())
}
