//! What must hold of every saga, judged from outside: each rule is one function.
//!
//! The checks keep their own books (a clock of events, what acted, who holds a place) and look at the
//! machine only through its public face.

use rallypoint_saga::event::{Attempt, Command, Direction, Event, TimerKey};
use rallypoint_saga::machine::{Machine, Refusal};
use rallypoint_saga::op::{FailureKind, OpNumber, OpState, UndoState, What};
use rallypoint_saga::status::Status;
use std::collections::{BTreeMap, BTreeSet};

/// One event, with the state around it.
pub(crate) struct View<'a> {
    pub(crate) before: &'a Machine,
    pub(crate) event: &'a Event,
    pub(crate) refused: Option<&'a Refusal>,
    pub(crate) commands: &'a [Command],
    pub(crate) after: &'a Machine,
}

/// A rule, by name, and how it was broken.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    pub(crate) rule: &'static str,
    pub(crate) how: String,
}

pub(crate) type Verdict = Result<(), Broken>;

fn broken(rule: &'static str, how: impl Into<String>) -> Verdict {
    Err(Broken { rule, how: how.into() })
}

/// An operation of one generation.
type Cause = (OpNumber, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acted {
    No,
    May,
    Yes,
}

/// What is known of one operation.
#[derive(Clone, Debug)]
struct Entry {
    scheduled: u32,
    ended: Option<u32>,
    acted: Acted,
    atomic: bool,
    pivot: bool,
    undone: bool,
    /// Undone, without an undo, or decided by a person.
    settled: bool,
}

/// The books of one saga.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checks {
    clock: u32,
    entries: BTreeMap<Cause, Entry>,
    runs: BTreeSet<OpNumber>,
    undos: BTreeSet<OpNumber>,
    timers: BTreeSet<TimerKey>,
    paused: bool,
    limited: bool,
    place: bool,
    restarting: Option<OpNumber>,
    told: u32,
    asked_to_undo: bool,
    told_undone: u32,
    child: bool,
}

impl Checks {
    /// Takes one event into the books and judges it.
    pub(crate) fn event(&mut self, view: &View<'_>) -> Verdict {
        self.refusal_changes_nothing(view)?;
        if view.refused.is_some() {
            // Even a refused `Granted` or answer would have been no event.
            return Ok(());
        }
        self.clock += 1;
        self.status_follows_the_table(view)?;
        self.note_event(view);
        self.generation_changes_only_by_restart(view)?;
        self.what_acted_is_undone(view)?;
        self.nothing_happens_after_the_end(view)?;
        for command in view.commands {
            self.command(view, command)?;
        }
        self.note_ops(view);
        self.an_exhausted_undo_stops_no_other(view)?;
        if view.after.status().is_ended() {
            self.completed_has_output(view)?;
            self.ended_is_over(view)?;
            self.parent_is_told_once(view)?;
            self.place_is_given_back(view)?;
        }
        self.books_agree_with_outstanding(view)?;
        self.never_lost(view)
    }

    fn command(&mut self, view: &View<'_>, command: &Command) -> Verdict {
        match command {
            Command::Perform { op, direction: Direction::Run } => {
                self.one_attempt_at_a_time(*op, Direction::Run)?;
                self.begins_only_when_it_may(*op)?;
                self.runs.insert(*op);
            }
            Command::Perform { op, direction: Direction::Undo } | Command::UndoChild(op) => {
                self.one_attempt_at_a_time(*op, Direction::Undo)?;
                self.undo_waits_for_attempts(*op)?;
                self.undo_follows_the_order(view, *op)?;
                self.nothing_is_undone_after_a_pivot(*op)?;
                self.only_what_acted_is_undone(view, *op)?;
                self.undos.insert(*op);
            }
            Command::SetTimer(key, _) => {
                self.timers.insert(*key);
            }
            Command::CancelTimer(key) => {
                self.timers.remove(key);
            }
            Command::Release => {
                if !self.place {
                    return broken("place", "a place is given back that the saga does not hold");
                }
                self.place = false;
            }
            Command::TellParent(_) => self.told += 1,
            Command::TellParentUndone(_) => self.told_undone += 1,
            _ => {}
        }
        Ok(())
    }

    // ------------------------------------------------------------ the books

    fn note_event(&mut self, view: &View<'_>) {
        let before = view.before;
        match view.event {
            Event::Start(start) if before.is_new() => {
                self.limited = start.concurrency.is_some();
                self.child = start.parent.is_some();
            }
            // Of an operation of another generation, or of one that nobody attempts, it is no answer.
            Event::Attempted { op, generation, direction, earlier, attempt, .. }
                if before.op(*op).is_some_and(|op| op.generation == *generation) =>
            {
                match direction {
                    Direction::Run if self.runs.remove(op) => {
                        self.note_attempt((*op, *generation), *earlier, attempt);
                    }
                    Direction::Undo if self.undos.remove(op) => {
                        if let Some(entry) = self.entries.get_mut(&(*op, *generation)) {
                            entry.undone |= matches!(attempt, Attempt::Done(_));
                            entry.settled |= !matches!(attempt, Attempt::Failed { .. });
                        }
                    }
                    _ => {}
                }
            }
            Event::ChildEnded { op, generation, result } => {
                let clock = self.clock;
                if let Some(entry) = self.entries.get_mut(&(*op, *generation))
                    && entry.ended.is_none()
                {
                    entry.ended = Some(clock);
                    entry.acted = if result.is_ok() { Acted::Yes } else { Acted::No };
                }
            }
            Event::ChildUndone { op, generation, failure } => {
                self.undos.remove(op);
                if let (None, Some(entry)) = (failure, self.entries.get_mut(&(*op, *generation))) {
                    (entry.undone, entry.settled) = (true, true);
                }
            }
            Event::Timer(key) => {
                self.timers.remove(key);
            }
            Event::Granted => self.place = true,
            Event::Pause => self.paused = true,
            Event::Resume => self.paused = false,
            Event::Abandon => {
                self.paused = false;
                // Their answers come late.
                self.runs.clear();
                self.undos.clear();
            }
            Event::Skip(op) => self.settle(view, *op),
            Event::Restart(op) => {
                self.paused = false;
                self.restarting = Some(*op);
            }
            Event::Compensate => self.asked_to_undo = true,
            Event::Resolve(op, _) => {
                let clock = self.clock;
                if let Some(found) = before.op(*op)
                    && found.undo == UndoState::None
                    && let Some(entry) = self.entries.get_mut(&(*op, found.generation))
                {
                    (entry.acted, entry.ended) = (Acted::Yes, Some(clock));
                } else {
                    self.settle(view, *op);
                }
            }
            _ => {}
        }
    }

    fn settle(&mut self, view: &View<'_>, op: OpNumber) {
        if let Some(generation) = view.before.op(op).map(|op| op.generation)
            && let Some(entry) = self.entries.get_mut(&(op, generation))
        {
            entry.settled = true;
        }
    }

    fn note_attempt(&mut self, cause: Cause, earlier: bool, attempt: &Attempt) {
        let clock = self.clock;
        let Some(entry) = self.entries.get_mut(&cause) else { return };
        match attempt {
            Attempt::Done(_) => (entry.acted, entry.ended) = (Acted::Yes, Some(clock)),
            Attempt::Failed { may_have_acted, .. } if *may_have_acted || earlier => {
                entry.acted = Acted::May;
            }
            _ => {}
        }
    }

    fn note_ops(&mut self, view: &View<'_>) {
        for op in view.after.ops() {
            let clock = self.clock;
            let policy = op.policy();
            let acts = op.acts();
            let entry = self.entries.entry((op.number, op.generation)).or_insert(Entry {
                scheduled: clock,
                ended: None,
                acted: Acted::No,
                atomic: policy.atomic && acts,
                pivot: policy.pivot && acts,
                undone: false,
                settled: matches!(op.what, What::Run { .. }),
            });
            if entry.ended.is_none() && matches!(op.state, OpState::Done | OpState::Failed) {
                entry.ended = Some(clock);
            }
        }
    }

    fn entry(&self, view: &View<'_>, op: OpNumber) -> Option<&Entry> {
        let generation = view.after.op(op)?.generation;
        self.entries.get(&(op, generation))
    }

    // ------------------------------------------------------------ the rules

    /// A refused event is no event.
    fn refusal_changes_nothing(&self, view: &View<'_>) -> Verdict {
        if view.refused.is_some() && (view.before != view.after || !view.commands.is_empty()) {
            return broken("refusal", format!("{:?} was refused and changed something", view.event));
        }
        Ok(())
    }

    /// The written table of transitions holds.
    fn status_follows_the_table(&self, view: &View<'_>) -> Verdict {
        let (before, after) = (view.before.status(), view.after.status());
        if !view.before.is_new() && !before.may_become(after) {
            return broken("status", format!("{before} became {after} by {:?}", view.event));
        }
        Ok(())
    }

    /// The generation is part of every key: it changes by a restart, by one, and an operation's never.
    fn generation_changes_only_by_restart(&mut self, view: &View<'_>) -> Verdict {
        let (before, after) = (view.before.generation(), view.after.generation());
        if after != before {
            if after != before + 1 || self.restarting.take().is_none() {
                return broken("generation", format!("{before} became {after} without a restart"));
            }
            return Ok(());
        }
        for op in view.before.ops() {
            if view.after.op(op.number).is_some_and(|now| now.generation != op.generation) {
                return broken("generation", format!("operation {} changed its generation", op.number));
            }
        }
        Ok(())
    }

    /// A late answer, a timer or a turn changes nothing of a saga that has ended.
    fn nothing_happens_after_the_end(&self, view: &View<'_>) -> Verdict {
        let late = matches!(
            view.event,
            Event::Attempted { .. }
                | Event::Driven(_)
                | Event::Timer(_)
                | Event::ChildEnded { .. }
                | Event::ChildUndone { .. }
        );
        let same = view.before.ops() == view.after.ops() && view.before.status() == view.after.status();
        if view.before.status().is_ended() && late && (!same || !view.commands.is_empty()) {
            return broken("late", format!("{:?} changed a saga that had ended", view.event));
        }
        Ok(())
    }

    /// One operation, one direction, one attempt.
    fn one_attempt_at_a_time(&self, op: OpNumber, direction: Direction) -> Verdict {
        let open = if direction == Direction::Run { &self.runs } else { &self.undos };
        if open.contains(&op) {
            return broken("one attempt", format!("operation {op} {direction:?} is attempted twice at once"));
        }
        Ok(())
    }

    /// Nothing is begun while the saga is paused, or before the limit gave it a place.
    fn begins_only_when_it_may(&self, op: OpNumber) -> Verdict {
        if self.paused {
            return broken("begin", format!("operation {op} begins while the saga is paused"));
        }
        if self.limited && !self.place {
            return broken("begin", format!("operation {op} begins without a place"));
        }
        Ok(())
    }

    /// What is being attempted may still act: an undo before its answer could come too early.
    fn undo_waits_for_attempts(&self, op: OpNumber) -> Verdict {
        match self.runs.first() {
            Some(run) => {
                broken("undo waits", format!("the undo of {op} begins while {run} is being attempted"))
            }
            None => Ok(()),
        }
    }

    /// Unknown outcomes before known ones; among equals, what may stand on something before it.
    fn undo_follows_the_order(&self, view: &View<'_>, number: OpNumber) -> Verdict {
        let Some(this) = self.entry(view, number) else { return Ok(()) };
        let open = |other: &Entry, op: OpNumber| {
            op != number
                && !other.undone
                && !(other.atomic && other.acted == Acted::May)
                && other.acted != Acted::No
                && view.after.op(op).is_some_and(|op| op.undo.is_open())
        };
        for op in view.after.ops() {
            let Some(other) = self.entries.get(&(op.number, op.generation)) else { continue };
            if !open(other, op.number) {
                continue;
            }
            if other.acted == Acted::May && this.acted == Acted::Yes {
                return broken(
                    "unknown first",
                    format!("{number} is undone while the unknown {} is not", op.number),
                );
            }
            let built_on = this.ended.is_some_and(|ended| other.scheduled >= ended);
            if other.acted == this.acted && built_on {
                return broken(
                    "reverse order",
                    format!("{number} is undone before {}, which may stand on it", op.number),
                );
            }
        }
        Ok(())
    }

    /// Once a pivot acted, or may have, there is only forward (a restart from a later step undoes
    /// just what came from that step on).
    fn nothing_is_undone_after_a_pivot(&self, op: OpNumber) -> Verdict {
        let from = self.restarting.unwrap_or(0);
        let past = self.entries.iter().find(|((number, _), entry)| {
            *number >= from && entry.pivot && entry.acted != Acted::No && !entry.undone
        });
        match past {
            Some(((pivot, _), _)) => {
                broken("pivot", format!("{op} is undone although the pivot {pivot} acted or may have"))
            }
            None => Ok(()),
        }
    }

    /// An undo of what certainly did not act would undo somebody else's doing.
    fn only_what_acted_is_undone(&self, view: &View<'_>, op: OpNumber) -> Verdict {
        match self.entry(view, op) {
            Some(entry) if entry.acted == Acted::No => {
                broken("only what acted", format!("{op} is undone and never acted"))
            }
            _ => Ok(()),
        }
    }

    /// A saga is stuck by an undo only when every other undo has ended.
    fn an_exhausted_undo_stops_no_other(&self, view: &View<'_>) -> Verdict {
        let failed = view.after.ops().iter().any(|op| op.undo == UndoState::Failed);
        let open = view.after.ops().iter().find(|op| op.undo.is_open());
        match open {
            Some(op) if view.after.status() == Status::Stuck && failed => {
                broken("others still run", format!("stuck while the undo of {} is open", op.number))
            }
            _ => Ok(()),
        }
    }

    /// Recovery knows every attempt and timer that is under way, and no other.
    fn books_agree_with_outstanding(&self, view: &View<'_>) -> Verdict {
        let (mut runs, mut undos, mut timers) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for command in view.after.outstanding() {
            match command {
                Command::Perform { op, direction: Direction::Run } => {
                    runs.insert(op);
                }
                Command::Perform { op, direction: Direction::Undo } | Command::UndoChild(op) => {
                    undos.insert(op);
                }
                Command::SetTimer(key, _) => {
                    timers.insert(key);
                }
                _ => {}
            }
        }
        if runs != self.runs || undos != self.undos || timers != self.timers {
            return broken(
                "outstanding",
                format!(
                    "after {:?}: under way are {:?} {:?} {:?}, outstanding {runs:?} {undos:?} {timers:?}",
                    view.event, self.runs, self.undos, self.timers
                ),
            );
        }
        Ok(())
    }

    /// A saga that has not ended and waits for no person waits for something that will come.
    fn never_lost(&self, view: &View<'_>) -> Verdict {
        let status = view.after.status();
        let resting = status.is_ended() || matches!(status, Status::Paused | Status::Stuck);
        // The deadline alone moves nothing forward.
        let deadline = |c: &Command| matches!(c, Command::SetTimer(TimerKey::Deadline, _));
        let comes = view.after.outstanding().iter().any(|command| !deadline(command));
        let signal =
            view.after.ops().iter().any(|op| {
                matches!(op.what, What::Signal { .. }) && matches!(op.state, OpState::Waiting { .. })
            });
        if !resting && !comes && !signal {
            return broken("never lost", format!("{status} after {:?}, and nothing will come", view.event));
        }
        Ok(())
    }

    /// Nothing is left of a saga that has ended.
    fn ended_is_over(&self, view: &View<'_>) -> Verdict {
        if !self.timers.is_empty() {
            return broken("ended", format!("timers are left: {:?}", self.timers));
        }
        if !view.after.outstanding().is_empty() {
            return broken("ended", format!("outstanding: {:?}", view.after.outstanding()));
        }
        Ok(())
    }

    /// Everything that acted or may have, in every generation, is undone, has no undo, or was decided
    /// by a person, before the saga is compensated or begins a new generation.
    fn what_acted_is_undone(&self, view: &View<'_>) -> Verdict {
        let renewed = view.after.generation() != view.before.generation();
        if !renewed && view.after.status() != Status::Compensated {
            return Ok(());
        }
        for ((number, generation), entry) in &self.entries {
            let acted = entry.acted == Acted::Yes || (entry.acted == Acted::May && !entry.atomic);
            let goes_on = renewed && view.after.op(*number).is_some_and(|op| op.generation == *generation);
            if acted && !entry.settled && !goes_on {
                return broken("undone", format!("{number} acted ({:?}) and is not undone", entry.acted));
            }
        }
        Ok(())
    }

    /// Who completed has something to show.
    fn completed_has_output(&self, view: &View<'_>) -> Verdict {
        if (view.after.status() == Status::Completed) != view.after.output().is_some() {
            return broken("output", "completed without output, or output without completion");
        }
        Ok(())
    }

    /// A parent hears once how its child ended, and once that it is undone when it asked for that.
    fn parent_is_told_once(&self, view: &View<'_>) -> Verdict {
        if !self.child {
            return if self.told + self.told_undone > 0 {
                broken("parent", "there is no parent to tell")
            } else {
                Ok(())
            };
        }
        if self.told != 1 || (self.told_undone > 0 && !self.asked_to_undo) {
            let how = format!("told {} times, told undone {} times", self.told, self.told_undone);
            return broken("parent", how);
        }
        if self.asked_to_undo && self.told_undone == 0 {
            return broken("parent", format!("{:?}: it asked for an undo and is not told", view.event));
        }
        Ok(())
    }

    /// A place that was given is given back, once.
    fn place_is_given_back(&self, view: &View<'_>) -> Verdict {
        if self.limited && self.place {
            return broken("place", format!("ended by {:?} and still holds its place", view.event));
        }
        Ok(())
    }

    /// At rest for good: every saga ends.
    pub(crate) fn every_saga_ends(&self, machine: &Machine) -> Verdict {
        if machine.status().is_ended() {
            return Ok(());
        }
        let error = machine.error();
        broken("ends", format!("helped and healed, it is still {}: {error:?}", machine.status()))
    }

    /// The function says the same again from its journal.
    pub(crate) fn function_matches(failure: &rallypoint_saga::op::Failure) -> Verdict {
        if failure.kind == FailureKind::Mismatch {
            return broken("journal", format!("a rebuild differs: {}", failure.message));
        }
        Ok(())
    }

    /// Attempts that may still be answered.
    pub(crate) fn runs(&self) -> &BTreeSet<OpNumber> {
        &self.runs
    }

    /// A person paused it.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// The limit counts this saga.
    pub(crate) fn holds_place(&self) -> bool {
        self.place
    }
}
