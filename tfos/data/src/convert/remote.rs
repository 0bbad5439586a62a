//! Files for an object store: written beside the system's temporary files, and brought to the store when every one
//! of them is complete.

use std::io::Read;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use tempfile::TempDir;

use super::FileInfo;
use crate::error::{Error, Result};
use crate::store;

/// Bytes of one part of an upload; no store takes smaller ones than 5 MiB, but for the last.
const PART: usize = 8 << 20;
/// Parts of a file under way at the same time.
const PARTS: usize = 4;

/// Where the files are until then, and where they will be.
pub(super) struct Staged {
    folder: TempDir,
    name: Option<String>,
    store: Arc<dyn ObjectStore>,
    base: Path,
    /// The addressed folder, with a final `/`.
    address: String,
}

impl Staged {
    /// `None` for a local path. In a folder that gets several files there may be none yet.
    pub(super) async fn for_address(to: &str, several: bool) -> Result<Option<Self>> {
        let (store, path, url) = store::resolve(to)?;
        if url.scheme() == "file" {
            return Ok(None);
        }
        store::first_contact(to).await?;
        let several = several || to.ends_with('/');
        let parts: Vec<_> = path.parts().collect();
        let (name, base) = match parts.split_last() {
            Some((last, folders)) if !several => (Some(last.as_ref().to_owned()), Path::from_iter(folders.to_vec())),
            _ => (None, path),
        };
        if several {
            let hidden = |p: &Path| p.filename().is_some_and(|name| name.starts_with(['.', '_']));
            let mut there = store.list(Some(&base));
            while let Some(file) = there.try_next().await.map_err(|e| Error::from_store(e, to))? {
                if !hidden(&file.location) {
                    return Err(super::write::occupied(to));
                }
            }
        }
        let address = format!("{}/{base}/", store::root(&url));
        let folder =
            TempDir::new().map_err(Error::io("create a folder in", std::env::temp_dir().display().to_string()))?;
        Ok(Some(Self { folder, name, store, base, address }))
    }

    /// The local address to write to.
    pub(super) fn local(&self) -> String {
        match &self.name {
            Some(name) => self.folder.path().join(name).display().to_string(),
            None => format!("{}/", self.folder.path().display()),
        }
    }

    /// Brings complete files to the store. After a failure none of them is left there.
    pub(super) async fn upload(&self, files: Vec<FileInfo>) -> Result<Vec<FileInfo>> {
        let mut done = Vec::new();
        for file in files {
            let local = PathBuf::from(&file.path);
            let name = local.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let to = self.base.clone().join(name.as_str());
            if let Err(error) = self.upload_one(&local, &to, file.bytes).await {
                for (path, _) in done {
                    // The first failure is the one to tell.
                    let _ = self.store.delete(&path).await;
                }
                return Err(error);
            }
            done.push((to, FileInfo { path: format!("{}{name}", self.address), bytes: file.bytes }));
        }
        Ok(done.into_iter().map(|(_, info)| info).collect())
    }

    async fn upload_one(&self, from: &LocalPath, to: &Path, bytes: u64) -> Result<()> {
        let address = format!("{}{}", self.address, to.filename().unwrap_or_default());
        let fail = |e| Error::from_store(e, &address);
        let read = || Error::io("read", from.display().to_string());
        if bytes <= PART as u64 {
            let bytes = std::fs::read(from).map_err(read())?;
            return self.store.put(to, PutPayload::from(bytes)).await.map(drop).map_err(fail);
        }
        let mut file = std::fs::File::open(from).map_err(read())?;
        let mut upload = WriteMultipart::new_with_chunk_size(self.store.put_multipart(to).await.map_err(fail)?, PART);
        loop {
            let mut part = Vec::with_capacity(PART);
            let read = (&mut file).take(PART as u64).read_to_end(&mut part).map_err(read());
            let ready = match read {
                Ok(0) => break,
                Ok(_) => upload.wait_for_capacity(PARTS).await.map_err(fail),
                Err(e) => Err(e),
            };
            if let Err(error) = ready {
                let _ = upload.abort().await;
                return Err(error);
            }
            upload.put(part.into());
        }
        upload.finish().await.map(drop).map_err(fail)
    }
}
