//! Optimizer slots in chunks that a snapshot freezes without a copy.
//!
//! - `COW-1` what a snapshot holds never changes: an update of a frozen chunk is written into another one.
//!
//! An update goes over all elements in order, or, cut where chunks are, over several parts at once. It reads a frozen chunk
//! and writes its successor a few elements at a time, past the caches, which is the memory traffic of an update in place; the old
//! one is the snapshot's from then on. So no step waits for a copy.

use std::ops::Range;
use std::sync::Arc;

use super::{Arena, CHUNK, Cut, Floats, Pool, fence, stream};
use crate::error::Error;
use crate::flat;
use crate::optimizer::MAX_SLOTS;

/// Elements that are copied at a time where nothing is computed. A chunk has a multiple of it.
const COPIED: usize = 4096;
/// Elements of what is frozen that are updated at a time: so few that those after them are being read, and those before
/// them written, while they are computed.
const FEW: usize = 512;
/// Elements of a chunk, at least: one is not worth another thread.
const LEAST: usize = 1 << 16;
/// Chunks of a slot that is not large.
const CHUNKS: usize = 16;

/// All slots of a range of the flat vector.
#[derive(Debug)]
pub(crate) struct Slots {
    len: usize,
    /// Elements of a chunk; the last one may be used in part.
    chunk: usize,
    /// By slot, then in order.
    chunks: Vec<Vec<Arc<Floats>>>,
    pool: Arc<Pool>,
}

/// Part of the slots, whole chunks of them, for an update by one thread. It asks for every block once, in order.
#[derive(Debug)]
pub(crate) struct SlotsMut<'a> {
    chunk: usize,
    /// Number of the first chunk.
    first: usize,
    count: usize,
    chunks: [&'a mut [Arc<Floats>]; MAX_SLOTS],
    pool: &'a Pool,
    /// Number of the chunk under way, and what its frozen predecessors hold, by slot.
    under_way: usize,
    old: [Option<Arc<Floats>>; MAX_SLOTS],
    /// A few elements of each slot while they are updated, where it is frozen.
    scratch: Vec<f32>,
}

/// `range` in blocks of up to `block` elements, each within one chunk.
fn blocks(chunk: usize, range: Range<usize>, block: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let (mut at, end) = (range.start, range.end);
    std::iter::from_fn(move || {
        let start = at;
        at = (start + block).min(end).min((start / chunk + 1) * chunk);
        (start < end).then_some(start..at)
    })
}

/// The number of its chunk, and where in that a block lies.
fn inside(chunk: usize, block: &Range<usize>) -> (usize, Range<usize>) {
    let number = block.start / chunk;
    (number, block.start - number * chunk..block.end - number * chunk)
}

/// Copies `from`, which is as long: without a call, so that the update need not wait for all of it.
fn few(to: &mut [f32], from: &[f32]) {
    #[expect(clippy::manual_memcpy, reason = "the call takes a tenth longer for the whole update")]
    for i in 0..to.len() {
        to[i] = from[i];
    }
}

impl Slots {
    /// Fresh ones of `len` elements, each slot with its initial value. Memory that is 0 is not touched yet.
    pub(crate) fn new(arena: &Arc<Arena>, len: usize, initial: &[f32]) -> Result<Slots, Error> {
        let chunk = len.div_ceil(CHUNKS).next_multiple_of(COPIED).clamp(LEAST, CHUNK).min(len.max(1));
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
        Ok(Slots { len, chunk, chunks, pool })
    }

    /// The same with values, by slot.
    pub(crate) fn with_values(arena: &Arc<Arena>, len: usize, values: &[&[f32]]) -> Result<Slots, Error> {
        for slot in values {
            flat::check("slot", &[slot], len)?;
        }
        let mut slots = Slots::new(arena, len, &vec![0.0; values.len()])?;
        let size = slots.chunk;
        for (slot, values) in slots.all_mut()?.into_iter().zip(values) {
            slot.into_iter().zip(values.chunks(size)).for_each(|(chunk, values)| chunk.copy_from_slice(values));
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

    /// `range` in blocks of up to `block` elements, to view them.
    pub(crate) fn blocks(&self, range: Range<usize>, block: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        blocks(self.chunk, range, block)
    }

    /// A block of each slot, to read.
    pub(crate) fn views(&self, block: Range<usize>) -> [&[f32]; MAX_SLOTS] {
        let (chunk, inside) = inside(self.chunk, &block);
        let mut views: [&[f32]; MAX_SLOTS] = Default::default();
        for (view, slot) in views.iter_mut().zip(&self.chunks) {
            *view = slot.get(chunk).map_or(&[], |floats| &floats[inside.clone()]);
        }
        views
    }

    /// All of them, for one update.
    pub(crate) fn update(&mut self) -> SlotsMut<'_> {
        let mut chunks: [&mut [Arc<Floats>]; MAX_SLOTS] = Default::default();
        let count = self.chunks.len();
        chunks.iter_mut().zip(&mut self.chunks).for_each(|(place, slot)| *place = slot);
        SlotsMut::new(self.chunk, 0, count, chunks, &self.pool)
    }

    /// Seeks what the first update after a snapshot writes into, before there is one.
    pub(crate) fn prepare(&self) {
        self.pool.prepare(self.chunks.iter().map(Vec::len).sum());
    }

    /// All values, by slot; what a snapshot holds is copied before.
    pub(crate) fn all_mut(&mut self) -> Result<Vec<Vec<&mut [f32]>>, Error> {
        let len = self.len;
        let mut slots = self.update();
        for block in slots.blocks(0..len, COPIED) {
            slots.update(block, |_, _| Ok(()))?;
        }
        drop(slots);
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

impl<'a> SlotsMut<'a> {
    fn new(
        chunk: usize,
        first: usize,
        count: usize,
        chunks: [&'a mut [Arc<Floats>]; MAX_SLOTS],
        pool: &'a Pool,
    ) -> SlotsMut<'a> {
        let (old, scratch) = (Default::default(), Vec::new());
        SlotsMut { chunk, first, count, chunks, pool, under_way: usize::MAX, old, scratch }
    }

    /// The first place after `start` where there may be a cut between two threads, each of which is to have `grain` elements.
    pub(crate) fn cut(&self, start: usize, grain: usize) -> usize {
        let stride = grain.next_multiple_of(self.chunk);
        (start / stride + 1) * stride
    }

    /// Where a range can be cut for two threads, near its middle; `None` if it is not worth it.
    pub(crate) fn middle(&self, range: &Range<usize>, grain: usize) -> Option<usize> {
        let stride = grain.next_multiple_of(self.chunk);
        let at = (range.start + range.len() / 2 + stride / 2) / stride * stride;
        (range.len() > grain && range.start < at && at < range.end).then_some(at)
    }

    /// Those before and from element `at` on, which a chunk begins with ([`SlotsMut::middle`]). To be called before any update.
    pub(crate) fn split(mut self, at: usize) -> (SlotsMut<'a>, SlotsMut<'a>) {
        let number = at / self.chunk;
        let mut left: [&'a mut [Arc<Floats>]; MAX_SLOTS] = Default::default();
        let mut right: [&'a mut [Arc<Floats>]; MAX_SLOTS] = Default::default();
        for ((left, right), chunks) in left.iter_mut().zip(&mut right).zip(&mut self.chunks) {
            let chunks = std::mem::take(chunks);
            let middle = number.saturating_sub(self.first).min(chunks.len());
            (*left, *right) = chunks.split_at_mut(middle);
        }
        let part = |first, chunks| SlotsMut::new(self.chunk, first, self.count, chunks, self.pool);
        (part(self.first, left), part(number, right))
    }

    /// `range` in blocks of up to `block` elements.
    pub(crate) fn blocks(&self, range: Range<usize>, block: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        blocks(self.chunk, range, block)
    }

    /// Has a block of each slot updated, in parts; `update` is told which elements of the block come with it. `COW-1`: what
    /// is frozen is updated in a copy that stays in the cache, and then written to where it will be.
    pub(crate) fn update(
        &mut self,
        block: Range<usize>,
        mut update: impl FnMut(Range<usize>, &mut [&mut [f32]]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (number, inside) = inside(self.chunk, &block);
        let chunk = number.wrapping_sub(self.first);
        if self.under_way != number {
            self.release();
            self.under_way = number;
            for (slot, old) in self.chunks.iter_mut().zip(&mut self.old) {
                if let Some(floats) = slot.get_mut(chunk)
                    && Arc::get_mut(floats).is_none()
                {
                    *old = Some(std::mem::replace(floats, self.pool.take()?));
                }
            }
        }
        let (count, len) = (self.count, block.len());
        let mut places: [&mut [f32]; MAX_SLOTS] = Default::default();
        let mut frozen: [Option<&[f32]>; MAX_SLOTS] = Default::default();
        for (index, (slot, old)) in self.chunks.iter_mut().zip(&self.old).enumerate() {
            let Some(floats) = slot.get_mut(chunk).and_then(Arc::get_mut) else { continue };
            places[index] = &mut floats[inside.clone()];
            frozen[index] = old.as_ref().map(|old| &old[inside.clone()]);
        }
        if frozen.iter().all(Option::is_none) {
            return update(0..len, &mut places[..count]);
        }
        self.scratch.resize(count * FEW, 0.0);
        for part in blocks(FEW, 0..len, FEW) {
            let mut views: [&mut [f32]; MAX_SLOTS] = Default::default();
            let slots = views.iter_mut().zip(&mut places).zip(&frozen);
            for (((view, place), old), copy) in slots.zip(self.scratch.chunks_exact_mut(FEW)) {
                *view = match old {
                    Some(old) => {
                        let copy = &mut copy[..part.len()];
                        few(copy, &old[part.clone()]);
                        copy
                    }
                    None => &mut place[part.clone()],
                };
            }
            update(part.clone(), &mut views[..count])?;
            for ((place, old), copy) in places.iter_mut().zip(&frozen).zip(self.scratch.chunks_exact(FEW)) {
                if old.is_some() {
                    stream(&copy[..part.len()], &mut place[part.clone()]);
                }
            }
        }
        Ok(())
    }

    /// What was replaced is the snapshot's alone.
    fn release(&mut self) {
        if self.old.iter().any(Option::is_some) {
            fence();
        }
        for old in &mut self.old {
            if let Some(old) = old.take() {
                self.pool.put(old);
            }
        }
    }
}

impl Drop for SlotsMut<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds `by` to every element, as an update would.
    fn add(slots: &mut Slots, by: f32) {
        let len = slots.len;
        let at = slots.update().middle(&(0..len), 4096).unwrap();
        let (left, right) = slots.update().split(at);
        // Cut where chunks are not, as by variables; both halves at the same time.
        let update = |mut slots: SlotsMut<'_>, parts: &[Range<usize>]| {
            for block in parts.iter().flat_map(|part| slots.blocks(part.clone(), 4096)).collect::<Vec<_>>() {
                let add = |part: Range<usize>, views: &mut [&mut [f32]]| {
                    assert!(views.len() == 2 && views.iter().all(|view| view.len() == part.len()));
                    views.iter_mut().flat_map(|view| view.iter_mut()).for_each(|x| *x += by);
                    Ok(())
                };
                slots.update(block, add).unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| update(left, &[0..5, 5..5, 5..at]));
            update(right, &[at..2 * CHUNK + 4, 2 * CHUNK + 4..2 * CHUNK + 9]);
        });
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
