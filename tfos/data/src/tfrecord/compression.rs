//! Gzip and zlib around a whole TFRecord file, found by the first bytes or else by the name.
//!
//! The first bytes decide when they can: a valid frame header is a plain file, whatever its name. Only when they say
//! nothing (a damaged header) does the extension count, so that the error speaks of the right layer.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};

use super::crc::masked;
use super::frame::FrameParser;
use crate::error::{Error, Result};

/// Compressed bytes inflated in one go: 16 KiB become at most 16 MiB.
const PIECE: usize = 16 << 10;

/// How a file is compressed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Zlib,
}

impl std::str::FromStr for Compression {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "zlib" => Ok(Self::Zlib),
            _ => Err(Error::Unsupported {
                what: format!("the compression `{name}`"),
                instead: "use none, gzip or zlib".into(),
            }),
        }
    }
}

impl Compression {
    /// By the extension: `.gz`, `.gzip`; `.zlib`, `.deflate`.
    pub fn from_path(path: &str) -> Self {
        match path.rsplit_once('.').map(|(_, ext)| ext.to_ascii_lowercase()).as_deref() {
            Some("gz" | "gzip") => Self::Gzip,
            Some("zlib" | "deflate") => Self::Zlib,
            _ => Self::None,
        }
    }

    /// What a file name of this compression ends with, with its dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Zlib => ".zlib",
        }
    }

    /// By the first bytes of a file (12 are enough), `None` where they do not tell.
    fn sniff(head: &[u8]) -> Option<Self> {
        let plain = head.get(..8).zip(head.get(8..12));
        if plain.is_some_and(|(length, crc)| masked(length).to_le_bytes() == crc) {
            return Some(Self::None);
        }
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [a, b, ..] if a & 0x0f == 8 && a >> 4 <= 7 && (u16::from(*a) << 8 | u16::from(*b)) % 31 == 0 => {
                Some(Self::Zlib)
            }
            _ => None,
        }
    }
}

/// Undoes the compression piece by piece.
#[derive(Debug)]
pub(crate) enum Inflate {
    /// The first bytes, until there are enough to tell.
    Unknown {
        head: Vec<u8>,
        named: Compression,
    },
    Plain,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zlib {
        state: Decompress,
        done: bool,
    },
}

impl Inflate {
    pub(crate) fn detect(named: Compression) -> Self {
        Self::Unknown { head: Vec::new(), named }
    }

    fn start(&mut self, compression: Compression) {
        *self = match compression {
            Compression::None => Self::Plain,
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Compression::Zlib => Self::Zlib { state: Decompress::new(true), done: false },
        };
    }

    pub(crate) fn push(&mut self, bytes: &[u8], to: &mut FrameParser) -> Result<()> {
        match self {
            Self::Unknown { head, named } => {
                head.extend_from_slice(bytes);
                if head.len() < 12 {
                    return Ok(());
                }
                let (head, named) = (std::mem::take(head), *named);
                self.start(Compression::sniff(&head).unwrap_or(named));
                self.push(&head, to)
            }
            Self::Plain => {
                to.push(bytes);
                Ok(())
            }
            Self::Gzip(decoder) => {
                for piece in bytes.chunks(PIECE) {
                    decoder.write_all(piece).map_err(|e| broken("gzip", to, e))?;
                    to.push(decoder.get_ref());
                    decoder.get_mut().clear();
                }
                Ok(())
            }
            Self::Zlib { state, done } => {
                for piece in bytes.chunks(PIECE) {
                    inflate_zlib(state, piece, done, to).map_err(|e| broken("zlib", to, e))?;
                }
                Ok(())
            }
        }
    }

    /// Says that the input has ended.
    pub(crate) fn end(&mut self, to: &mut FrameParser) -> Result<()> {
        match self {
            Self::Unknown { head, named } => {
                // Shorter than a frame header: too short for a gzip stream too.
                let (head, named) = (std::mem::take(head), *named);
                if head.is_empty() {
                    return Ok(());
                }
                self.start(Compression::sniff(&head).unwrap_or(named));
                self.push(&head, to)?;
                self.end(to)
            }
            Self::Plain => Ok(()),
            Self::Gzip(decoder) => {
                decoder.try_finish().map_err(|e| broken("gzip", to, e))?;
                to.push(decoder.get_ref());
                decoder.get_mut().clear();
                Ok(())
            }
            Self::Zlib { done: true, .. } => Ok(()),
            Self::Zlib { .. } => Err(broken("zlib", to, io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

fn inflate_zlib(state: &mut Decompress, mut input: &[u8], done: &mut bool, to: &mut FrameParser) -> io::Result<()> {
    while !*done {
        let out = to.writer();
        out.reserve(4 * PIECE);
        let (before_in, before_out) = (state.total_in(), state.total_out());
        let status = state.decompress_vec(input, out, FlushDecompress::None)?;
        let used = (state.total_in() - before_in) as usize;
        input = input.get(used..).unwrap_or_default();
        *done = status == Status::StreamEnd;
        if used == 0 && state.total_out() == before_out && !*done {
            break;
        }
        if input.is_empty() && out.len() < out.capacity() {
            break;
        }
    }
    if *done && !input.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes after the end of the stream"));
    }
    Ok(())
}

fn broken(kind: &'static str, to: &FrameParser, source: io::Error) -> Error {
    Error::Compression { path: to.path().clone(), kind, offset: to.end(), source }
}
