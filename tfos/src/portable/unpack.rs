//! An export as the only checkpoint of a model directory, for a cluster that only predicts.

use tfos_core::checkpoint::Paths;
use tfos_driver::model_dir::ModelDir;
use tfos_executor::portable::Weights;

use super::export::{Description, FileSum, MODULE, WEIGHTS};
use super::folder::Folder;
use super::import::{Origin, import};
use crate::{Error, Result};

/// An export that can be used.
#[derive(Debug, Clone)]
pub(crate) struct Export {
    folder: Folder,
    pub(crate) description: Description,
}

impl Export {
    /// Reads its description, and the whole of its files to compare their checksums.
    pub(crate) async fn open(address: &str) -> Result<Self> {
        tfos_data::store::first_contact(address).await?;
        let folder = Folder::open(address)?;
        let description = Description::read(&folder).await?;
        for FileSum { path, bytes, crc32c } in &description.files {
            let found = folder.checksum(path).await?;
            if found != Some((*bytes, *crc32c)) {
                let is = if found.is_some() { "is not the one that its export.json describes" } else { "is missing" };
                let what = format!("`{path}` {is}; it is damaged (export again) or just being replaced (try again)");
                return Err(Error::Export { address: folder.address().to_owned(), what });
            }
        }
        Ok(Self { folder, description })
    }

    /// Puts weights and assets into a model directory that is new.
    pub(crate) async fn unpack(&self, to: &ModelDir) -> Result<()> {
        let target = Folder::open(to.url().as_str())?;
        for FileSum { path, .. } in &self.description.files {
            let name = match path.as_str() {
                WEIGHTS => continue,
                MODULE => Paths::asset(MODULE),
                other => other.to_owned(),
            };
            target.put(&name, self.folder.get(path).await?.unwrap_or_default()).await?;
        }
        let weights = Weights::open(&format!("{}/{WEIGHTS}", self.folder.address())).await?;
        let Description { application, arguments, step, .. } = self.description.clone();
        import(&weights, to, Origin { application, arguments, step }).await.map(drop)
    }
}
