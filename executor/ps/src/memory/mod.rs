//! Memory of parameters and slots: pieces of an anonymous file, so that another process can be given them.
//!
//! A checkpoint is read from memory that nobody changes any more, while training goes on in other memory. What is
//! frozen so lies in a file that has no name (`memfd_create`): whoever holds its descriptor still reads it when the
//! process that filled it has died. The kernel frees it with the last descriptor and mapping.

mod blocks;
mod chunks;
mod cut;
mod pool;
mod stream;
mod view;

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::Error;

pub use crate::cast::bytes_mut;
pub(crate) use blocks::needed;
pub use blocks::{Block, Blocks};
pub(crate) use chunks::{Slots, SlotsMut};
pub(crate) use cut::Copying;
pub use cut::{Cut, Piece, Source};
pub(crate) use pool::Pool;
pub(crate) use stream::fence;
pub use stream::stream;
pub(crate) use view::{Access, View};

/// Elements of a slice of a snapshot, 4 MiB: the unit in which slots are frozen, copied and written.
pub const CHUNK: usize = 1 << 20;

/// Offsets in the file are multiples of it.
const PAGE: u64 = 4096;

/// An anonymous file that grows as memory is asked of it.
#[derive(Debug)]
pub struct Arena {
    file: File,
    space: Mutex<Space>,
}

#[derive(Debug, Default)]
struct Space {
    end: u64,
    /// Offset and bytes of what was given back.
    free: Vec<(u64, u64)>,
}

/// Elements in an arena, 0 in the beginning. Given back, with its memory, when it is dropped.
#[derive(Debug)]
pub struct Floats {
    arena: Arc<Arena>,
    offset: u64,
    len: usize,
    /// `None` where there are no elements: nothing cannot be mapped.
    map: Option<MmapRaw>,
}

impl Arena {
    /// An empty one.
    pub fn new() -> Result<Arc<Arena>, Error> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"tfos-parameters", flags).map_err(io::Error::from);
        let file = File::from(fd.map_err(Error::memory)?);
        // Other processes map it: nobody can take it away under their feet.
        let sealed = fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).map_err(io::Error::from);
        sealed.map_err(Error::memory)?;
        Ok(Arc::new(Arena { file, space: Mutex::default() }))
    }

    /// Memory for `len` elements, all 0.
    pub fn floats(self: &Arc<Self>, len: usize) -> Result<Floats, Error> {
        let bytes = (len as u64 * 4).next_multiple_of(PAGE);
        if len == 0 {
            return Ok(Floats { arena: Arc::clone(self), offset: 0, len, map: None });
        }
        let offset = self.reserve(bytes).map_err(Error::memory)?;
        let map = MmapOptions::new().offset(offset).len(len * 4).map_raw(&self.file).map_err(Error::memory)?;
        Ok(Floats { arena: Arc::clone(self), offset, len, map: Some(map) })
    }

    /// For another process that may change what lies in it.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// For another process that reads it.
    pub(crate) fn reader(&self) -> io::Result<File> {
        // Without /proc its own descriptor has to do.
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).or_else(|_| self.file.try_clone())
    }

    /// Whether memory was ever asked of it: the first of it lies at its beginning.
    pub(crate) fn is_used(&self) -> bool {
        self.space.lock().unwrap_or_else(PoisonError::into_inner).end > 0
    }

    fn reserve(&self, bytes: u64) -> io::Result<u64> {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = space.free.iter().position(|(_, size)| *size == bytes) {
            return Ok(space.free.swap_remove(at).0);
        }
        let offset = space.end;
        self.file.set_len(offset + bytes)?;
        space.end = offset + bytes;
        Ok(offset)
    }
}

impl AsFd for Arena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Floats {
    /// Where it lies: the file, and the offset of the first element in it, bytes.
    pub fn place(&self) -> (&Arc<Arena>, u64) {
        (&self.arena, self.offset)
    }

    /// Has the kernel find the memory now rather than when it is first written to.
    pub(crate) fn populate(&self) {
        let Some(map) = &self.map else { return };
        // Piece by piece: nobody in the process can map anything meanwhile.
        for at in (0..self.len * 4).step_by(CHUNK * 4) {
            // An old kernel does not know how: then it is found at the first write, as always.
            let _ = map.advise_range(Advice::PopulateWrite, at, (self.len * 4 - at).min(CHUNK * 4));
        }
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let Some(map) = &self.map else { return &[] };
        // SAFETY: `len` f32 of a mapping that lives as long as `self`, page-aligned; any bits are an f32. An offset belongs to
        // one `Floats` at a time. Another process that writes here does so in turn with this one (`transport::Window`); one
        // that does not spoils numbers of its own.
        #[expect(unsafe_code, reason = "a mapping is a raw pointer")]
        unsafe {
            std::slice::from_raw_parts(map.as_ptr().cast(), self.len)
        }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        let Some(map) = &self.map else { return &mut [] };
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        #[expect(unsafe_code, reason = "a mapping is a raw pointer")]
        unsafe {
            std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), self.len)
        }
    }
}

impl Drop for Floats {
    fn drop(&mut self) {
        if self.map.take().is_none() {
            return;
        }
        let bytes = (self.len as u64 * 4).next_multiple_of(PAGE);
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // What cannot be punched out would not read as 0 when it is used again: then it is not.
        if fallocate(&self.arena.file, hole, self.offset as i64, bytes as i64).is_ok() {
            let mut space = self.arena.space.lock().unwrap_or_else(PoisonError::into_inner);
            space.free.push((self.offset, bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_apart_and_given_back() {
        let arena = Arena::new().unwrap();
        let mut a = arena.floats(3000).unwrap();
        let b = arena.floats(5).unwrap();
        a.fill(1.0);
        assert!(b.iter().all(|&x| x == 0.0) && arena.floats(0).unwrap().is_empty());
        let (_, offset) = a.place();
        drop(a);
        let again = arena.floats(3000).unwrap();
        assert_eq!((again.place().1, again.iter().copied().fold(0.0, f32::max)), (offset, 0.0));
        again.populate();
        assert_eq!(arena.file.metadata().unwrap().len(), 3 * PAGE + PAGE);
    }
}
