//! Exactly once under loss, doubling, reordering and crashes.

use crate::common::actors::{Account, Bank, Counter};
use crate::common::{Client, Packet, World, chaos_step, heal, message, session};
use rallypoint_base::id::Ssn;
use rallypoint_engine::partition::{Ending, Limits};
use std::collections::BTreeMap;

const SEEDS: u64 = 100;
const INPUTS: u64 = 120;

fn bankers(count: u64, inputs: u64) -> Vec<Client> {
    let one = |client: u64| {
        let of = |n: u64| {
            let from = format!("a{}", (client * 3 + n) % 9);
            if n % 4 == 3 {
                return (from.clone(), message::<Counter>(&from, &(client + n)));
            }
            let to = format!("a{}", (client + n * 5) % 9);
            (from.clone(), message::<Account>(&from, &Bank::Transfer { to, amount: 10 + (n % 7) as i64 }))
        };
        Client { session: session(client), inputs: (0..inputs).map(of).collect(), window: 6 }
    };
    (1..=count).map(one).collect()
}

/// What the clients' own ledgers say.
fn expected(count: u64, inputs: u64) -> (BTreeMap<String, i64>, BTreeMap<String, u64>) {
    let (mut balances, mut totals) = (BTreeMap::new(), BTreeMap::new());
    for client in 1..=count {
        for n in 0..inputs {
            let from = format!("a{}", (client * 3 + n) % 9);
            let amount = 10 + (n % 7) as i64;
            if n % 4 == 3 {
                *totals.entry(from).or_default() += client + n;
            } else if amount != 13 {
                *balances.entry(from).or_default() -= amount;
                *balances.entry(format!("a{}", (client + n * 5) % 9)).or_default() += amount;
            }
        }
    }
    (balances, totals)
}

fn differences(world: &World, count: u64, inputs: u64) -> Vec<String> {
    let (balances, totals) = expected(count, inputs);
    let mut wrong = world.wrongs.clone();
    for (key, balance) in balances {
        let is = world.state::<Account>(&key).unwrap_or_default().balance;
        if is != balance {
            wrong.push(format!("{key} has {is}, not {balance}"));
        }
    }
    for (key, total) in totals {
        let is = world.state::<Counter>(&key).unwrap_or_default().total;
        if is != total {
            wrong.push(format!("{key} counted {is}, not {total}"));
        }
    }
    wrong
}

type Counts = BTreeMap<&'static str, u64>;

fn run(seed: u64, limits: Limits, counts: &mut Counts, network: fn(&mut World)) -> Vec<String> {
    let clients = bankers(3, INPUTS);
    let mut world = World::with(3, seed, limits, crate::common::pessimistic);
    for _ in 0..4000 {
        chaos_step(&mut world, &clients, true);
        network(&mut world);
    }
    heal(&mut world, &clients);
    for (what, count) in &world.counts {
        *counts.entry(what).or_default() += count;
    }
    let set_aside: usize = (0..3).map(|index| world.partition(index).set_aside().len()).sum();
    *counts.entry("set aside").or_default() += set_aside as u64;
    differences(&world, 3, INPUTS)
}

/// Faults and ways back that every hunt must have taken.
const TAKEN: &[&str] = &[
    "answered from the table",
    "crash",
    "crash in the middle of a run",
    "crash while a checkpoint is written",
    "frame sent again",
    "packet doubled",
    "packet lost",
    "packet overtook",
    "records lost",
    "replay from the beginning",
    "restore of a chain",
    "restore of a full image",
];

fn hunt(seeds: std::ops::Range<u64>, limits: &Limits) {
    let mut counts = Counts::new();
    for seed in seeds {
        println!("seed {seed}");
        assert_eq!(run(seed, limits.clone(), &mut counts, |_| {}), [""; 0], "seed {seed}");
    }
    println!("{counts:#?}");
    for what in TAKEN {
        assert!(counts.get(what).is_some_and(|count| *count > 0), "never: {what}");
    }
    assert_eq!(counts["set aside"], 0, "an innocent input was set aside");
}

#[test]
fn money_and_counts_are_conserved_under_every_fault() {
    hunt(0..SEEDS, &Limits::default());
}

#[test]
fn money_and_counts_are_conserved_with_a_checkpoint_every_few_runs() {
    let limits = Limits { checkpoint_runs: 7, chain_length: 3, careful_deliveries: 4, ..Limits::default() };
    hunt(1000..1000 + SEEDS, &limits);
}

#[test]
fn mutation_a_network_that_renumbers_a_repetition_is_caught() {
    let caught = (0..20).any(|seed| {
        let result = std::panic::catch_unwind(|| {
            run(seed, Limits::default(), &mut Counts::new(), |world| {
                let again = world.network.iter().find_map(|packet| match packet {
                    Packet::Frames { from, to, epoch, first, count: 1, frames } if first.0 == 2 => {
                        let (from, to, epoch, frames) = (*from, *to, *epoch, frames.clone());
                        Some(Packet::Frames { from, to, epoch, first: Ssn(3), count: 1, frames })
                    }
                    _ => None,
                });
                world.network.extend(again);
            })
        });
        result.map_or(true, |wrong| !wrong.is_empty())
    });
    assert!(caught);
}

#[test]
fn mutation_a_log_that_acknowledges_without_keeping_is_caught() {
    let clients = bankers(1, 10);
    let mut world = World::new(2, 1);
    for at in 0..10 {
        clients[0].send(&mut world, at, 0);
        world.settle();
    }
    assert!(differences(&world, 1, 10).is_empty());
    // The last durable record of each log is not there after the crash.
    for index in 0..2 {
        world.crash(index);
        world.nodes[index].log.pop();
        world.nodes[index].durable -= 1;
        world.restart(index, &Ending::default());
    }
    // Clients have their answers: nothing comes again.
    world.settle();
    assert!(!differences(&world, 1, 10).is_empty());
}
