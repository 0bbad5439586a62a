//! The feed of a node: rows that the driver leased, scanned here, queued by bytes, handed out in batches.

mod batch;
mod blocks;
mod data_feed;
mod prefetch;
mod queue;
mod scan;

pub use batch::Batch;
pub use data_feed::DataFeed;
pub(crate) use data_feed::{Begun, Hooks};
pub(crate) use prefetch::{Leases, Order, prefetch};
pub(crate) use queue::Queue;
pub(crate) use scan::{Scan, direct_source, feed_source};
