//! A rollback undoes versions that recovery would otherwise rest on, and a version that a protocol
//! may go back to is not collected.
//!
//! Found by the simulator (bank under the independent protocol, seeds 2, 4, 7 and others): `drop_version`,
//! which is for people, refused; and `Forget` reached nobody, so that only the two newest chains stayed.

use rallypoint_base::id::{Epoch, Lineage, LogId, Position, StoreId, Version};
use rallypoint_base::time::Time;
use rallypoint_store::checkpoint::{Begin, CheckpointEvent, CheckpointStore, Identity, ScanMode};
use rallypoint_store::copies::Copies;
use rallypoint_store::sim_disk::{SimDisk, SimDrive};

const LOG: LogId = LogId(0);
const IDENTITY: Identity = Identity { store: StoreId(1), lineage: Lineage(1) };

fn pump(store: &mut CheckpointStore, copies: &mut Copies<SimDisk>) -> Vec<CheckpointEvent> {
    let mut events = Vec::new();
    while let Some(routed) = copies.wait() {
        let mut event = store.handle(copies, routed);
        while let Some(found) = event {
            events.push(found);
            event = store.poll(copies);
        }
    }
    events
}

fn write(store: &mut CheckpointStore, copies: &mut Copies<SimDisk>, position: u64) -> Version {
    let begin = Begin {
        log: LOG,
        position: Position(position),
        epoch: Epoch(1),
        base: None,
        schema: 1,
        created: Time(1),
        program: "test".into(),
        not_below: Version(1),
    };
    let version = store.begin(copies, begin).unwrap();
    store.write_chunk(copies, LOG, b"content").unwrap();
    store.finish(copies, LOG, b"header").unwrap();
    let events = pump(store, copies);
    assert!(events.contains(&CheckpointEvent::Written { log: LOG, version }), "{events:?}");
    version
}

fn versions(store: &CheckpointStore) -> Vec<u64> {
    store.versions(LOG).iter().map(|info| info.manifest.version.0).collect()
}

#[test]
fn what_a_protocol_may_go_back_to_stays_and_what_it_undid_is_gone_for_ever() {
    let drive = SimDrive::new(1, "one");
    let mut copies = Copies::new(vec![SimDisk::open(&drive)]);
    let mut store = CheckpointStore::empty(IDENTITY);
    store.keep_from(LOG, Version(0));
    for position in 1..=5 {
        write(&mut store, &mut copies, position);
    }
    store.collect(&mut copies);
    pump(&mut store, &mut copies);
    assert_eq!(versions(&store), [1, 2, 3, 4, 5], "the protocol has not said that it may forget any");

    store.keep_from(LOG, Version(2));
    store.collect(&mut copies);
    pump(&mut store, &mut copies);
    assert_eq!(versions(&store), [2, 3, 4, 5]);

    store.undo_after(&mut copies, LOG, Version(3)).unwrap();
    assert_eq!(versions(&store), [2, 3]);
    drive.crash();
    let mut copies = Copies::new(vec![SimDisk::open(&drive)]);
    let (mut store, _) = CheckpointStore::scan(&mut copies, IDENTITY, ScanMode::Repair).unwrap();
    assert_eq!(versions(&store), [2, 3], "durable");
    assert_eq!(write(&mut store, &mut copies, 4), Version(6), "no version is used twice");
}
