//! Which scans and files the decoder takes, and that the others are read as before.

use std::path::PathBuf;

use datafusion::arrow::array::{ArrayRef, Int32Array, Int64Array, ListArray, StringArray, StructArray};
use datafusion::arrow::array::{Float32Array, types::Int32Type};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::Encoding;
use datafusion::parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, columns: Vec<(&str, ArrayRef)>, properties: WriterPropertiesBuilder) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let nullable = columns.into_iter().map(|(name, values)| (name, values, true));
        let batch = RecordBatch::try_from_iter_with_nullable(nullable).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties.build())).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        path
    }

    /// Of the folder's files, how many the decoder takes for this query; rows are compared on the way.
    async fn taken(&self, sql: &str) -> usize {
        let ctx = session();
        let plan = planned(&ctx, self.0.path(), sql).await;
        let (taken, back) = compare(&plan, &task(&ctx, 64), sql).await;
        assert_eq!(back, 0, "{sql}");
        taken
    }
}

fn properties() -> WriterPropertiesBuilder {
    WriterProperties::builder()
}

fn image() -> ArrayRef {
    Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..100).map(|i| Some((0..30).map(move |j| Some(i * j)))),
    ))
}

fn label() -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(0..100))
}

#[tokio::test]
async fn scans_that_fit() {
    let folder = Folder::new();
    folder.write("a.parquet", vec![("image", image()), ("label", label())], properties());
    folder.write("b.parquet", vec![("image", image()), ("label", label())], properties());
    for (sql, taken) in [
        ("select * from t", 2),
        ("select image from t", 2),
        ("select label + 1 as next, image, image[1] as first, label from t", 2),
        ("select label from t", 2),
        ("select label from t where label < 50", 0),
        ("select image from t where label < 50", 0),
        ("select image from t limit 5", 0),
    ] {
        assert_eq!(folder.taken(sql).await, taken, "{sql}");
    }
    let plan = planned(&session(), folder.0.path(), "select * from t").await;
    let shown = datafusion::physical_plan::displayable(faster(&plan).unwrap().as_ref()).indent(false).to_string();
    assert!(shown.contains("numbers=fast"), "{shown}");
    assert!(!datafusion::physical_plan::displayable(plan.as_ref()).indent(false).to_string().contains("fast"));
}

#[tokio::test]
async fn columns_in_the_names_of_folders() {
    let folder = Folder::new();
    for year in [2023, 2024, 2025] {
        let name = format!("year={year}/city=a%20b/a.parquet");
        folder.write(&name, vec![("image", image()), ("label", label())], properties());
    }
    assert_eq!(folder.taken("select year, image, city, label from t").await, 3);
    assert_eq!(folder.taken("select image, year from t where year > 2023").await, 2);
}

#[tokio::test]
async fn encodings_that_do_not_fit() {
    for (encoding, taken) in [(Encoding::PLAIN, 1), (Encoding::DELTA_BINARY_PACKED, 0)] {
        let folder = Folder::new();
        let plain = properties().set_dictionary_enabled(false).set_encoding(encoding);
        folder.write("a.parquet", vec![("image", image())], plain);
        assert_eq!(folder.taken("select * from t").await, taken, "{encoding}");
    }
    let folder = Folder::new();
    let floats = cast(&image(), &DataType::List(Arc::new(Field::new("item", DataType::Float32, true)))).unwrap();
    let split = properties().set_dictionary_enabled(false).set_encoding(Encoding::BYTE_STREAM_SPLIT);
    folder.write("a.parquet", vec![("image", floats)], split);
    assert_eq!(folder.taken("select * from t").await, 0);
    // One column fits and the other does not: the file is read by both, in step.
    let folder = Folder::new();
    let path = vec!["other".to_owned(), "list".into(), "item".into()].into();
    let mixed = properties()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_column_dictionary_enabled(path, false)
        .set_max_row_group_row_count(Some(30));
    folder.write("a.parquet", vec![("image", image()), ("other", image()), ("label", label())], mixed);
    assert_eq!(folder.taken("select * from t").await, 1);
}

#[tokio::test]
async fn types_that_do_not_fit() {
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..100).map(|i| i.to_string())));
    let words = cast(&image(), &DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)))).unwrap();
    let halves = cast(&image(), &DataType::List(Arc::new(Field::new("item", DataType::Float16, true)))).unwrap();
    let pair = StructArray::try_from(vec![("image", image()), ("label", label())]).unwrap();
    for (column, taken) in
        [(words, 0), (halves, 0), (Arc::new(pair) as ArrayRef, 0), (texts, 0), (image(), 1), (label(), 1)]
    {
        let folder = Folder::new();
        let kind = column.data_type().clone();
        folder.write("a.parquet", vec![("column", column)], properties());
        assert_eq!(folder.taken("select * from t").await, taken, "{kind}");
    }
    // A struct beside the list: only what is asked for of it is read, so DataFusion reads all.
    let folder = Folder::new();
    let pair = StructArray::try_from(vec![("image", image()), ("label", label())]).unwrap();
    folder.write("a.parquet", vec![("pair", Arc::new(pair)), ("image", image())], properties());
    assert_eq!(folder.taken("select pair['label'] as label, image from t").await, 0);
    assert_eq!(folder.taken("select image from t").await, 1);
}

/// Each file for itself: those whose columns are another type than the table's, or are missing, are converted.
#[tokio::test]
async fn files_of_another_schema() {
    let folder = Folder::new();
    folder.write("a.parquet", vec![("image", image()), ("label", label())], properties());
    folder.write("b.parquet", vec![("label", label()), ("more", label()), ("image", image())], properties());
    folder.write("c.parquet", vec![("label", label())], properties());
    assert_eq!(folder.taken("select image, label from t").await, 2);
    assert_eq!(folder.taken("select image, label, more from t").await, 1);

    let folder = Folder::new();
    let (short, long): (ArrayRef, _) = (Arc::new(Int32Array::from_iter_values(0..100)), label());
    let floats: ArrayRef = Arc::new(Float32Array::from_iter_values((0..100).map(|i| i as f32)));
    let name = "create external table given (image int[], label bigint, f float) stored as parquet location";
    folder.write("a.parquet", vec![("image", image()), ("label", long), ("f", Arc::clone(&floats))], properties());
    folder.write("b.parquet", vec![("image", image()), ("label", short), ("f", floats)], properties());
    let ctx = session();
    ctx.sql(&format!("{name} '{}'", folder.0.path().display())).await.unwrap().collect().await.unwrap();
    let plan = ctx.sql("select image, label, f from given").await.unwrap().create_physical_plan().await.unwrap();
    assert_eq!(compare(&plan, &task(&ctx, 64), "given").await, (1, 0));
}
