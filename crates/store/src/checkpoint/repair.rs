//! Making a version whole again on a copy that lacks some of it.
//!
//! Decides the order (part first, manifest last, each under another name until it is synced), so that
//! a power cut at any point leaves what was there, and the next opening repairs again. Never takes
//! bytes that the manifest's hashes do not prove.

use super::CheckpointStore;
use super::manifest::{CHUNK_BYTES, FileKind, Manifest, file_name};
use super::read::{Bad, PartFiles, check_manifest, close_part, load_manifest, open_part, read_chunk};
use super::scan::Finding;
use crate::copies::{Copies, CopyIndex};
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op};
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::id::{LogId, Version};
use std::collections::BTreeSet;

impl CheckpointStore {
    /// Brings manifest and part of one version back on every copy (save those to skip) that lacks
    /// them. Where the manifest is bad, every chunk of the part is checked too.
    pub(super) fn repair_version<D: Disk>(
        &self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
        skip: &BTreeSet<CopyIndex>,
    ) -> Vec<Finding> {
        let Some(info) = self.version(log, version) else { return Vec::new() };
        let manifest = info.manifest.clone();
        let mut findings = Vec::new();
        let mut encoded = None;
        let (mut lacking, mut skip) = (Vec::new(), skip.clone());
        for copy in copies.live().filter(|copy| !skip.contains(copy)).collect::<Vec<_>>() {
            match load_manifest(copies, copy, log, version) {
                Ok(bytes) if check_manifest(&bytes, log, version).is_ok_and(|found| found == manifest) => {
                    encoded.get_or_insert(bytes);
                }
                Ok(_) => lacking.push(copy),
                Err(e) if matches!(e.kind, DiskErrorKind::NotFound | DiskErrorKind::Io) => lacking.push(copy),
                Err(error) => {
                    skip.insert(copy);
                    findings.push(Finding::CopyFailed { copy, error });
                }
            }
        }
        let Some(encoded) = encoded else { return findings };
        let files = open_part(copies, log, version);
        for copy in copies.live().filter(|copy| !skip.contains(copy)) {
            let manifest_lacks = lacking.contains(&copy);
            let result =
                self.repair_part(copies, &manifest, &files, copy, manifest_lacks).and_then(|chunks| {
                    if manifest_lacks {
                        write_manifest(copies, copy, &manifest, &encoded)?;
                    }
                    Ok(chunks)
                });
            match result {
                Ok(chunks) => {
                    if chunks > 0 {
                        findings.push(Finding::RepairedPart { copy, log, version, chunks });
                    }
                    if manifest_lacks {
                        findings.push(Finding::RepairedManifest { copy, log, version });
                    }
                }
                Err(Trouble::NoSource) => findings.push(Finding::NotRepaired {
                    copy,
                    log,
                    version,
                    why: "no copy has every chunk".into(),
                }),
                Err(Trouble::Disk(error)) if error.kind == DiskErrorKind::NoSpace => {
                    findings.push(Finding::NotRepaired { copy, log, version, why: error.to_string() });
                }
                Err(Trouble::Disk(error)) => findings.push(Finding::CopyFailed { copy, error }),
            }
        }
        close_part(copies, &files);
        findings
    }

    /// Number of chunks that had to be written.
    fn repair_part<D: Disk>(
        &self,
        copies: &mut Copies<D>,
        manifest: &Manifest,
        files: &PartFiles,
        target: CopyIndex,
        check_chunks: bool,
    ) -> Result<usize, Trouble> {
        let offsets = manifest.offsets();
        let Some(&file) = files.get(&target) else {
            return copy_part(copies, manifest, files, target, &offsets);
        };
        let mut repaired = 0;
        let last = manifest.chunks.len().saturating_sub(1);
        for (index, &offset) in offsets.iter().enumerate() {
            // A part that lacks its end is noticed by its last chunk.
            if !check_chunks && index != last {
                continue;
            }
            match read_chunk(copies, target, file, manifest, index, offset) {
                Ok(_) => continue,
                Err(Bad::Disk(error)) if error.kind != DiskErrorKind::Io => return Err(Trouble::Disk(error)),
                Err(_) => {}
            }
            let good = chunk_of_another(copies, manifest, files, target, index, offset)?;
            write_chunk(copies, target, file, manifest, index, offset, &good, true)?;
            match read_chunk(copies, target, file, manifest, index, offset) {
                Ok(_) => repaired += 1,
                Err(Bad::Disk(error)) => return Err(Trouble::Disk(error)),
                Err(_) => return Err(Trouble::Disk(not_kept(copies, target))),
            }
            if !check_chunks {
                // Its end was bad: what else was is not known until everything has been looked at.
                return Ok(repaired + self.repair_part(copies, manifest, files, target, true)?);
            }
        }
        Ok(repaired)
    }
}

enum Trouble {
    NoSource,
    Disk(DiskError),
}

impl From<DiskError> for Trouble {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// Writes a whole part under another name and renames it once it is synced and read again.
fn copy_part<D: Disk>(
    copies: &mut Copies<D>,
    manifest: &Manifest,
    files: &PartFiles,
    target: CopyIndex,
    offsets: &[u64],
) -> Result<usize, Trouble> {
    let (log, version) = (manifest.log, manifest.version);
    let temp = file_name(log, version, FileKind::PartTemp);
    let file = create_anew(copies, target, &temp)?;
    for (index, &offset) in offsets.iter().enumerate() {
        let good = chunk_of_another(copies, manifest, files, target, index, offset)?;
        write_chunk(copies, target, file, manifest, index, offset, &good, false)?;
    }
    copies.run(target, Lane::Bulk, Op::Sync { file })?;
    for (index, &offset) in offsets.iter().enumerate() {
        match read_chunk(copies, target, file, manifest, index, offset) {
            Ok(_) => {}
            Err(Bad::Disk(error)) => return Err(Trouble::Disk(error)),
            Err(_) => return Err(Trouble::Disk(not_kept(copies, target))),
        }
    }
    copies.run(target, Lane::Bulk, Op::Close { file })?;
    let to = file_name(log, version, FileKind::Part);
    copies.run(target, Lane::Bulk, Op::Rename { from: temp, to })?;
    copies.run(target, Lane::Bulk, Op::SyncNames)?;
    // An empty part has no chunks, but was missing all the same.
    Ok(offsets.len().max(1))
}

fn chunk_of_another<D: Disk>(
    copies: &mut Copies<D>,
    manifest: &Manifest,
    files: &PartFiles,
    target: CopyIndex,
    index: usize,
    offset: u64,
) -> Result<AlignedBuffer, Trouble> {
    files
        .iter()
        .filter(|&(&copy, _)| copy != target)
        .find_map(|(&copy, &file)| read_chunk(copies, copy, file, manifest, index, offset).ok())
        .ok_or(Trouble::NoSource)
}

fn write_chunk<D: Disk>(
    copies: &mut Copies<D>,
    target: CopyIndex,
    file: FileId,
    manifest: &Manifest,
    index: usize,
    offset: u64,
    good: &[u8],
    durable: bool,
) -> Result<(), DiskError> {
    let chunk = manifest.chunks[index];
    let mut data = AlignedBuffer::zeroed(chunk.padded());
    data[..chunk.len as usize].copy_from_slice(&good[..chunk.len as usize]);
    copies.run(target, Lane::Bulk, Op::Write { file, offset, data, durable }).map(drop)
}

/// Writes a manifest file and waits until it and its name are durable.
fn write_manifest<D: Disk>(
    copies: &mut Copies<D>,
    copy: CopyIndex,
    manifest: &Manifest,
    encoded: &[u8],
) -> Result<(), DiskError> {
    let temp = file_name(manifest.log, manifest.version, FileKind::ManifestTemp);
    let file = create_anew(copies, copy, &temp)?;
    for (index, piece) in encoded.chunks(CHUNK_BYTES).enumerate() {
        let data = AlignedBuffer::copy_of(piece);
        let offset = (index * CHUNK_BYTES) as u64;
        copies.run(copy, Lane::Bulk, Op::Write { file, offset, data, durable: false })?;
    }
    copies.run(copy, Lane::Bulk, Op::Sync { file })?;
    copies.run(copy, Lane::Bulk, Op::Close { file })?;
    let to = file_name(manifest.log, manifest.version, FileKind::Manifest);
    copies.run(copy, Lane::Bulk, Op::Rename { from: temp, to })?;
    copies.run(copy, Lane::Bulk, Op::SyncNames).map(drop)
}

/// Creates a file; what an earlier attempt left under the name is removed.
fn create_anew<D: Disk>(copies: &mut Copies<D>, copy: CopyIndex, name: &str) -> Result<FileId, DiskError> {
    match copies.run(copy, Lane::Bulk, Op::Remove { name: name.into() }) {
        Err(error) if error.kind != DiskErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match copies.run(copy, Lane::Bulk, Op::Create { name: name.into(), len: 0 })? {
        Done::Opened { file, .. } => Ok(file),
        _ => Err(DiskError {
            kind: DiskErrorKind::Io,
            operation: format!("creating {name} on copy {copy}"),
            detail: "the disk gave the answer to another operation".into(),
        }),
    }
}

fn not_kept<D: Disk>(copies: &Copies<D>, copy: CopyIndex) -> DiskError {
    DiskError {
        kind: DiskErrorKind::Io,
        operation: format!("repairing a checkpoint on {}", copies.disk(copy).name()),
        detail: "the disk did not keep what was written to it".into(),
    }
}
