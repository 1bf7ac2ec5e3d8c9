//! What a unit does for the archives of its partitions: gathers sagas that have ended into a part,
//! writes it like a checkpoint, lets go of them, answers for them, and deletes what is old enough.
//!
//! Decides when. Never lets go of a saga before the part that holds it is durable on every copy, nor
//! finishes a part before the log is durable through everything that it shows. Never answers that an id
//! is new while a part may hold it. Waits for the disk only to read one saga.
//!
//! ```text
//! idle -> gather, a few at a time -> write a chunk at a time -> (durable) -> let go, a few at a time -> idle
//! ```
//!
//! Where a saga is, at every instant: in memory, or in a part, or in both (then memory counts). A crash
//! before the ARCHIVED record is durable leaves it in both; the part's entry is then an old one.

use super::{Member, OpenError, Outside, Unit, UnitNotice};
use crate::actor::Actor;
use crate::archive::{Part, PartBuilder, PartKind, SagaSummary, deleted, rows, split_body};
use crate::codec::{Codec, Encoded, encode};
use crate::command::{Notice, Outcome};
use crate::parcel::{Body, Parcel, kind_tag};
use crate::partition::Partition;
use crate::saga::{SagaActor, SagaMessage, child_id};
use crate::table::TypedTable;
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{InputSeq, LogId, PartitionId, Position, SessionId, Version};
use rallypoint_base::time::Time;
use rallypoint_base::wire::Reader;
use rallypoint_saga::event::Event;
use rallypoint_saga::machine::Refusal;
use rallypoint_saga::op::What;
use rallypoint_store::checkpoint::{Begin, CHUNK_BYTES, CheckpointStore, ReadError, VersionInfo};
use rallypoint_store::copies::Copies;
use rallypoint_store::disk::Disk;
use std::collections::BTreeSet;
use std::time::Duration;

/// Sagas that are gathered, or let go of, between two looks at what else there is to do.
const AT_ONCE: usize = 128;
/// Bytes of bodies after which a part is full.
const PART_BYTES: usize = 8 << 20;
/// Parts that are deleted together.
const DELETED_AT_ONCE: usize = 64;
/// How long an id of a deleted saga is not used again.
pub const KEPT_HASHES: Duration = Duration::from_secs(30 * 24 * 3600);
/// After a part could not be written.
const PATIENCE: Duration = Duration::from_secs(60);

/// The archive of one partition.
#[derive(Debug, Default)]
pub(super) struct Archive {
    /// The oldest first.
    parts: Vec<Part>,
    stage: Stage,
    /// Ended sagas are put away although they are few.
    due: bool,
    not_before: Time,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Gathering(Box<Gathering>),
    Writing(Box<WritingPart>),
    Removing {
        version: Version,
        sagas: Vec<(String, u32)>,
    },
}

#[derive(Debug, Default)]
struct Gathering {
    builder: PartBuilder,
    /// Id and how many events each had.
    sagas: Vec<(String, u32)>,
    /// One that ended, was restarted and ended again waits twice.
    seen: BTreeSet<String>,
}

#[derive(Debug)]
struct WritingPart {
    part: Part,
    content: Vec<u8>,
    written: usize,
    finished: bool,
    /// The log holds what the part shows up to here.
    position: Position,
    sagas: Vec<(String, u32)>,
}

/// What an archive says of an id.
enum Found {
    Nothing,
    /// Its state, as a checkpoint writes it.
    Saga(Vec<u8>),
    Deleted,
}

impl Archive {
    /// Reads what there is. A part that another one stands for is given up again.
    pub(super) fn open<D: Disk>(
        copies: &mut Copies<D>,
        checkpoints: &mut CheckpointStore,
        partition: PartitionId,
    ) -> Result<Self, OpenError> {
        let log = LogId::archive(partition);
        let versions: Vec<Version> =
            checkpoints.versions(log).iter().map(|info| info.manifest.version).collect();
        let mut archive = Self::default();
        for version in versions {
            let wrong = |why: String| OpenError::Checkpoints(format!("part {version} of {log}: {why}"));
            let header = checkpoints.read_header(copies, log, version).map_err(|e| wrong(e.to_string()))?;
            archive.parts.push(Part::load(version, &header).map_err(|e| wrong(e.to_string()))?);
        }
        let replaced: Vec<Version> = archive.parts.iter().flat_map(|part| part.replaces.clone()).collect();
        archive.parts.retain(|part| !replaced.contains(&part.version));
        replaced.into_iter().for_each(|version| checkpoints.give_up(log, version));
        Ok(archive)
    }

    /// The parts that may hold an id, in the order in which they count.
    fn holders(&self, hash: u64) -> Vec<Version> {
        let of = |kind| {
            let parts = self.parts.iter().rev().filter(move |part| part.kind == kind);
            parts.filter(|part| part.may_hold(hash)).map(|part| part.version)
        };
        of(PartKind::Ended).chain(of(PartKind::Deleted)).collect()
    }

    /// True when it holds this id, or may.
    fn may_hold(&self, id: &str) -> bool {
        let hash = xxh3(id.as_bytes());
        self.parts.iter().any(|part| part.may_hold(hash))
    }
}

impl<D: Disk> Unit<D> {
    // ---------------------------------------------------------------- writing

    /// Goes on with the archives. True when anything happened.
    pub(super) fn feed_archives(&mut self, now: Time, outside: &mut dyn Outside) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let mut any = false;
        for index in 0..self.members.len() {
            any |= self.feed_archive(index, now, outside);
        }
        any
    }

    fn feed_archive(&mut self, index: usize, now: Time, outside: &mut dyn Outside) -> bool {
        let limits = &self.application.limits;
        let Member { partition, archive, durable, .. } = &mut self.members[index];
        match std::mem::take(&mut archive.stage) {
            Stage::Idle => {
                let begin =
                    partition.ended() >= limits.archive_batch || (archive.due && partition.ended() > 0);
                if !begin || now < archive.not_before {
                    return false;
                }
                archive.due = false;
                archive.stage = Stage::Gathering(Box::default());
                true
            }
            Stage::Gathering(mut gathering) => {
                let room = limits.archive_batch.max(1) - gathering.builder.len();
                let Gathering { builder, sagas, seen } = &mut *gathering;
                partition.gather_ended(AT_ONCE.min(room), &mut |id, actor, state| {
                    if seen.insert(id.clone()) {
                        builder.add(&id, actor, state);
                        sagas.push((id, actor.machine().events()));
                    }
                });
                let full = builder.len() >= limits.archive_batch.max(1) || builder.bytes() >= PART_BYTES;
                if !full && partition.ended() > 0 {
                    archive.stage = Stage::Gathering(gathering);
                    return true;
                }
                if builder.len() == 0 {
                    return true; // they were restarted meanwhile
                }
                let (builder, sagas) = (std::mem::take(builder), std::mem::take(sagas));
                let position = partition.log_tail();
                let (part, content) = builder.finish();
                self.begin_part(index, part, content, position, sagas, now, outside);
                true
            }
            Stage::Writing(mut writing) => {
                let log = LogId::archive(partition.id());
                let (mut any, mut trouble) = (false, None);
                if writing.written < writing.content.len() && self.checkpoints.is_ready(log) {
                    any = true;
                    let end = writing.content.len().min(writing.written + CHUNK_BYTES);
                    let chunk = &writing.content[writing.written..end];
                    match self.checkpoints.write_chunk(self.store.copies(), log, chunk) {
                        Ok(()) => writing.written = end,
                        Err(error) => trouble = Some(error.to_string()),
                    }
                }
                let written = writing.written == writing.content.len();
                if written && !writing.finished && *durable >= writing.position {
                    any = true;
                    writing.finished = true;
                    let header = writing.part.save();
                    if let Err(error) = self.checkpoints.finish(self.store.copies(), log, &header) {
                        trouble = Some(error.to_string());
                    }
                }
                archive.stage = Stage::Writing(writing);
                if let Some(detail) = trouble {
                    self.checkpoints.abort(self.store.copies(), log);
                    self.give_up_part(index, detail, now, outside);
                }
                any
            }
            Stage::Removing { version, mut sagas } => {
                if !partition.may_archive() {
                    archive.stage = Stage::Removing { version, sagas };
                    return false;
                }
                let rest = sagas.split_off(sagas.len().min(AT_ONCE));
                partition.archive(version, &sagas, &mut self.outbox);
                if !rest.is_empty() {
                    archive.stage = Stage::Removing { version, sagas: rest };
                }
                self.obey(index, now, outside);
                true
            }
        }
    }

    fn begin_part(
        &mut self,
        index: usize,
        mut part: Part,
        content: Vec<u8>,
        position: Position,
        sagas: Vec<(String, u32)>,
        now: Time,
        outside: &mut dyn Outside,
    ) {
        let member = &mut self.members[index];
        let begin = Begin {
            log: LogId::archive(member.partition.id()),
            position,
            epoch: member.partition.epoch(),
            base: None,
            schema: 1,
            created: now,
            program: self.application.program.clone(),
            not_below: Version(0),
        };
        let begun = self.checkpoints.begin(self.store.copies(), begin);
        let (version, trouble) = match begun {
            Ok(version) => (version, None),
            Err(error) => (Version(0), Some(error.to_string())),
        };
        part.version = version;
        let writing = WritingPart { part, content, written: 0, finished: false, position, sagas };
        self.members[index].archive.stage = Stage::Writing(Box::new(writing));
        if let Some(detail) = trouble {
            self.give_up_part(index, detail, now, outside);
        }
    }

    fn give_up_part(&mut self, index: usize, detail: String, now: Time, outside: &mut dyn Outside) {
        let Member { partition, archive, .. } = &mut self.members[index];
        if let Stage::Writing(writing) = std::mem::take(&mut archive.stage) {
            partition.wait_again(writing.sagas.into_iter().map(|(id, _)| id));
        }
        archive.not_before = now + PATIENCE;
        let detail = format!("a part of the archive: {detail}");
        let notice = UnitNotice::Partition(partition.id(), Notice::CheckpointFailed { detail });
        self.events.notice(now, notice, outside);
    }

    /// A part is durable: it answers for its sagas from here on.
    pub(super) fn part_written(&mut self, log: LogId, version: Version) {
        let Some(index) = log.archived().and_then(|partition| self.index(partition)) else { return };
        let archive = &mut self.members[index].archive;
        match std::mem::take(&mut archive.stage) {
            Stage::Writing(writing) if writing.part.version == version => {
                let WritingPart { part, sagas, .. } = *writing;
                if part.kind == PartKind::Deleted {
                    // There may be more that is old enough.
                    self.next_expiry = Time(0);
                }
                for &replaced in &part.replaces {
                    archive.parts.retain(|part| part.version != replaced);
                    self.checkpoints.give_up(log, replaced);
                    self.collect_due = true;
                }
                archive.parts.push(part);
                if !sagas.is_empty() {
                    archive.stage = Stage::Removing { version, sagas };
                }
            }
            other => archive.stage = other,
        }
    }

    /// The partition goes back to `position` of its log: what is in the making, and parts that show more
    /// than that, are of an undone history.
    pub(super) fn undo_archive(&mut self, index: usize, position: Position) {
        let Member { partition, archive, .. } = &mut self.members[index];
        let log = LogId::archive(partition.id());
        archive.stage = Stage::Idle;
        self.checkpoints.abort(self.store.copies(), log);
        let shows_more = |info: &&VersionInfo| info.manifest.position > position;
        let undone: Vec<Version> = self
            .checkpoints
            .versions(log)
            .iter()
            .filter(shows_more)
            .map(|info| info.manifest.version)
            .collect();
        for version in undone {
            self.members[index].archive.parts.retain(|part| part.version != version);
            self.checkpoints.give_up(log, version);
            self.collect_due = true;
        }
    }

    /// A part does not exist after all.
    pub(super) fn part_failed(
        &mut self,
        log: LogId,
        version: Version,
        detail: String,
        now: Time,
        outside: &mut dyn Outside,
    ) {
        self.collect_due = true;
        let Some(index) = log.archived().and_then(|partition| self.index(partition)) else { return };
        let ours = matches!(&self.members[index].archive.stage,
            Stage::Writing(writing) if writing.part.version == version);
        if ours {
            self.give_up_part(index, detail, now, outside);
        }
    }

    // ---------------------------------------------------------------- age

    /// Looks for what has lain about, or in the archive, for long enough.
    pub(super) fn age_archives(&mut self, now: Time, outside: &mut dyn Outside) {
        let (after, retention) =
            (self.application.limits.archive_after, self.application.limits.saga_retention);
        for index in 0..self.members.len() {
            let Member { partition, archive, .. } = &mut self.members[index];
            archive.due |= partition.ended_since().is_some_and(|ended| ended + after <= now);
            let log = LogId::archive(partition.id());
            let old = |part: &&Part| part.kind == PartKind::Deleted && part.newest_end + KEPT_HASHES <= now;
            for part in archive.parts.iter().filter(old) {
                self.checkpoints.give_up(log, part.version);
                self.collect_due = true;
            }
            archive.parts.retain(|part| !old(&part));
            let Some(retention) = retention else { continue };
            if !matches!(archive.stage, Stage::Idle) || now < archive.not_before {
                continue;
            }
            let old = |part: &&Part| part.kind == PartKind::Ended && part.newest_end + retention <= now;
            let old: Vec<Part> = archive.parts.iter().filter(old).take(DELETED_AT_ONCE).cloned().collect();
            let mut hashes = Vec::new();
            let mut trouble = None;
            for part in &old {
                match self.checkpoints.read_range(self.store.copies(), log, part.version, part.index()) {
                    Ok(bytes) => hashes.extend(part.hashes(&bytes)),
                    Err(error) => trouble = Some(error.to_string()),
                }
            }
            if let Some(detail) = trouble {
                // Without its hashes an id could be used again: what cannot be read stays.
                self.give_up_part(index, detail, now, outside);
            } else if !old.is_empty() {
                let versions = old.iter().map(|part| part.version).collect();
                let (part, content) = deleted(now, versions, hashes);
                let position = self.members[index].durable;
                self.begin_part(index, part, content, position, Vec::new(), now, outside);
            }
        }
    }

    // ---------------------------------------------------------------- reading

    fn look_up(&mut self, index: usize, id: &str) -> Result<Found, String> {
        let hash = xxh3(id.as_bytes());
        let Member { partition, archive, .. } = &self.members[index];
        let log = LogId::archive(partition.id());
        for version in archive.holders(hash) {
            let Some(part) = self.members[index].archive.parts.iter().find(|part| part.version == version)
            else {
                continue;
            };
            let copies = self.store.copies();
            let mut read = |range| {
                self.checkpoints.read_range(copies, log, version, range).map_err(|error| match error {
                    ReadError::Damaged { chunk, .. } => {
                        format!(
                            "its part {version} is bad at chunk {chunk} on every copy; a backup may have it"
                        )
                    }
                    error => error.to_string(),
                })
            };
            for place in part.places(&read(part.index())?, hash) {
                if part.kind == PartKind::Deleted {
                    return Ok(Found::Deleted);
                }
                let body = read(place)?;
                let (of, state) = split_body(&body).map_err(|error| error.to_string())?;
                if of == id {
                    return Ok(Found::Saga(state.to_vec()));
                }
            }
        }
        Ok(Found::Nothing)
    }

    fn decode(state: &[u8]) -> Result<SagaActor, String> {
        let encoded = Encoded::split(state).ok_or("an archived saga without codec")?;
        TypedTable::<SagaActor>::state(encoded).map_err(|error| error.to_string())
    }

    /// A saga that lies in a partition's archive and not in memory.
    ///
    /// # Errors
    /// What could not be read.
    pub fn archived(&mut self, partition: PartitionId, id: &str) -> Result<Option<SagaActor>, String> {
        let Some(index) = self.index(partition) else { return Ok(None) };
        if self.members[index].partition.saga(id).is_some() {
            return Ok(None);
        }
        match self.look_up(index, id)? {
            Found::Saga(state) => Self::decode(&state).map(Some),
            Found::Nothing | Found::Deleted => Ok(None),
        }
    }

    /// The parts of all archives here that hold sagas, the oldest of each partition first.
    pub fn archive_parts(&self) -> impl Iterator<Item = (PartitionId, &Part)> {
        self.members.iter().flat_map(|member| {
            let parts = member.archive.parts.iter().filter(|part| part.kind == PartKind::Ended);
            parts.map(|part| (member.partition.id(), part))
        })
    }

    /// The sagas of one part that no newer part and no memory holds, the newest start first.
    ///
    /// # Errors
    /// What could not be read.
    pub fn archived_rows(
        &mut self,
        partition: PartitionId,
        version: Version,
    ) -> Result<Vec<SagaSummary>, String> {
        let Some(index) = self.index(partition) else { return Ok(Vec::new()) };
        let log = LogId::archive(partition);
        let member = &self.members[index];
        let Some(part) = member.archive.parts.iter().find(|part| part.version == version) else {
            return Ok(Vec::new());
        };
        let directory = part.directory()..u64::MAX;
        let bytes = self.checkpoints.read_range(self.store.copies(), log, version, directory);
        let mut found = rows(&bytes.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        let member = &self.members[index];
        let newer = || {
            let parts = member.archive.parts.iter().filter(|part| part.kind == PartKind::Ended);
            parts.filter(|part| part.version > version)
        };
        found.retain(|row| member.partition.saga(&row.id).is_none());
        // A filter that says *perhaps* is asked again by reading: seldom, and only for lists.
        let doubtful: Vec<String> = found
            .iter()
            .filter(|row| newer().any(|part| part.may_hold(xxh3(row.id.as_bytes()))))
            .map(|row| row.id.clone())
            .collect();
        let newer: Vec<Part> = if doubtful.is_empty() { Vec::new() } else { newer().cloned().collect() };
        for id in doubtful {
            let hash = xxh3(id.as_bytes());
            let mut again = false;
            for part in newer.iter().filter(|part| part.may_hold(hash)) {
                let copies = self.store.copies();
                let index = self.checkpoints.read_range(copies, log, part.version, part.index());
                again |= !part.places(&index.map_err(|e| e.to_string())?, hash).is_empty();
            }
            if again {
                found.retain(|row| row.id != id);
            }
        }
        Ok(found)
    }

    // ---------------------------------------------------------------- answering

    /// Answers an input to a saga that lies in the archive, or takes that saga back for it. True when
    /// it has been answered.
    pub(super) fn answer_from_archive(
        &mut self,
        index: usize,
        now: Time,
        session: SessionId,
        seq: InputSeq,
        parcel: &[u8],
        outside: &mut dyn Outside,
    ) -> bool {
        let member = &self.members[index];
        if member.archive.parts.is_empty() || member.partition.knows_input(session, seq) {
            return false;
        }
        let Some((id, message)) = Self::for_archived(&member.partition, &member.archive, parcel) else {
            return false;
        };
        let actor = match self.look_up(index, id) {
            Ok(Found::Nothing) => return false,
            Ok(Found::Deleted) => {
                if !matches!(message, SagaMessage::Start(_)) {
                    return false; // no saga has this id
                }
                let mut reply = Vec::new();
                // A refusal is a plain value: it can be written.
                let _ = encode(Codec::Compact, SagaActor::SCHEMA, &Refusal::Deleted, &mut reply);
                outside.reply(session, seq, Outcome::Refused, &reply);
                return true;
            }
            Ok(Found::Saga(state)) => Self::decode(&state),
            Err(error) => Err(error),
        };
        let actor = match actor {
            Ok(actor) => actor,
            Err(error) => {
                let partition = self.members[index].partition.id();
                let text = format!("the archive of {partition} cannot be read: {error}");
                outside.reply(session, seq, Outcome::Failed, text.as_bytes());
                return true;
            }
        };
        let changes = matches!(message, SagaMessage::Event(_));
        let (outcome, reply) = self.members[index].partition.try_archived(actor, id, message);
        if changes && outcome == Outcome::Applied {
            let id = id.to_owned();
            return match self.revive(index, &id, now, outside) {
                Ok(()) => false,
                Err(error) => {
                    outside.reply(session, seq, Outcome::Failed, error.as_bytes());
                    true
                }
            };
        }
        outside.reply(session, seq, outcome, &reply);
        true
    }

    /// The id and the message of a parcel for a saga that is not in memory and may be archived.
    fn for_archived<'a>(
        partition: &Partition,
        archive: &Archive,
        parcel: &'a [u8],
    ) -> Option<(&'a str, SagaMessage)> {
        let decoded = Parcel::decode(parcel).ok()?;
        let tag = kind_tag(SagaActor::KIND);
        if decoded.kind != tag || partition.has_actor(tag, decoded.key) || !archive.may_hold(decoded.key) {
            return None;
        }
        let Body::Message(bytes) = decoded.body else { return None };
        let message = TypedTable::<SagaActor>::message(Encoded::split(bytes)?);
        Some((decoded.key, message.ok()?))
    }

    /// Takes back every archived child that frames from elsewhere want undone.
    pub(super) fn revive_for_frames(
        &mut self,
        index: usize,
        count: u32,
        frames: &[u8],
        now: Time,
        outside: &mut dyn Outside,
    ) {
        let member = &self.members[index];
        if member.archive.parts.is_empty() {
            return;
        }
        let mut wanted = Vec::new();
        let mut reader = Reader::new(frames);
        for _ in 0..count {
            let (Ok(parcel), Ok(_)) = (reader.bytes("frame"), reader.bytes("piggyback")) else { break };
            let found = Self::for_archived(&member.partition, &member.archive, parcel);
            if let Some((id, SagaMessage::Event(Event::Compensate))) = found {
                wanted.push(id.to_owned());
            }
        }
        for id in wanted {
            if let Err(detail) = self.revive(index, &id, now, outside) {
                let detail =
                    format!("saga {id:?} is to be undone and cannot be taken out of the archive: {detail}");
                let partition = self.members[index].partition.id();
                self.events.notice(now, UnitNotice::Partition(partition, Notice::Alarm { detail }), outside);
            }
        }
    }

    /// Takes a saga back, and of its descendants those of its own partition: what a run sends to them
    /// arrives within the run. Others are taken back when a frame comes for them.
    fn revive(&mut self, index: usize, id: &str, now: Time, outside: &mut dyn Outside) -> Result<(), String> {
        let mut wanted = vec![id.to_owned()];
        while let Some(id) = wanted.pop() {
            if self.members[index].partition.saga(&id).is_none() {
                let Found::Saga(state) = self.look_up(index, &id)? else { continue };
                let partition = &mut self.members[index].partition;
                partition.revive(&id, &state, &mut self.outbox).map_err(|error| error.to_string())?;
                self.obey(index, now, outside);
            }
            let here = self.members[index].partition.id();
            let Some(saga) = self.members[index].partition.saga(&id) else { continue };
            let children = saga.machine().ops().iter().filter(|op| matches!(op.what, What::Child { .. }));
            let children = children.map(|op| child_id(&id, op.number, op.generation));
            wanted.extend(children.filter(|child| self.map.partition_of(child) == here));
        }
        Ok(())
    }
}

/// Reads the archives of all members.
pub(super) fn open_all<D: Disk>(
    copies: &mut Copies<D>,
    checkpoints: &mut CheckpointStore,
    members: &mut [Member],
) -> Result<(), OpenError> {
    for member in members {
        member.archive = Archive::open(copies, checkpoints, member.partition.id())?;
    }
    Ok(())
}
