//! What a training function receives: who it is, its feed, and (with libtorch) its model and its steps.

use std::collections::BTreeMap;
use std::fmt;
use std::net::TcpListener;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use tfos_core::checkpoint::Loading;
use tfos_core::cluster::{ClusterSpec, NodeId};
use tfos_core::proto::{self, Input, Metric, Metrics, Results, from_executor::Message};
use tfos_data::SessionContext;
use tfos_data::arrow::array::ArrayRef;

use super::results::ResultWriter;
use crate::Error;
use crate::checkpoint::CheckpointStore;
use crate::control::{Counters, Outgoing};
use crate::feed::{Batch, DataFeed, feed_source};

/// What the function is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseKind {
    /// Compute updates.
    Train,
    /// One result per row.
    Inference,
    /// Means of metrics.
    Evaluate,
}

/// Committed checkpoints as an evaluator hears of them: path of the manifest.
pub type Checkpoints = Receiver<String>;

/// Everything a training function may ask for.
pub struct NodeContext {
    pub(crate) node: NodeId,
    pub(crate) spec: ClusterSpec,
    pub(crate) num_trainers: u32,
    pub(crate) trainer: u32,
    pub(crate) phase: u32,
    pub(crate) kind: PhaseKind,
    pub(crate) arguments: String,
    pub(crate) seed: u64,
    pub(crate) devices: Vec<String>,
    pub(crate) feed: Option<DataFeed>,
    /// What a batch of a scan should have at most.
    pub(crate) batch_bytes: usize,
    pub(crate) inputs: BTreeMap<String, Input>,
    pub(crate) session: SessionContext,
    pub(crate) store: CheckpointStore,
    #[cfg_attr(not(feature = "torch"), expect(dead_code, reason = "only a model is restored"))]
    pub(crate) loading: Option<Loading>,
    pub(crate) results: Option<ResultWriter>,
    pub(crate) checkpoints: Mutex<Option<Checkpoints>>,
    pub(crate) listener: Option<TcpListener>,
    pub(crate) outgoing: Outgoing,
    pub(crate) counters: Arc<Counters>,
    pub(crate) runtime: tokio::runtime::Handle,
    #[cfg(feature = "torch")]
    pub(crate) torch: crate::torch::TorchState,
}

impl fmt::Debug for NodeContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeContext").field("node", &self.node).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl NodeContext {
    /// Role and index of this node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Addresses of every node, by role.
    pub fn cluster_spec(&self) -> &ClusterSpec {
        &self.spec
    }

    /// Chief and workers.
    pub fn num_workers(&self) -> u32 {
        self.num_trainers
    }

    /// Rank among chief and workers: the chief is 0.
    pub fn worker_num(&self) -> u32 {
        self.trainer
    }

    /// What the function is called for.
    pub fn kind(&self) -> PhaseKind {
        self.kind
    }

    /// The arguments that the application gave, JSON.
    pub fn arguments(&self) -> &str {
        &self.arguments
    }

    /// Seed of everything random in this job.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// GPUs that this node holds, as they stand in `CUDA_VISIBLE_DEVICES`.
    pub fn devices(&self) -> &[String] {
        &self.devices
    }

    /// The listener of this node's reserved port, which was bound before the cluster formed and is handed
    /// over, never released and taken again. `None` the second time, and on a ps, which serves on it.
    pub fn take_listener(&mut self) -> Option<TcpListener> {
        self.listener.take()
    }

    /// The feed of this node.
    pub fn data_feed(&self) -> Result<DataFeed, Error> {
        self.feed.clone().ok_or_else(|| Error::Usage {
            what: format!("{} has no feed", self.node),
            try_this: "read a named input with input_batches".into(),
        })
    }

    /// Updates that the parameters here have seen.
    pub fn global_step(&self) -> u64 {
        self.counters.step()
    }

    /// All rows of a named input (such as `eval`), in plan order, in batches of up to `rows`.
    pub fn input_batches(&self, name: &str, rows: usize) -> Result<impl Iterator<Item = Result<Batch, Error>>, Error> {
        let input = self.inputs.get(name).ok_or_else(|| Error::Usage {
            what: format!("there is no input `{name}`"),
            try_this: format!("the job has {:?}", self.inputs.keys().collect::<Vec<_>>()),
        })?;
        let source = feed_source(input, self.session.clone(), self.batch_bytes)?;
        let (sender, receiver) = std::sync::mpsc::sync_channel(4);
        let failed = sender.clone();
        let scan = async move {
            for partition in 0..source.partitions() as u32 {
                let mut stream = match source.open(partition).await {
                    Ok(stream) => stream,
                    Err(e) => return drop(sender.send(Err(e))),
                };
                while let Some(batch) = stream.next().await {
                    let batch = match batch {
                        Ok(batch) => batch,
                        Err(e) => return drop(sender.send(Err(Error::from(e)))),
                    };
                    for start in (0..batch.num_rows()).step_by(rows.max(1)) {
                        let piece = batch.slice(start, rows.max(1).min(batch.num_rows() - start));
                        let (sender, item) = (sender.clone(), Ok(Batch::from_record_batch(piece)));
                        // The channel is small, and its other end is the node's thread.
                        if tokio::task::spawn_blocking(move || sender.send(item).is_ok()).await.ok() != Some(true) {
                            return;
                        }
                    }
                }
            }
        };
        self.runtime.spawn(async move {
            if let Err(error) = super::panics::unpanicked(scan).await {
                drop(failed.send(Err(error)));
            }
        });
        Ok(receiver.into_iter())
    }

    /// Waits for the next committed checkpoint; `None` when training is over. Only the newest counts: those
    /// that were committed while the one before was scored are passed over, except the last of all.
    pub fn next_checkpoint(&self) -> Option<String> {
        let guard = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = guard.as_ref()?;
        let first = receiver.recv().ok()?;
        Some(receiver.try_iter().last().unwrap_or(first))
    }

    /// A file that the driver gave to the model with `Cluster::add_asset`.
    pub fn asset(&self, name: &str) -> Result<bytes::Bytes, Error> {
        self.runtime.block_on(self.store.asset(name))
    }

    /// Reports means over `rows` rows; the job's summary has the mean over all reports of the newest step.
    pub fn report_metrics(&self, metrics: &[(&str, f64)], rows: u64) {
        let metric = |(name, value): &(&str, f64)| Metric { name: (*name).to_owned(), value: *value, rows };
        self.outgoing.send(Message::Metrics(Metrics {
            phase: self.phase,
            global_step: self.counters.step(),
            metrics: metrics.iter().map(metric).collect(),
        }));
    }

    /// Results of inference for the batch that the feed gave last: named columns with exactly one value per
    /// row, in the order of its rows. They join the batch's own columns.
    pub fn batch_results(&mut self, columns: &[(&str, ArrayRef)]) -> Result<(), Error> {
        let feed = self.data_feed()?;
        let mut out = feed.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(writer), Some(batch)) = (self.results.as_mut(), out.batch.clone()) else {
            return Err(Error::Usage {
                what: "there is no batch of an inference to give results for".into(),
                try_this: "call it once after each next_batch, in inference".into(),
            });
        };
        let rows = batch.rows();
        if let Some((column, array)) = columns.iter().find(|(_, array)| array.len() != rows) {
            return Err(Error::ResultCount { column: (*column).to_owned(), results: array.len(), rows });
        }
        let mut at = 0;
        let mut durable = vec![];
        for (piece, range) in batch.pieces().iter().zip(batch.ranges()) {
            let count = piece.num_rows();
            let part: Vec<(String, ArrayRef)> =
                columns.iter().map(|(name, array)| ((*name).to_owned(), array.slice(at, count))).collect();
            durable.extend(writer.add(*range, piece, &part)?);
            at += count;
        }
        out.answered = true;
        out.batch = None;
        self.send_results(durable);
        Ok(())
    }

    fn send_results(&self, results: Vec<proto::Result>) {
        if !results.is_empty() {
            self.outgoing.send(Message::Results(Results { phase: self.phase, results }));
        }
    }

    /// Makes the last results durable.
    pub(crate) fn flush_results(&mut self) -> Result<(), Error> {
        let durable = self.results.as_mut().map_or(Ok(vec![]), ResultWriter::flush)?;
        self.send_results(durable);
        Ok(())
    }
}
