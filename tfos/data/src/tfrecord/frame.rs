//! Frames of a TFRecord file: `u64 length, u32 masked crc of length, data, u32 masked crc of data`, little endian.
//!
//! A length is believed only when its checksum fits, and memory grows only as bytes arrive: a flipped bit cannot
//! make a reader allocate gigabytes. A checksum is no secret, so a length that no Example can have is refused too.
//! Offsets in errors count bytes of the uncompressed stream.

use std::io::{Read, Write};
use std::sync::Arc;

use super::compression::{Compression, Inflate};
use super::crc::masked;
use crate::error::{Damage, Error, Result};

const HEAD: usize = 12;
const TAIL: usize = 4;
const CHUNK: usize = 1 << 20;
/// The largest message that protobuf has: a longer record is no Example.
const LONGEST: u64 = i32::MAX as u64;

/// A record and where its frame begins in the uncompressed stream.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub offset: u64,
    pub data: &'a [u8],
}

/// Cuts bytes that arrive in arbitrary pieces into records.
#[derive(Debug)]
pub struct FrameParser {
    path: Arc<str>,
    buf: Vec<u8>,
    /// First byte of `buf` that no record has used.
    pos: usize,
    /// Offset of `buf[0]` in the stream.
    base: u64,
}

impl FrameParser {
    /// `path` appears in errors only.
    pub fn new(path: Arc<str>) -> Self {
        Self { path, buf: Vec::new(), pos: 0, base: 0 }
    }

    /// Adds the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.writer().extend_from_slice(bytes);
    }

    /// Where the next bytes of the stream are to be appended; drops what has been used.
    pub(crate) fn writer(&mut self) -> &mut Vec<u8> {
        self.buf.drain(..self.pos);
        self.base += self.pos as u64;
        self.pos = 0;
        &mut self.buf
    }

    /// The next whole record, or `None` until more bytes come.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>> {
        let offset = self.base + self.pos as u64;
        let rest = &self.buf[self.pos..];
        let Some((head, rest)) = rest.split_at_checked(HEAD) else {
            return Ok(None);
        };
        let (length, crc) = head.split_at(8);
        if masked(length) != le32(crc) {
            return Err(Error::Corrupt { path: Arc::clone(&self.path), offset, what: Damage::Length });
        }
        let length = le64(length);
        if length > LONGEST {
            return Err(Error::Corrupt { path: Arc::clone(&self.path), offset, what: Damage::TooLong(length) });
        }
        let size = length as usize + TAIL;
        let Some(framed) = rest.get(..size) else {
            return Ok(None);
        };
        let (data, crc) = framed.split_at(size - TAIL);
        if masked(data) != le32(crc) {
            return Err(Error::Corrupt { path: Arc::clone(&self.path), offset, what: Damage::Data });
        }
        self.pos += HEAD + size;
        Ok(Some(Record { offset, data }))
    }

    /// Call at the end of the stream: bytes that are left mean a truncated record.
    pub fn finish(&self) -> Result<()> {
        let rest = &self.buf[self.pos..];
        if rest.is_empty() {
            return Ok(());
        }
        let whole = rest.get(..8).map_or(HEAD as u64, |n| le64(n).saturating_add((HEAD + TAIL) as u64));
        Err(Error::Truncated {
            path: Arc::clone(&self.path),
            offset: self.base + self.pos as u64,
            end: self.end(),
            wanted: whole.saturating_sub(rest.len() as u64),
        })
    }

    /// Bytes of the uncompressed stream seen so far.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.buf.len() as u64
    }

    pub(crate) fn path(&self) -> &Arc<str> {
        &self.path
    }
}

/// The state of reading one file: raw bytes in, records out, whatever the compression.
#[derive(Debug)]
pub struct RecordStream {
    parser: FrameParser,
    inflate: Inflate,
}

impl RecordStream {
    /// `path` appears in errors, and its extension says the compression where the first bytes do not.
    pub fn new(path: Arc<str>) -> Self {
        Self { inflate: Inflate::detect(Compression::from_path(&path)), parser: FrameParser::new(path) }
    }

    /// Adds the next raw bytes of the file, at most a chunk at a time.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.inflate.push(bytes, &mut self.parser)
    }

    /// Says that the file has ended; records may still be waiting.
    pub fn end(&mut self) -> Result<()> {
        self.inflate.end(&mut self.parser)
    }

    /// See [`FrameParser::next_record`].
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>> {
        self.parser.next_record()
    }

    /// See [`FrameParser::finish`].
    pub fn finish(&self) -> Result<()> {
        self.parser.finish()
    }
}

/// Reads the records of a file, plain or compressed, one by one.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: RecordStream,
    input: R,
    chunk: Vec<u8>,
    ended: bool,
}

impl<R: Read> FrameReader<R> {
    /// `path` appears in errors, and its extension says the compression where the first bytes do not.
    pub fn new(input: R, path: impl Into<Arc<str>>) -> Self {
        Self { stream: RecordStream::new(path.into()), input, chunk: vec![0; CHUNK], ended: false }
    }

    /// The next record, `None` at the end of the file.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>> {
        loop {
            // The borrow of a record must not outlive this turn of the loop, hence the look before the call.
            if self.ready()? {
                return self.stream.next_record();
            }
            if self.ended {
                self.stream.finish()?;
                return Ok(None);
            }
            let n = match self.input.read(&mut self.chunk) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io("read", self.stream.parser.path().to_string())(e)),
            };
            match self.chunk.get(..n) {
                Some(bytes) if n > 0 => self.stream.push(bytes)?,
                _ => {
                    self.ended = true;
                    self.stream.end()?;
                }
            }
        }
    }

    fn ready(&mut self) -> Result<bool> {
        let parser = &self.stream.parser;
        let rest = &parser.buf[parser.pos..];
        let Some(head) = rest.get(..HEAD) else {
            return Ok(false);
        };
        // A length that its checksum refutes, or that is too long, is "ready" too: the parser then says so.
        if masked(&head[..8]) != le32(&head[8..]) || le64(head) > LONGEST {
            return Ok(true);
        }
        Ok(le64(head) + (HEAD + TAIL) as u64 <= rest.len() as u64)
    }
}

/// Writes records as frames.
#[derive(Debug)]
pub struct FrameWriter<W> {
    output: W,
}

impl<W: Write> FrameWriter<W> {
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// Appends one record.
    pub fn write(&mut self, data: &[u8]) -> std::io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        self.output.write_all(&length)?;
        self.output.write_all(&masked(&length).to_le_bytes())?;
        self.output.write_all(data)?;
        self.output.write_all(&masked(data).to_le_bytes())
    }

    /// Gives the output back; what it buffers is the caller's to flush.
    pub fn into_inner(self) -> W {
        self.output
    }
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |n, b| n << 8 | u32::from(*b))
}
