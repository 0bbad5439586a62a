//! The executor: a process that hosts exactly one node of a job, its feed, its parameters, its libtorch.

pub mod agent;
pub mod checkpoint;
mod client;
mod control;
pub mod devices;
mod engine;
pub mod error;
pub mod feed;
pub mod memory;
pub mod node;
pub mod plane;
pub mod portable;
pub mod run;
#[cfg(feature = "torch")]
pub mod torch;

pub use error::Error;
pub use feed::{Batch, DataFeed};
pub use node::{NodeContext, PhaseKind};
pub use run::{ExecutorOptions, NodeFunction, run};
pub use tfos_ps as ps;
