//! A job's settings: as written (flags over `job.yaml`) and as checked.

mod engine;
mod raw;
mod restore;
mod storage;
mod units;
mod valid;

pub use engine::Engine;
pub use raw::{ConfigError, Problem, RawJob};
pub use restore::Restore;
pub use storage::Storage;
pub use units::{ByteSize, Period};
pub use valid::{Consistency, InputMode, Job, LogDir, Master};
