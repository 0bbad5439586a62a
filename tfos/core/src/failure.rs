//! What went wrong on a node, kept as a type until the driver has decided which failure is the cause.
//!
//! - `ERR-1` a job reports ONE root cause: a process that died outranks what a node reported, and that
//!   outranks what others saw of it (a lost peer).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cluster::NodeId;
use crate::ids::ExecutorId;

/// Why a node or its process failed. The order of the variants is their rank as a root cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// The process was ended by a signal.
    Signal {
        /// Number of the signal, 9 for SIGKILL.
        signal: i32,
    },
    /// The process ended by itself.
    Exit {
        /// Its exit code.
        code: i32,
    },
    /// The training function panicked.
    Panic {
        /// Panic message and place.
        message: String,
    },
    /// The node's own code or input failed.
    Error {
        /// The error and its causes, outermost first.
        chain: Vec<String>,
        /// True when the input or the configuration is at fault.
        user: bool,
    },
    /// The control stream broke, or no sign of life came in time.
    Lost {
        /// What the driver saw.
        reason: String,
    },
    /// Another node could not be reached: the consequence of its failure, seldom the cause.
    PeerLost {
        /// The error and its causes, outermost first.
        chain: Vec<String>,
    },
}

impl Cause {
    /// Smaller is nearer to the root (`ERR-1`).
    pub fn rank(&self) -> u8 {
        match self {
            // A process that exits by itself after reporting an error says less than the report.
            Self::Signal { .. } => 0,
            Self::Panic { .. } | Self::Error { .. } => 1,
            Self::Exit { .. } => 2,
            Self::Lost { .. } => 3,
            Self::PeerLost { .. } => 4,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal { signal } => write!(f, "killed by signal {signal}{}", signal_name(*signal)),
            Self::Exit { code } => write!(f, "exited with code {code}"),
            Self::Panic { message } => write!(f, "panicked: {message}"),
            Self::Error { chain, .. } | Self::PeerLost { chain } => f.write_str(&chain.join(": ")),
            Self::Lost { reason } => f.write_str(reason),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        6 => " (SIGABRT)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

/// A failure with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The node, when roles were known.
    pub node: Option<NodeId>,
    /// The executor.
    pub executor_id: ExecutorId,
    /// Its host.
    pub host: String,
    /// What happened.
    #[serde(flatten)]
    pub cause: Cause,
    /// First error in its log, where the process ended without a report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    /// Where its log is.
    pub log: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "{node} (executor {}, host {})", self.executor_id, self.host)?,
            None => write!(f, "executor {} (host {})", self.executor_id, self.host)?,
        }
        write!(f, " {}", self.cause)?;
        if let Some(said) = &self.first_error {
            write!(f, ": {said}")?;
        }
        if let Some(log) = &self.log {
            write!(f, "; log: {log}")?;
        }
        Ok(())
    }
}

/// The messages of an error and of its sources, outermost first; a source that only repeats what the
/// message above it ends with is left out.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut chain = vec![error.to_string()];
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !chain.last().is_some_and(|last| last.ends_with(&text)) {
            chain.push(text);
        }
        next = source.source();
    }
    chain
}

/// The one failure to report: lowest rank, and among equals the first seen.
pub fn root_cause(failures: &[Failure]) -> Option<&Failure> {
    failures.iter().min_by_key(|f| f.cause.rank())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(id: u32, cause: Cause) -> Failure {
        Failure { node: None, executor_id: ExecutorId(id), host: "h".into(), cause, first_error: None, log: None }
    }

    #[test] // ERR-1
    fn the_process_that_died_is_the_cause_not_those_who_noticed() {
        let seen = [
            failure(1, Cause::PeerLost { chain: vec!["connection to ps:0 lost".into()] }),
            failure(2, Cause::Lost { reason: "stream broke".into() }),
            failure(0, Cause::Signal { signal: 9 }),
        ];
        assert_eq!(root_cause(&seen).unwrap().executor_id, ExecutorId(0));
        assert!(root_cause(&seen).unwrap().to_string().contains("SIGKILL"));
    }

    #[test] // ERR-1
    fn the_first_of_equals_wins() {
        let e = |s: &str| Cause::Error { chain: vec![s.into()], user: false };
        let seen = [failure(2, e("first")), failure(1, e("second"))];
        assert_eq!(root_cause(&seen).unwrap().executor_id, ExecutorId(2));
    }
}
