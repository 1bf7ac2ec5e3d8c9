//! The partition: one state machine that is logged, checkpointed and rolled back as one.
//!
//! Decides: the order of runs, what each one changes, what its record says, and when what it caused
//! may leave (at the horizons the protocol gives). A handler runs as soon as its input arrives;
//! everything that leaves the partition waits behind its gate.
//!
//! Never: no IO, no clock, no thread. Never lets a frame, reply, effect or receipt out above its
//! horizon, never runs an input whose verdict it knows, never skips an input once applied.
//!
//! Invariants:
//! - `position` grows by one with each run; a run's record, if the protocol wants one, is appended
//!   before the next run begins;
//! - horizons never move back within an epoch;
//! - replaying a record causes exactly what its hash says, or the partition stops (divergence).
//!
//! Order of calls: [`Partition::new`], then [`Partition::restore`] with
//! [`Partition::load_content`] (when there is a checkpoint), [`Partition::replay`] per record,
//! [`Partition::go_live`]; then any `handle_*`. Commands are in the [`Outbox`] after each call.
//!
//! Source: design: speculation with gated outputs; receiver-based message logging with group commit.

use crate::actor::Actor;
use crate::channel::{Frame, Incoming as InChannel, Outgoing};
use crate::codec::Encoded;
use crate::command::{Command, Notice, Outbox, Outcome, Receipt, Turned};
use crate::effect::{EffectKey, EffectOutcome, EffectValue, Effects, Outstanding};
use crate::map::Map;
use crate::parcel::{Body, Parcel, kind_tag};
use crate::record::{self, InputRecord, Source, Verdict, kind};
use crate::registry::Registry;
use crate::run::Run;
use crate::session::{Kept, Known, Sessions};
use crate::snapshot::{ENGINE, Frozen, HEADER_FORMAT, SetAside, split_entry};
use crate::table::{Delivered, Incoming, Large, Table, TypedTable};
use crate::timer::{TimerId, Timers};
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{Epoch, InputSeq, Lineage, LogId, PartitionId, Position, SessionId, Ssn, Version};
use rallypoint_base::limits;
use rallypoint_base::random::mix;
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use rallypoint_rollback::protocol::{
    Channels, Command as ProtocolCommand, Event as ProtocolEvent, Peer, Protocol,
};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// How much a partition lets in and when it wants a checkpoint.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Inputs whose answers are gated, above which the door answers `Overloaded`.
    pub door_credits: usize,
    /// Bytes of unacknowledged frames above which the door answers `Overloaded`.
    pub unacknowledged_bytes: usize,
    /// Runs since the last cut after which a checkpoint is due (`recovery_target` times the replay
    /// rate). The host divides it among the partitions of a directory, which are replayed in turn.
    pub checkpoint_runs: u64,
    /// Bytes logged since the last cut after which a checkpoint is due; also bytes of the journal that
    /// a partition may hold up with few records of its own before it is moved forward.
    pub checkpoint_bytes: u64,
    /// Increments on one full image before the next full one.
    pub chain_length: u32,
    /// A full image of at most this many bytes is written instead of an increment; a larger one is as
    /// long as it is no larger than the log that it lets go.
    pub small_image_bytes: u64,
    /// Unreceipted frames are sent again after this long without progress.
    pub retransmit_after: Duration,
    /// Deliveries in careful mode after an abnormal end.
    pub careful_deliveries: u32,
    /// Sagas that have ended lie in memory until so many can be put away together.
    pub archive_batch: usize,
    /// Or until one of them has for this long.
    pub archive_after: Duration,
    /// Archived sagas are deleted this long after they ended; `None` keeps them.
    pub saga_retention: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            door_credits: limits::DOOR_CREDITS,
            unacknowledged_bytes: 64 << 20,
            checkpoint_runs: 25_000,
            checkpoint_bytes: 256 << 20,
            chain_length: 8,
            small_image_bytes: 1 << 20,
            retransmit_after: Duration::from_secs(1),
            careful_deliveries: 64,
            archive_batch: 2048,
            archive_after: Duration::from_secs(24 * 3600),
            saga_retention: None,
        }
    }
}

/// Told which input is being run, in memory that outlives the process: after an abort the successor
/// knows whom to suspect. The host's may be a mapped page, the simulator's a variable.
pub trait Witness: Send {
    /// The input with this identity (never 0) is about to run.
    fn running(&mut self, identity: u64);
    /// It ended.
    fn idle(&mut self);
    /// This version of the partition's checkpoints is about to be restored, which calls the
    /// application's own code.
    fn restoring(&mut self, _version: Version) {}
    /// That ended, well or not.
    fn restored(&mut self) {}
}

/// A witness that sees nothing.
impl Witness for () {
    fn running(&mut self, _identity: u64) {}
    fn idle(&mut self) {}
}

/// Who and where a partition is.
#[derive(Clone)]
pub struct Setup {
    /// Its id.
    pub id: PartitionId,
    /// The store's history.
    pub lineage: Lineage,
    /// Where every key lives.
    pub map: Arc<Map>,
    /// The application's kinds.
    pub registry: Arc<Registry>,
    /// Limits.
    pub limits: Limits,
}

/// Why a partition could not be restored or replayed. The store is not at fault unless it says so.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// Replay caused something else than the original run.
    #[error(
        "{partition} diverged at position {position}: actor {actor} caused hash {now:016x}, its record says \
         {recorded:016x}; the program is not deterministic or is not the one that wrote the log: \
         start the old program once more and stop it in an orderly way (its log is then empty), then this one"
    )]
    Diverged {
        /// The partition.
        partition: PartitionId,
        /// Position in the log.
        position: Position,
        /// Kind and key of the addressee.
        actor: String,
        /// Hash of what replay caused.
        now: u64,
        /// Hash in the record.
        recorded: u64,
    },
    /// The bytes are not what this release writes.
    #[error("{partition}: {what}: {error}")]
    Malformed {
        /// The partition.
        partition: PartitionId,
        /// Record or checkpoint.
        what: String,
        /// Which field.
        error: Malformed,
    },
    /// An actor's state cannot be read by this program.
    #[error("{partition}: actor {kind} {key:?}: {detail}")]
    State {
        /// The partition.
        partition: PartitionId,
        /// The actor's kind.
        kind: String,
        /// The actor's key.
        key: String,
        /// What the codec said.
        detail: String,
    },
}

impl ReplayError {
    /// Which partition it is about.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        match self {
            Self::Diverged { partition, .. }
            | Self::Malformed { partition, .. }
            | Self::State { partition, .. } => *partition,
        }
    }
}

mod archive;

enum Gated {
    Reply { session: SessionId, seq: InputSeq },
    Answer { session: SessionId, seq: InputSeq, outcome: Outcome, bytes: Box<[u8]> },
    Effect { id: (Epoch, Position, u32) },
}

/// An input that waits: in careful mode for its mark, or while the protocol has paused deliveries.
struct Waiting {
    source: Source,
    parcel: Vec<u8>,
    piggyback: Vec<u8>,
    epoch: Epoch,
}

#[derive(Default)]
struct Careful {
    remaining: u32,
    queue: VecDeque<Waiting>,
    /// The input at the head of the queue runs once this record is durable.
    marked: Option<Position>,
}

#[derive(Clone, Copy, Default)]
struct Horizons {
    frames: Position,
    outputs: Position,
    receipts: Position,
}

/// Evidence against an input that has no verdict yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    /// Ends of workers during its delivery.
    ends: u32,
    /// It was about to be delivered; how that ended is not known yet.
    pending: bool,
}

/// What a partition says that keeps too many frames. It reaches as many partitions up the stream.
const PRESSURE: u8 = 8;

/// An input that was running at this many ends of workers is set aside.
const ENDS_TO_SET_ASIDE: u32 = 2;

/// How the previous holder of this partition ended, as far as the host knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// The identities of the inputs that were running at that instant, from a [`Witness`] that
    /// outlived it; `None` when no witness did (power was lost, or it was the first start).
    pub running: Option<Vec<u64>>,
    /// The version that was being restored at that instant.
    pub restoring: Option<Version>,
}

struct CheckpointState {
    last: Version,
    base: Option<Version>,
    writing: Option<Version>,
    needs_full: bool,
    increments: u32,
    runs: u64,
    /// Runs that the checkpoint being written took over.
    runs_cut: u64,
    bytes: u64,
    /// Content bytes of the checkpoint being written, and of the last full one.
    written: u64,
    full_bytes: u64,
    /// Actors in the checkpoint being written that are larger than they should be.
    large: Large,
    /// What else it holds.
    frozen: Option<Frozen>,
}

/// One partition. See the module for the order of calls.
pub struct Partition {
    setup: Setup,
    epoch: Epoch,
    tables: Vec<(u32, Box<dyn Table>)>,
    protocol: Box<dyn Protocol>,
    protocol_commands: Vec<ProtocolCommand>,
    position: Position,
    log_tail: Position,
    /// The log is durable through here.
    durable: Position,
    /// (log position, run) of records that are not durable yet.
    appended: VecDeque<(Position, Position)>,
    /// Protocol records that are not durable yet.
    persisting: VecDeque<(Position, u64)>,
    now: Time,
    /// The host's clock when it was last heard.
    clock: Time,
    outgoing: BTreeMap<PartitionId, Outgoing>,
    incoming: BTreeMap<PartitionId, InChannel>,
    receipts: VecDeque<(Position, PartitionId, Ssn)>,
    sessions: Sessions,
    timers: Timers,
    effects: Effects,
    horizons: Horizons,
    gate: VecDeque<(Position, Gated)>,
    unacknowledged_bytes: usize,
    /// The most that a receiver of our frames says, and until when.
    peers_pressure: (u8, Time),
    /// What was last told to those who send to us, and when to repeat it.
    pressure: u8,
    repeat_pressure: Time,
    paused: bool,
    held: VecDeque<Waiting>,
    holding: BTreeMap<PartitionId, VecDeque<Waiting>>,
    careful: Option<Careful>,
    marks: BTreeMap<u64, Mark>,
    set_aside: Vec<SetAside>,
    checkpoint: CheckpointState,
    protocol_timer: Time,
    stopped: bool,
    live: bool,
    run: Run,
    reply: Vec<u8>,
    inner_reply: Vec<u8>,
    inner_parcel: Vec<u8>,
    touched: Vec<usize>,
    /// Whom the run is at, for the evidence should it panic.
    current: (u32, String),
    inner_refusals: Vec<String>,
    witness: Box<dyn Witness>,
    leftover: Vec<u8>,
    /// A checkpoint was read, and nobody has looked whether all of it came.
    unproven: bool,
    /// What is being read is the newest link.
    takes_tables: bool,
    /// Sagas that have ended, in about that order; some may have been restarted since.
    ended: VecDeque<String>,
}

impl Partition {
    /// An empty partition under `protocol`.
    #[must_use]
    pub fn new(setup: Setup, protocol: Box<dyn Protocol>, witness: Box<dyn Witness>) -> Self {
        let run = Run::new(setup.map.clone());
        let tables = setup.registry.tables();
        Self {
            setup,
            epoch: Epoch(0),
            tables,
            protocol,
            protocol_commands: Vec::new(),
            position: Position(0),
            log_tail: Position(0),
            durable: Position(0),
            appended: VecDeque::new(),
            persisting: VecDeque::new(),
            now: Time(0),
            clock: Time::NEVER,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            receipts: VecDeque::new(),
            sessions: Sessions::default(),
            timers: Timers::default(),
            effects: Effects::default(),
            horizons: Horizons::default(),
            gate: VecDeque::new(),
            unacknowledged_bytes: 0,
            peers_pressure: (0, Time::NEVER),
            pressure: 0,
            repeat_pressure: Time::NEVER,
            paused: false,
            held: VecDeque::new(),
            holding: BTreeMap::new(),
            careful: None,
            marks: BTreeMap::new(),
            set_aside: Vec::new(),
            checkpoint: CheckpointState {
                last: Version(0),
                base: None,
                writing: None,
                needs_full: true,
                increments: 0,
                runs: 0,
                runs_cut: 0,
                bytes: 0,
                written: 0,
                full_bytes: u64::MAX,
                large: Large::default(),
                frozen: None,
            },
            protocol_timer: Time::NEVER,
            stopped: false,
            live: false,
            run,
            reply: Vec::new(),
            inner_reply: Vec::new(),
            inner_parcel: Vec::new(),
            touched: Vec::new(),
            current: (0, String::new()),
            inner_refusals: Vec::new(),
            witness,
            leftover: Vec::new(),
            unproven: false,
            takes_tables: true,
            ended: VecDeque::new(),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> PartitionId {
        self.setup.id
    }

    /// The last run.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Position of the last record in its log.
    #[must_use]
    pub fn log_tail(&self) -> Position {
        self.log_tail
    }

    /// Its epoch: changes on rollback, never on a crash.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many actors it holds.
    #[must_use]
    pub fn actor_count(&self) -> usize {
        self.tables.iter().map(|(_, table)| table.len()).sum()
    }

    /// What was set aside, oldest first.
    #[must_use]
    pub fn set_aside(&self) -> &[SetAside] {
        &self.set_aside
    }

    /// Inputs whose answers wait at the gate.
    #[must_use]
    pub fn gated(&self) -> usize {
        self.gate.len()
    }

    /// True when nothing waits here: no gate, no record that is not durable, no frame that the
    /// receiver's log does not hold, no effect, nothing held.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.gate.is_empty()
            && self.appended.is_empty()
            && self.unacknowledged_bytes == 0
            && self.effects.is_empty()
            && self.held.is_empty()
            && self.holding.values().all(VecDeque::is_empty)
            && self.careful.as_ref().is_none_or(|careful| careful.queue.is_empty())
    }

    /// Bytes of frames that no receiver's log holds yet.
    #[must_use]
    pub fn unacknowledged_bytes(&self) -> usize {
        self.unacknowledged_bytes
    }

    /// Channel counters now.
    #[must_use]
    pub fn channels(&self) -> Channels {
        let mut channels = Channels::new();
        for (&to, channel) in &self.outgoing {
            channels.entry(to).or_default().sent = channel.sent;
        }
        for (&from, channel) in &self.incoming {
            channels.entry(from).or_default().received = channel.received;
        }
        channels
    }

    /// Hash of every actor's key and state, independent of order: equal partitions have equal ones.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.tables.iter().fold(0, |sum, (_, table)| mix(sum ^ table.digest()))
    }

    /// Visits every actor of one kind as it is now, durable or not.
    pub fn each_of<A: Actor>(&self, visit: &mut dyn FnMut(&str, &A)) {
        let tag = kind_tag(A::KIND);
        let table = self.tables.iter().find(|(found, _)| *found == tag);
        if let Some(table) = table.and_then(|(_, table)| table.as_any().downcast_ref::<TypedTable<A>>()) {
            table.each_typed(visit);
        }
    }

    /// True when it has this actor in memory.
    #[must_use]
    pub fn has_actor(&self, kind: u32, key: &str) -> bool {
        self.tables.iter().any(|(tag, table)| *tag == kind && table.has(key))
    }

    /// Visits every actor: kind, key, state in MessagePack (codec, schema, bytes).
    pub fn each_actor(&self, visit: &mut dyn FnMut(&'static str, &str, &[u8])) {
        for (tag, table) in &self.tables {
            let name = self.setup.registry.name(*tag).unwrap_or("?");
            table.each(&mut |key, state| visit(name, key, state));
        }
    }

    // ---------------------------------------------------------------- restore and replay

    /// The log holds records up to here that this partition will not read: it has stopped.
    pub(crate) fn skip_log(&mut self, position: Position) {
        self.log_tail = self.log_tail.max(position);
    }

    /// Tells the witness that a restore begins (or has ended).
    pub(crate) fn restoring(&mut self, version: Option<Version>) {
        match version {
            Some(version) => self.witness.restoring(version),
            None => self.witness.restored(),
        }
    }

    /// Takes back the header of a checkpoint. The content follows with [`Partition::load_content`].
    ///
    /// # Errors
    /// [`ReplayError::Malformed`] when the bytes are no header of this release.
    pub fn restore(&mut self, version: Version, header: &[u8]) -> Result<(), ReplayError> {
        let id = self.setup.id;
        self.load_header(version, header).map_err(|error| ReplayError::Malformed {
            partition: id,
            what: format!("header of checkpoint {version}"),
            error,
        })
    }

    fn load_header(&mut self, version: Version, header: &[u8]) -> Result<(), Malformed> {
        self.unproven = true;
        let reader = &mut Reader::new(header);
        if reader.u8("header format")? != HEADER_FORMAT {
            return Err(Malformed { field: "header format of a newer release", offset: 0 });
        }
        self.position = Position(reader.varint("run position")?);
        self.log_tail = self.log_tail.max(Position(reader.varint("log position")?));
        self.epoch = self.epoch.max(Epoch(reader.varint("epoch")? as u32));
        self.now = self.now.max(Time(reader.varint("time")?));
        self.checkpoint.increments = reader.varint("increments")? as u32;
        for _ in 0..reader.varint("outgoing channels")? {
            let to = PartitionId(reader.varint("outgoing channel")? as u16);
            let channel = Outgoing::load(reader)?;
            self.unacknowledged_bytes += channel.kept_bytes;
            self.outgoing.insert(to, channel);
        }
        for _ in 0..reader.varint("incoming channels")? {
            let from = PartitionId(reader.varint("incoming channel")? as u16);
            let received = Ssn(reader.varint("received")?);
            self.incoming.insert(from, InChannel { received, arrived: received, ..InChannel::default() });
        }
        self.sessions = Sessions::restored(Time(reader.varint("sessions forgotten at")?));
        self.timers = Timers::restored(reader.varint("timer count")?);
        self.effects = Effects::default();
        reader.varint("effects")?;
        for _ in 0..reader.varint("marks")? {
            let identity = reader.u64("mark")?;
            let count = reader.varint("mark count")? as u32;
            self.marks.insert(identity, Mark { ends: count >> 1, pending: count & 1 == 1 });
        }
        for _ in 0..reader.varint("set aside")? {
            self.set_aside.push(SetAside::load(reader)?);
        }
        self.protocol.load(reader.bytes("protocol state")?)?;
        self.checkpoint.last = self.checkpoint.last.max(version);
        self.checkpoint.base = Some(version);
        self.checkpoint.needs_full = false;
        Ok(())
    }

    /// The content of the next link of a chain follows. Only the newest one's tables count: those of
    /// the others are of an older state.
    ///
    /// # Errors
    /// [`ReplayError::Malformed`] when the link before ended inside an entry.
    pub fn begin_content(&mut self, newest: bool) -> Result<(), ReplayError> {
        self.takes_tables = newest;
        self.no_leftover()
    }

    fn load_table(&mut self, table: &str, bytes: &[u8]) -> Result<(), Malformed> {
        let reader = &mut Reader::new(bytes);
        match table {
            "sessions" => self.sessions.load(reader),
            "timers" => self.timers.load(reader),
            "effects" => self.effects.load(reader),
            "frames" => {
                let to = PartitionId(reader.varint("frames to")? as u16);
                let unknown =
                    Malformed { field: "frames of a channel that the header does not know", offset: 0 };
                self.outgoing.get_mut(&to).ok_or(unknown)?.load_frames(reader)
            }
            _ => Err(Malformed { field: "table of a newer release", offset: 0 }),
        }
    }

    /// Takes the next piece of a checkpoint's content, full image first, increments after it; before
    /// each of them [`Partition::begin_content`].
    ///
    /// # Errors
    /// [`ReplayError`] when an entry cannot be read or this program has no such kind.
    pub fn load_content(&mut self, bytes: &[u8]) -> Result<(), ReplayError> {
        let id = self.setup.id;
        let mut buffer = std::mem::take(&mut self.leftover);
        let whole = if buffer.is_empty() {
            bytes
        } else {
            buffer.extend_from_slice(bytes);
            &buffer
        };
        let mut at = 0;
        loop {
            let split = split_entry(&whole[at..]).map_err(|error| ReplayError::Malformed {
                partition: id,
                what: "checkpoint content".into(),
                error,
            })?;
            let Some((entry, len)) = split else { break };
            if entry.kind == ENGINE {
                if self.takes_tables {
                    let bytes = entry.state.map_or(&[][..], |state| state.bytes);
                    self.load_table(entry.key, bytes).map_err(|error| ReplayError::Malformed {
                        partition: id,
                        what: format!("table {:?} of a checkpoint", entry.key),
                        error,
                    })?;
                }
                at += len;
                continue;
            }
            let found = self.tables.iter_mut().find(|(tag, _)| *tag == entry.kind);
            let error = |kind: String, detail: String| ReplayError::State {
                partition: id,
                kind,
                key: entry.key.to_owned(),
                detail,
            };
            let Some((tag, table)) = found else {
                let detail = "this program registers no kind with this tag: add the actor back".into();
                return Err(error(format!("{:08x}", entry.kind), detail));
            };
            let name = self.setup.registry.name(*tag).unwrap_or("?");
            match entry.state {
                Some(state) => {
                    table.load(entry.key, state).map_err(|e| error(name.to_owned(), e.to_string()))?;
                }
                None => {
                    table.remove(entry.key);
                }
            }
            at += len;
        }
        self.leftover = whole[at..].to_vec();
        Ok(())
    }

    /// After the last piece of a checkpoint's content.
    ///
    /// # Errors
    /// [`ReplayError::Malformed`] when it ended inside an actor: the version cannot be used.
    pub fn content_is_whole(&self) -> Result<(), ReplayError> {
        if !self.outgoing.values().all(Outgoing::is_whole) {
            return Err(self.not_whole("frames are missing"));
        }
        self.no_leftover()
    }

    fn no_leftover(&self) -> Result<(), ReplayError> {
        if self.leftover.is_empty() { Ok(()) } else { Err(self.not_whole("content ends inside an actor")) }
    }

    fn not_whole(&self, field: &'static str) -> ReplayError {
        let error = Malformed { field, offset: self.leftover.len() };
        ReplayError::Malformed { partition: self.setup.id, what: "checkpoint content".into(), error }
    }

    /// Says how large the full image is that what was restored builds on.
    pub(crate) fn set_full_bytes(&mut self, bytes: u64) {
        self.checkpoint.full_bytes = bytes;
    }

    /// Says how far the versions of this partition go, so that none is ever used twice.
    pub fn set_last_version(&mut self, last: Version) {
        self.checkpoint.last = self.checkpoint.last.max(last);
    }

    /// Runs a logged input again, or takes in another record of this partition's log. Records at or
    /// before the checkpoint are skipped.
    ///
    /// # Errors
    /// [`ReplayError`]; the partition must not go live then.
    pub fn replay(
        &mut self,
        position: Position,
        epoch: Epoch,
        kind: u8,
        payload: &[u8],
    ) -> Result<bool, ReplayError> {
        if position <= self.log_tail {
            return Ok(false);
        }
        let id = self.setup.id;
        // The text is made when it is needed: this runs for every record.
        let malformed = |what: &'static str| {
            move |error| ReplayError::Malformed { partition: id, what: format!("{what} {position}"), error }
        };
        if std::mem::take(&mut self.unproven) {
            self.content_is_whole()?;
        }
        match kind {
            kind::INPUT => {
                let record = InputRecord::decode(payload).map_err(malformed("record"))?;
                self.epoch = epoch;
                self.replay_input(position, &record)?;
                self.checkpoint.runs += 1;
                self.checkpoint.bytes += payload.len() as u64;
            }
            kind::MARK => {
                let (identity, count) = record::decode_mark(payload).map_err(malformed("mark"))?;
                self.marks.insert(identity, Mark { ends: count >> 1, pending: count & 1 == 1 });
                self.position = self.position.next();
            }
            kind::PROTOCOL | kind::STOP => self.position = self.position.next(),
            kind::EPOCH => self.epoch = epoch, // no run: the position stays
            kind::DROP => {
                let run = record::decode_drop(payload).map_err(malformed("drop"))?;
                self.set_aside.retain(|entry| entry.position != run);
            }
            kind::ARCHIVED => {
                let (_, ids) = record::decode_archived(payload).map_err(malformed("archived sagas"))?;
                for id in ids {
                    self.take_out(id);
                }
            }
            kind::REVIVED => {
                let (id, state) = record::decode_revived(payload).map_err(malformed("revived saga"))?;
                self.put_back(id, state)?;
            }
            other => {
                let error = Malformed { field: "record kind of a newer release", offset: other.into() };
                return Err(malformed("record")(error));
            }
        }
        self.log_tail = position;
        Ok(true)
    }

    fn replay_input(&mut self, position: Position, record: &InputRecord<'_>) -> Result<(), ReplayError> {
        self.now = self.now.max(record.time);
        self.position = record.run;
        let identity = record.source.identity(record.parcel);
        self.marks.remove(&identity);
        let outcome = if record.verdict == Verdict::SetAside {
            self.set_run_aside(record.parcel, record.evidence, true);
            Outcome::SetAside
        } else {
            self.perform(record.parcel, true).0
        };
        let hash = self.hash_run(outcome);
        let mut diverged = hash != record.hash || verdict_of(outcome) != record.verdict;
        if !diverged {
            let channels = self.settle(record.source, record.parcel, outcome, identity, record.evidence);
            diverged = channels != record.channels;
        }
        if diverged {
            let actor = match Parcel::decode(record.parcel) {
                Ok(parcel) => {
                    format!("{} {:?}", self.setup.registry.name(parcel.kind).unwrap_or("?"), parcel.key)
                }
                Err(error) => error.to_string(),
            };
            return Err(ReplayError::Diverged {
                partition: self.setup.id,
                position,
                actor,
                now: hash,
                recorded: record.hash,
            });
        }
        Ok(())
    }

    /// Ends recovery: everything replayed is stable by definition, and events may come. What the
    /// witness saw running when the last holder ended is suspected; while there are suspects (or
    /// marks of unknown end) deliveries are careful for a while.
    pub fn go_live(&mut self, now: Time, ending: &Ending, out: &mut Outbox) {
        self.advance(now);
        self.live = true;
        if self.stopped {
            return; // after a divergence the state is not one that may be seen
        }
        if let Err(error) = self.content_is_whole() {
            self.stopped = true;
            out.commands.push(Command::Notice(Notice::Diverged { detail: error.to_string() }));
            return;
        }
        self.durable = self.log_tail;
        self.find_ended();
        self.begin_again();
        self.weigh_evidence(ending, out);
        let (version, position, channels) =
            (self.checkpoint.base.unwrap_or(Version(0)), self.position, self.channels());
        self.tell(ProtocolEvent::Restarted { version, position, channels: &channels }, out);
        self.flush(out);
    }

    /// After a restart or a rollback: unreceipted frames travel again, and receipts and outstanding
    /// effects of the state at hand wait at the gate like those of its last run.
    fn begin_again(&mut self) {
        self.receipts.clear();
        for (&from, channel) in &mut self.incoming {
            channel.arrived = channel.received;
            channel.repeat_receipt = true;
            self.receipts.push_back((self.position, from, channel.received));
        }
        for channel in self.outgoing.values_mut() {
            channel.transmitted = channel.acknowledged;
            channel.last_progress = self.now;
        }
        self.gate.retain(|(_, gated)| !matches!(gated, Gated::Effect { .. }));
        for id in self.effects.ids() {
            self.gate.push_back((self.position, Gated::Effect { id }));
        }
    }

    fn weigh_evidence(&mut self, ending: &Ending, out: &mut Outbox) {
        let mut changed = Vec::new();
        for (&identity, mark) in &mut self.marks {
            let was_running = match &ending.running {
                Some(running) => running.contains(&identity),
                None => mark.pending,
            };
            if was_running || mark.pending {
                mark.ends += u32::from(was_running);
                mark.pending = false;
                changed.push((identity, *mark));
            }
        }
        for &identity in ending.running.iter().flatten() {
            if !self.marks.contains_key(&identity) {
                changed.push((identity, Mark { ends: 1, pending: false }));
            }
        }
        // Written down at once: a suspect that comes back only after careful mode is still known.
        for &(identity, mark) in &changed {
            self.append_mark(identity, mark, out);
        }
        self.marks.retain(|_, mark| mark.ends > 0);
        if !self.marks.is_empty() {
            let remaining = self.setup.limits.careful_deliveries;
            self.careful = Some(Careful { remaining, ..Careful::default() });
        }
    }

    /// Empties the partition before [`Partition::restore`] to an older version. Its protocol
    /// machine, its epoch and the end of its log stay.
    pub fn begin_rollback(&mut self) {
        self.tables = self.setup.registry.tables();
        self.outgoing.clear();
        self.incoming.clear();
        self.receipts.clear();
        self.appended.clear();
        self.sessions = Sessions::default();
        self.timers = Timers::default();
        self.effects = Effects::default();
        self.horizons = Horizons::default();
        self.gate.clear();
        self.unacknowledged_bytes = 0;
        self.held.clear();
        self.holding.clear();
        self.marks.clear();
        self.set_aside.clear();
        self.leftover.clear();
        self.ended.clear();
        self.position = Position(0);
        self.checkpoint.writing = None;
        self.checkpoint.frozen = None;
        self.checkpoint.base = None;
        self.checkpoint.needs_full = true;
        self.checkpoint.runs = 0;
        self.checkpoint.bytes = 0;
    }

    /// Writes down that this partition's history goes on under `epoch`. The rollback is complete
    /// ([`Partition::rolled_back`]) once that record is durable.
    pub fn append_epoch(&mut self, epoch: Epoch, out: &mut Outbox) {
        self.epoch = epoch;
        let parent = self.position;
        self.append_no_run(kind::EPOCH, out, |bytes| put_varint(bytes, parent.0));
    }

    /// A rollback asked for by [`Command::Restore`] is done and durable.
    pub fn rolled_back(&mut self, now: Time, version: Option<Version>, out: &mut Outbox) {
        self.advance(now);
        let epoch = self.epoch;
        // What waits may stem from the undone history, and what does not comes again: frames from
        // their sender, timers and ends of effects from the tables. Only a client's input is new.
        self.find_ended();
        let is_input = |waiting: &Waiting| matches!(waiting.source, Source::Client { .. });
        self.held.retain(is_input);
        self.holding.clear();
        if let Some(careful) = &mut self.careful {
            careful.queue.retain(is_input);
            careful.marked = None;
        }
        self.begin_again();
        let (position, channels) = (self.position, self.channels());
        self.tell(ProtocolEvent::RolledBack { version, epoch, position, channels: &channels }, out);
        self.mark_next(out);
        self.flush(out);
    }

    // ---------------------------------------------------------------- events

    /// A client's input. The answer comes as [`Command::Reply`] once it is durable, or at once as
    /// [`Command::Turn`].
    pub fn handle_input(
        &mut self,
        now: Time,
        session: SessionId,
        seq: InputSeq,
        acknowledged_below: InputSeq,
        read_only: bool,
        parcel: &[u8],
        out: &mut Outbox,
    ) {
        self.advance(now);
        if let Err(why) = self.admit(session, seq, acknowledged_below, read_only, parcel, out) {
            out.commands.push(Command::Turn { session, seq, why });
        }
    }

    /// The door: `Ok` when the input was taken (or answered from the table).
    fn admit(
        &mut self,
        session: SessionId,
        seq: InputSeq,
        acknowledged_below: InputSeq,
        read_only: bool,
        parcel: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Turned> {
        if self.stopped || !self.live {
            return Err(Turned::Stopped);
        }
        let decoded = Parcel::decode(parcel).map_err(|_| Turned::Malformed)?;
        // Only actors ask: the answer to anybody else would be a message nobody sent.
        if decoded.key.len() > limits::KEY_BYTES
            || parcel.len() > limits::MESSAGE_BYTES
            || decoded.asker.is_some()
        {
            return Err(Turned::Malformed);
        }
        let Some(table) = self.tables.iter().position(|(tag, _)| *tag == decoded.kind) else {
            return Err(Turned::NoSuchKind);
        };
        let Body::Message(message) = decoded.body else { return Err(Turned::Malformed) };
        let waiting = self.gate.len()
            + self.held.len()
            + self.careful.as_ref().map_or(0, |careful| careful.queue.len());
        let overloaded =
            waiting >= self.setup.limits.door_credits || self.keeps_too_much() || self.peers_pressure.0 > 0;
        let source = Source::Client { session, seq, acknowledged_below };
        if read_only && !overloaded && self.query(source, session, seq, table, decoded.key, message, out)? {
            return Ok(());
        }
        match self.sessions.look_up(session, seq) {
            Known::TooOld => return Err(Turned::TooOld),
            Known::Answered(kept) => {
                // Its original answer may still be at the gate; then it leaves once, from there.
                if kept.position <= self.horizons.outputs {
                    let span = out.bytes.len()..out.bytes.len() + kept.bytes.len();
                    out.bytes.extend_from_slice(&kept.bytes);
                    let outcome = Outcome::from_u8(kept.outcome).unwrap_or(Outcome::Failed);
                    out.commands.push(Command::Reply { session, seq, outcome, bytes: span });
                }
                self.sessions.acknowledge(session, acknowledged_below);
                return Ok(());
            }
            Known::New => {}
        }
        if overloaded {
            return Err(Turned::Overloaded);
        }
        self.arrive(source, parcel, &[], self.epoch, out);
        Ok(())
    }

    fn query(
        &mut self,
        source: Source,
        session: SessionId,
        seq: InputSeq,
        table: usize,
        key: &str,
        message: &[u8],
        out: &mut Outbox,
    ) -> Result<bool, Turned> {
        let encoded = Encoded::split(message).ok_or(Turned::Malformed)?;
        let identity = source.identity(message);
        if self.ends(identity) >= ENDS_TO_SET_ASIDE {
            return Ok(false); // as an input, it is set aside
        }
        self.run.begin(self.now, mix(self.position.0), false);
        self.reply.clear();
        let (run, reply) = (&mut self.run, &mut self.reply);
        let table = &mut self.tables[table].1;
        self.witness.running(identity);
        let answered = catch_unwind(AssertUnwindSafe(|| table.query(key, encoded, run, reply)));
        self.witness.idle();
        let outcome = match answered {
            Ok(None) => return Ok(false),
            Ok(Some(Delivered::Applied)) => Outcome::Applied,
            Ok(Some(Delivered::Refused)) => Outcome::Refused,
            Ok(Some(Delivered::Failed(error))) => {
                self.reply.clear();
                self.reply.extend_from_slice(error.to_string().as_bytes());
                Outcome::Failed
            }
            Err(panic) => {
                self.reply.clear();
                self.reply.extend_from_slice(panic_text(&*panic).as_bytes());
                Outcome::Failed
            }
        };
        let bytes = self.reply.as_slice().into();
        self.gate.push_back((self.position, Gated::Answer { session, seq, outcome, bytes }));
        self.flush(out);
        Ok(true)
    }

    /// Frames of another partition, numbered from `first` without gaps. Repetitions are dropped,
    /// frames beyond a gap too (they come again).
    pub fn handle_frames(
        &mut self,
        now: Time,
        from: PartitionId,
        epoch: Epoch,
        first: Ssn,
        count: u32,
        frames: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Malformed> {
        self.advance(now);
        if self.stopped || !self.live || epoch < self.epoch {
            return Ok(());
        }
        let mut reader = Reader::new(frames);
        let mut ssn = first;
        for _ in 0..count {
            let parcel = reader.bytes("frame")?;
            let piggyback = reader.bytes("piggyback")?;
            let channel = self.incoming.entry(from).or_default();
            if ssn <= channel.arrived {
                channel.repeat_receipt = true;
            } else if ssn == channel.arrived.next() {
                channel.arrived = ssn;
                self.arrive(Source::Frame { from, ssn }, parcel, piggyback, epoch, out);
            } else {
                break;
            }
            ssn = ssn.next();
        }
        if self.incoming.get(&from).is_some_and(|channel| channel.repeat_receipt) {
            self.flush(out);
        }
        Ok(())
    }

    /// The peer's log holds this partition's frames through `through`.
    pub fn handle_receipt(&mut self, now: Time, from: PartitionId, receipt: Receipt, out: &mut Outbox) {
        self.advance(now);
        if receipt.epoch != self.epoch {
            return;
        }
        let Some(channel) = self.outgoing.get_mut(&from) else { return };
        self.unacknowledged_bytes -= channel.kept_bytes;
        if !channel.acknowledge(self.now, receipt.through) {
            out.commands.push(Command::Notice(Notice::ImpossibleReceipt { from }));
        }
        self.unacknowledged_bytes += channel.kept_bytes;
        // It is repeated as long as it is true; one that falls silent presses nobody.
        let said = (receipt.pressure, self.now + self.setup.limits.retransmit_after * 2);
        let before = std::mem::replace(&mut channel.pressure, said).0;
        if said.0 > 0 && said.0 >= self.peers_pressure.0 {
            self.peers_pressure = said;
        } else if before > 0 && before == self.peers_pressure.0 {
            self.weigh_pressure();
        }
        if self.pressure_now() != self.pressure {
            self.flush(out);
        }
    }

    /// Finds the most that a receiver of our frames says and that has not expired.
    fn weigh_pressure(&mut self) {
        let now = self.now;
        let said = self.outgoing.values().map(|channel| channel.pressure);
        let (most, until) = said.filter(|(_, until)| *until > now).max().unwrap_or_default();
        self.peers_pressure = (most, if most > 0 { until } else { Time::NEVER });
    }

    fn keeps_too_much(&self) -> bool {
        self.unacknowledged_bytes > self.setup.limits.unacknowledged_bytes
    }

    /// What those are told who send to this partition.
    fn pressure_now(&self) -> u8 {
        if self.keeps_too_much() { PRESSURE } else { self.peers_pressure.0.saturating_sub(1) }
    }

    /// The way to a peer is new (it was restarted, or the connection was): everything it has not
    /// receipted goes again, and it is told what the log here holds.
    pub fn handle_connected(&mut self, now: Time, peer: PartitionId, out: &mut Outbox) {
        self.advance(now);
        if let Some(channel) = self.outgoing.get_mut(&peer) {
            channel.transmitted = channel.acknowledged;
        }
        if let Some(channel) = self.incoming.get_mut(&peer) {
            channel.repeat_receipt = true;
        }
        self.flush(out);
    }

    /// The host performed an effect. `outcome`: 0 done (with the value), 1 failed (with a text).
    pub fn handle_effect(&mut self, now: Time, key: EffectKey, outcome: u8, value: &[u8], out: &mut Outbox) {
        self.advance(now);
        if self.stopped || !self.live {
            return;
        }
        let id = (key.epoch, key.position, key.index);
        let ours = key.lineage == self.setup.lineage && key.log == LogId::from(self.setup.id);
        if !ours || self.effects.get(id).is_none() {
            out.commands.push(Command::Notice(Notice::LateEffect { key }));
            return;
        }
        self.effect_ended(id, outcome, value, out);
    }

    fn effect_ended(&mut self, id: (Epoch, Position, u32), outcome: u8, value: &[u8], out: &mut Outbox) {
        let Some(effect) = self.effects.get(id) else { return };
        let mut parcel = Vec::with_capacity(effect.key.len() + value.len() + 64);
        let body = Body::Effect { id, outcome, value };
        Parcel { kind: effect.kind, key: &effect.key, asker: None, body }.encode(&mut parcel);
        self.arrive(Source::Effect, &parcel, &[], self.epoch, out);
    }

    /// Everything in this partition's log through `position` is durable.
    pub fn handle_durable(&mut self, now: Time, position: Position, out: &mut Outbox) {
        self.advance(now);
        self.durable = self.durable.max(position);
        let mut run = None;
        while let Some(&(log, at)) = self.appended.front()
            && log <= position
        {
            run = Some(at);
            self.appended.pop_front();
        }
        if let Some(position) = run {
            self.tell(ProtocolEvent::Durable { position }, out);
        }
        while let Some(&(log, token)) = self.persisting.front()
            && log <= position
        {
            self.persisting.pop_front();
            self.tell(ProtocolEvent::Persisted { token }, out);
        }
        self.flush(out);
        self.run_marked(out);
    }

    /// Time passed: timers, effect deadlines, retransmission, session expiry.
    pub fn handle_time(&mut self, now: Time, out: &mut Outbox) {
        self.advance(now);
        if self.stopped || !self.live {
            return;
        }
        // A timer that is set here and due at once waits for the next call, so that this one ends.
        let last = self.timers.last_set();
        while self.takes_timers()
            && let Some((at, set, id)) = self.timers.earliest()
            && at <= self.now
            && set <= last
        {
            let mut parcel = Vec::new();
            let body = Body::Timer { set, name: &id.name };
            Parcel { kind: id.kind, key: &id.key, asker: None, body }.encode(&mut parcel);
            self.arrive(Source::Timer, &parcel, &[], self.epoch, out);
        }
        while self.takes_timers()
            && let Some((deadline, id)) = self.effects.earliest()
            && deadline <= self.now
        {
            self.effect_ended(id, 2, &[], out);
        }
        let patience = self.setup.limits.retransmit_after;
        for channel in self.outgoing.values_mut() {
            let waits = channel.transmitted > channel.acknowledged;
            if waits && self.now.since(channel.last_progress) >= patience {
                channel.transmitted = channel.acknowledged;
                channel.last_progress = self.now;
            }
        }
        if self.peers_pressure.1 <= self.now {
            self.weigh_pressure();
        }
        if self.protocol_timer <= self.now {
            self.protocol_timer = Time::NEVER;
            self.tell(ProtocolEvent::Tick { now: self.now }, out);
        }
        self.flush(out);
    }

    /// Timers and deadlines stay in their tables until they run: one at a time where inputs queue.
    fn takes_timers(&self) -> bool {
        !self.paused && self.careful.as_ref().is_none_or(|careful| careful.queue.is_empty())
    }

    /// When [`Partition::handle_time`] should be called next, at the latest, by the host's clock.
    #[must_use]
    pub fn next_deadline(&self) -> Time {
        if self.stopped || !self.live {
            return Time::NEVER;
        }
        let (mut timer, mut effect) = (Time::NEVER, Time::NEVER);
        if self.takes_timers() {
            timer = self.timers.earliest().map_or(Time::NEVER, |(at, _, _)| at);
            effect = self.effects.earliest().map_or(Time::NEVER, |(at, _)| at);
        }
        let waiting = self.outgoing.values().filter(|channel| channel.transmitted > channel.acknowledged);
        let resend = waiting.map(|channel| channel.last_progress + self.setup.limits.retransmit_after).min();
        let next = timer.min(effect).min(resend.unwrap_or(Time::NEVER)).min(self.protocol_timer);
        let next = next.min(self.peers_pressure.1).min(self.repeat_pressure);
        if next == Time::NEVER { next } else { next - self.now.since(self.clock) }
    }

    /// Forgets sessions that were idle for longer than [`limits::SESSION_TTL`].
    pub fn expire_sessions(&mut self, now: Time, out: &mut Outbox) {
        let count = self.sessions.expire(now);
        if count > 0 {
            out.commands.push(Command::Notice(Notice::SessionsExpired { count }));
        }
    }

    /// A control message of the protocol.
    pub fn handle_control(&mut self, now: Time, from: Peer, bytes: &[u8], out: &mut Outbox) {
        self.advance(now);
        self.tell(ProtocolEvent::Control { from, bytes }, out);
        self.flush(out);
    }

    /// The host gave up on a peer.
    pub fn handle_peer_failed(&mut self, now: Time, peer: PartitionId, out: &mut Outbox) {
        self.advance(now);
        self.tell(ProtocolEvent::PeerFailed { peer }, out);
        self.flush(out);
    }

    /// A checkpoint is due, by the host's or a person's wish.
    pub fn request_checkpoint(&mut self, now: Time, out: &mut Outbox) {
        self.advance(now);
        if self.checkpoint.writing.is_none() && self.live && !self.stopped {
            self.tell(ProtocolEvent::CheckpointDue, out);
            self.flush(out);
        }
    }

    /// As [`Self::request_checkpoint`], and it is to be a full image.
    pub fn request_full_checkpoint(&mut self, now: Time, out: &mut Outbox) {
        self.checkpoint.needs_full = true;
        self.request_checkpoint(now, out);
    }

    /// Writes down an orderly stop: nothing was running, nothing is suspect.
    pub fn append_stop(&mut self, out: &mut Outbox) {
        if self.stopped || !self.live {
            return; // its log goes on behind what was replayed
        }
        self.position = self.position.next();
        self.append(kind::STOP, out, |_| {});
    }

    /// Stops: nothing is delivered or sent from here on.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// The partition's time never goes back, and goes on where the host's clock was put back: else
    /// a clock that was a year ahead for a moment would stop every timer for a year.
    fn advance(&mut self, now: Time) {
        /// Less than this is two threads that read the clock in turn.
        const JITTER: Duration = Duration::from_secs(1);
        if now + JITTER < self.clock {
            self.clock = now;
        }
        self.now = (self.now + now.since(self.clock)).max(now);
        self.clock = self.clock.max(now);
    }

    // ---------------------------------------------------------------- delivery

    /// An input has arrived and is new: it waits where it must, else it runs.
    fn arrive(&mut self, source: Source, parcel: &[u8], piggyback: &[u8], epoch: Epoch, out: &mut Outbox) {
        let waiting = || Waiting { source, parcel: parcel.to_vec(), piggyback: piggyback.to_vec(), epoch };
        if self.paused || epoch > self.epoch {
            self.held.push_back(waiting());
        } else if let Some(careful) = &mut self.careful {
            careful.queue.push_back(waiting());
            self.mark_next(out);
        } else {
            self.deliver(source, parcel, piggyback, out);
        }
    }

    fn deliver(&mut self, source: Source, parcel: &[u8], piggyback: &[u8], out: &mut Outbox) {
        if let Source::Frame { from, ssn } = source {
            if let Some(channel) = self.holding.get_mut(&from)
                && !channel.is_empty()
            {
                let (parcel, piggyback) = (parcel.to_vec(), piggyback.to_vec());
                channel.push_back(Waiting { source, parcel, piggyback, epoch: self.epoch });
                return;
            }
            let mut commands = std::mem::take(&mut self.protocol_commands);
            self.protocol.handle(ProtocolEvent::Arriving { from, ssn, piggyback }, &mut commands);
            let hold = commands.contains(&ProtocolCommand::Hold);
            for command in commands.drain(..) {
                self.obey(command, out);
            }
            self.protocol_commands = commands;
            if hold {
                let (parcel, piggyback) = (parcel.to_vec(), piggyback.to_vec());
                let waiting = Waiting { source, parcel, piggyback, epoch: self.epoch };
                self.holding.entry(from).or_default().push_back(waiting);
                return;
            }
        }
        self.execute(source, parcel, out);
    }

    /// Runs an input live, writes its record, hands what it caused to the gate.
    fn execute(&mut self, source: Source, parcel: &[u8], out: &mut Outbox) {
        let identity = source.identity(parcel);
        self.position = self.position.next();
        let ends = self.ends(identity);
        let (outcome, evidence) = if ends >= ENDS_TO_SET_ASIDE {
            (Outcome::SetAside, format!("it was running when its worker ended, {ends} times"))
        } else {
            self.witness.running(identity);
            let performed = self.perform(parcel, false);
            self.witness.idle();
            performed
        };
        if outcome == Outcome::SetAside {
            self.set_run_aside(parcel, &evidence, false);
        }
        let hash = self.hash_run(outcome);
        let verdict = verdict_of(outcome);
        let channels = self.settle(source, parcel, outcome, identity, &evidence);
        if verdict == Verdict::SetAside {
            out.commands.push(Command::Notice(Notice::SetAside { identity, evidence: evidence.clone() }));
        }
        // A client's refusal is its answer, and what it refused sent nothing.
        if verdict != Verdict::Applied && matches!(source, Source::Client { .. }) {
            self.inner_refusals.clear();
        }
        for detail in self.run.alarms.drain(..) {
            out.commands.push(Command::Notice(Notice::Alarm { detail }));
        }
        for detail in self.inner_refusals.drain(..) {
            out.commands.push(Command::Notice(Notice::RefusedInside { detail }));
        }
        if let Source::Client { session, seq, .. } = source {
            self.gate.push_back((self.position, Gated::Reply { session, seq }));
        }
        let cause = match source {
            Source::Frame { from, ssn } => {
                self.receipts.push_back((self.position, from, ssn));
                Some((from, ssn))
            }
            _ => None,
        };
        let mut commands = std::mem::take(&mut self.protocol_commands);
        let ran = ProtocolEvent::Ran { position: self.position, cause, sent: channels.len() };
        self.protocol.handle(ran, &mut commands);
        let mut channels = Some(channels);
        for command in commands.drain(..) {
            if command == ProtocolCommand::Log {
                let record = InputRecord {
                    verdict,
                    source,
                    time: self.now,
                    run: self.position,
                    hash,
                    channels: channels.take().unwrap_or_default(),
                    evidence: &evidence,
                    parcel,
                };
                self.append(kind::INPUT, out, |bytes| record.encode(bytes));
            } else {
                self.obey(command, out);
            }
        }
        self.protocol_commands = commands;
        if self.horizons.outputs >= self.position || self.horizons.frames >= self.position {
            self.flush(out);
        }
        self.checkpoint.runs += 1;
        let limits = &self.setup.limits;
        let due = self.checkpoint.runs >= limits.checkpoint_runs
            || self.checkpoint.bytes >= limits.checkpoint_bytes;
        if due && self.checkpoint.writing.is_none() {
            self.tell(ProtocolEvent::CheckpointDue, out);
        }
    }

    /// Calls the handlers of one input. What they asked for is in `self.run`, the answer in
    /// `self.reply`; state is changed unless the outcome says otherwise.
    fn perform(&mut self, parcel: &[u8], replaying: bool) -> (Outcome, String) {
        let seed = mix(mix(u64::from(self.setup.id.0) ^ 0xAC) ^ self.position.0);
        self.run.begin(self.now, seed, replaying);
        self.reply.clear();
        self.inner_refusals.clear();
        self.touched.clear();
        let performed = catch_unwind(AssertUnwindSafe(|| self.perform_all(parcel)));
        let result = match performed {
            Ok(outcome) => (outcome, String::new()),
            Err(panic) => {
                for &table in &self.touched {
                    self.tables[table].1.abort_run();
                }
                let text = panic_text(&*panic);
                (Outcome::SetAside, format!("{} panicked: {text}", self.current_actor()))
            }
        };
        for &table in &self.touched {
            self.tables[table].1.commit_run();
        }
        result
    }

    fn current_actor(&self) -> String {
        let (kind, key) = &self.current;
        format!("{} {key}", self.setup.registry.name(*kind).unwrap_or("an actor of an unknown kind"))
    }

    /// Nothing is left of the run but what its asker and its client are told.
    fn set_run_aside(&mut self, parcel: &[u8], evidence: &str, replaying: bool) {
        self.run.begin(self.now, 0, replaying);
        self.inner_refusals.clear();
        self.reply.clear();
        self.reply.extend_from_slice(evidence.as_bytes());
        if let Ok(Parcel { asker: Some(asker), .. }) = Parcel::decode(parcel) {
            self.run.answer(asker, false, &[]);
        }
    }

    fn perform_all(&mut self, parcel: &[u8]) -> Outcome {
        let outcome = match Parcel::decode(parcel) {
            Ok(parcel) => self.perform_one(&parcel, true),
            Err(error) => {
                self.reply.extend_from_slice(error.to_string().as_bytes());
                Outcome::Failed
            }
        };
        // What goes to actors of this partition belongs to the same run, in order.
        let mut at = 0;
        while at < self.run.sends.len() {
            let (to, range) = self.run.sends[at].clone();
            at += 1;
            if to != self.setup.id {
                continue;
            }
            let mut inner = std::mem::take(&mut self.inner_parcel);
            inner.clear();
            inner.extend_from_slice(&self.run.arena[range]);
            if let Ok(parcel) = Parcel::decode(&inner) {
                self.perform_one(&parcel, false);
            }
            self.inner_parcel = inner;
        }
        outcome
    }

    fn perform_one(&mut self, parcel: &Parcel<'_>, outer: bool) -> Outcome {
        self.current.0 = parcel.kind;
        self.current.1.clear();
        self.current.1.push_str(parcel.key);
        let mut reply =
            if outer { std::mem::take(&mut self.reply) } else { std::mem::take(&mut self.inner_reply) };
        reply.clear();
        let outcome = self.call(parcel, &mut reply);
        if let Some(asker) = parcel.asker {
            let value = if outcome == Outcome::Failed { &[][..] } else { &reply[..] };
            self.run.answer(asker, outcome == Outcome::Applied, value);
        } else if outcome != Outcome::Applied {
            let text = if outcome == Outcome::Failed { String::from_utf8_lossy(&reply) } else { "".into() };
            self.inner_refusals.push(format!("{} refused: {text}", self.current_actor()));
        }
        if outer {
            self.reply = reply;
        } else {
            self.inner_reply = reply;
        }
        outcome
    }

    fn call(&mut self, parcel: &Parcel<'_>, reply: &mut Vec<u8>) -> Outcome {
        let Some(index) = self.tables.iter().position(|(tag, _)| *tag == parcel.kind) else {
            reply.extend_from_slice(Turned::NoSuchKind.to_string().as_bytes());
            return Outcome::Failed;
        };
        use crate::actor::{Answer, Signal};
        let taken;
        let what = match parcel.body {
            Body::Message(bytes) => match Encoded::split(bytes) {
                Some(encoded) => Incoming::Message(encoded),
                None => {
                    reply.extend_from_slice(b"a message without codec and schema");
                    return Outcome::Failed;
                }
            },
            Body::Answer { token, applied, value } => {
                let answer = Answer { applied, value: Encoded::split(value) };
                Incoming::Signal(Signal::Answer { token, answer })
            }
            Body::Timer { set, name } => {
                let id = TimerId { kind: parcel.kind, key: parcel.key.to_owned(), name: name.to_owned() };
                if !self.timers.take(&id, set) {
                    return Outcome::Applied; // reset or cancelled before it in the log: void
                }
                Incoming::Signal(Signal::Timer { name })
            }
            Body::Effect { id, outcome, value } => {
                taken = self.effects.take(id);
                let Some(effect) = &taken else { return Outcome::Applied };
                let outcome = match outcome {
                    0 => EffectOutcome::Done(EffectValue(value)),
                    1 => EffectOutcome::Failed(std::str::from_utf8(value).unwrap_or("(not UTF-8)")),
                    _ => EffectOutcome::TimedOut,
                };
                Incoming::Signal(Signal::Effect { token: effect.token, outcome })
            }
        };
        if !self.touched.contains(&index) {
            self.touched.push(index);
        }
        match self.tables[index].1.deliver(parcel.key, what, &mut self.run, reply) {
            Delivered::Applied => Outcome::Applied,
            Delivered::Refused => Outcome::Refused,
            Delivered::Failed(error) => {
                reply.clear();
                reply.extend_from_slice(error.to_string().as_bytes());
                Outcome::Failed
            }
        }
    }

    /// Hash over what a run caused: the answer, frames, timers, effects.
    fn hash_run(&self, outcome: Outcome) -> u64 {
        // The text of a failure names types and quotes codecs: another build may say it differently.
        let reply = if outcome == Outcome::Failed { 0 } else { xxh3(&self.reply) };
        let mut hash = reply ^ mix(outcome as u64);
        for (to, range) in &self.run.sends {
            if *to != self.setup.id {
                hash = mix(hash ^ xxh3(&self.run.arena[range.clone()]) ^ u64::from(to.0));
            }
        }
        for (id, at) in &self.run.timers {
            let at = at.map_or(0, |at| at.0 + 1);
            let whose = xxh3(id.key.as_bytes()) ^ u64::from(id.kind);
            hash = mix(hash ^ whose ^ xxh3(id.name.as_bytes()).rotate_left(7) ^ at);
        }
        for effect in &self.run.effects {
            let whose = xxh3(effect.key.as_bytes()) ^ u64::from(effect.kind);
            hash = mix(hash ^ whose ^ effect.timeout.as_nanos() as u64);
            hash = mix(hash ^ xxh3(&effect.payload) ^ xxh3(effect.name.as_bytes()) ^ effect.token);
        }
        hash
    }

    /// Takes a run's consequences into the partition's tables, live and in replay alike. Gives the
    /// channels it sent on with the numbers they reached.
    fn settle(
        &mut self,
        source: Source,
        parcel: &[u8],
        outcome: Outcome,
        identity: u64,
        evidence: &str,
    ) -> Vec<(PartitionId, Ssn)> {
        let mut channels: Vec<(PartitionId, Ssn)> = Vec::new();
        for (to, range) in self.run.sends.drain(..) {
            if to == self.setup.id {
                continue;
            }
            let parcel = &self.run.arena[range];
            let mut bytes = Vec::with_capacity(parcel.len() + 4);
            put_bytes(&mut bytes, parcel);
            self.inner_reply.clear();
            self.protocol.piggyback(to, &mut self.inner_reply);
            put_bytes(&mut bytes, &self.inner_reply);
            let channel = self.outgoing.entry(to).or_default();
            if channel.kept.is_empty() {
                channel.last_progress = self.now;
            }
            self.unacknowledged_bytes += bytes.len();
            let ssn = channel.push(Frame { position: self.position, bytes: bytes.into() });
            match channels.iter_mut().find(|(id, _)| *id == to) {
                Some((_, reached)) => *reached = ssn,
                None => channels.push((to, ssn)),
            }
        }
        for (id, at) in self.run.timers.drain(..) {
            self.timers.set(id, at);
        }
        if self.live {
            self.ended.extend(self.run.ended.drain(..));
        }
        for (index, request) in self.run.effects.drain(..).enumerate() {
            let id = (self.epoch, self.position, index as u32);
            let effect = Outstanding {
                kind: request.kind,
                key: request.key,
                token: request.token,
                name: request.name,
                payload: request.payload,
                deadline: self.now + request.timeout,
            };
            self.effects.insert(id, effect);
            if self.live {
                self.gate.push_back((self.position, Gated::Effect { id }));
            }
        }
        if let Source::Client { session, seq, acknowledged_below } = source {
            let kept = Kept {
                seq,
                position: self.position,
                outcome: outcome as u8,
                bytes: self.reply.as_slice().into(),
            };
            self.sessions.keep(self.now, session, acknowledged_below, kept);
        }
        if let Source::Frame { from, ssn } = source {
            let channel = self.incoming.entry(from).or_default();
            channel.received = channel.received.max(ssn);
            channel.arrived = channel.arrived.max(ssn);
        }
        if outcome == Outcome::SetAside {
            // A timer or an effect's end that was set aside is consumed all the same.
            if let Ok(decoded) = Parcel::decode(parcel) {
                match decoded.body {
                    Body::Timer { set, name } => {
                        let (kind, key) = (decoded.kind, decoded.key.to_owned());
                        self.timers.take(&TimerId { kind, key, name: name.to_owned() }, set);
                    }
                    Body::Effect { id, .. } => drop(self.effects.take(id)),
                    Body::Message(_) | Body::Answer { .. } => {}
                }
            }
            self.set_aside.push(SetAside {
                position: self.position,
                identity,
                evidence: evidence.to_owned(),
                parcel: parcel.to_vec(),
            });
        }
        if !self.marks.is_empty() {
            self.marks.remove(&identity);
        }
        channels
    }

    fn append(&mut self, kind: u8, out: &mut Outbox, encode: impl FnOnce(&mut Vec<u8>)) {
        self.log_tail = self.log_tail.next();
        let start = out.bytes.len();
        encode(&mut out.bytes);
        let payload = start..out.bytes.len();
        self.checkpoint.bytes += payload.len() as u64;
        self.appended.push_back((self.log_tail, self.position));
        let (position, epoch) = (self.log_tail, self.epoch);
        out.commands.push(Command::Append { kind, position, epoch, payload });
    }

    /// [`Self::append`] of a record without a run: its durability is the host's affair.
    fn append_no_run(&mut self, kind: u8, out: &mut Outbox, encode: impl FnOnce(&mut Vec<u8>)) {
        self.append(kind, out, encode);
        self.appended.pop_back();
    }

    // ---------------------------------------------------------------- careful mode

    fn append_mark(&mut self, identity: u64, mark: Mark, out: &mut Outbox) {
        self.marks.insert(identity, mark);
        self.position = self.position.next();
        let count = mark.ends << 1 | u32::from(mark.pending);
        self.append(kind::MARK, out, |bytes| {
            bytes.extend_from_slice(&record::encode_mark(identity, count));
        });
    }

    /// How often this input was running when its worker ended.
    fn ends(&self, identity: u64) -> u32 {
        self.marks.get(&identity).map_or(0, |mark| mark.ends)
    }

    /// Writes the mark of the next careful delivery, if none is on its way.
    fn mark_next(&mut self, out: &mut Outbox) {
        let Some(careful) = &mut self.careful else { return };
        if careful.marked.is_some() {
            return;
        }
        // A repetition never runs; its mark would never get a verdict.
        while careful.queue.front().is_some_and(|next| is_repetition(&self.sessions, next)) {
            careful.queue.pop_front();
        }
        let Some(next) = careful.queue.front() else { return };
        let identity = next.source.identity(&next.parcel);
        let ends = self.ends(identity);
        self.append_mark(identity, Mark { ends, pending: ends < ENDS_TO_SET_ASIDE }, out);
        let mark = self.log_tail;
        if let Some(careful) = &mut self.careful {
            careful.marked = Some(mark);
        }
    }

    fn run_marked(&mut self, out: &mut Outbox) {
        let Some(careful) = &mut self.careful else { return };
        if self.paused || self.stopped || careful.marked.is_none_or(|mark| mark > self.durable) {
            return;
        }
        careful.marked = None;
        careful.remaining = careful.remaining.saturating_sub(1);
        let done = careful.remaining == 0;
        let Some(next) = careful.queue.pop_front() else { return };
        self.deliver(next.source, &next.parcel, &next.piggyback, out);
        if done {
            let rest = self.careful.take().map(|careful| careful.queue).unwrap_or_default();
            self.arrive_again(rest, out);
        } else {
            self.mark_next(out);
        }
    }

    /// What waited goes where it would go if it came now. A client may have repeated its input
    /// meanwhile: one of them runs.
    fn arrive_again(&mut self, waited: VecDeque<Waiting>, out: &mut Outbox) {
        for waiting in waited {
            if !is_repetition(&self.sessions, &waiting) {
                self.arrive(waiting.source, &waiting.parcel, &waiting.piggyback, waiting.epoch, out);
            }
        }
    }

    // ---------------------------------------------------------------- the protocol

    fn tell(&mut self, event: ProtocolEvent<'_>, out: &mut Outbox) {
        let mut commands = std::mem::take(&mut self.protocol_commands);
        self.protocol.handle(event, &mut commands);
        for command in commands.drain(..) {
            self.obey(command, out);
        }
        self.protocol_commands = commands;
    }

    fn obey(&mut self, command: ProtocolCommand, out: &mut Outbox) {
        match command {
            ProtocolCommand::Release { frames, outputs, receipts } => {
                self.horizons.frames = self.horizons.frames.max(frames);
                self.horizons.outputs = self.horizons.outputs.max(outputs);
                self.horizons.receipts = self.horizons.receipts.max(receipts);
            }
            ProtocolCommand::TakeCheckpoint => self.take_checkpoint(out),
            ProtocolCommand::Unhold => {
                for (_, channel) in std::mem::take(&mut self.holding) {
                    for waiting in channel {
                        self.deliver(waiting.source, &waiting.parcel, &waiting.piggyback, out);
                    }
                }
            }
            ProtocolCommand::Pause => self.paused = true,
            ProtocolCommand::Resume => {
                self.paused = false;
                let held = std::mem::take(&mut self.held);
                self.arrive_again(held, out);
                self.run_marked(out);
            }
            ProtocolCommand::Control { to, bytes } => {
                let bytes = out.put(&bytes);
                out.commands.push(Command::Control { to, bytes });
            }
            ProtocolCommand::Persist { token, bytes } => {
                self.position = self.position.next();
                self.append(kind::PROTOCOL, out, |out| out.extend_from_slice(&bytes));
                self.persisting.push_back((self.log_tail, token));
            }
            ProtocolCommand::RollBack { version, epoch } => {
                out.commands.push(Command::Restore { version, epoch });
            }
            ProtocolCommand::Forget { version } => out.commands.push(Command::Forget { version }),
            ProtocolCommand::SetTimer { at } => self.protocol_timer = at,
            // `Log` and `Hold` are answers to one event each and are taken where it is told.
            _ => {}
        }
    }

    /// Lets everything out that the horizons allow.
    fn flush(&mut self, out: &mut Outbox) {
        if self.stopped {
            return;
        }
        while let Some((position, _)) = self.gate.front()
            && *position <= self.horizons.outputs
        {
            let Some((_, gated)) = self.gate.pop_front() else { break };
            self.let_out(gated, out);
        }
        while let Some(&(position, from, ssn)) = self.receipts.front()
            && position <= self.horizons.receipts
        {
            self.receipts.pop_front();
            let channel = self.incoming.entry(from).or_default();
            channel.stable = channel.stable.max(ssn);
        }
        let (epoch, pressure) = (self.epoch, self.pressure_now());
        if pressure != self.pressure || self.repeat_pressure <= self.now {
            self.pressure = pressure;
            let again = self.now + self.setup.limits.retransmit_after / 2;
            self.repeat_pressure = if pressure > 0 { again } else { Time::NEVER };
            self.incoming.values_mut().for_each(|channel| channel.repeat_receipt = true);
        }
        for (&from, channel) in &mut self.incoming {
            if channel.stable > channel.receipted || (channel.repeat_receipt && channel.stable > Ssn(0)) {
                channel.receipted = channel.stable;
                channel.repeat_receipt = false;
                let receipt = Receipt { epoch, through: channel.stable, pressure };
                out.commands.push(Command::Receipt { to: from, receipt });
            }
        }
        /// Frames travel in batches of about this many bytes.
        const BATCH: usize = 256 << 10;
        let horizon = self.horizons.frames;
        for (&to, channel) in &mut self.outgoing {
            while channel.next(horizon).is_some() {
                let first = channel.transmitted.next();
                let (start, mut count) = (out.bytes.len(), 0);
                while let Some(frame) = channel.next(horizon)
                    && out.bytes.len() - start < BATCH
                {
                    out.bytes.extend_from_slice(&frame.bytes);
                    count += 1;
                    channel.transmitted = channel.transmitted.next();
                }
                let frames = start..out.bytes.len();
                out.commands.push(Command::Transmit { to, epoch, first, count, frames });
            }
        }
    }

    fn let_out(&mut self, gated: Gated, out: &mut Outbox) {
        match gated {
            Gated::Reply { session, seq } => {
                // Gone when the client acknowledged it meanwhile, over another connection.
                let Some(kept) = self.sessions.kept(session, seq) else { return };
                let outcome = Outcome::from_u8(kept.outcome).unwrap_or(Outcome::Failed);
                let start = out.bytes.len();
                out.bytes.extend_from_slice(&kept.bytes);
                let bytes = start..out.bytes.len();
                out.commands.push(Command::Reply { session, seq, outcome, bytes });
            }
            Gated::Answer { session, seq, outcome, bytes } => {
                let bytes = out.put(&bytes);
                out.commands.push(Command::Reply { session, seq, outcome, bytes });
            }
            Gated::Effect { id } => {
                let Some(effect) = self.effects.get(id) else { return };
                let (name, payload) = (out.put(effect.name.as_bytes()), out.put(&effect.payload));
                let timeout = effect.deadline.since(self.now);
                let (epoch, position, index) = id;
                let (lineage, log) = (self.setup.lineage, LogId::from(self.setup.id));
                let key = EffectKey { lineage, epoch, log, position, index };
                out.commands.push(Command::Perform { key, name, payload, timeout });
            }
        }
    }

    // ---------------------------------------------------------------- checkpoints

    fn take_checkpoint(&mut self, out: &mut Outbox) {
        if self.checkpoint.writing.is_some() {
            return; // one at a time; the next run asks again
        }
        // A full image is worth its bytes when it is no larger than the log it lets go: the log is
        // cut only when two chains without a common part exist.
        let small = self.setup.limits.small_image_bytes;
        let affordable = self.checkpoint.full_bytes <= self.checkpoint.bytes.max(small);
        let full = self.checkpoint.needs_full
            || affordable
            || self.checkpoint.increments >= self.setup.limits.chain_length;
        let version = self.checkpoint.last.next();
        self.checkpoint.last = version;
        self.checkpoint.writing = Some(version);
        self.checkpoint.runs_cut = std::mem::take(&mut self.checkpoint.runs);
        self.checkpoint.bytes = 0;
        self.checkpoint.written = 0;
        self.checkpoint.large = Large::default();
        if full {
            self.checkpoint.base = None;
        }
        let start = out.bytes.len();
        self.save_header(&mut out.bytes);
        let header = start..out.bytes.len();
        let frames = self.outgoing.iter().map(|(&to, channel)| (to, &channel.kept));
        self.checkpoint.frozen = Some(Frozen::new(frames, &self.sessions, &self.timers, &self.effects));
        for (_, table) in &mut self.tables {
            table.cut(full);
        }
        let (position, epoch) = (self.log_tail, self.epoch);
        out.commands.push(Command::BeginCheckpoint { version, position, epoch, full, header });
        let channels = self.channels();
        let position = self.position;
        self.tell(ProtocolEvent::CheckpointTaken { version, position, channels: &channels }, out);
    }

    /// The version the checkpoint being written builds on; `None` for a full image.
    #[must_use]
    pub fn checkpoint_base(&self) -> Option<Version> {
        self.checkpoint.base
    }

    fn save_header(&self, out: &mut Vec<u8>) {
        out.push(HEADER_FORMAT);
        put_varint(out, self.position.0);
        put_varint(out, self.log_tail.0);
        put_varint(out, u64::from(self.epoch.0));
        put_varint(out, self.now.0);
        put_varint(out, self.checkpoint.base.map_or(0, |_| u64::from(self.checkpoint.increments) + 1));
        put_varint(out, self.outgoing.len() as u64);
        for (to, channel) in &self.outgoing {
            put_varint(out, u64::from(to.0));
            channel.save(out);
        }
        put_varint(out, self.incoming.len() as u64);
        for (from, channel) in &self.incoming {
            put_varint(out, u64::from(from.0));
            put_varint(out, channel.received.0);
        }
        put_varint(out, self.sessions.forgotten_at().0);
        put_varint(out, self.timers.last_set());
        put_varint(out, self.effects.len() as u64);
        put_varint(out, self.marks.len() as u64);
        for (identity, mark) in &self.marks {
            out.extend_from_slice(&identity.to_le_bytes());
            put_varint(out, u64::from(mark.ends << 1 | u32::from(mark.pending)));
        }
        put_varint(out, self.set_aside.len() as u64);
        self.set_aside.iter().for_each(|entry| entry.save(out));
        let mut protocol = Vec::new();
        self.protocol.save(&mut protocol);
        put_bytes(out, &protocol);
    }

    /// Appends content of the checkpoint being written until `out` is `limit` bytes long; false when
    /// all of it has been written.
    ///
    /// # Errors
    /// When an actor's state cannot be encoded; the checkpoint must be given up
    /// ([`Partition::checkpoint_failed`]).
    pub fn write_snapshot(
        &mut self,
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Result<bool, crate::codec::CodecError> {
        let before = out.len();
        let mut more = false;
        for (_, table) in &mut self.tables {
            if table.write(out, limit, &mut self.checkpoint.large)? {
                more = true;
                break;
            }
        }
        if !more && let Some(frozen) = &mut self.checkpoint.frozen {
            more = frozen.write(out, limit);
        }
        self.checkpoint.written += (out.len() - before) as u64;
        Ok(more)
    }

    /// The checkpoint being written is durable and verified.
    pub fn checkpoint_durable(&mut self, now: Time, version: Version, out: &mut Outbox) {
        self.advance(now);
        if self.checkpoint.writing != Some(version) {
            return;
        }
        self.checkpoint.writing = None;
        self.checkpoint.frozen = None;
        if self.checkpoint.base.is_none() {
            self.checkpoint.increments = 0;
            self.checkpoint.full_bytes = self.checkpoint.written;
        } else {
            self.checkpoint.increments += 1;
        }
        self.checkpoint.base = Some(version);
        self.checkpoint.needs_full = false;
        let Large { count, bytes, actor } = std::mem::take(&mut self.checkpoint.large);
        if count > 0 {
            out.commands.push(Command::Notice(Notice::ActorTooLarge { actor, bytes, count }));
        }
        for (_, table) in &mut self.tables {
            table.end_cut(true);
        }
        self.tell(ProtocolEvent::CheckpointDurable { version }, out);
        self.flush(out);
    }

    /// The checkpoint being written was given up; the next one is full.
    pub fn checkpoint_failed(&mut self, detail: String, out: &mut Outbox) {
        self.checkpoint.writing = None;
        self.checkpoint.frozen = None;
        // They are in no checkpoint after all: whoever asks must hear that one is due.
        self.checkpoint.runs += std::mem::take(&mut self.checkpoint.runs_cut);
        self.checkpoint.needs_full = true;
        for (_, table) in &mut self.tables {
            table.end_cut(false);
        }
        out.commands.push(Command::Notice(Notice::CheckpointFailed { detail }));
    }

    /// True while a checkpoint is being written.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.checkpoint.writing.is_some()
    }

    /// Runs since the last cut: what an orderly stop has to checkpoint.
    #[must_use]
    pub fn runs_since_cut(&self) -> u64 {
        self.checkpoint.runs
    }

    /// Drops what was set aside by the run at `position` (by an administrator), and writes that down:
    /// it stays dropped once the record is durable. False when there is none.
    pub fn drop_set_aside(&mut self, position: Position, out: &mut Outbox) -> bool {
        if self.stopped || !self.live {
            return false;
        }
        let before = self.set_aside.len();
        self.set_aside.retain(|entry| entry.position != position);
        let dropped = before != self.set_aside.len();
        if dropped {
            let payload = record::encode_drop(position);
            self.append_no_run(kind::DROP, out, |bytes| bytes.extend_from_slice(&payload));
        }
        dropped
    }
}

/// True when this client's input has run, or will never run.
fn is_repetition(sessions: &Sessions, waiting: &Waiting) -> bool {
    match waiting.source {
        Source::Client { session, seq, .. } => sessions.look_up(session, seq) != Known::New,
        _ => false,
    }
}

fn verdict_of(outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::Applied => Verdict::Applied,
        Outcome::Refused | Outcome::Failed => Verdict::Refused,
        Outcome::SetAside => Verdict::SetAside,
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".into())
}
