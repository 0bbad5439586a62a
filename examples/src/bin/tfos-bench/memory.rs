//! What a feed with a bound really takes: tables of twenty times `--feed-memory` beside one of next to no rows.

use std::path::Path;
use std::sync::Arc;

use tfos::data::arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch};

use crate::report::{Report, cluster, number};

const RUNS: usize = 3;
const BOUND: usize = 64 << 20;
/// Files of a table.
const PARTS: usize = 32;
const PIXELS: usize = 784;
/// Rows of a file, so that all have twenty times the bound.
const ROWS: usize = 20 * BOUND / PARTS / (PIXELS + 8);

pub(crate) fn run() -> Result<Report, String> {
    let folder = std::env::temp_dir().join(format!("tfos-bench-memory-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let result = measure(&folder);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

/// Rows of bytes that nothing compresses; other ones for each `seed`.
fn rows(count: usize, seed: u64) -> Result<RecordBatch, String> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(count * PIXELS);
    for _ in 0..count * PIXELS / 8 {
        // Marsaglia's xorshift64, <https://www.jstatsoft.org/article/view/v008i14>.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(bytes.chunks(PIXELS)));
    let labels: ArrayRef = Arc::new(Int64Array::from_iter_values((0..count as i64).map(|i| i % 10)));
    RecordBatch::try_from_iter([("image", images), ("label", labels)]).map_err(|e| e.to_string())
}

fn table(folder: &Path, name: &str, arrow: bool, rows_of_file: usize) -> Result<String, String> {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    for part in 0..PARTS {
        let rows = rows(rows_of_file, part as u64)?;
        match arrow {
            true => crate::feed::write_arrow(&folder, &format!("part-{part:02}.arrow"), &rows)?,
            false => crate::feed::write(&folder, &format!("part-{part:02}.parquet"), &rows)?,
        };
    }
    Ok(folder.display().to_string())
}

fn measure(folder: &Path) -> Result<Report, String> {
    let mut report = Report::new("memory");
    let bound = BOUND.to_string();
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    report.note(format!(
        "--feed-memory {} MiB, tables of {} MiB in {PARTS} files, one worker; resident memory at its peak",
        BOUND >> 20,
        (20 * BOUND) >> 20
    ));
    for (name, arrow, block) in
        [("parquet", false, "0"), ("parquet, shuffled in blocks of 4096", false, "4096"), ("arrow ipc", true, "0")]
    {
        let small = table(folder, &format!("small-{arrow}"), arrow, 8)?;
        let large = table(folder, &format!("large-{arrow}"), arrow, ROWS)?;
        let (mut bases, mut own, mut held) = (vec![], vec![], vec![]);
        for run in 0..RUNS {
            let mut peaks = vec![];
            for (size, data) in [("small", &small), ("large", &large)] {
                let model = folder.join(format!("model-{size}-{arrow}-{block}-{run}")).display().to_string();
                let flags = ["--cluster-size", "1", "--feed-memory", &bound, "--model-dir", &model];
                let value = cluster(&flags, "feed", &[data, "1", block])?;
                peaks.push(mib(number(&value, "feed_memory.resident")));
                if size == "large" {
                    held.push(mib(number(&value, "feed_memory.together")));
                }
            }
            if let [base, peak] = peaks[..] {
                bases.push(base);
                own.push((peak - base) / mib(BOUND as f64) * 100.0);
            }
        }
        report.runs(&format!("{name}: with next to no rows"), "MiB", &bases);
        report.runs(&format!("{name}: the feed held"), "MiB", &held);
        report.runs(&format!("{name}: the process had more"), "% of the bound", &own);
        std::fs::remove_dir_all(&large).map_err(|e| e.to_string())?;
    }
    report.note("the aim: at most 110 % of the bound");
    Ok(report)
}
