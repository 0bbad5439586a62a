//! Repetition and definition levels of a list of numbers, as lengths of lists and as nulls, run by run.
//!
//! A level says of each position whether a list begins there, and whether there is a value, a null, an empty list or no
//! list. Where lists are long and nothing is null, both are runs of hundreds of positions, and each is one step here.

use datafusion::arrow::array::builder::NullBufferBuilder;

use super::Undecodable;
use super::hybrid::{Hybrid, Run, word};

/// Positions of one step where a level is not the same for a whole run: two levels of two bits fill a word.
const STEP: usize = 32;

/// More than that have no offset of 32 bits.
pub(super) const MOST_PLACES: usize = i32::MAX as usize;

/// What the levels of a column mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meaning {
    /// A list may be null.
    pub list_nullable: bool,
    /// An element may be null.
    pub item_nullable: bool,
    /// Elements of every list, where all have the same number; null lists have as many places.
    pub fixed: Option<usize>,
}

impl Meaning {
    /// The definition level of a value that is there.
    pub(super) fn max_def(self) -> u32 {
        1 + u32::from(self.list_nullable) + u32::from(self.item_nullable)
    }

    /// Bits of a definition level.
    pub(super) fn def_width(self) -> usize {
        if self.max_def() == 1 { 1 } else { 2 }
    }
}

/// The lists of a batch, without their values.
#[derive(Debug)]
pub(super) struct Lists {
    /// Where each list begins, in places of elements.
    pub starts: Vec<usize>,
    /// Which lists are there.
    pub valid: NullBufferBuilder,
    /// Places of elements.
    pub places: usize,
    /// Which places have a value.
    pub items: NullBufferBuilder,
}

impl Lists {
    pub(super) fn with_capacity(rows: usize) -> Self {
        let valid = NullBufferBuilder::new(rows);
        Self { starts: Vec::with_capacity(rows), valid, places: 0, items: NullBufferBuilder::new(0) }
    }

    fn push(&mut self, start: bool, there: bool) {
        if start {
            self.starts.push(self.places);
            self.valid.append(there);
        }
    }
}

/// The levels of a page.
#[derive(Debug)]
pub(super) struct Levels {
    pub repetition: Hybrid,
    pub definition: Hybrid,
    /// Positions that have not been read.
    pub left: usize,
}

/// Which of up to [`STEP`] positions have a property.
#[derive(Clone, Copy)]
struct Step {
    n: usize,
    starts: u64,
    places: u64,
    values: u64,
    null_lists: u64,
}

impl Levels {
    /// Reads up to the end of the page, or up to where list number `rows` would begin; how many values are there.
    pub(super) fn read(&mut self, meaning: Meaning, rows: usize, into: &mut Lists) -> Result<usize, Undecodable> {
        let mut values = 0;
        while self.left > 0 {
            let (repetition, definition) = (self.repetition.run()?, self.definition.run()?);
            let n = repetition.left().min(definition.left()).min(self.left);
            if let (Run::Same { value: 1, .. }, Run::Same { value, .. }) = (repetition, definition)
                && value == meaning.max_def()
            {
                if into.starts.is_empty() {
                    return Err(Undecodable("a list that goes on before it begins"));
                }
                into.items.append_n_non_nulls(n);
                into.places += n;
                values += n;
                self.advance(n);
                continue;
            }
            let n = n.min(STEP);
            let Some(step) = self.step(n, meaning, repetition, definition)?.up_to(rows - into.starts.len()) else {
                break;
            };
            values += step.apply(meaning, into)?;
            self.advance(step.n);
        }
        Ok(values)
    }

    fn advance(&mut self, n: usize) {
        self.repetition.advance(n);
        self.definition.advance(n);
        self.left -= n;
    }

    fn step(&self, n: usize, meaning: Meaning, repetition: Run, definition: Run) -> Result<Step, Undecodable> {
        let all = (1 << n) - 1;
        let repeated = match repetition {
            Run::Same { value, .. } => same(value),
            Run::Packed { bit, .. } => word(self.repetition.bytes(), bit),
        };
        let (low, high) = match definition {
            Run::Same { value, .. } => (same(value), same(value >> 1)),
            Run::Packed { bit, .. } if meaning.def_width() == 1 => (word(self.definition.bytes(), bit), 0),
            Run::Packed { bit, .. } => {
                let bytes = self.definition.bytes();
                // Two words, because the first may lack its upper bits.
                let word = word(bytes, bit) & u64::from(u32::MAX) | word(bytes, bit + 32) << 32;
                (even_bits(word), even_bits(word >> 1))
            }
        };
        let level = |level: u32| {
            let bits = |plane: u64, bit: u32| if level & bit == 0 { !plane } else { plane };
            bits(low, 1) & bits(high, 2) & all
        };
        let max = meaning.max_def();
        if max < 3 && low & high & all != 0 {
            return Err(Undecodable("a definition level that the schema does not have"));
        }
        let values = level(max);
        let places = if meaning.item_nullable { values | level(max - 1) } else { values };
        let null_lists = if meaning.list_nullable { level(0) } else { 0 };
        if repeated & all & !places != 0 {
            return Err(Undecodable("a list that goes on without an element"));
        }
        Ok(Step { n, starts: !repeated & all, places, values, null_lists })
    }
}

impl Step {
    /// As much of it as has no more than `rows` beginnings of lists, if that is anything.
    fn up_to(mut self, rows: usize) -> Option<Self> {
        if self.starts.count_ones() as usize > rows {
            let mut starts = self.starts;
            for _ in 0..rows {
                starts &= starts - 1;
            }
            self.n = starts.trailing_zeros() as usize;
            let all = (1 << self.n) - 1;
            self.starts &= all;
            self.places &= all;
            self.values &= all;
            self.null_lists &= all;
        }
        (self.n > 0).then_some(self)
    }

    fn apply(self, meaning: Meaning, into: &mut Lists) -> Result<usize, Undecodable> {
        if into.starts.is_empty() && self.starts & 1 == 0 {
            return Err(Undecodable("a list that goes on before it begins"));
        }
        if self.values == (1 << self.n) - 1 {
            let mut starts = self.starts;
            while starts != 0 {
                into.starts.push(into.places + starts.trailing_zeros() as usize);
                starts &= starts - 1;
            }
            into.valid.append_n_non_nulls(self.starts.count_ones() as usize);
            into.items.append_n_non_nulls(self.n);
            into.places += self.n;
            return Ok(self.n);
        }
        for i in 0..self.n {
            let is = |bits: u64| bits >> i & 1 == 1;
            into.push(is(self.starts), !is(self.null_lists));
            if is(self.places) {
                into.items.append(is(self.values));
                into.places += 1;
            } else if let (true, Some(fixed)) = (is(self.null_lists), meaning.fixed) {
                if fixed > MOST_PLACES - into.places.min(MOST_PLACES) {
                    return Err(Undecodable("more elements than an array can have"));
                }
                into.items.append_n_nulls(fixed);
                into.places += fixed;
            }
        }
        Ok(self.values.count_ones() as usize)
    }
}

/// A plane of a run's lowest bit.
fn same(value: u32) -> u64 {
    if value & 1 == 1 { u64::MAX } else { 0 }
}

/// Bits 0, 2, 4 and so on.
fn even_bits(mut x: u64) -> u64 {
    x &= 0x5555_5555_5555_5555;
    x = (x | x >> 1) & 0x3333_3333_3333_3333;
    x = (x | x >> 2) & 0x0f0f_0f0f_0f0f_0f0f;
    x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) & 0x0000_0000_ffff_ffff
}
