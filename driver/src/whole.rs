//! Size and checksum of a file of a checkpoint, at the rate of its disk.
//!
//! A file on this host is read in large pieces by a few threads, and the kernel is told what comes next: the stream of its
//! store gives 8 KiB at a time, each through a queue of threads, which is a fifth of what a disk does.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use futures::TryStreamExt;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use object_store::{GetResult, GetResultPayload};

/// Bytes that a thread takes at a time.
const PIECE: u64 = 4 << 20;

/// Pieces that the kernel reads before they are asked for.
const AHEAD: u64 = 8;

/// Bytes of one read: they are still in the core's cache when their checksum is taken.
const READ: usize = 256 << 10;

/// Threads for one file: more than this no disk needs.
const THREADS: usize = 4;

/// Bytes and CRC-32C of a file, all of which is read.
pub(crate) async fn checksum(got: GetResult) -> Result<(u64, u32), object_store::Error> {
    let file = match got.payload {
        GetResultPayload::File(file, _) => file,
        GetResultPayload::Stream(mut stream) => {
            let (mut bytes, mut crc) = (0, 0);
            while let Some(chunk) = stream.try_next().await? {
                bytes += chunk.len() as u64;
                crc = crc32c::crc32c_append(crc, &chunk);
            }
            return Ok((bytes, crc));
        }
    };
    let unread = |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic {
        store: "LocalFileSystem",
        source,
    };
    // Threads do not end by themselves when nobody waits any more.
    let stopped = Stopped::default();
    let seen = Arc::clone(&stopped.0);
    let read = tokio::task::spawn_blocking(move || of_file(&file, &seen)).await;
    read.map_err(|e| unread(e.into()))?.map_err(|e| unread(e.into()))
}

/// True once it is dropped.
#[derive(Default)]
struct Stopped(Arc<AtomicBool>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn of_file(file: &File, stopped: &AtomicBool) -> io::Result<(u64, u32)> {
    let bytes = file.metadata()?.len();
    let pieces = bytes.div_ceil(PIECE);
    let next = AtomicU64::new(0);
    let work = || {
        let mut buffer = vec![0; READ.min(bytes as usize)];
        let mut found = vec![];
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return Ok(found);
            }
            if stopped.load(Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            // The first piece asks for all until then. A file system that takes no advice reads all the same.
            let ahead = if piece == 0 { (0, (1 + AHEAD) * PIECE) } else { ((piece + AHEAD) * PIECE, PIECE) };
            let _ = posix_fadvise(file, ahead.0 as i64, ahead.1 as i64, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
            let (mut at, end) = (piece * PIECE, bytes.min((piece + 1) * PIECE));
            let (len, mut crc) = ((end - at) as usize, 0);
            while at < end {
                let now = &mut buffer[..READ.min((end - at) as usize)];
                file.read_exact_at(now, at)?;
                crc = crc32c::crc32c_append(crc, now);
                at += now.len() as u64;
            }
            found.push((piece, len, crc));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS).min(pieces as usize);
    let mut found = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut found: Vec<(u64, usize, u32)> = work()?;
        for other in others {
            found.extend(other.join().map_err(|_| io::Error::other("a thread that reads has panicked"))??);
        }
        io::Result::Ok(found)
    })?;
    found.sort_unstable();
    Ok((bytes, found.into_iter().fold(0, |crc, (_, len, piece)| crc32c::crc32c_combine(crc, piece, len))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_checksum_of_a_file_is_that_of_its_bytes_in_order() {
        for len in [0, 1, READ, PIECE as usize, 2 * PIECE as usize + READ + 3] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let found = of_file(&file, &AtomicBool::new(false)).unwrap();
            assert_eq!(found, (len as u64, crc32c::crc32c(&bytes)), "{len} bytes");
        }
    }

    #[test]
    fn reading_ends_when_nobody_waits_any_more() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 10]).unwrap();
        let stopped = Stopped::default();
        let seen = Arc::clone(&stopped.0);
        drop(stopped);
        assert_eq!(of_file(&file, &seen).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
