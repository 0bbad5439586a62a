//! The tasks of Ballista, as it runs them, with two things added: a sink is told which partition it writes, and a task
//! that fails is told to the driver with the error's own type.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use ballista_core::JobId;
use ballista_core::error::BallistaError;
use ballista_core::serde::protobuf::{RuntimeStatsReport, ShuffleWritePartition, TaskColumnStats, WindowStateReport};
use ballista_executor::execution_engine::{DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor};
use tfos_core::failure::{Cause, chain};
use tfos_data::datafusion::common::tree_node::{Transformed, TreeNode};
use tfos_data::datafusion::error::{DataFusionError, Result as DfResult};
use tfos_data::datafusion::execution::TaskContext;
use tfos_data::datafusion::physical_plan::ExecutionPlan;
use tfos_data::datafusion::physical_plan::metrics::MetricsSet;
use tfos_data::datafusion::prelude::SessionConfig;
use tfos_data::stage::Sink;

use super::pool::Pool;
use super::process::Reports;
use crate::Error;
use crate::node::unpanicked;

/// See the module's text.
pub(super) struct Tasks {
    ballista: DefaultExecutionEngine,
    reports: Arc<Reports>,
}

impl Tasks {
    pub(super) fn new(reports: Arc<Reports>) -> Self {
        Self { ballista: DefaultExecutionEngine::with_client_pool(Arc::new(Pool::default())), reports }
    }
}

impl Reports {
    fn told(&self, error: DataFusionError) -> DataFusionError {
        let (cause, error) = cause(error);
        self.failed(&cause);
        error
    }
}

impl ExecutionEngine for Tasks {
    fn create_query_stage_exec(
        &self,
        job: JobId,
        stage: usize,
        task: usize,
        partitions: Vec<usize>,
        plan: Arc<dyn ExecutionPlan>,
        work_dir: &str,
        config: &SessionConfig,
    ) -> DfResult<Arc<dyn QueryStageExecutor>> {
        let placed = plan.transform_up(|node| {
            let sink = node.downcast_ref::<Sink>().map(|sink| sink.clone().of_partitions(partitions.clone()));
            Ok(match sink {
                Some(sink) => Transformed::yes(Arc::new(sink) as Arc<dyn ExecutionPlan>),
                None => Transformed::no(node),
            })
        })?;
        let made = self.ballista.create_query_stage_exec(job, stage, task, partitions, placed.data, work_dir, config);
        match made {
            Ok(task) => Ok(Arc::new(Told { task, reports: Arc::clone(&self.reports) })),
            Err(e) => Err(self.reports.told(e)),
        }
    }
}

/// A task whose failure is told.
struct Told {
    task: Arc<dyn QueryStageExecutor>,
    reports: Arc<Reports>,
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.task.fmt(f)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.task, f)
    }
}

#[async_trait]
impl QueryStageExecutor for Told {
    async fn execute_query_stage(
        &self,
        task: usize,
        context: Arc<TaskContext>,
    ) -> DfResult<Vec<ShuffleWritePartition>> {
        match unpanicked(self.task.execute_query_stage(task, context)).await {
            Ok(Ok(written)) => Ok(written),
            Ok(Err(e)) => Err(self.reports.told(e)),
            Err(panicked) => {
                self.reports.failed(&panicked.cause());
                Err(DataFusionError::Execution(panicked.to_string()))
            }
        }
    }

    fn collect_plan_metrics(&self) -> Vec<MetricsSet> {
        self.task.collect_plan_metrics()
    }

    fn collect_runtime_stats_reports(&self) -> Vec<RuntimeStatsReport> {
        self.task.collect_runtime_stats_reports()
    }

    fn collect_window_state_reports(&self) -> DfResult<Vec<WindowStateReport>> {
        self.task.collect_window_state_reports()
    }

    fn collect_column_stats(&self) -> Vec<TaskColumnStats> {
        self.task.collect_column_stats()
    }
}

/// What the driver is told of an error, and the error. What could not be fetched from another executor is the consequence
/// of that one's failure.
fn cause(error: DataFusionError) -> (Cause, DataFusionError) {
    let error = Arc::new(error);
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
    let mut lost = false;
    while let Some(e) = next {
        lost |= matches!(
            e.downcast_ref(),
            Some(
                BallistaError::FetchFailed(..)
                    | BallistaError::GrpcConnectionError(_)
                    | BallistaError::GrpcError(_)
                    | BallistaError::TonicError(_)
            )
        );
        next = e.source();
    }
    let ours = Error::Data(tfos_data::Error::from_datafusion(DataFusionError::Shared(Arc::clone(&error))));
    let cause = if lost { Cause::PeerLost { chain: chain(&ours) } } else { ours.cause() };
    (cause, DataFusionError::Shared(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // ERR-1
    fn what_a_dead_peer_keeps_back_is_not_the_cause() {
        let fetch = BallistaError::FetchFailed("worker:0".into(), 1, 2, "connection refused".into());
        let (told, _) = cause(DataFusionError::External(Box::new(fetch)).context("join"));
        assert!(matches!(&told, Cause::PeerLost { chain } if chain.join(" ").contains("refused")), "{told:?}");
        let missing = tfos_data::Error::NotFound { url: "/data/x.parquet".into() }.into_datafusion();
        let (told, kept) = cause(missing.context("scan"));
        assert!(matches!(&told, Cause::Error { user: true, .. }) && told.to_string().contains("x.parquet"), "{told:?}");
        assert!(kept.to_string().contains("x.parquet"));
    }
}
