//! The superblock: who this journal directory is, which copies are in sync, where the journal begins.
//!
//! Decides the bytes of one slot, and which slot of a copy counts: the highest sound one. Never
//! decides membership (the mirror does) and never touches a disk.
//!
//! Invariants:
//! - A slot is 16 KiB under one checksum; 4 slots are written one after the other, each durable
//!   before the next, so a crash tears at most one and the others hold the old or the new content.
//! - A change counts as made only when every slot of every in-sync copy holds it, and a mount makes
//!   all slots equal to the highest before it reads anything else. So once a state was *seen*, every
//!   slot holds it or a later one, and three of four slots may rot without un-happening it.
//! - `first` and `last` name every segment file that may hold a needed block. A segment is named
//!   before its first block is written and un-named before its file is used again.
//!
//! Source: Lampson and Sturgis 1979 (careful order); TigerBeetle's four superblock copies.

use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{CommitSeq, DirectoryId, Epoch, Generation, Lineage, StoreId};
use rallypoint_base::wire::{Malformed, Reader};
use thiserror::Error;

/// Name of the file that holds the slots.
pub const FILE: &str = "superblock";
/// Bytes of one slot.
pub const SLOT_BYTES: usize = 16 << 10;
/// Number of slots.
pub const SLOTS: usize = 4;
/// Bytes of the whole file.
pub const FILE_BYTES: usize = SLOT_BYTES * SLOTS;
/// Most bytes that the owner's map may have.
pub const META_BYTES: usize = 12 << 10;
/// The format version that this release writes and reads.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"RALLYSB\0";
const CHECKSUM: usize = 8;
const FIXED_BYTES: usize = 128;

/// What one slot says. Alike in every slot of every copy but for `copy` and the slot's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The store.
    pub store: StoreId,
    /// Its history since it was created or restored.
    pub lineage: Lineage,
    /// Which journal directory of the store.
    pub directory: DirectoryId,
    /// How many copies the directory is meant to have (1 or 2).
    pub copies: u8,
    /// Which copy this slot belongs to.
    pub copy: u8,
    /// Bit n = copy n is in sync.
    pub in_sync: u8,
    /// Grows with each opening and each change of `in_sync`. 0 = creation was not finished.
    pub epoch: Epoch,
    /// Grows with each superblock update; decides between slots.
    pub sequence: u64,
    /// Bytes of one segment file.
    pub segment_len: u64,
    /// Oldest segment that is needed.
    pub first: Generation,
    /// Newest segment that may hold a block.
    pub last: Generation,
    /// First commit of segment `first`.
    pub first_commit: CommitSeq,
    /// Hash of the commit before `first_commit` (0 before the very first).
    pub first_hash: u64,
    /// Commits after this one carry at least `floor_epoch`: what was the end of the journal when it
    /// was last opened. A block that breaks this was written by a process that should be dead.
    pub floor_commit: CommitSeq,
    /// See `floor_commit`.
    pub floor_epoch: Epoch,
    /// The owner's map, opaque here.
    pub meta: Vec<u8>,
}

/// Why a slot does not count.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SlotError {
    /// Never written.
    #[error("the slot was never written")]
    Blank,
    /// Not a slot, or torn, or rotten, or another slot's content.
    #[error("the slot is torn, rotten or misplaced ({0})")]
    Damaged(&'static str),
    /// Sound, but of another release.
    #[error(
        "the slot has format version {version}, this release reads version {VERSION}; it needs the release that wrote it or a later one"
    )]
    Version {
        /// The version it has.
        version: u32,
    },
    /// Sound, but it uses features that this release does not know.
    #[error("the slot sets flags {flags:#x} (compression or encryption), which need a newer release")]
    Flags {
        /// The flags it sets.
        flags: u32,
    },
}

impl From<Malformed> for SlotError {
    fn from(error: Malformed) -> Self {
        Self::Damaged(error.field)
    }
}

impl Superblock {
    /// The bytes of slot number `slot` of copy `copy`.
    #[must_use]
    pub fn encode(&self, copy: u8, slot: usize) -> AlignedBuffer {
        let mut out = Vec::with_capacity(SLOT_BYTES);
        out.extend_from_slice(&0u64.to_le_bytes());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&self.store.0.to_le_bytes());
        out.extend_from_slice(&self.lineage.0.to_le_bytes());
        out.extend_from_slice(&self.directory.0.to_le_bytes());
        out.extend_from_slice(&[self.copies, copy, self.in_sync, slot as u8, 0, 0]);
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.floor_epoch.0.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.segment_len.to_le_bytes());
        out.extend_from_slice(&self.first.0.to_le_bytes());
        out.extend_from_slice(&self.last.0.to_le_bytes());
        out.extend_from_slice(&self.first_commit.0.to_le_bytes());
        out.extend_from_slice(&self.first_hash.to_le_bytes());
        out.extend_from_slice(&self.floor_commit.0.to_le_bytes());
        out.extend_from_slice(&0u64.to_le_bytes());
        let meta = &self.meta[..self.meta.len().min(META_BYTES)];
        out.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        debug_assert_eq!(out.len(), FIXED_BYTES);
        out.extend_from_slice(meta);
        out.resize(SLOT_BYTES, 0);
        let checksum = xxh3(&out[CHECKSUM..]);
        out[..CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        AlignedBuffer::copy_of(&out)
    }

    /// Reads the slot that stands at place `slot`.
    ///
    /// The magic, version, flags and checksum keep their places in every later format, so that a
    /// rotten version field is never taken for a newer release.
    ///
    /// # Errors
    /// [`SlotError`] when it does not count.
    pub fn decode(bytes: &[u8], slot: usize) -> Result<Self, SlotError> {
        let Some(bytes) = bytes.get(..SLOT_BYTES) else { return Err(SlotError::Damaged("short")) };
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(SlotError::Blank);
        }
        let mut reader = Reader::new(bytes);
        let checksum = reader.u64("checksum")?;
        if reader.take(8, "magic")? != MAGIC {
            return Err(SlotError::Damaged("magic"));
        }
        let version = reader.u32("version")?;
        let flags = reader.u32("flags")?;
        if xxh3(&bytes[CHECKSUM..]) != checksum {
            return Err(SlotError::Damaged("checksum"));
        }
        if version != VERSION {
            return Err(SlotError::Version { version });
        }
        if flags != 0 {
            return Err(SlotError::Flags { flags });
        }
        let store = StoreId(reader.u64("store")?);
        let lineage = Lineage(reader.u64("lineage")?);
        let directory = DirectoryId(reader.u16("directory")?);
        let copies = reader.u8("copies")?;
        let copy = reader.u8("copy")?;
        let in_sync = reader.u8("in-sync set")?;
        let place = reader.u8("slot")?;
        reader.take(2, "reserved")?;
        if usize::from(place) != slot {
            return Err(SlotError::Damaged("slot number"));
        }
        let epoch = Epoch(reader.u32("epoch")?);
        let floor_epoch = Epoch(reader.u32("floor epoch")?);
        let sequence = reader.u64("sequence")?;
        let segment_len = reader.u64("segment length")?;
        let first = Generation(reader.u64("first segment")?);
        let last = Generation(reader.u64("last segment")?);
        let first_commit = CommitSeq(reader.u64("first commit")?);
        let first_hash = reader.u64("first hash")?;
        let floor_commit = CommitSeq(reader.u64("floor commit")?);
        reader.u64("reserved")?;
        let meta_len = reader.u32("map length")? as usize;
        reader.u32("reserved")?;
        if meta_len > META_BYTES {
            return Err(SlotError::Damaged("map length"));
        }
        let meta = reader.take(meta_len, "map")?.to_vec();
        Ok(Self {
            store,
            lineage,
            directory,
            copies,
            copy,
            in_sync,
            epoch,
            sequence,
            segment_len,
            first,
            last,
            first_commit,
            first_hash,
            floor_commit,
            floor_epoch,
            meta,
        })
    }

    /// True when copy number `copy` is in sync.
    #[must_use]
    pub fn has(&self, copy: u8) -> bool {
        self.in_sync & (1 << copy) != 0
    }

    /// Blocks of one segment.
    #[must_use]
    pub fn segment_blocks(&self) -> u64 {
        self.segment_len / rallypoint_base::limits::BLOCK as u64
    }
}

/// What the superblock file of one copy says.
#[derive(Clone, Debug)]
pub struct Slots {
    /// The highest sound slot, or why none is.
    pub best: Result<Superblock, SlotError>,
    /// Slots that differ from the best one (torn, rotten, or one update behind).
    pub differing: Vec<usize>,
}

/// Judges the content of a superblock file.
///
/// # Errors
/// A sound slot of another version, or with unknown flags, refuses the whole copy: going on with an
/// older slot would undo what a newer release wrote.
pub fn judge(bytes: &[u8]) -> Result<Slots, SlotError> {
    let mut best: Option<Superblock> = None;
    let mut worst = SlotError::Blank;
    let decoded: Vec<_> = (0..SLOTS)
        .map(|slot| Superblock::decode(bytes.get(slot * SLOT_BYTES..).unwrap_or_default(), slot))
        .collect();
    for slot in &decoded {
        match slot {
            Ok(found) if best.as_ref().is_none_or(|best| found.sequence > best.sequence) => {
                best = Some(found.clone());
            }
            Ok(_) | Err(SlotError::Blank) => {}
            Err(error @ SlotError::Damaged(_)) => worst = error.clone(),
            Err(error) => return Err(error.clone()),
        }
    }
    let blank = decoded.iter().filter(|slot| **slot == Err(SlotError::Blank)).count();
    if best.is_none() && blank + 1 >= SLOTS {
        // The first slot was torn by a crash while the store was being created.
        worst = SlotError::Blank;
    }
    let differing = (0..SLOTS).filter(|&slot| decoded[slot].as_ref().ok() != best.as_ref()).collect();
    Ok(Slots { best: best.ok_or(worst), differing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Superblock {
        Superblock {
            store: StoreId(1),
            lineage: Lineage(2),
            directory: DirectoryId(3),
            copies: 2,
            copy: 1,
            in_sync: 3,
            epoch: Epoch(4),
            sequence: 5,
            segment_len: 1 << 20,
            first: Generation(6),
            last: Generation(7),
            first_commit: CommitSeq(8),
            first_hash: 9,
            floor_commit: CommitSeq(10),
            floor_epoch: Epoch(4),
            meta: vec![1; META_BYTES],
        }
    }

    #[test]
    fn a_slot_survives_and_stands_only_in_its_own_place() {
        let bytes = sample().encode(1, 2);
        assert_eq!(Superblock::decode(&bytes, 2), Ok(sample()));
        assert_eq!(Superblock::decode(&bytes, 1), Err(SlotError::Damaged("slot number")));
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let bytes = sample().encode(1, 0);
        for at in (0..FIXED_BYTES).chain((FIXED_BYTES..SLOT_BYTES).step_by(97)) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            assert!(matches!(Superblock::decode(&bad, 0), Err(SlotError::Damaged(_))), "byte {at}");
        }
    }

    #[test]
    fn another_version_is_refused_by_name_and_not_overruled_by_an_older_slot() {
        let mut file = Vec::new();
        for slot in 0..SLOTS {
            file.extend_from_slice(&sample().encode(0, slot));
        }
        file[16] = 2;
        let checksum = xxh3(&file[CHECKSUM..SLOT_BYTES]);
        file[..CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        let error = judge(&file).unwrap_err();
        assert_eq!(error, SlotError::Version { version: 2 });
        assert!(error.to_string().contains("needs the release"));
    }

    #[test]
    fn the_highest_sound_slot_counts() {
        let mut newer = sample();
        newer.sequence += 1;
        let mut file = newer.encode(0, 0).to_vec();
        file.extend_from_slice(&vec![0xAA; SLOT_BYTES]);
        for slot in 2..SLOTS {
            file.extend_from_slice(&sample().encode(0, slot));
        }
        let slots = judge(&file).unwrap();
        assert_eq!(slots.best.unwrap().sequence, 6);
        assert_eq!(slots.differing, vec![1, 2, 3]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..SLOT_BYTES + 8)) {
            let _ = Superblock::decode(&bytes, 0);
            let _ = judge(&bytes);
        }
    }
}
