//! What each open descriptor of this process is: a recorded file, a way out, or nothing to note.
//!
//! Decides by looking at the descriptor when it is first used, not when it was made: so it does not
//! matter whether it came from `open`, `dup`, `socket` or from the parent process. What was found
//! is kept until the descriptor is closed.
//! Invariant: no lock; a descriptor is classified the same way by every thread.

use crate::notes::{self, Config};
use crate::raw;
use libc::c_int;
use rallypoint_recorder::record::{DIRECTORY, DURABLE, Head, Kind};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Descriptors above this are looked at on each use.
const KEPT: usize = 1 << 16;
static CLASS: [AtomicU8; KEPT] = [const { AtomicU8::new(UNKNOWN) }; KEPT];
static INODE: [AtomicU64; KEPT] = [const { AtomicU64::new(0) }; KEPT];

const UNKNOWN: u8 = 0;
const OTHER: u8 = 1;
const WAY_OUT: u8 = 2;
const LEDGER: u8 = 3;
const FILE: u8 = 4;
const DURABLE_FILE: u8 = 5;
const FOLDER: u8 = 6;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nothing to note.
    Other,
    /// A socket or pipe.
    WayOut,
    /// The ledger.
    Ledger,
    /// A file below the recorded directory.
    File { inode: u64, durable: bool },
    /// A directory below it, or itself.
    Directory { inode: u64 },
}

/// Forgets a descriptor, which is closed or now stands for something else.
pub(crate) fn forget(fd: c_int) {
    if let Some(class) = usize::try_from(fd).ok().and_then(|fd| CLASS.get(fd)) {
        class.store(UNKNOWN, Ordering::Release);
    }
}

pub(crate) fn class(config: &Config, fd: c_int) -> Class {
    let Ok(at) = usize::try_from(fd) else { return Class::Other };
    let (class, inode) = match (CLASS.get(at), INODE.get(at)) {
        (Some(class), Some(inode)) => match class.load(Ordering::Acquire) {
            UNKNOWN => {
                let (found, number) = look(config, fd);
                inode.store(number, Ordering::Relaxed);
                class.store(found, Ordering::Release);
                (found, number)
            }
            known => (known, inode.load(Ordering::Relaxed)),
        },
        _ => look(config, fd),
    };
    match class {
        WAY_OUT => Class::WayOut,
        LEDGER => Class::Ledger,
        FILE => Class::File { inode, durable: false },
        DURABLE_FILE => Class::File { inode, durable: true },
        FOLDER => Class::Directory { inode },
        _ => Class::Other,
    }
}

fn look(config: &Config, fd: c_int) -> (u8, u64) {
    let saved = raw::errno();
    let found = look_closely(config, fd);
    raw::set_errno(saved);
    found
}

fn look_closely(config: &Config, fd: c_int) -> (u8, u64) {
    let Some(stat) = raw::stat(fd) else { return (OTHER, 0) };
    let folder = match stat.st_mode & libc::S_IFMT {
        libc::S_IFSOCK | libc::S_IFIFO => return (WAY_OUT, 0),
        libc::S_IFREG => false,
        libc::S_IFDIR => true,
        _ => return (OTHER, 0),
    };
    let Some(path) = raw::path_of(fd) else { return (OTHER, 0) };
    if config.is_ledger(path.as_bytes()) {
        return (LEDGER, 0);
    }
    if !config.is_recorded(path.as_bytes()) {
        return (OTHER, 0);
    }
    let synced = raw::flags(fd) & (libc::O_DSYNC | libc::O_SYNC) != 0;
    let flags = if folder { DIRECTORY } else { 0 } | if synced { DURABLE } else { 0 };
    let head = Head { inode: stat.st_ino, flags, ..Head::new(Kind::Known) };
    let known = notes::note(config, head, path.as_bytes(), &[]);
    if !folder && stat.st_size > 0 && config.records() {
        seen(config, fd, known, stat.st_ino);
    }
    let class = match (folder, synced) {
        (true, _) => FOLDER,
        (false, true) => DURABLE_FILE,
        (false, false) => FILE,
    };
    (class, stat.st_ino)
}

/// Bytes of one note about what a file holds.
const PIECE: usize = 1 << 18;

/// Notes what is in a file that was just opened. A process that is killed in the middle of a write
/// leaves no end of it, and only what its successor finds tells what became of it.
fn seen(config: &Config, fd: c_int, known: u64, inode: u64) {
    let Some(own) = raw::open_again(fd) else { return };
    // Not on the stack, which may be small, and not on the heap, whose lock may be held.
    // SAFETY: a new private mapping that nothing else knows of.
    let buffer = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), PIECE, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if buffer == libc::MAP_FAILED {
        raw::give_up("no memory to read a file into");
    }
    let mut offset = 0;
    loop {
        let read = raw::system_call!(libc::SYS_pread64, own, buffer, PIECE, offset);
        let Some(len) = usize::try_from(read).ok().filter(|len| *len > 0) else { break };
        let head = Head { inode, offset, len: len as u64, of: known, ..Head::new(Kind::Seen) };
        notes::note(config, head, &[], &[libc::iovec { iov_base: buffer, iov_len: len }]);
        offset += len as u64;
    }
    // SAFETY: mapped above, and no longer used.
    unsafe { libc::munmap(buffer, PIECE) };
    raw::close(own);
}
