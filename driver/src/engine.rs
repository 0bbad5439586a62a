//! Apache Ballista's scheduler, in the driver: it cuts a query into stages and gives their tasks to the executors.
//!
//! What ends a query is not what Ballista thinks of it. Partitions count when their executors say that they are written
//! (`STG-2`), a death is seen by the control streams, and the failure of a task is told by the node that it failed on. So
//! nothing is tried again here: whatever goes wrong ends this attempt, and the next generation begins another.
//!
//! The listener has no authentication, as all of Ballista 55: it is bound to the addresses of the job, from the first query
//! that needs it until the job ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::serde::protobuf::job_status::Status;
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::{SchedulerConfig, TaskDistributionPolicy};
use ballista_scheduler::scheduler_process::{create_scheduler, start_grpc_service_with_listener};
use ballista_scheduler::scheduler_server::SchedulerServer;
use tfos_core::ports::PortRange;
use tfos_data::ballista::ShippingCodec;
use tfos_data::datafusion::physical_plan::ExecutionPlan;
use tfos_data::datafusion::prelude::SessionContext;
use tfos_data::datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};

use crate::error::Error;

/// How often the scheduler is asked how it is getting on.
const ASK: Duration = Duration::from_millis(50);

/// Silence after which Ballista gives an executor up. Longer than it takes the job to notice by itself.
const EXECUTOR_TIMEOUT_SECONDS: u64 = 120;

/// Bytes of a message: a plan lists its files.
const MAX_MESSAGE: u32 = 256 << 20;

/// A scheduler that runs until it is dropped.
pub struct QueryEngine {
    scheduler: SchedulerServer<LogicalPlanNode, PhysicalPlanNode>,
    serving: tokio::task::JoinHandle<()>,
    address: String,
    work_dir: Option<PathBuf>,
}

impl std::fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryEngine").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Where a scheduler listens, and for how many.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Address to bind.
    pub bind: String,
    /// Ports to try; any other where all of these are taken.
    pub ports: PortRange,
    /// Host under which executors reach the driver.
    pub host: String,
    /// Executors that have to come before a query is begun.
    pub executors: usize,
    /// Folder for what local executors write between stages; it is removed with the engine.
    pub work_dir: Option<PathBuf>,
}

fn failed(what: &str, e: impl std::fmt::Display) -> Error {
    Error::Engine { what: format!("{what}: {e}") }
}

impl QueryEngine {
    /// Binds the listener and starts the scheduler.
    pub async fn start(options: EngineOptions) -> Result<Self, Error> {
        let listener = options.ports.bind(&options.bind).or_else(|_| PortRange::default().bind(&options.bind))?;
        let file = |source| Error::File { path: options.bind.clone(), action: "listened on", source };
        listener.set_nonblocking(true).map_err(file)?;
        let bound: SocketAddr = listener.local_addr().map_err(file)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(file)?;
        if let Some(folder) = &options.work_dir {
            let created = std::fs::create_dir_all(folder);
            created.map_err(|source| Error::File { path: folder.display().to_string(), action: "created", source })?;
        }
        let config = Arc::new(SchedulerConfig {
            external_host: options.host.clone(),
            bind_host: bound.ip().to_string(),
            bind_port: bound.port(),
            scheduling_policy: TaskSchedulingPolicy::PushStaged,
            // With one partition a task nobody is left out. The default, `Bias`, fills one executor after the other.
            task_distribution: TaskDistributionPolicy::RoundRobin,
            override_config_producer: Some(Arc::new(tfos_data::ballista::config)),
            override_physical_codec: Some(Arc::new(ShippingCodec::default())),
            executor_timeout_seconds: EXECUTOR_TIMEOUT_SECONDS,
            no_executors_grace_period_seconds: EXECUTOR_TIMEOUT_SECONDS,
            finished_job_data_clean_up_interval_seconds: 1,
            grpc_server_max_decoding_message_size: MAX_MESSAGE,
            grpc_server_max_encoding_message_size: MAX_MESSAGE,
            grpc_client_max_message_size: MAX_MESSAGE,
            min_ready_executors: options.executors,
            task_max_failures: 1,
            stage_max_failures: 1,
            ..SchedulerConfig::default()
        });
        let cluster = BallistaCluster::new_from_config(&config).await.map_err(|e| failed("start Ballista", e))?;
        let scheduler = create_scheduler(cluster, config).await.map_err(|e| failed("start Ballista's scheduler", e))?;
        let serve = start_grpc_service_with_listener(listener, scheduler.clone());
        let serving = tokio::spawn(async move {
            if let Err(e) = serve.await {
                tracing::error!("Ballista's scheduler stopped: {e}");
            }
        });
        let address = format!("{}:{}", options.host, bound.port());
        tracing::info!("Ballista's scheduler listens on {bound} and is reached as {address}");
        Ok(Self { scheduler, serving, address, work_dir: options.work_dir })
    }

    /// `host:port` for executors.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Folder in which local executors work.
    pub fn work_dir(&self) -> Option<&Path> {
        self.work_dir.as_deref()
    }

    /// Runs a plan of [`tfos_data::ballista::plan`] when every executor is there; `Err` is Ballista's reason to give up.
    pub async fn run(&self, plan: Arc<dyn ExecutionPlan>, session: SessionContext) -> Result<(), String> {
        while !self.scheduler.is_ready() {
            tokio::time::sleep(ASK).await;
        }
        let submitted = self.scheduler.submit_physical_plan("stage", Arc::new(session), plan, None).await;
        let job = submitted.map_err(|e| e.to_string())?;
        loop {
            let status = self.scheduler.state.task_manager.get_job_status(&job).await.map_err(|e| e.to_string())?;
            match status.and_then(|s| s.status) {
                Some(Status::Successful(_)) => return Ok(()),
                Some(Status::Failed(failed)) => return Err(failed.error),
                Some(Status::Queued(_) | Status::Running(_)) | None => tokio::time::sleep(ASK).await,
            }
        }
    }
}

impl Drop for QueryEngine {
    fn drop(&mut self) {
        self.serving.abort();
        if let Some(folder) = &self.work_dir {
            // Of no use to anybody; a folder that cannot be removed is not worth the job.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
