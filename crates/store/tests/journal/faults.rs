//! The fault matrix (docs/FAULTS.md), row by row, as far as it concerns the journal.

use crate::rig::*;
use rallypoint_base::id::{CommitSeq, Epoch, LogId, Position};
use rallypoint_base::random::Random;
use rallypoint_store::disk::DiskErrorKind;
use rallypoint_store::error::StoreError;
use rallypoint_store::mirror::Outsider;
use rallypoint_store::recovery::{FindingKind, affected_logs};
use rallypoint_store::sim_disk::{SimDisk, SimDrive, Undecided};
use rallypoint_store::store::{OpenOptions, Options, Store, StoreEvent};

const SEG: &str = "seg-00000001";

fn degraded() -> OpenOptions {
    OpenOptions { degraded: true, ..open_small() }
}

/// A closed store whose commit n is block n-1 of the first segment (one record each).
fn written(seed: u64, copies: usize, commits: u64) -> (Vec<SimDrive>, Vec<Entry>) {
    let (_, drives) = drives(seed, copies);
    let mut store = create(&drives, SMALL);
    let entries = fill(&mut store, 0, commits, 1, 100);
    drop(store);
    (drives, entries)
}

fn forks(drives: &[SimDrive], seed: u64) -> Vec<SimDrive> {
    drives.iter().map(|drive| drive.fork(seed)).collect()
}

fn same_segments(drives: &[SimDrive]) {
    for (name, _) in drives[0].files() {
        if name.starts_with("seg-") {
            assert!(drives[0].file(&name) == drives[1].file(&name), "{name} differs");
        }
    }
}

#[test]
fn row_01_a_torn_commit_at_the_tail_is_cut_whatever_subset_of_its_blocks_is_sound() {
    for blocks in 1..=8u64 {
        let (_, drives) = drives(blocks, 1);
        let mut store = create(&drives, SMALL);
        let entries = fill(&mut store, 0, 3, 1, 100);
        let len = (blocks as usize - 1) * 4000 + 100;
        let torn = append(&mut store, 1, 4, len).unwrap().1;
        store.commit();
        for mask in 0..1u64 << blocks {
            let fork = forks(&drives, mask);
            fork[0].crash_with(|question| match question {
                Undecided::Block { block, .. } => mask & (1 << (block - 3)) != 0,
                _ => true,
            });
            let (_, report, found) = reopen(&fork).unwrap();
            let whole = mask == (1 << blocks) - 1;
            let kept = if whole { Some(&torn) } else { None };
            assert!(found.iter().eq(entries.iter().chain(kept)), "{blocks} blocks, subset {mask:b}");
            let bytes = report.cut.map(|cut| (cut.commit, cut.bytes));
            let some = !whole && mask != 0;
            assert_eq!(bytes, some.then_some((CommitSeq(4), u64::from(mask.count_ones()) * 4096)));
            let (mut store, again, found_again) = reopen(&fork).unwrap();
            assert_eq!((again.cut, found_again.len()), (None, found.len()), "cut once and for all");
            // A shorter commit over the place of the torn one.
            let last = found.len() as u64;
            let more = fill(&mut store, last, 2, 1, 100);
            drop(store);
            assert!(reopen(&fork).unwrap().2.ends_with(&more));
        }
        store.poll();
    }
}

#[test]
fn row_01_on_a_mirror_the_union_of_the_blocks_decides() {
    for seed in 0..if long() { 5000 } else { 300 } {
        let mut random = Random::new(seed);
        let (_, drives) = drives(seed, 2);
        let mut store = create(&drives, SMALL);
        let entries = fill(&mut store, 0, 3, 1, 100);
        let blocks = random.range(1, 9);
        let torn = append(&mut store, 1, 4, (blocks as usize - 1) * 4000 + 100).unwrap().1;
        store.commit();
        let fork = forks(&drives, seed);
        let masks = [random.below(1 << blocks), random.below(1 << blocks)];
        for (drive, mask) in fork.iter().zip(masks) {
            drive.crash_with(|question| match question {
                Undecided::Block { block, .. } => mask & (1 << (block - 3)) != 0,
                _ => true,
            });
        }
        let (_, report, found) = reopen(&fork).unwrap();
        let whole = masks[0] | masks[1] == (1 << blocks) - 1;
        let kept = if whole { Some(&torn) } else { None };
        assert!(found.iter().eq(entries.iter().chain(kept)), "seed {seed}");
        assert_eq!(report.repaired, 0, "seed {seed}: nothing was a fault");
        same_segments(&fork);
    }
}

#[test]
fn row_02_damage_before_a_later_commit_refuses_and_names_what_is_lost() {
    for damage in 0..3 {
        let (drives, entries) = written(20, 1, 12);
        match damage {
            0 => assert!(drives[0].flip_bit(SEG, 5 * 4096 + 150, 3)),
            1 => assert!(drives[0].zero_block(SEG, 5)),
            _ => assert!(drives[0].copy_block(SEG, 2, 5)),
        }
        let (mut store, report, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries[..5], "everything before the loss, nothing after it");
        let lost = &report.lost;
        assert_eq!(lost.len(), 1, "{lost:?}");
        assert_eq!((lost[0].log, lost[0].from, lost[0].to), (Some(LogId(1)), Position(6), Some(Position(6))));
        assert!(lost[0].proven);
        assert_eq!(report.cut, None);
        let refused = append(&mut store, 1, 13, 10).unwrap_err();
        assert!(refused.to_string().contains("log1 @6 in commits c6..=c6"), "{refused}");
        drop(store);
        let (_, again, found) = reopen(&drives).unwrap();
        assert_eq!((again.lost, found.len()), (report.lost, 5), "nothing was cut by refusing");
    }
}

#[test]
fn row_02_a_later_commit_in_the_next_segment_is_proof_too() {
    // 16 blocks to a segment: the last commit of the first segment goes, whole.
    let (drives, entries) = written(21, 1, 20);
    drives[0].zero_block(SEG, 15);
    let (_, report, found) = reopen(&drives).unwrap();
    assert_eq!(found, entries[..15]);
    assert_eq!((report.lost[0].from, report.lost[0].to), (Position(16), Some(Position(16))));
}

#[test]
fn row_02_logs_that_go_on_across_the_damage_are_served() {
    let (_, drives) = drives(22, 1);
    let mut store = create(&drives, SMALL);
    let mut by_log: Vec<Vec<Entry>> = vec![Vec::new(); 3];
    for n in 1..=9u64 {
        for log in 0..3u16 {
            if log != 1 || n != 5 {
                let position = by_log[usize::from(log)].len() as u64 + 1;
                by_log[usize::from(log)].push(append(&mut store, log, position, 50).unwrap().1);
                // Logs 0 and 2 in commits of their own, so that a commit can be lost without log 1.
                commit_all(&mut store);
            }
        }
    }
    drop(store);
    // Commit 4 is the second record of log 0.
    drives[0].flip_bit(SEG, 3 * 4096 + 200, 0);
    let (_, report, found) = reopen(&drives).unwrap();
    assert_eq!(affected_logs(&report.lost), vec![LogId(0)]);
    for log in 0..3 {
        let of_log: Vec<_> = found.iter().filter(|(l, _, _)| l.0 == log).cloned().collect();
        let expected = &by_log[usize::from(log)];
        let len = if log == 0 { 1 } else { expected.len() };
        assert_eq!(of_log, expected[..len], "log {log}");
    }
}

#[test]
fn row_02_the_sound_records_of_a_damaged_commit_narrow_the_loss() {
    let (_, drives) = drives(23, 1);
    let mut store = create(&drives, SMALL);
    fill(&mut store, 0, 40, 20, 1000);
    drop(store);
    // The first commit has 6 blocks; its fourth is hit.
    drives[0].flip_bit(SEG, 3 * 4096 + 2000, 0);
    let (_, report, found) = reopen(&drives).unwrap();
    let lost = &report.lost;
    assert_eq!(lost.len(), 1, "{lost:?}");
    let (from, to) = (lost[0].from.0, lost[0].to.unwrap().0);
    assert!(from > 8 && to < 20 && to - from < 6, "{from}..={to}");
    assert_eq!(found.len() as u64, from - 1);
}

#[test]
fn row_03_rot_on_one_copy_is_repaired_before_it_is_read() {
    for copy in [0, 1] {
        let (drives, entries) = written(30, 2, 12);
        drives[copy].flip_bit(SEG, 7 * 4096 + 99, 7);
        let (_, report, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries);
        assert_eq!((report.repaired, report.findings[0].copy, report.findings[0].block), (1, copy, 7));
        assert_eq!(report.findings[0].kind, FindingKind::Damaged);
        same_segments(&drives);
        // The good copy may rot now.
        drives[1 - copy].flip_bit(SEG, 7 * 4096 + 99, 7);
        assert_eq!(reopen(&drives).unwrap().2, entries);
    }
}

#[test]
fn row_04_rot_on_both_copies_in_different_blocks_is_repaired_crosswise() {
    for seed in 0..if long() { 500 } else { 40 } {
        let (_, drives) = drives(seed, 2);
        let mut store = create(&drives, SMALL);
        let entries = fill(&mut store, 0, 120, 4, 2500);
        store.commit_idle();
        settle(&mut store);
        drop(store);
        let mut random = Random::new(seed);
        let mut hit = 0;
        for (name, len) in drives[0].files() {
            for block in 0..len / 4096 {
                if name.starts_with("seg-") && random.chance(1, 3) {
                    let drive = &drives[random.below(2) as usize];
                    drive.flip_bit(&name, block * 4096 + random.below(4096), random.below(8) as u8);
                    hit += 1;
                }
            }
        }
        let (_, report, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries, "seed {seed}");
        assert!(report.repaired > 10 && report.repaired <= hit, "seed {seed}: {} of {hit}", report.repaired);
        let (_, report, found) = reopen(&drives).unwrap();
        assert_eq!((report.repaired, found.len()), (0, entries.len()), "seed {seed}");
    }
}

#[test]
fn row_05_the_same_block_bad_on_both_copies_is_refused_by_name() {
    let (drives, entries) = written(50, 2, 12);
    drives[0].flip_bit(SEG, 4 * 4096 + 1, 0);
    drives[1].zero_block(SEG, 4);
    let (store, report, found) = reopen(&drives).unwrap();
    assert_eq!(found, entries[..4]);
    assert_eq!((report.lost[0].log, report.lost[0].from), (Some(LogId(1)), Position(5)));
    assert!(matches!(store.refusing(), Some(StoreError::Damaged { .. })));
}

#[test]
fn row_06_a_lost_write_is_known_by_its_absence_and_repaired() {
    for copy in [0, 1] {
        let (_, drives) = drives(60, 2);
        let mut store = create(&drives, SMALL);
        let mut entries = fill(&mut store, 0, 3, 1, 100);
        drives[copy].lose_write(1);
        entries.extend(fill(&mut store, 3, 5, 1, 100));
        drop(store);
        let (_, report, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries);
        assert_eq!(report.findings[0].kind, FindingKind::Missing);
        same_segments(&drives);
    }
}

#[test]
fn row_06_a_lost_write_in_a_recycled_segment_shows_the_old_generation() {
    let (_, drives) = drives(61, 2);
    let mut store = create(&drives, SMALL);
    for round in 0..6 {
        fill(&mut store, round * 16, 16, 1, 100);
        store.cut(LogId(1), Position(round * 16));
        while store.poll().is_some() || store.wait().is_some() {}
    }
    let name = drives[0].files().iter().map(|(name, _)| name.clone()).max().unwrap();
    assert!(*name > *"seg-00000005", "{name}");
    drives[1].lose_write(1);
    let entries = fill(&mut store, 96, 8, 1, 100);
    drop(store);
    let (_, report, found) = reopen(&drives).unwrap();
    assert!(found.ends_with(&entries));
    assert_eq!(report.repaired, 1);
    assert_eq!(report.lost, vec![]);
}

#[test]
fn row_07_a_misdirected_write_is_two_faults_and_both_are_repaired() {
    let (_, drives) = drives(70, 2);
    let mut store = create(&drives, SMALL);
    let mut entries = fill(&mut store, 0, 6, 1, 100);
    drives[0].misdirect_write(1, 2 * 4096);
    entries.extend(fill(&mut store, 6, 4, 1, 100));
    drop(store);
    let (_, report, found) = reopen(&drives).unwrap();
    assert_eq!(found, entries);
    let kinds: Vec<_> = report.findings.iter().map(|finding| (finding.block, finding.kind)).collect();
    assert_eq!(kinds, vec![(2, FindingKind::Misplaced), (6, FindingKind::Missing)]);
}

#[test]
fn row_08_a_sector_that_cannot_be_read_is_written_anew() {
    let (drives, entries) = written(80, 2, 12);
    drives[0].fail_read(SEG, 3 * 4096..5 * 4096);
    drives[1].fail_read(SEG, 9 * 4096..10 * 4096);
    drives[1].fail_read("superblock", 0..4096);
    let (_, report, found) = reopen(&drives).unwrap();
    assert_eq!(found, entries);
    assert_eq!((report.repaired, report.read_errors), (3, 3));
    assert!(report.slots_repaired > 0);
    let (_, report, _) = reopen(&drives).unwrap();
    assert_eq!((report.repaired, report.read_errors), (0, 0), "writing remapped the sectors");
}

#[test]
fn row_09_and_10_a_failed_write_drops_the_copy_and_membership_is_durable_before_the_next_durable() {
    for copy in [0, 1] {
        let (_, drives) = drives(90, 2);
        let mut store = create(&drives, SMALL);
        let mut entries = fill(&mut store, 0, 3, 1, 100);
        drives[copy].fail_write(1, DiskErrorKind::Io);
        entries.push(append(&mut store, 1, 4, 100).unwrap().1);
        store.commit();
        let events = settle(&mut store);
        assert!(
            matches!(&events[..], [StoreEvent::CopyLost { copy: c, epoch: Epoch(2), .. }, StoreEvent::Durable { .. }] if *c == copy),
            "{events:?}"
        );
        let writes = drives[copy].writes();
        entries.extend(fill(&mut store, 4, 30, 3, 100));
        assert_eq!(drives[copy].writes(), writes, "never written to again");
        assert!(!store.status().copies[copy].in_sync);
        drop(store);
        // The remaining copy alone has everything and does not ask for the other.
        let alone = [drives[1 - copy].fork(1)];
        assert_eq!(reopen(&alone).unwrap().2, entries);
        let (store, _, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries);
        let out = store.status().copies[copy].outsider.clone();
        assert_eq!(out, Some(Outsider::Stale { number: copy as u8, epoch: Epoch(1) }));
    }
}

#[test]
fn row_10_with_no_copy_left_the_log_stops_for_good() {
    for copies in [1, 2] {
        let (_, drives) = drives(100, copies);
        let mut store = create(&drives, SMALL);
        let entries = fill(&mut store, 0, 3, 1, 100);
        for drive in &drives {
            drive.fail_write(1, DiskErrorKind::Io);
        }
        append(&mut store, 1, 4, 100).unwrap();
        store.commit();
        let events = settle(&mut store);
        assert!(
            matches!(events.last(), Some(StoreEvent::Failed(StoreError::NoCopyLeft { .. }))),
            "{events:?}"
        );
        assert!(!events.iter().any(|event| matches!(event, StoreEvent::Durable { .. })));
        assert!(matches!(append(&mut store, 1, 5, 100), Err(StoreError::NoCopyLeft { .. })));
        assert_eq!((store.commit(), store.commit_idle(), store.in_flight()), (None, None, None));
        drop(store);
        let (_, report, found) = reopen(&drives).unwrap();
        assert!(found.starts_with(&entries));
        assert_eq!(report.lost, vec![]);
    }
}

#[test]
fn row_11_a_lying_disk_is_repaired_from_the_other_copy() {
    for copy in [0, 1] {
        let (power, drives) = drives(110, 2);
        let mut store = create(&drives, SMALL);
        let mut entries = fill(&mut store, 0, 3, 1, 100);
        drives[copy].set_lying(true);
        entries.extend(fill(&mut store, 3, 9, 1, 100));
        power.crash();
        drop(store);
        drives[copy].set_lying(false);
        drives[copy].crash_with(|_| false);
        let (_, report, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries);
        assert!(report.repaired >= 8, "{report:?}");
        same_segments(&drives);
    }
}

#[test]
fn row_12_a_commit_that_only_one_copy_got_stays_for_ever() {
    for copy in [0, 1] {
        let (_, drives) = drives(120, 2);
        let mut store = create(&drives, SMALL);
        let mut entries = fill(&mut store, 0, 3, 1, 100);
        entries.push(append(&mut store, 1, 4, 9000).unwrap().1);
        store.commit();
        for (at, drive) in drives.iter().enumerate() {
            drive.crash_with(|_| at == copy);
        }
        drop(store);
        let (_, report, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries);
        assert_eq!((report.completed, report.repaired), (3, 0));
        same_segments(&drives);
        // The copy that had it may go now.
        let alone = [drives[1 - copy].fork(1)];
        assert_eq!(reopen_with(disks(&alone), degraded()).unwrap().2, entries);
    }
}

#[test]
fn row_13_a_power_cut_during_repair_is_repaired_again() {
    let (drives, entries) = written(130, 2, 40);
    for block in 0..16 {
        drives[block as usize % 2].flip_bit(SEG, block * 4096 + 77, 1);
    }
    for nth in 1.. {
        let fork = forks(&drives, nth);
        fork[0].crash_after(nth);
        let ended = reopen(&fork).is_ok();
        let reached = fork[0].is_crashed();
        if !reached {
            assert!(ended);
            break;
        }
        let (_, _, found) = reopen(&fork).unwrap();
        assert_eq!(found, entries, "power cut at operation {nth}");
    }
}

#[test]
fn row_14_an_old_copy_never_wins_by_being_readable() {
    for dropped in [0, 1] {
        let kept = 1 - dropped;
        let (power, drives) = drives(140, 2);
        let mut store = create(&drives, SMALL);
        let mut entries = fill(&mut store, 0, 10, 1, 100);
        drives[dropped].fail_write(1, DiskErrorKind::Io);
        entries.extend(fill(&mut store, 10, 500, 10, 100));
        power.crash();
        drop(store);
        let alone = [drives[dropped].clone()];
        let refused = reopen(&alone).unwrap_err();
        assert!(
            matches!(refused, StoreError::NeedsDegraded { absent, .. } if absent == kept as u8),
            "{refused}"
        );
        // Both back, in either order: nothing is lost.
        for order in [[0, 1], [1, 0]] {
            let both: Vec<_> = order.iter().map(|&at| drives[at].fork(7)).collect();
            let (store, _, found) = reopen(&both).unwrap();
            assert_eq!(found, entries);
            assert!(!store.status().copies[dropped].in_sync);
        }
        // The operator says that the other is lost for good: what the old copy has comes back.
        let old = [drives[dropped].fork(8)];
        let (_, _, found) = reopen_with(disks(&old), degraded()).unwrap();
        assert!(entries.starts_with(&found) && found.len() <= 20, "{}", found.len());
        // And if it was not lost after all, neither history is thrown away silently.
        let mut split = [old[0].clone(), drives[kept].fork(9)];
        if dropped == 1 {
            split.reverse();
        }
        let refused = reopen(&split).unwrap_err();
        assert!(matches!(refused, StoreError::SplitBrain { .. }), "{refused}");
    }
}

#[test]
fn row_14_an_absent_empty_foreign_or_cloned_copy_is_told_apart() {
    let (drives, entries) = written(141, 2, 10);
    for present in [0, 1] {
        let alone = [drives[present].fork(1)];
        let refused = reopen(&alone).unwrap_err();
        assert!(matches!(refused, StoreError::NeedsDegraded { .. }), "{refused}");
        let (store, report, found) = reopen_with(disks(&alone), degraded()).unwrap();
        assert_eq!((found, report.epoch), (entries.clone(), Epoch(2)));
        drop(store);
        assert_eq!(reopen(&alone).unwrap().2, entries, "the set names the present copy only, now");
    }
    let empty = [drives[0].fork(2), SimDrive::new(3, "/new")];
    assert!(matches!(reopen(&empty), Err(StoreError::NeedsDegraded { absent: 1, .. })));
    let clones = [drives[0].fork(2), drives[0].fork(3)];
    assert!(matches!(reopen(&clones), Err(StoreError::SameCopy { copy: 0, .. })));
    let other = SimDrive::new(4, "/other");
    let mut stranger = identity(1);
    stranger.store.0 += 1;
    drop(Store::create(vec![SimDisk::open(&other)], stranger, SMALL).unwrap());
    let refused = reopen(&[drives[0].fork(2), other]).unwrap_err();
    assert!(matches!(refused, StoreError::Foreign { .. }), "{refused}");
    assert!(refused.to_string().contains("/other"));
}

#[test]
fn row_14_an_image_of_a_copy_from_some_openings_ago_is_not_in_sync() {
    let (drives, _) = written(142, 2, 10);
    let image = drives[1].fork(1);
    for _ in 0..3 {
        drop(reopen(&drives).unwrap());
    }
    drives[1].replace_by(&image);
    assert!(matches!(reopen(&drives), Err(StoreError::NeedsDegraded { absent: 1, .. })));
}

#[test]
fn row_15_one_sound_slot_of_the_superblock_is_enough_and_none_is_refused() {
    let (drives, entries) = written(150, 2, 5);
    for mask in 0..256u64 {
        let fork = forks(&drives, mask);
        for slot in 0..8u64 {
            if mask & (1 << slot) != 0 {
                fork[slot as usize / 4].flip_bit("superblock", slot % 4 * 16384 + 40, 1);
            }
        }
        match (mask & 15 == 15, mask >> 4 == 15) {
            (false, false) => assert_eq!(reopen(&fork).unwrap().2, entries, "{mask:b}"),
            (true, true) => assert!(matches!(reopen(&fork), Err(StoreError::NoSuperblock { .. }))),
            _ => assert!(matches!(reopen(&fork), Err(StoreError::NeedsDegraded { .. }))),
        }
    }
}

#[test]
fn row_16_no_space_comes_at_roll_over_and_nothing_acknowledged_is_lost() {
    for copies in [1, 2] {
        let (_, drives) = drives(160, copies);
        let mut store = create(&drives, SMALL);
        // Room for the two segments that creation made, and for half of a third.
        drives[copies - 1].set_capacity(Some(drives[copies - 1].used() + SMALL.segment_len / 2));
        let mut events = Vec::new();
        let mut entries = Vec::new();
        let mut position = 0;
        while store.refusing().is_none() {
            position += 1;
            match append(&mut store, 1, position, 100) {
                Ok((_, entry)) => entries.push(entry),
                Err(error) => panic!("{error}"),
            }
            store.commit();
            events.extend(settle(&mut store));
        }
        assert_eq!(position, 33, "both segments were used");
        let short = events.iter().position(|event| matches!(event, StoreEvent::SpaceShort(_)));
        assert!(short.is_some_and(|at| at < 20), "the warning comes when the reserve is touched: {short:?}");
        assert!(
            matches!(events.last(), Some(StoreEvent::Full(StoreError::NoSpace { .. }))),
            "{:?}",
            events.last()
        );
        assert!(matches!(append(&mut store, 1, 34, 100), Err(StoreError::NoSpace { .. })));
        assert_eq!(store.in_flight(), Some(CommitSeq(33)), "it waits");
        // A crash here loses only what was never acknowledged, and recovery needs no space.
        let fork = forks(&drives, 1);
        for drive in &fork {
            drive.set_capacity(Some(drive.used()));
            drive.crash();
        }
        assert_eq!(reopen(&fork).unwrap().2, entries[..32]);
        // A cut gives space back.
        store.cut(LogId(1), Position(17));
        let events: Vec<_> = std::iter::from_fn(|| store.wait()).collect();
        assert!(
            events.iter().any(|event| matches!(event, StoreEvent::Durable { commit: CommitSeq(33) })),
            "{events:?}"
        );
        assert!(events.iter().any(|event| matches!(event, StoreEvent::SpaceBack)), "{events:?}");
        fill(&mut store, 33, 5, 1, 100);
        drop(store);
        let (_, report, found) = reopen(&drives).unwrap();
        assert_eq!(report.lost, vec![]);
        assert_eq!(found.len(), 38 - 16);
    }
}

#[test]
fn row_16_space_that_comes_back_by_itself_is_found_by_asking() {
    let (_, drives) = drives(161, 2);
    let mut store = create(&drives, SMALL);
    drives[1].set_capacity(Some(drives[1].used()));
    let mut position = 0;
    while store.refusing().is_none() {
        position += 1;
        append(&mut store, 1, position, 100).unwrap();
        commit_all(&mut store);
    }
    store.retry_space();
    settle(&mut store);
    assert!(store.refusing().is_some());
    drives[1].set_capacity(None);
    store.retry_space();
    settle(&mut store);
    assert!(store.refusing().is_none());
    assert_eq!(store.durable(), CommitSeq(33));
}

#[test]
fn row_17_unknown_files_are_reported_and_a_missing_named_segment_is_damage() {
    let (drives, entries) = written(170, 2, 40);
    drives[0].put_file("notes.txt", b"hello");
    let (_, report, found) = reopen(&drives).unwrap();
    assert_eq!(report.unknown_files, vec![(0, "notes.txt".into())]);
    assert_eq!(found, entries);
    drives[1].take_file("seg-00000002");
    drives[0].take_file("seg-00000003");
    let (_, report, found) = reopen(&drives).unwrap();
    assert_eq!(found, entries);
    assert_eq!(report.repaired + report.completed, 16 + 8);
    same_segments(&drives);
    for drive in &drives {
        drive.take_file("seg-00000002");
    }
    let (store, report, found) = reopen(&drives).unwrap();
    assert_eq!(found, entries[..16]);
    assert!(!report.lost.is_empty() && store.refusing().is_some());
}

#[test]
fn row_17_a_missing_last_segment_is_not_taken_for_the_end() {
    let (drives, entries) = written(171, 1, 20);
    drives[0].take_file("seg-00000002");
    let (store, report, found) = reopen(&drives).unwrap();
    assert_eq!(found, entries[..16]);
    assert_eq!(report.cut, None);
    assert!(matches!(store.refusing(), Some(StoreError::Damaged { .. })));
}

#[test]
fn row_17_a_truncated_segment_is_repaired_or_refused() {
    let (drives, entries) = written(172, 2, 12);
    drives[0].truncate(SEG, 5 * 4096 + 100);
    assert_eq!(reopen(&drives).unwrap().2, entries);
    for drive in &drives {
        drive.truncate(SEG, 5 * 4096);
    }
    // Nothing later is left to prove that there was more: this is the limit of a single segment,
    // except that the watermark of a commit never lies behind it. Here all evidence is gone.
    let (_, _, found) = reopen(&drives).unwrap();
    assert_eq!(found, entries[..5]);
}

#[test]
fn row_19_files_that_a_crash_left_behind_are_used_again() {
    let (_, drives) = drives(190, 2);
    let mut store = create(&drives, SMALL);
    fill(&mut store, 0, 100, 1, 100);
    store.cut(LogId(1), Position(90));
    // Only the superblock gets written, then the power goes.
    for _ in 0..6 {
        store.poll();
    }
    for drive in &drives {
        drive.crash();
    }
    drop(store);
    let (mut store, report, found) = reopen(&drives).unwrap();
    assert_eq!(report.lost, vec![]);
    assert_eq!(found.last().map(|(_, position, _)| *position), Some(Position(100)));
    let used = drives[0].used();
    store.cut(LogId(1), Position(101));
    fill(&mut store, 100, 200, 1, 100);
    store.cut(LogId(1), Position(290));
    while store.poll().is_some() || store.wait().is_some() {}
    fill(&mut store, 300, 100, 1, 100);
    store.cut(LogId(1), Position(400));
    while store.poll().is_some() || store.wait().is_some() {}
    assert!(drives[0].used() <= used, "{} {used}", drives[0].used());
}

#[test]
fn row_21_what_a_zombie_writes_after_the_next_opening_is_rejected() {
    let (_, drives) = drives(210, 1);
    let mut zombie = create(&drives, SMALL);
    let mut entries = fill(&mut zombie, 0, 3, 1, 100);
    // Another process opens the store (the lock should have prevented one of the two).
    let (successor, _, _) = reopen(&drives).unwrap();
    append(&mut zombie, 1, 4, 300).unwrap();
    commit_all(&mut zombie);
    drop((zombie, successor));
    let (mut store, report, found) = reopen(&drives).unwrap();
    assert_eq!(found, entries, "the zombie's record is not part of this history");
    assert_eq!(report.lost, vec![]);
    entries.extend(fill(&mut store, 3, 3, 1, 100));
    drop(store);
    assert_eq!(reopen(&drives).unwrap().2, entries);
}

#[test]
fn row_21_a_zombie_that_overwrites_a_newer_commit_is_damage_and_repaired_from_the_other_copy() {
    let (_, drives) = drives(211, 2);
    let mut zombie = create(&drives, SMALL);
    let mut entries = fill(&mut zombie, 0, 3, 1, 100);
    let (mut successor, _, _) = reopen(&drives).unwrap();
    entries.extend(fill(&mut successor, 3, 4, 1, 100));
    drop(successor);
    drives[1].fail_write(1, DiskErrorKind::Io);
    append(&mut zombie, 1, 4, 300).unwrap();
    zombie.commit();
    while zombie.poll().is_some() {}
    let (_, report, found) = reopen(&drives).unwrap_or_else(|error| panic!("{error}"));
    let _ = report;
    assert_eq!(found, entries);
}

#[test]
fn row_26_a_block_of_an_unknown_version_is_refused_by_name() {
    let (drives, _) = written(260, 1, 5);
    let mut bytes = drives[0].file(SEG).unwrap();
    let block = &mut bytes[2 * 4096..3 * 4096];
    block[12] = 9;
    let checksum = rallypoint_base::hash::xxh3(&block[8..96]);
    block[..8].copy_from_slice(&checksum.to_le_bytes());
    drives[0].put_file(SEG, &bytes);
    let refused = reopen(&drives).unwrap_err();
    assert!(matches!(refused, StoreError::BlockVersion { version: 9, flags: 0, .. }), "{refused}");
    assert!(refused.to_string().contains("needs the release"), "{refused}");
}

#[test]
fn a_superblock_that_went_back_in_time_is_refused_not_obeyed() {
    let (drives, _) = written(261, 1, 5);
    let old = drives[0].file("superblock").unwrap();
    let (mut store, _, _) = reopen(&drives).unwrap();
    fill(&mut store, 5, 2, 1, 100);
    drop(store);
    drives[0].put_file("superblock", &old);
    assert!(matches!(reopen(&drives), Err(StoreError::SuperblockBehind { .. })));
}

/// The damage test: 4,096 acknowledged records of 1 KiB in commits of 64.
mod damage {
    use super::*;

    const OPTIONS: Options = Options { segment_len: 1 << 20, commit_max: 4 << 20, spare_segments: 1 };

    fn filled(copies: usize, idle: bool) -> (Vec<SimDrive>, Vec<Entry>, CommitSeq) {
        let (_, drives) = drives(4096, copies);
        let mut store = create(&drives, OPTIONS);
        let entries = fill(&mut store, 0, 4096, 64, 1024);
        let last = store.durable();
        if idle {
            assert!(store.commit_idle().is_some());
            settle(&mut store);
        }
        drop(store);
        (drives, entries, last)
    }

    type Damage = fn(&SimDrive, &str, u64);

    /// (name, what it does to a block of a file)
    const DAMAGES: [(&str, Damage); 3] = [
        ("one flipped bit", |drive, file, block| assert!(drive.flip_bit(file, block * 4096 + 1234, 5))),
        ("a zeroed page", |drive, file, block| assert!(drive.zero_block(file, block))),
        ("the last 700 bytes of a page", |drive, file, block| {
            let mut bytes = drive.file(file).unwrap();
            let end = (block as usize + 1) * 4096;
            bytes[end - 700..end].fill(0xA5);
            drive.put_file(file, &bytes);
        }),
    ];

    /// The last block of the last real commit: (file, block).
    fn last_block(drive: &SimDrive, idle: bool) -> (String, u64) {
        let (name, bytes) = drive
            .files()
            .into_iter()
            .filter(|(name, _)| name.starts_with("seg-"))
            .map(|(name, _)| (name.clone(), drive.file(&name).unwrap()))
            .filter(|(_, bytes)| bytes.iter().any(|&byte| byte != 0))
            .max_by_key(|(name, _)| name.clone())
            .unwrap();
        let used = bytes.chunks(4096).filter(|block| block.iter().any(|&byte| byte != 0)).count() as u64;
        (name, used - 1 - u64::from(idle))
    }

    #[test]
    fn with_a_mirror_all_4096_come_back_whatever_is_damaged() {
        let (drives, entries, _) = filled(2, false);
        for (name, damage) in DAMAGES {
            for copy in [0, 1] {
                let fork = forks(&drives, 1);
                let (file, last) = last_block(&fork[0], false);
                damage(&fork[copy], "seg-00000002", 100);
                damage(&fork[1 - copy], "seg-00000003", 7);
                damage(&fork[copy], &file, last);
                let (_, report, found) = reopen(&fork).unwrap();
                assert_eq!(found.len(), 4096, "{name}, copy {copy}");
                assert_eq!(found, entries);
                assert!(report.repaired + report.completed == 3, "{name}: {report:?}");
            }
        }
    }

    #[test]
    fn without_a_mirror_damage_in_the_middle_is_refused_by_name_never_cut() {
        let (drives, entries, _) = filled(1, false);
        for (name, damage) in DAMAGES {
            let fork = forks(&drives, 1);
            damage(&fork[0], "seg-00000002", 100);
            let (store, report, found) = reopen(&fork).unwrap();
            assert!(matches!(store.refusing(), Some(StoreError::Damaged { .. })), "{name}");
            assert_eq!(found, entries[..found.len()]);
            let lost = &report.lost;
            assert_eq!(lost.len(), 1, "{name}: {lost:?}");
            let (from, to) = (lost[0].from.0, lost[0].to.unwrap().0);
            assert_eq!(from, found.len() as u64 + 1);
            assert!(to - from < 6, "{name}: one block holds at most 5 of them: {from}..={to}");
            println!("{name}: {}", store.refusing().unwrap());
        }
    }

    #[test]
    fn without_a_mirror_damage_in_the_last_commit_is_refused_once_the_idle_block_is_written() {
        let (drives, entries, commit) = filled(1, true);
        for (name, damage) in DAMAGES {
            let fork = forks(&drives, 1);
            let (file, last) = last_block(&fork[0], true);
            damage(&fork[0], &file, last);
            let (store, report, found) = reopen(&fork).unwrap();
            assert!(matches!(store.refusing(), Some(StoreError::Damaged { .. })), "{name}");
            assert_eq!(report.cut, None);
            let lost = &report.lost[0];
            assert_eq!((lost.to, lost.commits), (Some(Position(4096)), (commit, commit)), "{name}");
            assert_eq!(found, entries[..lost.from.0 as usize - 1], "{name}");
            assert!(lost.from.0 > 4090, "{name}: {lost:?}");
        }
    }

    #[test]
    fn without_a_mirror_a_torn_commit_that_was_never_acknowledged_is_cut_and_reported() {
        let (_, drives) = drives(4097, 1);
        let mut store = create(&drives, OPTIONS);
        let entries = fill(&mut store, 0, 4032, 64, 1024);
        for n in 4033..=4096 {
            append(&mut store, 1, n, 1024).unwrap();
        }
        let commit = store.commit().unwrap();
        drives[0]
            .crash_with(|question| !matches!(question, Undecided::Block { block, .. } if block % 5 == 0));
        drop(store);
        let (store, report, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries);
        let cut = report.cut.unwrap();
        assert_eq!(cut.commit, commit);
        assert!(cut.bytes >= 10 * 4096, "{cut:?}");
        assert_eq!(store.refusing(), None);
    }
}
