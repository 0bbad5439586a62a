//! Weights as a checkpoint: one part and a manifest without an optimizer, so that a job finds them by name.
//!
//! Such a checkpoint has seen no rows, and says so: its fingerprint of the input is empty, and any data may come.

use serde_json::Value;
use tfos_core::checkpoint::{FORMAT, Manifest, Part, Paths};
use tfos_core::ids::{Generation, GlobalStep};
use tfos_core::rows::CommittedRows;
use tfos_driver::model_dir::ModelDir;
use tfos_executor::portable::{FloatFile, Shape, Weights};
use tfos_executor::ps::Layout;

use crate::Result;

/// Generation that a checkpoint from elsewhere is of; jobs come after it.
const GENERATION: Generation = Generation(1);

/// What is known of the weights beside their values.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) application: String,
    /// JSON of the nodes' arguments; null where nobody knows.
    pub(crate) arguments: Value,
    /// Updates that they have seen.
    pub(crate) step: u64,
}

/// Makes `weights` the only checkpoint of a model directory in which no job has run.
pub(crate) async fn import(weights: &Weights, dir: &ModelDir, origin: Origin) -> Result<Manifest> {
    let shape = |t: &tfos_executor::portable::Tensor| (t.name.clone(), t.shape.clone());
    let shapes: Vec<Shape> = weights.tensors().iter().map(shape).collect();
    // As the parts of any checkpoint; which of them a model trains is not known here, and not asked by who reads it.
    let layout = Layout::new(shapes.clone(), []).map_err(tfos_executor::Error::from)?;
    dir.claim_unused(GENERATION, "{\"imported\":true}").await?;
    let made = write(weights, dir, origin, &shapes, &layout).await;
    if made.is_err() {
        // So that it can be tried again; the first error is the one to tell.
        let _ = dir.release(GENERATION).await;
    }
    made
}

async fn write(
    weights: &Weights,
    dir: &ModelDir,
    origin: Origin,
    shapes: &[Shape],
    layout: &Layout,
) -> Result<Manifest> {
    let step = GlobalStep(origin.step);
    let path = Paths::part(step, GENERATION, 0, 1);
    let words = [("global_step", origin.step.to_string())];
    let mut file = FloatFile::create(dir.store(), &dir.path(&path), shapes, &words).await?;
    let written = match file.push_all(weights).await {
        Ok(()) => file.finish().await?,
        Err(e) => {
            file.abort().await;
            return Err(e.into());
        }
    };
    let end = layout.total as u64;
    let manifest = Manifest {
        format: FORMAT,
        tfos_version: env!("CARGO_PKG_VERSION").into(),
        application: origin.application,
        generation: GENERATION,
        global_step: step,
        layout: serde_json::to_value(layout).unwrap_or_default(),
        optimizer: Value::Null,
        optimizer_step: 0,
        parts: vec![Part {
            path,
            bytes: written.bytes,
            crc32c: written.crc32c,
            start: 0,
            end,
            blocks: Some(written.blocks),
        }],
        input_fingerprint: String::new(),
        rows: CommittedRows::default(),
        rows_total: 0,
        ledger: vec![],
        arguments: origin.arguments,
        columns: vec![],
    };
    dir.create_manifest(&manifest).await?;
    Ok(manifest)
}
