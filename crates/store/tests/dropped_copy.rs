//! A copy that is dropped while it owes the commit in flight its last answer.
//!
//! Found by the simulator (seed 732 of the bank): the copy failed at an operation of a checkpoint,
//! its ticket was struck off the commit in flight, and nobody looked whether that commit had become
//! durable with it. Nothing was acknowledged from then on.

use rallypoint_base::id::{DirectoryId, Lineage, LogId, Position, StoreId};
use rallypoint_store::disk::{DiskError, DiskErrorKind};
use rallypoint_store::record::Record;
use rallypoint_store::sim_disk::{Completions, SimDisk, SimDrive};
use rallypoint_store::store::{Identity, Options, Store, StoreEvent};

#[test]
fn the_commit_in_flight_lands_when_the_copy_it_waits_for_is_dropped() {
    let drives = [SimDrive::new(1, "one"), SimDrive::new(2, "two")];
    let disks = drives.iter().map(SimDisk::open).collect();
    let identity = Identity {
        store: StoreId(1),
        lineage: Lineage(1),
        directory: DirectoryId(0),
        copies: 2,
        meta: Vec::new(),
    };
    let options = Options { segment_len: 1 << 16, ..Options::default() };
    let mut store = Store::create(disks, identity, options).unwrap();
    while store.wait().is_some() {}
    drives.iter().for_each(|drive| drive.set_completions(Completions::Manual));
    let record = Record {
        log: LogId(0),
        position: Position(1),
        epoch: store.epoch(),
        kind: 1,
        schema: 1,
        payload: b"x",
    };
    store.append(&record).unwrap();
    let commit = store.commit().unwrap();
    for pending in drives[0].pending() {
        drives[0].complete(pending.ticket);
    }
    assert!(store.poll().is_none(), "the second copy has not answered");

    let (kind, text) = (DiskErrorKind::Io, String::from("simulated"));
    store.drop_copy(1, DiskError { kind, operation: text.clone(), detail: text });
    let events: Vec<StoreEvent> = std::iter::from_fn(|| store.poll()).collect();
    assert!(
        matches!(events[..], [StoreEvent::CopyLost { copy: 1, .. }, StoreEvent::Durable { commit: c }] if c == commit),
        "{events:?}"
    );
}
