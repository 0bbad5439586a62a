//! The loops over all elements, written so that the compiler makes SIMD of those that can be.

/// Bits of a bf16.
pub(super) const HALF: u32 = 16;
/// Of the 31 bits of a magnitude these many are looked at first, and as many more where that does not decide.
const BITS: u32 = 11;
const BUCKETS: usize = 1 << BITS;

pub(super) fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

pub(super) fn subtract(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to -= from);
}

/// The upper 16 bits of what is nearest to `value`, ties to even; the lower ones are 0. A NaN stays one.
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> HALF) & 1)) & 0xffff_0000;
    if value.is_nan() { (bits | 0x0040_0000) & 0xffff_0000 } else { nearest }
}

/// The value of a bf16 in the upper half of `bits`.
pub(super) fn wide(bits: u32) -> f32 {
    f32::from_bits(bits & 0xffff_0000)
}

/// What is still owed after `sent` of `value`; nothing, where that is not a number: it would never be paid.
fn owed(value: f32, sent: f32) -> f32 {
    let left = value - sent;
    if left.is_finite() { left } else { 0.0 }
}

/// Rounds all values into pairs, the first one in the lower half, and leaves what the rounding has cut off.
pub(super) fn encode_bf16(values: &mut [f32], codes: &mut [u32]) {
    let (pairs, odd) = values.as_chunks_mut::<2>();
    for (pair, code) in pairs.iter_mut().zip(&mut *codes) {
        let [first, second] = pair.map(rounded);
        *code = first >> HALF | second;
        *pair = [owed(pair[0], wide(first)), owed(pair[1], wide(second))];
    }
    if let ([last], Some(code)) = (odd, codes.last_mut()) {
        let bits = rounded(*last);
        *code = bits >> HALF;
        *last = owed(*last, wide(bits));
    }
}

/// The reverse.
pub(super) fn decode_bf16(codes: &[u32], values: &mut [f32]) {
    let (pairs, odd) = values.as_chunks_mut::<2>();
    for (pair, &code) in pairs.iter_mut().zip(codes) {
        *pair = [wide(code << HALF), wide(code)];
    }
    if let ([last], Some(&code)) = (odd, codes.last()) {
        *last = wide(code << HALF);
    }
}

/// Larger for a larger magnitude; infinity and what is no number are the largest.
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// How many magnitudes begin with which bits.
#[derive(Debug)]
pub(super) struct Histogram(Box<[u32; BUCKETS]>);

impl Histogram {
    pub(super) fn new() -> Histogram {
        Histogram(Box::new([0; BUCKETS]))
    }

    pub(super) fn clear(&mut self) {
        self.0.fill(0);
    }

    pub(super) fn count(&mut self, values: &[f32]) {
        for &value in values {
            self.add(magnitude(value) >> (31 - BITS));
        }
    }

    fn add(&mut self, bucket: u32) {
        if let Some(count) = self.0.get_mut(bucket as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// The bucket that the `wanted` largest end in, and how many of those lie in it.
    fn cut(&self, mut wanted: usize) -> (u32, usize) {
        for (bucket, &count) in self.0.iter().enumerate().rev() {
            if count as usize >= wanted {
                return (bucket as u32, wanted);
            }
            wanted -= count as usize;
        }
        (0, wanted)
    }
}

/// Moves the `indices.len()` largest values out of `values`, where 0 is left; `histogram` has counted them all.
///
/// By their first 22 bits; of several that are equal in these, the ones that come first.
pub(super) fn take_largest(values: &mut [f32], histogram: &mut Histogram, indices: &mut [u32], taken: &mut [u32]) {
    let (high, wanted) = histogram.cut(indices.len());
    histogram.clear();
    for &value in &*values {
        let magnitude = magnitude(value);
        if magnitude >> (31 - BITS) == high {
            histogram.add(magnitude >> (31 - 2 * BITS) & (BUCKETS as u32 - 1));
        }
    }
    let (low, mut equal) = histogram.cut(wanted);
    let threshold = high << BITS | low;
    let mut places = indices.iter_mut().zip(taken);
    for (index, value) in values.iter_mut().enumerate() {
        let found = magnitude(*value) >> (31 - 2 * BITS);
        if found < threshold || (found == threshold && equal == 0) {
            continue;
        }
        equal -= usize::from(found == threshold);
        let Some((place, taken)) = places.next() else { return };
        *place = index as u32;
        *taken = value.to_bits();
        *value = 0.0;
    }
}
