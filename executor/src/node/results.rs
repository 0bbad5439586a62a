//! Results of inference: the rows' own columns plus the predictions, in Arrow IPC files beside the model.
//! The driver is told which record batch holds which rows, and puts them in order.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tfos_core::proto;
use tfos_core::rows::RowRange;
use tfos_data::arrow::array::{ArrayRef, RecordBatch};
use tfos_data::arrow::datatypes::{Field, Schema, SchemaRef};
use tfos_data::arrow::ipc::writer::FileWriter;
use tfos_data::stage::{plain_rows, plain_schema};

use crate::Error;

/// Size at which a file is closed and the next begun.
const FILE_BYTES: usize = 32 << 20;

/// Writes the results of one trainer in one phase.
pub struct ResultWriter {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    prefix: String,
    name: String,
    files: u32,
    writer: Option<(SchemaRef, FileWriter<Vec<u8>>, u64)>,
    bytes: usize,
    pending: Vec<proto::Result>,
    runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for ResultWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResultWriter").field("folder", &self.folder).field("files", &self.files).finish_non_exhaustive()
    }
}

impl ResultWriter {
    /// Files go into `url`, their names begin with `name`.
    pub fn new(url: &str, name: &str, runtime: tokio::runtime::Handle) -> Result<Self, Error> {
        let (store, folder, _) = tfos_data::store::resolve(url)?;
        Ok(Self {
            store,
            folder,
            prefix: url.trim_end_matches('/').to_owned(),
            name: name.to_owned(),
            files: 0,
            writer: None,
            bytes: 0,
            pending: vec![],
            runtime,
        })
    }

    fn failed(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Checkpoint { path: format!("{}/{}", self.prefix, self.name), action: "written", source: source.into() }
    }

    /// Adds the results for the rows of `range`; returns what became durable meanwhile.
    pub fn add(
        &mut self,
        range: RowRange,
        input: &RecordBatch,
        columns: &[(String, ArrayRef)],
    ) -> Result<Vec<proto::Result>, Error> {
        let plain = plain_schema(&input.schema());
        let mut arrays = plain_rows(input, &plain).map_err(|e| self.failed(e))?.columns().to_vec();
        let mut fields: Vec<Arc<Field>> = plain.fields().iter().cloned().collect();
        for (name, array) in columns {
            // A prediction takes the place of an input column of the same name.
            let field = Arc::new(Field::new(name, array.data_type().clone(), true));
            match fields.iter().position(|f| f.name() == name) {
                Some(i) => {
                    if let (Some(f), Some(a)) = (fields.get_mut(i), arrays.get_mut(i)) {
                        (*f, *a) = (field, Arc::clone(array));
                    }
                }
                None => {
                    fields.push(field);
                    arrays.push(Arc::clone(array));
                }
            }
        }
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(|e| self.failed(e))?;
        // Slices share memory, and each counts its own part.
        let size = |array: &ArrayRef| array.to_data().get_slice_memory_size().unwrap_or(0);
        self.bytes += batch.columns().iter().map(size).sum::<usize>();
        let mut done = vec![];
        if self.writer.as_ref().is_some_and(|(s, ..)| *s != schema) {
            done = self.flush()?;
        }
        let (_, mut writer, count) = match self.writer.take() {
            Some(open) => open,
            None => {
                let writer = FileWriter::try_new(Vec::new(), &schema).map_err(|e| self.failed(e))?;
                (Arc::clone(&schema), writer, 0)
            }
        };
        writer.write(&batch).map_err(|e| self.failed(e))?;
        self.pending.push(proto::Result {
            epoch: range.epoch,
            partition: range.partition,
            start: range.start,
            end: range.end,
            path: self.path(),
            batch: count,
        });
        self.writer = Some((schema, writer, count + 1));
        if self.bytes >= FILE_BYTES {
            done.extend(self.flush()?);
        }
        Ok(done)
    }

    fn file(&self) -> String {
        format!("{}-{:05}.arrow", self.name, self.files)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.prefix, self.file())
    }

    /// Closes the open file and returns the results in it, which are durable now.
    pub fn flush(&mut self) -> Result<Vec<proto::Result>, Error> {
        let Some((_, writer, _)) = self.writer.take() else { return Ok(vec![]) };
        let bytes = writer.into_inner().map_err(|e| self.failed(e))?;
        let path = self.folder.clone().join(self.file());
        let put = self.runtime.block_on(self.store.put(&path, PutPayload::from(bytes)));
        put.map_err(|e| self.failed(e))?;
        self.files += 1;
        self.bytes = 0;
        Ok(std::mem::take(&mut self.pending))
    }
}
