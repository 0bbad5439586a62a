//! Random tables in random files: rows, batches and partitions are those of DataFusion's reader.

mod damage;
mod fits;
mod tables;

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt32Array};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use self::tables::{Random, table};
use super::faster;
use super::source::{FILES, GIVEN_BACK};
use crate::plan::{decode, encode, partitions};
use crate::session::{Format, register, session};

/// The plan of a query on the table `t`, as an executor gets it.
async fn planned(ctx: &SessionContext, path: &Path, sql: &str) -> Arc<dyn ExecutionPlan> {
    let _ = ctx.deregister_table("t");
    register(ctx, "t", path.to_str().unwrap(), Format::Parquet, None).await.unwrap();
    let plan = ctx.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    decode(&encode(&plan).unwrap(), ctx).unwrap()
}

fn task(ctx: &SessionContext, batch_rows: usize) -> Arc<TaskContext> {
    let mut config = ctx.copied_config().with_batch_size(batch_rows);
    config.options_mut().execution.enable_file_stream_work_stealing = false;
    Arc::new(TaskContext::from(ctx).with_session_config(config))
}

async fn rows(plan: &Arc<dyn ExecutionPlan>, partition: usize, task: &Arc<TaskContext>) -> Result<Vec<RecordBatch>> {
    plan.execute(partition, Arc::clone(task))?.try_collect().await
}

fn counted(plan: &Arc<dyn ExecutionPlan>, name: &str) -> usize {
    let mut sum = 0;
    plan.apply(|node| {
        sum += node.metrics().and_then(|m| m.sum_by_name(name)).map_or(0, |value| value.as_usize());
        Ok(TreeNodeRecursion::Continue)
    })
    .unwrap();
    sum
}

/// Reads all partitions by both readers; how many files, row groups the decoder took, gave back.
async fn compare(plan: &Arc<dyn ExecutionPlan>, task: &Arc<TaskContext>, what: &str) -> (usize, usize) {
    let fast = faster(plan).unwrap();
    for partition in 0..partitions(plan) {
        let (theirs, ours) = (rows(plan, partition, task).await.unwrap(), rows(&fast, partition, task).await.unwrap());
        assert_eq!(theirs.len(), ours.len(), "batches of {what}");
        for (theirs, ours) in theirs.iter().zip(&ours) {
            assert_eq!(theirs.num_rows(), ours.num_rows(), "{what}");
            assert_eq!(theirs.schema(), ours.schema(), "{what}");
            assert_eq!(theirs, ours, "{what}");
        }
    }
    (counted(&fast, FILES), counted(&fast, GIVEN_BACK))
}

/// The plan's scan with its only file cut into byte ranges.
fn in_ranges(plan: &Arc<dyn ExecutionPlan>, random: &mut Random) -> Arc<dyn ExecutionPlan> {
    let scan: &FileScanConfig = plan.downcast_ref::<DataSourceExec>().unwrap().data_source().downcast_ref().unwrap();
    let file = scan.file_groups[0].files()[0].clone();
    let size = file.object_meta.size;
    let mut ends: Vec<u64> =
        (0..random.below(4)).map(|_| random.below(size as usize) as u64).chain([0, size]).collect();
    ends.sort_unstable();
    let part = |ends: &[u64]| PartitionedFile::clone(&file).with_range(ends[0] as i64, ends[1] as i64);
    let groups = ends.windows(2).map(|ends| FileGroup::new(vec![part(ends)])).collect();
    DataSourceExec::from_data_source(FileScanConfigBuilder::from(scan.clone()).with_file_groups(groups).build())
}

#[tokio::test] // PQT-1
async fn rows_are_those_of_datafusion() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let (mut taken, mut files) = (0, 0);
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let what = table(&path, &mut random);
        let what = format!("table {seed}: {what}");
        let ctx = session();
        let columns = ["*", "x", "label, x", "x, name, z", "z, x", "y", "y, x, label"][random.below(7)];
        let plan = planned(&ctx, &path, &format!("select {columns} from t")).await;
        let task = task(&ctx, [1, 7, 64, 300, 8192][random.below(5)]);
        let (took, back) = compare(&plan, &task, &what).await;
        assert_eq!(back, 0, "{what}");
        taken += took;
        files += partitions(&plan);
        let (_, back) = compare(&in_ranges(&plan, &mut random), &task, &what).await;
        assert_eq!(back, 0, "{what}");
    }
    // A file without rows has no row group.
    assert!(taken * 10 > files * 9, "{taken} of {files}");
}

#[tokio::test] // PQT-1
async fn dictionaries_of_every_width() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let mut random = Random::new(5);
    for width in 0..=17 {
        let distinct = (1 << width) - random.below(1 + (1 << width) / 2);
        // Half of the rows in the order of the dictionary, so that all of it is there.
        let next = |i: usize| if i < distinct { i } else { random.below(distinct) } as u32;
        let values = UInt32Array::from_iter_values((0..2 * distinct + 3000).map(next));
        let nulls = Int64Array::from_iter((0..values.len()).map(|i| (i % 11 != 3).then_some(values.value(i).into())));
        let rows = RecordBatch::try_from_iter([("a", Arc::new(values) as ArrayRef), ("b", Arc::new(nulls))]).unwrap();
        let properties = WriterProperties::builder().set_dictionary_page_size_limit(1 << 30);
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties.build())).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        let ctx = session();
        let plan = planned(&ctx, &path, "select a, b from t").await;
        for batch_rows in [1000 - width, 8192] {
            let (taken, back) = compare(&plan, &task(&ctx, batch_rows), &format!("{distinct}")).await;
            assert!(taken > 0 && back == 0, "{distinct}: {taken} {back}");
        }
    }
}
