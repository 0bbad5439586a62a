//! The part of a query that this executor runs when Apache Ballista runs it on all that train.
//!
//! Ballista's executor starts with the first such query and stays as long as this process: it cannot be started twice. It
//! has threads of its own. Without the feature `ballista` a query for it is refused.

#[cfg(feature = "ballista")]
mod pool;
#[cfg(feature = "ballista")]
mod process;
#[cfg(feature = "ballista")]
mod reserve;
#[cfg(feature = "ballista")]
mod tasks;

#[cfg(feature = "ballista")]
pub(crate) use process::{Engine, run};

/// Never started.
#[cfg(not(feature = "ballista"))]
#[derive(Debug, Default)]
pub(crate) struct Engine;

#[cfg(not(feature = "ballista"))]
pub(crate) async fn run(_: crate::node::HostOptions) -> Result<(), crate::Error> {
    Err(crate::Error::Usage {
        what: "this executor's program is built without Ballista".into(),
        try_this: "start the executor from the program that was submitted".into(),
    })
}
