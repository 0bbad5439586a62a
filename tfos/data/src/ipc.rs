//! The schema of an Arrow IPC file, wherever it lies.
//!
//! DataFusion 55 reads it from the file's beginning where a store gives bytes, and takes it that the first message begins at
//! byte 8. Arrow's own writer puts it at byte 64, so its files could be read from disks only. The footer says the same, and
//! where it is does not depend on who wrote the file.
//!
//! The format: <https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format>.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::convert::fb_to_schema;
use datafusion::arrow::ipc::reader::read_footer_length;
use datafusion::arrow::ipc::root_as_footer;
use datafusion::catalog::Session;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::error::{DataFusionError, Result};
use futures::FutureExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

/// What begins and ends a file, but not a stream.
const MAGIC: &[u8] = b"ARROW1";

/// The footer's length and the magic, at the end.
const TAIL: u64 = 10;

/// The schema of a file or of a stream in a file.
pub(crate) async fn schema(state: &dyn Session, store: &Arc<dyn ObjectStore>, file: &ObjectMeta) -> Result<SchemaRef> {
    // A schema that nobody has checked may make what reads it panic.
    let read = AssertUnwindSafe(read(state, store, file)).catch_unwind().await;
    read.unwrap_or_else(|_| Err(damaged("its schema makes no sense")))
}

async fn read(state: &dyn Session, store: &Arc<dyn ObjectStore>, file: &ObjectMeta) -> Result<SchemaRef> {
    let size = file.size;
    let begin = store.get_range(&file.location, 0..size.min(MAGIC.len() as u64)).await?;
    if *begin != *MAGIC {
        return ArrowFormat.infer_schema(state, store, std::slice::from_ref(file)).await;
    }
    let tail = store.get_range(&file.location, size.saturating_sub(TAIL)..size).await?;
    let length = <[u8; TAIL as usize]>::try_from(&*tail).ok().and_then(|tail| read_footer_length(tail).ok());
    let footer = length.and_then(|length| size.checked_sub(TAIL + length as u64));
    let Some(footer) = footer else { return Err(damaged("it does not end as it should")) };
    let bytes = store.get_range(&file.location, footer..size - TAIL).await?;
    let footer = root_as_footer(&bytes).map_err(|error| damaged(&format!("its footer is damaged ({error})")))?;
    let schema = footer.schema().ok_or_else(|| damaged("its footer has no schema"))?;
    Ok(Arc::new(fb_to_schema(schema)))
}

fn damaged(what: &str) -> DataFusionError {
    ArrowError::IpcError(what.to_owned()).into()
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Int64Array, RecordBatch};
    use datafusion::arrow::ipc::MetadataVersion;
    use datafusion::arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::session;

    fn rows() -> RecordBatch {
        RecordBatch::try_from_iter([("x", Arc::new(Int64Array::from(vec![1, 2, 3])) as _)]).unwrap()
    }

    fn file(alignment: usize) -> Vec<u8> {
        let options = IpcWriteOptions::try_new(alignment, false, MetadataVersion::V5).unwrap();
        let mut writer = FileWriter::try_new_with_options(Vec::new(), &rows().schema(), options).unwrap();
        writer.write(&rows()).unwrap();
        writer.finish().unwrap();
        writer.into_inner().unwrap()
    }

    /// Of a store that gives bytes, as all do that are not on this host.
    async fn schema_of(bytes: Vec<u8>) -> Result<SchemaRef> {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = Path::from("rows.arrow");
        store.put(&path, bytes.into()).await.unwrap();
        let meta = store.head(&path).await.unwrap();
        schema(&session::session().state(), &store, &meta).await
    }

    #[tokio::test]
    async fn files_of_any_alignment_and_streams_say_their_schema() {
        let mut stream = StreamWriter::try_new(Vec::new(), &rows().schema()).unwrap();
        stream.write(&rows()).unwrap();
        stream.finish().unwrap();
        for bytes in [file(8), file(64), stream.into_inner().unwrap()] {
            assert_eq!(schema_of(bytes).await.unwrap(), rows().schema());
        }
    }

    #[tokio::test]
    async fn no_cut_or_changed_byte_is_more_than_an_error() {
        let whole = file(64);
        for length in 0..whole.len() {
            assert!(schema_of(whole[..length].to_vec()).await.is_err(), "{length} bytes");
        }
        for at in whole.len().saturating_sub(400)..whole.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                // What is not noticed is a schema.
                drop(schema_of(bytes).await);
            }
        }
    }
}
