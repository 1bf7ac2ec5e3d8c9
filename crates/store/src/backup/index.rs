//! The index of one backup: what makes it exist, and the view of its files as a journal directory.
//!
//! Decides the bytes of an index (`docs/FORMAT.md`, "Backups"). Never trusts one without its checksum.

use crate::copies::Copies;
use crate::disk::{Completion, Disk, DiskError, DiskErrorKind, Done, Lane, Op, Ticket};
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{CommitSeq, DirectoryId, Lineage, LogId, Position, StoreId};
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use std::collections::{BTreeMap, VecDeque};
use thiserror::Error;

use super::BackupError;

const MAGIC: [u8; 8] = *b"RALLYBAK";
const FORMAT: u16 = 1;
const LONGEST: u64 = 256 << 20;

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the journal directory.
    pub name: String,
    /// Its name on the target.
    pub stored: String,
    /// Bytes.
    pub len: u64,
    /// xxh3-64 of them.
    pub hash: u64,
}

/// One backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Which store.
    pub store: StoreId,
    /// Which of its histories.
    pub lineage: Lineage,
    /// Which of its journal directories.
    pub directory: DirectoryId,
    /// Bytes of a segment.
    pub segment_len: u64,
    /// Every commit up to this one is in it.
    pub watermark: CommitSeq,
    /// When it was taken.
    pub created: Time,
    /// Program that took it, for people.
    pub program: String,
    /// Last position of each log.
    pub logs: Vec<(LogId, Position)>,
    /// Its files, by name.
    pub entries: Vec<Entry>,
}

/// Why bytes are no index.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Torn, rotten or something else.
    #[error("not a sound backup index: {0}")]
    Damaged(&'static str),
    /// Checksum holds, content does not: a bug of its writer.
    #[error("a sound checksum over a backup index that makes no sense: {0}")]
    Nonsense(#[from] Malformed),
    /// Written by a newer release.
    #[error("backup format {format} needs a newer release of rallypoint; this one reads format 1")]
    Newer {
        /// The format.
        format: u16,
    },
    /// There is none.
    #[error("there is no backup here (no sound index file)")]
    Missing,
    /// The backup cannot be read.
    #[error("the backup cannot be read: {0}")]
    Disk(DiskError),
}

impl Index {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.store.0.to_le_bytes());
        body.extend_from_slice(&self.lineage.0.to_le_bytes());
        body.extend_from_slice(&self.directory.0.to_le_bytes());
        body.extend_from_slice(&self.segment_len.to_le_bytes());
        body.extend_from_slice(&self.watermark.0.to_le_bytes());
        body.extend_from_slice(&self.created.0.to_le_bytes());
        put_bytes(&mut body, self.program.as_bytes());
        put_varint(&mut body, self.logs.len() as u64);
        for (log, position) in &self.logs {
            body.extend_from_slice(&log.0.to_le_bytes());
            body.extend_from_slice(&position.0.to_le_bytes());
        }
        put_varint(&mut body, self.entries.len() as u64);
        for entry in &self.entries {
            put_bytes(&mut body, entry.name.as_bytes());
            put_bytes(&mut body, entry.stored.as_bytes());
            body.extend_from_slice(&entry.len.to_le_bytes());
            body.extend_from_slice(&entry.hash.to_le_bytes());
        }
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&FORMAT.to_le_bytes());
        file.extend_from_slice(&0u16.to_le_bytes());
        file.extend_from_slice(&0u32.to_le_bytes());
        file.extend_from_slice(&(body.len() as u64).to_le_bytes());
        file.extend_from_slice(&xxh3(&body).to_le_bytes());
        let head = xxh3(&file);
        file.extend_from_slice(&head.to_le_bytes());
        file.extend_from_slice(&body);
        file
    }

    /// Reads an index file.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let short = |_| IndexError::Damaged("shorter than its head");
        let mut reader = Reader::new(bytes);
        if reader.take(8, "magic").map_err(short)? != MAGIC {
            return Err(IndexError::Damaged("magic"));
        }
        let format = reader.u16("format").map_err(short)?;
        let flags = reader.u16("flags").map_err(short)?;
        reader.u32("reserved").map_err(short)?;
        let len = reader.u64("length").map_err(short)?;
        let hash = reader.u64("hash").map_err(short)?;
        let hashed = reader.offset();
        if reader.u64("head hash").map_err(short)? != xxh3(&bytes[..hashed]) {
            return Err(IndexError::Damaged("checksum of the head"));
        }
        if format != FORMAT || flags != 0 {
            return Err(IndexError::Newer { format });
        }
        let len = usize::try_from(len).map_err(|_| IndexError::Damaged("length"))?;
        let body = reader.take(len, "body").map_err(|_| IndexError::Damaged("length"))?;
        if xxh3(body) != hash {
            return Err(IndexError::Damaged("checksum of the body"));
        }
        let mut reader = Reader::new(body);
        let mut index = Self {
            store: StoreId(reader.u64("store")?),
            lineage: Lineage(reader.u64("lineage")?),
            directory: DirectoryId(reader.u16("directory")?),
            segment_len: reader.u64("segment length")?,
            watermark: CommitSeq(reader.u64("watermark")?),
            created: Time(reader.u64("created")?),
            program: reader.text("program")?.to_owned(),
            logs: Vec::new(),
            entries: Vec::new(),
        };
        for _ in 0..reader.varint("log count")? {
            index.logs.push((LogId(reader.u16("log")?), Position(reader.u64("position")?)));
        }
        for _ in 0..reader.varint("entry count")? {
            index.entries.push(Entry {
                name: reader.text("name")?.to_owned(),
                stored: reader.text("stored name")?.to_owned(),
                len: reader.u64("length")?,
                hash: reader.u64("hash")?,
            });
        }
        Ok(index)
    }
}

pub(super) fn file_name(sequence: u64) -> String {
    format!("index-{sequence:08}")
}

pub(super) fn parse_file_name(name: &str) -> Option<u64> {
    let sequence = name.strip_prefix("index-")?.parse().ok()?;
    (file_name(sequence) == name).then_some(sequence)
}

type Listed = (Vec<(u64, Index)>, BTreeMap<String, u64>);

/// The sound indexes of a target, oldest first, and all its files.
pub(super) fn list<T: Disk>(copies: &mut Copies<T>) -> Result<Listed, BackupError> {
    let Done::Names(names) = copies.run(0, Lane::Bulk, Op::List).map_err(BackupError::Target)? else {
        return Err(BackupError::Target(crate::mirror::protocol_error("the target")));
    };
    let mut indexes = Vec::new();
    for (name, len) in &names {
        let Some(sequence) = parse_file_name(name) else { continue };
        match read(copies, name, *len) {
            Ok(bytes) => match Index::decode(&bytes) {
                Ok(index) => indexes.push((sequence, index)),
                Err(error @ IndexError::Newer { .. }) => return Err(error.into()),
                // The one before it is still there.
                Err(_) => {}
            },
            Err(error) if error.kind == DiskErrorKind::Io => {}
            Err(error) => return Err(BackupError::Target(error)),
        }
    }
    indexes.sort_by_key(|(sequence, _)| *sequence);
    Ok((indexes, names.into_iter().collect()))
}

fn read<T: Disk>(copies: &mut Copies<T>, name: &str, len: u64) -> Result<Vec<u8>, DiskError> {
    let mut bytes = Vec::new();
    let Done::Opened { file, .. } = copies.run(0, Lane::Bulk, Op::Open { name: name.into() })? else {
        return Ok(bytes);
    };
    while (bytes.len() as u64) < len.min(LONGEST) {
        match copies.run(0, Lane::Bulk, Op::Read { file, offset: bytes.len() as u64, len: super::PIECE })? {
            Done::Read(data) if !data.is_empty() => bytes.extend_from_slice(&data),
            _ => break,
        }
    }
    copies.run(0, Lane::Bulk, Op::Close { file })?;
    Ok(bytes)
}

/// A backup seen as the journal directory that it was: names are translated, nothing can be written.
#[derive(Debug)]
pub(super) struct View<T> {
    inner: T,
    files: BTreeMap<String, (String, u64)>,
    tickets: BTreeMap<Ticket, Ticket>,
    answers: VecDeque<Completion>,
    next: u64,
}

impl<T> View<T> {
    pub(super) fn new(inner: T, entries: &[Entry]) -> Self {
        let file = |entry: &Entry| (entry.name.clone(), (entry.stored.clone(), entry.len));
        let files = entries.iter().map(file).collect();
        Self { inner, files, tickets: BTreeMap::new(), answers: VecDeque::new(), next: 0 }
    }

    pub(super) fn into_inner(self) -> T {
        self.inner
    }

    fn translate(&mut self, completion: Completion) -> Option<Completion> {
        let ticket = self.tickets.remove(&completion.ticket)?;
        Some(Completion { ticket, ..completion })
    }
}

impl<T: Disk> View<T> {
    fn refuse(&self, kind: DiskErrorKind, name: &str, detail: &str) -> DiskError {
        DiskError {
            kind,
            operation: format!("{name} of the backup on {}", self.inner.name()),
            detail: detail.into(),
        }
    }
}

impl<T: Disk> Disk for View<T> {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        let answer = match op {
            Op::List => {
                let names = self.files.iter().map(|(name, (_, len))| (name.clone(), *len)).collect();
                Ok(Done::Names(names))
            }
            Op::Open { name } => match self.files.get(&name) {
                Some((stored, _)) => {
                    let inner = self.inner.submit(lane, Op::Open { name: stored.clone() });
                    self.tickets.insert(inner, ticket);
                    return ticket;
                }
                None => Err(self.refuse(DiskErrorKind::NotFound, &name, "not in this backup")),
            },
            op @ (Op::Read { .. } | Op::Close { .. }) => {
                let inner = self.inner.submit(lane, op);
                self.tickets.insert(inner, ticket);
                return ticket;
            }
            Op::Create { .. } | Op::Write { .. } | Op::Rename { .. } | Op::Remove { .. } => {
                Err(self.refuse(DiskErrorKind::ReadOnly, "a file", "backups are never changed"))
            }
            Op::Sync { .. } | Op::SyncNames => Ok(Done::Unit),
        };
        self.answers.push_back(Completion { ticket, result: answer });
        ticket
    }

    fn poll(&mut self) -> Option<Completion> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        let completion = self.inner.poll()?;
        self.translate(completion)
    }

    fn wait(&mut self) -> Option<Completion> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        let completion = self.inner.wait()?;
        self.translate(completion)
    }

    fn name(&self) -> &str {
        self.inner.name()
    }
}
