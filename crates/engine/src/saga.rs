//! Sagas on the engine: each is an actor, its log is its partition's, its steps are effects.
//!
//! Decides how the machine's commands become effects, timers and messages, and back. Never runs a
//! user's code: the host's driver performs [`Work`] and answers with an [`Event`], and polls the
//! saga's function between a step's result and its record, so that one record holds both.
//!
//! Invariant: a saga's state is the fold of its records; what is outstanding for the machine is
//! outstanding in the engine's tables (effects, timers, frames), which survive by themselves.

use crate::actor::{Actor, Cx, Signal};
use crate::codec::Codec;
use crate::effect::EffectOutcome;
use rallypoint_base::limits::{FAN_OUT, MESSAGE_BYTES, SAGA_BYTES};
use rallypoint_base::random::Random;
use rallypoint_saga::event::{Attempt, Command, Direction, End, Event, Parent, Start, TimerKey, Turn};
use rallypoint_saga::function::{Resolution, resolution};
use rallypoint_saga::machine::{Machine, Refusal};
use rallypoint_saga::op::{Failure, FailureKind, OpNumber, What};
use rallypoint_saga::status::Status;
use rallypoint_saga::value::Blob;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

mod weight;

/// Name of the effect that the host's driver performs.
pub const EFFECT: &str = "rallypoint.saga";

/// The driver keeps the time of an attempt itself; this only bounds what the engine remembers.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What the driver is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Attempt a step, or its undo.
    Attempt(Box<AttemptWork>),
    /// Tell the function what it has not been told.
    Drive {
        /// Id of the saga.
        id: String,
        /// Name of the saga's function.
        name: String,
        /// Turns in the journal.
        turns: u32,
        /// Build it anew from the journal.
        rebuild: bool,
        /// What it has not been told, in order.
        feed: Vec<(OpNumber, Resolution)>,
    },
    /// Start a child.
    StartChild {
        /// Id of the child.
        child: String,
        /// Its name.
        name: String,
        /// Its input.
        input: Blob,
        /// Whose child.
        parent: Parent,
    },
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptWork {
    /// Id of the saga.
    pub id: String,
    /// The operation.
    pub op: OpNumber,
    /// Its name: what the step is registered as.
    pub step: String,
    /// Its generation.
    pub generation: u32,
    /// Run or undo.
    pub direction: Direction,
    /// From 1.
    pub attempt: u32,
    /// The step; `None` for a closure of the function.
    pub value: Option<Blob>,
    /// In an undo, what is known of the step.
    pub output: Option<Blob>,
    /// For this attempt.
    pub timeout: Duration,
    /// A business refusal goes to the function.
    pub may_fail: bool,
    /// Name of the saga's function.
    pub saga: String,
    /// What the saga's keys begin with.
    pub history: String,
    /// Since the epoch, of the saga's start: with the id, the root of its trace.
    pub started: u64,
}

impl AttemptWork {
    /// The idempotency key of this step in this saga and generation, in the given direction.
    #[must_use]
    pub fn key(&self, direction: Direction) -> String {
        let word = match direction {
            Direction::Run => "run",
            Direction::Undo => "undo",
        };
        let mut key = String::with_capacity(self.history.len() + self.id.len() + self.step.len() + 32);
        key.push_str(&self.history);
        key.push('.');
        push_key_part(&mut key, &self.id);
        // Writing to a string does not fail.
        let _ = write!(key, ".{}.{}.", self.generation, self.op);
        push_key_part(&mut key, &self.step);
        key.push('.');
        key.push_str(word);
        key
    }
}

/// A text as it stands in a key: visible ASCII without the separator, the rest percent-encoded.
fn push_key_part(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/' | b':') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// What a saga actor understands.
#[expect(clippy::large_enum_variant, reason = "it is made once, encoded or taken apart, and gone")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaMessage {
    /// Begin.
    Start(Box<Start>),
    /// Something happened, or a person asks for it.
    Event(Event),
    /// Read-only: how it stands.
    Peek,
    /// Read-only: everything.
    Show,
    /// To a child: its root has ended, so that nobody undoes it any more unless the root is restarted.
    Released,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaReply {
    /// To a start: true when it began now, false when the same saga was there.
    Started(bool),
    /// To an event.
    Accepted(Status),
    /// To a peek.
    Peeked(Peeked),
    /// To a show.
    Shown(Box<Machine>),
}

/// How a saga stands, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peeked {
    /// Its status.
    pub status: Status,
    /// Its output, when completed.
    pub output: Option<Blob>,
    /// Why it failed.
    pub error: Option<Failure>,
}

/// A saga.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SagaActor {
    machine: Machine,
    /// At least the bytes of what the machine holds: weighed exactly only when it seems to be too much.
    weight: usize,
    /// Of a child: its root has ended.
    released: bool,
    /// Children of generations below this one were told that.
    released_below: u32,
}

impl SagaActor {
    /// Its machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// True when it has ended and nobody but a person, by a restart, will want anything of it.
    #[must_use]
    pub fn is_archivable(&self) -> bool {
        self.machine.status().is_ended()
            && !self.machine.is_new()
            && (self.released || self.machine.parent().is_none())
    }

    /// It has ended, for good but for a restart: it may be put away, and so may its children.
    fn put_away(&mut self, cx: &mut Cx<'_>) {
        if !self.is_archivable() {
            return;
        }
        cx.ended();
        let below = std::mem::replace(&mut self.released_below, self.machine.generation() + 1);
        let children = self.machine.ops().iter();
        let children = children.filter(|op| matches!(op.what, What::Child { .. }) && op.generation >= below);
        // Beyond this the run could not be told from one that asks for too much: those stay in memory.
        for op in children.take(FAN_OUT / 2) {
            let child = child_id(cx.key(), op.number, op.generation);
            cx.send::<Self>(&child, &SagaMessage::Released);
        }
    }

    fn event(&mut self, event: Event, cx: &mut Cx<'_>) -> Result<(), Refusal> {
        let event = self.weigh(event)?;
        let mut commands = Vec::new();
        let mut random = Random::new(cx.random());
        self.machine.handle(cx.now(), &mut random, event, &mut commands)?;
        let ended = commands.contains(&Command::Ended);
        for command in commands {
            self.carry_out(command, cx);
        }
        if ended {
            self.put_away(cx);
        }
        Ok(())
    }

    fn carry_out(&self, command: Command, cx: &mut Cx<'_>) {
        let machine = &self.machine;
        match command {
            Command::Perform { op, direction } => {
                let Some(work) = self.attempt_work(cx.key(), op, direction) else { return };
                let token = token(Marker::of(direction), op);
                cx.effect_with(Codec::Compact, EFFECT, &Work::Attempt(Box::new(work)), FOREVER, token);
            }
            Command::Drive { rebuild } => {
                let unfed = machine.unfed();
                let outputs = unfed.iter().filter_map(|op| op.output.as_ref());
                // Too much for a request: the driver reads it in the journal.
                let large = outputs.map(|output| output.bytes().len()).sum::<usize>() > MESSAGE_BYTES / 2;
                let rebuild = rebuild || large;
                let feed = unfed.into_iter().filter(|_| !large);
                let feed = feed.filter_map(|op| Some((op.number, resolution(machine, op.number)?))).collect();
                let turns = machine.turns().len() as u32;
                let work = Work::Drive {
                    id: cx.key().to_owned(),
                    name: machine.name().to_owned(),
                    turns,
                    rebuild,
                    feed,
                };
                cx.effect_with(Codec::Compact, EFFECT, &work, FOREVER, token(Marker::Drive, 0));
            }
            Command::SetTimer(key, after) => cx.set_timer(&timer_name(key), after),
            Command::CancelTimer(key) => cx.cancel_timer(&timer_name(key)),
            Command::StartChild(op) => {
                let Some(found) = machine.op(op) else { return };
                let What::Child { saga, input } = &found.what else { return };
                let parent = Parent { id: cx.key().to_owned(), op, generation: found.generation };
                let child = self.child(op, cx);
                let work = Work::StartChild { child, name: saga.clone(), input: input.clone(), parent };
                cx.effect_with(Codec::Compact, EFFECT, &work, FOREVER, token(Marker::Child, op));
            }
            Command::CancelChild(op) => {
                let child = self.child(op, cx);
                cx.send::<Self>(&child, &SagaMessage::Event(Event::Cancel));
            }
            Command::UndoChild(op) => {
                let child = self.child(op, cx);
                cx.send::<Self>(&child, &SagaMessage::Event(Event::Compensate));
            }
            Command::Acquire(limit) => {
                let message = LimitMessage::Acquire { id: cx.key().to_owned(), limit };
                cx.send::<LimitActor>(machine.name(), &message);
            }
            Command::Release => {
                let message = LimitMessage::Release { id: cx.key().to_owned() };
                cx.send::<LimitActor>(machine.name(), &message);
            }
            Command::TellParent(result) => {
                if let Some(Parent { id, op, generation }) = machine.parent() {
                    let event = Event::ChildEnded { op: *op, generation: *generation, result };
                    cx.send::<Self>(id, &SagaMessage::Event(event));
                }
            }
            Command::TellParentUndone(failure) => {
                if let Some(Parent { id, op, generation }) = machine.parent() {
                    let event = Event::ChildUndone { op: *op, generation: *generation, failure };
                    cx.send::<Self>(id, &SagaMessage::Event(event));
                }
            }
            Command::Alarm(detail) => {
                let text = format!("saga {} {:?}: {detail}", machine.name(), cx.key());
                cx.alarm(text);
            }
            // Once all that this run asks for is said: `put_away`.
            Command::Ended => {}
        }
    }

    fn child(&self, op: OpNumber, cx: &Cx<'_>) -> String {
        let generation = self.machine.op(op).map_or(0, |op| op.generation);
        child_id(cx.key(), op, generation)
    }

    /// Keeps the journal small enough to be shown as a whole and to build the function from.
    fn weigh(&mut self, event: Event) -> Result<Event, Refusal> {
        let new = weight::of_event(&event);
        if self.weight + new > SAGA_BYTES {
            self.weight = weight::of_machine(&self.machine);
        }
        let event = match self.weight + new > SAGA_BYTES {
            true => weight::too_much(event)?,
            false => event,
        };
        self.weight += weight::of_event(&event);
        Ok(event)
    }

    fn attempt_work(&self, id: &str, number: OpNumber, direction: Direction) -> Option<AttemptWork> {
        let machine = &self.machine;
        let op = machine.op(number)?;
        let value = match &op.what {
            What::Step { value, .. } => Some(value.clone()),
            _ => None,
        };
        let (attempt, output) = match direction {
            Direction::Run => (op.attempts, None),
            Direction::Undo => (op.undo_attempts, op.output.clone()),
        };
        Some(AttemptWork {
            id: id.to_owned(),
            op: number,
            step: op.name.clone(),
            generation: op.generation,
            direction,
            attempt,
            value,
            output,
            timeout: op.policy().timeout,
            may_fail: machine.may_fail(number),
            saga: machine.name().to_owned(),
            history: machine.history().to_owned(),
            started: machine.created().0,
        })
    }
}

/// Id of a child: its parent's, the operation, and from the second generation on that.
#[must_use]
pub fn child_id(parent: &str, op: OpNumber, generation: u32) -> String {
    match generation {
        0 => format!("{parent}/{op}"),
        _ => format!("{parent}/{op}.{generation}"),
    }
}

#[derive(Clone, Copy)]
enum Marker {
    Run = 0,
    Undo = 1,
    Drive = 2,
    Child = 3,
}

impl Marker {
    fn of(direction: Direction) -> Self {
        match direction {
            Direction::Run => Self::Run,
            Direction::Undo => Self::Undo,
        }
    }
}

fn token(marker: Marker, op: OpNumber) -> u64 {
    (marker as u64) << 32 | u64::from(op)
}

fn timer_name(key: TimerKey) -> String {
    match key {
        TimerKey::Wait(op) => format!("w{op}"),
        TimerKey::Retry(op) => format!("r{op}"),
        TimerKey::UndoRetry(op) => format!("u{op}"),
        TimerKey::Deadline => "d".into(),
    }
}

fn timer_key(name: &str) -> Option<TimerKey> {
    let number = || name.get(1..)?.parse().ok();
    match name.bytes().next()? {
        b'w' => number().map(TimerKey::Wait),
        b'r' => number().map(TimerKey::Retry),
        b'u' => number().map(TimerKey::UndoRetry),
        b'd' => Some(TimerKey::Deadline),
        _ => None,
    }
}

impl Actor for SagaActor {
    const KIND: &'static str = "rallypoint.saga";
    const CODEC: Codec = Codec::Compact;
    type Message = SagaMessage;
    type Reply = SagaReply;
    type Error = Refusal;

    fn handle(&mut self, message: SagaMessage, cx: &mut Cx<'_>) -> Result<SagaReply, Refusal> {
        match message {
            SagaMessage::Start(start) => {
                let is_new = self.machine.is_new();
                self.event(Event::Start(start), cx)?;
                Ok(SagaReply::Started(is_new))
            }
            SagaMessage::Event(Event::Start(_)) => Err(Refusal::OtherInput),
            SagaMessage::Event(event) => {
                self.event(event, cx)?;
                Ok(SagaReply::Accepted(self.machine.status()))
            }
            SagaMessage::Peek | SagaMessage::Show => match self.look(&message) {
                Some(answer) => answer,
                None => Err(Refusal::NoSuchSaga),
            },
            _ if self.machine.is_new() => Err(Refusal::NoSuchSaga),
            SagaMessage::Released => {
                self.released = true;
                self.put_away(cx);
                Ok(SagaReply::Accepted(self.machine.status()))
            }
        }
    }

    fn look(&self, message: &SagaMessage) -> Option<Result<SagaReply, Refusal>> {
        let machine = &self.machine;
        Some(match message {
            SagaMessage::Peek | SagaMessage::Show if machine.is_new() => Err(Refusal::NoSuchSaga),
            SagaMessage::Peek => Ok(SagaReply::Peeked(Peeked {
                status: machine.status(),
                output: machine.output().cloned(),
                error: machine.error().cloned(),
            })),
            SagaMessage::Show => Ok(SagaReply::Shown(Box::new(machine.clone()))),
            _ => return None,
        })
    }

    fn signal(&mut self, signal: Signal<'_>, cx: &mut Cx<'_>) -> Result<(), Refusal> {
        match signal {
            Signal::Timer { name } => match timer_key(name) {
                Some(key) => self.event(Event::Timer(key), cx),
                None => Ok(()),
            },
            Signal::Effect { token, outcome } => match self.answer(token, outcome) {
                Some(event) => self.event(event, cx),
                None => Ok(()),
            },
            Signal::Answer { .. } => Ok(()),
        }
    }

    fn read_only(message: &SagaMessage) -> bool {
        matches!(message, SagaMessage::Peek | SagaMessage::Show)
    }
}

impl SagaActor {
    /// What the driver answered. Anything but an event of ours is a driver that could not work: the
    /// saga is told so, in the place of the answer.
    fn answer(&self, token: u64, outcome: EffectOutcome<'_>) -> Option<Event> {
        let why = match outcome {
            EffectOutcome::Done(value) if value.bytes().is_empty() => return None,
            EffectOutcome::Done(value) => match value.decode::<Event>() {
                Ok(event @ (Event::Attempted { .. } | Event::Driven(_) | Event::ChildEnded { .. })) => {
                    return Some(event);
                }
                Ok(_) => "the driver's answer is of no use here".to_owned(),
                Err(error) => error.to_string(),
            },
            EffectOutcome::Failed(text) => text.to_owned(),
            EffectOutcome::TimedOut => "the driver did not answer".to_owned(),
        };
        let failure = Failure::new(FailureKind::Unregistered, why);
        let op = token as u32;
        let generation = self.machine.op(op).map_or(0, |op| op.generation);
        let attempted = |direction| Event::Attempted {
            op,
            generation,
            direction,
            earlier: true,
            attempt: Attempt::Failed { failure: failure.clone(), may_have_acted: true, retry_after: None },
            turn: None,
        };
        Some(match token >> 32 {
            0 => attempted(Direction::Run),
            1 => attempted(Direction::Undo),
            2 => {
                let index = self.machine.turns().len() as u32;
                Event::Driven(Turn { index, end: Some(End::Broken(failure)), ..Turn::default() })
            }
            _ => Event::ChildEnded { op, generation, result: Err(failure) },
        })
    }
}

/// How many sagas of one name run at once. Its key is the name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LimitActor {
    running: BTreeSet<String>,
    waiting: VecDeque<String>,
    limit: u32,
}

/// What a limit understands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitMessage {
    /// A saga wants to run; the newest limit holds.
    Acquire {
        /// Its id.
        id: String,
        /// How many may run.
        limit: u32,
    },
    /// It has ended.
    Release {
        /// Its id.
        id: String,
    },
}

impl Actor for LimitActor {
    const KIND: &'static str = "rallypoint.limit";
    const CODEC: Codec = Codec::Compact;
    type Message = LimitMessage;
    type Reply = ();
    type Error = ();

    fn handle(&mut self, message: LimitMessage, cx: &mut Cx<'_>) -> Result<(), ()> {
        match message {
            LimitMessage::Acquire { id, limit } => {
                self.limit = limit;
                if !self.running.contains(&id) && !self.waiting.contains(&id) {
                    self.waiting.push_back(id);
                }
            }
            LimitMessage::Release { id } => {
                self.running.remove(&id);
                self.waiting.retain(|waiting| *waiting != id);
            }
        }
        while self.running.len() < self.limit as usize {
            let Some(next) = self.waiting.pop_front() else { break };
            cx.send::<SagaActor>(&next, &SagaMessage::Event(Event::Granted));
            self.running.insert(next);
        }
        Ok(())
    }
}
