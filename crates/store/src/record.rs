//! One record of a logical log, and the index that a commit carries of the commit before it.
//!
//! Decides the bytes of a record header and how the payload of a commit is read back. Never decides
//! what a record means: `kind` and `schema` belong to the engine.
//!
//! Invariants:
//! - The checksum is taken where the record enters the store and checked where it leaves it, so
//!   that it also covers the way through memory.
//! - Records never span commits; they may span blocks of one commit.

use crate::block;
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{Epoch, LogId, Position};
use rallypoint_base::limits::BLOCK;

/// Bytes before a record's payload.
pub const HEADER: usize = 32;
/// Bytes of one entry of the index.
pub const ENTRY: usize = 14;
/// Bytes of the number of entries before them.
pub const INDEX_LEN: usize = 4;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The logical log.
    pub log: LogId,
    /// Its place in that log.
    pub position: Position,
    /// The epoch of the engine's history that it belongs to.
    pub epoch: Epoch,
    /// What it is, for the engine.
    pub kind: u16,
    /// Version of the payload's schema, for the engine.
    pub schema: u16,
    /// The bytes.
    pub payload: &'a [u8],
}

impl Record<'_> {
    /// The header, with the checksum over it and the payload.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER] {
        let mut raw = [0u8; HEADER];
        // 0..8 is the checksum; while it is computed, the payload's hash stands there.
        raw[0..8].copy_from_slice(&xxh3(self.payload).to_le_bytes());
        raw[8..16].copy_from_slice(&self.position.0.to_le_bytes());
        raw[16..20].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        raw[20..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        raw[24..26].copy_from_slice(&self.log.0.to_le_bytes());
        raw[26..28].copy_from_slice(&self.kind.to_le_bytes());
        raw[28..30].copy_from_slice(&self.schema.to_le_bytes());
        let checksum = xxh3(&raw);
        raw[0..8].copy_from_slice(&checksum.to_le_bytes());
        raw
    }
}

/// A header that was read but not yet checked against its payload.
#[derive(Clone, Copy, Debug)]
pub struct RawHeader([u8; HEADER]);

impl RawHeader {
    /// Bytes of the payload that follows, if the header tells the truth.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        u32::from_le_bytes([self.0[16], self.0[17], self.0[18], self.0[19]]) as usize
    }

    /// The record, if header and payload belong together and nothing was altered.
    #[must_use]
    pub fn check(self, payload: &[u8]) -> Option<Record<'_>> {
        let raw = &self.0;
        let mut eight = [0u8; 8];
        eight.copy_from_slice(&raw[8..16]);
        let record = Record {
            log: LogId(u16::from_le_bytes([raw[24], raw[25]])),
            position: Position(u64::from_le_bytes(eight)),
            epoch: Epoch(u32::from_le_bytes([raw[20], raw[21], raw[22], raw[23]])),
            kind: u16::from_le_bytes([raw[26], raw[27]]),
            schema: u16::from_le_bytes([raw[28], raw[29]]),
            payload,
        };
        (record.header() == *raw).then_some(record)
    }
}

/// What one commit holds of one log: an entry of the index in the commit after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The log.
    pub log: LogId,
    /// Position of its first record in the commit.
    pub first: Position,
    /// How many records.
    pub count: u32,
}

impl Extent {
    /// Position of the last record.
    #[must_use]
    pub fn last(&self) -> Position {
        Position(self.first.0 + u64::from(self.count.saturating_sub(1)))
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY] {
        let mut raw = [0; ENTRY];
        raw[0..2].copy_from_slice(&self.log.0.to_le_bytes());
        raw[2..10].copy_from_slice(&self.first.0.to_le_bytes());
        raw[10..14].copy_from_slice(&self.count.to_le_bytes());
        raw
    }

    fn decode(raw: &[u8; ENTRY]) -> Self {
        let mut eight = [0u8; 8];
        eight.copy_from_slice(&raw[2..10]);
        Self {
            log: LogId(u16::from_le_bytes([raw[0], raw[1]])),
            first: Position(u64::from_le_bytes(eight)),
            count: u32::from_le_bytes([raw[10], raw[11], raw[12], raw[13]]),
        }
    }
}

/// Reads the payload of consecutive sound blocks of one commit, hopping over the block headers.
#[derive(Debug)]
pub struct Walk<'a> {
    blocks: &'a [u8],
    /// Offset of the next payload byte in `blocks`.
    at: usize,
    /// Payload bytes not read yet.
    left: usize,
    scratch: &'a mut Vec<u8>,
}

impl<'a> Walk<'a> {
    /// Starts at the first payload byte of `blocks`, whose last block holds `last_used` bytes.
    /// `scratch` gets the payload of a record that spans blocks.
    #[must_use]
    pub fn new(blocks: &'a [u8], last_used: usize, scratch: &'a mut Vec<u8>) -> Self {
        let count = blocks.len() / BLOCK;
        let left = count.saturating_sub(1) * block::PAYLOAD + last_used.min(block::PAYLOAD);
        let left = if count == 0 { 0 } else { left };
        Self { blocks, at: block::HEADER, left, scratch }
    }

    /// Leaves out `bytes` bytes of payload. False when there are fewer.
    pub fn skip(&mut self, bytes: usize) -> bool {
        if bytes > self.left {
            self.left = 0;
            return false;
        }
        self.left -= bytes;
        let inside = self.at % BLOCK - block::HEADER + bytes;
        let start = self.at - self.at % BLOCK;
        self.at = start + (inside / block::PAYLOAD) * BLOCK + block::HEADER + inside % block::PAYLOAD;
        true
    }

    /// True when every byte was read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    fn copy(&mut self, mut out: &mut [u8]) -> bool {
        if out.len() > self.left {
            return false;
        }
        while !out.is_empty() {
            let room = (BLOCK - self.at % BLOCK).min(out.len());
            let (now, later) = out.split_at_mut(room);
            now.copy_from_slice(&self.blocks[self.at..self.at + room]);
            out = later;
            self.skip(room);
        }
        true
    }

    /// Reads the index at the start of a commit. `None` when it does not stand here whole.
    pub fn index(&mut self) -> Option<Vec<Extent>> {
        let mut raw = [0; INDEX_LEN];
        if !self.copy(&mut raw) {
            return None;
        }
        let count = u32::from_le_bytes(raw) as usize;
        if count.checked_mul(ENTRY)? > self.left {
            return None;
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let mut raw = [0; ENTRY];
            if !self.copy(&mut raw) {
                return None;
            }
            entries.push(Extent::decode(&raw));
        }
        Some(entries)
    }

    /// The next record. `None` at the end, and where the bytes are not a whole record; the two are
    /// told apart by [`Walk::is_done`].
    pub fn record(&mut self) -> Option<Record<'_>> {
        let mut raw = [0; HEADER];
        if !self.copy(&mut raw) {
            return None;
        }
        let header = RawHeader(raw);
        let len = header.payload_len();
        if len > self.left {
            return None;
        }
        if len == 0 {
            // The next payload byte may lie beyond the last block.
            return header.check(&[]);
        }
        if BLOCK - self.at % BLOCK >= len {
            let from = self.at;
            self.skip(len);
            return header.check(&self.blocks[from..from + len]);
        }
        let mut scratch = std::mem::take(self.scratch);
        scratch.clear();
        scratch.resize(len, 0);
        self.copy(&mut scratch);
        *self.scratch = scratch;
        header.check(self.scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_is_bound_to_its_payload_and_every_header_byte() {
        let record = Record {
            log: LogId(3),
            position: Position(4),
            epoch: Epoch(5),
            kind: 6,
            schema: 7,
            payload: b"twelve bytes",
        };
        let raw = record.header();
        assert_eq!(RawHeader(raw).payload_len(), 12);
        assert_eq!(RawHeader(raw).check(b"twelve bytes"), Some(record));
        assert_eq!(RawHeader(raw).check(b"twelve Bytes"), None);
        for at in 0..HEADER {
            let mut bad = raw;
            bad[at] ^= 1;
            assert_eq!(RawHeader(bad).check(b"twelve bytes"), None, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_blocks_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..3 * BLOCK),
            used in 0..2 * BLOCK,
            skip in 0..2 * BLOCK,
        ) {
            let bytes = &bytes[..bytes.len() / BLOCK * BLOCK];
            let mut scratch = Vec::new();
            let mut walk = Walk::new(bytes, used, &mut scratch);
            let _ = walk.index();
            let mut walk = Walk::new(bytes, used, &mut scratch);
            walk.skip(skip);
            while walk.record().is_some() {}
        }
    }
}
