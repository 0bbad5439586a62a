//! A job's settings: as written (flags over `job.yaml`) and as checked.

mod consistency;
mod engine;
mod plane;
mod precision;
mod raw;
mod restore;
mod storage;
mod units;
mod valid;
mod words;

pub use consistency::{Consistency, Group};
pub use engine::Engine;
pub use plane::{Carrier, Compression, Overlapping, Placement, Plane};
pub use precision::Precision;
pub use raw::{ConfigError, Problem, RawJob};
pub use restore::Restore;
pub use storage::Storage;
pub use units::{ByteSize, Period};
pub use valid::{InputMode, Job, LogDir, Master};
