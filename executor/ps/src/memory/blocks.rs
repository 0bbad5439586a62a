//! Memory for a worker's gradients which its ps reads: what was computed there need not be copied.
//!
//! There are blocks of the lengths that the worker's large variables have, a few of each, so that the memory is bounded
//! whatever else is computed there. A block belongs to who has taken it, until it is dropped.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError};

use super::View;

/// Elements, 64 KiB, from which a copy costs more than telling the ps of a block.
const LEAST: usize = 1 << 14;
/// Blocks for each variable: what else has its size for a while must not take them all.
const EACH: usize = 2;
/// A block begins at a multiple of so many elements, a page.
const ALIGNED: usize = 1024;

/// See the module's text.
#[derive(Debug)]
pub struct Blocks {
    view: View,
    /// By length, where free blocks begin, elements.
    free: Mutex<BTreeMap<usize, Vec<usize>>>,
}

/// Elements with any values.
#[derive(Debug)]
pub struct Block {
    blocks: Arc<Blocks>,
    at: usize,
    len: usize,
}

/// What the blocks for variables of so many elements take together, elements.
pub(crate) fn needed(variables: &[usize]) -> usize {
    variables.iter().filter(|len| **len >= LEAST).map(|len| EACH * len.next_multiple_of(ALIGNED)).sum()
}

impl Blocks {
    /// In a view of [`needed`] elements.
    pub(crate) fn new(view: View, variables: &[usize]) -> Arc<Blocks> {
        let mut free: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut at = 0;
        for &len in variables.iter().filter(|len| **len >= LEAST) {
            for _ in 0..EACH {
                let end = at + len.next_multiple_of(ALIGNED);
                if end <= view.len() {
                    free.entry(len).or_default().push(at);
                }
                at = end;
            }
        }
        Arc::new(Blocks { view, free: Mutex::new(free) })
    }

    /// A block of exactly so many elements, if there is one: the one that was used last, of which caches may know.
    pub fn take(self: &Arc<Self>, len: usize) -> Option<Block> {
        let at = self.free.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&len)?.pop()?;
        Some(Block { blocks: Arc::clone(self), at, len })
    }

    /// Which of the elements these are, if they lie here.
    pub(crate) fn find(&self, slice: &[f32]) -> Option<Range<usize>> {
        let bytes = (slice.as_ptr() as usize).checked_sub(self.view.as_mut_ptr() as usize)?;
        let at = bytes / size_of::<f32>();
        let end = at.checked_add(slice.len()).filter(|end| *end <= self.view.len())?;
        (bytes % size_of::<f32>() == 0 && !slice.is_empty()).then_some(at..end)
    }
}

impl Block {
    /// Of the first element; valid for as long as this lives.
    pub fn as_mut_ptr(&self) -> *mut f32 {
        // A block lies within the view.
        self.blocks.view.as_mut_ptr().wrapping_add(self.at)
    }
}

impl Deref for Block {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` f32 of a mapping that `blocks` keeps; any bits are an f32. No other block lies here. The ps reads them,
        // and one that writes spoils numbers of its own job.
        #[expect(unsafe_code, reason = "a mapping is a raw pointer")]
        unsafe {
            std::slice::from_raw_parts(self.as_mut_ptr(), self.len)
        }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably; the view is writable.
        #[expect(unsafe_code, reason = "a mapping is a raw pointer")]
        unsafe {
            std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len)
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut free = self.blocks.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = free.get_mut(&self.len) {
            places.push(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Access, Arena};

    #[test]
    fn blocks_lie_apart_have_the_lengths_of_variables_and_come_back() {
        let variables = [LEAST + 5, LEAST - 1, LEAST + 5, LEAST];
        let arena = Arena::new().unwrap();
        let theirs = arena.floats(needed(&variables)).unwrap();
        let blocks = Blocks::new(View::of(arena.file(), 0, theirs.len(), Access::Write).unwrap(), &variables);
        assert!(blocks.take(LEAST - 1).is_none() && blocks.take(LEAST + 1).is_none());
        let mut taken: Vec<Block> = std::iter::from_fn(|| blocks.take(LEAST + 5)).collect();
        assert_eq!(taken.len(), 2 * EACH);
        taken.extend(std::iter::from_fn(|| blocks.take(LEAST)));
        assert_eq!(taken.len(), 3 * EACH);
        for (number, block) in taken.iter_mut().enumerate() {
            block.fill(number as f32);
        }
        for (number, block) in taken.iter().enumerate() {
            let place = blocks.find(&block[3..]).unwrap();
            assert_eq!((place.start, place.len()), (block.at + 3, block.len - 3));
            assert!(block.iter().chain(&theirs[place]).all(|value| *value == number as f32), "{number}");
        }
        assert_eq!((blocks.find(&[1.0]), blocks.find(&taken[0][..0])), (None, None));
        let last = taken.pop().map(|block| block.at);
        assert_eq!(blocks.take(LEAST).map(|block| block.at), last);
    }
}
