//! Errors of the driver.

use tfos_core::failure::Failure;
use tfos_core::ports::PortError;

/// Why a job could not run or did not finish.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver's own port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The control server broke.
    #[error("the control server failed")]
    Server(#[source] tonic::transport::Error),
    /// An executor's process could not be started.
    #[error("executor {executor} could not be started from `{program}`")]
    Launch {
        /// Which one.
        executor: u32,
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file of the driver's own.
    #[error("`{path}` could not be {action}")]
    File {
        /// The file.
        path: String,
        /// read, written, created, removed.
        action: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The cluster did not form.
    #[error("the cluster did not form: {reason}")]
    NotFormed {
        /// Who is missing.
        reason: String,
    },
    /// A node failed; this is the root cause.
    #[error("{0}")]
    Failed(Box<Failure>),
    /// Ballista cannot be started.
    #[error("cannot {what}")]
    Engine {
        /// The attempt, and what came of it.
        what: String,
    },
    /// The job was stopped by its user.
    #[error("interrupted")]
    Interrupted,
    /// The model directory cannot be used.
    #[error("the model directory `{url}` cannot be used: {what}")]
    ModelDir {
        /// The directory.
        url: String,
        /// What was tried.
        what: String,
        /// What the store said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Training could have gone on, but nothing of it would have been kept.
    #[error(
        "{failures} checkpoints in a row could not be written: {reason}; the job stops rather than lose more \
         (--checkpoint-failure-limit)"
    )]
    Checkpoints {
        /// How many.
        failures: u32,
        /// Why the last one could not.
        reason: String,
    },
    /// The checkpoint belongs to something else.
    #[error("the checkpoint `{path}` cannot be resumed from: {why}")]
    Foreign {
        /// Its manifest.
        path: String,
        /// In what it differs, and what to do.
        why: String,
    },
    /// Another driver has taken over the model directory.
    #[error("generation {mine} of this job has been superseded by generation {newest}: another submit uses `{url}`")]
    Fenced {
        /// The directory.
        url: String,
        /// Ours.
        mine: u64,
        /// The newest.
        newest: u64,
    },
    /// A request to a job got no answer.
    #[error(
        "no job answered on `{url}`{}; is one running on it?",
        if *generation == 0 { String::new() } else { format!(" (its newest is generation {generation})") }
    )]
    NotRunning {
        /// The directory.
        url: String,
        /// The newest job on it; 0 if there was none.
        generation: u64,
    },
    /// Data or plan.
    #[error(transparent)]
    Data(#[from] tfos_data::Error),
    /// The loop is gone, which happens only after another error was reported.
    #[error("the driver has stopped")]
    Stopped,
}

impl Error {
    /// Whether trying again is of no use: somebody else has the model directory.
    pub(crate) fn is_final(&self) -> bool {
        use object_store::Error as Store;
        match self {
            Error::Fenced { .. } => true,
            Error::ModelDir { source, .. } => {
                matches!(source.downcast_ref::<Store>(), Some(Store::AlreadyExists { .. }))
            }
            _ => false,
        }
    }
}
