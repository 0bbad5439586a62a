//! A folder of whole files on any object store.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use tfos_data::object_store::path::Path;
use tfos_data::object_store::{self, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::Result;

/// See the module's text.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    store: Arc<dyn ObjectStore>,
    root: Path,
    address: String,
}

impl Folder {
    pub(crate) fn open(address: &str) -> Result<Self> {
        let (store, root, url) = tfos_data::store::resolve(address)?;
        let address = tfos_data::store::display(url.as_str(), None).trim_end_matches('/').to_owned();
        Ok(Self { store, root, address })
    }

    /// As people write it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(crate) fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), |path, segment| path.join(segment))
    }

    fn failed(&self, name: &str) -> impl FnOnce(object_store::Error) -> tfos_data::Error {
        let address = format!("{}/{name}", self.address);
        move |e| tfos_data::Error::from_store(e, &address)
    }

    /// A file; `None` when it is not there.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        match self.store.get(&self.path(name)).await {
            Ok(got) => Ok(Some(got.bytes().await.map_err(self.failed(name))?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed(name)(e).into()),
        }
    }

    pub(crate) async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        Ok(self.store.put(&self.path(name), bytes.into()).await.map(drop).map_err(self.failed(name))?)
    }

    /// Writes a file that is not there yet; false: it is.
    pub(crate) async fn create(&self, name: &str, bytes: Bytes) -> Result<bool> {
        let options = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&self.path(name), bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(e) => Err(self.failed(name)(e).into()),
        }
    }

    /// Removes a file, if it is there.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed(name)(e).into()),
        }
    }

    /// Names of the files directly in it, in order.
    pub(crate) async fn names(&self) -> Result<Vec<String>> {
        let listed = self.store.list_with_delimiter(Some(&self.root)).await.map_err(self.failed(""))?;
        let mut names: Vec<String> =
            listed.objects.iter().filter_map(|o| o.location.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    /// Size and CRC-32C of a file, read to its end; `None` when it is not there.
    pub(crate) async fn checksum(&self, name: &str) -> Result<Option<(u64, u32)>> {
        let mut stream = match self.store.get(&self.path(name)).await {
            Ok(got) => got.into_stream(),
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(self.failed(name)(e).into()),
        };
        let (mut bytes, mut crc) = (0, 0);
        while let Some(chunk) = stream.try_next().await.map_err(|e| self.failed(name)(e))? {
            bytes += chunk.len() as u64;
            crc = crc32c::crc32c_append(crc, &chunk);
        }
        Ok(Some((bytes, crc)))
    }
}
