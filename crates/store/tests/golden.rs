//! Row 26 of the fault matrix: a directory that an earlier release wrote opens for ever.
//!
//! `tests/golden/1` is a small directory of format version 1, with a journal that was cut and went
//! round, and a checkpoint with a resume point. Files lie there without the zeros at their end;
//! `lengths` has their names and true lengths. A golden directory is never written again: a new
//! format gets a new one beside it. (`cargo test -p rallypoint-store --test golden -- --ignored` makes
//! the one of this release while it is not yet released.)

use rallypoint_base::id::{CommitSeq, DirectoryId, Epoch, Lineage, LogId, Position, StoreId, Version};
use rallypoint_base::time::Time;
use rallypoint_store::checkpoint::{
    Begin, CheckpointEvent, CheckpointStore, Identity as CheckpointIdentity, ScanMode,
};
use rallypoint_store::record::Record;
use rallypoint_store::resume::ResumePoint;
use rallypoint_store::sim_disk::{SimDisk, SimDrive};
use rallypoint_store::store::{Identity, OpenOptions, Options, Store, StoreEvent};
use rallypoint_store::verify::verify;
use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;

const STORE: StoreId = StoreId(0x601D);
const LINEAGE: Lineage = Lineage(0xE66);
const OPTIONS: Options = Options { segment_len: 64 << 10, commit_max: 24 << 10, spare_segments: 1 };
const STATE: &[u8] = b"what the actors of partition 1 remember";

fn place() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/1")
}

/// Record `position` of a log: its length and content follow from its number.
fn payload(log: u16, position: u64) -> Vec<u8> {
    let len = [0, 17, 100, 700, 5000][((position + u64::from(log)) % 5) as usize];
    (0..len).map(|n| (n as u64 * 31 + position * 7 + u64::from(log)) as u8).collect()
}

fn settle(store: &mut Store<SimDisk>) {
    while store.commit().is_some() || store.in_flight().is_some() {
        store.wait();
    }
}

fn append(store: &mut Store<SimDisk>, log: u16, positions: std::ops::RangeInclusive<u64>) {
    for position in positions {
        let payload = payload(log, position);
        let (log, position) = (LogId(log), Position(position));
        let record = Record { log, position, epoch: Epoch(1), kind: 2, schema: 3, payload: &payload };
        store.append(&record).expect("append");
        if position.0 % 3 == 0 {
            settle(store);
        }
    }
    settle(store);
}

/// A checkpoint of log 1 at 20, as the engine writes it.
fn checkpoint(store: &mut Store<SimDisk>) {
    let mut checkpoints = CheckpointStore::empty(CheckpointIdentity { store: STORE, lineage: LINEAGE });
    let begin = Begin {
        log: LogId(1),
        position: Position(20),
        epoch: Epoch(1),
        base: None,
        schema: 3,
        created: Time(1_700_000_000_000_000_000),
        program: "golden 1".into(),
        not_below: Version(0),
    };
    checkpoints.begin(store.copies(), begin).expect("begin");
    let (mut written, mut finished) = (false, false);
    loop {
        if !written && checkpoints.is_ready(LogId(1)) {
            checkpoints.write_chunk(store.copies(), LogId(1), STATE).expect("chunk");
            written = true;
        } else if written && !finished {
            let header = store.resume_point().encode();
            checkpoints.finish(store.copies(), LogId(1), &header).expect("finish");
            finished = true;
        }
        let mut event = checkpoints.poll(store.copies());
        if event.is_none()
            && let Some(StoreEvent::Other(routed)) = store.wait()
        {
            event = checkpoints.handle(store.copies(), routed);
        }
        if let Some(CheckpointEvent::Written { .. }) = event {
            return;
        }
    }
}

/// What this release writes: two logs over three segments, the first one recycled.
fn written() -> SimDrive {
    let drive = SimDrive::new(1, "golden");
    let identity = Identity {
        store: STORE,
        lineage: LINEAGE,
        directory: DirectoryId(1),
        copies: 1,
        meta: b"the map of the golden store".to_vec(),
    };
    let mut store = Store::create(vec![SimDisk::open(&drive)], identity, OPTIONS).expect("create");
    append(&mut store, 1, 1..=20);
    append(&mut store, 2, 1..=35);
    checkpoint(&mut store);
    store.cut(LogId(1), Position(21));
    store.cut(LogId(2), Position(30));
    while store.wait().is_some() {}
    append(&mut store, 1, 21..=41);
    assert!(store.commit_idle().is_some());
    while store.wait().is_some() {}
    drive
}

fn golden() -> SimDrive {
    let drive = SimDrive::new(1, "golden");
    let lengths = fs::read_to_string(place().join("lengths")).expect("tests/golden/1/lengths");
    for line in lengths.lines() {
        let (name, len) = line.split_once(' ').expect("a name and a length");
        let mut bytes = fs::read(place().join(name)).expect("a file that is listed");
        bytes.resize(len.parse().expect("a length"), 0);
        drive.put_file(name, &bytes);
    }
    drive
}

fn open() -> OpenOptions {
    OpenOptions { options: OPTIONS, ..OpenOptions::default() }
}

#[test]
#[ignore = "makes the golden directory of a format that is not released yet"]
fn make_the_golden_directory() {
    let drive = written();
    fs::create_dir_all(place()).expect("a directory");
    let mut lengths = String::new();
    for (name, len) in drive.files() {
        let bytes = drive.file(&name).expect("listed");
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        fs::write(place().join(&name), &bytes[..used]).expect("written");
        lengths += &format!("{name} {len}\n");
    }
    fs::write(place().join("lengths"), lengths).expect("written");
}

#[test]
fn row_26_this_release_writes_what_the_golden_directory_holds() {
    let (written, golden) = (written(), golden());
    assert_eq!(written.files(), golden.files());
    for (name, _) in written.files() {
        assert!(
            written.file(&name) == golden.file(&name),
            "{name}: the format changed without a new version"
        );
    }
}

#[test]
fn row_26_the_golden_directory_opens_whole_and_goes_on() {
    let drive = golden();
    let report = verify(vec![SimDisk::open(&drive)]).expect("verify");
    assert!(report.is_clean(), "{report:?}");
    let identity = report.identity;
    assert_eq!((identity.store, identity.lineage, identity.directory), (STORE, LINEAGE, DirectoryId(1)));
    assert_eq!(identity.meta, b"the map of the golden store");

    let mut mounted = Store::mount(vec![SimDisk::open(&drive)], open()).expect("mount");
    let identity = CheckpointIdentity { store: STORE, lineage: LINEAGE };
    let (mut checkpoints, findings) =
        CheckpointStore::scan(mounted.copies(), identity, ScanMode::LookOnly).expect("scan");
    assert_eq!(findings, vec![]);
    assert_eq!(checkpoints.newest(LogId(1)), Some(Version(1)));
    let header = checkpoints.read_header(mounted.copies(), LogId(1), Version(1)).expect("header");
    let point = ResumePoint::decode(&header).expect("a resume point");
    let mut state = Vec::new();
    let mut load = |bytes: &[u8]| {
        state.extend_from_slice(bytes);
        Ok::<(), String>(())
    };
    checkpoints.read(mounted.copies(), LogId(1), Version(1), &mut load).expect("content");
    assert_eq!(state, STATE);

    let mut found: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
    let mut sink = |record: &Record<'_>| {
        assert_eq!((record.epoch, record.kind, record.schema), (Epoch(1), 2, 3));
        assert_eq!(record.payload, payload(record.log.0, record.position.0), "{}", record.position);
        found[usize::from(record.log.0) - 1].push(record.position.0);
        Ok::<(), Infallible>(())
    };
    let (mut store, report) = mounted.recover(&mut sink).expect("recover");
    assert_eq!((report.lost.len(), report.repaired, report.cut), (0, 0, None));
    assert!(report.watermark.next() == report.last_commit, "the idle commit is the last one");
    for (log, needed, last) in [(0, 21, 41), (1, 30, 35)] {
        let first = found[log][0];
        assert!(first <= needed, "log {}: from {first} on", log + 1);
        assert_eq!(found[log], (first..=last).collect::<Vec<_>>(), "log {}", log + 1);
    }
    assert!(drive.file("seg-00000001").is_none(), "the first segment was recycled");
    append(&mut store, 1, 42..=60);
    drop(store);

    let mounted = Store::mount(vec![SimDisk::open(&drive)], open()).expect("mount");
    let (known, mut last) = ([(LogId(1), Position(20)), (LogId(2), Position(35))], Position(0));
    let mut sink = |record: &Record<'_>| {
        last = record.position;
        Ok::<(), Infallible>(())
    };
    let (_, report) = mounted.recover_from(Some(point), &known, &mut sink).expect("recover");
    assert_eq!((report.resumed, last), (Some(point.commit), Position(60)));
    assert!(point.commit > CommitSeq(1));
}
