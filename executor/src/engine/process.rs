//! Ballista's executor in this process: started once, told which phase its tasks are for.
//!
//! Tasks are pushed by the scheduler in the driver. Two ports are open from then on, without authentication as all of
//! Ballista 55: one that takes tasks, one that serves what stages have written. Both are bound to the address that this
//! executor is bound to.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ballista_core::config::TaskSchedulingPolicy;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use tfos_core::cluster::{ClusterSpec, NodeId, Role};
use tfos_core::failure::Cause;
use tfos_core::proto::{NodeFailed, Staged, StagedFile, from_executor::Message};
use tfos_data::stage::{Writer, Written};
use tfos_data::{ballista, session};
use tokio::sync::watch;

use super::reserve::Reserved;
use super::tasks::Tasks;
use crate::Error;
use crate::control::{Counters, Outgoing};
use crate::node::HostOptions;

/// Signs of life; the control stream is what tells of a death.
const HEARTBEAT_SECONDS: u64 = 2;

/// Bytes of a message: a plan lists its files.
const MAX_MESSAGE: u32 = 256 << 20;

/// How long the scheduler may take to answer at the start.
const CONNECT_SECONDS: u16 = 20;

/// Threads for tasks at least: one that waits for what it fetches does not keep the next from working.
const MIN_TASKS: usize = 2;

/// Where what happens to tasks is told.
pub(super) struct Reports(Mutex<Phase>);

struct Phase {
    number: u32,
    outgoing: Outgoing,
    counters: Arc<Counters>,
    failed: bool,
}

impl Reports {
    fn new(options: &HostOptions) -> Self {
        Self(Mutex::new(Phase::of(options)))
    }

    fn begin(&self, options: &HostOptions) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Phase::of(options);
    }

    fn written(&self, written: Written) {
        let phase = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let file = |f: tfos_data::stage::StagedFile| {
            phase.counters.add_rows(f.rows);
            StagedFile { name: f.name, rows: f.rows, bytes: f.bytes, crc32c: f.crc32c }
        };
        let files = written.files.into_iter().map(file).collect();
        let whole = written.whole.and_then(|p| u32::try_from(p).ok());
        phase.outgoing.send(Message::Staged(Staged { phase: phase.number, files, whole }));
    }

    /// The first failure ends the phase; what follows from it is not told.
    pub(super) fn failed(&self, cause: &Cause) {
        let mut phase = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tracing::error!("a task of the query failed: {cause}");
        if !std::mem::replace(&mut phase.failed, true) {
            let cause = serde_json::to_string(cause).unwrap_or_default();
            phase.outgoing.send(Message::NodeFailed(NodeFailed { phase: phase.number, cause }));
        }
    }
}

impl Phase {
    fn of(options: &HostOptions) -> Self {
        let (outgoing, counters) = (options.outgoing.clone(), Arc::clone(&options.counters));
        Self { number: options.start.phase, outgoing, counters, failed: false }
    }
}

/// The place of an executor that is started when the first query comes.
#[derive(Default)]
pub(crate) struct Engine(Mutex<Option<Running>>);

struct Running {
    reports: Arc<Reports>,
    /// Why it stopped, once it has.
    ended: watch::Receiver<Option<String>>,
    work_dir: PathBuf,
    _ports: [Reserved; 2],
    _task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // What was written between stages; that it cannot be removed is nobody's problem now.
        let _ = std::fs::remove_dir_all(&self.work_dir);
    }
}

/// Serves tasks of the phase until the future is dropped. Returns with an error only.
pub(crate) async fn run(options: HostOptions) -> Result<(), Error> {
    let engine = Arc::clone(&options.engine);
    let mut ended = {
        let mut running = engine.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*running {
            Some(running) => {
                running.reports.begin(&options);
                running.ended.clone()
            }
            None => running.insert(start(&options)?).ended.clone(),
        }
    };
    let ended = ended.wait_for(Option::is_some).await;
    let why = ended.ok().and_then(|why| why.clone()).unwrap_or_else(|| "it is gone".into());
    Err(Error::Application(format!("this executor's part of Ballista has stopped: {why}")))
}

fn start(options: &HostOptions) -> Result<Running, Error> {
    let system = |what: &'static str| move |source| Error::System { what: what.into(), source };
    let unusable = |what: String| Error::Usage { what, try_this: "use one version of tfos".into() };
    let scheduler = options.start.scheduler.rsplit_once(':');
    let Some((host, Ok(port))) = scheduler.map(|(host, port)| (host, port.parse::<u16>())) else {
        return Err(unusable(format!("`{}` is no address of a scheduler", options.start.scheduler)));
    };
    let (own, sharing) = place(&options.spec, options.node)
        .ok_or_else(|| unusable(format!("the cluster does not say where {} is", options.node)))?;
    let ip: IpAddr = match &options.listener {
        Some(listener) => listener.local_addr().map_err(system("read the bound address"))?.ip(),
        None => IpAddr::from([0, 0, 0, 0]),
    };
    let reserve = || Reserved::take(ip, &options.ports).map_err(system("reserve a port for Ballista"));
    let ports = [reserve()?, reserve()?];
    let [flight, grpc] = [&ports[0], &ports[1]].map(|p| p.port().map_err(system("read a reserved port")));
    let (flight, grpc) = (flight?, grpc?);
    let work_dir = work_dir(options)?;
    let folder = work_dir.display().to_string();
    if let Some(heir) = &options.heir
        && let Err(error) = heir.agent.take_folder(&work_dir)
    {
        tracing::warn!("`{folder}` stays behind if this process is killed: {error}");
    }
    let functions = session::session();
    options.function.register(&functions)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let vcores = (cores / sharing).max(MIN_TASKS);
    let reports = Arc::new(Reports::new(options));
    let writing = Arc::clone(&reports);
    let writer = Writer::new(options.node.to_string().replace(':', ""), vcores, move |w| writing.written(w));
    let runtime_folder = folder.clone();
    let config = ExecutorProcessConfig {
        executor_id: format!("{}.g{}", options.node, options.generation),
        bind_host: if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() },
        external_host: Some(own),
        port: flight,
        grpc_port: grpc,
        scheduler_host: host.to_owned(),
        scheduler_port: port,
        scheduler_connect_timeout_seconds: CONNECT_SECONDS,
        vcores,
        task_scheduling_policy: TaskSchedulingPolicy::PushStaged,
        work_dir: Some(folder),
        grpc_max_decoding_message_size: MAX_MESSAGE,
        grpc_max_encoding_message_size: MAX_MESSAGE,
        executor_heartbeat_interval_seconds: HEARTBEAT_SECONDS,
        // Half of what is free, as where one executor runs a query alone, shared with those on the same host.
        memory_pool_size: session::free_memory().map(|free| (free / 2 / sharing) as u64),
        override_execution_engine: Some(Arc::new(Tasks::new(Arc::clone(&reports)))),
        override_function_registry: Some(Arc::new(ballista::functions(&functions))),
        override_config_producer: Some(Arc::new(ballista::config)),
        override_runtime_producer: Some(Arc::new(move |_| {
            ballista::runtime(&runtime_folder).map_err(tfos_data::Error::into_datafusion)
        })),
        override_physical_codec: Some(Arc::new(ballista::ShippingCodec::writing(writer))),
        ..ExecutorProcessConfig::default()
    };
    tracing::info!("Ballista's executor takes tasks on port {grpc} and serves what they write on port {flight}");
    let (ending, ended) = watch::channel(None);
    let task = tokio::spawn(async move {
        let why = match start_executor_process(Arc::new(config)).await {
            Ok(()) => "it was told to stop".to_owned(),
            Err(e) => e.to_string(),
        };
        ending.send_replace(Some(why));
    });
    Ok(Running { reports, ended, work_dir, _ports: ports, _task: task })
}

/// Host under which others reach a node, and how many of those that train are there.
fn place(spec: &ClusterSpec, node: NodeId) -> Option<(String, usize)> {
    let host = |address: &String| address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let own = spec.addresses(node.role).get(node.index as usize).and_then(host)?;
    let all = spec.addresses(Role::Chief).iter().chain(spec.addresses(Role::Worker));
    let there = all.filter_map(host).filter(|host| *host == own).count();
    Some((own, there.max(1)))
}

/// A folder of this process alone: below that of the job where it is on the driver's host, among temporary ones elsewhere.
fn work_dir(options: &HostOptions) -> Result<PathBuf, Error> {
    let name = format!("tfos-{}-", options.node.to_string().replace(':', ""));
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(&name);
    let made = match options.start.work_dir.as_str() {
        "" => builder.tempdir(),
        folder => builder.tempdir_in(folder),
    };
    let what = "create a folder for what is written between stages".into();
    Ok(made.map_err(|source| Error::System { what, source })?.keep())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_cores_are_shared_by_those_that_train_on_a_host() {
        let address = |host: &str, port: u16| format!("{host}:{port}");
        let mut spec = ClusterSpec::default();
        spec.roles.insert(Role::Ps, vec![address("a", 1)]);
        spec.roles.insert(Role::Chief, vec![address("a", 2)]);
        spec.roles.insert(Role::Worker, vec![address("b", 3), address("a", 4)]);
        let node = |role, index| NodeId { role, index };
        assert_eq!(place(&spec, node(Role::Chief, 0)), Some(("a".into(), 2)));
        assert_eq!(place(&spec, node(Role::Worker, 0)), Some(("b".into(), 1)));
        assert_eq!(place(&spec, node(Role::Worker, 7)), None);
    }
}
