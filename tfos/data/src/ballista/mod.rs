//! What driver and executors have in common where Apache Ballista runs a query: how its plan is made, how it travels,
//! and what a process needs to run a piece of it.
//!
//! A query ends in a [`Sink`], whose partitions write files; what Ballista itself hands back is one number for each.
//!
//! * A plan is made with Ballista's settings: what is cut into stages must not share memory between operators.
//! * `codec` carries what DataFusion and Ballista do not: TFRecord scans, compression, the sink.
//! * [`Stores`] opens a store when a piece of a plan asks for it: pieces do not say which they need.
//! * Each task has one partition ([`config`]), so that tasks go round over all executors, and a task is one attempt at
//!   one partition.

mod codec;
mod compressed;
mod stores;

use std::sync::Arc;

use ballista_core::config::BALLISTA_SCHEDULER_MAX_PARTITIONS_PER_TASK;
use ballista_core::extension::SessionConfigExt;
use ballista_core::registry::BallistaFunctionRegistry;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};

pub use self::codec::ShippingCodec;
pub use self::stores::Stores;
use crate::error::Result;
use crate::session;
use crate::stage::Sink;

/// Settings of a process that runs pieces of queries.
pub fn config() -> SessionConfig {
    upgraded(session::config())
}

fn upgraded(config: SessionConfig) -> SessionConfig {
    config.upgrade_for_ballista().set_usize(BALLISTA_SCHEDULER_MAX_PARTITIONS_PER_TASK, 1)
}

/// The plan of `query` for `codec`, which writes its rows into files in `folder`, and the settings that it was made with.
pub async fn plan(query: DataFrame, folder: &str) -> Result<(Arc<dyn ExecutionPlan>, SessionContext)> {
    let (state, query) = query.into_parts();
    let rules = ballista_core::optimizer::with_ballista_optimizer_rules(state.optimizers());
    let config = upgraded(state.config().clone());
    let state = SessionStateBuilder::new_from_existing(state).with_config(config).with_optimizer_rules(rules).build();
    let plan = state.create_physical_plan(&query).await?;
    let plan = compressed::marked(plan)?;
    let sink = Sink::new(plan, folder.to_owned(), None);
    Ok((Arc::new(sink), SessionContext::new_with_state(state)))
}

/// The functions that `session` knows.
pub fn functions(session: &SessionContext) -> BallistaFunctionRegistry {
    let state = session.state();
    BallistaFunctionRegistry {
        scalar_functions: state.scalar_functions().clone(),
        aggregate_functions: state.aggregate_functions().clone(),
        window_functions: state.window_functions().clone(),
        higher_order_functions: state.higher_order_functions().clone(),
    }
}

/// Where pieces of queries run: with any store, spilling into `folder`.
pub fn runtime(folder: &str) -> Result<Arc<RuntimeEnv>> {
    let stores = Arc::new(Stores::default());
    Ok(RuntimeEnvBuilder::new().with_temp_file_path(folder).with_object_store_registry(stores).build_arc()?)
}

#[cfg(test)]
mod tests;
