//! One copy of a journal directory on a real disk: files, two lanes of threads, no tricks.
//!
//! Decides which thread runs an operation and how a byte is made durable. Never retries what
//! failed, never reorders operations of one lane that touch the same bytes or names, never looks
//! into what it stores.
//!
//! *How bytes become durable.* Journal segments, superblocks and checkpoint parts are opened
//! `O_DIRECT` twice: once with `O_DSYNC` for durable writes (one system call per commit, and the
//! error belongs to *this* write; there is no page cache to lie about it) and once without, for
//! bulk. Where `O_DIRECT` is refused, and for small files of other names, a durable write is a
//! buffered write and `fdatasync`.
//!
//! *Who runs an operation.* `submit` only queues. `poll` and `kick` hand everything queued to the
//! standing threads: one for [`Lane::Commit`], a small pool for [`Lane::Bulk`], all started at
//! first use. `wait` with a commit still queued runs it on the calling thread, since a hop to
//! another thread and back costs about a quarter of the write itself.
//!
//! Invariants: operations of one lane that conflict (same bytes of a file, a sync or close and
//! anything before it on that file, any two that touch names) run in the order of submission;
//! those of different lanes never wait for each other. After a failed write or sync of a file each
//! later one on it fails with the same error (on ext4, XFS and btrfs a second `fdatasync` reports
//! success and lies; Rebello et al. 2020), also after it is closed and opened again.

use super::file_system::{self, FileSystem, Suitability};
use super::freeing::Freeing;
use super::lock::LOCK_NAME;
use super::running_page::RUNNING_NAME;
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::limits::BLOCK;
use rallypoint_store::disk::{Completion, Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op, Ticket};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use thiserror::Error;

/// Called by a disk thread when a completion has arrived for the owner of the disk to poll.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// How large the pieces are in which a new file is filled with zeroes.
const FILL: usize = 1 << 20;
/// Enough for the calls made here; the default of 2 MiB would count against an idle process.
const STACK: usize = 64 << 10;

/// How to open a [`FileDisk`].
#[derive(Clone)]
pub struct FileDiskOptions {
    /// Refuse everything that changes the disk. The directory must exist.
    pub read_only: bool,
    /// Make the directory (durably) when it does not exist.
    pub create: bool,
    /// Use a file system that is known not to keep the promise.
    pub allow_unsuitable: bool,
    /// Open large files `O_DIRECT` where the file system allows it.
    pub direct: bool,
    /// Most threads of the bulk lane.
    pub bulk_threads: usize,
    /// Told about completions; must return at once.
    pub waker: Option<Waker>,
}

impl Default for FileDiskOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            create: false,
            allow_unsuitable: false,
            direct: true,
            bulk_threads: 4,
            waker: None,
        }
    }
}

impl fmt::Debug for FileDiskOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileDiskOptions")
            .field("read_only", &self.read_only)
            .field("create", &self.create)
            .field("allow_unsuitable", &self.allow_unsuitable)
            .field("direct", &self.direct)
            .field("bulk_threads", &self.bulk_threads)
            .finish_non_exhaustive()
    }
}

/// Why a directory cannot be used as a disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenDiskError {
    /// The file system is known not to keep a synced write on a disk of this machine.
    #[error(
        "{} lies on {file_system}, where a synced write may be lost; choose a directory on a local \
         disk (ext4, xfs, btrfs), or allow unsuitable file systems if losing data is acceptable",
        directory.display()
    )]
    UnsuitableFileSystem {
        /// The directory.
        directory: PathBuf,
        /// What it lies on.
        file_system: FileSystem,
    },
    /// The directory cannot be made, opened or examined.
    #[error("cannot use {} as a journal directory: {source}", directory.display())]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Something the owner of a store should know and may decide to live with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskWarning {
    /// The directory lives in memory.
    Memory {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory lies on an unsuitable file system that was allowed explicitly.
    Unsuitable {
        /// The directory.
        directory: PathBuf,
        /// What it lies on.
        file_system: FileSystem,
    },
    /// Both copies lie on one disk, whose loss loses both.
    OneDisk {
        /// The first copy.
        one: PathBuf,
        /// The second copy.
        other: PathBuf,
    },
}

impl fmt::Display for DiskWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { directory } => {
                write!(f, "{} lives in memory: nothing in it survives a power cut", directory.display())
            }
            Self::Unsuitable { directory, file_system } => {
                write!(f, "{} lies on {file_system}: a synced write may be lost", directory.display())
            }
            Self::OneDisk { one, other } => write!(
                f,
                "{} and {} lie on one disk: the mirror does not survive its loss",
                one.display(),
                other.display()
            ),
        }
    }
}

/// The warning that two directories meant as mirrors lie on one disk, if they do.
///
/// # Errors
/// One of them does not exist or cannot be examined.
pub fn mirror_warning(one: &Path, other: &Path) -> io::Result<Option<DiskWarning>> {
    let same = file_system::share_a_disk(one, other)?;
    Ok(same.then(|| DiskWarning::OneDisk { one: one.to_owned(), other: other.to_owned() }))
}

/// The warning about the file system that a directory lies on, if there is one.
///
/// # Errors
/// It does not exist or cannot be examined.
pub fn place_warning(directory: &Path) -> io::Result<Option<DiskWarning>> {
    let file_system = file_system::recognise(directory)?;
    let directory = directory.to_owned();
    Ok(match file_system.suitability {
        Suitability::Good => None,
        Suitability::Memory => Some(DiskWarning::Memory { directory }),
        Suitability::Unsuitable => Some(DiskWarning::Unsuitable { directory, file_system }),
    })
}

/// True for the names whose files are opened `O_DIRECT`: large ones, written in whole blocks.
#[must_use]
pub fn is_direct(name: &str) -> bool {
    name.starts_with("seg-") || name == "superblock" || is_bulky(name)
}

/// True for the names of files that are large and removed while commits are under way.
fn is_bulky(name: &str) -> bool {
    name.starts_with("cp-") && name.ends_with(".part")
}

/// A [`Disk`] over one directory. See the module.
pub struct FileDisk {
    place: Arc<Place>,
    name: String,
    bulk_threads: usize,
    next: u64,
    next_file: u32,
    /// Submitted and not yet handed to a thread, in order.
    queued: VecDeque<Job>,
    /// Ended without a thread; delivered before anything else.
    ended: VecDeque<Ended>,
    /// How many jobs of each lane the threads have and have not given back.
    handed: [usize; 2],
    files: BTreeMap<FileId, Arc<OpenFile>>,
    /// Inodes of closed files that failed: opening them again does not heal them.
    failed: BTreeMap<u64, DiskError>,
    shared: Arc<Shared>,
    threads: [Vec<JoinHandle<()>>; 2],
}

impl fmt::Debug for FileDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileDisk").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where the files are and what may be done with them; shared with the threads.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
    read_only: bool,
    direct: bool,
    /// The first failure of a sync of the names.
    names_failed: OnceLock<DiskError>,
    /// Removed files whose space is not given back yet.
    freeing: Freeing,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    inode: u64,
    /// For reads and for writes that need not be durable at once.
    bulk: File,
    /// For durable writes; none where a durable write takes a sync call of its own.
    durable: Option<File>,
    direct: bool,
    /// Made by this disk, so that its inode has no past.
    new: bool,
    failed: OnceLock<DiskError>,
}

/// An operation with everything a thread needs to run it.
#[derive(Debug)]
enum Task {
    List,
    Open { name: String, file: FileId },
    Create { name: String, file: FileId, len: u64 },
    Read { file: Arc<OpenFile>, offset: u64, len: usize },
    Write { file: Arc<OpenFile>, offset: u64, data: AlignedBuffer, durable: bool },
    Sync { file: Arc<OpenFile> },
    Rename { from: String, to: String },
    Remove { name: String },
    SyncNames,
    Close { file: Arc<OpenFile> },
}

#[derive(Debug)]
struct Job {
    ticket: Ticket,
    lane: Lane,
    task: Task,
}

/// What a job touches, for keeping conflicting jobs in order.
#[derive(Clone, Debug)]
enum Footprint {
    Names,
    Bytes { inode: u64, range: Range<u64>, write: bool },
}

impl Footprint {
    fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Names, Self::Names) => true,
            (
                Self::Bytes { inode, range, write },
                Self::Bytes { inode: other_inode, range: other_range, write: other_write },
            ) => {
                inode == other_inode
                    && (*write || *other_write)
                    && range.start < other_range.end
                    && other_range.start < range.end
            }
            _ => false,
        }
    }
}

impl Task {
    fn footprint(&self) -> Footprint {
        match self {
            Self::List
            | Self::Open { .. }
            | Self::Create { .. }
            | Self::Rename { .. }
            | Self::Remove { .. }
            | Self::SyncNames => Footprint::Names,
            Self::Read { file, offset, len } => {
                let range = *offset..offset.saturating_add(*len as u64);
                Footprint::Bytes { inode: file.inode, range, write: false }
            }
            Self::Write { file, offset, data, .. } => {
                let range = *offset..offset.saturating_add(data.len() as u64);
                Footprint::Bytes { inode: file.inode, range, write: true }
            }
            Self::Sync { file } | Self::Close { file } => {
                Footprint::Bytes { inode: file.inode, range: 0..u64::MAX, write: true }
            }
        }
    }
}

#[derive(Debug)]
struct Ended {
    ticket: Ticket,
    result: Result<Done, DiskError>,
    /// The file that was opened, created or closed.
    file: Option<Arc<OpenFile>>,
}

impl Ended {
    fn unit(ticket: Ticket, result: Result<(), DiskError>) -> Self {
        Self { ticket, result: result.map(|()| Done::Unit), file: None }
    }
}

/// What the calling thread and the disk threads share.
struct Shared {
    state: Mutex<State>,
    /// One per lane: there may be something to run.
    ready: [Condvar; 2],
    /// The caller, blocked in `wait`, may find a completion.
    done: Condvar,
    waker: Option<Waker>,
}

#[derive(Default)]
struct State {
    waiting: [VecDeque<Job>; 2],
    running: [Vec<(Ticket, Footprint)>; 2],
    ended: VecDeque<(Lane, Ended)>,
    caller_waits: bool,
    closing: bool,
}

impl State {
    /// Takes the first job of the lane that conflicts with nothing before it.
    fn take(&mut self, lane: Lane) -> Option<Job> {
        let at = lane as usize;
        let mut before: Vec<Footprint> = Vec::new();
        for index in 0..self.waiting[at].len() {
            let footprint = self.waiting[at][index].task.footprint();
            let running = self.running[at].iter().map(|(_, running)| running);
            if !running.chain(&before).any(|earlier| earlier.conflicts(&footprint)) {
                let job = self.waiting[at].remove(index)?;
                self.running[at].push((job.ticket, footprint));
                return Some(job);
            }
            before.push(footprint);
        }
        None
    }

    fn release(&mut self, lane: Lane, ticket: Ticket) {
        self.running[lane as usize].retain(|(running, _)| *running != ticket);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a disk thread.
    fn serve(&self, place: &Place, lane: Lane) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.take(lane) {
                drop(state);
                let ended = run(place, job);
                state = self.lock();
                state.release(lane, ended.ticket);
                state.ended.push_back((lane, ended));
                if !state.waiting[lane as usize].is_empty() {
                    // A job that had to wait for this one may be free now.
                    self.ready[lane as usize].notify_all();
                }
                if state.caller_waits {
                    self.done.notify_one();
                }
                if let Some(waker) = &self.waker {
                    drop(state);
                    waker();
                    state = self.lock();
                }
            } else if state.closing && state.waiting[lane as usize].is_empty() {
                return;
            } else {
                state = self.ready[lane as usize].wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl FileDisk {
    /// Opens a directory as a disk. Takes no lock: see [`super::lock`].
    ///
    /// # Errors
    /// [`OpenDiskError::UnsuitableFileSystem`] unless allowed; anything the system says.
    pub fn open(directory: impl Into<PathBuf>, options: FileDiskOptions) -> Result<Self, OpenDiskError> {
        let directory = directory.into();
        let unusable = |source| OpenDiskError::Unusable { directory: directory.clone(), source };
        if options.create && !options.read_only {
            create_directory(&directory).map_err(unusable)?;
        }
        if !fs::metadata(&directory).map_err(unusable)?.is_dir() {
            return Err(unusable(io::ErrorKind::NotADirectory.into()));
        }
        if !options.allow_unsuitable
            && !options.read_only
            && let Some(DiskWarning::Unsuitable { directory, file_system }) =
                place_warning(&directory).map_err(unusable)?
        {
            return Err(OpenDiskError::UnsuitableFileSystem { directory, file_system });
        }
        Ok(Self {
            name: directory.display().to_string(),
            place: Arc::new(Place {
                directory,
                read_only: options.read_only,
                direct: options.direct,
                names_failed: OnceLock::new(),
                freeing: Freeing::default(),
            }),
            bulk_threads: options.bulk_threads.max(1),
            next: 0,
            next_file: 0,
            queued: VecDeque::new(),
            ended: VecDeque::new(),
            handed: [0; 2],
            files: BTreeMap::new(),
            failed: BTreeMap::new(),
            shared: Arc::new(Shared {
                state: Mutex::default(),
                ready: [Condvar::new(), Condvar::new()],
                done: Condvar::new(),
                waker: options.waker,
            }),
            threads: [Vec::new(), Vec::new()],
        })
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.place.directory
    }

    /// Hands everything queued to the standing threads, like `poll`, without taking a completion.
    pub fn kick(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        let mut added = [0; 2];
        while let Some(job) = self.queued.pop_front() {
            let lane = job.lane as usize;
            added[lane] += 1;
            self.handed[lane] += 1;
            state.waiting[lane].push_back(job);
        }
        for (ready, added) in self.shared.ready.iter().zip(added) {
            match added {
                0 => {}
                1 => ready.notify_one(),
                _ => ready.notify_all(),
            }
        }
        drop(state);
        for lane in [Lane::Commit, Lane::Bulk] {
            self.start_threads(lane);
        }
    }

    /// Starts as many threads as there are jobs for, up to the lane's number. A machine that
    /// refuses a lane its first thread gets the jobs run here, late but surely.
    fn start_threads(&mut self, lane: Lane) {
        let at = lane as usize;
        let most = if lane == Lane::Commit { 1 } else { self.bulk_threads };
        while self.threads[at].len() < most.min(self.handed[at]) {
            let (shared, place) = (Arc::clone(&self.shared), Arc::clone(&self.place));
            let name = if lane == Lane::Commit { "disk-commit" } else { "disk-bulk" };
            let builder = thread::Builder::new().name(name.into()).stack_size(STACK);
            match builder.spawn(move || shared.serve(&place, lane)) {
                Ok(thread) => self.threads[at].push(thread),
                Err(_) if self.threads[at].is_empty() => {
                    let mut state = self.shared.lock();
                    while let Some(job) = state.take(lane) {
                        let ended = run(&self.place, job);
                        state.release(lane, ended.ticket);
                        state.ended.push_back((lane, ended));
                    }
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// Takes from the queue what the calling thread may run itself: a commit, when no commit is
    /// with the thread; or a short bulk operation, when there is nothing else at all (else the
    /// caller would be kept from completions that come meanwhile).
    fn take_inline(&mut self) -> Option<Job> {
        if self.handed[Lane::Commit as usize] > 0 {
            return None;
        }
        if let Some(at) = self.queued.iter().position(|job| job.lane == Lane::Commit) {
            return self.queued.remove(at);
        }
        let lone = self.queued.len() == 1 && self.handed[Lane::Bulk as usize] == 0;
        let short = self.queued.front().is_some_and(|job| !matches!(job.task, Task::Create { .. }));
        if lone && short { self.queued.pop_front() } else { None }
    }

    fn run_here(&mut self, job: Job) -> Ended {
        if self.queued.is_empty() {
            return run(&self.place, job);
        }
        // The threads must see what runs here, so that none of them runs a conflicting job of the
        // same lane beside it.
        let (lane, ticket) = (job.lane, job.ticket);
        self.shared.lock().running[lane as usize].push((ticket, job.task.footprint()));
        self.kick();
        let ended = run(&self.place, job);
        self.shared.lock().release(lane, ticket);
        self.shared.ready[lane as usize].notify_all();
        ended
    }

    fn take_ended(&mut self) -> Option<Ended> {
        if let Some(ended) = self.ended.pop_front() {
            return Some(ended);
        }
        if self.handed == [0; 2] {
            return None;
        }
        let taken = self.shared.lock().ended.pop_front();
        self.take_back(taken)
    }

    fn take_back(&mut self, taken: Option<(Lane, Ended)>) -> Option<Ended> {
        let (lane, ended) = taken?;
        self.handed[lane as usize] -= 1;
        Some(ended)
    }

    fn block(&mut self) -> Option<Ended> {
        if self.handed == [0; 2] {
            return None;
        }
        let mut state = self.shared.lock();
        let taken = loop {
            if let Some(taken) = state.ended.pop_front() {
                break taken;
            }
            state.caller_waits = true;
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.caller_waits = false;
        };
        drop(state);
        self.take_back(Some(taken))
    }

    fn deliver(&mut self, ended: Ended) -> Completion {
        match (ended.file, &ended.result) {
            (Some(opened), Ok(Done::Opened { file, .. })) => {
                if opened.new {
                    self.failed.remove(&opened.inode);
                } else if let Some(error) = self.failed.get(&opened.inode) {
                    let _ = opened.failed.set(error.clone());
                }
                self.files.insert(*file, opened);
            }
            (Some(closed), _) => {
                if let Some(error) = closed.failed.get() {
                    self.failed.insert(closed.inode, error.clone());
                }
            }
            (None, _) => {}
        }
        Completion { ticket: ended.ticket, result: ended.result }
    }

    fn task(&mut self, op: Op) -> Result<Task, DiskError> {
        let changes = !matches!(op, Op::List | Op::Open { .. } | Op::Read { .. } | Op::Close { .. });
        if self.place.read_only && changes {
            let detail = "the disk was opened for reading only".to_owned();
            return Err(self.refusal(&op, DiskErrorKind::ReadOnly, detail));
        }
        if let Some(name) = bad_name(&op) {
            let detail = format!("{name:?} is not a name that a file here may have");
            return Err(self.refusal(&op, DiskErrorKind::Io, detail));
        }
        if let Op::Read { file, .. } | Op::Write { file, .. } | Op::Sync { file } | Op::Close { file } = op
            && !self.files.contains_key(&file)
        {
            let detail = format!("file {} is not open", file.0);
            return Err(self.refusal(&op, DiskErrorKind::Io, detail));
        }
        let open = |file: FileId| Arc::clone(&self.files[&file]);
        Ok(match op {
            Op::List => Task::List,
            Op::Open { name } => Task::Open { name, file: self.new_file() },
            Op::Create { name, len } => Task::Create { name, file: self.new_file(), len },
            Op::Read { file, offset, len } => Task::Read { file: open(file), offset, len },
            Op::Write { file, offset, data, durable } => {
                Task::Write { file: open(file), offset, data, durable }
            }
            Op::Sync { file } => Task::Sync { file: open(file) },
            Op::Rename { from, to } => Task::Rename { from, to },
            Op::Remove { name } => Task::Remove { name },
            Op::SyncNames => Task::SyncNames,
            Op::Close { file } => {
                let closed = open(file);
                self.files.remove(&file);
                Task::Close { file: closed }
            }
        })
    }

    fn new_file(&mut self) -> FileId {
        self.next_file += 1;
        FileId(self.next_file)
    }

    fn refusal(&self, op: &Op, kind: DiskErrorKind, detail: String) -> DiskError {
        let what = match op {
            Op::List => "list".to_owned(),
            Op::Open { name } => format!("open {name}"),
            Op::Create { name, .. } => format!("create {name}"),
            Op::Read { offset, len, .. } => format!("read {len} bytes at {offset}"),
            Op::Write { offset, data, .. } => format!("write {} bytes at {offset}", data.len()),
            Op::Sync { .. } => "sync a file".to_owned(),
            Op::Rename { from, to } => format!("rename {from} to {to}"),
            Op::Remove { name } => format!("remove {name}"),
            Op::SyncNames => "sync the names".to_owned(),
            Op::Close { .. } => "close a file".to_owned(),
        };
        DiskError { kind, operation: format!("{what} in {}", self.name), detail }
    }
}

impl Disk for FileDisk {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        match self.task(op) {
            Ok(task) => self.queued.push_back(Job { ticket, lane, task }),
            Err(error) => self.ended.push_back(Ended::unit(ticket, Err(error))),
        }
        ticket
    }

    fn poll(&mut self) -> Option<Completion> {
        self.kick();
        let ended = self.take_ended()?;
        Some(self.deliver(ended))
    }

    fn wait(&mut self) -> Option<Completion> {
        let ended = if let Some(ended) = self.take_ended() {
            self.kick();
            ended
        } else if let Some(job) = self.take_inline() {
            self.run_here(job)
        } else {
            self.kick();
            self.block()?
        };
        Some(self.deliver(ended))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for FileDisk {
    /// What was submitted is done, then the threads end.
    fn drop(&mut self) {
        self.kick();
        self.shared.lock().closing = true;
        for ready in &self.shared.ready {
            ready.notify_all();
        }
        for thread in self.threads.iter_mut().flat_map(|threads| threads.drain(..)) {
            let _ = thread.join();
        }
    }
}

/// A name that would leave the directory or meet the host's own files there.
fn bad_name(op: &Op) -> Option<&str> {
    let bad =
        |name: &&str| name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) || is_ours(name);
    match op {
        Op::Open { name } | Op::Create { name, .. } | Op::Remove { name } => Some(name.as_str()).filter(bad),
        Op::Rename { from, to } => [from.as_str(), to.as_str()].into_iter().find(bad),
        _ => None,
    }
}

/// The host's own files, which are no part of the disk.
fn is_ours(name: &str) -> bool {
    name == LOCK_NAME || name == RUNNING_NAME
}

fn disk_error(operation: String, error: &io::Error) -> DiskError {
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT) => DiskErrorKind::NotFound,
        Some(libc::EEXIST) => DiskErrorKind::Exists,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => DiskErrorKind::NoSpace,
        Some(libc::EROFS) => DiskErrorKind::ReadOnly,
        Some(libc::ENODEV | libc::ENXIO | libc::ESTALE | libc::ENOTCONN) => DiskErrorKind::Gone,
        _ => DiskErrorKind::Io,
    };
    DiskError { kind, operation, detail: error.to_string() }
}

fn run(place: &Place, job: Job) -> Ended {
    let ticket = job.ticket;
    match job.task {
        Task::List => {
            let result = list(&place.directory)
                .map(Done::Names)
                .map_err(|error| disk_error(format!("list {}", place.directory.display()), &error));
            Ended { ticket, result, file: None }
        }
        Task::Open { name, file } => {
            let what = format!("open {}", place.directory.join(&name).display());
            opened_as(ticket, file, open(place, &name, false), what)
        }
        Task::Create { name, file, len } => {
            let what = format!("create {}, {len} bytes", place.directory.join(&name).display());
            opened_as(ticket, file, create(place, &name, len), what)
        }
        Task::Read { file, offset, len } => {
            let result = read(&file, offset, len).map(Done::Read).map_err(|error| {
                disk_error(format!("read {len} bytes at {offset} of {}", file.path.display()), &error)
            });
            Ended { ticket, result, file: None }
        }
        Task::Write { file, offset, data, durable } => {
            let what = || format!("write {} bytes at {offset} of {}", data.len(), file.path.display());
            let result = change(&file.failed, || write(&file, offset, &data, durable), what);
            Ended { ticket, result: result.map(|()| Done::Wrote(data)), file: None }
        }
        Task::Sync { file } => {
            let what = || format!("sync {}", file.path.display());
            Ended::unit(ticket, change(&file.failed, || file.bulk.sync_data(), what))
        }
        Task::Rename { from, to } => {
            let (from, to) = (place.directory.join(from), place.directory.join(to));
            let what = format!("rename {} to {}", from.display(), to.display());
            Ended::unit(ticket, fs::rename(from, to).map_err(|error| disk_error(what, &error)))
        }
        Task::Remove { name } => {
            let path = place.directory.join(&name);
            let what = format!("remove {}", path.display());
            let removed = if is_bulky(&name) { place.freeing.remove(&path) } else { fs::remove_file(&path) };
            Ended::unit(ticket, removed.map_err(|error| disk_error(what, &error)))
        }
        Task::SyncNames => {
            let what = || format!("sync the names of {}", place.directory.display());
            Ended::unit(ticket, change(&place.names_failed, || sync_directory(&place.directory), what))
        }
        Task::Close { file } => {
            // The caller drops it, and with it the descriptors, once it has seen whether it failed.
            Ended { ticket, result: Ok(Done::Unit), file: Some(file) }
        }
    }
}

fn opened_as(ticket: Ticket, file: FileId, opened: io::Result<(OpenFile, u64)>, operation: String) -> Ended {
    match opened {
        Ok((opened, len)) => {
            Ended { ticket, result: Ok(Done::Opened { file, len }), file: Some(Arc::new(opened)) }
        }
        Err(error) => Ended::unit(ticket, Err(disk_error(operation, &error))),
    }
}

/// Makes a change unless an earlier one failed, and remembers its failure.
fn change(
    failed: &OnceLock<DiskError>,
    change: impl FnOnce() -> io::Result<()>,
    what: impl Fn() -> String,
) -> Result<(), DiskError> {
    if let Some(earlier) = failed.get() {
        let detail = format!("an earlier one failed and is never retried: {earlier}");
        return Err(DiskError { kind: earlier.kind, operation: what(), detail });
    }
    change().map_err(|error| {
        let error = disk_error(what(), &error);
        let _ = failed.set(error.clone());
        error
    })
}

/// Names and lengths of the regular files, sorted by name, without the host's own.
fn list(directory: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed between the two calls (by an operation of the other lane).
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_file() && !is_ours(&name) {
            names.push((name, metadata.len()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens a file by the method that its name asks for and its file system allows.
fn open(place: &Place, name: &str, new: bool) -> io::Result<(OpenFile, u64)> {
    let path = place.directory.join(name);
    let write = !place.read_only;
    let with = |flags: i32, new: bool| {
        OpenOptions::new().read(true).write(write).create_new(new).custom_flags(flags).open(&path)
    };
    let (bulk, direct) = if place.direct && is_direct(name) {
        match with(libc::O_DIRECT, new) {
            Ok(file) => (file, true),
            // Refused by the file system. Some create the file before they refuse.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let made = new && path.exists();
                (with(0, new && !made)?, false)
            }
            Err(error) => return Err(error),
        }
    } else {
        (with(0, new)?, false)
    };
    let durable = if direct && write { Some(with(libc::O_DIRECT | libc::O_DSYNC, false)?) } else { None };
    let metadata = bulk.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let inode = metadata.ino();
    Ok((OpenFile { path, inode, bulk, durable, direct, new, failed: OnceLock::new() }, metadata.len()))
}

/// Creates a file with every byte written, so that later overwrites change no metadata (measured:
/// 147 us for a synced overwrite, 242 where the space was only reserved). Leaves nothing behind
/// when it fails.
fn create(place: &Place, name: &str, len: u64) -> io::Result<(OpenFile, u64)> {
    let (file, _) = open(place, name, true)?;
    let fill = || {
        let zeroes = AlignedBuffer::zeroed(FILL.min(usize::try_from(len).unwrap_or(FILL)));
        let mut offset = 0;
        while offset < len {
            let piece = zeroes.len().min(usize::try_from(len - offset).unwrap_or(FILL));
            write_all(&file.bulk, offset, &zeroes[..piece], file.direct)?;
            offset += piece as u64;
        }
        file.bulk.sync_data()
    };
    match fill() {
        Ok(()) => Ok((file, len)),
        Err(error) => {
            // Best effort: the error that counts is the one met first.
            let _ = fs::remove_file(&file.path);
            Err(error)
        }
    }
}

fn read(file: &OpenFile, offset: u64, len: usize) -> io::Result<AlignedBuffer> {
    aligned(file, offset, len)?;
    let mut buffer = AlignedBuffer::zeroed(len);
    let mut done = 0;
    while done < len {
        match file.bulk.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if file.direct && !done.is_multiple_of(BLOCK) {
            break; // Only the end of the file ends a direct read within a block.
        }
    }
    buffer.set_len(done);
    Ok(buffer)
}

fn write(file: &OpenFile, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
    aligned(file, offset, data.len())?;
    match (&file.durable, durable) {
        (Some(direct), true) => write_all(direct, offset, data, true),
        (None, true) => {
            write_all(&file.bulk, offset, data, file.direct)?;
            file.bulk.sync_data()
        }
        (_, false) => write_all(&file.bulk, offset, data, file.direct),
    }
}

/// The kernel would say no more than "invalid argument".
fn aligned(file: &OpenFile, offset: u64, len: usize) -> io::Result<()> {
    if file.direct && !(offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK)) {
        return Err(io::Error::other("offset and length of direct input/output must be whole blocks"));
    }
    Ok(())
}

/// Writes everything: an interrupted call is made again, a short one continued.
fn write_all(file: &File, offset: u64, data: &[u8], direct: bool) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        match file.write_at(&data[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) if direct && done + count < data.len() => {
                // Continue at a whole block; the part of a block is simply written again.
                let whole = (done + count) / BLOCK * BLOCK;
                if whole == done {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                done = whole;
            }
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes a directory and those above it, each name durable in the one above.
///
/// # Errors
/// What the operating system says.
pub fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let above = match directory.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    create_directory(above)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_directory(above)
}

#[cfg(test)]
mod tests;
