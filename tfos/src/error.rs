//! Errors as the user of the library and of the command sees them, and their exit codes.

use std::sync::Arc;

use tfos_core::config::ConfigError;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a job, seen from the driver's side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags or `job.yaml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Arguments of the application, or a call that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The driver: a node failed, the cluster did not form, the model directory cannot be used.
    #[error(transparent)]
    Driver(Arc<tfos_driver::Error>),
    /// Data, plans and stores.
    #[error(transparent)]
    Data(#[from] tfos_data::Error),
    /// Something on the side of an executor.
    #[error(transparent)]
    Executor(#[from] tfos_executor::Error),
    /// Ctrl-C, after the last checkpoint was written.
    #[error("interrupted")]
    Interrupted,
    /// A file or another thing of the operating system.
    #[error("cannot {what}")]
    System {
        /// The attempt.
        what: String,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// The application's own words.
    #[error("{0}")]
    Application(String),
    /// What a query was staged into cannot be used.
    #[error("{what}; {again}")]
    Staging {
        /// What is wrong.
        what: String,
        /// What to do.
        again: String,
    },
    /// A folder that was to be an export.
    #[error("`{address}` cannot be used as an export: {what}")]
    Export {
        /// The folder.
        address: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Inference did not give one result per row.
    #[error("results of inference are incomplete: {0}")]
    Results(String),
}

impl From<tfos_driver::Error> for Error {
    fn from(e: tfos_driver::Error) -> Self {
        Self::Driver(Arc::new(e))
    }
}

impl From<Arc<tfos_driver::Error>> for Error {
    fn from(e: Arc<tfos_driver::Error>) -> Self {
        Self::Driver(e)
    }
}

impl From<tfos_data::datafusion::error::DataFusionError> for Error {
    fn from(e: tfos_data::datafusion::error::DataFusionError) -> Self {
        Self::Data(tfos_data::Error::from_datafusion(e))
    }
}

impl Error {
    /// 0 ok, 1 job failed, 2 usage or configuration, 3 the cluster did not form, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) => 2,
            Self::Driver(e) => match &**e {
                tfos_driver::Error::NotFormed { .. } => 3,
                tfos_driver::Error::Port(_) => 2,
                tfos_driver::Error::Interrupted => 130,
                _ => 1,
            },
            Self::Interrupted => 130,
            Self::Data(_)
            | Self::Executor(_)
            | Self::System { .. }
            | Self::Application(_)
            | Self::Results(_)
            | Self::Export { .. }
            | Self::Staging { .. } => 1,
        }
    }

    /// The failure that the driver found to be the root cause, if that is what this is.
    pub fn root_cause(&self) -> Option<&tfos_core::failure::Failure> {
        match self {
            Self::Driver(e) => match &**e {
                tfos_driver::Error::Failed(failure) => Some(failure),
                _ => None,
            },
            _ => None,
        }
    }
}
