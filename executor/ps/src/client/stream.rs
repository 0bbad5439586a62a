//! A push that begins before its gradient is whole: slices go out as they come, and the push completes them.
//!
//! Small slices are fused: frames are gathered until they have [`BUCKET`] bytes, and go out together. The push itself then
//! sends what is still missing, so who calls needs no count of what has come. To a ps with a window nothing is
//! sent: slices are copied to their places, or lie in blocks already.

use std::ops::Range;

use super::PsClient;
use super::window::{Written, lock};
use crate::compress::Compress;
use crate::error::Error;
use crate::flat;
use crate::wire::{self, Header, Kind};

/// Bytes that are sent at once: a system call and a wake-up cost a small part of copying so much.
pub(super) const BUCKET: usize = 1 << 20;

impl PsClient {
    /// Sends slices of the next push: each is where it begins in the flat vector, and its values. Returns at the end of
    /// `slices`; then the push has to follow, of the same gradient. A slice that comes twice counts as it came last.
    pub fn stream<S: AsRef<[f32]>>(&mut self, slices: impl IntoIterator<Item = (usize, S)>) -> Result<(), Error> {
        if self.compress != Compress::None {
            let expected = "none for a gradient in slices".to_owned();
            return Err(Error::Options { what: "compression", expected, found: self.compress.to_string() });
        }
        let mut bucket: Vec<(usize, S)> = Vec::new();
        let mut bytes = 0;
        let result = slices.into_iter().try_for_each(|(start, slice)| {
            let len = slice.as_ref().len();
            let end = start + len;
            if len == 0 || end > self.total {
                return Ok(());
            }
            match self.write_slice(start, slice.as_ref())? {
                // The push finds it there again, or does not, and copies it.
                Written::InPlace => return Ok(()),
                written => {
                    self.streamed.push(start..end);
                    if matches!(written, Written::Wholly) {
                        return Ok(());
                    }
                }
            }
            bytes += size_of_val(slice.as_ref());
            bucket.push((start, slice));
            if bytes < BUCKET {
                return Ok(());
            }
            bytes = 0;
            self.send_bucket(&bucket)?;
            bucket.clear();
            Ok(())
        });
        let result = result.and_then(|()| self.send_bucket(&bucket));
        if result.is_err() {
            // Some shards may have heard what others have not.
            self.canceller().cancel();
        }
        result
    }

    fn send_bucket<S: AsRef<[f32]>>(&mut self, bucket: &[(usize, S)]) -> Result<(), Error> {
        let (worker, seq) = (self.worker, self.seq + 1);
        for (shard, (connection, range)) in self.shards.iter_mut().zip(&self.ranges).enumerate() {
            if self.windows.get(shard).is_some_and(|window| lock(window).is_some()) {
                continue;
            }
            let cut = |(start, slice): &(usize, S)| {
                let len = slice.as_ref().len();
                let here = (*start).max(range.start)..(start + len).min(range.end);
                (!here.is_empty()).then(|| (here.start - start..here.end - start, here.start - range.start))
            };
            let frames = bucket.iter().filter_map(|one| {
                let (part, place) = cut(one)?;
                let mut header = Header::new(Kind::Slice);
                (header.worker, header.seq, header.rows) = (worker, seq, place as u64);
                header.body = part.len() as u64;
                Some((header, one.1.as_ref().get(part)?))
            });
            wire::send_frames(&mut **connection, frames)?;
        }
        Ok(())
    }

    /// Sends what no slice has brought of a push that began in slices; whether there is one.
    pub(super) fn complete(&mut self, gradients: &[&[f32]]) -> Result<bool, Error> {
        if self.streamed.is_empty() {
            return Ok(false);
        }
        let missing = missing(&mut self.streamed, self.total);
        for range in missing {
            let mut start = range.start;
            let pieces = flat::cut(gradients, range).map(|piece| {
                let at = start;
                start += piece.len();
                (at, piece)
            });
            self.stream(pieces)?;
        }
        self.streamed.clear();
        Ok(true)
    }
}

/// What of `0..total` is in none of the ranges, which are put in order.
fn missing(ranges: &mut [Range<usize>], total: usize) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let (mut missing, mut at) = (Vec::new(), 0);
    for range in ranges.iter().chain([&(total..total)]) {
        if range.start > at {
            missing.push(at..range.start);
        }
        at = at.max(range.end);
    }
    missing
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_missing_is_what_no_range_has() {
        let missing = |ranges: &[(usize, usize)]| -> Vec<(usize, usize)> {
            let mut ranges: Vec<_> = ranges.iter().map(|&(start, end)| start..end).collect();
            super::missing(&mut ranges, 10).into_iter().map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(missing(&[]), [(0, 10)]);
        assert_eq!(missing(&[(3, 5), (0, 1), (4, 6)]), [(1, 3), (6, 10)]);
        assert_eq!(missing(&[(0, 10), (2, 3)]), []);
    }
}
