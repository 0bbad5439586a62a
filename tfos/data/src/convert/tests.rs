//! Formats into each other and back, and nothing left behind by a failure.

use std::path::Path;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::array::types::{Int64Type, UInt8Type};
use datafusion::arrow::compute::concat_batches;

use super::*;

/// Four images of 2x2 and their labels.
fn digits(dir: &Path) -> String {
    let prefix = dir.join("train").display().to_string();
    let (images, labels) = idx::output_files(&prefix, false);
    let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 2];
    bytes.extend(240..=255);
    std::fs::write(images, bytes).unwrap();
    std::fs::write(labels, [0, 0, 8, 1, 0, 0, 0, 4, 9, 8, 7, 6]).unwrap();
    prefix
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn rows(url: &str, format: Format, schema: Option<&str>) -> RecordBatch {
    let input = Input::open(url, format, schema).await.unwrap();
    let Input::Plan(physical, ctx) = &input else { panic!("a plan") };
    let mut batches = Vec::new();
    for partition in 0..plan::partitions(physical) {
        let rows = plan::execute(physical, partition, ctx).unwrap();
        batches.extend(rows.try_collect::<Vec<_>>().await.unwrap());
    }
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

#[tokio::test]
async fn idx_through_every_format_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let original = digits(dir.path());
    let images = std::fs::read(idx::output_files(&original, false).0).unwrap();
    for (format, compression, schema) in [
        (Format::Parquet, Compression::None, None),
        (Format::Parquet, Compression::Gzip, None),
        (Format::Csv, Compression::None, None),
        (Format::Csv, Compression::Gzip, None),
        (Format::TfRecord, Compression::None, None),
        (Format::Arrow, Compression::None, None),
        (Format::Avro, Compression::None, Some("image:uint8[4],label:int64")),
        (Format::NdJson, Compression::None, Some("image:uint8[4],label:int64")),
        (Format::NdJson, Compression::Gzip, Some("image:uint8[4],label:int64")),
        (Format::TfRecord, Compression::Zlib, Some("image:uint8[4],label:int64")),
    ] {
        let end = if format == Format::Parquet { "" } else { compression.extension() };
        let to = dir.path().join(format!("x.{format}{end}")).display().to_string();
        let options = ConvertOptions { compression, ..Default::default() };
        let converted = convert(&original, Format::Idx, &to, format, &options).await.unwrap();
        assert_eq!((converted.rows, converted.files[0].path.as_str()), (4, to.as_str()));
        let back = dir.path().join("back").display().to_string();
        let options = ConvertOptions { schema: schema.map(str::to_owned), ..Default::default() };
        convert(&to, format, &back, Format::Idx, &options).await.unwrap();
        assert_eq!(std::fs::read(idx::output_files(&back, false).0).unwrap(), images, "{format}");
        assert_eq!(idx::labels(&idx::read(&back).unwrap()).unwrap().values(), &[9, 8, 7, 6]);
    }
    let csv = std::fs::read_to_string(dir.path().join("x.csv")).unwrap();
    assert!(csv.starts_with("label,p0,p1,p2,p3\n9,240,241,242,243\n"), "{csv}");
}

#[tokio::test]
async fn several_files_keep_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let original = digits(dir.path());
    for (name, options, files) in [
        ("a", ConvertOptions { rows_per_file: Some(3), ..Default::default() }, 2),
        ("b", ConvertOptions { num_files: Some(2), ..Default::default() }, 2),
        ("c", ConvertOptions { num_files: Some(4), compression: Compression::Gzip, ..Default::default() }, 4),
    ] {
        let to = dir.path().join(name);
        let converted =
            convert(&original, Format::Idx, to.to_str().unwrap(), Format::TfRecord, &options).await.unwrap();
        assert_eq!((converted.files.len(), names(&to).len()), (files, files));
        let read = rows(to.to_str().unwrap(), Format::TfRecord, Some("label:int64,image:uint8[4]")).await;
        assert_eq!(read.column(0).as_primitive::<Int64Type>().values(), &[9, 8, 7, 6]);
        let pixels = read.column(1).as_fixed_size_list().values().as_primitive::<UInt8Type>().clone();
        assert_eq!(pixels.values(), &(240..=255).collect::<Vec<u8>>()[..]);
        let error =
            convert(&original, Format::Idx, to.to_str().unwrap(), Format::TfRecord, &options).await.unwrap_err();
        assert!(error.to_string().contains("has files"), "{error}");
    }
}

#[tokio::test]
async fn a_failure_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.tfrecord");
    convert(&digits(dir.path()), Format::Idx, input.to_str().unwrap(), Format::TfRecord, &ConvertOptions::default())
        .await
        .unwrap();
    let bytes = std::fs::read(&input).unwrap();
    std::fs::write(&input, &bytes[..bytes.len() - 1]).unwrap();
    let out = dir.path().join("out");
    for (format, rows_per_file) in [(Format::TfRecord, Some(1)), (Format::Parquet, Some(2)), (Format::Csv, Some(1))] {
        let options =
            ConvertOptions { rows_per_file, schema: Some("image:uint8[4],label:int64".into()), ..Default::default() };
        let error = convert(input.to_str().unwrap(), Format::TfRecord, out.to_str().unwrap(), format, &options)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{error}");
        assert_eq!(names(&out), [] as [String; 0], "{format}");
    }
}

#[tokio::test]
async fn unusable_requests_are_refused_before_a_file_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let original = digits(dir.path());
    let to = dir.path().join("out");
    let try_with = async |format, options: ConvertOptions| {
        convert(&original, Format::Idx, to.to_str().unwrap(), format, &options).await.unwrap_err().to_string()
    };
    let gzip = ConvertOptions { compression: Compression::Gzip, ..Default::default() };
    assert!(try_with(Format::Arrow, gzip).await.contains("gzip for arrow"));
    assert!(
        try_with(Format::Csv, ConvertOptions { compression: Compression::Zlib, ..Default::default() })
            .await
            .contains("zlib")
    );
    assert!(try_with(Format::Csv, ConvertOptions { num_files: Some(0), ..Default::default() }).await.contains("zero"));
    assert!(
        try_with(Format::Csv, ConvertOptions { num_files: Some(1), rows_per_file: Some(1), ..Default::default() })
            .await
            .contains("together")
    );
    assert!(!to.exists());
    let error =
        convert(&original, Format::Idx, "warp://b/k", Format::Csv, &ConvertOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("warp://b/k"), "{error}");
}

#[tokio::test]
async fn descriptions() {
    let dir = tempfile::tempdir().unwrap();
    let original = digits(dir.path());
    let d = describe(&original, Format::Idx).await.unwrap();
    assert_eq!((d.rows, d.files.len(), d.schema.as_deref()), (4, 2, Some("image:uint8[4],label:int64")));
    for format in [Format::Parquet, Format::TfRecord, Format::Csv, Format::NdJson, Format::Arrow, Format::Avro] {
        let to = dir.path().join(format!("d.{format}")).display().to_string();
        convert(&original, Format::Idx, &to, format, &ConvertOptions::default()).await.unwrap();
        let d = describe(&to, format).await.unwrap();
        assert_eq!((d.rows, d.files[0].path.as_str()), (4, to.as_str()));
        let json = serde_json::to_value(&d).unwrap();
        assert_eq!(json["format"], format.name());
        assert_eq!(json["files"][0]["bytes"], std::fs::metadata(&to).unwrap().len());
    }
}
