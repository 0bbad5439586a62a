//! Where the values of a checkpoint go: slices that together are (a range of) the model's flat vectors.

use std::ops::Range;

use safetensors::tensor::Dtype;
use tfos_data::arrow::datatypes::{ArrowPrimitiveType, Float16Type};

use super::file::Piece;

type Half = <Float16Type as ArrowPrimitiveType>::Native;

/// One of the flat vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Params,
    /// By its place among the destination's slots.
    Slot(usize),
    Buffers,
}

/// Adjoining slices of a flat vector.
#[derive(Debug, Default)]
pub(crate) struct Segments<'a> {
    /// Element of the flat vector that each slice begins with.
    begins: Vec<usize>,
    slices: Vec<&'a mut [f32]>,
}

impl<'a> Segments<'a> {
    /// Slices from element `start` on.
    pub(crate) fn new(start: usize, slices: impl IntoIterator<Item = &'a mut [f32]>) -> Self {
        let slices: Vec<_> = slices.into_iter().collect();
        let mut end = start;
        let begins = slices.iter().map(|slice| {
            end += slice.len();
            end - slice.len()
        });
        let begins = begins.collect();
        Self { begins, slices }
    }

    fn write(&mut self, mut at: usize, mut bytes: &[u8], dtype: Dtype) {
        let width = dtype.bitsize() / 8;
        while !bytes.is_empty() {
            // The last one that begins here or before: an empty slice begins where the next one does.
            let index = self.begins.partition_point(|begin| *begin <= at).saturating_sub(1);
            let (Some(begin), Some(slice)) = (self.begins.get(index), self.slices.get_mut(index)) else { return };
            let Some(out) = slice.get_mut(at - begin..).filter(|out| !out.is_empty()) else { return };
            let count = out.len().min(bytes.len() / width.max(1));
            let (now, later) = bytes.split_at(count * width);
            convert(dtype, now, out);
            if count == 0 {
                return;
            }
            at += count;
            bytes = later;
        }
    }
}

/// Elements `at..at + len` of a target, by the number of whoever wants them.
struct Place {
    at: usize,
    len: usize,
    number: usize,
}

impl Segments<'_> {
    /// Cuts out these places, which are in order; `None` if two are not apart, or one is not here.
    fn places<'b>(&'b mut self, wanted: &[Place], cut: &mut [Vec<&'b mut [f32]>]) -> Option<()> {
        let mut wanted = wanted.iter();
        let mut next = wanted.next();
        let mut missing = next.map_or(0, |place| place.len);
        for (begin, slice) in self.begins.iter().zip(&mut self.slices) {
            let (mut at, mut rest) = (*begin, &mut **slice);
            while let Some(place) = next {
                let begin = place.at + place.len - missing;
                let (skipped, later) = rest.split_at_mut_checked(begin.checked_sub(at)?).unzip();
                let Some(later) = later else { break };
                let (now, later) = later.split_at_mut(missing.min(later.len()));
                at += skipped.map_or(0, |s| s.len()) + now.len();
                missing -= now.len();
                cut.get_mut(place.number)?.push(now);
                rest = later;
                if missing > 0 {
                    break;
                }
                next = wanted.next();
                missing = next.map_or(0, |place| place.len);
            }
        }
        next.is_none().then_some(())
    }
}

/// Values of 16, 32 or 64 bits become ones of 32, as PyTorch's own conversions make them.
fn convert(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
        let (words, _) = bytes.as_chunks::<N>();
        words.iter().zip(out).for_each(|(word, out)| *out = value(*word));
    }
    match dtype {
        Dtype::F64 => each(bytes, out, |w| f64::from_le_bytes(w) as f32),
        Dtype::F16 => each(bytes, out, |w| Half::from_le_bytes(w).to_f32()),
        Dtype::BF16 => each(bytes, out, |w| f32::from_bits(u32::from(u16::from_le_bytes(w)) << 16)),
        _ => each(bytes, out, f32::from_le_bytes),
    }
}

/// Whether [`Destination::write`] can make values of 32 bits of it.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16)
}

/// What is to be filled. Slots that are not here are not read.
#[derive(Debug, Default)]
pub(crate) struct Destination<'a> {
    pub(crate) params: Segments<'a>,
    /// By name.
    pub(crate) slots: Vec<(String, Segments<'a>)>,
    /// All of them, or none.
    pub(crate) buffers: Option<Segments<'a>>,
}

impl Destination<'_> {
    /// Where the values of these pieces go, of which each is one of 32 bits; `None` if two of them go to one place, or one
    /// to a place that is not here.
    pub(super) fn places(&mut self, pieces: &[&Piece]) -> Option<Vec<Vec<&mut [f32]>>> {
        let mut cut: Vec<Vec<&mut [f32]>> = pieces.iter().map(|_| vec![]).collect();
        let mut slots: Vec<Vec<Place>> = self.slots.iter().map(|_| vec![]).collect();
        let (mut params, mut buffers) = (vec![], vec![]);
        for (number, piece) in pieces.iter().enumerate() {
            let len = (piece.bytes.end - piece.bytes.start) as usize / size_of::<f32>();
            let wanted = match piece.target {
                Target::Params => &mut params,
                Target::Slot(slot) => slots.get_mut(slot)?,
                Target::Buffers if self.buffers.is_none() => return None,
                Target::Buffers => &mut buffers,
            };
            wanted.push(Place { at: piece.at, len, number });
        }
        let slots = self.slots.iter_mut().map(|(_, segments)| segments).zip(slots);
        let rest = std::iter::once((&mut self.params, params)).chain(self.buffers.as_mut().map(|all| (all, buffers)));
        for (segments, mut wanted) in slots.chain(rest) {
            wanted.sort_by_key(|place| place.at);
            segments.places(&wanted, &mut cut)?;
        }
        Some(cut)
    }

    /// Copies a piece out of `bytes`, which are `range` of its file.
    pub(super) fn write(&mut self, piece: &Piece, range: &Range<u64>, bytes: &[u8]) {
        let start = (piece.bytes.start - range.start) as usize;
        let end = (piece.bytes.end - range.start) as usize;
        let segments = match piece.target {
            Target::Params => Some(&mut self.params),
            Target::Slot(slot) => self.slots.get_mut(slot).map(|(_, segments)| segments),
            Target::Buffers => self.buffers.as_mut(),
        };
        if let (Some(segments), Some(bytes)) = (segments, bytes.get(start..end)) {
            segments.write(piece.at, bytes, piece.dtype);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_into_slices_across_their_edges() {
        let values: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (mut a, mut b, mut c) = ([-1.0; 3], [-1.0; 5], [-1.0; 9]);
        let mut segments = Segments::new(10, [&mut a[..], &mut [], &mut b[..], &mut c[..]]);
        segments.write(12, &bytes[..12 * 4], Dtype::F32);
        assert_eq!((a, b), ([-1.0, -1.0, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0]));
        assert_eq!(c, [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, -1.0, -1.0, -1.0]);
        // Beyond the end there is nothing to write to.
        Segments::new(0, [&mut a[..]]).write(2, &bytes, Dtype::F32);
        assert_eq!(a, [-1.0, -1.0, 0.0]);
    }

    #[test]
    fn places_are_cut_out_across_edges_in_any_order_and_only_apart() {
        let piece = |target, at, len: u64| Piece { file: 0, bytes: 8..8 + 4 * len, dtype: Dtype::F32, target, at };
        let (mut a, mut b, mut slot) = ([-1.0; 3], [-1.0; 5], [-1.0; 4]);
        let mut into = Destination {
            params: Segments::new(10, [&mut a[..], &mut [], &mut b[..]]),
            slots: vec![("s".into(), Segments::new(10, [&mut slot[..]]))],
            buffers: None,
        };
        let pieces = [piece(Target::Params, 15, 3), piece(Target::Slot(0), 10, 4), piece(Target::Params, 11, 4)];
        let all: Vec<&Piece> = pieces.iter().collect();
        let mut value = 0.0;
        for place in into.places(&all).unwrap().into_iter().flatten().flatten() {
            value += 1.0;
            *place = value;
        }
        for wrong in [
            [piece(Target::Params, 15, 3), piece(Target::Params, 17, 1)],
            [piece(Target::Params, 16, 3), piece(Target::Params, 10, 1)],
            [piece(Target::Params, 9, 3), piece(Target::Params, 15, 1)],
            [piece(Target::Buffers, 0, 1), piece(Target::Params, 15, 1)],
            [piece(Target::Slot(1), 10, 1), piece(Target::Params, 15, 1)],
        ] {
            assert!(into.places(&wrong.iter().collect::<Vec<_>>()).is_none(), "{wrong:?}");
        }
        assert_eq!((a, b, slot), ([-1.0, 8.0, 9.0], [10.0, 11.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]));
    }

    #[test]
    fn other_widths_become_32_bits() {
        let of = |dtype, bytes: &[u8]| {
            let mut out = [f32::NAN; 2];
            Segments::new(0, [&mut out[..]]).write(0, bytes, dtype);
            out
        };
        let doubles: Vec<u8> = [1.5f64, -0.1].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(of(Dtype::F64, &doubles), [1.5, -0.1f32]);
        // 1.5 and -2 in both: 0x3e00, 0xc000 and 0x3fc0, 0xc000.
        assert_eq!(of(Dtype::F16, &[0x00, 0x3e, 0x00, 0xc0]), [1.5, -2.0]);
        assert_eq!(of(Dtype::BF16, &[0xc0, 0x3f, 0x00, 0xc0]), [1.5, -2.0]);
    }
}
