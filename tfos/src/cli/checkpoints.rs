//! `tfos checkpoints`: what a model directory holds.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use serde::Serialize;
use serde_json::{Value, json};
use tfos_core::checkpoint::Manifest;
use tfos_core::ids::GlobalStep;
use tfos_driver::checkpoints::Listed;
use tfos_driver::model_dir::ModelDir;
use tfos_executor::checkpoint::{Checkpoint, CheckpointStore};
use tfos_executor::ps::{Layout, Variable};

use super::flags::{CheckpointCommand, Output};
use crate::cluster::digest;
use crate::{Error, Result};

pub(super) fn run(command: CheckpointCommand, output: Output) -> Result<u8> {
    super::init_logs("warn");
    super::runtime()?.block_on(async {
        match command {
            CheckpointCommand::List { model_dir } => list(&open(&model_dir).await?, output).await,
            CheckpointCommand::Show { model_dir, step } => show(&open(&model_dir).await?, step, output).await,
            CheckpointCommand::Hash { model_dir, step } => hash(&model_dir, step, output).await,
            CheckpointCommand::Verify { model_dir, step } => verify(&open(&model_dir).await?, step, output).await,
            CheckpointCommand::Delete { model_dir, step } => {
                let dir = open(&model_dir).await?;
                dir.checkpoint(GlobalStep(step)).await?;
                dir.delete_checkpoint(GlobalStep(step)).await?;
                say(output, &json!({"status": "ok", "deleted": step}), &format!("deleted checkpoint {step}"));
                Ok(0)
            }
            CheckpointCommand::Gc { model_dir, dry_run } => {
                let garbage = ModelDir::open(&model_dir)?.collect_garbage(dry_run).await?;
                let (key, verb) = if dry_run { ("would_delete", "would delete") } else { ("deleted", "deleted") };
                let lines: Vec<String> = garbage.iter().map(|file| format!("{verb} {file}")).collect();
                let text = if lines.is_empty() { "nothing to delete".into() } else { lines.join("\n") };
                say(output, &json!({"status": "ok", key: garbage}), &text);
                Ok(0)
            }
            CheckpointCommand::Copy { model_dir, step, to } => {
                let (from, target) = (open(&model_dir).await?, open(&to).await?);
                let manifest = whole(&from, from.checkpoint(GlobalStep(step)).await?).await?;
                from.copy_checkpoint(&manifest, &target).await?;
                say(output, &json!({"status": "ok", "copied": step, "to": to}), &format!("copied {step} to {to}"));
                Ok(0)
            }
            CheckpointCommand::Diff { model_dir, first, second } => diff(&model_dir, first, second, output).await,
        }
    })
}

async fn open(address: &str) -> Result<ModelDir> {
    let dir = ModelDir::open(address)?;
    dir.contact().await?;
    Ok(dir)
}

fn say(output: Output, json: &Value, text: &str) {
    match output {
        Output::Json => println!("{json}"),
        Output::Text => println!("{text}"),
    }
}

/// The manifest of a checkpoint without damage.
async fn whole(dir: &ModelDir, listed: Listed) -> Result<Manifest> {
    let damaged = |what: String| Error::Application(format!("checkpoint {} is damaged: {what}", listed.step));
    let manifest = listed.manifest.clone().map_err(damaged)?;
    match dir.damage(&manifest).await? {
        Some(what) => Err(damaged(what)),
        None => Ok(manifest),
    }
}

fn none(dir: &ModelDir) -> Error {
    Error::Usage(format!("`{}` has no checkpoint", dir.url()))
}

async fn list(dir: &ModelDir, output: Output) -> Result<u8> {
    let listed = dir.list_checkpoints().await?;
    if output == Output::Json {
        let lines: Vec<Value> = listed.iter().map(in_short).collect();
        println!("{}", json!({"model_dir": dir.url().as_str(), "checkpoints": lines}));
        return Ok(0);
    }
    if listed.is_empty() {
        return Err(none(dir));
    }
    println!("{:>12}  {:>10}  {:>14}  {:>14}  {:>6}  written", "step", "generation", "bytes", "rows", "epochs");
    for c in &listed {
        let written = tfos_data::arrow::temporal_conversions::timestamp_ms_to_datetime(c.written_ms);
        let written = written.map_or_else(String::new, |t| t.format("%Y-%m-%d %H:%M:%S UTC").to_string());
        match &c.manifest {
            Ok(m) => println!(
                "{:>12}  {:>10}  {:>14}  {:>14}  {:>6}  {written}",
                c.step.0,
                m.generation.0,
                c.bytes(),
                m.rows_total,
                m.rows.complete_epochs
            ),
            Err(why) => println!("{:>12}  damaged: {why}", c.step.0),
        }
    }
    Ok(0)
}

fn in_short(c: &Listed) -> Value {
    match &c.manifest {
        Ok(m) => json!({"step": c.step.0, "generation": m.generation.0, "application": m.application,
                        "tfos_version": m.tfos_version, "bytes": c.bytes(), "parts": m.parts.len(),
                        "rows": m.rows_total, "epochs": m.rows.complete_epochs, "written_ms": c.written_ms}),
        Err(why) => json!({"step": c.step.0, "damage": why, "written_ms": c.written_ms}),
    }
}

/// The one asked for, or the newest.
async fn find(dir: &ModelDir, step: Option<u64>) -> Result<Listed> {
    match step {
        Some(step) => Ok(dir.checkpoint(GlobalStep(step)).await?),
        None => dir.list_checkpoints().await?.pop().ok_or_else(|| none(dir)),
    }
}

async fn hash(url: &str, step: Option<u64>, output: Output) -> Result<u8> {
    let dir = open(url).await?;
    let manifest = whole(&dir, find(&dir, step).await?).await?;
    let found = digest(url, &manifest).await?;
    if output == Output::Json {
        println!("{}", json!({"step": manifest.global_step.0, "hash": found}));
        return Ok(0);
    }
    println!("step          {}", manifest.global_step.0);
    println!("parameters    crc32c {:08x}", found.parameters_crc32c);
    println!("buffers       crc32c {:08x}", found.buffers_crc32c);
    println!("optimizer     crc32c {:08x}", found.optimizer_crc32c);
    Ok(0)
}

async fn show(dir: &ModelDir, step: Option<u64>, output: Output) -> Result<u8> {
    let found = find(dir, step).await?;
    let manifest = found.manifest.clone();
    let manifest =
        manifest.map_err(|what| Error::Application(format!("checkpoint {} is damaged: {what}", found.step)))?;
    if output == Output::Json {
        println!("{}", serde_json::to_string(&manifest).unwrap_or_default());
        return Ok(0);
    }
    println!("step          {}", manifest.global_step.0);
    println!("application   {}, written by tfos {}", manifest.application, manifest.tfos_version);
    println!("generation    {}", manifest.generation.0);
    println!("rows          {} in {} whole epochs", manifest.rows_total, manifest.rows.complete_epochs);
    match manifest.is_weights_only() {
        true => println!("optimizer     none: the weights were imported"),
        false => println!("optimizer     {}", manifest.optimizer),
    }
    let layout: std::result::Result<Layout, _> = serde_json::from_value(manifest.layout.clone());
    if let Ok(layout) = layout {
        println!("parameters    {} in {} variables", layout.total, layout.variables.len());
        let line = |v: &Variable, what: &str| println!("  {:<40} f32 {:?}{what}", v.name, v.shape);
        layout.variables.iter().for_each(|v| line(v, ""));
        layout.buffers.iter().for_each(|v| line(v, "  (not trained)"));
    }
    println!("files");
    for part in &manifest.parts {
        println!("  {} ({} bytes, crc32c {:08x})", part.path, part.bytes, part.crc32c);
    }
    for segment in &manifest.ledger {
        println!("  {segment}");
    }
    Ok(0)
}

async fn verify(dir: &ModelDir, step: Option<u64>, output: Output) -> Result<u8> {
    let all = match step {
        Some(step) => vec![dir.checkpoint(GlobalStep(step)).await?],
        None => dir.list_checkpoints().await?,
    };
    if all.is_empty() {
        return Err(none(dir));
    }
    let mut damaged = 0;
    let mut lines = vec![];
    for c in &all {
        let damage = match &c.manifest {
            Ok(manifest) => dir.damage(manifest).await?,
            Err(why) => Some(why.clone()),
        };
        damaged += usize::from(damage.is_some());
        if output == Output::Text {
            println!("checkpoint {}: {}", c.step.0, damage.as_deref().unwrap_or("whole"));
        }
        lines.push(json!({"step": c.step.0, "bytes": c.bytes(), "damage": damage}));
    }
    if output == Output::Json {
        println!("{}", json!({"ok": damaged == 0, "checkpoints": lines}));
    }
    Ok(u8::from(damaged > 0))
}

async fn load(url: &str, step: u64) -> Result<Checkpoint> {
    let dir = open(url).await?;
    let manifest = whole(&dir, dir.checkpoint(GlobalStep(step)).await?).await?;
    Ok(CheckpointStore::open(url)?.load(&manifest).await?)
}

/// One variable of two checkpoints.
#[derive(Debug, Serialize)]
struct Difference<'a> {
    name: &'a str,
    shape: &'a [i64],
    #[serde(flatten)]
    values: Values,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Values {
    Compared {
        /// Largest difference.
        max_abs: f64,
        /// Root mean square of the differences.
        rms: f64,
        /// Root mean square of the second's own values.
        rms_of_second: f64,
    },
    /// The other checkpoint has no variable of this name and shape.
    Alone { only_in: u64 },
}

fn compare(a: &[f32], b: &[f32]) -> Values {
    let (mut max_abs, mut squares, mut own) = (0f64, 0f64, 0f64);
    for (a, b) in a.iter().zip(b) {
        let difference = f64::from(*b) - f64::from(*a);
        max_abs = max_abs.max(difference.abs());
        squares += difference * difference;
        own += f64::from(*b) * f64::from(*b);
    }
    let n = (b.len() as f64).max(1.0);
    Values::Compared { max_abs, rms: (squares / n).sqrt(), rms_of_second: (own / n).sqrt() }
}

async fn diff(url: &str, first: u64, second: u64, output: Output) -> Result<u8> {
    let (a, b) = (load(url, first).await?, load(url, second).await?);
    let (a, b) = (a.values(), b.values());
    let same = |v: &Variable, w: &Variable| v.name == w.name && v.shape == w.shape;
    let mut lines = vec![];
    for (variable, after) in &b {
        let before = a.iter().find(|(v, _)| same(v, variable));
        let values = before.map_or(Values::Alone { only_in: second }, |(_, before)| compare(before, after));
        lines.push(Difference { name: &variable.name, shape: &variable.shape, values });
    }
    let missing = a.iter().filter(|(v, _)| !b.iter().any(|(w, _)| same(v, w)));
    let only_in = first;
    lines.extend(missing.map(|(v, _)| Difference {
        name: &v.name,
        shape: &v.shape,
        values: Values::Alone { only_in },
    }));
    if output == Output::Json {
        println!("{}", json!({"first": first, "second": second, "variables": lines}));
        return Ok(0);
    }
    println!("{:<40} {:>14} {:>14} {:>16}", "variable", "max |diff|", "rms diff", format!("rms at {second}"));
    for Difference { name, values, .. } in &lines {
        match values {
            Values::Alone { only_in } => println!("{name:<40} only in {only_in}"),
            Values::Compared { max_abs, rms, rms_of_second } => {
                println!("{name:<40} {max_abs:>14.6e} {rms:>14.6e} {rms_of_second:>16.6e}");
            }
        }
    }
    Ok(0)
}
