//! What a saga's machine is told, and what it asks for.

use crate::op::{Failure, NewOp, OpNumber};
use crate::value::Blob;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Run or undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// The step itself.
    Run,
    /// Its undo.
    Undo,
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// It acted; the output.
    Done(Blob),
    /// It did not end well.
    Failed {
        /// Why.
        failure: Failure,
        /// False only when it is certain that nothing was done.
        may_have_acted: bool,
        /// The other side asked to wait this long.
        retry_after: Option<Duration>,
    },
    /// An undo that the step does not define.
    NotDefined,
}

/// How the function ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this output.
    Completed(Blob),
    /// With an error: compensation begins.
    Failed(Failure),
    /// It cannot go on: the saga is stuck until a person retries it.
    Broken(Failure),
}

/// One poll of the function: what it was told and what it asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Its number: the turns journaled before it.
    pub index: u32,
    /// The generation whose journal the function was told: another one's words count for nothing.
    pub generation: u32,
    /// Results it was told, in order.
    pub fed: Vec<OpNumber>,
    /// Operations it asked for.
    pub ops: Vec<NewOp>,
    /// Timers, signals and children it does not wait for any more.
    pub forgotten: Vec<OpNumber>,
    /// How it ended, if it did.
    pub end: Option<End>,
}

/// What is fixed when a saga begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Name of the saga function.
    pub name: String,
    /// Its declared version.
    pub version: u32,
    /// Digest of a declared saga's definition; 0 for code.
    pub digest: u64,
    /// Its input.
    pub input: Blob,
    /// Sagas of this name that may run at once.
    pub concurrency: Option<u32>,
    /// Cancelled this long after its start.
    pub deadline: Option<Duration>,
    /// Whose child it is.
    pub parent: Option<Parent>,
    /// The first poll, when the starter made one.
    pub turn: Option<Turn>,
    /// What keys of this saga begin with: drawn by who starts it, the same for no other start. (It stands
    /// in the input, so that a replay in a restored store sees the same one.)
    pub history: String,
}

/// Whose child a saga is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Id of the parent saga.
    pub id: String,
    /// The parent's operation.
    pub op: OpNumber,
    /// The parent's generation.
    pub generation: u32,
}

/// A timer of a saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TimerKey {
    /// End of a sleep, or of the wait for a signal.
    Wait(OpNumber),
    /// Next attempt.
    Retry(OpNumber),
    /// Next attempt of an undo.
    UndoRetry(OpNumber),
    /// The saga's deadline.
    Deadline,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A saga begins.
    Start(Box<Start>),
    /// An attempt ended.
    Attempted {
        /// Which operation.
        op: OpNumber,
        /// In which generation.
        generation: u32,
        /// Run or undo.
        direction: Direction,
        /// It may have been attempted before, in a process that ended.
        earlier: bool,
        /// How it ended.
        attempt: Attempt,
        /// What the function said when it was told.
        turn: Option<Turn>,
    },
    /// The function was polled because the machine asked for it.
    Driven(Turn),
    /// A timer fired.
    Timer(TimerKey),
    /// A signal came.
    Signal {
        /// Its name.
        name: String,
        /// Its value.
        value: Blob,
    },
    /// The limit has a place for this saga.
    Granted,
    /// A child ended (or was undone).
    ChildEnded {
        /// The parent's operation.
        op: OpNumber,
        /// The parent's generation.
        generation: u32,
        /// Its output, or why there is none.
        result: Result<Blob, Failure>,
    },
    /// A child was undone, or cannot be.
    ChildUndone {
        /// The parent's operation.
        op: OpNumber,
        /// The parent's generation.
        generation: u32,
        /// `None` = undone.
        failure: Option<Failure>,
    },
    /// Stop and compensate.
    Cancel,
    /// The parent undoes this child.
    Compensate,
    /// Begin nothing new.
    Pause,
    /// Go on.
    Resume,
    /// Try now what is stuck, or waits for another attempt.
    Retry,
    /// Leave this undo undone.
    Skip(OpNumber),
    /// This step was done (or undone) by hand.
    Resolve(OpNumber, Blob),
    /// Undo this step and all later ones, then run them anew.
    Restart(OpNumber),
    /// Give it up.
    Abandon,
}

/// What the machine asks of its surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attempt an operation.
    Perform {
        /// Which.
        op: OpNumber,
        /// Run or undo.
        direction: Direction,
    },
    /// Tell the function what it has not been told, and say what it asks for.
    Drive {
        /// Build it anew from the journal first.
        rebuild: bool,
    },
    /// (Re)set a timer.
    SetTimer(TimerKey, Duration),
    /// Cancel a timer.
    CancelTimer(TimerKey),
    /// Start the child of an operation.
    StartChild(OpNumber),
    /// Cancel the child of an operation.
    CancelChild(OpNumber),
    /// Undo the child of an operation.
    UndoChild(OpNumber),
    /// Ask the limit of this saga's name for a place.
    Acquire(u32),
    /// Give the place back.
    Release,
    /// Tell the parent how this child ended.
    TellParent(Result<Blob, Failure>),
    /// Tell the parent that this child is undone, or cannot be.
    TellParentUndone(Option<Failure>),
    /// A person should look.
    Alarm(String),
    /// It has ended; an abandoned, completed or compensated one may be archived.
    Ended,
}
