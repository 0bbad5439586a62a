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
