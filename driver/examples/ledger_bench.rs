//! How long it takes to verify a ledger: one of so many leases, written as a job writes it, in large segments and in small
//! ones; then one whose leases do not join.
//!
//! `ledger_bench [--leases N] [--runs N] [--output json] [--keep DIR]`: files are read once to warm the page cache.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use tfos_core::checkpoint::{FORMAT, Manifest};
use tfos_core::ids::{Generation, GlobalStep};
use tfos_core::rows::{CommittedRows, RowRange};
use tfos_driver::event::CommitRecord;
use tfos_driver::ledger::{audit, write_segment};
use tfos_driver::model_dir::ModelDir;

const PARTITIONS: u64 = 64;
const WORKERS: u64 = 8;
/// Rows of a lease.
const ROWS: u64 = 100;

/// Name, leases per segment, and the order in which the leases of a partition are committed.
const SHAPES: [(&str, u64, Order); 3] = [
    ("100 segments", 10_000, Order::Interleaved),
    ("10,000 segments", 100, Order::Interleaved),
    ("100 segments, leases that join at the end only", 10_000, Order::EvenThenOdd),
];

#[derive(Clone, Copy)]
enum Order {
    /// The partitions in turn, each from its first row to its last.
    Interleaved,
    /// Every second lease first: half of all are gaps until the other half comes.
    EvenThenOdd,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let leases: u64 = value("--leases").map_or(Ok(1_000_000), |n| n.parse())?;
    let runs: usize = value("--runs").map_or(Ok(5), |n| n.parse())?;
    let json = value("--output").is_some_and(|o| o == "json");
    let keep = value("--keep").map(PathBuf::from);
    let root = std::env::temp_dir().join(format!("tfos-ledger-bench-{}", std::process::id()));
    let root = keep.clone().unwrap_or(root);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(&root, leases, runs));
    if keep.is_none() {
        std::fs::remove_dir_all(&root)?;
    }
    for (name, seconds) in measured? {
        let mut per_million: Vec<f64> = seconds.iter().map(|s| s / leases as f64 * 1e6).collect();
        per_million.sort_by(f64::total_cmp);
        let at = |i: usize| per_million.get(i).copied().unwrap_or(f64::NAN);
        let (low, mid, high) = (at(0), at(per_million.len() / 2), at(per_million.len().saturating_sub(1)));
        if json {
            let line = serde_json::json!({"ledger": name, "leases": leases, "runs": runs,
                "seconds_per_million": {"median": mid, "min": low, "max": high}});
            println!("{line}");
        } else {
            println!("{name:<48} {mid:.3} s per million leases  [{low:.3} - {high:.3}, n={runs}]");
        }
    }
    Ok(())
}

async fn measure(root: &Path, leases: u64, runs: usize) -> Result<Vec<(&'static str, Vec<f64>)>, Box<dyn Error>> {
    let mut measured = vec![];
    for (i, (name, per_segment, order)) in SHAPES.into_iter().enumerate() {
        let folder = root.join(i.to_string());
        std::fs::create_dir_all(&folder)?;
        let dir = ModelDir::open(&folder.display().to_string())?;
        let (segments, committed) = write(&dir, leases, per_segment, order).await?;
        let mut seconds = vec![];
        for run in 0..=runs {
            let begun = Instant::now();
            let audit = audit(&dir, &segments, &committed).await?;
            if !audit.is_clean() || audit.leases != leases || audit.rows != leases * ROWS {
                return Err(format!("{name}: the ledger was written without a fault, and one was found").into());
            }
            if run > 0 {
                seconds.push(begun.elapsed().as_secs_f64());
            }
        }
        measured.push((name, seconds));
    }
    Ok(measured)
}

/// Lease number `n` of a ledger: one epoch, divided evenly.
fn lease(n: u64, leases: u64, order: Order) -> RowRange {
    let per_partition = leases / PARTITIONS;
    let (partition, mut at) = match n < per_partition * PARTITIONS {
        true => (n % PARTITIONS, n / PARTITIONS),
        // The rest goes to the last one.
        false => (PARTITIONS - 1, per_partition + n - per_partition * PARTITIONS),
    };
    if matches!(order, Order::EvenThenOdd) && at < per_partition {
        let even = per_partition.div_ceil(2);
        at = if at < even { at * 2 } else { (at - even) * 2 + 1 };
    }
    RowRange { epoch: 0, partition: partition as u32, start: at * ROWS, end: (at + 1) * ROWS }
}

/// Writes a ledger and a manifest, so that `tfos verify-ledger` finds them too.
async fn write(
    dir: &ModelDir,
    leases: u64,
    per_segment: u64,
    order: Order,
) -> Result<(Vec<String>, CommittedRows), Box<dyn Error>> {
    let generation = dir.claim_generation("{}").await?;
    let at = Instant::now();
    let segment = |first: u64| async move {
        let upto = (first + per_segment).min(leases);
        let commit = |n: u64| CommitRecord {
            global_step: n + 1,
            worker: (n % WORKERS) as u32,
            loss: 1.0 / (n + 1) as f64,
            ranges: vec![lease(n, leases, order)],
            at,
        };
        let commits: Vec<CommitRecord> = (first..upto).map(commit).collect();
        write_segment(dir, generation, GlobalStep(first), GlobalStep(upto), &commits).await
    };
    // Each waits for the disk, so many wait together.
    let written = futures::stream::iter((0..leases).step_by(per_segment as usize).map(segment)).buffered(64);
    let segments: Vec<String> = written.try_collect().await?;
    let mut rows = vec![Some(leases / PARTITIONS * ROWS); PARTITIONS as usize];
    rows.pop();
    rows.push(Some((leases / PARTITIONS + leases % PARTITIONS) * ROWS));
    let committed = CommittedRows { complete_epochs: 1, partition_rows: rows, ..CommittedRows::default() };
    let manifest = Manifest {
        format: FORMAT,
        tfos_version: env!("CARGO_PKG_VERSION").into(),
        application: "ledger_bench".into(),
        generation: Generation(generation.0),
        global_step: GlobalStep(leases),
        layout: serde_json::Value::Null,
        optimizer: serde_json::Value::Null,
        optimizer_step: leases,
        parts: vec![],
        input_fingerprint: String::new(),
        rows: committed.clone(),
        rows_total: leases * ROWS,
        ledger: segments.clone(),
        arguments: serde_json::Value::Null,
        columns: vec![],
    };
    dir.commit(&manifest, false, None).await?;
    Ok((segments, committed))
}
