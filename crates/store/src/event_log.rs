//! The durable, bounded log of operational events: what a person asks for after something happened.
//!
//! Decides the bytes of `events-0` and `events-1` (`docs/FORMAT.md`, "Event log"), the one list of
//! event kinds, and which events are given up when there are too many. Never decides anything about
//! recovery: losing the whole event log loses no input, and damage in it is counted, never fatal.
//! Never allocates space after opening: both files are preallocated, so that "no space" can be logged.
//!
//! Two files of [`FILE_BYTES`] are written in turn; when one is full, the other, older one is
//! overwritten from its start under the next generation. A batch takes whole blocks; its number has
//! no gaps, so that a gap *is* the count of lost batches. Copies are read as one: a batch that any
//! copy has is there.

use crate::checkpoint::Identity;
use crate::copies::{Copies, CopyIndex, Owner, Routed};
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op, Ticket};
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::hash::Xxh3;
use rallypoint_base::id::{Lineage, StoreId};
use rallypoint_base::limits::BLOCK;
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Length of each of the two files.
pub const FILE_BYTES: u64 = 1 << 20;
/// Longest batch, with its head.
const BATCH_BYTES: usize = 64 * 1024;
/// Events that wait to be written; more are given up and counted.
const QUEUE: usize = 4096;
/// Longest key or value of a field; the rest is cut off.
const TEXT_BYTES: usize = 1024;
/// Most fields of an event; the rest is dropped.
const FIELDS: usize = 16;

const MAGIC: [u8; 4] = *b"RLEV";
const FORMAT: u16 = 1;
const HEAD: usize = 64;
const CHECKSUM_AT: usize = 56;

/// The names of the two files.
pub const FILES: [&str; 2] = ["events-0", "events-1"];

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)*) => {
        /// What happened. The one list: counters, log lines and the durable log use these names.
        /// Codes and names never change and are never used again.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum EventKind {
            $($(#[$doc])* $variant,)*
            /// Written by a newer release.
            Other(u16),
        }

        impl EventKind {
            /// Every kind this release knows.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code on disk.
            #[must_use]
            pub fn code(self) -> u16 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other(code) => code,
                }
            }

            /// The kind of a code.
            #[must_use]
            pub fn from_code(code: u16) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    other => Self::Other(other),
                }
            }

            /// The name for people, counters and `--json`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Other(_) => "other",
                }
            }
        }
    };
}

kinds! {
    /// The store was opened.
    Opened = 1, "opened";
    /// The store was closed in an orderly way.
    Closed = 2, "closed";
    /// Bytes were rewritten from a proven good copy.
    Repair = 3, "repair";
    /// A commit that was never acknowledged was cut from the end of the journal.
    Cut = 4, "cut";
    /// Something was dropped: a frame twice received, a late result, a version.
    Drop = 5, "drop";
    /// A replay did something else than the original.
    Divergence = 6, "divergence";
    /// A poisonous input was set aside.
    SetAside = 7, "set_aside";
    /// A worker was started again after an abnormal end.
    Restart = 8, "restart";
    /// A copy failed and is out.
    CopyLost = 9, "copy_lost";
    /// A copy is in again.
    CopyReturned = 10, "copy_returned";
    /// A checkpoint is not used any more after failed restores.
    Quarantine = 11, "quarantine";
    /// A checkpoint could not be written.
    CheckpointFailed = 12, "checkpoint_failed";
    /// The door refused inputs.
    Overloaded = 13, "overloaded";
    /// A handler made no progress and was ended.
    Watchdog = 14, "watchdog";
    /// Damage was found that no copy can repair.
    Damage = 15, "damage";
    /// A disk is full.
    NoSpace = 16, "no_space";
    /// State was rolled back to an older version.
    Rollback = 17, "rollback";
    /// The store was restored from a backup, under a new lineage.
    Restored = 19, "restored";
    /// Events were given up because too many came at once.
    EventsDropped = 20, "events_dropped";
    /// A saga cannot go on without a person.
    Stuck = 21, "stuck";
    /// The store failed: nothing was acknowledged from then on.
    StoreFailed = 22, "store_failed";
    /// Every block and chunk was compared once with its checksum and between the copies.
    Scrubbed = 23, "scrubbed";
    /// A checkpoint holds actors that are larger than they should be.
    TooLarge = 24, "too_large";
    /// Something goes on failing and needs a person.
    Alarm = 25, "alarm";
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the host's clock.
    pub time: Time,
    /// What.
    pub kind: EventKind,
    /// The particulars, in order.
    pub fields: Vec<(String, String)>,
}

impl Event {
    /// An event without particulars.
    #[must_use]
    pub fn new(time: Time, kind: EventKind) -> Self {
        Self { time, kind, fields: Vec::new() }
    }

    /// Adds a particular.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.fields.push((key.into(), value.to_string()));
        self
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.time.0.to_le_bytes());
        out.extend_from_slice(&self.kind.code().to_le_bytes());
        let fields = &self.fields[..self.fields.len().min(FIELDS)];
        put_varint(out, fields.len() as u64);
        for (key, value) in fields {
            put_bytes(out, cut(key).as_bytes());
            put_bytes(out, cut(value).as_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let time = Time(reader.u64("time")?);
        let kind = EventKind::from_code(reader.u16("kind")?);
        let count = reader.varint("field count")?;
        let mut fields = Vec::new();
        for _ in 0..count {
            fields.push((reader.text("key")?.to_owned(), reader.text("value")?.to_owned()));
        }
        Ok(Self { time, kind, fields })
    }
}

fn cut(text: &str) -> &str {
    let end = (0..=TEXT_BYTES.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// Where an event stands in its log: never given twice, and ascending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventPosition {
    /// Number of its batch, from 1.
    pub batch: u64,
    /// Its place in the batch, from 0.
    pub index: u32,
}

/// What the event log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// Where each of them stands, in the same order.
    pub positions: Vec<EventPosition>,
    /// Batches that no copy has whole, although later ones are there.
    pub corrupt: u64,
    /// Batches at the end that were being written when the power went.
    pub torn: u64,
}

/// What became of a flush.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventLogEvent {
    /// Everything appended before the flush is durable on every copy that is in.
    Flushed,
    /// A copy failed: the mirror must take it out.
    CopyFailed {
        /// Which copy.
        copy: CopyIndex,
        /// How.
        error: DiskError,
    },
}

/// One batch as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BatchHead {
    generation: u64,
    sequence: u64,
    len: usize,
}

/// The writer. [`EventLog::append`] when something happens, [`EventLog::flush`] once per turn of the
/// store's loop, [`EventLog::handle`] for completions of [`Owner::Events`].
#[derive(Debug)]
pub struct EventLog {
    identity: Identity,
    files: BTreeMap<CopyIndex, [FileId; 2]>,
    generation: u64,
    sequence: u64,
    offset: u64,
    queue: VecDeque<Event>,
    dropped: u64,
    in_flight: BTreeSet<(CopyIndex, Ticket)>,
    events: VecDeque<EventLogEvent>,
}

impl EventLog {
    /// Opens the log, creating and preallocating its files where they are missing, and answers what
    /// it holds. Waits for the disk. A copy that has no room for the files goes without them.
    ///
    /// # Errors
    /// The error of a copy that failed; the mirror must take it out, and this be called again.
    pub fn open<D: Disk>(
        copies: &mut Copies<D>,
        identity: Identity,
    ) -> Result<(Self, History), (CopyIndex, DiskError)> {
        let mut files = BTreeMap::new();
        for copy in copies.live() {
            let pair = open_file(copies, copy, FILES[0]).and_then(|first| {
                let second = open_file(copies, copy, FILES[1])?;
                copies.run(copy, Lane::Bulk, Op::SyncNames)?;
                Ok([first, second])
            });
            match pair {
                Ok(pair) => drop(files.insert(copy, pair)),
                Err(error) if error.kind == DiskErrorKind::NoSpace => {}
                Err(error) => return Err((copy, error)),
            }
        }
        let mut found = Found::default();
        for (&copy, pair) in &files {
            for (index, &file) in pair.iter().enumerate() {
                if let Some(bytes) = read_file(copies, copy, file) {
                    found.take(index, &bytes, identity);
                }
            }
        }
        let (generation, sequence, offset) = found.end();
        let log = Self {
            identity,
            files,
            generation,
            sequence,
            offset,
            queue: VecDeque::new(),
            dropped: 0,
            in_flight: BTreeSet::new(),
            events: VecDeque::new(),
        };
        Ok((log, found.history()))
    }

    /// Reads the log without opening it for writing (for `rallypoint events`). Copies and files that
    /// cannot be read are passed over.
    #[must_use]
    pub fn read_all<D: Disk>(copies: &mut Copies<D>, identity: Identity) -> History {
        let mut found = Found::default();
        for copy in copies.live() {
            for (index, name) in FILES.iter().enumerate() {
                let opened = copies.run(copy, Lane::Bulk, Op::Open { name: (*name).into() });
                if let Ok(Done::Opened { file, .. }) = opened {
                    if let Some(bytes) = read_file(copies, copy, file) {
                        found.take(index, &bytes, identity);
                    }
                    drop(copies.run(copy, Lane::Bulk, Op::Close { file }));
                }
            }
        }
        found.history()
    }

    /// Takes an event for the next flush. When too many wait, it is given up and counted.
    pub fn append(&mut self, event: Event) {
        if self.queue.len() < QUEUE {
            self.queue.push_back(event);
        } else {
            self.dropped += 1;
        }
    }

    /// True when nothing waits and nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty() && self.dropped == 0
    }

    /// Begins to write what waits, unless a batch is in flight: then its completion does.
    pub fn flush<D: Disk>(&mut self, copies: &mut Copies<D>) {
        let live: BTreeSet<CopyIndex> = copies.live().collect();
        self.files.retain(|copy, _| live.contains(copy));
        self.in_flight.retain(|(copy, _)| live.contains(copy));
        if !self.in_flight.is_empty() {
            return;
        }
        let Some(data) = self.next_batch() else { return };
        for (&copy, pair) in &self.files {
            let file = pair[(self.generation % 2) as usize];
            let op = Op::Write { file, offset: self.offset, data: data.clone(), durable: true };
            let ticket = copies.submit(copy, Owner::Events, Lane::Bulk, op);
            self.in_flight.insert((copy, ticket));
        }
        self.offset += data.len() as u64;
    }

    /// Takes a completion of [`Owner::Events`] and writes what came meanwhile.
    pub fn handle<D: Disk>(&mut self, copies: &mut Copies<D>, routed: Routed) -> Option<EventLogEvent> {
        if self.in_flight.remove(&(routed.copy, routed.ticket)) {
            if let Err(error) = routed.result {
                self.files.remove(&routed.copy);
                self.events.push_back(EventLogEvent::CopyFailed { copy: routed.copy, error });
            }
            if self.in_flight.is_empty() {
                self.flush(copies);
                if self.in_flight.is_empty() {
                    self.events.push_back(EventLogEvent::Flushed);
                }
            }
        }
        self.events.pop_front()
    }

    /// The next event that [`EventLog::handle`] had no room to answer.
    pub fn poll(&mut self) -> Option<EventLogEvent> {
        self.events.pop_front()
    }

    /// Takes from the queue what fits one batch, and moves to the other file when this one is full.
    fn next_batch(&mut self) -> Option<AlignedBuffer> {
        if self.dropped > 0
            && let Some(last) = self.queue.back()
        {
            let told = Event::new(last.time, EventKind::EventsDropped).with("count", self.dropped);
            self.queue.push_back(told);
            self.dropped = 0;
        }
        let (mut payload, mut entry, mut count) = (Vec::new(), Vec::new(), 0u32);
        while let Some(event) = self.queue.front() {
            entry.clear();
            event.encode(&mut entry);
            // One event always fits: FIELDS * 2 * TEXT_BYTES is half a batch.
            if HEAD + payload.len() + entry.len() > BATCH_BYTES {
                break;
            }
            payload.extend_from_slice(&entry);
            count += 1;
            self.queue.pop_front();
        }
        if count == 0 {
            return None;
        }
        let len = (HEAD + payload.len()).next_multiple_of(BLOCK);
        if self.offset + len as u64 > FILE_BYTES {
            self.generation += 1;
            self.offset = 0;
        }
        self.sequence += 1;
        let mut batch = AlignedBuffer::zeroed(len);
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&FORMAT.to_le_bytes());
        head.extend_from_slice(&0u16.to_le_bytes());
        head.extend_from_slice(&self.identity.store.0.to_le_bytes());
        head.extend_from_slice(&self.identity.lineage.0.to_le_bytes());
        head.extend_from_slice(&self.generation.to_le_bytes());
        head.extend_from_slice(&self.sequence.to_le_bytes());
        head.extend_from_slice(&((self.offset / BLOCK as u64) as u32).to_le_bytes());
        head.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        head.extend_from_slice(&count.to_le_bytes());
        head.extend_from_slice(&0u32.to_le_bytes());
        batch[..head.len()].copy_from_slice(&head);
        batch[HEAD..HEAD + payload.len()].copy_from_slice(&payload);
        let sum = checksum(&batch[..HEAD + payload.len()]);
        batch[CHECKSUM_AT..HEAD].copy_from_slice(&sum.to_le_bytes());
        Some(batch)
    }
}

/// xxh3-64 of the bytes without the checksum field.
fn checksum(batch: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&batch[..CHECKSUM_AT]);
    hash.update(&batch[HEAD..]);
    hash.digest()
}

/// Head and events of the batch that begins with these bytes. `Err(Some)`: its head says that it
/// belongs here, but it is not whole.
fn decode_batch(
    bytes: &[u8],
    block: u32,
    identity: Identity,
) -> Result<(BatchHead, Vec<Event>), Option<BatchHead>> {
    let head = |bytes: &[u8]| -> Result<(BatchHead, usize, u32), Malformed> {
        let mut reader = Reader::new(bytes);
        let wrong = |reader: &Reader<'_>, field| Malformed { field, offset: reader.offset() };
        if reader.take(4, "magic")? != MAGIC || reader.u16("format")? != FORMAT || reader.u16("flags")? != 0 {
            return Err(wrong(&reader, "format"));
        }
        let found =
            Identity { store: StoreId(reader.u64("store")?), lineage: Lineage(reader.u64("lineage")?) };
        let (generation, sequence) = (reader.u64("generation")?, reader.u64("sequence")?);
        if found != identity || reader.u32("block")? != block {
            return Err(wrong(&reader, "place"));
        }
        let (used, count) = (reader.u32("length")? as usize, reader.u32("count")?);
        if used > BATCH_BYTES - HEAD {
            return Err(wrong(&reader, "length"));
        }
        let len = (HEAD + used).next_multiple_of(BLOCK);
        Ok((BatchHead { generation, sequence, len }, used, count))
    };
    let (head, used, count) = head(bytes).map_err(|_| None)?;
    let whole = bytes.get(..HEAD + used).ok_or(Some(head))?;
    let mut reader = Reader::new(&whole[CHECKSUM_AT..]);
    if reader.u64("checksum").ok() != Some(checksum(whole)) {
        return Err(Some(head));
    }
    let mut events = Vec::new();
    for _ in 0..count {
        // A sound checksum over something else is a bug of its writer; what can be read is kept.
        let Ok(event) = Event::decode(&mut reader) else { break };
        events.push(event);
    }
    Ok((head, events))
}

/// What was found in the files of all copies.
#[derive(Debug, Default)]
struct Found {
    /// By sequence: the head, where it begins, and its events.
    batches: BTreeMap<u64, (BatchHead, u64, Vec<Event>)>,
    /// Heads of batches that are not whole.
    broken: BTreeMap<u64, BatchHead>,
}

impl Found {
    /// Reads every block: a bad batch hides none behind it.
    fn take(&mut self, file: usize, bytes: &[u8], identity: Identity) {
        let mut at = 0;
        while at < bytes.len() {
            match decode_batch(&bytes[at..], (at / BLOCK) as u32, identity) {
                Ok((head, events)) if head.generation % 2 == file as u64 => {
                    self.batches.insert(head.sequence, (head, at as u64, events));
                    at += head.len;
                }
                Err(Some(head)) if head.generation % 2 == file as u64 => {
                    self.broken.insert(head.sequence, head);
                    at += BLOCK;
                }
                _ => at += BLOCK,
            }
        }
    }

    /// Generation, sequence and offset at which writing goes on.
    fn end(&self) -> (u64, u64, u64) {
        let last = self.batches.values().next_back();
        last.map_or((0, 0, 0), |(head, at, _)| (head.generation, head.sequence, at + head.len as u64))
    }

    fn history(self) -> History {
        let (generation, last, _) = self.end();
        let mut history = History::default();
        let mut previous = None;
        // Older generations are what the newest but one has not yet overwritten.
        for (sequence, (head, _, events)) in self.batches {
            if head.generation + 1 < generation {
                continue;
            }
            if let Some(previous) = previous {
                history.corrupt += sequence - previous - 1;
            }
            previous = Some(sequence);
            history
                .positions
                .extend((0..events.len() as u32).map(|index| EventPosition { batch: sequence, index }));
            history.events.extend(events);
        }
        history.torn = self.broken.range(last + 1..).count() as u64;
        history
    }
}

fn open_file<D: Disk>(copies: &mut Copies<D>, copy: CopyIndex, name: &str) -> Result<FileId, DiskError> {
    let mut done = copies.run(copy, Lane::Bulk, Op::Open { name: name.into() });
    if matches!(&done, Err(error) if error.kind == DiskErrorKind::NotFound) {
        done = copies.run(copy, Lane::Bulk, Op::Create { name: name.into(), len: FILE_BYTES });
    }
    match done? {
        Done::Opened { file, .. } => Ok(file),
        other => Err(DiskError {
            kind: DiskErrorKind::Io,
            operation: format!("opening {name} on copy {copy}"),
            detail: format!("the disk answered {other:?}"),
        }),
    }
}

/// As much as can be read: an unreadable piece reads as zeros, which are no batch.
fn read_file<D: Disk>(copies: &mut Copies<D>, copy: CopyIndex, file: FileId) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < FILE_BYTES {
        let op = Op::Read { file, offset: bytes.len() as u64, len: BATCH_BYTES };
        match copies.run(copy, Lane::Bulk, op) {
            Ok(Done::Read(data)) if data.is_empty() => break,
            Ok(Done::Read(data)) => bytes.extend_from_slice(&data),
            Err(error) if error.kind == DiskErrorKind::Io => bytes.resize(bytes.len() + BATCH_BYTES, 0),
            _ => return None,
        }
    }
    Some(bytes)
}
