//! A node: the function that the application runs in this process, and everything it may ask for.

mod context;
mod dial;
mod host;
mod loader;
mod panics;
mod ps;
mod results;
mod stage;

pub use context::{Checkpoints, NodeContext, PhaseKind};
#[cfg(feature = "torch")]
pub(crate) use dial::dial;
pub(crate) use host::{HostOptions, NodeHost};
#[cfg(feature = "torch")]
pub(crate) use host::{Request, Requests};
#[cfg(test)]
pub(crate) use loader::PartLoader;
#[cfg(feature = "ballista")]
pub(crate) use panics::unpanicked;
#[cfg(feature = "torch")]
pub(crate) use ps::PartWriter;
pub(crate) use ps::PsHost;
pub use results::ResultWriter;
