//! The executor's loop: registers with its listener already bound, then does what the driver says until the
//! stream ends. When that happens the process is to exit at once, whatever its node is doing.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tfos_core::cluster::{ClusterSpec, NodeId, Role};
use tfos_core::failure::Cause;
use tfos_core::ids::GlobalStep;
use tfos_core::ports::PortRange;
use tfos_core::proto::{
    ClusterFormed, Heartbeat, NodeFailed, NodeFinished, NodeReady, PROTOCOL_VERSION, Register, StartPhase, from_driver,
    from_executor::Message,
};
use tfos_core::rows::{MicroBatch, RowRange};
use tfos_data::SessionContext;
use tfos_ps::ServerOptions;
use tokio::sync::mpsc::unbounded_channel;

use crate::Error;
use crate::agent::{Agent, Heir, Task};
use crate::checkpoint::CheckpointStore;
use crate::client;
use crate::control::{Counters, Outgoing, setting};
use crate::devices::Leases;
use crate::engine::Engine;
use crate::feed::Order;
use crate::node::{HostOptions, NodeContext, NodeHost, PsHost};

/// What an application runs in its executors.
pub trait NodeFunction: Send + Sync {
    /// The body of a chief, worker or evaluator, called once per phase on a thread of its own.
    fn run(&self, context: &mut NodeContext) -> Result<(), Error>;

    /// Registers the functions that the application's queries use, here as on the driver.
    fn register(&self, _session: &SessionContext) -> Result<(), Error> {
        Ok(())
    }
}

/// How an executor is started.
#[derive(Debug)]
pub struct ExecutorOptions {
    /// URL of the driver.
    pub driver: String,
    /// The job's token.
    pub token: String,
    /// Place in the cluster; `None` takes any.
    pub executor_id: Option<u32>,
    /// n-th try of that place.
    pub attempt: u32,
    /// Address to bind.
    pub bind: String,
    /// Host under which others reach it; `None`: the bound address, or where the driver sees it call from.
    pub advertise: Option<String>,
    /// Ports to bind.
    pub ports: PortRange,
    /// GPUs that this process holds.
    pub gpus: Leases,
    /// Where its log is.
    pub log: String,
    /// How long to try to reach the driver.
    pub connect_timeout: Duration,
    /// The program's version.
    pub version: String,
    /// Writes the snapshot of this process if that dies.
    pub agent: Option<Arc<Agent>>,
}

/// Finds the function of an application by the name that the driver sent.
pub type Registry = dyn Fn(&str) -> Option<Arc<dyn NodeFunction>> + Send + Sync;

struct Executor {
    options: ExecutorOptions,
    listener: TcpListener,
    outgoing: Outgoing,
    counters: Arc<Counters>,
    generation: u64,
    /// As the driver counts it.
    executor: u32,
    cluster: Option<(ClusterFormed, NodeId, ClusterSpec)>,
    phase: u32,
    node: Option<NodeHost>,
    ps: Option<PsHost>,
    engine: Arc<Engine>,
}

/// Runs until the driver says stop or is gone. The caller ends the process with the result, without waiting
/// for threads of the node.
pub async fn run(options: ExecutorOptions, registry: Arc<Registry>) -> Result<(), Error> {
    let listener = options.ports.bind(&options.bind)?;
    let address = advertised(&options, &listener)?;
    let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_else(|| "?".into());
    let (sender, receiver) = unbounded_channel();
    let outgoing = Outgoing(sender);
    outgoing.send(Message::Register(Register {
        protocol_version: PROTOCOL_VERSION,
        version: options.version.clone(),
        executor_id: options.executor_id,
        attempt: options.attempt,
        host,
        address,
        devices: options.gpus.visible().to_vec(),
        pid: std::process::id(),
        log: options.log.clone(),
    }));
    let mut orders = client::open(&options, receiver).await?;
    let mut executor = Executor {
        options,
        listener,
        outgoing,
        counters: Arc::default(),
        generation: 0,
        executor: 0,
        cluster: None,
        phase: 0,
        node: None,
        ps: None,
        engine: Arc::default(),
    };
    loop {
        match orders.next().await {
            Ok(Some(from_driver::Message::Stop(stop))) => {
                tracing::info!("stopping: {}", stop.reason);
                return Ok(());
            }
            Ok(Some(message)) => executor.handle(message, &registry),
            Ok(None) if executor.cluster.is_some() => {
                tracing::warn!("the driver ended the control stream");
                return Ok(());
            }
            Ok(None) => return Err(Error::Refused { reason: "the driver ended the control stream".into() }),
            Err(error) => return Err(error),
        }
    }
}

fn advertised(options: &ExecutorOptions, listener: &TcpListener) -> Result<String, Error> {
    let bound =
        listener.local_addr().map_err(|source| Error::System { what: "read the bound address".into(), source })?;
    Ok(match &options.advertise {
        Some(host) => format!("{host}:{}", bound.port()),
        None if bound.ip().is_unspecified() => format!(":{}", bound.port()),
        None => bound.to_string(),
    })
}

impl Executor {
    fn handle(&mut self, message: from_driver::Message, registry: &Arc<Registry>) {
        use from_driver::Message as Order_;
        match message {
            Order_::Welcome(welcome) => {
                (self.generation, self.executor) = (welcome.generation, welcome.executor_id);
                self.beat(Duration::from_millis(welcome.heartbeat_ms.max(10)));
            }
            Order_::ClusterFormed(formed) => {
                let node = serde_json::from_str(&formed.node);
                let spec = serde_json::from_str(&formed.spec);
                match (node, spec) {
                    (Ok(node), Ok(spec)) => {
                        let node: NodeId = node;
                        tracing::info!("this is {node}; the cluster is {}", formed.spec);
                        self.cluster = Some((formed, node, spec));
                    }
                    (Err(e), _) | (_, Err(e)) => self.fail(&Error::Other(Box::new(e))),
                }
            }
            Order_::StartPhase(start) => {
                self.phase = start.phase;
                if let Err(e) = self.start(start, registry) {
                    self.fail(&e);
                }
            }
            Order_::Rows(rows) if rows.phase == self.phase => {
                if let (Some(node), Some(r)) = (&self.node, rows.range) {
                    let (epoch, partition, start, end) = (r.epoch, r.partition, r.start, r.end);
                    let place = |m: tfos_core::proto::MicroBatch| MicroBatch {
                        step: GlobalStep(m.step),
                        index: m.index,
                        of: m.of,
                    };
                    let range = RowRange { epoch, partition, start, end };
                    node.order(Order::Rows(range, rows.micro_batch.map(place)));
                }
            }
            Order_::NoRowsNow(order) if order.phase == self.phase => {
                if let Some(node) = &self.node {
                    node.order(Order::NoRowsNow);
                }
            }
            Order_::EndOfFeed(order) if order.phase == self.phase => {
                if let Some(node) = &self.node {
                    node.end_feed();
                }
            }
            Order_::TakeCheckpoint(order) if order.phase == self.phase => {
                if let Some(ps) = &self.ps {
                    if let Err(e) = ps.take_checkpoint(order.id) {
                        self.fail(&e);
                    }
                } else if let Some(node) = &self.node {
                    node.take_checkpoint(order.id);
                }
            }
            Order_::SetConsistency(order) if order.phase == self.phase => {
                if let Some(ps) = &self.ps
                    && let Err(e) = ps.set(&order)
                {
                    self.fail(&e);
                }
            }
            Order_::CheckpointCommitted(committed) => {
                if let Some(node) = &self.node {
                    node.checkpoint_committed(committed.manifest);
                }
            }
            Order_::EndPhase(order) if order.phase == self.phase => self.end_phase(),
            // Orders of a phase that is over, and answers that need no action.
            Order_::Rows(_)
            | Order_::NoRowsNow(_)
            | Order_::EndOfFeed(_)
            | Order_::TakeCheckpoint(_)
            | Order_::EndPhase(_)
            | Order_::SetConsistency(_)
            | Order_::HeartbeatAck(_)
            | Order_::Stop(_) => {}
        }
    }

    fn fail(&self, error: &Error) {
        tracing::error!("{error:?}");
        let cause: Cause = error.cause();
        let cause = serde_json::to_string(&cause).unwrap_or_default();
        self.outgoing.send(Message::NodeFailed(NodeFailed { phase: self.phase, cause }));
    }

    fn beat(&self, every: Duration) {
        let (outgoing, counters) = (self.outgoing.clone(), Arc::clone(&self.counters));
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(every);
            while !outgoing.0.is_closed() {
                tick.tick().await;
                outgoing.send(Message::Heartbeat(Heartbeat {
                    global_step: counters.step(),
                    rows: counters.rows(),
                    wait_data_ms: counters.wait_data_ms(),
                    wait_ps_ms: counters.wait_ps_ms(),
                }));
            }
        });
    }

    fn start(&mut self, start: StartPhase, registry: &Arc<Registry>) -> Result<(), Error> {
        let Some((formed, node, spec)) = &self.cluster else {
            return Err(Error::Usage {
                what: "a phase came before the cluster".into(),
                try_this: "use one version of tfos".into(),
            });
        };
        let clone = || {
            let cloned = self.listener.try_clone();
            cloned.map_err(|source| Error::System { what: "share the listener".into(), source })
        };
        let heir = self.options.agent.as_ref().map(|agent| Heir {
            agent: Arc::clone(agent),
            task: Task {
                driver: self.options.driver.clone(),
                token: self.options.token.clone(),
                executor: self.executor,
                generation: self.generation,
                model_dir: formed.model_dir.clone(),
                ..Task::default()
            },
        });
        if node.role == Role::Ps {
            let peers = spec.addresses(Role::Ps).to_vec();
            let options = ServerOptions {
                shard: node.index as usize,
                num_shards: peers.len(),
                peers,
                token: self.options.token.clone(),
                generation: self.generation,
                num_workers: formed.num_trainers,
                loader: None,
            };
            let store = CheckpointStore::open(&formed.model_dir)?;
            let (outgoing, plane) = (self.outgoing.clone(), setting(&start.plane)?);
            let host = PsHost::start(&start, plane, clone()?, options, store, outgoing, heir)?;
            self.ps = Some(host);
            self.outgoing.send(Message::NodeReady(NodeReady { phase: start.phase, ..Default::default() }));
            return Ok(());
        }
        let application = formed.application.as_str();
        let function = registry(application).ok_or_else(|| Error::Usage {
            what: format!("this executor's program has no application `{application}`"),
            try_this: "start the executor from the program that was submitted".into(),
        })?;
        self.node = Some(NodeHost::start(HostOptions {
            node: *node,
            spec: spec.clone(),
            num_trainers: formed.num_trainers,
            // The chief comes first among those that train.
            trainer: if node.role == Role::Worker { node.index + 1 } else { 0 },
            start,
            devices: self.options.gpus.visible().to_vec(),
            feed_memory: formed.feed_memory,
            model_dir: formed.model_dir.clone(),
            scratch_dir: formed.scratch_dir.clone(),
            generation: self.generation,
            token: self.options.token.clone(),
            listener: Some(clone()?),
            function,
            outgoing: self.outgoing.clone(),
            counters: Arc::clone(&self.counters),
            heir,
            ports: self.options.ports.clone(),
            engine: Arc::clone(&self.engine),
        })?);
        Ok(())
    }

    fn end_phase(&mut self) {
        if let Some(ps) = self.ps.take() {
            let (outgoing, phase) = (self.outgoing.clone(), self.phase);
            // Joining the ps's threads may take as long as an update.
            tokio::task::spawn_blocking(move || {
                ps.stop();
                outgoing.send(Message::NodeFinished(NodeFinished { phase }));
            });
        }
        if let Some(node) = self.node.take() {
            node.end_phase();
        }
    }
}
