//! The world: virtual time, workers, disks, network and clients, all from one seed.
//!
//! Decides: the order of everything. An event is taken from one queue ordered by (time, number);
//! what it causes is put back into the queue at times drawn from the seed. Workers hold real
//! [`Unit`]s over simulated disks and are driven exactly as a host drives them: an event, then
//! pump until nothing moves, tick at the deadline, the idle commit after a millisecond of rest.
//!
//! Never: no real clock, no thread, no file; never tells a unit anything that a host could not.
//!
//! Two phases. *Chaos*: faults from `nemesis`. *Healing*: all faults off; everything must be
//! answered and quiet within bounded virtual time, and stay so over one more restart of everybody.

use crate::abort;
use crate::client::{Answer, Client};
use crate::coordinator::{CoordinatorHost, Wants};
use crate::exit::{Exit, Leaving};
use crate::invariants::{Fact, Invariant, Snapshot, States};
use crate::message::{Message, Node};
use crate::nemesis::Nemesis;
use crate::report::{Report, Tally};
use crate::settings::Settings;
use crate::tap::Tap;
use rallypoint_base::id::{
    DirectoryId, Epoch, InputSeq, Lineage, LogId, PartitionId, SessionId, Ssn, StoreId, Version,
};
use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_engine::command::{Notice, Turned};
use rallypoint_engine::effect::EffectKey;
use rallypoint_engine::map::Map;
use rallypoint_engine::parcel::Parcel;
use rallypoint_engine::partition::{Ending, Witness};
use rallypoint_engine::unit::{Application, OpenError, OpenReport, Unit, UnitNotice, WitnessFactory};
use rallypoint_rollback::cut::Point;
use rallypoint_rollback::protocol::{Event as ProtocolEvent, Peer};
use rallypoint_store::disk::{Disk, Ticket};
use rallypoint_store::error::StoreError;
use rallypoint_store::sim_disk::{Completions, SimDisk, SimDrive, SimPower};
use rallypoint_store::store::{Identity, OpenOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(crate) type SimUnit = Unit<Box<dyn Disk>>;

/// The world begins here, so that a clock may jump back.
const BEGINNING: Time = Time(1_000_000 * 1_000_000_000);
/// All faults off, everything must be quiet after this long.
const HEALING: Duration = Duration::from_secs(600);

/// A property that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant, or what the world itself demands: `healing`, `opening`, `fencing`.
    pub invariant: &'static str,
    /// When, since the world began.
    pub at: Duration,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} violated after {:?}: {}", self.invariant, self.at, self.detail)
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Disk { directory: usize, drive: usize, ticket: Ticket },
    Tick { directory: usize, incarnation: u64 },
    Idle { directory: usize, incarnation: u64, busy: u64 },
    Arrive { from: Node, to: Node, number: u64, message: Message },
    Tell { worker: usize, peer: usize, up: bool },
    EffectEnds { directory: usize, incarnation: u64, from: PartitionId, key: EffectKey, outcome: u8 },
    Repeat { client: usize, seq: InputSeq, attempt: u32 },
    Restart { worker: usize, incarnation: u64 },
    Wake { worker: usize, incarnation: u64 },
    Patience { worker: usize, incarnation: u64 },
    WakeZombie { at: usize },
    Mend { a: Node, b: Node },
    CoordinatorDisk { ticket: Ticket },
    CoordinatorTick,
    CoordinatorRestart,
    Nemesis,
    Checkpoints,
    Audit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Up,
    Hung,
    Down,
}

pub(crate) struct Worker {
    pub(crate) life: Life,
    pub(crate) incarnation: u64,
    /// Its clock ahead of the world's, in nanoseconds.
    pub(crate) clock: i64,
    /// What arrived while it hung.
    backlog: Vec<Event>,
    refusals: u32,
    pub(crate) stopping: bool,
    /// All its disks hang on it: they go dark together, or a mirror would lose its good copy alone.
    pub(crate) power: SimPower,
}

/// Memory that outlives the process and not the machine: what was running, per partition.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<BTreeMap<PartitionId, u64>>>);

struct PageWitness(Page, PartitionId);

impl Witness for PageWitness {
    fn running(&mut self, identity: u64) {
        if !abort::has_ended() {
            self.0.0.lock().unwrap_or_else(PoisonError::into_inner).insert(self.1, identity);
        }
    }

    fn idle(&mut self) {
        if !abort::has_ended() {
            self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
        }
    }
}

pub(crate) struct Directory {
    pub(crate) worker: usize,
    pub(crate) drives: Vec<SimDrive>,
    /// The only copy that disk faults may hit, so that no block is bad on both.
    pub(crate) bad_copy: Option<usize>,
    pub(crate) unit: Option<SimUnit>,
    pub(crate) created: bool,
    pub(crate) lost_copy: bool,
    pub(crate) rotted_checkpoint: bool,
    /// `None` after a power loss.
    page: Option<Page>,
    /// Tickets below were given a time.
    scheduled: Vec<u64>,
    tick_at: Time,
    busy: u64,
    idle_due: bool,
    low: u64,
}

/// The simulated world. See the module; [`crate::WorldBuilder`] makes one.
pub struct World {
    pub(crate) settings: Settings,
    pub(crate) random: Random,
    pub(crate) tally: Tally,
    pub(crate) now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    numbers: u64,
    map: Arc<Map>,
    application: Application,
    pub(crate) workers: Vec<Worker>,
    pub(crate) directories: Vec<Directory>,
    zombies: Vec<Vec<SimUnit>>,
    pub(crate) clients: Vec<Client>,
    pub(crate) coordinator: Option<CoordinatorHost>,
    pub(crate) nemesis: Nemesis,
    pub(crate) cuts: BTreeSet<(Node, Node)>,
    links: BTreeMap<(Node, Node), u64>,
    transmitted: BTreeMap<(PartitionId, PartitionId), (Epoch, Ssn)>,
    replied: BTreeSet<(SessionId, InputSeq)>,
    performed: BTreeMap<EffectKey, u64>,
    decided: Epoch,
    invariants: Vec<Box<dyn Invariant>>,
    violations: Vec<Violation>,
    exit: Exit,
}

impl World {
    /// Starts describing a world.
    #[must_use]
    pub fn builder() -> crate::WorldBuilder {
        crate::WorldBuilder::default()
    }

    pub(crate) fn new(settings: Settings) -> Self {
        let mut random = Random::new(settings.seed);
        let tally = Tally::default();
        let directory_count = settings.workers * settings.directories;
        let partition_count = directory_count * settings.partitions;
        let map = Map::even(partition_count, directory_count, settings.seed);
        let map = Arc::new(map.unwrap_or_else(|error| panic!("a world of this shape cannot be: {error}")));
        let application = settings.application();
        let new_worker = |_| Worker {
            life: Life::Down,
            incarnation: 0,
            clock: 0,
            backlog: Vec::new(),
            refusals: 0,
            stopping: false,
            power: SimPower::new(),
        };
        let workers: Vec<Worker> = (0..settings.workers).map(new_worker).collect();
        let torn = random.chance(1, 2);
        let directories = (0..directory_count).map(|at| {
            let mirrored = random.chance(settings.mirrored, 100);
            let copies = if mirrored { 2 } else { 1 };
            let drives = (0..copies).map(|copy| {
                let power = &workers[at % settings.workers].power;
                let drive = SimDrive::on(power, random.next_u64(), &format!("d{at}-{copy}"));
                drive.set_completions(Completions::Manual);
                drive.set_torn_sectors(torn);
                drive
            });
            let drives = drives.collect();
            Directory {
                worker: at % settings.workers,
                drives,
                bad_copy: mirrored.then(|| random.below(2) as usize),
                unit: None,
                created: false,
                lost_copy: false,
                rotted_checkpoint: false,
                page: None,
                scheduled: vec![0; copies],
                tick_at: Time::NEVER,
                busy: 0,
                idle_due: false,
                low: 0,
            }
        });
        let directories = directories.collect();
        let coordinator =
            settings.rolls_back.then(|| CoordinatorHost::new(map.partitions().collect(), random.next_u64()));
        let nemesis = Nemesis::new(&settings, &mut random);
        let mut world = Self {
            workers,
            directories,
            zombies: Vec::new(),
            clients: Vec::new(),
            coordinator,
            nemesis,
            cuts: BTreeSet::new(),
            links: BTreeMap::new(),
            transmitted: BTreeMap::new(),
            replied: BTreeSet::new(),
            performed: BTreeMap::new(),
            decided: Epoch(0),
            invariants: crate::invariants::all(settings.ledger),
            violations: Vec::new(),
            exit: Exit::default(),
            queue: BTreeMap::new(),
            numbers: 0,
            now: BEGINNING,
            map,
            application,
            tally,
            random,
            settings,
        };
        for _ in 0..world.settings.clients {
            let client = Client::new(world.clients.len(), world.now, world.settings.window);
            world.clients.push(client);
        }
        if world.coordinator.is_some() {
            world.start_coordinator();
        }
        for worker in 0..world.workers.len() {
            world.start_worker(worker);
        }
        world.push(Duration::from_millis(1), Event::Nemesis);
        if world.settings.rolls_back {
            world.push(Duration::from_millis(5), Event::Checkpoints);
        }
        if world.settings.audits > 0 && !world.settings.rolls_back {
            world.push(Duration::from_millis(7), Event::Audit);
        }
        world
    }

    // ---------------------------------------------------------------- time

    /// Virtual time since the world began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now.since(BEGINNING)
    }

    pub(crate) fn push(&mut self, after: Duration, event: Event) {
        self.push_at(self.now + after, event);
    }

    fn push_at(&mut self, at: Time, event: Event) {
        self.numbers += 1;
        self.queue.insert((at.max(self.now), self.numbers), event);
    }

    pub(crate) fn micros(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.random.range(low, high))
    }

    fn clock(&self, worker: usize) -> Time {
        Time(self.now.0.saturating_add_signed(self.workers[worker].clock))
    }

    /// Takes one event; false when there is none.
    fn step(&mut self) -> bool {
        let Some(((at, _), event)) = self.queue.pop_first() else { return false };
        self.now = self.now.max(at);
        self.take(event);
        true
    }

    /// Lets this much virtual time pass.
    pub fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= until) {
            self.step();
        }
        self.now = self.now.max(until);
    }

    /// Lets time pass until `done` or `limit`; true when it was `done`.
    pub(crate) fn until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while !done(self) {
            if self.now > end || !self.step() {
                return done(self);
            }
        }
        true
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Disk { directory, drive, ticket } => {
                if self.directories[directory].drives[drive].complete(ticket) {
                    self.drive(directory, |_, _, _| {});
                }
            }
            Event::Tick { directory, incarnation } => {
                if self.is_current(directory, incarnation) {
                    self.directories[directory].tick_at = Time::NEVER;
                    self.drive(directory, |unit, now, exit| unit.tick(now, exit));
                }
            }
            Event::Idle { directory, incarnation, busy } => {
                if self.is_current(directory, incarnation) {
                    let at = &mut self.directories[directory];
                    at.idle_due = false;
                    let rested = at.busy == busy;
                    let mut wrote = false;
                    self.drive(directory, |unit, _, _| wrote = rested && unit.idle());
                    self.tally.by("idle watermark", u64::from(wrote));
                }
            }
            Event::Arrive { from, to, number, message } => self.arrive(from, to, number, message),
            Event::Tell { worker, peer, up } => self.tell(worker, peer, up),
            Event::EffectEnds { directory, incarnation, from, key, outcome } => {
                if self.is_current(directory, incarnation) {
                    if self.hangs(directory) {
                        let event = Event::EffectEnds { directory, incarnation, from, key, outcome };
                        return self.put_off(directory, event);
                    }
                    let value: &[u8] = if outcome == 1 { b"simulated: it failed" } else { b"" };
                    self.drive(directory, |unit, now, exit| {
                        unit.effect(now, from, key, outcome, value, exit);
                    });
                }
            }
            Event::Repeat { client, seq, attempt } => self.repeat(client, seq, attempt),
            Event::Restart { worker, incarnation } => {
                if self.workers[worker].incarnation == incarnation && self.workers[worker].life == Life::Down
                {
                    self.start_worker(worker);
                }
            }
            Event::Wake { worker, incarnation } => {
                if self.workers[worker].incarnation == incarnation {
                    self.wake(worker);
                }
            }
            Event::Patience { worker, incarnation } => {
                let found = &self.workers[worker];
                if found.incarnation == incarnation && found.life == Life::Hung {
                    self.kill_hung(worker);
                }
            }
            Event::WakeZombie { at } => self.wake_zombie(at),
            Event::Mend { a, b } => {
                self.cuts.remove(&(a, b));
                self.cuts.remove(&(b, a));
            }
            Event::CoordinatorDisk { ticket } => {
                if let Some(host) = &mut self.coordinator {
                    host.drive.complete(ticket);
                    let wants = host.poll();
                    self.coordinator_wants(wants);
                }
            }
            Event::CoordinatorTick => {
                let now = self.now;
                self.coordinate(ProtocolEvent::Tick { now });
            }
            Event::CoordinatorRestart => self.start_coordinator(),
            Event::Nemesis => self.strike(),
            Event::Checkpoints => {
                for directory in 0..self.directories.len() {
                    if !self.nemesis.is_on() || self.random.chance(1, 3) {
                        self.drive(directory, |unit, now, exit| unit.request_checkpoints(now, true, exit));
                    }
                }
                let after = self.micros(10_000, 40_000);
                self.push(after, Event::Checkpoints);
            }
            Event::Audit => {
                if self.settings.audits > 0 && self.nemesis.is_on() {
                    self.settings.audits -= 1;
                    self.audit();
                    let after = self.micros(3_000, 80_000);
                    self.push(after, Event::Audit);
                }
            }
        }
    }

    /// Says what happens, when somebody wants to know.
    pub(crate) fn trace(&self, what: impl FnOnce() -> String) {
        if self.settings.trace {
            eprintln!("{:>12.3} ms  {}", self.elapsed().as_secs_f64() * 1e3, what());
        }
    }

    // ---------------------------------------------------------------- facts

    pub(crate) fn violate(&mut self, invariant: &'static str, detail: String) {
        self.trace(|| format!("{invariant} violated: {detail}"));
        // The first word of each says it; the rest is noise.
        if self.violations.iter().all(|violation| violation.invariant != invariant) {
            self.violations.push(Violation { invariant, at: self.elapsed(), detail });
        }
    }

    fn judge(&mut self, fact: &Fact<'_>) {
        let mut invariants = std::mem::take(&mut self.invariants);
        for invariant in &mut invariants {
            if let Err(detail) = invariant.check(fact) {
                self.violate(invariant.name(), detail);
            }
        }
        self.invariants = invariants;
    }

    /// What has been violated so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// What has happened so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = self.tally.report();
        for drive in self.directories.iter().flat_map(|directory| &directory.drives) {
            let counts = drive.counts();
            report.hit_by("blocks undone", counts.blocks_undone);
            report.hit_by("writes torn", counts.writes_torn);
            report.hit_by("names undone", counts.names_undone);
            report.hit_by("bits flipped", counts.bits_flipped);
            report.hit_by("blocks replaced", counts.blocks_replaced);
            report.hit_by("writes failed", counts.writes_failed);
            report.hit_by("writes lost", counts.writes_lost);
            report.hit_by("writes misdirected", counts.writes_misdirected);
            report.hit_by("reads failed", counts.reads_failed);
            report.hit_by("syncs failed", counts.syncs_failed);
        }
        report.worlds = 1;
        report.nanoseconds = self.elapsed().as_nanos() as u64;
        report.acknowledged = self.clients.iter().map(|client| client.ledger.len() as u64).sum();
        report
    }

    /// Every partition's state in memory; those whose worker is down are missing.
    #[must_use]
    pub fn states(&self) -> States {
        let units = self.directories.iter().filter_map(|directory| directory.unit.as_ref());
        States(units.flat_map(snapshots).collect())
    }

    // ---------------------------------------------------------------- driving units

    fn is_current(&self, directory: usize, incarnation: u64) -> bool {
        self.workers[self.directories[directory].worker].incarnation == incarnation
    }

    fn hangs(&self, directory: usize) -> bool {
        self.workers[self.directories[directory].worker].life == Life::Hung
    }

    fn put_off(&mut self, directory: usize, event: Event) {
        let worker = self.directories[directory].worker;
        self.workers[worker].backlog.push(event);
    }

    /// One event for a unit, and everything that follows from it at once.
    pub(crate) fn drive(&mut self, directory: usize, act: impl FnOnce(&mut SimUnit, Time, &mut Exit)) {
        let worker = self.directories[directory].worker;
        if self.workers[worker].life != Life::Up {
            return;
        }
        let now = self.clock(worker);
        let Some(mut unit) = self.directories[directory].unit.take() else { return };
        let mut exit = std::mem::take(&mut self.exit);
        act(&mut unit, now, &mut exit);
        // A host pumps after each batch of events; what is left comes with the next completion.
        for _ in 0..8 {
            if abort::has_ended() || !unit.pump(now, &mut exit) {
                break;
            }
        }
        self.directories[directory].unit = Some(unit);
        if abort::take() {
            self.tally.hit("handler aborted");
            return self.end_worker(worker, false);
        }
        if self.has_lost_power(worker) {
            self.tally.hit("power loss in an operation");
            return self.end_worker(worker, true);
        }
        self.after(directory);
        self.let_out(directory, &mut exit);
        self.exit = exit;
    }

    fn has_lost_power(&self, worker: usize) -> bool {
        let of_worker = self.directories.iter().filter(|directory| directory.worker == worker);
        of_worker.flat_map(|directory| &directory.drives).any(SimDrive::is_crashed)
    }

    /// Gives times to what the unit now waits for.
    fn after(&mut self, directory: usize) {
        let worker = self.directories[directory].worker;
        let incarnation = self.workers[worker].incarnation;
        for drive in 0..self.directories[directory].drives.len() {
            let pending = self.directories[directory].drives[drive].pending();
            for operation in pending {
                let ticket = operation.ticket;
                if ticket.0 < self.directories[directory].scheduled[drive] {
                    continue;
                }
                self.directories[directory].scheduled[drive] = ticket.0 + 1;
                let slow = self.nemesis.is_on() && self.random.chance(1, 40);
                let (least, most) = self.settings.latency;
                let (least, most) = (least.as_micros() as u64, most.as_micros() as u64);
                let latency = if slow { self.micros(2_000, 9_000) } else { self.micros(least, most) };
                self.push(latency, Event::Disk { directory, drive, ticket });
            }
        }
        let clock = self.workers[worker].clock;
        let at = &mut self.directories[directory];
        let Some(unit) = at.unit.as_mut() else { return };
        at.busy += 1;
        let kept: usize = unit.partitions().map(|partition| partition.unacknowledged_bytes()).sum();
        let deadline = unit.next_deadline();
        let (busy, committing) = (at.busy, unit.is_committing());
        let failure = unit.failure().map(ToOwned::to_owned);
        let low: u64 = unit.store().status().logs.iter().map(|log| log.low.0).sum();
        let cut = low > at.low && at.low > 0;
        at.low = low;
        let idle = !std::mem::replace(&mut at.idle_due, true);
        let mut tick = None;
        if deadline < Time::NEVER {
            // The deadline is by the worker's clock.
            let due = Time(deadline.0.saturating_add_signed(-clock)).max(self.now + Duration::from_micros(1));
            if due < at.tick_at {
                at.tick_at = due;
                tick = Some(due);
            }
        }
        self.tally.by("log cut", u64::from(cut));
        self.tally.edit(|report| report.kept_bytes_max = report.kept_bytes_max.max(kept as u64));
        if let Some(due) = tick {
            self.push_at(due, Event::Tick { directory, incarnation });
        }
        if idle {
            let after = Duration::from_millis(if committing { 2 } else { 1 });
            self.push(after, Event::Idle { directory, incarnation, busy });
        }
        if let Some(failure) = failure {
            self.violate("opening", format!("d{directory} failed although a copy is good: {failure}"));
            self.end_worker(worker, false);
        }
    }

    /// What left a unit is looked at, then travels.
    fn let_out(&mut self, directory: usize, exit: &mut Exit) {
        for notice in exit.notices.drain(..) {
            self.notice(directory, &notice);
        }
        let incarnation = self.workers[self.directories[directory].worker].incarnation;
        for leaving in exit.left.drain(..) {
            let drives = self.directories[directory].drives.clone();
            self.judge(&Fact::Left { leaving: &leaving, drives: &drives, directory });
            self.tally.by("outputs compared with the disks", u64::from(self.settings.ledger));
            match leaving {
                Leaving::Message(message) => {
                    self.send(Node::Worker(self.directories[directory].worker), message)
                }
                Leaving::Perform { from, key, .. } => self.perform(directory, incarnation, from, key),
            }
        }
    }

    fn notice(&mut self, directory: usize, notice: &UnitNotice) {
        self.trace(|| format!("d{directory}: {notice:?}"));
        if self.settings.trace
            && let (UnitNotice::Partition(id, Notice::SetAside { .. }), Some(unit)) =
                (notice, &self.directories[directory].unit)
        {
            let partition = unit.partitions().find(|partition| partition.id() == *id);
            let parcel =
                partition.and_then(|partition| partition.set_aside().last()).map(|entry| &entry.parcel);
            self.trace(|| format!("set aside: {:?}", parcel.map(|bytes| Parcel::decode(bytes))));
        }
        match notice {
            UnitNotice::Partition(_, Notice::SetAside { evidence, .. }) => {
                let twice = evidence.starts_with("it was running");
                self.tally.hit(if twice { "set aside after two ends" } else { "set aside after a panic" });
                self.tally.by("handler panicked", u64::from(!twice));
            }
            UnitNotice::Partition(_, Notice::LateEffect { .. }) => self.tally.hit("late effect dropped"),
            UnitNotice::Partition(partition, Notice::Diverged { detail }) => {
                self.violate("replay", format!("{partition}: {detail}"));
            }
            UnitNotice::Partition(partition, Notice::ImpossibleReceipt { from }) => {
                self.violate("no_orphan", format!("{from} has receipts for what {partition} never sent"));
            }
            UnitNotice::CopyLost { .. } => {
                self.tally.hit("copy dropped");
                self.directories[directory].lost_copy = true;
            }
            UnitNotice::CheckpointWritten { .. } => self.tally.hit("checkpoint written"),
            UnitNotice::CheckpointDamage(_) | UnitNotice::Repaired(_) => {
                self.tally.hit("checkpoint repaired or condemned");
            }
            UnitNotice::RestoreFailed { partition, version, detail } => {
                self.violate("opening", format!("{partition} cannot go back to {version}: {detail}"));
            }
            _ => {}
        }
    }

    fn perform(&mut self, directory: usize, incarnation: u64, from: PartitionId, key: EffectKey) {
        let times = self.performed.entry(key).or_default();
        *times += 1;
        let repeated = *times > 1;
        self.tally.by("effect repeated", u64::from(repeated));
        let chaos = self.nemesis.is_on() && self.nemesis.effects;
        let fate = self.random.below(10);
        let end = |world: &mut Self, outcome| {
            let after = world.micros(100, 5_000);
            world.push(after, Event::EffectEnds { directory, incarnation, from, key, outcome });
        };
        match fate {
            0 if chaos => self.tally.hit("effect without an answer"),
            1 if chaos => {
                self.tally.hit("effect failed");
                end(self, 1);
            }
            2 if chaos => {
                end(self, 0);
                end(self, 0);
            }
            _ => end(self, 0),
        }
    }

    // ---------------------------------------------------------------- network

    fn node_of(&self, partition: PartitionId) -> Node {
        let directory = self.map.directory_of(partition).unwrap_or(DirectoryId(0));
        Node::Worker(self.directories[usize::from(directory.0)].worker)
    }

    pub(crate) fn send(&mut self, from: Node, mut message: Message) {
        if let Some(wire) = &self.settings.wire {
            wire.lock().unwrap_or_else(PoisonError::into_inner)(&mut message);
        }
        let to = match &message {
            Message::Input { partition, .. } => self.node_of(*partition),
            Message::Reply { session, seq, .. } => {
                let again = !self.replied.insert((*session, *seq));
                self.tally.by("answered from the table", u64::from(again));
                Node::Client(Client::of(*session))
            }
            Message::Turn { session, why, .. } => {
                let waits = matches!(why, Turned::Overloaded | Turned::Stopped);
                self.tally.by("turned away", u64::from(waits));
                Node::Client(Client::of(*session))
            }
            Message::Frames { from, to, epoch, first, count, .. } => {
                let through = Ssn(first.0 + u64::from(*count) - 1);
                let reached = self.transmitted.entry((*from, *to)).or_default();
                let again = reached.0 == *epoch && *first <= reached.1;
                *reached = (*epoch, if again { through.max(reached.1) } else { through });
                self.tally.by("frames retransmitted", u64::from(again));
                self.node_of(*to)
            }
            Message::Receipt { to, .. } => self.node_of(*to),
            Message::Control { to: Peer::Partition(to), .. } => self.node_of(*to),
            Message::Control { to: Peer::Coordinator, .. } => Node::Coordinator,
        };
        if self.cuts.contains(&(from, to)) {
            return self.tally.hit("message into a partition");
        }
        let copies = self.fate();
        for _ in 0..copies {
            let slow = self.nemesis.is_on() && self.random.chance(self.nemesis.slow, 1000);
            self.tally.by("message delayed", u64::from(slow));
            let delay = if slow { self.micros(2_000, 20_000) } else { self.micros(50, 300) };
            self.numbers += 1;
            let (number, message) = (self.numbers, message.clone());
            self.push(delay, Event::Arrive { from, to, number, message });
        }
    }

    /// How often a message arrives.
    fn fate(&mut self) -> u32 {
        if !self.nemesis.is_on() {
            return 1;
        }
        if self.random.chance(self.nemesis.drop, 1000) {
            self.tally.hit("message dropped");
            return 0;
        }
        if self.random.chance(self.nemesis.duplicate, 1000) {
            self.tally.hit("message duplicated");
            return 2;
        }
        1
    }

    fn arrive(&mut self, from: Node, to: Node, number: u64, message: Message) {
        let newest = self.links.entry((from, to)).or_default();
        let overtaken = number < *newest;
        *newest = number.max(*newest);
        self.tally.by("message overtaken", u64::from(overtaken));
        match (to, message) {
            (Node::Client(client), message) => self.client_hears(client, message),
            (Node::Coordinator, Message::Control { from, bytes, .. }) => {
                self.coordinate(ProtocolEvent::Control { from, bytes: &bytes });
            }
            (Node::Worker(worker), message) => match self.workers[worker].life {
                Life::Up => self.worker_hears(message),
                Life::Hung => {
                    let event = Event::Arrive { from, to, number, message };
                    self.workers[worker].backlog.push(event);
                }
                Life::Down => {}
            },
            _ => {}
        }
    }

    fn worker_hears(&mut self, message: Message) {
        let directory_of = |world: &Self, partition: PartitionId| {
            world.map.directory_of(partition).map_or(0, |directory| usize::from(directory.0))
        };
        match message {
            Message::Input { partition, session, seq, acknowledged_below, read_only, parcel, .. } => {
                let at = directory_of(self, partition);
                self.drive(at, |unit, now, exit| {
                    unit.input(now, partition, session, seq, acknowledged_below, read_only, &parcel, exit);
                });
            }
            Message::Frames { from, to, epoch, first, count, bytes } => {
                let at = directory_of(self, to);
                let mut repeated = false;
                let mut result = Ok(());
                self.drive(at, |unit, now, exit| {
                    let partition = unit.partitions().find(|partition| partition.id() == to);
                    let received = partition.and_then(|partition| partition.channels().get(&from).copied());
                    repeated = received.is_some_and(|channel| channel.received >= first);
                    result = unit.frames(now, from, to, epoch, first, count, &bytes, exit);
                });
                self.tally.by("repeated frames dropped", u64::from(repeated));
                if let Err(error) = result {
                    self.violate("no_orphan", format!("frames from {from} to {to} are malformed: {error}"));
                }
            }
            Message::Receipt { from, to, receipt } => {
                let at = directory_of(self, to);
                self.drive(at, |unit, now, exit| unit.receipt(now, from, to, receipt, exit));
            }
            Message::Control { from, to: Peer::Partition(to), bytes } => {
                let at = directory_of(self, to);
                self.drive(at, |unit, now, exit| unit.control(now, from, to, &bytes, exit));
            }
            _ => {}
        }
    }

    fn tell(&mut self, worker: usize, peer: usize, up: bool) {
        match self.workers[worker].life {
            Life::Down => return,
            Life::Hung => return self.workers[worker].backlog.push(Event::Tell { worker, peer, up }),
            Life::Up => {}
        }
        let partitions: Vec<PartitionId> = self.partitions_of(peer);
        for directory in 0..self.directories.len() {
            if self.directories[directory].worker == worker {
                self.drive(directory, |unit, now, exit| {
                    for &partition in &partitions {
                        if up {
                            unit.connected(now, partition, exit);
                        } else {
                            unit.peer_failed(now, partition, exit);
                        }
                    }
                });
            }
        }
    }

    fn partitions_of(&self, worker: usize) -> Vec<PartitionId> {
        let of_worker = (0..self.directories.len()).filter(|&at| self.directories[at].worker == worker);
        of_worker.flat_map(|at| self.map.partitions_in(DirectoryId(at as u16))).collect()
    }

    // ---------------------------------------------------------------- clients

    /// Queues an input of a client and gives its number.
    pub(crate) fn submit(&mut self, client: usize, key: &str, read_only: bool, parcel: Vec<u8>) -> InputSeq {
        let partition = self.map.partition_of(key);
        let seq = self.clients[client].submit(partition, read_only, parcel);
        self.fill_window(client);
        seq
    }

    fn fill_window(&mut self, client: usize) {
        while let Some(seq) = self.clients[client].next(self.now) {
            self.repeat(client, seq, 0);
        }
    }

    fn repeat(&mut self, client: usize, seq: InputSeq, attempt: u32) {
        let acknowledged_below = self.clients[client].acknowledged_below();
        let Some(waiting) = self.clients[client].outstanding.get_mut(&seq) else { return };
        if waiting.attempt != attempt {
            return;
        }
        waiting.attempt += 1;
        let request = &waiting.request;
        let (partition, session, read_only) = (waiting.partition, request.session, request.read_only);
        let parcel = request.parcel.clone();
        let acknowledged_below = if read_only { InputSeq(0) } else { acknowledged_below };
        self.tally.by("input repeated", u64::from(attempt > 0));
        self.send(
            Node::Client(client),
            Message::Input { partition, session, seq, acknowledged_below, read_only, parcel, attempt },
        );
        let patience = self.micros(15_000, 30_000) * 2_u32.pow(attempt.min(5));
        self.push(patience, Event::Repeat { client, seq, attempt: attempt + 1 });
    }

    fn client_hears(&mut self, client: usize, message: Message) {
        match message {
            Message::Reply { seq, outcome, bytes, .. } => {
                let now = self.now;
                let request = match self.clients[client].outstanding.remove(&seq) {
                    Some(waiting) => {
                        let request = waiting.request;
                        let answer = Answer { request: request.clone(), outcome, bytes: bytes.clone() };
                        self.clients[client].ledger.insert(seq, answer);
                        request
                    }
                    // It came twice: it must be the same.
                    None => match self.clients[client].ledger.get(&seq) {
                        Some(answer) if !answer.request.read_only => answer.request.clone(),
                        _ => return,
                    },
                };
                self.judge(&Fact::Answered { request: &request, outcome, bytes: &bytes, now });
                self.fill_window(client);
            }
            Message::Turn { seq, why, .. } => {
                let waits = self.clients[client].outstanding.contains_key(&seq);
                if waits && !matches!(why, Turned::Overloaded | Turned::Stopped) {
                    self.violate("door", format!("input {seq} of client {client} was turned away: {why}"));
                }
            }
            _ => {}
        }
    }

    // ---------------------------------------------------------------- coordinator

    fn coordinate(&mut self, event: ProtocolEvent<'_>) {
        if let Some(host) = &mut self.coordinator {
            let wants = host.handle(event);
            self.coordinator_wants(wants);
        }
    }

    fn coordinator_wants(&mut self, wants: Wants) {
        for (to, bytes) in wants.messages {
            let (from, to) = (Peer::Coordinator, Peer::Partition(to));
            self.send(Node::Coordinator, Message::Control { from, to, bytes });
        }
        if let Some(at) = wants.timer {
            self.push_at(at, Event::CoordinatorTick);
        }
        let Some(host) = &self.coordinator else { return };
        let pending: Vec<Ticket> = host.drive.pending().iter().map(|pending| pending.ticket).collect();
        let decided = host.machine().and_then(|machine| machine.decided()).cloned();
        for ticket in pending {
            let latency = self.micros(40, 250);
            self.push(latency, Event::CoordinatorDisk { ticket });
        }
        if let Some(decided) = decided.filter(|decided| decided.epoch > self.decided) {
            self.decided = decided.epoch;
            self.tally.hit("recovery line decided");
            for (partition, point) in &decided.line {
                if let Point::Stable(version) = point {
                    self.count_domino(*partition, *version);
                }
            }
        }
    }

    fn count_domino(&mut self, partition: PartitionId, to: Version) {
        let directory = self.map.directory_of(partition).map_or(0, |directory| usize::from(directory.0));
        let Some(unit) = &self.directories[directory].unit else { return };
        let newest = unit.checkpoints().newest(LogId::from(partition)).unwrap_or_default();
        let depth = newest.0.saturating_sub(to.0);
        self.tally.by("versions undone", depth);
        self.tally.by("partitions rolled back", u64::from(depth > 0));
        self.tally.by("domino to the beginning", u64::from(depth > 0 && to == Version(0)));
        self.tally.edit(|report| report.domino_depth = report.domino_depth.max(depth));
    }

    pub(crate) fn start_coordinator(&mut self) {
        let now = self.now;
        let Some(host) = &mut self.coordinator else { return };
        if host.machine().is_some() {
            return;
        }
        match host.start(now) {
            Ok(wants) => self.coordinator_wants(wants),
            Err(error) => self.violate("opening", format!("the coordinator: {error}")),
        }
    }

    // ---------------------------------------------------------------- workers

    /// A worker ends; a supervisor that has seen it end starts its successor a little later.
    pub(crate) fn end_worker(&mut self, worker: usize, power: bool) {
        self.end_worker_keeping(worker, power);
    }

    fn end_worker_keeping(&mut self, worker: usize, power: bool) -> Vec<SimUnit> {
        self.trace(|| format!("worker {worker} ends, power {power}"));
        let mut kept = Vec::new();
        let mut in_checkpoint = false;
        for directory in self.directories.iter_mut().filter(|directory| directory.worker == worker) {
            for drive in &directory.drives {
                // Settles at once what survives, also where the power has gone already.
                if power { drive.crash() } else { drive.kill() }
            }
            if power {
                directory.page = None;
            }
            directory.tick_at = Time::NEVER;
            directory.idle_due = false;
            in_checkpoint |= directory.unit.as_ref().is_some_and(Unit::is_checkpointing);
            kept.extend(directory.unit.take());
        }
        self.tally.by("crash in a checkpoint", u64::from(in_checkpoint));
        let at = &mut self.workers[worker];
        at.life = Life::Down;
        at.incarnation += 1;
        at.stopping = false;
        at.backlog.clear();
        let incarnation = at.incarnation;
        let after = self.micros(500, 20_000);
        self.push(after, Event::Restart { worker, incarnation });
        self.announce(worker, false);
        kept
    }

    fn announce(&mut self, worker: usize, up: bool) {
        for other in (0..self.workers.len()).filter(|&other| other != worker) {
            let (there, back) = (self.micros(100, 3_000), self.micros(100, 3_000));
            self.push(there, Event::Tell { worker: other, peer: worker, up });
            if up && self.workers[other].life == Life::Up {
                self.push(back, Event::Tell { worker, peer: other, up });
            }
        }
        if !up && self.coordinator.is_some() {
            for peer in self.partitions_of(worker) {
                self.coordinate(ProtocolEvent::PeerFailed { peer });
            }
        }
    }

    /// Opens a worker's directories, as a new process would.
    pub(crate) fn start_worker(&mut self, worker: usize) {
        self.workers[worker].incarnation += 1;
        for directory in 0..self.directories.len() {
            if self.directories[directory].worker != worker {
                continue;
            }
            match self.open_directory(directory) {
                Ok(mut exit) => {
                    // Everything is live before anything is heard or said.
                    self.workers[worker].life = Life::Up;
                    if abort::take() || self.has_lost_power(worker) {
                        return self.end_worker(worker, true);
                    }
                    let drives = self.directories[directory].drives.clone();
                    self.judge(&Fact::Opened { directory, drives: &drives });
                    self.after(directory);
                    self.let_out(directory, &mut exit);
                    self.drive(directory, |_, _, _| {});
                    if self.workers[worker].life != Life::Up {
                        return;
                    }
                    self.workers[worker].life = Life::Down;
                }
                Err(power) => return self.end_worker(worker, power),
            }
        }
        self.workers[worker].life = Life::Up;
        self.workers[worker].refusals = 0;
        self.announce(worker, true);
        let all_up = self.workers.iter().all(|worker| worker.life == Life::Up);
        if all_up && !self.settings.rolls_back {
            let states = self.states();
            self.judge(&Fact::Live(&states));
        }
    }

    /// Opens one directory; `Err(true)` when the power went meanwhile, `Err(false)` when it was
    /// refused and is worth another try.
    fn open_directory(&mut self, directory: usize) -> Result<Exit, bool> {
        if self.nemesis.is_on() && self.nemesis.power && self.random.chance(1, 8) {
            let nth = self.random.range(1, 60);
            self.workers[self.directories[directory].worker].power.crash_after(nth);
        }
        let mut exit = Exit::default();
        let mut degraded = false;
        for _ in 0..3 {
            let created = self.directories[directory].created;
            let result = if created {
                self.open_existing(directory, degraded, &mut exit)
            } else {
                self.create(directory, &mut exit)
            };
            let error = match result {
                Ok(()) => return Ok(exit),
                Err(error) => error,
            };
            self.trace(|| format!("d{directory} cannot be opened: {error}"));
            if self.has_lost_power(self.directories[directory].worker) {
                self.tally.hit(if created { "crash in recovery" } else { "crash in creation" });
                return Err(true);
            }
            match error {
                OpenError::Store(StoreError::NeedsDegraded { .. })
                    if self.directories[directory].lost_copy =>
                {
                    degraded = true;
                }
                // A creation that had come to its end before the power went.
                OpenError::Store(StoreError::NotEmpty { .. }) if !created => {
                    self.directories[directory].created = true;
                }
                error => {
                    self.tally.hit("open refused and tried again");
                    let worker = self.directories[directory].worker;
                    self.workers[worker].refusals += 1;
                    if self.workers[worker].refusals > 6 {
                        self.violate("opening", format!("d{directory} cannot be opened: {error}"));
                    }
                    return Err(false);
                }
            }
        }
        Err(false)
    }

    fn disks(&self, directory: usize) -> Vec<Box<dyn Disk>> {
        let drives = &self.directories[directory].drives;
        let disks = drives.iter().map(|drive| {
            let tap: Box<dyn Disk> = Box::new(Tap::new(SimDisk::open(drive), self.tally.clone()));
            match &self.settings.disk {
                Some(wrap) => wrap(tap),
                None => tap,
            }
        });
        disks.collect()
    }

    fn new_page(&mut self, directory: usize) -> WitnessFactory {
        let page = Page::default();
        self.directories[directory].page = Some(page.clone());
        Arc::new(move |partition| Box::new(PageWitness(page.clone(), partition)))
    }

    fn create(&mut self, directory: usize, exit: &mut Exit) -> Result<(), OpenError> {
        let disks = self.disks(directory);
        let identity = Identity {
            store: StoreId(self.settings.seed),
            lineage: Lineage(1),
            directory: DirectoryId(directory as u16),
            copies: disks.len() as u8,
            meta: self.map.encode(),
        };
        let witness = self.new_page(directory);
        let now = self.clock(self.directories[directory].worker);
        let (map, application) = (self.map.clone(), self.application.clone());
        let options = self.settings.options;
        let mut unit = Unit::create(disks, identity, options, map, application, &witness, now, exit)?;
        unit.open_event_log(now, &OpenReport::default(), false);
        self.directories[directory].unit = Some(unit);
        self.directories[directory].created = true;
        Ok(())
    }

    fn open_existing(&mut self, directory: usize, degraded: bool, exit: &mut Exit) -> Result<(), OpenError> {
        if let Some(restore) = &self.settings.restore {
            restore.lock().unwrap_or_else(PoisonError::into_inner)(
                directory,
                &self.directories[directory].drives,
            );
        }
        let ending = self.directories[directory].page.as_ref().map(|page| {
            let page = page.0.lock().unwrap_or_else(PoisonError::into_inner);
            page.clone()
        });
        let disks = self.disks(directory);
        let options = OpenOptions { read_only: false, degraded, options: self.settings.options };
        let page = Page::default();
        let factory: WitnessFactory = {
            let page = page.clone();
            Arc::new(move |partition| Box::new(PageWitness(page.clone(), partition)))
        };
        let now = self.clock(self.directories[directory].worker);
        let how = |partition: PartitionId| Ending {
            running: ending.as_ref().map(|running| running.get(&partition).copied().into_iter().collect()),
            restoring: None,
        };
        let opened = Unit::open(disks, options, self.application.clone(), &factory, &how, now, exit);
        let (mut unit, report) = match opened {
            // The creation never came to its end: nothing was ever acknowledged here.
            Err(OpenError::Store(StoreError::Unfinished { .. } | StoreError::Missing { .. }))
                if self.directories[directory].low == 0 && self.directories[directory].busy == 0 =>
            {
                self.directories[directory].created = false;
                return self.create(directory, exit);
            }
            other => other?,
        };
        // From here on the evidence is in the log; before, a crash must find it again.
        self.directories[directory].page = Some(page);
        let suspects = ending.is_some_and(|running| !running.is_empty());
        self.tally.by("careful mode", u64::from(suspects));
        self.tally.by("opened degraded", u64::from(degraded));
        self.count_opening(directory, &unit, &report);
        unit.open_event_log(now, &report, false);
        self.directories[directory].unit = Some(unit);
        Ok(())
    }

    fn count_opening(&mut self, directory: usize, unit: &SimUnit, report: &OpenReport) {
        let journal = &report.journal;
        self.trace(|| format!("d{directory} opened: {report:?}"));
        self.tally.hit("opened");
        self.tally.by("records replayed", report.replayed);
        self.tally.by("tail cut", u64::from(journal.cut.is_some()));
        self.tally.by("last commit completed", journal.completed);
        self.tally.by("blocks repaired", journal.repaired);
        self.tally.by("restore failed", report.failed_restores.len() as u64);
        self.tally.by("checkpoint repaired or condemned", report.checkpoints.len() as u64);
        if !journal.dropped.is_empty() {
            self.tally.hit("copy dropped");
            self.directories[directory].lost_copy = true;
        }
        for partition in unit.partitions() {
            let log = LogId::from(partition.id());
            let Some(base) = partition.checkpoint_base() else { continue };
            let parts = unit.checkpoints().chain(log, base).map_or(0, |chain| chain.len());
            let increment = parts > 1;
            self.tally.hit(if increment {
                "restored from an increment"
            } else {
                "restored from a full checkpoint"
            });
            let older = report
                .failed_restores
                .iter()
                .any(|(id, version, _)| *id == partition.id() && *version > base);
            self.tally.by("older version used", u64::from(older));
        }
        if !journal.lost.is_empty() {
            self.violate("opening", format!("d{directory} has lost {:?}", journal.lost));
        }
        for stopped in &report.stopped {
            self.violate("replay", format!("d{directory}: {stopped}"));
        }
    }

    /// SIGSTOP, then SIGCONT after `duration`, or the supervisor's patience first.
    pub(crate) fn hang(&mut self, worker: usize, duration: Duration) {
        let at = &mut self.workers[worker];
        if at.life != Life::Up || at.stopping {
            return;
        }
        at.life = Life::Hung;
        let incarnation = at.incarnation;
        self.push(duration, Event::Wake { worker, incarnation });
        self.push(self.settings.patience, Event::Patience { worker, incarnation });
    }

    fn wake(&mut self, worker: usize) {
        if self.workers[worker].life != Life::Hung {
            return;
        }
        self.tally.hit("hang");
        self.workers[worker].life = Life::Up;
        for event in std::mem::take(&mut self.workers[worker].backlog) {
            self.take(event);
        }
        for directory in 0..self.directories.len() {
            if self.directories[directory].worker == worker {
                self.directories[directory].tick_at = Time::NEVER;
                self.drive(directory, |unit, now, exit| unit.tick(now, exit));
            }
        }
    }

    /// The supervisor kills a hung worker and waits; what is left of it wakes up later.
    fn kill_hung(&mut self, worker: usize) {
        self.tally.hit("hang and kill");
        let zombie = self.end_worker_keeping(worker, false);
        self.zombies.push(zombie);
        let at = self.zombies.len() - 1;
        let after = self.micros(20_000, 60_000);
        self.push(after, Event::WakeZombie { at });
    }

    /// A process that should be dead runs on. Its connections are gone with it; its disks must be.
    fn wake_zombie(&mut self, at: usize) {
        let units = std::mem::take(&mut self.zombies[at]);
        let operations = |world: &Self| -> u64 {
            world.directories.iter().flat_map(|directory| &directory.drives).map(SimDrive::ops).sum()
        };
        let before = operations(self);
        let mut exit = Exit::default();
        for mut unit in units {
            let now = self.now + Duration::from_secs(3600);
            unit.tick(now, &mut exit);
            unit.request_checkpoints(now, false, &mut exit);
            unit.pump(now, &mut exit);
            unit.idle();
            unit.pump(now, &mut exit);
        }
        self.tally.hit("zombie woken");
        if operations(self) != before {
            self.violate("fencing", "a process that was killed wrote to its disks".into());
        }
        abort::take();
    }

    // ---------------------------------------------------------------- by hand

    /// Ends a worker and starts no successor until [`World::bring_up`].
    pub fn take_down(&mut self, worker: usize) {
        self.end_worker(worker, false);
        // The restart that was planned is another incarnation's.
        self.workers[worker].incarnation += 1;
    }

    /// Starts a worker that was taken down.
    pub fn bring_up(&mut self, worker: usize) {
        if self.workers[worker].life == Life::Down {
            self.start_worker(worker);
        }
    }

    /// Cuts the power of a worker's machine at the `nth` disk operation from now on.
    pub fn cut_power_after(&mut self, worker: usize, nth: u64) {
        self.workers[worker].power.crash_after(nth);
    }

    /// Asks every partition for a checkpoint.
    pub fn request_checkpoints(&mut self) {
        for directory in 0..self.directories.len() {
            self.drive(directory, |unit, now, exit| unit.request_checkpoints(now, false, exit));
        }
    }

    /// Outputs that wait for durability, over all partitions.
    #[must_use]
    pub fn gated(&self) -> usize {
        let units = self.directories.iter().filter_map(|directory| directory.unit.as_ref());
        units.flat_map(Unit::partitions).map(|partition| partition.gated()).sum()
    }

    /// The worker that holds actors with this key.
    #[must_use]
    pub fn worker_of(&self, key: &str) -> usize {
        let directory = self.map.directory_of(self.map.partition_of(key)).map_or(0, |directory| directory.0);
        self.directories[usize::from(directory)].worker
    }

    // ---------------------------------------------------------------- audits

    /// Rebuilds every directory from forks of its disks as if the power had gone this instant.
    pub(crate) fn audit(&mut self) {
        let mut states = States::default();
        for at in 0..self.directories.len() {
            let directory = &self.directories[at];
            if !directory.created {
                continue;
            }
            let seed = self.random.next_u64();
            let forks: Vec<SimDrive> = directory.drives.iter().map(|drive| drive.fork(seed)).collect();
            match self.rebuild(&forks) {
                Ok((_, report)) if !report.journal.lost.is_empty() => {
                    return self.violate("audit", format!("d{at} has lost {:?}", report.journal.lost));
                }
                Ok((unit, _)) => states.0.extend(snapshots(&unit)),
                Err(OpenError::Store(StoreError::Unfinished { .. })) if directory.busy == 0 => {}
                Err(error) => return self.violate("audit", format!("d{at} could not be opened: {error}")),
            }
        }
        self.tally.hit("durable state audited");
        self.judge(&Fact::Audited(&states));
    }

    fn rebuild(&self, forks: &[SimDrive]) -> Result<(SimUnit, OpenReport), OpenError> {
        let open = |degraded| {
            let disks = forks.iter().map(|fork| Box::new(SimDisk::open(fork)) as Box<dyn Disk>).collect();
            let options = OpenOptions { read_only: false, degraded, options: self.settings.options };
            let witness: WitnessFactory = Arc::new(|_| Box::new(()));
            let (application, ending) = (self.application.clone(), |_| Ending::default());
            Unit::open(disks, options, application, &witness, &ending, self.now, &mut Exit::default())
        };
        match open(false) {
            Err(OpenError::Store(StoreError::NeedsDegraded { .. })) => open(true),
            other => other,
        }
    }

    // ---------------------------------------------------------------- healing

    /// True when nothing is under way anywhere.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let travels = |event: &Event| {
            matches!(
                event,
                Event::Arrive { .. } | Event::EffectEnds { .. } | Event::Restart { .. } | Event::Tell { .. }
            )
        };
        self.clients.iter().all(Client::is_done)
            && self.workers.iter().all(|worker| worker.life == Life::Up)
            && self.directories.iter().all(|directory| directory.unit.as_ref().is_some_and(is_at_rest))
            && self.coordinator.as_ref().is_none_or(CoordinatorHost::is_idle)
            && !self.queue.values().any(travels)
    }

    /// All faults off; then everything must be answered and quiet, twice: the second time after
    /// everybody has been started anew. At the end the copies of a mirror must be equal.
    pub fn heal(&mut self) {
        self.stop_faults();
        if !self.rest("all faults are off") {
            return;
        }
        // A write that a disk is still to lie about may fall into the first of these openings; the
        // second one finds and repairs it.
        for _ in 0..if self.nemesis.may_lie() { 2 } else { 1 } {
            if self.random.chance(1, 2) {
                self.stop_orderly();
            } else {
                for worker in 0..self.workers.len() {
                    self.end_worker(worker, false);
                }
            }
            if !self.rest("everybody was started anew") {
                return;
            }
        }
        let states = self.states();
        self.judge(&Fact::Settled(&states));
        self.scrub();
        self.compare_copies();
    }

    /// Compares and repairs everything once: an opening reads only what it needs.
    fn scrub(&mut self) {
        for directory in 0..self.directories.len() {
            let mut done = self.directories[directory].drives.len() < 2;
            for _ in 0..10_000 {
                if done {
                    break;
                }
                self.drive(directory, |unit, now, exit| done = unit.scrub(1 << 20, now, exit));
                self.pass(Duration::from_micros(500));
            }
            self.tally.by("scrubbed", u64::from(done));
        }
        self.until(HEALING, Self::is_settled);
    }

    fn stop_faults(&mut self) {
        self.nemesis.stop();
        self.cuts.clear();
        for worker in 0..self.workers.len() {
            self.wake(worker);
        }
    }

    fn rest(&mut self, why: &str) -> bool {
        // Looking is dear: only now and then, and always when nothing is left to happen.
        let end = self.now + HEALING;
        loop {
            for _ in 0..16 {
                if !self.step() {
                    break;
                }
            }
            if self.is_settled() {
                return true;
            }
            if self.now > end || self.violations.iter().any(|violation| violation.invariant == "opening") {
                let what = self.describe_unrest();
                self.violate("healing", format!("{why}, and after {HEALING:?} still {what}"));
                // What made it stand still may be visible.
                let states = self.states();
                self.judge(&Fact::Live(&states));
                return false;
            }
        }
    }

    fn describe_unrest(&self) -> String {
        let waiting: Vec<usize> = self.clients.iter().map(Client::left).collect();
        let lives: Vec<Life> = self.workers.iter().map(|worker| worker.life).collect();
        let units: Vec<String> = self
            .directories
            .iter()
            .map(|directory| match &directory.unit {
                None => "closed".into(),
                Some(unit) if is_at_rest(unit) => "quiet".into(),
                Some(unit) => {
                    let partitions = unit.partitions().map(|p| {
                        let (id, gated, bytes) = (p.id(), p.gated(), p.unacknowledged_bytes());
                        let wait = p.next_deadline().since(self.now);
                        let (runs, writing) = (p.runs_since_cut(), p.is_checkpointing());
                        format!(
                            "{id} {} at {} with {runs} since the cut, writing {writing}, gated {gated} kept {bytes} next {wait:?}",
                            p.epoch(),
                            p.position()
                        )
                    });
                    partitions.collect::<Vec<_>>().join("; ")
                }
            })
            .collect();
        let coordinator = self.coordinator.as_ref().map(CoordinatorHost::is_idle);
        format!(
            "clients wait for {waiting:?}, workers {lives:?}, units {units:?}, coordinator idle {coordinator:?}"
        )
    }

    /// Every worker stops as it should: checkpoints, a mark in each log, closed files.
    fn stop_orderly(&mut self) {
        for directory in 0..self.directories.len() {
            self.drive(directory, |unit, now, exit| unit.request_checkpoints(now, true, exit));
        }
        if !self.until(HEALING, Self::is_settled) {
            return;
        }
        for directory in 0..self.directories.len() {
            self.drive(directory, |unit, now, exit| unit.append_stops(now, exit));
        }
        if !self.until(HEALING, Self::is_settled) {
            return;
        }
        for worker in 0..self.workers.len() {
            self.workers[worker].incarnation += 1;
            self.workers[worker].life = Life::Down;
            for directory in self.directories.iter_mut().filter(|directory| directory.worker == worker) {
                directory.unit = None;
                directory.page = Some(Page::default());
                directory.tick_at = Time::NEVER;
                directory.idle_due = false;
            }
        }
        self.tally.hit("orderly stop");
        for worker in 0..self.workers.len() {
            self.start_worker(worker);
        }
    }

    /// Each in-sync copy alone holds what both hold.
    fn compare_copies(&mut self) {
        for at in 0..self.directories.len() {
            let directory = &mut self.directories[at];
            let Some(unit) = directory.unit.as_mut() else { continue };
            let in_sync = unit.store().status().copies.iter().filter(|copy| copy.in_sync).count();
            if directory.drives.len() < 2 {
                continue;
            }
            if in_sync < 2 {
                self.tally.hit("copy left behind");
                continue;
            }
            let digests: Vec<u64> = unit.partitions().map(|partition| partition.digest()).collect();
            let forks: Vec<SimDrive> = directory.drives.iter().map(|drive| drive.fork(1)).collect();
            for (copy, fork) in forks.iter().enumerate() {
                let alone: Result<Vec<u64>, String> = self
                    .rebuild(std::slice::from_ref(fork))
                    .map(|(unit, _)| unit.partitions().map(|partition| partition.digest()).collect())
                    .map_err(|error| error.to_string());
                if self.settings.rolls_back {
                    continue;
                }
                if alone.as_ref() != Ok(&digests) {
                    self.violate(
                        "copies",
                        format!("d{at}: copy {copy} alone gives {alone:?}, not {digests:?}"),
                    );
                }
            }
        }
    }
}

fn snapshots(unit: &SimUnit) -> Vec<Snapshot> {
    let snapshot = |partition: &rallypoint_engine::partition::Partition| {
        let mut actors = Vec::new();
        partition.each_actor(&mut |kind, key, state| actors.push((kind, key.to_owned(), state.to_vec())));
        let (id, epoch, channels) = (partition.id(), partition.epoch(), partition.channels());
        let set_aside = partition.set_aside().iter().map(|entry| entry.parcel.clone()).collect();
        Snapshot { partition: id, epoch, channels, actors, set_aside }
    };
    unit.partitions().map(snapshot).collect()
}

fn is_at_rest(unit: &SimUnit) -> bool {
    // The unit's own deadline is the expiry of sessions, days ahead.
    unit.is_quiet() && unit.partitions().all(|partition| partition.next_deadline() == Time::NEVER)
}
