//! The scan that has both decoders: DataFusion's source inside, and the choice for each file.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{DefaultParquetFileReaderFactory, ParquetFileReaderFactory};
use datafusion::datasource::physical_plan::{FileOpenFuture, FileOpener, FileScanConfig, FileSource, ParquetSource};
use datafusion::datasource::projection::{ProjectionOpener, SplitProjection};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::file::metadata::PageIndexPolicy;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder};
use datafusion::physical_plan::{DisplayFormatType, PhysicalExpr};
use futures::{FutureExt, StreamExt, stream};
use object_store::ObjectStore;

use super::chunks::Chunks;
use super::fit::{Fit, is_numbers};
use super::group::Rows;

/// Files that this module's decoder reads.
pub(super) const FILES: &str = "files_with_fast_numbers";
/// Row groups of them that went back to arrow's reader.
pub(super) const GIVEN_BACK: &str = "row_groups_given_back";

/// Scans Parquet files.
#[derive(Clone)]
pub(super) struct NumberSource {
    inner: Arc<dyn FileSource>,
    factory: Option<Arc<dyn ParquetFileReaderFactory>>,
    projection: SplitProjection,
    batch_rows: Option<usize>,
    /// Bytes at the end of a file that are likely to hold its footer.
    footer: Option<usize>,
}

impl NumberSource {
    /// `None` where the scan has no column of numbers, or does more than to give all rows.
    pub(super) fn new(scan: &FileScanConfig) -> Option<Self> {
        let inner = scan.file_source().downcast_ref::<ParquetSource>()?;
        let table = inner.table_schema();
        // What a source shows beside its columns is what it prunes by and in which order it reads.
        let plain = scan.limit.is_none()
            && scan.expr_adapter_factory.is_none()
            && table.virtual_columns().is_empty()
            && inner.table_parquet_options().crypto.file_decryption.is_none()
            && inner.table_parquet_options().crypto.factory_id.is_none()
            && Extra(inner).to_string().is_empty();
        let projection = SplitProjection::new(table.file_schema(), inner.projection()?);
        let is_numbers = |column: &usize| is_numbers(table.file_schema().field(*column));
        if !plain || !projection.file_indices.iter().any(is_numbers) {
            return None;
        }
        let factory = inner.parquet_file_reader_factory().cloned();
        let footer = inner.table_parquet_options().global.metadata_size_hint;
        Some(Self { inner: Arc::new(inner.clone()), factory, projection, batch_rows: None, footer })
    }
}

struct Extra<'a>(&'a ParquetSource);

impl fmt::Display for Extra<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_extra(DisplayFormatType::Default, f)
    }
}

impl FileSource for NumberSource {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        base: &FileScanConfig,
        partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        let metrics = self.inner.metrics().clone();
        let count = |name| MetricBuilder::new(&metrics).counter(name, partition);
        let table = self.inner.table_schema();
        let usual = || Arc::new(DefaultParquetFileReaderFactory::new(Arc::clone(&store))) as _;
        Ok(Arc::new(NumberOpener {
            factory: self.factory.clone().unwrap_or_else(usual),
            schema: Arc::new(table.file_schema().project(&self.projection.file_indices)?),
            output: Arc::new(self.projection.source.project_schema(table.table_schema())?),
            file_schema: Arc::clone(table.file_schema()),
            projection: self.projection.clone(),
            batch_rows: self.batch_rows.or(base.batch_size).unwrap_or(crate::session::BATCH_ROWS),
            footer: self.footer,
            files: count(FILES),
            given_back: count(GIVEN_BACK),
            usual: usual_opener(&*self.inner, store, base, partition)?,
            metrics,
            partition,
        }))
    }

    fn table_schema(&self) -> &TableSchema {
        self.inner.table_schema()
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        let inner = self.inner.with_batch_size(batch_size);
        Arc::new(Self { inner, batch_rows: Some(batch_size), ..self.clone() })
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        self.inner.projection()
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        self.inner.metrics()
    }

    fn file_type(&self) -> &str {
        self.inner.file_type()
    }

    fn fmt_extra(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(", numbers=fast")
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.inner.apply_expressions(f)
    }
}

type Open = Box<dyn Fn(PartitionedFile) -> Result<FileOpenFuture> + Send + Sync>;

/// How DataFusion opens a file of `source`.
fn usual_opener(
    source: &dyn FileSource,
    store: Arc<dyn ObjectStore>,
    base: &FileScanConfig,
    partition: usize,
) -> Result<Arc<Open>> {
    let files = source.create_morselizer(store, base, partition)?;
    Ok(Arc::new(Box::new(move |file| {
        let first = files.plan_file(file)?;
        let open = async move {
            let (mut todo, mut rows) = (vec![first], vec![]);
            while let Some(planner) = todo.pop() {
                let Some(mut plan) = planner.plan()? else { continue };
                rows.extend(plan.take_morsels().into_iter().map(|morsel| morsel.into_stream()));
                if let Some(later) = plan.take_pending_planner() {
                    todo.push(later.await?);
                }
                todo.extend(plan.take_ready_planners().into_iter().rev());
            }
            Ok(stream::iter(rows).flatten().boxed())
        };
        Ok(open.boxed())
    })))
}

struct NumberOpener {
    factory: Arc<dyn ParquetFileReaderFactory>,
    /// The columns that are read.
    schema: SchemaRef,
    /// What is made of them.
    output: SchemaRef,
    file_schema: SchemaRef,
    projection: SplitProjection,
    batch_rows: usize,
    footer: Option<usize>,
    files: Count,
    given_back: Count,
    usual: Arc<Open>,
    metrics: ExecutionPlanMetricsSet,
    partition: usize,
}

type Reader = Box<dyn AsyncFileReader>;

impl FileOpener for NumberOpener {
    fn open(&self, file: PartitionedFile) -> Result<FileOpenFuture> {
        let hint = file.metadata_size_hint.or(self.footer);
        let mut reader: Reader = self.factory.create_reader(self.partition, file.clone(), hint, &self.metrics)?;
        let mut options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Skip);
        if let Some(schema) = &file.arrow_schema {
            options = options.with_schema(Arc::clone(schema));
        }
        let (schema, output) = (Arc::clone(&self.schema), Arc::clone(&self.output));
        let (projection, file_schema) = (self.projection.clone(), Arc::clone(&self.file_schema));
        let (files, given_back, batch_rows) = (self.files.clone(), self.given_back.clone(), self.batch_rows);
        let usual = Arc::clone(&self.usual);
        let open = async move {
            // What is wrong with a footer is for DataFusion to say.
            let metadata = ArrowReaderMetadata::load_async(&mut reader, options).await.ok();
            let Some(fit) = metadata.and_then(|metadata| Fit::of(&file, &schema, metadata)) else {
                drop(reader);
                return usual(file)?.await;
            };
            files.add(1);
            let size = file.object_meta.size;
            let rows = FileRows { fit: Arc::new(fit), reader, next: 0, size, rows: None, batch_rows, given_back };
            let opened =
                ProjectionOpener::try_new(projection, Arc::new(Opened::new(rows)), &file_schema)?.open(file)?;
            let rows = opened.await?.map(move |batch| with_schema(batch?, &output));
            Ok(rows.boxed())
        };
        Ok(open.boxed())
    }
}

/// The same columns, as the plan declares them.
fn with_schema(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let columns = batch.columns().to_vec();
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// Gives rows of a file that is open, once.
struct Opened(std::sync::Mutex<Option<FileRows>>);

impl Opened {
    fn new(rows: FileRows) -> Self {
        Self(std::sync::Mutex::new(Some(rows)))
    }
}

impl FileOpener for Opened {
    fn open(&self, _: PartitionedFile) -> Result<FileOpenFuture> {
        let rows = self.0.lock().ok().and_then(|mut rows| rows.take());
        Ok(async move { Ok(stream::iter(rows).map(FileRows::stream).flatten().boxed()) }.boxed())
    }
}

/// Reads a file, row group by row group.
struct FileRows {
    fit: Arc<Fit>,
    reader: Reader,
    /// The next row group.
    next: usize,
    size: u64,
    rows: Option<Rows>,
    batch_rows: usize,
    given_back: Count,
}

impl FileRows {
    fn stream(self) -> stream::BoxStream<'static, Result<RecordBatch>> {
        stream::try_unfold(self, |mut file| async move { Ok(file.batch().await?.map(|batch| (batch, file))) }).boxed()
    }

    async fn batch(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(rows) = &mut self.rows
                && let Some(batch) = rows.next()?
            {
                return Ok(Some(batch));
            }
            // One row group is in memory at a time.
            self.rows = None;
            let Some(group) = self.fit.groups.get(self.next).cloned() else { return Ok(None) };
            self.next += 1;
            let bytes = self.reader.get_byte_ranges(group.ranges.clone()).await?;
            let chunks = Chunks::new(&group.ranges, bytes, self.size);
            let fit = Arc::clone(&self.fit);
            self.rows = Some(Rows::new(fit, group, chunks, self.batch_rows, self.given_back.clone())?);
        }
    }
}
