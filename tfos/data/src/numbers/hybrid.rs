//! Parquet's hybrid of run lengths and packed bits, as runs: nothing is made of a run but its value and its length.
//!
//! The format: <https://parquet.apache.org/docs/file-format/data-pages/encodings/#RLE>.

use bytes::Bytes;

use super::Undecodable;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// `left` times the same value.
    Same { value: u32, left: usize },
    /// `left` values of the stream's width, the first at this bit of the stream's bytes.
    Packed { bit: usize, left: usize },
}

impl Run {
    pub(super) fn left(self) -> usize {
        match self {
            Self::Same { left, .. } | Self::Packed { left, .. } => left,
        }
    }
}

/// A stream of values of one width.
#[derive(Debug)]
pub(super) struct Hybrid {
    bytes: Bytes,
    /// Where the next run begins.
    at: usize,
    width: usize,
    run: Run,
}

impl Hybrid {
    /// `width` in bits, at most 32.
    pub(super) fn new(bytes: Bytes, width: usize) -> Result<Self, Undecodable> {
        if width > 32 {
            return Err(Undecodable("values of more than 32 bits"));
        }
        Ok(Self { bytes, at: 0, width, run: Run::Same { value: 0, left: 0 } })
    }

    /// The run that comes next, which is never empty.
    pub(super) fn run(&mut self) -> Result<Run, Undecodable> {
        // Each header has a byte at least, so that this ends.
        while self.run.left() == 0 {
            self.run = self.next_run()?;
        }
        Ok(self.run)
    }

    /// Passes over `n` values, which are no more than [`run`](Self::run) has.
    pub(super) fn advance(&mut self, n: usize) {
        match &mut self.run {
            Run::Same { left, .. } => *left = left.saturating_sub(n),
            Run::Packed { bit, left } => {
                *left = left.saturating_sub(n);
                *bit = bit.saturating_add(n.saturating_mul(self.width));
            }
        }
    }

    /// What a packed run's `bit` counts in.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    fn next_run(&mut self) -> Result<Run, Undecodable> {
        let header = self.header()?;
        let count = usize::try_from(header >> 1).unwrap_or(usize::MAX);
        if header & 1 == 0 {
            let end = self.at + self.width.div_ceil(8);
            let bytes = self.bytes.get(self.at..end).ok_or(Undecodable("a run without its value"))?;
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            if self.width < 32 && value >> self.width != 0 {
                return Err(Undecodable("a value that is wider than its stream"));
            }
            self.at = end;
            return Ok(Run::Same { value, left: count });
        }
        if self.width == 0 {
            return Ok(Run::Same { value: 0, left: count.saturating_mul(8) });
        }
        // A stream may end before its last group does: what counts is what is there.
        let there = self.bytes.len() - self.at;
        let bit = self.at * 8;
        let (bytes, left) = match count.checked_mul(self.width) {
            Some(bytes) if bytes <= there => (bytes, count * 8),
            _ => (there, there * 8 / self.width),
        };
        self.at += bytes;
        Ok(Run::Packed { bit, left })
    }

    /// A number of seven bits per byte, least first.
    fn header(&mut self) -> Result<u64, Undecodable> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Undecodable("fewer values than the page says"))?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Undecodable("a run of no length"))
    }
}

/// The 64 bits from `bit` on, of which the upper up to 7 may be missing; zeros behind the end.
pub(super) fn word(bytes: &[u8], bit: usize) -> u64 {
    let from = bytes.get(bit / 8..).unwrap_or_default();
    let word = match from.first_chunk::<8>() {
        Some(word) => u64::from_le_bytes(*word),
        None => from.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    word >> (bit % 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_both_kinds() {
        // 5 times 1; two groups of 3 bits, 0 to 7 twice; 300 times 2.
        let mut bytes = vec![10, 1, 5];
        bytes.extend([0b1000_1000, 0b1100_0110, 0b1111_1010].repeat(2));
        bytes.extend([0xd8, 0x04, 2]);
        let mut runs = Hybrid::new(bytes.clone().into(), 3).unwrap();
        assert_eq!(runs.run().unwrap(), Run::Same { value: 1, left: 5 });
        runs.advance(5);
        for i in 0..16 {
            let Run::Packed { bit, left } = runs.run().unwrap() else { panic!() };
            assert_eq!((word(runs.bytes(), bit) & 7, left), (i % 8, 16 - i as usize));
            runs.advance(1);
        }
        assert_eq!(runs.run().unwrap(), Run::Same { value: 2, left: 300 });
        runs.advance(300);
        assert!(runs.run().is_err());
    }

    #[test]
    fn hostile_lengths_are_only_numbers() {
        // 2^34 groups in two bytes; a run without a value; a header that does not end.
        let mut runs = Hybrid::new(vec![0xff, 0xff, 0xff, 0xff, 0x7f, 1, 2].into(), 2).unwrap();
        assert_eq!(runs.run().unwrap().left(), 8);
        assert!(Hybrid::new(vec![10].into(), 3).unwrap().run().is_err());
        assert!(Hybrid::new(vec![0xff; 9].into(), 3).unwrap().run().is_err());
        assert!(Hybrid::new(vec![0, 0, 0, 0].into(), 3).unwrap().run().is_err());
        assert!(Hybrid::new(vec![10, 9].into(), 3).unwrap().run().is_err());
        assert!(Hybrid::new(vec![].into(), 33).is_err());
    }
}
