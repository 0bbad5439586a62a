//! A job as its application sees it: a DataFusion session on the driver, and a cluster that trains on what the
//! session's queries give.

mod assets;
mod deterministic;
mod digest;
mod engine;
mod input;
mod predict;
mod progress;
mod results;
mod rows_of;
mod staging;
mod start;
mod warm;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use tfos_core::checkpoint::Loading;
use tfos_core::cluster::ClusterSpec;
use tfos_core::config::{InputMode, Job};
use tfos_core::ids::{Generation, GlobalStep};
use tfos_core::proto;
use tfos_core::rows::{CommittedRows, Shuffle};
use tfos_data::datafusion::prelude::{DataFrame, SessionContext};
use tfos_data::session::Format;
use tfos_driver::model_dir::{ModelDir, Restored};
use tfos_driver::state::{FeedMemory, PhaseEnd};
use tfos_driver::{Driver, PhaseKind, PhaseOutcome, PhaseSpec};

use crate::{Application, Error, Result};
use input::Planned;

pub(crate) use digest::{Digest, digest};
pub use input::DirectInput;
pub(crate) use predict::Prediction;
#[cfg(feature = "torch")]
pub(crate) use predict::check_columns;
pub(crate) use rows_of::register as register_rows_of;
pub(crate) use start::{Ended, Started};

/// How training went.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct TrainOutcome {
    /// Updates applied to the model, over all generations.
    pub global_step: u64,
    /// Rows applied by this run.
    pub rows: u64,
    /// Complete passes over the data.
    pub epochs: u32,
    /// Smoothed loss at the end.
    pub loss: Option<f64>,
    /// The target had been reached before; nothing was done.
    pub already_done: bool,
    /// Gradients dropped as stale; their rows were trained on again.
    pub dropped: u64,
    /// Rows that count as seen and that no update was computed from: those that
    /// [`drop_last`](crate::DataFeed::drop_last) left over, and batches without a step.
    pub passed_over: u64,
    /// What the feed of a training node held in memory at most.
    pub feed_memory: FeedMemory,
    /// The most steps of its own that a training node began one ahead of the slowest; 0 in synchronous training.
    pub largest_staleness: u64,
    /// Wall-clock seconds of training.
    pub seconds: f64,
    /// Seconds from the start of the job to the first applied update.
    pub first_step_seconds: Option<f64>,
}

/// What the job has to say at its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) train: Option<TrainOutcome>,
    pub(crate) metrics: BTreeMap<String, f64>,
    pub(crate) inference_rows: Option<u64>,
}

/// A job's cluster and its session. Executors are started with the job and have their roles by the time of
/// the first call that needs them.
pub struct Cluster {
    runtime: tokio::runtime::Runtime,
    session: SessionContext,
    driver: Option<Driver>,
    job: Job,
    application: Arc<dyn Application>,
    model_dir: ModelDir,
    generation: Generation,
    log_dir: PathBuf,
    restored: Option<Restored>,
    /// What the next phase loads.
    loading: Option<Loading>,
    /// Prints what nodes have to say, until the driver has ended.
    notes: Option<tokio::task::JoinHandle<()>>,
    trained: bool,
    arguments: String,
    named: Vec<(String, DataFrame)>,
    shuffle: Option<Shuffle>,
    report: Report,
    progress: progress::Progress,
    scheduler: engine::Scheduler,
    begun: std::time::Instant,
    /// Removed with the job when the user named no model directory.
    _temporary: Option<tempfile::TempDir>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("job", &self.job).field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The job's settings.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The DataFusion session: register tables and functions here, then query them.
    pub fn session(&self) -> &SessionContext {
        &self.session
    }

    /// Runs a future of the session to its end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// A query over registered tables, or over files named in quotes.
    pub fn sql(&self, query: &str) -> Result<DataFrame> {
        Ok(self.block_on(self.session.sql(query))?)
    }

    /// The rows of files: a path, a directory, a glob or a list of these separated by commas.
    pub fn read(&self, url: &str, format: Format, schema: Option<&str>) -> Result<DataFrame> {
        Ok(self.block_on(tfos_data::session::read(&self.session, url, format, schema))?)
    }

    /// The format of the files at `url`: the one that was `given`, or by their names.
    pub fn format_of(&self, url: &str, given: Option<&str>) -> Result<Format> {
        let found = match given {
            Some(name) => Some(name.parse()?),
            None => self.block_on(tfos_data::session::format_of(url))?,
        };
        found.ok_or_else(|| Error::Usage(format!("the format of `{url}` cannot be told from its name; give --format")))
    }

    /// Makes files a table of the session.
    pub fn register(&self, table: &str, url: &str, format: Format, schema: Option<&str>) -> Result<()> {
        Ok(self.block_on(tfos_data::session::register(&self.session, table, url, format, schema))?)
    }

    /// Arguments for the nodes, JSON; see [`NodeContext::arguments`](crate::NodeContext::arguments).
    pub fn set_arguments<T: serde::Serialize>(&mut self, arguments: &T) -> Result<()> {
        self.arguments =
            serde_json::to_string(arguments).map_err(|e| Error::Usage(format!("the arguments are no JSON: {e}")))?;
        Ok(())
    }

    /// A second input, which nodes read by its name; an evaluator scores every checkpoint on `eval`.
    pub fn add_input(&mut self, name: &str, rows: DataFrame) {
        self.named.push((name.to_owned(), rows));
    }

    /// Shuffles the rows that are trained on: in every epoch the partitions come in another order, and the rows of a
    /// partition are mixed in blocks of `block_rows`, so that a row moves by a third of a block on average. The order
    /// depends on `seed` and the data alone, not on the cluster, and goes on after a resume. A node holds up to four
    /// blocks in memory beside its feed queue; mixing costs one copy. 0 leaves the rows in the order of the query.
    pub fn shuffle(&mut self, block_rows: u32, seed: u64) {
        self.shuffle = NonZeroU32::new(block_rows).map(|block_rows| Shuffle { seed, block_rows });
    }

    /// Where checkpoints go.
    pub fn model_dir(&self) -> String {
        self.model_dir.url().to_string()
    }

    /// Trains for `epochs` passes over the rows of `data`. Scans, filters, projections and functions run in the nodes
    /// that train, while they train. A query with an exchange (join, aggregate, window, sort, limit) is staged first: it
    /// is run into files of the model directory, by one executor or by all that train (`--engine`), and these are fed then,
    /// also after a resume.
    /// Rows that a restored checkpoint has seen are not fed again.
    ///
    /// With `--deterministic` a query whose rows cannot be counted before it runs (a filter, files without statistics) is
    /// staged too.
    pub fn train(&mut self, data: DataFrame, epochs: u32) -> Result<TrainOutcome> {
        let planned = match self.micro_batches() {
            Some(_) => self.plan_in_one_order(data)?,
            None => self.plan(data)?,
        };
        self.run_training(planned, epochs)
    }

    /// Trains on files that the nodes read themselves, each file leased as it is needed.
    pub fn train_direct(&mut self, input: &DirectInput, epochs: u32) -> Result<TrainOutcome> {
        let planned = self.block_on(input::list(input))?;
        self.check_counted(&planned)?;
        self.run_training(planned, epochs)
    }

    fn run_training(&mut self, planned: Planned, epochs: u32) -> Result<TrainOutcome> {
        if epochs == 0 {
            return Err(Error::Usage("0 epochs would train on nothing; ask for 1 or more".into()));
        }
        if self.trained {
            return Err(Error::Usage(
                "a job trains once: a resumed one could not tell which rows of which call were seen".into(),
            ));
        }
        self.trained = true;
        let planned = planned.shuffled(self.shuffle);
        let (mut committed, mut before, mut step) = (CommittedRows::default(), 0, GlobalStep(0));
        if let Some(restored) = &self.restored {
            self.check_same(restored, &planned)?;
            self.check_cut(restored)?;
            let manifest = &restored.manifest;
            committed = manifest.rows.clone();
            (before, step) = (manifest.rows_total, manifest.global_step);
            let at_steps = self.job.max_steps.is_some_and(|max| step.0 >= max);
            if committed.complete_epochs >= epochs || at_steps {
                let target = if at_steps { format!("step {}", step.0) } else { format!("{epochs} epochs") };
                self.progress
                    .say(&format!("the checkpoint at step {step} has reached the target ({target}); nothing to train"));
                let epochs = committed.complete_epochs;
                let outcome = TrainOutcome { global_step: step.0, epochs, already_done: true, ..Default::default() };
                self.report.train = Some(outcome.clone());
                return Ok(outcome);
            }
            self.progress.say(&match manifest.has_seen_data() {
                true => format!("resuming from step {step}: {before} rows are done"),
                false => format!("starting at step {step} from weights that have seen no rows here"),
            });
        }
        let begun = std::time::Instant::now();
        let named = std::mem::take(&mut self.named);
        let mut inputs = vec![planned.input("data")];
        // What the job does not depend on does not end it.
        if let Err(e) =
            self.block_on(rows_of::keep_input(&self.model_dir, &planned.fingerprint, &planned.input("data")))
        {
            tracing::warn!("`rows_of` of `tfos sql` will have no input: {}", tfos_core::failure::chain(&e).join(": "));
        }
        for (name, data) in named {
            inputs.push(self.plan(data)?.input(&name));
        }
        let outcome = self.phase(PhaseKind::Train, planned, inputs, epochs, committed, before, step)?;
        if let Some(stored) = self.driver.as_ref().and_then(Driver::stored) {
            self.restored = Some(Restored { path: stored.path.clone(), manifest: stored.manifest.clone() });
            // This model wrote it.
            self.loading = Some(Loading::own(&stored.path));
        }
        let result = TrainOutcome {
            global_step: outcome.global_step.0,
            rows: outcome.rows,
            epochs: outcome.epochs,
            loss: outcome.loss,
            already_done: false,
            dropped: outcome.dropped,
            passed_over: outcome.passed_over,
            feed_memory: outcome.memory,
            largest_staleness: outcome.largest_staleness,
            seconds: begun.elapsed().as_secs_f64(),
            first_step_seconds: self.progress.first_step().map(|at| at.duration_since(self.begun).as_secs_f64()),
        };
        self.report.train = Some(result.clone());
        for (name, mean) in &outcome.metrics {
            self.report.metrics.insert(name.clone(), mean.mean());
        }
        if outcome.end == PhaseEnd::Drained {
            return Err(Error::Interrupted);
        }
        Ok(result)
    }

    /// One result per row of `data`, in the order of its rows: its columns and the predictions.
    pub fn inference(&mut self, data: DataFrame) -> Result<DataFrame> {
        let planned = self.plan(data)?;
        let inputs = vec![planned.input("data")];
        let outcome =
            self.phase(PhaseKind::Inference, planned, inputs, 1, CommittedRows::default(), 0, GlobalStep(0))?;
        if outcome.end == PhaseEnd::Drained {
            return Err(Error::Interrupted);
        }
        self.report.inference_rows = Some(outcome.rows);
        self.block_on(results::data_frame(&self.session, outcome.results, outcome.rows))
    }

    /// Means over all rows of `data` of the metrics that the nodes report for the newest checkpoint.
    pub fn evaluate(&mut self, data: DataFrame) -> Result<BTreeMap<String, f64>> {
        let planned = self.plan(data)?;
        let inputs = vec![planned.input("data")];
        let outcome =
            self.phase(PhaseKind::Evaluate, planned, inputs, 1, CommittedRows::default(), 0, GlobalStep(0))?;
        if outcome.end == PhaseEnd::Drained {
            return Err(Error::Interrupted);
        }
        let means: BTreeMap<String, f64> = outcome.metrics.iter().map(|(n, m)| (n.clone(), m.mean())).collect();
        self.report.metrics.extend(means.clone());
        Ok(means)
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of a resumed phase, each used once")]
    fn phase(
        &mut self,
        kind: PhaseKind,
        planned: Planned,
        inputs: Vec<proto::Input>,
        epochs: u32,
        committed: CommittedRows,
        rows_before: u64,
        restored_step: GlobalStep,
    ) -> Result<PhaseOutcome> {
        let spec =
            PhaseSpec { committed, rows_before, restored_step, ..self.phase_spec(kind, planned, inputs, epochs) };
        self.run_phase(spec, None)
    }

    /// Waits until every node has its role.
    fn formed(&self) -> Result<ClusterSpec> {
        let Some(driver) = &self.driver else { return Err(Error::Usage("the cluster was shut down".into())) };
        Ok(self.runtime.block_on(driver.formed())?)
    }

    /// A phase that starts from nothing.
    fn phase_spec(&self, kind: PhaseKind, planned: Planned, inputs: Vec<proto::Input>, epochs: u32) -> PhaseSpec {
        let start = proto::StartPhase {
            phase: 0,
            kind: kind.to_string(),
            inputs,
            arguments: self.arguments.clone(),
            restore: self.loading.as_ref().and_then(|l| serde_json::to_string(l).ok()).unwrap_or_default(),
            consistency: serde_json::to_string(&self.job.consistency).unwrap_or_default(),
            precision: serde_json::to_string(&self.job.precision).unwrap_or_default(),
            plane: serde_json::to_string(&self.job.plane).unwrap_or_default(),
            max_steps: self.job.max_steps.unwrap_or(0),
            seed: self.job.seed,
            epochs,
            ..Default::default()
        };
        PhaseSpec {
            kind,
            epochs,
            partition_rows: planned.partition_rows,
            shuffle: planned.shuffle,
            micro_batches: self.micro_batches().filter(|_| kind == PhaseKind::Train),
            input_fingerprint: planned.fingerprint,
            columns: planned.columns,
            committed: CommittedRows::default(),
            rows_before: 0,
            restored_step: GlobalStep(0),
            max_steps: self.job.max_steps.filter(|_| kind == PhaseKind::Train),
            staged_partitions: None,
            start,
        }
    }

    /// Runs a phase, and with it a query that nodes run pieces of.
    fn run_phase(&self, spec: PhaseSpec, query: Option<engine::Submitted>) -> Result<PhaseOutcome> {
        self.formed()?;
        let Some(driver) = &self.driver else { return Err(Error::Usage("the cluster was shut down".into())) };
        let watching = self.progress.watch(driver.status(), spec.restored_step.0);
        let shown = self.runtime.spawn(watching);
        let outcome = self.runtime.block_on(async {
            let phase = driver.run_phase(spec);
            let Some(query) = query else { return phase.await };
            let given_up = async {
                driver.query_failed(query.run(&self.scheduler).await);
                std::future::pending().await
            };
            tokio::select! {
                outcome = phase => outcome,
                never = given_up => never,
            }
        });
        shown.abort();
        self.progress.clear();
        Ok(outcome?)
    }

    /// A checkpoint of another application or of other data is not continued silently.
    fn check_same(&self, restored: &Restored, planned: &Planned) -> Result<()> {
        let foreign = |why: String| Err(tfos_driver::Error::Foreign { path: restored.path.clone(), why }.into());
        let (theirs, ours) = (&restored.manifest.application, &self.job.application);
        if theirs != ours {
            return foreign(format!("it belongs to the application `{theirs}`, not `{ours}`; use another --model-dir"));
        }
        if restored.manifest.has_seen_data() && restored.manifest.input_fingerprint != planned.fingerprint {
            return foreign(
                "the training data, its query or its shuffling has changed since, so its rows cannot be told apart from new ones; \
                 use another --model-dir"
                    .into(),
            );
        }
        Ok(())
    }

    /// Input mode that fits the arguments of applications that take `--input-mode`.
    pub fn train_input(
        &mut self,
        mode: InputMode,
        data: impl FnOnce(&Self) -> Result<DataFrame>,
        direct: &DirectInput,
        epochs: u32,
    ) -> Result<TrainOutcome> {
        match mode {
            InputMode::Feed => {
                let frame = data(self)?;
                self.train(frame, epochs)
            }
            InputMode::Direct => self.train_direct(direct, epochs),
        }
    }
}
