//! A gradient that comes in slices, while its worker still computes the rest of it.
//!
//! Slices are read into their places as they come and are told to nobody. A push that says that it came in slices takes
//! the place of its gradient, and is refused unless they cover it: so half a gradient is never staged (PS-1).

use std::ops::Range;

use super::Served;
use crate::error::{Error, Violation};
use crate::server::peer::session_of;
use crate::server::state::lock;
use crate::shard::Staged;
use crate::wire::{self, Header};

/// Ranges before they are joined: a worker that sends more of them has many small variables.
const MANY: usize = 1024;

/// What has come of a push.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    seq: u64,
    staged: Staged,
    ranges: Vec<Range<usize>>,
}

impl Arriving {
    fn add(&mut self, range: Range<usize>) {
        if self.ranges.len() == MANY {
            self.join();
        }
        self.ranges.push(range);
    }

    /// The same ranges in order and in as few as can be.
    fn join(&mut self) {
        self.ranges.sort_by_key(|range| range.start);
        self.ranges.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
    }

    /// How many of the first `len` elements are there.
    fn covered(&mut self) -> usize {
        self.join();
        self.ranges.iter().map(ExactSizeIterator::len).sum()
    }
}

impl Served<'_> {
    /// Not answered: its worker is busy with the next one.
    pub(super) fn slice(&mut self, header: Header) -> Result<(), Error> {
        self.check_seq(&header)?;
        wire::recv_meta(&mut *self.connection, &header, 0)?;
        let len = self.gradient_len()?;
        let start = usize::try_from(header.rows).ok();
        let end = start.and_then(|start| start.checked_add(usize::try_from(header.body).ok()?));
        let (Some(start), Some(end)) = (start, end.filter(|end| *end <= len)) else {
            let detail = format!("{} elements at {} of {len}", header.body, header.rows);
            return Err(wire::violated(&*self.connection, Violation::Malformed { what: "slice", detail }));
        };
        let mut arriving = self.arriving.take().unwrap_or_default();
        if arriving.seq != header.seq {
            arriving.seq = header.seq;
            arriving.ranges.clear();
            if arriving.staged.gradient.len() != len {
                let free = || lock(&self.inner.shard).as_mut().and_then(|shard| shard.take_free());
                arriving.staged = self.spare.take().or_else(free).unwrap_or_default();
            }
        }
        if let Some(place) = arriving.staged.gradient.own(len).get_mut(start..end) {
            wire::recv_floats(&mut *self.connection, [place])?;
        }
        arriving.add(start..end);
        self.arriving = Some(arriving);
        Ok(())
    }

    /// The stage with the gradient of push `seq`, all of which has come in slices.
    pub(super) fn arrived(&mut self, header: &Header, len: usize) -> Result<Staged, Error> {
        let mut arriving = self.arriving.take().filter(|arriving| arriving.seq == header.seq).unwrap_or_default();
        let covered = arriving.covered();
        if header.body != 0 || covered != len || arriving.staged.gradient.len() != len {
            let detail = format!("{covered} of {len} elements have come in slices, and {} came with it", header.body);
            return Err(wire::violated(&*self.connection, Violation::Malformed { what: "gradient", detail }));
        }
        let staged = std::mem::take(&mut arriving.staged);
        // Keeps the list's memory.
        arriving.ranges.clear();
        self.arriving = Some(arriving);
        Ok(staged)
    }

    /// That a frame is of a push that this worker may still make.
    pub(super) fn check_seq(&self, header: &Header) -> Result<(), Error> {
        let seq = header.seq;
        if header.worker != self.worker || session_of(seq) != self.session || seq <= self.last_seq {
            let (expected, found) = (self.last_seq + 1, seq);
            return Err(wire::violated(&*self.connection, Violation::Mismatch { what: "seq", expected, found }));
        }
        Ok(())
    }

    /// Asked once: while an update is made its lock would hold up what comes beside it.
    pub(super) fn gradient_len(&mut self) -> Result<usize, Error> {
        if let Some(len) = self.len {
            return Ok(len);
        }
        self.len = lock(&self.inner.shard).as_ref().map(|shard| shard.push_len());
        self.len.ok_or_else(|| {
            let violation = Violation::UnexpectedKind { expected: "Init", found: "part of a push".to_owned() };
            wire::violated(&*self.connection, violation)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // PS-1
    fn what_is_covered_is_counted_once_however_it_came() {
        let mut arriving = Arriving::default();
        for range in [50..60, 0..10, 5..20, 20..50, 55..58, 0..0] {
            arriving.add(range);
        }
        assert_eq!((arriving.covered(), arriving.ranges.len()), (60, 1));
        arriving.add(61..64);
        assert_eq!(arriving.covered(), 63);
        arriving.add(60..61);
        assert_eq!(arriving.covered(), 64);
        for start in 0..10 * MANY {
            arriving.add(start..start + 1);
        }
        assert_eq!((arriving.covered(), arriving.ranges.len()), (10 * MANY, 1));
    }
}
