//! Is the function deterministic? It is built anew from every prefix of a journal, twice.
//!
//! Decides whether two turns are the same. Built twice from one prefix it must say the same twice,
//! and told what it was told, it must say what was journaled.

use super::report::StormRule;
use super::rules::{Broken, broken};
use super::world::{Log, fold, unfed};
use rallypoint_saga::event::{End, Event, Turn};
use rallypoint_saga::function::{Runner, resolution};
use rallypoint_saga::machine::Machine;
use rallypoint_saga::op::{Failure, FailureKind, NewOp};
use rallypoint_saga::registry::Registry;

/// Compares every turn of a journal, and those that could follow on each prefix; how many it was.
pub(super) fn retrace<C: Send + Sync + 'static>(
    registry: &Registry<C>,
    seed: u64,
    saga: &str,
    log: &Log,
) -> Result<u64, Broken> {
    let mut compared = 0;
    let mut machine = Machine::default();
    for (index, record) in log.iter().enumerate() {
        let before = machine.clone();
        fold(&mut machine, seed, saga, index, record);
        let at = |what: &str| format!("{what} after record {} of {saga:?}", index + 1);
        if let Some(journaled) = turn_of(&record.1)
            && machine.turns().len() > before.turns().len()
            && let Some(mut live) = built(registry, saga, &before, &machine)?
        {
            let results = journaled.fed.iter().filter_map(|&op| Some((op, resolution(&machine, op)?)));
            let turn = live.turn(results.collect());
            same(&turn, journaled, &at("built anew and told the same, the function says something else"))?;
            compared += 1;
        }
        let pair = (built(registry, saga, &machine, &machine)?, built(registry, saga, &machine, &machine)?);
        if let (Some(mut one), Some(mut two)) = pair {
            let (one, two) = (one.turn(unfed(&machine)), two.turn(unfed(&machine)));
            same(&one, &two, &at("two copies of the function, told the same, say two things"))?;
            compared += 1;
        }
    }
    Ok(compared)
}

fn turn_of(event: &Event) -> Option<&Turn> {
    match event {
        Event::Start(start) => start.turn.as_ref(),
        Event::Attempted { turn, .. } => turn.as_ref(),
        Event::Driven(turn) => Some(turn),
        _ => None,
    }
}

/// The function as it stood at `at`; a saga that is new there begins as it did in `later`.
fn built<C: Send + Sync + 'static>(
    registry: &Registry<C>,
    saga: &str,
    at: &Machine,
    later: &Machine,
) -> Result<Option<Runner>, Broken> {
    let built = match at.is_new() {
        true => registry.begin(later.name(), later.version(), saga, later.input()),
        false => registry.rebuild(saga, at),
    };
    match built {
        Ok(runner) => Ok(Some(runner)),
        Err(Failure { kind: FailureKind::Mismatch, message, .. }) => {
            broken(StormRule::Deterministic, format!("built anew from its journal, it differs: {message}"))
                .map(|()| None)
        }
        // It is broken for another reason, and the saga stuck: that is judged elsewhere.
        Err(_) => Ok(None),
    }
}

fn same(one: &Turn, two: &Turn, what: &str) -> Result<(), Broken> {
    if one == two {
        return Ok(());
    }
    let why = if one.ops != two.ops {
        format!("it asks for {} and for {}", asked(&one.ops), asked(&two.ops))
    } else if one.end != two.end {
        format!("it ends with {} and with {}", end(one.end.as_ref()), end(two.end.as_ref()))
    } else {
        "it gives up other waits".to_owned()
    };
    broken(StormRule::Deterministic, format!("{what}: {why}"))
}

fn asked(ops: &[NewOp]) -> String {
    let names: Vec<String> = ops.iter().map(|op| format!("{:?} ({})", op.name, op.number)).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn end(end: Option<&End>) -> String {
    match end {
        None => "no end yet".into(),
        Some(End::Completed(output)) => format!("the output {:02x?}", output.bytes()),
        Some(End::Failed(failure)) => format!("the failure {:?}", failure.message),
        Some(End::Broken(failure)) => format!("{:?}", failure.message),
    }
}
