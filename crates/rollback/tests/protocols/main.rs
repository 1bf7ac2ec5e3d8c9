//! The rollback protocols in a toy world: random schedules, crashes, brute force, and mutations.
//!
//! `RALLYPOINT_LONG=1` runs more worlds, `RALLYPOINT_SEED=n` others. A failure names its seed.

mod domino;
mod harness;
mod ledger;
mod mutations;

use harness::{Counts, Setup, Verdict, World};
use rallypoint_base::id::PartitionId;
use rallypoint_base::random::Random;
use rallypoint_base::wire::Malformed;
use rallypoint_rollback::before::Leaves;
use rallypoint_rollback::independent::{BEFORE, Coordinator, Independent};
use rallypoint_rollback::pessimistic::Pessimistic;
use rallypoint_rollback::protocol::{Command, Event, Protocol};

/// Reads a setting of the test run.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn first_seed() -> u64 {
    setting("RALLYPOINT_SEED").unwrap_or(1)
}

fn worlds(short: u64, long: u64) -> u64 {
    if setting("RALLYPOINT_LONG").is_some() { long } else { short }
}

fn coordinator(partitions: u16, records: &[Vec<u8>], out: &mut Vec<Command>) -> Coordinator {
    let mut coordinator = Coordinator::new((0..partitions).map(PartitionId));
    coordinator.recover(records.iter().map(Vec::as_slice), out).expect("our own records");
    coordinator
}

const INDEPENDENT: Setup = Setup {
    partition: || Box::new(Independent::default()),
    coordinator: |partitions, records, out| Some(Box::new(coordinator(partitions, records, out))),
    ledger: true,
};

const PESSIMISTIC: Setup =
    Setup { partition: || Box::new(Pessimistic::default()), coordinator: |_, _, _| None, ledger: false };

/// One world: chaos, then all faults off.
fn live(seed: u64, setup: Setup) -> (Counts, Verdict) {
    let mut random = Random::new(seed);
    let partitions = random.range(2, 5) as u16;
    let steps = random.range(200, 3000);
    let mut world = match World::new(random.next_u64(), partitions, setup) {
        Ok(world) => world,
        Err(violation) => return (Counts::default(), Err(violation)),
    };
    let verdict = (0..steps).try_for_each(|_| world.chaos()).and_then(|()| world.heal());
    (world.counts, verdict)
}

/// Runs worlds until one is bad; returns its seed and what was wrong.
fn first_violation(setup: Setup, count: u64) -> Option<(u64, String)> {
    let first = first_seed() << 32;
    (first..first + count).find_map(|seed| live(seed, setup).1.err().map(|violation| (seed, violation)))
}

fn survive(name: &str, setup: Setup, count: u64) -> Counts {
    let first = first_seed() << 32;
    println!("{name}: worlds {first}..{}", first + count);
    let mut sum = Counts::default();
    for seed in first..first + count {
        let (counts, verdict) = live(seed, setup);
        if let Err(violation) = verdict {
            panic!("{name}, world {seed} (RALLYPOINT_SEED={}): {violation}", first_seed());
        }
        sum.add(&counts);
    }
    for (what, times) in sum.rows() {
        println!("{times:9} {what}");
    }
    sum
}

#[test]
fn independent_survives_every_schedule() {
    let sum = survive("independent", INDEPENDENT, worlds(400, 20_000));
    for (what, times) in sum.rows() {
        assert!(times > 0, "never: {what}");
    }
}

#[test]
fn pessimistic_survives_the_same_world_and_nobody_rolls_back() {
    let sum = survive("pessimistic", PESSIMISTIC, worlds(300, 5_000));
    assert!(sum.crashes > 0 && sum.outputs > 0 && sum.removed_checkpoints > 0);
    assert_eq!((sum.restored_versions, sum.undone_runs), (0, 0));
}

#[test]
fn the_ledger_checks_every_row_of_the_table() {
    let rows: Vec<Leaves> = BEFORE.iter().map(|row| row.leaves).collect();
    for row in &rows {
        assert!(ledger::CHECKED.contains(row), "nobody checks {row:?}");
    }
    assert_eq!(rows.len(), ledger::CHECKED.len());
}

/// A protocol whose handling of events was changed; the rest is as in the original.
struct Mutant {
    inner: Box<dyn Protocol>,
    memory: u64,
    handle: mutations::Change,
}

impl Protocol for Mutant {
    fn name(&self) -> &'static str {
        "mutant"
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
        (self.handle)(&mut *self.inner, &mut self.memory, event, out);
    }

    fn piggyback(&mut self, to: PartitionId, out: &mut Vec<u8>) {
        self.inner.piggyback(to, out);
    }

    fn save(&self, out: &mut Vec<u8>) {
        self.inner.save(out);
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        self.inner.load(bytes)
    }
}
