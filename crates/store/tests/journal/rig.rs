//! What every test of the journal needs: drives, a store on them, and a ledger of what was promised.

use rallypoint_base::id::{CommitSeq, DirectoryId, Epoch, Lineage, LogId, Position, StoreId};
use rallypoint_store::disk::Disk;
use rallypoint_store::error::StoreError;
use rallypoint_store::record::Record;
use rallypoint_store::recovery::{RecoverError, RecoveryReport};
use rallypoint_store::sim_disk::{SimDisk, SimDrive, SimPower};
use rallypoint_store::store::{Identity, OpenOptions, Options, Store, StoreEvent};
use std::convert::Infallible;

/// Small segments, so that a short test rolls over often.
pub(crate) const SMALL: Options = Options { segment_len: 64 << 10, commit_max: 24 << 10, spare_segments: 1 };

pub(crate) fn identity(copies: u8) -> Identity {
    Identity {
        store: StoreId(0xA11CE),
        lineage: Lineage(0xB0B),
        directory: DirectoryId(0),
        copies,
        meta: b"the map".to_vec(),
    }
}

/// `copies` drives on one power line.
pub(crate) fn drives(seed: u64, copies: usize) -> (SimPower, Vec<SimDrive>) {
    let power = SimPower::new();
    let drives = (0..copies)
        .map(|n| SimDrive::on(&power, seed * 2 + n as u64, if n == 0 { "/disk0" } else { "/disk1" }))
        .collect();
    (power, drives)
}

pub(crate) fn disks(drives: &[SimDrive]) -> Vec<SimDisk> {
    drives.iter().map(SimDisk::open).collect()
}

pub(crate) fn create(drives: &[SimDrive], options: Options) -> Store<SimDisk> {
    Store::create(disks(drives), identity(drives.len() as u8), options).expect("create")
}

/// One record as it was handed out or appended.
pub(crate) type Entry = (LogId, Position, Vec<u8>);

pub(crate) type Opened<D> = (Store<D>, RecoveryReport, Vec<Entry>);

pub(crate) fn reopen_with<D: Disk>(disks: Vec<D>, open: OpenOptions) -> Result<Opened<D>, StoreError> {
    let mounted = Store::mount(disks, open)?;
    let mut records = Vec::new();
    let recovered = mounted.recover::<Infallible>(&mut |record| {
        records.push((record.log, record.position, record.payload.to_vec()));
        Ok(())
    });
    match recovered {
        Ok((store, report)) => Ok((store, report, records)),
        Err(RecoverError::Store(error)) => Err(error),
        Err(RecoverError::Sink(never)) => match never {},
    }
}

pub(crate) fn open_small() -> OpenOptions {
    OpenOptions { options: SMALL, ..OpenOptions::default() }
}

pub(crate) fn reopen(drives: &[SimDrive]) -> Result<Opened<SimDisk>, StoreError> {
    reopen_with(disks(drives), open_small())
}

pub(crate) fn payload(log: LogId, position: Position, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    let mut random = rallypoint_base::random::Random::new(u64::from(log.0) << 40 ^ position.0);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn record(log: LogId, position: Position, payload: &[u8]) -> Record<'_> {
    Record { log, position, epoch: Epoch(1), kind: 7, schema: 3, payload }
}

/// Appends and remembers; a store that refuses is an answer, not a failed test.
pub(crate) fn append<D: Disk>(
    store: &mut Store<D>,
    log: u16,
    position: u64,
    len: usize,
) -> Result<(CommitSeq, Entry), StoreError> {
    let (log, position) = (LogId(log), Position(position));
    let payload = payload(log, position, len);
    let commit = store.append(&record(log, position, &payload))?;
    Ok((commit, (log, position, payload)))
}

/// Waits until nothing is in flight; gives the last durable commit and the other events.
pub(crate) fn settle<D: Disk>(store: &mut Store<D>) -> Vec<StoreEvent> {
    let mut events = Vec::new();
    while store.in_flight().is_some() {
        match store.wait() {
            Some(event) => events.push(event),
            None => break,
        }
    }
    while let Some(event) = store.poll() {
        events.push(event);
    }
    events
}

/// Commits everything that is pending and waits for it.
pub(crate) fn commit_all<D: Disk>(store: &mut Store<D>) -> Vec<StoreEvent> {
    let mut events = settle(store);
    while store.commit().is_some() {
        events.extend(settle(store));
    }
    events
}

/// Appends `count` records of `len` bytes to log 1 after `after`, `per` to a commit, all durable.
pub(crate) fn fill<D: Disk>(
    store: &mut Store<D>,
    after: u64,
    count: u64,
    per: u64,
    len: usize,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    for n in 1..=count {
        entries.push(append(store, 1, after + n, len).expect("append").1);
        if n % per == 0 {
            commit_all(store);
        }
    }
    commit_all(store);
    assert_eq!(store.pending_bytes(), 0);
    entries
}

/// True in the long setting.
pub(crate) fn long() -> bool {
    std::env::var("RALLYPOINT_LONG").is_ok_and(|value| value != "0")
}
