//! Reading the record files: operations with begin and end in one global order.
//!
//! Decides what is one operation (a begin and its end), nothing about durability. Never fails on
//! a record that is cut at the end of a file: its process was killed while writing it.

mod interrupted;

use crate::record::{CREATED, CUTS, DIRECTORY, DURABLE, HEAD, Head, Kind, RECORD_SUFFIX, ZEROES};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A point in the global order; everything with an order up to it has happened.
pub type Instant = u64;

/// What an operation was.
#[expect(missing_docs, reason = "the fields are what the line of their variant says")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// This inode was found open under this path.
    Known { inode: u64, path: PathBuf, directory: bool },
    /// A file was opened with leave to create or to cut it.
    Create { inode: u64, path: PathBuf, created: bool, cuts: bool },
    /// Bytes were written; `None` stands for zeroes.
    Write { inode: u64, offset: u64, len: u64, data: Option<Vec<u8>>, durable: bool },
    /// The length was set.
    Truncate { inode: u64, len: u64 },
    /// Space was allocated, punched or zeroed, as `mode` says (fallocate(2)).
    Allocate { inode: u64, offset: u64, len: u64, mode: i64 },
    /// A file or directory was synced.
    Sync { inode: u64, directory: Option<PathBuf> },
    /// A name was changed.
    Rename { inode: u64, from: PathBuf, to: PathBuf },
    /// A name was removed.
    Remove { path: PathBuf },
    /// A directory was made.
    MakeDirectory { path: PathBuf },
    /// A directory was removed.
    RemoveDirectory { path: PathBuf },
    /// Bytes left through a socket or pipe; `head` is how they began.
    Send { len: u64, head: Vec<u8> },
    /// Bytes were written to the ledger.
    Ledger { data: Vec<u8> },
    /// A process found this in a file when it opened it (the note of which is `opened`); `None`
    /// stands for zeroes.
    Seen { opened: Instant, inode: u64, offset: u64, len: u64, data: Option<Vec<u8>> },
}

/// One recorded operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its place in the order when it began.
    pub begin: Instant,
    /// Its place when it had ended; none when the process died in it.
    pub end: Option<Instant>,
    /// What it returned, or the negated error number; 0 while it has no end.
    pub result: i64,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// What it was.
    pub what: What,
}

impl Operation {
    /// Whether it had ended well by this instant.
    #[must_use]
    pub fn done_by(&self, instant: Instant) -> bool {
        self.result >= 0 && self.end.is_some_and(|end| end <= instant)
    }
}

/// Something that left a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// When the call began: from here on the outside may have seen it.
    pub at: Instant,
    /// Which process.
    pub pid: u32,
    /// How many bytes.
    pub len: u64,
    /// The first of them.
    pub head: Vec<u8>,
}

/// Everything that was recorded, in the order of the begins.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// The recorded directory's path as the processes saw it.
    pub(crate) directory: PathBuf,
    /// What was in it before.
    pub(crate) base: Option<PathBuf>,
    pub(crate) operations: Vec<Operation>,
}

impl Recording {
    /// Reads all record files in `out`, made by processes that recorded `directory`.
    ///
    /// # Errors
    /// The files cannot be read, or something in the middle of one is no record.
    pub fn load(out: &Path, directory: &Path) -> io::Result<Self> {
        let mut begins = BTreeMap::new();
        let mut ends = Vec::new();
        for entry in fs::read_dir(out)? {
            let path = entry?.path();
            if path.as_os_str().to_string_lossy().ends_with(RECORD_SUFFIX) {
                parse(&fs::read(&path)?, &path, &mut begins, &mut ends)?;
            }
        }
        for end in ends {
            // The begin is missing only when its process was killed between the two, and a process
            // writes the begin first; so it is there.
            let operation: &mut Operation = begins
                .get_mut(&end.of)
                .ok_or_else(|| invalid(out, &format!("operation {} ends without a begin", end.of)))?;
            finish(operation, &end);
        }
        let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
        let operations = interrupted::settle(begins.into_values().collect());
        Ok(Self { directory, base: None, operations })
    }

    /// Gives a copy of what was in the directory, durably, before the recording began.
    #[must_use]
    pub fn with_base(mut self, base: &Path) -> Self {
        self.base = Some(base.to_owned());
        self
    }

    /// The same recording had nothing whose path contains this ever been synced: what a test of the
    /// test is made with, since a store that forgets a sync must be found out.
    #[must_use]
    pub fn without_syncs_of(mut self, part: &str) -> Self {
        let meant = |path: &Path| path.to_string_lossy().contains(part);
        let named = self.operations.iter().filter_map(|operation| match &operation.what {
            What::Known { inode, path, .. } | What::Create { inode, path, .. } if meant(path) => Some(*inode),
            What::Rename { inode, from, to } if meant(from) || meant(to) => Some(*inode),
            _ => None,
        });
        let inodes: BTreeSet<u64> = named.collect();
        self.operations.retain(
            |operation| !matches!(&operation.what, What::Sync { inode, .. } if inodes.contains(inode)),
        );
        for operation in &mut self.operations {
            match &mut operation.what {
                What::Write { inode, durable, .. } if inodes.contains(inode) => *durable = false,
                _ => {}
            }
        }
        self
    }

    /// All operations, in the order in which they began.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The last instant: everything recorded has happened.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.operations.iter().map(|operation| operation.end.unwrap_or(operation.begin)).max().unwrap_or(0)
    }

    /// Up to `count` different instants in order: a third of them right after a sync or durable
    /// write ended or something was sent, where a missing sync shows, the others anywhere. All
    /// instants when there are not more than `count`.
    #[must_use]
    pub fn instants(&self, count: usize, seed: u64) -> Vec<Instant> {
        let last = self.last();
        if last < count as u64 {
            return (0..=last).collect();
        }
        let telling: Vec<Instant> = self.operations.iter().filter_map(telling).collect();
        let mut random = Random(seed);
        let mut chosen = BTreeSet::new();
        for number in 0_u64.. {
            if chosen.len() >= count {
                break;
            }
            // With few telling instants the choice among them may stop giving new ones.
            if number % 3 == 0 && number < 4 * count as u64 && !telling.is_empty() {
                chosen.insert(telling[random.below(telling.len() as u64) as usize]);
            } else {
                chosen.insert(random.below(last + 1));
            }
        }
        chosen.into_iter().collect()
    }

    /// What may have left all processes by this instant: every send that had begun.
    #[must_use]
    pub fn sent_by(&self, instant: Instant) -> Vec<Sent> {
        let sends = self.operations.iter().filter_map(|operation| match &operation.what {
            What::Send { len, head } if operation.begin <= instant => {
                Some(Sent { at: operation.begin, pid: operation.pid, len: *len, head: head.clone() })
            }
            _ => None,
        });
        sends.collect()
    }

    /// What had been written to the ledger by this instant, in order. A line that had begun counts:
    /// whoever wrote it knew it before.
    #[must_use]
    pub fn ledger_by(&self, instant: Instant) -> Vec<u8> {
        let mut text = Vec::new();
        for operation in self.operations.iter().take_while(|operation| operation.begin <= instant) {
            if let What::Ledger { data } = &operation.what {
                text.extend_from_slice(data);
            }
        }
        text
    }
}

fn telling(operation: &Operation) -> Option<Instant> {
    match operation.what {
        What::Sync { .. } | What::Write { durable: true, .. } => operation.end,
        What::Send { .. } | What::Ledger { .. } => Some(operation.begin),
        _ => None,
    }
}

fn invalid(path: &Path, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {text}", path.display()))
}

fn parse(
    mut bytes: &[u8],
    path: &Path,
    begins: &mut BTreeMap<Instant, Operation>,
    ends: &mut Vec<Head>,
) -> io::Result<()> {
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
        let head = Head::decode(head).ok_or_else(|| invalid(path, "this is no record"))?;
        let (name, data) = (usize::from(head.path), head.data as usize);
        if rest.len() < name + data {
            break;
        }
        let (name, rest) = rest.split_at(name);
        let (data, rest) = rest.split_at(data);
        bytes = rest;
        if head.kind == Kind::End {
            ends.push(head);
            continue;
        }
        let what = what(&head, name, data).ok_or_else(|| invalid(path, "a renaming without two names"))?;
        let (pid, tid, begin) = (head.pid, head.tid, head.order);
        let end = matches!(head.kind, Kind::Known | Kind::Seen).then_some(begin);
        begins.insert(begin, Operation { begin, end, result: 0, pid, tid, what });
    }
    Ok(())
}

fn what(head: &Head, name: &[u8], data: &[u8]) -> Option<What> {
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let Head { inode, offset, len, .. } = *head;
    let is = |flag| head.flags & flag != 0;
    Some(match head.kind {
        Kind::Known => What::Known { inode, path: path(name), directory: is(DIRECTORY) },
        Kind::Create => What::Create { inode, path: path(name), created: is(CREATED), cuts: is(CUTS) },
        Kind::Write => {
            let data = (!is(ZEROES)).then(|| data.to_vec());
            What::Write { inode, offset, len, data, durable: is(DURABLE) }
        }
        Kind::Truncate => What::Truncate { inode, len },
        Kind::Allocate => What::Allocate { inode, offset, len, mode: head.result },
        Kind::Sync => What::Sync { inode, directory: is(DIRECTORY).then(|| path(name)) },
        Kind::Rename => {
            let middle = name.iter().position(|byte| *byte == 0)?;
            What::Rename { inode, from: path(&name[..middle]), to: path(&name[middle + 1..]) }
        }
        Kind::Remove => What::Remove { path: path(name) },
        Kind::MakeDirectory => What::MakeDirectory { path: path(name) },
        Kind::RemoveDirectory => What::RemoveDirectory { path: path(name) },
        Kind::Send => What::Send { len, head: data.to_vec() },
        Kind::Ledger => What::Ledger { data: data.to_vec() },
        Kind::Seen => {
            let data = (!is(ZEROES)).then(|| data.to_vec());
            What::Seen { opened: head.of, inode, offset, len, data }
        }
        Kind::End => return None,
    })
}

/// Adds to an operation what was only known at its end.
fn finish(operation: &mut Operation, end: &Head) {
    operation.end = Some(end.order);
    operation.result = end.result;
    let failed = end.result < 0;
    match &mut operation.what {
        What::Create { inode, created, cuts, .. } => {
            *inode = end.inode;
            *created = end.flags & CREATED != 0 && !failed;
            *cuts &= !failed;
        }
        // A short write wrote no more than it said; a failed one may have written anything.
        What::Write { offset, len, data, .. } if !failed => {
            *offset = end.offset;
            *len = end.result.cast_unsigned().min(*len);
            if let Some(data) = data {
                data.truncate(*len as usize);
            }
        }
        What::Ledger { data } if !failed => data.truncate(end.result as usize),
        _ => {}
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014). Its own copy: this tool uses nothing of the project.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
