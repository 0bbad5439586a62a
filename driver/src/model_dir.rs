//! The model directory in its object store: generations, write probe, manifests, retention. Facts are read
//! here, decisions come from `tfos_core::checkpoint`.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tfos_core::checkpoint::{
    Base, Candidate, FORMAT, Manifest, ManifestError, Part, Paths, Retention, Scores, Start, Target, compute_deletions,
    compute_target,
};
use tfos_core::ids::{Generation, GlobalStep};
use url::Url;

use crate::checkpoints::staged;
use crate::error::Error;
use crate::whole;

/// Parts of a checkpoint that are verified at a time.
const VERIFYING: usize = 8;

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
        let (store, root, url) = tfos_data::store::resolve_to_keep(address)?;
        Ok(Self { store, root, url })
    }

    /// The same directory through another store.
    #[cfg(test)]
    pub(crate) fn through(&self, store: Arc<dyn ObjectStore>) -> Self {
        Self { store, ..self.clone() }
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
        // A name of its own: another driver that begins at the same moment removes its own.
        let path = self.path(&format!("{}-{:016x}", Paths::PROBE, RandomState::new().build_hasher().finish()));
        let wrote = self.store.put(&path, PutPayload::from_static(b"tfos")).await;
        wrote.map_err(|e| self.error("it is not writable; give another --model-dir or fix its permissions", e))?;
        self.store.delete(&path).await.map_err(|e| self.error("the write probe cannot be removed", e))
    }

    /// Claims the next generation by creating its file, which exactly one driver can do.
    pub async fn claim_generation(&self, description: &str) -> Result<Generation, Error> {
        let mut next = self.newest_generation().await?;
        loop {
            next.0 += 1;
            match self.create(&Paths::generation(next), description.to_owned().into()).await {
                Ok(()) => return Ok(next),
                // Of another driver; or of a request of this one whose answer was lost, and then it is nobody's.
                Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(e) => return Err(self.error("the generation cannot be claimed", e)),
            }
        }
    }

    /// Says what `generation` starts from, before it writes anything else: what an older driver still commits beyond it is
    /// void from here on (CKP-3).
    pub async fn begin(&self, generation: Generation, restored: Option<&Restored>) -> Result<(), Error> {
        let base = |m: &Manifest| Base { step: m.global_step, generation: m.generation };
        let start = Start { restored: restored.map(|r| base(&r.manifest)) };
        let path = Paths::start(generation);
        let json = serde_json::to_vec(&start).map_err(|e| self.encoding(&path, e))?;
        match self.create(&path, json.into()).await {
            // A request that was sent twice finds its own work: only this driver has the generation.
            Ok(()) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(e) => return Err(self.error(format!("`{path}` cannot be written"), e)),
        }
        self.check_newest(generation).await
    }

    /// A small file; `None` when it is not there.
    pub(crate) async fn read(&self, relative: &str) -> Result<Option<bytes::Bytes>, Error> {
        let failed = |e| self.error(format!("`{relative}` cannot be read"), e);
        match self.store.get(&self.path(relative)).await {
            Ok(got) => Ok(Some(got.bytes().await.map_err(failed)?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// Writes a small file that says for ever the same, if it is not there.
    pub async fn keep(&self, relative: &str, content: Vec<u8>) -> Result<(), Error> {
        match self.create(relative, content.into()).await {
            Ok(()) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(e) => Err(self.error(format!("`{relative}` cannot be written"), e)),
        }
    }

    /// A file of [`Self::keep`].
    pub async fn kept(&self, relative: &str) -> Result<Option<bytes::Bytes>, Error> {
        self.read(relative).await
    }

    pub(crate) fn encoding(&self, path: &str, source: serde_json::Error) -> Error {
        let what = format!("`{path}` is no JSON of the right shape");
        Error::ModelDir { url: self.url.to_string(), what, source: Box::new(source) }
    }

    async fn check_newest(&self, mine: Generation) -> Result<(), Error> {
        let newest = self.newest_generation().await?;
        if newest > mine {
            return Err(Error::Fenced { url: self.url.to_string(), mine: mine.0, newest: newest.0 });
        }
        Ok(())
    }

    /// Last segments of everything directly below a folder.
    pub(crate) async fn names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let listing = self.store.list_with_delimiter(Some(&self.path(folder))).await;
        let listing = listing.map_err(|e| self.error(format!("`{folder}` cannot be listed"), e))?;
        let paths = listing.objects.iter().map(|o| &o.location).chain(&listing.common_prefixes);
        Ok(paths.filter_map(|p| p.filename().map(str::to_owned)).collect())
    }

    /// Every manifest that is there, oldest first, or why it cannot be read.
    pub(crate) async fn manifests(&self) -> Result<Vec<(GlobalStep, Result<Manifest, ManifestError>)>, Error> {
        let mut found = vec![];
        for step in self.steps().await? {
            let path = Paths::manifest(step);
            // Deleted since it was listed: by the retention of another driver.
            let Some(bytes) = self.read(&path).await? else { continue };
            found.push((step, Manifest::parse(&path, &bytes)));
        }
        Ok(found)
    }

    /// The newest checkpoint that is whole, and what cannot be used.
    pub async fn find_checkpoint(&self) -> Result<(Option<Restored>, Target), Error> {
        let manifests = self.manifests().await?;
        // After the manifests: a start that comes later is that of a driver which will notice that it is fenced.
        let starts = self.starts(oldest_of(&manifests)).await?;
        let mut candidates = vec![];
        let mut whole = false;
        // Newest first, and the parts no further than of the first whole one: older ones need not be read.
        for (step, found) in manifests.iter().rev() {
            let damage = match found {
                Ok(m) if starts.is_void(*step, m.generation) => Some(void(m.generation)),
                Ok(m) if !whole => self.damage(m).await?,
                Ok(_) => continue,
                // Not damaged: to pass it over would throw away what a newer program has learned.
                Err(ManifestError::Format { path, found }) if !whole => {
                    let why = format!(
                        "it has format {found} and this program reads format {FORMAT}; use the newer tfos that wrote it, \
                         or another --model-dir"
                    );
                    return Err(Error::Foreign { path: path.clone(), why });
                }
                Err(why) if !whole => Some(tfos_core::failure::chain(why).join(": ")),
                Err(_) => continue,
            };
            whole |= damage.is_none();
            candidates.push(Candidate { step: *step, damage });
        }
        let target = compute_target(candidates);
        let chosen = manifests.into_iter().find(|(step, _)| Some(*step) == target.restore);
        let restored = chosen.and_then(|(step, m)| Some(Restored { path: Paths::manifest(step), manifest: m.ok()? }));
        Ok((restored, target))
    }

    /// What is wrong with a checkpoint's files; reads each of them once, several at a time.
    pub async fn damage(&self, manifest: &Manifest) -> Result<Option<String>, Error> {
        let parts = stream::iter(&manifest.parts).map(|part| self.damage_of(part)).buffered(VERIFYING);
        let found = parts.try_filter_map(async |damage| Ok(damage));
        std::pin::pin!(found).try_next().await
    }

    async fn damage_of(&self, part: &Part) -> Result<Option<String>, Error> {
        let Part { path, bytes: wanted, crc32c, .. } = part;
        let failed = |e| self.error(format!("`{path}` cannot be read"), e);
        let got = match self.store.get(&self.path(path)).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(Some(format!("`{path}` is missing"))),
            Err(e) => return Err(failed(e)),
        };
        let (bytes, crc) = whole::checksum(got).await.map_err(failed)?;
        if bytes != *wanted {
            return Ok(Some(format!("`{path}` has {bytes} bytes instead of {wanted}")));
        }
        if crc != *crc32c {
            return Ok(Some(format!("`{path}` has checksum {crc:08x} instead of {crc32c:08x}")));
        }
        Ok(None)
    }

    /// Takes damaged checkpoints out of the lineage, so that their steps can be reached again.
    pub async fn set_aside(&self, skipped: &[Candidate], generation: Generation) -> Result<(), Error> {
        for candidate in skipped {
            let from = self.path(&Paths::manifest(candidate.step));
            let to = self.path(&Paths::damaged_manifest(candidate.step, generation));
            match self.store.rename(&from, &to).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(self.error(format!("the damaged `{from}` cannot be set aside"), e)),
            }
        }
        Ok(())
    }

    /// Commits a checkpoint by creating its manifest. False: this very checkpoint is there already, the one that
    /// the job `resumed` from. `again` replaces the manifest that this generation itself wrote at the same step:
    /// the parameters are the same, more rows have been seen.
    ///
    /// `Ok` says that no newer generation had been claimed when the manifest was there, so that the next one finds it.
    pub async fn commit(&self, manifest: &Manifest, again: bool, resumed: Option<GlobalStep>) -> Result<bool, Error> {
        self.check_newest(manifest.generation).await?;
        let path = Paths::manifest(manifest.global_step);
        let json = serde_json::to_vec_pretty(manifest).map_err(|e| self.encoding(&path, e))?;
        let json = bytes::Bytes::from(json);
        let replace = async || self.store.put(&self.path(&path), PutPayload::from(json.clone())).await.map(drop);
        let failed = |e| self.error(format!("`{path}` cannot be written"), e);
        match if again { replace().await } else { self.create(&path, json.clone()).await } {
            Ok(()) => {}
            Err(object_store::Error::AlreadyExists { .. }) if resumed == Some(manifest.global_step) => {
                return Ok(false);
            }
            Err(e @ object_store::Error::AlreadyExists { .. }) => {
                let there = self.read(&path).await?.unwrap_or_default();
                let theirs = Manifest::parse(&path, &there).map(|m| m.generation);
                // Our steps are beyond what we started from, so an older generation's manifest there is void (CKP-3). One of our
                // own is that of a request which seemed to fail; its rows are in this one too.
                if theirs.is_ok_and(|theirs| theirs <= manifest.generation) {
                    replace().await.map_err(failed)?;
                } else if there != json {
                    return Err(self.error(format!("another driver wrote `{path}` meanwhile"), e));
                }
                // The same bytes: a request that the store client sent twice finds its own work.
            }
            Err(e) => return Err(failed(e)),
        }
        self.settle(&path).await?;
        self.check_newest(manifest.generation).await?;
        Ok(true)
    }

    /// Returns when a file of a file system is on the disk, name and all; a manifest must not get there before what it names
    /// (CKP-5). Other stores have it when they say so.
    pub(crate) async fn settle(&self, relative: &str) -> Result<(), Error> {
        let Some(file) = self.local_path().map(|root| root.join(relative)) else { return Ok(()) };
        let synced = tokio::task::spawn_blocking({
            let file = file.clone();
            move || {
                std::fs::File::open(&file)?.sync_all()?;
                file.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
            }
        });
        let failed = |source| Error::File { path: file.display().to_string(), action: "brought to the disk", source };
        synced.await.map_err(|e| failed(std::io::Error::other(e)))?.map_err(failed)
    }

    /// Every file below a folder, relative to the model directory, half-written ones too.
    pub(crate) async fn files(&self, folder: &str) -> Result<Vec<String>, Error> {
        let listed: Result<Vec<_>, _> = self.store.list(Some(&self.path(folder))).try_collect().await;
        let listed = listed.map_err(|e| self.error(format!("`{folder}` cannot be listed"), e))?;
        let relative = |path: &Path| -> Option<String> {
            let parts: Vec<_> = path.prefix_match(&self.root)?.collect();
            Some(parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("/"))
        };
        let mut files: Vec<String> = listed.iter().filter_map(|meta| relative(&meta.location)).collect();
        if let Some(local) = self.local_path() {
            staged(&local, folder, &mut files);
        }
        Ok(files)
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
        self.delete(&Paths::manifest(step)).await?;
        for file in self.files(&Paths::checkpoint(step)).await? {
            self.delete(&file).await?;
        }
        self.remove_folder(step).await;
        Ok(())
    }

    /// Empty folders exist on file systems only; one with files in it stays.
    pub(crate) async fn remove_folder(&self, step: GlobalStep) {
        let folder = Paths::checkpoint(step);
        if let Some(local) = self.local_path() {
            let _ = std::fs::remove_dir(local.join(folder));
        } else if self.url.scheme() == "hdfs" {
            let _ = self.store.delete(&self.path(&folder)).await;
        }
    }

    /// Deletes the checkpoints of the `lineage` that `keep` does not keep, each manifest before its parts, and what is
    /// older than the oldest kept and no checkpoint.
    pub async fn retain(
        &self,
        keep: &Retention,
        scores: &BTreeMap<GlobalStep, Scores>,
        lineage: impl Fn(GlobalStep) -> bool,
    ) -> Result<(), Error> {
        let folders = self.folders().await?;
        let (whole, rest): (Vec<_>, Vec<_>) = folders.into_iter().partition(|(step, exists)| *exists && lineage(*step));
        let whole: Vec<GlobalStep> = whole.into_iter().map(|(step, _)| step).collect();
        let mut deletions = compute_deletions(&whole, scores, keep);
        let oldest_kept = whole.iter().filter(|step| !deletions.contains(step)).min().copied();
        let older = |step: GlobalStep| oldest_kept.is_some_and(|oldest| step < oldest);
        deletions.extend(rest.into_iter().map(|(step, _)| step).filter(|step| older(*step)));
        for step in deletions {
            self.delete_checkpoint(step).await?;
        }
        Ok(())
    }

    /// Removes ledger segments of generations before `mine` that are not in its lineage: written by a driver that died
    /// before its manifest.
    pub async fn remove_orphans(&self, lineage: &[String], mine: Generation) -> Result<usize, Error> {
        let mut removed = 0;
        for relative in self.files(Paths::LEDGER).await? {
            let older = Paths::parse_segment(&relative).is_some_and(|(_, generation)| generation < mine);
            if older && !lineage.contains(&relative) {
                self.delete(&relative).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Deletes a file, if it is still there.
    pub(crate) async fn delete(&self, relative: &str) -> Result<(), Error> {
        if let (Some(local), Some(_)) = (self.local_path(), Paths::staged_for(relative)) {
            let path = local.join(relative);
            return match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::File { path: path.display().to_string(), action: "removed", source })
                }
                _ => Ok(()),
            };
        }
        match self.store.delete(&self.path(relative)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error(format!("`{relative}` cannot be removed"), e)),
        }
    }
}

/// The oldest generation that wrote one of these.
pub(crate) fn oldest_of<E>(manifests: &[(GlobalStep, Result<Manifest, E>)]) -> Generation {
    manifests.iter().filter_map(|(_, m)| m.as_ref().ok()).map(|m| m.generation).min().unwrap_or_default()
}

/// What is said of a manifest that does not count.
pub(crate) fn void(generation: Generation) -> String {
    format!("generation {generation} wrote it after a newer one had started without it")
}

#[cfg(test)]
#[path = "model_dir_tests.rs"]
mod tests;
