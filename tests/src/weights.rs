//! Safetensors files of weights, made and read as any other program would: the format is a length, a JSON header, values.
#![expect(clippy::expect_used, reason = "the harness of tests ends a test by a panic")]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

/// A file of tensors (name, type, shape, bytes).
pub fn write(path: &Path, tensors: &[(&str, &str, &[i64], Vec<u8>)]) {
    let (mut header, mut data) = (Map::new(), vec![]);
    for (name, dtype, shape, bytes) in tensors {
        let from = data.len();
        data.extend(bytes);
        header.insert((*name).to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": [from, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    std::fs::write(path, file).expect("a file of weights can be written");
}

/// The bytes of f32 values.
pub fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Shapes and values of the f32 tensors of a file.
pub fn read(path: &Path) -> BTreeMap<String, (Vec<i64>, Vec<f32>)> {
    let file = std::fs::read(path).expect("a file of weights can be read");
    let (length, rest) = file.split_first_chunk::<8>().expect("it has a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Map<String, Value> = serde_json::from_slice(header).expect("its header is JSON");
    let tensor = |(name, info): (&String, &Value)| {
        let at = |i: usize| info["data_offsets"][i].as_u64().expect("an offset") as usize;
        let shape = info["shape"].as_array().expect("a shape").iter().filter_map(Value::as_i64).collect();
        let values = data[at(0)..at(1)].as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect();
        (name.clone(), (shape, values))
    };
    header.iter().filter(|(name, _)| *name != "__metadata__").map(tensor).collect()
}
