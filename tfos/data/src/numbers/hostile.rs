//! A page of bytes that nobody wrote: what the fuzz targets see of this module.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::builder::BooleanBufferBuilder;
use datafusion::arrow::array::types::{ArrowPrimitiveType, Float64Type, UInt8Type};

use super::Undecodable;
use super::flat::present;
use super::hybrid::Hybrid;
use super::levels::{Levels, Lists, Meaning};
use super::values::{Dictionary, Number, Values, spread};

/// What became of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Positions, as the page says.
    pub count: usize,
    /// Elements that there are room for, null ones included.
    pub places: usize,
    /// Elements that were made.
    pub values: usize,
}

/// Reads levels and values of a page. Seven bytes say what it is like: the kind of the column, positions (two bytes), rows
/// that are asked for, bytes of repetition levels, of definition levels and of the dictionary; the rest are the values.
/// `None` where they are refused.
pub fn page(data: &[u8]) -> Option<Page> {
    match data.first()? & 1 {
        0 => read::<UInt8Type>(data).ok(),
        _ => read::<Float64Type>(data).ok(),
    }
}

fn read<N: Number>(data: &[u8]) -> Result<Page, Undecodable>
where
    <N as ArrowPrimitiveType>::Native: Default,
{
    let [kind, low, high, rows, repetition, definition, entries, rest @ ..] = data else {
        return Err(Undecodable("no page"));
    };
    let (count, rows) = (usize::from(*low) | usize::from(*high) << 8, usize::from(*rows) + 1);
    let mut rest = Bytes::copy_from_slice(rest);
    let mut take = |n: &u8| rest.split_to(rest.len().min(usize::from(*n)));
    let (repetition, definition, dictionary) = (take(repetition), take(definition), take(entries));
    let is = |bit: u8| kind & bit != 0;
    let (there, places, valid) = if is(2) {
        let (mut valid, n) = (BooleanBufferBuilder::new(0), count.min(rows));
        (present(&mut Hybrid::new(definition, 1)?, n, &mut valid)?, n, valid.as_slice().to_vec())
    } else {
        let meaning = Meaning { list_nullable: is(4), item_nullable: is(8), fixed: is(16).then_some(3) };
        let definition = Hybrid::new(definition, meaning.def_width())?;
        let mut levels = Levels { repetition: Hybrid::new(repetition, 1)?, definition, left: count };
        let mut lists = Lists::with_capacity(0);
        let there = levels.read(meaning, rows, &mut lists)?;
        (there, lists.places, lists.items.as_slice().unwrap_or_default().to_vec())
    };
    let dictionary = Arc::new(Dictionary::<N>::new(&dictionary, dictionary.len() / N::BYTES)?);
    let mut values = if is(32) { Values::Plain(rest) } else { Values::indices(rest, &dictionary)? };
    let mut out = vec![];
    values.read(there, &mut out)?;
    spread(&mut out, 0, places, &valid);
    Ok(Page { count, places, values: out.len() })
}
