//! Cutting a list of slices that together are one flat vector, without copying.

use std::ops::Range;

use crate::error::Error;

/// Fails unless the segments together have `expected` elements.
pub(crate) fn check<S: AsRef<[f32]>>(what: &'static str, segments: &[S], expected: usize) -> Result<(), Error> {
    let found = segments.iter().map(|segment| segment.as_ref().len()).sum();
    if found == expected { Ok(()) } else { Err(Error::Length { what, expected, found }) }
}

/// The pieces of `segments` that lie within `range` of the flat vector, in order.
pub(crate) fn cut<'a>(segments: &'a [&'a [f32]], range: Range<usize>) -> impl Iterator<Item = &'a [f32]> {
    let mut offset = 0;
    segments.iter().filter_map(move |segment| {
        let start = range.start.clamp(offset, offset + segment.len()) - offset;
        let end = range.end.clamp(offset, offset + segment.len()) - offset;
        offset += segment.len();
        segment.get(start..end).filter(|piece| !piece.is_empty())
    })
}

/// The segments, and where each begins in the flat vector.
pub(crate) fn placed<'a>(segments: &'a mut [&mut [f32]]) -> impl Iterator<Item = (usize, &'a mut [f32])> {
    let mut offset = 0;
    segments.iter_mut().map(move |segment| {
        offset += segment.len();
        (offset - segment.len(), &mut **segment)
    })
}

/// What of some segments, in order, lies in each of several adjoining ranges, to be written: one list of pieces per range,
/// and where in it each begins.
pub(crate) fn cut_mut<'a>(
    segments: impl Iterator<Item = (usize, &'a mut [f32])>,
    ranges: impl ExactSizeIterator<Item = Range<usize>>,
) -> Vec<Vec<(usize, &'a mut [f32])>> {
    let mut cuts = Vec::new();
    cut_mut_into(segments, ranges, &mut cuts);
    cuts
}

/// The same, into lists that may have been used before.
pub(crate) fn cut_mut_into<'a>(
    mut segments: impl Iterator<Item = (usize, &'a mut [f32])>,
    ranges: impl ExactSizeIterator<Item = Range<usize>>,
    cuts: &mut Vec<Vec<(usize, &'a mut [f32])>>,
) {
    let (mut start, mut rest): (usize, &'a mut [f32]) = (0, &mut []);
    cuts.resize_with(ranges.len(), Vec::new);
    for (range, pieces) in ranges.zip(cuts) {
        pieces.clear();
        loop {
            if rest.is_empty() {
                let Some(next) = segments.next() else { break };
                (start, rest) = next;
                continue;
            }
            if start >= range.end {
                break;
            }
            let taken = (range.end - start).min(rest.len());
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(taken);
            pieces.push((start - range.start, piece));
            (start, rest) = (start + taken, after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::shard_range;

    #[test]
    fn pieces_of_all_shards_are_the_flat_vector() {
        let flat: Vec<f32> = (0..101).map(|i| i as f32).collect();
        for shards in 1..5 {
            let segments = [&flat[..3], &flat[3..3], &flat[3..50], &flat[50..101]];
            let ranges = || (0..shards).map(move |k| shard_range(101, shards, k));
            let read: Vec<f32> = ranges().flat_map(|range| cut(&segments, range).flatten().copied()).collect();
            assert_eq!(read, flat);

            let mut copy = vec![0.0; 101];
            let (a, b) = copy.split_at_mut(40);
            for (pieces, range) in cut_mut(placed(&mut [a, b]), ranges()).into_iter().zip(ranges()) {
                let mut end = 0;
                for (at, piece) in pieces {
                    assert_eq!(at, end);
                    end += piece.len();
                    piece.copy_from_slice(&flat[range.clone()][at..end]);
                }
                assert_eq!(end, range.len());
            }
            assert_eq!(copy, flat);
            // With gaps.
            let (a, b) = copy.split_at_mut(40);
            let segments = [(5, &mut a[5..20]), (48, &mut b[8..60])];
            for (pieces, range) in cut_mut(segments.into_iter(), ranges()).into_iter().zip(ranges()) {
                for (at, piece) in pieces {
                    let place = range.start + at;
                    assert!(place + piece.len() <= range.end && *piece == flat[place..place + piece.len()]);
                    piece.fill(-1.0);
                }
            }
            let changed: Vec<usize> = (0..101).filter(|i| copy[*i] == -1.0).collect();
            assert_eq!(changed, (5..20).chain(48..100).collect::<Vec<_>>());
        }
    }
}
