//! Parameter servers for data-parallel training on CPU `f32` slices: no torch, no tokio, std threads and sockets.
//!
//! The trainable variables of a model, sorted by name, are one flat vector ([`Layout`]); ps shard k of P holds one
//! contiguous range of it ([`Layout::range`]). Workers push gradients to all shards and get the new parameters as the
//! answer ([`PsClient`]). Which gradients become which global step is decided once, on ps:0, by a pure state
//! machine ([`Sequencer`]); every shard ([`PsServer`]) performs the same decisions in the same order.
//!
//! ```text
//!  worker --- gradient slice k ---> ps:k --- Staged ---> ps:0 (Sequencer)
//!  worker <-- parameter slice k --- ps:k <-- Decision --- ps:0
//! ```
//!
//! With one worker and no ps, [`LocalTrainer`] applies the same optimizers in place.

#[cfg(not(target_endian = "little"))]
compile_error!("tfos-ps sends f32 as they lie in memory, which is the wire format only on little-endian targets");

pub mod background;
mod cast;
mod client;
mod compress;
mod decision;
mod deterministic;
mod dial;
mod error;
mod flat;
mod layout;
mod loader;
mod local;
pub mod memory;
mod optimizer;
mod placement;
pub mod reference;
mod sequencer;
mod server;
mod shard;
mod snapshot;
mod team;
pub mod transport;
pub mod wire;

pub use client::{
    Awaited, Canceller, ClientOptions, FrontFirst, InitState, Lent, LentPart, Outcome, Piece, PsClient, Push, Status,
    Vector,
};
pub use compress::Compress;
pub use decision::{Commit, Commits, Decision, DecisionKind, DropReason, Part};
pub use deterministic::DeterministicTrainer;
pub use dial::{Dial, Group};
pub use error::{Error, Refusal, Violation};
pub use layout::{Fingerprint, Layout, Variable, shard_range};
pub use loader::{Load, Loader, Loading};
pub use local::LocalTrainer;
pub use memory::{Block, Blocks};
pub use optimizer::{Decay, Optimizer, Schedule, Scheduled, Update, Warmup};
pub use placement::{Held, Placement};
pub use sequencer::{Action, Event, Mode, Notice, Place, PushMeta, Sequencer};
pub use server::{PsServer, ServerEvent, ServerOptions};
pub use snapshot::{FullState, Snapshot};
