//! `export/`: a model by itself, that PyTorch and `tfos predict` read without the model directory.
//!
//! ```text
//! EXPORT/model.safetensors    every variable and buffer, whole, by its own name
//!        module.pt            the TorchScript module with these values, where the model came as one
//!        assets/NAME          other files that the application gave its nodes
//!        export.json          what it is, and checksums of the files
//! ```
//!
//! EXP-1: `export.json` goes first and comes last, so an export that is there is one of one step, and who reads it
//! while it is replaced is told so by the checksums.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tfos_core::checkpoint::{Column, Paths};
use tfos_driver::model_dir::{ModelDir, Restored};
use tfos_executor::checkpoint::{Checkpoint, CheckpointStore};
use tfos_executor::portable::{FloatFile, Shape};

use super::folder::Folder;
use crate::{Error, Result};

/// What makes a folder an export.
pub(crate) const DESCRIPTION: &str = "export.json";

/// The values.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// Asset that is a TorchScript module, and its name in an export.
pub(crate) const MODULE: &str = "module.pt";

/// Version of the description's format.
const FORMAT: u32 = 1;

/// The content of [`DESCRIPTION`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// Version of the program that wrote it.
    pub(crate) tfos_version: String,
    /// Application whose model it is.
    pub(crate) application: String,
    /// Arguments with which its nodes build the model; null where nobody knows.
    pub(crate) arguments: Value,
    /// Updates that the values have seen.
    pub(crate) step: u64,
    /// Incarnation that wrote the checkpoint.
    pub(crate) generation: u64,
    /// Rows that they have seen, and whole epochs of them.
    pub(crate) rows: u64,
    pub(crate) epochs: u32,
    /// Identity of the training data.
    pub(crate) input_fingerprint: String,
    /// Columns of the training rows.
    pub(crate) columns: Vec<Column>,
    /// The files beside this one.
    pub(crate) files: Vec<FileSum>,
}

/// A file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileSum {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
}

impl Description {
    /// Reads the description of an export.
    pub(crate) async fn read(folder: &Folder) -> Result<Self> {
        let bad = |what: String| Error::Export { address: folder.address().to_owned(), what };
        let Some(bytes) = folder.get(DESCRIPTION).await? else {
            return Err(bad(format!(
                "it has no {DESCRIPTION}; `tfos export MODEL_DIR` makes one of a model directory"
            )));
        };
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let damaged = |e: serde_json::Error| bad(format!("{DESCRIPTION} is damaged ({e}); export again"));
        let Version { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format != FORMAT {
            return Err(bad(format!("its format is {format} and this program reads {FORMAT}; use a newer tfos")));
        }
        serde_json::from_slice(&bytes).map_err(damaged)
    }
}

/// Writes the model of a checkpoint to `to`, in place of an export that is there.
pub(crate) async fn export(dir: &ModelDir, from: &Restored, to: &str) -> Result<(String, Description)> {
    let (target, manifest) = (Folder::open(to)?, &from.manifest);
    let checkpoint = CheckpointStore::open(dir.url().as_str())?.load_values(manifest).await?;
    let assets = Folder::open(&format!("{}/{}", dir.url().as_str().trim_end_matches('/'), Paths::ASSETS))?;
    let mut files = vec![];
    for name in assets.names().await? {
        let bytes = assets.get(&name).await?.unwrap_or_default();
        files.push(match name.as_str() {
            MODULE => (MODULE.to_owned(), Bytes::from(module(&bytes, &checkpoint)?)),
            _ => (Paths::asset(&name), bytes),
        });
    }
    let old = match Description::read(&target).await {
        Ok(old) => old.files,
        Err(Error::Export { .. }) => vec![],
        Err(e) => return Err(e),
    };
    target.delete(DESCRIPTION).await?;
    for stale in old.iter().filter(|f| f.path != WEIGHTS && !files.iter().any(|(path, _)| *path == f.path)) {
        target.delete(&stale.path).await?;
    }
    let mut sums = vec![weights(&target, &checkpoint).await?];
    for (path, bytes) in files {
        sums.push(FileSum { path: path.clone(), bytes: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) });
        target.put(&path, bytes).await?;
    }
    let description = Description {
        format: FORMAT,
        tfos_version: env!("CARGO_PKG_VERSION").into(),
        application: manifest.application.clone(),
        arguments: manifest.arguments.clone(),
        step: manifest.global_step.0,
        generation: manifest.generation.0,
        rows: manifest.rows_total,
        epochs: manifest.rows.complete_epochs,
        input_fingerprint: manifest.input_fingerprint.clone(),
        columns: manifest.columns.clone(),
        files: sums,
    };
    let json = serde_json::to_vec_pretty(&description).map_err(|e| Error::Export {
        address: target.address().to_owned(),
        what: format!("{DESCRIPTION} cannot be encoded: {e}"),
    })?;
    target.put(DESCRIPTION, json.into()).await?;
    Ok((target.address().to_owned(), description))
}

async fn weights(target: &Folder, checkpoint: &Checkpoint) -> Result<FileSum> {
    let mut values = checkpoint.values();
    values.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let shapes: Vec<Shape> = values.iter().map(|(v, _)| (v.name.clone(), v.shape.clone())).collect();
    let words = [("global_step", checkpoint.state.step.to_string())];
    let mut file = FloatFile::create(target.store(), &target.path(WEIGHTS), &shapes, &words).await?;
    for (_, tensor) in &values {
        if let Err(e) = file.push(tensor).await {
            file.abort().await;
            return Err(e.into());
        }
    }
    let written = file.finish().await?;
    Ok(FileSum { path: WEIGHTS.into(), bytes: written.bytes, crc32c: written.crc32c })
}

#[cfg(feature = "torch")]
fn module(bytes: &[u8], checkpoint: &Checkpoint) -> Result<Vec<u8>> {
    let values: std::collections::HashMap<&str, &[f32]> =
        checkpoint.values().into_iter().map(|(v, x)| (v.name.as_str(), x)).collect();
    Ok(tfos_executor::torch::module::fill(bytes, &values)?)
}

#[cfg(not(feature = "torch"))]
fn module(_: &[u8], _: &Checkpoint) -> Result<Vec<u8>> {
    Err(Error::Usage(
        "this tfos was built without libtorch, which writes the TorchScript module; use one with it".into(),
    ))
}
