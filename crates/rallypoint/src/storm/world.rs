//! The world of one case: the sagas with their journals in memory, virtual time, the code of the
//! steps, crashes and people.
//!
//! Decides in which order things happen. Never what they mean: the machine does, from the record, as
//! in production; and the function's turns are made as the driver makes them.
//!
//! Invariants:
//! - a crash forgets everything but the journals, the outside (the user's context), and what is on
//!   its way between sagas: such a message is part of the record that caused it;
//! - each turn of the loop journals at most one record, so that a crash can come after each of them.

use super::case::{Arrival, Case, Seen, Signals, Target};
use super::flight::{Flight, Next, State, next};
use super::rules::{Books, Broken, Verdict};
use super::timeline::{Entry, Timeline};
use super::{ID, NAME};
use rallypoint_base::random::{Random, mix};
use rallypoint_base::time::Time;
use rallypoint_engine::saga::child_id;
use rallypoint_saga::event::{Attempt, Command, Direction, Event, Parent, TimerKey};
use rallypoint_saga::function::{Resolution, Runner, resolution};
use rallypoint_saga::machine::Machine;
use rallypoint_saga::op::{Op, OpNumber, OpState, What};
use rallypoint_saga::registry::Registry;
use rallypoint_saga::value::Blob;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// When every saga of a storm begins.
pub(super) const BEGAN: Time = Time(1_000_000_000);
/// What its keys begin with.
pub(super) const HISTORY: &str = "storm";
/// A person answers a question after this long.
const SIGNAL: Duration = Duration::from_millis(1);

pub(super) type Log = Vec<(Time, Event)>;

/// One saga.
#[derive(Default)]
pub(super) struct Instance {
    pub(super) machine: Machine,
    pub(super) log: Log,
    pub(super) runner: Option<Runner>,
    pub(super) timers: BTreeMap<TimerKey, Time>,
    /// It is to be told something: build it anew first?
    pub(super) drive: Option<bool>,
}

/// What is on its way to a saga. It outlives a crash.
pub(super) enum Message {
    Tell(String, Event),
    Start { child: String, name: String, input: Blob, parent: Parent },
}

/// An undo that took place.
#[derive(Clone, Debug)]
pub(super) struct Undone {
    pub(super) target: Target,
    /// The outcome of its step was known.
    pub(super) known: bool,
    pub(super) polls: u32,
}

/// What was seen in a run.
#[derive(Default)]
pub(super) struct Sight {
    /// Records before the first thing went wrong.
    pub(super) calm: Option<u64>,
    pub(super) steps: Vec<Seen>,
    pub(super) undone: Vec<Undone>,
    /// Signals whose wait has an end.
    pub(super) may_miss: BTreeSet<String>,
    pub(super) crashes: u64,
    pub(super) late: u64,
    pub(super) helped: u64,
}

pub(super) struct World<'a, C> {
    pub(super) registry: &'a Registry<C>,
    pub(super) sagas: BTreeMap<String, Instance>,
    pub(super) books: Books,
    pub(super) timeline: Timeline,
    pub(super) sight: Sight,
    pub(super) records: u64,
    pub(super) case: &'a Case,
    pub(super) seed: u64,
    signals: &'a [(String, Blob)],
    /// More records are no end.
    pub(super) limit: u64,
    pub(super) began: Instant,
    pub(super) flights: Vec<Flight>,
    pub(super) messages: VecDeque<Message>,
    /// When somebody answers who waits for a signal.
    awaited: BTreeMap<(String, OpNumber, u32), Instant>,
    pub(super) weather: Option<Random>,
    pub(super) crashed: usize,
    cancelled: bool,
    /// A person has helped: nothing goes wrong any more.
    pub(super) healed: bool,
    pub(super) asked_to_help: BTreeSet<String>,
    pub(super) ended: bool,
}

/// The randomness of a record follows from its saga and its place in the journal.
fn jitter(seed: u64, saga: &str, index: usize) -> Random {
    let saga = saga.bytes().fold(seed, |hash, byte| mix(hash ^ u64::from(byte)));
    Random::new(mix(saga ^ index as u64))
}

/// Tells a machine one record of its journal.
pub(super) fn fold(machine: &mut Machine, seed: u64, saga: &str, index: usize, (now, event): &(Time, Event)) {
    let _ = machine.handle(*now, &mut jitter(seed, saga, index), event.clone(), &mut Vec::new());
}

pub(super) fn unfed(machine: &Machine) -> Vec<(OpNumber, Resolution)> {
    machine.unfed().iter().filter_map(|op| Some((op.number, resolution(machine, op.number)?))).collect()
}

impl<'a, C: Send + Sync + 'static> World<'a, C> {
    /// Needs a tokio runtime around it.
    pub(super) fn new(
        registry: &'a Registry<C>,
        case: &'a Case,
        seed: u64,
        signals: &'a [(String, Blob)],
        limit: u64,
    ) -> Self {
        Self {
            registry,
            sagas: BTreeMap::new(),
            books: Books::default(),
            timeline: Timeline::default(),
            sight: Sight::default(),
            records: 0,
            case,
            seed,
            signals,
            limit,
            began: Instant::now(),
            flights: Vec::new(),
            messages: VecDeque::new(),
            awaited: BTreeMap::new(),
            weather: case.weather.map(Random::new),
            crashed: 0,
            cancelled: false,
            healed: false,
            asked_to_help: BTreeSet::new(),
            ended: false,
        }
    }

    fn now(&self) -> Time {
        BEGAN + self.began.elapsed()
    }

    fn instant(&self, at: Time) -> Instant {
        self.began + at.since(BEGAN)
    }

    pub(super) fn note(&mut self, entry: Entry) {
        let now = self.now();
        self.timeline.push(now, entry);
    }

    pub(super) fn went_wrong(&mut self) {
        self.sight.calm.get_or_insert(self.records);
    }

    pub(super) fn machine(&self, saga: &str) -> Option<&Machine> {
        self.sagas.get(saga).map(|instance| &instance.machine)
    }

    // ---------------------------------------------------------------- the loop

    /// Runs the saga to its end, and what comes after it.
    pub(super) async fn run(&mut self, input: &Blob) -> Verdict {
        self.start(ID, NAME, input, None)?;
        if self.case.signals == Signals::Early {
            self.went_wrong();
            for (name, value) in self.signals {
                let event = Event::Signal { name: name.clone(), value: value.clone() };
                self.messages.push_back(Message::Tell(ID.to_owned(), event));
            }
        }
        loop {
            if self.crash().await? || self.cancel()? {
                continue;
            }
            if self.records > self.limit {
                return self.without_end();
            }
            if let Some(message) = self.messages.pop_front() {
                self.deliver(message)?;
            } else if let Some((saga, rebuild)) = self.asked_to_drive() {
                self.drive(&saga, rebuild)?;
            } else if !self.due()? {
                let due = self.earliest();
                match next(&mut self.flights, due).await {
                    Next::Executed(at, facts) => self.executed(at, facts)?,
                    Next::Due => {}
                    Next::Nothing if self.goes_on()? => {}
                    Next::Nothing => return Ok(()),
                }
            }
        }
    }

    fn cancel(&mut self) -> Result<bool, Broken> {
        if self.cancelled || self.case.cancel.is_none_or(|after| self.records < after) {
            return Ok(false);
        }
        self.cancelled = true;
        self.went_wrong();
        self.tell(ID, Event::Cancel)?;
        Ok(true)
    }

    fn asked_to_drive(&mut self) -> Option<(String, bool)> {
        let (saga, instance) = self.sagas.iter_mut().find(|(_, instance)| instance.drive.is_some())?;
        Some((saga.clone(), instance.drive.take()?))
    }

    fn deliver(&mut self, message: Message) -> Verdict {
        match message {
            Message::Tell(saga, event) => self.tell(&saga, event).map(drop),
            Message::Start { child, .. } if self.sagas.contains_key(&child) => Ok(()),
            Message::Start { child, name, input, parent } => self.start(&child, &name, &input, Some(parent)),
        }
    }

    /// When something is to happen that needs no code.
    fn earliest(&self) -> Option<Instant> {
        let answers = self.flights.iter().filter_map(|flight| match &flight.state {
            State::Answered(_, at) => Some(*at),
            State::Executing(_) => None,
        });
        let timers = self.sagas.values().flat_map(|instance| instance.timers.values());
        let timers = timers.map(|at| self.instant(*at));
        answers.chain(timers).chain(self.awaited.values().copied()).min()
    }

    /// Lets happen what is to happen by now; false when there is nothing.
    fn due(&mut self) -> Result<bool, Broken> {
        let now = Instant::now();
        let answered = |flight: &Flight| matches!(flight.state, State::Answered(_, at) if at <= now);
        if let Some(at) = self.flights.iter().position(answered) {
            let flight = self.flights.remove(at);
            self.answered(flight)?;
            return Ok(true);
        }
        if let Some(key) = self.awaited.iter().find(|(_, at)| **at <= now).map(|(key, _)| key.clone()) {
            self.awaited.remove(&key);
            self.signal(&key)?;
            return Ok(true);
        }
        let timers = self
            .sagas
            .iter()
            .flat_map(|(saga, instance)| instance.timers.iter().map(move |(key, at)| (*at, saga, *key)));
        let Some((at, saga, key)) = timers.min() else { return Ok(false) };
        if self.instant(at) > now {
            return Ok(false);
        }
        let saga = saga.clone();
        if let Some(instance) = self.sagas.get_mut(&saga) {
            instance.timers.remove(&key);
        }
        self.tell(&saga, Event::Timer(key))?;
        Ok(true)
    }

    fn signal(&mut self, (saga, op, generation): &(String, OpNumber, u32)) -> Verdict {
        let waits =
            |found: &&Op| found.generation == *generation && matches!(found.state, OpState::Waiting { .. });
        let found = self.machine(saga).and_then(|machine| machine.op(*op)).filter(waits);
        let value = found.and_then(|op| self.signals.iter().find(|(name, _)| *name == op.name));
        match value.cloned() {
            Some((name, value)) => self.tell(saga, Event::Signal { name, value }).map(drop),
            None => Ok(()),
        }
    }

    // ---------------------------------------------------------------- records

    /// Journals an event; false when it is refused.
    pub(super) fn tell(&mut self, saga: &str, event: Event) -> Result<bool, Broken> {
        let now = self.now();
        let Some(instance) = self.sagas.get_mut(saga) else { return Ok(false) };
        let mut commands = Vec::new();
        let index = instance.log.len();
        let random = &mut jitter(self.seed, saga, index);
        if let Err(refusal) = instance.machine.handle(now, random, event.clone(), &mut commands) {
            self.note(Entry::Refused { saga: saga.to_owned(), event, why: refusal.to_string() });
            return Ok(false);
        }
        instance.log.push((now, event.clone()));
        if self.case.forgetful {
            instance.runner = None;
        }
        let status = instance.machine.status();
        self.records += 1;
        self.books.record(saga, index + 1, &event, &instance.machine)?;
        let number = self.records;
        self.note(Entry::Record { number, saga: saga.to_owned(), event: event.clone(), status });
        self.look(saga, &event);
        for command in commands {
            self.carry_out(saga, command, false)?;
        }
        Ok(true)
    }

    /// Sees what the record tells the storm, not the saga.
    fn look(&mut self, saga: &str, event: &Event) {
        if let Event::Attempted { op, direction: Direction::Undo, attempt: Attempt::Done(_), .. } = event {
            self.arrive_if(saga, *op, Arrival::AfterUndo);
        }
        let at = Instant::now() + SIGNAL;
        let Some(instance) = self.sagas.get(saga) else { return };
        for op in instance.machine.ops() {
            let (What::Signal { within }, OpState::Waiting { .. }) = (&op.what, op.state) else { continue };
            if within.is_some() {
                self.sight.may_miss.insert(op.name.clone());
            }
            let comes = self.case.signals != Signals::Without(op.name.clone());
            if comes && self.signals.iter().any(|(name, _)| *name == op.name) {
                self.awaited.entry((saga.to_owned(), op.number, op.generation)).or_insert(at);
            } else if !comes {
                self.sight.calm.get_or_insert(self.records);
            }
        }
    }

    pub(super) fn carry_out(&mut self, saga: &str, command: Command, earlier: bool) -> Verdict {
        let now = self.now();
        let Some(instance) = self.sagas.get_mut(saga) else { return Ok(()) };
        let machine = &instance.machine;
        let child = |op: OpNumber| child_id(saga, op, machine.op(op).map_or(0, |op| op.generation));
        match command {
            Command::Perform { op, direction } => return self.perform(saga, op, direction, earlier),
            Command::Drive { rebuild } => instance.drive = Some(rebuild),
            Command::SetTimer(key, wait) => {
                // In a recovery the wait counts from the last record, not from now.
                let from = if earlier { machine.updated() } else { now };
                instance.timers.insert(key, from + wait);
            }
            Command::CancelTimer(key) => drop(instance.timers.remove(&key)),
            Command::StartChild(op) => {
                let Some(Op { what: What::Child { saga: name, input }, generation, .. }) = machine.op(op)
                else {
                    return Ok(());
                };
                let parent = Parent { id: saga.to_owned(), op, generation: *generation };
                let (name, input) = (name.clone(), input.clone());
                self.messages.push_back(Message::Start { child: child(op), name, input, parent });
            }
            Command::CancelChild(op) => {
                self.messages.push_back(Message::Tell(child(op), Event::Cancel));
            }
            Command::UndoChild(op) => {
                self.books.undo_begins(saga, op, machine)?;
                self.messages.push_back(Message::Tell(child(op), Event::Compensate));
            }
            Command::Acquire(_) => {
                self.messages.push_back(Message::Tell(saga.to_owned(), Event::Granted));
            }
            Command::TellParent(result) => {
                let event = |Parent { op, generation, .. }: &Parent| Event::ChildEnded {
                    op: *op,
                    generation: *generation,
                    result,
                };
                self.messages.extend(machine.parent().map(|up| Message::Tell(up.id.clone(), event(up))));
            }
            Command::TellParentUndone(failure) => {
                let event = |Parent { op, generation, .. }: &Parent| Event::ChildUndone {
                    op: *op,
                    generation: *generation,
                    failure,
                };
                self.messages.extend(machine.parent().map(|up| Message::Tell(up.id.clone(), event(up))));
            }
            Command::Release | Command::Alarm(_) | Command::Ended => {}
        }
        Ok(())
    }
}
