//! Without faults: what is committed comes back, in order, and only that.

use crate::rig::*;
use rallypoint_base::id::{CommitSeq, Epoch, LogId, Position};
use rallypoint_store::error::StoreError;
use rallypoint_store::store::{OpenOptions, Options, Store, StoreEvent};

#[test]
fn what_is_committed_comes_back_in_order_and_the_rest_does_not() {
    for copies in [1, 2] {
        let (_, drives) = drives(1, copies);
        let mut store = create(&drives, SMALL);
        let mut entries = fill(&mut store, 0, 300, 7, 900);
        append(&mut store, 1, 301, 10).unwrap();
        drop(store);
        let (mut store, report, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries, "{copies} copies");
        assert_eq!(report.cut, None);
        assert_eq!(report.lost, vec![]);
        assert_eq!(report.repaired, 0);
        assert_eq!(store.epoch(), Epoch(2));
        assert_eq!(store.identity(), &identity(copies as u8));
        entries.extend(fill(&mut store, 300, 50, 3, 2000));
        drop(store);
        let (_, _, found) = reopen(&drives).unwrap();
        assert_eq!(found, entries, "{copies} copies");
    }
}

#[test]
fn records_larger_than_blocks_and_empty_ones_come_back() {
    let (_, drives) = drives(2, 1);
    let mut store = create(&drives, SMALL);
    let mut entries = Vec::new();
    for (position, len) in (1..).zip([0, 1, 3968, 3969, 4000, 12_000, 0, 29_000, 5]) {
        entries.push(append(&mut store, 3, position, len).unwrap().1);
        if position % 2 == 0 {
            commit_all(&mut store);
        }
    }
    commit_all(&mut store);
    let too_large = append(&mut store, 3, 10, 40_000).unwrap_err();
    assert!(matches!(too_large, StoreError::RecordTooLarge { .. }), "{too_large}");
    assert_eq!(reopen(&drives).unwrap().2, entries);
}

#[test]
fn append_tells_the_commit_that_durable_will_name() {
    let (_, drives) = drives(3, 2);
    let mut store = create(&drives, SMALL);
    let mut promised = Vec::new();
    for position in 1..=100 {
        promised.push(append(&mut store, 1, position, 1000).unwrap().0);
    }
    assert!(promised.last() > promised.first(), "more than one commit's worth was appended");
    assert!(store.pending_bytes() >= 100_000);
    let mut durable = Vec::new();
    while let Some(commit) = store.commit() {
        assert_eq!(store.in_flight(), Some(commit));
        assert_eq!(store.commit(), None, "one commit in flight");
        for event in settle(&mut store) {
            if let StoreEvent::Durable { commit } = event {
                durable.push(commit);
            }
        }
    }
    promised.dedup();
    assert_eq!(durable, promised);
}

#[test]
fn the_idle_commit_is_made_once_and_only_when_nothing_covers_the_last_real_one() {
    let (_, drives) = drives(4, 1);
    let mut store = create(&drives, SMALL);
    assert_eq!(store.commit_idle(), None);
    append(&mut store, 1, 1, 10).unwrap();
    assert_eq!(store.commit_idle(), None, "something is pending");
    assert_eq!(store.commit(), Some(CommitSeq(1)));
    assert_eq!(store.commit_idle(), None, "something is in flight");
    settle(&mut store);
    assert_eq!(store.commit_idle(), Some(CommitSeq(2)));
    settle(&mut store);
    assert_eq!(store.commit_idle(), None, "covered");
    drop(store);
    let (mut store, report, _) = reopen(&drives).unwrap();
    assert_eq!(report.watermark, CommitSeq(1));
    assert_eq!(store.commit_idle(), None, "still covered");
}

#[test]
fn a_gap_or_a_repetition_in_a_log_is_the_callers_error() {
    let (_, drives) = drives(5, 1);
    let mut store = create(&drives, SMALL);
    append(&mut store, 1, 5, 10).unwrap();
    for wrong in [5, 7] {
        let error = append(&mut store, 1, wrong, 10).unwrap_err();
        assert!(matches!(error, StoreError::OutOfOrder { expected: Position(6), .. }), "{error}");
    }
    append(&mut store, 2, 1, 10).unwrap();
    append(&mut store, LogId::SYSTEM.0, 9, 10).unwrap();
    append(&mut store, 1, 6, 10).unwrap();
    assert_eq!(store.last_position(LogId::SYSTEM), Some(Position(9)));
}

#[test]
fn a_cut_recycles_segments_and_keeps_what_any_log_needs() {
    for copies in [1, 2] {
        let (_, drives) = drives(6, copies);
        let mut store = create(&drives, SMALL);
        append(&mut store, 9, 1, 10).unwrap();
        let entries = fill(&mut store, 0, 200, 5, 1000);
        let before = store.status().segments;
        assert!(before > 3, "{before}");
        store.cut(LogId(1), Position(190));
        commit_all(&mut store);
        assert_eq!(store.status().segments, before, "log 9 still needs the first segment");
        store.cut(LogId(9), Position(2));
        while store.poll().is_some() || store.wait().is_some() {}
        assert!(store.status().segments < 3);
        let used = drives[0].used();
        let more = fill(&mut store, 200, 1000, 5, 1000);
        for position in (300..1200).step_by(50) {
            store.cut(LogId(1), Position(position));
        }
        while store.poll().is_some() || store.wait().is_some() {}
        drop(store);
        let (mut store, _, found) = reopen(&drives).unwrap();
        let all: Vec<_> = entries.into_iter().chain(more).collect();
        assert!(found.len() < 120, "old records are gone: {}", found.len());
        assert_eq!(found[..], all[all.len() - found.len()..]);
        fill(&mut store, 1200, 20, 5, 1000);
        // Round and round on the same few files.
        let mut high = 0;
        for round in 0..30 {
            fill(&mut store, 1220 + round * 50, 50, 5, 1000);
            store.cut(LogId(1), Position(1220 + round * 50));
            while store.poll().is_some() || store.wait().is_some() {}
            high = high.max(drives[0].used());
        }
        assert!(high <= used + 4 * SMALL.segment_len, "the journal does not grow: {used} {high}");
        drop(store);
        assert!(reopen(&drives).is_ok());
    }
}

#[test]
fn create_wants_empty_directories_and_mount_wants_a_store() {
    let (_, drives) = drives(7, 2);
    let missing = reopen(&drives).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
    drives[1].put_file("diary", b"dear diary");
    let refused = Store::create(disks(&drives), identity(2), SMALL).unwrap_err();
    assert!(refused.to_string().contains("/disk1 is not empty (it holds diary)"), "{refused}");
    drives[1].take_file("diary");
    drives[1].put_file("lock", b"");
    drop(create(&drives, SMALL));
    let refused = Store::create(disks(&drives), identity(2), SMALL).unwrap_err();
    assert!(matches!(refused, StoreError::NotEmpty { .. }), "{refused}");
    let (_, report, _) = reopen(&drives).unwrap();
    assert_eq!(report.unknown_files, vec![]);
    let odd = Options { segment_len: 5000, ..SMALL };
    assert!(matches!(Store::create(disks(&drives), identity(2), odd), Err(StoreError::Options(_))));
}

#[test]
fn a_read_only_opening_writes_nothing_and_says_so() {
    let (_, drives) = drives(8, 2);
    let mut store = create(&drives, SMALL);
    let entries = fill(&mut store, 0, 20, 5, 100);
    drop(store);
    drives[0].flip_bit("seg-00000001", 300, 2);
    let writes = drives[0].writes() + drives[1].writes();
    let open = OpenOptions { read_only: true, ..open_small() };
    let (mut store, report, found) = reopen_with(disks(&drives), open).unwrap();
    assert_eq!(found, entries);
    assert_eq!(report.repaired, 1);
    assert_eq!(append(&mut store, 1, 21, 10).unwrap_err(), StoreError::ReadOnly);
    while store.poll().is_some() || store.wait().is_some() {}
    assert_eq!(drives[0].writes() + drives[1].writes(), writes);
    assert_eq!(store.epoch(), Epoch(1));
}
