//! tfos: deep learning inside a DataFusion cluster.
//!
//! An application implements [`Application`]: `main` runs on the driver (read data, call
//! [`Cluster::train`]), `node` runs in every executor that trains or scores (build a network, take batches,
//! [`step`](NodeContext::step)). Its `main` function is [`run`]:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use tfos::prelude::*;
//!
//! struct Digits;
//!
//! impl Application for Digits {
//!     fn name(&self) -> &str {
//!         "digits"
//!     }
//!
//!     fn main(&self, cluster: &mut Cluster, _arguments: &[String]) -> Result<()> {
//!         let digits = cluster.sql("SELECT image, label FROM 'digits.parquet'")?;
//!         cluster.train(digits, 3)?;
//!         Ok(())
//!     }
//!
//!     fn node(&self, ctx: &mut NodeContext) -> Result<(), NodeError> {
//!         let net = nn::linear(ctx.variables() / "net", 784, 10, Default::default());
//!         ctx.train_with(Optimizer::sgd(0.01))?;
//!         let mut feed = ctx.data_feed()?;
//!         while let Some(batch) = feed.next_batch(64)? {
//!             let x = batch.tensor("image")?.to_kind(Kind::Float) / 255.0;
//!             let loss = x.apply(&net).cross_entropy_for_logits(&batch.tensor("label")?);
//!             ctx.step(&loss)?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     tfos::run(Digits)
//! }
//! ```
//!
//! The same program is driver and executor: run by itself it is a whole cluster on this machine, and
//! `tfos submit [OPTIONS] PROGRAM` gives it another shape.

pub mod application;
#[cfg(feature = "torch")]
pub mod apps;
mod cli;
pub mod cluster;
pub mod error;
#[cfg(feature = "torch")]
pub mod model;
mod portable;

pub use application::Application;
pub use cli::{run, run_all};
pub use cluster::{Cluster, DirectInput, TrainOutcome};
pub use error::{Error, Result};
#[cfg(feature = "torch")]
pub use model::{Model, run_model};
#[cfg(feature = "torch")]
pub use tch;
pub use tfos_core::cluster::{NodeId, Role};
pub use tfos_core::config::{InputMode, Job};
pub use tfos_data as data;
pub use tfos_data::datafusion;
pub use tfos_executor::ps::{Decay, Optimizer, Schedule, Scheduled, Warmup};
pub use tfos_executor::{Batch, DataFeed, Error as NodeError, NodeContext, PhaseKind};

/// Everything that a training program names.
pub mod prelude {
    #[cfg(feature = "torch")]
    pub use crate::model::{Model, run_model};
    pub use crate::{
        Application, Batch, Cluster, DataFeed, Error, NodeContext, NodeError, Optimizer, PhaseKind, Result, Role,
        Schedule,
    };
    #[cfg(feature = "torch")]
    pub use tch::{Device, Kind, Tensor, nn, nn::Module};
}
