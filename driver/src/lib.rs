//! The driver: owns one job. It reserves executors, assigns roles, hands out leases on the data, records
//! commits, has checkpoints taken, and decides what a death means. It never touches a tensor or a row.

pub mod checkpoints;
mod commit;
mod create;
#[cfg(feature = "ballista")]
pub mod engine;
pub mod error;
pub mod event;
mod journal;
pub mod launcher;
pub mod ledger;
pub mod model_dir;
pub mod run;
mod server;
pub mod settings;
pub mod state;
pub mod status;
mod unlisted;
mod whole;

pub use error::Error;
pub use run::{Driver, DriverOptions};
pub use state::{PhaseKind, PhaseOutcome, PhaseSpec};
pub use status::Status;
