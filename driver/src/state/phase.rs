//! One run of node functions over one feed: leases out, commits in, checkpoints at consistent cuts, and the
//! end in a fixed order: rows, trainers, last checkpoint, everybody else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tfos_core::checkpoint::is_due;
use tfos_core::cluster::{Role, Shape};
use tfos_core::failure::Cause;
use tfos_core::ids::{ExecutorId, GlobalStep};
use tfos_core::proto::{self, from_driver::Message as Order};
use tfos_core::rows::{Grant, LeaseTable, RowRange, decode_ranges};

use super::Options;
use super::snapshot::{Failures, Snapshot};
use super::spec::{FeedMemory, MetricMean, PhaseEnd, PhaseKind, PhaseOutcome, PhaseSpec};
use crate::event::{Action, CommitRecord};
use crate::status::Status;

/// Where the end of the phase stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// Every trainer has acknowledged; the last checkpoint is due.
    LastCheckpoint,
    /// `EndPhase` is out.
    Acknowledging,
}

#[derive(Debug)]
pub(super) struct Phase {
    pub(super) id: u32,
    pub(super) spec: PhaseSpec,
    pub(super) shape: Shape,
    pub(super) table: LeaseTable,
    /// Executors of the trainers, in the order of their trainer numbers: the chief is 0.
    pub(super) trainers: Vec<ExecutorId>,
    pub(super) participants: BTreeSet<ExecutorId>,
    ready: BTreeSet<ExecutorId>,
    /// Trainers whose node function returned.
    pub(super) returned: BTreeSet<ExecutorId>,
    /// Nodes that acknowledged the end of the phase.
    ended: BTreeSet<ExecutorId>,
    waiting: BTreeMap<u32, u64>,
    end: Option<PhaseEnd>,
    ending: Ending,
    pub(super) step: GlobalStep,
    pub(super) rows: u64,
    loss: Option<f64>,
    dropped: u64,
    passed_over: u64,
    memory: FeedMemory,
    largest_staleness: u64,
    /// Settings that were sent and not answered.
    pub(super) sets: BTreeMap<u64, String>,
    pub(super) commits: Vec<CommitRecord>,
    pub(super) next_snapshot: u64,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) last_checkpoint: (GlobalStep, Instant),
    pub(super) failures: Failures,
    /// Failures in a row at which the job stops.
    pub(super) failure_limit: u32,
    /// A checkpoint was stored since the end began.
    pub(super) saved: bool,
    metrics: BTreeMap<String, (u64, MetricMean)>,
    results: Vec<proto::Result>,
    staged: Vec<proto::StagedFile>,
    /// Partitions of a staged query that are written whole.
    whole: BTreeSet<u32>,
    /// Layout and optimizer, JSON, from the chief.
    pub(super) model: (String, String),
}

impl Phase {
    pub(super) fn new(now: Instant, id: u32, spec: PhaseSpec, options: &Options) -> Self {
        let shape = options.shape;
        let table = LeaseTable::new(spec.epochs, spec.partition_rows.clone(), &spec.committed, spec.shuffle);
        let table = match spec.micro_batches {
            Some(n) => table.in_steps_of(n, spec.committed.cut.map(|cut| cut.rows), spec.restored_step),
            None => table,
        };
        let nodes = shape.nodes();
        let with = |wanted: &dyn Fn(Role) -> bool| -> Vec<ExecutorId> {
            let of = |(i, n): (usize, &tfos_core::cluster::NodeId)| wanted(n.role).then_some(ExecutorId(i as u32));
            nodes.iter().enumerate().filter_map(of).collect()
        };
        // The chief comes before the workers in role order, so trainer 0 is the chief.
        let trainers = with(&|role| role.trains());
        let participants = match spec.kind {
            PhaseKind::Train => with(&|_| true),
            PhaseKind::Inference | PhaseKind::Evaluate | PhaseKind::Stage => trainers.clone(),
        };
        Self {
            id,
            shape,
            table,
            trainers,
            participants: participants.into_iter().collect(),
            ready: BTreeSet::new(),
            returned: BTreeSet::new(),
            ended: BTreeSet::new(),
            waiting: BTreeMap::new(),
            end: None,
            ending: Ending::No,
            step: spec.restored_step,
            rows: 0,
            loss: None,
            dropped: 0,
            passed_over: 0,
            memory: FeedMemory::default(),
            largest_staleness: 0,
            sets: BTreeMap::new(),
            commits: vec![],
            next_snapshot: 1,
            snapshot: None,
            last_checkpoint: (spec.restored_step, now),
            failures: Failures::default(),
            failure_limit: options.checkpoint_failure_limit,
            saved: false,
            metrics: BTreeMap::new(),
            results: vec![],
            staged: vec![],
            whole: BTreeSet::new(),
            model: Default::default(),
            spec,
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn start(&mut self, out: &mut Vec<Action>) {
        let mut start = self.spec.start.clone();
        start.phase = self.id;
        for executor in &self.participants {
            out.push(Action::Send { executor: *executor, message: Order::StartPhase(start.clone()) });
        }
        self.end_if_complete(out);
    }

    pub(super) fn fill(&self, status: &mut Status) {
        status.global_step = self.step.0;
        status.rows = self.rows;
        status.rows_total = self.table.rows_per_epoch().map(|n| n * u64::from(self.spec.epochs));
        status.epochs = self.spec.epochs;
        status.epochs_done = self.table.complete_epochs();
        status.loss = self.loss;
        status.dropped = self.dropped;
        status.staged_partitions = self.spec.staged_partitions.map(|all| (self.whole.len() as u32, all));
        let starting = self.participants.len() - self.ready.len();
        status.waiting_for = match self.ending {
            Ending::No if starting > 0 => Some(format!("{starting} node(s) to start")),
            Ending::No => None,
            Ending::LastCheckpoint => Some(match &self.failures.reason {
                Some(reason) => format!("the last checkpoint, which could not be written: {reason}"),
                None => "the last checkpoint".into(),
            }),
            Ending::Acknowledging => Some("nodes to finish".into()),
        };
    }

    fn trainer(&self, executor: ExecutorId) -> Option<u32> {
        self.trainers.iter().position(|e| *e == executor).map(|i| i as u32)
    }

    fn to_trainer(&self, trainer: u32, message: Order) -> Option<Action> {
        self.trainers.get(trainer as usize).map(|executor| Action::Send { executor: *executor, message })
    }

    pub(super) fn node_ready(&mut self, executor: ExecutorId, layout: String, optimizer: String) -> Result<(), Cause> {
        self.ready.insert(executor);
        if !layout.is_empty() {
            self.model = (layout, optimizer);
        }
        Ok(())
    }

    pub(super) fn lease_request(
        &mut self,
        executor: ExecutorId,
        want: u64,
        out: &mut Vec<Action>,
    ) -> Result<(), Cause> {
        let Some(trainer) = self.trainer(executor) else { return Ok(()) };
        if self.end.is_some() {
            out.extend(self.to_trainer(trainer, Order::EndOfFeed(proto::EndOfFeed { phase: self.id })));
            return Ok(());
        }
        if !self.grant(trainer, want, out)? {
            self.waiting.insert(trainer, want);
            out.extend(self.to_trainer(trainer, Order::NoRowsNow(proto::NoRowsNow { phase: self.id })));
        }
        Ok(())
    }

    /// True when the trainer got rows or the end.
    fn grant(&mut self, trainer: u32, want: u64, out: &mut Vec<Action>) -> Result<bool, Cause> {
        let (range, micro_batch) = match self.table.grant(trainer, want, self.trainers.len() as u32) {
            Grant::Rows(range) => (range, None),
            Grant::MicroBatch(range, place) => (range, Some(place)),
            Grant::Wait => return Ok(false),
            Grant::End => {
                self.end_feed(PhaseEnd::Complete, out);
                return Ok(true);
            }
            Grant::Misfit(misfit) => return Err(Cause::Error { chain: vec![misfit.to_string()], user: true }),
        };
        let RowRange { epoch, partition, start, end } = range;
        let micro_batch = micro_batch.map(|m| proto::MicroBatch { step: m.step.0, index: m.index, of: m.of });
        let range = Some(proto::Range { epoch, partition, start, end });
        let rows = proto::Rows { phase: self.id, range, micro_batch };
        out.extend(self.to_trainer(trainer, Order::Rows(rows)));
        Ok(true)
    }

    /// Rows may have returned, or the last one may be committed: ask again for those who wait.
    fn serve_waiting(&mut self, out: &mut Vec<Action>) -> Result<(), Cause> {
        if self.end.is_some() {
            return Ok(());
        }
        self.end_if_complete(out);
        for (trainer, want) in std::mem::take(&mut self.waiting) {
            if self.end.is_none() && !self.grant(trainer, want, out)? {
                self.waiting.insert(trainer, want);
            }
        }
        Ok(())
    }

    fn end_if_complete(&mut self, out: &mut Vec<Action>) {
        if self.table.done() {
            self.end_feed(PhaseEnd::Complete, out);
        } else if self.spec.max_steps.is_some_and(|max| self.step.0 >= max) {
            self.end_feed(PhaseEnd::MaxSteps, out);
        }
    }

    fn end_feed(&mut self, end: PhaseEnd, out: &mut Vec<Action>) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(end);
        self.waiting.clear();
        for trainer in 0..self.trainers.len() as u32 {
            out.extend(self.to_trainer(trainer, Order::EndOfFeed(proto::EndOfFeed { phase: self.id })));
        }
    }

    pub(super) fn drain(&mut self, out: &mut Vec<Action>) {
        self.end_feed(PhaseEnd::Drained, out);
    }

    pub(super) fn terminate(&mut self, out: &mut Vec<Action>) -> Result<(), Cause> {
        self.end_feed(PhaseEnd::Terminated, out);
        Ok(())
    }

    pub(super) fn partition_end(&mut self, partition: u32, rows: u64, out: &mut Vec<Action>) -> Result<(), Cause> {
        self.table.partition_end(partition, rows);
        self.serve_waiting(out)
    }

    pub(super) fn commits(
        &mut self,
        now: Instant,
        commits: Vec<proto::Commit>,
        out: &mut Vec<Action>,
    ) -> Result<(), Cause> {
        for commit in commits {
            let ranges = decode(&commit.ranges)?;
            for range in &ranges {
                self.table.commit(commit.worker, *range).map_err(|e| internal(e.to_string()))?;
            }
            self.step = self.step.max(GlobalStep(commit.global_step));
            self.largest_staleness = self.largest_staleness.max(commit.staleness);
            let rows = ranges.iter().map(RowRange::rows).sum::<u64>();
            self.rows += rows;
            if commit.loss.is_finite() {
                self.loss = Some(self.loss.map_or(commit.loss, |l| 0.95 * l + 0.05 * commit.loss));
            } else {
                // An update with such a loss is refused where it is computed: these rows had none.
                self.passed_over += rows;
            }
            if self.spec.kind == PhaseKind::Train {
                let proto::Commit { global_step, worker, loss, .. } = commit;
                self.commits.push(CommitRecord { global_step, worker, loss, ranges, at: now });
            }
        }
        self.serve_waiting(out)
    }

    pub(super) fn returned(
        &mut self,
        from: ExecutorId,
        worker: u32,
        ranges: &[u8],
        out: &mut Vec<Action>,
    ) -> Result<(), Cause> {
        let ranges = decode(ranges)?;
        // From a ps they are those of a stale gradient; from a trainer, what it leaves behind.
        self.dropped += u64::from(self.trainer(from).is_none() && !ranges.is_empty());
        for range in ranges {
            self.table.give_back(worker, range).map_err(|e| internal(e.to_string()))?;
        }
        self.serve_waiting(out)
    }

    pub(super) fn node_finished(&mut self, executor: ExecutorId, out: &mut Vec<Action>) -> Result<(), Cause> {
        let trainer = self.trainer(executor);
        if self.ending == Ending::Acknowledging {
            self.ended.insert(executor);
        } else if let Some(trainer) = trainer {
            self.waiting.remove(&trainer);
            self.returned.insert(executor);
            if self.returned.len() == self.trainers.len() && self.end.is_none() {
                self.end = Some(PhaseEnd::Returned);
            }
            self.serve_waiting(out)?;
        }
        Ok(())
    }

    pub(super) fn metrics(
        &mut self,
        from: ExecutorId,
        message: proto::Metrics,
        out: &mut Vec<Action>,
    ) -> Result<(), Cause> {
        let evaluator = self.shape.node_of(from).is_some_and(|n| n.role == Role::Evaluator);
        if evaluator && self.spec.kind == PhaseKind::Train {
            let scores = message.metrics.iter().map(|m| (m.name.clone(), m.value)).collect();
            out.push(Action::Score { step: GlobalStep(message.global_step), scores });
        }
        let metrics = message.metrics.iter().map(|m| (m.name.clone(), m.value, m.rows)).collect();
        out.push(Action::Reported { from, step: GlobalStep(message.global_step), metrics });
        for metric in message.metrics {
            let (step, mean) = self.metrics.entry(metric.name).or_default();
            if message.global_step > *step {
                (*step, *mean) = (message.global_step, MetricMean::default());
            }
            if message.global_step == *step {
                mean.sum += metric.value * metric.rows as f64;
                mean.rows += metric.rows;
            }
        }
        Ok(())
    }

    pub(super) fn feed_memory(&mut self, of_node: &proto::FeedMemory) -> Result<(), Cause> {
        self.memory.note(of_node);
        Ok(())
    }

    pub(super) fn results(&mut self, results: Vec<proto::Result>) -> Result<(), Cause> {
        self.results.extend(results);
        Ok(())
    }

    /// STG-2: files count when their partition is whole, and of each partition those of one attempt alone.
    pub(super) fn staged(
        &mut self,
        files: Vec<proto::StagedFile>,
        whole: Option<u32>,
        out: &mut Vec<Action>,
    ) -> Result<(), Cause> {
        self.rows += files.iter().map(|f| f.rows).sum::<u64>();
        self.staged.extend(files);
        let Some(partition) = whole else { return Ok(()) };
        if !self.whole.insert(partition) {
            let twice = format!("partition {partition} of the query was written twice");
            return Err(Cause::Error { chain: vec![twice, "submit again to stage it anew".into()], user: false });
        }
        if self.spec.staged_partitions.is_some_and(|all| self.whole.len() as u64 == u64::from(all)) {
            self.end_feed(PhaseEnd::Complete, out);
        }
        Ok(())
    }

    /// Whatever became due: a checkpoint, its manifest, or the next step of the end.
    pub(super) fn advance(&mut self, now: Instant, options: &Options, out: &mut Vec<Action>) {
        self.commit_snapshot(now, out);
        let training = self.spec.kind == PhaseKind::Train;
        let may_try = self.snapshot.is_none() && self.failures.may_try(now);
        if training && may_try && self.ending == Ending::No {
            let (last, at) = self.last_checkpoint;
            if self.returned.is_empty()
                && is_due(self.step, last, now.duration_since(at), options.save_steps, options.save_every)
            {
                self.request_snapshot(out);
            }
        }
        if self.ending == Ending::No && self.returned.len() == self.trainers.len() && self.snapshot.is_none() {
            self.ending = Ending::LastCheckpoint;
            self.saved = false;
        }
        // Asked for even when nothing seems new: commits of ps 0 may still be under way, and its
        // answer comes behind them.
        if training && self.ending == Ending::LastCheckpoint && !self.saved {
            if self.snapshot.is_none() && self.failures.may_try(now) {
                self.request_snapshot(out);
            }
        } else if self.ending == Ending::LastCheckpoint && self.snapshot.is_none() {
            self.ending = Ending::Acknowledging;
            for executor in &self.participants {
                let order = Order::EndPhase(proto::EndPhase { phase: self.id });
                out.push(Action::Send { executor: *executor, message: order });
            }
        }
    }

    pub(super) fn outcome(&self) -> Option<PhaseOutcome> {
        if self.ending != Ending::Acknowledging || self.ended.len() < self.participants.len() {
            return None;
        }
        Some(PhaseOutcome {
            end: self.end.unwrap_or(PhaseEnd::Returned),
            global_step: self.step,
            rows: self.rows,
            rows_total: self.spec.rows_before + self.rows,
            epochs: self.table.complete_epochs(),
            loss: self.loss,
            metrics: self.metrics.iter().map(|(name, (_, mean))| (name.clone(), *mean)).collect(),
            results: self.results.clone(),
            staged: self.staged.clone(),
            dropped: self.dropped,
            passed_over: self.passed_over,
            memory: self.memory,
            largest_staleness: self.largest_staleness,
        })
    }
}

fn decode(bytes: &[u8]) -> Result<Vec<RowRange>, Cause> {
    decode_ranges(bytes).ok_or_else(|| internal("a message carries row ranges that cannot be read".into()))
}

/// A defect of the program, not of its input.
fn internal(message: String) -> Cause {
    Cause::Error { chain: vec![message, "this is a defect of tfos".into()], user: false }
}
