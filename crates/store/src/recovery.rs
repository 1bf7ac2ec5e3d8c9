//! Reading the journal back: union of the in-sync copies, repair, tail rule, what is lost.
//!
//! Decides which commits exist, what is damage and what is a torn tail, and which logs are affected
//! by damage. Never hands out a record before its commit is whole on every in-sync copy, and never
//! cuts anything but the single highest commit above the watermark.
//!
//! The rule (docs/DECISIONS/0001): let the chain of whole commits end at k-1. If any sound block of
//! a commit after k exists anywhere behind, on any in-sync copy, or a watermark says that k was
//! durable, then commit k is damaged. Otherwise commit k was in flight when the power went, and is
//! cut. A block is *sound* when checksum, store, lineage, directory, place, generation and epoch fit.
//!
//! Invariants:
//! - The unit of the union is the block: each may come from another copy.
//! - Repairs are durable before the records that they hold are handed out, so that what was once
//!   returned is returned for ever.
//! - Recovery is idempotent: a crash anywhere inside leaves a state that recovers to the same records.
//!
//! Source: Alagappan et al., "Protocol-Aware Recovery" (FAST '18); docs/FORMAT.md 5.

use crate::block::{self, Found, Header, Home, Place};
use crate::copies::{CopyIndex, Owner};
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, Lane, Op, Ticket};
use crate::error::{Lost, StoreError};
use crate::journal::{Logs, Segment, commit_hash, parse_segment_name, segment_name};
use crate::mirror::{Mirror, protocol_error};
use crate::record::{Extent, Record, Walk};
use crate::resume::ResumePoint;
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::id::{CommitSeq, Epoch, Generation, LogId, Position};
use rallypoint_base::limits::BLOCK;
use std::collections::VecDeque;
use thiserror::Error;

/// Reads in flight on each copy.
const DEPTH: usize = 8;
/// Bytes of one read.
const CHUNK: usize = 1 << 20;
/// Bytes of the first read at a new place, before it is known that more will be wanted there.
const FIRST: usize = 64 << 10;
/// How far behind the end of the chain later commits are looked for: twice the largest commit.
const EXAMINED: u64 = 8 << 20;
/// Findings that are listed; more are only counted.
const LISTED: usize = 1000;

/// Why a recovery ended early.
#[derive(Debug, Error)]
pub enum RecoverError<E> {
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The receiver of the records refuses.
    #[error("the receiver of the recovered records refused one: {0}")]
    Sink(E),
}

/// What one place of one copy was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// Torn or rotten.
    Damaged,
    /// Nothing, or older content, where the other copy has a block: a lost write.
    Missing,
    /// A sound block of another place.
    Misplaced,
    /// Two sound blocks that differ; the one of the newer epoch, then of the lower copy, counts.
    Differs,
}

impl FindingKind {
    /// The name for people and `--json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Missing => "missing",
            Self::Misplaced => "misplaced",
            Self::Differs => "differs",
        }
    }
}

/// One bad place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Index of the copy.
    pub copy: CopyIndex,
    /// Its directory.
    pub directory: String,
    /// File name.
    pub file: String,
    /// Block number in the file.
    pub block: u32,
    /// The commit that should stand there.
    pub commit: CommitSeq,
    /// What is wrong.
    pub kind: FindingKind,
}

/// The commit that was in flight when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Its number.
    pub commit: CommitSeq,
    /// Bytes that were there of it: possibly acknowledged, if this is a single disk that lies.
    pub bytes: u64,
}

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Epoch after the opening.
    pub epoch: Epoch,
    /// The commit that reading began at, when the checkpoints made it needless to begin at the head.
    pub resumed: Option<CommitSeq>,
    /// Whole commits that were read.
    pub commits: u64,
    /// Records handed out.
    pub records: u64,
    /// Bytes of journal in use.
    pub bytes: u64,
    /// The last commit.
    pub last_commit: CommitSeq,
    /// Highest watermark seen.
    pub watermark: CommitSeq,
    /// Blocks repaired from another copy, in all commits that were proven durable.
    pub repaired: u64,
    /// Blocks of the last commit that one copy got before the crash and another did not.
    pub completed: u64,
    /// What was cut.
    pub cut: Option<Cut>,
    /// What no copy can give back. Not empty = the store is open for reading only.
    pub lost: Vec<Lost>,
    /// Bad places, the first thousand.
    pub findings: Vec<Finding>,
    /// Reads that failed.
    pub read_errors: u64,
    /// Copies that failed at a repair and were dropped.
    pub dropped: Vec<(CopyIndex, DiskError)>,
    /// Files that nothing names: (copy, name). They are left alone.
    pub unknown_files: Vec<(CopyIndex, String)>,
    /// Superblock slots that were made equal.
    pub slots_repaired: usize,
}

impl RecoveryReport {
    fn find(&mut self, finding: Finding) {
        if self.findings.len() < LISTED {
            self.findings.push(finding);
        }
    }
}

/// What the store starts from.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) logs: Logs,
    /// Segments with commits, oldest first, and the one that is written next.
    pub(crate) segments: VecDeque<Segment>,
    /// Named segments that nothing was written to.
    pub(crate) ready: VecDeque<Segment>,
    /// Segment files that nothing names, by copy: space for the next segments.
    pub(crate) free: Vec<Vec<String>>,
    pub(crate) last: CommitSeq,
    pub(crate) hash: u64,
    pub(crate) last_real: CommitSeq,
    /// Place of the last commit.
    pub(crate) resume: ResumePoint,
    pub(crate) extents: Vec<Extent>,
    pub(crate) report: RecoveryReport,
}

/// Number of a block from the first one of the oldest needed segment.
type Address = u64;

#[derive(Debug)]
struct Ahead {
    at: Address,
    blocks: u64,
    tickets: Vec<(CopyIndex, Ticket)>,
}

/// Blocks of the same places on each copy.
#[derive(Debug)]
struct Chunk {
    at: Address,
    blocks: u64,
    parts: Vec<(CopyIndex, AlignedBuffer)>,
}

impl Chunk {
    fn has(&self, at: Address) -> bool {
        (self.at..self.at + self.blocks).contains(&at)
    }

    fn block(&self, part: usize, at: Address) -> &[u8] {
        let offset = (at - self.at) as usize * BLOCK;
        &self.parts[part].1[offset..offset + BLOCK]
    }
}

/// Sequential reading with several reads in flight on every copy. After a checkpoint the chain is
/// mostly short, and what lies behind its end is only looked at: so it reads ahead as far as it is
/// told ([`Recovery::want`]), else as far again as was read in a row.
#[derive(Debug, Default)]
struct Reader {
    /// Where reading in a row began.
    since: Address,
    next: Address,
    /// Everything before will be looked at, and nothing after it yet.
    wanted: Option<Address>,
    ahead: VecDeque<Ahead>,
}

/// What stands at one address on the copies.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// By part of the chunk; `Blank` beyond the last part.
    found: [Found; 2],
    parts: usize,
    /// Both parts hold the same bytes.
    equal: bool,
}

/// Where the chain of commits is.
#[derive(Clone, Copy, Debug)]
struct Chain {
    at: Address,
    expected: CommitSeq,
    /// Hash of the commit before; `None` right after a hole.
    previous: Option<u64>,
    epoch: Epoch,
}

#[derive(Clone, Debug, Default)]
struct Exam {
    /// Highest commit after the expected one of which a sound block exists.
    later: Option<CommitSeq>,
    watermark: CommitSeq,
    /// The first block of the first commit after the hole.
    resume: Option<(Address, CommitSeq)>,
    /// Sound blocks of the expected commit: (address, part, header).
    partial: Vec<(Address, Header)>,
    /// Places that are not blank.
    junk: Vec<Address>,
    junk_bytes: u64,
}

/// What is known about logs after a hole.
#[derive(Debug, Default)]
struct Doubt {
    /// By log slot: the hole since which the log has not been proven whole.
    suspect: Vec<Option<(CommitSeq, CommitSeq)>>,
    /// By log slot: records are lost, so the rest is not handed out.
    affected: Vec<bool>,
    /// A log that was never seen may have lost its beginning in this hole.
    unseen: Option<(CommitSeq, CommitSeq)>,
    /// The hole that the commit now read comes right after.
    fresh: Option<(CommitSeq, CommitSeq)>,
}

impl Doubt {
    fn is_affected(&self, slot: usize) -> bool {
        self.affected.get(slot).copied().unwrap_or_default()
    }
}

type Sink<'a, E> = dyn FnMut(&Record<'_>) -> Result<(), E> + 'a;

pub(crate) struct Recovery<'a, 's, D, E> {
    mirror: &'a mut Mirror<D>,
    sink: &'a mut Sink<'s, E>,
    read_only: bool,
    home: Home,
    segments: Vec<Segment>,
    segment_blocks: u64,
    reader: Reader,
    chunk: Option<Chunk>,
    /// Copies that failed at a write: still read, no longer written.
    failing: Vec<bool>,
    commit: AlignedBuffer,
    scratch: Vec<u8>,
    /// Findings of the last commit: only a later one proves that they were faults.
    tail: Vec<Finding>,
    logs: Logs,
    /// By log slot: the last position that the restored checkpoint holds, 0 for none.
    known: Vec<Position>,
    doubt: Doubt,
    damaged: bool,
    last_real: CommitSeq,
    resume: ResumePoint,
    extents: Vec<Extent>,
    report: RecoveryReport,
}

impl<'a, 's, D: Disk, E> Recovery<'a, 's, D, E> {
    pub(crate) fn new(mirror: &'a mut Mirror<D>, sink: &'a mut Sink<'s, E>, read_only: bool) -> Self {
        let state = &mirror.state;
        let home = Home { store: state.store, lineage: state.lineage, directory: state.directory };
        let segment_blocks = state.segment_blocks();
        let copies = mirror.copies.len();
        let resume = ResumePoint {
            commit: state.first_commit,
            generation: state.first,
            number: 0,
            previous: state.first_hash,
        };
        let report = RecoveryReport { slots_repaired: mirror.slots_repaired, ..RecoveryReport::default() };
        Self {
            mirror,
            sink,
            read_only,
            home,
            segments: Vec::new(),
            segment_blocks,
            reader: Reader::default(),
            chunk: None,
            failing: vec![false; copies],
            commit: AlignedBuffer::default(),
            scratch: Vec::new(),
            tail: Vec::new(),
            logs: Logs::default(),
            known: Vec::new(),
            doubt: Doubt::default(),
            damaged: false,
            last_real: CommitSeq(0),
            resume,
            extents: Vec::new(),
            report,
        }
    }

    /// Reads from `resume` on, or everything, repairs, and applies the tail rule. Membership is left
    /// to the caller. `known`: up to where the restored checkpoints hold each log.
    pub(crate) fn run(
        mut self,
        resume: Option<ResumePoint>,
        known: &[(LogId, Position)],
    ) -> Result<Recovered, RecoverError<E>> {
        let free = self.open_segments()?;
        for &(log, position) in known.iter().filter(|(_, position)| position.0 > 0) {
            let slot = self.logs.slot(log);
            self.known.resize(self.known.len().max(slot + 1), Position(0));
            self.known[slot] = position;
        }
        let state = &self.mirror.state;
        let head =
            Chain { at: 0, expected: state.first_commit, previous: Some(state.first_hash), epoch: Epoch(0) };
        if let Some(first) = self.segments.first_mut() {
            first.first_commit = state.first_commit;
            first.first_hash = state.first_hash;
        }
        let resumed = match resume {
            Some(point) => self.resume_at(&point)?,
            None => None,
        };
        let mut chain = resumed.unwrap_or(head);
        loop {
            if self.take_commit(&mut chain)? || self.roll(&mut chain)? {
                continue;
            }
            let exam = self.examine(&chain)?;
            let evidence = exam.later.unwrap_or_default().max(exam.watermark).max(self.report.watermark);
            if evidence < chain.expected {
                self.find_missing_ends(&chain);
                self.cut(&chain, &exam)?;
                break;
            }
            if !self.pass_hole(&mut chain, &exam, evidence)? {
                break;
            }
        }
        self.settle_doubt(&chain);
        Ok(self.finish(&chain, free))
    }

    /// Begins at a place that the checkpoints remember, and takes its commit. `None` when it is not
    /// there any more, or anything about it is not as it should be: the head of the journal decides.
    fn resume_at(&mut self, point: &ResumePoint) -> Result<Option<Chain>, RecoverError<E>> {
        let segment = self.segments.iter().position(|segment| segment.generation == point.generation);
        let Some(segment) = segment else { return Ok(None) };
        let number = u64::from(point.number);
        // A named file that is absent on every copy is damage, and only the whole chain names it.
        if self.damaged || number >= self.segment_blocks {
            return Ok(None);
        }
        let start = segment as u64 * self.segment_blocks;
        // When this segment is the oldest one left, the superblock must say how it begins.
        let state = &self.mirror.state;
        let first = if segment == 0 {
            (state.first_commit, state.first_hash)
        } else if number == 0 {
            (point.commit, point.previous)
        } else {
            match self.first_of(start)? {
                Some(header) if header.commit < point.commit => (header.commit, header.previous),
                _ => return Ok(None),
            }
        };
        let mut chain = Chain {
            at: start + number,
            expected: point.commit,
            previous: Some(point.previous),
            epoch: Epoch(0),
        };
        if !self.take_commit(&mut chain)? {
            return Ok(None);
        }
        self.report.resumed = Some(point.commit);
        (self.segments[segment].first_commit, self.segments[segment].first_hash) = first;
        for skipped in &mut self.segments[..segment] {
            // Where its last commit ends is not known, nor what it holds: as much as there can be.
            skipped.used = self.segment_blocks as u32;
            skipped.skipped = true;
        }
        let partly = usize::from(number > 0);
        for segment in &mut self.segments[..segment + partly] {
            for (slot, &known) in self.known.iter().enumerate().filter(|(_, known)| known.0 > 0) {
                segment.may_hold(slot, known);
            }
        }
        Ok(Some(chain))
    }

    /// The block at the start of a segment, if it begins a commit on any copy. Reads that block only.
    fn first_of(&mut self, at: Address) -> Result<Option<Header>, StoreError> {
        let mut parts = Vec::with_capacity(2);
        for copy in self.mirror.copies.live() {
            parts.push((copy, self.read_piecewise(copy, at, BLOCK)?));
        }
        self.chunk = Some(Chunk { at, blocks: 1, parts });
        let Some(seen) = self.see(at)? else { return Ok(None) };
        let sound = seen.found[..seen.parts].iter().filter_map(|found| match found {
            Found::Sound(header) if header.index == 0 => Some(*header),
            _ => None,
        });
        // As in the chain: what was cut and came back has the older epoch.
        Ok(sound.max_by_key(|header| header.epoch))
    }

    fn known(&self, slot: usize) -> Position {
        self.known.get(slot).copied().unwrap_or_default()
    }

    /// A checkpoint is written only when the log is durable up to it. So a log that ends before its
    /// checkpoint has lost its end, on a disk that lies; to cut there would hide it. (A log of which
    /// nothing was read ends with its checkpoint.)
    fn find_missing_ends(&mut self, chain: &Chain) {
        for slot in 0..self.known.len() {
            let (known, state) = (self.known(slot), *self.logs.state(slot));
            if state.last.0 > 0 && state.last < known && !self.doubt.is_affected(slot) {
                self.damaged = true;
                self.report.lost.push(Lost {
                    log: Some(state.log),
                    from: state.last.next(),
                    to: Some(known),
                    proven: true,
                    commits: (chain.expected, chain.expected),
                });
            }
        }
    }

    fn end(&self) -> Address {
        self.segments.len() as u64 * self.segment_blocks
    }

    fn place(&self, at: Address) -> Place {
        let segment = (at / self.segment_blocks) as usize;
        let generation = self.segments.get(segment).map_or(Generation(0), |segment| segment.generation);
        Place { generation, number: (at % self.segment_blocks) as u32 }
    }

    /// Opens every named segment on every in-sync copy; one that is absent on one copy only is made
    /// anew, and its blocks are repaired like any others. Gives the files that nothing names.
    fn open_segments(&mut self) -> Result<Vec<Vec<String>>, StoreError> {
        let (first, last) = (self.mirror.state.first, self.mirror.state.last);
        let mut free = vec![Vec::new(); self.mirror.copies.len()];
        let mut there = vec![Vec::new(); self.mirror.copies.len()];
        for copy in self.mirror.copies.live() {
            let names = match self.mirror.copies.run(copy, Lane::Bulk, Op::List) {
                Ok(Done::Names(names)) => names,
                Ok(_) => return Err(self.mirror.disk_error(copy, protocol_error("the directory"))),
                Err(error) => return Err(self.mirror.disk_error(copy, error)),
            };
            for (name, len) in names {
                match parse_segment_name(&name) {
                    Some(generation) if generation >= first && generation <= last => {
                        there[copy].push(generation);
                    }
                    Some(_) if len == self.mirror.state.segment_len => free[copy].push(name),
                    None if is_known(&name) => {}
                    _ => self.report.unknown_files.push((copy, name)),
                }
            }
        }
        let mut generation = first;
        while generation <= last {
            let mut files = vec![None; self.mirror.copies.len()];
            let anywhere = there.iter().any(|there| there.contains(&generation));
            for copy in self.mirror.copies.live() {
                if there[copy].contains(&generation) {
                    let op = Op::Open { name: segment_name(generation) };
                    files[copy] = Some(self.open(copy, op)?);
                } else if anywhere && !self.read_only {
                    let len = self.mirror.state.segment_len;
                    files[copy] = self.create_again(copy, generation, len);
                }
            }
            if !anywhere {
                // The name was durable before the superblock named it, so no crash explains this.
                self.damaged = true;
            }
            self.segments.push(Segment::new(generation, files));
            generation = generation.next();
        }
        self.sync_segments()?;
        Ok(free)
    }

    /// After `kill -9` the page cache shows blocks that a power cut would take. What is handed out
    /// must not un-happen, so everything visible is made durable first.
    fn sync_segments(&mut self) -> Result<(), StoreError> {
        if self.read_only {
            return Ok(());
        }
        let mut tickets = Vec::new();
        for segment in &self.segments {
            for copy in self.mirror.copies.live() {
                if let Some(file) = segment.files[copy] {
                    let op = Op::Sync { file };
                    tickets.push((copy, self.mirror.copies.submit(copy, Owner::Run, Lane::Bulk, op)));
                }
            }
        }
        self.mirror.copies.start();
        for (copy, ticket) in tickets {
            match self.mirror.copies.finish(copy, ticket) {
                Ok(_) => {}
                Err(error) if error.kind == DiskErrorKind::Gone => {
                    return Err(self.mirror.disk_error(copy, error));
                }
                Err(error) => self.give_up(copy, error),
            }
        }
        Ok(())
    }

    fn open(&mut self, copy: CopyIndex, op: Op) -> Result<crate::disk::FileId, StoreError> {
        match self.mirror.copies.run(copy, Lane::Bulk, op) {
            Ok(Done::Opened { file, .. }) => Ok(file),
            Ok(_) => Err(self.mirror.disk_error(copy, protocol_error("a segment"))),
            Err(error) => Err(self.mirror.disk_error(copy, error)),
        }
    }

    /// A segment that a copy lost as a whole. A copy that cannot take it back is dropped later.
    fn create_again(
        &mut self,
        copy: CopyIndex,
        generation: Generation,
        len: u64,
    ) -> Option<crate::disk::FileId> {
        let created =
            self.mirror.copies.run(copy, Lane::Bulk, Op::Create { name: segment_name(generation), len });
        let synced = created.and_then(|done| {
            self.mirror.copies.run(copy, Lane::Bulk, Op::SyncNames)?;
            Ok(done)
        });
        match synced {
            Ok(Done::Opened { file, .. }) => Some(file),
            Ok(_) => None,
            Err(error) => {
                self.give_up(copy, error);
                None
            }
        }
    }

    fn give_up(&mut self, copy: CopyIndex, error: DiskError) {
        if !self.failing[copy] {
            self.failing[copy] = true;
            self.report.dropped.push((copy, error));
        }
    }

    // ---- reading -------------------------------------------------------------------------------

    /// Everything from where it reads now up to `until` will be looked at.
    fn want(&mut self, until: Address) {
        self.reader.wanted = Some(until);
    }

    /// Reads ahead of `position`.
    fn fill(&mut self, position: Address) {
        let in_a_row = position.saturating_sub(self.reader.since).max((FIRST / BLOCK) as u64);
        let until = self.reader.wanted.unwrap_or(position + in_a_row).min(self.end());
        let mut submitted = false;
        while self.reader.ahead.len() < DEPTH && self.reader.next < until {
            let at = self.reader.next;
            let inside = at % self.segment_blocks;
            let blocks = (self.segment_blocks - inside).min((CHUNK / BLOCK) as u64).min(until - at);
            let segment = (at / self.segment_blocks) as usize;
            let mut tickets = Vec::with_capacity(2);
            for copy in self.mirror.copies.live() {
                let Some(file) = self.segments[segment].files[copy] else { continue };
                let op = Op::Read { file, offset: inside * BLOCK as u64, len: blocks as usize * BLOCK };
                tickets.push((copy, self.mirror.copies.submit(copy, Owner::Run, Lane::Bulk, op)));
            }
            self.reader.ahead.push_back(Ahead { at, blocks, tickets });
            self.reader.next = at + blocks;
            submitted = true;
        }
        if submitted {
            self.mirror.copies.start();
        }
    }

    /// Makes the current chunk hold `at`. False beyond the end.
    fn load(&mut self, at: Address) -> Result<bool, StoreError> {
        if self.chunk.as_ref().is_some_and(|chunk| chunk.has(at)) {
            return Ok(true);
        }
        if at >= self.end() {
            return Ok(false);
        }
        while self.reader.ahead.front().is_some_and(|ahead| at < ahead.at || at >= ahead.at + ahead.blocks) {
            let Some(ahead) = self.reader.ahead.pop_front() else { break };
            for (copy, ticket) in ahead.tickets {
                // Whatever it says: if it matters, it is read again.
                let _ = self.mirror.copies.finish(copy, ticket);
            }
        }
        if self.reader.ahead.is_empty() {
            (self.reader.since, self.reader.next) = (at, at);
            self.reader.wanted = self.reader.wanted.filter(|&wanted| wanted > at);
        }
        self.fill(at);
        let Some(ahead) = self.reader.ahead.pop_front() else { return Ok(false) };
        let mut parts = Vec::with_capacity(2);
        for (copy, ticket) in ahead.tickets {
            let len = ahead.blocks as usize * BLOCK;
            let data = match self.mirror.copies.finish(copy, ticket) {
                Ok(Done::Read(data)) => pad(data, len),
                Ok(_) => return Err(self.mirror.disk_error(copy, protocol_error("a segment"))),
                Err(error) if error.kind == DiskErrorKind::Gone => {
                    return Err(self.mirror.disk_error(copy, error));
                }
                Err(_) => self.read_piecewise(copy, ahead.at, len)?,
            };
            parts.push((copy, data));
        }
        self.chunk = Some(Chunk { at: ahead.at, blocks: ahead.blocks, parts });
        // The next reads run while this chunk is looked at.
        self.fill(ahead.at + ahead.blocks);
        Ok(true)
    }

    /// A read failed somewhere: reads block by block, so that one bad sector costs one block.
    fn read_piecewise(
        &mut self,
        copy: CopyIndex,
        at: Address,
        len: usize,
    ) -> Result<AlignedBuffer, StoreError> {
        let mut out = AlignedBuffer::zeroed(len);
        let segment = (at / self.segment_blocks) as usize;
        let Some(file) = self.segments[segment].files[copy] else { return Ok(out) };
        for (index, piece) in out.chunks_exact_mut(BLOCK).enumerate() {
            let offset = (at % self.segment_blocks + index as u64) * BLOCK as u64;
            match self.mirror.copies.run(copy, Lane::Bulk, Op::Read { file, offset, len: BLOCK }) {
                Ok(Done::Read(data)) => {
                    piece[..data.len().min(BLOCK)].copy_from_slice(&data[..data.len().min(BLOCK)])
                }
                Ok(_) => return Err(self.mirror.disk_error(copy, protocol_error("a segment"))),
                Err(error) if error.kind == DiskErrorKind::Gone => {
                    return Err(self.mirror.disk_error(copy, error));
                }
                Err(_) => {
                    // Neither blank nor sound, so that it counts as damage and is written anew.
                    piece.fill(0xBD);
                    self.report.read_errors += 1;
                }
            }
        }
        Ok(out)
    }

    /// Judges what stands at `at`, or `None` beyond the end.
    fn see(&mut self, at: Address) -> Result<Option<Seen>, StoreError> {
        if !self.load(at)? {
            return Ok(None);
        }
        let place = self.place(at);
        let Some(chunk) = self.chunk.as_ref() else { return Ok(None) };
        let parts = chunk.parts.len().min(2);
        let mut seen = Seen { found: [Found::Blank; 2], parts, equal: false };
        if parts > 0 {
            seen.found[0] = block::judge(chunk.block(0, at), &self.home, place);
        }
        if parts > 1 {
            seen.equal = chunk.block(0, at) == chunk.block(1, at);
            seen.found[1] =
                if seen.equal { seen.found[0] } else { block::judge(chunk.block(1, at), &self.home, place) };
        }
        for (part, found) in seen.found.iter_mut().enumerate() {
            match *found {
                // No epoch is written before the superblock has it, so the superblock went back in
                // time. Blanking what it does not know would finish the loss.
                Found::Sound(header) if header.epoch > self.mirror.state.epoch => {
                    let place = self.mirror.place(chunk.parts[part].0);
                    let known = self.mirror.state.epoch;
                    return Err(StoreError::SuperblockBehind { place, known, found: header.epoch });
                }
                Found::Sound(header) if !self.is_of_this_history(&header) => *found = Found::Misplaced,
                Found::Unsupported { version, flags } => {
                    let directory = self.mirror.place(chunk.parts[part].0);
                    let place = format!("{directory}, file {}", segment_name(place.generation));
                    return Err(StoreError::BlockVersion { place, version, flags });
                }
                _ => {}
            }
        }
        Ok(Some(seen))
    }

    /// Epochs fence a process that should be dead: what it writes after the last opening carries
    /// too old an epoch.
    fn is_of_this_history(&self, header: &Header) -> bool {
        let state = &self.mirror.state;
        header.commit <= state.floor_commit || header.epoch >= state.floor_epoch
    }

    // ---- the chain -----------------------------------------------------------------------------

    /// Takes the expected commit at `chain.at`, if it is whole in the union.
    fn take_commit(&mut self, chain: &mut Chain) -> Result<bool, RecoverError<E>> {
        let Some(first) = self.see(chain.at)? else { return Ok(false) };
        let mut starts: Vec<Header> = Vec::with_capacity(2);
        for found in &first.found[..first.parts] {
            if let Found::Sound(header) = *found
                && header.commit == chain.expected
                && header.index == 0
                && header.epoch >= chain.epoch
                && chain.previous.is_none_or(|previous| previous == header.previous)
                && !starts.contains(&header)
            {
                starts.push(header);
            }
        }
        // The same place may hold what was once cut and came back (a lost write of zeros).
        starts.sort_by_key(|header| std::cmp::Reverse(header.epoch));
        for start in starts {
            if self.assemble(chain, &start)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn assemble(&mut self, chain: &mut Chain, start: &Header) -> Result<bool, RecoverError<E>> {
        let count = u64::from(start.count);
        if chain.at % self.segment_blocks + count > self.segment_blocks {
            return Ok(false);
        }
        let mut commit = std::mem::take(&mut self.commit);
        commit.set_len(count as usize * BLOCK);
        let mut findings = Vec::new();
        let mut last_used = 0;
        let mut whole = true;
        for index in 0..count {
            let at = chain.at + index;
            let Some(seen) = self.see(at)? else {
                whole = false;
                break;
            };
            let fits = |found: &Found| match found {
                Found::Sound(header) => {
                    header.commit == start.commit
                        && u64::from(header.index) == index
                        && header.count == start.count
                        && header.epoch == start.epoch
                        && header.previous == start.previous
                }
                _ => false,
            };
            let Some(good) = seen.found[..seen.parts].iter().position(fits) else {
                whole = false;
                break;
            };
            if let Found::Sound(header) = seen.found[good] {
                last_used = usize::from(header.used);
            }
            let Some(chunk) = self.chunk.as_ref() else { break };
            let range = index as usize * BLOCK..(index as usize + 1) * BLOCK;
            commit[range].copy_from_slice(chunk.block(good, at));
            if !(seen.parts == 2 && seen.equal) {
                for part in (0..seen.parts).filter(|&part| part != good) {
                    findings.push((at, chunk.parts[part].0, kind_of(&seen.found[part])));
                }
            }
        }
        if whole {
            self.accept(chain, start, &commit, last_used, findings)?;
        }
        self.commit = commit;
        Ok(whole)
    }

    fn accept(
        &mut self,
        chain: &mut Chain,
        start: &Header,
        commit: &AlignedBuffer,
        last_used: usize,
        findings: Vec<(Address, CopyIndex, FindingKind)>,
    ) -> Result<(), RecoverError<E>> {
        self.prove_tail();
        if !findings.is_empty() {
            self.repair(chain.at, commit, &findings)?;
            for (at, copy, kind) in findings {
                let finding = self.finding(at, copy, start.commit, kind);
                self.tail.push(finding);
            }
        }
        let count = u64::from(start.count);
        let segment = (chain.at / self.segment_blocks) as usize;
        self.resume = ResumePoint {
            commit: start.commit,
            generation: start.place.generation,
            number: start.place.number,
            previous: start.previous,
        };
        if chain.at.is_multiple_of(self.segment_blocks) {
            self.segments[segment].first_commit = start.commit;
            self.segments[segment].first_hash = start.previous;
        }
        self.segments[segment].used = (chain.at % self.segment_blocks + count) as u32;
        self.report.commits += 1;
        self.report.watermark = self.report.watermark.max(start.watermark);
        self.report.last_commit = start.commit;
        self.extents.clear();
        self.deliver(commit, last_used, true, start.commit)?;
        let extents = std::mem::take(&mut self.extents);
        self.segments[segment].note(&extents, &mut self.logs);
        if !extents.is_empty() {
            self.last_real = start.commit;
        }
        self.extents = extents;
        chain.at += count;
        chain.expected = start.commit.next();
        chain.previous = Some(commit_hash(commit));
        chain.epoch = start.epoch;
        Ok(())
    }

    /// The commit before the one just found was durable, so what it lacked was a fault.
    fn prove_tail(&mut self) {
        for finding in std::mem::take(&mut self.tail) {
            self.report.repaired += 1;
            self.report.find(finding);
        }
    }

    fn finding(&self, at: Address, copy: CopyIndex, commit: CommitSeq, kind: FindingKind) -> Finding {
        let place = self.place(at);
        Finding {
            copy,
            directory: self.mirror.place(copy),
            file: segment_name(place.generation),
            block: place.number,
            commit,
            kind,
        }
    }

    /// Writes good blocks over bad ones, durable before anything of the commit is handed out.
    fn repair(
        &mut self,
        start: Address,
        commit: &AlignedBuffer,
        findings: &[(Address, CopyIndex, FindingKind)],
    ) -> Result<(), StoreError> {
        for copy in 0..self.mirror.copies.len() {
            let places = findings.iter().filter(|&&(_, bad, _)| bad == copy).map(|&(at, _, _)| at);
            for (at, blocks) in runs(places, self.segment_blocks) {
                let from = (at - start) as usize * BLOCK;
                let data = AlignedBuffer::copy_of(&commit[from..from + blocks as usize * BLOCK]);
                self.write(copy, at, data)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, copy: CopyIndex, at: Address, data: AlignedBuffer) -> Result<(), StoreError> {
        if self.read_only || self.failing[copy] {
            return Ok(());
        }
        let segment = (at / self.segment_blocks) as usize;
        let Some(file) = self.segments[segment].files[copy] else { return Ok(()) };
        let offset = (at % self.segment_blocks) * BLOCK as u64;
        match self.mirror.copies.run(copy, Lane::Commit, Op::Write { file, offset, data, durable: true }) {
            Ok(_) => Ok(()),
            Err(error) if error.kind == DiskErrorKind::Gone => Err(self.mirror.disk_error(copy, error)),
            Err(error) => {
                self.give_up(copy, error);
                Ok(())
            }
        }
    }

    /// Goes on in the next segment, if the expected commit starts there because it did not fit here.
    fn roll(&mut self, chain: &mut Chain) -> Result<bool, RecoverError<E>> {
        if chain.at.is_multiple_of(self.segment_blocks) {
            return Ok(false);
        }
        let mut next = *chain;
        next.at = (chain.at / self.segment_blocks + 1) * self.segment_blocks;
        if !self.take_commit(&mut next)? {
            return Ok(false);
        }
        *chain = next;
        Ok(true)
    }

    /// Looks from the hole on for what proves that it is one: [`EXAMINED`] bytes of this segment, and
    /// as many at the start of each later one. (To read what is blank to its end would make every
    /// start as slow as a full segment; decision 0001 says what this gives up.)
    fn examine(&mut self, chain: &Chain) -> Result<Exam, StoreError> {
        let mut exam = Exam::default();
        let mut at = chain.at;
        let window = EXAMINED / BLOCK as u64;
        let segment_end = |at: Address, blocks: u64| (at / blocks + 1) * blocks;
        self.want((at + window).min(segment_end(at, self.segment_blocks)));
        while let Some(seen) = self.see(at)? {
            let mut junk = false;
            let mut counted = false;
            for found in &seen.found[..seen.parts] {
                match found {
                    Found::Blank | Found::Stale => {}
                    Found::Sound(header) => {
                        junk = true;
                        exam.watermark = exam.watermark.max(header.watermark);
                        if header.commit > chain.expected {
                            exam.later = exam.later.max(Some(header.commit));
                            if header.index == 0 && exam.resume.is_none() {
                                exam.resume = Some((at, header.commit));
                            }
                        } else if header.commit == chain.expected {
                            counted = true;
                            if exam.partial.last().is_none_or(|&(last, _)| last != at) {
                                exam.partial.push((at, *header));
                            }
                        }
                    }
                    Found::Damaged => {
                        junk = true;
                        counted = true;
                    }
                    Found::Misplaced | Found::Unsupported { .. } => junk = true,
                }
            }
            if junk {
                exam.junk.push(at);
            }
            if counted {
                exam.junk_bytes += BLOCK as u64;
            }
            if exam.resume.is_some() {
                break;
            }
            at += 1;
            // A later commit begins where this one ends, or at the start of a segment: what lies
            // further behind can only be reached over this window.
            let from = if at / self.segment_blocks == chain.at / self.segment_blocks {
                chain.at
            } else {
                at / self.segment_blocks * self.segment_blocks
            };
            if !junk && at - from >= window {
                at = segment_end(at, self.segment_blocks);
            }
            if at.is_multiple_of(self.segment_blocks) {
                self.want((at + window).min(segment_end(at, self.segment_blocks)));
            }
        }
        Ok(exam)
    }

    /// The expected commit was in flight when the power went. What there is of it is blanked, so
    /// that no later scan meets it.
    fn cut(&mut self, chain: &Chain, exam: &Exam) -> Result<(), StoreError> {
        if exam.junk_bytes > 0 {
            self.report.cut = Some(Cut { commit: chain.expected, bytes: exam.junk_bytes });
        }
        if self.damaged {
            return Ok(());
        }
        for copy in self.mirror.copies.live() {
            for (at, blocks) in runs(exam.junk.iter().copied(), self.segment_blocks) {
                self.write(copy, at, AlignedBuffer::zeroed(blocks as usize * BLOCK))?;
            }
        }
        Ok(())
    }

    // ---- damage --------------------------------------------------------------------------------

    /// Acknowledged commits are lost. Hands out what can be saved of the first one and steps to the
    /// next sound commit. False when there is none.
    fn pass_hole(
        &mut self,
        chain: &mut Chain,
        exam: &Exam,
        evidence: CommitSeq,
    ) -> Result<bool, RecoverError<E>> {
        self.prove_tail();
        self.damaged = true;
        let last = exam.resume.map_or(evidence, |(_, commit)| CommitSeq(commit.0 - 1));
        let hole = (chain.expected, last.max(chain.expected));
        self.doubt.suspect = vec![Some(hole); self.logs.all().len()];
        self.doubt.affected.resize(self.logs.all().len(), false);
        self.doubt.unseen = Some(hole);
        self.doubt.fresh = None;
        self.save_partial(chain, exam)?;
        let bad: Vec<_> = exam.resume.map_or_else(Vec::new, |(end, _)| (chain.at..end).collect());
        for at in bad.into_iter().take(LISTED) {
            let Some(seen) = self.see(at)? else { break };
            for part in 0..seen.parts {
                if !matches!(seen.found[part], Found::Sound(_))
                    && let Some(copy) = self.chunk.as_ref().map(|chunk| chunk.parts[part].0)
                {
                    let finding = self.finding(at, copy, chain.expected, kind_of(&seen.found[part]));
                    self.report.find(finding);
                }
            }
        }
        self.doubt.fresh = Some(hole);
        let Some((at, expected)) = exam.resume else { return Ok(false) };
        *chain = Chain { at, expected, previous: None, epoch: chain.epoch };
        Ok(true)
    }

    /// Hands out the records that lie whole in sound blocks of the damaged commit.
    fn save_partial(&mut self, chain: &Chain, exam: &Exam) -> Result<(), RecoverError<E>> {
        let Some(&(_, key)) = exam.partial.first() else { return Ok(()) };
        let mut run: Option<(Header, AlignedBuffer)> = None;
        let mut runs: Vec<(Header, AlignedBuffer, usize)> = Vec::new();
        let mut last: Option<(u16, usize)> = None;
        for &(at, header) in &exam.partial {
            if (header.epoch, header.previous, header.count) != (key.epoch, key.previous, key.count) {
                continue;
            }
            let Some(seen) = self.see(at)? else { break };
            let good = seen.found[..seen.parts].iter().position(|found| *found == Found::Sound(header));
            let (Some(good), Some(chunk)) = (good, self.chunk.as_ref()) else { continue };
            let bytes = chunk.block(good, at);
            let joins = last.is_some_and(|(index, _)| index + 1 == header.index);
            match run.as_mut() {
                Some((_, data)) if joins => {
                    let len = data.len();
                    data.set_len(len + BLOCK);
                    data[len..].copy_from_slice(bytes);
                }
                _ => {
                    if let (Some((first, data)), Some((_, used))) = (run.take(), last) {
                        runs.push((first, data, used));
                    }
                    run = Some((header, AlignedBuffer::copy_of(bytes)));
                }
            }
            last = Some((header.index, usize::from(header.used)));
        }
        if let (Some((first, data)), Some((_, used))) = (run, last) {
            runs.push((first, data, used));
        }
        for (first, data, used) in runs {
            let whole = first.index == 0;
            if !whole && first.first_record == block::NO_RECORD {
                // The run may begin inside a long record and hold starts only later.
                let start = data.chunks_exact(BLOCK).position(|b| block::first_record(b) != block::NO_RECORD);
                let Some(start) = start else { continue };
                let rest = AlignedBuffer::copy_of(&data[start * BLOCK..]);
                self.deliver(&rest, used, false, chain.expected)?;
            } else {
                self.deliver(&data, used, whole, chain.expected)?;
            }
        }
        Ok(())
    }

    /// Hands out the records of consecutive blocks. `whole`: they begin at the commit's first block.
    fn deliver(
        &mut self,
        blocks: &AlignedBuffer,
        last_used: usize,
        whole: bool,
        commit: CommitSeq,
    ) -> Result<(), RecoverError<E>> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut walk = Walk::new(blocks, last_used, &mut scratch);
        if whole {
            let index = walk.index();
            if let Some(hole) = self.doubt.fresh.take() {
                self.apply_index(hole, index);
            }
        } else {
            walk.skip(usize::from(block::first_record(blocks)));
        }
        let mut result = Ok(());
        while let Some(record) = walk.record() {
            result = self.hand_out(&record, commit);
            if result.is_err() {
                break;
            }
        }
        self.scratch = scratch;
        result
    }

    fn hand_out(&mut self, record: &Record<'_>, commit: CommitSeq) -> Result<(), RecoverError<E>> {
        let slot = self.logs.slot(record.log);
        let (last, known) = (self.logs.state(slot).last, self.known(slot));
        // A log may begin anywhere, but not behind what its checkpoint does not reach.
        let begins = last.0 == 0 && (known.0 == 0 || record.position <= known.next());
        if !self.damaged && (begins || record.position == last.next()) {
            // The common case: nothing is in doubt.
            self.logs.note(record, commit.0, &mut self.extents)?;
            self.report.records += 1;
            return (self.sink)(record).map_err(RecoverError::Sink);
        }
        if record.position <= last {
            return Ok(());
        }
        if self.doubt.affected.len() <= slot {
            self.doubt.affected.resize(slot + 1, false);
            self.doubt.suspect.resize(slot + 1, None);
        }
        let gap = if last.0 == 0 && known.0 > 0 {
            record.position > known.next()
        } else if last.0 == 0 {
            record.position.0 > 1 && self.doubt.unseen.is_some()
        } else {
            record.position != last.next()
        };
        if gap {
            self.damaged = true;
            self.doubt.affected[slot] = true;
            let commits = self.doubt.suspect[slot].or(self.doubt.unseen).unwrap_or((commit, commit));
            self.report.lost.push(Lost {
                log: Some(record.log),
                from: if last.0 == 0 && known.0 == 0 { Position(0) } else { last.max(known).next() },
                to: Some(Position(record.position.0 - 1)),
                proven: last.0 != 0 || known.0 != 0,
                commits,
            });
            self.logs.state(slot).last = Position(record.position.0 - 1);
        }
        self.doubt.suspect[slot] = None;
        self.logs.note(record, commit.0, &mut self.extents)?;
        if self.doubt.affected[slot] {
            return Ok(());
        }
        self.report.records += 1;
        (self.sink)(record).map_err(RecoverError::Sink)
    }

    /// The commit after a hole says what the last commit in the hole held.
    fn apply_index(&mut self, hole: (CommitSeq, CommitSeq), index: Option<Vec<Extent>>) {
        let Some(index) = index else { return };
        let exact = hole.0 == hole.1;
        for extent in &index {
            let slot = self.logs.slot(extent.log);
            if self.doubt.affected.len() <= slot {
                self.doubt.affected.resize(slot + 1, false);
                self.doubt.suspect.resize(slot + 1, None);
            }
            let last = self.logs.state(slot).last;
            if last >= extent.last() {
                // Everything of it was saved.
                continue;
            }
            let from = if last.0 == 0 { extent.first } else { last.next() };
            self.report.lost.push(Lost {
                log: Some(extent.log),
                from,
                to: Some(extent.last()),
                proven: true,
                commits: hole,
            });
            self.doubt.affected[slot] = true;
            self.doubt.suspect[slot] = None;
            self.logs.state(slot).last = extent.last();
        }
        if exact {
            // The index is complete: a log that it does not list lost nothing.
            self.doubt.suspect.fill(None);
            self.doubt.unseen = None;
        } else {
            for extent in &index {
                let slot = self.logs.slot(extent.log);
                self.doubt.suspect[slot] = None;
            }
        }
    }

    /// Logs that nothing after the hole speaks of cannot be proven whole.
    fn settle_doubt(&mut self, chain: &Chain) {
        if !self.damaged {
            return;
        }
        for (slot, suspect) in self.doubt.suspect.iter().enumerate() {
            if let (Some(hole), Some(state)) = (suspect, self.logs.all().get(slot)) {
                self.report.lost.push(Lost {
                    log: Some(state.log),
                    from: state.last.max(self.known(slot)).next(),
                    to: None,
                    proven: false,
                    commits: *hole,
                });
            }
        }
        if let (Some(hole), true) = (self.doubt.unseen, self.report.lost.is_empty()) {
            self.report.lost.push(Lost {
                log: None,
                from: Position(0),
                to: None,
                proven: false,
                commits: hole,
            });
        }
        if self.report.lost.is_empty() {
            // A whole segment is gone at the end, or commits that held no record of any log (idle
            // ones): nothing that is left names what they held.
            let commits = (chain.expected, chain.expected);
            self.report.lost.push(Lost { log: None, from: Position(0), to: None, proven: false, commits });
        }
    }

    fn finish(mut self, chain: &Chain, free: Vec<Vec<String>>) -> Recovered {
        let tail = std::mem::take(&mut self.tail);
        for finding in tail {
            // Damage is damage; what is merely absent on one copy was still on its way.
            if finding.kind == FindingKind::Damaged || chain.expected.0 <= self.report.watermark.0 + 1 {
                self.report.repaired += 1;
                self.report.find(finding);
            } else {
                self.report.completed += 1;
            }
        }
        for (slot, &known) in self.known.iter().enumerate() {
            let state = self.logs.state(slot);
            state.last = state.last.max(known);
        }
        let current = (chain.at.saturating_sub(1) / self.segment_blocks) as usize;
        let mut segments: VecDeque<Segment> = self.segments.into();
        let ready = segments.split_off((current + 1).min(segments.len()));
        self.report.bytes = segments.iter().map(|segment| u64::from(segment.used) * BLOCK as u64).sum();
        Recovered {
            logs: self.logs,
            segments,
            ready,
            free,
            last: CommitSeq(chain.expected.0.saturating_sub(1)),
            hash: chain.previous.unwrap_or_default(),
            last_real: self.last_real,
            resume: self.resume,
            extents: self.extents,
            report: self.report,
        }
    }
}

fn kind_of(found: &Found) -> FindingKind {
    match found {
        Found::Blank | Found::Stale => FindingKind::Missing,
        Found::Misplaced => FindingKind::Misplaced,
        Found::Sound(_) => FindingKind::Differs,
        Found::Damaged | Found::Unsupported { .. } => FindingKind::Damaged,
    }
}

/// Files of this directory that other parts of the store own.
pub(crate) fn is_known(name: &str) -> bool {
    matches!(name, "lock" | "superblock") || name.starts_with("cp-") || name.starts_with("events-")
}

/// A short read lies beyond the end of a truncated file: nothing stands there.
fn pad(mut data: AlignedBuffer, len: usize) -> AlignedBuffer {
    if data.len() < len {
        let mut whole = AlignedBuffer::zeroed(len);
        whole[..data.len()].copy_from_slice(&data);
        data = whole;
    }
    data
}

/// Joins ascending addresses into runs of at most 1 MiB that stay inside a segment.
fn runs(places: impl Iterator<Item = Address>, segment_blocks: u64) -> Vec<(Address, u64)> {
    let mut runs: Vec<(Address, u64)> = Vec::new();
    for at in places {
        match runs.last_mut() {
            Some((start, len))
                if *start + *len == at
                    && *len < (CHUNK / BLOCK) as u64
                    && !at.is_multiple_of(segment_blocks) =>
            {
                *len += 1;
            }
            _ => runs.push((at, 1)),
        }
    }
    runs
}

/// The logs named by a list of losses.
#[must_use]
pub fn affected_logs(lost: &[Lost]) -> Vec<LogId> {
    let mut logs: Vec<LogId> = lost.iter().filter_map(|lost| lost.log).collect();
    logs.sort_unstable();
    logs.dedup();
    logs
}
