//! What a user writes: one program that is driver and executor.

use tfos_data::SessionContext;
use tfos_executor::{Error as NodeError, NodeContext};

use crate::{Cluster, Result};

/// Names and shapes of variables.
pub type Shapes = Vec<(String, Vec<i64>)>;

/// A training program.
pub trait Application: Send + Sync + 'static {
    /// Name under which it is submitted, and which its checkpoints carry.
    fn name(&self) -> &str;

    /// One line for `tfos apps`.
    fn about(&self) -> &str {
        ""
    }

    /// Looks at the arguments before anything is started. The text of an error (or of `--help`, which is
    /// [`Stop::Help`]) is shown to the user.
    fn check(&self, _arguments: &[String]) -> std::result::Result<(), Stop> {
        Ok(())
    }

    /// The JSON that [`Cluster::set_arguments`] gives to the nodes for these arguments, where it can be told without a
    /// cluster. Weights that `tfos import` makes a checkpoint of can then be exported and used before any training.
    fn node_arguments(&self, _arguments: &[String]) -> std::result::Result<Option<String>, Stop> {
        Ok(None)
    }

    /// Columns that inference needs, given the nodes' arguments, as far as they can be told; the nodes find out about others.
    fn inputs(&self, _node_arguments: &str) -> Vec<String> {
        vec![]
    }

    /// Trained variables that the nodes make for these arguments, by name and shape and in the order of their creation, where
    /// that can be told without data. `tfos submit --dry-run` shows which ps would hold what of them.
    fn variables(&self, _arguments: &[String]) -> std::result::Result<Option<Shapes>, Stop> {
        Ok(None)
    }

    /// Runs on the driver: reads data, trains, scores.
    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()>;

    /// Runs in chief, workers and evaluator, once per call of `train`, `inference` or `evaluate`, on a thread of
    /// its own; see [`NodeContext::kind`].
    fn node(&self, context: &mut NodeContext) -> std::result::Result<(), NodeError>;

    /// Registers functions for queries, on the driver and in every executor alike.
    fn register(&self, _session: &SessionContext) -> std::result::Result<(), NodeError> {
        Ok(())
    }
}

/// Why an application does not want to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Help was asked for; exit 0.
    Help(String),
    /// The arguments are wrong; exit 2.
    Usage(String),
}
