//! Checkpoints: one consistent cut of parameters, optimizer slots, global step and committed rows.
//!
//! - `CKP-1` a checkpoint exists if and only if its manifest exists; the manifest is written last.
//! - `CKP-2` along a lineage the global step never decreases.
//! - `CKP-3` an older generation cannot commit: what it writes beyond the start of a newer one is void.
//! - `CKP-4` deletion removes the manifest first, so that no manifest is ever left without its parts.

mod decide;
mod garbage;
mod lineage;
mod loading;
mod manifest;
mod paths;
#[cfg(test)]
mod protocol_tests;
mod retention;

pub use decide::{Candidate, Target, compute_target, is_due};
pub use garbage::{Found, compute_garbage};
pub use lineage::{Base, Start, Starts};
pub use loading::{Extent, Loading, Missing, Rename, Renames};
pub use manifest::{Blocks, Column, FORMAT, Manifest, ManifestError, Part};
pub use paths::Paths;
pub use retention::{Best, Retention, Scores, compute_deletions};
