//! The port to one disk: submit and complete.
//!
//! Decides nothing. A [`Disk`] is one copy of one journal directory: a flat set of named files on
//! (what is meant to be) one physical disk. The store submits operations and is told, in whatever
//! order the disk finishes them, how each one ended; several may be in flight, and the simulated
//! disk may crash or reorder among them. This port never retries, never interprets content, and
//! never hides an error: the error belongs to the operation that met it.
//!
//! Durability: a completed [`Op::Write`] with `durable: true` survives a power cut; one with
//! `durable: false` does after a completed [`Op::Sync`] of its file. [`Op::Create`], [`Op::Rename`]
//! and [`Op::Remove`] survive after a completed [`Op::SyncNames`].

use rallypoint_base::buffer::AlignedBuffer;
use thiserror::Error;

/// Names one submitted operation on its disk; never reused while the disk is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// An open file of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// Which queue an operation joins. Operations of different lanes do not wait for each other, so
/// that a commit is not delayed by the bulk writes beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Commits of the journal: few, small, latency counts.
    Commit,
    /// Checkpoints, scrubbing, recovery reads: in pieces of at most 1 MiB.
    Bulk,
}

/// What a disk can be asked to do. Offsets, lengths and buffers of reads and writes on files that
/// were opened or created `direct` are multiples of 4,096.
#[derive(Debug)]
pub enum Op {
    /// Names and lengths of all files, sorted by name. Answer: [`Done::Names`].
    List,
    /// Opens an existing file for reading and writing (a read-only disk: for reading).
    /// Answer: [`Done::Opened`].
    Open {
        /// File name, without any `/`.
        name: String,
    },
    /// Creates a file that must not exist, `len` zero bytes long, every byte of it written and
    /// synced (its *name* is durable only after [`Op::SyncNames`]). Answer: [`Done::Opened`].
    Create {
        /// File name, without any `/`.
        name: String,
        /// Bytes, a multiple of 4,096 (0 is allowed).
        len: u64,
    },
    /// Reads; a read beyond the end of the file is short. Answer: [`Done::Read`].
    Read {
        /// From which file.
        file: FileId,
        /// Bytes from the start of the file.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// Writes, growing the file where it must. Answer: [`Done::Wrote`], which gives the buffer back.
    Write {
        /// To which file.
        file: FileId,
        /// Bytes from the start of the file.
        offset: u64,
        /// What to write.
        data: AlignedBuffer,
        /// Complete only once the bytes would survive a power cut.
        durable: bool,
    },
    /// Makes everything written to the file durable. Answer: [`Done::Unit`].
    Sync {
        /// Which file.
        file: FileId,
    },
    /// Gives a file another name, replacing what had it. Answer: [`Done::Unit`].
    Rename {
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// Removes a file. Answer: [`Done::Unit`].
    Remove {
        /// Its name.
        name: String,
    },
    /// Makes creations, renames and removals durable. Answer: [`Done::Unit`].
    SyncNames,
    /// Closes a file; its id is not used again. Answer: [`Done::Unit`].
    Close {
        /// Which file.
        file: FileId,
    },
}

/// How an operation ended well.
#[derive(Debug)]
pub enum Done {
    /// Answer to [`Op::List`]: (name, length in bytes), sorted by name.
    Names(Vec<(String, u64)>),
    /// Answer to [`Op::Open`] and [`Op::Create`].
    Opened {
        /// The open file.
        file: FileId,
        /// Its length in bytes.
        len: u64,
    },
    /// Answer to [`Op::Read`]: as many bytes as there were, at most as many as asked for.
    Read(AlignedBuffer),
    /// Answer to [`Op::Write`]: the buffer that was written, for use again.
    Wrote(AlignedBuffer),
    /// Answer to everything else.
    Unit,
}

/// An operation's end.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub ticket: Ticket,
    /// How it ended.
    pub result: Result<Done, DiskError>,
}

/// What kind of trouble a disk reports; the store reacts to the kind, a person reads the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskErrorKind {
    /// No such file.
    NotFound,
    /// A file of that name exists.
    Exists,
    /// No space left, or a quota or size limit is reached.
    NoSpace,
    /// The disk was opened for reading only.
    ReadOnly,
    /// The disk is gone: the process crashed (simulator) or the device disappeared.
    Gone,
    /// Any other input/output error. After a failed write or sync the content of the range is
    /// unknown and the page cache may lie about it: never retry, drop this copy.
    Io,
}

/// Trouble with one operation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{operation} failed: {detail}")]
pub struct DiskError {
    /// What kind of trouble.
    pub kind: DiskErrorKind,
    /// What was tried, with the file's path.
    pub operation: String,
    /// What the operating system (or the simulator) said.
    pub detail: String,
}

/// One copy of one journal directory. See the module for the contract.
pub trait Disk {
    /// Starts an operation. Never blocks for long; errors come with the completion.
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket;

    /// The next completion, if there is one now. Completions of one lane may come in any order.
    fn poll(&mut self) -> Option<Completion>;

    /// Waits for the next completion. `None` when nothing is outstanding.
    /// (A file disk runs operations that no thread has picked up yet on the calling thread, which
    /// saves the hop when nothing else is to be done meanwhile.)
    fn wait(&mut self) -> Option<Completion>;

    /// Where this copy is, for messages to people.
    fn name(&self) -> &str;
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        (**self).submit(lane, op)
    }
    fn poll(&mut self) -> Option<Completion> {
        (**self).poll()
    }
    fn wait(&mut self) -> Option<Completion> {
        (**self).wait()
    }
    fn name(&self) -> &str {
        (**self).name()
    }
}
