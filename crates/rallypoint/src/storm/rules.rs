//! What must hold of a saga in every case, judged from outside.
//!
//! Decides whether a rule is broken. Looks at a machine only through its public face, and keeps its
//! own books of what acted: a machine that forgets something must not be its own witness.
//!
//! Invariant: the books outlive every crash of the sagas they are about.

use super::attempt::Facts;
use super::case::place;
use super::report::StormRule;
use rallypoint_saga::event::{Attempt, Direction, Event};
use rallypoint_saga::machine::Machine;
use rallypoint_saga::op::{FailureKind, OpNumber, OpState, UndoState, What};
use rallypoint_saga::status::Status;
use rallypoint_saga::value::Blob;
use std::collections::{BTreeMap, BTreeSet};

/// A rule, and how it was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) rule: StormRule,
    pub(super) why: String,
}

pub(super) type Verdict = Result<(), Broken>;

pub(super) fn broken(rule: StormRule, why: impl Into<String>) -> Verdict {
    Err(Broken { rule, why: why.into() })
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Acted {
    #[default]
    No,
    May,
    Yes,
}

/// One operation of one generation.
#[derive(Debug, Default)]
struct Entry {
    name: String,
    /// In records of its saga.
    scheduled: usize,
    ended: Option<usize>,
    acted: Acted,
    pivot: bool,
    atomic: bool,
    undone: bool,
    /// Undone, or there is nothing to undo it with.
    settled: bool,
    /// Its code has said that it acted; and that it is undone.
    said_done: [bool; 2],
}

impl Entry {
    fn must_be_undone(&self) -> bool {
        match self.acted {
            Acted::Yes => true,
            Acted::May => !self.atomic,
            Acted::No => false,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Cause {
    saga: String,
    op: OpNumber,
    generation: u32,
    direction: Direction,
    value: Option<Blob>,
}

#[derive(Debug, Default)]
struct Of {
    entries: BTreeMap<(OpNumber, u32), Entry>,
    under_way: BTreeSet<OpNumber>,
}

/// The books of one run.
#[derive(Debug, Default)]
pub(super) struct Books {
    keys: BTreeMap<String, Cause>,
    sagas: BTreeMap<String, Of>,
    /// Steps that should have been undone and define no undo.
    pub(super) without_undo: BTreeSet<String>,
}

impl Books {
    /// An attempt begins under this key.
    pub(super) fn begins(
        &mut self,
        saga: &str,
        op: OpNumber,
        key: &str,
        direction: Direction,
        machine: &Machine,
    ) -> Verdict {
        let Some(found) = machine.op(op) else { return Ok(()) };
        let value = if let What::Step { value, .. } = &found.what { Some(value.clone()) } else { None };
        let cause = Cause { saga: saga.to_owned(), op, generation: found.generation, direction, value };
        if direction == Direction::Run {
            self.sagas.entry(saga.to_owned()).or_default().under_way.insert(op);
        }
        match self.keys.get(key) {
            Some(known) if *known != cause => broken(
                StormRule::Key,
                format!(
                    "{key:?} is used for operation {} and for {}",
                    place(&known.saga, known.op),
                    place(saga, op)
                ),
            ),
            Some(_) => Ok(()),
            None => {
                self.keys.insert(key.to_owned(), cause);
                Ok(())
            }
        }
    }

    /// The code of an attempt has ended.
    pub(super) fn executed(
        &mut self,
        saga: &str,
        (op, generation): (OpNumber, u32),
        direction: Direction,
        facts: &Facts,
    ) -> Verdict {
        let Some(of) = self.sagas.get_mut(saga) else { return Ok(()) };
        let Some(entry) = of.entries.get_mut(&(op, generation)) else { return Ok(()) };
        let said = &mut entry.said_done[usize::from(direction == Direction::Undo)];
        for answer in facts.answers.iter().flatten() {
            match answer {
                Attempt::Done(_) => *said = true,
                Attempt::Failed { failure, .. }
                    if *said && matches!(failure.kind, FailureKind::Business | FailureKind::Fatal) =>
                {
                    let undo = if direction == Direction::Undo { "the undo of " } else { "" };
                    let text = format!(
                        "{undo}{:?} ({}) said that it acted, and refuses the same request under the same key: {}",
                        entry.name,
                        place(saga, op),
                        failure.message
                    );
                    return broken(StormRule::Repeatable, text);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// It acted, or may have, so that there is something to undo, and its request may come late.
    pub(super) fn may_have_acted(&self, saga: &str, operation: (OpNumber, u32)) -> bool {
        let entry = self.sagas.get(saga).and_then(|of| of.entries.get(&operation));
        entry.is_some_and(Entry::must_be_undone)
    }

    /// A record of a saga: its `length` is that of the journal with it.
    pub(super) fn record(&mut self, saga: &str, length: usize, event: &Event, machine: &Machine) -> Verdict {
        let of = self.sagas.entry(saga.to_owned()).or_default();
        match event {
            Event::Attempted { op, generation, direction, earlier, attempt, .. } => {
                if *direction == Direction::Run {
                    of.under_way.remove(op);
                }
                if let Some(entry) = of.entries.get_mut(&(*op, *generation)) {
                    let name = entry.attempted(*direction, *earlier, attempt);
                    self.without_undo.extend(name);
                }
            }
            Event::ChildEnded { op, generation, result: Ok(_) } => {
                if let Some(entry) = of.entries.get_mut(&(*op, *generation)) {
                    entry.acted = Acted::Yes;
                }
            }
            Event::ChildUndone { op, generation, failure: None } => {
                if let Some(entry) = of.entries.get_mut(&(*op, *generation)) {
                    (entry.undone, entry.settled) = (true, true);
                }
            }
            _ => {}
        }
        for op in machine.ops() {
            let entry = of.entries.entry((op.number, op.generation)).or_insert_with(|| {
                let policy = op.policy();
                Entry {
                    name: op.name.clone(),
                    scheduled: length,
                    pivot: policy.pivot,
                    atomic: policy.atomic,
                    settled: matches!(op.what, What::Run { .. }),
                    ..Entry::default()
                }
            });
            if entry.ended.is_none() && matches!(op.state, OpState::Done | OpState::Failed) {
                entry.ended = Some(length);
            }
        }
        if machine.status() == Status::Compensated {
            return of.what_acted_is_undone(saga);
        }
        Ok(())
    }

    /// The machine asks for an undo.
    pub(super) fn undo_begins(&self, saga: &str, number: OpNumber, machine: &Machine) -> Verdict {
        let Some(of) = self.sagas.get(saga) else { return Ok(()) };
        let entry = |op: OpNumber| Some((op, of.entries.get(&(op, machine.op(op)?.generation))?));
        let Some((_, this)) = entry(number) else { return Ok(()) };
        let name = format!("{:?} ({})", this.name, place(saga, number));
        if let Some((run, other)) = of.under_way.first().and_then(|run| entry(*run)) {
            let text = format!("{name} is undone while {:?} ({run}) is being attempted", other.name);
            return broken(StormRule::Order, text);
        }
        let pivot = of.entries.values().find(|entry| entry.pivot && entry.acted != Acted::No);
        if let Some(pivot) = pivot {
            let text = format!("{name} is undone although the pivot {:?} acted or may have", pivot.name);
            return broken(StormRule::Pivot, text);
        }
        let open =
            |state: UndoState, entry: &Entry| state.is_open() && !entry.undone && entry.must_be_undone();
        for op in machine.ops().iter().filter(|op| op.number != number) {
            let Some((_, other)) = entry(op.number).filter(|(_, other)| open(op.undo, other)) else {
                continue;
            };
            if other.acted == Acted::May && this.acted == Acted::Yes {
                let text = format!("{name} is undone before {:?}, whose outcome is unknown", other.name);
                return broken(StormRule::Order, text);
            }
            let built_on = this.ended.is_some_and(|ended| other.scheduled >= ended);
            if other.acted == this.acted && built_on {
                let text = format!("{name} is undone before {:?}, which may stand on it", other.name);
                return broken(StormRule::Order, text);
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Takes in how an attempt ended; its name, if it turns out that it has no undo.
    fn attempted(&mut self, direction: Direction, earlier: bool, attempt: &Attempt) -> Option<String> {
        match (direction, attempt) {
            (Direction::Run, Attempt::Done(_)) => self.acted = Acted::Yes,
            (Direction::Run, Attempt::Failed { may_have_acted, .. }) => {
                if (*may_have_acted || earlier) && self.acted == Acted::No {
                    self.acted = Acted::May;
                }
            }
            (Direction::Run, Attempt::NotDefined) | (Direction::Undo, Attempt::Failed { .. }) => {}
            (Direction::Undo, Attempt::Done(_)) => (self.undone, self.settled) = (true, true),
            (Direction::Undo, Attempt::NotDefined) => {
                self.settled = true;
                return Some(self.name.clone());
            }
        }
        None
    }
}

impl Of {
    fn what_acted_is_undone(&self, saga: &str) -> Verdict {
        let left = self.entries.iter().find(|(_, entry)| entry.must_be_undone() && !entry.settled);
        let Some(((op, _), entry)) = left else { return Ok(()) };
        let acted = if entry.acted == Acted::Yes { "acted" } else { "may have acted" };
        broken(
            StormRule::Undone,
            format!("{:?} ({}) {acted} and is not undone", entry.name, place(saga, *op)),
        )
    }
}

#[cfg(test)]
mod tests {
    //! Each rule about what the machine does is shown to fail: the books are told something else than
    //! the machine was, or are asked about another undo than the machine asked for.

    use super::super::ID;
    use super::*;
    use rallypoint_base::random::Random;
    use rallypoint_base::time::Time;
    use rallypoint_saga::event::{End, Start, Turn};
    use rallypoint_saga::op::{Failure, NewOp, Policy};

    struct Case {
        books: Books,
        machine: Machine,
        length: usize,
    }

    fn policy(pivot: bool, attempts: u32) -> Policy {
        Policy { pivot, attempts, ..Policy::default() }
    }

    fn asks(number: OpNumber, policy: Policy) -> NewOp {
        let value = Blob::of(&number).unwrap();
        NewOp { number, name: format!("step {number}"), what: What::Step { value, policy: Some(policy) } }
    }

    fn failed(kind: FailureKind, may_have_acted: bool) -> Attempt {
        Attempt::Failed { failure: Failure::new(kind, "no"), may_have_acted, retry_after: None }
    }

    impl Case {
        /// A saga that has asked for these.
        fn of(ops: Vec<NewOp>) -> Self {
            let mut this = Self { books: Books::default(), machine: Machine::default(), length: 0 };
            let turn = Some(Turn { ops, ..Turn::default() });
            this.event(Event::Start(Box::new(Start { turn, ..Start::default() }))).unwrap();
            this
        }

        fn event(&mut self, event: Event) -> Verdict {
            self.both(event.clone(), &event)
        }

        /// The machine is told one thing, the books another.
        fn both(&mut self, event: Event, for_books: &Event) -> Verdict {
            let random = &mut Random::new(1);
            self.machine.handle(Time(1), random, event, &mut Vec::new()).unwrap();
            self.length += 1;
            self.books.record(ID, self.length, for_books, &self.machine)
        }

        fn attempted(op: OpNumber, attempt: Attempt, turn: Option<Turn>) -> Event {
            let direction = Direction::Run;
            Event::Attempted { op, generation: 0, direction, earlier: false, attempt, turn }
        }

        fn undo(&self, op: OpNumber) -> Verdict {
            self.books.undo_begins(ID, op, &self.machine)
        }
    }

    /// The function is told of `op`, and asks for these or fails.
    fn turn(index: u32, op: OpNumber, ops: Vec<NewOp>) -> Option<Turn> {
        let failure = Failure::new(FailureKind::Business, "no");
        let end = ops.is_empty().then_some(End::Failed(failure));
        Some(Turn { index, fed: vec![op], ops, end, ..Turn::default() })
    }

    fn done() -> Attempt {
        Attempt::Done(Blob::default())
    }

    /// Step 0 acted, then step 1 ended so, and the function failed.
    fn after(policy: Policy, attempt: Attempt) -> Case {
        let mut case = Case::of(vec![asks(0, Policy::default())]);
        case.event(Case::attempted(0, done(), turn(1, 0, vec![asks(1, policy)]))).unwrap();
        case.event(Case::attempted(1, attempt, None)).unwrap();
        case.event(Event::Driven(turn(2, 1, Vec::new()).unwrap())).unwrap();
        case
    }

    fn rule(verdict: Verdict) -> Option<StormRule> {
        verdict.err().map(|broken| broken.rule)
    }

    #[test]
    fn an_undo_out_of_order_is_found() {
        let case = after(Policy::default(), done());
        assert_eq!(rule(case.undo(1)), None);
        assert_eq!(rule(case.undo(0)), Some(StormRule::Order));
        let case = after(policy(false, 1), failed(FailureKind::TimedOut, true));
        assert_eq!(rule(case.undo(1)), None);
        let broken = case.undo(0).unwrap_err();
        assert!(broken.rule == StormRule::Order && broken.why.contains("unknown"), "{broken:?}");
    }

    #[test]
    fn an_undo_beside_an_attempt_is_found() {
        let mut case = Case::of(vec![asks(0, Policy::default()), asks(1, Policy::default())]);
        case.books.begins(ID, 1, "key 1", Direction::Run, &case.machine).unwrap();
        case.event(Case::attempted(0, done(), turn(1, 0, Vec::new()))).unwrap();
        assert_eq!(rule(case.undo(0)), Some(StormRule::Order));
        case.event(Case::attempted(1, failed(FailureKind::Business, false), None)).unwrap();
        assert_eq!(rule(case.undo(0)), None);
    }

    #[test]
    fn an_undo_after_a_pivot_is_found() {
        let case = after(policy(true, 5), done());
        assert_eq!(rule(case.undo(0)), Some(StormRule::Pivot));
    }

    #[test]
    fn what_is_left_when_it_is_compensated_is_found() {
        let mut case = Case::of(vec![asks(0, Policy::default())]);
        let refused = Case::attempted(0, failed(FailureKind::Business, false), turn(1, 0, Vec::new()));
        assert_eq!(rule(case.both(refused.clone(), &refused)), None);
        assert_eq!(case.machine.status(), Status::Compensated);
        let mut case = Case::of(vec![asks(0, Policy::default())]);
        let acted = Case::attempted(0, done(), None);
        assert_eq!(rule(case.both(refused, &acted)), Some(StormRule::Undone));
    }

    #[test]
    fn a_key_of_two_causes_is_found() {
        let mut case = Case::of(vec![asks(0, Policy::default()), asks(1, Policy::default())]);
        let mut begins = |op, key, direction| case.books.begins(ID, op, key, direction, &case.machine);
        assert_eq!(rule(begins(0, "a", Direction::Run)), None);
        assert_eq!(rule(begins(0, "a", Direction::Run)), None);
        assert_eq!(rule(begins(0, "a", Direction::Undo)), Some(StormRule::Key));
        assert_eq!(rule(begins(1, "a", Direction::Run)), Some(StormRule::Key));
    }
}
