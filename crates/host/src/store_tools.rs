//! What can be done with a whole store's bytes, without its application: look, verify, scrub, mend,
//! back up, restore, drop what was set aside.
//!
//! Decides which directories make up a store, that nobody else has them, and what of all they say
//! counts as damage. Never decides what one journal directory's bytes mean: that is the store's own
//! `verify`, `mend`, `scrub` and `backup`, which are called for each in turn.
//!
//! Invariants:
//! - what only looks writes not one byte, not even into the lock files;
//! - what writes holds the locks of all directories, of all copies that are there, from before the
//!   first read to after the last write;
//! - an error ([`ToolError`]) means that nothing was judged; what is wrong with a store that was
//!   judged is a [`Fault`].

mod check;
mod copy;
mod look;
mod repair;
mod walk;

pub use check::{ChannelCounters, DirectoryFigures, Verification, verify};
pub use copy::{BackedUp, Restored, backup, restore};
pub use look::{
    CheckpointDetails, CheckpointLine, EventLine, EventList, Quarantined, checkpoint, checkpoints,
    drop_quarantined, events, quarantined,
};
pub use repair::{Mended, ScrubbedDirectory, Scrubbing, mend, scrub};

use crate::os::file_disk::{FileDisk, FileDiskOptions, OpenDiskError};
use crate::os::lock::{DirectoryLock, LockError};
use crate::root::{Root, RootError};
use rallypoint_base::id::{DirectoryId, LogId, PartitionId, Position, Version};
use rallypoint_base::time::Time;
use rallypoint_base::wire::Malformed;
use rallypoint_store::backup::{BackupError, RestoreError};
use rallypoint_store::checkpoint::{Identity as CheckpointIdentity, ScanError};
use rallypoint_store::copies::Copies;
use rallypoint_store::error::StoreError;
use rallypoint_store::event_log::{Event, EventLog};
use rallypoint_store::superblock;
use rallypoint_store::verify::VerifyError;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// Why a tool could not do its work. Nothing was changed, except where the text says so.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ToolError {
    /// Not a store, in use, or not readable.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A directory cannot be used as a disk.
    #[error(transparent)]
    Disk(#[from] OpenDiskError),
    /// A journal directory cannot be opened.
    #[error("{directory}: {error}")]
    Store {
        /// Which.
        directory: DirectoryId,
        /// Why.
        error: StoreError,
    },
    /// The checkpoints of a journal directory cannot be listed.
    #[error("{directory}: {error}")]
    Checkpoints {
        /// Which.
        directory: DirectoryId,
        /// Why.
        error: ScanError,
    },
    /// No backup was made. Earlier ones are whole.
    #[error("{directory}: {error}")]
    Backup {
        /// Which journal directory.
        directory: DirectoryId,
        /// Why.
        error: BackupError,
    },
    /// A backup cannot be restored. What was begun lies in the directory `*.restoring`.
    #[error("{directory}: {error}")]
    Restore {
        /// Which journal directory.
        directory: DirectoryId,
        /// Why.
        error: RestoreError,
    },
    /// There is no backup, or not of a whole store.
    #[error("{place}: {what}")]
    NoBackup {
        /// Where.
        place: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// No such partition, checkpoint or input.
    #[error("{what}; `rallypoint {command}` shows those there are")]
    Unknown {
        /// What was named.
        what: String,
        /// The command that lists them.
        command: &'static str,
    },
    /// The engine's header of a checkpoint is none.
    #[error("checkpoint {version} of {log}: its header cannot be read by this release: {error}")]
    Header {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// Which field.
        error: Malformed,
    },
    /// The store is served by a process that cannot be asked from outside.
    #[error("{0}: its process compares everything by itself, a pass a day ({1}); stop it to scrub from here")]
    Served(LockError, &'static str),
    /// The workers did not answer.
    #[error("the workers of {place} took the wish and have not ended a pass within {waited_s} s: {next}")]
    NoAnswer {
        /// The store.
        place: PathBuf,
        /// How long was waited.
        waited_s: u64,
        /// What to do.
        next: &'static str,
    },
    /// Files could not be read, written or renamed.
    #[error("{what} {place}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        place: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl ToolError {
    /// True when another process has the store.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Root(RootError::Lock(LockError::InUse { .. })) | Self::Served(..))
    }

    pub(crate) fn io(what: &'static str, place: &Path) -> impl FnOnce(io::Error) -> Self {
        let place = place.to_owned();
        move |error| Self::Io { what, place, error }
    }

    fn verify(directory: DirectoryId, error: VerifyError) -> Self {
        match error {
            VerifyError::Checkpoints(error) => Self::Checkpoints { directory, error },
            VerifyError::Store(error) => Self::Store { directory, error },
            other => Self::Store { directory, error: StoreError::Options(other.to_string()) },
        }
    }
}

/// Something that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// One word for programs.
    pub kind: &'static str,
    /// The journal directory, where it concerns one.
    pub directory: Option<String>,
    /// The file, with its path.
    pub file: Option<String>,
    /// The block of 4,096 bytes in it.
    pub block: Option<u64>,
    /// Another copy has it right, so that `mend` or the next opening repairs it.
    pub repairable: bool,
    /// What is wrong, for people.
    pub what: String,
}

impl Fault {
    fn of(kind: &'static str, directory: DirectoryId, what: impl Into<String>) -> Self {
        Self {
            kind,
            directory: Some(directory.to_string()),
            file: None,
            block: None,
            repairable: false,
            what: what.into(),
        }
    }

    fn at(mut self, file: &Path, block: impl Into<Option<u64>>) -> Self {
        self.file = Some(file.display().to_string());
        self.block = block.into();
        self
    }

    fn repairable(mut self, repairable: bool) -> Self {
        self.repairable = repairable;
        self
    }
}

/// Told how long work goes on.
pub trait Progress {
    /// The next journal directory (of so many), and what is done with it.
    fn step(&mut self, what: &str, directory: DirectoryId, of: usize);
    /// More was read or written: records of a journal, bytes of checkpoints.
    fn more(&mut self, records: u64, bytes: u64);
}

/// Nobody looks.
impl Progress for () {
    fn step(&mut self, _what: &str, _directory: DirectoryId, _of: usize) {}
    fn more(&mut self, _records: u64, _bytes: u64) {}
}

fn now() -> Time {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX))
}

fn program() -> String {
    format!("rallypoint {}", env!("CARGO_PKG_VERSION"))
}

fn directories(root: &Root) -> impl Iterator<Item = DirectoryId> + use<> {
    (0..root.map.directory_count() as u16).map(DirectoryId)
}

/// The copies of a journal directory that are there.
fn present(root: &Root, directory: DirectoryId) -> Vec<PathBuf> {
    root.copies_of(directory).filter(|path| path.is_dir()).collect()
}

/// Locks everything that is there.
fn lock(root: &Root) -> Result<Vec<DirectoryLock>, ToolError> {
    let paths = directories(root).flat_map(|directory| present(root, directory));
    let locks: Result<Vec<_>, LockError> = paths.map(|path| DirectoryLock::acquire(&path)).collect();
    Ok(locks.map_err(RootError::Lock)?)
}

/// Makes sure that nobody else has anything of it, without writing.
fn observe(root: &Root) -> Result<Vec<DirectoryLock>, ToolError> {
    let mut locks = Vec::new();
    for path in directories(root).flat_map(|directory| present(root, directory)) {
        locks.extend(DirectoryLock::observe(&path).map_err(RootError::Lock)?);
    }
    Ok(locks)
}

fn read_only(paths: &[PathBuf]) -> Result<Vec<FileDisk>, OpenDiskError> {
    let options = FileDiskOptions { read_only: true, ..FileDiskOptions::default() };
    paths.iter().map(|path| FileDisk::open(path, options.clone())).collect()
}

/// Disks of a store that exists: whoever made it has decided about the file system.
fn writable(paths: &[PathBuf]) -> Result<Vec<FileDisk>, OpenDiskError> {
    let options = FileDiskOptions { allow_unsuitable: true, ..FileDiskOptions::default() };
    paths.iter().map(|path| FileDisk::open(path, options.clone())).collect()
}

/// Whose files lie in these directories, as the first sound superblock says.
fn identity_of(paths: &[PathBuf]) -> Option<CheckpointIdentity> {
    paths.iter().find_map(|path| {
        let bytes = std::fs::read(path.join(superblock::FILE)).ok()?;
        let best = superblock::judge(&bytes).ok()?.best.ok()?;
        Some(CheckpointIdentity { store: best.store, lineage: best.lineage })
    })
}

/// Writes events into the log of a directory that nobody serves. A log that cannot be written loses
/// the event and nothing else.
fn note(paths: &[PathBuf], events: Vec<Event>) {
    let (Some(identity), Ok(disks)) = (identity_of(paths), writable(paths)) else { return };
    let mut copies = Copies::new(disks);
    let mut log = loop {
        match EventLog::open(&mut copies, identity) {
            Ok((log, _)) => break log,
            Err((copy, _)) => copies.take_out(copy),
        }
    };
    events.into_iter().for_each(|event| log.append(event));
    log.flush(&mut copies);
    while !log.is_idle() {
        let Some(routed) = copies.wait() else { return };
        log.handle(&mut copies, routed);
    }
}

/// The partition of a log, unless it is the directory's own.
fn partition_of(log: LogId) -> Option<PartitionId> {
    (log != LogId::SYSTEM).then_some(PartitionId(log.0))
}

/// Where each partition's log ends, for people and programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogEnd {
    /// The partition.
    pub partition: u16,
    /// Position of its last record.
    pub position: u64,
}

fn log_end(log: LogId, position: Position) -> Option<LogEnd> {
    partition_of(log).map(|partition| LogEnd { partition: partition.0, position: position.0 })
}
