//! What can happen to a job, and what the driver can do about it: both closed sets.

use tfos_core::checkpoint::{Column, Manifest, Part, Scores};
use tfos_core::cluster::{ClusterSpec, Refusal, Reservation};
use tfos_core::failure::{Cause, Failure};
use tfos_core::ids::{ExecutorId, GlobalStep};
use tfos_core::proto::{RescueReport, from_driver, from_executor};
use tfos_core::rows::CommittedRows;

use crate::settings::Answer;
use crate::state::{PhaseOutcome, PhaseSpec};

/// Number of a control stream; a reconnect has another one.
pub type Connection = u64;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// The launcher started the process of an executor.
    Launched {
        /// Which one.
        executor: ExecutorId,
        /// Its process id.
        pid: u32,
        /// Its log.
        log: String,
    },
    /// An executor opened its stream with a valid token.
    Register {
        /// Its stream.
        connection: Connection,
        /// Its claim; the id counts only if `wants_id`.
        claim: Reservation,
        /// False: any free place will do.
        wants_id: bool,
        /// Its log.
        log: String,
    },
    /// A message on the stream of a registered executor.
    Message {
        /// The stream.
        connection: Connection,
        /// The message.
        message: from_executor::Message,
    },
    /// A stream ended.
    StreamClosed {
        /// The stream.
        connection: Connection,
        /// What was seen.
        reason: String,
    },
    /// A process that the launcher watches ended.
    ProcessExited {
        /// Which one.
        executor: ExecutorId,
        /// How.
        cause: Cause,
        /// First error in its log.
        said: Option<String>,
    },
    /// Time has passed.
    Tick,
    /// The application wants a phase to run.
    StartPhase(Box<PhaseSpec>),
    /// A checkpoint's manifest is in the store.
    CheckpointStored {
        /// Its step.
        step: GlobalStep,
        /// Its manifest's path.
        manifest: String,
    },
    /// A checkpoint could not be committed.
    CheckpointFailed {
        /// Why, for people.
        reason: String,
        /// Nothing will change that: another driver has the model directory.
        is_final: bool,
        /// What it was; its rows belong to the next one.
        cut: Box<CheckpointCut>,
    },
    /// What a dead executor left behind is writing its snapshot, or has done so.
    Rescue {
        /// Under which it is answered.
        ticket: u64,
        /// What it says.
        report: RescueReport,
    },
    /// A command asks for another consistency.
    SetAsked {
        /// Of its request.
        number: u64,
        /// As it was written.
        consistency: String,
    },
    /// Somebody who called himself an executor was turned away.
    Rejected {
        /// Where the call came from.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The engine that runs the query of the phase has given up.
    QueryFailed {
        /// Why.
        reason: String,
    },
    /// First Ctrl-C: finish the batch, checkpoint, stop.
    Drain,
    /// Second Ctrl-C, or the end of the application.
    Shutdown {
        /// For the log.
        reason: String,
    },
}

/// One applied update, for the commit log.
#[derive(Debug, Clone, PartialEq)]
pub struct CommitRecord {
    /// Step that it became.
    pub global_step: u64,
    /// Trainer that computed it.
    pub worker: u32,
    /// Its loss.
    pub loss: f64,
    /// Its rows.
    pub ranges: Vec<tfos_core::rows::RowRange>,
    /// When the driver learned of it.
    pub at: std::time::Instant,
}

/// A checkpoint that is complete but for its manifest.
#[derive(Debug, Clone)]
pub struct CheckpointCut {
    /// Step of the cut.
    pub step: GlobalStep,
    /// Optimizer's own count.
    pub optimizer_step: u64,
    /// The written parts.
    pub parts: Vec<Part>,
    /// JSON of the layout.
    pub layout: String,
    /// JSON of the optimizer.
    pub optimizer: String,
    /// Rows that the parameters have seen.
    pub rows: CommittedRows,
    /// Their number.
    pub rows_total: u64,
    /// Commits since the checkpoint before.
    pub commits: Vec<CommitRecord>,
    /// Identity of the input.
    pub input_fingerprint: String,
    /// JSON of the nodes' arguments.
    pub arguments: String,
    /// Columns of the input.
    pub columns: Vec<Column>,
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// Give the stream to this executor and greet it.
    Accept {
        /// The stream.
        connection: Connection,
        /// Its executor.
        executor: ExecutorId,
    },
    /// Send the executor away.
    Refuse {
        /// The stream.
        connection: Connection,
        /// Why.
        refusal: Refusal,
    },
    /// Send a message.
    Send {
        /// To whom.
        executor: ExecutorId,
        /// What.
        message: from_driver::Message,
    },
    /// Every executor is in.
    Formed(ClusterSpec),
    /// The cluster did not form.
    FormFailed {
        /// Why, naming who is missing and what was last known of them.
        reason: String,
    },
    /// Write ledger segment and manifest, then delete old checkpoints.
    CommitCheckpoint(Box<CheckpointCut>),
    /// No checkpoint could be written, and the user's limit is reached, or it will never be possible.
    CheckpointsFail {
        /// How many in a row.
        failures: u32,
        /// Why the last one failed.
        reason: String,
    },
    /// Answer a rescue.
    AnswerRescue {
        /// Which one.
        ticket: u64,
        /// Whether its part is still of use.
        wanted: bool,
    },
    /// Answer a request to change a setting.
    AnswerSet {
        /// Which one.
        number: u64,
        /// What became of it.
        answer: Answer,
    },
    /// Note what the evaluator made of a checkpoint.
    Score {
        /// Its step.
        step: GlobalStep,
        /// Means of its metrics.
        scores: Scores,
    },
    /// Note what a node reported.
    Reported {
        /// Its executor.
        from: ExecutorId,
        /// Step of the parameters.
        step: GlobalStep,
        /// Name, value, and the rows that it is a mean of.
        metrics: Vec<(String, f64, u64)>,
    },
    /// Note that an executor is lost, and why.
    Lost(Box<Failure>),
    /// A phase ended.
    PhaseDone(Box<PhaseOutcome>),
    /// The job failed; `Stop` was sent to everybody, and whoever is left is to be killed.
    Fail(Box<Failure>),
    /// Nobody is needed any more: stop and reap everybody.
    StopAll,
    /// A line for the driver's log.
    Note(String),
    /// The same, of something that goes wrong.
    Warn(String),
    /// A line that the user has to see.
    Say(String),
}

/// What the manifest of a stored checkpoint looked like, for the summary.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Path relative to the model directory.
    pub path: String,
    /// Its content.
    pub manifest: Manifest,
}
