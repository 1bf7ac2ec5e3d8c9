//! The saga's function as the machine sees it: what a poll asks for, and what is refused.

use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_saga::event::{Attempt, Command, Direction, End, Event, Start, Turn};
use rallypoint_saga::function::{Either, Saga};
use rallypoint_saga::machine::Machine;
use rallypoint_saga::op::{Failure, FailureKind, Policy};
use rallypoint_saga::registry::Registry;
use rallypoint_saga::step::SagaError;
use rallypoint_saga::value::Blob;
use std::future::{Future, pending};
use std::time::Duration;

fn registry<F, Fut>(version: u32, function: F) -> Registry<()>
where
    F: Fn(Saga<()>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u64, SagaError>> + Send + 'static,
{
    Registry::new(()).saga("f", version, move |s: Saga<()>, (): ()| function(s))
}

async fn step(s: &Saga<()>, name: &str, value: u64) -> Result<u64, SagaError> {
    let step = s.step_as(name, Blob::of(&value).unwrap(), Policy::default());
    step.await.map_err(SagaError)?.read().map_err(SagaError::business)
}

fn done(value: u64) -> Result<Blob, Failure> {
    Ok(Blob::of(&value).unwrap())
}

/// The journal of a saga of this registry in which operation 0 is done and its turn taken.
fn journal(registry: &Registry<()>) -> Machine {
    let mut machine = Machine::default();
    let mut out = Vec::new();
    let mut runner = registry.begin("f", 1, "id", &Blob::default()).unwrap();
    let turn = Some(runner.turn(Vec::new()));
    let start = Start { name: "f".into(), version: 1, turn, ..Start::default() };
    let attempted = Event::Attempted {
        op: 0,
        generation: 0,
        direction: Direction::Run,
        earlier: false,
        attempt: Attempt::Done(Blob::of(&1u64).unwrap()),
        turn: Some(runner.turn(vec![(0, done(1))])),
    };
    for event in [Event::Start(Box::new(start)), attempted] {
        machine.handle(Time(0), &mut Random::new(1), event, &mut out).unwrap();
    }
    assert_eq!(machine.turns().len(), 2);
    assert!(!out.contains(&Command::Drive { rebuild: true }), "{out:?}");
    machine
}

fn broken(turn: &Turn) -> &Failure {
    match &turn.end {
        Some(End::Broken(failure)) => failure,
        end => panic!("it should be broken off, and is {end:?}"),
    }
}

#[test]
fn a_foreign_await_is_named_with_the_operation_before_it() {
    let registry = registry(1, |s: Saga<()>| async move {
        step(&s, "charge", 1).await?;
        pending::<()>().await;
        Ok(1)
    });
    let mut runner = registry.begin("f", 1, "id", &Blob::default()).unwrap();
    assert_eq!(runner.turn(Vec::new()).end, None);
    let turn = runner.turn(vec![(0, done(1))]);
    assert_eq!(broken(&turn).kind, FailureKind::ForeignAwait);
    assert!(broken(&turn).message.contains("after \"charge\""), "{}", broken(&turn).message);
    assert!(!runner.is_live());
}

#[test]
fn a_foreign_await_before_anything_else_says_so() {
    let registry = registry(1, |_| pending());
    let turn = registry.begin("f", 1, "id", &Blob::default()).unwrap().turn(Vec::new());
    assert!(broken(&turn).message.contains("before its first operation"));
}

#[test]
fn a_rebuild_names_the_turn_and_the_operation_that_differ() {
    let journal = journal(&registry(1, |s: Saga<()>| async move {
        step(&s, "reserve", 1).await?;
        step(&s, "charge", 2).await
    }));
    let cases: [(Registry<()>, &[&str]); 4] = [
        (
            registry(1, |s: Saga<()>| async move {
                step(&s, "reserve", 1).await?;
                step(&s, "ship", 2).await
            }),
            &["turn 1", "operation 1 \"charge\"", "asks for 1 \"ship\""],
        ),
        (
            registry(1, |s: Saga<()>| async move {
                step(&s, "reserve", 1).await?;
                step(&s, "charge", 3).await
            }),
            &["turn 1", "operation 1 \"charge\"", "another value"],
        ),
        (
            registry(1, |s: Saga<()>| async move { step(&s, "reserve", 1).await }),
            &["turn 1", "operation 1 \"charge\"", "asks for nothing"],
        ),
        (
            registry(1, |s: Saga<()>| async move {
                let (one, _) =
                    s.join(Box::pin(step(&s, "reserve", 1)), Box::pin(step(&s, "label", 1))).await?;
                Ok(one)
            }),
            &["turn 0", "operation 1 \"label\"", "the journal has none"],
        ),
    ];
    for (registry, parts) in cases {
        let failure = registry.rebuild("id", &journal).err().expect("it differs");
        assert_eq!(failure.kind, FailureKind::Mismatch);
        for part in parts {
            assert!(failure.message.contains(part), "{part:?} is not in {:?}", failure.message);
        }
    }
}

#[test]
fn another_version_is_refused_and_both_are_named() {
    let first = registry(1, |s: Saga<()>| async move {
        step(&s, "reserve", 1).await?;
        step(&s, "charge", 2).await
    });
    let second = registry(2, |s: Saga<()>| async move { step(&s, "other", 1).await });
    let failure = second.rebuild("id", &journal(&first)).err().expect("it is another version");
    assert!(failure.message.contains("version 1") && failure.message.contains("version 2"));
}

#[test]
fn the_loser_of_a_select_is_forgotten() {
    let registry = registry(1, |s: Saga<()>| async move {
        let timer = s.sleep(Duration::from_secs(9));
        match s.select(Box::pin(step(&s, "quick", 1)), timer).await {
            Either::First(one) => {
                step(&s, "next", 1).await?;
                one
            }
            Either::Second(_) => Ok(0),
        }
    });
    let mut runner = registry.begin("f", 1, "id", &Blob::default()).unwrap();
    let turn = runner.turn(Vec::new());
    let (sleep, quick) = (0, 1);
    let asked: Vec<(u32, &str)> = turn.ops.iter().map(|op| (op.number, op.name.as_str())).collect();
    assert_eq!(asked, [(quick, "quick"), (sleep, "sleep")], "numbers at creation, asked when polled");
    let turn = runner.turn(vec![(quick, done(1))]);
    assert_eq!(turn.forgotten, [sleep]);
    assert_eq!(turn.ops.len(), 1);
}

#[test]
fn what_was_never_awaited_is_never_asked_for() {
    let registry = registry(1, |s: Saga<()>| async move {
        let unused = s.step_as("unused", Blob::default(), Policy::default());
        let one = step(&s, "used", 1).await;
        drop(unused);
        one
    });
    let mut runner = registry.begin("f", 1, "id", &Blob::default()).unwrap();
    assert_eq!(runner.turn(Vec::new()).ops.iter().map(|op| op.number).collect::<Vec<_>>(), [1]);
    let turn = runner.turn(vec![(1, done(3))]);
    assert!(turn.forgotten.is_empty());
    assert_eq!(turn.end, Some(End::Completed(Blob::of(&3u64).unwrap())));
}
