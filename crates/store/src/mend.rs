//! Repairing a store that is not in use: crosswise between the copies in sync, then bringing back
//! the copies that are not.
//!
//! Decides which copies are written anew as a whole, and in which order. Never touches a directory of
//! another store, and never lets a copy that is half written look like a whole one.
//!
//! The order for a copy that returns: a superblock that says it is *not* in sync, all files, read
//! back and compared, their names, and last the superblocks of all copies with the larger set. So a
//! crash anywhere leaves a copy that refuses to be opened alone, and mending again begins anew.
//!
//! Source: Lampson and Sturgis 1979; docs/DECISIONS/0001; docs/FAULTS.md, rows 13 and 14.

use crate::copies::CopyIndex;
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op};
use crate::error::StoreError;
use crate::journal::parse_segment_name;
use crate::mirror::{Mirror, MountRules, Outsider, protocol_error};
use crate::recovery::{RecoverError, RecoveryReport};
use crate::store::{OpenOptions, Options, Store};
use crate::superblock::{FILE, FILE_BYTES, SLOTS};
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::limits::BLOCK;
use std::convert::Infallible;

const PIECE: usize = 1 << 20;

/// How to mend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MendOptions {
    /// Go on although a copy of the in-sync set is absent (lost for good, or replaced by an empty
    /// directory).
    pub degraded: bool,
    /// After a split brain: the number of the copy whose history counts. The other is overwritten.
    pub keep: Option<u8>,
}

/// What was mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MendReport {
    /// What recovery of the in-sync copies repaired, cut, and could not give back.
    pub journal: RecoveryReport,
    /// Copies that were written anew and are in sync again, with their directories.
    pub returned: Vec<(CopyIndex, String)>,
    /// Copies that could not be brought back, with the reason.
    pub failed: Vec<(CopyIndex, StoreError)>,
    /// Bytes copied.
    pub copied: u64,
    /// Numbers of the copies in sync now.
    pub in_sync: Vec<u8>,
}

impl MendReport {
    /// Something is lost for good, or a copy could not be brought back.
    #[must_use]
    pub fn is_beyond_repair(&self) -> bool {
        !self.journal.lost.is_empty() || !self.failed.is_empty()
    }
}

/// Mends the store on these disks, which nobody else may have open.
///
/// # Errors
/// [`StoreError`] when there is no store to start from.
pub fn mend<D: Disk>(disks: Vec<D>, options: MendOptions) -> Result<MendReport, StoreError> {
    let open = OpenOptions { read_only: false, degraded: options.degraded, options: Options::default() };
    let rules = MountRules { read_only: false, degraded: options.degraded, keep: options.keep };
    let mounted = Store::mount_by(disks, open, rules)?;
    let (mut store, journal) = match mounted.recover::<Infallible>(&mut |_| Ok(())) {
        Ok(recovered) => recovered,
        Err(RecoverError::Store(error)) => return Err(error),
        Err(RecoverError::Sink(never)) => match never {},
    };
    let mut report =
        MendReport { journal, returned: Vec::new(), failed: Vec::new(), copied: 0, in_sync: Vec::new() };
    let mirror = &mut store.mirror;
    if report.journal.lost.is_empty() {
        for (copy, why) in mirror.outsiders.clone() {
            match bring_back(mirror, copy, &why) {
                Ok(copied) => {
                    report.copied += copied;
                    report.returned.push((copy, mirror.place(copy)));
                }
                Err(error) => {
                    mirror.copies.take_out(copy);
                    report.failed.push((copy, error));
                }
            }
        }
    }
    report.in_sync = mirror.copies.live().filter_map(|copy| mirror.numbers[copy]).collect();
    Ok(report)
}

fn free_number<D: Disk>(mirror: &Mirror<D>) -> Option<u8> {
    (0..mirror.state.copies).find(|number| !mirror.numbers.contains(&Some(*number)))
}

fn bring_back<D: Disk>(mirror: &mut Mirror<D>, copy: CopyIndex, why: &Outsider) -> Result<u64, StoreError> {
    let place = mirror.place(copy);
    let failed = |error| StoreError::Disk { place: place.clone(), error };
    let number = match why {
        Outsider::Stale { number, .. } => Some(*number),
        Outsider::Empty | Outsider::Unreadable(_) => free_number(mirror),
    };
    let Some(number) = number else {
        let found = format!("a further copy; the store is meant to have {}", mirror.state.copies);
        return Err(StoreError::NotEmpty { place, found });
    };
    let Some(source) = mirror.copies.live().next() else {
        return Err(StoreError::NoCopyLeft { place, error: protocol_error("every copy") });
    };
    let names = list(mirror, copy).map_err(failed)?;
    if *why == Outsider::Empty
        && let Some((found, _)) = names.iter().find(|(name, _)| name != "lock")
    {
        return Err(StoreError::NotEmpty { place, found: found.clone() });
    }
    mirror.copies.bring_in(copy);
    mirror.numbers[copy] = Some(number);
    if mirror.files[copy].is_none() {
        let op = if names.iter().any(|(name, _)| name == FILE) {
            Op::Open { name: FILE.into() }
        } else {
            Op::Create { name: FILE.into(), len: FILE_BYTES as u64 }
        };
        mirror.files[copy] = Some(opened(mirror, copy, op).map_err(failed)?.0);
        mirror.copies.run(copy, Lane::Bulk, Op::SyncNames).map_err(failed)?;
    }
    // From here on the copy says of itself that it is not in sync.
    for slot in 0..SLOTS {
        let op = mirror.slot_write(copy, slot).ok_or_else(|| failed(protocol_error(FILE)))?;
        mirror.copies.run(copy, Lane::Bulk, op).map_err(failed)?;
    }
    for (name, _) in names.into_iter().filter(|(name, _)| name != FILE && name != "lock") {
        mirror.copies.run(copy, Lane::Bulk, Op::Remove { name }).map_err(failed)?;
    }
    let from = mirror.place(source);
    let files = list(mirror, source).map_err(|error| StoreError::Disk { place: from.clone(), error })?;
    let (first, last) = (mirror.state.first, mirror.state.last);
    let mut copied = 0;
    for (name, len) in files {
        let named =
            parse_segment_name(&name).is_none_or(|generation| generation >= first && generation <= last);
        if name == FILE || name == "lock" || !named {
            continue;
        }
        copy_file(mirror, source, copy, &name, len)?;
        copied += len;
    }
    mirror.copies.run(copy, Lane::Bulk, Op::SyncNames).map_err(failed)?;
    let dropped = mirror.publish_membership()?;
    match dropped.into_iter().find(|&(at, _)| at == copy) {
        Some((_, error)) => Err(failed(error)),
        None => Ok(copied),
    }
}

fn list<D: Disk>(mirror: &mut Mirror<D>, copy: CopyIndex) -> Result<Vec<(String, u64)>, DiskError> {
    // The copy may be out; listing writes nothing.
    mirror.copies.bring_in(copy);
    match mirror.copies.run(copy, Lane::Bulk, Op::List)? {
        Done::Names(names) => Ok(names),
        _ => Err(protocol_error("the directory")),
    }
}

fn opened<D: Disk>(mirror: &mut Mirror<D>, copy: CopyIndex, op: Op) -> Result<(FileId, u64), DiskError> {
    match mirror.copies.run(copy, Lane::Bulk, op)? {
        Done::Opened { file, len } => Ok((file, len)),
        _ => Err(protocol_error("a file")),
    }
}

fn read<D: Disk>(
    mirror: &mut Mirror<D>,
    copy: CopyIndex,
    file: FileId,
    offset: u64,
    len: usize,
) -> Result<AlignedBuffer, StoreError> {
    let place = mirror.place(copy);
    match mirror.copies.run(copy, Lane::Bulk, Op::Read { file, offset, len }) {
        Ok(Done::Read(mut data)) => {
            // The end of a file of odd length: direct IO writes whole blocks only.
            let there = data.len().min(len);
            data.set_len(len);
            data[there..].fill(0);
            Ok(data)
        }
        Ok(_) => Err(StoreError::Disk { place, error: protocol_error("a file") }),
        Err(error) => Err(StoreError::Disk { place, error }),
    }
}

/// Copies one file, padded with zeros to whole blocks, makes it durable, reads it back and compares.
fn copy_file<D: Disk>(
    mirror: &mut Mirror<D>,
    source: CopyIndex,
    target: CopyIndex,
    name: &str,
    len: u64,
) -> Result<(), StoreError> {
    let at = |mirror: &Mirror<D>, copy, error| StoreError::Disk { place: mirror.place(copy), error };
    let (from, _) =
        opened(mirror, source, Op::Open { name: name.into() }).map_err(|error| at(mirror, source, error))?;
    let (to, _) = opened(mirror, target, Op::Create { name: name.into(), len: 0 })
        .map_err(|error| at(mirror, target, error))?;
    for verifying in [false, true] {
        let mut offset = 0;
        while offset < len {
            let piece = PIECE.min((len - offset) as usize).next_multiple_of(BLOCK);
            let data = read(mirror, source, from, offset, piece)?;
            if verifying {
                let back = read(mirror, target, to, offset, piece)?;
                if back != data {
                    let error = DiskError {
                        kind: DiskErrorKind::Io,
                        operation: format!("reading back {name} at {offset}"),
                        detail: "the disk gives back other bytes than were written".into(),
                    };
                    return Err(at(mirror, target, error));
                }
            } else {
                let op = Op::Write { file: to, offset, data, durable: false };
                mirror.copies.run(target, Lane::Bulk, op).map_err(|error| at(mirror, target, error))?;
            }
            offset += piece as u64;
        }
        if !verifying {
            mirror
                .copies
                .run(target, Lane::Bulk, Op::Sync { file: to })
                .map_err(|error| at(mirror, target, error))?;
        }
    }
    for (copy, file) in [(source, from), (target, to)] {
        mirror.copies.run(copy, Lane::Bulk, Op::Close { file }).map_err(|error| at(mirror, copy, error))?;
    }
    Ok(())
}
