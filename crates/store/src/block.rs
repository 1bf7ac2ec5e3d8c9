//! One 4 KiB block of a commit.
//!
//! Decides the bytes of a block header and what the bytes at one place of a segment are: a sound
//! block of this place, a stale one, nothing, or damage. Never decides whether a commit counts
//! (recovery does).
//!
//! Invariants:
//! - The checksum stands first and covers the rest of the header, and with it the hash of the payload,
//!   so a torn block is not sound. The payload is hashed when it is filled, not when it is sealed:
//!   a commit waits for the one before it meanwhile, and what sealing takes nobody can overlap.
//! - A block names its place (directory, generation, block number), so a misdirected one is not
//!   sound where it landed, and an old one in a recycled file is known to be old.
//!
//! Source: docs/FORMAT.md 3; docs/FAULTS.md, rows 1, 2, 6, 7, 21.

use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{CommitSeq, DirectoryId, Epoch, Generation, Lineage, StoreId};
use rallypoint_base::limits::BLOCK;

/// Bytes before the payload.
pub const HEADER: usize = 96;
/// Bytes of payload in a full block.
pub const PAYLOAD: usize = BLOCK - HEADER;
/// The format version that this release writes and reads.
pub const VERSION: u16 = 1;
/// "No record starts in this block."
pub const NO_RECORD: u16 = u16::MAX;

const MAGIC: u32 = u32::from_le_bytes(*b"RPBK");
const CHECKSUM: usize = 8;
/// Comparing with it is far faster than looking at each byte.
static ZEROS: [u8; BLOCK] = [0; BLOCK];
const FIRST_RECORD_AT: usize = 62;
const PAYLOAD_HASH_AT: usize = 88;

/// What makes a block one of this journal directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The store.
    pub store: StoreId,
    /// Its history.
    pub lineage: Lineage,
    /// The journal directory.
    pub directory: DirectoryId,
}

/// A place in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which use of which segment file.
    pub generation: Generation,
    /// Block number in the segment, from 0.
    pub number: u32,
}

/// The header of a block. The home stands beside it, since it is the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the block belongs.
    pub place: Place,
    /// Epoch in which it was written.
    pub epoch: Epoch,
    /// The commit that it is part of.
    pub commit: CommitSeq,
    /// Which block of the commit, from 0.
    pub index: u16,
    /// How many blocks the commit has.
    pub count: u16,
    /// Bytes of payload in this block.
    pub used: u16,
    /// Where in the payload the first record starts that starts here, or [`NO_RECORD`].
    pub first_record: u16,
    /// Highest commit known durable on all in-sync copies when this block was written.
    pub watermark: CommitSeq,
    /// Hash of the commit before.
    pub previous: u64,
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(block: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// Notes in an open block where its first record starts; [`seal`] leaves the note alone.
pub fn set_first_record(block: &mut [u8], offset: u16) {
    block[FIRST_RECORD_AT..FIRST_RECORD_AT + 2].copy_from_slice(&offset.to_le_bytes());
}

/// The note of [`set_first_record`].
#[must_use]
pub fn first_record(block: &[u8]) -> u16 {
    u16_at(block, FIRST_RECORD_AT)
}

/// Notes the hash of a payload that is complete; [`seal`] leaves the note alone.
pub fn finish(block: &mut [u8]) {
    let hash = xxh3(&block[HEADER..]);
    block[PAYLOAD_HASH_AT..HEADER].copy_from_slice(&hash.to_le_bytes());
}

/// Fills in the header of a block whose payload was [`finish`]ed, and returns its checksum.
/// `header.first_record` is written as given.
pub fn seal(block: &mut [u8], home: &Home, header: &Header) -> u64 {
    debug_assert_eq!(block.len(), BLOCK);
    let mut raw = [0u8; PAYLOAD_HASH_AT];
    raw[8..12].copy_from_slice(&MAGIC.to_le_bytes());
    raw[12..14].copy_from_slice(&VERSION.to_le_bytes());
    // 14..16 are the flags.
    raw[16..24].copy_from_slice(&home.store.0.to_le_bytes());
    raw[24..32].copy_from_slice(&home.lineage.0.to_le_bytes());
    raw[32..36].copy_from_slice(&header.epoch.0.to_le_bytes());
    raw[36..40].copy_from_slice(&header.place.number.to_le_bytes());
    raw[40..48].copy_from_slice(&header.place.generation.0.to_le_bytes());
    raw[48..56].copy_from_slice(&header.commit.0.to_le_bytes());
    raw[56..58].copy_from_slice(&header.index.to_le_bytes());
    raw[58..60].copy_from_slice(&header.count.to_le_bytes());
    raw[60..62].copy_from_slice(&header.used.to_le_bytes());
    raw[62..64].copy_from_slice(&header.first_record.to_le_bytes());
    raw[64..72].copy_from_slice(&header.watermark.0.to_le_bytes());
    raw[72..80].copy_from_slice(&header.previous.to_le_bytes());
    raw[80..82].copy_from_slice(&home.directory.0.to_le_bytes());
    // 82..88 are reserved.
    block[..PAYLOAD_HASH_AT].copy_from_slice(&raw);
    let checksum = xxh3(&block[CHECKSUM..HEADER]);
    block[..CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
    checksum
}

/// The checksum that a sound block carries.
#[must_use]
pub fn checksum(block: &[u8]) -> u64 {
    u64_at(block, 0)
}

/// What the bytes at one place are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A block that was written to this place in this use of the file.
    Sound(Header),
    /// A block of an earlier use of the file: as good as nothing.
    Stale,
    /// Zeros.
    Blank,
    /// Torn, rotten, or written by something else.
    Damaged,
    /// Sound, but a block of another place, store or lineage.
    Misplaced,
    /// Sound, but of a format that this release cannot read.
    Unsupported {
        /// Its format version.
        version: u16,
        /// Its flags.
        flags: u16,
    },
}

/// Judges the 4,096 bytes at `place`. Never panics, whatever they are.
#[must_use]
pub fn judge(block: &[u8], home: &Home, place: Place) -> Found {
    if block.len() != BLOCK {
        return Found::Damaged;
    }
    if u32_at(block, 8) != MAGIC {
        return if *block == ZEROS { Found::Blank } else { Found::Damaged };
    }
    if checksum(block) != xxh3(&block[CHECKSUM..HEADER]) {
        return Found::Damaged;
    }
    let (version, flags) = (u16_at(block, 12), u16_at(block, 14));
    if version != VERSION || flags != 0 {
        return Found::Unsupported { version, flags };
    }
    if u64_at(block, PAYLOAD_HASH_AT) != xxh3(&block[HEADER..]) {
        return Found::Damaged;
    }
    let ours = Home {
        store: StoreId(u64_at(block, 16)),
        lineage: Lineage(u64_at(block, 24)),
        directory: DirectoryId(u16_at(block, 80)),
    };
    let number = u32_at(block, 36);
    let generation = Generation(u64_at(block, 40));
    if ours != *home || number != place.number || generation > place.generation {
        return Found::Misplaced;
    }
    if generation < place.generation {
        return Found::Stale;
    }
    let header = Header {
        place,
        epoch: Epoch(u32_at(block, 32)),
        commit: CommitSeq(u64_at(block, 48)),
        index: u16_at(block, 56),
        count: u16_at(block, 58),
        used: u16_at(block, 60),
        first_record: first_record(block),
        watermark: CommitSeq(u64_at(block, 64)),
        previous: u64_at(block, 72),
    };
    let sane = header.index < header.count
        && usize::from(header.used) <= PAYLOAD
        && (header.first_record == NO_RECORD || header.first_record < header.used)
        && header.watermark < header.commit
        && u32::from(header.index) <= number;
    if sane { Found::Sound(header) } else { Found::Damaged }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOME: Home = Home { store: StoreId(7), lineage: Lineage(8), directory: DirectoryId(9) };

    fn header() -> Header {
        Header {
            place: Place { generation: Generation(3), number: 5 },
            epoch: Epoch(2),
            commit: CommitSeq(11),
            index: 1,
            count: 4,
            used: 4000,
            first_record: 17,
            watermark: CommitSeq(10),
            previous: 0xFEED,
        }
    }

    fn sealed() -> Vec<u8> {
        let mut block = vec![0x5A; BLOCK];
        finish(&mut block);
        let checksum = seal(&mut block, &HOME, &header());
        assert_eq!(super::checksum(&block), checksum);
        block
    }

    #[test]
    fn a_block_is_sound_in_its_place_only() {
        let block = sealed();
        let place = header().place;
        assert_eq!(judge(&block, &HOME, place), Found::Sound(header()));
        assert_eq!(judge(&block, &HOME, Place { number: 6, ..place }), Found::Misplaced);
        assert_eq!(judge(&block, &HOME, Place { generation: Generation(4), ..place }), Found::Stale);
        assert_eq!(judge(&block, &HOME, Place { generation: Generation(2), ..place }), Found::Misplaced);
        assert_eq!(
            judge(&block, &Home { directory: DirectoryId(0), ..HOME }, place),
            Found::Misplaced,
            "two directories of one store may lie on one disk"
        );
        assert_eq!(judge(&vec![0; BLOCK], &HOME, place), Found::Blank);
    }

    #[test]
    fn every_flipped_bit_of_the_header_and_every_torn_sector_is_found() {
        let block = sealed();
        for bit in 0..HEADER * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(judge(&bad, &HOME, header().place), Found::Damaged, "bit {bit}");
        }
        for sector in 0..8 {
            let mut bad = block.clone();
            bad[sector * 512..(sector + 1) * 512].fill(0);
            assert_eq!(judge(&bad, &HOME, header().place), Found::Damaged, "sector {sector}");
        }
    }

    #[test]
    fn an_unknown_flag_or_version_is_told_apart_from_rot() {
        for (at, flip, version, flags) in [(12, 3, 2, 0), (14, 1, 1, 1)] {
            let mut block = sealed();
            block[at] ^= flip;
            let checksum = xxh3(&block[CHECKSUM..HEADER]);
            block[..CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
            assert_eq!(judge(&block, &HOME, header().place), Found::Unsupported { version, flags });
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), BLOCK), magic: bool) {
            let mut bytes = bytes;
            if magic {
                bytes[8..12].copy_from_slice(&MAGIC.to_le_bytes());
            }
            let _ = judge(&bytes, &HOME, header().place);
        }
    }
}
