//! What a world does: it makes turns of the functions, attempts, crashes, and helps.
//!
//! Decides what becomes of an attempt, from the case. What the driver does in production is done
//! here in the same way: who is told what at once, when a live copy of a function is built anew.

use super::ID;
use super::attempt::{Facts, answer, execute, executions};
use super::case::{Arrival, Deed, Seen, Target};
use super::flight::{Flight, State};
use super::report::StormRule;
use super::rules::{Broken, Verdict, broken};
use super::timeline::Entry;
use super::world::{Undone, World, fold, unfed};
use rallypoint_engine::saga::AttemptWork;
use rallypoint_saga::event::{Attempt, Direction, End, Event, Parent, Start, Turn};
use rallypoint_saga::function::{BoxFuture, Resolution, told};
use rallypoint_saga::machine::Machine;
use rallypoint_saga::op::{Failure, FailureKind, Op, OpNumber, OpState, UndoState, What};
use rallypoint_saga::status::Status;
use rallypoint_saga::step::{StepInfo, Trace};
use rallypoint_saga::value::Blob;
use std::time::Duration;
use tokio::time::Instant;

/// Longest delay of a request in random weather.
const DELAY_MILLIS: u64 = 50;

impl<C: Send + Sync + 'static> World<'_, C> {
    // ---------------------------------------------------------------- the function

    pub(super) fn start(&mut self, id: &str, name: &str, input: &Blob, parent: Option<Parent>) -> Verdict {
        let options = self.registry.options(name).unwrap_or_default();
        let mut turn = None;
        let mut live = None;
        if let Ok(mut runner) = self.registry.begin(name, options.version, id, input) {
            let mut first = runner.turn(Vec::new());
            self.registry.check(&mut first);
            live = (first.end.is_none() && !runner.is_at_rest()).then_some(runner);
            turn = Some(first);
        }
        let start = Start {
            name: name.to_owned(),
            version: options.version,
            digest: options.digest,
            input: input.clone(),
            concurrency: options.concurrency,
            deadline: options.deadline,
            parent,
            turn,
            history: super::world::HISTORY.to_owned(),
        };
        self.sagas.entry(id.to_owned()).or_default().runner = live;
        self.tell(id, Event::Start(Box::new(start))).map(drop)
    }

    /// A turn of the live copy, if there is one.
    fn turn(&mut self, saga: &str, results: Vec<(OpNumber, Resolution)>) -> Option<Turn> {
        let registry = self.registry;
        let instance = self.sagas.get_mut(saga)?;
        let runner = instance.runner.as_mut().filter(|runner| runner.is_live())?;
        let mut turn = runner.turn(results);
        registry.check(&mut turn);
        if turn.end.is_some() || runner.is_at_rest() {
            instance.runner = None;
        }
        Some(turn)
    }

    pub(super) fn drive(&mut self, saga: &str, rebuild: bool) -> Verdict {
        let Some(instance) = self.sagas.get_mut(saga) else { return Ok(()) };
        let turns = instance.machine.turns().len() as u32;
        let is_current = instance.runner.as_ref().is_some_and(|live| live.turns() >= turns && live.is_live());
        if rebuild || !is_current {
            match self.registry.rebuild(saga, &instance.machine) {
                Ok(runner) => instance.runner = Some(runner),
                Err(failure) => {
                    instance.runner = None;
                    let turn = Turn { index: turns, end: Some(End::Broken(failure)), ..Turn::default() };
                    return self.tell(saga, Event::Driven(turn)).map(drop);
                }
            }
        }
        let results = unfed(&instance.machine);
        let turn = self.turn(saga, results).unwrap_or_default();
        self.tell(saga, Event::Driven(turn)).map(drop)
    }

    // ---------------------------------------------------------------- steps

    pub(super) fn perform(
        &mut self,
        saga: &str,
        op: OpNumber,
        direction: Direction,
        earlier: bool,
    ) -> Verdict {
        let Some(machine) = self.machine(saga) else { return Ok(()) };
        let Some(found) = machine.op(op).cloned() else { return Ok(()) };
        let may_fail = machine.may_fail(op);
        let work = work(saga, machine, op, direction);
        self.books.begins(saga, op, &work.key(direction), direction, &self.sagas[saga].machine)?;
        if direction == Direction::Undo {
            self.books.undo_begins(saga, op, &self.sagas[saga].machine)?;
        }
        let policy = found.policy();
        let run = direction == Direction::Run;
        let deed = if run && !may_fail && work.attempt > policy.attempts {
            // What may not be given up succeeds in the end, or the case would have none.
            Deed::Acts
        } else {
            self.deed(saga, op, direction, work.attempt)
        };
        if deed != Deed::Acts {
            self.went_wrong();
        }
        let closure = matches!(found.what, What::Run { .. });
        if run {
            let target = Target { saga: saga.to_owned(), op, name: found.name.clone() };
            if !self.sight.steps.iter().any(|seen| seen.target == target) {
                let policy = policy.clone();
                self.sight.steps.push(Seen { target, policy, closure, polls: 0 });
            }
        }
        let mut bodies = Vec::new();
        for _ in 0..executions(deed) {
            bodies.push(self.body(&work));
        }
        let delay = self.delay();
        let code = execute(bodies, deed, delay, policy.timeout);
        let entry = Entry::Began {
            saga: saga.to_owned(),
            op,
            direction,
            attempt: work.attempt,
            deed,
            again: earlier,
        };
        self.note(entry);
        let flight = Flight {
            generation: found.generation,
            deed,
            earlier,
            may_fail,
            timeout: policy.timeout,
            ..Flight::new(saga, op, direction, code)
        };
        self.flights.push(flight);
        if !run && work.attempt == 1 {
            // Behind it: the undo has begun when it arrives.
            self.arrive_if(saga, op, Arrival::DuringUndo);
        }
        Ok(())
    }

    fn deed(&self, saga: &str, op: OpNumber, direction: Direction, attempt: u32) -> Deed {
        if self.healed {
            return Deed::Acts;
        }
        let covers = self.case.faults.iter().rev().find(|fault| fault.covers(saga, op, direction, attempt));
        covers.map_or(Deed::Acts, |fault| fault.deed)
    }

    fn delay(&mut self) -> Duration {
        let Some(weather) = &mut self.weather else { return Duration::ZERO };
        Duration::from_millis(if weather.chance(1, 2) { weather.below(DELAY_MILLIS) } else { 0 })
    }

    /// The user's code of one execution.
    fn body(&mut self, work: &AttemptWork) -> BoxFuture<Attempt> {
        let body = match &work.value {
            Some(value) => {
                let undo = (work.direction == Direction::Undo).then(|| work.output.clone());
                self.registry.attempt(&work.step, info(work), value.clone(), undo)
            }
            None => self.closure(work),
        };
        body.unwrap_or_else(|failure| {
            Box::pin(async { Attempt::Failed { failure, may_have_acted: false, retry_after: None } })
        })
    }

    /// The closure of a `run` lives in a live copy of the function only.
    fn closure(&mut self, work: &AttemptWork) -> Result<BoxFuture<Attempt>, Failure> {
        let gone =
            || Failure::new(FailureKind::Mismatch, format!("the function has no closure {:?}", work.step));
        let instance = self.sagas.get_mut(&work.id).ok_or_else(gone)?;
        if instance.runner.is_none() {
            instance.runner = Some(self.registry.rebuild(&work.id, &instance.machine)?);
        }
        let body = instance.runner.as_ref().and_then(|runner| runner.body(work.op)).ok_or_else(gone)?;
        Ok(body())
    }

    /// The code of an attempt, or of a late request, has ended.
    pub(super) fn executed(&mut self, at: usize, facts: Facts) -> Verdict {
        if self.flights[at].stray {
            let Flight { saga, op, .. } = self.flights.remove(at);
            let answer = facts.answers.into_iter().next().flatten();
            self.note(Entry::LateAnswer { saga, op, answer });
            return Ok(());
        }
        self.said(at, &facts)?;
        let flight = &mut self.flights[at];
        let (attempt, is_late) = answer(flight.deed, &facts, flight.timeout);
        let comes = if is_late { Instant::now().max(flight.began + flight.timeout) } else { Instant::now() };
        flight.state = State::Answered(attempt, comes);
        if flight.direction == Direction::Run {
            let (saga, op) = (flight.saga.clone(), flight.op);
            let seen = self.sight.steps.iter_mut().find(|s| s.target.op == op && s.target.saga == saga);
            if let Some(seen) = seen {
                seen.polls = seen.polls.max(facts.polls);
            }
        } else {
            flight.polls = facts.polls;
        }
        Ok(())
    }

    fn said(&mut self, at: usize, facts: &Facts) -> Verdict {
        let flight = &self.flights[at];
        self.books.executed(&flight.saga, (flight.op, flight.generation), flight.direction, facts)
    }

    /// The answer of an attempt has come.
    pub(super) fn answered(&mut self, flight: Flight) -> Verdict {
        let Flight { saga, op, generation, direction, earlier, may_fail, polls, state, .. } = flight;
        let State::Answered(attempt, _) = state else { return Ok(()) };
        if direction == Direction::Undo
            && matches!(attempt, Attempt::Done(_))
            && let Some(found) = self.machine(&saga).and_then(|machine| machine.op(op))
        {
            let target = Target { saga: saga.clone(), op, name: found.name.clone() };
            let known = found.output.is_some();
            self.sight.undone.push(Undone { target, known, polls });
        }
        let turn =
            told(&attempt, direction, may_fail).and_then(|result| self.turn(&saga, vec![(op, result)]));
        self.tell(&saga, Event::Attempted { op, generation, direction, earlier, attempt, turn }).map(drop)
    }

    /// The original request of a step arrives now, if the case says so.
    pub(super) fn arrive_if(&mut self, saga: &str, op: OpNumber, arrival: Arrival) {
        let arrives =
            |(target, when): &&(Target, Arrival)| *when == arrival && target.op == op && target.saga == saga;
        if let Some((target, _)) = self.case.late.iter().find(arrives) {
            self.arrive(target);
        }
    }

    /// The original request of a step arrives, however late.
    fn arrive(&mut self, target: &Target) {
        let Some(machine) = self.machine(&target.saga) else { return };
        let Some(found) = machine.op(target.op) else { return };
        let timeout = found.policy().timeout;
        // What was never asked for, or certainly refused, is not on its way.
        if !self.books.may_have_acted(&target.saga, (target.op, found.generation)) {
            return;
        }
        let work = work(&target.saga, machine, target.op, Direction::Run);
        self.went_wrong();
        self.sight.late += 1;
        self.note(Entry::Late { saga: target.saga.clone(), op: target.op });
        let code = execute(vec![self.body(&work)], Deed::Acts, Duration::ZERO, timeout);
        let flight = Flight::new(&target.saga, target.op, Direction::Run, code);
        self.flights.push(Flight { stray: true, ..flight });
    }

    // ---------------------------------------------------------------- crashes and people

    /// Crashes, if the case says so; true when it did.
    pub(super) async fn crash(&mut self) -> Result<bool, Broken> {
        let Some(crash) = self.case.crashes.get(self.crashed).copied() else { return Ok(false) };
        if self.records < crash.after {
            return Ok(false);
        }
        self.crashed += 1;
        self.sight.crashes += 1;
        self.went_wrong();
        let under_way = self.flights.iter().filter(|flight| !flight.stray).count();
        self.note(Entry::Crash { acted: crash.acted, under_way });
        if crash.acted {
            for at in 0..self.flights.len() {
                if !self.flights[at].stray {
                    let facts = self.flights[at].finish().await;
                    self.said(at, &facts)?;
                }
            }
        }
        self.flights.retain(|flight| flight.stray);
        let mut outstanding = Vec::new();
        for (saga, instance) in &mut self.sagas {
            let mut machine = Machine::default();
            for (index, record) in instance.log.iter().enumerate() {
                fold(&mut machine, self.seed, saga, index, record);
            }
            if machine != instance.machine {
                let text =
                    format!("reading the journal of {saga} gives another state than it was written in");
                broken(StormRule::Journal, text)?;
            }
            instance.runner = None;
            instance.timers.clear();
            instance.drive = None;
            outstanding.extend(machine.outstanding().into_iter().map(|command| (saga.clone(), command)));
            instance.machine = machine;
        }
        for (saga, command) in outstanding {
            self.carry_out(&saga, command, true)?;
        }
        Ok(true)
    }

    /// Nothing happens by itself any more. True when somebody makes something happen.
    pub(super) fn goes_on(&mut self) -> Result<bool, Broken> {
        let stuck = self.sagas.iter().find(|(_, saga)| saga.machine.status() == Status::Stuck);
        if let Some((saga, instance)) = stuck {
            let (saga, rule, why) = (saga.clone(), rule_of(&instance.machine), why_stuck(&instance.machine));
            if !self.case.needs_a_person() || !self.asked_to_help.insert(saga.clone()) {
                broken(rule, format!("{} is stuck: {why}", called(&saga)))?;
            }
            self.sight.helped += 1;
            self.healed = true;
            let undo_failed = has_failed_undo(&self.sagas[&saga].machine);
            // A bug is mended; what was done until then is undone, if it still may be.
            let cancelled = !undo_failed && self.tell(&saga, Event::Cancel)?;
            if !cancelled {
                self.tell(&saga, Event::Retry)?;
            }
            return Ok(true);
        }
        if let Some((saga, instance)) = self.sagas.iter().find(|(_, saga)| !saga.machine.status().is_ended())
        {
            let signal = instance.machine.ops().iter().find(|op| waits_for_signal(op));
            return match signal {
                Some(op) => broken(
                    StormRule::Signal,
                    format!(
                        "{} waits for the signal {:?} for ever: give the storm its value with \
                         .signal({:?}, &value), or the wait an end with .within(..)",
                        called(saga),
                        op.name,
                        op.name
                    ),
                ),
                None => {
                    let status = instance.machine.status();
                    broken(StormRule::Ends, format!("{} is {status}, and nothing will come", called(saga)))
                }
            }
            .map(|()| false);
        }
        if std::mem::replace(&mut self.ended, true) {
            return Ok(false);
        }
        let arrives = self.case.late.iter().filter(|(_, arrival)| *arrival == Arrival::AfterEnd);
        for (target, _) in arrives.cloned().collect::<Vec<_>>() {
            self.arrive(&target);
        }
        Ok(true)
    }

    /// There are too many records.
    pub(super) fn without_end(&self) -> Verdict {
        let failing = |machine: &Machine| {
            let op = machine.ops().iter().find(|op| op.alarm)?;
            let error = op.error.as_ref()?;
            let (name, attempts) = (&op.name, op.attempts);
            Some(format!("{name:?} cannot be given up and fails ({attempts} attempts): {}", error.message))
        };
        let machines = self.sagas.iter().map(|(saga, instance)| (saga, &instance.machine));
        let open: Vec<(&String, &Machine)> = machines.filter(|(_, m)| !m.status().is_ended()).collect();
        let why =
            open.iter().find_map(|(_, machine)| failing(machine)).unwrap_or_else(|| "it goes on".into());
        let saga = open.first().map_or(ID, |(saga, _)| saga.as_str());
        let text = format!("after {} records {} has not ended: {why}", self.records, called(saga));
        broken(StormRule::Ends, text)
    }
}

fn called(saga: &str) -> String {
    if saga == ID { "the saga".to_owned() } else { format!("the child {saga}") }
}

fn waits_for_signal(op: &Op) -> bool {
    matches!((&op.what, op.state), (What::Signal { .. }, OpState::Waiting { .. }))
}

fn has_failed_undo(machine: &Machine) -> bool {
    machine.ops().iter().any(|op| op.undo == UndoState::Failed)
}

fn rule_of(machine: &Machine) -> StormRule {
    match machine.error().map(|error| error.kind) {
        Some(FailureKind::Mismatch) if !has_failed_undo(machine) => StormRule::Deterministic,
        _ => StormRule::NeedsNobody,
    }
}

fn why_stuck(machine: &Machine) -> String {
    let undos = machine.ops().iter().filter(|op| op.undo == UndoState::Failed);
    let undos: Vec<String> = undos
        .map(|op| {
            let error = op.undo_error.as_ref().map(|error| error.message.as_str()).unwrap_or("no reason");
            format!("the undo of {:?} ({}) is exhausted: {error}", op.name, op.number)
        })
        .collect();
    match machine.error() {
        _ if !undos.is_empty() => undos.join("; "),
        Some(error) => error.message.clone(),
        None => "no reason is known".into(),
    }
}

/// What the engine would ask its driver to do.
fn work(saga: &str, machine: &Machine, number: OpNumber, direction: Direction) -> AttemptWork {
    let op = machine.op(number);
    let run = direction == Direction::Run;
    AttemptWork {
        id: saga.to_owned(),
        op: number,
        step: op.map(|op| op.name.clone()).unwrap_or_default(),
        generation: op.map_or(0, |op| op.generation),
        direction,
        attempt: op.map_or(1, |op| if run { op.attempts } else { op.undo_attempts }),
        value: op
            .and_then(|op| if let What::Step { value, .. } = &op.what { Some(value.clone()) } else { None }),
        output: op.filter(|_| !run).and_then(|op| op.output.clone()),
        timeout: op.map(|op| op.policy().timeout).unwrap_or_default(),
        may_fail: machine.may_fail(number),
        saga: machine.name().to_owned(),
        history: machine.history().to_owned(),
        started: machine.created().0,
    }
}

fn info(work: &AttemptWork) -> StepInfo {
    StepInfo {
        saga: work.id.clone(),
        step: work.step.clone(),
        key: work.key(work.direction),
        key_of: (work.direction == Direction::Undo).then(|| work.key(Direction::Run)),
        attempt: work.attempt,
        trace: Trace { trace: 1, span: u64::from(work.attempt) },
    }
}

#[cfg(test)]
mod tests {
    //! A journal that does not say what happened is found by the next crash.

    use super::super::NAME;
    use super::super::case::{Case, Crash};
    use super::*;
    use rallypoint_saga::function::Saga;
    use rallypoint_saga::registry::Registry;
    use rallypoint_saga::step::SagaError;

    async fn waits(s: Saga<()>, _: ()) -> Result<(), SagaError> {
        s.sleep(Duration::from_secs(60)).await
    }

    async fn crashed(change: impl Fn(&mut super::super::world::Log)) -> Verdict {
        let registry = Registry::new(()).saga(NAME, 1, waits);
        let case = Case { crashes: vec![Crash { after: 1, acted: false }], ..Case::default() };
        let mut world = World::new(&registry, &case, 1, &[], 100);
        world.start(ID, NAME, &Blob::default(), None)?;
        change(&mut world.sagas.get_mut(ID).unwrap().log);
        world.crash().await.map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_journal_that_reads_differently_is_found() {
        assert_eq!(crashed(|_| {}).await, Ok(()));
        let broken = crashed(|log| log[0].0.0 += 1).await.unwrap_err();
        assert_eq!(broken.rule, StormRule::Journal);
    }
}
