//! The feed beside its peers: the same files, from storage to batches of 256 that are ready for training in two consumers,
//! in turn, with the limits of the machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use tfos::data::arrow::array::{ArrayRef, BinaryArray, Float32Array, Int64Array, ListArray, RecordBatch, UInt8Array};
use tfos::data::arrow::buffer::OffsetBuffer;
use tfos::data::arrow::datatypes::{DataType, Field};
use tfos::data::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tfos::data::tfrecord::{BatchDecoder, ExampleEncoder, FrameReader, FrameWriter, parse_schema};

use crate::apps::{CATEGORIES, DENSE, schema};
use crate::feed::{copy_bandwidth, write};
use crate::report::{Report, cluster, number, spread};

/// Files of each table.
const PARTS: usize = 16;
const PIXELS: usize = 784;

/// A table, and bytes of a row of it when it is decoded.
const TABLES: [(&str, f64); 2] = [("mnist", 792.0), ("criteo", 268.0)];

/// `feed-peers [KEY=VALUE…]`: sizes, and where the peers are.
#[derive(Debug)]
struct Options {
    rows: [usize; 2],
    /// Passes over the files of each run.
    repeat: usize,
    rounds: usize,
    /// Cases whose name has this.
    only: String,
    scripts: PathBuf,
    /// Python with Ray and pyarrow, the folder of PyTorch's packages, Python with TensorFlow.
    peers: PathBuf,
    torch: PathBuf,
    tensorflow: PathBuf,
}

fn options(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        rows: [200_000, 1_000_000],
        repeat: 5,
        rounds: 3,
        only: String::new(),
        scripts: PathBuf::new(),
        peers: PathBuf::new(),
        torch: PathBuf::new(),
        tensorflow: PathBuf::new(),
    };
    for argument in arguments.iter().filter(|a| a.contains('=')) {
        let (key, value) = argument.split_once('=').unwrap_or_default();
        let count = || value.parse::<usize>().map_err(|e| format!("{argument}: {e}"));
        match key {
            "mnist-rows" => options.rows[0] = count()?.max(PARTS),
            "criteo-rows" => options.rows[1] = count()?.max(PARTS),
            "repeat" => options.repeat = count()?.max(1),
            "rounds" => options.rounds = count()?.max(1),
            "only" => options.only = value.into(),
            "scripts" => options.scripts = value.into(),
            "peers" => options.peers = value.into(),
            "torch" => options.torch = value.into(),
            "tensorflow" => options.tensorflow = value.into(),
            _ => return Err(format!("{key}= is none of mnist-rows, criteo-rows, repeat, rounds, only")),
        }
    }
    Ok(options)
}

pub(crate) fn run(arguments: &[String]) -> Result<Report, String> {
    let options = options(arguments)?;
    let folder = std::env::temp_dir().join(format!("tfos-bench-peers-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let result = measure(&folder, &options);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

/// Rows of a part of a table, for Parquet and for TFRecord files, whose images are one value of raw bytes.
fn rows(table: &str, count: usize, seed: u64) -> Result<(RecordBatch, RecordBatch), String> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut random = move || {
        // Marsaglia's xorshift64, <https://www.jstatsoft.org/article/view/v008i14>.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let label: ArrayRef = Arc::new(Int64Array::from_iter_values((0..count).map(|_| (random() % 10) as i64)));
    let batch = |columns: Vec<(String, ArrayRef)>| RecordBatch::try_from_iter(columns).map_err(|e| e.to_string());
    if table == "mnist" {
        // A fifth of the pixels is lit, as in MNIST.
        let pixel = |random: u64| if random.is_multiple_of(5) { (random >> 32) as u8 } else { 0 };
        let pixels: Vec<u8> = (0..count * PIXELS).map(|_| pixel(random())).collect();
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(pixels.chunks(PIXELS)));
        let item = Arc::new(Field::new_list_field(DataType::UInt8, false));
        let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(PIXELS, count));
        let list = ListArray::try_new(item, offsets, Arc::new(UInt8Array::from(pixels)), None);
        let list: ArrayRef = Arc::new(list.map_err(|e| e.to_string())?);
        let named = |image: ArrayRef| vec![("image".to_owned(), image), ("label".to_owned(), Arc::clone(&label))];
        return Ok((batch(named(list))?, batch(named(bytes))?));
    }
    let mut columns = vec![("label".to_owned(), label)];
    for name in DENSE {
        let values = (0..count).map(|_| (random() % 100_000) as f32 / 1000.0);
        columns.push((name.to_owned(), Arc::new(Float32Array::from_iter_values(values))));
    }
    for (number, name) in CATEGORIES.iter().enumerate() {
        // Some columns have few values and some have many, as in Criteo's.
        let values = (0..count).map(|_| (random() % (16 << (number / 2))) as i64 * 2_654_435_761 % (1 << 31));
        columns.push(((*name).to_owned(), Arc::new(Int64Array::from_iter_values(values))));
    }
    let rows = batch(columns)?;
    Ok((rows.clone(), rows))
}

/// Writes both forms of a table; gives their folders.
fn write_table(folder: &Path, table: &str, count: usize) -> Result<[PathBuf; 2], String> {
    let folders = ["parquet", "tfrecord"].map(|kind| folder.join(format!("{table}-{kind}")));
    for folder in &folders {
        std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    }
    for part in 0..PARTS {
        let (parquet, tfrecord) = rows(table, count / PARTS, part as u64)?;
        write(&folders[0], &format!("part-{part:02}.parquet"), &parquet)?;
        let path = folders[1].join(format!("part-{part:02}.tfrecord"));
        let file = std::fs::File::create(path).map_err(|e| e.to_string())?;
        let mut writer = FrameWriter::new(std::io::BufWriter::new(file));
        let write = |record: &[u8]| writer.write(record).map_err(|e| io_error(&e));
        ExampleEncoder::default().encode(&tfrecord, write).map_err(|e| e.to_string())?;
        writer.into_inner().into_inner().map_err(|e| e.to_string())?;
    }
    Ok(folders)
}

fn io_error(error: &std::io::Error) -> tfos::data::Error {
    tfos::data::Error::Unsupported { what: error.to_string(), instead: "make room for the tables".into() }
}

/// Rows per second of one core that decodes and does nothing else.
fn decode_alone(table: &str, folders: &[PathBuf; 2]) -> Result<[f64; 2], String> {
    let (mut count, begun) = (0, Instant::now());
    for file in files(&folders[0])? {
        let file = std::fs::File::open(file).map_err(|e| e.to_string())?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?;
        for batch in reader.with_batch_size(1024).build().map_err(|e| e.to_string())? {
            count += batch.map_err(|e| e.to_string())?.num_rows();
        }
    }
    let parquet = count as f64 / begun.elapsed().as_secs_f64();
    let columns = parse_schema(&schema(table)).map_err(|e| e.to_string())?;
    let (mut count, begun) = (0, Instant::now());
    for file in files(&folders[1])? {
        let name = file.display().to_string();
        let mut reader = FrameReader::new(std::fs::File::open(file).map_err(|e| e.to_string())?, name.as_str());
        let mut decoder = BatchDecoder::new(Arc::clone(&columns), 4096, name.into()).map_err(|e| e.to_string())?;
        while let Some(record) = reader.next_record().map_err(|e| e.to_string())? {
            decoder.push(record).map_err(|e| e.to_string())?;
            count += 1;
            if decoder.is_full() {
                decoder.finish().map_err(|e| e.to_string())?;
            }
        }
    }
    Ok([parquet, count as f64 / begun.elapsed().as_secs_f64()])
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files: Vec<PathBuf> =
        folder.read_dir().map_err(|e| e.to_string())?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    Ok(files)
}

/// Who is measured.
#[derive(Debug, Clone, Copy)]
enum Who {
    /// Feed or direct, and rows of a block within which rows are shuffled.
    Tfos(&'static str, &'static str),
    Script(&'static str, bool),
}

/// Name, who it is, and whether it reads TFRecord files.
const CASES: [(&str, Who, bool); 8] = [
    ("tfos feed, parquet", Who::Tfos("feed", "0"), false),
    ("tfos feed, parquet, shuffled in blocks of 8192", Who::Tfos("feed", "8192"), false),
    ("PyTorch DataLoader, parquet", Who::Script("feed_loader.py", false), false),
    ("Ray Data streaming_split, parquet", Who::Script("feed_ray.py", false), false),
    ("tfos feed, tfrecord", Who::Tfos("feed", "0"), true),
    ("tfos feed, tfrecord, shuffled in blocks of 8192", Who::Tfos("feed", "8192"), true),
    ("tfos direct, tfrecord", Who::Tfos("direct", "0"), true),
    ("tf.data, tfrecord", Who::Script("feed_tfdata.py", true), true),
];

fn rate(who: Who, table: &str, data: &Path, model: &Path, options: &Options) -> Result<f64, String> {
    let (data, repeat) = (data.display().to_string(), options.repeat.to_string());
    match who {
        Who::Tfos(mode, block) => {
            let flags = ["--cluster-size", "3", "--num-ps", "1", "--model-dir", &model.display().to_string()];
            let value = cluster(&flags, "ready", &[&data, &repeat, table, mode, block])?;
            // From when the consumers are told to read, as in the peers' scripts, which have loaded their libraries by then.
            // All consumers end at the same time, when the last row is committed.
            Ok(number(&value, "rows") / number(&value, "metrics.seconds"))
        }
        Who::Script(script, tensorflow) => {
            let python = if tensorflow { &options.tensorflow } else { &options.peers };
            let mut command = Command::new(python);
            command.arg(options.scripts.join(script)).args([&data, table, &repeat]);
            if !tensorflow {
                command.env("PYTHONPATH", &options.torch);
            }
            let output = command.output().map_err(|e| format!("{}: {e}", python.display()))?;
            let text = String::from_utf8_lossy(&output.stdout);
            let value = serde_json::from_str(text.lines().last().unwrap_or_default());
            let value = value.map_err(|e| format!("{script}: {e}: {}", String::from_utf8_lossy(&output.stderr)))?;
            Ok(number(&value, "rows_per_sec"))
        }
    }
}

fn measure(folder: &Path, options: &Options) -> Result<Report, String> {
    let mut report = Report::new("feed-peers");
    let copy: Vec<f64> = (0..options.rounds).map(|_| copy_bandwidth() / 1e9).collect();
    report.runs("memory copy, one core", "GB/s", &copy);
    for ((table, row_bytes), count) in TABLES.iter().zip(options.rows) {
        let folders = write_table(folder, table, count)?;
        report.note(format!(
            "{table}: {count} rows x {} passes in {PARTS} files, to batches of 256 in two consumers",
            options.repeat
        ));
        let mut rates = vec![vec![]; CASES.len()];
        let (mut parquet, mut tfrecord) = (vec![], vec![]);
        for round in 0..options.rounds {
            let [p, t] = decode_alone(table, &folders)?;
            parquet.push(p);
            tfrecord.push(t);
            // In turn, so that what else the machine does falls on all of them.
            for (number, ((_, who, records), rates)) in CASES.iter().zip(&mut rates).enumerate() {
                if !CASES[number].0.contains(&options.only) {
                    continue;
                }
                let model = folder.join(format!("model-{table}-{round}-{number}"));
                rates.push(rate(*who, table, &folders[usize::from(*records)], &model, options)?);
            }
        }
        let decoded = [("parquet decoded, one core", &parquet), ("tfrecord decoded, one core", &tfrecord)];
        for (name, rates) in decoded.into_iter().chain(CASES.iter().map(|case| case.0).zip(&rates)) {
            if rates.is_empty() {
                continue;
            }
            report.runs(&format!("{table}: {name}"), "rows/s", rates);
            let bytes = spread(rates).1 * row_bytes;
            let share = bytes / 1e9 / spread(&copy).1 * 100.0;
            report.note(format!("  that is {:.0} MB/s, {share:.1} % of the memory copy", bytes / 1e6));
        }
        for folder in &folders {
            std::fs::remove_dir_all(folder).map_err(|e| e.to_string())?;
        }
    }
    Ok(report)
}
