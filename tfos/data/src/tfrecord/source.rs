//! TFRecord as a DataFusion file format: one file is one unit of work, and only projected features are decoded.
//!
//! Frames have no index, so a file is never split by byte ranges. The source sits under `FileScanConfig` like
//! DataFusion's own formats: plans, partitions and distributed engines treat it as they treat Parquet.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{GetExt, Result as DfResult, Statistics};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpenFuture, FileOpener, FileScanConfig, FileSource};
use datafusion::datasource::projection::{ProjectionOpener, SplitProjection};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStore};

use super::reader;
use super::schema::{Inference, SAMPLE};
use super::to_arrow::BatchSize;
use crate::error::Error;
use crate::store;

/// The file extension without its dot, as `STORED AS` and listings use it.
pub const EXTENSION: &str = "tfrecord";

/// How to list and infer TFRecord files.
#[derive(Debug, Clone)]
pub struct TfRecordFormat {
    root: String,
    sample: usize,
}

impl Default for TfRecordFormat {
    fn default() -> Self {
        Self { root: String::new(), sample: SAMPLE }
    }
}

impl TfRecordFormat {
    /// Names files in errors with the address of their store, such as `file:///`.
    pub fn with_root(mut self, root: impl Into<String>) -> Self {
        self.root = root.into();
        self
    }

    /// Infers from the first `records` records, counted over all files.
    pub fn with_sample(mut self, records: usize) -> Self {
        self.sample = records.max(1);
        self
    }
}

#[async_trait]
impl FileFormat for TfRecordFormat {
    fn get_ext(&self) -> String {
        EXTENSION.to_owned()
    }

    fn get_ext_with_compression(&self, compression: &FileCompressionType) -> DfResult<String> {
        Ok(format!("{EXTENSION}{}", compression.get_ext()))
    }

    fn compression_type(&self) -> Option<FileCompressionType> {
        None
    }

    async fn infer_schema(
        &self,
        _state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> DfResult<SchemaRef> {
        let mut inference = Inference::default();
        for object in objects {
            if inference.records() >= self.sample {
                break;
            }
            let name = store::display(&self.root, Some(&object.location));
            reader::sample(store, &object.location, &name, &mut inference, self.sample)
                .await
                .map_err(Error::into_datafusion)?;
        }
        Ok(inference.schema())
    }

    async fn infer_stats(
        &self,
        _state: &dyn Session,
        _store: &Arc<dyn ObjectStore>,
        table_schema: SchemaRef,
        _object: &ObjectMeta,
    ) -> DfResult<Statistics> {
        Ok(Statistics::new_unknown(&table_schema))
    }

    async fn create_physical_plan(
        &self,
        _state: &dyn Session,
        conf: FileScanConfig,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(DataSourceExec::from_data_source(conf))
    }

    fn file_source(&self, table_schema: TableSchema) -> Arc<dyn FileSource> {
        Arc::new(TfRecordSource::new(table_schema))
    }
}

/// The scan of TFRecord files under a `FileScanConfig`.
#[derive(Clone)]
pub struct TfRecordSource {
    table_schema: TableSchema,
    projection: SplitProjection,
    batch_rows: Option<usize>,
    batch_bytes: Option<usize>,
    metrics: ExecutionPlanMetricsSet,
}

impl TfRecordSource {
    /// Reads every column of `table_schema` until a projection is pushed down.
    pub fn new(table_schema: TableSchema) -> Self {
        Self {
            projection: SplitProjection::unprojected(&table_schema),
            table_schema,
            batch_rows: None,
            batch_bytes: None,
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

impl TfRecordSource {
    /// Batches have at most about so many bytes.
    pub fn with_batch_bytes(self, bytes: usize) -> Self {
        Self { batch_bytes: Some(bytes), ..self }
    }
}

impl fmt::Debug for TfRecordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TfRecordSource").field("projection", &self.projection).finish_non_exhaustive()
    }
}

impl FileSource for TfRecordSource {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        base: &FileScanConfig,
        _partition: usize,
    ) -> DfResult<Arc<dyn FileOpener>> {
        let schema = self.table_schema.file_schema();
        let usual = BatchSize::from(8192);
        let opener = TfRecordOpener {
            store,
            root: base.object_store_url.to_string(),
            schema: Arc::new(schema.project(&self.projection.file_indices)?),
            size: BatchSize {
                bytes: self.batch_bytes.unwrap_or(usual.bytes),
                rows: self.batch_rows.or(base.batch_size).unwrap_or(usual.rows),
            },
        };
        ProjectionOpener::try_new(self.projection.clone(), Arc::new(opener), schema)
    }

    fn table_schema(&self) -> &TableSchema {
        &self.table_schema
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        Arc::new(Self { batch_rows: Some(batch_size), ..self.clone() })
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        Some(&self.projection.source)
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }

    fn file_type(&self) -> &str {
        EXTENSION
    }

    fn supports_repartitioning(&self) -> bool {
        false
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> DfResult<Option<Arc<dyn FileSource>>> {
        let merged = self.projection.source.try_merge(projection)?;
        let projection = SplitProjection::new(self.table_schema.file_schema(), &merged);
        Ok(Some(Arc::new(Self { projection, ..self.clone() })))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        datafusion::physical_plan::apply_expression_roots(self.projection.source.iter(), f)
    }
}

struct TfRecordOpener {
    store: Arc<dyn ObjectStore>,
    root: String,
    schema: SchemaRef,
    size: BatchSize,
}

impl FileOpener for TfRecordOpener {
    fn open(&self, file: PartitionedFile) -> DfResult<FileOpenFuture> {
        let path = file.object_meta.location;
        let name = store::display(&self.root, Some(&path));
        if file.range.is_some() {
            return Err(Error::Unsupported {
                what: format!("a byte range of `{name}`"),
                instead: "a TFRecord file is read as a whole".into(),
            }
            .into_datafusion());
        }
        let batches = reader::batches(Arc::clone(&self.store), path, name.into(), Arc::clone(&self.schema), self.size);
        Ok(batches
            .map(|opened| opened.map(|b| b.map_err(Error::into_datafusion).boxed()).map_err(Error::into_datafusion))
            .boxed())
    }
}
