//! A saga is recovered from every prefix of every generated log, twice.
//!
//! Generated sagas run as real async functions in a simulated world that fails, crashes and is full
//! of people. For every prefix of each log: folding it gives the state that was live then; a crash
//! there, recovered from [`Machine::outstanding`] alone, ends well; so does a second crash in the
//! middle of that recovery. The rules that are judged at every event are in `checks.rs`, and
//! `mutations.rs` shows that each of them can fail.
//!
//! `RALLYPOINT_LONG=1` runs many more sagas, `RALLYPOINT_SEED=n` others. A failure names its seed.
//!
//! [`Machine::outstanding`]: rallypoint_saga::machine::Machine::outstanding

mod checks;
mod mutations;
mod script;
mod world;

use checks::{Broken, Verdict};
use rallypoint_base::random::Random;
use rallypoint_saga::event::Attempt;
use rallypoint_saga::machine::Machine;
use rallypoint_saga::op::{Failure, FailureKind, UndoState};
use rallypoint_saga::status::Status;
use rallypoint_saga::value::Blob;
use script::{Node, Rule};
use std::collections::BTreeMap;
use world::{Log, Tamper, World, fold, unfed};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn sagas(short: u64) -> std::ops::Range<u64> {
    let first = setting("RALLYPOINT_SEED").unwrap_or(1);
    first..first + if setting("RALLYPOINT_LONG").is_some_and(|long| long > 0) { short * 50 } else { short }
}

/// One saga from its start to its end; its log, with the state after each event.
fn live(seed: u64, tamper: Tamper) -> Result<World, Broken> {
    let mut world = World::start(seed, tamper)?;
    let events = Random::new(!seed).range(5, 80);
    for _ in 0..events {
        if !world.step()? {
            break;
        }
    }
    world.heal()?;
    Ok(world)
}

/// The stored form of a state reads back as that state.
fn state_survives_storage(machine: &Machine) -> Verdict {
    let bytes = postcard::to_allocvec(machine).expect("a state is written");
    let read: Machine = postcard::from_bytes(&bytes).expect("a state is read");
    if read != *machine {
        return Err(Broken { rule: "storage", how: "it reads back as another state".into() });
    }
    Ok(())
}

/// Two copies of the function, told the same, say the same.
fn function_is_deterministic(machine: &Machine) -> Verdict {
    let registry = script::registry();
    if machine.is_new() {
        return Ok(());
    }
    let built = (registry.rebuild("saga-1", machine), registry.rebuild("saga-1", machine));
    let (Ok(mut one), Ok(mut two)) = built else {
        return Err(Broken { rule: "journal", how: format!("{:?}", built.0.err()) });
    };
    let turns = (one.turn(unfed(machine)), two.turn(unfed(machine)));
    if turns.0 != turns.1 {
        return Err(Broken { rule: "deterministic", how: format!("{turns:?}") });
    }
    Ok(())
}

/// A crash after every event, and another one in the middle of each recovery.
fn every_prefix(seed: u64, log: &Log, states: &[Machine], tamper: Tamper) -> Verdict {
    for length in 1..=log.len() {
        let prefix = &log[..length];
        let at = |broken: Broken| Broken { how: format!("prefix {length}: {}", broken.how), ..broken };
        let live = &states[length - 1];
        same_state(live, &fold(seed, prefix)).map_err(at)?;
        state_survives_storage(live).map_err(at)?;
        function_is_deterministic(live).map_err(at)?;
        let mut random = Random::new(seed ^ (length as u64) << 32);
        let mut world = World::recover(seed, prefix, random.fork(1), tamper).map_err(at)?;
        for _ in 0..random.below(12) {
            if !world.step().map_err(at)? {
                break;
            }
        }
        let mut again = World::recover(seed, &world.log, random.fork(2), tamper).map_err(at)?;
        same_state(&world.machine, &again.machine).map_err(at)?;
        for _ in 0..random.below(12) {
            if !again.step().map_err(at)? {
                break;
            }
        }
        again.heal().map_err(at)?;
        world.heal().map_err(at)?;
    }
    Ok(())
}

/// The same events give the same state.
fn same_state(live: &Machine, folded: &Machine) -> Verdict {
    if live != folded {
        return Err(Broken { rule: "fold", how: "folding the log gives another state".into() });
    }
    Ok(())
}

#[test]
fn a_saga_recovers_from_every_prefix_twice() {
    let (mut kinds, mut ends) = (BTreeMap::<&str, u64>::new(), BTreeMap::<Status, u64>::new());
    for seed in sagas(150) {
        let verdict = live(seed, Tamper::default()).and_then(|world| {
            for (kind, count) in &world.kinds {
                *kinds.entry(kind).or_default() += count;
            }
            *ends.entry(world.machine.status()).or_default() += 1;
            every_prefix(seed, &world.log, &world.states, Tamper::default())
        });
        if let Err(broken) = verdict {
            panic!("seed {seed}: {}: {}", broken.rule, broken.how);
        }
    }
    println!("{kinds:?}, {ends:?}");
    assert_eq!(kinds.len(), 18, "a kind of event never happened: {kinds:?}");
    assert_eq!(ends.len(), 3, "an end was never reached: {ends:?}");
}

#[test]
fn sagas_keep_every_rule() {
    for seed in sagas(5_000) {
        if let Err(broken) = live(seed, Tamper::default()) {
            panic!("seed {seed}: {}: {}", broken.rule, broken.how);
        }
    }
}

/// steno 0.4.1 refused 6 of the 15 prefixes of this saga for ever (omicron 10531): a crash during the
/// unwinding of a fan-in with one failed branch; 0.5.0 recovers them all.
/// The case stays a good test.
#[test]
fn steno_case_fan_in_with_one_failed_branch_recovers_from_all_prefixes() {
    let step = |name: &str| {
        let rule = Rule { attempts: 1, undo_attempts: 1, pivot: false, atomic: false };
        Node::Step(name.to_owned(), rule)
    };
    let script = Node::Sequence(vec![step("z"), Node::Join(vec![step("a"), step("b")]), step("c")]);
    let run = || -> Result<World, Broken> {
        let mut world = World::start_plain(1, &script)?;
        world.answer("z", Attempt::Done(Blob::of(&1u64).unwrap()))?;
        world.answer("a", Attempt::Done(Blob::of(&2u64).unwrap()))?;
        let failure = Failure::new(FailureKind::Business, "b is not allowed");
        world.answer("b", Attempt::Failed { failure, may_have_acted: false, retry_after: None })?;
        world.heal()?;
        assert_eq!(world.machine.status(), Status::Compensated);
        let undone: Vec<&str> = world
            .machine
            .ops()
            .iter()
            .filter(|op| op.undo == UndoState::Done)
            .map(|op| op.name.as_str())
            .collect();
        assert_eq!(undone, ["z", "a"], "b did nothing, and c never began");
        every_prefix(1, &world.log, &world.states, Tamper::default())?;
        Ok(world)
    };
    match run() {
        Ok(world) => assert!(world.log.len() >= 6, "{:?}", world.log),
        Err(broken) => panic!("{}: {}", broken.rule, broken.how),
    }
}
