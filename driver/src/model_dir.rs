//! The model directory in its object store: generations, write probe, manifests, retention. Facts are read
//! here, decisions come from `tfos_core::checkpoint`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tfos_core::checkpoint::{Candidate, Manifest, Part, Paths, Target, compute_deletions, compute_target};
use tfos_core::ids::{Generation, GlobalStep};
use url::Url;

use crate::error::Error;

/// A model directory.
#[derive(Debug, Clone)]
pub struct ModelDir {
    store: Arc<dyn ObjectStore>,
    root: Path,
    url: Url,
}

/// A checkpoint that a job can start from.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Path of its manifest, relative to the model directory.
    pub path: String,
    /// Its content.
    pub manifest: Manifest,
}

impl ModelDir {
    /// Opens `address`, a path or an object-store URL. Nothing is written yet.
    pub fn open(address: &str) -> Result<Self, Error> {
        let (store, root, url) = tfos_data::store::resolve(address)?;
        Ok(Self { store, root, url })
    }

    /// The directory as a URL.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The directory as a local path, when it is one.
    pub fn local_path(&self) -> Option<std::path::PathBuf> {
        (self.url.scheme() == "file").then(|| self.url.to_file_path().ok()).flatten()
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// A path inside it.
    pub fn path(&self, relative: &str) -> Path {
        let mut path = self.root.clone();
        for segment in relative.split('/') {
            path = path.join(segment);
        }
        path
    }

    pub(crate) fn error(&self, what: impl Into<String>, source: object_store::Error) -> Error {
        match tfos_data::store::explain(source, self.url.as_str()) {
            // It says by itself what to do.
            Ok(explained) => Error::Data(explained),
            Err(source) => Error::ModelDir { url: self.url.to_string(), what: what.into(), source: Box::new(source) },
        }
    }

    /// Asks the store for the directory, so that a wrong address or key is told within seconds.
    pub async fn contact(&self) -> Result<(), Error> {
        Ok(tfos_data::store::first_contact(self.url.as_str()).await?)
    }

    /// Writes and removes a small file, so that a directory that cannot be written is known before an hour
    /// of training and not after.
    pub async fn probe(&self) -> Result<(), Error> {
        self.contact().await?;
        let path = self.path(Paths::PROBE);
        let wrote = self.store.put(&path, PutPayload::from_static(b"tfos")).await;
        wrote.map_err(|e| self.error("it is not writable; give another --model-dir or fix its permissions", e))?;
        self.store.delete(&path).await.map_err(|e| self.error("the write probe cannot be removed", e))
    }

    /// Claims the next generation by creating its file, which exactly one driver can do.
    pub async fn claim_generation(&self, description: &str) -> Result<Generation, Error> {
        loop {
            let next = Generation(self.newest_generation().await?.0 + 1);
            let payload = PutPayload::from(description.to_owned());
            let options = PutOptions::from(PutMode::Create);
            match self.store.put_opts(&self.path(&Paths::generation(next)), payload, options).await {
                Ok(_) => return Ok(next),
                Err(object_store::Error::AlreadyExists { .. }) => continue,
                Err(e) => return Err(self.error("the generation cannot be claimed", e)),
            }
        }
    }

    async fn newest_generation(&self) -> Result<Generation, Error> {
        let names = self.names(Paths::JOB).await?;
        Ok(names.iter().filter_map(|n| Paths::parse_generation(n)).max().unwrap_or_default())
    }

    /// Last segments of everything directly below a folder.
    async fn names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let listing = self.store.list_with_delimiter(Some(&self.path(folder))).await;
        let listing = listing.map_err(|e| self.error(format!("`{folder}` cannot be listed"), e))?;
        let paths = listing.objects.iter().map(|o| &o.location).chain(&listing.common_prefixes);
        Ok(paths.filter_map(|p| p.filename().map(str::to_owned)).collect())
    }

    /// The newest checkpoint that is whole, and what had to be passed over.
    pub async fn find_checkpoint(&self) -> Result<(Option<Restored>, Target), Error> {
        let mut steps: Vec<GlobalStep> =
            self.names(Paths::CHECKPOINTS).await?.iter().filter_map(|n| Paths::parse_step(n)).collect();
        steps.sort();
        let mut candidates = vec![];
        let mut manifests = vec![];
        // Newest first, and no further than the first whole one: older ones need not be read.
        for step in steps.into_iter().rev() {
            let path = Paths::manifest(step);
            let bytes = match self.store.get(&self.path(&path)).await {
                Ok(got) => got.bytes().await.map_err(|e| self.error(format!("`{path}` cannot be read"), e))?,
                Err(object_store::Error::NotFound { .. }) => continue,
                Err(e) => return Err(self.error(format!("`{path}` cannot be read"), e)),
            };
            let damage = match Manifest::parse(&path, &bytes) {
                Ok(manifest) => {
                    let damage = self.damage(&manifest).await?;
                    manifests.push(Restored { path, manifest });
                    damage
                }
                Err(e) => Some(tfos_core::failure::chain(&e).join(": ")),
            };
            let whole = damage.is_none();
            candidates.push(Candidate { step, damage });
            if whole {
                break;
            }
        }
        let target = compute_target(candidates);
        let restored = target.restore.and_then(|s| manifests.into_iter().find(|m| m.manifest.global_step == s));
        Ok((restored, target))
    }

    /// What is wrong with a checkpoint's files; reads each of them once.
    pub async fn damage(&self, manifest: &Manifest) -> Result<Option<String>, Error> {
        for part in &manifest.parts {
            let mut stream = match self.store.get(&self.path(&part.path)).await {
                Ok(got) => got.into_stream(),
                Err(object_store::Error::NotFound { .. }) => return Ok(Some(format!("`{}` is missing", part.path))),
                Err(e) => return Err(self.error(format!("`{}` cannot be read", part.path), e)),
            };
            let (mut bytes, mut crc) = (0u64, 0u32);
            while let Some(chunk) =
                stream.try_next().await.map_err(|e| self.error(format!("`{}` cannot be read", part.path), e))?
            {
                bytes += chunk.len() as u64;
                crc = crc32c::crc32c_append(crc, &chunk);
            }
            let Part { path, bytes: wanted, crc32c, .. } = part;
            if bytes != *wanted {
                return Ok(Some(format!("`{path}` has {bytes} bytes instead of {wanted}")));
            }
            if crc != *crc32c {
                return Ok(Some(format!("`{path}` has checksum {crc:08x} instead of {crc32c:08x}")));
            }
        }
        Ok(None)
    }

    /// Takes damaged checkpoints out of the lineage, so that their steps can be reached again.
    pub async fn set_aside(&self, skipped: &[Candidate], generation: Generation) -> Result<(), Error> {
        for candidate in skipped {
            let from = self.path(&Paths::manifest(candidate.step));
            let to = self.path(&Paths::damaged_manifest(candidate.step, generation));
            let moved = self.store.rename(&from, &to).await;
            moved.map_err(|e| self.error(format!("the damaged `{from}` cannot be set aside"), e))?;
        }
        Ok(())
    }

    /// Commits a checkpoint by creating its manifest. False: this very checkpoint is there already, the one that
    /// the job `resumed` from. `again` replaces the manifest that this generation itself wrote at the same step:
    /// the parameters are the same, more rows have been seen.
    pub async fn commit(&self, manifest: &Manifest, again: bool, resumed: Option<GlobalStep>) -> Result<bool, Error> {
        let newest = self.newest_generation().await?;
        if newest > manifest.generation {
            let (mine, newest) = (manifest.generation.0, newest.0);
            return Err(Error::Fenced { url: self.url.to_string(), mine, newest });
        }
        let path = Paths::manifest(manifest.global_step);
        let json = serde_json::to_vec_pretty(manifest).map_err(|source| Error::ModelDir {
            url: self.url.to_string(),
            what: format!("`{path}` cannot be encoded"),
            source: Box::new(source),
        })?;
        let mode = if again { PutMode::Overwrite } else { PutMode::Create };
        let payload = PutPayload::from(json.clone());
        let put = self.store.put_opts(&self.path(&path), payload, PutOptions::from(mode)).await;
        match put {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) if resumed == Some(manifest.global_step) => Ok(false),
            Err(e @ object_store::Error::AlreadyExists { .. }) => {
                let there = self.store.get(&self.path(&path)).await;
                let there = there.map_err(|e| self.error(format!("`{path}` cannot be read"), e))?.bytes().await;
                // A request that the store client sent twice finds its own work.
                if there.is_ok_and(|bytes| *bytes == *json) {
                    return Ok(true);
                }
                Err(self.error(format!("another driver wrote `{path}` meanwhile"), e))
            }
            Err(e) => Err(self.error(format!("`{path}` cannot be written"), e)),
        }
    }

    /// Every file below a folder, relative to the model directory.
    async fn files(&self, folder: &str) -> Result<Vec<String>, Error> {
        let listed: Result<Vec<_>, _> = self.store.list(Some(&self.path(folder))).try_collect().await;
        let listed = listed.map_err(|e| self.error(format!("`{folder}` cannot be listed"), e))?;
        let relative = |path: &Path| -> Option<String> {
            let parts: Vec<_> = path.prefix_match(&self.root)?.collect();
            Some(parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("/"))
        };
        Ok(listed.iter().filter_map(|meta| relative(&meta.location)).collect())
    }

    /// Steps of the folders of checkpoints, in order, and whether each has a manifest: without one it is no checkpoint
    /// (CKP-1), but what a killed job left of one, or one that was set aside. One listing, however many there are.
    pub(crate) async fn folders(&self) -> Result<BTreeMap<GlobalStep, bool>, Error> {
        let mut found = BTreeMap::new();
        for file in self.files(Paths::CHECKPOINTS).await? {
            let Some(step) = Paths::step_of(&file) else { continue };
            *found.entry(step).or_insert(false) |= file == Paths::manifest(step);
        }
        Ok(found)
    }

    /// Deletes one checkpoint, its manifest first (CKP-4).
    pub async fn delete_checkpoint(&self, step: GlobalStep) -> Result<(), Error> {
        let gone = |e: object_store::Error| self.error(format!("checkpoint {step} cannot be deleted"), e);
        match self.store.delete(&self.path(&Paths::manifest(step))).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(e) => return Err(gone(e)),
        }
        let folder = self.path(&Paths::checkpoint(step));
        let files: Vec<_> = self.store.list(Some(&folder)).try_collect().await.map_err(gone)?;
        for file in files {
            self.store.delete(&file.location).await.map_err(gone)?;
        }
        if let Some(local) = self.local_path() {
            // Empty folders exist on file systems only; losing this race to nobody matters to no one.
            let _ = std::fs::remove_dir(local.join(Paths::checkpoint(step)));
        } else if self.url.scheme() == "hdfs" {
            // There too; what is not empty stays.
            let _ = self.store.delete(&folder).await;
        }
        Ok(())
    }

    /// Deletes all but the newest `keep` checkpoints, each manifest before its parts, and what is older than
    /// those and no checkpoint.
    pub async fn retain(&self, keep: usize) -> Result<(), Error> {
        let folders = self.folders().await?;
        let whole: Vec<GlobalStep> = folders.iter().filter(|(_, exists)| *exists).map(|(step, _)| *step).collect();
        let mut deletions = compute_deletions(&whole, keep);
        let oldest_kept = whole.iter().filter(|step| !deletions.contains(step)).min().copied();
        let older = |step: GlobalStep| oldest_kept.is_some_and(|oldest| step < oldest);
        deletions.extend(folders.iter().filter(|(step, exists)| !exists && older(*step)).map(|(step, _)| *step));
        for step in deletions {
            self.delete_checkpoint(step).await?;
        }
        Ok(())
    }

    /// Removes ledger segments that are in no lineage: written by a driver that died before its manifest.
    pub async fn remove_orphans(&self, lineage: &[String]) -> Result<usize, Error> {
        let mut removed = 0;
        for name in self.names(Paths::LEDGER).await? {
            let relative = format!("{}/{name}", Paths::LEDGER);
            if !lineage.contains(&relative) {
                let path = self.path(&relative);
                self.store.delete(&path).await.map_err(|e| self.error(format!("`{relative}` cannot be removed"), e))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
#[path = "model_dir_tests.rs"]
mod tests;
