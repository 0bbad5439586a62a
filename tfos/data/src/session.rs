//! The one DataFusion session that driver and executors agree on, and tables over files in it.
//!
//! PLN-1: a plan depends on the query and the files, never on the machine that makes it: the number of partitions is a
//! constant, and no setting follows the number of cores.

use std::num::NonZeroUsize;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::datasource::TableProvider;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::avro::AvroFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::SessionState;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use url::Url;

use crate::error::{Error, Result};
use crate::hive::{Columns, HiveTable};
use crate::ipc;
use crate::store::{self, Listing};
use crate::tfrecord::{TfRecordFormat, parse_schema};

/// Into how many partitions a scan is divided, where it has enough files or bytes.
pub const TARGET_PARTITIONS: usize = 64;
/// Rows of a batch.
pub const BATCH_ROWS: usize = 8192;
/// Files whose headers are read at the same time while planning.
const OPEN_FILES: usize = 32;

/// How the rows of a table are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Parquet,
    /// With a header line.
    Csv,
    /// One JSON object per line.
    NdJson,
    /// Arrow IPC files.
    Arrow,
    /// Avro object container files.
    Avro,
    TfRecord,
    /// MNIST's images and labels; for [`crate::convert`] and [`crate::idx`] only.
    Idx,
}

impl Format {
    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::NdJson => "ndjson",
            Self::Arrow => "arrow",
            Self::Avro => "avro",
            Self::TfRecord => "tfrecord",
            Self::Idx => "idx",
        }
    }

    /// By the file name, behind an extension of compression; `None` where it does not tell.
    pub fn from_path(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
        let stem =
            [".gz", ".gzip", ".zlib", ".deflate", ".zst", ".bz2", ".xz"].iter().find_map(|ext| name.strip_suffix(ext));
        let stem = stem.unwrap_or(&name);
        if stem.ends_with("-ubyte") {
            return Some(Self::Idx);
        }
        stem.rsplit_once('.').and_then(|(_, ext)| ext.parse().ok())
    }
}

/// The format of the files at `url`: by its name, or by those of the files behind it; `None` where they do not tell.
pub async fn format_of(url: &str) -> Result<Option<Format>> {
    if let Some(format) = Format::from_path(url) {
        return Ok(Some(format));
    }
    match store::list(url).await {
        Ok(listing) => Ok(listing.files.iter().find_map(|f| Format::from_path(f.location.as_ref()))),
        Err(Error::NotFound { .. } | Error::NoFiles { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "parquet" | "pq" => Self::Parquet,
            "csv" => Self::Csv,
            "ndjson" | "json" | "jsonl" => Self::NdJson,
            "arrow" | "ipc" | "feather" => Self::Arrow,
            "avro" => Self::Avro,
            "tfrecord" | "tfrecords" | "tfr" => Self::TfRecord,
            "idx" => Self::Idx,
            _ => {
                return Err(Error::Unsupported {
                    what: format!("the format `{text}`"),
                    instead: "use parquet, csv, ndjson, arrow, avro, tfrecord or idx".into(),
                });
            }
        })
    }
}

/// A session with the settings that every plan of a job is made and run with.
pub fn session() -> SessionContext {
    SessionContext::new_with_config(config())
}

/// A session for a query that is run whole: sorts and aggregates that outgrow half of the memory that is free now go to
/// the machine's folder for temporary files.
pub fn staging_session() -> Result<SessionContext> {
    let mut runtime = RuntimeEnvBuilder::new();
    if let Some(free) = free_memory() {
        let share = NonZeroUsize::new(5).unwrap_or(NonZeroUsize::MIN);
        let pool = TrackConsumersPool::new(FairSpillPool::new(free / 2), share);
        runtime = runtime.with_memory_pool(Arc::new(pool));
    }
    Ok(SessionContext::new_with_config_rt(config(), runtime.build_arc()?))
}

/// `MemAvailable` of <https://man7.org/linux/man-pages/man5/proc_meminfo.5.html>, in bytes.
pub fn free_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

pub(crate) fn config() -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(TARGET_PARTITIONS)
        .with_batch_size(BATCH_ROWS)
        .with_collect_statistics(true)
        .with_round_robin_repartition(false)
        .with_repartition_file_scans(true);
    let options = config.options_mut();
    options.execution.planning_concurrency = 8;
    // Partition i is executed alone, on some executor, perhaps twice: it must be its own files and nothing else.
    options.execution.enable_file_stream_work_stealing = false;
    // The view types save copies inside a query, but no consumer of ours takes them.
    options.execution.parquet.schema_force_view_types = false;
    options.execution.parquet.pushdown_filters = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    config
}

/// The rows at `url` (a file, directory, glob, or several by commas); see [`register`] for `schema`.
pub async fn read(ctx: &SessionContext, url: &str, format: Format, schema: Option<&str>) -> Result<DataFrame> {
    Ok(ctx.read_table(table(ctx, url, format, schema).await?)?)
}

/// Makes the rows at `url` known to SQL as `table_name`.
///
/// `schema` is a text such as `image:binary,label:int64` ([`parse_schema`]); without it the files say or suggest one.
pub async fn register(
    ctx: &SessionContext,
    table_name: &str,
    url: &str,
    format: Format,
    schema: Option<&str>,
) -> Result<()> {
    ctx.register_table(table_name, table(ctx, url, format, schema).await?)?;
    Ok(())
}

async fn table(
    ctx: &SessionContext,
    url: &str,
    format: Format,
    schema: Option<&str>,
) -> Result<Arc<dyn TableProvider>> {
    let schema = schema.map(parse_schema).transpose()?;
    let listing = store::list(url).await?;
    store::register(&ctx.runtime_env(), &listing.root)?;
    let state = ctx.state();
    let kind = file_format(&state, format, &listing)?;
    // Files that carry their schema are opened even when the user gives one: a broken file is to stop the plan, not
    // an executor an hour later.
    let stored = match format {
        Format::Parquet | Format::Arrow | Format::Avro => Some(stored_schema(&state, &*kind, format, &listing).await?),
        _ => None,
    };
    let hive = Columns::of(&listing, schema.as_deref())?;
    let schema = match (&hive, schema) {
        (Some(columns), Some(schema)) => Some(columns.without(&schema)),
        (_, schema) => schema,
    };
    let schema = match (schema, stored) {
        (Some(schema), Some(stored)) => check(&schema, &stored)?,
        (Some(schema), None) => schema,
        (None, Some(stored)) => stored,
        (None, None) => sampled_schema(&state, &*kind, format, &listing, url).await?,
    };
    let urls = listing.files.iter().map(|f| table_url(&listing.root, f)).collect::<Result<Vec<_>>>()?;
    let options = ListingOptions::new(kind).with_file_extension("");
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
    let files = ListingTable::try_new(config)?;
    Ok(match hive {
        None => Arc::new(files),
        Some(columns) => {
            columns.check(&files.schema())?;
            Arc::new(HiveTable::new(files, columns))
        }
    })
}

fn file_format(state: &SessionState, format: Format, listing: &Listing) -> Result<Arc<dyn FileFormat>> {
    let options = state.default_table_options();
    Ok(match format {
        Format::Parquet => Arc::new(ParquetFormat::new().with_options(options.parquet)),
        Format::Arrow => Arc::new(ArrowFormat),
        Format::Avro => Arc::new(AvroFormat),
        Format::Csv => {
            let compression = compression(listing)?;
            Arc::new(
                CsvFormat::default()
                    .with_options(options.csv)
                    .with_has_header(true)
                    .with_file_compression_type(compression),
            )
        }
        Format::NdJson => {
            Arc::new(JsonFormat::default().with_options(options.json).with_file_compression_type(compression(listing)?))
        }
        Format::TfRecord => Arc::new(TfRecordFormat::default().with_root(listing.root.as_str())),
        Format::Idx => {
            return Err(Error::Unsupported {
                what: "a query over idx files".into(),
                instead: "convert them to tfrecord or parquet first".into(),
            });
        }
    })
}

/// The one compression that the names of all files tell.
fn compression(listing: &Listing) -> Result<FileCompressionType> {
    let of = |file: &ObjectMeta| match file.location.extension() {
        Some("gz" | "gzip") => FileCompressionType::GZIP,
        Some("bz2") => FileCompressionType::BZIP2,
        Some("xz") => FileCompressionType::XZ,
        Some("zst") => FileCompressionType::ZSTD,
        _ => FileCompressionType::UNCOMPRESSED,
    };
    let mut files = listing.files.iter();
    let first = files.next().map_or(FileCompressionType::UNCOMPRESSED, of);
    match files.find(|f| of(f) != first) {
        None => Ok(first),
        Some(other) => Err(Error::Unsupported {
            what: format!("files of different compression in one table (`{}`)", other.location),
            instead: "compress all files alike".into(),
        }),
    }
}

async fn stored_schema(
    state: &SessionState,
    kind: &dyn FileFormat,
    format: Format,
    listing: &Listing,
) -> Result<SchemaRef> {
    let headers = futures::stream::iter(&listing.files).map(|file| async move {
        let name = store::display(listing.root.as_str(), Some(&file.location));
        let schema = match format {
            Format::Arrow => ipc::schema(state, &listing.store, file).await,
            _ => kind.infer_schema(state, &listing.store, std::slice::from_ref(file)).await,
        };
        match schema {
            Ok(schema) => Ok((name, schema)),
            Err(source) => Err(Error::Open { path: name, format: format.name(), source: Box::new(source) }),
        }
    });
    // In order, so that the columns' order and the first error do not depend on timing.
    let mut headers = headers.buffered(OPEN_FILES);
    let mut merged = Schema::empty();
    while let Some((path, schema)) = headers.try_next().await? {
        let plain = schema.as_ref().clone().with_metadata(std::collections::HashMap::new());
        merged = Schema::try_merge([merged, plain]).map_err(|source| Error::SchemaMerge { path, source })?;
    }
    Ok(Arc::new(merged))
}

async fn sampled_schema(
    state: &SessionState,
    kind: &dyn FileFormat,
    format: Format,
    listing: &Listing,
    url: &str,
) -> Result<SchemaRef> {
    let schema = kind.infer_schema(state, &listing.store, &listing.files).await;
    let schema = schema.map_err(|e| match Error::from_datafusion(e) {
        Error::DataFusion(source) => Error::Open { path: url.to_owned(), format: format.name(), source },
        ours => ours,
    })?;
    if schema.fields().is_empty() {
        return Err(Error::Unsupported {
            what: format!("finding a schema in `{url}`, which has no rows,"),
            instead: "give a schema, for example `image:binary,label:int64`".into(),
        });
    }
    Ok(schema)
}

/// The user's schema, if every column of it is in the files and can be cast.
fn check(wanted: &SchemaRef, stored: &Schema) -> Result<SchemaRef> {
    for field in wanted.fields() {
        let Ok(found) = stored.field_with_name(field.name()) else {
            let existing = stored.fields().iter().map(|f| f.name().clone()).collect();
            return Err(Error::MissingColumn { column: field.name().clone(), existing });
        };
        if !datafusion::arrow::compute::can_cast_types(found.data_type(), field.data_type()) {
            return Err(Error::ColumnType {
                column: field.name().clone(),
                wanted: field.data_type().to_string(),
                found: found.data_type().clone(),
            });
        }
    }
    Ok(Arc::clone(wanted))
}

fn table_url(root: &Url, file: &ObjectMeta) -> Result<ListingTableUrl> {
    let mut url = root.clone();
    // `set_path` escapes what an URL cannot hold, but takes `%` for an escape already made.
    url.set_path(&format!("/{}", file.location.as_ref().replace('%', "%25")));
    Ok(ListingTableUrl::try_new(url, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_found() {
        assert_eq!(Format::from_path("a/b.csv.gz"), Some(Format::Csv));
        assert_eq!(Format::from_path("train-images-idx3-ubyte.gz"), Some(Format::Idx));
        assert_eq!(Format::from_path("x.tfrecord"), Some(Format::TfRecord));
        assert_eq!(Format::from_path("part-00000"), None);
        assert!("exe".parse::<Format>().unwrap_err().to_string().contains("`exe`"));
        for f in
            [Format::Parquet, Format::Csv, Format::NdJson, Format::Arrow, Format::Avro, Format::TfRecord, Format::Idx]
        {
            assert_eq!(f.name().parse::<Format>().unwrap(), f);
        }
    }

    #[tokio::test]
    async fn broken_and_missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let ctx = session();
        let path = dir.path().join("t.parquet");
        let rows = ctx.sql("select 1 as a").await.unwrap();
        rows.write_parquet(path.to_str().unwrap(), Default::default(), None).await.unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let broken = dir.path().join("u.parquet");
        std::fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
        for format in [Format::Parquet, Format::Arrow] {
            let error = read(&ctx, broken.to_str().unwrap(), format, Some("a:int64")).await.unwrap_err();
            assert!(matches!(&error, Error::Open { path, .. } if path.ends_with("u.parquet")), "{error:?}");
            assert!(error.is_user(), "{error:?}");
        }
        let error = read(&ctx, dir.path().to_str().unwrap(), Format::Parquet, None).await.unwrap_err();
        assert!(error.to_string().contains("u.parquet"), "{error}");
        let error = read(&ctx, path.to_str().unwrap(), Format::Parquet, Some("b:int64")).await.unwrap_err();
        assert_eq!(error.to_string(), "no column `b`; there are: a");
        let error = read(&ctx, path.to_str().unwrap(), Format::Parquet, Some("a:float32[2]")).await.unwrap_err();
        assert!(matches!(error, Error::ColumnType { .. }), "{error}");
        let error = read(&ctx, "/no/such.csv", Format::Csv, None).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
}
