//! Files that belong to a model beside its values, in the model directory, where every node and every export finds them.

use tfos_core::checkpoint::Paths;

use super::Cluster;
use crate::portable::folder::Folder;
use crate::{Error, Result};

impl Cluster {
    /// Gives the nodes a file, which they read with [`NodeContext::asset`](crate::NodeContext::asset). `bytes` are kept in
    /// the model directory under `name`; a job that resumes has to give the same ones. They go with a copied checkpoint and
    /// with an export.
    pub fn add_asset(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '#']) {
            return Err(Error::Usage(format!("`{name}` is no name of an asset: name a file, without folders")));
        }
        let folder = Folder::open(&self.model_dir())?;
        let path = Paths::asset(name);
        self.block_on(async {
            if folder.create(&path, bytes.clone().into()).await? {
                return Ok(());
            }
            if folder.get(&path).await?.is_some_and(|there| *there == *bytes) {
                return Ok(());
            }
            Err(Error::Usage(format!(
                "`{}/{path}` is another file than the one given now: the model was trained with that; use another --model-dir",
                folder.address()
            )))
        })
    }

    /// The bytes of a file on any store.
    pub fn read_file(&self, address: &str) -> Result<Vec<u8>> {
        self.block_on(async {
            let (store, path, _) = tfos_data::store::resolve(address)?;
            let failed = |e| tfos_data::Error::from_store(e, address);
            use tfos_data::object_store::ObjectStoreExt;
            Ok(store.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)?.to_vec())
        })
    }
}
