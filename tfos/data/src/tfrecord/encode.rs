//! The encoder of `tf.train.Example`: sizes are computed first, so every byte is written once and in place.

use super::example::Kind;

/// Builds one record after another in the same buffers.
#[derive(Debug, Default)]
pub struct ExampleWriter {
    features: Vec<u8>,
    record: Vec<u8>,
}

impl ExampleWriter {
    /// Adds a `BytesList`.
    pub fn bytes<'v>(&mut self, name: &str, values: impl Iterator<Item = &'v [u8]> + Clone) {
        let payload = values.clone().map(|v| 1 + varint_len(v.len() as u64) + v.len()).sum();
        self.head(name, Kind::Bytes, payload);
        for value in values {
            delimited(&mut self.features, 1, value.len());
            self.features.extend_from_slice(value);
        }
    }

    /// Adds a packed `FloatList`.
    pub fn floats(&mut self, name: &str, values: impl ExactSizeIterator<Item = f32>) {
        let size = 4 * values.len();
        self.head(name, Kind::Float, packed_len(size));
        if size > 0 {
            delimited(&mut self.features, 1, size);
            values.for_each(|v| self.features.extend_from_slice(&v.to_le_bytes()));
        }
    }

    /// Adds a packed `Int64List`.
    pub fn ints(&mut self, name: &str, values: impl Iterator<Item = i64> + Clone) {
        let size = values.clone().map(|v| varint_len(v as u64)).sum();
        self.head(name, Kind::Int64, packed_len(size));
        if size > 0 {
            delimited(&mut self.features, 1, size);
            values.for_each(|v| put_varint(&mut self.features, v as u64));
        }
    }

    /// The finished record; the next call of another method begins a new one.
    pub fn finish(&mut self) -> &[u8] {
        self.record.clear();
        delimited(&mut self.record, 1, self.features.len());
        self.record.append(&mut self.features);
        &self.record
    }

    /// Everything of a map entry before the list's `payload` bytes.
    fn head(&mut self, name: &str, kind: Kind, payload: usize) {
        let feature = 1 + varint_len(payload as u64) + payload;
        let entry = 1 + varint_len(name.len() as u64) + name.len() + 1 + varint_len(feature as u64) + feature;
        delimited(&mut self.features, 1, entry);
        delimited(&mut self.features, 1, name.len());
        self.features.extend_from_slice(name.as_bytes());
        delimited(&mut self.features, 2, feature);
        delimited(&mut self.features, kind as u8, payload);
    }
}

/// Tag and length of a length-delimited field with a number below 16.
fn delimited(out: &mut Vec<u8>, number: u8, length: usize) {
    out.push(number << 3 | 2);
    put_varint(out, length as u64);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn packed_len(size: usize) -> usize {
    if size == 0 { 0 } else { 1 + varint_len(size as u64) + size }
}
