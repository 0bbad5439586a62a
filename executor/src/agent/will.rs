//! What an agent has to know to write a part: where the values lie, and what to do with them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapOptions;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tfos_ps::memory::Arena;

use crate::Error;
use crate::checkpoint::Content;

/// What to do with the snapshot.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Task {
    /// URL of the driver.
    pub(crate) driver: String,
    /// The job's token.
    pub(crate) token: String,
    /// The executor that is dead.
    pub(crate) executor: u32,
    pub(crate) generation: u64,
    pub(crate) model_dir: String,
    pub(crate) phase: u32,
    pub(crate) id: u64,
    /// Of the part, relative to the model directory.
    pub(crate) path: String,
    pub(crate) global_step: u64,
    pub(crate) optimizer_step: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The task with the bytes of the file: some here, most in memory that others can map.
#[derive(Debug, Serialize, Deserialize)]
struct Described {
    task: Task,
    header: Vec<u8>,
    buffers: Vec<u8>,
    /// (number of the file, first byte, bytes), in order.
    pieces: Vec<(usize, u64, usize)>,
}

/// A snapshot that can be written by another process.
#[derive(Debug)]
pub(super) struct Will {
    described: Described,
    arenas: Vec<Arc<Arena>>,
}

impl Will {
    /// Waits until all values are where nobody changes them any more.
    pub(super) fn new(task: Task, content: &Content) -> Result<Self, Error> {
        let mut arenas: Vec<Arc<Arena>> = vec![];
        let mut pieces = vec![];
        for piece in content.frozen() {
            let piece = piece?;
            let (floats, range) = piece.place();
            let (arena, offset) = floats.place();
            let known = arenas.iter().position(|a| Arc::ptr_eq(a, arena));
            let number = known.unwrap_or_else(|| {
                arenas.push(Arc::clone(arena));
                arenas.len() - 1
            });
            pieces.push((number, offset + range.start as u64 * 4, range.len() * 4));
        }
        let (header, buffers) = content.ends();
        let described = Described { task, header: header.to_vec(), buffers: buffers.to_vec(), pieces };
        Ok(Self { described, arenas })
    }

    /// The description as a file without a name.
    pub(super) fn to_file(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create(c"tfos-will", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&self.described)?)?;
        Ok(file)
    }

    pub(super) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.arenas.iter().map(|arena| arena.as_fd())
    }
}

/// Reads what [`Agent::take`](super::Agent::take) sent.
pub(super) fn read(files: Vec<OwnedFd>) -> io::Result<(Task, Content)> {
    let mut files = files.into_iter().map(File::from);
    let Some(mut description) = files.next() else { return Err(io::ErrorKind::UnexpectedEof.into()) };
    let arenas: Vec<File> = files.collect();
    let mut json = vec![];
    description.seek(SeekFrom::Start(0))?;
    description.read_to_end(&mut json)?;
    let Described { task, header, buffers, pieces } = serde_json::from_slice(&json)?;
    let mut mapped = Vec::with_capacity(pieces.len());
    for (number, offset, len) in pieces {
        let Some(file) = arenas.get(number) else { return Err(io::ErrorKind::InvalidData.into()) };
        // SAFETY: the only process that wrote to this file is dead, so its bytes do not change.
        #[expect(unsafe_code, reason = "a mapping of a file that others might change")]
        let map = unsafe { MmapOptions::new().offset(offset).len(len).map(file)? };
        mapped.push(Bytes::from_owner(map));
    }
    Ok((task, Content::mapped(header.into(), mapped, buffers.into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfos_ps::memory::Cut;
    use tfos_ps::{Layout, Snapshot};

    #[test]
    fn what_is_read_back_from_the_descriptors_is_the_file() {
        let arena = Arena::new().unwrap();
        let layout = Layout::new([("w".into(), vec![2_000_000])], [("m".into(), vec![2])]).unwrap();
        let values: Vec<f32> = (0..2_000_000).map(|i| i as f32).collect();
        let snapshot = Snapshot {
            id: 3,
            step: 7,
            optimizer_step: 7,
            range: 0..2_000_000,
            params: Cut::of(&arena, &values).unwrap(),
            slots: vec![("sum".into(), Cut::of(&Arena::new().unwrap(), &values).unwrap())],
            buffers: Some(vec![1.0, 2.0]),
        };
        let content = Content::new(&layout, snapshot).unwrap();
        let will = Will::new(Task { id: 3, path: "p".into(), ..Task::default() }, &content).unwrap();
        let mut files = vec![OwnedFd::from(will.to_file().unwrap())];
        files.extend(will.files().map(|f| f.try_clone_to_owned().unwrap()));
        assert_eq!(files.len(), 3);
        let (task, again) = read(files).unwrap();
        assert_eq!((task.id, task.path.as_str()), (3, "p"));
        let bytes = |content: &Content| content.pieces().map(|p| p.unwrap()).collect::<Vec<_>>().concat();
        assert!(bytes(&again) == bytes(&content));
        assert_eq!(again.bytes(), content.bytes());
    }
}
