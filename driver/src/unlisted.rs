//! What a listing does not show yet: some stores list a new file a while after it can be read. What a driver must not
//! overlook has a name that can be guessed from what is listed, and is asked for by that name.

use std::collections::BTreeSet;

use object_store::{ObjectStoreExt, PutPayload};
use tfos_core::checkpoint::{Paths, Start, Starts};
use tfos_core::ids::{Generation, GlobalStep};

use crate::error::Error;
use crate::model_dir::ModelDir;

/// How many generations without a checkpoint are passed over.
const LOOK_BACK: u64 = 16;

impl ModelDir {
    /// The newest generation that was claimed. Claims are numbered without a gap, so the next ones are asked for.
    pub(crate) async fn newest_generation(&self) -> Result<Generation, Error> {
        let names = self.names(Paths::JOB).await?;
        let mut newest = names.iter().filter_map(|n| Paths::parse_generation(n)).max().unwrap_or_default();
        while self.exists(&Paths::generation(Generation(newest.0 + 1))).await? {
            newest.0 += 1;
        }
        Ok(newest)
    }

    /// What the generations started from, those that matter to manifests of `oldest` and later.
    pub(crate) async fn starts(&self, oldest: Generation) -> Result<Starts, Error> {
        let names = self.names(Paths::JOB).await?;
        let mut generations: Vec<_> = names.iter().filter_map(|n| Paths::parse_start(n)).collect();
        let listed = generations.iter().max().copied().unwrap_or_default();
        let newest = self.newest_generation().await?;
        generations.extend((listed.0 + 1..=newest.0).map(Generation));
        let mut starts = Starts::default();
        for generation in generations.into_iter().filter(|g| *g > oldest) {
            let path = Paths::start(generation);
            // One that has claimed and not begun, or that was given up.
            let Some(bytes) = self.read(&path).await? else { continue };
            let start: Start = serde_json::from_slice(&bytes).map_err(|e| self.encoding(&path, e))?;
            starts.0.insert(generation, start);
        }
        Ok(starts)
    }

    /// Writes down, before a checkpoint is committed, which ones may be the newest: this one, and the one before it.
    pub(crate) async fn note_newest(&self, generation: Generation, steps: [GlobalStep; 2]) -> Result<(), Error> {
        let path = Paths::newest(generation);
        let json = serde_json::to_vec(&steps).map_err(|e| self.encoding(&path, e))?;
        let put = self.store().put(&self.path(&path), PutPayload::from(json)).await;
        put.map(drop).map_err(|e| self.error(format!("`{path}` cannot be written"), e))
    }

    /// The steps of all manifests, in order, that of the newest one too while no listing shows it.
    pub(crate) async fn steps(&self) -> Result<BTreeSet<GlobalStep>, Error> {
        let folders = self.folders().await?;
        let mut steps: BTreeSet<GlobalStep> =
            folders.into_iter().filter(|(_, exists)| *exists).map(|(s, _)| s).collect();
        for noted in self.noted().await? {
            if !steps.contains(&noted) && self.exists(&Paths::manifest(noted)).await? {
                steps.insert(noted);
            }
        }
        Ok(steps)
    }

    /// What was noted last. An older generation commits nothing behind a newer one, so one note says all.
    async fn noted(&self) -> Result<Vec<GlobalStep>, Error> {
        let names = self.names(Paths::JOB).await?;
        let listed = names.iter().filter_map(|n| Paths::parse_newest(n)).max().unwrap_or_default();
        let newest = self.newest_generation().await?;
        // Those that came after the listed one, not without end: most of them may have committed nothing.
        let first = listed.0.max(newest.0.saturating_sub(LOOK_BACK)).max(1);
        for generation in (first..=newest.0).rev().map(Generation) {
            let path = Paths::newest(generation);
            if let Some(bytes) = self.read(&path).await? {
                return serde_json::from_slice(&bytes).map_err(|e| self.encoding(&path, e));
            }
        }
        Ok(vec![])
    }

    async fn exists(&self, relative: &str) -> Result<bool, Error> {
        match self.store().head(&self.path(relative)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.error(format!("`{relative}` cannot be looked for"), e)),
        }
    }
}

#[cfg(test)]
#[path = "unlisted_tests.rs"]
mod tests;
