//! Scrubbing a store in use, mending one that is not, and verifying without touching.

use crate::rig::*;
use rallypoint_base::id::{Epoch, LogId, Position};
use rallypoint_base::random::Random;
use rallypoint_store::disk::DiskErrorKind;
use rallypoint_store::error::StoreError;
use rallypoint_store::mend::{MendOptions, MendReport, mend};
use rallypoint_store::scrub::ScrubStep;
use rallypoint_store::sim_disk::{SimDisk, SimDrive};
use rallypoint_store::store::{Store, StoreEvent};
use rallypoint_store::verify::verify;

/// Scrubs until the end of the journal and sums up.
fn scrub_once(store: &mut Store<SimDisk>, bytes: usize) -> ScrubStep {
    let mut sum = ScrubStep::default();
    while !sum.wrapped {
        assert!(store.scrub_step(bytes));
        assert!(!store.scrub_step(bytes), "one step at a time");
        loop {
            match store.wait() {
                Some(StoreEvent::Scrubbed(step)) => {
                    assert!(step.blocks as usize * 4096 <= bytes);
                    sum.blocks += step.blocks;
                    sum.repaired += step.repaired;
                    sum.findings.extend(step.findings);
                    sum.unrepairable.extend(step.unrepairable);
                    sum.wrapped = step.wrapped;
                    break;
                }
                Some(_) => {}
                None => panic!("the step never ended"),
            }
        }
    }
    sum
}

#[test]
fn a_scrub_finds_and_repairs_crosswise_while_commits_go_on() {
    let (_, drives) = drives(300, 2);
    let mut store = create(&drives, SMALL);
    let mut entries = fill(&mut store, 0, 60, 1, 100);
    drives[0].flip_bit("seg-00000001", 5 * 4096 + 7, 1);
    drives[1].zero_block("seg-00000002", 3);
    drives[1].fail_read("seg-00000004", 4096..8192);
    append(&mut store, 1, 61, 5000).unwrap();
    store.commit();
    let sum = scrub_once(&mut store, 6 * 4096);
    assert_eq!((sum.repaired, sum.unrepairable.len()), (3, 0), "{sum:?}");
    assert!(sum.blocks >= 60);
    settle(&mut store);
    entries.extend(fill(&mut store, 61, 5, 1, 100));
    let sum = scrub_once(&mut store, 1 << 20);
    assert_eq!((sum.repaired, sum.findings.len()), (0, 0));
    drop(store);
    let (_, report, found) = reopen(&drives).unwrap();
    assert_eq!((found.len(), report.repaired), (66, 0));
}

#[test]
fn a_scrub_names_what_no_copy_has_and_repairs_the_rest() {
    let (_, drives) = drives(301, 2);
    let mut store = create(&drives, SMALL);
    fill(&mut store, 0, 30, 1, 100);
    for drive in &drives {
        drive.flip_bit("seg-00000001", 5 * 4096 + 7, 1);
    }
    drives[0].flip_bit("seg-00000001", 6 * 4096 + 7, 1);
    let sum = scrub_once(&mut store, 1 << 20);
    assert_eq!((sum.repaired, sum.unrepairable.len()), (1, 2));
    assert_eq!((sum.unrepairable[0].block, sum.unrepairable[1].copy), (5, 1));
}

#[test]
fn a_scrub_keeps_off_segments_that_are_recycled_beneath_it() {
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let (_, drives) = drives(seed, 2);
        for drive in &drives {
            drive.set_reordering(true);
        }
        let mut store = create(&drives, SMALL);
        let mut position = 0;
        for _ in 0..600 {
            match random.below(6) {
                0 => {
                    store.scrub_step(4096 * 4);
                }
                1 => store.cut(LogId(1), Position(position.max(20) - 20)),
                2 | 3 => {
                    position += 1;
                    append(&mut store, 1, position, 600).unwrap();
                    store.commit();
                }
                4 => {
                    // Rot in anything that the store uses, on one copy at a time.
                    let files: Vec<_> =
                        drives[0].files().into_iter().filter(|(n, _)| n.starts_with("seg")).collect();
                    if let Some((name, len)) = random.pick(&files) {
                        drives[0].flip_bit(name, random.below(*len), 1);
                    }
                }
                _ => {
                    if let Some(StoreEvent::Scrubbed(step)) = store.poll() {
                        assert_eq!(step.unrepairable, vec![], "seed {seed}");
                    }
                }
            }
        }
        commit_all(&mut store);
        drop(store);
        let (_, report, found) = reopen(&drives).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(report.lost, vec![], "seed {seed}");
        assert_eq!(found.last().map(|(_, p, _)| p.0), Some(position), "seed {seed}");
    }
}

fn mended(drives: &[SimDrive], options: MendOptions) -> MendReport {
    mend(disks(drives), options).unwrap()
}

#[test]
fn mend_brings_a_stale_copy_back_and_either_may_go_then() {
    let (_, drives) = drives(310, 2);
    let mut store = create(&drives, SMALL);
    let mut entries = fill(&mut store, 0, 10, 1, 100);
    drives[1].fail_write(1, DiskErrorKind::Io);
    entries.extend(fill(&mut store, 10, 50, 1, 100));
    store.cut(LogId(1), Position(20));
    while store.poll().is_some() || store.wait().is_some() {}
    drop(store);
    drives[0].put_file("cp-00001-000000000001.part", &[7; 8192]);
    drives[1].put_file("cp-00001-000000000009.part", &[9; 4096]);
    let report = mended(&drives, MendOptions::default());
    assert_eq!((report.returned.len(), report.in_sync.clone()), (1, vec![0, 1]));
    assert!(!report.is_beyond_repair(), "{report:?}");
    let listed = |drive: &SimDrive| {
        drive.files().into_iter().filter(|(n, _)| n.starts_with("cp-")).collect::<Vec<_>>()
    };
    assert_eq!(listed(&drives[0]), listed(&drives[1]));
    let (store, _, found) = reopen(&drives).unwrap();
    assert!(entries.ends_with(&found) && found.len() >= 40);
    assert!(store.status().copies.iter().all(|copy| copy.in_sync));
    drop(store);
    let alone = [drives[1].fork(1)];
    let open = rallypoint_store::store::OpenOptions { degraded: true, ..open_small() };
    assert_eq!(reopen_with(disks(&alone), open).unwrap().2, found);
}

#[test]
fn mend_fills_a_new_disk_when_told_that_the_old_one_is_gone() {
    let (_, drives) = drives(311, 2);
    let mut store = create(&drives, SMALL);
    let entries = fill(&mut store, 0, 30, 1, 100);
    drop(store);
    for lost in [0, 1] {
        let pair = [drives[1 - lost].fork(1), SimDrive::new(5, "/new")];
        let refused = mend(disks(&pair), MendOptions::default()).unwrap_err();
        assert!(matches!(refused, StoreError::NeedsDegraded { .. }), "{refused}");
        let report = mended(&pair, MendOptions { degraded: true, keep: None });
        assert_eq!(report.in_sync.len(), 2);
        let (store, _, found) = reopen(&[pair[1].clone(), pair[0].clone()]).unwrap();
        assert_eq!(found, entries);
        assert_eq!(store.status().copies[lost].place, "/new", "it has the number of the lost one");
    }
}

#[test]
fn mend_pads_files_of_odd_length_to_whole_blocks() {
    let (_, drives) = drives(17, 2);
    let mut store = create(&drives, SMALL);
    fill(&mut store, 0, 5, 1, 100);
    drop(store);
    for len in [1, 4095, 4096, 5000, (1 << 20) + 3] {
        drives[0].put_file(&format!("cp-diary-{len}"), &vec![7; len]);
    }
    drives[1].wipe();
    mended(&drives, MendOptions { degraded: true, keep: None });
    for len in [1, 4095, 4096, 5000, (1 << 20) + 3] {
        let mut expected = vec![7; len];
        expected.resize(len.next_multiple_of(4096), 0);
        assert!(drives[1].file(&format!("cp-diary-{len}")) == Some(expected), "{len} bytes");
    }
}

#[test]
fn mend_settles_a_split_brain_only_by_the_operators_word() {
    let (_, drives) = drives(312, 2);
    let mut store = create(&drives, SMALL);
    fill(&mut store, 0, 10, 1, 100);
    drop(store);
    let open = rallypoint_store::store::OpenOptions { degraded: true, ..open_small() };
    for (n, drive) in drives.iter().enumerate() {
        let (mut store, _, _) = reopen_with(vec![SimDisk::open(drive)], open).unwrap();
        fill(&mut store, 10, 1 + n as u64, 1, 100);
    }
    assert!(matches!(reopen(&drives), Err(StoreError::SplitBrain { .. })));
    assert!(matches!(mend(disks(&drives), MendOptions::default()), Err(StoreError::SplitBrain { .. })));
    for keep in [0, 1u8] {
        let fork: Vec<_> = drives.iter().map(|drive| drive.fork(3)).collect();
        let report = mended(&fork, MendOptions { degraded: false, keep: Some(keep) });
        assert_eq!(report.in_sync, vec![0, 1]);
        assert_eq!(reopen(&fork).unwrap().2.len(), 11 + usize::from(keep));
    }
}

#[test]
fn row_13_a_power_cut_at_every_operation_of_a_mend_leaves_something_to_mend_again() {
    let (_, drives) = drives(313, 2);
    let mut store = create(&drives, SMALL);
    let mut entries = fill(&mut store, 0, 5, 1, 100);
    drives[1].fail_write(1, DiskErrorKind::Io);
    entries.extend(fill(&mut store, 5, 20, 1, 100));
    drop(store);
    drives[0].put_file("cp-00001-000000000001.part", &[7; 8192]);
    for nth in 1.. {
        let power = rallypoint_store::sim_disk::SimPower::new();
        let fork: Vec<_> = drives.iter().map(|drive| drive.fork_on(&power, nth)).collect();
        power.crash_after(nth);
        let done = mend(disks(&fork), MendOptions::default());
        if power.ops() < nth {
            assert!(done.is_ok());
            break;
        }
        for drive in &fork {
            drive.crash();
        }
        // The copy that is half written never passes for a whole one.
        let alone = [fork[1].fork(9)];
        match reopen(&alone) {
            Ok((_, _, found)) => assert_eq!(found, entries, "crash at {nth}"),
            Err(
                StoreError::NeedsDegraded { .. } | StoreError::Stale { .. } | StoreError::NoSuperblock { .. },
            ) => {}
            Err(error) => panic!("crash at {nth}: {error}"),
        }
        let report = mended(&fork, MendOptions::default());
        assert_eq!(report.in_sync, vec![0, 1], "crash at {nth}");
        let (_, report, found) = reopen(&fork).unwrap();
        assert_eq!((found, report.repaired), (entries.clone(), 0), "crash at {nth}");
    }
}

#[test]
fn verify_names_everything_and_writes_nothing() {
    let (_, drives) = drives(320, 2);
    let mut store = create(&drives, SMALL);
    fill(&mut store, 0, 30, 1, 100);
    drop(store);
    let report = verify(disks(&drives)).unwrap();
    assert!(report.is_clean() && report.is_whole(), "{report:?}");
    assert_eq!((report.epoch, report.journal.commits, report.journal.records), (Epoch(1), 30, 30));
    drives[0].flip_bit("seg-00000001", 5 * 4096 + 7, 1);
    drives[1].flip_bit("seg-00000002", 5 * 4096 + 7, 1);
    let writes = drives[0].writes() + drives[1].writes();
    for _ in 0..2 {
        let report = verify(disks(&drives)).unwrap();
        assert!(!report.is_clean() && report.is_whole());
        let found: Vec<_> = report
            .journal
            .findings
            .iter()
            .map(|f| (f.directory.as_str(), f.file.as_str(), f.block))
            .collect();
        assert_eq!(found, vec![("/disk0", "seg-00000001", 5), ("/disk1", "seg-00000002", 5)]);
    }
    drives[1].flip_bit("seg-00000001", 5 * 4096 + 7, 1);
    let report = verify(disks(&drives)).unwrap();
    assert!(!report.is_whole());
    assert_eq!(report.journal.lost[0].from, Position(6));
    assert_eq!(drives[0].writes() + drives[1].writes(), writes);
}
