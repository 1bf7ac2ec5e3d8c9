//! Sagas that have ended lie in the archive: they are answered for, taken back and deleted, and no
//! crash loses one, shows one twice or lets an id begin a second life.

use rallypoint_base::id::{
    DirectoryId, Epoch, InputSeq, Lineage, LogId, PartitionId, SessionId, Ssn, StoreId,
};
use rallypoint_base::time::Time;
use rallypoint_engine::actor::Actor;
use rallypoint_engine::archive::{Part, PartKind};
use rallypoint_engine::codec::{Codec, Encoded, encode};
use rallypoint_engine::command::{Outcome, Receipt, Turned};
use rallypoint_engine::effect::EffectKey;
use rallypoint_engine::map::Map;
use rallypoint_engine::parcel::{Body, Parcel, kind_tag};
use rallypoint_engine::partition::{Ending, Limits};
use rallypoint_engine::registry::Registry;
use rallypoint_engine::saga::{LimitActor, SagaActor, SagaMessage, SagaReply, child_id};
use rallypoint_engine::unit::{Application, KEPT_HASHES, Outside, Unit, UnitNotice, WitnessFactory};
use rallypoint_rollback::pessimistic::Pessimistic;
use rallypoint_rollback::protocol::Peer;
use rallypoint_saga::event::{Attempt, Direction, End, Event, Parent, Start, Turn};
use rallypoint_saga::machine::Refusal;
use rallypoint_saga::op::{NewOp, What};
use rallypoint_saga::status::Status;
use rallypoint_saga::value::Blob;
use rallypoint_store::sim_disk::{SimDisk, SimDrive};
use rallypoint_store::store::{Identity, OpenOptions, Options};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const HERE: PartitionId = PartitionId(0);

/// What left the unit.
#[derive(Default)]
struct Out {
    replies: BTreeMap<u64, (Outcome, Vec<u8>)>,
    effects: Vec<(EffectKey, Vec<u8>)>,
    notices: Vec<UnitNotice>,
}

impl Outside for Out {
    fn reply(&mut self, _: SessionId, seq: InputSeq, outcome: Outcome, bytes: &[u8]) {
        self.replies.insert(seq.0, (outcome, bytes.to_vec()));
    }
    fn turn(&mut self, _: SessionId, seq: InputSeq, why: Turned) {
        self.replies.insert(seq.0, (Outcome::Failed, why.to_string().into_bytes()));
    }
    fn transmit(&mut self, _: PartitionId, _: PartitionId, _: Epoch, _: Ssn, _: u32, _: &[u8]) {}
    fn receipt(&mut self, _: PartitionId, _: PartitionId, _: Receipt) {}
    fn perform(&mut self, _: PartitionId, key: EffectKey, _: &str, payload: &[u8], _: Duration) {
        self.effects.push((key, payload.to_vec()));
    }
    fn control(&mut self, _: PartitionId, _: Peer, _: &[u8]) {}
    fn notice(&mut self, notice: UnitNotice) {
        self.notices.push(notice);
    }
}

/// A unit of one partition, a drive under it, and a client.
struct World {
    drive: SimDrive,
    unit: Option<Unit<SimDisk>>,
    out: Out,
    limits: Limits,
    now: Time,
    session: u64,
    seq: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Reply(SagaReply),
    Refused(Refusal),
    Failed(String),
    None,
}

fn small() -> Limits {
    Limits { archive_batch: 4, chain_length: 3, small_image_bytes: 0, ..Limits::default() }
}

fn application(limits: &Limits) -> Application {
    let mut registry = Registry::default();
    registry.actor::<SagaActor>().unwrap();
    registry.actor::<LimitActor>().unwrap();
    Application {
        registry: Arc::new(registry),
        protocol: Arc::new(|_| Box::new(Pessimistic::default())),
        limits: limits.clone(),
        program: "test".into(),
    }
}

fn nobody() -> WitnessFactory {
    Arc::new(|_| Box::new(()))
}

impl World {
    fn new(limits: Limits) -> Self {
        Self::try_on(SimDrive::new(1, "a"), limits, 0).expect("a new store")
    }

    /// `None` when the drive crashed while the store was made.
    fn try_on(drive: SimDrive, limits: Limits, crash_after: u64) -> Option<Self> {
        if crash_after > 0 {
            drive.crash_after(crash_after);
        }
        let mut out = Out::default();
        let map = Arc::new(Map::even(1, 1, 7).unwrap());
        let identity = Identity {
            store: StoreId(1),
            lineage: Lineage(1),
            directory: DirectoryId(0),
            copies: 1,
            meta: map.encode(),
        };
        let options = Options { segment_len: 1 << 20, ..Options::default() };
        let disks = vec![SimDisk::open(&drive)];
        let now = Time(1_000);
        let app = application(&limits);
        let unit = Unit::create(disks, identity, options, map, app, &nobody(), now, &mut out).ok()?;
        Some(Self { drive, unit: Some(unit), out, limits, now, session: 1, seq: 0 })
    }

    fn unit(&mut self) -> &mut Unit<SimDisk> {
        self.unit.as_mut().expect("it is open")
    }

    /// Opens what the drive holds; the client has a new session.
    fn reopen(&mut self) {
        self.unit = None;
        let open = OpenOptions {
            options: Options { segment_len: 1 << 20, ..Options::default() },
            ..OpenOptions::default()
        };
        let disks = vec![SimDisk::open(&self.drive)];
        self.out = Out::default();
        let ending = |_: PartitionId| Ending::default();
        let app = application(&self.limits);
        let (unit, report) =
            Unit::open(disks, open, app, &nobody(), &ending, self.now, &mut self.out).expect("it opens");
        assert!(report.stopped.is_empty(), "{:?}", report.stopped);
        self.unit = Some(unit);
        self.session += 1;
        self.seq = 0;
        self.settle();
    }

    fn settle(&mut self) {
        let now = self.now;
        let (unit, out) = (self.unit.as_mut().unwrap(), &mut self.out);
        for _ in 0..10_000 {
            unit.pump_waiting(&mut || now, out);
            if !unit.pump(now, out)
                && (unit.is_quiet() || self.drive.is_crashed() || unit.failure().is_some())
            {
                return;
            }
        }
        // Effects stay outstanding: nothing performs them here.
    }

    /// Hands an input in; the answer may come later.
    fn send(&mut self, id: &str, message: &SagaMessage) -> u64 {
        let read_only = SagaActor::read_only(message);
        let mut bytes = Vec::new();
        encode(Codec::Compact, SagaActor::SCHEMA, message, &mut bytes).unwrap();
        let mut parcel = Vec::new();
        let body = Body::Message(&bytes);
        Parcel { kind: kind_tag(SagaActor::KIND), key: id, asker: None, body }.encode(&mut parcel);
        self.seq += 1;
        let (now, session, seq) = (self.now, SessionId(self.session), InputSeq(self.seq));
        let (unit, out) = (self.unit.as_mut().unwrap(), &mut self.out);
        unit.input(now, HERE, session, seq, InputSeq(1), read_only, &parcel, out);
        self.seq
    }

    fn answer(&self, seq: u64) -> Answer {
        match self.out.replies.get(&seq) {
            None => Answer::None,
            Some((Outcome::Applied, bytes)) => {
                Answer::Reply(Encoded::split(bytes).unwrap().decode().unwrap())
            }
            Some((Outcome::Refused, bytes)) => {
                Answer::Refused(Encoded::split(bytes).unwrap().decode().unwrap())
            }
            Some((_, bytes)) => Answer::Failed(String::from_utf8_lossy(bytes).into_owned()),
        }
    }

    fn ask(&mut self, id: &str, message: &SagaMessage) -> Answer {
        let seq = self.send(id, message);
        let now = self.now;
        for _ in 0..10_000 {
            if self.out.replies.contains_key(&seq) || self.drive.is_crashed() {
                break;
            }
            let (unit, out) = (self.unit.as_mut().unwrap(), &mut self.out);
            unit.pump_waiting(&mut || now, out);
        }
        self.answer(seq)
    }

    /// A saga whose function ends at once.
    fn start(&mut self, id: &str) -> Answer {
        self.ask(id, &SagaMessage::Start(Box::new(start(id, id, end(id)))))
    }

    fn status(&mut self, id: &str) -> Option<Status> {
        match self.ask(id, &SagaMessage::Peek) {
            Answer::Reply(SagaReply::Peeked(peeked)) => Some(peeked.status),
            Answer::Refused(Refusal::NoSuchSaga) => None,
            other => panic!("{id}: {other:?}"),
        }
    }

    fn in_memory(&mut self) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        for partition in self.unit().partitions() {
            partition.each_of::<SagaActor>(&mut |id, _| {
                ids.insert(id.to_owned());
            });
        }
        ids
    }

    fn archived(&mut self) -> Vec<String> {
        let parts: Vec<Part> = self.unit().archive_parts().map(|(_, part)| part).cloned().collect();
        parts
            .iter()
            .flat_map(|part| self.unit().archived_rows(HERE, part.version).unwrap())
            .map(|r| r.id)
            .collect()
    }

    fn checkpoint(&mut self) {
        let now = self.now;
        let (unit, out) = (self.unit.as_mut().unwrap(), &mut self.out);
        unit.request_checkpoints(now, false, out);
        for _ in 0..10_000 {
            if !unit.is_checkpointing() || self.drive.is_crashed() {
                break;
            }
            unit.pump_waiting(&mut || now, out);
        }
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let now = self.now;
        let (unit, out) = (self.unit.as_mut().unwrap(), &mut self.out);
        unit.tick(now, out);
        self.settle();
    }
}

fn end(output: &str) -> Option<Turn> {
    let end = Some(End::Completed(Blob::of(output).unwrap()));
    Some(Turn { end, ..Turn::default() })
}

fn start(id: &str, input: &str, turn: Option<Turn>) -> Start {
    let input = Blob::of(&format!("{id} {input}")).unwrap();
    Start { name: "order".into(), version: 1, input, turn, ..Start::default() }
}

/// What is wrong with the sagas of a store, given those whose start was acknowledged.
fn audit(world: &mut World, acknowledged: &BTreeSet<String>) -> Result<(), String> {
    let memory = world.in_memory();
    let archived = world.archived();
    let set: BTreeSet<String> = archived.iter().cloned().collect();
    if set.len() != archived.len() {
        return Err(format!("listed twice: {archived:?}"));
    }
    if let Some(id) = memory.intersection(&set).next() {
        return Err(format!("{id} is listed in memory and in the archive"));
    }
    for id in acknowledged {
        if !memory.contains(id) && !set.contains(id) {
            return Err(format!("{id} is lost"));
        }
        match world.ask(id, &SagaMessage::Show) {
            Answer::Reply(SagaReply::Shown(machine)) if machine.status() == Status::Completed => {
                if machine.output() != Some(&Blob::of(id.as_str()).unwrap()) {
                    return Err(format!("{id} shows another output"));
                }
            }
            other => return Err(format!("{id} shows {other:?}")),
        }
        match world.start(id) {
            Answer::Reply(SagaReply::Started(false)) => {}
            other => return Err(format!("{id} begins a second life: {other:?}")),
        }
        let other = SagaMessage::Start(Box::new(start(id, "another input", None)));
        match world.ask(id, &other) {
            Answer::Refused(Refusal::OtherInput) => {}
            answer => return Err(format!("{id} with another input: {answer:?}")),
        }
    }
    Ok(())
}

#[test]
fn ended_sagas_leave_memory_and_are_answered_for() {
    let mut world = World::new(small());
    let ids: BTreeSet<String> = (0..21).map(|at| format!("s-{at}")).collect();
    for id in &ids {
        assert_eq!(world.start(id), Answer::Reply(SagaReply::Started(true)));
    }
    world.settle();
    assert!(world.in_memory().len() < 4, "{:?}", world.in_memory());
    assert_eq!(audit(&mut world, &ids), Ok(()));
    // What changes an ended saga is refused as it is in memory; the state stays where it is.
    assert_eq!(
        world.ask("s-0", &SagaMessage::Event(Event::Cancel)),
        Answer::Refused(Refusal::Ended(Status::Completed))
    );
    assert_eq!(world.status("never"), None);
    assert!(world.in_memory().len() < 4);
    // In checkpoints too: the actors are gone from the next increment and from the next full image.
    for round in 0..9 {
        world.start(&format!("more-{round}"));
        world.checkpoint();
        world.reopen();
        assert!(world.in_memory().len() <= 4, "round {round}: {:?}", world.in_memory());
        assert_eq!(audit(&mut world, &ids), Ok(()), "round {round}");
    }
}

#[test]
fn a_crash_at_every_operation_of_the_disk_loses_no_saga_and_shows_none_twice() {
    let run = |crash_after: u64| -> (Option<World>, BTreeSet<String>) {
        let drive = SimDrive::new(crash_after + 1, "a");
        let mut acknowledged = BTreeSet::new();
        let Some(mut world) = World::try_on(drive, small(), crash_after) else { return (None, acknowledged) };
        for at in 0..24 {
            let id = format!("s-{at}");
            if world.start(&id) == Answer::Reply(SagaReply::Started(true)) {
                acknowledged.insert(id);
            }
            if at % 7 == 6 {
                world.checkpoint();
            }
            if world.drive.is_crashed() {
                break;
            }
        }
        if !world.drive.is_crashed() {
            world.settle();
        }
        (Some(world), acknowledged)
    };
    let (whole, _) = run(0);
    let ops = whole.map(|world| world.drive.ops()).expect("nothing crashed");
    assert!(ops > 100, "{ops}");
    let (mut archived, mut both) = (0, 0);
    for crash_after in 1..=ops {
        let (world, acknowledged) = run(crash_after);
        let Some(mut world) = world else { continue };
        world.unit = None;
        world.drive.crash();
        world.drive.crash_never();
        world.reopen();
        archived += u64::from(!world.archived().is_empty());
        both += u64::from(
            world.unit().archive_parts().map(|(_, part)| part).map(|part| part.rows).sum::<u64>()
                > world.archived().len() as u64,
        );
        assert_eq!(audit(&mut world, &acknowledged), Ok(()), "crash after operation {crash_after}");
        // And again, from what the recovery itself did.
        world.unit = None;
        world.drive.crash();
        world.reopen();
        assert_eq!(audit(&mut world, &acknowledged), Ok(()), "second opening, {crash_after}");
        for at in 0..5 {
            world.start(&format!("later-{at}"));
        }
        world.settle();
        assert_eq!(audit(&mut world, &acknowledged), Ok(()), "later, {crash_after}");
    }
    assert!(archived > 10 && both > 0, "crashes met the archive ({archived}) and its borders ({both})");
}

#[test]
fn the_audit_finds_a_part_that_is_gone() {
    let mut world = World::new(small());
    let ids: BTreeSet<String> = (0..9).map(|at| format!("s-{at}")).collect();
    for id in &ids {
        world.start(id);
    }
    world.settle();
    world.unit = None;
    let mut names = world.drive.files().into_iter().map(|(name, _)| name);
    let begin = format!("cp-{:05}-", LogId::archive(HERE).0);
    let manifest = names.rfind(|name| name.starts_with(&begin) && name.ends_with(".manifest"));
    assert!(world.drive.zero_block(&manifest.expect("a part"), 0));
    world.reopen();
    let found = audit(&mut world, &ids);
    assert!(found.as_ref().is_err_and(|text| text.contains("is lost")), "{found:?}");
}

/// A saga of one step, run to its end by hand.
fn with_a_step(world: &mut World, id: &str) {
    let value = Blob::of("do it").unwrap();
    let what = What::Step { value, policy: None };
    let op = NewOp { number: 0, name: "step".into(), what };
    let turn = Turn { ops: vec![op], ..Turn::default() };
    let begun = SagaMessage::Start(Box::new(start(id, id, Some(turn))));
    assert_eq!(world.ask(id, &begun), Answer::Reply(SagaReply::Started(true)));
    let end = Some(End::Completed(Blob::of(id).unwrap()));
    let turn = Turn { index: 1, fed: vec![0], end, ..Turn::default() };
    let attempted = Event::Attempted {
        op: 0,
        generation: 0,
        direction: Direction::Run,
        earlier: false,
        attempt: Attempt::Done(Blob::default()),
        turn: Some(turn),
    };
    let answer = world.ask(id, &SagaMessage::Event(attempted));
    assert_eq!(answer, Answer::Reply(SagaReply::Accepted(Status::Completed)), "{id}");
}

#[test]
fn a_restart_takes_a_saga_out_of_the_archive_and_a_refused_one_does_not() {
    let mut world = World::new(small());
    for at in 0..8 {
        with_a_step(&mut world, &format!("s-{at}"));
    }
    world.settle();
    assert_eq!(world.in_memory().len(), 0);
    // No such step: refused, and it stays where it is.
    assert!(matches!(
        world.ask("s-1", &SagaMessage::Event(Event::Restart(7))),
        Answer::Refused(Refusal::NoSuchStep(_))
    ));
    assert_eq!(world.in_memory().len(), 0);
    let answer = world.ask("s-1", &SagaMessage::Event(Event::Restart(0)));
    assert_eq!(answer, Answer::Reply(SagaReply::Accepted(Status::Compensating)));
    assert_eq!(world.in_memory(), BTreeSet::from(["s-1".to_owned()]));
    assert_eq!(world.archived().len(), 7, "it is listed once");
    // A crash later it still is.
    world.reopen();
    assert_eq!(world.status("s-1"), Some(Status::Compensating));
    assert_eq!(world.archived().len(), 7);
    // It is given up, and put away again: the newer entry counts.
    let answer = world.ask("s-1", &SagaMessage::Event(Event::Abandon));
    assert_eq!(answer, Answer::Reply(SagaReply::Accepted(Status::Abandoned)));
    for at in 0..3 {
        world.start(&format!("more-{at}"));
    }
    world.settle();
    assert_eq!(world.in_memory().len(), 0);
    assert_eq!(world.status("s-1"), Some(Status::Abandoned));
    let listed = world.archived();
    assert_eq!(listed.len(), 11, "{listed:?}");
    assert_eq!(listed.iter().filter(|id| *id == "s-1").count(), 1);
}

#[test]
fn a_saga_that_ended_twice_lies_in_its_part_once() {
    let mut world = World::new(small());
    with_a_step(&mut world, "twice");
    let answer = world.ask("twice", &SagaMessage::Event(Event::Restart(0)));
    assert_eq!(answer, Answer::Reply(SagaReply::Accepted(Status::Compensating)));
    world.ask("twice", &SagaMessage::Event(Event::Abandon));
    for at in 0..5 {
        world.start(&format!("s-{at}"));
    }
    world.settle();
    assert!(!world.in_memory().contains("twice"));
    assert_eq!(world.archived().iter().filter(|id| *id == "twice").count(), 1);
    assert_eq!(world.status("twice"), Some(Status::Abandoned));
}

#[test]
fn a_child_stays_until_its_root_has_ended_and_comes_back_with_it() {
    let mut world = World::new(small());
    let what = What::Child { saga: "order".into(), input: Blob::default() };
    let turn = Turn { ops: vec![NewOp { number: 0, name: "order".into(), what }], ..Turn::default() };
    world.ask("root", &SagaMessage::Start(Box::new(start("root", "", Some(turn)))));
    let child = child_id("root", 0, 0);
    let parent = Some(Parent { id: "root".into(), op: 0, generation: 0 });
    let begin = Start { parent, ..start(&child, "", end("child")) };
    assert_eq!(
        world.ask(&child, &SagaMessage::Start(Box::new(begin))),
        Answer::Reply(SagaReply::Started(true))
    );
    for at in 0..9 {
        world.start(&format!("s-{at}"));
    }
    world.settle();
    assert!(world.in_memory().contains(&child), "its parent may still undo it");
    let end = Some(End::Completed(Blob::default()));
    let turn = Turn { index: 1, fed: vec![0], end, ..Turn::default() };
    world.ask("root", &SagaMessage::Event(Event::Driven(turn)));
    assert_eq!(world.status("root"), Some(Status::Completed));
    for at in 10..19 {
        world.start(&format!("s-{at}"));
    }
    world.settle();
    assert!(!world.in_memory().contains(&child) && !world.in_memory().contains("root"));
    assert_eq!(world.status(&child), Some(Status::Completed));
    // The root is restarted from the child: the child is compensated, as if neither had been away.
    let answer = world.ask("root", &SagaMessage::Event(Event::Restart(0)));
    assert!(matches!(answer, Answer::Reply(SagaReply::Accepted(_))), "{answer:?}");
    world.settle();
    assert_eq!(world.status(&child), Some(Status::Compensated));
}

#[test]
fn what_is_old_enough_is_deleted_and_its_id_is_not_used_again_for_a_while() {
    let day = Duration::from_secs(24 * 3600);
    let mut world = World::new(Limits { saga_retention: Some(7 * day), ..small() });
    for at in 0..9 {
        world.start(&format!("s-{at}"));
    }
    world.settle();
    assert_eq!(world.in_memory().len(), 1, "too few for a part");
    world.pass(2 * day);
    assert_eq!(world.in_memory().len(), 0, "but not for ever");
    world.start("young");
    world.pass(6 * day);
    assert_eq!(world.archived(), ["young"]);
    let refused = |world: &mut World| {
        assert_eq!(world.status("s-3"), None);
        assert_eq!(world.start("s-3"), Answer::Refused(Refusal::Deleted));
        assert_eq!(world.status("young"), Some(Status::Completed));
    };
    refused(&mut world);
    world.reopen();
    refused(&mut world);
    // The parts themselves are gone from the disk but for the one of hashes and the young one's.
    let log = LogId::archive(HERE);
    world.settle();
    let parts = world.unit().checkpoints().versions(log).len();
    assert!(parts <= 3, "{parts}");
    world.pass(KEPT_HASHES + day);
    world.reopen(); // the client's session is older than that
    assert_eq!(world.start("s-3"), Answer::Reply(SagaReply::Started(true)));
    assert_eq!(
        world
            .unit()
            .archive_parts()
            .map(|(_, part)| part)
            .filter(|part| part.kind == PartKind::Ended)
            .count(),
        0
    );
}

#[test]
fn a_full_disk_leaves_ended_sagas_in_memory_and_a_later_try_puts_them_away() {
    let mut world = World::new(small());
    for at in 0..3 {
        world.start(&format!("s-{at}"));
    }
    world.settle();
    world.drive.set_capacity(Some(world.drive.used()));
    for at in 3..6 {
        world.start(&format!("s-{at}"));
    }
    world.settle();
    assert_eq!(world.in_memory().len(), 6);
    assert!(world.out.notices.iter().any(|notice| format!("{notice:?}").contains("part of the archive")));
    world.drive.set_capacity(None);
    world.pass(Duration::from_secs(61));
    let ids = (0..6).map(|at| format!("s-{at}")).collect();
    assert!(world.in_memory().len() < 4, "{:?}", world.in_memory());
    assert_eq!(audit(&mut world, &ids), Ok(()));
}

#[test]
fn foreign_bytes_are_no_part() {
    for len in 0..64 {
        let bytes: Vec<u8> = (0..len).map(|at| (at * 37 + len) as u8).collect();
        assert!(Part::load(rallypoint_base::id::Version(1), &bytes).is_err(), "{len}");
    }
}
