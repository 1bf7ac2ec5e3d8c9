//! Settings, the shared counters, and writing one note.
//!
//! Decides where notes go: one file per process, found anew after a fork. Never allocates after
//! the start.

use crate::raw::{self, PathBuffer};
use libc::{c_int, iovec};
use rallypoint_recorder::record::{
    ENV_DIR, ENV_FAIL_NAME, ENV_FAIL_SYNC, ENV_FAIL_WRITE, ENV_LEDGER, ENV_OUT, Head, Kind, ORDER_NAME,
    RECORD_SUFFIX, ZEROES,
};
use std::env;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The counters that all processes share.
#[derive(Debug, Default)]
struct Shared {
    order: AtomicU64,
    writes: AtomicU64,
    syncs: AtomicU64,
}

/// One failure to make: at which call, with which error number.
#[derive(Clone, Copy, Debug)]
struct Failure {
    nth: u64,
    errno: c_int,
}

/// What the environment asked for.
pub(crate) struct Config {
    directory: Vec<u8>,
    ledger: Option<Vec<u8>>,
    out: Option<Vec<u8>>,
    shared: &'static Shared,
    /// The record file, and the process that opened it.
    file: AtomicI32,
    pid: AtomicU32,
    fail_write: Option<Failure>,
    fail_sync: Option<Failure>,
    fail_name: Vec<u8>,
}

static CONFIG: AtomicPtr<Config> = AtomicPtr::new(ptr::null_mut());
static UNSHARED: Shared =
    Shared { order: AtomicU64::new(0), writes: AtomicU64::new(0), syncs: AtomicU64::new(0) };

/// Runs when the library is loaded, before the program starts.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    let Some(directory) = env::var_os(ENV_DIR) else { return };
    let directory = fs::canonicalize(&directory).map_or(directory, Into::into).into_vec();
    let ledger = env::var_os(ENV_LEDGER).map(|path| {
        let full = fs::canonicalize(&path).ok();
        // The file may not exist yet, but its directory does.
        let parent = std::path::Path::new(&path).parent().and_then(|parent| fs::canonicalize(parent).ok());
        let joined = parent.zip(std::path::Path::new(&path).file_name()).map(|(dir, name)| dir.join(name));
        full.or(joined).map_or(path, Into::into).into_vec()
    });
    let out = env::var_os(ENV_OUT).map(|out| out.as_bytes().to_vec());
    let config = Config {
        directory,
        ledger,
        shared: out.as_deref().map_or(&UNSHARED, shared),
        out,
        file: AtomicI32::new(-1),
        pid: AtomicU32::new(0),
        fail_write: failure(ENV_FAIL_WRITE),
        fail_sync: failure(ENV_FAIL_SYNC),
        fail_name: env::var_os(ENV_FAIL_NAME).map(OsStringExt::into_vec).unwrap_or_default(),
    };
    CONFIG.store(Box::into_raw(Box::new(config)), Ordering::Release);
}

fn failure(name: &str) -> Option<Failure> {
    let text = env::var(name).ok()?;
    let (nth, errno) = text.split_once(',').unwrap_or((&text, "5"));
    match (nth.trim().parse(), errno.trim().parse()) {
        (Ok(nth), Ok(errno)) => Some(Failure { nth, errno }),
        _ => raw::give_up("a failure is written as nth,errno, for example 3,5"),
    }
}

/// Maps the file with the counters, making it when this is the first process.
fn shared(out: &[u8]) -> &'static Shared {
    const LEN: usize = 4096;
    let path = CString::new([out, b"/", ORDER_NAME.as_bytes()].concat()).unwrap_or_default();
    let fd = raw::open(libc::AT_FDCWD, &path, libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC, 0o644);
    let fd = c_int::try_from(fd).unwrap_or(-1);
    raw::system_call!(libc::SYS_ftruncate, fd, LEN);
    // SAFETY: a new mapping at an address of the kernel's choice; `fd` is checked by the call.
    let address = unsafe {
        libc::mmap(ptr::null_mut(), LEN, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
    };
    if address == libc::MAP_FAILED {
        raw::give_up("cannot map the shared counters");
    }
    raw::close(fd);
    // SAFETY: mapped for the life of the process, zeroed at first, page-aligned, and only ever
    // used as atomics.
    unsafe { &*address.cast::<Shared>() }
}

/// The settings; none before the start or when nothing is to be recorded.
pub(crate) fn config() -> Option<&'static Config> {
    // SAFETY: null, or the leaked box that `start` stored.
    unsafe { CONFIG.load(Ordering::Acquire).as_ref() }
}

impl Config {
    /// False when only failures are made.
    pub(crate) fn records(&self) -> bool {
        self.out.is_some()
    }

    pub(crate) fn is_recorded(&self, path: &[u8]) -> bool {
        path.strip_prefix(self.directory.as_slice())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }

    pub(crate) fn is_ledger(&self, path: &[u8]) -> bool {
        self.ledger.as_deref() == Some(path)
    }

    /// The error that this write or sync of `fd` is to meet, if it is its turn.
    pub(crate) fn failure(&self, fd: c_int, sync: bool) -> Option<i64> {
        let (failure, counter) = if sync {
            (self.fail_sync?, &self.shared.syncs)
        } else {
            (self.fail_write?, &self.shared.writes)
        };
        let named = self.fail_name.is_empty()
            || raw::path_of(fd).is_some_and(|path| contains(path.as_bytes(), &self.fail_name));
        let its_turn = named && counter.fetch_add(1, Ordering::SeqCst) + 1 == failure.nth;
        its_turn.then_some(-i64::from(failure.errno))
    }

    /// This process's record file. After a fork the child opens its own.
    fn file(&self, pid: u32) -> c_int {
        let Some(out) = &self.out else { return -1 };
        if self.pid.load(Ordering::Acquire) == pid {
            return self.file.load(Ordering::Acquire);
        }
        let mut path = PathBuffer::new();
        let mut digits = [0; 12];
        let name = raw::decimal(pid.cast_signed(), &mut digits);
        let whole =
            path.push(out) && path.push(b"/") && path.push(name) && path.push(RECORD_SUFFIX.as_bytes());
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
        let low = path
            .as_c_str()
            .filter(|_| whole)
            .map_or(-1, |path| raw::open(libc::AT_FDCWD, path, flags, 0o644));
        // Out of the way of programs that expect small numbers. Two threads may both get here at
        // the start; each has a descriptor of the same file, and appends to it.
        let high = raw::system_call!(libc::SYS_fcntl, low, libc::F_DUPFD_CLOEXEC, 200);
        raw::close(low as c_int);
        if high < 0 {
            raw::give_up("cannot open the record file");
        }
        self.file.store(high as c_int, Ordering::Release);
        self.pid.store(pid, Ordering::Release);
        high as c_int
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Parts of data that one note can take; a longer vector is written in part, as writev(2) may.
pub(crate) const PARTS: usize = 32;

/// Writes one note and gives its place in the global order.
pub(crate) fn note(config: &Config, mut head: Head, path: &[u8], data: &[iovec]) -> u64 {
    let order = config.shared.order.fetch_add(1, Ordering::SeqCst) + 1;
    let pid = raw::pid();
    let file = config.file(pid);
    if file < 0 {
        return order;
    }
    let len: usize = data.iter().map(|part| part.iov_len).sum();
    let zeroes = matches!(head.kind, Kind::Write | Kind::Seen) && data.iter().all(is_zero);
    if zeroes {
        head.flags |= ZEROES;
    }
    (head.order, head.pid, head.tid) = (order, pid, raw::tid());
    (head.path, head.data) = (path.len() as u16, if zeroes { 0 } else { len as u32 });
    let bytes = head.encode();
    let empty = iovec { iov_base: ptr::null_mut(), iov_len: 0 };
    let mut parts = [empty; PARTS + 2];
    for (part, bytes) in parts.iter_mut().zip([&bytes[..], path]) {
        *part = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    }
    let data = if zeroes { &[] } else { data };
    parts[2..2 + data.len()].copy_from_slice(data);
    let whole = bytes.len() + path.len() + head.data as usize;
    if raw::write_vectors(file, &parts[..2 + data.len()]) != whole as i64 {
        raw::give_up("cannot write a record");
    }
    order
}

/// Notes the end of the operation that began at `of`.
pub(crate) fn note_end(config: &Config, of: u64, result: i64, inode: u64, offset: u64, flags: u8) {
    let head = Head { of, result, inode, offset, flags, ..Head::new(Kind::End) };
    note(config, head, &[], &[]);
}

fn is_zero(part: &iovec) -> bool {
    if part.iov_len == 0 {
        return true;
    }
    // SAFETY: the program handed this memory to a write call, which would read it just the same.
    let bytes = unsafe { std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len) };
    bytes.iter().all(|byte| *byte == 0)
}
