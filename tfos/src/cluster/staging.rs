//! Queries with an exchange: run whole, once, into files of the model directory; those are fed.
//!
//! ```text
//! MODEL_DIR/staging/QUERY/g3/part-00000-00000.arrow              written by the chief in generation 3
//!                         g3/part-00000-00000.worker0-7.arrow    the same, by the 8th attempt of worker:0 at a partition
//!                         manifest.json                          created last; names the generation and files that count
//! ```
//!
//! STG-2: the manifest is written when each partition of the query has been written whole by exactly one attempt, as its
//! writer reported it, and names the files of these. Files that it does not name are removed before it is written.

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use tfos_core::config::Engine;
use tfos_core::proto;
use tfos_data::datafusion::prelude::DataFrame;
use tfos_data::object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tfos_data::plan;
use tfos_data::session::Format;
use tfos_data::stage::StagedFile;
use tfos_driver::PhaseKind;
use tfos_driver::state::PhaseEnd;

use super::Cluster;
use super::engine::Query;
use super::input::Planned;
use crate::{Error, Result};

/// Which files hold the rows of a query.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// Of this layout.
    version: u32,
    /// Folder of the attempt that counts.
    attempt: String,
    /// In order of their names, which is that of the rows.
    files: Vec<StagedFile>,
}

const VERSION: u32 = 1;

/// Why a query with an exchange is staged.
pub(super) const EXCHANGE: &str = "the query has an exchange (join, aggregate, window, sort or limit)";

impl Manifest {
    fn rows(&self) -> u64 {
        self.files.iter().map(|f| f.rows).sum()
    }

    /// Rows of these files.
    fn rows_of(&self, names: &[String]) -> Option<u64> {
        let rows = |name: &String| self.files.iter().find(|f| f.name == *name).map(|f| f.rows);
        names.iter().map(rows).sum()
    }

    /// Equal where every row has the same address: a query that is staged again may give them in another order.
    fn identity(&self) -> u32 {
        self.files.iter().fold(0, |crc, f| crc32c::crc32c_append(crc, &f.crc32c.to_le_bytes()))
    }
}

impl Cluster {
    /// Stages the query unless that was done before, and plans the files that hold its rows.
    pub(super) fn stage(&mut self, query: Query, why: &str) -> Result<Planned> {
        let name = plan::fingerprint(&query.plan)?;
        let folder = format!("staging/{name}");
        let manifest = match self.block_on(self.read_manifest(&folder))? {
            Some(manifest) => {
                let (rows, files) = (manifest.rows(), manifest.files.len());
                self.progress.say(&format!("the query was staged before: {rows} rows in {files} files"));
                manifest
            }
            None => self.run_stage(&query, &folder, why)?,
        };
        let rows = self.read(&self.url(&format!("{folder}/{}/", manifest.attempt)), Format::Arrow, None)?;
        let mut planned = match self.micro_batches() {
            Some(_) => self.counted(rows, &manifest)?,
            None => self.plan(rows)?,
        };
        planned.fingerprint = format!("staged|{name}|{:08x}", manifest.identity());
        Ok(planned)
    }

    /// The files whole, with their rows: Arrow files have no statistics, but the manifest has.
    fn counted(&self, rows: DataFrame, manifest: &Manifest) -> Result<Planned> {
        let physical = self.block_on(plan::in_one_order(rows))?;
        let mut planned = Planned::of_plan(&physical)?;
        for (partition, known) in planned.partition_rows.iter_mut().enumerate() {
            let files = plan::whole_files(&physical, partition);
            *known = known.or_else(|| files.and_then(|files| manifest.rows_of(&files)));
        }
        Ok(planned)
    }

    fn run_stage(&mut self, query: &Query, folder: &str, why: &str) -> Result<Manifest> {
        let begun = std::time::Instant::now();
        let attempt = format!("g{}", self.generation);
        let address = self.url(&format!("{folder}/{attempt}"));
        let engine = self.choose_engine(&self.formed()?);
        self.progress.say(&format!(
            "{why}: it is staged into files first, by {}",
            match engine {
                Engine::DataFusion => "one executor".to_owned(),
                Engine::Ballista => format!("{} executors (Ballista)", self.job.shape.num_trainers()),
            }
        ));
        let mut input = proto::Input { name: "query".into(), files: vec![address.clone()], ..Default::default() };
        let mut spec = self.phase_spec(PhaseKind::Stage, Planned::of_files(vec![], vec![None]), vec![], 1);
        let submitted = match engine {
            Engine::DataFusion => {
                input.plan = plan::encode(&query.plan)?.into();
                spec.staged_partitions = u32::try_from(plan::partitions(&query.plan)).ok();
                None
            }
            Engine::Ballista => {
                let (submitted, scheduler, work_dir) = self.prepare(query, &address)?;
                (spec.start.scheduler, spec.start.work_dir) = (scheduler, work_dir);
                spec.staged_partitions = u32::try_from(submitted.partitions()).ok();
                Some(submitted)
            }
        };
        spec.start.inputs = vec![input];
        let outcome = self.run_phase(spec, submitted)?;
        if outcome.end == PhaseEnd::Drained {
            return Err(Error::Interrupted);
        }
        let file = |f: proto::StagedFile| StagedFile { name: f.name, rows: f.rows, bytes: f.bytes, crc32c: f.crc32c };
        let mut files: Vec<StagedFile> = outcome.staged.into_iter().map(file).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest { version: VERSION, attempt, files };
        self.block_on(self.write_manifest(folder, &manifest))?;
        let (rows, files, seconds) = (manifest.rows(), manifest.files.len(), begun.elapsed().as_secs_f64());
        self.progress.say(&format!("staged {rows} rows in {files} files in {seconds:.1} s"));
        Ok(manifest)
    }

    fn url(&self, relative: &str) -> String {
        format!("{}/{relative}", self.model_dir().trim_end_matches('/'))
    }

    /// The manifest, once the files that it names are seen to be there.
    async fn read_manifest(&self, folder: &str) -> Result<Option<Manifest>> {
        let relative = format!("{folder}/manifest.json");
        let failed = |source| tfos_data::Error::Store { url: self.url(&relative), source };
        let bytes = match self.model_dir.store().get(&self.model_dir.path(&relative)).await {
            Ok(got) => got.bytes().await.map_err(failed)?,
            Err(tfos_data::object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(failed(e).into()),
        };
        let again = || format!("delete `{}` to stage the query again", self.url(folder));
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| Error::Staging {
            what: format!("`{}` cannot be read: {e}", self.url(&relative)),
            again: again(),
        })?;
        let attempt = self.model_dir.path(&format!("{folder}/{}", manifest.attempt));
        let listed: Vec<_> = self.model_dir.store().list(Some(&attempt)).try_collect().await.map_err(failed)?;
        let mut there: Vec<(&str, u64)> =
            listed.iter().map(|meta| (meta.location.filename().unwrap_or_default(), meta.size)).collect();
        there.sort_unstable();
        let named = manifest.files.iter().map(|f| (f.name.as_str(), f.bytes));
        if manifest.version != VERSION || !there.iter().copied().eq(named) {
            let what = format!("the files in `{}` are not those that its manifest names", self.url(folder));
            return Err(Error::Staging { what, again: again() });
        }
        Ok(Some(manifest))
    }

    /// Creates the manifest (STG-2).
    async fn write_manifest(&self, folder: &str, manifest: &Manifest) -> Result<()> {
        let relative = format!("{folder}/manifest.json");
        let failed = |source| tfos_data::Error::Store { url: self.url(&relative), source };
        let text = serde_json::to_vec_pretty(manifest).map_err(|e| Error::Staging {
            what: format!("the manifest cannot be written: {e}"),
            again: "this is a defect of tfos".into(),
        })?;
        let (store, options) = (self.model_dir.store(), PutOptions::from(PutMode::Create));
        let path = self.model_dir.path(&relative);
        let counts = self.model_dir.path(&format!("{folder}/{}", manifest.attempt));
        let written: Vec<_> = store.list(Some(&counts)).try_collect().await.map_err(failed)?;
        let named = |name: &str| manifest.files.iter().any(|f| f.name == name);
        for unnamed in written.iter().filter(|meta| !meta.location.filename().is_some_and(named)) {
            store.delete(&unnamed.location).await.map_err(failed)?;
        }
        store.put_opts(&path, PutPayload::from(text), options).await.map_err(failed)?;
        // What generations that died have left.
        let all: Vec<_> = store.list(Some(&self.model_dir.path(folder))).try_collect().await.map_err(failed)?;
        for left in all.iter().filter(|meta| meta.location != path && !meta.location.prefix_matches(&counts)) {
            store.delete(&left.location).await.map_err(failed)?;
        }
        Ok(())
    }
}
