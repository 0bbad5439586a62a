//! The feed of a node: rows that the driver leased, scanned here, queued by bytes, handed out in batches.

mod again;
mod batch;
mod blocks;
mod data_feed;
mod depth;
#[cfg(feature = "torch")]
mod laid;
mod part;
mod passed;
mod prefetch;
mod queue;
mod scan;
mod usage;

pub use again::rows_at;
pub use batch::Batch;
pub use data_feed::DataFeed;
pub(crate) use data_feed::{Begun, Hooks};
#[cfg(feature = "torch")]
pub(crate) use laid::lay;
#[cfg(feature = "torch")]
pub(crate) use part::Part;
pub(crate) use passed::Passed;
pub(crate) use prefetch::{Leases, Order, prefetch};
pub(crate) use queue::{Queue, batch_bytes};
pub(crate) use scan::{Scan, direct_source, feed_source};
