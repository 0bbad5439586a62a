//! How executors come to life, behind one trait.

mod local;

use std::path::PathBuf;

use tokio::sync::mpsc::UnboundedSender;

use crate::error::Error;
use crate::event::Event;

pub use local::Local;

/// What every executor of a job has to know to find its driver.
#[derive(Debug, Clone)]
pub struct Rendezvous {
    /// The driver's URL, `http://host:port`.
    pub url: String,
    /// The job's token.
    pub token: String,
    /// Folder of the nodes' logs.
    pub log_dir: PathBuf,
}

/// Starts executors and watches them.
///
/// A launcher reports [`Event::Launched`] for each process that it starts and [`Event::ProcessExited`]
/// exactly once for each that ends. When `stop` returns, no process of its making is left.
pub trait Launcher: Send {
    /// Starts whoever is to be started.
    fn launch(&mut self, rendezvous: &Rendezvous, events: UnboundedSender<Event>) -> Result<(), Error>;

    /// Ends and reaps everybody; blocks until that is done. Processes that were asked to stop get `grace`
    /// to do so by themselves.
    fn stop(&mut self, grace: std::time::Duration);
}

/// Executors that somebody else starts with `tfos executor --driver URL --token-file FILE`.
#[derive(Debug, Default)]
pub struct Standalone;

impl Launcher for Standalone {
    fn launch(&mut self, _: &Rendezvous, _: UnboundedSender<Event>) -> Result<(), Error> {
        Ok(())
    }

    fn stop(&mut self, _: std::time::Duration) {}
}
