//! A simulated world around one saga: it performs, tells the time, holds the limit, the children and
//! the people, and may crash after every event.
//!
//! What is a message in the real system (`Release`, `TellParent`, `Ended`) is part of the event that
//! caused it and cannot be lost; everything that is to be answered (attempts, turns, timers, children,
//! a place) is lost in a crash, and is known again only by `Machine::outstanding`.

use crate::checks::{Broken, Checks, Verdict, View};
use crate::script::{self, Generator, Node};
use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_saga::event::{Attempt, Command, Direction, End, Event, Parent, Start, TimerKey, Turn};
use rallypoint_saga::function::{Resolution, Runner, resolution};
use rallypoint_saga::machine::{Machine, Refusal};
use rallypoint_saga::op::{Failure, FailureKind, OpNumber, OpState, UndoState, What};
use rallypoint_saga::registry::Registry;
use rallypoint_saga::status::Status;
use rallypoint_saga::value::Blob;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const ID: &str = "saga-1";

/// Alters what is asked for, given the state before, the event and the state after it.
pub(crate) type AlterCommands = fn(&Machine, &Event, &Machine, &mut Vec<Command>);

/// An alteration between the machine and its surroundings, made in the test.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tamper {
    /// Alters an event before the machine is told.
    pub(crate) event: Option<fn(&mut Event)>,
    /// Alters what the machine asks for.
    pub(crate) commands: Option<AlterCommands>,
    /// Alters the state that is kept.
    pub(crate) state: Option<fn(&Machine, &Event, &mut Machine)>,
    /// Alters what recovery is told.
    pub(crate) outstanding: Option<fn(&mut Vec<Command>)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Free,
    Queued,
    Held,
}

#[derive(Clone, Debug, Default)]
struct Child {
    started: bool,
    cancelled: bool,
    undo: bool,
    /// Ends only when it is cancelled.
    idle: bool,
}

/// Which logged events a run has: what a fold needs.
pub(crate) type Log = Vec<(Time, Event)>;

/// The world of one saga.
pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) log: Log,
    /// The state after each event of this process.
    pub(crate) states: Vec<Machine>,
    pub(crate) checks: Checks,
    pub(crate) kinds: BTreeMap<&'static str, u64>,
    registry: Registry<()>,
    runner: Option<Runner>,
    random: Random,
    seed: u64,
    now: Time,
    runs: Vec<(OpNumber, u32)>,
    undos: Vec<(OpNumber, u32)>,
    /// Attempts that were under way when the process before this one ended.
    earlier: BTreeSet<(OpNumber, bool)>,
    drive: Option<bool>,
    timers: BTreeMap<TimerKey, Time>,
    place: Place,
    children: BTreeMap<(OpNumber, u32), Child>,
    tamper: Tamper,
    healing: bool,
    helped: u32,
    /// Of 100 answers, so many are bad.
    faults: u64,
    /// Of 100 events, so many come from people.
    people: u64,
}

/// The randomness of an event follows from its place in the log.
fn jitter(seed: u64, index: usize) -> Random {
    Random::new(seed ^ rallypoint_base::random::mix(index as u64))
}

/// Folds a log: the state a fresh machine comes to.
pub(crate) fn fold(seed: u64, log: &[(Time, Event)]) -> Machine {
    let mut machine = Machine::default();
    for (index, (now, event)) in log.iter().enumerate() {
        let _ = machine.handle(*now, &mut jitter(seed, index), event.clone(), &mut Vec::new());
    }
    machine
}

impl World {
    fn empty(seed: u64, random: Random, tamper: Tamper) -> Self {
        Self {
            machine: Machine::default(),
            log: Log::new(),
            states: Vec::new(),
            checks: Checks::default(),
            kinds: BTreeMap::new(),
            registry: script::registry(),
            runner: None,
            random,
            seed,
            now: Time(1_000_000_000),
            runs: Vec::new(),
            undos: Vec::new(),
            earlier: BTreeSet::new(),
            drive: None,
            timers: BTreeMap::new(),
            place: Place::Free,
            children: BTreeMap::new(),
            tamper,
            healing: false,
            helped: 0,
            faults: [0, 10, 40][Random::new(seed ^ 1).below(3) as usize],
            people: [2, 10, 30][Random::new(seed ^ 2).below(3) as usize],
        }
    }

    /// A generated saga, started.
    pub(crate) fn start(seed: u64, tamper: Tamper) -> Result<Self, Broken> {
        let mut random = Random::new(seed);
        let script = Generator::script(&mut random);
        let concurrency = random.chance(1, 3).then_some(1);
        let deadline = random.chance(1, 4).then(|| Duration::from_millis(random.range(1, 20_000)));
        let parent = random.chance(1, 4).then(|| Parent { id: "parent".into(), op: 3, generation: 0 });
        let first = random.chance(1, 2);
        Self::start_with(seed, random, tamper, &script, concurrency, deadline, parent, first)
    }

    /// This script, with nothing around it.
    pub(crate) fn start_plain(seed: u64, script: &Node) -> Result<Self, Broken> {
        let random = Random::new(seed);
        let mut this = Self::start_with(seed, random, Tamper::default(), script, None, None, None, true)?;
        (this.faults, this.people) = (0, 0);
        Ok(this)
    }

    /// An attempt of the step of this name ends so.
    pub(crate) fn answer(&mut self, name: &str, attempt: Attempt) -> Verdict {
        let found =
            self.runs.iter().position(|(op, _)| self.machine.op(*op).is_some_and(|op| op.name == name));
        let (op, generation) = self.runs.remove(found.expect("it is being attempted"));
        let event = Event::Attempted {
            op,
            generation,
            direction: Direction::Run,
            earlier: false,
            attempt,
            turn: None,
        };
        self.event(event)?;
        while self.drive.is_some() {
            self.turn()?;
        }
        Ok(())
    }

    fn start_with(
        seed: u64,
        random: Random,
        tamper: Tamper,
        script: &Node,
        concurrency: Option<u32>,
        deadline: Option<Duration>,
        parent: Option<Parent>,
        first: bool,
    ) -> Result<Self, Broken> {
        let mut this = Self::empty(seed, random, tamper);
        let input = Blob::of(script).expect("a script is a value");
        let mut runner = this.registry.begin("script", 1, ID, &input).expect("it is registered");
        let turn = first.then(|| runner.turn(Vec::new()));
        this.runner = first.then_some(runner);
        let start = Start {
            name: "script".into(),
            version: 1,
            input,
            concurrency,
            deadline,
            parent,
            turn,
            history: "h".into(),
            ..Start::default()
        };
        this.event(Event::Start(Box::new(start)))?;
        Ok(this)
    }

    /// A world whose process has just begun and finds this log.
    pub(crate) fn recover(
        seed: u64,
        log: &[(Time, Event)],
        random: Random,
        tamper: Tamper,
    ) -> Result<Self, Broken> {
        let mut this = Self::empty(seed, random, tamper);
        for (index, (now, event)) in log.iter().enumerate() {
            let before = this.machine.clone();
            let mut out = Vec::new();
            let refused = this.machine.handle(*now, &mut jitter(seed, index), event.clone(), &mut out).err();
            let view = View {
                before: &before,
                event,
                refused: refused.as_ref(),
                commands: &out,
                after: &this.machine,
            };
            this.checks.event(&view)?;
            let lost = index + 1 == log.len();
            for command in out {
                match command {
                    Command::Acquire(_) | Command::StartChild(_) if lost => {}
                    Command::Acquire(_) if this.place == Place::Free => this.place = Place::Queued,
                    Command::Release => this.place = Place::Free,
                    Command::StartChild(op) => this.child(op).started = true,
                    _ => {}
                }
            }
            if matches!(event, Event::Granted) && this.machine.status().is_ended() {
                this.place = Place::Free;
            } else if matches!(event, Event::Granted) && this.checks.holds_place() {
                this.place = Place::Held;
            }
            this.now = *now;
        }
        this.log = log.to_vec();
        // The children of the log live on; what they were told in the last instant may be lost.
        this.earlier = this.checks.runs().iter().map(|&op| (op, true)).collect();
        let mut out = this.machine.outstanding();
        if let Some(alter) = this.tamper.outstanding {
            alter(&mut out);
        }
        let found: BTreeSet<OpNumber> = out
            .iter()
            .filter_map(|command| match command {
                Command::Perform { op, direction: Direction::Run } => Some(*op),
                _ => None,
            })
            .collect();
        if found != *this.checks.runs() {
            return Err(Broken { rule: "recovery", how: format!("{:?} is forgotten", this.checks.runs()) });
        }
        this.carry_out(out);
        Ok(this)
    }

    fn child(&mut self, op: OpNumber) -> &mut Child {
        let generation = self.machine.op(op).map_or(0, |op| op.generation);
        let idle = rallypoint_base::random::mix(u64::from(op) ^ self.seed).is_multiple_of(3);
        self.children.entry((op, generation)).or_insert(Child { idle, ..Child::default() })
    }

    fn event(&mut self, event: Event) -> Verdict {
        *self.kinds.entry(kind(&event)).or_default() += 1;
        let before = self.machine.clone();
        let mut out = Vec::new();
        let mut told = event.clone();
        if let Some(alter) = self.tamper.event {
            alter(&mut told);
        }
        let random = &mut jitter(self.seed, self.log.len());
        let refused: Option<Refusal> = self.machine.handle(self.now, random, told, &mut out).err();
        if let Some(alter) = self.tamper.state {
            alter(&before, &event, &mut self.machine);
        }
        if let Some(alter) = self.tamper.commands {
            alter(&before, &event, &self.machine, &mut out);
        }
        let view = View {
            before: &before,
            event: &event,
            refused: refused.as_ref(),
            commands: &out,
            after: &self.machine,
        };
        self.checks.event(&view)?;
        if refused.is_none() {
            self.log.push((self.now, event));
            self.states.push(self.machine.clone());
        }
        self.carry_out(out);
        Ok(())
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Perform { op, direction } => {
                    let generation = self.machine.op(op).map_or(0, |op| op.generation);
                    let list = if direction == Direction::Run { &mut self.runs } else { &mut self.undos };
                    list.push((op, generation));
                }
                Command::Drive { rebuild } => self.drive = Some(rebuild),
                Command::SetTimer(key, wait) => {
                    self.timers.insert(key, self.now + wait);
                }
                Command::CancelTimer(key) => {
                    self.timers.remove(&key);
                }
                Command::StartChild(op) => self.child(op).started = true,
                Command::CancelChild(op) => self.child(op).cancelled = true,
                Command::UndoChild(op) => self.child(op).undo = true,
                Command::Acquire(_) if self.place == Place::Free => self.place = Place::Queued,
                Command::Release => self.place = Place::Free,
                _ => {}
            }
        }
    }

    // ------------------------------------------------------------ what may happen

    /// Lets something happen; false when nothing is left that happens by itself.
    pub(crate) fn step(&mut self) -> Result<bool, Broken> {
        self.now = self.now + Duration::from_millis(self.random.below(20));
        if !self.healing && self.random.chance(self.people, 100) {
            self.somebody()?;
            return Ok(true);
        }
        let mut choices: Vec<u8> = Vec::new();
        choices.extend(self.runs.iter().map(|_| 0));
        choices.extend(self.undos.iter().map(|_| 1));
        choices.extend(self.drive.iter().map(|_| 2));
        choices.extend(self.timers.keys().map(|_| 3));
        choices.extend(self.children.values().filter(|child| busy(child)).map(|_| 4));
        if self.place == Place::Queued {
            choices.push(5);
        }
        let Some(&choice) = self.random.pick(&choices) else { return Ok(false) };
        match choice {
            0 => self.answer_run()?,
            1 => self.answer_undo()?,
            2 => self.turn()?,
            3 => self.fire()?,
            4 => self.answer_child()?,
            _ => {
                self.place = Place::Held;
                self.event(Event::Granted)?;
            }
        }
        Ok(true)
    }

    fn answer_run(&mut self) -> Verdict {
        let at = self.random.below(self.runs.len() as u64) as usize;
        let (op, generation) = self.runs.swap_remove(at);
        let earlier = self.earlier.remove(&(op, true));
        let attempt = self.outcome();
        let turn = match &attempt {
            Attempt::Done(output) => self.eager(op, output),
            _ => None,
        };
        let event = Event::Attempted { op, generation, direction: Direction::Run, earlier, attempt, turn };
        self.event(event)
    }

    /// The turn that a starter with a live function makes at once, sometimes by a copy that the
    /// journal has left behind.
    fn eager(&mut self, op: OpNumber, output: &Blob) -> Option<Turn> {
        if self.drive.is_some() || self.random.chance(1, 2) {
            return None;
        }
        if !matches!(self.machine.status(), Status::Running | Status::Waiting | Status::Paused)
            || self.machine.op(op).is_none_or(|op| op.state != OpState::InFlight)
        {
            return None;
        }
        let runner = self.runner.as_mut().filter(|runner| runner.is_live())?;
        let mut results = unfed(&self.machine);
        results.push((op, Ok(output.clone())));
        let mut turn = runner.turn(results);
        if self.random.chance(1, 20) {
            turn.index += 1;
        }
        Some(turn)
    }

    fn outcome(&mut self) -> Attempt {
        let failed = |kind, may_have_acted| Attempt::Failed {
            failure: Failure::new(kind, format!("{kind:?}")),
            may_have_acted,
            retry_after: None,
        };
        if self.healing || !self.random.chance(self.faults, 100) {
            return Attempt::Done(Blob::of(&self.random.next_u64()).expect("a number"));
        }
        match self.random.below(14) {
            0..=3 => failed(FailureKind::Business, false),
            4..=6 => failed(FailureKind::Transient, self.random.chance(1, 2)),
            7..=9 => failed(FailureKind::TimedOut, true),
            10 => failed(FailureKind::Panicked, true),
            11 => failed(FailureKind::Fatal, self.random.chance(1, 2)),
            12 => failed(FailureKind::Misconfigured, false),
            _ => failed(FailureKind::Unregistered, false),
        }
    }

    fn answer_undo(&mut self) -> Verdict {
        let at = self.random.below(self.undos.len() as u64) as usize;
        let (op, generation) = self.undos.swap_remove(at);
        let failed = |kind| Attempt::Failed {
            failure: Failure::new(kind, "the undo fails"),
            may_have_acted: true,
            retry_after: None,
        };
        let attempt = match self.random.below(if self.healing { 1 } else { 12 }) {
            0..=6 => Attempt::Done(Blob::default()),
            7 => Attempt::NotDefined,
            8 => failed(FailureKind::Fatal),
            _ => failed(FailureKind::Transient),
        };
        let direction = Direction::Undo;
        self.event(Event::Attempted { op, generation, direction, earlier: false, attempt, turn: None })
    }

    fn turn(&mut self) -> Verdict {
        let rebuild = self.drive.take().unwrap_or(true);
        let index = self.machine.turns().len() as u32;
        let broken = |failure| Turn { index, end: Some(End::Broken(failure)), ..Turn::default() };
        if !self.healing && self.random.chance(self.faults, 1000) {
            self.runner = None;
            let failure = Failure::new(FailureKind::BodyPanicked, "the saga's function panicked");
            return self.event(Event::Driven(broken(failure)));
        }
        if rebuild || self.runner.is_none() {
            self.runner = None;
            match self.registry.rebuild(ID, &self.machine) {
                Ok(runner) => self.runner = Some(runner),
                Err(failure) => {
                    Checks::function_matches(&failure)?;
                    return self.event(Event::Driven(broken(failure)));
                }
            }
        }
        let results = unfed(&self.machine);
        let Some(runner) = &mut self.runner else { return Ok(()) };
        // A late answer may have told its end while this turn was on its way.
        let live = runner.is_live();
        let turn = runner.turn(results);
        if live && let Some(End::Broken(failure)) = &turn.end {
            // A script never panics, and never awaits anything foreign.
            return Err(Broken { rule: "journal", how: format!("{failure:?}") });
        }
        self.event(Event::Driven(turn))
    }

    fn fire(&mut self) -> Verdict {
        let next = self.timers.iter().min_by_key(|(_, at)| **at).map(|(key, at)| (*key, *at));
        let Some((key, at)) = next else { return Ok(()) };
        self.timers.remove(&key);
        self.now = self.now.max(at);
        self.event(Event::Timer(key))
    }

    fn answer_child(&mut self) -> Verdict {
        let busy: Vec<(OpNumber, u32)> =
            self.children.iter().filter(|(_, child)| busy(child)).map(|(key, _)| *key).collect();
        let Some(&(op, generation)) = self.random.pick(&busy) else { return Ok(()) };
        let bad = !self.healing && self.random.chance(self.faults, 100);
        let output = Blob::of(&self.random.next_u64()).expect("a number");
        let Some(child) = self.children.get_mut(&(op, generation)) else { return Ok(()) };
        if child.undo {
            child.undo = false;
            let failure = bad.then(|| Failure::new(FailureKind::Child, "the child cannot be undone"));
            return self.event(Event::ChildUndone { op, generation, failure });
        }
        child.started = false;
        let cancelled = child.cancelled;
        let result = if bad || (cancelled && self.random.chance(3, 4)) {
            Err(Failure::new(FailureKind::Child, "the child did not complete"))
        } else {
            Ok(output)
        };
        self.event(Event::ChildEnded { op, generation, result })
    }

    /// People, clients and the parent, at any moment.
    fn somebody(&mut self) -> Verdict {
        let ops = self.machine.ops().len() as u64;
        let op = self.random.below(ops.max(1)) as OpNumber;
        let value = Blob::of(&self.random.next_u64()).expect("a number");
        let event = match self.random.below(24) {
            0 if self.random.chance(1, 3) => Event::Cancel,
            1..=4 => Event::Pause,
            5..=7 => Event::Resume,
            8 | 9 => Event::Retry,
            10 => Event::Skip(op),
            11 => Event::Resolve(op, value),
            12..=14 if self.checks.is_paused() || self.random.chance(1, 4) => Event::Restart(op),
            15 if self.random.chance(1, 3) => Event::Abandon,
            16 => match (self.machine.status(), self.machine.parent()) {
                (Status::Completed, Some(_)) => Event::Compensate,
                _ => return Ok(()),
            },
            17 if self.checks.holds_place() => Event::Granted,
            18 | 19 => {
                // An answer comes a second time, soon or very late.
                let told = |event: &Event| matches!(event, Event::Attempted { .. } | Event::Driven(_));
                let early = self.random.chance(1, 2);
                let from = if early { 0 } else { self.log.len().saturating_sub(3) };
                let again: Vec<Event> =
                    self.log[from..].iter().map(|(_, event)| event.clone()).filter(told).collect();
                match self.random.pick(&again) {
                    Some(event) => event.clone(),
                    None => return Ok(()),
                }
            }
            _ => Event::Signal { name: ["go", "stop"][op as usize % 2].to_owned(), value },
        };
        self.event(event)
    }

    /// All faults off; people help whatever waits for them, until the saga has ended.
    pub(crate) fn heal(&mut self) -> Verdict {
        self.healing = true;
        for _ in 0..2_000 {
            if self.step()? {
                continue;
            }
            if self.machine.status().is_ended() {
                if self.helped == 0 && self.random.chance(1, 4) {
                    // Also after its end a person may want a part of it done again.
                    self.helped += 1;
                    let ops = self.machine.ops().len() as u64;
                    let from = self.random.below(ops.max(1)) as OpNumber;
                    self.event(Event::Restart(from))?;
                    continue;
                }
                if self.machine.status() == Status::Completed
                    && self.machine.parent().is_some()
                    && self.random.chance(1, 2)
                    && self.helped == 0
                {
                    self.helped += 1;
                    self.event(Event::Compensate)?;
                    continue;
                }
                break;
            }
            self.help()?;
        }
        self.checks.every_saga_ends(&self.machine)
    }

    fn help(&mut self) -> Verdict {
        self.helped += 1;
        let waits =
            self.machine.ops().iter().find(|op| {
                matches!(op.what, What::Signal { .. }) && matches!(op.state, OpState::Waiting { .. })
            });
        let idle = self.children.values_mut().find(|child| child.idle && child.started);
        let failed = self.machine.ops().iter().find(|op| op.undo == UndoState::Failed);
        let event = match self.machine.status() {
            Status::Paused => Event::Resume,
            Status::Stuck => match (failed, self.random.below(3)) {
                _ if self.helped > 20 => Event::Abandon,
                (Some(op), 0) => Event::Skip(op.number),
                (Some(op), 1) => Event::Resolve(op.number, Blob::of(&9u64).expect("a number")),
                _ => Event::Retry,
            },
            _ => match (waits, idle) {
                (Some(op), _) => {
                    let value = Blob::of(&7u64).expect("a number");
                    Event::Signal { name: op.name.clone(), value }
                }
                (None, Some(child)) => {
                    // A child that did nothing so far goes on by itself.
                    child.idle = false;
                    return if self.machine.status() == Status::Compensating {
                        self.checks.every_saga_ends(&self.machine)
                    } else {
                        Ok(())
                    };
                }
                (None, None) => return self.checks.every_saga_ends(&self.machine),
            },
        };
        self.event(event)
    }
}

/// It will say something by itself.
fn busy(child: &Child) -> bool {
    child.undo || (child.started && (!child.idle || child.cancelled))
}

/// What the function has not been told.
pub(crate) fn unfed(machine: &Machine) -> Vec<(OpNumber, Resolution)> {
    machine.unfed().iter().filter_map(|op| Some((op.number, resolution(machine, op.number)?))).collect()
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Start(_) => "start",
        Event::Attempted { direction: Direction::Run, .. } => "attempted",
        Event::Attempted { .. } => "undo attempted",
        Event::Driven(_) => "driven",
        Event::Timer(_) => "timer",
        Event::Signal { .. } => "signal",
        Event::Granted => "granted",
        Event::ChildEnded { .. } => "child ended",
        Event::ChildUndone { .. } => "child undone",
        Event::Cancel => "cancel",
        Event::Compensate => "compensate",
        Event::Pause => "pause",
        Event::Resume => "resume",
        Event::Retry => "retry",
        Event::Skip(_) => "skip",
        Event::Resolve(..) => "resolve",
        Event::Restart(_) => "restart",
        Event::Abandon => "abandon",
    }
}
