//! The saga machine: events in, commands out; its state is the fold of its log.
//!
//! Decides: what is attempted, tried again, given up and undone, in which order, and what a saga's
//! status is. Never performs anything, never reads a clock, never runs a user's code: what the
//! function says comes in as a [`Turn`], what a step did as an [`Attempt`].
//!
//! Invariants:
//! - *started* is no record: an operation may act from when its cause is journaled until its result
//!   is; an attempt without a certain end makes it *may have acted*, whatever a later attempt says;
//! - nothing is undone while an attempt of a step is outstanding; unknown outcomes are undone first;
//!   a step is undone only when everything that was asked for after it had ended is;
//! - one undo that is exhausted stops no other; the saga is stuck only when the others have ended;
//! - once a pivot acted, or may have, nothing is undone and nothing is given up (a person may still
//!   restart from a later step);
//! - a refused event, and an answer that comes after the end, change nothing;
//! - a place of the limit is given back once; a saga that is stuck keeps its own;
//! - a restart keeps the turn that first asked for one of its steps, so that every result that is
//!   kept stays the result of the same operation;
//! - [`Machine::outstanding`] says from the state alone what is still to be answered: whoever
//!   recovers a saga from any prefix of its log carries that out and loses nothing.
//!
//! Order of calls: [`Machine::handle`] per event of the log, in order; commands of a replayed event
//! are dropped, [`Machine::outstanding`] stands for them.
//!
//! Source: Garcia-Molina and Salem, "Sagas", SIGMOD 1987; design: compensation.

use crate::event::{Attempt, Command, Direction, End, Event, Parent, Start, TimerKey, Turn};
use crate::op::{Failure, FailureKind, NewOp, Op, OpNumber, OpState, Policy, UndoState, What};
use crate::stamp;
use crate::status::Status;
use crate::value::Blob;
use rallypoint_base::backoff::full_jitter;
use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;
use thiserror::Error;

/// Most operations of one saga: a longer one is split into children.
pub const OPS: usize = 10_000;
/// Signals that may wait for a saga to ask for them.
pub const SIGNALS: usize = 1_000;

/// Why an event changed nothing. The caller is at fault, or late.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no saga of this id.
    #[error("there is no saga of this id")]
    NoSuchSaga,
    /// The id is taken by a saga with another name or input.
    #[error("a saga of this id exists with another name or input: choose another id")]
    OtherInput,
    /// It has ended.
    #[error("the saga has ended ({0}): there is nothing left to change")]
    Ended(Status),
    /// A pivot acted or may have acted.
    #[error("the saga is past its pivot: there is only forward")]
    PastPivot,
    /// It is compensating.
    #[error("the saga is being compensated already")]
    Compensating,
    /// Nothing here waits for a person.
    #[error("nothing of this saga waits for a person")]
    NothingToRetry,
    /// The saga has no such step.
    #[error("the saga has no step {0}")]
    NoSuchStep(String),
    /// The step is not in need of this.
    #[error("step {0} needs no person: it has not failed")]
    StepNotStuck(String),
    /// Restart is for sagas that stand still.
    #[error("the saga is under way: pause it before it is restarted from a step")]
    NotStill,
    /// Something before the step was undone.
    #[error("a step before {0} was undone: restart from an earlier one")]
    EarlierUndone(String),
    /// The parent was told how it ended.
    #[error("the saga is a child that has ended: restart its parent")]
    IsChild,
    /// Too many signals wait.
    #[error("{SIGNALS} signals wait for this saga already")]
    TooManySignals,
    /// Its journal is full.
    #[error("the values and outputs of this saga come to too much with this one: send a reference")]
    TooLarge,
    /// It is not paused.
    #[error("the saga is not paused")]
    NotPaused,
    /// A saga of this id has ended and was deleted.
    #[error("a saga of this id has ended and was deleted: choose another id")]
    Deleted,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    #[default]
    New,
    Running,
    Compensating,
    Completed,
    Compensated,
    /// Its function cannot go on.
    Broken,
    /// Undos are exhausted.
    StuckUndos,
    Abandoned,
}

/// A turn as it is journaled: enough to feed the function the same again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fed {
    /// Results it was told, in order.
    pub fed: Vec<OpNumber>,
    /// How many operations the journal holds after it.
    pub ops: u32,
    /// What it did not wait for any more.
    pub forgotten: Vec<OpNumber>,
}

/// One saga.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    name: String,
    version: u32,
    digest: u64,
    history: String,
    input: Blob,
    parent: Option<Parent>,
    concurrency: Option<u32>,
    generation: u32,
    phase: Phase,
    paused: bool,
    granted: bool,
    /// A `Drive` is outstanding.
    driving: bool,
    /// The next one must build the function anew.
    rebuild: bool,
    restart_from: Option<OpNumber>,
    undone_for_parent: bool,
    /// Events so far: the saga's own order.
    clock: u32,
    ops: Vec<Op>,
    turns: Vec<Fed>,
    signals: Vec<(String, Blob)>,
    end: Option<End>,
    error: Option<Failure>,
    #[serde(with = "stamp")]
    created: Time,
    #[serde(with = "stamp")]
    updated: Time,
    deadline: Option<u64>,
}

/// What one call works with.
struct Turnover<'a> {
    now: Time,
    random: &'a mut Random,
    out: &'a mut Vec<Command>,
}

/// Where an operation stands; at its number, unless operations were asked for out of order.
fn find(ops: &[Op], number: OpNumber) -> Option<usize> {
    match ops.get(number as usize) {
        Some(op) if op.number == number => Some(number as usize),
        _ => ops.iter().position(|op| op.number == number),
    }
}

impl Machine {
    /// Tells the machine what happened. The same events in the same order give the same state.
    ///
    /// # Errors
    /// [`Refusal`]: nothing changed.
    pub fn handle(
        &mut self,
        now: Time,
        random: &mut Random,
        event: Event,
        out: &mut Vec<Command>,
    ) -> Result<(), Refusal> {
        let cx = &mut Turnover { now, random, out };
        match &event {
            Event::Start(start) if self.phase != Phase::New => {
                let same = self.name == start.name && self.input == start.input;
                return if same { Ok(()) } else { Err(Refusal::OtherInput) };
            }
            Event::Start(_) => {}
            _ if self.phase == Phase::New => return Err(Refusal::NoSuchSaga),
            // An answer that comes after the end changes nothing.
            Event::Attempted { .. }
            | Event::Driven(_)
            | Event::Timer(_)
            | Event::ChildEnded { .. }
            | Event::ChildUndone { .. }
                if self.has_ended() =>
            {
                return Ok(());
            }
            _ => {}
        }
        let before = (self.clock, self.updated);
        self.clock = self.clock.saturating_add(1);
        self.updated = now;
        if let Err(refusal) = self.take(event, cx) {
            (self.clock, self.updated) = before;
            return Err(refusal);
        }
        self.settle(cx);
        Ok(())
    }

    fn take(&mut self, event: Event, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        match event {
            Event::Start(start) => self.start(*start, cx),
            Event::Attempted { op, generation, direction, earlier, attempt, turn } => {
                match direction {
                    Direction::Run => self.attempted(op, generation, earlier, attempt, cx),
                    Direction::Undo => self.undo_attempted(op, generation, attempt, cx),
                }
                if let Some(turn) = turn {
                    self.apply(turn, cx);
                }
            }
            Event::Driven(turn) => {
                self.driving = false;
                self.apply(turn, cx);
            }
            Event::Timer(key) => self.timer(key, cx),
            Event::Signal { name, value } => self.signal(name, value, cx)?,
            Event::Granted => self.granted(cx),
            Event::ChildEnded { op, generation, result } => self.child_ended(op, generation, result, cx),
            Event::ChildUndone { op, generation, failure } => self.child_undone(op, generation, failure),
            Event::Cancel => self.cancel(cx)?,
            Event::Compensate => self.compensate(cx),
            Event::Pause => self.pause(cx)?,
            Event::Resume => self.resume(cx)?,
            Event::Retry => self.retry(cx)?,
            Event::Skip(op) => self.skip(op, cx)?,
            Event::Resolve(op, output) => self.resolve(op, output, cx)?,
            Event::Restart(op) => self.restart(op, cx)?,
            Event::Abandon => self.abandon(cx)?,
        }
        Ok(())
    }

    // ---------------------------------------------------------------- getters

    /// Its status.
    #[must_use]
    pub fn status(&self) -> Status {
        match self.phase {
            Phase::Completed => Status::Completed,
            Phase::Compensated => Status::Compensated,
            Phase::Broken | Phase::StuckUndos => Status::Stuck,
            Phase::Abandoned => Status::Abandoned,
            Phase::New | Phase::Running | Phase::Compensating if self.paused => Status::Paused,
            Phase::Compensating => Status::Compensating,
            Phase::New | Phase::Running => {
                let busy = self.ops.iter().any(|op| op.state == OpState::InFlight);
                if self.granted && (busy || self.driving || self.end.is_some()) {
                    Status::Running
                } else {
                    Status::Waiting
                }
            }
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Completed | Phase::Compensated | Phase::Abandoned)
    }

    /// True before its start.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.phase == Phase::New
    }

    /// Name of its function.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Declared version of its function when it began.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Digest of its definition; 0 for code.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Its input.
    #[must_use]
    pub fn input(&self) -> &Blob {
        &self.input
    }

    /// How often it was restarted from a step.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whose child it is.
    #[must_use]
    pub fn parent(&self) -> Option<&Parent> {
        self.parent.as_ref()
    }

    /// The history it was started in: its keys begin with it.
    #[must_use]
    pub fn history(&self) -> &str {
        &self.history
    }

    /// Its operations, in the order they were journaled.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// What its function was told, in order.
    #[must_use]
    pub fn turns(&self) -> &[Fed] {
        &self.turns
    }

    /// One operation.
    #[must_use]
    pub fn op(&self, number: OpNumber) -> Option<&Op> {
        find(&self.ops, number).map(|at| &self.ops[at])
    }

    /// Its output, once it has completed.
    #[must_use]
    pub fn output(&self) -> Option<&Blob> {
        match (&self.end, self.phase) {
            (Some(End::Completed(output)), Phase::Completed) => Some(output),
            _ => None,
        }
    }

    /// Why it failed, was cancelled or is stuck.
    #[must_use]
    pub fn error(&self) -> Option<&Failure> {
        self.error.as_ref()
    }

    /// When it began.
    #[must_use]
    pub fn created(&self) -> Time {
        self.created
    }

    /// How many events its log holds.
    #[must_use]
    pub fn events(&self) -> u32 {
        self.clock
    }

    /// When something last happened to it.
    #[must_use]
    pub fn updated(&self) -> Time {
        self.updated
    }

    /// Results that its function has not been told, in the order they came.
    #[must_use]
    pub fn unfed(&self) -> Vec<&Op> {
        let mut unfed: Vec<&Op> = self.asked().iter().filter(|op| op.is_resolved() && !op.fed).collect();
        unfed.sort_by_key(|op| (op.ended, op.number));
        unfed
    }

    /// Operations that the journaled turns asked for. After a restart there may be others behind them,
    /// made by then and to be asked for again: numbers are given at creation, so that telling their
    /// results too early could give another operation their number.
    fn asked(&self) -> &[Op] {
        let asked = self.turns.last().map_or(0, |turn| turn.ops as usize);
        &self.ops[..asked.min(self.ops.len())]
    }

    /// True when a failure of this operation's next attempt may be the function's to handle; false
    /// when it is tried again whatever comes.
    #[must_use]
    pub fn may_fail(&self, number: OpNumber) -> bool {
        self.op(number).is_some_and(|op| !self.is_forward_only(op))
    }

    /// What is still to be answered, from the state alone.
    #[must_use]
    pub fn outstanding(&self) -> Vec<Command> {
        let mut out = Vec::new();
        if self.has_ended() {
            return out;
        }
        let left = |at: Time| at.since(self.updated);
        for op in &self.ops {
            match (op.state, &op.what) {
                (OpState::InFlight, _) => {
                    out.push(Command::Perform { op: op.number, direction: Direction::Run });
                }
                (OpState::Backoff { at }, _) => {
                    out.push(Command::SetTimer(TimerKey::Retry(op.number), left(at)));
                }
                (OpState::Waiting { .. }, What::Child { .. }) => {
                    out.push(Command::StartChild(op.number));
                    // Started first: what never began would never say that it is cancelled.
                    if self.phase == Phase::Compensating && self.is_affected(op.number) {
                        out.push(Command::CancelChild(op.number));
                    }
                }
                (OpState::Waiting { at: Some(at) }, _) => {
                    out.push(Command::SetTimer(TimerKey::Wait(op.number), left(Time(at))));
                }
                _ => {}
            }
            match (op.undo, &op.what) {
                (UndoState::InFlight, What::Child { .. }) => out.push(Command::UndoChild(op.number)),
                (UndoState::InFlight, _) => {
                    out.push(Command::Perform { op: op.number, direction: Direction::Undo });
                }
                (UndoState::Backoff { at }, _) => {
                    out.push(Command::SetTimer(TimerKey::UndoRetry(op.number), left(at)));
                }
                _ => {}
            }
        }
        if self.driving {
            out.push(Command::Drive { rebuild: true });
        }
        if let Some(at) = self.deadline {
            out.push(Command::SetTimer(TimerKey::Deadline, left(Time(at))));
        }
        if let (Some(limit), true, false) = (self.concurrency, self.wants_place(), self.granted) {
            out.push(Command::Acquire(limit));
        }
        out
    }

    // ---------------------------------------------------------------- beginning and turns

    fn start(&mut self, start: Start, cx: &mut Turnover<'_>) {
        self.name = start.name;
        self.version = start.version;
        self.digest = start.digest;
        self.history = start.history;
        self.input = start.input;
        self.parent = start.parent;
        self.concurrency = start.concurrency;
        self.created = cx.now;
        self.phase = Phase::Running;
        self.granted = self.concurrency.is_none();
        if let Some(limit) = self.concurrency {
            cx.out.push(Command::Acquire(limit));
        }
        if let Some(deadline) = start.deadline {
            self.deadline = Some((cx.now + deadline).0);
            cx.out.push(Command::SetTimer(TimerKey::Deadline, deadline));
        }
        match start.turn {
            Some(turn) => self.apply(turn, cx),
            None => self.drive(cx),
        }
    }

    fn drive(&mut self, cx: &mut Turnover<'_>) {
        if !self.driving {
            self.driving = true;
            let rebuild = std::mem::take(&mut self.rebuild);
            cx.out.push(Command::Drive { rebuild });
        }
    }

    /// Takes in what the function said. A turn that does not follow on the last one was made by a
    /// copy of the function that the journal has left behind: it counts for nothing.
    fn apply(&mut self, turn: Turn, cx: &mut Turnover<'_>) {
        if self.phase != Phase::Running || self.end.is_some() {
            return;
        }
        let fits = turn.fed.iter().all(|&number| {
            let op = find(self.asked(), number).map(|at| &self.ops[at]);
            op.is_some_and(|op| op.is_resolved() && !op.fed)
        });
        // That it cannot go on is true of every generation.
        let ours = turn.generation == self.generation || matches!(turn.end, Some(End::Broken(_)));
        if turn.index as usize != self.turns.len() || !ours || !fits {
            self.rebuild = true;
            return;
        }
        if let Some(End::Broken(failure)) = turn.end {
            // A broken copy's other words are not journaled: after a retry it says them again.
            return self.break_off(failure, cx);
        }
        if self.ops.len() + turn.ops.len() > OPS {
            let text = format!("more than {OPS} operations: split the saga into children");
            return self.break_off(Failure::new(FailureKind::Mismatch, text), cx);
        }
        // Judged as a whole before anything is taken in: of a turn that is refused nothing counts, or
        // its results would never be told again.
        for new in &turn.ops {
            if let Some(op) = self.op(new.number)
                && (op.name != new.name || op.what != new.what)
            {
                let text = format!(
                    "operation {} was {:?} and is {:?} now, or has another value",
                    new.number, op.name, new.name
                );
                return self.break_off(Failure::new(FailureKind::Mismatch, text), cx);
            }
        }
        for &number in &turn.fed {
            if let Some(op) = self.op_mut(number) {
                op.fed = true;
            }
        }
        // Operations stand in the order the turns asked for them. After a restart some stand behind
        // that were asked for before it; each takes its place when it is asked for again.
        let mut journaled = self.asked().len();
        for new in turn.ops {
            match self.ops.iter().skip(journaled).position(|op| op.number == new.number) {
                Some(0) => {}
                Some(behind) => self.ops[journaled..=journaled + behind].rotate_right(1),
                None => self.schedule(journaled, new, cx),
            }
            journaled += 1;
        }
        for &number in &turn.forgotten {
            self.forget(number, cx);
        }
        self.turns.push(Fed { fed: turn.fed, ops: journaled as u32, forgotten: turn.forgotten });
        self.end = turn.end;
    }

    fn break_off(&mut self, failure: Failure, cx: &mut Turnover<'_>) {
        cx.out.push(Command::Alarm(failure.message.clone()));
        self.error = Some(failure);
        self.rebuild = true;
        self.phase = Phase::Broken;
    }

    fn schedule(&mut self, at: usize, new: NewOp, cx: &mut Turnover<'_>) {
        let op = Op::new(new, self.generation, self.clock);
        self.ops.insert(at, op);
        if !self.paused && self.granted {
            self.begin(at, cx);
        }
    }

    /// Begins an operation that was held.
    fn begin(&mut self, at: usize, cx: &mut Turnover<'_>) {
        let clock = self.clock;
        let op = &mut self.ops[at];
        let number = op.number;
        match &op.what {
            What::Step { .. } | What::Run { .. } => {
                op.state = OpState::InFlight;
                op.attempts += 1;
                cx.out.push(Command::Perform { op: number, direction: Direction::Run });
            }
            What::Sleep { length } => {
                op.state = OpState::Waiting { at: Some((cx.now + *length).0) };
                cx.out.push(Command::SetTimer(TimerKey::Wait(number), *length));
            }
            What::Signal { within } => {
                if let Some(found) = self.signals.iter().position(|(name, _)| *name == op.name) {
                    op.state = OpState::Done;
                    op.ended = clock;
                    op.output = Some(self.signals.remove(found).1);
                    return;
                }
                op.state = OpState::Waiting { at: within.map(|within| (cx.now + within).0) };
                if let Some(within) = within {
                    cx.out.push(Command::SetTimer(TimerKey::Wait(number), *within));
                }
            }
            What::Child { .. } => {
                op.state = OpState::Waiting { at: None };
                cx.out.push(Command::StartChild(number));
            }
        }
    }

    fn begin_held(&mut self, cx: &mut Turnover<'_>) {
        if self.phase != Phase::Running || self.paused || !self.granted {
            return;
        }
        for at in 0..self.ops.len() {
            if self.ops[at].state == OpState::Held {
                self.begin(at, cx);
            }
        }
    }

    fn forget(&mut self, number: OpNumber, cx: &mut Turnover<'_>) {
        let Some(op) = self.op_mut(number) else { return };
        // What acts is not forgotten: it may have acted.
        match (op.state, &op.what) {
            (OpState::Waiting { at }, What::Sleep { .. } | What::Signal { .. }) => {
                op.state = OpState::Forgotten;
                if at.is_some() {
                    cx.out.push(Command::CancelTimer(TimerKey::Wait(number)));
                }
            }
            (OpState::Held, What::Sleep { .. } | What::Signal { .. }) => op.state = OpState::Forgotten,
            _ => {}
        }
    }

    /// It runs, or will again: a saga that is stuck keeps its place in the queue.
    fn wants_place(&self) -> bool {
        match self.phase {
            Phase::Running | Phase::Broken => true,
            Phase::Compensating | Phase::StuckUndos => self.restart_from.is_some(),
            Phase::New | Phase::Completed | Phase::Compensated | Phase::Abandoned => false,
        }
    }

    fn granted(&mut self, cx: &mut Turnover<'_>) {
        if self.granted {
            // The answer to a question that was asked twice: it is the same place.
        } else if self.wants_place() {
            self.granted = true;
            self.begin_held(cx);
        } else {
            cx.out.push(Command::Release);
        }
    }

    // ---------------------------------------------------------------- results

    fn op_mut(&mut self, number: OpNumber) -> Option<&mut Op> {
        find(&self.ops, number).map(|at| &mut self.ops[at])
    }

    /// A pivot acted, or may have.
    fn is_past_pivot(&self) -> bool {
        self.ops
            .iter()
            .any(|op| op.is_pivot() && (op.unknown || matches!(op.state, OpState::Done | OpState::InFlight)))
    }

    /// This operation may not be given up: it is tried until it is done.
    fn is_forward_only(&self, op: &Op) -> bool {
        if op.is_pivot() {
            return op.unknown;
        }
        self.ops.iter().any(|other| other.is_pivot() && (other.unknown || other.state == OpState::Done))
    }

    fn attempted(
        &mut self,
        number: OpNumber,
        generation: u32,
        earlier: bool,
        attempt: Attempt,
        cx: &mut Turnover<'_>,
    ) {
        let clock = self.clock;
        let compensating = self.phase == Phase::Compensating;
        // A restart gives up only what came from its step on.
        let unwinding = compensating && self.is_affected(number);
        let Some(op) = self.op_mut(number) else { return };
        if op.generation != generation || op.state != OpState::InFlight {
            return;
        }
        let (failure, may_have_acted, retry_after) = match attempt {
            Attempt::Done(output) => {
                op.state = OpState::Done;
                op.ended = clock;
                op.alarm = false;
                op.output = Some(output);
                op.error = None;
                return;
            }
            Attempt::Failed { failure, may_have_acted, retry_after } => {
                (failure, may_have_acted, retry_after)
            }
            Attempt::NotDefined => {
                let text = "the step was attempted and answered as an undo";
                (Failure::new(FailureKind::Fatal, text), true, None)
            }
        };
        op.unknown |= may_have_acted || earlier;
        op.error = Some(failure.clone());
        let op = op.clone();
        let forward_only = self.is_forward_only(&op);
        let policy = op.policy();
        let kind = failure.kind;
        // Unwinding waits only for a pivot: whether that acted must be known.
        if unwinding && !(op.is_pivot() && op.unknown) {
            return self.fail_op(number);
        }
        match kind {
            FailureKind::Fatal | FailureKind::Unregistered => {
                if let Some(op) = self.op_mut(number) {
                    op.state = OpState::Held;
                }
                if compensating {
                    self.back_off(number, &policy, retry_after, true, cx);
                } else {
                    self.break_off(failure, cx);
                }
            }
            FailureKind::Misconfigured => self.back_off(number, &policy, retry_after, true, cx),
            FailureKind::Business if !forward_only => self.fail_op(number),
            _ if op.attempts >= policy.attempts && !forward_only => self.fail_op(number),
            _ => {
                let alarm = kind == FailureKind::Business || op.attempts >= policy.attempts;
                self.back_off(number, &policy, retry_after, alarm, cx);
            }
        }
    }

    fn fail_op(&mut self, number: OpNumber) {
        let clock = self.clock;
        if let Some(op) = self.op_mut(number) {
            op.state = OpState::Failed;
            op.ended = clock;
        }
    }

    fn back_off(
        &mut self,
        number: OpNumber,
        policy: &Policy,
        retry_after: Option<Duration>,
        alarm: bool,
        cx: &mut Turnover<'_>,
    ) {
        let Some(op) = self.op_mut(number) else { return };
        let wait = full_jitter(policy.base, policy.cap, op.attempts.saturating_sub(1), cx.random);
        let wait = wait.max(retry_after.unwrap_or_default());
        op.state = OpState::Backoff { at: cx.now + wait };
        if alarm && !op.alarm {
            op.alarm = true;
            let why = op.error.as_ref().map(|error| error.message.as_str()).unwrap_or_default();
            cx.out.push(Command::Alarm(format!("step {} cannot be given up and fails: {why}", op.name)));
        }
        cx.out.push(Command::SetTimer(TimerKey::Retry(number), wait));
    }

    fn timer(&mut self, key: TimerKey, cx: &mut Turnover<'_>) {
        let clock = self.clock;
        let (paused, phase) = (self.paused, self.phase);
        match key {
            TimerKey::Wait(number) => {
                let Some(op) = self.op_mut(number) else { return };
                if matches!(op.state, OpState::Waiting { .. }) {
                    op.ended = clock;
                    if matches!(op.what, What::Sleep { .. }) {
                        op.state = OpState::Done;
                        op.output = Some(Blob::default());
                    } else {
                        op.state = OpState::Failed;
                        let text = format!("no signal {:?} in time", op.name);
                        op.error = Some(Failure::new(FailureKind::TimedOut, text));
                    }
                }
            }
            TimerKey::Retry(number) => {
                let affected = self.is_affected(number);
                let Some(op) = self.op_mut(number) else { return };
                if matches!(op.state, OpState::Backoff { .. }) {
                    op.state = OpState::Held;
                    // A pivot's outcome is found out even while the saga unwinds.
                    if phase == Phase::Compensating && !paused && affected {
                        op.state = OpState::InFlight;
                        op.attempts += 1;
                        cx.out.push(Command::Perform { op: number, direction: Direction::Run });
                    }
                    self.begin_held(cx);
                }
            }
            TimerKey::UndoRetry(number) => {
                let Some(op) = self.op_mut(number) else { return };
                if matches!(op.undo, UndoState::Backoff { .. }) {
                    op.undo = UndoState::Pending;
                }
            }
            TimerKey::Deadline => {
                self.deadline = None;
                let failure = Failure::new(FailureKind::Deadline, "the saga's deadline has passed");
                if self.is_past_pivot() {
                    cx.out.push(Command::Alarm(failure.message));
                } else if matches!(self.phase, Phase::Running | Phase::Broken) || self.restart_from.is_some()
                {
                    self.restart_from = None;
                    self.unwind(failure, cx);
                }
            }
        }
    }

    fn signal(&mut self, name: String, value: Blob, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        self.refuse_ended()?;
        if self.phase == Phase::Compensating && self.restart_from.is_none() {
            return Err(Refusal::Compensating);
        }
        let clock = self.clock;
        let waiting = self.ops.iter_mut().find(|op| {
            op.name == name
                && matches!(op.what, What::Signal { .. })
                && matches!(op.state, OpState::Waiting { .. })
        });
        match waiting {
            Some(op) => {
                if matches!(op.state, OpState::Waiting { at: Some(_) }) {
                    cx.out.push(Command::CancelTimer(TimerKey::Wait(op.number)));
                }
                op.state = OpState::Done;
                op.ended = clock;
                op.output = Some(value);
            }
            None if self.signals.len() >= SIGNALS => return Err(Refusal::TooManySignals),
            None => self.signals.push((name, value)),
        }
        Ok(())
    }

    fn child_ended(
        &mut self,
        number: OpNumber,
        generation: u32,
        result: Result<Blob, Failure>,
        cx: &mut Turnover<'_>,
    ) {
        let clock = self.clock;
        let Some(op) = self.op_mut(number) else { return };
        if op.generation != generation || !matches!(op.state, OpState::Waiting { .. }) {
            return;
        }
        op.ended = clock;
        match result {
            Ok(output) => {
                op.state = OpState::Done;
                op.output = Some(output);
            }
            Err(failure) => {
                op.state = OpState::Failed;
                op.error = Some(failure.clone());
                // It completed, but its answer could not be kept.
                op.unknown = failure.kind == FailureKind::Fatal;
                if op.unknown && self.phase == Phase::Running {
                    self.break_off(failure, cx);
                }
            }
        }
    }

    fn child_undone(&mut self, number: OpNumber, generation: u32, failure: Option<Failure>) {
        let Some(op) = self.op_mut(number) else { return };
        if op.generation != generation || op.undo != UndoState::InFlight {
            return;
        }
        op.undo = if failure.is_some() { UndoState::Failed } else { UndoState::Done };
        op.undo_error = failure;
    }

    // ---------------------------------------------------------------- unwinding

    /// Is this operation among those that a restart undoes (all of them otherwise)?
    fn is_affected(&self, number: OpNumber) -> bool {
        self.restart_from.is_none_or(|from| number >= from)
    }

    /// Stops everything that has not begun and waits for what has.
    fn unwind(&mut self, failure: Failure, cx: &mut Turnover<'_>) {
        if self.restart_from.is_none() {
            self.error = Some(failure);
        }
        self.phase = Phase::Compensating;
        let clock = self.clock;
        for at in 0..self.ops.len() {
            if !self.is_affected(self.ops[at].number) {
                continue;
            }
            let op = &mut self.ops[at];
            let number = op.number;
            match (op.state, &op.what) {
                (OpState::Held, _) if op.attempts == 0 => op.state = OpState::Forgotten,
                (OpState::Held, _) if !(op.is_pivot() && op.unknown) => {
                    op.state = OpState::Failed;
                    op.ended = clock;
                }
                (OpState::Backoff { .. }, _) if !(op.is_pivot() && op.unknown) => {
                    op.state = OpState::Failed;
                    op.ended = clock;
                    cx.out.push(Command::CancelTimer(TimerKey::Retry(number)));
                }
                (OpState::Waiting { .. }, What::Child { .. }) => {
                    cx.out.push(Command::CancelChild(number));
                }
                (OpState::Waiting { at }, _) => {
                    op.state = OpState::Forgotten;
                    if at.is_some() {
                        cx.out.push(Command::CancelTimer(TimerKey::Wait(number)));
                    }
                }
                _ => {}
            }
        }
    }

    /// Something is still to be answered before anything may be undone.
    fn is_outstanding(&self) -> bool {
        self.ops.iter().any(|op| match op.state {
            OpState::InFlight => true,
            OpState::Backoff { .. } | OpState::Held => self.is_affected(op.number),
            OpState::Waiting { .. } => matches!(op.what, What::Child { .. }) && self.is_affected(op.number),
            OpState::Done | OpState::Failed | OpState::Forgotten => false,
        })
    }

    fn advance_unwinding(&mut self, cx: &mut Turnover<'_>) {
        if self.paused || self.is_outstanding() {
            return;
        }
        if self.restart_from.is_none() && self.is_past_pivot() {
            let why = self.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
            let text = format!("it failed after its pivot, so that nothing may be undone: {why}");
            return self.break_off(Failure::new(FailureKind::AfterPivot, text), cx);
        }
        for at in 0..self.ops.len() {
            let affected = self.is_affected(self.ops[at].number);
            let op = &mut self.ops[at];
            if affected && op.undo == UndoState::None && op.may_have_acted() {
                op.undo = match op.what {
                    What::Step { .. } | What::Child { .. } => UndoState::Pending,
                    _ => UndoState::NotDefined,
                };
            }
        }
        // Unknown outcomes first: what may have been left half-done is cleared away before anything
        // that it may stand on.
        let unknown = |op: &Op| op.state != OpState::Done;
        let unknown_open = self.ops.iter().any(|op| op.undo.is_open() && unknown(op));
        // What was asked for after another had ended may stand on it.
        let latest = self
            .ops
            .iter()
            .filter(|op| op.undo.is_open() && unknown(op) == unknown_open)
            .map(|op| op.scheduled)
            .max()
            .unwrap_or(0);
        let ready =
            |op: &Op| op.undo == UndoState::Pending && unknown(op) == unknown_open && latest < op.ended;
        let begin: Vec<OpNumber> = self.ops.iter().filter(|op| ready(op)).map(|op| op.number).collect();
        for number in begin {
            let Some(op) = self.op_mut(number) else { continue };
            op.undo = UndoState::InFlight;
            op.undo_attempts += 1;
            cx.out.push(match op.what {
                What::Child { .. } => Command::UndoChild(number),
                _ => Command::Perform { op: number, direction: Direction::Undo },
            });
        }
        if self.ops.iter().any(|op| op.undo.is_open()) {
            return;
        }
        let failed: Vec<String> =
            self.ops.iter().filter(|op| op.undo == UndoState::Failed).map(|op| op.name.clone()).collect();
        if !failed.is_empty() {
            self.phase = Phase::StuckUndos;
            cx.out.push(Command::Alarm(format!("stuck: undo of {} is exhausted", failed.join(", "))));
            return;
        }
        match self.restart_from.take() {
            Some(from) => self.run_again(from, cx),
            None => self.finish(Phase::Compensated, cx),
        }
    }

    fn undo_attempted(&mut self, number: OpNumber, generation: u32, attempt: Attempt, cx: &mut Turnover<'_>) {
        let Some(op) = self.op_mut(number) else { return };
        if op.generation != generation || op.undo != UndoState::InFlight {
            return;
        }
        match attempt {
            Attempt::Done(_) => {
                op.undo = UndoState::Done;
                op.undo_error = None;
            }
            Attempt::NotDefined => op.undo = UndoState::NotDefined,
            Attempt::Failed { failure, retry_after, .. } => {
                let policy = op.policy();
                let hopeless = matches!(
                    failure.kind,
                    FailureKind::Fatal | FailureKind::Unregistered | FailureKind::Business
                );
                op.undo_error = Some(failure);
                if hopeless || op.undo_attempts >= policy.undo_attempts {
                    op.undo = UndoState::Failed;
                    return;
                }
                let wait =
                    full_jitter(policy.base, policy.cap, op.undo_attempts.saturating_sub(1), cx.random);
                let wait = wait.max(retry_after.unwrap_or_default());
                op.undo = UndoState::Backoff { at: cx.now + wait };
                cx.out.push(Command::SetTimer(TimerKey::UndoRetry(number), wait));
            }
        }
    }

    /// The steps from `from` on are undone: they run again under the next generation.
    ///
    /// The turn that first asked for one of them is kept, with all before it: what it was told is
    /// before `from`, so that the function asks for the same again, under the same numbers. Every
    /// operation below `from` was made by then.
    fn run_again(&mut self, from: OpNumber, cx: &mut Turnover<'_>) {
        let first = self.ops.iter().position(|op| op.number >= from).unwrap_or(self.ops.len()) as u32;
        if let Some(turn) = self.turns.iter().position(|turn| turn.ops > first)
            && turn + 1 < self.turns.len()
        {
            self.turns.truncate(turn + 1);
            self.end = None;
        }
        self.generation += 1;
        let (asked, clock, generation) = (self.asked().len(), self.clock, self.generation);
        let mut behind = self.ops.split_off(asked);
        behind.retain(|op| op.number < from);
        for op in self.ops.iter_mut().filter(|op| op.number >= from) {
            let new = NewOp { number: op.number, name: op.name.clone(), what: op.what.clone() };
            *op = Op::new(new, generation, clock);
        }
        self.ops.append(&mut behind);
        self.error = None;
        self.phase = Phase::Running;
        self.rebuild = true;
        self.go_on(cx);
    }

    /// Takes up again what was given up although the turns that are left in the journal wait for it.
    fn go_on(&mut self, cx: &mut Turnover<'_>) {
        let fed: BTreeSet<OpNumber> = self.turns.iter().flat_map(|turn| turn.fed.iter().copied()).collect();
        let forgotten: BTreeSet<OpNumber> =
            self.turns.iter().flat_map(|turn| turn.forgotten.iter().copied()).collect();
        for op in &mut self.ops {
            op.fed = fed.contains(&op.number);
            let waits = matches!(op.what, What::Sleep { .. } | What::Signal { .. });
            if waits && op.state == OpState::Held && forgotten.contains(&op.number) {
                op.state = OpState::Forgotten;
            }
            let again = match op.state {
                OpState::Forgotten => !forgotten.contains(&op.number),
                OpState::Failed => !op.fed && op.undo == UndoState::None && op.has_attempts_left(),
                _ => false,
            };
            if again {
                op.state = OpState::Held;
                op.ended = 0;
            }
        }
        if let (Some(limit), false) = (self.concurrency, self.granted) {
            cx.out.push(Command::Acquire(limit));
        }
        self.begin_held(cx);
    }

    // ---------------------------------------------------------------- what people ask for

    fn refuse_ended(&mut self) -> Result<(), Refusal> {
        if self.has_ended() { Err(Refusal::Ended(self.status())) } else { Ok(()) }
    }

    fn cancel(&mut self, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        self.refuse_ended()?;
        if matches!(self.phase, Phase::Compensating | Phase::StuckUndos) {
            return Err(Refusal::Compensating);
        }
        if self.is_past_pivot() {
            return Err(Refusal::PastPivot);
        }
        self.unwind(Failure::new(FailureKind::Cancelled, "cancelled"), cx);
        Ok(())
    }

    fn compensate(&mut self, cx: &mut Turnover<'_>) {
        match self.phase {
            Phase::Completed if self.is_past_pivot() => {
                let text = "the child is past its pivot: there is only forward";
                let failure = Failure::new(FailureKind::AfterPivot, text);
                cx.out.push(Command::TellParentUndone(Some(failure)));
            }
            Phase::Completed => {
                self.undone_for_parent = true;
                self.unwind(Failure::new(FailureKind::Cancelled, "undone by its parent"), cx);
            }
            Phase::Compensated if self.undone_for_parent => cx.out.push(Command::TellParentUndone(None)),
            Phase::Abandoned => {
                let failure = Failure::new(FailureKind::Child, "the child was abandoned");
                cx.out.push(Command::TellParentUndone(Some(failure)));
            }
            _ => {}
        }
    }

    fn pause(&mut self, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        self.refuse_ended()?;
        self.paused = true;
        // A wait for another attempt ends when the saga goes on.
        for op in &mut self.ops {
            if matches!(op.state, OpState::Backoff { .. }) {
                op.state = OpState::Held;
                cx.out.push(Command::CancelTimer(TimerKey::Retry(op.number)));
            }
            if matches!(op.undo, UndoState::Backoff { .. }) {
                op.undo = UndoState::Pending;
                cx.out.push(Command::CancelTimer(TimerKey::UndoRetry(op.number)));
            }
        }
        Ok(())
    }

    fn resume(&mut self, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        self.refuse_ended()?;
        if !self.paused {
            return Err(Refusal::NotPaused);
        }
        self.paused = false;
        self.resume_held_pivots(cx);
        self.begin_held(cx);
        Ok(())
    }

    /// While it unwinds only a pivot may be held, and its outcome must be known.
    fn resume_held_pivots(&mut self, cx: &mut Turnover<'_>) {
        if self.phase != Phase::Compensating || self.paused {
            return;
        }
        let from = self.restart_from.unwrap_or(0);
        let held = |op: &&mut Op| op.number >= from && op.state == OpState::Held && op.is_pivot();
        for op in self.ops.iter_mut().filter(held) {
            op.state = OpState::InFlight;
            op.attempts += 1;
            cx.out.push(Command::Perform { op: op.number, direction: Direction::Run });
        }
    }

    fn retry(&mut self, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        self.refuse_ended()?;
        match self.phase {
            Phase::Broken => {
                self.phase = Phase::Running;
                self.error = None;
                if matches!(self.end, Some(End::Failed(_))) {
                    // It returned an error after its pivot: it is asked again for its last word.
                    self.end = None;
                    self.turns.pop();
                }
                self.driving = false;
                self.go_on(cx);
                if self.end.is_none() {
                    self.rebuild = true;
                    self.drive(cx);
                }
                Ok(())
            }
            Phase::StuckUndos => {
                self.phase = Phase::Compensating;
                for op in self.ops.iter_mut().filter(|op| op.undo == UndoState::Failed) {
                    op.undo = UndoState::Pending;
                    op.undo_attempts = 0;
                }
                Ok(())
            }
            _ => {
                let waits = |op: &Op| {
                    matches!(op.state, OpState::Backoff { .. })
                        || matches!(op.undo, UndoState::Backoff { .. })
                };
                if !self.ops.iter().any(waits) {
                    return Err(Refusal::NothingToRetry);
                }
                for op in &mut self.ops {
                    if matches!(op.state, OpState::Backoff { .. }) {
                        op.state = OpState::Held;
                        cx.out.push(Command::CancelTimer(TimerKey::Retry(op.number)));
                    }
                    if matches!(op.undo, UndoState::Backoff { .. }) {
                        op.undo = UndoState::Pending;
                        cx.out.push(Command::CancelTimer(TimerKey::UndoRetry(op.number)));
                    }
                }
                self.resume_held_pivots(cx);
                self.begin_held(cx);
                Ok(())
            }
        }
    }

    fn stuck_op(&mut self, number: OpNumber) -> Result<&mut Op, Refusal> {
        self.refuse_ended()?;
        self.op_mut(number).ok_or_else(|| Refusal::NoSuchStep(number.to_string()))
    }

    fn skip(&mut self, number: OpNumber, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        let op = self.stuck_op(number)?;
        match op.undo {
            UndoState::Failed | UndoState::Pending => op.undo = UndoState::Skipped,
            UndoState::Backoff { .. } => {
                op.undo = UndoState::Skipped;
                cx.out.push(Command::CancelTimer(TimerKey::UndoRetry(number)));
            }
            _ => return Err(Refusal::StepNotStuck(op.name.clone())),
        }
        self.unstick();
        Ok(())
    }

    fn resolve(&mut self, number: OpNumber, output: Blob, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        let clock = self.clock;
        let op = self.stuck_op(number)?;
        match (op.undo, op.state) {
            (UndoState::Failed | UndoState::Pending, _) => op.undo = UndoState::Resolved,
            (UndoState::Backoff { .. }, _) => {
                op.undo = UndoState::Resolved;
                cx.out.push(Command::CancelTimer(TimerKey::UndoRetry(number)));
            }
            (UndoState::None, OpState::Held | OpState::Backoff { .. }) if op.attempts > 0 => {
                if matches!(op.state, OpState::Backoff { .. }) {
                    cx.out.push(Command::CancelTimer(TimerKey::Retry(number)));
                }
                op.state = OpState::Done;
                op.ended = clock;
                op.alarm = false;
                op.output = Some(output);
                if self.phase == Phase::Broken {
                    return self.retry(cx);
                }
            }
            _ => return Err(Refusal::StepNotStuck(op.name.clone())),
        }
        self.unstick();
        Ok(())
    }

    fn unstick(&mut self) {
        if self.phase == Phase::StuckUndos {
            self.phase = Phase::Compensating;
        }
    }

    fn restart(&mut self, from: OpNumber, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        let Some(op) = self.op(from) else { return Err(Refusal::NoSuchStep(from.to_string())) };
        let name = op.name.clone();
        let status = self.status();
        let ended = status.is_ended();
        if self.phase == Phase::Abandoned {
            return Err(Refusal::Ended(status));
        }
        if !ended && !self.paused && status != Status::Stuck {
            return Err(Refusal::NotStill);
        }
        if self.parent.is_some() && (ended || self.undone_for_parent) {
            return Err(Refusal::IsChild);
        }
        if self.ops.iter().any(|op| op.number < from && op.undo != UndoState::None) {
            return Err(Refusal::EarlierUndone(name));
        }
        let acted = |op: &&Op| op.unknown || matches!(op.state, OpState::Done | OpState::InFlight);
        if self.ops.iter().filter(|op| op.number >= from && op.is_pivot()).any(|op| acted(&op)) {
            return Err(Refusal::PastPivot);
        }
        self.paused = false;
        self.restart_from = Some(from);
        self.driving = false;
        self.unwind(Failure::new(FailureKind::Cancelled, "restarted"), cx);
        Ok(())
    }

    fn abandon(&mut self, cx: &mut Turnover<'_>) -> Result<(), Refusal> {
        self.refuse_ended()?;
        self.paused = false;
        self.finish(Phase::Abandoned, cx);
        Ok(())
    }

    // ---------------------------------------------------------------- after every event

    fn settle(&mut self, cx: &mut Turnover<'_>) {
        self.settle_running(cx);
        if self.phase == Phase::Compensating {
            self.advance_unwinding(cx);
            // A restart: it runs again, and may have ended in the turn that is run again.
            self.settle_running(cx);
            if self.phase == Phase::Compensating {
                self.advance_unwinding(cx);
            }
        }
    }

    fn settle_running(&mut self, cx: &mut Turnover<'_>) {
        if self.phase != Phase::Running {
            return;
        }
        match &self.end {
            None => {
                if self.asked().iter().any(|op| op.is_resolved() && !op.fed) || self.rebuild {
                    self.drive(cx);
                }
            }
            Some(End::Completed(_)) => {
                // A step that lost a `select` still acts: it is answered before the saga ends.
                if !self.is_outstanding() {
                    self.finish(Phase::Completed, cx);
                }
            }
            Some(End::Failed(failure)) => {
                let failure = failure.clone();
                self.unwind(failure, cx);
            }
            Some(End::Broken(failure)) => {
                let failure = failure.clone();
                self.break_off(failure, cx);
            }
        }
    }

    fn finish(&mut self, phase: Phase, cx: &mut Turnover<'_>) {
        let had_place = std::mem::replace(&mut self.granted, self.concurrency.is_none());
        self.phase = phase;
        self.paused = false;
        self.driving = false;
        self.rebuild = false;
        self.signals = Vec::new();
        for op in &mut self.ops {
            match (op.state, &op.what) {
                (OpState::Backoff { .. }, _) => {
                    op.state = OpState::Failed;
                    cx.out.push(Command::CancelTimer(TimerKey::Retry(op.number)));
                }
                (OpState::Waiting { .. }, What::Child { .. }) => {}
                (OpState::Waiting { at }, _) => {
                    op.state = OpState::Forgotten;
                    if at.is_some() {
                        cx.out.push(Command::CancelTimer(TimerKey::Wait(op.number)));
                    }
                }
                (OpState::Held, _) => op.state = OpState::Forgotten,
                _ => {}
            }
            if matches!(op.undo, UndoState::Backoff { .. }) {
                op.undo = UndoState::Failed;
                cx.out.push(Command::CancelTimer(TimerKey::UndoRetry(op.number)));
            }
        }
        if self.deadline.take().is_some() {
            cx.out.push(Command::CancelTimer(TimerKey::Deadline));
        }
        if self.concurrency.is_some() && had_place {
            cx.out.push(Command::Release);
        }
        if self.parent.is_some() {
            let told = match (phase, self.output(), &self.error) {
                (Phase::Completed, Some(output), _) => Ok(output.clone()),
                (Phase::Abandoned, ..) => Err(Failure::new(FailureKind::Child, "the child was abandoned")),
                (_, _, Some(error)) => Err(Failure { kind: FailureKind::Child, ..error.clone() }),
                _ => Err(Failure::new(FailureKind::Child, "the child did not complete")),
            };
            cx.out.push(match (self.undone_for_parent, phase) {
                (true, Phase::Compensated) => Command::TellParentUndone(None),
                (true, _) => Command::TellParentUndone(told.err()),
                (false, _) => Command::TellParent(told),
            });
        }
        cx.out.push(Command::Ended);
    }
}
