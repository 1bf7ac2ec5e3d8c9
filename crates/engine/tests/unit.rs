//! The glue of partitions, journal and checkpoints: a journal that ends before what a checkpoint
//! proves is damage, not a short history; and whoever hardly runs does not hold the journal up.

use rallypoint_base::id::{
    DirectoryId, Epoch, InputSeq, Lineage, LogId, PartitionId, SessionId, Ssn, StoreId, Version,
};
use rallypoint_base::time::Time;
use rallypoint_base::wire::Malformed;
use rallypoint_engine::actor::{Actor, Cx};
use rallypoint_engine::codec::{Codec, CodecError, Encoded, encode};
use rallypoint_engine::command::{Notice, Outcome, Receipt, Turned};
use rallypoint_engine::effect::EffectKey;
use rallypoint_engine::map::Map;
use rallypoint_engine::parcel::{Body, Parcel, kind_tag};
use rallypoint_engine::partition::{Ending, Limits};
use rallypoint_engine::registry::Registry;
use rallypoint_engine::unit::{
    Application, OpenError, OpenReport, Outside, ProtocolFactory, Unit, UnitNotice, WitnessFactory,
};
use rallypoint_rollback::pessimistic::Pessimistic;
use rallypoint_rollback::protocol::{Command, Peer, Protocol};
use rallypoint_store::checkpoint::{
    Begin, CheckpointStore, FileKind, Identity as CheckpointIdentity, ScanMode, file_name,
};
use rallypoint_store::event_log::{EventKind, EventLog};
use rallypoint_store::sim_disk::{SimDisk, SimDrive};
use rallypoint_store::store::{Identity, OpenOptions, Options, Store};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Counter(u64);

impl Actor for Counter {
    const KIND: &'static str = "counter";
    type Message = u64;
    type Reply = u64;
    type Error = ();
    fn handle(&mut self, add: u64, _cx: &mut Cx<'_>) -> Result<u64, ()> {
        self.0 += add;
        Ok(self.0)
    }
}

/// The same kind in a program that is not ready for what is stored.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Changed(u64);

impl Actor for Changed {
    const KIND: &'static str = "counter";
    const SCHEMA: u16 = 2;
    type Message = u64;
    type Reply = u64;
    type Error = ();
    fn handle(&mut self, _: u64, _cx: &mut Cx<'_>) -> Result<u64, ()> {
        Ok(self.0)
    }
    fn migrate(_: Encoded<'_>) -> Result<Self, CodecError> {
        panic!("not written yet")
    }
}

/// A protocol that cannot read what another one saved.
struct Confused;

impl Protocol for Confused {
    fn name(&self) -> &'static str {
        "confused"
    }
    fn handle(&mut self, _: rallypoint_rollback::protocol::Event<'_>, _: &mut Vec<Command>) {}
    fn load(&mut self, _: &[u8]) -> Result<(), Malformed> {
        Err(Malformed { field: "confused", offset: 0 })
    }
}

/// Counts answers and checkpoints, and says which failed; nothing else leaves this unit.
#[derive(Default)]
struct Answers(u64, u64, Vec<String>);

impl Outside for Answers {
    fn reply(&mut self, _: SessionId, _: InputSeq, _: Outcome, _: &[u8]) {
        self.0 += 1;
    }
    fn turn(&mut self, _: SessionId, _: InputSeq, why: Turned) {
        panic!("turned away: {why}");
    }
    fn transmit(&mut self, _: PartitionId, _: PartitionId, _: Epoch, _: Ssn, _: u32, _: &[u8]) {}
    fn receipt(&mut self, _: PartitionId, _: PartitionId, _: Receipt) {}
    fn perform(&mut self, _: PartitionId, _: EffectKey, _: &str, _: &[u8], _: Duration) {}
    fn control(&mut self, _: PartitionId, _: Peer, _: &[u8]) {}
    fn notice(&mut self, notice: UnitNotice) {
        self.1 += u64::from(matches!(notice, UnitNotice::CheckpointWritten { .. }));
        if let UnitNotice::Partition(_, Notice::CheckpointFailed { detail }) = notice {
            self.2.push(detail);
        }
    }
}

fn application(limits: Limits) -> Application {
    let mut registry = Registry::default();
    registry.actor::<Counter>().unwrap();
    Application {
        registry: Arc::new(registry),
        protocol: Arc::new(|_| Box::new(Pessimistic::default())),
        limits,
        program: "test".into(),
    }
}

fn options() -> Options {
    Options { segment_len: 1 << 20, ..Options::default() }
}

fn create(drive: &SimDrive, partitions: u16, limits: Limits, answers: &mut Answers) -> Unit<SimDisk> {
    let map = Arc::new(Map::even(usize::from(partitions), 1, 7).unwrap());
    let identity = Identity {
        store: StoreId(1),
        lineage: Lineage(1),
        directory: DirectoryId(0),
        copies: 1,
        meta: map.encode(),
    };
    let disks = vec![SimDisk::open(drive)];
    Unit::create(disks, identity, options(), map, application(limits), &nobody(), Time(1), answers).unwrap()
}

fn nobody() -> WitnessFactory {
    Arc::new(|_| Box::new(()))
}

/// Opens what `drive` holds with this program; `restoring` was under way when the last one ended.
fn try_open(
    drive: &SimDrive,
    application: Application,
    restoring: Option<Version>,
    answers: &mut Answers,
) -> Result<(Unit<SimDisk>, OpenReport), OpenError> {
    let open = OpenOptions { options: options(), ..OpenOptions::default() };
    let ending = |_: PartitionId| Ending { restoring, ..Ending::default() };
    let disks = vec![SimDisk::open(drive)];
    Unit::open(disks, open, application, &nobody(), &ending, Time(2), answers)
}

fn open(
    drive: &SimDrive,
    application: Application,
    restoring: Option<Version>,
) -> (Unit<SimDisk>, OpenReport) {
    try_open(drive, application, restoring, &mut Answers::default()).expect("opens")
}

fn ask(unit: &mut Unit<SimDisk>, seq: u64, answers: &mut Answers) {
    ask_at(unit, PartitionId(0), seq, answers);
}

fn ask_at(unit: &mut Unit<SimDisk>, partition: PartitionId, seq: u64, answers: &mut Answers) {
    let mut message = Vec::new();
    encode(Codec::Named, 1, &1u64, &mut message).unwrap();
    let mut parcel = Vec::new();
    let body = Body::Message(&message);
    Parcel { kind: kind_tag("counter"), key: "a", asker: None, body }.encode(&mut parcel);
    let session = SessionId((u64::from(partition.0) + 1) << 32);
    let seq = InputSeq(seq);
    unit.input(Time(1), partition, session, seq, InputSeq(1), false, &parcel, answers);
    while !unit.is_quiet() {
        unit.pump_waiting(&mut || Time(1), answers);
    }
}

#[test]
fn a_journal_that_ends_before_a_checkpoint_is_damage_and_not_a_short_history() {
    let drive = SimDrive::new(1, "a");
    let mut answers = Answers::default();
    let mut unit = create(&drive, 1, Limits::default(), &mut answers);
    for seq in 1..=20 {
        ask(&mut unit, seq, &mut answers);
    }
    unit.request_checkpoints(Time(1), false, &mut answers);
    for _ in 0..10_000 {
        unit.pump(Time(1), &mut answers);
        if answers.1 == 1 {
            break;
        }
    }
    assert_eq!((answers.0, answers.1), (20, 1), "twenty answers and one checkpoint");
    drop(unit);

    let open =
        |drive: &SimDrive| try_open(drive, application(Limits::default()), None, &mut Answers::default());
    // Whole, it opens.
    assert!(open(&drive.fork(2)).is_ok());
    // Everything behind the first few commits is lost, as by a disk that never wrote it.
    let segment = drive.files().into_iter().map(|(name, _)| name).find(|name| name.starts_with("seg-"));
    let segment = segment.expect("a segment");
    for block in 4..256 {
        drive.zero_block(&segment, block);
    }
    // What is left of the log ends before its checkpoint: named, and open for reading only.
    match open(&drive.fork(3)) {
        Ok((unit, report)) => {
            assert!(!report.journal.lost.is_empty(), "what is lost is named");
            assert!(unit.failure().is_some(), "nothing is written any more");
        }
        Err(error) => panic!("refused altogether: {error}"),
    }
}

/// Three partitions: one busy, one that ran once, one that runs now and then.
#[test]
fn whoever_hardly_runs_neither_holds_the_journal_up_nor_is_checkpointed_all_the_time() {
    let drive = SimDrive::new(4, "a");
    let mut answers = Answers::default();
    let limits =
        Limits { checkpoint_runs: 2_000, checkpoint_bytes: 2 << 20, chain_length: 3, ..Limits::default() };
    let mut unit = create(&drive, 3, limits, &mut answers);
    ask_at(&mut unit, PartitionId(1), 1, &mut answers);
    let (mut most, mut now_and_then) = (0, 0);
    for seq in 1..=12_000 {
        ask(&mut unit, seq, &mut answers);
        if seq % 1_000 == 0 {
            now_and_then += 1;
            ask_at(&mut unit, PartitionId(2), now_and_then, &mut answers);
        }
        unit.pump(Time(1), &mut answers);
        most = most.max(unit.store().status().bytes);
    }
    let checkpoints = answers.1;
    assert!(unit.failure().is_none(), "{:?}", unit.failure());
    let written = 12_000 * 4096;
    // The busy one alone needs two checkpoints' worth; the segments are 1 MiB.
    assert!(most < written / 2, "{most} of {written} bytes were held");
    assert!(checkpoints < 60, "{checkpoints} checkpoints");
    // The idle one is left alone once its records are let go.
    let idle = unit.checkpoints().versions(PartitionId(1).into());
    assert!((2..=3).contains(&idle.len()), "{} versions", idle.len());
    assert!(idle.last().is_some_and(|info| info.manifest.version.0 <= 4), "{idle:?}");
}

fn checkpoint(unit: &mut Unit<SimDisk>, answers: &mut Answers) {
    let before = answers.1;
    unit.request_checkpoints(Time(1), false, answers);
    for _ in 0..1000 {
        unit.pump(Time(1), answers);
    }
    assert_eq!(answers.1, before + 1, "{:?}", answers.2);
}

#[test]
fn a_pinned_version_that_holds_the_journal_makes_nobody_checkpoint_again_and_again() {
    let drive = SimDrive::new(5, "a");
    let mut answers = Answers::default();
    let limits =
        Limits { checkpoint_runs: 500, checkpoint_bytes: 2 << 20, chain_length: 3, ..Limits::default() };
    let mut unit = create(&drive, 2, limits, &mut answers);
    ask_at(&mut unit, PartitionId(1), 1, &mut answers);
    unit.request_checkpoints(Time(1), true, &mut answers);
    while answers.1 == 0 {
        unit.pump(Time(1), &mut answers);
    }
    let (idle, first) = (LogId::from(PartitionId(1)), Version(1));
    let (store, checkpoints) = unit.storage();
    checkpoints.pin(store.copies(), idle, first).expect("pinned");
    for seq in 1..=12_000 {
        ask(&mut unit, seq, &mut answers);
        unit.pump(Time(1), &mut answers);
    }
    let newest = unit.checkpoints().versions(idle).last().expect("kept").manifest.version;
    assert!(newest <= Version(3), "the idle one was checkpointed up to {newest}");
}

#[test]
fn the_event_log_tells_of_the_watchdog_and_of_a_version_that_is_given_up() {
    let drive = SimDrive::new(7, "a");
    let mut answers = Answers::default();
    let mut unit = create(&drive, 1, Limits::default(), &mut answers);
    for seq in 1..=3 {
        ask(&mut unit, seq, &mut answers);
        checkpoint(&mut unit, &mut answers);
    }
    drop(unit);
    let log = LogId::from(PartitionId(0));
    assert!(drive.flip_bit(&file_name(log, Version(3), FileKind::Part), 10, 1));
    let mut kinds = Vec::new();
    for opening in 1..=4 {
        let (mut unit, report) = open(&drive, application(Limits::default()), None);
        assert_eq!(report.failed_restores.len(), usize::from(opening <= 3), "opening {opening}");
        unit.open_event_log(Time(2), &report, opening == 2);
        while !unit.is_quiet() || !unit.is_flushed() {
            unit.pump_waiting(&mut || Time(2), &mut answers);
        }
        let identity = unit.checkpoints().identity();
        let (store, _) = unit.storage();
        let events = EventLog::read_all(store.copies(), identity).events;
        kinds = events.iter().map(|event| event.kind).collect();
    }
    let count = |wanted| kinds.iter().filter(|kind| **kind == wanted).count();
    assert_eq!(count(EventKind::Quarantine), 1, "{kinds:?}");
    assert_eq!(count(EventKind::Watchdog), 1, "{kinds:?}");
    assert_eq!(count(EventKind::Opened), 4, "{kinds:?}");
}

#[test]
fn a_program_that_cannot_read_a_state_harms_no_version() {
    let drive = SimDrive::new(8, "a");
    let mut answers = Answers::default();
    let mut unit = create(&drive, 1, Limits::default(), &mut answers);
    for seq in 1..=3 {
        ask(&mut unit, seq, &mut answers);
        checkpoint(&mut unit, &mut answers);
    }
    // There is more in the log than in the checkpoints.
    ask(&mut unit, 4, &mut answers);
    let right = unit.partitions().next().expect("one").digest();
    drop(unit);
    let wrong = |registry: &Arc<Registry>, protocol: ProtocolFactory| Application {
        registry: Arc::clone(registry),
        protocol,
        ..application(Limits::default())
    };
    let same = application(Limits::default()).protocol;
    // Its kind was forgotten; its migration panics; its protocol makes nothing of the saved state.
    let mut other = Registry::default();
    other.actor::<Changed>().unwrap();
    let programs = [
        (wrong(&Arc::default(), same.clone()), "add the actor back"),
        (wrong(&Arc::new(other), same), "not written yet"),
        (wrong(&application(Limits::default()).registry, Arc::new(|_| Box::new(Confused))), "confused"),
    ];
    for (wrong, expected) in programs.iter().cycle().take(9) {
        let (mut unit, report) = open(&drive, wrong.clone(), None);
        assert!(report.failed_restores.is_empty(), "{:?}", report.failed_restores);
        let why = report.stopped.first().expect("stopped").to_string();
        assert!(why.contains(expected), "{why}");
        // And it can be stopped in an orderly way.
        let mut answers = Answers::default();
        unit.append_stops(Time(2), &mut answers);
        while !unit.is_flushed() {
            unit.pump_waiting(&mut || Time(2), &mut answers);
        }
        assert_eq!(unit.failure(), None);
        assert!(answers.2.is_empty(), "{:?}", answers.2);
    }
    let (unit, report) = open(&drive, application(Limits::default()), None);
    assert!(report.stopped.is_empty() && report.failed_restores.is_empty());
    assert_eq!(unit.partitions().next().expect("one").digest(), right);
}

#[test]
fn a_restore_that_ends_its_holder_three_times_is_not_tried_again_unless_it_is_the_last() {
    let drive = SimDrive::new(9, "a");
    let mut answers = Answers::default();
    let mut unit = create(&drive, 1, Limits::default(), &mut answers);
    for seq in 1..=2 {
        ask(&mut unit, seq, &mut answers);
        checkpoint(&mut unit, &mut answers);
    }
    let right = unit.partitions().next().expect("one").digest();
    drop(unit);
    let log = LogId::from(PartitionId(0));
    let newest = |drive: &SimDrive, restoring| {
        let (unit, report) = open(drive, application(Limits::default()), restoring);
        assert_eq!(unit.partitions().next().expect("one").digest(), right);
        (unit.checkpoints().newest(log), report.quarantined)
    };
    // A restore that goes well takes the count back.
    for _ in 0..4 {
        assert_eq!(newest(&drive, Some(Version(2))), (Some(Version(2)), vec![]));
    }
    // What the process does that never comes to the end of its restore: it counts, and is gone.
    for attempt in 1..=2 {
        let open = OpenOptions { options: options(), ..OpenOptions::default() };
        let mut mounted = Store::mount(vec![SimDisk::open(&drive)], open).expect("mounts");
        let identity = mounted.identity().clone();
        let identity = CheckpointIdentity { store: identity.store, lineage: identity.lineage };
        let (mut checkpoints, _) =
            CheckpointStore::scan(mounted.copies(), identity, ScanMode::Repair).expect("readable");
        assert_eq!(checkpoints.record_failed_restore(mounted.copies(), log, Version(2)), Ok(attempt));
    }
    assert_eq!(newest(&drive, Some(Version(2))), (Some(Version(1)), vec![(PartitionId(0), Version(2))]));
    // The last one is tried however often its holder ended.
    for _ in 0..5 {
        assert_eq!(newest(&drive, Some(Version(1))), (Some(Version(1)), vec![]));
    }
}

#[test]
fn after_a_crash_in_a_checkpoint_the_next_one_is_written() {
    let drive = SimDrive::new(6, "a");
    let mut answers = Answers::default();
    let mut unit = create(&drive, 1, Limits::default(), &mut answers);
    ask(&mut unit, 1, &mut answers);
    unit.request_checkpoints(Time(1), false, &mut answers);
    // Until its first file has a name.
    while !drive.files().iter().any(|(name, _)| name.starts_with("cp-")) {
        unit.pump(Time(1), &mut answers);
    }
    drop(unit);
    let drive = drive.fork(7);
    let (mut unit, _) = try_open(&drive, application(Limits::default()), None, &mut answers).unwrap();
    checkpoint(&mut unit, &mut answers);
    assert!(answers.2.is_empty(), "{:?}", answers.2);
}

#[test]
fn a_small_state_is_written_whole_also_after_a_restart() {
    let drive = SimDrive::new(9, "a");
    let mut answers = Answers::default();
    let mut unit = create(&drive, 1, Limits::default(), &mut answers);
    ask(&mut unit, 1, &mut answers);
    checkpoint(&mut unit, &mut answers);
    drop(unit);
    let (mut unit, _) = try_open(&drive, application(Limits::default()), None, &mut answers).unwrap();
    ask(&mut unit, 2, &mut answers);
    checkpoint(&mut unit, &mut answers);
    // Increments would only make the next start longer.
    let newest = unit.checkpoints().versions(PartitionId(0).into()).last().expect("written");
    assert_eq!((newest.manifest.version, newest.manifest.base), (Version(2), None));
}

#[test]
fn what_is_told_late_of_a_checkpoint_that_was_given_up_does_not_meet_the_next_one() {
    let drive = SimDrive::new(8, "a");
    let mut answers = Answers::default();
    let mut unit = create(&drive, 1, Limits::default(), &mut answers);
    ask(&mut unit, 1, &mut answers);
    // A version that the partition does not know of: its next one has another number than it thinks.
    let (store, checkpoints) = unit.storage();
    let begin = Begin { log: PartitionId(0).into(), ..Begin::default() };
    checkpoints.begin(store.copies(), begin).unwrap();
    checkpoints.abort(store.copies(), PartitionId(0).into());
    unit.request_checkpoints(Time(1), false, &mut answers);
    assert_eq!(answers.2.len(), 1, "given up");
    // Asked for again before anybody hears of the end of that one.
    checkpoint(&mut unit, &mut answers);
    checkpoint(&mut unit, &mut answers);
    assert_eq!(answers.2.len(), 1, "{:?}", answers.2);
}
