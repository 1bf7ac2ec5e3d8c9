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
mod script;
mod world;

use checks::{Broken, Verdict};
use rallypoint_base::random::Random;
use rallypoint_saga::machine::Machine;
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
fn every_prefix(seed: u64, log: &Log, tamper: Tamper) -> Verdict {
    let mut live = Machine::default();
    for length in 0..=log.len() {
        let prefix = &log[..length];
        if let Some((now, event)) = prefix.last() {
            let random = &mut Random::new(seed ^ rallypoint_base::random::mix(length as u64 - 1));
            let _ = live.handle(*now, random, event.clone(), &mut Vec::new());
        }
        if fold(seed, prefix) != live || fold(seed, prefix) != fold(seed, prefix) {
            return Err(Broken { rule: "fold", how: format!("prefix {length} gives another state") });
        }
        if length == 0 {
            continue;
        }
        state_survives_storage(&live)?;
        function_is_deterministic(&live)?;
        let mut random = Random::new(seed ^ (length as u64) << 32);
        let at = |broken: Broken| Broken { how: format!("prefix {length}: {}", broken.how), ..broken };
        let mut world = World::recover(seed, prefix, random.fork(1), tamper).map_err(at)?;
        for _ in 0..random.below(12) {
            if !world.step().map_err(at)? {
                break;
            }
        }
        let mut again = World::recover(seed, &world.log, random.fork(2), tamper).map_err(at)?;
        if again.machine != world.machine {
            return Err(Broken { rule: "fold", how: format!("prefix {length}: another state") });
        }
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

#[test]
fn a_saga_recovers_from_every_prefix_twice() {
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in sagas(60) {
        let verdict = live(seed, Tamper::default()).and_then(|world| {
            for (kind, count) in &world.kinds {
                *kinds.entry(kind).or_default() += count;
            }
            every_prefix(seed, &world.log, Tamper::default())
        });
        if let Err(broken) = verdict {
            panic!("seed {seed}: {}: {}", broken.rule, broken.how);
        }
    }
    println!("{kinds:?}");
    assert_eq!(kinds.len(), 18, "a kind of event never happened: {kinds:?}");
}

#[test]
fn sagas_keep_every_rule() {
    for seed in sagas(3_000) {
        if let Err(broken) = live(seed, Tamper::default()) {
            panic!("seed {seed}: {}: {}", broken.rule, broken.how);
        }
    }
}

#[test]
#[ignore]
fn survey() {
    let mut rules: BTreeMap<&str, (u64, u64, String)> = BTreeMap::new();
    let mut ends: BTreeMap<String, (u64, usize, usize, u32)> = BTreeMap::new();
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in sagas(60_000) {
        let verdict = live(seed, Tamper::default())
            .and_then(|world| {
                let e = ends.entry(world.machine.status().to_string()).or_default();
                e.0 += 1; e.1 += world.log.len(); e.2 += world.machine.ops().len(); e.3 += world.machine.generation();
                for (kind, count) in &world.kinds { *kinds.entry(kind).or_default() += count; }
                if seed % 50 == 0 { every_prefix(seed, &world.log, Tamper::default()) } else { Ok(()) }});
        if let Err(broken) = verdict {
            let entry = rules.entry(broken.rule).or_insert((0, seed, broken.how.chars().take(300).collect()));
            entry.0 += 1;
        }
    }
    println!("{ends:?} {kinds:?}");
    for (rule, found) in rules {
        println!("{rule}: {found:?}");
    }
}
