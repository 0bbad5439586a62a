//! A safetensors file that is read by ranges: its header, then the stretches that are wanted, a few requests at a
//! time, each checked before a value of it is used.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tfos_core::checkpoint::Blocks;

use super::cannot;
use super::direct::{self, Request};
use super::values::{Destination, Target};
use crate::Error;

/// Bytes of one request, at most: with [`IN_FLIGHT`], what a node needs beside the values themselves.
const REQUEST_BYTES: u64 = 8 << 20;

/// Requests under way at a time.
const IN_FLIGHT: usize = 8;

/// Bytes between two stretches that are read rather than asked around.
const GAP_BYTES: u64 = 64 << 10;

/// First read of a file without blocks: the header of most is shorter.
const HEAD_BYTES: u64 = 64 << 10;

/// Longest header; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// How it is known that the bytes are those that were written.
#[derive(Debug, Clone)]
pub(super) enum Check {
    /// By block.
    Blocks(Blocks),
    /// Only as a whole, so that all of it is read.
    Whole(u32),
    /// Nobody said: a file of another program.
    Nothing,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("it is no safetensors file")]
    Json(#[from] serde_json::Error),
    #[error("it is no safetensors file: {0}")]
    Format(&'static str),
    #[error(
        "its {what} has checksum {found:08x} instead of {expected:08x}: the file is damaged; use another checkpoint"
    )]
    Damaged { what: String, found: u32, expected: u32 },
    #[error("it has no bytes {start}..{end}: the file is cut off; use another checkpoint")]
    Short { start: u64, end: u64 },
    #[error("it lacks `{name}` in the size that the manifest says")]
    Tensor { name: String },
}

/// An open file: its header is known.
#[derive(Debug)]
pub(super) struct File {
    store: Arc<dyn ObjectStore>,
    location: Path,
    /// Itself, where it is on this host.
    pub(super) host: Option<std::fs::File>,
    /// As the user knows it.
    pub(super) name: String,
    size: u64,
    check: Check,
    /// Its beginning, checked as far as that can be.
    head: Bytes,
    /// Where the data begins.
    data: u64,
    pub(super) header: Metadata,
}

/// A stretch of a file, and where its values go.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) file: usize,
    pub(super) bytes: Range<u64>,
    pub(super) dtype: Dtype,
    pub(super) target: Target,
    /// Element of the target.
    pub(super) at: usize,
}

impl Piece {
    /// The part of it that lies in `range`, which must not cut an element.
    fn within(&self, range: &Range<u64>) -> Option<Piece> {
        let (start, end) = (self.bytes.start.max(range.start), self.bytes.end.min(range.end));
        let at = self.at + (start.saturating_sub(self.bytes.start) / width(self.dtype)) as usize;
        (start < end).then(|| Piece { bytes: start..end, at, ..self.clone() })
    }
}

fn width(dtype: Dtype) -> u64 {
    (dtype.bitsize() as u64 / 8).max(1)
}

impl File {
    /// Reads the header. `size` is known from a manifest, or asked for.
    pub(super) async fn open(
        store: Arc<dyn ObjectStore>,
        location: Path,
        name: String,
        size: Option<u64>,
        check: Check,
    ) -> Result<Self, Error> {
        let size = match size {
            Some(size) => size,
            None => store.head(&location).await.map_err(|e| cannot(&name, "read", e))?.size,
        };
        let (head, header) = (Bytes::new(), Metadata::new(None, vec![]).map_err(|e| cannot(&name, "read", e))?);
        let mut file = Self { store, location, host: None, name, size, check, head, data: 0, header };
        // One block, where there are any: that is 4 MiB.
        let first = if let Check::Blocks(_) = file.check { 1 } else { HEAD_BYTES };
        file.head = file.read(0..file.whole_blocks(first)).await?;
        let length = file.head.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let length = length.ok_or_else(|| file.bad(FileError::Format("it has less than 8 bytes")))?;
        if length > MAX_HEADER_BYTES || length + 8 > size {
            return Err(file.bad(FileError::Format("its header is longer than it may be")));
        }
        file.data = length + 8;
        if file.data > file.head.len() as u64 {
            let more = file.read(file.head.len() as u64..file.whole_blocks(file.data)).await?;
            let mut joined = BytesMut::from(file.head.as_ref());
            joined.extend_from_slice(&more);
            file.head = joined.freeze();
        }
        let text = file.head.get(8..file.data as usize).unwrap_or_default();
        file.header = serde_json::from_slice(text).map_err(|e| file.bad(FileError::Json(e)))?;
        if file.data + file.header.data_len() as u64 != size {
            return Err(file.bad(FileError::Format("its header does not describe all of it")));
        }
        let is_aligned = match &file.check {
            Check::Blocks(blocks) => blocks.bytes % 4 == 0 && file.data.is_multiple_of(4),
            Check::Whole(_) => file.data.is_multiple_of(4),
            Check::Nothing => true,
        };
        if !is_aligned {
            return Err(file.bad(FileError::Format("its values begin between two words")));
        }
        Ok(file)
    }

    pub(super) fn bad(&self, why: FileError) -> Error {
        cannot(&self.name, "read", why)
    }

    /// The end of the block that has byte `upto - 1`.
    fn whole_blocks(&self, upto: u64) -> u64 {
        match &self.check {
            Check::Blocks(blocks) => upto.max(1).next_multiple_of(blocks.bytes.max(1)).min(self.size),
            Check::Whole(_) | Check::Nothing => upto.min(self.size),
        }
    }

    /// Of a tensor of this name: its entry, and where its data begins.
    pub(super) fn find(&self, name: &str) -> Result<(&TensorInfo, u64), Error> {
        let unknown = || self.bad(FileError::Tensor { name: name.to_owned() });
        let info = self.header.info(name).ok_or_else(unknown)?;
        Ok((info, self.data + info.data_offsets.0 as u64))
    }

    /// Elements `wanted` of those that tensor `name` has, all `elements` of them floats of 32 bits.
    pub(super) fn floats(&self, name: &str, elements: usize, wanted: Range<usize>) -> Result<Range<u64>, Error> {
        let (info, begin) = self.find(name)?;
        let len: usize = info.shape.iter().product();
        if info.dtype != Dtype::F32 || len != elements || wanted.end > len {
            return Err(self.bad(FileError::Tensor { name: name.to_owned() }));
        }
        Ok(begin + wanted.start as u64 * 4..begin + wanted.end as u64 * 4)
    }

    /// Reads a range, whole blocks of it where there are any, and checks it.
    async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let short = FileError::Short { start: range.start, end: range.end };
        let read = self.store.get_range(&self.location, range.clone()).await;
        let bytes = match read {
            Ok(bytes) if bytes.len() as u64 == range.end - range.start => bytes,
            Ok(_) => return Err(self.bad(short)),
            // Stores differ in how they say that a file is shorter.
            Err(e) => match self.store.head(&self.location).await {
                Ok(meta) if meta.size < range.end => return Err(self.bad(short)),
                _ => return Err(cannot(&self.name, "read", e)),
            },
        };
        if let Check::Blocks(blocks) = &self.check {
            let first = (range.start / blocks.bytes.max(1)) as usize;
            for (at, block) in bytes.chunks(blocks.bytes.max(1) as usize).enumerate() {
                self.check_number(blocks, first + at, crc32c::crc32c(block))?;
            }
        }
        Ok(bytes)
    }

    /// Whether the block that is `range` has this checksum.
    pub(super) fn check_block(&self, range: &Range<u64>, found: u32) -> Result<(), Error> {
        match &self.check {
            Check::Blocks(blocks) => self.check_number(blocks, (range.start / blocks.bytes.max(1)) as usize, found),
            Check::Whole(_) | Check::Nothing => Ok(()),
        }
    }

    fn check_number(&self, blocks: &Blocks, number: usize, found: u32) -> Result<(), Error> {
        let expected = blocks.crc32c.get(number).copied();
        let expected = expected.ok_or_else(|| self.bad(FileError::Format("its manifest has fewer blocks")))?;
        if found == expected {
            return Ok(());
        }
        Err(self.bad(FileError::Damaged { what: format!("block {number}"), found, expected }))
    }

    /// What to ask the store for, to have these stretches; they are in order, and of this file.
    fn ranges(&self, pieces: &[Piece]) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = vec![];
        match &self.check {
            Check::Blocks(blocks) => {
                let (block, head) = (blocks.bytes.max(1), self.head.len() as u64);
                for piece in pieces.iter().filter(|p| p.bytes.end > head) {
                    let start = piece.bytes.start.max(head) / block * block;
                    let end = self.whole_blocks(piece.bytes.end);
                    match ranges.last_mut() {
                        Some(last) if start <= last.end => last.end = last.end.max(end),
                        _ => ranges.push(start..end),
                    }
                }
                let most = (REQUEST_BYTES / block).max(1) * block;
                ranges.into_iter().flat_map(|r| cut(r, most)).collect()
            }
            Check::Whole(_) => cut(0..self.size, REQUEST_BYTES).collect(),
            Check::Nothing => {
                // Whole elements, from where the tensor begins: it may lie anywhere.
                for part in pieces.iter().flat_map(|p| cut(p.bytes.clone(), REQUEST_BYTES)) {
                    match ranges.last_mut() {
                        Some(last) if part.start <= last.end + GAP_BYTES && part.end - last.start <= REQUEST_BYTES => {
                            last.end = last.end.max(part.end);
                        }
                        _ => ranges.push(part),
                    }
                }
                ranges
            }
        }
    }
}

fn cut(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(most as usize).map(move |start| start..(start + most).min(end))
}

/// Reads stretches of several files into place; gives the number of bytes that were asked for.
pub(super) async fn fetch(files: &[File], mut pieces: Vec<Piece>, into: &mut Destination<'_>) -> Result<u64, Error> {
    pieces.sort_by_key(|p| (p.file, p.bytes.start));
    let (mut requests, mut direct) = (vec![], vec![]);
    let mut read = 0;
    for group in pieces.chunk_by(|a, b| a.file == b.file) {
        let Some(file) = group.first().and_then(|p| files.get(p.file)) else { continue };
        if let Check::Blocks(_) = file.check {
            let head = 0..file.head.len() as u64;
            group.iter().filter_map(|p| p.within(&head)).for_each(|p| into.write(&p, &head, &file.head));
        }
        let ranges = file.ranges(group);
        read += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        // Stretches are in order and do not overlap.
        let inside = |range: &Range<u64>| {
            let first = group.partition_point(|p| p.bytes.end <= range.start);
            group.iter().skip(first).map_while(|p| p.within(range)).collect::<Vec<_>>()
        };
        if let Check::Blocks(blocks) = &file.check
            && file.host.is_some()
            && group.iter().all(|p| p.dtype == Dtype::F32)
        {
            let blocks = ranges.into_iter().flat_map(|range| cut(range, blocks.bytes.max(1)));
            direct.extend(blocks.map(|block| Request { file, pieces: inside(&block), block }));
        } else {
            requests.extend(ranges.into_iter().map(|range| (file, inside(&range), range)));
        }
    }
    if !direct::read(&direct, into).await? {
        // What is wanted for two places is read into memory first.
        requests.extend(direct.into_iter().map(|r| (r.file, r.pieces, r.block)));
    }
    let answers = requests.into_iter().map(|(file, pieces, range)| async move {
        let bytes = file.read(range.clone()).await?;
        Ok::<_, Error>((file, range, pieces, bytes))
    });
    // In their order, as a checksum of a whole file needs them.
    let mut answers = stream::iter(answers).buffered(IN_FLIGHT);
    let mut whole = 0;
    while let Some((file, range, pieces, bytes)) = answers.try_next().await? {
        if let Check::Whole(expected) = file.check {
            whole = crc32c::crc32c_append(if range.start == 0 { 0 } else { whole }, &bytes);
            if range.end == file.size && whole != expected {
                return Err(file.bad(FileError::Damaged { what: "content".into(), found: whole, expected }));
            }
        }
        pieces.iter().for_each(|p| into.write(p, &range, &bytes));
    }
    Ok(read)
}
