//! The files of a checkpoint: safetensors, written straight from the snapshot's memory, read into flat
//! vectors whatever the number of parts was.
//!
//! A variable that lies whole in a part is a tensor of its own name and shape, so that a checkpoint of one
//! part can be loaded by any safetensors reader. A slice of one is `NAME@FIRST`, one-dimensional, FIRST
//! counted in elements. Optimizer slots are `optimizer/SLOT/NAME`, non-trainable buffers `buffer/NAME`.
//! Format: <https://huggingface.co/docs/safetensors> (u64 length, JSON header, raw little-endian data).

mod encode;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tfos_core::checkpoint::{Manifest, Part, Paths};
use tfos_ps::{FullState, Layout, Scheduled, Variable};

use crate::Error;

pub(crate) use encode::Content;

/// The model directory as executors see it.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// Where it is on this host's file system, if it is: parts are written there directly, to know when they are durable.
    local: Option<PathBuf>,
}

/// A written part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Size of the file.
    pub bytes: u64,
    /// CRC-32C of the file.
    pub crc32c: u32,
}

impl Written {
    /// Takes the next bytes of the file in.
    fn add(&mut self, bytes: &[u8]) {
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        self.bytes += bytes.len() as u64;
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
        Ok(Self { store, root, local })
    }

    fn path(&self, relative: &str) -> Path {
        relative.split('/').fold(self.root.clone(), |path, segment| path.join(segment))
    }

    async fn read(&self, relative: &str) -> Result<Bytes, Error> {
        let got = self.store.get(&self.path(relative)).await.map_err(|e| cannot(relative, "read", e))?;
        let size = got.meta.size as usize;
        let mut bytes = Vec::with_capacity(size);
        let mut stream = got.into_stream();
        while let Some(chunk) = stream.try_next().await.map_err(|e| cannot(relative, "read", e))? {
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
        Manifest::parse(path, &bytes).map_err(|e| cannot(path, "read", e))
    }

    /// Reads a whole checkpoint.
    pub async fn load(&self, manifest: &Manifest) -> Result<Checkpoint, Error> {
        let bad = |what: &str, e: serde_json::Error| cannot(&format!("manifest ({what})"), "read", e);
        let layout: Layout = serde_json::from_value(manifest.layout.clone()).map_err(|e| bad("layout", e))?;
        let optimizer: Option<Scheduled> =
            serde_json::from_value(manifest.optimizer.clone()).map_err(|e| bad("optimizer", e))?;
        let slots = optimizer.as_ref().map_or(&[][..], Scheduled::slots);
        let mut state = FullState {
            step: manifest.global_step.0,
            optimizer_step: manifest.optimizer_step,
            params: vec![0.0; layout.total],
            slots: slots.iter().map(|s| ((*s).to_owned(), vec![0.0; layout.total])).collect(),
            buffers: vec![0.0; layout.buffers_total],
        };
        let covered = manifest.parts.iter().map(|p| p.end).max().unwrap_or(0);
        if covered != layout.total as u64 {
            let what = format!("its parts hold {covered} elements of a model of {}", layout.total);
            return Err(cannot("manifest", "read", what));
        }
        for Part { path, bytes, crc32c, .. } in &manifest.parts {
            let file = self.read(path).await?;
            let crc = crc32c::crc32c_append(0, &file);
            if file.len() as u64 != *bytes || crc != *crc32c {
                return Err(cannot(path, "read", format!("its checksum is {crc:08x} instead of {crc32c:08x}")));
            }
            decode(&layout, &file, &mut state).map_err(|e| cannot(path, "read", e))?;
        }
        Ok(Checkpoint { layout, optimizer, state })
    }
}

/// A checkpoint in memory.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Its variables.
    pub layout: Layout,
    /// Its optimizer, with its schedule; `None`: weights alone, which a model finds by name.
    pub optimizer: Option<Scheduled>,
    /// Its values.
    pub state: FullState,
}

/// What is wrong with a part that is a good file otherwise.
#[derive(Debug, thiserror::Error)]
enum PartError {
    #[error("it is no safetensors file")]
    Format(#[from] safetensors::SafeTensorError),
    #[error("tensor `{name}` is not part of the model, or of another size")]
    Tensor { name: String },
}

/// Puts every tensor of a part where it belongs.
fn decode(layout: &Layout, file: &[u8], state: &mut FullState) -> Result<(), PartError> {
    let tensors = safetensors::SafeTensors::deserialize(file)?;
    for (name, view) in tensors.tensors() {
        let unknown = || PartError::Tensor { name: name.clone() };
        let (target, variables, rest): (&mut Vec<f32>, &[Variable], &str) =
            if let Some(rest) = name.strip_prefix("buffer/") {
                (&mut state.buffers, &layout.buffers, rest)
            } else if let Some(rest) = name.strip_prefix("optimizer/") {
                let (slot, rest) = rest.split_once('/').ok_or_else(unknown)?;
                let (_, values) = state.slots.iter_mut().find(|(n, _)| n == slot).ok_or_else(unknown)?;
                (values, &layout.variables, rest)
            } else {
                (&mut state.params, &layout.variables, name.as_str())
            };
        let find = |wanted: &str| variables.iter().find(|v| v.name == wanted);
        let (variable, first) = match find(rest) {
            Some(variable) => (variable, 0),
            None => {
                let (base, first) = rest.rsplit_once('@').ok_or_else(unknown)?;
                (find(base).ok_or_else(unknown)?, first.parse::<usize>().map_err(|_| unknown())?)
            }
        };
        let data = view.data();
        let begin = variable.offset + first;
        let elements = data.len() / 4;
        if first + elements > variable.len() {
            return Err(unknown());
        }
        let slice = target.get_mut(begin..begin + elements).ok_or_else(unknown)?;
        for (value, raw) in slice.iter_mut().zip(data.chunks_exact(4)) {
            *value = f32::from_le_bytes(raw.try_into().map_err(|_| unknown())?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfos_ps::memory::{Arena, Cut};
    use tfos_ps::{Snapshot, shard_range};

    #[test]
    fn parts_of_any_cut_join_to_the_same_state() {
        let arena = Arena::new().unwrap();
        let layout = Layout::new(
            [("a/weight".into(), vec![5, 9]), ("b".into(), vec![]), ("c".into(), vec![40])],
            [("bn/mean".into(), vec![3])],
        )
        .unwrap();
        let flat = |k: f32| (0..layout.total).map(|i| k + i as f32).collect::<Vec<f32>>();
        for shards in 1..4 {
            let empty = |n| vec![0.0; n];
            let mut state = FullState {
                step: 7,
                optimizer_step: 6,
                params: empty(layout.total),
                slots: vec![("sum".into(), empty(layout.total))],
                buffers: empty(3),
            };
            for k in 0..shards {
                let range = shard_range(layout.total, shards, k);
                let snapshot = Snapshot {
                    id: 1,
                    step: 7,
                    optimizer_step: 6,
                    params: Cut::of(&arena, &flat(0.0)[range.clone()]).unwrap(),
                    slots: vec![("sum".into(), Cut::of(&arena, &flat(0.5)[range.clone()]).unwrap())],
                    buffers: (k == 0).then(|| vec![1.0, 2.0, 3.0]),
                    range,
                };
                let content = Content::new(&layout, snapshot).unwrap();
                let file = content.pieces().map(|piece| piece.unwrap()).collect::<Vec<_>>().concat();
                assert_eq!(file.len() as u64, content.bytes());
                decode(&layout, &file, &mut state).unwrap();
            }
            assert_eq!(
                (state.params, state.slots[0].1.clone(), state.buffers),
                (flat(0.0), flat(0.5), vec![1.0, 2.0, 3.0])
            );
        }
    }
}
