//! Blocks of files on this host, read straight to where their values stay, by a few threads.
//!
//! Each thread reads a block and takes its checksum while it is in the core's cache, so that nothing is copied twice. A value
//! may so be in place before its block is known to be whole: what is loaded counts only when all of it is (`LOD-1`).

use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::{io, thread};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tfos_ps::memory::bytes_mut;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::file::{File, FileError, Piece};
use super::values::Destination;
use crate::Error;

/// Bytes of one read: they are still in the core's cache when their checksum is taken.
const READ: usize = 256 << 10;

/// Blocks that the kernel reads before they are asked for.
const AHEAD: usize = 8;

/// Blocks after which is seen whether anybody still waits.
const ROUND: usize = 16;

/// More threads than this no disk needs.
const THREADS: usize = 4;

/// A block, and the stretches of it that are wanted, in order.
pub(super) struct Request<'f> {
    pub(super) file: &'f File,
    pub(super) block: Range<u64>,
    pub(super) pieces: Vec<Piece>,
}

struct Task<'a> {
    request: &'a Request<'a>,
    /// Of each stretch, where its values go.
    places: Vec<Vec<&'a mut [f32]>>,
}

/// Reads all of them; `false` if their values go to places that are not there, or not apart.
pub(super) async fn read(requests: &[Request<'_>], into: &mut Destination<'_>) -> Result<bool, Error> {
    let pieces: Vec<&Piece> = requests.iter().flat_map(|request| &request.pieces).collect();
    let Some(places) = into.places(&pieces) else { return Ok(false) };
    let mut places = places.into_iter();
    let mut tasks: Vec<Task<'_>> = requests
        .iter()
        .map(|request| Task { request, places: places.by_ref().take(request.pieces.len()).collect() })
        .collect();
    let mut first = 0;
    while first < tasks.len() {
        let end = (first + ROUND).min(tasks.len());
        let ahead = requests.get(first + if first > 0 { AHEAD } else { 0 }..(end + AHEAD).min(requests.len()));
        ahead.into_iter().flatten().for_each(announce);
        let round = tasks.get_mut(first..end).unwrap_or_default();
        blocking(|| read_round(round))?;
        first = end;
        // Here it ends if nobody waits any more.
        tokio::task::yield_now().await;
    }
    Ok(true)
}

/// Has the kernel begin to read a block. A file system that takes no advice reads it when it is asked to.
fn announce(request: &Request<'_>) {
    let (begin, len) = (request.block.start as i64, (request.block.end - request.block.start) as i64);
    if let Some(host) = &request.file.host {
        let _ = posix_fadvise(host, begin, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

/// On a thread of the runtime others are given its work meanwhile.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn read_round(tasks: &mut [Task<'_>]) -> Result<(), Error> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS).min(tasks.len());
    let left = Mutex::new(tasks.iter_mut());
    let work = || -> Result<(), Error> {
        let mut passed_over = vec![];
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(task) = next else { return Ok(()) };
            task.read(&mut passed_over)?;
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let panicked = |_| Err(Error::Other("a thread that reads has panicked".into()));
            result = result.and(other.join().unwrap_or_else(panicked));
        }
        result
    })
}

impl Task<'_> {
    fn read(&mut self, passed_over: &mut Vec<u8>) -> Result<(), Error> {
        let Request { file, block, pieces } = self.request;
        let (mut at, mut crc) = (block.start, 0);
        let mut gap = |from: u64, to: u64, mut crc: u32| {
            let mut at = from;
            while at < to {
                passed_over.resize(READ, 0);
                let len = READ.min((to - at) as usize);
                let now = &mut passed_over[..len];
                file.read_at(now, at)?;
                crc = crc32c::crc32c_append(crc, now);
                at += len as u64;
            }
            Ok::<u32, Error>(crc)
        };
        for (piece, places) in pieces.iter().zip(&mut self.places) {
            crc = gap(at, piece.bytes.start, crc)?;
            at = piece.bytes.start;
            for now in places.iter_mut().flat_map(|place| place.chunks_mut(READ / size_of::<f32>())) {
                let now = bytes_mut(now);
                file.read_at(now, at)?;
                crc = crc32c::crc32c_append(crc, now);
                at += now.len() as u64;
            }
        }
        file.check_block(block, gap(at, block.end, crc)?)
    }
}

impl File {
    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), Error> {
        let Some(host) = &self.host else { return Err(self.bad(FileError::Format("it is on another host"))) };
        host.read_exact_at(into, at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.bad(FileError::Short { start: at, end: at + into.len() as u64 }),
            _ => super::cannot(&self.name, "read", e),
        })
    }
}
