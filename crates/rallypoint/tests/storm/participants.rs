//! Participants: those that do what they must come through; each that does not is caught.

use crate::shop::{Mutant, ordered};
use crate::{case, caught};
use rallypoint::test::StormRule;

#[test]
fn an_order_over_participants_that_do_what_they_must_comes_through() {
    let report = ordered(Mutant::None).exactly_once(|shop| shop.counts()).storm();
    for kind in [
        "calm",
        "built anew",
        "step fails",
        "executed twice",
        "undo fails",
        "late original",
        "cancel",
        "crash",
        "crash in a recovery",
        "random",
    ] {
        assert!(report.kinds.get(kind).is_some_and(|count| *count > 0), "{kind}: {report}");
    }
    assert!(report.cases > 1_000 && report.ends.len() == 2, "{report}");
    assert!(report.crashes > 0 && report.late > 0 && report.compared > 0 && report.helped > 0, "{report}");
    assert_eq!(report.left_out, 0, "{report}");
}

#[test]
fn one_that_acts_on_a_repetition_is_caught() {
    let failure = caught(ordered(Mutant::ActsOnRepetition), StormRule::AllOrNothing);
    assert_eq!(case(&failure), "\"do\" (0) acts and its answer is lost at first");
    assert_eq!(failure.why, "it ended completed, and the part \"reserve\" is missing");
}

#[test]
fn one_that_acts_on_a_repetition_is_caught_by_its_books() {
    let storm = ordered(Mutant::ActsOnRepetition).exactly_once(|shop| shop.counts());
    let failure = storm.try_storm().unwrap_err();
    assert_eq!(failure.rule, StormRule::AllOrNothing, "{failure}");
    let only = crate::shop::unjudged(Mutant::ActsOnRepetition).exactly_once(|shop| shop.counts());
    let failure = only.try_storm().unwrap_err();
    assert_eq!(failure.rule, StormRule::ExactlyOnce, "{failure}");
}

#[test]
fn one_that_looks_before_it_acts_is_caught() {
    let failure = caught(ordered(Mutant::LooksBeforeItActs), StormRule::AllOrNothing);
    assert_eq!(case(&failure), "\"do\" (0) is executed twice at once under one key at first");
}

#[test]
fn one_that_refuses_a_repetition_is_caught() {
    let failure = caught(ordered(Mutant::RefusesRepetition), StormRule::Repeatable);
    assert!(failure.why.ends_with("under the same key: this key was used"), "{failure}");
}

#[test]
fn one_that_takes_an_original_after_its_undo_is_caught() {
    let failure = caught(ordered(Mutant::TakesLateOriginal), StormRule::AllOrNothing);
    assert!(
        case(&failure).contains("the original request of \"do\" (0) arrives after its undo"),
        "{failure}"
    );
    assert!(failure.why.contains("it ended compensated"), "{failure}");
}

#[test]
fn an_undo_that_fails_where_nothing_was_there_is_caught() {
    let failure = caught(ordered(Mutant::UndoNeedsTheStep), StormRule::NeedsNobody);
    assert_eq!(case(&failure), "\"do\" (0) does not act and gives no answer each time");
    assert!(failure.why.contains("there is nothing under this key"), "{failure}");
}

#[test]
fn an_undo_that_looks_before_it_leaves_its_mark_is_caught() {
    let failure = caught(ordered(Mutant::UndoLooksBeforeItMarks), StormRule::AllOrNothing);
    let expected = "the original request of \"do\" (0) arrives while its undo is under way";
    assert!(case(&failure).ends_with(expected), "{failure}");
}

#[test]
fn an_undo_that_fails_on_an_unknown_outcome_is_caught() {
    let failure = caught(ordered(Mutant::UndoNeedsTheOutcome), StormRule::NeedsNobody);
    assert_eq!(case(&failure), "\"do\" (0) acts and its answer is lost each time");
    assert!(failure.why.contains("is exhausted: there is no receipt"), "{failure}");
}

#[test]
fn an_undo_that_swallows_an_error_is_caught() {
    let failure = caught(ordered(Mutant::UndoSwallowsErrors), StormRule::AllOrNothing);
    assert!(failure.why.contains("compensated, and the part \"reserve\" is there"), "{failure}");
}

#[test]
fn an_undo_that_undoes_on_each_repetition_is_caught() {
    let storm = ordered(Mutant::UndoesOnRepetition).exactly_once(|shop| shop.counts());
    let failure = storm.try_storm().unwrap_err();
    assert_eq!(failure.rule, StormRule::ExactlyOnce, "{failure}");
    assert!(case(&failure).contains("the undo of \"do\""), "{failure}");
}

#[test]
fn an_undo_that_forgets_half_of_what_was_done_is_caught() {
    let failure = caught(ordered(Mutant::UndoForgetsTheFirstHalf), StormRule::AllOrNothing);
    assert!(case(&failure).starts_with("\"do\" (0)"), "{failure}");
}

#[test]
fn what_needs_several_faults_at_once_is_caught_by_a_mixture_and_made_small() {
    let enumerated = ordered(Mutant::LosesItsWay).seeds(0..0).try_storm();
    assert!(enumerated.is_ok(), "{enumerated:?}");
    let failure = caught(ordered(Mutant::LosesItsWay).seeds(0..500), StormRule::AllOrNothing);
    assert!(failure.number > enumerated.unwrap().cases, "{failure}");
    assert!(failure.why.contains("it ended compensated"), "{failure}");
    assert!(failure.case.iter().any(|line| line.starts_with("the undo of \"do\"")), "{failure}");
    // Nothing is left in it that it could do without.
    assert!(failure.case.len() <= 4, "{failure}");
    // The seed alone brings it back.
    let seed = failure.seed;
    let again = caught(ordered(Mutant::LosesItsWay).seeds(seed..seed + 1), StormRule::AllOrNothing);
    assert_eq!((again.case, again.why), (failure.case, failure.why));
}
