//! The checkpoint store of one journal directory.
//!
//! Decides when a version *exists* (its manifest has its name, durably), which versions are usable,
//! which must be kept and how far a log may be cut. Content is opaque bytes in chunks.
//!
//! Never overwrites a version in place (save a chunk that is proven rotten, with its proven good
//! bytes); never writes a manifest before the part has been synced, read again and found right on
//! every copy that takes part; never removes a part while its manifest may come back; never decides
//! that a copy is out (it reports [`CheckpointEvent::CopyFailed`], the mirror decides).
//!
//! Order of calls. [`CheckpointStore::scan`] at opening. To write: [`CheckpointStore::begin`], then
//! [`CheckpointStore::write_chunk`] whenever [`CheckpointStore::is_ready`], then
//! [`CheckpointStore::finish`] *once the log is durable through the checkpoint's position*. Every
//! completion under [`Owner::Checkpoint`](crate::copies::Owner::Checkpoint) goes to
//! [`CheckpointStore::handle`]; after
//! [`Copies::take_out`](crate::copies::Copies::take_out), call [`CheckpointStore::poll`], since the
//! lost copy's completions never come. Reading, pinning and counting wait for the disk.
//!
//! Why the manifest is last, and its SyncNames after the part's:
//!
//! ```text
//! write part | SyncNames (part) | sync part | re-read | write tmp | sync tmp | rename | SyncNames
//!                               ^ a manifest renamed here could survive a power cut that the
//!                                 part's blocks or name do not: a version that cannot be read,
//!                                 while the log may already be cut to it
//! ```
//!
//! Source: Lampson and Sturgis, "Crash Recovery in a Distributed Data Storage System" (1979), for
//! the two copies; Pillai et al. (OSDI '14) for the order; decision 0002 for everything else.

mod collect;
mod manifest;
mod marks;
mod read;
mod repair;
mod scan;
mod verify;
mod versions;
mod write;

pub use manifest::{
    CHUNK_BYTES, Chunk, FORMAT, FileKind, HEADER_BYTES, Identity, Manifest, ManifestError, file_name,
    parse_name,
};
pub use marks::{DropError, MarkError};
pub use read::{ReadError, ScrubCursor};
pub use scan::{Finding, ScanError, ScanMode};
pub use verify::Rot;
pub use versions::{ChainError, VersionInfo, VersionState};
pub use write::{Begin, FailReason, WriteError};

use crate::copies::CopyIndex;
use crate::disk::{DiskError, Ticket};
use collect::Collecting;
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::id::{LogId, Version};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use write::Writer;

/// After how many failed restores a version is no longer used.
pub const RESTORE_ATTEMPTS: u32 = 3;

/// The checkpoints of one journal directory. See the module for the order of calls.
#[derive(Debug)]
pub struct CheckpointStore {
    identity: Identity,
    /// Sorted by version.
    logs: BTreeMap<LogId, Vec<VersionInfo>>,
    /// Highest version of which any file was ever seen, so that none is used again.
    highest: BTreeMap<LogId, Version>,
    /// Versions from here on may be gone back to, whatever newer ones there are.
    floors: BTreeMap<LogId, Version>,
    /// Parts of archives that are no longer wanted.
    given_up: BTreeSet<(LogId, Version)>,
    /// Names on any copy that nobody needs.
    garbage: BTreeSet<String>,
    /// Versions whose manifest no copy can give back.
    unreadable: BTreeSet<(LogId, Version)>,
    writers: BTreeMap<LogId, Writer>,
    collecting: Option<Collecting>,
    tasks: BTreeMap<(CopyIndex, Ticket), Task>,
    load: BTreeMap<CopyIndex, Load>,
    events: VecDeque<CheckpointEvent>,
    /// Buffers of completed chunk writes, for the next chunks.
    spare: Vec<AlignedBuffer>,
}

/// What of ours is in flight on a copy, over all logs.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    writes: usize,
    reads: usize,
}

/// What an operation in flight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Write(LogId, Version, write::Step),
    Collect,
}

/// What happened to checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointEvent {
    /// The version exists, verified, on every copy that is in.
    Written {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// The version does not exist; its files are removed by the next collection.
    Failed {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// Why.
        reason: FailReason,
    },
    /// A copy failed an operation: the mirror must take it out. The checkpoint goes on without it.
    CopyFailed {
        /// Which copy.
        copy: CopyIndex,
        /// How.
        error: DiskError,
    },
    /// A chunk was bad on one copy and was rewritten from another.
    Repaired {
        /// Which copy.
        copy: CopyIndex,
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// Which chunk.
        chunk: usize,
    },
    /// A chunk is bad on every copy: the version is not used any more.
    Damaged {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// Which chunk.
        chunk: usize,
    },
    /// Files were removed, durably.
    Collected {
        /// Versions that are no more.
        versions: Vec<(LogId, Version)>,
    },
}

impl CheckpointStore {
    /// A store without any version, for a directory that was just created.
    #[must_use]
    pub fn empty(identity: Identity) -> Self {
        Self {
            identity,
            logs: BTreeMap::new(),
            highest: BTreeMap::new(),
            floors: BTreeMap::new(),
            given_up: BTreeSet::new(),
            garbage: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            writers: BTreeMap::new(),
            collecting: None,
            tasks: BTreeMap::new(),
            load: BTreeMap::new(),
            events: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Whose files these are.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }
}
