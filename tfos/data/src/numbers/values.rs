//! Numbers of a page in the type that the column has in memory: PLAIN, and indices into a dictionary whose entries were
//! converted once.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use datafusion::parquet::basic::Type;

use super::Undecodable;
use super::hybrid::{Hybrid, Run, word};

/// A number that lists are of.
pub(super) trait Number: ArrowPrimitiveType {
    /// How it is stored.
    const STORED: Type;
    /// Bytes of one as stored.
    const BYTES: usize;
    /// Appends what is stored in `bytes`; narrower types take the lower bits, as arrow's own reader does.
    fn append(bytes: &[u8], out: &mut Vec<Self::Native>);
}

macro_rules! number {
    ($($arrow:ty, $stored:ident, $raw:ty;)*) => {$(
        impl Number for $arrow {
            const STORED: Type = Type::$stored;
            const BYTES: usize = size_of::<$raw>();
            fn append(bytes: &[u8], out: &mut Vec<Self::Native>) {
                let (numbers, _) = bytes.as_chunks::<{ size_of::<$raw>() }>();
                out.extend(numbers.iter().map(|n| <$raw>::from_le_bytes(*n) as Self::Native));
            }
        }
    )*};
}

number! {
    UInt8Type, INT32, i32;
    Int8Type, INT32, i32;
    UInt16Type, INT32, i32;
    Int16Type, INT32, i32;
    UInt32Type, INT32, i32;
    Int32Type, INT32, i32;
    UInt64Type, INT64, i64;
    Int64Type, INT64, i64;
    Float32Type, FLOAT, f32;
    Float64Type, DOUBLE, f64;
}

/// The entries of a dictionary page.
#[derive(Debug)]
pub(super) struct Dictionary<N: Number> {
    /// Filled up to what an index of its own width, or of a byte, can say, so that such an index needs no check of its own.
    entries: Vec<N::Native>,
    len: usize,
}

impl<N: Number> Dictionary<N> {
    pub(super) fn new(bytes: &[u8], len: usize) -> Result<Self, Undecodable> {
        let bytes = len.checked_mul(N::BYTES).and_then(|n| bytes.get(..n)).ok_or(Undecodable("a cut dictionary"))?;
        // At most twice as many as there are.
        let filled = len.next_power_of_two().max(256);
        let mut entries = Vec::with_capacity(filled);
        N::append(bytes, &mut entries);
        entries.resize(filled, N::Native::default());
        Ok(Self { entries, len })
    }
}

/// The values of a page.
#[derive(Debug)]
pub(super) enum Values<N: Number> {
    Plain(Bytes),
    Indices(Hybrid, Arc<Dictionary<N>>),
}

impl<N: Number> Values<N> {
    /// Indices behind the byte that says how wide they are.
    pub(super) fn indices(bytes: Bytes, dictionary: &Arc<Dictionary<N>>) -> Result<Self, Undecodable> {
        // Where nothing but nulls is, some writers leave out even that.
        let Some(width) = bytes.first().copied() else { return Ok(Self::Plain(bytes)) };
        Ok(Self::Indices(Hybrid::new(bytes.slice(1..), width.into())?, Arc::clone(dictionary)))
    }

    /// Appends the next `n` values.
    pub(super) fn read(&mut self, n: usize, out: &mut Vec<N::Native>) -> Result<(), Undecodable> {
        match self {
            Self::Plain(bytes) => {
                let size = n.checked_mul(N::BYTES).filter(|size| *size <= bytes.len());
                let stored = bytes.split_to(size.ok_or(Undecodable("fewer values than the page says"))?);
                out.reserve(n);
                N::append(&stored, out);
                Ok(())
            }
            Self::Indices(indices, dictionary) => {
                let mut left = n;
                while left > 0 {
                    let run = indices.run()?;
                    let n = run.left().min(left);
                    match run {
                        Run::Same { value, .. } => {
                            let value = dictionary.entries[..dictionary.len].get(value as usize);
                            let value = *value.ok_or(NO_ENTRY)?;
                            out.resize(out.len() + n, value);
                        }
                        Run::Packed { bit, .. } => packed(indices.bytes(), bit, indices.width(), n, dictionary, out)?,
                    }
                    indices.advance(n);
                    left -= n;
                }
                Ok(())
            }
        }
    }
}

const NO_ENTRY: Undecodable = Undecodable("an index that the dictionary does not have");

/// Appends the entries of `n` packed indices, which are all there.
fn packed<N: Number>(
    bytes: &[u8],
    bit: usize,
    width: usize,
    n: usize,
    dictionary: &Dictionary<N>,
    out: &mut Vec<N::Native>,
) -> Result<(), Undecodable> {
    let Some(table) = dictionary.entries.first_chunk::<256>().filter(|_| width <= 8) else {
        return wide(bytes, bit, width, n, dictionary, out);
    };
    let last = dictionary.len as i64 - 1;
    let all = match width {
        1 => narrow::<N, 1>(bytes, bit, n, table, last, out),
        2 => narrow::<N, 2>(bytes, bit, n, table, last, out),
        3 => narrow::<N, 3>(bytes, bit, n, table, last, out),
        4 => narrow::<N, 4>(bytes, bit, n, table, last, out),
        5 => narrow::<N, 5>(bytes, bit, n, table, last, out),
        6 => narrow::<N, 6>(bytes, bit, n, table, last, out),
        7 => narrow::<N, 7>(bytes, bit, n, table, last, out),
        _ => {
            let indices = bytes.get(bit / 8..bit / 8 + n).ok_or(NO_ENTRY)?;
            out.extend(indices.iter().map(|i| table[usize::from(*i)]));
            // With all 256 entries every index has one.
            last >= 255 || i64::from(indices.iter().fold(0, |largest, i| largest.max(*i))) <= last
        }
    };
    if all { Ok(()) } else { Err(NO_ENTRY) }
}

/// Numbers that are put together at a time. They stay in the first cache, and so memory is touched once: when they
/// are appended. Appended one by one, each would ask whether there is room.
const STEP: usize = 128;

/// Indices of `W` < 8 bits: eight of them are in one word. Whether all have an entry, of which `last` is the last.
fn narrow<N: Number, const W: usize>(
    bytes: &[u8],
    mut bit: usize,
    n: usize,
    table: &[N::Native; 256],
    last: i64,
    out: &mut Vec<N::Native>,
) -> bool {
    let mask = (1u64 << W) - 1;
    // Negative once an index is behind the last entry's: a maximum would wait for the one before it at each index.
    let mut sign = last;
    let mut step = [N::Native::default(); STEP];
    let mut left = n;
    out.reserve(n);
    while left > 0 {
        let n = left.min(STEP);
        // The word has 57 bits at least, and eight indices have no more than 56.
        let (groups, rest) = step[..n].as_chunks_mut::<8>();
        for group in groups {
            let word = word(bytes, bit);
            for (i, out) in group.iter_mut().enumerate() {
                let index = word >> (i * W) & mask;
                sign |= last.wrapping_sub(index as i64);
                *out = table[usize::from(index as u8)];
            }
            bit += 8 * W;
        }
        for out in rest {
            let index = word(bytes, bit) & mask;
            sign |= last.wrapping_sub(index as i64);
            *out = table[usize::from(index as u8)];
            bit += W;
        }
        out.extend_from_slice(&step[..n]);
        left -= n;
    }
    sign >= 0
}

/// Indices of more than a byte.
fn wide<N: Number>(
    bytes: &[u8],
    bit: usize,
    width: usize,
    n: usize,
    dictionary: &Dictionary<N>,
    out: &mut Vec<N::Native>,
) -> Result<(), Undecodable> {
    let entries = &dictionary.entries[..dictionary.len];
    let (mask, end) = ((1u64 << width) - 1, out.len() + n);
    out.reserve(n);
    let mut largest = 0;
    let mut some = |bit: usize, n: usize, out: &mut Vec<N::Native>| {
        out.extend((0..n).map(|i| {
            let index = (word(bytes, bit + i * width) & mask) as u32;
            largest = largest.max(index);
            entries.get(index as usize).copied().unwrap_or_default()
        }));
    };
    // A batch may begin inside of a group of eight, which begin at whole bytes.
    let before = (0..n.min(8)).find(|i| (bit + i * width).is_multiple_of(8)).unwrap_or(n.min(8));
    some(bit, before, out);
    let (from, groups) = ((bit + before * width) / 8, (n - before) / 8);
    let bytes = bytes.get(from..).unwrap_or_default();
    let all = match width {
        9 => eights::<N, 9>(bytes, groups, dictionary, out),
        10 => eights::<N, 10>(bytes, groups, dictionary, out),
        11 => eights::<N, 11>(bytes, groups, dictionary, out),
        12 => eights::<N, 12>(bytes, groups, dictionary, out),
        13 => eights::<N, 13>(bytes, groups, dictionary, out),
        14 => eights::<N, 14>(bytes, groups, dictionary, out),
        15 => eights::<N, 15>(bytes, groups, dictionary, out),
        16 => eights::<N, 16>(bytes, groups, dictionary, out),
        _ => true,
    };
    let left = end - out.len();
    some(bit + (n - left) * width, left, out);
    if all && (largest as usize) < dictionary.len { Ok(()) } else { Err(NO_ENTRY) }
}

/// Up to `groups` times eight indices of `W` bits, 9 to 16: they are `W` bytes, and 16 bytes are read for them, which the
/// last ones may not have. None where the dictionary is much smaller than its indices. Whether all have an entry.
fn eights<N: Number, const W: usize>(
    bytes: &[u8],
    groups: usize,
    dictionary: &Dictionary<N>,
    out: &mut Vec<N::Native>,
) -> bool {
    let mask = (1u64 << W) - 1;
    let Some(entries) = dictionary.entries.get(..1 << W) else { return true };
    let groups = groups.min((bytes.len() + W).saturating_sub(16) / W);
    // An index of 16 bits taken from the last entry's: negative where there is no entry.
    let last = dictionary.len as i64 - 1;
    let mut sign = last;
    let mut step = [N::Native::default(); STEP];
    let mut at = 0;
    out.reserve(8 * groups);
    for some in (0..groups).step_by(STEP / 8).map(|from| (STEP / 8).min(groups - from)) {
        let all = bytes.get(at..).unwrap_or_default();
        for (group, eight) in all.windows(16).step_by(W).zip(step[..8 * some].as_chunks_mut::<8>().0) {
            let (words, _) = group.as_chunks::<8>();
            let [low, high] = words else { break };
            let (low, high) = (u64::from_le_bytes(*low), u64::from_le_bytes(*high));
            for (i, out) in eight.iter_mut().enumerate() {
                let bit = i * W;
                let index = match bit {
                    64.. => high >> (bit - 64),
                    _ if bit + W <= 64 => low >> bit,
                    _ => low >> bit | high << (64 - bit),
                } & mask;
                sign |= last.wrapping_sub(index as i64);
                *out = entries[index as usize];
            }
        }
        at += W * some;
        out.extend_from_slice(&step[..8 * some]);
    }
    sign >= 0
}

/// Moves the values from `begin` on to the places that have one, as the bits of `valid` say.
pub(super) fn spread<T: Copy + Default>(values: &mut Vec<T>, begin: usize, places: usize, valid: &[u8]) {
    let mut from = values.len();
    if from >= places || valid.len() < places.div_ceil(8) {
        return;
    }
    values.resize(places, T::default());
    for to in (begin..places).rev() {
        if from == to + 1 {
            break;
        }
        // Without a branch: where nulls are is not to be guessed.
        let is_there = valid[to / 8] >> (to % 8) & 1 == 1;
        from -= usize::from(is_there);
        values[to] = if is_there { values[from] } else { T::default() };
    }
}
