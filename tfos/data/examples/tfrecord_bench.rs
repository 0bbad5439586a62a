//! How fast TFRecord files become record batches: an MNIST-shaped and a Criteo-shaped file, one thread.
//!
//! `tfrecord_bench [--records N] [--output json] [--keep DIR]` (DIR keeps the files, for others to read); the file is read once to warm the page cache, then measured.

use std::error::Error;
use std::fs::File;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use tfos_data::tfrecord::{BatchDecoder, ExampleWriter, FrameWriter, TfRecordReader, parse_schema};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let records: usize = value("--records").map_or(Ok(200_000), |n| n.parse())?;
    let json = value("--output").is_some_and(|o| o == "json");
    let keep = value("--keep");
    let dir = keep.map_or_else(
        || std::env::temp_dir().join(format!("tfrecord-bench-{}", std::process::id())),
        std::path::PathBuf::from,
    );
    std::fs::create_dir_all(&dir)?;
    let measured = measure(&dir, records);
    if keep.is_none() {
        std::fs::remove_dir_all(&dir)?;
    }
    for (name, decode, read) in measured? {
        let rate = |time: Duration| records as f64 / time.as_secs_f64();
        if json {
            println!(
                "{}",
                serde_json::json!({"shape": name, "records": records, "decode_per_s": rate(decode).round(), "read_per_s": rate(read).round()})
            );
        } else {
            println!(
                "{name:<12} decode {:>12.0} records/s   read and decode {:>12.0} records/s",
                rate(decode),
                rate(read)
            );
        }
    }
    Ok(())
}

/// Name, schema, and what fills record i.
type Shape<'a> = (&'static str, &'a str, &'a mut dyn FnMut(&mut ExampleWriter, usize));

type Measured = (&'static str, Duration, Duration);

fn measure(dir: &std::path::Path, records: usize) -> Result<Vec<Measured>, Box<dyn Error>> {
    let criteo: Vec<String> =
        (0..13).map(|i| format!("f{i}:float32")).chain((0..26).map(|i| format!("c{i}:int64"))).collect();
    let criteo = format!("{},label:int64", criteo.join(","));
    let mnist_image = vec![7_u8; 784];
    let mut mnist = |w: &mut ExampleWriter, i: usize| {
        w.bytes("image", std::iter::once(mnist_image.as_slice()));
        w.ints("label", std::iter::once(i as i64 % 10));
    };
    let names: Vec<String> = (0..13).map(|i| format!("f{i}")).chain((0..26).map(|i| format!("c{i}"))).collect();
    let mut click = |w: &mut ExampleWriter, i: usize| {
        for (j, name) in names.iter().enumerate() {
            if j < 13 {
                w.floats(name, std::iter::once((i * j) as f32));
            } else {
                w.ints(name, std::iter::once((i * j % 1_000_003) as i64));
            }
        }
        w.ints("label", std::iter::once(i as i64 % 2));
    };
    let shapes: [Shape<'_>; 3] = [
        ("mnist", "image:binary,label:int64", &mut mnist),
        ("mnist_u8", "image:uint8[784],label:int64", &mut |w, i| {
            w.bytes("image", std::iter::once([7_u8; 784].as_slice()));
            w.ints("label", std::iter::once(i as i64 % 10));
        }),
        ("criteo", &criteo, &mut click),
    ];
    let mut measured = Vec::new();
    for (name, schema, fill) in shapes {
        let schema = parse_schema(schema)?;
        let path = dir.join(format!("{name}.tfrecord"));
        let mut example = ExampleWriter::default();
        let mut sample = Vec::new();
        let mut writer = FrameWriter::new(std::io::BufWriter::new(File::create(&path)?));
        for i in 0..records {
            fill(&mut example, i);
            let record = example.finish();
            if sample.len() < 8192 {
                sample.push(record.to_vec());
            }
            writer.write(record)?;
        }
        drop(writer.into_inner().into_inner()?);

        let mut decoder = BatchDecoder::new(schema.clone(), 8192, "memory".into())?;
        let start = Instant::now();
        for (i, data) in sample.iter().cycle().take(records).enumerate() {
            decoder.push(tfos_data::tfrecord::frame::Record { offset: i as u64, data })?;
            if decoder.is_full() {
                decoder.finish()?;
            }
        }
        let decode = start.elapsed();

        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let mut read = Duration::ZERO;
        for _ in 0..2 {
            let start = Instant::now();
            let rows = runtime.block_on(async {
                let batches = TfRecordReader::open(&path.display().to_string(), Some(schema.clone()), 8192).await?;
                batches.try_fold(0, |n, batch| std::future::ready(Ok(n + batch.num_rows()))).await
            })?;
            read = start.elapsed();
            if rows != records {
                return Err(format!("{rows} of {records} records read").into());
            }
        }
        measured.push((name, decode, read));
    }
    Ok(measured)
}
