//! The transfer in a storm: whatever goes wrong, the money is where it was, or where it belongs.

use bank::transfer::{Bank, Transfer, steps, transfer};
use rallypoint::test;

/// From an account with 100 cents to one with none.
fn storm(cents: i64) -> test::SagaStorm<Bank> {
    let transfer_of = Transfer { from: "alice".into(), to: "bob".into(), cents };
    test::saga(|| steps(&Bank::in_memory(&[("alice", 100), ("bob", 0)])), transfer, transfer_of)
}

#[test]
fn a_transfer_moves_its_money_once_or_not_at_all() {
    let report = storm(30)
        .all_or_nothing(|bank| {
            [("debit", bank.cents("alice") == Some(70)), ("credit", bank.cents("bob") == Some(30))]
        })
        .exactly_once(|bank| (bank.cents("alice"), bank.cents("bob")))
        .storm();
    assert_eq!(report.ends.len(), 2, "{report}");
}

#[test]
fn a_transfer_of_more_than_there_is_moves_nothing() {
    let report = storm(130)
        .all_or_nothing(|bank| {
            [("debit", bank.cents("alice") != Some(100)), ("credit", bank.cents("bob") != Some(0))]
        })
        .storm();
    assert_eq!(report.undone, ["post"], "a debit whose outcome is unknown is taken back too");
}
