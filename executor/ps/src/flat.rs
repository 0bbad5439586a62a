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

/// The same for all of several adjoining ranges at once, to be written: one list of pieces per range.
///
/// The lists are small (one fat pointer per variable), and the only allocation of a push.
pub(crate) fn cut_mut<'a>(
    segments: &'a mut [&mut [f32]],
    ranges: impl Iterator<Item = Range<usize>>,
) -> Vec<Vec<&'a mut [f32]>> {
    let mut segments = segments.iter_mut();
    let mut rest: &'a mut [f32] = &mut [];
    let mut cuts = Vec::with_capacity(ranges.size_hint().0);
    for range in ranges {
        let mut pieces = Vec::new();
        let mut missing = range.len();
        while missing > 0 {
            if rest.is_empty() {
                let Some(next) = segments.next() else { break };
                rest = next;
                continue;
            }
            let taken = missing.min(rest.len());
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(taken);
            pieces.push(piece);
            rest = after;
            missing -= taken;
        }
        cuts.push(pieces);
    }
    cuts
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
            for (pieces, range) in cut_mut(&mut [a, b], ranges()).into_iter().zip(ranges()) {
                let mut source = &flat[range];
                for piece in pieces {
                    piece.copy_from_slice(&source[..piece.len()]);
                    source = &source[piece.len()..];
                }
                assert!(source.is_empty());
            }
            assert_eq!(copy, flat);
        }
    }
}
