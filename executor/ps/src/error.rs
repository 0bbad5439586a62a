//! What can go wrong, typed: a refusal, a lost peer and a broken protocol are different things to the host.

use std::io;

use serde::{Deserialize, Serialize};

use crate::layout::Fingerprint;

/// Everything that the public calls of this crate can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A connection ended or could not be made. Often the effect of another node's death: a host that looks for the
    /// root cause prefers any other error ([`Error::is_secondary`]).
    #[error("lost the connection to `{address}`")]
    PeerLost {
        /// The peer, as given to connect or as seen by accept.
        address: String,
        #[source]
        source: io::Error,
    },
    /// The peer understood the request and declined it.
    #[error("`{address}` refused: {refusal}")]
    Refused { address: String, refusal: Refusal },
    /// The peer sent what it must not send.
    #[error("`{address}` broke the protocol: {violation}")]
    Protocol { address: String, violation: Violation },
    /// The caller's slices do not fit the layout.
    #[error("{what}: {found} elements, expected {expected}")]
    Length { what: &'static str, expected: usize, found: usize },
    /// A variable is declared twice.
    #[error("variable `{name}` is declared twice")]
    DuplicateVariable { name: String },
    /// A variable has a shape that no tensor has.
    #[error("variable `{name}` has shape {shape:?}: dimensions must be 0 or more and fit into memory")]
    BadShape { name: String, shape: Vec<i64> },
    /// Slots or snapshots do not belong to this optimizer, step or layout.
    #[error("state does not fit: {what}: found {found}, expected {expected}")]
    State { what: &'static str, expected: String, found: String },
    /// Asked of a ps before its chief has initialised it.
    #[error("ps:{shard} is not initialised yet")]
    NotInitialised { shard: usize },
    /// A call that only ps:0 can serve.
    #[error("ps:{shard} does not decide the order of updates, only ps:0 does")]
    NotSequencer { shard: usize },
    /// The options contradict each other.
    #[error("{what} is {found}, must be {expected}")]
    Options { what: &'static str, expected: String, found: String },
    /// A decision reached this shard that contradicts its state; the shard stopped rather than diverge.
    #[error("ps:{shard} cannot follow decision {index}: {violation}")]
    Diverged { shard: usize, index: u64, violation: Violation },
    /// The operating system gave no thread or no socket.
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// A server thread panicked; the server closed itself.
    #[error("a thread of ps:{shard} panicked")]
    Panicked { shard: usize },
    /// The server was stopped, or the client cancelled, while the call waited.
    #[error("stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn memory(source: io::Error) -> Error {
        Error::System { what: "get memory for parameters", source }
    }

    /// Whether the cause is probably elsewhere: a connection that ended, or a server that was told to stop.
    pub fn is_secondary(&self) -> bool {
        matches!(self, Error::PeerLost { .. } | Error::Stopped)
            || matches!(self, Error::Refused { refusal: Refusal::Stopped, .. })
    }
}

/// Why a ps declined a request; travels over the wire as itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "refusal", rename_all = "snake_case")]
pub enum Refusal {
    #[error("it speaks protocol version {expected}, not {found}")]
    Version { expected: u32, found: u32 },
    #[error("the job token is wrong")]
    Token,
    #[error("it belongs to generation {expected}, not {found}")]
    Generation { expected: u64, found: u64 },
    #[error("it is {expected}, not {found}")]
    Shard { expected: String, found: String },
    #[error("worker {worker} connected again since (session {current}, not {found})")]
    Session { worker: u32, current: u32, found: u32 },
    #[error("worker {worker} was declared lost")]
    Lost { worker: u32 },
    #[error("only the chief may initialise")]
    NotChief,
    #[error("it is already initialised at global step {step}")]
    AlreadyInitialised { step: u64 },
    #[error("it is not initialised yet")]
    NotInitialised,
    #[error("the chief's model has {chief}, this worker's has {worker}")]
    Layout { chief: Fingerprint, worker: Fingerprint },
    #[error("the initial state is invalid: {reason}")]
    BadInit { reason: String },
    #[error("its part of the saved state cannot be loaded: {reason}")]
    Load { reason: String },
    #[error("it is stopping")]
    Stopped,
}

/// What exactly was wrong with a frame or a decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("the frame does not begin with the magic number")]
    Magic,
    #[error("frame kind {0} is unknown")]
    UnknownKind(u8),
    #[error("a frame of kind {found} where {expected} was due")]
    UnexpectedKind { expected: &'static str, found: String },
    #[error("{what} has length {found}, allowed is {allowed}")]
    Length { what: &'static str, allowed: u64, found: u64 },
    #[error("{what} cannot be read: {detail}")]
    Malformed { what: &'static str, detail: String },
    #[error("{what} is {found}, expected {expected}")]
    Mismatch { what: &'static str, expected: u64, found: u64 },
    #[error("push {seq} of worker {worker} is not staged here")]
    NotStaged { worker: u32, seq: u64 },
}
