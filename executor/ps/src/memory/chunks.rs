//! Optimizer slots in chunks that a snapshot freezes without a copy.
//!
//! - `COW-1` what a snapshot holds never changes: an update of a frozen chunk is written into another one.
//!
//! An update goes over all elements in order. It reads a frozen chunk and writes its successor block by block, past the
//! caches, which costs the memory traffic of an update in place; the old one is the snapshot's from then on. So no step waits for a copy.

use std::ops::Range;
use std::sync::Arc;

use super::{Arena, CHUNK, Cut, Floats, Pool, fence, stream};
use crate::error::Error;
use crate::flat;
use crate::optimizer::MAX_SLOTS;

/// Elements that are copied at a time where nothing is computed.
const COPIED: usize = 4096;

/// All slots of a range of the flat vector.
#[derive(Debug)]
pub(crate) struct Slots {
    len: usize,
    /// Elements of a chunk; the last one may be used in part.
    chunk: usize,
    /// By slot, then in order.
    chunks: Vec<Vec<Arc<Floats>>>,
    pool: Arc<Pool>,
    /// Of the chunk under way: what its frozen predecessors hold, by slot.
    under_way: usize,
    old: [Option<Arc<Floats>>; MAX_SLOTS],
    /// A block of each slot while it is updated, where it is frozen.
    scratch: Vec<f32>,
}

impl Slots {
    /// Fresh ones of `len` elements, each slot with its initial value. Memory that is 0 is not touched yet.
    pub(crate) fn new(arena: &Arc<Arena>, len: usize, initial: &[f32]) -> Result<Slots, Error> {
        let chunk = len.clamp(1, CHUNK);
        let pool = Pool::new(arena, chunk);
        let mut chunks = Vec::with_capacity(initial.len());
        for value in initial {
            let mut row = Vec::with_capacity(len.div_ceil(chunk));
            for _ in 0..len.div_ceil(chunk) {
                let mut floats = arena.floats(chunk)?;
                if value.to_bits() != 0 {
                    floats.fill(*value);
                }
                row.push(Arc::new(floats));
            }
            chunks.push(row);
        }
        Ok(Slots { len, chunk, chunks, pool, under_way: usize::MAX, old: Default::default(), scratch: vec![] })
    }

    /// The same with values, by slot.
    pub(crate) fn with_values(arena: &Arc<Arena>, len: usize, values: &[&[f32]]) -> Result<Slots, Error> {
        for slot in values {
            flat::check("slot", &[slot], len)?;
        }
        let mut slots = Slots::new(arena, len, &vec![0.0; values.len()])?;
        for (slot, values) in slots.all_mut()?.into_iter().zip(values) {
            for (chunk, values) in slot.into_iter().zip(values.chunks(CHUNK)) {
                chunk.copy_from_slice(values);
            }
        }
        Ok(slots)
    }

    /// Elements of each slot.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn count(&self) -> usize {
        self.chunks.len()
    }

    /// `range` in blocks of up to `block` elements, each within one chunk.
    pub(crate) fn blocks(&self, range: Range<usize>, block: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (mut at, end, chunk) = (range.start, range.end, self.chunk);
        std::iter::from_fn(move || {
            let start = at;
            at = (start + block).min(end).min((start / chunk + 1) * chunk);
            (start < end).then_some(start..at)
        })
    }

    /// A block of each slot, to read.
    pub(crate) fn views(&self, block: Range<usize>) -> [&[f32]; MAX_SLOTS] {
        let (chunk, inside) = self.inside(&block);
        let mut views: [&[f32]; MAX_SLOTS] = Default::default();
        for (view, slot) in views.iter_mut().zip(&self.chunks) {
            *view = slot.get(chunk).map_or(&[], |floats| &floats[inside.clone()]);
        }
        views
    }

    /// Where in its chunk a block lies.
    fn inside(&self, block: &Range<usize>) -> (usize, Range<usize>) {
        let chunk = block.start / self.chunk;
        (chunk, block.start - chunk * self.chunk..block.end - chunk * self.chunk)
    }

    /// Before an update, which then asks for every block once, in order.
    pub(crate) fn begin(&mut self) {
        self.under_way = usize::MAX;
    }

    /// After an update: what was replaced is the snapshot's alone.
    pub(crate) fn end(&mut self) {
        if self.old.iter().any(Option::is_some) {
            fence();
        }
        for old in &mut self.old {
            if let Some(old) = old.take() {
                self.pool.put(old);
            }
        }
    }

    /// Has a block of each slot updated; `COW-1`. What is frozen is updated in a copy that stays in the cache, and then
    /// written to where it will be.
    pub(crate) fn update(
        &mut self,
        block: Range<usize>,
        update: impl FnOnce(&mut [&mut [f32]]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (chunk, inside) = self.inside(&block);
        if self.under_way != chunk {
            self.end();
            self.under_way = chunk;
            for (slot, old) in self.chunks.iter_mut().zip(&mut self.old) {
                if let Some(floats) = slot.get_mut(chunk)
                    && Arc::get_mut(floats).is_none()
                {
                    *old = Some(std::mem::replace(floats, self.pool.take()?));
                }
            }
        }
        let (count, len) = (self.chunks.len(), block.len());
        let frozen = self.old.iter().any(Option::is_some);
        if frozen && self.scratch.len() < count * len {
            self.scratch.resize(count * len, 0.0);
        }
        let mut views: [&mut [f32]; MAX_SLOTS] = Default::default();
        let mut targets: [Option<&mut [f32]>; MAX_SLOTS] = Default::default();
        let mut copies = self.scratch.chunks_exact_mut(len.max(1));
        for (index, (slot, old)) in self.chunks.iter_mut().zip(&self.old).enumerate() {
            let Some(floats) = slot.get_mut(chunk).and_then(Arc::get_mut) else { continue };
            let place = &mut floats[inside.clone()];
            match old.as_ref().zip(copies.next()) {
                Some((old, copy)) => {
                    copy.copy_from_slice(&old[inside.clone()]);
                    (views[index], targets[index]) = (copy, Some(place));
                }
                None => views[index] = place,
            }
        }
        update(&mut views[..count])?;
        for (view, target) in views.iter().zip(targets) {
            if let Some(target) = target {
                stream(view, target);
            }
        }
        Ok(())
    }

    /// Seeks what the first update after a snapshot writes into, before there is one.
    pub(crate) fn prepare(&self) {
        self.pool.prepare(self.chunks.iter().map(Vec::len).sum());
    }

    /// All values, by slot; what a snapshot holds is copied before.
    pub(crate) fn all_mut(&mut self) -> Result<Vec<Vec<&mut [f32]>>, Error> {
        self.begin();
        for block in self.blocks(0..self.len, COPIED) {
            self.update(block, |_| Ok(()))?;
        }
        self.end();
        let (len, chunk) = (self.len, self.chunk);
        let used = |index: usize| (len - index * chunk).min(chunk);
        let all = self.chunks.iter_mut().map(|slot| {
            let chunks = slot.iter_mut().enumerate();
            chunks.filter_map(|(i, floats)| Arc::get_mut(floats).map(|floats| &mut floats[..used(i)])).collect()
        });
        Ok(all.collect())
    }

    /// The slots as they are now, without a copy. What the next update writes into is sought meanwhile.
    pub(crate) fn freeze(&self) -> impl Iterator<Item = Cut> {
        self.prepare();
        self.chunks.iter().map(|slot| Cut::chunks(self.len, self.chunk, slot.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds `by` to every element, as an update would.
    fn add(slots: &mut Slots, by: f32) {
        slots.begin();
        // Cut where chunks are not, as by variables.
        for part in [0..5, 5..5, 5..2 * CHUNK + 4, 2 * CHUNK + 4..2 * CHUNK + 9] {
            for block in slots.blocks(part, 4096) {
                let add = |views: &mut [&mut [f32]]| {
                    assert_eq!(views.len(), 2);
                    views.iter_mut().flat_map(|view| view.iter_mut()).for_each(|x| *x += by);
                    Ok(())
                };
                slots.update(block, add).unwrap();
            }
        }
        slots.end();
    }

    #[test] // COW-1
    fn what_is_frozen_does_not_change_and_what_is_not_is_updated_in_place() {
        let len = 2 * CHUNK + 9;
        let values = |k: usize| (0..len).map(|i| (i + k) as f32).collect::<Vec<_>>();
        let mut slots = Slots::with_values(&Arena::new().unwrap(), len, &[&values(0), &values(7)]).unwrap();
        let places = |slots: &Slots| slots.chunks[0].iter().map(|c| c.place().1).collect::<Vec<_>>();
        let before = places(&slots);
        add(&mut slots, 1.0);
        assert_eq!(places(&slots), before);
        let first: Vec<Cut> = slots.freeze().collect();
        add(&mut slots, 1.0);
        let second: Vec<Cut> = slots.freeze().collect();
        add(&mut slots, 1.0);
        assert!(places(&slots).iter().zip(&before).all(|(a, b)| a != b));
        for (cuts, add) in [(first, 1), (second, 2)] {
            for (cut, k) in cuts.iter().zip([0, 7]) {
                assert!(cut.to_vec().unwrap() == values(k + add), "{k} {add}");
            }
        }
        let now: Vec<Cut> = slots.freeze().collect();
        assert!(now[1].to_vec().unwrap() == values(7 + 3));
    }
}
