//! # The fault model of the simulated disk
//!
//! What is injected, where, and why recovery must still be possible.
//!
//! | fault | where | why recovery must be possible |
//! |---|---|---|
//! | power cut | after any operation, or *in* one ([`SimDrive::crash_after`]) | every completed `durable` write, every write covered by a completed `Sync` and every name covered by a completed `SyncNames` survives; the store may acknowledge only what rests on those |
//! | torn write | each 4 KiB block (with [`SimDrive::set_torn_sectors`] each 512 byte sector) of a write that is in flight or not synced is old or new, independently of every other | a commit is checked block by block and never overwrites one that counts |
//! | unsynced growth | the length of a file is any length it had since its last sync; a block that did not arrive reads as zeros | the length of a file proves nothing in this format |
//! | names undone | each create, rename, remove that no `SyncNames` covers is done or not, in any combination; a single rename is atomic | manifests are written under another name, synced, renamed, and the names synced |
//! | sync that overtakes | a `Sync` covers only writes *completed* before it was *submitted*; the same for `SyncNames` | the contract of [`crate::disk`]; an operating system gives no more |
//! | failed write | the n-th write; each of its blocks is old, new, or new only until the power goes | the copy is dropped, the other one has the bytes |
//! | failed sync | the n-th sync; reads go on showing the new bytes, but no later sync makes them durable (measured on ext4, XFS and btrfs) | the copy is dropped, never asked again |
//! | latent sector error | a range cannot be read until it is written whole again | the other copy has the bytes |
//! | bit rot | a flipped bit, a zeroed block | checksums, the other copy |
//! | lost write | the n-th write is acknowledged and the old content stays | the other copy has the newer block |
//! | misdirected write | the n-th write lands elsewhere in its file; its place keeps the old content | blocks carry their place; the other copy has both |
//! | lying sync | from a switch on, "durable" bytes live in a volatile cache | the other copy; both lying is outside the promise |
//! | no space | growing beyond a capacity | segments are preallocated, recovery needs no space |
//! | lost or exchanged disk | all files gone, or those of another drive | the other copy; epochs tell a stale one |
//! | reordering | completions in any order | the [`crate::disk`] contract allows it |
//!
//! Recovery must be possible as long as no block is bad on *every* in-sync copy. The caller keeps
//! that rule: the drives of a mirrored pair are two [`SimDrive`]s, and a test that injects rot or
//! lies into both at one place must expect refusal, not repair.
//!
//! Decides nothing about recovery. Never injects what it was not told to: without faults a drive is
//! a perfect disk, and even then a power cut takes what was not synced.
//!
//! Invariants: everything is a function of the seed and of the order of calls; what survives a power
//! cut is settled once, at the latest when the drive is next opened; a misuse by the store (unaligned
//! write to a segment, unknown file id, a name with a slash) is a panic, since it is a bug of the
//! store and not a fault of a disk.
//!
//! Source: TigerBeetle, `src/testing/storage.zig`; FoundationDB's `AsyncFileNonDurable`; Pillai et
//! al., "All File Systems Are Not Created Equal" (OSDI '14) for the names.

use crate::disk::{Completion, Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op, Ticket};
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::limits::BLOCK;
use rallypoint_base::random::Random;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR: usize = 512;
const BLOCK_BYTES: u64 = BLOCK as u64;

type Block = [u8; BLOCK];
/// A missing block is all zeros, so that a preallocated segment costs nothing.
type SparseBlock = Option<Arc<Block>>;
type InodeId = u64;
type SessionId = u64;

/// One simulated physical disk that holds one copy of a journal directory. A shared handle: it
/// outlives the crash of whoever uses it. See the module for the fault model.
#[derive(Clone, Debug)]
pub struct SimDrive(Arc<Mutex<State>>);

/// A power line that several drives hang on, with one operation counter over all of them.
#[derive(Clone, Debug, Default)]
pub struct SimPower(Arc<Mutex<PowerState>>);

/// One opening of a [`SimDrive`].
#[derive(Debug)]
pub struct SimDisk {
    drive: SimDrive,
    session: SessionId,
    name: String,
}

/// When operations complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completions {
    /// Each poll completes one operation in flight: the oldest, or with
    /// [`SimDrive::set_reordering`] one chosen by the seed.
    #[default]
    Immediate,
    /// Only [`SimDrive::complete`] and [`Disk::wait`] complete an operation.
    Manual,
}

/// What kind of operation is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "named like the operations of the disk port")]
pub enum OpKind {
    List,
    Open,
    Create,
    Read,
    Write,
    Sync,
    Rename,
    Remove,
    SyncNames,
    Close,
}

/// An operation in flight, for a simulator that decides when it completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Which operation.
    pub ticket: Ticket,
    /// Its queue.
    pub lane: Lane,
    /// What it does.
    pub kind: OpKind,
    /// The file it is about, by the name it had at submission; empty where there is none.
    pub file: String,
    /// From where (reads and writes).
    pub offset: u64,
    /// How many bytes (reads, writes, creation).
    pub bytes: u64,
    /// A write that completes only once it is durable.
    pub durable: bool,
}

/// Something that a power cut leaves undecided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// Does this block (this sector of it, with torn sectors) of a write survive? Asked once per
    /// write that touched it, oldest first; the last survivor is what stands there.
    Block {
        /// Name of the file, as the store last saw it.
        file: String,
        /// Which 4 KiB block of the file.
        block: u64,
        /// Which 512 byte sector of the block, when sectors may tear.
        sector: Option<usize>,
        /// The write had not completed.
        in_flight: bool,
    },
    /// Has the file grown to this length?
    Length {
        /// Name of the file.
        file: String,
        /// Bytes.
        len: u64,
    },
    /// Was this name created?
    Created(String),
    /// Was the file renamed?
    Renamed(String, String),
    /// Was this name removed?
    Removed(String),
}

/// How often each fault really happened; a simulation that ends with a zero has not tested it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Power cuts.
    pub crashes: u64,
    /// Blocks (or sectors) of unsynced writes that did not survive a power cut.
    pub blocks_undone: u64,
    /// Writes of which a part survived and a part did not.
    pub writes_torn: u64,
    /// Names whose creation, renaming or removal did not survive.
    pub names_undone: u64,
    /// Bits flipped.
    pub bits_flipped: u64,
    /// Blocks overwritten by zeros or by another block.
    pub blocks_replaced: u64,
    /// Writes that failed.
    pub writes_failed: u64,
    /// Reads that met a latent sector error.
    pub reads_failed: u64,
    /// Syncs that failed.
    pub syncs_failed: u64,
    /// Other operations made to fail.
    pub operations_failed: u64,
    /// Acknowledged writes that never happened.
    pub writes_lost: u64,
    /// Writes that landed elsewhere.
    pub writes_misdirected: u64,
    /// Syncs and durable writes that only claimed to be.
    pub syncs_lied: u64,
    /// Operations refused for lack of space.
    pub no_space: u64,
    /// Times that all files were lost or exchanged.
    pub disks_replaced: u64,
}

impl FaultCounts {
    /// Every count with its name, for a table.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, u64); 15] {
        [
            ("crashes", self.crashes),
            ("blocks_undone", self.blocks_undone),
            ("writes_torn", self.writes_torn),
            ("names_undone", self.names_undone),
            ("bits_flipped", self.bits_flipped),
            ("blocks_replaced", self.blocks_replaced),
            ("writes_failed", self.writes_failed),
            ("reads_failed", self.reads_failed),
            ("syncs_failed", self.syncs_failed),
            ("operations_failed", self.operations_failed),
            ("writes_lost", self.writes_lost),
            ("writes_misdirected", self.writes_misdirected),
            ("syncs_lied", self.syncs_lied),
            ("no_space", self.no_space),
            ("disks_replaced", self.disks_replaced),
        ]
    }
}

#[derive(Debug, Default)]
struct PowerState {
    ops: u64,
    crash_at: Option<u64>,
    cuts: u64,
}

impl SimPower {
    /// A power line of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cuts the power of all drives on this line. What survives on each is settled by its seed when
    /// it is next opened (or earlier, by [`SimDrive::crash_with`]).
    pub fn crash(&self) {
        let mut power = self.lock();
        power.cuts += 1;
        power.crash_at = None;
    }

    /// The `nth` operation submitted from now on to any drive of this line (1 = the next) never
    /// completes: the power goes there.
    pub fn crash_after(&self, nth: u64) {
        let mut power = self.lock();
        power.crash_at = Some(power.ops + nth.max(1));
    }

    /// Operations submitted so far to all drives of this line.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// Counts one operation; true when the power goes at it.
    fn tick(&self) -> bool {
        let mut power = self.lock();
        power.ops += 1;
        if power.crash_at.is_some_and(|at| power.ops >= at) {
            power.crash_at = None;
            power.cuts += 1;
            return true;
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, PowerState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Content of a block that no sync covers yet.
#[derive(Clone, Debug)]
struct Version {
    bytes: SparseBlock,
    /// Completion number of the write; what a later sync covers is decided by it.
    seq: u64,
    /// Which write, to count torn ones.
    write: u64,
    /// The sync that should have covered it failed: no later one does either.
    forsaken: bool,
    in_flight: bool,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    len: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
    unsynced: BTreeMap<u64, Vec<Version>>,
    /// Lengths since the last sync: (completion number, length).
    unsynced_len: Vec<(u64, u64)>,
    unreadable: BTreeSet<u64>,
}

impl Inode {
    fn with_len(len: u64) -> Self {
        Self { len, ..Self::default() }
    }

    fn current_len(&self) -> u64 {
        self.unsynced_len.last().map_or(self.len, |&(_, len)| len)
    }

    fn current(&self, block: u64) -> SparseBlock {
        match self.unsynced.get(&block).and_then(|versions| versions.last()) {
            Some(version) => version.bytes.clone(),
            None => self.blocks.get(&block).cloned(),
        }
    }

    fn set_durable(&mut self, block: u64, bytes: SparseBlock) {
        match bytes {
            Some(bytes) => self.blocks.insert(block, bytes),
            None => self.blocks.remove(&block),
        };
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        for (block, in_block, range) in pieces(offset, out.len()) {
            match self.current(block) {
                Some(bytes) => out[range.clone()].copy_from_slice(&bytes[in_block..in_block + range.len()]),
                None => out[range].fill(0),
            }
        }
    }

    /// Puts bytes on top of what stands there, as versions that no sync covers.
    fn write(&mut self, offset: u64, data: &[u8], seq: u64, write: u64, in_flight: bool) {
        for (block, in_block, range) in pieces(offset, data.len()) {
            let bytes = if range.len() == BLOCK {
                sparse(&data[range.clone()])
            } else {
                let mut whole: Block = self.current(block).map_or([0; BLOCK], |bytes| *bytes);
                whole[in_block..in_block + range.len()].copy_from_slice(&data[range.clone()]);
                sparse(&whole)
            };
            if range.len() == BLOCK && !in_flight {
                self.unreadable.remove(&block);
            }
            self.unsynced.entry(block).or_default().push(Version {
                bytes,
                seq,
                write,
                forsaken: false,
                in_flight,
            });
        }
        let end = offset + data.len() as u64;
        if end > self.current_len() {
            self.unsynced_len.push((seq, end));
        }
    }

    /// Makes durable what completed up to `seq`; only in `range` of the blocks where given.
    fn sync(&mut self, seq: u64, range: Option<Range<u64>>) {
        let blocks: Vec<u64> = match range {
            Some(range) => self.unsynced.range(range).map(|(&block, _)| block).collect(),
            None => self.unsynced.keys().copied().collect(),
        };
        for block in blocks {
            let Some(versions) = self.unsynced.get_mut(&block) else { continue };
            let Some(last) = versions.iter().rposition(|v| v.seq <= seq && !v.forsaken) else { continue };
            let bytes = versions[last].bytes.clone();
            versions.drain(..=last);
            if versions.is_empty() {
                self.unsynced.remove(&block);
            }
            self.set_durable(block, bytes);
        }
        if let Some(last) = self.unsynced_len.iter().rposition(|&(at, _)| at <= seq) {
            self.len = self.unsynced_len[last].1;
            self.unsynced_len.drain(..=last);
        }
    }

    /// What a failed sync does: reads still show the bytes, no sync will ever write them.
    fn forsake(&mut self, range: Range<u64>) {
        for version in self.unsynced.values_mut().flatten() {
            if range.contains(&version.seq) {
                version.forsaken = true;
            }
        }
    }
}

/// Splits a range of bytes at block borders: (block, offset in it, range of the data).
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let place = offset + at as u64;
        let in_block = (place % BLOCK_BYTES) as usize;
        let piece = (BLOCK - in_block).min(len - at);
        let range = at..at + piece;
        at += piece;
        Some((place / BLOCK_BYTES, in_block, range))
    })
}

fn sparse(bytes: &[u8]) -> SparseBlock {
    if bytes.iter().all(|&byte| byte == 0) {
        return None;
    }
    let mut block = [0; BLOCK];
    block.copy_from_slice(bytes);
    Some(Arc::new(block))
}

#[derive(Clone, Debug)]
enum NameChange {
    Created(String, InodeId),
    Renamed(String, String, InodeId),
    Removed(String, InodeId),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, InodeId>) {
        match self {
            Self::Created(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Renamed(from, to, inode) => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
            Self::Removed(name, inode) => {
                if names.get(name) == Some(inode) {
                    names.remove(name);
                }
            }
        }
    }

    fn question(&self) -> Undecided {
        match self {
            Self::Created(name, _) => Undecided::Created(name.clone()),
            Self::Renamed(from, to, _) => Undecided::Renamed(from.clone(), to.clone()),
            Self::Removed(name, _) => Undecided::Removed(name.clone()),
        }
    }
}

/// What is on the platters and in the caches: all that a clone of the drive has.
#[derive(Clone, Debug, Default)]
struct Image {
    inodes: BTreeMap<InodeId, Inode>,
    names: BTreeMap<String, InodeId>,
    durable_names: BTreeMap<String, InodeId>,
    /// Name changes that no `SyncNames` covers: (completion number, change).
    unsynced_names: Vec<(u64, NameChange)>,
    in_flight: VecDeque<InFlight>,
    next_inode: InodeId,
}

#[derive(Clone, Copy, Debug)]
enum WriteFault {
    Fail(DiskErrorKind),
    Lose,
    Misdirect(u64),
}

#[derive(Clone, Debug)]
enum Work {
    List,
    Open { name: String },
    Create { name: String, len: u64 },
    Read { inode: InodeId, offset: u64, len: usize },
    Write { inode: InodeId, offset: u64, data: AlignedBuffer, durable: bool, fault: Option<WriteFault> },
    Sync { inode: InodeId, after: u64, fault: Option<DiskErrorKind> },
    Rename { from: String, to: String },
    Remove { name: String },
    SyncNames { after: u64, fault: Option<DiskErrorKind> },
    Close,
}

#[derive(Clone, Debug)]
struct InFlight {
    session: SessionId,
    info: Pending,
    work: Work,
    /// The operation as a whole was told to fail.
    fault: Option<DiskErrorKind>,
}

#[derive(Debug, Default)]
struct Session {
    read_only: bool,
    gone: bool,
    files: BTreeMap<FileId, (InodeId, String)>,
    done: VecDeque<Completion>,
    next_file: u32,
}

#[derive(Debug)]
struct State {
    name: String,
    random: Random,
    image: Image,
    sessions: BTreeMap<SessionId, Session>,
    next_session: SessionId,
    next_ticket: u64,
    /// Counts completions; the clock of "before" and "after" on this drive.
    seq: u64,
    power: SimPower,
    cuts_seen: u64,
    /// The power went and what survives is not settled yet.
    unsettled: bool,
    ops: u64,
    writes: u64,
    syncs: u64,
    crash_at: Option<u64>,
    op_faults: BTreeMap<u64, DiskErrorKind>,
    write_faults: BTreeMap<u64, WriteFault>,
    sync_faults: BTreeMap<u64, DiskErrorKind>,
    completions: Completions,
    reordering: bool,
    torn_sectors: bool,
    lying: bool,
    capacity: Option<u64>,
    counts: FaultCounts,
}

impl SimDrive {
    /// An empty drive with a power line of its own.
    #[must_use]
    pub fn new(seed: u64, name: &str) -> Self {
        Self::on(&SimPower::new(), seed, name)
    }

    /// An empty drive on a power line.
    #[must_use]
    pub fn on(power: &SimPower, seed: u64, name: &str) -> Self {
        Self(Arc::new(Mutex::new(State {
            name: name.into(),
            random: Random::new(seed),
            image: Image::default(),
            sessions: BTreeMap::new(),
            next_session: 0,
            next_ticket: 0,
            seq: 0,
            power: power.clone(),
            cuts_seen: power.lock().cuts,
            unsettled: false,
            ops: 0,
            writes: 0,
            syncs: 0,
            crash_at: None,
            op_faults: BTreeMap::new(),
            write_faults: BTreeMap::new(),
            sync_faults: BTreeMap::new(),
            completions: Completions::Immediate,
            reordering: false,
            torn_sectors: false,
            lying: false,
            capacity: None,
            counts: FaultCounts::default(),
        })))
    }

    /// A drive of its own with the same bytes as this one has now, as if a cable had been pulled at
    /// this instant: what is not durable is settled by the new seed when the clone is opened (or by
    /// [`SimDrive::crash_with`]). No planned fault and no switch is taken along, except torn sectors.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        self.fork_on(&SimPower::new(), seed)
    }

    /// [`SimDrive::fork`] onto a power line.
    #[must_use]
    pub fn fork_on(&self, power: &SimPower, seed: u64) -> Self {
        let state = self.lock();
        let forked = Self::on(power, seed, &state.name);
        {
            let mut to = forked.lock();
            to.image = state.image.clone();
            to.torn_sectors = state.torn_sectors;
            to.unsettled = true;
        }
        forked
    }

    /// Makes this drive hold what `other` holds (an exchanged disk). Open disks answer
    /// [`DiskErrorKind::Gone`] from then on.
    pub fn replace_by(&self, other: &Self) {
        let image = other.lock().image.clone();
        let mut state = self.lock();
        state.cut();
        state.image = image;
        state.unsettled = true;
        state.counts.disks_replaced += 1;
    }

    /// All files are gone (a lost disk). Open disks answer [`DiskErrorKind::Gone`] from then on.
    pub fn wipe(&self) {
        let mut state = self.lock();
        state.cut();
        state.image = Image { next_inode: state.image.next_inode, ..Image::default() };
        state.unsettled = false;
        state.counts.disks_replaced += 1;
    }

    /// Cuts the power of this drive alone and settles by the seed what survives. Every open disk
    /// answers [`DiskErrorKind::Gone`] from then on, also for what was in flight.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.cut();
        state.settle_by_seed();
    }

    /// Cuts the power if it is not cut, and lets the caller settle each question: true = it survived.
    pub fn crash_with(&self, mut survives: impl FnMut(&Undecided) -> bool) {
        let mut state = self.lock();
        state.cut();
        state.settle(&mut survives);
    }

    /// What a power cut at this instant would leave undecided (or the last one has), in the order in
    /// which [`SimDrive::crash_with`] asks.
    #[must_use]
    pub fn undecided(&self) -> Vec<Undecided> {
        let state = self.lock();
        let mut image = state.image.clone();
        let mut questions = Vec::new();
        image.settle(state.torn_sectors, state.seq + 1, &mut FaultCounts::default(), &mut |question| {
            questions.push(question.clone());
            true
        });
        questions
    }

    /// The process dies but the machine lives (`kill -9`): what completed stays visible, synced or
    /// not; what is in flight happens or not, block by block.
    pub fn kill(&self) {
        let mut state = self.lock();
        state.kill();
    }

    /// The `nth` operation submitted from now on (1 = the next) never completes: the power goes there,
    /// and the operation may have happened in part. What survives is settled at the next opening, or
    /// by [`SimDrive::crash_with`].
    pub fn crash_after(&self, nth: u64) {
        let mut state = self.lock();
        state.crash_at = Some(state.ops + nth.max(1));
    }

    /// Takes a [`SimDrive::crash_after`] that has not come yet back.
    pub fn crash_never(&self) {
        self.lock().crash_at = None;
    }

    /// True when the power went and nobody has opened the drive since.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.lock().unsettled
    }

    /// Operations submitted so far.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// Write operations submitted so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// When operations complete.
    pub fn set_completions(&self, completions: Completions) {
        self.lock().completions = completions;
    }

    /// Completes operations in flight in an order chosen by the seed.
    pub fn set_reordering(&self, on: bool) {
        self.lock().reordering = on;
    }

    /// Lets a power cut tear blocks at sector borders.
    pub fn set_torn_sectors(&self, on: bool) {
        self.lock().torn_sectors = on;
    }

    /// From now on, durable writes and syncs complete without making anything durable.
    pub fn set_lying(&self, on: bool) {
        self.lock().lying = on;
    }

    /// Sum of the lengths of all files beyond which growing fails with [`DiskErrorKind::NoSpace`].
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Sum of the lengths of all files.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// The operations in flight of all open disks, oldest first.
    #[must_use]
    pub fn pending(&self) -> Vec<Pending> {
        self.lock().image.in_flight.iter().map(|op| op.info.clone()).collect()
    }

    /// Completes one operation in flight; its disk's next poll tells. False when it is not in flight.
    pub fn complete(&self, ticket: Ticket) -> bool {
        let mut state = self.lock();
        let Some(at) = state.image.in_flight.iter().position(|op| op.info.ticket == ticket) else {
            return false;
        };
        state.complete_at(at);
        true
    }

    /// How often each fault happened so far.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        self.lock().counts
    }

    /// The `nth` operation of any kind submitted from now on fails and does nothing.
    pub fn fail_op(&self, nth: u64, kind: DiskErrorKind) {
        let mut state = self.lock();
        let at = state.ops + nth.max(1);
        state.op_faults.insert(at, kind);
    }

    /// The `nth` write from now on fails; its blocks are old or new and not durable.
    pub fn fail_write(&self, nth: u64, kind: DiskErrorKind) {
        self.plan_write(nth, WriteFault::Fail(kind));
    }

    /// The `nth` write from now on is acknowledged and never happens.
    pub fn lose_write(&self, nth: u64) {
        self.plan_write(nth, WriteFault::Lose);
    }

    /// The `nth` write from now on lands at offset `to` of its file instead.
    pub fn misdirect_write(&self, nth: u64, to: u64) {
        self.plan_write(nth, WriteFault::Misdirect(to));
    }

    /// The `nth` sync (of a file or of the names) from now on fails, and what it should have covered
    /// is never made durable by a later one.
    pub fn fail_sync(&self, nth: u64, kind: DiskErrorKind) {
        let mut state = self.lock();
        let at = state.syncs + nth.max(1);
        state.sync_faults.insert(at, kind);
    }

    /// Makes the blocks that this range touches unreadable until they are written whole again.
    /// False when there is no such file.
    pub fn fail_read(&self, file: &str, range: Range<u64>) -> bool {
        self.edit(file, |inode| {
            let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
            inode.unreadable.extend(blocks);
        })
    }

    /// Flips one bit (0..8) of the byte at `offset`. False when there is no such byte.
    pub fn flip_bit(&self, file: &str, offset: u64, bit: u8) -> bool {
        let mut inside = false;
        self.edit(file, |inode| {
            inside = offset < inode.current_len();
            if inside {
                let mut block: Block = inode.current(offset / BLOCK_BYTES).map_or([0; BLOCK], |b| *b);
                block[(offset % BLOCK_BYTES) as usize] ^= 1 << (bit % 8);
                inode.rot(offset / BLOCK_BYTES, sparse(&block));
            }
        });
        if inside {
            self.lock().counts.bits_flipped += 1;
        }
        inside
    }

    /// Overwrites a 4 KiB block by zeros. False when there is no such file.
    pub fn zero_block(&self, file: &str, block: u64) -> bool {
        self.lock().counts.blocks_replaced += 1;
        self.edit(file, |inode| inode.rot(block, None))
    }

    /// Overwrites block `to` by block `from` of the same file (what a misdirected write leaves).
    /// False when there is no such file.
    pub fn copy_block(&self, file: &str, from: u64, to: u64) -> bool {
        self.lock().counts.blocks_replaced += 1;
        self.edit(file, |inode| {
            let bytes = inode.current(from);
            inode.rot(to, bytes);
        })
    }

    /// Names and lengths of all files as the store sees them now, sorted by name.
    #[must_use]
    pub fn files(&self) -> Vec<(String, u64)> {
        self.lock().image.list()
    }

    /// The bytes of a file as the store sees them now.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        let inode = state.image.inodes.get(state.image.names.get(name)?)?;
        let mut bytes = vec![0; usize::try_from(inode.current_len()).ok()?];
        inode.read(0, &mut bytes);
        Some(bytes)
    }

    /// Puts a file there, durable with its name, replacing what had the name: a person with a copy of
    /// an old file, or a test that prepares a disk.
    pub fn put_file(&self, name: &str, bytes: &[u8]) {
        let mut state = self.lock();
        let image = &mut state.image;
        let id = image.next_inode;
        image.next_inode += 1;
        let mut inode = Inode::default();
        inode.write(0, bytes, 0, 0, false);
        inode.sync(0, None);
        image.inodes.insert(id, inode);
        image.names.insert(name.into(), id);
        image.durable_names.insert(name.into(), id);
    }

    /// Takes a file away, durably. False when there is none.
    pub fn take_file(&self, name: &str) -> bool {
        let mut state = self.lock();
        let image = &mut state.image;
        image.durable_names.remove(name);
        image.names.remove(name).is_some()
    }

    /// Cuts a file to `len` bytes, durably. False when there is no such file.
    pub fn truncate(&self, name: &str, len: u64) -> bool {
        let Some(mut bytes) = self.file(name) else { return false };
        bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        self.put_file(name, &bytes);
        true
    }

    fn plan_write(&self, nth: u64, fault: WriteFault) {
        let mut state = self.lock();
        let at = state.writes + nth.max(1);
        state.write_faults.insert(at, fault);
    }

    fn edit(&self, file: &str, change: impl FnOnce(&mut Inode)) -> bool {
        let mut state = self.lock();
        let Some(&id) = state.image.names.get(file) else { return false };
        let Some(inode) = state.image.inodes.get_mut(&id) else { return false };
        change(inode);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere must still be able to print this drive's counts.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cuts = state.power.lock().cuts;
        if cuts != state.cuts_seen {
            state.cuts_seen = cuts;
            state.cut();
        }
        state
    }
}

impl Inode {
    /// Rot changes what stands there, also below what no sync covers yet.
    fn rot(&mut self, block: u64, bytes: SparseBlock) {
        if let Some(version) = self.unsynced.get_mut(&block).and_then(|versions| versions.last_mut()) {
            version.bytes = bytes;
        } else {
            self.set_durable(block, bytes);
        }
    }
}

impl Image {
    fn list(&self) -> Vec<(String, u64)> {
        let len = |id| self.inodes.get(id).map_or(0, Inode::current_len);
        self.names.iter().map(|(name, id)| (name.clone(), len(id))).collect()
    }

    /// Decides what a power cut leaves: first the blocks, then the names.
    fn settle(
        &mut self,
        torn_sectors: bool,
        seq: u64,
        counts: &mut FaultCounts,
        survives: &mut dyn FnMut(&Undecided) -> bool,
    ) {
        for op in std::mem::take(&mut self.in_flight) {
            self.begin(op, seq);
        }
        let mut names: BTreeMap<InodeId, String> =
            self.durable_names.iter().chain(&self.names).map(|(name, &id)| (id, name.clone())).collect();
        for (_, change) in &self.unsynced_names {
            if let NameChange::Created(name, id) = change {
                names.entry(*id).or_insert_with(|| name.clone());
            }
        }
        let mut torn: BTreeMap<u64, (bool, bool)> = BTreeMap::new();
        for (id, inode) in &mut self.inodes {
            let Some(file) = names.get(id) else { continue };
            for (_, len) in std::mem::take(&mut inode.unsynced_len) {
                if survives(&Undecided::Length { file: file.clone(), len }) {
                    inode.len = inode.len.max(len);
                }
            }
            for (block, versions) in std::mem::take(&mut inode.unsynced) {
                for version in versions {
                    let units = if torn_sectors { BLOCK / SECTOR } else { 1 };
                    for unit in 0..units {
                        let kept = !version.forsaken
                            && survives(&Undecided::Block {
                                file: file.clone(),
                                block,
                                sector: torn_sectors.then_some(unit),
                                in_flight: version.in_flight,
                            });
                        let fate = torn.entry(version.write).or_default();
                        if kept {
                            fate.0 = true;
                            let size = BLOCK / units;
                            let mut bytes: Block = inode.blocks.get(&block).map_or([0; BLOCK], |b| **b);
                            let new: &Block = version.bytes.as_deref().unwrap_or(&[0; BLOCK]);
                            let range = unit * size..(unit + 1) * size;
                            bytes[range.clone()].copy_from_slice(&new[range]);
                            inode.set_durable(block, sparse(&bytes));
                        } else {
                            fate.1 = true;
                            counts.blocks_undone += 1;
                        }
                    }
                }
            }
            // What lies beyond the end is not there; a later growth shows zeros.
            let first_beyond = inode.len.div_ceil(BLOCK_BYTES);
            inode.blocks.split_off(&first_beyond);
            let in_last = (inode.len % BLOCK_BYTES) as usize;
            if in_last != 0
                && let Some(bytes) = inode.blocks.get(&(inode.len / BLOCK_BYTES))
            {
                let mut cut = **bytes;
                cut[in_last..].fill(0);
                inode.set_durable(inode.len / BLOCK_BYTES, sparse(&cut));
            }
        }
        counts.writes_torn += torn.values().filter(|fate| fate.0 && fate.1).count() as u64;
        for (_, change) in std::mem::take(&mut self.unsynced_names) {
            if survives(&change.question()) {
                change.apply(&mut self.durable_names);
            } else {
                counts.names_undone += 1;
            }
        }
        self.names = self.durable_names.clone();
        self.collect(&BTreeSet::new());
    }

    /// An operation that will never complete may have happened: puts its traces among the unsynced.
    fn begin(&mut self, op: InFlight, seq: u64) {
        match op.work {
            Work::Write { inode, offset, data, fault, .. } => {
                let offset = match fault {
                    Some(WriteFault::Lose) => return,
                    Some(WriteFault::Misdirect(to)) => to,
                    Some(WriteFault::Fail(_)) | None => offset,
                };
                if let Some(inode) = self.inodes.get_mut(&inode) {
                    inode.write(offset, &data, seq, op.info.ticket.0, true);
                }
            }
            Work::Create { name, len } if !self.names.contains_key(&name) => {
                let id = self.next_inode;
                self.next_inode += 1;
                let mut inode = Inode::with_len(0);
                // Its zeros are written front to back: half of them, or all.
                inode.unsynced_len = vec![(seq, len / 2), (seq, len)];
                self.inodes.insert(id, inode);
                self.unsynced_names.push((seq, NameChange::Created(name, id)));
            }
            Work::Rename { from, to } => {
                if let Some(&id) = self.names.get(&from) {
                    self.unsynced_names.push((seq, NameChange::Renamed(from, to, id)));
                }
            }
            Work::Remove { name } => {
                if let Some(&id) = self.names.get(&name) {
                    self.unsynced_names.push((seq, NameChange::Removed(name, id)));
                }
            }
            _ => {}
        }
    }

    /// Forgets files that have neither a name nor anybody who has them open.
    fn collect(&mut self, open: &BTreeSet<InodeId>) {
        let mut live: BTreeSet<InodeId> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        live.extend(open);
        self.inodes.retain(|id, _| live.contains(id));
    }
}

impl State {
    fn used(&self) -> u64 {
        self.image.list().iter().map(|(_, len)| len).sum()
    }

    /// The power goes: nobody gets an answer any more. What survives is settled later.
    fn cut(&mut self) {
        for (id, session) in self.sessions.iter_mut().filter(|(_, session)| !session.gone) {
            session.gone = true;
            session.files.clear();
            let unheard = std::mem::take(&mut session.done).into_iter().map(|done| done.ticket);
            let in_flight =
                self.image.in_flight.iter().filter(|op| op.session == *id).map(|op| op.info.ticket);
            session.done = unheard.chain(in_flight).map(|ticket| gone(&self.name, ticket)).collect();
        }
        if !self.unsettled {
            self.counts.crashes += 1;
            self.unsettled = true;
        }
        self.crash_at = None;
    }

    fn kill(&mut self) {
        self.cut();
        self.seq += 1;
        let seq = self.seq;
        let mut image = self.image.clone();
        // In flight: by the seed, block by block; everything else stays as it is.
        let mut random = self.random.fork(seq);
        image.in_flight.retain(|_| random.chance(1, 2));
        for op in std::mem::take(&mut image.in_flight) {
            image.begin(op, seq);
        }
        for inode in image.inodes.values_mut() {
            inode.unsynced.retain(|_, versions| {
                versions.retain(|v| !v.in_flight || random.chance(1, 2));
                versions.iter_mut().for_each(|v| v.in_flight = false);
                !versions.is_empty()
            });
        }
        let done = image.unsynced_names.iter().filter(|&&(at, _)| at == seq);
        for (_, change) in done {
            change.apply(&mut image.names);
        }
        self.image = image;
        self.unsettled = false;
    }

    fn settle_by_seed(&mut self) {
        if !self.unsettled {
            return;
        }
        let mut random = self.random.fork(self.seq);
        // A fixed share per crash: now and then nothing or everything survives, which a fair coin
        // per block would never show on a large write.
        let share = random.below(5);
        self.settle(&mut |_| random.chance(share, 4));
    }

    fn settle(&mut self, survives: &mut dyn FnMut(&Undecided) -> bool) {
        self.seq += 1;
        let (seq, torn) = (self.seq, self.torn_sectors);
        let mut counts = self.counts;
        self.image.settle(torn, seq, &mut counts, survives);
        self.counts = counts;
        self.unsettled = false;
    }

    fn submit(&mut self, session: SessionId, lane: Lane, op: Op) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        if self.sessions.get(&session).is_none_or(|s| s.gone) {
            let answer = gone(&self.name, ticket);
            self.sessions.entry(session).or_default().done.push_back(answer);
            return ticket;
        }
        self.ops += 1;
        let fault = self.op_faults.remove(&self.ops);
        let (info, work) = self.accept(session, lane, ticket, op);
        self.image.in_flight.push_back(InFlight { session, info, work, fault });
        let own = self.crash_at.is_some_and(|at| self.ops >= at);
        if self.power.clone().tick() {
            self.cuts_seen = self.power.lock().cuts;
            self.cut();
        } else if own {
            self.cut();
        }
        ticket
    }

    /// Resolves file ids at submission, so that a close does not pull a file from under an operation.
    fn accept(&mut self, session: SessionId, lane: Lane, ticket: Ticket, op: Op) -> (Pending, Work) {
        let session = self.sessions.entry(session).or_default();
        let named = |file: FileId| {
            session.files.get(&file).cloned().unwrap_or_else(|| panic!("bug: {file:?} is not open"))
        };
        let checked = |name: String| {
            assert!(!name.is_empty() && !name.contains('/'), "bug: `{name}` is not a file name");
            name
        };
        let mut info = Pending {
            ticket,
            lane,
            kind: OpKind::List,
            file: String::new(),
            offset: 0,
            bytes: 0,
            durable: false,
        };
        let work = match op {
            Op::List => Work::List,
            Op::Open { name } => {
                (info.kind, info.file) = (OpKind::Open, name.clone());
                Work::Open { name: checked(name) }
            }
            Op::Create { name, len } => {
                assert!(len.is_multiple_of(BLOCK_BYTES), "bug: `{name}` is created with {len} bytes");
                (info.kind, info.file, info.bytes) = (OpKind::Create, name.clone(), len);
                Work::Create { name: checked(name), len }
            }
            Op::Read { file, offset, len } => {
                let (inode, name) = named(file);
                check_alignment("read", &name, offset, len);
                (info.kind, info.file, info.offset, info.bytes) = (OpKind::Read, name, offset, len as u64);
                Work::Read { inode, offset, len }
            }
            Op::Write { file, offset, data, durable } => {
                let (inode, name) = named(file);
                check_alignment("write", &name, offset, data.len());
                (info.kind, info.file, info.offset, info.bytes) =
                    (OpKind::Write, name, offset, data.len() as u64);
                info.durable = durable;
                self.writes += 1;
                let fault = self.write_faults.remove(&self.writes);
                Work::Write { inode, offset, data, durable, fault }
            }
            Op::Sync { file } => {
                let (inode, name) = named(file);
                (info.kind, info.file) = (OpKind::Sync, name);
                self.syncs += 1;
                Work::Sync { inode, after: self.seq, fault: self.sync_faults.remove(&self.syncs) }
            }
            Op::Rename { from, to } => {
                (info.kind, info.file) = (OpKind::Rename, from.clone());
                Work::Rename { from: checked(from), to: checked(to) }
            }
            Op::Remove { name } => {
                (info.kind, info.file) = (OpKind::Remove, name.clone());
                Work::Remove { name: checked(name) }
            }
            Op::SyncNames => {
                info.kind = OpKind::SyncNames;
                self.syncs += 1;
                Work::SyncNames { after: self.seq, fault: self.sync_faults.remove(&self.syncs) }
            }
            Op::Close { file } => {
                info.kind = OpKind::Close;
                info.file = named(file).1;
                session.files.remove(&file);
                Work::Close
            }
        };
        (info, work)
    }

    /// Completes the oldest operation of a session, or one chosen by the seed.
    fn complete_one(&mut self, session: SessionId) -> bool {
        let of_session: Vec<usize> =
            (0..self.image.in_flight.len()).filter(|&i| self.image.in_flight[i].session == session).collect();
        let chosen = if self.reordering { self.random.pick(&of_session) } else { of_session.first() };
        let Some(&at) = chosen else { return false };
        self.complete_at(at);
        true
    }

    fn complete_at(&mut self, at: usize) {
        let Some(op) = self.image.in_flight.remove(at) else { return };
        self.seq += 1;
        let (ticket, id) = (op.info.ticket, op.session);
        let result = self.perform(op);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.done.push_back(Completion { ticket, result });
        }
    }

    fn perform(&mut self, op: InFlight) -> Result<Done, DiskError> {
        let disk = self.name.clone();
        let info = &op.info;
        let error = |kind, detail: &str| DiskError {
            kind,
            operation: match info.kind {
                OpKind::Read | OpKind::Write => {
                    format!(
                        "{:?} of {} bytes at {} of {disk}/{}",
                        info.kind, info.bytes, info.offset, info.file
                    )
                }
                _ => format!("{:?} {disk}/{}", info.kind, info.file),
            },
            detail: detail.into(),
        };
        if let Some(kind) = op.fault {
            self.counts.operations_failed += 1;
            return Err(error(kind, "simulated: this operation was told to fail"));
        }
        let read_only = self.sessions.get(&op.session).is_some_and(|s| s.read_only);
        let changes = !matches!(info.kind, OpKind::List | OpKind::Open | OpKind::Read | OpKind::Close);
        if read_only && changes {
            return Err(error(DiskErrorKind::ReadOnly, "the disk was opened for reading only"));
        }
        match op.work {
            Work::List => Ok(Done::Names(self.image.list())),
            Work::Open { name } => {
                let Some(&inode) = self.image.names.get(&name) else {
                    return Err(error(DiskErrorKind::NotFound, "no such file"));
                };
                Ok(self.opened(op.session, inode, name))
            }
            Work::Create { name, len } => {
                if self.image.names.contains_key(&name) {
                    return Err(error(DiskErrorKind::Exists, "the file exists"));
                }
                if self.no_room(len) {
                    return Err(error(DiskErrorKind::NoSpace, "simulated: no space left"));
                }
                let id = self.image.next_inode;
                self.image.next_inode += 1;
                self.image.inodes.insert(id, Inode::with_len(len));
                self.image.names.insert(name.clone(), id);
                self.image.unsynced_names.push((self.seq, NameChange::Created(name.clone(), id)));
                Ok(self.opened(op.session, id, name))
            }
            Work::Read { inode, offset, len } => {
                let Some(inode) = self.image.inodes.get(&inode) else {
                    return Err(error(DiskErrorKind::Io, "simulated: the file is gone"));
                };
                let there = inode.current_len().saturating_sub(offset).min(len as u64) as usize;
                if pieces(offset, there).any(|(block, _, _)| inode.unreadable.contains(&block)) {
                    self.counts.reads_failed += 1;
                    return Err(error(DiskErrorKind::Io, "simulated: latent sector error"));
                }
                let mut data = AlignedBuffer::zeroed(there);
                inode.read(offset, &mut data);
                Ok(Done::Read(data))
            }
            Work::Write { inode: id, offset, data, durable, fault } => {
                let (seq, lying) = (self.seq, self.lying);
                let grows = self
                    .image
                    .inodes
                    .get(&id)
                    .map_or(0, |inode| (offset + data.len() as u64).saturating_sub(inode.current_len()));
                if grows > 0 && self.no_room(grows) {
                    return Err(error(DiskErrorKind::NoSpace, "simulated: no space left"));
                }
                let mut random = self.random.fork(seq);
                let Some(inode) = self.image.inodes.get_mut(&id) else {
                    return Err(error(DiskErrorKind::Io, "simulated: the file is gone"));
                };
                let mut place = offset;
                match fault {
                    Some(WriteFault::Fail(kind)) => {
                        for (_, _, range) in pieces(offset, data.len()) {
                            let at = offset + range.start as u64;
                            let block = at / BLOCK_BYTES;
                            match random.below(3) {
                                0 => {}
                                1 => inode.write(at, &data[range], seq, info.ticket.0, false),
                                _ => {
                                    inode.write(at, &data[range], seq, info.ticket.0, false);
                                    inode.sync(seq, Some(block..block + 1));
                                }
                            }
                        }
                        inode.forsake(seq..seq + 1);
                        self.counts.writes_failed += 1;
                        return Err(error(kind, "simulated: write error"));
                    }
                    Some(WriteFault::Lose) => {
                        self.counts.writes_lost += 1;
                        return Ok(Done::Wrote(data));
                    }
                    Some(WriteFault::Misdirect(to)) => {
                        self.counts.writes_misdirected += 1;
                        place = to;
                    }
                    None => {}
                }
                inode.write(place, &data, seq, info.ticket.0, false);
                if durable && lying {
                    self.counts.syncs_lied += 1;
                } else if durable {
                    let end = place + data.len() as u64;
                    inode.sync(seq, Some(place / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)));
                }
                Ok(Done::Wrote(data))
            }
            Work::Sync { inode, after, fault } => {
                let Some(inode) = self.image.inodes.get_mut(&inode) else {
                    return Err(error(DiskErrorKind::Io, "simulated: the file is gone"));
                };
                if let Some(kind) = fault {
                    inode.forsake(0..after + 1);
                    self.counts.syncs_failed += 1;
                    return Err(error(kind, "simulated: sync error"));
                }
                if self.lying {
                    self.counts.syncs_lied += 1;
                } else {
                    inode.sync(after, None);
                }
                Ok(Done::Unit)
            }
            Work::Rename { from, to } => {
                let Some(&id) = self.image.names.get(&from) else {
                    return Err(error(DiskErrorKind::NotFound, "no such file"));
                };
                self.change_name(NameChange::Renamed(from, to, id));
                Ok(Done::Unit)
            }
            Work::Remove { name } => {
                let Some(&id) = self.image.names.get(&name) else {
                    return Err(error(DiskErrorKind::NotFound, "no such file"));
                };
                self.change_name(NameChange::Removed(name, id));
                Ok(Done::Unit)
            }
            Work::SyncNames { after, fault } => {
                if let Some(kind) = fault {
                    self.counts.syncs_failed += 1;
                    return Err(error(kind, "simulated: sync error"));
                }
                if self.lying {
                    self.counts.syncs_lied += 1;
                    return Ok(Done::Unit);
                }
                let changes = std::mem::take(&mut self.image.unsynced_names);
                let (covered, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(|&(at, _)| at <= after);
                for (_, change) in covered {
                    change.apply(&mut self.image.durable_names);
                }
                self.image.unsynced_names = rest;
                let open = self.sessions.values().flat_map(|s| s.files.values().map(|f| f.0)).collect();
                if self.image.unsynced_names.is_empty() && self.image.in_flight.is_empty() {
                    self.image.collect(&open);
                }
                Ok(Done::Unit)
            }
            Work::Close => Ok(Done::Unit),
        }
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.image.names);
        self.image.unsynced_names.push((self.seq, change));
    }

    fn opened(&mut self, session: SessionId, inode: InodeId, name: String) -> Done {
        let len = self.image.inodes.get(&inode).map_or(0, Inode::current_len);
        let session = self.sessions.entry(session).or_default();
        let file = FileId(session.next_file);
        session.next_file += 1;
        session.files.insert(file, (inode, name));
        Done::Opened { file, len }
    }

    fn no_room(&mut self, more: u64) -> bool {
        let full = self.capacity.is_some_and(|capacity| self.used() + more > capacity);
        self.counts.no_space += u64::from(full);
        full
    }
}

fn gone(disk: &str, ticket: Ticket) -> Completion {
    Completion {
        ticket,
        result: Err(DiskError {
            kind: DiskErrorKind::Gone,
            operation: format!("an operation on {disk}"),
            detail: "simulated: the power is gone".into(),
        }),
    }
}

/// Segments and parts are opened `direct` by the host, so their reads and writes must be whole blocks.
fn check_alignment(what: &str, name: &str, offset: u64, len: usize) {
    if name.starts_with("seg-") || name.ends_with(".part") {
        assert!(
            offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK),
            "bug: unaligned {what} of {len} bytes at {offset} of `{name}`"
        );
    }
}

impl SimDisk {
    /// Opens the drive. A power cut that is not settled yet is settled by the seed first.
    #[must_use]
    pub fn open(drive: &SimDrive) -> Self {
        Self::open_as(drive, false)
    }

    /// Opens the drive for reading: everything else answers [`DiskErrorKind::ReadOnly`].
    #[must_use]
    pub fn open_read_only(drive: &SimDrive) -> Self {
        Self::open_as(drive, true)
    }

    fn open_as(drive: &SimDrive, read_only: bool) -> Self {
        let mut state = drive.lock();
        state.settle_by_seed();
        let session = state.next_session;
        state.next_session += 1;
        state.sessions.insert(session, Session { read_only, ..Session::default() });
        let name = state.name.clone();
        drop(state);
        Self { drive: drive.clone(), session, name }
    }

    fn take_done(state: &mut State, session: SessionId) -> Option<Completion> {
        state.sessions.get_mut(&session)?.done.pop_front()
    }
}

impl Disk for SimDisk {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        self.drive.lock().submit(self.session, lane, op)
    }

    fn poll(&mut self) -> Option<Completion> {
        let mut state = self.drive.lock();
        if state.completions == Completions::Immediate
            && state.sessions.get(&self.session).is_some_and(|s| s.done.is_empty() && !s.gone)
        {
            state.complete_one(self.session);
        }
        Self::take_done(&mut state, self.session)
    }

    fn wait(&mut self) -> Option<Completion> {
        let mut state = self.drive.lock();
        if state.sessions.get(&self.session).is_some_and(|s| s.done.is_empty() && !s.gone) {
            state.complete_one(self.session);
        }
        Self::take_done(&mut state, self.session)
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for SimDisk {
    /// An orderly close: the operating system finishes what it was given.
    fn drop(&mut self) {
        let mut state = self.drive.lock();
        if state.sessions.get(&self.session).is_some_and(|s| !s.gone) {
            while state.complete_one(self.session) {}
        }
        state.sessions.remove(&self.session);
    }
}
