//! Queries over TFRecord files.

use super::*;

pub(super) fn write_numbers(path: &Path, numbers: std::ops::Range<i64>) {
    let mut writer = FrameWriter::new(File::create(path).unwrap());
    let mut example = ExampleWriter::default();
    for n in numbers {
        example.ints("n", std::iter::once(n));
        example.floats("half", std::iter::once(n as f32 / 2.0));
        example.bytes("bad", std::iter::once([0xff_u8].as_slice()));
        writer.write(example.finish()).unwrap();
    }
}

#[tokio::test]
async fn sql_over_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    for part in 0..3 {
        write_numbers(&dir.path().join(format!("part-{part}.tfrecord")), part * 1000..(part + 1) * 1000);
    }
    std::fs::write(dir.path().join("_SUCCESS"), "").unwrap();
    let ctx = session::session();
    session::register(&ctx, "t", dir.path().to_str().unwrap(), Format::TfRecord, None).await.unwrap();
    let one = async |sql: &str| {
        ctx.sql(sql).await.unwrap().collect().await.map(|b| {
            b.iter().map(|b| b.column(0).as_primitive::<Int64Type>().iter().flatten().sum::<i64>()).sum::<i64>()
        })
    };
    assert_eq!(one("select sum(n) from t").await.unwrap(), (0..3000).sum::<i64>());
    assert_eq!(
        one("select n from t where n % 2 = 1 and half < 600").await.unwrap(),
        (0..1200).filter(|n| n % 2 == 1).sum::<i64>()
    );
    assert_eq!(one("select count(*) from t").await.unwrap(), 3000);
    let halves = ctx.sql("select half, n + 1 as m from t order by n limit 2").await.unwrap().collect().await.unwrap();
    let halves = concat_batches(&halves[0].schema(), &halves).unwrap();
    assert_eq!(halves.column(0).as_primitive::<Float32Type>().values(), &[0.0, 0.5]);
    assert_eq!(halves.column(1).as_primitive::<Int64Type>().values(), &[1, 2]);

    // Only what the query names is decoded: `bad` is no string, and nobody minds until it is asked for.
    session::register(&ctx, "u", dir.path().to_str().unwrap(), Format::TfRecord, Some("n:int64,bad:string"))
        .await
        .unwrap();
    assert_eq!(one("select n from u").await.unwrap(), (0..3000).sum::<i64>());
    let error = Error::from(ctx.sql("select bad from u").await.unwrap().collect().await.unwrap_err());
    let (Error::BadExample { path, reason, .. }, true) = (&error, error.is_user()) else { panic!("{error:?}") };
    assert!(path.starts_with(dir.path().to_str().unwrap()), "{path}");
    assert_eq!(*reason, ExampleFault::Utf8 { feature: "bad".into() });
}
