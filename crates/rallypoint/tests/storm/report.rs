//! What a storm says: the same each time, readable by people and by programs.

use crate::caught;
use crate::shop::{Mutant, ordered};
use rallypoint::test::{StormFailure, StormReport, StormRule};

#[test]
fn the_same_seeds_give_the_same_report_byte_for_byte() {
    let report = || ordered(Mutant::None).seeds(7..20).try_storm().unwrap();
    let (one, two) = (report(), report());
    assert_eq!(serde_json::to_string(&one).unwrap(), serde_json::to_string(&two).unwrap());
    assert_eq!(one.to_string(), two.to_string());
    assert_eq!((one.seed, one.kinds["random"]), (7, 13));
    // Another seed, other waits.
    let other = ordered(Mutant::None).seeds(8..21).try_storm().unwrap();
    assert_ne!(one, other);
}

#[test]
fn a_failure_is_the_same_each_time() {
    let failure = || caught(ordered(Mutant::TakesLateOriginal).seeds(3..4), StormRule::AllOrNothing);
    let (one, two) = (failure(), failure());
    assert_eq!(serde_json::to_string(&one).unwrap(), serde_json::to_string(&two).unwrap());
    assert_eq!(one.to_string(), two.to_string());
}

#[test]
fn a_report_is_read_by_people_and_programs() {
    let report = ordered(Mutant::None).seeds(0..1).try_storm().unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["kinds"]["calm"], 1);
    assert!(json["ends"]["compensated"].as_u64().unwrap() > 0, "{json}");
    assert_eq!(serde_json::from_value::<StormReport>(json).unwrap(), report);
    let text = report.to_string();
    assert!(text.starts_with(&format!("the saga came through {} cases (seed 0): ", report.cases)), "{text}");
    assert!(text.contains("steps: do, tell; undone: do"), "{text}");
}

#[test]
fn a_failure_has_the_seed_and_the_losing_timeline() {
    let failure = caught(ordered(Mutant::TakesLateOriginal).seeds(3..4), StormRule::AllOrNothing);
    let json = serde_json::to_value(&failure).unwrap();
    assert_eq!((&json["seed"], &json["rule"]), (&3.into(), &"all_or_nothing".into()));
    assert_eq!(serde_json::from_value::<StormFailure>(json).unwrap(), failure);
    let text = failure.to_string();
    let expected = [
        "the saga broke the rule \"all or nothing\": it ended compensated, and the part \"reserve\" is there",
        "the original request of \"do\" (0) arrives after its undo",
        "seed 3; the same again: RALLYPOINT_SEED=3",
        "record 1  the saga begins; asks for \"do\" (0); running",
        "attempt 1 of \"do\" (0) begins",
        "\"do\" (0) acted",
        "attempt 1 of the undo of \"do\" (0) begins",
        "\"do\" (0) is undone; compensated",
        "LATE     the original request of \"do\" (0) arrives",
        "the late request of \"do\" (0) is accepted",
    ];
    let mut rest = text.as_str();
    for part in expected {
        let found = rest.find(part);
        assert!(found.is_some(), "{part:?} does not follow in\n{text}");
        rest = &rest[found.unwrap()..];
    }
    let numbers: Vec<u64> = failure.timeline.iter().map(|line| line.number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
}

#[test]
#[should_panic(expected = "RALLYPOINT_SEED=3")]
fn a_storm_that_is_lost_is_a_failed_test() {
    ordered(Mutant::TakesLateOriginal).seeds(3..4).storm();
}

/// A test of the user's that has a runtime of its own.
#[tokio::test]
async fn a_storm_within_a_runtime_runs_in_a_thread() {
    let report = ordered(Mutant::None).seeds(0..1).storm();
    assert_eq!(report.kinds["random"], 1);
}
