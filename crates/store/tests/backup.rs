//! A backup taken while the store runs restores to a whole prefix, under a new lineage.

use proptest::prelude::*;
use rallypoint_base::id::{DirectoryId, Epoch, Lineage, LogId, Position, StoreId, Version};
use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_store::backup::{
    self, BackupError, BackupReport, Index, Recheck, RestoreError, RestoreReport, backup, restore,
};
use rallypoint_store::checkpoint::{
    Begin, CheckpointEvent, CheckpointStore, Identity as CheckpointIdentity, ScanMode,
};
use rallypoint_store::disk::{Completion, Disk, Done, Lane, Op, Ticket};
use rallypoint_store::record::Record;
use rallypoint_store::sim_disk::{SimDisk, SimDrive};
use rallypoint_store::store::{Identity, OpenOptions, Options, Store, StoreEvent};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

const STORE: StoreId = StoreId(5);
const OLD: Lineage = Lineage(6);
const NEW: Lineage = Lineage(7);
const LOGS: [LogId; 2] = [LogId(0), LogId(3)];
const OPTIONS: Options = Options { segment_len: 64 * 1024, commit_max: 16 * 1024, spare_segments: 1 };

fn payload(log: LogId, position: Position) -> Vec<u8> {
    let mut random = Random::new(position.0 * 7 + u64::from(log.0));
    (0..random.below(3000)).map(|_| random.next_u64() as u8).collect()
}

fn chunk(log: LogId, version: Version, index: u64) -> Vec<u8> {
    let mut random = Random::new(version.0 * 99 + u64::from(log.0) + index);
    (0..1000 + random.below(9000)).map(|_| random.next_u64() as u8).collect()
}

/// A store that somebody works with.
struct Running {
    store: Store<SimDisk>,
    checkpoints: CheckpointStore,
    random: Random,
    durable: BTreeMap<LogId, Position>,
    last: BTreeMap<LogId, Position>,
    /// Last full version and how many increments it has, by log.
    chains: BTreeMap<LogId, (Version, u64)>,
}

fn drives(seed: u64) -> Vec<SimDrive> {
    (0..2).map(|copy| SimDrive::new(seed * 2 + copy, "source")).collect()
}

impl Running {
    fn new(drives: &[SimDrive], seed: u64) -> Self {
        let identity = Identity {
            store: STORE,
            lineage: OLD,
            directory: DirectoryId(1),
            copies: 2,
            meta: b"map".to_vec(),
        };
        let store = Store::create(drives.iter().map(SimDisk::open).collect(), identity, OPTIONS).unwrap();
        let checkpoints = CheckpointStore::empty(CheckpointIdentity { store: STORE, lineage: OLD });
        Self {
            store,
            checkpoints,
            random: Random::new(seed),
            durable: BTreeMap::new(),
            last: BTreeMap::new(),
            chains: BTreeMap::new(),
        }
    }

    /// Appends some records and makes them durable.
    fn work(&mut self) {
        for _ in 0..1 + self.random.below(6) {
            let log = *self.random.pick(&LOGS).unwrap();
            let position = self.last.get(&log).copied().unwrap_or_default().next();
            let payload = payload(log, position);
            let record = Record { log, position, epoch: Epoch(1), kind: 2, schema: 3, payload: &payload };
            self.store.append(&record).unwrap();
            self.last.insert(log, position);
        }
        while self.store.commit().is_some() || self.store.in_flight().is_some() {
            match self.store.wait() {
                Some(StoreEvent::Other(routed)) => drop(self.checkpoints.handle(self.store.copies(), routed)),
                Some(_) => {}
                None => break,
            }
        }
        self.durable = self.last.clone();
    }

    fn idle(&mut self) {
        self.store.commit_idle();
        while self.store.in_flight().is_some() {
            self.store.wait().unwrap();
        }
    }

    /// A checkpoint of one log, full at every third time; then collection and the cut.
    fn checkpoint(&mut self, log: LogId) {
        let (base, increments) = self.chains.get(&log).copied().unwrap_or_default();
        let base = (increments % 3 != 0).then_some(base);
        let position = self.durable.get(&log).copied().unwrap_or_default();
        let begin = Begin { log, position, base, schema: 4, created: Time(9), ..Begin::default() };
        let version = self.checkpoints.begin(self.store.copies(), begin).unwrap();
        let mut index = 0;
        loop {
            if index < 4 && self.checkpoints.is_ready(log) {
                self.checkpoints.write_chunk(self.store.copies(), log, &chunk(log, version, index)).unwrap();
                index += 1;
                if index == 4 {
                    self.checkpoints.finish(self.store.copies(), log, b"header").unwrap();
                }
                continue;
            }
            if let Some(StoreEvent::Other(routed)) = self.store.wait()
                && let Some(event) = self.checkpoints.handle(self.store.copies(), routed)
            {
                assert!(matches!(event, CheckpointEvent::Written { .. }), "{event:?}");
                break;
            }
        }
        self.chains.insert(log, (version, increments + 1));
        self.checkpoints.collect(self.store.copies());
        while self.checkpoints.is_collecting() {
            match self.store.wait() {
                Some(StoreEvent::Other(routed)) => drop(self.checkpoints.handle(self.store.copies(), routed)),
                Some(_) => {}
                None => break,
            }
        }
        let cut = self.checkpoints.log_cut(log);
        self.store.cut(log, cut.next());
    }

    fn step(&mut self) {
        match self.random.below(8) {
            0 => {
                let log = *self.random.pick(&LOGS).unwrap();
                self.checkpoint(log);
            }
            1 => self.idle(),
            _ => self.work(),
        }
    }
}

/// Reads the source, and lets the store go on now and then.
struct Meanwhile {
    inner: SimDisk,
    running: Rc<RefCell<Running>>,
    every: u64,
    count: u64,
}

impl Disk for Meanwhile {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        self.count += 1;
        if self.count.is_multiple_of(self.every) {
            self.running.borrow_mut().step();
        }
        self.inner.submit(lane, op)
    }
    fn poll(&mut self) -> Option<Completion> {
        self.inner.poll()
    }
    fn wait(&mut self) -> Option<Completion> {
        self.inner.wait()
    }
    fn name(&self) -> &str {
        self.inner.name()
    }
}

fn sources(drives: &[SimDrive]) -> Vec<SimDisk> {
    drives.iter().map(SimDisk::open_read_only).collect()
}

fn simple_backup(drives: &[SimDrive], target: &SimDrive) -> Result<BackupReport, BackupError> {
    backup(sources(drives), SimDisk::open(target), Time(1), "test", Recheck::New)
}

fn restored(target: &SimDrive, seed: u64) -> Result<(Vec<SimDrive>, RestoreReport), RestoreError> {
    let new: Vec<SimDrive> = (0..2).map(|copy| SimDrive::new(seed + copy, "new")).collect();
    let disks = new.iter().map(SimDisk::open).collect();
    let report = restore(SimDisk::open_read_only(target), None, disks, NEW, OPTIONS)?;
    Ok((new, report))
}

/// Opens the restored store as a program would, and checks every byte of it.
fn audit(new: &[SimDrive], report: &RestoreReport) {
    new.iter().for_each(SimDrive::crash);
    let mut mounted =
        Store::mount(new.iter().map(SimDisk::open).collect(), OpenOptions::default()).expect("it mounts");
    assert_eq!(mounted.identity().lineage, NEW);
    assert_eq!(mounted.identity().meta, b"map");
    let identity = CheckpointIdentity { store: STORE, lineage: NEW };
    let (mut checkpoints, findings) =
        CheckpointStore::scan(mounted.copies(), identity, ScanMode::Repair).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    let mut found = Vec::new();
    for log in checkpoints.logs().collect::<Vec<_>>() {
        for version in checkpoints.versions(log).iter().map(|i| i.manifest.version).collect::<Vec<_>>() {
            found.push((log, version));
            let mut index = 0;
            checkpoints
                .read(mounted.copies(), log, version, &mut |bytes| {
                    assert_eq!(bytes, chunk(log, version, index));
                    index += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(checkpoints.read_header(mounted.copies(), log, version).unwrap(), b"header");
        }
    }
    assert_eq!(found, report.checkpoints);
    let mut logs: BTreeMap<LogId, (Position, Position)> = BTreeMap::new();
    let (_, recovery) = mounted
        .recover(&mut |record| -> Result<(), ()> {
            assert_eq!(record.payload, payload(record.log, record.position));
            assert_eq!((record.kind, record.schema, record.epoch), (2, 3, Epoch(1)));
            let range = logs.entry(record.log).or_insert((record.position, Position(record.position.0 - 1)));
            assert_eq!(record.position, range.1.next());
            range.1 = record.position;
            Ok(())
        })
        .unwrap();
    assert!(recovery.lost.is_empty() && recovery.cut.is_none());
    let ends: Vec<_> = logs.iter().map(|(&log, &(_, last))| (log, last)).collect();
    assert_eq!(ends, report.logs);
    for (log, (first, last)) in logs {
        let Some(newest) = checkpoints.newest(log) else { continue };
        let position = checkpoints.version(log, newest).unwrap().manifest.position;
        assert!(first <= position.next(), "{log}: the log begins behind its newest checkpoint");
        assert!(last >= position, "{log}: the log ends before its newest checkpoint");
    }
}

fn seeds(short: u64) -> std::ops::Range<u64> {
    0..if std::env::var_os("RALLYPOINT_LONG").is_some() { short * 20 } else { short }
}

#[test]
fn a_backup_taken_while_the_store_works_is_a_whole_prefix() {
    let (mut taken, mut moved, mut checkpoints) = (0, 0, 0);
    for seed in seeds(25) {
        let drives = drives(seed);
        let running = Rc::new(RefCell::new(Running::new(&drives, seed)));
        let target = SimDrive::new(99, "target");
        for round in 0..3 {
            for _ in 0..30 {
                running.borrow_mut().step();
            }
            running.borrow_mut().idle();
            let before = running.borrow().durable.clone();
            let every = 5 + seed * 3 + round;
            let meanwhile = sources(&drives)
                .into_iter()
                .map(|inner| Meanwhile { inner, running: running.clone(), every, count: 0 })
                .collect();
            let report = match backup(meanwhile, SimDisk::open(&target), Time(round), "test", Recheck::New) {
                Ok(report) => report,
                // Right, when the store recycles faster than it is read; the backup before is whole.
                Err(BackupError::Journal { .. } | BackupError::Checkpoint(_)) => {
                    moved += 1;
                    continue;
                }
                Err(error) => panic!("seed {seed}: {error}"),
            };
            taken += 1;
            checkpoints += report.checkpoints.len();
            for (log, position) in &before {
                let there = report.logs.iter().find(|(l, _)| l == log).map(|(_, last)| *last);
                assert!(there >= Some(*position), "seed {seed}: {log} was durable to {position}: {there:?}");
            }
            let (new, restored) = restored(&target, seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(restored.logs, report.logs);
            assert_eq!((restored.from, restored.taken), (OLD, Time(round)));
            audit(&new, &restored);
        }
    }
    assert!(taken > moved && checkpoints > 0, "{taken} taken, {moved} given up, {checkpoints} checkpoints");
}

#[test]
fn a_second_backup_copies_only_what_changed() {
    let drives = drives(1);
    let mut running = Running::new(&drives, 1);
    (0..40).for_each(|_| running.work());
    LOGS.iter().for_each(|&log| running.checkpoint(log));
    running.idle();
    let target = SimDrive::new(9, "target");
    let first = simple_backup(&drives, &target).unwrap();
    assert_eq!((first.sequence, first.skipped), (1, 0));
    let again = simple_backup(&drives, &target).unwrap();
    assert_eq!((again.sequence, again.logs.clone()), (2, first.logs.clone()));
    assert!(again.written < 8192 && again.skipped > 100_000, "{again:?}");
    running.work();
    running.idle();
    let third = simple_backup(&drives, &target).unwrap();
    assert!(third.written < third.skipped / 2, "{third:?}");
    let files = target.files();
    assert_eq!(files.iter().filter(|(name, _)| name.starts_with("index-")).count(), 2, "{files:?}");
    let disks = vec![SimDisk::open(&SimDrive::new(4, "new"))];
    let older = restore(SimDisk::open(&target), Some(2), disks, NEW, OPTIONS).unwrap();
    assert_eq!(older.logs, first.logs);
    let wrong = restore(SimDisk::open(&target), None, Vec::<SimDisk>::new(), OLD, OPTIONS);
    assert!(matches!(wrong, Err(RestoreError::SameLineage { .. })));
    let (_, restored) = restored(&target, 1).unwrap();
    assert_eq!(restored.logs, third.logs);
}

/// A target that forgets to sync, for the check of the check.
struct Unsynced<D> {
    inner: D,
    made_up: VecDeque<Completion>,
}

impl<D: Disk> Disk for Unsynced<D> {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        if matches!(op, Op::Sync { .. }) {
            // A real ticket, whose own answer nobody hears.
            let ticket = self.inner.submit(lane, Op::List);
            while let Some(done) = self.inner.wait() {
                if done.ticket == ticket {
                    break;
                }
                self.made_up.push_back(done);
            }
            self.made_up.push_back(Completion { ticket, result: Ok(Done::Unit) });
            return ticket;
        }
        self.inner.submit(lane, op)
    }
    fn poll(&mut self) -> Option<Completion> {
        self.made_up.pop_front().or_else(|| self.inner.poll())
    }
    fn wait(&mut self) -> Option<Completion> {
        self.made_up.pop_front().or_else(|| self.inner.wait())
    }
    fn name(&self) -> &str {
        self.inner.name()
    }
}

/// Crashes the target at operations of a second backup; what is restored must be one of the two.
fn crash_the_target(mutant: bool, salt: u64) -> Result<(), String> {
    let drives = drives(3);
    let mut running = Running::new(&drives, 3);
    (0..20).for_each(|_| running.work());
    running.checkpoint(LOGS[0]);
    running.idle();
    let before = SimDrive::new(77, "target");
    let first = simple_backup(&drives, &before).unwrap();
    before.crash();
    (0..10).for_each(|_| running.work());
    running.checkpoint(LOGS[1]);
    running.idle();
    for at in 1.. {
        let target = before.fork(at + salt * 1000);
        let disk = SimDisk::open(&target);
        target.crash_after(at);
        let made_up = VecDeque::new();
        let ended = if mutant {
            backup(sources(&drives), Unsynced { inner: disk, made_up }, Time(2), "test", Recheck::New)
        } else {
            backup(sources(&drives), disk, Time(2), "test", Recheck::New)
        };
        let crashed = target.is_crashed();
        target.crash();
        let (new, report) = restored(&target, at).map_err(|error| format!("operation {at}: {error}"))?;
        audit(&new, &report);
        if let Ok(second) = &ended
            && report.logs != second.logs
        {
            return Err(format!("operation {at}: the second backup was there and is not"));
        }
        if report.taken == Time(1) && report.logs != first.logs {
            return Err(format!("operation {at}: the first backup changed"));
        }
        if !crashed {
            assert!(ended.is_ok(), "{ended:?}");
            return Ok(());
        }
    }
    Ok(())
}

#[test]
fn a_crash_at_every_operation_of_a_backup_leaves_the_one_before_or_the_new_one() {
    for salt in seeds(2) {
        crash_the_target(false, salt).unwrap_or_else(|why| panic!("salt {salt}, {why}"));
    }
}

#[test]
fn the_crash_check_sees_a_target_that_is_not_synced() {
    let noticed = (0..10).any(|salt| {
        let seen = std::panic::catch_unwind(|| crash_the_target(true, salt));
        !matches!(seen, Ok(Ok(())))
    });
    assert!(noticed, "it went unnoticed");
}

#[test]
fn damage_is_taken_from_the_other_copy_and_on_both_is_refused_by_name() {
    let drives = drives(2);
    let mut running = Running::new(&drives, 2);
    (0..30).for_each(|_| running.work());
    running.checkpoint(LOGS[0]);
    running.idle();
    let segment = drives[0].files().into_iter().find(|(name, _)| name.starts_with("seg-")).unwrap().0;
    let part = drives[0].files().into_iter().find(|(name, _)| name.ends_with(".part")).unwrap().0;
    drives[0].flip_bit(&segment, 9000, 1);
    drives[1].fail_read(&segment, 0..4096);
    drives[0].flip_bit(&part, 50, 1);
    let target = SimDrive::new(9, "target");
    simple_backup(&drives, &target).unwrap();
    let (new, report) = restored(&target, 2).unwrap();
    audit(&new, &report);
    let image = drives[0].file(&part).unwrap();
    assert_ne!(image, drives[1].file(&part).unwrap(), "a backup writes nothing to its source");

    drives[1].flip_bit(&part, 50, 1);
    let refused = simple_backup(&drives, &SimDrive::new(9, "target"));
    assert!(matches!(refused, Err(BackupError::Checkpoint(_))), "{refused:?}");
    for drive in &drives {
        assert!(drive.flip_bit(&part, 50, 1), "healed");
    }
    drives[1].zero_block(&segment, 2);
    let refused = simple_backup(&drives, &SimDrive::new(9, "target"));
    assert!(matches!(refused, Err(BackupError::Journal { .. })), "{refused:?}");
}

#[test]
fn a_target_that_does_not_keep_its_bytes_or_is_anothers_is_refused() {
    let source = drives(1);
    let mut running = Running::new(&source, 1);
    running.work();
    running.idle();
    let target = SimDrive::new(9, "target");
    target.lose_write(1);
    assert!(matches!(simple_backup(&source, &target), Err(BackupError::NotKept { .. })));
    simple_backup(&source, &target).unwrap();
    let other = drives(50);
    let identity =
        Identity { store: StoreId(1), lineage: OLD, directory: DirectoryId(1), copies: 2, meta: Vec::new() };
    drop(Store::create(other.iter().map(SimDisk::open).collect(), identity, OPTIONS).unwrap());
    assert!(matches!(simple_backup(&other, &target), Err(BackupError::Foreign { .. })));
    target.flip_bit("index-00000001", 200, 0);
    assert!(matches!(restored(&target, 1), Err(RestoreError::Index(_))));
}

#[test]
fn rot_on_the_target_is_found_and_written_anew() {
    let source = drives(1);
    let mut running = Running::new(&source, 1);
    (0..10).for_each(|_| running.work());
    running.checkpoint(LOGS[0]);
    running.idle();
    let target = SimDrive::new(9, "target");
    simple_backup(&source, &target).unwrap();
    assert!(backup::verify(SimDisk::open(&target)).unwrap().is_empty());
    let part = target.files().into_iter().find(|(name, _)| name.starts_with("p-")).unwrap().0;
    target.flip_bit(&part, 9, 0);
    assert_eq!(backup::verify(SimDisk::open_read_only(&target)).unwrap(), std::slice::from_ref(&part));
    assert!(matches!(restored(&target, 1), Err(RestoreError::Damaged { .. })));
    backup(sources(&source), SimDisk::open(&target), Time(2), "test", Recheck::All).unwrap();
    assert!(backup::verify(SimDisk::open(&target)).unwrap().is_empty());
    let (new, report) = restored(&target, 1).unwrap();
    audit(&new, &report);
    target.take_file(&part);
    assert_eq!(backup::verify(SimDisk::open(&target)).unwrap(), [part]);
}

#[test]
fn an_empty_store_can_be_backed_up() {
    let source = drives(1);
    let _running = Running::new(&source, 1);
    let target = SimDrive::new(9, "target");
    let report = simple_backup(&source, &target).unwrap();
    assert!(report.logs.is_empty());
    let (new, report) = restored(&target, 1).unwrap();
    audit(&new, &report);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_index(bytes in proptest::collection::vec(any::<u8>(), 0..300), whole: bool) {
        let mut file = bytes.clone();
        if whole {
            file = b"RALLYBAK\x01\0\0\0\0\0\0\0".to_vec();
            file.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            file.extend_from_slice(&rallypoint_base::hash::xxh3(&bytes).to_le_bytes());
            let hash = rallypoint_base::hash::xxh3(&file);
            file.extend_from_slice(&hash.to_le_bytes());
            file.extend_from_slice(&bytes);
        }
        let _ = Index::decode(&file);
    }
}
