//! The bank with all faults, under both protocols.

use crate::{Load, send};
use rallypoint_sim::{Report, World, WorldBuilder, seeds_to_run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Each seed is a world of another shape.
fn world(seed: u64) -> WorldBuilder {
    World::builder()
        .seed(seed)
        .workers(2 + (seed % 3) as usize)
        .directories(1 + (seed % 5 / 4) as usize)
        .partitions(1 + (seed % 7 / 5) as usize)
        .mirrored([60, 100, 0, 60][(seed % 4) as usize])
        .ledger(seed.is_multiple_of(8))
        .audits(1 + (seed % 2) as u32)
        .bank()
}

/// Runs the seeds on both cores; panics with the first violations, the lowest seeds first.
fn run(name: &str, count: u64, build: impl Fn(u64) -> (WorldBuilder, Load) + Sync) -> Report {
    let seeds = seeds_to_run(count);
    let (next, report) = (AtomicU64::new(seeds.start), Mutex::new(Report::default()));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failures.lock().unwrap().len() >= 10 {
                        return;
                    }
                    let (builder, load) = build(seed);
                    let (of_world, violations) = builder.try_run(|client| {
                        send(client, seed, load);
                        client.weather();
                    });
                    report.lock().unwrap().add(&of_world);
                    failures
                        .lock()
                        .unwrap()
                        .extend(violations.into_iter().map(|violation| (seed, violation)));
                }
            });
        }
    });
    let report = report.into_inner().unwrap();
    let mut failures = failures.into_inner().unwrap();
    failures.sort_by_key(|(seed, _)| *seed);
    println!("{name}, seeds {seeds:?}\n{report}");
    let lines: Vec<String> =
        failures.iter().map(|(seed, violation)| format!("RALLYPOINT_SEED={seed}: {violation}")).collect();
    assert!(lines.is_empty(), "{name}:\n{}", lines.join("\n"));
    report
}

#[test]
fn pessimistic_with_all_faults() {
    let report = run("pessimistic", 1500, |seed| (world(seed), Load::default()));
    if report.worlds >= 1000 {
        assert_eq!(report.zeros(false), Vec::<&str>::new(), "rows that never happened");
    }
}

#[test]
fn independent_with_all_faults() {
    let load = Load { poison: 0, ..Load::default() };
    let report = run("independent", 500, |seed| (world(seed).ledger(false).independent(), load));
    if report.worlds >= 500 {
        let rolled_back =
            ["recovery line decided", "coordinator crashed", "versions undone", "partitions rolled back"];
        for row in rolled_back {
            assert!(report.count(row) > 0, "`{row}` never happened");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in [5, 8, 13] {
        let once = || {
            world(seed).try_run(|client| {
                send(client, seed, Load::default());
                client.weather();
            })
        };
        assert_eq!(once(), once());
    }
}
