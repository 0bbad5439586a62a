//! Whole clusters of parameter servers and workers over real sockets, in one process.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod cluster;
mod compress;
mod contract;
mod deterministic;
mod failure;
mod groups;
mod local_sgd;
mod placement;
mod refusal;
mod slices;
mod snapshot;
mod staleness;
mod training;
mod window;
