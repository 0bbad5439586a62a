//! One function for each decoder: any bytes in, and a panic where it breaks a promise.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use flate2::read::MultiGzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use tfos_data::arrow::array::RecordBatch;
use tfos_data::arrow::datatypes::SchemaRef;
use tfos_data::tfrecord::crc::masked;
use tfos_data::tfrecord::frame::{Record, RecordStream};
use tfos_data::tfrecord::{BatchDecoder, ExampleEncoder, FrameReader, FrameWriter, infer, parse_schema};
use tfos_data::{Error, idx, numbers_hostile};

use crate::memory;

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets by name.
pub const TARGETS: [Target; 4] = [("tfrecord", tfrecord), ("example", example), ("idx", idx), ("page", page)];

/// What a decoder may have beside the bytes that arrive: a chunk of a file, what a piece of a compressed one becomes,
/// a batch.
const BASE: usize = 64 << 20;

/// What one byte that arrives may become: a thousand bytes of a compressed file, or a number of 8 bytes in vectors
/// that double.
const PER_BYTE: usize = 4096;

/// Every type that a column can have, as scalar, as list, and of a fixed size.
const SCHEMA: &str = "a:int8,b:int64[],c:float32[2],d:string,e:binary[],f:bool,g:uint64,h:float64[],i:uint8[3],\
                      j:large_string,k:large_binary[],l:int16[],m:uint32,n:float32,o:bool[4],p:uint16[]";

/// Runs a target, and fails where it took more memory than bytes that claim nothing would.
pub fn metered(target: fn(&[u8]), data: &[u8]) {
    let ((), peak) = memory::peak(|| target(data));
    let most = BASE + PER_BYTE * data.len();
    assert!(peak <= most, "{} bytes of input took {peak} bytes of memory, {most} are the most", data.len());
}

/// What is left when `bytes` are read to their end, or to the first error.
struct Found {
    /// Where each record begins, and its bytes.
    records: Vec<(u64, Vec<u8>)>,
    whole: bool,
}

fn read_at_once(bytes: &[u8]) -> Found {
    let mut reader = FrameReader::new(bytes, "hostile.tfrecord");
    let mut records = vec![];
    loop {
        match reader.next_record() {
            Ok(Some(record)) => records.push((record.offset, record.data.to_vec())),
            Ok(None) => return Found { records, whole: true },
            Err(error) => return said(&error, Found { records, whole: false }),
        }
    }
}

fn read_in_pieces(bytes: &[u8], size: usize) -> Found {
    let mut stream = RecordStream::new("hostile.tfrecord".into());
    let mut records = vec![];
    let mut read = || -> Result<(), Error> {
        for piece in bytes.chunks(size).map(Some).chain([None]) {
            match piece {
                Some(piece) => stream.push(piece)?,
                None => stream.end()?,
            }
            while let Some(record) = stream.next_record()? {
                records.push((record.offset, record.data.to_vec()));
            }
        }
        stream.finish()
    };
    let result = read();
    let whole = result.is_ok();
    match result {
        Ok(()) => Found { records, whole },
        Err(error) => said(&error, Found { records, whole }),
    }
}

/// An error names the file, and it is the user's to mend.
fn said(error: &Error, found: Found) -> Found {
    assert!(error.is_user() && error.to_string().contains("hostile"), "{error}");
    found
}

/// A TFRecord file. The first byte says how the rest becomes one: as it is, or as records whose checksums fit, which
/// no search would find; then perhaps compressed. The second says in how large pieces it is read.
pub fn tfrecord(data: &[u8]) {
    let [mode, size, rest @ ..] = data else { return };
    let mut bytes = if mode & 1 == 0 { rest.to_vec() } else { frames(rest) };
    if mode & 2 != 0 {
        bytes = compressed(bytes, mode & 4 != 0);
    }
    let whole = read_at_once(&bytes);
    let pieces = read_in_pieces(&bytes, usize::from(*size) + 1);
    assert_eq!(whole.whole, pieces.whole, "pieces of a file are another file");
    // An error of decompression comes before the records of the same piece.
    assert!(pieces.records.starts_with(&whole.records), "pieces of a file have other records");
    // Records are the other target's; a few show that what comes out of a file goes in there.
    for (offset, data) in whole.records.iter().take(2) {
        decode(Record { offset: *offset, data });
    }
}

/// Records one after another: a byte with the length, then so many bytes. A length of 255 is followed by 8 bytes that a
/// frame claims as its length, with the right checksum.
fn frames(mut rest: &[u8]) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new());
    while let [size, after @ ..] = rest {
        if *size == 255
            && let Some((claim, after)) = after.split_at_checked(8)
        {
            let mut bytes = writer.into_inner();
            bytes.extend_from_slice(claim);
            bytes.extend_from_slice(&masked(claim).to_le_bytes());
            bytes.extend_from_slice(after);
            return bytes;
        }
        let (record, after) = after.split_at(after.len().min(usize::from(*size)));
        let written = writer.write(record);
        assert!(written.is_ok(), "memory is written to");
        rest = after;
    }
    writer.into_inner()
}

fn compressed(bytes: Vec<u8>, gzip: bool) -> Vec<u8> {
    let level = flate2::Compression::fast();
    let done = match gzip {
        true => {
            let mut encoder = GzEncoder::new(Vec::new(), level);
            encoder.write_all(&bytes).and_then(|()| encoder.finish())
        }
        false => {
            let mut encoder = ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(&bytes).and_then(|()| encoder.finish())
        }
    };
    done.unwrap_or(bytes)
}

/// A record, which may be a `tf.train.Example`.
pub fn example(data: &[u8]) {
    decode(Record { offset: 0, data });
    let Ok(schema) = infer([data]) else { return };
    if schema.fields().is_empty() {
        return;
    }
    // What inference makes of a record holds it, and what is written of it is the same row.
    let Some(rows) = batch(&schema, [Record { offset: 0, data }]) else { return };
    let Ok(rows) = rows else { return assert!(rows.is_ok(), "a record does not fit the schema that it suggests") };
    let mut again = vec![];
    let encoded = ExampleEncoder::default().encode(&rows, |record| {
        again = record.to_vec();
        Ok(())
    });
    assert!(encoded.is_ok(), "a row that was read cannot be written");
    let same = batch(&schema, [Record { offset: 0, data: &again }]);
    assert!(matches!(same, Some(Ok(same)) if same == rows), "a row was written as another one");
}

/// Decodes a record by a schema that may not be its own, with a row before and one after that have none of its values.
fn decode(record: Record<'_>) {
    static PARSED: OnceLock<Option<SchemaRef>> = OnceLock::new();
    let schema = PARSED.get_or_init(|| parse_schema(SCHEMA).ok()).as_ref();
    let Some(schema) = schema else { return assert!(schema.is_some(), "{SCHEMA}") };
    let empty = Record { offset: 0, data: &[] };
    match batch(schema, [empty, record, empty]) {
        Some(Ok(rows)) => assert_eq!(rows.num_rows(), 3),
        Some(Err(error)) => assert!(error.is_user() && error.to_string().contains("hostile"), "{error}"),
        None => {}
    }
}

fn batch<'a>(schema: &SchemaRef, records: impl IntoIterator<Item = Record<'a>>) -> Option<Result<RecordBatch, Error>> {
    let mut decoder = BatchDecoder::new(Arc::clone(schema), 1000, "hostile.tfrecord".into()).ok()?;
    for record in records {
        if let Err(error) = decoder.push(record) {
            return Some(Err(error));
        }
    }
    decoder.finish().transpose()
}

/// A pair of idx files. The first two bytes say where the second begins, the third whether they are gzip files.
pub fn idx(data: &[u8]) {
    let [high, low, mode, rest @ ..] = data else { return };
    let (images, labels) = rest.split_at(rest.len().min(usize::from(*high) << 8 | usize::from(*low)));
    let open = |bytes: &[u8]| -> Box<dyn Read> {
        let bytes = std::io::Cursor::new(bytes.to_vec());
        if mode & 1 == 0 { Box::new(bytes) } else { Box::new(MultiGzDecoder::new(bytes)) }
    };
    let paths = (Path::new("hostile-images"), Path::new("hostile-labels"));
    match idx::read_from((paths.0, open(images)), (paths.1, open(labels))) {
        Ok(rows) if mode & 1 == 0 => {
            let again = idx::to_bytes(&rows);
            assert!(again.is_ok_and(|(i, l)| i == images && l == labels), "files were written as other ones");
        }
        Ok(_) => {}
        Err(error) => assert!(error.to_string().contains("hostile"), "{error}"),
    }
}

/// A page of a column of numbers in a Parquet file, or of lists of them: levels, dictionary and values.
pub fn page(data: &[u8]) {
    let Some(page) = numbers_hostile::page(data) else { return };
    assert!(page.values == page.places && page.places <= 3 * page.count, "{page:?}");
}
