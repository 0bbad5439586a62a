//! One error type for everything that can go wrong between a stored file and a record batch.
//!
//! Each variant names the file, the byte offset or the column it speaks of, and says what to do. Errors cross
//! DataFusion as `DataFusionError::External` and are recovered by [`Error::from_datafusion`], so that a caller can
//! still ask whose fault it was ([`Error::is_user`]).

use std::error::Error as StdError;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;

use crate::store::explain;

/// What this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure while finding, reading, decoding, planning or writing data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store answered with an error that is not "not found".
    #[error("cannot access `{url}`: the object store failed")]
    Store {
        url: String,
        #[source]
        source: object_store::Error,
    },
    /// Keys that the store does not take.
    #[error("the store of `{url}` refuses ({code}); check {keys}, and what they are allowed to do there")]
    Refused { url: String, code: String, keys: &'static str, answer: Box<object_store::Error> },
    /// No answer from the store's server.
    #[error("the store of `{url}` does not answer ({why}); check the address and {place}")]
    Unreachable { url: String, why: String, place: &'static str, answer: Box<object_store::Error> },
    /// A store without this bucket or container.
    #[error("the bucket of `{url}` does not exist; create it, or check its name and {place}")]
    NoBucket { url: String, place: &'static str, answer: Box<object_store::Error> },
    /// Nothing at this address.
    #[error("`{url}` does not exist; check the path, and that every executor can see it")]
    NotFound { url: String },
    /// A directory or glob without a data file.
    #[error("no data files in `{url}`; names that begin with `_` or `.` are not read")]
    NoFiles { url: String },
    /// An address that cannot be understood or a scheme without a store.
    #[error("cannot use `{url}`: {reason}")]
    BadUrl { url: String, reason: String },
    /// The file ends inside a record.
    #[error(
        "`{path}` is truncated: it ends at byte {end} inside the record that begins at byte {offset} ({wanted} more bytes expected); write the file again"
    )]
    Truncated { path: Arc<str>, offset: u64, end: u64, wanted: u64 },
    /// A checksum does not fit: bits changed since the file was written.
    #[error("`{path}` is corrupt at byte {offset}: {what}; is it a TFRecord file?")]
    Corrupt { path: Arc<str>, offset: u64, what: Damage },
    /// The gzip or zlib stream around the records is broken.
    #[error("`{path}` is corrupt: the {kind} stream breaks after {offset} uncompressed bytes")]
    Compression {
        path: Arc<str>,
        kind: &'static str,
        offset: u64,
        #[source]
        source: std::io::Error,
    },
    /// One record cannot be decoded with the schema in use.
    #[error("`{path}`: bad example at byte {offset}")]
    BadExample {
        path: Arc<str>,
        offset: u64,
        #[source]
        reason: ExampleFault,
    },
    /// The schema in the user's words cannot be parsed.
    #[error(
        "bad schema at `{at}`: {reason}; write for example `image:binary,label:int64,x:float32[784],tags:string[]`"
    )]
    SchemaText { at: String, reason: &'static str },
    /// A column that was asked for is not there.
    #[error("no column `{column}`; there are: {there}", there = .existing.join(", "))]
    MissingColumn { column: String, existing: Vec<String> },
    /// A column is there with another type than needed.
    #[error("column `{column}` has type {found}, wanted {wanted}")]
    ColumnType { column: String, wanted: String, found: DataType },
    /// A file's columns do not fit those of the files before it.
    #[error("`{path}`: its columns do not fit the other files' columns")]
    SchemaMerge {
        path: String,
        #[source]
        source: ArrowError,
    },
    /// An idx file is not what its header or its name says.
    #[error("`{path}` is not a usable idx file: {reason}")]
    Idx { path: String, reason: String },
    /// A file cannot be opened as the format that was named.
    #[error("cannot read `{path}` as {format}; the file may be truncated or of another format")]
    Open {
        path: String,
        format: &'static str,
        #[source]
        source: Box<DataFusionError>,
    },
    /// A file was opened, and its rows cannot be decoded.
    #[error("`{path}` is damaged: its rows cannot be decoded as {format}; write the file again")]
    Damaged {
        path: String,
        format: String,
        #[source]
        source: Box<DataFusionError>,
    },
    /// A file is not the one that the query was planned on.
    #[error(
        "`{path}` has {found} bytes and had {planned} when the job began; the files of an input must not change while a \
         job is on them: write new ones beside them"
    )]
    Changed { path: String, planned: u64, found: u64 },
    /// The operator needs rows of more than one partition.
    #[error(
        "the plan contains `{operator}`: a query with an exchange (join, aggregate, window, sort, limit) has to be staged before it can be fed"
    )]
    Exchange { operator: String },
    /// A query whose rows may come in another order each time.
    #[error(
        "the plan contains `{operator}` over several partitions, so its rows come in another order each time; with \
         --deterministic write its result into files first, and train on those"
    )]
    Unordered { operator: String },
    /// A query that calls a function which gives other values each time.
    #[error(
        "the query computes `{expression}`, which is something else each time; with --deterministic write its result into \
         files first, and train on those"
    )]
    Volatile { expression: String },
    /// The plan cannot travel or has no such partition.
    #[error("plan: {reason}")]
    Plan { reason: String },
    /// A request that this crate does not serve.
    #[error("{what} is not supported; {instead}")]
    Unsupported { what: String, instead: String },
    /// A local file operation failed.
    #[error("cannot {action} `{path}`")]
    Io {
        action: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
    /// DataFusion failed for a reason of its own.
    #[error("the query engine failed")]
    DataFusion(#[source] Box<DataFusionError>),
    /// Arrow refused to build or convert an array.
    #[error("cannot build or convert a column")]
    Arrow(#[from] ArrowError),
    /// A plan could not be decoded from its bytes.
    #[error("plan bytes are not readable; driver and executor must be the same version")]
    PlanBytes(#[from] prost::DecodeError),
    /// An error of ours that DataFusion had already shared between several partitions.
    #[error(transparent)]
    Shared(#[from] SharedError),
}

/// One of our errors, still owned by a DataFusion error that several readers hold.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SharedError(#[source] Arc<DataFusionError>);

/// Which part of a record frame does not fit its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("the record length does not match its checksum")]
    Length,
    #[error("the record data does not match its checksum")]
    Data,
    #[error("a record of {0} bytes is longer than any tf.train.Example")]
    TooLong(u64),
}

/// Why a record does not become a row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ExampleFault {
    #[error("the record is not a tf.train.Example ({what} at byte {at} of the record)")]
    Malformed { at: usize, what: &'static str },
    #[error(
        "feature `{feature}` holds {found}, the schema wants {wanted}; give a schema that fits every record, for example `{feature}:{found_hint}`"
    )]
    Kind { feature: String, wanted: String, found: &'static str, found_hint: &'static str },
    #[error(
        "feature `{feature}` holds {found} values, the schema wants {wanted}; give a schema, for example `{feature}:TYPE[]`"
    )]
    Count { feature: String, wanted: usize, found: usize },
    #[error("feature `{feature}` holds {value}, which does not fit into {wanted}; give a wider type")]
    Range { feature: String, value: i64, wanted: &'static str },
    #[error("feature `{feature}` is not valid UTF-8; give a schema with `{feature}:binary`")]
    Utf8 { feature: String },
    #[error("feature `{feature}`: more than 2 GiB in one batch; use a smaller batch or `large_binary`")]
    TooLarge { feature: String },
}

impl Error {
    /// Is this the user's to mend (path, schema, file, query), rather than a store or network to wait for?
    pub fn is_user(&self) -> bool {
        match self {
            Self::Store { .. } | Self::Unreachable { .. } | Self::Io { .. } => false,
            Self::DataFusion(e) => user_fault(e),
            // Arrow's reader calls a file that it cannot parse an internal error.
            Self::Open { source, .. } => {
                user_fault(source) || matches!(source.find_root(), DataFusionError::Internal(_))
            }
            Self::Shared(e) => find_ours(&e.0).is_none_or(Self::is_user),
            Self::Arrow(ArrowError::IoError(..) | ArrowError::MemoryError(_)) => false,
            Self::Refused { .. }
            | Self::NoBucket { .. }
            | Self::NotFound { .. }
            | Self::NoFiles { .. }
            | Self::BadUrl { .. }
            | Self::Truncated { .. }
            | Self::Corrupt { .. }
            | Self::Compression { .. }
            | Self::BadExample { .. }
            | Self::SchemaText { .. }
            | Self::MissingColumn { .. }
            | Self::ColumnType { .. }
            | Self::SchemaMerge { .. }
            | Self::Idx { .. }
            | Self::Damaged { .. }
            | Self::Changed { .. }
            | Self::Exchange { .. }
            | Self::Unordered { .. }
            | Self::Volatile { .. }
            | Self::Plan { .. }
            | Self::Unsupported { .. }
            | Self::Arrow(_)
            | Self::PlanBytes(_) => true,
        }
    }

    /// Turns DataFusion's error back into ours where ours is at its root.
    pub fn from_datafusion(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(other) => Self::DataFusion(Box::new(DataFusionError::External(other))),
            },
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner)
                if find_ours(&inner).is_some() =>
            {
                Self::from_datafusion(*inner)
            }
            DataFusionError::Shared(inner) if find_ours(&inner).is_some() => match Arc::try_unwrap(inner) {
                Ok(inner) => Self::from_datafusion(inner),
                Err(inner) => Self::Shared(SharedError(inner)),
            },
            DataFusionError::ArrowError(inner, context) => match *inner {
                ArrowError::ExternalError(e) => Self::from_datafusion(DataFusionError::External(e)),
                other => Self::DataFusion(Box::new(DataFusionError::ArrowError(Box::new(other), context))),
            },
            other if matches!(&other, DataFusionError::ObjectStore(e) if matches!(**e, object_store::Error::NotFound { .. })) => {
                match other {
                    DataFusionError::ObjectStore(e) => Self::from_store(*e, ""),
                    other => Self::DataFusion(Box::new(other)),
                }
            }
            other => Self::DataFusion(Box::new(other)),
        }
    }

    /// Carries ours through DataFusion.
    pub fn into_datafusion(self) -> DataFusionError {
        match self {
            Self::DataFusion(e) => *e,
            Self::Shared(e) => DataFusionError::Shared(e.0),
            other => DataFusionError::External(Box::new(other)),
        }
    }

    /// Names the address in a store's error; an empty `url` takes the path that the store itself names.
    pub fn from_store(source: object_store::Error, url: &str) -> Self {
        match explain(source, url) {
            Ok(explained) => explained,
            Err(object_store::Error::NotFound { path, .. }) => {
                Self::NotFound { url: if url.is_empty() { path } else { url.to_owned() } }
            }
            Err(source) => Self::Store { url: url.to_owned(), source },
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        Self::from_datafusion(error)
    }
}

/// Our error in the source chain of another, if there is one.
fn find_ours(error: &DataFusionError) -> Option<&Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(e) = next {
        if let Some(ours) = e.downcast_ref::<Error>() {
            return Some(ours);
        }
        next = e.source();
    }
    None
}

fn user_fault(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::ObjectStore(e) => matches!(**e, object_store::Error::NotFound { .. }),
        DataFusionError::IoError(_)
        | DataFusionError::Internal(_)
        | DataFusionError::ExecutionJoin(_)
        | DataFusionError::ResourcesExhausted(_)
        | DataFusionError::Ffi(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Error {
        Error::Corrupt { path: "a".into(), offset: 7, what: Damage::Data }
    }

    #[test]
    fn ours_survives_datafusion() {
        let wrapped = ours().into_datafusion().context("scan");
        assert!(matches!(Error::from(wrapped), Error::Corrupt { offset: 7, .. }));
        let arrow = DataFusionError::ArrowError(Box::new(ArrowError::ExternalError(Box::new(ours()))), None);
        assert!(matches!(Error::from(arrow), Error::Corrupt { offset: 7, .. }));
    }

    #[test]
    fn shared_error_keeps_its_text_and_fault() {
        let shared = Arc::new(ours().into_datafusion());
        let error = Error::from(DataFusionError::Shared(Arc::clone(&shared)));
        assert!(error.is_user());
        assert!(error.to_string().contains("corrupt at byte 7"), "{error}");
        assert!(matches!(Error::from(DataFusionError::Shared(shared)), Error::Shared(_)));
    }

    #[test]
    fn stores_are_not_the_users_fault() {
        let source = object_store::Error::NotImplemented { operation: "x".into(), implementer: "y".into() };
        assert!(!Error::from_store(source, "s3://b/k").is_user());
    }
}
