//! What happened to a job and what its nodes reported, for `tfos sql`: an observer of the loop's events and actions.
//!
//! An object store cannot append, so a generation's journal is one file, written anew when something of weight happened:
//! a checkpoint, a phase, a death. What a killed driver had noted since then is lost with it, as its steps are.
//! The file stays small: of what may come without end only every second, fourth, … entry is kept when there are too many.

use std::sync::Arc;

use object_store::{ObjectStoreExt, PutPayload};
use tfos_core::checkpoint::Paths;
use tfos_core::cluster::{Role, Shape};
use tfos_core::ids::{ExecutorId, Generation, GlobalStep};
use tfos_data::arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use tfos_data::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tokio::sync::watch;

use crate::event::{Action, Event};
use crate::ledger::parquet;
use crate::model_dir::ModelDir;
use crate::state::PhaseKind;

/// Entries of one kind that are kept.
const MOST: usize = 20_000;

/// The event of a line that is a reported metric.
pub(crate) const METRIC: &str = "metric";

/// Columns of the file.
pub(crate) fn schema() -> SchemaRef {
    let field = |name: &str, ty: DataType, nullable| Field::new(name, ty, nullable);
    Arc::new(Schema::new(vec![
        field("time_ms", DataType::UInt64, false),
        field("generation", DataType::UInt64, false),
        field("event", DataType::Utf8, false),
        field("phase", DataType::Utf8, true),
        field("node", DataType::Utf8, true),
        field("executor", DataType::UInt32, true),
        field("global_step", DataType::UInt64, true),
        field("rows", DataType::UInt64, true),
        field("name", DataType::Utf8, true),
        field("value", DataType::Float64, true),
        field("detail", DataType::Utf8, true),
    ]))
}

/// One line.
#[derive(Debug, Clone, Default, PartialEq)]
struct Entry {
    time_ms: u64,
    event: &'static str,
    phase: Option<PhaseKind>,
    executor: Option<ExecutorId>,
    step: Option<u64>,
    rows: Option<u64>,
    name: Option<String>,
    value: Option<f64>,
    detail: Option<String>,
}

/// Entries without end, of which an even choice is kept.
#[derive(Debug)]
struct Thinned {
    entries: Vec<(u64, Entry)>,
    next: u64,
    stride: u64,
}

impl Default for Thinned {
    fn default() -> Self {
        Self { entries: vec![], next: 0, stride: 1 }
    }
}

impl Thinned {
    /// Adds entries that belong together: they stay together or go together.
    fn push(&mut self, group: impl IntoIterator<Item = Entry>) {
        let number = self.next;
        self.next += 1;
        if !number.is_multiple_of(self.stride) {
            return;
        }
        self.entries.extend(group.into_iter().map(|entry| (number, entry)));
        // One group alone may be too large; it stays, the next one goes.
        while self.entries.len() > MOST && self.stride < u64::MAX / 2 {
            self.stride *= 2;
            let before = self.entries.len();
            self.entries.retain(|(number, _)| number.is_multiple_of(self.stride));
            if self.entries.len() == before {
                break;
            }
        }
    }
}

/// The journal of one generation.
#[derive(Debug)]
pub(crate) struct Journal {
    generation: Generation,
    shape: Shape,
    phase: Option<PhaseKind>,
    /// Rows and beginning of the checkpoint that is being written.
    checkpoint: Option<(GlobalStep, u64, u64)>,
    /// What the size of the cluster bounds.
    events: Vec<Entry>,
    checkpoints: Thinned,
    notes: Thinned,
    scores: Thinned,
    metrics: Thinned,
}

impl Journal {
    pub(crate) fn new(generation: Generation, shape: Shape) -> Self {
        Self {
            generation,
            shape,
            phase: None,
            checkpoint: None,
            events: vec![],
            checkpoints: Thinned::default(),
            notes: Thinned::default(),
            scores: Thinned::default(),
            metrics: Thinned::default(),
        }
    }

    /// The first line.
    pub(crate) fn begin(&mut self, time_ms: u64, restored: Option<GlobalStep>, detail: String) {
        let (event, step) = match restored {
            Some(step) => ("restored", Some(step.0)),
            None => ("began", Some(0)),
        };
        self.events.push(Entry { time_ms, event, step, detail: Some(detail), ..Entry::default() });
    }

    /// Takes note of an event; true when it is worth being written at once.
    pub(crate) fn on_event(&mut self, time_ms: u64, event: &Event) -> bool {
        let mut entry = Entry { time_ms, ..Entry::default() };
        match event {
            Event::Launched { executor, pid, .. } => {
                entry.event = "launched";
                entry.executor = Some(*executor);
                entry.detail = Some(format!("process {pid}"));
                self.events.push(entry);
                false
            }
            Event::StartPhase(spec) => {
                self.phase = Some(spec.kind);
                entry.event = "phase_began";
                entry.phase = self.phase;
                entry.step = Some(spec.restored_step.0);
                entry.rows = Some(spec.rows_before);
                self.events.push(entry);
                true
            }
            Event::CheckpointStored { step, manifest } => {
                entry.event = "checkpoint";
                entry.phase = self.phase;
                entry.step = Some(step.0);
                entry.detail = Some(manifest.clone());
                if let Some((_, rows, begun)) = self.checkpoint.take().filter(|(of, ..)| of == step) {
                    entry.rows = Some(rows);
                    let seconds = time_ms.saturating_sub(begun) as f64 / 1000.0;
                    entry.detail = Some(format!("{manifest}, its commit took {seconds:.3} s"));
                }
                self.checkpoints.push([entry]);
                true
            }
            Event::CheckpointFailed { reason, .. } => {
                entry.event = "checkpoint_failed";
                entry.phase = self.phase;
                entry.step = self.checkpoint.take().map(|(step, ..)| step.0);
                entry.detail = Some(reason.clone());
                self.checkpoints.push([entry]);
                true
            }
            Event::QueryFailed { reason } => {
                entry.event = "query_failed";
                entry.phase = self.phase;
                entry.detail = Some(reason.clone());
                self.events.push(entry);
                true
            }
            Event::Drain => {
                entry.event = "interrupted";
                entry.phase = self.phase;
                self.events.push(entry);
                true
            }
            Event::Shutdown { reason } => {
                entry.event = "ended";
                entry.detail = Some(reason.clone());
                self.events.push(entry);
                true
            }
            Event::Register { .. }
            | Event::Message { .. }
            | Event::StreamClosed { .. }
            | Event::ProcessExited { .. }
            | Event::Rejected { .. }
            | Event::Rescue { .. }
            | Event::SetAsked { .. }
            | Event::Tick => false,
        }
    }

    /// Takes note of what was decided; true when it is worth being written at once.
    pub(crate) fn on_action(&mut self, time_ms: u64, action: &Action) -> bool {
        let mut entry = Entry { time_ms, phase: self.phase, ..Entry::default() };
        match action {
            Action::Accept { executor, .. } => {
                entry.event = "registered";
                entry.executor = Some(*executor);
                self.events.push(entry);
                false
            }
            Action::Formed(spec) => {
                entry.event = "formed";
                let roles = spec.roles.iter().map(|(role, nodes)| format!("{} {role}", nodes.len()));
                entry.detail = Some(roles.collect::<Vec<_>>().join(", "));
                self.events.push(entry);
                true
            }
            Action::FormFailed { reason } => {
                entry.event = "not_formed";
                entry.detail = Some(reason.clone());
                self.events.push(entry);
                true
            }
            Action::CommitCheckpoint(cut) => {
                self.checkpoint = Some((cut.step, cut.rows_total, time_ms));
                false
            }
            Action::PhaseDone(outcome) => {
                entry.event = "phase_ended";
                entry.step = Some(outcome.global_step.0);
                entry.rows = Some(outcome.rows);
                entry.detail = Some(outcome.end.to_string());
                self.phase = None;
                self.events.push(entry);
                true
            }
            Action::Lost(failure) => {
                entry.event = "lost";
                entry.executor = Some(failure.executor_id);
                entry.detail = Some(failure.cause.to_string());
                self.events.push(entry);
                true
            }
            Action::Fail(failure) => {
                entry.event = "failed";
                entry.executor = Some(failure.executor_id);
                entry.detail = Some(format!("root cause: {failure}"));
                self.events.push(entry);
                true
            }
            Action::Warn(text) => {
                entry.event = "warning";
                entry.detail = Some(text.clone());
                self.checkpoints.push([entry]);
                true
            }
            Action::CheckpointsFail { failures, reason } => {
                entry.event = "failed";
                entry.detail = Some(format!("{failures} checkpoints in a row could not be written: {reason}"));
                self.events.push(entry);
                true
            }
            Action::Reported { from, step, metrics } => {
                let of = |metric: &(String, f64, u64)| Entry {
                    event: METRIC,
                    executor: Some(*from),
                    step: Some(step.0),
                    name: Some(metric.0.clone()),
                    value: Some(metric.1),
                    rows: Some(metric.2),
                    ..entry.clone()
                };
                let evaluator = self.shape.node_of(*from).is_some_and(|n| n.role == Role::Evaluator);
                let list = if evaluator { &mut self.scores } else { &mut self.metrics };
                list.push(metrics.iter().map(of).collect::<Vec<_>>());
                evaluator
            }
            Action::Note(text) | Action::Say(text) => {
                entry.event = "note";
                entry.detail = Some(text.clone());
                self.notes.push([entry]);
                false
            }
            Action::AnswerSet { answer, .. } => {
                entry.event = if answer.error.is_some() { "set_refused" } else { "set" };
                entry.step = answer.global_step;
                let asked = format!("consistency={}", answer.consistency);
                entry.detail = Some(match &answer.error {
                    Some(error) => format!("{asked}: {error}"),
                    None => asked,
                });
                self.notes.push([entry]);
                true
            }
            Action::Refuse { .. }
            | Action::Send { .. }
            | Action::Score { .. }
            | Action::AnswerRescue { .. }
            | Action::StopAll => false,
        }
    }

    /// All of it, in order of time.
    fn batch(&self) -> Option<RecordBatch> {
        let thinned = [&self.checkpoints, &self.notes, &self.scores, &self.metrics];
        let thinned = thinned.into_iter().flat_map(|list| list.entries.iter().map(|(_, entry)| entry));
        let mut entries: Vec<&Entry> = self.events.iter().chain(thinned).collect();
        entries.sort_by_key(|e| e.time_ms);
        let texts = |f: &dyn Fn(&Entry) -> Option<String>| -> ArrayRef {
            Arc::new(entries.iter().map(|e| f(e)).collect::<StringArray>())
        };
        let numbers = |f: &dyn Fn(&Entry) -> Option<u64>| -> ArrayRef {
            Arc::new(entries.iter().map(|e| f(e)).collect::<UInt64Array>())
        };
        let executors: UInt32Array = entries.iter().map(|e| e.executor.map(|id| id.0)).collect();
        let values: Float64Array = entries.iter().map(|e| e.value).collect();
        let node = |e: &Entry| e.executor.and_then(|id| self.shape.node_of(id)).map(|n| n.to_string());
        let columns: Vec<ArrayRef> = vec![
            numbers(&|e| Some(e.time_ms)),
            numbers(&|_| Some(self.generation.0)),
            texts(&|e| Some(e.event.to_owned())),
            texts(&|e| e.phase.map(|p| p.to_string())),
            texts(&node),
            Arc::new(executors),
            numbers(&|e| e.step),
            numbers(&|e| e.rows),
            texts(&|e| e.name.clone()),
            Arc::new(values),
            texts(&|e| e.detail.clone()),
        ];
        // Columns of other lengths or types than the schema's would be a defect of the lines above.
        RecordBatch::try_new(schema(), columns).ok()
    }
}

/// Writes a journal beside the loop, its newest state only, one request at a time.
#[derive(Debug)]
pub(crate) struct Recorder {
    newest: watch::Sender<Option<RecordBatch>>,
    task: tokio::task::JoinHandle<()>,
}

impl Recorder {
    pub(crate) fn start(dir: ModelDir, generation: Generation) -> Self {
        let (newest, receiver) = watch::channel(None);
        Self { newest, task: tokio::spawn(write(dir, generation, receiver)) }
    }

    /// Has the journal written as it is now.
    pub(crate) fn record(&self, journal: &Journal) {
        self.newest.send_replace(journal.batch());
    }

    /// Ends when what was recorded last is written.
    pub(crate) async fn finish(self) {
        drop(self.newest);
        let _ = self.task.await;
    }
}

async fn write(dir: ModelDir, generation: Generation, mut newest: watch::Receiver<Option<RecordBatch>>) {
    let path = Paths::events(generation);
    // A value that nobody has seen comes before the news that the sender is gone.
    while newest.changed().await.is_ok() {
        let Some(batch) = newest.borrow_and_update().clone() else { continue };
        let written = match parquet(&batch) {
            Ok(bytes) => dir.store().put(&dir.path(&path), PutPayload::from(bytes)).await.map(drop),
            Err(e) => Err(object_store::Error::Generic { store: "journal", source: Box::new(e) }),
        };
        // The job does not depend on it, and the next one has what this one had.
        if let Err(e) = written {
            let error = dir.error(format!("`{path}` cannot be written"), e);
            tracing::warn!("{}", tfos_core::failure::chain(&error).join(": "));
        }
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
