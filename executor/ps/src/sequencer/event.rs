//! What the sequencer is told and what it answers.

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use crate::decision::DecisionKind;
use crate::decision::{Commit, Decision, DropReason};
use crate::dial::Dial;

/// How pushes become global steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Mode {
    /// Every complete push becomes the next global step, in order of completion.
    Async,
    /// As soon as min(R, active workers) pushes computed at the current step are complete, their mean, weighted by
    /// rows, becomes the next step; what comes later was computed at an old step and is dropped.
    Sync { replicas_to_aggregate: u32 },
    /// As `Async`, but the answer to a push waits while its worker is more than so many of its own steps ahead of the
    /// slowest active worker; with 0 they go in step.
    Bounded { max_staleness: u32 },
    /// As `Sync`, but for the variables of eager groups, whose part of a push is applied as soon as it is accepted; see
    /// [`Dial`].
    Grouped { replicas_to_aggregate: u32 },
    /// A push is not a gradient but what a worker made of the parameters by so many updates of its own, and of the slots:
    /// the mean of those of all active workers, weighted by rows, becomes the next step, as in `Sync`.
    LocalSgd { steps: u32 },
    /// Each push says which part of which step it is ([`Place`]). When all parts of the next step are complete, their sum
    /// in the order of their places, weighted by rows, becomes it, whoever pushed them and in whatever order.
    Deterministic,
}

impl Mode {
    /// Pushes that make a step when more workers than that are active.
    pub(super) fn wanted(self) -> usize {
        match self {
            Mode::Sync { replicas_to_aggregate } | Mode::Grouped { replicas_to_aggregate } => {
                replicas_to_aggregate.max(1) as usize
            }
            Mode::Async | Mode::Bounded { .. } => 1,
            Mode::LocalSgd { .. } | Mode::Deterministic => usize::MAX,
        }
    }

    /// Whether each gradient that is applied was computed at the step before the one that it becomes.
    pub(super) fn is_fresh(self) -> bool {
        !matches!(self, Mode::Async | Mode::Bounded { .. })
    }

    /// Whether it can be left or entered while training goes on: where pushes are gradients of the current step.
    pub(super) fn can_turn(self) -> Result<(), &'static str> {
        match self {
            Mode::LocalSgd { .. } => Err(
                "nodes of local-sgd have updates of their own that nobody has seen; a job that is submitted again can \
                     begin or end it",
            ),
            Mode::Deterministic => Err("deterministic training stays what it is from its first step to its last"),
            _ => Ok(()),
        }
    }

    /// How many updates of its own a worker pushes at a time; `None` where it pushes gradients.
    pub(crate) fn local_steps(self) -> Option<u32> {
        if let Mode::LocalSgd { steps } = self { Some(steps) } else { None }
    }
}

/// Which part of its step a push is, in deterministic training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub index: u32,
    /// How many parts the step has.
    pub of: u32,
}

/// What happened, as the sequencer sees it. Workers are named by index; the host keeps apart the sessions of a
/// worker that connects again, and its `seq` numbers increase over sessions.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// All shards have been initialised, at this global step.
    Initialised {
        mode: Mode,
        step: u64,
        /// Rounds of measuring before each update, see [`DecisionKind::Measure`]; 0 where nothing is measured.
        rounds: u32,
    },
    WorkerJoined(u32),
    /// It has rows again.
    WorkerActive(u32),
    /// It has no rows at the moment.
    WorkerIdle(u32),
    /// It finished.
    WorkerLeft(u32),
    /// It died: from here on nothing of it is applied.
    WorkerLost(u32),
    /// The worker's gradient has fully arrived at this shard.
    Staged {
        shard: usize,
        worker: u32,
        seq: u64,
        base_step: u64,
    },
    /// What ps:0 knows of a push besides the gradient.
    PushMeta(PushMeta),
    /// A shard has performed the measuring decision of this step and round.
    Measured {
        shard: usize,
        step: u64,
        round: u32,
        sums: Vec<f64>,
    },
    SnapshotRequested {
        id: u64,
    },
    /// From here on, or from the end of what is half applied, pushes become updates in another way. Answered if it has
    /// an id; before the beginning it takes the place of the mode of `Initialised`.
    Turn {
        id: Option<u64>,
        dial: Dial,
    },
    /// No update after this global step; `None` lifts the bound.
    MaxSteps(Option<u64>),
    /// No further updates at all.
    Stop,
}

/// A push without its gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct PushMeta {
    pub worker: u32,
    pub seq: u64,
    /// Global step of the parameters that the gradient was computed from.
    pub base_step: u64,
    pub rows: u64,
    pub loss: f64,
    pub leases: Vec<u8>,
    /// Whether non-trainable state came with it.
    pub buffers: bool,
    /// In deterministic mode only.
    pub place: Option<Place>,
}

/// What the host must do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send to all shards, this one included, in this order.
    Decide(Decision),
    /// Tell the host of the ps.
    Emit(Notice),
}

/// What the host of ps:0 is told, in the order of the decisions.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// These pushes became global step `step`: their leases are committed with it.
    Committed { step: u64, commits: Vec<Commit> },
    /// This push was not applied: its leases go back. Not sent for a push of which only gradients arrived.
    Dropped { worker: u32, seq: u64, leases: Vec<u8>, reason: DropReason },
    /// Every step after `step` is made as turn `id` says; or why it cannot be, and nothing has changed.
    Turned { id: u64, step: u64, refused: Option<&'static str> },
    /// Everything before is in snapshot `id`, nothing after.
    SnapshotMarker { id: u64, step: u64 },
}
