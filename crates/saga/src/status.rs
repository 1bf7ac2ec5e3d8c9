//! What a saga's state is called, and which status may follow which: the written transition table.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a saga stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// A step is being attempted, or its function is about to say what comes next.
    Running,
    /// Nothing runs: a timer, a signal, a child, another attempt or its turn (limit) is waited for.
    Waiting,
    /// A person paused it; what was in flight has been, or will be, answered and journaled.
    Paused,
    /// What acted or may have acted is being undone.
    Compensating,
    /// It ended well.
    Completed,
    /// It failed or was cancelled, and everything that acted or may have acted is undone.
    Compensated,
    /// It needs a person: an undo is exhausted, or its function cannot go on.
    Stuck,
    /// A person gave it up. Nothing more is done.
    Abandoned,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Running,
        Self::Waiting,
        Self::Paused,
        Self::Compensating,
        Self::Completed,
        Self::Compensated,
        Self::Stuck,
        Self::Abandoned,
    ];

    /// The word that people and JSON use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Compensating => "compensating",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
            Self::Stuck => "stuck",
            Self::Abandoned => "abandoned",
        }
    }

    /// Nothing happens any more unless a person restarts it.
    #[must_use]
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated | Self::Abandoned)
    }

    /// The transition table: may `next` follow this status (staying is always allowed)?
    ///
    /// ```
    /// use rallypoint_saga::status::Status;
    /// assert!(Status::Compensating.may_become(Status::Stuck));
    /// assert!(!Status::Abandoned.may_become(Status::Running));
    /// ```
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use Status::{Abandoned, Compensated, Compensating, Completed, Paused, Running, Stuck, Waiting};
        if self == next {
            return true;
        }
        match self {
            Running => true,
            Waiting => true,
            Paused => true,
            // A restart from a step runs forward again once the later steps are undone.
            Compensating => matches!(next, Running | Waiting | Paused | Compensated | Stuck | Abandoned),
            // Restart from a step, or the compensation of a child by its parent.
            Completed => matches!(next, Compensating | Running | Waiting | Paused | Compensated | Stuck),
            Compensated => matches!(next, Running | Waiting | Stuck),
            Stuck => true,
            Abandoned => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
