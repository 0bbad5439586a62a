//! Errors of a node, with the one question that the driver asks of them: is this the cause, or did a peer
//! fail first.

use tfos_core::failure::{Cause, chain};

/// What a training function or the machinery around it can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Data, plan or store.
    #[error(transparent)]
    Data(#[from] tfos_data::Error),
    /// Parameter server or its client.
    #[error(transparent)]
    Ps(#[from] tfos_ps::Error),
    /// libtorch said no.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    /// A column could not become a tensor.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Tensor(#[from] crate::torch::tensor::TensorError),
    /// A scan panicked: a function of the query, or a decoder.
    #[error("a scan panicked: {0}")]
    Panicked(String),
    /// The application's own words.
    #[error("{0}")]
    Application(String),
    /// Some other library of the application.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
    /// A call that does not fit the state of the node.
    #[error("{what}; {try_this}")]
    Usage {
        /// What was wrong.
        what: String,
        /// What to do instead.
        try_this: String,
    },
    /// Inference has to give one result per row.
    #[error("inference gave {results} results in `{column}` for a batch of {rows} rows; give exactly one per row")]
    ResultCount {
        /// Column of the result.
        column: String,
        /// Rows of the result.
        results: usize,
        /// Rows of the batch.
        rows: usize,
    },
    /// A partition ended before the rows that the plan had counted.
    #[error(
        "partition {partition} has {rows} rows where its files' statistics promised {promised};          --deterministic cuts steps by them, so write the files again"
    )]
    Shorter {
        /// The partition.
        partition: u32,
        /// Rows that it has.
        rows: u64,
        /// Rows that it has at least, as the plan says.
        promised: u64,
    },
    /// The loss is no number any more.
    #[error("the loss is {loss} at global step {step}; lower the learning rate or look for bad rows: {rows}")]
    Diverged {
        /// NaN or infinite.
        loss: f64,
        /// Step at which it was computed.
        step: u64,
        /// Addresses of the rows.
        rows: String,
    },
    /// A checkpoint could not be written or read.
    #[error("checkpoint file `{path}` cannot be {action}")]
    Checkpoint {
        /// Path in the model directory.
        path: String,
        /// read or written.
        action: &'static str,
        /// What the store said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The checkpoint is of another model.
    #[error("the checkpoint `{path}` does not fit the model: {why}")]
    Mismatch {
        /// Manifest.
        path: String,
        /// In what they differ.
        why: String,
    },
    /// A file that was to hold weights.
    #[error("`{address}` cannot be used as weights: {why}")]
    Weights {
        /// The file.
        address: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// GPUs that were asked for are not to be had.
    #[error(transparent)]
    Gpu(#[from] tfos_core::gpu::Unavailable),
    /// The control stream.
    #[error("the driver at {url} cannot be reached")]
    Driver {
        /// Its URL.
        url: String,
        /// What the transport said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The driver did not take this executor.
    #[error("the driver refused this executor: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// Something of the operating system.
    #[error("cannot {what}")]
    System {
        /// The attempt.
        what: String,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// Ports.
    #[error(transparent)]
    Port(#[from] tfos_core::ports::PortError),
}

impl Error {
    /// How the driver hears of it.
    pub fn cause(&self) -> Cause {
        let chain = chain(self);
        match self {
            Self::Ps(e) if e.is_secondary() => Cause::PeerLost { chain },
            Self::Data(e) => Cause::Error { chain, user: e.is_user() },
            Self::Panicked(_) => Cause::Panic { message: chain.join(": ") },
            Self::Usage { .. }
            | Self::ResultCount { .. }
            | Self::Shorter { .. }
            | Self::Mismatch { .. }
            | Self::Weights { .. }
            | Self::Gpu(_) => Cause::Error { chain, user: true },
            _ => Cause::Error { chain, user: false },
        }
    }

    /// True when a checkpoint's file is not there (any more).
    pub fn is_gone(&self) -> bool {
        let Self::Checkpoint { source, .. } = self else { return false };
        matches!(source.downcast_ref(), Some(object_store::Error::NotFound { .. }))
    }

    /// An error in the application's own words.
    pub fn application(message: impl std::fmt::Display) -> Self {
        Self::Application(message.to_string())
    }
}

impl From<Box<dyn std::error::Error + Send + Sync>> for Error {
    fn from(e: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::Other(e)
    }
}
