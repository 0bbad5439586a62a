//! Runs a node function on a thread of its own for one phase, and keeps what it made until the phase ends:
//! the last checkpoint is taken after the function has returned.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use tfos_core::cluster::{ClusterSpec, NodeId};
use tfos_core::config::Consistency;
use tfos_core::failure::Cause;
use tfos_core::ports::PortRange;
use tfos_core::proto::{self, NodeFailed, NodeFinished, NodeReady, Returned, from_executor::Message};
use tfos_core::rows::encode_ranges;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::context::{NodeContext, PhaseKind};
use super::panics::{self, unpanicked};
use super::results::ResultWriter;
use super::stage;
use crate::Error;
use crate::agent::Heir;
use crate::checkpoint::CheckpointStore;
use crate::control::{Counters, Outgoing, setting};
use crate::engine::Engine;
use crate::feed::{
    DataFeed, Hooks, Leases, Order, Passed, Queue, Scan, batch_bytes, direct_source, feed_source, prefetch,
};
use crate::run::NodeFunction;

/// What a node is started with.
pub(crate) struct HostOptions {
    pub(crate) node: NodeId,
    pub(crate) spec: ClusterSpec,
    pub(crate) num_trainers: u32,
    pub(crate) trainer: u32,
    pub(crate) start: proto::StartPhase,
    pub(crate) devices: Vec<String>,
    pub(crate) feed_memory: u64,
    pub(crate) model_dir: String,
    pub(crate) scratch_dir: String,
    pub(crate) generation: u64,
    #[cfg_attr(not(feature = "torch"), expect(dead_code, reason = "only a model talks to the ps"))]
    pub(crate) token: String,
    pub(crate) listener: Option<TcpListener>,
    pub(crate) function: Arc<dyn NodeFunction>,
    pub(crate) outgoing: Outgoing,
    pub(crate) counters: Arc<Counters>,
    #[cfg_attr(
        not(any(feature = "torch", feature = "ballista")),
        expect(dead_code, reason = "only a model has snapshots, only Ballista folders")
    )]
    pub(crate) heir: Option<Heir>,
    #[cfg_attr(not(feature = "ballista"), expect(dead_code, reason = "only Ballista has ports of its own"))]
    pub(crate) ports: PortRange,
    #[cfg_attr(not(feature = "ballista"), expect(dead_code, reason = "there is none"))]
    pub(crate) engine: Arc<Engine>,
}

/// A node that runs.
pub(crate) struct NodeHost {
    queue: Option<Arc<Queue>>,
    orders: UnboundedSender<Order>,
    scan: Option<tokio::task::JoinHandle<()>>,
    checkpoints: Mutex<Option<Sender<String>>>,
    requests: Sender<Request>,
}

/// What a node's thread is asked for between steps.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Request {
    Snapshot { id: u64 },
    EndPhase,
}

/// Where the thread of a node looks for requests; shared by trainer, feed and host.
pub(crate) struct Requests {
    pub(crate) receiver: Mutex<Receiver<Request>>,
}

/// Whether the job promises equal bits.
pub(crate) fn is_deterministic(start: &proto::StartPhase) -> bool {
    matches!(serde_json::from_str(&start.consistency), Ok(Consistency::Deterministic { .. }))
}

fn kind_of(start: &proto::StartPhase) -> PhaseKind {
    match start.kind.as_str() {
        "inference" => PhaseKind::Inference,
        "evaluate" => PhaseKind::Evaluate,
        _ => PhaseKind::Train,
    }
}

impl NodeHost {
    pub(crate) fn start(mut options: HostOptions) -> Result<Self, Error> {
        if options.start.kind == "stage" {
            let stage::Staging { requests, query } = stage::start(options)?;
            let (orders, _) = unbounded_channel();
            return Ok(Self { queue: None, orders, scan: query, checkpoints: Mutex::new(None), requests });
        }
        let listener = options.listener.take();
        let HostOptions { node, start, outgoing, counters, function, .. } = &options;
        let (phase, kind) = (start.phase, kind_of(start));
        let session = tfos_data::session::session();
        function.register(&session)?;
        let store = CheckpointStore::open(&options.model_dir)?;
        let loading = match start.restore.as_str() {
            "" => None,
            text => Some(setting(text)?),
        };
        let (orders, orders_rx) = unbounded_channel();
        let (requests, requests_rx) = channel();
        let (checkpoints_tx, checkpoints_rx) = channel();
        let requests_rx = Arc::new(Requests { receiver: Mutex::new(requests_rx) });
        let runtime = tokio::runtime::Handle::current();
        let inputs: BTreeMap<String, proto::Input> = start.inputs.iter().map(|i| (i.name.clone(), i.clone())).collect();
        #[cfg(feature = "torch")]
        let torch =
            crate::torch::TorchState::new(&options, kind, store.clone(), Arc::clone(&requests_rx), runtime.clone())?;
        #[cfg(feature = "torch")]
        let hooks: Arc<dyn Hooks> = torch.hooks();
        #[cfg(not(feature = "torch"))]
        let hooks: Arc<dyn Hooks> =
            Arc::new(NoTrainer { phase, outgoing: outgoing.clone(), requests: Arc::clone(&requests_rx) });
        let batch_bytes = batch_bytes(options.feed_memory as usize);
        let mut queue = None;
        let mut feed = None;
        let mut scan = None;
        if let Some(input) = start.inputs.first().filter(|_| node.role.trains()) {
            let source = match input.plan.is_empty() {
                true => direct_source(input, batch_bytes)?,
                false => feed_source(input, session.clone(), batch_bytes)?,
            };
            let source = Scan::new(source, input.row_shuffle());
            let (bound, in_order) = (options.feed_memory as usize, is_deterministic(start));
            let shared =
                Arc::new(if in_order && kind == PhaseKind::Train { Queue::in_order(bound) } else { Queue::new(bound) });
            let leases = Leases { phase, worker: options.trainer, outgoing: outgoing.clone(), orders: orders_rx };
            let (filling, failing) = (Arc::clone(&shared), Arc::clone(&shared));
            scan = Some(tokio::spawn(async move {
                // A panic in a function of the query is told like one in the node's own function.
                if let Err(error) = unpanicked(prefetch(leases, filling, source)).await {
                    failing.fail(error);
                }
            }));
            feed = Some(DataFeed {
                phase,
                trainer: options.trainer,
                inference: kind == PhaseKind::Inference,
                drop_last: false,
                queue: Arc::clone(&shared),
                outstanding: Arc::default(),
                outgoing: outgoing.clone(),
                hooks: Arc::clone(&hooks),
                counters: Arc::clone(counters),
                passed: Passed::new(phase, options.trainer, outgoing.clone(), runtime.clone()),
            });
            queue = Some(shared);
        }
        let results = (kind == PhaseKind::Inference)
            .then(|| {
                let name = format!("g{}-phase{phase}-trainer{}", options.generation, options.trainer);
                ResultWriter::new(&options.scratch_dir, &name, runtime.clone())
            })
            .transpose()?;
        let context = NodeContext {
            node: *node,
            spec: options.spec.clone(),
            num_trainers: options.num_trainers,
            trainer: options.trainer,
            phase,
            kind,
            arguments: start.arguments.clone(),
            seed: start.seed,
            devices: options.devices.clone(),
            feed,
            batch_bytes,
            inputs,
            session,
            store,
            loading,
            results,
            checkpoints: Mutex::new(Some(checkpoints_rx)),
            listener,
            outgoing: outgoing.clone(),
            counters: Arc::clone(counters),
            runtime,
            #[cfg(feature = "torch")]
            torch,
        };
        let (function, outgoing) = (Arc::clone(function), outgoing.clone());
        let name = node.to_string();
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            let failed = run(context, &*function, &outgoing, &requests_rx, &*hooks);
            if let Err(cause) = failed {
                let cause = serde_json::to_string(&cause).unwrap_or_default();
                outgoing.send(Message::NodeFailed(NodeFailed { phase, cause }));
            }
        });
        spawned.map_err(|source| Error::System { what: format!("start a thread for {node}"), source })?;
        Ok(Self { queue, orders, scan, checkpoints: Mutex::new(Some(checkpoints_tx)), requests })
    }

    pub(crate) fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    /// The feed ends: the scan is cancelled, the function gets no more batches.
    pub(crate) fn end_feed(&self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
        if let Some(scan) = &self.scan {
            scan.abort();
        }
    }

    pub(crate) fn take_checkpoint(&self, id: u64) {
        let _ = self.requests.send(Request::Snapshot { id });
    }

    pub(crate) fn checkpoint_committed(&self, manifest: String) {
        let sender = self.checkpoints.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(sender) = sender.as_ref() {
            let _ = sender.send(manifest);
        }
    }

    /// The phase is over: an evaluator ends after the checkpoints that it has heard of.
    pub(crate) fn end_phase(&self) {
        self.end_feed();
        drop(self.checkpoints.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
        let _ = self.requests.send(Request::EndPhase);
    }
}

fn run(
    mut context: NodeContext,
    function: &dyn NodeFunction,
    outgoing: &Outgoing,
    requests: &Requests,
    hooks: &dyn Hooks,
) -> Result<(), Cause> {
    let phase = context.phase;
    outgoing.send(Message::NodeReady(NodeReady { phase, ..Default::default() }));
    let trains = context.node.role.trains();
    #[cfg(feature = "torch")]
    context.torch.begin_thread().map_err(|e| e.cause())?;
    panics::remember();
    let result = catch_unwind(AssertUnwindSafe(|| {
        function.run(&mut context)?;
        context.flush_results()?;
        if let Some(feed) = &context.feed {
            feed.passed.tell();
        }
        #[cfg(feature = "torch")]
        context.finish_training()?;
        Ok::<(), Error>(())
    }));
    match result {
        Err(payload) => return Err(Cause::Panic { message: panics::message(&*payload) }),
        Ok(Err(error)) => {
            tracing::error!("{error:?}");
            return Err(error.cause());
        }
        Ok(Ok(())) => {}
    }
    if trains {
        report_memory(&context, outgoing);
        give_back(&context, outgoing);
        outgoing.send(Message::NodeFinished(NodeFinished { phase }));
    }
    // The model stays until the driver has what it wants of it.
    loop {
        let next = requests.receiver.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        match next {
            Ok(Request::Snapshot { id }) => snapshot(hooks, id)?,
            Ok(Request::EndPhase) | Err(_) => break,
        }
    }
    drop(context);
    outgoing.send(Message::NodeFinished(NodeFinished { phase }));
    Ok(())
}

fn snapshot(hooks: &dyn Hooks, id: u64) -> Result<(), Cause> {
    hooks.snapshot(id).map_err(|e| e.cause())
}

/// What the feed held at most, for the node's log and the job's summary.
fn report_memory(context: &NodeContext, outgoing: &Outgoing) {
    let Some(feed) = &context.feed else { return };
    let (bound, peak) = feed.queue.peak();
    let (each, resident) = (peak.of_each, crate::memory::resident_peak());
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    tracing::info!(
        "feed memory: at most {:.1} MiB of {:.1} MiB at a time (queue {:.1}, scan {:.1}, batch {:.1}); the process had {:.1} MiB",
        mib(peak.together),
        mib(bound),
        mib(each.queue),
        mib(each.scan),
        mib(each.batch),
        mib(resident as usize),
    );
    outgoing.send(Message::FeedMemory(proto::FeedMemory {
        phase: context.phase,
        bound: bound as u64,
        queue: each.queue as u64,
        scan: each.scan as u64,
        batch: each.batch as u64,
        together: peak.together as u64,
        resident,
    }));
}

/// Rows that were leased to this node and have seen no step go back to the driver.
fn give_back(context: &NodeContext, outgoing: &Outgoing) {
    let Some(feed) = &context.feed else { return };
    let mut ranges =
        std::mem::take(&mut feed.outstanding.lock().unwrap_or_else(std::sync::PoisonError::into_inner).ranges);
    ranges.extend(feed.queue.abandon());
    if !ranges.is_empty() {
        let mut bytes = vec![];
        encode_ranges(&ranges, &mut bytes);
        outgoing.send(Message::Returned(Returned {
            phase: context.phase,
            worker: context.trainer,
            ranges: bytes.into(),
        }));
    }
}

/// Without libtorch there is no model: a checkpoint request is answered with nothing.
#[cfg(not(feature = "torch"))]
struct NoTrainer {
    phase: u32,
    outgoing: Outgoing,
    requests: Arc<Requests>,
}

#[cfg(not(feature = "torch"))]
impl Hooks for NoTrainer {
    fn waiting(&self) -> Result<(), Error> {
        let next = self.requests.receiver.lock().unwrap_or_else(std::sync::PoisonError::into_inner).try_recv();
        if let Ok(Request::Snapshot { id }) = next {
            self.snapshot(id)?;
        }
        Ok(())
    }

    fn idle(&self) -> Result<(), Error> {
        Ok(())
    }

    fn active(&self) -> Result<(), Error> {
        Ok(())
    }

    fn snapshot(&self, id: u64) -> Result<(), Error> {
        let phase = self.phase;
        self.outgoing.send(Message::SnapshotAt(proto::SnapshotAt { phase, id, global_step: 0 }));
        self.outgoing.send(Message::PartWritten(proto::PartWritten { phase, id, ..Default::default() }));
        Ok(())
    }

    fn begin(&self, _micro_batch: tfos_core::rows::MicroBatch) -> Result<crate::feed::Begun, Error> {
        Ok(crate::feed::Begun::Yes)
    }
}
