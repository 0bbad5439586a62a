//! Files that appear under their name only when they are complete.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::write::{GzEncoder, ZlibEncoder};

use super::FileInfo;
use crate::error::{Error, Result};
use crate::tfrecord::Compression;

/// A file under a temporary name beside its final one; dropped before [`Pending::publish`] it disappears.
///
/// The temporary name begins with a dot, so listings do not take it for data.
#[derive(Debug)]
pub(super) struct AtomicFile {
    file: BufWriter<File>,
    pending: Pending,
}

/// A complete file that has not its name yet.
#[derive(Debug)]
pub(super) struct Pending {
    temporary: PathBuf,
    path: PathBuf,
}

impl AtomicFile {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let file = File::create(&temporary).map_err(Error::io("create", temporary.display().to_string()))?;
        let pending = Pending { temporary, path: path.to_owned() };
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), pending })
    }

    /// Brings every byte to the disk.
    pub(super) fn close(mut self) -> Result<Pending> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(Error::io("write", self.pending.path.display().to_string()))?;
        Ok(self.pending)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Pending {
    /// Gives the file its name.
    pub(super) fn publish(self) -> Result<FileInfo> {
        fs::rename(&self.temporary, &self.path).map_err(Error::io("rename to", self.path.display().to_string()))?;
        info(&self.path)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Fails after `publish`, when there is nothing left under this name.
        let _ = fs::remove_file(&self.temporary);
    }
}

pub(super) fn info(path: &Path) -> Result<FileInfo> {
    let name = path.display().to_string();
    let bytes = fs::metadata(path).map_err(Error::io("look at", name.as_str()))?.len();
    Ok(FileInfo { path: name, bytes })
}

/// A file with whole-file compression.
#[derive(Debug)]
pub(super) enum Output {
    Plain(AtomicFile),
    Gzip(Box<GzEncoder<AtomicFile>>),
    Zlib(Box<ZlibEncoder<AtomicFile>>),
}

impl Output {
    pub(super) fn create(path: &Path, compression: Compression) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        let level = flate2::Compression::default();
        Ok(match compression {
            Compression::None => Self::Plain(file),
            Compression::Gzip => Self::Gzip(Box::new(GzEncoder::new(file, level))),
            Compression::Zlib => Self::Zlib(Box::new(ZlibEncoder::new(file, level))),
        })
    }

    pub(super) fn close(self, path: &Path) -> Result<Pending> {
        let fail = Error::io("write", path.display().to_string());
        match self {
            Self::Plain(file) => file.close(),
            Self::Gzip(encoder) => encoder.finish().map_err(fail)?.close(),
            Self::Zlib(encoder) => encoder.finish().map_err(fail)?.close(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(w) => w.write(buf),
            Self::Gzip(w) => w.write(buf),
            Self::Zlib(w) => w.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(w) => w.flush(),
            Self::Gzip(w) => w.flush(),
            Self::Zlib(w) => w.flush(),
        }
    }
}
