//! A unit: one journal directory with its partitions, their commits and their checkpoints.
//!
//! Decides when a commit is sealed, which partitions a durable commit concerns, when a checkpoint
//! takes its next chunk, and when a log may be cut. It is the one piece of glue between engine and
//! store; threads, workers and the simulator all drive this same code.
//!
//! Never touches the world: bytes go through the store's `Disk`, everything else through
//! [`Outside`]. Never starts a thread or asks for the time.
//!
//! Invariants:
//! - one commit is in flight; whatever is appended meanwhile is the next one (group commit);
//! - a partition hears of durability only for records it appended before the commit was sealed;
//! - the manifest of a checkpoint at r is written only once the log is durable through r;
//! - frames between partitions of one unit pass the same gate as all others.

use crate::command::{Command, Notice, Outbox, Outcome, Receipt, Turned};
use crate::effect::EffectKey;
use crate::events::Events;
use crate::map::Map;
use crate::partition::{Ending, Limits, Partition, ReplayError, Setup, Witness};
use crate::registry::Registry;
use rallypoint_base::id::{
    CommitSeq, DirectoryId, Epoch, Generation, InputSeq, LogId, PartitionId, Position, SessionId, Ssn,
    Version,
};
use rallypoint_base::time::Time;
use rallypoint_base::wire::Malformed;
use rallypoint_rollback::protocol::{Peer, Protocol};
use rallypoint_store::checkpoint::{
    Begin, CHUNK_BYTES, CheckpointEvent, CheckpointStore, Finding as CheckpointFinding,
    Identity as CheckpointIdentity, RESTORE_ATTEMPTS, ScanMode, ScrubCursor,
};
use rallypoint_store::copies::Owner;
use rallypoint_store::disk::Disk;
use rallypoint_store::error::StoreError;
use rallypoint_store::event_log::{Event, EventKind};
use rallypoint_store::record::Record;
use rallypoint_store::recovery::{Finding, RecoverError, RecoveryReport, affected_logs};
use rallypoint_store::resume::ResumePoint;
use rallypoint_store::scrub::ScrubStep;
use rallypoint_store::store::{Identity, Mounted, OpenOptions, Options, Store, StoreEvent};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

mod archive;

pub use archive::KEPT_HASHES;

/// Where everything that leaves a unit goes. Called only with what may leave.
pub trait Outside {
    /// An answer to a client.
    fn reply(&mut self, session: SessionId, seq: InputSeq, outcome: Outcome, bytes: &[u8]);
    /// An input was turned away at the door.
    fn turn(&mut self, session: SessionId, seq: InputSeq, why: Turned);
    /// Frames for a partition of another unit.
    fn transmit(
        &mut self,
        from: PartitionId,
        to: PartitionId,
        epoch: Epoch,
        first: Ssn,
        count: u32,
        frames: &[u8],
    );
    /// A receipt for a partition of another unit.
    fn receipt(&mut self, from: PartitionId, to: PartitionId, receipt: Receipt);
    /// An effect to perform; its end comes back through [`Unit::effect`].
    fn perform(&mut self, from: PartitionId, key: EffectKey, name: &str, payload: &[u8], timeout: Duration);
    /// A control message of the protocol, to a partition of another unit or the coordinator.
    fn control(&mut self, from: PartitionId, to: Peer, bytes: &[u8]);
    /// Something a person may want to know.
    fn notice(&mut self, notice: UnitNotice);
}

/// Something a person may want to know of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnitNotice {
    /// Of one partition.
    Partition(PartitionId, Notice),
    /// A copy of the store was dropped; it is not written again before `mend`.
    CopyLost {
        /// Which, 0 or 1.
        copy: usize,
        /// Why.
        detail: String,
    },
    /// Space runs short, or is back.
    Space(String),
    /// The store failed: nothing is acknowledged any more.
    StoreFailed(String),
    /// A checkpoint is durable and verified.
    CheckpointWritten {
        /// Of which partition.
        partition: PartitionId,
        /// Which version.
        version: Version,
    },
    /// A chunk of a checkpoint is bad on every copy: its version is condemned.
    CheckpointDamage(String),
    /// Bytes were rewritten from a proven good copy.
    Repaired(String),
    /// Bytes are bad on every copy. What they hold is still in memory: a checkpoint is being taken.
    Damaged(String),
    /// Everything was compared once ([`Unit::scrub`]).
    Scrubbed {
        /// Blocks of the journal.
        blocks: u64,
        /// Chunks of checkpoints.
        chunks: u64,
        /// How many of them were rewritten on a copy.
        repaired: u64,
        /// How many are bad on every copy.
        bad: u64,
        /// Somebody asked for this pass.
        asked: bool,
    },
    /// A version was given up after failed restores, or could not be restored this time.
    RestoreFailed {
        /// Of which partition.
        partition: PartitionId,
        /// Which version.
        version: Version,
        /// Why.
        detail: String,
    },
}

/// Makes the protocol machine of a partition.
pub type ProtocolFactory = Arc<dyn Fn(PartitionId) -> Box<dyn Protocol> + Send + Sync>;
/// Makes the witness of a partition.
pub type WitnessFactory = Arc<dyn Fn(PartitionId) -> Box<dyn Witness> + Send + Sync>;

/// What the partitions of a unit consist of.
#[derive(Clone)]
pub struct Application {
    /// The actor kinds.
    pub registry: Arc<Registry>,
    /// The rollback protocol of each partition.
    pub protocol: ProtocolFactory,
    /// Limits.
    pub limits: Limits,
    /// The program's name and version, for people who list checkpoints.
    pub program: String,
}

/// Why a unit could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The checkpoints cannot be listed.
    #[error("the checkpoints cannot be listed: {0}")]
    Checkpoints(String),
    /// The map in the superblock is not one.
    #[error("the map in the superblock is damaged or of a newer release: {0}")]
    Map(Malformed),
    /// A partition cannot be restored or replayed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// No checkpoint can be restored, and the log does not reach back far enough to do without.
    #[error("{partition}: no checkpoint can be restored ({detail}) and the log begins after position {from}")]
    NoCheckpoint {
        /// Which partition.
        partition: PartitionId,
        /// What was tried.
        detail: String,
        /// Where the log begins.
        from: Position,
    },
}

/// What was found at opening.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /// Of the journal.
    pub journal: RecoveryReport,
    /// Of the checkpoints.
    pub checkpoints: Vec<CheckpointFinding>,
    /// Versions that could not be restored.
    pub failed_restores: Vec<(PartitionId, Version, String)>,
    /// Those of them that will not be tried again.
    pub quarantined: Vec<(PartitionId, Version)>,
    /// Records replayed.
    pub replayed: u64,
    /// Partitions that stopped because replay diverged or could not go on; the others serve.
    pub stopped: Vec<ReplayError>,
}

/// What lies behind a checkpoint: where in the journal everything begins that its partition appended
/// later, and which logs of the unit had no record yet. It stands at the end of the partition's own
/// header, so that whoever reads that one need not know of it.
struct Behind {
    point: ResumePoint,
    silent: Vec<LogId>,
}

impl Behind {
    /// The silent logs, how many they are, and the point: the length is told by what comes last.
    fn put_after(&self, header: &mut Vec<u8>) {
        for log in &self.silent {
            header.extend_from_slice(&log.0.to_le_bytes());
        }
        header.extend_from_slice(&(self.silent.len() as u16).to_le_bytes());
        header.extend_from_slice(&self.point.encode());
    }

    /// Gives the partition's header back too.
    fn split_off(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let short = || Malformed { field: "what lies behind the checkpoint", offset: bytes.len() };
        let (rest, point) = bytes.split_last_chunk::<{ ResumePoint::BYTES }>().ok_or_else(short)?;
        let (rest, count) = rest.split_last_chunk::<2>().ok_or_else(short)?;
        let len = 2 * usize::from(u16::from_le_bytes(*count));
        let (header, logs) = rest.split_at(rest.len().checked_sub(len).ok_or_else(short)?);
        let silent = logs.chunks_exact(2).map(|log| LogId(u16::from_le_bytes([log[0], log[1]]))).collect();
        Ok((Self { point: ResumePoint::decode(point)?, silent }, header))
    }
}

/// Which commit of its journal a checkpoint proves to have been due when it was completed, as its header
/// (with what stands behind it) says.
///
/// # Errors
/// [`Malformed`] when nothing stands behind it.
pub fn proven_commit(header: &[u8]) -> Result<CommitSeq, Malformed> {
    Behind::split_off(header).map(|(behind, _)| behind.point.commit)
}

/// Makes the header of a checkpoint fit a journal that is written anew from its first commit (a restored
/// one): the place that it remembers is the old journal's.
///
/// # Errors
/// [`Malformed`] when nothing stands behind it.
pub fn move_to_new_journal(header: &mut Vec<u8>) -> Result<(), Malformed> {
    let (behind, own) = Behind::split_off(header)?;
    let point = ResumePoint { commit: CommitSeq(1), generation: Generation(1), number: 0, previous: 0 };
    let len = own.len();
    header.truncate(len);
    Behind { point, ..behind }.put_after(header);
    Ok(())
}

/// Where replay may begin: the lowest point of all restored checkpoints. Nowhere but at the head when
/// a partition has none, unless its log was silent at one of these points and so begins behind it.
fn resume_point(members: &[Member], restored: &[Option<Behind>]) -> Option<ResumePoint> {
    let covered = members.iter().zip(restored).all(|(member, own)| {
        let log = LogId::from(member.partition.id());
        own.is_some() || restored.iter().flatten().any(|behind| behind.silent.contains(&log))
    });
    let points = restored.iter().flatten().map(|behind| behind.point);
    points.min_by_key(|point| point.commit).filter(|_| covered)
}

struct Writing {
    version: Version,
    position: Position,
    header: Vec<u8>,
    carry: Vec<u8>,
    drained: bool,
    finished: bool,
}

struct Member {
    partition: Partition,
    archive: archive::Archive,
    durable: Position,
    /// Ends of the log, by the commit that holds them, oldest first.
    tails: VecDeque<(CommitSeq, Position)>,
    writing: Option<Writing>,
    rollback: Option<(Option<Version>, Position)>,
}

/// One journal directory with its partitions. See the module.
pub struct Unit<D: Disk> {
    store: Store<D>,
    checkpoints: CheckpointStore,
    members: Vec<Member>,
    application: Application,
    map: Arc<Map>,
    outbox: Outbox,
    /// Frames and receipts between partitions of this unit, in order.
    inner: VecDeque<Inner>,
    failed: Option<String>,
    collect_due: bool,
    /// Whose turn it is to write the next chunk of a checkpoint.
    feed_from: usize,
    /// When idle sessions are looked for next.
    next_expiry: Time,
    events: Events,
    scrub: Scrub,
}

/// How far a pass over all blocks and chunks is.
#[derive(Debug, Default)]
struct Scrub {
    /// A step over the journal is under way.
    waiting: bool,
    /// The journal is done, the checkpoints are not.
    at_checkpoints: bool,
    cursor: ScrubCursor,
    blocks: u64,
    chunks: u64,
    repaired: u64,
    bad: u64,
    /// Somebody asked for this pass.
    asked: bool,
    /// Somebody asks for a pass after this one.
    wanted: bool,
}

enum Inner {
    Frames { from: PartitionId, to: PartitionId, epoch: Epoch, first: Ssn, count: u32, frames: Vec<u8> },
    Receipt { from: PartitionId, to: PartitionId, receipt: Receipt },
    Control { from: PartitionId, to: PartitionId, bytes: Vec<u8> },
}

/// How often sessions that were idle for too long are looked for.
const EXPIRY: Duration = Duration::from_secs(3600);

/// Commits are sealed at the latest when this many bytes wait; above it the host feeds no inputs.
const PENDING_BYTES: usize = 1 << 20;

impl<D: Disk> Unit<D> {
    /// Creates the store of one directory and opens it.
    ///
    /// # Errors
    /// [`OpenError::Store`] when a directory is not empty or a disk fails.
    pub fn create(
        disks: Vec<D>,
        identity: Identity,
        options: Options,
        map: Arc<Map>,
        application: Application,
        witness: &WitnessFactory,
        now: Time,
        outside: &mut dyn Outside,
    ) -> Result<Self, OpenError> {
        let checkpoints =
            CheckpointStore::empty(CheckpointIdentity { store: identity.store, lineage: identity.lineage });
        let directory = identity.directory;
        let store = Store::create(disks, identity, options)?;
        let members = Self::empty_members(&store.identity().clone(), directory, &map, &application, witness);
        let mut unit = Self::assemble(store, checkpoints, members, application, map);
        unit.go_live(now, &|_| Ending::default(), outside);
        Ok(unit)
    }

    /// Opens the store of one directory: newest usable checkpoints, then the log behind them.
    /// `ending` says how the last holder of each partition ended.
    ///
    /// # Errors
    /// [`OpenError`]. A partition whose replay diverges is no error: it is stopped and reported.
    pub fn open(
        disks: Vec<D>,
        options: OpenOptions,
        application: Application,
        witness: &WitnessFactory,
        ending: &dyn Fn(PartitionId) -> Ending,
        now: Time,
        outside: &mut dyn Outside,
    ) -> Result<(Self, OpenReport), OpenError> {
        let mut mounted = Store::mount(disks, options)?;
        let identity = mounted.identity().clone();
        let map = Arc::new(Map::decode(&identity.meta).map_err(OpenError::Map)?);
        let mut report = OpenReport::default();
        let checkpoint_identity = CheckpointIdentity { store: identity.store, lineage: identity.lineage };
        let (mut checkpoints, findings) =
            CheckpointStore::scan(mounted.copies(), checkpoint_identity, ScanMode::Repair)
                .map_err(|error| OpenError::Checkpoints(error.to_string()))?;
        report.checkpoints = findings;
        let mut members = Self::empty_members(&identity, identity.directory, &map, &application, witness);
        let (mut restored, mut stopped) = (Vec::new(), Vec::new());
        for member in &mut members {
            let restoring = ending(member.partition.id()).restoring;
            let (behind, error) = Self::restore(
                &mut mounted,
                &mut checkpoints,
                member,
                &identity,
                &map,
                &application,
                witness,
                restoring,
                &mut report,
            )?;
            restored.push(behind);
            stopped.push(error);
        }
        let resume = resume_point(&members, &restored);
        let known: Vec<_> = members
            .iter()
            .zip(&restored)
            .filter(|(_, restored)| restored.is_some())
            .map(|(member, _)| (LogId::from(member.partition.id()), member.partition.log_tail()))
            .collect();
        let mut replayed = 0;
        let mut sink = |record: &Record<'_>| -> Result<(), OpenError> {
            let Some(index) = members.iter().position(|m| LogId::from(m.partition.id()) == record.log) else {
                return Ok(());
            };
            if stopped[index].is_some() {
                return Ok(());
            }
            let partition = &mut members[index].partition;
            // A log that begins after what the checkpoint holds has lost its beginning.
            if record.position > partition.log_tail().next() {
                return Err(OpenError::NoCheckpoint {
                    partition: partition.id(),
                    detail: "what there is ends before the log begins".into(),
                    from: record.position,
                });
            }
            let kind = u8::try_from(record.kind).unwrap_or(u8::MAX);
            match partition.replay(record.position, record.epoch, kind, record.payload) {
                Ok(new) => replayed += u64::from(new),
                Err(error) => stopped[index] = Some(error),
            }
            Ok(())
        };
        let recovered = mounted.recover_from(resume, &known, &mut sink);
        let (store, journal) = recovered.map_err(|error| match error {
            RecoverError::Store(error) => OpenError::Store(error),
            RecoverError::Sink(error) => error,
        })?;
        report.journal = journal;
        report.replayed = replayed;
        for (member, error) in members.iter_mut().zip(stopped) {
            if let Some(error) = error {
                member.partition.stop();
                report.stopped.push(error);
            }
        }
        for member in &mut members {
            let log = LogId::from(member.partition.id());
            if affected_logs(&report.journal.lost).contains(&log) {
                member.partition.stop();
            }
        }
        let mut store = store;
        archive::open_all(store.copies(), &mut checkpoints, &mut members)?;
        let mut unit = Self::assemble(store, checkpoints, members, application, map);
        // Damaged or opened for reading: what is whole can be read, nothing can be written.
        unit.failed = unit.store.refusing().map(ToString::to_string);
        unit.go_live(now, ending, outside);
        Ok((unit, report))
    }

    fn assemble(
        store: Store<D>,
        checkpoints: CheckpointStore,
        members: Vec<Member>,
        application: Application,
        map: Arc<Map>,
    ) -> Self {
        let mut checkpoints = checkpoints;
        for member in &members {
            // The protocol may want to go back to any of them, until it says otherwise.
            checkpoints.keep_from(LogId::from(member.partition.id()), Version(0));
        }
        Self {
            store,
            checkpoints,
            members,
            application,
            map,
            outbox: Outbox::default(),
            inner: VecDeque::new(),
            failed: None,
            collect_due: true,
            feed_from: 0,
            next_expiry: Time::NEVER,
            events: Events::default(),
            scrub: Scrub::default(),
        }
    }

    fn empty_member(
        id: PartitionId,
        identity: &Identity,
        map: &Arc<Map>,
        application: &Application,
        witness: &WitnessFactory,
    ) -> Member {
        let setup = Setup {
            id,
            lineage: identity.lineage,
            map: map.clone(),
            registry: application.registry.clone(),
            limits: application.limits.clone(),
        };
        let partition = Partition::new(setup, (application.protocol)(id), witness(id));
        Member {
            partition,
            archive: archive::Archive::default(),
            durable: Position(0),
            tails: VecDeque::new(),
            writing: None,
            rollback: None,
        }
    }

    fn empty_members(
        identity: &Identity,
        directory: DirectoryId,
        map: &Arc<Map>,
        application: &Application,
        witness: &WitnessFactory,
    ) -> Vec<Member> {
        let ids: Vec<_> = map.partitions_in(directory).collect();
        ids.into_iter().map(|id| Self::empty_member(id, identity, map, application, witness)).collect()
    }

    /// Restores the newest version that can be; each failure is counted durably, and a version
    /// that failed too often is quarantined by the checkpoint store. A failure is a version that
    /// cannot be read, or in whose restore the last holder ended. What this program cannot make out
    /// of sound bytes is no fault of the version: the partition stops, and the right program goes on.
    fn restore(
        mounted: &mut Mounted<D>,
        checkpoints: &mut CheckpointStore,
        member: &mut Member,
        identity: &Identity,
        map: &Arc<Map>,
        application: &Application,
        witness: &WitnessFactory,
        restoring: Option<Version>,
        report: &mut OpenReport,
    ) -> Result<(Option<Behind>, Option<ReplayError>), OpenError> {
        let id = member.partition.id();
        let log = LogId::from(id);
        let mut restored = (None, None);
        let mut failed = |mounted: &mut Mounted<D>, checkpoints: &mut CheckpointStore, version, detail| {
            let count = checkpoints
                .record_failed_restore(mounted.copies(), log, version)
                .map_err(|error| OpenError::Checkpoints(error.to_string()))?;
            report.failed_restores.push((id, version, detail));
            if count == RESTORE_ATTEMPTS {
                report.quarantined.push((id, version));
            }
            Ok::<(), OpenError>(())
        };
        // Whoever is killed again and again for another reason is not to lose the last version over it,
        // nor the last one that the log still reaches back to.
        let reach = checkpoints.chains_cut(log);
        let older = |version: Version| {
            let mut others = checkpoints.versions(log).iter().map(|info| &info.manifest);
            others.any(|other| {
                other.version < version
                    && other.position >= reach
                    && checkpoints.is_usable(log, other.version)
            })
        };
        let known = |version: &Version| checkpoints.version(log, *version).is_some();
        if let Some(version) = restoring.filter(known).filter(|&version| older(version)) {
            let detail = "the last holder ended while it restored this version".to_owned();
            failed(mounted, checkpoints, version, detail)?;
        }
        // Each version is tried once, the newest first.
        let mut below = Version(u64::MAX);
        loop {
            let mut versions = checkpoints.versions(log).iter().rev().map(|info| info.manifest.version);
            let next = versions.find(|&version| version < below && checkpoints.is_usable(log, version));
            let Some(version) = next else { break };
            below = version;
            member.partition.restoring(Some(version));
            let tried = Self::restore_version(mounted.copies(), checkpoints, &mut member.partition, version);
            member.partition.restoring(None);
            match tried {
                Ok((behind, error)) => {
                    restored = (Some(behind), error);
                    let known = checkpoints.version(log, version);
                    if let Some(info) = known.filter(|_| restored.1.is_some()) {
                        member.partition.skip_log(info.manifest.position);
                    }
                    if restored.1.is_none() && known.is_some_and(|info| info.failed_restores > 0) {
                        checkpoints
                            .forgive_restores(mounted.copies(), log, version)
                            .map_err(|error| OpenError::Checkpoints(error.to_string()))?;
                    }
                    break;
                }
                Err(detail) => {
                    failed(mounted, checkpoints, version, detail)?;
                    *member = Self::empty_member(id, identity, map, application, witness);
                }
            }
        }
        // Also those that a crash left unfinished: their names are taken.
        member.partition.set_last_version(checkpoints.highest(log));
        Ok(restored)
    }

    /// Gives also why this program cannot make a partition of the version's bytes, which are sound: a
    /// kind is missing, or a newer release wrote it. An error is a version that cannot be read.
    fn restore_version(
        copies: &mut rallypoint_store::copies::Copies<D>,
        checkpoints: &mut CheckpointStore,
        partition: &mut Partition,
        version: Version,
    ) -> Result<(Behind, Option<ReplayError>), String> {
        let log = LogId::from(partition.id());
        let header = checkpoints.read_header(copies, log, version).map_err(|e| e.to_string())?;
        let (behind, header) = Behind::split_off(&header).map_err(|e| e.to_string())?;
        let chain = checkpoints.chain(log, version).map_err(|e| e.to_string())?;
        if let Err(error) = partition.restore(version, header) {
            return Ok((behind, Some(error)));
        }
        if let Some(full) = chain.first().and_then(|&full| checkpoints.version(log, full)) {
            partition.set_full_bytes(full.manifest.chunks.iter().map(|chunk| u64::from(chunk.len)).sum());
        }
        for link in chain {
            let mut unreadable = partition.begin_content(link == version).err();
            let mut load = |bytes: &[u8]| {
                if unreadable.is_none() {
                    unreadable = partition.load_content(bytes).err();
                }
                if unreadable.is_some() { Err(String::new()) } else { Ok(()) }
            };
            let read = checkpoints.read(copies, log, link, &mut load);
            if unreadable.is_some() {
                return Ok((behind, unreadable));
            }
            read.map_err(|e| e.to_string())?;
        }
        Ok((behind, partition.content_is_whole().err()))
    }

    fn go_live(&mut self, now: Time, ending: &dyn Fn(PartitionId) -> Ending, outside: &mut dyn Outside) {
        self.next_expiry = now + EXPIRY;
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            member.durable = member.partition.log_tail();
            let ending = ending(member.partition.id());
            member.partition.go_live(now, &ending, &mut self.outbox);
            self.obey(index, now, outside);
        }
        self.settle(now, outside);
    }

    // ---------------------------------------------------------------- getters

    /// The map of the store.
    #[must_use]
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// Which directory this is.
    #[must_use]
    pub fn directory(&self) -> DirectoryId {
        self.store.identity().directory
    }

    /// The partitions.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.members.iter().map(|member| &member.partition)
    }

    /// The checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> &CheckpointStore {
        &self.checkpoints
    }

    /// The store, for its figures and its upkeep.
    pub fn store(&mut self) -> &mut Store<D> {
        &mut self.store
    }

    /// Store and checkpoints together, for scrubbing and backup.
    pub fn storage(&mut self) -> (&mut Store<D>, &mut CheckpointStore) {
        (&mut self.store, &mut self.checkpoints)
    }

    /// Why nothing is acknowledged any more, if so.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// True when so much waits for the commit in flight that inputs should wait outside.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.store.pending_bytes() >= PENDING_BYTES && self.store.in_flight().is_some()
    }

    /// True while a commit is in flight.
    #[must_use]
    pub fn is_committing(&self) -> bool {
        self.store.in_flight().is_some()
    }

    /// True when nothing waits anywhere in this unit.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.inner.is_empty()
            && self.store.in_flight().is_none()
            && self.store.pending_bytes() == 0
            && self.members.iter().all(|m| m.partition.is_quiet() && m.writing.is_none())
    }

    /// True when no record and no event waits to be written.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.store.pending_bytes() == 0 && self.events.is_idle()
    }

    /// When [`Unit::tick`] should be called next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Time {
        let partitions = self.members.iter().map(|m| m.partition.next_deadline()).min();
        partitions.unwrap_or(Time::NEVER).min(self.next_expiry)
    }

    /// True while a checkpoint is being written.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.members.iter().any(|member| member.writing.is_some())
    }

    fn index(&self, partition: PartitionId) -> Option<usize> {
        self.members.iter().position(|member| member.partition.id() == partition)
    }

    // ---------------------------------------------------------------- events

    /// A client's input for one of the partitions here.
    pub fn input(
        &mut self,
        now: Time,
        partition: PartitionId,
        session: SessionId,
        seq: InputSeq,
        acknowledged_below: InputSeq,
        read_only: bool,
        parcel: &[u8],
        outside: &mut dyn Outside,
    ) {
        let Some(index) = self.index(partition).filter(|_| self.failed.is_none() || read_only) else {
            return outside.turn(session, seq, Turned::Stopped);
        };
        if self.answer_from_archive(index, now, session, seq, parcel, outside) {
            return;
        }
        let partition = &mut self.members[index].partition;
        partition.handle_input(now, session, seq, acknowledged_below, read_only, parcel, &mut self.outbox);
        self.obey(index, now, outside);
    }

    /// Frames from a partition of another unit.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are no frames; the connection they came over is not to be
    /// trusted.
    pub fn frames(
        &mut self,
        now: Time,
        from: PartitionId,
        to: PartitionId,
        epoch: Epoch,
        first: Ssn,
        count: u32,
        frames: &[u8],
        outside: &mut dyn Outside,
    ) -> Result<(), Malformed> {
        let Some(index) = self.index(to).filter(|_| self.failed.is_none()) else { return Ok(()) };
        self.revive_for_frames(index, count, frames, now, outside);
        let partition = &mut self.members[index].partition;
        let result = partition.handle_frames(now, from, epoch, first, count, frames, &mut self.outbox);
        self.obey(index, now, outside);
        result
    }

    /// A receipt from a partition of another unit.
    pub fn receipt(
        &mut self,
        now: Time,
        from: PartitionId,
        to: PartitionId,
        receipt: Receipt,
        outside: &mut dyn Outside,
    ) {
        self.with(to, now, outside, |partition, out| partition.handle_receipt(now, from, receipt, out));
    }

    /// The way to the unit that holds `peer` is new.
    pub fn connected(&mut self, now: Time, peer: PartitionId, outside: &mut dyn Outside) {
        for index in 0..self.members.len() {
            self.members[index].partition.handle_connected(now, peer, &mut self.outbox);
            self.obey(index, now, outside);
        }
    }

    /// An effect ended: 0 done (with the value), 1 failed (with a text).
    pub fn effect(
        &mut self,
        now: Time,
        partition: PartitionId,
        key: EffectKey,
        outcome: u8,
        value: &[u8],
        outside: &mut dyn Outside,
    ) {
        self.with(partition, now, outside, |p, out| p.handle_effect(now, key, outcome, value, out));
    }

    /// A control message of the protocol for a partition here.
    pub fn control(
        &mut self,
        now: Time,
        from: Peer,
        to: PartitionId,
        bytes: &[u8],
        outside: &mut dyn Outside,
    ) {
        self.with(to, now, outside, |partition, out| partition.handle_control(now, from, bytes, out));
    }

    /// The host gave up on the unit that holds `peer`.
    pub fn peer_failed(&mut self, now: Time, peer: PartitionId, outside: &mut dyn Outside) {
        for index in 0..self.members.len() {
            self.members[index].partition.handle_peer_failed(now, peer, &mut self.outbox);
            self.obey(index, now, outside);
        }
    }

    /// Asks every partition for a checkpoint (`only_if_behind`: those that ran anything since the
    /// last one).
    pub fn request_checkpoints(&mut self, now: Time, only_if_behind: bool, outside: &mut dyn Outside) {
        for index in 0..self.members.len() {
            let partition = &mut self.members[index].partition;
            if !only_if_behind || partition.runs_since_cut() > 0 {
                partition.request_checkpoint(now, &mut self.outbox);
                self.obey(index, now, outside);
            }
        }
    }

    /// Time passed: timers, deadlines, retransmission.
    pub fn tick(&mut self, now: Time, outside: &mut dyn Outside) {
        if self.next_expiry <= now {
            self.next_expiry = now + EXPIRY;
            for index in 0..self.members.len() {
                self.members[index].partition.expire_sessions(now, &mut self.outbox);
                self.obey(index, now, outside);
            }
            self.age_archives(now, outside);
        }
        for index in 0..self.members.len() {
            if self.members[index].partition.next_deadline() <= now {
                self.members[index].partition.handle_time(now, &mut self.outbox);
                self.obey(index, now, outside);
            }
        }
    }

    /// Drops an input that was set aside; durable once [`Unit::is_flushed`]. False when there is none.
    pub fn drop_set_aside(
        &mut self,
        now: Time,
        partition: PartitionId,
        position: Position,
        outside: &mut dyn Outside,
    ) -> bool {
        let Some(index) = self.index(partition).filter(|_| self.failed.is_none()) else { return false };
        let dropped = self.members[index].partition.drop_set_aside(position, &mut self.outbox);
        self.obey(index, now, outside);
        dropped
    }

    fn with(
        &mut self,
        partition: PartitionId,
        now: Time,
        outside: &mut dyn Outside,
        act: impl FnOnce(&mut Partition, &mut Outbox),
    ) {
        if let Some(index) = self.index(partition).filter(|_| self.failed.is_none()) {
            act(&mut self.members[index].partition, &mut self.outbox);
            self.obey(index, now, outside);
        }
    }

    // ---------------------------------------------------------------- the store's side

    /// Goes on: takes completions, tells partitions what is durable, seals the next commit, feeds
    /// checkpoints. True when anything happened. Call it after each batch of events.
    pub fn pump(&mut self, now: Time, outside: &mut dyn Outside) -> bool {
        self.settle(now, outside);
        let mut any = false;
        while let Some(event) = self.store.poll() {
            any = true;
            self.store_event(event, now, outside);
            self.settle(now, outside);
        }
        any |= self.seal();
        any |= self.feed_checkpoints(now, outside);
        any |= self.feed_archives(now, outside);
        self.events.flush(self.store.copies());
        any
    }

    /// Like [`Unit::pump`], but waits for a completion when a commit is in flight; the disk may use
    /// this thread for it.
    pub fn pump_waiting(&mut self, now: &mut dyn FnMut() -> Time, outside: &mut dyn Outside) {
        let at = now();
        self.settle(at, outside);
        self.seal();
        if self.is_checkpointing() {
            // On this thread the commit would keep written chunks from being followed by the next.
            self.store.copies().start();
        }
        if self.store.in_flight().is_some()
            && let Some(event) = self.store.wait()
        {
            let at = now();
            self.store_event(event, at, outside);
            self.settle(at, outside);
        }
        self.pump(at, outside);
    }

    /// Nothing has happened for a while: an empty commit carries the watermark over the last one.
    pub fn idle(&mut self) -> bool {
        self.failed.is_none() && self.store.pending_bytes() == 0 && self.store.commit_idle().is_some()
    }

    fn seal(&mut self) -> bool {
        if self.failed.is_some() || self.store.in_flight().is_some() || self.store.pending_bytes() == 0 {
            return false;
        }
        self.store.commit().is_some()
    }

    fn store_event(&mut self, event: StoreEvent, now: Time, outside: &mut dyn Outside) {
        match event {
            StoreEvent::Durable { commit } => {
                for index in 0..self.members.len() {
                    let member = &mut self.members[index];
                    let before = member.durable;
                    while let Some(&(in_commit, position)) = member.tails.front()
                        && in_commit <= commit
                    {
                        member.durable = position;
                        member.tails.pop_front();
                    }
                    if member.durable > before {
                        member.partition.handle_durable(now, member.durable, &mut self.outbox);
                        self.obey(index, now, outside);
                    }
                    self.finish_rollback(index, now, outside);
                }
            }
            StoreEvent::CopyLost { copy, place, error, .. } => {
                let detail = format!("{place}: {error}");
                self.events.notice(now, UnitNotice::CopyLost { copy, detail }, outside);
                while let Some(event) = self.checkpoints.poll(self.store.copies()) {
                    self.checkpoint_event(event, now, outside);
                }
            }
            StoreEvent::SpaceShort(error) => {
                self.events.notice(now, UnitNotice::Space(error.to_string()), outside);
            }
            StoreEvent::SpaceBack => {
                self.events.notice(now, UnitNotice::Space("there is space again".into()), outside);
            }
            // What runs on would be lost: records are refused from here on.
            StoreEvent::Full(error) | StoreEvent::Failed(error) => {
                self.failed = Some(error.to_string());
                self.events.notice(now, UnitNotice::StoreFailed(error.to_string()), outside);
            }
            StoreEvent::Other(routed) if routed.owner == Owner::Checkpoint => {
                let mut event = self.checkpoints.handle(self.store.copies(), routed);
                while let Some(next) = event {
                    self.checkpoint_event(next, now, outside);
                    event = self.checkpoints.poll(self.store.copies());
                }
            }
            StoreEvent::Other(routed) if routed.owner == Owner::Events => {
                if let Some((copy, error)) = self.events.handle(self.store.copies(), routed) {
                    self.store.drop_copy(copy, error);
                }
            }
            StoreEvent::Scrubbed(step) => self.scrubbed(&step, now, outside),
            _ => {}
        }
    }

    /// Carries out a partition's commands, in order.
    fn obey(&mut self, index: usize, now: Time, outside: &mut dyn Outside) {
        if self.outbox.commands.is_empty() {
            return;
        }
        let mut outbox = std::mem::take(&mut self.outbox);
        let from = self.members[index].partition.id();
        for command in outbox.commands.drain(..) {
            let bytes = &outbox.bytes;
            match command {
                Command::Append { kind, position, epoch, payload } => {
                    let payload = &bytes[payload];
                    let (log, kind) = (LogId::from(from), u16::from(kind));
                    let record = Record { log, position, epoch, kind, schema: 1, payload };
                    if self.failed.is_some() {
                        continue;
                    }
                    match self.store.append(&record) {
                        Ok(commit) => {
                            let tails = &mut self.members[index].tails;
                            match tails.back_mut() {
                                Some((last, at)) if *last == commit => *at = position,
                                _ => tails.push_back((commit, position)),
                            }
                        }
                        Err(error) => {
                            self.failed = Some(error.to_string());
                            self.events.notice(now, UnitNotice::StoreFailed(error.to_string()), outside);
                        }
                    }
                }
                Command::Transmit { to, epoch, first, count, frames } => {
                    if self.index(to).is_some() {
                        let frames = bytes[frames].to_vec();
                        self.inner.push_back(Inner::Frames { from, to, epoch, first, count, frames });
                    } else {
                        outside.transmit(from, to, epoch, first, count, &bytes[frames]);
                    }
                }
                Command::Receipt { to, receipt } => {
                    if self.index(to).is_some() {
                        self.inner.push_back(Inner::Receipt { from, to, receipt });
                    } else {
                        outside.receipt(from, to, receipt);
                    }
                }
                Command::Reply { session, seq, outcome, bytes: span } => {
                    outside.reply(session, seq, outcome, &bytes[span]);
                }
                Command::Turn { session, seq, why } => {
                    if why == Turned::Overloaded {
                        self.events.overloaded(now, from);
                    }
                    outside.turn(session, seq, why);
                }
                Command::Perform { key, name, payload, timeout } => {
                    let name = std::str::from_utf8(&bytes[name]).unwrap_or_default();
                    outside.perform(from, key, name, &bytes[payload], timeout);
                }
                Command::BeginCheckpoint { version, position, epoch, full, header } => {
                    let header = bytes[header].to_vec();
                    self.begin_checkpoint(index, version, position, epoch, full, header, now, outside);
                }
                Command::Restore { version, epoch } => self.roll_back(index, version, epoch, now, outside),
                Command::Forget { version } => {
                    self.checkpoints.keep_from(LogId::from(from), version);
                    self.collect_due = true;
                }
                Command::Control { to: Peer::Partition(to), bytes: span } if self.index(to).is_some() => {
                    self.inner.push_back(Inner::Control { from, to, bytes: bytes[span].to_vec() });
                }
                Command::Control { to, bytes: span } => outside.control(from, to, &bytes[span]),
                Command::Notice(notice) => {
                    self.events.notice(now, UnitNotice::Partition(from, notice), outside);
                }
            }
        }
        // Commands that came up meanwhile (a failed begin, a rollback) are in the new outbox.
        std::mem::swap(&mut self.outbox, &mut outbox);
        self.outbox.bytes.clear();
        if !outbox.commands.is_empty() {
            std::mem::swap(&mut self.outbox, &mut outbox);
            self.obey(index, now, outside);
        }
    }

    /// Delivers what partitions of this unit have for each other.
    fn settle(&mut self, now: Time, outside: &mut dyn Outside) {
        while let Some(inner) = self.inner.pop_front() {
            if self.failed.is_some() {
                continue;
            }
            match inner {
                Inner::Frames { from, to, epoch, first, count, frames } => {
                    // They come from the partition next door: malformed would be a bug of ours.
                    let result = self.frames(now, from, to, epoch, first, count, &frames, outside);
                    debug_assert!(result.is_ok(), "frames of our own are malformed: {result:?}");
                }
                Inner::Receipt { from, to, receipt } => self.receipt(now, from, to, receipt, outside),
                Inner::Control { from, to, bytes } => {
                    self.control(now, Peer::Partition(from), to, &bytes, outside);
                }
            }
        }
    }

    // ---------------------------------------------------------------- checkpoints

    fn begin_checkpoint(
        &mut self,
        index: usize,
        version: Version,
        position: Position,
        epoch: Epoch,
        full: bool,
        mut header: Vec<u8>,
        now: Time,
        outside: &mut dyn Outside,
    ) {
        self.behind().put_after(&mut header);
        let member = &mut self.members[index];
        let base = if full { None } else { member.partition.checkpoint_base() };
        let begin = Begin {
            log: LogId::from(member.partition.id()),
            position,
            epoch,
            base,
            schema: 1,
            created: now,
            program: self.application.program.clone(),
            not_below: version,
        };
        match self.checkpoints.begin(self.store.copies(), begin) {
            Ok(begun) if begun == version => {
                let (carry, drained, finished) = (Vec::new(), false, false);
                member.writing = Some(Writing { version, position, header, carry, drained, finished });
            }
            Ok(begun) => {
                self.checkpoints.abort(self.store.copies(), LogId::from(member.partition.id()));
                let detail = format!("the store called version {version} {begun}");
                self.members[index].partition.set_last_version(begun);
                self.give_up_checkpoint(index, detail, now, outside);
            }
            Err(error) => self.give_up_checkpoint(index, error.to_string(), now, outside),
        }
    }

    /// What a checkpoint that begins now leaves out of the log.
    fn behind(&self) -> Behind {
        let logs = self.members.iter().map(|member| LogId::from(member.partition.id()));
        let silent = logs.filter(|&log| self.store.last_position(log).is_none()).collect();
        Behind { point: self.store.resume_point(), silent }
    }

    fn give_up_checkpoint(&mut self, index: usize, detail: String, now: Time, outside: &mut dyn Outside) {
        self.members[index].writing = None;
        self.members[index].partition.checkpoint_failed(detail, &mut self.outbox);
        let _ = (now, outside); // its commands are carried out by the caller's `obey`
    }

    /// One chunk per call, so that messages are not delayed by more than one; in turns among partitions.
    fn feed_checkpoints(&mut self, now: Time, outside: &mut dyn Outside) -> bool {
        let mut any = false;
        for turn in 0..self.members.len() {
            let index = (self.feed_from + turn) % self.members.len();
            let member = &mut self.members[index];
            let log = LogId::from(member.partition.id());
            let Some(writing) = &mut member.writing else { continue };
            if !any && !writing.drained && self.checkpoints.is_ready(log) {
                any = true;
                self.feed_from = index + 1;
                let mut trouble = None;
                if writing.carry.len() < CHUNK_BYTES {
                    match member.partition.write_snapshot(&mut writing.carry, CHUNK_BYTES) {
                        Ok(more) => writing.drained = !more && writing.carry.len() <= CHUNK_BYTES,
                        Err(error) => trouble = Some(error.to_string()),
                    }
                }
                let len = writing.carry.len().min(CHUNK_BYTES);
                if len > 0 && trouble.is_none() {
                    let chunk = &writing.carry[..len];
                    match self.checkpoints.write_chunk(self.store.copies(), log, chunk) {
                        Ok(()) => drop(writing.carry.drain(..len)),
                        Err(error) => trouble = Some(error.to_string()),
                    }
                }
                if let Some(detail) = trouble {
                    self.checkpoints.abort(self.store.copies(), log);
                    self.give_up_checkpoint(index, detail, now, outside);
                    self.obey(index, now, outside);
                    continue;
                }
            }
            let member = &mut self.members[index];
            let Some(writing) = &mut member.writing else { continue };
            if writing.drained && !writing.finished && member.durable >= writing.position {
                any = true;
                writing.finished = true;
                let header = std::mem::take(&mut writing.header);
                if let Err(error) = self.checkpoints.finish(self.store.copies(), log, &header) {
                    self.checkpoints.abort(self.store.copies(), log);
                    self.give_up_checkpoint(index, error.to_string(), now, outside);
                    self.obey(index, now, outside);
                }
            }
        }
        if self.collect_due && self.failed.is_none() && !self.checkpoints.is_collecting() {
            self.collect_due = false;
            self.checkpoints.collect(self.store.copies());
        }
        any
    }

    /// A partition that hardly runs still holds the journal at its oldest record: it is moved forward
    /// by checkpointing it, not by rewriting its records. One that does not run at all needs a second
    /// full image of the same state, since the log is let go only with two chains that share no part.
    fn move_laggards(&mut self, now: Time, outside: &mut dyn Outside) {
        let bound = self.application.limits.checkpoint_bytes;
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            if member.writing.is_some() {
                continue;
            }
            let log = LogId::from(member.partition.id());
            let newest =
                self.checkpoints.newest(log).and_then(|version| self.checkpoints.version(log, version));
            let newest = newest.map_or(Position(0), |info| info.manifest.position);
            if newest < member.partition.log_tail() {
                if self.store.log_bytes_since(log, newest.next()) > bound {
                    member.partition.request_checkpoint(now, &mut self.outbox);
                    self.obey(index, now, outside);
                }
            } else if self.checkpoints.chains_cut(log) < newest && self.store.log_bytes(log) > bound {
                // (Else a pinned version holds the journal, and no checkpoint lets it go.)
                member.partition.request_full_checkpoint(now, &mut self.outbox);
                self.obey(index, now, outside);
            }
        }
    }

    fn checkpoint_event(&mut self, event: CheckpointEvent, now: Time, outside: &mut dyn Outside) {
        match event {
            CheckpointEvent::Written { log, version } if log.archived().is_some() => {
                self.part_written(log, version);
            }
            CheckpointEvent::Failed { log, version, reason } if log.archived().is_some() => {
                self.part_failed(log, version, reason.to_string(), now, outside);
            }
            CheckpointEvent::Written { log, version } => {
                let Some(index) = self.index(PartitionId(log.0)) else { return };
                self.members[index].writing = None;
                let partition = self.members[index].partition.id();
                self.members[index].partition.checkpoint_durable(now, version, &mut self.outbox);
                self.obey(index, now, outside);
                self.events.notice(now, UnitNotice::CheckpointWritten { partition, version }, outside);
                self.collect_due = true;
                let cut = self.checkpoints.log_cut(log);
                if cut > Position(0) {
                    self.store.cut(log, cut.next());
                }
                self.move_laggards(now, outside);
            }
            CheckpointEvent::Failed { log, version, reason } => {
                let Some(index) = self.index(PartitionId(log.0)) else { return };
                // One that was given up here is told of later, when the next may be under way.
                if self.members[index].writing.as_ref().is_some_and(|writing| writing.version == version) {
                    self.give_up_checkpoint(index, reason.to_string(), now, outside);
                    self.obey(index, now, outside);
                }
                self.collect_due = true;
            }
            CheckpointEvent::CopyFailed { copy, error } => self.store.drop_copy(copy, error),
            CheckpointEvent::Repaired { copy, log, version, chunk } => {
                self.scrub.repaired += 1;
                let what = format!("chunk {chunk} of checkpoint {version} of {log} on copy {copy}");
                self.events.notice(now, UnitNotice::Repaired(what), outside);
            }
            CheckpointEvent::Damaged { log, version, chunk } => {
                self.scrub.bad += 1;
                let what = format!("chunk {chunk} of checkpoint {version} of {log} is bad on every copy");
                self.events.notice(now, UnitNotice::CheckpointDamage(what), outside);
            }
            _ => {}
        }
    }

    // ---------------------------------------------------------------- rollback

    fn roll_back(
        &mut self,
        index: usize,
        version: Option<Version>,
        epoch: Epoch,
        now: Time,
        outside: &mut dyn Outside,
    ) {
        let member = &mut self.members[index];
        let (id, log) = (member.partition.id(), LogId::from(member.partition.id()));
        if let Some(version) = version {
            member.writing = None;
            let undone = self.checkpoints.undo_after(self.store.copies(), log, version);
            let mut trouble = undone.err().map(|error| error.to_string());
            member.partition.begin_rollback();
            if version > Version(0) && trouble.is_none() {
                let (copies, checkpoints) = (self.store.copies(), &mut self.checkpoints);
                trouble = match Self::restore_version(copies, checkpoints, &mut member.partition, version) {
                    Ok((_, error)) => error.map(|error| error.to_string()),
                    Err(why) => Some(why),
                };
            }
            if let Some(detail) = trouble {
                // A partition that cannot go back must not go on.
                member.partition.stop();
                let notice = UnitNotice::RestoreFailed { partition: id, version, detail };
                self.events.notice(now, notice, outside);
                return;
            }
            let back_to = self.checkpoints.version(log, version).map(|info| info.manifest.position);
            self.undo_archive(index, back_to.unwrap_or_default());
            let event = Event::new(now, EventKind::Rollback).with("partition", id);
            self.events.add(event.with("version", version).with("epoch", epoch));
        }
        let member = &mut self.members[index];
        member.partition.append_epoch(epoch, &mut self.outbox);
        member.rollback = Some((version, member.partition.log_tail()));
    }

    fn finish_rollback(&mut self, index: usize, now: Time, outside: &mut dyn Outside) {
        let member = &mut self.members[index];
        if let Some((version, position)) = member.rollback
            && member.durable >= position
        {
            member.rollback = None;
            member.partition.rolled_back(now, version, &mut self.outbox);
            self.obey(index, now, outside);
        }
    }

    // ---------------------------------------------------------------- events and scrubbing

    /// Opens the durable event log and writes down the opening with what it found. (The host asks for
    /// it once the unit is open: the simulator does without.)
    pub fn open_event_log(&mut self, now: Time, report: &OpenReport, hung: bool) {
        if matches!(self.store.refusing(), Some(StoreError::ReadOnly)) {
            return;
        }
        let identity = self.checkpoints.identity();
        let history = loop {
            match self.events.open(self.store.copies(), identity) {
                Ok(history) => break history,
                Err((copy, error)) => self.store.drop_copy(copy, error),
            }
        };
        let journal = &report.journal;
        // A log that is not open as it was closed was left by a kill or a power cut.
        let ended = history.events.iter().rev().map(|event| event.kind);
        let ended = ended.into_iter().find(|kind| [EventKind::Opened, EventKind::Closed].contains(kind));
        let event = |kind| Event::new(now, kind);
        if hung {
            self.events.add(event(EventKind::Watchdog).with("why", "the last holder made no progress"));
        }
        if ended == Some(EventKind::Opened) && journal.last_commit > CommitSeq(0) {
            self.events.add(event(EventKind::Restart).with("why", "the last holder ended without closing"));
        }
        self.events.add(
            event(EventKind::Opened)
                .with("program", &self.application.program)
                .with("epoch", self.store.epoch())
                .with("records", journal.records)
                .with("replayed", report.replayed),
        );
        if journal.repaired > 0 || journal.slots_repaired > 0 {
            let event = event(EventKind::Repair).with("what", "the journal, from its other copy");
            self.events
                .add(event.with("blocks", journal.repaired).with("superblock_slots", journal.slots_repaired));
        }
        for finding in &journal.findings {
            let what = format!("{}/{} block {}", finding.directory, finding.file, finding.block);
            self.events.add(event(EventKind::Damage).with("what", what).with("kind", finding.kind.name()));
        }
        if let Some(cut) = journal.cut {
            let cut = event(EventKind::Cut).with("commit", cut.commit).with("bytes", cut.bytes);
            self.events.add(cut.with("note", "never acknowledged, unless the disk lied"));
        }
        for lost in &journal.lost {
            self.events.add(event(EventKind::Damage).with("lost", lost));
        }
        for (copy, error) in &journal.dropped {
            self.events.add(event(EventKind::CopyLost).with("copy", copy).with("why", error));
        }
        for (partition, version, why) in &report.failed_restores {
            let damage = event(EventKind::Damage).with("what", "a checkpoint could not be restored");
            self.events.add(damage.with("partition", partition).with("version", version).with("why", why));
        }
        for (partition, version) in &report.quarantined {
            let quarantine = event(EventKind::Quarantine).with("partition", partition);
            self.events.add(quarantine.with("version", version));
        }
        for stopped in &report.stopped {
            self.events.add(event(EventKind::Divergence).with("detail", stopped));
        }
        self.events.begin();
        self.events.flush(self.store.copies());
    }

    /// Asks for a pass over everything, after the one under way.
    pub fn want_scrub(&mut self) {
        self.scrub.wanted = true;
    }

    /// True while somebody waits for a pass.
    #[must_use]
    pub fn is_scrub_wanted(&self) -> bool {
        self.scrub.wanted || self.scrub.asked
    }

    /// Compares the next `bytes` bytes of the journal, or a chunk of a checkpoint, on all copies, and
    /// repairs what is bad on one. The host decides how often. True when this ended a pass
    /// ([`UnitNotice::Scrubbed`]).
    pub fn scrub(&mut self, bytes: usize, now: Time, outside: &mut dyn Outside) -> bool {
        if self.failed.is_some() || self.scrub.waiting {
            return false;
        }
        if !self.scrub.at_checkpoints {
            if self.scrub.wanted && self.scrub.blocks == 0 {
                self.scrub.wanted = false;
                self.scrub.asked = true;
            }
            self.scrub.waiting = self.store.scrub_step(bytes);
            self.scrub.at_checkpoints = !self.scrub.waiting;
            return false;
        }
        let more = self.checkpoints.scrub(self.store.copies(), &mut self.scrub.cursor);
        self.scrub.chunks += u64::from(more);
        while let Some(event) = self.checkpoints.poll(self.store.copies()) {
            self.checkpoint_event(event, now, outside);
        }
        if more {
            return false;
        }
        let done = std::mem::take(&mut self.scrub);
        self.scrub.wanted = done.wanted;
        let Scrub { blocks, chunks, repaired, bad, asked, .. } = done;
        let notice = UnitNotice::Scrubbed { blocks, chunks, repaired, bad, asked };
        self.events.notice(now, notice, outside);
        self.events.flush(self.store.copies());
        true
    }

    fn scrubbed(&mut self, step: &ScrubStep, now: Time, outside: &mut dyn Outside) {
        self.scrub.waiting = false;
        self.scrub.blocks += step.blocks;
        self.scrub.repaired += step.repaired;
        self.scrub.bad += step.unrepairable.len() as u64;
        self.scrub.at_checkpoints |= step.wrapped;
        let place =
            |at: &Finding| format!("{}/{} block {}: {}", at.directory, at.file, at.block, at.kind.name());
        for finding in &step.findings {
            self.events.notice(now, UnitNotice::Repaired(place(finding)), outside);
        }
        for finding in &step.unrepairable {
            self.events.notice(now, UnitNotice::Damaged(place(finding)), outside);
        }
        if !step.unrepairable.is_empty() {
            // What the bad blocks hold is in the state: a checkpoint lets the journal before it go.
            self.request_checkpoints(now, false, outside);
        }
    }

    // ---------------------------------------------------------------- orderly stop

    /// Marks an orderly stop in every log (after the checkpoints that [`Unit::request_checkpoints`]
    /// asked for are durable). Pump until [`Unit::is_quiet`], then drop the unit.
    pub fn append_stops(&mut self, now: Time, outside: &mut dyn Outside) {
        for index in 0..self.members.len() {
            self.members[index].partition.append_stop(&mut self.outbox);
            self.obey(index, now, outside);
        }
        self.events.add(Event::new(now, EventKind::Closed));
    }

    /// Gives the disks back.
    #[must_use]
    pub fn into_disks(self) -> Vec<D> {
        self.store.into_disks()
    }
}
