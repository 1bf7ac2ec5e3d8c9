//! The storm test of a saga: what behaves comes through, what does not is caught by its rule.

mod participants;
mod report;
mod sagas;
mod shop;

use rallypoint::test::{SagaStorm, StormFailure, StormRule};
use shop::Shop;

/// The rule that is broken, as it must be.
fn caught(storm: SagaStorm<Shop>, rule: StormRule) -> StormFailure {
    match storm.try_storm() {
        Err(failure) if failure.rule == rule => failure,
        Err(failure) => panic!("expected the rule {rule:?}, not\n{failure}"),
        Ok(report) => panic!("expected the rule {rule:?}, and it came through: {report}"),
    }
}

fn case(failure: &StormFailure) -> String {
    failure.case.join("; ")
}
