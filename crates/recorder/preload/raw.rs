//! System calls without the C library's functions, which are intercepted here.
//!
//! Invariant: every function returns what the kernel says, an error as a negated error number.

use libc::{c_int, c_long};
use std::ffi::CStr;

/// One system call; the result as the kernel gives it.
macro_rules! system_call {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: each caller passes what the program passed to the function of the same name, or
        // memory of its own; the C library's wrapper only moves registers.
        let result = unsafe { libc::syscall($number $(, $argument)*) };
        if result == -1 { -i64::from($crate::raw::errno()) } else { i64::from(result) }
    }};
}
pub(crate) use system_call;

pub(crate) fn errno() -> c_int {
    // SAFETY: the address is this thread's own.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(value: c_int) {
    // SAFETY: the address is this thread's own.
    unsafe { *libc::__errno_location() = value }
}

/// Turns the kernel's answer into the C library's: -1 and `errno`.
pub(crate) fn answer(result: i64) -> i64 {
    if result < 0 {
        set_errno(i32::try_from(-result).unwrap_or(libc::EIO));
        return -1;
    }
    result
}

pub(crate) fn open(directory: c_int, path: &CStr, flags: c_int, mode: u32) -> i64 {
    system_call!(libc::SYS_openat, directory, path.as_ptr(), flags, mode)
}

pub(crate) fn close(fd: c_int) -> i64 {
    system_call!(libc::SYS_close, fd)
}

pub(crate) fn pid() -> u32 {
    system_call!(libc::SYS_getpid) as u32
}

pub(crate) fn tid() -> u32 {
    system_call!(libc::SYS_gettid) as u32
}

/// The flags a descriptor was opened with.
pub(crate) fn flags(fd: c_int) -> c_int {
    system_call!(libc::SYS_fcntl, fd, libc::F_GETFL) as c_int
}

pub(crate) fn seek(fd: c_int, offset: i64, whence: c_int) -> i64 {
    system_call!(libc::SYS_lseek, fd, offset, whence)
}

pub(crate) fn write_vectors(fd: c_int, parts: &[libc::iovec]) -> i64 {
    system_call!(libc::SYS_writev, fd, parts.as_ptr(), parts.len())
}

/// The file behind a descriptor, or `None` when it is not open.
pub(crate) fn stat(fd: c_int) -> Option<libc::stat> {
    // SAFETY: a zeroed stat is a valid value, and as large as the kernel writes.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: as above; fstat is not intercepted here.
    let result = unsafe { libc::fstat(fd, &raw mut stat) };
    (result == 0).then_some(stat)
}

/// The file behind a name (not following a last symbolic link).
pub(crate) fn stat_at(directory: c_int, path: &CStr) -> Option<libc::stat> {
    // SAFETY: a zeroed stat is a valid value, and as large as the kernel writes.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: as above, and the path ends with a zero; fstatat is not intercepted here.
    let result = unsafe { libc::fstatat(directory, path.as_ptr(), &raw mut stat, flags) };
    (result == 0).then_some(stat)
}

/// Where a path is put together: no allocation, and small enough for a small stack.
pub(crate) struct PathBuffer {
    bytes: [u8; 2048],
    len: usize,
}

impl PathBuffer {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 2048], len: 0 }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Adds bytes; false when they do not fit (a zero byte behind them always does).
    #[must_use]
    pub(crate) fn push(&mut self, part: &[u8]) -> bool {
        let end = self.len + part.len();
        if end >= self.bytes.len() {
            return false;
        }
        self.bytes[self.len..end].copy_from_slice(part);
        self.len = end;
        true
    }

    /// The path with its terminating zero.
    pub(crate) fn as_c_str(&mut self) -> Option<&CStr> {
        self.bytes[self.len] = 0;
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }
}

/// A second descriptor of the same file, to read it through the page cache whatever the first was
/// opened for.
pub(crate) fn open_again(fd: c_int) -> Option<c_int> {
    let mut link = PathBuffer::new();
    let mut digits = [0; 12];
    if !(link.push(b"/proc/self/fd/") && link.push(decimal(fd, &mut digits))) {
        return None;
    }
    let again = open(libc::AT_FDCWD, link.as_c_str()?, libc::O_RDONLY | libc::O_CLOEXEC, 0);
    c_int::try_from(again).ok().filter(|again| *again >= 0)
}

/// The path of an open file as the kernel tells it.
pub(crate) fn path_of(fd: c_int) -> Option<PathBuffer> {
    let mut link = PathBuffer::new();
    let mut digits = [0; 12];
    if !(link.push(b"/proc/self/fd/") && link.push(decimal(fd, &mut digits))) {
        return None;
    }
    let mut path = PathBuffer::new();
    let link = link.as_c_str()?;
    let room = path.bytes.len() - 1;
    let len =
        system_call!(libc::SYS_readlinkat, libc::AT_FDCWD, link.as_ptr(), path.bytes.as_mut_ptr(), room);
    path.len = usize::try_from(len).ok().filter(|len| *len < room)?;
    Some(path)
}

/// The absolute path that a name stands for: its directory resolved, the last part as it is.
pub(crate) fn resolve(directory: c_int, path: &CStr) -> Option<PathBuffer> {
    let bytes = path.to_bytes();
    let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
    let (parent, last) = match bytes.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (&b"/"[..], &bytes[1..]),
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (&b"."[..], bytes),
    };
    let mut buffer = PathBuffer::new();
    if !buffer.push(parent) {
        return None;
    }
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let fd = open(directory, buffer.as_c_str()?, flags, 0);
    if fd < 0 {
        return None;
    }
    let resolved = path_of(fd as c_int);
    close(fd as c_int);
    let mut resolved = resolved?;
    (resolved.push(b"/") && resolved.push(last)).then_some(resolved)
}

/// A number in decimal digits, without allocating.
pub(crate) fn decimal(number: c_int, digits: &mut [u8; 12]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &digits[at..];
        }
    }
}

/// Ends the program at once, with a word about why.
pub(crate) fn give_up(why: &str) -> ! {
    let parts = ["rallypoint_preload: ", why, "\n"]
        .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    write_vectors(2, &parts);
    // SAFETY: ends the process; nothing is left to be unsound.
    unsafe { libc::_exit(97) }
}

/// `syscall` takes and gives `long`; the numbers used here must be its.
const _: c_long = libc::SYS_openat;
