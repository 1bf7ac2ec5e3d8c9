//! Reading a version, and scrubbing: bytes are verified before anybody sees them.
//!
//! Decides which copy is right (the one whose chunk has the manifest's hash) and rewrites the other.
//! Never hands on a chunk that did not match; never calls a version damaged because a disk is gone.
//! Waits for the disk: a restore has nothing better to do, and a scrub step is one chunk.

use super::manifest::{FileKind, HEADER_BYTES, Manifest, ManifestError, file_name};
use super::versions::VersionState;
use super::{CHUNK_BYTES, CheckpointEvent, CheckpointStore};
use crate::copies::{Copies, CopyIndex, Owner};
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op, Ticket};
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::id::{LogId, Version};
use rallypoint_base::limits::BLOCK;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use thiserror::Error;

/// Chunks in flight while a version is read, over all copies.
const READ_DEPTH: usize = 8;

/// Why a version could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No such version.
    #[error("there is no checkpoint {version} of {log}; `rallypoint checkpoint list` shows those there are")]
    Unknown {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// A chunk is bad on every copy. The version is not used from now on.
    #[error("checkpoint {version} of {log} is bad at chunk {chunk} on every copy: use an older version")]
    Damaged {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// Which chunk.
        chunk: usize,
    },
    /// The manifest, which was sound at opening, no longer is on any copy.
    #[error("the manifest of checkpoint {version} of {log} is bad on every copy: use an older version")]
    HeaderDamaged {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// The disks are gone; this says nothing about the version.
    #[error("checkpoint {version} of {log} could not be read: {error}")]
    Disk {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// What the last disk said.
        error: DiskError,
    },
    /// The reader refused a chunk.
    #[error("checkpoint {version} of {log} was refused by its reader: {why}")]
    Refused {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// What the reader said.
        why: String,
    },
}

/// Where scrubbing stands. Begins at the first version, ends after the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubCursor {
    at: Option<(LogId, Version, usize)>,
}

/// Why one copy cannot give a chunk.
#[derive(Clone, Debug)]
pub(super) enum Bad {
    Disk(DiskError),
    Content,
    Missing,
}

/// The open part of one version on each copy that has it.
pub(super) type PartFiles = BTreeMap<CopyIndex, FileId>;

impl CheckpointStore {
    /// Reads one version's part (for a restore: every version of [`CheckpointStore::chain`] in turn)
    /// and hands it on chunk by chunk, as it was written. A chunk that one copy has wrong comes from
    /// another, and the wrong one is repaired ([`CheckpointEvent::Repaired`] from `poll`).
    ///
    /// # Errors
    /// [`ReadError`]; the chunks handed on until then are right, but not all.
    pub fn read<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), ReadError> {
        let info = self.version(log, version).ok_or(ReadError::Unknown { log, version })?;
        let manifest = info.manifest.clone();
        let files = open_part(copies, log, version);
        let mut flight = VecDeque::new();
        let result = self.read_chunks(copies, &manifest, &files, &mut flight, sink);
        for (copy, ticket) in flight {
            // Nobody else may meet what an early end leaves behind.
            drop(copies.finish(copy, ticket));
        }
        close_part(copies, &files);
        result
    }

    fn read_chunks<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        manifest: &Manifest,
        files: &PartFiles,
        flight: &mut VecDeque<(CopyIndex, Ticket)>,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), ReadError> {
        let (log, version) = (manifest.log, manifest.version);
        let offsets = manifest.offsets();
        let from: Vec<(CopyIndex, FileId)> = files.iter().map(|(&copy, &file)| (copy, file)).collect();
        let mut next = 0;
        for (index, chunk) in manifest.chunks.iter().enumerate() {
            // Copies take turns: two disks read twice as fast, and what one has wrong is found.
            while !from.is_empty() && next < manifest.chunks.len() && flight.len() < READ_DEPTH {
                let (copy, file) = from[next % from.len()];
                let op = Op::Read { file, offset: offsets[next], len: manifest.chunks[next].padded() };
                flight.push_back((copy, copies.submit(copy, Owner::Run, Lane::Bulk, op)));
                next += 1;
            }
            let first = flight.pop_front().map(|(copy, ticket)| (copy, copies.finish(copy, ticket)));
            let data = match first {
                Some((_, Ok(Done::Read(data)))) if chunk.matches(&data) => data,
                Some((copy, result)) => {
                    let bad = result.map_or_else(Bad::Disk, |_| Bad::Content);
                    self.chunk_elsewhere(copies, manifest, files, index, offsets[index], (copy, bad))?
                }
                None => {
                    self.chunk_elsewhere(copies, manifest, files, index, offsets[index], (0, Bad::Missing))?
                }
            };
            sink(&data[..chunk.len as usize]).map_err(|why| ReadError::Refused { log, version, why })?;
        }
        Ok(())
    }

    /// Reads some bytes of one version's part, counted in its content without padding; only the chunks
    /// that hold them are read, and checked whole. What lies beyond the end is left out.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_range<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
        range: Range<u64>,
    ) -> Result<Vec<u8>, ReadError> {
        let info = self.version(log, version).ok_or(ReadError::Unknown { log, version })?;
        let manifest = info.manifest.clone();
        let offsets = manifest.offsets();
        let files = open_part(copies, log, version);
        let (mut out, mut at) = (Vec::new(), 0_u64);
        let mut result = Ok(());
        for (index, chunk) in manifest.chunks.iter().enumerate() {
            let (start, end) = (at, at + u64::from(chunk.len));
            at = end;
            if end <= range.start || start >= range.end {
                continue;
            }
            let first = files.first_key_value().map(|(&copy, &file)| (copy, file));
            let read = match first {
                Some((copy, file)) => read_chunk(copies, copy, file, &manifest, index, offsets[index])
                    .map_err(|bad| (copy, bad)),
                None => Err((0, Bad::Missing)),
            };
            let read = read
                .or_else(|bad| self.chunk_elsewhere(copies, &manifest, &files, index, offsets[index], bad));
            let data = match read {
                Ok(data) => data,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            let inner = range.start.max(start) - start..range.end.min(end) - start;
            out.extend_from_slice(&data[inner.start as usize..inner.end as usize]);
        }
        close_part(copies, &files);
        result.map(|()| out)
    }

    /// One copy has the chunk wrong: takes it from another and repairs.
    fn chunk_elsewhere<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        manifest: &Manifest,
        files: &PartFiles,
        index: usize,
        offset: u64,
        (bad_copy, first_bad): (CopyIndex, Bad),
    ) -> Result<AlignedBuffer, ReadError> {
        let (log, version) = (manifest.log, manifest.version);
        let mut bad = BTreeMap::from([(bad_copy, first_bad)]);
        for (&copy, &file) in files.iter().filter(|&(&copy, _)| copy != bad_copy) {
            match read_chunk(copies, copy, file, manifest, index, offset) {
                Ok(data) => {
                    for &copy in bad.keys() {
                        if let Some(&file) = files.get(&copy) {
                            self.repair_chunk(copies, copy, file, manifest, index, offset, &data);
                        }
                    }
                    return Ok(data);
                }
                Err(why) => drop(bad.insert(copy, why)),
            }
        }
        for why in bad.into_values() {
            if let Bad::Disk(error) = why
                && error.kind != DiskErrorKind::Io
            {
                return Err(ReadError::Disk { log, version, error });
            }
        }
        self.condemn(log, version, index);
        Err(ReadError::Damaged { log, version, chunk: index })
    }

    fn condemn(&mut self, log: LogId, version: Version, chunk: usize) {
        if let Some(info) = self.version_mut(log, version)
            && info.state != VersionState::Damaged
        {
            info.state = VersionState::Damaged;
            self.events.push_back(CheckpointEvent::Damaged { log, version, chunk });
        }
    }

    /// Overwrites a chunk that is proven bad with its proven bytes, and reads it again. A power cut in
    /// between leaves it bad, and it is repaired again.
    pub(super) fn repair_chunk<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        copy: CopyIndex,
        file: FileId,
        manifest: &Manifest,
        index: usize,
        offset: u64,
        good: &[u8],
    ) {
        let chunk = manifest.chunks[index];
        let mut data = AlignedBuffer::zeroed(chunk.padded());
        data[..chunk.len as usize].copy_from_slice(&good[..chunk.len as usize]);
        let (log, version) = (manifest.log, manifest.version);
        let written = copies.run(copy, Lane::Bulk, Op::Write { file, offset, data, durable: true });
        let kept = written.and_then(|_| match read_chunk(copies, copy, file, manifest, index, offset) {
            Ok(_) => Ok(()),
            Err(Bad::Disk(error)) => Err(error),
            Err(Bad::Content | Bad::Missing) => Err(DiskError {
                kind: DiskErrorKind::Io,
                operation: format!("repairing chunk {index} of {log} {version} on copy {copy}"),
                detail: "the disk did not keep what was written to it".into(),
            }),
        });
        self.events.push_back(match kept {
            Ok(()) => CheckpointEvent::Repaired { copy, log, version, chunk: index },
            Err(error) => CheckpointEvent::CopyFailed { copy, error },
        });
    }

    /// The engine's header of a version. A manifest that one copy has wrong is repaired.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_header<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
    ) -> Result<Vec<u8>, ReadError> {
        let info = self.version(log, version).ok_or(ReadError::Unknown { log, version })?;
        let known = info.manifest.clone();
        let mut gone = None;
        for copy in copies.live() {
            match load_manifest(copies, copy, log, version) {
                Ok(encoded) => {
                    if let Ok((manifest, header)) = Manifest::decode(&encoded)
                        && manifest == known
                    {
                        return Ok(header.to_vec());
                    }
                }
                Err(error) if error.kind == DiskErrorKind::Io || error.kind == DiskErrorKind::NotFound => {}
                Err(error) => gone = Some(error),
            }
        }
        match gone {
            Some(error) => Err(ReadError::Disk { log, version, error }),
            None => Err(ReadError::HeaderDamaged { log, version }),
        }
    }

    /// Checks the next chunk (and, before the first one, the manifest) of some version on *every*
    /// copy and repairs what is bad there. False when all versions have been checked since the cursor
    /// was new. What was found comes from `poll`.
    pub fn scrub<D: Disk>(&mut self, copies: &mut Copies<D>, cursor: &mut ScrubCursor) -> bool {
        let Some((log, version, index)) = self.scrub_place(*cursor) else {
            *cursor = ScrubCursor::default();
            return false;
        };
        let Some(manifest) = self.version(log, version).map(|info| info.manifest.clone()) else {
            return false;
        };
        if index == 0 {
            // Counts as the version's first step; a missing part is brought back too.
            for finding in self.repair_version(copies, log, version, &BTreeSet::new()) {
                self.events.extend(finding.into_event());
            }
        }
        if index < manifest.chunks.len() {
            let offset = manifest.offsets()[index];
            let files = open_part(copies, log, version);
            let (mut good, mut bad, mut gone) = (None, Vec::new(), false);
            for (&copy, &file) in &files {
                match read_chunk(copies, copy, file, &manifest, index, offset) {
                    Ok(data) => good = Some(data),
                    Err(Bad::Disk(error)) if error.kind != DiskErrorKind::Io => {
                        gone = true;
                        self.events.push_back(CheckpointEvent::CopyFailed { copy, error });
                    }
                    Err(_) => bad.push((copy, file)),
                }
            }
            match good {
                Some(good) => {
                    for (copy, file) in bad {
                        self.repair_chunk(copies, copy, file, &manifest, index, offset, &good);
                    }
                }
                None if gone => {}
                None => self.condemn(log, version, index),
            }
            close_part(copies, &files);
        }
        cursor.at = Some((log, version, index + 1));
        true
    }

    fn scrub_place(&self, cursor: ScrubCursor) -> Option<(LogId, Version, usize)> {
        let mut all = self.logs.values().flatten().filter(|info| info.state != VersionState::Damaged);
        let Some((log, version, index)) = cursor.at else {
            return all.next().map(|info| (info.manifest.log, info.manifest.version, 0));
        };
        let here = self.version(log, version).filter(|info| info.state != VersionState::Damaged);
        if here.is_some_and(|info| index < info.manifest.chunks.len()) {
            return Some((log, version, index));
        }
        let key = |info: &&super::VersionInfo| (info.manifest.log, info.manifest.version) > (log, version);
        all.find(key).map(|info| (info.manifest.log, info.manifest.version, 0))
    }
}

/// Opens a version's part on every copy that has it.
pub(super) fn open_part<D: Disk>(copies: &mut Copies<D>, log: LogId, version: Version) -> PartFiles {
    let mut files = PartFiles::new();
    for copy in copies.live() {
        let name = file_name(log, version, FileKind::Part);
        if let Ok(Done::Opened { file, .. }) = copies.run(copy, Lane::Bulk, Op::Open { name }) {
            files.insert(copy, file);
        }
    }
    files
}

/// Closes what [`open_part`] opened. An error here changes nothing that was read.
pub(super) fn close_part<D: Disk>(copies: &mut Copies<D>, files: &PartFiles) {
    for (&copy, &file) in files {
        drop(copies.run(copy, Lane::Bulk, Op::Close { file }));
    }
}

pub(super) fn read_chunk<D: Disk>(
    copies: &mut Copies<D>,
    copy: CopyIndex,
    file: FileId,
    manifest: &Manifest,
    index: usize,
    offset: u64,
) -> Result<AlignedBuffer, Bad> {
    let chunk = manifest.chunks[index];
    match copies.run(copy, Lane::Bulk, Op::Read { file, offset, len: chunk.padded() }) {
        Ok(Done::Read(data)) if chunk.matches(&data) => Ok(data),
        Ok(_) => Err(Bad::Content),
        Err(error) => Err(Bad::Disk(error)),
    }
}

/// The manifest file of one copy, not yet checked.
pub(super) fn load_manifest<D: Disk>(
    copies: &mut Copies<D>,
    copy: CopyIndex,
    log: LogId,
    version: Version,
) -> Result<Vec<u8>, DiskError> {
    let name = file_name(log, version, FileKind::Manifest);
    let opened = copies.run(copy, Lane::Bulk, Op::Open { name })?;
    let Done::Opened { file, len } = opened else { return Ok(Vec::new()) };
    // Whatever a damaged directory claims, no manifest of ours is longer than this.
    let longest = (2 * HEADER_BYTES) as u64;
    let len = usize::try_from(len.min(longest)).unwrap_or(0);
    let mut bytes = Vec::with_capacity(len);
    let mut result = Ok(());
    while bytes.len() < len {
        let piece = CHUNK_BYTES.min((len - bytes.len()).next_multiple_of(BLOCK));
        match copies.run(copy, Lane::Bulk, Op::Read { file, offset: bytes.len() as u64, len: piece }) {
            Ok(Done::Read(data)) if !data.is_empty() => bytes.extend_from_slice(&data),
            Ok(_) => break,
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    drop(copies.run(copy, Lane::Bulk, Op::Close { file }));
    result.map(|()| bytes)
}

/// Decodes a manifest and checks that it is what its name and place say.
pub(super) fn check_manifest(
    encoded: &[u8],
    log: LogId,
    version: Version,
) -> Result<Manifest, ManifestError> {
    let (manifest, _) = Manifest::decode(encoded)?;
    if (manifest.log, manifest.version) != (log, version) {
        return Err(ManifestError::Damaged("another version's manifest under this name"));
    }
    Ok(manifest)
}
