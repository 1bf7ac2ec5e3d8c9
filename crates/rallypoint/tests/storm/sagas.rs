//! Sagas: what the function may do, and what it does wrong.

use crate::shop::{Mutant, Shop, lock, shop, step, tell};
use crate::{case, caught};
use rallypoint::test::{SagaStorm, StormRule, saga};
use rallypoint::{Either, Registry, Saga, SagaError, Status, Step, StepCx, StepError, StepFailure};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn sound() -> Registry<Shop> {
    shop(Mutant::None)
}

/// All or nothing of these parts.
fn parts<const N: usize>(storm: SagaStorm<Shop>, parts: [&'static str; N]) -> SagaStorm<Shop> {
    storm.all_or_nothing(move |shop| parts.map(|part| (part, shop.has(part))))
}

// -------------------------------------------------------------------- what comes through

async fn everything(s: Saga<Shop>, _: u64) -> Result<bool, SagaError> {
    s.step(step("reserve")).await?;
    s.sleep(30 * DAY).await?;
    let told = s.run("look", || async { Ok::<_, StepError<String>>(4_u64) }).await?;
    let Ok(approved) = s.signal::<bool>("manager").within(DAY).await else {
        return Err(SagaError::business("nobody approved"));
    };
    let won = s.select(s.signal::<bool>("stop"), s.sleep(DAY)).await;
    let stopped = matches!(won, Either::First(Ok(true)));
    if told != 4 || stopped {
        return Err(SagaError::business("stopped"));
    }
    s.step(step("charge")).atomic().await?;
    Ok(approved)
}

#[test]
fn sleeps_closures_signals_and_selects_come_through() {
    let storm = saga(sound, everything, 1).signal("manager", &true).signal("stop", &false);
    let report = parts(storm, ["reserve", "charge"]).storm();
    assert_eq!(report.steps, ["do", "look"]);
    assert_eq!(report.kinds["signal"], 2, "early, and the manager never: {report}");
}

async fn parent(s: Saga<Shop>, order: u64) -> Result<u64, SagaError> {
    s.step(step("reserve")).await?;
    let paid: u64 = s.child("pay", &order).await?;
    s.step(step("ship")).await?;
    Ok(paid)
}

async fn pay(s: Saga<Shop>, order: u64) -> Result<u64, SagaError> {
    s.step(step("charge")).await?;
    s.step(step("receipt")).await?;
    Ok(order)
}

fn with_child(mutant: Mutant) -> SagaStorm<Shop> {
    let app = move || shop(mutant).saga("pay", 1, pay).concurrency(1).deadline(400 * DAY);
    parts(saga(app, parent, 17), ["reserve", "charge", "receipt", "ship"])
}

#[test]
fn a_child_comes_through() {
    let report = with_child(Mutant::None).storm();
    assert_eq!(report.ends.len(), 2, "{report}");
}

#[test]
fn what_a_childs_participants_do_wrong_is_caught() {
    let failure = caught(with_child(Mutant::UndoNeedsTheOutcome), StormRule::NeedsNobody);
    assert!(case(&failure).starts_with("\"do\""), "{failure}");
    // One whose own participant behaves, and the child's does not.
    async fn only_child(s: Saga<Shop>, order: u64) -> Result<u64, SagaError> {
        let paid = s.child("pay", &order).await?;
        s.step(tell("mail")).pivot().await?;
        Ok(paid)
    }
    let app = || shop(Mutant::TakesLateOriginal).saga("pay", 1, pay);
    let storm = parts(saga(app, only_child, 17), ["charge", "receipt", "mail"]);
    let failure = caught(storm, StormRule::AllOrNothing);
    assert!(case(&failure).contains("of child storm-1/0"), "{failure}");
}

/// Answers only from the second attempt on.
#[derive(Serialize, Deserialize)]
struct Hangs;

impl Step<Shop> for Hangs {
    const NAME: &'static str = "hangs";
    type Output = ();
    type Error = String;
    async fn run(&self, cx: StepCx<'_, Shop>) -> Result<(), StepError<String>> {
        if cx.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        cx.app().act("hangs", cx.key())
    }
    async fn undo(
        &self,
        cx: StepCx<'_, Shop>,
        _: rallypoint::StepOutcome<()>,
    ) -> Result<(), rallypoint::UndoError> {
        cx.app().take_back("hangs", cx.key_of().unwrap_or_default())
    }
}

#[test]
fn code_that_never_answers_is_an_attempt_without_an_answer() {
    async fn hangs(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.step(Hangs).timeout(Duration::from_secs(5)).await?;
        Ok(s.step(step("ship")).await.map(drop)?)
    }
    let report = parts(saga(|| sound().step::<Hangs>(), hangs, ()), ["hangs", "ship"]).storm();
    assert_eq!(report.steps, ["hangs", "do"]);
}

#[test]
fn a_saga_that_ends_compensated_with_nothing_wrong_comes_through() {
    async fn refused(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.step(step("reserve")).await?;
        Err(SagaError::business("not today"))
    }
    let report = parts(saga(sound, refused, ()), ["reserve"]).storm();
    assert_eq!(report.ends.keys().copied().collect::<Vec<_>>(), [Status::Compensated]);
}

#[test]
fn a_deadline_that_passes_in_virtual_time_comes_through() {
    async fn waits(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.step(step("reserve")).await?;
        s.sleep(30 * DAY).await
    }
    let storm = parts(saga(sound, waits, ()), ["reserve"]).deadline(DAY);
    let report = storm
        .holds("it is the deadline, or what went wrong", |_, end| match end.error() {
            Some(_) => Ok(()),
            None => Err("it had thirty days".into()),
        })
        .storm();
    assert_eq!(report.ends.keys().copied().collect::<Vec<_>>(), [Status::Compensated]);
}

// -------------------------------------------------------------------- what is caught

#[test]
fn a_step_that_should_have_an_undo_is_caught() {
    async fn order(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.step(tell("charge")).await?;
        s.step(step("ship")).await?;
        Ok(())
    }
    let failure = caught(parts(saga(sound, order, ()), ["charge", "ship"]), StormRule::AllOrNothing);
    assert!(failure.why.contains("compensated, and the part \"charge\" is there"), "{failure}");
    assert!(failure.timeline.iter().any(|line| line.text.contains("has no undo")), "{failure}");
    // Without anything to judge it by it is not a fault, and said all the same.
    let report = saga(sound, order, ()).storm();
    assert_eq!(report.without_undo, ["tell"]);
}

#[test]
fn a_function_with_a_counter_is_caught() {
    let counter = Arc::new(AtomicU64::new(0));
    let order = move |s: Saga<Shop>, _: ()| {
        let counter = Arc::clone(&counter);
        async move {
            let part = format!("part {}", counter.fetch_add(1, Ordering::SeqCst));
            s.step(step(&part)).await?;
            Ok(())
        }
    };
    let failure = caught(saga(sound, order, ()), StormRule::Deterministic);
    assert_eq!(case(&failure), "nothing goes wrong");
}

#[test]
fn a_function_whose_output_follows_from_nothing_is_caught() {
    let counter = Arc::new(AtomicU64::new(0));
    let order = move |s: Saga<Shop>, _: ()| {
        let counter = Arc::clone(&counter);
        async move {
            s.step(step("ship")).await?;
            Ok(counter.fetch_add(1, Ordering::SeqCst))
        }
    };
    let failure = caught(saga(sound, order, ()), StormRule::Deterministic);
    assert!(failure.why.contains("it ends with the output"), "{failure}");
}

#[test]
fn a_function_that_differs_only_where_something_failed_is_caught() {
    let counter = Arc::new(AtomicU64::new(0));
    let order = move |s: Saga<Shop>, _: ()| {
        let counter = Arc::clone(&counter);
        async move {
            if s.step(step("charge")).await.is_err() {
                let part = format!("part {}", counter.fetch_add(1, Ordering::SeqCst));
                s.step(step(&part)).await?;
            }
            Ok(())
        }
    };
    let failure = caught(saga(sound, order, ()), StormRule::Deterministic);
    assert_eq!(case(&failure), "\"do\" (0) is refused by the business each time");
}

#[test]
fn a_function_that_fails_after_its_pivot_is_caught() {
    async fn order(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.step(step("ship")).pivot().await?;
        Err(SagaError::business("changed my mind"))
    }
    let failure = caught(saga(sound, order, ()), StormRule::NeedsNobody);
    assert!(failure.why.contains("it failed after its pivot"), "{failure}");
}

/// Its participant says no.
#[derive(Serialize, Deserialize)]
struct Refused {
    swallows: bool,
}

impl Step<Shop> for Refused {
    const NAME: &'static str = "refused";
    type Output = ();
    type Error = String;
    async fn run(&self, _: StepCx<'_, Shop>) -> Result<(), StepError<String>> {
        if self.swallows { Ok(()) } else { Err(StepError::business("no".into())) }
    }
}

#[test]
fn a_step_after_the_pivot_that_is_refused_for_ever_is_caught() {
    async fn order(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.step(step("ship")).pivot().await?;
        s.step(Refused { swallows: false }).await?;
        Ok(())
    }
    let failure = caught(saga(|| sound().step::<Refused>(), order, ()), StormRule::Ends);
    assert!(failure.why.contains("\"refused\" cannot be given up and fails"), "{failure}");
    assert!(failure.timeline.len() < 200, "a line stands for what is left out");
}

#[test]
fn a_step_after_the_pivot_that_gives_up_by_itself_is_caught() {
    async fn order(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.step(step("ship")).pivot().await?;
        s.step(Refused { swallows: true }).await?;
        Ok(())
    }
    let storm = saga(|| sound().step::<Refused>(), order, ());
    let failure = caught(parts(storm, ["ship", "refused"]), StormRule::AllOrNothing);
    assert_eq!(failure.why, "it ended completed, and the part \"refused\" is missing");
}

#[test]
fn a_function_that_goes_on_without_a_step_is_caught() {
    async fn order(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        if let Err(StepFailure::Business(_)) = s.step(step("reserve")).await {
            // Somebody will see to it.
        }
        s.step(step("ship")).await?;
        Ok(())
    }
    let failure = caught(parts(saga(sound, order, ()), ["reserve", "ship"]), StormRule::AllOrNothing);
    assert_eq!(case(&failure), "\"do\" (0) is refused by the business each time");
}

#[test]
fn a_function_that_awaits_something_foreign_is_caught() {
    async fn order(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.step(step("reserve")).await?;
        std::future::pending::<()>().await;
        Ok(())
    }
    let failure = caught(saga(sound, order, ()), StormRule::NeedsNobody);
    assert!(failure.why.contains("awaits something foreign after \"do\""), "{failure}");
}

#[test]
fn a_function_that_panics_is_caught() {
    async fn order(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        if s.step(step("reserve")).await.is_err() {
            panic!("nobody thought of this");
        }
        Ok(())
    }
    let failure = caught(saga(sound, order, ()), StormRule::NeedsNobody);
    assert!(failure.why.contains("nobody thought of this"), "{failure}");
}

#[test]
fn a_signal_that_never_comes_is_caught() {
    async fn order(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.signal::<bool>("manager").await.map(drop)
    }
    let failure = caught(saga(sound, order, ()), StormRule::Signal);
    assert!(failure.why.contains(".signal(\"manager\", &value)"), "{failure}");
}

#[test]
fn what_is_not_registered_or_registered_twice_is_caught() {
    async fn order(s: Saga<Shop>, _: ()) -> Result<(), SagaError> {
        s.step(Hangs).await?;
        Ok(())
    }
    let failure = caught(saga(sound, order, ()), StormRule::NeedsNobody);
    assert!(failure.why.contains("no step is registered as \"hangs\""), "{failure}");
    let twice = || sound().step::<Hangs>().step::<Hangs>();
    let failure = caught(saga(twice, order, ()), StormRule::Setup);
    assert!(failure.why.contains("two steps are registered as \"hangs\""), "{failure}");
}

#[test]
fn what_does_not_hold_is_caught() {
    async fn order(s: Saga<Shop>, order: u64) -> Result<u64, SagaError> {
        s.step(step("reserve")).await?;
        Ok(order)
    }
    let storm = saga(sound, order, 17).holds("it is seventeen", |_, end| match end.output::<u64>() {
        Some(Ok(17)) => Ok(()),
        Some(output) => Err(format!("{output:?}")),
        None => Err(format!("{:?}", end.error().map(|error| &error.message))),
    });
    let failure = caught(storm, StormRule::Holds);
    let expected = "\"it is seventeen\" does not hold, it ended compensated: Some(\"refused by the storm\")";
    assert_eq!(failure.why, expected);
    assert!(lock(&sound().context().participants).is_empty());
}
