//! Which versions are used, kept and collected, and how far the log may be cut.

use crate::rig::*;
use rallypoint_base::id::{Position, Version};
use rallypoint_store::checkpoint::{ChainError, DropError, FailReason, VersionState, WriteError};

fn numbers(versions: &[Version]) -> Vec<u64> {
    versions.iter().map(|version| version.0).collect()
}

#[test]
fn the_log_is_cut_at_the_older_of_two_part_disjoint_chains() {
    let machine = Machine::new(2, 1);
    let (mut copies, mut store, _) = machine.open();
    let mut put = |base, position| {
        write(&mut copies, &mut store, begin(base, position, 1)).unwrap();
        store.log_cut(LOG)
    };
    assert_eq!(put(None, 10), Position(0));
    assert_eq!(put(Some(1), 20), Position(0), "an increment shares its base: one chain only");
    assert_eq!(put(None, 30), Position(20));
    assert_eq!(put(Some(3), 40), Position(20));
    assert_eq!(put(Some(4), 50), Position(20));
    assert_eq!(put(None, 60), Position(50));
    assert_eq!(numbers(&store.chain(LOG, Version(5)).unwrap()), [3, 4, 5]);
    assert!(matches!(store.chain(LOG, Version(9)), Err(ChainError::Unknown { .. })));
    store.pin(&mut copies, LOG, Version(2)).unwrap();
    assert_eq!(store.log_cut(LOG), Position(20), "a pinned version keeps its log");
    assert!(collect(&mut copies, &mut store));
    assert_eq!(store.versions(LOG).len(), 6, "the pinned version keeps its chain");
    store.unpin(&mut copies, LOG, Version(2)).unwrap();
    assert!(collect(&mut copies, &mut store));
    assert_eq!(store.versions(LOG).iter().map(|i| i.manifest.version.0).collect::<Vec<_>>(), [3, 4, 5, 6]);
    let (mut copies, mut store, findings) = machine.open();
    assert!(findings.is_empty());
    assert_eq!(store.log_cut(LOG), Position(50));
    check_all(&mut copies, &mut store).unwrap();
}

#[test]
fn three_failed_restores_quarantine_a_version_across_restarts_and_the_one_before_is_used() {
    let machine = Machine::new(2, 1);
    {
        let (mut copies, mut store, _) = machine.open();
        for (base, position) in [(None, 10), (Some(1), 20), (None, 30), (Some(3), 40)] {
            write(&mut copies, &mut store, begin(base, position, 1)).unwrap();
        }
    }
    for expected in 1..=3 {
        let (mut copies, mut store, _) = machine.open();
        assert_eq!(store.newest(LOG), Some(Version(4)));
        assert_eq!(store.record_failed_restore(&mut copies, LOG, Version(4)), Ok(expected));
        machine.power.crash();
    }
    let (mut copies, mut store, _) = machine.open();
    assert_eq!(store.newest(LOG), Some(Version(3)));
    assert_eq!(store.version(LOG, Version(4)).unwrap().state, VersionState::Quarantined);
    assert_eq!(
        store.begin(&mut copies, begin(Some(4), 50, 1)),
        Err(WriteError::Base { log: LOG, base: Version(4) })
    );
    // A base that fails takes what builds on it along.
    for _ in 0..3 {
        store.record_failed_restore(&mut copies, LOG, Version(3)).unwrap();
    }
    assert_eq!(store.newest(LOG), Some(Version(2)));
    store.forgive_restores(&mut copies, LOG, Version(3)).unwrap();
    assert_eq!(store.newest(LOG), Some(Version(3)));
    assert!(matches!(store.drop_version(&mut copies, LOG, Version(3)), Err(DropError::Needed { .. })));
    store.drop_version(&mut copies, LOG, Version(4)).unwrap();
    assert!(matches!(store.drop_version(&mut copies, LOG, Version(3)), Err(DropError::Relied { .. })));
    machine.power.crash();
    let (mut copies, mut store, _) = machine.open();
    assert!(store.version(LOG, Version(4)).is_none());
    assert!(collect(&mut copies, &mut store));
    assert!(
        machine.drives.iter().all(|drive| drive.files().iter().all(|(name, _)| !name.contains("failed")))
    );
}

#[test]
fn a_version_number_is_not_used_twice_and_calls_out_of_order_are_refused() {
    let machine = Machine::new(2, 1);
    let (mut copies, mut store, _) = machine.open();
    assert_eq!(store.write_chunk(&mut copies, LOG, b"x"), Err(WriteError::NotWriting { log: LOG }));
    let version = store.begin(&mut copies, begin(None, 1, 1)).unwrap();
    assert_eq!(store.begin(&mut copies, begin(None, 1, 1)), Err(WriteError::Busy { log: LOG, version }));
    let too_long = vec![0; 256 * 1024 + 1];
    assert_eq!(
        store.write_chunk(&mut copies, LOG, &too_long),
        Err(WriteError::ChunkLength { len: too_long.len() })
    );
    let mut taken = 0;
    while store.is_ready(LOG) {
        store.write_chunk(&mut copies, LOG, b"x").unwrap();
        taken += 1;
    }
    assert_eq!(taken, 2, "two chunks in flight, also before the file exists");
    assert_eq!(store.write_chunk(&mut copies, LOG, b"x"), Err(WriteError::NotReady { log: LOG }));
    store.abort(&mut copies, LOG);
    run_until(&mut copies, &mut store, |_| false);
    assert!(!store.is_writing(LOG));
    assert_eq!(write(&mut copies, &mut store, begin(None, 1, 1)), Ok(Version(2)));
    let floor = rallypoint_store::checkpoint::Begin { not_below: Version(7), ..begin(None, 2, 1) };
    assert_eq!(write(&mut copies, &mut store, floor), Ok(Version(7)));
    assert!(collect(&mut copies, &mut store));
    assert!(machine.drives[1].files().iter().all(|(name, _)| !name.contains("000000000001")));
}

#[test]
fn two_logs_write_side_by_side_with_two_chunks_in_flight_per_copy() {
    let machine = Machine::new(2, 1);
    let (mut copies, mut store, _) = machine.open();
    let other = rallypoint_base::id::LogId(9);
    store.begin(&mut copies, begin(None, 1, 1)).unwrap();
    let mut of_other = begin(None, 2, 1);
    of_other.log = other;
    store.begin(&mut copies, of_other).unwrap();
    let mut left = [(LOG, 20), (other, 20)];
    let mut written = 0;
    while written < 2 {
        for (log, left) in &mut left {
            if *left > 0 && store.is_ready(*log) {
                store.write_chunk(&mut copies, *log, &[7; 100]).unwrap();
                *left -= 1;
                if *left == 0 {
                    store.finish(&mut copies, *log, b"").unwrap();
                }
            }
        }
        for drive in &machine.drives {
            let pending = drive.pending();
            let count = pending
                .iter()
                .filter(|op| {
                    op.kind == rallypoint_store::sim_disk::OpKind::Write && op.file.ends_with(".part")
                })
                .count();
            assert!(count <= 2, "{count} chunk writes in flight");
        }
        let Some(routed) = copies.wait() else { panic!("stuck") };
        if let Some(rallypoint_store::checkpoint::CheckpointEvent::Written { .. }) =
            store.handle(&mut copies, routed)
        {
            written += 1;
        }
    }
    assert_eq!(store.logs().collect::<Vec<_>>(), [LOG, other]);
}

#[test]
fn a_full_disk_costs_the_version_and_not_the_copy() {
    let machine = Machine::new(2, 1);
    let (mut copies, mut store, _) = machine.open();
    write(&mut copies, &mut store, begin(None, 10, 2)).unwrap();
    machine.drives[1].set_capacity(Some(machine.drives[1].used() + 8192));
    let failed = write(&mut copies, &mut store, begin(None, 20, 8));
    assert!(matches!(failed, Err(FailReason::NoSpace { copy: 1, .. })), "{failed:?}");
    assert_eq!(copies.live().count(), 2);
    assert_eq!(store.newest(LOG), Some(Version(1)));
    assert!(collect(&mut copies, &mut store));
    assert_eq!(machine.drives[0].files(), machine.drives[1].files());
    machine.drives[1].set_capacity(None);
    assert_eq!(write(&mut copies, &mut store, begin(None, 30, 8)), Ok(Version(3)));
}
