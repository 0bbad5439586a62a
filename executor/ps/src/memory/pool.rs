//! Memory of one size that is used again, and found before it is needed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Arena, Floats};
use crate::error::Error;

/// Elements, 1 MiB, below which a thread costs more than what it would find.
const LEAST: usize = 1 << 18;

/// Pieces of `len` elements. Some of them may still be read by a snapshot; they are used again when it lets go.
#[derive(Debug)]
pub(crate) struct Pool {
    arena: Arc<Arena>,
    len: usize,
    kept: Mutex<Vec<Arc<Floats>>>,
    /// How many more are to be found in the background.
    wanted: AtomicUsize,
}

impl Pool {
    pub(crate) fn new(arena: &Arc<Arena>, len: usize) -> Arc<Pool> {
        Arc::new(Pool { arena: Arc::clone(arena), len, kept: Mutex::default(), wanted: AtomicUsize::new(0) })
    }

    /// One that nobody reads, with any content.
    pub(crate) fn take(&self) -> Result<Arc<Floats>, Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let free = kept.iter_mut().rposition(|piece| Arc::get_mut(piece).is_some());
        if let Some(at) = free {
            return Ok(kept.swap_remove(at));
        }
        drop(kept);
        // Found here, so that much less is left to find.
        let _ = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        Ok(Arc::new(self.arena.floats(self.len)?))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Used again once its other owners let go.
    pub(crate) fn put(&self, piece: Arc<Floats>) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
    }

    /// Sees to it, on a thread of its own, that `count` can soon be taken without waiting for the kernel.
    pub(crate) fn prepare(self: &Arc<Self>, count: usize) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let free = kept.iter_mut().filter_map(Arc::get_mut).count();
        drop(kept);
        let missing = count.saturating_sub(free);
        if missing * self.len < LEAST || self.wanted.swap(missing, Ordering::Relaxed) > 0 {
            return;
        }
        let pool = Arc::clone(self);
        let work = move || {
            let next = |n: usize| n.checked_sub(1);
            while pool.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok() {
                // No memory: whoever needs it will say so.
                let Ok(piece) = pool.arena.floats(pool.len) else { return };
                piece.populate();
                pool.put(Arc::new(piece));
            }
        };
        // Without a thread it is found when it is needed.
        let _ = std::thread::Builder::new().name("prepare".into()).spawn(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_piece_that_is_read_is_not_given_away_and_prepared_ones_are() {
        let pool = Pool::new(&Arena::new().unwrap(), LEAST);
        let piece = pool.take().unwrap();
        let reader = Arc::clone(&piece);
        pool.put(piece);
        let other = pool.take().unwrap();
        assert_ne!(other.place().1, reader.place().1);
        let offset = reader.place().1;
        drop(reader);
        assert_eq!(pool.take().unwrap().place().1, offset);
        pool.prepare(3);
        let deadline = Instant::now() + Duration::from_secs(10);
        while pool.len() < 3 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
