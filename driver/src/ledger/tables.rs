//! The tables of `tfos sql`: steps and samples out of the ledger of the surviving lineage, metrics and events out of the
//! journals of all generations.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tfos_core::checkpoint::{Manifest, Paths};
use tfos_data::SessionContext;
use tfos_data::arrow::array::{RecordBatch, new_null_array};
use tfos_data::arrow::compute::cast;
use tfos_data::arrow::datatypes::SchemaRef;
use tfos_data::datafusion::datasource::MemTable;
use tfos_data::parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use tfos_data::session::{self, Format};

use super::broken;
use crate::error::Error;
use crate::journal;
use crate::model_dir::ModelDir;

/// Journals on their way at the same time.
const AT_ONCE: usize = 16;

/// One line per applied row range.
const SAMPLES: &str = r#"
    CREATE VIEW samples AS
    SELECT global_step, generation, epoch, "partition", row_start, row_end, row_end - row_start AS rows, worker, loss, {time}
    FROM ledger WHERE row_end > row_start"#;

/// One line per update. Its loss is the mean over its rows, of an update without rows the one that was reported.
const STEPS: &str = "
    CREATE VIEW steps AS
    SELECT global_step, max(generation) AS generation,
           max(CASE WHEN row_end > row_start THEN epoch END) AS epoch,
           count(DISTINCT worker) AS workers, sum(row_end - row_start) AS rows,
           CASE WHEN sum(row_end - row_start) = 0 THEN avg(loss)
                ELSE sum(loss * (row_end - row_start)) / sum(row_end - row_start) END AS loss,
           max(time) AS time
    FROM (SELECT *, {time} FROM ledger) GROUP BY global_step";

const METRICS: &str = "
    CREATE VIEW metrics AS
    SELECT {time}, generation, phase, node, global_step, name, value, rows FROM journal WHERE event = 'metric'";

const EVENTS: &str = "
    CREATE VIEW events AS
    SELECT {time}, generation, event, phase, node, executor, global_step, rows, detail
    FROM journal WHERE event <> 'metric'";

const TIME: &str = r#"arrow_cast(CAST(time_ms AS BIGINT), 'Timestamp(Millisecond, Some("+00:00"))') AS time"#;

/// A session with the tables `steps`, `samples`, `metrics` and `events` of a model directory; `None` where there is
/// neither a checkpoint nor a journal.
pub async fn open(dir: &ModelDir) -> Result<Option<SessionContext>, Error> {
    // The surviving lineage: segments of an abandoned future are not asked.
    let newest = dir.list_checkpoints().await?.into_iter().rev().find_map(|c| c.manifest.ok());
    let journals = journals(dir).await?;
    if newest.is_none() && journals.is_empty() {
        return Ok(None);
    }
    let context = SessionContext::new_with_config(session::session().copied_config().with_information_schema(true));
    ledger(dir, newest.as_ref(), &context).await?;
    memory(&context, "journal", journal::schema(), journals)?;
    for view in [SAMPLES, STEPS, METRICS, EVENTS] {
        let made = context.sql(&view.replace("{time}", TIME)).await.map_err(tfos_data::Error::from)?;
        made.collect().await.map_err(tfos_data::Error::from)?;
    }
    Ok(Some(context))
}

async fn ledger(dir: &ModelDir, newest: Option<&Manifest>, context: &SessionContext) -> Result<(), Error> {
    let root = dir.url().as_str().trim_end_matches('/');
    let segments = newest.into_iter().flat_map(|m| &m.ledger);
    let files: Vec<String> = segments.map(|path| format!("{root}/{path}")).collect();
    if files.is_empty() {
        return memory(context, "ledger", Arc::new(super::schema()), vec![]);
    }
    Ok(session::register(context, "ledger", &files.join(","), Format::Parquet, None).await?)
}

fn memory(context: &SessionContext, name: &str, schema: SchemaRef, rows: Vec<RecordBatch>) -> Result<(), Error> {
    let table = MemTable::try_new(schema, vec![rows]).map_err(tfos_data::Error::from)?;
    context.register_table(name, Arc::new(table)).map_err(tfos_data::Error::from)?;
    Ok(())
}

/// What all generations noted. A journal that cannot be read is said and left out: the others say what they can.
async fn journals(dir: &ModelDir) -> Result<Vec<RecordBatch>, Error> {
    let mut generations: Vec<_> = dir.names(Paths::JOB).await?.iter().filter_map(|n| Paths::parse_events(n)).collect();
    generations.sort();
    let read = |path: String| async move {
        let Some(bytes) = dir.read(&path).await? else { return Ok::<_, Error>(vec![]) };
        let rows = ParquetRecordBatchReader::try_new(bytes, 1 << 16).and_then(|reader| {
            reader
                .map(|batch| Ok(fitted(&batch?)?))
                .collect::<Result<Vec<_>, tfos_data::parquet::errors::ParquetError>>()
        });
        Ok(rows.unwrap_or_else(|e| {
            let error = broken(dir, &path, e);
            tracing::warn!("left out: {}", tfos_core::failure::chain(&error).join(": "));
            vec![]
        }))
    };
    let paths = generations.into_iter().map(Paths::events);
    let read: Vec<Vec<RecordBatch>> = futures::stream::iter(paths.map(read)).buffered(AT_ONCE).try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}

/// The columns that this program knows: those of another version are left out, or empty.
fn fitted(batch: &RecordBatch) -> Result<RecordBatch, tfos_data::arrow::error::ArrowError> {
    let schema = journal::schema();
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) => cast(column, field.data_type()),
        None => Ok(new_null_array(field.data_type(), batch.num_rows())),
    });
    RecordBatch::try_new(Arc::clone(&schema), columns.collect::<Result<_, _>>()?)
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
