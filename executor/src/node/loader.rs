//! Reads a ps' part of a saved state from its store: this ps' own range, by this process.

use std::time::Instant;

use tfos_core::checkpoint::Loading;
use tfos_core::failure::chain;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::Error;
use crate::checkpoint::{CheckpointStore, Destination, Segments};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct PartLoader {
    pub(crate) store: CheckpointStore,
    pub(crate) runtime: Handle,
    /// True when the ps is to stop, whatever the store does.
    pub(crate) stopped: watch::Receiver<bool>,
}

impl PartLoader {
    async fn read(&self, what: &str, into: tfos_ps::Loading<'_>) -> Result<(), Error> {
        let begun = Instant::now();
        let loading: Loading = serde_json::from_str(what).map_err(|e| Error::Other(Box::new(e)))?;
        let tfos_ps::Loading { layout, optimizer, range, params, slots, buffers } = into;
        let plan = self.store.plan(&loading, layout, Some(optimizer)).await?;
        let start = range.start;
        let slots = optimizer.slots().iter().zip(slots);
        let mut into = Destination {
            params: Segments::new(start, [params]),
            slots: slots.map(|(name, chunks)| ((*name).to_owned(), Segments::new(start, chunks))).collect(),
            buffers: buffers.map(|all| Segments::new(0, [all])),
        };
        let bytes = plan.load(range.clone(), &mut into).await?;
        tracing::info!("read elements {range:?} of `{loading}`: {bytes} bytes in {:.1?}", begun.elapsed());
        Ok(())
    }
}

impl tfos_ps::Loader for PartLoader {
    fn load(&self, what: &str, into: tfos_ps::Loading<'_>) -> Result<(), String> {
        let mut stopped = self.stopped.clone();
        self.runtime.block_on(async {
            tokio::select! {
                read = self.read(what, into) => read.map_err(|e| chain(&e).join(": ")),
                // Ends too when nobody is left who could say so.
                _ = stopped.wait_for(|stopped| *stopped) => Err("the ps was stopped".to_owned()),
            }
        })
    }
}
