//! The sending end of the control stream, the counters that heartbeats carry, and settings as they come.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tfos_core::proto::{FromExecutor, from_executor::Message};
use tokio::sync::mpsc::UnboundedSender;

use crate::Error;

/// A setting of the job, as the driver sends it. One that cannot be read is an error and no default: the job would do
/// something else than it was told.
pub(crate) fn setting<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|e| Error::Other(Box::new(e)))
}

/// Sends to the driver from any thread. When the stream is gone the process is about to end, so a message
/// that cannot be sent has nobody to miss it.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing(pub(crate) UnboundedSender<FromExecutor>);

impl Outgoing {
    pub(crate) fn send(&self, message: Message) {
        let _ = self.0.send(FromExecutor { message: Some(message) });
    }
}

/// What a node has done, for heartbeats.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    step: AtomicU64,
    rows: AtomicU64,
    wait_data_us: AtomicU64,
    wait_ps_us: AtomicU64,
}

impl Counters {
    pub(crate) fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    #[cfg(feature = "torch")]
    pub(crate) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    pub(crate) fn add_rows(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub(crate) fn wait_data(&self, time: Duration) {
        self.wait_data_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    #[cfg(feature = "torch")]
    pub(crate) fn wait_ps(&self, time: Duration) {
        self.wait_ps_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn wait_data_ms(&self) -> u64 {
        self.wait_data_us.load(Ordering::Relaxed) / 1000
    }

    pub(crate) fn wait_ps_ms(&self) -> u64 {
        self.wait_ps_us.load(Ordering::Relaxed) / 1000
    }
}
