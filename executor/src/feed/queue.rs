//! The queue between the scan and the trainer, bounded by bytes.
//!
//! - `FED-5` queue, scan and the batch in the trainer's hands together hold no more than the bound, or than the bound and
//!   one piece where a piece is larger than all before it, or what one batch needs if that is more.
//! - `FED-6` a batch never mixes epochs, and is short only at the end of an epoch or when no more rows are
//!   to be had now.

mod in_order;

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use self::in_order::Front;
use tfos_core::rows::{MicroBatch, RowRange};
use tokio::sync::Notify;

use super::batch::{Batch, Piece};
use super::depth::Depth;
use super::usage::{Peak, Usage};
use crate::Error;

/// How much consumption the scan runs ahead of.
const AHEAD: Duration = Duration::from_millis(50);

/// Leases stay within these bounds, rows.
const LEASE: std::ops::RangeInclusive<u64> = 64..=65_536;

/// Bytes of one batch of a scan, for a feed with this bound: a share that many of them fit into, because a batch stays
/// whole in memory until the last row of it is used.
pub(crate) fn batch_bytes(bound: usize) -> usize {
    (bound / 16).clamp(64 << 10, 32 << 20)
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Piece>,
    usage: Usage,
    peak: Peak,
    depth: Depth,
    rows: u64,
    /// Bytes of the largest piece so far: the next one is to fit.
    largest: usize,
    /// Rows of the last batch asked for; 0 until the trainer has asked.
    batch: u64,
    popped: u64,
    since: Option<Instant>,
    /// Rows per second, smoothed.
    rate: f64,
    /// The driver has no rows now.
    starved: bool,
    closed: bool,
    error: Option<Error>,
    /// Deterministic training: whole micro-batches, in their order.
    in_order: bool,
    /// Leased and not scanned yet.
    scanning: Option<(RowRange, Option<MicroBatch>)>,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    readable: Condvar,
    /// Wakes the scan.
    pub(crate) wanted: Notify,
    bound: usize,
}

/// What a look into the queue gave.
#[derive(Debug)]
pub(crate) enum Pop {
    Batch(Batch),
    /// Nothing yet; `starved` when the driver has nothing either.
    Pending {
        starved: bool,
    },
    End,
}

impl Queue {
    pub(crate) fn new(bound: usize) -> Self {
        Self { state: Mutex::default(), readable: Condvar::new(), wanted: Notify::new(), bound }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up to `n` rows, waiting at most `patience`.
    pub(crate) fn pop(&self, n: usize, patience: Duration) -> Result<Pop, Error> {
        let mut state = self.lock();
        state.batch = n as u64;
        self.wanted.notify_one();
        let mut waits = false;
        loop {
            if let Some(error) = state.error.take() {
                state.closed = true;
                return Err(error);
            }
            if state.closed {
                return Ok(Pop::End);
            }
            if let Some(batch) = state.take(n) {
                if !waits {
                    state.depth.did_not_wait();
                }
                self.wanted.notify_one();
                return Ok(Pop::Batch(batch));
            }
            if !waits {
                state.depth.waited(self.bound);
                waits = true;
            }
            let starved = state.starved && state.pieces.is_empty();
            let (next, waited) = self.readable.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
            state = next;
            if waited.timed_out() || starved {
                return Ok(Pop::Pending { starved: state.starved && state.pieces.is_empty() && !state.closed });
            }
        }
    }

    /// Rows to lease next, or `None` while enough are queued.
    pub(crate) fn appetite(&self) -> Option<u64> {
        let state = self.lock();
        if state.in_order {
            return state.micro_batch_wanted();
        }
        if state.closed
            || state.batch == 0
            || (state.usage.together() + state.largest > self.usable() && state.rows >= state.batch)
        {
            return None;
        }
        // As long as the rate is not known, twice of what was consumed: a few leases, and it is as much as for a known one.
        let of_rate = if state.rate == 0.0 { 2 * state.popped } else { (state.rate * AHEAD.as_secs_f64()) as u64 };
        let ahead = of_rate.max(2 * state.batch);
        (state.rows < ahead).then(|| ahead.clamp(*LEASE.start(), *LEASE.end()))
    }

    /// True while there is room for another piece.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.lock();
        // A batch has to fit, however small the bound is, and the next one is to be there while it is in hand.
        let fits = state.usage.together() + state.largest <= self.usable();
        let is_short = state.in_order || !state.depth.is_reached(state.usage.queue) || state.rows < 2 * state.batch;
        fits && is_short || state.rows < state.batch || state.is_scanning_first()
    }

    /// The rest is for what a reader needs for a moment: a page before and after its decompression, a column.
    fn usable(&self) -> usize {
        self.bound - self.bound / 16
    }

    /// The bound, and what is held of it.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.bound, self.lock().usage.together())
    }

    /// What the scan holds besides.
    pub(crate) fn set_scan_bytes(&self, bytes: usize) {
        let mut state = self.lock();
        state.usage.scan = bytes;
        state.note();
    }

    /// The bound, and the most that there was.
    pub(crate) fn peak(&self) -> (usize, Peak) {
        (self.bound, self.lock().peak)
    }

    pub(crate) fn push(&self, piece: Piece) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if let Some((scanning, _)) = &mut state.scanning {
            scanning.start = piece.range().end;
        }
        let bytes = piece.bytes();
        state.usage.queue += bytes;
        state.largest = state.largest.max(bytes);
        state.note();
        state.rows += piece.rows.num_rows() as u64;
        state.starved = false;
        state.insert(piece);
        self.readable.notify_all();
    }

    /// Rows that are leased and about to be scanned; false when nobody wants them any more.
    pub(crate) fn set_scanning(&self, range: Option<(RowRange, Option<MicroBatch>)>) -> bool {
        let mut state = self.lock();
        if state.closed {
            // What was being scanned stays, for `abandon`.
            return false;
        }
        state.scanning = range;
        if range.is_some() {
            state.starved = false;
        }
        true
    }

    pub(crate) fn set_starved(&self) {
        self.lock().starved = true;
        self.readable.notify_all();
    }

    pub(crate) fn fail(&self, error: Error) {
        let mut state = self.lock();
        if !state.closed && state.error.is_none() {
            state.error = Some(error);
        }
        self.readable.notify_all();
    }

    /// Ends the feed: what is queued is not handed out any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.readable.notify_all();
        self.wanted.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Leased rows that nobody will see here any more: queued ones and those not scanned yet.
    pub(crate) fn abandon(&self) -> Vec<RowRange> {
        let mut state = self.lock();
        state.closed = true;
        state.usage = Usage::default();
        state.rows = 0;
        let mut ranges: Vec<RowRange> = state.pieces.drain(..).map(|p| p.range()).collect();
        ranges.extend(state.scanning.take().map(|(range, _)| range).filter(|r| r.start < r.end));
        ranges
    }
}

impl State {
    fn note(&mut self) {
        self.peak.note(&self.usage);
    }

    fn take(&mut self, n: usize) -> Option<Batch> {
        let epoch = self.pieces.front()?.epoch;
        let n = n as u64;
        let mut rows = 0;
        let mut complete = false;
        for piece in &self.pieces {
            if piece.epoch != epoch {
                complete = true;
                break;
            }
            rows += piece.rows.num_rows() as u64;
            if rows >= n {
                complete = true;
                break;
            }
        }
        // Short batches: at the end of an epoch, or when waiting could be for ever, because the rows that
        // the driver holds back may be waiting for these very rows to be committed.
        if !complete && !self.starved {
            return None;
        }
        let before = self.usage.queue;
        let mut taken = vec![];
        let mut missing = n.min(rows);
        while missing > 0 {
            let piece = self.pieces.pop_front()?;
            let have = piece.rows.num_rows() as u64;
            if have <= missing {
                self.usage.queue = self.usage.queue.saturating_sub(piece.bytes());
                missing -= have;
                taken.push(piece);
            } else {
                let whole = piece.bytes();
                let (head, tail) = piece.split(missing as usize);
                self.usage.queue = (self.usage.queue + tail.bytes()).saturating_sub(whole);
                self.pieces.push_front(tail);
                taken.push(head);
                missing = 0;
            }
        }
        let got = n.min(rows);
        self.rows -= got;
        // The one before it is gone: who keeps batches keeps them beside the bound.
        self.usage.batch = before.saturating_sub(self.usage.queue);
        self.note();
        self.measure(got);
        Some(Batch::new(taken))
    }

    fn measure(&mut self, rows: u64) {
        self.popped += rows;
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let elapsed = now.duration_since(since);
        if elapsed >= AHEAD {
            let rate = self.popped as f64 / elapsed.as_secs_f64();
            self.rate = if self.rate == 0.0 { rate } else { 0.5 * self.rate + 0.5 * rate };
            self.popped = 0;
            self.since = Some(now);
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
