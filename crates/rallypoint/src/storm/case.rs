//! One case of a storm: what goes wrong, where, and when.
//!
//! Decides what *may* be done to a saga, from what is seen of its steps. Never what follows from it.
//!
//! Invariant: a case is a value. The same case of the same seed is the same run.

use rallypoint_saga::event::Direction;
use rallypoint_saga::op::{OpNumber, Policy};
use std::fmt;

/// An operation of one of the sagas: the same in every run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) saga: String,
    pub(super) op: OpNumber,
    pub(super) name: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.name, place(&self.saga, self.op))
    }
}

/// Where an operation stands, in words: children are told apart by their ids.
pub(super) fn place(saga: &str, op: OpNumber) -> String {
    match saga {
        super::ID => format!("{op}"),
        _ => format!("{op} of child {saga}"),
    }
}

/// What becomes of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deed {
    /// What its code does.
    Acts,
    /// Nothing is done: the business does not allow it.
    Refused,
    /// Nothing is done: it may pass.
    Fails,
    /// Nothing is done: the other side refuses us as such.
    Misconfigured,
    /// Nothing is done, and no answer comes in time.
    Silent,
    /// It acts; no answer comes in time.
    Lost,
    /// It acts, and then it panics.
    Panics,
    /// It acts, and answers that there is a bug.
    Fatal,
    /// It acts, and acts again under the same key.
    Twice,
    /// It acts under the same key twice, side by side: tried again while the first is under way.
    AtOnce,
    /// It breaks off where it awaits for the n-th time; no answer comes in time.
    CutOff(u32),
}

impl Deed {
    /// It may leave something behind without a good answer: an atomic step never does.
    fn leaves_a_trace(self) -> bool {
        matches!(self, Self::Lost | Self::Panics | Self::Fatal | Self::CutOff(_))
    }

    pub(super) fn words(self) -> String {
        match self {
            Self::Acts => "acts".into(),
            Self::Refused => "is refused by the business".into(),
            Self::Fails => "fails without having acted".into(),
            Self::Misconfigured => "is turned away as misconfigured".into(),
            Self::Silent => "does not act and gives no answer".into(),
            Self::Lost => "acts and its answer is lost".into(),
            Self::Panics => "acts and then panics".into(),
            Self::Fatal => "acts and then reports a bug".into(),
            Self::Twice => "is executed twice under one key".into(),
            Self::AtOnce => "is executed twice at once under one key".into(),
            Self::CutOff(1) => "breaks off where it first awaits".into(),
            Self::CutOff(polls) => format!("breaks off where it awaits for the {polls}. time"),
        }
    }
}

/// Attempts from `first` on, `times` of them, come to this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) target: Target,
    pub(super) direction: Direction,
    pub(super) deed: Deed,
    pub(super) first: u32,
    pub(super) times: u32,
}

/// Every attempt, until somebody helps.
pub(super) const ALWAYS: u32 = u32::MAX;

impl Fault {
    pub(super) fn covers(&self, saga: &str, op: OpNumber, direction: Direction, attempt: u32) -> bool {
        self.target.op == op
            && self.direction == direction
            && attempt >= self.first
            && attempt - self.first < self.times
            && self.target.saga == saga
    }

    fn words(&self) -> String {
        let undo = if self.direction == Direction::Undo { "the undo of " } else { "" };
        let when = match (self.first, self.times) {
            (1, 1) => "at first".to_owned(),
            (1, ALWAYS) => "each time".to_owned(),
            (first, ALWAYS) => format!("from attempt {first} on"),
            (first, 1) => format!("at attempt {first}"),
            (first, times) => format!("at attempts {first} to {}", first + times - 1),
        };
        format!("{undo}{} {} {when}", self.target, self.deed.words())
    }
}

/// When the original request of a step arrives late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// While its undo is under way.
    DuringUndo,
    /// As soon as its undo is done.
    AfterUndo,
    /// When the saga has ended.
    AfterEnd,
}

/// A crash: everything but the journals is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crash {
    /// After so many records, of all sagas.
    pub(super) after: u64,
    /// What was being attempted acts all the same; otherwise it goes no further than it was.
    pub(super) acted: bool,
}

/// When the signals come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Signals {
    /// When they are waited for.
    #[default]
    WhenAwaited,
    /// At the start of the saga.
    Early,
    /// This one never.
    Without(String),
}

/// Everything that goes wrong in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) faults: Vec<Fault>,
    pub(super) late: Vec<(Target, Arrival)>,
    pub(super) crashes: Vec<Crash>,
    /// A person cancels after so many records.
    pub(super) cancel: Option<u64>,
    pub(super) signals: Signals,
    /// The function is built anew for each turn.
    pub(super) forgetful: bool,
    /// Of this seed: the order and time of what runs side by side.
    pub(super) weather: Option<u64>,
}

impl Case {
    /// This and one more fault.
    pub(super) fn with(&self, target: &Target, direction: Direction, deed: Deed, times: u32) -> Self {
        self.with_from(target, direction, deed, 1, times)
    }

    fn with_from(&self, target: &Target, direction: Direction, deed: Deed, first: u32, times: u32) -> Self {
        let mut case = self.clone();
        case.faults.push(Fault { target: target.clone(), direction, deed, first, times });
        case
    }

    pub(super) fn with_late(&self, target: &Target, arrival: Arrival) -> Self {
        let mut case = self.clone();
        case.late.push((target.clone(), arrival));
        case
    }

    pub(super) fn with_crashes(&self, crashes: &[Crash]) -> Self {
        Self { crashes: crashes.to_vec(), ..self.clone() }
    }

    pub(super) fn with_cancel(&self, after: u64) -> Self {
        Self { cancel: Some(after), ..self.clone() }
    }

    /// All cases with one thing less.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut smaller = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut case = self.clone();
            change(&mut case);
            if case != *self {
                smaller.push(case);
            }
        };
        for at in 0..self.faults.len() {
            add(&|case| drop(case.faults.remove(at)));
        }
        for at in 0..self.late.len() {
            add(&|case| drop(case.late.remove(at)));
        }
        for at in 0..self.crashes.len() {
            add(&|case| {
                let _ = case.crashes.remove(at);
            });
        }
        add(&|case| case.cancel = None);
        add(&|case| case.forgetful = false);
        add(&|case| case.weather = None);
        smaller
    }

    /// A person has to help, because the case says so: an undo that always fails, or a bug.
    pub(super) fn needs_a_person(&self) -> bool {
        self.faults.iter().any(|fault| {
            fault.deed == Deed::Fatal
                || (fault.direction == Direction::Undo && fault.times == ALWAYS && fault.deed != Deed::Acts)
        })
    }

    /// The deed of the first fault of a step itself, if it always comes to that.
    pub(super) fn always(&self, target: &Target) -> Option<Deed> {
        let found = |fault: &&Fault| {
            fault.target == *target && fault.direction == Direction::Run && fault.times == ALWAYS
        };
        self.faults.iter().find(found).map(|fault| fault.deed)
    }

    /// What goes wrong, a line each.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.faults.iter().map(Fault::words).collect();
        for (target, arrival) in &self.late {
            let when = match arrival {
                Arrival::DuringUndo => "while its undo is under way",
                Arrival::AfterUndo => "after its undo",
                Arrival::AfterEnd => "after the end of the saga",
            };
            words.push(format!("the original request of {target} arrives {when}"));
        }
        match &self.signals {
            Signals::WhenAwaited => {}
            Signals::Early => words.push("the signals come before they are waited for".into()),
            Signals::Without(name) => words.push(format!("the signal {name:?} never comes")),
        }
        if let Some(after) = self.cancel {
            words.push(format!("a person cancels after record {after}"));
        }
        for crash in &self.crashes {
            let acted = if crash.acted { "what was under way acts" } else { "what was under way stops" };
            words.push(format!("a crash after record {} ({acted})", crash.after));
        }
        if self.forgetful {
            words.push("the function is built anew for each turn".into());
        }
        if self.weather.is_some() {
            words.push("requests take their time".into());
        }
        if words.is_empty() {
            words.push("nothing goes wrong".into());
        }
        words
    }

    /// What kind of case it is, in a word of the report.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self { weather: Some(_), .. } => "random",
            Self { crashes, .. } if crashes.len() > 1 => "crash in a recovery",
            Self { crashes, .. } if !crashes.is_empty() => "crash",
            Self { cancel: Some(_), .. } => "cancel",
            Self { late, .. } if !late.is_empty() => "late original",
            Self { faults, .. } => match faults.last() {
                Some(fault) if fault.direction == Direction::Undo => "undo fails",
                Some(fault) if matches!(fault.deed, Deed::Twice | Deed::AtOnce) => "executed twice",
                Some(_) => "step fails",
                None if self.signals != Signals::WhenAwaited => "signal",
                None if self.forgetful => "built anew",
                None => "calm",
            },
        }
    }
}

/// A step or closure that was seen to be attempted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) target: Target,
    pub(super) policy: Policy,
    /// A closure of the function: it has no value, no undo and no late original.
    pub(super) closure: bool,
    /// How often its code was polled at most.
    pub(super) polls: u32,
}

/// More places to break off at are left out.
const CUTS: u32 = 3;

fn cuts(polls: u32) -> impl Iterator<Item = Deed> {
    (1..polls.min(CUTS + 1)).map(Deed::CutOff)
}

/// Everything that may happen to a step, on top of a case.
pub(super) fn of_step(base: &Case, seen: &Seen) -> Vec<Case> {
    let target = &seen.target;
    let run = |deed, times| base.with(target, Direction::Run, deed, times);
    let mut cases = vec![
        run(Deed::Fails, 1),
        run(Deed::Refused, ALWAYS),
        run(Deed::Fails, ALWAYS),
        run(Deed::Lost, 1),
        run(Deed::Lost, ALWAYS),
        run(Deed::Lost, 1).with_from(target, Direction::Run, Deed::Fails, 2, ALWAYS),
        run(Deed::Silent, 1),
        run(Deed::Silent, ALWAYS),
        run(Deed::Twice, 1),
        run(Deed::AtOnce, 1),
        run(Deed::Panics, 1),
        run(Deed::Misconfigured, 1),
        run(Deed::Fatal, 1),
    ];
    cases.extend(cuts(seen.polls).map(|deed| run(deed, 1)));
    cases.extend(cuts(seen.polls).map(|deed| run(deed, ALWAYS)));
    if !seen.closure {
        cases.push(base.with_late(target, Arrival::AfterEnd));
    }
    if seen.policy.atomic {
        cases.retain(|case| !case.faults.iter().any(|fault| fault.deed.leaves_a_trace()));
    }
    cases
}

/// Everything that may happen to an undo, on top of a case in which it takes place.
pub(super) fn of_undo(base: &Case, target: &Target, polls: u32) -> Vec<Case> {
    let undo = |deed, times| base.with(target, Direction::Undo, deed, times);
    let mut cases = vec![
        base.with_late(target, Arrival::AfterUndo),
        base.with_late(target, Arrival::AfterEnd),
        base.with_late(target, Arrival::DuringUndo),
        undo(Deed::Fails, 1),
        undo(Deed::Lost, 1),
        undo(Deed::Silent, 1),
        undo(Deed::Twice, 1),
        undo(Deed::AtOnce, 1),
        undo(Deed::Panics, 1),
        undo(Deed::Fails, ALWAYS),
        undo(Deed::Lost, 1).with_late(target, Arrival::AfterUndo),
    ];
    cases.extend(cuts(polls).map(|deed| undo(deed, 1)));
    cases
}
