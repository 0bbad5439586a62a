//! Plans go through bytes into another session and yield the same rows; exchanges are refused.

use std::path::Path;

use datafusion::arrow::array::{AsArray, RecordBatch, types::Int64Type};
use datafusion::dataframe::DataFrameWriteOptions;
use futures::TryStreamExt;

use datafusion::arrow::datatypes::{DataType, Field, Schema};

use super::run::{batch_rows, rows_of_batch};
use super::*;
use crate::convert::{ConvertOptions, convert};
use crate::session::{self, BATCH_ROWS, Format, session};
use crate::tfrecord::Compression;

/// Three files of 100 rows in each format.
async fn data(dir: &Path) {
    let ctx = session();
    for part in 0..3 {
        let sql = format!(
            "select value as n, value * 0.5 as half, 'r' || value as name from range({}, {})",
            part * 100,
            (part + 1) * 100
        );
        let rows = ctx.sql(&sql).await.unwrap();
        let path = |kind: &str, ext: &str| dir.join(kind).join(format!("{part}.{ext}")).display().to_string();
        let parquet = path("source", "parquet");
        rows.write_parquet(&parquet, DataFrameWriteOptions::new().with_single_file_output(true), None).await.unwrap();
        // DataFusion's own files say that they are sorted, and sorted files are split whatever their size.
        for (format, to, compression) in [
            (Format::Parquet, path("parquet", "parquet"), Compression::None),
            (Format::Csv, path("csv", "csv"), Compression::None),
            (Format::Csv, path("csv_gz", "csv.gz"), Compression::Gzip),
            (Format::TfRecord, path("tfrecord", "tfrecord"), Compression::None),
            (Format::TfRecord, path("tfrecord_gz", "gz"), Compression::Gzip),
            (Format::NdJson, path("ndjson", "ndjson"), Compression::None),
            (Format::NdJson, path("ndjson_gz", "ndjson.gz"), Compression::Gzip),
            (Format::Arrow, path("arrow", "arrow"), Compression::None),
            (Format::Avro, path("avro", "avro"), Compression::None),
        ] {
            let options = ConvertOptions { compression, ..Default::default() };
            convert(&parquet, Format::Parquet, &to, format, &options).await.unwrap();
        }
    }
}

async fn planned(dir: &Path, kind: &str, format: Format, sql: &str) -> Arc<dyn ExecutionPlan> {
    let ctx = session();
    session::register(&ctx, "t", dir.join(kind).to_str().unwrap(), format, None).await.unwrap();
    ctx.sql(sql).await.unwrap().create_physical_plan().await.unwrap()
}

async fn rows(plan: &Arc<dyn ExecutionPlan>, partition: usize, ctx: &SessionContext) -> Vec<RecordBatch> {
    execute(plan, partition, ctx).unwrap().try_collect().await.unwrap()
}

fn numbers(batches: &[RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

#[tokio::test] // PLN-3
async fn plans_travel() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    for (kind, format) in [
        ("parquet", Format::Parquet),
        ("csv", Format::Csv),
        ("csv_gz", Format::Csv),
        ("tfrecord", Format::TfRecord),
        ("tfrecord_gz", Format::TfRecord),
        ("ndjson", Format::NdJson),
        ("ndjson_gz", Format::NdJson),
        ("arrow", Format::Arrow),
        ("avro", Format::Avro),
    ] {
        let plan = planned(dir.path(), kind, format, "select n, half * 2 as x from t where n % 7 = 0").await;
        validate_no_exchange(&plan).unwrap();
        let (here, there) = (session(), session());
        let copy = decode(&encode(&plan).unwrap(), &there).unwrap();
        assert_eq!((partitions(&plan), partitions(&copy)), (3, 3), "{kind}");
        assert_eq!(fingerprint(&plan).unwrap(), fingerprint(&copy).unwrap(), "{kind}");
        assert_eq!(stores(&copy).unwrap()[0].scheme(), "file");
        for partition in 0..3 {
            let (a, b) = (rows(&plan, partition, &here).await, rows(&copy, partition, &there).await);
            assert_eq!(a, b, "{kind}");
            let wanted = (partition as i64 * 100..(partition as i64 + 1) * 100).filter(|n| n % 7 == 0);
            assert_eq!(numbers(&a), wanted.collect::<Vec<_>>(), "{kind} {partition}");
        }
        assert!(execute(&plan, 3, &here).is_err());
    }
}

#[tokio::test] // PLN-3
async fn columns_in_the_names_of_folders_travel() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    for (kind, ext, format) in [
        ("parquet", "parquet", Format::Parquet),
        ("csv", "csv", Format::Csv),
        ("csv_gz", "csv.gz", Format::Csv),
        ("tfrecord", "tfrecord", Format::TfRecord),
        ("ndjson", "ndjson", Format::NdJson),
        ("arrow", "arrow", Format::Arrow),
        ("avro", "avro", Format::Avro),
    ] {
        let hive = dir.path().join("hive").join(kind);
        for (part, folder) in ["year=2023/city=a%20b", "year=2024/city=a%20b", "year=2024/city=c"].iter().enumerate() {
            std::fs::create_dir_all(hive.join(folder)).unwrap();
            let file = format!("{part}.{ext}");
            std::fs::rename(dir.path().join(kind).join(&file), hive.join(folder).join(&file)).unwrap();
            std::fs::write(hive.join(folder).join("_SUCCESS"), "").unwrap();
        }
        let kind = format!("hive/{kind}");
        let columns = "select n, year, city, half from t";
        let plan = planned(dir.path(), &kind, format, columns).await;
        validate_no_exchange(&plan).unwrap();
        let there = session();
        let copy = decode(&encode(&plan).unwrap(), &there).unwrap();
        assert_eq!(fingerprint(&plan).unwrap(), fingerprint(&copy).unwrap(), "{kind}");
        assert_eq!(partitions(&copy), 3, "{kind}");
        for (partition, (year, city)) in [(2023, "a b"), (2024, "a b"), (2024, "c")].into_iter().enumerate() {
            for (plan, ctx) in [(&plan, &session()), (&copy, &there)] {
                let read = rows(plan, partition, ctx).await;
                let first = partition as i64 * 100;
                assert_eq!(numbers(&read), (first..first + 100).collect::<Vec<_>>(), "{kind}");
                for batch in &read {
                    assert!(batch.column(1).as_primitive::<Int64Type>().values().iter().all(|y| *y == year), "{kind}");
                    assert!(batch.column(2).as_string::<i32>().iter().all(|c| c == Some(city)), "{kind}");
                }
            }
        }
        // A filter on them leaves files out while it is planned.
        let late = planned(dir.path(), &kind, format, &format!("{columns} where year = 2024 and n % 2 = 0")).await;
        assert_eq!(partitions(&late), 2, "{kind}");
        let late = decode(&encode(&late).unwrap(), &there).unwrap();
        let even: Vec<i64> = (100..200).filter(|n| n % 2 == 0).collect();
        assert_eq!(numbers(&rows(&late, 0, &there).await), even, "{kind}");
        let none = planned(dir.path(), &kind, format, &format!("{columns} where year = 1999")).await;
        assert_eq!(partition_rows(&none, 0).unwrap_or(0), 0, "{kind}");
        let globbed = planned(dir.path(), &format!("{kind}/year=2024/city=*"), format, "select n, city from t").await;
        assert_eq!(partitions(&globbed), 2, "{kind}");
    }
}

#[tokio::test] // which value counts is not for us to guess
async fn mixed_folders_and_columns_twice_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    let from = |part: u32| dir.path().join(format!("parquet/{part}.parquet"));
    let put = |part: u32, to: &str| {
        std::fs::create_dir_all(dir.path().join(to)).unwrap();
        std::fs::copy(from(part), dir.path().join(to).join("x.parquet")).unwrap();
    };
    put(0, "mixed/year=1");
    put(1, "mixed");
    put(2, "twice/n=5");
    for (folder, words) in [("mixed", "year=…"), ("twice", "column `n` both")] {
        let read = session::read(&session(), dir.path().join(folder).to_str().unwrap(), Format::Parquet, None).await;
        let error = read.unwrap_err();
        assert!(error.is_user() && error.to_string().contains(words), "{error}");
    }
    put(0, "typed/year=1");
    let schema = Some("n:int64,year:string");
    let typed = session::read(&session(), dir.path().join("typed").to_str().unwrap(), Format::Parquet, schema).await;
    let rows = typed.unwrap().collect().await.unwrap();
    assert_eq!((rows[0].num_columns(), rows[0].column(1).as_string::<i32>().value(0)), (2, "1"));
}

#[tokio::test] // PLN-2
async fn a_partition_run_twice_and_alone_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    for (kind, format) in [("parquet", Format::Parquet), ("tfrecord", Format::TfRecord)] {
        let plan = planned(dir.path(), kind, format, "select n from t").await;
        // Even in a session whose streams would take over each other's files.
        let ctx = SessionContext::new();
        let copy = decode(&encode(&plan).unwrap(), &ctx).unwrap();
        for plan in [&plan, &copy] {
            for partition in [2, 0, 2, 1] {
                let wanted: Vec<i64> = (partition as i64 * 100..(partition as i64 + 1) * 100).collect();
                assert_eq!(numbers(&rows(plan, partition, &ctx).await), wanted, "{kind} {partition}");
            }
        }
        let direct: Vec<_> = copy.execute(1, ctx.task_ctx()).unwrap().try_collect().await.unwrap();
        assert_eq!(numbers(&direct), (100..200).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn exchanges_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    for (sql, operator) in [
        ("select count(*) from t where half > 3", "AggregateExec"),
        ("select name, max(n) from t group by name", "AggregateExec"),
        ("select * from t order by half", "Sort"),
        ("select a.n from t a join t b on a.n = b.n", "Join"),
        ("select row_number() over (partition by name order by n) from t", "Window"),
        ("select * from t limit 5", "imit"),
        ("select n from t where n > 5 limit 5", "CoalescePartitions"),
        ("select distinct n from t", "AggregateExec"),
    ] {
        let plan = planned(dir.path(), "parquet", Format::Parquet, sql).await;
        let error = validate_no_exchange(&plan).unwrap_err();
        let named = matches!(&error, Error::Exchange { operator: found } if found.contains(operator));
        assert!(named, "{sql}: {error}, instead of {operator}");
    }
    for sql in ["select n from t", "select n + 1 from t where half > 2", "select n from t union all select n from t"] {
        validate_no_exchange(&planned(dir.path(), "tfrecord", Format::TfRecord, sql).await).unwrap();
    }
}

#[tokio::test]
async fn exact_rows_only() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    let exact = planned(dir.path(), "parquet", Format::Parquet, "select n * 2 from t").await;
    assert_eq!((0..4).map(|p| partition_rows(&exact, p)).collect::<Vec<_>>(), [Some(100), Some(100), Some(100), None]);
    let exact = planned(dir.path(), "parquet", Format::Parquet, "select n from t union all select n from t").await;
    assert_eq!(partition_rows(&decode(&encode(&exact).unwrap(), &session()).unwrap(), 5), Some(100));
    let filtered = planned(dir.path(), "parquet", Format::Parquet, "select n from t where n > 3").await;
    assert_eq!(partition_rows(&filtered, 0), None);
    let unknown = planned(dir.path(), "tfrecord", Format::TfRecord, "select n from t").await;
    assert_eq!(partition_rows(&unknown, 0), None);
}

#[tokio::test]
async fn a_part_of_a_file_has_no_exact_rows() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    let plan = planned(dir.path(), "source", Format::Parquet, "select n from t where n % 2 = 0").await;
    let scan = Arc::clone(plan.children()[0]);
    let ctx = session();
    let copy = decode(&encode(&plan).unwrap(), &ctx).unwrap();
    let mut all = Vec::new();
    for partition in 0..partitions(&copy) {
        assert!(partitions(&scan) == 3 || partition_rows(&scan, partition).is_none());
        all.extend(numbers(&rows(&copy, partition, &ctx).await));
    }
    all.sort_unstable();
    assert_eq!(all, (0..300).filter(|n| n % 2 == 0).collect::<Vec<_>>());
}

#[tokio::test]
async fn memory_travels_too() {
    let ctx = session();
    let plan =
        ctx.sql("select column1 + 1 as n from (values (1), (2))").await.unwrap().create_physical_plan().await.unwrap();
    validate_no_exchange(&plan).unwrap();
    let copy = decode(&encode(&plan).unwrap(), &session()).unwrap();
    assert_eq!(numbers(&rows(&copy, 0, &session()).await), [2, 3]);
}

#[tokio::test] // PLN-1
async fn fingerprints_follow_the_files() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    let sql = "select n from t";
    let a = fingerprint(&planned(dir.path(), "csv", Format::Csv, sql).await).unwrap();
    let path = dir.path().join("csv/0.csv");
    std::fs::write(&path, std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        a,
        fingerprint(&planned(dir.path(), "csv", Format::Csv, sql).await).unwrap(),
        "a new time changes nothing"
    );
    assert_ne!(a, fingerprint(&planned(dir.path(), "csv", Format::Csv, "select half from t").await).unwrap());
    std::fs::write(&path, "n,half,name\n1,1.5,r\n").unwrap();
    assert_ne!(a, fingerprint(&planned(dir.path(), "csv", Format::Csv, sql).await).unwrap());
}

#[test]
fn broken_bytes_are_an_error() {
    assert!(matches!(decode(&[0xff; 9], &session()), Err(Error::PlanBytes(_))));
}

#[tokio::test] // a job opens a partition once an epoch, and what runs leave behind must not add up
async fn a_prepared_plan_gives_the_same_rows_however_often() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    let plan = planned(dir.path(), "parquet", Format::Parquet, "select n from t").await;
    let expected = rows(&plan, 1, &session()).await;
    let prepared = Prepared::new(encode(&plan).unwrap(), session(), usize::MAX).unwrap();
    let mut before = 0;
    for run in 0.. {
        assert!(run < 1000, "measurements pile up: {before}");
        let batches: Vec<_> = prepared.execute(1).unwrap().try_collect().await.unwrap();
        assert_eq!(numbers(&batches), numbers(&expected));
        let now = prepared.measurements();
        if now < before {
            break;
        }
        before = now;
    }
    let none = prepared.execute(99).err().unwrap().to_string();
    assert!(none.contains("there is no partition 99"), "{none}");
}

#[tokio::test] // a column is decoded in long runs, while its dictionary is in the cache
async fn numbers_of_parquet_come_in_larger_batches() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path()).await;
    let plan = |kind, format| planned(dir.path(), kind, format, "select n, half from t");
    let (parquet, csv) = (plan("parquet", Format::Parquet).await, plan("csv", Format::Csv).await);
    assert_eq!(rows_of_batch(&parquet, 0, usize::MAX), 4 * BATCH_ROWS);
    assert_eq!(rows_of_batch(&parquet, 0, 16 * 1000), 512, "1000 rows of 16 bytes are as many as may be");
    assert_eq!(rows_of_batch(&csv, 0, usize::MAX), BATCH_ROWS);
    let texts = planned(dir.path(), "parquet", Format::Parquet, "select n, name from t").await;
    assert_eq!(rows_of_batch(&texts, 0, usize::MAX), BATCH_ROWS);
}

#[test]
fn wide_rows_come_in_smaller_batches() {
    let list = |length| DataType::FixedSizeList(Arc::new(Field::new("item", DataType::UInt8, false)), length);
    let rows = |of: DataType| batch_rows(&Schema::new(vec![Field::new("x", of, false)]));
    assert_eq!(rows(DataType::Int64), BATCH_ROWS);
    assert_eq!((rows(list(784)), rows(list(2)), rows(list(1 << 30))), (256, BATCH_ROWS, 64));
    assert_eq!(batch_rows(&Schema::empty()), BATCH_ROWS);
}
