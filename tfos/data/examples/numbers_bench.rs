//! Rows per second of numbers, and of lists of them, from Parquet files, one thread, beside DataFusion's own reader.
//!
//! `cargo run -p tfos-data --example numbers_bench [-- ROWS [NAME]]`; NAME is a table's, read here alone, for a profiler.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use tfos_data::arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, UInt8Array};
use tfos_data::arrow::datatypes::{DataType, Field};
use tfos_data::datafusion::execution::SendableRecordBatchStream;
use tfos_data::parquet::arrow::ArrowWriter;
use tfos_data::parquet::basic::Compression;
use tfos_data::parquet::file::properties::WriterProperties;
use tfos_data::session::{Format, read, session};
use tfos_data::{arrow, plan};

const ROUNDS: usize = 3;

fn table(name: &str, rows: usize) -> Result<RecordBatch, arrow::error::ArrowError> {
    if name.starts_with("clicks") {
        return clicks(name, rows);
    }
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let (size, numbers): (usize, ArrayRef) = match name {
        "floats" => (128, Arc::new(Float32Array::from_iter_values((0..rows * 128).map(|i| (i as f32).sin())))),
        "digits" => {
            // A fifth of the pixels is ink.
            let pixel = |i: usize| if (i / 8).is_multiple_of(5) { next() } else { 0 };
            (784, Arc::new(UInt8Array::from_iter_values((0..rows * 784).map(pixel))))
        }
        _ => (784, Arc::new(UInt8Array::from_iter_values((0..rows * 784).map(|_| next())))),
    };
    let item = Arc::new(Field::new("item", numbers.data_type().clone(), false));
    let lists: ArrayRef = Arc::new(FixedSizeListArray::try_new(item, size as i32, numbers, None)?);
    let labels: ArrayRef = Arc::new(Int64Array::from_iter_values((0..rows as i64).map(|i| i % 10)));
    if name == "variable" {
        let list = DataType::List(Arc::new(Field::new("item", DataType::UInt8, true)));
        return RecordBatch::try_from_iter([("x", arrow::compute::cast(&lists, &list)?), ("label", labels)]);
    }
    RecordBatch::try_from_iter([("x", lists), ("label", labels)])
}

/// 13 f32 and 26 i64 with up to some ten thousand values each, as in a table of clicks; with nulls, a sixteenth is.
fn clicks(name: &str, rows: usize) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut state = 1u64;
    let mut random = || {
        // Marsaglia's xorshift64, <https://www.jstatsoft.org/article/view/v008i14>.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let nulls = name == "clicks with nulls";
    let columns = (0..39).map(|number| {
        let mut next = |of: u64| {
            let random = random();
            (!nulls || random >> 40 & 15 != 0).then_some(random % of)
        };
        let column: ArrayRef = match number {
            0..13 => {
                let numbers = (0..rows).map(|_| next(100_000).map(|n| n as f32 / 1000.0));
                Arc::new(Float32Array::from_iter(numbers))
            }
            _ => {
                let numbers = (0..rows).map(|_| next(16 << ((number - 13) / 2)).map(|n| n as i64 * 2_654_435_761));
                Arc::new(Int64Array::from_iter(numbers))
            }
        };
        (format!("c{number}"), column, nulls)
    });
    RecordBatch::try_from_iter_with_nullable(columns)
}

async fn drain(rows: SendableRecordBatchStream) -> Result<usize, Box<dyn std::error::Error>> {
    Ok(rows.try_fold(0, |sum, batch| async move { Ok(sum + batch.num_rows()) }).await?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let rows: usize = args.next().map_or(Ok(40_000), |rows| rows.parse())?;
    let only = args.next();
    let dir = tempfile::tempdir()?;
    for (name, compression) in [
        ("random", Compression::UNCOMPRESSED),
        ("random", Compression::SNAPPY),
        ("digits", Compression::SNAPPY),
        ("variable", Compression::UNCOMPRESSED),
        ("floats", Compression::UNCOMPRESSED),
        ("clicks", Compression::UNCOMPRESSED),
        ("clicks with nulls", Compression::UNCOMPRESSED),
    ] {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let path = dir.path().join("rows.parquet");
        let batch = table(name, rows)?;
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut writer = ArrowWriter::try_new(std::fs::File::create(&path)?, batch.schema(), Some(properties))?;
        writer.write(&batch)?;
        writer.close()?;
        let ctx = session();
        let frame = read(&ctx, &path.display().to_string(), Format::Parquet, None).await?;
        let physical = plan::decode(&plan::encode(&frame.create_physical_plan().await?)?, &ctx)?;
        let mut times = [Duration::MAX; 2];
        for _ in 0..ROUNDS {
            for (ours, best) in times.iter_mut().enumerate().skip(usize::from(only.is_some())) {
                let begun = Instant::now();
                let mut sum = 0;
                for partition in 0..plan::partitions(&physical) {
                    sum += drain(match ours {
                        1 => plan::execute(&physical, partition, &ctx)?,
                        _ => physical.execute(partition, ctx.task_ctx())?,
                    })
                    .await?;
                }
                assert_eq!(sum, rows);
                *best = begun.elapsed().min(*best);
            }
        }
        let [theirs, ours] = times.map(|time| rows as f64 / time.as_secs_f64());
        println!(
            "{name:>17} {compression:<12} {theirs:>10.0} rows/s DataFusion {ours:>10.0} here, {:.1} times",
            ours / theirs
        );
    }
    Ok(())
}
