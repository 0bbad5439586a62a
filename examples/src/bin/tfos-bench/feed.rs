//! Rows per second and worker through the feed, with no training, beside what the machine's memory allows.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tfos::data::arrow::array::{ArrayRef, BinaryArray, FixedSizeListArray, Int64Array, RecordBatch, UInt8Array};
use tfos::data::arrow::datatypes::{DataType, Field};
use tfos::data::arrow::ipc::writer::FileWriter;
use tfos::data::parquet::arrow::ArrowWriter;

use crate::report::{Report, cluster, number, spread};

const RUNS: usize = 3;
const ROWS: usize = 200_000;
const EPOCHS: &str = "10";
const PIXELS: usize = 784;
/// Files of each table.
const PARTS: usize = 8;
/// What it is called, its flags, rows of a block within which rows are shuffled.
const SHAPES: [(&str, &str, &str); 3] = [
    ("one worker", "--cluster-size 1 --num-ps 0", "0"),
    ("one worker, shuffled in blocks of 8192", "--cluster-size 1 --num-ps 0", "8192"),
    ("per worker of 2", "--cluster-size 3 --num-ps 1", "0"),
];
/// Bytes of a row: the image and its label.
const ROW_BYTES: f64 = 792.0;

pub(crate) fn run() -> Result<Report, String> {
    let folder = std::env::temp_dir().join(format!("tfos-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let result = measure(&folder);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

/// Writes a Parquet file, and gives its path.
pub(crate) fn write(folder: &Path, name: &str, rows: &RecordBatch) -> Result<String, String> {
    let path = folder.join(name);
    let file = std::fs::File::create(&path).map_err(|e| e.to_string())?;
    let mut writer = ArrowWriter::try_new(file, rows.schema(), None).map_err(|e| e.to_string())?;
    writer.write(rows).map_err(|e| e.to_string())?;
    writer.close().map_err(|e| e.to_string())?;
    Ok(path.display().to_string())
}

/// Writes an Arrow IPC file, which costs nothing to decode, and gives its path.
pub(crate) fn write_arrow(folder: &Path, name: &str, rows: &RecordBatch) -> Result<String, String> {
    let path = folder.join(name);
    let file = std::fs::File::create(&path).map_err(|e| e.to_string())?;
    let mut writer = FileWriter::try_new(file, &rows.schema()).map_err(|e| e.to_string())?;
    for start in (0..rows.num_rows()).step_by(8192) {
        let piece = rows.slice(start, 8192.min(rows.num_rows() - start));
        writer.write(&piece).map_err(|e| e.to_string())?;
    }
    writer.finish().map_err(|e| e.to_string())?;
    Ok(path.display().to_string())
}

/// A table in parts, as tables are.
fn write_parts(folder: &Path, name: &str, rows: &RecordBatch, arrow: bool) -> Result<String, String> {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let part = rows.num_rows() / PARTS;
    for i in 0..PARTS {
        let rows = rows.slice(i * part, part);
        match arrow {
            true => write_arrow(&folder, &format!("part-{i}.arrow"), &rows)?,
            false => write(&folder, &format!("part-{i}.parquet"), &rows)?,
        };
    }
    Ok(folder.display().to_string())
}

/// Name, whether it is written as Arrow IPC, rows.
fn tables() -> Result<Vec<(&'static str, bool, RecordBatch)>, String> {
    // Pixels of a drawn digit are mostly zero; these are not, so that nothing is won by compression.
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let pixels: Vec<u8> = (0..ROWS * PIXELS).map(|_| next()).collect();
    let labels: ArrayRef = Arc::new(Int64Array::from_iter_values((0..ROWS as i64).map(|i| i % 10)));
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(pixels.chunks(PIXELS)));
    let field = Arc::new(Field::new("item", DataType::UInt8, false));
    let list = FixedSizeListArray::try_new(field, PIXELS as i32, Arc::new(UInt8Array::from(pixels)), None);
    let list: ArrayRef = Arc::new(list.map_err(|e| e.to_string())?);
    let table = |image: ArrayRef| {
        RecordBatch::try_from_iter([("image", image), ("label", Arc::clone(&labels))]).map_err(|e| e.to_string())
    };
    Ok(vec![
        ("arrow ipc, list of 784 u8", true, table(Arc::clone(&list))?),
        ("parquet, binary", false, table(bytes)?),
        ("parquet, list of 784 u8", false, table(list)?),
    ])
}

/// Bytes per second that one core copies from memory to memory, counting each byte once.
pub(crate) fn copy_bandwidth() -> f64 {
    let source = vec![1u8; 256 << 20];
    let mut target = vec![0u8; 256 << 20];
    target.copy_from_slice(&source);
    let begun = Instant::now();
    for _ in 0..4 {
        target.copy_from_slice(&source);
    }
    std::hint::black_box(&target);
    (4 * source.len()) as f64 / begun.elapsed().as_secs_f64()
}

fn measure(folder: &Path) -> Result<Report, String> {
    let mut report = Report::new("feed");
    let copy: Vec<f64> = (0..RUNS).map(|_| copy_bandwidth() / 1e9).collect();
    report.runs("memory copy, one core", "GB/s", &copy);
    for (number_of, (name, arrow, rows)) in tables()?.into_iter().enumerate() {
        let data = write_parts(folder, &format!("table-{number_of}"), &rows, arrow)?;
        drop(rows);
        // In turn, so that what else the machine does falls on all of them.
        let mut rates = vec![vec![]; SHAPES.len()];
        for run in 0..RUNS {
            for (number_of_shape, ((_, flags, block), rates)) in SHAPES.iter().zip(&mut rates).enumerate() {
                let dir = folder.join(format!("model-{number_of}-{number_of_shape}-{run}")).display().to_string();
                let flags: Vec<&str> = flags.split(' ').chain(["--model-dir", &dir]).collect();
                let value = cluster(&flags, "feed", &[&data, EPOCHS, block])?;
                rates.push(number(&value, "metrics.rows_per_sec"));
            }
        }
        for ((shape, ..), rates) in SHAPES.iter().zip(&rates) {
            let share = spread(rates).1 * ROW_BYTES / 1e9 / spread(&copy).1 * 100.0;
            report.runs(&format!("{name}, {shape}"), "rows/s", rates);
            report.note(format!("  that is {share:.1} % of the memory copy"));
        }
    }
    report.note("TensorFlowOnSpark's queue alone, measured on such a machine: 6,400 rows/s per worker");
    Ok(report)
}
