//! Makes a cut durable: ledger segment, then manifest, then retention, in this order (CKP-1).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tfos_core::checkpoint::{FORMAT, Manifest, Paths, Retention, Scores};
use tfos_core::ids::{Generation, GlobalStep};
use tokio::sync::watch;

use crate::error::Error;
use crate::event::{CheckpointCut, Stored};
use crate::ledger;
use crate::model_dir::ModelDir;
use crate::run::DriverOptions;

/// What a driver knows of the checkpoints that it has written; one commit at a time.
pub(crate) struct Committer {
    dir: ModelDir,
    generation: Generation,
    version: String,
    application: String,
    keep: Retention,
    /// What evaluators made of checkpoints; `None` until those of earlier generations are read.
    scores: Option<BTreeMap<GlobalStep, Scores>>,
    /// Step that the job resumed from.
    resumed: Option<GlobalStep>,
    ledger: Vec<String>,
    last_step: GlobalStep,
    /// Steps of the manifests that this generation wrote.
    written: BTreeSet<GlobalStep>,
    stored: watch::Sender<Option<Arc<Stored>>>,
}

impl Committer {
    pub(crate) fn new(options: &DriverOptions, stored: watch::Sender<Option<Arc<Stored>>>) -> Self {
        let (last_step, ledger) = options.restored.clone().unwrap_or_default();
        Self {
            dir: options.model_dir.clone(),
            generation: options.generation,
            version: options.version.clone(),
            application: options.job.application.clone(),
            keep: options.job.keep.clone(),
            scores: None,
            resumed: options.restored.as_ref().map(|(step, _)| *step),
            ledger,
            last_step,
            written: BTreeSet::new(),
            stored,
        }
    }

    /// Commits one cut; gives the path of its manifest.
    pub(crate) async fn commit(&mut self, cut: &CheckpointCut) -> Result<String, Error> {
        // Of this lineage only once the manifest is there: the rows of a commit that failed are in the next one's segment.
        let mut ledger = self.ledger.clone();
        if !cut.commits.is_empty() {
            let after = self.last_step.min(cut.step);
            ledger.push(ledger::write_segment(&self.dir, self.generation, after, cut.step, &cut.commits).await?);
        }
        let json = |text: &str| serde_json::from_str(text).unwrap_or(serde_json::Value::Null);
        let manifest = Manifest {
            format: FORMAT,
            tfos_version: self.version.clone(),
            application: self.application.clone(),
            generation: self.generation,
            global_step: cut.step,
            layout: json(&cut.layout),
            optimizer: json(&cut.optimizer),
            optimizer_step: cut.optimizer_step,
            parts: cut.parts.clone(),
            input_fingerprint: cut.input_fingerprint.clone(),
            rows: cut.rows.clone(),
            rows_total: cut.rows_total,
            ledger,
            arguments: json(&cut.arguments),
            columns: cut.columns.clone(),
        };
        // A listing shows the new manifest sooner or later; until then this does.
        warn(self.dir.note_newest(self.generation, [cut.step, self.last_step]).await);
        if self.dir.commit(&manifest, self.written.contains(&cut.step), self.resumed).await? {
            self.written.insert(cut.step);
            tracing::info!("checkpoint at step {} with {} rows", cut.step, cut.rows_total);
        }
        self.last_step = cut.step;
        self.ledger.clone_from(&manifest.ledger);
        let path = Paths::manifest(cut.step);
        self.stored.send_replace(Some(Arc::new(Stored { path: path.clone(), manifest })));
        warn(self.retain().await);
        Ok(path)
    }

    /// Notes what the evaluator made of a checkpoint: it may be the best one.
    pub(crate) async fn score(&mut self, step: GlobalStep, scores: Scores) {
        let Some(best) = &self.keep.best else { return };
        if !scores.contains_key(&best.metric) {
            let has = scores.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            tracing::warn!("--keep-best {best}: the evaluator reports {has}, and not that, so none is the best");
        }
        warn(self.add_scores(step, scores).await);
    }

    async fn add_scores(&mut self, step: GlobalStep, scores: Scores) -> Result<(), Error> {
        // A checkpoint that is gone would leave its scores behind.
        if self.is_ours(step) && self.dir.folders().await?.get(&step) == Some(&true) {
            self.dir.write_scores(step, &scores).await?;
            self.known_scores().await?.insert(step, scores);
            self.retain().await?;
        }
        Ok(())
    }

    async fn known_scores(&mut self) -> Result<&mut BTreeMap<GlobalStep, Scores>, Error> {
        if self.scores.is_none() && self.keep.best.is_some() {
            self.scores = Some(self.dir.scores().await?);
        }
        Ok(self.scores.get_or_insert_default())
    }

    async fn retain(&mut self) -> Result<(), Error> {
        // While nobody knows which one was the best, nothing is deleted.
        self.known_scores().await?;
        let none = BTreeMap::new();
        let scores = self.scores.as_ref().unwrap_or(&none);
        self.dir.retain(&self.keep, scores, |step| self.is_ours(step)).await
    }
    /// Of this job's lineage, and not what an older driver still wrote after this one had started.
    fn is_ours(&self, step: GlobalStep) -> bool {
        self.written.contains(&step) || self.resumed.is_some_and(|resumed| step <= resumed)
    }
}

/// The new checkpoint is durable: an old one that stays is no reason to end the job.
fn warn(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::warn!("{}", tfos_core::failure::chain(&error).join(": "));
    }
}

#[cfg(test)]
#[path = "crash_tests.rs"]
mod tests;
