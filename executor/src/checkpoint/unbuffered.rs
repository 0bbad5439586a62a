//! A file that is written past the kernel's cache, so that the processors are left to training.
//!
//! Through the cache a gigabyte costs about a second of one core: pages are sought, filled, and written back later by threads
//! of the kernel that give way to nobody. Past it the disk takes the bytes from this process' memory, at a tenth of that. What
//! a file system does not take so goes through its cache.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use memmap2::MmapMut;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};

/// Bytes of one write: enough to keep a disk busy.
const WRITE: usize = 4 << 20;

/// Offsets, lengths and memory are multiples of it: no disk asks for more.
const ALIGN: usize = 4096;

/// Writes from the beginning on; memory of one write at a time.
#[derive(Debug)]
pub(super) struct Unbuffered {
    file: File,
    /// Whether the cache is passed by.
    direct: bool,
    /// What the disk takes from: its memory begins with a page.
    room: MmapMut,
    filled: usize,
    /// Bytes of the file before those.
    at: u64,
}

impl Unbuffered {
    /// An empty file, which will have `size` bytes.
    pub(super) fn new(file: File, size: u64) -> io::Result<Self> {
        // Its place on the disk at once: then no write changes its size. A file system that cannot do that finds it later.
        let placed = fallocate(&file, FallocateFlags::empty(), 0, size.try_into().unwrap_or(i64::MAX));
        if let Err(full @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) = placed {
            return Err(full.into());
        }
        let direct = fcntl(&file, FcntlArg::F_SETFL(OFlag::O_DIRECT)).is_ok();
        Ok(Self { file, direct, room: MmapMut::map_anon(WRITE)?, filled: 0, at: 0 })
    }

    /// Adds these bytes, which are best in the core's cache already.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let place = self.room.get_mut(self.filled..).unwrap_or_default();
            let (now, later) = bytes.split_at(bytes.len().min(place.len()));
            place[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            if self.filled == self.room.len() {
                self.put(self.filled)?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// All of it is on the disk.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.put(self.filled / ALIGN * ALIGN)?;
        if self.filled > 0 {
            self.through_cache()?;
            self.put(self.filled)?;
        }
        self.file.sync_data()
    }

    /// Writes the first `len` of what has come.
    fn put(&mut self, len: usize) -> io::Result<()> {
        let bytes = self.room.get(..len).unwrap_or_default();
        let written = self.file.write_all_at(bytes, self.at);
        if self.direct && written.as_ref().is_err_and(|e| e.kind() == ErrorKind::InvalidInput) {
            // The file system has said yes, and does not mean these.
            self.through_cache()?;
            return self.put(len);
        }
        written?;
        if !self.direct {
            begin_write_back(&self.file, self.at, len);
        }
        self.room.copy_within(len..self.filled, 0);
        self.filled -= len;
        self.at += len as u64;
        Ok(())
    }

    fn through_cache(&mut self) -> io::Result<()> {
        self.direct = false;
        fcntl(&self.file, FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok(())
    }
}

/// Has the disk begin with these bytes now, so that little is left to wait for at the end.
fn begin_write_back(file: &File, start: u64, len: usize) {
    // SAFETY: a system call on a descriptor that is open; it touches no memory of this process.
    #[expect(unsafe_code, reason = "nix has no wrapper for it")]
    unsafe {
        // Only advice: where the file system does not take it, the bytes go to the disk at the end.
        nix::libc::sync_file_range(file.as_raw_fd(), start as i64, len as i64, nix::libc::SYNC_FILE_RANGE_WRITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_become_the_file_past_the_cache_and_through_it() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..(2 * WRITE + ALIGN + 77) as u32).map(|i| (i * 31 % 251) as u8).collect();
        for (number, piece) in [1000, ALIGN, WRITE, WRITE + 5, bytes.len()].into_iter().enumerate() {
            for len in [0, 77, ALIGN, WRITE, 2 * WRITE, bytes.len()] {
                for cached in [false, true] {
                    let path = folder.path().join(format!("{number}-{len}-{cached}"));
                    let mut file = Unbuffered::new(File::create_new(&path).unwrap(), len as u64).unwrap();
                    if cached {
                        file.through_cache().unwrap();
                    }
                    bytes[..len].chunks(piece).for_each(|piece| file.write(piece).unwrap());
                    file.finish().unwrap();
                    assert!(std::fs::read(&path).unwrap() == bytes[..len], "{piece} {len} {cached}");
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
    }

    #[test]
    fn what_the_disk_refuses_goes_through_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("odd");
        let mut file = Unbuffered::new(File::create_new(&path).unwrap(), 3000).unwrap();
        file.write(&[7; 3000]).unwrap();
        // No disk takes so odd a length.
        file.put(1001).unwrap();
        file.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == [7; 3000]);
    }
}
