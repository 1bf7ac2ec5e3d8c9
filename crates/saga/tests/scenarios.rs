//! What a saga does, told as short stories: each is one promise of the machine, by hand.
//!
//! The function is real; attempts, timers and people are played by the story.

use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_saga::event::{Attempt, Command, Direction, End, Event, Parent, Start, TimerKey, Turn};
use rallypoint_saga::function::{Operation, Resolution, Runner, Saga, resolution};
use rallypoint_saga::machine::{Machine, OPS, Refusal, SIGNALS};
use rallypoint_saga::op::{Failure, FailureKind, NewOp, Op, OpNumber, OpState, Policy, UndoState, What};
use rallypoint_saga::registry::Registry;
use rallypoint_saga::status::Status;
use rallypoint_saga::step::SagaError;
use rallypoint_saga::value::Blob;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const RUN: Direction = Direction::Run;
const UNDO: Direction = Direction::Undo;

/// One saga and who plays its surroundings.
struct Story {
    machine: Machine,
    registry: Registry<()>,
    runner: Option<Runner>,
    now: Time,
    /// Attempts under way, in the order they were asked for.
    under_way: Vec<(String, Direction)>,
    commands: Vec<Command>,
}

impl Story {
    fn of<F, Fut>(function: F) -> Self
    where
        F: Fn(Saga<()>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<u64, SagaError>> + Send + 'static,
    {
        Self::with(Start::default(), function)
    }

    fn with<F, Fut>(start: Start, function: F) -> Self
    where
        F: Fn(Saga<()>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<u64, SagaError>> + Send + 'static,
    {
        let registry = Registry::new(()).saga("story", 1, move |s: Saga<()>, (): ()| function(s));
        let mut story = Self {
            machine: Machine::default(),
            registry,
            runner: None,
            now: Time(0),
            under_way: Vec::new(),
            commands: Vec::new(),
        };
        let start = Start { name: "story".into(), version: 1, ..start };
        story.tell(Event::Start(Box::new(start)));
        story
    }

    /// Tells the machine and lets the function speak; what else it asks for stays in `commands`.
    fn try_tell(&mut self, event: Event) -> Result<(), Refusal> {
        let mut out = Vec::new();
        self.commands.clear();
        self.machine.handle(self.now, &mut Random::new(1), event, &mut out)?;
        loop {
            let mut drive = None;
            for command in out.drain(..) {
                match &command {
                    Command::Perform { op, direction } => {
                        let name = self.machine.op(*op).map(|op| op.name.clone()).unwrap_or_default();
                        self.under_way.push((name, *direction));
                    }
                    Command::Drive { rebuild } => drive = Some(*rebuild),
                    _ => {}
                }
                self.commands.push(command);
            }
            let Some(rebuild) = drive else { return Ok(()) };
            let turn = self.turn(rebuild);
            self.machine.handle(self.now, &mut Random::new(1), Event::Driven(turn), &mut out)?;
        }
    }

    fn turn(&mut self, rebuild: bool) -> Turn {
        if rebuild || self.runner.is_none() {
            match self.registry.rebuild("id", &self.machine) {
                Ok(runner) => self.runner = Some(runner),
                Err(failure) => {
                    let index = self.machine.turns().len() as u32;
                    return Turn { index, end: Some(End::Broken(failure)), ..Turn::default() };
                }
            }
        }
        let results = unfed(&self.machine);
        self.runner.as_mut().expect("it was built").turn(results)
    }

    fn tell(&mut self, event: Event) {
        let text = format!("{event:?}");
        if let Err(refusal) = self.try_tell(event) {
            panic!("{text} was refused: {refusal}");
        }
    }

    fn refusal(&mut self, event: Event) -> Refusal {
        let before = self.machine.clone();
        let refusal = self.try_tell(event).expect_err("it should be refused");
        assert_eq!(before, self.machine, "a refusal changes nothing");
        refusal
    }

    #[track_caller]
    fn op(&self, name: &str) -> &Op {
        self.machine.ops().iter().find(|op| op.name == name).expect("an operation of this name")
    }

    #[track_caller]
    fn number(&self, name: &str) -> OpNumber {
        self.op(name).number
    }

    #[track_caller]
    fn answer(&mut self, name: &str, direction: Direction, earlier: bool, attempt: Attempt) {
        let at = self.under_way.iter().position(|(n, d)| n == name && *d == direction);
        let at = at.unwrap_or_else(|| panic!("{name} {direction:?} is not under way: {:?}", self.under_way));
        self.under_way.remove(at);
        let (op, generation) = (self.op(name).number, self.op(name).generation);
        self.tell(Event::Attempted { op, generation, direction, earlier, attempt, turn: None });
    }

    #[track_caller]
    fn done(&mut self, name: &str) {
        self.answer(name, RUN, false, Attempt::Done(Blob::of(&1u64).unwrap()));
    }

    #[track_caller]
    fn undone(&mut self, name: &str) {
        self.answer(name, UNDO, false, Attempt::Done(Blob::default()));
    }

    #[track_caller]
    fn fails(&mut self, name: &str, kind: FailureKind, may_have_acted: bool) {
        self.answer(name, RUN, false, failed(kind, may_have_acted));
    }

    #[track_caller]
    fn undo_fails(&mut self, name: &str) {
        self.answer(name, UNDO, false, failed(FailureKind::Fatal, true));
    }

    #[track_caller]
    fn fire(&mut self, key: TimerKey) {
        let set = self.machine.outstanding().into_iter().find_map(|command| match command {
            Command::SetTimer(found, wait) if found == key => Some(wait),
            _ => None,
        });
        self.now = self.now + set.expect("the timer is set");
        self.tell(Event::Timer(key));
    }

    /// The process ends: what was under way is known from the state alone.
    fn crash(&mut self) {
        self.runner = None;
        self.under_way.clear();
        for command in self.machine.outstanding() {
            if let Command::Perform { op, direction } = command {
                let name = self.machine.op(op).map(|op| op.name.clone()).unwrap_or_default();
                self.under_way.push((name, direction));
            }
        }
    }

    #[track_caller]
    fn expect(&self, status: Status, under_way: &[(&str, Direction)]) {
        let found: Vec<(&str, Direction)> =
            self.under_way.iter().map(|(name, direction)| (name.as_str(), *direction)).collect();
        assert_eq!((self.machine.status(), found.as_slice()), (status, under_way));
    }

    fn alarms(&self) -> usize {
        self.commands.iter().filter(|command| matches!(command, Command::Alarm(_))).count()
    }
}

fn unfed(machine: &Machine) -> Vec<(OpNumber, Resolution)> {
    let resolved = |op: &&Op| Some((op.number, resolution(machine, op.number)?));
    machine.unfed().iter().filter_map(resolved).collect()
}

fn failed(kind: FailureKind, may_have_acted: bool) -> Attempt {
    Attempt::Failed { failure: Failure::new(kind, format!("{kind:?}")), may_have_acted, retry_after: None }
}

/// A step that is attempted up to twice.
fn step(s: &Saga<()>, name: &str) -> Operation<Resolution> {
    s.step_as(name, Blob::default(), Policy { attempts: 2, ..Policy::default() })
}

async fn told(step: Operation<Resolution>) -> Result<u64, SagaError> {
    step.await.map_err(SagaError)?.read().map_err(SagaError::business)
}

fn boxed(
    step: Operation<Resolution>,
) -> std::pin::Pin<Box<dyn Future<Output = Result<u64, SagaError>> + Send>> {
    Box::pin(told(step))
}

async fn a_then_b(s: Saga<()>) -> Result<u64, SagaError> {
    Ok(told(step(&s, "a")).await? + told(step(&s, "b")).await?)
}

async fn a_beside_b(s: Saga<()>) -> Result<u64, SagaError> {
    let (a, b) = s.join(boxed(step(&s, "a")), boxed(step(&s, "b"))).await?;
    Ok(a + b)
}

async fn a_pivot_b(s: Saga<()>) -> Result<u64, SagaError> {
    told(step(&s, "a")).await?;
    told(step(&s, "pay").pivot()).await?;
    told(step(&s, "b")).await
}

fn limited() -> Start {
    Start { concurrency: Some(1), ..Start::default() }
}

fn child() -> Start {
    let parent = Parent { id: "parent".into(), op: 4, generation: 0 };
    Start { parent: Some(parent), ..Start::default() }
}

fn signal(name: &str) -> Event {
    Event::Signal { name: name.into(), value: Blob::of(&5u64).unwrap() }
}

// ---------------------------------------------------------------- may have acted

#[test]
fn a_step_whose_first_attempt_ended_unknown_is_undone_whatever_the_second_says() {
    let mut story = Story::of(a_then_b);
    story.done("a");
    story.fails("b", FailureKind::TimedOut, true);
    story.fire(TimerKey::Retry(1));
    story.fails("b", FailureKind::Business, false);
    story.expect(Status::Compensating, &[("b", UNDO)]);
    story.undone("b");
    story.expect(Status::Compensating, &[("a", UNDO)]);
    story.undone("a");
    story.expect(Status::Compensated, &[]);
}

#[test]
fn a_step_that_was_under_way_in_a_crash_may_have_acted() {
    let mut story = Story::of(a_then_b);
    story.crash();
    story.answer("a", RUN, true, failed(FailureKind::Business, false));
    story.expect(Status::Compensating, &[("a", UNDO)]);
}

#[test]
fn a_step_that_certainly_did_nothing_is_not_undone() {
    let mut story = Story::of(a_then_b);
    story.fails("a", FailureKind::Business, false);
    story.expect(Status::Compensated, &[]);
}

#[test]
fn of_an_atomic_step_only_a_known_outcome_is_undone() {
    let atomic = |s: Saga<()>| async move {
        told(step(&s, "a").atomic()).await?;
        told(step(&s, "b").atomic()).await
    };
    let mut story = Story::of(atomic);
    story.done("a");
    story.fails("b", FailureKind::TimedOut, true);
    story.fire(TimerKey::Retry(1));
    story.fails("b", FailureKind::Business, false);
    story.expect(Status::Compensating, &[("a", UNDO)]);
}

#[test]
fn unwinding_waits_for_running_siblings() {
    let mut story = Story::of(a_beside_b);
    story.fails("b", FailureKind::Business, false);
    story.expect(Status::Compensating, &[("a", RUN)]);
    story.done("a");
    story.expect(Status::Compensating, &[("a", UNDO)]);
    story.undone("a");
    story.expect(Status::Compensated, &[]);
}

#[test]
fn a_sibling_that_fails_while_the_saga_unwinds_is_not_attempted_again() {
    let mut story = Story::of(a_beside_b);
    story.fails("b", FailureKind::Business, false);
    story.fails("a", FailureKind::TimedOut, true);
    story.expect(Status::Compensating, &[("a", UNDO)]);
}

// ---------------------------------------------------------------- undos that fail

fn stuck_in_the_undo_of_b() -> Story {
    let mut story = Story::of(|s: Saga<()>| async move {
        a_then_b(s.clone()).await?;
        told(step(&s, "c")).await
    });
    story.done("a");
    story.done("b");
    story.fails("c", FailureKind::Business, false);
    story.undo_fails("b");
    story.expect(Status::Compensating, &[("a", UNDO)]);
    story.undone("a");
    story.expect(Status::Stuck, &[]);
    story
}

#[test]
fn an_exhausted_undo_is_retried_by_a_person() {
    let mut story = stuck_in_the_undo_of_b();
    story.tell(Event::Retry);
    story.expect(Status::Compensating, &[("b", UNDO)]);
    story.undone("b");
    story.expect(Status::Compensated, &[]);
}

#[test]
fn an_exhausted_undo_is_skipped_by_a_person() {
    let mut story = stuck_in_the_undo_of_b();
    story.tell(Event::Skip(1));
    story.expect(Status::Compensated, &[]);
    assert_eq!(story.op("b").undo, UndoState::Skipped);
}

#[test]
fn an_exhausted_undo_is_resolved_by_a_person() {
    let mut story = stuck_in_the_undo_of_b();
    assert!(matches!(story.refusal(Event::Resolve(0, Blob::default())), Refusal::StepNotStuck(_)));
    assert!(matches!(story.refusal(Event::Skip(9)), Refusal::NoSuchStep(_)));
    story.tell(Event::Resolve(1, Blob::default()));
    story.expect(Status::Compensated, &[]);
    assert_eq!(story.op("b").undo, UndoState::Resolved);
}

#[test]
fn an_undo_is_attempted_as_often_as_its_policy_says() {
    let mut story = Story::of(|s: Saga<()>| async move {
        told(step(&s, "a").undo_attempts(2)).await?;
        told(step(&s, "b")).await
    });
    story.done("a");
    story.fails("b", FailureKind::Business, false);
    story.answer("a", UNDO, false, failed(FailureKind::Transient, true));
    story.fire(TimerKey::UndoRetry(0));
    story.answer("a", UNDO, false, failed(FailureKind::Transient, true));
    story.expect(Status::Stuck, &[]);
}

// ---------------------------------------------------------------- pivots

#[test]
fn a_pivot_that_certainly_did_not_act_is_given_up_and_the_saga_compensated() {
    let mut story = Story::of(a_pivot_b);
    story.done("a");
    story.fails("pay", FailureKind::Business, false);
    story.expect(Status::Compensating, &[("a", UNDO)]);
}

#[test]
fn a_pivot_that_may_have_acted_is_tried_until_it_is_done() {
    let mut story = Story::of(a_pivot_b);
    story.done("a");
    story.fails("pay", FailureKind::TimedOut, true);
    for attempt in 2..6 {
        story.fire(TimerKey::Retry(1));
        story.fails("pay", FailureKind::Business, false);
        assert_eq!(story.alarms(), usize::from(attempt == 2), "one alarm, not one an attempt");
    }
    assert_eq!(story.refusal(Event::Cancel), Refusal::PastPivot);
    story.fire(TimerKey::Retry(1));
    story.done("pay");
    story.done("b");
    story.expect(Status::Completed, &[]);
}

#[test]
fn a_step_after_the_pivot_is_tried_until_it_is_done() {
    let mut story = Story::of(a_pivot_b);
    story.done("a");
    story.done("pay");
    for _ in 0..5 {
        story.fails("b", FailureKind::Business, false);
        assert!(story.op("b").alarm);
        story.fire(TimerKey::Retry(2));
    }
    story.done("b");
    story.expect(Status::Completed, &[]);
}

#[test]
fn a_step_beside_a_pivot_that_may_have_acted_is_not_given_up() {
    let mut story = Story::of(|s: Saga<()>| async move {
        s.join(boxed(step(&s, "pay").pivot()), boxed(step(&s, "b"))).await.map(|(a, b)| a + b)
    });
    story.fails("pay", FailureKind::TimedOut, true);
    story.fails("b", FailureKind::Business, false);
    story.expect(Status::Waiting, &[]);
    story.fire(TimerKey::Retry(1));
    story.done("b");
    story.fire(TimerKey::Retry(0));
    story.done("pay");
    story.expect(Status::Completed, &[]);
}

#[test]
fn an_error_of_the_function_after_the_pivot_leaves_it_stuck_until_its_code_goes_on() {
    let mended = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&mended);
    let mut story = Story::of(move |s: Saga<()>| {
        let mended = Arc::clone(&switch);
        async move {
            told(step(&s, "a")).await?;
            told(step(&s, "pay").pivot()).await?;
            if mended.load(Ordering::Relaxed) { Ok(7) } else { Err(SagaError::business("a bug")) }
        }
    });
    story.done("a");
    story.done("pay");
    story.expect(Status::Stuck, &[]);
    assert_eq!(story.machine.error().unwrap().kind, FailureKind::AfterPivot);
    story.tell(Event::Retry);
    story.expect(Status::Stuck, &[]);
    mended.store(true, Ordering::Relaxed);
    story.tell(Event::Retry);
    story.expect(Status::Completed, &[]);
    assert!(story.machine.ops().iter().all(|op| op.undo == UndoState::None));
}

// ---------------------------------------------------------------- restart

#[test]
fn a_restart_undoes_the_later_steps_and_runs_them_under_the_next_generation() {
    let mut story = Story::of(a_then_b);
    story.done("a");
    story.tell(Event::Pause);
    story.done("b");
    story.expect(Status::Completed, &[]);
    story.tell(Event::Restart(1));
    story.expect(Status::Compensating, &[("b", UNDO)]);
    story.undone("b");
    story.expect(Status::Running, &[("b", RUN)]);
    assert_eq!((story.op("a").generation, story.op("b").generation), (0, 1));
    let late = Event::Attempted {
        op: 1,
        generation: 0,
        direction: RUN,
        earlier: false,
        attempt: Attempt::Done(Blob::of(&99u64).unwrap()),
        turn: None,
    };
    story.tell(late);
    assert_eq!(story.op("b").state, OpState::InFlight, "an answer of generation 0 is not its answer");
    story.done("b");
    story.expect(Status::Completed, &[]);
}

#[test]
fn a_restart_inside_a_parallel_group_keeps_the_other_branch() {
    let mut story = Story::of(a_beside_b);
    story.done("a");
    story.done("b");
    story.tell(Event::Restart(1));
    story.undone("b");
    story.expect(Status::Running, &[("b", RUN)]);
    story.crash();
    story.done("b");
    story.expect(Status::Completed, &[]);
    assert_eq!(story.op("a").undo, UndoState::None);
}

#[test]
fn a_restart_of_a_saga_paused_before_its_other_branch_began_begins_that_too() {
    let mut story = Story::of(|s: Saga<()>| async move {
        told(step(&s, "a")).await?;
        a_beside(&s).await
    });
    async fn a_beside(s: &Saga<()>) -> Result<u64, SagaError> {
        let (b, c) = s.join(boxed(step(s, "b")), boxed(step(s, "c"))).await?;
        Ok(b + c)
    }
    story.tell(Event::Pause);
    story.done("a");
    story.expect(Status::Paused, &[]);
    story.tell(Event::Restart(2));
    story.expect(Status::Running, &[("b", RUN), ("c", RUN)]);
    story.done("b");
    story.done("c");
    story.expect(Status::Completed, &[]);
}

#[test]
fn a_restart_does_not_give_up_an_earlier_step_that_keeps_failing() {
    let mut story = Story::of(a_beside_b);
    story.tell(Event::Pause);
    story.tell(Event::Restart(1));
    story.fails("a", FailureKind::Transient, false);
    story.done("b");
    story.undone("b");
    story.expect(Status::Running, &[("b", RUN)]);
    story.done("b");
    story.fire(TimerKey::Retry(0));
    story.done("a");
    story.expect(Status::Completed, &[]);
}

#[test]
fn a_restart_of_operations_made_in_one_order_and_awaited_in_another_matches_its_journal() {
    let mut story = Story::of(|s: Saga<()>| async move {
        let (a, b) = (step(&s, "a"), step(&s, "b"));
        Ok(told(b).await? + told(a).await?)
    });
    story.done("b");
    story.done("a");
    story.tell(Event::Restart(1));
    story.undone("b");
    story.expect(Status::Running, &[("b", RUN)]);
    story.crash();
    story.done("b");
    story.expect(Status::Completed, &[]);
}

#[test]
fn a_result_from_before_a_restart_is_told_to_no_other_operation() {
    // Which of the branches goes on first decides the numbers of what they ask for next.
    let mut story = Story::of(|s: Saga<()>| async move {
        let branch = |first: &'static str, second: &'static str| {
            let s = s.clone();
            let branch: std::pin::Pin<Box<dyn Future<Output = Result<u64, SagaError>> + Send>> =
                Box::pin(async move {
                    told(step(&s, first)).await?;
                    told(step(&s, second)).await
                });
            branch
        };
        let all = s.join_all(vec![branch("a", "a2"), branch("b", "b2"), branch("c", "c2")]);
        all.await.map(|all: Vec<u64>| all.iter().sum())
    });
    for name in ["c", "c2", "b", "b2", "a", "a2"] {
        story.done(name);
    }
    assert_eq!((story.number("c"), story.number("c2"), story.number("a2")), (2, 3, 5));
    story.tell(Event::Restart(2));
    for name in ["a2", "b2", "c2", "c"] {
        story.undone(name);
    }
    // Had the results of a and b been told in the first turn, a2 would have taken the number of b.
    assert_eq!((story.number("a"), story.number("b"), story.number("c")), (0, 1, 2));
    story.done("c");
    story.crash();
    for name in ["a2", "b2", "c2"] {
        story.done(name);
    }
    story.expect(Status::Completed, &[]);
}

#[test]
fn a_restart_past_a_pivot_is_refused_and_one_behind_it_is_not() {
    let mut story = Story::of(a_pivot_b);
    story.done("a");
    assert_eq!(story.refusal(Event::Restart(0)), Refusal::NotStill);
    story.done("pay");
    story.done("b");
    assert_eq!(story.refusal(Event::Restart(1)), Refusal::PastPivot);
    assert_eq!(story.refusal(Event::Restart(0)), Refusal::PastPivot);
    story.tell(Event::Restart(2));
    story.undone("b");
    story.done("b");
    story.expect(Status::Completed, &[]);
}

#[test]
fn a_restart_is_refused_when_an_earlier_step_was_undone() {
    let mut story = stuck_in_the_undo_of_b();
    assert!(matches!(story.refusal(Event::Restart(1)), Refusal::EarlierUndone(_)));
    story.tell(Event::Skip(1));
    story.tell(Event::Restart(0));
    story.expect(Status::Running, &[("a", RUN)]);
}

#[test]
fn a_deadline_that_passes_during_a_restart_is_not_lost() {
    let start = Start { deadline: Some(Duration::from_secs(9)), ..Start::default() };
    let mut story = Story::with(start, a_then_b);
    story.done("a");
    story.tell(Event::Pause);
    story.tell(Event::Restart(1));
    story.fire(TimerKey::Deadline);
    story.done("b");
    story.undone("b");
    story.undone("a");
    story.expect(Status::Compensated, &[]);
}

// ---------------------------------------------------------------- cancel, deadline, pause

#[test]
fn a_deadline_cancels_and_past_the_pivot_only_warns() {
    let start = || Start { deadline: Some(Duration::from_secs(9)), ..Start::default() };
    let mut story = Story::with(start(), a_then_b);
    story.done("a");
    story.fire(TimerKey::Deadline);
    story.expect(Status::Compensating, &[("b", RUN)]);
    assert_eq!(story.machine.error().unwrap().kind, FailureKind::Deadline);

    let mut story = Story::with(start(), a_pivot_b);
    story.done("a");
    story.done("pay");
    story.fire(TimerKey::Deadline);
    assert_eq!(story.alarms(), 1);
    story.expect(Status::Running, &[("b", RUN)]);
}

#[test]
fn a_cancel_is_taken_in_every_state_that_may_go_back() {
    let mut story = Story::of(a_then_b);
    story.tell(Event::Cancel);
    story.expect(Status::Compensating, &[("a", RUN)]);
    assert_eq!(story.refusal(Event::Cancel), Refusal::Compensating);
    story.done("a");
    story.undone("a");
    assert_eq!(story.refusal(Event::Cancel), Refusal::Ended(Status::Compensated));

    let mut waiting = Story::of(|s: Saga<()>| async move { s.signal::<u64>("go").await });
    waiting.tell(Event::Cancel);
    waiting.expect(Status::Compensated, &[]);

    let mut backing_off = Story::of(a_then_b);
    backing_off.fails("a", FailureKind::TimedOut, true);
    backing_off.tell(Event::Cancel);
    backing_off.expect(Status::Compensating, &[("a", UNDO)]);

    let mut paused = Story::of(a_then_b);
    paused.tell(Event::Pause);
    paused.tell(Event::Cancel);
    paused.done("a");
    paused.expect(Status::Paused, &[]);
    paused.tell(Event::Resume);
    paused.expect(Status::Compensating, &[("a", UNDO)]);

    let mut stuck = Story::of(a_then_b);
    stuck.done("a");
    stuck.fails("b", FailureKind::Fatal, true);
    stuck.expect(Status::Stuck, &[]);
    stuck.tell(Event::Cancel);
    stuck.expect(Status::Compensating, &[("b", UNDO)]);

    let mut queued = Story::with(limited(), a_then_b);
    queued.tell(Event::Cancel);
    queued.expect(Status::Compensated, &[]);
    queued.tell(Event::Granted);
    assert_eq!(queued.commands, [Command::Release], "the place that came too late goes back");
}

#[test]
fn a_retry_of_a_paused_saga_begins_nothing() {
    let mut story = Story::of(|s: Saga<()>| async move {
        s.join(boxed(step(&s, "pay").pivot()), boxed(step(&s, "b"))).await.map(|(a, b)| a + b)
    });
    story.fails("b", FailureKind::Business, false);
    story.fails("pay", FailureKind::TimedOut, true);
    story.tell(Event::Pause);
    assert_eq!(story.refusal(Event::Retry), Refusal::NothingToRetry);
    story.expect(Status::Paused, &[]);
    story.tell(Event::Resume);
    story.expect(Status::Compensating, &[("pay", RUN)]);
}

#[test]
fn a_paused_saga_takes_answers_and_begins_nothing() {
    let mut story = Story::of(a_then_b);
    story.tell(Event::Pause);
    story.done("a");
    story.expect(Status::Paused, &[]);
    assert_eq!(story.op("b").state, OpState::Held);
    story.tell(Event::Resume);
    story.expect(Status::Running, &[("b", RUN)]);
    assert_eq!(story.refusal(Event::Resume), Refusal::NotPaused);
}

// ---------------------------------------------------------------- children

async fn child_then_b(s: Saga<()>) -> Result<u64, SagaError> {
    let one: u64 = s.child("inner", &1u64).await?;
    Ok(one + told(step(&s, "b")).await?)
}

fn ended(result: Result<u64, Failure>) -> Event {
    Event::ChildEnded { op: 0, generation: 0, result: result.map(|value| Blob::of(&value).unwrap()) }
}

#[test]
fn a_child_that_completed_is_undone_with_its_parent() {
    let mut story = Story::of(child_then_b);
    assert!(story.commands.contains(&Command::StartChild(0)));
    story.tell(ended(Ok(3)));
    story.fails("b", FailureKind::Business, false);
    assert!(story.commands.contains(&Command::UndoChild(0)));
    story.tell(Event::ChildUndone {
        op: 0,
        generation: 0,
        failure: Some(Failure::new(FailureKind::Child, "stuck")),
    });
    story.expect(Status::Stuck, &[]);
    story.tell(Event::Retry);
    assert!(story.commands.contains(&Command::UndoChild(0)));
    story.tell(Event::ChildUndone { op: 0, generation: 0, failure: None });
    story.expect(Status::Compensated, &[]);
}

#[test]
fn a_child_that_failed_needs_no_undo() {
    let mut story = Story::of(child_then_b);
    story.tell(ended(Err(Failure::new(FailureKind::Child, "no"))));
    story.expect(Status::Compensated, &[]);
}

#[test]
fn a_child_whose_answer_could_not_be_kept_is_undone() {
    let mut story = Story::of(child_then_b);
    story.tell(ended(Err(Failure::new(FailureKind::Fatal, "too much"))));
    story.expect(Status::Stuck, &[]);
    story.tell(Event::Cancel);
    assert!(story.commands.contains(&Command::UndoChild(0)));
    story.tell(Event::ChildUndone { op: 0, generation: 0, failure: None });
    story.expect(Status::Compensated, &[]);
}

#[test]
fn the_cancellation_of_a_child_survives_a_crash() {
    let mut story = Story::of(child_then_b);
    story.tell(Event::Cancel);
    assert!(story.commands.contains(&Command::CancelChild(0)));
    assert_eq!(story.machine.outstanding(), [Command::StartChild(0), Command::CancelChild(0)]);
    story.tell(ended(Ok(3)));
    assert!(story.commands.contains(&Command::UndoChild(0)), "it completed before it was cancelled");
}

#[test]
fn a_child_tells_its_parent_once_and_undoes_itself_when_asked() {
    let mut story = Story::with(Start { concurrency: Some(1), ..child() }, a_then_b);
    story.tell(Event::Granted);
    story.tell(Event::Pause);
    story.done("a");
    story.tell(Event::Resume);
    story.tell(Event::Pause);
    story.done("b");
    let told = Command::TellParent(Ok(Blob::of(&2u64).unwrap()));
    assert_eq!(story.commands.iter().filter(|c| **c == told).count(), 1);
    assert_eq!(story.commands.iter().filter(|c| **c == Command::Release).count(), 1);
    assert_eq!(story.refusal(Event::Restart(0)), Refusal::IsChild);
    story.tell(Event::Compensate);
    story.expect(Status::Compensating, &[("b", UNDO)]);
    assert_eq!(story.refusal(Event::Restart(0)), Refusal::NotStill);
    story.undo_fails("b");
    story.undone("a");
    assert_eq!(story.refusal(Event::Restart(0)), Refusal::IsChild, "its parent waits for its undo");
    story.tell(Event::Skip(1));
    assert!(story.commands.contains(&Command::TellParentUndone(None)));
    assert!(!story.commands.contains(&Command::Release), "the place went back when it completed");
    story.tell(Event::Compensate);
    assert_eq!(story.commands, [Command::TellParentUndone(None)], "asked again, it says so again");
}

// ---------------------------------------------------------------- the function

#[test]
fn a_panic_of_the_function_leaves_it_stuck_until_it_is_retried() {
    let mended = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&mended);
    let mut story = Story::of(move |s: Saga<()>| {
        let mended = Arc::clone(&switch);
        async move {
            let one = told(step(&s, "a")).await?;
            assert!(mended.load(Ordering::Relaxed), "a bug in the function");
            Ok(one)
        }
    });
    story.done("a");
    story.expect(Status::Stuck, &[]);
    assert_eq!(story.machine.error().unwrap().kind, FailureKind::BodyPanicked);
    story.tell(Event::Retry);
    story.expect(Status::Stuck, &[]);
    mended.store(true, Ordering::Relaxed);
    story.tell(Event::Retry);
    story.expect(Status::Completed, &[]);
}

#[test]
fn a_turn_that_asks_for_something_else_counts_for_nothing() {
    let mut story = Story::of(a_then_b);
    let turn = Turn {
        index: 1,
        fed: vec![0],
        ops: vec![
            NewOp { number: 1, name: "new".into(), what: What::Sleep { length: Duration::ZERO } },
            NewOp { number: 0, name: "another".into(), what: What::Sleep { length: Duration::ZERO } },
        ],
        ..Turn::default()
    };
    story.under_way.clear();
    story.tell(Event::Attempted {
        op: 0,
        generation: 0,
        direction: RUN,
        earlier: false,
        attempt: Attempt::Done(Blob::of(&1u64).unwrap()),
        turn: Some(turn),
    });
    story.expect(Status::Stuck, &[]);
    assert_eq!(story.machine.ops().len(), 1);
    story.tell(Event::Retry);
    story.expect(Status::Running, &[("b", RUN)]);
}

#[test]
fn a_turn_of_a_copy_left_behind_leads_to_a_rebuild() {
    let mut story = Story::of(a_then_b);
    story.under_way.clear();
    story.tell(Event::Attempted {
        op: 0,
        generation: 0,
        direction: RUN,
        earlier: false,
        attempt: Attempt::Done(Blob::of(&1u64).unwrap()),
        turn: Some(Turn { index: 7, fed: vec![0], ..Turn::default() }),
    });
    assert!(story.commands.contains(&Command::Drive { rebuild: true }));
    story.expect(Status::Running, &[("b", RUN)]);
}

#[test]
fn a_turn_of_the_generation_before_a_restart_leads_to_a_rebuild() {
    let mut story = Story::of(a_then_b);
    story.done("a");
    story.done("b");
    story.tell(Event::Restart(0));
    story.undone("b");
    story.undone("a");
    let mut machine = story.machine;
    let mut tell = |event| machine.handle(Time(0), &mut Random::new(1), event, &mut Vec::new());
    let attempt = Attempt::Done(Blob::of(&1u64).unwrap());
    tell(Event::Attempted { op: 0, generation: 1, direction: RUN, earlier: false, attempt, turn: None })
        .unwrap();
    let what = What::Sleep { length: Duration::ZERO };
    let ops = vec![NewOp { number: 1, name: "of the result before".into(), what }];
    let late = Turn { index: 1, generation: 0, fed: vec![0], ops, ..Turn::default() };
    tell(Event::Driven(Turn { index: 1, generation: 1, ..Turn::default() })).unwrap();
    tell(Event::Driven(Turn { index: 2, ..late })).unwrap();
    assert_eq!(machine.ops().len(), 1, "{:?}", machine.ops());
    assert!(machine.outstanding().contains(&Command::Drive { rebuild: true }));
}

#[test]
fn a_bug_in_a_step_stops_the_saga_and_compensates_nothing() {
    let mut story = Story::of(a_then_b);
    story.done("a");
    story.fails("b", FailureKind::Fatal, true);
    story.expect(Status::Stuck, &[]);
    story.tell(Event::Retry);
    story.expect(Status::Running, &[("b", RUN)]);
    story.fails("b", FailureKind::Unregistered, false);
    story.tell(Event::Resolve(1, Blob::of(&4u64).unwrap()));
    story.expect(Status::Completed, &[]);
}

#[test]
fn an_attempt_answered_as_an_undo_does_not_lose_the_saga() {
    let mut story = Story::of(a_then_b);
    story.answer("a", RUN, false, Attempt::NotDefined);
    story.expect(Status::Stuck, &[]);
}

#[test]
fn a_step_that_lost_a_select_is_answered_before_the_saga_ends() {
    let mut story = Story::of(|s: Saga<()>| async move {
        let slow = boxed(step(&s, "slow"));
        let _ = s.select(s.sleep(Duration::from_secs(1)), slow).await;
        Ok(1)
    });
    story.fire(TimerKey::Wait(1));
    story.expect(Status::Running, &[("slow", RUN)]);
    story.fails("slow", FailureKind::Fatal, true);
    story.expect(Status::Stuck, &[]);
    story.tell(Event::Retry);
    assert!(!story.commands.iter().any(|c| matches!(c, Command::Drive { .. })), "the function has ended");
    story.done("slow");
    story.expect(Status::Completed, &[]);
}

// ---------------------------------------------------------------- signals, start, limits

#[test]
fn a_signal_that_came_early_is_kept_and_one_too_late_is_refused() {
    let wait = |s: Saga<()>| async move {
        told(step(&s, "a")).await?;
        s.signal::<u64>("go").within(Duration::from_secs(9)).await
    };
    let mut story = Story::of(wait);
    story.tell(signal("go"));
    story.done("a");
    story.expect(Status::Completed, &[]);
    assert_eq!(story.machine.output().unwrap().read::<u64>().unwrap(), 5);
    assert_eq!(story.refusal(signal("go")), Refusal::Ended(Status::Completed));

    let mut story = Story::of(wait);
    story.done("a");
    story.fire(TimerKey::Wait(1));
    story.expect(Status::Compensating, &[("a", UNDO)]);
    assert_eq!(story.refusal(signal("go")), Refusal::Compensating);

    let mut story = Story::of(wait);
    story.done("a");
    story.tell(signal("go"));
    assert!(story.commands.contains(&Command::CancelTimer(TimerKey::Wait(1))));
}

#[test]
fn a_start_said_twice_is_one_saga_and_with_another_input_none() {
    let mut story = Story::of(a_then_b);
    story.done("a");
    let before = story.machine.clone();
    story.now = Time(77);
    let same = Start { name: "story".into(), version: 2, ..Start::default() };
    story.tell(Event::Start(Box::new(same)));
    assert_eq!(story.machine, before);
    let other = Start { name: "story".into(), input: Blob::of(&1).unwrap(), ..Start::default() };
    assert_eq!(story.refusal(Event::Start(Box::new(other))), Refusal::OtherInput);
    let mut nobody = Machine::default();
    let refused = nobody.handle(Time(0), &mut Random::new(1), Event::Cancel, &mut Vec::new());
    assert_eq!(refused, Err(Refusal::NoSuchSaga));
}

#[test]
fn a_place_answered_while_stuck_is_kept_for_the_retry() {
    let mended = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&mended);
    let mut story = Story::with(limited(), move |s: Saga<()>| {
        let mended = Arc::clone(&switch);
        async move {
            assert!(mended.load(Ordering::Relaxed), "a bug in the function");
            told(step(&s, "a")).await
        }
    });
    story.expect(Status::Stuck, &[]);
    story.tell(Event::Granted);
    assert!(story.commands.is_empty());
    mended.store(true, Ordering::Relaxed);
    story.tell(Event::Retry);
    story.expect(Status::Running, &[("a", RUN)]);
    story.tell(Event::Granted);
    assert!(story.commands.is_empty(), "the same place, said twice");
    story.done("a");
    assert_eq!(story.commands.iter().filter(|c| **c == Command::Release).count(), 1);
}

#[test]
fn no_more_than_a_thousand_signals_wait() {
    let mut story = Story::of(a_then_b);
    for _ in 0..SIGNALS {
        story.tell(signal("x"));
    }
    assert_eq!(story.refusal(signal("x")), Refusal::TooManySignals);
}

#[test]
fn a_saga_of_too_many_operations_is_stuck_and_a_long_one_is_undone_to_its_end() {
    let mut story = Story::of(|s: Saga<()>| async move {
        loop {
            told(step(&s, "again")).await?;
        }
    });
    let answer = |story: &mut Story, op: OpNumber, direction| {
        let attempt = Attempt::Done(Blob::of(&1u64).unwrap());
        story.under_way.clear();
        story.tell(Event::Attempted { op, generation: 0, direction, earlier: false, attempt, turn: None });
    };
    for op in 0..OPS as OpNumber {
        answer(&mut story, op, RUN);
    }
    story.expect(Status::Stuck, &[]);
    story.tell(Event::Cancel);
    for op in (0..OPS as OpNumber).rev() {
        answer(&mut story, op, UNDO);
    }
    story.expect(Status::Compensated, &[]);
}

#[test]
fn an_answer_to_an_abandoned_saga_changes_nothing() {
    let mut story = Story::with(limited(), a_beside_b);
    story.tell(Event::Granted);
    story.tell(Event::Abandon);
    assert!(story.commands.contains(&Command::Release));
    assert!(story.machine.outstanding().is_empty());
    let before = story.machine.clone();
    story.done("a");
    story.fails("b", FailureKind::Fatal, true);
    assert_eq!(story.machine, before);
    assert_eq!(story.refusal(Event::Abandon), Refusal::Ended(Status::Abandoned));
    assert_eq!(story.refusal(Event::Restart(0)), Refusal::Ended(Status::Abandoned));
}

#[test]
fn an_abandoned_saga_with_a_child_waits_for_nothing() {
    let mut story = Story::of(child_then_b);
    story.tell(Event::Abandon);
    assert!(story.machine.outstanding().is_empty());
}
