//! What happened in one run, in the order in which it happened, for people.
//!
//! Decides nothing. Words are made only when somebody reads them: nearly every run passes unread.

use super::case::{Deed, place};
use super::report::StormLine;
use rallypoint_base::time::Time;
use rallypoint_saga::event::{Attempt, Direction, End, Event, TimerKey, Turn};
use rallypoint_saga::machine::Machine;
use rallypoint_saga::op::{NewOp, OpNumber, What};
use rallypoint_saga::status::Status;
use std::collections::BTreeMap;
use std::time::Duration;

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// An attempt begins.
    Began { saga: String, op: OpNumber, direction: Direction, attempt: u32, deed: Deed, again: bool },
    /// A record of a saga's journal.
    Record { number: u64, saga: String, event: Event, status: Status },
    /// A person asked for something that is not allowed now.
    Refused { saga: String, event: Event, why: String },
    /// Everything but the journals is forgotten.
    Crash { acted: bool, under_way: usize },
    /// The original request of a step arrives late.
    Late { saga: String, op: OpNumber },
    /// What came of that.
    LateAnswer { saga: String, op: OpNumber, answer: Option<Attempt> },
}

/// The entries of a run, with their times.
#[derive(Debug, Default)]
pub(super) struct Timeline(Vec<(Time, Entry)>);

/// Lines at the beginning and at the end of a long timeline.
const SHOWN: usize = 80;

impl Timeline {
    pub(super) fn push(&mut self, at: Time, entry: Entry) {
        self.0.push((at, entry));
    }

    /// The lines that people read; `names` knows what the operations are called.
    pub(super) fn lines(&self, began: Time, machines: &BTreeMap<String, Machine>) -> Vec<StormLine> {
        let mut lines = Vec::new();
        for (index, (at, entry)) in self.0.iter().enumerate() {
            let hidden = index >= SHOWN && index + SHOWN < self.0.len();
            if hidden && index > SHOWN {
                continue;
            }
            let text = match hidden {
                true => format!("... {} lines are left out ...", self.0.len() - 2 * SHOWN),
                false => words(entry, machines),
            };
            let millis = u64::try_from(at.since(began).as_millis()).unwrap_or(u64::MAX);
            lines.push(StormLine { number: index as u64 + 1, millis, text });
        }
        lines
    }
}

fn called(saga: &str, op: OpNumber, machines: &BTreeMap<String, Machine>) -> String {
    let found = machines.get(saga).and_then(|machine| machine.op(op));
    match found {
        Some(found) => format!("{:?} ({})", found.name, place(saga, op)),
        None => format!("operation {}", place(saga, op)),
    }
}

fn words(entry: &Entry, machines: &BTreeMap<String, Machine>) -> String {
    let name = |saga: &str, op| called(saga, op, machines);
    match entry {
        Entry::Began { saga, op, direction, attempt, deed, again } => {
            let undo = if *direction == Direction::Undo { "the undo of " } else { "" };
            let again = if *again { ", perhaps not for the first time" } else { "" };
            let deed = match deed {
                Deed::Acts => String::new(),
                deed => format!("; the storm: it {}", deed.words()),
            };
            format!("         attempt {attempt} of {undo}{} begins{again}{deed}", name(saga, *op))
        }
        Entry::Record { number, saga, event, status } => {
            let of = if saga == super::ID { String::new() } else { format!(", child {saga}") };
            format!("record {number:<2}{of} {}; {status}", happened(saga, event, machines))
        }
        Entry::Refused { saga, event, why } => {
            format!("         not now: {}: {why}", happened(saga, event, machines))
        }
        Entry::Crash { acted, under_way } => {
            let acted = match (acted, under_way) {
                (_, 0) => "nothing was under way",
                (true, _) => "what was under way acts, unheard",
                (false, _) => "what was under way goes no further",
            };
            format!("CRASH    everything but the journals is forgotten; {acted}")
        }
        Entry::Late { saga, op } => {
            format!("LATE     the original request of {} arrives", name(saga, *op))
        }
        Entry::LateAnswer { saga, op, answer } => {
            let answer = match answer {
                Some(Attempt::Done(_)) => "accepted".to_owned(),
                Some(Attempt::Failed { failure, .. }) => format!("not accepted: {}", failure.message),
                Some(Attempt::NotDefined) | None => "not answered".to_owned(),
            };
            format!("         the late request of {} is {answer}", name(saga, *op))
        }
    }
}

fn happened(saga: &str, event: &Event, machines: &BTreeMap<String, Machine>) -> String {
    let name = |op: &OpNumber| called(saga, *op, machines);
    match event {
        Event::Start(start) => {
            let turn = start.turn.as_ref().map(|turn| said(turn, &name)).unwrap_or_default();
            format!("the saga begins{turn}")
        }
        Event::Attempted { op, direction, attempt, turn, .. } => {
            let turn = turn.as_ref().map(|turn| said(turn, &name)).unwrap_or_default();
            format!("{}{turn}", came_to(&name(op), *direction, attempt))
        }
        Event::Driven(turn) => {
            let told: Vec<String> = turn.fed.iter().map(name).collect();
            let told = match told.is_empty() {
                true => "the function is asked".to_owned(),
                false => format!("the function is told of {}", told.join(", ")),
            };
            format!("{told}{}", said(turn, &name))
        }
        Event::Timer(TimerKey::Wait(op)) => format!("the wait {} is over", name(op)),
        Event::Timer(TimerKey::Retry(op)) => format!("it is time to try {} again", name(op)),
        Event::Timer(TimerKey::UndoRetry(op)) => format!("it is time to try the undo of {} again", name(op)),
        Event::Timer(TimerKey::Deadline) => "the deadline has come".into(),
        Event::Signal { name, .. } => format!("the signal {name:?} comes"),
        Event::Granted => "the limit has a place".into(),
        Event::ChildEnded { op, result: Ok(_), .. } => format!("the child {} has completed", name(op)),
        Event::ChildEnded { op, result: Err(failure), .. } => {
            format!("the child {} has failed: {}", name(op), failure.message)
        }
        Event::ChildUndone { op, failure: None, .. } => format!("the child {} is undone", name(op)),
        Event::ChildUndone { op, failure: Some(failure), .. } => {
            format!("the child {} cannot be undone: {}", name(op), failure.message)
        }
        Event::Cancel => "a person cancels".into(),
        Event::Compensate => "the parent asks for the undo".into(),
        Event::Pause => "a person pauses".into(),
        Event::Resume => "a person lets it go on".into(),
        Event::Retry => "a person asks for another try".into(),
        Event::Skip(op) => format!("a person leaves {} as it is", name(op)),
        Event::Resolve(op, _) => format!("a person has done {} by hand", name(op)),
        Event::Restart(op) => format!("a person restarts from {}", name(op)),
        Event::Abandon => "a person gives it up".into(),
    }
}

fn came_to(name: &str, direction: Direction, attempt: &Attempt) -> String {
    match (direction, attempt) {
        (Direction::Run, Attempt::Done(_)) => format!("{name} acted"),
        (Direction::Undo, Attempt::Done(_)) => format!("{name} is undone"),
        (_, Attempt::NotDefined) => format!("{name} has no undo"),
        (direction, Attempt::Failed { failure, may_have_acted, retry_after }) => {
            let undo = if direction == Direction::Undo { "the undo of " } else { "" };
            let acted = if *may_have_acted { "may have acted" } else { "did not act" };
            let wait = retry_after.map(|wait: Duration| format!(", again after {wait:?}"));
            format!("{undo}{name} {acted}: {}{}", failure.message, wait.unwrap_or_default())
        }
    }
}

/// What the function said in a turn.
fn said(turn: &Turn, name: &dyn Fn(&OpNumber) -> String) -> String {
    let mut text = String::new();
    let asked: Vec<String> = turn.ops.iter().map(asked).collect();
    if !asked.is_empty() {
        text.push_str(&format!("; asks for {}", asked.join(", ")));
    }
    let forgotten: Vec<String> = turn.forgotten.iter().map(name).collect();
    if !forgotten.is_empty() {
        text.push_str(&format!("; no longer waits for {}", forgotten.join(", ")));
    }
    match &turn.end {
        None => {}
        Some(End::Completed(_)) => text.push_str("; the function ends well"),
        Some(End::Failed(failure)) => text.push_str(&format!("; the function fails: {}", failure.message)),
        Some(End::Broken(failure)) => {
            text.push_str(&format!("; the function cannot go on: {}", failure.message));
        }
    }
    text
}

fn asked(op: &NewOp) -> String {
    let pivot = match &op.what {
        What::Step { policy: Some(policy), .. } | What::Run { policy: Some(policy) } if policy.pivot => {
            "the pivot "
        }
        What::Signal { .. } => "the signal ",
        What::Child { .. } => "the child ",
        _ => "",
    };
    format!("{pivot}{:?} ({})", op.name, op.number)
}
