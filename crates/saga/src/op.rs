//! The operations a saga's function asked for, with everything that became of each.

use crate::stamp;
use crate::value::Blob;
use rallypoint_base::time::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Number of an operation: given at creation, in program order, from 0.
pub type OpNumber = u32;

/// How a step is attempted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// An attempt without an answer after this long has an unknown outcome.
    pub timeout: Duration,
    /// Attempts in all before the step has failed. At least 1.
    pub attempts: u32,
    /// First wait before another attempt; doubles, with full jitter.
    pub base: Duration,
    /// Longest wait.
    pub cap: Duration,
    /// Attempts of the undo before it is exhausted.
    pub undo_attempts: u32,
    /// After this step there is only forward.
    pub pivot: bool,
    /// An attempt without a good answer has left nothing behind: only a known outcome is undone.
    pub atomic: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            attempts: 5,
            base: Duration::from_secs(1),
            cap: Duration::from_secs(30),
            undo_attempts: 10,
            pivot: false,
            atomic: false,
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A registered step: its value is enough to run and to undo it.
    Step {
        /// The step value.
        value: Blob,
        /// `None` = the default.
        policy: Option<Policy>,
    },
    /// A closure of the function, without undo.
    Run {
        /// `None` = the default.
        policy: Option<Policy>,
    },
    /// A timer.
    Sleep {
        /// From when it is journaled.
        length: Duration,
    },
    /// A signal from outside, by the operation's name.
    Signal {
        /// Longest wait.
        within: Option<Duration>,
    },
    /// Another saga.
    Child {
        /// Its name.
        saga: String,
        /// Its input.
        input: Blob,
    },
}

/// An operation as the function asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOp {
    /// Its number.
    pub number: OpNumber,
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: What,
}

/// Why something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The step says that the business does not allow it.
    Business,
    /// All attempts failed, the last one for a reason that may pass.
    Transient,
    /// No answer in time.
    TimedOut,
    /// The step's code panicked.
    Panicked,
    /// A bug or a missing part in the step; the saga stops and compensates nothing.
    Fatal,
    /// The other side refuses us as such (credentials, address, method).
    Misconfigured,
    /// A person cancelled the saga.
    Cancelled,
    /// The saga's deadline passed.
    Deadline,
    /// The function awaited something that is not rallypoint's.
    ForeignAwait,
    /// The function asks for something else than its journal says.
    Mismatch,
    /// No step or saga of this name is registered in the serving program.
    Unregistered,
    /// The function itself panicked.
    BodyPanicked,
    /// The function returned an error after a pivot: there is nothing that may be undone.
    AfterPivot,
    /// A child saga did not complete.
    Child,
    /// An undo is exhausted.
    UndoExhausted,
    /// The function cannot go on for a reason of its own: a person looks before anything is undone.
    Stopped,
}

/// What failed, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
    /// The typed error, if there is one.
    pub data: Option<Blob>,
}

impl Failure {
    /// A failure without data.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), data: None }
    }
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpState {
    /// Not begun: the saga is paused or waits for its turn.
    Held,
    /// It may act from now on: *started* is no record.
    InFlight,
    /// The next attempt waits for a timer.
    Backoff {
        /// When.
        #[serde(with = "stamp")]
        at: Time,
    },
    /// Waits for its timer, signal or child.
    Waiting {
        /// The end of the wait.
        at: Option<u64>,
    },
    /// It has a result.
    Done,
    /// It failed for good.
    Failed,
    /// The function does not want it any more, or never began it.
    Forgotten,
}

/// Where the undo of an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UndoState {
    /// Not asked for.
    None,
    /// To be undone once what was built on it is.
    Pending,
    /// Being attempted.
    InFlight,
    /// The next attempt waits for a timer.
    Backoff {
        /// When.
        #[serde(with = "stamp")]
        at: Time,
    },
    /// Undone.
    Done,
    /// It has no undo.
    NotDefined,
    /// Exhausted: a person decides.
    Failed,
    /// A person said to leave it.
    Skipped,
    /// A person says that it was undone by hand.
    Resolved,
}

impl UndoState {
    /// Still to be done or on its way.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::InFlight | Self::Backoff { .. })
    }
}

/// An operation and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Its number.
    pub number: OpNumber,
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: What,
    /// The saga's generation when it was asked for: part of its key.
    pub generation: u32,
    /// When it was asked for, in events of the saga.
    pub scheduled: u32,
    /// When its result was journaled, in events of the saga.
    pub ended: u32,
    /// Where it stands.
    pub state: OpState,
    /// Attempts begun.
    pub attempts: u32,
    /// At least one attempt had no certain end: it may have acted.
    pub unknown: bool,
    /// The function has been told the result.
    pub fed: bool,
    /// A person should look: it keeps failing and may not be given up.
    pub alarm: bool,
    /// Its result.
    pub output: Option<Blob>,
    /// Its last error.
    pub error: Option<Failure>,
    /// Where its undo stands.
    pub undo: UndoState,
    /// Attempts of the undo begun.
    pub undo_attempts: u32,
    /// The undo's last error.
    pub undo_error: Option<Failure>,
}

impl Op {
    /// An operation as it is journaled, before it begins.
    pub(crate) fn new(new: NewOp, generation: u32, scheduled: u32) -> Self {
        Self {
            number: new.number,
            name: new.name,
            what: new.what,
            generation,
            scheduled,
            ended: 0,
            state: OpState::Held,
            attempts: 0,
            unknown: false,
            fed: false,
            alarm: false,
            output: None,
            error: None,
            undo: UndoState::None,
            undo_attempts: 0,
            undo_error: None,
        }
    }

    /// Its policy, when it is a step.
    #[must_use]
    pub fn policy(&self) -> Policy {
        match &self.what {
            What::Step { policy, .. } | What::Run { policy } => policy.clone().unwrap_or_default(),
            _ => Policy::default(),
        }
    }

    pub(crate) fn is_pivot(&self) -> bool {
        match &self.what {
            What::Step { policy: Some(policy), .. } | What::Run { policy: Some(policy) } => policy.pivot,
            _ => false,
        }
    }

    pub(crate) fn is_atomic(&self) -> bool {
        match &self.what {
            What::Step { policy: Some(policy), .. } | What::Run { policy: Some(policy) } => policy.atomic,
            _ => false,
        }
    }

    /// It was given up before its policy says so: by unwinding.
    pub(crate) fn has_attempts_left(&self) -> bool {
        let refused = self.error.as_ref().is_some_and(|error| error.kind == FailureKind::Business);
        self.acts() && !refused && self.attempts < self.policy().attempts
    }

    /// A step or closure: something that acts.
    #[must_use]
    pub fn acts(&self) -> bool {
        matches!(self.what, What::Step { .. } | What::Run { .. })
    }

    /// It has a result, good or bad, that the function may be told.
    #[must_use]
    pub fn is_resolved(&self) -> bool {
        matches!(self.state, OpState::Done | OpState::Failed)
    }

    /// It acted, or may have.
    #[must_use]
    pub fn may_have_acted(&self) -> bool {
        match self.what {
            What::Step { .. } | What::Run { .. } => {
                self.state == OpState::Done || (self.unknown && !self.is_atomic())
            }
            What::Child { .. } => self.state == OpState::Done || self.unknown,
            What::Sleep { .. } | What::Signal { .. } => false,
        }
    }
}
