//! Memory of another process: part of its arena, to be read from or written to.
//!
//! The other process may be broken, so here values are copied through pointers; any bits are an f32. Who borrows some
//! ([`Block`](super::Block), [`LentPart`](crate::LentPart)) says what keeps the other process from writing meanwhile. It cannot take the
//! memory away: an arena does not shrink, which its seal says.

use std::fs::File;
use std::io;

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};

/// What may be done to a [`View`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Seen by the other process.
    Write,
    /// Read; who writes all the same has a page of its own from then on, which nobody else sees.
    Private,
}

/// `len` elements of a file, mapped for as long as this lives.
#[derive(Debug)]
pub(crate) struct View {
    map: MmapRaw,
    len: usize,
    access: Access,
}

impl View {
    /// From `offset`, bytes; an error unless the file has them and cannot lose them.
    pub(crate) fn of(file: &File, offset: u64, len: usize, access: Access) -> io::Result<View> {
        let bytes = len.checked_mul(size_of::<f32>()).filter(|bytes| *bytes > 0);
        let end = bytes.and_then(|bytes| offset.checked_add(bytes as u64));
        let sealed =
            SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?).contains(SealFlag::F_SEAL_SHRINK);
        let (Some(bytes), Some(end)) = (bytes, end) else { return Err(io::ErrorKind::InvalidInput.into()) };
        if !sealed || end > file.metadata()?.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut options = MmapOptions::new();
        options.offset(offset).len(bytes);
        let map = match access {
            Access::Read => options.populate().map_raw_read_only(file)?,
            // Its pages are found as they are written: not all of them may be.
            Access::Write => options.map_raw(file)?,
            Access::Private => {
                // SAFETY: the mapping is used through raw pointers alone, and the file cannot become shorter.
                #[expect(unsafe_code, reason = "a private mapping of a file that another process writes")]
                let map = MmapRaw::from(unsafe { options.map_copy(file)? });
                // All at once: a page at a time costs as much as copying it. An old kernel does so.
                let _ = map.advise(Advice::PopulateRead);
                map
            }
        };
        Ok(View { map, len, access })
    }

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Of the first element; valid for as long as this lives.
    pub(crate) fn as_mut_ptr(&self) -> *mut f32 {
        self.map.as_mut_ptr().cast()
    }

    /// Copies all of `from` to element `at` and after.
    pub(crate) fn write(&self, at: usize, from: &[f32]) -> io::Result<()> {
        self.check(at, from.len())?;
        if self.access != Access::Write {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // SAFETY: `check` keeps it within the mapping, which is writable, page-aligned and none of this process' own memory.
        #[expect(unsafe_code, reason = "another process' memory is not borrowed")]
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.as_mut_ptr().add(at), from.len());
        }
        Ok(())
    }

    /// Fills all of `to` from element `at` on.
    pub(crate) fn read(&self, at: usize, to: &mut [f32]) -> io::Result<()> {
        self.check(at, to.len())?;
        // SAFETY: as in `write`; what is read may change meanwhile, and is an f32 whatever it is.
        #[expect(unsafe_code, reason = "another process' memory is not borrowed")]
        unsafe {
            std::ptr::copy_nonoverlapping(self.map.as_ptr().cast::<f32>().add(at), to.as_mut_ptr(), to.len());
        }
        Ok(())
    }

    fn check(&self, at: usize, len: usize) -> io::Result<()> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        if inside { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Arena;

    #[test]
    fn both_sides_see_the_same_and_nothing_beyond() {
        let arena = Arena::new().unwrap();
        let (mut first, second) = (arena.floats(2000).unwrap(), arena.floats(2000).unwrap());
        first[7] = 3.0;
        let file = arena.reader().unwrap();
        let view = View::of(&file, first.place().1, 2000, Access::Read).unwrap();
        let mut seen = [0.0; 2];
        view.read(6, &mut seen).unwrap();
        assert_eq!(seen, [0.0, 3.0]);
        assert_eq!(view.write(0, &[1.0]).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(view.read(1999, &mut seen).is_err() && view.read(usize::MAX, &mut seen).is_err());
        assert!(View::of(&file, first.place().1, 2000, Access::Write).is_err(), "a reader's file");
        let view = View::of(arena.file(), second.place().1, 2000, Access::Write).unwrap();
        view.write(1998, &[1.0, 2.0]).unwrap();
        assert_eq!((second[1998], second[1999]), (1.0, 2.0));
        // What is changed here is nobody else's, and what they change elsewhere is seen.
        let private = View::of(&file, first.place().1, 2000, Access::Private).unwrap();
        // SAFETY: the first page of a mapping of two.
        unsafe { private.as_mut_ptr().write(9.0) };
        first[1999] = 4.0;
        private.read(0, &mut seen[..1]).unwrap();
        private.read(1999, &mut seen[1..]).unwrap();
        assert_eq!((seen, first[0]), ([9.0, 4.0], 0.0));
        let end = file.metadata().unwrap().len();
        for (offset, len) in [(end, 1), (0, end as usize), (u64::MAX, 1), (0, usize::MAX), (0, 0)] {
            assert!(View::of(&file, offset, len, Access::Read).is_err(), "{offset} {len}");
        }
        assert!(arena.file().set_len(0).is_err(), "an arena never shrinks");
    }
}
