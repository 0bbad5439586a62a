//! One direction of a shared-memory connection: a ring of bytes that one process writes and another reads.
//!
//! Two counters say how many bytes were ever written and read; their difference is what lies in the ring. Each side
//! changes its own, after it has copied, so the other never sees bytes that are not there. Before a side sleeps it
//! says how many bytes it wants; the other side wakes it only when there are as many. Both then look again, with a
//! fence between the two accesses, so that one of them sees the other and no wake-up is lost.
//!
//! The other process may be broken: what it writes into the counters is checked, and the bytes are only ever copied
//! through pointers, never borrowed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::MmapRaw;

/// Bytes in flight per direction: small enough to stay in a core's own cache between the two copies.
pub(super) const CAPACITY: usize = 1 << 19;
/// Copied before the other side is told of it.
pub(super) const CHUNK: usize = 1 << 16;
/// Who sleeps is woken for at least this much (if it needs as much): a wake-up costs as much as copying a tenth of it.
pub(super) const WAKE: usize = CAPACITY / 4;
const CONTROL: usize = 4096;

/// Bytes of shared memory for two rings.
pub(super) const MEMORY: usize = 2 * (CONTROL + CAPACITY);

/// Each counter has a cache line of its own: the two sides write them all the time.
#[repr(C, align(64))]
struct Line(AtomicU64);

#[repr(C)]
struct Control {
    written: Line,
    read: Line,
    /// Bytes that the sleeping reader wants; 0 while it is awake.
    reader_wants: Line,
    /// Room that the sleeping writer wants; 0 while it is awake.
    writer_wants: Line,
}

#[derive(Debug)]
pub(super) struct Ring {
    memory: Arc<MmapRaw>,
    offset: usize,
}

impl Ring {
    /// Ring 0 or 1 of a mapping of `MEMORY` bytes.
    pub(super) fn new(memory: &Arc<MmapRaw>, number: usize) -> io::Result<Ring> {
        if memory.len() != MEMORY || number > 1 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Ring { memory: Arc::clone(memory), offset: number * (CONTROL + CAPACITY) })
    }

    fn control(&self) -> &Control {
        // SAFETY: the offset is within the mapping (`new`) and a multiple of the page size, to which the mapping is
        // aligned; the mapping lives as long as `self`; all fields are atomics, valid with any bits, so that others
        // may write them while this is borrowed.
        unsafe { &*self.memory.as_mut_ptr().add(self.offset).cast::<Control>() }
    }

    fn data(&self, at: usize) -> *mut u8 {
        // SAFETY: `at` is below CAPACITY in all calls, so this stays within the ring's part of the mapping.
        unsafe { self.memory.as_mut_ptr().add(self.offset + CONTROL + at) }
    }

    /// Bytes that can be read.
    pub(super) fn used(&self) -> io::Result<usize> {
        let control = self.control();
        let read = control.read.0.load(Ordering::Acquire);
        let used = control.written.0.load(Ordering::Acquire).wrapping_sub(read);
        match usize::try_from(used) {
            Ok(used) if used <= CAPACITY => Ok(used),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the other process broke the ring's counters")),
        }
    }

    /// Bytes that can be written.
    pub(super) fn room(&self) -> io::Result<usize> {
        Ok(CAPACITY - self.used()?)
    }

    /// Copies as many bytes as fit, at most a chunk, into the ring; 0 if it is full.
    pub(super) fn write(&self, from: &[u8]) -> io::Result<usize> {
        let count = self.room()?.min(CHUNK).min(from.len());
        let written = &self.control().written.0;
        let total = written.load(Ordering::Relaxed);
        let at = (total % CAPACITY as u64) as usize;
        let first = count.min(CAPACITY - at);
        // SAFETY: both parts lie within the ring and within `from`, and the reader does not touch them before
        // `written` says that they are there.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.data(at), first);
            std::ptr::copy_nonoverlapping(from[first..].as_ptr(), self.data(0), count - first);
        }
        written.store(total.wrapping_add(count as u64), Ordering::Release);
        Ok(count)
    }

    /// Copies as many bytes as there are, at most a chunk, out of the ring; 0 if it is empty.
    pub(super) fn read(&self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.used()?.min(CHUNK).min(to.len());
        let read = &self.control().read.0;
        let total = read.load(Ordering::Relaxed);
        let at = (total % CAPACITY as u64) as usize;
        let first = count.min(CAPACITY - at);
        // SAFETY: as in `write`; the writer does not touch these bytes before `read` says that they are free.
        unsafe {
            std::ptr::copy_nonoverlapping(self.data(at), to.as_mut_ptr(), first);
            std::ptr::copy_nonoverlapping(self.data(0), to[first..].as_mut_ptr(), count - first);
        }
        read.store(total.wrapping_add(count as u64), Ordering::Release);
        Ok(count)
    }

    /// The reader is about to sleep until there are `wanted` bytes; false if they are there already.
    pub(super) fn reader_sleeps(&self, wanted: usize) -> io::Result<bool> {
        sleeps(&self.control().reader_wants.0, wanted, || self.used())
    }

    /// The writer is about to sleep until there is room for `wanted` bytes; false if there is already.
    pub(super) fn writer_sleeps(&self, wanted: usize) -> io::Result<bool> {
        sleeps(&self.control().writer_wants.0, wanted, || self.room())
    }

    /// Whether the reader sleeps and has now what it wants: the writer must wake it, this once.
    pub(super) fn must_wake_reader(&self) -> io::Result<bool> {
        must_wake(&self.control().reader_wants.0, || self.used())
    }

    pub(super) fn must_wake_writer(&self) -> io::Result<bool> {
        must_wake(&self.control().writer_wants.0, || self.room())
    }
}

fn sleeps(wants: &AtomicU64, wanted: usize, there: impl Fn() -> io::Result<usize>) -> io::Result<bool> {
    wants.store(wanted as u64, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let sleeps = there()? < wanted;
    if !sleeps {
        wants.store(0, Ordering::SeqCst);
    }
    Ok(sleeps)
}

fn must_wake(wants: &AtomicU64, there: impl Fn() -> io::Result<usize>) -> io::Result<bool> {
    fence(Ordering::SeqCst);
    let wanted = wants.load(Ordering::SeqCst);
    Ok(wanted != 0 && there()? as u64 >= wanted && wants.swap(0, Ordering::SeqCst) != 0)
}

#[cfg(test)]
mod tests {
    use memmap2::MmapOptions;

    use super::*;

    fn ring() -> Ring {
        let memory = MmapOptions::new().len(MEMORY).map_anon().unwrap();
        Ring::new(&Arc::new(memory.into()), 1).unwrap()
    }

    #[test]
    fn bytes_come_out_as_they_went_in_around_the_end_of_the_ring() {
        let ring = ring();
        let (mut sent, mut received) = (0u32, 0u32);
        let mut taken = vec![0; 40_000];
        for round in 0..200 {
            let part: Vec<u8> = (0..10_000 + round * 77).map(|i| (sent + i) as u8).collect();
            sent += ring.write(&part).unwrap() as u32;
            while ring.used().unwrap() > 20_000 {
                let count = ring.read(&mut taken).unwrap();
                assert!(taken[..count].iter().enumerate().all(|(i, &b)| b == (received + i as u32) as u8));
                received += count as u32;
            }
        }
        assert!(received > 2 * CAPACITY as u32, "it went around");
    }

    #[test]
    fn a_full_ring_takes_nothing_and_counters_out_of_range_are_an_error() {
        let ring = ring();
        while ring.write(&[1; CHUNK]).unwrap() > 0 {}
        assert_eq!((ring.used().unwrap(), ring.room().unwrap()), (CAPACITY, 0));
        ring.control().written.0.fetch_add(1, Ordering::SeqCst);
        assert_eq!(ring.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn who_sleeps_is_woken_once_and_only_for_what_it_wants() {
        let ring = ring();
        assert!(ring.reader_sleeps(100).unwrap());
        ring.write(&[0; 99]).unwrap();
        assert!(!ring.must_wake_reader().unwrap());
        ring.write(&[0; 1]).unwrap();
        assert!(ring.must_wake_reader().unwrap() && !ring.must_wake_reader().unwrap());
        assert!(!ring.reader_sleeps(100).unwrap() && !ring.must_wake_reader().unwrap());
    }
}
