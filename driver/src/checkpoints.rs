//! The checkpoints of a model directory, as people ask for them: what there is, whether it is whole, copies.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart};
use tfos_core::checkpoint::{Found, Manifest, ManifestError, Paths, Scores, compute_garbage};
use tfos_core::ids::{Generation, GlobalStep};

use crate::error::Error;
use crate::model_dir::{ModelDir, void};

/// What a killed process was writing on a file system, below `relative`: the store lists only what is whole.
pub(crate) fn staged(root: &std::path::Path, relative: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(relative)).into_iter().flatten().flatten() {
        let Some(path) = entry.file_name().to_str().map(|name| format!("{relative}/{name}")) else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            staged(root, &path, found);
        } else if Paths::staged_for(&path).is_some() {
            found.push(path);
        }
    }
}

/// Bytes of one request of a copy.
const CHUNK_BYTES: usize = 16 << 20;

/// A checkpoint without its values.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its step.
    pub step: GlobalStep,
    /// When its manifest was written, milliseconds since 1970.
    pub written_ms: i64,
    /// Its content, or why it cannot be read.
    pub manifest: Result<Manifest, String>,
}

impl Listed {
    /// Bytes of its parts.
    pub fn bytes(&self) -> u64 {
        self.manifest.as_ref().map_or(0, |m| m.parts.iter().map(|p| p.bytes).sum())
    }
}

impl ModelDir {
    /// Every checkpoint, oldest first. Only manifests are read.
    pub async fn list_checkpoints(&self) -> Result<Vec<Listed>, Error> {
        let mut listed = vec![];
        for step in self.steps().await? {
            listed.push(self.checkpoint(step).await?);
        }
        let oldest = listed.iter().filter_map(|c| c.manifest.as_ref().ok()).map(|m| m.generation).min();
        let starts = self.starts(oldest.unwrap_or_default()).await?;
        for c in &mut listed {
            if let Ok(m) = &c.manifest
                && starts.is_void(c.step, m.generation)
            {
                c.manifest = Err(void(m.generation));
            }
        }
        Ok(listed)
    }

    /// Deletes what belongs to no checkpoint and to none in progress; `dry_run` only says what that is.
    pub async fn collect_garbage(&self, dry_run: bool) -> Result<Vec<String>, Error> {
        // In this order, see `compute_garbage`.
        let mut files = self.files(Paths::CHECKPOINTS).await?;
        files.extend(self.files(Paths::LEDGER).await?);
        files.extend(self.files(Paths::JOB).await?);
        let claimed = self.newest_generation().await?;
        let starts = self.starts(Generation::default()).await?;
        let found = |(step, manifest): (GlobalStep, Result<Manifest, ManifestError>)| Found {
            step,
            content: manifest
                .ok()
                .map(|m| (m.generation, m.parts.into_iter().map(|p| p.path).chain(m.ledger).collect())),
        };
        let manifests: Vec<Found> = self.manifests().await?.into_iter().map(found).collect();
        let garbage = compute_garbage(&files, &manifests, &starts, claimed);
        if !dry_run {
            for file in &garbage {
                self.delete(file).await?;
            }
            // Folders that a deletion left empty are not in a listing of files.
            let newest = manifests.iter().map(|m| m.step).max().unwrap_or_default();
            let folders = self.names(Paths::CHECKPOINTS).await?;
            let old = folders.iter().filter_map(|n| Paths::parse_step(n)).filter(|step| *step < newest);
            for step in old.chain(garbage.iter().filter_map(|file| Paths::step_of(file))) {
                self.remove_folder(step).await;
            }
        }
        Ok(garbage)
    }

    /// What evaluators made of the checkpoints.
    pub(crate) async fn scores(&self) -> Result<BTreeMap<GlobalStep, Scores>, Error> {
        let mut found = BTreeMap::new();
        for file in self.files(Paths::CHECKPOINTS).await? {
            let Some(step) = Paths::step_of(&file).filter(|step| file == Paths::scores(*step)) else { continue };
            if let Some(bytes) = self.read(&file).await? {
                found.insert(step, serde_json::from_slice(&bytes).map_err(|e| self.encoding(&file, e))?);
            }
        }
        Ok(found)
    }

    /// Writes what an evaluator made of a checkpoint, beside it.
    pub(crate) async fn write_scores(&self, step: GlobalStep, scores: &Scores) -> Result<(), Error> {
        let path = Paths::scores(step);
        let json = serde_json::to_vec(scores).map_err(|e| self.encoding(&path, e))?;
        let put = self.store().put(&self.path(&path), json.into()).await;
        put.map(|_| ()).map_err(|e| self.error(format!("`{path}` cannot be written"), e))
    }

    /// The checkpoint of one step.
    pub async fn checkpoint(&self, step: GlobalStep) -> Result<Listed, Error> {
        let path = Paths::manifest(step);
        let failed = |e| self.error(format!("there is no checkpoint of step {step} that can be read"), e);
        let got = self.store().get(&self.path(&path)).await.map_err(failed)?;
        let written_ms = got.meta.last_modified.timestamp_millis();
        let bytes = got.bytes().await.map_err(failed)?;
        let manifest = Manifest::parse(&path, &bytes).map_err(|e| tfos_core::failure::chain(&e).join(": "));
        Ok(Listed { step, written_ms, manifest })
    }

    /// Copies a checkpoint with the ledger of its lineage and the events on the way into another model directory, its manifest last. Training
    /// goes on there as it would here.
    pub async fn copy_checkpoint(&self, manifest: &Manifest, to: &ModelDir) -> Result<(), Error> {
        // Before anything large moves. A driver of that directory that is at work is fenced off by the claim.
        to.claim_unused(manifest.generation, "{\"copied\":true}").await?;
        let assets = self.files(Paths::ASSETS).await?;
        // What happened on the way, for `tfos sql`. Every job's events are there, also those of the abandoned ones.
        let events = self.files(Paths::JOB).await?.into_iter();
        let events = events.filter(|file| {
            let name = file.rsplit('/').next().and_then(Paths::parse_events);
            name.is_some_and(|generation| generation <= manifest.generation)
        });
        let events: Vec<String> = events.collect();
        for file in manifest.parts.iter().map(|p| &p.path).chain(&manifest.ledger).chain(&assets).chain(&events) {
            self.copy_file(file, to).await?;
        }
        to.create_manifest(manifest).await
    }

    /// Claims `generation` of a directory for a checkpoint that comes from elsewhere; an error where jobs have run.
    pub async fn claim_unused(&self, generation: Generation, description: &str) -> Result<(), Error> {
        let path = Paths::generation(generation);
        let used = |source: object_store::Error| {
            self.error("it is in use: it has had generations of its own; name a new model directory", source)
        };
        if self.newest_generation().await? > Generation::default() {
            let source = "generations of jobs are there".into();
            return Err(used(object_store::Error::AlreadyExists { path, source }));
        }
        let payload = PutPayload::from(description.to_owned());
        let put = self.store().put_opts(&self.path(&path), payload, PutOptions::from(PutMode::Create)).await;
        put.map(drop).map_err(used)
    }

    /// Takes back what [`Self::claim_unused`] claimed, for a checkpoint that did not come.
    pub async fn release(&self, generation: Generation) -> Result<(), Error> {
        self.delete(&Paths::generation(generation)).await
    }

    /// Makes the checkpoint whose parts are there (CKP-1).
    pub async fn create_manifest(&self, manifest: &Manifest) -> Result<(), Error> {
        let path = Paths::manifest(manifest.global_step);
        let json = serde_json::to_vec_pretty(manifest).map_err(|e| self.encoding(&path, e))?;
        self.note_newest(manifest.generation, [manifest.global_step; 2]).await?;
        let put = self.store().put_opts(&self.path(&path), json.into(), PutOptions::from(PutMode::Create)).await;
        put.map(drop).map_err(|e| self.error(format!("`{path}` cannot be written"), e))
    }

    /// In chunks: a part may be larger than memory.
    async fn copy_file(&self, relative: &str, to: &ModelDir) -> Result<(), Error> {
        let (source, target): (Path, Path) = (self.path(relative), to.path(relative));
        let here = |e| self.error(format!("`{relative}` cannot be read"), e);
        let there = |e| to.error(format!("`{relative}` cannot be written"), e);
        let mut stream = self.store().get(&source).await.map_err(here)?.into_stream();
        let upload = to.store().put_multipart(&target).await.map_err(there)?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, CHUNK_BYTES);
        loop {
            match stream.try_next().await {
                Ok(Some(chunk)) => {
                    writer.wait_for_capacity(4).await.map_err(there)?;
                    writer.put(chunk);
                }
                Ok(None) => break,
                Err(e) => {
                    // The first error is the one to tell; parts that stay behind are the store's to clean up.
                    let _ = writer.abort().await;
                    return Err(here(e));
                }
            }
        }
        writer.finish().await.map_err(there)?;
        Ok(())
    }
}
