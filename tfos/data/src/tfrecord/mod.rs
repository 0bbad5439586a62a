//! TFRecord files of `tf.train.Example`: frames, checksums, the wire format, and Arrow on both sides.
//!
//! Reading goes `frame` (bytes to records) → `example` (record to features, without copying) → `to_arrow` (features
//! to columns). `source` shows a file to DataFusion, `reader` to whoever reads one directly.

pub mod compression;
pub mod crc;
pub mod encode;
pub mod example;
pub mod frame;
pub mod from_arrow;
pub mod reader;
pub mod schema;
pub mod source;
pub mod to_arrow;
mod values;

#[cfg(test)]
mod tests;

pub use compression::Compression;
pub use encode::ExampleWriter;
pub use frame::{FrameReader, FrameWriter};
pub use from_arrow::ExampleEncoder;
pub use reader::TfRecordReader;
pub use schema::{infer, parse_schema, schema_text};
pub use source::{TfRecordFormat, TfRecordSource};
pub use to_arrow::{BatchDecoder, BatchSize};
