//! Round trips through TFRecord files, and what inference makes of them.

mod damage;
mod sql;
mod types;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::cast::AsArray;
use datafusion::arrow::array::types::{Float32Type, Int64Type};
use datafusion::arrow::array::*;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::TryStreamExt;

use super::encode::ExampleWriter;
use super::*;
use crate::error::{Error, ExampleFault};
use crate::session::{self, Format};

fn frames(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new());
    ExampleEncoder::default().encode(batch, |r| writer.write(r).map_err(Error::io("write", "memory"))).unwrap();
    writer.into_inner()
}

fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let level = flate2::Compression::default();
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut e = flate2::write::GzEncoder::new(Vec::new(), level);
            e.write_all(bytes).unwrap();
            e.finish().unwrap()
        }
        Compression::Zlib => {
            let mut e = flate2::write::ZlibEncoder::new(Vec::new(), level);
            e.write_all(bytes).unwrap();
            e.finish().unwrap()
        }
    }
}

async fn load(path: &Path, schema: Option<SchemaRef>) -> crate::Result<RecordBatch> {
    let reader = TfRecordReader::open(path.to_str().unwrap(), schema, 3).await?;
    let schema = reader.schema();
    let batches: Vec<_> = reader.try_collect().await?;
    Ok(concat_batches(&schema, &batches)?)
}

fn strings(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn lists<T>(values: &[&[T::Native]]) -> ArrayRef
where
    T: ArrowPrimitiveType,
{
    Arc::new(ListArray::from_iter_primitive::<T, _, _>(values.iter().map(|row| Some(row.iter().map(|v| Some(*v))))))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields = columns.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), true)).collect::<Vec<_>>();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, a)| a).collect()).unwrap()
}

#[tokio::test]
async fn test_dfutils() {
    let rows = batch(vec![
        ("binary", Arc::new(BinaryArray::from_vec(vec![b"\xff\x00", b"", b"abc"]))),
        ("float", Arc::new(Float32Array::from(vec![1.5, -0.25, f32::MAX]))),
        ("floats", lists::<Float32Type>(&[&[1.0, 2.0], &[], &[3.5]])),
        ("int", Arc::new(Int64Array::from(vec![Some(1), None, Some(i64::MIN)]))),
        ("ints", lists::<Int64Type>(&[&[1, 2, 3], &[4], &[5, 6]])),
        ("str", strings(&[Some("a"), Some("ünï"), None])),
    ]);
    let dir = tempfile::tempdir().unwrap();
    for (compression, name) in [
        (Compression::None, "x.tfrecord"),
        (Compression::Gzip, "x.gz"),
        (Compression::Zlib, "x.zlib"),
        (Compression::Gzip, "no_name"),
        (Compression::Zlib, "none"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, compress(&frames(&rows), compression)).unwrap();
        assert_eq!(load(&path, Some(rows.schema())).await.unwrap(), rows, "{name}");
        let inferred = load(&path, None).await.unwrap();
        let binary = inferred.column_by_name("str").unwrap().as_binary::<i32>();
        assert_eq!((binary.value(1), binary.is_null(2)), ("ünï".as_bytes(), true));
        for same in ["binary", "float", "floats", "int", "ints"] {
            assert_eq!(inferred.column_by_name(same), rows.column_by_name(same), "{same}");
        }
    }
}

/// The columns of the Scala test: seven scalars and seven arrays.
fn all_types() -> RecordBatch {
    let binaries = || -> ArrayRef { Arc::new(BinaryArray::from_vec(vec![b"ab".as_slice(), b"c", b"", b"d"])) };
    let list = |values: ArrayRef| -> ArrayRef {
        let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
        Arc::new(ListArray::new(item, datafusion::arrow::buffer::OffsetBuffer::from_lengths([3, 1]), values, None))
    };
    batch(vec![
        ("a_binary", list(binaries())),
        ("a_bool", list(Arc::new(BooleanArray::from(vec![true, false, true, false])))),
        ("a_double", list(Arc::new(Float64Array::from(vec![1.5, 2.5, -3.0, 0.0])))),
        ("a_float", list(Arc::new(Float32Array::from(vec![1.5, 2.5, -3.0, 0.0])))),
        ("a_int", list(Arc::new(Int32Array::from(vec![1, -2, 3, 4])))),
        ("a_long", list(Arc::new(Int64Array::from(vec![1, -2, 3, 4])))),
        ("a_str", list(strings(&[Some("p"), Some(""), Some("q"), Some("r")]))),
        ("binary", binaries().slice(0, 2)),
        ("bool", Arc::new(BooleanArray::from(vec![true, false]))),
        ("double", Arc::new(Float64Array::from(vec![0.5, -2.0]))),
        ("float", Arc::new(Float32Array::from(vec![0.5, -2.0]))),
        ("int", Arc::new(Int32Array::from(vec![i32::MIN, 7]))),
        ("long", Arc::new(Int64Array::from(vec![i64::MAX, 7]))),
        ("str", strings(&[Some("one"), Some("two")])),
    ])
}

#[tokio::test]
async fn save_dataframe_as_tfrecords_and_reload_with_same_schema() {
    let rows = all_types();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.tfrecord"), frames(&rows)).unwrap();
    assert_eq!(load(&dir.path().join("x.tfrecord"), Some(rows.schema())).await.unwrap(), rows);
}

#[tokio::test]
async fn save_dataframe_as_tfrecords_and_reload_without_schema() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.tfrecord"), frames(&all_types())).unwrap();
    let schema = load(&dir.path().join("x.tfrecord"), None).await.unwrap().schema();
    assert_eq!(
        schema_text(&schema).unwrap(),
        "a_binary:binary[],a_bool:int64[],a_double:float32[],a_float:float32[],a_int:int64[],a_long:int64[],a_str:binary[],\
         binary:binary,bool:int64,double:float32,float:float32,int:int64,long:int64,str:binary"
    );
}

#[test]
fn inference_sees_more_than_the_first_record() {
    let mut writer = ExampleWriter::default();
    let records: Vec<Vec<u8>> = (0..3_i64)
        .map(|i| {
            writer.ints("always_one", std::iter::once(i));
            writer.ints("always_two", [i, i].into_iter());
            writer.ints("ragged", 0..=i);
            writer.finish().to_vec()
        })
        .collect();
    let schema = infer(records.iter().map(Vec::as_slice)).unwrap();
    assert_eq!(schema_text(&schema).unwrap(), "always_one:int64,always_two:int64[2],ragged:int64[]");
}

#[tokio::test]
async fn a_record_that_does_not_fit_is_named() {
    let mut example = ExampleWriter::default();
    let mut writer = FrameWriter::new(Vec::new());
    for i in 0..=super::schema::SAMPLE {
        example.ints("x", 0..if i == super::schema::SAMPLE { 2 } else { 1 });
        writer.write(example.finish()).unwrap();
    }
    let bytes = writer.into_inner();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tfrecord");
    std::fs::write(&path, &bytes).unwrap();
    let error = load(&path, None).await.unwrap_err();
    let Error::BadExample { path: named, offset, reason } = &error else { panic!("{error}") };
    assert!(named.ends_with("x.tfrecord") && *offset > 0 && error.is_user());
    assert_eq!(*reason, ExampleFault::Count { feature: "x".into(), wanted: 1, found: 2 });
    assert!(reason.to_string().contains("x:TYPE[]"));
    for (hint, word) in [("x:string", "a BytesList"), ("x:float32", "")] {
        let result = load(&path, Some(parse_schema(hint).unwrap())).await;
        let Err(Error::BadExample { reason, .. }) = result else { panic!("{hint}") };
        assert!(word.is_empty() || matches!(reason, ExampleFault::Kind { found: "an Int64List", .. }));
    }
    assert_eq!(
        load(&path, Some(parse_schema("x:int64[]").unwrap())).await.unwrap().num_rows(),
        super::schema::SAMPLE + 1
    );
}

#[tokio::test]
async fn raw_bytes_fill_uint8_lists() {
    let rows = batch(vec![("image", Arc::new(BinaryArray::from_vec(vec![&[1_u8, 2, 3], &[4, 5, 255]])))]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tfrecord");
    std::fs::write(&path, frames(&rows)).unwrap();
    let images = load(&path, Some(parse_schema("image:uint8[3]").unwrap())).await.unwrap();
    assert_eq!(
        images.column(0).as_fixed_size_list().values().as_ref(),
        &UInt8Array::from(vec![1, 2, 3, 4, 5, 255]) as &dyn Array
    );
    assert_eq!(frames(&images), frames(&rows), "and are written as raw bytes again");
}

#[test]
fn unsupported_columns_are_named() {
    let date = batch(vec![("day", Arc::new(Date32Array::from(vec![1])))]);
    let error = ExampleEncoder::check(date.schema_ref()).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("`day`")), "{error}");
    let hole = batch(vec![("x", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some([None, Some(1)])])))]);
    assert!(ExampleEncoder::default().encode(&hole, |_| Ok(())).is_err());
}

#[tokio::test]
async fn missing_features_and_columns_are_null() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tfrecord");
    sql::write_numbers(&path, 0..5);
    let schema = parse_schema("n:int32,none:float32[2],nolist:string[],nothing:bool").unwrap();
    let rows = load(&path, Some(schema)).await.unwrap();
    assert_eq!(rows.columns().iter().map(|c| c.null_count()).collect::<Vec<_>>(), [0, 5, 5, 5]);
    assert_eq!(rows.column(0).data_type(), &DataType::Int32);
}
