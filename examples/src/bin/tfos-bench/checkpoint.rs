//! Checkpoints of a large model: how long training stands still, when they are durable, how long a restore takes. The
//! peers' scripts run in turn, and the disk's own rate is measured in the same run.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use tfos::prelude::*;

use crate::report::{Report, cluster, number};

/// Steps between checkpoints, and in all.
const EVERY: u64 = 8;
const STEPS: usize = 36;

/// Trains `millions` of parameters with Adam, and measures each of its steps.
pub(crate) struct CheckpointApp;

impl Application for CheckpointApp {
    fn name(&self) -> &str {
        "checkpoint"
    }

    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
        let [data, millions, times] = arguments else { return Err(Error::Usage("DATA MILLIONS TIMES".into())) };
        cluster.set_arguments(&(millions, times))?;
        let rows = cluster.read(data, tfos::data::session::Format::Arrow, None)?;
        cluster.train(rows, 2)?;
        Ok(())
    }

    fn node(&self, ctx: &mut NodeContext) -> Result<(), NodeError> {
        let (millions, times): (String, String) =
            serde_json::from_str(ctx.arguments()).map_err(NodeError::application)?;
        let elements = millions.parse::<i64>().map_err(NodeError::application)? * 1_000_000;
        let weights = ctx.variables().zeros("w", &[elements / 1000, 1000]);
        let begun = Instant::now();
        ctx.train_with(Optimizer::adam(1e-3))?;
        let mut lines = vec![format!("restore {}", begun.elapsed().as_secs_f64())];
        let mut feed = ctx.data_feed()?;
        while let Some(batch) = feed.next_batch(1)? {
            let x = batch.tensor("label")?.to_kind(Kind::Float).sum(Kind::Float);
            let begun = Instant::now();
            // A cheap loss with a dense gradient: what is measured is the update and what holds it up.
            let loss = weights.sum(Kind::Float) * x * 1e-9;
            ctx.step(&loss)?;
            lines.push(format!("step {} {} {}", ctx.global_step(), begun.elapsed().as_secs_f64(), now()));
        }
        std::fs::write(times, lines.join("\n")).map_err(NodeError::application)
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What one job tells of its steps.
struct Times {
    restore: f64,
    /// (global step, seconds that it took, when it ended)
    steps: Vec<(u64, f64, f64)>,
}

impl Times {
    fn read(path: &Path) -> Result<Times, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut times = Times { restore: f64::NAN, steps: vec![] };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let parsed = |i: usize| words.get(i).and_then(|w| w.parse::<f64>().ok()).unwrap_or(f64::NAN);
            match words.first() {
                Some(&"restore") => times.restore = parsed(1),
                _ => times.steps.push((parsed(1) as u64, parsed(2), parsed(3))),
            }
        }
        Ok(times)
    }

    /// Median of the steps that no checkpoint touches: those of the first interval, but for the first two.
    fn usual(&self) -> f64 {
        let mut quiet: Vec<f64> =
            self.steps.iter().filter(|(step, ..)| (3..=EVERY).contains(step)).map(|(_, took, _)| *took).collect();
        quiet.sort_by(f64::total_cmp);
        quiet.get(quiet.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Step of each checkpoint, and when its manifest was durable, by the job's own event log.
fn durable(dir: &str) -> Result<Vec<(u64, f64)>, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let tfos = program.with_file_name("tfos");
    let query =
        "select global_step as step, cast(time as bigint) as time_ms from events where event = 'checkpoint' order by 2";
    let output = Command::new(tfos).args(["sql", dir, query, "--output", "json"]).output();
    let output = output.map_err(|e| format!("tfos sql: {e}"))?;
    if !output.status.success() {
        return Err(format!("tfos sql: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = vec![];
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))?;
        found.push((number(&value, "step") as u64, number(&value, "time_ms") / 1000.0));
    }
    Ok(found)
}

pub(crate) fn run(arguments: &[String]) -> Result<Report, String> {
    let after = |flag: &str| arguments.iter().skip_while(|a| *a != flag).nth(1).cloned();
    let millions: u64 = after("--millions").and_then(|m| m.parse().ok()).unwrap_or(100);
    let rounds: usize = after("--rounds").and_then(|m| m.parse().ok()).unwrap_or(3);
    let base = after("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = base.join(format!("tfos-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let peers: Vec<&String> = arguments.windows(2).filter(|w| w[0] == "--peer").map(|w| &w[1]).collect();
    let result = measure(&folder, millions, rounds, after("--s3").as_deref(), &peers);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn measure(folder: &Path, millions: u64, rounds: usize, s3: Option<&str>, peers: &[&String]) -> Result<Report, String> {
    let bytes = millions * 12_000_000;
    let rows = tfos::apps::digits::record_batch(1, STEPS / 2).map_err(|e| e.to_string())?;
    let data = crate::feed::write_arrow(folder, "rows.arrow", &rows)?;
    let mut report = Report::new("checkpoint");
    report.note(format!(
        "{millions} M f32 parameters with Adam, {} MB a checkpoint, every {EVERY} steps; in turn, {rounds} rounds",
        bytes / 1_000_000
    ));
    let mut targets = vec![("file".to_owned(), folder.display().to_string())];
    targets.extend(s3.map(|url| ("s3".to_owned(), url.trim_end_matches('/').to_owned())));
    let shapes = [("1 worker", ["1", "0"]), ("1 ps + 1 worker", ["2", "1"])];
    let mut found: Vec<(String, Figures)> = vec![];
    let mut at = |name: String| -> usize {
        found.iter().position(|(n, _)| *n == name).unwrap_or_else(|| {
            found.push((name, Figures::default()));
            found.len() - 1
        })
    };
    let mut collected: Vec<(usize, Figures)> = vec![];
    let (mut write_rate, mut read_rate) = (vec![], vec![]);
    for round in 0..rounds {
        let (write, read) = disk(folder, bytes)?;
        write_rate.push(write / 1e6);
        read_rate.push(read / 1e6);
        for (place, root) in &targets {
            for (name, shape) in &shapes {
                let dir = format!("{root}/model-{place}-{}-{round}", shape[0]);
                let figures = job(folder, &dir, *shape, &data, millions)?;
                collected.push((at(format!("tfos, {name}, {place}")), figures));
                if let Some(local) = (place == "file").then(|| Path::new(&dir)) {
                    std::fs::remove_dir_all(local).map_err(|e| e.to_string())?;
                }
            }
        }
        for peer in peers {
            let Some((name, command)) = peer.split_once('=') else { return Err(format!("NAME=COMMAND, not {peer}")) };
            let command = format!("{command} {} {millions}", folder.join("peer").display());
            let output = Command::new("sh").args(["-c", &command]).output().map_err(|e| e.to_string())?;
            let text = String::from_utf8_lossy(&output.stdout);
            let value: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
                .map_err(|e| format!("{command}: {e}: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
            let figures = Figures {
                stall: vec![number(&value, "stall_s") * 1000.0],
                first: vec![],
                durable: vec![number(&value, "durable_s")],
                restore: vec![number(&value, "restore_s")],
                resumed: vec![],
            };
            collected.push((at(name.to_owned()), figures));
        }
    }
    for (index, figures) in collected {
        if let Some((_, all)) = found.get_mut(index) {
            all.extend(figures);
        }
    }
    report.runs("disk, sequential write and sync", "MB/s", &write_rate);
    report.runs("disk, sequential read, nothing cached", "MB/s", &read_rate);
    for (name, figures) in &found {
        report.runs(&format!("{name}: stall"), "ms", &figures.stall);
        if !figures.first.is_empty() {
            report.runs(&format!("{name}: stall of the first one"), "ms", &figures.first);
        }
        report.runs(&format!("{name}: durable after"), "s", &figures.durable);
        let rates: Vec<f64> = figures.durable.iter().map(|s| bytes as f64 / s / 1e6).collect();
        report.runs(&format!("{name}: durable, rate"), "MB/s", &rates);
        report.runs(&format!("{name}: restore"), "s", &figures.restore);
        if !figures.resumed.is_empty() {
            report.runs(&format!("{name}: submit to first step"), "s", &figures.resumed);
        }
    }
    Ok(report)
}

#[derive(Debug, Default)]
struct Figures {
    /// What the slowest step between the cut and the manifest took longer than usual, ms; of the first checkpoint apart, as
    /// it also gets the memory.
    stall: Vec<f64>,
    first: Vec<f64>,
    durable: Vec<f64>,
    restore: Vec<f64>,
    /// From the submit of the job that resumes to its first step: with the processes, and with what the driver reads.
    resumed: Vec<f64>,
}

impl Figures {
    fn extend(&mut self, other: Figures) {
        self.stall.extend(other.stall);
        self.first.extend(other.first);
        self.durable.extend(other.durable);
        self.restore.extend(other.restore);
        self.resumed.extend(other.resumed);
    }
}

/// One job with several checkpoints, and one that resumes from the last of them.
fn job(folder: &Path, dir: &str, shape: [&str; 2], data: &str, millions: u64) -> Result<Figures, String> {
    let times = folder.join("times");
    let (times_text, millions) = (times.display().to_string(), millions.to_string());
    let (every, most) = (EVERY.to_string(), (STEPS as u64 - 3).to_string());
    let shape = ["--cluster-size", shape[0], "--num-ps", shape[1], "--model-dir", dir];
    let first = [&shape[..], &["--save-checkpoints-steps", &every, "--max-steps", &most]].concat();
    cluster(&first, "checkpoint", &[data, &millions, &times_text])?;
    let measured = Times::read(&times)?;
    let usual = measured.usual();
    let mut figures = Figures::default();
    let stored = durable(dir)?;
    for (index, (step, at)) in stored.iter().enumerate() {
        // From the end of the step that was cut.
        let Some((_, _, cut)) = measured.steps.iter().find(|(s, ..)| s == step) else { continue };
        // The last one holds nobody up.
        if measured.steps.last().is_some_and(|(last, ..)| last == step) {
            continue;
        }
        let during = measured.steps.iter().filter(|(s, _, end)| s > step && end - 1e-3 <= *at + usual);
        let slowest = during.map(|(_, took, _)| *took).fold(0.0, f64::max);
        let stall = (slowest - usual).max(0.0) * 1000.0;
        if index == 0 {
            figures.first.push(stall)
        } else {
            figures.stall.push(stall)
        }
        figures.durable.push(at - cut);
    }
    let submitted = now();
    cluster(&shape, "checkpoint", &[data, &millions, &times_text])?;
    let again = Times::read(&times)?;
    figures.restore.push(again.restore);
    figures.resumed.extend(again.steps.first().map(|(_, took, end)| end - took - submitted));
    Ok(figures)
}

/// Bytes per second of one long write that reaches the disk, and of reading it back from there.
fn disk(folder: &Path, bytes: u64) -> Result<(f64, f64), String> {
    let failed = |e: std::io::Error| format!("the disk's rate: {e}");
    let path = folder.join("disk");
    let mut block = vec![0u8; 4 << 20];
    block.iter_mut().zip(0u32..).for_each(|(b, i)| *b = (i.wrapping_mul(2_654_435_761) >> 24) as u8);
    let begun = Instant::now();
    let mut file = std::fs::File::create(&path).map_err(failed)?;
    for _ in 0..bytes / block.len() as u64 {
        file.write_all(&block).map_err(failed)?;
    }
    file.sync_data().map_err(failed)?;
    let write = bytes as f64 / begun.elapsed().as_secs_f64();
    drop(file);
    // Past the cache.
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(0o40000).open(&path).map_err(failed)?;
    let begun = Instant::now();
    let mut aligned = vec![0u8; (4 << 20) + 4096];
    let start = aligned.as_ptr().align_offset(4096);
    let target = aligned.get_mut(start..start + (4 << 20)).ok_or("no memory")?;
    let mut total = 0;
    loop {
        let count = file.read(target).map_err(failed)?;
        if count == 0 {
            break;
        }
        total += count;
    }
    let read = total as f64 / begun.elapsed().as_secs_f64();
    std::fs::remove_file(&path).map_err(failed)?;
    Ok((write, read))
}
