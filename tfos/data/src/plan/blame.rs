//! Which file a failing scan was reading. DataFusion's decoders say what is wrong and not where, so the files of
//! the partition are read once more, each by itself. Bytes that a decoder did not expect may also make it panic: a file
//! that does so when it is read alone is damaged, and else the panic goes on, because then a function of the query has it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;

use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;

use super::{file_scan, partitions};
use crate::error::Error;

/// `rows`, with the file named in the error that ends it, where a file is to blame.
pub(super) fn named(
    rows: SendableRecordBatchStream,
    plan: &Arc<dyn ExecutionPlan>,
    partition: usize,
    task: Arc<TaskContext>,
) -> SendableRecordBatchStream {
    let (plan, schema) = (Arc::clone(plan), rows.schema());
    // A stream that has panicked is not polled again.
    let rows = AssertUnwindSafe(rows).catch_unwind().then(move |row| {
        let (plan, task) = (Arc::clone(&plan), Arc::clone(&task));
        async move {
            match row {
                Ok(Ok(rows)) => Ok(rows),
                Ok(Err(error)) => Err(find(error, &plan, partition, task).await),
                Err(panic) => Err(find_panicking(panic, &plan, partition, task).await),
            }
        }
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows.boxed()))
}

async fn find_panicking(
    panic: Box<dyn Any + Send>,
    plan: &Arc<dyn ExecutionPlan>,
    partition: usize,
    task: Arc<TaskContext>,
) -> DataFusionError {
    for scan in scans(plan, partition) {
        let (path, format) = (address(&scan), scan.file_source().file_type().to_owned());
        if let Some(gone) = is_gone(&scan, &task, &path).await {
            return gone.into_datafusion();
        }
        let Some(scan) = as_it_lies(&scan) else { continue };
        if fails(scan, Arc::clone(&task)).await {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
            let source = DataFusionError::External(said.unwrap_or_default().into());
            return Error::Damaged { path, format, source: Box::new(source) }.into_datafusion();
        }
    }
    resume_unwind(panic)
}

async fn find(
    error: DataFusionError,
    plan: &Arc<dyn ExecutionPlan>,
    partition: usize,
    task: Arc<TaskContext>,
) -> DataFusionError {
    match Error::from_datafusion(error) {
        Error::DataFusion(error) if is_decoding(&error) => {
            for scan in scans(plan, partition) {
                let (path, format) = (address(&scan), scan.file_source().file_type().to_owned());
                let gone = is_gone(&scan, &task, &path).await;
                if fails(scan, Arc::clone(&task)).await {
                    return gone.unwrap_or(Error::Damaged { path, format, source: error }).into_datafusion();
                }
            }
            *error
        }
        other => other.into_datafusion(),
    }
}

/// Errors of a decoder; those of stores name their path themselves.
fn is_decoding(error: &DataFusionError) -> bool {
    matches!(
        error.find_root(),
        DataFusionError::ParquetError(_) | DataFusionError::ArrowError(..) | DataFusionError::External(_)
    )
}

/// One scan per file that this partition of the plan reads.
fn scans(plan: &Arc<dyn ExecutionPlan>, partition: usize) -> Vec<FileScanConfig> {
    if let Some(scan) = file_scan(plan) {
        let files = scan.file_groups.get(partition).map(|g| g.files().to_vec()).unwrap_or_default();
        let alone = |file| FileScanConfigBuilder::from(scan.clone()).with_file_groups(vec![FileGroup::new(vec![file])]);
        return files.into_iter().map(|file| alone(file).build()).collect();
    }
    let mut partition = partition;
    for child in plan.children() {
        let count = partitions(child);
        if partition < count || !plan.is::<UnionExec>() {
            return scans(child, partition);
        }
        partition -= count;
    }
    vec![]
}

/// The same files with their columns as they are: a scan may have functions of the query in it. Only arrow's reader of Parquet
/// is known to panic.
fn as_it_lies(scan: &FileScanConfig) -> Option<FileScanConfig> {
    let source = scan.file_source().downcast_ref::<ParquetSource>()?;
    let source = ParquetSource::new(source.table_schema().clone());
    let plain = FileScanConfigBuilder::new(scan.object_store_url.clone(), Arc::new(source));
    Some(plain.with_file_groups(scan.file_groups.clone()).build())
}

/// Address of a scan's only file, as the user would write it.
fn address(scan: &FileScanConfig) -> String {
    let path = scan.file_groups.first().and_then(|g| g.iter().next()).map(|f| f.path().to_string()).unwrap_or_default();
    let store = scan.object_store_url.as_str();
    format!("{}/{path}", store.trim_start_matches("file://").trim_end_matches('/'))
}

/// Whether the file is no longer there, or another one, or not to be had. Decoders make text of what the store said.
async fn is_gone(scan: &FileScanConfig, task: &TaskContext, path: &str) -> Option<Error> {
    let file = scan.file_groups.first()?.iter().next()?;
    let store = task.runtime_env().object_store(&scan.object_store_url).ok()?;
    match store.head(file.path()).await {
        Ok(meta) if meta.size == file.object_meta.size => None,
        Ok(meta) => Some(Error::Changed { path: path.to_owned(), planned: file.object_meta.size, found: meta.size }),
        Err(error) => Some(Error::from_store(error, path)),
    }
}

async fn fails(scan: FileScanConfig, task: Arc<TaskContext>) -> bool {
    let read = async {
        let mut rows = DataSourceExec::from_data_source(scan).execute(0, task)?;
        while rows.try_next().await?.is_some() {}
        Ok::<_, DataFusionError>(())
    };
    !matches!(AssertUnwindSafe(read).catch_unwind().await, Ok(Ok(())))
}
