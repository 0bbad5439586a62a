//! A safetensors file of f32 tensors, written as its values come: header first, bounded memory, any object store.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use serde_json::{Map, Value, json};

use super::weights::{Weights, pieces};
use crate::Error;
use crate::checkpoint::{BlockCrc, Written};

/// Bytes of one request, and how many are under way.
const REQUEST_BYTES: usize = 16 << 20;
const REQUESTS: usize = 4;

/// Name and shape of a tensor.
pub type Shape = (String, Vec<i64>);

/// A file under way. Nothing is visible under its name before [`Self::finish`].
#[derive(Debug)]
pub struct FloatFile {
    upload: WriteMultipart,
    address: String,
    sums: BlockCrc,
    /// Bytes of values that the header has promised and that have not come.
    missing: u64,
}

impl FloatFile {
    /// Begins a file with these tensors, in the order in which their values will come. `metadata` are its own words for
    /// whoever reads it; `format: pt` is what PyTorch's loader looks for.
    pub async fn create(
        store: &Arc<dyn ObjectStore>,
        path: &Path,
        tensors: &[Shape],
        metadata: &[(&str, String)],
    ) -> Result<Self, Error> {
        let address = path.to_string();
        let mut words: Map<String, Value> = metadata.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        words.insert("format".into(), json!("pt"));
        let mut header = Map::new();
        header.insert("__metadata__".into(), Value::Object(words));
        let mut at = 0u64;
        for (name, shape) in tensors {
            let elements: u64 = shape.iter().map(|n| u64::try_from(*n).unwrap_or(0)).product();
            let end = at + elements * 4;
            header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
            at = end;
        }
        let failed = |source| Error::Checkpoint { path: address.clone(), action: "written", source };
        let mut text = serde_json::to_vec(&Value::Object(header)).map_err(|e| failed(e.into()))?;
        // Data begins at a multiple of 8, as the format asks.
        text.resize(text.len().next_multiple_of(8), b' ');
        let upload = store.put_multipart(path).await.map_err(|e| failed(e.into()))?;
        let upload = WriteMultipart::new_with_chunk_size(upload, REQUEST_BYTES);
        let mut file = Self { upload, address, sums: BlockCrc::new(), missing: at + 8 + text.len() as u64 };
        file.put(Bytes::copy_from_slice(&(text.len() as u64).to_le_bytes())).await?;
        file.put(text.into()).await?;
        Ok(file)
    }

    /// The next values.
    pub async fn push(&mut self, values: &[f32]) -> Result<(), Error> {
        for piece in values.chunks(REQUEST_BYTES / 4) {
            self.put(piece.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()).await?;
        }
        Ok(())
    }

    /// Every value of every tensor of `weights`, in their order.
    pub async fn push_all(&mut self, weights: &Weights) -> Result<(), Error> {
        for tensor in weights.tensors() {
            for piece in pieces(tensor) {
                self.push(&weights.read_piece(tensor, piece).await?).await?;
            }
        }
        Ok(())
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), Error> {
        let failed = |source| Error::Checkpoint { path: self.address.clone(), action: "written", source };
        let size = bytes.len() as u64;
        self.missing =
            self.missing.checked_sub(size).ok_or_else(|| failed("more values than it has room for".into()))?;
        self.sums.update(&bytes);
        self.upload.wait_for_capacity(REQUESTS).await.map_err(|e| failed(e.into()))?;
        self.upload.put(bytes);
        Ok(())
    }

    /// Makes it visible.
    pub async fn finish(self) -> Result<Written, Error> {
        let Self { upload, address, sums, missing } = self;
        let failed = |source| Error::Checkpoint { path: address, action: "written", source };
        if missing > 0 {
            // The first error is the one to tell.
            let _ = upload.abort().await;
            return Err(failed(format!("{missing} bytes of values are missing").into()));
        }
        upload.finish().await.map_err(|e| failed(e.into()))?;
        Ok(sums.written())
    }

    /// Gives it up.
    pub async fn abort(self) {
        // Whatever it was given up for is the error to tell.
        let _ = self.upload.abort().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_holds_what_it_was_given_and_is_not_seen_before() {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("m.safetensors").display().to_string();
        let (store, path, _) = tfos_data::store::resolve(&address).unwrap();
        let shapes = [("bias".to_owned(), vec![]), ("empty".to_owned(), vec![0, 3]), ("w".to_owned(), vec![2, 2])];
        let mut file = FloatFile::create(&store, &path, &shapes, &[("step", "7".into())]).await.unwrap();
        file.push(&[0.5]).await.unwrap();
        file.push(&[1.0, 2.0, 3.0, 4.0]).await.unwrap();
        assert!(!std::path::Path::new(&address).exists());
        let written = file.finish().await.unwrap();
        let bytes = std::fs::read(&address).unwrap();
        assert_eq!((written.bytes, written.crc32c), (bytes.len() as u64, crc32c::crc32c(&bytes)));
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let words = metadata.metadata().clone().unwrap();
        assert_eq!((words["format"].as_str(), words["step"].as_str()), ("pt", "7"));
        let weights = Weights::open(&address).await.unwrap();
        assert_eq!(
            weights.tensors().iter().map(|t| t.shape.clone()).collect::<Vec<_>>(),
            [vec![], vec![0, 3], vec![2, 2]]
        );
        assert_eq!(weights.read(&weights.tensors()[2]).await.unwrap(), [1.0, 2.0, 3.0, 4.0]);
        // As long as promised, or not at all.
        let mut file = FloatFile::create(&store, &path, &shapes, &[]).await.unwrap();
        assert!(file.push(&[0.0; 6]).await.unwrap_err().to_string().contains("cannot be written"));
        file.abort().await;
        let mut file = FloatFile::create(&store, &path, &shapes, &[]).await.unwrap();
        file.push(&[0.0]).await.unwrap();
        file.finish().await.unwrap_err();
        assert_eq!(std::fs::read(&address).unwrap(), bytes, "the file before it stays");
    }
}
