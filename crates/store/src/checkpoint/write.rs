//! Writing one version: chunks, syncs, re-reading, manifest.
//!
//! Decides what each copy does next and when all copies may go on. Never waits: every step is a
//! completion handed to [`CheckpointStore::handle`]. The steps of one copy:
//!
//! ```text
//! create part -> SyncNames ----------------------------.
//!             -> chunks (<= 2 in flight per copy)       > all copies there -> create tmp -> write ->
//!                -> sync every 8 MiB -> re-read, hash -'   sync -> re-read -> rename -> SyncNames
//! ```
//!
//! Invariants: a chunk is re-read only after a sync that covers it; no copy creates the manifest
//! before every copy that takes part has verified every chunk and made the part's name durable.

use super::manifest::{CHUNK_BYTES, Chunk, FileKind, HEADER_BYTES, Manifest, file_name};
use super::versions::VersionInfo;
use super::{CheckpointEvent, CheckpointStore, Task};
use crate::copies::{Copies, CopyIndex, Owner, Routed};
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op};
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{Epoch, LogId, Position, Version};
use rallypoint_base::limits::BLOCK;
use rallypoint_base::time::Time;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use thiserror::Error;

/// Chunk writes in flight per copy, over all logs: more would delay the commits beside them.
const WRITES_IN_FLIGHT: usize = 2;
/// Verifying reads in flight per copy, over all logs.
const READS_IN_FLIGHT: usize = 4;
/// After how many written chunks the part is synced: 8 MiB, so that no sync is long and verifying
/// keeps up with writing.
const CHUNKS_PER_SYNC: usize = 32;
/// Buffers kept for the next chunks.
const SPARE_BUFFERS: usize = 8;

/// What a new version is. See [`CheckpointStore::begin`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begin {
    /// Which log's state.
    pub log: LogId,
    /// The state holds everything up to this position.
    pub position: Position,
    /// The epoch it is taken in.
    pub epoch: Epoch,
    /// The version this increment builds on; `None` for a full checkpoint.
    pub base: Option<Version>,
    /// Schema of the content, opaque here.
    pub schema: u32,
    /// The time of the cut.
    pub created: Time,
    /// The program, for people.
    pub program: String,
    /// The new version is at least this one; 0 leaves it to the store, which never uses one twice.
    pub not_below: Version,
}

/// Why a call that writes was refused: the caller's fault, nothing happened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The log has a checkpoint in progress.
    #[error("checkpoint {version} of {log} is still being written: finish or abort it first")]
    Busy {
        /// Whose.
        log: LogId,
        /// Which one is in progress.
        version: Version,
    },
    /// The log has no checkpoint in progress (it may have failed: see the events).
    #[error("no checkpoint of {log} is being written: call `begin` first, and heed `Failed` events")]
    NotWriting {
        /// Whose.
        log: LogId,
    },
    /// [`CheckpointStore::is_ready`] says no.
    #[error("the checkpoint of {log} takes no chunk now: wait until `is_ready`")]
    NotReady {
        /// Whose.
        log: LogId,
    },
    /// A chunk is empty or longer than [`CHUNK_BYTES`].
    #[error("a chunk of {len} bytes: give 1 to {CHUNK_BYTES}")]
    ChunkLength {
        /// Its length.
        len: usize,
    },
    /// The header is longer than [`HEADER_BYTES`].
    #[error("a header of {len} bytes: give at most {HEADER_BYTES}")]
    HeaderLength {
        /// Its length.
        len: usize,
    },
    /// The base does not exist, or its chain cannot be used.
    #[error("checkpoint {base} of {log} cannot be built on: take a full checkpoint")]
    Base {
        /// Whose.
        log: LogId,
        /// The base that was asked for.
        base: Version,
    },
}

/// Why a version was not written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FailReason {
    /// No space on a copy; older versions are whole.
    #[error("no space on copy {copy}: free some, or let older versions be collected ({error})")]
    NoSpace {
        /// Which copy.
        copy: CopyIndex,
        /// What it said.
        error: DiskError,
    },
    /// What was read back is not what was written.
    #[error("copy {copy} lost chunk {chunk}: take the checkpoint again, and watch that disk")]
    NotVerified {
        /// Which copy.
        copy: CopyIndex,
        /// Which chunk.
        chunk: usize,
    },
    /// The manifest that was read back is not the one that was written.
    #[error("copy {copy} lost the manifest: take the checkpoint again, and watch that disk")]
    ManifestNotVerified {
        /// Which copy.
        copy: CopyIndex,
    },
    /// What was just written cannot be read.
    #[error(
        "copy {copy} cannot read what it wrote: take the checkpoint again, and watch that disk ({error})"
    )]
    Unreadable {
        /// Which copy.
        copy: CopyIndex,
        /// What it said.
        error: DiskError,
    },
    /// A file of that name was there: another process writes in this directory.
    #[error("copy {copy} has a file of the new version already: is another process writing here? ({error})")]
    Exists {
        /// Which copy.
        copy: CopyIndex,
        /// What it said.
        error: DiskError,
    },
    /// Every copy failed.
    #[error("no copy is left to write to")]
    NoCopyLeft,
    /// [`CheckpointStore::abort`] was called.
    #[error("the checkpoint was aborted")]
    Aborted,
}

/// One operation of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    PartName,
    Chunk(usize),
    /// Covers the chunks below.
    Sync(usize),
    Verify(usize),
    ManifestCreate,
    /// Ends at this byte.
    ManifestWrite(usize),
    ManifestSync,
    /// Begins at this byte.
    ManifestCheck(usize),
    Rename,
    ManifestName,
    Close,
}

/// A version in the making.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) manifest: Manifest,
    offsets: Vec<u64>,
    part_len: u64,
    /// Complete manifest file; there once the caller has finished.
    encoded: Option<AlignedBuffer>,
    copies: BTreeMap<CopyIndex, WriterCopy>,
    failed: Option<FailReason>,
}

#[derive(Debug, Default)]
struct WriterCopy {
    file: Option<FileId>,
    name_durable: bool,
    /// Chunks that wait for the file to exist, or for the chunks of other logs.
    queued: VecDeque<(usize, AlignedBuffer)>,
    /// Chunks written out of order, above `written`.
    ahead: BTreeSet<usize>,
    /// Chunks below are written.
    written: usize,
    syncing: bool,
    /// Chunks below are synced.
    synced: usize,
    /// Chunks below are being verified or are verified.
    verifying: usize,
    /// How many are verified.
    verified: usize,
    manifest: ManifestStage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ManifestStage {
    #[default]
    Waiting,
    Going(Option<FileId>),
    Done,
}

impl CheckpointStore {
    /// Begins a version. At most one per log is in the making.
    ///
    /// # Errors
    /// [`WriteError`]; nothing has happened then.
    pub fn begin<D: Disk>(&mut self, copies: &mut Copies<D>, begin: Begin) -> Result<Version, WriteError> {
        let log = begin.log;
        if let Some(writer) = self.writers.get(&log) {
            return Err(WriteError::Busy { log, version: writer.manifest.version });
        }
        if let Some(base) = begin.base.filter(|&base| !self.is_usable(log, base)) {
            return Err(WriteError::Base { log, base });
        }
        let highest = self.highest.entry(log).or_default();
        let version = highest.next().max(begin.not_below);
        *highest = version;
        let manifest = Manifest {
            identity: self.identity,
            log,
            version,
            position: begin.position,
            epoch: begin.epoch,
            base: begin.base,
            schema: begin.schema,
            created: begin.created,
            program: begin.program,
            chunks: Vec::new(),
        };
        let mut writer = Writer {
            manifest,
            offsets: Vec::new(),
            part_len: 0,
            encoded: None,
            copies: BTreeMap::new(),
            failed: None,
        };
        let name = file_name(log, version, FileKind::Part);
        for copy in copies.live() {
            writer.copies.insert(copy, WriterCopy::default());
            self.submit(copies, copy, &writer, Step::Create, Op::Create { name: name.clone(), len: 0 });
        }
        self.writers.insert(log, writer);
        self.advance(copies);
        Ok(version)
    }

    /// True when the log's checkpoint takes a chunk now.
    #[must_use]
    pub fn is_ready(&self, log: LogId) -> bool {
        self.writers.get(&log).is_some_and(|writer| {
            writer.encoded.is_none()
                && writer.failed.is_none()
                && writer.copies.iter().all(|(copy, state)| {
                    // Queued chunks are not in flight yet, but will be.
                    self.load.get(copy).map_or(0, |load| load.writes) + state.queued.len() < WRITES_IN_FLIGHT
                })
        })
    }

    /// True while the log has a checkpoint in the making.
    #[must_use]
    pub fn is_writing(&self, log: LogId) -> bool {
        self.writers.contains_key(&log)
    }

    /// Writes the next chunk of the part. A chunk takes whole blocks of 4 KiB on disk: fill it.
    ///
    /// # Errors
    /// [`WriteError`]; nothing has happened then.
    pub fn write_chunk<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        bytes: &[u8],
    ) -> Result<(), WriteError> {
        if bytes.is_empty() || bytes.len() > CHUNK_BYTES {
            return Err(WriteError::ChunkLength { len: bytes.len() });
        }
        if !self.writers.contains_key(&log) {
            return Err(WriteError::NotWriting { log });
        }
        if !self.is_ready(log) {
            return Err(WriteError::NotReady { log });
        }
        let Some(mut writer) = self.writers.remove(&log) else { return Err(WriteError::NotWriting { log }) };
        let chunk = Chunk { len: bytes.len() as u32, hash: xxh3(bytes) };
        let index = writer.manifest.chunks.len();
        writer.manifest.chunks.push(chunk);
        writer.offsets.push(writer.part_len);
        writer.part_len += chunk.padded() as u64;
        for (&copy, state) in &mut writer.copies {
            let mut buffer = self.spare.pop().unwrap_or_else(|| AlignedBuffer::zeroed(CHUNK_BYTES));
            buffer.set_len(chunk.padded());
            buffer[..bytes.len()].copy_from_slice(bytes);
            buffer[bytes.len()..].fill(0);
            debug_assert!(state.queued.len() < WRITES_IN_FLIGHT, "copy {copy} was not ready");
            state.queued.push_back((index, buffer));
        }
        self.writers.insert(log, writer);
        self.advance(copies);
        Ok(())
    }

    /// All chunks are given: the part is synced, read again and verified, and only then the manifest
    /// is written. [`CheckpointEvent::Written`] or [`CheckpointEvent::Failed`] follows.
    ///
    /// Call it only when the log is durable through the checkpoint's position: once the manifest has
    /// its name, recovery starts from this version and must find the log behind it.
    ///
    /// # Errors
    /// [`WriteError`]; nothing has happened then.
    pub fn finish<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        header: &[u8],
    ) -> Result<(), WriteError> {
        if header.len() > HEADER_BYTES {
            return Err(WriteError::HeaderLength { len: header.len() });
        }
        let Some(writer) = self.writers.get_mut(&log) else { return Err(WriteError::NotWriting { log }) };
        if writer.encoded.is_some() {
            return Err(WriteError::NotReady { log });
        }
        writer.encoded = Some(writer.manifest.encode(header));
        self.advance(copies);
        Ok(())
    }

    /// Gives a version in the making up. Its files are removed by the next collection.
    /// [`CheckpointEvent::Failed`] with [`FailReason::Aborted`] follows, unless the manifest is being
    /// written already: then the version may still exist after a crash, as any unacknowledged write.
    pub fn abort<D: Disk>(&mut self, copies: &mut Copies<D>, log: LogId) {
        if let Some(writer) = self.writers.get_mut(&log) {
            writer.failed.get_or_insert(FailReason::Aborted);
            self.advance(copies);
        }
    }

    /// Takes a completion of [`Owner::Checkpoint`] and goes on. Returns the first event there is;
    /// [`CheckpointStore::poll`] has the others.
    pub fn handle<D: Disk>(&mut self, copies: &mut Copies<D>, routed: Routed) -> Option<CheckpointEvent> {
        match self.tasks.remove(&(routed.copy, routed.ticket)) {
            Some(Task::Write(log, version, step)) => {
                self.settle_load(routed.copy, step);
                let live = self.writers.remove(&log);
                match live {
                    Some(mut writer) if writer.manifest.version == version => {
                        self.step_done(copies, &mut writer, routed.copy, step, routed.result);
                        self.writers.insert(log, writer);
                    }
                    other => {
                        self.writers.extend(other.map(|writer| (log, writer)));
                        self.close_orphan(copies, routed.copy, routed.result);
                    }
                }
            }
            Some(Task::Collect) => self.collect_done(copies, routed.copy, routed.result),
            None => {}
        }
        self.poll(copies)
    }

    /// The next event, after taking note of copies that were taken out.
    pub fn poll<D: Disk>(&mut self, copies: &mut Copies<D>) -> Option<CheckpointEvent> {
        self.advance(copies);
        self.events.pop_front()
    }

    pub(super) fn submit<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        copy: CopyIndex,
        writer: &Writer,
        step: Step,
        op: Op,
    ) {
        let load = self.load.entry(copy).or_default();
        match step {
            Step::Chunk(_) => load.writes += 1,
            Step::Verify(_) => load.reads += 1,
            _ => {}
        }
        let ticket = copies.submit(copy, Owner::Checkpoint, Lane::Bulk, op);
        self.tasks.insert((copy, ticket), Task::Write(writer.manifest.log, writer.manifest.version, step));
    }

    fn settle_load(&mut self, copy: CopyIndex, step: Step) {
        let load = self.load.entry(copy).or_default();
        match step {
            Step::Chunk(_) => load.writes = load.writes.saturating_sub(1),
            Step::Verify(_) => load.reads = load.reads.saturating_sub(1),
            _ => {}
        }
    }

    /// A file that was opened for a checkpoint that is given up.
    fn close_orphan<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        copy: CopyIndex,
        result: Result<Done, DiskError>,
    ) {
        if let Ok(Done::Opened { file, .. }) = result {
            copies.submit(copy, Owner::Checkpoint, Lane::Bulk, Op::Close { file });
        }
    }

    fn step_done<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        writer: &mut Writer,
        copy: CopyIndex,
        step: Step,
        result: Result<Done, DiskError>,
    ) {
        let (log, version) = (writer.manifest.log, writer.manifest.version);
        let Some(state) = writer.copies.get_mut(&copy) else {
            return self.close_orphan(copies, copy, result);
        };
        let done = match result {
            Ok(done) => done,
            Err(error) => return self.step_failed(writer, copy, step, error),
        };
        let encoded_len = writer.encoded.as_ref().map_or(0, |encoded| encoded.len());
        let temp = || file_name(log, version, FileKind::ManifestTemp);
        match (step, done) {
            (Step::Create, Done::Opened { file, .. }) => {
                state.file = Some(file);
                self.submit(copies, copy, writer, Step::PartName, Op::SyncNames);
            }
            (Step::PartName, _) => state.name_durable = true,
            (Step::Chunk(index), done) => {
                state.ahead.insert(index);
                while state.ahead.remove(&state.written) {
                    state.written += 1;
                }
                if let Done::Wrote(buffer) = done
                    && self.spare.len() < SPARE_BUFFERS
                {
                    self.spare.push(buffer);
                }
            }
            (Step::Sync(covers), _) => {
                state.syncing = false;
                state.synced = covers;
            }
            (Step::Verify(index), Done::Read(data)) => {
                if writer.manifest.chunks[index].matches(&data) {
                    state.verified += 1;
                } else {
                    writer.failed.get_or_insert(FailReason::NotVerified { copy, chunk: index });
                }
            }
            (Step::ManifestCreate, Done::Opened { file, .. }) => {
                state.manifest = ManifestStage::Going(Some(file));
                self.write_manifest(copies, writer, copy, file, 0);
            }
            (Step::ManifestWrite(end), _) => {
                let ManifestStage::Going(Some(file)) = state.manifest else { return };
                if end < encoded_len {
                    self.write_manifest(copies, writer, copy, file, end);
                } else {
                    self.submit(copies, copy, writer, Step::ManifestSync, Op::Sync { file });
                }
            }
            (Step::ManifestSync, _) => {
                let ManifestStage::Going(Some(file)) = state.manifest else { return };
                let len = CHUNK_BYTES.min(encoded_len);
                self.submit(copies, copy, writer, Step::ManifestCheck(0), Op::Read { file, offset: 0, len });
            }
            (Step::ManifestCheck(at), Done::Read(data)) => {
                let ManifestStage::Going(Some(file)) = state.manifest else { return };
                let expected =
                    writer.encoded.as_deref().and_then(|e| e.get(at..(at + CHUNK_BYTES).min(encoded_len)));
                if expected != Some(&data[..]) {
                    writer.failed.get_or_insert(FailReason::ManifestNotVerified { copy });
                    return;
                }
                let next = at + data.len();
                if next < encoded_len {
                    let op = Op::Read { file, offset: next as u64, len: CHUNK_BYTES.min(encoded_len - next) };
                    self.submit(copies, copy, writer, Step::ManifestCheck(next), op);
                } else {
                    state.manifest = ManifestStage::Going(None);
                    self.submit(copies, copy, writer, Step::Close, Op::Close { file });
                    let to = file_name(log, version, FileKind::Manifest);
                    self.submit(copies, copy, writer, Step::Rename, Op::Rename { from: temp(), to });
                }
            }
            (Step::Rename, _) => self.submit(copies, copy, writer, Step::ManifestName, Op::SyncNames),
            (Step::ManifestName, _) => state.manifest = ManifestStage::Done,
            (Step::Close, _) => {}
            (Step::Create | Step::Verify(_) | Step::ManifestCreate | Step::ManifestCheck(_), done) => {
                debug_assert!(false, "a disk answered {step:?} with {done:?}");
                let error = DiskError {
                    kind: DiskErrorKind::Io,
                    operation: format!("{step:?} on copy {copy}"),
                    detail: "the disk gave the answer to another operation".into(),
                };
                self.step_failed(writer, copy, step, error);
            }
        }
    }

    fn write_manifest<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        writer: &Writer,
        copy: CopyIndex,
        file: FileId,
        from: usize,
    ) {
        let Some(encoded) = &writer.encoded else { return };
        let end = (from + CHUNK_BYTES).min(encoded.len());
        let data = AlignedBuffer::copy_of(&encoded[from..end]);
        let op = Op::Write { file, offset: from as u64, data, durable: false };
        self.submit(copies, copy, writer, Step::ManifestWrite(end), op);
    }

    /// Whose fault is it: a full disk and a block that cannot be read cost this version, everything
    /// else costs the copy. Nothing is ever tried a second time on the same file.
    fn step_failed(&mut self, writer: &mut Writer, copy: CopyIndex, step: Step, error: DiskError) {
        let reason = match (error.kind, step) {
            (DiskErrorKind::NoSpace, _) => FailReason::NoSpace { copy, error },
            (DiskErrorKind::Exists, _) => FailReason::Exists { copy, error },
            (DiskErrorKind::Io, Step::Verify(_) | Step::ManifestCheck(_)) => {
                FailReason::Unreadable { copy, error }
            }
            _ => {
                writer.copies.remove(&copy);
                self.events.push_back(CheckpointEvent::CopyFailed { copy, error });
                return;
            }
        };
        writer.failed.get_or_insert(reason);
    }

    /// Lets every writer do what it can do now.
    fn advance<D: Disk>(&mut self, copies: &mut Copies<D>) {
        let live: BTreeSet<CopyIndex> = copies.live().collect();
        self.tasks.retain(|(copy, _), _| live.contains(copy));
        self.collect_advance(copies, &live);
        let logs: Vec<LogId> = self.writers.keys().copied().collect();
        for log in logs {
            let Some(mut writer) = self.writers.remove(&log) else { continue };
            writer.copies.retain(|copy, _| live.contains(copy));
            if writer.copies.is_empty() {
                writer.failed.get_or_insert(FailReason::NoCopyLeft);
            }
            if writer.failed.is_none() {
                self.advance_parts(copies, &mut writer);
                self.advance_manifests(copies, &mut writer);
            }
            let version = writer.manifest.version;
            if let Some(reason) = writer.failed.take() {
                self.close_part(copies, &writer);
                for kind in [FileKind::Part, FileKind::ManifestTemp, FileKind::Manifest] {
                    self.garbage.insert(file_name(log, version, kind));
                }
                self.events.push_back(CheckpointEvent::Failed { log, version, reason });
            } else if writer.copies.values().all(|state| state.manifest == ManifestStage::Done) {
                self.close_part(copies, &writer);
                self.add_version(VersionInfo::new(writer.manifest, false, 0));
                self.events.push_back(CheckpointEvent::Written { log, version });
            } else {
                self.writers.insert(log, writer);
            }
        }
    }

    fn close_part<D: Disk>(&mut self, copies: &mut Copies<D>, writer: &Writer) {
        for (&copy, state) in &writer.copies {
            let manifest = match state.manifest {
                ManifestStage::Going(file) => file,
                ManifestStage::Waiting | ManifestStage::Done => None,
            };
            for file in state.file.into_iter().chain(manifest) {
                self.submit(copies, copy, writer, Step::Close, Op::Close { file });
            }
        }
    }

    fn advance_parts<D: Disk>(&mut self, copies: &mut Copies<D>, writer: &mut Writer) {
        let mut states = std::mem::take(&mut writer.copies);
        let (total, finishing) = (writer.manifest.chunks.len(), writer.encoded.is_some());
        for (&copy, state) in &mut states {
            let Some(file) = state.file else { continue };
            while self.load.get(&copy).is_none_or(|load| load.writes < WRITES_IN_FLIGHT)
                && let Some((index, data)) = state.queued.pop_front()
            {
                let op = Op::Write { file, offset: writer.offsets[index], data, durable: false };
                self.submit(copies, copy, writer, Step::Chunk(index), op);
            }
            let unsynced = state.written - state.synced;
            let last = finishing && state.written == total;
            if !state.syncing && (unsynced >= CHUNKS_PER_SYNC || (last && unsynced > 0)) {
                state.syncing = true;
                self.submit(copies, copy, writer, Step::Sync(state.written), Op::Sync { file });
            }
            while state.verifying < state.synced
                && self.load.get(&copy).is_none_or(|load| load.reads < READS_IN_FLIGHT)
            {
                let index = state.verifying;
                state.verifying += 1;
                let len = writer.manifest.chunks[index].padded();
                debug_assert!(len.is_multiple_of(BLOCK), "a chunk takes whole blocks");
                let op = Op::Read { file, offset: writer.offsets[index], len };
                self.submit(copies, copy, writer, Step::Verify(index), op);
            }
        }
        writer.copies = states;
    }

    fn advance_manifests<D: Disk>(&mut self, copies: &mut Copies<D>, writer: &mut Writer) {
        let total = writer.manifest.chunks.len();
        let verified = writer.copies.values().all(|state| state.name_durable && state.verified == total);
        if writer.encoded.is_none() || !verified {
            return;
        }
        let name = file_name(writer.manifest.log, writer.manifest.version, FileKind::ManifestTemp);
        let mut states = std::mem::take(&mut writer.copies);
        for (&copy, state) in states.iter_mut().filter(|(_, state)| state.manifest == ManifestStage::Waiting)
        {
            state.manifest = ManifestStage::Going(None);
            let op = Op::Create { name: name.clone(), len: 0 };
            self.submit(copies, copy, writer, Step::ManifestCreate, op);
        }
        writer.copies = states;
    }
}
