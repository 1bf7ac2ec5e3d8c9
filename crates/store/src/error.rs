//! What can go wrong with a store, in words for the person who has to act.
//!
//! Decides nothing. Every text says who is at fault, where, and what to do next.

use crate::disk::DiskError;
use crate::superblock::SlotError;
use rallypoint_base::id::{CommitSeq, Epoch, LogId, Position};
use std::fmt;
use thiserror::Error;

/// Records that no copy can give back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The log, or `None` when nothing that is left names it.
    pub log: Option<LogId>,
    /// First position that is lost, or may be (0 = unknown).
    pub from: Position,
    /// Last position that is lost; `None` when nothing that is left names it.
    pub to: Option<Position>,
    /// True when the records are proven to be lost; false when the log merely cannot be proven to
    /// be whole, because nothing of it comes after the damage.
    pub proven: bool,
    /// The damaged commits, first and last.
    pub commits: (CommitSeq, CommitSeq),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.log {
            Some(log) => write!(f, "{log} ")?,
            None => write!(f, "unknown logs ")?,
        }
        match self.to {
            Some(to) if to == self.from => write!(f, "{to}")?,
            Some(to) => write!(f, "{}..={to}", self.from)?,
            None if self.log.is_none() => write!(f, "from an unknown position on")?,
            None => write!(f, "from {} on", self.from)?,
        }
        if !self.proven {
            write!(f, " (possibly)")?;
        }
        write!(f, " in commits {}..={}", self.commits.0, self.commits.1)
    }
}

fn listed(items: &[Lost]) -> String {
    const SHOWN: usize = 8;
    let mut text = items.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        text.push_str(&format!(" and {} more", items.len() - SHOWN));
    }
    text
}

/// Why a store cannot do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The options are not possible.
    #[error("the caller's options are not possible: {0}")]
    Options(String),
    /// Creation needs empty directories.
    #[error(
        "{place} is not empty (it holds {found}); create the store in an empty directory, or open what is there"
    )]
    NotEmpty {
        /// The directory.
        place: String,
        /// Something in it.
        found: String,
    },
    /// There is no store in any of the directories.
    #[error("there is no store in {places}; create one, or name the right directory")]
    Missing {
        /// The directories.
        places: String,
    },
    /// The creation was cut short, so nothing was ever stored.
    #[error("the store in {places} was never finished being created and holds nothing; create it again")]
    Unfinished {
        /// The directories.
        places: String,
    },
    /// No superblock can be read.
    #[error(
        "no superblock in {places} is sound ({detail}); restore the directory from its mirror or a backup"
    )]
    NoSuperblock {
        /// The directories.
        places: String,
        /// What is wrong with them.
        detail: String,
    },
    /// A superblock of another release.
    #[error("{place} cannot be opened by this release: {error}")]
    Version {
        /// The directory.
        place: String,
        /// The version or flags.
        error: SlotError,
    },
    /// A block of another release.
    #[error(
        "{place} holds a journal block of format version {version} with flags {flags:#x}; it needs the release that wrote it or a later one"
    )]
    BlockVersion {
        /// The directory and file.
        place: String,
        /// Its version.
        version: u16,
        /// Its flags.
        flags: u16,
    },
    /// Directories of different stores were given as one.
    #[error(
        "{place} belongs to {found}, {other} to {expected}: they are not copies of each other; check the configured directories"
    )]
    Foreign {
        /// One directory.
        place: String,
        /// What it belongs to.
        found: String,
        /// Another directory.
        other: String,
        /// What that belongs to.
        expected: String,
    },
    /// Two directories claim to be the same copy.
    #[error("{place} and {other} both say that they are copy {copy}; one is a clone, remove it")]
    SameCopy {
        /// One directory.
        place: String,
        /// The other.
        other: String,
        /// The number both claim.
        copy: u8,
    },
    /// A copy that belongs to the in-sync set is absent.
    #[error(
        "copy {absent} of this store is absent, empty, unreadable or an old image, and it may hold acknowledged records that {present} lacks; \
         bring it back, or open with --degraded if it is lost for good"
    )]
    NeedsDegraded {
        /// Number of the absent copy.
        absent: u8,
        /// The directories that are there.
        present: String,
    },
    /// Only copies that were left behind are there.
    #[error(
        "{place} was left behind at {epoch} (another copy went on without it), and that other copy is absent; \
         bring it back: this one lacks acknowledged records"
    )]
    Stale {
        /// The directory.
        place: String,
        /// The epoch it knows.
        epoch: String,
    },
    /// Each copy went on without the other.
    #[error(
        "{place} and {other} each went on without the other; choose one with `mend --keep` and keep the other aside"
    )]
    SplitBrain {
        /// One directory.
        place: String,
        /// The other.
        other: String,
    },
    /// The superblock knows less than the blocks.
    #[error(
        "the superblock in {place} says {known}, but a journal block there was written in {found}: the superblock is an old one; \
         bring back the other copy or restore a backup"
    )]
    SuperblockBehind {
        /// The directory.
        place: String,
        /// The superblock's epoch.
        known: Epoch,
        /// The block's epoch.
        found: Epoch,
    },
    /// A disk refused an operation that cannot be done without.
    #[error("{place}: {error}")]
    Disk {
        /// The directory.
        place: String,
        /// The disk's words.
        error: DiskError,
    },
    /// No space for the next segment. Everything acknowledged stays; nothing is lost.
    #[error(
        "{place} has no space for the next journal segment ({error}); free space there or let checkpoints cut the journal; nothing acknowledged is lost"
    )]
    NoSpace {
        /// The directory.
        place: String,
        /// The disk's words.
        error: DiskError,
    },
    /// Every copy failed.
    #[error(
        "no copy of the journal is left: {place} failed last ({error}); what was not acknowledged may or may not be stored; repair the disk and open the store again"
    )]
    NoCopyLeft {
        /// The directory.
        place: String,
        /// The disk's words.
        error: DiskError,
    },
    /// Acknowledged records are lost on every copy.
    #[error(
        "the journal is damaged beyond repair in {}; the store is open for reading only; \
         bring back a missing copy and run `mend`, or restore a backup", listed(.lost)
    )]
    Damaged {
        /// What is lost.
        lost: Vec<Lost>,
    },
    /// The store was opened for reading.
    #[error("the store was opened for reading only; open it for writing")]
    ReadOnly,
    /// A record that no segment can hold.
    #[error("a record of {len} bytes for {log} does not fit a commit (at most {max}); split it")]
    RecordTooLarge {
        /// Its log.
        log: LogId,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The caller broke the order of a log.
    #[error(
        "the caller appended {got} to {log}, whose next record is {expected}; this is a bug in the caller"
    )]
    OutOfOrder {
        /// The log.
        log: LogId,
        /// What would have been right.
        expected: Position,
        /// What came.
        got: Position,
    },
}
