//! The files of a checkpoint: safetensors, written straight from the snapshot's memory (`write.rs`), read back into any
//! number of shards (`load.rs`).
//!
//! A variable that lies whole in a part is a tensor of its own name and shape, so that a checkpoint of one
//! part can be loaded by any safetensors reader. A slice of one is `NAME@FIRST`, one-dimensional, FIRST
//! counted in elements. Optimizer slots are `optimizer/SLOT/NAME`, non-trainable buffers `buffer/NAME`.
//! Format: <https://huggingface.co/docs/safetensors> (u64 length, JSON header, raw little-endian data).

mod blocks;
mod direct;
mod encode;
mod file;
mod load;
#[cfg(test)]
mod load_tests;
mod matching;
#[cfg(test)]
mod ps_tests;
mod unbuffered;
mod values;
#[cfg(test)]
pub(crate) mod watched;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tfos_core::checkpoint::{Blocks, Manifest, Paths};
use tfos_core::proto::PartWritten;

use crate::Error;

pub(crate) use blocks::BlockCrc;
pub(crate) use encode::Content;
pub use load::Checkpoint;
#[cfg(feature = "torch")]
pub(crate) use load::Plan;
pub(crate) use values::{Destination, Segments};

/// The model directory as executors see it.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// Where it is on this host's file system, if it is: parts are written there directly, to know when they are durable.
    local: Option<PathBuf>,
    /// What stands before paths in messages: nothing for the job's own.
    shown: String,
}

/// A written part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Size of the file.
    pub bytes: u64,
    /// CRC-32C of the file.
    pub crc32c: u32,
    /// CRC-32C of its blocks.
    pub blocks: Blocks,
}

impl Written {
    /// Puts what is known of the file into the report.
    pub(crate) fn tell(self, part: &mut PartWritten) {
        (part.bytes, part.crc32c) = (self.bytes, self.crc32c);
        (part.block_bytes, part.block_crc32c) = (self.blocks.bytes, self.blocks.crc32c);
    }
}

fn cannot(path: &str, action: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Checkpoint { path: path.to_owned(), action, source: source.into() }
}

impl CheckpointStore {
    /// Opens a model directory.
    pub fn open(url: &str) -> Result<Self, Error> {
        let (store, root, url) = tfos_data::store::resolve(url)?;
        let local = (url.scheme() == "file").then(|| url.to_file_path().ok()).flatten();
        Ok(Self { store, root, local, shown: String::new() })
    }

    fn path(&self, relative: &str) -> Path {
        relative.split('/').fold(self.root.clone(), |path, segment| path.join(segment))
    }

    fn name(&self, relative: &str) -> String {
        format!("{}{relative}", self.shown)
    }

    async fn read(&self, relative: &str) -> Result<Bytes, Error> {
        let cannot = |e| cannot(&self.name(relative), "read", e);
        let got = self.store.get(&self.path(relative)).await.map_err(cannot)?;
        let size = got.meta.size as usize;
        let mut bytes = Vec::with_capacity(size);
        let mut stream = got.into_stream();
        while let Some(chunk) = stream.try_next().await.map_err(cannot)? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// Reads a file that belongs to the model beside its values.
    pub async fn asset(&self, name: &str) -> Result<Bytes, Error> {
        self.read(&Paths::asset(name)).await
    }

    /// Reads a manifest, relative to the model directory.
    pub async fn manifest(&self, path: &str) -> Result<Manifest, Error> {
        let bytes = self.read(path).await?;
        Manifest::parse(path, &bytes).map_err(|e| cannot(&self.name(path), "read", e))
    }
}
