//! The values of a push, wherever they lie.

use std::ops::Range;
use std::sync::Arc;

use crate::memory::Floats;

/// Memory of this process, or what the worker has written into a window ([`crate::transport::Window`]).
#[derive(Debug)]
pub(crate) enum Gradient {
    Own(Vec<f32>),
    Window(InWindow),
}

/// A gradient in memory that its worker writes.
#[derive(Debug)]
pub(crate) struct InWindow {
    /// As long as the gradient.
    pub(crate) stage: Floats,
    pub(crate) blocks: Floats,
    /// What lies in the blocks; the rest lies in the stage.
    pub(crate) table: Arc<[InBlock]>,
}

/// Elements `range` of a gradient lie in the blocks, from `at` on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InBlock {
    range: Range<usize>,
    at: usize,
}

impl InBlock {
    /// A table as it is sent, for a gradient of `len` elements and blocks of `blocks`; `None` unless it is in order and they have all
    /// that it names.
    pub(crate) fn table(bytes: &[u8], len: usize, blocks: usize) -> Option<Arc<[InBlock]>> {
        let (numbers, []) = bytes.as_chunks::<8>() else { return None };
        let (entries, []) = numbers.as_chunks::<3>() else { return None };
        let mut end = 0;
        let entry = |entry: &[[u8; 8]; 3]| {
            let [start, count, at] = entry.map(u64::from_le_bytes).map(usize::try_from);
            let (start, count, at) = (start.ok()?, count.ok()?, at.ok()?);
            let range = start..start.checked_add(count).filter(|end| *end <= len)?;
            at.checked_add(count).filter(|end| *end <= blocks)?;
            let follows = start >= end;
            end = range.end;
            follows.then_some(InBlock { range, at })
        };
        entries.iter().map(entry).collect()
    }
}

impl Gradient {
    pub(crate) fn len(&self) -> usize {
        match self {
            Gradient::Own(values) => values.len(),
            Gradient::Window(window) => window.stage.len(),
        }
    }

    /// So many elements of this process' own memory, of any values, to be filled.
    pub(crate) fn own(&mut self, len: usize) -> &mut [f32] {
        if let Gradient::Window(_) = self {
            *self = Gradient::default();
        }
        match self {
            Gradient::Own(values) => {
                values.resize(len, 0.0);
                values
            }
            Gradient::Window(_) => &mut [],
        }
    }

    /// The elements of `block` in pieces, each as it lies.
    pub(crate) fn pieces(&self, block: Range<usize>) -> impl Iterator<Item = &[f32]> {
        let (mut at, end) = (block.start, block.end);
        let mut next = match self {
            Gradient::Own(_) => 0,
            Gradient::Window(window) => window.table.partition_point(|entry| entry.range.end <= at),
        };
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let start = at;
            let InWindow { stage, blocks, table } = match self {
                Gradient::Own(values) => {
                    at = end;
                    return Some(&values[start..end]);
                }
                Gradient::Window(window) => window,
            };
            match table.get(next) {
                Some(entry) if entry.range.start <= start => {
                    at = entry.range.end.min(end);
                    next += 1;
                    let place = entry.at + (start - entry.range.start);
                    Some(&blocks[place..place + (at - start)])
                }
                entry => {
                    at = entry.map_or(end, |entry| entry.range.start.min(end));
                    Some(&stage[start..at])
                }
            }
        })
    }
}

impl Default for Gradient {
    fn default() -> Gradient {
        Gradient::Own(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Arena;

    fn bytes(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn pieces_of_any_block_are_the_gradient_wherever_it_lies() {
        let arena = Arena::new().unwrap();
        let (mut stage, mut blocks) = (arena.floats(40).unwrap(), arena.floats(30).unwrap());
        // 3..10 and 10..12 and 20..40 lie elsewhere.
        let table = InBlock::table(&bytes(&[3, 7, 20, 10, 2, 0, 20, 18, 2, 38, 2, 28]), 40, 30).unwrap();
        stage.iter_mut().chain(&mut *blocks).for_each(|value| *value = -1.0);
        for i in 0..40 {
            match table.iter().find(|entry| entry.range.contains(&i)) {
                Some(entry) => blocks[entry.at + i - entry.range.start] = i as f32,
                None => stage[i] = i as f32,
            }
        }
        let gradient = Gradient::Window(InWindow { stage, blocks, table });
        for start in 0..40 {
            for end in start..=40 {
                let found: Vec<f32> = gradient.pieces(start..end).flatten().copied().collect();
                assert_eq!(found, (start..end).map(|i| i as f32).collect::<Vec<_>>());
            }
        }
        assert_eq!(gradient.pieces(4..9).count(), 1);
    }

    #[test]
    fn a_table_that_names_what_is_not_there_is_none() {
        let table = |numbers: &[u64]| InBlock::table(&bytes(numbers), 10, 5);
        assert!(table(&[]).unwrap().is_empty() && table(&[0, 5, 0, 5, 5, 0]).is_some());
        for numbers in [
            &[0, 6, 0][..],
            &[8, 3, 0],
            &[0, 2, 4],
            &[4, 2, 0, 5, 2, 0],
            &[4, 2, 0, 0, 2, 0],
            &[u64::MAX, 2, 0],
            &[0, u64::MAX, 0],
            &[0, 2, u64::MAX],
            &[0, 2],
        ] {
            assert_eq!(table(numbers), None, "{numbers:?}");
        }
        assert_eq!(InBlock::table(&[0; 23], 10, 5), None);
    }
}
