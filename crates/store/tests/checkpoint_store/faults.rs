//! Rows of the fault matrix (docs/FAULTS.md) that are the checkpoint store's.

use crate::rig::*;
use rallypoint_base::id::Version;
use rallypoint_store::checkpoint::{
    CheckpointEvent, CheckpointStore, FailReason, FileKind, Finding, Identity, ReadError, ScanError,
    ScanMode, ScrubCursor, VersionState, file_name,
};
use rallypoint_store::copies::Copies;
use rallypoint_store::disk::DiskErrorKind;
use rallypoint_store::sim_disk::SimDisk;

fn part(version: u64) -> String {
    file_name(LOG, Version(version), FileKind::Part)
}

fn manifest(version: u64) -> String {
    file_name(LOG, Version(version), FileKind::Manifest)
}

/// Versions 1 (full), 2 (full), 3 (on 2), five chunks each.
fn three_versions(seed: u64) -> Machine {
    let machine = Machine::new(2, seed);
    let (mut copies, mut store, _) = machine.open();
    for (base, position) in [(None, 10), (None, 20), (Some(2), 30)] {
        write(&mut copies, &mut store, begin(base, position, 5)).unwrap();
    }
    drop(copies);
    machine
}

fn events(copies: &mut Copies<SimDisk>, store: &mut CheckpointStore) -> Vec<CheckpointEvent> {
    std::iter::from_fn(|| store.poll(copies)).collect()
}

#[test]
fn row_3_rot_on_one_copy_is_repaired_by_reading_and_by_scrubbing() {
    let machine = three_versions(1);
    machine.drives[0].flip_bit(&part(3), 5, 1);
    machine.drives[1].flip_bit(&part(3), 13_000, 1);
    machine.drives[1].flip_bit(&part(2), 5, 1);
    machine.drives[0].flip_bit(&manifest(1), 100, 1);
    let (mut copies, mut store, findings) = machine.open();
    assert!(matches!(findings[..], [Finding::RepairedManifest { copy: 0, .. }]), "{findings:?}");
    check_all(&mut copies, &mut store).unwrap();
    let by_reading = events(&mut copies, &mut store).len();
    let mut cursor = ScrubCursor::default();
    while store.scrub(&mut copies, &mut cursor) {}
    let by_scrubbing = events(&mut copies, &mut store).len();
    assert_eq!((by_reading + by_scrubbing), 3, "{by_reading} + {by_scrubbing}");
    while store.scrub(&mut copies, &mut cursor) {}
    assert_eq!(events(&mut copies, &mut store), []);
    for name in [part(1), part(2), part(3), manifest(1)] {
        assert_eq!(machine.drives[0].file(&name), machine.drives[1].file(&name), "{name}");
    }
}

#[test]
fn row_4_rot_on_both_copies_in_different_chunks_is_repaired_crosswise() {
    let machine = three_versions(1);
    machine.drives[0].zero_block(&part(2), 0);
    machine.drives[1].zero_block(&part(2), 3);
    machine.drives[0].fail_read(&part(3), 0..1);
    let (mut copies, mut store, _) = machine.open();
    let mut cursor = ScrubCursor::default();
    while store.scrub(&mut copies, &mut cursor) {}
    assert_eq!(events(&mut copies, &mut store).len(), 3);
    check_all(&mut copies, &mut store).unwrap();
    assert_eq!(machine.drives[0].file(&part(2)), machine.drives[1].file(&part(2)));
}

#[test]
fn row_5_the_same_chunk_bad_on_both_copies_makes_the_older_version_be_used() {
    let machine = three_versions(1);
    for drive in &machine.drives {
        drive.flip_bit(&part(2), 13_000, 0);
    }
    let (mut copies, mut store, findings) = machine.open();
    assert!(findings.is_empty(), "parts are read when they are used: {findings:?}");
    assert_eq!(store.newest(LOG), Some(Version(3)));
    let cut_before = store.log_cut(LOG);
    let chain = store.chain(LOG, Version(3)).unwrap();
    let error = chain.iter().find_map(|&version| read(&mut copies, &mut store, version).err());
    assert!(matches!(error, Some(ReadError::Damaged { version: Version(2), .. })), "{error:?}");
    assert_eq!(store.version(LOG, Version(2)).unwrap().state, VersionState::Damaged);
    let older = store.newest(LOG).unwrap();
    assert_eq!(older, Version(1), "what builds on a damaged version is not used either");
    assert!(store.version(LOG, older).unwrap().manifest.position >= cut_before, "the log reaches back to it");
    assert_eq!(read(&mut copies, &mut store, older).unwrap(), expected(&store, older));
    // And the store goes on from there.
    write(&mut copies, &mut store, begin(None, 40, 2)).unwrap();
    assert_eq!(store.newest(LOG), Some(Version(4)));
}

#[test]
fn row_6_and_7_a_lost_or_misdirected_chunk_is_seen_before_the_manifest_is_written() {
    for copy in 0..2 {
        for nth in 1..=5 {
            for misdirect in [false, true] {
                let machine = three_versions(1);
                let (mut copies, mut store, _) = machine.open();
                if misdirect {
                    machine.drives[copy].misdirect_write(nth, 40_960);
                } else {
                    machine.drives[copy].lose_write(nth);
                }
                let failed = write(&mut copies, &mut store, begin(None, 40, 5));
                assert!(
                    matches!(failed, Err(FailReason::NotVerified { copy: c, .. }) if c == copy),
                    "{failed:?}"
                );
                machine.power.crash();
                let (mut copies, mut store, _) = machine.open();
                assert_eq!(store.newest(LOG), Some(Version(3)));
                check_all(&mut copies, &mut store).unwrap();
            }
        }
    }
}

#[test]
fn a_lost_manifest_write_is_seen_before_it_gets_its_name() {
    let machine = three_versions(1);
    let (mut copies, mut store, _) = machine.open();
    machine.drives[1].lose_write(6);
    let failed = write(&mut copies, &mut store, begin(None, 40, 5));
    assert!(matches!(failed, Err(FailReason::ManifestNotVerified { copy: 1 })), "{failed:?}");
    assert!(collect(&mut copies, &mut store));
    assert_eq!(machine.open().1.newest(LOG), Some(Version(3)));
}

#[test]
fn row_9_and_10_a_copy_that_fails_is_reported_and_the_checkpoint_goes_on_without_it() {
    for copy in 0..2 {
        for nth in 1..=8 {
            for sync in [false, true] {
                let machine = three_versions(1);
                let (mut copies, mut store, _) = machine.open();
                if sync {
                    machine.drives[copy].fail_sync(nth, DiskErrorKind::Io);
                } else {
                    machine.drives[copy].fail_write(nth, DiskErrorKind::Io);
                }
                let version = write(&mut copies, &mut store, begin(None, 40, 5)).unwrap();
                let failures = machine.drives[copy].counts();
                let failed = failures.writes_failed + failures.syncs_failed > 0;
                assert_eq!(copies.live().count(), if failed { 1 } else { 2 }, "copy {copy}, {nth}");
                assert_eq!(store.newest(LOG), Some(version));
                check_all(&mut copies, &mut store).unwrap();
                assert!(nth < 4 || sync || failed || nth > 6, "the fault was planned and did not happen");
            }
        }
    }
}

#[test]
fn a_copy_taken_out_from_outside_does_not_hold_the_checkpoint_up() {
    let machine = three_versions(1);
    let (mut copies, mut store, _) = machine.open();
    let version = store.begin(&mut copies, begin(None, 40, 1)).unwrap();
    store.write_chunk(&mut copies, LOG, &chunk(version, 0)).unwrap();
    copies.take_out(1);
    store.finish(&mut copies, LOG, &header(version)).unwrap();
    let end = run_until(&mut copies, &mut store, |event| matches!(event, CheckpointEvent::Written { .. }));
    assert!(end.is_some());
    copies.take_out(0);
    store.begin(&mut copies, begin(None, 50, 1)).unwrap();
    let end = store.poll(&mut copies);
    assert!(matches!(end, Some(CheckpointEvent::Failed { reason: FailReason::NoCopyLeft, .. })), "{end:?}");
}

#[test]
fn row_17_a_missing_or_half_durable_name_is_repaired_or_ignored_and_reported() {
    let machine = three_versions(1);
    machine.drives[0].take_file(&manifest(3));
    machine.drives[1].take_file(&part(2));
    machine.drives[1].truncate(&part(1), 4096);
    machine.drives[0].put_file("cp-strange", b"a note of the operator");
    machine.drives[1].put_file("cp-00003-000000000009.part", &[1; 4096]);
    machine.drives[1].put_file("cp-00003-000000000008.manifest.tmp", &[1; 10]);
    let look = CheckpointStore::scan(&mut machine.copies(), IDENTITY, ScanMode::LookOnly).unwrap().1;
    let lacking = look.iter().filter(|finding| matches!(finding, Finding::Lacking { .. })).count();
    assert_eq!(lacking, 3, "{look:?}");
    let (mut copies, mut store, findings) = machine.open();
    let count = |kind: fn(&Finding) -> bool| findings.iter().filter(|finding| kind(finding)).count();
    assert_eq!(count(|f| matches!(f, Finding::RepairedManifest { copy: 0, .. })), 1, "{findings:?}");
    assert_eq!(count(|f| matches!(f, Finding::RepairedPart { copy: 1, .. })), 2, "{findings:?}");
    assert_eq!(count(|f| matches!(f, Finding::UnknownFile { .. })), 1);
    assert_eq!(count(|f| matches!(f, Finding::Unfinished { .. })), 2);
    assert!(collect(&mut copies, &mut store));
    check_all(&mut copies, &mut store).unwrap();
    assert_eq!(write(&mut copies, &mut store, begin(None, 40, 1)), Ok(Version(10)), "9 was seen");
    assert!(machine.drives[0].take_file("cp-strange"), "what is unknown is left alone");
    assert_eq!(machine.drives[0].files(), machine.drives[1].files());
}

#[test]
fn row_17_a_part_missing_on_every_copy_makes_the_older_version_be_used() {
    let machine = three_versions(1);
    for drive in &machine.drives {
        drive.take_file(&part(2));
    }
    let (mut copies, mut store, findings) = machine.open();
    assert!(findings.contains(&Finding::PartLost { log: LOG, version: Version(2) }));
    assert!(findings.contains(&Finding::ChainBroken { log: LOG, version: Version(3) }));
    assert_eq!(store.newest(LOG), Some(Version(1)));
    read(&mut copies, &mut store, Version(1)).unwrap();
}

#[test]
fn row_18_a_half_written_checkpoint_is_ignored_and_the_previous_one_used() {
    for seed in seeds(20) {
        let machine = three_versions(seed);
        let (mut copies, mut store, _) = machine.open();
        machine.power.crash_after(1 + seed * 2 % 50);
        let _ = write(&mut copies, &mut store, begin(Some(3), 40, 5));
        machine.power.crash();
        drop(copies);
        let (mut copies, mut store, _) = machine.open();
        let newest = store.newest(LOG).unwrap();
        assert!([Version(3), Version(4)].contains(&newest), "seed {seed}");
        check_all(&mut copies, &mut store).unwrap();
        assert!(collect(&mut copies, &mut store));
        assert_eq!(machine.drives[0].files(), machine.drives[1].files(), "seed {seed}");
    }
}

#[test]
fn row_19_a_collection_cut_short_goes_on_at_the_next_opening() {
    for at in 1..20 {
        let machine = three_versions(at);
        let (mut copies, mut store, _) = machine.open();
        write(&mut copies, &mut store, begin(None, 40, 1)).unwrap();
        machine.power.crash_after(at);
        collect(&mut copies, &mut store);
        machine.power.crash();
        drop(copies);
        let (mut copies, mut store, findings) = machine.open();
        let repaired = |f: &Finding| {
            matches!(f, Finding::RepairedPart { version: Version(1), .. } | Finding::RepairedManifest { .. })
        };
        assert!(
            !findings.iter().any(repaired),
            "operation {at}: what goes is not brought back: {findings:?}"
        );
        assert!(collect(&mut copies, &mut store));
        for drive in &machine.drives {
            assert!(drive.file(&part(1)).is_none() && drive.file(&manifest(1)).is_none(), "operation {at}");
        }
        check_all(&mut copies, &mut store).unwrap();
    }
}

#[test]
fn row_14_an_empty_copy_gets_everything_that_is_needed() {
    let machine = three_versions(1);
    machine.drives[1].wipe();
    let (mut copies, mut store, _) = machine.open();
    check_all(&mut copies, &mut store).unwrap();
    assert_eq!(machine.drives[0].files(), machine.drives[1].files());
    let mut alone = Copies::new(vec![SimDisk::open(&machine.drives[1])]);
    check_all(&mut alone, &mut store).unwrap();
}

#[test]
fn row_26_a_newer_release_is_refused_and_a_foreign_store_left_alone() {
    let machine = three_versions(1);
    let foreign = Identity { store: IDENTITY.store, lineage: rallypoint_base::id::Lineage(5) };
    let (store, findings) = CheckpointStore::scan(&mut machine.copies(), foreign, ScanMode::Repair).unwrap();
    assert_eq!(findings.len(), 3);
    assert!(store.versions(LOG).is_empty());
    let mut bytes = machine.drives[0].file(&manifest(3)).unwrap();
    bytes[8] = 2;
    let hash = rallypoint_base::hash::xxh3(&bytes[..48]);
    bytes[48..56].copy_from_slice(&hash.to_le_bytes());
    machine.drives[0].put_file(&manifest(3), &bytes);
    let refused = scan(&mut machine.copies());
    assert!(matches!(refused, Err(ScanError::Newer { .. })), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("newer release"));
}

#[test]
fn a_crashed_disk_is_not_taken_for_a_damaged_version() {
    let machine = Machine::new(1, 1);
    let (mut copies, mut store, _) = machine.open();
    write(&mut copies, &mut store, begin(None, 10, 20)).unwrap();
    machine.power.crash_after(12);
    let error = read(&mut copies, &mut store, Version(1)).unwrap_err();
    assert!(matches!(error, ReadError::Disk { .. }), "{error:?}");
    assert_eq!(store.version(LOG, Version(1)).unwrap().state, VersionState::Good);
}

#[test]
fn a_reader_that_refuses_leaves_nothing_behind() {
    let machine = three_versions(1);
    let (mut copies, mut store, _) = machine.open();
    let refused = store.read(&mut copies, LOG, Version(1), &mut |_| Err("no".into()));
    assert!(matches!(refused, Err(ReadError::Refused { .. })));
    assert!(copies.poll().is_none());
}
