//! Results of inference as a DataFrame: files that the nodes wrote, read back in the order of the input's rows.

use std::io::Cursor;
use std::sync::Arc;

use futures::StreamExt;
use tfos_core::proto;
use tfos_data::arrow::array::RecordBatch;
use tfos_data::arrow::datatypes::SchemaRef;
use tfos_data::arrow::ipc::reader::FileReader;
use tfos_data::datafusion::catalog::streaming::StreamingTable;
use tfos_data::datafusion::error::DataFusionError;
use tfos_data::datafusion::execution::TaskContext;
use tfos_data::datafusion::physical_plan::SendableRecordBatchStream;
use tfos_data::datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use tfos_data::datafusion::physical_plan::streaming::PartitionStream;
use tfos_data::datafusion::prelude::{DataFrame, SessionContext};
use tfos_data::object_store::ObjectStoreExt;

use crate::{Error, Result};

type Reader = FileReader<Cursor<Vec<u8>>>;

/// All results in one partition, so that their order is the input's.
#[derive(Debug)]
struct Ordered {
    schema: SchemaRef,
    results: Arc<Vec<proto::Result>>,
}

async fn open(path: &str) -> Result<Reader, DataFusionError> {
    let (store, location, _) = tfos_data::store::resolve(path).map_err(tfos_data::Error::into_datafusion)?;
    let got = store.get(&location).await.map_err(|e| DataFusionError::ObjectStore(Box::new(e)))?;
    let bytes = got.bytes().await.map_err(|e| DataFusionError::ObjectStore(Box::new(e)))?;
    Ok(FileReader::try_new(Cursor::new(bytes.to_vec()), None)?)
}

fn batch_of(reader: &mut Reader, path: &str, index: u64) -> Result<RecordBatch, DataFusionError> {
    reader.set_index(index as usize)?;
    let missing = || DataFusionError::Execution(format!("`{path}` has no record batch {index}"));
    Ok(reader.next().ok_or_else(missing)??)
}

impl PartitionStream for Ordered {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        struct State {
            results: Arc<Vec<proto::Result>>,
            at: usize,
            open: Option<(String, Reader)>,
        }
        let state = State { results: Arc::clone(&self.results), at: 0, open: None };
        let rows = futures::stream::try_unfold(state, |mut state| async move {
            let Some(result) = state.results.get(state.at).cloned() else { return Ok(None) };
            let mut reader = match state.open.take().filter(|(path, _)| *path == result.path) {
                Some((_, reader)) => reader,
                None => open(&result.path).await?,
            };
            let batch = batch_of(&mut reader, &result.path, result.batch)?;
            state.open = Some((result.path, reader));
            state.at += 1;
            Ok::<_, DataFusionError>(Some((batch, state)))
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows.boxed()))
    }
}

/// Checks that every row has exactly one result, and makes them a DataFrame.
pub(super) async fn data_frame(
    session: &SessionContext,
    mut results: Vec<proto::Result>,
    rows: u64,
) -> Result<DataFrame> {
    results.sort_by_key(|r| (r.partition, r.start));
    let given: u64 = results.iter().map(|r| r.end - r.start).sum();
    let overlap =
        results.iter().zip(results.iter().skip(1)).find(|(a, b)| a.partition == b.partition && a.end != b.start);
    if given != rows || overlap.is_some() {
        return Err(Error::Results(format!("{rows} rows were fed and {given} results came back")));
    }
    let Some(first) = results.first() else { return Ok(session.read_empty()?) };
    let schema = open(&first.path).await?.schema();
    let ordered = Ordered { schema: Arc::clone(&schema), results: Arc::new(results) };
    let table = StreamingTable::try_new(schema, vec![Arc::new(ordered)])?;
    Ok(session.read_table(Arc::new(table))?)
}
