//! Plans that travel as Ballista sends them.

use std::io::Write;
use std::sync::Mutex;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::physical_plan::collect;
use datafusion_proto::bytes::{
    physical_plan_from_bytes_with_extension_codec, physical_plan_to_bytes_with_extension_codec,
};

use super::*;
use crate::session::Format;
use crate::stage::Writer;
use crate::tfrecord::{ExampleEncoder, FrameWriter};

/// TFRecord files, and a compressed table of text: what DataFusion's own bytes leave out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_and_the_sink_travel_and_files_are_written_where_they_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let ctx = session::session();
    let mut text = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writeln!(text, "x,k").unwrap();
    (0..1000).for_each(|i| writeln!(text, "{i},{}", i % 10).unwrap());
    std::fs::write(at("text.csv.gz"), text.finish().unwrap()).unwrap();
    session::register(&ctx, "b", &at("text.csv.gz"), Format::Csv, None).await.unwrap();
    let rows = ctx.sql("SELECT x FROM b").await.unwrap().collect().await.unwrap();
    let mut records = FrameWriter::new(std::fs::File::create(at("a.tfrecord")).unwrap());
    for batch in &rows {
        let each = |record: &[u8]| records.write(record).map_err(crate::Error::io("write", "a.tfrecord"));
        ExampleEncoder::default().encode(batch, each).unwrap();
    }
    drop(records);
    session::register(&ctx, "a", &at("a.tfrecord"), Format::TfRecord, None).await.unwrap();
    let query = ctx.sql("SELECT a.x % 50 AS x, count(*) AS n FROM a JOIN b ON a.x = b.x GROUP BY 1").await.unwrap();
    let (made, _) = plan(query, &at("staged")).await.unwrap();
    let bytes = physical_plan_to_bytes_with_extension_codec(made, &ShippingCodec::default()).unwrap();

    let told = Arc::new(Mutex::new(vec![]));
    let telling = Arc::clone(&told);
    let writer = Writer::new("here".into(), 4, move |written| telling.lock().unwrap().push(written));
    let there = SessionContext::new_with_config_rt(config(), runtime(&at("")).unwrap());
    let codec = ShippingCodec::writing(writer);
    let arrived = physical_plan_from_bytes_with_extension_codec(&bytes, &there.task_ctx(), &codec).unwrap();
    collect(arrived, there.task_ctx()).await.unwrap();
    assert_eq!(told.lock().unwrap().iter().flat_map(|w| &w.files).map(|f| f.rows).sum::<u64>(), 50);
    let back = session::read(&ctx, &at("staged"), Format::Arrow, None).await.unwrap().collect().await.unwrap();
    let counts: i64 = back.iter().flat_map(|b| b.column(1).as_primitive::<Int64Type>().values().to_vec()).sum();
    assert_eq!(counts, 1000);
}

#[tokio::test]
async fn a_store_is_opened_when_it_is_asked_for() {
    use datafusion::execution::object_store::ObjectStoreRegistry;
    let stores = Stores::default();
    assert!(stores.get_store(&"file:///".parse().unwrap()).is_ok());
    let error = stores.get_store(&"warp://a/b".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("warp"), "{error}");
}
