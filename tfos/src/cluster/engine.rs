//! Which engine runs a query with an exchange, and how the driver keeps Ballista's part of it.

use std::sync::Arc;

use tfos_core::cluster::{ClusterSpec, Role};
use tfos_core::config::Engine;
use tfos_data::datafusion::physical_plan::ExecutionPlan;
use tfos_data::datafusion::prelude::DataFrame;

use super::Cluster;
use crate::Result;

/// A query on its way into files.
pub(super) struct Query {
    /// Its rows, for an engine that plans by itself.
    pub(super) rows: DataFrame,
    /// The plan that names it and that one process can run.
    pub(super) plan: Arc<dyn ExecutionPlan>,
}

/// On how many hosts nodes train.
fn hosts(spec: &ClusterSpec) -> usize {
    let all = spec.addresses(Role::Chief).iter().chain(spec.addresses(Role::Worker));
    let hosts: std::collections::BTreeSet<&str> = all.filter_map(|a| Some(a.rsplit_once(':')?.0)).collect();
    hosts.len()
}

impl Cluster {
    /// The engine that the user chose; else Ballista, if it is built in and several hosts train. Not for deterministic
    /// training: what comes out of a shuffle has another order each time.
    pub(super) fn choose_engine(&self, spec: &ClusterSpec) -> Engine {
        let several = hosts(spec) > 1 && self.micro_batches().is_none() && Engine::Ballista.is_built_in();
        self.job.engine.unwrap_or(if several { Engine::Ballista } else { Engine::DataFusion })
    }
}

#[cfg(feature = "ballista")]
pub(super) use ballista::{Scheduler, Submitted};

#[cfg(feature = "ballista")]
mod ballista {
    use tfos_core::config::Master;
    use tfos_data::datafusion::prelude::SessionContext;
    use tfos_driver::engine::{EngineOptions, QueryEngine};

    use super::*;

    /// What the driver keeps of Ballista until the job ends.
    pub(in super::super) type Scheduler = Option<QueryEngine>;

    /// A query planned for Ballista.
    pub(in super::super) struct Submitted {
        plan: Arc<dyn ExecutionPlan>,
        session: SessionContext,
    }

    impl Submitted {
        pub(in super::super) fn partitions(&self) -> usize {
            tfos_data::plan::partitions(&self.plan)
        }

        /// Returns when the engine gives up, with its reason; partitions tell of themselves.
        pub(in super::super) async fn run(self, engine: &Scheduler) -> String {
            let Some(engine) = engine else { return "there is no scheduler".into() };
            match engine.run(self.plan, self.session).await {
                Ok(()) => std::future::pending().await,
                Err(reason) => reason,
            }
        }
    }

    impl Cluster {
        /// Starts the scheduler if there is none yet, and plans the query for it. Gives the scheduler's address too, and
        /// the folder for executors on this host.
        pub(in super::super) fn prepare(&mut self, query: &Query, folder: &str) -> Result<(Submitted, String, String)> {
            if self.scheduler.is_none() {
                let url = self.driver.as_ref().map(|d| d.url().to_owned()).unwrap_or_default();
                let authority = url.trim_start_matches("http://");
                let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).to_owned();
                let local = self.job.master == Master::Local;
                let options = EngineOptions {
                    bind: self.job.bind.clone(),
                    ports: self.job.port.clone(),
                    host,
                    executors: self.job.shape.num_trainers() as usize,
                    work_dir: local.then(|| self.log_dir.join("shuffle")),
                };
                self.scheduler = Some(self.block_on(QueryEngine::start(options))?);
            }
            let (plan, session) = self.block_on(tfos_data::ballista::plan(query.rows.clone(), folder))?;
            let address = self.scheduler.as_ref().map(|s| s.address().to_owned()).unwrap_or_default();
            let work_dir = self.scheduler.as_ref().and_then(QueryEngine::work_dir);
            let work_dir = work_dir.map(|d| d.display().to_string()).unwrap_or_default();
            Ok((Submitted { plan, session }, address, work_dir))
        }
    }
}

#[cfg(not(feature = "ballista"))]
pub(super) use none::{Scheduler, Submitted};

#[cfg(not(feature = "ballista"))]
mod none {
    use super::*;

    /// Nothing is kept.
    pub(in super::super) type Scheduler = ();

    /// Never made.
    pub(in super::super) enum Submitted {}

    impl Submitted {
        pub(in super::super) fn partitions(&self) -> usize {
            match *self {}
        }

        pub(in super::super) async fn run(self, _: &Scheduler) -> String {
            match self {}
        }
    }

    impl Cluster {
        pub(in super::super) fn prepare(&mut self, _: &Query, _: &str) -> Result<(Submitted, String, String)> {
            Err(crate::Error::Usage(
                "this program is built without Ballista; build it with `--features ballista`".into(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_that_train() {
        let mut spec = ClusterSpec::default();
        spec.roles.insert(Role::Ps, vec!["c:1".into()]);
        spec.roles.insert(Role::Chief, vec!["a:1".into()]);
        assert_eq!(hosts(&spec), 1);
        spec.roles.insert(Role::Worker, vec!["a:2".into(), "[::1]:3".into()]);
        assert_eq!(hosts(&spec), 2);
    }
}
