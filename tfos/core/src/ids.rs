//! Identifiers as newtypes, so that an epoch cannot be passed where a partition is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A process started for the job, numbered from 0; it hosts exactly one node.
    ExecutorId(u32)
);
id!(
    /// Incarnation of the job on its model directory, from 1: each submit claims the next one, and
    /// everything an older one still writes is refused.
    Generation(u64)
);
id!(
    /// Number of updates applied to the model.
    GlobalStep(u64)
);
id!(
    /// One run of node functions over one feed: training, inference or evaluation.
    PhaseId(u32)
);
id!(
    /// The n-th try of an executor, from 0.
    Attempt(u32)
);
