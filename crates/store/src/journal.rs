//! The commit that is being filled, the logs' last positions, and what each segment holds.
//!
//! Decides where the bytes of a record lie in a commit, and which segments no log needs any more.
//! Never submits anything (the store does).
//!
//! Invariants:
//! - A record is encoded once, straight into the aligned buffer that is written. A block that is full
//!   is hashed, and copied for the mirror, while it is warm and the commit before is on its way.
//! - Positions of a log are consecutive; the check costs one indexed look-up, no map.
//! - A segment is needed while any log has a record in it at or above that log's low mark; segments
//!   go only from the front.
//!
//! Source: docs/DECISIONS/0001 and 0006; raft-engine's multiplexing.

use crate::block::{self, Header, Home, Place};
use crate::disk::FileId;
use crate::error::StoreError;
use crate::record::{ENTRY, Extent, INDEX_LEN, Record};
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{CommitSeq, Epoch, Generation, LogId, Position};
use rallypoint_base::limits::BLOCK;

/// The number of index entries that says "there were too many to write down".
pub const INDEX_LEFT_OUT: u32 = u32::MAX;

/// A commit that is being filled.
#[derive(Debug, Default)]
pub struct CommitBuffer {
    buffer: AlignedBuffer,
    /// The same for the other copy; holds the finished blocks.
    twin: Option<AlignedBuffer>,
    /// Blocks that are full, hashed and copied.
    finished: usize,
    /// Where the next byte goes; a multiple of the block size before a block is begun.
    at: usize,
    payload: usize,
    records: u32,
    record_bytes: usize,
    /// The current block has a note where its first record starts.
    noted: bool,
    /// What the commit holds of each log.
    pub extents: Vec<Extent>,
    checksums: Vec<u8>,
}

/// What is the same for all blocks of a commit.
#[derive(Clone, Copy, Debug)]
pub struct Seal {
    /// Place of the first block.
    pub place: Place,
    /// Epoch now.
    pub epoch: Epoch,
    /// The commit's number.
    pub commit: CommitSeq,
    /// Highest commit durable on all in-sync copies.
    pub watermark: CommitSeq,
    /// Hash of the commit before.
    pub previous: u64,
}

impl CommitBuffer {
    /// Begins a commit in `buffer`, and in `twin` too when there is another copy; `index` says what the
    /// commit before it holds, `None` when that would take too much room.
    pub fn begin(&mut self, buffer: AlignedBuffer, twin: Option<AlignedBuffer>, index: Option<&[Extent]>) {
        self.buffer = buffer;
        self.twin = twin;
        self.finished = 0;
        self.at = 0;
        self.payload = 0;
        self.records = 0;
        self.record_bytes = 0;
        self.noted = false;
        self.extents.clear();
        match index {
            None => self.put(&INDEX_LEFT_OUT.to_le_bytes()),
            Some(index) => {
                self.put(&(index.len() as u32).to_le_bytes());
                for extent in index {
                    self.put(&extent.encode());
                }
            }
        }
    }

    /// Number of records.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Bytes of records, headers included.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    /// Bytes of payload so far, the index included.
    #[must_use]
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// Blocks that the commit takes.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.at.div_ceil(BLOCK)
    }

    /// Adds a record.
    pub fn push(&mut self, record: &Record<'_>) {
        let header = record.header();
        self.enter_block();
        let inside = self.at % BLOCK;
        if !self.noted {
            let start = self.at - inside;
            let offset = (inside - block::HEADER) as u16;
            block::set_first_record(&mut self.buffer[start..start + BLOCK], offset);
            self.noted = true;
        }
        let len = header.len() + record.payload.len();
        if len <= BLOCK - inside {
            let out = &mut self.buffer[self.at..self.at + len];
            let (head, body) = out.split_at_mut(header.len());
            head.copy_from_slice(&header);
            body.copy_from_slice(record.payload);
            self.at += len;
            self.payload += len;
        } else {
            self.put(&header);
            self.put(record.payload);
        }
        self.records += 1;
        self.record_bytes += len;
    }

    /// Steps over the header of the next block when the last one is full.
    fn enter_block(&mut self) {
        if self.at.is_multiple_of(BLOCK) {
            self.finish_blocks();
            if self.at + BLOCK > self.buffer.len() {
                let grown = (self.buffer.len() * 2).max(16 * BLOCK);
                self.buffer.set_len(grown);
            }
            block::set_first_record(&mut self.buffer[self.at..self.at + BLOCK], block::NO_RECORD);
            self.at += block::HEADER;
            self.noted = false;
        }
    }

    fn put(&mut self, mut bytes: &[u8]) {
        self.payload += bytes.len();
        while !bytes.is_empty() {
            self.enter_block();
            let room = (BLOCK - self.at % BLOCK).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.buffer[self.at..self.at + room].copy_from_slice(now);
            self.at += room;
            bytes = later;
        }
    }

    /// Hashes and copies the blocks up to where the next byte goes.
    fn finish_blocks(&mut self) {
        while self.finished * BLOCK < self.at {
            let range = self.finished * BLOCK..(self.finished + 1) * BLOCK;
            block::finish(&mut self.buffer[range.clone()]);
            if let Some(twin) = self.twin.as_mut() {
                if twin.len() < range.end {
                    twin.set_len(self.buffer.len());
                }
                twin[range.clone()].copy_from_slice(&self.buffer[range]);
            }
            self.finished += 1;
        }
    }

    /// Fills in the headers. Gives the bytes to write, those for the other copy if the commit was
    /// begun with a place for them, and the hash of the commit.
    pub fn seal(&mut self, home: &Home, seal: &Seal) -> (AlignedBuffer, Option<AlignedBuffer>, u64) {
        let count = self.blocks();
        // The bytes behind the last record are the buffer's earlier content.
        self.buffer[self.at..count * BLOCK].fill(0);
        self.finish_blocks();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut twin = self.twin.take();
        buffer.set_len(count * BLOCK);
        if let Some(twin) = twin.as_mut() {
            twin.set_len(count * BLOCK);
        }
        self.checksums.clear();
        for (index, block) in buffer.chunks_exact_mut(BLOCK).enumerate() {
            let used =
                if index + 1 == count { self.at - index * BLOCK - block::HEADER } else { block::PAYLOAD };
            let number = seal.place.number + index as u32;
            let header = Header {
                place: Place { number, ..seal.place },
                epoch: seal.epoch,
                commit: seal.commit,
                index: index as u16,
                count: count as u16,
                used: used as u16,
                first_record: block::first_record(block),
                watermark: seal.watermark,
                previous: seal.previous,
            };
            self.checksums.extend_from_slice(&block::seal(block, home, &header).to_le_bytes());
            if let Some(twin) = twin.as_mut() {
                let at = index * BLOCK;
                twin[at..at + block::HEADER].copy_from_slice(&block[..block::HEADER]);
            }
        }
        (buffer, twin, xxh3(&self.checksums))
    }
}

/// Hash of a commit from the bytes of its blocks.
#[must_use]
pub fn commit_hash(blocks: &[u8]) -> u64 {
    let checksums: Vec<u8> =
        blocks.chunks_exact(BLOCK).flat_map(|b| block::checksum(b).to_le_bytes()).collect();
    xxh3(&checksums)
}

/// Bytes of payload that an index of `extents` takes.
#[must_use]
pub fn index_bytes(extents: usize) -> usize {
    INDEX_LEN + extents * ENTRY
}

/// Slot of a log in [`Logs`].
pub type LogSlot = usize;

/// One log.
#[derive(Clone, Copy, Debug)]
pub struct LogState {
    /// Which log.
    pub log: LogId,
    /// Its last record, appended or recovered; 0 when none was seen.
    pub last: Position,
    /// Records below are not needed.
    pub low: Position,
    /// Which commit touched it last, and where its extent stands there.
    stamp: (u64, usize),
}

/// The logs of a journal, by a dense index.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    states: Vec<LogState>,
    /// Slot + 1 of each log number, 0 when unknown. The system log, number 65,535, has its own.
    slots: Vec<u32>,
    system: u32,
}

impl Logs {
    /// The slot of a log, made when it is new.
    pub fn slot(&mut self, log: LogId) -> LogSlot {
        let entry = if log == LogId::SYSTEM {
            &mut self.system
        } else {
            let number = usize::from(log.0);
            if number >= self.slots.len() {
                self.slots.resize(number + 1, 0);
            }
            &mut self.slots[number]
        };
        if *entry == 0 {
            self.states.push(LogState { log, last: Position(0), low: Position(0), stamp: (0, 0) });
            *entry = self.states.len() as u32;
        }
        *entry as usize - 1
    }

    /// All logs, in slot order.
    #[must_use]
    pub fn all(&self) -> &[LogState] {
        &self.states
    }

    /// One log.
    pub fn state(&mut self, slot: LogSlot) -> &mut LogState {
        &mut self.states[slot]
    }

    /// Checks the order and notes the record in `extents`, the list of the commit numbered `stamp`.
    ///
    /// # Errors
    /// [`StoreError::OutOfOrder`].
    pub fn note(
        &mut self,
        record: &Record<'_>,
        stamp: u64,
        extents: &mut Vec<Extent>,
    ) -> Result<(), StoreError> {
        let slot = self.slot(record.log);
        let state = &mut self.states[slot];
        let expected = state.last.next();
        if record.position != expected && !(state.last.0 == 0 && record.position.0 > 0) {
            return Err(StoreError::OutOfOrder { log: record.log, expected, got: record.position });
        }
        state.last = record.position;
        if state.stamp.0 == stamp {
            extents[state.stamp.1].count += 1;
        } else {
            state.stamp = (stamp, extents.len());
            extents.push(Extent { log: record.log, first: record.position, count: 1 });
        }
        Ok(())
    }
}

/// One segment that is in use or prepared.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Which use.
    pub generation: Generation,
    /// Its open file on each copy (index in `Copies`); `None` where the copy is out.
    pub files: Vec<Option<FileId>>,
    /// Blocks used, from the front.
    pub used: u32,
    /// Number of its first commit.
    pub first_commit: CommitSeq,
    /// Hash of the commit before that.
    pub first_hash: u64,
    /// Recovery did not read it: it counts as full, and as holding whatever the checkpoints hold.
    pub skipped: bool,
    /// First and last position of each log (by slot) that has records here.
    ranges: Vec<Option<(Position, Position)>>,
}

/// File name of the segment of a generation.
#[must_use]
pub fn segment_name(generation: Generation) -> String {
    format!("seg-{:08}", generation.0)
}

/// The generation that a file name says, if it is a segment's.
#[must_use]
pub fn parse_segment_name(name: &str) -> Option<Generation> {
    let digits = name.strip_prefix("seg-")?;
    let generation = Generation(digits.parse().ok()?);
    (segment_name(generation) == name).then_some(generation)
}

impl Segment {
    /// A segment nobody has written to.
    #[must_use]
    pub fn new(generation: Generation, files: Vec<Option<FileId>>) -> Self {
        Self {
            generation,
            files,
            used: 0,
            first_commit: CommitSeq(0),
            first_hash: 0,
            skipped: false,
            ranges: Vec::new(),
        }
    }

    /// Notes that it may hold records of a log up to `last`.
    pub fn may_hold(&mut self, slot: LogSlot, last: Position) {
        if slot >= self.ranges.len() {
            self.ranges.resize(slot + 1, None);
        }
        let range = self.ranges[slot].get_or_insert((Position(0), last));
        *range = (Position(0), range.1.max(last));
    }

    /// Notes what a commit put here.
    pub fn note(&mut self, extents: &[Extent], logs: &mut Logs) {
        for extent in extents {
            let slot = logs.slot(extent.log);
            if slot >= self.ranges.len() {
                self.ranges.resize(slot + 1, None);
            }
            let range = self.ranges[slot].get_or_insert((extent.first, extent.last()));
            range.1 = range.1.max(extent.last());
        }
    }

    /// First and last position of a log here.
    #[must_use]
    pub fn range(&self, slot: LogSlot) -> Option<(Position, Position)> {
        self.ranges.get(slot).copied().flatten()
    }

    /// True while any log needs a record of it.
    #[must_use]
    pub fn is_needed(&self, logs: &Logs) -> bool {
        self.ranges
            .iter()
            .enumerate()
            .any(|(slot, range)| range.is_some_and(|(_, last)| last >= logs.all()[slot].low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Found;
    use crate::record::Walk;
    use proptest::prelude::*;
    use rallypoint_base::id::{DirectoryId, Lineage, StoreId};

    const HOME: Home = Home { store: StoreId(7), lineage: Lineage(8), directory: DirectoryId(9) };

    proptest! {
        #[test]
        fn what_is_pushed_is_read_back_through_the_block_headers(
            lens in proptest::collection::vec(0usize..9000, 0..20),
            entries in 0usize..600,
            twin: bool,
        ) {
            let index: Vec<_> = (0..entries)
                .map(|n| Extent { log: LogId(n as u16), first: Position(n as u64), count: 3 })
                .collect();
            let mut commit = CommitBuffer::default();
            // Old content must not show through.
            let mut old = AlignedBuffer::zeroed(2 * BLOCK);
            old.fill(0xEE);
            commit.begin(old, twin.then(AlignedBuffer::default), Some(&index));
            let payloads: Vec<Vec<u8>> = lens.iter().map(|&len| vec![len as u8; len]).collect();
            let records: Vec<_> = payloads.iter().zip(1..).map(|(payload, n)| Record {
                log: LogId(1), position: Position(n), epoch: Epoch(1), kind: 2, schema: 3, payload,
            }).collect();
            for record in &records {
                commit.push(record);
            }
            let seal = Seal {
                place: Place { generation: Generation(4), number: 10 },
                epoch: Epoch(5), commit: CommitSeq(6), watermark: CommitSeq(5), previous: 1,
            };
            let (bytes, other, hash) = commit.seal(&HOME, &seal);
            prop_assert_eq!(other.is_some(), twin);
            prop_assert!(other.is_none_or(|other| other == bytes));
            prop_assert_eq!(hash, commit_hash(&bytes));
            let mut last_used = 0;
            for (n, block) in bytes.chunks_exact(BLOCK).enumerate() {
                let place = Place { number: 10 + n as u32, ..seal.place };
                let Found::Sound(header) = block::judge(block, &HOME, place) else { panic!("not sound") };
                prop_assert_eq!(usize::from(header.index), n);
                last_used = usize::from(header.used);
                if header.first_record != block::NO_RECORD {
                    let mut scratch = Vec::new();
                    let mut walk = Walk::new(&bytes[n * BLOCK..], PAYLOAD_ALL, &mut scratch);
                    walk.skip(usize::from(header.first_record));
                    prop_assert!(walk.record().is_some());
                }
            }
            let mut scratch = Vec::new();
            let mut walk = Walk::new(&bytes, last_used, &mut scratch);
            prop_assert_eq!(walk.index().unwrap(), index);
            for record in &records {
                prop_assert_eq!(&walk.record().unwrap(), record);
            }
            prop_assert!(walk.is_done());
        }
    }

    const PAYLOAD_ALL: usize = block::PAYLOAD;
}
