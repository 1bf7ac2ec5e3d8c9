//! The store of one journal directory: create, mount, recover, append, commit, cut.
//!
//! Decides when a commit is submitted, what its completion means, and when a failure becomes a
//! smaller membership. Never retries a write, never acknowledges what rests on fewer copies than
//! the membership on disk says, and never touches a clock: the host asks for the idle commit.
//!
//! Order of calls: [`Store::create`], or [`Store::mount`] and [`Mounted::recover`]; then
//! [`Store::append`] any number of times, [`Store::commit`], and [`Store::poll`] or [`Store::wait`]
//! until [`StoreEvent::Durable`]. The next commit is filled while one is in flight.
//!
//! Invariants:
//! - One commit is in flight; commit k is written only when k-1 is durable on all in-sync copies,
//!   which is what lets recovery cut at most one.
//! - [`StoreEvent::Durable`] comes after the write is durable on every copy of the membership that
//!   is durable.
//! - A commit that needs a segment that there is no space for waits; nothing acknowledged is lost,
//!   and nothing more is accepted until there is space.
//!
//! Source: docs/FORMAT.md; docs/DECISIONS/0001 and 0006.

use crate::block::{Home, PAYLOAD, Place};
use crate::copies::{Copies, CopyIndex, Owner, Routed};
use crate::disk::{Disk, DiskError, Done, Lane, Op, Ticket};
use crate::error::{Lost, StoreError};
use crate::journal::{CommitBuffer, Logs, Seal, Segment, index_bytes, segment_name};
use crate::mirror::{Mirror, MountRules, Outsider, protocol_error};
use crate::record::{self, Record};
use crate::recovery::{RecoverError, Recovered, Recovery, RecoveryReport};
use crate::resume::ResumePoint;
use crate::superblock::{self, META_BYTES, SlotError, Superblock};
use crate::upkeep::Upkeep;
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::id::{CommitSeq, DirectoryId, Epoch, Generation, Lineage, LogId, Position, StoreId};
use rallypoint_base::limits::BLOCK;
use std::collections::VecDeque;

/// Most copies that a directory may have.
pub const COPIES_MAX: usize = 2;
const SEGMENT_BLOCKS_MAX: u64 = 65_535;
const SEGMENT_BLOCKS_MIN: u64 = 4;

/// How a journal is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a segment file, a multiple of 4,096. Counts at creation only.
    pub segment_len: u64,
    /// Most bytes of records in one commit; a single larger record gets a commit of its own.
    pub commit_max: usize,
    /// Segments prepared ahead (at least 1). They are also the reserve that is left when the disk
    /// is full.
    pub spare_segments: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_len: 64 << 20, commit_max: 4 << 20, spare_segments: 1 }
    }
}

/// How a store is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Write nothing at all, not even repairs.
    pub read_only: bool,
    /// Go on although a copy of the in-sync set is absent, and may hold more.
    pub degraded: bool,
    /// How to go on writing.
    pub options: Options,
}

/// What a journal directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The store.
    pub store: StoreId,
    /// Its history since it was created or restored.
    pub lineage: Lineage,
    /// Which journal directory of the store.
    pub directory: DirectoryId,
    /// How many copies it is meant to have (1 or 2).
    pub copies: u8,
    /// The map, opaque here, at most 12 KiB.
    pub meta: Vec<u8>,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreEvent {
    /// Everything up to and including this commit is durable on all in-sync copies.
    Durable {
        /// The commit.
        commit: CommitSeq,
    },
    /// A copy failed and was dropped; the smaller membership is durable already.
    CopyLost {
        /// Its index in [`Copies`].
        copy: CopyIndex,
        /// Its directory.
        place: String,
        /// What it said.
        error: DiskError,
        /// The epoch from which on it is out.
        epoch: Epoch,
    },
    /// The next spare segment could not be prepared; the reserve is all there is. Appends still work.
    SpaceShort(StoreError),
    /// The commit in flight waits for space, and appends are refused, until [`Store::cut`] frees a
    /// segment or [`Store::retry_space`] finds space.
    Full(StoreError),
    /// There is space again.
    SpaceBack,
    /// No copy is left. Everything later is refused; open the store again.
    Failed(StoreError),
    /// A scrub step is done.
    Scrubbed(crate::scrub::ScrubStep),
    /// A completion that another part of the store submitted.
    Other(Routed),
}

/// How much of the journal one log needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// The log.
    pub log: LogId,
    /// Its last record.
    pub last: Position,
    /// Records below are not needed.
    pub low: Position,
    /// Bytes of journal since the segment of its oldest needed record; 0 when none is needed.
    pub bytes: u64,
}

/// One copy, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyStatus {
    /// Index in [`Copies`].
    pub copy: CopyIndex,
    /// Its number in the superblock; `None` for an empty or unreadable directory.
    pub number: Option<u8>,
    /// Its directory.
    pub place: String,
    /// It takes part.
    pub in_sync: bool,
    /// Why it does not.
    pub outsider: Option<Outsider>,
}

/// The state of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Epoch now.
    pub epoch: Epoch,
    /// The copies that were given.
    pub copies: Vec<CopyStatus>,
    /// How many copies the directory is meant to have.
    pub copies_meant: u8,
    /// Last durable commit.
    pub durable: CommitSeq,
    /// Segments that hold commits.
    pub segments: usize,
    /// Segments prepared.
    pub ready: usize,
    /// Bytes of journal in use.
    pub bytes: u64,
    /// Each log.
    pub logs: Vec<LogStatus>,
    /// Why nothing may be written, if so.
    pub refusing: Option<StoreError>,
    /// The disk is full; the reserve is all there is.
    pub space_short: Option<StoreError>,
}

#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) commit: CommitSeq,
    records: u32,
    pub(crate) blocks: u32,
    watermark: CommitSeq,
    /// Where it was submitted to.
    place: Option<ResumePoint>,
    tickets: Vec<(CopyIndex, Ticket)>,
    /// The commit waits for a segment.
    pub(crate) waiting: Option<CommitBuffer>,
}

/// A store that is ready to serve. See the module for the order of calls.
#[derive(Debug)]
pub struct Store<D> {
    pub(crate) mirror: Mirror<D>,
    pub(crate) home: Home,
    identity: Identity,
    options: Options,
    commit_max: usize,
    record_max: usize,
    pub(crate) logs: Logs,
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) ready: VecDeque<Segment>,
    pub(crate) upkeep: Upkeep,
    pub(crate) scrub: crate::scrub::Scrub,
    open: CommitBuffer,
    open_seq: CommitSeq,
    full: VecDeque<CommitBuffer>,
    shells: Vec<CommitBuffer>,
    pool: Vec<AlignedBuffer>,
    pub(crate) flight: Option<Flight>,
    spare_tickets: Vec<(CopyIndex, Ticket)>,
    pub(crate) durable: CommitSeq,
    previous: u64,
    last_real: CommitSeq,
    /// Place of the last durable commit.
    resume: ResumePoint,
    covered: CommitSeq,
    pub(crate) refusing: Option<StoreError>,
    pub(crate) events: VecDeque<StoreEvent>,
}

/// A store whose copies are known and whose journal is not read yet: the moment to read checkpoints.
#[derive(Debug)]
pub struct Mounted<D> {
    mirror: Mirror<D>,
    identity: Identity,
    options: OpenOptions,
}

fn check_options(options: &Options) -> Result<(), StoreError> {
    let blocks = options.segment_len / BLOCK as u64;
    if !options.segment_len.is_multiple_of(BLOCK as u64)
        || !(SEGMENT_BLOCKS_MIN..=SEGMENT_BLOCKS_MAX).contains(&blocks)
    {
        return Err(StoreError::Options(format!(
            "segment_len is {}, it must be a multiple of {BLOCK} between {} and {}",
            options.segment_len,
            SEGMENT_BLOCKS_MIN * BLOCK as u64,
            SEGMENT_BLOCKS_MAX * BLOCK as u64
        )));
    }
    Ok(())
}

fn identity_of(state: &Superblock) -> Identity {
    Identity {
        store: state.store,
        lineage: state.lineage,
        directory: state.directory,
        copies: state.copies,
        meta: state.meta.clone(),
    }
}

/// Lists an empty directory, or empties what an interrupted creation left. An error otherwise.
fn prepare_empty<D: Disk>(copies: &mut Copies<D>, copy: CopyIndex) -> Result<(), StoreError> {
    let place = copies.disk(copy).name().to_string();
    let failed = |error| StoreError::Disk { place: place.clone(), error };
    let Done::Names(names) = copies.run(copy, Lane::Bulk, Op::List).map_err(failed)? else {
        return Err(failed(protocol_error("the directory")));
    };
    let mut names: Vec<String> =
        names.into_iter().map(|(name, _)| name).filter(|name| name != "lock").collect();
    let Some(found) = names.first().cloned() else { return Ok(()) };
    let ours = |name: &String| name == superblock::FILE || crate::journal::parse_segment_name(name).is_some();
    if !names.iter().all(ours) || !names.iter().any(|name| name == superblock::FILE) && names.len() > 64 {
        return Err(StoreError::NotEmpty { place, found });
    }
    let mut never_began = true;
    for name in &names {
        let Done::Opened { file, len } =
            copies.run(copy, Lane::Bulk, Op::Open { name: name.clone() }).map_err(failed)?
        else {
            return Err(failed(protocol_error(name)));
        };
        let read = Op::Read { file, offset: 0, len: (len as usize).min(superblock::FILE_BYTES) };
        let Done::Read(bytes) = copies.run(copy, Lane::Bulk, read).map_err(failed)? else {
            return Err(failed(protocol_error(name)));
        };
        copies.run(copy, Lane::Bulk, Op::Close { file }).map_err(failed)?;
        // A creation that was cut short may have left a shorter file.
        let mut whole = vec![0; superblock::FILE_BYTES];
        let len = bytes.len().min(whole.len());
        whole[..len].copy_from_slice(&bytes[..len]);
        never_began &= if name == superblock::FILE {
            match superblock::judge(&whole) {
                Ok(slots) => match slots.best {
                    Ok(best) => best.epoch == Epoch(0),
                    Err(error) => error == SlotError::Blank,
                },
                Err(_) => false,
            }
        } else {
            bytes.iter().all(|&byte| byte == 0)
        };
    }
    if !never_began {
        return Err(StoreError::NotEmpty { place, found });
    }
    // The superblock goes last, so that a crash here is an interrupted creation again.
    names.sort_by_key(|name| name == superblock::FILE);
    for name in names {
        copies.run(copy, Lane::Bulk, Op::Remove { name }).map_err(failed)?;
    }
    copies.run(copy, Lane::Bulk, Op::SyncNames).map_err(failed)?;
    Ok(())
}

impl<D: Disk> Store<D> {
    /// Makes a new store in empty directories, in copy order. What an interrupted creation left is
    /// removed; anything else refuses.
    ///
    /// # Errors
    /// [`StoreError::Options`], [`StoreError::NotEmpty`], [`StoreError::Disk`].
    pub fn create(disks: Vec<D>, identity: Identity, options: Options) -> Result<Self, StoreError> {
        check_options(&options)?;
        if disks.is_empty() || disks.len() > COPIES_MAX || usize::from(identity.copies) != disks.len() {
            return Err(StoreError::Options(format!(
                "{} directories for {} copies; there may be 1 or {COPIES_MAX}, all present at creation",
                disks.len(),
                identity.copies
            )));
        }
        if identity.meta.len() > META_BYTES {
            return Err(StoreError::Options(format!(
                "the map has {} bytes, at most {META_BYTES} fit",
                identity.meta.len()
            )));
        }
        let mut copies = Copies::new(disks);
        for copy in copies.live() {
            prepare_empty(&mut copies, copy)?;
        }
        let last = Generation(1 + options.spare_segments.max(1) as u64);
        let mut files = Vec::new();
        let mut segments: Vec<Segment> =
            (1..=last.0).map(|g| Segment::new(Generation(g), Vec::new())).collect();
        for copy in copies.live() {
            let place = copies.disk(copy).name().to_string();
            let mut create =
                |name: String, len: u64| match copies.run(copy, Lane::Bulk, Op::Create { name, len }) {
                    Ok(Done::Opened { file, .. }) => Ok(file),
                    Ok(_) => {
                        Err(StoreError::Disk { place: place.clone(), error: protocol_error("a new file") })
                    }
                    Err(error) => Err(StoreError::Disk { place: place.clone(), error }),
                };
            files.push(Some(create(superblock::FILE.into(), superblock::FILE_BYTES as u64)?));
            for segment in &mut segments {
                segment.files.push(Some(create(segment_name(segment.generation), options.segment_len)?));
            }
            copies
                .run(copy, Lane::Bulk, Op::SyncNames)
                .map_err(|error| StoreError::Disk { place: place.clone(), error })?;
        }
        let numbers: Vec<Option<u8>> = (0..identity.copies).map(Some).collect();
        let state = Superblock {
            store: identity.store,
            lineage: identity.lineage,
            directory: identity.directory,
            copies: identity.copies,
            copy: 0,
            in_sync: (1 << identity.copies) - 1,
            epoch: Epoch(0),
            sequence: 1,
            segment_len: options.segment_len,
            first: Generation(1),
            last,
            first_commit: CommitSeq(1),
            first_hash: 0,
            floor_commit: CommitSeq(0),
            floor_epoch: Epoch(1),
            meta: identity.meta,
        };
        let mut mirror = Mirror {
            copies,
            numbers,
            files,
            state,
            outsiders: Vec::new(),
            absent: Vec::new(),
            slots_repaired: 0,
        };
        // First on every copy that creation is not finished, then on every copy that it is: so no
        // crash leaves one copy finished and another one without a superblock.
        for (epoch, sequence) in [(Epoch(0), 1), (Epoch(1), 2)] {
            mirror.state.epoch = epoch;
            mirror.state.sequence = sequence;
            mirror.write_slots().map_err(|(copy, error)| mirror.disk_error(copy, error))?;
        }
        let mut segments: VecDeque<Segment> = segments.into();
        let ready = segments.split_off(1);
        segments[0].first_commit = CommitSeq(1);
        let free = vec![Vec::new(); mirror.copies.len()];
        let recovered = Recovered {
            logs: Logs::default(),
            segments,
            ready,
            free,
            last: CommitSeq(0),
            hash: 0,
            last_real: CommitSeq(0),
            resume: ResumePoint { commit: CommitSeq(1), generation: Generation(1), number: 0, previous: 0 },
            extents: Vec::new(),
            report: RecoveryReport::default(),
        };
        Ok(Self::start(mirror, recovered, options, None))
    }

    /// Reads the superblocks and decides who takes part. Order and number of `disks` do not matter:
    /// each copy knows its number, and an absent one is simply not given.
    ///
    /// # Errors
    /// [`StoreError`], one variant per reason to refuse.
    pub fn mount(disks: Vec<D>, options: OpenOptions) -> Result<Mounted<D>, StoreError> {
        let rules = MountRules { read_only: options.read_only, degraded: options.degraded, keep: None };
        Self::mount_by(disks, options, rules)
    }

    pub(crate) fn mount_by(
        disks: Vec<D>,
        options: OpenOptions,
        rules: MountRules,
    ) -> Result<Mounted<D>, StoreError> {
        let mirror = Mirror::mount(disks, rules)?;
        let identity = identity_of(&mirror.state);
        Ok(Mounted { mirror, identity, options })
    }

    fn start(
        mirror: Mirror<D>,
        recovered: Recovered,
        options: Options,
        refusing: Option<StoreError>,
    ) -> Self {
        let state = &mirror.state;
        let home = Home { store: state.store, lineage: state.lineage, directory: state.directory };
        let capacity = state.segment_blocks() as usize * PAYLOAD;
        let identity = identity_of(state);
        let mut store = Self {
            home,
            identity,
            options,
            commit_max: options.commit_max.min(capacity),
            record_max: capacity / 2,
            logs: recovered.logs,
            segments: recovered.segments,
            ready: recovered.ready,
            upkeep: Upkeep::new(recovered.free, options.spare_segments.max(1)),
            scrub: crate::scrub::Scrub::default(),
            open: CommitBuffer::default(),
            open_seq: recovered.last.next(),
            full: VecDeque::new(),
            shells: Vec::new(),
            pool: Vec::new(),
            flight: None,
            spare_tickets: Vec::new(),
            durable: recovered.last,
            previous: recovered.hash,
            last_real: recovered.last_real,
            resume: recovered.resume,
            covered: recovered.report.watermark,
            refusing,
            events: VecDeque::new(),
            mirror,
        };
        store.begin_open(&recovered.extents);
        store
    }

    // ---- commands ------------------------------------------------------------------------------

    /// Adds a record to the commit that is being filled, and says which commit that is: the record
    /// is durable with [`StoreEvent::Durable`] of that commit or a later one.
    ///
    /// # Errors
    /// [`StoreError::OutOfOrder`] and [`StoreError::RecordTooLarge`] are the caller's fault; otherwise
    /// the reason why nothing is accepted now.
    pub fn append(&mut self, record: &Record<'_>) -> Result<CommitSeq, StoreError> {
        if let Some(error) = &self.refusing {
            return Err(error.clone());
        }
        let len = record::HEADER + record.payload.len();
        if len > self.record_max {
            let max = self.record_max - record::HEADER;
            return Err(StoreError::RecordTooLarge { log: record.log, len: record.payload.len(), max });
        }
        if self.open.records() > 0 && self.open.payload() + len > self.commit_max {
            let closed = self.close_open();
            self.full.push_back(closed);
        }
        self.logs.note(record, self.open_seq.0, &mut self.open.extents)?;
        self.open.push(record);
        Ok(self.open_seq)
    }

    /// Submits the next commit to all in-sync copies, if none is in flight and something is pending.
    pub fn commit(&mut self) -> Option<CommitSeq> {
        if self.flight.is_some() || self.is_stopped() {
            return None;
        }
        let next = match self.full.pop_front() {
            Some(full) => full,
            None if self.open.records() > 0 => self.close_open(),
            None => return None,
        };
        Some(self.launch(next))
    }

    /// Submits an empty commit whose watermark covers the last real one, if nothing covers it yet and
    /// nothing is pending or in flight.
    pub fn commit_idle(&mut self) -> Option<CommitSeq> {
        let nothing = self.flight.is_none() && self.full.is_empty() && self.open.records() == 0;
        if !nothing || self.is_stopped() || self.last_real <= self.covered {
            return None;
        }
        let empty = self.close_open();
        Some(self.launch(empty))
    }

    /// Records of `log` below `below` are no longer needed. Segments that no log needs are recycled,
    /// after the superblock that un-names them is durable.
    pub fn cut(&mut self, log: LogId, below: Position) {
        let slot = self.logs.slot(log);
        let state = self.logs.state(slot);
        state.low = state.low.max(below);
        self.run_upkeep();
    }

    /// Tries again to prepare a segment, after [`StoreEvent::SpaceShort`] or [`StoreEvent::Full`].
    pub fn retry_space(&mut self) {
        self.upkeep.space_short = None;
        self.run_upkeep();
    }

    /// Replaces the map, durably on every in-sync copy.
    ///
    /// # Errors
    /// [`StoreError::Options`] when it is too long; the reason why nothing is accepted now.
    pub fn set_meta(&mut self, meta: Vec<u8>) -> Result<(), StoreError> {
        if let Some(error) = &self.refusing {
            return Err(error.clone());
        }
        if meta.len() > META_BYTES {
            return Err(StoreError::Options(format!(
                "the map has {} bytes, at most {META_BYTES} fit",
                meta.len()
            )));
        }
        self.pause_upkeep();
        self.mirror.state.meta.clone_from(&meta);
        self.mirror.state.sequence += 1;
        self.identity.meta = meta;
        while let Err((copy, error)) = self.mirror.write_slots() {
            self.lose_copy(copy, error);
            if let Some(error) = &self.refusing {
                return Err(error.clone());
            }
        }
        self.resume_upkeep();
        Ok(())
    }

    // ---- what happened -------------------------------------------------------------------------

    /// The next event, if there is one now.
    pub fn poll(&mut self) -> Option<StoreEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            self.run_upkeep();
            if self.events.is_empty() {
                let routed = self.mirror.copies.poll()?;
                self.handle(routed);
            }
        }
    }

    /// Waits for the next event. `None` when nothing is outstanding.
    pub fn wait(&mut self) -> Option<StoreEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            self.run_upkeep();
            if self.events.is_empty() {
                let routed = self.mirror.copies.wait()?;
                self.handle(routed);
            }
        }
    }

    fn handle(&mut self, routed: Routed) {
        match routed.owner {
            Owner::Journal => self.handle_own(routed),
            Owner::Scrub => self.handle_scrub(routed),
            Owner::Checkpoint | Owner::Events | Owner::Run => {
                self.events.push_back(StoreEvent::Other(routed))
            }
        }
    }

    fn handle_own(&mut self, routed: Routed) {
        let (copy, ticket) = (routed.copy, routed.ticket);
        let mine = self.flight.as_mut().and_then(|flight| {
            let at = flight.tickets.iter().position(|&t| t == (copy, ticket))?;
            Some(flight.tickets.swap_remove(at))
        });
        if mine.is_none() {
            self.handle_upkeep(copy, ticket, routed.result);
            return;
        }
        match routed.result {
            Ok(Done::Wrote(buffer)) => self.give_back(buffer),
            Ok(_) => self.lose_copy(copy, protocol_error("a segment")),
            Err(error) => self.lose_copy(copy, error),
        }
        self.land();
    }

    /// Reports the commit in flight once no copy owes an answer.
    fn land(&mut self) {
        if !self.flight.as_ref().is_some_and(|f| f.tickets.is_empty() && f.waiting.is_none()) {
            return;
        }
        let Some(flight) = self.flight.take() else { return };
        self.durable = flight.commit;
        self.covered = flight.watermark;
        if flight.records > 0 {
            self.last_real = flight.commit;
        }
        self.resume = flight.place.unwrap_or(self.resume);
        self.spare_tickets = flight.tickets;
        self.events.push_back(StoreEvent::Durable { commit: flight.commit });
    }

    // ---- commits -------------------------------------------------------------------------------

    fn is_stopped(&self) -> bool {
        // Waiting for space is not stopping: the commit in flight is what waits.
        self.refusing.is_some()
    }

    fn begin_open(&mut self, index: &[record::Extent]) {
        let buffer = self.empty_buffer();
        let twin = (self.mirror.copies.live().count() > 1).then(|| self.empty_buffer());
        let capacity = self.mirror.state.segment_blocks() as usize * PAYLOAD;
        let index = (index_bytes(index.len()) <= capacity / 4).then_some(index);
        self.open.begin(buffer, twin, index);
    }

    /// A pooled buffer at its full length.
    fn empty_buffer(&mut self) -> AlignedBuffer {
        let mut buffer = self.pool.pop().unwrap_or_default();
        let len = buffer.capacity() / BLOCK * BLOCK;
        buffer.set_len(len);
        buffer
    }

    /// Closes the commit that is being filled and begins the next one, which says what it holds.
    fn close_open(&mut self) -> CommitBuffer {
        let shell = self.shells.pop().unwrap_or_default();
        let closed = std::mem::replace(&mut self.open, shell);
        self.begin_open(&closed.extents);
        self.open_seq = self.open_seq.next();
        closed
    }

    /// Starts a commit, or lets it wait for a segment.
    fn launch(&mut self, buffer: CommitBuffer) -> CommitSeq {
        let commit = self.durable.next();
        let tickets = std::mem::take(&mut self.spare_tickets);
        let flight = Flight {
            commit,
            records: buffer.records(),
            blocks: 0,
            watermark: self.durable,
            place: None,
            tickets,
            waiting: Some(buffer),
        };
        self.flight = Some(flight);
        self.take_off();
        commit
    }

    /// Submits the waiting commit if there is room for it.
    pub(crate) fn take_off(&mut self) {
        let Some(flight) = self.flight.as_mut() else { return };
        let Some(mut buffer) = flight.waiting.take() else { return };
        let blocks = buffer.blocks() as u64;
        let room = self.segments.back().map_or(0, |s| self.mirror.state.segment_blocks() - u64::from(s.used));
        if blocks > room {
            let Some(mut next) = self.ready.pop_front() else {
                flight.waiting = Some(buffer);
                self.run_upkeep();
                self.refuse_for_space();
                return;
            };
            next.first_commit = flight.commit;
            next.first_hash = self.previous;
            self.segments.push_back(next);
        }
        let Some(segment) = self.segments.back_mut() else { return };
        let seal = Seal {
            place: Place { generation: segment.generation, number: segment.used },
            epoch: self.mirror.state.epoch,
            commit: flight.commit,
            watermark: flight.watermark,
            previous: self.previous,
        };
        flight.place = Some(ResumePoint {
            commit: seal.commit,
            generation: seal.place.generation,
            number: seal.place.number,
            previous: seal.previous,
        });
        let (bytes, twin, hash) = buffer.seal(&self.home, &seal);
        self.previous = hash;
        let offset = u64::from(segment.used) * BLOCK as u64;
        segment.used += blocks as u32;
        segment.note(&buffer.extents, &mut self.logs);
        self.shells.push(buffer);
        let (mut bytes, mut twin) = (Some(bytes), twin);
        let live: Vec<CopyIndex> = self.mirror.copies.live().collect();
        for (at, &copy) in live.iter().enumerate() {
            let Some(file) = segment.files[copy] else { continue };
            let data = if at + 1 == live.len() { bytes.take() } else { twin.take() };
            let data = data.unwrap_or_else(|| AlignedBuffer::copy_of(bytes.as_deref().unwrap_or_default()));
            let op = Op::Write { file, offset, data, durable: true };
            flight.tickets.push((copy, self.mirror.copies.submit(copy, Owner::Journal, Lane::Commit, op)));
        }
        flight.blocks = blocks as u32;
        if matches!(self.refusing, Some(StoreError::NoSpace { .. })) {
            self.refusing = None;
        }
        if let Some(twin) = twin {
            // The copy that it was for is out meanwhile.
            self.give_back(twin);
        }
        self.run_upkeep();
    }

    pub(crate) fn refuse_for_space(&mut self) {
        let waits = self.flight.as_ref().is_some_and(|flight| flight.waiting.is_some());
        if waits
            && self.refusing.is_none()
            && let Some(error) = self.upkeep.space_short.clone()
        {
            self.refusing = Some(error.clone());
            self.events.push_back(StoreEvent::Full(error));
        }
    }

    fn give_back(&mut self, buffer: AlignedBuffer) {
        const POOLED: usize = 4;
        if self.pool.len() < POOLED && buffer.capacity() <= 4 * self.commit_max.max(BLOCK) {
            self.pool.push(buffer);
        }
    }

    // ---- membership ----------------------------------------------------------------------------

    /// Another part of the store found that a copy fails: it is out for good, and the smaller set is
    /// durable before this returns. [`StoreEvent::CopyLost`] follows.
    pub fn drop_copy(&mut self, copy: CopyIndex, error: DiskError) {
        self.lose_copy(copy, error);
    }

    /// A copy failed: it is out for good, and the smaller set is durable before this returns.
    pub(crate) fn lose_copy(&mut self, copy: CopyIndex, error: DiskError) {
        if !self.mirror.copies.live().any(|live| live == copy) {
            return;
        }
        self.drop_from_work(copy);
        self.mirror.copies.take_out(copy);
        let place = self.mirror.place(copy);
        self.pause_upkeep();
        let published = if self.mirror.copies.live().next().is_none() {
            Err(StoreError::NoCopyLeft { place: place.clone(), error: error.clone() })
        } else {
            self.mirror.publish_membership()
        };
        self.resume_upkeep();
        let epoch = self.mirror.state.epoch;
        self.events.push_back(StoreEvent::CopyLost { copy, place, error, epoch });
        match published {
            Ok(dropped) => {
                for (copy, error) in dropped {
                    self.drop_from_work(copy);
                    let place = self.mirror.place(copy);
                    self.events.push_back(StoreEvent::CopyLost { copy, place, error, epoch });
                }
            }
            Err(error) => self.stop(error),
        }
        // It may have been the only copy that the commit in flight still waited for.
        self.land();
    }

    fn drop_from_work(&mut self, copy: CopyIndex) {
        if let Some(flight) = self.flight.as_mut() {
            flight.tickets.retain(|&(owner, _)| owner != copy);
        }
        self.upkeep.forget(copy);
        self.scrub.forget(copy);
    }

    fn stop(&mut self, error: StoreError) {
        self.flight = None;
        if matches!(self.refusing, Some(StoreError::NoCopyLeft { .. })) {
            return;
        }
        self.refusing = Some(error.clone());
        self.events.push_back(StoreEvent::Failed(error));
    }

    // ---- getters -------------------------------------------------------------------------------

    /// Bytes of records that no submitted commit holds.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.full.iter().map(CommitBuffer::record_bytes).sum::<usize>() + self.open.record_bytes()
    }

    /// The commit that is submitted (or waits for space) and not yet durable.
    #[must_use]
    pub fn in_flight(&self) -> Option<CommitSeq> {
        self.flight.as_ref().map(|flight| flight.commit)
    }

    /// The last durable commit.
    #[must_use]
    pub fn durable(&self) -> CommitSeq {
        self.durable
    }

    /// From where on a recovery has to read for everything that is appended from now on: the place
    /// of the last durable commit. (The commit in flight would do as well, but might be cut.) A
    /// checkpoint that begins now remembers it for [`Mounted::recover_from`].
    #[must_use]
    pub fn resume_point(&self) -> ResumePoint {
        self.resume
    }

    /// The copies, for checkpoints, events and backups.
    pub fn copies(&mut self) -> &mut Copies<D> {
        &mut self.mirror.copies
    }

    /// The epoch of this opening.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.mirror.state.epoch
    }

    /// What the directory is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Last position of a log, recovered or appended; `None` when the journal holds nothing of it.
    #[must_use]
    pub fn last_position(&self, log: LogId) -> Option<Position> {
        self.logs.all().iter().find(|state| state.log == log && state.last.0 > 0).map(|state| state.last)
    }

    /// Why nothing is accepted now: read-only, damaged, failed, or no space.
    #[must_use]
    pub fn refusing(&self) -> Option<&StoreError> {
        self.refusing.as_ref()
    }

    /// Bytes of journal since the segment of the log's oldest needed record.
    #[must_use]
    pub fn log_bytes(&self, log: LogId) -> u64 {
        self.slot_of(log).map_or(0, |slot| self.slot_bytes(slot))
    }

    /// Bytes of journal since the segment of the log's first record at this position or behind it.
    #[must_use]
    pub fn log_bytes_since(&self, log: LogId, position: Position) -> u64 {
        self.slot_of(log).map_or(0, |slot| self.bytes_since(slot, position))
    }

    fn slot_of(&self, log: LogId) -> Option<usize> {
        self.logs.all().iter().position(|state| state.log == log)
    }

    fn slot_bytes(&self, slot: usize) -> u64 {
        self.bytes_since(slot, self.logs.all()[slot].low)
    }

    fn bytes_since(&self, slot: usize, low: Position) -> u64 {
        self.segments
            .iter()
            .skip_while(|segment| segment.range(slot).is_none_or(|(_, last)| last < low))
            .map(|segment| u64::from(segment.used) * BLOCK as u64)
            .sum()
    }

    /// Everything there is to know, for people and for the decision to checkpoint.
    #[must_use]
    pub fn status(&self) -> Status {
        let live: Vec<CopyIndex> = self.mirror.copies.live().collect();
        Status {
            epoch: self.epoch(),
            copies: (0..self.mirror.copies.len())
                .map(|copy| CopyStatus {
                    copy,
                    number: self.mirror.numbers[copy],
                    place: self.mirror.place(copy),
                    in_sync: live.contains(&copy),
                    outsider: self
                        .mirror
                        .outsiders
                        .iter()
                        .find(|(at, _)| *at == copy)
                        .map(|(_, why)| why.clone()),
                })
                .collect(),
            copies_meant: self.identity.copies,
            durable: self.durable,
            segments: self.segments.len(),
            ready: self.ready.len(),
            bytes: self.segments.iter().map(|segment| u64::from(segment.used) * BLOCK as u64).sum(),
            logs: self
                .logs
                .all()
                .iter()
                .enumerate()
                .map(|(slot, state)| LogStatus {
                    log: state.log,
                    last: state.last,
                    low: state.low,
                    bytes: self.slot_bytes(slot),
                })
                .collect(),
            refusing: self.refusing.clone(),
            space_short: self.upkeep.space_short.clone(),
        }
    }

    /// Gives the disks back, in copy order, without waiting for anything.
    #[must_use]
    pub fn into_disks(self) -> Vec<D> {
        self.mirror.copies.into_disks()
    }
}

impl<D: Disk> Mounted<D> {
    /// What the directory is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The epoch of the last opening.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.mirror.state.epoch
    }

    /// The copies, to read checkpoints from. Copies that are not in sync are out.
    pub fn copies(&mut self) -> &mut Copies<D> {
        &mut self.mirror.copies
    }

    /// Copies that were given and do not take part.
    #[must_use]
    pub fn outsiders(&self) -> &[(CopyIndex, Outsider)] {
        &self.mirror.outsiders
    }

    /// Numbers of in-sync copies that are absent (the opening is degraded).
    #[must_use]
    pub fn absent(&self) -> &[u8] {
        &self.mirror.absent
    }

    /// Reads the journal: every record in order to `sink`, each repaired on every in-sync copy before
    /// it is handed out; then the tail rule; then the next epoch with the membership, durable.
    ///
    /// When acknowledged records are lost on every copy, the store comes back for reading only:
    /// [`RecoveryReport::lost`] names them, `sink` got every record before the first loss of each log
    /// and all records of logs that are proven whole, and [`Store::refusing`] says why.
    ///
    /// # Errors
    /// [`RecoverError::Store`] when the store refuses altogether, [`RecoverError::Sink`] when the
    /// receiver does.
    pub fn recover<E>(
        self,
        sink: &mut dyn FnMut(&Record<'_>) -> Result<(), E>,
    ) -> Result<(Store<D>, RecoveryReport), RecoverError<E>> {
        self.recover_from(None, &[], sink)
    }

    /// Like [`Mounted::recover`], but leaves out what the restored checkpoints make needless.
    ///
    /// `resume` is the lowest, by commit, of the points that these checkpoints remember; every log
    /// that may hold records before it must be covered by one. Reading begins there if that commit
    /// still stands there, sound in the union of the copies; else at the head of the journal, as
    /// [`RecoveryReport::resumed`] tells. What lies before is neither read nor repaired, is kept until
    /// [`Store::cut`] frees it, and is looked at by scrub, verify and mend.
    ///
    /// `known` is the position up to which the restored checkpoint holds each log. A log goes on after
    /// it, also when nothing of it was read. A log whose first record lies beyond the next position,
    /// or whose last one lies before `known`, has lost records.
    ///
    /// # Errors
    /// As [`Mounted::recover`].
    pub fn recover_from<E>(
        mut self,
        resume: Option<ResumePoint>,
        known: &[(LogId, Position)],
        sink: &mut dyn FnMut(&Record<'_>) -> Result<(), E>,
    ) -> Result<(Store<D>, RecoveryReport), RecoverError<E>> {
        let read_only = self.options.read_only;
        let mut recovered = Recovery::new(&mut self.mirror, sink, read_only).run(resume, known)?;
        let lost: Vec<Lost> = recovered.report.lost.clone();
        let mut refusing = None;
        if !lost.is_empty() {
            refusing = Some(StoreError::Damaged { lost });
        } else if read_only {
            refusing = Some(StoreError::ReadOnly);
        } else {
            for &(copy, _) in &recovered.report.dropped {
                self.mirror.copies.take_out(copy);
            }
            // What a process that should be dead writes from now on carries too old an epoch.
            self.mirror.state.floor_commit = recovered.last;
            self.mirror.state.floor_epoch = self.mirror.state.epoch.next();
            let dropped = self.mirror.publish_membership()?;
            recovered.report.dropped.extend(dropped);
        }
        recovered.report.epoch = self.mirror.state.epoch;
        let report = recovered.report.clone();
        Ok((Store::start(self.mirror, recovered, self.options.options, refusing), report))
    }
}
