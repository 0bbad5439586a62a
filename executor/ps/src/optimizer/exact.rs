//! Sums of squares without rounding: the same whatever the order of the terms and however they are divided among shards.
//!
//! A square of an `f32` is an integer of 48 bits times a power of two, and there are only 254 such powers. So squares are
//! counted as integers, one counter for each exponent, and the counters are added up as one long integer. What is rounded
//! is the result alone.

/// Bits of a limb, and limbs: squares have bits from 2⁻²⁹⁸ to 2²⁵⁶, and there may be 2⁶⁴ of them.
const LIMB: usize = 32;
const LIMBS: usize = 20;

/// The integer counts units of 2⁻³⁰⁰.
const UNIT: i32 = -300;

/// Squares of 48 bits that a counter has room for.
const ROOM: usize = 1 << 16;

/// Numbers that a sum travels as; they may be added to those of other shards before [`ExactSum::value_of`].
pub(crate) const PARTS: usize = LIMBS + 1;

/// A sum of squares.
#[derive(Debug, Clone)]
pub(crate) struct ExactSum {
    /// By the exponent's bits.
    counters: [u64; 256],
    limbs: [u64; LIMBS],
    /// Infinite or NaN where an element was.
    special: f64,
}

impl ExactSum {
    pub(crate) fn new() -> Self {
        Self { counters: [0; 256], limbs: [0; LIMBS], special: 0.0 }
    }

    /// Adds the square of each value.
    pub(crate) fn add(&mut self, values: impl Iterator<Item = f32>) {
        let mut left = ROOM;
        for x in values {
            let bits = x.to_bits();
            let exponent = (bits >> 23 & 0xff) as usize;
            // Subnormal numbers have no leading one.
            let mantissa = u64::from(bits & 0x7f_ffff | u32::from(exponent > 0) << 23);
            if exponent == 255 {
                self.special += f64::from(x) * f64::from(x);
                continue;
            }
            self.counters[exponent] += mantissa * mantissa;
            left -= 1;
            if left == 0 {
                self.carry();
                left = ROOM;
            }
        }
        self.carry();
    }

    /// Empties the counters into the limbs.
    fn carry(&mut self) {
        for (exponent, counter) in self.counters.iter_mut().enumerate().filter(|(_, counter)| **counter > 0) {
            let shift = 2 * exponent.max(1);
            let mut rest = u128::from(std::mem::take(counter)) << (shift % LIMB);
            for limb in self.limbs.iter_mut().skip(shift / LIMB) {
                if rest == 0 {
                    break;
                }
                rest += u128::from(*limb);
                *limb = rest as u64 & ((1 << LIMB) - 1);
                rest >>= LIMB;
            }
        }
    }

    /// Integers below 2³², exact in `f64`, and the special value.
    pub(crate) fn parts(&self) -> impl Iterator<Item = f64> {
        self.limbs.iter().map(|&limb| limb as f64).chain([self.special])
    }

    /// The sum that these parts, added up over all shards, are.
    pub(crate) fn value_of(parts: &[f64]) -> f64 {
        let (limbs, rest) = parts.split_at(LIMBS.min(parts.len()));
        let special: f64 = rest.iter().sum();
        if special != 0.0 {
            return special;
        }
        // One representation of each number: two ways of dividing it must not be rounded differently.
        let mut carry = 0;
        let mut normal = [0.0; LIMBS];
        for (normal, limb) in normal.iter_mut().zip(limbs) {
            let limb = *limb as u64 + carry;
            *normal = (limb & ((1 << LIMB) - 1)) as f64;
            carry = limb >> LIMB;
        }
        let power = |limb: usize| 2f64.powi(UNIT + (LIMB * limb) as i32);
        let top = carry as f64 * power(LIMBS);
        normal.iter().enumerate().rev().fold(top, |sum, (limb, value)| sum + value * power(limb))
    }

    /// The sum, where there is no other shard.
    pub(crate) fn value(&self) -> f64 {
        Self::value_of(&self.parts().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Random;

    fn sum(values: &[f32]) -> ExactSum {
        let mut sum = ExactSum::new();
        sum.add(values.iter().copied());
        sum
    }

    #[test]
    fn squares_of_all_sizes_are_exact() {
        for x in [0.0f32, -0.0, 1.0, -1.5, 3.0e38, f32::MAX, f32::MIN_POSITIVE, 1e-45, 1e-42, 0.1] {
            // A square of an f32 is an f64, exactly.
            assert_eq!(sum(&[x]).value(), f64::from(x) * f64::from(x), "{x:e}");
        }
        assert_eq!(sum(&[]).value(), 0.0);
        assert_eq!(sum(&[1e20, 1e-20, -1e20]).value(), 2.0 * f64::from(1e20f32).powi(2));
        assert!(sum(&[1.0, f32::NAN]).value().is_nan());
        assert_eq!(sum(&[1.0, f32::NEG_INFINITY]).value(), f64::INFINITY);
    }

    #[test] // DET-3
    fn the_sum_does_not_depend_on_order_or_division() {
        let mut random = Random::new(5);
        for round in 0..50 {
            let scale = |random: &mut Random| 2f32.powi(random.below(240) as i32 - 120);
            let mut values: Vec<f32> = (0..1000).map(|_| random.uniform() * scale(&mut random)).collect();
            let whole = sum(&values).value();
            let plain: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((whole - plain).abs() <= 1e-12 * plain, "{whole} {plain}");
            for i in (1..values.len()).rev() {
                values.swap(i, random.below(i as u64 + 1) as usize);
            }
            let mut parts = vec![0.0; PARTS];
            let mut rest = &values[..];
            for _ in 0..round % 7 {
                let (head, tail) = rest.split_at(random.below(rest.len() as u64 + 1) as usize);
                parts.iter_mut().zip(sum(head).parts()).for_each(|(part, other)| *part += other);
                rest = tail;
            }
            parts.iter_mut().zip(sum(rest).parts()).for_each(|(part, other)| *part += other);
            assert_eq!(ExactSum::value_of(&parts).to_bits(), whole.to_bits());
        }
    }

    #[test]
    fn counters_are_emptied_before_they_overflow() {
        let many = vec![1.999_999_9f32; 3 * ROOM + 1];
        let one = f64::from(many[0]).powi(2);
        assert_eq!(sum(&many).value(), one * many.len() as f64);
    }
}
