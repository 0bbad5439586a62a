//! The mirror of `tests/interop/tfrecord_interop.py`: `write DIR` writes TFRecord files for TensorFlow to check,
//! `check DIR` checks the files that TensorFlow wrote. Both sides know the expected records.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use flate2::write::{GzEncoder, ZlibEncoder};
use tfos_data::tfrecord::example::{Kind, for_each_feature};
use tfos_data::tfrecord::{ExampleWriter, FrameReader, FrameWriter};

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Bytes(Vec<Vec<u8>>),
}

type Record = BTreeMap<String, Value>;

const NAMES: [&str; 6] = [
    "scalars.tfrecord",
    "lists.tfrecord",
    "missing.tfrecord",
    "limits.tfrecord",
    "gzip.tfrecord.gz",
    "zlib.tfrecord.zlib",
];

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", dir] => {
            NAMES.iter().try_for_each(|name| write(&Path::new(dir).join(format!("tfos_{name}")), &expected(name)))
        }
        ["check", dir] => NAMES.iter().try_for_each(|name| {
            let path = Path::new(dir).join(format!("tf_{name}"));
            let found = read(&path)?;
            if found != expected(name) {
                return Err(format!("{}: found {found:?}", path.display()).into());
            }
            println!("{} is as expected", path.display());
            Ok(())
        }),
        _ => Err("usage: interop write|check DIR".into()),
    }
}

fn record<const N: usize>(features: [(&str, Value); N]) -> Record {
    features.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn expected(name: &str) -> Vec<Record> {
    use Value::{Bytes, Floats, Ints};
    let rows = 0..10_i64;
    match name {
        "lists.tfrecord" => rows
            .map(|i| {
                record([
                    ("floats", Floats((0..i % 3).map(|j| j as f32 * 0.25).collect())),
                    ("ints", Ints(vec![i, i + 1, -i])),
                    ("tags", Bytes((0..=i % 2).map(|j| format!("t{j}").into_bytes()).collect())),
                ])
            })
            .collect(),
        "missing.tfrecord" => rows
            .map(|i| {
                let mut r = record([("id", Ints(vec![i]))]);
                if i % 2 == 0 {
                    r.insert("even".to_owned(), Floats(vec![i as f32]));
                }
                if i % 3 == 0 {
                    r.insert("third".to_owned(), Bytes(vec![b"x".to_vec()]));
                }
                r
            })
            .collect(),
        "limits.tfrecord" => vec![record([
            ("bytes", Bytes(vec![Vec::new(), (0..=255).collect()])),
            ("floats", Floats(vec![f32::MAX, f32::MIN_POSITIVE, -0.0, f32::INFINITY])),
            ("ints", Ints(vec![i64::MIN, -1, 0, i64::MAX])),
        ])],
        _ => rows
            .map(|i| {
                record([
                    ("bytes", Bytes(vec![format!("v{i}").into_bytes()])),
                    ("float", Floats(vec![i as f32 * 0.5])),
                    ("int", Ints(vec![i - 5])),
                ])
            })
            .collect(),
    }
}

fn write(path: &Path, records: &[Record]) -> Result<(), Box<dyn Error>> {
    let mut plain = FrameWriter::new(Vec::new());
    let mut example = ExampleWriter::default();
    for record in records {
        for (name, value) in record {
            match value {
                Value::Ints(v) => example.ints(name, v.iter().copied()),
                Value::Floats(v) => example.floats(name, v.iter().copied()),
                Value::Bytes(v) => example.bytes(name, v.iter().map(Vec::as_slice)),
            }
        }
        plain.write(example.finish())?;
    }
    let (file, bytes) = (File::create(path)?, plain.into_inner());
    match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => GzEncoder::new(file, flate2::Compression::default()).write_all(&bytes)?,
        Some("zlib") => ZlibEncoder::new(file, flate2::Compression::default()).write_all(&bytes)?,
        _ => (&file).write_all(&bytes)?,
    }
    println!("{} written", path.display());
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Record>, Box<dyn Error>> {
    let mut reader = FrameReader::new(File::open(path)?, path.display().to_string());
    let mut records = Vec::new();
    while let Some(frame) = reader.next_record()? {
        let mut record = Record::new();
        for_each_feature(frame.data, |name, feature| {
            let value = match feature.kind {
                Kind::Int64 => {
                    let mut v = Vec::new();
                    feature.for_each_int(|i| {
                        v.push(i);
                        Ok(())
                    })?;
                    Value::Ints(v)
                }
                Kind::Float => {
                    let mut v = Vec::new();
                    feature.for_each_floats(|run| {
                        v.extend(run.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
                        Ok(())
                    })?;
                    Value::Floats(v)
                }
                Kind::Bytes => {
                    let mut v = Vec::new();
                    feature.for_each_bytes(|b| {
                        v.push(b.to_vec());
                        Ok(())
                    })?;
                    Value::Bytes(v)
                }
            };
            record.insert(String::from_utf8_lossy(name).into_owned(), value);
            Ok(())
        })?;
        records.push(record);
    }
    Ok(records)
}
