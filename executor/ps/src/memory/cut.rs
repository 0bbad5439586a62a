//! Values as they were at one point of the order, piece by piece, while training goes on.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Arena, CHUNK, Floats, Pool, fence};
use crate::error::Error;

/// Where parameters are that somebody else keeps: the tensors of a trainer without ps.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Copies the elements `range` of the flat vector. They do not change before [`LocalTrainer::apply`] has returned
    /// for the next time.
    ///
    /// [`LocalTrainer::apply`]: crate::LocalTrainer::apply
    fn copy(&self, range: Range<usize>, to: &mut [f32]);
}

/// Values that nobody else changes.
impl Source for Vec<f32> {
    fn copy(&self, range: Range<usize>, to: &mut [f32]) {
        if let Some(values) = self.get(range).filter(|values| values.len() == to.len()) {
            to.copy_from_slice(values);
        }
    }
}

/// A flat vector, frozen.
#[derive(Debug, Clone)]
pub struct Cut {
    len: usize,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// In one piece of memory.
    Whole(Arc<Floats>),
    /// In chunks of so many elements.
    Chunks(usize, Vec<Arc<Floats>>),
    /// Copied as it is asked for, or just before it changes.
    Copying(Arc<Copying>),
}

/// Consecutive elements of a [`Cut`]; they stay as long as this does.
#[derive(Debug, Clone)]
pub struct Piece {
    floats: Arc<Floats>,
    range: Range<usize>,
}

impl Piece {
    /// The memory, and which of its elements.
    pub fn place(&self) -> (&Arc<Floats>, Range<usize>) {
        (&self.floats, self.range.clone())
    }

    /// Its elements.
    pub fn floats(&self) -> &[f32] {
        &self.floats[self.range.clone()]
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        crate::cast::bytes(self.floats())
    }
}

impl Cut {
    pub(crate) fn whole(floats: Arc<Floats>) -> Cut {
        Cut { len: floats.len(), kind: Kind::Whole(floats) }
    }

    pub(crate) fn chunks(len: usize, chunk: usize, chunks: Vec<Arc<Floats>>) -> Cut {
        Cut { len, kind: Kind::Chunks(chunk, chunks) }
    }

    pub(crate) fn copying(copying: Arc<Copying>) -> Cut {
        Cut { len: copying.len, kind: Kind::Copying(copying) }
    }

    /// A copy of values.
    pub fn of(arena: &Arc<Arena>, values: &[f32]) -> Result<Cut, Error> {
        let mut floats = arena.floats(values.len())?;
        floats.copy_from_slice(values);
        Ok(Cut::whole(Arc::new(floats)))
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pieces of at most [`CHUNK`] elements, in order. One that is still to be copied is copied when its turn comes.
    pub fn pieces(&self) -> impl Iterator<Item = Result<Piece, Error>> + '_ {
        let chunk = if let Kind::Chunks(chunk, _) = &self.kind { *chunk } else { CHUNK };
        (0..self.len).step_by(chunk).enumerate().map(move |(index, start)| {
            let end = (start + chunk).min(self.len);
            let floats = match &self.kind {
                Kind::Whole(floats) => return Ok(Piece { floats: Arc::clone(floats), range: start..end }),
                Kind::Chunks(_, chunks) => chunks.get(index).cloned(),
                Kind::Copying(copying) => Some(copying.piece(index)?),
            };
            let missing = || Error::Length { what: "chunks", expected: index + 1, found: index };
            Ok(Piece { floats: floats.ok_or_else(missing)?, range: 0..end - start })
        })
    }

    /// The elements, copied.
    pub fn to_vec(&self) -> Result<Vec<f32>, Error> {
        let mut all = Vec::with_capacity(self.len);
        for piece in self.pieces() {
            all.extend_from_slice(piece?.floats());
        }
        Ok(all)
    }
}

/// Parameters that somebody else changes in place: each chunk is copied once, by whoever comes first, the thread that
/// writes the snapshot, one that copies ahead, or the update that would change it.
#[derive(Debug)]
pub(crate) struct Copying {
    len: usize,
    source: Box<dyn Source>,
    chunks: Vec<Mutex<Option<Arc<Floats>>>>,
    pool: Arc<Pool>,
}

impl Copying {
    pub(crate) fn new(len: usize, source: Box<dyn Source>, pool: &Arc<Pool>) -> Copying {
        let chunks = (0..len.div_ceil(CHUNK)).map(|_| Mutex::default()).collect();
        Copying { len, source, chunks, pool: Arc::clone(pool) }
    }

    fn piece(&self, index: usize) -> Result<Arc<Floats>, Error> {
        let Some(chunk) = self.chunks.get(index) else {
            return Err(Error::Length { what: "chunks", expected: self.chunks.len(), found: index });
        };
        let mut chunk = chunk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(floats) = &*chunk {
            return Ok(Arc::clone(floats));
        }
        let mut floats = self.pool.take()?;
        let range = index * CHUNK..((index + 1) * CHUNK).min(self.len);
        if let Some(floats) = Arc::get_mut(&mut floats) {
            let len = range.len();
            self.source.copy(range, &mut floats[..len]);
            fence();
        }
        Ok(Arc::clone(chunk.insert(floats)))
    }

    /// Copies the chunks of these elements, what is not copied yet.
    pub(crate) fn before_change(&self, elements: &Range<usize>) -> Result<(), Error> {
        (elements.start / CHUNK..elements.end.div_ceil(CHUNK)).try_for_each(|index| self.piece(index).map(drop))
    }

    /// Copies all that is not copied yet; from the end, as those who read begin at the other one.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        (0..self.chunks.len()).rev().try_for_each(|index| self.piece(index).map(drop))
    }

    /// Copies ahead, on a thread of its own.
    pub(crate) fn start(self: &Arc<Self>) {
        let copying = Arc::clone(self);
        // Without a thread the next update copies; an error comes again there.
        let _ = std::thread::Builder::new().name("snapshot".into()).spawn(move || {
            for index in 0..copying.chunks.len() {
                if copying.piece(index).is_err() {
                    return;
                }
            }
        });
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        for chunk in &mut self.chunks {
            if let Some(floats) = chunk.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
                self.pool.put(floats);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts from a number on.
    #[derive(Debug)]
    struct Counting(f32);

    impl Source for Counting {
        fn copy(&self, range: Range<usize>, to: &mut [f32]) {
            to.iter_mut().zip(range).for_each(|(to, i)| *to = self.0 + (i % 1000) as f32);
        }
    }

    #[test] // COW-1
    fn what_changes_across_an_edge_is_copied_on_both_sides_of_it() {
        let pool = Pool::new(&Arena::new().unwrap(), CHUNK);
        let copying = Copying::new(2 * CHUNK + 5, Box::new(Counting(1.0)), &pool);
        let copied = |elements: Range<usize>| {
            copying.before_change(&elements).unwrap();
            copying.chunks.iter().map(|chunk| chunk.lock().unwrap().is_some()).collect::<Vec<_>>()
        };
        assert_eq!(copied(CHUNK - 1..CHUNK), [true, false, false]);
        assert_eq!(copied(2 * CHUNK - 1..2 * CHUNK + 1), [true, true, true]);
    }

    #[test] // COW-1
    fn whoever_copies_first_each_chunk_is_copied_once_and_stays() {
        let len = 3 * CHUNK + 5;
        let pool = Pool::new(&Arena::new().unwrap(), CHUNK);
        for finished_first in [false, true] {
            let copying = Arc::new(Copying::new(len, Box::new(Counting(1.0)), &pool));
            copying.start();
            if finished_first {
                copying.finish().unwrap();
            }
            let cut = Cut::copying(Arc::clone(&copying));
            let read = cut.to_vec().unwrap();
            copying.finish().unwrap();
            assert!(read.len() == len && read.iter().enumerate().all(|(i, x)| *x == 1.0 + (i % 1000) as f32));
            let places = |cut: &Cut| cut.pieces().map(|p| p.unwrap().floats.place().1).collect::<Vec<_>>();
            assert_eq!(places(&cut), places(&cut));
        }
    }
}
